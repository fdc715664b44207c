"""Rows that a fitted model makes of latent points and of rows with holes: means, draws and imputations."""

from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state, check_scalar
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from .._data.cells import kind_of
from .._data.containers import cells_of, is_frame
from .._data.holes import rows_with_holes
from .._data.input import advice, plain
from .._data.rows import RowSource, header_of
from .._model.aggregate import draw_latents
from .._system.program import own_settings
from .._system.random import generator
from .pipelines import split

_PARTICLES = 20  # for each draw given the same cells


def _as_many(values, n_wanted, name, n_samples=None):
    """`values` of one row, or of as many as there are to be, as that many."""
    n_samples = n_wanted if n_samples is None else n_samples
    if len(values) not in (1, n_samples):
        raise ValueError(f"`{name}` must have one row, or {n_samples} rows as are asked for. Got {len(values)}.")
    return np.repeat(values, n_wanted, axis=0) if len(values) < n_wanted else values


def stream_of(random_state):
    """An own stream, from scikit-learn's."""
    return generator(int(check_random_state(random_state).randint(np.iinfo(np.int32).max)))


class GenerationMixin:
    """`inverse_transform`, `sample` and `impute` for an estimator with a fitted `net_`."""

    # `conditions` is an argument to pass, and not metadata that a pipeline routes
    __metadata_request__inverse_transform: ClassVar[dict] = {"conditions": UNUSED}

    @own_settings()
    def inverse_transform(self, X, *, conditions=None):
        """Map latent coordinates back to features: E[x | z].

        Parameters
        ----------
        X : array-like of shape (n_samples, z_dim)
            Latent coordinates.
        conditions : DataFrame, dict or array-like, default=None
            The columns that are `condition_features`, of one row or of as many as X has: what the rows would be under
            these. None takes typical ones.

        Returns
        -------
        X_original : ndarray or DataFrame of shape (n_samples, n_features)
            Means of p(x | z) in the units of X, as `fit` was given it: a DataFrame with its columns and dtypes (whole
            numbers rounded, categories the most probable ones), or an array, float32 if that was float32, else float64.
        """
        check_is_fitted(self)
        X = plain(X)
        with advice(X):
            X = check_array(X, dtype=np.float32, input_name="X", estimator=self)
        if X.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__}.inverse_transform is expecting "
                f"{self._n_features_out} features as input."
            )
        model = self._fitted
        return model.expectation(X, self._conditions(conditions, len(X)))

    @own_settings()
    def sample(self, n_samples=1, *, given=None, noise=False, latents="prior", random_state=None):
        """Draw rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        given : DataFrame, dict or array-like, default=None
            Cells that the rows are to have: some of the columns (a dict by their names, or by their places in an array,
            or an array with NaN elsewhere), of one row or of `n_samples`. The other cells are drawn given these, by
            sampling and resampling, whatever `noise` and `latents` are. `condition_features` that are not given are
            those of training rows.
        noise : bool, default=False
            Whether to draw x from p(x | z), as the model has it, or return E[x | z].
        latents : {"prior", "aggregate"}, default="prior"
            Where z is drawn from: the prior, as the model has it, or `aggregate_`, a Gaussian mixture fitted to the
            training rows' latent points (Ghosh et al., 2020), which keeps out of parts of the prior without rows.
        random_state : int, RandomState instance or None, default=None
            Source of the draws. None takes numpy's global stream.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_samples, n_features)
            Rows in the units of X, as `fit` was given them: a DataFrame with its columns and dtypes, or an array,
            float32 if that was float32, else float64.

        Raises
        ------
        ValueError
            If `given` has columns or categories that `fit` has not seen, or another number of rows.
        """
        check_is_fitted(self)
        n_samples = int(check_scalar(n_samples, "n_samples", Integral))
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        if latents not in ("prior", "aggregate"):
            raise ValueError(f"latents must be 'prior' or 'aggregate'. Got {latents!r} instead.")
        random_state = check_random_state(random_state)
        rng, model = stream_of(random_state), self._fitted
        if given is not None:
            return self._sample_given(given, n_samples, rng, random_state)
        if latents == "aggregate":
            z = draw_latents(self.aggregate_, n_samples, random_state)
        else:
            with torch.no_grad():
                z = model.vae.prior.sample(n_samples, rng).cpu().numpy()
        context = self._any_conditions(n_samples, random_state)
        if not noise:
            return model.expectation(z, context)
        return model.decode(lambda z, *given: model.vae.sample(z, rng, *given), z, context)

    @own_settings()
    def impute(self, X, *, sample=False, n_draws=None, random_state=None):
        """Fill missing cells by what the model makes of the observed ones.

        The posterior of z given the observed cells is explored with `n_draws` importance-weighted draws (the
        estimator's parameter), and as many of the prior, as in `score_samples` [1]_. Where a row is to be drawn, its
        draws of z are its own.

        Draws of real values are calibrated [2]_ where `fit` judged by rows with missing cells: their distances from the
        mean are multiplied by the factor with which 90 % intervals cover 90 % of further cells hidden in these rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in which NaN stands for a missing cell. Any columns may be missing, whatever was missing in `fit`.
        sample : bool, default=False
            Whether to draw from p(missing | observed), or return the mean.
        n_draws : int, default=None
            With ``sample=True``, number of draws of each cell. None draws once, and leaves the first dimension out.
        random_state : int, RandomState instance or None, default=None
            Source of the draws. None takes numpy's global stream.

        Returns
        -------
        X_imputed : ndarray or DataFrame of shape (n_samples, n_features)
            As X is; observed cells are as they were. With `n_draws` an array (n_draws, n_samples, n_features), or a
            list of frames. Missing categories are the most probable ones, or draws of them.

        References
        ----------
        .. [1] Mattei & Frellsen (2019). "MIWAE: deep generative modelling and imputation of incomplete data sets",
           section 4. ICML.
        .. [2] Romano, Patterson & Candes (2019). "Conformalized quantile regression". NeurIPS.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> X = load_iris().data
        >>> X[::3, 2] = np.nan
        >>> vae = VAETransformer(z_dim=2, max_iter=20, random_state=0).fit(X)
        >>> vae.impute(X).shape
        (150, 4)
        >>> vae.impute(X, sample=True, n_draws=5, random_state=0).shape
        (5, 150, 4)
        """
        if n_draws is not None and (not sample or not isinstance(n_draws, Integral) or n_draws < 1):
            raise ValueError(f"n_draws is the number of draws with sample=True, at least 1. Got {n_draws!r} instead.")
        rng = stream_of(random_state) if sample else None
        filled = self._filled(X, int(n_draws or 1) if sample else None, rng)
        if n_draws is None:
            return filled[0]
        return np.stack(filled) if isinstance(filled[0], np.ndarray) else filled

    def _draws_given(self, features, n_draws, rng):
        """Draws of rows with holes, whole: (n_draws, n_samples, n_features)."""
        n_particles = max(int(self.n_draws), min(_PARTICLES * n_draws, 20_000))
        drawn = self._fitted.draws_given(features, n_particles, n_draws, rng)
        return np.where(np.isnan(features), drawn, features)

    def _conditions(self, conditions, n_samples):
        """Return the conditions of that many rows, in the units of X: (n_samples, n_context), or None."""
        table, n = self._table, self._fitted.vae.n_context
        if conditions is not None and not n:
            raise ValueError("`conditions` are for a model with condition_features, and this one has none.")
        if not n:
            return None
        if isinstance(conditions, dict):
            table.check_given(conditions)
        values = table.partial({} if conditions is None else conditions, "conditions")
        features = table.features(table.of_known(_as_many(values, n_samples, "conditions")))[0][:, -n:]
        self._fitted.check_context(features)
        return self._typical(features)

    def _any_conditions(self, n_samples, random_state):
        """Draw the conditions of that many training rows, or None."""
        known = self._table.conditions
        if known is None:
            return None
        drawn = known[random_state.randint(len(known), size=n_samples)]
        for some in self._table.conditions_by_column:
            there, holes = known[~np.isnan(known[:, some.start]), some], np.isnan(drawn[:, some.start])
            if holes.any() and len(there):
                drawn[holes, some] = there[random_state.randint(len(there), size=holes.sum())]
        return self._typical(drawn)

    def _typical(self, conditions):
        """The conditions with means in the place of missing ones."""
        return np.where(np.isnan(conditions), self._fitted.offset[-conditions.shape[1] :], conditions)

    def _sample_given(self, given, n_samples, rng, random_state):
        """Draws of what is not given, beside what is, in the container of X."""
        values = self._table.partial(given)
        context = self._any_conditions(n_samples, random_state)
        values = _as_many(values, n_samples if context is not None else len(values), "given", n_samples)
        features, _ = self._table.features(self._table.of_known(values))
        features = self._check_values(features, self.likelihood_, self._table.n_context)
        if context is not None:
            own = features[:, -context.shape[1] :]
            own[...] = np.where(np.isnan(own), context, own)
        if len(values) == n_samples:
            found = self._draws_given(features, 1, rng)[0]
        else:
            found = self._draws_given(features, n_samples, rng)[:, 0]
        drawn = self._table.values_of(found, drawn=True)
        return self._table.compose(np.where(np.isnan(values), drawn, values))

    def _filled(self, X, n_draws, rng):
        """X without holes, in its container: expected, in a list of one, or a list of that many draws."""
        header, X = header_of(X), plain(X)
        if not isinstance(X, RowSource):
            return self._filled_part(X, header, n_draws, rng)
        found = [self._filled_part(part, header, n_draws, rng) for part in X.parts()]
        return [np.concatenate(same) for same in zip(*found, strict=True)]

    def _filled_part(self, X, header, n_draws, rng):
        """The same for rows that memory holds."""
        features, table = self._check_X(X, header), self._table
        holes = rows_with_holes(features)
        own = X if table.is_plain and kind_of(X) in set("biuf") else table.values(X)
        versions = np.repeat(table.values_of(features, n_draws is not None)[np.newaxis], n_draws or 1, axis=0)
        if holes.any():
            versions[:, holes] = self._values_given(features[holes], n_draws, rng)
        return [table.filled(X, own, values) for values in versions]

    def _values_given(self, features, n_draws, rng):
        """Values of rows with holes: expected ones (n_samples, n_columns), or that many draws of them."""
        if n_draws is None:
            return self._fitted.values_given(features, self.n_draws)
        return [self._table.values_of(one, drawn=True) for one in self._draws_given(features, n_draws, rng)]


