"""Priors p(z): log_prob, sample and kl, one class each; PRIORS names them."""

import math

import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """The unit Gaussian N(0, I) of Kingma & Welling (2014).

    Parameters
    ----------
    z_dim : int
        Number of latent units.
    """

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        self.z_dim = z_dim

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of latent points, in nats: (..., z_dim) -> (...,)."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` latent points on the generator's device: (n, z_dim)."""
        return torch.randn(n, self.z_dim, generator=generator, device=generator.device)

    def kl(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """KL(N(mean, scale^2) || prior) of each unit, closed form (appendix B): same shape as `mean`."""
        return 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale

    def kl_gradient(self, mean: Tensor, log_scale: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """KL summed over all rows, and its gradients in mean and log-scale, (batch, z_dim)."""
        slope = scale.square().sub_(1)
        return 0.5 * (slope.sum() + mean.square().sum()) - log_scale.sum(), mean, slope


PRIORS = {"standard_normal": StandardNormal}
