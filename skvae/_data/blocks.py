"""Rows of X in blocks: into the model's units and through the model, with bounded memory."""

import math
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from .._fast.products import RowwiseLinear
from .._system.program import threads_for
from .rows import RowSource, gathered, row_blocks

BLOCK, PAD = 1024, 64  # inference: rows go through in blocks, zero-padded to a multiple of 64 (see `scaled_blocks`)
_MAX_ELEMENTS = 2**20  # values of x that one chunk of draws holds
_CACHED = 2**16  # values that several passes find in the cache
_LARGEST = np.finfo(np.float32).max
# From here on a row is scored in float64, whose squares neither overflow nor lose the order of rows.
_FAR = np.float64(1e6)


def location_scale(X):
    """Return mean and standard deviation of each feature's values in float64, computed block by block. A constant
    feature gets scale 1, or the size of its rounding error if that is larger; a feature without values gets 0 and 1. X
    may have any unit whose squares float64 can hold."""
    first = _first_values(X)  # differences from it: the mean of equal numbers is then that number
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused
        sums = _total(X, lambda block: np.array([(~np.isnan(block)).sum(axis=0), np.nansum(block - first, axis=0)]))
        n_values = np.maximum(1, sums[0])
        mean = first + sums[1] / n_values
        square = _total(X, lambda block: np.nansum((block - mean) ** 2, axis=0))
    for sums in (mean, square):
        _check_size(np.where(np.isnan(sums), np.inf, sums), np.finfo(np.float64).max)
    scale = np.sqrt(square / n_values)
    rounding = 1e-12 * np.abs(mean)
    return mean, np.where(scale > rounding, scale, np.maximum(rounding, 1.0))


def _total(X, function):
    """Return the sum of the results of `function` for the blocks of X."""
    return sum(gathered(X, sum(function(block) for block in row_blocks(X))))


def _first_values(X):
    """The first value of each feature, in float64; 0 where there is none."""
    first = np.full(X.shape[1], np.nan)
    for start in range(0, len(X), BLOCK):
        block = X[start : start + BLOCK]
        for column in np.flatnonzero(np.isnan(first)):
            values = block[~np.isnan(block[:, column]), column]
            first[column] = values[0] if len(values) else np.nan
        if not np.isnan(first).any():
            break
    return np.nan_to_num(first)


def _check_size(sizes, largest):
    if (np.abs(sizes) > largest).any():
        raise ValueError("Input X contains infinity or a value too large for dtype('float32').")


def scaled(X, offset, scale):
    """Return X in the model's units: a float32 tensor, which shares the memory of X where there is nothing to do, or
    `ScaledRows` of a table that is not held. Raise ValueError where float32 holds a value neither in the units of X nor
    in these."""
    if isinstance(X, RowSource):
        if not np.ndim(scale):
            X.check(partial(_check_size, largest=_LARGEST))
        return ScaledRows(X, offset, scale)
    if np.ndim(scale) == 0 and X.dtype == np.float32 and X.flags.carray:  # torch takes no negative or odd strides
        return torch.from_numpy(X)
    x = np.empty(X.shape, dtype=np.float32)
    size = max(1, _CACHED // X.shape[1])
    for block, out in zip(row_blocks(X, size), row_blocks(x, size), strict=True):
        values = _in_units(block, offset, scale)
        if (np.abs(values) > _LARGEST).any():
            _check_size(np.minimum(np.abs(block), np.abs(values)), _LARGEST)
            values = np.clip(values, -_LARGEST, _LARGEST)
        out[...] = values
    return torch.from_numpy(x)


class ScaledRows:
    """Rows of a table that is not held, in the model's units: made when they are asked for, as a tensor's would be.

    Parameters
    ----------
    X : RowSource
        The table.
    offset, scale : float or ndarray of shape (n_features,)
        From the model's units to those of X.
    device : str or torch.device, default="cpu"
        Where the rows go.
    """

    ndim = 2

    def __init__(self, X, offset, scale, device="cpu"):
        self.X, self.offset, self.scale, self.device = X, offset, scale, torch.device(device)

    @property
    def shape(self):
        return self.X.shape

    def __len__(self):
        return len(self.X)

    def __getitem__(self, rows):
        """The rows of a tensor of indices, (n, n_features)."""
        values = _in_units(self.X[rows.cpu().numpy()], self.offset, self.scale)
        return torch.from_numpy(values.astype(np.float32, copy=False)).to(self.device)

    def to(self, device):
        """The same rows on another device."""
        return type(self)(self.X, self.offset, self.scale, device)

    def order(self, rows, permutation):
        """The indices `rows` in the order of a pass, given a random `permutation` of their places."""
        return torch.from_numpy(self.X.order(rows.numpy(), permutation.numpy()))


def _in_units(block, offset, scale):
    with np.errstate(over="ignore"):
        return (block - offset) / scale if np.ndim(scale) else block


def units_of(offset, scale, n):
    """Return the offset and the scale of the first `n` features, with or without what is given behind them."""
    return tuple(part[:n] if np.ndim(part) else part for part in (offset, scale))


def is_far(X, offset, scale):
    """Find the rows with a value larger than a million in the model's units: bool (n_samples,)."""
    return np.concatenate([(np.abs(_in_units(block, offset, scale)) > _FAR).any(axis=1) for block in row_blocks(X)])


def scaled_blocks(X, offset, scale, device, size=BLOCK):
    """Yield X in the model's units: a tensor for each block, zero-padded, and how many of its rows are rows of X. BLAS
    takes other kernels for a few rows, and a row's result must not depend on its neighbours. The padding is also a
    copy of full blocks, in which a user's network may write."""
    for block in row_blocks(X, size):
        x = scaled(block, offset, scale)
        yield F.pad(x, (0, 0, 0, -len(x) % PAD)).to(device), len(x)


def chunk_sizes(n_draws, n_features):
    """Rows of a block each of which has `n_draws` draws of x, and the number of parts that the draws come in."""
    n_rows = int(np.clip(_MAX_ELEMENTS // (n_draws * n_features) // PAD, 1, BLOCK // PAD)) * PAD
    return n_rows, min(n_draws, -(-n_draws * n_rows * n_features // _MAX_ELEMENTS))


@contextmanager
def memory_advice(remedies):
    """Within this context an error for lack of memory on the device says what to change; torch's names sizes only."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"The device is out of memory. {remedies} ({error})") from error


@memory_advice("Lower `n_draws` where rows are scored, or fit with smaller `hidden_layer_sizes` or device='cpu'.")
@torch.no_grad()
def map_blocks(function, blocks, n_rows, finish=np.asarray, multiplications=math.inf):
    """The array of all rows that `function` makes of the blocks' tensors, and `finish` of its arrays.

    `multiplications` is about how many a full block takes: for few, there is one thread.
    """
    result, end = None, 0
    with threads_for(multiplications), RowwiseLinear():
        for x, n in blocks:
            part = finish(function(x)[:n].cpu().numpy())
            result = np.empty((n_rows, *part.shape[1:]), part.dtype) if result is None else result
            start, end = end, end + n
            result[start:end] = part
    return result
