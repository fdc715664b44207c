"""The gradient of the ELBO written by hand: autograd's, for all members of a stack, in a third of the calls.

At the sizes of most tables a training step is a few dozen small operations, and autograd's graph costs more than the
arithmetic. Autograd still does whatever is not covered here: `fast_elbo` is the one door, `ENABLED` its lock.
"""

from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._data.batch import Batch
from .._model.columns import Categorical, Ordinal
from .._model.module import MAX_INPUT, MAX_Z, VAE, beside
from .._training.stack import Stack
from ..architectures import Architecture
from ..likelihoods import LIKELIHOODS
from ..objectives import ELBO
from ..priors import PRIORS, Prior

ENABLED = True
_relu_backward = torch.ops.aten.threshold_backward
_clamp_backward = torch.ops.aten.hardtanh_backward


class _Layer:
    """A linear layer of all members: weight (n_members, n_out, n_in) and bias (n_members, 1, n_out), or none."""

    def __init__(self, stack: Stack, name: str, last: int | None) -> None:
        values, grads = stack.used(last), stack.gradients
        self.weight, self.weight_grad = values[f"{name}.weight"], grads[f"{name}.weight"]
        self.transposed = self.weight.mT
        biases = (part.get(f"{name}.bias") for part in (values, grads))
        self.bias, self.bias_grad = (None if bias is None else bias.unsqueeze(1) for bias in biases)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """(n_members, batch, n_in) -> (n_members, batch, n_out)."""
        y = torch.bmm(x, self.transposed) if self.bias is None else torch.baddbmm(self.bias, x, self.transposed)
        return y.relu_() if relu else y

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """`y`, which is lost, and what the layer makes of `x`."""
        return y.baddbmm_(x, self.transposed)

    def backward(self, x: Tensor, grad: Tensor) -> None:
        """Leave the gradients in the stack's."""
        torch.bmm(grad.mT, x, out=self.weight_grad)
        if self.bias_grad is not None:
            torch.sum(grad, 1, keepdim=True, out=self.bias_grad)

    def back(self, grad: Tensor) -> Tensor:
        """The gradient of the input."""
        return torch.bmm(grad, self.weight)


class _Chain:
    """Linear layers with rectified linear units between them."""

    def __init__(self, stack: Stack, part: str, last: int | None) -> None:
        hidden = range(0, len(getattr(stack.members[0], part).hidden), 2)
        self.layers = [_Layer(stack, f"{part}.hidden.{i}", last) for i in hidden]
        self.layers.append(_Layer(stack, f"{part}.head", last))
        self.inputs: list[Tensor] = []

    @staticmethod
    def covers(mlp: Architecture) -> bool:
        if type(mlp).forward is not Architecture.forward or type(mlp.hidden) is not nn.Sequential:
            return False
        layers = [*mlp.hidden, mlp.head]
        kinds = zip(layers, cycle([nn.Linear, nn.ReLU]), strict=False)
        known = all(type(layer) is kind for layer, kind in kinds)
        return len(layers) % 2 == 1 and known and all(layer.bias is not None for layer in layers[::2])

    def forward(self, x: Tensor) -> Tensor:
        self.inputs = [x]
        for layer in self.layers[:-1]:
            self.inputs.append(layer.forward(self.inputs[-1], relu=True))
        return self.layers[-1].forward(self.inputs[-1])

    def backward(self, grad: Tensor, passed: Tensor | None = None) -> Tensor:
        """Set the gradients, given that of the output; returns that of the first layer's output.

        `passed` is what goes on below the last layer, if that is another one.
        """
        for layer, x in zip(self.layers[::-1], self.inputs[::-1], strict=True):
            layer.backward(x, grad)
            grad, passed = grad if passed is None else passed, None
            if x is not self.inputs[0]:
                grad = _relu_backward(layer.back(grad), x, 0)
        return grad


