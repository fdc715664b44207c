import copy
import re
import warnings
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EpochTimer,
    LoadInitState,
    LRScheduler,
    MlflowLogger,
    TensorBoard,
    TrainEndCheckpoint,
    WandbLogger,
)

from skvae import VAETransformer
from skvae._fast.optimizers import AdamW
from skvae._model.fitted import Model
from skvae._training.guard import Guard, Judge
from skvae._training.net import Net
from skvae.architectures import MLP
from skvae.callbacks import SampleGrid
from skvae.objectives import ELBO
from skvae.priors import StandardNormal

SMALL = {"hidden_layer_sizes": (8,), "early_stopping": False, "random_state": 0}
DIGITS = load_digits().data[:96] / 16


def fit_with(callback, max_iter=3, X=DIGITS, **params):
    vae = VAETransformer(2, likelihood="bernoulli", max_iter=max_iter, batch_size=32, callbacks=[callback], **SMALL)
    return vae.set_params(**params).fit(X)


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ("prior", ["000.png", "001.png", "002.png"]),
        ("reconstruction", ["000.png", "001.png", "002.png"]),
        ("both", ["000.png", "000r.png", "001.png", "001r.png", "002.png", "002r.png"]),
    ],
)
def test_sample_grid_writes_numbered_files(grid, names, tmp_path, capsys):
    vae = fit_with(SampleGrid(tmp_path / "new" / "out", every=4, grid=grid))  # 9 steps
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == names
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"iteration (\d+), loss \d+\.\d{4}", line)[1] for line in lines] == ["0", "4", "8"]
    written = dict(vae.net_.callbacks_)["SampleGrid"]
    assert written.n_steps_ == 9
    assert sorted(path.name for path in written.paths_) == names


@pytest.mark.parametrize(
    ("params", "size"),
    [
        ({}, (32, 32)),
        ({"shape": (2, 5)}, (16, 40)),
        ({"image_shape": (4, 16), "shape": (3, 2)}, (12, 32)),
    ],
)
def test_sample_grid_has_the_size_of_its_images(params, size, tmp_path, capsys):
    fit_with(SampleGrid(tmp_path, every=100, **params))
    assert imread(tmp_path / "000.png").shape[:2] == size


def test_sample_grid_shows_the_means_of_prior_draws(tmp_path, capsys):
    """A model that is still: the grid is its decoder's means, tile by tile."""
    vae = fit_with(SampleGrid(tmp_path, every=1, seed=3), max_iter=1, learning_rate=1e-12)
    z = vae.module_.prior.sample(16, torch.Generator().manual_seed(3)).numpy()
    tiles = vae.inverse_transform(z).reshape(4, 4, 8, 8)
    expected = np.block([[tiles[row, column] for column in range(4)] for row in range(4)])
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(imread(tmp_path / "000.png")[..., 0], expected, atol=2 / 255)  # 8 bits a pixel


def test_sample_grid_is_in_the_units_of_gaussian_data(tmp_path, capsys):
    X = 1e4 + 1e3 * DIGITS
    fit_with(SampleGrid(tmp_path, every=100, grid="reconstruction"), max_iter=1, X=X, likelihood="gaussian")
    assert imread(tmp_path / "000.png")[..., 0].std() > 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_watching_leaves_training_as_it_is(dropout, tmp_path, capsys):
    params = {"architecture": MLP(dropout=dropout)}
    plain = VAETransformer(2, likelihood="bernoulli", max_iter=3, batch_size=32, **SMALL | params).fit(DIGITS)
    watched = fit_with(SampleGrid(tmp_path, every=1, grid="both"), verbose=1, **params)
    assert np.array_equal(plain.transform(DIGITS), watched.transform(DIGITS))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"grid": "posterior"},
            r"^The 'grid' parameter of SampleGrid must be a str among .* Got 'posterior' instead\.",
        ),
        ({"every": 0}, "^The 'every' parameter of SampleGrid"),
        ({"every": 2.5}, "^The 'every' parameter of SampleGrid"),
        ({"shape": (0, 4)}, "^The 'shape' parameter of SampleGrid"),
        ({"image_shape": (8, 8, 1)}, "^The 'image_shape' parameter of SampleGrid"),
        ({"image_shape": (3, 3)}, r"^image_shape=\(3, 3\) of SampleGrid does not fit 64 features"),
        ({"seed": "a"}, "^The 'seed' parameter of SampleGrid"),
    ],
    ids=str,
)
def test_sample_grid_names_what_is_wrong(params, message, tmp_path, n_steps):
    with pytest.raises(ValueError, match=message):
        fit_with(SampleGrid(tmp_path, **params))
    assert n_steps == []
    assert list(tmp_path.iterdir()) == []


