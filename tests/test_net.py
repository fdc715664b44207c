import math
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    Initializer,
    LoadInitState,
    LRScheduler,
    ParamMapper,
    PassthroughScoring,
    Unfreezer,
)
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.exceptions import SkorchTrainingImpossibleError
from skorch.utils import train_loss_score, valid_loss_score
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Subset, TensorDataset

from skvae import VAETransformer
from skvae._data.split import Split, TrainBatches, hold_out, whole
from skvae._fast.optimizers import OPTIMIZERS
from skvae._system.random import INIT_STREAM, generator
from skvae._training.guard import Guard
from skvae._training.net import Net, build_net, train
from skvae._training.schedule import Schedule
from skvae._training.stack import Stack
from skvae.architectures import MLP, Custom
from skvae.inits import LinearInit
from skvae.likelihoods import Gaussian
from skvae.objectives import ELBO

SMALL = {"hidden_layer_sizes": (8,), "early_stopping": False, "random_state": 0}


@pytest.fixture
def net(make_vae):
    def make(seed=0, n_features=3, lr=1e-3, optimizer="adam"):
        module = make_vae(Gaussian("feature"), n_features, z_dim=2, hidden_layer_sizes=(16,))
        return build_net(
            module, ELBO(), vae={"n_features": n_features}, optimizer=optimizer, weight_decay=0.0, lr=lr, seed=seed
        )

    return make


def batches(net, x, batch_size=16):
    net.set_params(batch_size=batch_size)
    return [batch[0] for batch in net.get_iterator(TensorDataset(x), training=True)]


def train_on(net, x, schedule, x_valid=None):
    """Train on `x`, judged by `x_valid`."""
    if x_valid is None:
        return train(net, whole(x), schedule)
    rows = torch.arange(len(x) + len(x_valid))
    return train(net, Split(torch.cat([x, x_valid]), [rows[: len(x)]], [rows[len(x) :]]), schedule)


def schedule(n_epochs=3, batch_size=16, patience=1000, tol=0.0):
    return Schedule(n_epochs, batch_size, patience, tol)


def valid_loss(net, x):
    with net._stacked(Split(x, [torch.arange(len(x))], [torch.arange(len(x))])):
        return -net.guard_.judge()[0]


def test_batches_are_a_shuffled_pass(net, normal):
    x = normal(50, 3)
    found = batches(net(), x)
    assert [len(batch) for batch in found] == [12, 13, 12, 13]  # nearly equal
    rows = torch.cat([batch.x[0] for batch in found])
    assert not torch.equal(rows, x)
    assert torch.equal(rows[rows[:, 0].argsort()], x[x[:, 0].argsort()])  # every row once
    noise = torch.cat([batch.eps[0] for batch in batches(net(), normal(20_000, 3))])
    # 5 standard errors of the mean and of the variance of 40,000 draws
    assert abs(noise.mean()) < 0.025
    assert abs(noise.var() - 1) < 0.036


def test_batches_belong_to_seed_and_epoch(net, normal, global_streams):
    x, before = normal(50, 3), global_streams()
    first, same, other = net(seed=1), net(seed=1), net(seed=2)

    def drawn(net):
        return [torch.cat([getattr(batch, field)[0] for batch in batches(net, x)]) for field in ("x", "eps")]

    states = [*drawn(first), *drawn(same), *drawn(other)]
    first.history.new_epoch()
    later = drawn(first)
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[3])
    for key in range(2):
        assert not torch.equal(states[key], states[4 + key])
        assert not torch.equal(states[key], later[key])
    assert global_streams() == before


def test_validation_batches_are_the_same_at_every_epoch(net, normal):
    trained, x = net(), normal(30, 3)
    losses = [valid_loss(trained, x)]
    trained.history.new_epoch()
    losses.append(valid_loss(trained, x))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("n_rows", [1, 7, 100, 1797, 60_000, 10**6])
def test_schedule_fills_in_what_is_auto(n_rows):
    auto = Schedule.resolve(n_rows)
    assert 1 <= auto.batch_size <= n_rows
    assert auto.batch_size == n_rows or math.log2(auto.batch_size).is_integer()
    assert auto.n_epochs >= 1
    assert auto.patience >= 1
    # the budget is counted in steps, and is met by no more than an epoch unless 10 epochs are more
    budget = min(max(330, 33 * n_rows**0.5), max(2000, n_rows / 4), 10_000)
    steps_per_epoch = math.ceil(n_rows / auto.batch_size)
    assert auto.n_epochs == max(10, math.ceil(budget / steps_per_epoch))


def test_schedule_obeys_what_is_given():
    given = Schedule.resolve(1000, max_iter=7, batch_size=30, n_iter_no_change=4, tol=0.5)
    assert given == Schedule(7, 30, 4 * 34, 0.5, run_length=7)  # patience is counted in steps
    assert Schedule.resolve(10, batch_size=30).batch_size == 10


