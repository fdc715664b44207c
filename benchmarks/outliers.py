"""Outlier detectors on labelled tables, after the protocol of DTE (Livernoche et al., ICLR 2024).

`semi`: trained on half of the ordinary rows, tested on the other half and all outliers. `unsup`: trained and tested on
all rows, outliers included. Tables are npz files with X and y (1 is an outlier) of a local folder, as ADBench has them;
larger ones are cut to 5000 rows, drawn anew for each seed, with at least 30 outliers. Every method has one setting for
all tables, ours its default; its weights were chosen on every other table in alphabetical order. pyod's are run where
it is installed. Rows are written as they come: two Pythons may fill one file.
"""

import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import Results, parser_of, print_table
from sklearn.covariance import MinCovDet
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

HERE = Path(__file__).parent
PROTOCOLS = ("semi", "unsup")
MAX_ROWS, MIN_OUTLIERS = 5000, 30
MAX_COLUMNS = 500  # of MinCovDet, whose time grows with their cube
OURS = "VAEOutlierDetector"
COLUMNS = {  # of the summary; average precision is AP
    ("semi", "auc"): "ordinary: AUC",
    ("semi", "ap"): "ordinary: AP",
    ("unsup", "auc"): "all: AUC",
    ("unsup", "ap"): "all: AP",
}
KEYS, VALUES = ("table", "protocol", "seed", "method"), ("n_train", "n_test", "p", "auc", "ap", "seconds")


# Methods: each takes standardised train and test rows and a seed, and returns the scores of the test rows, high is
# ordinary. Where both are the same rows, no row is its own neighbour.


def score_ours(train, test, seed):
    from skvae import VAEOutlierDetector  # a Python with pyod need not have what skvae needs

    return VAEOutlierDetector(random_state=seed).fit(train).score_samples(test)


def score_fitted(make, train, test, seed):
    return make(random_state=seed).fit(train).score_samples(test)


def score_neighbours(train, test, _seed):
    model = NearestNeighbors(n_neighbors=5).fit(train)
    return -model.kneighbors(None if train is test else test)[0][:, -1]


def score_lof(train, test, _seed):
    model = LocalOutlierFactor(novelty=True).fit(train)
    return model.negative_outlier_factor_ if train is test else model.score_samples(test)


def score_pca(train, test, seed):
    model = PCA(0.9, svd_solver="full", random_state=seed).fit(train)
    return -np.square(test - model.inverse_transform(model.transform(test))).sum(axis=1)


def score_covariance(train, test, seed):
    return -MinCovDet(random_state=seed).fit(train).mahalanobis(test)


def score_pyod(module, name, train, test, seed, **params):
    from importlib import import_module

    params = {} if name == "ECOD" else {"random_state": seed, "verbose": 0} | params
    if name == "DeepSVDD":
        params["n_features"] = train.shape[1]
    return -getattr(import_module(f"pyod.models.{module}"), name)(**params).fit(train).decision_function(test)


METHODS = {
    OURS: score_ours,
    "IsolationForest": partial(score_fitted, IsolationForest),
    "LocalOutlierFactor": score_lof,
    "5-NN distance": score_neighbours,
    "GaussianMixture": partial(score_fitted, partial(GaussianMixture, 4, reg_covar=1e-3)),
    "PCA error": score_pca,
    "MinCovDet": score_covariance,
}
LABELS = {name: f"``{name}``" for name in METHODS if name.isidentifier()}  # in docs/benchmarks.rst
LABELS["GaussianMixture"] += ", 4"
PEERS = {
    "ECOD (pyod)": partial(score_pyod, "ecod", "ECOD"),
    "VAE (pyod)": partial(score_pyod, "vae", "VAE"),
    "DeepSVDD (pyod)": partial(score_pyod, "deep_svdd", "DeepSVDD"),
}


def cut(X, y, rng):
    """At most MAX_ROWS rows, with the share of outliers that the table has, or more where that is too few."""
    if len(X) <= MAX_ROWS:
        return X, y
    strange, ordinary = (rng.permutation(np.flatnonzero(y == label)) for label in (1, 0))
    n = min(len(strange), max(MIN_OUTLIERS, round(MAX_ROWS * y.mean())))
    rows = rng.permutation(np.concatenate([strange[:n], ordinary[: MAX_ROWS - n]]))
    return X[rows], y[rows]


