"""The rows of a table that each model is trained on and judged by, and the batches of an epoch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from sklearn.model_selection import KFold
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from .._model.module import VAE
from .._system.random import SPLIT_STREAM, generator, uniform_like
from .._training.processes import Shards, add_up
from .batch import Batch
from .holes import observed_cells

if TYPE_CHECKING:
    from .._training.net import Net

_MAX_ELEMENTS = 2**20  # random values that are drawn at once
_BLOCK = 2048  # rows whose holes are filled at once


@dataclass(eq=False)
class Split(Dataset):
    """Rows `x` in the model's units, and their shares in the training of the members of a stack.

    Parameters
    ----------
    x : Tensor or ScaledRows of shape (n_samples, n_features)
        All rows, or those that this process has.
    train : list of Tensor
        Indices of the rows that each member trains on. The first member is the model that is kept.
    valid : list of Tensor, default=()
        Indices of the rows that the last members are judged by.
    others : list of VAE, default=()
        All members but the first.
    shards : Shards, default=None
        The table of several processes that the indices are of.
    awake : callable, default=None
        Makes all members at another start, for rows of which the linear model says nothing.
    of_all : callable, default=None
        Makes the one member at the linear start of all rows, of which some are held out.
    """

    x: Any
    train: Sequence[Tensor]
    valid: Sequence[Tensor] = ()
    others: Sequence[VAE] = ()
    shards: Shards | None = None
    awake: Callable[[], list[VAE]] | None = None
    of_all: Callable[[], list[VAE]] | None = None

    def __len__(self) -> int:
        return len(self.train[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        indices, _ = self.own(self.train[0][index])
        rows = self.x[indices.to(self.x.device)]
        return rows, rows.new_zeros(rows.shape[:-1])

    def own(self, indices: Tensor) -> tuple[Tensor, Any]:
        """The `indices` (..., n) that are rows of this process, as indices of `x`, and their places in the last
        dimension."""
        if self.shards is None:
            return indices, slice(indices.shape[-1])
        is_own = ((indices >= self.shards.start) & (indices < self.shards.stop)).flatten()
        return indices[..., is_own] - self.shards.start, is_own.nonzero().flatten()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes of what each has of its rows."""
        if self.shards is not None:
            add_up([values])
        return values


class Rows:
    """The rows `x` (n_samples, n_features) as fields of batches.

    Where `x` has holes, or features that are given, `module` makes the fields of them: before training where `x` is a
    tensor, and else when a row is taken.
    """

    def __init__(self, x: Any, module: VAE) -> None:
        self.x, self.module = x, module
        self.fields = self._fields(x) if isinstance(x, Tensor) else None

    def _fields(self, x: Tensor) -> dict[str, Tensor]:
        if not self.module.n_context and observed_cells(x) is None:
            return {"x": x}
        with torch.no_grad():
            blocks = [self.module.complete(block)._asdict() for block in x.split(_BLOCK)]
        known = [name for name, part in blocks[0].items() if part is not None]
        return {name: torch.cat([block[name] for block in blocks]) for name in known}

    def take(self, rows: Tensor, rng: torch.Generator | None = None) -> dict[str, Any]:
        """The fields of a `Batch` that belong to these rows, whose indices may have any shape; with `rng`, `x` as the
        likelihood draws it for a step."""
        flat = rows.to(self.x.device).flatten()
        if self.fields is None:
            found = self._fields(self.x[flat])
        else:
            found = {name: part.index_select(0, flat) for name, part in self.fields.items()}
        fields = {name: part.view(*rows.shape, part.shape[-1]) for name, part in found.items()}
        return fields if rng is None else fields | {"x": self.module.likelihood.draw(fields["x"], rng)}


def _shuffled(x: Any, rows: Tensor, rng: torch.Generator) -> Tensor:
    """Indices of rows in the order of a pass: at random, or as a table that is not held can be read best."""
    permutation = torch.randperm(len(rows), generator=rng, device=rng.device)
    return rows.to(rng.device)[permutation] if isinstance(x, Tensor) else x.order(rows, permutation.cpu())


def whole(x: Any) -> Split:
    """Return a split in which one model trains on all rows."""
    return Split(x, [torch.arange(len(x))])


def tensor_of(data: Any) -> Tensor:
    """Return the rows of an array, a tensor or a data set of skorch's or torch's."""
    if isinstance(data, Batch):
        if data.observed is not None or data.context is not None:
            raise ValueError("Rows of a batch with holes or conditions are not those of X: let the function look at X.")
        return data.x
    if isinstance(data, TensorDataset):
        return data.tensors[0]
    if isinstance(data, Dataset):
        rows = cast(Iterable[Any], data)
        return tensor_of(data.X) if hasattr(data, "X") else torch.stack([torch.as_tensor(row[0]) for row in rows])
    if isinstance(data, dict):
        return tensor_of(data["x"])
    return data if isinstance(data, Tensor) else torch.from_numpy(np.array(data, dtype=np.float32))


