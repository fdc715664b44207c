import numpy as np
import torch

from skvae import VAETransformer


def test_model_has_what_the_estimator_returns(table):
    X = table()
    vae = VAETransformer(2, max_iter=2, random_state=0).fit(X)
    model, features = vae._fitted, vae._check_X(X)
    np.testing.assert_array_equal(model.encode(features)[0], vae.transform(X))
    np.testing.assert_array_equal(model.scores(features, vae.n_draws), vae.score_samples(X))
    np.testing.assert_array_equal(
        model.decode(model.mean, vae.transform(X), None), vae.inverse_transform(vae.transform(X))
    )


def test_exact_model_leaves_the_fitted_one_as_it_is(table):
    X = table()
    model = VAETransformer(2, max_iter=2, random_state=0).fit(X)._fitted
    exact = model.exact()
    assert {part.dtype for part in exact.vae.parameters()} == {torch.float64}
    assert {part.dtype for part in model.vae.parameters()} == {torch.float32}
    np.testing.assert_allclose(exact.scores(X, 5), model.scores(X, 5), atol=1e-3)
