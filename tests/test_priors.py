import pytest
import torch
from torch.distributions import Normal

from skvae.priors import PRIORS

each_prior = pytest.mark.parametrize("prior", [prior(z_dim=3) for prior in PRIORS.values()], ids=PRIORS)
REFERENCES = {"standard_normal": Normal(0, 1)}


@pytest.mark.parametrize("name", PRIORS)
def test_log_prob_is_the_distributions(name, normal):
    z = 10 * normal(5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(PRIORS[name](z_dim=3).log_prob(z), REFERENCES[name].log_prob(z).sum(-1))


@each_prior
@pytest.mark.parametrize("seed", range(3))
def test_kl_is_the_expected_log_ratio(prior, seed, normal):
    mean, log_scale = normal(2, 4, 3, seed=seed + 100, dtype=torch.float64)
    draws = mean + log_scale.exp() * normal(100_000, *mean.shape, seed=seed, dtype=torch.float64)
    ratio = Normal(mean, log_scale.exp()).log_prob(draws).sum(-1) - prior.log_prob(draws)
    error = ratio.mean(0) - prior.kl(mean, log_scale).sum(-1)
    # 5 standard errors, 12 comparisons: fails by chance once in 10^5 seeds
    assert torch.all(error.abs() < 5 * ratio.std(0) / len(draws) ** 0.5)


@each_prior
def test_kl_is_zero_at_the_prior_only(prior):
    zero = torch.zeros(1, 3)
    assert torch.all(prior.kl(zero, zero).abs() < 1e-7)
    assert torch.all(prior.kl(zero + 0.1, zero) > 1e-3)
    assert torch.all(prior.kl(zero, zero - 0.1) > 1e-3)


@each_prior
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 5.0])
def test_gradient_of_kl_is_never_zero(prior, size):
    """No dead zone: a unit near the prior is still pulled."""
    for sign in (-1, 1):
        mean, log_scale = (torch.full((2, 3), sign * size, dtype=torch.float64, requires_grad=True) for _ in range(2))
        gradients = torch.autograd.grad(prior.kl(mean, log_scale).sum(), [mean, log_scale])
        assert all(torch.all(gradient * sign > 0.5 * min(size, 1)) for gradient in gradients)


@each_prior
def test_samples_have_the_moments_and_an_own_stream(prior, global_streams):
    before = global_streams()
    draws = prior.sample(50_000, torch.Generator().manual_seed(0))
    again = prior.sample(50_000, torch.Generator().manual_seed(0))
    assert global_streams() == before
    assert torch.equal(draws, again)
    assert draws.shape == (50_000, 3)
    # standard errors 0.0045 and 0.0063; 5 of them
    assert torch.all(draws.mean(0).abs() < 0.023)
    assert torch.all((draws.var(0) - 1).abs() < 0.032)
