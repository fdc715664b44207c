"""Chunks as one table, in `partial_fit`; and rows that stand for a table."""

import pickle
from itertools import product

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.decomposition import FactorAnalysis
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from skvae import VAETransformer, load
from skvae._data.stream import Stream
from skvae._system.random import subsample
from skvae.objectives import ELBO

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 10, "random_state": 0}
silent = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def chunks(X, size):
    return (X[start : start + size] for start in range(0, len(X), size))


@pytest.mark.parametrize(
    ("data", "size", "seed"),
    [
        *product([load_iris, load_wine], [1, 2], [0]),
        *product([load_iris, load_wine, lambda: load_diabetes(scaled=False)], [10, 50, 100], [1]),
    ],
)
@silent  # the first chunks have one row
def test_a_table_in_chunks_of_any_size_ends_no_worse_than_the_linear_model(data, size, seed):
    X = data().data
    train, test = train_test_split(X, test_size=0.3, random_state=seed)
    vae = VAETransformer(2, random_state=seed)
    for _ in range(3 if size < 10 else 10):
        for chunk in chunks(train, size):
            vae.partial_fit(chunk)
    scaler = StandardScaler().fit(train)
    linear = FactorAnalysis(2).fit(scaler.transform(train)).score(scaler.transform(test))
    assert vae.score(test) >= linear - np.log(scaler.scale_).sum() - 0.05


@silent
def test_a_first_chunk_of_one_row_ruins_nothing(table):
    X = 100 + 30 * table(n_rows=600)
    whole = VAETransformer(2, **SMALL).fit(X)
    vae = VAETransformer(2, **SMALL).partial_fit(X[:1])
    for chunk in chunks(X[1:], 100):
        vae.partial_fit(chunk)
    assert vae.score(X) > whole.score(X) - 0.3
    assert vae.n_iter_ == 7
    assert np.isfinite(vae.loss_curve_).all()


def decay(vae):
    return max(group["weight_decay"] for group in vae.net_.optimizer_.param_groups)


@silent
def test_weight_decay_is_that_of_all_rows_however_they_come(table):
    X = table(n_rows=1500)
    whole, vae = VAETransformer(2, **SMALL).fit(X), VAETransformer(2, **SMALL)
    for _ in range(2):
        for chunk in chunks(X, 50):
            vae.partial_fit(chunk)
    assert decay(vae) == decay(whole) == 300 / 1500
    assert decay(vae.partial_fit(X[::-1])) == 300 / 3000


@silent
def test_curves_go_on_in_the_units_of_the_data_when_the_start_is_made_anew(table):
    X = 1000 * table(n_rows=40)
    vae = VAETransformer(2, **SMALL).partial_fit(X[:10])
    first = vae.loss_curve_[0]
    vae.partial_fit(X[10:])
    assert vae.n_iter_ == len(vae.loss_curve_) == 2
    assert vae.loss_curve_[0] == pytest.approx(first, abs=1e-4)  # float32


def test_losses_in_other_units_are_not_to_be_beaten():
    """A start that is made anew scales the rows anew: the first chunk, of one factor, has a loss that no later has."""
    rng, best = np.random.default_rng(0), []
    first = rng.normal(size=(200, 1)) + 1e-3 * rng.normal(size=(200, 6))
    vae = VAETransformer(2, hidden_layer_sizes=(8,), random_state=0)
    for X in (first, rng.normal(size=(200, 6))):
        vae.partial_fit(X)
        best.append(vae.net_.history[-1, "train_loss_best"])
    losses = vae.net_.history[:, "train_loss"]
    assert losses[0] < losses[1]
    assert best == [True, True]


@pytest.mark.parametrize("keep", ["pickle", "file"])
@silent
def test_a_stream_goes_on_after_it_was_kept(keep, table, tmp_path):
    X = table(n_rows=60)
    vae, kept = (VAETransformer(2, **SMALL).partial_fit(X[:1]).partial_fit(X[1:3]) for _ in range(2))
    if keep == "file":
        kept.save(tmp_path / "vae")
    kept = load(tmp_path / "vae") if keep == "file" else pickle.loads(pickle.dumps(kept))
    for chunk in (X[3:10], X[10:40], X[40:], X[:3]):
        vae.partial_fit(chunk), kept.partial_fit(chunk)
        np.testing.assert_array_equal(kept.score_samples(X), vae.score_samples(X))
        np.testing.assert_array_equal(kept.kl_per_unit_, vae.kl_per_unit_)


def test_rows_to_start_from_are_dropped_when_they_are_enough(table):
    X = table(n_rows=1000, n_features=20)
    vae = VAETransformer(2, **SMALL).partial_fit(X[:500])
    held = len(pickle.dumps(vae))
    assert len(pickle.dumps(vae.partial_fit(X[500:]))) < held - X[:500].nbytes / 2


def test_a_refused_chunk_changes_nothing(table):
    X = table()
    vae = VAETransformer(2, **SMALL).partial_fit(X[:20])
    before = pickle.dumps(vae._stream)
    with pytest.raises(ValueError, match="infinity"):
        vae.partial_fit(np.full((3, 5), np.inf))
    assert pickle.dumps(vae._stream) == before


def test_a_start_is_made_each_time_the_rows_have_doubled_until_they_are_enough():
    X = np.random.default_rng(0).normal(size=(1200, 2))
    stream, starts = Stream(X[:0]), []
    for chunk in chunks(X, 10):
        stream, rows = stream.take(chunk)
        starts += [] if rows is None else [len(rows)]
    assert starts == [10, 20, 40, 80, 160, 320, 640, 1000]
    assert stream.rows is None
    assert stream.n_rows == 1200