def test_sample_grid_takes_numbers_of_numpy(tmp_path):
    fit_with(SampleGrid(tmp_path, seed=np.int64(1), shape=np.array([2, 2]), image_shape=np.array([8, 8])), max_iter=1)
    assert imread(tmp_path / "000.png").shape[:2] == (16, 16)


def test_sample_grid_fills_a_small_batch_with_black(tmp_path, capsys):
    fit_with(SampleGrid(tmp_path, grid="reconstruction"), X=DIGITS[:3], max_iter=1)
    image = imread(tmp_path / "000.png")[..., 0]
    assert np.all(image[:8, 24:] == 0)
    assert np.all(image[8:] == 0)
    assert image[:8, :24].max() > 0.5


REPORT = r"Iteration (\d+), loss = (-?\d+\.\d{4}), active units = (\d) of 2, \d+\.\d s"


@pytest.mark.parametrize(
    ("max_iter", "epochs"),
    [(1, [1]), (5, [1, 2, 5]), (12, [1, 2, 5, 10, 12]), (1000, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])],
)
def test_report_prints_few_lines(max_iter, epochs, table, capsys):
    vae = VAETransformer(2, max_iter=max_iter, verbose=1, **SMALL).fit(table(n_rows=20))
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(REPORT, line).groups() for line in lines]
    assert [int(epoch) for epoch, *_ in found] == epochs
    for epoch, loss, _ in found:
        assert float(loss) == pytest.approx(vae.loss_curve_[int(epoch) - 1], abs=1e-4)


@pytest.mark.parametrize("beta", [1, 8, 1e4])
@pytest.mark.filterwarnings("ignore:No latent unit is active")
def test_report_counts_active_units(beta, table, capsys):
    """At one of these weights of the KL term both units live, at one neither."""
    vae = VAETransformer(2, objective=ELBO(beta), max_iter=20, verbose=1, **SMALL).fit(table())
    last = capsys.readouterr().out.splitlines()[-1]
    assert int(re.fullmatch(REPORT, last)[3]) == vae.active_units_.sum()
    assert vae.active_units_.sum() == {1: 2, 1e4: 0}.get(beta, vae.active_units_.sum())


def test_report_asks_the_prior_which_units_are_active(table, capsys, monkeypatch):
    """The posterior means vary by about 1: little beside a prior's variance of a million."""
    monkeypatch.setattr(StandardNormal, "moments", lambda prior: (torch.zeros(2), torch.tensor([1.0, 1e6])))
    vae = VAETransformer(2, prior="standard_normal", max_iter=1, verbose=1, **SMALL).fit(table())
    assert re.fullmatch(REPORT, capsys.readouterr().out.strip())[3] == "1"
    assert vae.active_units_.tolist() == [True, False]


def test_report_tells_the_validation_score(table, capsys):
    vae = VAETransformer(2, verbose=1, **(SMALL | {"early_stopping": True, "max_iter": 2})).fit(table())
    lines = capsys.readouterr().out.splitlines()
    found = [float(re.search(r"validation score = (-?\d+\.\d+)", line)[1]) for line in lines]
    assert found == pytest.approx(vae.validation_scores_, abs=1e-4)


