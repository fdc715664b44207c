"""Objects with tensors as pickle writes them: by value, where torch's own pickles hold addresses in memory.

So equal models have equal pickles and one `joblib.hash`.
"""

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._system.device import device_here


def to_bytes(value: Any) -> bytes:
    """A pickle of modules, optimizers and what else holds tensors."""
    buffer = io.BytesIO()
    _ByValue(buffer).dump(value)
    return buffer.getvalue()


class _ByValue(pickle._Pickler):
    """Writes tensors as arrays; and strings and dtypes in full, since equal ones may be one object or several."""

    def memoize(self, obj: Any) -> None:
        if not isinstance(obj, (str, bytes, np.dtype)):
            super().memoize(obj)  # type: ignore[misc]  # which the stubs lack

    def reducer_override(self, obj: Any) -> Any:
        return _reduced(obj) if isinstance(obj, (Tensor, torch.Generator)) else NotImplemented


class _Stand:
    """Stands for a tensor in what is pickled, and becomes it when that is read."""

    def __init__(self, reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def portable(module: nn.Module) -> nn.Module:
    """A copy of a module for any pickle, cloudpickle's too, whose tensors are arrays until it is read."""
    return copy.deepcopy(module, {id(part): _Stand(_reduced(part)) for part in _tensors(module)})


def _tensors(module: nn.Module) -> Iterator[Tensor | torch.Generator]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, (Tensor, torch.Generator)))


def _reduced(value: Tensor | torch.Generator) -> Any:
    """The function and the arguments that make the value again."""
    if isinstance(value, torch.Generator):
        return _generator, (value.get_state().numpy(), str(value.device))
    if value.layout is not torch.strided:
        return value.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    order = sorted(range(value.ndim), key=lambda dim: -value.stride()[dim])  # as the numbers lie in memory
    shape = [value.shape[dim] for dim in order]
    data = value.detach().cpu().permute(order).reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = (str(value.dtype).removeprefix("torch."), isinstance(value, nn.Parameter), value.requires_grad)
    return _tensor, (data, shape, order, kind, torch.serialization.location_tag(value.untyped_storage()))


def _tensor(data: bytes, shape: list[int], order: list[int], kind: tuple, device: str) -> Tensor:
    dtype, is_parameter, requires_grad = kind
    options = {"dtype": getattr(torch, dtype)}
    flat = torch.frombuffer(bytearray(data), **options) if data else torch.empty(0, **options, device="cpu")
    tensor = flat.reshape(shape).permute([order.index(dim) for dim in range(len(order))]).to(device_here(device))
    return nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)


def _generator(state: np.ndarray, device: str) -> torch.Generator:
    rng = torch.Generator(device_here(device))
    rng.set_state(torch.from_numpy(state.copy()))
    return rng
