"""The user's table: its columns, and the way from its cells to the model's features and back.

A table of numbers is one feature for each column. In others, a column of categories is a feature for each level, and
a numeric one goes by its marginal: normal scores, levels in their order, or a flag for a value that many rows share
beside the scores of the rest.
"""

import copy
import re
import warnings
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import numpy as np

from .cells import is_date, is_missing, is_number, kind_of, objects_of, unmasked
from .column import MAX_LEVELS, Column
from .containers import (
    cells_of,
    container_of,
    days_of,
    filled_frame,
    frame_of,
    has_odd_zone,
    is_bool,
    is_frame,
    name_of,
)
from .input import words
from .rows import RowSource, gathered, row_blocks

_NUMBERS = re.compile(r"u?int\d|(half)?float|double|decimal|null")  # and no interval
_TEXTS = re.compile(r"categor|enum|str$|object|(dictionary<values=)?((large_)?string|bool)|dictionary<values=u?int\d")
_CATEGORIES = (str, bool, np.bool_, int, float, np.number)


@dataclass(eq=False)
class Table:
    """Columns, and what holds them.

    Parameters
    ----------
    container : {"array", "pandas", "polars"}
        What X is.
    columns : list of Column
        In the order of X.
    dtype : str, default="float64"
        Of an array that is given back.
    conditions : ndarray of shape (n, n_context), default=None
        Features that are given, of some of the training rows.
    are_apart : bool, default=False
        Whether numbers go by a likelihood that does not take any number: dates, which have a Gaussian, do not share it.
    """

    container: str
    columns: list
    dtype: str = "float64"
    conditions: Any = None
    are_apart: bool = False

    @classmethod
    def of(cls, X, categorical_features="from_dtype", likelihoods=None, conditions=()):
        """The table that a frame is, or an array with text, before its values are looked at."""
        container, found = container_of(X), cells_of(X)
        columns = [Column(name, *_kind(cells)) for name, cells in found]
        _check_names([column.name for column in columns])
        if strange := [column.name for column in columns if column.kind == "unknown"]:
            raise ValueError(
                words("X has cells that are neither numbers, text nor dates with a time zone or none", strange)
            )
        if odd := [name for name, cells in found if has_odd_zone(cells)]:
            raise ValueError(
                f"X has dates with a time zone that has no name, in columns {odd[:10]}: they could not be given back. "
                "Convert them before, as by .dt.tz_convert('UTC')."
            )
        _mark(columns, categorical_features, X)
        if isinstance(categorical_features, str) and all(is_bool(column) for column in columns):
            for column in columns:  # a table of bits, as an array of them
                column.kind = "numeric"
        for name, likelihood in (likelihoods or {}).items():
            column = _named(columns, name)
            if column.kind == "categorical" and not is_bool(column):
                raise ValueError(f"`likelihood` names column {name!r}, which holds categories: they have their own.")
            column.likelihood = likelihood
            column.kind = "numeric" if column.kind == "categorical" else column.kind
        for column in _wanted(columns, conditions, "condition_features"):
            column.given = True
        if columns and all(column.given for column in columns):
            raise ValueError("condition_features names all columns of X: there is nothing left to model.")
        for column, (_, cells) in zip(columns, found, strict=True):
            if column.kind == "categorical":
                levels, column.ordered = _levels(cells, column)
                column.level_dtype = _level_dtype(cells)
                column.levels = levels or [None]  # of a column without any value, what stands there
        is_float32 = container == "array" and columns[0].dtype == "float32"
        return cls(container, columns, "float32" if is_float32 else "float64")

    @classmethod
    def of_numbers(cls, values, dtype):
        """The table that an array of numbers is, given its validated values."""
        columns = [Column(i, str(dtype), "numeric") for i in range(values.shape[1])]
        return cls("array", columns, "float32" if values.dtype == np.float32 else "float64")

    @property
    def is_plain(self):
        """True if each column is a number and all go by one likelihood."""
        return self._is_of_numbers and not any(column.given for column in self.columns)

    @property
    def _is_of_numbers(self):
        """True if all columns that are modelled are numbers and go by one likelihood."""
        return all(
            column.kind == "numeric" and column.likelihood is None for column in self.columns if not column.given
        )

    @property
    def names_of_no_numbers(self):
        """Names of the columns that hold categories or dates."""
        return [column.name for column in self.columns if column.kind != "numeric"]

    @property
    def n_context(self):
        """Number of features that are given."""
        return sum(column.n_features for column in self.columns if column.given)

    @property
    def conditions_by_column(self):
        """Slices of the features that are given, one for each of their columns."""
        widths = [column.n_features for column in self.columns if column.given]
        return [slice(end - width, end) for width, end in zip(widths, accumulate(widths), strict=True)]

    @property
    def is_identity(self):
        """True if each column is a feature as it stands."""
        return self.is_plain and all(column.marginal in ("standardize", None) for column in self.columns)

    def values(self, X):
        """X as numbers: codes of categories, days, NaN where nothing is known: (n_samples, n_columns), float64."""
        cells = [cells for _, cells in cells_of(X)]
        return np.column_stack([_numbers(column, part) for column, part in zip(self.columns, cells, strict=True)])

    def partial(self, given, whose="given"):
        """Values of rows of which some columns are given, NaN in the others: (n, n_columns), float64. Messages say
        `whose` cells they are."""
        if hasattr(given, "to_dict") and np.ndim(given) == 1:  # a row of pandas, whose cells have names
            given = given.to_dict()
        if isinstance(given, dict):
            cells = {name: _given_cells(part) for name, part in given.items()}
        elif is_frame(given):
            cells = dict(cells_of(given))
        else:
            rows = np.atleast_2d(np.asarray(unmasked(given), dtype=object))
            if rows.shape[1] != len(self.columns):
                raise ValueError(f"`{whose}` has {rows.shape[1]} columns, and X had {len(self.columns)}.")
            cells = {column.name: part for column, part in zip(self.columns, rows.T, strict=True)}
        known = [_named(self.columns, name) for name in cells]
        n = max(map(len, cells.values()), default=1)
        for name, part in cells.items():
            if np.ndim(part) != 1 or len(part) not in (1, n):
                got = f"an array of shape {np.shape(part)}" if np.ndim(part) != 1 else len(part)
                raise ValueError(
                    f"`{whose}` must have one row, or {n} rows as its longest column has. Got {got} in column {name!r}."
                )
        values = np.full((n, len(self.columns)), np.nan)
        for column, part in zip(known, cells.values(), strict=True):
            values[:, self.columns.index(column)] = _known(column, part, whose)
        return values

    def check_given(self, names):
        """Refuse names of columns that are modelled."""
        if modelled := [name for name in names if not _named(self.columns, name).given]:
            raise ValueError(f"`conditions` names column {modelled[0]!r}, which is not among condition_features.")

    def look_at(self, values, marginal, as_they_are=False):
        """Choose each column's marginal; "auto" is "standardize" in a table of numbers, or where numbers are to stay
        `as_they_are`, and "quantile" in others and for dates. In memory, take note of columns without any value."""
        if not isinstance(values, RowSource):
            for column, part in zip(self.columns, values.T, strict=True):
                column.is_empty = bool(np.isnan(part).all())
        self.are_apart, of_dates = as_they_are, "quantile" if marginal == "auto" else marginal
        if marginal == "auto":
            marginal = "standardize" if self._is_of_numbers or as_they_are else "quantile"
        if self.gives_floats and marginal == "standardize":
            return  # nothing of it would be used
        if isinstance(values, RowSource):
            return self._look_at_rows(values)
        for column, part in zip(self.columns, values.T, strict=True):
            column.look_at(part.astype(float), of_dates if column.kind == "date" else marginal)

    def _look_at_rows(self, rows):
        """Take note of the range of whole numbers, without their columns at hand."""
        ends = [(block.min(axis=0), block.max(axis=0)) for block in row_blocks(rows)]
        lows, highs = zip(*chain.from_iterable(gathered(rows, ends)), strict=True)
        low, high = np.min(lows, axis=0), np.max(highs, axis=0)
        for column, *column_range in zip(self.columns, low, high, strict=True):
            column.low, column.high = map(float, column_range)
            column.whole, column.marginal = True, "standardize"

    def widened(self, features):
        """The table with the ranges of these rows in those of its numbers that go by no knots or levels."""
        has_empty = any(column.is_empty for column in self.columns)
        if isinstance(features, RowSource) or (self.gives_floats and not has_empty):
            return self
        table = replace(self, columns=[copy.copy(column) for column in self.columns])
        for column, part in zip(table.columns, self._parts(features), strict=True):
            seen = part[~np.isnan(part)]
            column.is_empty = column.is_empty and not len(seen)
            if column.marginal == "standardize" and len(seen):
                column.widen(seen)
        return table

    def of_known(self, values):
        """Values without those of columns that nothing is known of."""
        is_empty = [column.is_empty for column in self.columns]
        return np.where(is_empty, np.nan, values) if any(is_empty) and not isinstance(values, RowSource) else values

    def warn_of_unknown(self, X, features):
        """Warn of categories that came after the first rows, given the features of X."""
        if not any(column.kind == "categorical" for column in self.columns):
            return
        for column, part, (_, cells) in zip(self.columns, self._parts(features), cells_of(X), strict=True):
            if column.kind == "categorical" and (unknown := _unknown(cells, part[:, 0])):
                names = sorted(set(unknown), key=str)
                warnings.warn(
                    f"Found unknown categories {names} in column {column.name!r} after the first rows: they count as "
                    "missing. Let the first rows name all, as a pandas categorical dtype does.",
                    UserWarning,
                    stacklevel=7,
                )

    @property
    def gives_floats(self):
        """True if the table is an array of numbers that need not be whole."""
        return self.container == "array" and self.is_plain and not self.columns[0].dtype.startswith(("int", "uint"))

    @property
    def groups(self):
        """Lists of columns that share a likelihood, in the order of their features: Gaussian ones first."""
        kinds = {"gaussian": [], "numbers": [], "ordinal": [], "flag": [], "categorical": []}
        context = [i for i, column in enumerate(self.columns) if column.given]
        for i, column in enumerate(self.columns):
            own = column.likelihood
            if column.given:
                continue
            if own is not None and not (isinstance(own, str) and own == "gaussian"):
                kinds.setdefault(own if isinstance(own, str) else f"own {i}", []).append(i)
            elif column.marginal == "spike":
                kinds["gaussian"].append(i)
                kinds["flag"].append(i)
            elif column.marginal in ("ordinal", "categorical"):
                kinds[column.marginal].append(i)
            else:
                kinds["numbers" if self.are_apart and column.kind != "date" else "gaussian"].append(i)
        return {kind: places for kind, places in (kinds | {"context": context}).items() if places}

    def modelled(self, values):
        """The columns of values that are not given."""
        return values[:, [not column.given for column in self.columns]] if self.n_context else values

    def features(self, values):
        """Return the features of values, before scaling, (n_samples, n_features), and the nats that each row's
        log-likelihood gains by them, (n_samples,) or 0."""
        if self.is_identity:
            return values, 0.0
        parts, slopes = zip(*(c.encode(part) for c, part in zip(self.columns, values.T, strict=True)), strict=True)
        picked = []
        for kind, places in self.groups.items():
            picked += [parts[i][:, _share(kind, self.columns[i])] for i in places]
        return np.concatenate(picked, axis=1), sum(slopes)

    def values_of(self, features, drawn):
        """Values (n_samples, n_columns) of features, which are draws or expectations: these need not be whole in an
        array."""
        if self.is_identity and self.container == "array" and (self.gives_floats or not drawn):
            return features
        return np.column_stack(
            [c.decode(part, drawn) for c, part in zip(self.columns, self._parts(features), strict=True)]
        )

    @property
    def is_curved(self):
        """True if means of some columns are not those of their features."""
        return any(column.is_curved for column in self.columns)

    def means_of(self, features, nodes):
        """Values (n_samples, n_columns) of expected features, or means over nodes of them (n_nodes, n_samples,
        n_features) where these are not the same."""
        values, n = self.values_of(features, drawn=False), nodes.shape[-1] - self.n_context
        parts = [self.by_column(node[:, :n]) for node in nodes]
        means = {i: c.mean_of([part[i] for part in parts]) for i, c in enumerate(self.columns) if c.is_curved}
        return np.column_stack([means.get(i, column) for i, column in enumerate(values.T)])

    def by_column(self, features):
        """Features of what is modelled, or something of each of them, by column; none for columns that are given."""
        empty = np.empty((len(features), 0))
        context = np.full((len(features), self.n_context), np.nan)
        parts = self._parts(np.hstack([features, context]))
        return [empty if column.given else part for column, part in zip(self.columns, parts, strict=True)]

    def _parts(self, features):
        """The features of each column."""
        if self.is_identity:
            return [part[:, None] for part in features.T]
        parts, end = [[] for _ in self.columns], 0
        for kind, places in self.groups.items():
            for i in places:
                width = self.columns[i].n_features if kind in ("categorical", "context") else 1
                parts[i].append(features[:, end : end + width])
                end += width
        return [np.concatenate(part, axis=1) for part in parts]

    def compose(self, values):
        """Values in the container that X of `fit` had."""
        return self._array(values) if self.container == "array" else frame_of(self.container, self.columns, values)

    def filled(self, X, own, values):
        """X, whose numbers are `own`, in its own container, with values where they are missing, as unknown categories
        are."""
        missing = np.isnan(own)
        if is_frame(X):
            return filled_frame(X, self.columns, values, missing, self.container)
        if all(column.kind == "numeric" for column in self.columns):
            dtype = np.result_type(self.dtype, X.dtype) if kind_of(X) in tuple("biuf") else self.dtype
            return np.where(missing, values, own).astype(dtype, copy=False)
        made = self.compose(values)
        if is_frame(made):  # of which each cell is what its column says
            made = np.array([objects_of(cells) for _, cells in cells_of(made)], dtype=object).T
        return np.where(missing, made, X if hasattr(X, "dtype") else np.array(X, dtype=object))

    def _array(self, values):
        if all(column.kind == "numeric" for column in self.columns):
            return values.astype(self.dtype, copy=False)
        cells = [column.cells(part) for column, part in zip(self.columns, values.T, strict=True)]
        is_text = any(isinstance(level, str) for column in self.columns for level in column.levels or ())
        return np.array(list(zip(*cells, strict=True)), dtype=object if is_text else self.dtype)