def split(path, protocol, seed):
    """Standardised train and test rows, and whether each test row is an outlier."""
    data, rng = np.load(path), np.random.RandomState(seed)
    X, y = cut(data["X"].astype(np.float64), data["y"].ravel().astype(int), rng)
    if protocol == "unsup":
        X = StandardScaler().fit_transform(X)
        return X, X, y
    ordinary = rng.permutation(np.flatnonzero(y == 0))
    train, rest = np.split(ordinary, [len(ordinary) // 2])
    test = np.concatenate([rest, np.flatnonzero(y == 1)])
    scaler = StandardScaler().fit(X[train])
    return scaler.transform(X[train]), scaler.transform(X[test]), y[test]


def measure(score, train, test, y, seed):
    """One row of the results."""
    start = time.perf_counter()
    strangeness = -np.nan_to_num(score(train, test, seed).astype(np.float64))
    seconds = time.perf_counter() - start
    auc, ap = float(roc_auc_score(y, strangeness)), float(average_precision_score(y, strangeness))
    sizes = {"n_train": len(train), "n_test": len(test), "p": train.shape[1]}
    return sizes | {"auc": auc, "ap": ap, "seconds": seconds}


def tables(folder):
    """Path by name; names without the number that the files begin with, the small ones first."""
    paths = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_size)
    return {path.stem.split("_", 1)[-1]: path for path in paths}


def is_possible(method, n_columns):
    return method != "MinCovDet" or n_columns <= MAX_COLUMNS


def run(args):
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    results = Results(args.out / "outliers.csv", KEYS, VALUES, keep=args.resume)
    for seed, (table, path), protocol in product(args.seeds, tables(args.folder).items(), PROTOCOLS):
        wanted = [method for method in args.methods if results.lacks(table, protocol, seed, method)]
        train, test, y = split(path, protocol, seed) if wanted else (np.empty((0, 0)), None, None)
        for method in wanted:
            if is_possible(method, train.shape[1]):
                row = measure((METHODS | PEERS)[method], train, test, y, seed)
                results.add(table, protocol, seed, method, **row)


# What it says


def compared(results, method):
    """A method's row: its means over the tables, with a mark where ours on the same tables and seeds are not above."""
    cells, seconds = {}, results[results.method == method].seconds.mean()
    for protocol, measure in COLUMNS:
        part = results[results.protocol == protocol]
        both = part.pivot(index=["table", "seed"], columns="method", values=measure)[list({method, OURS})].dropna()
        theirs, ours = (
            100 * both.groupby("table").mean()[method].mean(),
            100 * both.groupby("table").mean()[OURS].mean(),
        )
        cells[protocol, measure] = f"{theirs:.1f}" + (" (missed)" if method != OURS and ours <= theirs else "")
    n_tables = results[results.method == method].table.nunique()
    return LABELS.get(method, method), str(n_tables), *cells.values(), f"{seconds:.2f}"


def show(title, results):
    print(f"\n{title}")
    methods = [method for method in METHODS | PEERS if method in set(results.method)]
    head = ("method", "tables", *COLUMNS.values(), "seconds")
    print_table(head, [compared(results, method) for method in methods])


def summarise(out):
    """Print what the results say: of all tables, and of those that the setting was not chosen on."""
    results = pd.read_csv(out / "outliers.csv")
    names = sorted(results.table.unique())
    show("All tables", results)
    show("Tables that the setting was not chosen on", results[results.table.isin(names[1::2])])
    values = results.groupby(["protocol", "table", "method"])[["auc", "ap", "seconds"]].mean().unstack("method")
    for measure, factor in (("auc", 100), ("ap", 100), ("seconds", 1)):
        print(f"\n{measure}, means over seeds\n{(factor * values[measure]).round(1).to_string()}")
    print(
        f"\nseeds: {sorted(map(int, results.seed.unique()))}; measured {results.date.max()}, {results.machine.iloc[-1]}"
    )


def parse(argv=None):
    parser = parser_of(__doc__, seeds=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=HERE.parents[1] / "shared" / "data" / "anomaly")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*METHODS])
    return parser.parse_args(argv)


def main():
    args = parse()
    if not args.summary:
        run(args)
    summarise(args.out)


if __name__ == "__main__":
    main()
