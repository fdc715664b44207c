"""skorch callbacks that skorch lacks."""

import copy
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback
from torch.utils.data import TensorDataset

from ._random import subsample

__all__ = ["BestState", "Report", "RollBack", "SampleGrid"]

REPORT_ROWS = 10_000  # what the activity of latent units is told from


class BestState(Callback):
    """Keep the state with the least validation loss, the starting state included, and stop when none better comes.

    Each time the loss has not fallen by `tol` for more than `patience` epochs, the learning rate falls; after
    `n_decays` such turns training ends.

    Parameters
    ----------
    patience : int, default=10
        Epochs without progress that are borne.
    tol : float, default=1e-4
        Progress is a validation loss lower than the best by this much, in nats per row.
    n_decays : int, default=2
        How often the learning rate falls before training ends.
    factor : float, default=0.3
        What the learning rate is multiplied by.
    """

    def __init__(self, patience=10, tol=1e-4, n_decays=2, factor=0.3):
        self.patience = patience
        self.tol = tol
        self.n_decays = n_decays
        self.factor = factor

    def on_train_begin(self, net, **kwargs):
        self.loss_, self.reference_, self.n_stale_, self.n_decays_ = math.inf, math.inf, 0, 0
        self.state_ = None

    def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
        if self.state_ is None:  # the start is a candidate
            loss = net.evaluate(dataset_valid)
            self._keep(net, loss if math.isfinite(loss) else math.inf)
            self.reference_ = self.loss_

    def _keep(self, net, loss):
        self.loss_, self.state_ = loss, copy.deepcopy(net.trained_module.state_dict())

    def on_epoch_end(self, net, **kwargs):
        loss = net.history[-1, "valid_loss"]
        if loss < self.loss_:
            self._keep(net, loss)
        progress = loss < self.reference_ - self.tol or net.criterion_.warming
        self.n_stale_ = 0 if progress else self.n_stale_ + 1
        self.reference_ = min(self.reference_, loss)
        if self.n_stale_ > self.patience:
            self._turn(net)

    def _turn(self, net):
        if self.n_decays_ == self.n_decays:
            raise KeyboardInterrupt
        self.n_decays_, self.n_stale_ = self.n_decays_ + 1, 0
        self._set_learning_rate(net, net.lr * self.factor**self.n_decays_)

    def _set_learning_rate(self, net, lr):
        for group in net.optimizer_.param_groups:
            group["lr"] = lr

    def on_train_end(self, net, **kwargs):
        if self.state_ is not None:
            net.load_state(self.state_)
        self._set_learning_rate(net, net.lr)
        self.state_ = None


