"""VAETransformer: parameters, validation and building; numpy in, numpy out."""

import copy
import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ._aggregate import draw_latents, fit_aggregate, from_arrays, posterior_draws, to_arrays
from ._blocks import BLOCK, apply, chunk_sizes, location_scale, scaled, scaled_blocks
from ._build import (
    REGISTRIES,
    SklearnCallbacks,
    build_vae,
    check_nested,
    copies,
    guess_likelihood,
    layer_sizes,
    resolve,
    resolve_objective,
)
from ._checkpoint import open_checkpoint
from ._checks import check_callbacks, check_monitors, check_net_params, check_optimizer
from ._component import check_component
from ._device import resolve_device
from ._files import FileMixin
from ._linear import linear_start
from ._made_with import check_unchanged, has_changed, made_with
from ._net import CROSS_FIT_ROWS, N_FOLDS, OPTIMIZERS, Schedule, build_net, cross_fit, hold_out, train
from ._portable import portable
from ._random import PRIOR_STREAM, SCORE_STREAM, generator
from .architectures import ACTIVATIONS, ARCHITECTURES, Architecture
from .callbacks import REPORT_ROWS, Report
from .likelihoods import LIKELIHOODS, Likelihood
from .objectives import OBJECTIVES, Objective
from .priors import PRIORS, Prior

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:
        """Stands in for the mixin that older versions of scikit-learn lack."""


_DTYPES = [np.float64, np.float32, np.uint8]  # X keeps these until its blocks are scaled; others become the first


