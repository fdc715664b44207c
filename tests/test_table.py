"""Tables of several kinds of columns: what goes in comes out, and probabilities are probabilities."""

import copy
import datetime
import decimal
import itertools
import pickle
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from dateutil import tz
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError

from skvae import VAEImputer, VAETransformer, load
from skvae._data import arrow
from skvae._data.marginals import fit_knots, from_scores, to_scores
from skvae._data.table import Table
from skvae._estimator.generation import reconstructed
from skvae._model.columns import Categorical, Columns, Ordinal
from skvae.likelihoods import LIKELIHOODS, Bernoulli, Gaussian, Likelihood, Poisson
from skvae.metrics import column_gains, reconstruction_error
from skvae.objectives import ELBO
from skvae.priors import Mixture, StandardNormal

SMALL = {"z_dim": 2, "hidden_layer_sizes": 8, "max_iter": 3, "random_state": 0}


def mixed(n=200, seed=0, holes=True):
    rng = np.random.default_rng(seed)
    days = pd.to_timedelta(rng.integers(0, 900, n), unit="D")
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=n),
            "visits": rng.integers(0, 300, n),
            "kind": pd.Categorical(rng.choice(list("xyz"), n), categories=["z", "y", "x"], ordered=True),
            "text": rng.choice(["u", "v"], n).astype(object),
            "flag": rng.random(n) < 0.3,
            "day": pd.Timestamp("2020-01-01") + days,
            "zoned": (pd.Timestamp("2020-01-01") + days).tz_localize("Europe/Berlin"),
            "rain": np.where(rng.random(n) < 0.5, 0, rng.gamma(2, size=n)),
            "stars": pd.array(rng.integers(0, 5, n), dtype="Int64"),
            "single": rng.random(n).astype(np.float32),
        }
    )
    if holes:
        for step, name in enumerate(["size", "kind", "text", "day", "zoned", "rain", "stars", "single"], 7):
            frame.loc[frame.index[::step], name] = None
    return frame


def of_polars(n=200, seed=0):
    frame = mixed(n, seed)
    return pl.DataFrame(
        {
            "size": frame["size"].to_numpy(),
            "visits": frame["visits"].to_numpy(),
            "kind": pl.Series([None if pd.isna(x) else x for x in frame["kind"]], dtype=pl.Enum(["z", "y", "x"])),
            "word": pl.Series([None if pd.isna(x) else x for x in frame["text"]], dtype=pl.Categorical),
            "text": [None if pd.isna(x) else x for x in frame["text"]],
            "flag": frame["flag"].to_numpy(),
            "day": [None if pd.isna(x) else x.date() for x in frame["day"]],
            "small": pl.Series(frame["visits"].to_numpy() % 7, dtype=pl.Int8),
        }
    )


def same(left, right, where):
    """Whether frames agree in the cells of `where`."""
    pairs = ((list(left[name]), list(right[name])) for name in left.columns)
    return all(
        all(a == b for a, b, counts in zip(*cells, column, strict=True) if counts)
        for cells, column in zip(pairs, where.T, strict=True)
    )


def missing(frame):
    """Which cells of a frame are missing."""
    return np.column_stack([[pd.isna(cell) for cell in frame[name]] for name in frame.columns])


@pytest.mark.parametrize("make", [mixed, of_polars])
def test_frames_come_back_with_their_columns_dtypes_and_cells(make):
    frame = make()
    dtypes = list(frame.dtypes)
    vae = VAETransformer(**SMALL).fit(frame)
    filled = vae.impute(frame)
    assert same(filled, frame, ~missing(frame))
    for rows in (filled, vae.sample(7, noise=True, random_state=0), vae.inverse_transform(vae.transform(frame))):
        assert type(rows) is type(frame)
        assert list(rows.columns) == list(frame.columns)
        assert list(rows.dtypes) == dtypes
        assert not missing(rows).any()
    draws = vae.sample(300, noise=True, random_state=0)
    visits = np.asarray(draws["visits"])
    assert visits.min() >= np.asarray(frame["visits"]).min()
    assert visits.max() <= np.asarray(frame["visits"]).max()
    assert set(draws["text"]) <= {"u", "v"}


def test_an_index_is_kept_where_rows_are():
    frame = mixed().set_index(pd.Index(range(500, 700)))
    vae = VAETransformer(**SMALL).set_output(transform="pandas").fit(frame)
    assert vae.impute(frame).index.equals(frame.index)
    assert vae.transform(frame).index.equals(frame.index)


def test_files_and_pickles_keep_tables(tmp_path):
    frame = mixed()
    vae = VAETransformer(**SMALL).fit(frame)
    vae.save(tmp_path / "vae.safetensors")
    for kept in (pickle.loads(pickle.dumps(vae)), load(tmp_path / "vae.safetensors")):
        np.testing.assert_array_equal(kept.score_samples(frame), vae.score_samples(frame))
        draws = [one.sample(5, noise=True, random_state=0) for one in (kept, vae)]
        pd.testing.assert_frame_equal(*draws)
    with pytest.raises(ValueError, match="tables of numbers"):
        vae.to_onnx(tmp_path / "vae.onnx")


def test_kinds_and_marginals_are_found():
    table = VAETransformer(**SMALL).fit(mixed())._table
    found = {column.name: (column.kind, column.marginal) for column in table.columns}
    assert found["size"] == found["visits"] == ("numeric", "quantile")
    assert found["kind"] == found["text"] == found["flag"] == ("categorical", "categorical")
    assert found["day"] == found["zoned"] == ("date", "quantile")
    assert found["rain"] == ("numeric", "spike")
    assert found["stars"] == ("numeric", "ordinal")


def test_a_table_of_numbers_is_as_its_array():
    frame = load_iris(as_frame=True).data
    vae, other = (VAETransformer(**SMALL).fit(X) for X in (frame, frame.to_numpy()))
    np.testing.assert_array_equal(vae.score_samples(frame), other.score_samples(frame.to_numpy()))
    np.testing.assert_array_equal(vae.sample(5, random_state=0), other.sample(5, random_state=0))
    assert isinstance(vae.sample(5, random_state=0), pd.DataFrame)


def test_probabilities_of_categories_add_up_to_one():
    frame = mixed(400, holes=False)[["kind", "text", "flag"]]
    frame["text"] = np.where(frame["kind"] == "x", "u", frame["text"])  # something to be learned
    vae = VAETransformer(z_dim=2, random_state=0, n_draws=400).fit(frame)
    cells = list(itertools.product("zyx", "uv", [False, True]))
    every = pd.DataFrame(cells, columns=frame.columns)
    probabilities = np.exp(vae.score_samples(every))
    assert probabilities.sum() == pytest.approx(1, abs=0.03)  # each is an estimate from 400 draws
    counts = frame.astype(str).value_counts(normalize=True)
    shares = np.array([counts.get(tuple(map(str, row)), 0.0) for row in cells])
    assert np.abs(probabilities - shares).max() < 0.05  # 0.025 is two standard errors of a share of 400 rows


def test_a_category_that_is_unknown_counts_as_missing():
    frame = mixed(holes=False)
    vae = VAETransformer(**SMALL).fit(frame)
    strange, holed = frame.head(4).copy(), frame.head(4).copy()
    strange["text"], holed["text"] = "w", None
    np.testing.assert_array_equal(vae.score_samples(strange), vae.score_samples(holed))


def test_what_is_given_is_met_in_every_row():
    frame = mixed(300)
    frame["text"] = np.where(frame["size"] > 0, "u", "v")
    vae = VAETransformer(z_dim=2, random_state=0).fit(frame)
    draws = vae.sample(200, given={"text": "u", "stars": 3}, random_state=0)
    assert (draws["text"] == "u").all()
    assert (draws["stars"] == 3).all()
    assert (draws["size"] > 0).mean() > 0.75  # in half of the rows it is
    rows = pd.DataFrame({"text": ["u", "v"]})
    assert list(vae.sample(2, given=rows, random_state=0)["text"]) == ["u", "v"]
    for given, words in (({"text": "w"}, "'w'"), ({"nothing": 1}, "no column 'nothing'"), ({"size": [1, 2, 3]}, "3")):
        with pytest.raises(ValueError, match=words):
            vae.sample(2, given=given)


