"""How near to the truth are imputed cells, and do the draws know how far off they are?

    python benchmarks/imputation.py                              # everything, into benchmarks/results
    python benchmarks/imputation.py --methods skvae              # one method's rows; those of others stay as they are
    python benchmarks/imputation.py --part imputation --methods skvae,knn --tables iris,wine --seeds 0 --resume
    python benchmarks/imputation.py --summary                    # only the means, from what is there

Parts, each with a CSV of its name:

- `imputation`, a row per (table, seed, method), the protocol of the ForestDiffusion benchmark: four fifths of the rows,
  of which a fifth of the cells goes missing at random; a class that the table has stays complete, as one more column.
  Five imputations each; a method that has but one counts it as all five. Per missing cell, in units of the column's
  range: `min_mae`, the error of the best of the five; `avg_mae`, their mean error; `mae`, the error of the method's
  point (its own, or else the mean of the draws). `mse` is the squared error of the point, in units of the column's
  variance. `w_train` is the 1-Wasserstein distance (L1) between the completed rows and the true ones, of which at most
  1,000 count, mean over the draws. `seconds` are those of all the method does: point and draws.
- `coverage`: the share of missing cells between the 5 % and 95 % quantiles of a method's `--draws` (100), at 10, 30 and
  50 % missing; the quantiles are those that 90 % of further draws lie between on average, for few draws too. Ours only,
  unless others are named.
- `holes`, on the tables of quality.py: log-likelihood of what is observed in unseen rows, of factor analysis by EM
  (`linear`) and how much a default model of the same latent size is above it (`margin`), nats per row, at 10, 30 and
  50 % missing.
- `imputation_time`: seconds of one point imputation of a non-linear factor model's 10,000 x 20 cells, 20 % missing.

Tables: iris, wine and breast_cancer of scikit-learn, and those of a folder beside the repository (skipped where it is
not). Of a table at most 2,000 rows count, the same for all methods: the forests take minutes. Rivals: `iterative` is
IterativeImputer, `iterative_draws` the same with sample_posterior, both within the range of each column; `knn` is
KNNImputer of standardised columns; `missforest` IterativeImputer with 50 extremely randomised trees of all columns, in
five rounds, once; `miceforest` that package with five data sets and rounds; `miwae` hyperimpute's, with ten latents and
128 hidden units instead of its one and one. A method whose package is missing is skipped with a word:

    pip install miceforest "lightgbm<4.6" POT             # newer LightGBMs break miceforest 6.0.5
    pip install --no-deps hyperimpute && pip install "loguru==0.6.0" optuna pydantic
"""

import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import Results, among, parser_of, print_table
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tables import FOLDER_SOURCES, SOURCES, load_all
from threadpoolctl import threadpool_limits

HERE = Path(__file__).parent
TABLES = ("iris", "wine", "breast_cancer", *FOLDER_SOURCES)
MAX_ROWS, MAX_TRANSPORT = 2000, 1000
MISSING, N_DRAWS = 0.2, 5
SHARES = (0.1, 0.3, 0.5)
MEASURES = ("min_mae", "avg_mae", "mae", "mse", "w_train", "seconds")
FILES = {
    "imputation": (("table", "seed", "method"), ("n", "p", *MEASURES)),
    "coverage": (("table", "share", "seed", "method"), ("n", "p", "covered", "seconds")),
    "imputation_time": (("method",), ("n", "p", "mse", "seconds")),
    "holes": (("table", "share", "seed"), ("n", "p", "linear", "margin")),
}


# Methods: each takes (X with NaN, seed, so many draws) and returns a point and the draws, or None where it has but one


def in_range(X, seed, **params):
    """An IterativeImputer whose values stay within those seen."""
    limits = {"min_value": np.nanmin(X, axis=0), "max_value": np.nanmax(X, axis=0)}
    return IterativeImputer(random_state=seed, **limits, **params)


