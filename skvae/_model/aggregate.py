"""The aggregate posterior: the density of the training rows' latent points, as a Gaussian mixture of scikit-learn."""

import copy

import numpy as np
from sklearn import config_context
from sklearn.mixture import GaussianMixture

from .._system.random import AGGREGATE_STREAM

_MIN_DRAWS, _MAX_DRAWS = 1_000, 5_000
_MAX_COMPONENTS = 10  # as many as Ghosh et al. (2020) take
_ROWS_PER_UNIT = 10  # in a component, at least


def posterior_draws(mean, std, seed, n_rows=None):
    """Return what `fit_aggregate` takes: draws of the posteriors N(mean, std^2), both (n_samples, z_dim), and how many
    components the mixture is to have. The rows may be some of `n_rows`."""
    z_dim, n_rows = mean.shape[1], n_rows or len(mean)
    rng = np.random.default_rng([seed, AGGREGATE_STREAM])
    n_draws = min(max(n_rows, _MIN_DRAWS), _MAX_DRAWS)
    rows = np.resize(rng.permutation(len(mean)), n_draws)  # few rows: several draws each
    draws = mean[rows] + std[rows] * rng.standard_normal((len(rows), z_dim))
    n_components = np.clip(n_rows // (_ROWS_PER_UNIT * z_dim), 1, _MAX_COMPONENTS)
    return {"draws": draws.astype(np.float32), "n_components": np.array(n_components)}


def fit_aggregate(draws, n_components, seed):
    """The mixture fitted to such draws."""
    draws = draws.astype(np.float64)
    options = {"init_params": "k-means++", "tol": 1e-2, "max_iter": 1000, "random_state": seed}
    floor = 1e-4 * max(1.0, draws.var(axis=0).max())  # of a variance; latent points may lie anywhere
    with config_context(array_api_dispatch=False):  # whose mixtures lack this initialisation
        return GaussianMixture(int(n_components), reg_covar=floor, **options).fit(draws)


def to_arrays(mixture):
    """Return the mixture's parameters as plain arrays: a fitted estimator is kept in files without code."""
    return {name: getattr(mixture, name) for name in ("weights_", "means_", "covariances_", "precisions_cholesky_")}


def from_arrays(arrays):
    mixture = GaussianMixture(len(arrays["weights_"]))
    vars(mixture).update(arrays, converged_=True, n_features_in_=arrays["means_"].shape[1])
    return mixture


def draw_latents(mixture, n, random_state):
    """`n` points from the mixture, in random order: (n, z_dim), float32."""
    points, _ = copy.copy(mixture).set_params(random_state=random_state).sample(n)
    return random_state.permutation(points).astype(np.float32)
