"""The outlier detector: scikit-learn's checks, its score by hand, and what planted outliers look like."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib import pyplot as plt
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAEOutlierDetector, VAETransformer, _outliers
from skvae.displays import ExplanationDisplay
from skvae.likelihoods import Gaussian, Poisson

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 5}
X = load_iris().data


def detector(vae=None, **params):
    vae = VAETransformer(2, likelihood=Gaussian(noise="feature"), **SMALL | (vae or {}))
    return VAEOutlierDetector(vae, **{"random_state": 0} | params)


@pytest.fixture(scope="module")
def line():
    """Rows near a line in five columns, and a detector of them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 1)) * [1, 2, -1, 3, 1] + 0.1 * rng.normal(size=(400, 5))
    return rows, detector({"max_iter": 30}).fit(rows)


@parametrize_with_checks([detector(), VAEOutlierDetector(VAETransformer(**SMALL), contamination=0.1, random_state=0)])
def test_sklearn_check(estimator, check):
    check(estimator)


def test_score_by_hand(line):
    """Four shortfalls in units of their means."""
    rows, fitted = line
    new = np.vstack([rows[:3] + 0.5, rows[3:6]])
    model, scaler = fitted.estimator_, StandardScaler().fit(rows)
    best = np.quantile(model.score_samples(rows), 0.99)
    of_model = [lambda x: best - model.score_samples(x), lambda x: (model.transform(x) ** 2).sum(1)]
    strangeness = sum(part(rows) / part(rows).mean() for part in of_model)

    def squares(x, among):
        """Of rows that are training rows themselves, without themselves."""
        distances = NearestNeighbors(n_neighbors=6).fit(scaler.transform(among)).kneighbors(scaler.transform(x))[0] ** 2
        own = distances[:, 0] < 1e-12
        return np.where(own, distances[:, 1:].mean(1), distances[:, :-1].mean(1))

    ordinary = rows[np.argsort(strangeness)[:360]]
    parts = [*of_model, lambda x: squares(x, rows), lambda x: squares(x, ordinary)]
    expected = sum(-w * part(new) / part(rows).mean() for w, part in zip((0.2, 0.2, 0.4, 0.2), parts, strict=True))
    np.testing.assert_allclose(fitted.score_samples(new), expected, rtol=1e-4)
    assert fitted.score_samples(rows).mean() == pytest.approx(-1)


def test_rows_that_all_have_twins_score_about_minus_one():
    bits = pd.DataFrame(np.random.default_rng(0).random((120, 3)) < 0.5, columns=list("abc"))
    bits["d"] = bits["a"]
    fitted = detector().fit(bits)
    assert fitted._weights[2] > 0.5  # though no row lacks a near one
    assert fitted.score_samples(bits).mean() == pytest.approx(-1)
    odd = bits.head(1).assign(d=~bits["a"].head(1))
    assert fitted.score_samples(odd) < fitted.score_samples(bits).min()


def test_planted_rows_are_found(line):
    """Columns that are ordinary one by one, but not together."""
    rows, fitted = line
    broken = rows[:100] * [1, 1, 1, 1, -1]
    broken = broken[np.abs(broken[:, 4]) > 0.5]
    scores = fitted.score_samples(np.vstack([rows, broken]))
    assert roc_auc_score(np.arange(len(scores)) < len(rows), scores) > 0.99
    assert (fitted.predict(broken) == -1).all()


def test_outliers_among_the_training_rows_are_found():
    """A clump of equal rows, whose nearest neighbours are each other."""
    rng = np.random.default_rng(0)
    rows = np.vstack([rng.normal(size=(300, 4)), 6 + 1e-3 * rng.normal(size=(12, 4))])
    scores = detector({"max_iter": 20}).fit(rows).score_samples(rows)
    assert roc_auc_score(np.arange(312) < 300, scores) > 0.99


def test_explanation_names_the_column(line):
    rows, fitted = line
    for column in range(5):
        broken = rows[:20].copy()
        broken[:, column] += 3 * rows.std(axis=0)[column]
        nats = fitted.explain(broken)
        assert nats.shape == (20, 5)
        assert (nats.argmax(axis=1) == column).all()


def test_explanation_is_the_gain_in_nats(line):
    """By what the model expects of the column where it does not see it."""
    rows, fitted = line
    model, changed = fitted.estimator_, rows[:5].copy()
    changed[:, 1] = np.nan
    changed = model.impute(changed)
    gain = model.score_samples(changed) - model.score_samples(rows[:5])
    np.testing.assert_allclose(fitted.explain(rows[:5])[:, 1], gain, rtol=1e-6)


