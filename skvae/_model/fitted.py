"""A fitted model, which does all inference: from validated features of X through a trained VAE, and back."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.blocks import BLOCK, PAD, chunk_sizes, is_far, map_blocks, scaled_blocks, units_of
from .._data.holes import rows_with_holes
from .._data.table import Table
from .._system.program import multiplications
from .._system.random import SCORE_STREAM, generator
from .module import MODERATE, VAE
from .refine import Draws, Refined, antithetic, drawn, draws_with, expected, levels, log_mean

_N_LEVELS, _N_NODES = 64, 256  # of p(x | z), and of p(missing | observed), by which means of functions are taken
_NODE_ROWS = 512  # whose nodes are held at once


@dataclass(frozen=True)
class Model:
    """A trained VAE with the units of its features and the columns that these are of.

    Parameters
    ----------
    table : Table
        The columns of X.
    vae : VAE
        The trained module, on `device`.
    offset, scale : float or ndarray of shape (n_features,)
        Lead from the model's units to those of the features.
    device : str
        Where rows are computed.
    seed : int
        Of the draws that all rows and calls share.
    spread : float
        Factor of the distance of drawn cells from their mean, as `spread_factor` found it.
    """

    table: Table
    vae: VAE
    offset: float | np.ndarray
    scale: float | np.ndarray
    device: str
    seed: int
    spread: float

    def exact(self) -> "Model":
        """Return the model in float64, which not every device has, for far rows and those with holes, whose squares
        overflow and whose matrices lose digits."""
        return replace(self, vae=copy.deepcopy(self.vae).cpu().double(), device="cpu")

    def draws(self, n_draws: int) -> Tensor:
        """Return the draws of a posterior, (n_draws, 1, z_dim), that all rows and calls share."""
        return torch.randn(int(n_draws), 1, self.vae.prior.z_dim, generator=generator(self.seed, SCORE_STREAM))

    def draws_of_rows_with_holes(self, n_draws: int) -> Draws:
        """Return what all of them and all calls share, where nothing is random."""
        eps = antithetic(self.draws(n_draws).double())
        return draws_with(self.vae.prior, eps, generator(self.seed, SCORE_STREAM, 1))

    def is_far(self, X: np.ndarray) -> np.ndarray:
        """Find the rows so far from the training rows that float32 does not score them: bool (n_samples,)."""
        return is_far(X, self.offset, self.scale)

    def blocks(self, X: np.ndarray, n_rows: int = BLOCK) -> Any:
        """Yield `scaled_blocks` of features, in the model's units."""
        return scaled_blocks(X, self.offset, self.scale, self.device, n_rows)

    def apply(
        self, function: Callable, blocks: Any, n_rows: int, finish: Callable = np.asarray, size: int | None = None
    ) -> np.ndarray:
        """Return `map_blocks` for passes of `size` rows through the model, or of full blocks of rows."""
        size = min(BLOCK, max(PAD, n_rows)) if size is None else size
        return map_blocks(function, blocks, n_rows, finish, multiplications(self.vae, size, len(self.table.columns)))

    def by_holes(self, X: np.ndarray, function: Callable) -> np.ndarray:
        """Apply `function` to the complete rows of X and to those with holes; returns results in the order of X."""
        incomplete = rows_with_holes(X) | bool(self.vae.n_context)
        if incomplete.all() or not incomplete.any():
            return function(X, bool(incomplete.all()) and len(X) > 0)
        complete, others = function(X[~incomplete], False), function(X[incomplete], True)
        result = np.empty((len(X), *complete.shape[1:]), np.result_type(complete, others))
        result[~incomplete], result[incomplete] = complete, others
        return result

    def encode(self, X: np.ndarray) -> list[np.ndarray]:
        """Mean and log-scale of the posterior of each row of a validated X."""
        return np.split(self.by_holes(X, self._posteriors), 2, axis=1)

    def _posteriors(self, X: np.ndarray, holes: bool) -> np.ndarray:
        """The same side by side, of complete rows or of those with holes: (n_samples, 2 * z_dim)."""
        model = self.exact() if holes else self

        def complete(x: Tensor) -> Tensor:
            return torch.cat(model.vae.encode_any(x), dim=-1)

        def incomplete(x: Tensor) -> Tensor:
            refined = Refined(model.vae, model.vae.complete(x.double()))
            return torch.cat([refined.mean, refined.log_scale], dim=-1).float()

        return self.apply(incomplete if holes else complete, model.blocks(X), len(X))

    def log_likelihoods(self, X: np.ndarray, holes: bool, exact: bool, n_draws: int) -> np.ndarray:
        """Log-likelihood of each row of a validated X, or of its observed cells, in the model's units."""
        model = self.exact() if exact or holes else self
        vae = model.vae
        like = next(vae.parameters())
        eps = self.draws(n_draws).to(like)
        draws = model.draws_of_rows_with_holes(n_draws) if holes else Draws(eps, None)
        n_rows, n_parts = chunk_sizes(n_draws, X.shape[1])

        def complete(x: Tensor) -> Tensor:
            x = x.to(like.dtype)
            parts = [vae.log_weights(x, part, MODERATE) for part in eps.tensor_split(n_parts)]
            return vae.mixed(log_mean(torch.cat(parts)), x)

        def incomplete(x: Tensor) -> Tensor:
            refined = Refined(vae, vae.complete(x.to(like.dtype)))
            return refined.mixed(torch.cat([refined.draw(part)[1] for part in draws.parts(n_parts)]))

        size = n_rows * n_draws // n_parts
        return self.apply(incomplete if holes else complete, model.blocks(X, n_rows), len(X), size=size)

    def scores(self, X: np.ndarray, n_draws: int) -> np.ndarray:
        """Log-likelihood of each row of a validated X, or of its observed cells, in the units of the features."""
        far, scores = self.is_far(X), np.empty(len(X))
        for rows in (~far, far):
            if rows.any():
                score = partial(self.log_likelihoods, exact=rows is far, n_draws=n_draws)
                scores[rows] = self.by_holes(X if rows.all() else X[rows], score)
        return scores + self.log_jacobian(X)

    def draws_given(self, X: np.ndarray, n: int, n_draws: int, rng: torch.Generator) -> np.ndarray:
        """Fill the holes of a validated X by `n_draws` of the `n` weighted draws that each row has for itself:
        (n_draws, n_samples, n_features)."""

        def draw(refined: Refined) -> Tensor:
            return drawn(refined, refined.own_draws(n, rng), n_draws, rng, self.spread)

        return self._filled(X, draw, n, pad=False)

    def _filled(self, X: np.ndarray, function: Callable, n: int, pad: bool = True) -> np.ndarray:
        """Several versions of a validated X (n_versions, n_samples, n_features), which `function` makes of refined rows
        by `n` draws; what is random needs no `pad`."""
        model, (n_rows, _) = self.exact(), chunk_sizes(n, X.shape[1])
        blocks = model.blocks(X, n_rows)

        def fill(x: Tensor) -> Tensor:
            return function(Refined(model.vae, model.vae.complete(x.double()))).movedim(0, 1)

        if not pad:
            blocks = ((x[:n_own], n_own) for x, n_own in blocks)
        return np.moveaxis(self.apply(fill, blocks, len(X), self.in_units_of_X, size=n_rows * n), 1, 0)

    def values_given(self, X: np.ndarray, n: int) -> np.ndarray:
        """Expected values of a validated X with holes, by `n` weighted draws: (n_samples, n_columns)."""
        n_nodes = _N_NODES if self.table.is_curved else 0
        fill = partial(expected, draws=self.exact().draws_of_rows_with_holes(n), n_nodes=n_nodes)
        if not n_nodes:
            return self.table.values_of(self._filled(X, fill, n)[0], drawn=False)
        return self._means(len(X), lambda rows: self._filled(X[rows], fill, n))

    def _means(self, n: int, found_of: Callable) -> np.ndarray:
        """Values of `n` rows, of what is expected of some and of nodes of that: (1 + n_nodes, rows, n_features)."""
        parts = (found_of(slice(start, start + _NODE_ROWS)) for start in range(0, n, _NODE_ROWS))
        return np.concatenate([self.table.means_of(found[0], found[1:]) for found in parts])

    def log_jacobian(self, X: np.ndarray) -> float | np.ndarray:
        """Return the nats that log-likelihoods gain from the model's units to those of the features: a number, or
        (n_samples,) where X has holes."""
        scale = np.log(self.scale)
        if not np.ndim(scale):
            return -float(np.sum(scale))
        scale = scale[: len(scale) - self.vae.n_context]
        holes = np.ascontiguousarray(np.isnan(X[:, : len(scale)]))  # whose sums have one order
        return -float(np.sum(scale)) + ((holes * scale).sum(axis=1) if holes.any() else 0.0)

    def in_units_of_X(self, x: np.ndarray) -> np.ndarray:
        """Return features, with or without what is given, in their own units."""
        offset, scale = units_of(self.offset, self.scale, x.shape[-1])
        return (x * np.float64(scale) + offset).astype(self.table.dtype)

    def mean(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """E[x | z], in the model's units: (n, z_dim) -> (n, n_features)."""
        return self.vae.likelihood.mean(self.vae.decode(z, context))

    def _mean_and_nodes(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """E[x | z] and quantiles of p(x | z), in the model's units: (n, 1 + n_levels, n_features)."""
        raw, likelihood = self.vae.decode(z, context), self.vae.likelihood
        nodes = likelihood.quantile(raw, levels(_N_LEVELS).to(raw))
        return torch.cat([likelihood.mean(raw).unsqueeze(0), nodes]).movedim(0, 1)

    def expectation(self, z: np.ndarray, context: np.ndarray | None) -> Any:
        """E[x | z] in the container of X, of latent coordinates and what is given, if anything."""
        if not self.table.is_curved:
            features = self._features_of(self.mean, z, context)
            return self.table.compose(self.table.values_of(features, drawn=False))

        def found_of(rows: slice) -> np.ndarray:
            given = None if context is None else context[rows]
            return np.moveaxis(self._features_of(self._mean_and_nodes, z[rows], given), 1, 0)

        return self.table.compose(self._means(len(z), found_of))

    def decode(self, function: Callable, z: np.ndarray, context: np.ndarray | None) -> Any:
        """Draws that `function` makes of latent coordinates and what is given, if anything, in the container of X."""
        return self.table.compose(self.table.values_of(self._features_of(function, z, context), drawn=True))

    def _context_in_units(self, context: np.ndarray) -> np.ndarray:
        """What is given (n, n_context), in the model's units."""
        n, offset, scale = context.shape[1], np.asarray(self.offset), np.asarray(self.scale)
        return (context - offset[-n:]) / scale[-n:]

    def check_context(self, context: np.ndarray) -> None:
        """Refuse conditions that float32 does not hold, as `scaled` does rows."""
        if (np.abs(self._context_in_units(context)) > np.finfo(np.float32).max).any():
            raise ValueError("Input conditions contains infinity or a value too large for dtype('float32').")

    def _features_of(self, function: Callable, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """What `function` makes of latent coordinates and of what is given, and that: (n, ..., n_features)."""
        if context is None:
            return self._decoded(function, z)
        n = context.shape[1]
        both = np.hstack([z, self._context_in_units(context)]).astype(np.float32)
        features = self._decoded(lambda rows: function(rows[:, :-n], rows[:, -n:]), both)
        beside = context if features.ndim == 2 else np.repeat(context[:, None], features.shape[1], axis=1)
        return np.concatenate([features, beside], axis=-1)

    def _decoded(self, function: Callable, z: np.ndarray) -> np.ndarray:
        return self.apply(function, scaled_blocks(z, 0.0, 1.0, self.device), len(z), self.in_units_of_X)