@pytest.mark.parametrize("seed", range(3))
def test_best_state_is_restored_and_is_not_the_last(seed, net, normal):
    x, x_valid = normal(12, 10, seed=2 * seed), normal(40, 10, seed=2 * seed + 1)
    trained = net(seed=seed, n_features=10, lr=0.06)
    train_on(trained, normal(300, 10, seed=seed + 10), schedule(n_epochs=30))
    start = valid_loss(trained, x_valid)
    train_on(trained, x, schedule(n_epochs=300), x_valid)
    losses = trained.history[30:, "valid_loss"]
    best = min(start, *losses)
    assert best < max(losses) - 0.1  # 12 rows are overfitted
    assert valid_loss(trained, x_valid) == pytest.approx(best, rel=1e-6)


def test_start_is_kept_where_training_only_harms(net, normal):
    trained, x = net(lr=0.05), normal(40, 3)
    train_on(trained, x, schedule(n_epochs=400), x)
    before = [parameter.detach().clone() for parameter in trained.module_.parameters()]
    train_on(trained, 3 * x + 10, schedule(n_epochs=3), x)
    assert all(torch.equal(*pair) for pair in zip(before, trained.module_.parameters(), strict=True))


def test_training_without_validation_ends_at_the_last_state(net, normal):
    trained = net()
    train_on(trained, normal(20, 3), schedule(n_epochs=5))
    assert len(trained.history) == 5
    assert "valid_loss" not in trained.history[-1]


def test_training_stops_where_nothing_better_comes(net, normal):
    trained = net(lr=0.03)
    train_on(trained, normal(20, 3), schedule(n_epochs=2000, patience=3), normal(40, 3, seed=1))
    assert len(trained.history) < 1000


def test_validation_and_training_losses_are_the_same_functional(net, normal):
    trained, x = net(lr=1e-2), normal(2000, 3)
    train_on(trained, x, schedule(n_epochs=10), x)
    row = trained.history[-1]
    # both average 2000 values with a standard deviation of about 1; the one moves during the epoch
    assert row["train_loss"] == pytest.approx(row["valid_loss"], abs=0.2)
    assert row["train_bound"] == pytest.approx(-row["train_loss"], rel=1e-5)  # beta is one


def test_history_has_a_row_for_each_epoch(net, normal):
    trained = net()
    train_on(trained, normal(50, 3), schedule(n_epochs=4), normal(10, 3, seed=1))
    assert len(trained.history) == 4
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4]
    for row in trained.history:
        assert all(math.isfinite(row[key]) for key in ("train_loss", "valid_loss", "train_bound", "valid_bound"))


def test_hold_out_splits_the_rows():
    rest, held = hold_out(50, 0.1, seed=0)
    assert (len(rest), len(held)) == (45, 5)
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(50))
    assert all(torch.equal(*pair) for pair in zip((rest, held), hold_out(50, 0.1, seed=0), strict=True))
    assert not torch.equal(held, hold_out(50, 0.1, seed=1)[1])


def test_only_the_given_rows_are_trained_on(net, normal):
    x, rows = normal(50, 3), torch.arange(7, 40)
    subset = Subset(TensorDataset(x), rows)
    trained = net().set_params(batch_size=16)
    seen = torch.cat([batch[0].x[0] for batch in trained.get_iterator(subset, training=True)])
    assert torch.equal(seen[seen[:, 0].argsort()], x[rows][x[rows][:, 0].argsort()])


@pytest.mark.parametrize(("max_iter", "n_rows", "batch_size"), [(3, 100, 32), (2, 10, 100), (1, 64, 64)])
def test_work_is_one_step_a_batch(max_iter, n_rows, batch_size, n_steps, table, monkeypatch):
    """Nothing is fetched row by row, nothing is evaluated in passing."""

    def refuse(*args, **kwargs):
        raise AssertionError("rows must not go through a data loader")

    monkeypatch.setattr(TensorDataset, "__getitem__", refuse)
    monkeypatch.setattr(DataLoader, "__init__", refuse)
    VAETransformer(2, max_iter=max_iter, batch_size=batch_size, **SMALL).fit(table(n_rows=n_rows))
    batches = np.array_split(range(n_rows), math.ceil(n_rows / batch_size))
    assert sorted(n_steps) == sorted(max_iter * [len(batch) for batch in batches])


class Operators(TorchDispatchMode):
    """Counts what torch is asked to do."""

    n_calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n_calls += 1
        return function(*args, **(kwargs or {}))


def operators_per_step(table, **params):
    X, counts = table(n_rows=96), []
    for n_epochs in (2, 12):
        with Operators() as operators:
            VAETransformer(2, max_iter=n_epochs, batch_size=32, **SMALL | params).fit(X)
        counts.append(operators.n_calls)
    return (counts[1] - counts[0]) / 30  # three steps an epoch


