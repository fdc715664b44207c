"""Graphs of training steps: what must come of them is told by steps that are taken one by one."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, LRScheduler

from skvae import VAETransformer, load
from skvae._fast import replay
from skvae._fast.optimizers import Fused
from skvae._fast.replay import Replay
from skvae.architectures import Conv
from skvae.objectives import DReG
from skvae.priors import Flow

SMALL = {"hidden_layer_sizes": (8,), "batch_size": 16, "random_state": 0}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that any machine has: what is done over again is the work itself. A list of all that were captured."""
    made = []

    def captured(work, pool):
        result = {}
        made.append(result)
        return result, lambda: result.update(work())

    monkeypatch.setattr(replay, "captured", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    by_hand = staticmethod(lambda net: net.fast_ is not None and isinstance(net.optimizer_, Fused))
    monkeypatch.setattr(Replay, "covers", by_hand)
    return made


def weights(vae):
    return torch.nn.utils.parameters_to_vector(vae.net_.module_.parameters()).detach().cpu()


class Sets(Callback):
    """Sets an option of the optimizer when the third epoch begins."""

    def __init__(self, **options):
        self.options = options

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            for group in net.optimizer_.param_groups:
                group.update(self.options)


class Freezes(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            net.module_.encoder.requires_grad_(False)


@pytest.mark.parametrize(
    ("callbacks", "n_graphs"),
    [
        ([], 1),
        ([LRScheduler("ExponentialLR", gamma=0.7)], 1),
        ([Sets(lr=0.03)], 1),
        ([Sets(betas=(0.5, 0.9))], 2),
        ([Sets(fused=False)], 1),
        ([Freezes()], 1),
    ],
    ids=["plain", "rates fall", "another rate", "other options", "another algorithm", "frozen"],
)
def test_replayed_steps_are_those_that_were_captured(callbacks, n_graphs, table, graphs, monkeypatch):
    X = table(n_rows=128)
    params = SMALL | {"max_iter": 5, "early_stopping": False, "callbacks": callbacks}
    replayed = VAETransformer(2, **params).fit(X)
    assert len(graphs) == n_graphs
    monkeypatch.setattr(replay, "_LEAST_STEPS", 1000)
    one_by_one = VAETransformer(2, **params).fit(X)
    assert len(graphs) == n_graphs
    assert torch.equal(weights(replayed), weights(one_by_one))
    assert replayed.net_.history[:, "train_loss"] == one_by_one.net_.history[:, "train_loss"]


def test_a_whole_fit_with_its_folds_and_phases_is_replayed(graphs, n_steps):
    """A graph for each phase: noise on the encoder's inputs is a field of the first one's batches."""
    X = load_iris().data
    score = VAETransformer(2, random_state=0).fit(X).score(X)
    assert len(graphs) == 2
    assert np.isfinite(score)


def test_batches_of_two_sizes_have_graphs_of_their_own(table, graphs):
    VAETransformer(2, max_iter=40, early_stopping=False, **SMALL).fit(table(n_rows=40))  # batches of 13, 13 and 14
    assert len(graphs) == 2


def test_an_epoch_that_is_undone_takes_its_graph_with_it(table, graphs, monkeypatch):
    """The optimizer begins anew then, in other memory."""
    X, step, calls = table(n_rows=128), Replay.step, []

    def diverging(self, batch, factor):
        terms = step(self, batch, factor)
        calls.append(1)
        return {name: part * torch.nan for name, part in terms.items()} if len(calls) == 20 else terms

    monkeypatch.setattr(Replay, "step", diverging)
    with pytest.warns(ConvergenceWarning, match="Training diverged"):
        vae = VAETransformer(2, max_iter=6, early_stopping=False, **SMALL).fit(X)
    assert len(graphs) == 2
    assert vae.n_iter_ == 6


def test_callbacks_on_gradients_see_each_step(table, graphs):
    class Counts(Callback):
        n_seen = 0

        def on_grad_computed(self, net, **kwargs):
            Counts.n_seen += 1

    VAETransformer(2, max_iter=5, early_stopping=False, callbacks=[Counts()], **SMALL).fit(table(n_rows=64))
    assert Counts.n_seen == 20
    assert not graphs


# On a GPU


def frame(n_rows):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(n_rows, 3)) @ rng.normal(size=(3, 5)), columns=list("abcde"))
    return X.mask(rng.random(X.shape) < 0.1).assign(kind=np.where(X["a"] + X["b"] > 0, "u", "v"), level=X["c"].round())


ON_GPU = {
    "default": {},
    "last state": {"early_stopping": False},
    "folds": {"early_stopping": "auto"},
    "counts": {"likelihood": "poisson"},
    "vamp": {"prior": "vamp"},
    "flow": {"prior": Flow(2)},
    "convolutions": {"architecture": Conv((4, 4)), "likelihood": "gaussian"},
    "other objective": {"objective": DReG(3)},
    "other optimizer": {"optimizer": "rmsprop"},
}


@needs_gpu
@pytest.mark.parametrize("params", ON_GPU.values(), ids=ON_GPU)
def test_a_fit_on_a_gpu_is_the_same_with_and_without_graphs(params, table, monkeypatch):
    X = np.abs(table("poisson", n_rows=300, n_features=16))
    params = {"device": "cuda", "random_state": 0} | params
    scores = [VAETransformer(2, **params).fit(X).score_samples(X) for _ in range(2)]
    monkeypatch.setattr(replay, "_LEAST_STEPS", 100_000)
    one_by_one = VAETransformer(2, **params).fit(X).score_samples(X)
    if "architecture" not in params:  # cuDNN's gradients of convolutions are not the same twice
        assert np.array_equal(*scores)
        assert np.array_equal(scores[0], one_by_one)
    assert np.abs(np.mean(scores[0]) - np.mean(one_by_one)) < 0.5  # nats, a model that is trained alike


@needs_gpu
def test_a_table_of_words_and_holes_on_a_gpu(tmp_path):
    X = frame(400)
    vae = VAETransformer(2, device="cuda", random_state=0).fit(X)
    assert vae.impute(X).notna().all(axis=None)
    vae.save(tmp_path / "vae")
    assert np.array_equal(load(tmp_path / "vae").score_samples(X), vae.score_samples(X))
    on_cpu = VAETransformer(2, device="cpu", random_state=0).fit(X)
    assert on_cpu.score(X) == pytest.approx(vae.score(X), abs=0.5)  # nats, of another training as good


@needs_gpu
def test_calls_of_partial_fit_on_a_gpu_are_one_training(table):
    X, params = table(n_rows=64), {"device": "cuda", **SMALL}
    parts, whole = (VAETransformer(2, **params, max_iter=n, early_stopping=False) for n in (1, 6))
    whole.fit(X)
    parts.fit(X)
    for _ in range(5):
        parts.partial_fit(X)
    assert parts.score(X) == whole.score(X)  # graphs begin anew with each call


@needs_gpu
def test_ctrl_c_on_a_gpu_leaves_a_model(table, press_ctrl_c):
    class Interrupted(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 4:
                press_ctrl_c()

    vae = VAETransformer(2, device="cuda", max_iter=50, callbacks=[Interrupted()], early_stopping=False, **SMALL)
    with pytest.raises(KeyboardInterrupt, match="as it stands, after 4 epoch"):
        vae.fit(table())
    assert np.isfinite(vae.score(table()))
