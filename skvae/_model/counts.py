"""Functions of counts, to the last digits of float32 at any size."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._system.device import widest

LOG_2PI = math.log(2 * math.pi)


def stirling_error(a: Tensor) -> Tensor:
    """log Gamma(a) less Stirling's ``(a - 1 / 2) * log(a) - a + log(2 * pi) / 2``, for a > 0."""
    low, high = a.clamp(max=16.0), a.clamp(min=16.0).reciprocal()
    direct = torch.lgamma(low).sub_((low - 0.5) * low.log()).add_(low).sub_(0.5 * LOG_2PI)
    square = high.square()
    series = high * (1 / 12 - square * (1 / 360 - square * (1 / 1260)))  # to 3e-12
    return torch.where(a < 16, direct, series)


def stirling_slope(a: Tensor) -> Tensor:
    """Derivative of `stirling_error`."""
    low, high = a.clamp(max=16.0), a.clamp(min=16.0).reciprocal()
    direct = torch.digamma(low) - low.log() + 0.5 / low
    square = high.square()
    series = -square * (1 / 12 - square * (3 / 360 - square * (5 / 1260)))
    return torch.where(a < 16, direct, series)


def log1p(x: Tensor, near_minus_one: Callable[[], Tensor]) -> Tensor:
    """log(1 + x), by another formula where x is near -1."""
    return torch.where(x < -0.5, near_minus_one(), x.clamp(min=-0.5).log1p())


def draw_counts(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson draws, in the widest type: float32 has no odd number above 2^24."""
    return torch.poisson(widest(rate).to(generator.device), generator=generator).to(rate.device)


def row_sums(x: Tensor) -> Tensor:
    """The sum of each row (..., 1), of counts exact and so the same in any order."""
    return x.sum(-1, keepdim=True, dtype=widest(x[..., :0]).dtype)


def bounded_log(raw: Tensor) -> Tensor:
    """The logarithm of a link that is exp up to exp(5) and linear above, so that no raw output overflows."""
    low = raw.clamp(max=5.0)
    return low + torch.log1p(raw - low)
