import pytest
import torch

from skvae import _products
from skvae._products import fastest, has_onednn, linear


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("product", [linear, fastest])
def test_products_take_transposed_tensors(product, dtype, relu, normal):
    x, weight, bias = normal(7, 5, dtype=dtype), normal(9, 5, seed=1, dtype=dtype), normal(9, seed=2, dtype=dtype)
    for a in (x, x.t().contiguous().t()):
        for b in (weight, weight.t().contiguous().t()):
            expected = a @ b.T + bias
            torch.testing.assert_close(product(a, b, bias, relu=relu), expected.relu() if relu else expected)


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


def test_only_large_products_go_to_onednn(monkeypatch, normal):
    sizes = []
    monkeypatch.setattr(_products, "linear", lambda x, weight, bias=None, **options: sizes.append(x.shape))
    fastest(normal(64, 4), normal(128, 4))
    fastest(normal(64, 784), normal(128, 784))
    assert sizes == [(64, 784)]