def hold_out(n_rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of rows in random order, split into those to train on and those to validate on."""
    n_valid = math.ceil(fraction * n_rows)
    if n_valid >= n_rows:
        raise ValueError(
            f"validation_fraction={fraction} of {n_rows} sample(s) leaves none to train on. Lower it, pass more rows, "
            "or set early_stopping=False."
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
    """Cut `n_rows` into nearly equal batches; returns positions and a mask of those that count, (n_batches, width)."""
    ends = torch.arange(1, n_batches + 1) * n_rows // n_batches
    starts = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
    positions = starts[:, None] + torch.arange(width)
    return positions.clamp(max=n_rows - 1), positions < ends[:, None]


def _draws(shape: Sequence[int], n_steps: int, rng: torch.Generator, device: Any) -> Iterator[Tensor]:
    """Standard normal draws of `shape` for each step, a block of steps at a time."""
    size = max(1, _MAX_ELEMENTS // math.prod(shape))
    for start in range(0, n_steps, size):
        yield from torch.randn(min(size, n_steps - start), *shape, generator=rng, device=rng.device).to(device)


def _batches_of(n_rows: Sequence[int], batch_size: int) -> tuple[int, list[int]]:
    """The most rows that a member has in a batch, and the sizes of all batches of a pass over so many rows of each."""
    most, fewest = max(n_rows), min(n_rows)
    n_batches = 1 if batch_size == -1 else math.ceil(most / batch_size)  # skorch's -1: all rows
    if batch_size != 1:
        n_batches = max(1, min(n_batches, fewest // 2))
    width = math.ceil(most / n_batches)
    if len(n_rows) > 1:
        return width, [width] * n_batches
    return width, [end - start for start, end in pairwise(i * most // n_batches for i in range(n_batches + 1))]


class TrainBatches:
    """Shuffled passes over the rows of all members, in steps of which each has about `batch_size` rows.

    The noise comes with the batch, so that the step itself draws nothing; the streams belong to (seed, epoch), on the
    device of the rows unless other processes have some of them, so that epoch k is the same however training was cut
    into calls. All fields of a batch have a dimension of members before that of rows. A pass has nearly equal batches:
    none of a single row where others are larger.
    """

    def __init__(self, net: "Net", split: Split) -> None:
        self.net, self.split = net, split
        self.n_rows = [len(rows) for rows in split.train]
        self.width, self.sizes = _batches_of(self.n_rows, net.batch_size)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def rows(self) -> Rows:
        """The rows with their holes filled, when a pass asks for them: the sizes of batches take none."""
        return Rows(self.split.x, self.net.module_)

    def __iter__(self) -> Iterator[tuple[Batch, None]]:
        net, x = self.net, self.split.x
        device = x.device if self.split.shards is None else "cpu"  # the same in all processes
        rng = generator(net.seed, len(net.history), device=device)
        n_members, n_draws = len(self.n_rows), net.criterion_.n_draws
        scale = net.input_noise
        shape = (1, self.width, net.z_dim) if n_draws == 1 else (n_draws, 1, self.width, net.z_dim)
        steps = self._of_one(_shuffled(x, self.split.train[0], rng)) if n_members == 1 else self._of_several(rng)
        noise = _draws(shape, len(self), rng, x.device)
        blur = _draws((1, self.width, x.shape[1]), len(self), rng, x.device)
        for (rows, weight), eps in zip(steps, noise, strict=True):
            own, at = self.split.own(rows)
            eps = eps[..., at, :].expand(*eps.shape[:-3], n_members, -1, -1)
            fields = self.rows.take(own, rng) | {"eps": eps, "weight": weight[:, at]}
            if scale is not None and not self.split.awake and net.in_first_phase:  # which may end in mid-epoch
                seen = Batch(**fields).inputs(net.module_.likelihood)
                fields["seen"] = torch.addcmul(seen, next(blur)[:, at], scale)
            yield Batch(**fields | net.phase), None

    def _of_one(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and weights of the rows of each step, (1, size) both, without a copy of a long order."""
        order = order.to(self.split.x.device)[None]
        weights = {size: torch.full((1, size), 1 / size, device=order.device) for size in set(self.sizes)}
        for rows in order.split(self.sizes, 1):
            yield rows, weights[rows.shape[1]]

    def _of_several(self, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for several members, (n_members, width): shorter batches are filled up with rows that weigh 0."""
        indices, fills, positions, weight = self._places
        order = uniform_like(indices, rng).masked_fill_(fills, 2.0).argsort(1)
        rows = indices.gather(1, order.gather(1, positions)).view(len(indices), len(self), self.width)
        yield from zip(rows.transpose(0, 1), weight, strict=True)

    @cached_property
    def _places(self) -> tuple[Tensor, ...]:
        """Each member's rows, filled up to one length (n_members, most), which of them only fill up, the positions of
        its batches in their order (n_members, n_batches * width), and weights (n_batches, n_members, width)."""
        indices, row_weight = padded(self.split.train)
        positions, inside = zip(*(_positions(n, len(self), self.width) for n in self.n_rows), strict=True)
        counts = torch.stack(inside, 1)
        weight = counts.float() / counts.sum(-1, keepdim=True).clamp(min=1)
        places = (indices, row_weight == 0, torch.stack(positions).flatten(1), weight)
        return tuple(part.to(self.split.x.device) for part in places)


def member(batch: Batch, i: int) -> Batch:
    """The rows of member `i`, without those that only fill up."""
    alone = len(batch.x) == 1  # then nothing fills up
    keep = slice(None) if alone or batch.weight is None else slice(0, int(batch.weight[i].count_nonzero()))
    parts = {name: getattr(batch, name) for name in ("x", "seen", "spread", "observed", "context")}
    fields = {name: part[i, keep] for name, part in parts.items() if part is not None}
    return Batch(**fields, eps=batch.eps[..., i, keep, :], balanced=batch.balanced, for_map=batch.for_map)
