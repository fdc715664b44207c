"""Draws of missing cells are as wide as cells that the model has not seen want them: learned, kept, and 1 elsewhere."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from skvae import VAETransformer, load
from skvae._data.blocks import scaled
from skvae._model.calibration import spread_factor
from skvae.likelihoods import Gaussian

N_FEATURES = 8
SMALL = {"hidden_layer_sizes": 8, "max_iter": 3, "random_state": 0}
LINEAR = {"hidden_layer_sizes": (), "likelihood": Gaussian("feature"), "random_state": 0}


def factors(n, seed):
    """Rows of a linear factor model, the same for all seeds."""
    loadings = np.random.default_rng(0).normal(size=(2, N_FEATURES))
    rng = np.random.default_rng([1, seed])
    return rng.normal(size=(n, 2)) @ loadings + 0.5 * rng.normal(size=(n, N_FEATURES))


def holed(X, share=0.3, seed=0):
    return np.where(np.random.default_rng([2, seed]).random(X.shape) < share, np.nan, X)


def coverage(vae, X, seen):
    """Share of the missing cells within 90 % intervals."""
    draws, hidden = vae.impute(seen, sample=True, n_draws=99, random_state=0), np.isnan(seen)
    low, high = np.sort(draws[:, hidden], axis=0)[[4, 94]]
    return ((low <= X[hidden]) & (X[hidden] <= high)).mean()


@pytest.fixture(scope="module")
def linear():
    """A model that knows its table, of complete rows."""
    return VAETransformer(2, **LINEAR).fit(factors(2000, 0))


@pytest.mark.parametrize("confidence", [0.7, 1.0, 1.4])
def test_intervals_cover_what_they_say_whatever_the_model_says(linear, confidence):
    """Noise is a fraction or a multiple of the true one. Of the 1,900 cells that tell the factor, and of those that are
    covered or not, shares have a standard error of 0.7 %."""
    vae = pickle.loads(pickle.dumps(linear))
    assert vae._spread == 1
    with torch.no_grad():
        vae.module_.likelihood.log_noise -= float(np.log(confidence))
    found = []
    for seed in range(3):
        X = factors(1600, 1 + seed)
        seen = holed(X, seed=seed)
        x = scaled(seen[:800], vae.net_.offset, vae.net_.scale)
        vae._spread = spread_factor([vae.module_], x, [torch.arange(800)], seed)
        found.append(coverage(vae, X[800:], seen[800:]))
    assert found == pytest.approx([0.9] * 3, abs=0.03)
    assert vae._spread == pytest.approx(confidence, rel=0.15)  # the share of z in the variance is as it was


def test_small_tables_are_covered():
    """Sixty rows of eight features, on average over tables: without the factor, intervals are too narrow."""
    found = {"plain": [], "calibrated": []}
    for seed in range(6):
        X = factors(60, seed)
        seen = holed(X, seed=seed)
        vae = VAETransformer(2, random_state=seed).fit(seen)
        found["calibrated"].append(coverage(vae, X, seen))
        vae._spread = 1.0
        found["plain"].append(coverage(vae, X, seen))
    assert np.mean(found["plain"]) < 0.87
    assert 0.87 < np.mean(found["calibrated"]) < 0.93  # of 860 cells, and as many to learn from


@pytest.mark.filterwarnings("ignore:No latent unit is active")
@pytest.mark.parametrize("case", ["complete", "no judge", "chunk", "few rows", "discrete"])
def test_nothing_is_known_without_unseen_cells(case):
    X = factors(200, 0)
    params = {"no judge": {"early_stopping": False}, "discrete": {"likelihood": "bernoulli"}}.get(case, {})
    X = (X > 0).astype(float) if case == "discrete" else X
    X = X[:12] if case == "few rows" else X
    vae = VAETransformer(2, **SMALL, **params)
    getattr(vae, "partial_fit" if case == "chunk" else "fit")(X if case == "complete" else holed(X))
    assert vae._spread == 1


@pytest.mark.parametrize("params", [{}, {"early_stopping": True}])
def test_the_factor_is_of_the_fit_and_goes_with_the_model(params, tmp_path):
    X = holed(factors(300, 0))
    vae, again = (VAETransformer(2, **SMALL | params).fit(X) for _ in range(2))
    assert vae._spread == again._spread != 1
    vae.save(tmp_path / "vae.safetensors")
    for kept in (again, load(tmp_path / "vae.safetensors"), pickle.loads(pickle.dumps(vae))):
        draws = (model.impute(X, sample=True, n_draws=3, random_state=0) for model in (kept, vae))
        np.testing.assert_array_equal(*draws)
    former = vae._spread
    assert vae.partial_fit(X)._spread == former


def test_rows_of_a_file_have_the_factor_of_the_array(tmp_path):
    X = holed(factors(1200, 0))
    np.save(tmp_path / "X.npy", X)
    read = np.load(tmp_path / "X.npy", mmap_mode="r")
    vae, other = (VAETransformer(2, **SMALL).fit(rows) for rows in (X, read))
    assert vae._spread == other._spread != 1


def test_real_values_are_spread_about_their_mean_and_others_are_not():
    X = pd.DataFrame(factors(200, 0)[:, :3], columns=list("abc"))
    X["kind"] = pd.Categorical(np.where(X["a"] > 0, "u", "v"))
    X = X.mask(np.random.default_rng(0).random(X.shape) < 0.3)
    vae, real, found = VAETransformer(2, marginal="standardize", **SMALL).fit(X), ["a", "b", "c"], []
    for vae._spread in (1.0, 1.5, 2.0):
        found.append(vae.impute(X, sample=True, n_draws=4, random_state=0))
    means = []
    for one, more, most in zip(*found, strict=True):
        assert (one["kind"] == most["kind"]).all()
        np.testing.assert_allclose(2 * more[real], one[real] + most[real], atol=1e-5)
        assert ((one != most)[real] == X[real].isna()).all(axis=None)
        means.append(2 * one[real] - most[real])
    np.testing.assert_allclose(means, np.tile(means[0], (4, 1, 1)), atol=1e-5)


def test_cells_are_drawn_calibrated_given_others_too():
    X = holed(factors(200, 0))
    vae = VAETransformer(2, **SMALL).fit(X)
    row = np.where(np.arange(N_FEATURES) < 3, 0.5, np.nan)
    spreads = []
    for vae._spread in (1.0, 2.0):
        spreads.append(vae.sample(200, given=row, random_state=0).std(axis=0))
    np.testing.assert_allclose(spreads[1], 2 * spreads[0], rtol=1e-5, atol=1e-6)
