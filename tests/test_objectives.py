import math
from itertools import product

import pytest
import torch
from skorch.callbacks import Callback
from torch.distributions import MultivariateNormal, Normal
from torch.utils._python_dispatch import TorchDispatchMode

from skvae import VAETransformer
from skvae._data.batch import Batch
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.objectives import ELBO, IWAE, MMD, OBJECTIVES, BetaTC, DReG, squared_mmd, total_correlation
from skvae.priors import PRIORS

CUBATURE = torch.tensor(list(product([-1.0, 1.0], repeat=2)), dtype=torch.float64)  # exact for a quadratic in eps


def linear_vae(make_vae, seed):
    vae = make_vae(Gaussian("feature"), n_features=4, seed=seed).double()
    torch.nn.init.normal_(vae.likelihood.log_noise, std=0.3, generator=torch.Generator().manual_seed(seed))
    return vae


def exact_log_prob(vae, x):
    weight = vae.decoder.head.weight
    noise = (2 * vae.likelihood.log_noise).exp() + vae.likelihood.floor
    return MultivariateNormal(vae.decoder.head.bias, weight @ weight.T + noise.diag()).log_prob(x)


def expected_bound(objective, vae, x):
    """Mean over q(z | x) of the objective's bound, exact where the reconstruction term is quadratic."""
    terms = [objective(vae, Batch(x, eps.expand(len(x), -1))) for eps in CUBATURE]
    return torch.stack([log_prob - kl for _, log_prob, kl in terms]).mean(0)


BATCHWISE = ("beta_tc", "mmd")  # a row's value depends on the batch


def noise(objective, normal, n_rows, z_dim=2, **options):
    shape = (n_rows, z_dim) if objective.n_draws == 1 else (objective.n_draws, n_rows, z_dim)
    return normal(*shape, **options)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_value_and_bound_of_each_row(name, likelihood, make_vae, table, normal):
    x, objective = torch.from_numpy(table(likelihood)).float(), OBJECTIVES[name]()
    eps = noise(objective, normal, 60)
    vae = make_vae(LIKELIHOODS[likelihood](), n_features=5, hidden_layer_sizes=(6,))
    vae.likelihood.start(x)
    terms = objective(vae, Batch(x, eps))
    assert [term.shape for term in terms] == [(60,)] * 3
    part = objective(vae, Batch(x[7:9], eps[..., 7:9, :]))
    torch.testing.assert_close(part[1:], tuple(term[7:9] for term in terms[1:]))
    if name not in BATCHWISE:
        torch.testing.assert_close(part[0], terms[0][7:9])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_parameter_has_a_gradient(name, prior, make_vae, normal):
    objective, x = OBJECTIVES[name](), normal(9, 4)
    vae = make_vae(Gaussian(), n_features=4, hidden_layer_sizes=(6,), prior=PRIORS[prior]())
    with torch.no_grad():
        for parameter in vae.prior.parameters():  # a flow's last layers start at zero
            parameter += 0.1 * normal(*parameter.shape, seed=1)
    value, *_ = objective(vae, Batch(x, noise(objective, normal, 9, seed=2)))
    value.mean().backward()
    for key, parameter in vae.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_same_noise_same_value_and_no_global_stream(name, make_vae, normal, global_streams):
    objective, vae, before = OBJECTIVES[name](), linear_vae(make_vae, seed=0), global_streams()
    x, eps = normal(9, 4, dtype=torch.float64), noise(objective, normal, 9, dtype=torch.float64)
    assert torch.equal(objective(vae, Batch(x, eps))[0], objective(vae, Batch(x, eps))[0])
    assert global_streams() == before


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_expected_bound_is_below_the_exact_log_likelihood(name, seed, make_vae, normal):
    """Whatever is trained; and so is the value where the objective says that it is a bound."""
    objective, vae = OBJECTIVES[name](), linear_vae(make_vae, seed)
    x = normal(50, 4, seed=seed, dtype=torch.float64)
    n_repeats = 400
    with torch.no_grad():
        exact = exact_log_prob(vae, x)
        draws = [
            objective(vae, Batch(x, noise(objective, normal, 50, seed=k, dtype=torch.float64)))
            for k in range(n_repeats)
        ]
    for values in [log_prob - kl for _, log_prob, kl in draws], [value for value, *_ in draws]:
        mean = torch.stack(values).mean(1)  # over the rows: one number for each repeat
        if values[0] is draws[0][0] and not objective.is_bound:
            continue
        assert float(mean.mean()) < float(exact.mean()) + 5 * float(mean.std()) / n_repeats**0.5


