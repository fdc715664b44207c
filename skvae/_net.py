"""The skorch net: how a VAE is trained. Whole-tensor batches, own random streams, one synchronisation an epoch."""

import copy
import dis
import math
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.model_selection import KFold
from skorch import NeuralNet
from skorch.callbacks import Callback, PassthroughScoring
from skorch.exceptions import SkorchTrainingImpossibleError
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset, Subset, TensorDataset

from ._blocks import memory_advice
from ._device import device_here
from ._flat import FlatParameters
from ._gradient import ELBOGradient
from ._optimizers import BARE
from ._portable import to_bytes
from ._products import LinearByOneDNN
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
_WEIGHT_HOOKS = ("on_epoch_begin", "on_epoch_end", "on_train_end")  # where a callback may set weights
N_FOLDS = 5
CROSS_FIT_ROWS = 1000  # from here on rows are held out; fewer are cross-fitted
_FEW_ROWS, _MANY_ROWS = (2_000, 300), (10_000, 1_000)  # budget and patience, in optimizer steps
_VALIDATION_ROWS = 512  # a smaller held-out set is repeated, with other noise, up to about this many rows
_VALIDATION_BATCH = 2048


class StopTraining(KeyboardInterrupt):
    """Raised by a callback to end training; skorch knows no other way."""


class Diverged(ArithmeticError):
    """A loss that is not finite; `RollBack` undoes the epoch."""


def batch_sizes(n_rows: int, batch_size: int) -> list[int]:
    """Full batches and what is left. A single row joins the batch before: batch normalisation needs two, and a step on
    one row is mostly noise."""
    full, rest = divmod(n_rows, batch_size)
    sizes = [batch_size] * full + [rest] * bool(rest)
    return [*sizes[:-2], batch_size + 1] if full and rest == 1 else sizes


