"""Rows that the model draws or reconstructs."""

import math

import numpy as np

from .._estimator.generation import as_numbers, reconstructed
from .._estimator.pipelines import split
from ._estimator import check_count, select, validated
from ._figure import COLORS, image_panel, label_edges, label_images, legend, panels, set_title, show_images


class SampleGridDisplay:
    """Rows drawn from the model: a grid of images, or for a table a histogram of each feature.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    samples : ndarray of shape (n_samples, n_features)
        Rows drawn.
    X : ndarray of shape (n_rows, n_features), default=None
        Rows of data to compare a table with.
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

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.displays import SampleGridDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=2, early_stopping=False, random_state=0).fit(X)
    >>> display = SampleGridDisplay.from_estimator(vae, image_shape=(8, 8), n_samples=6, random_state=0)
    >>> display.samples.shape
    (6, 64)
    """

    def __init__(self, *, samples, X=None, image_shape=None, feature_names=None):
        self.samples = samples
        self.X = X
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X=None,
        *,
        image_shape=None,
        features=None,
        n_samples="auto",
        noise="auto",
        random_state=None,
        ax=None,
        **kwargs,
    ):
        """Draw rows from the model, and draw them.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator, or a pipeline that ends in one.
        X : array-like of shape (n_rows, n_features), default=None
            Rows whose histograms are drawn beside; not used for images.
        image_shape : tuple of int, default=None
            (height, width) or (height, width, channels) of a row as an image; None draws a table.
        features : array-like of int or str, default=None
            Features of a table to draw; None draws all.
        n_samples : int or "auto", default="auto"
            Number of rows to draw; "auto" is 64 images, 1000 rows of a table.
        noise : bool or "auto", default="auto"
            Whether rows are drawn from p(x | z) or are its means; "auto" takes means for images, which noise would
            cover, and draws for a table, whose histograms lack the noise otherwise.
        random_state : int, RandomState instance or None, default=None
            Source of the draws.
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : SampleGridDisplay
            The display.

        Raises
        ------
        ValueError
            If `image_shape` does not fit the number of features or `features` are not among them.
        """
        if not (isinstance(noise, (bool, np.bool_)) or noise == "auto"):
            raise ValueError(f"noise must be a bool or 'auto'. Got {noise!r} instead.")
        columns, names = select(estimator, image_shape, features)
        head, vae = split(estimator)
        is_table = image_shape is None
        n_samples = (1000 if is_table else 64) if n_samples == "auto" else n_samples
        X = None if X is None else validated(estimator, X)[:, columns]
        samples = vae.sample(n_samples, noise=is_table if noise == "auto" else noise, random_state=random_state)
        samples = as_numbers(estimator, head.inverse_transform(samples))[:, columns]
        return cls(samples=samples, X=X, image_shape=image_shape, feature_names=names).plot(ax, **kwargs)

    def plot(self, ax=None, *, im_kw=None, hist_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        im_kw : dict, default=None
            Parameters of the images, for :meth:`matplotlib.axes.Axes.imshow`.
        hist_kw : dict, default=None
            Parameters of the histograms of draws, for :meth:`matplotlib.axes.Axes.hist`.

        Returns
        -------
        display : SampleGridDisplay
            The display.
        """
        if self.image_shape is None:
            self.axes_ = panels(ax, len(self.feature_names))
            for j, ax in enumerate(self.axes_):
                self._plot_histogram(ax, j, hist_kw or {})
            if self.X is not None:
                legend(self.axes_)
        else:
            n_columns = math.ceil(math.sqrt(len(self.samples)))
            grid = (math.ceil(len(self.samples) / n_columns), n_columns)
            self.axes_ = image_panel(ax, grid, self.image_shape)
            self.image_ = show_images(self.axes_[0], self.samples, grid, self.image_shape, im_kw)
        self.figure_ = self.axes_[0].figure
        return self

    def _plot_histogram(self, ax, j, hist_kw):
        values = [self.samples[:, j]] + ([] if self.X is None else [self.X[:, j]])
        values = [part[~np.isnan(part)] for part in values]
        bins = np.histogram_bin_edges(np.concatenate(values), bins=30)
        ax.hist(values[0], **{"bins": bins, "density": True, "color": COLORS[0], "label": "drawn", **hist_kw})
        if self.X is not None:
            ax.hist(values[1], bins=bins, density=True, histtype="step", color="k", linewidth=1.2, label="data")
        ax.set_yticks([])
        set_title(ax, self.feature_names[j])


class ReconstructionDisplay:
    """Rows and their reconstructions: images above each other, or for a table a scatter of each feature.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows.
    reconstruction : ndarray of shape (n_samples, n_features)
        Their reconstructions: E[x | z] at the mean of the posterior.
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
    scatters_ : list of PathCollection
        The rows in each panel of a table; not there for images.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import ReconstructionDisplay
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False, random_state=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X)
    >>> len(display.axes_)
    4
    """

    def __init__(self, *, X, reconstruction, image_shape=None, feature_names=None):
        self.X = X
        self.reconstruction = reconstruction
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(cls, estimator, X, *, image_shape=None, features=None, n_images=10, ax=None, **kwargs):
        """Reconstruct rows and draw both.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator, or a pipeline that ends in one.
        X : array-like of shape (n_samples, n_features)
            Rows to reconstruct.
        image_shape : tuple of int, default=None
            (height, width) or (height, width, channels) of a row as an image; None draws a table.
        features : array-like of int or str, default=None
            Features of a table to draw; None draws all.
        n_images : int, default=10
            How many images are drawn: the first rows of `X`. Of a table all rows are.
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : ReconstructionDisplay
            The display.

        Raises
        ------
        ValueError
            If `image_shape` does not fit the number of features or `features` are not among them.
        """
        check_count(n_images, "n_images")
        columns, names = select(estimator, image_shape, features)
        X = X if image_shape is None else X[:n_images]
        reconstruction = as_numbers(estimator, reconstructed(estimator, X)[0])[:, columns]
        X = validated(estimator, X)[:, columns]
        return cls(X=X, reconstruction=reconstruction, image_shape=image_shape, feature_names=names).plot(ax, **kwargs)

    def plot(self, ax=None, *, im_kw=None, scatter_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Where to draw: one axes for images, one for each feature of a table; None makes a figure.
        im_kw : dict, default=None
            Parameters of the images, for :meth:`matplotlib.axes.Axes.imshow`.
        scatter_kw : dict, default=None
            Parameters of the rows of a table, for :meth:`matplotlib.axes.Axes.scatter`.

        Returns
        -------
        display : ReconstructionDisplay
            The display.
        """
        if self.image_shape is None:
            self.axes_ = panels(ax, len(self.feature_names), size=(2.4, 2.4))
            label_edges(self.axes_, "original", "reconstruction")
            self.scatters_ = [self._plot_feature(ax, j, scatter_kw or {}) for j, ax in enumerate(self.axes_)]
        else:
            rows, grid = np.concatenate([self.X, self.reconstruction]), (2, len(self.X))
            self.axes_ = image_panel(ax, grid, self.image_shape, (1.1, 0.1))
            self.image_ = show_images(self.axes_[0], rows, grid, self.image_shape, im_kw)
            label_images(self.axes_[0].yaxis, ["original", "reconstruction"], self.image_shape[0])
        self.figure_ = self.axes_[0].figure
        return self

    def _plot_feature(self, ax, j, scatter_kw):
        x, y = self.X[:, j], self.reconstruction[:, j]
        seen = x[~np.isnan(x)][:1].tolist() or [0.0]
        ax.axline((*seen, *seen), slope=1, color="0.5", linewidth=1, linestyle="--")
        set_title(ax, self.feature_names[j])
        return ax.scatter(x, y, **{"s": 8, "color": COLORS[0], "linewidths": 0, "alpha": 0.7, **scatter_kw})