def test_frames_with_holes_and_categories_are_taken():
    rng = np.random.default_rng(0)
    size = rng.normal(size=300)
    frame = pd.DataFrame({"size": size, "kind": np.where(size > 0, "big", "small"), "other": rng.normal(size=300)})
    frame.loc[::9, "other"] = None
    fitted = VAEOutlierDetector(random_state=0).fit(frame)
    strange = frame.head(40).assign(kind=lambda part: np.where(part["size"] > 0, "small", "big"))
    assert roc_auc_score([0] * 40 + [1] * 40, -fitted.score_samples(pd.concat([frame.head(40), strange]))) > 0.8
    nats = fitted.explain(strange)
    assert (nats[:, [0, 1]].max(axis=1) > nats[:, 2]).mean() > 0.8
    assert (nats[::9, 2] == 0).all()


def test_same_seed_same_scores():
    first, second = (detector().fit(X).score_samples(X) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, detector(random_state=1).fit(X).score_samples(X))


def test_seed_of_the_model_is_kept():
    scores = [detector({"random_state": 5}, random_state=seed).fit(X).score_samples(X) for seed in (0, 1)]
    assert np.array_equal(*scores)


def test_given_model_is_not_touched():
    given = detector()
    given.fit(X)
    assert given.estimator.random_state is None
    assert not hasattr(given.estimator, "net_")


def test_default_model():
    fitted = VAEOutlierDetector(random_state=0).fit(X)
    assert fitted.estimator_.likelihood.noise == "feature"
    assert fitted.offset_ == -3
    assert roc_auc_score(np.r_[np.ones(150), np.zeros(5)], fitted.score_samples(np.vstack([X, X[:5] + 3]))) == 1


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_contamination_is_the_share_of_outliers(share):
    assert (detector(contamination=share).fit_predict(X) == -1).sum() == share * len(X)


@pytest.mark.parametrize(
    "table",
    {
        "unit interval": MinMaxScaler().fit_transform(X),
        "constant column": np.column_stack([X, np.full(150, 3.0)]),
        "all rows twice": np.vstack([X, X]),
        "few values": X.round(),
        "integers": (10 * X).astype(np.int16),
        "bytes": (10 * X).astype(np.uint8),
        "bits": (X > 2.5).astype(int),
        "float32": X.astype(np.float32),
        "one column": X[:, :1],
        "fewer rows than neighbours": X[:3],
        "equal rows": np.ones((10, 3)),
        "a fill value": np.where(np.arange(150)[:, None] == 7, 1e20, X),
    }.values(),
    ids=lambda table: f"{table.shape}{table.dtype}",
)
def test_tables_of_all_kinds(table):
    scores = detector().fit(table).score_samples(table)
    assert scores.shape == (len(table),)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("far", [1e6, 1e20, 1e36])
def test_far_rows_are_outliers(far):
    fitted = detector().fit(X)
    assert fitted.predict([[far, 3, 1, 0], [5, 3, -far, 0]]).tolist() == [-1, -1]
    assert not np.isnan(fitted.score_samples([[far, 3, 1, 0]])).any()


def test_many_rows_are_thinned(monkeypatch):
    monkeypatch.setattr(_outliers, "MAX_ROWS", 100)
    fitted = detector().fit(X)
    assert [len(nearby.rows) for nearby in fitted._nearby] == [100, 90]
    assert fitted.score_samples(X).mean() == pytest.approx(-1, abs=0.2)


def test_names_of_columns():
    frame = load_iris(as_frame=True).data
    fitted = detector().fit(frame)
    assert list(fitted.feature_names_in_) == list(frame)
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(frame.rename(columns=str.upper))
    np.testing.assert_array_equal(fitted.score_samples(frame), detector().fit(X).score_samples(X))


REFUSED = [
    (np.full((10, 2), np.inf), "Input X contains infinity"),
    (np.ones((1, 2)), "minimum of 2 is required"),
    (
        pd.DataFrame(np.ones((1, 2))),
        r"1 sample\(s\) .* minimum of 2 is required by VAEOutlierDetector",
    ),
    (np.array([["a"], ["b"], ["c"]]), "Columns of X that are not numbers: 0"),
]


@pytest.mark.parametrize(("table", "words"), REFUSED)
def test_bad_rows_are_refused_before_training(table, words):
    with pytest.raises(ValueError, match=words):
        detector().fit(table)


@pytest.mark.parametrize("params", [{"contamination": 0.6}, {"contamination": 0.0}, {"n_neighbors": 0}])
def test_bad_parameters_are_refused(params):
    with pytest.raises(ValueError, match=f"The '{next(iter(params))}' parameter of VAEOutlierDetector must be"):
        detector(**params).fit(X)


