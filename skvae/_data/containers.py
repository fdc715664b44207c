"""The containers that tables come in and go back into: arrays, and frames of pandas and polars."""

import datetime
import importlib
import re
import sys
from contextlib import suppress

import numpy as np

from .arrow import SUFFIX, arrow_series, days_of_arrow, is_arrow
from .cells import is_missing, kind_of, objects_of

_US_PER_DAY = 86_400 * 10**6


def is_frame(X):
    """Tell whether X is a DataFrame of a library that is known here."""
    return container_of(X) != "array"


def container_of(X):
    """Return the kind of container that X is: "pandas", "polars" or "array"."""
    for name in ("pandas", "polars"):
        library = sys.modules.get(name)
        if library is not None and isinstance(X, library.DataFrame):
            return name
    return "array"


def cells_of(X):
    """Return the names and the columns of X."""
    container = container_of(X)
    if container == "pandas":
        return [(name, X.iloc[:, i]) for i, name in enumerate(X.columns)]
    if container == "polars":
        return [(name, X[name]) for name in X.columns]
    values = np.asarray(X)
    return list(enumerate((np.array(X, dtype=object) if values.dtype.kind in "US" else values).T))


def holds_words(X):
    """Tell whether X is a DataFrame, or an array with text among its cells."""
    return is_frame(X) or (kind_of(X) in tuple("OUS") and any(isinstance(cell, str) for cell in X.flat))


def has_own_numbers(X):
    """Tell whether X is a DataFrame with columns that NumPy has no numbers for as they stand: sparse, or of objects,
    text or dates."""
    return is_frame(X) and not all(map(_is_of_numbers, set(X.dtypes)))


def _is_of_numbers(dtype):
    if hasattr(dtype, "is_numeric"):  # polars
        return dtype.is_numeric() or str(dtype) == "Boolean"
    return dtype.kind in tuple("biufc") and not _is_sparse(dtype) and not is_arrow(dtype)


def _is_sparse(dtype):
    return str(dtype).startswith("Sparse")


def name_of(dtype):
    """The name of a dtype, or of what a sparse one holds; one that gives a pandas time zone back where there is one."""
    name = str(dtype.subtype if _is_sparse(dtype) else dtype)
    zone = _zone_of(dtype) if hasattr(dtype, "tz") else None
    return name if zone is None else f"datetime64[{dtype.unit}, {zone}]"


def _zone_of(dtype):
    """The name that gives the time zone of a pandas dtype back; None where there is none."""
    text = str(dtype.tz)
    for name in (text, "UTC", "dateutil/" + text.rpartition("zoneinfo/")[2].rstrip("')")):
        with suppress(KeyError, ValueError, TypeError, AttributeError):
            if type(dtype)(dtype.unit, name) == dtype:
                return name
    return None


def has_odd_zone(cells):
    """Tell whether cells have a time zone without a name."""
    return hasattr(cells.dtype, "tz") and _zone_of(cells.dtype) is None


def missing_cells(X):
    """Find the missing cells of an array or a frame: bool (n_samples, n_columns)."""
    if not (is_frame(X) or kind_of(X) in tuple("OUS")):
        return np.isnan(X)
    return np.column_stack([[is_missing(cell) for cell in objects_of(cells)] for _, cells in cells_of(X)])


def without_column(X, place):
    """Return X with all cells of one column missing."""
    container = container_of(X)
    if container == "array":
        return np.where(np.arange(X.shape[1]) == place, np.nan, X.astype(object) if X.dtype.kind in "US" else X)
    library = importlib.import_module(container)
    if container == "polars":
        return X.with_columns(library.lit(None).alias(X.columns[place]))
    X = X.copy()
    X.isetitem(place, library.Series(None, index=X.index, dtype=object))
    return X


def with_column(X, other, place):
    """Return X with a column of `other`, a table of the same kind, in the place of its own."""
    container = container_of(X)
    if container == "array":
        return np.where(np.arange(X.shape[1]) == place, other, X)
    if container == "polars":
        return X.with_columns(other.to_series(place))
    X = X.copy()
    X.isetitem(place, other.iloc[:, place])
    return X


