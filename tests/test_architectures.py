import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.nn import functional as F

from skvae import VAETransformer
from skvae.architectures import (
    ACTIVATIONS,
    ARCHITECTURES,
    MLP,
    Architecture,
    Conv,
    Custom,
    Dropout,
    NetworkSpec,
    Residual,
)

SIZES = {"hidden_layer_sizes": (300, 200)}
EACH = {
    **{name: kind() for name, kind in ARCHITECTURES.items()},
    "mlp with options": MLP(layer_norm=True, dropout=0.5),
    "residual with options": Residual(layer_norm=False, dropout=0.5),
    "conv of colour": Conv(image_shape=(4, 5, 5), channels=(3,)),
    "conv with options": Conv(layer_norm=True, dropout=0.5),
    "custom": Custom(nn.Sequential(nn.Linear(100, 7), nn.Tanh()), nn.Sequential(nn.Linear(3, 9), nn.Tanh())),
}
each_architecture = pytest.mark.parametrize("architecture", EACH.values(), ids=EACH)
each_role = pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])


def build(architecture, decoder=False, seed=0, **params):
    """A network for 100 features, from 3 latent units to two raw outputs of each or from the features to 50 outputs."""
    sizes = {"n_inputs": 3, "n_outputs": 200, "n_raw": 2} if decoder else {"n_inputs": 100, "n_outputs": 50}
    network = architecture() if isinstance(architecture, type) else clone(architecture)
    network.build(NetworkSpec(generator=torch.Generator().manual_seed(seed), **(sizes | SIZES | params)))
    return network.eval()


@each_role
@each_architecture
def test_architecture_maps_the_last_dimension(architecture, decoder, normal):
    network = build(architecture, decoder)
    x = normal(4, 6, 3 if decoder else 100)
    y = network(x)
    assert y.shape == (4, 6, 200 if decoder else 50)
    torch.testing.assert_close(y[1, 2], network(x[1, 2]), rtol=1e-4, atol=1e-5)  # rows do not see each other
    assert not torch.allclose(y[1, 2], y[1, 3])
    nn.init.zeros_(network.head.weight)
    nn.init.normal_(network.head.bias, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), network.head.bias.expand(y.shape))  # the head is last, as the linear start needs it