@pytest.mark.parametrize(
    "params", [{}, {"condition_features": [3]}, {"condition_features": [3], "likelihood": "poisson"}]
)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_report_and_images_of_rows_with_holes_and_conditions(share, params, table, tmp_path, capsys):
    """What the encoder sees has no holes, and conditions behind it."""
    X = table("poisson", n_rows=80, n_features=4 if params else 3)
    X[np.random.default_rng(0).random(X.shape) < share] = np.nan
    grid = SampleGrid(tmp_path, every=2, grid="both", image_shape=(1, 3))
    vae = VAETransformer(2, max_iter=2, verbose=1, callbacks=[grid], **SMALL, **params).fit(X)
    reports = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Iteration")]
    n_active = [int(re.search(r"active units = (\d)", line)[1]) for line in reports]
    assert n_active[-1] == vae.active_units_.sum() > 0
    assert imread(tmp_path / "000r.png").std() > 0


@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
def test_nothing_is_printed_without_verbose(early_stopping, table, capsys):
    vae = VAETransformer(2, max_iter=3, **(SMALL | {"early_stopping": early_stopping}))
    X = table()
    vae.fit(X).partial_fit(X).score(X)
    vae.sample(3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def spoil(monkeypatch, *steps):
    """Make the loss of the given training steps NaN, and so the weights after them; returns the list of all steps."""
    train_step, seen = Net.train_step, []

    def spoiled(net, batch, **kwargs):
        seen.append(net.optimizer_.param_groups[0]["lr"])
        if len(seen) in steps:
            batch = (replace(batch[0], eps=batch[0].eps * float("nan")), None)
        return train_step(net, batch, **kwargs)

    monkeypatch.setattr(Net, "train_step", spoiled)
    return seen


class States(Callback):
    """Keeps the weights at the start of each epoch, and whether the optimizer has moments."""

    def __init__(self, states, moments):
        self.states = states
        self.moments = moments

    def on_epoch_begin(self, net, **kwargs):
        self.states.append([value.clone() for value in net.module_.state_dict().values()])
        self.moments += [bool(net.optimizer_.state)]


def same(left, right):
    return all(torch.equal(*pair) for pair in zip(left, right, strict=True))


def diverged(epoch, rate):
    words = f"the train loss of epoch {epoch} is nan. It goes back to the last good state, with the learning rate low"
    return pytest.warns(ConvergenceWarning, match=rf"^Training diverged: {words}ered to {rate}\.$")


@pytest.mark.parametrize("averaged", [True, False])
def test_an_epoch_that_diverges_is_undone(averaged, table, monkeypatch, request):
    X, states, moments = table(n_rows=96), [], []
    if not averaged:
        request.getfixturevalue("unaveraged")
    rates = spoil(monkeypatch, 8)  # of three steps an epoch: in the third
    params = {"max_iter": 5, "batch_size": 32, "learning_rate": 1e-3}
    with diverged(3, "5.0e-04") as caught:
        vae = VAETransformer(2, callbacks=[States(states, moments)], **SMALL, **params).fit(X)
    assert len(caught) == 1
    assert rates == [1e-3] * 9 + [5e-4] * 9
    assert vae.n_iter_ == len(vae.loss_curve_) == 5
    assert np.isfinite(vae.loss_curve_).all()
    # six starts: of epochs 1, 2, 3, again 3, 4 and 5; what the second epoch's loss confirmed is the first one's end
    assert moments == [False, True, True, False, True, True]
    assert not same(states[2], states[3])
    if not averaged:
        assert same(states[1], states[3])
    assert np.isfinite(vae.transform(X)).all()
    vae.partial_fit(X)
    assert rates[-1] == 5e-4  # what was learned stays


@pytest.mark.usefixtures("unaveraged")
def test_divergence_goes_back_to_the_best_validated_state(table, monkeypatch):
    X, states = table(n_rows=100), []
    monkeypatch.setattr("skvae._training.guard._LEAST_STEPS", 3)  # a look at the end of each epoch
    monkeypatch.setattr("skvae._training.guard._LOOKS", 100)
    monkeypatch.setattr("skvae._training.guard._FRACTION", 0)
    rates = spoil(monkeypatch, 3 * 6 + 1)
    params = {"max_iter": 20, "batch_size": 32, "learning_rate": 0.03, "init": "random"}
    with diverged(7, "1.5e-02"):
        vae = VAETransformer(2, callbacks=[States(states, [])], **(SMALL | params | {"early_stopping": True})).fit(X)
    best = int(np.argmax(vae.validation_scores_[:6]))  # better than the random start; epochs start where one has ended
    assert same(states[7], states[best + 1])
    assert rates[20] == 0.03
    assert max(rates[21:]) == 0.015
    assert vae.validation_scores_[6] > vae.validation_scores_[best] - 1  # it goes on from there


@pytest.mark.usefixtures("unaveraged")
def test_the_last_step_may_diverge_too(table, monkeypatch):
    """No loss has seen it; what is left is the state that the last epoch started from."""
    X = table(n_rows=96)
    params = {"max_iter": 2, "batch_size": 96}
    one = VAETransformer(2, **SMALL, **params | {"max_iter": 1}).fit(X)
    step, n_steps = AdamW.step, []

    def exploding(self, *args, **kwargs):
        n_steps.append(step(self, *args, **kwargs))
        if len(n_steps) == 2:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.fill_(1e30)

    monkeypatch.setattr(AdamW, "step", exploding)
    with pytest.warns(ConvergenceWarning, match="Training diverged: the loss after epoch 2 is not finite"):
        two = VAETransformer(2, **SMALL, **params).fit(X)
    assert np.array_equal(one.transform(X), two.transform(X))


@pytest.mark.usefixtures("unaveraged")
@pytest.mark.parametrize(("finite", "n_epochs"), [((False, True, True), 3), ((False, False, True), 2)])
def test_the_end_is_the_last_state_that_is_finite_for_all_rows(finite, n_epochs, table, monkeypatch):
    X, answers = table(n_rows=96), list(finite)
    params = {"batch_size": 32}
    expected = VAETransformer(2, **SMALL, **params, max_iter=n_epochs).fit(X).transform(X)
    monkeypatch.setattr(Guard, "is_finite", lambda *args: answers.pop(0))
    with pytest.warns(ConvergenceWarning, match="Training diverged: the loss after epoch 4 is not finite"):
        vae = VAETransformer(2, **SMALL, **params, max_iter=4).fit(X)
    assert np.array_equal(vae.transform(X), expected)


def test_divergence_is_given_up_in_the_end_and_loses_nothing(table, monkeypatch):
    X = table(n_rows=96)
    vae = VAETransformer(2, batch_size=32, max_iter=2, learning_rate=1e-3, **SMALL).fit(X)
    Z, rates = vae.transform(X), spoil(monkeypatch, *range(1, 100))
    with (
        pytest.warns(ConvergenceWarning, match="Training diverged") as caught,
        pytest.raises(
            ValueError, match=r"^Training diverged: the train loss of epoch 3 is nan, at a learning rate of 3"
        ),
    ):
        vae.partial_fit(X)
    assert len(caught) == 5
    assert rates[::3] == pytest.approx([1e-3 * 0.5**k for k in (0, 1, 3, 6, 10, 15)])
    np.testing.assert_array_equal(vae.transform(X), Z)


def test_ctrl_c_in_an_epoch_that_diverges(table, monkeypatch):
    X = table(n_rows=96)
    spoil(monkeypatch, 7)
    interrupt(monkeypatch, 8)
    vae = VAETransformer(2, max_iter=50, batch_size=32, **SMALL)
    with pytest.warns(ConvergenceWarning, match="Training diverged"), pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert vae.n_iter_ == 2
    assert np.isfinite(vae.score(X))


def interrupt(monkeypatch, n_calls):
    """Press Ctrl-C in the given step; returns the list of steps."""
    gradient, calls = Net.gradient, []

    def interrupted(self, batch):
        calls.append(len(batch))
        if len(calls) == n_calls:
            raise KeyboardInterrupt
        return gradient(self, batch)

    monkeypatch.setattr(Net, "gradient", interrupted)
    return calls


@pytest.mark.parametrize(("n_calls", "n_iter"), [(1, 0), (2, 1), (8, 3), (9, 3)])  # three batches an epoch, cut short
def test_ctrl_c_keeps_the_model(n_calls, n_iter, table, monkeypatch):
    X = table(n_rows=96)
    calls = interrupt(monkeypatch, n_calls)
    vae = VAETransformer(2, max_iter=50, batch_size=32, **SMALL)
    message = rf"^Training was interrupted\. The model is fitted as it stands, after {n_iter} epoch\(s\)\.$"
    with pytest.raises(KeyboardInterrupt, match=message):
        vae.fit(X)
    assert len(calls) == n_calls
    assert vae.n_iter_ == len(vae.loss_curve_) == n_iter
    assert np.isfinite(vae.transform(X)).all()
    assert np.isfinite(vae.score(X))
    vae.partial_fit(X)
    assert vae.n_iter_ == n_iter + 1


def test_ctrl_c_with_early_stopping_keeps_the_best_state(table, monkeypatch):
    X = table(n_rows=100)
    interrupt(monkeypatch, 12)
    vae = VAETransformer(2, max_iter=50, batch_size=32, **(SMALL | {"early_stopping": True}))
    with pytest.raises(KeyboardInterrupt, match=r"^Training was interrupted\. The model is fitted"):
        vae.fit(X)
    assert np.isfinite(vae.score(X))


@pytest.mark.parametrize("n_calls", [2, 30])
def test_ctrl_c_ends_the_search_for_the_number_of_epochs(n_calls, table, monkeypatch):
    """One Ctrl-C is enough: what is trained after it is at most an epoch that leaves a usable model."""
    X = table(n_rows=100)
    calls = interrupt(monkeypatch, n_calls)
    vae = VAETransformer(2, max_iter=20, batch_size=32, **(SMALL | {"early_stopping": "auto"}))
    with pytest.raises(KeyboardInterrupt, match=r"^Training was interrupted\. The model is fitted"):
        vae.fit(X)
    assert len(calls) <= n_calls + 10
    assert np.isfinite(vae.score(X))


@pytest.mark.parametrize(("early_stopping", "n_rows"), [(True, 100), ("auto", 100), (True, 20)])
@pytest.mark.parametrize("n_validations", [1, 2, 5])
def test_ctrl_c_while_validating(n_validations, early_stopping, n_rows, table, monkeypatch):
    X, look, calls = table(n_rows=n_rows), Judge.__call__, []

    def interrupted(judge):
        calls.append(1)
        if len(calls) == n_validations:
            raise KeyboardInterrupt
        return look(judge)

    monkeypatch.setattr(Judge, "__call__", interrupted)
    vae = VAETransformer(2, max_iter=200, **(SMALL | {"early_stopping": early_stopping}))
    with pytest.raises(KeyboardInterrupt, match=r"^Training was interrupted\. The model is fitted"):
        vae.fit(X)
    assert len(calls) == n_validations
    assert np.isfinite(vae.score(X))
    vae.partial_fit(X)
    assert np.isfinite(vae.transform(X)).all()


class Stops(Callback):
    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def test_ctrl_c_in_a_callback_is_no_wish_of_its_own(table, press_ctrl_c):
    """Python delivers a Ctrl-C between statements; a callback's wish to stop is a statement."""

    class Interrupted(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                press_ctrl_c()

    vae = VAETransformer(2, max_iter=50, callbacks=[Interrupted()], **SMALL)
    with pytest.raises(KeyboardInterrupt, match="as it stands, after 2 epoch"):
        vae.fit(table())
    assert np.isfinite(vae.score(table()))
    assert vae.set_params(callbacks=[Stops()]).fit(table()).n_iter_ == 2


def test_callback_may_end_training(table):
    """skorch's way to stop, a KeyboardInterrupt from a callback, is no Ctrl-C: no warning."""

    class StopAtThree(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise KeyboardInterrupt

    vae = VAETransformer(2, max_iter=50, callbacks=[StopAtThree()], **SMALL).fit(table())
    assert vae.n_iter_ == 3


@pytest.mark.parametrize(("hook", "n_epochs"), [("on_train_begin", 0), ("on_train_end", 5)])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_callback_may_end_training_outside_of_epochs(hook, n_epochs, early_stopping, table):
    def end(self, net, **kwargs):
        raise KeyboardInterrupt

    stop = type("Stop", (Callback,), {hook: end})()
    params = SMALL | {"max_iter": 5, "early_stopping": early_stopping}
    vae = VAETransformer(2, callbacks=[stop], **params).fit(table())
    assert vae.n_iter_ == n_epochs
    assert np.isfinite(vae.score(table()))


class EndsAfter:
    """A callback of scikit-learn's own kind, handed down to the steps of a meta-estimator, that ends training."""

    max_propagation_depth = None

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def setup(self, estimator, context):
        self.n_seen = 0

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name != "epoch":
            return False
        self.n_seen += 1
        return self.n_seen == self.n_epochs


def in_pipeline(vae):
    return Pipeline([("vae", vae), ("clf", LogisticRegression())])


def in_search(vae):
    return GridSearchCV(in_pipeline(vae), {"vae__z_dim": [1, 2]}, cv=2)


@pytest.mark.parametrize("wrap", [in_pipeline, in_search])
def test_progress_bar_is_handed_down(wrap, table, capsys):
    callback = pytest.importorskip("sklearn.callback")
    X, y = table(), np.arange(60) % 2
    vae = VAETransformer(2, max_iter=3, **SMALL)
    plain, watched = wrap(vae).fit(X, y), wrap(vae).set_callbacks(callback.ProgressBar(max_propagation_depth=None))
    watched.fit(X, y)
    out = capsys.readouterr().out
    assert type(watched).__name__ in out
    assert "VAETransformer" in out
    assert "100%" in out
    assert np.array_equal(watched.predict_proba(X), plain.predict_proba(X))


def test_sklearn_callback_ends_training_inside_a_pipeline(table):
    pytest.importorskip("sklearn.callback")
    model = in_pipeline(VAETransformer(2, max_iter=50, **SMALL)).set_callbacks(EndsAfter(4))
    assert model.fit(table(), np.arange(60) % 2)["vae"].n_iter_ == 4


def logged_losses(logger, table):
    """Fit with a logger and return the losses of the epochs."""
    vae = VAETransformer(2, max_iter=3, callbacks=[logger], **SMALL).fit(table())
    return vae.net_.history[:, "train_loss"]


def test_tensorboard(table):
    writer = Mock(spec=["add_scalar"])
    losses = logged_losses(TensorBoard(writer, close_after_train=False), table)
    logged = [call.kwargs for call in writer.add_scalar.call_args_list if call.kwargs["tag"] == "Loss/train_loss"]
    assert [(each["global_step"], each["scalar_value"]) for each in logged] == [*enumerate(losses, start=1)]


def test_mlflow(table):
    run, client = Mock(spec=["info"]), Mock(spec=["log_artifact", "log_metric"])
    losses = logged_losses(MlflowLogger(run, client, terminate_after_train=False), table)
    logged = [call.args for call in client.log_metric.call_args_list if call.args[1] == "train_loss"]
    assert [args[2] for args in logged] == losses


def test_weights_and_biases(table):
    run = Mock(spec=["watch", "log"])
    losses = logged_losses(WandbLogger(run, save_model=False), table)
    assert [call.args[0]["train_loss"] for call in run.log.call_args_list] == losses


@pytest.mark.parametrize("policy", ["StepLR", "ExponentialLR", "WarmRestartLR"])
def test_schedulers_may_come_late(policy, table):
    """In a stream whose start is made anew, and set after the first fit."""
    X, scheduler = table(), {"StepLR": {"step_size": 10}, "ExponentialLR": {"gamma": 0.9}}.get(policy, {})
    callbacks = [LRScheduler(policy, **scheduler)]
    stream = VAETransformer(2, callbacks=callbacks, random_state=0).partial_fit(X[:20]).partial_fit(X[20:])
    assert np.isfinite(stream.score(X))
    vae = VAETransformer(2, max_iter=2, **SMALL).fit(X).set_params(callbacks=callbacks).partial_fit(X)
    assert vae.n_iter_ == 3


def test_the_best_epoch_may_be_loaded_at_the_end(table, tmp_path):
    best = Checkpoint(dirname=tmp_path, monitor="train_loss_best", load_best=True)
    vae = VAETransformer(2, max_iter=4, callbacks=[best], **SMALL).fit(table())
    assert np.isfinite(vae.partial_fit(table()).score(table()))


def test_a_run_may_begin_where_another_one_ended(table, tmp_path):
    """The callback that loads names the one that saves: their copies do too."""
    for n_iter in (4, 8):
        end = TrainEndCheckpoint(dirname=tmp_path)
        vae = VAETransformer(2, max_iter=4, callbacks=[end, LoadInitState(end)], **SMALL).fit(table())
        assert vae.n_iter_ == n_iter
    assert vae.loss_curve_[4] < vae.loss_curve_[0]
    steps = [float(state["step"]) for state in vae.net_.optimizer_.state.values()]
    assert min(steps) == 8  # of both runs


def test_a_schedule_that_comes_late_begins_at_the_rate_of_now(table):
    X, vae = table(), VAETransformer(2, max_iter=2, warm_start=True, **SMALL)
    vae.fit(table()).fit(X)
    constant = LRScheduler("LambdaLR", lr_lambda=lambda epoch: 1.0)
    vae.set_params(learning_rate=5e-2, callbacks=[constant]).fit(X)
    assert [group["lr"] for group in vae.net_.optimizer_.param_groups] == [5e-2] * 2


def test_states_that_are_loaded_bring_their_rate(table, tmp_path):
    class LoadsAtEnd(Callback):
        def on_train_end(self, net, **kwargs):
            net.load_params(f_optimizer=tmp_path / "optimizer.pt")

    vae = VAETransformer(2, max_iter=2, **SMALL).fit(table())
    vae.net_.save_params(f_optimizer=tmp_path / "optimizer.pt")
    other = VAETransformer(2, max_iter=3, learning_rate=1e-3, callbacks=[LoadsAtEnd()], **SMALL).fit(table())
    assert [group["lr"] for group in other.net_.optimizer_.param_groups] == [8e-3] * 2
    assert [float(state["step"]) for state in other.net_.optimizer_.state.values()] == [
        float(state["step"]) for state in vae.net_.optimizer_.state.values()
    ]


def test_rate_stays_lowered_where_a_schedule_goes_by_its_base(table, monkeypatch):
    spoil(monkeypatch, 3)
    constant = LRScheduler("LambdaLR", lr_lambda=lambda epoch: 1.0)
    with pytest.warns(ConvergenceWarning, match="learning rate lowered to 4.0e-03"):
        vae = VAETransformer(2, max_iter=6, callbacks=[constant], **SMALL).fit(table())
    assert [group["lr"] for group in vae.net_.optimizer_.param_groups] == [0.004] * 2


@pytest.mark.parametrize("n_times", [1, 2])
def test_ctrl_c_after_the_last_epoch_leaves_no_mixture(n_times, table, monkeypatch):
    """One is heard when the estimator is whole; with a second one it stays as it was."""
    before = VAETransformer(3, max_iter=2, **SMALL).fit(table())
    expected = VAETransformer(2, max_iter=2, **SMALL).fit(table(n_rows=200))
    vae, left, encode = copy.copy(before).set_params(z_dim=2), [1] * n_times, Model.encode

    def interrupted(model, X):
        if left and left.pop():
            raise KeyboardInterrupt
        return encode(model, X)

    monkeypatch.setattr(Model, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vae.fit(table(n_rows=200))
    monkeypatch.undo()
    as_it_is = expected if n_times == 1 else before
    np.testing.assert_array_equal(vae.transform(table()), as_it_is.transform(table()))
    np.testing.assert_array_equal(vae.kl_per_unit_, as_it_is.kl_per_unit_)
    assert vae.sample(3, latents="aggregate").shape == (3, 5)
    assert vae.n_iter_ == 2


def test_ctrl_c_while_draws_are_calibrated(table, monkeypatch):
    X = np.tile(table(n_rows=100), (4, 1))
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("skvae._estimator.training.spread_factor", interrupted)
    vae = VAETransformer(2, max_iter=3, **(SMALL | {"early_stopping": True}))
    with pytest.raises(KeyboardInterrupt, match="as it stands, after 3 epoch"):
        vae.fit(X)
    monkeypatch.undo()
    assert len(vae.kl_per_unit_) == 2
    assert vae.partial_fit(X).n_iter_ == 4


def test_a_refusal_to_go_on_leaves_the_net_as_it_was(table):
    X = table()
    vae = VAETransformer(2, max_iter=2, **SMALL).fit(X)
    objective, lr = vae.net_.criterion_, vae.net_.lr
    wrong = {"early_stopping": True, "validation_fraction": 0.999, "learning_rate": 1e-5, "objective": "mmd"}
    with pytest.raises(ValueError, match="leaves none to train on"):
        vae.set_params(warm_start=True, callbacks=[Stops()], **wrong).fit(X)
    assert (vae.net_.criterion_, vae.net_.lr, vae.net_.callbacks_) == (objective, lr, [])


def test_a_callback_that_is_none_is_off(table):
    X = table()
    plain = VAETransformer(2, max_iter=2, **SMALL).fit(X)
    vae = VAETransformer(2, max_iter=2, **SMALL, callbacks=[("timer", EpochTimer()), ("off", None)], warm_start=True)
    np.testing.assert_array_equal(vae.fit(X).transform(X), plain.transform(X))
    assert [name for name, _ in vae.net_.callbacks_] == ["timer"]
    assert vae.set_params(callbacks=[("timer", None)]).fit(X).net_.callbacks_ == []


@pytest.mark.parametrize("early_stopping", [False, True, "cv"])
@pytest.mark.parametrize("place", ["__init__", "finish"])
def test_ctrl_c_at_the_ends_of_a_training_that_goes_on(place, early_stopping, table, monkeypatch):
    """It is heard, and a later fit goes on as one after a fit that was not interrupted."""
    X, options = table(n_rows=100), SMALL | {"early_stopping": early_stopping}
    vae = VAETransformer(2, max_iter=2, warm_start=True, **options).fit(X)
    own, left = getattr(Guard, place), [1]

    def interrupted(*args):
        if left and left.pop():
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(Guard, place, interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        vae.fit(X)
    assert ("Training was interrupted" in str(caught.value)) == (place == "finish")
    assert vae.n_iter_ == (2 if place == "__init__" else 4)
    assert vae.net_.stack_ is None
    expected = VAETransformer(2, max_iter=2, warm_start=True, **options).fit(X)
    if place == "finish":
        expected.fit(X)
    np.testing.assert_array_equal(vae.transform(X), expected.transform(X))
    np.testing.assert_array_equal(vae.fit(X).transform(X), expected.fit(X).transform(X))


class Ends(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise SystemExit


@pytest.mark.parametrize("how", ["a warning that is an error", "a program's end"])
def test_a_training_that_goes_on_and_fails_changes_nothing(how, table):
    X = table()
    vae = VAETransformer(2, max_iter=6, batch_size=32, **SMALL).fit(X)
    expected = vae.transform(X)
    vae.set_params(warm_start=True)
    if how == "a program's end":
        with pytest.raises(SystemExit):
            vae.set_params(callbacks=[Ends()]).fit(X)
    else:
        with warnings.catch_warnings(action="error"), pytest.raises(ConvergenceWarning, match="No latent unit is act"):
            vae.set_params(objective=ELBO(beta=1e6), max_iter=300).fit(X)
    assert vae.n_iter_ == len(vae.net_.history) == 6
    np.testing.assert_array_equal(vae.transform(X), expected)


def mean_of_predictions(net, X, y):
    return float(np.mean(net.predict(X)))


def test_scores_of_batches_see_their_rows(table):
    X = table()
    scores = BatchScoring(mean_of_predictions, on_train=True, name="score")
    vae = VAETransformer(2, max_iter=2, batch_size=len(X), callbacks=[scores], **SMALL).fit(X)
    assert len(vae.net_.history) == 2
    assert np.isfinite(vae.net_.history[:, "score"]).all()
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="Rows of a batch with holes or conditions are not those of X"):
        VAETransformer(2, max_iter=2, callbacks=[scores], **SMALL).fit(X)


def test_a_rate_of_zero_trains_nothing(table):
    X = table()
    vae = VAETransformer(2, max_iter=2, warm_start=True, **SMALL).fit(X)
    before = [part.clone() for part in vae.net_.module_.parameters()]
    vae.net_.set_params(lr=0.0)
    assert vae.fit(X).n_iter_ == 4
    assert all(map(torch.equal, vae.net_.module_.parameters(), before))
