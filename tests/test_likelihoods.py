import re
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import simpson
from torch import distributions as td

from skvae.likelihoods import LIKELIHOODS, Bernoulli, ContinuousBernoulli, Gaussian, NegativeBinomial, Poisson

N_FEATURES = 4
CASES = LIKELIHOODS | {f"gaussian_{noise}": partial(Gaussian, noise=noise) for noise in ("shared", "row")}
each_case = pytest.mark.parametrize("name", CASES)


def bounded_log(raw):
    """The logarithm of exp, going on linearly above exp(5)."""
    return torch.where(raw > 5, 5 + (raw - 4).clamp(min=1).log(), raw)


def rate(likelihood, raw):
    return (likelihood.log_mean + bounded_log(raw)).exp()


def normal_reference(likelihood, raw):
    log_noise = bounded_log(raw[..., 1, :]) if likelihood.noise == "row" else likelihood.log_noise
    return td.Normal(raw[..., 0, :], (likelihood.floor + (2 * log_noise).exp()).sqrt())


def negative_binomial_reference(likelihood, raw):
    count = likelihood.log_total_count.exp()
    return td.NegativeBinomial(count, logits=rate(likelihood, raw[..., 0, :]).log() - count.log(), validate_args=False)


REFERENCES = {
    "gaussian": normal_reference,
    "bernoulli": lambda likelihood, raw: td.Bernoulli(logits=raw[..., 0, :]),
    "continuous_bernoulli": lambda likelihood, raw: td.ContinuousBernoulli(logits=raw[..., 0, :]),
    "poisson": lambda likelihood, raw: td.Poisson(rate(likelihood, raw[..., 0, :])),
    "negative_binomial": negative_binomial_reference,
}


def reference(name, likelihood, raw):
    return REFERENCES[name.removesuffix("_row").removesuffix("_shared")](likelihood, raw)


def log_prob_of(likelihood, raw, x):
    """The log-probability of each row."""
    return likelihood.log_prob(raw, x).sum(-1)


@pytest.fixture
def case(table):
    """A function that returns a likelihood started at data of its domain, and the data."""

    def make(name, dtype=torch.float64):
        family = name.removesuffix("_row").removesuffix("_shared")
        x = torch.from_numpy(table(family, n_features=N_FEATURES)).float()
        if family == "gaussian":
            x = (x - x.mean(0)) / x.std(0)
        likelihood = CASES[name]()
        likelihood.build(N_FEATURES)
        likelihood.start(x)
        for index, parameter in enumerate(likelihood.parameters()):
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(index))
        return likelihood.to(dtype), x.to(dtype)

    return make


def raws(likelihood, normal, size):
    return (size * normal(60, likelihood.n_raw, N_FEATURES, dtype=torch.float64)).requires_grad_()


def extremes(likelihood, dtype=torch.float64):
    """Raw outputs of -100 and 100, each at every position: (2 ** n_raw, n_raw, n_features)."""
    grid = torch.cartesian_prod(*[torch.tensor([-100.0, 100.0], dtype=dtype)] * likelihood.n_raw)
    return grid.reshape(-1, likelihood.n_raw, 1).repeat(1, 1, N_FEATURES).requires_grad_()


def assert_same_value_and_gradient(value, expected, inputs, rtol):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-10)
    gradients = [torch.autograd.grad(v.sum(), inputs, retain_graph=True) for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=1e-8)


@each_case
@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_log_prob_is_the_distributions(name, size, case, normal):
    likelihood, x = case(name)
    raw = raws(likelihood, normal, size)
    expected = reference(name, likelihood, raw).log_prob(x).sum(-1)
    # torch's continuous Bernoulli works with probabilities, whose cancellation costs it the last digits
    rtol = 1e-6 if name == "continuous_bernoulli" else 1e-9
    inputs = [raw, *likelihood.parameters()]
    assert_same_value_and_gradient(log_prob_of(likelihood, raw, x), expected, inputs, rtol)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"continuous_bernoulli"}))  # see the test against mpmath
def test_extreme_raw_outputs_are_the_distributions(name, case):
    likelihood, x = case(name)
    raw = extremes(likelihood)
    for row in x[:5]:
        expected = reference(name, likelihood, raw).log_prob(row).sum(-1)
        assert_same_value_and_gradient(log_prob_of(likelihood, raw, row), expected, [raw], rtol=1e-9)