def by_iteration(X, seed, n_draws):
    return in_range(X, seed).fit_transform(X), None


def by_iterated_draws(X, seed, n_draws):
    seeds = np.random.SeedSequence(seed).generate_state(n_draws)
    draws = np.stack([in_range(X, int(s), sample_posterior=True).fit_transform(X) for s in seeds])
    return draws.mean(axis=0), draws


def by_neighbours(X, seed, n_draws):
    scaler = StandardScaler().fit(X)
    return scaler.inverse_transform(KNNImputer().fit_transform(scaler.transform(X))), None


def by_forests(X, seed, n_draws):
    trees = ExtraTreesRegressor(50, random_state=seed)
    return in_range(X, seed, estimator=trees, max_iter=5).fit_transform(X), None


def by_miceforest(X, seed, n_draws):
    import miceforest

    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    kernel = miceforest.ImputationKernel(frame, num_datasets=n_draws, random_state=seed)
    kernel.mice(5, num_threads=1)
    draws = np.stack([kernel.complete_data(i).to_numpy() for i in range(n_draws)])
    return draws.mean(axis=0), draws


def by_miwae(X, seed, n_draws):
    from hyperimpute.plugins.imputers.plugin_miwae import MIWAEPlugin

    scaler = StandardScaler().fit(X)
    frame = pd.DataFrame(scaler.transform(X))
    model = MIWAEPlugin(n_epochs=500, batch_size=64, latent_size=10, n_hidden=128, random_state=seed).fit(frame)
    draws = np.stack([scaler.inverse_transform(np.asarray(model.transform(frame))) for _ in range(n_draws)])
    return draws.mean(axis=0), draws


def by_vae(X, seed, n_draws):
    from skvae import VAETransformer

    model = VAETransformer(random_state=seed).fit(X)
    draws = model.impute(X, sample=True, n_draws=n_draws, random_state=seed) if n_draws > 1 else None
    return model.impute(X), draws


METHODS = {
    "iterative": by_iteration,
    "iterative_draws": by_iterated_draws,
    "knn": by_neighbours,
    "missforest": by_forests,
    "miceforest": by_miceforest,
    "miwae": by_miwae,
    "skvae": by_vae,
}
OURS = ["skvae"]
LABELS = {  # of the methods that have all tables, in docs/benchmarks.rst
    "skvae": "``VAETransformer.impute``",
    "iterative_draws": "``IterativeImputer``, drawing",
    "iterative": "``IterativeImputer``",
    "knn": "``KNNImputer``",
    "missforest": "``IterativeImputer`` of extremely randomised trees",
}
SHOWN = {"avg_mae": "draws", "min_mae": "best draw", "mae": "guess", "mse": "guess, squared"}


def imputed(method, X, seed, n_draws):
    """Point, draws and seconds; the measured cells are the same ones in all that a method returns."""
    start = time.perf_counter()
    point, draws = METHODS[method](X.copy(), seed, n_draws)
    seconds = time.perf_counter() - start
    return point, np.repeat(point[None], n_draws, axis=0) if draws is None else draws, seconds


# Data


def training_rows(table, seed):
    """Four fifths of the rows, with the class, if any, as the last column; how many columns may have holes."""
    X = table.X if table.y is None else np.column_stack([table.X, table.y])
    rows = np.random.default_rng(0).permutation(len(X))[:MAX_ROWS]
    classes = None if table.y is None else table.y[rows]
    train, _ = train_test_split(X[rows], test_size=0.2, random_state=seed, stratify=classes)
    return train, table.X.shape[1]


def hide(X, n_columns, share, seed):
    """X with so many of its first columns' cells missing, and which these are; no row is left without a value."""
    hidden = np.zeros(X.shape, bool)
    hidden[:, :n_columns] = np.random.default_rng(seed).random((len(X), n_columns)) < share
    kept = ~hidden.all(axis=1)
    X, hidden = X[kept], hidden[kept]
    return X, np.where(hidden, np.nan, X), hidden


