from itertools import product

import pytest
import torch
from torch.distributions import MultivariateNormal

from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.objectives import ELBO, OBJECTIVES

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
    terms = [objective(vae, x, eps.expand(len(x), -1)) for eps in CUBATURE]
    return torch.stack([log_prob - kl for _, log_prob, kl in terms]).mean(0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_value_and_bound_of_each_row(name, likelihood, make_vae, table, normal):
    x = torch.from_numpy(table(likelihood)).float()
    eps = normal(60, 2)
    vae = make_vae(LIKELIHOODS[likelihood](), n_features=5, hidden_layer_sizes=(6,))
    vae.likelihood.start(x)
    terms = OBJECTIVES[name]()(vae, x, eps)
    assert [term.shape for term in terms] == [(60,)] * 3
    part = OBJECTIVES[name]()(vae, x[7:9], eps[7:9])
    torch.testing.assert_close(part, tuple(term[7:9] for term in terms))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_beta_weighs_the_kl(beta, make_vae, normal):
    vae = linear_vae(make_vae, seed=0)
    x, eps = normal(9, 4, dtype=torch.float64), normal(9, 2, dtype=torch.float64)
    log_prob, kl = vae(x, eps)
    value, *terms = ELBO(beta)(vae, x, eps)
    torch.testing.assert_close(value, log_prob - beta * kl)
    torch.testing.assert_close(terms, [log_prob, kl])
    assert torch.all(kl > 0)


@pytest.mark.parametrize("seed", range(5))
def test_bound_is_below_the_exact_log_likelihood(seed, make_vae, normal):
    vae = linear_vae(make_vae, seed)
    x = normal(200, 4, seed=seed, dtype=torch.float64)
    gap = exact_log_prob(vae, x) - expected_bound(ELBO(), vae, x)
    assert torch.all(gap > 0)


def test_bound_is_tight_at_the_exact_posterior(make_vae, normal):
    vae = linear_vae(make_vae, seed=0)
    x = normal(200, 4, dtype=torch.float64)
    with torch.no_grad():
        noise = (2 * vae.likelihood.log_noise).exp() + vae.likelihood.floor
        left, singular, _ = torch.linalg.svd(vae.decoder.head.weight / noise.sqrt()[:, None], full_matrices=False)
        weight = left * singular * noise.sqrt()[:, None]  # rotated: a diagonal posterior can be exact
        precision = 1 + singular**2
        vae.decoder.head.weight.copy_(weight)
        mean = (weight / noise[:, None] / precision).T
        vae.encoder.head.weight.copy_(torch.cat([mean, torch.zeros_like(mean)]))
        vae.encoder.head.bias.copy_(torch.cat([-mean @ vae.decoder.head.bias, -0.5 * precision.log()]))
        torch.testing.assert_close(expected_bound(ELBO(), vae, x), exact_log_prob(vae, x), rtol=1e-10, atol=1e-10)
