import math

import pytest
import torch
from torch import nn

from skvae.architectures import ACTIVATIONS, ARCHITECTURES, MLP

SIZES = {"hidden_layer_sizes": (300, 200)}


def build(architecture, n_inputs=100, n_outputs=50, seed=0, **params):
    return architecture(n_inputs, n_outputs, generator=torch.Generator().manual_seed(seed), **(SIZES | params))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_architecture_maps_the_last_dimension(architecture, normal):
    network = build(architecture)
    x = normal(3, 4, 100)
    assert network(x).shape == (3, 4, 50)
    torch.testing.assert_close(network(x)[1, 2], network(x[1, 2]))  # rows do not see each other
    assert isinstance(network.head, nn.Linear)
    nn.init.zeros_(network.head.weight)
    nn.init.ones_(network.head.bias)
    assert torch.all(network(x) == 1)  # the head is last, as the linear start needs it


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_own_stream_decides_the_weights(architecture, global_streams):
    before = global_streams()
    first, same, other = (build(architecture, seed=seed).head.weight for seed in (0, 0, 1))
    assert global_streams() == before
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_he_initialisation():
    layers = [layer for layer in build(MLP).modules() if isinstance(layer, nn.Linear)]
    assert [layer.weight.shape for layer in layers] == [(300, 100), (200, 300), (50, 200)]
    for layer in layers:
        std, n = math.sqrt(2 / layer.in_features), layer.weight.numel()
        assert torch.all(layer.bias == 0)
        assert abs(layer.weight.std() / std - 1) < 5 / math.sqrt(2 * n)  # 5 standard errors of a standard deviation
        assert abs(layer.weight.mean()) < 5 * std / math.sqrt(n)


def test_no_hidden_layer_is_linear(normal):
    network = build(MLP, hidden_layer_sizes=())
    x, y = normal(2, 8, 100)
    torch.testing.assert_close(network(2 * x - 3 * y), 2 * network(x) - 3 * network(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_bends(name, normal):
    network = build(MLP, activation=name)
    x = normal(8, 100)
    assert torch.any((network(x) - network(x - 1) - network(1 + 0 * x) + network(0 * x)).abs() > 1e-3)
    gradients = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    assert all(torch.isfinite(gradient).all() and gradient.abs().max() > 0 for gradient in gradients)
