import os
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping, Freezer, LRScheduler
from torch import nn

from skvae import VAETransformer
from skvae._training import checkpoint as _checkpoint
from skvae._training.net import Net
from skvae.architectures import Custom
from skvae.likelihoods import Gaussian
from skvae.objectives import Objective

SMALL = {"hidden_layer_sizes": (8,), "batch_size": 16, "max_iter": 8, "early_stopping": True, "random_state": 0}


class Dies(Callback):
    """A process that dies, as far as one can without dying, at the start of an epoch."""

    def __init__(self, epoch=None):
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise RuntimeError("died")


@pytest.fixture
def each_epoch(monkeypatch):
    """A file at the end of each epoch."""
    monkeypatch.setattr(_checkpoint, "_SECONDS", 0)
    monkeypatch.setattr(_checkpoint, "_SHARE", float("inf"))


def estimator(folder=None, epoch=None, callbacks=(), **params):
    return VAETransformer(2, checkpoint=folder, callbacks=[*callbacks, Dies(epoch)], **(SMALL | params))


def die(folder, X, epoch, **params):
    with pytest.raises(RuntimeError, match="died"):
        estimator(folder, epoch, **params).fit(X)
    assert len(list(folder.iterdir())) == 1


def bits(vae, X):
    """All that a fit decides."""
    state = vae.module_.state_dict()
    curves = np.array([vae.loss_curve_, vae.kl_curve_])
    return joblib.hash([vae.transform(X), vae.score_samples(X), curves, *(value.numpy() for value in state.values())])


@pytest.mark.usefixtures("each_epoch")
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"early_stopping": False, "optimizer": "sgd"},
        {"early_stopping": "auto", "likelihood": Gaussian("row")},
        {"learning_rate": 0.03, "n_iter_no_change": 1, "optimizer": "nadam"},
        {"callbacks": [LRScheduler("CosineAnnealingLR", T_max=8), EarlyStopping("train_loss", load_best=True)]},
    ],
    ids=["best state", "last state", "cross-fitted", "learning rate falls", "users' callbacks"],
)
@pytest.mark.parametrize("shuffled", [False, True])  # columns by themselves have no linear structure, another start
def test_a_fit_goes_on_to_the_same_bits(shuffled, params, table, tmp_path, n_steps):
    X = table(n_rows=80)
    X = np.random.default_rng(0).permuted(X, axis=0)[:, :2] if shuffled else X
    expected = bits(estimator(**params).fit(X), X)
    n_whole = len(n_steps)
    die(tmp_path, X, 4, **params)
    n_steps.clear()
    assert bits(estimator(tmp_path, **params).fit(X), X) == expected
    assert len(n_steps) < n_whole - 10  # three epochs of four batches or more
    assert list(tmp_path.iterdir()) == []  # a fit that is done leaves nothing


@pytest.mark.usefixtures("each_epoch")
def test_a_seed_that_nobody_gave_is_kept(table, tmp_path):
    X = table(n_rows=80)
    np.random.seed(3)  # noqa: NPY002 (what random_state=None draws the seed from)
    expected = bits(estimator(random_state=None).fit(X), X)
    np.random.seed(3)  # noqa: NPY002
    die(tmp_path, X, 5, random_state=None)
    assert bits(estimator(tmp_path, random_state=None).fit(X), X) == expected
    assert bits(estimator(tmp_path, random_state=None).fit(X), X) != expected


