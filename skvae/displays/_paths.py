"""Where latent units lead: decoded rows along a unit, between two rows, over the plane."""

from numbers import Real

import numpy as np
from sklearn.utils import check_consistent_length, check_scalar

from .._estimator.pipelines import split
from ._estimator import aggregate, check_count, check_units, decode, leading_units, prior_quantiles, select
from ._figure import image_panel, label_edges, label_images, panels, set_title, show_images, show_lines


class _PathDisplay:
    """Abstract: decoded paths through latent space, a row of images each, or a line each in the features' panels."""

    def _plot_paths(self, ax, x, labels, xlabel, im_kw, line_kw):
        grid = self.rows.shape[:2]
        if self.image_shape is None:
            self.axes_ = panels(ax, len(self.feature_names))
            self.lines_ = show_lines(self.axes_, x, self.rows, self.feature_names, labels, xlabel, line_kw)
        else:
            self.axes_ = image_panel(ax, grid, self.image_shape, (0.7, 0.5))
            self.image_ = show_images(self.axes_[0], self.rows, grid, self.image_shape, im_kw)
            label_images(self.axes_[0].yaxis, labels, self.image_shape[0])
            label_images(self.axes_[0].xaxis, [f"{value:.2g}" for value in x], self.image_shape[1])
            self.axes_[0].set_xlabel(xlabel)
        self.figure_ = self.axes_[0].figure
        return self


