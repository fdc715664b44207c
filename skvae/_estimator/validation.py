"""Checks of parameters and of X, and the likelihood that the parameter stands for."""

from functools import partial

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from .._data.input import advice, plain
from .._data.rows import DTYPES, RowSource, check_parts, dtype_of
from .._data.table import Table, is_frame
from .._model.build import REGISTRIES, guess_likelihood, likelihood_of
from .._model.component import check_component
from .._training.checks import check_callbacks, check_net_params, check_optimizer
from .._training.net import OPTIMIZERS
from ..likelihoods import LIKELIHOODS

_OPTIONS = {"dtype": DTYPES, "ensure_all_finite": "allow-nan"}


class ValidationMixin:
    """Checks of parameters and rows, before any work and without a change to the estimator."""

    def _validate_params(self):
        """Refuse parameters that are wrong for any X; scikit-learn calls this before `fit`."""
        super()._validate_params()
        for kind in REGISTRIES:
            given = getattr(self, kind)
            for component in given.values() if isinstance(given, dict) else [given]:
                if not isinstance(component, str):
                    check_component(component)
        check_callbacks(self.callbacks)
        net_params = self.net_params or {}
        check_net_params(net_params, self.get_params(deep=False).keys())
        if callable(self.optimizer) or any(name.startswith("optimizer__") for name in net_params):
            check_optimizer(OPTIMIZERS.get(self.optimizer, self.optimizer), self.learning_rate, net_params)

    def _check_first(self, X, in_chunks):
        """Return validated features of X, the nats that log-likelihoods gain by them, the likelihood that the parameter
        stands for, and the table. Nothing is set on self, so that a refusal loses nothing."""
        table = self._table_of(X)
        with advice(X):
            values = self._check_values_of(X if table is None or table.is_plain else table.values(X))
        table = Table.of_numbers(values, dtype_of(X)) if table is None else table
        table.look_at(values, self.marginal)
        likelihood = self.likelihood
        if not table.is_identity:
            likelihood = likelihood_of(table, likelihood)
        elif self._is_guessed:
            likelihood = guess_likelihood(X, None if in_chunks else values)
        features, gain = table.features(values)
        return self._check_values(features, likelihood, table.n_context), gain, likelihood, table

    def _table_of(self, X):
        """Return the columns of X, or None where it is an array of numbers and nothing else is asked for."""
        wanted, given, by_column = self.categorical_features, self.condition_features, isinstance(self.likelihood, dict)
        is_default = (wanted is None or isinstance(wanted, str)) and given is None and not by_column
        if isinstance(X, RowSource) and not (is_default and self.marginal != "quantile"):
            raise ValueError(
                "categorical_features, condition_features, marginal='quantile' and a likelihood for each column are "
                "for tables in memory: pass X as an array or a DataFrame, or encode it before it is written."
            )
        if not is_frame(X) and (is_default or np.ndim(X) != 2):
            return None
        return Table.of(X, wanted, self.likelihood if by_column else None, [] if given is None else given)

    def _check_values_of(self, X):
        """The validated numbers of X."""
        check = partial(check_array, **_OPTIONS, input_name="X", estimator=self)
        if not isinstance(X, RowSource):
            return check(X)
        if not X.size:
            check(np.empty(X.shape))
        X.check(check)
        return X

    def _check_X(self, X):
        return self._check_rows(X)[0]

    def _check_rows(self, X):
        """Return validated features of X as the likelihood takes them, and the nats that each row's score loses by
        that, (n_samples,) or 0."""
        check_is_fitted(self)
        X, table = plain(X), self._table
        with advice(X):
            if table.is_plain and not isinstance(X, RowSource):
                values = validate_data(self, X, **_OPTIONS, reset=False)
            else:
                validate_data(self, X, skip_check_array=True, reset=False)
                values = self._check_values_of(X if table.is_plain else table.values(X))
        features, gain = table.features(values)
        nearest = self._check_values(features, self.likelihood_, table.n_context)
        if isinstance(nearest, RowSource):
            return nearest, 0.0
        loss = (
            np.nansum(np.log1p(np.abs(features - nearest.astype(np.float64))), axis=1) if nearest is not features else 0
        )
        return nearest, loss - gain

    @property
    def _is_guessed(self):
        return isinstance(self.likelihood, str) and self.likelihood == "auto"

    def _check_values(self, X, given, n_context=0):
        """Return X as the likelihood takes it. A likelihood that the user has not asked for refuses no rows."""
        is_name = isinstance(given, str)
        name = given if is_name else type(given).__name__
        likelihood = LIKELIHOODS[name]() if is_name else given
        if n_context:
            modelled = self._check_values(X[:, :-n_context], likelihood)
            return X if np.shares_memory(modelled, X) else np.hstack([modelled, X[:, -n_context:]])
        if not self._is_guessed:
            check_parts(X, partial(likelihood.check, whom=f"{type(self).__name__} (likelihood={name!r})"))
        return X.finished_by(likelihood.nearest) if isinstance(X, RowSource) else likelihood.nearest(X)
