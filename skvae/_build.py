"""From parameters to what they stand for: names to components, components to a VAE."""

import copy
from numbers import Integral

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from ._module import VAE
from ._random import INIT_STREAM, generator
from .architectures import MLP
from .likelihoods import LIKELIHOODS
from .priors import StandardNormal


def build_vae(*, n_features, z_dim, hidden_layer_sizes, activation, likelihood, init, seed):
    """The module of the net: networks of mirrored hidden layers, with linear paths beside them for the linear start."""
    rng = generator(seed, INIT_STREAM)
    likelihood = copy.deepcopy(likelihood)  # the user's own is left as it is
    likelihood.build(n_features)
    n_outputs = likelihood.n_raw * n_features
    params = {"activation": activation, "generator": rng}
    encoder = MLP(n_features, 2 * z_dim, hidden_layer_sizes=hidden_layer_sizes, **params)
    decoder = MLP(z_dim, n_outputs, hidden_layer_sizes=hidden_layer_sizes[::-1], **params)
    with torch.no_grad():
        encoder.head.weight[z_dim:] *= 0.5  # He's start is meant for log-variances, and these are log-scales
    paths = ()
    if init == "linear" and hidden_layer_sizes:
        paths = [nn.utils.skip_init(nn.Linear, *size, bias=False) for size in ((n_features, z_dim), (z_dim, n_outputs))]
    return VAE(encoder, decoder, likelihood, StandardNormal(z_dim), *paths)


def layer_sizes(sizes):
    sizes = [sizes] if isinstance(sizes, Integral) else list(sizes)
    if not all(isinstance(size, Integral) and size > 0 for size in sizes):
        raise ValueError(
            f"The 'hidden_layer_sizes' parameter of VAETransformer must hold ints > 0. Got {sizes} instead."
        )
    return tuple(map(int, sizes))


def resolve_likelihood(likelihood):
    """The likelihood of that name, or the user's own, unbuilt."""
    return LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood


def guess_likelihood(X):
    """What "auto" becomes. Counts are never guessed: a Gaussian fits them too, and comparably."""
    if X.min() < 0 or X.max() > 1:
        return "gaussian"
    return "bernoulli" if np.all((X == 0) | (X == 1)) else "continuous_bernoulli"


def copies(callbacks):
    """Copies of skorch callbacks, or of (name, callback) pairs: training leaves the user's own untouched."""
    return [(cb[0], copy.copy(cb[1])) if isinstance(cb, tuple) else copy.copy(cb) for cb in callbacks or ()]


class SklearnCallbacks(Callback):
    """Tells scikit-learn's callbacks of each epoch, and lets them end training."""

    def __init__(self, context, fitted, **data):
        self.context = context
        self.fitted = fitted
        self.data = data
        self.task = None

    def on_epoch_begin(self, net, **kwargs):
        if self.task is None:  # else an epoch was undone and comes again
            self.task = self.context.subcontext(task_name="epoch").call_on_fit_task_begin(**self.data)

    def on_epoch_end(self, net, **kwargs):
        task, self.task = self.task, None
        if task.call_on_fit_task_end(**self.data, reconstruction_attributes=self.fitted):
            raise KeyboardInterrupt
