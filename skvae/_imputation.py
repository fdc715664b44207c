"""Missing cells filled in a pipeline, in front of any other estimator."""

import importlib
from numbers import Real
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context, clone
from sklearn.utils import check_random_state
from sklearn.utils._mask import _get_mask
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from ._data.cells import is_missing
from ._data.containers import container_of, holds_words, is_frame, missing_cells, with_zeros
from ._data.input import advice, plain
from ._estimator.inference import as_it_was_if_refused
from ._transformer import VAETransformer


class VAEImputer(TransformerMixin, BaseEstimator):
    """Fill missing cells by a variational autoencoder, as a transformer with the names of `IterativeImputer`.

    Any columns may be missing in `transform`, whatever was missing in `fit`. Numbers are filled by their mean given the
    observed cells, or by draws; categories of a DataFrame by the most probable one, or by draws.

    Parameters
    ----------
    estimator : VAETransformer, default=None
        The model, of which a copy is fitted. None is a `VAETransformer` with its defaults and this `random_state`.
    missing_values : float or None, default=numpy.nan
        What stands for a missing cell in an array; None is as NaN. In a DataFrame NaN, None and NA always do.
    sample_posterior : bool, default=False
        Whether to draw from p(missing | observed), for multiple imputation, or take the mean.
    min_value, max_value : float or array-like of shape (n_features,), default=-inf, inf
        Least and largest number to fill in, of an array; in a DataFrame they cannot be set.
    add_indicator : bool, default=False
        Whether to append, for each column that had missing cells in `fit`, one that says where they are.
    keep_empty_features : bool, default=False
        Whether columns without any value in `fit` are kept, numbers filled with 0; else they are left out.
    random_state : int, RandomState instance or None, default=None
        Of the model, if `estimator` is None, and of draws.

    Attributes
    ----------
    estimator_ : VAETransformer
        The fitted model.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during `fit`. Defined only when X has feature names that are all strings.

    See Also
    --------
    skvae.VAETransformer.impute : The method behind it, which also returns several draws.
    sklearn.impute.IterativeImputer : One regression for each feature.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skvae import VAEImputer
    >>> X, y = load_iris(return_X_y=True)
    >>> X[::3, 2] = np.nan
    >>> pipeline = make_pipeline(VAEImputer(random_state=0), LogisticRegression(max_iter=1000)).fit(X, y)
    >>> bool(pipeline.score(X, y) > 0.9)
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [HasMethods(["fit", "impute"]), None],
        "missing_values": [Real, None],
        "sample_posterior": ["boolean"],
        "min_value": [Real, "array-like"],
        "max_value": [Real, "array-like"],
        "add_indicator": ["boolean"],
        "keep_empty_features": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator=None,
        *,
        missing_values=np.nan,
        sample_posterior=False,
        min_value=-np.inf,
        max_value=np.inf,
        add_indicator=False,
        keep_empty_features=False,
        random_state=None,
    ):
        self.estimator = estimator
        self.missing_values = missing_values
        self.sample_posterior = sample_posterior
        self.min_value = min_value
        self.max_value = max_value
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the model to the observed cells.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in which some cells are missing.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : VAEImputer
            The fitted imputer.
        """
        with as_it_was_if_refused(self):
            return self._fit(X)

    def _fit(self, X):
        """`fit`, which may leave things set that an error takes back."""
        X, missing = self._checked(X, reset=True)
        model = VAETransformer(random_state=self.random_state) if self.estimator is None else clone(self.estimator)
        self._low, self._high = self._check_limits()
        self._empty, self._flagged = missing.all(axis=0), np.flatnonzero(missing.any(axis=0))
        self._check_flag_names()
        self.estimator_ = model.fit(X, None)
        return self

    def _check_flag_names(self):
        """Refuse columns that have the names of indicators."""
        names = self._names(None)
        if self.add_indicator and (twice := sorted(set(self._flag_names(names)) & set(names))):
            raise ValueError(
                f"X has a column {twice[0]!r}, which is the name of an indicator of missing cells. Rename or drop it, "
                "or set add_indicator=False."
            )

    def transform(self, X):
        """Fill the missing cells of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in which any cells may be missing.

        Returns
        -------
        X_imputed : ndarray or DataFrame of shape (n_samples, n_features_out)
            A DataFrame where X is one; observed cells are as they were.
        """
        check_is_fitted(self)
        X, missing = self._checked(X, reset=False)
        filled = self.estimator_.impute(
            X, sample=self.sample_posterior, random_state=check_random_state(self.random_state)
        )
        limited = self._limited(filled, missing)
        kept = np.arange(len(self._empty)) if self.keep_empty_features else np.flatnonzero(~self._empty)
        flags = missing[:, self._flagged] if self.add_indicator else missing[:, :0]
        return _side_by_side(limited, kept, flags, self._flag_names(self._names(None)))

    def get_feature_names_out(self, input_features=None):
        """Return the names of the columns that `transform` gives.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the features, if `fit` has seen none.

        Returns
        -------
        names : ndarray of str
            Names of the columns that are kept, and ``missingindicator_*`` of those that say where cells are missing.
        """
        check_is_fitted(self)
        names = self._names(input_features)
        kept = names if self.keep_empty_features else names[~self._empty]
        return np.array([*kept, *(self._flag_names(names) if self.add_indicator else [])], dtype=object)

    def _names(self, input_features):
        return _check_feature_names_in(self, input_features)

    def _flag_names(self, names):
        return [f"missingindicator_{name}" for name in names[self._flagged]]

    def _checked(self, X, reset):
        """X with NaN where a cell is missing, and which cells these are."""
        X = plain(X)
        if holds_words(X):
            if np.max(self.min_value) > -np.inf or np.min(self.max_value) < np.inf:
                raise ValueError("min_value and max_value hold for arrays: clip the numeric columns of a DataFrame.")
            if not self._nan_is_missing:
                raise ValueError(
                    f"missing_values={self.missing_values!r} holds for arrays: in a DataFrame NaN, None and NA are "
                    "missing. Replace it by them before, and leave missing_values as it is."
                )
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X, missing_cells(X)
        is_nan = self._nan_is_missing
        finite = "allow-nan" if is_nan else True
        with advice(X):
            X = validate_data(self, X, dtype=(np.float64, np.float32), ensure_all_finite=finite, reset=reset)
        missing = _get_mask(X, np.nan if is_nan else self.missing_values)
        return np.where(missing, np.nan, X), missing

    @property
    def _nan_is_missing(self):
        return bool(is_missing(self.missing_values))

    def _check_limits(self):
        """Refuse limits that leave no number."""
        low, high = self._limits("min_value"), self._limits("max_value")
        if not (low < high).all():
            raise ValueError("One (or more) features have min_value >= max_value.")
        return low, high

    def _limits(self, name):
        """The limit of each column."""
        try:
            limits = np.array(getattr(self, name), dtype=float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{name}' should hold numbers. Got {getattr(self, name)!r} instead.") from error
        if limits.ndim and limits.shape != (self.n_features_in_,):
            raise ValueError(
                f"'{name}' should be of shape ({self.n_features_in_},) when an array-like is provided. Got "
                f"{limits.shape}, instead."
            )
        return np.full(self.n_features_in_, limits)

    def _limited(self, filled, missing):
        """Numbers that were filled in within their limits, and 0 in columns without any value that are kept."""
        if is_frame(filled):
            columns = self.estimator_._table.columns
            empty = np.flatnonzero(self._empty) if self.keep_empty_features else []
            numbers = [i for i in empty if columns[i].kind == "numeric"]
            return with_zeros(filled, columns, numbers, missing)
        if holds_words(filled):
            return filled
        values = np.where(self._empty, 0.0, np.clip(filled, self._low, self._high)).astype(filled.dtype)
        return np.where(missing, values, filled)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._nan_is_missing
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _side_by_side(X, kept, flags, names):
    """Some columns of X and the flags, in the container of X."""
    if not is_frame(X):
        return np.hstack([X[:, kept], flags]) if flags.size else X[:, kept]
    library = importlib.import_module(container_of(X))
    columns = {name: X[name] for name in np.asarray(X.columns, dtype=object)[kept]}
    flagged = {name: library.Series(flag) for name, flag in zip(names, flags.T, strict=False)}
    if hasattr(X, "iloc"):
        flagged = {name: flag.set_axis(X.index) for name, flag in flagged.items()}
    return library.DataFrame(columns | flagged)
