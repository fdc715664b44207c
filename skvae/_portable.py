"""Objects with tensors as pickle writes them: by value, where torch's own pickles hold addresses in memory.

So equal models have equal pickles and one `joblib.hash`.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._device import device_here


class _Recipe:
    """Stands for an object in what is pickled or copied, and becomes it when it is read."""

    def __init__(self, make: Any, *args: Any) -> None:
        self.make = make
        self.args = args

    def __reduce__(self) -> tuple:
        return self.make, self.args


def portable(value: Any) -> Any:
    """A copy of modules, optimizers and collections of them for pickle, whose tensors are arrays until it is read."""
    memo: dict[int, Any] = {}
    for part in _tensors(value):
        memo[id(part)] = _generator_recipe(part) if isinstance(part, torch.Generator) else _tensor_recipe(part)
    for optimizer in _leaves(value):
        if isinstance(optimizer, Optimizer):  # its own way to be read looks into the tensors
            state = copy.deepcopy(optimizer.__getstate__(), memo)
            memo[id(optimizer)] = _Recipe(_optimizer, type(optimizer), state)
    return copy.deepcopy(value, memo)


def _leaves(value: Any) -> Iterator[Any]:
    """What collections hold."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _tensors(value: Any) -> Iterator[Tensor | torch.Generator]:
    """Tensors, and the generators that have one, in the places where modules and optimizers keep them."""
    for leaf in _leaves(value):
        if isinstance(leaf, (Tensor, torch.Generator)):
            yield leaf
        elif isinstance(leaf, nn.Module):
            for part in leaf.modules():
                yield from _tensors([item for item in vars(part).values() if not isinstance(item, nn.Module)])
        elif isinstance(leaf, Optimizer):
            yield from _tensors([leaf.param_groups, leaf.state])


def _tensor_recipe(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return tensor
    order = sorted(range(tensor.ndim), key=lambda dim: -tensor.stride(dim))  # as the numbers lie in memory
    shape = [tensor.shape[dim] for dim in order]
    data = tensor.detach().cpu().permute(order).reshape(-1).view(torch.uint8).numpy().copy()
    kind = (str(tensor.dtype).removeprefix("torch."), isinstance(tensor, nn.Parameter), tensor.requires_grad)
    return _Recipe(_tensor, data, shape, order, kind, str(tensor.device))


def _tensor(data: np.ndarray, shape: list[int], order: list[int], kind: tuple, device: str) -> Tensor:
    dtype, is_parameter, requires_grad = kind
    flat = torch.from_numpy(data.copy()).view(getattr(torch, dtype))  # a copy: what pickle reads may be read-only
    tensor = flat.reshape(shape).permute([order.index(dim) for dim in range(len(order))]).to(device_here(device))
    return nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)


def _generator_recipe(rng: torch.Generator) -> Any:
    return _Recipe(_generator, rng.get_state().numpy(), str(rng.device))


def _generator(state: np.ndarray, device: str) -> torch.Generator:
    rng = torch.Generator(device_here(device))
    rng.set_state(torch.from_numpy(state.copy()))
    return rng


def _optimizer(kind: type, state: dict) -> Optimizer:
    optimizer = kind.__new__(kind)
    optimizer.__setstate__(state)
    return optimizer
