import pickle

import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from skvae import VAETransformer
from skvae._build import REGISTRIES
from skvae.architectures import Custom
from skvae.likelihoods import Gaussian
from skvae.objectives import ELBO
from skvae.priors import Mixture

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
