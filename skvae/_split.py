"""Which rows of a table each model is trained on and which it is judged by, and the batches of an epoch."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from sklearn.model_selection import KFold
from torch import Tensor, nn
from torch.utils.data import Dataset

from ._batch import Batch
from ._holes import observed_cells
from ._random import SPLIT_STREAM, generator

_MAX_ELEMENTS = 2**20  # random values that are drawn at once
_BLOCK = 2048  # rows whose holes are filled at once


class Split(Dataset):
    """Rows `x` in the model's units, and their shares in the training of the members of a stack.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        All rows.
    train : list of Tensor
        Indices of the rows that each member trains on. The first member is the model that is kept.
    valid : list of Tensor, default=()
        Indices of the rows that the last members are judged by.
    others : list of nn.Module, default=()
        All members but the first.
    """

    def __init__(
        self, x: Tensor, train: Sequence[Tensor], valid: Sequence[Tensor] = (), others: Sequence[nn.Module] = ()
    ) -> None:
        self.x, self.train, self.valid, self.others = x, list(train), list(valid), list(others)

    def __len__(self) -> int:
        return len(self.train[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        rows = self.x[self.train[0][index].to(self.x.device)]
        return rows, rows.new_zeros(rows.shape[:-1])


class Rows:
    """What batches take their rows from: `x` (n_samples, n_features), and where it has holes, or features that are
    given, what `module` makes of them before training."""

    def __init__(self, x: Tensor, module: Any) -> None:
        self.fields = {"x": x}
        if module.n_context or observed_cells(x) is not None:
            with torch.no_grad():
                blocks = [module.complete(block)._asdict() for block in x.split(_BLOCK)]
            known = [name for name, part in blocks[0].items() if part is not None]
            self.fields = {name: torch.cat([block[name] for block in blocks]) for name in known}

    def take(self, rows: Tensor) -> dict[str, Any]:
        """The fields of a `Batch` that belong to these rows, whose indices may have any shape."""
        flat = rows.to(self.fields["x"].device).flatten()
        return {name: part.index_select(0, flat).view(*rows.shape, -1) for name, part in self.fields.items()}


def whole(x: Tensor) -> Split:
    """All rows for one model."""
    return Split(x, [torch.arange(len(x))])


def hold_out(n_rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of rows in random order, split into those to train on and those to validate on."""
    n_valid = math.ceil(fraction * n_rows)
    if n_valid >= n_rows:
        raise ValueError(
            f"The validation set is too small: X has {n_rows} sample(s). Increase 'validation_fraction' or the size of "
            "your dataset, or set early_stopping=False."
        )
    order = torch.randperm(n_rows, generator=generator(seed, SPLIT_STREAM))
    return order[n_valid:], order[:n_valid]


