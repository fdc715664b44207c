"""The length of training, and its batches."""

import math
from dataclasses import dataclass
from typing import Any

N_FOLDS = 5
CROSS_FIT_ROWS = 1000  # from here on rows are held out; fewer are cross-fitted
_STEPS_PER_ROOT, _LEAST_BUDGET, _MOST_BUDGET = 33, 330, 10_000  # optimizer steps, of the root of the number of rows
_USUAL_BUDGET, _STEPS_PER_ROW = 2_000, 0.25  # most on up to 8000 rows, and on more of them
_ROWS_PER_ROOT, _LEAST_BATCH, _MOST_BATCH = 3, 64, 256
_PATIENCES, _MOST_PATIENCE = 8, 200  # patiences that a budget has
_LEAST_EPOCHS = 10


def _between(least: float, value: float, most: float) -> float:
    return min(most, max(least, value))


@dataclass(frozen=True)
class Schedule:
    """The length of training: `n_epochs` passes in batches of `batch_size`, fewer where `patience` steps bring
    nothing."""

    n_epochs: int
    batch_size: int
    patience: float
    tol: float
    pace: float = 1.0  # of warm-up and the steps between looks
    run_length: int = 1  # epochs that `max_iter` allows, however many of them are run: a warm-up is a share of these

    @classmethod
    def resolve(
        cls,
        n_rows: int,
        *,
        max_iter: Any = "auto",
        batch_size: Any = "auto",
        n_iter_no_change: Any = "auto",
        tol: float = 1e-4,
        pace: float = 1.0,
    ) -> "Schedule":
        """Fill in what is "auto": budget and patience are counted in optimizer steps, and grow as the root of the
        number of rows within limits. `pace` is a factor of both."""
        root = math.sqrt(n_rows)
        if batch_size == "auto":
            batch_size = 2 ** round(math.log2(_between(_LEAST_BATCH, _ROWS_PER_ROOT * root, _MOST_BATCH)))
        batch_size = min(batch_size, n_rows)
        steps_per_epoch = math.ceil(n_rows / batch_size)
        most = _between(_USUAL_BUDGET, _STEPS_PER_ROW * n_rows, _MOST_BUDGET)
        budget = pace * _between(_LEAST_BUDGET, _STEPS_PER_ROOT * root, most)
        if max_iter == "auto":
            max_iter = max(_LEAST_EPOCHS, math.ceil(budget / steps_per_epoch))
        patience = min(_MOST_PATIENCE, budget / _PATIENCES)
        if n_iter_no_change != "auto":
            patience = n_iter_no_change * steps_per_epoch
        return cls(max_iter, batch_size, patience, tol, pace, run_length=max_iter)
