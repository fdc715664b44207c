"""What a fitted model has learned: functions of a `VAETransformer` and rows of X, in nats per row where not said else.

Of a pipeline that ends in one they tell about its last step, and in the units that this gets X in. All are
deterministic: those that draw take a `random_state`, 0 by default.
"""

import copy
import math
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import mean_squared_error
from sklearn.utils import check_array, check_random_state, check_scalar

from ._data.batch import Batch
from ._data.blocks import chunk_sizes, scaled
from ._data.containers import is_frame
from ._data.holes import without_holes
from ._data.input import plain
from ._data.rows import MAX_HELD, RowSource, parts_of
from ._data.split import Rows
from ._estimator.generation import as_numbers, reconstructed, stream_of, table_of
from ._estimator.pipelines import last_step
from ._model.module import MODERATE
from ._model.refine import Refined, draws_with
from ._system.device import widest
from ._system.program import own_settings
from ._system.random import generator, subsample
from .priors import mixture_log_prob

__all__ = [
    "active_units",
    "column_gains",
    "frechet_distance",
    "kl_per_unit",
    "kl_split",
    "log_likelihood",
    "reconstruction_error",
]


class Estimate(NamedTuple):
    """A Monte-Carlo estimate with its standard error.

    Parameters
    ----------
    value : float
        The estimate.
    standard_error : float
        Its standard deviation over repetitions with other draws.
    """

    value: float
    standard_error: float


class KLSplit(NamedTuple):
    """The KL term in two parts: ``kl = mutual_information + marginal_kl``.

    Parameters
    ----------
    kl : float
        Mean KL divergence of the rows' posteriors from the prior, in nats per row.
    mutual_information : float
        What z says about which of the rows it came from.
    marginal_kl : float
        KL divergence of the aggregate posterior from the prior.
    """

    kl: float
    mutual_information: float
    marginal_kl: float


@own_settings()
def kl_per_unit(estimator, X):
    """Mean KL divergence of each latent unit's posterior from the prior.

    For a prior other than the standard normal, from the normal distribution with the prior's mean and variance in that
    unit: a sum over units is the KL term only where the prior's units are independent. Near 0, the unit says nothing
    about x.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        A fitted model, or a pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
        Rows, as a rule the training or test data.

    Returns
    -------
    kl : ndarray of shape (z_dim,)
        In nats.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import kl_per_unit
    >>> X = load_iris().data
    >>> vae = VAETransformer(z_dim=2, max_iter=20, random_state=0).fit(X)
    >>> kl_per_unit(vae, X).shape
    (2,)
    """
    estimator, X = last_step(estimator, X)
    mean, std = map(torch.from_numpy, estimator.posterior(X))
    with torch.no_grad():
        return estimator.module_.prior.kl_per_unit(mean, std.log()).numpy().mean(axis=0)


@own_settings()
def active_units(estimator, X, *, threshold=0.01):
    """Which latent units move with x: the variance of E[z | x] over the rows exceeds a share of the prior's variance.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        A fitted model, or a pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
        Rows, as a rule the training or test data.
    threshold : float, default=0.01
        Share of the prior's variance in that unit.

    Returns
    -------
    active : ndarray of shape (z_dim,), dtype bool
        Whether the unit is active; ``active.sum()`` is the number of active units.

    References
    ----------
    Burda, Grosse & Salakhutdinov (2016). "Importance weighted autoencoders", section 5.2. ICLR.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import active_units
    >>> X = load_iris().data
    >>> vae = VAETransformer(z_dim=2, max_iter=20, random_state=0).fit(X)
    >>> int(active_units(vae, X).sum())
    2
    """
    estimator, X = last_step(estimator, X)
    if not threshold >= 0:
        raise ValueError(f"threshold must be a share of the variance, at least 0. Got {threshold!r}.")
    mean, _ = map(torch.from_numpy, estimator.posterior(X))
    with torch.no_grad():
        return estimator.module_.prior.active_units(mean, threshold).numpy()