class TraversalDisplay(_PathDisplay):
    """What each unit does: E[x | z] while one unit moves and the others rest.

    Units move through the aggregate posterior, the mixture of all rows' posteriors, around its mean. Images get a row
    for each unit, tables a panel for each feature with a line for each unit.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    rows : ndarray of shape (n_units, n_steps, n_features)
        Decoded rows.
    steps : ndarray of shape (n_steps,)
        Distance of the unit from the mean of the aggregate posterior, in standard deviations of it.
    units : ndarray of shape (n_units,)
        Indices of the units.
    image_shape : tuple of int, default=None
        Shape of a row as an image; None draws a table.
    feature_names : list of str, default=None
        Names of the columns of a table.

    Attributes
    ----------
    axes_ : ndarray of Axes
        One axes for all images, or a panel for each feature.
    figure_ : Figure
        The figure.
    image_ : AxesImage
        The grid of images; not there for a table.
    lines_ : ndarray of Line2D of shape (n_units, n_features)
        The lines of a table; not there for images.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import TraversalDisplay
    >>> iris = load_iris(as_frame=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False, random_state=0).fit(iris.data)
    >>> display = TraversalDisplay.from_estimator(vae, iris.data, units=[0, 1])
    >>> display.rows.shape
    (2, 9, 4)
    """

    def __init__(self, *, rows, steps, units, image_shape=None, feature_names=None):
        self.rows = rows
        self.steps = steps
        self.units = units
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls, estimator, X, *, image_shape=None, features=None, units=None, n_steps=9, n_stds=2.0, ax=None, **kwargs
    ):
        """Move units, decode, and draw.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator, or a pipeline that ends in one.
        X : array-like of shape (n_samples, n_features)
            Rows whose aggregate posterior sets centre and range.
        image_shape : tuple of int, default=None
            (height, width) or (height, width, channels) of a row as an image; None draws a table.
        features : array-like of int or str, default=None
            Features of a table to draw; None draws all.
        units : array-like of int, default=None
            Units to move; None takes the active ones, the largest KL first, ten at most.
        n_steps : int, default=9
            Steps of each unit.
        n_stds : float, default=2.0
            How far to move to either side, in standard deviations of the unit under the aggregate posterior.
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : TraversalDisplay
            The display.

        Raises
        ------
        ValueError
            If `image_shape` does not fit the number of features, `features` or `units` are not among those of the
            model, or no unit is active.
        """
        check_count(n_steps, "n_steps")
        check_scalar(n_stds, "n_stds", Real, min_val=0)
        columns, names = select(estimator, image_shape, features)
        head, vae = split(estimator)
        units = leading_units(vae, 10, active_only=True) if units is None else check_units(units, vae)
        if len(units) == 0:
            raise ValueError("No latent unit is active, so that there is nothing to see. Name `units` to see it still.")
        mean, std = aggregate(vae, head.transform(X))
        steps = np.linspace(-n_stds, n_stds, n_steps)
        moves = np.eye(len(mean))[units] * std  # (n_units, z_dim)
        rows = decode(estimator, mean + steps[:, None] * moves[:, None])[..., columns]
        return cls(rows=rows, steps=steps, units=units, image_shape=image_shape, feature_names=names).plot(ax, **kwargs)

    def plot(self, ax=None, *, im_kw=None, line_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        im_kw : dict, default=None
            Parameters of the images, for :meth:`matplotlib.axes.Axes.imshow`.
        line_kw : dict, default=None
            Parameters of the lines of a table, for :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : TraversalDisplay
            The display.
        """
        labels = [f"unit {unit}" for unit in self.units]
        return self._plot_paths(ax, self.steps, labels, "standard deviations", im_kw, line_kw)


class InterpolationDisplay(_PathDisplay):
    """What lies between two rows: E[x | z] on the straight line between their posterior means.

    Images get a row for each pair, tables a panel for each feature with a line for each pair.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    rows : ndarray of shape (n_pairs, n_steps, n_features)
        Decoded rows.
    image_shape : tuple of int, default=None
        Shape of a row as an image; None draws a table.
    feature_names : list of str, default=None
        Names of the columns of a table.

    Attributes
    ----------
    axes_ : ndarray of Axes
        One axes for all images, or a panel for each feature.
    figure_ : Figure
        The figure.
    image_ : AxesImage
        The grid of images; not there for a table.
    lines_ : ndarray of Line2D of shape (n_pairs, n_features)
        The lines of a table; not there for images.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import InterpolationDisplay
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False, random_state=0).fit(X)
    >>> display = InterpolationDisplay.from_estimator(vae, X[:3], X[-3:])
    >>> display.rows.shape
    (3, 9, 4)
    """

    def __init__(self, *, rows, image_shape=None, feature_names=None):
        self.rows = rows
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls, estimator, X_start, X_end, *, image_shape=None, features=None, n_steps=9, ax=None, **kwargs
    ):
        """Interpolate between rows and draw.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator, or a pipeline that ends in one.
        X_start : array-like of shape (n_pairs, n_features)
            Rows to start from.
        X_end : array-like of shape (n_pairs, n_features)
            Rows to arrive at.
        image_shape : tuple of int, default=None
            (height, width) or (height, width, channels) of a row as an image; None draws a table.
        features : array-like of int or str, default=None
            Features of a table to draw; None draws all.
        n_steps : int, default=9
            Points on each line, both ends among them.
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : InterpolationDisplay
            The display.

        Raises
        ------
        ValueError
            If `X_start` and `X_end` differ in length, `image_shape` does not fit the number of features or `features`
            are not among them.
        """
        check_count(n_steps, "n_steps")
        columns, names = select(estimator, image_shape, features)
        check_consistent_length(X_start, X_end)
        start, end = (np.asarray(estimator.transform(X))[:, None] for X in (X_start, X_end))
        Z = start + np.linspace(0, 1, n_steps)[:, None] * (end - start)  # (n_pairs, n_steps, z_dim)
        rows = decode(estimator, Z)[..., columns]
        return cls(rows=rows, image_shape=image_shape, feature_names=names).plot(ax, **kwargs)

    def plot(self, ax=None, *, im_kw=None, line_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        im_kw : dict, default=None
            Parameters of the images, for :meth:`matplotlib.axes.Axes.imshow`.
        line_kw : dict, default=None
            Parameters of the lines of a table, for :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : InterpolationDisplay
            The display.
        """
        n_pairs, n_steps = self.rows.shape[:2]
        labels = [f"pair {pair}" for pair in range(n_pairs)]
        return self._plot_paths(ax, np.linspace(0, 1, n_steps), labels, "fraction of the way", im_kw, line_kw)


