"""Missing cells: exact where the model is linear, for any mask; and never a part of what they do not touch."""

import copy
import pickle
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae._data.batch import Batch
from skvae._data.holes import without_holes
from skvae._fast.gradient import FastELBO
from skvae._training.stack import Stack
from skvae.likelihoods import Gaussian
from skvae.metrics import log_likelihood, reconstruction_error
from skvae.objectives import ELBO
from skvae.priors import PRIORS

LINEAR = {"hidden_layer_sizes": (), "likelihood": Gaussian("feature"), "random_state": 0}
SMALL = {"hidden_layer_sizes": 8, "max_iter": 3, "random_state": 0}


def holed(X, share, seed=0):
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


def exact(vae):
    """Mean and covariance of the linear model, in the units of X."""
    head, likelihood, scale = vae.module_.decoder.head, vae.module_.likelihood, vae.net_.scale
    loadings = head.weight.detach().double().numpy() * scale[:, None]
    noise = (2 * likelihood.log_noise.detach().double()).exp().numpy() + likelihood.floor.double().numpy()
    mean = head.bias.detach().double().numpy() * scale + vae.net_.offset
    return mean, loadings @ loadings.T + np.diag(noise * scale**2)


def conditional(mean, covariance, row):
    """Log-density of the observed cells, and mean and covariance of the others given these."""
    o = ~np.isnan(row)
    gain = np.linalg.solve(covariance[np.ix_(o, o)], covariance[o]).T
    expected = mean + gain @ (row[o] - mean[o])
    spread = covariance - gain @ covariance[o]
    score = multivariate_normal.logpdf(row[o], mean[o], covariance[np.ix_(o, o)]) if o.any() else 0.0
    return score, np.where(o, row, expected), spread


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("trained", [False, True])
def test_score_and_imputation_of_the_linear_model_are_exact(share, trained):
    X = holed(load_wine().data[:, :8], share)
    options = {} if trained else {"max_iter": 1, "learning_rate": 1e-12, "early_stopping": False}
    vae = VAETransformer(3, **LINEAR, **options).fit(X)
    rows = X[np.isnan(X).any(axis=1)][:60]
    scores, filled, _ = zip(*(conditional(*exact(vae), row) for row in rows), strict=True)
    np.testing.assert_allclose(vae.score_samples(rows), scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vae.impute(rows), filled, rtol=1e-5, atol=1e-5 * X[:1].size)


def test_draws_have_the_conditional_covariance():
    X = load_wine().data[:, :5]
    vae = VAETransformer(2, **LINEAR).fit(X)
    row = np.where([True, False, True, False, True], X[0], np.nan)
    _, mean, covariance = conditional(*exact(vae), row)
    draws = vae.sample(20_000, given=row, random_state=0)
    error = np.sqrt(np.diag(covariance) / 20_000)
    assert (draws[:, [0, 2, 4]] == row[[0, 2, 4]]).all()
    assert np.all(np.abs(draws.mean(axis=0) - mean)[[1, 3]] < 6 * error[[1, 3]])  # resampled draws are not independent
    np.testing.assert_allclose(np.cov(draws[:, [1, 3]].T), covariance[np.ix_([1, 3], [1, 3])], rtol=0.1, atol=0.01)