def _has_hooks(module: nn.Module) -> bool:
    """Tell whether some part does more than its `forward`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, kind) for part in module.modules() for kind in kinds)


def covers(vae: VAE) -> bool:
    """Tell whether the parts of `vae` are known: chains of rectified linear units, terms whose gradients are theirs."""
    kinds = {type(part) for part in getattr(vae.likelihood, "parts", [vae.likelihood])}
    known = kinds <= {*LIKELIHOODS.values(), Categorical, Ordinal} and type(vae.prior) in PRIORS.values()
    return known and _Chain.covers(vae.encoder) and _Chain.covers(vae.decoder) and not _has_hooks(vae)


def fast_elbo(stack: Stack, objective: Any) -> "FastELBO | None":
    """The bound of all members with its gradient, where it is written here."""
    plain = type(objective) is ELBO and not objective.free_bits and not objective.warmup
    return FastELBO(stack, float(objective.beta)) if ENABLED and plain and covers(stack.members[0]) else None


class FastELBO:
    """The ELBO of all members of a stack, and its gradient, which is left in the stack's.

    Parameters
    ----------
    stack : Stack
        Of models that `covers` allows.
    beta : float
        Weight of the KL term.
    last : int, default=None
        Take the averaged parameters of so many members, the last ones; there is no gradient then.
    """

    def __init__(self, stack: Stack, beta: float, last: int | None = None) -> None:
        self.stack, self.beta = stack, beta
        self.encoder, self.decoder = _Chain(stack, "encoder", last), _Chain(stack, "decoder", last)
        self.has_paths = stack.members[0].linear_encoder is not None
        if self.has_paths:
            self.linear_encoder = _Layer(stack, "linear_encoder", last)
            self.linear_decoder = _Layer(stack, "linear_decoder", last)
        self.likelihood = stack.joined("likelihood", last)
        members = stack.members if last is None else stack.averages[-last:]
        self.priors = [member.prior for member in members]
        takes_members = self.priors[0].takes_members
        self.prior = stack.joined("prior", last, by_row=False) if takes_members else None
        encoding = () if type(self.priors[0]).attach is Prior.attach else ("encoder.", "linear_encoder.")
        self.shared = [name for name in stack.gradients if name.startswith(encoding)]  # with gradients of the prior too

    @torch.inference_mode()
    def gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL of each row of the first member, (batch,); all fields have a dimension of members."""
        assert batch.weight is not None
        x, weight = batch.x, batch.weight.unsqueeze(-1)
        inputs = batch.inputs(self.likelihood)
        mean, log_scale = self._encode(inputs, batch.spread)
        scale = log_scale.exp()
        z = beside(torch.addcmul(mean, scale, batch.eps), batch.context)
        raw = self._decode(z).unflatten(-1, (self.likelihood.n_raw, -1))
        observed, factors = batch.observed, self.likelihood.balance(raw) if batch.balanced else None
        log_prob, grad_raw = self.likelihood.gradient(raw, x, weight if observed is None else weight * observed)
        if factors is not None:
            grad_raw.mul_(factors)
        kl_weight = weight if self.beta == 1 else self.beta * weight
        kl, kl_mean, kl_log_scale = self._kl_gradient(mean, log_scale, batch.eps, kl_weight)
        shared = {name: self.stack.gradients[name].clone() for name in self.shared}  # what the prior has left there
        passed = F.pad(grad_raw[..., :1, :], (0, 0, 0, grad_raw.shape[-2] - 1)) if batch.for_map else grad_raw
        grad_z = self._backward_decoder(z, grad_raw.flatten(2), passed.flatten(2))[..., : mean.shape[-1]]
        grad_log_scale = (grad_z * batch.eps).mul_(scale).add_(kl_log_scale)
        self._backward_encoder(inputs, grad_z + kl_mean, grad_log_scale)
        for name, grad in shared.items():
            self.stack.gradients[name].add_(grad)
        return (log_prob if observed is None else log_prob * observed[0]).sum(-1), kl

    @torch.inference_mode()
    def terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL of each row of each member, (n_members, batch)."""
        x, observed = batch.x, batch.observed
        mean, log_scale = self._encode(batch.inputs(self.likelihood), batch.spread)
        z = torch.addcmul(mean, log_scale.exp(), batch.eps)
        raw = self._decode(beside(z, batch.context)).unflatten(-1, (self.likelihood.n_raw, -1))
        if self.prior is not None:
            kl = self.prior.kl(mean, log_scale, z)
        else:
            kl = torch.stack([prior.kl(*one) for prior, *one in zip(self.priors, mean, log_scale, z, strict=True)])
        log_prob = self.likelihood.log_prob(raw, x)
        return (log_prob if observed is None else log_prob * observed).sum(-1), kl.sum(-1)

    def _kl_gradient(self, mean: Tensor, log_scale: Tensor, eps: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        if self.prior is not None:
            kl, *gradients = self.prior.kl_gradient(mean, log_scale, eps, weight)
            return kl[0], *gradients
        for name in self.shared:
            self.stack.gradients[name].zero_()
        parts = [prior.kl_gradient(*one) for prior, *one in zip(self.priors, mean, log_scale, eps, weight, strict=True)]
        kl, kl_mean, kl_log_scale = zip(*parts, strict=True)
        return kl[0], torch.stack(kl_mean), torch.stack(kl_log_scale)

    def _encode(self, inputs: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor]:
        networks = self.encoder.forward(inputs.clamp(-MAX_INPUT, MAX_INPUT) if self.has_paths else inputs)
        mean, log_scale = (half.contiguous() for half in networks.chunk(2, dim=-1))  # strided tensors are slow
        self.excess = log_scale.relu()
        log_scale.clamp_(max=0).add_(self.excess.log1p())  # `tamed`
        if spread is not None:
            log_scale = log_scale + spread
        return (self.linear_encoder.add(mean, inputs) if self.has_paths else mean), log_scale

    def _backward_encoder(self, inputs: Tensor, grad_mean: Tensor, grad_log_scale: Tensor) -> None:
        self.encoder.backward(torch.cat([grad_mean, grad_log_scale.div_(self.excess.add_(1))], dim=-1))
        if self.has_paths:
            self.linear_encoder.backward(inputs, grad_mean)

    def _decode(self, z: Tensor) -> Tensor:
        if not self.has_paths:
            return self.decoder.forward(z)
        return self.linear_decoder.add(self.decoder.forward(z.clamp(-MAX_Z, MAX_Z)), z)

    def _backward_decoder(self, z: Tensor, grad: Tensor, passed: Tensor) -> Tensor:
        grad_z = self.decoder.layers[0].back(self.decoder.backward(grad, passed))
        if self.has_paths:
            self.linear_decoder.backward(z, grad)
            grad_z = _clamp_backward(grad_z, z, -MAX_Z, MAX_Z).add_(self.linear_decoder.back(passed))
        return grad_z
