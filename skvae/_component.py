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


def check_count(component: Component, name: str) -> None:
    """Refuse a parameter that is less than 1."""
    if (value := getattr(component, name)) < 1:
        raise ValueError(f"{name} must be an int > 0. Got {value!r} instead.")


def stands_for(fast: str, slow: str, component: Component, base: type) -> bool:
    """Whether the method `fast` of a component computes what `slow` does: `base` derives it from `slow`, else it is
    written beside it, and a class derived from there may have another `slow`."""
    owner = {name: next(cls for cls in type(component).__mro__ if name in vars(cls)) for name in (fast, slow)}
    return owner[fast] is base or issubclass(owner[fast], owner[slow])
