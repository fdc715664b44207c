"""The linear start: the closed-form optimum of the linear model, put into a VAE before its first training step.

Gaussian data: factor analysis, or probabilistic PCA when the noise is shared (Tipping & Bishop, 1999). Other
likelihoods: the log-likelihood is expanded to second order around the mean of the data, which makes it a factor
analysis with known noise of the scores over their curvature.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor
from torch.nn import functional as F

from .._data.batch import Batch
from .._data.holes import observed_cells, without_holes
from .._system.device import widest
from .._system.random import subsample
from .columns import MarginalBackground
from .gaussian import LinearGaussian
from .likelihood import Likelihood
from .module import VAE
from .sums import blocks_of, total

_MAX_ELEMENTS = 10_000_000  # rows are subsampled beyond this many values of x
_MAX_COVARIANCE = 1_500  # features beyond which the covariance matrix is not formed
_TINY, _FARTHEST = 1e-30, 1e15  # whose square float32 holds
_ALIVE = 1e-3  # least signal-to-noise ratio of a unit: without any, its gradient would be zero
_LITTLE = 0.25  # nats per row, of what columns tell of each other
_PART = 0.9  # of a feature's variance that its unit stands for, where factors are none
_SHRINKAGES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
_SHRINKAGE_ROWS = 1_000
_MAX_EM, _EM_TOL = 100, 5e-5  # steps; nats per row
_EM_ELEMENTS = 2_000_000

Noise = Callable[[Tensor], Tensor]  # from wished noise variances (n_features,) to the nearest that the model can have


class _Factors:
    """Principal factors of centred data y (n_samples, n_features) under a given noise variance.

    `hidden` is the covariance of what y was filled up with: a matrix, or its diagonal where that would be too large.
    """

    def __init__(self, y: Tensor, z_dim: int, seed: int, hidden: Tensor | None = None) -> None:
        self.y, self.seed, self.n_factors, self.hidden = y, seed, min(z_dim, *y.shape), hidden
        self.covariance = (y.T @ y).double() / len(y) if y.shape[1] <= _MAX_COVARIANCE else None
        if self.covariance is not None and hidden is not None:
            self.covariance += hidden

    @cached_property
    def variance(self) -> Tensor:
        variance = total(block.double().square().sum(0) for block in blocks_of(self.y)) / len(self.y)
        if self.hidden is None:
            return variance
        return variance + (self.hidden.diagonal() if self.hidden.ndim == 2 else self.hidden)

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Largest eigenvalues and their vectors, of the covariance of y / sqrt(noise): (k,) and (n_features, k)."""
        scale = noise.sqrt()
        if self.covariance is not None:
            values, vectors = torch.linalg.eigh(self.covariance / scale / scale[:, None])
            return values.flip(0)[: self.n_factors], vectors.flip(1)[:, : self.n_factors]
        whitened = self.y / scale.to(self.y.dtype)
        if len(self.y) <= _MAX_COVARIANCE:  # as many eigenvalues as rows, which their products have too
            values, vectors = torch.linalg.eigh((whitened @ whitened.T).double() / len(self.y))
            vectors = whitened.T.double() @ vectors.flip(1)[:, : self.n_factors]
            return values.flip(0)[: self.n_factors], vectors / vectors.norm(dim=0).clamp(min=1e-12)
        _, singular, rows = randomized_svd(whitened.numpy(), self.n_factors, random_state=self.seed)
        return torch.from_numpy(singular).double() ** 2 / len(self.y), torch.from_numpy(rows.T.copy()).double()


def _fit_noise(factors: _Factors, nearest_noise: Noise, start: Tensor | None = None, tol: float = 1e-4) -> Tensor:
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
        if former - loss < tol or torch.equal(first, noise):
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