def table_of(estimator, X):
    """The table that X is one of: the estimator's, or that of a pipeline's last step if the frame X has its columns."""
    steps = estimator if isinstance(estimator, Pipeline) else [estimator]
    table = getattr(steps[-1], "_table", None)
    if len(steps) == 1 or table is None:
        return table
    names = [name for name, _ in cells_of(X)] if is_frame(X) else None
    return table if names == [column.name for column in table.columns] else None


def as_numbers(estimator, X):
    """Rows as an array: of a frame's categories their places, of its dates days."""
    if not is_frame(X):
        return np.asarray(X)
    table = table_of(estimator, X)
    return np.asarray(X, dtype=np.float64) if table is None else table.values(X)


def reconstructed(estimator, X):
    """E[x | z] at the posterior mean of each row, under the row's own conditions, and which columns are modelled."""
    if isinstance(estimator, Pipeline) and hasattr(estimator[-1], "_table"):
        before, vae = split(estimator)
        means, modelled = reconstructed(vae, before.transform(X))
        rows = before.inverse_transform(means)
        return rows, modelled if np.shape(rows)[1] == np.shape(means)[1] else slice(None)
    Z, table = np.asarray(estimator.transform(X)), table_of(estimator, X)
    if table is None or not table.n_context:
        return estimator.inverse_transform(Z), slice(None)
    with own_settings():
        given = estimator._check_X(X)[:, -table.n_context :]  # unknown categories are missing, as in `score`
        means = estimator._fitted.expectation(Z.astype(np.float32, copy=False), estimator._typical(given))
    return means, [not column.given for column in table.columns]
