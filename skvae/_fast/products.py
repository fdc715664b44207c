"""Matrix products of linear layers at inference, where the bits of a row do not depend on its neighbours."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LEAST_OUTPUTS = 16  # BLAS has position-dependent kernels for fewer
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_onednn(x: Tensor) -> bool:
    """Tell whether `linear` takes oneDNN's product for `x`."""
    return _ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` by oneDNN's product, or else padded to 16 outputs; no graph."""
    if has_onednn(input):
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    n_outputs, n_missing = len(weight), _LEAST_OUTPUTS - len(weight)
    if n_missing > 0:
        weight, bias = F.pad(weight, (0, 0, 0, n_missing)), bias if bias is None else F.pad(bias, (0, n_missing))
    return F.linear(input, weight, bias)[..., :n_outputs]


class RowwiseLinear(TorchFunctionMode):
    """Linear layers take `linear`. A mode, since it must hold inside a user's own networks too; modes belong to one
    thread."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (linear if function is F.linear else function)(*args, **(kwargs or {}))
