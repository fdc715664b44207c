"""Columns of pandas that pyarrow holds: their dates as days, and values back in their dtypes."""

import importlib
import re

import numpy as np

SUFFIX = "[pyarrow]"
_MS_PER_DAY = 86_400_000
_EXACT_DIGITS = 15  # of float64


def is_arrow(dtype):
    return type(dtype).__name__ == "ArrowDtype"


def days_of_arrow(cells):
    """Dates of a column as days since 1970 in UTC, NaN where one is missing."""
    pa, held = importlib.import_module("pyarrow"), cells.array.__arrow_array__()
    moments = held.cast(pa.timestamp("us", getattr(held.type, "tz", None)), safe=False).cast(pa.int64())
    return np.asarray(moments.to_numpy(), dtype=float) / (1000 * _MS_PER_DAY)


def arrow_series(pandas, column, values, dtype):
    """Values of a column as a series of the dtype of that name; NaN is missing."""
    pa = importlib.import_module("pyarrow")
    kind = _type_of(pa, dtype.removesuffix(SUFFIX))
    return pandas.Series(_cells(pa, column, values, kind), dtype=pandas.ArrowDtype(kind))


def _cells(pa, column, values, kind):
    if pa.types.is_null(kind):
        return pa.nulls(len(values))
    if column.kind == "categorical":
        return pa.array(column.cells(values), type=kind)
    holes = np.isnan(values)
    if column.kind == "date":
        moments = pa.array((np.nan_to_num(values) * _MS_PER_DAY).round().astype(np.int64), mask=holes)
        return moments.cast(pa.timestamp("ms", getattr(kind, "tz", None))).cast(kind, safe=False)
    if pa.types.is_boolean(kind):
        return pa.array(values >= 0.5, mask=holes)
    if pa.types.is_float16(kind):
        return pa.array(values.astype(np.float16), mask=holes)
    values = np.round(values) if pa.types.is_integer(kind) else values
    return pa.array(_within(pa, values, kind), mask=holes).cast(kind, safe=False)


def _within(pa, values, kind):
    """Values that so many digits can write."""
    if not pa.types.is_decimal(kind):
        return values
    most = (10**kind.precision - 1) / 10**kind.scale
    most *= 1 if kind.precision <= _EXACT_DIGITS else 1 - 10.0**-_EXACT_DIGITS
    return np.clip(values, -most, most)


def _type_of(pa, name):
    """The type of that name; pyarrow's own reader takes only names without parameters."""
    if decimal := re.fullmatch(r"(decimal\d+)\((\d+), (-?\d+)\)", name):
        return getattr(pa, decimal[1])(int(decimal[2]), int(decimal[3]))
    if moment := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", name):
        return pa.timestamp(*moment.groups())
    if coded := re.fullmatch(r"dictionary<values=(\w+), indices=(\w+), ordered=([01])>", name):
        return pa.dictionary(pa.type_for_alias(coded[2]), pa.type_for_alias(coded[1]), coded[3] == "1")
    return pa.type_for_alias(name)
