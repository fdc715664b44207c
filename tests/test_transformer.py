import pickle
import re
from functools import partial

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from joblib import Parallel, delayed
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from skorch.callbacks import Callback
from torch import nn

from skvae import VAETransformer, load
from skvae._training.net import Net
from skvae.architectures import MLP, Custom
from skvae.inits import LinearInit
from skvae.likelihoods import LIKELIHOODS, Bernoulli, ContinuousBernoulli, Gaussian, Likelihood
from skvae.metrics import log_likelihood
from skvae.objectives import ELBO
from skvae.priors import Mixture, StandardNormal

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 10, "random_state": 0}
WINE, DIGITS = load_wine().data, load_digits().data
each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)


def small(z_dim=2, **params):
    return VAETransformer(z_dim, **(SMALL | params))


def outputs(vae, X):
    """All that depends on the fitted model, as arrays to be compared bit by bit."""
    Z = vae.transform(X)
    draws = [vae.sample(5, noise=noise, random_state=1) for noise in (False, True)]
    return [Z, *vae.posterior(X), vae.score_samples(X), *map(np.asarray, [vae.inverse_transform(Z), *draws])]


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


# Scaling


@pytest.mark.parametrize("noise", ["feature", "shared", "row"])
@pytest.mark.parametrize("seed", range(2))
def test_gaussian_model_owns_its_scaling(noise, seed):
    rng = np.random.default_rng(seed)
    factor = 10.0 ** rng.uniform(-6, 6, WINE.shape[1])
    X, Y = WINE, WINE * factor + factor * rng.normal(scale=100, size=WINE.shape[1])
    plain, scaled = (small(3, max_iter=5, likelihood=Gaussian(noise)).fit(data) for data in (X, Y))
    assert np.abs(plain.transform(X) - scaled.transform(Y)).max() < 1e-3
    jacobian = -np.log(factor).sum()
    # float32 in the model's units; the Jacobian itself is of order 100
    assert scaled.score(Y) - jacobian == pytest.approx(plain.score(X), abs=1e-3)
    assert scaled.loss_curve_[-1] + jacobian == pytest.approx(plain.loss_curve_[-1], abs=1e-3)
    back = scaled.inverse_transform(scaled.transform(Y)) - plain.inverse_transform(plain.transform(X)) * factor
    np.testing.assert_allclose(back / (factor * X.std(0)), (Y - X * factor) / (factor * X.std(0)), atol=1e-2)


@each_likelihood
def test_score_is_the_mean_of_score_samples(likelihood, table):
    X = table(likelihood)
    vae = small(likelihood=likelihood).fit(X)
    assert type(vae.score(X)) is float
    assert vae.score(X) == np.mean(vae.score_samples(X))
    assert vae.score_samples(X).shape == (60,)
    # the loss of the last epoch bounds the log-likelihood, up to its noise
    assert -vae.loss_curve_[-1] < vae.score(X) + 1


@each_likelihood
def test_kl_of_the_last_epoch_is_that_of_the_report(likelihood, table):
    """Up to what its steps changed; of a normal prior, whose KL is a sum over units."""
    vae = small(likelihood=likelihood, prior="standard_normal").fit(table(likelihood))
    assert vae.kl_curve_[-1] == pytest.approx(vae.kl_per_unit_.sum(), rel=0.2)


@each_likelihood
def test_score_converges_with_the_number_of_draws(likelihood, table):
    X = table(likelihood, n_rows=300)
    vae = small(likelihood=likelihood, max_iter=20).fit(X)
    few, some, many = (vae.set_params(n_draws=n_draws).score(X) for n_draws in (20, 200, 2000))
    assert few == pytest.approx(many, abs=0.5)
    assert some == pytest.approx(many, abs=0.25)  # the mean of importance weights has a heavy tail


# Same seed, same bits


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few rows and few steps
@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
@each_likelihood
def test_same_seed_same_bits(likelihood, early_stopping, table):
    X = table(likelihood)
    vae = small(likelihood=likelihood, early_stopping=early_stopping, init="random", max_iter=20).fit(X)
    first = outputs(vae, X)
    assert_same_bits(first, outputs(vae.fit(X), X))
    assert_same_bits(first, outputs(clone(vae).fit(X), X))
    other = outputs(clone(vae).set_params(random_state=1).fit(X), X)
    assert not np.array_equal(first[0], other[0])


def test_threads_do_not_share_a_stream(table):
    X = table(n_rows=200)
    fits = Parallel(n_jobs=2, backend="threading")(
        delayed(lambda seed: outputs(small(random_state=seed, max_iter=5).fit(X), X))(seed) for seed in (0, 1, 0, 1)
    )
    alone = outputs(small(max_iter=5).fit(X), X)
    assert_same_bits(fits[0], alone)
    assert_same_bits(fits[0], fits[2])
    assert_same_bits(fits[1], fits[3])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_partial_fit_is_fit_in_pieces(optimizer, table):
    X = table()
    params = {"optimizer": optimizer, "learning_rate": 1e-3 if optimizer == "sgd" else 1e-2}
    whole = small(max_iter=4, **params).fit(X)
    pieces, resumed = small(**params), small(max_iter=2, **params).fit(X)
    for _ in range(4):
        pieces.partial_fit(X)
    resumed = pickle.loads(pickle.dumps(resumed)).partial_fit(X).partial_fit(X)
    warm = small(max_iter=2, warm_start=True, **params).fit(X).fit(X)
    for vae in (pieces, resumed, warm):
        assert vae.n_iter_ == 4
        assert vae.loss_curve_ == whole.loss_curve_
        assert_same_bits(outputs(vae, X), outputs(whole, X))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_drawn_bits_belong_to_the_epoch(early_stopping, table):
    """However training is cut into calls; and the rows of X stay grey."""
    X = (0.9 * table("bernoulli") + 0.05).astype(np.float32)
    before, params = X.copy(), {"likelihood": Bernoulli(binarize=True), "early_stopping": early_stopping}
    whole, again, grey = (
        small(max_iter=4, **params),
        small(max_iter=4, **params),
        small(max_iter=4, likelihood="bernoulli"),
    )
    assert_same_bits(outputs(whole.fit(X), X), outputs(again.fit(X), X))
    assert whole.loss_curve_ != grey.set_params(early_stopping=early_stopping).fit(X).loss_curve_
    if not early_stopping:
        pieces = small(**params)
        for _ in range(4):
            pieces.partial_fit(X)
        assert_same_bits(outputs(pieces, X), outputs(whole, X))
    np.testing.assert_array_equal(X, before)


def test_warm_start_takes_another_objective(table, tmp_path):
    X = table()
    vae = small(max_iter=2, warm_start=True, early_stopping=False).fit(X)
    vae.set_params(objective=ELBO(beta=4.0), max_iter=3).fit(X)
    assert vae.n_iter_ == 5
    assert vae.net_.criterion_.beta == 4.0
    vae.save(tmp_path / "vae.skvae")
    assert load(tmp_path / "vae.skvae").net_.criterion_.beta == 4.0
    vae.set_params(objective__beta=0.5).fit(X)
    assert vae.net_.criterion_.beta == 0.5
    assert vae.n_iter_ == 8