class TrainBatches:
    """Shuffled passes over a tensor, or over the given rows of it. The noise comes with the batch, so that the step
    itself draws nothing; the streams belong to (seed, epoch), so that epoch k is the same however training was cut into
    calls."""

    def __init__(self, net: "Net", x: Tensor, rows: Tensor | None = None) -> None:
        self.net, self.x = net, x
        self.rows = torch.arange(len(x)) if rows is None else rows

    @property
    def sizes(self) -> list[int]:
        """Rows in each batch; skorch's batch size of -1 is one batch."""
        n_rows, batch_size = len(self.rows), self.net.batch_size
        return batch_sizes(n_rows, n_rows if batch_size == -1 else batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], None]]:
        x, rng = self.x, generator(self.net.seed, len(self.net.history))
        draw = self.net.module_.likelihood.draw
        order = self.rows[torch.randperm(len(self.rows), generator=rng)].to(x.device)
        batches = order.split(self.sizes)
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

    def __init__(self, net: "Net", x: Tensor, n_rows: int = _VALIDATION_ROWS) -> None:
        n_repeats = min(-(-n_rows // len(x)), 16)
        self.net, self.x = net, x.repeat(n_repeats, 1) if n_repeats > 1 else x

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], None]]:
        batches = self.x.split(max(1, _VALIDATION_BATCH // self.net.criterion_.n_draws))
        rng = generator(self.net.seed, VALIDATION_STREAM)
        noise = _noise(self.net, [len(rows) for rows in batches], rng)
        for rows, eps in zip(batches, noise, strict=True):
            yield {"x": self.net.module_.likelihood.draw(rows, rng), "eps": eps}, None


class Net(NeuralNet):
    """Trains a VAE on its objective, which stands where skorch has a criterion.

    The fitted estimator's `net_` can be used as skorch documents it, on rows in the model's units, ``(X - offset) /
    scale``: arrays, tensors or data sets. `partial_fit` trains on, with the averaged weights, `forward` and `predict`
    give each row's terms of the bound, `set_params` sets the learning rate and options of the optimizer, and callbacks
    may freeze parameters. `save_params` keeps the last weights as ``f_params`` and the averaged ones, which the
    estimator uses, as ``f_average``. What the model is made of belongs to the estimator: `fit`, `initialize` and
    parameters of module and criterion say so.

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
        self.interrupted_ = False
        self.run_length_ = 1  # epochs that the whole run is meant to have
        self.given_callbacks_ = []  # the user's own, of which `callbacks` has copies
        self._forget_training()

    def _forget_training(self):
        """What there is while training lasts only."""
        self.flat_, self.average_flats_, self.by_hand_, self.averager_, self.trainable_ = None, [], None, None, None

    def start(self):
        """skorch's `initialize`, once; the weights are set afterwards."""
        return super().initialize()

    def initialize(self):
        raise SkorchTrainingImpossibleError(
            "The net of a VAETransformer cannot be initialized anew, since its weights start at the estimator's linear "
            "start. Call the estimator's fit to begin anew, or net_.partial_fit to train on."
        )

    def fit(self, X, y=None, **fit_params):
        if not self.warm_start:
            self.initialize()
        return self.partial_fit(X, y, **fit_params)

    def set_params(self, **kwargs):
        fixed = [name for name in kwargs if name.split("__")[0] in ("module", "criterion", "average")]
        if self.initialized_ and fixed:
            raise ValueError(
                f"{fixed[0]!r} is what the model is made of, and belongs to the estimator: set the parameter there and "
                "fit anew."
            )
        return super().set_params(**kwargs)

    def set_callbacks(self, callbacks):
        """Go on with other callbacks beside the net's own."""
        kept, own = vars(self).copy(), dict(self.callbacks_)
        self.callbacks = callbacks
        try:
            self._initialize_callbacks()
        except Exception:
            vars(self).update(kept)
            raise
        defaults = dict(self._default_callbacks)
        self.callbacks_ = [(name, own[name] if name in defaults else callback) for name, callback in self.callbacks_]

    def __setstate__(self, state):
        tensors = pickle.loads(state.pop("tensors_"))
        vars(self).update(state | tensors | {"device": device_here(state["device"])})

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

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`, and average from there."""
        self.module_.load_state_dict(state)
        self.trained_module.load_state_dict(state)

    def training_state(self) -> dict:
        """All that training goes on from; the callbacks keep the rest."""
        parts = {"module": self.module_, "average": self.trained_module, "optimizer": self.optimizer_}
        with self.unflattened():
            states = {name: part.state_dict() for name, part in parts.items()}
        return {**states, "lr": self.lr, "history": list(self.history)}

    def load_training_state(self, state: dict) -> None:
        self.module_.load_state_dict(state["module"])
        self.trained_module.load_state_dict(state["average"])
        self.optimizer_.load_state_dict(state["optimizer"])
        self.lr, self.history[:] = state["lr"], state["history"]

    def get_all_learnable_params(self):
        """The module's parameters, the frozen ones included, which a callback may thaw; the average is not learned."""
        return self.module_.named_parameters()

    @property
    def _flat(self) -> bool:
        return self.optimizer in BARE.values()

    @contextmanager
    def training(self):
        """Parameters flat for as long as it lasts, and what a step asks settled."""
        self._settle()
        try:
            yield
        finally:
            self._release()

    def _trainable(self) -> list[bool]:
        return [part.requires_grad for part in self.module_.parameters()]

    def _settle(self) -> None:
        """Choose how steps are computed, for the parameters that are trainable now."""
        self.trainable_ = self._trainable()
        pairs = zip(self.module_.parameters(), self.average_.parameters() if self.ema_decay else [], strict=False)
        twins = {part: twin for part, twin in pairs if part.requires_grad}
        if self._flat:
            self.flat_ = FlatParameters(self.optimizer_)
            self.average_flats_ = [flat.twin(twins) for flat in self.flat_.parts] if twins else []
        plain = type(self.criterion_) is ELBO and not self.criterion_.free_bits and not self.criterion_.warmup
        if plain and all(self.trainable_) and ELBOGradient.covers(self.module_):
            self.by_hand_ = ELBOGradient(self.module_, self.criterion_.beta)
        if twins:
            averages, lasts = list(twins.values()), list(twins)
            if self.flat_:
                averages, lasts = ([flat.whole for flat in flats] for flats in (self.average_flats_, self.flat_.parts))
            self.averager_ = partial(get_ema_multi_avg_fn(self.ema_decay), averages, lasts, None)

    def _release(self) -> None:
        for flat in self.average_flats_:
            flat.release()
        if self.flat_:
            self.flat_.release()
        self._forget_training()

    @contextmanager
    def unflattened(self):
        """Within this context the optimizer holds the module's parameters, in training too."""
        training = self.trainable_ is not None
        if training:
            self._release()
        try:
            yield
        finally:
            if training:
                self._settle()

    def __getstate__(self):
        with self.unflattened():
            state = vars(self).copy()
            prefixes = (*self.cuda_dependent_attributes_, "callbacks", "criterion", "module__", "recipe_")
            names = [name for name in state if name.startswith(prefixes)]
            return state | {"tensors_": to_bytes({name: state.pop(name) for name in names})}

    def save_params(self, *args, **kwargs):
        with self.unflattened():
            super().save_params(*args, **kwargs)

    def load_params(self, f_params=None, *args, checkpoint=None, **kwargs):
        """skorch's; the averaged weights are those of ``f_params``, unless ``f_average`` is given too."""
        with self.unflattened():
            super().load_params(f_params, *args, checkpoint=checkpoint, **kwargs)
            source = f_params or getattr(checkpoint, "f_params", None)
            if self.ema_decay and source and not (kwargs.get("f_average") or getattr(checkpoint, "f_average", None)):
                self.average_.load_state_dict(self.module_.state_dict())

    @property
    def _default_callbacks(self) -> list:
        return [
            ("train_loss", PassthroughScoring(name="train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring(name="valid_loss")),
        ]

    def get_dataset(self, X, y=None) -> TensorDataset | Subset:
        """Rows in the model's units, of whatever kind skorch takes, as one float32 tensor on the device."""
        if isinstance(X, Subset):
            return Subset(self.get_dataset(X.dataset), X.indices)
        x = _tensor_of(X).to(self.device, torch.float32)
        n_features = self.get_params_for("module").get("n_features", x.shape[-1])
        if x.ndim != 2 or x.shape[1] != n_features:
            raise ValueError(
                f"The net takes rows of shape (n_samples, {n_features}), in the model's units: (X - net_.offset) / "
                f"net_.scale. Got shape {tuple(x.shape)}."
            )
        return TensorDataset(x)

    def get_iterator(self, dataset: TensorDataset | Subset, training: bool = False):
        x, rows = _rows_of(dataset)
        if training:
            return TrainBatches(self, x, rows)
        return ValidationBatches(self, x if rows is None else x[rows.to(x.device)])

    def forward_iter(self, X, training=False, device="cpu"):
        """Reconstruction and KL term of each row, in nats and the model's units, in the order of X."""
        x, rows = _rows_of(self.get_dataset(X))
        for batch in ValidationBatches(self, x if rows is None else x[rows.to(x.device)], n_rows=1):
            yield tuple(term.to(device) for term in self.evaluation_step(batch, training))

    def evaluation_step(self, batch, training=False):
        if training:
            return self.module_.train()(**batch[0])
        with self.inference() as module:
            return module(**batch[0])

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
                part.begin_epoch(epoch, self.run_length_, rng)

    def _step(self, module: nn.Module, batch) -> dict[str, Tensor]:
        with LinearByOneDNN():
            value, log_prob, kl = self.criterion_(module, **batch[0])
        return {"loss": -value.mean(), "y_pred": (log_prob.detach().sum(), kl.detach().sum())}

    def train_step(self, batch, **fit_params) -> dict[str, Tensor]:
        """skorch's step without its closure and its `train()` at every batch."""
        step = self.gradient(batch)
        if self._overridden("on_grad_computed"):
            named = list(self.module_.named_parameters())
            self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
        if self.flat_:
            self.flat_.gather()
        self.optimizer_.step()
        return step

    def gradient(self, batch) -> dict[str, Tensor]:
        """Loss and terms of the batch, with the gradient left in the module's parameters."""
        if self.by_hand_:
            log_prob, kl = self.by_hand_(**batch[0])
            return {"loss": (self.by_hand_.beta * kl - log_prob) / len(batch[0]["x"]), "y_pred": (log_prob, kl)}
        self.module_.zero_grad()
        step = self._step(self.module_, batch)
        if step["loss"].requires_grad:  # else all is frozen
            step["loss"].backward()
        return step

    def _flush_moments(self) -> None:
        """Zero the first moments that would decay into denormal numbers, which are slow to compute with."""
        for state in self.optimizer_.state.values():
            if "exp_avg" in state:
                state["exp_avg"].copy_(F.hardshrink(state["exp_avg"], _TINY))

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
        per_batch = self._overridden(*_BATCH_HOOKS)
        sizes, sums = [], []
        try:
            for i, batch in enumerate(iterator):
                if training and i % _FLUSH_EVERY == 0:
                    self._flush_moments()
                if per_batch:
                    self.notify("on_batch_begin", batch=batch, training=training)
                step = step_fn(batch, **fit_params)
                if training and self.averager_:
                    self.averager_()
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
            self.interrupted_ = True
            raise

    def evaluate(self, dataset: TensorDataset) -> float:
        """Validation loss of the net as it stands, without a trace in the history."""
        with self.own_work():
            steps = [(self.validation_step(batch), len(batch[0]["x"])) for batch in self.get_iterator(dataset)]
            return float(sum(step["loss"] * n for step, n in steps)) / sum(n for _, n in steps)

    def notify(self, method_name: str, **cb_kwargs) -> None:
        with self._averaged(method_name):
            try:
                super().notify(method_name, **cb_kwargs)
            except KeyboardInterrupt as stop:  # a callback's way to end training, to be told from the user's Ctrl-C
                if self.interrupted_ or not _is_raised(stop):
                    raise
                raise StopTraining from stop
            except KeyError as error:
                missing = re.search(r"\bvalid_\w+", str(error))
                if not missing:
                    raise
                raise ValueError(
                    f"A callback looks at '{missing[0]}' in the history, and no rows are held out. Set "
                    "early_stopping=True and call fit, or let it look at 'train_loss'."
                ) from error
        frozen_anew = self.trainable_ is not None and self.trainable_ != self._trainable()
        if frozen_anew and method_name != "on_grad_computed":  # whose gradients are still to be used
            self._release()
            self._settle()

    @contextmanager
    def _averaged(self, method_name: str) -> Iterator[None]:
        """Within this context, weights that the user's callbacks set are taken over by the average."""
        if not (self.ema_decay and method_name in _WEIGHT_HOOKS and self.callbacks):
            yield
            return
        before = [part.detach().clone() for part in self.module_.parameters()]
        yield
        for old, new, average in zip(before, self.module_.parameters(), self.average_.parameters(), strict=True):
            if not torch.equal(old, new):
                average.data.copy_(new.data)
                self._take_buffers()

    def fit_loop(self, X, y=None, epochs=None, **kwargs):
        self.check_training_readiness()
        self.interrupted_ = False
        end = len(self.history) + (self.max_epochs if epochs is None else epochs)
        try:
            with self.training():
                while len(self.history) < end:
                    self._fit_until(end, X, y, **kwargs)
        except StopTraining:
            pass
        except KeyboardInterrupt:
            self.interrupted_ = True  # for the caller to see: the state is whole, and can be used
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


def _is_raised(error: BaseException) -> bool:
    """Whether a statement raised it, as callbacks do to end training; a Ctrl-C arrives between statements."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _tensor_of(data) -> Tensor:
    """The rows of an array, a tensor or a data set of skorch's or torch's."""
    if isinstance(data, TensorDataset):
        return data.tensors[0]
    if isinstance(data, Dataset):
        return _tensor_of(data.X) if hasattr(data, "X") else torch.stack([torch.as_tensor(row[0]) for row in data])
    if isinstance(data, dict):
        return _tensor_of(data["x"])
    return data if isinstance(data, Tensor) else torch.from_numpy(np.array(data, dtype=np.float32))


def _rows_of(dataset: TensorDataset | Subset) -> tuple[Tensor, Tensor | None]:
    """A tensor and, if not all of it is meant, the indices of rows in it."""
    if not isinstance(dataset, Subset):
        return dataset.tensors[0], None
    x, rows = _rows_of(dataset.dataset)
    indices = torch.as_tensor(dataset.indices)
    return x, indices if rows is None else rows[indices]


def build_net(module, objective, *, optimizer, weight_decay: float, **params) -> Net:
    """An initialised `Net`; `params` are skorch's. Weight decay shrinks the networks' weights and nothing else.

    Its `recipe_` is what this function was given, but for the module, callbacks and device: what a file needs to keep.
    """
    recipe = {"objective": objective, "optimizer": optimizer, "weight_decay": weight_decay, **params}
    optimizer = OPTIMIZERS.get(optimizer, optimizer)
    weight_decay = min(weight_decay, 1 / params["lr"])  # a step shrinks no weight past zero
    if "optimizer__weight_decay" not in params:  # else the user has chosen, for all parameters
        groups = [("[ed]?coder.*weight", {"weight_decay": weight_decay})] if weight_decay else []
        params = {"optimizer__param_groups": groups, "optimizer__weight_decay": 0.0} | params
    if optimizer in _FUSED and not params.keys() & {"optimizer__foreach", "optimizer__differentiable"}:
        params = {"optimizer__fused": True} | params
    optimizer = BARE.get(optimizer, optimizer)
    params = {"use_caching": False} | params  # of outputs, which scoring callbacks would take from sums over batches
    net = Net(module, criterion=objective, optimizer=optimizer, verbose=0, **params).start()
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
    net.run_length_, kept = schedule.run_length, net.callbacks_
    _check_batches(net, len(x) if rows is None else len(rows))
    net.callbacks_ = kept + [(type(callback).__name__, callback.initialize()) for callback in callbacks]
    try:
        net.partial_fit(dataset if rows is None else Subset(dataset, rows))
    finally:
        net.callbacks_ = kept  # the fitted net keeps no reference to X, to the best state or to an estimator
        net.train_split = None
        net.module_.eval()


def _check_batches(net: Net, n_rows: int) -> None:
    if min(batch_sizes(n_rows, net.batch_size)) == 1 and any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.module_.modules()
    ):
        raise ValueError(
            f"Batch normalisation cannot train on batches of one row: there are {n_rows} row(s) and batch_size="
            f"{net.batch_size}. Give it more, or use layer normalisation."
        )


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
        if net.interrupted_:
            return None, 0
        bounds.append(net.history[:, "valid_bound"])
        losses.append(net.history[:, "valid_loss"])
    return _mean_curve(bounds), int(np.argmin(_mean_curve(losses))) + 1


def _mean_curve(curves: list) -> np.ndarray:
    """Mean of curves of different lengths, each of which stays where it ended."""
    n_epochs = max(map(len, curves))
    return np.mean([np.pad(curve, (0, n_epochs - len(curve)), mode="edge") for curve in curves], axis=0)
