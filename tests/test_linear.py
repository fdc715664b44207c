import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.preprocessing import StandardScaler
from torch.distributions import MultivariateNormal

from skvae import VAETransformer
from skvae._data.batch import Batch
from skvae._model import linear as _linear
from skvae._model.gaussian import LinearGaussian
from skvae._model.linear import linear_start
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.objectives import ELBO

DATA = {"digits": load_digits().data, "wine": load_wine().data, "breast_cancer": load_breast_cancer().data}
MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist.npz"
STILL = {"learning_rate": 1e-12, "max_iter": 1, "early_stopping": False, "random_state": 0}  # stays at its start


def standardised(name):
    return StandardScaler().fit_transform(DATA[name])


def put(vae, weight, noise):
    """Make a linear `vae` the factor model with loadings (n_features, z_dim) and noise variances in the units of X."""
    scale, likelihood = vae.net_.scale, vae.module_.likelihood
    weight, noise = weight / scale[:, None], noise / scale**2
    left, singular, _ = np.linalg.svd(weight / np.sqrt(noise)[:, None], full_matrices=False)
    weight = left * singular * np.sqrt(noise)[:, None]  # rotated, so that the exact posterior is diagonal
    precision = 1 + singular**2
    encoder, decoder = vae.module_.encoder.head, vae.module_.decoder.head
    values = {
        encoder.weight: np.vstack([(weight / noise[:, None] / precision).T, np.zeros_like(weight.T)]),
        encoder.bias: np.concatenate([np.zeros_like(precision), -0.5 * np.log(precision)]),
        decoder.weight: weight,
        decoder.bias: np.zeros(len(weight)),
        likelihood.floor: np.full(len(weight), likelihood.noise_floor),
        likelihood.log_noise: 0.5 * np.log(noise - likelihood.noise_floor)[: len(likelihood.log_noise)],
    }
    for parameter, value in values.items():
        parameter.data.copy_(torch.from_numpy(value))


def linear_model(X, z_dim, noise="feature", **params):
    likelihood = Gaussian(noise=noise, noise_floor=1e-12)
    return VAETransformer(z_dim, hidden_layer_sizes=(), likelihood=likelihood, **(STILL | params)).fit(X)


def pca_parameters(pca):
    return pca.components_.T * np.sqrt(pca.explained_variance_ - pca.noise_variance_), pca.noise_variance_


def ppca_optimum(X, z_dim):
    """Mean log-likelihood of the maximum-likelihood pPCA (Tipping & Bishop, 1999, equations 7 and 8)."""
    values = np.linalg.eigvalsh(np.cov(X.T, bias=True))[::-1]
    n_rest = X.shape[1] - z_dim
    log_det = np.log(values[:z_dim]).sum() + n_rest * np.log(values[z_dim:].mean())
    return -0.5 * (X.shape[1] * (np.log(2 * np.pi) + 1) + log_det)


@pytest.mark.parametrize("n_draws", [1, 7, 100])
@pytest.mark.parametrize(("name", "z_dim"), [("digits", 2), ("digits", 10), ("wine", 2), ("breast_cancer", 3)])
def test_with_parameters_of_pca_it_is_pca(name, z_dim, n_draws):
    X = DATA[name]
    pca = PCA(z_dim).fit(X)
    vae = linear_model(X, z_dim, n_draws=n_draws)
    weight, noise = pca_parameters(pca)
    put(vae, weight, np.full(X.shape[1], noise))
    np.testing.assert_allclose(vae.score_samples(X), pca.score_samples(X), rtol=1e-5)
    assert vae.score(X) == pytest.approx(pca.score(X), rel=1e-6)


@pytest.mark.parametrize("name", DATA)
def test_with_parameters_of_pca_and_shared_noise_it_is_pca(name):
    X = standardised(name)
    pca = PCA(3).fit(X)
    vae = linear_model(X, 3, noise="shared")
    weight, noise = pca_parameters(pca)
    put(vae, weight, np.full(X.shape[1], noise))
    np.testing.assert_allclose(vae.score_samples(X), pca.score_samples(X), rtol=1e-5)
    # the same subspace: E[x | E[z | x]] shrinks PCA's reconstruction towards the mean
    shrunk = PCA(3).fit_transform(X) * (1 - noise / pca.explained_variance_) @ pca.components_
    np.testing.assert_allclose(vae.inverse_transform(vae.transform(X)), shrunk, atol=1e-4)


@pytest.mark.parametrize("n_draws", [1, 7, 100])
@pytest.mark.parametrize(("name", "z_dim"), [("wine", 2), ("wine", 5), ("breast_cancer", 2)])
def test_with_parameters_of_factor_analysis_it_is_factor_analysis(name, z_dim, n_draws):
    X = standardised(name) * 10.0 ** np.arange(-6, 7).repeat(3)[: DATA[name].shape[1]]
    fa = FactorAnalysis(z_dim).fit(standardised(name))
    fa.mean_, factor = X.mean(0), X.std(0)
    fa.components_, fa.noise_variance_ = fa.components_ * factor, fa.noise_variance_ * factor**2
    vae = linear_model(X, z_dim, n_draws=n_draws)
    put(vae, fa.components_.T, fa.noise_variance_)
    jacobian = -np.log(factor).sum()
    exact = FactorAnalysis(z_dim).fit(standardised(name)).score_samples(standardised(name))
    # relative to the log-density itself: the Jacobian is added in float64
    np.testing.assert_allclose(vae.score_samples(X) - jacobian, exact, rtol=1e-5)


def test_posterior_is_that_of_factor_analysis():
    X = standardised("wine")
    fa = FactorAnalysis(2).fit(X)
    vae = linear_model(X, 2)
    put(vae, fa.components_.T, fa.noise_variance_)
    mean, std = vae.posterior(X)
    rotation, *_ = np.linalg.lstsq(fa.transform(X), mean)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(2), atol=1e-4)  # a rotation leads from one to the other
    np.testing.assert_allclose(fa.transform(X) @ rotation, mean, atol=1e-4)
    precision = np.eye(2) + (fa.components_ / fa.noise_variance_) @ fa.components_.T
    np.testing.assert_allclose(std**-2, np.tile(np.diag(rotation.T @ precision @ rotation), (len(X), 1)), rtol=1e-4)


ANCHORS = [
    ("digits", 2, lambda X: X / 16, 0.005707),
    ("digits", 10, lambda X: X / 16, 17.451947),
    ("wine", 2, StandardScaler().fit_transform, -16.155260),
    ("wine", 5, StandardScaler().fit_transform, -15.212645),
    ("breast_cancer", 2, StandardScaler().fit_transform, -31.684860),
    ("breast_cancer", 10, StandardScaler().fit_transform, -18.185031),
]


@pytest.mark.parametrize(("name", "z_dim", "scale", "expected"), ANCHORS)
def test_closed_form_optimum_has_the_known_value(name, z_dim, scale, expected):
    assert ppca_optimum(scale(DATA[name]), z_dim) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "learning_rate", "max_iter"), [("digits", 2e-3, 60), ("wine", 1e-2, 200), ("breast_cancer", 1e-2, 100)]
)
@pytest.mark.parametrize("start", ["optimum", "noise"])
def test_trained_linear_model_reaches_the_optimum(name, learning_rate, max_iter, start):
    X = standardised(name)
    training = {"learning_rate": learning_rate, "batch_size": 64, "warm_start": True}
    vae = linear_model(X, 2, noise="shared", **training)
    if start == "noise":
        for module in (vae.net_.module_, vae.module_):  # the weights that are trained, and their average
            for seed, parameter in enumerate(module.parameters()):
                torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(seed))
            module.encoder.head.weight.data[2:] = 0  # a posterior scale that is the same for all rows
        assert vae.score(X) < ppca_optimum(X, 2) - 0.05 * X.shape[1]
    vae.set_params(max_iter=max_iter).fit(X)
    assert vae.score(X) == pytest.approx(ppca_optimum(X, 2), abs=0.02 * X.shape[1])


def test_trained_linear_model_reaches_the_optimum_from_a_random_init():
    X = standardised("wine")
    training = {"init": "random", "max_iter": 250, "learning_rate": 0.03, "batch_size": 64}
    vae = linear_model(X, 2, noise="shared", **training)
    assert vae.score(X) == pytest.approx(ppca_optimum(X, 2), abs=0.02 * X.shape[1])


@pytest.mark.parametrize(
    ("name", "z_dim", "expected"),
    [("wine", 2, -15.433658), ("wine", 5, -14.779053), ("breast_cancer", 2, -23.546530)],
)
@pytest.mark.parametrize("hidden_layer_sizes", [(), (16,)])
def test_start_is_factor_analysis(name, z_dim, expected, hidden_layer_sizes):
    X = standardised(name)
    vae = VAETransformer(z_dim, hidden_layer_sizes=hidden_layer_sizes, **STILL).fit(X)
    # the start stops where the noise moves by less than 1e-4 of itself, and keeps it above the floor
    assert vae.score(X) == pytest.approx(expected, abs=0.005 * X.shape[1])
    assert vae.score(X) == pytest.approx(FactorAnalysis(z_dim).fit(X).score(X), abs=0.005 * X.shape[1])


@pytest.mark.parametrize("name", DATA)
def test_start_with_shared_noise_is_pca(name):
    X = standardised(name)
    vae = linear_model(X, 3, noise="shared")
    assert vae.score(X) == pytest.approx(ppca_optimum(X, 3), abs=1e-3)


def started(make_vae, X, z_dim, beta=1.0, noise="shared"):
    vae = make_vae(Gaussian(noise=noise), n_features=X.shape[1], z_dim=z_dim)
    vae.linear_encoder = vae.linear_decoder = None
    x = torch.from_numpy(X).float()
    linear_start(vae, x, vae.likelihood.start(x), beta=beta, seed=0, rows=torch.arange(len(x)))
    return vae.double()


@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("noise", ["shared", "feature"])
def test_start_is_stationary_for_the_weighted_bound(beta, noise, make_vae):
    X = standardised("wine")
    vae, x = started(make_vae, X, 2, beta, noise), torch.from_numpy(X)
    value = 0
    for corner in product([-1.0, 1.0], repeat=2):  # a cubature: exact, since the bound is quadratic in eps
        eps = torch.tensor(corner, dtype=torch.float64).expand(len(x), -1)
        value = value + ELBO(beta)(vae, Batch(x, eps))[0].mean() / 4
    heads = [*vae.encoder.head.parameters(), *vae.decoder.head.parameters()]
    for gradient in torch.autograd.grad(value, heads):
        assert gradient.abs().max() < 1e-3  # float32 parameters; an arbitrary point has gradients of order 1


def test_beta_shrinks_the_units_with_little_signal(make_vae):
    X = standardised("wine")
    signals = [started(make_vae, X, 5, beta).decoder.head.weight.detach().norm(dim=0) for beta in (0.5, 1.0, 3.0)]
    assert torch.all(signals[0] > signals[1])
    assert torch.all(signals[1] > signals[2])
    assert signals[2].min() > 0


@pytest.mark.parametrize(("n_rows", "n_features", "z_dim"), [(178, 5, 5), (4, 13, 8), (178, 2, 4)])
def test_units_without_signal_stay_able_to_learn(n_rows, n_features, z_dim, make_vae):
    X = standardised("wine")[:n_rows, :n_features]
    X = X - X[:, :1] * (np.arange(n_features) == n_features - 1)  # the last feature explained by the first
    vae, x = started(make_vae, X, z_dim), torch.from_numpy(X)
    value, *_ = ELBO()(vae, Batch(x, torch.zeros(n_rows, z_dim, dtype=torch.float64)))
    assert torch.isfinite(value).all()
    n_alive = min(z_dim, n_features)  # a linear decoder has no use for more
    assert torch.all(vae.encoder.head.weight[:n_alive].norm(dim=1) > 1e-3)
    gradient = torch.autograd.grad(value.mean(), vae.decoder.head.weight)[0]
    n_alive = min(n_alive, n_rows - 1)  # rows around their mean say nothing of more
    assert torch.all(gradient[:, :n_alive].norm(dim=0) > 1e-6)


