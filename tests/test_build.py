"""Laws over all registries: combinations of components train, score, sample, pickle."""

import pickle
import re
from dataclasses import replace
from itertools import combinations, cycle, product

import numpy as np
import pytest
import torch

from skvae import VAETransformer
from skvae._model.build import REGISTRIES, check_objective, resolve
from skvae.architectures import ARCHITECTURES, MLP, Conv
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.metrics import log_likelihood
from skvae.objectives import ELBO, IWAE, OBJECTIVES, BetaTC, Objective
from skvae.priors import PRIORS, Mixture, Prior, StandardNormal

SMALL = {"hidden_layer_sizes": (6,), "max_iter": 2, "early_stopping": False, "n_draws": 4, "random_state": 0}


KINDS = ("likelihood", "prior", "objective", "architecture")  # of which each changes what a step computes


def fitted(X, likelihood="gaussian", prior="standard_normal", objective="elbo", architecture="mlp", **params):
    components = {"likelihood": likelihood, "prior": prior, "objective": objective, "architecture": architecture}
    return VAETransformer(2, **components, **SMALL | params).fit(X)


CASES = [  # every three of the first kinds, and with each architecture every two of them
    (*names, architecture)
    for names, architecture in zip(product(*(REGISTRIES[kind] for kind in KINDS[:3])), cycle(ARCHITECTURES))
]


def test_each_pair_of_components_is_among_the_cases():
    for (i, first), (j, second) in combinations(enumerate(KINDS), 2):
        assert {(case[i], case[j]) for case in CASES} == set(product(REGISTRIES[first], REGISTRIES[second]))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_combination_trains_scores_samples_and_pickles(case, table, global_streams):
    X, streams = table(case[0], n_rows=40, n_features=4), global_streams()
    vae = fitted(X, *case)
    scores, Z = vae.score_samples(X), vae.transform(X)
    assert np.isfinite(scores).all()
    assert np.isfinite(vae.loss_curve_).all()
    np.testing.assert_array_equal(vae.score_samples(X[3:4]), scores[3:4])  # whatever other rows come with it
    np.testing.assert_array_equal(vae.transform(X[::-1]), Z[::-1])
    draws = [vae.sample(3, noise=True, latents=latents, random_state=0) for latents in ("prior", "aggregate")]
    for rows in draws:
        LIKELIHOODS[case[0]]().check(rows, "samples")
        assert np.isfinite(rows).all()
    assert not np.array_equal(*draws)
    other = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(other.score_samples(X), scores)
    np.testing.assert_array_equal(other.sample(3, random_state=0), vae.sample(3, random_state=0))
    assert global_streams() == streams


EACH_ALONE = [{kind: name} for kind, registry in REGISTRIES.items() for name in registry if kind != "likelihood"] + [
    {"architecture": MLP(layer_norm=True, dropout=0.3)},
    {"objective": ELBO(warmup=0.5, free_bits=0.1)},
]


@pytest.mark.parametrize("component", EACH_ALONE, ids=str)
def test_fit_is_the_same_as_single_epochs_and_resuming(component, table):
    X, params = table(n_features=4), {"max_iter": 4} | component
    whole = fitted(X, **params)
    parts = VAETransformer(2, **SMALL | {"prior": "standard_normal"} | params)
    for _ in range(4):
        parts = pickle.loads(pickle.dumps(parts.partial_fit(X)))
        parts.transform(X)  # inference in between leaves no trace
    np.testing.assert_array_equal(parts.score_samples(X), whole.score_samples(X))
    np.testing.assert_array_equal(parts.transform(X), whole.transform(X))
    assert parts.loss_curve_ == whole.loss_curve_
    np.testing.assert_array_equal(fitted(X, **params).transform(X), whole.transform(X))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
