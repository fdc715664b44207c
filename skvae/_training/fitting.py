"""From an estimator's parameters and X to a net at its start and the rows that it is to be trained on."""

from dataclasses import replace

import numpy as np
import torch

from .._data.blocks import ScaledRows, location_scale, scaled
from .._data.rows import gathered, parts_of
from .._data.split import Split, folds, hold_out, whole
from .._data.stream import Stream
from .._model.build import input_noise, layer_sizes, resolve, resolve_objective, shallow_copies, started_vae
from .._model.linear import rows_to_start_from
from .._system.device import resolve_device
from .._system.program import threads_for
from .._system.random import subsample
from ..priors import Mixture
from .made_with import has_changed
from .net import MAP_DIM, OPTIMIZERS, build_net
from .processes import Shards, of_first
from .schedule import CROSS_FIT_ROWS, N_FOLDS, Schedule

_N_COMPONENTS = 50  # of the default prior
_BETAS = 0.9, 0.99  # of Adam in a run of some hundred steps, which would remember its first gradients to the end
_WIDE, _SLOW_FEATURES = 500, 2000  # features beyond which one fold has to do, and beyond which steps become fewer


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


def _net_to_go_on(estimator, asked):
    """The fitted net, with what was changed since and may be changed."""
    net, then = estimator.net_, getattr(estimator, "_made_with", {})  # files of old have none
    given = list(estimator.callbacks or ())
    if [id(callback) for callback in given] != [id(callback) for callback in net.given_callbacks_]:
        net.set_callbacks(shallow_copies(given))
        net.given_callbacks_ = given
    if has_changed("objective", then, asked):
        net.set_objective(resolve_objective(estimator.objective, estimator.beta))
    if has_changed("learning_rate", then, asked):
        net.set_params(lr=estimator.learning_rate)
    return net


def go_on(estimator, X, asked, one_epoch):
    """The fitted net, and X in its units."""
    net = _net_to_go_on(estimator, asked)
    return net, _with_rows(split_of(estimator, X, net.seed, False, one_epoch), X, net)


def begin(estimator, X, likelihood, seed, one_epoch, n_context=0):
    """A net at its start, and X in its units."""
    device, objective = resolve_device(estimator.device), resolve_objective(estimator.objective, estimator.beta)
    likelihood = resolve("likelihood", likelihood)
    offset, scale = _units(likelihood, X, n_context)
    x = scaled(X, offset, scale)
    split = split_of(estimator, x, seed, True, one_epoch)
    recipe = recipe_of(estimator, X, likelihood, seed, n_context)
    with threads_for(len(x) * X.shape[1] ** 2):
        model, *others = started_models(recipe, *_rows_to_start_from(x, split.train, seed), objective.kl_weight)
        noise = input_noise(model, x, objective.kl_weight, few=len(x) < CROSS_FIT_ROWS)
    if isinstance(X, Shards):  # whose machines may round in other ways
        noise = of_first(noise)
        model.load_state_dict(of_first(model.state_dict()))
    net = build_net(
        model.to(device),
        objective,
        vae=recipe,
        optimizer=estimator.optimizer,
        lr=estimator.learning_rate,
        ema_decay=estimator.ema_decay,
        input_noise=None if noise is None else noise.to(device),
        balanced=len(x) >= CROSS_FIT_ROWS,
        weight_decay=0.0 if model.linear_encoder is None else weight_decay_of(estimator, len(split)),
        callbacks=shallow_copies(estimator.callbacks),
        device=device,
        seed=seed,
        offset=offset,
        scale=scale,
        **(_own_options(estimator, split) | (estimator.net_params or {})),
    )
    net.given_callbacks_ = list(estimator.callbacks or ())
    split.others = [other.to(device) for other in others]
    return net, _with_rows(split, X, net, None if isinstance(X, Shards) else x)


def _own_options(estimator, split):
    """Options of the optimizer where the length of training is ours too."""
    is_adam = OPTIMIZERS.get(estimator.optimizer, estimator.optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    return {"optimizer__betas": _BETAS} if is_adam and split.valid else {}


def rows_for(net, X):
    """Return a split in which one model trains on all rows of X, in the units of the net."""
    return _with_rows(whole(X), X, net)


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


def _units(likelihood, X, n_context=0):
    """Location and scale of the model's units; of what is given, the mean and the standard deviation."""
    if n_context:
        n = X.shape[1] - n_context
        units = zip(_units(likelihood, X[:, :n]), location_scale(X[:, n:]), strict=True)
        return tuple(np.concatenate([np.broadcast_to(first, n), given]) for first, given in units)
    return likelihood.location_scale(X)


def weight_decay_of(estimator, n_rows):
    """The optimizer's, for a model of so many rows."""
    auto = 100.0 if n_rows < CROSS_FIT_ROWS else 300.0
    return (auto if estimator.weight_decay == "auto" else estimator.weight_decay) / n_rows


def recipe_of(estimator, X, likelihood, seed, n_context):
    """Return the arguments of `build_vae`."""
    return {
        "n_features": X.shape[1] - n_context,
        "n_context": n_context,
        "z_dim": estimator.z_dim,
        "hidden_layer_sizes": layer_sizes(estimator.hidden_layer_sizes, len(X)),
        "activation": estimator.activation,
        "likelihood": likelihood,
        "prior": resolve("prior", prior_of(estimator)),
        "architecture": resolve("architecture", estimator.architecture),
        "init": estimator.init,
        "linear_share": estimator.linear_share,
        "seed": seed,
    }


def prior_of(estimator):
    """The prior that the estimator's parameters ask for; "auto" is a mixture where networks learn a bound."""
    if not isinstance(estimator.prior, str) or estimator.prior != "auto":
        return estimator.prior
    objective = resolve_objective(estimator.objective, estimator.beta)
    is_linear = not isinstance(estimator.hidden_layer_sizes, str) and not np.size(estimator.hidden_layer_sizes)
    is_normal = is_linear or not objective.is_bound or objective.kl_weight != 1
    return "standard_normal" if is_normal else Mixture(_N_COMPONENTS)


def started_models(recipe, x, rows, kl_weight):
    """Models at their start on several sets of rows, of which the first has most of the others'."""
    first = started_vae(recipe, x, rows[0], kl_weight)
    return [first, *(started_vae(recipe, x, some, kl_weight, near=first) for some in rows[1:])]
