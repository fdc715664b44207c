"""From parameters to what they stand for: names to components, components to a VAE."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

from .._data.batch import Batch
from .._data.holes import without_holes
from .._data.rows import dtype_of, gathered, row_blocks
from .._data.split import Rows
from .._fast.optimizers import optimizer_of, shown
from .._system.random import INIT_STREAM, PRIOR_STREAM, generator, subsample
from .._training.guard import StopTraining
from ..architectures import ARCHITECTURES, Architecture, NetworkSpec, check_network, uninitialised
from ..callbacks import REPORT_ROWS
from ..inits import INITS, Init, LinearInit
from ..likelihoods import LIKELIHOODS, Bernoulli, Likelihood
from ..objectives import OBJECTIVES, Objective
from ..priors import PRIORS, Prior
from .columns import Categorical, Columns, MarginalBackground, Ordinal
from .component import Component, Epochal
from .gaussian import Background, LinearGaussian
from .linear import linear_start
from .module import VAE

_MAX_NOISE, _MAX_NOISE_OF_FEW = 0.5, 0.25  # of the encoder's inputs, in standard deviations of the feature
_MANY_ROWS = 1000  # from which on two hidden layers serve better than one
_FAR_LEVELS = 0.5  # in the same unit
_ROWS_TO_LOOK_AT = 32  # fewer than most batches: an objective may need some for what it estimates in a batch

REGISTRIES: dict[str, Mapping[str, type[Component]]] = {
    "likelihood": LIKELIHOODS,
    "prior": PRIORS,
    "objective": OBJECTIVES,
    "architecture": ARCHITECTURES,
    "init": INITS,
}


def resolve(kind, component):
    """The component of that name, or a copy of the user's own, unbuilt."""
    return REGISTRIES[kind][component]() if isinstance(component, str) else copy.deepcopy(component)


def check_nested(params, changes):
    """Refuse parameters of parts that are given by name, as in ``likelihood__noise``, among the `changes`."""
    for key, value in changes.items():
        name, nested, parameter = key.partition("__")
        part = changes.get(name, params.get(name))
        if not nested or name not in params or hasattr(part, "set_params"):
            continue
        kind = _class_with(REGISTRIES.get(name, {}), part, parameter)
        if isinstance(part, str) and kind:
            raise ValueError(
                f"{name}={part!r} is a name, which has no parameters: write {name}={kind.__name__}"
                f"({parameter}={value!r}), with {kind.__name__} of {kind.__module__}."
            )
        whole = f"{name} as a whole"
        if name == "optimizer":
            kind, options = optimizer_of(part)
            whole = f"optimizer={shown(partial(kind, **options | {parameter: value}))}"
        hint = "learning_rate" if key == "optimizer__lr" else whole
        raise ValueError(f"Invalid parameter {key!r}: {name}={part!r} has no such parameter. Set {hint}.")


def _class_with(registry, name, parameter):
    """The class that a name stands for, or else the first one, that has the parameter; None where none has."""
    kinds = [registry[name]] if isinstance(name, str) and name in registry else []
    return next((kind for kind in (*kinds, *registry.values()) if parameter in kind._get_param_names()), None)


def build_vae(
    *,
    n_features: int,
    z_dim: int,
    hidden_layer_sizes: Sequence[int],
    architecture: Architecture,
    likelihood: Likelihood,
    prior: Prior,
    init: Init,
    seed: int,
    n_context: int = 0,
) -> VAE:
    """The module of the net: networks of mirrored hidden layers, with linear paths beside them for the linear start."""
    rng = generator(seed, INIT_STREAM)
    encoder, decoder = copy.deepcopy(architecture), copy.deepcopy(architecture)
    likelihood, prior = copy.deepcopy(likelihood), copy.deepcopy(prior)
    likelihood.build(n_features)
    n_outputs = likelihood.n_raw * n_features
    specs = [
        NetworkSpec(n_features + n_context, 2 * z_dim, hidden_layer_sizes, None, rng),
        NetworkSpec(z_dim + n_context, n_outputs, hidden_layer_sizes[::-1], likelihood.n_raw, rng),
    ]
    for network, spec in zip((encoder, decoder), specs, strict=True):
        network.build(spec)
        check_network(network, spec)
    prior.build(z_dim, n_features + n_context, rng)
    if getattr(prior, "z_dim", None) != z_dim:
        raise ValueError(f"{type(prior).__name__}.build must call super().build(z_dim, n_features, generator) first.")
    with torch.no_grad():
        encoder.head.weight[z_dim:] *= 0.5  # He's start is meant for log-variances, and these are log-scales
    linear: dict[str, Any] = {}
    if isinstance(init, LinearInit) and not architecture.is_linear(hidden_layer_sizes):
        sizes = {
            "linear_encoder": (n_features + n_context, z_dim),
            "linear_decoder": (z_dim + n_context, n_outputs),
        }
        linear = {name: uninitialised(nn.Linear, *size, bias=False) for name, size in sizes.items()}
        background = background_of(likelihood, n_features, z_dim)
        if init.share and background is not None:
            linear |= {"background": background, "share": init.share}
    if n_context or not isinstance(linear.get("background"), LinearGaussian):
        linear["filler"] = LinearGaussian(n_features, z_dim)
    return VAE(encoder, decoder, likelihood, prior, **linear, n_context=n_context)