@each_case
def test_extreme_raw_outputs_in_float32(name, case):
    exact, x = case(name)
    single, _ = case(name, torch.float32)
    raws = extremes(exact), extremes(single, torch.float32)
    for row in x[:5]:
        values = exact.log_prob(raws[0], row), single.log_prob(raws[1], row.float())
        # float32 has 1.2e-7; sums of terms of opposite sign lose a digit or two of it
        torch.testing.assert_close(values[1].double(), values[0], rtol=1e-5, atol=1e-4)
        gradients = [torch.autograd.grad(v.sum(), r)[0].double() for v, r in zip(values, raws, strict=True)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli"])
def test_curvature_is_finite_at_extreme_raw_outputs(name, case):
    """The linear start expands around the mean of the data, which is extreme where a pixel is always black."""
    likelihood, x = case(name, torch.float32)
    raw = extremes(likelihood, torch.float32)
    for row in x[:5]:
        (slope,) = torch.autograd.grad(log_prob_of(likelihood, raw, row).sum(), raw, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), raw)
        assert torch.isfinite(bend).all()
        assert (bend <= 1e-6).all()  # the log-density is concave


@each_case
def test_extreme_means_and_draws_are_in_the_domain(name, case):
    likelihood, _ = case(name, torch.float32)
    raw = extremes(likelihood, torch.float32).detach()
    for x in (likelihood.mean(raw), likelihood.sample(raw, torch.Generator().manual_seed(0))):
        assert torch.isfinite(x).all()
        likelihood.check(x.detach().numpy(), "the test")


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-3, 0.02, 0.1, 0.299999, 0.300001, 0.5, 1, 5, 20, 60, 100])
@pytest.mark.parametrize("sign", [-1, 1])
def test_continuous_bernoulli_against_50_digits(size, sign):
    logit = torch.tensor([[sign * size]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    likelihood = ContinuousBernoulli()
    with mpmath.workdps(50):
        exact = mpmath.mpf(sign * size)
        norm = mpmath.log(exact / mpmath.expm1(exact))  # an exponential distribution cut off at 1
        mean = 1 / (1 - mpmath.exp(-exact)) - 1 / exact
        values = torch.tensor([[float(norm + exact * mpmath.mpf(v))] for v in (0.0, 0.3, 1.0)], dtype=torch.float64)
    # the series to l^6 is good to 2e-9 at its end, 0.3, and its derivative to 5e-8
    log_prob = log_prob_of(likelihood, logit[None], x)
    torch.testing.assert_close(log_prob, values[:, 0], rtol=1e-12, atol=2e-9)
    torch.testing.assert_close(likelihood.mean(logit[None])[0].item(), float(mean), rtol=1e-8, atol=1e-12)
    for row, value in zip(x, log_prob, strict=True):
        (slope,) = torch.autograd.grad(value, logit, retain_graph=True)
        assert slope.item() == pytest.approx(row.item() - float(mean), rel=1e-8, abs=1e-7)


@each_case
@pytest.mark.parametrize("size", [1.0, 8.0])  # 8: beyond the bend of the link, exp(5), too
def test_gradient_is_that_of_log_prob(name, size, case, normal):
    likelihood, x = case(name)
    raw = raws(likelihood, normal, size)
    log_prob, weight = log_prob_of(likelihood, raw, x), torch.arange(1.0, len(x) + 1, dtype=torch.float64)
    expected = torch.autograd.grad(-(weight * log_prob).sum(), [raw, *likelihood.parameters()])
    for parameter in likelihood.parameters():
        parameter.grad = torch.zeros_like(parameter)
    value, slope = likelihood.gradient(raw.detach()[None], x[None], weight[None, :, None])
    torch.testing.assert_close(value.sum(-1), log_prob, rtol=1e-12, atol=0)
    found = [slope[0], *(parameter.grad for parameter in likelihood.parameters())]
    torch.testing.assert_close(found, list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli"])
@pytest.mark.parametrize("n_features", [1, 8, 19])
def test_hand_written_derivatives(name, n_features, normal):
    """The linear start differentiates twice, and x may want a gradient too."""
    raw, x = normal(3, 2, 1, n_features, dtype=torch.float64), normal(2, n_features, seed=1, dtype=torch.float64)
    inputs = (3 * raw).requires_grad_(), x.sigmoid().requires_grad_()
    log_prob = LIKELIHOODS[name]().log_prob
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


def test_continuous_bernoulli_is_uniform_at_zero():
    logit = torch.zeros(1, 1, 1, requires_grad=True)
    value = log_prob_of(ContinuousBernoulli(), logit, torch.tensor([[0.25]]))
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert torch.autograd.grad(value, logit)[0].item() == pytest.approx(-0.25)


@pytest.mark.parametrize("floor", [1e-6, 1e-4, 0.01])
def test_continuous_bernoulli_has_a_floor(floor):
    """Its variance, 1 / l^2 far from the middle, and so its density, at most |l|, stop there."""
    likelihood, largest = ContinuousBernoulli(noise_floor=floor), floor**-0.5
    raw = torch.tensor([0.99, 1.0, 1.01, 3.0, 1e10], dtype=torch.float64)[:, None, None] * largest
    for sign, black in ((-1, 0.0), (1, 1.0)):
        highest = log_prob_of(likelihood, sign * raw, torch.tensor([black], dtype=torch.float64))
        assert highest[0] < highest[1] == highest[2] == highest[4]
        assert highest[1].item() == pytest.approx(np.log(largest), abs=1e-4)
        assert torch.equal(likelihood.mean(sign * raw)[1:], likelihood.mean(sign * raw)[1].expand(4, 1))
    draws = likelihood.sample(torch.full((100_000, 1, 1), -1e10), torch.Generator().manual_seed(0))
    assert draws.var().item() == pytest.approx(floor, rel=0.05)


def test_no_raw_output_is_stuck_beyond_the_floor():
    likelihood, raw = ContinuousBernoulli(), torch.tensor([-300.0, 300.0]).reshape(2, 1, 1).requires_grad_()
    for x, leads_back in ((0.0, [False, True]), (1.0, [True, False]), (0.5, [True, True])):
        value = log_prob_of(likelihood, raw, torch.tensor([x]))
        slope = torch.autograd.grad(value.sum(), raw)[0]
        assert (slope.flatten() != 0).tolist() == leads_back
        assert torch.all(slope * raw <= 0)
        rows, weight = torch.tensor([[[x], [x]]]), torch.full((1, 2, 1), 0.5)
        found, by_hand = likelihood.gradient(raw.detach()[None], rows, weight)
        torch.testing.assert_close(by_hand[0], -slope / 2)
        torch.testing.assert_close(found.sum(-1), value.detach())


@pytest.mark.parametrize("floor", [1e-6, 1e-4, 1.0])
def test_continuous_bernoulli_starts_where_the_floor_allows(floor):
    likelihood = ContinuousBernoulli(noise_floor=floor)
    x = torch.tensor([0.0, 1.0, 0.3]).repeat(10, 1)
    raw = likelihood.start(x)
    assert raw[0, :2].tolist() == pytest.approx([-(floor**-0.5), floor**-0.5], rel=1e-6)
    if floor < 0.1:
        assert likelihood.mean(raw)[2].item() == pytest.approx(0.3, abs=1e-6)


LARGE = [0, 1, 2, 15, 16, 17, 1000, 10**6, 10**7, 10**8]
RATES = [1e-3, 0.1, 1.0, 30.0, 1e4, 1e6, 1e7, 1e8]


def counts_near(mean, std):
    """Whole numbers that float32 holds too: some near the mean, and some far from it."""
    near = np.clip(mean + std * np.array([-2, -1, 0, 1, 2, 4]), 0, 1e8).round()
    return np.unique(np.float32([*near, *LARGE])).astype(float)


def at_rate(likelihood, rate, dtype):
    """The likelihood of one feature, with a rate that all types hold."""
    likelihood.build(1)
    likelihood.log_mean.fill_(float(np.log(rate)))
    return likelihood.to(dtype), likelihood.log_mean.double().exp().item()


def assert_close_to_exact(found, exact, dtype, least_scale):
    """A difference of 1e-3 nats in float32, where the value itself is not of thousands."""
    assert found.max() < 0
    rtol, atol = (1e-5, least_scale) if dtype == torch.float32 else (1e-9, 1e-6)
    np.testing.assert_allclose(found, exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", RATES)
def test_poisson_of_large_counts(rate, dtype):
    likelihood, exact_rate = at_rate(Poisson(), rate, dtype)
    x = counts_near(rate, np.sqrt(rate))
    found = log_prob_of(likelihood, torch.zeros(1, 1, dtype=dtype), torch.from_numpy(x)[:, None].to(dtype))
    with mpmath.workdps(40):
        mean = mpmath.mpf(exact_rate)
        exact = [float(v * mpmath.log(mean) - mean - mpmath.loggamma(v + 1)) for v in map(mpmath.mpf, x)]
    assert_close_to_exact(found.double().numpy(), exact, dtype, 2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("total_count", [1e-2, 0.3, 1.0, 10.0, 1e3, 1e6, 1e8, 1e12])
def test_negative_binomial_of_large_counts(total_count, dtype):
    for rate in RATES:
        likelihood, exact_rate = at_rate(NegativeBinomial(), rate, dtype)
        likelihood.log_total_count.data.fill_(float(np.log(total_count)))
        x = counts_near(rate, np.sqrt(rate + rate**2 / total_count))
        found = log_prob_of(likelihood, torch.zeros(1, 1, dtype=dtype), torch.from_numpy(x)[:, None].to(dtype))
        with mpmath.workdps(40):
            size, mean = mpmath.mpf(likelihood.log_total_count.detach().double().exp().item()), mpmath.mpf(exact_rate)
            log_p, log_q = mpmath.log(size / (size + mean)), mpmath.log(mean / (size + mean))
            choose = [mpmath.loggamma(v + size) - mpmath.loggamma(size) - mpmath.loggamma(v + 1) for v in x.tolist()]
            exact = [float(c + size * log_p + v * log_q) for c, v in zip(choose, x.tolist(), strict=True)]
        assert_close_to_exact(found.detach().double().numpy(), exact, dtype, 2e-3)


@pytest.mark.parametrize("cls", [Poisson, NegativeBinomial])
def test_slope_at_large_counts(cls):
    """Count less rate, of which float32 arithmetic on the logarithms would leave nothing."""
    likelihood, rate = at_rate(cls(), 1e7, torch.float32)
    share = 1.0
    if cls is NegativeBinomial:
        likelihood.log_total_count.data.fill_(np.log(1e7))
        share = 0.5  # the curvature is that of a variance twice as large
    x = torch.tensor([[9.99e6], [9.999e6], [1.0001e7], [1.001e7]])
    raw = torch.zeros(4, 1, 1, requires_grad=True)
    slope = torch.autograd.grad(log_prob_of(likelihood, raw, x).sum(), raw)[0]
    np.testing.assert_allclose(slope.flatten(), share * (x.flatten().double() - rate), rtol=1e-3, atol=2)


@pytest.mark.parametrize("seed", range(3))
def test_a_table_of_large_counts_scores_as_scipy_says(seed):
    X = np.random.default_rng(seed).poisson(1e7, size=(300, 4)).astype(float)
    x = torch.from_numpy(X).float()
    poisson, binomial = Poisson(), NegativeBinomial()
    for likelihood in (poisson, binomial):
        likelihood.build(4)
        raw = likelihood.start(x)
        found = log_prob_of(likelihood, raw, x).detach().double().numpy()
        rate = likelihood.log_mean.double().exp().numpy()
        expected = stats.poisson.logpmf(X, rate).sum(1)
        if likelihood is binomial:
            size = likelihood.log_total_count.detach().double().exp().numpy()
            assert np.all((size > 1e7) & (size < 1.0001e9))  # by a tenth more variance than Poisson's, or by 1 %
            expected = stats.nbinom.logpmf(X, size, size / (size + rate)).sum(1)
        np.testing.assert_allclose(found, expected, atol=5e-3)  # four features of 1e-3
        assert found.mean() == pytest.approx(expected.mean(), abs=5e-4)


def test_moments_of_large_counts_are_exact():
    """The variance of a float32 sum of squares would be a multiple of 2^24."""
    X = np.random.default_rng(0).negative_binomial(50, 50 / (50 + 1e6), size=(10_000, 3)).astype(float)
    likelihood = NegativeBinomial()
    likelihood.build(3)
    likelihood.start(torch.from_numpy(X).float())
    mean, variance = X.mean(0), X.var(0)
    np.testing.assert_allclose(likelihood.log_mean, np.log(mean), rtol=1e-6)
    np.testing.assert_allclose(likelihood.log_total_count.detach().exp(), mean**2 / (variance - mean), rtol=1e-4)


@pytest.mark.parametrize("cls", [Poisson, NegativeBinomial])
def test_large_counts_are_drawn_one_by_one(cls):
    """float32 has even numbers only from 2^24 on."""
    likelihood, _ = at_rate(cls(), 1e8, torch.float32)
    draws = likelihood.sample(torch.zeros(1000, 1, 1), torch.Generator().manual_seed(0))
    assert 400 < (draws % 2 == 1).sum() < 600  # 500 with a standard error of 16


@each_case
def test_mean_is_the_distributions(name, case, normal):
    likelihood, _ = case(name)
    raw = raws(likelihood, normal, 2.0).detach()
    expected = reference(name, likelihood, raw).mean
    torch.testing.assert_close(likelihood.mean(raw), expected, rtol=1e-6, atol=1e-8)


@each_case
@pytest.mark.parametrize("seed", range(2))
def test_samples_have_mean_and_variance(name, seed, case, normal, global_streams):
    likelihood, _ = case(name)
    raw = normal(likelihood.n_raw, N_FEATURES, seed=seed, dtype=torch.float64).expand(50_000, -1, -1)
    before = global_streams()
    draws, again = (likelihood.sample(raw, torch.Generator().manual_seed(seed)).detach() for _ in range(2))
    assert global_streams() == before
    assert torch.equal(draws, again)
    expected = reference(name, likelihood, raw[0])
    deviation = draws - expected.mean.detach()
    variance = deviation.square().mean(0)
    # 5 standard errors each, about 100 comparisons: fails by chance once in 10^4 seeds
    assert torch.all(deviation.mean(0).abs() < 5 * (variance / len(draws)).sqrt())
    error = (deviation**4).mean(0).sub(variance**2).div(len(draws)).sqrt()
    assert torch.all((variance - expected.variance.detach()).abs() < 5 * error)


@each_case
def test_density_has_mass_one(name, case, normal):
    likelihood, _ = case(name)
    raw = normal(likelihood.n_raw, N_FEATURES, dtype=torch.float64)
    support = {
        "bernoulli": torch.arange(2),
        "continuous_bernoulli": torch.linspace(0, 1, 2001),
        "poisson": torch.arange(2000),
        "negative_binomial": torch.arange(2000),
    }.get(name, torch.linspace(-60, 60, 20001))
    support = support.double()
    for feature in range(N_FEATURES):
        # all other features stay at a fixed value, whose density is divided out
        x = torch.zeros(len(support), N_FEATURES, dtype=torch.float64)
        others = [f for f in range(N_FEATURES) if f != feature]
        x[:, feature] = support
        rest = reference(name, likelihood, raw).log_prob(torch.zeros_like(x[0]))[others].sum()
        density = (log_prob_of(likelihood, raw.expand(len(x), -1, -1), x) - rest).exp().detach().numpy()
        continuous = name.startswith(("gaussian", "continuous"))
        total = simpson(density, x=support.numpy()) if continuous else density.sum()
        assert total == pytest.approx(1, abs=1e-6)


@each_case
def test_rows_and_draws_broadcast(name, case, normal):
    likelihood, x = case(name)
    raw = normal(3, 60, likelihood.n_raw, N_FEATURES, dtype=torch.float64)
    values = log_prob_of(likelihood, raw, x)
    assert values.shape == (3, 60)
    torch.testing.assert_close(values[1, 7], log_prob_of(likelihood, raw[1, 7], x[7]))
    assert likelihood.mean(raw).shape == likelihood.sample(raw, torch.Generator()).shape == (3, 60, N_FEATURES)


@each_case
def test_start_is_at_the_mean_of_the_data(name, case):
    likelihood, x = case(name, torch.float32)
    mean = likelihood.mean(likelihood.start(x))
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-3, atol=2e-3)  # Bernoulli stays 1e-3 off 0 and 1


@each_case
def test_encoder_sees_moderate_numbers(name, case):
    likelihood, x = case(name)
    inputs = likelihood.inputs(x)
    if name in ("poisson", "negative_binomial"):  # log counts, standardised
        torch.testing.assert_close(
            inputs, (x.log1p() - x.log1p().mean(0)) / x.log1p().std(0, correction=0), rtol=1e-5, atol=1e-6
        )
    else:
        torch.testing.assert_close(inputs, x)


MESSAGES = {
    "negative": (-0.1, "Negative values in data passed to VAETransformer."),
    "above": (
        1.5,
        "Values above 1 in data passed to VAETransformer. Scale X to [0, 1], for instance with "
        "sklearn.preprocessing.MinMaxScaler.",
    ),
}
REFUSED = {
    "bernoulli": ["negative", "above"],
    "continuous_bernoulli": ["negative", "above"],
    "poisson": ["negative"],
    "negative_binomial": ["negative"],
}


@each_case
@pytest.mark.parametrize("fault", MESSAGES)
def test_check_refuses_what_is_outside_the_domain(name, fault, table):
    X = table(name.split("_")[0] if name.startswith("gaussian") else name)
    likelihood = CASES[name]()
    likelihood.check(X, "VAETransformer")
    X[3, 1], message = MESSAGES[fault]
    if fault in REFUSED.get(name, []):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            likelihood.check(X, "VAETransformer")
    else:
        likelihood.check(X, "VAETransformer")
    assert likelihood.non_negative == (name in REFUSED)


unit_interval = pytest.mark.parametrize("cls", [Bernoulli, ContinuousBernoulli])


@unit_interval
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unit_interval_takes_the_rounding_of_a_scaler(cls, dtype):
    """In the type of X, or in float32 where that is finer, since the model computes in it."""
    rounding = dtype(max(np.finfo(dtype).eps, np.finfo(np.float32).eps))
    for n_units in (1, 3, 7):
        X = np.array([[1 + n_units * rounding, 0.5, -n_units * rounding, -1e-17]], dtype=dtype)
        cls().check(X, "VAETransformer")
        nearest = cls().nearest(X)
        np.testing.assert_array_equal(nearest, [[1, 0.5, 0, 0]])
        assert nearest.dtype == dtype
    for value in (1 + 20 * rounding, -20 * rounding):
        with pytest.raises(ValueError, match=r"Values above 1|Negative values"):
            cls().check(np.array([[0.5, value]], dtype=dtype), "VAETransformer")


@unit_interval
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_values_of_the_unit_interval_are_not_copied(cls, dtype):
    X = np.array([[0, 1], [1, 1]], dtype=dtype)
    cls().check(X, "VAETransformer")
    assert cls().nearest(X) is X


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"noise": "none"}, r"'noise' parameter of Gaussian must be a str among \{.*\}\. Got 'none'"),
        ({"noise_floor": 0.0}, r"'noise_floor' parameter of Gaussian must be a float in the range .*\. Got 0\.0"),
        (
            {"noise_floor": float("nan")},
            r"'noise_floor' parameter of Gaussian must be a float in the range .*\. Got nan",
        ),
    ],
)
def test_gaussian_names_a_bad_option(params, message):
    with pytest.raises(ValueError, match=f"^The {message} instead\\.$"):
        Gaussian(**params)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_continuous_bernoulli_names_a_bad_floor(value):
    with pytest.raises(ValueError, match=r"^The 'noise_floor' parameter of ContinuousBernoulli must be"):
        ContinuousBernoulli(noise_floor=value)