@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_importance_weighted_bound_rises_with_the_number_of_draws(name, make_vae, normal):
    """Burda et al. (2016), theorem 1, on paired draws: k draws are k / j times j draws."""
    vae, x, most = linear_vae(make_vae, seed=1), normal(40, 4, dtype=torch.float64), 64
    bounds = []
    with torch.no_grad():
        exact = float(exact_log_prob(vae, x).mean())
        eps = normal(50 * most, 40, 2, seed=3, dtype=torch.float64)
        for n_draws in (1, 4, 16, 64):
            terms = [OBJECTIVES[name](n_draws)(vae, Batch(x, part)) for part in eps.split(n_draws)]
            bounds.append(float(torch.stack([value for value, *_ in terms]).mean()))
    assert bounds == sorted(bounds)  # by Jensen's inequality this holds for the draws themselves
    assert bounds[0] < bounds[-1] < exact + 0.02  # the spread of a mean over 50 x 40 estimates


@pytest.mark.parametrize("name", ["iwae", "dreg"])
@pytest.mark.parametrize("prior", PRIORS)
def test_several_draws_ask_the_prior_once(name, prior, make_vae, normal, monkeypatch):
    vae = make_vae(Gaussian(), n_features=4, prior=PRIORS[prior]())
    x, eps, asked, log_prob = normal(9, 4), normal(10, 9, 2), [], vae.prior.log_prob
    mean, log_scale = vae.encode(x)
    expected = vae.prior.kl(mean, log_scale, mean + log_scale.exp() * eps).sum(-1).reshape(-1, 9).mean(0)
    monkeypatch.setattr(vae.prior, "log_prob", lambda z: asked.append(len(z)) or log_prob(z))
    _, _, kl = OBJECTIVES[name]()(vae, Batch(x, eps))
    assert asked == [10]
    torch.testing.assert_close(kl, expected)


def test_one_draw_of_iwae_is_an_elbo(make_vae, normal):
    vae, x, eps = linear_vae(make_vae, seed=0), normal(9, 4).double(), normal(9, 2).double()
    value, log_prob, kl = IWAE(1)(vae, Batch(x, eps))
    torch.testing.assert_close(value, vae.log_weights(x, eps[None])[0])
    torch.testing.assert_close(log_prob - kl, value)
    torch.testing.assert_close(kl, vae(Batch(x, eps))[1])


def gradients(objective, vae, x, eps):
    vae.zero_grad()
    objective(vae, Batch(x, eps))[0].mean().backward()
    return {key: parameter.grad.clone() for key, parameter in vae.named_parameters()}


def test_doubly_reparameterised_gradient_has_the_same_mean_and_less_variance(make_vae, normal):
    vae, x, n_repeats = exact_vae(make_vae), normal(5, 4).double(), 300
    with torch.no_grad():
        vae.encoder.head.bias += 0.2  # near the exact posterior, as after some training
    stacks = {}
    for objective in IWAE(8), DReG(8):
        draws = [gradients(objective, vae, x, normal(8, 5, 2, seed=seed).double()) for seed in range(n_repeats)]
        stacks[type(objective)] = {key: torch.stack([draw[key] for draw in draws]) for key in draws[0]}
    for key, plain in stacks[IWAE].items():
        double = stacks[DReG][key]
        if not key.startswith("encoder"):
            torch.testing.assert_close(double, plain)  # only the posterior's gradient is another
            continue
        error = ((plain.var(0) + double.var(0)) / n_repeats).sqrt()
        assert torch.all((plain.mean(0) - double.mean(0)).abs() < 5 * error), key
        assert double.var(0).sum() < 0.5 * plain.var(0).sum(), key