def test_fit_without_warm_start_forgets(table):
    X = table()
    vae = small().fit(X)
    assert_same_bits(outputs(vae.partial_fit(X).fit(X), X), outputs(small().fit(X), X))
    assert vae.n_iter_ == 2


@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
def test_global_streams_stay_untouched(early_stopping, table, global_streams):
    X = table()
    before = global_streams()
    vae = small(early_stopping=early_stopping)
    vae.fit(X).partial_fit(X).fit_transform(X)
    vae.score(X)
    outputs(vae, X)
    assert global_streams() == before


def test_random_state_may_be_a_stream(table):
    X = table()
    states = [np.random.RandomState(3), np.random.RandomState(3)]
    first, second = (outputs(small(random_state=state).fit(X), X) for state in states)
    assert_same_bits(first, second)


# Rows do not see each other

ROWWISE = [  # likelihood, n_features, z_dim, hidden_layer_sizes
    ("gaussian", 1, 1, (7,)),
    ("gaussian", 10, 3, (13, 7)),
    ("gaussian", 64, 20, (128,)),
    (Gaussian("row"), 10, 2, (16,)),
    ("gaussian", 3, 2, ()),
    ("bernoulli", 784, 10, (33,)),
    ("bernoulli", 64, 1, (128, 100)),
    ("continuous_bernoulli", 10, 7, (13,)),
    ("poisson", 3, 5, (7,)),
    ("poisson", 64, 2, (50,)),
    ("negative_binomial", 10, 20, (100,)),
]


@pytest.mark.parametrize(
    ("likelihood", "n_features", "z_dim", "hidden_layer_sizes", "n_threads"),
    [(*case, 1) for case in ROWWISE] + [(*case, 2) for case in ROWWISE[2:9:3]],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # one feature has no common factor
def test_rows_do_not_see_each_other(likelihood, n_features, z_dim, hidden_layer_sizes, n_threads, table):
    X = table(likelihood if isinstance(likelihood, str) else "gaussian", n_rows=150, n_features=n_features)
    vae = small(z_dim, likelihood=likelihood, hidden_layer_sizes=hidden_layer_sizes, max_iter=1).fit(X)
    order = np.random.default_rng(0).permutation(len(X))
    torch.set_num_threads(n_threads)
    try:
        Z = vae.transform(X)
        for method, data in ((vae.transform, X), (vae.score_samples, X), (vae.inverse_transform, Z)):
            whole = method(data)
            np.testing.assert_array_equal(method(data[order]), whole[order])
            np.testing.assert_array_equal(method(data[31:48]), whole[31:48])
            batches = [method(data[start : start + 64]) for start in range(0, len(X), 64)]
            np.testing.assert_array_equal(np.concatenate(batches), whole)
            np.testing.assert_array_equal(
                np.concatenate([method(data[[row]]) for row in (0, 77, 149)]), whole[[0, 77, 149]]
            )
    finally:
        torch.set_num_threads(1)


def test_rows_do_not_see_each_other_across_blocks(table):
    X = table(n_rows=2500, n_features=10)
    vae = small(max_iter=1).fit(X)
    for method in (vae.transform, vae.score_samples):
        np.testing.assert_array_equal(method(X)[::-7], method(X[::-7]))


# What beta does


def test_doubling_beta_changes_the_fit(table):
    X = table(n_rows=200)
    fits = [small(objective=ELBO(beta), max_iter=30).fit(X) for beta in (1.0, 2.0, 4.0)]
    kl = [vae.kl_per_unit_.sum() for vae in fits]
    assert kl[0] > kl[1] + 0.1 > kl[2] + 0.2
    assert np.abs(fits[0].transform(X)).mean() > np.abs(fits[1].transform(X)).mean() + 0.01


def test_beta_zero_is_an_autoencoder(table):
    """With a noise shared by the features it minimises the squared error, as PCA does among linear maps."""
    X = table(n_rows=200)
    X = (X - X.mean(0)) / X.std(0)
    plain, free = (
        small(objective=ELBO(beta), max_iter=100, likelihood=Gaussian("shared")).fit(X) for beta in (1.0, 0.0)
    )
    pca = PCA(2).fit(X)
    errors = [np.mean((model.inverse_transform(model.transform(X)) - X) ** 2) for model in (plain, free, pca)]
    assert errors[1] < errors[0]
    assert errors[1] < 1.02 * errors[2]
    assert free.posterior(X)[1].mean() < 0.2 * plain.posterior(X)[1].mean()  # nothing asks for a spread
    assert np.isfinite(free.score(X))


@each_likelihood
def test_huge_beta_leaves_no_active_unit(likelihood, table):
    X = table(likelihood, n_rows=200)
    with pytest.warns(ConvergenceWarning, match="No latent unit is active"):
        vae = small(likelihood=likelihood, objective=ELBO(1e6), max_iter=20).fit(X)
    assert not vae.active_units_.any()
    np.testing.assert_allclose(vae.kl_per_unit_, 0, atol=1e-2)


def test_active_units_follow_the_number_of_factors(table):
    X = table(n_rows=500, n_features=8)  # two factors
    vae = small(6, max_iter=60, learning_rate=3e-3).fit(X)
    assert np.sort(vae.kl_per_unit_)[-2:].min() > 0.5
    assert vae.active_units_.sum() >= 2
    assert vae.kl_per_unit_.min() >= 0


# Bad input

INFINITY = "Input X contains infinity or a value too large for dtype('float"


def with_value(value):
    def spoil(X):
        X = X.copy()
        X[3, 1] = value
        return X

    return spoil


BAD_X = {
    "inf": (with_value(np.inf), ValueError, INFINITY),
    "minus inf": (with_value(-np.inf), ValueError, INFINITY),
    "too large": (with_value(1e300), ValueError, INFINITY + "32')."),
    "too low": (with_value(-1e300), ValueError, INFINITY + "32')."),
    "1-D": (lambda X: X[0], ValueError, "Expected 2D array, got 1D array instead:\narray=["),
    "0-D": (lambda X: X[0, 0], ValueError, "Expected 2D array, got scalar array instead"),
    "3-D": (lambda X: X[None], ValueError, "Found array with dim 3, while dim <= 2 is required by VAETransformer."),
    "no rows": (
        lambda X: X[:0],
        ValueError,
        "Found array with 0 sample(s) (shape=(0, 5)) while a minimum of 1 is required by VAETransformer.",
    ),
    "no features": (
        lambda X: X[:, :0],
        ValueError,
        "Found array with 0 feature(s) (shape=(60, 0)) while a minimum of 1 is required by VAETransformer.",
    ),
    "strings": (lambda X: np.full(X.shape, "a"), ValueError, "could not convert string to float: np.str_('a')"),
    "objects": (lambda X: np.full(X.shape, "a", dtype=object), ValueError, "could not convert string to float: 'a'"),
    "complex": (lambda X: X + 1j, ValueError, "Complex data not supported\n"),
    "sparse and infinite": (
        lambda X: sparse.csr_matrix(np.where(X.max() == X, np.inf, X)),
        ValueError,
        "Input X contains infinity or a value too large for dtype('float64').",
    ),
}
METHODS = ["fit", "partial_fit", "fit_transform", "transform", "posterior", "score_samples", "score"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", BAD_X)
def test_bad_input_is_refused_before_training(fault, method, table, n_steps):
    X = table()
    vae = small().fit(X)
    before = outputs(vae, X)
    n_steps.clear()
    spoil, error, message = BAD_X[fault]
    with pytest.raises(error, match="^" + re.escape(message)):
        getattr(vae, method)(spoil(X))
    assert n_steps == []
    assert_same_bits(before, outputs(vae, X))  # a refusal loses nothing
    if "fit" in method:
        with pytest.raises(error, match="^" + re.escape(message)):
            getattr(small(), method)(spoil(X))


@pytest.mark.parametrize("method", ["partial_fit", "transform", "posterior", "score_samples", "score"])
def test_wrong_number_of_features(method, table, n_steps):
    X = table()
    vae = small().fit(X)
    before = outputs(vae, X)
    n_steps.clear()
    with pytest.raises(ValueError, match=r"^X has 2 features, but VAETransformer is expecting 5 features as input\.$"):
        getattr(vae, method)(X[:, :2])
    assert n_steps == []
    assert_same_bits(before, outputs(vae, X))


def test_wrong_latent_size(table):
    vae = small(2).fit(table())
    message = r"^X has 5 features, but VAETransformer\.inverse_transform is expecting 2 features as input\.$"
    with pytest.raises(ValueError, match=message):
        vae.inverse_transform(np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"^Input X contains NaN\."):
        vae.inverse_transform(np.full((3, 2), np.nan))


def message_of_domain(likelihood, fault):
    whom = f"VAETransformer (likelihood={likelihood!r})."
    return {
        -0.5: f"Negative values in data passed to {whom}",
        1.5: f"Values above 1 in data passed to {whom} Scale X to [0, 1], for instance with "
        "sklearn.preprocessing.MinMaxScaler.",
    }[fault]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("likelihood", "fault"),
    [(name, -0.5) for name in sorted(set(LIKELIHOODS) - {"gaussian"})]
    + [(name, 1.5) for name in ("bernoulli", "continuous_bernoulli")],
)
def test_values_outside_the_domain(likelihood, fault, method, table, n_steps):
    X = table(likelihood)
    vae = small(likelihood=likelihood).fit(X)
    before = outputs(vae, X)
    n_steps.clear()
    with pytest.raises(ValueError, match="^" + re.escape(message_of_domain(likelihood, fault)) + "$"):
        getattr(vae, method)(with_value(fault)(X))
    assert n_steps == []
    assert_same_bits(before, outputs(vae, X))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few rows and few steps
@pytest.mark.parametrize("seed", range(2))
def test_a_guessed_likelihood_refuses_no_row(seed, table):
    """A value outside [0, 1] counts as the nearer end, less log(1 + distance)."""
    X = table("bernoulli", seed=seed)
    vae = small().fit(X)
    assert vae.likelihood_ == "bernoulli"
    values = np.array([1.0, 1.5, 2.0, 1e6, 1e20, 9.97e36, 1e300])
    rows = np.repeat(X[:1], len(values), axis=0)
    for sign, end in ((1, 1.0), (-1, 0.0)):
        rows[:, 1] = end + sign * (values - 1)
        scores = vae.score_samples(rows)
        np.testing.assert_allclose(scores, scores[0] - np.log1p(np.abs(rows[:, 1] - end)), rtol=1e-6)
        np.testing.assert_array_equal(vae.transform(rows), np.tile(vae.transform(rows[:1]), (len(values), 1)))
        assert log_likelihood(vae, rows, 50).value == pytest.approx(scores.mean(), abs=0.5)
    rows[:, 1] = np.linspace(0, 1, len(values))  # grey values
    assert np.isfinite(vae.score_samples(rows)).all()
    assert np.isfinite(vae.partial_fit(rows).score(X))
    with pytest.raises(ValueError, match=re.escape(message_of_domain("bernoulli", 1.5))):
        small(likelihood="bernoulli").fit(X).score(with_value(1.5)(X))  # asked for


def test_a_search_over_rows_that_a_guess_did_not_see_has_scores(table):
    """One fold of zeros and ones only, and rows a little outside what MinMaxScaler saw."""
    X = table("bernoulli")
    X[-1] = 2.0
    assert np.isfinite(GridSearchCV(small(), {"z_dim": [1, 2]}, cv=2).fit(X).cv_results_["mean_test_score"]).all()
    pipeline = Pipeline([("scale", MinMaxScaler()), ("vae", small())])
    search = GridSearchCV(pipeline, {"vae__z_dim": [1, 2]}, cv=5).fit(WINE)
    assert search.best_estimator_["vae"].likelihood_ == "gaussian"
    assert np.isfinite(search.best_score_)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda X: X, "gaussian"),
        (lambda X: X.astype(int), "gaussian"),
        (lambda X: X.astype(bool), "bernoulli"),
        (lambda X: X.astype(bool).tolist(), "bernoulli"),
        (lambda X: pd.DataFrame(X.astype(bool)), "bernoulli"),
        (lambda X: pl.DataFrame(X.astype(bool)), "bernoulli"),
    ],
)
def test_a_first_chunk_of_zeros_and_ones_binds_no_other(make, expected, table):
    X = table("bernoulli")
    vae = small().partial_fit(make(X))
    assert vae.likelihood_ == expected
    named = small(likelihood=expected, max_iter=1).fit(make(X))
    assert_same_bits(outputs(vae, make(X)), outputs(named, make(X)))
    vae = small().partial_fit(np.asarray(make(X)))
    for _ in range(3):
        vae.partial_fit(table(n_rows=30))
        assert np.isfinite(vae.score_samples(table())).all()
        assert np.isfinite(vae.loss_curve_).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n_rows", [1, 2, 20])
