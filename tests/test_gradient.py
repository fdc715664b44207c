import copy
import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from skvae._data.batch import Batch
from skvae._fast.gradient import FastELBO, covers
from skvae._model.module import MAX_INPUT, MAX_Z, VAE
from skvae._training.stack import Stack
from skvae.architectures import MLP, NetworkSpec
from skvae.likelihoods import LIKELIHOODS, Bernoulli, Gaussian
from skvae.objectives import ELBO
from skvae.priors import PRIORS, StandardNormal

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


def by_autograd(vaes, x, eps, beta, weight):
    """Terms of the first member, and the gradients of all, (n_members, *shape) for each parameter."""
    terms = []
    for i, vae in enumerate(vaes):
        vae.zero_grad()
        value, *parts = ELBO(beta)(vae, Batch(x[i], eps[i]))
        (value * weight[i]).sum().neg().backward()
        terms.append([part.detach() for part in parts])
    names = [name for name, _ in vaes[0].named_parameters()]
    grads = {name: torch.stack([dict(vae.named_parameters())[name].grad for vae in vaes]) for name in names}
    return terms[0], grads


def by_hand(vaes, x, eps, beta, weight):
    stack = Stack(vaes, copy.deepcopy(vaes), [[name for name, _ in vaes[0].named_parameters()]])
    fast = FastELBO(stack, beta)
    for _ in range(2):  # nothing adds up from step to step
        terms = fast.gradient(Batch(x, eps, weight=weight))
    return terms, stack.gradients


def members(likelihood, x, sizes, beside, dtype, n_members, prior=StandardNormal):
    """Models with different parameters, their rows and weights, of which the last rows only fill up."""
    vaes = [random_vae(likelihood(), x, sizes, beside, dtype, prior) for _ in range(n_members)]
    for i, vae in enumerate(vaes):
        for part in vae.parameters():
            part.data.mul_(1 + 0.1 * i)
    rows = torch.stack(
        [x[torch.randperm(len(x), generator=torch.Generator().manual_seed(i))] for i in range(n_members)]
    )
    eps = torch.randn(n_members, len(x), 2, generator=torch.Generator().manual_seed(9), dtype=dtype)
    weight = torch.ones(n_members, len(x), dtype=dtype) / len(x)
    weight[1:, -7:] = 0
    return vaes, rows.to(dtype), eps, weight


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize(("sizes", "beside"), [((), False), ((6,), False), ((6,), True), ((6, 3), True)])
@pytest.mark.parametrize("likelihood", VARIANTS, ids=NAMES)
def test_gradient_is_that_of_autograd(likelihood, sizes, beside, n_members, beta, table):
    family = next(name for name, kind in LIKELIHOODS.items() if isinstance(likelihood(), kind))
    x = torch.from_numpy(table(family))
    if family == "gaussian":
        x[::7] *= MAX_INPUT  # outliers
    vaes, *batch = members(likelihood, x, sizes, beside, torch.float64, n_members)
    if family == "gaussian" and sizes:  # the clamps are passed on the way
        mean, log_scale = vaes[0].encode(x)
        assert mean.abs().max() > MAX_Z
        assert log_scale.min() < 0 < log_scale.max()
    expected, grads = by_autograd(vaes, *batch[:2], beta, batch[2])
    found = by_hand(vaes, *batch[:2], beta, batch[2])
    torch.testing.assert_close(list(found[0]), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], grads, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("likelihood", VARIANTS, ids=NAMES)