def factors(n, p, n_factors=5):
    """Rows of a non-linear factor model with noise."""
    rng = np.random.default_rng(0)
    z = np.tanh(rng.normal(size=(n, n_factors)) @ rng.normal(size=(n_factors, 2 * n_factors)))
    return z @ rng.normal(size=(2 * n_factors, p)) + 0.5 * rng.normal(size=(n, p))


# Parts


def transport(true, completed):
    """The 1-Wasserstein distance of the rows, L1; empty where the package POT is missing."""
    try:
        import ot
    except ImportError:
        return ""
    rows = slice(MAX_TRANSPORT)
    return float(ot.emd2([], [], ot.dist(true[rows], completed[rows], metric="cityblock"), numItermax=1_000_000))


def measure_errors(table, seed, method):
    """One row of imputation.csv."""
    X, seen, hidden = hide(*training_rows(table, seed), MISSING, seed)
    spread = np.ptp(X, axis=0) + (np.ptp(X, axis=0) == 0)
    point, draws, seconds = imputed(method, seen, seed, N_DRAWS)
    errors = (np.abs(draws - X) / spread)[:, hidden]
    distinct = draws[:1] if (draws == draws[0]).all() else draws
    distances = [transport(X / spread, np.where(hidden, draw, X) / spread) for draw in distinct]
    return {
        "n": len(X),
        "p": X.shape[1],
        "min_mae": float(errors.min(axis=0).mean()),
        "avg_mae": float(errors.mean()),
        "mae": float((np.abs(point - X) / spread)[hidden].mean()),
        "mse": squared_error(X, point, hidden),
        "w_train": "" if "" in distances else float(np.mean(distances)),
        "seconds": seconds,
    }


def squared_error(X, point, hidden):
    scale = X.std(axis=0)
    return float(np.square((point - X) / np.where(scale > 0, scale, 1))[hidden].mean())


def tables(args):
    return load_all(args.tables or TABLES)


def run_errors(args, results):
    for seed in args.seeds:
        for table in tables(args):
            for method in args.methods or METHODS:
                if results.lacks(table.name, seed, method):
                    attempt(results, (table.name, seed, method), measure_errors, table, seed, method)


def measure_coverage(table, share, seed, method, n_draws):
    """One row of coverage.csv."""
    X, seen, hidden = hide(*training_rows(table, seed), share, seed)
    _, draws, seconds = imputed(method, seen, seed, n_draws)
    low, high = np.quantile(draws[:, hidden], [0.05, 0.95], axis=0, method="weibull")  # true draws: 90 % between
    covered = float(((low <= X[hidden]) & (X[hidden] <= high)).mean())
    return {"n": len(X), "p": X.shape[1], "covered": covered, "seconds": seconds}


def run_coverage(args, results):
    for seed in args.seeds:
        for table in tables(args):
            for share in SHARES:
                for method in args.methods or OURS:
                    key = table.name, share, seed, method
                    if results.lacks(*key):
                        attempt(results, key, measure_coverage, table, share, seed, method, args.draws)


def measure_time(method):
    """The row of imputation_time.csv."""
    X, seen, hidden = hide(factors(10_000, 20), 20, MISSING, 0)
    point, _, seconds = imputed(method, seen, 0, 1)
    return {"n": len(X), "p": X.shape[1], "mse": squared_error(X, point, hidden), "seconds": seconds}


def run_time(args, results):
    for method in args.methods or METHODS:
        if results.lacks(method):
            attempt(results, (method,), measure_time, method)


