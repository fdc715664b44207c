"""Fitted models as files: one safetensors file, written whole or not at all and read without running code from it.

The tensors stand under the path that leads to them (``net.module.encoder.head.weight``). All else is JSON in the
header's metadata: values that JSON has no type for are objects with one key, ``{"$tuple": [...]}``.
"""

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from sklearn.utils.validation import check_is_fitted

from .._data.cells import objects_of
from .._data.column import Column
from .._data.table import Table
from .._fast.optimizers import OPTIMIZERS
from .._model.build import REGISTRIES, build_vae
from .._model.columns import Categorical, Columns, Ordinal
from .._system.device import device_here
from .._system.program import own_settings
from .._training.net import build_net
from ..objectives import Objective
from .atomic import replace_file
from .onnx import onnx_graph

_FORMAT = 6  # to be raised when older versions of skvae could not read what is written
_KEY = "skvae"  # of the header's metadata
_NO_DIGEST = "0" * 64  # stands where the SHA-256 of the file goes while it is computed
_MAX_HEADER = 100_000_000  # bytes: safetensors reads no longer one
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NAMED: list[Mapping[str, type]] = [*REGISTRIES.values(), OPTIMIZERS]
_CLASSES = {cls.__name__: cls for registry in _NAMED for cls in registry.values()}
_CLASSES |= {cls.__name__: cls for cls in (Table, Column, Columns, Categorical, Ordinal)}


class FileMixin:
    """`save` and `to_onnx` for an estimator of ours with a `net_`."""

    @own_settings()
    def save(self, path):
        """Write the fitted estimator to one safetensors file, which `skvae.load` reads.

        The file holds all that pickle would: parameters, weights, fitted attributes and the state of the optimizer, so
        that the estimator read back gives the same bits and `partial_fit` goes on as it would have. It holds no code:
        plain values, arrays and the classes that skvae has names for can be kept, and anything else is refused. What
        is no part of the model, callbacks and a `RandomState`, is left out with a warning; paths are kept as strings.
        The file appears whole or not at all; a file of that name is replaced.

        Parameters
        ----------
        path : str or path-like
            Name of the file, by custom ending in ``.safetensors``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If a parameter or attribute is an object that only pickle can keep, such as a likelihood of your own class.
        ValueError
            If the history has millions of batches, more than the format allows.

        Warns
        -----
        UserWarning
            If something is left out.

        See Also
        --------
        skvae.load : Reads the file.

        Examples
        --------
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer, load
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = VAETransformer(z_dim=2, max_iter=2, early_stopping=False, random_state=0).fit(X)
        >>> with TemporaryDirectory() as folder:
        ...     vae.save(Path(folder) / "iris.safetensors")
        ...     kept = load(Path(folder) / "iris.safetensors")
        >>> bool((kept.transform(X) == vae.transform(X)).all())
        True
        """
        check_is_fitted(self)
        if type(self).__module__.partition(".")[0] != __package__.partition(".")[0]:
            raise TypeError(_refusal("a class of your own", self))
        params, left_out = self.get_params(deep=False), []
        fitted = {name: value for name, value in vars(self).items() if name not in params and name != "net_"}
        model = {
            "class": type(self).__name__,
            "params": _kept(params, left_out),
            "fitted": _kept(fitted, left_out),
            "net": _net_state(self.net_),
        }
        replace_file(path, _to_bytes(model))
        if left_out:
            warnings.warn(
                f"save leaves out what is no part of the model: {', '.join(left_out)}. pickle keeps it.",
                UserWarning,
                stacklevel=3,
            )

    @own_settings()
    def to_onnx(self, path, part="encoder"):
        """Write the encoder or the decoder as an ONNX graph of float32 rows, any number of them.

        Needs ``pip install skvae[onnx]``; running the graph needs neither skvae nor torch.

        Parameters
        ----------
        path : str or path-like
            Name of the file, by custom ending in ``.onnx``. A file of that name is replaced.
        part : {"encoder", "decoder"}, default="encoder"
            "encoder" computes `transform`: its input "X" (n_samples, n_features) is in the units of the training data,
            its output "Z" (n_samples, z_dim) the posterior mean. "decoder" computes `inverse_transform`, from "Z" to
            "X". Both agree with the methods up to rounding, where no cell is missing and no value has to be moved into
            the likelihood's support.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If `part` is neither of the two, or the table was no table of numbers.
        ImportError
            If onnx or onnxscript is missing.
        """
        check_is_fitted(self)
        model = self._fitted
        if not model.table.is_identity:
            raise ValueError(
                "to_onnx writes models of tables of numbers: this one has categories, dates, marginals or conditions, "
                "whose way into numbers is not a part of the graph. Use save, or encode the columns before fit."
            )
        replace_file(path, onnx_graph(model.vae, part, self.n_features_in_, model.offset, model.scale))