class VAETransformer(FileMixin, CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Variational autoencoder: a generative dimensionality reducer.

    A neural network with one latent vector z per row of X: z has a prior, N(0, I) if not told otherwise, a decoder
    network maps it to the distribution of x given z, and an encoder network x to the approximate posterior of z. Both
    are trained together, by maximising a lower bound on the log-likelihood of X [1]_.

    The linear model (``hidden_layer_sizes=()`` and ``likelihood=Gaussian(noise="feature")``) is factor analysis, or
    probabilistic PCA when the noise is shared [2]_.
    Every model starts at that solution (``init="linear"``) and training goes on from there, for as long as held-out
    rows confirm it. Scaling X is not needed: real-valued features are standardised inside, and the scores are in the
    units of X.

    Parameters
    ----------
    z_dim : int, default=10
        Number of latent units: the number of columns of `transform`'s output.
    hidden_layer_sizes : int or array-like of int, default=(128,)
        Widths of the encoder's hidden layers; the decoder mirrors them. ``()`` is the linear model.
    activation : {"relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh"}, default="relu"
        Nonlinearity of the hidden layers.
    likelihood : {"auto", "gaussian", "bernoulli", "continuous_bernoulli", "poisson", "negative_binomial"} or \
            Likelihood, default="auto"
        Distribution of a feature given z, from `skvae.likelihoods`, or an object of your own class derived from
        `skvae.likelihoods.Likelihood`. "auto" reads the training data: all 0 or 1 is "bernoulli", all inside [0, 1] is
        "continuous_bernoulli", anything else is "gaussian". Counts are never guessed.
    prior : {"standard_normal", "mixture", "vamp", "flow"} or Prior, default="standard_normal"
        Distribution of z, from `skvae.priors`, or an object of your own class derived from `skvae.priors.Prior`. All
        but the first are learned; "flow" needs zuko.
    objective : {"elbo", "iwae", "dreg", "beta_tc", "mmd"} or Objective, default="elbo"
        What training maximises, from `skvae.objectives`, or an object of your own class derived from
        `skvae.objectives.Objective`. Curves and scores are bounds on the log-likelihood whatever was trained.
    architecture : {"mlp", "residual", "conv"} or Architecture, default="mlp"
        The two networks, from `skvae.architectures`: "conv" for rows that are images, `skvae.architectures.Custom` for
        your own modules. `hidden_layer_sizes` and `activation` hold for all but the last.
    init : {"linear", "random"}, default="linear"
        Where training starts. "linear" adds linear paths beside the two networks and starts at the optimum of the
        linear model, in closed form; the networks start at zero output. "random" leaves the networks alone and draws
        their weights from a normal distribution with variance 2 / fan_in [3]_.
    linear_share : float, default=0.01
        Share of the linear model in the density that `score_samples` gives and ``sample(noise=True)`` draws from, where
        the features are real-valued and the start is linear. No row then scores lower than ``log(linear_share)`` below
        the linear model: a network says anything about rows far from those it was trained on.
    beta : float, default=None
        Weight of the KL term [4]_. Above 1 fewer units stay active; 0 is an autoencoder. With ``objective="beta_tc"``
        the weight of the total correlation. None takes the objective's own, 1 and 6; other objectives have none.
    learning_rate : float, default=1e-3
        Step size of the optimizer. With ``batch_size="auto"`` it grows in proportion to batches beyond 64 rows. With a
        held-out set it falls, twice, when the validation score stops rising.
    batch_size : int or "auto", default="auto"
        Rows per training step; "auto" is about a twentieth of the rows, at least 32 and at most 256. A batch is never
        larger than the table.
    max_iter : int or "auto", default="auto"
        Most passes over the rows (epochs). "auto" allows 2000 steps on tables of fewer than 1000 rows, 10,000 on
        others, and at least 20 passes.
    early_stopping : bool or "auto", default="auto"
        How the number of epochs is chosen. True holds out rows and keeps the state that scores best on them, the start
        included. "auto" does so too from 1000 rows on; on smaller tables, where a tenth is too few rows to judge by, it
        finds the number of epochs by 5-fold cross-validation and then trains on all rows. False runs `max_iter`
        epochs.
    validation_fraction : float, default=0.1
        Share of the rows to hold out.
    n_iter_no_change : int or "auto", default="auto"
        Epochs without a rise of the validation score by `tol` after which the learning rate falls and, at the third
        time, training stops. "auto" is 300 steps, on 1000 rows or more 1000, and at least 3 epochs.
    tol : float, default=1e-4
        Least rise of the validation score that counts, in nats per row.
    optimizer : {"adamw", "adam", "nadam", "rmsprop", "sgd"} or callable, default="adamw"
        Optimizer, or a class with the interface of `torch.optim`.
    weight_decay : float, default=300.0
        Shrinkage of the networks' weights beside the linear paths, divided by the number of rows as a prior's would
        be. Linear paths and biases are not shrunk, so that a strong decay leads back to the linear model; without
        linear paths nothing is.
    ema_decay : float, default=0.99
        Decay, per training step, of the moving average of the weights that is validated and used. 0 uses the last
        weights.
    n_draws : int, default=100
        Posterior draws per row in `score_samples`.
    device : str or torch.device, default="auto"
        Where to train; "auto" takes an accelerator where there is one.
    callbacks : list, default=None
        Callbacks of skorch, as instances or (name, instance) pairs; copies of them are used.
    checkpoint : str or path-like, default=None
        Folder in which `fit` keeps its state, every five seconds or less often. If its process dies, the next `fit`
        with the same X and parameters goes on from there, to the same bits; with ``random_state=None``, with the seed
        that it had. Each X and set of parameters has a file of its own (callbacks count by their class), which is
        deleted when the fit is done and kept after Ctrl-C. The files are pickles: read none that are not yours.
    net_params : dict, default=None
        Further parameters of the skorch net, such as ``{"optimizer__weight_decay": 1e-4}``; not those that the
        estimator has a parameter for.
    warm_start : bool, default=False
        Whether `fit` goes on from the last fit, if there is one, with its scaling, networks and optimizer. What the
        model was made with cannot be another than then, and `fit` refuses it: `z_dim`, `hidden_layer_sizes`,
        `activation`, `likelihood`, `prior`, `architecture`, `init`, `linear_share`, `optimizer`, `weight_decay`,
        `ema_decay`, `device`, `net_params` and `random_state`. The other parameters may change; the learning rate goes
        on from where it is unless `learning_rate` does. The same holds for `partial_fit`.
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
        The same bound for held-out rows after each epoch, in nats per row and the units of X; with cross-validation the
        mean over the folds, before the training on all rows.
    n_iter_ : int
        Number of epochs run.
    kl_per_unit_ : ndarray of shape (z_dim,)
        Mean KL divergence of each latent unit's posterior from the prior over the training rows (10,000 at most), in
        nats. For a learned prior, from the normal distribution with the prior's mean and variance in that unit.
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

    References
    ----------
    .. [1] Kingma & Welling (2014). "Auto-encoding variational Bayes", equation 3. ICLR.
    .. [2] Lucas, Tucker, Grosse & Norouzi (2019). "Don't blame the ELBO!", section 4. NeurIPS.
    .. [3] He, Zhang, Ren & Sun (2015). "Delving deep into rectifiers", equation 10. ICCV.
    .. [4] Higgins et al. (2017). "beta-VAE", equation 4. ICLR.
    .. [5] Burda, Grosse & Salakhutdinov (2016). "Importance weighted autoencoders", section 5.2. ICLR.

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
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "likelihood": [StrOptions({"auto", *LIKELIHOODS}), Likelihood],
        "prior": [StrOptions(set(PRIORS)), Prior],
        "objective": [StrOptions(set(OBJECTIVES)), Objective],
        "architecture": [StrOptions(set(ARCHITECTURES)), Architecture],
        "init": [StrOptions({"linear", "random"})],
        "linear_share": [Interval(Real, 0, 1, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "early_stopping": [StrOptions({"auto"}), "boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "callbacks": [list, tuple, None],
        "checkpoint": [str, os.PathLike, None],
        "net_params": [dict, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        z_dim=10,
        *,
        hidden_layer_sizes=(128,),
        activation="relu",
        likelihood="auto",
        prior="standard_normal",
        objective="elbo",
        architecture="mlp",
        init="linear",
        linear_share=0.01,
        beta=None,
        learning_rate=1e-3,
        batch_size="auto",
        max_iter="auto",
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change="auto",
        tol=1e-4,
        optimizer="adamw",
        weight_decay=300.0,
        ema_decay=0.99,
        n_draws=100,
        device="auto",
        callbacks=None,
        checkpoint=None,
        net_params=None,
        warm_start=False,
        random_state=None,
        verbose=0,
    ):
        self.z_dim = z_dim
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.prior = prior
        self.objective = objective
        self.architecture = architecture
        self.init = init
        self.linear_share = linear_share
        self.beta = beta
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.n_draws = n_draws
        self.device = device
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.net_params = net_params
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Fit the model to X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
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

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """Train for one more epoch, without held-out rows; the first call sets scaling and start from its X.

        Calling it k times with the same X is the same, to the bit, as a `fit` with ``max_iter=k`` and
        ``early_stopping=False``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : VAETransformer
            The fitted estimator.
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
        X, vae = self._check_X(X), self.module_
        return apply(lambda x: vae.encode(x)[0], self._scaled_blocks(X), len(X))

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
        mean, log_scale = self._encode(self._check_X(X))
        return mean, np.exp(log_scale)

    def inverse_transform(self, X):
        """Map latent coordinates back to features: E[x | z].

        Parameters
        ----------
        X : array-like of shape (n_samples, z_dim)
            Latent coordinates.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
            Means of p(x | z) in the units of X, float32.
        """
        check_is_fitted(self)
        X = check_array(X, dtype=np.float32, input_name="X", estimator=self)
        if X.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__}.inverse_transform is expecting "
                f"{self._n_features_out} features as input."
            )
        vae = self.module_
        return self._decode(lambda z: vae.likelihood.mean(vae.decode(z)), X)

    def sample(self, n_samples=1, *, noise=False, latents="prior", random_state=None):
        """Draw rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        noise : bool, default=False
            Whether to draw x from p(x | z), as the model has it, or return E[x | z].
        latents : {"prior", "aggregate"}, default="prior"
            Where z is drawn from: the prior, as the model has it, or `aggregate_`, a Gaussian mixture fitted to the
            training rows' latent points (Ghosh et al., 2020), which keeps out of parts of the prior without rows.
        random_state : int, RandomState instance or None, default=None
            Source of the draws. None takes numpy's global stream.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows in the units of X, float32.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        if latents not in ("prior", "aggregate"):
            raise ValueError(f"latents must be 'prior' or 'aggregate'. Got {latents!r} instead.")
        random_state = check_random_state(random_state)
        rng, vae = generator(int(random_state.randint(np.iinfo(np.int32).max))), self.module_
        if latents == "aggregate":
            z = draw_latents(self.aggregate_, n_samples, random_state)
        else:
            with torch.no_grad():
                z = vae.prior.sample(n_samples, rng).cpu().numpy()
        if not noise:
            return self.inverse_transform(z)
        return self._decode(lambda z: vae.sample(z, rng), z)

    def score_samples(self, X):
        """Log-likelihood of each row, estimated with `n_draws` importance-weighted posterior draws.

        The estimate is a lower bound in expectation, and tight where the posterior is exact, as for the linear model.
        The draws are the same for every row and every call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats per row and the units of X: the Jacobian of the internal scaling is included.
        """
        X = self._check_X(X)
        vae, rng = self.module_, generator(self.net_.seed, SCORE_STREAM)
        eps = torch.randn(self.n_draws, 1, self._n_features_out, generator=rng).to(self.net_.device)
        n_rows, n_parts = chunk_sizes(self.n_draws, X.shape[1])

        def log_likelihood(x):
            weights = torch.cat([vae.log_weights(x, part) for part in eps.tensor_split(n_parts)])
            return vae.mixed(weights.logsumexp(0) - math.log(self.n_draws), x)

        rows = apply(log_likelihood, self._scaled_blocks(X, n_rows), len(X))
        return rows.astype(np.float64) + self.net_.log_jacobian

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
        return self.net_.trained_module.eval()

    @property
    def aggregate_(self):
        """The density of the training rows' latent points, a GaussianMixture; fitted when first asked for."""
        if "draws" in self._aggregate:
            self._aggregate = to_arrays(fit_aggregate(**self._aggregate, seed=self.net_.seed))
        return from_arrays(self._aggregate)

    def __getstate__(self):
        parts = {kind: getattr(self, kind) for kind in REGISTRIES if isinstance(getattr(self, kind), torch.nn.Module)}
        return super().__getstate__() | {kind: portable(part) for kind, part in parts.items() if part.state_dict()}

    def __copy__(self):
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))  # not the state, whose tensors are made for pickle
        return copied

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        likelihood = LIKELIHOODS.get(self.likelihood) if isinstance(self.likelihood, str) else self.likelihood
        tags.input_tags.positive_only = getattr(likelihood, "non_negative", False)
        return tags

    # Validation

    def _validate_params(self):
        """All that can be refused without seeing X; scikit-learn calls it before `fit`."""
        super()._validate_params()
        for kind in REGISTRIES:
            if not isinstance(getattr(self, kind), str):
                check_component(getattr(self, kind))
        check_callbacks(self.callbacks)
        net_params = self.net_params or {}
        check_net_params(net_params, self.get_params(deep=False).keys())
        if callable(self.optimizer) or any(name.startswith("optimizer__") for name in net_params):
            check_optimizer(OPTIMIZERS.get(self.optimizer, self.optimizer), self.learning_rate, net_params)

    def _check_first(self, X):
        """Validated X and what `likelihood` stands for; nothing is set on self, so that a refusal loses nothing."""
        X = check_array(X, dtype=_DTYPES, input_name="X", estimator=self)
        likelihood = self.likelihood
        if isinstance(likelihood, str) and likelihood == "auto":
            likelihood = guess_likelihood(X)
        self._check_values(X, likelihood)
        return X, likelihood

    def _check_X(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_DTYPES, reset=False)
        self._check_values(X, self.likelihood_)
        return X

    def _check_values(self, X, likelihood):
        if X.dtype == np.float64 and max(X.max(), -X.min()) > np.finfo(np.float32).max:
            raise ValueError("Input X contains infinity or a value too large for dtype('float32').")
        is_name = isinstance(likelihood, str)
        name = likelihood if is_name else type(likelihood).__name__
        (LIKELIHOODS[name]() if is_name else likelihood).check(X, f"{type(self).__name__} (likelihood={name!r})")

    # Training

    def _fit(self, X, y, *, fresh, one_epoch=False):
        if fresh:
            values, likelihood = self._check_first(X)
            asked = made_with(self.get_params(deep=False), likelihood)
            seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        else:
            asked = made_with(self.get_params(deep=False), self.likelihood_)
            whose = "partial_fit" if one_epoch else "warm_start"
            check_unchanged(getattr(self, "_made_with", {}), asked, whose, self.device, self.net_.device)
            values, likelihood, seed = self._check_X(X), self.likelihood_, self.net_.seed
        select = self.early_stopping and not one_epoch
        cross = fresh and self.early_stopping == "auto" and len(values) < CROSS_FIT_ROWS
        if not select or cross:
            check_monitors(self.callbacks, self._why_none_held_out(one_epoch))
        checkpoint = None
        if self.checkpoint is not None and not one_epoch:
            checkpoint = open_checkpoint(self.get_params(deep=False), seed, values, None if fresh else self.net_)
            seed = checkpoint.seed
        if fresh:
            make_net, x = self._prepare(values, likelihood, seed)
        else:
            x = scaled(values, self.net_.offset, self.net_.scale)
        schedule = self._schedule(len(x), one_epoch)
        rows = x_valid = scores = None
        if select and not cross:
            rows, valid_rows = hold_out(len(x), self.validation_fraction, seed)
            x_valid = x[valid_rows]
        if fresh:  # before the cross-validation: what its callbacks refuse, they refuse before any work
            net = make_net(rows, callbacks=copies(self.callbacks))
            net.given_callbacks_ = list(self.callbacks or ())
        else:
            net = self._net_to_go_on(asked, len(x))
        if select and cross and len(x) >= 2 * N_FOLDS:
            scores, n_epochs = cross_fit(make_net, x, schedule)
            schedule = replace(schedule, n_epochs=n_epochs)
        with self._task(net, likelihood, schedule.n_epochs, X, y) as bridge:
            reports = [Report()] if self.verbose else []
            train(net, x, schedule, x_valid, [*bridge, *reports], rows=rows, checkpoint=checkpoint)
        self._set_fitted(net, likelihood, X)
        self._made_with = asked
        self._report(values, scores)
        if net.interrupted_ or not schedule.n_epochs:
            raise KeyboardInterrupt(
                f"Training was interrupted. The model is fitted as it stands, after {self.n_iter_} epoch(s)."
            )
        if checkpoint:
            checkpoint.remove()
        return self

    def _why_none_held_out(self, one_epoch):
        if one_epoch:
            return "partial_fit holds none out"
        small = f" holds none out of fewer than {CROSS_FIT_ROWS} rows" if self.early_stopping else " holds none out"
        return f"early_stopping={self.early_stopping!r}{small}"

    def _net_to_go_on(self, asked, n_rows):
        """The fitted net, with what was changed since and may be changed."""
        net, then = self.net_, getattr(self, "_made_with", {})  # files of old have none
        given = list(self.callbacks or ())
        if [id(callback) for callback in given] != [id(callback) for callback in net.given_callbacks_]:
            net.set_callbacks(copies(given))
            net.given_callbacks_ = given
        if has_changed("objective", then, asked):
            net.set_objective(resolve_objective(self.objective, self.beta))
        if has_changed("learning_rate", then, asked):
            net.set_params(lr=self._learning_rate(n_rows))
        return net

    def _learning_rate(self, n_rows):
        """The optimizer's, which grows with the batches that "auto" makes."""
        if self.batch_size != "auto":
            return self.learning_rate
        return self.learning_rate * max(1, Schedule.resolve(n_rows).batch_size / 64)

    def _schedule(self, n_rows, one_epoch):
        given = {"batch_size": self.batch_size, "n_iter_no_change": self.n_iter_no_change, "tol": self.tol}
        schedule = Schedule.resolve(n_rows, max_iter=self.max_iter, **given)
        return replace(schedule, n_epochs=1) if one_epoch else schedule

    def _prepare(self, X, likelihood, seed):
        """A function of the numbers of training rows that makes a net at its start, and all rows in its units."""
        device = resolve_device(self.device)
        objective = resolve_objective(self.objective, self.beta)
        likelihood = resolve("likelihood", likelihood)
        offset, scale = location_scale(X) if likelihood.standardize else (0.0, 1.0)
        all_rows = scaled(X, offset, scale)
        sizes, architecture = layer_sizes(self.hidden_layer_sizes), resolve("architecture", self.architecture)
        has_paths = self.init == "linear" and not architecture.is_linear(sizes)
        learning_rate = self._learning_rate(len(X))

        def make_net(rows=None, callbacks=None):
            numbers = np.arange(len(all_rows)) if rows is None else rows
            net = build_net(
                build_vae,
                copy.deepcopy(objective),
                optimizer=self.optimizer,
                lr=learning_rate,
                ema_decay=self.ema_decay,
                weight_decay=self.weight_decay / len(numbers) if has_paths else 0.0,
                callbacks=callbacks,
                device=device,
                seed=seed,
                offset=offset,
                scale=scale,
                module__n_features=X.shape[1],
                module__z_dim=self.z_dim,
                module__hidden_layer_sizes=sizes,
                module__activation=self.activation,
                module__likelihood=likelihood,
                module__prior=resolve("prior", self.prior),
                module__architecture=architecture,
                module__init=self.init,
                module__linear_share=self.linear_share,
                module__seed=seed,
                **(self.net_params or {}),
            )
            vae = net.module_.cpu()
            with torch.no_grad():
                raw = vae.likelihood.start(all_rows)  # statistics of single features, as offset and scale are
                some = numbers[:: -(-len(numbers) // REPORT_ROWS)]
                vae.prior.start(vae.likelihood.inputs(all_rows[some]), generator(seed, PRIOR_STREAM))
            if self.init == "linear":
                linear_start(vae, all_rows, raw, beta=objective.kl_weight, seed=seed, rows=rows)
            net.load_state(vae.to(net.device).state_dict())
            return net

        return make_net, all_rows

    @contextmanager
    def _task(self, net, likelihood, n_epochs, X, y):
        """Tell scikit-learn's callbacks of the fit; yields the skorch callback that tells them of its epochs."""
        if not hasattr(self, "_skl_callbacks"):
            yield []
            return
        data = {"estimator": self, "X": X, "y": y}
        context = self._init_callback_context(max_subtasks=n_epochs).call_on_fit_task_begin(**data)
        fitted = copy.copy(self)
        fitted._set_fitted(net, likelihood, X)
        yield [SklearnCallbacks(context, vars(fitted), **data)]
        context.call_on_fit_task_end(**data, reconstruction_attributes=vars(fitted))

    def _set_fitted(self, net, likelihood, X):
        validate_data(self, X, reset=not hasattr(self, "net_") or net is not self.net_, skip_check_array=True)
        self.net_, self.likelihood_, self._n_features_out = net, likelihood, net.z_dim

    def _report(self, X, scores):
        """Attributes that tell how training went, and a warning where the latent space is empty."""
        history, shift = self.net_.history, self.net_.log_jacobian
        self.loss_curve_ = [-row["train_bound"] - shift for row in history if "train_bound" in row]
        self.kl_curve_ = [row["train_kl"] for row in history if "train_kl" in row]
        self.n_iter_ = len(self.loss_curve_)
        if scores is None and history and "valid_bound" in history[0]:
            scores = [row["valid_bound"] for row in history if "valid_bound" in row]
        self.validation_scores_ = None if scores is None else [float(score) + shift for score in scores]
        mean, log_scale = self._encode(X[:REPORT_ROWS])
        prior, tensors = self.module_.prior, [torch.from_numpy(part) for part in (mean, log_scale)]
        with torch.no_grad():
            self.kl_per_unit_ = prior.kl_per_unit(*tensors).numpy().mean(axis=0)
            self.active_units_ = prior.active_units(tensors[0]).numpy()
        self._aggregate = posterior_draws(mean, np.exp(log_scale), self.net_.seed)
        if not self.active_units_.any() and len(X) > 1:
            warnings.warn(
                "No latent unit is active: E[z | x] has at most 0.01 of the prior's variance (posterior collapse). The "
                "features may be independent of each other; otherwise lower `beta` or set `init='linear'`.",
                ConvergenceWarning,
                stacklevel=4,
            )

    # Inference

    def _encode(self, X):
        """Mean and log-scale of the posterior of each row of a validated X."""
        vae = self.module_
        both = apply(lambda x: torch.cat(vae.encode(x), dim=-1), self._scaled_blocks(X), len(X))
        return np.split(both, 2, axis=1)

    def _scaled_blocks(self, X, size=BLOCK):
        net = self.net_
        return scaled_blocks(X, net.offset, net.scale, net.device, size)

    def _decode(self, function, z):
        """What `function` makes of latent coordinates, brought to the units of X."""
        blocks = scaled_blocks(z, 0.0, 1.0, self.net_.device)
        return apply(function, blocks, len(z), self._in_units_of_X)

    def _in_units_of_X(self, x):
        if np.ndim(self.net_.scale) == 0:
            return x
        return (x * self.net_.scale + self.net_.offset).astype(np.float32)
