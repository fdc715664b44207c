import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from skvae._data.batch import Batch
from skvae._model.module import VAE
from skvae.likelihoods import LIKELIHOODS, Gaussian

each_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


@pytest.fixture
def case(make_vae, table):
    def make(name, **params):
        x = torch.from_numpy(table(name)).float()
        vae = make_vae(LIKELIHOODS[name](), n_features=5, hidden_layer_sizes=(6,), **params)
        vae.likelihood.start(x)
        return vae, x

    return make


@each_likelihood
def test_forward_is_reconstruction_and_kl(name, case, normal):
    vae, x = case(name)
    eps = normal(60, 2)
    log_prob, kl = vae(Batch(x, eps))
    posterior = Normal(vae.encode(x)[0], vae.encode(x)[1].exp())
    raw = vae.decode(posterior.mean + posterior.stddev * eps)
    assert raw.shape == (60, vae.likelihood.n_raw, 5)
    torch.testing.assert_close(log_prob, vae.likelihood.log_prob(raw, x).sum(-1))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, Normal(0, 1)).sum(-1))


@each_likelihood
def test_log_weights_are_the_importance_weights(name, case, normal):
    vae, x = case(name)
    eps = normal(4, 1, 2)
    posterior = Normal(vae.encode(x)[0], vae.encode(x)[1].exp())
    z = posterior.mean + posterior.stddev * eps
    expected = vae.likelihood.log_prob(vae.decode(z), x).sum(-1) + (
        Normal(0, 1).log_prob(z) - posterior.log_prob(z)
    ).sum(-1)
    torch.testing.assert_close(vae.log_weights(x, eps), expected)


def test_scales_beyond_the_prior_grow_linearly(make_vae):
    """And have no corner: those of rows far out would grow exponentially where networks extrapolate."""
    vae = make_vae(Gaussian(), n_features=1, z_dim=1).double()
    nn.init.zeros_(vae.encoder.head.weight)
    for value, scale, slope in ((-3.0, math.exp(-3), 1.0), (0.0, 1.0, 1.0), (8.0, 9.0, 1 / 9), (1e6, 1e6 + 1, 1e-6)):
        vae.encoder.head.bias.data[1] = value
        vae.zero_grad()
        log_scale = vae.encode(torch.zeros(1, 1, dtype=torch.float64))[1]
        log_scale.sum().backward()
        assert log_scale.exp().item() == pytest.approx(scale, rel=1e-12)
        assert vae.encoder.head.bias.grad[1].item() == pytest.approx(slope, rel=1e-5)


def test_log_weights_average_to_the_marginal_likelihood(make_vae, normal):
    """Whatever the encoder says: one feature, one unit, where the marginal is N(bias, weight^2 + noise)."""
    vae = make_vae(Gaussian("feature", noise_floor=1.0), n_features=1, z_dim=1).double()
    for value, parameter in (
        (0.3, vae.encoder.head.weight),
        (0.0, vae.encoder.head.bias),
        (0.7, vae.decoder.head.weight),
    ):
        nn.init.constant_(parameter, value)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    eps = normal(100_000, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        weights = vae.log_weights(x, eps).exp()
        exact = Normal(vae.decoder.head.bias, math.sqrt(0.7**2 + 2.0)).log_prob(x)[:, 0].exp()
    # noise variance 1 + exp(0) = 2; 5 standard errors, 5 comparisons
    assert torch.all((weights.mean(0) - exact).abs() < 5 * weights.std(0) / math.sqrt(len(eps)))


def test_linear_paths_add_to_the_networks(make_vae, normal):
    plain = make_vae(Gaussian("feature"), n_features=5, hidden_layer_sizes=(6,))
    paths = nn.Linear(5, 2, bias=False), nn.Linear(2, 5, bias=False)
    both = VAE(plain.encoder, plain.decoder, plain.likelihood, plain.prior, *paths)
    x, z = normal(7, 5), normal(7, 2)
    torch.testing.assert_close(both.encode(x)[0], plain.encode(x)[0] + paths[0](x))
    torch.testing.assert_close(both.encode(x)[1], plain.encode(x)[1])
    torch.testing.assert_close(both.decode(z), plain.decode(z) + paths[1](z)[:, None])


def test_mixture_with_a_background(make_vae, normal):
    class Background(nn.Module):
        def log_prob(self, x):
            return Normal(0.0, 3.0).log_prob(x).sum(-1)

        def sample(self, n, generator):
            return torch.full((n, 5), 77.0)

    plain, x = make_vae(Gaussian("feature"), n_features=5), normal(7, 5)
    mixture = VAE(plain.encoder, plain.decoder, plain.likelihood, plain.prior, background=Background(), share=0.2)
    log_prob = normal(7) - 5
    expected = (0.8 * log_prob.exp() + 0.2 * Background().log_prob(x).exp()).log()
    torch.testing.assert_close(mixture.mixed(log_prob, x), expected)
    assert torch.equal(plain.mixed(log_prob, x), log_prob)
    far = torch.full((7,), -1e30)
    torch.testing.assert_close(mixture.mixed(far, x), Background().log_prob(x) + math.log(0.2))
    drawn = mixture.sample(normal(10_000, 2), torch.Generator().manual_seed(0))[:, 0] == 77
    assert abs(drawn.float().mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 10_000)  # five standard errors
