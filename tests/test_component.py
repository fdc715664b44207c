import pickle
import re
from functools import partial
from numbers import Real
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import Interval, InvalidParameterError
from torch import nn

from skvae import VAETransformer
from skvae._model.build import REGISTRIES
from skvae._model.component import Component, check_component
from skvae.architectures import MLP, Architecture, Conv, Custom, Residual
from skvae.likelihoods import Bernoulli, Gaussian, Likelihood
from skvae.objectives import ELBO, IWAE, MMD, BetaTC, DReG, Objective
from skvae.priors import Flow, Mixture, Prior, StandardNormal, VampPrior

EACH = [kind for registry in REGISTRIES.values() for kind in registry.values()]
each_component = pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind.__name__)


@each_component
def test_component_has_scikit_learns_parameters(kind):
    component = kind()
    params = component.get_params()
    assert list(params) == sorted(kind.__init__.__annotations__.keys() - {"return"})
    assert clone(component).get_params() == pickle.loads(pickle.dumps(component)).get_params() == params
    assert kind(**params).get_params() == params
    assert not list(component.parameters())  # unbuilt
    shown = ", ".join(f"{name}={value!r}" for name, value in params.items())
    assert repr(component) == f"{kind.__name__}({shown})"


def test_component_survives_clone_fit_and_pickle_of_the_estimator(table):
    prior = Mixture(n_components=3)
    vae = VAETransformer(2, prior=prior, objective=ELBO(warmup=0.5), max_iter=2, early_stopping=False)
    copied = pickle.loads(pickle.dumps(clone(vae).fit(table())))
    assert vae.prior is prior
    assert vae.fit(table()).prior is prior
    assert not list(prior.parameters())
    assert copied.prior.n_components == 3
    assert copied.module_.prior.loc.shape == (3, 2)
    assert "prior=Mixture(n_components=3)" in repr(vae)
    assert "Mixture(n_components=3)" in vae._repr_html_()


def test_own_modules_clone_with_the_estimator(table):
    modules = nn.Sequential(nn.Linear(5, 4), nn.Tanh()), nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    vae = VAETransformer(2, architecture=Custom(*modules), max_iter=2, early_stopping=False, random_state=0)
    before = [parameter.clone() for parameter in modules[0].parameters()]
    first, second = clone(vae).fit(table()), vae.fit(table())
    assert first.score(table()) == second.score(table())
    assert all(map(bool, ((old == new).all() for old, new in zip(before, modules[0].parameters(), strict=True))))


def test_grid_search_over_a_components_parameter(table):
    vae = VAETransformer(2, prior=Mixture(), likelihood=Gaussian(), max_iter=3, early_stopping=False, random_state=0)
    grid = {"prior__n_components": [1, 3], "likelihood__noise": ["feature", "shared"]}
    search = GridSearchCV(vae, grid, cv=2).fit(table())
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    assert search.best_estimator_.module_.prior.n_components == search.best_params_["prior__n_components"]
    assert vae.prior.n_components == 10


# Parameters are checked in fit, before any work, since a search sets them without the constructor


class OwnLikelihood(Gaussian):
    """Has a parameter of its own beside its base's, as scikit-learn's classes declare theirs."""

    _parameter_constraints: ClassVar[dict] = {"power": [Interval(Real, 0, None, closed="neither")]}

    def __init__(self, noise="row", power=1.0):
        super().__init__(noise)
        self.power = power


class OwnPrior(StandardNormal):
    """Checks in its constructor."""

    def __init__(self, spread=1.0):
        super().__init__()
        if spread <= 0:
            raise ValueError(f"spread must be positive. Got {spread!r} instead.")
        self.spread = spread


