"""The page on components of one's own: its code runs, and its prior is what it says."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest, laplace
from sklearn.model_selection import GridSearchCV

from skvae import VAETransformer

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "extending.rst"


@pytest.fixture(scope="module")
def page():
    """The page as a doctest that has run: `globs` is what its code defines."""
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), {}, PAGE.name, str(PAGE), 0)
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0  # what failed has been printed
    return test


@pytest.fixture
def names(page):
    return page.globs


def test_prior_of_the_page_is_short(page):
    (source,) = (example.source for example in page.examples if example.source.startswith("class LaplacePrior"))
    assert len([line for line in source.splitlines() if line.strip()]) <= 20


def test_prior_of_the_page_is_laplace(names, normal):
    prior = names["LaplacePrior"](scale=0.3)
    prior.build(2, 4, torch.Generator())
    z = normal(50, 2)
    expected = laplace(scale=0.3).logpdf(z.numpy()).sum(1)
    np.testing.assert_allclose(prior.log_prob(z).detach(), expected, rtol=1e-5)
    for seed in range(3):
        draws = prior.sample(20_000, torch.Generator().manual_seed(seed)).detach().numpy()
        assert kstest(draws.ravel(), laplace(scale=0.3).cdf).pvalue > 1e-4  # one run in 3,000 fails where all is right


def test_capacity_of_the_page_is_kept(names):
    assert names["held"].kl_curve_[-1] == pytest.approx(1, abs=0.3)
    assert not names["CapacityELBO"]().is_bound


def test_components_of_the_page_are_searchable(names):
    vae = VAETransformer(2, prior=names["LaplacePrior"](), max_iter=3, early_stopping=False, random_state=0)
    search = GridSearchCV(vae, {"prior__scale": [0.1, 1.0]}, cv=2).fit(names["X"])
    assert search.best_params_ == {"prior__scale": 1.0}
