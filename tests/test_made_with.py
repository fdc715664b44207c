import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from skvae import VAETransformer, load
from skvae.architectures import MLP, Custom
from skvae.inits import LinearInit
from skvae.likelihoods import Gaussian
from skvae.objectives import IWAE
from skvae.priors import Mixture

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "warm_start": True, "random_state": 0}


def networks(activation):
    torch.manual_seed(0)
    return Custom(nn.Sequential(nn.Linear(5, 4), activation()), nn.Linear(2, 4))


FIXED = {
    "z_dim": 3,
    "hidden_layer_sizes": (8, 8),
    "likelihood": Gaussian("feature"),
    "prior": "mixture",
    "architecture": MLP(dropout=0.1),
    "init": LinearInit(share=0.02),
    "optimizer": "sgd",
    "device": "meta",
    "random_state": 1,
}
FREE = {
    "objective": IWAE(3),
    "batch_size": 16,
    "max_iter": 3,
    "early_stopping": True,
    "validation_fraction": 0.3,
    "n_iter_no_change": 2,
    "tol": 0.1,
    "n_draws": 7,
    "verbose": 0,
}
EQUAL = {
    "z_dim": np.int64(2),
    "hidden_layer_sizes": [8],
    "likelihood": "gaussian",
    "prior": Mixture(50),
    "optimizer": partial(torch.optim.AdamW),
    "init": LinearInit(np.float64(0.01)),
    "device": torch.device("cpu"),
    "architecture": MLP(),
}


@pytest.mark.parametrize("way", ["same object", "pickle", "save"])
@pytest.mark.parametrize(("method", "whose"), [("fit", "warm_start"), ("partial_fit", "partial_fit")])
def test_what_the_model_was_made_with_cannot_change(method, whose, way, table, tmp_path):
    X = table()
    vae = VAETransformer(2, **SMALL).fit(X)
    if way == "pickle":
        vae = pickle.loads(pickle.dumps(vae))
    elif way == "save":
        vae.save(tmp_path / "vae")
        vae = load(tmp_path / "vae")
    Z, former = vae.transform(X), vae.get_params(deep=False)
    for name, value in FIXED.items():
        message = rf"^{whose} can only be used where `{name}` has the same value as in the previous call to fit\. Previ"
        with pytest.raises(ValueError, match=message):
            getattr(vae.set_params(**{name: value}), method)(X)
        vae.set_params(**{name: former[name]})
        np.testing.assert_array_equal(vae.transform(X), Z)
        assert vae.n_iter_ == 2
    assert getattr(vae, method)(X).n_iter_ == (4 if method == "fit" else 3)


def test_all_that_changed_is_named_with_its_values(table):
    vae = VAETransformer(2, **SMALL).fit(table()).set_params(z_dim=3, init="random")
    message = (
        "where `z_dim` and `init` have the same value .* Previously got z_dim=2, now 3, init='linear', now 'random'"
    )
    with pytest.raises(ValueError, match=message):
        vae.fit(table())
    assert vae.set_params(warm_start=False).fit(table()).transform(table()).shape == (60, 3)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", FREE)
def test_other_parameters_may_change(name, method, table):
    X = table()
    vae = VAETransformer(2, **SMALL).fit(X).set_params(**{name: FREE[name]})
    getattr(vae, method)(X)
    assert vae.n_iter_ == 2 + (1 if method == "partial_fit" else vae.max_iter)
    if name == "objective":
        assert vae.net_.criterion_.n_draws == 3
    if name == "beta":
        assert vae.net_.criterion_.beta == 2.0


