"""The steps of `fit` and `partial_fit`, from X as it is given to fitted attributes."""

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from .._data.stream import MAX_KEPT
from .._model.build import SklearnCallbacks
from .._model.calibration import spread_factor
from .._system.random import subsample
from .._training.checkpoint import open_checkpoint
from .._training.checks import check_monitors
from .._training.fitting import (
    begin,
    go_on,
    mean_gain,
    none_held_out,
    prior_of,
    rows_for,
    schedule_of,
    stream_before,
    weight_decay_of,
)
from .._training.made_with import check_unchanged, made_with
from .._training.net import train
from .._training.processes import is_first, of_first, shared
from .._training.schedule import CROSS_FIT_ROWS
from ..callbacks import REPORT_ROWS, Report


@dataclass
class Taken:
    """X as a fit takes it, and what is known before training.

    Parameters
    ----------
    values : ndarray or RowSource of shape (n_samples, n_features)
        Validated features.
    gain : float or ndarray of shape (n_samples,)
        What log-likelihoods gain by the way from X to features, in nats.
    likelihood : str or Likelihood
        What the parameter stands for.
    table : Table
        The columns of X.
    asked : dict
        What `made_with` says of the parameters.
    seed : int
        Of all random streams.
    """

    values: Any
    gain: Any
    likelihood: Any
    table: Any
    asked: dict
    seed: int