def test_bad_tables_are_refused_in_words_that_help():
    frame = mixed()
    with pytest.raises(ValueError, match="cardinality <= 255 but actually has a cardinality of 300"):
        VAETransformer().fit(pd.DataFrame({"name": [f"n{i}" for i in range(300)], "x": np.arange(300.0)}))
    with pytest.raises(ValueError, match="no column 'nothing'"):
        VAETransformer(likelihood={"nothing": "poisson"}).fit(frame)
    with pytest.raises(ValueError, match="all columns"):
        VAETransformer(condition_features=["x"]).fit(pd.DataFrame({"x": np.arange(9.0)}))
    with pytest.raises(ValueError, match=r"DataFrame.*categorical_features"):
        VAETransformer().fit(np.array([["x", 1.0], ["y", 2.0]], dtype=object))
    vae = VAETransformer(**SMALL).fit(frame)
    with pytest.raises(ValueError, match="feature names should match"):
        vae.transform(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="infinity"):
        vae.transform(frame.assign(size=np.inf))


@pytest.mark.parametrize("which", [[0], [True, False], np.array([0])])
def test_arrays_have_categories_that_are_named(which):
    X = np.array([["a", 1.0], ["b", 2.0], ["a", 3.0], [None, 4.5]] * 20, dtype=object)
    vae = VAETransformer(**SMALL, categorical_features=which).fit(X)
    filled = vae.impute(X)
    assert set(filled[:, 0]) <= {"a", "b"}
    assert list(filled[:, 1]) == list(X[:, 1])


def test_columns_have_likelihoods_of_their_own():
    frame = mixed(holes=False)
    vae = VAETransformer(**SMALL, likelihood={"visits": "poisson", "size": Gaussian("feature")}).fit(frame)
    assert {type(part).__name__ for part in vae.likelihood_.parts} >= {"Poisson", "Gaussian", "Categorical"}
    assert vae.sample(50, noise=True, random_state=0)["visits"].dtype == frame["visits"].dtype
    with pytest.raises(ValueError, match="Negative values"):
        VAETransformer(**SMALL, likelihood={"size": "poisson"}).fit(frame)


@pytest.mark.parametrize("likelihood", ["gausian", "auto", "ordinal", "flag", None, 3, Gaussian])
def test_what_is_no_likelihood_of_a_column_is_refused(likelihood):
    with pytest.raises(InvalidParameterError, match=r"'likelihood' parameter of VAETransformer.*for column 'size'"):
        VAETransformer(**SMALL, likelihood={"size": likelihood}).fit(mixed())


def test_categories_have_their_own_likelihood_and_truth_values_may_have_another():
    for column in ("kind", "text"):
        with pytest.raises(ValueError, match=f"names column '{column}', which holds categories"):
            VAETransformer(**SMALL, likelihood={column: "gaussian"}).fit(mixed())
    frame = mixed(holes=False)
    vae = VAETransformer(**SMALL, likelihood={"flag": "bernoulli"}).fit(frame)
    assert np.isfinite(vae.score(frame))
    assert vae.sample(9, noise=True, random_state=0)["flag"].dtype == bool


class Gamma(Likelihood):
    """Positive numbers: of the values in the place of holes 0 would have no logarithm."""

    n_raw = 2
    stand_in = 1.0
    non_negative = True

    def start(self, x):
        return torch.stack([x.mean(0).log(), torch.zeros(x.shape[1])])

    def inputs(self, x):
        return x.log()

    def log_prob(self, raw, x):
        rate, shape = (raw[..., i, :].clamp(-9, 9).exp() for i in (0, 1))
        return shape * (shape / rate).log() + (shape - 1) * x.log() - shape / rate * x - torch.lgamma(shape)

    def mean(self, raw):
        return raw[..., 0, :].exp()

    def sample(self, raw, generator):
        return self.mean(raw)


def test_a_likelihood_is_the_same_for_a_column_and_for_all():
    X = np.random.default_rng(0).gamma(2, size=(200, 4))
    X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    params = SMALL | {"early_stopping": False, "init": "random", "prior": "standard_normal"}
    one = VAETransformer(**params, likelihood=Gamma()).fit(X)
    each = VAETransformer(**params, likelihood={i: Gamma() for i in range(4)}).fit(X)
    assert each.loss_curve_ == pytest.approx(one.loss_curve_, rel=1e-4)  # sums of float32 in another order


def test_columns_take_the_nearest_value_that_their_likelihood_takes():
    likelihood = Columns([Gaussian(), Bernoulli()], [1, 2])
    X = np.array([[5.0, 1.0, 0.5], [-3.0, 0.0, 1.0]])
    assert likelihood.nearest(X) is X
    np.testing.assert_array_equal(likelihood.nearest(X + 1e-9)[:, 1:].max(), 1.0)


def test_bits_are_bits_beside_what_is_given():
    X = np.random.default_rng(0).integers(0, 2, size=(80, 5)).astype(float)
    given = np.random.default_rng(1).normal(size=(80, 1))
    assert isinstance(VAETransformer(**SMALL, condition_features=[4]).fit(X).likelihood_, Bernoulli)
    assert isinstance(VAETransformer(**SMALL, condition_features=[5]).fit(np.hstack([X, given])).likelihood_, Bernoulli)
    assert isinstance(VAETransformer(**SMALL, condition_features=[0]).fit(np.hstack([given, X])).likelihood_, Bernoulli)
    rows = np.hstack([given, X + given])
    assert isinstance(VAETransformer(**SMALL, condition_features=[0]).fit(rows).likelihood_, Gaussian)


def test_draws_have_no_holes_where_conditions_had():
    rows = load_iris().data.copy()
    rows[::2, 3] = np.nan
    vae = VAETransformer(**SMALL, condition_features=[3]).fit(rows)
    for params in ({}, {"noise": True}, {"given": {0: 5.0}}):
        assert np.isfinite(vae.sample(99, random_state=0, **params)).all()
    frame = mixed()
    frame.loc[::3, "text"] = None
    drawn = VAETransformer(**SMALL, condition_features=["text"]).fit(frame).sample(99, random_state=0)
    assert drawn.drop(columns="text").notna().all(axis=None)


def test_tables_in_searches_and_pipelines():
    frame = mixed(120)
    search = GridSearchCV(VAETransformer(**SMALL), {"marginal": ["quantile", "standardize"]}, cv=2)
    assert np.isfinite(search.fit(frame).cv_results_["mean_test_score"]).all()
    assert make_pipeline(clone(search.best_estimator_)).fit_transform(frame).shape[0] == 120


def test_given_columns_are_not_modelled_and_not_in_the_code():
    """With a linear model it is exact: what is given shifts the rows, and the score is that of the residuals."""
    rng = np.random.default_rng(0)
    batch, loadings, shifts = rng.integers(0, 3, 600), rng.normal(size=(2, 5)), 2 * rng.normal(size=(3, 5))
    X = rng.normal(size=(600, 2)) @ loadings + shifts[batch] + 0.3 * rng.normal(size=(600, 5))
    rows = np.column_stack([X, batch])
    options = {"hidden_layer_sizes": (), "likelihood": Gaussian("feature"), "early_stopping": False}
    options |= {"max_iter": 1, "learning_rate": 1e-12, "random_state": 0}
    vae = VAETransformer(2, condition_features=[5], categorical_features=[5], **options).fit(rows)
    means = np.stack([X[batch == i].mean(axis=0) for i in range(3)])
    other = VAETransformer(2, **options).fit(X - means[batch])
    assert vae.score(rows) == pytest.approx(other.score(X - means[batch]), abs=1e-3)  # a ridge of a thousandth
    Z = vae.transform(rows)
    between = np.var([Z[batch == i].mean(axis=0) for i in range(3)], axis=0)
    assert np.all(between < 1e-3 * Z.var(axis=0))
    drawn = vae.sample(2000, given={5: 1}, random_state=0)
    assert (drawn[:, 5] == 1).all()
    error = X.std(axis=0) / np.sqrt(2000)
    assert np.all(np.abs(drawn[:, :5].mean(axis=0) - means[1]) < 5 * error)
    moved = vae.inverse_transform(Z[:3], conditions={5: 2}) - vae.inverse_transform(Z[:3], conditions={5: 0})
    np.testing.assert_allclose(moved[:, :5], np.tile(means[2] - means[0], (3, 1)), atol=0.02)
    with pytest.raises(ValueError, match="has none"):
        other.inverse_transform(Z[:3], conditions={5: 1})


# Marginals and likelihoods


