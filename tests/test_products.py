import pytest
import torch
from torch.nn import functional as F

from skvae._fast.products import RowwiseLinear, has_onednn, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_take_transposed_tensors(dtype, normal):
    x, weight, bias = normal(7, 5, dtype=dtype), normal(9, 5, seed=1, dtype=dtype), normal(9, seed=2, dtype=dtype)
    for a in (x, x.t().contiguous().t()):
        for b in (weight, weight.t().contiguous().t()):
            torch.testing.assert_close(linear(a, b, bias), a @ b.T + bias)


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


@pytest.mark.parametrize("n_outputs", [4, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mode_takes_arguments_as_torch_does(dtype, n_outputs, normal):
    x, weight, bias = (
        normal(300, 80, dtype=dtype),
        normal(n_outputs, 80, seed=1, dtype=dtype),
        normal(n_outputs).to(dtype),
    )
    expected = [F.linear(x, weight), F.linear(x, weight, bias)]
    with RowwiseLinear():
        found = [F.linear(x, weight), F.linear(input=x, weight=weight, bias=bias)]
    torch.testing.assert_close(found, expected)
