"""Checks before any work: callbacks and optimizers that cannot be used are refused."""

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.utils._param_validation import InvalidParameterError
from skorch.callbacks import BatchScoring, Callback, EpochScoring, PassthroughScoring
from torch import nn

from .._fast.optimizers import BARE

_SCORINGS = (EpochScoring, BatchScoring, PassthroughScoring)


def check_optimizer(kind: Any, options: dict[str, Any], learning_rate: float) -> None:
    """Refuse an optimizer that cannot be built, or that does not step, with one number for all parameters."""
    if "lr" in options:
        raise InvalidParameterError("'lr' of the optimizer is the estimator's parameter `learning_rate`: set that.")
    parameter = nn.Parameter(torch.zeros(1, device="cpu", dtype=torch.float32))
    parameter.grad = torch.zeros_like(parameter)
    try:
        BARE.get(kind, kind)([{"params": [parameter]}], **{"lr": learning_rate, "weight_decay": 0.0} | options).step()
    except Exception as error:
        given = ", ".join(["lr", *sorted({"weight_decay"} | options.keys())])
        raise InvalidParameterError(
            "The 'optimizer' parameter of VAETransformer must be a name, a class with the interface of torch.optim, or "
            f"functools.partial of one with keywords. It takes parameter groups and the keywords {given}, and its "
            f"step() needs no arguments. With {getattr(kind, '__name__', kind)}: {error}"
        ) from error


def check_callbacks(callbacks: Any) -> None:
    """Refuse what is neither a callback of skorch nor a pair of its name and it."""
    for given in callbacks or ():
        pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str)
        if isinstance(given, Callback) or (pair and (given[1] is None or isinstance(given[1], Callback))):
            continue
        raise InvalidParameterError(
            "The 'callbacks' parameter of VAETransformer must hold callbacks of skorch, as instances or (name, "
            f"instance) pairs. Got {given!r} instead{_callback_hint(given[1] if pair else given)}."
        )


def _callback_hint(given: Any) -> str:
    if isinstance(given, type) and issubclass(given, Callback):
        return f": write {given.__name__}()"
    if hasattr(given, "on_fit_task_end"):
        return ": scikit-learn's callbacks are given to `set_callbacks`"
    return ""


def check_monitors(callbacks: Any, no_score: str, no_rows: str) -> None:
    """Refuse callbacks that monitor the score of held-out rows, or score such rows, where there is none or are none for
    the given reason."""
    for given in callbacks or ():
        callback = given[1] if isinstance(given, tuple) else given
        scores = isinstance(callback, _SCORINGS) and not callback.on_train
        monitor = getattr(callback, "monitor", None)
        reason = no_rows if scores else no_score
        if reason and (scores or (isinstance(monitor, str) and monitor.startswith("valid_"))):
            looks, hint = (
                ("scores", "on_train=True") if scores else (f"monitors {monitor!r} of", "monitor='train_loss'")
            )
            raise ValueError(
                f"{type(callback).__name__} {looks} held-out rows, and there are none: {reason}. Set "
                f"early_stopping=True and call fit, or give the callback {hint}."
            )


def check_batches(module: nn.Module, sizes: Sequence[int], batch_size: int) -> None:
    """Refuse batch normalisation where some batches have one row; `sizes` are those of a pass."""
    if 1 in sizes and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        raise ValueError(
            f"Batch normalisation cannot train on batches of one row: there are {sum(sizes)} row(s) and batch_size="
            f"{batch_size}. Give it more, or use layer normalisation."
        )