def test_a_few_equal_rows_of_zeros_or_ones(value, n_rows):
    X = np.full((n_rows, 3), value)
    vae = small().fit(X)
    assert vae.likelihood_ == "bernoulli"
    assert vae.score(X) > -0.1  # sure of what it saw
    outwards = 2 * value - 1
    assert vae.score(X) > vae.score(X + outwards) > vae.score(X + 3 * outwards) > vae.score(1 - X) > -np.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda vae, X: vae.transform(X),
        lambda vae, X: vae.posterior(X),
        lambda vae, X: vae.score_samples(X),
        lambda vae, X: vae.score(X),
        lambda vae, X: vae.inverse_transform(X),
        lambda vae, X: vae.sample(),
        lambda vae, X: vae.get_feature_names_out(),
    ],
)
def test_unfitted(call, table):
    message = (
        "^This VAETransformer instance is not fitted yet. Call 'fit' with appropriate arguments before using this "
        "estimator.$"
    )
    with pytest.raises(NotFittedError, match=message):
        call(small(), table())


def bad(name, value, message):
    return pytest.param(
        name, value, f"The '{name}' parameter of VAETransformer must be {message}", id=f"{name}={value}"
    )


BAD_PARAMETERS = [
    bad("z_dim", 0, "an int in the range [1, inf). Got 0 instead."),
    bad("z_dim", 2.0, "an int in the range [1, inf). Got 2.0 instead."),
    bad("likelihood", "foo", "a str among {"),
    bad("likelihood", 3, "a str among {"),
    bad("init", "foo", "a str among {"),
    bad("optimizer", "foo", "a str among {"),
    bad("learning_rate", 0, "a float in the range (0.0, inf). Got 0 instead."),
    bad("batch_size", 0, "a str among {'auto'} or an int in the range [1, inf). Got 0 instead."),
    bad("max_iter", 0, "a str among {'auto'} or an int in the range [1, inf). Got 0 instead."),
    bad("n_iter_no_change", 0, "a str among {'auto'} or an int in the range [1, inf). Got 0 instead."),
    bad("n_draws", 0, "an int in the range [1, inf). Got 0 instead."),
    bad("tol", -1, "a float in the range [0.0, inf). Got -1 instead."),
    bad("validation_fraction", 1.0, "a float in the range (0.0, 1.0). Got 1.0 instead."),
    bad("early_stopping", "maybe", "a str among {'auto', 'cv'}"),
    bad("warm_start", "yes", "an instance of 'bool'"),
    bad("random_state", "seed", "an int in the range [0, 4294967295]"),
    bad("callbacks", 3, "an instance of 'list'"),
    bad("checkpoint", 3, "an instance of 'str', an instance of 'os.PathLike' or None. Got 3 instead."),
    bad("device", 3, "an instance of 'str'"),
    bad("hidden_layer_sizes", 0, "a str among {'auto'}, an array-like or an int in the range [1, inf). Got 0 instead."),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_PARAMETERS)
