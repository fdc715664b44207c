"""Checkpoints: a fit whose process dies goes on, when it is called again, to the bits that it would have reached."""

import contextlib
import io
import pickle
import re
import time
import warnings
from collections import Counter
from numbers import Real
from pathlib import Path

import joblib
import torch
from skorch.callbacks import Callback
from torch import nn

from .._data.rows import RowSource
from .._io.atomic import replace_file
from .processes import is_first, of_first

_LAYOUT = 7  # of the file; other ones are not read
_SECONDS, _SHARE = 5.0, 0.02  # least time between two files, and the most of the training time that they may take

_NOT_COMPARED = ("callbacks", "checkpoint", "n_draws", "random_state", "verbose")


def _comparable(value):
    """A parameter as `joblib.hash` sees the same in every process: pickles of tensors hold their addresses."""
    if isinstance(value, (list, tuple)):
        return [_comparable(part) for part in value]
    if isinstance(value, dict):
        return {name: _comparable(part) for name, part in value.items()}
    if not isinstance(value, nn.Module):
        return float(value) if isinstance(value, Real) else value
    plain = {name: _comparable(part) for name, part in vars(value).items() if not name.startswith("_")}
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", str(list(value.children())))
    return type(value).__qualname__, plain, layers, {name: _numbers(part) for name, part in value.state_dict().items()}


def _numbers(part):
    """A tensor as NumPy has it, which knows fewer types of floats."""
    return (part.double() if part.is_floating_point() else part).cpu().numpy()


def recognisable(value):
    """A string that is the same for equal parameters, in every process, and another for other ones."""
    try:
        return joblib.hash(_comparable(value))
    except (pickle.PicklingError, TypeError, AttributeError, NotImplementedError):  # a lambda, say, or no weights
        return str(id(value))


def _fingerprint(*content):
    """A name that other content would not have."""
    try:
        return joblib.hash([_LAYOUT, torch.__version__, *content])
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(
            "A checkpoint can only be told from others where all parameters can be pickled: define functions and "
            f"classes at the top level of a module, or set checkpoint=None. ({error})"
        ) from error


def _state(callback):
    """Return the state that a callback has of a run: by skorch's convention attributes that end in an underscore."""
    found = {}
    for name, value in vars(callback).items():
        if name.endswith("_"):
            with contextlib.suppress(pickle.PicklingError, TypeError, AttributeError):  # a progress bar, a file
                stateful = hasattr(value, "load_state_dict")
                found[name] = pickle.dumps(value.state_dict() if stateful else value)
    return found


def _set_state(callback, state):
    for name, value in state.items():
        if hasattr(getattr(callback, name, None), "load_state_dict"):
            getattr(callback, name).load_state_dict(pickle.loads(value))
        else:
            setattr(callback, name, pickle.loads(value))


def _numbered(callbacks):
    """Key callbacks by their class and their number in it: others may stand between them the next time (`verbose`)."""
    seen = Counter()
    for _, callback in callbacks:
        kind = type(callback).__qualname__
        seen[kind] += 1
        yield (kind, seen[kind]), callback


class Checkpoint(Callback):
    """Writes what training goes on from to a file, at the ends of some epochs, and goes on from that file if it exists.

    The last of the callbacks, so that it sees what the others made of the epoch. A file is written beside the one that
    it replaces: there is a whole one at any moment.

    Parameters
    ----------
    path : Path
        The file.
    seed : int
        What a fit without a file starts from.
    verbose : int, default=0
        Whether to say that training goes on from the file.
    """

    def __init__(self, path, seed, verbose=0):
        self.path = path
        self.saved = of_first(self._read() if is_first() else None)
        self.seed = self.saved["seed"] if self.saved else seed
        self.verbose = verbose

    def _read(self):
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=False)
        except Exception as error:
            raise ValueError(
                f"The checkpoint {self.path} cannot be read. Delete it to train from the start."
            ) from error

    def on_train_begin(self, net, **kwargs):
        self.time_, self.pause_ = time.monotonic(), _SECONDS
        if self.saved:
            net.max_epochs -= len(self.saved["net"]["history"]) - len(net.history)
            net.load_training_state(self.saved["net"])
            for key, callback in _numbered(net.callbacks_):
                _set_state(callback, self.saved["callbacks"].get(key, {}))
            if self.verbose:
                print(f"Going on after iteration {len(net.history)}, from {self.path}")
        self.saved = None

    def on_epoch_end(self, net, **kwargs):
        begin = time.monotonic()
        if begin - self.time_ < self.pause_ or not is_first():
            return
        try:
            self._write(net)
        except OSError as error:  # a full disk is no reason to lose the training too
            warnings.warn(f"Training goes on without a new checkpoint: {error}", RuntimeWarning, stacklevel=2)
        self.time_ = time.monotonic()
        self.pause_ = max(_SECONDS, (self.time_ - begin) / _SHARE)

    def _write(self, net):
        buffer = io.BytesIO()
        callbacks = {key: _state(callback) for key, callback in _numbered(net.callbacks_) if callback is not self}
        torch.save({"seed": self.seed, "net": net.training_state(), "callbacks": callbacks}, buffer)
        replace_file(self.path, buffer.getbuffer())

    def remove(self):
        """Delete the file, and those that a killed process left unfinished."""
        for path in self.path.parent.glob(f"{self.path.stem}.*") if is_first() else ():
            path.unlink(missing_ok=True)


def open_checkpoint(params, seed, X, net=None):
    """The checkpoint of an estimator's parameters, of X and of the net, if any, that training goes on from."""
    content = {name: _comparable(value) for name, value in params.items() if name not in _NOT_COMPARED}
    callbacks = [callback[-1] if isinstance(callback, tuple) else callback for callback in params["callbacks"] or ()]
    content["callbacks"] = [type(callback).__qualname__ for callback in callbacks]
    content["random_state"] = None if params["random_state"] is None else seed
    start = None if net is None else [len(net.history), _comparable(net.module_)]
    rows = X.fingerprint() if isinstance(X, RowSource) else X
    path = Path(params["checkpoint"]) / f"{_fingerprint(content, rows, start)}.pt"
    return Checkpoint(path, seed, params["verbose"])
