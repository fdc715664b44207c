"""Monotone marginals: a numeric column to normal scores and back (quantile transformation), with the Jacobian."""

import numpy as np
from scipy.stats import norm

_MAX_KNOTS, _ROWS_PER_KNOT = 400, 10
_LEAST_SLOPE = 5e-6  # interquartile ranges for each unit of the score, at least: ties are no singularity
ROUNDING = 6e-8  # of a number that comes as float32
_FARTHEST = 1e38  # score that float32 holds
_WIDTHS = (0.25, 0.75), (0.05, 0.95), (0, 1)  # quantiles between which there may be one


def fit_knots(values):
    """Knots of the map from observed values (n,) to their normal scores, as ``(values, scores)``, both increasing."""
    n = len(values)
    n_knots = int(np.clip(n // _ROWS_PER_KNOT, 4, _MAX_KNOTS))
    scores = np.linspace(*norm.ppf([0.5 / n, 1 - 0.5 / n]), n_knots)
    knots = np.quantile(values, norm.cdf(scores))
    knots[[0, -1]] = values.min(), values.max()
    return _apart(knots, _LEAST_SLOPE * _width(values) * np.diff(scores)), scores


def _width(values):
    """The interquartile range, or where half of the values are tied a wider one; a far value has no say in it."""
    widths = np.diff(np.quantile(values, _WIDTHS))[:, 0]
    return next((width for width in widths if width > 0), np.finfo(float).tiny)


def _apart(knots, steps):
    """The knots, moved up where they are less than `steps`, or a few roundings, apart."""
    least = np.concatenate([[0.0], np.cumsum(np.maximum(steps, 4 * np.spacing(np.abs(knots[1:]))))])
    return np.maximum.accumulate(knots - least) + least


def to_scores(values, knots, scores):
    """Normal scores of values, and the logarithm of the map's slope there; NaN and 0 where there is no value. Beyond
    the knots the map goes on as a straight line."""
    place = np.clip(np.searchsorted(knots, values, side="right") - 1, 0, len(knots) - 2)
    slope = np.diff(scores) / np.diff(knots)
    low, high = knots[[0, -1]] + ROUNDING * np.abs(knots[[0, -1]]) * [-1, 1]
    beyond = (values < low) | (values > high)  # the largest one as float32 is not
    end = np.clip(values, knots[0], knots[-1])
    tail = (scores[-1] - scores[0]) / (knots[-1] - knots[0])
    inside = scores[place] + (end - knots[place]) * slope[place]
    outside = np.clip((values - end) * tail, -_FARTHEST, _FARTHEST)
    log_slope = np.log(np.where(beyond, tail, slope[place]))
    return inside + outside, np.where(np.isnan(values), 0.0, log_slope)


def from_scores(z, knots, scores):
    """Values of normal scores, within the range of the knots."""
    return np.interp(z, scores, knots)