@pytest.mark.usefixtures("each_epoch")
@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-3},
        {"random_state": 1},
        {"likelihood": Gaussian("shared")},
        {"max_iter": 9},
        {"callbacks": [EarlyStopping("train_loss")]},
        {"X": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_other_data_or_parameters_is_left_alone(change, table, tmp_path):
    X = table(n_rows=80)
    die(tmp_path, X, 5, likelihood=Gaussian())
    kept = next(tmp_path.iterdir()).read_bytes()
    params = {"likelihood": Gaussian()} | change
    other = X + params.pop("X", 0)
    fresh = bits(estimator(**params).fit(other), other)
    assert bits(estimator(tmp_path, **params).fit(other), other) == fresh
    assert next(tmp_path.iterdir()).read_bytes() == kept


@pytest.mark.usefixtures("each_epoch")
def test_parameters_that_training_does_not_see_may_change(table, tmp_path, capsys):
    X = table(n_rows=80)
    expected = bits(estimator().fit(X), X)
    die(tmp_path, X, 5)
    resumed = estimator(tmp_path, n_draws=7, verbose=1).fit(X)
    assert capsys.readouterr().out.startswith(f"Going on after iteration 4, from {tmp_path}")
    assert bits(resumed.set_params(n_draws=100), X) == expected


@pytest.mark.usefixtures("each_epoch")
def test_warm_start_goes_on_from_the_fit_it_started_from(table, tmp_path):
    X = table(n_rows=80)
    first = estimator(warm_start=True).fit(X)
    copy = joblib.hash(first.module_.state_dict()["encoder.head.weight"].numpy())
    expected = bits(estimator(warm_start=True).fit(X).fit(X), X)
    with pytest.raises(RuntimeError, match="died"):  # in the second fit
        estimator(tmp_path, epoch=SMALL["max_iter"] + 6, warm_start=True).fit(X).fit(X)
    assert joblib.hash(first.module_.state_dict()["encoder.head.weight"].numpy()) == copy
    resumed = first.set_params(checkpoint=tmp_path).fit(X)
    assert resumed.n_iter_ == 2 * SMALL["max_iter"]
    assert bits(resumed, X) == expected


@pytest.mark.usefixtures("each_epoch")
def test_ctrl_c_keeps_the_checkpoint(table, tmp_path, monkeypatch):
    X, gradient, calls = table(n_rows=80), Net.gradient, []
    expected = bits(estimator().fit(X), X)

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return gradient(self, batch)

    monkeypatch.setattr(Net, "gradient", interrupted)
    vae = estimator(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert 0 < vae.n_iter_ < SMALL["max_iter"]
    assert np.isfinite(vae.score(X))
    assert bits(estimator(tmp_path).fit(X), X) == expected


@pytest.mark.usefixtures("each_epoch")
def test_a_file_that_is_not_whole_is_named(table, tmp_path, n_steps):
    X = table(n_rows=80)
    die(tmp_path, X, 5)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    n_steps.clear()
    with pytest.raises(ValueError, match=rf"^The checkpoint {path} cannot be read\. Delete it to train from the start"):
        estimator(tmp_path).fit(X)
    assert n_steps == []


def test_parameters_that_cannot_be_told_apart_are_named(table, tmp_path, n_steps):
    with pytest.raises(ValueError, match=r"^A checkpoint can only be told from others where all parameters can be pic"):
        estimator(tmp_path, optimizer=lambda *args, **kwargs: torch.optim.Adam(*args, **kwargs)).fit(table())
    assert n_steps == []


@pytest.mark.usefixtures("each_epoch")
def test_a_disk_that_is_full_leaves_the_last_whole_file(table, tmp_path, monkeypatch):
    X, written = table(n_rows=80), []

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        whole = bits(estimator(tmp_path).fit(X), X)
    assert whole == bits(estimator().fit(X), X)
    assert len(written) == SMALL["max_iter"]
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_at_most_every_few_seconds(table, tmp_path, monkeypatch):
    clock, fsyncs = [0.0], []
    monkeypatch.setattr(_checkpoint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsyncs.append(clock[0]), clock.append(clock.pop() + 1)))

    class Second(Callback):
        def on_epoch_begin(self, net, **kwargs):
            clock[0] += 1

    params = {"max_iter": 200, "early_stopping": False}
    estimator(tmp_path, callbacks=[Second()], **params).fit(table(n_rows=20))
    # the first after five seconds; each takes one, which may be a fiftieth of the time
    assert fsyncs == [5.0, 56.0, 107.0, 158.0]


def test_partial_fit_keeps_no_checkpoint(table, tmp_path):
    VAETransformer(2, checkpoint=tmp_path / "new", random_state=0).partial_fit(table())
    assert list(tmp_path.iterdir()) == []


def test_a_search_may_share_the_folder(table, tmp_path):
    search = GridSearchCV(estimator(tmp_path / "new"), {"z_dim": [1, 2]}, cv=2).fit(table(n_rows=80))
    plain = clone(search).set_params(estimator__checkpoint=None).fit(table(n_rows=80))
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    assert list((tmp_path / "new").iterdir()) == []


KILLS = """
import joblib, numpy, os, pathlib, signal, sys, time, torch
torch.set_num_threads(1)
from skvae import VAETransformer
from skvae._training import checkpoint as _checkpoint
_checkpoint._SECONDS, _checkpoint._SHARE = 0, float("inf")
rng, folder = numpy.random.default_rng(), pathlib.Path(sys.argv[1])
X = numpy.random.default_rng(0).normal(size=(60, 6)) @ numpy.random.default_rng(1).normal(size=(6, 6))
params = dict(hidden_layer_sizes=(8,), batch_size=32, n_iter_no_change=1000, early_stopping=True, random_state=0)

def bits(checkpoint):
    vae = VAETransformer(3, max_iter=1000, checkpoint=checkpoint, **params).fit(X)  # more than a second
    assert vae.n_iter_ == 1000
    return joblib.hash([vae.transform(X), vae.score_samples(X), vae.loss_curve_, vae.kl_curve_])

def wait(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(1e-4)

expected = bits(None)
for wanted in ("*.pt", "*.tmp", "", ""):
    child = os.fork()
    if not child:
        bits(folder)
        os._exit(0)
    wait(lambda: list(folder.glob(wanted))) if wanted else time.sleep(rng.uniform(0.01, 0.3))
    os.kill(child, signal.SIGKILL)
    was_killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    n_epochs = [len(torch.load(path, weights_only=False)["net"]["history"]) for path in folder.glob("*.pt")]
    print(wanted or "random", was_killed, *n_epochs)
print(bits(folder) == expected, list(folder.iterdir()))
"""


def test_sigkill_loses_nothing(tmp_path):
    """Killed after the first file, while writing one and at random moments: what is left is whole, and goes on."""
    result = subprocess.run([sys.executable, "-c", KILLS, tmp_path], capture_output=True, text=True, timeout=300)
    *kills, last = result.stdout.splitlines()
    assert last == "True []", result
    assert [line.split()[:2] for line in kills[:2]] == [["*.pt", "True"], ["*.tmp", "True"]]
    assert len(kills) == 4
    n_epochs = [int(line.split()[2]) for line in kills if len(line.split()) == 3]
    assert n_epochs == sorted(n_epochs)  # none is lost


@pytest.mark.usefixtures("each_epoch")
def test_networks_of_other_layers_have_files_of_their_own(table, tmp_path):
    def params(activation):
        torch.manual_seed(0)
        n_features = table().shape[1]
        coders = (nn.Sequential(nn.Linear(n, 8), activation()) for n in (n_features, 2))
        return {"architecture": Custom(*coders), "early_stopping": False}

    X = table()
    die(tmp_path, X, 3, **params(nn.Tanh))
    expected = estimator(**params(nn.ReLU)).fit(X).transform(X)
    np.testing.assert_array_equal(estimator(tmp_path, **params(nn.ReLU)).fit(X).transform(X), expected)


@pytest.mark.usefixtures("each_epoch")
@pytest.mark.parametrize("early_stopping", [False, "auto"])
def test_what_is_frozen_stays_frozen(early_stopping, table, tmp_path):
    X, params = table(), {"early_stopping": early_stopping, "callbacks": [Freezer("encoder*")]}
    expected = estimator(**params).fit(X).transform(X)
    die(tmp_path, X, 3, **params)
    np.testing.assert_array_equal(estimator(tmp_path, **params).fit(X).transform(X), expected)


class Annealed(Objective):
    """Keeps what it goes on from in a buffer."""

    is_bound = False

    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.ones(()))

    def forward(self, vae, batch):
        log_prob, kl = vae(batch)
        if vae.training:
            self.beta.mul_(1.1).clamp_(max=20)
        return log_prob - self.beta * kl, log_prob, kl


class Fails(Callback):
    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 4:
            raise RuntimeError("once")


@pytest.mark.usefixtures("each_epoch")
def test_the_objective_goes_on_from_its_state(table, tmp_path):
    X, options = table(n_rows=80), SMALL | {"early_stopping": False}
    expected = bits(VAETransformer(2, objective=Annealed(), **options).fit(X), X)
    vae = VAETransformer(2, objective=Annealed(), checkpoint=tmp_path, **options)
    with pytest.raises(RuntimeError, match="once"):
        clone(vae).set_params(callbacks=[Fails()]).fit(X)
    assert bits(vae.fit(X), X) == expected
