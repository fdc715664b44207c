"""From parameters and X to a fitted model: what `fit` and `partial_fit` do, in the order of `_fit`."""

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import _get_feature_names, check_is_fitted, validate_data

from .._data.blocks import ScaledRows, location_scale, scaled
from .._data.containers import has_own_numbers, is_frame
from .._data.input import advice, plain
from .._data.rows import DTYPES, ChunkRows, RowSource, check_parts, dtype_of, gathered, header_of, parts_of
from .._data.split import Split, folds, hold_out, whole
from .._data.stream import MAX_KEPT, Stream
from .._data.table import Table
from .._fast.optimizers import optimizer_of
from .._model.build import (
    REGISTRIES,
    SklearnCallbacks,
    check_objective,
    guess_likelihood,
    input_noise,
    layer_sizes,
    likelihood_of,
    resolve,
    shallow_copies,
    started_vae,
)
from .._model.calibration import spread_factor
from .._model.component import check_component
from .._model.linear import rows_to_start_from, says_nothing
from .._system.device import resolve_device
from .._system.program import threads_for
from .._system.random import subsample
from .._training.checkpoint import open_checkpoint
from .._training.checks import check_callbacks, check_monitors, check_optimizer
from .._training.guard import MAP_DIM, unchanged_if_refused
from .._training.made_with import check_unchanged, has_changed, made_with
from .._training.net import build_net, train
from .._training.processes import Shards, is_first, n_processes, of_first, together
from .._training.schedule import CROSS_FIT_ROWS, N_FOLDS, Schedule
from ..callbacks import REPORT_ROWS, Report
from ..inits import LinearInit
from ..likelihoods import LIKELIHOODS, Likelihood
from ..priors import Mixture

_OPTIONS = {"dtype": DTYPES, "ensure_all_finite": "allow-nan"}
_N_COMPONENTS = 50  # of the default prior
_BETAS = 0.9, 0.99  # of Adam in a run of some hundred steps, which would remember its first gradients to the end
_WIDE, _SLOW_FEATURES = 500, 2000  # features beyond which one fold has to do, and beyond which steps become fewer


