import math
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.sparse import csr_array
from scipy.stats import kurtosis, multivariate_normal
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skvae import VAETransformer, metrics
from skvae._data import rows as _rows
from skvae.likelihoods import Gaussian
from skvae.metrics import (
    active_units,
    column_gains,
    frechet_distance,
    kl_per_unit,
    kl_split,
    log_likelihood,
    reconstruction_error,
)
from skvae.priors import PRIORS

LINEAR = {"hidden_layer_sizes": (), "max_iter": 1, "early_stopping": False, "learning_rate": 1e-12, "random_state": 0}
SMALL = {"hidden_layer_sizes": (8,), "max_iter": 5, "early_stopping": False, "random_state": 0}
each_prior = pytest.mark.parametrize("prior", PRIORS)
ON_X = [kl_per_unit, active_units, kl_split, log_likelihood, reconstruction_error]


def exact_covariance(vae):
    """Covariance of a linear model with feature noise, in the units of X."""
    weight = vae.module_.decoder.head.weight.detach().double().numpy()
    noise = (2 * vae.module_.likelihood.log_noise).exp() + vae.module_.likelihood.floor
    covariance = weight @ weight.T + np.diag(noise.detach().double().numpy())
    return covariance * vae.net_.scale * vae.net_.scale[:, None]


def test_log_likelihood_of_the_linear_model_is_exact(table):
    """At the linear start the posterior is exact: all weights are equal, and the error is none."""
    X = table(n_rows=100)
    vae = VAETransformer(2, likelihood=Gaussian("feature"), **LINEAR).fit(X)
    offset = vae.inverse_transform(np.zeros((1, 2)))[0]
    exact = multivariate_normal(offset, exact_covariance(vae)).logpdf(X).mean()
    estimate = log_likelihood(vae, X, n_draws=50)
    assert estimate.value == pytest.approx(exact, abs=1e-4)
    assert estimate.standard_error < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_standard_error_is_that_of_the_estimate(seed, table):
    X = table(n_rows=100)
    vae = VAETransformer(2, **SMALL | {"max_iter": 20}).fit(X)
    estimates = [log_likelihood(vae, X, n_draws=50, random_state=100 * seed + k) for k in range(40)]
    values, errors = np.transpose(estimates)
    # the standard deviation of 40 values is known to 11 %: four times that
    assert np.std(values, ddof=1) / np.mean(errors) == pytest.approx(1, abs=0.45)
    most = log_likelihood(vae, X, n_draws=20_000)
    assert values.mean() < most.value + 5 * errors.mean() / 40**0.5  # fewer draws are no higher on average
    assert most.standard_error < errors.mean() / 10


@each_prior
@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_log_likelihood_agrees_with_the_score(prior, likelihood, table):
    X = table(likelihood)
    vae = VAETransformer(2, prior=prior, likelihood=likelihood, n_draws=2000, **SMALL).fit(X)
    value, error = log_likelihood(vae, X, n_draws=2000)
    # the score's draws are common to the rows: their error does not average out, and is at most the mean row's
    assert value == pytest.approx(vae.score(X), abs=5 * error * len(X) ** 0.5)


def test_log_likelihood_does_not_depend_on_the_blocks(table, monkeypatch):
    X = table(n_rows=200)
    vae = VAETransformer(2, **SMALL).fit(X)
    whole = log_likelihood(vae, X, n_draws=500)
    monkeypatch.setattr("skvae._data.blocks._MAX_ELEMENTS", 5 * 64 * 100)
    parts = log_likelihood(vae, X, n_draws=500)
    assert whole.value == pytest.approx(parts.value, abs=5 * math.hypot(whole.standard_error, parts.standard_error))


def test_log_likelihood_needs_two_draws(table):
    vae = VAETransformer(2, **SMALL).fit(table())
    with pytest.raises(ValueError, match="A standard error takes at least two draws"):
        log_likelihood(vae, table(), n_draws=1)


