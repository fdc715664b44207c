"""Encoder and decoder as ONNX graphs, from the units of X and back to them."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._model.module import VAE

_OPSET = 18  # the oldest that torch's exporter writes, without a conversion: the most runtimes read it


class _Part(nn.Module):
    offset: Tensor
    scale: Tensor

    def __init__(self, vae: VAE, offset: float | np.ndarray, scale: float | np.ndarray) -> None:
        super().__init__()
        self.vae = vae
        self.register_buffer("offset", torch.as_tensor(offset, dtype=torch.float64))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float64))


class _Encoder(_Part):
    """X in its own units to the posterior mean."""

    def forward(self, x: Tensor) -> Tensor:
        return self.vae.encode(((x.double() - self.offset) / self.scale).float())[0]


class _Decoder(_Part):
    """Latent coordinates to E[x | z] in the units of X."""

    def forward(self, z: Tensor) -> Tensor:
        mean = self.vae.likelihood.mean(self.vae.decode(z))
        return (mean.double() * self.scale + self.offset).float()


def onnx_graph(vae: VAE, part: str, n_features: int, offset: float | np.ndarray, scale: float | np.ndarray) -> bytes:
    """The graph of a part of `vae`, for any number of rows.

    Parameters
    ----------
    vae : VAE
        A trained module, on any device.
    part : {"encoder", "decoder"}
        "encoder" leads from "X" to "Z", "decoder" from "Z" to "X".
    n_features : int
        Size of the rows of X.
    offset, scale : float or ndarray of shape (n_features,)
        Lead from the model's units to those of X.
    """
    if part not in ("encoder", "decoder"):
        raise ValueError(f"part must be 'encoder' or 'decoder'. Got {part!r} instead.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("to_onnx needs onnx and onnxscript: pip install skvae[onnx]") from error
    vae = copy.deepcopy(vae).cpu().requires_grad_(False)
    if part == "encoder":
        return _export(_Encoder(vae, offset, scale), n_features, ["X", "Z"])
    return _export(_Decoder(vae, offset, scale), vae.prior.z_dim, ["Z", "X"])


def _export(module: nn.Module, n_inputs: int, names: list[str]) -> bytes:
    with _quiet(), torch.random.fork_rng(devices=[]):
        program: Any = torch.onnx.export(
            module.eval(),
            (torch.zeros(2, n_inputs),),  # of two rows: one row would count as a constant
            input_names=names[:1],
            output_names=names[1:],
            opset_version=_OPSET,
            dynamic_shapes=({0: torch.export.Dim("n_samples")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    for node in model.graph.node:  # where each operation comes from, with the paths of this machine
        node.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output):  # torch 2.6 forgets the name
        value.type.tensor_type.shape.dim[0].dim_param = "n_samples"
    return model.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which logs packages that it does not find and warns of its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
