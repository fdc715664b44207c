"""Matrix products of linear layers."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LARGE = 2**21  # multiplications
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_onednn(x: Tensor) -> bool:
    """Tell whether `linear` takes oneDNN's product for `x`."""
    return _ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, then ReLU if wanted, without a graph: (..., n_in) and (n_out, n_in) -> (..., n_out).

    Takes oneDNN's product where there is one: for float32 it is up to twice as fast as the BLAS that torch takes, and
    the bits of a row do not depend on its neighbours.
    """
    if has_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    return _by_blas(x, weight, bias, relu)


def _by_blas(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def is_large(x: Tensor, weight: Tensor) -> bool:
    """Tell whether oneDNN pays: it takes 20 microseconds before it begins."""
    return x.numel() * weight.shape[0] >= LARGE


class _Linear(torch.autograd.Function):
    """`linear` with a graph; the products of its gradient are oneDNN's too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _differentiable(grad, weight.t()) if for_x else None,
            _differentiable(rows.t(), x.reshape(-1, x.shape[-1]).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _differentiable(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear`, with a graph where one is wanted."""
    return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else linear(x, weight, bias)


def arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the arguments of `torch.nn.functional.linear`, however they were given."""
    return input, weight, bias


class LinearByOneDNN(TorchFunctionMode):
    """Linear layers of some size, a user's own networks included, take oneDNN's products in training."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not F.linear:
            return function(*args, **kwargs)
        x, weight, bias = arguments(*args, **kwargs)
        large = has_onednn(x) and is_large(x, weight)
        return _differentiable(x, weight, bias) if large else F.linear(x, weight, bias)
