"""Batches, which travel from the rows to the objectives."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from .._model.likelihood import Likelihood


class Cells(NamedTuple):
    """Rows with holes: what the likelihood sees, which cells of it count, and what the encoder sees.

    Parameters
    ----------
    x, observed, seen, spread, context : Tensor
        As in a `Batch`.
    """

    x: Tensor
    observed: Tensor
    seen: Tensor
    spread: Tensor
    context: Tensor | None


@dataclass(frozen=True)
class Batch:
    """Rows of a step, in the model's units, with all that is random about it: the step itself draws nothing.

    Parameters
    ----------
    x : Tensor of shape (..., batch, n_features)
        The rows, which the likelihood sees.
    eps : Tensor of shape (..., batch, z_dim)
        Standard normal draws of the posterior; (n_draws, ..., batch, z_dim) for an objective of several draws.
    seen : Tensor of shape (..., batch, n_features), default=None
        What the encoder sees: `Likelihood.inputs` of the rows, with holes filled and with noise. None: of `x`.
    spread : Tensor of shape (..., batch, z_dim), default=None
        What holes add to the log-scales of the posterior. None: nothing.
    observed : Tensor of shape (..., batch, n_features), dtype bool, default=None
        Which cells count. None: all.
    weight : Tensor of shape (..., batch), default=None
        Weights of the rows, which add up to 1. None: all the same.
    context : Tensor of shape (..., batch, n_context), default=None
        What is given and not modelled: the decoder sees it beside z, and `seen` ends with it.
    balanced : bool, default=False
        Whether gradients in the raw outputs are to be multiplied by `Likelihood.balance`.
    for_map : bool, default=False
        Whether of the raw outputs of each feature only the first is to have gradients below the decoder's head.
    """

    x: Tensor
    eps: Tensor
    seen: Tensor | None = None
    spread: Tensor | None = None
    observed: Tensor | None = None
    weight: Tensor | None = None
    context: Tensor | None = None
    balanced: bool = False
    for_map: bool = False

    def inputs(self, likelihood: "Likelihood") -> Tensor:
        """Return the rows as the encoder sees them."""
        return likelihood.inputs(self.x) if self.seen is None else self.seen

    def __len__(self) -> int:
        return self.x.shape[-2]
