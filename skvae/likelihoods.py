"""Likelihoods p(x | z): what the decoder's raw outputs mean; LIKELIHOODS names them.

Shapes: ``raw`` is (..., n_raw, n_features), ``x`` and a log-probability are (..., n_features): the VAE takes the sum.
Link and log-density are written together, so that each is stable for raw outputs of any size.
"""

from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn
from torch.nn import functional as F

from ._model.counts import LOG_2PI, bounded_log, draw_counts, log1p, row_sums, stirling_error, stirling_slope
from ._model.likelihood import Likelihood
from ._model.sums import blocks_of, moments, total
from ._model.support import check_non_negative, check_summable, check_unit_interval, nearest_in_unit_interval
from ._system.device import widest
from ._system.random import normal_like, uniform_like

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
]

_OVER_FLOOR = 1.01  # where noise starts at least
_N_SIZES = 1000  # quantiles of the rows' sizes that are kept


class Gaussian(Likelihood):
    """Normal distribution with a learned noise scale, for real-valued features.

    Domain: real numbers. Raw outputs: the mean, in standardised units, and with ``noise="row"`` the logarithm of the
    free part of the noise scale (linear above exp(5)). Noise variance: ``floor + exp(2 * raw)``.

    Parameters
    ----------
    noise : {"row", "feature", "shared"}, default="row"
        A noise scale for each row and feature, decoded from z; one per feature (as FactorAnalysis); or one for all
        features (as PCA; sigma-VAE, Rybkin et al., 2021).
    noise_floor : float, default=1e-3
        Least noise variance, as a fraction of a feature's variance. It keeps constant and duplicated columns from
        being a singularity of the density. Where the variance itself is hardly known, as that of a feature which is
        constant but for a few rows, the floor is the squared relative variance of its estimate,
        ``((kurtosis - 1) / n_samples) ** 2``, if that is larger; but no more than the share of the variance that is
        noise to the linear model which training starts from, since other features may tell what a feature's own
        variance does not.
    """

    floor: Tensor
    doubt: Tensor | None = None  # the variance that single features leave unknown, until the floor is settled

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "noise": [StrOptions({"row", "feature", "shared"})],
        "noise_floor": [Interval(Real, 0, None, closed="neither")],
    }

    standardize = True
    is_normal = True

    def __init__(self, noise: str = "row", noise_floor: float = 1e-3) -> None:
        super().__init__()
        self.noise = noise
        self.noise_floor = noise_floor
        self.check_params()

    @property
    def n_raw(self) -> int:  # type: ignore[override]  # a search sets `noise` after __init__
        return 2 if self.noise == "row" else 1

    def build(self, n_features: int) -> None:
        self.register_buffer("floor", torch.full((n_features,), float(self.noise_floor)))
        if self.noise != "row":
            self.log_noise = nn.Parameter(torch.zeros(1 if self.noise == "shared" else n_features))

    def start(self, x: Tensor) -> Tensor:
        if self.noise != "shared":  # which no single feature determines
            self.doubt = self._doubt(x)
        return super().start(x)

    def _doubt(self, x: Tensor) -> Tensor:
        blocks = (block.double().square() for block in blocks_of(x))
        squares = [(square.sum(0), square.square().sum(0)) for square in blocks]
        variance, fourth = (sum(terms) / len(x) for terms in zip(*squares, strict=True))
        relative_variance = (fourth / variance.clamp(min=1e-12).square() - 1) / len(x)
        return variance * relative_variance.square()

    def settle(self, share: Tensor | None = None) -> None:
        if self.doubt is not None:
            doubt = self.doubt if share is None else torch.minimum(self.doubt, share / _OVER_FLOOR)  # of unit variance
            self.floor.copy_(doubt.clamp(min=self.noise_floor))
            self.doubt = None

    def nearest_noise(self, variance: Tensor) -> Tensor:
        if self.noise == "shared":
            variance = variance.mean(0, keepdim=True).expand_as(variance)
        return torch.maximum(variance, _OVER_FLOOR * self.floor)

    def set_noise(self, variance: Tensor, raw: Tensor) -> None:
        log_noise = 0.5 * (self.nearest_noise(variance) - self.floor).log()
        if self.noise == "row":
            raw[1] = log_noise
        else:
            self.log_noise.data.copy_(log_noise[: len(self.log_noise)])

    def _free_noise(self, raw: Tensor) -> tuple[Tensor, Tensor | float]:
        """Two factors of the free part of the noise variance; the first is half its slope in the raw output."""
        if self.noise != "row":
            return (2 * self.log_noise).exp(), 1.0
        log_noise = raw[..., 1, :]
        excess = (log_noise - 4).clamp(min=1)  # the scale goes on linearly, so that no raw output overflows
        return (2 * log_noise.clamp(max=5)).exp() * excess, excess

    def _loc_variance(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        half_slope, excess = self._free_noise(raw)
        return raw[..., 0, :], half_slope * excess + self.floor

    def balance(self, raw: Tensor) -> Tensor | None:
        """Weight the mean's gradient by the noise scale, over its mean in the batch, where each row has a noise.

        Where the noise is small the bound pays most for the mean, and the latent space would be spent on the features
        that are nearly constant (beta-NLL with beta = 0.5; Seitzer et al., 2022, equation 5).
        """
        if self.noise != "row":
            return None
        scale = self._loc_variance(raw.detach())[1].sqrt()
        scale = scale / scale.mean((-2, -1), keepdim=True)
        return torch.stack([scale, torch.ones_like(scale)], -2)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        loc, variance = self._loc_variance(raw)
        return -0.5 * ((x - loc).square() / variance + (variance.log() + LOG_2PI))

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        half_slope, excess = self._free_noise(raw)
        variance = (half_slope * excess + self.floor).expand_as(x)
        error, precision = raw[..., 0, :] - x, variance.reciprocal()
        slope = error * precision  # of -log_prob in the mean
        log_prob = torch.addcmul(variance[0].log() + LOG_2PI, slope[0], error[0]).mul_(-0.5)
        noise_slope = precision.addcmul_(slope, slope, value=-1).mul_(half_slope)
        if self.noise == "row":
            return log_prob, torch.stack([slope, noise_slope], dim=-2).mul_(weight.unsqueeze(-2))
        assert self.log_noise.grad is not None
        self.log_noise.grad.copy_(noise_slope.mul_(weight).sum_to_size(self.log_noise.shape))
        return log_prob, slope.mul_(weight).unsqueeze(-2)

    def expansion(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, variance = self._loc_variance(raw)
        variance = variance.expand_as(loc)
        return (x - loc) / variance, 1 / variance

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., 0, :]

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        loc, variance = self._loc_variance(raw)
        return loc + variance.sqrt() * torch.special.ndtri(level)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        loc, variance = self._loc_variance(raw)
        return loc + variance.sqrt() * normal_like(loc, generator)


class _UnitInterval(Likelihood):
    """Base of the likelihoods of values in [0, 1]."""

    non_negative = True

    def check(self, X: np.ndarray, whom: str) -> None:
        check_unit_interval(X, whom)

    def nearest(self, X: np.ndarray) -> np.ndarray:
        return nearest_in_unit_interval(X)


class Bernoulli(_UnitInterval):
    """Binary features; the raw output is the logit.

    Domain: {0, 1}. Grey values in [0, 1] are accepted, with the cross-entropy as their pseudo-likelihood: useful for
    images, but not a density, so do not compare its score with another likelihood's.

    Parameters
    ----------
    binarize : bool, default=False
        Whether training draws the bits of each batch anew from its grey values, 1 with the grey value as probability
        (dynamic binarization; Burda et al., 2016, section 5). It augments images, which a large network would otherwise
        learn by heart. Scores do not draw: binarize the rows before, for a likelihood of bits.

    References
    ----------
    Burda, Grosse & Salakhutdinov (2016). "Importance weighted autoencoders". ICLR.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Bernoulli
    >>> VAETransformer(likelihood=Bernoulli(binarize=True))
    VAETransformer(likelihood=Bernoulli(binarize=True))
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {"binarize": ["boolean"]}

    def __init__(self, binarize: bool = False) -> None:
        super().__init__()
        self.binarize = binarize
        self.check_params()

    def start(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True, dtype=torch.float64).clamp(1e-3, 1 - 1e-3).logit().to(x.dtype)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return (uniform_like(x, generator) < x).to(x.dtype) if self.binarize else x

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits = raw[..., 0, :]
        return F.softplus(logits).addcmul_(x, logits, value=-1).neg_()

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = self.log_prob(raw[0], x[0])
        return log_prob, raw[..., 0, :].sigmoid_().sub_(x).mul_(weight).unsqueeze(-2)

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., 0, :].sigmoid()

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean(raw)
        return (uniform_like(mean, generator) < mean).to(mean.dtype)


class _ContinuousBernoulliLogProb(torch.autograd.Function):
    """``x * l - log_normalizer(l)`` of each feature. Its gradient is x less the mean: autograd would go through a dozen
    tensors of the size of the logits, and lose the digits that cancel near 0."""

    @staticmethod
    def forward(logits: Tensor, x: Tensor, of: "ContinuousBernoulli") -> Tensor:
        logits = of.bounded(logits)
        size = logits.abs().clamp_(min=1e-30)  # the normalizer (exp(l) - 1) / l, whatever the sign of l
        log_normalizer = (size.neg().expm1_().neg_() / size).log_().add_(logits.relu())
        return (x * logits).sub_(log_normalizer)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.of = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        logits, x = ctx.saved_tensors
        grad_x = (grad * ctx.of.bounded(logits)).sum_to_size(x.shape) if ctx.needs_input_grad[1] else None
        return (ctx.of.slope(logits, x) * grad).sum_to_size(logits.shape), grad_x, None


class ContinuousBernoulli(_UnitInterval):
    """Density on the unit interval (Loaiza-Ganem & Cunningham, 2019); the raw output is the logit.

    Domain: [0, 1]. Density ``C(l) * exp(l * x) / (1 + exp(l))`` with ``C(l) = l / tanh(l / 2)`` (their equation 7,
    written in the logit l). Its mean is ``1 / (1 - exp(-l)) - 1 / l``. What rounding puts a little outside the interval
    counts as 0 or 1.

    Parameters
    ----------
    noise_floor : float, default=1e-4
        Least variance of the density. Far from the middle the variance is ``1 / l ** 2``, so raw outputs beyond
        ``|l| = noise_floor ** -0.5`` stand for that l; there the gradient is 0 unless it leads back. So pixels that
        are always black are no singularity: the density is at most ``noise_floor ** -0.5``.
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {"noise_floor": [Interval(Real, 0, None, closed="neither")]}

    min_curvature = 0.02  # at the middle of the interval it is 1 / 12
    _SERIES = 0.3  # below this |logit| the mean's closed form cancels, above it the series to l^5 is too short

    def __init__(self, noise_floor: float = 1e-4) -> None:
        super().__init__()
        self.noise_floor = noise_floor
        self.check_params()

    def start(self, x: Tensor) -> Tensor:
        target = x.mean(0, keepdim=True, dtype=torch.float64)
        low, high = (torch.full_like(target, sign * self._largest) for sign in (-1, 1))
        for _ in range(60):  # bisection: the mean grows with the logit
            middle = (low + high) / 2
            below = self.mean(middle[..., None, :]) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low.to(x.dtype)

    @property
    def _largest(self) -> float:
        return self.noise_floor**-0.5

    def bounded(self, logits: Tensor) -> Tensor:
        """The logits that the raw outputs stand for, (..., n_features) both."""
        return logits.clamp(-self._largest, self._largest)

    def slope(self, logits: Tensor, x: Tensor) -> Tensor:
        """Slope of the log-density in each raw output, (..., n_features); beyond the bound, as far as it leads back."""
        slope = x - self.mean(logits.unsqueeze(-2))
        return slope.masked_fill((logits.abs() > self._largest) & (slope * logits > 0), 0)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return _ContinuousBernoulliLogProb.apply(raw[..., 0, :], x, self)

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.slope(raw[..., 0, :], x).mul_(-weight).unsqueeze(-2)
        return self.log_prob(raw[0], x[0]), slope

    def mean(self, raw: Tensor) -> Tensor:
        logits = self.bounded(raw[..., 0, :])
        small = logits.abs() < self._SERIES
        near = torch.where(small, logits, 0)
        square = near.square()
        series = 0.5 + near * (1 / 12 - square * (1 / 720 - square * (1 / 30240)))
        far = torch.where(small, 1, logits)
        grown = torch.expm1(-far.clamp(min=-80))  # without overflow, which would make the second derivative NaN
        return torch.where(small, series, -1 / grown - 1 / far)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        logits = self.bounded(raw[..., 0, :])
        u = uniform_like(logits, generator)
        size = logits.abs().clamp(min=1e-30)  # whatever is above 0
        draw = -torch.log1p(u * torch.expm1(-size)) / size  # decreasing density
        return torch.where(logits > 0, 1 - draw, draw).clamp(0, 1)


class _Counts(Likelihood):
    """Base of count likelihoods: rate = typical count of the feature x link(raw) x size of the row.

    The size, where the rate has one, is the row's sum over that of the mean row.
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {"size_factor": [StrOptions({"sum"}), None]}

    non_negative = True
    min_curvature = 0.5

    log_mean: Tensor
    inputs_mean: Tensor
    inputs_scale: Tensor
    mean_sum: Tensor
    sizes: Tensor

    def __init__(self, size_factor: str | None = None) -> None:
        super().__init__()
        self.size_factor = size_factor
        self.check_params()

    @property
    def allow_nan(self) -> bool:  # type: ignore[override]  # a search sets `size_factor` after __init__
        return self.size_factor is None

    def check(self, X: np.ndarray, whom: str) -> None:
        check_non_negative(X, whom)
        if self.size_factor is not None:
            check_summable(X, f"{whom} with size_factor={self.size_factor!r}")

    def build(self, n_features: int) -> None:
        for name in ("log_mean", "inputs_mean", "inputs_scale"):
            self.register_buffer(name, torch.ones(n_features))
        if self.size_factor is not None:
            self.register_buffer("mean_sum", torch.ones(1))
            self.register_buffer("sizes", torch.ones(_N_SIZES))

    def start(self, x: Tensor) -> Tensor:
        if self.size_factor is not None:
            self._start_sizes(x)
        mean, _ = moments(x)
        self.log_mean.copy_(mean.clamp(min=0.5 / len(x)).log())  # a column of zeros: a rate that explains it
        inputs_mean, inputs_variance = moments(self._at_mean_size(x).log1p())
        self.inputs_mean.copy_(inputs_mean)
        self.inputs_scale.copy_(inputs_variance.sqrt().clamp(min=1e-3))
        return super().start(x)

    def _start_sizes(self, x: Tensor) -> None:
        """Take note of the rows' sizes, by quantiles which stand for all of them."""
        sums = row_sums(x)
        self.mean_sum.copy_(sums.mean().clamp(min=0.5 / len(x)))
        levels = (np.arange(_N_SIZES) + 0.5) / _N_SIZES
        self.sizes.copy_(torch.from_numpy(np.quantile(self._size(x).cpu().numpy(), levels)))

    def _size(self, x: Tensor) -> Tensor:
        """Each row's size (..., 1); that of a row of zeros is not quite 0, so that its logarithm is finite."""
        return (row_sums(x) / self.mean_sum).clamp(1e-20, 1e30).to(x.dtype)

    def at_start(self, x: Tensor) -> Tensor | None:
        return None if self.size_factor is None else self._typical() * self._size(x)

    def _at_mean_size(self, x: Tensor) -> Tensor:
        return x if self.size_factor is None else x / self._size(x)

    def inputs(self, x: Tensor) -> Tensor:
        return (self._at_mean_size(x).log1p() - self.inputs_mean) / self.inputs_scale

    def _log_ratio(self, raw: Tensor, x: Tensor) -> Tensor:
        """log(rate / n) at n = x + 1, small where it is: a difference of logarithms would lose that in float32."""
        relative = (x + 1) / self._typical()
        if self.size_factor is not None:
            relative = relative / self._size(x)
        return bounded_log(raw[..., 0, :]) - relative.log()

    def _link_slope(self, raw: Tensor) -> Tensor:
        """Slope of the log-rate in the raw output."""
        return (raw[..., 0, :] - 4).clamp_(min=1).reciprocal_()

    def _typical(self) -> Tensor:
        return widest(self.log_mean).exp().to(self.log_mean.dtype)

    def mean(self, raw: Tensor) -> Tensor:
        return bounded_log(raw[..., 0, :]).exp() * self._typical()

    def _drawn_rate(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Rates of rows of the mean size, or of sizes drawn from those of the training rows."""
        rate = self.mean(raw)
        if self.size_factor is None:
            return rate
        drawn = torch.randint(_N_SIZES, (*rate.shape[:-1], 1), generator=generator, device=generator.device)
        return rate * self.sizes[drawn.to(rate.device)]


class Poisson(_Counts):
    """Counts whose variance is their mean; the raw output is the logarithm of rate / mean count of the feature.

    Domain: non-negative integers. Non-negative reals are accepted, as in PoissonRegressor, with the formula's value as
    their quasi-likelihood. Above a ratio of exp(5) the rate goes on linearly. The formula is one without differences of
    large numbers (Loader, 2000).

    Parameters
    ----------
    size_factor : {"sum"} or None, default=None
        With "sum" the rates are in proportion to the row's sum, which latent features then need not explain: for long
        and short documents, deep and shallow sequencing (Lopez et al., 2018, with the size that is observed). The
        score is that of the row given its sum. It is higher for that alone: it compares with other models' that have a
        size factor, and not with scores without. The encoder sees each row at the mean sum; `inverse_transform` and
        `sample` return means for rows of that sum, and ``sample(noise=True)`` draws rows as large as the training rows
        are. A row of zeros is certain, given its sum. Rows with missing cells are refused.

    References
    ----------
    Loader (2000). "Fast and accurate computation of binomial probabilities".
    Lopez, Regier, Cole, Jordan & Yosef (2018). "Deep generative modeling for single-cell transcriptomics". Nature
    Methods 15.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Poisson
    >>> VAETransformer(likelihood=Poisson(size_factor="sum"))
    VAETransformer(likelihood=Poisson(size_factor='sum'))
    """

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        ratio = self._log_ratio(raw, x)
        return self._log_prob(x + 1, ratio, torch.expm1(ratio))

    @staticmethod
    def _log_prob(n: Tensor, ratio: Tensor, excess: Tensor) -> Tensor:
        """At ``n = count + 1``, log(rate / n) and rate / n - 1."""
        constant = stirling_error(n).add_(n.log(), alpha=0.5).add_(0.5 * LOG_2PI)
        return ((ratio - excess) * n).sub_(ratio).sub_(constant)

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        n, ratio = x + 1, self._log_ratio(raw, x)
        excess = torch.expm1(ratio)
        log_prob = self._log_prob(n[0], ratio[0], excess[0])
        slope = excess.mul_(n).add_(1)  # the rate less the count
        return log_prob, slope.mul_(self._link_slope(raw)).mul_(weight).unsqueeze(-2)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return draw_counts(self._drawn_rate(raw, generator), generator)


class NegativeBinomial(_Counts):
    """Counts with variance ``mean + mean^2 / total_count``, `total_count` learned for each feature.

    Domain and link as for `Poisson`.

    Parameters
    ----------
    size_factor : {"sum"} or None, default=None
        As for `Poisson`: whether rates are in proportion to the row's sum. The dispersion is then that of counts at
        the same size.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import NegativeBinomial
    >>> VAETransformer(likelihood=NegativeBinomial(size_factor="sum"))
    VAETransformer(likelihood=NegativeBinomial(size_factor='sum'))
    """

    def build(self, n_features: int) -> None:
        super().build(n_features)
        self.log_total_count = nn.Parameter(torch.zeros(n_features))

    def start(self, x: Tensor) -> Tensor:
        raw = super().start(x)
        mean, variance = moments(x)
        square = mean.square()
        if self.size_factor is not None:
            size = self._size(x).double()
            blocks = blocks_of(x)
            pairs = zip(blocks, size.split(len(blocks[0])), strict=True)
            variance = total((rows - sizes * mean).square().sum(0) for rows, sizes in pairs) / len(x)
            square = square * size.square().mean()
        total_count = square / (variance - mean).clamp(min=1e-6)  # method of moments
        # at most where the variance is within 1 % of Poisson's
        self.log_total_count.data.copy_(total_count.clamp(min=0.1).minimum(100 * mean.clamp(min=1)).log())
        return raw

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._log_prob(x, *self._parts(raw, x))

    def _parts(self, raw: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Total count; n = x + 1; log(rate / n); rate / n - 1; total count + rate; log of that over total count + n."""
        count, n = self.log_total_count.exp(), x + 1
        ratio = self._log_ratio(raw, x)
        excess, both = torch.expm1(ratio), count + n * ratio.exp()
        lower = log1p(n * excess / (count + n), lambda: (both / (count + n)).log())
        return count, n, ratio, excess, both, lower

    @staticmethod
    def _log_prob(
        x: Tensor, count: Tensor, n: Tensor, ratio: Tensor, excess: Tensor, both: Tensor, lower: Tensor
    ) -> Tensor:
        total, less = n + count, x + count  # they differ by one
        constant = 0.5 * ((total / less * (count / less) / n).log() - LOG_2PI)
        errors = stirling_error(total) - stirling_error(count) - stirling_error(n)
        upper = log1p(count * excess / both, lambda: ratio - lower)  # log of rate / both, less that at a rate of n
        return (x * upper).sub_(count * lower).add_(constant + errors)

    @torch.no_grad()
    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        count, n, ratio, excess, both, lower = self._parts(raw, x)
        log_prob = self._log_prob(x, count, n, ratio, excess, both, lower)[0]
        total, less, excess = n + count, x + count, excess * n
        growth = 0.5 / total + 0.5 / count - 1 / less + stirling_slope(total) - stirling_slope(count)
        growth += less / both * (excess / total) - lower
        assert self.log_total_count.grad is not None
        self.log_total_count.grad.copy_(growth.mul_(count).mul_(-weight).sum_to_size(self.log_total_count.shape))
        slope = (excess + 1) * (count / both)
        return log_prob, slope.mul_(self._link_slope(raw)).mul_(weight).unsqueeze(-2)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        count = widest(self.log_total_count.exp().expand_as(raw[..., 0, :])).to(generator.device)
        gamma = torch._standard_gamma(count, generator=generator)  # a Poisson whose rate is gamma-distributed
        return draw_counts((gamma / count).to(raw.device) * self._drawn_rate(raw, generator), generator)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
}
