import copy
import math
import pickle
import sys

import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from skvae.likelihoods import Gaussian
from skvae.priors import PRIORS, Mixture, VampPrior, _log_sum, mixture_log_prob

each_prior = pytest.mark.parametrize("name", PRIORS)
each_closed_form = pytest.mark.parametrize("name", ["standard_normal"])


def built(name, z_dim=3, *, seed=0, trained=True, **params):
    """A prior beside a linear encoder; `trained` moves its parameters away from the start."""
    prior, rng = PRIORS[name](**params), torch.Generator().manual_seed(seed)
    prior.build(z_dim, 4, rng)
    weight = torch.randn(2 * z_dim, 4, generator=rng) * torch.tensor([[0.5]] * z_dim + [[0.1]] * z_dim)
    prior.attach(lambda inputs: (inputs @ weight.to(inputs).T).chunk(2, dim=-1))
    with torch.no_grad():
        for parameter in prior.parameters() if trained else ():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return prior.requires_grad_(False)


def mixture_log_density(logits, loc, scale):
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1)).log_prob


def vamp_log_density(prior):
    """The standard normal component comes before the pseudo-inputs' posteriors."""
    loc, log_scale = prior.encode(prior.inputs)
    standard = Normal(0.0, 1.0).expand((1, 3))
    return mixture_log_density(
        prior.logits, torch.cat([standard.mean, loc]), torch.cat([standard.stddev, log_scale.exp()])
    )


def flow_log_density(prior):
    """By the change of variables, with the Jacobian that autograd finds of the map from samples back to noise."""
    to_noise = prior.flow().transform

    def log_density(z):
        jacobian = torch.vmap(torch.func.jacrev(to_noise))(z.reshape(-1, 3))
        return Normal(0, 1).log_prob(to_noise(z)).sum(-1) + jacobian.slogdet().logabsdet.view(z.shape[:-1])

    return log_density


# log-densities from the parameters of a prior, by no code of the prior's own
REFERENCES = {
    "standard_normal": lambda prior: Independent(Normal(torch.zeros(3), torch.ones(3)), 1).log_prob,
    "mixture": lambda prior: mixture_log_density(prior.logits, prior.loc, prior.log_scale.exp()),
    "vamp": vamp_log_density,
    "flow": flow_log_density,
}


@each_prior
def test_log_prob_is_the_references(name, normal):
    z, prior = 3 * normal(5, 7, 3), built(name)
    log_prob = prior.log_prob(z)
    assert log_prob.shape == (5, 7)
    torch.testing.assert_close(log_prob, REFERENCES[name](prior)(z), rtol=1e-4, atol=1e-4)


@each_prior
@pytest.mark.parametrize("z_dim", [1, 2])
def test_density_integrates_to_one(name, z_dim):
    """On a grid, which leaves out less than 1e-4 of the mass of these priors."""
    axis = torch.linspace(-12, 12, 481)
    grid = torch.stack(torch.meshgrid(*[axis] * z_dim, indexing="ij"), dim=-1)
    mass = built(name, z_dim).log_prob(grid).double().exp().sum() * (axis[1] - axis[0]).double() ** z_dim
    assert float(mass) == pytest.approx(1, abs=1e-3)


@each_prior
def test_samples_follow_the_density(name):
    """The average of a bounded function over draws is its integral: the probability of three half-planes."""
    prior, axis = built(name, z_dim=2), torch.linspace(-12, 12, 481)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    weight = prior.log_prob(grid).double().softmax(0)
    draws = prior.sample(40_000, torch.Generator().manual_seed(0))
    for direction in torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]):
        inside = (torch.sigmoid(4 * points @ direction).double() for points in (grid, draws))
        expected, values = next(inside) @ weight, next(inside)
        assert abs(float(values.mean() - expected)) < 5 * float(values.std()) / 200 + 1e-4  # 5 standard errors


