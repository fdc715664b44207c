"""A column of the user's table: how its cells become features, and features cells again."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .marginals import ROUNDING, fit_knots, from_scores, to_scores

MAX_LEVELS = 255  # of a category, as in HistGradientBoosting
_ORDINAL_SHARE = 0.1  # of the rows: fewer distinct numbers than that are levels
_SPIKE_SHARE, _LEAST_SPIKE = 0.05, 2  # of the rows, and rows: a number that more of them share is flagged


@dataclass(eq=False)
class Column:
    """A column of the table.

    Parameters
    ----------
    name : str or int
        Its name, or its place in an array.
    dtype : str
        As the container calls it.
    kind : {"numeric", "categorical", "date"}
        What its cells are.
    levels : list, default=None
        Categories, or distinct numbers, in order.
    marginal : {"standardize", "quantile", "ordinal", "spike", "categorical"} or None, default=None
        How its cells become features.
    spike : float, default=None
        The number that is flagged.
    knots, scores : ndarray, default=None
        Of the quantile transformation.
    whole : bool, default=False
        Whether all numbers seen are whole.
    low, high : float
        The range seen.
    likelihood : str or Likelihood, default=None
        What the user wants for it.
    ordered : bool, default=False
        Whether a pandas category has an order.
    level_dtype : str, default=None
        Of the categories of a pandas category.
    given : bool, default=False
        Whether it is given and not modelled.
    is_empty : bool, default=False
        Whether it has had no value so far: nothing is known of it, and later values count as missing.
    """

    name: Any
    dtype: str
    kind: str
    levels: list | None = None
    marginal: str | None = None
    spike: float | None = None
    knots: Any = None
    scores: Any = None
    whole: bool = False
    low: float = 0.0
    high: float = 0.0
    likelihood: Any = None
    ordered: bool = False
    level_dtype: str | None = None
    given: bool = False
    is_empty: bool = False

    @property
    def n_features(self):
        """Number of the model's features that the column becomes."""
        return {"categorical": len(self.levels or ()), "spike": 2}.get(self.marginal, 1)

    def look_at(self, values, marginal):
        """Take note of the range of the column's values (n_samples,), and choose how they become features."""
        seen = values[~np.isnan(values)]
        if self.kind == "categorical":
            self.marginal = "categorical"
            return
        if len(seen):
            self.low, self.high, self.whole = np.inf, -np.inf, True
            self.widen(seen)
        self.marginal = "standardize" if self.likelihood is not None or self.given or len(seen) < 2 else marginal
        if self.marginal == "quantile":
            self._choose(seen)

    def widen(self, seen):
        """Take these values into the range."""
        self.low, self.high = min(self.low, float(seen.min())), max(self.high, float(seen.max()))
        self.whole = self.whole and bool((seen == np.round(seen)).all())

    def _choose(self, seen):
        levels, counts = np.unique(seen, return_counts=True)
        if len(levels) <= max(2, min(MAX_LEVELS, _ORDINAL_SHARE * len(seen))):
            self.marginal, self.levels = "ordinal", levels.tolist()
            return
        if counts.max() > max(_LEAST_SPIKE, _SPIKE_SHARE * len(seen)):
            self.marginal, self.spike = "spike", float(levels[counts.argmax()])
            seen = seen[seen != self.spike]
        self.knots, self.scores = fit_knots(seen)

    def encode(self, values):
        """Features of the column's values, and the nats that they gain by the map, the logarithm of its slope or what
        a number between or beyond the levels loses: (n_samples, n_features) and (n_samples,) or 0."""
        if self.marginal == "standardize":
            return values[:, None], 0.0
        holes = np.isnan(values)
        if self.marginal == "ordinal":
            places = _nearest(self.levels, values)
            return np.where(holes, np.nan, places)[:, None], -_loss(self.levels, places, values)
        if self.marginal == "categorical":
            features = np.eye(len(self.levels))[np.where(holes, 0, values).astype(int)]
            features[holes] = np.nan
            return features, 0.0
        if self.marginal == "quantile":
            scores, log_slope = to_scores(values, self.knots, self.scores)
            return scores[:, None], log_slope
        flag = np.where(holes, np.nan, np.isclose(values, self.spike, rtol=ROUNDING, atol=0))
        scores, log_slope = to_scores(np.where(flag == 1, np.nan, values), self.knots, self.scores)
        return np.column_stack([scores, flag]), log_slope

    @property
    def is_curved(self):
        """True if its values are no straight line of its features, whose mean is then not that of the values."""
        return self.marginal in ("quantile", "spike", "ordinal") and not self.given

    def mean_of(self, nodes):
        """Mean values (n_samples,) over nodes of the features, of which a flag is the chance of the spike."""
        values = [self._values_of(features, with_chances=True) for features in nodes]
        return self.rounded(np.stack(values, axis=1).mean(axis=1), drawn=False)  # the same sum for any number of rows

    def decode(self, features, drawn):
        """Values (n_samples,) of features, as the model draws or expects them."""
        return self.rounded(self._values_of(features), drawn)

    def _values_of(self, features, with_chances=False):
        if self.marginal == "standardize":
            values = features[:, 0]
        elif self.marginal == "ordinal":
            levels = np.asarray(self.levels)
            values = np.interp(features[:, 0], np.arange(len(levels)), levels)
        elif self.marginal == "categorical":
            values = features.argmax(axis=1).astype(float)
        else:
            values = from_scores(features[:, 0], self.knots, self.scores)
            if self.marginal == "spike":
                flag = np.clip(features[:, 1], 0, 1)
                mixed = flag * self.spike + (1 - flag) * values
                values = mixed if with_chances else np.where(flag > 0.5, self.spike, values)
        return values

    def rounded(self, values, drawn):
        """Draws of whole numbers whole and in their range, and what has to be whole; dates to the second."""
        is_whole = self.whole and (drawn or "int" in self.dtype.lower() or self.kind == "date")
        if self.kind == "categorical" or not (is_whole or self.kind == "date"):
            return values
        unit = 1 if is_whole else 86_400
        values = np.round(values * unit) / unit
        return values if self.given else np.clip(values, self.low, self.high)

    def cells(self, values):
        """Return cells: categories, with None for missing ones, or numbers as they are."""
        if self.kind == "categorical":
            return [None if np.isnan(value) else self.levels[int(value)] for value in values]
        return values.tolist()


def _nearest(levels, values):
    """Return the indices of the nearest levels."""
    levels = np.asarray(levels)
    place = np.clip(np.searchsorted(levels, np.nan_to_num(values)), 1, max(1, len(levels) - 1))
    if len(levels) == 1:
        return np.zeros(len(values))
    return place - (values - levels[place - 1] <= levels[place] - values)


def _loss(levels, places, values):
    """Nats that values lose for their distance to the levels they are taken for: ``log(1 + steps)``, as many as the
    least distance of levels fits into it, and what a normal distribution as wide as the levels would lose."""
    levels = np.asarray(levels)
    distance = np.abs(np.nan_to_num(values - levels[places.astype(int)]))
    step, width = (np.diff(levels).min(), levels.std()) if len(levels) > 1 else (1.0, 1.0)
    with np.errstate(over="ignore"):  # of a value so far away that nothing is as unlikely
        return np.log1p(distance / step) + 0.5 * (distance / width) ** 2
