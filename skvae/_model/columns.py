"""Likelihoods of tables with columns of several kinds: categories, levels in an order, and all kinds side by side."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._data.blocks import location_scale
from .._system.random import uniform_like
from .gaussian import LinearGaussian
from .likelihood import Likelihood

_LEAST_LOG_SCALE, _MOST_LOG_SCALE = -3.0, 2.0
_TINY = 1e-7


class Categorical(Likelihood):
    """Categories, each level a feature that is 0 or 1; raw outputs are logits, of which those of a column are softmax.

    The log-probability of a level is that of the category where it is 1, and 0 elsewhere: their sum over a column's
    levels is that of its category.

    Parameters
    ----------
    sizes : list of int
        Number of levels of each column.
    """

    columns: Tensor  # that each feature belongs to: (n_features,)

    def __init__(self, sizes: Sequence[int] = (2,)) -> None:
        super().__init__()
        self.sizes = sizes

    def build(self, n_features: int) -> None:
        columns = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(list(self.sizes)))
        self.register_buffer("columns", columns, persistent=False)  # parameters say it

    def _of_column(self, values: Tensor, function: str) -> Tensor:
        """For each feature the sum ("sum") or the largest ("amax") of its column's values."""
        index = self.columns.expand(values.shape)
        found = values.new_zeros(*values.shape[:-1], len(self.sizes))
        return found.scatter_reduce(-1, index, values, function, include_self=False).gather(-1, index)

    def _log_softmax(self, logits: Tensor) -> Tensor:
        logits = logits - self._of_column(logits.detach(), "amax")
        return logits - self._of_column(logits.exp(), "sum").log()

    def column_of(self, n_features: int) -> Tensor:
        return self.columns

    def start(self, x: Tensor) -> Tensor:
        return ((x.sum(0, keepdim=True) + 0.5) / (len(x) + 1)).log()

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._log_softmax(raw[..., 0, :]) * x

    def expansion(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(raw)
        return x - mean, mean * (1 - mean) + torch.zeros_like(x)

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = self._log_softmax(raw[..., 0, :])
        return (log_prob * x)[0], log_prob.exp().sub_(x).mul_(weight).unsqueeze(-2)

    def mean(self, raw: Tensor) -> Tensor:
        return self._log_softmax(raw[..., 0, :]).exp()

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        logits = self._log_softmax(raw[..., 0, :])
        noisy = logits - (-uniform_like(logits, generator).clamp(_TINY, 1 - _TINY).log()).log()  # Gumbel's
        return (noisy == self._of_column(noisy, "amax")).to(logits.dtype)


class Ordinal(Likelihood):
    """Levels 0, 1, ... in an order: the location-scale cumulative logit model (McCullagh, 1980, section 6.1).

    A logistic variable with the location and scale that the raw outputs say falls between two of the fixed cuts of its
    column; these are the logits of the levels' cumulative shares, so that raw outputs of 0 give the shares themselves.

    Parameters
    ----------
    sizes : list of int
        Number of levels of each column.
    """

    cuts: Tensor
    scores: Tensor

    n_raw = 2

    def __init__(self, sizes: Sequence[int] = (2,)) -> None:
        super().__init__()
        self.sizes = sizes

    def build(self, n_features: int) -> None:
        largest = max(self.sizes)
        self.register_buffer("cuts", torch.zeros(n_features, largest + 1))
        self.register_buffer("scores", torch.zeros(n_features, largest))

    def start(self, x: Tensor) -> Tensor:
        for column, size, cuts, scores in zip(x.T, self.sizes, self.cuts, self.scores, strict=True):
            counts = torch.bincount(column.long(), minlength=size).double() + 0.5
            share = (counts / counts.sum()).cumsum(0)
            ends = torch.cat([share.new_zeros(1), share])
            cuts.fill_(_END).copy_(F.pad(ends.clamp(1e-12, 1 - 1e-12).logit(), (0, len(cuts) - size - 1), value=_END))
            cuts[0], cuts[size:] = -_END, _END
            scores[:size] = torch.special.ndtri((ends[1:] + ends[:-1]) / 2)
        return super().start(x)

    @staticmethod
    def _at(table: Tensor, level: Tensor) -> Tensor:
        """Entries of `table` (..., n_features, n) at the levels (..., n_features)."""
        return table.expand(*level.shape, -1).gather(-1, level.unsqueeze(-1)).squeeze(-1)

    def inputs(self, x: Tensor) -> Tensor:
        low = x.floor().long()
        high = (low + 1).clamp(max=self.scores.shape[-1] - 1)
        return torch.lerp(self._at(self.scores, low), self._at(self.scores, high), x - low)

    def _bounds(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised cuts below and above the level, the logarithm of the scale kept within bounds."""
        level, log_scale = x.round().long(), raw[..., 1, :].clamp(_LEAST_LOG_SCALE, _MOST_LOG_SCALE)
        inverse = (-log_scale).exp()
        low, high = (self._at(self.cuts, level + i) for i in (0, 1))
        return (low - raw[..., 0, :]) * inverse, (high - raw[..., 0, :]) * inverse

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        low, high = self._bounds(raw, x)
        inside = torch.log(-torch.expm1((low - high).clamp(max=-1e-6)))
        return inside - F.softplus(-high) - F.softplus(low)

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._bounds(raw, x)
        width = (high - low).clamp(min=1e-6)
        within = 1 / torch.expm1(width.clamp(max=80))
        log_prob = torch.log(-torch.expm1(-width[0])) - F.softplus(-high[0]) - F.softplus(low[0])
        slope_high, slope_low = (-high).sigmoid() + within, -low.sigmoid() - within  # of log_prob in each bound
        inverse = (-raw[..., 1, :].clamp(_LEAST_LOG_SCALE, _MOST_LOG_SCALE)).exp()
        mean = (slope_high + slope_low) * inverse  # of -log_prob in the location
        scale = slope_high * high + slope_low * low
        free = (raw[..., 1, :] > _LEAST_LOG_SCALE) & (raw[..., 1, :] < _MOST_LOG_SCALE)
        return log_prob, (torch.stack([mean, scale * free], -2)).mul_(weight.unsqueeze(-2))

    def expansion(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._bounds(raw, x)
        inverse = (-raw[..., 1, :].clamp(_LEAST_LOG_SCALE, _MOST_LOG_SCALE)).exp()
        slope = (low.sigmoid() - (-high).sigmoid()) * inverse
        curvature = (low.sigmoid() * (-low).sigmoid() + high.sigmoid() * (-high).sigmoid()) * inverse.square()
        return slope, curvature

    def mean(self, raw: Tensor) -> Tensor:
        """The median, a level: the mean of levels is none. What the table makes of it is the mean of `quantile`."""
        return self._level(raw[..., 0, :])

    def _level(self, value: Tensor) -> Tensor:
        inner = self.cuts[..., 1:].expand(*value.shape, -1)
        return (value.unsqueeze(-1) >= inner).sum(-1).clamp(max=self.scores.shape[-1] - 1).to(value.dtype)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return self.quantile(raw, uniform_like(raw[..., 0, :], generator).clamp(_TINY, 1 - _TINY))

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        scale = raw[..., 1, :].clamp(_LEAST_LOG_SCALE, _MOST_LOG_SCALE).exp()
        return self._level(raw[..., 0, :] + scale * level.logit())


_END = 1e4  # a cut that no logistic variable passes, in units that are at least exp(-_MOST_LOG_SCALE)


class Columns(Likelihood):
    """Several likelihoods side by side, each of some of the features.

    Parameters
    ----------
    parts : list of Likelihood
        In the order of their features.
    sizes : list of int
        Number of features of each.
    """

    def __init__(self, parts: Sequence[Likelihood] = (), sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self.parts = list(parts)
        self.sizes = sizes
        self.kinds = nn.ModuleList(self.parts)

    @property
    def n_raw(self) -> int:  # type: ignore[override]
        return max((part.n_raw for part in self.parts), default=1)

    def split(self) -> list[tuple[Likelihood, slice]]:
        parts = zip(cast(Iterable[Likelihood], self.kinds), self.sizes, accumulate(self.sizes), strict=True)
        return [(part, slice(end - size, end)) for part, size, end in parts]

    def _join(self, function: Callable[[Likelihood, Tensor, slice], Tensor], raw: Tensor) -> Tensor:
        """Apply `function` to the raw outputs of each part, and put its results side by side."""
        parts = [function(part, raw[..., : part.n_raw, some], some) for part, some in self.split()]
        return torch.cat(parts, -1) if parts else raw[..., 0, :]

    def _padded(self, raw: Tensor) -> Tensor:
        """Raw outputs of a part, with zeros for those that it lacks."""
        return F.pad(raw, (0, 0, 0, self.n_raw - raw.shape[-2]))

    def location_scale(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offset, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        for part, some in self.split():
            if part.standardize:
                offset[some], scale[some] = location_scale(X[:, some])
        return offset, scale

    def real_valued(self, n_features: int) -> Tensor:
        return torch.cat([part.real_valued(some.stop - some.start) for part, some in self.split()])

    def column_of(self, n_features: int) -> Tensor:
        return torch.cat([some.start + part.column_of(some.stop - some.start) for part, some in self.split()])

    def build(self, n_features: int) -> None:
        for part, some in self.split():
            part.build(some.stop - some.start)

    def check(self, X: np.ndarray, whom: str) -> None:
        for part, some in self.split():
            part.check(X[:, some], whom.replace("Columns", type(part).__name__))

    def nearest(self, X: np.ndarray) -> np.ndarray:
        parts = [part.nearest(X[:, some]) for part, some in self.split()]
        return X if all(np.shares_memory(part, X) for part in parts) else np.hstack(parts)

    def start(self, x: Tensor) -> Tensor:
        return torch.cat([self._padded(part.start(x[:, some])) for part, some in self.split()], -1)

    def inputs(self, x: Tensor) -> Tensor:
        return torch.cat([part.inputs(x[..., some]) for part, some in self.split()], -1)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.cat([part.draw(x[..., some], generator) for part, some in self.split()], -1)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._join(lambda part, own, some: part.log_prob(own, x[..., some]), raw)

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for part, some in self.split():
            own = weight if weight.shape[-1] == 1 else weight[..., some]
            log_prob, grad = part.gradient(raw[..., : part.n_raw, some], x[..., some], own)
            found.append((log_prob, self._padded(grad)))
        log_probs, grads = zip(*found, strict=True)
        return torch.cat(log_probs, -1), torch.cat(grads, -1)

    def balance(self, raw: Tensor) -> Tensor | None:
        factors = [(part.balance(raw[..., : part.n_raw, some]), raw[..., some]) for part, some in self.split()]
        if all(factor is None for factor, _ in factors):
            return None
        return torch.cat([torch.ones_like(own) if factor is None else factor for factor, own in factors], -1)

    def expansion(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [part.expansion(raw[..., : part.n_raw, some], x[..., some]) for part, some in self.split()]
        slopes, curvatures = zip(*parts, strict=True)
        return torch.cat(slopes, -1), torch.cat(curvatures, -1)

    def mean(self, raw: Tensor) -> Tensor:
        return self._join(lambda part, own, some: part.mean(own), raw)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return self._join(lambda part, own, some: part.sample(own, generator), raw)

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        return self._join(lambda part, own, some: part.quantile(own, level), raw)

    def settle(self, share: Tensor | None = None) -> None:
        for part, some in self.split():
            part.settle(None if share is None else share[some])

    def set_noise(self, variance: Tensor, raw: Tensor) -> None:
        for part, some in self.split():
            part.set_noise(variance[some], raw[: part.n_raw, some])


def _fix(module: nn.Module) -> None:
    """Make parameters buffers, which training leaves alone."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, value.detach())


class MarginalBackground(nn.Module):
    """The linear model of the first features, which are Gaussian, and beside it the others as if they were independent.

    Parameters
    ----------
    n_gaussian : int
        Number of the first features.
    z_dim : int
        Of the linear model.
    others : Columns
        Likelihood of the other features, built.
    """

    raw: Tensor

    def __init__(self, n_gaussian: int, z_dim: int, others: Columns) -> None:
        super().__init__()
        self.gaussian, self.others = LinearGaussian(n_gaussian, z_dim), others
        _fix(others)
        self.register_buffer("raw", torch.zeros(others.n_raw, sum(others.sizes)))

    def start(self, likelihood: Likelihood, raw: Tensor) -> None:
        """Take over the parts that `likelihood` ends with, at the raw outputs (n_raw, n_features) of its start."""
        parts = [part for part, _ in likelihood.split()]
        for own, part in zip(self.others.parts[::-1], parts[::-1], strict=False):
            own.load_state_dict(part.state_dict(), strict=False)
        self.raw.copy_(raw[: len(self.raw), self.n_gaussian :])

    @property
    def n_gaussian(self) -> int:
        """Number of the first features."""
        return self.gaussian.n_gaussian

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviation of the Gaussian features' noise; 0 for others."""
        return F.pad(self.gaussian.noise_scale, (0, self.raw.shape[-1]))

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log-density of each row, or of its observed cells, in nats: (..., n_features) -> (...,)."""
        first = None if observed is None else observed[..., : self.n_gaussian]
        others = self.others.log_prob(self.raw.expand(*x.shape[:-1], *self.raw.shape), x[..., self.n_gaussian :])
        if observed is not None:
            others = torch.where(observed[..., self.n_gaussian :], others, 0.0)
        return self.gaussian.log_prob(x[..., : self.n_gaussian], first) + others.sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` rows: (n, n_features)."""
        others = self.others.sample(self.raw.expand(n, *self.raw.shape), generator)
        return torch.cat([self.gaussian.sample(n, generator), others], -1)

    def expected_given(self, x: Tensor, observed: Tensor) -> Tensor:
        """E[x | observed cells]: (batch, n_features)."""
        first = self.gaussian.expected_given(x[:, : self.n_gaussian], observed[:, : self.n_gaussian])
        return torch.cat([first, self.others.mean(self.raw).expand(len(x), -1).to(first)], -1)

    def sample_given(self, x: Tensor, observed: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw each row `n` times, given its observed cells: (n, batch, n_features)."""
        first = self.gaussian.sample_given(x[:, : self.n_gaussian], observed[:, : self.n_gaussian], n, generator)
        others = self.others.sample(self.raw.expand(n, len(x), *self.raw.shape), generator)
        return torch.cat([first, others.to(first)], -1)