def folds(n_rows: int, n_folds: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Indices of the rows to train on and to validate on in each fold."""
    pairs = KFold(n_folds, shuffle=True, random_state=seed).split(range(n_rows))
    train, valid = zip(*([torch.from_numpy(rows) for rows in pair] for pair in pairs), strict=True)
    return list(train), list(valid)


def padded(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Indices of all parts, filled up to one length, and weights that add up to 1 in each: (n_parts, n) both."""
    size = max(map(len, parts))
    indices = torch.stack([torch.cat([part, part[:1].expand(size - len(part))]) for part in parts])
    weight = torch.stack([(torch.arange(size) < len(part)).float() / len(part) for part in parts])
    return indices, weight


def _positions(n_rows: int, n_batches: int, width: int) -> tuple[Tensor, Tensor]:
    """Cut `n_rows` into nearly equal batches: positions and whether they count, (n_batches, width) both."""
    ends = torch.arange(1, n_batches + 1) * n_rows // n_batches
    starts = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
    positions = starts[:, None] + torch.arange(width)
    return positions.clamp(max=n_rows - 1), positions < ends[:, None]


def _draws(shape: Sequence[int], n_steps: int, rng: torch.Generator, device: Any) -> Iterator[Tensor]:
    """Standard normal draws of `shape` for each step, a block of steps at a time."""
    size = max(1, _MAX_ELEMENTS // math.prod(shape))
    for start in range(0, n_steps, size):
        yield from torch.randn(min(size, n_steps - start), *shape, generator=rng).to(device)


class TrainBatches:
    """Shuffled passes over the rows of all members, in steps of which each has about `batch_size` rows.

    The noise comes with the batch, so that the step itself draws nothing; the streams belong to (seed, epoch), so that
    epoch k is the same however training was cut into calls. All fields of a batch have a dimension of members before
    that of rows. A pass has nearly equal batches: none of a single row where others are larger.
    """

    def __init__(self, net: Any, split: Split) -> None:
        self.net, self.split = net, split
        n_rows = [len(rows) for rows in split.train]
        self.n_batches = 1 if net.batch_size == -1 else math.ceil(max(n_rows) / net.batch_size)  # skorch's -1: all rows
        if net.batch_size != 1:
            self.n_batches = max(1, min(self.n_batches, min(n_rows) // 2))
        self.width = math.ceil(max(n_rows) / self.n_batches)
        positions, inside = zip(*(_positions(n, self.n_batches, self.width) for n in n_rows), strict=True)
        self.positions, self.inside = positions, torch.stack(inside, 1)  # (n_batches, n_members, width)
        self.weight = self.inside.float() / self.inside.sum(-1, keepdim=True).clamp(min=1)
        self.sizes = self.inside.sum(-1)[:, 0].tolist() if len(n_rows) == 1 else [self.width] * self.n_batches

    def __len__(self) -> int:
        return self.n_batches

    @cached_property
    def rows(self) -> Rows:
        """The rows with their holes filled, when a pass asks for them: the sizes of batches take none."""
        return Rows(self.split.x, self.net.module_)

    def __iter__(self) -> Iterator[tuple[Batch, None]]:
        net, x = self.net, self.split.x
        rng, likelihood, device = generator(net.seed, len(net.history)), net.module_.likelihood, x.device
        orders = [rows[torch.randperm(len(rows), generator=rng)] for rows in self.split.train]
        rows = torch.stack([order[at] for order, at in zip(orders, self.positions, strict=True)], 1).to(device)
        n_members, n_draws = rows.shape[1], net.criterion_.n_draws
        scale = net.input_noise
        shape = (1, self.width, net.z_dim) if n_draws == 1 else (n_draws, 1, self.width, net.z_dim)
        noise = _draws(shape, self.n_batches, rng, device)
        blur = _draws((1, self.width, x.shape[1]), self.n_batches, rng, device)
        weights = self.weight.to(device)
        for size, step_rows, weight, eps in zip(self.sizes, rows, weights, noise, strict=True):
            fields = self.rows.take(step_rows[:, :size])
            fields["x"] = likelihood.draw(fields["x"], rng)
            if scale is not None and net.in_first_phase:  # which may end in mid-epoch
                seen = fields["seen"] if "seen" in fields else likelihood.inputs(fields["x"])
                fields["seen"] = torch.addcmul(seen, next(blur)[:, :size], scale)
            eps = eps[..., :size, :].expand(*eps.shape[:-3], n_members, -1, -1)
            yield Batch(**fields, eps=eps, weight=weight[:, :size], **net.phase), None


def member(batch: Batch, i: int) -> Batch:
    """The rows of member `i`, without those that only fill up."""
    alone = len(batch.x) == 1  # then nothing fills up
    keep = slice(None) if alone or batch.weight is None else slice(0, int(batch.weight[i].count_nonzero()))
    parts = {name: getattr(batch, name) for name in ("x", "seen", "spread", "observed", "context")}
    fields = {name: part[i, keep] for name, part in parts.items() if part is not None}
    return Batch(**fields, eps=batch.eps[..., i, keep, :], balanced=batch.balanced, for_map=batch.for_map)
