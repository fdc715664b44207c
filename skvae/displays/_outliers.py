"""Why rows are outliers."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ._estimator import check_count
from ._figure import COLORS, label_edges, panels


class ExplanationDisplay:
    """What each row loses by its columns: a panel for each row, with bars of nats, the longest on top.

    Create it with :meth:`from_estimator`; the parameters are kept as attributes.

    Parameters
    ----------
    nats : ndarray of shape (n_samples, n_features)
        Nats lost, as `skvae.VAEOutlierDetector.explain` returns them.
    feature_names : list of str
        Names of the columns.
    scores : ndarray of shape (n_samples,), default=None
        Scores of the rows, for the titles.
    n_features : int, default=8
        Number of bars of a row, those of the largest loss.

    Attributes
    ----------
    axes_ : ndarray of Axes
        A panel for each row.
    figure_ : Figure
        The figure.
    bars_ : list of BarContainer
        The bars of each panel.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAEOutlierDetector, VAETransformer
    >>> from skvae.displays import ExplanationDisplay
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, early_stopping=False)
    >>> detector = VAEOutlierDetector(vae, random_state=0).fit(X)
    >>> display = ExplanationDisplay.from_estimator(detector, X[:3])
    >>> len(display.axes_)
    3
    """

    def __init__(self, *, nats, feature_names, scores=None, n_features=8):
        self.nats = nats
        self.feature_names = feature_names
        self.scores = scores
        self.n_features = n_features

    @classmethod
    def from_estimator(cls, estimator, X, *, n_features=8, ax=None, **kwargs):
        """Explain rows and draw what they lose.

        Parameters
        ----------
        estimator : VAEOutlierDetector
            A fitted detector.
        X : array-like of shape (n_samples, n_features)
            Rows to explain, a few: each gets a panel.
        n_features : int, default=8
            Number of bars of a row, those of the largest loss.
        ax : array-like of Axes, default=None
            Where to draw, one for each row; None makes a figure.
        **kwargs : dict
            Further parameters of :meth:`plot`.

        Returns
        -------
        display : ExplanationDisplay
            The display.
        """
        check_is_fitted(estimator)
        check_count(n_features, "n_features")
        names = getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(estimator.n_features_in_)])
        nats, scores = estimator.explain(X), estimator.score_samples(X)
        return cls(nats=nats, feature_names=list(names), scores=scores, n_features=n_features).plot(ax, **kwargs)

    def plot(self, ax=None, *, bar_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : array-like of Axes, default=None
            Where to draw, one for each row; None makes a figure.
        bar_kw : dict, default=None
            Parameters of the bars, for :meth:`matplotlib.axes.Axes.barh`.

        Returns
        -------
        display : ExplanationDisplay
            The display.
        """
        height = 0.8 + 0.22 * min(self.n_features, len(self.feature_names))
        self.axes_ = panels(ax, len(self.nats), size=(3.2, height))
        label_edges(self.axes_, "nats lost")
        self.bars_ = [self._plot_row(ax, i, bar_kw or {}) for i, ax in enumerate(self.axes_)]
        self.figure_ = self.axes_[0].figure
        return self

    def _plot_row(self, ax, i, bar_kw):
        most = np.argsort(-self.nats[i], kind="stable")[: self.n_features]
        if self.scores is not None:
            ax.set_title(f"score {self.scores[i]:.2f}", fontsize=10)
        bars = ax.barh(range(len(most)), self.nats[i, most], **{"color": COLORS[0], **bar_kw})
        ax.set_yticks(range(len(most)), [self.feature_names[column] for column in most], fontsize=8)
        ax.invert_yaxis()
        return bars
