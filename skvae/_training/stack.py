"""Several models of one shape as one: the parameters of all lie in a few flat tensors.

The members of a stack are ordinary modules, whose parameters and gradients are views of these tensors: the optimizer
and the average take one call a step for all of them, and what is written for stacked parameters sees one tensor
(n_members, *shape) for each. A single model is a stack of one.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._fast.optimizers import at_rates
from .._model.module import VAE
from .processes import of_first

_TINY = 1e-30
_COUNTERS = ("step", "mu_product")  # of an optimizer's state, which are no numbers of each parameter


def _changing(average: nn.Module, member: nn.Module) -> list[tuple[Any, ...]]:
    """Pairs of buffers that training may change: those of other people's modules; ours are set at the start."""
    pairs = zip(average.modules(), member.modules(), strict=True)
    others = [pair for pair in pairs if not type(pair[0]).__module__.startswith("skvae.")]
    return [buffers for pair in others for buffers in zip(*(part.buffers(False) for part in pair), strict=True)]


def _tensors(wholes: Sequence[Tensor], modules: Sequence[nn.Module]) -> list[Tensor]:
    """Flat tensors and the buffers of the modules, whose parameters they are."""
    return [part.detach() for part in (*wholes, *(buffer for module in modules for buffer in module.buffers()))]