def test_bad_parameter(name, value, message, table, n_steps):
    X = table()
    vae = small().fit(X)
    before, Z = vae.n_iter_, vae.transform(X)
    n_steps.clear()
    pattern = re.escape(message).replace(re.escape("0.0"), r"0(\.0)?").replace(re.escape("1.0)"), r"1(\.0)?\)")
    pattern = pattern.replace(re.escape("'auto', 'cv'"), "('auto', 'cv'|'cv', 'auto')")  # a set, in either order
    for method in ("fit", "fit_transform"):
        with pytest.raises(ValueError, match="^" + pattern):
            getattr(clone(vae).set_params(**{name: value}), method)(X)
    with pytest.raises(ValueError, match="^" + pattern):
        vae.set_params(**{name: value}).fit(X)
    assert n_steps == []
    assert vae.n_iter_ == before
    vae.set_params(**{name: getattr(small(), name)})
    np.testing.assert_array_equal(vae.transform(X), Z)


@pytest.mark.parametrize("sizes", [(8, 0), (-3,), (2.5,), ("a",), ((4, 4), (4, 4))])
def test_bad_hidden_layer_sizes(sizes, table, n_steps):
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        small(hidden_layer_sizes=sizes).fit(table())
    assert n_steps == []


def test_sizes_may_be_any_whole_number(table):
    X = table()
    expected = small(1).fit(X).transform(X)
    for one in (True, np.int32(1)):
        np.testing.assert_array_equal(small(one).fit(X).transform(X), expected)


@pytest.mark.parametrize("device", ["nope", "cuda:99", torch.device("cuda", 99), "meta", "hpu"])
def test_missing_device(device, table, n_steps):
    X = table()
    vae = small().fit(X)
    Z = vae.transform(X)
    n_steps.clear()
    with pytest.raises(
        ValueError, match=r"^The 'device' parameter of VAETransformer names a device that torch cannot use here: '"
    ):
        vae.set_params(device=device).fit(X)
    assert n_steps == []
    np.testing.assert_array_equal(vae.transform(X), Z)


@pytest.mark.parametrize("n_samples", [0, -1])
def test_too_few_samples_to_draw(n_samples, table):
    vae = small().fit(table())
    message = f"^Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.$"
    with pytest.raises(ValueError, match=message):
        vae.sample(n_samples)


def test_too_few_rows_to_hold_some_out(n_steps):
    with pytest.raises(
        ValueError, match=r"^validation_fraction=0\.1 of 1 sample\(s\) leaves none to train on\. Lower it"
    ):
        small(early_stopping=True).fit(np.ones((1, 3)))
    assert n_steps == []


def test_column_names_are_held_to(table):
    X = pd.DataFrame(table(), columns=list("abcde"))
    vae = small().fit(X)
    assert vae.feature_names_in_.tolist() == list("abcde")
    with pytest.raises(ValueError, match=r"^The feature names should match those that were passed during fit\."):
        vae.transform(X.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="Feature names must be in the same order as they were in fit"):
        vae.transform(X[list("edcba")])
    with pytest.warns(UserWarning, match="^X does not have valid feature names, but VAETransformer was fitted with"):
        vae.transform(X.to_numpy())


# Odd tables


def memmap(X, tmp_path):
    joblib.dump(X, tmp_path / "X.joblib")
    return joblib.load(tmp_path / "X.joblib", mmap_mode="r")


ODD_TABLES = {
    "one row": lambda X, _: X[:1],
    "two rows": lambda X, _: X[:2],
    "one feature": lambda X, _: X[:, :1],
    "one cell": lambda X, _: X[:1, :1],
    "constant columns": lambda X, _: np.hstack([X, np.zeros_like(X), np.full_like(X, 7.3), np.full_like(X, 1e8)]),
    "duplicated columns": lambda X, _: np.hstack([X, X, X]),
    "more columns than rows": lambda X, _: np.tile(X[:4], 5),
    "fewer rows than a batch": lambda X, _: X[:20],
    "integers": lambda X, _: X.round().astype(int),
    "small integers": lambda X, _: np.abs(X).round().astype(np.uint8),
    "booleans": lambda X, _: X.mean() < X,
    "list": lambda X, _: X.tolist(),
    "float64": lambda X, _: X.astype(np.float64),
    "float16": lambda X, _: X.astype(np.float16),
    "float32": lambda X, _: X.astype(np.float32),
    "Fortran order": lambda X, _: np.asfortranarray(X),
    "read-only memory map": memmap,
    "strided": lambda X, _: np.repeat(X, 2, axis=1)[::2, ::2],
    "pandas": lambda X, _: pd.DataFrame(X, columns=list("abcde")),
    "polars": lambda X, _: pl.DataFrame(X, schema=list("abcde")),
    "scale 1e-8": lambda X, _: X * 1e-8,
    "scale 1e8": lambda X, _: X * 1e8,
    "both scales": lambda X, _: X * 10.0 ** np.array([-8, -4, 0, 4, 8]),
    "far from zero": lambda X, _: X + 1e8,
    "outliers": lambda X, _: np.vstack([X, X[:1] * 1e4]),
}


