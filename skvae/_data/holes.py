"""Missing cells: NaN in a table, up to where a batch is made; from there on zeros beside a mask of what is observed."""

import numpy as np
import torch
from torch import Tensor


def rows_with_holes(X: np.ndarray) -> np.ndarray:
    """Find the rows with missing cells: bool (n_samples,). Their sum is NaN, and is found faster than the cells."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.isnan(X.sum(axis=1))
    found[found] = np.isnan(X[found]).any(axis=1)  # the sum of huge values of both signs may be NaN too
    return found


def observed_cells(x: Tensor) -> Tensor | None:
    """Return a mask of the cells of `x` that hold a value, of its shape; None where all do."""
    if not x.sum().isnan():  # a pass without a copy
        return None
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