@pytest.mark.parametrize(
    ("params", "most"),
    [
        ({"prior": "standard_normal"}, 118),
        ({"init": "random", "prior": "standard_normal"}, 104),
        ({"architecture": MLP("tanh"), "prior": "standard_normal"}, 210),  # by autograd
        ({"init": "random", "architecture": MLP("tanh"), "prior": "standard_normal"}, 180),
        ({}, 166),
    ],
    ids=str,
)
def test_a_step_is_a_bounded_number_of_operators(params, most, table):
    assert 0.9 * most < operators_per_step(table, likelihood=Gaussian("feature"), **params) < most


def test_what_batches_are_normalised_by_is_that_of_the_last_step(table):
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
    architecture = Custom(encoder, nn.Sequential(nn.Linear(2, 8), nn.ReLU()))
    vae = VAETransformer(2, architecture=architecture, max_iter=3, batch_size=32, **SMALL)
    vae.fit(table(n_rows=96))
    used, trained = (
        next(part for part in net.modules() if isinstance(part, nn.BatchNorm1d))
        for net in (vae.module_, vae.net_.module_)
    )
    assert used.num_batches_tracked == 9
    assert torch.equal(used.running_mean, trained.running_mean)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_lowers_the_loss(name, net, normal):
    trained, x = net(optimizer=name, lr=1e-3), normal(200, 3)
    train_on(trained, x, schedule(n_epochs=15))
    losses = trained.history[:, "train_loss"]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("batch_callback", [False, True])
@pytest.mark.filterwarnings("ignore:Training diverged")
def test_a_loss_that_stays_not_finite_is_an_error(batch_callback, table):
    class ListensToBatches(Callback):
        def on_batch_end(self, net, **kwargs):
            pass

    callbacks = [ListensToBatches()] if batch_callback else None
    vae = VAETransformer(2, learning_rate=1e30, max_iter=20, callbacks=callbacks, **SMALL)
    message = (
        r"^Training diverged: the train loss of epoch \d+ is (nan|inf), at a learning rate of 3\.1e\+25 still\. Lower "
        "`learning_rate`, or look for outliers in X"
    )
    with pytest.raises(ValueError, match=message):
        vae.fit(table())
    assert not hasattr(vae, "net_")


class Recorder(Callback):
    """What a user's callback sees."""

    def __init__(self, seen):
        self.seen = seen

    def on_epoch_end(self, net, dataset_train=None, **kwargs):
        self.seen.append(net.history[-1, "train_loss"])


def fit_with(callbacks, table, **params):
    params = {"max_iter": 6, "learning_rate": 1e-2} | params
    return VAETransformer(2, callbacks=callbacks, **(SMALL | params)).fit(table())


def test_callbacks_see_each_epoch(table):
    seen = []
    vae = fit_with([("mine", Recorder(seen))], table)
    assert seen == vae.net_.history[:, "train_loss"]
    assert len(seen) == vae.n_iter_ == 6


def test_early_stopping_callback(table):
    stopping = EarlyStopping(monitor="train_loss", patience=2, threshold=1e9, threshold_mode="abs", sink=lambda _: None)
    assert fit_with([stopping], table, max_iter=50).n_iter_ == 3


def test_checkpoint_callback(table, tmp_path):
    checkpoint = Checkpoint(dirname=tmp_path, monitor=None, f_params="params.pt", f_optimizer=None, f_criterion=None)
    vae = fit_with([checkpoint], table)
    saved = torch.load(tmp_path / "params.pt", weights_only=True)
    expected = vae.net_.module_.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved)


def test_learning_rate_scheduler_callback(table):
    vae = fit_with([LRScheduler("StepLR", step_size=1, gamma=0.1)], table)
    assert vae.net_.optimizer_.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.1**6)


def test_gradient_clipping_callback(table):
    plain, clipped = (fit_with(callbacks, table, optimizer="sgd") for callbacks in (None, [GradientNormClipping(1e-9)]))
    still = fit_with(None, table, learning_rate=1e-30)
    X = table()
    np.testing.assert_allclose(clipped.transform(X), still.transform(X), atol=1e-5)
    assert np.abs(plain.transform(X) - still.transform(X)).max() > 1e-3


def test_epoch_scoring_callback(table):
    scoring = EpochScoring(lambda net, X, y=None: 1.5, name="mine", on_train=True, use_caching=False)
    assert fit_with([scoring], table).net_.history[:, "mine"] == [1.5] * 6


def test_users_callbacks_are_left_as_they_are(table, tmp_path):
    callbacks = [
        EarlyStopping(monitor="train_loss"),
        ("schedule", LRScheduler("StepLR", step_size=1)),
        Checkpoint(dirname=tmp_path, monitor=None),
        GradientNormClipping(1.0),
    ]
    plain = [callback[1] if isinstance(callback, tuple) else callback for callback in callbacks]
    before = [dict(vars(callback)) for callback in plain]
    fit_with(callbacks, table)
    assert [vars(callback) for callback in plain] == before