@pytest.mark.parametrize("early_stopping", [False, "auto"])
@pytest.mark.parametrize("kind", ODD_TABLES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # one feature has no common factor
def test_odd_table_trains_to_finite_results(kind, early_stopping, table, tmp_path):
    X = ODD_TABLES[kind](table(), tmp_path)
    vae = small(early_stopping=early_stopping, batch_size=32).fit(X)
    for values in outputs(vae, X):
        assert np.isfinite(values).all()
    assert np.isfinite(vae.loss_curve_).all()
    assert vae.transform(X).dtype == np.float32
    assert vae.inverse_transform(vae.transform(X)).shape == np.shape(X)
    np.testing.assert_allclose(vae.fit_transform(X), vae.transform(X))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few rows and few steps
@pytest.mark.parametrize("likelihood", sorted(set(LIKELIHOODS) - {"gaussian"}))
@pytest.mark.parametrize("value", [0, 1])
def test_columns_of_one_value_in_every_likelihood(likelihood, value, table):
    X = table(likelihood)
    X[:, 1] = value
    vae = small(likelihood=likelihood, max_iter=5).fit(X)
    for values in outputs(vae, X):
        assert np.isfinite(values).all()
    one_row = small(likelihood=likelihood).fit(X[:1])
    assert np.isfinite(one_row.score(X[:1]))


def test_constant_table_is_told(n_steps):
    with pytest.warns(ConvergenceWarning, match="No latent unit is active"):
        vae = small().fit(np.full((30, 4), 5.0))
    np.testing.assert_allclose(vae.sample(3), 5.0, rtol=1e-3)  # some steps away from the start


@pytest.mark.parametrize("kind", ["list", "Fortran order", "read-only memory map", "pandas", "polars", "strided"])
def test_container_does_not_matter(kind, table, tmp_path):
    X = table()
    other = ODD_TABLES[kind](X, tmp_path)
    plain = X if kind != "strided" else np.ascontiguousarray(other)
    for a, b in zip(outputs(small().fit(plain), plain), outputs(small().fit(other), other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # a column's mean is summed in another order


def test_nothing_given_is_changed(table):
    X = table()
    kept, params = X.copy(), {"weight_decay": 0.1}
    vae = small(optimizer=partial(torch.optim.AdamW, **params)).fit(X)
    outputs(vae, X)
    np.testing.assert_array_equal(X, kept)
    assert params == {"weight_decay": 0.1}


def test_fitted_model_keeps_no_data(table):
    X = table(n_rows=10_000, n_features=20)
    for early_stopping in (False, True):
        vae = small(early_stopping=early_stopping, max_iter=1).fit(X)
        assert len(pickle.dumps(vae)) < X.nbytes / 10


# With scikit-learn


def test_pipeline_on_digits_beats_pca():
    """The settings are the defaults."""
    y, accuracy = load_digits().target, {"vae": [], "pca": []}
    for seed in range(3):
        X_train, X_test, y_train, y_test = train_test_split(DIGITS, y, test_size=0.25, stratify=y, random_state=seed)
        for name, reducer in {"vae": VAETransformer(2, random_state=seed), "pca": PCA(2)}.items():
            pipeline = Pipeline([(name, reducer), ("clf", LogisticRegression(max_iter=1000))])
            accuracy[name].append(pipeline.fit(X_train, y_train).score(X_test, y_test))
    # a test set of 450 rows has a standard error of 0.023; the mean of three paired differences about half of it
    assert np.mean(accuracy["vae"]) > np.mean(accuracy["pca"]) + 0.02


def test_grid_search_over_z_dim_in_two_processes(table):
    X, y = load_digits(return_X_y=True)
    pipeline = Pipeline(
        [("vae", small(max_iter=10, hidden_layer_sizes=(32,))), ("clf", LogisticRegression(max_iter=2000))]
    )
    search = GridSearchCV(pipeline, {"vae__z_dim": [1, 8]}, cv=2, n_jobs=2).fit(X[:400], y[:400])
    assert search.best_params_ == {"vae__z_dim": 8}
    again = GridSearchCV(pipeline, {"vae__z_dim": [1, 8]}, cv=2).fit(X[:400], y[:400])
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], again.cv_results_["mean_test_score"], atol=0.02)


def test_grid_search_without_scoring_maximises_the_likelihood(table):
    X = table(n_rows=200, n_features=8)
    search = GridSearchCV(small(max_iter=20, objective=ELBO()), {"z_dim": [1, 2], "objective__beta": [1.0, 1e3]}, cv=2)
    with pytest.warns(ConvergenceWarning):  # the huge beta
        search.fit(X)
    assert search.best_params_ == {"objective__beta": 1.0, "z_dim": 2}
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("z_dim", [1, 3]),
        ("hidden_layer_sizes", [(), (4,), (8, 4), 5]),
        ("likelihood", ["auto", "gaussian", "poisson", "negative_binomial", Gaussian("shared")]),
        ("objective", ["elbo", ELBO(0.5)]),
        ("learning_rate", [1e-4, 1e-2]),
        ("batch_size", ["auto", 7]),
        ("max_iter", [1, 4]),
        ("random_state", [0, 1]),
        ("device", ["auto", "cpu", torch.device("cpu")]),
        ("init", ["linear", "random", LinearInit(weight_decay=0)]),
        ("architecture", ["mlp", MLP("tanh")]),
        ("optimizer", ["adam", torch.optim.RMSprop]),
    ],
)
def test_every_parameter_is_searchable(name, values, table):
    search = GridSearchCV(small(), {name: values}, cv=2).fit(table("poisson"))
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert len(scores) == len(values)
    assert name in ("device", "likelihood") or len(set(scores)) == len(values)  # each value makes another model


def test_output_containers(table):
    X = pd.DataFrame(table(), columns=list("abcde"), index=range(100, 160))
    vae = small(3).fit(X)
    Z = vae.transform(X)
    names = ["vaetransformer0", "vaetransformer1", "vaetransformer2"]
    assert vae.get_feature_names_out().tolist() == names
    frame = clone(vae).set_output(transform="pandas").fit_transform(X)
    assert frame.columns.tolist() == names
    assert frame.index.equals(X.index)
    np.testing.assert_array_equal(frame.to_numpy(), Z)
    other = clone(vae).set_output(transform="polars").fit_transform(X)
    assert other.columns == names
    np.testing.assert_array_equal(other.to_numpy(), Z)
    np.testing.assert_array_equal(vae.inverse_transform(frame), vae.inverse_transform(Z))
    vae.set_params(z_dim=5)
    assert len(vae.get_feature_names_out()) == 3  # of the fit, not of the parameter


class CountsEpochs:
    """A callback of scikit-learn's own kind, that ends training after some epochs."""

    def __init__(self, n_epochs):
        self.n_epochs, self.scores, self.calls = n_epochs, [], []

    def setup(self, estimator, context):
        self.calls.append("setup")

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.calls.append("begin " + context.task_name)

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        self.calls.append("end " + context.task_name)
        if context.task_name == "epoch":
            self.scores.append(fitted_estimator.score(X))
        return len(self.scores) == self.n_epochs


def test_sklearn_callback_ends_training(table):
    pytest.importorskip("sklearn.callback")
    X, callback = table(), CountsEpochs(3)
    vae = small(max_iter=50).set_callbacks(callback).fit(X)
    assert vae.n_iter_ == 3
    assert callback.calls == ["setup", "begin fit", *["begin epoch", "end epoch"] * 3, "end fit", "teardown"]
    assert callback.scores[-1] == pytest.approx(vae.score(X))
    assert len(set(callback.scores)) == 3  # the model as it stood at each epoch
    plain = small(max_iter=3).fit(X)
    assert_same_bits(outputs(vae, X), outputs(plain, X))