class RollBack(Callback):
    """Undo an epoch whose loss is not finite, and go on with a lower learning rate.

    The epoch counts for nothing: training goes back to the best validated state (`BestState`'s) or, where nothing is
    validated, to the last one that a finite loss has confirmed; the optimizer starts anew. The learning rate is halved
    the first time, quartered the second, and so on, and stays there.

    Parameters
    ----------
    n_tries : int, default=5
        How often an epoch is undone before training is given up with a ValueError.
    """

    _CHECKED_ROWS = 2048

    def __init__(self, n_tries=5):
        self.n_tries = n_tries

    def on_train_begin(self, net, **kwargs):
        self.n_undone_, self.start_, self.confirmed_, self.latest_ = 0, None, None, None

    def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
        if dataset_valid is None:  # the loss of an epoch speaks for the states of all its steps but the last
            state = {name: value.clone() for name, value in net.trained_module.state_dict().items()}
            self.start_ = self.start_ or state
            self.confirmed_, self.latest_ = self.latest_, state

    def undo(self, net, error):
        """Take back the epoch in which `error` occurred.

        Parameters
        ----------
        net : NeuralNet
            The net that is training.
        error : Exception
            What ended the epoch; its message is passed on.

        Raises
        ------
        ValueError
            If it was the last try.
        """
        net.history.pop()
        best = [callback.state_ for _, callback in net.callbacks_ if isinstance(callback, BestState)]
        state = best[0] if best else self.confirmed_ or self.latest_
        self.latest_ = None if best else state
        self._go_back(net, state, str(error))
        if self.n_undone_ > self.n_tries:
            raise ValueError(
                f"Training diverged: {error}, at a learning rate of {2**self.n_undone_ * net.lr:.1e} still. Lower "
                "`learning_rate`, or look for outliers in X and scale or clip them."
            )

    def _go_back(self, net, state, reason):
        self.n_undone_ += 1
        factor = 0.5**self.n_undone_
        net.load_state(state)
        net.lr *= factor
        net.optimizer_.state.clear()
        for group in net.optimizer_.param_groups:
            for name in group.keys() & {"lr", "initial_lr", "min_lr", "max_lr"}:
                group[name] *= factor
        if self.n_undone_ <= self.n_tries:
            warnings.warn(
                f"Training diverged: {reason}. It goes back to the last good state, with the learning rate lowered to "
                f"{net.lr:.1e}.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def on_train_end(self, net, X=None, **kwargs):
        if self.latest_ is not None and not self._is_finite(net, X.tensors[0]):
            self._go_back(net, self.latest_, f"the loss after epoch {len(net.history)} is not finite")
            for state in (self.confirmed_ or self.start_, self.start_):  # a row's loss speaks for one state only
                if not self._is_finite(net, X.tensors[0]):
                    net.load_state(state)
        self.start_ = self.confirmed_ = self.latest_ = None

    def _is_finite(self, net, x):
        """Whether the last step left finite terms of the bound, on rows from all over the table."""
        some = TensorDataset(x[:: -(-len(x) // self._CHECKED_ROWS)])
        with net.inference() as module:
            terms = [term for batch, _ in net.get_iterator(some) for term in module(**batch)]
        return all(term.isfinite().all() for term in terms)


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
        score = "" if valid is None else f", validation score = {valid + net.log_jacobian:.4f}"
        print(
            f"Iteration {self.reported_}, loss = {-row['train_bound'] - net.log_jacobian:.4f}{score}, "
            f"active units = {_n_active(net, dataset)} of {net.z_dim}, {seconds:.1f} s"
        )


def _n_active(net, dataset):
    (x,) = dataset[subsample(len(dataset), REPORT_ROWS, net.seed)]
    with net.inference() as module:
        mean, _ = module.encode(x)
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

    def __init__(self, out="out", every=1000, grid="prior", image_shape=None, shape=(4, 4), seed=0):
        self.out = out
        self.every = every
        self.grid = grid
        self.image_shape = image_shape
        self.shape = shape
        self.seed = seed

    def initialize(self):
        if self.grid not in ("prior", "reconstruction", "both"):
            raise ValueError(f"grid must be 'prior', 'reconstruction' or 'both'. Got {self.grid!r} instead.")
        self.n_steps_, self.paths_ = 0, []
        return self

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
            draws = module.prior.sample(math.prod(self.shape), torch.Generator().manual_seed(self.seed))
            self._save(net, module, draws.to(batch["x"].device), name)
        if self.grid != "prior":
            mean, log_scale = module.encode(batch["x"])
            eps = batch["eps"].reshape(-1, *mean.shape)[0]  # the first draw of each row, if there are several
            z = mean + log_scale.exp() * eps
            self._save(net, module, z, name + ("r" if self.grid == "both" else ""))

    def _save(self, net, module, z, name):
        from matplotlib.image import imsave

        n_rows, n_columns = self.shape
        mean = module.likelihood.mean(module.decode(z[: n_rows * n_columns]))
        flat = mean.cpu().numpy() * net.scale + net.offset
        side = math.isqrt(flat.shape[1])
        height, width = self.image_shape or (side, side)
        images = np.zeros((n_rows * n_columns, height, width))  # black where the batch has too few rows
        images[: len(flat)] = flat.reshape(-1, height, width)
        tiled = images.reshape(n_rows, n_columns, height, width).swapaxes(1, 2).reshape(n_rows * height, -1)
        folder = Path(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        self.paths_.append(folder / f"{name}.png")
        imsave(self.paths_[-1], tiled, cmap="gray")
