"""The linear start: the closed-form optimum of the linear model, put into a VAE before its first training step.

Gaussian data: factor analysis, or probabilistic PCA when the noise is shared (Tipping & Bishop, 1999). Other
likelihoods: the log-likelihood is expanded to second order around the mean of the data, which makes it a factor
analysis with known noise of the scores over their curvature.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional as F

from ._batch import Batch
from ._device import widest
from ._random import subsample

_MAX_ELEMENTS = 10_000_000  # rows are subsampled beyond this many values of x
_MAX_COVARIANCE = 1_500  # features beyond which the covariance matrix is not formed
_ALIVE = 1e-3  # least signal-to-noise ratio of a unit: without any, its gradient would be zero
_SHRINKAGES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
_SHRINKAGE_ROWS = 1_000
_BLOCK = 4_096


class _Factors:
    """Principal factors of centred data y (n_samples, n_features) under a given noise variance."""

    def __init__(self, y: Tensor, z_dim: int, seed: int) -> None:
        self.y, self.seed, self.n_factors = y, seed, min(z_dim, *y.shape)
        self.covariance = (y.T @ y).double() / len(y) if y.shape[1] <= _MAX_COVARIANCE else None

    @cached_property
    def variance(self) -> Tensor:
        return sum(block.double().square().sum(0) for block in self.y.split(_BLOCK)) / len(self.y)

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Largest eigenvalues and their vectors, of the covariance of y / sqrt(noise): (k,) and (n_features, k)."""
        scale = noise.sqrt()
        if self.covariance is not None:
            values, vectors = torch.linalg.eigh(self.covariance / scale / scale[:, None])
            return values.flip(0)[: self.n_factors], vectors.flip(1)[:, : self.n_factors]
        whitened = (self.y / scale).float()
        if len(self.y) <= _MAX_COVARIANCE:  # as many eigenvalues as rows, which their products have too
            values, vectors = torch.linalg.eigh((whitened @ whitened.T).double() / len(self.y))
            vectors = whitened.T.double() @ vectors.flip(1)[:, : self.n_factors]
            return values.flip(0)[: self.n_factors], vectors / vectors.norm(dim=0).clamp(min=1e-12)
        _, singular, rows = randomized_svd(whitened.numpy(), self.n_factors, random_state=self.seed)
        return torch.from_numpy(singular).double() ** 2 / len(self.y), torch.from_numpy(rows.T.copy()).double()


def _fit_noise(
    factors: _Factors, nearest_noise: Callable[[Tensor], Tensor], start: Tensor | None = None, tol: float = 1e-4
) -> Tensor:
    """Likeliest noise of factor analysis (Barber, 2012, algorithm 21.1), among those that `nearest_noise` allows.

    The iteration is extrapolated on the logarithm of the noise (SQUAREM; Varadhan & Roland, 2008, section 3), in leaps
    that start short, since long ones lead to another optimum. It ends when a row gains less than `tol` nats.
    """

    def improved(noise: Tensor) -> tuple[Tensor, Tensor]:
        """The noise of the next iteration, and minus the log-likelihood of a row at this one, without constants."""
        values, vectors = factors(noise)
        excess = (values - 1).clamp(min=0)
        loss = noise.log().sum() + (factors.variance / noise).sum() + (excess.log1p() - excess).sum()
        return nearest_noise(factors.variance - noise * (vectors.square() * excess).sum(1)), loss / 2

    noise, longest, former = nearest_noise(factors.variance if start is None else start), 1.0, torch.tensor(math.inf)
    for _ in range(int(min(170, max(2, 1e8 / len(noise) ** 3)))):  # a second at most
        first, loss = improved(noise)
        if former - loss < tol:
            return first
        former, (second, _) = loss, improved(first)
        step = (first / noise).log()
        bend = (second / first).log() - step
        length = float((step.norm() / bend.norm().clamp(min=1e-12)).clamp(1.0, longest))
        leap = nearest_noise(noise * (2 * length * step + length**2 * bend).exp())
        third, there = improved(leap)
        noise = third if there <= loss else second
        longest = max(1.0, longest / 2) if there > loss else longest * 4 if length == longest else longest
    return noise


