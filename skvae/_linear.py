"""The linear start: the closed-form optimum of the linear model, put into a VAE before its first training step.

Gaussian data: factor analysis, or probabilistic PCA when the noise is shared (Tipping & Bishop, 1999). Other
likelihoods: the log-likelihood is expanded to second order around the mean of the data, which makes it a factor
analysis of the scores with known noise.
"""

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

_MAX_ELEMENTS = 20_000_000  # rows are subsampled beyond this many values of x
_MAX_COVARIANCE = 1_500  # features beyond which the covariance matrix is not formed
_ALIVE = 1e-3  # least signal-to-noise ratio of a unit: without any, its gradient would be zero


class _Factors:
    """Principal factors of centred data y (n_samples, n_features) under a given noise variance."""

    def __init__(self, y: Tensor, z_dim: int, seed: int) -> None:
        self.n_factors, self.seed = min(z_dim, *y.shape), seed
        self.variance = y.double().square().mean(0)
        small = y.shape[1] <= _MAX_COVARIANCE
        self.y = None if small else y
        self.covariance = (y.T @ y).double() / len(y) if small else None

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Largest eigenvalues and their vectors, of the covariance of y / sqrt(noise): (k,) and (n_features, k)."""
        scale = noise.sqrt()
        if self.y is None:
            values, vectors = torch.linalg.eigh(self.covariance / scale / scale[:, None])
            return values.flip(0)[: self.n_factors], vectors.flip(1)[:, : self.n_factors]
        whitened = (self.y / scale).float().numpy()
        _, singular, vectors = randomized_svd(whitened, self.n_factors, random_state=self.seed)
        return torch.from_numpy(singular).double() ** 2 / len(self.y), torch.from_numpy(vectors.T.copy()).double()


def _fit_noise(factors: _Factors, nearest_noise, *, tol: float = 1e-4) -> Tensor:
    """Maximum-likelihood noise of factor analysis (Barber, 2012, algorithm 21.1), for the noises the model can have."""
    noise = nearest_noise(factors.variance)
    n_iter = int(min(500, max(5, 3e8 / len(noise) ** 3)))
    for _ in range(n_iter):
        values, vectors = factors(noise)
        explained = noise * (vectors.square() * (values - 1).clamp(min=0)).sum(1)
        previous, noise = noise, nearest_noise(factors.variance - explained)
        if (noise / previous).log().abs().max() < tol:
            break
    return noise


def _scores(likelihood: nn.Module, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """First derivative of log p(x | raw) in each raw output (n_samples, n_features), minus the mean second (n_features,)."""
    scores, curvature = [], torch.zeros(x.shape[1])
    for block in x.split(4096):
        point = raw.expand(len(block), *raw.shape).clone().requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.log_prob(point, block).sum(), point, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), point)
        scores.append(slope.detach()[:, 0])
        curvature -= bend[:, 0].sum(0)
    return torch.cat(scores), (curvature / len(x)).clamp(min=1e-3)


def _set_linear(vae: nn.Module, encoder_weight: Tensor, encoder_bias: Tensor, decoder_weight: Tensor, raw: Tensor):
    """Put the linear maps where they belong: beside the networks, or into networks that are linear themselves."""
    z_dim, n_features = encoder_weight.shape
    for layer, bias in ((vae.encoder.head, encoder_bias), (vae.decoder.head, raw.flatten())):
        layer.weight.zero_()
        layer.bias.copy_(bias)
    encoder = vae.linear_encoder or vae.encoder.head
    decoder = vae.linear_decoder or vae.decoder.head
    for layer in (encoder, decoder):
        layer.weight.zero_()
    encoder.weight[:z_dim] = encoder_weight.to(encoder.weight)
    decoder.weight[:n_features] = decoder_weight.to(decoder.weight)


def linear_start(vae: nn.Module, x: Tensor, *, beta: float, seed: int) -> None:
    """Set `vae` to the optimum of the linear model for `x` (n_samples, n_features), in place.

    The loadings are rotated so that the posterior is diagonal. With ``beta != 1`` it is the optimum of the weighted
    bound: the posterior sees the noise `beta` times larger. Units without signal get a signal-to-noise ratio of 1e-3.
    """
    likelihood, z_dim = vae.likelihood, vae.prior.z_dim
    with torch.no_grad():
        raw = likelihood.start(x)
    x = x.cpu()
    n_rows = max(1000, _MAX_ELEMENTS // x.shape[1])
    if len(x) > n_rows:
        x = x[torch.from_numpy(np.random.default_rng(seed).choice(len(x), n_rows, replace=False))]
    if hasattr(likelihood, "set_noise"):
        gradient = x - x.mean(0)
        factors = _Factors(gradient, z_dim, seed)
        noise = _fit_noise(factors, likelihood.nearest_noise)
    else:
        gradient, curvature = _scores(likelihood, raw, x)
        gradient = (gradient - gradient.mean(0)) / curvature
        factors = _Factors(gradient, z_dim, seed)
        noise = (1 / curvature).double()
    values, vectors = factors(noise)
    with torch.no_grad():
        signal = torch.full((z_dim,), _ALIVE, dtype=torch.float64)
        signal[: len(values)] = (values - beta).clamp(min=_ALIVE)
        directions = torch.eye(x.shape[1], z_dim, dtype=torch.float64)
        directions[:, : len(values)] = vectors
        loadings = directions * signal.sqrt() * noise.sqrt()[:, None]  # (n_features, z_dim)
        weight = (loadings / noise[:, None] / (beta + signal)).T  # (z_dim, n_features)
        log_scale = 0.5 * (max(beta, 1e-4) / (beta + signal)).log()
        inputs = likelihood.inputs(x)
        centre = inputs.mean(0)
        spread = (inputs - centre).square().mean(0).clamp(min=1e-12)
        weight = weight * (((inputs - centre) * gradient).mean(0) / spread)  # one where the inputs are x itself
        if hasattr(likelihood, "set_noise"):
            likelihood.set_noise(noise.to(raw), raw)
        bias = torch.cat([-weight @ centre.double(), log_scale])
        _set_linear(vae, weight, bias, loadings, raw)
