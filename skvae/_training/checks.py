"""Checks before any work: callbacks, parameters of the net and optimizers that cannot be used are refused."""

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.utils._param_validation import InvalidParameterError
from skorch.callbacks import BatchScoring, Callback, EpochScoring, PassthroughScoring
from skorch.utils import params_for
from torch import nn

from .._fast.optimizers import BARE

_SCORINGS = (EpochScoring, BatchScoring, PassthroughScoring)

_OWNED = {  # parameters of the net that the estimator sets, by what it is called there
    "batch_size": "batch_size",
    "callbacks": "callbacks",
    "criterion": "objective",
    "device": "device",
    "ema_decay": "ema_decay",
    "lr": "learning_rate",
    "max_epochs": "max_iter",
    "module": "architecture",
    "optimizer": "optimizer",
    "optimizer__lr": "learning_rate",
    "seed": "random_state",
    "train_split": "early_stopping",
    "verbose": "verbose",
    "warm_start": "warm_start",
    "weight_decay": "weight_decay",
}
_FIXED = {  # and those that are not to be set at all
    "dataset": "rows are one tensor",
    "iterator_train": "batches are made without a data loader, of `batch_size` rows",
    "iterator_valid": "batches are made without a data loader",
    "offset": "it comes from X",
    "scale": "it comes from X",
}
_FREE = ("optimizer", "predict_nonlinearity", "compile", "use_caching", "torch_load_kwargs")


def check_net_params(net_params: dict, own: set[str]) -> None:
    """Refuse what the estimator, whose parameters are called `own`, sets itself, and what skorch does not know."""
    for name in net_params:
        prefix, _, part = str(name).partition("__")
        if name in _OWNED or (prefix in _OWNED and prefix != "optimizer"):
            owner = _OWNED.get(name, part if prefix == "module" and part in own else _OWNED[prefix])
            raise InvalidParameterError(
                f"{name!r} in net_params is the estimator's parameter `{owner}`: set {owner}=... instead."
            )
        if prefix in _FIXED:
            raise InvalidParameterError(f"{name!r} in net_params has no effect: {_FIXED[prefix]}.")
        if prefix not in _FREE:
            raise InvalidParameterError(f"net_params got an unexpected argument {name!r}{_suggestion(name)}.")


def _suggestion(name: Any) -> str:
    known = [free for free in _FREE if str(name).startswith(free + "_")]
    if known:
        return f", did you mean '{known[0]}__{str(name)[len(known[0]) :].lstrip('_')}'?"
    return f". It takes optimizer__*, {', '.join(_FREE[1:])}"


def check_optimizer(kind: Any, learning_rate: float, net_params: dict) -> None:
    """Refuse an optimizer that cannot be built, or that does not step, with one number for all parameters."""
    options = params_for("optimizer", net_params)
    named_groups = options.pop("param_groups", [])
    try:
        groups = [_one_number(), *(_one_number() | group for _, group in named_groups)]
        BARE.get(kind, kind)(groups, **{"lr": learning_rate, "weight_decay": 0.0} | options).step()
    except Exception as error:
        given = ", ".join(["lr", *sorted({"weight_decay"} | options.keys())])
        raise InvalidParameterError(
            "The 'optimizer' parameter of VAETransformer must be a name, or a class with the interface of torch.optim, "
            f"which takes parameter groups and the keywords {given} (options are 'optimizer__...' in net_params) and "
            f"whose step() needs no arguments. With {getattr(kind, '__name__', kind)}: {error}"
        ) from error


def _one_number() -> dict:
    """A group of an optimizer."""
    parameter = torch.nn.Parameter(torch.zeros(1, device="cpu", dtype=torch.float32))
    parameter.grad = torch.zeros_like(parameter)
    return {"params": [parameter]}


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
