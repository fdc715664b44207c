"""Network architectures, used once as encoder and once as decoder; ARCHITECTURES names them.

A network is its ``hidden`` part and then its ``head``, which is linear: the linear start sets the head to a constant.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar, Protocol

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from ._model.component import Component, Counts

__all__ = [
    "MLP",
    "Architecture",
    "Conv",
    "Custom",
    "Dropout",
    "NetworkSpec",
    "Residual",
]

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def uninitialised(kind: type, *args: Any, **options: Any) -> Any:
    """A layer whose weights are yet to be set.

    torch's own start would move its global stream, and its `skip_init` imports half a second of symbolic algebra.
    """
    layer = kind(*args, device="meta", **options)
    for name, part in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.empty(part.shape)))
    return layer


def he_linear(n_inputs: int, n_outputs: int, generator: torch.Generator) -> nn.Linear:
    """Linear layer with zero biases and normal weights of variance 2 / n_inputs (He et al., 2015)."""
    layer = uninitialised(nn.Linear, n_inputs, n_outputs)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / n_inputs), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) with masks from a stream that belongs to the epoch, not torch's global one.

    In a model that is not training it does nothing.

    Parameters
    ----------
    p : float
        Share of the values that is dropped in a training step.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator = torch.Generator()

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def begin_epoch(self, epoch: int, n_epochs: int, generator: torch.Generator) -> None:
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of `x`, which may have any shape, in a training step."""
        if not self.training:
            return x
        kept = torch.rand(x.shape, generator=self.generator).to(x.device) >= self.p
        return x * kept / (1 - self.p)


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is asked to be.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Size of the last dimension of input and output.
    hidden_layer_sizes : sequence of int, default=()
        Width of each hidden layer, from input to output.
    n_raw : int, default=None
        In a decoder, the number of raw outputs for each feature: its output is (n_raw, n_features) made flat.
    generator : torch.Generator
        Source of the initial weights.
    """

    n_inputs: int
    n_outputs: int
    hidden_layer_sizes: Sequence[int] = ()
    n_raw: int | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def n_features(self) -> int:
        return self.n_outputs // self.n_raw if self.n_raw else self.n_inputs

    def linear(self, n_inputs: int, n_outputs: int) -> nn.Linear:
        """A linear layer at its start."""
        return he_linear(n_inputs, n_outputs, self.generator)


class Head(Protocol):
    """A linear layer, or what stands for one."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class Architecture(Component, ABC):
    """Base of all architectures, and of your own: write `build`.

    The object that is given to the estimator is a description; its copies become the two networks.
    """

    hidden: nn.Module
    head: Head

    @abstractmethod
    def build(self, spec: NetworkSpec) -> None:
        """Create ``hidden`` and ``head``.

        ``hidden`` is a module that treats each row by itself, (..., n_inputs) -> (..., any width); ``head`` a linear
        layer from there to (..., n_outputs), whose output is its `bias` where its `weight` is zero.
        """

    def is_linear(self, hidden_layer_sizes: Sequence[int]) -> bool:
        """Tell whether the networks are linear maps, so that the linear start needs no paths beside them."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_inputs) to (..., n_outputs)."""
        return self.head(self.hidden(x))