class TrainingMixin:
    """Training, from `fit` to a fitted model."""

    def _fit(self, X, y, *, fresh, one_epoch=False):
        X = shared(X, CROSS_FIT_ROWS)
        taken = self._take_first(X, one_epoch) if fresh else self._take_more(X, one_epoch)
        check_monitors(self.callbacks, *none_held_out(self, len(taken.values), fresh, one_epoch))
        former = None if fresh else self.net_
        stream, start = stream_before(self, taken.values, fresh, one_epoch).take(taken.values)
        if not one_epoch:  # which starts from the rows of all chunks so far, as long as there are few
            start = taken.values if fresh else None
        checkpoint = self._open_checkpoint(taken, former, one_epoch)
        net, split = self._net_for(taken, start, former, stream, one_epoch)
        schedule = schedule_of(self, *taken.values.shape, one_epoch)
        fitted = (net, taken.likelihood, X, taken.table)
        with self._sklearn_callbacks(fitted, schedule.n_epochs, y) as callbacks:
            report = [Report()] if self.verbose and is_first() else []
            train(net, split, schedule, [*callbacks, *report, *([checkpoint] if checkpoint else [])])
        self._set_fitted(*fitted)
        self._calibrate(split)
        self._made_with = taken.asked
        self._report(taken.values if start is None else start, stream, fresh=start is not None)
        if net.interrupted_:
            raise KeyboardInterrupt(
                f"Training was interrupted. The model is fitted as it stands, after {self.n_iter_} epoch(s)."
            )
        if checkpoint:
            checkpoint.remove()
        return self

    def _take_first(self, X, one_epoch):
        """Take X for a fit from nothing."""
        values, gain, likelihood, table = self._check_first(X, in_chunks=one_epoch)
        table.keep_conditions(values)
        seed = of_first(int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max)))
        prior = prior_of(self)
        return Taken(values, gain, likelihood, table, made_with(self.get_params(deep=False), likelihood, prior), seed)

    def _take_more(self, X, one_epoch):
        """Take X for a fit that goes on, whose parameters must be those that the model was made with."""
        asked = made_with(self.get_params(deep=False), self.likelihood_, self.net_.recipe_["vae"]["prior"])
        whose = "partial_fit" if one_epoch else "warm_start"
        check_unchanged(getattr(self, "_made_with", {}), asked, whose, self.device, self.net_.device)
        values, loss = self._check_rows(X)
        return Taken(values, -loss, self.likelihood_, self._table, asked, self.net_.seed)

    def _open_checkpoint(self, taken, former, one_epoch):
        """The checkpoint, if there is to be one, whose seed is that of the run it goes on from."""
        if self.checkpoint is None or one_epoch:
            return None
        checkpoint = open_checkpoint(self.get_params(deep=False), taken.seed, taken.values, former)
        taken.seed = checkpoint.seed
        return checkpoint

    def _net_for(self, taken, start, former, stream, one_epoch):
        """The net to train and the rows to train it on: begun from the rows `start`, or the `former` one."""
        if start is None:
            net, split = go_on(self, taken.values, taken.asked, one_epoch)
        else:
            net, split = begin(self, start, taken.likelihood, taken.seed, one_epoch, taken.table.n_context)
            net.gain_ = mean_gain(net, taken.values, taken.gain)
        if start is not None and former is not None:
            net.carry_on(former)
            split = rows_for(net, taken.values)
        if one_epoch:
            net.set_weight_decay(weight_decay_of(self, stream.n_rows))
        return net, split

    @contextmanager
    def _sklearn_callbacks(self, fitted, n_epochs, y):
        """Tell scikit-learn's callbacks of the fit; yields the skorch callback that tells them of its epochs. `fitted`
        is what `_set_fitted` takes."""
        if not hasattr(self, "_skl_callbacks"):
            yield []
            return
        data = {"estimator": self, "X": fitted[2], "y": y}
        context = self._init_callback_context(max_subtasks=n_epochs).call_on_fit_task_begin(**data)
        model = copy.copy(self)
        model._set_fitted(*fitted)
        yield [SklearnCallbacks(context, vars(model), **data)]
        context.call_on_fit_task_end(**data, reconstruction_attributes=vars(model))

    def _set_fitted(self, net, likelihood, X, table):
        is_new = not hasattr(self, "net_") or net is not self.net_
        validate_data(self, X, reset=is_new, skip_check_array=True)
        if is_new:
            self._table, self._spread = table, 1.0
        self.net_, self.likelihood_, self._n_features_out = net, likelihood, net.z_dim

    def _calibrate(self, split):
        """Learn how wide draws of missing cells have to be, from rows that are held out; of one process."""
        if split.valid and split.shards is None:
            self._spread = spread_factor(split.others or [self.module_], split.x, split.valid, self.net_.seed)

    def _report(self, X, stream, fresh):
        """Set the attributes that tell how training went, and warn where the latent space is empty."""
        history, shift = self.net_.history, self.net_.mean_log_jacobian
        self.loss_curve_ = [-row["train_bound"] - shift for row in history if "train_bound" in row]
        self.kl_curve_ = [row["train_kl"] for row in history if "train_kl" in row]
        self.n_iter_ = len(self.loss_curve_)
        scores = [row["valid_bound"] + shift for row in history if "valid_bound" in row]
        self.validation_scores_ = scores or None
        seed, prior = self.net_.seed, self.module_.prior
        latents = np.hstack(self._fitted.encode(X[subsample(len(X), REPORT_ROWS, seed)]))
        if not fresh:
            latents = stream.mixed(self._latents, latents, len(X), seed)
        mean, log_scale = np.split(latents, 2, axis=1)
        tensors = [torch.from_numpy(part) for part in (mean, log_scale)]
        self._latents = latents[subsample(len(latents), MAX_KEPT, seed)]
        self._stream, self._aggregate = vars(stream), {}
        with torch.no_grad():
            self.kl_per_unit_ = prior.kl_per_unit(*tensors).numpy().mean(axis=0)
            self.active_units_ = prior.active_units(tensors[0]).numpy()
        if not self.active_units_.any() and len(mean) > 1:
            warnings.warn(
                "No latent unit is active: E[z | x] has at most 0.01 of the prior's variance (posterior collapse). The "
                "features may be independent of each other; otherwise lower `beta` or set `init='linear'`.",
                ConvergenceWarning,
                stacklevel=6,
            )