@each_prior
def test_units_of_the_training_rows_are_those_of_the_fit(prior, table):
    X = table()
    vae = VAETransformer(4, prior=prior, **SMALL).fit(X)
    np.testing.assert_allclose(kl_per_unit(vae, X), vae.kl_per_unit_, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(active_units(vae, X), vae.active_units_)
    mean, std = vae.posterior(X)
    loc, variance = (moment.numpy() for moment in map(torch.Tensor.detach, vae.module_.prior.moments()))
    expected = 0.5 * ((std**2 + (mean - loc) ** 2) / variance - 1 - np.log(std**2 / variance))
    np.testing.assert_allclose(vae.kl_per_unit_, expected.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_threshold_of_active_units(table):
    X = table()
    vae = VAETransformer(2, **SMALL).fit(X)
    variance = vae.transform(X).var(axis=0)
    np.testing.assert_array_equal(active_units(vae, X, threshold=variance.mean()), variance > variance.mean())


@each_prior
def test_kl_split_adds_up_and_its_sum_is_the_kl(prior, table):
    X = table(n_rows=200)
    vae = VAETransformer(2, prior=prior, **SMALL).fit(X)
    split = kl_split(vae, X, n_draws=50)
    assert split.kl == pytest.approx(split.mutual_information + split.marginal_kl, abs=1e-9)
    assert 0 < split.mutual_information < math.log(200)
    assert split.marginal_kl > 0
    if prior == "standard_normal":  # 10,000 draws of a log-ratio with a standard deviation of about sqrt(z_dim)
        assert split.kl == pytest.approx(vae.kl_per_unit_.sum(), abs=5 * math.sqrt(2 / 10_000))


class Fixed(BaseEstimator):
    """Stands in for a fitted estimator: given posteriors under the standard normal prior."""

    fit = None

    def __init__(self, mean, std):
        self.mean, self.std = np.float32(mean), np.float32(std)
        prior = PRIORS["standard_normal"]()
        prior.build(self.mean.shape[1], 1, torch.Generator())
        self.module_ = torch.nn.Module()
        self.module_.prior = prior
        self._fitted = SimpleNamespace(vae=self.module_, device="cpu")

    def posterior(self, X):
        return self.mean, self.std


def test_kl_split_of_known_posteriors():
    rng = np.random.default_rng(0)
    collapsed = kl_split(Fixed(np.zeros((50, 2)), np.ones((50, 2))), None)
    np.testing.assert_allclose(collapsed, 0, atol=1e-6)
    same = kl_split(Fixed(np.ones((50, 2)), np.ones((50, 2))), None, n_draws=200)  # says nothing about the row
    np.testing.assert_allclose(same, [1, 0, 1], atol=5 * math.sqrt(2 / 10_000))
    apart = kl_split(Fixed(100 * np.eye(50), np.ones((50, 50))), None)
    assert apart.mutual_information == pytest.approx(math.log(50), abs=1e-6)  # each row is known by its latent point
    matched = kl_split(Fixed(math.sqrt(0.75) * rng.normal(size=(3000, 1)), np.full((3000, 1), 0.5)), None, n_draws=3)
    # the aggregate is the prior, up to the 3000 rows of which it is made; I = log(1 / 0.5)
    assert matched.mutual_information == pytest.approx(math.log(2), abs=0.05)
    assert abs(matched.marginal_kl) < 0.01


def test_reconstruction_error_is_in_the_units_of_x(table):
    X = table()
    vae = VAETransformer(2, **SMALL).fit(X)
    expected = mean_squared_error(X, vae.inverse_transform(vae.transform(X)))
    assert reconstruction_error(vae, X) == expected
    assert reconstruction_error(PCA(5).fit(X), X) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_is_the_formula(seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(60, 4)), 1 + rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    pca = PCA(3).fit(X)
    a, b = pca.transform(X), pca.transform(Y)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    cross = np.trace(sqrtm(cov_a @ cov_b).real)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(pca, X, Y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(pca, X, X) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(PCA(1).fit(X), X, Y) > 0  # one latent feature


def test_frechet_distance_tells_samples_from_noise(table):
    X = table(n_rows=300)
    vae, reference = VAETransformer(2, **SMALL).fit(X), PCA(2).fit(table(n_rows=300))
    samples = vae.sample(300, noise=True, random_state=0)
    noise = np.random.default_rng(0).normal(X.mean(), X.std(), size=X.shape)
    assert frechet_distance(reference, X, samples) < frechet_distance(reference, X, noise) / 5


@pytest.mark.parametrize("metric", ON_X, ids=lambda metric: metric.__name__)
def test_metric_is_deterministic_and_changes_nothing(metric, table, global_streams):
    X = table()
    vae = VAETransformer(2, **SMALL).fit(X)
    before, streams = pickle.dumps(vae), global_streams()
    first = metric(vae, X)
    np.testing.assert_array_equal(first, metric(vae, X))
    assert pickle.dumps(vae) == before
    assert global_streams() == streams


@pytest.mark.parametrize("metric", ON_X, ids=lambda metric: metric.__name__)
def test_bad_input_is_refused_in_the_estimators_words(metric, table):
    X = table()
    with pytest.raises(NotFittedError, match="This VAETransformer instance is not fitted yet"):
        metric(VAETransformer(2), X)
    vae = VAETransformer(2, **SMALL).fit(X)
    with pytest.raises(ValueError, match="X has 3 features, but VAETransformer is expecting 5 features as input"):
        metric(vae, X[:, :3])
    X[-1, 0] = np.inf
    with pytest.raises(ValueError, match="Input X contains infinity"):
        metric(vae, X)


def test_log_likelihood_of_a_table_that_is_not_held(table, monkeypatch):
    X = np.abs(table()).astype("f")
    vae = VAETransformer(2, max_iter=2, early_stopping=False, random_state=0).fit(X)
    held = log_likelihood(vae, X, n_draws=50)
    monkeypatch.setattr("skvae._data.rows.MAX_HELD", 0)
    assert log_likelihood(vae, csr_array(X), n_draws=50) == pytest.approx(held, abs=1e-4)


def test_reconstruction_error_through_a_pipeline_is_under_the_conditions_of_the_row():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(60, 3)), rng.choice([0.0, 10.0], 60)])
    X[:, :3] += X[:, 3:]
    vae = VAETransformer(2, condition_features=[3], **SMALL).fit(X)
    expected = reconstruction_error(vae, X)
    assert expected < 2  # and some 25 under other conditions
    assert reconstruction_error(make_pipeline(FunctionTransformer(), vae), X) == expected
    before = StandardScaler().fit(X)
    through = reconstruction_error(make_pipeline(before, clone(vae).fit(before.transform(X))), X)
    assert through == pytest.approx(expected, rel=0.5)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(d=np.where(X[:, 3] > 5, "y", "x"))
    frame["a"] = frame["a"].round().astype("Int64").mask(rng.random(60) < 0.1)
    vae = VAETransformer(2, condition_features=["d"], **SMALL).fit(frame)
    assert reconstruction_error(make_pipeline(FunctionTransformer(), vae), frame) == reconstruction_error(vae, frame)
    words = make_pipeline(FunctionTransformer(), VAETransformer(2, **SMALL).fit(frame))
    with pytest.raises(ValueError, match=r"columns \['d'\] of X hold categories"):
        reconstruction_error(words, frame)


