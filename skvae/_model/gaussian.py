"""The Gaussian linear model as a density, of complete rows and of rows with holes."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._system.device import widest


def log_scales(root: Tensor) -> Tensor:
    """Logarithms of standard deviations, given Cholesky factors of precision matrices: (..., k, k) -> (..., k)."""
    return 0.5 * torch.cholesky_inverse(root).diagonal(dim1=-2, dim2=-1).log()


class Posterior(NamedTuple):
    """Posterior of z given the observed cells of rows, N(mean, (root @ root.T)^-1), and the log-density of these.

    Parameters
    ----------
    mean : Tensor of shape (batch, z_dim)
    root : Tensor of shape (batch, z_dim, z_dim)
        Lower Cholesky factor of the precision matrix.
    log_prob : Tensor of shape (batch,)
        Log-density of the observed cells, in nats.
    """

    mean: Tensor
    root: Tensor
    log_prob: Tensor

    @property
    def log_scale(self) -> Tensor:
        """Logarithm of each unit's standard deviation: (batch, z_dim)."""
        return log_scales(self.root)


class Background(Protocol):
    """A density of which a model is a mixture, the linear model or one with it in it."""

    @property
    def n_gaussian(self) -> int:
        """Number of the first features, which are Gaussian."""

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviation of each feature's noise."""

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log-density of each row, or of its observed cells, in nats."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` rows."""

    def expected_given(self, x: Tensor, observed: Tensor) -> Tensor:
        """E[x | observed cells]."""

    def sample_given(self, x: Tensor, observed: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw each row `n` times, given its observed cells."""


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

    def set_model(self, mean: Tensor, noise_scale: Tensor, directions: Tensor, values: Tensor) -> None:
        """Take over principal `values` and directions of (x - mean) / noise_scale."""
        self.mean.copy_(mean)
        self.noise_scale.copy_(noise_scale)
        self.directions.copy_(directions)
        self.signal.copy_((values - 1).clamp(min=0))

    @property
    def n_gaussian(self) -> int:
        """Number of features."""
        return len(self.mean)

    @property
    def loadings(self) -> Tensor:
        """Of (x - mean) / noise_scale on z, in float64: (n_features, z_dim)."""
        return widest(self.directions) * widest(self.signal).sqrt()

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log-density of each row, or of its observed cells, in nats and in float64, since a row may lie far off:
        (..., n_features) -> (...,)."""
        if observed is not None:
            return self.posterior(x, observed).log_prob
        noise_scale, signal = widest(self.noise_scale), widest(self.signal)
        y = (widest(x) - self.mean) / noise_scale
        along = F.linear(y, widest(self.directions).T).square()
        distance = y.square().sum(-1) - (along * (signal / (1 + signal))).sum(-1)
        log_det = 2 * noise_scale.log().sum() + signal.log1p().sum()
        return -0.5 * (distance + log_det + len(self.mean) * math.log(2 * math.pi))

    def total_correlation(self, columns: Tensor) -> float:
        """What columns tell of each other, in nats: the divergence from the product of their marginals. `columns`
        (n_features,) says which features belong together."""
        loadings = widest(self.directions) * widest(self.signal).sqrt()  # over the noise
        n_features = torch.bincount(columns)
        alone = (n_features == 1)[columns]
        several = [loadings[columns == column] for column in (n_features > 1).nonzero()]
        entropy = (1 + loadings[alone].square().sum(1)).log().sum()  # twice, up to that of the noise
        entropy += sum(torch.logdet(torch.eye(own.shape[1]).to(own) + own.T @ own) for own in several)
        return float(entropy - widest(self.signal).log1p().sum()) / 2

    def posterior(self, x: Tensor, observed: Tensor) -> Posterior:
        """Posterior of z given the `observed` cells (batch, n_features) of the rows: a product over them (Tipping &
        Bishop, 1999, equation 6, with the sums over what is observed)."""
        noise_scale, loadings = widest(self.noise_scale), self.loadings
        y = torch.where(observed, (widest(x) - self.mean) / noise_scale, 0.0)
        squares = (loadings.unsqueeze(2) * loadings.unsqueeze(1)).flatten(1)  # (n_features, z_dim^2)
        precision = F.linear(observed.to(y.dtype), squares.T).unflatten(-1, 2 * loadings.shape[1:])
        root = torch.linalg.cholesky(precision + torch.eye(loadings.shape[1]).to(precision))
        along = F.linear(y, loadings.T)
        mean = torch.cholesky_solve(along.unsqueeze(-1), root).squeeze(-1)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + torch.where(
            observed, 2 * noise_scale.log() + math.log(2 * math.pi), 0.0
        ).sum(-1)
        return Posterior(mean, root, -0.5 * (y.square().sum(-1) - (along * mean).sum(-1) + log_det))

    def expected(self, z: Tensor) -> Tensor:
        """E[x | z], in float64: (..., z_dim) -> (..., n_features)."""
        return self.mean + widest(self.noise_scale) * F.linear(z, self.loadings)

    def complete(self, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """`x` with its holes filled by what the model expects there, and by how much the log-scales of the posterior
        grow for the holes: (batch, n_features) and (batch, z_dim).

        A linear encoder makes of the completed row the posterior mean given the observed cells.
        """
        posterior = self.posterior(x, observed)
        filled = torch.where(observed, x, self.expected(posterior.mean).to(x.dtype))
        return filled, (posterior.log_scale + 0.5 * widest(self.signal).log1p()).to(x.dtype)

    def expected_given(self, x: Tensor, observed: Tensor) -> Tensor:
        """E[x | observed cells], in float64: (batch, n_features)."""
        return self.expected(self.posterior(x, observed).mean)

    def sample_given(self, x: Tensor, observed: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw each row `n` times, given its observed cells, in float64: (n, batch, n_features)."""
        posterior = self.posterior(x, observed)
        eps = torch.randn(len(x), posterior.mean.shape[-1], n, generator=generator).to(posterior.mean)
        moves = torch.linalg.solve_triangular(posterior.root.mT, eps, upper=True).permute(2, 0, 1)
        noise = torch.randn(n, *x.shape, generator=generator).to(posterior.mean)
        return self.expected(posterior.mean + moves) + widest(self.noise_scale) * noise

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` rows: (n, n_features)."""
        z, noise = (torch.randn(n, size, generator=generator).to(self.mean) for size in self.directions.shape[::-1])
        return self.mean + self.noise_scale * (noise + (z * self.signal.sqrt()) @ self.directions.T)
