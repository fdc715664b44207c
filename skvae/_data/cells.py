"""What a single cell is: missing, masked, a number or a date, in whatever container."""

import numpy as np


def is_missing(cell):
    return (
        cell is None
        or type(cell).__name__ in ("NAType", "NaTType")
        or (isinstance(cell, (float, np.floating)) and np.isnan(cell))
        or (isinstance(cell, (np.datetime64, np.timedelta64)) and np.isnat(cell))
    )


def is_number(cell):
    """Tell whether a cell is a number, text that stands for one, or missing."""
    try:
        float(cell)
    except (TypeError, ValueError):
        return is_missing(cell)  # pandas has no float for what is missing
    return True


def is_date(dtype):
    return getattr(dtype, "kind", "") in ("M", "m") or (hasattr(dtype, "is_temporal") and dtype.is_temporal())


def kind_of(cells):
    """The letter that NumPy has for the dtype of cells, such as "O" for objects; "" where they have no such dtype."""
    return getattr(getattr(cells, "dtype", None), "kind", "")


def objects_of(cells):
    return cells.to_list() if hasattr(cells, "to_list") else list(cells)


def unmasked(X):
    """Return X with NaN, NaT or None in the place of cells that are masked."""
    if not (isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X)):
        return X
    if X.dtype.kind in "biuf":
        return X.astype(np.result_type(X.dtype, np.float32)).filled(np.nan)
    if X.dtype.kind in "mM":
        return X.filled(np.array("NaT", dtype=X.dtype))
    return np.where(np.ma.getmaskarray(X), None, X.data.astype(object))
