"""Rows through a fitted model, in blocks of bounded size."""

import copy

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .._data.blocks import BLOCK, PAD, chunk_sizes, map_blocks, scaled_blocks
from .._data.input import plain
from .._data.rows import RowSource
from .._model.module import MODERATE
from .._model.refine import Refined, antithetic, log_mean
from .._system.program import multiplications
from .._system.random import SCORE_STREAM, generator


class InferenceMixin:
    """Validated rows through a fitted `net_`."""

    def _model(self, exact):
        """The model and where it computes: in float64, which not every device has, for far rows and those with holes,
        whose squares overflow and whose matrices lose digits."""
        return (copy.deepcopy(self.module_).cpu().double(), "cpu") if exact else (self.module_, self.net_.device)

    def _map_parts(self, X, function):
        """Apply `function` to X, or to the parts of a table that is not held: no row depends on its neighbours."""
        check_is_fitted(self)
        X = plain(X)
        if not isinstance(X, RowSource):
            return function(X)
        found, end = None, 0
        for part in map(function, X.parts()):
            found = np.empty((len(X), *part.shape[1:]), part.dtype) if found is None else found
            start, end = end, end + len(part)
            found[start:end] = part
        return found

    def _draws(self, like):
        """The draws of a posterior, (n_draws, 1, z_dim), that all rows and calls share."""
        eps = torch.randn(self.n_draws, 1, self._n_features_out, generator=generator(self.net_.seed, SCORE_STREAM))
        return eps.to(like)

    def _log_likelihoods(self, X, holes, exact):
        """Log-likelihood of each row of a validated X, or of its observed cells, in the model's units."""
        vae, device = self._model(exact or holes)
        like = next(vae.parameters())
        eps = self._draws(like)
        n_rows, n_parts = chunk_sizes(self.n_draws, X.shape[1])

        def complete(x):
            x = x.to(like.dtype)
            parts = [vae.log_weights(x, part, MODERATE) for part in eps.tensor_split(n_parts)]
            return vae.mixed(log_mean(torch.cat(parts)), x)

        def incomplete(x):
            refined = Refined(vae, vae.complete(x.to(like.dtype)))
            parts = [refined.draw(part)[2] for part in antithetic(eps).tensor_split(n_parts)]
            return refined.mixed(torch.cat(parts))

        blocks = scaled_blocks(X, self.net_.offset, self.net_.scale, device, n_rows)
        return self._apply(
            incomplete if holes else complete, blocks, len(X), size=n_rows * self.n_draws // n_parts
        )

    def _log_jacobian(self, X):
        """Return the nats that log-likelihoods gain from the model's units to those of X: a number, or (n_samples,)."""
        if not np.ndim(self.net_.scale):
            return self.net_.log_jacobian
        scale = np.log(self.net_.scale[: self.net_.n_features])
        holes = np.ascontiguousarray(np.isnan(X[:, : len(scale)]))  # whose sums have one order
        if not holes.any():
            return self.net_.log_jacobian
        return self.net_.log_jacobian + (holes * scale).sum(axis=1)

    def _encode(self, X):
        """Mean and log-scale of the posterior of each row of a validated X."""
        vae = self.module_

        def complete(x):
            return torch.cat(vae.encode_any(x), dim=-1)

        def incomplete(x):
            refined = Refined(exact, exact.complete(x.double()))
            return torch.cat([refined.mean, refined.log_scale], dim=-1).float()

        def encode(rows, holes):
            blocks = scaled_blocks(rows, self.net_.offset, self.net_.scale, "cpu" if holes else self.net_.device)
            return self._apply(incomplete if holes else complete, blocks, len(rows))

        exact = self._model(True)[0] if self.module_.n_context or np.isnan(X).any() else None
        return np.split(self._by_holes(X, encode), 2, axis=1)

    def _by_holes(self, X, function):
        """Apply `function` to the complete rows of X and to those with holes; returns results in the order of X."""
        incomplete = np.isnan(X).any(axis=1) | bool(self.module_.n_context)
        if incomplete.all() or not incomplete.any():
            return function(X, bool(incomplete.all()) and len(X) > 0)
        complete, others = function(X[~incomplete], False), function(X[incomplete], True)
        result = np.empty((len(X), *complete.shape[1:]), complete.dtype)
        result[~incomplete], result[incomplete] = complete, others
        return result

    def _decode(self, function, z):
        """Apply `function` to latent coordinates, and bring its results to the units of X."""
        blocks = scaled_blocks(z, 0.0, 1.0, self.net_.device)
        return self._apply(function, blocks, len(z), self._in_units_of_X)

    def _apply(self, function, blocks, n_rows, finish=np.asarray, size=None):
        """`map_blocks` for passes of `size` rows through the model, or of full blocks of rows."""
        size = min(BLOCK, max(PAD, n_rows)) if size is None else size
        return map_blocks(function, blocks, n_rows, finish, multiplications(self.module_, size, self.n_features_in_))

    def _in_units_of_X(self, x):
        """Features, with or without what is given, in the units of X."""
        offset, scale = self.net_.units(x.shape[-1])
        return (x * np.float64(scale) + offset).astype(self._table.dtype)

    def _given_back(self, features, drawn=False):
        """Features in the units of X, in its container."""
        return self._table.compose(self._table.values_of(features, drawn))
