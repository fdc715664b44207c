"""Width of draws of missing cells: a factor learned from cells that a model has not seen.

Draws say what a row's observed cells leave open, and nothing of how well the parameters are known. The factor is found
by split conformal prediction (Romano, Patterson & Candes, 2019): it multiplies the width of an interval, where theirs
is added to its ends.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._data.blocks import chunk_sizes, map_blocks, scaled_blocks
from .._system.program import multiplications
from .._system.random import CALIBRATION_STREAM, generator, subsample
from .module import VAE
from .refine import Refined, mean_of_draws, resampled

_LEVEL = 0.9
_N_DRAWS, _LOW, _HIGH = 99, 4, 94  # of so many true draws, the truth is between these two with a chance of 90 %
_N_PARTICLES = 100  # of a row's posterior, and as many of the prior
_N_PARTS = 10  # of the cells; one part is hidden at a time, so that rows are hardly emptier than those to impute
_MOST_ROWS, _LEAST_ROWS, _VALUES = 1000, 100, 50_000  # which bound the time; fewer rows come again, other cells hidden
_LEAST_CELLS = 100  # whose quantile says something
_LEAST_WIDTH = 1e-6
_LIMITS = 0.5, 2.0


def spread_factor(models: Sequence[VAE], x: Any, unseen: Sequence[Tensor], seed: int) -> float:
    """The factor of the distance from their mean with which 90 % intervals of draws hold 90 % of the real-valued cells.

    Parameters
    ----------
    models : list of VAE
        Trained models.
    x : Tensor or ScaledRows of shape (n_samples, n_features)
        Rows in the model's units.
    unseen : list of Tensor
        Indices of the rows that each model has not seen.
    seed : int
        Of the choice of rows, of what is hidden in them, and of draws.

    Returns
    -------
    factor : float
        1 where these rows have no holes, since a fit to complete rows is not to take longer, or too few cells.
    """
    most = int(np.clip(_VALUES // x.shape[1], _LEAST_ROWS, _MOST_ROWS))
    some = [torch.from_numpy(subsample(rows.numpy(), most // len(unseen), seed)) for rows in unseen]
    parts = [x[rows.to(x.device)].cpu() for rows in some]
    if not any(bool(part.isnan().any()) for part in parts):
        return 1.0
    rng, n_passes = generator(seed, CALIBRATION_STREAM), max(1, min(_N_PARTS, most // sum(map(len, parts))))
    scores = np.concatenate([_scores(vae, part, n_passes, rng) for vae, part in zip(models, parts, strict=True)])
    if len(scores) < _LEAST_CELLS:
        return 1.0
    rank = math.ceil(_LEVEL * (len(scores) + 1))
    return float(np.clip(np.sort(scores)[rank - 1], *_LIMITS))


def _scores(vae: VAE, x: Tensor, n_passes: int, rng: torch.Generator) -> np.ndarray:
    """The factor that each of the hidden cells would need: (n_cells,)."""
    vae = copy.deepcopy(vae).cpu().double().eval()
    hidden = _hidden(x, vae.likelihood.real_valued(x.shape[1] - vae.n_context), n_passes, rng)
    x = x.repeat(n_passes, 1)
    both = torch.cat([torch.where(hidden, math.nan, x), x], -1).numpy()
    n_rows, _ = chunk_sizes(_N_PARTICLES, x.shape[1])

    def scores(part: Tensor) -> Tensor:
        seen, true = part.double().chunk(2, -1)
        return _distances(Refined(vae, vae.complete(seen)), true, rng)

    blocks, work = scaled_blocks(both, 0.0, 1.0, "cpu", n_rows), multiplications(vae, n_rows * _N_PARTICLES, x.shape[1])
    return map_blocks(scores, blocks, len(x), multiplications=work)[hidden[:, : x.shape[1] - vae.n_context].numpy()]


def _hidden(x: Tensor, real: Tensor, n_passes: int, rng: torch.Generator) -> Tensor:
    """Choose the cells to hide when the rows pass `n_passes` times: each time another part of the `real` ones."""
    part = torch.randint(_N_PARTS, (len(x), len(real)), generator=rng)
    chosen = [(part == i) & real & ~x[:, : len(real)].isnan() for i in range(n_passes)]
    return F.pad(torch.cat(chosen), (0, x.shape[1] - len(real)))


def _distances(refined: Refined, x: Tensor, rng: torch.Generator) -> Tensor:
    """Distance of cells from their mean over that of the interval's end on their side: (batch, n_features)."""
    raw, log_weights = refined.draw(refined.own_draws(_N_PARTICLES, rng))
    mean = mean_of_draws(refined, raw, log_weights)
    draws = resampled(refined, raw, log_weights, _N_DRAWS, rng).sort(0).values
    x = x[:, : mean.shape[1]]
    reach = torch.where(x > mean, draws[_HIGH] - mean, mean - draws[_LOW])
    return (x - mean).abs() / reach.clamp(min=_LEAST_WIDTH)