def test_the_jacobian_of_normal_scores_is_their_slope():
    rng = np.random.default_rng(0)
    values = rng.gamma(1, size=1000)
    knots, scores = fit_knots(values)
    x = np.concatenate([rng.gamma(1, size=200), [-1.0, 50.0]])
    z, log_slope = to_scores(x, knots, scores)
    step = 1e-7
    numerical = (to_scores(x + step, knots, scores)[0] - z) / step
    near = np.abs(x[:, None] - knots).min(axis=1) > 2 * step  # at a knot there are two slopes
    np.testing.assert_allclose(np.exp(log_slope)[near], numerical[near], rtol=1e-4)
    inside = (x >= knots[0]) & (x <= knots[-1])
    np.testing.assert_allclose(from_scores(z, knots, scores)[inside], x[inside], rtol=1e-9)
    assert abs(to_scores(values, knots, scores)[0].std() - 1) < 0.02


def built(likelihood, n_features, x):
    likelihood.build(n_features)
    likelihood.double()
    likelihood.start(x)
    return likelihood


def examples():
    rng = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 4, (50, 2), generator=rng).double()
    bits = torch.cat(
        [torch.eye(3, dtype=torch.float64)[levels[:, 0].long() % 3], torch.eye(4).double()[levels[:, 1].long()]], 1
    )
    normal = torch.randn(50, 3, generator=rng, dtype=torch.float64)
    ordinal, categorical, gaussian = Ordinal([4, 4]), Categorical([3, 4]), Gaussian()
    whole = Columns([Gaussian(), Ordinal([4, 4]), Categorical([3, 4])], [3, 2, 7])
    cases = [(ordinal, levels), (categorical, bits), (gaussian, normal), (whole, torch.cat([normal, levels, bits], 1))]
    cases.append((Columns([Gaussian(), Bernoulli(), Poisson()], [3, 7, 2]), torch.cat([normal, bits, levels], 1)))
    return [(built(likelihood, x.shape[1], x), x) for likelihood, x in cases]


@pytest.mark.parametrize("case", range(5))
def test_gradients_and_expansions_are_those_of_autograd(case):
    likelihood, x = examples()[case]
    rng = torch.Generator().manual_seed(1)
    raw = torch.randn(50, likelihood.n_raw, x.shape[1], generator=rng, dtype=torch.float64)
    weight = torch.rand(1, 50, 1, generator=rng, dtype=torch.float64).expand(1, 50, x.shape[1])
    point = raw.clone().requires_grad_()
    log_prob = likelihood.log_prob(point, x)
    (expected,) = torch.autograd.grad((log_prob * weight[0]).sum().neg(), point, create_graph=True)
    found, grad = likelihood.gradient(raw.clone().unsqueeze(0), x.unsqueeze(0), weight)
    torch.testing.assert_close(found, log_prob.detach())
    torch.testing.assert_close(grad[0], expected.detach(), rtol=1e-6, atol=1e-8)
    slope, curvature = likelihood.expansion(raw, x)
    (first,) = torch.autograd.grad(likelihood.log_prob(point, x).sum(), point)
    torch.testing.assert_close(slope, first[:, 0], rtol=1e-6, atol=1e-8)
    assert (curvature >= 0).all()


def test_levels_have_probabilities_that_add_up_and_draws_follow_them():
    (ordinal, _), (categorical, _), *_ = examples()
    rng = torch.Generator().manual_seed(2)
    raw = torch.randn(1, 2, 2, generator=rng, dtype=torch.float64)
    levels = torch.arange(4).double()[:, None].expand(4, 2)
    chances = ordinal.log_prob(raw.expand(4, 2, 2), levels).exp()
    torch.testing.assert_close(chances.sum(0), torch.ones(2).double())
    draws = ordinal.sample(raw.expand(40_000, 2, 2), rng)
    shares = torch.stack([(draws == level).double().mean(0) for level in range(4)])
    assert (shares - chances).abs().max() < 5 * 0.5 / 200  # five standard errors of a share of 40,000
    logits = torch.randn(1, 1, 7, generator=rng, dtype=torch.float64)
    drawn = categorical.sample(logits.expand(40_000, 1, 7), rng)
    assert (drawn[:, :3].sum(1) == 1).all()
    assert (drawn[:, 3:].sum(1) == 1).all()
    assert (drawn.mean(0) - categorical.mean(logits)[0]).abs().max() < 5 * 0.5 / 200


def test_the_start_of_levels_is_their_share():
    _, x = examples()[0]
    ordinal = built(Ordinal([4, 4]), 2, x)
    counts = torch.stack([(x == level).double().sum(0) for level in range(4)]) + 0.5
    found = ordinal.log_prob(torch.zeros(4, 2, 2).double(), torch.arange(4).double()[:, None].expand(4, 2)).exp()
    torch.testing.assert_close(found, counts / counts.sum(0))


def test_a_column_of_one_level_or_none():
    frame = mixed()
    frame["one"], frame["none"], frame["nan"] = "a", pd.Series([None] * len(frame), dtype=object), np.nan
    vae = VAETransformer(**SMALL).fit(frame)
    assert np.isfinite(vae.score(frame))
    assert set(vae.sample(9, noise=True, random_state=0)["one"]) == {"a"}


def test_tables_know_their_features():
    frame = mixed()
    table = Table.of(frame)
    values = table.values(frame)
    table.look_at(values, "auto")
    features, gain = table.features(values)
    assert features.shape == (200, sum(column.n_features for column in table.columns))
    assert gain.shape == (200,)
    back = table.values_of(features, drawn=True)
    seen = ~np.isnan(values)
    assert np.isnan(features).any()
    np.testing.assert_allclose(back[seen], values[seen], rtol=1e-6, atol=1e-6)


def test_gains_say_which_columns_the_model_knows():
    rng = np.random.default_rng(0)
    size = rng.normal(size=600)
    frame = pd.DataFrame({"size": size, "kind": np.where(size > 0, "u", "v"), "noise": rng.normal(size=600)})
    frame["empty"], frame.loc[::5, "kind"] = np.nan, None
    gains = column_gains(VAETransformer(1, random_state=0).fit(frame), frame)  # a second unit might take the noise
    assert np.isnan(gains[3])
    assert gains[1] > 0.4  # of log(2) that there are to gain
    assert abs(gains[2]) < 0.3 < gains[0]


def test_draws_of_narrow_floats_stay_finite():
    X = np.random.default_rng(0).normal(scale=4e4, size=(40, 3)).clip(-6e4, 6e4)
    X[0] = 0.5  # else all numbers are whole, whose draws stay in the range seen
    vae = VAETransformer(z_dim=1, max_iter=1, random_state=0).fit(pd.DataFrame(X.astype(np.float16)))
    drawn = np.asarray(vae.sample(2000, noise=True, random_state=0), dtype=np.float64)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn).max() == np.finfo(np.float16).max  # some would lie beyond


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({}, Mixture),
        ({"hidden_layer_sizes": ()}, StandardNormal),
        ({"objective": ELBO(4.0)}, StandardNormal),
        ({"objective": "beta_tc"}, StandardNormal),
        ({"objective": "mmd"}, StandardNormal),
        ({"objective": "iwae"}, Mixture),
        ({"prior": "standard_normal"}, StandardNormal),
    ],
    ids=str,
)
def test_networks_that_learn_a_bound_have_a_mixture_for_their_prior(params, kind):
    X = np.random.default_rng(0).normal(size=(30, 1)) + 0.1 * np.random.default_rng(1).normal(size=(30, 3))
    vae = VAETransformer(1, max_iter=1, early_stopping=False, random_state=0, **params).fit(X)
    assert isinstance(vae.module_.prior, kind)


# What is observed stays as it is


@pytest.mark.parametrize("marginal", ["standardize", "quantile"])
def test_observed_cells_of_an_array_stay_as_they_are(marginal):
    rng = np.random.default_rng(0)
    X = np.exp(rng.normal(size=(120, 1)) + 0.5 * rng.normal(size=(120, 4)))
    X[:60, 2], X[:, 3] = 0.0, rng.integers(0, 3, 120)  # a number that stands out, and levels
    X[::7, :2] = np.nan
    filled = VAETransformer(**SMALL, marginal=marginal).fit(X).impute(X)
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
    assert np.isfinite(filled).all()


def test_observed_cells_that_a_guess_moves_stay_as_they_are():
    bits = (np.random.default_rng(0).random((80, 3)) < 0.5).astype(float)
    rows = np.array([[0, 2, np.nan], [-3, 0.5, 1]])
    filled = VAETransformer(**SMALL).fit(bits).impute(rows)
    np.testing.assert_array_equal(filled[~np.isnan(rows)], rows[~np.isnan(rows)])