def test_start_is_the_likeliest_factor_analysis_of_what_is_observed():
    rng = np.random.default_rng(0)
    X = holed(rng.normal(size=(300, 1)) @ rng.normal(size=(1, 4)) + 0.5 * rng.normal(size=(300, 4)), 0.3)
    X = (X - np.nanmean(X, axis=0)) / np.nanstd(X, axis=0)
    vae = VAETransformer(1, **LINEAR, max_iter=1, learning_rate=1e-12, early_stopping=False).fit(X)

    def loss(parameters):
        mean, loadings, log_noise = parameters.reshape(3, 4)
        covariance = np.outer(loadings, loadings) + np.diag(np.exp(log_noise))
        parts = zip(patterns, groups, strict=True)
        scores = [multivariate_normal.logpdf(X[rows][:, o], mean[o], covariance[np.ix_(o, o)]) for o, rows in parts]
        return -np.mean(np.concatenate([np.atleast_1d(score) for score in scores]))

    X = X[~np.isnan(X).all(axis=1)]
    patterns, which = np.unique(~np.isnan(X), axis=0, return_inverse=True)  # rows with the same holes go together
    groups = [which.ravel() == i for i in range(len(patterns))]
    start = np.concatenate([np.zeros(4), np.full(4, 0.5), np.full(4, -1.0)])
    best = minimize(loss, start, method="L-BFGS-B", options={"maxiter": 60}).fun
    found = loss_of(vae, X)
    assert best - 1e-6 < found < best + 2e-3  # EM ends when a row gains less than 5e-5 nats


def loss_of(vae, X):
    return -np.mean([conditional(*exact(vae), row)[0] for row in X])


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_never_below_factor_analysis_of_what_is_observed(load, share):
    """The promise, under holes: a default fit beside the linear model by EM, on rows that neither has seen."""
    X = StandardScaler().fit_transform(load().data)  # for the reference's sake
    rows = np.random.default_rng(0).permutation(len(X))
    train, test = (holed(X[part], share) for part in (rows[::2], rows[1::2]))
    start = {"max_iter": 1, "learning_rate": 1e-12, "early_stopping": False}
    linear = VAETransformer(3, **LINEAR, **start).fit(train)
    seen = test[~np.isnan(test).all(axis=1)]
    assert VAETransformer(3, random_state=0).fit(train).score(seen) > -loss_of(linear, seen)


def test_rows_know_nothing_of_their_neighbours():
    X = holed(load_wine().data, 0.2)
    vae = VAETransformer(2, **SMALL).fit(X)
    scores, Z, filled = vae.score_samples(X), vae.transform(X), vae.impute(X)
    order = np.random.default_rng(0).permutation(len(X))
    for some in (order, order[:7]):
        np.testing.assert_array_equal(vae.score_samples(X[some]), scores[some])
        np.testing.assert_array_equal(vae.transform(X[some]), Z[some])
        np.testing.assert_array_equal(vae.impute(X[some]), filled[some])
    assert np.array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])


def test_rows_with_holes_keep_their_digits_beside_complete_ones():
    X = np.random.default_rng(0).poisson(50, (20, 60)).astype(float)
    X[::2, 0] = np.nan
    vae = VAETransformer(2, **SMALL | {"early_stopping": False}, likelihood="poisson", n_draws=5).fit(X)
    alone = [vae.score_samples(X[i : i + 1])[0] for i in range(4)]
    np.testing.assert_array_equal(vae.score_samples(X)[:4], alone)


def test_columns_and_rows_without_a_value():
    X = load_wine().data.copy()
    X[:, 3], X[5] = np.nan, np.nan
    vae = VAETransformer(2, **SMALL).fit(X)
    assert np.isfinite(vae.transform(X)).all()
    assert np.isfinite(vae.impute(X)).all()
    assert vae.score_samples(X)[5] == pytest.approx(0, abs=1e-12)
    normal = VAETransformer(2, prior="standard_normal", **SMALL).fit(X)
    np.testing.assert_allclose(normal.posterior(X[[5]]), [np.zeros((1, 2)), np.ones((1, 2))], atol=1e-6)
    with pytest.raises(ValueError, match="infinity"):
        vae.transform(np.where(np.isnan(X), np.inf, X))


@pytest.mark.parametrize("make", [np.ma.masked_invalid, lambda X: pd.DataFrame(X).astype("Float64"), list])
def test_holes_have_several_names(make):
    X = holed(load_wine().data, 0.2)
    vae = VAETransformer(2, **SMALL).fit(X)
    np.testing.assert_array_equal(VAETransformer(2, **SMALL).fit(make(X)).score_samples(make(X)), vae.score_samples(X))


