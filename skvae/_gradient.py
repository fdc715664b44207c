"""The gradient of the ELBO written by hand: what autograd computes, in a third of the calls.

At the sizes of most tables a training step is a few dozen small operations, and autograd's graph costs more than the
arithmetic. Autograd still does whatever is not covered here.
"""

from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from ._component import stands_for
from ._module import MAX_INPUT, MAX_Z
from ._products import fastest as linear
from .architectures import Architecture
from .likelihoods import Likelihood
from .priors import Prior

_relu_backward = torch.ops.aten.threshold_backward


def _set(parameter: nn.Parameter, grad: Tensor) -> None:
    """Set the gradient, at once where it belongs: it is in the cache now."""
    if parameter.grad is None:
        parameter.grad = grad
    else:
        parameter.grad.copy_(grad)


def _set_gradient(weight: nn.Parameter, x: Tensor, grad: Tensor) -> None:
    """Gradient of the weight of a linear layer, laid out in memory as the weight is."""
    _set(weight, linear(grad.t(), x.t()) if weight.is_contiguous() else linear(x.t(), grad.t()).t())


def _has_hooks(module: nn.Module) -> bool:
    """Whether some part does more than its `forward`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, kind) for part in module.modules() for kind in kinds)


class _Chain:
    """Linear layers with rectified linear units between them."""

    def __init__(self, mlp: Any) -> None:
        layers = [*mlp.hidden, mlp.head]
        self.layers = [(layer.weight, layer.bias) for layer in layers[::2]]

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
        for weight, bias in self.layers[:-1]:
            self.inputs.append(linear(self.inputs[-1], weight, bias, relu=True))
        return linear(self.inputs[-1], *self.layers[-1])

    def backward(self, grad: Tensor) -> Tensor:
        """Set the gradients, given that of the output; returns that of the first layer's output."""
        for (weight, bias), x in zip(self.layers[::-1], self.inputs[::-1], strict=True):
            _set_gradient(weight, x, grad)
            _set(bias, grad.sum(0))
            if x is not self.inputs[0]:
                grad = _relu_backward(linear(grad, weight.t()), x, 0)
        return grad


class ELBOGradient:
    """The gradient of the mean of ``beta * kl - reconstruction`` over a batch, in all parameters of `vae`.

    Parameters
    ----------
    vae : VAE
        A model that `covers` allows.
    beta : float
        Weight of the KL term.
    """

    def __init__(self, vae: Any, beta: float) -> None:
        self.beta, self.likelihood, self.prior = beta, vae.likelihood, vae.prior
        self.encoder, self.decoder = _Chain(vae.encoder), _Chain(vae.decoder)
        self.beside = vae.linear_encoder is not None
        if self.beside:
            self.linear_encoder, self.linear_decoder = vae.linear_encoder.weight, vae.linear_decoder.weight
        looks_through = type(vae.prior).attach is not Prior.attach  # the encoder then has gradients of the prior too
        encoding = [*vae.encoder.parameters(), *([self.linear_encoder] if self.beside else [])]
        self.shared = encoding if looks_through else []

    @staticmethod
    def covers(vae: Any) -> bool:
        """Whether the parts of `vae` are known: chains of rectified linear units, terms whose gradients are theirs."""
        known = stands_for("gradient", "log_prob", vae.likelihood, Likelihood)
        known = known and stands_for("kl_gradient", "kl", vae.prior, Prior)
        return known and _Chain.covers(vae.encoder) and _Chain.covers(vae.decoder) and not _has_hooks(vae)

    @torch.no_grad()
    def __call__(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of reconstruction and KL over the rows of `x` (batch, n_features) at the draws `eps` (batch, z_dim)."""
        inputs = self.likelihood.inputs(x)
        mean, log_scale = self._encode(inputs)
        scale = log_scale.exp()
        z = torch.addcmul(mean, scale, eps)
        raw = self._decode(z).unflatten(-1, (self.likelihood.n_raw, -1))
        log_prob, grad_raw = self.likelihood.gradient(raw, x)
        self._forget_shared()
        kl, kl_mean, kl_log_scale = self.prior.kl_gradient(mean, log_scale, eps, self.beta / len(x))
        shared = [(part, part.grad) for part in self.shared]
        self._forget_shared()
        grad_z = self._backward_decoder(z, grad_raw.flatten(1))
        grad_log_scale = (grad_z * eps).mul_(scale).add_(kl_log_scale)
        self._backward_encoder(inputs, grad_z.add_(kl_mean), grad_log_scale)
        for part, grad in shared:
            part.grad += 0 if grad is None else grad
        return log_prob, kl

    def _forget_shared(self) -> None:
        for part in self.shared:
            part.grad = None

    def _encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        networks = self.encoder.forward(inputs.clamp(-MAX_INPUT, MAX_INPUT) if self.beside else inputs)
        mean, log_scale = (half.contiguous() for half in networks.chunk(2, dim=-1))  # strided tensors are slow
        return (mean.add_(linear(inputs, self.linear_encoder)) if self.beside else mean), log_scale

    def _backward_encoder(self, inputs: Tensor, grad_mean: Tensor, grad_log_scale: Tensor) -> None:
        self.encoder.backward(torch.cat([grad_mean, grad_log_scale], dim=-1))
        if self.beside:
            _set_gradient(self.linear_encoder, inputs, grad_mean)

    def _decode(self, z: Tensor) -> Tensor:
        if not self.beside:
            return self.decoder.forward(z)
        return self.decoder.forward(z.clamp(-MAX_Z, MAX_Z)).add_(linear(z, self.linear_decoder))

    def _backward_decoder(self, z: Tensor, grad: Tensor) -> Tensor:
        grad_z = linear(self.decoder.backward(grad), self.decoder.layers[0][0].t())
        if self.beside:
            _set_gradient(self.linear_decoder, z, grad)
            grad_z.masked_fill_(z.abs() > MAX_Z, 0).add_(linear(grad, self.linear_decoder.t()))
        return grad_z
