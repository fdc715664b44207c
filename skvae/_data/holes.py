"""Missing cells: NaN in a table, up to where a batch is made; from there on zeros beside a mask of what is observed."""

import torch
from torch import Tensor


def observed_cells(x: Tensor) -> Tensor | None:
    """Return a mask of the cells of `x` that hold a value, of its shape; None where all do."""
    observed = ~x.isnan()
    return None if bool(observed.all()) else observed


def without_holes(x: Tensor) -> Tensor:
    """`x` (n_samples, n_features) with each hole filled by an observed value of its column, of rows at equal distances,
    so that statistics of single features are about those of what is observed; by 0 where there is none."""
    observed = observed_cells(x)
    if observed is None:
        return x
    x = x.clone()
    for column, seen in zip(x.T, observed.T, strict=True):
        values, n_holes = column[seen], int((~seen).sum())
        column[~seen] = values[torch.arange(n_holes) * len(values) // n_holes] if n_holes and len(values) else 0.0
    return x
