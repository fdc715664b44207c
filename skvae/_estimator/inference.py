"""A fitted estimator's model, and tables that are not held, through it in parts."""

from contextlib import contextmanager

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._data.input import plain
from .._data.rows import RowSource, header_of
from .._model.fitted import Model


@contextmanager
def as_it_was_if_refused(estimator):
    """Within this context an error, or a Ctrl-C, leaves the estimator as it was."""
    former = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(former)
        raise


class InferenceMixin:
    """The way from a fitted `net_` to inference."""

    @property
    def _fitted(self):
        """The fitted `Model`, which all inference asks."""
        net = self.net_
        return Model(self._table, self.module_, net.offset, net.scale, net.device, net.seed, self._spread)

    def _map_parts(self, X, function):
        """Apply `function` to X, or to the parts of a table that is not held: no row depends on its neighbours. Its
        second argument has the names of the columns, where X itself has not."""
        check_is_fitted(self)
        header, X = header_of(X), plain(X)
        if not isinstance(X, RowSource):
            return function(X, header)
        found, end = None, 0
        for part in (function(part, header) for part in X.parts()):
            found = np.empty((len(X), *part.shape[1:]), part.dtype) if found is None else found
            start, end = end, end + len(part)
            found[start:end] = part
        return found