@dataclass
class Taken:
    """X as a fit takes it, and what is known before training.

    Parameters
    ----------
    values : ndarray or RowSource of shape (n_samples, n_features)
        Validated features.
    gain : float or ndarray of shape (n_samples,)
        What log-likelihoods gain by the way from X to features, in nats.
    likelihood, prior : str or component
        What the parameters stand for.
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
    prior: Any
    table: Any
    asked: dict
    seed: int


class TrainingMixin:
    """Checks, and training from `fit` to a fitted model. A refusal sets nothing on the estimator."""

    def _fit(self, X, y, *, fresh, one_epoch=False):
        header, X = header_of(X), shared(X, CROSS_FIT_ROWS)
        named = X if header is None else header
        taken = self._take_first(X, named, one_epoch) if fresh else self._take_more(X, header, one_epoch)
        check_monitors(self.callbacks, *none_held_out(self, len(taken.values), fresh, one_epoch))
        former = None if fresh else self.net_
        stream, start = stream_before(self, taken.values, fresh, one_epoch).take(taken.values)
        if not one_epoch:  # which starts from the rows of all chunks so far, as long as there are few
            start = taken.values if fresh else None
        taken.table = with_conditions(taken.table, taken.values, stream, taken.seed)
        checkpoint = self._open_checkpoint(taken, former, one_epoch)
        with unchanged_if_refused(former):
            net, split = self._net_for(taken, start, former, stream, one_epoch)
            schedule = schedule_of(self, *taken.values.shape, one_epoch)
            fitted = (net, taken.likelihood, named, taken.table)
            with self._sklearn_callbacks(fitted, schedule.n_epochs, X, y) as callbacks:
                report = [Report()] if self.verbose and is_first() else []
                train(net, split, schedule, [*callbacks, *report, *([checkpoint] if checkpoint else [])])
            self._take_over(fitted, taken, start, stream, split)
        if net.interrupted_:
            raise KeyboardInterrupt(
                f"Training was interrupted. The model is fitted as it stands, after {self.n_iter_} epoch(s)."
            )
        if checkpoint:
            checkpoint.remove()
        return self

    def _take_first(self, X, named, one_epoch):
        """Take X for a fit from nothing, whose columns have the names that `named` has."""
        values, gain, likelihood, table = self._check_first(X, named, in_chunks=one_epoch)
        seed = of_first(int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max)))
        prior = prior_of(self)
        return Taken(values, gain, likelihood, prior, table, made_with(self._own_params, likelihood, prior), seed)

    def _take_more(self, X, header, one_epoch):
        """Take X for a fit that goes on, whose parameters must be those that the model was made with."""
        prior = self.net_.recipe_["vae"]["prior"]
        asked = made_with(self._own_params, self.likelihood_, prior)
        whose = "partial_fit" if one_epoch else "warm_start"
        check_unchanged(self._made_with, asked, whose, self.device, self.net_.device)
        values, loss = self._check_rows(X, header, to_learn=True)
        self._table.warn_of_unknown(X, values)
        return Taken(values, -loss, self.likelihood_, prior, self._table.widened(values), asked, self.net_.seed)

    @property
    def _own_params(self):
        """Parameters by name, with those that a subclass has no argument for."""
        return {name: getattr(self, name) for name in [*self._parameter_constraints, *self.get_params(deep=False)]}

    def _open_checkpoint(self, taken, former, one_epoch):
        """The checkpoint, if there is to be one, whose seed is that of the run it goes on from."""
        if self.checkpoint is None or one_epoch:
            return None
        checkpoint = open_checkpoint(self._own_params, taken.seed, taken.values, former)
        taken.seed = checkpoint.seed
        return checkpoint

    def _net_for(self, taken, start, former, stream, one_epoch):
        """The net to train and the rows to train it on: begun from the rows `start`, or the `former` one."""
        if start is None:
            net, split = go_on(self, taken.values, taken.asked, one_epoch)
        else:
            net, split = begin(self, start, taken, one_epoch)
            net.gain_ = mean_gain(net, taken.values, taken.gain)
            if former is not None:
                net.carry_on(former)
                split = _with_rows(whole(taken.values), taken.values, net)
        if one_epoch:
            net.set_weight_decay(weight_decay_of(net.recipe_["vae"]["init"], stream.n_rows))
        return net, split

    @contextmanager
    def _sklearn_callbacks(self, fitted, n_epochs, X, y):
        """Tell scikit-learn's callbacks of the fit; yields the skorch callback that tells them of its epochs. `fitted`
        is what `_set_fitted` takes."""
        if not hasattr(self, "_skl_callbacks"):
            yield []
            return
        data = {"estimator": self, "X": X, "y": y}
        context = self._init_callback_context(max_subtasks=n_epochs).call_on_fit_task_begin(**data)
        model = copy.copy(self)
        model._set_fitted(*fitted)
        yield [SklearnCallbacks(context, vars(model), **data)]
        context.call_on_fit_task_end(**data, reconstruction_attributes=vars(model))

    def _take_over(self, fitted, taken, start, stream, split):
        """Become the estimator that training has made, in one step: a Ctrl-C comes before it, or after it."""
        done = copy.copy(self)
        rows = taken.values if start is None else start
        done._set_fitted(*fitted)
        done._made_with = taken.asked
        if done.net_.despite_ctrl_c(partial(done._report, rows, stream, fresh=start is not None)):
            done._calibrate(split)
        self.__dict__ = vars(done)

    def _set_fitted(self, net, likelihood, X, table):
        is_new = not hasattr(self, "net_") or net is not self.net_
        validate_data(self, X, reset=is_new, skip_check_array=True)
        if is_new:
            self._spread = 1.0
        self._table = table
        self.net_, self.likelihood_, self._n_features_out = net, likelihood, net.z_dim

    def _calibrate(self, split):
        """Learn how wide draws of missing cells have to be, from rows that are held out; of one process."""
        if not split.valid or split.shards is not None:
            return
        try:
            self._spread = spread_factor(split.others or [self.module_], split.x, split.valid, self.net_.seed)
        except KeyboardInterrupt:  # without it draws are those of the model
            self.net_.interrupted_ = True

    def _report(self, X, stream, fresh):
        """Set the attributes that tell how training went, and warn where the latent space is empty."""
        history, shift = self.net_.history, self.net_.mean_log_jacobian
        self.loss_curve_ = [-row["train_bound"] - shift for row in history if "train_bound" in row]
        self.kl_curve_ = [row["train_kl"] for row in history if "train_kl" in row]
        self.n_iter_ = len(self.loss_curve_)
        scores = [row.get("valid_bound", np.nan) + shift for row in history if "train_bound" in row]
        self.validation_scores_ = None if np.isnan(scores).all() else scores
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
                "features may be independent of each other; otherwise set objective='elbo' or init='linear'.",
                ConvergenceWarning,
                stacklevel=8,
            )

    # Checks of parameters and of X

    def _validate_params(self):
        """Refuse parameters that are wrong for any X; scikit-learn calls this before `fit`."""
        super()._validate_params()
        for kind in REGISTRIES:
            given = getattr(self, kind)
            if isinstance(given, dict):
                _check_by_column(given)
            elif not isinstance(given, str):
                check_component(given)
        check_callbacks(self.callbacks)
        if callable(self.optimizer):
            check_optimizer(*optimizer_of(self.optimizer), self.learning_rate)

    def _check_first(self, X, named, in_chunks):
        """Return validated features of X, the nats that log-likelihoods gain by them, the likelihood that the parameter
        stands for, and the table. Nothing is set on self, so that a refusal loses nothing."""
        table = self._table_of(X)
        with advice(X, [] if table is None else table.names_of_no_numbers):
            _get_feature_names(named)  # refuses some
            values = self._check_values_of(X if table is None or is_read(X, table) else table.values(X))
        table = Table.of_numbers(values, dtype_of(X)) if table is None else table
        likelihood = self.likelihood
        has_support = not (self._is_guessed or isinstance(likelihood, dict)) and not takes_any_number(likelihood)
        if has_support and self.marginal == "quantile":
            raise ValueError(
                f"marginal='quantile' makes normal scores of numbers, which likelihood={likelihood!r} does not take. "
                "Set marginal='auto', or likelihood='auto'."
            )
        table.look_at(values, self.marginal, as_they_are=has_support)
        if self._is_guessed and table.groups.keys() <= {"gaussian", "context"}:
            likelihood = guess_likelihood(X, None if in_chunks else table.modelled(values))
        if not table.is_identity:
            likelihood = likelihood_of(table, likelihood)
        features, gain = table.features(values)
        return self._check_values(features, likelihood, table.n_context), gain, likelihood, table

    def _table_of(self, X):
        """Return the columns of X, or None where it is an array of numbers and nothing else is asked for."""
        wanted, given, by_column = self.categorical_features, self.condition_features, isinstance(self.likelihood, dict)
        is_default = (wanted is None or isinstance(wanted, str)) and given is None and not by_column
        if isinstance(X, RowSource) and not (is_default and self.marginal != "quantile"):
            raise ValueError(
                "categorical_features, condition_features, marginal='quantile' and a likelihood for each column are "
                "for tables in memory: pass X as an array or a DataFrame, or encode it before it is written."
            )
        if not is_frame(X) and (is_default or np.ndim(X) != 2):
            return None
        return Table.of(X, wanted, self.likelihood if by_column else None, [] if given is None else given)

    def _check_values_of(self, X):
        """The validated numbers of X."""
        check = partial(check_array, **_OPTIONS, input_name="X", estimator=self)
        if not isinstance(X, RowSource):
            return check(X)
        if not X.size:
            check(np.empty(X.shape))
        X.check(check)
        return X

    def _check_X(self, X, header=None):
        return self._check_rows(X, header)[0]

    def _check_rows(self, X, header=None, to_learn=False):
        """Return validated features of X as the likelihood takes them, and the nats that each row's score loses by
        that, (n_samples,) or 0. Values of columns that nothing is known of are there `to_learn` from only."""
        check_is_fitted(self)
        header = header_of(X) if header is None else header
        X, table = plain(X), self._table
        with advice(X, table.names_of_no_numbers):
            if header is None and is_read(X, table) and not isinstance(X, RowSource):
                values = validate_data(self, X, **_OPTIONS, reset=False)
            else:
                validate_data(self, X if header is None else header, skip_check_array=True, reset=False)
                values = self._check_values_of(X if is_read(X, table) else table.values(X))
        features, gain = table.features(values if to_learn else table.of_known(values))
        nearest = self._check_values(features, self.likelihood_, table.n_context)
        if isinstance(nearest, RowSource):
            return nearest, 0.0
        loss = (
            np.nansum(np.log1p(np.abs(features - nearest.astype(np.float64))), axis=1) if nearest is not features else 0
        )
        return nearest, loss - gain

    @property
    def _is_guessed(self):
        return isinstance(self.likelihood, (str, dict)) and self.likelihood in ("auto", {})

    def _check_values(self, X, given, n_context=0):
        """Return X as the likelihood takes it. A likelihood that the user has not asked for refuses no rows."""
        is_name = isinstance(given, str)
        name = given if is_name else type(given).__name__
        likelihood = LIKELIHOODS[name]() if is_name else given
        if n_context:
            modelled = self._check_values(X[:, :-n_context], likelihood)
            return X if np.shares_memory(modelled, X) else np.hstack([modelled, X[:, -n_context:]])
        if not self._is_guessed:
            check_parts(X, partial(likelihood.check, whom=f"{type(self).__name__} (likelihood={name!r})"))
        return X.finished_by(likelihood.nearest) if isinstance(X, RowSource) else likelihood.nearest(X)


def _check_by_column(likelihoods):
    """Refuse what is no likelihood of a column."""
    for column, likelihood in likelihoods.items():
        if isinstance(likelihood, Likelihood):
            check_component(likelihood)
        elif not (isinstance(likelihood, str) and likelihood in LIKELIHOODS):
            raise InvalidParameterError(
                f"The 'likelihood' parameter of VAETransformer must hold instances of Likelihood or names among "
                f"{sorted(LIKELIHOODS)}. Got {likelihood!r} for column {column!r} instead."
            )
        if getattr(likelihood, "size_factor", None) is not None:
            raise ValueError(
                f"{likelihood!r} divides a row's sum among the columns, and as the likelihood of column {column!r} it "
                "sees that one alone. Set size_factor=None there, or take it for all columns."
            )


def is_read(X, table):
    """Tell whether scikit-learn's checks read X as the numbers that it holds."""
    return table.is_plain and not has_own_numbers(X)


