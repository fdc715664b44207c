"""Training steps on a GPU as one launch each.

A step is some sixty small kernels, and to launch them one by one takes longer than they do. A CUDA graph holds them in
their order, and the memory that they read and write: it is captured once for each kind of batch, and replayed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._data.batch import Batch
from .optimizers import Fused, at_rates

if TYPE_CHECKING:
    from .._training.net import Net

ENABLED = True
_LEAST_STEPS = 3  # of one kind that are taken first: they set up what a capture cannot, such as the optimizer's state
_OPTIONS = ("eps", "weight_decay", "maximize", "amsgrad", "fused")  # of Adam, beside the rate and betas
_CAPTURING = Lock()  # a process captures one graph at a time


class _CannotCapture(RuntimeError):
    """A step that a graph cannot hold."""


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """The fields of a batch that are tensors."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def captured(work: Callable[[], Any], stream: Any) -> tuple[Any, Callable[[], None]]:
    """Return what `work` returns, and a function that does it over again in the same memory; it is not done yet."""
    graph, former = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
    mode = "thread_local"  # what other threads do meanwhile is no error
    try:
        with _CAPTURING, torch.cuda.device(stream.device), torch.cuda.graph(graph, None, stream, mode):
            result = work()
    except RuntimeError as error:
        torch.cuda.set_stream(former)
        raise _CannotCapture from error
    return result, graph.replay


class Replay:
    """Takes the training steps of a net whose gradient is written by hand, by graphs where it can."""

    def __init__(self, net: "Net") -> None:
        self.net: Any = net
        self.optimizer: Any = net.optimizer_
        self.stream = torch.cuda.Stream(net.device)  # torch's own for captures is the whole process's, on one device
        self.n_seen: Counter = Counter()
        self.steps: dict[Any, _Step] = {}
        self.made_for: Any = None
        self.can_capture = True

    @staticmethod
    def covers(net: "Net") -> bool:
        """Tell whether the net's steps can be captured: they never wait for the GPU, nor ask it for a value."""
        on_gpu = torch.device(net.device).type == "cuda" and torch.version.cuda is not None
        by_hand = net.fast_ is not None and net.fast_.prior is not None  # a prior of its own kind may do anything
        return ENABLED and on_gpu and by_hand and isinstance(net.optimizer_, Fused)

    def step(self, batch: Batch, factor: float) -> dict[str, Tensor]:
        """Take a step at `factor` times the learning rate, as `Net.step` does."""
        rates = [float(np.float32(factor * group["lr"])) for group in self.optimizer.param_groups]
        self._forget_others()
        kind = _kind(batch)
        if self.net.stack_.trainable or not (kind in self.steps or self._captures(kind, batch)):
            return self.take(batch, rates)
        return self.steps[kind](batch, rates)

    def take(self, batch: Batch, rates: list[Any]) -> dict[str, Tensor]:
        """Take a step at these learning rates, numbers that float32 has, or tensors."""
        with at_rates(self.optimizer, rates):
            return self.net.step(batch, 1.0)

    def _forget_others(self) -> None:
        """Forget the graphs that were made for other options, which are numbers in them, or for another state of the
        optimizer in memory."""
        groups, states = self.optimizer.param_groups, self.optimizer.state.values()
        options = [value for group in groups for value in (*group["betas"], *(group[name] for name in _OPTIONS))]
        made_for = [self.net.ema_decay, *options, *(part.data_ptr() for state in states for part in state.values())]
        if made_for != self.made_for:
            self.n_seen.clear()
            self.steps.clear()
            self.made_for = made_for

    def _captures(self, kind: Any, batch: Batch) -> bool:
        """Capture a step of this kind, if it has been seen often enough and a graph can hold it."""
        self.n_seen[kind] += 1
        if self.n_seen[kind] <= _LEAST_STEPS or not (self.optimizer.is_fused and self.can_capture):
            return False
        try:
            self.steps[kind] = _Step(self, batch)
        except _CannotCapture:
            self.can_capture = False
        return self.can_capture


def _kind(batch: Batch) -> Any:
    """What batches of one graph have in common."""
    shapes = tuple((name, part.shape) for name, part in _tensors(batch).items())
    return shapes, batch.balanced, batch.for_map


class _Step:
    """One kind of step, with the memory that its batches and learning rates are copied to."""

    def __init__(self, owner: Replay, batch: Batch) -> None:
        self.inputs = {name: part.clone() for name, part in _tensors(batch).items()}
        static = replace(batch, **self.inputs)  # type: ignore[arg-type]
        self.rates = [batch.x.new_zeros(()) for _ in owner.optimizer.param_groups]
        self.values: list[float] = []
        self.result, self.replay = captured(lambda: owner.take(static, self.rates), owner.stream)

    def __call__(self, batch: Batch, values: list[float]) -> dict[str, Tensor]:
        for name, part in _tensors(batch).items():
            self.inputs[name].copy_(part)
        if values != self.values:
            for rate, value in zip(self.rates, values, strict=True):
                rate.fill_(value)
            self.values = values
        self.replay()
        return {name: part.clone() for name, part in self.result.items()}