def test_options_of_the_optimizer_reach_skorch(table):
    X, params = table(), {"weight_decay": 10.0, "betas": (0.8, 0.9)}
    vae = VAETransformer(2, max_iter=3, optimizer=partial(torch.optim.AdamW, **params), **SMALL).fit(X)
    assert vae.net_.optimizer_.param_groups[0]["weight_decay"] == 10
    assert vae.net_.optimizer_.param_groups[0]["betas"] == (0.8, 0.9)
    assert params == {"weight_decay": 10.0, "betas": (0.8, 0.9)}
    plain = VAETransformer(2, max_iter=3, **SMALL).fit(X)
    assert not np.array_equal(plain.transform(X), vae.transform(X))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_no_weight_decay_is_too_strong(optimizer, table):
    """A decay of more than one over the learning rate would take weights past zero, further at each step."""
    params = {"init": LinearInit(weight_decay=1e9), "max_iter": 20, "optimizer": optimizer, "learning_rate": 1e-4}
    vae = VAETransformer(2, **SMALL, **params).fit(table(n_rows=20))
    assert np.isfinite(vae.loss_curve_).all()
    start = VAETransformer(2, **SMALL, **params | {"max_iter": 1}).fit(table(n_rows=20))
    weights = [max(w.abs().max() for n, w in fit.module_.named_parameters() if "hidden" in n) for fit in (vae, start)]
    assert weights[0] < max(0.01, 1.01 * weights[1])


def test_streams_of_one_seed_differ():
    draws = [torch.randn(4, generator=generator(0, key)).tolist() for key in (1, 2, INIT_STREAM)]
    assert len({tuple(draw) for draw in draws}) == 3
    assert draws[0] == torch.randn(4, generator=generator(0, 1)).tolist()


# What skorch documents, on `net_`: rows are in the model's units


def fitted(table, n_rows=60, **params):
    """A fitted estimator, and its training rows in the units of the model."""
    X = table(n_rows=n_rows)
    vae = VAETransformer(2, **SMALL | {"max_iter": 2} | params).fit(X)
    return vae, ((X - vae.net_.offset) / vae.net_.scale).astype(np.float32)


def moved(net, act):
    """Names of the parameters that `act` moves, of the module and of the one that is used."""
    modules = net.module_, net.average_
    before = [{name: part.detach().clone() for name, part in module.named_parameters()} for module in modules]
    act()
    return [
        {name for name, part in module.named_parameters() if not torch.equal(part, old[name])}
        for module, old in zip(modules, before, strict=True)
    ]


CONTAINERS = {
    "tensors": lambda x: TensorDataset(torch.from_numpy(x)),
    "tensors and labels": lambda x: TensorDataset(torch.from_numpy(x), torch.zeros(len(x))),
    "tensor": torch.from_numpy,
    "array": lambda x: x,
    "float64": lambda x: x.astype(float),
    "negative strides": lambda x: x[::-1],
    "skorch": lambda x: SkorchDataset(x),
    "subset": lambda x: Subset(TensorDataset(torch.from_numpy(x)), list(range(len(x)))),
    "subset of a subset": lambda x: Subset(Subset(SkorchDataset(x), range(len(x))), range(1, len(x))),
    "dict": lambda x: {"x": x},
}


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, torch.optim.Adagrad])
def test_the_net_trains_on(optimizer, table):
    vae, x = fitted(table, optimizer=optimizer)
    Z, every = vae.transform(table()), {name for name, _ in vae.net_.module_.named_parameters()}
    assert moved(vae.net_, lambda: vae.net_.partial_fit(TensorDataset(torch.from_numpy(x)), epochs=2)) == [every] * 2
    assert len(vae.net_.history) == 4
    assert np.abs(vae.transform(table()) - Z).max() > 0


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_net_takes_what_skorch_takes(kind, table):
    vae, x = fitted(table)
    assert all(moved(vae.net_, lambda: vae.net_.partial_fit(CONTAINERS[kind](x), epochs=1)))
    assert len(vae.net_.predict(CONTAINERS[kind](x))) == len(x) - (kind == "subset of a subset")


@pytest.mark.parametrize("seed", range(2))
def test_the_net_trains_as_the_estimator_does(seed, table):
    X = table()
    vae, other = (VAETransformer(2, **SMALL | {"max_iter": 2, "random_state": seed}).fit(X) for _ in range(2))
    vae.partial_fit(X)
    other.net_.partial_fit((X - other.net_.offset) / other.net_.scale, epochs=1)
    np.testing.assert_allclose(other.transform(X), vae.transform(X), atol=1e-5)


def test_rows_of_another_width_are_refused(table):
    vae, x = fitted(table)
    with pytest.raises(ValueError, match=r"takes rows of shape \(n_samples, 5\), in the model's units: .*\(60, 3\)"):
        vae.net_.partial_fit(x[:, :3])


