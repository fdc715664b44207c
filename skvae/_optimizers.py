"""torch's optimizers without the wrappers of their methods, which import torch's compiler: a second, for nothing."""

import inspect

import torch

_WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


class _Bare:
    """Mixin that stands before an optimizer of torch."""

    def __init_subclass__(cls) -> None:
        for name in _WRAPPED:
            setattr(cls, name, inspect.unwrap(getattr(cls, name)))
        cls.step = torch.no_grad()(inspect.unwrap(cls.step))  # type: ignore[attr-defined]


class Adam(_Bare, torch.optim.Adam):
    pass


class AdamW(_Bare, torch.optim.AdamW):
    pass


class NAdam(_Bare, torch.optim.NAdam):
    pass


class RMSprop(_Bare, torch.optim.RMSprop):
    pass


class SGD(_Bare, torch.optim.SGD):
    pass


BARE = {cls.__bases__[1]: cls for cls in (Adam, AdamW, NAdam, RMSprop, SGD)}
