"""Monotone marginals: a numeric column to normal scores and back (quantile transformation), with the Jacobian."""

import numpy as np
from scipy.stats import norm

_MAX_KNOTS, _ROWS_PER_KNOT = 400, 10
_LEAST_SLOPE = 1e-6  # of a score, in units of the range for each unit of the score: ties are no singularity


def fit_knots(values):
    """Knots of the map from observed values (n,) to their normal scores, as ``(values, scores)``, both increasing."""
    n = len(values)
    n_knots = int(np.clip(n // _ROWS_PER_KNOT, 4, _MAX_KNOTS))
    scores = np.linspace(*norm.ppf([0.5 / n, 1 - 0.5 / n]), n_knots)
    knots = np.quantile(values, norm.cdf(scores))
    knots[[0, -1]] = values.min(), values.max()
    span = max(knots[-1] - knots[0], np.finfo(float).tiny)
    return knots + _LEAST_SLOPE * span * (scores - scores[0]), scores


def to_scores(values, knots, scores):
    """Normal scores of values, and the logarithm of the map's slope there; NaN and 0 where there is no value. Beyond
    the knots the map goes on as a straight line."""
    place = np.clip(np.searchsorted(knots, values, side="right") - 1, 0, len(knots) - 2)
    slope = np.diff(scores) / np.diff(knots)
    beyond = (values < knots[0]) | (values > knots[-1])
    end = np.clip(values, knots[0], knots[-1])
    tail = (scores[-1] - scores[0]) / (knots[-1] - knots[0])
    inside = scores[place] + (end - knots[place]) * slope[place]
    log_slope = np.log(np.where(beyond, tail, slope[place]))
    return inside + (values - end) * tail, np.where(np.isnan(values), 0.0, log_slope)


def from_scores(z, knots, scores):
    """Values of normal scores, within the range of the knots."""
    return np.interp(z, scores, knots)