def test_linear_start_bears_each_prior(prior, likelihood, table):
    """Before any training: a mixture is near the standard normal, a flow is it, and vamp's components, which add to
    a standard normal one of weight 0.9, cost log(1 / 0.9) at most."""
    X, still = table(likelihood, n_rows=300), {"learning_rate": 1e-12, "max_iter": 1, "n_draws": 300}
    scores = {name: fitted(X, likelihood, name, **still).score(X) for name in ("standard_normal", prior)}
    assert scores[prior] > scores["standard_normal"] - {"vamp": 0.106, "mixture": 0.05}.get(prior, 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_linear_start_is_the_same_for_each_architecture(architecture, table):
    """The head is last and starts at a constant, so that the linear paths alone speak."""
    X, still = table(n_features=4), {"learning_rate": 1e-12, "max_iter": 1, "n_draws": 50}
    linear = fitted(X, hidden_layer_sizes=(), **still)
    vae = fitted(X, architecture=architecture, **still)
    np.testing.assert_allclose(vae.transform(X), linear.transform(X), rtol=1e-4, atol=1e-5)
    assert vae.score(X) == pytest.approx(linear.score(X), abs=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_bound_of_the_linear_model_exceeds_its_likelihood_and_all_reach_it(objective, table):
    """The linear start is the optimum, with an exact posterior: the bound in the curve is the likelihood there."""
    X = table(n_rows=400)
    objective = BetaTC(beta=1.0) if objective == "beta_tc" else objective
    vae = fitted(X, objective=objective, hidden_layer_sizes=(), learning_rate=1e-12, max_iter=1, n_draws=20)
    exact = log_likelihood(vae, X, n_draws=20)
    assert exact.standard_error < 1e-5  # the posterior is exact: every weight is the likelihood
    # one draw for each of 400 rows; with several, the weights are equal and there is no error
    tolerance = 1e-4 if objective in ("iwae", "dreg") else 5 * (0.5 * 2 / 400) ** 0.5
    assert -vae.loss_curve_[0] == pytest.approx(exact.value, abs=tolerance)


def test_learned_priors_fit_clusters_better(table):
    """Rows in four clusters of two units: no standard normal aggregate fits them."""
    rng = np.random.default_rng(0)
    X = (rng.choice([-3, 3], size=(600, 2)) @ rng.normal(size=(2, 5))) + 0.1 * rng.normal(size=(600, 5))
    params = {"max_iter": 60, "learning_rate": 6e-3, "hidden_layer_sizes": (16,), "n_draws": 50}
    scores = {prior: fitted(X, prior=prior, **params).score(X) for prior in PRIORS}
    for prior in ("mixture", "vamp", "flow"):
        assert scores[prior] > scores["standard_normal"] + 0.3, scores


def test_samples_of_the_aggregate_lie_where_the_rows_do():
    """Two clusters: the prior's draws lie between them too, the aggregate's do not."""
    rng = np.random.default_rng(0)
    X = 10 * rng.choice([-1, 1], size=(500, 1)) * np.ones(4) + 0.1 * rng.normal(size=(500, 4))
    vae = fitted(X, max_iter=5, hidden_layer_sizes=())
    between = {
        latents: np.mean(np.abs(vae.sample(500, latents=latents, random_state=0)).max(axis=1) < 7)
        for latents in ("prior", "aggregate")
    }
    assert between["prior"] > 0.3
    assert between["aggregate"] < 0.02


def test_dropout_is_off_at_inference_and_on_in_training(table):
    X = table(n_features=4)
    plain, dropping = (fitted(X, architecture=MLP(dropout=p), max_iter=5) for p in (0.0, 0.5))
    assert not np.array_equal(plain.transform(X), dropping.transform(X))
    np.testing.assert_array_equal(dropping.transform(X), dropping.transform(X))
    np.testing.assert_array_equal(dropping.score_samples(X[:1]), dropping.score_samples(X)[:1])


def test_warmup_is_a_share_of_max_iter_under_early_stopping(table):
    X, warm = table(n_rows=200), ELBO(warmup=0.5)
    vae = fitted(X, objective=warm, early_stopping=True, max_iter=10, n_iter_no_change=1)
    assert vae.n_iter_ > 5  # no progress is asked for while the weight rises
    assert vae.net_.criterion_.weight_ == 1
    assert warm.weight_ == 1.0
    assert vae.loss_curve_ != fitted(X, early_stopping=True, max_iter=10, n_iter_no_change=1).loss_curve_


def test_names_and_objects_are_the_same(table):
    X = table(n_features=4)
    named = fitted(X, prior="mixture", objective="iwae", architecture="conv")
    given = fitted(X, prior=Mixture(), objective=IWAE(), architecture=Conv((2, 2)))
    np.testing.assert_array_equal(named.score_samples(X), given.score_samples(X))


def test_resolve_copies_what_is_given():
    prior = StandardNormal()
    assert isinstance(resolve("prior", "standard_normal"), StandardNormal)
    assert resolve("prior", prior) is not prior
    assert resolve("objective", "elbo").beta == 1
    assert resolve("objective", "beta_tc").beta == 6
    assert resolve("objective", ELBO(3.0)).beta == 3


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prior": "vampire"}, "The 'prior' parameter of VAETransformer must be a str among"),
        ({"objective": Gaussian()}, "The 'objective' parameter of VAETransformer must be a str among"),
        ({"architecture": MLP}, "The 'architecture' parameter of VAETransformer must be a str among"),
        ({"architecture": "conv"}, re.escape("X has 5 features, which are no image of shape (2, 2). Set image_shape")),
        (
            {"prior": Mixture(0)},
            re.escape("The 'n_components' parameter of Mixture must be an int in the range [1, inf). Got 0 instead."),
        ),
    ],
)
def test_bad_component_is_refused_before_training(params, message, table, n_steps):
    vae = fitted(table())
    Z = vae.transform(table())
    n_steps.clear()
    with pytest.raises(ValueError, match=message):
        vae.set_params(**params).fit(table())
    assert n_steps == []
    np.testing.assert_array_equal(vae.transform(table()), Z)


def test_bad_latents_are_named(table):
    with pytest.raises(ValueError, match=r"latents must be 'prior' or 'aggregate'\. Got 'posterior' instead"):
        fitted(table()).sample(latents="posterior")


class Summed(Gaussian):
    def log_prob(self, raw, x):
        return super().log_prob(raw, x).sum(-1)


