from functools import partial

import numpy as np
import pytest
import torch
from skorch.callbacks import BatchScoring, Callback, Checkpoint, EarlyStopping, EpochScoring, LRScheduler

from skvae import VAETransformer
from skvae.callbacks import SampleGrid

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "random_state": 0}


def refused(table, n_steps, message, method="fit", **params):
    """A fit raises ValueError with the message before any work, whatever early stopping; an older fit is intact."""
    X = table()
    vae = VAETransformer(2, **SMALL, early_stopping=False).fit(X)
    Z = vae.transform(X)
    n_steps.clear()
    for early_stopping in (False, "auto"):
        with pytest.raises(ValueError, match=message):
            getattr(VAETransformer(2, **SMALL | {"early_stopping": early_stopping} | params), method)(X)
    with pytest.raises(ValueError, match=message):
        getattr(vae.set_params(**params), method)(X)
    assert n_steps == []
    np.testing.assert_array_equal(vae.transform(X), Z)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 1}, r"^'lr' of the optimizer is the estimator's parameter `learning_rate`: set that\.$"),
        ({"foo": 1}, r"keywords lr, foo, weight_decay.*With AdamW: .*unexpected keyword argument 'foo'"),
        ({"betas": (2, 3)}, "With AdamW: Invalid beta parameter"),
    ],
    ids=str,
)
def test_options_that_the_optimizer_does_not_take(options, message, table, n_steps):
    refused(table, n_steps, message, optimizer=partial(torch.optim.AdamW, **options))


def test_positional_options_of_an_optimizer_are_refused(table, n_steps):
    refused(table, n_steps, "functools.partial of one with keywords", optimizer=partial(torch.optim.SGD, 0.1))


def test_options_of_the_optimizer_reach_it(table):
    given = partial(torch.optim.AdamW, foreach=True, betas=(0.8, 0.95))
    vae = VAETransformer(2, **SMALL, early_stopping=False, optimizer=given).fit(table())
    assert vae.net_.optimizer_.param_groups[0]["foreach"]
    assert vae.net_.optimizer_.param_groups[0]["betas"] == (0.8, 0.95)
    assert vae.net_._elementwise  # it is still one of ours, whose parameters may be flat


def needs_closure(params, lr, weight_decay):
    return torch.optim.LBFGS([part for group in params for part in group["params"]], lr=lr)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda params: None, r"With <lambda>: .*got an unexpected keyword argument 'lr'"),
        (torch.optim.LBFGS, "With LBFGS: .*unexpected keyword argument 'weight_decay'"),
        (needs_closure, r"its step\(\) needs no arguments\. With needs_closure: .*closure"),
        (lambda params, lr, weight_decay: None, "'NoneType' object has no attribute 'step'"),
        (dict, "With dict: "),
    ],
)
def test_what_is_no_optimizer(optimizer, message, table, n_steps):
    refused(table, n_steps, message, optimizer=optimizer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("EarlyStopping", r"instance\) pairs\. Got 'EarlyStopping' instead\.$"),
        (EarlyStopping, r"Got <class .*EarlyStopping'> instead: write EarlyStopping\(\)\.$"),
        (("stop", EarlyStopping), r"instead: write EarlyStopping\(\)\.$"),
        ((1, Callback()), r"Got \(1, <skorch"),
        (None, "Got None instead"),
        (print, "Got <built-in function print> instead"),
    ],
)
def test_what_is_no_callback(given, message, table, n_steps):
    refused(table, n_steps, message, callbacks=[given])


def test_callbacks_of_scikit_learn_have_a_place_of_their_own(table, n_steps):
    callback = pytest.importorskip("sklearn.callback")
    refused(table, n_steps, "callbacks are given to `set_callbacks`", callbacks=[callback.ProgressBar()])


def test_callbacks_refuse_before_the_cross_validation(table, tmp_path, n_steps):
    grid = SampleGrid(tmp_path, grid="posterior")
    refused(table, n_steps, "^The 'grid' parameter of SampleGrid must be", callbacks=[grid])
    refused(table, n_steps, "duplicate", callbacks=[("a", Callback()), ("a", Callback())])


def score(net, X, y=None):
    return float(net.predict(X).mean())


MONITORS = {
    "EarlyStopping": lambda path: EarlyStopping(),
    "Checkpoint": lambda path: Checkpoint(dirname=path),
    "LRScheduler": lambda path: LRScheduler("ReduceLROnPlateau", monitor="valid_loss"),
    "bound": lambda path: EarlyStopping(monitor="valid_bound"),
    "EpochScoring": lambda path: EpochScoring(score, name="mine"),
    "BatchScoring": lambda path: BatchScoring(score, name="mine"),
}


@pytest.mark.parametrize("monitor", MONITORS)
def test_callbacks_that_look_at_held_out_rows_need_some(monitor, table, tmp_path, n_steps):
    callbacks = [("mine", MONITORS[monitor](tmp_path))]
    message = r"held-out rows, and there are none: .*Set early_stopping=True"
    refused(table, n_steps, message, callbacks=callbacks, early_stopping=False)
    refused(table, n_steps, "partial_fit holds none out", method="partial_fit", callbacks=callbacks)


@pytest.mark.parametrize("monitor", [name for name in MONITORS if name != "BatchScoring"])
def test_callbacks_that_look_at_held_out_rows_have_them(monitor, table, tmp_path):
    callbacks = [MONITORS[monitor](tmp_path)]
    vae = VAETransformer(2, **SMALL, early_stopping=True, callbacks=callbacks).fit(table())
    assert len(vae.validation_scores_) == vae.n_iter_ == 2
    if monitor == "EpochScoring":
        assert np.isfinite(vae.net_.history[:, "mine"]).all()


@pytest.mark.parametrize("monitor", MONITORS)
def test_folds_have_a_score_but_no_rows_for_a_callback(monitor, table, tmp_path, n_steps):
    callbacks, options = [("mine", MONITORS[monitor](tmp_path))], {"early_stopping": "auto"}
    if "Scoring" in monitor:
        message = (
            r"there are none: early_stopping='auto' holds none out of fewer than 1000 rows\. Set early_stopping=True"
        )
        refused(table, n_steps, message, callbacks=callbacks, **options)
    else:
        assert VAETransformer(2, **SMALL | options, callbacks=callbacks).fit(table()).n_iter_ == 2


class Looks(Callback):
    def on_epoch_end(self, net, **kwargs):
        net.history[-1, "valid_loss"]


@pytest.mark.parametrize("callback", [Looks(), Checkpoint(monitor=lambda net: net.history[-1, "valid_loss"] < 0)])
def test_what_no_parameter_tells_is_said_when_it_happens(callback, table):
    vae = VAETransformer(2, **SMALL, early_stopping=False, callbacks=[callback])
    with pytest.raises(ValueError, match=r"^A callback looks at 'valid_loss' in the history, and no rows are held out"):
        vae.fit(table())
    assert not hasattr(vae, "net_")


def test_a_callbacks_other_mistakes_are_its_own(table):
    class Mistaken(Callback):
        def on_epoch_end(self, net, **kwargs):
            {}["key"]

    with pytest.raises(KeyError, match="key"):
        VAETransformer(2, **SMALL, early_stopping=False, callbacks=[Mistaken()]).fit(table())