@pytest.mark.parametrize(("noise", "n_parameters", "n_raw"), [("feature", 4, 1), ("shared", 1, 1), ("row", 0, 2)])
def test_gaussian_noise_options(noise, n_parameters, n_raw):
    likelihood = Gaussian(noise=noise)
    likelihood.build(4)
    assert sum(parameter.numel() for parameter in likelihood.parameters()) == n_parameters
    assert likelihood.n_raw == n_raw


@pytest.mark.parametrize("noise", ["feature", "shared", "row"])
@pytest.mark.parametrize("floor", [1e-6, 1e-3, 0.5])
def test_gaussian_noise_never_falls_below_the_floor(noise, floor):
    likelihood = Gaussian(noise=noise, noise_floor=floor)
    likelihood.build(4)
    for parameter in likelihood.parameters():
        torch.nn.init.constant_(parameter, -100.0)
    raw = torch.full((likelihood.n_raw, 4), -100.0)
    highest = log_prob_of(likelihood, raw, raw[0]).item()
    assert highest == pytest.approx(-2 * np.log(2 * np.pi * floor), rel=1e-5)


def test_gaussian_floor_of_a_rare_feature_is_exact():
    """Kurtoses of thousands: one value in 20,000 is 100 standard deviations away. What other columns tell counts."""
    x = np.zeros((20_000, 1))
    x[:2] = [[3.0], [-1.0]]
    x = (x - x.mean()) / x.std()
    likelihood, floors = Gaussian(), []
    likelihood.build(1)
    for noise in (None, 0.1, 1e-5):
        likelihood.start(torch.from_numpy(x).float())
        likelihood.settle(None if noise is None else torch.tensor([noise]))
        floors.append(likelihood.floor.item())
    expected = ((stats.kurtosis(x[:, 0], fisher=False) - 1) / len(x)) ** 2
    assert expected > 0.3
    assert floors == pytest.approx([expected, 0.1 / 1.01, 1e-3], rel=1e-6)  # noise starts a hundredth above