@each_prior
def test_own_stream_decides_start_and_samples(name, global_streams):
    before = global_streams()
    first, same, other = (built(name, seed=seed, trained=False) for seed in (0, 0, 1))
    draws = [first.sample(9, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert global_streams() == before
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (9, 3)
    assert draws[0].isfinite().all()
    states = [list(prior.state_dict().values()) for prior in (first, same, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not states[0] or not all(map(torch.equal, states[0], states[2]))


@each_prior
def test_moments_are_those_of_the_samples(name):
    prior = built(name)
    mean, variance = prior.moments()
    draws = prior.sample(40_000, torch.Generator().manual_seed(5))
    # standard errors of 40,000 draws and of the 2500 from which a prior without closed form takes its moments
    error = draws.std(0) * math.sqrt(1 / 40_000 + 1 / 2_500)
    assert torch.all((draws.mean(0) - mean).abs() < 5 * error)
    fourth = (draws - draws.mean(0)).pow(4).mean(0) - draws.var(0).square()
    assert torch.all((draws.var(0) - variance).abs() < 5 * (fourth * (1 / 40_000 + 1 / 2_500)).sqrt())


@each_prior
@pytest.mark.parametrize("seed", range(3))
def test_kl_is_the_expected_log_ratio(name, seed, normal):
    """For each of four posteriors, with the reference's density: a prior's own would be compared with itself."""
    prior = built(name, seed=seed)
    mean, log_scale = 0.5 * normal(2, 4, 3, seed=seed + 100)
    posterior = Normal(mean, log_scale.exp())
    z = mean + log_scale.exp() * normal(20_000, 4, 3, seed=seed)
    ratio = posterior.log_prob(z).sum(-1) - REFERENCES[name](prior)(z)
    kl = prior.kl(mean, log_scale, z).sum(-1)
    difference = ratio - kl  # of two estimates from the same draws
    # 5 standard errors, 12 comparisons for each prior: fails by chance once in 10^5 seeds; 1e-4 is float32's share
    assert torch.all(difference.mean(0).abs() < 5 * difference.std(0) / len(z) ** 0.5 + 1e-4)


@each_closed_form
def test_closed_form_of_the_kl_has_a_term_for_each_unit(name, normal):
    mean, log_scale = normal(2, 4, 3)
    terms = built(name).kl(mean, log_scale, z=None)
    reference = torch.distributions.kl_divergence(Normal(mean, log_scale.exp()), Normal(0, 1))
    torch.testing.assert_close(terms, reference)


@each_prior
def test_kl_per_unit_is_zero_at_the_moments_only(name):
    prior = built(name)
    mean, variance = prior.moments()
    at, log_scale = mean[None], 0.5 * variance.log()[None]
    assert torch.all(prior.kl_per_unit(at, log_scale).abs() < 1e-5)
    assert torch.all(prior.kl_per_unit(at + 0.3, log_scale) > 1e-3)
    assert torch.all(prior.kl_per_unit(at, log_scale - 0.3) > 1e-3)
    expected = torch.distributions.kl_divergence(Normal(0.5, 2.0), Normal(mean, variance.sqrt()))
    torch.testing.assert_close(prior.kl_per_unit(torch.full((3,), 0.5), torch.full((3,), math.log(2.0))), expected)


@each_prior
def test_units_are_active_by_the_variance_of_the_prior(name):
    """Means of variance 0.009, 0.011 and 4 times the prior's, in units of their own."""
    prior = built(name)
    _, variance = prior.moments()
    mean = torch.tensor([[-1.0], [1.0]]) * (torch.tensor([0.009, 0.011, 4]) * variance).sqrt()
    assert prior.active_units(mean).tolist() == [False, True, True]
    assert prior.active_units(mean + 100, threshold=1).tolist() == [False, False, True]


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 5.0])
@each_closed_form
def test_gradient_of_kl_is_never_zero(name, size):
    """No dead zone: a unit near the prior is still pulled."""
    prior = built(name)
    for sign in (-1, 1):
        mean, log_scale = (torch.full((2, 3), sign * size, dtype=torch.float64, requires_grad=True) for _ in range(2))
        gradients = torch.autograd.grad(prior.kl(mean, log_scale, z=None).sum(), [mean, log_scale])
        assert all(torch.all(gradient * sign > 0.5 * min(size, 1)) for gradient in gradients)


@each_prior
@pytest.mark.parametrize("z_dim", [1, 10, 50])
@pytest.mark.parametrize("seed", range(3))
def test_prior_starts_near_the_standard_normal(name, z_dim, seed, normal):
    """What the linear start assumes. Vamp's standard normal component has 0.9 of the weight: it costs 0.105 at most."""
    prior, z = built(name, z_dim, seed=seed, trained=False), normal(5_000, z_dim, seed=seed)
    reference = Normal(0, 1).log_prob(z).sum(-1)
    assert float((reference - prior.log_prob(z)).mean()) < {"vamp": 0.106, "mixture": 0.03}.get(name, 1e-5)


@pytest.mark.parametrize("name", sorted(PRIORS.keys() - {"standard_normal"}))
@pytest.mark.parametrize("z_dim", [1, 4])
def test_parameters_of_a_learned_prior_all_have_a_gradient(name, z_dim, normal):
    prior = built(name, z_dim, trained=True).requires_grad_(True)
    prior.log_prob(2 * normal(200, z_dim)).sum().backward()
    for key, parameter in prior.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # a flow's first unit has no inputs: its hidden layers' weights for it are masked
        assert parameter.grad.abs().max() > 0 or name == "flow", key


@pytest.mark.parametrize(("name", "n_components"), [("mixture", 1), ("mixture", 7), ("vamp", 1), ("vamp", 60)])
def test_number_of_components(name, n_components, normal):
    prior = built(name, n_components=n_components, trained=False)
    inputs = torch.arange(200.0).reshape(50, 4)
    prior.start(inputs, torch.Generator().manual_seed(0))
    log_weight, loc, log_scale = prior.components()
    assert float(log_weight.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert loc.shape == log_scale.shape == (len(log_weight), 3)
    assert len(log_weight) == n_components + (name == "vamp")
    if name == "vamp":
        rows = (prior.inputs[:, None] == inputs).all(-1)
        assert torch.all(rows.sum(1) == 1)  # training rows
        assert rows.sum(0).max() == math.ceil(n_components / 50)  # none twice before all are there


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_of_given_components_keeps_their_precision(dtype, normal):
    z, loc, log_scale = (normal(*shape, dtype=dtype) for shape in [(4, 5, 3), (7, 3), (7, 3)])
    log_weight = normal(7, dtype=dtype).log_softmax(0)
    parts = Independent(Normal(loc, log_scale.exp()), 1)
    expected = MixtureSameFamily(Categorical(logits=log_weight), parts).log_prob(z)
    torch.testing.assert_close(mixture_log_prob(z, log_weight, loc, log_scale), expected)


def test_chunks_of_a_mixture_do_not_show(monkeypatch, normal):
    prior, z = built("mixture"), normal(3, 11, 3)
    whole = prior.log_prob(z)
    monkeypatch.setattr("skvae.priors._MAX_ELEMENTS", 7)
    assert torch.equal(prior.log_prob(z), whole)


def test_vamp_prior_follows_the_encoder_of_its_own_copy(make_vae, normal):
    """The averaged weights are a copy of the VAE: its prior must not ask the original's encoder."""
    vae = make_vae(Gaussian(), n_features=4, prior=VampPrior(5))
    other, z = copy.deepcopy(vae), normal(6, 2)
    before = vae.prior.log_prob(z)
    torch.testing.assert_close(other.prior.log_prob(z), before)
    with torch.no_grad():
        other.encoder.head.bias += 1
    assert not torch.allclose(other.prior.log_prob(z), before)
    assert torch.equal(vae.prior.log_prob(z), before)
    loaded = pickle.loads(pickle.dumps(other))
    assert torch.equal(loaded.prior.log_prob(z), other.prior.log_prob(z))
    assert loaded.prior.encode.__self__ is loaded


def test_vamp_prior_is_the_mixture_of_pseudo_posteriors(make_vae, normal):
    vae = make_vae(Gaussian(), n_features=4, prior=VampPrior(5))
    vae.prior.logits.data[0] = -1e9  # without the standard normal component: equation 9
    z, posteriors = normal(6, 2), Normal(vae.encode(vae.prior.inputs)[0], vae.encode(vae.prior.inputs)[1].exp())
    expected = posteriors.log_prob(z[:, None]).sum(-1).logsumexp(1) - math.log(5)
    torch.testing.assert_close(vae.prior.log_prob(z), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_densities_lose_nothing_and_their_gradients_have_no_denormal_number(dtype):
    """Terms that are left out are below a digit of the sum; 1e-6 and 1e-14 are some roundings of its size."""
    terms = 300 * torch.randn(50, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    terms[0], terms[1, 1:] = -math.inf, -math.inf
    found = _log_sum(terms.requires_grad_())
    rounding = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(found[1:], terms[1:].logsumexp(-1), rtol=rounding, atol=rounding)
    assert found[0] < -1e38  # and not NaN
    (gradient,) = torch.autograd.grad(found[2:].sum(), terms)
    torch.testing.assert_close(gradient[2:], terms[2:].softmax(-1), rtol=10 * rounding, atol=math.exp(-50))
    assert (gradient.abs() > torch.finfo(dtype).tiny).logical_or(gradient == 0).all()


def test_flow_at_its_start_draws_standard_normal_points():
    draws = built("flow", trained=False).sample(5_000, torch.Generator().manual_seed(0))
    assert kstest(draws.numpy().ravel(), "norm").pvalue > 1e-4


def test_flow_leaves_torchs_validation_as_it_was():
    built("flow")
    with pytest.raises(ValueError, match="Expected parameter scale"):
        Normal(0.0, -1.0)


def test_flow_without_zuko_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"pip install 'skvae\[flow\]'"):
        built("flow")


@pytest.mark.parametrize(
    "prior", [Mixture(0), VampPrior(-1), PRIORS["flow"](n_transforms=0)], ids=["mixture", "vamp", "flow"]
)
def test_bad_number_is_named(prior):
    with pytest.raises(ValueError, match=r"must be an int in the range \[1, inf\)\. Got (0|-1) instead"):
        prior.build(2, 4, torch.Generator())