def test_observed_cells_of_frames_that_float64_does_not_carry_stay():
    rng, n = np.random.default_rng(0), 80
    hole = np.where(np.arange(n) == 3, np.nan, rng.normal(size=n))
    moments = pd.Series(pd.date_range("2024-01-01 00:00:00.123456789", periods=n)).mask(np.arange(n) == 5)
    frame = pd.DataFrame({"time": moments, "big": 2**60 + np.arange(n), "x": hole})
    frame["code"] = pd.Series(rng.choice(["02139", "10001"], n), dtype=object)
    filled = VAETransformer(**SMALL).fit(frame).impute(frame)
    assert (filled.dtypes == frame.dtypes).all()
    assert filled.notna().all(axis=None)
    pd.testing.assert_frame_equal(filled.drop(index=[3, 5]), frame.drop(index=[3, 5]))
    others = pl.DataFrame(
        {
            "ms": pl.Series([1_700_000_000_000 + i for i in range(n)]).cast(pl.Datetime("ms")),
            "zone": pl.Series([1_700_000_000_000_000_007 + i for i in range(n)]).cast(pl.Datetime("ns", "Europe/Rome")),
            "price": pl.Series(rng.normal(size=n).round(2)).cast(pl.Decimal(10, 2)),
            "x": pl.Series(hole, nan_to_null=True),
        }
    )
    vae = VAETransformer(**SMALL).fit(others)
    assert vae.impute(others).drop("x").equals(others.drop("x"))
    assert vae.sample(3, random_state=0).dtypes == others.dtypes


def test_impute_gives_the_container_that_it_is_given():
    X = load_iris().data.copy()
    X[::5, 1] = np.nan
    frame = pd.DataFrame(X, index=range(1, 151), columns=list("abcd"))
    of_array, of_frame = VAETransformer(**SMALL).fit(X), VAETransformer(**SMALL, marginal="standardize").fit(frame)
    with pytest.warns(UserWarning, match="feature names"):
        filled = of_array.impute(frame)
    assert filled.index.equals(frame.index)
    np.testing.assert_array_equal(filled.to_numpy(), of_array.impute(X))
    with pytest.warns(UserWarning, match="feature names"):
        filled = of_frame.impute(X)
    np.testing.assert_array_equal(filled, of_frame.impute(frame).to_numpy())
    assert isinstance(of_frame.impute(pl.from_pandas(frame)), pl.DataFrame)


def test_unknown_categories_are_filled():
    frame = mixed(holes=False)
    vae = VAETransformer(**SMALL).fit(frame)
    filled = vae.impute(frame.assign(text="never seen"))
    assert set(filled["text"]) <= {"u", "v"}


def test_names_go_before_places():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)) + np.array([0, 100, 200]), columns=[2, 0, 1])
    vae = VAETransformer(**SMALL, condition_features=[0]).fit(frame)
    assert [column.name for column in vae._table.columns if column.given] == [0]
    drawn = VAETransformer(**SMALL).fit(frame).sample(2, given={0: 100.5}, random_state=0)
    assert drawn[0].tolist() == [100.5, 100.5]


def test_dates_far_away_come_back():
    days = pd.to_datetime(["2024-01-01", "2024-05-01", "9999-12-31"] * 30)
    frame = pd.DataFrame(
        {"end": pd.Series(days.astype("datetime64[us]")), "x": np.random.default_rng(0).normal(size=90)}
    )
    drawn = VAETransformer(**SMALL).fit(frame).sample(50, noise=True, random_state=0)["end"]
    assert drawn.between("2024-01-01", "9999-12-31").all()


def test_given_dates_may_be_of_any_kind():
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=80)
    frame = pd.DataFrame({"x": rng.normal(size=80), "day": days, "zoned": days.tz_localize("America/New_York")})
    vae = VAETransformer(**SMALL).fit(frame)
    noon = pd.Timestamp("2024-02-01 12:00", tz="America/New_York")
    assert vae.sample(1, given={"zoned": noon}, random_state=0)["zoned"][0] == noon
    for day in (np.datetime64("2024-02-01"), datetime.date(2024, 2, 1), datetime.datetime(2024, 2, 1), "2024-02-01"):
        assert vae.sample(1, given={"day": day}, random_state=0)["day"][0] == pd.Timestamp("2024-02-01")
    assert np.isfinite(vae.sample(1, given={"x": pd.NA}, random_state=0)["x"][0])


def test_rows_stand_under_the_conditions_that_they_are_given():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=80), "b": rng.normal(size=80), "year": rng.integers(2010, 2021, 80)})
    vae = VAETransformer(**SMALL, condition_features=["year"]).fit(frame)
    Z = vae.transform(frame.head(2))
    assert vae.inverse_transform(Z, conditions={"year": 2030})["year"].tolist() == [2030, 2030]
    with pytest.raises(ValueError, match="'a', which is not among condition_features"):
        vae.inverse_transform(Z, conditions={"a": 1.0})
    for far in (np.inf, -np.inf, 1e300):
        with pytest.raises(ValueError, match="conditions contains infinity or a value too large"):
            vae.inverse_transform(Z, conditions={"year": far})
    batch = 5.0 * rng.integers(0, 2, 200)
    factor = rng.normal(size=(200, 1))
    rows = np.column_stack([factor + 0.3 * rng.normal(size=(200, 2)) + batch[:, None], batch])
    linear = {"hidden_layer_sizes": (), "likelihood": Gaussian("feature"), "condition_features": [2]}
    assert (
        reconstruction_error(VAETransformer(**SMALL | linear).fit(rows), rows) < 0.5
    )  # not the batches' variance of 6


def test_rows_under_an_unknown_condition_are_reconstructed():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60), "site": ["u", "v", "w"] * 20})
    vae = VAETransformer(**SMALL, early_stopping=False, condition_features=["site"]).fit(frame)
    new = frame.replace({"site": {"w": "new"}})
    both = reconstruction_error(vae, frame[frame["site"] != "w"]), reconstruction_error(vae, new[new["site"] == "new"])
    assert reconstruction_error(vae, new) == pytest.approx((2 * both[0] + both[1]) / 3)
    found, known = (reconstructed(vae, rows)[0] for rows in (new, frame))
    pd.testing.assert_frame_equal(found[:2], known[:2])


def test_float32_stays_in_tables_of_several_kinds():
    X = np.random.default_rng(0).normal(size=(80, 3)).astype("f")
    X[:, 2] = np.arange(80) % 3
    for params in ({"likelihood": {2: "poisson"}}, {"categorical_features": [2]}, {"condition_features": [2]}):
        vae = VAETransformer(**SMALL, **params).fit(X)
        assert vae.sample(1).dtype == vae.impute(X).dtype == np.float32


def test_no_likelihood_of_a_column_is_as_the_default():
    X = load_iris().data
    vae = VAETransformer(**SMALL, likelihood={}).fit(X)
    np.testing.assert_array_equal(vae.transform(X), VAETransformer(**SMALL).fit(X).transform(X))


@pytest.mark.parametrize("late", ["late", datetime.datetime(2024, 1, 1)], ids=str)
@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("beside", [[1.0, 2.0], ["a", "b"]], ids=str)  # a table of numbers, and one of several kinds
def test_what_comes_in_a_column_that_had_no_value_counts_as_missing(library, late, beside):
    numbers = np.random.default_rng(0).normal(size=40)
    make = partial(pd.DataFrame, dtype=object) if library == "pandas" else pl.DataFrame
    none, some = (make({"x": numbers, "k": beside * 20, "note": note}) for note in ([None] * 40, [None, late] * 20))
    vae = VAETransformer(2, max_iter=1, early_stopping=False, random_state=0).fit(none)
    np.testing.assert_array_equal(vae.score_samples(some), vae.score_samples(none))
    assert vae.impute(some)["x"].to_list() == none["x"].to_list()
    vae.partial_fit(some)
    imputer = VAEImputer(VAETransformer(2, max_iter=1, early_stopping=False)).fit(none)
    assert list(imputer.transform(some).columns) == ["x", "k"]


def test_dates_are_refused_where_numbers_were():
    frame = pd.DataFrame({"x": np.arange(40.0), "k": ["a", "b"] * 20})
    vae = VAETransformer(**SMALL).fit(frame)
    dates = pd.date_range("2024", periods=40)
    for X in (frame.assign(x=dates), pl.DataFrame({"x": dates.to_numpy(), "k": ["a", "b"] * 20})):
        with pytest.raises(ValueError, match="'x' holds dates or times, and held numbers in fit"):
            vae.transform(X)


