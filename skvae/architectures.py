"""Network architectures: (n_inputs, n_outputs) -> nn.Module, used once as encoder and once as decoder.

An architecture ends in a linear layer, its ``head``: the linear start sets that layer to a constant.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def he_linear(n_inputs: int, n_outputs: int, generator: torch.Generator) -> nn.Linear:
    """Linear layer with zero biases and normal weights of variance 2 / n_inputs (He et al., 2015)."""
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)  # the usual init moves torch's global stream
    nn.init.normal_(layer.weight, std=math.sqrt(2 / n_inputs), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Multilayer perceptron; without hidden layers, a linear map.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Size of the last dimension of input and output.
    hidden_layer_sizes : sequence of int
        Width of each hidden layer.
    activation : str, default="relu"
        Name of the nonlinearity, a key of ``ACTIVATIONS``.
    generator : torch.Generator
        Source of the initial weights.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        hidden_layer_sizes: Sequence[int],
        activation: str = "relu",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([n_inputs, *hidden_layer_sizes]):
            layers += [he_linear(n_in, n_out, generator), ACTIVATIONS[activation]()]
        self.hidden = nn.Sequential(*layers)
        self.head = he_linear([n_inputs, *hidden_layer_sizes][-1], n_outputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_inputs) to (..., n_outputs)."""
        return self.head(self.hidden(x))


ARCHITECTURES = {"mlp": MLP}