@pytest.mark.parametrize("method", ["score_samples", "decision_function", "predict", "explain"])
def test_not_fitted(method):
    with pytest.raises(NotFittedError):
        getattr(detector(), method)(X)


def test_wrong_number_of_columns():
    with pytest.raises(ValueError, match="X has 3 features, but VAEOutlierDetector is expecting 4 features"):
        detector().fit(X).predict(X[:, :3])


@pytest.fixture
def _figures():
    """Draw into memory, and leave no figure open."""
    backend = plt.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.mark.usefixtures("_figures")
def test_display_draws_the_largest_losses(line):
    rows, fitted = line
    broken = rows[:3] + 5 * np.eye(5)[2]
    shown = ExplanationDisplay.from_estimator(fitted, broken, n_features=3)
    assert len(shown.axes_) == 3
    for ax, bars, nats in zip(shown.axes_, shown.bars_, shown.nats, strict=True):
        assert ax.get_yticklabels()[0].get_text() == "x2"
        assert [bar.get_width() for bar in bars] == sorted(nats)[:-4:-1]
        assert ax.get_title().startswith("score -")


@pytest.mark.usefixtures("_figures")
def test_display_draws_again(line):
    rows, fitted = line
    figure, axes = plt.subplots(2)
    first = ExplanationDisplay.from_estimator(fitted, rows[:2], ax=axes, bar_kw={"color": "k"})
    assert first.figure_ is figure
    again = ExplanationDisplay(nats=first.nats, feature_names=first.feature_names).plot()
    assert again.figure_ is not figure
    assert again.axes_[0].get_title() == ""


@pytest.mark.usefixtures("_figures")
def test_display_names_the_columns_and_checks():
    frame = load_iris(as_frame=True).data
    shown = ExplanationDisplay.from_estimator(detector().fit(frame), frame.iloc[:1])
    assert {label.get_text() for label in shown.axes_[0].get_yticklabels()} == set(frame)
    with pytest.raises(ValueError, match="Expected ax to have 2 axes, got 1"):
        shown.from_estimator(detector().fit(X), X[:2], ax=plt.subplots()[1])
    with pytest.raises(NotFittedError):
        ExplanationDisplay.from_estimator(detector(), X)


@pytest.mark.parametrize("bad", [np.array([[1.0, np.inf], [2.0, 3.0]] * 20), np.zeros((1, 2))])
def test_a_refused_fit_leaves_the_detector_as_it_was(bad):
    X = load_iris().data
    detector = VAEOutlierDetector(estimator=VAETransformer(2, **SMALL)).fit(X)
    scores = detector.score_samples(X)
    with pytest.raises(ValueError, match=r"infinity|minimum of 2"):
        detector.fit(bad)
    np.testing.assert_array_equal(detector.score_samples(X), scores)


def test_columns_may_have_numbers_for_names_and_rows_may_be_lists():
    X = load_iris().data
    detector = VAEOutlierDetector(estimator=VAETransformer(2, **SMALL)).fit(pd.DataFrame(X))
    assert detector.explain(pd.DataFrame(X[:3])).shape == (3, 4)
    rows = [[None, *row[1:]] for row in X[:60].tolist()]
    of_lists = VAEOutlierDetector(estimator=VAETransformer(2, **SMALL)).fit(rows).explain(rows[:3])
    assert (of_lists[:, 0] == 0).all()


def test_what_is_unknown_loses_nothing_and_what_was_moved_is_blamed():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=80), "kind": rng.choice(["a", "b"], 80)})
    detector = VAEOutlierDetector(VAETransformer(2, max_iter=3, random_state=0)).fit(frame)
    assert detector.explain(frame.head(2).assign(kind="never seen"))[:, 1].tolist() == [0, 0]
    bits = (rng.random((80, 4)) < 0.5).astype(float)
    detector = VAEOutlierDetector(VAETransformer(2, max_iter=3, random_state=0)).fit(bits)
    assert detector.explain([[0, 2000, 1, 0]]).argmax() == 1


def test_sums_of_rows_cannot_be_explained():
    X = np.random.default_rng(0).poisson(5, size=(80, 4)).astype(float)
    model = VAETransformer(2, likelihood=Poisson(size_factor="sum"), max_iter=3, random_state=0)
    with pytest.raises(ValueError, match="needs the whole row"):
        VAEOutlierDetector(model).fit(X).explain(X)


