"""scikit-learn's own checks, with no expected failure."""

from functools import partial, wraps
from itertools import combinations, product

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.sparse import issparse
from scipy.special import expit
from sklearn.utils import check_array, estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAETransformer
from skvae._model.build import REGISTRIES
from skvae.architectures import Conv
from skvae.likelihoods import LIKELIHOODS, NegativeBinomial
from skvae.priors import Flow

# scikit-learn ignores this warning in its own checks: two epochs on noise need not find a latent structure
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 5, "random_state": 0}
UNIT_INTERVAL = ["bernoulli", "continuous_bernoulli"]
ONLY_ON_ITSELF = [  # checks that scikit-learn does not hand to third parties
    "check_dataframe_column_names_consistency",  # turns warnings about names in `fit` into errors
    "check_estimators_partial_fit_n_features",
    "check_get_feature_names_out_error",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_inplace_ensure_writeable",
    "check_param_validation",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_array_api_input_and_values",
]


def squeezing(method):
    """The method, given a sigmoid of X in X's own container."""

    @wraps(method)
    def wrapper(self, X, *args, **kwargs):
        X = X.toarray() if issparse(X) else X
        values = check_array(X, dtype=float, ensure_all_finite=False, input_name="X", estimator=self)
        values = np.where(np.isfinite(values), expit(values), values)  # VAETransformer refuses the rest
        if isinstance(X, pd.DataFrame):
            values = pd.DataFrame(values, columns=X.columns, index=X.index)
        elif isinstance(X, pl.DataFrame):
            values = pl.DataFrame(values, schema=X.columns)
        return method(self, values, *args, **kwargs)

    return wrapper


class SqueezingVAE(VAETransformer):
    """Brings X into [0, 1]: scikit-learn has no tag that asks its checks for such data."""

    fit = squeezing(VAETransformer.fit)
    partial_fit = squeezing(VAETransformer.partial_fit)
    transform = squeezing(VAETransformer.transform)
    score_samples = squeezing(VAETransformer.score_samples)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = False
        return tags


ESTIMATORS = [VAETransformer(**SMALL)] + [
    (SqueezingVAE if name in UNIT_INTERVAL else VAETransformer)(likelihood=name, **SMALL) for name in LIKELIHOODS
]


class StripConv(Conv):
    """Takes any number of features for an image of one row: scikit-learn's checks bring tables of all widths."""

    def build(self, spec):
        self.image_shape = (1, spec.n_features)
        super().build(spec)


STAND_INS = {"flow": Flow(n_transforms=1, hidden_layer_sizes=(4,)), "conv": StripConv()}


def pairwise(*registries):
    """Combinations of names in which all pairs of two registries' names occur: each adds most of what was missing."""
    pairs = {case: set(combinations(enumerate(case), 2)) for case in product(*registries)}
    missing = set().union(*pairs.values())
    while missing:
        best = max(pairs, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        yield best


def pairwise_estimators():
    """Not every combination, since the checks take two seconds for each: every pair of components."""
    kinds = sorted(REGISTRIES, key=lambda kind: len(REGISTRIES[kind]))  # large registries last: fewer are needed
    for names in pairwise(*(REGISTRIES[kind] for kind in kinds)):
        estimator = SqueezingVAE if set(names) & set(UNIT_INTERVAL) else VAETransformer
        components = (STAND_INS.get(name, name) for name in names)
        yield estimator(2, **dict(zip(kinds, components, strict=True)), **SMALL)


PAIRWISE = list(pairwise_estimators())


def test_each_pair_of_components_is_checked():
    for first, second in combinations(REGISTRIES, 2):
        pairs = {(str(getattr(vae, first)), str(getattr(vae, second))) for vae in PAIRWISE}
        expected = product(*([str(STAND_INS.get(name, name)) for name in REGISTRIES[kind]] for kind in (first, second)))
        assert pairs == set(expected)


@pytest.mark.parametrize("sizes", [(1, 3), (5, 5, 5, 3), (2, 7, 3, 4), (6, 5, 6, 4)])
def test_pairs_are_covered_whatever_the_sizes(sizes):
    """A component more needs no other design."""
    cases = list(pairwise(*map(range, sizes)))
    for i, j in combinations(range(len(sizes)), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(range(sizes[i]), range(sizes[j])))
    assert len(cases) < 1.5 * np.prod(sorted(sizes)[-2:])  # no fewer than the pairs of the two largest are needed


@parametrize_with_checks([ESTIMATORS[0], *PAIRWISE, VAETransformer(likelihood=NegativeBinomial("sum"), **SMALL)])
def test_sklearn_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.likelihood)
@pytest.mark.parametrize("name", ONLY_ON_ITSELF)
@pytest.mark.filterwarnings(r"ignore:X (does not have valid|has) feature names")  # some transform what was not fitted
def test_check_that_sklearn_runs_on_itself(name, estimator):
    check = getattr(estimator_checks, name)
    if name == "check_array_api_input_and_values":
        check = partial(check, array_namespace="numpy")
    check(type(estimator).__name__, estimator)


def test_default_parameters_pass_the_checks_that_do_not_fit():
    """No parameter but the small settings above is needed: the defaults construct, clone and print."""
    for name in ("check_estimator_cloneable", "check_estimator_repr", "check_parameters_default_constructible"):
        getattr(estimator_checks, name)("VAETransformer", VAETransformer())