def background_of(likelihood: Likelihood, n_features: int, z_dim: int) -> Background | None:
    """The density beside the model, of a Gaussian or of columns of several kinds."""
    if isinstance(likelihood, Columns):
        first = int(likelihood.parts[0].is_normal)
        others = Columns(copy.deepcopy(likelihood.parts[first:]), likelihood.sizes[first:])
        return MarginalBackground(sum(likelihood.sizes[:first]), z_dim, others)
    return LinearGaussian(n_features, z_dim) if likelihood.is_normal else None


def _check_log_prob(likelihood: Likelihood, x: Tensor) -> None:
    """Refuse a likelihood of the user's own whose `log_prob` is not by feature."""
    found, name = likelihood.log_prob(x.new_zeros(len(x), likelihood.n_raw, x.shape[1]), x), type(likelihood).__name__
    what = f"{name}.log_prob must return a value for each feature, of the shape of x. Do not sum over the features"
    _check_shape(found, tuple(x.shape), what)


def _check_shape(found: Any, wanted: tuple[int, ...], what: str) -> None:
    """Refuse what a method of the user's own has returned if it is no tensor of that shape; `what` says the rule."""
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != wanted:
        raise ValueError(f"{what}: here {wanted}. Got {shape} instead.")


def _check_prior(prior: Prior) -> None:
    """Refuse a prior of the user's own whose log-densities are not by point, or whose draws are no points."""
    if type(prior) in PRIORS.values():
        return
    name, z_dim = type(prior).__name__, prior.z_dim
    n = z_dim + 1  # so that no dimension is taken for another
    with torch.random.fork_rng(devices=[]):
        log_prob, draws = prior.log_prob(torch.zeros(2, n, z_dim)), prior.sample(n, generator(0))
    _check_shape(log_prob, (2, n), f"{name}.log_prob must return a value for each point, of shape z.shape[:-1]")
    _check_shape(draws, (n, z_dim), f"{name}.sample must return a row for each point, of shape (n, z_dim)")


def check_objective(objective: Objective, vae: VAE, x: Any) -> None:
    """Refuse an objective of the user's own that does not give three values for each row, of which it sees the first
    ones in `x`. What it does to its copies stays there."""
    if type(objective) in OBJECTIVES.values():
        return
    if learned := [name for name, _ in objective.named_parameters()]:
        raise ValueError(
            f"{type(objective).__name__} has the parameter {learned[0]!r}, and the parameters of an objective are not "
            "trained: make it a buffer, or a parameter of the prior or of the likelihood."
        )
    objective, vae, rng = copy.deepcopy(objective).to(x.device).train(), copy.deepcopy(vae).train(), generator(0)
    rows = torch.arange(min(_ROWS_TO_LOOK_AT, len(x)))
    n_draws = (objective.n_draws,) if objective.n_draws > 1 else ()
    with torch.random.fork_rng(devices=[]):
        fields = Rows(x[rows], vae).take(rows, rng)
        eps = torch.randn(*n_draws, len(rows), vae.prior.z_dim, generator=rng).to(fields["x"])
        for part in [*vae.modules(), *objective.modules()]:
            if isinstance(part, Epochal):
                part.begin_epoch(1, 100, rng)
        _check_terms(objective(vae, Batch(**fields, eps=eps)), (len(rows),), type(objective).__name__)


def _check_terms(terms: Any, wanted: tuple[int, ...], name: str) -> None:
    parts = terms if isinstance(terms, tuple | list) else [terms]
    what = f"{name}.forward must return three tensors of shape (batch,), value, reconstruction and KL of each row"
    if len(parts) != 3:
        raise ValueError(f"{what}. Got {len(parts)} value(s) instead.")
    for part in parts:
        _check_shape(part, wanted, what)


