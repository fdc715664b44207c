"""Rows through a fitted model, in blocks of bounded size."""

import copy
import math

import numpy as np
import torch

from ._blocks import BLOCK, PAD, apply, chunk_sizes, scaled_blocks
from ._module import MODERATE
from ._program import multiplications
from ._random import SCORE_STREAM, generator


class InferenceMixin:
    """What an estimator with a fitted `net_` computes of validated rows."""

    def _scorer(self, far):
        """The model and where it computes: for far rows in float64, which not every device has."""
        return (copy.deepcopy(self.module_).cpu().double(), "cpu") if far else (self.module_, self.net_.device)

    def _log_likelihoods(self, X, vae, device):
        """Log-likelihood of each row of a validated X, in the model's units and at the precision of `vae`."""
        eps = torch.randn(self.n_draws, 1, self._n_features_out, generator=generator(self.net_.seed, SCORE_STREAM))
        dtype = next(vae.parameters()).dtype
        eps = eps.to(device, dtype)
        n_rows, n_parts = chunk_sizes(self.n_draws, X.shape[1])

        def log_likelihood(x):
            x = x.to(dtype)
            weights = torch.cat([vae.log_weights(x, part, MODERATE) for part in eps.tensor_split(n_parts)])
            weights = weights.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)  # inf - inf, of far rows
            return vae.mixed(weights.logsumexp(0) - math.log(self.n_draws), x)

        blocks = scaled_blocks(X, self.net_.offset, self.net_.scale, device, n_rows)
        return self._apply(log_likelihood, blocks, len(X), size=n_rows * self.n_draws // n_parts)

    def _encode(self, X):
        """Mean and log-scale of the posterior of each row of a validated X."""
        vae = self.module_
        both = self._apply(lambda x: torch.cat(vae.encode_any(x), dim=-1), self._scaled_blocks(X), len(X))
        return np.split(both, 2, axis=1)

    def _scaled_blocks(self, X, size=BLOCK):
        net = self.net_
        return scaled_blocks(X, net.offset, net.scale, net.device, size)

    def _decode(self, function, z):
        """What `function` makes of latent coordinates, brought to the units of X."""
        blocks = scaled_blocks(z, 0.0, 1.0, self.net_.device)
        return self._apply(function, blocks, len(z), self._in_units_of_X)

    def _apply(self, function, blocks, n_rows, finish=np.asarray, size=None):
        """`apply` for passes of `size` rows through the model, or of full blocks of rows."""
        size = min(BLOCK, max(PAD, n_rows)) if size is None else size
        return apply(function, blocks, n_rows, finish, multiplications(self.module_, size, self.n_features_in_))

    def _in_units_of_X(self, x):
        return (x * np.float64(self.net_.scale) + self.net_.offset).astype(self._output_dtype)
