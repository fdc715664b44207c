"""torch's optimizers by name, and undecorated: the decorators of their methods import torch's compiler, which takes a
second."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


class _Bare:
    """Mixin that stands before an optimizer of torch."""

    def __init_subclass__(cls) -> None:
        for name in _WRAPPED:
            setattr(cls, name, inspect.unwrap(getattr(cls, name)))
        cls.step = torch.no_grad()(inspect.unwrap(cls.step))  # type: ignore[attr-defined]
        cls.step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it for its profiler


class Fused:
    """Adam by its fused kernel, without the sorting of parameters by device and type that takes longer than a step."""

    _kernel: Any

    param_groups: list[dict[str, Any]]

    @property
    def is_fused(self) -> bool:
        return all(group["fused"] and not group["amsgrad"] for group in self.param_groups)

    def step(self) -> None:
        if not self.is_fused:
            return inspect.unwrap(super().step)(self)  # type: ignore[misc]
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        parts = [part for part in group["params"] if part.grad is not None]
        states = [self._state(part) for part in parts]
        steps, *moments = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1)
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "maximize", "amsgrad")}
        beta1, beta2 = group["betas"]
        type(self)._kernel(
            parts, [part.grad for part in parts], *moments, [], steps, beta1=beta1, beta2=beta2, **options
        )

    def _state(self, part: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[part]  # type: ignore[attr-defined]
        if not state:
            state["step"] = torch.zeros((), device=part.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(part), torch.zeros_like(part)
        return state


class Adam(Fused, _Bare, torch.optim.Adam):  # type: ignore[misc]  # `step` takes no closure
    _kernel = torch._fused_adam_


class AdamW(Fused, _Bare, torch.optim.AdamW):  # type: ignore[misc]
    _kernel = torch._fused_adamw_


class NAdam(_Bare, torch.optim.NAdam):
    pass


class RMSprop(_Bare, torch.optim.RMSprop):
    pass


class SGD(_Bare, torch.optim.SGD):
    pass


BARE = {cls.__bases__[-1]: cls for cls in (Adam, AdamW, NAdam, RMSprop, SGD)}
OPTIMIZERS = {kind.__name__.lower(): kind for kind in BARE}


def optimizer_of(given: Any) -> tuple[Any, dict[str, Any]]:
    """Return class and options of an optimizer: of a name, of a class or of a `functools.partial` of one."""
    kind = OPTIMIZERS.get(given, given)
    return (kind.func, kind.keywords) if isinstance(kind, partial) and not kind.args else (kind, {})


def shown(given: Any) -> str:
    """An optimizer with its options as one would write it, in a line."""
    kind, options = optimizer_of(given)
    name = f"torch.optim.{kind.__name__}" if kind in BARE else getattr(kind, "__qualname__", repr(kind))
    written = ", ".join([name, *(f"{option}={value!r}" for option, value in options.items())])
    return f"functools.partial({written})" if options else name


@contextmanager
def at_rates(optimizer: torch.optim.Optimizer, rates: Sequence[Any]) -> Iterator[None]:
    """Within this context the groups have these learning rates, numbers or tensors."""
    own = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate
