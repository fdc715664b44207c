"""Counts with a size factor: rates in proportion to the row's sum."""

import pickle

import joblib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.model_selection import GridSearchCV

import skvae
from skvae import VAETransformer
from skvae.likelihoods import NegativeBinomial, Poisson

CLASSES = [Poisson, NegativeBinomial]
each_class = pytest.mark.parametrize("cls", CLASSES)
SMALL = {"hidden_layer_sizes": (8,), "max_iter": 3, "early_stopping": False, "n_draws": 5, "random_state": 0}
STILL = {"max_iter": 1, "early_stopping": False, "learning_rate": 1e-12, "random_state": 0}
N_FEATURES = 6


def rows_of_sizes(n_rows=400, n_features=N_FEATURES, spread=0.8, size=20.0, strength=0.4, seed=0):
    """Counts, their exposures and the loadings (2, n_features) of their log-rates."""
    rng = np.random.default_rng(seed)
    loadings = strength * rng.normal(size=(2, n_features))
    exposure = np.exp(spread * rng.normal(size=(n_rows, 1)))
    X = rng.poisson(size * exposure * np.exp(rng.normal(size=(n_rows, 2)) @ loadings)).astype(float)
    return X, exposure, loadings


def started(cls, x, dtype=torch.float64, **params):
    likelihood = cls("sum", **params)
    likelihood.build(x.shape[1])
    likelihood.start(x)
    return likelihood.to(dtype)


def scipys(likelihood, raw, x):
    """Log-probabilities by explicit rates: the feature's mean count, times exp(raw), times the row's size."""
    log_mean, mean_sum = (part.double().numpy() for part in (likelihood.log_mean, likelihood.mean_sum))
    rate = np.exp(log_mean + raw[..., 0, :].numpy()) * x.sum(1, keepdims=True) / mean_sum
    if isinstance(likelihood, Poisson):
        return stats.poisson.logpmf(x, rate)
    count = likelihood.log_total_count.detach().exp().numpy()
    return stats.nbinom.logpmf(x, count, count / (count + rate))


@each_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_is_scipys_at_explicit_rates(cls, dtype, normal):
    X, _, _ = rows_of_sizes()
    likelihood = started(cls, torch.from_numpy(X).float(), dtype)
    raw = normal(len(X), 1, N_FEATURES, dtype=torch.float64)
    found = likelihood.log_prob(raw.to(dtype), torch.from_numpy(X).to(dtype)).detach().double()
    rtol, atol = (1e-9, 1e-9) if dtype == torch.float64 else (1e-5, 1e-4)
    np.testing.assert_allclose(found, scipys(likelihood.double(), raw, X), rtol=rtol, atol=atol)


@each_class
def test_gradient_is_that_of_log_prob(cls, normal):
    x = torch.from_numpy(rows_of_sizes(50)[0])
    x[3] = 0
    likelihood = started(cls, x.float())
    raw = normal(50, 1, N_FEATURES, dtype=torch.float64).requires_grad_()
    inputs, weight = [raw, *likelihood.parameters()], torch.arange(1.0, 51, dtype=torch.float64)
    expected = torch.autograd.grad(-(weight * likelihood.log_prob(raw, x).sum(-1)).sum(), inputs)
    for parameter in likelihood.parameters():
        parameter.grad = torch.zeros_like(parameter)
    value, slope = likelihood.gradient(raw.detach()[None], x[None], weight[None, :, None])
    torch.testing.assert_close(value, likelihood.log_prob(raw, x).detach(), rtol=1e-12, atol=1e-12)
    found = [slope[0], *(parameter.grad for parameter in likelihood.parameters())]
    torch.testing.assert_close(found, list(expected), rtol=1e-9, atol=1e-12)


@each_class
def test_a_row_of_zeros_is_certain(cls, normal):
    """Its rates are 0, and so are the slopes: it says nothing about z."""
    X, _, _ = rows_of_sizes()
    for dtype in (torch.float32, torch.float64):
        likelihood = started(cls, torch.from_numpy(X).float(), dtype)
        raw, x = (5 * normal(20, 1, N_FEATURES)).to(dtype), torch.zeros(20, N_FEATURES, dtype=dtype)
        torch.testing.assert_close(likelihood.log_prob(raw, x).detach(), torch.zeros_like(x), rtol=0, atol=1e-5)
        slope, curvature = likelihood.expansion(raw, x)
        assert slope.abs().max() < 1e-5
        assert curvature.abs().max() < 1e-5
        assert torch.isfinite(likelihood.inputs(x)).all()


@each_class
def test_rows_that_are_multiples_of_each_other_look_alike_to_the_encoder(cls):
    x = torch.from_numpy(rows_of_sizes()[0])
    likelihood = started(cls, x.float())
    torch.testing.assert_close(likelihood.inputs(3 * x), likelihood.inputs(x))


def test_dispersion_is_that_at_the_same_size():
    """A hundredfold range of sizes makes counts vary, and is no dispersion."""
    rng = np.random.default_rng(0)
    exposure = np.exp(rng.uniform(0, np.log(100), size=(5000, 1)))
    rate = np.broadcast_to(rng.uniform(0.5, 2, size=40), (5000, 40)) * exposure
    x = torch.from_numpy(rng.negative_binomial(4.0, 4 / (4 + rate))).float()
    with_sizes, without = started(NegativeBinomial, x), NegativeBinomial()
    without.build(40)
    without.start(x)
    # 40 features: the row's own noise, of which the sum has a seventh, is all that the sizes are off by
    assert with_sizes.log_total_count.exp().mean().item() == pytest.approx(4, rel=0.2)
    assert without.log_total_count.exp().mean() < 1.5


def angle(found, loadings):
    """The largest angle between the planes that two pairs of loadings span, in degrees."""
    bases = [np.linalg.qr(part.T)[0] for part in (found, loadings)]
    return np.degrees(np.arccos(np.clip(np.linalg.svd(bases[0].T @ bases[1])[1].min(), -1, 1)))