def test_doubly_reparameterised_value_is_the_importance_weighted_bound(make_vae, normal):
    vae, x, eps = linear_vae(make_vae, seed=0), normal(5, 4).double(), normal(8, 5, 2).double()
    for ours, reference in zip(DReG(8)(vae, Batch(x, eps)), IWAE(8)(vae, Batch(x, eps)), strict=True):
        torch.testing.assert_close(ours, reference)


def test_doubly_reparameterised_gradient_vanishes_at_the_exact_posterior(make_vae, normal):
    """Its signal is the slope of the weights, which are constant there; the plain gradient is noise."""
    vae, x = exact_vae(make_vae), normal(5, 4).double()
    double, plain = (gradients(kind(8), vae, x, normal(8, 5, 2).double()) for kind in (DReG, IWAE))
    for key in "encoder.head.weight", "encoder.head.bias":
        assert double[key].abs().max() < 1e-12
        assert plain[key].abs().max() > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_beta_weighs_the_kl(beta, make_vae, normal):
    vae = linear_vae(make_vae, seed=0)
    x, eps = normal(9, 4, dtype=torch.float64), normal(9, 2, dtype=torch.float64)
    log_prob, kl = vae(Batch(x, eps))
    value, *terms = ELBO(beta)(vae, Batch(x, eps))
    torch.testing.assert_close(value, log_prob - beta * kl)
    torch.testing.assert_close(terms, [log_prob, kl])
    assert torch.all(kl > 0)


@pytest.mark.parametrize("seed", range(5))
def test_bound_is_below_the_exact_log_likelihood(seed, make_vae, normal):
    vae = linear_vae(make_vae, seed)
    x = normal(200, 4, seed=seed, dtype=torch.float64)
    gap = exact_log_prob(vae, x) - expected_bound(ELBO(), vae, x)
    assert torch.all(gap > 0)


@pytest.mark.parametrize("free_bits", [0.0, 0.5, 3.0])
def test_free_bits_are_free(free_bits, make_vae, normal):
    vae = linear_vae(make_vae, seed=0)
    x, eps = normal(9, 4).double(), normal(9, 2).double()
    log_prob, terms, _ = vae.terms(Batch(x, eps))
    value, *bound = ELBO(2.0, free_bits=free_bits)(vae, Batch(x, eps))
    cost = terms.mean(0).clamp(min=free_bits).sum()
    torch.testing.assert_close(value.mean(), (log_prob - 2 * cost).mean())
    torch.testing.assert_close(bound, [log_prob, terms.sum(-1)])


def test_a_unit_below_its_free_bits_is_not_pulled(make_vae, normal):
    vae, x, eps = linear_vae(make_vae, seed=0), normal(9, 4).double(), normal(9, 2).double()
    _, terms, _ = vae.terms(Batch(x, eps))
    least = float(terms.detach().mean(0).min())

    def pull(free_bits):
        difference = (
            ELBO(2.0, free_bits)(vae, Batch(x, eps))[0].mean() - ELBO(1.0, free_bits)(vae, Batch(x, eps))[0].mean()
        )
        return torch.autograd.grad(difference, vae.encoder.head.bias)[0].view(2, 2)[1].abs()  # of the log-scales

    assert pull(0.0).min() > 1e-3
    assert (pull(1.01 * least) == 0).sum() == 1
    assert torch.all(pull(1e3) == 0)