def measure_holes(table, share, seed, z_dim=5):
    """The row of holes.csv: half of the rows to fit to, half to score."""
    from skvae import VAETransformer
    from skvae.likelihoods import Gaussian

    X = StandardScaler().fit_transform(table.X[np.random.default_rng(seed).permutation(len(table.X))[:MAX_ROWS]])
    (_, train, _), (_, test, _) = (hide(part, X.shape[1], share, seed) for part in (X[::2], X[1::2]))
    start = {"hidden_layer_sizes": (), "max_iter": 1, "learning_rate": 1e-12, "early_stopping": False}
    linear = VAETransformer(z_dim, likelihood=Gaussian("feature"), random_state=seed, **start).fit(train).score(test)
    margin = VAETransformer(z_dim, likelihood="gaussian", random_state=seed).fit(train).score(test) - linear
    return {"n": len(train), "p": X.shape[1], "linear": linear, "margin": margin}


def run_holes(args, results):
    for seed in args.seeds:
        for table in load_all([name for name in SOURCES if not args.tables or name in args.tables]):
            for share in SHARES:
                if results.lacks(table.name, share, seed):
                    attempt(results, (table.name, share, seed), measure_holes, table, share, seed)


def attempt(results, key, measure, *what):
    """Add the row, unless a package is missing."""
    try:
        results.add(*key, **measure(*what))
    except ImportError as error:
        print(f"{' '.join(map(str, key))}: skipped ({error})")


PARTS = {"imputation": run_errors, "coverage": run_coverage, "imputation_time": run_time, "holes": run_holes}


# The command


def show(title, frame):
    print(f"\n{title}\n{frame.to_string(float_format='%.3f', na_rep='')}")


def summarise(folder):
    """Print the means of what is there."""
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in PARTS if (folder / f"{name}.csv").exists()}
    if "imputation" in found:
        summarise_errors(found["imputation"])
    if "coverage" in found:
        means = found["coverage"].pivot_table(index=["method", "table"], columns="share", values="covered")
        show("Share of the missing cells within 90 % intervals, by share missing", means)
        show("Its mean over the tables", means.groupby("method").mean())
    if "holes" in found:
        show(
            "Nats over factor analysis by EM",
            found["holes"].pivot_table(index="table", columns="share", values="margin"),
        )
    if "imputation_time" in found:
        show("10,000 x 20", found["imputation_time"].set_index("method")[["mse", "seconds"]])


def summarise_errors(errors):
    order = [method for method in METHODS if method in set(errors.method)]
    for name in MEASURES:
        show(f"{name}, mean over the seeds", errors.pivot_table(index="table", columns="method", values=name)[order])
    cells = errors.pivot_table(index=["table", "seed"], columns="method", values=list(MEASURES)).dropna()
    show(
        f"Means over the {len(cells.index.unique('table'))} tables, {len(cells)} cells, that all methods have",
        cells.groupby("table").mean().mean().unstack(0).loc[order, list(MEASURES)],
    )
    print_means(errors)


def print_means(errors):
    """The table of docs/benchmarks.rst: means over the tables, with a mark where ours are not below."""
    means = errors.groupby("method")[list(SHOWN)].mean()
    means = means.loc[[method for method in LABELS if method in means.index]]
    rows = []
    for method, row in means.iterrows():
        beaten = means.loc["skvae"] >= row if method != "skvae" else row < 0
        rows.append([LABELS[method], *(f"{row[name]:.3f}{' (missed)' if beaten[name] else ''}" for name in SHOWN)])
    print_table(["method", *SHOWN.values()], rows)


def parse(argv=None):
    parser = parser_of(__doc__, seeds=[0, 1, 2])
    parser.add_argument("--part", choices=PARTS, action="append", help="which part; may be repeated; default: all")
    parser.add_argument("--tables", type=among(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--methods", type=among(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--draws", type=int, default=100, help="for the intervals of `coverage`")
    return parser.parse_args(argv)


def main():
    args = parse()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    for part in () if args.summary else args.part or PARTS:
        PARTS[part](args, Results(args.out / f"{part}.csv", *FILES[part], keep=args.resume))
    summarise(args.out)


if __name__ == "__main__":
    main()
