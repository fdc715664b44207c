"""How training went, and what it left of the latent units."""

import math

import numpy as np

from .._estimator.pipelines import split
from ._figure import COLORS, panels

_BARS = {"active": {"color": COLORS[0]}, "collapsed": {"color": "white", "edgecolor": COLORS[2], "hatch": "////"}}


class LearningCurveDisplay:
    """Loss of each epoch of a fit, and the two terms it consists of: reconstruction and KL.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    loss : array-like of shape (n_epochs,)
        Negative evidence lower bound of each epoch, in nats per row.
    kl : array-like of shape (n_epochs,)
        The KL term in it.
    validation_loss : array-like of shape (n_epochs,), default=None
        Negative bound for held-out rows; NaN for an epoch in which none judged.

    Attributes
    ----------
    axes_ : ndarray of Axes of shape (3,)
        Panels of the loss, the reconstruction term and the KL term.
    figure_ : Figure
        The figure.
    lines_ : list of Line2D
        The training curves, one of each panel, and the validation curve if there is one.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import LearningCurveDisplay
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False, random_state=0).fit(X)
    >>> display = LearningCurveDisplay.from_estimator(vae)
    >>> [ax.get_title() for ax in display.axes_]
    ['Negative ELBO', 'Reconstruction', 'KL']
    """

    def __init__(self, *, loss, kl, validation_loss=None):
        self.loss = loss
        self.kl = kl
        self.validation_loss = validation_loss

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, **kwargs):
        """Draw the curves that a fit has left.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator, or a pipeline that ends in one.
        ax : array-like of Axes of shape (3,), default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : LearningCurveDisplay
            The display.
        """
        _, vae = split(estimator)
        validation = None if vae.validation_scores_ is None else -np.array(vae.validation_scores_)
        return cls(loss=np.array(vae.loss_curve_), kl=np.array(vae.kl_curve_), validation_loss=validation).plot(
            ax, **kwargs
        )

    def plot(self, ax=None, *, line_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : array-like of Axes of shape (3,), default=None
            Where to draw; None makes a figure.
        line_kw : dict, default=None
            Parameters of the training curves, for :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LearningCurveDisplay
            The display.
        """
        self.axes_ = panels(ax, 3, size=(3.2, 2.8))
        loss, kl = np.asarray(self.loss), np.asarray(self.kl)
        curves = {"Negative ELBO": loss, "Reconstruction": loss - kl, "KL": kl}
        self.lines_ = []
        for ax, (title, values) in zip(self.axes_, curves.items(), strict=True):
            params = {"color": COLORS[0], "label": "training", **(line_kw or {})}
            self.lines_ += ax.plot(np.arange(1, len(values) + 1), values, **params)
            ax.set(title=title, xlabel="epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
        self.axes_[0].set_ylabel("nats per row")
        if self.validation_loss is not None:
            self._plot_validation(self.axes_[0], np.asarray(self.validation_loss))
        self.figure_ = self.axes_[0].figure
        return self

    def _plot_validation(self, ax, values):
        style, best = {"color": COLORS[2], "linestyle": "--"}, int(np.nanargmin(values))
        self.lines_ += ax.plot(np.arange(1, len(values) + 1), values, label="validation", **style)
        ax.plot(best + 1, values[best], marker="o", label=f"best: epoch {best + 1}", **(style | {"linestyle": "none"}))
        ax.legend()


class CollapseDisplay:
    """KL of each latent unit, largest first, and which units are active.

    A unit whose posterior stays at the prior says nothing about x: it has collapsed. A unit is active where its
    posterior mean varies over the rows by more than a hundredth of the prior's variance [1]_, as `active_units_` tells.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    kl_per_unit : array-like of shape (z_dim,)
        Mean KL divergence of each unit's posterior from the prior, in nats.
    active_units : array-like of bool of shape (z_dim,)
        Whether each unit is active.

    Attributes
    ----------
    ax_ : Axes
        The axes.
    figure_ : Figure
        The figure.
    bars_ : dict of BarContainer
        Bars of the units that are "active" and of those "collapsed", as far as there are any.

    References
    ----------
    .. [1] Burda, Grosse & Salakhutdinov (2016). "Importance weighted autoencoders", section 5.2. ICLR.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import CollapseDisplay
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=3, max_iter=20, early_stopping=False, random_state=0).fit(X)
    >>> display = CollapseDisplay.from_estimator(vae)
    >>> display.ax_.get_ylabel()
    'KL (nats)'
    """

    def __init__(self, *, kl_per_unit, active_units):
        self.kl_per_unit = kl_per_unit
        self.active_units = active_units

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, **kwargs):
        """Draw the units of a fitted estimator.

        Parameters
        ----------
        estimator : VAETransformer or Pipeline
            A fitted estimator, or a pipeline that ends in one.
        ax : Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : CollapseDisplay
            The display.
        """
        _, vae = split(estimator)
        return cls(kl_per_unit=vae.kl_per_unit_, active_units=vae.active_units_).plot(ax, **kwargs)

    def plot(self, ax=None, *, bar_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : Axes, default=None
            Where to draw; None makes a figure.
        bar_kw : dict, default=None
            Parameters for :meth:`matplotlib.axes.Axes.bar`.

        Returns
        -------
        display : CollapseDisplay
            The display.
        """
        kl, active = np.asarray(self.kl_per_unit), np.asarray(self.active_units)
        units = np.argsort(-kl, kind="stable")
        (self.ax_,) = panels(ax, 1, size=(min(12, max(4, 1.4 + 0.3 * len(kl))), 3))
        self.bars_ = {}
        for name, shown in {"active": active[units], "collapsed": ~active[units]}.items():
            if shown.any():
                params = {**_BARS[name], "label": f"{name}: {shown.sum()}", **(bar_kw or {})}
                self.bars_[name] = self.ax_.bar(np.flatnonzero(shown), kl[units][shown], **params)
        self._set_ticks(units, active)
        self.ax_.set(xlabel="unit", ylabel="KL (nats)", xlim=(-0.6, len(units) - 0.4))
        self.ax_.legend()
        self.figure_ = self.ax_.figure
        return self

    def _set_ticks(self, units, active):
        step = math.ceil(len(units) / 100)  # more numbers than that would overlap
        params = {"rotation": 90, "fontsize": "x-small"} if len(units) > 12 else {}
        self.ax_.set_xticks(range(0, len(units), step), units[::step], **params)
        for unit, label in zip(units[::step], self.ax_.get_xticklabels(), strict=True):
            label.set_color("k" if active[unit] else COLORS[2])