def test_sklearn_callbacks_see_an_epoch_that_was_undone_once(table, monkeypatch):
    pytest.importorskip("sklearn.callback")
    X, callback, gradient, n_calls = table(), CountsEpochs(9), Net.gradient, []

    def diverges(self, batch):
        n_calls.append(1)
        step = gradient(self, batch)
        return step | {"loss": step["loss"] * float("nan")} if len(n_calls) == 3 else step

    monkeypatch.setattr(Net, "gradient", diverges)
    with pytest.warns(ConvergenceWarning, match="Training diverged: the train loss of epoch 2 is nan"):
        vae = small(max_iter=3, batch_size=32).set_callbacks(callback).fit(X)  # two batches an epoch
    assert callback.calls == ["setup", "begin fit", *["begin epoch", "end epoch"] * 3, "end fit", "teardown"]
    assert vae.n_iter_ == 3


@pytest.mark.parametrize("early_stopping", [False, True])
def test_progress_bar(early_stopping, table, capsys):
    callback = pytest.importorskip("sklearn.callback")
    pytest.importorskip("rich")
    X = table()
    vae = small(early_stopping=early_stopping).set_callbacks(callback.ProgressBar()).fit(X)
    assert "VAETransformer" in capsys.readouterr().out
    assert_same_bits(outputs(vae, X), outputs(small(early_stopping=early_stopping).fit(X), X))
    assert len(pickle.dumps(vae)) < 10**6


# The model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda table: table("bernoulli"), "bernoulli"),
        (lambda table: table("bernoulli").astype(bool), "bernoulli"),
        (lambda table: table("continuous_bernoulli"), "gaussian"),  # as any table behind a MinMaxScaler
        (lambda table: 1e-8 * table("continuous_bernoulli"), "gaussian"),
        (lambda table: table("bernoulli").astype(np.uint8), "bernoulli"),
        (lambda table: table("poisson"), "gaussian"),  # counts are never guessed
        (lambda table: table("gaussian"), "gaussian"),
        (lambda table: -table("bernoulli"), "gaussian"),
    ],
)
def test_auto_reads_the_data(make, expected, table):
    X = make(table)
    vae = small().fit(X)
    assert vae.likelihood_ == expected
    assert vae.likelihood == "auto"
    assert_same_bits(outputs(vae, X), outputs(small(likelihood=expected).fit(X), X))


def test_sample_has_the_shape_of_the_data():
    vae = small().fit(DIGITS)
    draws = vae.sample(16)
    assert draws.shape == (16, 64)
    assert vae.sample().shape == (1, 64)
    assert 0 < draws.mean() < 16


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few rows and few steps
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, int, np.uint8, bool])
@each_likelihood
def test_results_in_the_units_of_X_have_its_precision(likelihood, dtype, table, tmp_path):
    X = table("bernoulli").astype(dtype)
    vae, expected = small(likelihood=likelihood).fit(X), np.float32 if dtype == np.float32 else np.float64
    vae.save(tmp_path / "vae")
    for model in (vae, load(tmp_path / "vae")):
        results = [model.inverse_transform(model.transform(X)), model.sample(2), model.sample(2, noise=True)]
        assert [rows.dtype for rows in results] == [expected] * 3
        assert model.transform(X).dtype == np.float32


def test_time_stamps_come_back_to_the_second():
    """The linear model without noise to speak of, whose own error is far below a second."""
    time = 1.7e9 + 128.0 * np.arange(1000)
    X = time[:, None] + [0.0, 1e4, 2e4, 5e4, 1e5, 2e5]
    vae = small(1, likelihood=Gaussian("shared", noise_floor=1e-9), learning_rate=1e-12).fit(X)
    Z = vae.transform(X)
    assert np.abs(vae.inverse_transform(Z) - X).max() < 1
    steps = np.diff(vae.inverse_transform(Z[:1] + np.float32([[0.0], [1e-5], [2e-5], [3e-5]]))[:, 0])
    assert np.all(np.abs(steps) > 0.1)  # no grid of 128 s


@pytest.mark.parametrize("seed", range(2))
def test_draws_of_a_column_far_from_zero_are_not_constant(seed):
    X = 1e8 + np.random.default_rng(seed).normal(size=(400, 3))
    draws = small().fit(X).sample(2000, noise=True, random_state=seed)
    assert min(len(np.unique(column)) for column in draws.T) > 1990  # float32 has a few twice
    # 5 standard errors: of 2000 draws and of 400 rows
    np.testing.assert_allclose(draws.std(0), X.std(0), rtol=5 * (1 / 4000 + 1 / 800) ** 0.5)


