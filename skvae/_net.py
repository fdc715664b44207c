"""The skorch net: how a VAE is trained. Whole-tensor batches, own random streams, one synchronisation an epoch."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.model_selection import KFold
from skorch import NeuralNet
from skorch.callbacks import Callback, PassthroughScoring
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Subset, TensorDataset

from ._blocks import memory_advice
from ._device import device_here
from ._flat import FlatParameter
from ._gradient import ELBOGradient
from ._optimizers import BARE
from ._products import LinearByOneDNN
from ._program import multiplications, own_settings, threads_for
from ._random import EPOCH_STREAM, SPLIT_STREAM, VALIDATION_STREAM, generator
from .callbacks import BestState, RollBack
from .objectives import ELBO

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_FLUSH_EVERY = 500  # training steps; a moment takes about 800 to decay into the denormal numbers
_TINY = 1e-30
_BATCH_HOOKS = ("on_batch_begin", "on_batch_end")
N_FOLDS = 5
CROSS_FIT_ROWS = 1000  # from here on rows are held out; fewer are cross-fitted
_FEW_ROWS, _MANY_ROWS = (2_000, 300), (10_000, 1_000)  # budget and patience, in optimizer steps
_VALIDATION_ROWS = 512  # a smaller held-out set is repeated, with other noise, up to about this many rows
_VALIDATION_BATCH = 2048


class StopTraining(KeyboardInterrupt):
    """Raised by a callback to end training; skorch knows no other way."""


class Diverged(ArithmeticError):
    """A loss that is not finite; `RollBack` undoes the epoch."""


class TrainBatches:
    """Shuffled passes over a tensor, or over the given rows of it. The noise comes with the batch, so that the step
    itself draws nothing; the streams belong to (seed, epoch), so that epoch k is the same however training was cut into
    calls."""

    def __init__(self, net: "Net", x: Tensor, rows: Tensor | None = None) -> None:
        self.net, self.x = net, x
        self.rows = torch.arange(len(x)) if rows is None else rows

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], None]]:
        x, batch_size, rng = self.x, self.net.batch_size, generator(self.net.seed, len(self.net.history))
        draw = self.net.module_.likelihood.draw
        order = self.rows[torch.randperm(len(self.rows), generator=rng)].to(x.device)
        batches = order.split(batch_size)
        for rows, eps in zip(batches, _noise(self.net, [len(rows) for rows in batches], rng), strict=True):
            yield {"x": draw(x.index_select(0, rows), rng), "eps": eps}, None


def _noise(net: "Net", sizes: list[int], rng: torch.Generator) -> Iterator[Tensor]:
    """Standard normal draws for batches of these sizes: (batch, z_dim); (n_draws, batch, z_dim) where that is more."""
    n_draws = net.criterion_.n_draws
    if n_draws == 1:
        return iter(torch.randn(sum(sizes), net.z_dim, generator=rng).to(net.device).split(sizes))
    return (torch.randn(n_draws, size, net.z_dim, generator=rng).to(net.device) for size in sizes)


class ValidationBatches:
    """The same rows with the same noise at every epoch, so that epochs are compared on equal terms."""

    def __init__(self, net: "Net", x: Tensor) -> None:
        n_repeats = min(-(-_VALIDATION_ROWS // len(x)), 16)
        self.net, self.x = net, x.repeat(n_repeats, 1) if n_repeats > 1 else x

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], None]]:
        batches = self.x.split(max(1, _VALIDATION_BATCH // self.net.criterion_.n_draws))
        rng = generator(self.net.seed, VALIDATION_STREAM)
        noise = _noise(self.net, [len(rows) for rows in batches], rng)
        for rows, eps in zip(batches, noise, strict=True):
            yield {"x": self.net.module_.likelihood.draw(rows, rng), "eps": eps}, None


class Net(NeuralNet):
    """Trains a VAE on its objective, which stands where skorch has a criterion.

    `seed` decides all that is random; `offset` and `scale` (n_features,) lead from the model's units to those of X.
    With `ema_decay`, an exponential moving average of the weights is kept beside them, and is what gets validated and
    used: it takes the noise of the last steps out, as a falling learning rate would.
    """

    def __init__(self, *args, seed: int = 0, offset=0.0, scale=1.0, ema_decay: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.offset = offset
        self.scale = scale
        self.ema_decay = ema_decay
        self.interrupted = False
        self.run_length = 1  # epochs that the whole run is meant to have
        self.flats, self.average_flats, self.by_hand = [], [], None  # while training lasts

    @own_settings()
    def __setstate__(self, state):
        super().__setstate__(state | {"device": device_here(state["device"])})  # skorch looks after CUDA only

    def initialize_module(self):
        super().initialize_module()
        if self.ema_decay:
            self.average_ = copy.deepcopy(self.module_).requires_grad_(False)
        return self

    @property
    def trained_module(self) -> nn.Module:
        """The averaged module, or the last one where nothing is averaged."""
        return self.average_ if self.ema_decay else self.module_

    def set_objective(self, objective: nn.Module) -> None:
        """Go on with another objective; the optimizer's state stays."""
        self.criterion_ = objective.to(self.device)
        self.recipe_["objective"] = objective

    def set_weight_decay(self, weight_decay: float) -> None:
        """Shrink what is shrunk by this from now on, unless the user has chosen."""
        if self.recipe_["weight_decay"] and "optimizer__weight_decay" not in self.recipe_:
            self.recipe_["weight_decay"] = weight_decay
            for group in self.optimizer_.param_groups:
                if group.get("weight_decay"):
                    group["weight_decay"] = _bounded(weight_decay, self.lr)

    def carry_on(self, former: "Net") -> None:
        """Take over the history of the net that this one replaces, its bounds in this one's units."""
        shift = former.log_jacobian - self.log_jacobian
        rows = ((row, {name: row[name] + shift for name in row.keys() & {"train_bound"}}) for row in former.history)
        self.history[:] = [{**row, **shifted} for row, shifted in rows]

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`, and average from there."""
        self.module_.load_state_dict(state)
        self.trained_module.load_state_dict(state)

    def training_state(self) -> dict:
        """All that training goes on from; the callbacks keep the rest."""
        parts = {"module": self.module_, "average": self.trained_module, "optimizer": self.optimizer_}
        states = {name: part.state_dict() for name, part in parts.items()}
        return {**states, "lr": self.lr, "history": list(self.history)}

    def load_training_state(self, state: dict) -> None:
        self.module_.load_state_dict(state["module"])
        self.trained_module.load_state_dict(state["average"])
        self.optimizer_.load_state_dict(state["optimizer"])
        self.lr, self.history[:] = state["lr"], state["history"]

    def get_all_learnable_params(self):
        return ((name, part) for name, part in self.module_.named_parameters() if part.requires_grad)

    def _parameter_groups(self) -> list[dict]:
        return super().get_params_for_optimizer("optimizer", self.get_all_learnable_params())[0][0]

    def get_params_for_optimizer(self, prefix, named_parameters):
        """One flat parameter a group, for the optimizers that treat each number by itself."""
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        if self._flat:
            sizes = [sum(part.numel() for part in group["params"]) for group in args[0]]
            wholes = [nn.Parameter(torch.zeros(size, device=self.device)) for size in sizes]
            args = ([{**group, "params": [whole]} for group, whole in zip(args[0], wholes, strict=True)],)
        return args, kwargs

    @property
    def _flat(self) -> bool:
        return self.optimizer in BARE.values()

    @contextmanager
    def training(self):
        """Parameters flat for as long as it lasts, and what a step asks settled."""
        groups = zip(self._parameter_groups(), self.optimizer_.param_groups, strict=True) if self._flat else ()
        self.flats = [FlatParameter(group["params"], flat["params"][0]) for group, flat in groups]
        if self.ema_decay:
            twins = dict(zip(self.module_.parameters(), self.average_.parameters(), strict=True))
            self.average_flats = [flat.twin(twins) for flat in self.flats]
        plain = type(self.criterion_) is ELBO and not self.criterion_.free_bits and not self.criterion_.warmup
        if plain and ELBOGradient.covers(self.module_):
            self.by_hand = ELBOGradient(self.module_, self.criterion_.beta)
        try:
            yield
        finally:
            for flat in self.flats + self.average_flats:
                flat.release()
            self.flats, self.average_flats, self.by_hand = [], [], None

    def __getstate__(self):
        return super().__getstate__() | {"flats": [], "average_flats": [], "by_hand": None}

    @property
    def _default_callbacks(self) -> list:
        return [
            ("train_loss", PassthroughScoring(name="train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring(name="valid_loss")),
        ]

    def get_iterator(self, dataset: TensorDataset | Subset, training: bool = False):
        if isinstance(dataset, Subset):
            return TrainBatches(self, *dataset.dataset.tensors, dataset.indices)
        return (TrainBatches if training else ValidationBatches)(self, *dataset.tensors)

    @property
    def z_dim(self) -> int:
        return self.module_.prior.z_dim

    @property
    def log_jacobian(self) -> float:
        """What a log-likelihood in the model's units gains in those of X, in nats per row."""
        return -float(np.sum(np.log(self.scale)))

    def on_epoch_begin(self, net, **kwargs) -> None:
        super().on_epoch_begin(net, **kwargs)
        self.module_.train()
        epoch = len(self.history)
        rng = generator(self.seed, epoch, EPOCH_STREAM)
        for part in (*self.module_.modules(), self.criterion_):
            if hasattr(part, "begin_epoch"):
                part.begin_epoch(epoch, self.run_length, rng)

    def _step(self, module: nn.Module, batch) -> dict[str, Tensor]:
        with LinearByOneDNN():
            value, log_prob, kl = self.criterion_(module, **batch[0])
        return {"loss": -value.mean(), "y_pred": (log_prob.detach().sum(), kl.detach().sum())}

    def train_step(self, batch, **fit_params) -> dict[str, Tensor]:
        """skorch's step without its closure and its `train()` at every batch."""
        step = self.gradient(batch)
        if self._overridden("on_grad_computed"):
            self.notify("on_grad_computed", named_parameters=list(self.module_.named_parameters()), batch=batch)
        for flat in self.flats:
            flat.gather()
        self.optimizer_.step()
        return step

    def gradient(self, batch) -> dict[str, Tensor]:
        """Loss and terms of the batch, with the gradient left in the module's parameters."""
        if self.by_hand:
            log_prob, kl = self.by_hand(**batch[0])
            return {"loss": (self.by_hand.beta * kl - log_prob) / len(batch[0]["x"]), "y_pred": (log_prob, kl)}
        self.module_.zero_grad()
        step = self._step(self.module_, batch)
        step["loss"].backward()
        return step

    def _flush_moments(self) -> None:
        """Zero the first moments that would decay into denormal numbers, which are slow to compute with."""
        for state in self.optimizer_.state.values():
            if "exp_avg" in state:
                state["exp_avg"].copy_(F.hardshrink(state["exp_avg"], _TINY))

    def _averager(self):
        """What takes the moving average on after a step; made once an epoch, since listing parameters takes time."""
        if not self.ema_decay:
            return None
        if self.flats:
            parameters = [flat.whole for flat in self.average_flats], [flat.whole for flat in self.flats]
        else:
            parameters = list(self.average_.parameters()), list(self.module_.parameters())
        return partial(get_ema_multi_avg_fn(self.ema_decay), *parameters, None)

    def _take_buffers(self) -> None:
        """What a network counts and measures, as batch normalisation does, is not averaged."""
        if self.ema_decay:
            for average, last in zip(self.average_.buffers(), self.module_.buffers(), strict=True):
                average.copy_(last)

    @contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """The trained module as it is used: without dropout, without a graph."""
        module, training = self.trained_module, self.trained_module.training
        try:
            with torch.no_grad():
                yield module.eval()
        finally:
            module.train(training)

    def validation_step(self, batch, **fit_params) -> dict[str, Tensor]:
        with self.inference() as module:
            return self._step(module, batch)

    def _overridden(self, *hooks: str) -> bool:
        return any(
            getattr(type(cb), hook) is not getattr(Callback, hook) for _, cb in self.callbacks_ for hook in hooks
        )

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params) -> None:
        """One pass with sums kept on the device; a history row per batch only where a callback listens to batches."""
        if iterator is None:
            return
        per_batch, average = self._overridden(*_BATCH_HOOKS), self._averager() if training else None
        sizes, sums = [], []
        try:
            for i, batch in enumerate(iterator):
                if training and i % _FLUSH_EVERY == 0:
                    self._flush_moments()
                if per_batch:
                    self.notify("on_batch_begin", batch=batch, training=training)
                step = step_fn(batch, **fit_params)
                if average:
                    average()
                n = len(batch[0]["x"])
                sizes.append(n)
                sums.append((step["loss"].detach(), *step["y_pred"]))
                if per_batch:
                    self._record_batch(prefix, step["loss"].item(), n)
                    self.notify("on_batch_end", batch=batch, training=training, **step)
        finally:  # an epoch that is cut short counts for the rows it saw
            if training:
                self._take_buffers()
            if sums:  # one synchronisation
                losses, *terms = torch.stack([torch.stack(terms) for terms in zip(*sums, strict=True)]).cpu().double()
                log_prob, kl = (float(term.sum()) / sum(sizes) for term in terms)
                loss = float(np.average(losses, weights=sizes))
                self._record_epoch(prefix, loss, log_prob - kl, kl, None if per_batch else sum(sizes))

    def _record_epoch(self, prefix: str, loss: float, bound: float, kl: float, n_rows: int | None) -> None:
        if not np.isfinite(loss):
            raise Diverged(f"the {prefix} loss of epoch {len(self.history)} is {loss}")
        if n_rows is not None:
            self.history.new_batch()
            self._record_batch(prefix, loss, n_rows)
        self.history.record(prefix + "_bound", bound)
        self.history.record(prefix + "_kl", kl)

    def _record_batch(self, prefix: str, loss: float, n: int) -> None:
        self.history.record_batch(prefix + "_loss", loss)
        self.history.record_batch(prefix + "_batch_size", n)

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """Around what our callbacks do at length: a Ctrl-C in there is the user's, and no callback's wish to stop."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            raise

    def evaluate(self, dataset: TensorDataset) -> float:
        """Validation loss of the net as it stands, without a trace in the history."""
        with self.own_work():
            steps = [(self.validation_step(batch), len(batch[0]["x"])) for batch in self.get_iterator(dataset)]
            return float(sum(step["loss"] * n for step, n in steps)) / sum(n for _, n in steps)

    def notify(self, method_name: str, **cb_kwargs) -> None:
        try:
            super().notify(method_name, **cb_kwargs)
        except KeyboardInterrupt as stop:  # a callback's way to end training, to be told from the user's Ctrl-C
            if self.interrupted:
                raise
            raise StopTraining from stop

    def fit_loop(self, X, y=None, epochs=None, **kwargs):
        self.interrupted = False
        end = len(self.history) + (self.max_epochs if epochs is None else epochs)
        try:
            while len(self.history) < end:
                self._fit_until(end, X, y, **kwargs)
        except StopTraining:
            pass
        except KeyboardInterrupt:
            self.interrupted = True
            warnings.warn("Training interrupted by user.", stacklevel=2)
        return self

    def _fit_until(self, end: int, *args, **kwargs) -> None:
        """skorch's loop, until `end` epochs are in the history or one has diverged and was undone."""
        try:
            super().fit_loop(*args, epochs=end - len(self.history), **kwargs)
        except Diverged as error:
            guards = [callback for _, callback in self.callbacks_ if isinstance(callback, RollBack)]
            if not guards:
                raise
            guards[0].undo(self, error)
            if isinstance(error.__context__, KeyboardInterrupt):  # in the epoch that was undone
                raise error.__context__ from None


def _bounded(weight_decay: float, lr: float) -> float:
    """A step shrinks no weight past zero."""
    return min(weight_decay, 1 / lr)


def build_net(module, objective, *, optimizer, weight_decay: float, **params) -> Net:
    """An initialised `Net`; `params` are skorch's. Weight decay shrinks the networks' weights and nothing else.

    Its `recipe_` is what this function was given, but for the module, callbacks and device: what a file needs to keep.
    """
    recipe = {"objective": objective, "optimizer": optimizer, "weight_decay": weight_decay, **params}
    optimizer = OPTIMIZERS.get(optimizer, optimizer)
    weight_decay = _bounded(weight_decay, params["lr"])
    if "optimizer__weight_decay" not in params:  # else the user has chosen, for all parameters
        groups = [("[ed]?coder.*weight", {"weight_decay": weight_decay})] if weight_decay else []
        params = {"optimizer__param_groups": groups, "optimizer__weight_decay": 0.0} | params
    if optimizer in _FUSED:
        params = {"optimizer__fused": True} | params
    optimizer = BARE.get(optimizer, optimizer)
    net = Net(module, criterion=objective, optimizer=optimizer, verbose=0, **params).initialize()
    net.recipe_ = {name: value for name, value in recipe.items() if name not in ("callbacks", "device")}
    return net


@dataclass(frozen=True)
class Schedule:
    """How long to train: `n_epochs` passes in batches of `batch_size`, fewer where `patience` epochs bring nothing."""

    n_epochs: int
    batch_size: int
    patience: int
    tol: float
    run_length: int = 1  # epochs that `max_iter` allows, however many of them are run: a warm-up is a share of these

    @classmethod
    def resolve(
        cls, n_rows: int, *, max_iter="auto", batch_size="auto", n_iter_no_change="auto", tol=1e-4
    ) -> "Schedule":
        """Fill in what is "auto": budget and patience are counted in optimizer steps, whatever the number of rows."""
        if batch_size == "auto":
            batch_size = 2 ** round(math.log2(min(256, max(32, n_rows / 20))))
        batch_size = min(batch_size, n_rows)
        steps_per_epoch = math.ceil(n_rows / batch_size)
        budget, patience = _FEW_ROWS if n_rows < CROSS_FIT_ROWS else _MANY_ROWS
        if max_iter == "auto":
            max_iter = max(20, math.ceil(budget / steps_per_epoch))
        if n_iter_no_change == "auto":
            n_iter_no_change = max(3, math.ceil(patience / steps_per_epoch))
        return cls(max_iter, batch_size, n_iter_no_change, tol, max_iter)


@memory_advice("X is held there whole. Lower `batch_size` or `hidden_layer_sizes`, or fit with device='cpu'.")
def train(
    net: Net, x: Tensor, schedule: Schedule, x_valid=None, callbacks=(), n_decays=2, rows=None, checkpoint=None
) -> None:
    """Train `net` on `x`, or the given rows of it; with `x_valid`, keep the state that does best there."""
    split, callbacks, dataset = None, [RollBack(), *callbacks], TensorDataset(x.to(net.device))
    if x_valid is not None:
        split = predefined_split(TensorDataset(x_valid.to(net.device)))
        callbacks.append(BestState(schedule.patience, schedule.tol, n_decays))
    callbacks += [checkpoint] if checkpoint else []  # last, to see what the others made of an epoch
    net.set_params(max_epochs=schedule.n_epochs, batch_size=schedule.batch_size, train_split=split)
    net.run_length, kept = schedule.run_length, net.callbacks_
    net.callbacks_ = kept + [(type(callback).__name__, callback.initialize()) for callback in callbacks]
    work = 3 * multiplications(net.module_, schedule.batch_size * net.criterion_.n_draws, x.shape[1])
    try:
        with threads_for(work), net.training():
            net.partial_fit(dataset if rows is None else Subset(dataset, rows))
    finally:
        net.callbacks_ = kept  # the fitted net keeps no reference to X, to the best state or to an estimator
        net.train_split = None
        net.module_.eval()


def hold_out(n_rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers in random order, split into those to train on and those to validate on."""
    n_valid = math.ceil(fraction * n_rows)
    if n_valid >= n_rows:
        raise ValueError(
            f"The validation set is too small: X has {n_rows} sample(s). Increase 'validation_fraction' or the size of "
            "your dataset, or set early_stopping=False."
        )
    order = torch.randperm(n_rows, generator=generator(seed, SPLIT_STREAM))
    return order[n_valid:], order[:n_valid]


def cross_fit(make_net, x: Tensor, schedule: Schedule) -> tuple[np.ndarray | None, int]:
    """Mean validation bound after each epoch over the folds, and the number of epochs with the least loss; none after
    Ctrl-C.

    A held-out tenth of a small table is noise, and the rows are needed for training: so the table is trained on as
    often as there are folds, to learn how long to train on all of it.
    """
    bounds, losses = [], []
    for train_rows, valid_rows in KFold(N_FOLDS, shuffle=True, random_state=0).split(x):
        net = make_net(train_rows)
        train(net, x, schedule, x[valid_rows], n_decays=0, rows=torch.from_numpy(train_rows))
        if net.interrupted:
            return None, 0
        bounds.append(net.history[:, "valid_bound"])
        losses.append(net.history[:, "valid_loss"])
    return _mean_curve(bounds), int(np.argmin(_mean_curve(losses))) + 1


def _mean_curve(curves: list) -> np.ndarray:
    """Mean of curves of different lengths, each of which stays where it ended."""
    n_epochs = max(map(len, curves))
    return np.mean([np.pad(curve, (0, n_epochs - len(curve)), mode="edge") for curve in curves], axis=0)
