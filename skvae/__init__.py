"""skvae: the variational autoencoder as a scikit-learn estimator."""

from . import architectures, callbacks, likelihoods, objectives, priors
from ._transformer import VAETransformer, load

__all__ = ["VAETransformer", "architectures", "callbacks", "likelihoods", "load", "objectives", "priors"]
__version__ = "0.1.0"