def test_the_net_gives_the_terms_of_each_row(table):
    vae, x = fitted(table, prior="standard_normal")
    log_prob, kl = vae.net_.forward(x)
    mean, std = (torch.from_numpy(part) for part in vae.posterior(table()))
    torch.testing.assert_close(kl, (0.5 * (mean**2 + std**2 - 1) - std.log()).sum(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(vae.net_.predict(x), log_prob.numpy())
    assert log_prob.shape == (60,)


def test_the_net_is_not_begun_anew(table):
    vae, x = fitted(table)
    Z = vae.transform(table())
    for act in (lambda: vae.net_.fit(x), vae.net_.initialize, lambda: clone(vae.net_).fit(x)):
        with pytest.raises(SkorchTrainingImpossibleError, match="Call the estimator's fit to begin anew"):
            act()
    with pytest.raises(ValueError, match="'module__z_dim' is what the model is made of, and belongs to the estimator"):
        vae.net_.set_params(module__z_dim=3)
    np.testing.assert_array_equal(vae.transform(table()), Z)
    assert len(vae.net_.set_params(warm_start=True, max_epochs=1).fit(x).history) == 3


def test_parameters_of_the_net_are_set_and_got(table):
    vae, x = fitted(table)
    vae.net_.set_params(lr=1e-30, optimizer__weight_decay=0.0)
    assert vae.net_.get_params()["lr"] == 1e-30
    assert {group["lr"] for group in vae.net_.optimizer_.param_groups} == {1e-30}
    before = [part.detach().clone() for part in vae.net_.module_.parameters()]
    vae.net_.partial_fit(x, epochs=1)
    for old, new in zip(before, vae.net_.module_.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-12)
    unknown = {"flat_", "by_hand_", "interrupted_"} & set(vae.net_.get_params())
    assert not unknown


def test_the_optimizer_holds_the_modules_parameters(table):
    for optimizer in OPTIMIZERS:
        net = fitted(table, optimizer=optimizer)[0].net_
        held = {part for group in net.optimizer_.param_groups for part in group["params"]}
        assert held == set(net.module_.parameters())
        assert set(net.optimizer_.state) <= held


def test_a_split_of_the_nets_own_is_validated_on(table):
    vae, x = fitted(table)
    vae.net_.set_params(train_split=ValidSplit(5, stratified=False), max_epochs=3).partial_fit(x)
    assert np.isfinite(vae.net_.history[-3:, "valid_loss"]).all()
    assert vae.net_.history[-1, "batches", 0, "train_batch_size"] == 48


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_saved_parameters_are_loaded(optimizer, table, tmp_path):
    vae, x = fitted(table, optimizer=optimizer)
    other, _ = fitted(table, optimizer=optimizer, random_state=1)
    files = {f"f_{part}": tmp_path / part for part in ("params", "optimizer", "history", "average")}
    vae.net_.save_params(**files)
    other.net_.load_params(**files)
    np.testing.assert_array_equal(other.transform(table()), vae.transform(table()))
    other.net_.seed = vae.net_.seed
    for net in (vae.net_, other.net_):
        net.partial_fit(x, epochs=2)
    np.testing.assert_array_equal(other.transform(table()), vae.transform(table()))
    other.net_.load_params(f_params=files["f_params"])
    saved = torch.load(files["f_params"], weights_only=True)
    assert all(torch.equal(part, saved[name]) for name, part in other.module_.state_dict().items())


def test_a_checkpoint_of_skorchs_is_gone_on_from(table, tmp_path):
    keep = Checkpoint(dirname=tmp_path, monitor=None, f_optimizer=None)  # which has the learning rate
    vae, _ = fitted(table, callbacks=[keep], max_iter=3)
    other, _ = fitted(table, callbacks=[LoadInitState(keep)], max_iter=2, learning_rate=1e-30)
    saved = torch.load(tmp_path / "params.pt", weights_only=True)
    for name, part in other.net_.module_.named_parameters():
        torch.testing.assert_close(part, saved[name])
    assert [len(net.history) for net in (vae.net_, other.net_)] == [3, 5]


@pytest.mark.parametrize(("losses", "best"), [((3, 2, 4, 1), (1, 1, 0, 1)), ((math.nan, 3, 2), (0, 1, 1))])
def test_a_loss_is_best_as_in_skorch(losses, best, table):
    scoring = PassthroughScoring("train_loss", on_train=True).initialize()
    net = fitted(table)[0].net_
    net.history.clear()
    for loss in losses:
        net.history.new_epoch()
        net.history[-1]["batches"].append({"train_loss": loss, "train_batch_size": 60})
        net._record("train", loss, 0.0, 0.0)
        found = net.history[-1].pop("train_loss_best")
        scoring.on_epoch_end(net)
        assert net.history[-1, "train_loss_best"] == found
    assert [bool(row["train_loss_best"]) for row in net.history] == [bool(each) for each in best]


@pytest.mark.parametrize("function", [train_loss_score, valid_loss_score])
def test_scores_of_skorch_find_the_losses(function, table):
    scoring = EpochScoring(function, name="mine", on_train=function is train_loss_score)
    vae = VAETransformer(2, **SMALL | {"early_stopping": True, "callbacks": [scoring]}).fit(table())
    name = "train_loss" if function is train_loss_score else "valid_loss"
    found = vae.net_.history[:, "mine"]
    assert len(found) >= vae.n_iter_ - 1  # the last epoch may be cut short
    assert found == vae.net_.history[:, name][: len(found)]


# Frozen parameters stay where they are, and what is used of them too


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, torch.optim.Adagrad])
@pytest.mark.parametrize("part", ["encoder", "decoder.head", "linear_decoder"])
def test_frozen_parts_stay(part, optimizer, table):
    vae, x = fitted(table, optimizer=optimizer)
    vae.net_.module_.get_submodule(part).requires_grad_(False)
    frozen = {name for name, _ in vae.net_.module_.named_parameters() if name.startswith(part + ".")}
    rest = {name for name, _ in vae.net_.module_.named_parameters()} - frozen
    assert frozen
    assert moved(vae.net_, lambda: vae.net_.partial_fit(x, epochs=2)) == [rest, rest]
    assert moved(vae.net_, lambda: vae.partial_fit(table())) == [rest, rest]
    vae.net_.module_.requires_grad_(True)
    assert moved(vae.net_, lambda: vae.partial_fit(table())) == [rest | frozen] * 2