class Stack:
    """`members` with their parameters in flat tensors, until they are released.

    Parameters
    ----------
    members : list of VAE
        Modules of one shape.
    averages : list of VAE
        Modules that hold their averaged parameters.
    groups : list of list of str
        Names of the parameters that share a flat tensor.
    elementwise : bool, default=True
        Whether the optimizer treats each number by itself, so that it may take the flat tensors for parameters.
    """

    def __init__(
        self,
        members: Sequence[VAE],
        averages: Sequence[VAE],
        groups: Sequence[list[str]],
        elementwise: bool = True,
    ) -> None:
        self.elementwise = elementwise
        self.members: list[VAE] = list(members)
        self.averages: list[VAE] = list(averages)
        self.groups = [list(names) for names in groups]
        self.shapes = {name: part.shape for name, part in members[0].named_parameters()}
        self.wholes = [nn.Parameter(flat) for flat in self._flat(self.members)]
        self.whole_gradients = [torch.zeros_like(whole) for whole in self.wholes]
        for whole, gradient in zip(self.wholes, self.whole_gradients, strict=True):
            whole.grad = gradient
        self.parameters, self.gradients = self._views(self.wholes), self._views(self.whole_gradients)
        self.average_wholes = self._flat(self.averages)
        self.averaged = self._views(self.average_wholes)
        self._put(self.members, self.parameters, self.gradients)
        self._put(self.averages, self.averaged)
        self.trainable: list[Tensor] | None = None
        self.named = list(members[0].named_parameters())
        pairs = zip(self.averages, self.members, strict=True)
        self.buffers = [buffers for pair in pairs for buffers in _changing(*pair)]

    def _flat(self, modules: Sequence[nn.Module]) -> list[Tensor]:
        named = [dict(module.named_parameters()) for module in modules]
        return [torch.cat([parts[name].data.flatten() for name in names for parts in named]) for names in self.groups]

    def _views(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Stacked parameters by name, (n_members, *shape), as views of the flat tensors."""
        n = len(self.members)
        views: dict[str, Tensor] = {}
        for names, flat in zip(self.groups, flats, strict=True):
            pieces = flat.detach().split([n * math.prod(self.shapes[name]) for name in names])
            views |= {name: piece.view(n, *self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return views

    @staticmethod
    def _put(modules: Sequence[nn.Module], values: dict[str, Tensor], grads: dict[str, Tensor] | None = None) -> None:
        for i, module in enumerate(modules):
            for name, part in module.named_parameters():
                part.data, part.grad = values[name][i], grads[name][i] if grads else None

    # The optimizer

    def optimizer_from(self, own: torch.optim.Optimizer, kind: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
        """Return the optimizer of all members, made by `kind`, which goes on from the first one's `own`."""
        self.own_optimizer = own
        params = [[whole] for whole in self.wholes]
        if not self.elementwise:
            params = [[one.get_parameter(name) for one in self.members for name in names] for names in self.groups]
        groups = [{**group, "params": parts} for group, parts in zip(own.param_groups, params, strict=True)]
        optimizer = kind(groups, **options)
        self.take_state(optimizer)
        return optimizer

    def take_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer of all members go on from that of the first one; of several, they go on by themselves."""
        own = self.own_optimizer
        for group, stacked, flat in zip(own.param_groups, optimizer.param_groups, self.wholes, strict=True):
            stacked.update({key: value for key, value in group.items() if key != "params"})
            states = [own.state.get(part, {}) for part in group["params"]]
            if not all(states) or len(self.members) > 1:  # several members start together
                continue
            if not self.elementwise:
                optimizer.state.update(zip(group["params"], states, strict=True))
                continue
            optimizer.state[flat] = {
                key: value.clone() if key in _COUNTERS else torch.cat([state[key].flatten() for state in states])
                for key, value in states[0].items()
            }

    def give_back(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the first member's own optimizer, which takes over what that of all members has learned of it."""
        own = self.own_optimizer
        own.state.clear()
        for group, stacked in zip(own.param_groups, optimizer.param_groups, strict=True):
            group.update({key: value for key, value in stacked.items() if key != "params"})
            if not self.elementwise:
                own.state.update({part: state for part in group["params"] if (state := optimizer.state.get(part))})
            elif state := optimizer.state.get(stacked["params"][0]):
                own.state.update(self._split_state(group["params"], state))
        return own

    def _split_state(self, parts: Sequence[Tensor], state: dict[str, Tensor]) -> dict[Tensor, dict[str, Tensor]]:
        """The flat state of a group as that of `parts`, the first member's parameters."""
        found: dict[Tensor, dict[str, Tensor]] = {part: {} for part in parts}
        for key, value in state.items():
            sizes = [len(self.members) * part.numel() for part in found]
            pieces = value.split(sizes) if value.ndim else [value] * len(sizes)
            for part, piece in zip(found, pieces, strict=True):
                found[part][key] = piece[: part.numel()].view(part.shape).clone() if value.ndim else piece.clone()
        return found

    # States

    def release(self) -> None:
        """Give the first member, and its average, their own memory again."""
        for module in (self.members[0], self.averages[0]):
            for part in module.parameters():
                part.data, part.grad = part.data.clone(memory_format=torch.contiguous_format), None

    def freeze(self) -> None:
        """Note which parameters are to stay as they are, as `requires_grad` says."""
        frozen = {name for name, part in self.named if not part.requires_grad}
        self.trainable = None
        if frozen:
            masks = [torch.ones_like(whole, dtype=torch.bool) for whole in self.wholes]
            for name, part in self._views(masks).items():
                part.fill_(name not in frozen)
            self.trainable = masks

    def zero_grad(self) -> None:
        for gradient in self.whole_gradients:
            gradient.zero_()

    def gather(self) -> None:
        """Copy gradients back into the flat tensors where a callback has put other tensors in their place."""
        for i, member in enumerate(self.members):
            for name, part in member.named_parameters():
                view = self.gradients[name][i]
                if part.grad is not None and part.grad.data_ptr() != view.data_ptr():
                    view.copy_(part.grad)
                    part.grad = view

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, decay: float, factor: float = 1.0) -> None:
        """Take a step at `factor` times the learning rate, and the average with it."""
        flats, masks = [*self.wholes, *self.average_wholes], 2 * (self.trainable or [])
        kept = [(flat, flat.detach().clone(), trainable) for flat, trainable in zip(flats, masks, strict=False)]
        rates = [group["lr"] * factor for group in optimizer.param_groups]
        with nullcontext() if factor == 1 else at_rates(optimizer, rates):
            optimizer.step()
        for average, whole in zip(self.average_wholes, self.wholes, strict=True):
            average.lerp_(whole, 1 - decay)
        for flat, before, trainable in kept:
            flat.copy_(torch.where(trainable, flat, before))

    @torch.no_grad()
    def flush(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what would decay into denormal numbers, which are slow to compute with: weights that the data no longer
        move, unless some are to stay as they are, and first moments."""
        moments = [state["exp_avg"] for state in optimizer.state.values() if "exp_avg" in state]
        weights = [] if self.trainable else [*self.wholes, *self.average_wholes]
        for part in (*weights, *moments):
            part.copy_(F.hardshrink(part, _TINY))

    def take_buffers(self) -> None:
        """Copy buffers, such as running statistics, to the averages as they are."""
        for kept, last in self.buffers:
            kept.copy_(last)

    def share_buffers(self) -> None:
        """Take the first process's running statistics."""
        for pair in self.buffers:
            for buffer in pair:
                buffer.copy_(of_first(buffer))

    def state(self) -> list[Tensor]:
        """Return copies of all members' averages and of their buffers."""
        return [part.clone() for part in _tensors(self.average_wholes, self.averages)]

    def load(self, state: list[Tensor]) -> None:
        """Go on from a `state`, and average from there."""
        self.load_whole([*state, *state])

    def begin_from(self, modules: Sequence[VAE]) -> None:
        """Go on from other modules of the same shape, and average from there."""
        self.load(_tensors(self._flat(modules), modules))

    def whole_state(self) -> list[Tensor]:
        """Return what training goes on from, not copied: parameters and buffers of the members, and of the averages."""
        return _tensors(self.wholes, self.members) + _tensors(self.average_wholes, self.averages)

    def load_whole(self, state: list[Tensor]) -> None:
        """Go on from a `whole_state`."""
        for part, value in zip(self.whole_state(), state, strict=True):
            part.copy_(value)

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
    """Set a parameter or buffer by its dotted name."""
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, value)
