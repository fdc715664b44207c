import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from skorch.callbacks import MlflowLogger, TensorBoard, WandbLogger

from skvae import VAETransformer
from skvae._net import Net
from skvae.callbacks import BestState, SampleGrid

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


def test_sample_grid_leaves_training_as_it_is(tmp_path, capsys):
    plain = VAETransformer(2, likelihood="bernoulli", max_iter=3, batch_size=32, **SMALL).fit(DIGITS)
    watched = fit_with(SampleGrid(tmp_path, every=1, grid="both"))
    assert np.array_equal(plain.transform(DIGITS), watched.transform(DIGITS))


def test_sample_grid_names_a_bad_grid(tmp_path):
    with pytest.raises(ValueError, match=r"^grid must be 'prior', 'reconstruction' or 'both'\. Got 'posterior'"):
        fit_with(SampleGrid(tmp_path, grid="posterior"))
    assert list(tmp_path.iterdir()) == []


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
    vae = VAETransformer(2, beta=beta, max_iter=20, verbose=1, **SMALL).fit(table())
    last = capsys.readouterr().out.splitlines()[-1]
    assert int(re.fullmatch(REPORT, last)[3]) == vae.active_units_.sum()
    assert vae.active_units_.sum() == {1: 2, 1e4: 0}.get(beta, vae.active_units_.sum())


def test_report_tells_the_validation_score(table, capsys):
    vae = VAETransformer(2, verbose=1, **(SMALL | {"early_stopping": True, "max_iter": 2})).fit(table())
    lines = capsys.readouterr().out.splitlines()
    found = [float(re.search(r"validation score = (-?\d+\.\d+)", line)[1]) for line in lines]
    assert found == pytest.approx(vae.validation_scores_, abs=1e-4)


@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
def test_nothing_is_printed_without_verbose(early_stopping, table, capsys):
    vae = VAETransformer(2, max_iter=3, **(SMALL | {"early_stopping": early_stopping}))
    X = table()
    vae.fit(X).partial_fit(X).score(X)
    vae.sample(3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def interrupt(monkeypatch, n_calls):
    """Press Ctrl-C in the given step; returns the list of steps."""
    gradient, calls = Net.gradient, []

    def interrupted(self, batch):
        calls.append(len(batch[0]["x"]))
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
    with pytest.warns(UserWarning, match=r"^Training interrupted by user\.$") as caught:
        vae.fit(X)
    assert len(caught) == 1
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
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        vae.fit(X)
    assert np.isfinite(vae.score(X))


@pytest.mark.parametrize("n_calls", [2, 30])
def test_ctrl_c_ends_the_search_for_the_number_of_epochs(n_calls, table, monkeypatch):
    """One Ctrl-C is enough: what is trained after it is at most an epoch that leaves a usable model."""
    X = table(n_rows=100)
    calls = interrupt(monkeypatch, n_calls)
    vae = VAETransformer(2, max_iter=20, batch_size=32, **(SMALL | {"early_stopping": "auto"}))
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        vae.fit(X)
    assert len(calls) <= n_calls + 10
    assert np.isfinite(vae.score(X))


def test_callback_may_end_training(table):
    """skorch's way to stop, a KeyboardInterrupt from a callback, is no Ctrl-C: no warning."""

    class StopAtThree(BestState):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise KeyboardInterrupt

        def on_epoch_begin(self, net, **kwargs):
            pass

    vae = VAETransformer(2, max_iter=50, callbacks=[StopAtThree()], **SMALL).fit(table())
    assert vae.n_iter_ == 3


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