def test_numbers_that_are_categories_keep_the_dtype_of_polars():
    codes = np.arange(40) % 4
    columns = {"code": pl.Series(codes, dtype=pl.Int8), "half": pl.Series(codes / 2, dtype=pl.Float32)}
    columns["price"] = pl.Series(codes).cast(pl.Decimal(8, 2))
    frame = pl.DataFrame(columns | {"x": np.random.default_rng(0).normal(size=40)})
    vae = VAETransformer(2, categorical_features=list(columns), max_iter=1, early_stopping=False, random_state=0)
    assert vae.fit(frame).sample(3, random_state=0).schema == frame.schema


@pytest.mark.parametrize("zone", ["dateutil/Europe/Berlin", tz.tzutc(), datetime.timezone(datetime.timedelta(hours=2))])
def test_time_zones_come_back(zone):
    frame = pd.DataFrame({"x": np.arange(40.0), "when": pd.date_range("2024", periods=40, tz=zone)})
    vae = VAETransformer(2, max_iter=1, early_stopping=False, random_state=0).fit(frame)
    assert vae.sample(2, random_state=0).dtypes.equals(frame.dtypes)
    filled = vae.impute(frame.assign(when=frame["when"].mask(frame["x"] < 3)))
    assert filled.dtypes.equals(frame.dtypes)
    assert filled[3:].equals(frame[3:])


@pytest.mark.parametrize("wrong", [[3.0, 3.0], np.ones((3, 1))], ids=["2", "(3, 1)"])
def test_given_columns_of_other_lengths_are_named(wrong, skewed):
    _, vae = skewed
    got = "2" if len(wrong) == 2 else r"an array of shape \(3, 1\)"
    with pytest.raises(ValueError, match=f"`given` must have one row, or 3 rows .* Got {got} in column 'income'"):
        vae.sample(3, given={"x": [5.0, 6.0, 7.0], "income": wrong})
    assert vae.sample(3, given={"x": [5.0, 6.0, 7.0], "income": [3.0]})["income"].tolist() == [3.0] * 3


@pytest.mark.parametrize("masked", [np.ma.masked_equal([[0.5, 0, 0]], 0), {0: 0.5, 1: np.ma.masked_equal([0.0], 0)}])
def test_what_is_masked_is_not_given(masked, table):
    vae = VAETransformer(2, max_iter=1, early_stopping=False, random_state=0).fit(table(n_features=3))
    expected = vae.sample(2, given={0: 0.5}, random_state=0)
    np.testing.assert_array_equal(vae.sample(2, given=masked, random_state=0), expected)


def test_masked_words_and_dates_are_missing():
    words = np.ma.array(np.array([["a", 1.0], ["b", 2.0]] * 20, dtype=object), mask=np.arange(80).reshape(40, 2) < 4)
    vae = VAETransformer(2, categorical_features=[0], max_iter=1, early_stopping=False, random_state=0).fit(words)
    assert vae._table.columns[0].levels == ["a", "b"]
    days = pd.date_range("2024", periods=40)
    vae = VAETransformer(2, max_iter=1, early_stopping=False).fit(pd.DataFrame({"day": days, "x": np.arange(40.0)}))
    given = np.ma.array(days.to_numpy()[:2], mask=[True, False])
    assert vae.sample(2, given={"day": given}, random_state=0)["day"][1] == days[1]


ARROW = {
    "int8": [3, None, -2, 5],
    "halffloat": [0.5, None, 1.5, 2.25],
    "float": [0.5, None, 1.5, 2.25],
    "decimal128(8, 2)": [decimal.Decimal("1.25"), None, decimal.Decimal("-7.5"), decimal.Decimal(999)],
    "null": [None] * 4,
    "bool": [True, None, False, True],
    "string": ["a", None, "b", "c"],
    "dictionary<values=string, indices=int32, ordered=0>": ["a", None, "b", "c"],
    "date32[day]": [datetime.date(1960, 1, 1), None, datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)],
    "date64[ms]": [datetime.date(2024, 1, 1), None, datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)],
    "timestamp[us]": [datetime.datetime(2024, 1, i, 12, 30) if i > 1 else None for i in range(1, 5)],
    "timestamp[ns, tz=Europe/Berlin]": [datetime.datetime(2024, 1, i, 12) if i > 1 else None for i in range(1, 5)],
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", ARROW)
def test_columns_of_arrow_come_back(name):
    pytest.importorskip("pyarrow")
    cells = pd.Series(arrow_cells(name, 20), dtype=pd.ArrowDtype(arrow_type(name)))
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=80), "c": cells})
    vae = VAETransformer(2, max_iter=1, early_stopping=False, random_state=0).fit(frame)
    filled, drawn = vae.impute(frame), vae.sample(50, noise=True, random_state=0)
    for rows in (filled, drawn, vae.inverse_transform(np.zeros((2, 2)))):
        assert rows.dtypes.equals(frame.dtypes)
        assert name == "null" or rows["c"].notna().all()
    kept = frame["c"].notna()
    assert filled["c"][kept].tolist() == frame["c"][kept].tolist()
    if "date" in name or "timestamp" in name:
        assert drawn["c"].between(frame["c"].min(), frame["c"].max()).all()
    zeros = VAEImputer(VAETransformer(2, max_iter=1, early_stopping=False), keep_empty_features=True)
    assert zeros.fit_transform(frame)["c"].notna().all()


def arrow_type(name):
    return arrow._type_of(pytest.importorskip("pyarrow"), name)


def arrow_cells(name, n):
    return pytest.importorskip("pyarrow").array(ARROW[name] * n, type=arrow_type(name))


def test_types_of_arrow_that_are_no_columns_of_numbers_or_words_are_refused(n_steps):
    pa = pytest.importorskip("pyarrow")
    for cells in ([datetime.time(12)] * 40, [[1.0]] * 40, [datetime.timedelta(1)] * 40):
        held = pa.array(cells)
        frame = pd.DataFrame({"x": np.arange(40.0), "c": pd.Series(held, dtype=pd.ArrowDtype(held.type))})
        with pytest.raises(ValueError, match=r"neither numbers, text nor dates .*: 'c'"):
            VAETransformer(2).fit(frame)
    assert n_steps == []


def test_time_zones_without_a_name_are_refused(n_steps):
    dates = pd.date_range("2024", periods=40, tz=tz.tzoffset("ship", 3600))
    with pytest.raises(ValueError, match=r"time zone that has no name, in columns \['when'\].*tz_convert\('UTC'\)"):
        VAETransformer(2).fit(pd.DataFrame({"x": np.arange(40.0), "when": dates}))
    assert n_steps == []


def test_intervals_are_refused_as_periods_are(n_steps):
    frame = pd.DataFrame({"x": np.arange(20.0), "i": pd.arrays.IntervalArray.from_breaks(range(21))})
    with pytest.raises(ValueError, match=r"X has cells that are neither numbers, text nor dates.*: 'i'"):
        VAETransformer(2).fit(frame)
    assert n_steps == []


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_without_any_value_are_filled_as_what_they_were(library):
    frame = mixed(holes=False)[["size", "visits", "text", "flag", "day"]]
    if library == "polars":
        frame = pl.DataFrame({name: cells.to_list() for name, cells in frame.items()})
    vae = VAETransformer(**SMALL).fit(frame)
    for name in frame.columns:
        empty = frame.head(4).assign(**{name: np.nan}) if library == "pandas" else without_column(frame.head(4), name)
        filled = vae.impute(empty)[name]
        assert not pd.isna(filled.to_list()).any(), name
        assert filled.dtype == frame[name].dtype, name


def without_column(frame, name):
    return frame.with_columns(pl.lit(None).alias(name))


def test_what_does_not_fit_the_dtype_of_the_rows_is_cut_or_widens_it():
    X = 300 * np.random.default_rng(0).normal(size=(80, 1)) + np.random.default_rng(1).normal(size=(80, 2))
    vae = VAETransformer(**SMALL).fit(pd.DataFrame(X, columns=["a", "b"]))
    rows = pd.DataFrame({"a": pd.array([None, 3], dtype="Int8"), "b": [-900.0, 3.0]})
    assert vae.impute(rows)["a"].tolist() == [-128, 3]
    kinds = pl.DataFrame({"x": np.arange(80.0), "kind": ["a", "b", "c", "c"] * 20})
    some = pl.DataFrame({"x": [2.0, 3.0], "kind": pl.Series([None, "a"], dtype=pl.Enum(["a"]))})
    assert VAETransformer(**SMALL).fit(kinds).impute(some)["kind"].null_count() == 0


def test_whole_conditions_of_draws_are_whole():
    rows = np.column_stack([load_iris().data, np.arange(150) % 3])
    drawn = VAETransformer(**SMALL, condition_features=[4]).fit(rows).sample(9, given={0: 5.0}, random_state=0)
    assert set(drawn[:, 4]) <= {0, 1, 2}