def is_bool(column):
    return column.dtype.lower().startswith("bool")


# Dates, which are days since 1970 in UTC


def days_of(cells):
    """The cells of a column of dates as numbers, NaN where one is missing."""
    if is_arrow(getattr(cells, "dtype", None)):
        return days_of_arrow(cells)
    if getattr(getattr(cells, "dt", None), "tz", None) is not None:  # pandas
        cells = cells.dt.tz_convert("UTC").dt.tz_localize(None)
    elif getattr(getattr(cells, "dtype", None), "time_zone", None):  # polars
        cells = cells.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    dates = np.asarray(cells.to_numpy() if hasattr(cells, "to_numpy") else cells)
    if dates.dtype.kind != "M":
        dates = np.array([_date_of(cell) for cell in objects_of(cells)], dtype="datetime64[us]")
    days = dates.astype("datetime64[us]").astype(np.int64) / _US_PER_DAY  # nanoseconds end in 2262, and wrap around
    return np.where(np.isnat(dates), np.nan, days)


def _date_of(cell):
    """A date as NumPy has it: of datetime's, pandas' or NumPy's own, or of ISO's text."""
    if is_missing(cell):
        return np.datetime64("NaT")
    if getattr(cell, "tzinfo", None) is not None:
        cell = cell.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(cell)


def _dates(days):
    return (np.nan_to_num(days) * 86_400_000).round().astype("datetime64[ms]")


# Columns of frames


def frame_of(container, columns, values):
    """A frame of values (n_samples, n_columns), with the names and dtypes of the columns."""
    library, make = importlib.import_module(container), _SERIES[container]
    made = [make(library, column, part) for column, part in zip(columns, values.T, strict=True)]
    frame = library.DataFrame({f"{i}": column for i, column in enumerate(made)})
    names = [column.name for column in columns]
    is_nested = container == "pandas" and all(isinstance(name, tuple) for name in names)
    frame.columns = library.MultiIndex.from_tuples(names) if is_nested else names
    return frame


def filled_frame(X, columns, values, missing, fitted):
    """The frame X with values in the place of its missing cells; all others are as they were. `fitted` is the container
    whose dtypes the columns have."""
    container = container_of(X)
    library, make, put = importlib.import_module(container), _SERIES[container], _PUT[container]
    filled = X.copy() if container == "pandas" else X
    for place, (_, cells) in enumerate(cells_of(X)):
        if (holes := missing[:, place]).any():
            says_nothing = holes.all() or kind_of(cells) == "O"
            known = columns[place].dtype if container == fitted else _USUAL[container][columns[place].kind]
            dtype = known if says_nothing else name_of(cells.dtype)
            made = make(library, columns[place], values[:, place], dtype)
            filled = put(library, filled, place, cells, made, holes)
    return filled


def with_zeros(frame, columns, places, missing):
    """The frame with 0 in the cells of some columns that were missing."""
    container = container_of(frame)
    library, make = importlib.import_module(container), _SERIES[container]
    frame = frame.copy() if container == "pandas" else frame
    for place in places:
        cells = cells_of(frame)[place][1]
        dtype = name_of(cells.dtype)
        dtype = _USUAL[container]["numeric"] if dtype.lower().startswith("null") else dtype  # which holds no number
        zeros = make(library, columns[place], np.zeros(len(frame)), dtype)
        frame = _PUT[container](library, frame, place, cells, zeros, missing[:, place])
    return frame


def _put_in_pandas(pandas, frame, place, cells, made, holes):
    made = made.set_axis(frame.index)
    if holes.all():
        frame.isetitem(place, made)
    elif made.dtype == cells.dtype:
        frame.isetitem(place, cells.where(~holes, made))
    else:
        frame.isetitem(place, cells.astype(object).where(~holes, made.astype(object)).astype(made.dtype))
    return frame


def _put_in_polars(polars, frame, place, cells, made, holes):
    if not holes.all():
        fits = made.cast(cells.dtype, strict=False)
        if fits.null_count() > made.null_count():  # an Enum without the level
            cells, fits = cells.cast(made.dtype), made
        made = cells.zip_with(polars.Series(~holes), fits)
    return frame.with_columns(made.alias(frame.columns[place]))


