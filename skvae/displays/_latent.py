"""Rows in latent space."""

from itertools import combinations, cycle
from numbers import Number

import numpy as np
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from .._estimator.pipelines import split
from ._estimator import check_units, density_levels, leading_units, prior_density
from ._figure import COLORS, legend, panels

_MARKERS = "os^vD<>PX"
_MAX_CLASSES = 20  # more distinct numbers than this are a continuous target
_UNKNOWN = "0.7"  # where a row has none


class LatentDisplay:
    """Rows in latent space, a panel for each pair of units, with contours of the prior.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    Z : ndarray of shape (n_samples, n_units)
        Posterior means.
    units : ndarray of shape (n_units,)
        Indices of the units that the columns of `Z` are.
    y : array-like of shape (n_samples,), default=None
        Classes or a continuous target to colour the rows by.
    prior_density : dict, default=None
        For each pair of columns of `Z`, such as ``(0, 1)``, coordinates along the first and the second, and the density
        of the prior at them, of shape (n_second, n_first).

    Attributes
    ----------
    axes_ : ndarray of Axes of shape (n_pairs,)
        One panel for each pair of units.
    figure_ : Figure
        The figure.
    scatters_ : list of PathCollection
        The rows: for each panel one artist for each class, or one.
    contours_ : list of ContourSet
        The contours of the prior in each panel.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import LatentDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False, random_state=0).fit(X)
    >>> display = LatentDisplay.from_estimator(vae, X, y)
    >>> display.axes_[0].get_xlabel(), display.axes_[0].get_ylabel()
    ('unit 0', 'unit 1')
    """

    def __init__(self, *, Z, units, y=None, prior_density=None):
        self.Z = Z
        self.units = units
        self.y = y
        self.prior_density = prior_density

    @classmethod
    def from_estimator(cls, estimator, X, y=None, *, units=None, ax=None, **kwargs):
        """Draw the posterior means of rows.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator, or a pipeline that ends in one.
        X : array-like of shape (n_samples, n_features)
            Rows to draw.
        y : array-like of shape (n_samples,), default=None
            What to colour them by: strings or at most 20 different numbers are classes, other numbers continuous.
        units : array-like of int, default=None
            Two or more units; None takes the four with the largest KL.
        ax : Axes or array-like of Axes, default=None
            Where to draw, an axes for each pair of units; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : LatentDisplay
            The display.

        Raises
        ------
        ValueError
            If there are fewer than two units, or `y` has another length than `X`.
        """
        _, vae = split(estimator)
        units = np.sort(leading_units(vae, 4)) if units is None else check_units(units, vae)
        if len(units) < 2:
            raise ValueError(
                f"LatentDisplay needs two or more units. Got {len(units)} (z_dim={len(vae.kl_per_unit_)})."
            )
        if y is not None:
            check_consistent_length(X, y)
            y = _labels(y)
        Z = np.asarray(estimator.transform(X))[:, units]
        density = prior_density(vae.module_.prior, units)
        return cls(Z=Z, units=units, y=y, prior_density=density).plot(ax, **kwargs)

    def plot(self, ax=None, *, probabilities=(0.5, 0.95), scatter_kw=None, contour_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Where to draw, an axes for each pair of units; None makes a figure.
        probabilities : array-like of float, default=(0.5, 0.95)
            Each contour is the rim of the smallest region that holds this share of the prior.
        scatter_kw : dict, default=None
            Parameters of the rows, for :meth:`matplotlib.axes.Axes.scatter`.
        contour_kw : dict, default=None
            Parameters of the prior, for :meth:`matplotlib.axes.Axes.contour`.

        Returns
        -------
        display : LatentDisplay
            The display.
        """
        probabilities = np.unique(check_array(probabilities, ensure_2d=False, input_name="probabilities"))
        if probabilities[0] <= 0 or probabilities[-1] >= 1:
            raise ValueError(f"probabilities must lie between 0 and 1. Got {probabilities.tolist()}.")
        pairs = list(combinations(range(len(self.units)), 2))
        self.axes_ = panels(ax, len(pairs), size=(5.2, 4.2) if len(pairs) == 1 else (3.2, 3))
        self.scatters_, self.contours_, groups = [], [], self._groups()
        for ax, pair in zip(self.axes_, pairs, strict=True):
            for rows, params in groups:
                params = {"s": 14, "linewidths": 0, "alpha": 0.8, **params, **(scatter_kw or {})}
                self.scatters_.append(ax.scatter(*self.Z[rows][:, pair].T, **params))
            if self.prior_density is not None:
                self._plot_prior(ax, self.prior_density[pair], probabilities, contour_kw or {})
            ax.set(xlabel=f"unit {self.units[pair[0]]}", ylabel=f"unit {self.units[pair[1]]}", aspect="equal")
            ax.set_adjustable("datalim")
        self.figure_ = self.axes_[0].figure
        if "c" in groups[0][1]:
            self.figure_.colorbar(self.scatters_[0], ax=list(self.axes_))
        elif self.y is not None:
            legend(self.axes_, markerscale=1.5)
        return self

    def _groups(self):
        """Rows that look alike, and how they look."""
        if self.y is None:
            return [(slice(None), {"color": COLORS[0]})]
        y, (classes, places) = np.asarray(self.y), np.unique(self.y, return_inverse=True)  # NaN is a class, once
        if y.dtype.kind in "iuf" and len(classes) > _MAX_CLASSES:
            known = ~np.isnan(y)
            groups = [(known, {"c": y[known], "cmap": "viridis"}), (~known, {"color": _UNKNOWN})]
            return groups[: 1 if known.all() else 2]
        looks = zip(cycle(COLORS), cycle(_MARKERS), classes, strict=False)
        looks = [{"color": color, "marker": marker, "label": label} for color, marker, label in looks]
        return [(places == i, look) for i, look in enumerate(looks)]

    def _plot_prior(self, ax, density, probabilities, contour_kw):
        from matplotlib.patheffects import withStroke

        levels = density_levels(density[2], probabilities)
        params = {"colors": "0.2", "linewidths": 1, "linestyles": "--", **contour_kw}
        contours = ax.contour(*_cropped(*density, levels[0]), levels=levels, **params)
        names = [f"{100 * probability:.3g} %" for probability in probabilities[::-1]]
        texts = ax.clabel(contours, fmt=dict(zip(contours.levels, names, strict=True)), fontsize="small")
        for text in texts:
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        self.contours_.append(contours)


def _labels(y):
    """Labels that NumPy can sort: where some are text or missing, all become text."""
    y = column_or_1d(y)
    is_mixed = y.dtype.kind == "O" and not all(isinstance(label, Number) for label in y)
    return y.astype(str) if is_mixed else y


def _cropped(x, y, density, level):
    """The part of the grid where the density reaches `level`, for else the axes would span all of it."""
    columns, rows = (np.flatnonzero(density.max(axis=axis) >= level) for axis in (0, 1))
    columns, rows = (slice(max(part[0] - 1, 0), part[-1] + 2) for part in (columns, rows))
    return x[columns], y[rows], density[rows, columns]
