"""Graphs of training steps: what must come of them is told by steps that are taken one by one."""

from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, LRScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skvae import VAETransformer, load
from skvae._fast import replay
from skvae._fast.optimizers import Fused
from skvae._fast.replay import Replay
from skvae.architectures import Conv
from skvae.inits import LinearInit
from skvae.likelihoods import Gaussian
from skvae.objectives import DReG
from skvae.priors import Flow

SMALL = {"hidden_layer_sizes": (8,), "batch_size": 16, "random_state": 0}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Recorder(TorchDispatchMode):
    """Keeps the operations of a step, with the tensors and the numbers that they take and give."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def replay(self):
        """Do them over again in the same memory. As in a CUDA graph, no line of Python is."""
        for function, args, kwargs, result in self.calls:
            taken = {part.untyped_storage().data_ptr() for part in tensors((args, kwargs))}
            for old, new in zip(tensors(result), tensors(function(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in taken:  # else it is a view, or was written in place
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that any machine has. A list of all that were captured."""
    made, nets, init = [], [], Replay.__init__

    def captured(work, stream):
        """Record the step, which is taken, and take it back: a capture takes none."""
        stack, optimizer = nets[-1].stack_, nets[-1].optimizer_
        states = chain.from_iterable(state.values() for state in optimizer.state.values())
        kept = [(part, part.detach().clone()) for part in (*stack.wholes, *stack.average_wholes, *states)]
        assert len(kept) > 2 * len(stack.wholes)
        with Recorder() as recorder:
            result = work()
        for part, before in kept:
            part.data.copy_(before)
        made.append(recorder)
        return result, recorder.replay

    monkeypatch.setattr(replay, "captured", captured)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(Replay, "__init__", lambda self, net: (nets.append(net), init(self, net))[1])
    monkeypatch.setattr(Replay, "covers", lambda net: net.fast_ is not None and isinstance(net.optimizer_, Fused))
    return made


def weights(vae):
    return torch.nn.utils.parameters_to_vector(vae.net_.module_.parameters()).detach().cpu()


def one_by_one(monkeypatch):
    monkeypatch.setattr(replay, "_LEAST_STEPS", 10**6)


class Sets(Callback):
    """Sets attributes of the net, or options of its optimizer, in the third epoch."""

    def __init__(self, **values):
        self.values = values

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            self.set(net)

    def set(self, net):
        for name, value in self.values.items():
            if hasattr(net, name) and name != "lr":
                setattr(net, name, value)
            else:
                for group in net.optimizer_.param_groups:
                    group[name] = value


class SetsInMidEpoch(Sets):
    def on_epoch_begin(self, net, **kwargs):
        self.n_batches = 0

    def on_batch_begin(self, net, **kwargs):
        self.n_batches += 1
        if len(net.history) == 2 and self.n_batches == 2:
            self.set(net)


class Freezes(Callback):
    def on_epoch_begin(self, net, **kwargs):
        net.module_.encoder.requires_grad_(len(net.history) != 3)


OneCycle = torch.optim.lr_scheduler.OneCycleLR
CASES = {
    "plain": ([], {}, 1),
    "two sizes of batches": ([], {"batch_size": 15}, 2),
    "rates fall": ([LRScheduler("ExponentialLR", gamma=0.7)], {}, 1),
    "another rate": ([Sets(lr=0.03)], {}, 1),
    "other options": ([Sets(betas=[0.5, 0.9])], {}, 2),
    "other options in mid-epoch": ([SetsInMidEpoch(weight_decay=0.5)], {"batch_size": 15}, 3),  # one of them before
    "options of each step": ([LRScheduler(OneCycle, max_lr=0.02, total_steps=48, step_every="batch")], {}, 0),
    "another average": ([Sets(ema_decay=0.5)], {}, 2),
    "another algorithm": ([Sets(fused=False)], {}, 1),
    "frozen for an epoch": ([Freezes()], {}, 1),
    "both phases": ([], {"early_stopping": True, "n_iter_no_change": 2}, 6),  # and a map's; batches of 14 and of 15
    "folds": ([], {"early_stopping": "cv"}, 3),
    "feature noise": ([], {"likelihood": Gaussian("feature"), "prior": "standard_normal"}, 1),
}


@pytest.mark.parametrize(("callbacks", "params", "n_graphs"), CASES.values(), ids=CASES)
def test_replayed_steps_are_those_taken_one_by_one(callbacks, params, n_graphs, table, graphs, monkeypatch):
    X = table(n_rows=128)
    params = SMALL | {"max_iter": 6, "early_stopping": False, "callbacks": callbacks} | params
    replayed = VAETransformer(2, **params).fit(X)
    assert len(graphs) == n_graphs
    one_by_one(monkeypatch)
    expected = VAETransformer(2, **params).fit(X)
    assert len(graphs) == n_graphs
    assert torch.equal(weights(replayed), weights(expected))
    assert np.array_equal(replayed.score_samples(X), expected.score_samples(X))
    assert replayed.net_.history[:, "train_loss"] == expected.net_.history[:, "train_loss"]


@pytest.mark.parametrize("columns", [{}, {"condition_features": ["kind"]}, {"marginal": "standardize"}])
def test_tables_of_words_and_holes_are_replayed(columns, graphs, monkeypatch):
    X, params = frame(200), {"max_iter": 5, "early_stopping": False, **SMALL, **columns}
    replayed = VAETransformer(2, **params).fit(X).score_samples(X)
    assert len(graphs) == 2  # batches of 15 and 16
    one_by_one(monkeypatch)
    assert np.array_equal(replayed, VAETransformer(2, **params).fit(X).score_samples(X))


