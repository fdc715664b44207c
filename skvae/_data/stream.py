"""The memory of `partial_fit`, of the chunks that it was given: the first rows, until they suffice to start from."""

import hashlib

import numpy as np

from .._system.random import subsample

MAX_KEPT = 2_500
_HEAD = 32  # rows by which the beginning of a table is known again
_MIN_ROWS, _ROWS_PER_FEATURE, _MAX_VALUES = 1_000, 5, 10_000_000


def _hashes(X):
    rows = np.ascontiguousarray(X, dtype=np.float64)
    return [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=6).digest(), "big") for row in rows]


def _enough(n_features):
    """Return the number of rows that suffice for scale and linear start, within bounded memory."""
    return min(max(_MIN_ROWS, _ROWS_PER_FEATURE * n_features), max(100, _MAX_VALUES // n_features))


class Stream:
    """Chunks as one table: how many rows it has, and which of them to start from.

    Scale, linear start and weight decay are those of all rows seen, not of the first chunk: the start is made anew each
    time that the number of rows has doubled, until there are enough, and once more where the table begins again before.
    Rows of a table that begins again, in the same order, are not counted twice.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features) or None
        The first rows, as long as they are not enough.
    n_started : int
        How many of them the model was started from.
    head, last : list of int
        Hashes of the very first rows and of the last ones, 32 at most.
    n_pass, n_rows : int
        Rows since the table began (again), and the most that there were of them.
    """

    def __init__(self, rows=None, n_started=0, head=(), last=(), n_pass=0, n_rows=0):
        self.rows = rows
        self.n_started = n_started
        self.head = list(head)
        self.last = list(last)
        self.n_pass = n_pass
        self.n_rows = n_rows

    def take(self, X):
        """The stream after the chunk `X`, and the rows to start anew from, or None; this one stays as it is."""
        stream = Stream(**vars(self))
        begins = stream._count(X)
        if stream.n_pass > self.n_rows and self.rows is not None:
            stream.rows = np.concatenate([self.rows, X]) if isinstance(X, np.ndarray) else X
        if stream.rows is None or len(stream.rows) == self.n_started:
            return stream, None
        rows, enough = stream.rows, _enough(X.shape[1])
        if not begins and len(rows) < min(2 * self.n_started, enough):
            return stream, None
        stream.rows, stream.n_started = None if len(rows) >= enough else rows, len(rows)
        return stream, rows

    def _count(self, X):
        """Count the rows of `X`; returns whether the table begins again in them."""
        first = _hashes(X[:_HEAD])
        seen, end = self.last + first, len(self.last) + len(first)
        starts = range(end - len(self.head), max(-1, len(self.last) - len(self.head)), -1)  # which end in this chunk
        start = next(
            (start for start in starts if self.head and seen[start : start + len(self.head)] == self.head), None
        )
        self.n_pass = len(X) + (self.n_pass if start is None else len(self.last) - start)
        if self.n_pass > self.n_rows:
            self.head += first[: _HEAD - len(self.head)]
        self.n_rows = max(self.n_rows, self.n_pass)
        self.last = (seen if len(X) <= _HEAD else _hashes(X[-_HEAD:]))[-_HEAD:]
        return start is not None

    def mixed(self, old, new, n_new, seed):
        """Return some of `old` and of `new`, in proportion to how many rows they stand for: those of the calls before,
        and the latest `n_new`. Return `new` where all rows are among these."""
        n_others = self.n_rows - n_new
        if n_others <= 0:
            return new
        key = [seed, self.n_pass]
        old = old[subsample(len(old), round(MAX_KEPT * n_others / self.n_rows), key)]
        size = int(len(old) * n_new / n_others + np.random.default_rng(key).random())
        return np.concatenate([old, new[subsample(len(new), size, key)]])