FAR = [1e3, 1e5, 1e6, 1e7, 1e10, 1e18, 1e19, 1e20, 1e30, 9.97e36]
MODELS = {
    "default": {},
    "no share": {"init": LinearInit(0)},
    "linear": {"hidden_layer_sizes": ()},
    "random": {"init": "random"},
    "random, tanh": {"init": "random", "architecture": MLP("tanh")},
    "noise of a feature": {"likelihood": Gaussian("feature"), "init": LinearInit(0)},
    "shared noise": {"likelihood": Gaussian("shared"), "init": LinearInit(0)},
    "poisson": {"likelihood": "poisson"},
    "negative binomial": {"likelihood": "negative_binomial"},
    "guessed": {},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("model", MODELS)
def test_far_rows_have_scores_in_order(model, dtype, table):
    """Fill values in one column or in all: finite, none above a nearer one, and with finite latent coordinates."""
    X = (table("bernoulli") if model == "guessed" else table("poisson")).astype(dtype)
    vae = small(**MODELS[model]).fit(X)
    rows = np.repeat(X[:1], len(FAR) + 1, axis=0)
    for columns in ([0], [1, 3], slice(None)):
        for sign in (1, -1) if model not in ("poisson", "negative binomial") else (1,):
            far = rows.copy()
            far[1:, columns] = sign * np.array(FAR, dtype=dtype)[:, None]
            scores = vae.score_samples(far)
            assert np.isfinite(scores).all()
            assert np.all(scores[1:] <= scores[:-1])
            assert scores[-1] < scores[0] - 50
            assert np.isfinite(vae.transform(far)).all()
            np.testing.assert_array_equal(vae.score_samples(far[::-1]), scores[::-1])  # near or far, alone or not


@pytest.mark.parametrize("unit", [1e-140, 1e-30, 1e-8, 1e8, 1e40, 1e140])
def test_unit_of_measurement_does_not_matter(unit, table):
    """Float64 holds them, and the model sees standardised values."""
    X = table(n_rows=200)
    plain, other = small(max_iter=10).fit(X), small(max_iter=10).fit(X * unit)
    np.testing.assert_allclose(other.transform(X * unit), plain.transform(X), atol=1e-5)
    assert other.score(X * unit) + 5 * np.log(unit) == pytest.approx(plain.score(X), abs=1e-4)
    Z = plain.transform(X)
    np.testing.assert_allclose(other.inverse_transform(Z) / unit, plain.inverse_transform(Z), rtol=1e-4, atol=1e-4)
    assert other.active_units_.tolist() == plain.active_units_.tolist()


def test_loss_of_pixels_that_are_always_black_does_not_fall_without_end():
    """Their density is bounded: what is gained late in training is gained elsewhere."""
    X = (DIGITS / 16)[:300]
    black = X.max(0) == 0
    assert black.sum() >= 3
    vae = small(5, likelihood="continuous_bernoulli", learning_rate=1e-2, max_iter=100).fit(X)
    with torch.no_grad():
        raw = vae.module_.decode(torch.from_numpy(vae.transform(X)))
    likelihood = ContinuousBernoulli()
    highest = [likelihood.log_prob(raw[:, :, [pixel]], torch.zeros(len(X), 1)).max() for pixel in np.flatnonzero(black)]
    assert raw[:, 0, black].max() < -100.1  # where training would go on
    np.testing.assert_allclose(highest, np.log(100), atol=1e-4)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few rows and few steps
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli"])
def test_tables_behind_a_min_max_scaler_are_in_the_domain(likelihood, dtype, table):
    X = (1e3 if dtype != np.float16 else 1.0) + table()
    X = MinMaxScaler().fit_transform(X.astype(dtype))
    X[0, 0], X[1, 1] = 1 + np.finfo(dtype).eps, -np.finfo(dtype).eps  # as it may turn out
    vae = small(likelihood=likelihood).fit(X)
    assert np.isfinite(vae.score_samples(X)).all()
    np.testing.assert_array_equal(vae.transform(X), vae.transform(X.clip(0, 1)))


@each_likelihood
def test_noisy_samples_look_like_the_data(likelihood, table):
    X = table(likelihood, n_rows=500)
    vae = small(likelihood=likelihood, max_iter=100, learning_rate=3e-3).fit(X)
    draws, means = (vae.sample(4000, noise=noise, random_state=0) for noise in (True, False))
    # standard errors of the data's mean are 0.045 of its standard deviation
    np.testing.assert_allclose((draws.mean(0) - X.mean(0)) / X.std(0), 0, atol=0.2)
    if likelihood != "continuous_bernoulli":  # whose spread around a mean is what it is
        np.testing.assert_allclose(draws.std(0) / X.std(0), 1, atol=0.2)
    assert np.all(means.std(0) < draws.std(0))
    np.testing.assert_allclose((means.mean(0) - draws.mean(0)) / draws.std(0), 0, atol=0.1)
    LIKELIHOODS[likelihood]().check(draws, "the test")
    if likelihood in ("bernoulli", "poisson", "negative_binomial"):
        np.testing.assert_array_equal(draws, draws.round())


def test_sample_has_an_own_stream(table):
    vae = small().fit(table())
    first, same, other = (vae.sample(4, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(vae.sample(4), vae.sample(4))  # an int at fit does not freeze the draws


def test_posterior_is_transform_and_a_spread(table):
    X = table()
    vae = small().fit(X)
    mean, std = vae.posterior(X)
    np.testing.assert_array_equal(mean, vae.transform(X))
    assert mean.shape == std.shape == (60, 2)
    assert np.all(std > 0)
    kl = 0.5 * (mean**2 + std**2 - 1) - np.log(std)
    np.testing.assert_allclose(vae.kl_per_unit_, kl.mean(0), rtol=1e-4)
    np.testing.assert_array_equal(vae.active_units_, mean.var(0) > 0.01)


@each_likelihood
def test_reconstruction_is_in_the_units_of_the_data(likelihood, table):
    X = table(likelihood, n_rows=300, n_features=8)
    vae = small(likelihood=likelihood, max_iter=60, learning_rate=3e-3).fit(X)
    error = np.mean((vae.inverse_transform(vae.transform(X)) - X) ** 2)
    assert error < 0.8 * X.var(0).mean()


def test_training_records(table):
    X = table(n_rows=100)
    vae = small(max_iter=30, learning_rate=1e-2, init="random").fit(X)
    assert vae.n_iter_ == len(vae.loss_curve_) == 30
    assert vae.validation_scores_ is None
    assert vae.loss_curve_[-1] < vae.loss_curve_[0] - 1
    held = small(max_iter=10, early_stopping=True).fit(X)
    assert len(held.validation_scores_) == held.n_iter_
    assert held.validation_scores_[0] == pytest.approx(held.score(X), abs=5)  # the same unit: nats per row of X


@pytest.mark.parametrize("early_stopping", [True, "auto"])
def test_early_stopping_is_no_worse_than_the_start(early_stopping, table):
    X, new = np.split(table(n_rows=260, n_features=8), [60])
    params = {"learning_rate": 1e-2, "hidden_layer_sizes": (64,), "max_iter": 100}
    start = small(**(params | {"max_iter": 1, "learning_rate": 1e-12})).fit(X).score(new)
    long = small(**params).fit(X).score(new)
    stopped = small(**params, early_stopping=early_stopping).fit(X).score(new)
    # the stop is chosen on 6 held-out rows, or 60 cross-fitted ones: a standard error of some tenths of a nat
    assert stopped > long - 0.5
    assert stopped > start - 0.5


class Laplace(Likelihood):
    """A user's own likelihood: sharper than the Gaussian, with a scale per feature."""

    standardize = True

    def build(self, n_features):
        self.log_scale = nn.Parameter(torch.zeros(n_features))

    def log_prob(self, raw, x):
        return torch.distributions.Laplace(raw[..., 0, :], self.log_scale.exp()).log_prob(x)

    def mean(self, raw):
        return raw[..., 0, :]

    def sample(self, raw, generator):
        uniform = torch.rand(raw[..., 0, :].shape, generator=generator) - 0.5
        return raw[..., 0, :] - self.log_scale.exp() * uniform.sign() * torch.log1p(-2 * uniform.abs())


@pytest.mark.parametrize("init", ["linear", "random"])
def test_users_own_likelihood(init, table):
    X, likelihood = 100 + 10 * table(n_rows=200), Laplace()
    vae = small(likelihood=likelihood, init=init, max_iter=40, learning_rate=1e-2).fit(X)
    assert vae.likelihood_ is likelihood
    assert list(likelihood.parameters()) == []  # a copy was built and trained
    for values in outputs(vae, X):
        assert np.isfinite(values).all()
    # above independent Laplace features at their own maximum of likelihood
    alone = -np.log(2 * np.abs(X - np.median(X, axis=0)).mean(0)).sum() - X.shape[1]
    assert vae.score(X) > alone
    assert np.abs(vae.sample(500, noise=True, random_state=0).mean(0) - X.mean(0)).max() < 0.5 * X.std(0).max()
    loaded = pickle.loads(pickle.dumps(vae))
    assert_same_bits(outputs(vae, X), outputs(loaded, X))
    assert_same_bits(outputs(vae, X), outputs(clone(vae).fit(X), X))


def test_inference_copies_no_likelihood(table, monkeypatch):
    X = table()
    vae = small(likelihood=Laplace()).fit(X)
    expected = outputs(vae, X)
    monkeypatch.setattr(Laplace, "__deepcopy__", lambda *args: pytest.fail("copied"), raising=False)
    assert_same_bits(outputs(vae, X), expected)


def test_n_draws_may_change_after_fit(table):
    X = table()
    vae = small(n_draws=3).fit(X)
    few = vae.score_samples(X)
    assert not np.array_equal(few, vae.set_params(n_draws=50).score_samples(X))
    np.testing.assert_array_equal(few, vae.set_params(n_draws=3).score_samples(X))


def test_score_samples_does_not_depend_on_its_chunks(table, monkeypatch):
    X = table(n_rows=200)
    vae = small(n_draws=100).fit(X)
    whole = vae.score_samples(X)
    monkeypatch.setattr("skvae._data.blocks._MAX_ELEMENTS", 64 * 5 * 10)  # ten draws of 64 rows at a time
    np.testing.assert_allclose(vae.score_samples(X), whole, rtol=1e-6)


def test_verbose_may_be_a_number(table, capsys):
    small(verbose=2).fit(table())
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_default_settings_work(table):
    """Nothing set but the seed: the number of epochs is found from the data, and the model beats independence."""
    X = table(n_rows=120)
    vae = VAETransformer(random_state=0).fit(X)
    independent = -0.5 * np.log(2 * np.pi * np.e * X.var(0)).sum()
    assert vae.score(X) > independent + 0.5
    assert vae.transform(X).shape == (120, 10)


@pytest.mark.parametrize(
    ("params", "prior"),
    [
        ({}, Mixture),
        ({"hidden_layer_sizes": ()}, StandardNormal),
        ({"hidden_layer_sizes": (), "architecture": "residual"}, StandardNormal),
        ({"hidden_layer_sizes": (), "architecture": Custom(nn.Linear(4, 4), nn.Linear(2, 8))}, Mixture),
        ({"objective": ELBO(beta=2)}, StandardNormal),
        ({"objective": "iwae"}, Mixture),
        ({"objective": "mmd"}, StandardNormal),
    ],
)
def test_default_prior_is_a_mixture_where_networks_learn_a_bound(params, prior):
    vae = VAETransformer(2, max_iter=1, early_stopping=False, **params).fit(load_iris().data)
    assert type(vae.module_.prior) is prior


class RunsOut(Callback):
    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 5:
            raise MemoryError


def test_training_that_is_refused_leaves_the_model_as_it_was():
    """Its rate and the optimizer's state too: what comes after is as if it had not been tried."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 1)) @ rng.normal(size=(1, 6)) + 0.3 * rng.normal(size=(600, 6))
    broken = X[400:500].copy()
    broken[0, 2] = 1e20
    vaes = [VAETransformer(2, random_state=0) for _ in range(2)]
    for vae in vaes:
        vae.partial_fit(X[:200]).partial_fit(X[200:400])
    with pytest.raises(ValueError, match="Training diverged"), pytest.warns(ConvergenceWarning):
        vaes[0].partial_fit(broken)
    for vae in vaes:
        vae.partial_fit(X[500:])
    np.testing.assert_array_equal(vaes[0].transform(X), vaes[1].transform(X))
    assert vaes[0].net_.lr == vaes[1].net_.lr
    assert vaes[0].loss_curve_ == vaes[1].loss_curve_


def test_an_error_in_a_callback_leaves_the_model_as_it_was(table):
    X, vae = table(), small(warm_start=True, max_iter=3, early_stopping=False)
    Z = vae.fit(X).transform(X)
    with pytest.raises(MemoryError):
        vae.set_params(callbacks=[RunsOut()]).fit(X)
    np.testing.assert_array_equal(vae.transform(X), Z)
    assert vae.n_iter_ == len(vae.net_.history) == 3
    assert vae.set_params(callbacks=None).fit(X).n_iter_ == 6


@pytest.mark.parametrize("n_samples", [4.0, "3"])
def test_numbers_of_draws_are_whole(n_samples, table):
    vae = small().fit(table())
    with pytest.raises(TypeError, match="n_samples must be an instance of int"):
        vae.sample(n_samples)
    with pytest.raises(ValueError, match="n_draws is the number of draws"):
        vae.impute(table(), sample=True, n_draws=1.5)


class Quick(VAETransformer):
    """A subclass with fewer arguments, as scikit-learn's estimators allow."""

    def __init__(self, z_dim=2, random_state=0):
        super().__init__(z_dim, max_iter=2, early_stopping=False, random_state=random_state)


def test_a_subclass_may_have_fewer_arguments(table, tmp_path):
    X, plain = table(), VAETransformer(2, max_iter=2, early_stopping=False, random_state=0)
    expected = plain.fit(X).transform(X)
    quick = Quick().fit(X)
    np.testing.assert_array_equal(quick.transform(X), expected)
    assert quick.partial_fit(X).n_iter_ == 3
    quick.checkpoint = tmp_path
    np.testing.assert_array_equal(quick.fit(X).transform(X), expected)
    assert GridSearchCV(Quick(), {"z_dim": [1, 2]}, cv=2).fit(X).best_params_["z_dim"] in (1, 2)


def test_models_stay_equal_when_they_are_looked_at(table):
    vae = VAETransformer(2, max_iter=2, early_stopping=False, random_state=0).fit(table())
    before, draws = joblib.hash(vae), vae.sample(5, latents="aggregate", random_state=0)
    vae._repr_html_()
    assert joblib.hash(vae) == before
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(vae)).sample(5, latents="aggregate", random_state=0), draws)


@pytest.mark.parametrize("sizes", [np.array(8), np.array([8]), [8], np.int64(8)], ids=repr)
def test_layer_sizes_in_any_sequence(sizes, table):
    expected = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=1, random_state=0).fit(table())
    vae = VAETransformer(2, hidden_layer_sizes=sizes, max_iter=1, random_state=0).fit(table())
    np.testing.assert_array_equal(vae.transform(table()), expected.transform(table()))


