"""Random tables and random parameters: a fit ends with finite numbers, or refuses before it trains.

200 cases by default, always the same; ``SKVAE_CASES=2000 pytest tests/test_faults.py`` draws other ones each time.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from skvae import VAETransformer
from skvae._model.module import VAE
from skvae._training.net import Net
from skvae.architectures import MLP
from skvae.inits import LinearInit
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.objectives import ELBO

N_CASES = int(os.environ.get("SKVAE_CASES", 0))

KINDS = {  # (generator, shape) -> values; scaled afterwards, unless they are to stay in a likelihood's domain
    "normal": lambda rng, shape: rng.normal(size=shape),
    "low rank": lambda rng, shape: rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1])),
    "constant": lambda rng, shape: np.full(shape, rng.choice([0, 1, -2.5, 0.1])),
    "outliers": lambda rng, shape: rng.standard_cauchy(size=shape) ** 3,
    "one outlier": lambda rng, shape: (
        rng.normal(size=shape) + 1e6 * (np.arange(shape[0] * shape[1]) == 0).reshape(shape)
    ),
    "offset": lambda rng, shape: 1e6 + rng.normal(size=shape),
    "unit interval": lambda rng, shape: rng.uniform(size=shape),
    "near the ends": lambda rng, shape: rng.beta(0.01, 0.01, size=shape),
    "binary": lambda rng, shape: (rng.uniform(size=shape) < rng.uniform()).astype(float),
    "rare": lambda rng, shape: (rng.uniform(size=shape) < 0.02).astype(float),
    "counts": lambda rng, shape: rng.poisson(rng.gamma(1, 5, size=shape)).astype(float),
    "huge counts": lambda rng, shape: np.floor(10 ** rng.uniform(0, 9, size=shape)),
    "ties": lambda rng, shape: rng.integers(-3, 4, size=shape).astype(float),
}
DOMAINS = {  # kinds that a likelihood takes as they are
    "bernoulli": ["binary", "rare", "unit interval", "near the ends"],
    "continuous_bernoulli": ["binary", "rare", "unit interval", "near the ends"],
    "poisson": ["counts", "huge counts", "binary", "rare", "unit interval"],
    "negative_binomial": ["counts", "huge counts", "binary", "rare", "unit interval"],
}
CONTAINERS = {
    "array": np.asarray,
    "Fortran": np.asfortranarray,
    "read-only": lambda X: np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape) if X.dtype != object else X,
    "strided": lambda X: np.repeat(np.repeat(X, 2, axis=0), 2, axis=1)[::2, ::2],
    "pandas": lambda X: pd.DataFrame(X),
    "polars": lambda X: pl.DataFrame({f"x{i}": column.tolist() for i, column in enumerate(X.T)}),
    "lists": lambda X: X.tolist(),
}
DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint8", "bool", "object"]
sizes = st.one_of(st.integers(1, 12), st.integers(1, 200))


def in_range(X, dtype):
    """X as `dtype`, which must be able to hold it."""
    if dtype == "object":
        return X.astype(object)
    if dtype == "bool":
        return np.greater(X, np.median(X))
    info = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return np.clip(X, float(info.min) / 2, float(info.max) / 2).astype(dtype)


@st.composite
def tables(draw, likelihood):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    domain = DOMAINS.get(likelihood) if draw(st.integers(0, 9)) else None  # one in ten may leave it
    kind = draw(st.sampled_from(domain or list(KINDS)))
    X = KINDS[kind](rng, (draw(sizes), draw(sizes)))
    if domain is None and draw(st.booleans()):
        X = X * 10.0 ** draw(st.integers(-30, 30))
    elif domain is None and draw(st.booleans()):
        X = X * 10.0 ** rng.uniform(-15, 15, size=X.shape[1])
    spoil = draw(st.sampled_from(["", "", "constant column", "equal columns", "equal rows"]))
    if spoil == "constant column":
        X[:, 0] = X[0, 0]
    elif spoil == "equal columns":
        X[:] = X[:, :1]
    elif spoil == "equal rows":
        X[len(X) // 2 :] = X[0]
    dtype = draw(st.sampled_from(DTYPES if domain is None else ["float64", "float64", *DTYPES]))
    container = draw(st.sampled_from(list(CONTAINERS)))
    note(f"{kind}, {X.shape}, {spoil or 'whole'}, {dtype}, {container}, {np.abs(X).max():.1e}")
    return CONTAINERS[container](in_range(np.clip(X, -1e30, 1e30), dtype))


@st.composite
def estimators(draw):
    likelihood = draw(
        st.sampled_from(["auto", *LIKELIHOODS]) | st.builds(Gaussian, st.sampled_from(["feature", "shared", "row"]))
    )
    params = {
        "z_dim": st.integers(1, 5) | st.integers(1, 220),
        "hidden_layer_sizes": st.sampled_from([(), (1,), (8,), 16, (8, 4), (64,)]),
        "architecture": st.builds(MLP, st.sampled_from(["relu", "tanh", "gelu", "softplus"])),
        "init": st.just("random") | st.builds(LinearInit, weight_decay=st.sampled_from([0.0, 1.0, 300.0, 1e6])),
        "objective": st.builds(ELBO, st.sampled_from([0.0, 1e-3, 0.5, 1.0, 4.0, 1e3])),
        "learning_rate": st.sampled_from([1e-5, 1e-3, 1e-2, 0.1]),
        "batch_size": st.sampled_from(["auto", 1, 7, 64, 1000]),
        "max_iter": st.integers(1, 4),
        "early_stopping": st.sampled_from([True, False, False, "auto"]),
        "validation_fraction": st.sampled_from([0.1, 0.5, 0.9]),
        "n_iter_no_change": st.sampled_from(["auto", 1]),
        "optimizer": st.sampled_from(["adamw", "adam", "nadam", "rmsprop", "sgd"]),
        "n_draws": st.sampled_from([1, 3, 100]),
        "random_state": st.integers(0, 2**31),
    }
    return VAETransformer(likelihood=likelihood, **{name: draw(values) for name, values in params.items()})


def frozen(X):
    """The values of a container, to be compared before and after."""
    return np.array(X, dtype=object).tolist()


@pytest.fixture(scope="module")
def steps():
    """A list that grows with each gradient."""
    with pytest.MonkeyPatch.context() as patch:
        seen, gradient = [], Net.gradient
        patch.setattr(Net, "gradient", lambda self, batch: (seen.append(1), gradient(self, batch))[1])
        yield seen


def fit(vae, X):
    """Fit, and return the words of a refusal."""
    try:
        vae.fit(X)
    except ValueError as error:
        return str(error)
    return ""


def results(vae, X):
    """All the numbers that a fitted model gives."""
    Z = vae.transform(X)
    return {
        "transform": Z,
        "posterior": np.stack(vae.posterior(X)),
        "inverse_transform": vae.inverse_transform(Z),
        "score_samples": vae.score_samples(X),
        "sample": vae.sample(5, random_state=0),
        "noisy sample": vae.sample(5, noise=True, random_state=0),
        "loss_curve_": vae.loss_curve_,
        "kl_curve_": vae.kl_curve_,
        "kl_per_unit_": vae.kl_per_unit_,
        "validation_scores_": vae.validation_scores_ or [0.0],
    }


@settings(
    max_examples=N_CASES or 100,
    derandomize=not N_CASES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_fit_ends_with_finite_numbers_or_refuses_before_training(steps, data):
    vae = data.draw(estimators())
    X = data.draw(tables(vae.likelihood))
    before = frozen(X)
    steps.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No latent unit is active|Training diverged", ConvergenceWarning)
        refusal = fit(vae, X)
        event(refusal[:40])
        outputs = {} if refusal else results(vae, X)
    if vae.optimizer == "sgd" and "at a learning rate of" in refusal:  # its steps are as long as the gradients
        return
    assert not (refusal and steps), refusal
    for name, values in outputs.items():
        assert np.isfinite(np.asarray(values, dtype=float)).all(), name  # a frame of objects comes out as one
    assert frozen(X) == before


# Threads, processes, memory


def fit_and_score(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5)) + rng.normal(size=(40, 5))
    early_stopping = (True, False, "auto")[seed % 3]
    params = {"hidden_layer_sizes": (8,), "batch_size": 16, "max_iter": 4, "early_stopping": early_stopping}
    vae = VAETransformer(2, random_state=seed, **params).fit(X)
    return joblib.hash(results(vae, X))


def in_processes(seeds):
    """Four processes, forked from one that has done the imports."""
    code = (
        "import multiprocessing, torch; torch.set_num_threads(1); from test_faults import fit_and_score;"
        f"print(*multiprocessing.get_context('fork').Pool(4).map(fit_and_score, {seeds}, chunksize=1))"
    )
    folder = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.split()


def in_threads(seeds):
    return Parallel(n_jobs=8, prefer="threads")(delayed(fit_and_score)(seed) for seed in seeds)


@pytest.mark.parametrize("run", [in_threads, in_processes])
def test_many_fits_at_once_are_as_one_alone(run):
    seeds = [seed % 6 for seed in range(16)]
    alone = [fit_and_score(seed) for seed in range(6)]
    assert len(set(alone)) == 6
    assert run(seeds) == [alone[seed] for seed in seeds]


def test_one_model_scores_in_many_threads(table):
    X = table(n_rows=300)
    vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=2, early_stopping=False, random_state=0).fit(X)
    together = Parallel(n_jobs=8, prefer="threads")(delayed(results)(vae, X[i:]) for i in range(24))
    assert [joblib.hash(found) for found in together] == [joblib.hash(results(vae, X[i:])) for i in range(24)]


@pytest.fixture
def small_device(monkeypatch):
    """A function that lets a method run out of memory from its n-th call on."""

    def limit(owner, method, n_calls):
        inner, calls = getattr(owner, method), []

        def limited(self, *args, **kwargs):
            calls.append(1)
            if len(calls) >= n_calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(owner, method, limited)

    return limit


def test_memory_that_does_not_suffice_for_training(small_device, table):
    X, params = table(), {"hidden_layer_sizes": (8,), "batch_size": 16, "early_stopping": False, "random_state": 0}
    vae = VAETransformer(2, max_iter=2, **params).fit(X)
    Z = vae.transform(X)
    small_device(Net, "train_step", 3)
    message = r"^The device is out of memory\..*Lower `batch_size` or `hidden_layer_sizes`, .* \(CUDA out of memory\."
    fresh = VAETransformer(2, max_iter=2, **params)
    with pytest.raises(torch.OutOfMemoryError, match=message):
        fresh.fit(X)
    assert not hasattr(fresh, "net_")
    with pytest.raises(torch.OutOfMemoryError, match=message):
        vae.fit(X)
    np.testing.assert_array_equal(vae.transform(X), Z)  # the former fit stays


def test_memory_that_does_not_suffice_for_scoring(small_device, table):
    X = table()
    vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=2, early_stopping=False, random_state=0).fit(X)
    small_device(VAE, "log_weights", 1)
    with pytest.raises(torch.OutOfMemoryError, match=r"^The device is out of memory\. Lower `n_draws`"):
        vae.score(X)
    assert np.isfinite(vae.transform(X)).all()


# Ctrl-C: whoever called fit sees it


@pytest.fixture
def ctrl_c(monkeypatch):
    """A function after which the n-th gradient is a Ctrl-C; returns the list of gradients."""

    def press(n_calls):
        calls, gradient = [], Net.gradient

        def interrupted(self, batch):
            calls.append(1)
            if len(calls) == n_calls:
                raise KeyboardInterrupt
            return gradient(self, batch)

        monkeypatch.setattr(Net, "gradient", interrupted)
        return calls

    return press


CUT = {"hidden_layer_sizes": (8,), "max_iter": 20, "batch_size": 16, "random_state": 0}


@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
@pytest.mark.parametrize("n_calls", [1, 7, 60])
def test_ctrl_c_ends_a_search(early_stopping, n_calls, ctrl_c, table):
    """The fit that was cut short gets no score, and no other one begins."""
    calls = ctrl_c(n_calls)
    search = GridSearchCV(VAETransformer(2, early_stopping=early_stopping, **CUT), {"z_dim": [1, 2, 3]}, cv=3)
    with pytest.raises(KeyboardInterrupt):
        search.fit(table())
    assert len(calls) == n_calls
    assert not hasattr(search, "cv_results_")


def test_ctrl_c_ends_a_cross_validation(ctrl_c, table):
    calls = ctrl_c(5)
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(VAETransformer(2, early_stopping=False, **CUT), table(), cv=3)
    assert len(calls) == 5


@pytest.mark.parametrize("method", ["fit", "fit_transform", "partial_fit"])
def test_after_ctrl_c_the_model_is_fitted(method, ctrl_c, table):
    X, vae = table(), VAETransformer(2, early_stopping=False, **CUT)
    ctrl_c(3)
    with pytest.raises(KeyboardInterrupt, match="The model is fitted"):
        getattr(vae, method)(X)
    assert np.isfinite(vae.score(X))
    assert vae.n_iter_ == 1  # an epoch that is cut short counts for the rows it saw
    assert vae.partial_fit(X).n_iter_ == 2


def test_after_ctrl_c_the_step_of_a_pipeline_is_fitted(ctrl_c, table):
    X, pipeline = table(), make_pipeline(VAETransformer(2, early_stopping=False, **CUT), LogisticRegression())
    ctrl_c(9)
    with pytest.raises(KeyboardInterrupt):
        pipeline.fit(X, np.arange(len(X)) % 2)
    assert pipeline[0].n_iter_ == 2
    with pytest.raises(NotFittedError):
        pipeline.predict(X)