@pytest.mark.parametrize("n_features", [50, 1600])  # one on each side of the switch to a randomised decomposition
def test_fewer_rows_than_features(n_features, table):
    X = table(n_rows=25, n_features=n_features)
    vae = VAETransformer(4, hidden_layer_sizes=(), likelihood=Gaussian(noise="shared"), **STILL).fit(X)
    optimum = ppca_optimum((X - X.mean(0)) / X.std(0), 4) - np.log(X.std(0)).sum()
    # the noise of wide data takes few iterations of the closed form
    assert vae.score(X) == pytest.approx(optimum, abs=5e-3 * n_features)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli"])
def test_a_pixel_that_is_always_black(likelihood, make_vae):
    x = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1], x[:, 3] = 0, 1
    vae = make_vae(LIKELIHOODS[likelihood](), n_features=4, z_dim=2, hidden_layer_sizes=())
    linear_start(vae, x, vae.likelihood.start(x), beta=1.0, seed=0, rows=torch.arange(len(x)))
    assert all(torch.isfinite(parameter).all() for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("constant", "value", "n_rows", "n_features"), [("_MAX_COVARIANCE", 10, 80, 12), ("_MAX_ELEMENTS", 1, 4000, 12)]
)
def test_short_cuts_for_large_data_lead_to_the_same_start(constant, value, n_rows, n_features, table, monkeypatch):
    X = table(n_rows=n_rows, n_features=n_features)
    scores = [VAETransformer(2, **STILL).fit(X).score(X)]
    monkeypatch.setattr(_linear, constant, value)  # the randomised decomposition; a sample of 1000 rows
    scores.append(VAETransformer(2, **STILL).fit(X).score(X))
    # a fit of about 40 parameters to 1000 rows loses about 40 / 2000 nats
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_the_start_of_a_part_of_the_rows_has_their_mean(seed):
    """The units of the model are those of all rows, of which some are held out. Where columns are sums of others, the
    difference may be noise scales: rows were up to 0.16 nats below the linear model that the start is."""
    X = np.random.default_rng(seed).normal(size=(1500, 2)) @ [[1, 0, 1, 1], [0, 1, 1, -1]]
    vae = VAETransformer(2, prior="standard_normal", **STILL | {"early_stopping": True, "random_state": seed}).fit(X)
    rows = torch.from_numpy((X - vae.net_.offset) / vae.net_.scale)
    linear = vae.module_.background.log_prob(rows).numpy() - np.log(vae.net_.scale).sum()
    np.testing.assert_allclose(vae.score_samples(X), linear, atol=2e-3)  # float32, at a noise of 0.001


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_start_explains_common_factors(likelihood, table):
    """Of every likelihood: better before training than independent features, with active units."""
    X = table(likelihood, n_rows=300, n_features=12)
    vae = VAETransformer(2, likelihood=likelihood, **STILL).fit(X)
    module, x = vae.module_, torch.from_numpy((X - vae.net_.offset) / vae.net_.scale).float()
    with torch.no_grad():
        alone = module.likelihood.log_prob(module.decode(torch.zeros(len(x), 2)), x).sum(-1).mean().item()
    independent = alone + vae.net_.mean_log_jacobian
    assert vae.active_units_.all()
    # a negative binomial's dispersion alone explains most of what common factors do to counts
    assert vae.score(X) > independent + (0.1 if likelihood == "negative_binomial" else 0.5)