def _line(inputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`y` as a linear function of the encoder's inputs: their centre and, for each feature, the slope."""
    centre = inputs.mean(0)
    inputs = inputs - centre
    spread = inputs.square().mean(0).clamp(min=1e-12)
    return centre, (inputs * y).mean(0) / spread


def _scores(likelihood: Likelihood, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of log p(x | raw) in the first raw output (n_samples, n_features), and minus its mean curvature.

    Under the model the mean squared slope equals the curvature. The larger of the two is taken, to allow for data that
    spread wider than the model has them.
    Where some rows say more than others, since they are larger, slopes are those of rows that all say as much.
    """
    slopes, curvature = torch.empty_like(x), torch.zeros(x.shape[1], dtype=torch.float64)  # of counts, large as these
    for block, slope in zip(blocks_of(x), blocks_of(slopes), strict=True):
        first, bend = likelihood.expansion(raw.expand(len(block), *raw.shape), block)
        slope.copy_(first)
        curvature += bend.double().nan_to_num(0.0, 0.0, 0.0).sum(0)  # float32 may hold none of a fill value
    typical = likelihood.at_start(x)
    if typical is not None:
        slopes /= _information(likelihood, raw, typical).sqrt()
    square = total(block.double().square().sum(0) for block in blocks_of(slopes))
    curvature = torch.maximum(curvature, square) / len(x)
    return slopes, curvature.clamp(min=likelihood.min_curvature)


def _information(likelihood: Likelihood, raw: Tensor, typical: Tensor) -> Tensor:
    """Fisher information of each of the `typical` rows, over the mean of all: (n_samples, n_features)."""
    pairs = ((raw.expand(len(block), *raw.shape), block) for block in blocks_of(typical))
    bends = torch.cat([likelihood.expansion(*pair)[1] for pair in pairs]).clamp(min=1e-30)
    return bends / bends.mean(0)


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

    @classmethod
    def of_single_features(cls, factors: _Factors, nearest_noise: Noise, z_dim: int, columns: Tensor) -> "_LinearModel":
        """Independent features, some of which have a unit that stands for most of what seemed their noise: those of the
        least kurtosis, as values in clusters or on a curve have it, and of each of the `columns` one before any has
        two."""
        variance, n = factors.variance, min(z_dim, len(factors.variance))
        fourth = total(block.double().pow(4).sum(0) for block in blocks_of(factors.y)) / len(factors.y)
        order = (fourth / variance.square()).argsort()  # by kurtosis
        n_before = [int((columns[order[:i]] == columns[feature]).sum()) for i, feature in enumerate(order)]
        chosen = order[torch.tensor(n_before).argsort(stable=True)][:n]
        left, values = torch.ones_like(variance), torch.ones(z_dim, dtype=torch.float64)
        left[chosen], values[:n] = 1 - _PART, 1 / (1 - _PART)
        directions = torch.zeros(len(variance), z_dim, dtype=torch.float64)
        directions[chosen, torch.arange(n)] = 1
        return cls(factors.y, nearest_noise(variance * left), values, directions)

    def describe(self, density: LinearGaussian, mean: Tensor) -> None:
        """Make `density` that of mean + y."""
        density.set_model(mean, self.noise.sqrt(), self.directions, self.values)

    def marginal(self, n: int) -> tuple[Tensor, Tensor]:
        """Principal values and directions of the first `n` features alone."""
        loadings = self.directions[:n] * (self.values - 1).clamp(min=0).sqrt()
        left, singular, _ = torch.linalg.svd(loadings, full_matrices=False)
        directions = loadings.new_zeros(n, len(self.values))
        directions[:, : left.shape[1]] = left
        return 1 + F.pad(singular.square(), (0, len(self.values) - len(singular))), directions

    def describe_inputs(self, density: LinearGaussian, centre: Tensor, slope: Tensor) -> None:
        """Make `density` that of the encoder's inputs, of which y is a linear function; a feature without slope is
        independent of all."""
        noise_scale = torch.where(slope == 0, 1.0, self.noise.sqrt() / slope.abs())
        density.set_model(centre, noise_scale, self.directions * slope.sign()[:, None], self.values)

    def put_into(
        self,
        vae: VAE,
        line: tuple[Tensor, Tensor],
        raw: Tensor,
        beta: float,
        shrinkage: float = 1.0,
        given: Tensor | None = None,
    ) -> None:
        """Set `vae` to the optimum for the weighted bound, whose posterior sees the noise `beta` times larger.

        The loadings are rotated so that the posterior is diagonal. `line` is what `_line` returned, and `given`
        are the coefficients of y on what is given, if anything is.
        """
        signal = ((self.values - beta) * shrinkage).clamp(min=_ALIVE)
        loadings = self.directions * signal.sqrt() * self.noise.sqrt()[:, None]  # (n_features, z_dim)
        of_y = (loadings / self.noise[:, None] / (beta + signal)).T  # (z_dim, n_features)
        log_scale = 0.5 * (max(beta, 1e-4) / (beta + signal)).log()
        centre, slope = line
        weight = of_y * slope
        bias = torch.cat([-weight @ centre.double(), log_scale])
        if given is not None:
            given = given.double()
            weight, loadings = torch.cat([weight, -of_y @ given], 1), torch.cat([loadings, given], 1)
        _set_linear_maps(vae, weight, bias, loadings, raw.flatten())


# Rows with holes


class _Complete(NamedTuple):
    """Rows as EM leaves them: the mean that they were centred by, their factors and the noise."""

    mean: Tensor
    factors: _Factors
    noise: Tensor


def _complete(
    y: Tensor, observed: Tensor, z_dim: int, nearest_noise: Noise, seed: int, near: LinearGaussian | None
) -> _Complete:
    """Likeliest factor analysis of the `observed` cells of `y` (n_samples, n_features): EM, whose second step is that
    of complete rows (Little & Rubin, 2019, section 11.2). It ends when a row gains less than 5e-5 nats."""
    model = _first_guess(y, observed, z_dim, nearest_noise) if near is None else copy.deepcopy(near)
    former, noise = torch.tensor(math.inf), widest(model.noise_scale).square()
    for _ in range(_MAX_EM):
        filled, hidden, log_prob = _expectation(model, y, observed)
        mean = filled.mean(0)
        factors = _Factors(filled - mean, z_dim, seed, hidden)
        noise = _fit_noise(factors, nearest_noise, noise)
        if former + log_prob.mean() < _EM_TOL:
            break
        former = -log_prob.mean()
        _LinearModel.fit(factors, noise, z_dim).describe(model, mean)
    return _Complete(mean, factors, noise)


def _first_guess(y: Tensor, observed: Tensor, z_dim: int, nearest_noise: Noise) -> LinearGaussian:
    """Return the model in which features are independent of each other."""
    n = observed.sum(0).clamp(min=1)
    mean = torch.where(observed, y, 0.0).double().sum(0) / n
    variance = torch.where(observed, (y - mean).square(), 0.0).sum(0) / n
    model = LinearGaussian(y.shape[1], z_dim)
    model.set_model(mean, nearest_noise(variance).sqrt(), model.directions, model.signal)
    return model


def _expectation(model: LinearGaussian, y: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`y` with its holes filled by their expectation, the mean covariance of what is filled in (its diagonal, where the
    matrix would be too large), and the log-density of each row's observed cells."""
    is_narrow, noise = y.shape[1] <= _MAX_COVARIANCE, widest(model.noise_scale).square()
    hidden = torch.diag((~observed).to(noise).mean(0) * noise) if is_narrow else (~observed).to(noise).mean(0) * noise
    loadings = (widest(model.noise_scale)[:, None] * model.loadings).T  # (z_dim, n_features)
    filled, log_prob, size = [], [], max(1, _EM_ELEMENTS // loadings.numel())
    for rows, seen in zip(y.split(size), observed.split(size), strict=True):
        posterior = model.posterior(rows, seen)
        filled.append(torch.where(seen, rows, model.expected(posterior.mean).to(rows.dtype)))
        log_prob.append(posterior.log_prob)
        spread = torch.linalg.solve_triangular(posterior.root, loadings * ~seen.unsqueeze(1), upper=False).flatten(0, 1)
        hidden += (spread.T @ spread if is_narrow else spread.square().sum(0)) / len(y)
    return torch.cat(filled), hidden, torch.cat(log_prob)


def rows_to_start_from(n_features: int) -> int:
    """Return the number of rows that say enough of a table."""
    return max(_SHRINKAGE_ROWS, _MAX_ELEMENTS // n_features)


def _rows_for_em(n_features: int, z_dim: int) -> int:
    """Return the number of rows with which a step of EM takes about a twentieth of a second."""
    return int(max(_SHRINKAGE_ROWS, 3e8 / (n_features**2 * z_dim)))


def _set_linear_maps(vae: VAE, weight: Tensor, bias: Tensor, loadings: Tensor, raw: Tensor) -> None:
    """Put the linear maps where they belong: beside the networks, or into networks that are linear themselves."""
    encoder = vae.linear_encoder or vae.encoder.head
    decoder = vae.linear_decoder or vae.decoder.head
    for layer in (encoder, decoder, vae.encoder.head, vae.decoder.head):
        layer.weight.zero_()
    vae.encoder.head.bias.copy_(bias)
    vae.decoder.head.bias.copy_(raw)
    encoder.weight[: len(weight)] = weight.to(encoder.weight)
    decoder.weight[: len(loadings)] = loadings.to(decoder.weight)


def _best_shrinkage(
    put: Callable[..., None], vae: VAE, x: Tensor, context: Tensor | None, beta: float, seed: int
) -> float:
    """Choose the factor of the loadings that maximises the bound: the expansion, which holds near the mean of the data
    only, overstates the signal."""
    few = torch.from_numpy(subsample(len(x), _SHRINKAGE_ROWS, seed))
    eps = torch.randn(len(few), vae.prior.z_dim, generator=torch.Generator().manual_seed(seed))
    given = None if context is None else context[few]
    seen = None if given is None else torch.cat([vae.likelihood.inputs(x[few]), given], -1)
    batch = Batch(x[few], eps, seen, context=given)

    def bound(shrinkage: float) -> float:
        put(shrinkage=shrinkage)
        log_prob, kl = vae(batch)
        return float((log_prob - beta * kl).mean())

    return max(_SHRINKAGES, key=bound)


def says_nothing(vae: VAE) -> bool:
    """Tell whether the linear model that `vae` starts at says little more than independent columns would: that start is
    a saddle of the networks."""
    if vae.linear_decoder is None:
        return False
    columns = vae.likelihood.column_of(len(vae.completer.mean))
    return vae.completer.total_correlation(columns) < _LITTLE


def linear_start(
    vae: VAE,
    x: Tensor,
    raw: Tensor,
    *,
    beta: float,
    seed: int,
    rows: Tensor,
    near: VAE | None = None,
    awake: bool = False,
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
    rows : Tensor of int
        Indices of the rows to take.
    near : VAE, default=None
        A model at its start on similar rows, whose noise is then near.
    awake : bool, default=False
        Whether units stand for single features, where factors say nothing: the density is that of independent
        features, and not a saddle of the networks.
    """
    likelihood, z_dim = vae.likelihood, vae.prior.z_dim
    rows = torch.from_numpy(subsample(rows, rows_to_start_from(x.shape[1]), seed))
    x, context = vae.parts(x if len(rows) == len(x) else x[rows])
    observed = observed_cells(x)
    if observed is not None:
        few = torch.from_numpy(subsample(len(x), _rows_for_em(x.shape[1], z_dim), seed))
        x, context = x[few], None if context is None else context[few]
        observed, x = ~x.isnan(), without_holes(x)
    (y, nearest_noise), exact = _linearised(likelihood, raw, x), likelihood.is_normal
    variance = y.square().mean(0)
    centre, slope = _line(likelihood.inputs(x), y)
    given, shift = None, x.new_zeros(())
    if context is not None:
        given = _regression(context, y)  # (n_features, n_context)
        shift = context @ given.T
        y = y - shift
    if observed is None:
        known = None if near is None or near.background is None else near.background.noise_scale.double().square()
        mean, factors = y.new_zeros(y.shape[1]), _Factors(y, z_dim, seed)
        noise = _fit_noise(factors, nearest_noise, known if exact else None)
    else:
        former = near.completer if near is not None and exact else None
        mean, factors, noise = _complete(y, observed, z_dim, nearest_noise, seed, former)
    likelihood.settle((noise / variance.clamp(min=_TINY)).to(raw))  # more than 1, where these rows do not tell
    noise = nearest_noise(noise)
    model = _LinearModel.fit(factors, noise, z_dim)
    with torch.no_grad():
        raw[0] += mean + _means_of_real(likelihood, x)  # of these rows: where columns tell each other, it matters
        if observed is not None:
            centre = centre + torch.where(slope == 0, 0, mean / slope)
        likelihood.set_noise(noise.to(raw), raw)
        _describe_background(vae, model, (x - shift).mean(0) + mean, raw)
        if vae.filler is not None:
            model.describe_inputs(vae.filler, centre, slope)
        if given is not None:
            vae.regression.copy_(torch.where(slope[:, None] == 0, 0, given / slope[:, None]))
        if awake:
            model = _LinearModel.of_single_features(factors, nearest_noise, z_dim, likelihood.column_of(len(noise)))
            likelihood.set_noise(model.noise.to(raw), raw)
        put = partial(model.put_into, vae, (centre, slope), raw, beta, given=given)
        put(shrinkage=1.0 if exact or awake else _best_shrinkage(put, vae, x, context, beta, seed))


def _means_of_real(likelihood: Likelihood, x: Tensor) -> Tensor:
    """Means of the features whose first raw output is their mean, and 0 of others, whose start is at the mean."""
    parts = [(part.is_normal, x[:, some]) for part, some in likelihood.split()]
    return torch.cat([own.mean(0) if is_normal else own.new_zeros(own.shape[1]) for is_normal, own in parts])


def _regression(context: Tensor, y: Tensor) -> Tensor:
    """Coefficients of `y` on what is given, by least squares with a ridge of a thousandth: (n_features, n_context)."""
    square = (context.T @ context).double() / len(y) + 1e-3 * torch.eye(context.shape[1], dtype=torch.float64)
    return torch.linalg.solve(square, (context.T @ y).double() / len(y)).T.to(y.dtype)


def _describe_background(vae: VAE, model: _LinearModel, mean: Tensor, raw: Tensor) -> None:
    background = vae.background
    if isinstance(background, LinearGaussian):
        model.describe(background, mean)
    elif isinstance(background, MarginalBackground):
        n = background.n_gaussian
        values, vectors = model.marginal(n)
        background.gaussian.set_model(mean[:n], model.noise[:n].sqrt(), vectors, values)
        background.start(vae.likelihood, raw)


def _linearised(likelihood: Likelihood, raw: Tensor, x: Tensor) -> tuple[Tensor, Noise]:
    """A Gaussian view of `x` around its mean, centred, with the noise that is nearest to a wished one."""
    split = likelihood.split()
    views, noises = zip(*(_view(part, raw[: part.n_raw, own], x[:, own]) for part, own in split), strict=True)

    def nearest(noise: Tensor) -> Tensor:
        return torch.cat([near(noise[own]) for near, (_, own) in zip(noises, split, strict=True)])

    return torch.cat(views, 1), nearest


def _view(likelihood: Likelihood, raw: Tensor, x: Tensor) -> tuple[Tensor, Noise]:
    """The same for the features of one likelihood."""
    if likelihood.is_normal:
        return x - x.mean(0), likelihood.nearest_noise
    scores, curvature = _scores(likelihood, raw, x)
    view = scores.sub_(scores.mean(0)).div_(curvature.to(x.dtype)).clamp_(-_FARTHEST, _FARTHEST)
    return view, lambda noise: 1 / curvature
