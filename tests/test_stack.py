import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

import skvae._fast.gradient
from skvae import VAETransformer
from skvae._data.batch import Batch
from skvae._training.net import Net
from skvae._training.stack import Stack
from skvae.architectures import Custom
from skvae.inits import LinearInit
from skvae.likelihoods import Gaussian

SMALL = {"hidden_layer_sizes": (8,), "early_stopping": False, "max_iter": 3, "random_state": 0}


@pytest.fixture
def models(make_vae):
    return [make_vae(Gaussian("feature"), n_features=4, hidden_layer_sizes=(3,), seed=seed) for seed in range(3)]


def stacked(models):
    names = [name for name, _ in models[0].named_parameters()]
    groups = [[name for name in names if name.endswith(kind)] for kind in ("weight", "bias", "log_noise")]
    return Stack(models, copy.deepcopy(models), groups)


def values(module):
    return {name: part.detach().clone() for name, part in module.named_parameters()}


def test_members_keep_their_values_and_follow_the_whole(models):
    before = [values(model) for model in models]
    stack = stacked(models)
    for whole in stack.wholes:
        whole.data.mul_(2)
    for i, model in enumerate(models):
        for name, part in model.named_parameters():
            assert torch.equal(part, 2 * before[i][name])
            assert torch.equal(stack.parameters[name][i], part)
            assert torch.equal(stack.averaged[name][i], before[i][name])


def test_a_released_model_has_its_own_memory(models):
    stack = stacked(models)
    before = values(models[0])
    stack.release()
    for whole in stack.wholes:
        whole.data.zero_()
    for name, part in models[0].named_parameters():
        assert torch.equal(part, before[name])
        assert part.is_contiguous()
        assert part.grad is None


def test_gradients_lie_in_the_wholes(models, normal):
    stack = stacked(models)
    for i, model in enumerate(models):
        sum(term.sum() for term in model(Batch(normal(5, 4, seed=i), normal(5, 2, seed=3)))).backward()
    for i, model in enumerate(models):
        alone = copy.deepcopy(model)
        alone.zero_grad()
        sum(term.sum() for term in alone(Batch(normal(5, 4, seed=i), normal(5, 2, seed=3)))).backward()
        for name, part in alone.named_parameters():
            torch.testing.assert_close(stack.gradients[name][i], part.grad)
    assert sum(float(whole.grad.abs().sum()) for whole in stack.wholes) > 0


def test_gradients_that_were_replaced_are_gathered(models):
    stack = stacked(models)
    models[1].encoder.head.bias.grad = torch.arange(4.0)
    stack.gather()
    assert torch.equal(stack.gradients["encoder.head.bias"][1], torch.arange(4.0))
    assert torch.equal(stack.gradients["encoder.head.bias"][0], torch.zeros(4))


