"""Priors p(z): log_prob and sample, one class each; PRIORS names them.

Shapes: ``z`` is (..., z_dim), a log-density is (...,), in nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._model.component import COUNT, Component, Counts
from ._model.counts import LOG_2PI
from ._system.device import widest

__all__ = ["Flow", "Mixture", "Prior", "StandardNormal", "VampPrior"]

_MOMENT_DRAWS = 2_500
_NEGLIGIBLE = -50.0  # nats below the largest term: a sum does not change by it, even in float64
_LEAST_SHARE = -60.0  # nats of a component's: a smaller one becomes a denormal number, which is slow to compute with
_MAX_ELEMENTS = 2**20  # values that one chunk of a mixture's log-density holds; larger ones are slower


class Prior(Component, ABC):
    """Base of all priors, and of your own: write `log_prob` and `sample`, and `build` if it has parameters.

    A learned prior should start at or near the standard normal, which the linear start assumes.
    """

    z_dim: int
    takes_members: ClassVar[bool] = False  # whether parameters and latent points may have a dimension of members before

    def build(self, z_dim: int, n_features: int, generator: torch.Generator) -> None:
        """Create parameters and buffers for `z_dim` latent units; `generator` is the source of their first values.

        Override it by calling ``super().build(z_dim, n_features, generator)`` first. The encoder sees rows of
        `n_features`.
        """
        self.check_params()
        self.z_dim = z_dim

    def attach(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """Take note of the encoder, a function from its inputs to mean and log-scale of q(z | x)."""

    def start(self, inputs: Tensor, generator: torch.Generator) -> None:
        """Set parameters from what the encoder sees of the training rows (n_samples, n_features)."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of latent points, in nats: (..., z_dim) -> (...,)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` latent points: (n, z_dim).

        The parameters are float64 where rows with holes are scored: let what you draw have their dtype, as by
        ``noise.to(self.weight)``.
        """

    def kl(self, mean: Tensor, log_scale: Tensor, z: Tensor) -> Tensor:
        """Split KL(N(mean, scale^2) || p(z)) into terms to be summed, in nats: (..., n_terms).

        A prior with a closed form returns a term for each unit. Otherwise there is one term, an estimate at `z`, a draw
        of the posterior: its negative entropy, which is exact, minus the log-density of the draw.
        """
        return self._estimated_kl(log_scale, self.log_prob(z))

    def kl_given(self, mean: Tensor, log_scale: Tensor, z: Tensor, log_prob: Tensor) -> Tensor:
        """`kl` for draws whose log-density is known, which is then not computed again: same shape."""
        if type(self).kl is Prior.kl:
            return self._estimated_kl(log_scale, log_prob)
        return self.kl(mean, log_scale, z)

    def _estimated_kl(self, log_scale: Tensor, log_prob: Tensor) -> Tensor:
        negative_entropy = -(log_scale + 0.5 * (1 + LOG_2PI)).sum(-1)
        return (negative_entropy - log_prob).unsqueeze(-1)

    def kl_gradient(
        self, mean: Tensor, log_scale: Tensor, eps: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the KL of each row, and the gradients of its weighted sum in mean and log-scale.

        They are (batch,) and twice (batch, z_dim). `eps` are the standard normal draws of z, `weight` is (batch, 1).
        Gradients in parameters are left in their ``grad``, those of an encoder through which the prior looks are added
        to it. Where the prior `takes_members`, all have a dimension of these before.
        """
        self.zero_grad(set_to_none=False)
        with torch.inference_mode(False), torch.enable_grad():
            mean, log_scale, eps, weight = (part.detach().clone() for part in (mean, log_scale, eps, weight))
            mean.requires_grad_()
            log_scale.requires_grad_()
            kl = self.kl(mean, log_scale, mean + log_scale.exp() * eps).sum(-1)
            (weight.squeeze(-1) * kl).sum().backward()
        assert mean.grad is not None
        assert log_scale.grad is not None
        return kl.detach(), mean.grad, log_scale.grad

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each unit, (z_dim,) each; here those of a fixed block of draws."""
        draws = self.sample(_MOMENT_DRAWS, torch.Generator().manual_seed(0))
        return draws.mean(0), draws.var(0)

    def kl_per_unit(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """KL of each unit's posterior from the normal distribution with the prior's mean and variance in that unit.

        Only where units are independent is a KL divergence a sum over units; this is the term of the unit that any
        prior has. Same shape as `mean`, in nats; for the standard normal prior its KL.
        """
        loc, variance = (moment.to(mean) for moment in self.moments())
        ratio = ((2 * log_scale).exp() + (mean - loc).square()) / variance
        return 0.5 * (ratio - 1 + variance.log()) - log_scale

    def active_units(self, mean: Tensor, threshold: float = 0.01) -> Tensor:
        """Tell whether the variance of E[z | x] over rows exceeds a share of the prior's variance, unit by unit.

        (n_samples, z_dim) -> (z_dim,), bool. For the standard normal prior the criterion of Burda, Grosse &
        Salakhutdinov (2016), section 5.2.
        """
        _, variance = self.moments()
        return mean.var(0, correction=0) > threshold * variance.to(mean)


class StandardNormal(Prior):
    """The unit Gaussian N(0, I) (Kingma & Welling, 2014).

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.priors import StandardNormal
    >>> VAETransformer(prior=StandardNormal())
    VAETransformer(prior=StandardNormal())
    """

    takes_members = True

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.z_dim, generator=generator, device=generator.device)

    def kl(self, mean: Tensor, log_scale: Tensor, z: Tensor | None = None) -> Tensor:
        """KL of each unit, closed form (Kingma & Welling, 2014, appendix B): same shape as `mean`."""
        return 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale

    def kl_gradient(
        self, mean: Tensor, log_scale: Tensor, eps: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope = (2 * log_scale).exp_().sub_(1)
        kl = 0.5 * torch.addcmul(slope, mean, mean).sub_(log_scale, alpha=2).sum(-1)
        return kl, weight * mean, slope.mul_(weight)

    def moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.z_dim), torch.ones(self.z_dim)


def _log_sum(terms: Tensor) -> Tensor:
    """logsumexp over the last dimension, whose smallest terms count as no less than what a sum does not change by:
    their exponentials, and gradients, would be denormal numbers, which take many times as long."""
    most = terms.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).min)
    return (terms - most).clamp_(min=_NEGLIGIBLE).exp_().sum(-1).log() + most.squeeze(-1)


class _Joint:
    """log p(z, k) of the components k of mixtures of diagonal Gaussians, linear in the powers [z, z^2] of a point.

    Of each mixture the log-weights (n_members, n_components), means and log-scales (n_members, n_components, z_dim).
    """

    def __init__(self, log_weight: Tensor, loc: Tensor, log_scale: Tensor) -> None:
        self.log_weight, self.loc = log_weight, loc
        self.precision = (-2 * log_scale).exp()
        slope = loc * self.precision
        self.slopes = torch.cat([slope, -0.5 * self.precision], -1)  # (n_members, n_components, 2 * z_dim)
        log_norm = torch.addcmul(log_scale, loc, slope, value=0.5).sum(-1) + 0.5 * LOG_2PI * loc.shape[-1]
        self.offset = (log_weight - log_norm).unsqueeze(-2)

    @staticmethod
    def powers(z: Tensor) -> Tensor:
        """(n_members, batch, z_dim) -> (n_members, batch, 2 * z_dim)."""
        return torch.cat([z, z.square()], -1)

    def __call__(self, powers: Tensor) -> Tensor:
        """(n_members, batch, 2 * z_dim) -> (n_members, batch, n_components)."""
        return torch.baddbmm(self.offset, powers, self.slopes.mT)

    def gradients(self, powers: Tensor, shares: Tensor, of_parts: Sequence[Any]) -> Tensor:
        """The gradient of the sum of log p(z) in z; those in logits, means and log-scales are left in `of_parts`.

        `shares` (n_members, batch, n_components) are each row's weight times p(k | z).
        """
        of_logits, of_loc, of_log_scale = of_parts
        total = shares.sum(-2)
        first, second = torch.bmm(shares.mT, powers).chunk(2, -1)
        of_first, of_second = torch.bmm(shares, self.slopes).chunk(2, -1)
        z, each = powers[..., : self.loc.shape[-1]], total.unsqueeze(-1)
        moved = torch.addcmul(first, self.loc, each, value=-1)
        torch.addcmul(total, total.sum(-1, keepdim=True), self.log_weight.exp(), value=-1, out=of_logits)
        torch.mul(self.precision, moved, out=of_loc)
        torch.addcmul(second, self.loc, moved.add_(first), value=-1, out=of_log_scale)
        of_log_scale.mul_(self.precision).sub_(each)
        return torch.addcmul(of_first, z, of_second, value=2)


def mixture_log_prob(z: Tensor, log_weight: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Log-density of points (..., z_dim) under a mixture of diagonal Gaussians, in nats: (...,).

    Of the mixture the log-weights (n_components,), means and log-scales (n_components, z_dim); of several, a dimension
    of members before, as points (n_members, batch, z_dim) then have.
    """
    parts = [widest(part) for part in (log_weight, loc, log_scale)]  # squares cancel
    joint = _Joint(*(parts if loc.ndim > 2 else (part.unsqueeze(0) for part in parts)))
    points = z if loc.ndim > 2 else z.reshape(1, -1, z.shape[-1])
    chunks = points.split(max(1, _MAX_ELEMENTS // log_weight.numel()), 1)
    dtype = torch.promote_types(z.dtype, torch.float32)  # in which the sum loses nothing that the result would keep
    log_prob = torch.cat([_log_sum(joint(joint.powers(widest(chunk))).to(dtype)) for chunk in chunks], -1)
    return log_prob.view(z.shape[:-1]).to(z.dtype)


class _NormalMixture(Prior):
    """Base of mixtures of diagonal Gaussians."""

    @abstractmethod
    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (n_components,), means and log-scales (n_components, z_dim)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return mixture_log_prob(z, *self.components())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        log_weight, loc, log_scale = (part.to(generator.device) for part in self.components())
        chosen = torch.multinomial(log_weight.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.z_dim, generator=generator, device=generator.device)
        return loc[chosen] + log_scale.exp()[chosen] * noise

    def moments(self) -> tuple[Tensor, Tensor]:
        log_weight, loc, log_scale = self.components()
        weight = log_weight.exp()
        mean = weight @ loc
        return mean, weight @ ((2 * log_scale).exp() + (loc - mean).square())


class Mixture(_NormalMixture):
    """Mixture of diagonal Gaussians with learned weights, means and scales.

    It starts near the standard normal: equal weights, means drawn at random around the origin, and scales that leave
    the variance of each unit at 1.

    Parameters
    ----------
    n_components : int, default=10
        Number of Gaussians.

    References
    ----------
    Dilokthanakul et al. (2016). "Deep unsupervised clustering with Gaussian mixture VAEs", section 3. arXiv:1611.02648.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.priors import Mixture
    >>> VAETransformer(prior=Mixture(n_components=50))
    VAETransformer(prior=Mixture(n_components=50))
    """

    takes_members = True
    _SPREAD = 0.7  # root mean square distance of a mean from the origin at the start: the larger, the less normal

    _parameter_constraints: ClassVar[dict[str, list]] = {"n_components": [COUNT]}

    def __init__(self, n_components: int = 10) -> None:
        super().__init__()
        self.n_components = n_components

    def build(self, z_dim: int, n_features: int, generator: torch.Generator) -> None:
        super().build(z_dim, n_features, generator)
        draws = torch.randn(self.n_components, z_dim, generator=generator)
        draws = (draws - draws.mean(0)) / draws.std(0, correction=0).clamp(min=1e-6)
        self.loc = nn.Parameter(self._SPREAD / math.sqrt(z_dim) * draws)
        self.log_scale = nn.Parameter(
            (1 - self.loc.detach().square().mean(0)).log().div(2).repeat(self.n_components, 1)
        )
        self.logits = nn.Parameter(torch.zeros(self.n_components))

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits.log_softmax(-1), self.loc, self.log_scale

    @torch.no_grad()
    def kl_gradient(
        self, mean: Tensor, log_scale: Tensor, eps: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale, joint = log_scale.exp(), _Joint(*self.components())
        powers = joint.powers(torch.addcmul(mean, scale, eps))
        terms = joint(powers)
        log_shares = terms.log_softmax(-1)
        log_prob = terms[..., 0] - log_shares[..., 0]
        shares = log_shares.clamp_(min=_LEAST_SHARE).exp_()
        grads = [part.grad for part in (self.logits, self.loc, self.log_scale)]
        assert all(grad is not None for grad in grads)  # which `out=` would take for nowhere
        grad_z = joint.gradients(powers, shares.mul_(-weight), grads)
        return self._estimated_kl(log_scale, log_prob).squeeze(-1), grad_z, (grad_z * eps).mul_(scale).sub_(weight)


class VampPrior(_NormalMixture):
    """Mixture of the posteriors of learned pseudo-inputs, which start at training rows.

    One component more is N(0, I), with 0.9 of the weight at the start: a few narrow posteriors leave most of the latent
    space without any density, where rows that the model has not seen may lie. Weights are learned too.

    Parameters
    ----------
    n_components : int, default=50
        Number of pseudo-inputs.

    References
    ----------
    Tomczak & Welling (2018). "VAE with a VampPrior", equation 9. AISTATS.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.priors import VampPrior
    >>> VAETransformer(prior=VampPrior(n_components=200))
    VAETransformer(prior=VampPrior(n_components=200))
    """

    _START_WEIGHT = 0.9

    _parameter_constraints: ClassVar[dict[str, list]] = {"n_components": [COUNT]}

    def __init__(self, n_components: int = 50) -> None:
        super().__init__()
        self.n_components = n_components

    def build(self, z_dim: int, n_features: int, generator: torch.Generator) -> None:
        super().build(z_dim, n_features, generator)
        self.inputs = nn.Parameter(torch.randn(self.n_components, n_features, generator=generator))
        log_odds = math.log(self._START_WEIGHT / (1 - self._START_WEIGHT) * self.n_components)
        self.logits = nn.Parameter(torch.cat([torch.tensor([log_odds]), torch.zeros(self.n_components)]))

    def attach(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.encode = encode  # a method of the VAE: no submodule, since the VAE owns the prior

    def start(self, inputs: Tensor, generator: torch.Generator) -> None:
        n_rounds = -(-self.n_components // len(inputs))  # a table of fewer rows gives each more than once
        rows = torch.cat([torch.randperm(len(inputs), generator=generator) for _ in range(n_rounds)])
        self.inputs.data.copy_(inputs[rows[: self.n_components]])

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        standard = self.inputs.new_zeros(1, self.z_dim)
        loc, log_scale = self.encode(self.inputs)
        return self.logits.log_softmax(0), torch.cat([standard, loc]), torch.cat([standard, log_scale])


class _SeededInit(TorchFunctionMode):
    """Lets the initialisation of other people's layers draw from our stream; torch's global one stays where it is."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function.__name__ in ("uniform_", "normal_", "kaiming_uniform_"):
            kwargs["generator"] = self.generator
        return function(*args, **kwargs)


class Flow(Prior):
    """Masked autoregressive flow from the standard normal, by zuko (``pip install "skvae[flow]"``).

    It starts at the identity: the prior is the standard normal before the first step.

    Parameters
    ----------
    n_transforms : int, default=3
        Number of autoregressive transformations.
    hidden_layer_sizes : sequence of int, default=(64, 64)
        Widths of the hidden layers in each.

    References
    ----------
    Papamakarios, Pavlakou & Murray (2017). "Masked autoregressive flow for density estimation", section 3. NeurIPS.
    Chen et al. (2017). "Variational lossy autoencoder", section 3.2. ICLR.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.priors import Flow
    >>> VAETransformer(prior=Flow(n_transforms=2))
    VAETransformer(prior=Flow(n_transforms=2))
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "n_transforms": [COUNT],
        "hidden_layer_sizes": [Counts(range(1000), "a sequence of ints > 0")],
    }

    def __init__(self, n_transforms: int = 3, hidden_layer_sizes: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.n_transforms = n_transforms
        self.hidden_layer_sizes = hidden_layer_sizes

    def build(self, z_dim: int, n_features: int, generator: torch.Generator) -> None:
        super().build(z_dim, n_features, generator)
        flows = _zuko_flows()
        with _SeededInit(generator):
            self.flow = flows.MAF(z_dim, transforms=self.n_transforms, hidden_features=tuple(self.hidden_layer_sizes))
        for transform in self.flow.transform.transforms:
            layers = [layer for layer in transform.modules() if isinstance(layer, nn.Linear)]
            for parameter in (layers[-1] if layers else transform).parameters():  # no layers for a single unit
                nn.init.zeros_(parameter)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.flow().log_prob(z)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, self.z_dim, generator=generator, device=generator.device)
        return self.flow().transform.inv(noise.to(next(self.parameters()))).to(generator.device)


def _zuko_flows() -> Any:
    """zuko.flows, without what importing it changes for the whole process: torch's validation of distributions."""
    validate = torch.distributions.Distribution._validate_args
    try:
        from zuko import flows
    except ImportError as error:
        raise ImportError("The flow prior needs zuko: pip install 'skvae[flow]'.") from error
    finally:
        torch.distributions.Distribution.set_default_validate_args(validate)
    return flows


PRIORS: dict[str, type[Prior]] = {
    "standard_normal": StandardNormal,
    "mixture": Mixture,
    "vamp": VampPrior,
    "flow": Flow,
}