def test_numbers_that_are_no_level_lose_by_their_distance():
    """And the probabilities of all whole numbers, seen or not, do not exceed one by more than what is lost."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"rooms": rng.integers(0, 5, 300), "kind": rng.choice(["a", "b"], 300)})
    vae = VAETransformer(**SMALL).fit(frame)
    assert vae._table.columns[0].marginal == "ordinal"
    rows = frame.head(1).loc[[0] * 9].assign(rooms=[4, 5, 6, 60, 600, 0, -1, -50, 2.5])
    scores = vae.score_samples(rows)
    assert (np.diff(scores[:5]) < 0).all()
    assert scores[4] < scores[0] - 1000
    assert (np.diff(scores[5:8]) < 0).all()
    assert vae.score_samples(rows.head(1).assign(rooms=1e200)) == -np.inf  # and no warning
    assert scores[0] - scores[1] == pytest.approx(np.log(2) + 0.25)  # a step, and levels of variance 2
    whole = pd.DataFrame({"rooms": np.repeat(np.arange(-9, 14), 2), "kind": ["a", "b"] * 23})
    seen = whole["rooms"].between(0, 4)
    masses = np.exp(vae.score_samples(whole))
    assert masses[seen].sum() == pytest.approx(1, abs=0.02)
    assert masses[~seen].sum() < masses[seen].sum() / 2


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", Poisson()], ids=str)
def test_counts_beside_words_stay_counts_where_that_is_asked_for(likelihood):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"visits": rng.poisson(3, 200), "big": rng.poisson(300, 200), "kind": rng.choice(["a", "b"], 200)}
    )
    vae = VAETransformer(**SMALL, likelihood=likelihood).fit(frame)
    counts, words = vae.likelihood_.parts
    assert isinstance(counts, LIKELIHOODS.get(likelihood, Poisson))
    assert isinstance(words, Categorical)
    drawn = vae.sample(20, noise=True, random_state=0)
    assert drawn.dtypes.tolist() == frame.dtypes.tolist()
    assert np.isfinite(vae.score(frame))
    with pytest.raises(ValueError, match=r"marginal='quantile' makes normal scores .* does not take"):
        VAETransformer(**SMALL, likelihood=likelihood, marginal="quantile").fit(frame)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the columns are independent
@pytest.mark.parametrize("likelihood", ["poisson", Poisson(size_factor="sum"), "bernoulli"], ids=str)
def test_dates_are_no_counts(likelihood):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 2, (200, 2)), columns=["a", "b"])
    frame["day"] = pd.Timestamp("1969-06-01") + pd.to_timedelta(rng.integers(0, 400, 200), unit="D")  # some below 0
    params = SMALL | {"max_iter": 1, "early_stopping": False}
    vae = VAETransformer(**params, likelihood=likelihood).fit(frame)
    dates, numbers = vae.likelihood_.parts
    assert isinstance(dates, Gaussian)
    assert isinstance(numbers, Bernoulli if likelihood == "bernoulli" else Poisson)
    assert vae._table.columns[2].marginal == "quantile"
    assert vae.sample(400, noise=True, random_state=0)["day"].nunique() > 100
    assert np.isfinite(vae.score(frame))
    alone = VAETransformer(**params, likelihood=likelihood).fit(frame[["day"]])
    assert isinstance(alone.likelihood_, Gaussian)


def test_chunks_widen_ranges_and_warn_of_categories_that_come_late():
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.linspace(1, 100, 200)[:, None] * [1, 2, 3])
    vae = VAETransformer(2, random_state=0)
    for start in range(0, 200, 20):
        vae.partial_fit(counts[start : start + 20])
    drawn = vae.sample(2000, noise=True, random_state=0)
    assert (drawn.max(axis=0) > 2 * counts[:20].max(axis=0)).all()
    assert (drawn.max(axis=0) <= counts.max(axis=0)).all()
    frame = pd.DataFrame({"x": rng.normal(size=40), "kind": ["a", "b"] * 10 + ["c", None] * 10})
    streamed = VAETransformer(2, random_state=0).partial_fit(frame[:20])
    with pytest.warns(UserWarning, match=r"unknown categories \['c'\] in column 'kind' after the first rows") as caught:
        streamed.partial_fit(frame[20:])
    assert caught[0].filename == __file__
    declared = frame.astype({"kind": pd.CategoricalDtype(["a", "b", "c"])})
    VAETransformer(2, random_state=0).partial_fit(declared[:20]).partial_fit(declared[20:])


def test_names_and_masks_of_columns():
    frame = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60) % 3, "c": ["x", "y"] * 30})
    params = {"condition_features": [False, False, True]}
    assert [c.name for c in VAETransformer(**SMALL, **params).fit(frame)._table.columns if c.given] == ["c"]
    with pytest.raises(ValueError, match=r"condition_features set as a boolean mask should have shape"):
        VAETransformer(**SMALL, condition_features=[True]).fit(frame)
    mixed_names = VAETransformer(**SMALL, categorical_features=["c", 1]).fit(frame)
    assert [c.kind for c in mixed_names._table.columns] == ["numeric", "categorical", "categorical"]
    levels = frame.set_axis(pd.MultiIndex.from_tuples([("n", "a"), ("n", "b"), ("k", "c")]), axis=1)
    of_tuples = VAETransformer(**SMALL, categorical_features=[("k", "c")]).fit(levels)
    assert of_tuples._table.columns[2].kind == "categorical"


def test_names_are_refused_before_training(n_steps):
    X = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.raises(ValueError, match="several columns of the name 'a'"):
        VAETransformer(**SMALL).fit(pd.DataFrame(X, columns=["a", "a", "b"]))
    with pytest.raises(TypeError, match="Feature names are only supported"):
        VAETransformer(**SMALL).fit(pd.DataFrame(X, columns=["a", 1, "b"]))
    with pytest.raises(ValueError, match="neither numbers, text nor dates"):
        VAETransformer(**SMALL).fit(pl.DataFrame({"s": [{"a": 1}] * 20, "x": np.arange(20.0)}))
    assert n_steps == []


def test_refusals_do_not_blame_columns_that_are_taken():
    frame = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60) % 3, "c": ["x", "y"] * 30})
    vae = VAETransformer(**SMALL).fit(frame)
    for X in (frame.assign(a=np.inf), frame[["b", "a", "c"]], frame[:0]):
        with pytest.raises(ValueError) as refused:  # noqa: PT011  # what it must not say is below
            vae.transform(X)
        assert "not numbers" not in str(refused.value)
    with pytest.raises(ValueError, match=r"'abc'\. Columns of X that are not numbers: 'a'\. "):
        vae.transform(frame.assign(a="abc"))


@pytest.mark.parametrize("rows", [[[1, "a"], [2, "b"]] * 20, np.array([["1", "a"], ["2", "b"]] * 20)], ids=type)
def test_arrays_and_lists_of_text_are_taken(rows):
    vae = VAETransformer(**SMALL, categorical_features=[1]).fit(rows)
    assert [column.kind for column in vae._table.columns] == ["numeric", "categorical"]
    assert set(vae.sample(30, noise=True, random_state=0)[:, 1]) == {"a", "b"}
    expected = VAETransformer(**SMALL, categorical_features=[1]).fit(np.array(rows, dtype=object))
    np.testing.assert_array_equal(vae.transform(rows), expected.transform(np.array(rows, dtype=object)))


@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_text_of_digits_is_a_category_unless_it_is_said_to_be_none(dtype):
    codes = np.array(["01234", "02139", "94110"], dtype=object)[np.arange(90) % 3]
    frame = pd.DataFrame({"code": pd.Series(codes, dtype=dtype), "x": np.arange(90.0)})
    assert set(VAETransformer(**SMALL).fit(frame).sample(50, random_state=0)["code"]) <= set(codes)
    numbers = VAETransformer(**SMALL, categorical_features=None).fit(frame.astype({"code": object}))
    assert numbers._table.columns[0].kind == "numeric"


def test_objects_and_sparse_columns_hold_numbers():
    numbers = np.where(np.arange(100) % 4, np.arange(100) % 4, np.nan)
    usual = pd.DataFrame({"a": numbers, "b": np.arange(100.0)})
    expected = VAETransformer(**SMALL).fit(usual)
    for missing in (pd.NA, pd.NaT, None):
        objects = usual.assign(a=pd.Series([missing if np.isnan(x) else x for x in numbers], dtype=object))
        vae = VAETransformer(**SMALL).fit(objects)
        np.testing.assert_array_equal(vae.transform(objects), expected.transform(usual))
        assert not vae.impute(objects).isna().any(axis=None)
    sparse = usual.fillna(0).astype(pd.SparseDtype(float, 0))
    of_sparse = VAETransformer(**SMALL).fit(sparse)
    np.testing.assert_array_equal(of_sparse.transform(sparse), VAETransformer(**SMALL).fit_transform(usual.fillna(0)))
    assert of_sparse.feature_names_in_.tolist() == ["a", "b"]
    holes = sparse.assign(a=pd.arrays.SparseArray(np.where(np.arange(100) < 5, np.nan, numbers), fill_value=0.0))
    assert of_sparse.impute(holes)["a"].dtype == of_sparse.sample(2)["a"].dtype == float


def test_holes_of_one_container_are_filled_by_the_model_of_another():
    frame = pd.DataFrame({"x": np.arange(60.0), "kind": ["u"] * 30 + ["v"] * 30, "flag": np.arange(60) > 40})
    frame["day"] = pd.date_range("2024", periods=60)
    polars = pl.DataFrame({name: cells.to_list() for name, cells in frame.items()})
    empty = {"x": [1.0, 2.0], "kind": [None] * 2, "flag": [None] * 2, "day": [None] * 2}
    to_polars = VAETransformer(**SMALL).fit(frame).impute(pl.DataFrame(empty))
    assert to_polars.dtypes == [pl.Float64, pl.String, pl.Boolean, pl.Datetime("ms")]
    to_pandas = VAETransformer(**SMALL).fit(polars).impute(pd.DataFrame(empty, dtype=object))
    assert not to_pandas.isna().any(axis=None)
    assert to_pandas["kind"].isin(["u", "v"]).all()
    of_array = VAETransformer(**SMALL).fit(np.outer(np.arange(60.0), [1, -1]))
    with pytest.warns(UserWarning, match="X has feature names"):
        assert of_array.impute(pl.DataFrame({"a": [1.0], "b": [None]}))["b"].dtype == pl.Float64


def test_bits_are_filled_with_bits():
    bits = pd.DataFrame(np.random.default_rng(0).random((100, 4)) < 0.4, columns=list("abcd"))
    holes = bits.astype(object)
    holes.iloc[:3, 0] = None
    filled = VAETransformer(**SMALL).fit(bits).impute(holes)["a"]
    assert filled.dtype == bool
    assert (filled[3:] == bits["a"][3:]).all()


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64"])
def test_the_largest_whole_numbers_do_not_wrap_around(dtype):
    most = 2**64 - 1 if dtype == "uint64" else 2**63 - 1
    numbers = np.array([5] * 50 + [7] * 50 + [most] * 100, dtype=dtype.lower())
    frame = pd.DataFrame({"q": pd.Series(numbers).astype(dtype), "x": np.arange(200.0)})
    drawn = VAETransformer(**SMALL, marginal="quantile").fit(frame).sample(50, noise=True, random_state=0)["q"]
    assert (drawn >= 5).all()
    assert int(drawn.max()) > most - 5000
    assert drawn.dtype == frame["q"].dtype


def test_nanoseconds_are_given():
    days = pd.date_range("2024", periods=100).as_unit("ns")
    vae = VAETransformer(**SMALL).fit(pd.DataFrame({"day": days, "x": np.arange(100.0)}))
    drawn = vae.sample(3, given={"day": days.to_numpy()[:3]}, random_state=0)
    assert (drawn["day"] == days[:3]).all()
    for some in (np.array([days[0].to_datetime64(), "NaT"], dtype="M8[ns]"), pd.Series([days[0], pd.NaT])):
        drawn = vae.sample(2, given={"day": some}, random_state=0)["day"]
        assert drawn[0] == days[0]
        assert drawn.notna().all()


@pytest.mark.parametrize("far", [1e6, 1e8, 1e17])
def test_a_far_value_leaves_the_others_where_they_are(far):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"kind": rng.choice(["a", "b"], 2000), "x": np.append(rng.normal(size=1999), far)})
    vae = VAETransformer(random_state=0).fit(frame)
    places = [0.05, 0.25, 0.5, 0.75, 0.95]
    drawn = vae.sample(4000, noise=True, random_state=0)["x"]
    np.testing.assert_allclose(np.quantile(drawn, places), np.quantile(frame["x"], places), atol=0.25)  # six errors
    assert vae.score(frame[:-1]) > norm.logpdf(frame["x"][:-1]).mean() + np.log(0.5) - 0.1


def test_a_long_tail_is_drawn_as_it_is():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"kind": rng.choice(["a", "b"], 2000), "x": np.exp(5 * rng.normal(size=2000))})
    drawn = VAETransformer(random_state=0).fit(frame).sample(4000, noise=True, random_state=0)["x"]
    places = [0.25, 0.5, 0.75]
    np.testing.assert_allclose(*(np.log(np.quantile(x, places)) / 5 for x in (drawn, frame["x"])), atol=0.2)


@pytest.mark.parametrize("n_values", [4, 15])
def test_no_value_of_a_few_different_ones_is_flagged(n_values):
    rng = np.random.default_rng(0)
    x = np.where(np.arange(300) < n_values, rng.normal(size=300), np.nan)
    vae = VAETransformer(random_state=0, max_iter=2).fit(pd.DataFrame({"kind": rng.choice(["a", "b"], 300), "x": x}))
    assert vae._table.columns[1].marginal == "quantile"


@pytest.fixture(scope="module")
def skewed():
    """A table with a long tail, few whole numbers, a value that stands out and a category, and a model of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    columns = {
        "x": x,
        "income": np.exp(1.2 * rng.normal(size=600) + 0.5 * x),
        "visits": rng.geometric(0.5, size=600) - 1,
        "rain": np.where(rng.random(600) < 0.3, 0.0, np.exp(rng.normal(size=600) + x)),
        "kind": rng.choice(["a", "b"], 600),
    }
    frame = pd.DataFrame(columns).astype({"visits": float})
    return frame, VAETransformer(random_state=0, max_iter=10).fit(frame)