COUNT = "must be an int in the range [1, inf)."
WRONG = [
    (Gaussian(), "noise", "featur", "must be a str among {"),
    (Gaussian(), "noise_floor", -1, "must be a float in the range (0"),
    (Bernoulli(), "binarize", "yes", "must be an instance of 'bool'"),
    (Mixture(), "n_components", 0, COUNT),
    (Mixture(), "n_components", 2.5, COUNT),
    (VampPrior(), "n_components", -1, COUNT),
    (Flow(), "n_transforms", 0, COUNT),
    (Flow(), "hidden_layer_sizes", (8, 0), "must be a sequence of ints > 0."),
    (ELBO(), "beta", -1, "must be a float in the range [0"),
    (ELBO(), "free_bits", float("nan"), "must be a float in the range [0"),
    (ELBO(), "warmup", 1.5, "must be a float in the range [0"),
    (IWAE(), "n_draws", 0, COUNT),
    (DReG(), "n_draws", "many", COUNT),
    (BetaTC(), "beta", -1, "must be a float in the range [0"),
    (MMD(), "alpha", 2, "must be a float in the range (-inf, 1"),
    (MMD(), "scale", 0.5, "must be at least 1 - alpha."),
    (MLP(), "dropout", 1, "must be a float in the range [0"),
    (Residual(), "layer_norm", 3, "must be an instance of 'bool'"),
    (Conv((1, 5)), "channels", 8, "must be a sequence of ints > 0, at least one."),
    (Conv((1, 5)), "image_shape", (5,), "must be (height, width) or (height, width, n_channels), ints > 0, or None."),
    (OwnLikelihood(), "noise", "featur", "must be a str among {"),
    (OwnLikelihood(), "power", 0, "must be a float in the range (0"),
]


def kind_of(component):
    return next(kind for kind, base in BASES.items() if isinstance(component, base))


BASES = {"likelihood": Likelihood, "prior": Prior, "objective": Objective, "architecture": Architecture}


@pytest.mark.parametrize("early_stopping", [False, "auto"])
@pytest.mark.parametrize(("component", "name", "value", "words"), WRONG, ids=lambda part: str(part)[:20])
def test_a_wrong_value_set_by_a_search_is_the_constructors_error(
    component, name, value, words, early_stopping, table, n_steps
):
    kind, X = kind_of(component), table()
    message = "^" + re.escape(f"The '{name}' parameter of {type(component).__name__} {words}")
    vae = VAETransformer(2, max_iter=2, early_stopping=early_stopping, random_state=0, **{kind: clone(component)})
    for method in ("fit", "partial_fit", "fit_transform"):
        wrong = clone(vae).set_params(**{f"{kind}__{name}": value})
        with pytest.raises(InvalidParameterError, match=message):
            getattr(wrong, method)(X)
    search = GridSearchCV(vae, {f"{kind}__{name}": [value]}, cv=2)
    with pytest.raises(ValueError, match=message.removeprefix("^")):  # among the words of the search
        search.fit(X)
    assert n_steps == []


def test_a_wrong_value_loses_nothing_and_is_seen_by_partial_fit(table, n_steps):
    X = table()
    vae = VAETransformer(2, objective=ELBO(), likelihood=Gaussian(), max_iter=2, early_stopping=False).fit(X)
    Z = vae.transform(X)
    n_steps.clear()
    for name, value in {"objective__beta": -1, "likelihood__noise": "featur", "batch_size": 0}.items():
        former = vae.get_params()[name]
        for method in ("fit", "partial_fit"):
            with pytest.raises(InvalidParameterError, match=name.rpartition("__")[2]):
                getattr(vae.set_params(**{name: value}), method)(X)
        vae.set_params(**{name: former})
    assert n_steps == []
    np.testing.assert_array_equal(vae.transform(X), Z)
    assert vae.partial_fit(X).n_iter_ == 3


def test_what_a_users_own_constructor_refuses_fit_refuses(table, n_steps):
    vae = VAETransformer(2, prior=OwnPrior(), max_iter=2, early_stopping=False).set_params(prior__spread=-1)
    with pytest.raises(ValueError, match=r"^spread must be positive\. Got -1 instead"):
        vae.fit(table())
    assert n_steps == []
    assert vae.set_params(prior__spread=2).fit(table()).n_iter_ == 2


