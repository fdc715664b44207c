"""Parameters that a model was made with and a fit that goes on from it cannot change, and whether it was asked to.

Kept as strings, so that a fitted estimator holds no second copy of its parameters and they survive in any file.
"""

import re
import textwrap
from functools import lru_cache
from numbers import Integral, Real

import numpy as np

from .._fast.optimizers import optimizer_of
from .._fast.optimizers import shown as optimizer_shown
from .._model.build import REGISTRIES, layer_sizes, resolve
from .._system.device import device_here
from .checkpoint import recognisable

_FIXED = (
    "z_dim",
    "hidden_layer_sizes",
    "likelihood",
    "categorical_features",
    "marginal",
    "condition_features",
    "prior",
    "architecture",
    "init",
    "optimizer",
    "device",
    "random_state",
)


_STREAM = "a stream"  # of a `random_state` that moves on when it is used


def made_with(params, likelihood, prior):
    """A fingerprint and a text of each parameter that training goes by; `likelihood` and `prior` stand for "auto".

    Fingerprints are equal where values mean the same, as ``8`` and ``(8,)`` for hidden layers or a name and its object.
    """
    meant = {name: params[name] for name in (*_FIXED, "learning_rate")}
    for name, value in (("likelihood", likelihood), ("prior", prior)):
        if isinstance(meant[name], str) and meant[name] == "auto":
            meant[name] = value
    if not isinstance(meant["hidden_layer_sizes"], str):
        meant["hidden_layer_sizes"] = layer_sizes(meant["hidden_layer_sizes"], 0)
    for name in ("categorical_features", "condition_features"):
        meant[name] = _names_of(meant[name])
    meant["device"] = str(meant["device"])
    if not isinstance(meant["random_state"], Integral | None):
        meant["random_state"] = _STREAM
    shown = {name: _short(value) for name, value in meant.items()}
    if not isinstance(meant["optimizer"], str):
        shown["optimizer"] = optimizer_shown(meant["optimizer"])
    kind, options = optimizer_of(meant["optimizer"])
    meant["optimizer"] = [kind, options] if options else kind
    meant["objective"] = params["objective"]
    return {name: [_fingerprint(name, value), shown.get(name, "")] for name, value in meant.items()}


def _fingerprint(name, value):
    if isinstance(value, dict) and name == "likelihood":
        return repr({column: _fingerprint(name, part) for column, part in value.items()})
    if name in REGISTRIES and isinstance(value, str):
        return _of_named(name, value)
    if isinstance(value, Real):
        return repr(float(value))  # 300 is 300.0
    return repr(value) if value is None or isinstance(value, (str, tuple)) else recognisable(value)


def _names_of(columns):
    """Columns as any sequence of their names, places or flags means them: none where that is empty."""
    if columns is None or isinstance(columns, str):
        return columns
    return tuple(column.item() if isinstance(column, np.generic) else column for column in columns) or None


@lru_cache
def _of_named(kind, name):
    return recognisable(resolve(kind, name))


def _short(value):
    """A parameter as a message shows it."""
    return textwrap.shorten(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)), 60, placeholder=" ...")


def has_changed(name, then, now):
    """Tell whether a parameter is another than before."""
    return then[name][0] != now[name][0]


def check_unchanged(then, now, whose, device, net_device):
    """Refuse to go on with a model that was made with other parameters.

    `whose` wish it is stands in the message; `device` is the parameter and `net_device` where the model is, which may
    be the same by other names.
    """
    changed = [name for name in _FIXED if has_changed(name, then, now)]
    if "device" in changed and device_here(device) == str(net_device):
        changed.remove("device")
    if "random_state" in changed and (then["random_state"][0], now["random_state"][0]) == (repr(_STREAM), repr(None)):
        changed.remove("random_state")  # a file keeps none
    if changed:
        names = " and ".join(f"`{name}`" for name in changed)
        values = ", ".join(f"{name}={then[name][1]}, now {now[name][1]}" for name in changed)
        raise ValueError(
            f"{whose} can only be used where {names} {'has' if len(changed) == 1 else 'have'} the same value as in the "
            f"previous call to fit. Previously got {values}. To begin anew, call fit with warm_start=False."
        )