@own_settings()
def kl_split(estimator, X, *, n_draws=10, random_state=0):
    """The mean KL term as the mutual information of x and z, and the KL of the aggregate posterior from the prior.

    ``mean of KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || p(z))``, where q(z) is the mean of the rows' posteriors: the
    first part is what the latent space says about which of the rows it is, `log(n_samples)` at most, the second what
    keeps samples of the prior from looking like the data [1]_.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        A fitted model, or a pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
        Rows, as a rule some thousand of the training or test data: time grows with their square.
    n_draws : int, default=10
        Posterior draws per row.
    random_state : int, RandomState instance or None, default=0
        Decides the draws.

    Returns
    -------
    split : KLSplit
        Named tuple of the three, in nats per row. The parts are estimates and add up to `kl`.

    References
    ----------
    .. [1] Hoffman & Johnson (2016). "ELBO surgery: yet another way to carve up the variational evidence lower bound",
       section 2. NeurIPS workshop on advances in approximate Bayesian inference.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import kl_split
    >>> X = load_iris().data
    >>> vae = VAETransformer(z_dim=2, max_iter=20, random_state=0).fit(X)
    >>> split = kl_split(vae, X)
    >>> 0 < split.marginal_kl < split.mutual_information < split.kl
    True
    """
    estimator, X = last_step(estimator, X)
    mean, std = (torch.from_numpy(part).double() for part in estimator.posterior(X))
    rng, n_rows = _stream(random_state, n_draws), len(mean)
    model = estimator._fitted
    prior = model.vae.prior
    aggregate = mean.new_full((n_rows,), -math.log(n_rows)), mean, std.log()
    log_q = log_aggregate = log_p = 0.0
    for _ in range(n_draws):
        eps = torch.randn(mean.shape, generator=rng, dtype=torch.float64)
        z = mean + std * eps
        log_q += float((-0.5 * (eps.square() + math.log(2 * math.pi)) - std.log()).sum())
        log_aggregate += float(mixture_log_prob(z, *aggregate).sum())
        with torch.no_grad():
            log_p += float(prior.log_prob(z.float().to(model.device)).cpu().double().sum())
    log_q, log_aggregate, log_p = (total / (n_rows * n_draws) for total in (log_q, log_aggregate, log_p))
    return KLSplit(log_q - log_p, log_q - log_aggregate, log_aggregate - log_p)


@own_settings()
def log_likelihood(estimator, X, n_draws=1000, *, random_state=0):
    """Mean log-likelihood of the rows by importance sampling, with its Monte-Carlo standard error.

    Other than in `VAETransformer.score`, each row has draws of its own, so that their errors are independent. The
    standard error is that of the draws, not of the choice of rows. It holds where it is small: the estimate is too low
    on average, and a posterior that misses a part of the likelihood shows in neither.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        A fitted model, or a pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
        Rows to score.
    n_draws : int, default=1000
        Posterior draws per row.
    random_state : int, RandomState instance or None, default=0
        Decides the draws.

    Returns
    -------
    log_likelihood : Estimate
        Named tuple of `value` and `standard_error`, in nats per row and the units of X.

    References
    ----------
    Burda, Grosse & Salakhutdinov (2016). "Importance weighted autoencoders", equation 8. ICLR.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import log_likelihood
    >>> X = load_iris().data
    >>> vae = VAETransformer(z_dim=2, max_iter=20, random_state=0).fit(X)
    >>> estimate = log_likelihood(vae, X, n_draws=100)
    >>> bool(abs(estimate.value - vae.score(X)) < 0.1)
    True
    """
    rng = _stream(random_state, n_draws)
    if n_draws < 2:
        raise ValueError(f"Invalid value for 'n_draws': {n_draws}. A standard error takes at least two draws.")
    estimator, X = last_step(estimator, X)
    X, excess = estimator._check_rows(X)
    model, found, gains = estimator._fitted, [], []
    for part in parts_of(X):
        found.append(model.by_holes(part, lambda rows, holes: _moments_of(model, rows, holes, n_draws, rng)))
        gains.append(np.broadcast_to(model.log_jacobian(part), len(part)))
    log_mean, squared_error = np.concatenate(found).T
    value = float((log_mean - excess + np.concatenate(gains)).mean())
    return Estimate(value, float(np.sqrt(squared_error.sum()) / len(X)))


