"""VAETransformer: parameters, validation and building; numpy in, numpy out."""

import os
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from ._estimator.generation import GenerationMixin
from ._estimator.inference import InferenceMixin
from ._estimator.training import TrainingMixin
from ._fast.optimizers import OPTIMIZERS
from ._io.files import FileMixin
from ._io.portable import portable
from ._model.aggregate import fit_aggregate, from_arrays, posterior_draws, to_arrays
from ._model.build import REGISTRIES, check_nested
from ._system.program import own_settings
from .architectures import ARCHITECTURES, Architecture
from .inits import INITS
from .likelihoods import LIKELIHOODS, Gaussian, Likelihood
from .objectives import OBJECTIVES, Objective
from .priors import PRIORS, Prior

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for the mixin that older versions of scikit-learn lack."""


class VAETransformer(
    TrainingMixin,
    GenerationMixin,
    InferenceMixin,
    FileMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Variational autoencoder: a generative dimensionality reducer.

    A neural network with one latent vector z per row of X: z has a prior, a mixture of normal distributions if not told
    otherwise, a decoder network maps it to the distribution of x given z, and an encoder network x to the approximate
    posterior of z. All are trained together, by maximising a lower bound on the log-likelihood of X [1]_.

    The linear model (``hidden_layer_sizes=()`` and ``likelihood=Gaussian(noise="feature")``) is factor analysis, or
    probabilistic PCA when the noise is shared [2]_.
    Every model starts at that solution (``init="linear"``) and training goes on from there, for as long as held-out
    rows confirm it. Scaling X is not needed: real-valued features are standardised inside, and the scores are in the
    units of X.

    Parameters
    ----------
    z_dim : int, default=10
        Number of latent units: the number of columns of `transform`'s output.
    hidden_layer_sizes : int, array-like of int or "auto", default="auto"
        Widths of the encoder's hidden layers; the decoder mirrors them. ``()`` is the linear model. "auto" is
        (128,) for fewer than 1000 rows and (128, 64) from there on.
    likelihood : {"auto", "gaussian", "bernoulli", "continuous_bernoulli", "poisson", "negative_binomial"}, \
            Likelihood or dict, default="auto"
        Distribution of a feature given z, from `skvae.likelihoods`, or an object of your own class derived from
        `skvae.likelihoods.Likelihood`. "auto" is "gaussian", or "bernoulli" where all values that `fit` sees are 0 or
        1; `partial_fit`, whose first rows need not be like the rest, goes by the dtype: bool. Such a guess refuses no
        row: a value outside [0, 1] counts as the nearer end, and costs ``log(1 + distance)`` nats in the score.
        A dict of column names (or places in an array) and likelihoods holds for these columns; the others are as with
        "auto".
    categorical_features : "from_dtype", array-like of {bool, int, str} or None, default="from_dtype"
        Which columns hold categories, of 255 levels at most. "from_dtype" takes those of a DataFrame (pandas or
        polars) whose dtype is category, enum, string or bool, or object unless all cells are numbers; or give indices,
        names or a mask. None takes none. An unknown category counts as missing.
    marginal : {"auto", "standardize", "quantile"}, default="auto"
        How numeric columns become features. "standardize" subtracts the mean and divides by the standard deviation.
        "quantile" goes by each column's distribution: numbers that many rows share are levels in their order
        (cumulative logits), one number that stands out has a flag of its own, and others become normal scores, with the
        Jacobian in the score. "auto" is "standardize" for a table of numbers and "quantile" where other columns are
        beside them.
    condition_features : array-like of {int, str}, default=None
        Columns that are given and not modelled, such as the batch of a measurement: the encoder and the decoder see
        them, the score is that of the other columns given these, and latent coordinates describe what these do not.
    prior : {"auto", "standard_normal", "mixture", "vamp", "flow"} or Prior, default="auto"
        Distribution of z, from `skvae.priors`, or an object of your own class derived from `skvae.priors.Prior`. All
        but "standard_normal" are learned; "flow" needs zuko. "auto" is a mixture of 50 normal distributions, since
        the posteriors of all rows together are rarely like one [8]_; it is "standard_normal" for the linear model and
        for objectives other than the bound.
    objective : {"elbo", "iwae", "dreg", "beta_tc", "mmd"} or Objective, default="elbo"
        What training maximises, from `skvae.objectives`, or an object of your own class derived from
        `skvae.objectives.Objective`; ``ELBO(beta=4)`` is a beta-VAE [4]_. Curves and scores are bounds on the
        log-likelihood whatever was trained.
    architecture : {"mlp", "residual", "conv"} or Architecture, default="mlp"
        The two networks, from `skvae.architectures`: "conv" for rows that are images, `skvae.architectures.Custom` for
        your own modules. `hidden_layer_sizes` holds for all but the last; the nonlinearity is theirs, as in
        ``MLP(activation="tanh")``.
    init : {"linear", "random"}, LinearInit or RandomInit, default="linear"
        Where training starts, from `skvae.inits`. "linear" adds linear paths beside the two networks and starts at the
        optimum of the linear model, in closed form; `LinearInit` says how strongly networks are shrunk towards it, and
        its share in the density. "random" leaves the networks alone and draws their weights from a normal distribution
        with variance 2 / fan_in [3]_.
    learning_rate : float, default=8e-3
        Step size of the optimizer. It rises over the first 50 steps, or 100 for a ``z_dim`` of 1 or 2 and 1000 rows or
        more, and fewer where fewer rows than that have more than 2000 features. It is shorter in proportion for batches
        of fewer than 32 rows and for more than 2000 features, and where training is judged by held-out rows it falls
        linearly to zero in the second phase (see Notes).
    batch_size : int or "auto", default="auto"
        Rows per training step; "auto" is the power of two next to three times the root of the number of rows, at least
        64 and at most 256. A batch is never larger than the table.
    max_iter : int or "auto", default="auto"
        Most passes over the rows (epochs). "auto" allows 33 steps times the root of the number of rows, at least 330
        and at most 10,000, and at most 2000 or a quarter of a step a row, whichever is more; twice as many for a
        ``z_dim`` of 1 or 2 and 1000 rows or more, and fewer where fewer rows than that have more than 2000 features;
        and at least 10 passes. More passes cost time and often give a better model.
    early_stopping : bool, "auto" or "cv", default="auto"
        How the number of steps is chosen. True holds out rows and keeps the state that scores best on them, the start
        included. "cv" trains a model on all rows beside those of five folds, and keeps its state at the step where
        these score best on the rows that they have not seen; one fold has to do for more than 500 features. "auto" is
        True from 1000 rows on and "cv" on smaller tables, where a tenth is too few rows to judge by. False runs
        `max_iter` epochs. A fit that goes on holds out rows in place of "cv".
    validation_fraction : float, default=0.1
        Share of the rows to hold out.
    n_iter_no_change : int or "auto", default="auto"
        Epochs without a rise of the validation score by `tol` after which a phase of training ends. "auto" is an eighth
        of the optimizer steps of ``max_iter="auto"``, its least number of passes aside, and at most 200 steps.
    tol : float, default=1e-4
        Least rise of the validation score that counts, in nats per row.
    optimizer : {"adamw", "adam", "nadam", "rmsprop", "sgd"} or callable, default="adamw"
        Optimizer, or a class with the interface of `torch.optim`, or `functools.partial` of one with options, as in
        ``partial(torch.optim.SGD, momentum=0.9)``. Where training is judged, betas of Adam and AdamW are 0.9 and 0.99
        if not told otherwise, for runs of some hundred steps. A moving average of the weights over some 30 steps is
        what is judged and used.
    n_draws : int, default=100
        Posterior draws per row in `score_samples`, and in `impute` where it draws nothing itself; rows with missing
        cells take as many of the prior beside them.
    device : str or torch.device, default="auto"
        Where to train; "auto" takes an accelerator where there is one.
    callbacks : list, default=None
        Callbacks of skorch, as instances or (name, instance) pairs; copies of them are used.
    checkpoint : str or path-like, default=None
        Folder in which `fit` keeps its state, every five seconds or less often. If its process dies, the next `fit`
        with the same X and parameters goes on from there, to the same bits; with ``random_state=None``, with the seed
        that it had. Each X and set of parameters has a file of its own (callbacks count by their class), which is
        deleted when the fit is done and kept after Ctrl-C. The files are pickles: read none that are not yours.
    warm_start : bool, default=False
        Whether `fit` goes on from the last fit, if there is one, with its scaling, networks and optimizer. What the
        model was made with cannot be another than then, and `fit` refuses it: `z_dim`, `hidden_layer_sizes`,
        `likelihood`, `categorical_features`, `marginal`, `condition_features`, `prior`, `architecture`, `init`,
        `optimizer`, `device` and `random_state`. The other parameters may change; the learning rate goes on from where
        it is unless `learning_rate` does. The same holds for `partial_fit`.
    random_state : int, RandomState instance or None, default=None
        Decides all that is random in `fit` and `score_samples`. Neither torch's nor, given an int, numpy's global
        stream is read or moved.
    verbose : int, default=0
        Whether to print loss, validation score and number of active units at iterations 1, 2, 5, 10, 20, ...

    Attributes
    ----------
    net_ : skorch.NeuralNet
        The net that was trained, with its `history`.
    module_ : torch.nn.Module
        The trained model: encoder, decoder, likelihood and prior.
    likelihood_ : str or Likelihood
        What `likelihood` stood for.
    loss_curve_ : list of float
        Negative bound on the log-likelihood in each epoch, in nats per row and the units of X: the evidence lower
        bound, or the importance-weighted one with an objective of several draws.
    kl_curve_ : list of float
        The KL term in it: the reconstruction term is their difference.
    validation_scores_ : list of float or None
        What training was judged by last in each epoch, in nats per row and the units of X: the bound for held-out rows,
        as mixed with the linear model as `score_samples` has it; with folds their mean. NaN for epochs of a call that
        held no rows out, None if there are no others.
    n_iter_ : int
        Number of epochs run. The state that is kept may be that of an earlier one.
    kl_per_unit_ : ndarray of shape (z_dim,)
        Mean KL divergence of each latent unit's posterior from the prior over the training rows (10,000 of them at
        most, drawn from all), in nats. After `partial_fit` over rows of all calls, as they were encoded then. For a
        learned prior, from the normal distribution with the prior's mean and variance in that unit.
    active_units_ : ndarray of shape (z_dim,)
        Whether the variance of the unit's posterior mean over these rows exceeds 0.01 of the prior's [5]_.
    aggregate_ : sklearn.mixture.GaussianMixture
        Density of the training rows' latent points, for ``sample(latents="aggregate")``.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during `fit`. Defined only when X has feature names that are all strings.

    See Also
    --------
    sklearn.decomposition.PCA : The linear model with noise shared by all features; no samples.
    sklearn.decomposition.FactorAnalysis : The linear model with a noise of each feature.
    sklearn.mixture.GaussianMixture : Density model with samples and scores, without latent coordinates.

    Notes
    -----
    Training that is judged has two phases, each of which ends when the score of held-out rows stops rising, the first
    at the latest after half of `max_iter` (or when an objective has warmed up), the second after as many steps as the
    first had. In the first the encoder sees the rows with noise of the linear model's scale (amortised inference
    regularisation [6]_), and from 1000 rows on the gradient of a feature's mean is weighted by its noise scale
    (beta-NLL [7]_), so that nearly constant features do not take the latent space for themselves. The second goes on
    from the best state, while the learning rate falls to zero, with the bound as it is. Only where rows are to be seen
    in a plane (``z_dim`` of 1 or 2) the noise scale has no say on where they lie, in the first quarter of the steps;
    from 1000 rows on to the end, and gradients stay weighted: neighbours are then more alike, there for some nats of
    density.

    References
    ----------
    .. [1] Kingma & Welling (2014). "Auto-encoding variational Bayes", equation 3. ICLR.
    .. [2] Lucas, Tucker, Grosse & Norouzi (2019). "Don't blame the ELBO!", section 4. NeurIPS.
    .. [3] He, Zhang, Ren & Sun (2015). "Delving deep into rectifiers", equation 10. ICCV.
    .. [4] Higgins et al. (2017). "beta-VAE", equation 4. ICLR.
    .. [5] Burda, Grosse & Salakhutdinov (2016). "Importance weighted autoencoders", section 5.2. ICLR.
    .. [6] Shu, Bui, Zhao, Kochenderfer & Ermon (2018). "Amortized inference regularization", section 3. NeurIPS.
    .. [7] Seitzer, Tavakoli, Antic & Martius (2022). "On the pitfalls of heteroscedastic uncertainty estimation with
       probabilistic neural networks", equation 5. ICLR.
    .. [8] Tomczak & Welling (2018). "VAE with a VampPrior", section 2. AISTATS.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(z_dim=2, max_iter=20, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (150, 2)
    >>> vae.sample(3, random_state=0).shape
    (3, 4)
    """

    # The HTML repr shows its tooltips beside a link only. There is no published site to link to: "#" stays on the page.
    _doc_link_module = "skvae"
    _doc_link_template = "#"

    _parameter_constraints: ClassVar[dict] = {
        "z_dim": [Interval(Integral, 1, None, closed="left")],
        "hidden_layer_sizes": [StrOptions({"auto"}), "array-like", Interval(Integral, 1, None, closed="left")],
        "likelihood": [StrOptions({"auto", *LIKELIHOODS}), Likelihood, dict],
        "categorical_features": [StrOptions({"from_dtype"}), "array-like", None],
        "marginal": [StrOptions({"auto", "standardize", "quantile"})],
        "condition_features": ["array-like", None],
        "prior": [StrOptions({"auto", *PRIORS}), Prior],
        "objective": [StrOptions(set(OBJECTIVES)), Objective],
        "architecture": [StrOptions(set(ARCHITECTURES)), Architecture],
        "init": [StrOptions(set(INITS)), *INITS.values()],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "early_stopping": [StrOptions({"auto", "cv"}), "boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "callbacks": [list, tuple, None],
        "checkpoint": [str, os.PathLike, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        z_dim=10,
        *,
        hidden_layer_sizes="auto",
        likelihood="auto",
        categorical_features="from_dtype",
        marginal="auto",
        condition_features=None,
        prior="auto",
        objective="elbo",
        architecture="mlp",
        init="linear",
        learning_rate=8e-3,
        batch_size="auto",
        max_iter="auto",
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change="auto",
        tol=1e-4,
        optimizer="adamw",
        n_draws=100,
        device="auto",
        callbacks=None,
        checkpoint=None,
        warm_start=False,
        random_state=None,
        verbose=0,
    ):
        self.z_dim = z_dim
        self.hidden_layer_sizes = hidden_layer_sizes
        self.likelihood = likelihood
        self.categorical_features = categorical_features
        self.marginal = marginal
        self.condition_features = condition_features
        self.prior = prior
        self.objective = objective
        self.architecture = architecture
        self.init = init
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.optimizer = optimizer
        self.n_draws = n_draws
        self.device = device
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @own_settings()
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Fit the model to X.

        Parameters
        ----------
        X : array-like, DataFrame, sparse matrix or Chunks of shape (n_samples, n_features)
            Training data; NaN, None and NA are missing cells.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : VAETransformer
            The fitted estimator.

        Raises
        ------
        ValueError
            Before training, if X or a parameter is not valid or X leaves the support of the likelihood; during
            training, if the loss is not finite even after the learning rate has been lowered five times.
        torch.OutOfMemoryError
            If the device's memory does not suffice; the message names the parameters to lower.

        Warns
        -----
        ConvergenceWarning
            If an epoch's loss was not finite, and was undone; and if no latent unit is active.

        Notes
        -----
        Ctrl-C raises KeyboardInterrupt, as everywhere in Python, so that a search or a script ends; the estimator is
        fitted then, as far as training had come.
        """
        return self._fit(X, y, fresh=not (self.warm_start and hasattr(self, "net_")))

    @own_settings()
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """Train for one more epoch on these rows, without held-out ones, as on a chunk of a larger table.

        Scaling and linear start come from the rows of all calls so far: while there are fewer than 1000 (or 5 for each
        feature, if that is more, within ten million values), the model keeps them and starts anew each time that their
        number has doubled. Weight decay is divided by the number of rows seen; a table that begins again, in the same
        order, is not counted twice. Chunks should be in random order, as the first 1000 rows have to stand for the
        rest.

        Calling it k times with the same X is the same, to the bit, as a `fit` with ``max_iter=k`` and
        ``early_stopping=False`` and the same likelihood: ``likelihood="auto"`` is "gaussian" here unless X is of dtype
        bool, since the zeros and ones of a first chunk say little of the next; `fit` takes such a table for
        "bernoulli". Name the likelihood if you know it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to train on, as in `fit`.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : VAETransformer
            The estimator, trained for one epoch more.
        """
        if hasattr(self, "net_"):
            self._validate_params()  # scikit-learn does so at the first call only
        return self._fit(X, y, fresh=not hasattr(self, "net_"), one_epoch=True)

    def set_params(self, **params):
        """Set parameters of the estimator or, as in ``likelihood__noise``, of an object that is a parameter.

        Parameters
        ----------
        **params : dict
            Values by the names of the parameters.

        Returns
        -------
        self : VAETransformer
            The estimator.

        Raises
        ------
        ValueError
            If there is no such parameter, as those of a part that is given by its name.
        """
        check_nested(self.get_params(deep=False), params)
        return super().set_params(**params)

    @own_settings()
    def transform(self, X):
        """Reduce X to latent coordinates: the mean of the posterior q(z | x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to encode.

        Returns
        -------
        Z : ndarray of shape (n_samples, z_dim)
            Posterior means, float32.
        """
        return self._map_parts(X, lambda *part: self._fitted.encode(self._check_X(*part))[0])

    @own_settings()
    def posterior(self, X):
        """Mean and standard deviation of the posterior q(z | x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to encode.

        Returns
        -------
        mean, std : ndarray of shape (n_samples, z_dim)
            Parameters of the diagonal Gaussian, float32.
        """
        both = self._map_parts(X, lambda *part: np.hstack(self._fitted.encode(self._check_X(*part))))
        mean, log_scale = np.split(both, 2, axis=1)
        return mean, np.exp(log_scale)

    @own_settings()
    def score_samples(self, X):
        """Log-likelihood of each row, estimated with `n_draws` importance-weighted posterior draws.

        The estimate is a lower bound in expectation, and tight where the posterior is exact, as for the linear model.
        The draws are the same for every row and every call. Rows far from the training data, such as fill values of
        1e20, have low scores and never NaN; those beyond a million standard deviations are scored in float64.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats per row and the units of X: the Jacobian of the internal scaling is included.
        """
        return self._map_parts(X, self._scores)

    def _scores(self, X, header):
        """`score_samples` of rows that memory holds."""
        X, excess = self._check_rows(X, header)
        return self._fitted.scores(X, self.n_draws) - excess

    def score(self, X, y=None):
        """Mean log-likelihood of the rows: what GridSearchCV maximises where no `scoring` is given.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        score : float
            Mean of `score_samples`, in nats per row.
        """
        return float(np.mean(self.score_samples(X)))

    @property
    def module_(self):
        """The trained VAE, a torch module."""
        return self.net_.average_.eval()

    @property
    @own_settings()
    def aggregate_(self):
        """The density of the training rows' latent points, a GaussianMixture; fitted when first asked for."""
        if not self._aggregate:
            seed, (mean, log_scale) = self.net_.seed, np.split(self._latents, 2, axis=1)
            draws = posterior_draws(mean, np.exp(log_scale), seed, self._stream["n_rows"])
            self._aggregate = to_arrays(fit_aggregate(**draws, seed=seed))
        return from_arrays(self._aggregate)

    def __getstate__(self):
        parts = {kind: getattr(self, kind) for kind in REGISTRIES if isinstance(getattr(self, kind), torch.nn.Module)}
        state = super().__getstate__() | {kind: portable(part) for kind, part in parts.items() if part.state_dict()}
        return state | {"_aggregate": {}} if "_aggregate" in state else state  # equal models, whoever looked at them

    def __copy__(self):
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))  # not the state, whose tensors are made for pickle
        return copied

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.sparse = True
        given = self.likelihood
        likelihood = LIKELIHOODS.get(given, Gaussian)() if isinstance(given, str) else given
        is_one = isinstance(likelihood, Likelihood)  # and no dict by column
        tags.input_tags.allow_nan = not is_one or likelihood.allow_nan
        tags.input_tags.positive_only = is_one and likelihood.non_negative
        return tags