def test_phases_whose_batches_have_the_same_fields_have_graphs_of_their_own(table, graphs, monkeypatch):
    """Without a linear model in the density there is no noise; the first phase balances gradients all the same."""
    X, params = table(n_rows=1100), {"init": LinearInit(share=0), "max_iter": 8, "early_stopping": True}
    params |= {"hidden_layer_sizes": (8,), "batch_size": 66, "random_state": 0}  # 15 batches of 66
    replayed = VAETransformer(3, **params).fit(X)
    assert len(graphs) == 2
    one_by_one(monkeypatch)
    assert torch.equal(weights(replayed), weights(VAETransformer(3, **params).fit(X)))


def test_a_default_fit_has_a_graph_for_each_phase(graphs):
    """Noise on the encoder's inputs is a field of the first phase's batches; a map has one more, to place its rows."""
    X = load_iris().data
    for z_dim, n_graphs in ((3, 2), (2, 3)):
        graphs.clear()
        assert np.isfinite(VAETransformer(z_dim, random_state=0).fit(X).score(X))
        assert len(graphs) == n_graphs


@pytest.mark.parametrize("at", [{4}, {20}, {3, 6, 9, 12}], ids=["early", "late", "again and again"])
def test_an_epoch_that_is_undone_ends_its_graphs(at, table, graphs, monkeypatch):
    """The optimizer begins anew then, in other memory, and makes its state before a step is captured."""
    X, step = table(n_rows=48), Replay.step

    def diverging(self, batch, factor):
        terms = step(self, batch, factor)
        calls.append(1)
        return {name: part * torch.nan for name, part in terms.items()} if len(calls) in at else terms

    monkeypatch.setattr(Replay, "step", diverging)
    found = []
    for replays in (True, False):
        calls = []
        if not replays:
            one_by_one(monkeypatch)
        with pytest.warns(ConvergenceWarning, match="Training diverged"):
            found.append(VAETransformer(2, max_iter=30, early_stopping=False, **SMALL).fit(X))
    assert graphs
    assert torch.equal(*map(weights, found))


def test_a_step_that_cannot_be_captured_is_taken(table, graphs, monkeypatch):
    X, params = table(n_rows=64), {"max_iter": 5, "early_stopping": False, **SMALL}
    tries = []

    def fails(work, stream):
        tries.append(1)
        raise replay._CannotCapture

    monkeypatch.setattr(replay, "captured", fails)
    found = VAETransformer(2, **params).fit(X)
    assert len(tries) == 1
    one_by_one(monkeypatch)
    assert torch.equal(weights(found), weights(VAETransformer(2, **params).fit(X)))


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


REPLAYED = {
    "default": {},
    "last state": {"early_stopping": False},
    "one fold": {"early_stopping": True},
    "zeros and ones": {"likelihood": "bernoulli"},
    "counts": {"likelihood": "poisson"},
    "spread counts": {"likelihood": "negative_binomial"},
    "unit interval": {"likelihood": "continuous_bernoulli"},
    "vamp": {"prior": "vamp"},
    "standard normal": {"prior": "standard_normal"},
    "rates fall": {"callbacks": [LRScheduler("ExponentialLR", gamma=0.9)], "early_stopping": False},
    "other options": {"callbacks": [Sets(betas=(0.5, 0.9))], "early_stopping": False},
}


@needs_gpu
@pytest.mark.parametrize("params", REPLAYED.values(), ids=REPLAYED)
def test_a_fit_on_a_gpu_is_the_same_with_and_without_graphs(params, table, monkeypatch):
    X, made, captured = table("poisson", n_rows=300, n_features=16), [], replay.captured
    if params.get("likelihood") in ("bernoulli", "continuous_bernoulli"):
        X = X > 2 if params["likelihood"] == "bernoulli" else X / X.max()
    monkeypatch.setattr(replay, "captured", lambda *args: (made.append(1), captured(*args))[1])
    params = {"device": "cuda", "random_state": 0} | params
    replayed = VAETransformer(2, **params).fit(X)
    assert made
    assert replayed.net_.replay_ is None
    one_by_one(monkeypatch)
    expected = VAETransformer(2, **params).fit(X)
    assert np.array_equal(replayed.score_samples(X), expected.score_samples(X))
    assert replayed.net_.history[:, "train_loss"] == expected.net_.history[:, "train_loss"]


@needs_gpu
@pytest.mark.parametrize(
    "params",
    [
        {"prior": Flow(2)},
        {"architecture": Conv((4, 4)), "likelihood": "gaussian"},
        {"objective": DReG(3)},
        {"optimizer": "rmsprop"},
    ],
)
def test_what_has_no_graphs_is_trained_on_a_gpu(params, table):
    X = table("poisson", n_rows=300, n_features=16)
    on_gpu, on_cpu = (VAETransformer(2, device=device, random_state=0, **params).fit(X) for device in ("cuda", "cpu"))
    assert on_gpu.score(X) == pytest.approx(on_cpu.score(X), abs=0.5)  # nats, of another training as good


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
def test_an_epoch_that_is_undone_on_a_gpu(table):
    vae = VAETransformer(2, device="cuda", learning_rate=100.0, max_iter=30, early_stopping=False, **SMALL)
    with pytest.warns(ConvergenceWarning, match="Training diverged"):
        vae.fit(table(n_rows=48))
    assert np.isfinite(vae.score(table(n_rows=48)))


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
