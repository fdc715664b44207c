"""Matrix products of linear layers."""

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGE = 2**21  # multiplications
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_onednn(x: Tensor) -> bool:
    """Whether `linear` takes oneDNN's product for `x`."""
    return _ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, then ReLU if wanted, without a graph: (..., n_in) and (n_out, n_in) -> (..., n_out).

    Takes oneDNN's product where there is one: for float32 it is up to twice as fast as the BLAS that torch takes, and
    the bits of a row do not depend on its neighbours.
    """
    if has_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def fastest(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """The same by whichever is faster at this size: oneDNN takes 20 microseconds before it begins."""
    if x.numel() * weight.shape[0] >= _LARGE:
        return linear(x, weight, bias, relu=relu)
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y
