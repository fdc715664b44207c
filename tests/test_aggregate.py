import numpy as np
import pytest
from scipy.stats import norm

from skvae import VAETransformer
from skvae._model.aggregate import draw_latents, fit_aggregate, posterior_draws


def mixture_of(mean, std, seed):
    return fit_aggregate(**posterior_draws(mean, std, seed), seed=seed)


def clusters(n_rows, seed=0):
    """Means in two clusters at -3 and 3 of the first unit, and a second unit without information."""
    rng = np.random.default_rng(seed)
    mean = np.column_stack([3 * rng.choice([-1, 1], n_rows) + 0.1 * rng.normal(size=n_rows), np.zeros(n_rows)])
    return mean.astype(np.float32), np.tile(np.float32([0.2, 1.0]), (n_rows, 1))


@pytest.mark.parametrize("n_rows", [40, 3000, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_mixture_is_the_density_of_the_latent_points(n_rows, seed):
    mean, std = clusters(n_rows, seed)
    mixture = mixture_of(mean, std, seed)
    points = np.array([[-3.0, 0.0], [3.0, 1.0], [0.0, 0.0]])
    share = np.mean(mean[:, 0] > 0)
    near = norm.logpdf([0.0, 0.0], scale=[np.hypot(0.1, 0.2), 1.0]).sum()
    expected = [np.log(1 - share) + near, np.log(share) + near - 0.5]
    log_density = mixture.score_samples(points)
    # 1000 draws at least determine the log-density at a mode to about 0.1; sharing out rows to 10 components adds to it
    np.testing.assert_allclose(log_density[:2], expected, atol=0.4)
    assert log_density[2] < -10  # between the clusters there is nothing


@pytest.mark.parametrize(("n_rows", "z_dim", "n_components"), [(1, 3, 1), (60, 10, 1), (300, 2, 10), (500, 10, 5)])
def test_number_of_components_leaves_rows_for_each(n_rows, z_dim, n_components):
    rng = np.random.default_rng(0)
    mixture = mixture_of(rng.normal(size=(n_rows, z_dim)), np.ones((n_rows, z_dim)), 0)
    assert mixture.n_components == n_components
    assert mixture.converged_


def test_draws_are_in_random_order_and_leave_the_mixture_alone(global_streams):
    mixture, before = mixture_of(*clusters(500), 0), global_streams()
    first, same, other = (draw_latents(mixture, 400, np.random.RandomState(seed)) for seed in (0, 0, 1))
    assert global_streams() == before
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    assert mixture.random_state == 0
    side = first[:, 0] > 0
    assert 140 < np.count_nonzero(side[1:] != side[:-1]) < 260  # 200 +- 10 changes of the cluster


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_latent_points_of_any_scale(scale):
    rng = np.random.default_rng(0)
    mean = scale * rng.integers(0, 2, size=(40, 3)) * [1.0, 1.0, 0.0]  # four points in a plane
    mixture = mixture_of(mean, np.full_like(mean, 1e-3 * scale), 0)
    assert np.isfinite(mixture.sample(10)[0]).all()


def test_the_mixture_is_fitted_when_asked_for(table, monkeypatch):
    calls, inner = [], fit_aggregate
    monkeypatch.setattr("skvae._transformer.fit_aggregate", lambda **params: calls.append(1) or inner(**params))
    vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=2, early_stopping=False, random_state=0).fit(table())
    assert calls == []
    first = vae.sample(5, latents="aggregate", random_state=0)
    np.testing.assert_array_equal(vae.sample(5, latents="aggregate", random_state=0), first)
    assert len(calls) == 1