def test_a_log_prob_that_is_summed_is_refused(table, n_steps):
    with pytest.raises(ValueError, match=r"^Summed\.log_prob must return a value for each feature.* Do not sum"):
        VAETransformer(2, likelihood=Summed()).fit(table())
    assert n_steps == []


class OwnPrior(Prior):
    def log_prob(self, z):
        return -0.5 * z.square().sum(-1)

    def sample(self, n, generator):
        return torch.randn(n, self.z_dim, generator=generator)


class UnitsApart(OwnPrior):
    def log_prob(self, z):
        return -0.5 * z.square()


class SummedBy1(OwnPrior):
    def log_prob(self, z):
        return -0.5 * z.square().sum(1)


class Columnwise(OwnPrior):
    def sample(self, n, generator):
        return super().sample(n, generator).T


class Unbuilt(OwnPrior):
    def build(self, z_dim, n_features, generator):
        self.scale = torch.ones(z_dim)


class OwnObjective(Objective):
    def forward(self, vae, batch):
        log_prob, kl = vae(replace(batch, eps=torch.randn_like(batch.eps)))  # of the global stream
        return log_prob - kl, log_prob, kl


class OneTerm(OwnObjective):
    def forward(self, vae, batch):
        return super().forward(vae, batch)[0]


class Averaged(OwnObjective):
    def forward(self, vae, batch):
        return tuple(term.mean() for term in super().forward(vae, batch))


class ThreeDraws(OwnObjective):
    n_draws = 3


OWN_MISTAKES = [
    (UnitsApart(), r"UnitsApart\.log_prob must return a value for each point.*\(2, 3\)\. Got \(2, 3, 2\)"),
    (SummedBy1(), r"SummedBy1\.log_prob must return a value for each point.*\(2, 3\)\. Got \(2, 2\)"),
    (Columnwise(), r"Columnwise\.sample must return a row for each point.*\(3, 2\)\. Got \(2, 3\)"),
    (Unbuilt(), r"Unbuilt\.build must call super\(\)\.build\(z_dim, n_features, generator\) first"),
    (OneTerm(), r"OneTerm\.forward must return three tensors of shape \(batch,\).* Got 1 value"),
    (Averaged(), r"Averaged\.forward must return three tensors.*: here \(32,\)\. Got \(\) instead"),
    (ThreeDraws(), r"ThreeDraws\.forward must return three tensors.* Got \(3, 32\) instead"),
]


@pytest.mark.parametrize(("own", "message"), OWN_MISTAKES, ids=[type(own).__name__ for own, _ in OWN_MISTAKES])
def test_mistakes_in_own_components_are_refused_before_training(own, message, table, n_steps):
    kind = "prior" if isinstance(own, Prior) else "objective"
    vae = VAETransformer(2, early_stopping=False, **{kind: own})
    with pytest.raises(ValueError, match=message):
        vae.fit(table())
    assert n_steps == []


def test_another_objective_is_looked_at_before_training_goes_on(table, n_steps):
    vae = fitted(table(), warm_start=True)
    objective, n_steps[:] = vae.net_.criterion_, []
    with pytest.raises(ValueError, match=r"Averaged\.forward must return three tensors"):
        vae.set_params(objective=Averaged()).fit(table())
    assert n_steps == []
    assert vae.net_.criterion_ is objective


def test_a_look_at_an_own_objective_changes_nothing(table, global_streams, monkeypatch):
    X = table(n_rows=60)
    X[::3, 0] = np.nan
    options = {"objective": OwnObjective(), "architecture": MLP(dropout=0.2), "prior": OwnPrior()}
    torch.manual_seed(0)
    vae = fitted(X, **options)
    before, objective = global_streams(), OwnObjective()
    for n_rows in (1, 60):
        check_objective(objective, vae.module_, torch.from_numpy(X[:n_rows]).float())
    assert global_streams() == before
    assert not vae.module_.training
    monkeypatch.setattr("skvae._estimator.training.check_objective", lambda *args: None)
    torch.manual_seed(0)
    np.testing.assert_array_equal(fitted(X, **options).transform(X), vae.transform(X))


def test_the_encoder_sees_noise_of_the_linear_model_up_to_a_share_of_the_feature(table):
    X = table(n_rows=400, n_features=6)
    X[:, 5] = X[:, 5] > X[:, 5].mean()  # two levels, two standard deviations apart
    few, many = (
        VAETransformer(2, hidden_layer_sizes=(8,), max_iter=1, random_state=0).fit(np.resize(X, (n_rows, 6))).net_
        for n_rows in (400, 2000)
    )
    for net, most in ((few, 0.25), (many, 0.5)):
        scale = net.module_.background.noise_scale
        torch.testing.assert_close(net.input_noise[:5], scale[:5].clamp(max=most))
        assert net.input_noise[5] == 0
    assert VAETransformer(2, objective=ELBO(0.0), max_iter=1, random_state=0).fit(X).net_.input_noise is None
    assert VAETransformer(2, likelihood="poisson", max_iter=1).fit(abs(X).round()).net_.input_noise is None