def test_warmup_is_linear_over_its_share_of_the_run():
    objective, rng = ELBO(4.0, warmup=0.2), torch.Generator()
    weights = []
    for epoch in range(1, 101):
        objective.begin_epoch(epoch, 100, rng)
        weights.append(objective.weight_)
        assert objective.warming == (epoch <= 20)
    assert weights[:20] == pytest.approx([epoch / 21 for epoch in range(1, 21)])
    assert weights[20:] == [1.0] * 80
    plain = ELBO(4.0)
    plain.begin_epoch(1, 100, rng)
    assert (plain.weight_, plain.warming) == (1.0, False)


def test_warmup_is_over_when_a_warm_started_fit_goes_on(normal):
    weights = []

    class Weights(Callback):
        def on_epoch_end(self, net, **kwargs):
            weights.append(net.criterion_.weight_)

    options = {"max_iter": 4, "early_stopping": False, "warm_start": True, "callbacks": [Weights()]}
    vae = VAETransformer(2, objective=ELBO(warmup=0.5), **options)
    vae.fit(normal(40, 3).numpy()).fit(normal(40, 3).numpy())
    assert weights == pytest.approx([1 / 3, 2 / 3, *[1.0] * 6])


def test_warmup_weighs_the_training_value_only(make_vae, normal):
    vae, x, eps = linear_vae(make_vae, seed=0), normal(9, 4).double(), normal(9, 2).double()
    objective = ELBO(4.0, warmup=0.5)
    objective.begin_epoch(3, 10, torch.Generator())  # weight 3 / 6
    log_prob, kl = vae(Batch(x, eps))
    torch.testing.assert_close(objective(vae, Batch(x, eps))[0], log_prob - 2 * kl)
    torch.testing.assert_close(objective(vae.eval(), Batch(x, eps))[0], log_prob - 4 * kl)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_total_correlation_of_a_normal_aggregate(correlation, seed, normal):
    """Means N(0, C) and posterior variance 0.25 make the aggregate N(0, C + 0.25): -log(1 - r^2) / 2."""
    n_rows, scale = 2000, 0.5
    root = torch.linalg.cholesky(torch.tensor([[1.0, correlation], [correlation, 1.0]]))
    mean, log_scale = normal(n_rows, 2, seed=seed) @ root.T, torch.full((n_rows, 2), math.log(scale))
    z = mean + scale * normal(n_rows, 2, seed=seed + 10)
    terms = total_correlation(z, mean, log_scale)
    expected = -0.5 * math.log(1 - (correlation / (1 + scale**2)) ** 2)
    # 5 standard errors, and the share of a draw's own posterior in the means over 2000, about 0.01 in two dimensions
    assert abs(float(terms.mean()) - expected) < 5 * float(terms.std()) / n_rows**0.5 + 0.02


def test_total_correlation_is_the_minibatch_weighted_estimate(normal):
    """Chen et al. (2018), equation S6, term by term, but for the constant (z_dim - 1) log N."""
    z, mean, log_scale = normal(3, 7, 4)
    n_rows, batch, z_dim = 1000, 7, 4
    log_q = Normal(mean, log_scale.exp()).log_prob(z[:, None])  # (draw, row, unit)
    joint = log_q.sum(-1).logsumexp(1) - math.log(n_rows * batch)
    marginals = (log_q.logsumexp(1) - math.log(n_rows * batch)).sum(1)
    ours = total_correlation(z, mean, log_scale)
    torch.testing.assert_close(ours + (z_dim - 1) * math.log(n_rows), joint - marginals)
    assert torch.equal(total_correlation(z[:1], mean[:1], log_scale[:1]).abs() < 1e-5, torch.tensor([True]))