@pytest.mark.parametrize("size", [1, 7, 50, 150])
def test_a_table_that_begins_again_is_counted_once(size):
    X = np.random.default_rng(0).normal(size=(150, 2))
    stream, starts = Stream(X[:0]), []
    for _ in range(3):
        for chunk in chunks(X, size):
            stream, rows = stream.take(chunk)
            starts += [] if rows is None else [len(rows)]
    assert 150 <= stream.n_rows < 150 + 32 + size
    assert starts[-1] >= 150


# Rows that stand for a table


@pytest.mark.parametrize("order", ["sorted", "alternating"])
def test_what_is_told_of_a_large_table_is_told_of_all_of_it(order, table):
    rng = np.random.default_rng(0)
    label = np.arange(24_000) >= 12_000 if order == "sorted" else np.arange(24_000) % 3 == 1
    X = rng.normal(size=(24_000, 4)) * 0.3 + 6 * label[:, None] * [1, 1, -1, 0]
    vae = VAETransformer(2, **(SMALL | {"max_iter": 1})).fit(X)  # a warning of collapse would be an error
    draws = vae.sample(2000, latents="aggregate", random_state=0)
    assert np.mean(draws[:, 0] > 3) == pytest.approx(label.mean(), abs=0.05)
    mean, std = vae.posterior(X)
    kl = 0.5 * (mean**2 + std**2 - 1) - np.log(std)
    np.testing.assert_allclose(vae.kl_per_unit_, kl.mean(axis=0), rtol=0.05, atol=0.01)
    assert vae.active_units_.any()


def test_what_is_told_of_a_stream_is_told_of_all_of_it():
    rng = np.random.default_rng(0)
    label = np.arange(6000) >= 3000
    X = rng.normal(size=(6000, 4)) * 0.3 + 6 * label[:, None] * [1, 1, -1, 0]
    vae = VAETransformer(2, **SMALL).fit(X[rng.permutation(6000)])
    for chunk in chunks(X, 500):
        vae.partial_fit(chunk)
    draws = vae.sample(2000, latents="aggregate", random_state=0)
    assert np.mean(draws[:, 0] > 3) == pytest.approx(0.5, abs=0.15)  # the later chunks have more weight
    assert vae.active_units_.any()


def test_report_counts_active_units_over_the_whole_table(capsys):
    rng = np.random.default_rng(0)
    X = np.zeros((20_000, 3))
    X[12_000:] = rng.normal(size=(8000, 1)) * [1, 2, 3]
    X += 1e-3 * rng.normal(size=X.shape)
    VAETransformer(1, verbose=1, **(SMALL | {"max_iter": 1})).fit(X)
    assert "active units = 1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_subsample_is_of_all_rows_in_order_and_the_same_each_time(seed):
    rows = subsample(1000, 100, seed)
    assert len(set(rows.tolist())) == 100
    assert np.all(np.diff(rows) > 0)
    assert 400 < rows.mean() < 600  # 500 +- 27
    assert len(set((rows % 10).tolist())) == 10
    np.testing.assert_array_equal(rows, subsample(1000, 100, seed))
    np.testing.assert_array_equal(subsample(50, 100, seed), np.arange(50))
    assert set(subsample(np.array([7, 3, 9]), 2, seed).tolist()) < {3, 7, 9}


@pytest.mark.parametrize(("first", "then"), [("elbo", "mmd"), ("mmd", "elbo"), ("elbo", ELBO(beta=4))], ids=str)
def test_another_objective_keeps_the_prior_that_was_chosen(first, then, table):
    X = table(n_rows=150)
    vae = VAETransformer(2, objective=first, random_state=0).partial_fit(X[:50])
    prior = repr(vae.module_.prior)
    vae.set_params(objective=then).partial_fit(X[50:]).partial_fit(X)
    assert repr(vae.module_.prior) == prior
    assert vae.set_params(warm_start=True, max_iter=2).fit(X).n_iter_ == 5


def test_conditions_are_drawn_from_all_rows():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=6000), rng.normal(size=6000), np.repeat(np.arange(6.0), 1000)])
    vae = VAETransformer(2, **SMALL, condition_features=[2], warm_start=True)
    for chunk in chunks(rows, 1000):
        vae.partial_fit(chunk)
    drawn = vae.sample(6000, random_state=0)[:, 2]
    np.testing.assert_allclose(np.bincount(drawn.astype(int), minlength=6), 1000, rtol=0.25)
    before = vae._table.conditions.copy()
    with pytest.raises(ValueError, match="expecting 3 features"):
        vae.partial_fit(rows[:, :2])
    np.testing.assert_array_equal(vae._table.conditions, before)
    assert set(vae.fit(rows[-50:]).sample(50, random_state=0)[:, 2]) == {5.0}


def test_training_that_fails_leaves_the_conditions(table):
    class Fails(Callback):
        def on_train_begin(self, net, **kwargs):
            raise RuntimeError("fails")

    X = table(n_rows=100)
    vae = VAETransformer(1, **SMALL, condition_features=[0]).partial_fit(X[:50])
    before = vae._table.conditions.copy()
    with pytest.raises(RuntimeError, match="fails"):
        vae.set_params(callbacks=[Fails()]).partial_fit(X[50:])
    np.testing.assert_array_equal(vae._table.conditions, before)
    assert len(vae.set_params(callbacks=None).partial_fit(X[50:])._table.conditions) == len(X)