def takes_any_number(likelihood):
    """Tell whether a likelihood, or the one of that name, has all numbers in its support."""
    try:
        resolve("likelihood", likelihood).check(np.array([[-1.5, 0.5]]), "")
    except ValueError:
        return False
    return True


# The steps, as functions of an estimator and X


def shared(X, least):
    """Return `plain` X of one process; of several, the table of all: `Shards`, or each a copy of fewer than `least`
    rows."""
    with together():
        X = plain(X)
        if n_processes() == 1:
            return X
        if isinstance(X, ChunkRows):
            raise ValueError("In several processes X has to be an array, a sparse matrix or a memory map, not chunks.")
        if not hasattr(X, "shape") or len(X.shape) != 2 or X.dtype.kind not in "biuf":
            raise ValueError("In several processes X has to be a table of numbers.")
    shards = Shards(X)
    return shards if len(shards) >= least else shards[:]


def schedule_of(estimator, n_rows, n_features, one_epoch):
    """Return the length of training that the estimator's parameters ask for."""
    given = {name: getattr(estimator, name) for name in ("batch_size", "n_iter_no_change", "tol", "max_iter")}
    schedule = Schedule.resolve(n_rows, **given, pace=_pace(n_rows, n_features, estimator.z_dim))
    return replace(schedule, n_epochs=1) if one_epoch else schedule