@pytest.mark.parametrize("name", EQUAL)
def test_the_same_value_in_other_words_is_no_change(name, table):
    vae = VAETransformer(2, **SMALL).fit(table()).set_params(**{name: EQUAL[name]})
    assert vae.fit(table()).partial_fit(table()).n_iter_ == 5


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("seed", range(2))
def test_the_learning_rate_goes_on_unless_it_is_set(seed, method, table):
    X = table()
    vae = VAETransformer(2, **SMALL | {"learning_rate": 1e-3, "random_state": seed}).fit(X)
    vae.net_.set_params(lr=5e-4)  # as a turn of the schedule would
    assert getattr(vae, method)(X).net_.lr == 5e-4
    getattr(vae.set_params(learning_rate=1e-30), method)(X)
    assert {vae.net_.lr, *(group["lr"] for group in vae.net_.optimizer_.param_groups)} == {1e-30}
    weights = [part.clone() for part in vae.net_.module_.parameters()]
    getattr(vae, method)(X)
    for old, new in zip(weights, vae.net_.module_.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-6, atol=1e-12)


def test_a_search_sets_a_components_parameter_too(table):
    X = table()
    vae = VAETransformer(2, prior=Mixture(3), **SMALL).fit(X).set_params(prior__n_components=4)
    with pytest.raises(
        ValueError, match=r"Previously got prior=Mixture\(n_components=3\), now Mixture\(n_components=4"
    ):
        vae.fit(X)
    assert vae.set_params(prior__n_components=3).fit(X).n_iter_ == 4


def test_own_modules_are_told_apart_by_layers_and_weights(table):
    X = table()
    vae = VAETransformer(2, architecture=networks(nn.ReLU), **SMALL).fit(X)
    assert vae.set_params(architecture=networks(nn.ReLU)).fit(X).n_iter_ == 4
    for other in (networks(nn.Tanh), Custom(nn.Linear(5, 4), nn.Linear(2, 4))):
        with pytest.raises(ValueError, match="`architecture` has the same value"):
            vae.set_params(architecture=other).fit(X)


def test_a_random_stream_moves_on_without_being_another(table):
    X, stream = table(), np.random.RandomState(0)
    vae = VAETransformer(2, **SMALL | {"random_state": stream}).fit(X)
    stream.randint(10)
    assert vae.fit(X).n_iter_ == 4


def test_callbacks_may_change(table):
    from skorch.callbacks import EpochScoring

    X, scoring = table(), EpochScoring(lambda net, X, y=None: 1.5, name="mine", on_train=True)
    vae = VAETransformer(2, **SMALL).fit(X)
    history = vae.set_params(callbacks=[scoring]).fit(X).net_.history
    assert ["mine" in row for row in history] == [False, False, True, True]
    history = vae.partial_fit(X).set_params(callbacks=None).partial_fit(X).net_.history
    assert ["mine" in row for row in history[2:]] == [True, True, True, False]


@pytest.mark.parametrize("way", ["same object", "save"])
def test_options_of_an_optimizer_are_told_apart_by_what_they_mean(way, table, tmp_path):
    X, eps = table(), np.logspace(-8, -6, 3)[1]
    vae = VAETransformer(2, **SMALL, optimizer=partial(torch.optim.AdamW, eps=eps, betas=[0.8, 0.9])).fit(X)
    if way == "save":
        vae.save(tmp_path / "vae")
        vae = load(tmp_path / "vae")
    assert vae.set_params(optimizer=partial(torch.optim.AdamW, betas=(0.8, 0.9), eps=float(eps))).fit(X).n_iter_ == 4
    was = re.escape("optimizer=functools.partial(torch.optim.AdamW, betas=(0.8, 0.9), eps=1e-07), now ")
    with pytest.raises(ValueError, match=was + re.escape("functools.partial(torch.optim.AdamW, eps=0.5)")):
        vae.set_params(optimizer=partial(torch.optim.AdamW, eps=0.5)).fit(X)


def test_a_model_of_a_stream_goes_on_from_its_file(table, tmp_path):
    X = table()
    vae = VAETransformer(2, **SMALL | {"random_state": np.random.RandomState(0)}).fit(X)
    with pytest.warns(UserWarning, match="random_state"):
        vae.save(tmp_path / "vae")
    np.testing.assert_array_equal(load(tmp_path / "vae").partial_fit(X).transform(X), vae.partial_fit(X).transform(X))
