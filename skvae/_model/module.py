"""The variational autoencoder as a torch module: encoder, decoder, likelihood and prior, and nothing about training."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._data.batch import Batch, Cells
from ..architectures import Architecture
from ..priors import Prior
from .gaussian import Background, LinearGaussian
from .likelihood import Likelihood

# Networks beside a linear path see clamped values: far from the training data only the linear path responds.
MAX_INPUT = 10.0
MAX_Z = 4.0
FARTHEST = 1e30  # outside of training the linear path sees clamped values too: larger ones may have infinite results
MODERATE = -30.0, 5.0  # log-scales of the posteriors that scores draw from: others' weights overflow, of far rows


def beside(z: Tensor, context: Tensor | None) -> Tensor:
    """Put z and what is given side by side, as the decoder sees them."""
    return z if context is None else torch.cat([z, context.expand(*z.shape[:-1], -1)], -1)


def tamed(log_scale: Tensor) -> Tensor:
    """Log-scales of posteriors, from the encoder's: a scale beyond 1, the prior's, goes on linearly. Where networks
    extrapolate, at outliers, each step would multiply it, and a single row's loss would undo the model."""
    return log_scale.clamp(max=0) + log_scale.relu().log1p()


class VAE(nn.Module):
    """Variational autoencoder with a diagonal Gaussian posterior (Kingma & Welling, 2014).

    Parameters
    ----------
    encoder : nn.Module
        (..., n_features) -> (..., 2 * z_dim): mean and log-scale of q(z | x), the latter before it is `tamed`.
    decoder : nn.Module
        (..., z_dim) -> (..., n_raw * n_features): the likelihood's raw outputs.
    likelihood, prior : nn.Module
        p(x | z) and p(z).
    linear_encoder, linear_decoder : nn.Linear or None
        Linear paths beside the networks, (..., n_features) -> (..., z_dim) and (..., z_dim) -> (..., n_raw *
        n_features); None leaves the networks alone.
    background : nn.Module or None
        A density with `log_prob` and `sample` of which the model is a mixture, for rows that lie where the networks
        were never trained (a defensive mixture; Hesterberg, 1995).
    share : float
        Weight of the background in the mixture.
    filler : LinearGaussian or None
        The linear model of what the encoder sees, which fills holes; None where the background is that.
    n_context : int
        Number of features that are given and not modelled, which rows end with; both networks see them.
    """

    regression: Tensor

    encoder: Architecture  # annotated, since nn.Module's __getattr__ hides types
    decoder: Architecture
    likelihood: Likelihood
    prior: Prior
    linear_encoder: nn.Linear | None
    linear_decoder: nn.Linear | None
    background: Background | None
    filler: LinearGaussian | None

    def __init__(
        self,
        encoder: Architecture,
        decoder: Architecture,
        likelihood: Likelihood,
        prior: Prior,
        linear_encoder: nn.Linear | None = None,
        linear_decoder: nn.Linear | None = None,
        background: Background | None = None,
        share: float = 0.0,
        filler: LinearGaussian | None = None,
        n_context: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.linear_encoder = linear_encoder
        self.linear_decoder = linear_decoder
        self.background = background
        self.share = share
        self.filler = filler
        self.n_context = n_context
        if n_context:  # of the encoder's inputs on what is given
            self.register_buffer("regression", torch.zeros(len(self.completer.mean), n_context))
        prior.attach(self.encode_inputs)

    @property
    def completer(self) -> LinearGaussian:
        """The linear model that fills holes in what the encoder sees."""
        completer = self.background if self.filler is None else self.filler
        assert isinstance(completer, LinearGaussian)
        return completer

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows as what is modelled and what is given, typical where that is missing."""
        if not self.n_context:
            return x, None
        return x[..., : -self.n_context], x[..., -self.n_context :].nan_to_num(0.0)

    def complete(self, x: Tensor) -> Cells:
        """`x` (batch, n_features) for the encoder and for the likelihood, where NaN stands for a missing cell."""
        x, context = self.parts(x)
        observed = ~x.isnan()
        parts = [(x[..., some], observed[..., some], part.stand_in) for part, some in self.likelihood.split()]
        x = torch.cat([torch.where(seen, own, stand_in) for own, seen, stand_in in parts], -1)
        inputs = self.likelihood.inputs(x)
        if context is None:
            filled, spread = self.completer.complete(inputs, observed)
            return Cells(x, observed, filled, spread, None)
        shift = F.linear(context, self.regression)
        filled, spread = self.completer.complete(inputs - shift, observed)
        return Cells(x, observed, torch.cat([filled + shift, context], -1), spread, context)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of q(z | x): two tensors (..., z_dim)."""
        return self.encode_inputs(self.likelihood.inputs(x))

    def encode_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same for the rows of a batch, as the encoder is to see them."""
        mean, log_scale = self.encode_inputs(batch.inputs(self.likelihood))
        return mean, log_scale if batch.spread is None else log_scale + batch.spread

    def encode_any(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`encode` outside of training, where a row may lie at any distance: the mean is finite."""
        return self.encode_inputs(self.likelihood.inputs(x).clamp(-FARTHEST, FARTHEST))

    def encode_inputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The same for what the encoder sees of x."""
        if self.linear_encoder is None:
            mean, log_scale = self.encoder(inputs).chunk(2, dim=-1)
            return mean, tamed(log_scale)
        mean, log_scale = self.encoder(inputs.clamp(-MAX_INPUT, MAX_INPUT)).chunk(2, dim=-1)
        return mean + self.linear_encoder(inputs), tamed(log_scale)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw outputs of the likelihood: (..., n_raw, n_features)."""
        z = beside(z, context)
        return self._raw(self.decoder(self._moderate(z)), z)

    def decode_for_map(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same, where of each feature's raw outputs only the first has gradients below the decoder's head."""
        if self.likelihood.n_raw == 1 or type(self.decoder).forward is not Architecture.forward:
            return self.decode(z, context)
        z = beside(z, context)
        hidden = self.decoder.hidden(self._moderate(z))
        pairs = (hidden, z), (hidden.detach(), z.detach())
        raw, rest = (self._raw(self.decoder.head(outputs), latents) for outputs, latents in pairs)
        return torch.cat([raw[..., :1, :], rest[..., 1:, :]], -2)

    def _moderate(self, z: Tensor) -> Tensor:
        """What the decoder's network sees of z."""
        return z if self.linear_decoder is None else z.clamp(-MAX_Z, MAX_Z)

    def _raw(self, outputs: Tensor, z: Tensor) -> Tensor:
        """Raw outputs of the likelihood, of the network's and the linear path's."""
        raw = outputs if self.linear_decoder is None else outputs + self.linear_decoder(z)
        return raw.unflatten(-1, (self.likelihood.n_raw, -1))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Reconstruction term and KL term of each row, in nats, for the draws of the batch: (batch,) both."""
        log_prob, kl, _ = self.terms(batch)
        return log_prob, kl.sum(-1)

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Reconstruction term of each row (batch,), the prior's KL terms (batch, n_terms), and what they were made of:
        the draw z, mean and log-scale of the posterior."""
        mean, log_scale = self.encode_batch(batch)
        z = mean + log_scale.exp() * batch.eps
        decode = self.decode_for_map if batch.for_map else self.decode
        kl, raw = self.prior.kl(mean, log_scale, z), decode(z, batch.context)
        factors = self.likelihood.balance(raw) if batch.balanced and raw.requires_grad else None
        if factors is not None:
            raw.register_hook(lambda gradient: gradient * factors)
        return self.reconstruction(raw, batch), kl, (z, mean, log_scale)

    def reconstruction(self, raw: Tensor, batch: Batch) -> Tensor:
        """Log-likelihood of each row of the batch given raw outputs, summed over the cells that count: (..., batch)."""
        log_prob = self.likelihood.log_prob(raw, batch.x)
        return (log_prob if batch.observed is None else torch.where(batch.observed, log_prob, 0.0)).sum(-1)

    def log_weights(self, x: Tensor, eps: Tensor, log_scales: tuple[float, float] = (-math.inf, math.inf)) -> Tensor:
        """Log importance weights log p(x, z) - log q(z | x), in nats, at z = mean + scale * eps.

        `x` is (batch, n_features) and `eps` (n_draws, batch, z_dim), or (n_draws, 1, z_dim) where all rows share it;
        returns (n_draws, batch). `log_scales` bounds those of the posteriors: any that is drawn from is right.
        """
        mean, log_scale = self.encode_any(x)
        log_scale = log_scale.clamp(*log_scales)
        z = mean + log_scale.exp() * eps  # (n_draws, batch, z_dim)
        log_q = -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1) - log_scale.sum(-1)
        return self.likelihood.log_prob(self.decode(z), x).sum(-1) + self.prior.log_prob(z) - log_q

    def mixed(
        self, log_prob: Tensor, x: Tensor, observed: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Log-density of rows `x` under the mixture with the background, given that of the model alone: (batch,)."""
        if self.background is None:
            return log_prob
        return self.mixture(log_prob, self.background_log_prob(x, observed, context))

    def background_state(self) -> dict[str, Tensor]:
        """What `state_dict` has of the background."""
        names = ("background.", "regression") if self.background is not None else ()
        return {name: part for name, part in self.state_dict().items() if name.startswith(names)}

    def background_log_prob(self, x: Tensor, observed: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Log-density of rows, or of their observed cells, under the background: (batch,)."""
        assert self.background is not None
        x = x - self.background_shift(context)
        return self.background.log_prob(x) if observed is None else self.background.log_prob(x, observed)

    def background_of(self, batch: Batch) -> Tensor:
        """Log-density of the rows of a batch under the background: (batch,)."""
        return self.background_log_prob(batch.x, batch.observed, batch.context)

    def background_shift(self, context: Tensor | None) -> Tensor | float:
        """Return by how much the features that are given move the background's mean, where that is Gaussian."""
        if context is None:
            return 0.0
        assert self.background is not None
        shift, n = F.linear(context.to(self.regression.dtype), self.regression), self.background.n_gaussian
        return torch.cat([shift[..., :n], torch.zeros_like(shift[..., n:])], -1)

    def mixture(self, log_prob: Tensor, background: Tensor) -> Tensor:
        """Log-density of the mixture, given those of the model alone and of the background."""
        log_prob = log_prob.to(background.dtype) + math.log1p(-self.share)
        return torch.logaddexp(log_prob, background + math.log(self.share))

    def sample(self, z: Tensor, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw x from p(x | z), or from the background where the mixture wants it: (n, z_dim) -> (n, n_features)."""
        x = self.likelihood.sample(self.decode(z, context), generator)
        if self.background is None:
            return x
        drawn = torch.rand(len(z), 1, generator=generator).to(x.device) < self.share
        return torch.where(drawn, self.background.sample(len(z), generator) + self.background_shift(context), x)
