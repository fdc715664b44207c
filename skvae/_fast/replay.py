"""Training steps on a GPU as one launch each.

A step is some sixty small kernels, and to launch them one by one takes longer than they do. A CUDA graph holds them in
their order, and the memory that they read and write: it is captured once for each kind of batch, and replayed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
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


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """The fields of a batch that are tensors."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def captured(work: Callable[[], Any], pool: Any) -> tuple[Any, Callable[[], None]]:
    """Return what `work` returns, and a function that does it over again in the same memory; it is not done yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads go on as they like
        result = work()
    return result, graph.replay


class Replay:
    """Takes the training steps of a net, by graphs where it can.

    Parameters
    ----------
    net : Net
        In training, with a gradient that is written by hand.
    """

    def __init__(self, net: "Net") -> None:
        self.net: Any = net
        self.optimizer: Any = net.optimizer_
        self.pool = torch.cuda.graph_pool_handle()  # of memory, which all graphs share
        self.n_seen: Counter = Counter()
        self.steps: dict[Any, _Step] = {}
        self.made_for: Any = None

    @staticmethod
    def covers(net: "Net") -> bool:
        """Tell whether the net's steps can be captured: they never wait for the GPU, nor ask it for a value."""
        on_gpu = torch.device(net.device).type == "cuda"
        by_hand = net.fast_ is not None and net.fast_.prior is not None  # a prior of its own kind may do anything
        return ENABLED and on_gpu and by_hand and isinstance(net.optimizer_, Fused)

    def begin_epoch(self) -> None:
        """Forget the graphs if the optimizer has other options or another state than they were captured with."""
        if self.steps and self.made_for != self._made_for():
            self.n_seen.clear()
            self.steps.clear()

    def _made_for(self) -> Any:
        """What graphs hold: the optimizer's options, which are numbers there, and where in memory its state is."""
        options = [{**group, "params": None, "lr": None} for group in self.optimizer.param_groups]
        places = [part.data_ptr() for state in self.optimizer.state.values() for part in state.values()]
        return self.net.ema_decay, options, places

    def step(self, batch: Batch, factor: float) -> dict[str, Tensor]:
        """Take a step at `factor` times the learning rate, as `Net.step` does."""
        kind, rates = _kind(batch), [float(np.float32(factor * group["lr"])) for group in self.optimizer.param_groups]
        self.n_seen[kind] += 1
        if self.n_seen[kind] <= _LEAST_STEPS or self.net.stack_.trainable or not self.optimizer.is_fused:
            return self.take(batch, rates)
        if kind not in self.steps:
            self.steps[kind], self.made_for = _Step(self, batch), self._made_for()
        return self.steps[kind](batch, rates)

    def take(self, batch: Batch, rates: list[Any]) -> dict[str, Tensor]:
        """Take a step at these learning rates, numbers that float32 has, or tensors."""
        with at_rates(self.optimizer, rates):
            return self.net.step(batch, 1.0)


def _kind(batch: Batch) -> Any:
    shapes = tuple((name, part.shape) for name, part in _tensors(batch).items())
    return shapes, batch.balanced, batch.for_map


class _Step:
    """One kind of step, with the memory that its batches and learning rates are copied to."""

    def __init__(self, owner: Replay, batch: Batch) -> None:
        self.inputs = {name: part.clone() for name, part in _tensors(batch).items()}
        static = replace(batch, **self.inputs)  # type: ignore[arg-type]
        self.rates = [batch.x.new_zeros(()) for _ in owner.optimizer.param_groups]
        self.values: list[float] = []
        self.result, self.replay = captured(lambda: owner.take(static, self.rates), owner.pool)

    def __call__(self, batch: Batch, values: list[float]) -> dict[str, Tensor]:
        for name, part in _tensors(batch).items():
            self.inputs[name].copy_(part)
        if values != self.values:
            for rate, value in zip(self.rates, values, strict=True):
                rate.fill_(value)
            self.values = values
        self.replay()
        return {name: part.clone() for name, part in self.result.items()}
