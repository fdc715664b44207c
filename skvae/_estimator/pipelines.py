"""Pipelines that end in a fitted VAE, where a function takes these beside the estimator itself."""

from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted


def split(estimator):
    """Return the steps before the VAE, and the VAE: of a pipeline its last step, else the estimator itself.

    Raises
    ------
    TypeError
        If it is something else.
    """
    check_is_fitted(estimator)
    steps = estimator if isinstance(estimator, Pipeline) else [estimator]
    if not hasattr(steps[-1], "posterior"):
        raise TypeError(f"Expected a VAETransformer, or a Pipeline that ends in one. Got {estimator!r} instead.")
    none = FunctionTransformer().set_output(transform="default")
    return (steps[:-1] if len(steps) > 1 else none), steps[-1]


def last_step(estimator, X):
    """Return the VAE, and the rows of X as it gets them."""
    before, vae = split(estimator)
    return vae, before.transform(X)
