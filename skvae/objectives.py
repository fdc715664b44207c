"""Training objectives: one value per row, to be maximised; OBJECTIVES names them.

An objective returns the value and, whatever is trained, a bound on the log-likelihood in two terms: reconstruction and
KL, whose difference is the bound. What trains may be no bound itself: ``is_bound`` says so.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval, InvalidParameterError
from torch import Tensor

from ._data.batch import Batch
from ._model.component import COUNT, Component
from ._model.counts import LOG_2PI
from ._model.module import VAE

__all__ = ["ELBO", "IWAE", "MMD", "BetaTC", "DReG", "Objective"]

_MAX_ELEMENTS = 24_000  # pairs of rows, times units, that are worked out at once in small batches; more are slower

_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")

Terms = tuple[Tensor, Tensor, Tensor]


class Objective(Component, ABC):
    """Base of all objectives, and of your own: write `forward`.

    Attributes
    ----------
    n_draws : int
        Posterior draws per row. With one, the noise is (batch, z_dim), with more (n_draws, batch, z_dim).
    kl_weight : float
        Weight of the KL term, which the linear start allows for.
    is_bound : bool
        Whether the value that trains is, in expectation, a lower bound on the log-likelihood.
    warming : bool
        Whether the value that trains in this epoch is not yet the one by which epochs are compared.
    """

    n_draws: int = 1
    kl_weight: float = 1.0
    is_bound: bool = True
    warming: bool = False

    def begin_epoch(self, epoch: int, n_epochs: int, generator: torch.Generator) -> None:
        """Prepare for an epoch, counted from 1.

        `n_epochs` is the length of the run that the estimator's `max_iter` asks for, `generator` a stream that belongs
        to the epoch.
        """

    @abstractmethod
    def forward(self, vae: VAE, batch: Batch) -> Terms:
        """Value to be maximised, reconstruction and KL of each row, in nats: three tensors of shape (batch,).

        `vae.training` tells whether the value is for training or for comparing epochs.
        """


class ELBO(Objective):
    """Evidence lower bound with the KL term weighted by `beta` (Higgins et al., 2017, equation 4).

    With ``beta=1`` it bounds the log-likelihood (Kingma & Welling, 2014, equation 3); below 1 it is no bound.

    Parameters
    ----------
    beta : float, default=1.0
        Weight of the KL term.
    free_bits : float, default=0.0
        Nats of KL that each latent unit has for free: below that, the mean over the batch costs the same (Kingma et
        al., 2016, equation 15). A prior without a KL term for each unit has as many nats for all of them together.
    warmup : float, default=0.0
        Share of the run over which the weight rises linearly from 0 to `beta` (Sonderby et al., 2016, section 2.3).
        The run is the `max_iter` epochs of the estimator, however many of them early stopping or a single
        `partial_fit` leaves; epochs are compared by the full weight. Epochs count from the first fit through
        those that `warm_start` adds, so that a trained model is not warmed up a second time.

    References
    ----------
    Higgins et al. (2017). "beta-VAE: learning basic visual concepts with a constrained variational framework". ICLR.
    Kingma & Welling (2014). "Auto-encoding variational Bayes". ICLR.
    Kingma et al. (2016). "Improving variational inference with inverse autoregressive flow". NeurIPS.
    Sonderby et al. (2016). "Ladder variational autoencoders". NeurIPS.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import ELBO
    >>> VAETransformer(objective=ELBO(free_bits=0.1, warmup=0.2))
    VAETransformer(objective=ELBO(free_bits=0.1, warmup=0.2))
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "beta": [_NOT_NEGATIVE],
        "free_bits": [_NOT_NEGATIVE],
        "warmup": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(self, beta: float = 1.0, free_bits: float = 0.0, warmup: float = 0.0) -> None:
        super().__init__()
        self.beta = beta
        self.free_bits = free_bits
        self.warmup = warmup
        self.weight_ = 1.0  # of beta in this epoch
        self.check_params()

    @property
    def kl_weight(self) -> float:  # type: ignore[override]
        return self.beta

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        return self.beta >= 1

    @property
    def warming(self) -> bool:  # type: ignore[override]
        return self.weight_ < 1

    def begin_epoch(self, epoch: int, n_epochs: int, generator: torch.Generator) -> None:
        self.weight_ = min(1.0, epoch / (1 + self.warmup * n_epochs))

    def forward(self, vae: VAE, batch: Batch) -> Terms:
        log_prob, terms, _ = vae.terms(batch)
        kl = terms.sum(-1)
        cost = terms.mean(0).clamp(min=self.free_bits).sum() if self.free_bits else kl
        beta = self.beta * self.weight_ if vae.training else self.beta
        return log_prob - beta * cost, log_prob, kl