NUMBERS = ["x", "income", "visits", "rain"]


def assert_means_of(means, draws):
    """Within 5 standard errors of the draws (n_draws, n), and as many of 256 nodes of them."""
    errors = 5 * draws.std(axis=0) * (1 / np.sqrt(len(draws)) + 1 / np.sqrt(256)) + 1e-9
    assert (np.abs(means - draws.mean(axis=0)) < errors).all()


def test_means_of_latent_points_are_those_of_draws(skewed):
    _, vae = skewed
    Z, rng, module = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32), torch.Generator(), vae.module_
    means = vae.inverse_transform(Z)
    draws = [
        vae._fitted.decode(lambda z: module.likelihood.sample(module.decode(z), rng), Z, None)[NUMBERS].to_numpy()
        for _ in range(1000)
    ]
    for i, name in enumerate(NUMBERS):
        assert_means_of(means[name].to_numpy(), np.stack(draws)[..., i])


def test_means_of_missing_cells_are_those_of_draws(skewed):
    frame, vae = skewed
    rows = frame[:4].assign(income=np.nan, visits=np.nan, rain=np.nan)
    vae = copy.copy(vae).set_params(n_draws=1000)
    means, draws = vae.impute(rows), vae.impute(rows, sample=True, n_draws=1000, random_state=0)
    for name in NUMBERS[1:]:
        assert_means_of(means[name].to_numpy(), np.stack([draw[name] for draw in draws]))


def test_means_of_a_row_are_the_same_in_any_table(skewed):
    frame, vae = skewed
    holed = frame.mask(np.random.default_rng(0).random(frame.shape) < 0.3)
    pd.testing.assert_frame_equal(vae.impute(holed[5:8]), vae.impute(holed)[5:8])
    Z = vae.transform(frame)
    pd.testing.assert_frame_equal(vae.inverse_transform(Z[5:8]), vae.inverse_transform(Z)[5:8].reset_index(drop=True))


def test_numbers_are_guessed_better_than_by_the_mean_of_their_column(skewed):
    frame, _ = skewed
    others = pd.concat([frame[300:].assign(visits=np.nan), frame[:300]])
    guesses = VAETransformer(random_state=0).fit(others).impute(others)["visits"][:300]
    errors = [np.square(frame["visits"][300:] - guess).mean() for guess in (guesses.to_numpy(), 0.0)]
    assert errors[0] < 1.1 * frame["visits"].var() < errors[1]  # nothing tells of visits; the median is 0


