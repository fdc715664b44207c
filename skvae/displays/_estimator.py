"""Numbers of a fitted estimator for the displays."""

import math
from itertools import combinations
from numbers import Integral

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from sklearn.pipeline import Pipeline
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_is_fitted, validate_data

from .._data.containers import is_frame
from .._data.input import plain
from .._data.rows import RowSource
from .._estimator.generation import as_numbers
from .._system.program import own_settings
from ..priors import StandardNormal

_MAX_PANELS = 64
_PRIOR_DRAWS = 100_000


def select(estimator, image_shape, features):
    """Columns of X to show and their names: all and None for images, those of `features` for a table."""
    check_is_fitted(estimator)
    n_features = _n_features_of(estimator)
    if image_shape is not None:
        _check_image_shape(image_shape, n_features)
        return slice(None), None
    names = list(getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(n_features)]))
    columns = range(n_features) if features is None else [_column(feature, names) for feature in features]
    if not 1 <= len(columns) <= _MAX_PANELS:
        raise ValueError(
            f"A table is drawn with a panel for each of 1 to {_MAX_PANELS} features. Got {len(columns)} features: name "
            "fewer in `features`, or give `image_shape` if rows are images."
        )
    return list(columns), [names[column] for column in columns]


def check_count(value, name):
    """Refuse what is no number of things to draw."""
    check_scalar(value, name, Integral, min_val=1)


def _n_features_of(estimator):
    """The number of features that a pipeline takes, whose own property asks the first step, which may pass them on."""
    if isinstance(estimator, Pipeline):
        estimator = next(step for _, step in estimator.steps if step not in ("passthrough", None))
    return estimator.n_features_in_


def _check_image_shape(image_shape, n_features):
    if np.shape(image_shape) not in ((2,), (3,)) or (len(image_shape) == 3 and image_shape[2] not in (1, 3)):
        raise ValueError(
            f"image_shape must be (height, width) or (height, width, channels) with 1 or 3 channels. Got {image_shape}."
        )
    if math.prod(image_shape) != n_features:
        raise ValueError(
            f"image_shape={tuple(image_shape)} has {math.prod(image_shape)} values, but X has {n_features} features."
        )


def _column(feature, names):
    if feature in names:
        return names.index(feature)
    if isinstance(feature, Integral) and not isinstance(feature, bool) and 0 <= feature < len(names):
        return int(feature)
    raise ValueError(f"features must hold names of features or numbers below {len(names)}. Got {feature!r}.")


def leading_units(vae, n_units, active_only=False):
    """The units with the largest KL, largest first."""
    units = np.argsort(-vae.kl_per_unit_, kind="stable")
    return units[vae.active_units_[units]][:n_units] if active_only else units[:n_units]


def check_units(units, vae):
    units, z_dim = np.asarray(units), len(vae.kl_per_unit_)
    if units.ndim != 1 or units.dtype.kind not in "iu" or not np.isin(units, range(z_dim)).all():
        raise ValueError(f"units must be a list of int below z_dim={z_dim}. Got {units.tolist()}.")
    return units


def validated(estimator, X):
    """X as an array of numbers, with the features that the estimator was fitted to."""
    if is_frame(X):
        validate_data(estimator, X, reset=False, skip_check_array=True)
        return as_numbers(estimator, X)
    X = plain(X)
    if isinstance(X, RowSource):
        raise ValueError("A display holds all rows: pass some of them, as X[:1000].")
    return validate_data(estimator, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan")


def aggregate(vae, X):
    """Mean and standard deviation of each unit under the aggregate posterior of X: the mixture over its rows."""
    mean, std = vae.posterior(X)
    return mean.mean(axis=0), np.sqrt(mean.var(axis=0) + (std**2).mean(axis=0))


def decode(estimator, Z):
    """E[x | z] for latent points of any leading shape."""
    rows = estimator.inverse_transform(Z.reshape(-1, Z.shape[-1]))
    return as_numbers(estimator, rows).reshape(*Z.shape[:-1], -1)


@own_settings()
def _prior_draws(prior):
    with torch.no_grad():
        return prior.sample(_PRIOR_DRAWS, torch.Generator().manual_seed(0)).cpu().numpy()


def prior_quantiles(prior, probabilities):
    """Quantiles of two units under the prior, exact for the normal one: (n_probabilities, 2)."""
    if isinstance(prior, StandardNormal):
        return np.stack([norm.ppf(probabilities)] * 2, axis=1)
    return np.quantile(_prior_draws(prior), probabilities, axis=0)


def prior_density(prior, units):
    """Density under the prior of each pair of `units`: both coordinates, values (n_second, n_first); by their places.

    It is exact for the normal prior. Others have no marginals in closed form: theirs come from draws.
    """
    pairs = combinations(range(len(units)), 2)
    if isinstance(prior, StandardNormal):
        grid = np.linspace(-4.5, 4.5, 181)
        return dict.fromkeys(pairs, (grid, grid, norm.pdf(grid)[:, None] * norm.pdf(grid)))
    draws = _prior_draws(prior)[:, units]
    return {pair: _smooth_histogram(draws[:, pair]) for pair in pairs}


def _smooth_histogram(points):
    inside = np.quantile(points, [0.001, 0.999], axis=0).T  # heavy tails would leave few bins for the rest
    counts, *edges = np.histogram2d(*points.T, bins=100, range=inside, density=True)
    x, y = ((edge[1:] + edge[:-1]) / 2 for edge in edges)
    return x, y, gaussian_filter(counts.T, 2)


def density_levels(density, probabilities):
    """Densities at the rim of the smallest regions that hold the given probabilities, ascending."""
    values = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(values) / values.sum()
    return values[np.searchsorted(mass, np.sort(probabilities)[::-1])]