def started_vae(
    recipe: dict[str, Any], x: Tensor, rows: Tensor, kl_weight: float, near: VAE | None = None, awake: bool = False
) -> VAE:
    """The VAE that `recipe` builds, at its start on the `rows` of `x`, of which `near` is one on most of them; see
    `linear_start`."""
    vae, seed, filled = build_vae(**recipe), recipe["seed"], without_holes(x)
    with torch.no_grad():
        filled, context = vae.parts(filled)
        _check_log_prob(vae.likelihood, filled[:2])
        raw = vae.likelihood.start(filled)  # statistics of single features, as the scaling's are of all rows
        some = torch.from_numpy(subsample(rows.numpy(), REPORT_ROWS, seed))
        inputs = vae.likelihood.inputs(filled[some])
        seen = inputs if context is None else torch.cat([inputs, context[some]], -1)
        vae.prior.start(seen, generator(seed, PRIOR_STREAM))
        _check_prior(vae.prior)
        if vae.filler is not None:
            vae.filler.mean.copy_(inputs.mean(0))
    if isinstance(recipe["init"], LinearInit):
        linear_start(vae, x, raw, beta=kl_weight, seed=seed, rows=rows, near=near, awake=awake)
    else:
        vae.likelihood.settle()
    return vae


def input_noise(vae: VAE, x: Tensor, kl_weight: float, few: bool) -> Tensor | None:
    """Standard deviation of the noise that the encoder sees in the first phase of training, by feature; None for none.

    It is the linear model's, as the weight of the KL term makes it seem, up to a half of the feature's own standard
    deviation, or a quarter for few rows: the posterior is then smooth at that scale (amortised inference
    regularisation; Shu et al., 2018). A feature whose levels lie further apart has none.
    """
    if vae.background is None or not kl_weight:
        return None
    some, _ = vae.parts(without_holes(x[torch.from_numpy(subsample(len(x), REPORT_ROWS, 0))]))
    n_levels = torch.tensor([len(column.unique()) for column in some.T])
    apart = (some.amax(0) - some.amin(0)) / (n_levels - 1).clamp(min=1) > _FAR_LEVELS
    noise = math.sqrt(kl_weight) * vae.background.noise_scale
    noise = noise.clamp(max=_MAX_NOISE_OF_FEW if few else _MAX_NOISE).masked_fill(apart, 0)
    return nn.functional.pad(noise, (0, vae.n_context))


def layer_sizes(sizes, n_rows):
    """Widths of the hidden layers; "auto" is one layer for few rows and two for more."""
    if isinstance(sizes, str):
        return (128,) if n_rows < _MANY_ROWS else (128, 64)
    sizes = sizes.tolist() if isinstance(sizes, np.ndarray) else sizes
    sizes = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    if not all(isinstance(size, Integral) and size > 0 for size in sizes):
        raise ValueError(
            f"The 'hidden_layer_sizes' parameter of VAETransformer must hold ints > 0. Got {sizes} instead."
        )
    return tuple(map(int, sizes))


def guess_likelihood(X, values=None):
    """Return the likelihood that "auto" becomes for X: "bernoulli" for booleans and, where its validated `values` are
    the whole table and not a first part of it, for zeros and ones. Nothing else is guessed: a Gaussian fits it too, and
    comparably."""
    if values is None:
        return "bernoulli" if dtype_of(X).kind == "b" else "gaussian"
    return "bernoulli" if all(gathered(values, all(map(_is_binary, row_blocks(values))))) else "gaussian"


def _is_binary(values):
    return np.all((values == 0) | (values == 1) | np.isnan(values))


def likelihood_of(table, given):
    """The likelihood of a table whose columns are of several kinds; `given` holds for numeric columns of which nothing
    else is said, and for dates if it takes any number."""
    named = given if isinstance(given, (str, Likelihood)) and given != "auto" else None
    known = {"ordinal": Ordinal, "categorical": Categorical, "flag": Bernoulli}
    parts, sizes = [], []
    for kind, places in table.groups.items():
        if kind == "context":
            continue
        columns = [table.columns[i] for i in places]
        widths = [column.n_features if kind == "categorical" else 1 for column in columns]
        if kind in known:
            levels = [[len(column.levels) for column in columns]] if kind != "flag" else []
            parts.append(known[kind](*levels))
        else:
            own = "gaussian" if table.are_apart and kind == "gaussian" else named
            parts.append(resolve("likelihood", columns[0].likelihood or own or "gaussian"))
        sizes.append(sum(widths))
    return parts[0] if len(parts) == 1 and table.groups.keys() & {"gaussian", "numbers"} else Columns(parts, sizes)


def shallow_copies(callbacks):
    """Copies of skorch callbacks, or of (name, callback) pairs, which name each other where the originals do: training
    leaves the user's own untouched. A callback that is None, which switches its name off, stays None."""
    given = [pair[1] if isinstance(pair, tuple) else pair for pair in callbacks or ()]
    copies = {id(callback): copy.copy(callback) for callback in given}
    for made in copies.values():
        if made is not None:
            vars(made).update({name: copies[id(part)] for name, part in vars(made).items() if id(part) in copies})
    return [
        (pair[0], copies[id(part)]) if isinstance(pair, tuple) else copies[id(part)]
        for pair, part in zip(callbacks or (), given, strict=True)
    ]


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
            raise StopTraining
