"""scikit-learn's own checks, with no expected failure."""

from functools import partial, wraps
from itertools import combinations, product

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import expit
from sklearn.utils import check_array, estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAETransformer
from skvae.architectures import ARCHITECTURES, Conv
from skvae.likelihoods import LIKELIHOODS
from skvae.objectives import OBJECTIVES
from skvae.priors import PRIORS, Flow

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


def pairwise_estimators():
    """25 estimators in which each pair of components of different kinds occurs: two Latin squares of size 5."""
    priors = [name if name != "flow" else Flow(n_transforms=1, hidden_layer_sizes=(4,)) for name in PRIORS]
    architectures = [name if name != "conv" else StripConv() for name in ARCHITECTURES]
    for (i, objective), (j, likelihood) in product(enumerate(OBJECTIVES), enumerate(LIKELIHOODS)):
        components = {"objective": objective, "likelihood": likelihood, "prior": priors[(i + j) % 5 % 4]}
        components["architecture"] = architectures[(i + 2 * j) % 5 % 3]
        yield (SqueezingVAE if likelihood in UNIT_INTERVAL else VAETransformer)(2, **components, **SMALL)


PAIRWISE = list(pairwise_estimators())


def test_each_pair_of_components_is_checked():
    kinds = {"objective": OBJECTIVES, "likelihood": LIKELIHOODS, "prior": PRIORS, "architecture": ARCHITECTURES}
    for first, second in combinations(kinds, 2):
        pairs = {(str(getattr(vae, first)), str(getattr(vae, second))) for vae in PAIRWISE}
        assert len(pairs) == len(kinds[first]) * len(kinds[second])


@parametrize_with_checks(ESTIMATORS + PAIRWISE)
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
