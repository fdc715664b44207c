"""Fixtures shared by the tests."""

import os
import signal
from functools import partial

os.environ["SCIPY_ARRAY_API"] = "1"  # before scikit-learn is imported, which otherwise skips a check

import numpy as np
import pytest
import torch

from skvae._model.module import VAE
from skvae._training.net import Net, build_net
from skvae.architectures import MLP, NetworkSpec
from skvae.priors import StandardNormal

torch.set_num_threads(1)  # the models here are tiny: threads would only wait for each other


def _table(likelihood="gaussian", n_rows=60, n_features=5, seed=0):
    """Rows with two common factors, in the domain of a likelihood."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, n_features))
    return {
        "gaussian": lambda: 3 + 2 * signal + rng.normal(size=signal.shape),
        "bernoulli": lambda: (rng.logistic(size=signal.shape) < 2 * signal).astype(float),
        "continuous_bernoulli": lambda: 1 / (1 + np.exp(-signal - 0.5 * rng.normal(size=signal.shape))),
        "poisson": lambda: rng.poisson(np.exp(1 + 0.5 * signal)).astype(float),
        "negative_binomial": lambda: rng.poisson(np.exp(1 + 0.5 * signal) * rng.gamma(2, 0.5, signal.shape)) * 1.0,
    }[likelihood]()


@pytest.fixture(scope="session")
def table():
    """A function that makes a small data set for the name of a likelihood."""
    return _table


@pytest.fixture(scope="session")
def normal():
    """A function that draws a standard normal tensor from an own stream."""

    def draw(*shape, seed=0, dtype=torch.float32):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return draw


@pytest.fixture(scope="session")
def make_vae():
    """A function that builds an untrained VAE around a likelihood."""

    def make(likelihood, n_features, z_dim=2, hidden_layer_sizes=(), seed=0, prior=None):
        rng = torch.Generator().manual_seed(seed)
        sizes = {"hidden_layer_sizes": hidden_layer_sizes, "generator": rng}
        encoder, decoder, prior = MLP(), MLP(), (prior or StandardNormal())
        likelihood.build(n_features)
        encoder.build(NetworkSpec(n_features, 2 * z_dim, **sizes))
        decoder.build(NetworkSpec(z_dim, likelihood.n_raw * n_features, n_raw=likelihood.n_raw, **sizes))
        prior.build(z_dim, n_features, rng)
        return VAE(encoder, decoder, likelihood, prior)

    return make


@pytest.fixture
def n_steps(monkeypatch):
    """A list that grows by the batch size with each gradient."""
    sizes, gradient = [], Net.gradient

    def counted(self, batch):
        sizes.append(len(batch))
        return gradient(self, batch)

    monkeypatch.setattr(Net, "gradient", counted)
    return sizes


@pytest.fixture(autouse=True, scope="session")
def auto_is_the_cpu():
    """So that tests are the same everywhere; those of a GPU name it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: False)
        yield


@pytest.fixture
def press_ctrl_c():
    """A function that does; a program that a shell has started in the background would ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, former)


@pytest.fixture
def global_streams():
    """A function that returns the states of the global random streams, to be compared before and after."""

    def states():
        _, keys, *rest = np.random.get_state()  # noqa: NPY002 (the legacy stream is what must not move)
        return [torch.get_rng_state().tolist(), keys.tolist(), rest]

    return states


@pytest.fixture
def unaveraged(monkeypatch):
    """Fits whose average is the last weights."""
    monkeypatch.setattr("skvae._estimator.training.build_net", partial(build_net, ema_decay=0.0))