class _Regularized(Architecture):
    """Base of networks with hidden layers: nonlinearity, normalisation and dropout."""

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "activation": [StrOptions(set(ACTIVATIONS))],
        "layer_norm": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(self, activation: str, layer_norm: bool, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.layer_norm = layer_norm
        self.dropout = dropout
        self.check_params()

    def _nonlinearity(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()

    def _hidden_layers(self, widths: Sequence[int], spec: NetworkSpec) -> nn.Sequential:
        """Linear layers with their nonlinearities. The norm has no weights: the linear layer after it has some.

        Batch normalisation is not offered: it makes a row's output depend on the rows that it was trained with.
        """
        layers: list[nn.Module] = []
        for n_inputs, n_outputs in pairwise(widths):
            norm = [nn.LayerNorm(n_outputs, elementwise_affine=False)] if self.layer_norm else []
            drop = [Dropout(self.dropout)] if self.dropout else []
            layers += [spec.linear(n_inputs, n_outputs), *norm, self._nonlinearity(), *drop]
        return nn.Sequential(*layers)


class _Layered(_Regularized):
    """Base of networks of hidden layers, and of nothing else."""

    def is_linear(self, hidden_layer_sizes: Sequence[int]) -> bool:
        return not hidden_layer_sizes

    def build(self, spec: NetworkSpec) -> None:
        widths = [spec.n_inputs, *spec.hidden_layer_sizes]
        self.hidden = self._layers(widths, spec)
        self.head = spec.linear(widths[-1], spec.n_outputs)

    @abstractmethod
    def _layers(self, widths: Sequence[int], spec: NetworkSpec) -> nn.Sequential:
        """The hidden part, from `widths[0]` to `widths[-1]` values."""


class MLP(_Layered):
    """Multilayer perceptron; without hidden layers, a linear map.

    Parameters
    ----------
    activation : {"relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh"}, default="relu"
        Nonlinearity of the hidden layers.
    layer_norm : bool, default=False
        Whether to normalise each row's values before each activation (Ba, Kiros & Hinton, 2016).
    dropout : float, default=0.0
        Share of each hidden layer's values that is dropped in a training step.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.architectures import MLP
    >>> VAETransformer(architecture=MLP(dropout=0.2))
    VAETransformer(architecture=MLP(dropout=0.2))
    """

    def __init__(self, activation: str = "relu", layer_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__(activation, layer_norm, dropout)

    def _layers(self, widths: Sequence[int], spec: NetworkSpec) -> nn.Sequential:
        return self._hidden_layers(widths, spec)


class _Block(nn.Module):
    """x + branch(x), with a linear map of x where the widths differ."""

    def __init__(self, skip: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.skip = skip
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.branch(x)


class Residual(_Layered):
    """Residual network: for each hidden layer a block of two linear layers beside an identity (He et al., 2016).

    Where the width changes, a linear map stands in the identity's place. Without hidden layers, a linear map.

    Parameters
    ----------
    activation : {"relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh"}, default="relu"
        Nonlinearity inside the blocks.
    layer_norm : bool, default=True
        Whether to normalise each row's values before each activation.
    dropout : float, default=0.0
        Share of the values inside each block that is dropped in a training step.

    References
    ----------
    He, Zhang, Ren & Sun (2016). "Identity mappings in deep residual networks", section 2. ECCV.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.architectures import Residual
    >>> VAETransformer(architecture=Residual(dropout=0.1))
    VAETransformer(architecture=Residual(dropout=0.1))
    """

    def __init__(self, activation: str = "relu", layer_norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__(activation, layer_norm, dropout)

    def _layers(self, widths: Sequence[int], spec: NetworkSpec) -> nn.Sequential:
        return nn.Sequential(*(self._block(n_in, n_out, spec) for n_in, n_out in pairwise(widths)))

    def _block(self, n_inputs: int, n_outputs: int, spec: NetworkSpec) -> nn.Module:
        layers = self._hidden_layers([n_inputs, n_outputs], spec)
        skip = nn.Identity() if n_inputs == n_outputs else spec.linear(n_inputs, n_outputs)
        return _Block(skip, nn.Sequential(*layers, spec.linear(n_outputs, n_outputs)))


class _RowsToImages(nn.Module):
    """Flat rows of images (..., height * width * n_channels) as (n, n_channels, height, width).

    Nothing is copied: a pixel's channels stay side by side, the order in which convolutions are fastest.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape).movedim(-1, 1)


class _Rows(nn.Module):
    """A network of rows (n, n_inputs), whose output may be images, as one of rows (..., n_inputs)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x.reshape(-1, x.shape[-1]))
        return y.movedim(1, -1).reshape(*x.shape[:-1], -1)  # as `_RowsToImages` wants it


class _ConvHead(nn.Module):
    """Transposed convolution to images, with a bias for each pixel; flat rows in and out.

    Parameters
    ----------
    maps : tuple of int
        Height, width and channels of what comes in.
    images : tuple of int
        Height, width, raw outputs per feature and channels of what goes out.
    generator : torch.Generator
        Source of the initial weights.
    """

    def __init__(self, maps: Sequence[int], images: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.maps, self.images = _RowsToImages(maps), tuple(images)
        self.convolution = _upsampling(maps[2], images[2] * images[3], images[:2], generator)
        self.convolution.register_parameter("bias", None)
        self.bias = nn.Parameter(torch.zeros(math.prod(images)))

    @property
    def weight(self) -> Tensor:
        return self.convolution.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(self.maps(x)).movedim(1, -1)
        rows = y.reshape(-1, *self.images).movedim(3, 1)  # (n, n_raw, height, width, n_channels)
        return rows.reshape(*x.shape[:-1], -1) + self.bias


def _he_convolution(layer: Any, fan_in: float, generator: torch.Generator) -> Any:
    nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _downsampling(n_inputs: int, n_outputs: int, generator: torch.Generator) -> Any:
    layer = uninitialised(nn.Conv2d, n_inputs, n_outputs, 3, stride=2, padding=1)
    return _he_convolution(layer, 9 * n_inputs, generator)


def _upsampling(n_inputs: int, n_outputs: int, size: Sequence[int], generator: torch.Generator) -> Any:
    """The way back from half of `size`, rounded up; each output sees a quarter of the kernel."""
    odd = tuple(1 - length % 2 for length in size)
    layer = uninitialised(nn.ConvTranspose2d, n_inputs, n_outputs, 3, stride=2, padding=1, output_padding=odd)
    return _he_convolution(layer, 9 * n_inputs / 4, generator)


class Conv(_Regularized):
    """Convolutional network for rows that are images: 3x3 convolutions of stride 2, then the hidden layers.

    The decoder mirrors the encoder, with transposed convolutions.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        (height, width) or (height, width, n_channels) of a row of X; any size. None takes the square root of the number
        of features for height and width.
    channels : sequence of int, default=(32, 64)
        Channels of each convolution of the encoder; each halves height and width, rounded up.
    activation : {"relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh"}, default="relu"
        Nonlinearity of convolutions and hidden layers.
    layer_norm : bool, default=False
        Whether to normalise each row's values before each activation of the dense layers, not of the convolutions.
    dropout : float, default=0.0
        Share of each dense layer's values that is dropped in a training step; nothing is dropped in the convolutions.

    Raises
    ------
    ValueError
        In `fit`, if a row of X has another number of features than the image has values, or `image_shape` or `channels`
        does not hold ints > 0.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.architectures import Conv
    >>> VAETransformer(architecture=Conv(image_shape=(28, 28)))
    VAETransformer(architecture=Conv(image_shape=(28, 28)))
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "image_shape": [Counts(range(2, 4), "(height, width) or (height, width, n_channels), ints > 0,"), None],
        "channels": [Counts()],
    }

    def __init__(
        self,
        image_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (32, 64),
        activation: str = "relu",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(activation, layer_norm, dropout)
        self.image_shape = image_shape
        self.channels = channels

    def _shape(self, n_features: int) -> tuple[int, ...]:
        """Height, width and channels of the image."""
        side = math.isqrt(n_features)
        shape = (side, side) if self.image_shape is None else tuple(map(int, self.image_shape))
        if math.prod(shape) != n_features:
            raise ValueError(
                f"X has {n_features} features, which are no image of shape {shape}. Set image_shape, as in "
                "architecture=Conv(image_shape=(28, 28))."
            )
        return (*shape, 1)[:3]

    def build(self, spec: NetworkSpec) -> None:
        self.check_params()
        channels = tuple(map(int, self.channels))
        *size, n_channels = self._shape(spec.n_features)
        sizes = [size]  # height and width from the image down to the smallest feature map
        for _ in channels:
            sizes.append([-(-length // 2) for length in sizes[-1]])
        if spec.n_raw:
            self._build_decoder(spec, sizes[::-1], channels[::-1], (spec.n_raw, n_channels))
        else:
            self._build_encoder(spec, sizes, (n_channels, *channels))

    def _build_encoder(self, spec: NetworkSpec, sizes: Sequence[Sequence[int]], channels: Sequence[int]) -> None:
        layers: list[nn.Module] = [_RowsToImages((*sizes[0], channels[0]))]
        for n_in, n_out in pairwise(channels):
            layers += [_downsampling(n_in, n_out, spec.generator), self._nonlinearity()]
        widths = [channels[-1] * math.prod(sizes[-1]), *spec.hidden_layer_sizes]
        self.hidden = nn.Sequential(_Rows(nn.Sequential(*layers)), *self._hidden_layers(widths, spec))
        self.head = spec.linear(widths[-1], spec.n_outputs)

    def _build_decoder(
        self, spec: NetworkSpec, sizes: Sequence[Sequence[int]], channels: Sequence[int], outputs: Sequence[int]
    ) -> None:
        maps = *sizes[0], channels[0]
        layers: list[nn.Module] = [_RowsToImages(maps)]
        for (n_in, n_out), size in zip(pairwise(channels), sizes[1:], strict=False):
            layers += [_upsampling(n_in, n_out, size, spec.generator), self._nonlinearity()]
        dense = self._hidden_layers([spec.n_inputs, *spec.hidden_layer_sizes, math.prod(maps)], spec)
        self.hidden = nn.Sequential(*dense, _Rows(nn.Sequential(*layers)))
        self.head = _ConvHead((*sizes[-2], channels[-1]), (*sizes[-1], *outputs), spec.generator)


def _checked(network: nn.Module, name: str) -> nn.Module:
    if any(part.is_meta for part in (*network.parameters(), *network.buffers())):
        raise ValueError(f"The {name} of Custom is on the device 'meta' and has no weights: build it on another one.")
    return network


def _trial_output(network: nn.Module, n_inputs: int, whose: str) -> Tensor:
    """Return a network's output for two rows; raise ValueError, naming `whose` it is, if that is not a row for each."""
    training = [(part, part.training) for part in network.modules()]
    try:
        with torch.no_grad():  # in evaluation mode, so that a look changes nothing
            output = network.eval()(torch.zeros(2, n_inputs))
    except Exception as error:
        raise ValueError(f"{whose} does not take rows of {n_inputs} values: {error}") from error
    finally:
        for part, mode in training:
            part.training = mode
    if not isinstance(output, Tensor):
        raise ValueError(f"{whose} must return a tensor. Got {type(output).__name__} instead.")
    if output.ndim < 2 or len(output) != 2 or not output.is_floating_point():
        raise ValueError(
            f"{whose} must map (batch, {n_inputs}) to floats of shape (batch, any width). "
            f"Got {str(output.dtype)[6:]} of shape {tuple(output.shape)} for a batch of 2 rows."
        )
    return output


def check_network(network: Architecture, spec: NetworkSpec) -> None:
    """Refuse a network of a user's own class that does not end in a linear layer, or was built to other sizes than it
    was asked for."""
    if type(network) in (*ARCHITECTURES.values(), Custom):
        return
    whose = f"The {'decoder' if spec.n_raw else 'encoder'} that {type(network).__name__} builds"
    head = getattr(network, "head", None)
    if lacks := [name for name in ("weight", "bias") if not isinstance(getattr(head, name, None), Tensor)]:
        raise ValueError(
            f"{whose} must end in `head`, a linear layer with weight and bias, as spec.linear(n_inputs, "
            f"{spec.n_outputs}) makes it. Got {type(head).__name__} without {' and '.join(lacks)}."
        )
    output = _trial_output(network, spec.n_inputs, whose)
    if output.shape != (2, spec.n_outputs):
        raise ValueError(
            f"{whose} must map (batch, {spec.n_inputs}) to (batch, {spec.n_outputs}). "
            f"Got {tuple(output.shape)} for a batch of 2 rows."
        )


class Custom(Architecture):
    """Your own networks. Each gets a linear layer at its end, which brings it to the size that is asked for.

    Copies of them are trained. Modules like ``torch.nn.Dropout`` read torch's global stream; `Dropout` of this module
    does not.

    Parameters
    ----------
    encoder : nn.Module
        (batch, n_features) -> (batch, any width).
    decoder : nn.Module
        (batch, z_dim) -> (batch, any width).

    Raises
    ------
    ValueError
        In `fit`, if a network does not take rows of that size, or does not return a row of floats for each.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from torch import nn
    >>> from skvae import VAETransformer
    >>> from skvae.architectures import Custom
    >>> encoder = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
    >>> decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh())
    >>> vae = VAETransformer(2, architecture=Custom(encoder, decoder), max_iter=5, early_stopping=False)
    >>> vae.fit_transform(load_iris().data).shape
    (150, 2)
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {"encoder": [nn.Module], "decoder": [nn.Module]}

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def build(self, spec: NetworkSpec) -> None:
        name = "decoder" if spec.n_raw else "encoder"
        network = _checked(getattr(self, name), name).float()  # built under whatever default dtype
        output = _trial_output(network, spec.n_inputs, f"The {name} of {type(self).__name__}")
        self.hidden = _Rows(network)
        self.encoder = self.decoder = None  # type: ignore[assignment]
        self.head = spec.linear(output[0].numel(), spec.n_outputs)


ARCHITECTURES: dict[str, type[Architecture]] = {"mlp": MLP, "residual": Residual, "conv": Conv}
