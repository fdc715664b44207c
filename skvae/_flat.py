"""Many parameters as one, so that the optimizer and the average take one call a step."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def _view(piece: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 2 and shape[0] > shape[1]:
        return piece.view(shape[::-1]).t()
    return piece.view(shape)


class FlatParameter:
    """The parameters of a group, which are views of `whole`, the optimizer's own, until they are released."""

    def __init__(self, parts: list[nn.Parameter], whole: nn.Parameter) -> None:
        self.parts, self.whole = parts, whole
        whole.grad = torch.zeros_like(whole)
        self.grads = self._views(whole.grad)
        for part, view, grad in zip(parts, self._views(whole.data), self.grads, strict=True):
            part.data, part.grad = view.copy_(part.data), grad

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parts in `flat`; tall matrices lie there transposed, since their gradients come so without a copy."""
        pieces = flat.split([part.numel() for part in self.parts])
        return [_view(piece, part.shape) for piece, part in zip(pieces, self.parts, strict=True)]

    def joined(self, pieces: list[Tensor]) -> Tensor:
        """Tensors of the shapes of the parameters as one, laid out as the whole is."""
        flat = torch.zeros_like(self.whole)
        for view, piece in zip(self._views(flat), pieces, strict=True):
            view.copy_(piece)
        return flat

    def split(self, flat: Tensor) -> list[Tensor]:
        """The inverse of `joined`, in memory of its own."""
        return [view.clone(memory_format=torch.contiguous_format) for view in self._views(flat)]

    def twin(self, of: dict[nn.Parameter, nn.Parameter]) -> "FlatParameter":
        """The same for the counterparts of the parameters."""
        return FlatParameter([of[part] for part in self.parts], nn.Parameter(torch.zeros_like(self.whole)))

    def gather(self) -> None:
        """Bring the gradients of the parameters to that of the whole, those that were not written there."""
        strays = [(view, part) for part, view in zip(self.parts, self.grads, strict=True) if part.grad is not view]
        if strays:
            grads = [torch.zeros_like(view) if part.grad is None else part.grad for view, part in strays]
            torch._foreach_copy_([view for view, _ in strays], grads)

    def release(self) -> None:
        """Give each parameter its own memory again."""
        self.whole.grad = None
        for part in self.parts:
            part.data, part.grad = part.data.clone(memory_format=torch.contiguous_format), None


_SHARED = ("step", "mu_product")  # what an optimizer counts for a parameter as a whole


class FlatParameters:
    """The trainable parameters of an optimizer's groups as few flat ones, which it steps until they are released.

    Parameters of a group lie in one, apart from those that have taken another number of steps.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.kept = [group["params"] for group in optimizer.param_groups]
        self.parts: list[FlatParameter] = []
        for group in optimizer.param_groups:
            flats = [self._flat(parts) for parts in self._alike(group["params"])]
            group["params"] = [flat.whole for flat in flats]
            self.parts += flats

    def _alike(self, parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """The trainable ones, together where the optimizer has done the same with them."""
        alike: dict[tuple, list[nn.Parameter]] = {}
        for part in parameters:
            if part.requires_grad:
                state = self.optimizer.state.get(part, {})
                key = [(name, float(state[name]) if name in _SHARED else state[name] is None) for name in state]
                alike.setdefault((*key, part.device), []).append(part)
        return list(alike.values())

    def _flat(self, parts: list[nn.Parameter]) -> FlatParameter:
        whole = nn.Parameter(torch.zeros(sum(part.numel() for part in parts), device=parts[0].device))
        flat, states = FlatParameter(parts, whole), [self.optimizer.state.pop(part, {}) for part in parts]
        for name, value in states[0].items():
            self.optimizer.state[whole][name] = (
                flat.joined([state[name] for state in states]) if self._is_split(name, value) else value
            )
        return flat

    @staticmethod
    def _is_split(name: str, value: Any) -> bool:
        return name not in _SHARED and isinstance(value, Tensor)

    def gather(self) -> None:
        """Bring the gradients of the parameters to those of the flat ones."""
        for flat in self.parts:
            flat.gather()

    def release(self) -> None:
        """Give the optimizer its parameters back, each with its state and its own memory."""
        for flat in self.parts:
            for name, value in self.optimizer.state.pop(flat.whole, {}).items():
                pieces = flat.split(value) if self._is_split(name, value) else [copy.copy(value) for _ in flat.parts]
                for part, piece in zip(flat.parts, pieces, strict=True):
                    self.optimizer.state[part][name] = piece.clone() if isinstance(piece, Tensor) else piece
            flat.release()
        for group, parameters in zip(self.optimizer.param_groups, self.kept, strict=True):
            group["params"] = parameters