def test_beta_tc_is_the_elbo_at_one_and_weighs_the_total_correlation(make_vae, normal):
    vae, x, eps = linear_vae(make_vae, seed=0), normal(9, 4).double(), normal(9, 2).double()
    torch.testing.assert_close(BetaTC(1.0)(vae, Batch(x, eps)), ELBO()(vae, Batch(x, eps)))
    _, _, posterior = vae.terms(Batch(x, eps))
    difference = BetaTC(1.0)(vae, Batch(x, eps))[0] - BetaTC(6.0)(vae, Batch(x, eps))[0]
    torch.testing.assert_close(difference, 5 * total_correlation(*posterior))


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_mmd_of_two_normals(shift, seed, normal):
    """With the kernel exp(-|d|^2 / (2 s)), 2 s = z_dim: the closed form of two unit Gaussians whose means differ."""
    z_dim, s = 3, 1.5
    pairs = normal(20, 400, z_dim, seed=seed + 50) + shift
    estimates = torch.stack([squared_mmd(normal(400, z_dim, seed=100 * seed + k), pairs[k]) for k in range(20)])
    expected = 2 * (s / (s + 2)) ** (z_dim / 2) * (1 - math.exp(-z_dim * shift**2 / (2 * (s + 2))))
    assert abs(float(estimates.mean()) - expected) < 5 * float(estimates.std()) / 20**0.5


def test_mmd_of_few_points():
    one, two = torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    kernel = math.exp(-1)  # exp(-2 / 2)
    assert float(squared_mmd(one, one + 1)) == float(squared_mmd(two, one)) == 0.0  # no pairs within
    assert float(squared_mmd(two, two + 0)) == pytest.approx(2 * kernel - (1 + kernel))


def test_info_vae_of_a_single_row_is_the_elbo(make_vae, normal):
    vae, x, eps = linear_vae(make_vae, seed=0), normal(1, 4).double(), normal(1, 2).double()
    torch.testing.assert_close(MMD()(vae, Batch(x, eps)), ELBO()(vae, Batch(x, eps)))


def value_and_gradients(function, *arguments):
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    value = function(*arguments).mean()
    return value, *torch.autograd.grad(value, arguments)


@pytest.mark.parametrize(("n_rows", "z_dim"), [(5, 1), (60, 10), (200, 3)])
def test_total_correlation_is_that_of_the_whole_table_at_once(n_rows, z_dim, normal):
    """All units in one chunk, some, and one in each; far from a posterior every density underflows."""
    mean, log_scale, z = normal(3, n_rows, z_dim)
    log_scale = log_scale - 3

    def at_once(z, mean, log_scale):
        log_q = Normal(mean, log_scale.exp()).log_prob(z[:, None])
        joint, marginals = log_q.sum(-1).logsumexp(1), log_q.logsumexp(1).sum(1)
        return joint - marginals + (z_dim - 1) * math.log(n_rows)

    expected = value_and_gradients(at_once, *(part.double() for part in (z, mean, log_scale)))
    ours = value_and_gradients(total_correlation, z, mean, log_scale)
    torch.testing.assert_close(ours, tuple(part.float() for part in expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1.0, 10.0])