@pytest.mark.parametrize("kind", REGISTRIES)
def test_defaults_obey_their_constraints(kind):
    for cls in REGISTRIES[kind].values():
        cls().check_params()
        declared = [vars(base).get("_parameter_constraints", {}) for base in cls.__mro__ if issubclass(base, Component)]
        assert set(cls().get_params()) == {name for constraints in declared for name in constraints}


# Parameters of a part that is given by name


@pytest.mark.parametrize(
    ("params", "key", "value", "write"),
    [
        (
            {},
            "likelihood__noise",
            "feature",
            "likelihood='auto' is a name, .* write likelihood=Gaussian(noise='feature')",
        ),
        ({"likelihood": "gaussian"}, "likelihood__noise", "feature", "likelihood=Gaussian(noise='feature')"),
        ({"likelihood": "bernoulli"}, "likelihood__binarize", True, "likelihood=Bernoulli(binarize=True)"),
        ({}, "prior__n_components", 3, "prior='auto' is a name, .* prior=Mixture(n_components=3)"),
        (
            {"prior": "vamp"},
            "prior__n_components",
            3,
            "prior=VampPrior(n_components=3), with VampPrior of skvae.p",
        ),
        ({}, "objective__beta", 2.0, "objective='elbo' is a name, .* objective=ELBO(beta=2.0)"),
        ({"objective": "iwae"}, "objective__n_draws", 5, "objective=IWAE(n_draws=5)"),
        ({}, "architecture__dropout", 0.1, "architecture=MLP(dropout=0.1)"),
        ({"architecture": "conv"}, "architecture__channels", (8,), "architecture=Conv(channels=(8,))"),
        ({}, "likelihood__nois", 1, "Invalid parameter 'likelihood__nois': likelihood='auto' has no such parameter"),
        ({}, "optimizer__lr", 1, "Invalid parameter 'optimizer__lr': .* Set learning_rate."),
        ({}, "optimizer__eps", 1, "Set optimizer=functools.partial(torch.optim.AdamW, eps=1)."),
        ({"optimizer": "sgd"}, "optimizer__momentum", 0.9, "functools.partial(torch.optim.SGD, momentum=0.9)."),
        (
            {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
            "optimizer__nesterov",
            True,
            "functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True).",
        ),
        ({}, "callbacks__patience", 1, "callbacks=None has no such parameter"),
    ],
)
def test_a_parameter_of_a_name_names_the_object_to_write(params, key, value, write, table):
    vae = VAETransformer(2, max_iter=2, early_stopping=False, **params)
    message = re.escape(write).replace(r"\.\*", ".*").replace(r"\ ", " ")
    searches = [
        lambda: clone(vae).set_params(**{key: value}),
        lambda: make_pipeline(vae).set_params(**{f"vaetransformer__{key}": value}),
        lambda: GridSearchCV(vae, {key: [value]}, cv=2).fit(table()),
    ]
    for search in searches:
        with pytest.raises(ValueError, match=message):
            search()


def test_the_object_may_be_set_in_the_same_call():
    vae = VAETransformer().set_params(
        likelihood=Gaussian(), likelihood__noise="feature", prior__n_components=3, prior=Mixture()
    )
    assert (vae.likelihood.noise, vae.prior.n_components) == ("feature", 3)


@pytest.mark.parametrize("encoder", ["mlp", nn.Linear, lambda x: x])
def test_own_networks_are_modules(encoder):
    message = "^The 'encoder' parameter of Custom must be an instance of 'torch.nn.modules.module.Module'. Got "
    with pytest.raises((ValueError, TypeError), match=message):
        check_component(Custom(encoder, nn.Linear(2, 2)))
