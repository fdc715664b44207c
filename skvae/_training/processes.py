"""Several processes of torch.distributed that train one model: each has its own rows, and all take the same steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .._data.rows import RowSource, parts_of


def n_processes() -> int:
    """Return the number of processes in the group that the program has initialised, or one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Tell whether this is the process that writes and prints."""
    return n_processes() == 1 or dist.get_rank() == 0


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes, in their order."""
    values = [value] * n_processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def of_first(value: Any) -> Any:
    """Return the value of the first process to all."""
    values = [value]
    if n_processes() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace the tensors by their sums over all processes, in one exchange."""
    whole = torch.cat([part.flatten() for part in tensors])
    dist.all_reduce(whole)
    for part, total in zip(tensors, whole.split([part.numel() for part in tensors]), strict=True):
        part.copy_(total.view_as(part))


@contextmanager
def together() -> Iterator[None]:
    """Raise in all processes what one of them raises in this context, in which they exchange nothing."""
    error: Exception | None = None
    try:
        yield
    except Exception as own:
        if n_processes() == 1:
            raise
        error = own
    messages = gathered(None if error is None else str(error)) if n_processes() > 1 else []
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message is not None:
            raise ValueError(f"Process {process} of {len(messages)} has refused its rows: {message}")


class Shards(RowSource):
    """The rows of all processes as one table, in the order of these.

    Rows that are asked for come from the processes that have them: all must ask for the same ones. `parts` are those of
    this process alone.

    Parameters
    ----------
    X : ndarray or RowSource of shape (n, n_features)
        The rows of this process.
    """

    def __init__(self, X: Any) -> None:
        shapes, dtypes = zip(*gathered((X.shape, X.dtype)), strict=True)
        if len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(f"The processes must have tables of the same columns: their shapes are {list(shapes)}.")
        super().__init__((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.result_type(*dtypes))
        self.local = X
        self.start = sum(shape[0] for shape in shapes[: dist.get_rank()])
        self.stop = self.start + len(X)

    def parts(self, block: int = 1024) -> Any:
        values = (np.asarray(part, dtype=self.read_dtype) for part in parts_of(self.local) if len(part))
        return values if self.finish is None else map(self.finish, values)

    def _read(self, rows: Any) -> Any:
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        own = (rows >= self.start) & (rows < self.stop)
        values = np.empty((len(rows), self.shape[1]), self.read_dtype)
        for places, part in gathered((np.flatnonzero(own), self.local[rows[own] - self.start])):
            values[places] = part
        return values

    def gathered(self, value: Any) -> list[Any]:
        return gathered(value)

    def check(self, function: Any) -> None:
        with together():
            super().check(function)

    def fingerprint(self) -> str:
        return "-".join(gathered(super().fingerprint()))

    @property
    def own_rows(self) -> Any:
        """The rows of this process alone."""
        if self.finish is None:
            return self.local
        return self.local.finished_by(self.finish) if isinstance(self.local, RowSource) else self.finish(self.local)