def _in_range(values, dtype):
    """Values that a column of so many bits can hold: draws may lie beyond."""
    name = dtype.removesuffix(SUFFIX).lower()
    bits = re.fullmatch(r"(float|u?int)(8|16|32|64)", {"float": "float32", "halffloat": "float16"}.get(name, name))
    if not bits or bits[0] == "float64":
        return values
    limits = np.finfo(bits[0]) if bits[1] == "float" else np.iinfo(bits[0])
    most = float(limits.max) if float(limits.max) <= limits.max else np.nextafter(float(limits.max), 0)
    return np.clip(values, float(limits.min), most)


def _pandas_series(pandas, column, values, dtype=None):
    dtype, values = dtype or column.dtype, _in_range(values, dtype or column.dtype)
    if dtype.endswith(SUFFIX):
        return arrow_series(pandas, column, values, dtype)
    if column.kind == "categorical":
        cells = pandas.Series(column.cells(values), dtype=object)
        if dtype == "category":
            levels = pandas.Index([x for x in column.levels if x is not None], dtype=column.level_dtype)
            return cells.astype(pandas.CategoricalDtype(levels, column.ordered))
        return cells.astype(dtype) if not cells.isna().any() or dtype != "bool" else cells
    if column.kind == "date":
        dates = pandas.Series(_dates(values)).where(~np.isnan(values))
        if not dtype.startswith("date"):  # a column without any
            return dates
        zone = dtype.partition(", ")[2].rstrip("]")
        return (dates.dt.tz_localize("UTC") if zone else dates).astype(dtype)
    if np.isnan(values).any() and not dtype.startswith(("float", "Float", "Int", "UInt")):
        return pandas.Series(values)
    if dtype.lower().startswith("bool"):
        return pandas.Series(values >= 0.5).astype(dtype)
    is_whole = dtype.lower().startswith(("int", "uint"))
    return pandas.Series(np.round(values) if is_whole else values).astype(dtype)


def _polars_series(polars, column, values, dtype=None):
    dtype, holes = dtype or column.dtype, np.isnan(values)
    values = _in_range(values, dtype)
    if column.kind == "categorical":
        kind = polars.Boolean if dtype == "Boolean" else None
        series = polars.Series(column.cells(values), dtype=kind)
        if dtype.startswith("Enum"):
            return series.cast(polars.Enum(column.levels))
        if series.dtype.is_numeric():
            return series.cast(_polars_number(polars, dtype), strict=False)
        return series.cast(polars.Categorical) if dtype.startswith("Categorical") else series
    if column.kind == "date":
        series = polars.Series(_dates(values)).set(polars.Series(holes), None)
        return _polars_dates(polars, series, dtype)
    if dtype.lower().startswith("bool"):
        return polars.Series(values >= 0.5)
    series = polars.Series(np.round(values) if "Int" in dtype else values)
    if "Int" in dtype and holes.any():
        series = series.set(polars.Series(holes), None)
    return series.cast(_polars_number(polars, dtype), strict=False)


def _polars_number(polars, dtype):
    digits = re.fullmatch(r"Decimal\(precision=(\d+), scale=(\d+)\)", dtype)
    return polars.Decimal(*map(int, digits.groups())) if digits else getattr(polars, dtype)


def _polars_dates(polars, series, dtype):
    if not dtype.startswith("Datetime"):
        return series.cast(polars.Date) if dtype == "Date" else series
    unit = re.search(r"time_unit='(\w+)'", dtype)
    zone = re.search(r"time_zone='([^']+)'", dtype)
    series = series.cast(polars.Datetime(unit[1] if unit else "us"))
    return series.dt.replace_time_zone("UTC").dt.convert_time_zone(zone[1]) if zone else series


_PUT = {"pandas": _put_in_pandas, "polars": _put_in_polars}
_USUAL = {  # dtypes of columns that another container had
    "pandas": {"numeric": "float64", "categorical": "object", "date": "datetime64[ms]"},
    "polars": {"numeric": "Float64", "categorical": "String", "date": "Datetime(time_unit='ms')"},
}
_SERIES = {"pandas": _pandas_series, "polars": _polars_series}