def _check_names(names):
    """Refuse names of which a column has no one of its own."""
    seen = set()
    if twice := [name for name in names if name in seen or seen.add(name)]:
        raise ValueError(f"X has several columns of the name {twice[0]!r}. Give each a name of its own.")


def _share(kind, column):
    """Return the features of the column that belong to a kind."""
    if column.marginal != "spike":
        return slice(None)
    return slice(1, 2) if kind == "flag" else slice(0, 1)


def _kind(cells):
    """Return the dtype and the kind of a column; a sparse one comes back dense."""
    name = name_of(cells.dtype)
    lower = name.lower()
    if _TEXTS.match(lower):
        return name, _kind_of_objects(cells) if lower == "object" else "categorical"
    if lower.startswith(("date", "timestamp")):
        return name, "date"
    return name, "numeric" if _NUMBERS.match(lower) else "unknown"


def _kind_of_objects(cells):
    cells = [cell for cell in objects_of(cells) if not is_missing(cell)]
    if all(is_number(cell) and not isinstance(cell, (bool, str)) for cell in cells):  # "01234" is a code
        return "numeric"
    return "categorical" if all(isinstance(cell, _CATEGORIES) for cell in cells) else "unknown"


def _mark(columns, wanted, X):
    """Set which columns are categorical, as `categorical_features` says."""
    if isinstance(wanted, str) and wanted == "from_dtype":
        if container_of(X) == "array":  # of which nothing is asked: text is refused, with advice, as numbers are wanted
            for column in columns:
                column.kind = "numeric"
        return
    marked = _wanted(columns, [] if wanted is None else wanted, "categorical_features")
    for column in columns:
        column.kind = "numeric" if column.kind == "categorical" else column.kind
    for column in marked:
        column.kind = "categorical"


