"""VAEImputer: scikit-learn's checks, the names of IterativeImputer, frames."""

import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.datasets import load_iris, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAEImputer, VAETransformer

SMALL = VAETransformer(2, max_iter=2, hidden_layer_sizes=8, random_state=0)


def holed(seed=0, share=0.2):
    X = load_wine().data
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # two epochs
@parametrize_with_checks([VAEImputer(SMALL, random_state=0)])
def test_sklearn_check(estimator, check):
    check(estimator)


def test_it_is_what_the_model_imputes():
    X = holed()
    imputer = VAEImputer(SMALL, random_state=0).fit(X)
    np.testing.assert_array_equal(imputer.transform(X), SMALL.fit(X).impute(X))
    drawing = VAEImputer(SMALL, sample_posterior=True, random_state=0).fit(X)
    np.testing.assert_array_equal(drawing.transform(X), SMALL.impute(X, sample=True, random_state=0))


def test_other_marks_of_missing_cells_and_limits():
    X = holed()
    marked = np.where(np.isnan(X), -1.0, X)
    imputer = VAEImputer(SMALL, missing_values=-1, min_value=2.0, max_value=[30.0] * 13, random_state=0).fit(marked)
    filled = imputer.transform(marked)
    assert filled[np.isnan(X)].min() >= 2
    assert filled[np.isnan(X)].max() <= 30
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
    with pytest.raises(ValueError, match=r"'max_value' should be of shape \(13,\)"):
        VAEImputer(SMALL, max_value=[1.0, 2.0]).fit(X)


@pytest.mark.parametrize("keep", [False, True])
def test_columns_without_a_value_and_indicators(keep):
    X = holed()
    X[:, 4], X[:, 6] = np.nan, load_wine().data[:, 6]
    imputer = VAEImputer(SMALL, keep_empty_features=keep, add_indicator=True, random_state=0).fit(X)
    filled, names = imputer.transform(X), list(imputer.get_feature_names_out())
    assert filled.shape == (178, len(names))
    assert ("x4" in names) is keep
    assert "missingindicator_x6" not in names
    np.testing.assert_array_equal(filled[:, names.index("missingindicator_x0")], np.isnan(X[:, 0]))
    if keep:
        assert (filled[:, names.index("x4")] == 0).all()


def test_frames_come_back_filled():
    frame = pd.DataFrame(holed()[:, :3], columns=list("abc"), index=range(100, 278))
    frame["kind"] = pd.Categorical(np.where(np.arange(178) % 3, "u", None))
    imputer = VAEImputer(SMALL, add_indicator=True, random_state=0).fit(frame)
    filled = imputer.transform(frame)
    assert list(filled.columns) == list(imputer.get_feature_names_out())
    assert filled.index.equals(frame.index)
    assert not filled.isna().to_numpy().any()
    assert filled["kind"].dtype == frame["kind"].dtype
    with pytest.raises(ValueError, match="hold for arrays"):
        VAEImputer(SMALL, min_value=0.0).fit(frame)


def test_a_classifier_behind_it():
    y = load_wine().target
    pipeline = make_pipeline(VAEImputer(random_state=0), StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, holed(), y, cv=3).mean() > 0.9


def test_a_refused_fit_leaves_the_imputer_as_it_was():
    X = load_iris().data.copy()
    X[::7, 0] = np.nan
    imputer = VAEImputer(VAETransformer(2, max_iter=3, random_state=0)).fit(X)
    filled = imputer.transform(X)
    with pytest.raises(ValueError, match="infinity"):
        imputer.fit(np.where(X[:, :2] > 5, np.inf, X[:, :2]))
    np.testing.assert_array_equal(imputer.transform(X), filled)


def test_limits_leave_some_number():
    with pytest.raises(ValueError, match="min_value >= max_value"):
        VAEImputer(min_value=1, max_value=-1).fit(load_iris().data)


def test_lists_of_words_are_refused_with_what_to_do():
    with pytest.raises(
        ValueError, match=r"could not convert string to float: 'a'\. Columns of X that are not numbers: 0\. "
    ):
        VAEImputer().fit([["a", 1.0], ["b", np.nan]] * 10)


def test_arrays_of_words_are_filled_where_the_model_takes_them():
    rng = np.random.default_rng(0)
    X = np.array(
        [[x, kind] for x, kind in zip(rng.normal(size=80), rng.choice(["a", "b"], 80), strict=True)], dtype=object
    )
    X[::7, 1] = None
    imputer = VAEImputer(VAETransformer(2, categorical_features=[1], max_iter=3, random_state=0))
    filled = imputer.fit_transform(X)
    np.testing.assert_array_equal(imputer.fit_transform(X.tolist()), filled)
    assert set(filled[:, 1]) == {"a", "b"}
    assert (filled[1:7] == X[1:7]).all()


def test_columns_without_any_value_of_a_frame_are_zero():
    frame = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0)[::-1], "e": np.nan})
    imputer = VAEImputer(VAETransformer(2, max_iter=3, random_state=0), keep_empty_features=True, sample_posterior=True)
    untyped = pl.DataFrame(frame).with_columns(e=pl.lit(None))
    assert VAEImputer(SMALL).fit_transform(untyped).columns == ["a", "b"]
    for X in (frame, pl.DataFrame(frame), frame.astype({"e": object}), untyped):
        assert (np.asarray(imputer.fit_transform(X)["e"], dtype=float) == 0).all()


def test_what_stands_for_missing_cells_of_frames_is_theirs():
    with pytest.raises(ValueError, match="missing_values=-1 holds for arrays"):
        VAEImputer(missing_values=-1).fit(pd.DataFrame({"a": [-1.0, 2.0] * 10, "b": [1.0, 2.0] * 10}))


@pytest.mark.parametrize("missing_values", ["?", "", pd.NA, 10**30], ids=str)
def test_every_imputer_can_be_shown(missing_values):
    imputer = VAEImputer(missing_values=missing_values)
    assert "VAEImputer" in imputer._repr_html_()
    get_tags(imputer)


@pytest.mark.parametrize("limit", [["a"] * 5, {}], ids=str)
def test_limits_that_are_no_numbers_are_named(limit, table, n_steps):
    with pytest.raises(ValueError, match="'min_value'"):
        VAEImputer(min_value=limit).fit(table())
    assert n_steps == []


def test_imputers_are_equal_after_pickle(table):
    imputer = VAEImputer(VAETransformer(2, max_iter=1, early_stopping=False), random_state=0).fit(table())
    assert joblib.hash(pickle.loads(pickle.dumps(imputer))) == joblib.hash(imputer)


@pytest.mark.parametrize("library", [pd, pl])
def test_an_indicator_takes_no_column_of_the_user(library):
    b = np.random.default_rng(0).normal(size=60)
    X = library.DataFrame({"a": [None, *b[1:]], "missingindicator_a": b})
    with pytest.raises(ValueError, match="X has a column 'missingindicator_a', which is the name of an indicator"):
        VAEImputer(SMALL, add_indicator=True).fit(X)
    assert VAEImputer(SMALL).fit_transform(X).shape == (60, 2)


def test_a_fitted_model_fills_as_it_is():
    X = load_wine().data
    vae = VAETransformer(2, max_iter=2, random_state=0).fit(X)
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    filled = VAEImputer(FrozenEstimator(vae)).fit(X).transform(holes)
    np.testing.assert_array_equal(filled, vae.impute(holes))
