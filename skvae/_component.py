"""What likelihoods, priors, objectives and architectures have in common."""

from sklearn.base import BaseEstimator
from torch import nn


class Component(nn.Module, BaseEstimator):
    """A torch module with scikit-learn's parameters: those of ``__init__``, stored under their own names.

    A component is given to the estimator unbuilt, as a description; `fit` copies it and builds the copy, which is when
    it gets its tensors. So it clones, prints and takes part in a grid search (``prior__n_components``).
    """

    def __init__(self) -> None:
        super().__init__()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.get_params(deep=False).items())