def _wanted(columns, names, what):
    """The columns of these names or places, or of a mask."""
    if getattr(names, "ndim", 1) != 1:
        raise ValueError(f"{what} should be a sequence of names, places or flags. Got {names!r} instead.")
    names = list(names)
    if not names or not all(isinstance(name, (bool, np.bool_)) for name in names):
        return [_named(columns, name) for name in names]
    if len(names) != len(columns):
        raise ValueError(f"{what} set as a boolean mask should have shape (n_features,), got: {(len(names),)}")
    return [column for column, is_wanted in zip(columns, names, strict=True) if is_wanted]


def _named(columns, name):
    """The column of that name, or else of that place."""
    names = [column.name for column in columns]
    if name in names:
        return columns[names.index(name)]
    if not isinstance(name, str) and name in range(len(columns)):
        return columns[int(name)]
    raise ValueError(f"There is no column {name!r} in X: it has {[column.name for column in columns][:10]}.")


def _levels(cells, column):
    """Categories of a column in order, and whether a pandas category says that they are ordered."""
    declared = getattr(getattr(cells, "dtype", None), "categories", None)
    found = declared if declared is not None else sorted(_distinct(cells), key=lambda c: (type(c).__name__, c))
    levels = list(found)
    if len(levels) > MAX_LEVELS >= len(used := _distinct(cells)):
        raise ValueError(
            f"Categorical feature {column.name!r} has {len(levels)} categories in its dtype, of which at most "
            f"{MAX_LEVELS} can be modelled, and cells of {len(used)} of them: drop the others, as by "
            ".cat.remove_unused_categories()."
        )
    if len(levels) > MAX_LEVELS:
        raise ValueError(
            f"Categorical feature {column.name!r} is expected to have a cardinality <= {MAX_LEVELS} but actually has a "
            f"cardinality of {len(levels)}. Group rare categories before, as OrdinalEncoder(max_categories=...) does, "
            "make it a numeric column if it holds numbers as text, or drop it if it only names its rows."
        )
    return [_plain(level) for level in levels], bool(getattr(cells.dtype, "ordered", False))


