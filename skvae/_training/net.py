"""The skorch net: how a VAE is trained. Whole-tensor batches, own random streams, one synchronisation an epoch."""

import copy
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.exceptions import SkorchTrainingImpossibleError
from torch import Tensor, nn
from torch.utils.data import Subset

from .._data.batch import Batch
from .._data.blocks import memory_advice, units_of
from .._data.split import Rows, Split, TrainBatches, member, tensor_of, whole
from .._fast.gradient import FastELBO, fast_elbo
from .._fast.optimizers import BARE, optimizer_of
from .._fast.replay import Replay
from .._io.portable import to_bytes
from .._model.component import Epochal
from .._model.module import VAE
from .._system.device import device_here
from .._system.program import multiplications, own_settings, threads_for
from .._system.random import EPOCH_STREAM, VALIDATION_STREAM, generator
from ..objectives import Objective
from .checks import check_batches
from .guard import MAP_DIM, Diverged, Guard, StopTraining, is_raised
from .processes import add_up
from .schedule import Schedule
from .stack import Stack

_EMA_DECAY = 0.97  # a step, of the average of the weights: some 30 steps, about an epoch of a small table
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_FLUSH_EVERY = 150  # training steps, in which Adam's first moment does not decay from 1e-30 to a denormal number
_BATCH_HOOKS = ("on_batch_begin", "on_batch_end")
_WEIGHT_HOOKS = ("on_epoch_begin", "on_epoch_end", "on_train_end")  # where a callback may set weights
_BLOCK = 2048  # rows that `forward` takes at once
_IN_TRAINING = ("stack_", "guard_", "fast_", "replay_", "epochal_")  # what there is only while training lasts