def test_chunks_and_pickles_keep_the_bits():
    X = holed(load_wine().data, 0.2)
    vae = VAETransformer(2, early_stopping=False, **SMALL).fit(X)
    steps = VAETransformer(2, early_stopping=False, **SMALL, likelihood="gaussian")
    for _ in range(3):
        steps.partial_fit(X)
    for other in (steps, pickle.loads(pickle.dumps(vae))):
        np.testing.assert_array_equal(other.score_samples(X), vae.score_samples(X))


@pytest.mark.filterwarnings("ignore:No latent unit is active")  # after three epochs
@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "negative_binomial", "continuous_bernoulli"])
def test_every_likelihood_has_holes(likelihood):
    X = (load_breast_cancer().data[:200, :6] > 14).astype(float) * (1 if "bern" in likelihood else 3)
    vae = VAETransformer(2, likelihood=likelihood, **SMALL).fit(holed(X, 0.3))
    assert np.isfinite(vae.impute(holed(X, 0.3, 1))).all()
    assert np.isfinite(vae.score(holed(X, 0.3, 1)))
    draws = vae.impute(holed(X, 0.3, 1), sample=True, n_draws=3, random_state=0)
    assert draws.shape == (3, *X.shape)


@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "flow" or find_spec("zuko")])
def test_every_prior_has_holes(prior):
    """In float64, in which its own draws are part of the weights; folds calibrate what is drawn."""
    X = holed(load_wine().data[:, :4], 0.2)
    vae = VAETransformer(2, prior=prior, **SMALL).fit(X)
    filled = vae.impute(X)
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
    drawn = vae.sample(3, given={0: 13.0}, random_state=0)
    assert np.isfinite(vae.score_samples(X)).all()
    assert np.isfinite(filled).all()
    assert np.isfinite(drawn).all()
    assert (drawn[:, 0] == 13).all()


def test_gradient_with_holes_is_that_of_autograd():
    X = holed(load_wine().data, 0.3)
    x = torch.from_numpy((X - np.nanmean(X, axis=0)) / np.nanstd(X, axis=0))
    vae = VAETransformer(2, hidden_layer_sizes=6, max_iter=1, random_state=0).fit(X).module_.double().train()
    vae.requires_grad_()
    cells = vae.complete(x)
    eps = torch.randn(len(x), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, *_ = ELBO()(vae, Batch(**{k: v for k, v in cells._asdict().items() if v is not None}, eps=eps))
    vae.zero_grad()
    value.mean().neg().backward()
    expected = {name: part.grad.clone() for name, part in vae.named_parameters()}
    stack = Stack([vae], [copy.deepcopy(vae)], [[name for name, _ in vae.named_parameters()]])
    fields = {name: part.unsqueeze(0) for name, part in cells._asdict().items() if part is not None}
    weight = torch.full((1, len(x)), 1 / len(x), dtype=torch.float64)
    FastELBO(stack, 1.0).gradient(Batch(**fields, eps=eps.unsqueeze(0), weight=weight))
    for name, grad in expected.items():
        torch.testing.assert_close(stack.gradients[name][0], grad, rtol=1e-8, atol=1e-10)


def test_metrics_count_observed_cells():
    X = holed(load_wine().data, 0.2)
    vae = VAETransformer(2, **SMALL).fit(X)
    estimate = log_likelihood(vae, X, 500)
    assert abs(estimate.value - vae.score(X)) < 5 * estimate.standard_error + 0.05  # other draws, of which 100
    error = np.nanmean((vae.inverse_transform(vae.transform(X)) - X) ** 2)
    assert reconstruction_error(vae, X) == pytest.approx(error)


def test_what_fills_holes_has_the_moments_of_what_is_seen():
    x = holed(load_wine().data, 0.3)
    filled = without_holes(torch.from_numpy(x)).numpy()
    n_holes, spread = np.isnan(x).sum(0), np.nanstd(x, axis=0)  # as many values come again
    assert np.all(np.abs(filled.mean(axis=0) - np.nanmean(x, axis=0)) < 4 * spread * np.sqrt(n_holes) / len(x))
    assert np.array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])