def _distinct(cells):
    return {cell for cell in objects_of(cells) if not is_missing(cell)}


def _level_dtype(cells):
    """The name of the dtype of a pandas category's categories; None of other cells."""
    categories = getattr(cells.dtype, "categories", None)
    return name_of(categories.dtype) if hasattr(categories, "dtype") and hasattr(cells, "iloc") else None


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


def _numbers(column, cells):
    """A column as float64."""
    if column.kind == "categorical":
        codes = {level: float(i) for i, level in enumerate(column.levels)}
        return np.array(
            [np.nan if is_missing(c) else codes.get(_plain(c), np.nan) for c in objects_of(cells)], dtype=float
        )
    if column.kind == "date":
        try:
            return days_of(cells)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Column {column.name!r} held dates in fit, and does not now: {error}.") from error
    if column.is_empty and kind_of(cells) not in tuple("biuf"):
        cells = [cell if is_number(cell) else None for cell in objects_of(cells)]
    elif is_date(getattr(cells, "dtype", None)):  # NumPy would take them for numbers
        raise ValueError(f"Column {column.name!r} holds dates or times, and held numbers in fit.")
    if hasattr(cells, "to_numpy") and hasattr(cells, "iloc"):
        return cells.to_numpy(dtype=float, na_value=np.nan)
    if kind_of(cells) in ("O", ""):
        cells = [np.nan if is_missing(cell) else cell for cell in objects_of(cells)]
    return np.array(cells, dtype=float)


def _given_cells(part):
    """A column that is given as an array, or its only cell: NumPy makes numbers of its own dates, as objects."""
    part = unmasked(part)
    return np.atleast_1d(part if kind_of(part) == "M" else np.asarray(part, dtype=object))


def _unknown(cells, values):
    """The cells that hold something of which there is no number."""
    missing = [cell for cell, value in zip(objects_of(cells), values, strict=True) if np.isnan(value)]
    return [cell for cell in missing if not is_missing(cell)]


def _known(column, cells, whose):
    """A column that is given as float64, whose categories must be known."""
    try:
        values = _numbers(column, cells)
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{whose}` has no {column.kind} cells in column {column.name!r}: {error}.") from error
    if unknown := _unknown(cells, values):
        raise ValueError(
            f"`{whose}` has the category {unknown[0]!r} in column {column.name!r}, which fit has not seen."
        )
    return values
