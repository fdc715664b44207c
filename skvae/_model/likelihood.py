"""Base of likelihoods."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.blocks import location_scale
from .component import Component


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
    allow_nan : bool
        Whether rows may have missing cells.
    is_normal : bool
        Whether the first raw output is the mean of a normal distribution, whose noise `set_noise` sets. The linear
        start is then factor analysis itself, and the linear model stands beside the trained one in the score.
    stand_in : float
        A value of the support, which stands for missing cells in the formulas; what they make of it does not count.
    min_curvature : float
        Lower bound on the curvature, the second derivative of -log p(x | raw), in the linear start. At the mean of a
        rare feature the curvature is small, but it grows as soon as the feature varies with z.
    """

    n_raw = 1
    standardize = False
    non_negative = False
    allow_nan = True
    is_normal = False
    stand_in = 0.0
    min_curvature = 0.1

    def check(self, X: np.ndarray, whom: str) -> None:
        """Raise ValueError, naming `whom`, where `X` (n_samples, n_features) leaves the support."""

    def nearest(self, X: np.ndarray) -> np.ndarray:
        """`X` (n_samples, n_features) with each value moved to the nearest one of the support, or `X` itself."""
        return X

    def real_valued(self, n_features: int) -> Tensor:
        """Tell which of that many features have values that may be shifted and scaled: (n_features,)."""
        return torch.full((n_features,), self.standardize)

    def column_of(self, n_features: int) -> Tensor:
        """Number of the column that each of that many features belongs to: (n_features,)."""
        return torch.arange(n_features)

    def location_scale(self, X: Any) -> tuple[Any, Any]:
        """Return the location and scale of the model's units: (n_features,), or two numbers that hold for all."""
        return location_scale(X) if self.standardize else (0.0, 1.0)

    def split(self) -> "list[tuple[Likelihood, slice]]":
        """Return the likelihoods that this one is made of, with their features: by default itself, with all."""
        return [(self, slice(None))]

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

    def at_start(self, x: Tensor) -> Tensor | None:
        """Return the means of rows such as those of `x` at the start, of its shape; None where all have the same."""
        return None

    def nearest_noise(self, variance: Tensor) -> Tensor:
        """Return the noise variance (n_features,) nearest to `variance` that the model can have for every row."""
        return variance

    def settle(self, share: Tensor | None = None) -> None:
        """Fix what `start` left open, given each feature's share of noise in a linear model, (n_features,), or none."""

    def set_noise(self, variance: Tensor, raw: Tensor) -> None:
        """Make `variance` (n_features,) the noise at z = 0, if there is one; `raw` is the decoder's bias."""

    def inputs(self, x: Tensor) -> Tensor:
        """Map `x` to what the encoder sees: (..., n_features) -> (..., n_features)."""
        return x

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch `x` (batch, n_features) for a step of training, or for validation; by default return `x`.

        The generator may be on another device than `x`: draw with ``device=generator.device``, and move what is drawn.
        """
        return x

    @abstractmethod
    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each feature of each row, in nats: (..., n_features)."""

    def expansion(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slope of `log_prob` in the first raw output of each feature, and minus its curvature: (..., n_features)."""
        with torch.enable_grad():
            point = raw.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_prob(point, x).sum(), point, create_graph=True)
            (bend,) = torch.autograd.grad(slope[..., 0, :].sum(), point)
        return slope[..., 0, :].detach(), -bend[..., 0, :]

    def gradient(self, raw: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_prob` of the first member, and the gradient of minus the weighted sum of all.

        The first is (batch, n_features), the second of the shape of `raw`. All arguments have a first dimension of
        members, `weight` is (n_members, batch, 1), or (n_members, batch, n_features) where cells are missing. The
        gradient in the parameters shared by all rows is left in their ``grad``; `raw` may be overwritten.
        """
        self.zero_grad(set_to_none=False)
        with torch.inference_mode(False), torch.enable_grad():
            raw, x, weight = (part.detach().clone() for part in (raw, x, weight))  # with which a graph may be made
            raw.requires_grad_()
            log_prob = self.log_prob(raw, x)
            (log_prob * weight).sum().neg().backward()
        assert raw.grad is not None
        return log_prob[0].detach(), raw.grad

    def balance(self, raw: Tensor) -> Tensor | None:
        """Return factors for the gradient in the raw outputs in the first phase of training, and for a map to its end.

        They have the shape of `raw`; None leaves the gradient as it is.
        """
        return None

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:
        """E[x | z]: (..., n_features)."""

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        """Return quantiles of p(x | z) at a `level` that broadcasts to (..., n_features).

        Means of functions of x are taken over them. By default the mean stands at all levels.
        """
        mean = self.mean(raw)
        return mean.expand(torch.broadcast_shapes(mean.shape, level.shape))

    @abstractmethod
    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x from p(x | z): (..., n_features)."""