@pytest.mark.parametrize(("cls", "largest"), [(Poisson, 45), (NegativeBinomial, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_start_recovers_loadings_from_rows_of_many_sizes(cls, largest, seed):
    """A linear model before training; without the sizes, these are the first factor. A row's total is taken for its
    size, so what moves all features together is none. Poisson's start is stiff where signals exceed its noise."""
    X, _, loadings = rows_of_sizes(1000, 12, strength=0.15, seed=seed)
    angles = []
    for size_factor in (None, "sum"):
        vae = VAETransformer(2, likelihood=cls(size_factor), hidden_layer_sizes=(), **STILL).fit(X)
        planes = [vae.module_.decoder.head.weight.detach().numpy().T, loadings]
        angles.append(angle(*(plane - plane.mean(axis=1, keepdims=True) for plane in planes)))
    assert angles[1] < min(angles[0], largest)


def test_size_factor_pays_where_sizes_differ():
    """Log-probability of whole rows, sums included: with a size factor that of the sum is to be added, by the known
    distribution of the exposures. Without, one of two latent features is spent on the size; a negative binomial can
    spend its dispersion on it instead."""
    X, _, _ = rows_of_sizes(600, 12)
    sums = X.sum(axis=1)
    params = {"max_iter": 40, "early_stopping": False, "random_state": 0}
    models = [VAETransformer(2, likelihood=Poisson(kind), **params).fit(X[:300]) for kind in (None, "sum")]
    scores = [model.score(X[300:]) for model in models]
    of_sum = stats.lognorm.logpdf(sums[300:], *stats.lognorm.fit(sums[:300], floc=0)).mean()
    assert scores[1] + of_sum > scores[0]


@each_class
def test_draws_are_as_large_as_the_training_rows(cls):
    X, _, _ = rows_of_sizes(1500, 12, size=50.0)
    vae = VAETransformer(2, likelihood=cls("sum"), **SMALL).fit(X)
    rows, mean = vae.sample(4000, noise=True, random_state=0), X.sum(axis=1).mean()
    # standard error of a median of 4000 log-normal sizes: 1.25 * 0.9 / sqrt(4000), 2 %; the 5 % quantile's is twice it
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(rows.sum(1), levels), np.quantile(X.sum(1), levels), rtol=0.12)
    means = vae.sample(2000, random_state=0)
    assert means.sum(axis=1).mean() == pytest.approx(mean, rel=0.1)
    assert np.std(means.sum(axis=1)) < 0.3 * mean  # rows of the mean sum, whatever z says of them
    np.testing.assert_array_equal(rows[:100], vae.sample(4000, noise=True, random_state=0)[:100])


def test_scores_of_whole_and_single_rows_are_the_same_bits():
    X, _, _ = rows_of_sizes(100)
    vae = VAETransformer(2, likelihood=NegativeBinomial("sum"), **SMALL).fit(X)
    X[5] = 0
    scores = vae.score_samples(X)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, [vae.score_samples(row[None])[0] for row in X])
    np.testing.assert_array_equal(vae.transform(X)[::-1], vae.transform(X[::-1]))


@pytest.mark.parametrize("largest", [1e8, 1e20, 1e37])
def test_far_rows_are_scored_in_order(largest):
    X, _, _ = rows_of_sizes(100)
    vae = VAETransformer(2, likelihood=NegativeBinomial("sum"), **SMALL).fit(X)
    far = np.repeat(X[:1], 3, axis=0)
    far[:, 0] = largest * np.array([1.0, 1.5, 2.0])
    assert not np.isnan(vae.score_samples(far)).any()
    assert np.isfinite(vae.transform(far)).all()


@each_class
def test_what_has_no_sum_is_refused(cls):
    X, _, _ = rows_of_sizes(60)
    holes = X.copy()
    holes[2, 1] = np.nan
    vae = VAETransformer(2, likelihood=cls("sum"), **SMALL)
    message = rf"^Input X contains NaN\.\nVAETransformer \(likelihood='{cls.__name__}'\).*Set size_factor=None"
    with pytest.raises(ValueError, match=message):
        vae.fit(holes)
    vae.fit(X)
    for method in (vae.transform, vae.score_samples, vae.impute, lambda rows: vae.sample(3, given=rows)):
        with pytest.raises(ValueError, match=message):
            method(holes[:3])
    with pytest.raises(ValueError, match=r"1 feature.*minimum of 2 is required"):
        vae.fit(X[:, :1])
    with pytest.raises(ValueError, match=r"likelihood of column 0 it sees that one alone\. Set size_factor=None there"):
        VAETransformer(2, likelihood={0: cls("sum")}, **SMALL).fit(X)
    assert not vae.__sklearn_tags__().input_tags.allow_nan
    assert VAETransformer(likelihood=cls()).__sklearn_tags__().input_tags.allow_nan
    with pytest.raises(
        ValueError, match=rf"'size_factor' parameter of {cls.__name__} must be a str among {{'sum'}} or"
    ):
        cls("mean")


@each_class
def test_models_without_a_size_have_nothing_of_it(cls):
    likelihood = cls()
    likelihood.build(3)
    assert {name for name, _ in likelihood.named_buffers()} == {"log_mean", "inputs_mean", "inputs_scale"}


@each_class
def test_saved_and_pickled_models_give_the_same_bits(cls, tmp_path):
    X, _, _ = rows_of_sizes(80)
    vae = VAETransformer(2, likelihood=cls("sum"), **SMALL).fit(X)
    vae.save(tmp_path / "vae")
    for other in (skvae.load(tmp_path / "vae"), pickle.loads(pickle.dumps(vae))):
        assert other.likelihood.size_factor == "sum"
        np.testing.assert_array_equal(other.score_samples(X), vae.score_samples(X))
        drawn = [one.sample(30, noise=True, random_state=0) for one in (vae, other)]
        np.testing.assert_array_equal(*drawn)
        assert joblib.hash(other.transform(X)) == joblib.hash(vae.transform(X))


def test_search_over_size_factors():
    X, _, _ = rows_of_sizes(90)
    vae = VAETransformer(2, likelihood=Poisson(), **SMALL)
    search = GridSearchCV(vae, {"likelihood__size_factor": [None, "sum"]}, cv=2).fit(X)
    assert search.best_params_ == {"likelihood__size_factor": "sum"}  # its score is given the sum, and so is higher
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_folds_train_side_by_side_as_one_by_one():
    """Members of a stack have sizes of their own."""
    X, _, _ = rows_of_sizes(200)
    params = {"max_iter": 5, "early_stopping": True, "n_iter_no_change": 5, "random_state": 0}
    vae = VAETransformer(2, likelihood=NegativeBinomial("sum"), **params | {"early_stopping": "auto"}).fit(X)
    alone = VAETransformer(2, likelihood=NegativeBinomial("sum"), **params | {"early_stopping": False}).fit(X)
    assert vae.score(X) == pytest.approx(alone.score(X), abs=0.5)
    assert np.isfinite(vae.validation_scores_).all()


def test_sums_are_those_of_the_counts_alone():
    """In a frame, columns of other kinds and what is given have no part in them."""
    X, exposure, _ = rows_of_sizes(120, 4)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(kind=pd.Categorical(["x", "y"] * 60), batch=exposure[:, 0])
    vae = VAETransformer(2, likelihood=Poisson("sum"), condition_features=["batch"], marginal="standardize", **SMALL)
    vae.fit(frame)
    part = vae.module_.likelihood.parts[0]
    assert part.mean_sum.item() == pytest.approx(X.sum(axis=1).mean())
    assert np.isfinite(vae.score_samples(frame)).all()


@each_class
def test_onnx_graphs_compute_what_the_estimator_does(cls, tmp_path):
    X = rows_of_sizes(70)[0].astype(np.float32)
    vae = VAETransformer(2, likelihood=cls("sum"), **SMALL).fit(X)
    Z = vae.transform(X)
    for part, name, given, expected in [("encoder", "X", X, Z), ("decoder", "Z", Z, vae.inverse_transform(Z))]:
        vae.to_onnx(tmp_path / part, part=part)
        (found,) = onnxruntime.InferenceSession(tmp_path / part).run(None, {name: given})
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_known_exposure_by_a_condition():
    """Its logarithm as a column that is given: the rates learn to go with it."""
    X, exposure, _ = rows_of_sizes(400, 12)
    rows = np.hstack([X, np.log(exposure)])
    params = {"max_iter": 40, "early_stopping": False, "random_state": 0}
    vae = VAETransformer(2, likelihood=Poisson(), condition_features=[12], **params).fit(rows)
    conditions = {12: [-0.5, 0.5]}
    low, high = vae.inverse_transform(np.zeros((2, 2)), conditions=conditions)[:, :12]
    np.testing.assert_allclose(np.log(high / low), 1.0, atol=0.15)


@pytest.mark.parametrize("value", [1e20, 1e30, 9.97e36])
@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_a_fill_value_beside_a_hole_is_far_off(likelihood, value):
    rng = np.random.default_rng(0)
    X = rng.poisson(np.exp(0.8 * rng.normal(size=(300, 1)) + 1), size=(300, 4)).astype(float)
    vae, rows = VAETransformer(2, likelihood=likelihood, **SMALL).fit(X), X[:5].copy()
    rows[0, :2] = value, np.nan
    rows[1, 2] = np.nan
    scores = vae.score_samples(rows)
    assert np.isfinite(scores).all()
    assert scores[0] < -1e10
    np.testing.assert_array_equal(scores[1:], vae.score_samples(rows[1:]))
    assert np.isfinite(vae.impute(rows)).all()
    assert np.isfinite(vae.transform(rows)).all()


@pytest.mark.filterwarnings("ignore:Training diverged")
def test_a_fill_value_in_training_is_trained_with_or_refused_in_words():
    X = np.random.default_rng(0).poisson(3, size=(100, 4)).astype(float)
    X[0, 0] = 9.97e36
    assert np.isfinite(VAETransformer(2, likelihood="poisson", **SMALL).fit(X).score(X[1:]))
    with pytest.raises(ValueError, match=r"^Training diverged: .* look for outliers in X"):
        VAETransformer(2, likelihood="negative_binomial", **SMALL).fit(X)