def _pace(n_rows, n_features, z_dim):
    """Return a factor of the number of steps: more for a map of many rows, whose neighbours take long to find each
    other, and fewer where few rows of many features make each step expensive."""
    if n_rows >= CROSS_FIT_ROWS:
        return 2.0 if z_dim <= MAP_DIM else 1.0
    return min(1.0, max(0.1, _SLOW_FEATURES / n_features))


def holds_out(estimator, n_rows, first, one_epoch):
    """Tell whether rows are held out, rather than none or those of folds."""
    by_folds = estimator.early_stopping == "cv" or (estimator.early_stopping == "auto" and n_rows < CROSS_FIT_ROWS)
    return bool(estimator.early_stopping) and not one_epoch and not (first and by_folds)


def split_of(estimator, x, seed, first, one_epoch):
    """Return the rows of `x` that each member is trained on, and those that judge it."""
    if holds_out(estimator, len(x), first, one_epoch):
        train_rows, valid_rows = hold_out(len(x), estimator.validation_fraction, seed)
        return Split(x, [train_rows], [valid_rows])
    if one_epoch or not estimator.early_stopping or len(x) < 2 * N_FOLDS:
        return whole(x)
    if isinstance(x, ScaledRows):
        raise ValueError("early_stopping='cv' is for tables in memory and one process: use True, or 'auto'.")
    n_judged = N_FOLDS if x.shape[1] <= _WIDE else 1
    train_rows, valid_rows = (rows[:n_judged] for rows in folds(len(x), N_FOLDS, seed))
    return Split(x, [torch.arange(len(x)), *train_rows], valid_rows)