def test_reconstruction_error_takes_what_the_model_takes():
    X = np.random.default_rng(0).normal(size=(80, 3))
    holes = np.where(X > 1, np.nan, X)
    vae = VAETransformer(2, max_iter=3, random_state=0).fit(X)
    expected = reconstruction_error(vae, holes)
    assert reconstruction_error(vae, np.ma.masked_invalid(np.where(X > 1, np.inf, X))) == expected
    frame = pd.DataFrame(holes, columns=list("abc")).convert_dtypes()
    of_frame = VAETransformer(2, max_iter=3, random_state=0).fit(pd.DataFrame(X, columns=list("abc")))
    assert reconstruction_error(of_frame, frame) == pytest.approx(expected)
    words = frame.assign(kind=["u", "v"] * 40)
    mixed = VAETransformer(2, max_iter=3, random_state=0).fit(words)
    with pytest.raises(ValueError, match=r"columns \['kind'\] of X hold categories"):
        reconstruction_error(mixed, words)
    given = VAETransformer(2, max_iter=3, condition_features=["kind"], random_state=0).fit(words)
    assert np.isfinite(reconstruction_error(given, words))


@pytest.mark.parametrize("metric", [kl_split, log_likelihood, column_gains])
def test_draws_and_random_states(metric):
    X = np.random.default_rng(0).normal(size=(60, 3))
    vae = VAETransformer(2, max_iter=3, random_state=0).fit(X)
    for n_draws in (0, 2.5):
        with pytest.raises((TypeError, ValueError), match="n_draws"):
            metric(vae, X, n_draws=n_draws)
    metric(vae, X, n_draws=2, random_state=None)
    found = [metric(vae, X, n_draws=2, random_state=np.random.RandomState(0)) for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_gains_of_tables_that_are_not_held(monkeypatch):
    X = np.random.default_rng(0).normal(size=(300, 4)) * [1, 1, 1, 0] + np.arange(300)[:, None] / 100
    vae = VAETransformer(2, max_iter=3, random_state=0).fit(X)
    held = column_gains(vae, X)
    for module in (_rows, metrics):
        monkeypatch.setattr(module, "MAX_HELD", 800)
    found = column_gains(vae, csr_array(X))
    assert (found != held).all()
    assert np.allclose(found, held, atol=0.3)  # of 200 rows in the place of 300


OF_MODELS = [kl_per_unit, active_units, kl_split, log_likelihood, column_gains]


@pytest.mark.parametrize("metric", OF_MODELS, ids=lambda metric: metric.__name__)
def test_metrics_of_a_pipeline_are_those_of_its_last_step(metric, table):
    X = table(n_rows=60)
    pipeline = make_pipeline(StandardScaler(), VAETransformer(2, **SMALL)).fit(X)
    expected = metric(pipeline[-1], pipeline[0].transform(X))
    np.testing.assert_array_equal(metric(pipeline, X), expected)
    np.testing.assert_array_equal(metric(make_pipeline(pipeline[-1]), pipeline[0].transform(X)), expected)


@pytest.mark.parametrize("metric", OF_MODELS, ids=lambda metric: metric.__name__)
def test_metrics_of_models_refuse_others(metric, table):
    X = table(n_rows=60)
    with pytest.raises(TypeError, match=r"Expected a VAETransformer, or a Pipeline that ends in one\. Got PCA\("):
        metric(PCA(2).fit(X), X)
    with pytest.raises(NotFittedError):
        metric(make_pipeline(StandardScaler(), VAETransformer(2)), X)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.filterwarnings("error")
def test_metrics_do_not_mind_output_in_frames(kind, table):
    X = table(n_rows=60)
    vae = VAETransformer(2, **SMALL).fit(X)
    expected = kl_per_unit(vae, X)
    with config_context(transform_output=kind):
        np.testing.assert_array_equal(kl_per_unit(vae, X), expected)


def test_metrics_refuse_what_is_no_number(table):
    vae = VAETransformer(2, **SMALL).fit(table())
    with pytest.raises(ValueError, match=r"^threshold must be a share"):
        active_units(vae, table(), threshold=np.nan)
    with pytest.raises(TypeError, match="n_draws must be an instance of int"):
        log_likelihood(vae, table(), n_draws=None)
    with pytest.raises(ValueError, match="Seed must be between"):
        kl_split(vae, table(), random_state=-1)


def test_what_a_column_says_of_itself_takes_no_help_of_others(monkeypatch):
    """Of columns that are nearly constant, and copies of each other: alone, their noise has a higher floor."""
    X = np.random.default_rng(0).normal(size=(300, 3))
    X[:, 1:] = np.arange(300)[:, None] < 3
    vae, floors, log_prob = VAETransformer(2, **SMALL).fit(X), [], Gaussian.log_prob

    def spied(self, raw, x):
        floors.append(self.floor[1].item())
        return log_prob(self, raw, x)

    monkeypatch.setattr(Gaussian, "log_prob", spied)
    column_gains(vae, X)
    alone = ((kurtosis(X[:, 1], fisher=False) - 1) / 300) ** 2
    assert floors[0] == pytest.approx(alone, rel=1e-5)
    assert max(floors[1:]) < alone / 2


@pytest.mark.parametrize("noise", ["row", "feature", "shared"])
def test_column_gains_are_over_the_normal_distribution_of_the_column(noise):
    """Rows and draws of the posterior have the model's joint distribution, where it is linear and exact: what is left
    of a column of unit variance is its noise."""
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal(np.zeros(4), 0.4 * np.eye(4) + 0.6, size=4000)
    linear = {"hidden_layer_sizes": (), "init": "linear", "max_iter": 1, "learning_rate": 1e-12}
    vae = VAETransformer(1, likelihood=Gaussian(noise=noise), early_stopping=False, random_state=0, **linear).fit(X)
    gain = 0.5 * np.log(1 / 0.4)
    np.testing.assert_allclose(column_gains(vae, X, n_draws=20), gain, atol=0.05)  # a few errors of the variance
