"""Handwritten digits as rows of grey values in [0, 1]: what the examples feed on."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split

__all__ = ["load_images"]


def load_images(data="digits"):
    """Load images of handwritten digits, split into training and test rows.

    Parameters
    ----------
    data : str or Path, default="digits"
        - ``"digits"``: the 8x8 images that come with scikit-learn, 30 % of them for testing;
        - ``"mnist"``: the 28x28 images of MNIST, downloaded once with :func:`~sklearn.datasets.fetch_openml`;
        - else the path of a ``.npz`` file with the arrays `X_train`, `y_train`, `X_test` and `y_test`. Integer grey
          values are divided by 255; others are taken to be in [0, 1].

    Returns
    -------
    X_train : ndarray of shape (n_train, n_pixels), dtype float32
        Grey values in [0, 1], one image per row.
    y_train : ndarray of shape (n_train,)
        Labels.
    X_test : ndarray of shape (n_test, n_pixels), dtype float32
        As `X_train`.
    y_test : ndarray of shape (n_test,)
        As `y_train`.

    Raises
    ------
    FileNotFoundError
        If `data` is neither a name nor the path of a file.

    Examples
    --------
    >>> from skvae.datasets import load_images
    >>> X_train, y_train, X_test, y_test = load_images()
    >>> X_train.shape, X_test.shape
    ((1257, 64), (540, 64))
    >>> float(X_train.min()), float(X_train.max())
    (0.0, 1.0)
    """
    if data == "digits":
        X, y = load_digits(return_X_y=True)
        X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.3, stratify=y, random_state=0)
    elif data == "mnist":
        parser = "pandas" if find_spec("pandas") else "liac-arff"  # pandas reads it faster, but is not required
        X, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser=parser)
        X_train, X_test, y_train, y_test = X[:60_000] / 255, X[60_000:] / 255, y[:60_000], y[60_000:]
    elif Path(data).is_file():
        with np.load(data) as arrays:
            X_train, y_train, X_test, y_test = (arrays[name] for name in ("X_train", "y_train", "X_test", "y_test"))
    else:
        raise FileNotFoundError(f"data must be 'digits', 'mnist' or the path of a .npz file. Got '{data}' instead.")
    return _grey_rows(X_train), y_train, _grey_rows(X_test), y_test


def _grey_rows(images):
    rows = images.reshape(len(images), -1).astype(np.float32)
    return rows / np.float32(255) if np.issubdtype(images.dtype, np.integer) else rows
