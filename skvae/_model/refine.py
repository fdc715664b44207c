"""The posterior of rows with holes, for inference: a Gauss-Newton step or a few from where the encoder puts them.

The encoder's posterior has no correlations, and an incomplete row's has. Here it is N(mean, (root @ root.T)^-1). That
is exact where the decoder is linear, the noise does not depend on z and the prior is N(0, I), whatever is missing; for
other models it is what importance sampling draws from. Under a prior of several modes a row that says little has them
too: then as many draws come from the prior itself, and weights are those of both together (a defensive mixture;
Hesterberg, 1995).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._data.batch import Cells
from ..priors import Prior, StandardNormal
from .gaussian import log_scales
from .module import FARTHEST, MODERATE, VAE

_MAX_STEPS = 3
_ROUNDING = 1e-12  # of a matrix in float64, with something to spare
_LEAST_STEP = 0.05  # of a difference quotient, in units of z
_STRIDES = 159, 101  # of levels that go together by chance; coprime to their number


class Draws(NamedTuple):
    """What importance sampling draws for rows with holes, the same for all or for each its own.

    Parameters
    ----------
    eps : Tensor of shape (n_draws, 1 or batch, z_dim)
        Standard normal draws, for the rows' posteriors.
    of_prior : Tensor of shape (n_draws, 1 or batch, z_dim) or None
        As many draws of the prior; None where that is N(0, I).
    """

    eps: Tensor
    of_prior: Tensor | None

    def parts(self, n_parts: int) -> list["Draws"]:
        """The draws in so many parts."""
        pairs = [[None] * n_parts if part is None else part.tensor_split(n_parts) for part in self]
        return [Draws(*pair) for pair in zip(*pairs, strict=True)]


def draws_with(prior: Prior, eps: Tensor, rng: torch.Generator) -> Draws:
    """The standard normal draws `eps`, and as many of the prior."""
    if isinstance(prior, StandardNormal):
        return Draws(eps, None)
    return Draws(eps, prior.sample(eps.shape[:-1].numel(), rng).to(eps).view_as(eps))


def antithetic(eps: Tensor) -> Tensor:
    """Draws (n_draws, ...) in pairs of opposite signs, whose mean is 0: what is linear in them is then exact."""
    half = eps[: -(-len(eps) // 2)]
    return torch.cat([half, -half])


class Refined:
    """Posteriors of the rows of some `Cells` under `vae`, and draws from them.

    Parameters
    ----------
    vae : VAE
        A trained model.
    cells : Cells
        What it made of rows with holes.
    """

    def __init__(self, vae: VAE, cells: Cells) -> None:
        self.vae, self.cells = vae, cells
        self.mean, log_scale = vae.encode_inputs(cells.seen.clamp(-FARTHEST, FARTHEST))
        self.step = (log_scale + cells.spread).clamp(*MODERATE).exp().clamp(_LEAST_STEP, 1.0)
        value = self._log_joint(self.mean)
        for _ in range(_MAX_STEPS):
            gradient, root = self._expansion(self.mean)
            moved = self.mean + torch.cholesky_solve(gradient.unsqueeze(-1), root).squeeze(-1)
            found = self._log_joint(moved)
            better = found > value
            self.mean, value = torch.where(better[:, None], moved, self.mean), torch.where(better, found, value)
        _, self.root = self._expansion(self.mean)

    @property
    def log_scale(self) -> Tensor:
        """Logarithm of each unit's standard deviation: (batch, z_dim)."""
        return log_scales(self.root)

    def draw(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Raw outputs at the draws, of the posteriors first, and the logarithms of their importance weights p(x, z) /
        q(z | x): (n, batch, n_raw, n_features) and (n, batch)."""
        eps = draws.eps.expand(-1, len(self.mean), -1)
        moves = torch.linalg.solve_triangular(self.root.mT, eps.permute(1, 2, 0), upper=True)  # (batch, z_dim, n_draws)
        z = self.mean + moves.permute(2, 0, 1)
        if draws.of_prior is not None:
            others = draws.of_prior.expand_as(z)
            z = torch.cat([z, others])
            eps = torch.cat([eps, torch.einsum("nbi,bij->nbj", others - self.mean, self.root)])
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_q = log_det - 0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1)
        raw, log_prior = self._decode(z), self.vae.prior.log_prob(z)
        if draws.of_prior is not None:
            log_q = torch.logaddexp(log_q, log_prior) - math.log(2)
        return raw, self._log_prob(raw) + log_prior - log_q

    def own_draws(self, n: int, rng: torch.Generator) -> Draws:
        """As many draws for each row: rows that share them are alike."""
        eps = torch.randn(n, *self.mean.shape, generator=rng, dtype=torch.float64)
        return draws_with(self.vae.prior, antithetic(eps), rng)

    def mixed(self, log_weights: Tensor) -> Tensor:
        """Log-likelihood of each row under the mixture with the background, 0 where nothing is observed: (batch,)."""
        cells = self.cells
        mixed = self.vae.mixed(log_mean(log_weights), cells.x, cells.observed, cells.context)
        return torch.where(cells.observed.any(-1), mixed, 0.0)

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z, self.cells.context)

    def _log_prob(self, raw: Tensor) -> Tensor:
        log_prob = self.vae.likelihood.log_prob(raw, self.cells.x)
        return torch.where(self.cells.observed, log_prob, 0.0).sum(-1)

    def _log_joint(self, z: Tensor) -> Tensor:
        return self._log_prob(self._decode(z)) + self.vae.prior.log_prob(z)

    def _expansion(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the log-joint in z, and the Cholesky factor of minus its Hessian, without the second derivative
        of the decoder: (batch, z_dim) and (batch, z_dim, z_dim)."""
        slope, curvature = self.vae.likelihood.expansion(self._decode(z), self.cells.x)
        slope, curvature = (torch.where(self.cells.observed, part, 0.0) for part in (slope, curvature.clamp(min=0)))
        jacobian = self._jacobian(z)
        gradient = (jacobian @ slope.unsqueeze(-1)).squeeze(-1) + _gradient(self.vae.prior, z)
        hessian = (jacobian * curvature.unsqueeze(1)) @ jacobian.mT
        least = 1 + _ROUNDING * hessian.diagonal(dim1=-2, dim2=-1).amax(-1)  # of a far row more than float64 adds to it
        return gradient, torch.linalg.cholesky(hessian + least[:, None, None] * torch.eye(z.shape[-1]).to(hessian))

    def _jacobian(self, z: Tensor) -> Tensor:
        """Slopes of the first raw outputs in z, over about a standard deviation of it: (batch, z_dim, n_features)."""
        moves = torch.diag_embed(self.step).movedim(1, 0)  # (z_dim, batch, z_dim)
        ahead, behind = (self._decode(z + sign * moves)[..., 0, :] for sign in (1, -1))
        return ((ahead - behind) / (2 * self.step.T.unsqueeze(-1))).movedim(0, 1)


def log_mean(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean importance weight of each row; of far rows weights may be NaN: (n_draws, batch)."""
    log_weights = log_weights.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _gradient(prior: Prior, z: Tensor) -> Tensor:
    """Gradient of the prior's log-density: (batch, z_dim)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
    return gradient


def _shares(log_weights: Tensor) -> Tensor:
    """Importance weights (n_draws, batch) that add up to 1 for each row."""
    return F.softmax(log_weights.nan_to_num(nan=-1e30, posinf=0.0, neginf=-1e30), dim=0)


def _chance_of_background(refined: Refined, log_weights: Tensor) -> Tensor:
    """Probability that a row comes from the background of the mixture, given its observed cells: (batch, 1)."""
    vae, cells = refined.vae, refined.cells
    background = vae.background_log_prob(cells.x, cells.observed, cells.context) + math.log(vae.share)
    return (background - refined.mixed(log_weights)).exp().unsqueeze(-1)


def _mean_of_background(refined: Refined) -> Tensor:
    """What the background of the mixture expects of the rows, given their observed cells: (batch, n_features)."""
    background, cells = refined.vae.background, refined.cells
    assert background is not None
    shift = refined.vae.background_shift(cells.context)
    return background.expected_given(cells.x - shift, cells.observed) + shift


def _whole(cells: Cells, x: Tensor) -> Tensor:
    """Rows whose holes are filled by `x`, with what is given at their end."""
    filled = torch.where(cells.observed, cells.x, x)
    return filled if cells.context is None else torch.cat([filled, cells.context.expand(*x.shape[:-1], -1)], -1)


def mean_of_draws(refined: Refined, raw: Tensor, log_weights: Tensor) -> Tensor:
    """Expectation of each cell, E[x | observed], as a mean over weighted draws (Mattei & Frellsen, 2019, equation
    12): (batch, n_features)."""
    vae = refined.vae
    mean = (_shares(log_weights).unsqueeze(-1) * vae.likelihood.mean(raw)).sum(0)
    if vae.background is not None:
        other = _mean_of_background(refined)
        mean = mean + _chance_of_background(refined, log_weights) * (other - mean)
    return mean


def resampled(refined: Refined, raw: Tensor, log_weights: Tensor, n_draws: int, rng: torch.Generator) -> Tensor:
    """Draws of p(x | observed), by sampling and resampling (Mattei & Frellsen, 2019, section 4.2): (n_draws, batch,
    n_features)."""
    vae, cells = refined.vae, refined.cells
    choices = torch.multinomial(_shares(log_weights).T, n_draws, replacement=True, generator=rng).T  # (n_draws, batch)
    chosen = raw[choices, torch.arange(len(cells.x))]  # (n_draws, batch, n_raw, n_features)
    x = vae.likelihood.sample(chosen, rng).to(cells.x)
    if vae.background is not None:
        shift = vae.background_shift(cells.context)
        strange = torch.rand(n_draws, len(cells.x), 1, generator=rng) < _chance_of_background(refined, log_weights)
        other = vae.background.sample_given(cells.x - shift, cells.observed, n_draws, rng) + shift
        x = torch.where(strange, other, x)
    return x


def levels(n: int, stride: int = 1) -> Tensor:
    """Levels of quantiles over which means are taken, (n, 1, 1); those of other strides go together by chance."""
    return ((stride * torch.arange(n) % n + 0.5) / n).view(-1, 1, 1)


def nodes_of_draws(refined: Refined, raw: Tensor, log_weights: Tensor, n_nodes: int) -> Tensor:
    """Quantiles of p(x | z) at draws that systematic resampling chooses: means of functions of a cell are those over
    its nodes (n_nodes, batch, n_features)."""
    vae = refined.vae
    ends = _shares(log_weights).cumsum(0).T.contiguous()
    chosen = torch.searchsorted(ends, levels(n_nodes).flatten().to(ends).expand(len(ends), -1).contiguous())
    own = raw[chosen.T.clamp(max=len(raw) - 1), torch.arange(len(ends))]  # (n_nodes, batch, n_raw, n_features)
    x = vae.likelihood.quantile(own, levels(n_nodes, _STRIDES[0]).to(own))
    if vae.background is not None:
        other = _mean_of_background(refined)
        x = torch.where(levels(n_nodes, _STRIDES[1]).to(own) < _chance_of_background(refined, log_weights), other, x)
    return x


def expected(refined: Refined, draws: Draws, n_nodes: int = 0) -> Tensor:
    """The rows with holes filled by what is expected there, and by nodes of it: (1 + n_nodes, batch, n_features)."""
    raw, log_weights = refined.draw(draws)
    found = mean_of_draws(refined, raw, log_weights).unsqueeze(0)
    if n_nodes:
        found = torch.cat([found, nodes_of_draws(refined, raw, log_weights, n_nodes)])
    return _whole(refined.cells, found)


def drawn(refined: Refined, draws: Draws, n_draws: int, rng: torch.Generator, spread: float = 1.0) -> Tensor:
    """The rows with their holes filled by draws, real values `spread` times as far from what is expected: (n_draws,
    batch, n_features)."""
    raw, log_weights = refined.draw(draws)
    x = resampled(refined, raw, log_weights, n_draws, rng)
    if spread != 1:
        mean = mean_of_draws(refined, raw, log_weights)
        x = torch.where(refined.vae.likelihood.real_valued(x.shape[-1]), mean + spread * (x - mean), x)
    return _whole(refined.cells, x)