def test_a_step_moves_all_but_what_is_frozen(models):
    models[0].encoder.requires_grad_(False)
    before, stack = [values(model) for model in models], stacked(models)
    for whole in stack.wholes:
        whole.grad.fill_(1.0)
    stack.freeze()
    optimizer = torch.optim.AdamW(stack.wholes, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        stack.step(optimizer, 0.5)
    for i, model in enumerate(models):
        for name, part in model.named_parameters():
            assert torch.equal(part, before[i][name]) == name.startswith("encoder"), name
    moved, average = stack.parameters["decoder.head.bias"], stack.averaged["decoder.head.bias"]
    first = torch.stack([start["decoder.head.bias"] for start in before])
    assert ((average - first).abs() < (moved - first).abs()).all()
    assert ((average - first).abs() > 0).all()


def test_tiny_weights_and_moments_are_zeroed_before_they_are_denormal(models):
    """Whatever else they are: a thousand steps of decay take them there, where arithmetic is many times slower."""
    stack = stacked(models)
    optimizer = torch.optim.Adam(stack.wholes, lr=0.1)
    for whole in stack.wholes:
        whole.grad.fill_(1.0)
    stack.step(optimizer, 0.5)
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    flats = [*stack.wholes, *stack.average_wholes, *moments]
    kept = [flat.detach().clone() for flat in flats]
    for flat in flats:
        flat.data[:2] = torch.tensor([1e-31, -1e-40])
        flat.data[2] = 1e-29
    stack.flush(optimizer)
    for flat, before in zip(flats, kept, strict=True):
        assert flat[:3].tolist() == [0.0, 0.0, pytest.approx(1e-29)]
        assert torch.equal(flat[3:], before[3:])


def test_a_long_run_leaves_no_denormal_weights(normal):
    """Nothing but weight decay, which takes nearly half of them here at each step, moves those of constant features."""
    X = normal(60, 6).numpy()
    X[:, :2] = 0
    options = SMALL | {"init": LinearInit(weight_decay=600.0), "learning_rate": 0.05, "batch_size": 30, "max_iter": 85}
    vae = VAETransformer(2, **options).fit(X)
    dead = vae.net_.module_.encoder.hidden[0].weight.detach()[:, :2]
    assert not dead.any()


def test_a_state_is_gone_back_to(models):
    stack = stacked(models)
    state = stack.state()
    for flat in (*stack.wholes, *stack.average_wholes):
        flat.data.add_(1)
    stack.load(state)
    for flats in (stack.wholes, stack.average_wholes):
        assert all(torch.equal(flat, kept) for flat, kept in zip(flats, state, strict=False))  # buffers follow


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop", "nadam"])
@pytest.mark.parametrize("early_stopping", [False, "auto"])
def test_a_flat_step_is_the_plain_one(early_stopping, optimizer, table, monkeypatch):
    """Each number is treated by itself: the same fit with the parameters one by one, up to rounding."""
    X, options = table(), {"optimizer": optimizer, "learning_rate": 1e-3, **SMALL, "early_stopping": early_stopping}
    flat = VAETransformer(2, **options).fit(X).partial_fit(X)
    monkeypatch.setattr(Net, "_elementwise", False)
    plain = VAETransformer(2, **options).fit(X).partial_fit(X)
    for a, b in zip(flat.module_.parameters(), plain.module_.parameters(), strict=True):
        # rounding differs, and Adam's first steps divide gradients by their own size
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
def test_autograd_and_the_gradient_by_hand_train_alike(early_stopping, table, monkeypatch):
    X, options = table(n_rows=300), SMALL | {"early_stopping": early_stopping, "max_iter": 10}
    by_hand = VAETransformer(2, **options).fit(X)
    monkeypatch.setattr(skvae._fast.gradient, "ENABLED", False)
    by_autograd = VAETransformer(2, **options).fit(X)
    assert by_hand.score(X) == pytest.approx(by_autograd.score(X), abs=1e-3)
    assert by_hand.loss_curve_ == pytest.approx(by_autograd.loss_curve_, abs=1e-3)
    if early_stopping:
        assert by_hand.validation_scores_ == pytest.approx(by_autograd.validation_scores_, abs=1e-3)


def test_a_fitted_net_keeps_no_second_copy(table):
    vae = VAETransformer(2, **SMALL).fit(table())
    assert vae.net_.stack_ is vae.net_.fast_ is vae.net_.guard_ is None
    assert all(part.is_contiguous() and part.grad is None for part in vae.module_.parameters())
    storages = {part.untyped_storage().data_ptr() for part in vae.net_.module_.parameters()}
    assert len(storages) == len([*vae.net_.module_.parameters()])
    assert pickle.loads(pickle.dumps(vae)).partial_fit(table()).n_iter_ == 4


class Scaled(nn.Module):
    """A network whose first parameter is a number."""

    def __init__(self, n_features):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.layer = nn.Linear(n_features, 16)

    def forward(self, x):
        return torch.tanh(self.scale * self.layer(x))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop", "nadam", partial(SGD, momentum=0.9)], ids=str)
def test_parameters_without_dimensions_are_trained_on(optimizer, table):
    X, options = table(), {"optimizer": optimizer, "learning_rate": 1e-3, **SMALL, "max_iter": 1}
    vae = VAETransformer(2, architecture=Custom(Scaled(X.shape[1]), Scaled(2)), **options)
    for _ in range(4):
        vae.partial_fit(X)
    state, numbers = vae.net_.optimizer_.state, {"exp_avg", "exp_avg_sq", "square_avg", "momentum_buffer"}
    for part in vae.net_.module_.parameters():
        own = {key: value.shape for key, value in state.get(part, {}).items() if key in numbers}
        assert all(shape == part.shape for shape in own.values())
        assert bool(own) == (optimizer != "sgd")
    assert np.isfinite(vae.score(X))
