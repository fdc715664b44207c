"""skvae: the variational autoencoder as a scikit-learn estimator."""

from ._data.rows import Chunks
from ._imputation import VAEImputer
from ._io.load import load
from ._outliers import VAEOutlierDetector
from ._transformer import VAETransformer

__all__ = [
    "Chunks",
    "VAEImputer",
    "VAEOutlierDetector",
    "VAETransformer",
    "load",
]
__version__ = "0.1.0"