def load_estimator(path, cls):
    """The estimator of class `cls` that `save` wrote."""
    model = _from_bytes(Path(path).read_bytes(), path)
    with _refusing(path, "skvae cannot build the model that it describes"):
        if set(model) != {"class", "params", "fitted", "net"} or model["class"] != cls.__name__:
            raise ValueError(f"it holds {model.get('class')!r} with {sorted(model)}")
        estimator = cls(**model["params"])
        shadows = [name for name in model["fitted"] if hasattr(cls, name)]
        if shadows:
            raise ValueError(f"{shadows} are no fitted attributes")
        vars(estimator).update(model["fitted"], net_=_net_from(**model["net"]))
    return estimator


def _kept(values, left_out):
    """Parameters or attributes without callbacks and random streams, whose names are added to `left_out`."""
    kept = {}
    for name, value in values.items():
        if name in ("_skl_callbacks", "callbacks") or isinstance(value, np.random.RandomState):
            left_out += [name] if value else []
        else:
            kept[name] = value
    return kept


# A net


def _net_state(net):
    """Return all that training has made of a net, and the arguments that build it anew."""
    return {
        "recipe": net.recipe_,
        "device": str(net.device),
        "lr": net.lr,
        "frozen": net.frozen,
        "n_steps": net.n_steps_,
        "gain": net.gain_,
        "ema_decay": net.ema_decay,
        "history": net.history.to_list(),
        "module": net.module_.state_dict(),
        "average": net.average_.state_dict(),
        "optimizer": net.optimizer_.state_dict(),
    }


def _net_from(*, recipe, device, lr, frozen, n_steps, gain, ema_decay, history, module, average, optimizer):
    """The net, on the device where it was if there is such a one here, otherwise on the CPU."""
    if not isinstance(recipe["objective"], Objective):
        raise ValueError(f"it trains {recipe['objective']!r}, which is no objective")
    net = build_net(build_vae(**recipe["vae"]), **recipe, device=device_here(device))
    net.module_.load_state_dict(module)
    net.average_.load_state_dict(average)
    net.optimizer_.load_state_dict(optimizer)
    net.lr, net.n_steps_, net.gain_, net.ema_decay = lr, n_steps, gain, ema_decay
    net.freeze(frozen)
    net.average_.eval()
    net.history.extend(history)
    return net


# Values as JSON and tensors


