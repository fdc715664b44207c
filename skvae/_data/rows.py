"""Tables that are not held as one array: rows of a file, of a sparse matrix or of chunks, dense where they are read."""

import copy
import mmap
import os
from collections import OrderedDict
from functools import cached_property
from numbers import Integral

import joblib
import numpy as np
from scipy.sparse import issparse
from sklearn.utils import check_scalar

from .cells import is_missing, unmasked

# X keeps these until its rows are scaled; others become the first.
DTYPES = (np.float64, np.float32, np.float16, np.uint8)
MAX_HELD = 2**24  # values: a smaller table is better held as an array
_MAX_READ = 2**22  # values that are read at once


def row_blocks(X, size=1024):
    """Blocks of rows, in the order of C: in another one, sums over rows have other last bits."""
    if isinstance(X, RowSource):
        parts = X.parts(size)
        return (block for part in parts for block in row_blocks(part, size))
    return (np.ascontiguousarray(X[start : start + size]) for start in range(0, len(X), size))


class RowSource:
    """Rows by slice or by indices, as a dense array: what is asked of an array, without its memory.

    Parameters
    ----------
    shape : tuple of int
        (n_samples, n_features).
    dtype : dtype
        Of the values as they are kept.
    """

    ndim = 2
    finish = None  # what is made of the rows that were read

    def __init__(self, shape, dtype):
        self.shape = tuple(map(int, shape))
        self.dtype = np.dtype(dtype)

    @property
    def size(self):
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def read_dtype(self):
        """The dtype of rows that are read."""
        native = self.dtype.newbyteorder("=")
        return native if native in DTYPES else np.dtype(np.float64)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        if isinstance(rows, (int, np.integer)):
            return self[[int(rows)]][0]
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        values = np.ascontiguousarray(self._read(rows), dtype=self.read_dtype)
        return values if self.finish is None else self.finish(values)

    def _read(self, rows):
        """Dense rows of a slice or of indices, in an array of their own."""
        raise NotImplementedError

    def __array__(self, dtype=None, copy=None):
        values = self[:]
        return values if dtype is None else values.astype(dtype, copy=False)

    def finished_by(self, function):
        """The same rows with `function` applied to them."""
        other = copy.copy(self)
        other.finish = function
        return other

    def parts(self, block=1024):
        """The rows as arrays, in their order: whole blocks as far as they go."""
        size = max(1, _MAX_READ // max(1, self.shape[1] * block)) * block
        return (self[start : start + size] for start in range(0, len(self), size))

    def check(self, function):
        """Call `function`, which may refuse rows, with all parts."""
        for part in self.parts():
            function(part)

    def gathered(self, value):
        """Return the values that all processes make of their parts of the table: here the one `value`."""
        return [value]

    def order(self, rows, permutation):
        """The indices `rows` in the order of a pass, given a random `permutation` of their places."""
        return rows[permutation]

    def fingerprint(self):
        """Hash of all values."""
        return joblib.hash([joblib.hash(part) for part in self.parts()])


class MappedRows(RowSource):
    """Rows of a memory-mapped array.

    They are read from the file where they stand there one after the other: pages of a map would stay in memory, and the
    system maps up to two megabytes around each row that is touched. Other maps are read as arrays.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        A memory map, or a view of one.
    """

    def __init__(self, X):
        super().__init__(X.shape, X.dtype)
        self.values = np.asarray(X)
        self.path, self.position = _place_in_file(X)

    def _read(self, rows):
        if self.path is None:
            return np.array(self.values[rows])
        indices = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        values = np.empty((len(indices), self.shape[1]), self.dtype)
        if not len(indices):
            return values
        with open(self.path, "rb", buffering=0) as file:
            self._fill(values, indices, file.fileno())
        return values

    def _fill(self, values, indices, file):
        stride = self.values.strides[0]
        if isinstance(indices, range) and indices.step == 1 and self.values.flags.c_contiguous:
            return _read_into(file, memoryview(values).cast("B"), self.position + indices.start * stride)
        view, size = memoryview(values).cast("B"), values.itemsize * self.shape[1]
        places = self.position + np.asarray(indices) * stride
        for i, place in enumerate(places.tolist()):
            _read_into(file, view[i * size : (i + 1) * size], place)


def _read_into(file, view, position):
    """Fill a view of bytes with what stands at that position of a file."""
    n = os.preadv(file, [view], position)
    while n < len(view):
        view, position = view[n:], position + n
        n = os.preadv(file, [view], position)
        if not n:
            raise OSError("The file that X is mapped from ends before its last row.")


def _place_in_file(X):
    """The file that X is a view of and the position of its first row there; None and 0 where its rows cannot be read
    from it."""
    file, itemsize = _mapped(X), X.dtype.itemsize
    in_order = X.strides[1] == itemsize and X.strides[0] >= 0 and X.size
    if not in_order or file.mode == "c" or file.filename is None or not hasattr(os, "preadv"):
        return None, 0
    start = np.frombuffer(file._mmap, np.uint8).ctypes.data
    position = X.ctypes.data - start + file.offset - file.offset % mmap.ALLOCATIONGRANULARITY
    last = np.empty_like(X[-1:], order="C")
    try:
        with open(file.filename, "rb", buffering=0) as handle:
            _read_into(handle.fileno(), memoryview(last).cast("B"), position + (len(X) - 1) * X.strides[0])
    except OSError:
        return None, 0
    is_there = last.tobytes() == np.ascontiguousarray(X[-1:]).tobytes()  # else the file is another by now
    return (file.filename, position) if is_there else (None, 0)


class SparseRows(RowSource):
    """Rows of a sparse matrix.

    Parameters
    ----------
    X : sparse matrix or array of shape (n_samples, n_features)
        In any format of SciPy.
    """

    def __init__(self, X):
        self.X = X.tocsr()
        super().__init__(X.shape, X.dtype)

    def _read(self, rows):
        return self.X[rows].toarray()


class Chunks:
    """A table in parts that are read when they are asked for, such as the row groups of a parquet file.

    `fit` and `partial_fit` take it for X, as do the methods that give something for each row. A pass goes through the
    parts in random order, a few at a time, whose rows are shuffled together.

    Parameters
    ----------
    parts : sequence
        What `read` takes, one for each part.
    read : callable, default=None
        Makes an array-like of shape (n, n_features) of a part; None for parts that are such tables.
    n_buffered : int, default=8
        Number of parts that are held in memory and shuffled together.

    Attributes
    ----------
    shape : tuple of int
        (n_samples, n_features); all parts are read once to know it.

    Raises
    ------
    ValueError
        If there is no part, or `n_buffered` is less than 1; when rows are read, if a part has other columns than the
        first one, in another order, or some that are no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import Chunks, VAETransformer
    >>> X = Chunks(range(20), lambda i: np.random.default_rng(i).normal(size=(100, 3)))
    >>> X.shape
    (2000, 3)
    >>> VAETransformer(z_dim=1, max_iter=1, random_state=0).fit(X).transform(X).shape
    (2000, 1)
    """

    def __init__(self, parts, read=None, n_buffered=8):
        check_scalar(n_buffered, "n_buffered", Integral, min_val=1)
        self.rows = ChunkRows(parts, read, n_buffered)

    @property
    def shape(self):
        return self.rows.shape

    def __len__(self):
        return len(self.rows)


class ChunkRows(RowSource):
    """Rows of `Chunks`, whose parameters it has."""

    def __init__(self, parts, read, n_buffered):
        self.all_parts = list(parts)
        if not self.all_parts:
            raise ValueError("X has no parts.")
        self.read = read
        self.n_buffered = n_buffered
        self._held = OrderedDict()

    @cached_property
    def _sizes(self):
        """Number of rows and dtype of each part."""
        return [(len(part), part.dtype) for part in map(self._part, range(len(self.all_parts)))]

    @cached_property
    def starts(self):
        """Index of each part's first row, and the number of rows."""
        return np.cumsum([0, *(n_rows for n_rows, _ in self._sizes)])

    @cached_property
    def shape(self):
        return int(self.starts[-1]), self._like[0][1]

    @cached_property
    def dtype(self):
        """Of the numbers of all parts: a file of whole numbers may follow one of others, or come before it."""
        return np.result_type(*(dtype for _, dtype in self._sizes))

    @cached_property
    def _like(self):
        """Shape of the first part, and the part without its rows if its columns have names."""
        self._part(0)
        return self._first

    @property
    def header(self):
        """What has the names of the columns, without rows; None if they have none."""
        return self._like[1]

    def __getstate__(self):
        return vars(self) | {"_held": OrderedDict()}

    def _part(self, i):
        """The rows of a part, which are held until others take their place."""
        if i in self._held:
            self._held.move_to_end(i)
            return self._held[i]
        part = self.all_parts[i] if self.read is None else self.read(self.all_parts[i])
        values, names = _numbers_of(part, i), _names_of(part)
        if i == 0:
            self._first = values.shape, None if names is None else part[:0]
        self._check_columns(values.shape, names, i)
        self._held[i] = values
        while len(self._held) > self.n_buffered:
            self._held.popitem(last=False)
        return values

    def _check_columns(self, shape, names, i):
        """Refuse part `i` if it has other columns than the first one."""
        first_shape, header = self._first if i == 0 else self._like
        first_names = _names_of(header)
        if len(shape) != 2 or shape[1] != first_shape[1]:
            raise ValueError(
                f"The parts of X must be tables of the same columns: part {i} has shape {shape}, and the first one has "
                f"{first_shape[1:]} columns."
            )
        if names is None or first_names is None or names == first_names:
            return
        own, first = next(pair for pair in zip(names, first_names, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"The parts of X must be tables of the same columns: part {i} has {own!r} where the first one has "
            f"{first!r}. Let `read` give all parts the same names in the same order, as frame[names] does."
        )

    def _read(self, rows):
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        values = np.empty((len(rows), self.shape[1]), self.read_dtype)
        of_part = np.searchsorted(self.starts, rows, side="right") - 1
        for i in np.unique(of_part):
            values[of_part == i] = self._part(i)[rows[of_part == i] - self.starts[i]]
        return values

    def order(self, rows, permutation):
        """Parts in random order, a few at a time, and the rows of these shuffled together."""
        rows = rows[permutation]
        of_part = np.searchsorted(self.starts, rows, side="right") - 1
        _, places = np.unique(of_part, return_index=True)  # where a part is met first is where it stands
        rank = np.empty(len(self.starts), dtype=np.int64)
        rank[of_part[np.sort(places)]] = np.arange(len(places))
        return rows[np.argsort(rank[of_part] // self.n_buffered, kind="stable")]


def _names_of(part):
    """The names of the columns of a frame, or of an arrow table; None where they have none."""
    names = getattr(part, "column_names", getattr(part, "columns", None))
    return None if names is None else list(names)


def _numbers_of(part, i):
    """The rows of part `i` as an array of numbers, NaN where one is missing."""
    values = np.asarray(part.toarray() if issparse(part) else unmasked(part))
    if values.ndim != 2 or values.dtype.kind in "biuf":
        return values
    columns, names = [_floats_of(column) for column in values.T], _names_of(part) or range(values.shape[1])
    if strange := [name for name, column in zip(names, columns, strict=True) if column is None]:
        raise ValueError(
            f"The parts of X must be tables of numbers, and part {i} has columns of something else: "
            f"{', '.join(map(repr, strange[:10]))}. Let `read` drop or encode them, as OneHotEncoder does, or fit to a "
            "DataFrame of all rows, whose text and dates are taken as they are."
        )
    return np.array(columns, dtype=float).T.reshape(values.shape)


def _floats_of(cells):
    """A column of objects as float64; None where some are no numbers."""
    if cells.dtype.kind not in "OUS":
        return None
    try:
        return np.array([np.nan if is_missing(cell) else cell for cell in cells.tolist()], dtype=float)
    except (TypeError, ValueError):
        return None


def _mapped(X):
    """The memory map that `X` is a view of, or None."""
    while X is not None and not (isinstance(X, np.memmap) and X._mmap is not None):
        X = getattr(X, "base", None)
    return X


def source_of(X):
    """Return a user's table as rows that are read where they are asked for; None where it is no such table."""
    if isinstance(X, Chunks):
        return X.rows
    if issparse(X) and X.ndim == 2:
        return SparseRows(X)
    is_map = isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "biuf" and _mapped(X) is not None
    return MappedRows(X) if is_map else None


def held(X):
    """Return a small table of rows to be read as an array, and a large one as the `RowSource` that it is."""
    source = source_of(X)
    if source is None:
        return X
    return source if source.size > MAX_HELD else source._read(slice(None))


def parts_of(X):
    """Return the parts of X that memory holds: an array as it is."""
    return X.parts() if isinstance(X, RowSource) else [X]


def check_parts(X, function):
    """Call `function`, which may refuse rows, with X or with its parts."""
    if isinstance(X, RowSource):
        return X.check(function)
    return function(X)


def gathered(X, value):
    """Return the values that all processes make of their parts of the table `X`; `value` is this one's."""
    return X.gathered(value) if isinstance(X, RowSource) else [value]


def header_of(X):
    """Return what has the names of the columns of `Chunks`, which their rows lose; None where there is none."""
    rows = X.rows if isinstance(X, Chunks) else X
    return rows.header if isinstance(rows, ChunkRows) else None


def dtype_of(X):
    """The dtype of an array-like or of rows to be read."""
    return X.dtype if isinstance(X, RowSource) else np.asarray(X).dtype