def test_holes_pass_through_a_pipeline():
    X = holed(load_wine().data, 0.2)
    pipeline = make_pipeline(StandardScaler(), VAETransformer(2, **SMALL)).fit(X)
    assert np.isfinite(pipeline.score(X))


CENTRES = np.array([[-6, 0, 0], [6, 0, 5], [0, 8, -5]])
SHARES = np.array([0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def clustered():
    """A model of three clusters with a column beside that says nothing about them, and its shares of them."""
    rng = np.random.default_rng(0)
    rows = CENTRES[rng.choice(3, 600, p=SHARES)] + rng.normal(size=(600, 3))
    vae = VAETransformer(random_state=0).fit(np.column_stack([rows, rng.normal(size=600)]))
    return vae, shares_of(vae.sample(20_000, noise=True, random_state=0))


def shares_of(rows):
    nearest = np.square(rows[:, None, :3] - CENTRES).sum(-1).argmin(1)
    return np.bincount(nearest, minlength=3) / len(rows)


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_say_little_are_drawn_one_by_one(seed, clustered):
    """As the model draws whole rows: 1000 of them have shares with standard deviations of 0.016 at most."""
    vae, shares = clustered
    rows = np.column_stack([np.full((1000, 3), np.nan), np.random.default_rng(seed).normal(size=1000)])
    for drawn in (vae.impute(rows, sample=True, random_state=seed), vae.sample(1000, given=rows, random_state=seed)):
        np.testing.assert_allclose(shares_of(drawn), shares, atol=4 * 0.016 + 0.02)  # and 100 particles in place of all


def test_rows_that_say_little_are_scored_as_with_many_draws(clustered):
    vae, shares = clustered
    rows = np.column_stack([np.full((200, 3), np.nan), np.random.default_rng(1).normal(size=200)])
    many = copy.copy(vae).set_params(n_draws=4000)
    assert vae.score(rows) == pytest.approx(many.score(rows), abs=0.1)  # sqrt(1 / 200): weights are p(x | z), at most 2
    np.testing.assert_allclose(vae.impute(rows)[0, :3], shares @ CENTRES, atol=1.5)  # 4 * sqrt(25 / 200), about


def test_draws_of_the_prior_are_part_of_the_weights(clustered):
    """A density of the observed cells that integrates to one."""
    vae, _ = clustered
    grid = np.linspace(-12, 12, 481)
    rows = np.column_stack([grid, np.full((481, 3), np.nan)])
    density = np.exp(copy.copy(vae).set_params(n_draws=2000).score_samples(rows))
    assert trapezoid(density, grid) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("as_frame", [False, True])
def test_a_column_that_fit_has_not_seen_counts_as_missing(as_frame):
    X = load_wine().data[:, :4]
    unseen = np.where(np.arange(4) == 1, np.nan, X)
    give = (lambda rows: pd.DataFrame(rows, columns=list("abcd")).assign(kind="x")) if as_frame else np.asarray
    vae = VAETransformer(2, max_iter=5, random_state=0).fit(give(unseen))
    np.testing.assert_array_equal(vae.score_samples(give(X)), vae.score_samples(give(unseen)))
    np.testing.assert_array_equal(vae.transform(give(X)), vae.transform(give(unseen)))
    assert np.array_equal(np.asarray(vae.impute(give(X)))[:, :4].astype(float), X)


def test_a_stream_learns_of_a_column_when_it_comes():
    X = load_wine().data[:, :4]
    vae = VAETransformer(2, random_state=0).partial_fit(np.where(np.arange(4) == 1, np.nan, X[:60]))
    assert np.isclose(vae.score(X[:5]), vae.score(np.where(np.arange(4) == 1, np.nan, X[:5])))
    vae.partial_fit(X[60:])
    assert not np.isclose(vae.score(X[:5]), vae.score(np.where(np.arange(4) == 1, np.nan, X[:5])))
    assert vae.score(X) > -30
