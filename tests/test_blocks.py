import numpy as np
import pytest

from skvae._data.blocks import chunk_sizes, is_far, location_scale, scaled, scaled_blocks


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 7.0])
def test_a_constant_is_zero_in_the_models_units(value, magnitude):
    """A sum of 133 equal numbers over 133 is not that number, and what is left of 1e30 is 1e14."""
    X = np.full((133, 2), value * magnitude)
    offset, scale = location_scale(X)
    assert np.all(scaled(X, offset, scale).numpy() == 0)
    assert np.all(offset == X[0])
    assert scale.tolist() == [max(1, abs(1e-12 * X[0, 0]))] * 2


def test_what_rounding_leaves_of_a_constant_stays_small():
    X = 1e30 * (1 + 1e-15 * np.random.default_rng(0).normal(size=(1000, 3)))
    assert scaled(X, *location_scale(X)).abs().max() < 0.01  # five times 1e-15, of 1e-12


@pytest.mark.parametrize("magnitude", [1e-140, 1e-30, 1.0, 1e30, 1e140])
def test_features_are_standardised(magnitude):
    X = (np.random.default_rng(0).normal(3, 2, size=(3000, 4))) * magnitude
    x = scaled(X, *location_scale(X)).double()
    # float32 in the model's units
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(0, correction=0), 1, atol=1e-6)


TOO_LARGE = r"^Input X contains infinity or a value too large for dtype\('float32'\)\.$"


@pytest.mark.parametrize("value", [1e200, -1e300, 1.7e308])
def test_units_whose_squares_overflow_are_refused(value):
    with pytest.raises(ValueError, match=TOO_LARGE):
        location_scale(np.array([[1.0, -value], [2.0, value]]))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_values_stay_finite_and_in_order(scale, dtype):
    """Whatever float32 holds, in the units of X or in the model's: a fill value is refused in no unit."""
    X = np.array([1.0, 1e6, 1e20, 9.97e36, 3.4e38], dtype=dtype)[:, None]
    for sign in (-1, 1):
        x = sign * scaled(sign * X, np.array([0.5]), np.array([scale])).numpy()[:, 0]
        assert np.isfinite(x).all()
        assert np.all(np.diff(x) >= 0)
    if dtype == np.float64:
        assert scaled(1e40 * X[:2], np.array([0.0]), np.array([1e40])).tolist() == [[1.0], [1e6]]


@pytest.mark.parametrize("scale", [1.0, np.array([2.0])])
def test_what_float32_holds_in_neither_unit_is_refused(scale):
    for value in (1e300, -1e300, 1e39):
        with pytest.raises(ValueError, match=TOO_LARGE):
            scaled(np.array([[1.0], [value]]), 0 * scale, scale)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_far_rows_are_told_by_the_models_units(dtype):
    X = np.array([[0, 0], [1, 200], [3, 1]], dtype=dtype)
    assert is_far(X, 0.0, 1.0).tolist() == [False] * 3
    assert is_far(X, np.array([0.0, 0.0]), np.array([1e-6, 1e-4])).tolist() == [False, True, True]


def test_blocks_are_zero_padded_to_full_ones():
    X = np.arange(1.0, 261).reshape(130, 2)
    blocks = list(scaled_blocks(X, np.array([1.0, 2.0]), np.array([2.0, 4.0]), "cpu", size=128))
    assert [(len(x), n) for x, n in blocks] == [(128, 128), (64, 2)]
    last, n = blocks[-1]
    np.testing.assert_array_equal(last[:n].numpy(), [[128.0, 64.0], [129.0, 64.5]])
    assert not last[n:].any()


@pytest.mark.parametrize(
    ("n_draws", "n_features", "n_rows", "n_parts"),
    [(1, 1, 1024, 1), (100, 784, 64, 5), (100, 20, 512, 1), (1000, 784, 64, 48), (2, 10**6, 64, 2)],
)
def test_chunks_hold_a_million_values_or_a_draw_of_64_rows(n_draws, n_features, n_rows, n_parts):
    assert chunk_sizes(n_draws, n_features) == (n_rows, n_parts)
