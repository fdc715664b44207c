"""The length of training, and its batches."""

import math
from dataclasses import dataclass
from typing import Any

N_FOLDS = 5
CROSS_FIT_ROWS = 1000  # from here on rows are held out; fewer are cross-fitted
_FEW_ROWS, _MANY_ROWS = (1_000, (60, 40)), (10_000, (200, 200))  # budget, patience in each phase, in optimizer steps
_LEAST_BUDGET, _STEPS_PER_ROW = 500, 5


@dataclass(frozen=True)
class Schedule:
    """The length of training: `n_epochs` passes in batches of `batch_size`, fewer where `patience` steps bring
    nothing."""

    n_epochs: int
    batch_size: int
    patience: tuple[int, int]
    tol: float
    pace: float = 1.0  # of looks, patience and warm-up, where steps are expensive
    run_length: int = 1  # epochs that `max_iter` allows, however many of them are run: a warm-up is a share of these

    @classmethod
    def resolve(
        cls, n_rows: int, *, max_iter: Any = "auto", batch_size: Any = "auto", n_iter_no_change: Any = "auto", tol=1e-4
    ) -> "Schedule":
        """Fill in what is "auto": budget and patience are counted in optimizer steps, whatever the number of rows."""
        if batch_size == "auto":
            batch_size = 2 ** round(math.log2(min(256, max(64, n_rows / 20))))
        batch_size = min(batch_size, n_rows)
        steps_per_epoch = math.ceil(n_rows / batch_size)
        budget, patience = _FEW_ROWS if n_rows < CROSS_FIT_ROWS else _MANY_ROWS
        budget = min(budget, max(_LEAST_BUDGET, _STEPS_PER_ROW * n_rows))
        if max_iter == "auto":
            max_iter = max(20, math.ceil(budget / steps_per_epoch))
        patience = patience if n_iter_no_change == "auto" else 2 * (n_iter_no_change * steps_per_epoch,)
        return cls(max_iter, batch_size, patience, tol, run_length=max_iter)