class ManifoldDisplay:
    """What two latent units hold: E[x | z] over the plane, at equal steps of the prior's probability [1]_.

    Images stand on a grid, each at its place in the plane; a table has a map for each feature.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    rows : ndarray of shape (n_steps, n_steps, n_features)
        Decoded rows; the first axis is the second unit, ascending, the second axis the first unit.
    quantiles : ndarray of shape (n_steps, 2)
        The grid's coordinates along each unit: quantiles of the prior at equal steps of probability.
    image_shape : tuple of int, default=None
        Shape of a row as an image; None draws a table.
    feature_names : list of str, default=None
        Names of the columns of a table.

    Attributes
    ----------
    axes_ : ndarray of Axes
        One axes for all images, or a panel for each feature.
    figure_ : Figure
        The figure.
    images_ : list of AxesImage
        The grid of images, or each feature's map.

    References
    ----------
    .. [1] Kingma & Welling (2014). "Auto-encoding variational Bayes", figure 4. ICLR.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import ManifoldDisplay
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False, random_state=0).fit(X)
    >>> display = ManifoldDisplay.from_estimator(vae, n_steps=10)
    >>> display.rows.shape
    (10, 10, 4)
    """

    def __init__(self, *, rows, quantiles, image_shape=None, feature_names=None):
        self.rows = rows
        self.quantiles = quantiles
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(cls, estimator, *, image_shape=None, features=None, n_steps=15, ax=None, **kwargs):
        """Decode a grid over the latent plane and draw it.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator with ``z_dim=2``, or a pipeline that ends in one.
        image_shape : tuple of int, default=None
            (height, width) or (height, width, channels) of a row as an image; None draws a table.
        features : array-like of int or str, default=None
            Features of a table to draw; None draws all.
        n_steps : int, default=15
            Points of the grid along each unit.
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : ManifoldDisplay
            The display.

        Raises
        ------
        ValueError
            If ``z_dim`` is not 2, `image_shape` does not fit the number of features or `features` are not among them.
        """
        check_count(n_steps, "n_steps")
        columns, names = select(estimator, image_shape, features)
        vae = split(estimator)[1]
        if len(vae.kl_per_unit_) != 2:
            raise ValueError(f"ManifoldDisplay needs a model with z_dim=2. Got z_dim={len(vae.kl_per_unit_)}.")
        quantiles = prior_quantiles(vae.module_.prior, (np.arange(n_steps) + 0.5) / n_steps)
        rows = decode(estimator, np.stack(np.meshgrid(*quantiles.T), axis=-1))[..., columns]
        return cls(rows=rows, quantiles=quantiles, image_shape=image_shape, feature_names=names).plot(ax, **kwargs)

    def plot(self, ax=None, *, im_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        im_kw : dict, default=None
            Parameters for :meth:`matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : ManifoldDisplay
            The display.
        """
        if self.image_shape is None:
            self.axes_ = panels(ax, len(self.feature_names), size=(2.7, 2.2))
            label_edges(self.axes_, "unit 0", "unit 1")
            self.images_ = [self._plot_feature(ax, j, im_kw or {}) for j, ax in enumerate(self.axes_)]
        else:
            grid = self.rows.shape[:2]
            self.axes_ = image_panel(ax, grid, self.image_shape, (0.5, 0.5))
            self.images_ = [show_images(self.axes_[0], self.rows[::-1], grid, self.image_shape, im_kw)]
            places, labels = self._ticks()
            label_images(self.axes_[0].xaxis, labels[:, 0], self.image_shape[1], places)
            label_images(self.axes_[0].yaxis, labels[:, 1], self.image_shape[0], places[::-1])
            self.axes_[0].set(xlabel="unit 0", ylabel="unit 1")
        self.figure_ = self.axes_[0].figure
        return self

    def _plot_feature(self, ax, j, im_kw):
        image = ax.imshow(self.rows[..., j], **{"origin": "lower", "interpolation": "nearest", **im_kw})
        ax.figure.colorbar(image, ax=ax)
        set_title(ax, self.feature_names[j])
        places, labels = self._ticks()
        ax.set_xticks(places, labels[:, 0])
        ax.set_yticks(places, labels[:, 1])
        return image

    def _ticks(self):
        """Five places of the grid, and the coordinates there."""
        places = np.unique(np.linspace(0, len(self.quantiles) - 1, 5).round().astype(int))
        return places, np.array([[f"{value:.1f}" for value in pair] for pair in self.quantiles[places]])
