"""Base of likelihoods, priors, objectives, architectures and ways to start."""

from collections.abc import Callable
from numbers import Integral
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, validate_parameter_constraints
from torch import nn

COUNT = Interval(Integral, 1, None, closed="left")


class Counts(HasMethods):
    """Constraint of a parameter: a sequence of ints > 0.

    Parameters
    ----------
    lengths : range, default=range(1, 1000)
        How many there may be.
    shown : str, default="a sequence of ints > 0, at least one"
        The constraint in words.
    """

    def __init__(self, lengths: range = range(1, 1000), shown: str = "a sequence of ints > 0, at least one") -> None:
        super().__init__("__iter__")
        self.lengths = lengths
        self.shown = shown

    def is_satisfied_by(self, val: Any) -> bool:
        is_sequence = super().is_satisfied_by(val) and getattr(val, "ndim", 1) == 1
        counts = list(val) if is_sequence else []
        fits = is_sequence and len(counts) in self.lengths
        return fits and all(isinstance(count, Integral) and int(count) > 0 for count in counts)

    def __str__(self) -> str:
        return self.shown


@runtime_checkable
class Epochal(Protocol):
    """A torch module that does something else in each epoch of training."""

    def begin_epoch(self, epoch: int, n_epochs: int, generator: torch.Generator) -> None:
        """Prepare for an epoch, counted from 1.

        `n_epochs` is the length of the run that the estimator's `max_iter` asks for, `generator` a stream that belongs
        to the epoch.
        """


class Component(nn.Module, BaseEstimator):
    """A torch module with scikit-learn's parameters: those of ``__init__``, stored under their own names.

    A component is given to the estimator unbuilt, as a description; `fit` copies it and builds the copy, which is when
    it gets its tensors. So it clones, prints and takes part in a grid search (``prior__n_components``).

    ``_parameter_constraints`` says for each parameter what it may be, as in scikit-learn's estimators: a list of types,
    intervals and options. Those of base classes hold too, unless a class has its own for that name.
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {}
    get_params: Callable[..., dict[str, Any]]  # BaseEstimator's, which nn.Module's __getattr__ hides

    def __init__(self) -> None:
        super().__init__()

    def check_params(self) -> None:
        """Raise InvalidParameterError, a ValueError, where a parameter breaks its constraint.

        `fit` calls it before any work, since a search sets parameters without the constructor. A class whose parameters
        constrain each other overrides it, and calls ``super().check_params()`` first.
        """
        constraints: dict[str, list] = {}
        for cls in reversed(type(self).__mro__):
            constraints |= vars(cls).get("_parameter_constraints", {})
        given = {name: getattr(self, name) for name in constraints if hasattr(self, name)}
        validate_parameter_constraints(constraints, given, caller_name=type(self).__name__)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.get_params(deep=False).items())


def check_component(component: Component) -> None:
    """Raise what the constructor would raise at the parameters that the component has now, or its `check_params`."""
    type(component)(**component.get_params(deep=False)).check_params()