def test_frozen_parts_stay_to_the_bit(table):
    """Tiny weights too, which would be zeroed."""
    vae, x = fitted(table)
    tiny, vae.net_.n_steps_ = 1e-31, 0  # the steps before which tiny weights are looked for
    for module in (vae.net_.module_, vae.net_.average_):
        module.encoder.head.weight.data[0, 0] = tiny
    vae.net_.module_.encoder.head.requires_grad_(False)
    vae.net_.partial_fit(x, epochs=2)
    for module in (vae.net_.module_, vae.net_.average_):
        assert module.encoder.head.weight[0, 0] == np.float32(tiny)


def test_with_a_frozen_encoder_rows_stay_where_they_are(table):
    vae, x = fitted(table)
    Z = vae.transform(table())
    for part in (vae.net_.module_.encoder, vae.net_.module_.linear_encoder):
        part.requires_grad_(False)
    vae.net_.partial_fit(x, epochs=3)
    np.testing.assert_array_equal(vae.transform(table()), Z)


def test_where_all_is_frozen_nothing_moves(table):
    vae, x = fitted(table)
    vae.net_.module_.requires_grad_(False)
    assert moved(vae.net_, lambda: vae.net_.partial_fit(x, epochs=2)) == [set(), set()]


class Watch(Callback):
    """Keeps the weights at the end of each epoch."""

    def __init__(self, seen):
        self.seen = seen

    def on_epoch_end(self, net, **kwargs):
        self.seen.append({name: part.detach().clone() for name, part in net.module_.named_parameters()})


def moving(seen):
    """Names of the parameters that each epoch but the first moves."""
    return [{name for name in old if not torch.equal(old[name], new[name])} for old, new in pairwise(seen)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "nadam", torch.optim.Adagrad])
@pytest.mark.parametrize("weight_decay", [0.0, 300.0])
def test_freezer_and_unfreezer(weight_decay, optimizer, table):
    seen, params = [], {"optimizer": optimizer, "init": LinearInit(weight_decay=weight_decay), "max_iter": 6}
    callbacks = [Freezer("encoder*", at=2), Unfreezer("encoder*", at=4), Freezer("*", at=6), Watch(seen)]
    vae, _ = fitted(table, callbacks=callbacks, **params)
    every = set(seen[0])
    rest = {name for name in every if not name.startswith("encoder")}
    assert moving(seen) == [rest, rest, every, every, set()]
    assert vae.n_iter_ == 6


def test_a_freezer_from_the_start(table):
    still, _ = fitted(table, learning_rate=1e-30)
    vae, _ = fitted(table, callbacks=[Freezer(["encoder*", "linear_encoder*"])])
    for name, part in vae.module_.named_parameters():
        stays = name.startswith(("encoder", "linear_encoder"))
        assert torch.allclose(part, still.module_.get_parameter(name), rtol=0, atol=1e-12) == stays


def test_a_schedule_of_freezing_in_mid_epoch(table):
    class Freezes(Callback):
        def on_batch_begin(self, net, training=False, **kwargs):
            net.module_.decoder.requires_grad_(net.history[-1]["epoch"] < 2)

    seen = []
    fitted(table, n_rows=96, callbacks=[Freezes(), Watch(seen)], batch_size=32, max_iter=3)
    assert all(not any(name.startswith("decoder") for name in names) for names in moving(seen))
    assert all("encoder.head.weight" in names for names in moving(seen))


@pytest.mark.parametrize("callback", [Initializer, ParamMapper])
def test_what_a_callback_writes_is_used(callback, table):
    """The moving average begins there, instead of mixing two networks."""
    callbacks = [callback("encoder.head.*", fn=lambda part: nn.init.constant_(part, 0.25))]
    vae, _ = fitted(table, callbacks=callbacks, learning_rate=1e-30, max_iter=1)
    for module in (vae.net_.module_, vae.module_):
        assert torch.allclose(module.encoder.head.weight, torch.tensor(0.25))


