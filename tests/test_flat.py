import pickle

import pytest
import torch
from torch import nn

from skvae import VAETransformer
from skvae._flat import FlatParameter
from skvae._gradient import ELBOGradient
from skvae._net import Net
from skvae.likelihoods import Bernoulli

SMALL = {"hidden_layer_sizes": (8,), "early_stopping": False, "max_iter": 3, "random_state": 0}


@pytest.fixture
def layers(normal):
    tall, wide = nn.Linear(3, 7), nn.Linear(7, 3)
    values = [normal(*part.shape, seed=i) for i, part in enumerate([*tall.parameters(), *wide.parameters()])]
    for part, value in zip([*tall.parameters(), *wide.parameters()], values, strict=True):
        part.data.copy_(value)
    return nn.ModuleList([tall, wide]), values


def test_parameters_keep_their_values_and_follow_the_whole(layers):
    module, values = layers
    flat = FlatParameter(list(module.parameters()), nn.Parameter(torch.zeros(52)))
    assert flat.whole.square().sum().item() == pytest.approx(sum(value.square().sum().item() for value in values))
    flat.whole.data.mul_(2)
    for part, value in zip(module.parameters(), values, strict=True):
        assert torch.equal(part, 2 * value)
    flat.release()
    flat.whole.data.zero_()
    for part, value in zip(module.parameters(), values, strict=True):
        assert torch.equal(part, 2 * value)
        assert part.is_contiguous()


def test_gradients_are_gathered_as_the_parameters_lie(layers):
    module, values = layers
    flat = FlatParameter(list(module.parameters()), nn.Parameter(torch.zeros(52)))
    for part, value in zip([*module.parameters()][:3], values, strict=False):
        part.grad = value.clone()
    flat.gather()
    flat.whole.data.sub_(flat.whole.grad)
    for part in [*module.parameters()][:3]:
        assert torch.equal(part, torch.zeros_like(part))
    assert torch.equal(module[1].bias, values[3])  # it had no gradient


def test_gradients_by_hand_are_written_to_the_whole(make_vae, normal):
    vae = make_vae(Bernoulli(), n_features=4, z_dim=2, hidden_layer_sizes=(3,))
    x, eps = normal(10, 4).sigmoid(), normal(10, 2, seed=1)
    ELBOGradient(vae, 1.0)(x, eps)
    expected = [part.grad for part in vae.parameters()]
    parts = list(vae.parameters())
    flat = FlatParameter(parts, nn.Parameter(torch.zeros(sum(part.numel() for part in parts))))
    for _ in range(2):  # nothing adds up from step to step
        ELBOGradient(vae, 1.0)(x, eps)
        flat.gather()
        torch.testing.assert_close(flat.grads, expected)
        assert all(part.grad is view for part, view in zip(vae.parameters(), flat.grads, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop", "nadam"])
@pytest.mark.parametrize("init", ["linear", "random"])
def test_a_flat_step_is_the_plain_one(init, optimizer, table, monkeypatch):
    """Each number is treated by itself: the same fit with the parameters one by one, up to rounding."""
    X, options = table(), {"optimizer": optimizer, "init": init, "learning_rate": 1e-3, **SMALL}
    flat = VAETransformer(2, **options).fit(X)
    monkeypatch.setattr(Net, "_flat", False)
    plain = VAETransformer(2, **options).fit(X)
    for a, b in zip(flat.module_.parameters(), plain.module_.parameters(), strict=True):
        # rounding differs, and Adam's first steps divide gradients by their own size
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_autograd_and_the_gradient_by_hand_train_alike(table, monkeypatch):
    X = table(n_rows=300)
    by_hand = VAETransformer(2, **SMALL).fit(X)
    monkeypatch.setattr("skvae._gradient.ELBOGradient.covers", lambda vae: False)
    by_autograd = VAETransformer(2, **SMALL).fit(X)
    assert by_hand.score(X) == pytest.approx(by_autograd.score(X), abs=1e-3)
    assert by_hand.loss_curve_ == pytest.approx(by_autograd.loss_curve_, abs=1e-3)


def test_a_fitted_net_keeps_no_second_copy(table):
    vae = VAETransformer(2, **SMALL).fit(table())
    assert vae.net_.average_flats_ == []
    assert vae.net_.flat_ is vae.net_.by_hand_ is vae.net_.averager_ is None
    assert all(part.is_contiguous() and part.grad is None for part in vae.module_.parameters())
    storages = {part.untyped_storage().data_ptr() for part in vae.net_.module_.parameters()}
    assert len(storages) == len([*vae.net_.module_.parameters()])
    assert pickle.loads(pickle.dumps(vae)).partial_fit(table()).n_iter_ == 4