def none_held_out(estimator, n_rows, first, one_epoch):
    """Return why no rows judge training, and why callbacks have none to score; two texts, empty where rows do."""
    if one_epoch or not estimator.early_stopping:
        reason = "partial_fit holds none out" if one_epoch else "early_stopping=False holds none out"
        return reason, reason
    if holds_out(estimator, n_rows, first, one_epoch):
        return "", ""
    folds_only = f"early_stopping={estimator.early_stopping!r} holds none out"
    too_few = f"{folds_only} of fewer than {2 * N_FOLDS} rows" if n_rows < 2 * N_FOLDS else ""
    of_few = "" if estimator.early_stopping == "cv" else f" of fewer than {CROSS_FIT_ROWS} rows"
    return too_few, folds_only + of_few


def stream_before(estimator, X, fresh, one_epoch):
    """The rows before X: none, those of the calls before, or for `fit` none to start from anew."""
    if fresh or not one_epoch:
        return Stream(X[:0] if one_epoch else None)
    return Stream(**estimator._stream)


def with_conditions(table, X, stream, seed):
    """The table with what is given in some of all rows so far, of which X are the latest, to draw from."""
    if not table.n_context:
        return table
    found = np.array(X[subsample(len(X), MAX_KEPT, 0), -table.n_context :])
    if table.conditions is not None:
        found = stream.mixed(table.conditions, found, len(X), seed)
    return replace(table, conditions=found)


def go_on(estimator, X, asked, one_epoch):
    """The fitted net, with what was changed since and may be changed, and X in its units."""
    net, then = estimator.net_, estimator._made_with
    split = _with_rows(split_of(estimator, X, net.seed, False, one_epoch), X, net)
    given = list(estimator.callbacks or ())
    if [id(callback) for callback in given] != [id(callback) for callback in net.given_callbacks_]:
        net.set_callbacks(shallow_copies(given))
        net.given_callbacks_ = given
    if has_changed("objective", then, asked):
        objective = resolve("objective", estimator.objective)
        check_objective(objective, net.module_, split.x)
        net.set_objective(objective)
    if has_changed("learning_rate", then, asked):
        net.set_params(lr=estimator.learning_rate)
        for group in net.optimizer_.param_groups:
            group.pop("initial_lr", None)  # of schedules, which begin anew from the other rate
    return net, split


def begin(estimator, X, taken, one_epoch):
    """A net at its start from the rows X of what was taken, and X in its units."""
    device, objective = resolve_device(estimator.device), resolve("objective", estimator.objective)
    recipe = recipe_of(estimator, X, taken)
    seed, (offset, scale) = taken.seed, _units(recipe["likelihood"], X, recipe["n_context"])
    x = scaled(X, offset, scale)
    split = split_of(estimator, x, seed, True, one_epoch)
    table, shares = _rows_to_start_from(x, split.train, seed)
    start = partial(started_models, recipe, table, kl_weight=objective.kl_weight, alike=isinstance(X, Shards))
    with threads_for(len(x) * X.shape[1] ** 2):
        model, *others = start(shares)
        check_objective(objective, model, x)
        noise = input_noise(model, x, objective.kl_weight, few=len(x) < CROSS_FIT_ROWS)
        split.awake = partial(start, shares, awake=True) if says_nothing(model) else None
    if isinstance(X, Shards):
        noise = of_first(noise)
    if isinstance(recipe["init"], LinearInit) and len(shares) == 1 and len(shares[0]) < len(table):
        split.of_all = partial(start, [torch.arange(len(table))])
    net = build_net(
        model.to(device),
        objective,
        vae=recipe,
        optimizer=estimator.optimizer,
        lr=estimator.learning_rate,
        input_noise=None if noise is None else noise.to(device),
        balanced=len(x) >= CROSS_FIT_ROWS,
        weight_decay=0.0 if model.linear_encoder is None else weight_decay_of(recipe["init"], len(split)),
        callbacks=shallow_copies(estimator.callbacks),
        device=device,
        seed=seed,
        offset=offset,
        scale=scale,
        **_own_options(estimator, split),
    )
    net.given_callbacks_ = list(estimator.callbacks or ())
    split.others = [other.to(device) for other in others]
    return net, _with_rows(split, X, net, None if isinstance(X, Shards) else x)