def test_early_stopping_of_skorchs_restores_the_best_state(table):
    seen = []
    stop = EarlyStopping("mine", patience=3, load_best=True, sink=lambda _: None)
    falls = EpochScoring(lambda net, X, y=None: abs(len(net.history) - 2), name="mine", on_train=True)
    vae, _ = fitted(table, callbacks=[falls, stop, Watch(seen)], max_iter=20)
    assert vae.n_iter_ == 5
    for module in (vae.net_.module_, vae.module_):
        assert all(torch.equal(part, seen[1][name]) for name, part in module.named_parameters())


def test_a_scoring_callback_may_predict(table):
    scoring = EpochScoring(lambda net, X, y=None: float(net.predict(X).mean()), name="mine", on_train=True)
    vae, x = fitted(table, callbacks=[scoring])
    assert vae.net_.history[-1, "mine"] == pytest.approx(float(vae.net_.predict(x).mean()), abs=1e-5)


# Batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 5, 16, 17, 33, 64, 65])
def test_no_batch_has_one_row_where_others_have_more(n_rows, batch_size):
    net = SimpleNamespace(batch_size=batch_size, module_=SimpleNamespace(n_context=0))
    sizes = TrainBatches(net, whole(torch.zeros(n_rows, 1))).sizes
    assert sum(sizes) == n_rows
    assert max(sizes) <= batch_size + 1
    assert 1 not in sizes or max(sizes) == 1


def batch_normalised(**params):
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU())
    return VAETransformer(2, architecture=Custom(encoder, decoder), **{"max_iter": 2, "random_state": 0} | params)


@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
@pytest.mark.parametrize(("n_rows", "batch_size"), [(65, 64), (65, "auto"), (33, 16), (33, "auto"), (41, 8), (3, 2)])
@pytest.mark.filterwarnings("ignore:No latent unit is active")
def test_batch_normalisation_takes_any_number_of_rows(n_rows, batch_size, early_stopping, table):
    X = table(n_rows=n_rows)
    assert np.isfinite(batch_normalised(batch_size=batch_size, early_stopping=early_stopping).fit(X).score(X))


def test_batch_normalisation_takes_a_chunk_of_one_row_more_than_a_batch(table):
    vae = batch_normalised(batch_size=16).partial_fit(table()).partial_fit(table(n_rows=17))
    assert vae.n_iter_ == 2
    assert np.isfinite(vae.score(table()))


@pytest.mark.parametrize("params", [{"batch_size": 1}, {}])
def test_batch_normalisation_cannot_train_on_single_rows(params, table, n_steps):
    vae = batch_normalised(**params, early_stopping=False)
    with pytest.raises(ValueError, match=r"^Batch normalisation cannot train on batches of one row: there are \d row"):
        vae.fit(table(n_rows=2 if params else 1))
    assert n_steps == []


@pytest.mark.parametrize("architecture", ["mlp", "residual"])
def test_batches_of_one_row_leave_some_folds_without(architecture, table):
    """Ten steps a pass, for folds of eight rows."""
    params = {"batch_size": 1, "max_iter": 3, "random_state": 0, "architecture": architecture}
    vae = VAETransformer(1, **params, hidden_layer_sizes=(4,)).fit(table(n_rows=10))
    assert np.isfinite(vae.validation_scores_).all()


