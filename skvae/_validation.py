"""What an estimator refuses, and what its likelihood stands for."""

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from ._build import REGISTRIES, guess_likelihood
from ._checks import check_callbacks, check_net_params, check_optimizer
from ._component import check_component
from ._input import advice, plain
from ._net import OPTIMIZERS
from .likelihoods import LIKELIHOODS

# X keeps these until its blocks are scaled; others become the first.
_DTYPES = (np.float64, np.float32, np.float16, np.uint8)


class ValidationMixin:
    """Checks of parameters and rows, before any work and without a change to the estimator."""

    def _validate_params(self):
        """All that can be refused without seeing X; scikit-learn calls it before `fit`."""
        super()._validate_params()
        for kind in REGISTRIES:
            if not isinstance(getattr(self, kind), str):
                check_component(getattr(self, kind))
        check_callbacks(self.callbacks)
        net_params = self.net_params or {}
        check_net_params(net_params, self.get_params(deep=False).keys())
        if callable(self.optimizer) or any(name.startswith("optimizer__") for name in net_params):
            check_optimizer(OPTIMIZERS.get(self.optimizer, self.optimizer), self.learning_rate, net_params)

    def _check_first(self, X, in_chunks):
        """Validated X and what `likelihood` stands for; nothing is set on self, so that a refusal loses nothing."""
        X = plain(X)
        with advice(X):
            values = check_array(X, dtype=_DTYPES, ensure_all_finite="allow-nan", input_name="X", estimator=self)
        likelihood = self.likelihood
        if self._is_guessed:
            likelihood = guess_likelihood(X, None if in_chunks else values)
        return self._check_values(values, likelihood), likelihood

    def _check_X(self, X):
        return self._check_rows(X)[0]

    def _check_rows(self, X):
        """Validated X as the likelihood takes it, and what rows lose by that in the score: nats (n_samples,), or 0."""
        check_is_fitted(self)
        X = plain(X)
        with advice(X):
            X = validate_data(self, X, dtype=_DTYPES, ensure_all_finite="allow-nan", reset=False)
        nearest = self._check_values(X, self.likelihood_)
        return nearest, 0.0 if nearest is X else np.nansum(np.log1p(np.abs(X - nearest.astype(np.float64))), axis=1)

    @property
    def _is_guessed(self):
        return isinstance(self.likelihood, str) and self.likelihood == "auto"

    def _check_values(self, X, likelihood):
        """X as the likelihood takes it, which refuses rows only where the user has asked for it."""
        is_name = isinstance(likelihood, str)
        name = likelihood if is_name else type(likelihood).__name__
        likelihood = LIKELIHOODS[name]() if is_name else likelihood
        if not self._is_guessed:
            likelihood.check(X, f"{type(self).__name__} (likelihood={name!r})")
        return likelihood.nearest(X)
