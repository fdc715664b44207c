"""Values outside of what a likelihood allows: they are refused, or moved to the nearest that is inside."""

import numpy as np
from sklearn.utils import validation

_ROUNDING = 8  # units in the last place that a scaler may leave the unit interval by


def check_unit_interval(X: np.ndarray, whom: str) -> None:
    """Refuse values outside [0, 1], but for the rounding of a scaler in the type of X, or in float32: the model's."""
    rounding = _ROUNDING * max(
        np.finfo(dtype).eps for dtype in (X.dtype, np.float32) if np.issubdtype(dtype, np.floating)
    )
    if _least(X) < -rounding:
        check_non_negative(X, whom)
    if np.fmax.reduce(X, axis=None) > 1 + rounding:
        raise ValueError(
            f"Values above 1 in data passed to {whom}. Scale X to [0, 1], for instance with "
            "sklearn.preprocessing.MinMaxScaler."
        )


def nearest_in_unit_interval(X: np.ndarray) -> np.ndarray:
    """Move values outside [0, 1] to its ends."""
    return np.clip(X, 0, 1) if _least(X) < 0 or np.fmax.reduce(X, axis=None) > 1 else X


def _least(X: np.ndarray) -> float:
    """Return the least value that is not missing."""
    return np.fmin.reduce(X, axis=None)


def check_non_negative(X: np.ndarray, whom: str) -> None:
    """Refuse values below 0."""
    validation.check_non_negative(np.array([[_least(X)]]), whom)


def check_summable(X: np.ndarray, whom: str) -> None:
    """Refuse rows of one feature, which their sum would tell, and rows whose sum is not known."""
    if X.shape[1] < 2:
        raise ValueError(f"Found array with 1 feature(s) (shape={X.shape}) while a minimum of 2 is required by {whom}.")
    if np.isnan(X).any():
        raise ValueError(
            f"Input X contains NaN.\n{whom} does not accept missing values: the sum of such a row is not known. Set "
            "size_factor=None, or fill them before, for instance with sklearn.impute.SimpleImputer."
        )