def test_arrays_of_words_are_taken_where_the_model_takes_them():
    rng = np.random.default_rng(0)
    X = np.array(
        [[x, kind] for x, kind in zip(rng.normal(size=80), rng.choice(["a", "b"], 80), strict=True)], dtype=object
    )
    model = VAETransformer(2, categorical_features=[1], max_iter=3, random_state=0)
    detector = VAEOutlierDetector(model).fit(X)
    expected = detector.explain(X[:3])
    assert expected.shape == (3, 2)
    for rows in (X.astype(str), X.tolist()):
        np.testing.assert_array_equal(VAEOutlierDetector(model).fit(rows).explain(rows[:3]), expected)
    with pytest.raises(ValueError, match="categorical_features"):
        VAEOutlierDetector(VAETransformer(2)).fit(X)


def test_ctrl_c_leaves_the_detector_as_it_was(monkeypatch):
    X = load_iris().data
    detector = VAEOutlierDetector(estimator=VAETransformer(2, **SMALL)).fit(X)
    scores = detector.score_samples(X)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(VAETransformer, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(X[:, :3])
    np.testing.assert_array_equal(detector.score_samples(X), scores)


def test_a_missing_or_unknown_category_is_not_strange():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"rooms": rng.integers(1, 6, 400), "size": rng.normal(80, 10, 400), "kind": rng.choice(["a", "b"], 400)}
    )
    detector = VAEOutlierDetector(random_state=0).fit(frame[:250])
    for kind in (None, "c"):
        assert (detector.predict(frame[250:].assign(kind=kind)) == -1).mean() < 0.2
    assert detector.predict(frame.head(3).assign(rooms=[3, 500, -40])).tolist()[1:] == [-1, -1]


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_output_in_frames_changes_no_score(kind, table):
    model = VAETransformer(2, max_iter=1, early_stopping=False, random_state=0)
    expected = VAEOutlierDetector(model).fit(table()).score_samples(table())
    detector = VAEOutlierDetector(clone(model).set_output(transform=kind)).fit(table())
    np.testing.assert_array_equal(detector.score_samples(table()), expected)
    with config_context(transform_output=kind):
        np.testing.assert_array_equal(VAEOutlierDetector(model).fit(table()).score_samples(table()), expected)


def test_a_detector_of_something_else_can_be_shown():
    assert "foo" in VAEOutlierDetector("foo")._repr_html_()


@pytest.mark.parametrize("seed", range(3))
def test_a_row_alone_is_what_it_is_among_others(seed):
    """With 101 rows and a tenth of outliers `offset_` is a row's own score, where its last bit decides."""
    rows = np.random.default_rng(seed).normal(size=(101, 4))
    fitted = VAEOutlierDetector(VAETransformer(2, **SMALL), contamination=0.1, random_state=0).fit(rows)
    scores = fitted.score_samples(rows)
    assert fitted.offset_ in scores
    np.testing.assert_array_equal(np.concatenate([fitted.score_samples(row[None]) for row in rows]), scores)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame, pl.DataFrame], ids=["array", "pandas", "polars"])
def test_a_row_with_a_hole_is_explained_by_what_it_has(container, unit):
    """The model is linear with one factor: what a column loses is known, and the unit of another has no say in it."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(400, 1)) + 0.3 * rng.normal(size=(400, 4))) * [1, 1, 1, unit]
    linear = {"hidden_layer_sizes": (), "likelihood": Gaussian(noise="feature"), "max_iter": 3, "early_stopping": False}
    names = list("abcd")
    make = container if container is np.asarray else lambda X: container(dict(zip(names, X.T, strict=True)))
    detector = VAEOutlierDetector(VAETransformer(1, **linear), random_state=0).fit(make(rows))
    whole, holed = np.tile([[0.5, 0.5, 0.5, 0.5 * unit], [0.5, 2.5, 0.5, 0.5 * unit]], (2, 1)).reshape(2, 2, 4)
    holed[:, 3] = np.nan
    nats = detector.explain(make(holed))
    assert (nats[:, 3] == 0).all()
    np.testing.assert_allclose(nats[0, :3], 0, atol=0.1)
    expected = detector.explain(make(whole))[1, 1]  # of which a third column tells a little more
    assert nats[1, 1] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("seed", range(2))
def test_a_row_of_a_mixed_table_alone_is_what_it_is_among_others(seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=120)
    columns = {
        "a": np.exp(z + 0.5 * rng.normal(size=120)),
        "b": z + rng.normal(size=120),
        "w": rng.choice(["u", "v"], 120),
    }
    frame = pd.DataFrame(columns)
    frame = frame.mask(rng.random(frame.shape) < 0.15)
    fitted = VAEOutlierDetector(VAETransformer(2, **SMALL), contamination=0.2, random_state=0).fit(frame)
    alone = [fitted.score_samples(frame[i : i + 1]) for i in range(len(frame))]
    np.testing.assert_array_equal(np.concatenate(alone), fitted.score_samples(frame))
