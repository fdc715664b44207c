"""Many parameters as one, so that the optimizer and the average take one call a step."""

import torch
from torch import Tensor, nn


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
