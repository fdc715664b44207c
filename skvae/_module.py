"""The variational autoencoder as a torch module: encoder, decoder, likelihood and prior, and nothing about training."""

import math
from typing import Any

from torch import Tensor, nn

MAX_INPUT = 10.0  # beside linear paths, the networks see no larger value: what lies outside the training data is
MAX_Z = 4.0  # left to the linear model


class VAE(nn.Module):
    """Variational autoencoder with a diagonal Gaussian posterior (Kingma & Welling, 2014).

    Parameters
    ----------
    encoder : nn.Module
        (..., n_features) -> (..., 2 * z_dim): mean and log-scale of q(z | x).
    decoder : nn.Module
        (..., z_dim) -> (..., n_raw * n_features): the likelihood's raw outputs.
    likelihood, prior : nn.Module
        p(x | z) and p(z).
    linear_encoder, linear_decoder : nn.Linear or None
        Linear paths beside the networks, (..., n_features) -> (..., z_dim) and (..., z_dim) -> (..., n_raw *
        n_features); None leaves the networks alone.
    """

    encoder: nn.Module  # annotated, since nn.Module's __getattr__ hides types
    decoder: nn.Module
    likelihood: Any
    prior: Any
    linear_encoder: nn.Linear | None
    linear_decoder: nn.Linear | None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        prior: nn.Module,
        linear_encoder: nn.Linear | None = None,
        linear_decoder: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.linear_encoder = linear_encoder
        self.linear_decoder = linear_decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of q(z | x): two tensors (..., z_dim)."""
        inputs = self.likelihood.inputs(x)
        if self.linear_encoder is None:
            mean, log_scale = self.encoder(inputs).chunk(2, dim=-1)
            return mean, log_scale
        mean, log_scale = self.encoder(inputs.clamp(-MAX_INPUT, MAX_INPUT)).chunk(2, dim=-1)
        return mean + self.linear_encoder(inputs), log_scale

    def decode(self, z: Tensor) -> Tensor:
        """Raw outputs of the likelihood: (..., n_raw, n_features)."""
        if self.linear_decoder is None:
            raw = self.decoder(z)
        else:
            raw = self.decoder(z.clamp(-MAX_Z, MAX_Z)) + self.linear_decoder(z)
        return raw.unflatten(-1, (self.likelihood.n_raw, -1))

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction term and KL term of each row, in nats, for the standard normal draws `eps` (batch, z_dim)."""
        mean, log_scale = self.encode(x)
        z = mean + log_scale.exp() * eps
        kl = self.prior.kl(mean, log_scale).sum(-1)
        return self.likelihood.log_prob(self.decode(z), x), kl

    def log_weights(self, x: Tensor, eps: Tensor) -> Tensor:
        """Log importance weights log p(x, z) - log q(z | x), in nats, at z = mean + scale * eps.

        `x` is (batch, n_features) and `eps` (n_draws, 1, z_dim), shared by all rows; returns (n_draws, batch).
        """
        mean, log_scale = self.encode(x)
        z = mean + log_scale.exp() * eps  # (n_draws, batch, z_dim)
        log_q = -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1) - log_scale.sum(-1)
        return self.likelihood.log_prob(self.decode(z), x) + self.prior.log_prob(z) - log_q