@pytest.mark.parametrize("noise", ["feature", "shared", "row"])
def test_gaussian_takes_the_noise_it_is_given(noise):
    likelihood = Gaussian(noise=noise, noise_floor=0.01)
    likelihood.build(4)
    raw = torch.zeros(likelihood.n_raw, 4)
    variance = torch.tensor([0.5, 0.5, 0.5, 0.5] if noise == "shared" else [0.001, 0.1, 0.5, 0.9])
    likelihood.set_noise(variance, raw)
    expected = -0.5 * (2 * np.pi * variance.clamp(min=1.01 * 0.01)).log().sum()
    torch.testing.assert_close(log_prob_of(likelihood, raw, torch.zeros(4)).detach(), expected)


def test_rate_goes_on_linearly():
    """No raw output overflows the rate, and the link has no corner."""
    likelihood = Poisson()
    likelihood.build(1)
    likelihood.start(torch.ones(2, 1))
    raw = torch.tensor([-3.0, 4.999, 5.001, 6.0, 1e4], requires_grad=True)
    means = likelihood.mean(raw[:, None, None])[:, 0]
    expected = torch.tensor([-3.0, 4.999, 5, 5, 5]).exp() * torch.tensor([1, 1, 1.001, 2, 9996.0])
    torch.testing.assert_close(means, expected, rtol=1e-4, atol=1e-6)
    slopes = torch.autograd.grad(means.sum(), raw)[0]
    assert slopes[1].item() == pytest.approx(slopes[2].item(), rel=0.01)


def test_bits_are_drawn_anew_from_grey_values():
    """Their mean has a standard error of 0.5 / 100; five of these are allowed."""
    x, rng = torch.linspace(0, 1, 11).repeat(10_000, 1), torch.Generator().manual_seed(0)
    first, second = (Bernoulli(binarize=True).draw(x, rng) for _ in range(2))
    assert not torch.equal(first, second)
    for bits in (first, second):
        assert set(bits.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(bits.mean(0), x[0], rtol=0, atol=0.025)
    assert torch.equal(Bernoulli(binarize=True).draw(first, rng), first)  # bits stay


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_others_train_on_x_itself(name):
    x = torch.rand(3, 2)
    assert LIKELIHOODS[name]().draw(x, torch.Generator()) is x


def test_noise_may_be_set_later():
    assert [Gaussian().set_params(noise=noise).n_raw for noise in ("row", "feature", "shared")] == [2, 1, 1]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_alone_is_its_only_part(name):
    likelihood = LIKELIHOODS[name]()
    assert likelihood.split() == [(likelihood, slice(None))]
    assert likelihood.is_normal == (name == "gaussian")