@pytest.mark.parametrize("n_rows", [1200, 200])
@pytest.mark.parametrize("z_dim", [3, 2])
def test_training_has_two_phases(z_dim, n_rows, table, monkeypatch):
    """In the second the rate falls to zero, and there is no noise and, but for a map of many rows, no balance; it goes
    on from the best state. Of few rows no gradients are balanced, and a map is one in the first quarter alone."""
    is_large, is_map = n_rows >= 1000, z_dim == 2
    seen = []
    step, gradient = Stack.step, Net.gradient

    def watched(self, optimizer, decay, factor):
        seen[-1].append(factor)
        step(self, optimizer, decay, factor)

    def looked(self, batch):
        seen.append([batch.seen is not None, batch.balanced, batch.for_map])
        return gradient(self, batch)

    monkeypatch.setattr(Stack, "step", watched)
    monkeypatch.setattr(Net, "gradient", looked)
    vae = VAETransformer(z_dim, hidden_layer_sizes=(8,), random_state=0).fit(table(n_rows=n_rows))
    second = next(i for i, (noisy, *_) in enumerate(seen) if not noisy)
    assert 0 < second < len(seen)
    steps_per_epoch = -(-n_rows // vae.net_.batch_size)
    placed = -(-vae.net_.max_epochs * steps_per_epoch // 4) if is_map and not is_large else second
    assert placed <= second
    assert {tuple(row[:3]) for row in seen[:placed]} == {(True, is_large, is_map)}
    assert {tuple(row[:3]) for row in seen[placed:second]} <= {(True, False, False)}
    assert {tuple(row[:3]) for row in seen[second:]} == {(False, *[is_large and is_map] * 2)}
    rates = [row[3] for row in seen]
    warmup = 100 if is_large and is_map else 50
    assert rates[:3] == pytest.approx([1 / warmup, 2 / warmup, 3 / warmup])
    assert (rates[second - 1], rates[second]) == (1, 0.01)  # these columns say nothing that betters the start
    falls = -np.diff(rates[second:]) / rates[second]
    assert falls == pytest.approx(falls[0])  # linear
    assert len(seen) - second <= round(1 / falls[0]) <= second  # it ends at zero or before, and is as long at most
    assert vae.net_.optimizer_.param_groups[0]["lr"] == 8e-3


def test_the_second_phase_of_a_better_model_begins_at_the_full_rate(normal, monkeypatch):
    x = normal(300, 1)
    X = torch.cat([x, x.square(), normal(300, 1, seed=1)], 1) + 0.1 * normal(300, 3, seed=2)
    seen, end = [], Guard._end_phase
    monkeypatch.setattr(Guard, "_end_phase", lambda self: (end(self), seen.append(self.lr_factor)))
    VAETransformer(1, hidden_layer_sizes=(16,), random_state=0).fit(X.numpy())
    assert seen[0] == 1


@pytest.mark.parametrize("at", [15, 120, 169], ids=["first phase", "second phase", "last step"])
def test_an_epoch_that_is_undone_leaves_the_schedule(at, table, monkeypatch):
    factors, step, gradient, n_epochs = [], Stack.step, Net.gradient, 10

    def broken_once(self, batch):
        terms = gradient(self, batch)
        return {**terms, "loss": terms["loss"] * math.nan} if len(factors) == at else terms

    def watched(self, optimizer, decay, factor):
        factors.append(factor)
        step(self, optimizer, decay, factor)

    monkeypatch.setattr(Net, "gradient", broken_once)
    monkeypatch.setattr(Stack, "step", watched)
    params = {"batch_size": 64, "early_stopping": True, "n_iter_no_change": 100, "hidden_layer_sizes": (8,)}
    vae = VAETransformer(3, max_iter=n_epochs, random_state=0, **params)
    with pytest.warns(ConvergenceWarning, match="Training diverged"):
        vae.fit(table(n_rows=1200))
    assert vae.n_iter_ == n_epochs
    assert min(factors) > 0
    assert max(factors) == 1
    n_steps = len(factors) // (n_epochs + 1) * n_epochs  # one epoch was undone
    assert vae.net_.n_steps_ == n_steps
    assert factors[-1] == pytest.approx(0.01 * 2 / n_steps)  # of a start that nothing betters


def test_the_best_state_is_looked_for_where_the_phase_turns(table, monkeypatch):
    """A run of fewer steps than lie between two looks does not go back to its start in the middle."""
    looks, look = [], Guard._look
    monkeypatch.setattr(Guard, "_look", lambda self: (looks.append(self.n_steps), look(self)))
    vae = VAETransformer(3, max_iter=2, early_stopping=True, hidden_layer_sizes=(8,), random_state=0)
    n_steps = vae.fit(table(n_rows=1200)).net_.n_steps_
    assert looks == [0, n_steps // 2, n_steps]


def test_a_batch_of_few_rows_takes_a_shorter_step(table, monkeypatch):
    rates, step = [], Stack.step
    monkeypatch.setattr(Stack, "step", lambda self, *args: (rates.append(args[-1]), step(self, *args)))
    VAETransformer(2, batch_size=8, max_iter=20, **SMALL).fit(table(n_rows=64))
    assert rates[-1] == 8 / 32


def test_folds_can_be_asked_for_by_name(table, monkeypatch):
    members = []
    inner = Stack.__init__
    monkeypatch.setattr(Stack, "__init__", lambda self, *args: members.append(len(args[0])) or inner(self, *args))
    X, quick = table(), {"max_iter": 3, "n_draws": 5, "hidden_layer_sizes": (8,), "random_state": 0}
    few = {how: VAETransformer(2, early_stopping=how, **quick).fit(X) for how in ("auto", "cv")}
    np.testing.assert_array_equal(*(vae.transform(X) for vae in few.values()))
    many = np.vstack([X + i / 100 for i in range(20)])
    scores = {how: VAETransformer(2, early_stopping=how, **quick).fit(many).validation_scores_ for how in few}
    assert members == [6, 6, 1, 6]
    assert len(scores["cv"]) == 3
    again = VAETransformer(2, early_stopping="cv", warm_start=True, **quick).fit(many).fit(many)
    assert members[4:] == [6, 1]  # which holds rows out
    assert np.isfinite(again.score(X))
    monkeypatch.setattr("skvae._data.rows.MAX_HELD", 0)
    with pytest.raises(ValueError, match="early_stopping='cv' is for tables in memory and one process"):
        VAETransformer(2, early_stopping="cv", **quick).fit(csr_array(many))