def _encode(value, path, tensors):
    """`value` as JSON; its arrays go into `tensors`, under the path that leads to them."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item(), path, tensors)
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, path, tensors)
    if type(value) is list:
        return [_encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return _encode_dict(value, path, tensors)
    return _encode_parts(value, path, tensors)


def _encode_tensor(value, path, tensors):
    tensors[path] = value.detach().cpu().contiguous()
    return {"$tensor": path}


def _encode_dict(value, path, tensors):
    items = {key: _encode(item, f"{path}.{key}".lstrip("."), tensors) for key, item in value.items()}
    if all(type(key) is str and not key.startswith("$") for key in items):
        return items
    return {"$dict": [[_encode(key, path, tensors), item] for key, item in items.items()]}


def _encode_parts(value, path, tensors):
    """An object as its tag and what it is made of."""
    if type(value) is tuple:
        tag, parts = "$tuple", list(value)
    elif isinstance(value, os.PathLike):
        return os.fspath(value)
    elif isinstance(value, torch.device):
        tag, parts = "$device", str(value)
    elif isinstance(value, np.ndarray) and value.size and all(isinstance(name, str) for name in value.flat):
        tag, parts = "$names", value.tolist()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tag, parts = "$array", torch.from_numpy(np.array(value, order="C"))  # a copy: it may be read-only
    elif _CLASSES.get(getattr(value, "__name__", None)) is value:
        tag, parts = "$class", value.__name__
    elif isinstance(value, partial) and _CLASSES.get(getattr(value.func, "__name__", None)) is value.func:
        tag, parts = "$partial", [value.func.__name__, value.keywords]
    elif _CLASSES.get(type(value).__name__) is type(value):
        tag, parts = "$object", [type(value).__name__, _constructor_arguments(value)]
    elif hasattr(value, "__array__"):  # names, flags or numbers in whatever holds them, such as an Index or a Series
        return _encode(objects_of(value), path, tensors)
    else:
        raise TypeError(_refusal(path, value))
    return {tag: _encode(parts, path, tensors)}


def _constructor_arguments(value):
    if isinstance(value, Column):
        _check_levels(value)
    names = [name for name, p in inspect.signature(type(value)).parameters.items() if p.kind not in _VARIADIC]
    return {name: getattr(value, name) for name in names}


def _check_levels(column):
    """Refuse categories that are objects."""
    strange = [type(level) for level in column.levels or () if not isinstance(level, str | int | float | None)]
    if strange:
        kind = f"{strange[0].__module__.partition('.')[0]}.{strange[0].__qualname__}"
        raise TypeError(
            f"save cannot keep column {column.name!r}, which has categories of {kind}: make them text, as by "
            ".astype(str), before fit, or use pickle, which keeps any object."
        )


_DECODERS = {
    "$tuple": tuple,
    "$dict": dict,
    "$device": torch.device,
    "$names": lambda names: np.array(names, dtype=object),
    "$array": lambda tensor: tensor.numpy(),
    "$class": _CLASSES.__getitem__,
    "$partial": lambda parts: partial(_CLASSES[parts[0]], **parts[1]),
    "$object": lambda parts: _CLASSES[parts[0]](**parts[1]),
}


def _decode(value, tensors):
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _decode(item, tensors) for key, item in value.items()}
    ((tag, parts),) = value.items()
    return tensors.pop(parts) if tag == "$tensor" else _DECODERS[tag](_decode(parts, tensors))


def _refusal(what, value):
    value = value.func if isinstance(value, partial) else value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return (
        f"save cannot keep {what} ({kind}): a file that runs no code when it is read holds plain values, arrays and "
        "skvae's own classes. Take it away first (set_params), or use pickle, which keeps any object."
    )


# Bytes


def _to_bytes(model):
    tensors = {}
    content = {"sha256": _NO_DIGEST, "format": _FORMAT, "model": _encode(model, "", tensors)}
    data = safetensors.torch.save(tensors, {_KEY: json.dumps(content)})
    if int.from_bytes(data[:8], "little") > _MAX_HEADER:
        raise ValueError("save cannot keep so long a history (of batches, which a callback asked for). Use pickle.")
    return data.replace(_NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _from_bytes(data, path):
    with _refusing(path, "it is not a model that skvae saved, or it was cut short"):
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        content = json.loads(header["__metadata__"][_KEY])
        version, digest, model = content["format"], content["sha256"].encode(), content["model"]
    if version != _FORMAT:
        raise ValueError(f"{path}: it has format {version!r}, of another version of skvae; this one reads {_FORMAT}.")
    if digest.decode() != hashlib.sha256(data.replace(digest, _NO_DIGEST.encode(), 1)).hexdigest():
        raise ValueError(f"{path}: the file was changed after it was saved (its SHA-256 is another).")
    with _refusing(path, "skvae does not know what it describes"):
        model = _decode(model, tensors)
        if tensors:
            raise ValueError(f"nothing refers to {sorted(tensors)}")
    return model


@contextmanager
def _refusing(path, reason):
    """Within this context whatever goes wrong with a file from elsewhere is a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: {reason} ({type(error).__name__}: {error}).") from error