def _log_normal(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-density of each unit of N(mean, scale^2): shape of the arguments."""
    distance = (z - mean) * (-log_scale).exp()
    return torch.addcmul(-log_scale - 0.5 * LOG_2PI, distance, distance, value=-0.5)


class _ImportanceWeighted(Objective):
    """Base of objectives of several draws: the bound log(mean of p(x, z) / q(z | x)) of each row."""

    _parameter_constraints: ClassVar[dict[str, list]] = {"n_draws": [COUNT]}

    def __init__(self, n_draws: int = 10) -> None:
        super().__init__()
        self.n_draws = n_draws
        self.check_params()

    @abstractmethod
    def _log_weights(self, log_joint: Tensor, posterior: Sequence[Tensor], z: Tensor) -> Tensor:
        """Logarithms of p(x, z) / q(z | x), with the gradient that the objective wants: (n_draws, batch)."""

    @abstractmethod
    def _value(self, log_weights: Tensor, bound: Tensor) -> Tensor:
        """Return a surrogate (batch,): its value is the bound, its gradient the objective's."""

    def forward(self, vae: VAE, batch: Batch) -> Terms:
        mean, log_scale = vae.encode_batch(batch)
        z = mean + log_scale.exp() * batch.eps.reshape(-1, *batch.eps.shape[-2:])  # (n_draws, batch, z_dim)
        log_prior = vae.prior.log_prob(z)
        log_joint = vae.reconstruction(vae.decode(z, batch.context), batch) + log_prior
        log_weights = self._log_weights(log_joint, (mean, log_scale), z)
        bound = log_weights.logsumexp(0) - math.log(len(log_weights))
        with torch.no_grad():
            kl = vae.prior.kl_given(mean, log_scale, z, log_prior).sum(-1).reshape(-1, len(batch)).mean(0)
        return self._value(log_weights, bound), bound + kl, kl


class IWAE(_ImportanceWeighted):
    """Importance-weighted bound of `n_draws` draws (Burda, Grosse & Salakhutdinov, 2016, equation 8).

    With one draw it is the ELBO; with more it is tighter, and the posterior that it trains is broader.

    Parameters
    ----------
    n_draws : int, default=10
        Posterior draws per row. A step costs about as much as one on so many times the rows.

    References
    ----------
    Burda, Grosse & Salakhutdinov (2016). "Importance weighted autoencoders". ICLR.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import IWAE
    >>> VAETransformer(objective=IWAE(n_draws=50))
    VAETransformer(objective=IWAE(n_draws=50))
    """

    def _log_weights(self, log_joint: Tensor, posterior: Sequence[Tensor], z: Tensor) -> Tensor:
        return log_joint - _log_normal(z, *posterior).sum(-1)

    def _value(self, log_weights: Tensor, bound: Tensor) -> Tensor:
        return bound


class DReG(_ImportanceWeighted):
    """The bound of `IWAE` with the doubly reparameterised gradient of the encoder (Tucker et al., 2019, equation 8).

    Same expected gradient, less variance, above all for the encoder: its signal does not vanish as `n_draws` grows.

    Parameters
    ----------
    n_draws : int, default=10
        Posterior draws per row. A step costs about as much as one on so many times the rows.

    References
    ----------
    Tucker, Lawson, Gu & Maddison (2019). "Doubly reparameterized gradient estimators for Monte Carlo objectives". ICLR.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import DReG
    >>> VAETransformer(objective=DReG(n_draws=50))
    VAETransformer(objective=DReG(n_draws=50))
    """

    def _log_weights(self, log_joint: Tensor, posterior: Sequence[Tensor], z: Tensor) -> Tensor:
        """The posterior's gradient goes through `z` alone, and there it is weighted a second time."""
        log_weights = log_joint - _log_normal(z, *(parameter.detach() for parameter in posterior)).sum(-1)
        if z.requires_grad:
            shares = log_weights.detach().softmax(0).unsqueeze(-1)
            z.register_hook(lambda gradient: shares * gradient)
        return log_weights

    def _value(self, log_weights: Tensor, bound: Tensor) -> Tensor:
        surrogate = (log_weights.detach().softmax(0) * log_weights).sum(0)
        return bound.detach() + surrogate - surrogate.detach()


def total_correlation(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL of the aggregate posterior from the product of its units' marginals, estimated in a batch, in nats.

    The densities of q(z) are means over the batch. Chen et al. (2018, equation S6) divide by the number of all rows
    too, which adds a constant, (z_dim - 1) times its logarithm.

    Parameters
    ----------
    z : Tensor of shape (batch, z_dim)
        A draw of each row's posterior.
    mean, log_scale : Tensor of shape (batch, z_dim)
        The posteriors.

    Returns
    -------
    terms : Tensor of shape (batch,)
        Their mean is the estimate.
    """
    n_units = max(1, _MAX_ELEMENTS // len(z) ** 2)
    joint = marginals = z.new_zeros(())
    chunks = (part.t().unsqueeze(1).split(n_units) for part in (z, mean, log_scale))  # of (n_units, 1, batch)
    for draws, *posteriors in zip(*chunks, strict=True):
        log_q = _log_normal(draws.mT, *posteriors)  # (n_units, batch, batch): draw i under the posterior of row j
        joint = joint + log_q.sum(0)
        marginals = marginals + log_q.logsumexp(2).sum(0)
    return joint.logsumexp(1) - marginals + (z.shape[1] - 1) * math.log(len(z))


class BetaTC(Objective):
    """ELBO with the total correlation of the latent units weighted by `beta` (Chen et al., 2018, equation 4).

    The total correlation is estimated in the batch, by means over its rows, so that this is no bound unless ``beta`` is
    1, and then the ELBO.

    Parameters
    ----------
    beta : float, default=6.0
        Weight of the total correlation. The other parts of the KL term have weight 1.

    References
    ----------
    Chen, Li, Grosse & Duvenaud (2018). "Isolating sources of disentanglement in VAEs". NeurIPS.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import BetaTC
    >>> VAETransformer(objective=BetaTC(beta=4.0))
    VAETransformer(objective=BetaTC(beta=4.0))
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {"beta": [_NOT_NEGATIVE]}

    is_bound = False

    def __init__(self, beta: float = 6.0) -> None:
        super().__init__()
        self.beta = beta
        self.check_params()

    def forward(self, vae: VAE, batch: Batch) -> Terms:
        log_prob, terms, posterior = vae.terms(batch)
        kl = terms.sum(-1)
        return log_prob - kl - (self.beta - 1) * total_correlation(*posterior), log_prob, kl


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between two sets of points (n, z_dim), unbiased (Gretton et al., 2012, eq. 3).

    The kernel is ``exp(-|a - b|^2 / z_dim)``. Of fewer than two points, which have no pair, the estimate is zero.
    """
    if min(len(a), len(b)) < 2:
        return a.new_zeros(())

    def mean_kernel(u: Tensor, v: Tensor) -> Tensor:
        squares = u.square().sum(1, keepdim=True) + v.square().sum(1)
        kernel = torch.addmm(squares / -u.shape[1], u, v.T, alpha=2 / u.shape[1]).clamp(max=0).exp()
        if u is not v:
            return kernel.mean()
        n = len(u)
        return (kernel.sum() - n) / (n * (n - 1))  # without the pairs of a point with itself

    return mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)


class MMD(Objective):
    """InfoVAE: the maximum mean discrepancy draws the aggregate posterior to the prior (Zhao et al., 2019, equation 6).

    ``log p(x | z) - (1 - alpha) KL - (alpha + scale - 1) MMD^2``, which is no bound. Where ``alpha`` is near 1 nothing
    keeps the posterior of a row from becoming a point.

    Parameters
    ----------
    alpha : float, default=0.0
        What the KL term loses in weight.
    scale : float, default=1000.0
        Weight of the discrepancy, lambda in the paper.

    References
    ----------
    Zhao, Song & Ermon (2019). "InfoVAE: balancing learning and inference in variational autoencoders". AAAI.
    Gretton et al. (2012). "A kernel two-sample test". JMLR 13.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import MMD
    >>> VAETransformer(objective=MMD(scale=100.0))
    VAETransformer(objective=MMD(scale=100.0))
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "alpha": [Interval(Real, None, 1, closed="right")],
        "scale": [_NOT_NEGATIVE],
    }

    is_bound = False

    def __init__(self, alpha: float = 0.0, scale: float = 1000.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.scale = scale
        self.check_params()

    def check_params(self) -> None:
        super().check_params()
        if self.alpha + self.scale < 1:  # the weight of the discrepancy would be negative
            raise InvalidParameterError(
                f"The 'scale' parameter of {type(self).__name__} must be at least 1 - alpha. "
                f"Got scale={self.scale!r}, alpha={self.alpha!r} instead."
            )

    @property
    def kl_weight(self) -> float:  # type: ignore[override]
        return 1 - self.alpha

    def forward(self, vae: VAE, batch: Batch) -> Terms:
        log_prob, terms, (z, *_) = vae.terms(batch)
        kl = terms.sum(-1)
        # the prior's draws belong to the noise, which comes with the batch: the step has no stream of its own
        rng = torch.Generator().manual_seed(int(batch.eps.cpu().double().sum().frexp()[0] * 2**53) & (2**62 - 1))
        draws = vae.prior.sample(len(z), rng).to(z)
        discrepancy = squared_mmd(z, draws)
        return log_prob - self.kl_weight * kl - (self.alpha + self.scale - 1) * discrepancy, log_prob, kl


OBJECTIVES: dict[str, type[Objective]] = {"elbo": ELBO, "iwae": IWAE, "dreg": DReG, "beta_tc": BetaTC, "mmd": MMD}
