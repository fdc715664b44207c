"""X in any container, or words that say what to do."""

import datetime
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae.likelihoods import LIKELIHOODS

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 5, "random_state": 0}
NAMES = list("abcde")


def packed(X):
    records = np.zeros(len(X), dtype=[("id", "u1"), ("x", X.dtype, X.shape[1:])])
    records["x"] = X
    return records["x"]


def read_only(X):
    X = X.copy()
    X.setflags(write=False)
    return X


CONTAINERS = {
    "negative strides": lambda X: X[::-1].copy()[::-1],
    "negative strides of columns": lambda X: X[:, ::-1].copy()[:, ::-1],
    "field of packed records": packed,
    "unaligned": lambda X: np.frombuffer(b"x" + X.tobytes(), X.dtype, offset=1).reshape(X.shape),
    "Fortran": np.asfortranarray,
    "strided": lambda X: np.repeat(np.repeat(X, 2, axis=0), 2, axis=1)[::2, ::2],
    "read-only": read_only,
    "big-endian": lambda X: X.astype(X.dtype.newbyteorder(">")),
    "longdouble": lambda X: X.astype(np.longdouble),
    "objects": lambda X: X.astype(object),
    "lists": lambda X: X.tolist(),
    "matrix": lambda X: np.asarray(X).view(np.matrix),
    "nothing masked": np.ma.array,
    "pandas, nullable": lambda X: pd.DataFrame(X, columns=NAMES).astype(f"Float{8 * X.itemsize}"),
    "polars": lambda X: pl.DataFrame(X, schema=NAMES),
    "tensor": torch.from_numpy,
    "tensor with gradient": lambda X: torch.from_numpy(X.copy()).requires_grad_(),
}


def numbers(X, likelihood):
    vae = VAETransformer(2, likelihood=likelihood, **SMALL).fit(X)
    Z = np.asarray(vae.transform(X))
    streamed = VAETransformer(2, likelihood=likelihood, **SMALL).partial_fit(X)
    return [Z, vae.score_samples(X), np.asarray(vae.inverse_transform(Z[::-1])), streamed.transform(X)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_container_changes_no_bit(likelihood, dtype, table):
    X = table(likelihood).astype(dtype)
    expected = numbers(X, likelihood)
    for name, contain in CONTAINERS.items():
        for left, right in zip(numbers(contain(X), likelihood), expected, strict=True):
            same_bits = left.astype(right.dtype)  # what is not float32 comes back as float64
            np.testing.assert_array_equal(same_bits, right, err_msg=name)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rows_of_no_stride_are_taken(table):
    X = np.broadcast_to(table()[:1], (60, 5))
    for left, right in zip(numbers(X, "gaussian"), numbers(X.copy(), "gaussian"), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_are_taken_as_they_are(dtype, table):
    X = torch.from_numpy(table()).to(dtype)
    for left, right in zip(numbers(X, "gaussian"), numbers(X.float().numpy(), "gaussian"), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)  # float16 comes as float64


TEXT = ["red", "blue"] * 30
NOT_NUMBERS = {
    "text": pd.Series(TEXT),
    "object": pd.Series(TEXT, dtype=object),
    "category": pd.Series(TEXT, dtype="category"),
    "date": pd.Series([pd.Timestamp("2020-01-01")] * 60),
    "date with zone": pd.Series([pd.Timestamp("2020-01-01", tz="UTC")] * 60),
    "duration": pd.Series([pd.Timedelta("1D")] * 60),
    "day": pd.Series([datetime.date(2020, 1, 1)] * 60),
    "period": pd.Series([pd.Period("2020-01", freq="M")] * 60),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "score"])
@pytest.mark.parametrize("kind", NOT_NUMBERS)
def test_columns_that_are_not_numbers_are_named(kind, method, table, n_steps):
    X = pd.DataFrame(table(), columns=NAMES)
    vae = VAETransformer(2, **SMALL).fit(X)
    n_steps.clear()
    message = r"Columns of X that are not numbers: 'c', 'e'\. Encode them .*OneHotEncoder\(sparse_output=False\)"
    if method == "fit" and kind not in ("duration", "day", "period"):
        return  # which are categories and dates
    with pytest.raises(ValueError, match=message):
        getattr(vae, method)(X.assign(c=NOT_NUMBERS[kind], e=NOT_NUMBERS[kind]))
    assert n_steps == []


def test_plans_and_objects_of_dates_are_refused_with_what_to_do(table, n_steps):
    X = pl.DataFrame(table(), schema=NAMES)
    for estimator in (VAETransformer(2), VAEImputer(), VAEOutlierDetector()):
        with pytest.raises(TypeError, match=r"X is a LazyFrame, .* X\.collect\(\)"):
            estimator.fit(X.lazy())
    with pytest.raises(ValueError, match=r"not numbers: 'c'.*pandas\.to_datetime"):
        VAETransformer(2).fit(pd.DataFrame(table(), columns=NAMES).assign(c=NOT_NUMBERS["day"]))
    assert n_steps == []


@pytest.mark.parametrize("value", [datetime.time(12), datetime.timedelta(1)])
def test_columns_of_polars_are_named(value, table):
    X = pl.DataFrame(table(), schema=NAMES)
    for frame in (X.with_columns(c=pl.lit(value)), pl.DataFrame({"c": [value] * 60})):
        with pytest.raises(ValueError, match="Columns of X that are not numbers: 'c'"):
            VAETransformer(2, **SMALL).fit(frame)


@pytest.mark.parametrize(
    ("X", "columns"),
    [
        (np.full((9, 2), np.datetime64("2020-01-01")), "0, 1"),
        (np.full((9, 2), np.timedelta64(1, "D")), "0, 1"),
        ([[1.0, "a"]] * 9, "1"),
        (np.array([[1.0, "a"]] * 9, dtype=object), "1"),
        (np.ones((9, 2)) * 1j, "0, 1"),
        (np.full((9, 20), "a"), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."),
    ],
)
def test_columns_of_arrays_are_named_by_their_places(X, columns):
    with pytest.raises(ValueError, match=rf"(?s)Columns of X that are not numbers: {re.escape(columns)}\. "):
        VAETransformer(2, **SMALL).fit(X)


def test_categories_that_are_numbers_are_taken(table):
    X = pd.DataFrame(table("poisson"), columns=NAMES)
    vae = VAETransformer(2, **SMALL).fit(X)
    np.testing.assert_array_equal(vae.transform(X.astype({"b": "category"})), vae.transform(X))


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "score", "inverse_transform"])
def test_tensors_without_values_are_refused(method, table):
    vae = VAETransformer(2, **SMALL).fit(table())
    with pytest.raises(ValueError, match="'meta', which holds no values"):
        getattr(vae, method)(torch.empty(3, 5, device="meta"))


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("kind", [VAETransformer, VAEImputer, VAEOutlierDetector])
def test_na_in_objects_is_missing(kind, as_list):
    frame = pd.DataFrame(
        {"a": pd.array([1, None, 3] * 20, dtype="Int64"), "b": np.random.default_rng(0).normal(size=60)}
    )
    model = VAETransformer(2, **SMALL)
    make, method = (kind, "score_samples") if kind is VAEOutlierDetector else (kind, "transform")
    estimator = model if kind is VAETransformer else make(model, random_state=0)
    rows = frame.to_numpy()
    found = getattr(estimator.fit(rows.tolist() if as_list else rows), method)(rows)
    floats = frame.to_numpy(dtype=float, na_value=np.nan)
    np.testing.assert_array_equal(found, getattr(clone(estimator).fit(floats), method)(floats))
