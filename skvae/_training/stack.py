"""Several models of one shape as one: the parameters of all lie in a few flat tensors.

The members of a stack are ordinary modules, whose parameters and gradients are views of these tensors: the optimizer
and the average take one call a step for all of them, and what is written for stacked parameters sees one tensor
(n_members, *shape) for each. A single model is a stack of one.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .processes import of_first


def _changing(average: nn.Module, member: nn.Module) -> list[tuple[Any, ...]]:
    """Pairs of buffers that training may change: those of other people's modules; ours are set at the start."""
    pairs = zip(average.modules(), member.modules(), strict=True)
    others = [pair for pair in pairs if not type(pair[0]).__module__.startswith("skvae.")]
    return [buffers for pair in others for buffers in zip(*(part.buffers(False) for part in pair), strict=True)]


class Stack:
    """`members` with their parameters in flat tensors, until they are released.

    Parameters
    ----------
    members : list of nn.Module
        Modules of one shape.
    averages : list of nn.Module
        Modules that hold their averaged parameters; empty where nothing is averaged.
    groups : list of list of str
        Names of the parameters that share a flat tensor.
    """

    def __init__(
        self, members: Sequence[nn.Module], averages: Sequence[nn.Module], groups: Sequence[list[str]]
    ) -> None:
        self.members: list[Any] = list(members)
        self.averages: list[Any] = list(averages)
        self.groups = [list(names) for names in groups]
        self.shapes = {name: part.shape for name, part in members[0].named_parameters()}
        self.wholes = [nn.Parameter(flat) for flat in self._flat(self.members)]
        for whole in self.wholes:
            whole.grad = torch.zeros_like(whole)
        self.parameters, self.gradients = self._views(self.wholes), self._views([whole.grad for whole in self.wholes])
        self.average_wholes = self._flat(self.averages) if averages else []
        self.averaged = self._views(self.average_wholes) if averages else self.parameters
        self._put(self.members, self.parameters, self.gradients)
        self._put(self.averages, self.averaged)
        self.own_optimizer: Any = None  # the first member's, while that of all members stands in its place
        self.trainable: list[Tensor] | None = None
        self.named = list(members[0].named_parameters())
        pairs = zip(self.averages, self.members, strict=False)
        self.buffers = [buffers for pair in pairs for buffers in _changing(*pair)]

    def _flat(self, modules: Sequence[nn.Module]) -> list[Tensor]:
        named = [dict(module.named_parameters()) for module in modules]
        stacked = ([torch.stack([parts[name].data for parts in named]) for name in names] for names in self.groups)
        return [torch.cat([part.flatten() for part in parts]) for parts in stacked]

    def _views(self, flats: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Stacked parameters by name, (n_members, *shape), as views of the flat tensors."""
        views: dict[str, Tensor] = {}
        for names, flat in zip(self.groups, flats, strict=True):
            assert flat is not None
            n = flat.numel() // sum(math.prod(self.shapes[name]) for name in names)
            pieces = flat.detach().split([n * math.prod(self.shapes[name]) for name in names])
            views |= {name: piece.view(n, *self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return views

    @staticmethod
    def _put(modules: Sequence[nn.Module], values: dict[str, Tensor], grads: dict[str, Tensor] | None = None) -> None:
        for i, module in enumerate(modules):
            for name, part in module.named_parameters():
                if name in values:
                    part.data, part.grad = values[name][i], grads[name][i] if grads else None

    def release(self) -> None:
        """Give the first member, and its average, their own memory again."""
        for module in (self.members[0], *self.averages[:1]):
            for part in module.parameters():
                part.data, part.grad = part.data.clone(memory_format=torch.contiguous_format), None

    def freeze(self) -> None:
        """Take note of the parameters that are to stay as they are, as their `requires_grad` says."""
        frozen = {name for name, part in self.named if not part.requires_grad}
        self.trainable = None
        if frozen:
            masks = [torch.ones_like(whole, dtype=torch.bool) for whole in self.wholes]
            for name, part in self._views(masks).items():
                part.fill_(name not in frozen)
            self.trainable = masks

    def zero_grad(self) -> None:
        for whole in self.wholes:
            assert whole.grad is not None
            whole.grad.zero_()

    def gather(self) -> None:
        """Copy gradients back into the flat tensors where a callback has put other tensors in their place."""
        for i, member in enumerate(self.members):
            for name, part in member.named_parameters():
                view = self.gradients.get(name)
                if view is not None and part.grad is not None and part.grad.data_ptr() != view[i].data_ptr():
                    view[i].copy_(part.grad)
                    part.grad = view[i]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        """Take a step, and the average with it."""
        flats, masks = [*self.wholes, *self.average_wholes], 2 * (self.trainable or [])
        kept = [(flat, flat.detach().clone(), trainable) for flat, trainable in zip(flats, masks, strict=False)]
        optimizer.step()
        for average, whole in zip(self.average_wholes, self.wholes, strict=False):
            average.lerp_(whole, 1 - decay)
        for flat, before, trainable in kept:
            flat.copy_(torch.where(trainable, flat, before))

    def take_buffers(self) -> None:
        """Copy buffers, such as running statistics, to the averages as they are."""
        for kept, last in self.buffers:
            kept.copy_(last)

    def share_buffers(self) -> None:
        """Take the first process's running statistics."""
        for pair in self.buffers:
            for buffer in pair:
                buffer.copy_(of_first(buffer))

    def state(self) -> dict[str, list]:
        """Copies of what is used of all members: averages, or parameters, and buffers."""
        modules = self.averages or self.members
        buffers = [[buffer.clone() for buffer in module.buffers()] for module in modules]
        return {"wholes": [flat.detach().clone() for flat in self.average_wholes or self.wholes], "buffers": buffers}

    @torch.no_grad()
    def load(self, state: dict[str, list]) -> None:
        """Go on from a `state`, and average from there."""
        for flats in (self.wholes, self.average_wholes):
            for flat, value in zip(flats, state["wholes"], strict=False):
                flat.copy_(value)
        for modules in (self.members, self.averages):
            for module, values in zip(modules, state["buffers"], strict=False):
                for buffer, value in zip(module.buffers(), values, strict=True):
                    buffer.copy_(value)

    def used(self, last: int | None) -> dict[str, Tensor]:
        """The parameters that are trained, or the averaged ones of the last members."""
        return self.parameters if last is None else {name: part[-last:] for name, part in self.averaged.items()}

    def joined(self, prefix: str, last: int | None = None, *, by_row: bool = True) -> Any:
        """A copy of a component whose parameters and buffers are those of all members, (n_members, 1, *shape): what
        treats every feature by itself then treats every member by itself. Without `by_row` they are (n_members,
        *shape), for what looks at all rows of a member at once."""
        parts = [getattr(member, prefix) for member in self.members][-(last or 0) :]
        whole, values = copy.deepcopy(parts[0]), self.used(last)
        shaped = (lambda value: value.unsqueeze(1)) if by_row else (lambda value: value)
        for name, _ in list(whole.named_parameters()):
            joined = nn.Parameter(shaped(values[f"{prefix}.{name}"]))
            joined.grad = shaped(self.gradients[f"{prefix}.{name}"]) if last is None else None
            _set(whole, name, joined)
        for name, _ in list(whole.named_buffers()):
            _set(whole, name, shaped(torch.stack([one.get_buffer(name) for one in parts])))
        return whole


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter or buffer where its dotted name says."""
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, value)