def _own_options(estimator, split):
    """Options of the optimizer where the length of training is ours too."""
    is_adam = optimizer_of(estimator.optimizer)[0] in (torch.optim.Adam, torch.optim.AdamW)
    return {"optimizer__betas": _BETAS} if is_adam and split.valid else {}


def _with_rows(split, X, net, x=None):
    """The split with the rows of X that this process has: `x`, or scaled here, on the device of the net."""
    split.shards = X if isinstance(X, Shards) else None
    own = X if split.shards is None else X.own_rows
    split.x = (scaled(own, net.offset, net.scale) if x is None else x).to(net.device)
    return split


def _rows_to_start_from(x, train, seed):
    """The table that models start from and the rows of each in it: all, or where that are too many some of those to
    train on."""
    n_rows = rows_to_start_from(x.shape[1])
    if len(train) > 1 or len(x) <= n_rows:
        return x[torch.arange(len(x))] if isinstance(x, ScaledRows) else x, train
    some = torch.from_numpy(subsample(train[0].numpy(), n_rows, seed))
    return x[some], [torch.arange(len(some))]


def mean_gain(net, X, gain):
    """Return what the rows' log-likelihoods gain on average beside the Jacobian of the scaling of complete rows: by
    marginals, and by holes, which have no part in that Jacobian."""
    scale = np.log(net.scale)[: net.n_features] if np.ndim(net.scale) else np.zeros(1)
    holes = sum((np.isnan(part[:, : len(scale)]) @ scale).sum() for part in parts_of(X))
    return float(np.mean(gain) + sum(gathered(X, holes)) / len(X))


def _units(likelihood, X, n_context):
    """Location and scale of the model's units; of what is given, the mean and the standard deviation."""
    if not n_context:
        return likelihood.location_scale(X)
    n = X.shape[1] - n_context
    units = zip(likelihood.location_scale(X[:, :n]), location_scale(X[:, n:]), strict=True)
    return tuple(np.concatenate([np.broadcast_to(first, n), given]) for first, given in units)


def weight_decay_of(init, n_rows):
    """The optimizer's, for a model of so many rows that starts at the linear one."""
    auto = 100.0 if n_rows < CROSS_FIT_ROWS else 300.0
    return (auto if init.weight_decay == "auto" else init.weight_decay) / n_rows


def recipe_of(estimator, X, taken):
    """Return the arguments of `build_vae`."""
    return {
        "n_features": X.shape[1] - taken.table.n_context,
        "n_context": taken.table.n_context,
        "z_dim": int(estimator.z_dim),
        "hidden_layer_sizes": layer_sizes(estimator.hidden_layer_sizes, len(X)),
        "likelihood": resolve("likelihood", taken.likelihood),
        "prior": resolve("prior", taken.prior),
        "architecture": resolve("architecture", estimator.architecture),
        "init": resolve("init", estimator.init),
        "seed": taken.seed,
    }


def prior_of(estimator):
    """The prior that the estimator's parameters ask for; "auto" is a mixture where networks learn a bound."""
    if not isinstance(estimator.prior, str) or estimator.prior != "auto":
        return estimator.prior
    objective = resolve("objective", estimator.objective)
    architecture = resolve("architecture", estimator.architecture)
    is_linear = architecture.is_linear(layer_sizes(estimator.hidden_layer_sizes, n_rows=0))
    is_normal = is_linear or not objective.is_bound or objective.kl_weight != 1
    return "standard_normal" if is_normal else Mixture(_N_COMPONENTS)


def started_models(recipe, x, rows, kl_weight, alike=False, awake=False):
    """Models at their start on several sets of rows, of which the first has most of the others'; `alike` in all
    processes, whose machines may round in other ways."""
    start = partial(started_vae, recipe, x, kl_weight=kl_weight, awake=awake)
    first = start(rows[0])
    if alike:
        first.load_state_dict(of_first(first.state_dict()))
    return [first, *(start(some, near=first) for some in rows[1:])]
