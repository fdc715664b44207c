"""Sums over rows in float64, within bounded memory."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

_BLOCK, _BLOCK_VALUES = 4096, 2**20


def blocks_of(x: Tensor) -> tuple[Tensor, ...]:
    """Rows of `x` (n_samples, n_features) in blocks of at most a million values, of which copies take little memory."""
    return x.split(min(_BLOCK, max(1, _BLOCK_VALUES // x.shape[1])))


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape, of which there is at least one."""
    return reduce(torch.add, parts)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each feature, in float64: two tensors (n_features,)."""
    mean = total(block.sum(0, dtype=torch.float64) for block in blocks_of(x)) / len(x)
    return mean, total((block.double() - mean).square().sum(0) for block in blocks_of(x)) / len(x)