class Net(NeuralNet):
    """Trains a VAE on its objective, which stands where skorch has a criterion.

    The fitted estimator's `net_` can be used as skorch documents it, on rows in the model's units, ``(X - offset) /
    scale``: arrays, tensors or data sets. `partial_fit` trains on, with the averaged weights, `forward` and `predict`
    give each row's terms of the bound, `set_params` sets the learning rate and options of the optimizer, and callbacks
    may freeze parameters. `save_params` keeps the last weights as ``f_params`` and the averaged ones, which the
    estimator uses, as ``f_average``. What the model is made of belongs to the estimator: `fit`, `initialize` and
    parameters of module and criterion say so.

    `seed` decides all that is random; `offset` and `scale` (n_features,) lead from the model's units to those of X.
    An exponential moving average of the weights, `average_`, is kept beside them with `ema_decay`, and is what gets
    judged and used: it takes the noise of the last steps out, as a falling learning rate would. `input_noise`
    (n_features,) is the standard deviation of the noise that the encoder sees in the first phase of training, and
    `balanced` says whether the gradients are balanced there. With one or two latent units, a map, they are to the end,
    and the noise scales have no say on where rows lie; where they are not balanced, in the first quarter of the steps.

    `partial_fit` also takes a `Split`, which says how several members are trained at once. While it runs, the
    parameters of all lie in flat tensors.
    """

    module_: VAE
    average_: VAE
    criterion_: Objective
    optimizer_: torch.optim.Optimizer
    callbacks_: list[tuple[str, Callback]]
    stack_: Stack  # while training lasts, as the guard
    guard_: Guard
    fast_: FastELBO | None
    replay_: Replay | None
    epochal_: list[Epochal]

    def __init__(
        self,
        *args: Any,
        seed: int = 0,
        offset: float | np.ndarray = 0.0,
        scale: float | np.ndarray = 1.0,
        ema_decay: float = _EMA_DECAY,
        input_noise: Tensor | None = None,
        balanced: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.offset = offset
        self.scale = scale
        self.ema_decay = ema_decay
        self.input_noise = input_noise
        self.balanced = balanced
        self.interrupted_ = False
        self.gain_ = 0.0  # nats per row that log-likelihoods of the training rows gain by marginals, and by holes
        self.schedule_ = Schedule(n_epochs=1, batch_size=1, patience=0.0, tol=0.0)  # `train` sets it
        self.n_steps_ = 0
        self.__dict__.update(dict.fromkeys(_IN_TRAINING))
        self.given_callbacks_: list[Any] = []  # the user's own, of which `callbacks` has copies

    def __getstate__(self) -> dict:
        with self.own_optimizer():
            state = vars(self).copy()
        state |= dict.fromkeys((*_IN_TRAINING, "module"))
        prefixes = (*self.cuda_dependent_attributes_, "callbacks", "criterion", "recipe_", "input_noise")
        names = [name for name in state if name.startswith(prefixes)]
        return state | {"tensors_": to_bytes({name: state.pop(name) for name in names})}

    @own_settings()
    def __setstate__(self, state: dict) -> None:
        tensors = pickle.loads(state.pop("tensors_"))
        self.__dict__.update(state | tensors | {"device": device_here(state["device"])})
        self.module = self.module_  # one object, kept once

    # What skorch documents

    def initialize(self) -> "Net":
        raise SkorchTrainingImpossibleError(
            "The net of a VAETransformer cannot be initialized anew, since its weights start at the estimator's linear "
            "start. Call the estimator's fit to begin anew, or net_.partial_fit to train on."
        )

    def set_params(self, **kwargs: Any) -> "Net":
        fixed = [name for name in kwargs if name.split("__")[0] in ("module", "criterion", "average")]
        if self.initialized_ and fixed:
            raise ValueError(
                f"{fixed[0]!r} is what the model is made of, and belongs to the estimator: set the parameter there and "
                "fit anew."
            )
        return super().set_params(**kwargs)

    def set_callbacks(self, callbacks: Any) -> None:
        """Go on with other callbacks."""
        self.callbacks = callbacks
        self._initialize_callbacks()

    def save_params(self, *args: Any, **kwargs: Any) -> None:
        with self.own_optimizer():
            super().save_params(*args, **kwargs)

    def load_params(self, f_params: Any = None, *args: Any, checkpoint: Any = None, **kwargs: Any) -> None:
        """skorch's; the averaged weights are those of ``f_params``, unless ``f_average`` is given too."""
        with self.own_optimizer() as stacked:
            super().load_params(f_params, *args, checkpoint=checkpoint, **kwargs)
            if stacked is not None and (kwargs.get("f_optimizer") or getattr(checkpoint, "f_optimizer", None)):
                self.stack_.take_state(stacked)
        source = f_params or getattr(checkpoint, "f_params", None)
        if source and not (kwargs.get("f_average") or getattr(checkpoint, "f_average", None)):
            self.average_.load_state_dict(self.module_.state_dict())

    def initialize_module(self) -> "Net":
        super().initialize_module()
        self.average_ = copy.deepcopy(self.module_).requires_grad_(False)
        return self

    @property
    def z_dim(self) -> int:
        return self.module_.prior.z_dim

    @property
    def is_shared(self) -> bool:
        """True while several processes train the net, each on rows of its own."""
        return self.guard_ is not None and self.guard_.split.shards is not None

    @property
    def is_judged(self) -> bool:
        """True while rows that are held out judge training."""
        return self.guard_ is not None and self.guard_.judge is not None

    @property
    def in_first_phase(self) -> bool:
        """True in the first of the two phases of training that is judged."""
        return self.is_judged and self.guard_.in_first_phase

    @property
    def phase(self) -> dict[str, bool]:
        """Fields of a batch that depend on the phase of training; a map whose gradients are balanced is one in both."""
        is_map = self.is_judged and self.z_dim <= MAP_DIM
        for_map = is_map and (self.balanced or self.guard_.is_placing)
        return {"balanced": self.balanced and (for_map or self.in_first_phase), "for_map": for_map}

    def units(self, n: int | None) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Offset and scale of the first `n` features, with or without what is given behind them."""
        return units_of(self.offset, self.scale, n)

    @property
    def n_features(self) -> int:
        """Number of features that are modelled."""
        return self.recipe_["vae"]["n_features"]

    @property
    def mean_log_jacobian(self) -> float:
        """Nats that the log-likelihood of a training row gains on average from the model's units to those of X, with
        what marginals and holes add."""
        return self.gain_ - float(np.sum(np.log(self.units(self.n_features)[1])))

    @property
    def frozen(self) -> list[str]:
        """Names of the parameters that training leaves as they are."""
        return [name for name, part in self.module_.named_parameters() if not part.requires_grad]

    def freeze(self, names: Iterable[str]) -> None:
        """Leave these parameters as they are from now on, and train all others."""
        kept = set(names)
        for name, part in self.module_.named_parameters():
            part.requires_grad_(name not in kept)

    def set_objective(self, objective: Objective) -> None:
        """Go on with another objective; the optimizer's state stays."""
        self.criterion_ = objective.to(self.device)
        self.recipe_["objective"] = objective

    def set_weight_decay(self, weight_decay: float) -> None:
        """Set the weight decay of the networks' weights from now on, unless the user has chosen it."""
        _, options = optimizer_of(self.recipe_["optimizer"])
        if self.recipe_["weight_decay"] and "weight_decay" not in options:
            self.recipe_["weight_decay"] = weight_decay
            for group in self.optimizer_.param_groups:
                if group.get("weight_decay"):
                    group["weight_decay"] = _bounded(weight_decay, self.lr)

    def carry_on(self, former: "Net") -> None:
        """Take over the history of the net that this one replaces, its bounds in this one's units. The losses are not
        in these, and none of them is one to beat."""
        shift = former.mean_log_jacobian - self.mean_log_jacobian
        self.history[:] = [row.copy() for row in former.history]
        for row in self.history:
            row.update({name: False for name in row if name.endswith("_loss_best")})
            row.update({name: row[name] + shift for name in row.keys() & {"train_bound"}})

    def training_state(self) -> dict:
        """Return all that training goes on from; the callbacks keep the rest."""
        parts = {"tensors": self.stack_.whole_state(), "optimizer": self.optimizer_.state_dict()}
        scalars = {"lr": self.lr, "n_steps": self.n_steps_, "history": list(self.history), "frozen": self.frozen}
        return {**parts, **scalars, "objective": self.criterion_.state_dict(), "guard": self.guard_.state()}

    def load_training_state(self, state: dict) -> None:
        self.stack_.load_whole(state["tensors"])
        self.optimizer_.load_state_dict(state["optimizer"])
        self.lr, self.n_steps_, self.history[:] = state["lr"], state["n_steps"], state["history"]
        self.freeze(state["frozen"])
        self.criterion_.load_state_dict(state["objective"])
        self.guard_.load(state["guard"])

    # Data

    def get_dataset(self, X: Any, y: Any = None) -> Split:
        """The `Split` that X is, or all rows of whatever skorch takes for one model."""
        if isinstance(X, Split):
            return X
        if isinstance(X, Subset):
            inner, rows = self.get_dataset(X.dataset), torch.as_tensor(X.indices)
            return Split(inner.x, [inner.train[0][rows]])
        x = tensor_of(X).to(self.device, torch.float32)
        n_features = self.n_features + self.module_.n_context
        if x.ndim != 2 or x.shape[1] != n_features:
            raise ValueError(
                f"The net takes rows of shape (n_samples, {n_features}), in the model's units: (X - net_.offset) / "
                f"net_.scale. Got shape {tuple(x.shape)}."
            )
        return whole(x)

    def forward_iter(self, X: Any, training: bool = False, device: Any = "cpu") -> Iterator[tuple[Tensor, ...]]:
        """Reconstruction and KL term of each row, in nats and the model's units, in the order of X."""
        for batch in self._blocks(self.get_dataset(X)):
            yield tuple(term.to(device) for term in self.evaluation_step(batch, training))

    def evaluation_step(self, batch: Any, training: bool = False) -> tuple[Tensor, ...]:
        if training:
            return self.module_.train()(batch)
        with self.inference() as module:
            return module(batch)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        """Return the rows for training and those held out for callbacks: the split's, or else skorch's own."""
        if not (isinstance(X, Split) and X.valid):
            return super().get_split_datasets(X, y, **fit_params)
        return X, None if X.others else Split(X.x, X.valid)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        split = self.get_dataset(dataset)
        if training:
            return TrainBatches(self, split)
        return [] if self.is_judged else list(self._blocks(split))

    def _blocks(self, split: Split) -> Iterator[Batch]:
        """Yield all rows of the first member in their order, with draws that are always the same."""
        rng = generator(self.seed, VALIDATION_STREAM)
        for start in range(0, len(split), _BLOCK):
            x, _ = split[slice(start, start + _BLOCK)]
            eps = torch.randn(len(x), self.z_dim, generator=rng).to(x)
            yield Batch(**Rows(x, self.module_).take(torch.arange(len(x)), rng), eps=eps)

    # Training

    def get_all_learnable_params(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module_.named_parameters()

    @contextmanager
    def _stacked(self, split: Split) -> Iterator[None]:
        """Within this context the parameters of all members lie in flat tensors."""
        own = self.optimizer_
        averages = [self.average_, *(copy.deepcopy(other).requires_grad_(False) for other in split.others)]
        names = {part: name for name, part in self.module_.named_parameters()}
        groups = [[names[part] for part in group["params"]] for group in own.param_groups]
        self.stack_ = Stack([self.module_, *split.others], averages, groups, self._elementwise)
        try:
            self._set_up(own, split)
            yield
        finally:
            if self.optimizer_ is not own:
                self.optimizer_ = self.stack_.give_back(self.optimizer_)
            self.stack_.release()
            self.__dict__.update(dict.fromkeys(_IN_TRAINING))

    def _set_up(self, own: torch.optim.Optimizer, split: Split) -> None:
        """Make what trains the stack: the optimizer of all members goes on from the net's `own`."""
        self.fast_ = fast_elbo(self.stack_, self.criterion_)
        parts = [part for module in (*self.stack_.members, self.criterion_) for part in module.train().modules()]
        self.epochal_ = [part for part in parts if isinstance(part, Epochal)]
        _, options = self.get_params_for_optimizer("optimizer", self.module_.named_parameters())
        for group in own.param_groups if self.history else ():  # schedulers go on from it, where there was none
            group.setdefault("initial_lr", group["lr"])
        self.optimizer_ = self.stack_.optimizer_from(own, self.optimizer, options)
        self.replay_ = Replay(self) if Replay.covers(self) else None
        self.guard_ = Guard(self, split, self.schedule_)

    @contextmanager
    def own_optimizer(self) -> Iterator[torch.optim.Optimizer | None]:
        """Within this context the optimizer is that of the module's own parameters; yields that of all members, while
        training lasts."""
        if self.stack_ is None:
            yield None
            return
        stacked = self.optimizer_
        self.optimizer_ = self.stack_.give_back(stacked)
        try:
            yield stacked
        finally:
            self.optimizer_ = stacked

    @property
    def _elementwise(self) -> bool:
        """True if the optimizer treats each number by itself, so that parameters may be flat."""
        return self.optimizer in BARE.values()

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> "Net":
        self.check_training_readiness()
        split = self.get_dataset(X, y)
        with self._stacked(split), suppress(StopTraining):  # where a callback raised it before or after all epochs
            super().partial_fit(split, None, **fit_params)
        return self

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> "Net":
        self.interrupted_ = False
        self.guard_.end = len(self.history) + (self.max_epochs if epochs is None else epochs)
        try:
            while len(self.history) < self.guard_.end:
                self._fit_on(X, y, **kwargs)
        except StopTraining:
            pass
        except KeyboardInterrupt:
            if self.is_shared:  # other processes are elsewhere
                raise
            self.interrupted_ = True  # for the caller to see: the state is whole, and can be used
        self.despite_ctrl_c(self.guard_.finish)
        if self.is_shared:
            self.stack_.share_buffers()
        return self

    def despite_ctrl_c(self, work: Callable[[], None]) -> bool:
        """Do what ends a training, over again if a Ctrl-C comes meanwhile; returns whether none came."""
        try:
            work()
            return True
        except KeyboardInterrupt:
            if self.is_shared:
                raise
            self.interrupted_ = True
            work()
            return False

    def _fit_on(self, *args: Any, **kwargs: Any) -> None:
        """skorch's loop, until training ends or an epoch has diverged and was undone."""
        try:
            super().fit_loop(*args, epochs=self.guard_.end - len(self.history), **kwargs)
        except Diverged as error:
            self.guard_.undo(error)
            if isinstance(error.__context__, KeyboardInterrupt):  # in the epoch that was undone
                raise error.__context__ from None

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        with self._averaged(method_name):
            try:
                super().notify(method_name, **cb_kwargs)
            except KeyboardInterrupt as stop:  # a callback's way to end training, to be told from the user's Ctrl-C
                if not is_raised(stop):
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

    @contextmanager
    def _averaged(self, method_name: str) -> Iterator[None]:
        """Within this context, weights that the user's callbacks set are taken over by the average."""
        if not (method_name in _WEIGHT_HOOKS and self.callbacks):
            yield
            return
        before = [part.detach().clone() for part in self.module_.parameters()]
        yield
        for old, new, average in zip(before, self.module_.parameters(), self.average_.parameters(), strict=True):
            if not torch.equal(old, new):
                average.data.copy_(new.data)

    @property
    def _default_callbacks(self) -> list:
        return []  # the epoch's losses are recorded by `_record`

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        super().on_epoch_begin(net, **kwargs)
        epoch = len(self.history)
        if not self.module_.training:  # a callback may have looked at it
            self.module_.train()
        if self.epochal_:
            rng = generator(self.seed, epoch, EPOCH_STREAM)
            for part in self.epochal_:
                part.begin_epoch(epoch, self.schedule_.run_length, rng)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """skorch's step without its closure and its `train()` at every batch, for all members."""
        alone = not (self.is_shared or self.listens_["on_grad_computed"])
        return (self.replay_ if self.replay_ and alone else self).step(batch[0], self.guard_.lr_factor)

    def step(self, batch: Batch, factor: float) -> dict[str, Any]:
        """Take a step at `factor` times the learning rate; returns what `gradient` does."""
        step = self.gradient(batch)
        if self.is_shared:
            add_up([*self.stack_.whole_gradients, *step.values()])
        if self.listens_["on_grad_computed"]:
            for i, module in enumerate(self.stack_.members):
                some = {"named_parameters": list(module.named_parameters()), "batch": (member(batch, i), None)}
                self.notify("on_grad_computed", **some, training=True)
            self.stack_.gather()
        self.stack_.step(self.optimizer_, self.ema_decay, factor)
        return step

    def gradient(self, batch: Batch) -> dict[str, Any]:
        """Return loss and terms of the first member, and leave the gradients of all in the stack. With several
        processes all are shares, to be added up."""
        assert batch.weight is not None
        if self.fast_ and len(batch):
            terms = torch.stack(self.fast_.gradient(batch)) @ batch.weight[0]
            log_prob, kl = terms
            return {"loss": self.fast_.beta * kl - log_prob, "y_pred": terms}
        self.stack_.zero_grad()
        share = float(batch.weight.sum()) if self.is_shared else 1.0
        rows = [member(batch, i) for i in range(len(self.stack_.members))]  # none in some batches, where all are small
        steps = [self._backward(*pair, share) for pair in zip(self.stack_.members, rows, strict=True) if len(pair[1])]
        return steps[0] if steps else {"loss": batch.x.new_zeros(()), "y_pred": batch.x.new_zeros(2)}

    def _backward(self, module: VAE, batch: Batch, share: float) -> dict[str, Any]:
        value, log_prob, kl = self.criterion_(module, batch)
        loss = -value.mean() * share
        if loss.requires_grad:  # else all is frozen
            loss.backward()
        terms = torch.stack([log_prob.detach().mean(), kl.detach().mean()])
        return {"loss": loss.detach(), "y_pred": terms * share}

    @contextmanager
    def inference(self, module: VAE | None = None) -> Iterator[VAE]:
        """The averaged module as it is used, or another one: without dropout, without a graph."""
        module = self.average_ if module is None else module
        training = module.training
        try:
            with torch.no_grad():
                yield module.eval()
        finally:
            module.train(training)

    def _overridden(self, hook: str) -> bool:
        return any(getattr(type(callback), hook) is not getattr(Callback, hook) for _, callback in self.callbacks_)

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """One pass with sums kept on the device; a history row per batch only where a callback listens to batches."""
        if not training:
            return self._validate(iterator or [])
        self.guard_.on_epoch_begin()
        self.stack_.freeze()
        self.listens_ = {hook: self._overridden(hook) for hook in (*_BATCH_HOOKS, "on_grad_computed")}
        per_batch, sums = any(self.listens_[hook] for hook in _BATCH_HOOKS), []
        try:
            for batch, n_rows in zip(iterator, iterator.sizes, strict=True):
                if self.guard_.n_all_steps % _FLUSH_EVERY == 0:
                    self.stack_.flush(self.optimizer_)
                shown = (member(batch[0], 0), None) if per_batch else None
                if per_batch:
                    self.notify("on_batch_begin", batch=shown, training=True)
                    self.stack_.freeze()  # as a callback may have
                self.guard_.n_step_rows = n_rows  # of all processes
                step = step_fn(batch, **fit_params)
                sums.append((step["loss"], step["y_pred"]))
                self.guard_.on_step_end()
                if per_batch:
                    row = {"train_loss": step["loss"].item(), "train_batch_size": n_rows}
                    self.history[-1]["batches"][-1].update(row)
                    self.notify("on_batch_end", batch=shown, training=True, **step)
            self.guard_.on_epoch_end()
        finally:  # an epoch that is cut short counts for the rows it saw
            self.n_steps_ = self.guard_.n_all_steps
            self.stack_.take_buffers()
            if sums:
                self._record_epoch(iterator.sizes[: len(sums)], sums)

    def _validate(self, batches: list[Batch]) -> None:
        """Record the terms of rows that a split of the net's own holds out; the guard judges those of the estimator."""
        with self.inference() as module:
            terms = [torch.stack(self.criterion_(module, batch)) for batch in batches]
        if terms:
            value, log_prob, kl = torch.cat(terms, -1).mean(-1).tolist()
            self._record("valid", -value, log_prob - kl, kl)

    def _record_epoch(self, sizes: list[int], sums: list) -> None:
        losses, terms = (torch.stack(parts) for parts in zip(*sums, strict=True))
        rows = torch.column_stack([losses, terms]).cpu().double()  # one synchronisation
        loss, log_prob, kl = (torch.tensor(sizes, dtype=rows.dtype) @ rows / sum(sizes)).tolist()
        if not math.isfinite(loss):
            raise Diverged(f"the train loss of epoch {len(self.history)} is {loss}")
        if not (batches := self.history[-1]["batches"]):  # one for all, for callbacks that look at the last
            batches.append({"train_loss": loss, "train_batch_size": sum(sizes)})
        self._record("train", loss, log_prob - kl, kl)
        if self.guard_.seen:  # the last look, which an epoch of a few steps shares with others
            value, bound, kl = self.guard_.seen
            self._record("valid", -value, bound, kl)

    def _record(self, prefix: str, loss: float, bound: float, kl: float) -> None:
        """Write the means of an epoch into the history, the loss as skorch's own scoring does."""
        name, row = f"{prefix}_loss", self.history[-1]
        lowest = next((former[name] for former in reversed(self.history) if former.get(f"{name}_best")), math.inf)
        row.update({name: loss, f"{name}_best": loss < lowest, f"{prefix}_bound": bound, f"{prefix}_kl": kl})
        if prefix == "valid":  # where skorch's functions look for it
            row["batches"][-1][name] = loss


def _bounded(weight_decay: float, lr: float) -> float:
    """A step shrinks no weight past zero."""
    return min(weight_decay, 1 / lr) if lr else weight_decay


def build_net(
    module: VAE, objective: Objective, *, vae: dict, optimizer: Any, weight_decay: float, **params: Any
) -> Net:
    """Return an initialised `Net` around a module; `params` are skorch's. Weight decay is for the networks' weights.

    Its `recipe_` keeps the arguments, so that a saved net can be rebuilt; module, callbacks and device are not in it.
    `vae` holds the arguments that `build_vae` built the module from.
    """
    recipe = {"objective": objective, "vae": vae, "optimizer": optimizer, "weight_decay": weight_decay, **params}
    optimizer, options = optimizer_of(optimizer)
    params |= {f"optimizer__{name}": value for name, value in options.items()}
    weight_decay = _bounded(weight_decay, params["lr"])
    if "optimizer__weight_decay" not in params:  # else the user has chosen, for all parameters
        groups = [("[ed]?coder.*weight", {"weight_decay": weight_decay})] if weight_decay else []
        params = {"optimizer__param_groups": groups, "optimizer__weight_decay": 0.0} | params
    if optimizer in _FUSED and not params.keys() & {"optimizer__foreach", "optimizer__differentiable"}:
        params = {"optimizer__fused": True} | params
    optimizer = BARE.get(optimizer, optimizer)
    params = {"use_caching": False} | params  # of outputs, which scoring callbacks would take from sums over batches
    net = Net(module, criterion=objective, optimizer=optimizer, verbose=0, train_split=None, **params)
    NeuralNet.initialize(net)
    net.recipe_ = {name: value for name, value in recipe.items() if name not in ("callbacks", "device")}
    return net


@memory_advice("X is held there whole. Lower `batch_size` or `hidden_layer_sizes`, or fit with device='cpu'.")
def train(net: Net, split: Split, schedule: Schedule, callbacks: Any = ()) -> None:
    """Train `net`, and the other members of `split` beside it; where rows are held out, keep the best state."""
    net.set_params(max_epochs=schedule.n_epochs, batch_size=schedule.batch_size)
    net.schedule_, kept = schedule, net.callbacks_
    check_batches(net.module_, TrainBatches(net, split).sizes, net.batch_size)
    net.callbacks_ = kept + [(type(callback).__name__, callback.initialize()) for callback in callbacks]
    work = 3 * multiplications(net.module_, schedule.batch_size * net.criterion_.n_draws, split.x.shape[1])
    try:
        with threads_for(work):
            net.partial_fit(split)
    finally:
        net.callbacks_ = kept  # the fitted net keeps no reference to X, to the best state or to an estimator
        net.module_.eval()