def _moments_of(model, X, holes, n_draws, rng):
    """Log-likelihood of each row, and its squared standard error by the delta method: (n_samples, 2)."""
    model = model.exact() if holes or model.is_far(X).any() else model
    vae = model.vae
    like = next(vae.parameters())
    n_rows, n_parts = chunk_sizes(n_draws, X.shape[1])

    def moments(x):
        x = x.to(like.dtype)
        eps = (torch.randn(n, len(x), vae.prior.z_dim, generator=rng).to(x) for n in _parts(n_draws, n_parts))
        if holes:
            refined = Refined(vae, vae.complete(x))
            weights = torch.cat([refined.draw(draws_with(vae.prior, part, rng))[1] for part in eps])
        else:
            weights = widest(torch.cat([vae.log_weights(x, part, MODERATE) for part in eps]))
        log_mean = weights.logsumexp(0) - math.log(len(weights))
        mixed = refined.mixed(weights) if holes else vae.mixed(log_mean, x)
        slope = (log_mean + math.log1p(-vae.share) - mixed).exp()  # the model's share of the mixture at the row
        spread = slope.square() * (weights - log_mean).exp().var(0)
        return torch.stack([mixed, spread / len(weights)], dim=1)

    return model.apply(moments, model.blocks(X, n_rows), len(X), size=n_rows * n_draws // n_parts)


def _parts(total, n_parts):
    """Whole numbers of about the same size that add up to `total`."""
    bounds = np.linspace(0, total, n_parts + 1).astype(int)
    return np.diff(bounds).tolist()


@own_settings()
def column_gains(estimator, X, *, n_draws=10, random_state=0):
    """Mean gain of the model on each column, in nats, over the column's own distribution, as if all were independent.

    For each column the mean over the rows that have a value there of ``log p(x_j | z) - log p(x_j)``, at draws z of the
    row's posterior. The latter is the likelihood of the column at its start: the normal distribution of its mean and
    variance, the shares of its categories. Comparable between columns of all kinds; near 0, z says nothing about the
    column. The sum over the columns is more than the model gains on a row, by the KL term.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        A fitted model, or a pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
        Rows, as a rule the training or test data. Of a table that is not held, 2^24 values, of rows
        drawn at random.
    n_draws : int, default=10
        Posterior draws per row.
    random_state : int, RandomState instance or None, default=0
        Decides the draws.

    Returns
    -------
    gains : ndarray of shape (n_features,)
        In nats per row; NaN for a column without a value and for `condition_features`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import column_gains
    >>> X = np.column_stack([load_iris().data, np.random.default_rng(0).normal(size=150)])
    >>> gains = column_gains(VAETransformer(z_dim=2, random_state=0).fit(X), X)
    >>> bool(gains[2] > 1 > gains[4])  # the last column is noise
    True
    """
    rng = _stream(random_state, n_draws)
    estimator, X = last_step(estimator, X)
    features, model = estimator._check_X(X), estimator._fitted
    if isinstance(features, RowSource):
        features = features[subsample(len(features), max(1, MAX_HELD // features.shape[1]), 0)]
    x, vae = scaled(features, model.offset, model.scale).to(model.device), model.vae
    likelihood = copy.deepcopy(vae.likelihood)
    with torch.no_grad():
        fields = Rows(x, vae).take(torch.arange(len(x)))
        start = likelihood.start(without_holes(vae.parts(x)[0]))
        likelihood.settle()  # without another column's help
        likelihood.set_noise(torch.ones_like(start[0]), start)  # of standardised features
        own = likelihood.log_prob(start.expand(len(x), *start.shape), fields["x"])
        mean, log_scale = vae.encode_batch(Batch(**fields, eps=x))
        total = torch.zeros_like(own)
        for _ in range(n_draws):
            z = mean + log_scale.exp() * torch.randn(mean.shape, generator=rng).to(mean)
            total += vae.likelihood.log_prob(vae.decode(z, fields.get("context")), fields["x"])
    gain = (total / n_draws - own).cpu().double().numpy()
    parts = model.table.by_column(np.where(np.isnan(features[:, : gain.shape[1]]), np.nan, gain))
    return np.array([_mean_of_rows(part) for part in parts])


def _mean_of_rows(part):
    """Mean over the rows of the sum of a column's features, where any is known; NaN where none is."""
    known = ~np.isnan(part).all(axis=1) if part.shape[1] else np.zeros(len(part), dtype=bool)
    return float(np.nansum(part[known], axis=1).mean()) if known.any() else np.nan


@own_settings()
def reconstruction_error(estimator, X):
    """Mean squared error of the reconstruction from the posterior mean.

    Parameters
    ----------
    estimator : object with `transform` and `inverse_transform`
        A fitted model: a `VAETransformer`, or for comparison a PCA.
    X : array-like of shape (n_samples, n_features)
        Rows to reconstruct.

    Returns
    -------
    error : float
        Mean over rows and features, or their observed cells, in squared units of X. `condition_features` are those of
        the row, and do not count.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skvae.metrics import reconstruction_error
    >>> X = load_iris().data
    >>> print(f"{reconstruction_error(PCA(2).fit(X), X):.4f}")
    0.0253
    """
    table = table_of(estimator, X)
    if table is not None and (words := [c.name for c in table.columns if c.kind == "categorical" and not c.given]):
        raise ValueError(
            f"reconstruction_error squares differences of numbers, and columns {words} of X hold categories. "
            "`column_gains` tells how well each column is modelled."
        )
    reconstruction, modelled = reconstructed(estimator, X)
    rows = X if is_frame(X) else plain(X), reconstruction
    X, reconstruction = (as_numbers(estimator, part).astype(np.float64)[:, modelled] for part in rows)
    observed = ~np.isnan(X)
    if observed.all():
        return float(mean_squared_error(X, reconstruction))
    return float(mean_squared_error(X[observed], reconstruction[observed]))


def _stream(random_state, n_draws):
    """A stream of our own for so many draws, from scikit-learn's `random_state`."""
    check_scalar(n_draws, "n_draws", Integral, min_val=1)
    check_random_state(random_state)
    return generator(int(random_state)) if isinstance(random_state, Integral) else stream_of(random_state)


@own_settings()
def frechet_distance(reference, X, X_samples):
    """Frechet distance between two sets of rows in the latent space of a reference model.

    ``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`` of means and covariances of the latent points: 0 where they are equal.
    With an Inception network for the reference it is the FID of image samples [1]_; here the reference is any fitted
    transformer, the same for all models that are compared, and none of them.

    Parameters
    ----------
    reference : object with `transform`
        A fitted model, such as a `VAETransformer` or a PCA of held-out images.
    X : array-like of shape (n_samples, n_features)
        Rows of the data.
    X_samples : array-like of shape (n_draws, n_features)
        Rows drawn from a model. The estimate falls with the number of rows, so compare equal numbers.

    Returns
    -------
    distance : float
        The squared distance, in squared units of the latent space.

    References
    ----------
    .. [1] Heusel et al. (2017). "GANs trained by a two time-scale update rule converge to a local Nash equilibrium",
       equation 6. NeurIPS.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import frechet_distance
    >>> X = load_iris().data
    >>> vae = VAETransformer(z_dim=2, max_iter=20, random_state=0).fit(X)
    >>> pca = PCA(2).fit(X)
    >>> distances = [frechet_distance(pca, X, rows) for rows in (X, vae.sample(150, random_state=0), X + 10)]
    >>> distances == sorted(distances)
    True
    """
    (mean, covariance), (other_mean, other) = (_moments(reference.transform(rows)) for rows in (X, X_samples))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ other @ root).clip(min=0)  # has the eigenvalues of covariance @ other
    distance = np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other) - 2 * np.sqrt(product).sum()
    return float(max(distance, 0.0))


def _moments(Z):
    Z = check_array(np.asarray(Z, dtype=np.float64), ensure_min_samples=2)
    return Z.mean(axis=0), np.atleast_2d(np.cov(Z, rowvar=False))