@pytest.mark.parametrize("sizes", [np.array([[8]]), np.array(8.0), [8.0], []], ids=repr)
def test_no_layer_sizes(sizes, table, n_steps):
    vae = VAETransformer(2, hidden_layer_sizes=sizes, max_iter=1, random_state=0)
    if len(np.ravel(sizes)) == 0:
        vae.fit(table())
        return
    with pytest.raises(ValueError, match=r"^The 'hidden_layer_sizes' parameter of VAETransformer must hold ints > 0"):
        vae.fit(table())
    assert n_steps == []


@pytest.mark.parametrize("name", ["categorical_features", "condition_features"])
def test_columns_are_a_sequence(name, table, n_steps):
    for wrong in (np.array(0), np.array([[True, False, False, False, False]])):
        with pytest.raises(ValueError, match=f"^{name} should be a sequence of names, places or flags"):
            VAETransformer(2, **{name: wrong}).fit(table())
    assert n_steps == []


def test_columns_mean_the_same_in_any_sequence(table):
    vae = VAETransformer(2, condition_features=np.array([0, 1]), max_iter=1, warm_start=True, random_state=0)
    vae.fit(table()).set_params(condition_features=[0, 1]).fit(table())
    vae.set_params(condition_features=(0, 2))
    with pytest.raises(ValueError, match="condition_features"):
        vae.fit(table())


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_a_frame_of_other_dates_is_told_by_its_number_of_features(table):
    vae = VAETransformer(2, max_iter=1, random_state=0).fit(table())
    dates = pd.DataFrame({"a": pd.to_datetime(["2020-01-01"] * 3)})
    with pytest.raises(ValueError, match=r"^X has 1 features, but VAETransformer is expecting 5 features as input\.$"):
        vae.transform(dates)
