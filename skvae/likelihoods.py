"""Likelihoods p(x | z): what the decoder's raw outputs mean; LIKELIHOODS names them.

Shapes: ``raw`` is (..., n_raw, n_features), ``x`` is (..., n_features), a log-probability is (...,).
Link and log-density are written together, so that each is stable for raw outputs of any size.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_non_negative
from torch import Tensor, nn
from torch.nn import functional as F

from ._component import Component

_LOG_2PI = math.log(2 * math.pi)


class Likelihood(Component, ABC):
    """Base of all likelihoods, and of your own: write `log_prob`, `mean` and `sample`.

    Attributes
    ----------
    n_raw : int
        Raw decoder outputs per feature.
    standardize : bool
        Whether the family is closed under shift and scale, so that the model may train on standardised features. `x`
        and the means and samples are then in standardised units.
    non_negative : bool
        Whether negative values are outside the support.
    min_curvature : float
        What the linear start takes for the second derivative of -log p(x | raw) at least. At the mean of a rare feature
        the derivative is small, but it grows as soon as the feature varies with z.
    """

    n_raw = 1
    standardize = False
    non_negative = False
    min_curvature = 0.1

    def check(self, X: np.ndarray, whom: str) -> None:
        """Raise ValueError, naming `whom`, where `X` (n_samples, n_features) leaves the support."""

    def build(self, n_features: int) -> None:
        """Create the parameters and buffers shared by all rows."""

    def start(self, x: Tensor) -> Tensor:
        """Set the parameters shared by all rows from `x` and return the raw outputs at its mean.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            The training data.

        Returns
        -------
        raw : Tensor of shape (n_raw, n_features)
            Where the decoder starts: its output bias.
        """
        return x.new_zeros(self.n_raw, x.shape[-1])

    def inputs(self, x: Tensor) -> Tensor:
        """What the encoder sees of `x`: (..., n_features) -> (..., n_features)."""
        return x

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What a batch `x` (batch, n_features) of X is for a step of training, or for validation: `x` itself."""
        return x

    @abstractmethod
    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each row, in nats, summed over the features: (...,)."""

    def gradient(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` summed over all rows, and the gradient of minus its mean in `raw`, (batch, n_raw, n_features).

        That in the parameters shared by all rows is left in their ``grad``.
        """
        self.zero_grad()
        with torch.enable_grad():
            raw = raw.detach().requires_grad_()
            log_prob = self.log_prob(raw, x)
            log_prob.mean().neg().backward()
        assert raw.grad is not None
        return log_prob.detach().sum(), raw.grad

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:
        """E[x | z]: (..., n_features)."""

    @abstractmethod
    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x from p(x | z): (..., n_features)."""


def _uniform_like(raw: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(raw.shape, generator=generator, device=generator.device).to(raw.device)


def _normal_like(raw: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(raw.shape, generator=generator, device=generator.device).to(raw.device)


def _bounded_log(raw: Tensor) -> Tensor:
    """The logarithm of a link that is exp up to exp(5) and linear above, so that no raw output overflows."""
    low = raw.clamp(max=5.0)
    return low + torch.log1p(raw - low)


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
        ``((kurtosis - 1) / n_samples) ** 2``, if that is larger.
    """

    floor: Tensor

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "noise": [StrOptions({"row", "feature", "shared"})],
        "noise_floor": [Interval(Real, 0, None, closed="neither")],
    }

    standardize = True

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
            self._raise_floor(x)
        return super().start(x)

    def _raise_floor(self, x: Tensor) -> None:
        squares = [(block.square().sum(0), block.square().square().sum(0)) for block in x.split(4096)]
        variance, fourth = (sum(terms) / len(x) for terms in zip(*squares, strict=True))
        relative_variance = (fourth / variance.clamp(min=1e-12).square() - 1) / len(x)
        self.floor.copy_((variance * relative_variance.square()).clamp(min=self.noise_floor))

    def nearest_noise(self, variance: Tensor) -> Tensor:
        """The noise variance (n_features,) nearest to `variance` that the model can have for every row."""
        if self.noise == "shared":
            variance = variance.mean(0, keepdim=True).expand_as(variance)
        return torch.maximum(variance, 1.01 * self.floor)

    def set_noise(self, variance: Tensor, raw: Tensor) -> None:
        """Make `variance` (n_features,), in standardised units, the noise at z = 0; `raw` is the decoder's bias."""
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
        excess = (log_noise - 5).relu() + 1  # the scale goes on linearly, so that no raw output overflows
        return (2 * log_noise.clamp(max=5)).exp() * excess, excess

    def _loc_variance(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        half_slope, excess = self._free_noise(raw)
        return raw[..., 0, :], half_slope * excess + self.floor

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        loc, variance = self._loc_variance(raw)
        log_norm = (variance.log() + _LOG_2PI).expand(x.shape[-1:] if self.noise != "row" else loc.shape).sum(-1)
        return -0.5 * (((x - loc).square() / variance).sum(-1) + log_norm)

    def gradient(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        half_slope, excess = self._free_noise(raw)
        variance = (half_slope * excess + self.floor).expand_as(x)
        error = raw[:, 0] - x
        slope = error / variance  # of -log_prob in the mean
        log_prob = -0.5 * (torch.addcmul(variance.log(), slope, error).sum() + x.numel() * _LOG_2PI)
        noise_slope = variance.reciprocal().addcmul_(slope, slope, value=-1).mul_(half_slope)
        if self.noise == "row":
            return log_prob, torch.stack([slope, noise_slope], dim=1).mul_(1 / len(x))
        self.log_noise.grad = noise_slope.sum_to_size(self.log_noise.shape) / len(x)
        return log_prob, slope.mul_(1 / len(x)).unsqueeze(1)

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., 0, :]

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        loc, variance = self._loc_variance(raw)
        return loc + variance.sqrt() * _normal_like(loc, generator)


def _check_unit_interval(X: np.ndarray, whom: str) -> None:
    check_non_negative(X, whom)
    if np.max(X).astype(np.float32) > 1:  # float32: a MinMaxScaler's 1 + 2e-16 is a one
        raise ValueError(
            f"Values above 1 in data passed to {whom}. Scale X to [0, 1], for instance with "
            "sklearn.preprocessing.MinMaxScaler."
        )


class Bernoulli(Likelihood):
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

    non_negative = True

    def __init__(self, binarize: bool = False) -> None:
        super().__init__()
        self.binarize = binarize
        self.check_params()

    def check(self, X: np.ndarray, whom: str) -> None:
        _check_unit_interval(X, whom)

    def start(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).clamp(1e-3, 1 - 1e-3).logit()

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return (_uniform_like(x, generator) < x).to(x.dtype) if self.binarize else x

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits = raw[..., 0, :]
        return -F.softplus(logits).addcmul_(x, logits, value=-1).sum(-1)

    def gradient(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = raw[:, 0]
        log_prob = torch.dot(x.flatten(), logits.flatten()) - F.softplus(logits).sum()
        return log_prob, logits.sigmoid().sub_(x).mul_(1 / len(x)).unsqueeze(1)

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., 0, :].sigmoid()

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean(raw)
        return (_uniform_like(mean, generator) < mean).to(mean.dtype)


class _ContinuousBernoulliLogProb(torch.autograd.Function):
    """``x * l - log_normalizer(l)`` of each row. Its gradient is x less the mean: autograd would go through a dozen
    tensors of the size of the logits, and lose the digits that cancel near 0."""

    @staticmethod
    def forward(logits: Tensor, x: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        size = logits.abs().clamp_(min=1e-30)  # the normalizer (exp(l) - 1) / l, whatever the sign of l
        log_normalizer = (size.neg().expm1_().neg_() / size).log_().add_(logits.relu())
        return (x * logits).sub_(log_normalizer).sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.mean = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        logits, x = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        grad_x = (grad * logits).sum_to_size(x.shape) if ctx.needs_input_grad[1] else None
        return ((x - ctx.mean(logits.unsqueeze(-2))) * grad).sum_to_size(logits.shape), grad_x, None


class ContinuousBernoulli(Likelihood):
    """Density on the unit interval (Loaiza-Ganem & Cunningham, 2019); the raw output is the logit.

    Domain: [0, 1]. Density ``C(l) * exp(l * x) / (1 + exp(l))`` with ``C(l) = l / tanh(l / 2)`` (their equation 7,
    written in the logit l). Its mean is ``1 / (1 - exp(-l)) - 1 / l``.
    """

    non_negative = True
    min_curvature = 0.02  # at the middle of the interval it is 1 / 12
    _SERIES = 0.3  # below this |logit| the mean's closed form cancels, above it the series to l^5 is too short

    def check(self, X: np.ndarray, whom: str) -> None:
        _check_unit_interval(X, whom)

    def start(self, x: Tensor) -> Tensor:
        target = x.mean(0, keepdim=True).double().clamp(1e-2, 1 - 1e-2)
        low, high = torch.full_like(target, -200), torch.full_like(target, 200)
        for _ in range(60):  # bisection: the mean grows with the logit
            middle = (low + high) / 2
            below = self.mean(middle[..., None, :]) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low.to(x.dtype)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return _ContinuousBernoulliLogProb.apply(raw[..., 0, :], x, self.mean)

    def gradient(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.mean(raw).sub_(x).mul_(1 / len(x)).unsqueeze(1)
        return self.log_prob(raw, x).sum(), slope

    def mean(self, raw: Tensor) -> Tensor:
        logits = raw[..., 0, :]
        small = logits.abs() < self._SERIES
        near = torch.where(small, logits, 0)
        square = near.square()
        series = 0.5 + near * (1 / 12 - square * (1 / 720 - square * (1 / 30240)))
        far = torch.where(small, 1, logits)
        grown = torch.expm1(-far.clamp(min=-80))  # without overflow, which would make the second derivative NaN
        return torch.where(small, series, -1 / grown - 1 / far)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        logits = raw[..., 0, :]
        u = _uniform_like(logits, generator)
        size = logits.abs().clamp(min=1e-4)  # the inverse CDF below 1e-4 is u to float32's precision
        draw = -torch.log1p(u * torch.expm1(-size)) / size  # decreasing density
        return torch.where(logits > 0, 1 - draw, draw).clamp(0, 1)


class _Counts(Likelihood):
    """What the count likelihoods share: rate = typical count of the feature x link(raw)."""

    non_negative = True
    min_curvature = 0.5

    def check(self, X: np.ndarray, whom: str) -> None:
        check_non_negative(X, whom)

    log_mean: Tensor
    inputs_mean: Tensor
    inputs_scale: Tensor

    def build(self, n_features: int) -> None:
        for name in ("log_mean", "inputs_mean", "inputs_scale"):
            self.register_buffer(name, torch.ones(n_features))

    def start(self, x: Tensor) -> Tensor:
        inputs = x.log1p()
        self.log_mean.copy_(x.mean(0).clamp(min=0.5 / len(x)).log())  # a column of zeros: a rate that explains it
        self.inputs_mean.copy_(inputs.mean(0))
        self.inputs_scale.copy_(inputs.std(0, correction=0).clamp(min=1e-3))
        return super().start(x)

    def inputs(self, x: Tensor) -> Tensor:
        return (x.log1p() - self.inputs_mean) / self.inputs_scale

    def _log_rate(self, raw: Tensor) -> Tensor:
        return _bounded_log(raw[..., 0, :]) + self.log_mean

    def mean(self, raw: Tensor) -> Tensor:
        return self._log_rate(raw).exp()


class Poisson(_Counts):
    """Counts whose variance is their mean; the raw output is the logarithm of rate / mean count of the feature.

    Domain: non-negative integers. Non-negative reals are accepted, as in PoissonRegressor, with the formula's value as
    their quasi-likelihood. Above a ratio of exp(5) the rate goes on linearly.
    """

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        log_rate = self._log_rate(raw)
        return (x * log_rate - log_rate.exp() - torch.lgamma(x + 1)).sum(-1)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(self.mean(raw).to(generator.device), generator=generator).to(raw.device)


class NegativeBinomial(_Counts):
    """Counts with variance ``mean + mean^2 / total_count``, `total_count` learned for each feature.

    Domain and link as for `Poisson`.
    """

    def build(self, n_features: int) -> None:
        super().build(n_features)
        self.log_total_count = nn.Parameter(torch.zeros(n_features))

    def start(self, x: Tensor) -> Tensor:
        mean, variance = x.mean(0), x.var(0, correction=0)
        total_count = (mean.square() / (variance - mean).clamp(min=1e-6)).clamp(0.1, 100)  # method of moments
        self.log_total_count.data.copy_(total_count.log())
        return super().start(x)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        log_rate, log_count = self._log_rate(raw), self.log_total_count
        log_sum, count = torch.logaddexp(log_rate, log_count), self.log_total_count.exp()
        log_choose = torch.lgamma(x + count) - torch.lgamma(count) - torch.lgamma(x + 1)
        return (log_choose + count * (log_count - log_sum) + x * (log_rate - log_sum)).sum(-1)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        count = self.log_total_count.exp().expand_as(raw[..., 0, :]).to(generator.device)
        gamma = torch._standard_gamma(count, generator=generator)  # a Poisson whose rate is gamma-distributed
        rate = gamma / count * self.mean(raw).to(generator.device)
        return torch.poisson(rate, generator=generator).to(raw.device)


LIKELIHOODS = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
}