def test_whole_numbers_of_their_own_type_stay_whole(skewed):
    frame, _ = skewed
    frame = frame.astype({"visits": "int64"})
    vae = VAETransformer(random_state=0, max_iter=2).fit(frame)
    means = vae.inverse_transform(vae.transform(frame))
    assert means["visits"].dtype == "int64"
    assert means["visits"].between(0, frame["visits"].max()).all()


def test_a_row_of_pandas_is_given_by_its_names():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    vae = VAETransformer(**SMALL).fit(frame)
    for row in (pd.Series({"c": 3.0, "a": 1.0}), pd.Series({"c": 3.0, "b": np.nan, "a": 1.0})):
        drawn = vae.sample(1, given=row, random_state=0)
        pd.testing.assert_frame_equal(drawn, vae.sample(1, given={"a": 1.0, "c": 3.0}, random_state=0))
        assert drawn[["a", "c"]].to_numpy().tolist() == [[1.0, 3.0]]
    vae = VAETransformer(**SMALL, condition_features=["c"]).fit(frame)
    assert vae.inverse_transform([[0, 0]], conditions=pd.Series({"c": 5.0}))["c"].tolist() == [5.0]


def test_a_flagged_number_is_known_as_float32():
    rng = np.random.default_rng(0)
    price = np.where(rng.random(150) < 0.4, 9.99, rng.gamma(2, 10, 150))
    frame = pd.DataFrame({"price": price, "kind": rng.choice(["a", "b"], 150)})
    vae = VAETransformer(**SMALL).fit(frame)
    assert vae._table.columns[0].spike == 9.99
    scores = vae.score_samples(frame.astype({"price": "float32"}))
    np.testing.assert_allclose(scores, vae.score_samples(frame), atol=1e-4)  # of the others' rounding
    assert vae.sample(1, given={"price": np.float32(9.99)}).shape == (1, 2)


def test_observed_cells_keep_their_bits_whatever_the_dtype_of_fit():
    X = np.random.default_rng(0).normal(loc=[0, 0, 123456789], size=(60, 3))
    vae = VAETransformer(**SMALL).fit(X.astype(np.float32))
    holes = X.copy()
    holes[0, 0] = np.nan
    filled = vae.impute(holes)
    assert filled.dtype == np.float64
    np.testing.assert_array_equal(filled[1:], X[1:])
    assert vae.impute(holes.astype(np.float32)).dtype == np.float32


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_cells_of_arrays_of_objects_are_filled_as_their_columns_are():
    rng, n = np.random.default_rng(0), 60
    columns = {"n": rng.normal(size=n), "k": ["a", "b"] * 30, "b": [True, False] * 30}
    frame = pd.DataFrame(columns | {"when": pd.date_range("2024-01-01", periods=n)})
    vae, rows = VAETransformer(**SMALL).fit(frame), frame.to_numpy()
    for i in range(4):
        rows[i, i] = None
    filled = vae.impute(rows)
    assert [type(filled[i, i]) for i in range(4)] == [float, str, bool, pd.Timestamp]
    np.testing.assert_array_equal(filled[4:], rows[4:])


def test_a_fill_value_in_a_small_unit_is_far_off():
    frame = pd.DataFrame({"size": 1e-3 * np.random.default_rng(0).normal(size=60), "kind": ["a", "b"] * 30})
    vae, far = VAETransformer(**SMALL).fit(frame), frame.copy()
    far.loc[[0, 1], "size"] = [9.97e36, -9.97e36]
    scores = vae.score_samples(far)
    assert (scores[:2] < -1e60).all()
    np.testing.assert_array_equal(scores[2:], vae.score_samples(frame)[2:])


def test_nested_names_and_dtypes_of_categories_come_back():
    X = np.random.default_rng(0).normal(size=(60, 4))
    nested = pd.DataFrame(X, columns=pd.MultiIndex.from_product([["x", "y"], ["m", "s"]]))
    assert VAETransformer(**SMALL).fit(nested).sample(3)["x"].shape == (3, 2)
    small = pd.Series([1, 2, 3] * 20, dtype="int8").astype("category")
    text = pd.Series(["u", "v"] * 30, dtype="string").astype("category")
    frame = pd.DataFrame({"small": small, "text": text, "n": X[:, 0]})
    vae, holed = VAETransformer(**SMALL).fit(frame), frame.copy()
    holed.loc[0, ["small", "text"]] = [None, None]
    for rows in (vae.sample(3), vae.impute(holed), pd.concat([frame, vae.sample(3)])):
        assert (rows.dtypes == frame.dtypes).all()


def test_what_was_dates_and_categories_that_are_not_used_are_named():
    when, n = pd.date_range("2024-01-01", periods=60), np.random.default_rng(0).normal(size=60)
    frame = pd.DataFrame({"n": n, "when": when})
    vae = VAETransformer(**SMALL).fit(frame)
    with pytest.raises(ValueError, match="Column 'when' held dates in fit, and does not now"):
        vae.score(frame.assign(when=when.astype("int64")))
    many = pd.CategoricalDtype([f"k{i}" for i in range(1000)])
    frame = pd.DataFrame({"n": n, "kind": pd.Series(["k0", "k7"] * 30, dtype=many)})
    with pytest.raises(ValueError, match=r"'kind' has 1000 categories .*cells of 2 of them.*remove_unused_categories"):
        VAETransformer(**SMALL).fit(frame)
    frame["kind"] = frame["kind"].cat.remove_unused_categories()
    assert np.isfinite(VAETransformer(**SMALL).fit(frame).score(frame))


@pytest.mark.parametrize("location", [-1000, -60, 0, 10, 35, 1000])
@pytest.mark.parametrize("log_scale", [-5, 0, 2, 5])
def test_levels_have_all_of_the_probability(location, log_scale):
    levels = torch.arange(3.0)[:, None].double()
    ordinal = built(Ordinal([3]), 1, levels)
    raw = torch.tensor([[location], [log_scale]]).double().expand(3, 2, 1)
    assert ordinal.log_prob(raw, levels).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_conditions_that_are_drawn_are_those_of_rows_that_have_them():
    rng, n = np.random.default_rng(0), 500
    kind = rng.choice(["u", "v", "w"], n, p=[0.4, 0.3, 0.3])
    x = pd.Series(kind).map({"u": 0.0, "v": 5.0, "w": 10.0}) + 0.5 * rng.normal(size=n)
    frame = pd.DataFrame({"x": x, "y": x + rng.normal(size=n), "kind": kind, "size": rng.normal(3, 1, n)})
    frame = frame.mask(rng.random(frame.shape) < [0, 0, 0.4, 0.4])
    options = {"condition_features": ["kind", "size"], "random_state": 0, "max_iter": 60}
    drawn = VAETransformer(1, **options).fit(frame).sample(2000, noise=True, random_state=0)
    shares = drawn["kind"].value_counts(normalize=True)
    expected = frame["kind"].value_counts(normalize=True)
    np.testing.assert_allclose(shares[expected.index], expected, atol=4 * np.sqrt(0.25 / 2000))
    means = drawn.groupby("kind")["x"].mean()
    np.testing.assert_allclose(means[["u", "v", "w"]], [0, 5, 10], atol=0.7)
    assert drawn["size"].isin(frame["size"]).all()


def test_columns_without_any_value_are_missing_among_given_cells_too():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=100), "e": np.nan})
    frame["b"] = frame["a"] + rng.normal(size=100)
    vae = VAETransformer(**SMALL).fit(frame)
    none = vae.sample(3, given={"a": 1.0}, random_state=0)
    far = vae.sample(3, given={"a": 1.0, "e": 1e6}, random_state=0)
    pd.testing.assert_series_equal(far["b"], none["b"])
    assert far["e"].tolist() == [1e6] * 3
    vae = VAETransformer(**SMALL, condition_features=["e"]).fit(frame)
    pd.testing.assert_frame_equal(
        *(vae.inverse_transform([[1, 0]], conditions={"e": value})[["a", "b"]] for value in (0.0, 1e3))
    )


@pytest.mark.parametrize("n_rows", [1, 2, 7])
def test_means_of_rows_have_the_bits_that_each_has_alone(n_rows):
    frame = mixed()
    vae = VAETransformer(**SMALL).fit(frame)
    Z = np.random.default_rng(0).normal(size=(100, 2))
    whole = vae.inverse_transform(Z)
    parts = pd.concat([vae.inverse_transform(Z[i : i + n_rows]) for i in range(0, 100, n_rows)], ignore_index=True)
    pd.testing.assert_frame_equal(parts, whole, check_exact=True)
