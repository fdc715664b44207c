"""X as it is given: made into what scikit-learn's validation takes as it is meant, or words about what to do."""

from contextlib import contextmanager

import numpy as np
import torch
from scipy.sparse import coo_array

from .cells import is_date, is_missing, is_number, unmasked
from .rows import RowSource, held

_MAX_NAMES = 10  # of columns, in a message
_TO_NUMBERS = (
    "Encode them before, as by OneHotEncoder(sparse_output=False), or fit to a DataFrame: its text and bool columns "
    "are taken for categories, and its datetime columns, as pandas.to_datetime makes them, for numbers; in an array, "
    "name the columns that are categories in `categorical_features`."
)


def plain(X):
    """Return X without what NumPy or torch would take for something else than it means; a large table that is sparse,
    in a file or in chunks becomes a `RowSource`.

    Raises
    ------
    TypeError
        If X is a plan of a table.
    ValueError
        If X has dates.
    """
    if hasattr(X, "collect_schema") and not hasattr(X, "to_numpy"):  # polars' LazyFrame
        raise TypeError(f"X is a {type(X).__name__}, which holds no rows yet. Pass X.collect().")
    if isinstance(X, torch.Tensor) and X.layout != torch.strided:
        X = _sparse_from_tensor(X)
    if isinstance(X, torch.Tensor):
        return _from_tensor(X)
    X = _objects(unmasked(X))
    if isinstance(X, np.ndarray):
        X = np.asarray(X)  # no matrix, whose rows would stay matrices
    X = held(X)
    if isinstance(X, np.ndarray):
        X = X if X.dtype.isnative else X.astype(X.dtype.newbyteorder("="))
    if any(map(is_date, np.ravel(getattr(X, "dtype", [])))):
        raise ValueError(words("Dates or times were passed for X, but numbers are required", _not_numbers(X)))
    return X


def _objects(X):
    """Return a list of rows with text among its cells as an array, in which numbers stay numbers, objects with None for
    NA, and others as X."""
    rows = np.array(X, dtype=object) if isinstance(X, (list, tuple)) else X
    if not (isinstance(rows, np.ndarray) and rows.dtype == object and rows.ndim == 2):
        return X
    if any(type(cell).__name__ == "NAType" for cell in rows.flat):
        return np.where(np.vectorize(is_missing, otypes=[bool])(rows), None, rows)
    return rows if any(isinstance(cell, str) for cell in rows.flat) else X


def _from_tensor(X):
    if X.is_meta:
        raise ValueError("X is a tensor on the device 'meta', which holds no values.")
    X = X.detach().cpu().resolve_neg()
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # NumPy has no such numbers; float32 has all of them


def _sparse_from_tensor(X):
    X = X.detach().cpu().to_sparse_coo().coalesce()
    return coo_array((X.values().numpy(), X.indices().numpy()), shape=X.shape)


@contextmanager
def advice(X, taken=()):
    """Within this context an error for values that are no numbers names their columns and what to do, but not the
    columns that are `taken` for something else."""
    try:
        yield
    except (ValueError, TypeError) as error:
        columns = [name for name in _not_numbers(X) if name not in taken]
        if not columns or " features, but " in str(error):  # of other tables
            raise
        kind = ValueError if hasattr(X, "columns") else type(error)
        raise kind(words(error, columns)) from error


def words(problem, columns):
    """A message that names the columns and what to do."""
    names = ", ".join(map(repr, columns[:_MAX_NAMES])) + (", ..." if len(columns) > _MAX_NAMES else "")
    return f"{str(problem).strip().removesuffix('.')}. Columns of X that are not numbers: {names}. {_TO_NUMBERS}"


def _not_numbers(X):
    """Return the names of the columns with values that are not numbers, or their indices in an array."""
    try:
        return [name for name, column in _columns(X) if not _is_numeric(np.asarray(column))]
    except (ValueError, TypeError):  # no table
        return []


def _columns(X):
    if isinstance(X, RowSource):
        return []  # its dtype is of numbers
    if hasattr(X, "iloc") and hasattr(X, "columns"):
        return [(name, X.iloc[:, i]) for i, name in enumerate(X.columns)]
    if hasattr(X, "columns"):
        names = getattr(X, "column_names", X.columns)
        return [(name, X[name]) for name in names]
    values = np.asarray(X)
    return list(enumerate(values.T)) if values.ndim == 2 else []


def _is_numeric(values):
    return values.dtype.kind in "biuf" or (values.dtype.kind in "OSUT" and all(map(is_number, values.flat)))