def _scores(likelihood: Any, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of log p(x | raw) in the first raw output (n_samples, n_features), and minus its mean curvature.

    The squared slope has the same mean under the model; where the data spread wider than that, it is the larger one.
    """
    scores, curvature = [], torch.zeros(x.shape[1], dtype=torch.float64)  # of counts, these are as large as counts
    for block in x.split(_BLOCK):
        point = raw.expand(len(block), *raw.shape).clone().requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.log_prob(point, block).sum(), point, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), point)
        scores.append(slope.detach()[:, 0])
        curvature -= bend[:, 0].double().sum(0)
    slopes = torch.cat(scores)
    square = sum(block.double().square().sum(0) for block in slopes.split(_BLOCK))
    curvature = torch.maximum(curvature, square) / len(x)
    return slopes, curvature.clamp(min=likelihood.min_curvature)


@dataclass(frozen=True)
class _LinearModel:
    """y ~ N(loadings z, noise), by the principal values and directions of y / sqrt(noise)."""

    y: Tensor  # (n_samples, n_features), centred
    noise: Tensor  # (n_features,)
    values: Tensor  # (z_dim,)
    directions: Tensor  # (n_features, z_dim)

    @classmethod
    def fit(cls, factors: _Factors, noise: Tensor, z_dim: int) -> "_LinearModel":
        values, vectors = factors(noise)
        directions = torch.eye(len(noise), z_dim, dtype=torch.float64)  # for units beyond the rank of y
        directions[:, : len(values)] = vectors
        return cls(factors.y, noise, torch.cat([values, values.new_zeros(z_dim - len(values))]), directions)

    def of_inputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """y as a linear function of the encoder's inputs: their centre and, for each feature, the slope."""
        centre = inputs.mean(0)
        inputs = inputs - centre
        spread = inputs.square().mean(0).clamp(min=1e-12)
        return centre, (inputs * self.y).mean(0) / spread

    def put_into(self, vae: Any, line: tuple[Tensor, Tensor], raw: Tensor, beta: float, shrinkage: float = 1.0) -> None:
        """Set `vae` to the optimum for the weighted bound, whose posterior sees the noise `beta` times larger.

        The loadings are rotated so that the posterior is diagonal. `line` is what `of_inputs` returned.
        """
        signal = ((self.values - beta) * shrinkage).clamp(min=_ALIVE)
        loadings = self.directions * signal.sqrt() * self.noise.sqrt()[:, None]  # (n_features, z_dim)
        weight = (loadings / self.noise[:, None] / (beta + signal)).T  # (z_dim, n_features)
        log_scale = 0.5 * (max(beta, 1e-4) / (beta + signal)).log()
        centre, slope = line
        weight = weight * slope
        bias = torch.cat([-weight @ centre.double(), log_scale])
        _set_linear_maps(vae, weight, bias, loadings, raw.flatten())


class LinearGaussian(nn.Module):
    """The density of the Gaussian linear model, in closed form (Tipping & Bishop, 1999, equation 4, with a noise of
    each feature): the normal distribution with covariance ``loadings @ loadings.T + diag(noise)``.

    Parameters
    ----------
    n_features, z_dim : int
        Shape of the loadings.
    """

    mean: Tensor
    noise_scale: Tensor
    directions: Tensor
    signal: Tensor

    def __init__(self, n_features: int, z_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("noise_scale", torch.ones(n_features))
        self.register_buffer("directions", torch.zeros(n_features, z_dim))  # orthonormal, of x / noise_scale
        self.register_buffer("signal", torch.zeros(z_dim))  # variance along them, less that of the noise

    def set_model(self, model: _LinearModel, mean: Tensor) -> None:
        for name, value in {
            "mean": mean,
            "noise_scale": model.noise.sqrt(),
            "directions": model.directions,
            "signal": (model.values - 1).clamp(min=0),
        }.items():
            getattr(self, name).copy_(value)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each row, in nats and in float64, since a row may lie far off: (..., n_features) -> (...,)."""
        noise_scale, signal = widest(self.noise_scale), widest(self.signal)
        y = (widest(x) - self.mean) / noise_scale
        along = F.linear(y, widest(self.directions).T).square()
        distance = y.square().sum(-1) - (along * (signal / (1 + signal))).sum(-1)
        log_det = 2 * noise_scale.log().sum() + signal.log1p().sum()
        return -0.5 * (distance + log_det + len(self.mean) * math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` rows: (n, n_features)."""
        z, noise = (torch.randn(n, size, generator=generator).to(self.mean) for size in self.directions.shape[::-1])
        return self.mean + self.noise_scale * (noise + (z * self.signal.sqrt()) @ self.directions.T)


def _set_linear_maps(vae: Any, weight: Tensor, bias: Tensor, loadings: Tensor, raw: Tensor) -> None:
    """Put the linear maps where they belong: beside the networks, or into networks that are linear themselves."""
    encoder = vae.linear_encoder or vae.encoder.head
    decoder = vae.linear_decoder or vae.decoder.head
    for layer in (encoder, decoder, vae.encoder.head, vae.decoder.head):
        layer.weight.zero_()
    vae.encoder.head.bias.copy_(bias)
    vae.decoder.head.bias.copy_(raw)
    encoder.weight[: len(weight)] = weight.to(encoder.weight)
    decoder.weight[: len(loadings)] = loadings.to(decoder.weight)


def _some(x: Tensor, n_rows: int, seed: int, rows: Any = None) -> Tensor:
    """At most `n_rows` rows of `x`, or of those whose numbers are given."""
    numbers = subsample(len(x) if rows is None else rows, n_rows, seed)
    return x if len(numbers) == len(x) else x[torch.from_numpy(numbers)]


def _best_shrinkage(put: Callable[..., None], vae: Any, x: Tensor, beta: float, seed: int) -> float:
    """The expansion holds near the mean only: how far the signal must shrink for the bound itself to be best."""
    rows = _some(x, _SHRINKAGE_ROWS, seed)
    eps = torch.randn(len(rows), vae.prior.z_dim, generator=torch.Generator().manual_seed(seed))

    def bound(shrinkage: float) -> float:
        put(shrinkage=shrinkage)
        log_prob, kl = vae(Batch(rows, eps))
        return float((log_prob - beta * kl).mean())

    return max(_SHRINKAGES, key=bound)


def linear_start(
    vae: Any, x: Tensor, raw: Tensor, *, beta: float, seed: int, rows: Any = None, near: Any = None
) -> None:
    """Set `vae` to the optimum of the linear model, in place.

    Parameters
    ----------
    vae : VAE
        Its networks end in a linear layer called ``head``, which is set to a constant.
    x : Tensor of shape (n_samples, n_features)
        The training data.
    raw : Tensor of shape (n_raw, n_features)
        Raw outputs at the mean of the data: what `vae.likelihood.start` returned.
    beta : float
        Weight of the KL term.
    seed : int
        Decides which rows are taken where all would be too many.
    rows : array-like of int, default=None
        Indices of the rows to take; None takes all.
    near : VAE, default=None
        A model at its start on similar rows, whose noise is then near.
    """
    likelihood, z_dim = vae.likelihood, vae.prior.z_dim
    x = _some(x, max(_SHRINKAGE_ROWS, _MAX_ELEMENTS // x.shape[1]), seed, rows)
    if hasattr(likelihood, "set_noise"):
        factors = _Factors(x - x.mean(0), z_dim, seed)
        known = None if near is None or near.background is None else near.background.noise_scale.double().square()
        noise = _fit_noise(factors, likelihood.nearest_noise, known)
        likelihood.set_noise(noise.to(raw), raw)
    else:
        scores, curvature = _scores(likelihood, raw, x)
        factors = _Factors(((scores - scores.mean(0)) / curvature).to(x.dtype), z_dim, seed)
        noise = 1 / curvature
    model = _LinearModel.fit(factors, noise, z_dim)
    with torch.no_grad():
        if vae.background is not None:
            vae.background.set_model(model, x.mean(0))
        exact = hasattr(likelihood, "set_noise")
        put = partial(model.put_into, vae, model.of_inputs(likelihood.inputs(x)), raw, beta)
        put(shrinkage=1.0 if exact else _best_shrinkage(put, vae, x, beta, seed))
