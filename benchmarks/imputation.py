"""How near to the hidden cells of real tables are the values that a method fills in?

    python benchmarks/imputation.py                              # everything, into benchmarks/results/imputation.csv
    python benchmarks/imputation.py --methods skvae,knn --resume # some methods' rows that are not there yet
    python benchmarks/imputation.py --part coverage              # do 90 % intervals cover 90 %?
    python benchmarks/imputation.py --part speed                 # 10,000 rows of 20 columns
    python benchmarks/imputation.py --summary                    # only the means, from what is there

A row per (table, seed, method), after the protocol of Jolicoeur-Martineau et al. (2024), "Generating and imputing
tabular data via diffusion and flow-based gradient-boosted trees": four fifths of a table, at most 2000 rows, scaled to
[0, 1]; a fifth of its cells hidden at random; five draws of each.

- `avg` and `min`: mean absolute error of the five draws, and of the best of the five for each cell;
- `mse`: mean squared error of the single best guess, in variances of the column;
- `seconds` of fit and all fillings together.

A method that draws nothing has its guess for all five. `missforest` is IterativeImputer with ExtraTreesRegressor of 50
trees. Tables: three of scikit-learn's, and those of the folder of shared data where it is beside the repository.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import Results
from sklearn.datasets import make_low_rank_matrix
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import minmax_scale
from tables import ALL_SOURCES, load
from threadpoolctl import threadpool_limits

from skvae import VAETransformer

HERE = Path(__file__).parent
TABLES = ["iris", "wine", "breast_cancer", *(name for name in ALL_SOURCES if name.startswith("uci_"))]
MAX_ROWS, N_DRAWS, SHARE = 2000, 5, 0.2
SHARES = 0.1, 0.3, 0.5


def by_vae(X, seed):
    vae = VAETransformer(random_state=seed).fit(X)
    return vae.impute(X), vae.impute(X, sample=True, n_draws=N_DRAWS, random_state=seed)


def by_chained_regressions(X, seed):
    guess = IterativeImputer(random_state=seed).fit_transform(X)
    draws = (IterativeImputer(sample_posterior=True, random_state=10 * seed + k) for k in range(N_DRAWS))
    return guess, np.stack([model.fit_transform(X) for model in draws])


def by_neighbours(X, seed):
    guess = KNNImputer().fit_transform(X)
    return guess, guess[None]


def by_forest(X, seed):
    trees = ExtraTreesRegressor(50, random_state=seed, n_jobs=1)
    guess = IterativeImputer(trees, random_state=seed).fit_transform(X)
    return guess, guess[None]


METHODS = {"skvae": by_vae, "iterative": by_chained_regressions, "knn": by_neighbours, "missforest": by_forest}


def hidden(X, share, seed):
    """X scaled to [0, 1], and the same with a share of its cells hidden, none of its columns whole."""
    X = minmax_scale(X)
    mask = np.random.default_rng(seed).random(X.shape) < share
    mask[mask.sum(axis=1) == X.shape[1], 0] = False  # other methods take no row without a value
    return X, np.where(mask, np.nan, X)


def measure(X, holed, method, seed):
    start = time.perf_counter()
    guess, draws = METHODS[method](holed, seed)
    seconds, mask = time.perf_counter() - start, np.isnan(holed)
    errors = np.abs(draws - X)[:, mask]
    squares = ((guess - X) / np.maximum(X.std(axis=0), 1e-12))[mask] ** 2
    return {"avg": errors.mean(), "min": errors.min(axis=0).mean(), "mse": squares.mean(), "seconds": seconds}


def rows_of(name, seed):
    X = load(name).X
    return train_test_split(X, test_size=0.2, random_state=seed)[0][:MAX_ROWS]


def accuracy(args):
    results = Results(args.out / "imputation.csv", ("table", "seed", "method"), ("n", "p", *MEASURES), args.resume)
    for name in args.tables or TABLES:
        for seed in args.seeds:
            X, holed = hidden(rows_of(name, seed), SHARE, seed)
            for method in args.methods or METHODS:
                if results.lacks(name, seed, method):
                    row = {key: float(value) for key, value in measure(X, holed, method, seed).items()}
                    results.add(name, seed, method, n=len(X), p=X.shape[1], **row)


MEASURES = ("avg", "min", "mse", "seconds")


def coverage(args):
    """Share of hidden cells within the 5 % and 95 % quantiles of 100 draws, on rows that were trained on."""
    results = Results(args.out / "coverage.csv", ("table", "seed", "missing"), ("covered",), args.resume)
    for name in args.tables or TABLES:
        for seed in args.seeds:
            for share in SHARES:
                if results.lacks(name, seed, share):
                    X, holed = hidden(rows_of(name, seed), share, seed)
                    vae = VAETransformer(random_state=seed).fit(holed)
                    draws = vae.impute(holed, sample=True, n_draws=100, random_state=seed)
                    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
                    inside = ((low <= X) & (high >= X))[np.isnan(holed)]
                    results.add(name, seed, share, covered=float(inside.mean()))


def speed(args):
    results = Results(args.out / "imputation.csv", ("table", "seed", "method"), ("n", "p", *MEASURES), args.resume)
    X = make_low_rank_matrix(10_000, 20, effective_rank=5, random_state=0)
    X, holed = hidden(X + 0.1 * X.std() * np.random.default_rng(0).normal(size=X.shape), SHARE, 0)
    for method in args.methods or ("skvae", "missforest"):
        if results.lacks("10000x20", 0, method):
            row = {key: float(value) for key, value in measure(X, holed, method, 0).items()}
            results.add("10000x20", 0, method, n=len(X), p=20, **row)


PARTS = {"accuracy": accuracy, "coverage": coverage, "speed": speed}


def summarise(folder):
    """Print the means over tables and seeds, for the tables that all methods have rows of."""
    results = pd.read_csv(folder / "imputation.csv")
    for name in MEASURES:
        means = results.pivot_table(index="table", columns="method", values=name)
        print(
            f"\n{name}\n{pd.concat([means, means.dropna().mean().to_frame('mean').T]).to_string(float_format='%.3f')}"
        )
    if (folder / "coverage.csv").exists():
        print(pd.read_csv(folder / "coverage.csv").pivot_table(index="table", columns="missing", values="covered"))


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="accuracy")
    for name, known in (("tables", TABLES), ("methods", METHODS)):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), help=f"of {', '.join(known)}")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=1, help="of BLAS and torch")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--summary", action="store_true", help="compute nothing")
    return parser.parse_args(argv)


def main():
    args = parse()
    warnings.simplefilter("ignore")  # of convergence, which IterativeImputer often lacks
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    if not args.summary:
        PARTS[args.part](args)
    summarise(args.out)


if __name__ == "__main__":
    main()