def test_mmd_is_that_of_squared_differences(shift, normal):
    a, b = normal(40, 5) + shift, normal(30, 5, seed=1)
    a[7] = a[6]  # distance zero

    def by_differences(a, b):
        points = torch.cat([a, b])
        kernel = (-(points[:, None] - points).square().sum(-1) / 5).exp()
        within = (kernel[:40, :40].sum() - 40) / (40 * 39) + (kernel[40:, 40:].sum() - 30) / (30 * 29)
        return within - 2 * kernel[:40, 40:].mean()

    expected = value_and_gradients(by_differences, a.double(), b.double())
    ours = value_and_gradients(squared_mmd, a, b)
    torch.testing.assert_close(ours, tuple(part.float() for part in expected), rtol=1e-4, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest result."""

    n_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.n_elements = max(self.n_elements, result.numel())
        return result


@pytest.mark.parametrize("name", BATCHWISE)
def test_no_table_is_larger_than_pairs_of_rows(name, make_vae, normal):
    """Validation batches have 2048 rows: a value for each pair and each unit would be hundreds of megabytes."""
    vae = make_vae(Gaussian(), n_features=4, z_dim=20)
    with LargestTensor() as largest:
        OBJECTIVES[name]()(vae, Batch(normal(300, 4), normal(300, 20)))[0].mean().backward()
    assert largest.n_elements == 300**2


def test_info_vae_adds_up(make_vae, normal):
    vae, x, eps = linear_vae(make_vae, seed=0), normal(40, 4).double(), normal(40, 2).double()
    log_prob, kl = vae(Batch(x, eps))
    torch.testing.assert_close(MMD(alpha=0.0, scale=1.0)(vae, Batch(x, eps))[0], log_prob - kl)
    torch.testing.assert_close(MMD(alpha=1.0, scale=0.0)(vae, Batch(x, eps))[0], log_prob)
    discrepancy = log_prob - kl - MMD(0.0, 2.0)(vae, Batch(x, eps))[0]
    assert torch.all((discrepancy - discrepancy[0]).abs() < 1e-12)  # one for the batch
    torch.testing.assert_close(log_prob - kl - MMD(0.0, 11.0)(vae, Batch(x, eps))[0], 10 * discrepancy)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ELBO(-1.0),
        lambda: ELBO(free_bits=-1.0),
        lambda: ELBO(warmup=1.5),
        lambda: IWAE(0),
        lambda: DReG(-2),
        lambda: BetaTC(-1.0),
        lambda: MMD(alpha=2.0),
        lambda: MMD(alpha=0.0, scale=0.0),
    ],
)
def test_bad_parameters_are_refused(make):
    with pytest.raises(ValueError, match=r"Got .* instead\.$"):
        make()


def test_an_objective_that_is_no_bound_says_so():
    bounds = {name: objective().is_bound for name, objective in OBJECTIVES.items()}
    assert bounds == {"elbo": True, "iwae": True, "dreg": True, "beta_tc": False, "mmd": False}
    assert ELBO(4.0, free_bits=0.1).is_bound
    assert not ELBO(0.5).is_bound


def exact_vae(make_vae):
    """A linear VAE whose encoder is the exact posterior."""
    vae = linear_vae(make_vae, seed=0)
    with torch.no_grad():
        noise = (2 * vae.likelihood.log_noise).exp() + vae.likelihood.floor
        left, singular, _ = torch.linalg.svd(vae.decoder.head.weight / noise.sqrt()[:, None], full_matrices=False)
        weight = left * singular * noise.sqrt()[:, None]  # rotated: a diagonal posterior can be exact
        precision = 1 + singular**2
        vae.decoder.head.weight.copy_(weight)
        mean = (weight / noise[:, None] / precision).T
        vae.encoder.head.weight.copy_(torch.cat([mean, torch.zeros_like(mean)]))
        vae.encoder.head.bias.copy_(torch.cat([-mean @ vae.decoder.head.bias, -0.5 * precision.log()]))
    return vae


def test_bound_is_tight_at_the_exact_posterior(make_vae, normal):
    vae, x = exact_vae(make_vae), normal(200, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(expected_bound(ELBO(), vae, x), exact_log_prob(vae, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_weights_are_constant_at_the_exact_posterior(name, make_vae, normal):
    vae, x = exact_vae(make_vae), normal(200, 4, dtype=torch.float64)
    value, *_ = OBJECTIVES[name](3)(vae, Batch(x, normal(3, 200, 2, dtype=torch.float64)))
    torch.testing.assert_close(value, exact_log_prob(vae, x), rtol=1e-10, atol=1e-10)


def test_parameters_of_an_objective_are_refused(table, n_steps):
    class Learned(ELBO):
        def __init__(self):
            super().__init__()
            self.log_beta = torch.nn.Parameter(torch.zeros(()))

    with pytest.raises(ValueError, match="Learned has the parameter 'log_beta', and the parameters of an objective"):
        VAETransformer(2, objective=Learned(), max_iter=2).fit(table())
    assert n_steps == []
