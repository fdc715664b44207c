"""VAEOutlierDetector: rows that the model, or the training rows near by, do not account for."""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context, clone
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import _safe_indexing, check_random_state, get_tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ._data.blocks import location_scale
from ._data.containers import holds_words, with_column, without_column
from ._data.input import advice, plain
from ._data.rows import DTYPES, RowSource, parts_of
from ._estimator.inference import as_it_was_if_refused
from ._system.random import subsample
from ._transformer import VAETransformer
from .likelihoods import Gaussian

MAX_ROWS = 10_000  # training rows that neighbours are sought among, and that scores are measured by
WEIGHTS = np.array([0.2, 0.2, 0.4, 0.2])  # of likelihood, code, nearest rows and nearest rows of the ordinary ones
AUTO_OFFSET = -3.0
_ORDINARY = 0.9  # share of the rows; outliers among the others are not each other's neighbours there
_BEST = 0.99  # quantile of the likelihoods from which they are counted: not their maximum, which one row decides
_FARTHEST = 1e100  # standard deviations: the squares are finite


def _unit(parts):
    """Mean of each part over the rows, or 1 where they lack nothing."""
    mean = parts.mean(axis=0)
    return np.where(mean > 0, mean, 1.0)


def _weights(parts):
    """The weights of parts that some rows lack something of, which add up to 1: a table whose rows are all repeated
    lacks no nearest rows."""
    counts = parts.mean(axis=0) > 0
    return WEIGHTS if counts.all() or not counts.any() else WEIGHTS / WEIGHTS[counts].sum()


class _Nearby:
    """Rows that neighbours are sought among."""

    def __init__(self, rows, n_neighbors):
        self.rows = rows
        self.search = NearestNeighbors(n_neighbors=min(n_neighbors + 1, len(rows))).fit(rows)

    def squared_distances(self, x):
        """Mean squared distance of each row of x to the nearest ones other than itself: (n_samples,)."""
        places = self.search.kneighbors(x, return_distance=False)
        # from the differences, so that a row is at zero from itself
        squares = np.sort([np.square(x - self.rows[place]).sum(axis=1) for place in places.T], axis=0)
        if len(squares) == 1:
            return squares[0]
        return np.where(squares[0] == 0, squares[1:].mean(axis=0), squares[:-1].mean(axis=0))