@pytest.mark.skipif(not MNIST.exists(), reason="needs a local copy of MNIST")
def test_start_on_mnist():
    with np.load(MNIST) as file:
        X = (file["X_train"][:4000].reshape(4000, -1) / 255).astype(np.float32)
    vae = VAETransformer(20, likelihood="bernoulli", **STILL).fit(X)
    assert vae.loss_curve_[0] < 206  # the mean image alone; 158 in a first experiment with 100 units


@pytest.mark.parametrize("z_dim", [1, 4])
def test_linear_gaussian_is_the_factor_analysis_it_was_set_to(z_dim, make_vae, normal):
    x = torch.from_numpy(standardised("wine"))
    vae = make_vae(Gaussian("feature"), n_features=x.shape[1], z_dim=z_dim).double()
    vae.background = LinearGaussian(x.shape[1], z_dim).double()
    linear_start(vae, x, vae.likelihood.start(x), beta=1.0, seed=0, rows=torch.arange(len(x)))
    weight = vae.decoder.head.weight
    noise = (2 * vae.likelihood.log_noise).exp() + vae.likelihood.floor
    exact = MultivariateNormal(x.mean(0), weight @ weight.T + noise.diag())
    torch.testing.assert_close(vae.background.log_prob(x), exact.log_prob(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1e6, 1e18, 1e30])
def test_linear_gaussian_knows_the_order_of_far_rows(size, make_vae, normal):
    """Squares that float32 cannot hold, of rows that differ by a thousandth."""
    x = torch.from_numpy(standardised("wine")).float()
    vae = make_vae(Gaussian("feature"), n_features=x.shape[1], z_dim=2)
    vae.background = LinearGaussian(x.shape[1], 2)
    linear_start(vae, x, vae.likelihood.start(x), beta=1.0, seed=0, rows=torch.arange(len(x)))
    far = size * torch.linspace(1, 1.01, 11)[:, None] * normal(13).sign()
    scores = vae.background.log_prob(far)
    assert torch.isfinite(scores).all()
    assert torch.all(scores.diff() < 0)
    torch.testing.assert_close(vae.background.log_prob(-far), scores, rtol=1e-5, atol=0)


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_start_is_as_good_for_large_counts_as_for_small_ones(likelihood):
    """Two factors of five standard deviations of the counts: their slopes and curvatures are as large as the counts."""
    losses = []
    for size in (1e3, 1e5, 1e7, 1e8):
        rng = np.random.default_rng(0)
        signal = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) * 5 / np.sqrt(size)
        X = rng.poisson(size * np.exp(signal)).astype(float)
        vae = VAETransformer(2, likelihood=likelihood, **STILL).fit(X)
        assert vae.active_units_.all()
        ideal = stats.poisson.logpmf(X, size * np.exp(signal)).sum(1).mean()
        losses.append([ideal - vae.score(X), ideal + vae.loss_curve_[0]])
    # other draws of the counts, whose ideal itself has a standard error of 0.1
    np.testing.assert_allclose(losses, np.tile(losses[0], (4, 1)), atol=0.5)


def test_linear_gaussian_draws_from_its_density(normal):
    density, rng = LinearGaussian(4, 2), torch.Generator().manual_seed(0)
    density.directions.copy_(torch.linalg.qr(normal(4, 2))[0])
    for name, value in {"mean": [1.0, -2, 0, 3], "noise_scale": [0.5, 1, 2, 0.1], "signal": [3.0, 1]}.items():
        getattr(density, name).copy_(torch.tensor(value))
    draws = density.sample(100_000, rng)
    loadings = density.noise_scale[:, None] * density.directions * density.signal.sqrt()
    covariance = loadings @ loadings.T + density.noise_scale.square().diag()
    # five standard errors, sqrt(2 / 100,000) of the variances at most
    scale = covariance.diag().sqrt()
    assert ((draws.mean(0) - density.mean) / scale).abs().max() < 5 / math.sqrt(1e5)
    assert ((draws.T.cov() - covariance) / scale / scale[:, None]).abs().max() < 5 * math.sqrt(2 / 1e5)
