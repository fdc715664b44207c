"""skvae: the variational autoencoder as a scikit-learn estimator."""

from . import callbacks, likelihoods
from ._transformer import VAETransformer, load

__all__ = ["VAETransformer", "callbacks", "likelihoods", "load"]
__version__ = "0.1.0"
