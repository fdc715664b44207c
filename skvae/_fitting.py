"""From an estimator's parameters and X to a net at its start and the rows that it is to be trained on."""

from dataclasses import replace

import torch

from ._blocks import location_scale, scaled
from ._build import copies, input_noise, layer_sizes, resolve, resolve_objective, started_vae
from ._device import resolve_device
from ._net import CROSS_FIT_ROWS, N_FOLDS, Schedule, build_net
from ._program import threads_for
from ._split import Split, folds, hold_out, whole


def schedule_of(estimator, n_rows, one_epoch):
    """How long the estimator's parameters say to train."""
    given = {name: getattr(estimator, name) for name in ("batch_size", "n_iter_no_change", "tol", "max_iter")}
    schedule = Schedule.resolve(n_rows, **given)
    return replace(schedule, n_epochs=1) if one_epoch else schedule


def holds_out(estimator, n_rows, first, one_epoch):
    """Whether rows are held out, rather than none or those of folds."""
    few = first and estimator.early_stopping == "auto" and n_rows < CROSS_FIT_ROWS
    return bool(estimator.early_stopping) and not one_epoch and not few


def split_of(estimator, x, seed, first, one_epoch):
    """Which rows of `x` each member is trained on and which are judged by."""
    if holds_out(estimator, len(x), first, one_epoch):
        train_rows, valid_rows = hold_out(len(x), estimator.validation_fraction, seed)
        return Split(x, [train_rows], [valid_rows])
    if one_epoch or not estimator.early_stopping or len(x) < 2 * N_FOLDS:
        return whole(x)
    train_rows, valid_rows = folds(len(x), N_FOLDS, seed)
    return Split(x, [torch.arange(len(x)), *train_rows], valid_rows)


def go_on(estimator, X, one_epoch):
    """The fitted net, and X in its units."""
    net = estimator.net_
    x = scaled(X, net.offset, net.scale).to(net.device)
    return net, split_of(estimator, x, net.seed, False, one_epoch)


def begin(estimator, X, likelihood, seed, one_epoch):
    """A net at its start, and X in its units."""
    device, objective = resolve_device(estimator.device), resolve_objective(estimator.objective, estimator.beta)
    likelihood = resolve("likelihood", likelihood)
    offset, scale = location_scale(X) if likelihood.standardize else (0.0, 1.0)
    x = scaled(X, offset, scale)
    split, recipe = split_of(estimator, x, seed, True, one_epoch), recipe_of(estimator, X, likelihood, seed)
    with threads_for(len(x) * X.shape[1] ** 2):
        model, *others = started_models(recipe, x, split.train, objective.kl_weight)
        noise = input_noise(model, x, objective.kl_weight, few=bool(others))
    net = build_net(
        model.to(device),
        objective,
        vae=recipe,
        optimizer=estimator.optimizer,
        lr=estimator.learning_rate,
        ema_decay=estimator.ema_decay,
        input_noise=None if noise is None else noise.to(device),
        weight_decay=0.0 if model.linear_encoder is None else estimator.weight_decay / len(split),
        callbacks=copies(estimator.callbacks),
        device=device,
        seed=seed,
        offset=offset,
        scale=scale,
        **(estimator.net_params or {}),
    )
    split.x, split.others = x.to(net.device), [other.to(device) for other in others]
    return net, split


def recipe_of(estimator, X, likelihood, seed):
    """What `build_vae` takes."""
    return {
        "n_features": X.shape[1],
        "z_dim": estimator.z_dim,
        "hidden_layer_sizes": layer_sizes(estimator.hidden_layer_sizes, len(X)),
        "activation": estimator.activation,
        "likelihood": likelihood,
        "prior": resolve("prior", estimator.prior),
        "architecture": resolve("architecture", estimator.architecture),
        "init": estimator.init,
        "linear_share": estimator.linear_share,
        "seed": seed,
    }


def started_models(recipe, x, rows, kl_weight):
    """Models at their start on several sets of rows, of which the first has most of the others'."""
    first = started_vae(recipe, x, rows[0], kl_weight)
    return [first, *(started_vae(recipe, x, some, kl_weight, near=first) for some in rows[1:])]
