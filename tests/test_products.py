from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skvae._data.blocks import _RowwiseLinear
from skvae._fast import products as _products
from skvae._fast.products import LinearByOneDNN, has_onednn, is_large, linear


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_take_transposed_tensors(dtype, relu, normal):
    x, weight, bias = normal(7, 5, dtype=dtype), normal(9, 5, seed=1, dtype=dtype), normal(9, seed=2, dtype=dtype)
    for a in (x, x.t().contiguous().t()):
        for b in (weight, weight.t().contiguous().t()):
            expected = a @ b.T + bias
            torch.testing.assert_close(linear(a, b, bias, relu=relu), expected.relu() if relu else expected)


@pytest.mark.parametrize("n_rows", [1, 7, 64, 300])
@pytest.mark.parametrize(("n_in", "n_out"), [(3, 2), (100, 128), (784, 10)])
def test_rows_do_not_depend_on_their_neighbours(n_rows, n_in, n_out, normal):
    x, weight = normal(1024, n_in), normal(n_out, n_in, seed=1)
    if not has_onednn(x):
        pytest.skip("torch was built without oneDNN: inference pads its blocks instead")
    for start in (0, 11, 512):
        part = x[start : start + n_rows].contiguous()
        padded = torch.nn.functional.pad(part, (0, 0, 0, -n_rows % 64))
        assert torch.equal(linear(padded, weight)[:n_rows], linear(x, weight)[start : start + n_rows])


def test_only_large_products_go_to_onednn(normal):
    assert not is_large(normal(64, 4), normal(128, 4))
    assert is_large(normal(64, 784), normal(128, 784))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(300,), (3, 100)])
def test_gradients_of_onednn_are_those_of_torch(shape, bias, normal):
    """To 1e-5 of the largest: the rounding of float32 over 300 rows."""
    network = nn.Sequential(nn.Linear(80, 120, bias=bias), nn.Tanh(), nn.Linear(120, 90, bias=bias))
    x, weights = normal(*shape, 80), normal(*shape, 90, seed=1)
    results = []
    for mode in (nullcontext(), LinearByOneDNN()):
        inputs = x.clone().requires_grad_()
        with mode:
            y = network(inputs)
        results.append([y, *torch.autograd.grad((y * weights).sum(), [inputs, *network.parameters()])])
    for expected, found in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_mode_takes_large_products_of_any_network(monkeypatch, normal):
    if not has_onednn(normal(1)):
        pytest.skip("torch was built without oneDNN")
    sizes = []

    def counted(x, weight, bias=None):
        sizes.append(tuple(x.shape))
        return nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(_products, "linear", counted)
    with LinearByOneDNN():
        nn.Linear(784, 128)(normal(64, 784)).sum().backward()
        nn.Linear(4, 4)(normal(64, 4))
    assert sizes == [(64, 784), (128, 64)]


def test_gradients_of_gradients_are_those_of_torch(normal):
    """As a penalty on the decoder's Jacobian takes them; to 1e-5 of the largest, as above."""
    network = nn.Sequential(nn.Linear(80, 120), nn.Tanh(), nn.Linear(120, 90))
    x, results = normal(300, 80).requires_grad_(), []
    for mode in (nullcontext(), LinearByOneDNN()):
        with mode:
            (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
            weights = network[0].weight, network[2].weight
            results.append(torch.autograd.grad(slope.square().sum(), weights))
    for expected, found in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("mode", [LinearByOneDNN, _RowwiseLinear])
@pytest.mark.parametrize("n_outputs", [4, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modes_take_arguments_as_torch_does(dtype, n_outputs, mode, normal):
    x, weight, bias = (
        normal(300, 80, dtype=dtype),
        normal(n_outputs, 80, seed=1, dtype=dtype),
        normal(n_outputs).to(dtype),
    )
    expected = [F.linear(x, weight), F.linear(x, weight, bias)]
    with mode():
        found = [F.linear(x, weight), F.linear(input=x, weight=weight, bias=bias)]
    torch.testing.assert_close(found, expected)