class VAEOutlierDetector(OutlierMixin, BaseEstimator):
    """Outlier detector around a variational autoencoder.

    A row is strange if the model finds it unlikely, if its place in latent space is far from where the prior has its
    mass, or if there are no training rows near it. The first two are what a density knows: they hold up where outliers
    are among the training rows. The third is exact where there are enough rows, and sees gaps that a smooth density
    closes. A row's strangeness is a weighted mean of four shortfalls, each in units of its mean over the training
    rows:

    - its log-likelihood, counted down from the best hundredth of the training rows (a fifth);
    - the squared norm of its code, twice the nats that the normal prior takes off (a fifth);
    - its mean squared distance to the nearest training rows, with all features standardised (two fifths);
    - the same where the tenth of the training rows that is strangest by the first two is left out (a fifth), so that a
      few outliers of one kind do not vouch for each other.

    The score is minus that: about -1 for the average training row, and -3 for a row three times as strange.

    Parameters
    ----------
    estimator : VAETransformer, default=None
        The model, of which a copy is fitted. None is a `VAETransformer` with
        ``likelihood=skvae.likelihoods.Gaussian(noise="feature")``: a noise decoded for each row would account for
        strange rows by a large noise.
    n_neighbors : int, default=5
        Number of nearest training rows whose squared distances are averaged. A row that is itself one of the training
        rows is not its own neighbour. Of more than 10,000 training rows, so many are drawn for this.
    contamination : "auto" or float, default="auto"
        Share of the training rows that are to be called outliers, in (0, 0.5]. "auto" calls rows outliers that are more
        than three times as strange as the average training row.
    random_state : int, RandomState instance or None, default=None
        Decides all that is random in `fit`: the copy of `estimator` gets its seed from it, if it has none of its own.

    Attributes
    ----------
    estimator_ : VAETransformer
        The fitted model.
    offset_ : float
        Score below which a row is an outlier.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during `fit`. Defined only when X has feature names that are all strings.

    See Also
    --------
    VAETransformer : The model; its `score_samples` is the log-likelihood alone, in nats.
    sklearn.ensemble.IsolationForest : Outliers by random splits.
    sklearn.neighbors.LocalOutlierFactor : Outliers by the density of the nearest rows.

    Notes
    -----
    Scores are ratios, not nats; `explain` is in nats.

    References
    ----------
    .. [1] Livernoche, Jain, Hezaveh & Ravanbakhsh (2024). "On diffusion modeling for anomaly detection", section 4:
       neighbours are hard to beat where training rows are clean. ICLR.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAEOutlierDetector, VAETransformer
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False)
    >>> detector = VAEOutlierDetector(vae, random_state=0).fit(X)
    >>> detector.predict(np.vstack([X[0], [5.0, 3.4, 9.0, 0.2]]))
    array([ 1, -1])
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [VAETransformer, None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "random_state": ["random_state"],
    }

    def __init__(self, estimator=None, *, n_neighbors=5, contamination="auto", random_state=None):
        self.estimator = estimator
        self.n_neighbors = n_neighbors
        self.contamination = contamination
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the model to X, and measure its rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data: ordinary rows, or rows with outliers among them.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : VAEOutlierDetector
            The fitted detector.

        Raises
        ------
        ValueError
            Before training, if X or a parameter is not valid; see `VAETransformer.fit` for what happens during it.
        """
        with as_it_was_if_refused(self):
            return self._fit(X)

    def _fit(self, X):
        """`fit`, which may leave things set that an error takes back."""
        X = self._check(X, reset=True)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        self.estimator_ = self._model(seed).fit(X)
        self._center, self._spread = location_scale(self.estimator_._check_X(X))
        some = subsample(len(X), MAX_ROWS, seed)
        rows = X[some] if isinstance(X, RowSource) else _safe_indexing(X, some)
        parts = self._measure(rows)
        self._unit, self._weights = _unit(parts), _weights(parts)
        self.offset_ = self._offset(self._weighed(parts))
        return self

    def score_samples(self, X):
        """Score rows by how ordinary they are: minus their strangeness.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            High is ordinary. The mean over the training rows is about -1.
        """
        X = self._check(X)
        return np.concatenate([self._weighed(self._parts(part)) for part in parts_of(X)])

    def _weighed(self, parts):
        """Scores of rows, given how strange they are in each way (n_samples, n_parts), a sum by row: a product of
        matrices has other last bits for other numbers of rows."""
        return -(np.ascontiguousarray(parts) / self._unit * self._weights).sum(axis=1)

    def decision_function(self, X):
        """`score_samples` less `offset_`: negative for outliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.

        Returns
        -------
        decision : ndarray of shape (n_samples,)
            The shifted scores.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """Tell which rows are outliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to judge.

        Returns
        -------
        is_inlier : ndarray of shape (n_samples,)
            -1 for outliers, 1 for all others.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def explain(self, X):
        """Tell by which columns rows are strange: nats that each row loses by each column.

        For each column: by how many nats the row's log-likelihood would rise if the column held what the model expects
        there, given the row's other columns. A column that fits the others loses about nothing, or less than that; one
        that takes the row out of the training data loses most. Columns share what they lose by not fitting each other,
        so the sum over a row has no meaning of its own. A cell that is missing loses nothing. Each column takes two
        passes through the model, each with the model's `n_draws` draws.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to explain.

        Returns
        -------
        nats : ndarray of shape (n_samples, n_features)
            Nats lost, high is strange.
        """
        X = self._check(X)
        return np.concatenate([self._explained(part) for part in parts_of(X)])

    def _explained(self, X):
        """`explain` of rows that memory holds."""
        if getattr(self.estimator_.likelihood_, "size_factor", None) is not None:
            raise ValueError("explain takes columns away, and a likelihood with size_factor='sum' needs the whole row.")
        score = self.estimator_.score_samples
        known = score(X)
        columns = range(self.n_features_in_)
        filled = (with_column(X, self.estimator_.impute(without_column(X, column)), column) for column in columns)
        gains = np.column_stack([score(rows) - known for rows in filled])
        return np.where(np.isnan(self.estimator_._table.values(X)), 0.0, gains)

    def _measure(self, rows):
        """Set what shortfalls are counted from; those of the training rows."""
        self._best = 0.0
        of_model = self._of_model(rows)
        self._best = np.quantile(of_model[:, 0], 1 - _BEST)
        of_model[:, 0] -= self._best
        strangeness = (of_model / _unit(of_model)).sum(axis=1)
        x, ordinary = self._standardized(rows), strangeness <= np.quantile(strangeness, _ORDINARY)
        self._nearby = [_Nearby(part, self.n_neighbors) for part in (x, x[ordinary])]
        return self._parts(rows)

    def _offset(self, scores):
        if self.contamination == "auto":
            return AUTO_OFFSET
        return float(np.percentile(scores, 100 * self.contamination))

    def _model(self, seed):
        """The model to fit, with a seed."""
        if self.estimator is None:
            return VAETransformer(likelihood=Gaussian(noise="feature"), prior="standard_normal", random_state=seed)
        model = clone(self.estimator)
        return model if model.random_state is not None else model.set_params(random_state=seed)

    def _check(self, X, reset=False):
        """Validated X, as an array with at least two rows in `fit`."""
        if not reset:
            check_is_fitted(self)
        X = plain(X)
        if holds_words(X) or isinstance(X, RowSource):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if reset and len(X) < 2:
                raise ValueError(
                    f"Found array with {len(X)} sample(s) (shape={X.shape}) while a minimum of 2 is required by "
                    "VAEOutlierDetector."
                )
            return X
        finite = "allow-nan" if get_tags(self).input_tags.allow_nan else True
        with advice(X):
            few = 2 if reset else 1
            return validate_data(self, X, reset=reset, dtype=DTYPES, ensure_all_finite=finite, ensure_min_samples=few)

    def _standardized(self, X):
        """X in standard deviations; what is missing stands where the model expects it, or at its column's mean."""
        x = self.estimator_._check_X(X)
        if np.isnan(x).any():
            x = self.estimator_._check_X(self.estimator_.impute(X))
        x = (x - self._center) / self._spread
        return np.clip(np.where(np.isnan(x), 0.0, x), -_FARTHEST, _FARTHEST)

    def _of_model(self, X):
        """Shortfall of the log-likelihood, in nats, and squared norm of the code: (n_samples, 2)."""
        nats = -self.estimator_.score_samples(X) - self._best
        codes = np.asarray(self.estimator_.transform(X), dtype=np.float64)
        return np.column_stack([nats, np.square(codes).sum(axis=1)])

    def _parts(self, X):
        """All four shortfalls of each row, in units of their own: (n_samples, 4)."""
        x = self._standardized(X)
        return np.column_stack([self._of_model(X), *(nearby.squared_distances(x) for nearby in self._nearby)])

    def __sklearn_is_fitted__(self):
        return hasattr(self, "offset_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        is_model = isinstance(self.estimator, VAETransformer)  # a repr asks too, before `fit` refuses others
        model = get_tags(self.estimator if is_model else VAETransformer()).input_tags
        tags.input_tags.allow_nan = model.allow_nan
        tags.input_tags.sparse = model.sparse
        tags.input_tags.positive_only = model.positive_only
        return tags
