"""The program around us: what it has set for its own work does not reach into ours, and what we set ends with us."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from threadpoolctl import ThreadpoolController
from torch import nn
from torch.overrides import TorchFunctionMode

# Multiplications: with fewer, a second core gains 1.7 times at most where it is idle, and costs 3 to 40 times if busy.
_FEW = 2**31
_OF_FLOATS = {torch.empty, torch.empty_strided, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye}
_OF_FLOATS |= {torch.linspace, torch.logspace, torch.scalar_tensor}
_OF_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.arange, torch.range}
_OF_INTEGERS = {torch.randperm, torch.randint, torch.tril_indices, torch.triu_indices}
_FACTORIES = _OF_FLOATS | _OF_VALUES | _OF_INTEGERS


class _OurDefaults(TorchFunctionMode):
    """New tensors for which nothing else is said are float32 and on the CPU. A mode belongs to one thread; torch's own
    default dtype is the whole process's, and other threads may be building something at this moment."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function not in _FACTORIES:
            return function(*args, **kwargs)
        is_tensor = bool(args) and isinstance(args[0], torch.Tensor)
        if kwargs.get("device") is None:
            kwargs["device"] = args[0].device if is_tensor else "cpu"
        if is_tensor:
            return function(*args, **kwargs)
        if kwargs.get("dtype") is not None or function in _OF_INTEGERS:
            return function(*args, **kwargs)
        if function in _OF_FLOATS:
            return function(*args, **kwargs | {"dtype": torch.float32})
        result = function(*args, **kwargs)
        is_default = result.dtype == torch.get_default_dtype() and not isinstance(args[0], np.ndarray | np.generic)
        return function(*args, **kwargs | {"dtype": torch.float32}) if is_default else result


def _autocasting() -> list[str]:
    """Kinds of devices for which torch is told to compute with fewer digits."""
    kinds = {"cpu", torch.accelerator.current_accelerator().type} if torch.accelerator.is_available() else {"cpu"}  # type: ignore[union-attr]
    return [kind for kind in kinds if torch.is_autocast_enabled(kind)]


@contextmanager
def own_settings() -> Iterator[None]:
    """Within it, or as a decorator, torch, NumPy and scikit-learn are as they are in a program that has set nothing:
    gradients can be had, tensors are float32 and on the CPU, underflow is no error, arrays are NumPy's."""
    _look_after_forks()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if sklearn.get_config()["array_api_dispatch"]:
            stack.enter_context(sklearn.config_context(array_api_dispatch=False))
        for kind in _autocasting():
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_dtype() != torch.float32 or torch.get_default_device().type != "cpu":
            stack.enter_context(_OurDefaults())
        yield


# Threads and processes


@cache
def _look_after_forks() -> None:
    """From the first use on, children that are forked have one thread: torch's others do not live on in them, and what
    waits for them waits for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


def multiplications(module: nn.Module, n_rows: int, n_features: int) -> int:
    """Estimate the multiplications of one pass of rows; a kernel's as if it went to every place of an image."""
    n_weights = sum(part.numel() * (n_features if part.dim() > 2 else 1) for part in module.parameters())
    return n_rows * n_weights


@cache
def _set_mkl_threads() -> Any:
    """MKL's function for the number of threads of the calling thread, which returns the former one; it is linked into
    torch. Where `torch.set_num_threads` was called, MKL goes by that number and not by OpenMP's."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # another system, or a torch without MKL
        return lambda n_threads: 0


@contextmanager
def threads_for(n_multiplications: float) -> Iterator[None]:
    """One thread for little work: several gain nothing, and wait for each other where cores are busy. For much work the
    program's own number. It holds for this thread and its OpenMP, on which torch computes."""
    if n_multiplications >= _FEW or torch.get_num_threads() == 1:  # which sets a new thread up, that would undo ours
        yield
        return
    former = _set_mkl_threads()(1)
    try:
        with _openmp().limit(limits=1):
            yield
    finally:
        _set_mkl_threads()(former)
