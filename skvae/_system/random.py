"""Random streams of our own: neither torch's nor numpy's global stream is read or moved."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

INIT_STREAM, SCORE_STREAM, SPLIT_STREAM, VALIDATION_STREAM = range(2**31, 2**31 + 4)  # epochs count from 1
EPOCH_STREAM, PRIOR_STREAM, AGGREGATE_STREAM, CALIBRATION_STREAM = range(2**31 + 4, 2**31 + 8)


def generator(seed: int, *key: int, device: Any = "cpu") -> torch.Generator:
    """An own stream for each (seed, key), drawn on a device."""
    state = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> 1))


def subsample(rows: int | np.ndarray | Tensor, n_rows: int, seed: int | list[int]) -> np.ndarray:
    """Return at most `n_rows` of the indices `rows`, or of the first `rows` indices, in ascending order. They are drawn
    at random, since the first rows, or each tenth, may be of one kind."""
    indices = np.arange(rows) if isinstance(rows, int) else np.asarray(rows)
    if len(indices) <= n_rows:
        return indices
    return np.sort(np.random.default_rng(seed).choice(indices, n_rows, replace=False))


def uniform_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw numbers between 0 and 1, of the shape of a tensor and on its device."""
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like.device)


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers, of the shape of a tensor and on its device."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)