def test_gradient_in_single_precision(likelihood, table):
    family = next(name for name, kind in LIKELIHOODS.items() if isinstance(likelihood(), kind))
    vaes, *batch = members(likelihood, torch.from_numpy(table(family)).float(), (6,), True, torch.float32, 2)
    _, expected = by_autograd(vaes, *batch[:2], 1.0, batch[2])
    _, found = by_hand(vaes, *batch[:2], 1.0, batch[2])
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= 1e-5 * grad.abs().max(), name


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "flow" or find_spec("zuko")])
def test_gradient_of_any_prior_is_that_of_autograd(prior, beside, n_members, table):
    """Its own parameters' included, and those of the encoder through which the VampPrior looks."""
    x = torch.from_numpy(table("gaussian"))
    vaes, *batch = members(Gaussian, x, (6,), beside, torch.float64, n_members, PRIORS[prior])
    expected, grads = by_autograd(vaes, *batch[:2], 0.7, batch[2])
    found = by_hand(vaes, *batch[:2], 0.7, batch[2])
    torch.testing.assert_close(list(found[0]), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], grads, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("prior", [StandardNormal, PRIORS["mixture"]])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_terms_are_those_of_the_last_members(last, prior, table):
    x = torch.from_numpy(table("gaussian"))
    vaes, rows, eps, _ = members(Gaussian, x, (6,), True, torch.float64, 3, prior)
    expected = [vae(Batch(rows[i], eps[i])) for i, vae in enumerate(vaes)][-last:]
    stack = Stack(vaes, copy.deepcopy(vaes), [[name for name, _ in vaes[0].named_parameters()]])
    found = FastELBO(stack, 1.0, last).terms(Batch(rows[-last:], eps[-last:]))
    torch.testing.assert_close(found, tuple(torch.stack(parts) for parts in zip(*expected, strict=True)))


@pytest.mark.parametrize(("balanced", "for_map"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("n_members", [1, 2])
def test_the_gradient_of_the_first_phase_is_that_of_autograd(n_members, beside, balanced, for_map, table):
    """Balanced, and of a map below the decoder's head without the noise scale's; the encoder sees other rows."""
    x = torch.from_numpy(table("gaussian"))
    vaes, rows, eps, weight = members(Gaussian, x, (6,), beside, torch.float64, n_members)
    weight = torch.full_like(weight, 1 / rows.shape[1])  # a batch's mean of the noise scale is over all its rows
    seen, phase = rows + 0.1 * eps.sum(-1, keepdim=True), {"balanced": balanced, "for_map": for_map}
    expected = []
    for i, vae in enumerate(vaes):
        vae.zero_grad()
        value, *_ = ELBO()(vae, Batch(rows[i], eps[i], seen[i], **phase))
        value.mean().neg().backward()
        expected.append({name: part.grad.clone() for name, part in vae.named_parameters()})
    stack = Stack(vaes, copy.deepcopy(vaes), [[name for name, _ in vaes[0].named_parameters()]])
    FastELBO(stack, 1.0).gradient(Batch(rows, eps, seen, weight=weight, **phase))
    for name, found in stack.gradients.items():
        torch.testing.assert_close(found, torch.stack([grads[name] for grads in expected]), rtol=1e-8, atol=1e-10)
    plain, other = by_hand(vaes, rows, eps, 1.0, weight)[1], "decoder.head" if balanced else "decoder.hidden.0"
    assert not torch.allclose(plain[f"{other}.weight"], stack.gradients[f"{other}.weight"])


def test_the_balance_leaves_the_size_of_the_gradient(normal):
    """The factors of the mean's gradient are noise scales over their own mean; the noise's gradient stays."""
    likelihood = Gaussian()
    likelihood.build(3)
    factors = likelihood.balance(normal(20, 2, 3))
    assert torch.equal(factors[:, 1], torch.ones(20, 3))
    assert factors[:, 0].mean() == pytest.approx(1, abs=1e-6)
    assert factors[:, 0].std() > 0.1
    assert Gaussian("feature").balance(normal(20, 1, 3)) is None
    assert Bernoulli().balance(normal(20, 1, 3)) is None


def test_other_parts_are_left_to_autograd(make_vae):
    vae = make_vae(Gaussian(), n_features=4, hidden_layer_sizes=(3,))
    assert covers(vae)
    vae.encoder.hidden[1] = nn.Tanh()
    assert not covers(vae)
    vae.encoder = nn.Linear(4, 4)
    assert not covers(vae)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"layer_norm": True}], ids=str)
def test_layers_between_are_left_to_autograd(options, make_vae):
    vae = make_vae(Gaussian(), n_features=4, hidden_layer_sizes=(3,))
    vae.encoder = MLP(**options)
    vae.encoder.build(NetworkSpec(4, 4, (3,)))
    assert not covers(vae)


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
    assert covers(vae)
    (name, kind), *_ = part.items()
    setattr(vae, name, built(kind()) if name == "encoder" else kind())
    assert not covers(vae)


def built(encoder):
    if not hasattr(encoder, "hidden"):
        encoder.build(NetworkSpec(4, 4, (3,)))
    return encoder
