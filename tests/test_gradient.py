import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from skvae._gradient import ELBOGradient
from skvae._module import MAX_INPUT, MAX_Z, VAE
from skvae.architectures import MLP, NetworkSpec
from skvae.likelihoods import LIKELIHOODS, Bernoulli, Gaussian
from skvae.objectives import ELBO
from skvae.priors import PRIORS, Prior, StandardNormal

VARIANTS = [*(kind for kind in LIKELIHOODS.values()), lambda: Gaussian("shared"), lambda: Gaussian("row")]
NAMES = [*LIKELIHOODS, "gaussian, shared noise", "gaussian, noise of each row"]


def random_vae(likelihood, x, hidden_layer_sizes, beside, dtype, prior=StandardNormal):
    """A model with weights so large that inputs and z pass the clamps beside linear paths."""
    rng, encoder, decoder, prior = torch.Generator().manual_seed(0), MLP(), MLP(), prior()
    likelihood.build(x.shape[1])
    n_outputs = likelihood.n_raw * x.shape[1]
    encoder.build(NetworkSpec(x.shape[1], 4, hidden_layer_sizes, generator=rng))
    decoder.build(NetworkSpec(2, n_outputs, hidden_layer_sizes, n_raw=likelihood.n_raw, generator=rng))
    prior.build(2, x.shape[1], rng)
    paths = [nn.Linear(x.shape[1], 2, bias=False), nn.Linear(2, n_outputs, bias=False)] if beside else []
    vae = VAE(encoder, decoder, likelihood, prior, *paths)
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.5, generator=rng)
    likelihood.start(x)
    return vae.to(dtype)


def by_autograd(vae, x, eps, beta):
    vae.zero_grad()
    value, log_prob, kl = ELBO(beta)(vae, x, eps)
    (-value.mean()).backward()
    return log_prob.detach().sum(), kl.detach().sum(), gradients(vae)


def gradients(vae):
    return [parameter.grad.clone() for parameter in vae.parameters()]


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("sizes", [(), (6,), (6, 3)])
@pytest.mark.parametrize("likelihood", VARIANTS, ids=NAMES)
def test_gradient_is_that_of_autograd(likelihood, sizes, beside, beta, table, normal):
    family = next(name for name, kind in LIKELIHOODS.items() if isinstance(likelihood(), kind))
    x = torch.from_numpy(table(family))
    if family == "gaussian":
        x[::7] *= MAX_INPUT  # outliers
    vae = random_vae(likelihood(), x, sizes, beside, torch.float64)
    eps = normal(60, 2, dtype=torch.float64)
    log_prob, kl, expected = by_autograd(vae, x, eps, beta)
    for _ in range(2):  # nothing adds up from step to step
        found = ELBOGradient(vae, beta)(x, eps)
        torch.testing.assert_close(found, (log_prob, kl), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients(vae), expected, rtol=1e-8, atol=1e-10)
    if family == "gaussian":  # the clamps were passed on the way
        assert vae.encode(x)[0].abs().max() > MAX_Z


@pytest.mark.parametrize("likelihood", VARIANTS, ids=NAMES)
def test_gradient_in_single_precision(likelihood, table, normal):
    family = next(name for name, kind in LIKELIHOODS.items() if isinstance(likelihood(), kind))
    x, eps = torch.from_numpy(table(family)).float(), normal(60, 2)
    vae = random_vae(likelihood(), x, (6,), True, torch.float32)
    *_, expected = by_autograd(vae, x, eps, 1.0)
    ELBOGradient(vae, 1.0)(x, eps)
    for parameter, grad in zip(vae.parameters(), expected, strict=True):
        assert (parameter.grad - grad).abs().max() <= 1e-5 * grad.abs().max()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "flow" or find_spec("zuko")])
def test_gradient_of_any_prior_is_that_of_autograd(prior, beside, table, normal):
    """Its own parameters' included, and those of the encoder through which the VampPrior looks."""
    x, eps = torch.from_numpy(table("gaussian")), normal(60, 2, dtype=torch.float64)
    vae = random_vae(Gaussian(), x, (6,), beside, torch.float64, PRIORS[prior])
    log_prob, kl, expected = by_autograd(vae, x, eps, 0.7)
    for _ in range(2):
        found = ELBOGradient(vae, 0.7)(x, eps)
        torch.testing.assert_close(found, (log_prob, kl), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients(vae), expected, rtol=1e-8, atol=1e-10)


def test_other_parts_are_left_to_autograd(make_vae):
    vae = make_vae(Gaussian(), n_features=4, hidden_layer_sizes=(3,))
    assert ELBOGradient.covers(vae)
    vae.encoder.hidden[1] = nn.Tanh()
    assert not ELBOGradient.covers(vae)
    vae.encoder = nn.Linear(4, 4)
    assert not ELBOGradient.covers(vae)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"layer_norm": True}], ids=str)
def test_layers_between_are_left_to_autograd(options, make_vae):
    vae = make_vae(Gaussian(), n_features=4, hidden_layer_sizes=(3,))
    vae.encoder = MLP(**options)
    vae.encoder.build(NetworkSpec(4, 4, (3,)))
    assert not ELBOGradient.covers(vae)


class Squashed(MLP):
    """Does more than its layers."""

    def forward(self, x):
        return super().forward(x.tanh())


class WithoutBias(MLP):
    def build(self, spec):
        super().build(spec)
        self.hidden[0].bias = None


class Tempered(Bernoulli):
    def log_prob(self, raw, x):
        return 0.5 * super().log_prob(raw, x)


class Wide(StandardNormal):
    def kl(self, mean, log_scale, z=None):
        return super().kl(mean / 2, log_scale - math.log(2), z)


def with_hook(encoder):
    encoder.hidden[0].register_forward_hook(lambda layer, args, y: 2 * y)
    return encoder


@pytest.mark.parametrize(
    "part",
    [
        {"encoder": Squashed},
        {"encoder": WithoutBias},
        {"encoder": lambda: with_hook(built(MLP()))},
        {"likelihood": Tempered},
        {"prior": Wide},
    ],
    ids=["forward", "no bias", "hook", "log_prob", "kl"],
)
def test_parts_derived_from_ours_are_left_to_autograd(part, make_vae):
    vae = make_vae(Bernoulli(), n_features=4, hidden_layer_sizes=(3,))
    assert ELBOGradient.covers(vae)
    (name, kind), *_ = part.items()
    setattr(vae, name, built(kind()) if name == "encoder" else kind())
    assert not ELBOGradient.covers(vae)


def built(encoder):
    if not hasattr(encoder, "hidden"):
        encoder.build(NetworkSpec(4, 4, (3,)))
    return encoder


def test_parts_that_change_something_else_are_covered(make_vae):
    class Half(Bernoulli):
        def mean(self, raw):
            return super().mean(raw).round()

    class Own(Prior):
        log_prob, sample = StandardNormal.log_prob, StandardNormal.sample

    vae = make_vae(Half(), n_features=4, hidden_layer_sizes=(3,))
    vae.prior = Own()
    assert ELBOGradient.covers(vae)