@each_architecture
@each_role
def test_every_weight_has_a_gradient(architecture, decoder, normal):
    network = build(architecture, decoder)
    network(normal(30, 3 if decoder else 100)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
@each_role
def test_own_stream_decides_the_weights(architecture, decoder, global_streams):
    before = global_streams()
    first, same, other = (build(architecture, decoder, seed=seed) for seed in (0, 0, 1))
    assert global_streams() == before
    weights = [list(network.parameters()) for network in (first, same, other)]
    assert all(map(torch.equal, weights[0], weights[1]))
    assert not all(map(torch.equal, weights[0], weights[2]))


def test_he_initialisation():
    layers = [layer for layer in build(MLP).modules() if isinstance(layer, nn.Linear)]
    assert [layer.weight.shape for layer in layers] == [(300, 100), (200, 300), (50, 200)]
    for layer in layers:
        std, n = math.sqrt(2 / layer.in_features), layer.weight.numel()
        assert torch.all(layer.bias == 0)
        assert abs(layer.weight.std() / std - 1) < 5 / math.sqrt(2 * n)  # 5 standard errors of a standard deviation
        assert abs(layer.weight.mean()) < 5 * std / math.sqrt(n)


@pytest.mark.parametrize("architecture", [MLP, Residual])
def test_no_hidden_layer_is_linear(architecture, normal):
    network = build(architecture, hidden_layer_sizes=())
    x, y = normal(2, 8, 100)
    torch.testing.assert_close(network(2 * x - 3 * y), 2 * network(x) - 3 * network(y), rtol=1e-4, atol=1e-4)
    assert network.is_linear(())
    assert not network.is_linear((3,))
    assert not Conv().is_linear(())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_bends(name, normal):
    network = build(MLP(name))
    x = normal(8, 100)
    assert torch.any((network(x) - network(x - 1) - network(1 + 0 * x) + network(0 * x)).abs() > 1e-3)
    gradients = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    assert all(torch.isfinite(gradient).all() and gradient.abs().max() > 0 for gradient in gradients)


def test_residual_block_adds_to_what_comes_in(normal):
    network = build(Residual(), hidden_layer_sizes=(100, 100, 20))
    x = normal(5, 100)
    for block in network.hidden:
        nn.init.zeros_(block.branch[-1].weight)
    torch.testing.assert_close(network.hidden[:2](x), x)  # same width: the identity
    torch.testing.assert_close(network.hidden(x), x @ network.hidden[2].skip.weight.T)


# Images


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (9, 8), (28, 28), (5, 6, 3), (32, 17, 4)])
@pytest.mark.parametrize("channels", [(2,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("n_raw", [1, 2])
def test_conv_takes_any_size(shape, channels, n_raw, normal):
    n_features, conv = math.prod(shape), Conv(shape, channels)
    sizes = {"n_inputs": n_features, "n_outputs": 6, "n_raw": None, "hidden_layer_sizes": (5,)}
    assert build(conv, **sizes)(normal(3, n_features)).shape == (3, 6)
    sizes = {"n_inputs": 2, "n_outputs": n_raw * n_features, "n_raw": n_raw, "hidden_layer_sizes": (5,)}
    assert build(conv, decoder=True, **sizes)(normal(3, 2)).shape == (3, n_raw * n_features)


def test_conv_is_local_and_reads_channels_last(normal):
    """A pixel reaches the feature maps around it, of all channels, and no others."""
    network = build(Conv((8, 8, 3), channels=(2,)), n_inputs=192, hidden_layer_sizes=())
    image = normal(8, 8, 3)
    other = image.clone()
    other[0, 0, 2] += 5
    maps, changed = (network.hidden(rows.reshape(1, -1)).view(4, 4, 2) for rows in (image, other))
    moved = (maps != changed).any(-1)
    assert moved[0, 0]
    assert moved.sum() == 1  # the corner lies in one window of 3 x 3 with stride 2


def test_conv_decoder_draws_images_channels_last(normal):
    """A feature map's corner reaches the image's corner, of each raw output and channel."""
    network = build(Conv((8, 6, 3), channels=(4,)), decoder=True, n_outputs=2 * 144, hidden_layer_sizes=())
    maps = torch.zeros(2, 4, 3, 4)
    maps[1, 0, 0] = 1.0
    images = network.head(maps.reshape(2, -1)).view(2, 2, 8, 6, 3)
    moved = (images[0] != images[1]).all(-1).all(0)  # (height, width)
    assert moved[:2, :2].all()
    assert moved.sum() == 4


def test_conv_is_the_convolution_of_torch(normal):
    network = build(Conv((6, 6), channels=(2,), activation="tanh"), n_inputs=36, hidden_layer_sizes=())
    layer, x = network.hidden[0].network[1], normal(3, 36)
    expected = F.conv2d(x.view(3, 1, 6, 6), layer.weight, layer.bias, stride=2, padding=1).tanh()
    torch.testing.assert_close(network.hidden(x), expected.movedim(1, -1).reshape(3, -1))


@pytest.mark.parametrize(
    ("conv", "n_features", "message"),
    [
        (Conv(), 10, r"X has 10 features, which are no image of shape \(3, 3\)\. Set image_shape"),
        (Conv((28, 28)), 64, r"X has 64 features, which are no image of shape \(28, 28\)\."),
        (Conv((4, 4)), 32, r"X has 32 features, which are no image of shape \(4, 4\)\."),
        (Conv((4, 4, 3)), 32, r"X has 32 features, which are no image of shape \(4, 4, 3\)\."),
        (Conv((4,)), 4, r"must be \(height, width\) or \(height, width, n_channels\), ints > 0, or None\. Got \(4,\)"),
        (Conv((-2, -2)), 4, r"'image_shape' parameter of Conv .*ints > 0, or None\. Got \(-2, -2\) instead"),
        (Conv(()), 4, r"'image_shape' parameter of Conv .*ints > 0, or None\. Got \(\) instead"),
        (
            Conv(channels=()),
            4,
            r"'channels' parameter of Conv must be a sequence of ints > 0, at least one\. Got \(\) instead",
        ),
        (
            Conv(channels=(8, 0)),
            4,
            r"'channels' parameter of Conv must be a sequence of ints > 0, at least one\. Got \(8, 0\) instead",
        ),
        (
            Conv(channels=(8, 2.5)),
            4,
            r"'channels' parameter of Conv must be a sequence of ints > 0, at least one\. Got \(8, 2\.5\) instead",
        ),
        (
            Conv(channels=8),
            4,
            r"'channels' parameter of Conv must be a sequence of ints > 0, at least one\. Got 8 instead",
        ),
    ],
)
@each_role
def test_conv_names_what_does_not_fit(conv, n_features, message, decoder):
    sizes = {"n_outputs": 2 * n_features} if decoder else {"n_inputs": n_features}
    with pytest.raises(ValueError, match=message):
        build(conv, decoder, **sizes)


@each_role
def test_conv_takes_arrays(decoder, normal):
    arrays, tuples = Conv(np.array([4, 25]), np.array([3, 2])), Conv((4, 25), (3, 2))
    x = normal(5, 3 if decoder else 100)
    assert torch.equal(build(arrays, decoder)(x), build(tuples, decoder)(x))


@each_role
def test_options_of_conv_hold_for_its_dense_layers(decoder):
    network = build(Conv(layer_norm=True, dropout=0.3), decoder)
    kinds = [type(part).__name__ for part in network.modules() if not list(part.children())]
    dense = ["Linear", "LayerNorm", "ReLU", "Dropout"] * (3 if decoder else 2)
    maps = ["_RowsToImages", *(["ConvTranspose2d", "ReLU"] if decoder else ["Conv2d", "ReLU"] * 2)]
    assert kinds[:-2] == [*dense, *maps] if decoder else kinds[:-1] == [*maps, *dense]
    assert {part.p for part in network.modules() if isinstance(part, Dropout)} == {0.3}


# Dropout, own modules


def test_dropout_drops_its_share_and_keeps_the_mean():
    layer, x = Dropout(0.3), torch.ones(100_000)
    layer.begin_epoch(1, 10, torch.Generator().manual_seed(0))
    y = layer(x)
    share = float((y == 0).double().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 1e5)
    assert torch.all((y == 0) | ((y - 1 / 0.7).abs() < 1e-6))
    assert torch.equal(layer.eval()(x), x)


def test_dropouts_masks_belong_to_the_epochs_stream(global_streams):
    before, layer, x = global_streams(), Dropout(0.5), torch.ones(64)
    draws = []
    for seed in (0, 0, 1):
        layer.begin_epoch(1, 10, torch.Generator().manual_seed(seed))
        draws.append(torch.stack([layer(x), layer(x)]))
    assert global_streams() == before
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(*draws[0])


@pytest.mark.parametrize("kind", [MLP, Residual, Conv])
@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_bad_dropout_is_named(kind, dropout):
    with pytest.raises(
        ValueError,
        match=rf"'dropout' parameter of {kind.__name__} must be a float in the range .*\. Got {dropout} instead",
    ):
        kind(dropout=dropout)


def test_layer_norm_normalises_each_row(normal):
    network = build(MLP(layer_norm=True))
    torch.testing.assert_close(network(normal(3, 100)), network(7 * normal(3, 100)), rtol=1e-3, atol=1e-3)
    assert not list(network.hidden[1].parameters())


def test_own_modules_are_copied_and_used_once():
    encoder, decoder = nn.Linear(100, 7), nn.Linear(3, 9)
    custom = Custom(encoder, decoder)
    network = build(custom, decoder=True)
    assert custom.encoder is encoder
    assert {tuple(parameter.shape) for parameter in network.parameters()} == {(9, 3), (9,), (200, 9), (200,)}
    assert torch.equal(network.hidden.network.weight, decoder.weight)
    assert network.hidden.network is not decoder


def test_own_module_of_the_wrong_size_is_named():
    with pytest.raises(ValueError, match="The encoder of Custom does not take rows of 100 values"):
        build(Custom(nn.Linear(10, 7), nn.Linear(3, 9)))


class Answers(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x.flatten(),
            r"must map \(batch, 5\) to floats of shape \(batch, any width\)\. Got float32",
        ),
        (lambda x: x.sum(), r"Got float32 of shape \(\) for a batch of 2 rows"),
        (lambda x: x[:1], r"Got float32 of shape \(1, 5\)"),
        (lambda x: x.long(), r"Got int64 of shape \(2, 5\)"),
        (lambda x: (x, x), "must return a tensor. Got tuple instead"),
        (lambda x: None, "must return a tensor. Got NoneType instead"),
        (lambda x: x.undefined, "does not take rows of 5 values: 'Tensor' object has no attribute 'undefined'"),
    ],
)
def test_own_module_that_returns_no_rows_is_named(function, message, table, n_steps):
    vae = VAETransformer(2, architecture=Custom(Answers(function), nn.Linear(2, 3)), max_iter=2)
    with pytest.raises(ValueError, match="^The encoder of Custom .*" + message):
        vae.fit(table())
    assert n_steps == []


class TooWide(Architecture):
    def build(self, spec):
        self.hidden = nn.Identity()
        self.head = spec.linear(spec.n_inputs, spec.n_outputs + 1)


def test_own_architecture_of_the_wrong_size_is_named(table, n_steps):
    message = r"^The encoder that TooWide builds must map \(batch, 5\) to \(batch, 4\)\. Got \(2, 5\)"
    with pytest.raises(ValueError, match=message):
        VAETransformer(2, architecture=TooWide(), max_iter=2).fit(table())
    assert n_steps == []


class WithoutBias(Architecture):
    def build(self, spec):
        self.hidden = nn.Identity()
        self.head = nn.Linear(spec.n_inputs, spec.n_outputs, bias=False)


class Wrapped(TooWide):
    def build(self, spec):
        super().build(spec)
        self.head = nn.Sequential(self.head)


@pytest.mark.parametrize(
    ("own", "found"), [(WithoutBias(), "Linear without bias"), (Wrapped(), "Sequential without weight and bias")]
)
def test_own_architecture_without_a_linear_head_is_named(own, found, table, n_steps):
    with pytest.raises(ValueError, match=rf"builds must end in `head`, a linear layer .* Got {found}\."):
        VAETransformer(2, architecture=own, max_iter=2).fit(table())
    assert n_steps == []


class InPlace(Architecture):
    def build(self, spec):
        self.hidden = nn.Hardtanh(inplace=True)
        self.head = spec.linear(spec.n_inputs, spec.n_outputs)


@pytest.mark.parametrize("init", ["random", "linear"])
def test_what_a_network_writes_in_place_is_not_the_users(init):
    """64 rows of float32 in the model's units are a full block, of which no other copy need be made."""
    rng = np.random.default_rng(0)
    X = (rng.random((64, 6)) < 0.4).astype(np.float32)
    Z = 3 * rng.standard_normal((64, 2)).astype(np.float32)
    options = {"likelihood": "bernoulli", "init": init, "max_iter": 2, "early_stopping": False, "random_state": 0}
    vae = VAETransformer(2, architecture=InPlace(), **options).fit(X)
    kept = X.copy(), Z.copy()
    vae.transform(X), vae.score_samples(X), vae.inverse_transform(Z)
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(Z, kept[1])


def test_a_look_at_own_modules_changes_nothing():
    encoder = nn.Sequential(nn.Linear(100, 7), nn.BatchNorm1d(7), nn.Dropout(0.5).eval())
    network = Custom(encoder, nn.Linear(3, 9))
    network.build(NetworkSpec(100, 50))
    assert network.hidden.network[1].num_batches_tracked == 0
    assert [part.training for part in network.hidden.network] == [True, True, False]


@each_architecture
def test_networks_pickle(architecture, normal):
    network, x = build(architecture), normal(4, 100)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(network))(x).detach(), network(x).detach())
