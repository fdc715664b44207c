"""skorch callbacks that skorch lacks."""

import math
import time
from numbers import Integral
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints
from skorch.callbacks import Callback

from ._data.batch import Batch
from ._data.split import Rows
from ._model.component import COUNT, Counts
from ._system.random import subsample

__all__ = ["SampleGrid"]

_PAIR = Counts(range(2, 3), "a pair of ints > 0")
REPORT_ROWS = 10_000  # what the activity of latent units is told from


def _is_report(epoch):
    """1, 2, 5, 10, 20, 50, ...: about three reports for each tenfold of epochs."""
    return epoch in (1, 2, 5) or (epoch % 10 == 0 and _is_report(epoch // 10))


class Report(Callback):
    """Print a line at epochs 1, 2, 5, 10, 20, 50, ... and at the last.

    A line tells iteration, loss and validation score (nats per row, in the units of X), how many latent units are
    active on the training rows (10,000 of them at most), and the seconds since the start. ``VAETransformer(verbose=1)``
    adds it.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, max_iter=2, early_stopping=False, verbose=1, random_state=0)
    >>> vae = vae.fit(X)  # doctest: +ELLIPSIS
    Iteration 1, loss = ..., active units = 2 of 2, ... s
    Iteration 2, loss = ..., active units = 2 of 2, ... s
    """

    def on_train_begin(self, net, **kwargs):
        self.start_, self.reported_ = time.time(), len(net.history)

    def on_epoch_end(self, net, dataset_train=None, **kwargs):
        if _is_report(len(net.history)):
            self._print(net, dataset_train)

    def on_train_end(self, net, X=None, **kwargs):
        if len(net.history) > self.reported_:
            self._print(net, X)

    def _print(self, net, dataset):
        self.reported_, row = len(net.history), net.history[-1]
        if "train_bound" not in row:  # interrupted in mid-epoch
            return
        valid, seconds = row.get("valid_bound"), time.time() - self.start_
        score = "" if valid is None else f", validation score = {valid + net.mean_log_jacobian:.4f}"
        print(
            f"Iteration {self.reported_}, loss = {-row['train_bound'] - net.mean_log_jacobian:.4f}{score}, "
            f"active units = {_n_active(net, dataset)} of {net.z_dim}, {seconds:.1f} s"
        )


def _n_active(net, dataset):
    x, _ = dataset[subsample(len(dataset), REPORT_ROWS, net.seed)]
    with net.inference() as module:
        mean, _ = module.encode_batch(Batch(**Rows(x, module).take(torch.arange(len(x))), eps=x))
        return int(module.prior.active_units(mean).sum())


class SampleGrid(Callback):
    """Every `every` training steps, print the step and its loss and write a grid of images to a numbered PNG file.

    Files are called ``000.png``, ``001.png``, ...; with ``grid="both"`` the reconstructions are ``000r.png``, ...

    Parameters
    ----------
    out : str or Path, default="out"
        Folder for the files; it is made if it is missing.
    every : int, default=1000
        Training steps between two files.
    grid : {"prior", "reconstruction", "both"}, default="prior"
        Decode draws from the prior, the posterior draws of the current batch's rows, or write a file of each.
    image_shape : tuple of int, default=None
        Height and width of a row of X as an image; None takes the square root of the number of features.
    shape : tuple of int, default=(4, 4)
        Rows and columns of the grid.
    seed : int, default=0
        Seed of the prior draws, which are the same in every file.

    Attributes
    ----------
    n_steps_ : int
        Training steps seen.
    paths_ : list of Path
        Files written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from skvae import VAETransformer
    >>> from skvae.callbacks import SampleGrid
    >>> from skvae.datasets import load_images
    >>> X, *_ = load_images()
    >>> with TemporaryDirectory() as folder:
    ...     grid = SampleGrid(folder, every=20)
    ...     vae = VAETransformer(2, max_iter=1, early_stopping=False, callbacks=[grid])
    ...     vae = vae.fit(X)  # doctest: +ELLIPSIS
    iteration 0, loss ...
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "every": [COUNT],
        "grid": [StrOptions({"prior", "reconstruction", "both"})],
        "image_shape": [_PAIR, None],
        "shape": [_PAIR],
        "seed": [Integral],
    }

    def __init__(self, out="out", every=1000, grid="prior", image_shape=None, shape=(4, 4), seed=0):
        self.out = out
        self.every = every
        self.grid = grid
        self.image_shape = image_shape
        self.shape = shape
        self.seed = seed

    def initialize(self):
        validate_parameter_constraints(self._parameter_constraints, vars(self), type(self).__name__)
        self.n_steps_, self.paths_ = 0, []
        return self

    def on_train_begin(self, net, **kwargs):
        if math.prod(self._shape_of(net.n_features)) != net.n_features:
            raise ValueError(
                f"image_shape={self.image_shape} of SampleGrid does not fit {net.n_features} features. Set it to the "
                "height and width of a row as an image."
            )

    def _shape_of(self, n_features):
        return (math.isqrt(n_features),) * 2 if self.image_shape is None else self.image_shape

    def on_batch_end(self, net, batch=None, training=False, loss=None, **kwargs):
        if not training:
            return
        if self.n_steps_ % self.every == 0:
            print(f"iteration {self.n_steps_}, loss {loss.item():.4f}")
            with net.inference() as module:
                self._write(net, module, batch[0])
        self.n_steps_ += 1

    def _write(self, net, module, batch):
        name = f"{self.n_steps_ // self.every:03d}"
        if self.grid != "reconstruction":
            draws = module.prior.sample(math.prod(self.shape), torch.Generator().manual_seed(int(self.seed)))
            draws = draws.to(batch.x.device)
            self._save(net, module, draws, draws.new_zeros(1, module.n_context), name)
        if self.grid != "prior":
            mean, log_scale = module.encode_batch(batch)
            eps = batch.eps.reshape(-1, *mean.shape)[0]  # the first draw of each row, if there are several
            z = mean + log_scale.exp() * eps
            self._save(net, module, z, batch.context, name + ("r" if self.grid == "both" else ""))

    def _save(self, net, module, z, context, name):
        from matplotlib.image import imsave

        n_rows, n_columns = self.shape
        raw = module.decode(z, context if module.n_context else None)[: n_rows * n_columns]
        mean = module.likelihood.mean(raw).cpu().numpy()
        offset, scale = net.units(mean.shape[1])
        flat = mean * scale + offset
        height, width = self._shape_of(flat.shape[1])
        images = np.zeros((n_rows * n_columns, height, width))  # black where the batch has too few rows
        images[: len(flat)] = flat.reshape(-1, height, width)
        tiled = images.reshape(n_rows, n_columns, height, width).swapaxes(1, 2).reshape(n_rows * height, -1)
        folder = Path(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        self.paths_.append(folder / f"{name}.png")
        imsave(self.paths_[-1], tiled, cmap="gray")
