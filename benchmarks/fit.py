"""How long does `fit` take with the defaults, idle and beside a busy process, and how good is what it gives?

    python benchmarks/fit.py                       # all but `large`, into benchmarks/results/fit.csv
    python benchmarks/fit.py --part large          # 1,000,000 x 100
    python benchmarks/fit.py --tables iris wine --runs 1 --conditions idle --threads 1
    python benchmarks/fit.py --summary             # only the tables of what is there, docs/benchmarks.rst's last

Parts: `small`, tables that scikit-learn bundles; `medium`, 10,000 x 30 and 50 x 10,000; `large`, 1,000,000 x 100;
`search`, a `GridSearchCV` of three values of `z_dim` by five folds on wine. Tables of the second and third part are
made: five factors, smooth curves of them, and noise of an eighth of the variance.

Each feature is standardised by the training rows, 70 % of the table; the others are scored, in nats per row, at most
10,000 of them. All reduce to half the features, at most 10, and are otherwise as their packages have them. The mixture
is the best of 1 to 10 components by BIC, of full covariances or, where there are no more rows than features, diagonal
ones; MLPRegressor is an autoencoder, X -> X.

The contestants of a table take turns, in one process, and so do the conditions: `idle`, or `busy`, beside a process of
ours that does nothing but take a core; with one thread or with as many as the libraries take by default. What takes
longer than `--long` seconds gets one turn: a row says of how many `repeats` its median is. `large` is measured idle
only; pyod and pythae with one thread besides, and they are skipped with a note where they are not installed. Close
other work before measuring.
"""

import argparse
import contextlib
import io
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from quality import NOISE_FLOOR, split_table, timed
from record import Results, print_table
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from tables import Table, load
from threadpoolctl import threadpool_limits

from skvae import VAETransformer

HERE = Path(__file__).parent
KEYS, VALUES = ("table", "estimator", "condition", "threads"), ("n", "p", "seconds", "score", "repeats")
PARTS = {
    "small": ("iris", "wine", "breast_cancer", "diabetes", "digits"),
    "medium": ("10,000 x 30", "50 x 10,000"),
    "large": ("1,000,000 x 100",),
    "search": ("wine",),
}
BY_DEFAULT = ("small", "medium", "search")
N_FACTORS, N_CURVES, NOISE = 5, 32, 0.3  # of the tables that are made
N_SCORED = 10_000  # test rows, at most
THREADS = ("1", "default")
SPIN = "print(flush=True)\nwhile True: pass"


# Tables


def made(name):
    """A table of that size, always the same."""
    n, p = (int(size.replace(",", "")) for size in name.split(" x "))
    rng = np.random.default_rng(0)
    factors, weights, loadings = (rng.standard_normal(shape, dtype=np.float32)
                                  for shape in ((n, N_FACTORS), (N_FACTORS, N_CURVES), (N_CURVES, p)))  # fmt: skip
    X = np.tanh(factors @ weights) @ (loadings / np.sqrt(N_CURVES, dtype=np.float32))
    X += NOISE * rng.standard_normal(X.shape, dtype=np.float32)
    return Table(name, X, None)


def read(name):
    return made(name) if " x " in name else load(name)


# Contestants: each takes (X, z_dim) and returns a fitted estimator


def fit_vae(X, z_dim):
    return VAETransformer(z_dim, random_state=0).fit(X)


def fit_mixture(X, _z_dim):
    shape = "full" if len(X) > X.shape[1] else "diag"
    models = (GaussianMixture(k, covariance_type=shape, reg_covar=NOISE_FLOOR, random_state=0) for k in range(1, 11))
    return min((model.fit(X) for model in models), key=lambda model: model.bic(X))


def fit_factors(X, z_dim):
    """Its noise is floored: where the likelihood has no maximum it would fall to 0."""
    model = FactorAnalysis(z_dim, random_state=0).fit(X)
    model.noise_variance_ = np.maximum(model.noise_variance_, NOISE_FLOOR)
    return model


def fit_autoencoder(X, z_dim):
    return MLPRegressor(hidden_layer_sizes=(128, z_dim, 128), random_state=0).fit(X, X)


def fit_pyod(X, z_dim):
    from pyod.models.vae import VAE

    return VAE(latent_dim=z_dim, device="cpu", verbose=0).fit(X)


def fit_pythae(X, z_dim):
    from pythae.models import VAE, VAEConfig
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(output_dir=folder, no_cuda=True)
        model = VAE(VAEConfig(input_dim=(X.shape[1],), latent_dim=z_dim))
        TrainingPipeline(model, config)(X.astype(np.float32))
    return model


def search(X, _z_dim):
    return GridSearchCV(VAETransformer(random_state=0), {"z_dim": [2, 4, 6]}, cv=5).fit(X)


@dataclass(frozen=True)
class Contestant:
    """How it is fitted, what must be installed for that, under which conditions it competes and up to which size."""

    fit: Callable
    package: str = "sklearn"
    everywhere: bool = True  # or idle and with one thread
    most_rows: float = float("inf")

    def enters(self, condition, threads, n_rows):
        return (self.everywhere or (condition, threads) == ("idle", "1")) and n_rows <= self.most_rows


OURS, SEARCH = "VAETransformer", "GridSearchCV, 3 x 5"
CONTESTANTS = {
    OURS: Contestant(fit_vae),
    "GaussianMixture": Contestant(fit_mixture, most_rows=100_000),  # hours beyond
    "FactorAnalysis": Contestant(fit_factors),
    "MLPRegressor": Contestant(fit_autoencoder),
    "pyod's VAE": Contestant(fit_pyod, "pyod.models.vae", everywhere=False, most_rows=100_000),
    "pythae's VAE": Contestant(fit_pythae, "pythae.pipelines", everywhere=False, most_rows=100_000),
}


def installed(names):
    """The contestants of these names whose package is here."""
    found = {}
    for name, contestant in ((name, CONTESTANTS[name]) for name in names):
        try:
            import_module(contestant.package)
        except ImportError as error:
            print(f"{name}: skipped ({error})")
        else:
            found[name] = contestant
    return found


# Conditions


@contextlib.contextmanager
def busy_process():
    """A process that takes a core, from its first to its last moment."""
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


CONDITIONS = {"idle": contextlib.nullcontext, "busy": busy_process}


@contextlib.contextmanager
def limited(threads):
    """Libraries take so many threads, or as many as they want."""
    before = torch.get_num_threads()
    n_threads = None if threads == "default" else int(threads)
    torch.set_num_threads(n_threads or before)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)


def rounds(args, conditions):
    """Condition and threads of each turn, which hold until the next one."""
    for _ in range(args.runs):
        for condition, threads in product(conditions, args.threads):
            with CONDITIONS[condition](), limited(threads):
                yield condition, threads


@contextlib.contextmanager
def quiet():
    """Without what the others print, log and warn of."""
    logging.disable(logging.WARNING)
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        with silent[0], silent[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


# Measuring


def score_of(model, X):
    """Nats per row, of what has a density."""
    has_density = isinstance(model, (VAETransformer, GaussianMixture, FactorAnalysis, GridSearchCV))
    return float(model.score(X[:N_SCORED])) if has_density else ""


def measure(table, contestants, conditions, args):
    """Key and values of a row of fit.csv after each turn, of the turns so far."""
    x_train, x_test, *_ = split_table(table, 0)
    n, p = table.X.shape
    seconds, scores = {}, {}
    for condition, threads in rounds(args, conditions):
        for name, contestant in contestants.items():
            key = name, condition, threads
            values = seconds.setdefault(key, [])
            if contestant.enters(condition, threads, n) and max(values, default=0) <= args.long:
                with quiet():
                    model, taken = timed(contestant.fit, x_train, min(10, p // 2))
                values.append(taken)
                scores[name] = scores.get(name) or score_of(model, x_test)
                row = {"n": n, "p": p, "seconds": median(values), "score": scores[name], "repeats": len(values)}
                yield key, row


def run(part, args, results):
    contestants = {SEARCH: Contestant(search)} if part == "search" else installed(args.methods)
    conditions = ["idle"] if part == "large" else args.conditions
    for name in PARTS[part]:
        if name in (args.tables or PARTS[part]):
            for key, values in measure(read(name), contestants, conditions, args):
                results.add(name, *key, **values)


# The summary


AIMS = {  # seconds with one thread, idle
    (OURS, "iris"): 0.5,
    (OURS, "wine"): 0.5,
    (OURS, "breast_cancer"): 1,
    (OURS, "diabetes"): 1,
    (OURS, "digits"): 1.5,
    (OURS, "10,000 x 30"): 3,
    (OURS, "50 x 10,000"): 5,
    (SEARCH, "wine"): 8,
}
MOST_BUSY = 1.5  # times idle
LABELS = {name: f"``{name}``" for name in ("GaussianMixture", "FactorAnalysis", "MLPRegressor")}


def short(value):
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def table_of(title, names, columns, cells):
    """A row for each table; `cells` are numbers by (table, column)."""
    rows = [[name, *(short(cells[name, each]) if (name, each) in cells else "" for each in columns)] for name in names]
    print_table([title, *columns], rows)


def print_seconds(seconds):
    """Print the table of docs/benchmarks.rst: what is asked, what a fit takes, idle and busy, and what others take."""
    others = [name for name in CONTESTANTS if name not in (OURS, SEARCH)]
    rows = []
    for (estimator, name), most in AIMS.items():
        alone = seconds.get((name, estimator, "idle", "1"))
        ours = "" if alone is None else short(alone) + ("" if alone <= most else " (missed)")
        measured = [(name, estimator, "busy", "default"), *((name, each, "idle", "1") for each in others)]
        if estimator == SEARCH:  # no other row of that table
            measured, name = [], f"``GridSearchCV``, 3 x 5, {name}"
        rest = [short(seconds[key]) if key in seconds else "" for key in measured] or [""] * (1 + len(others))
        rows.append([name, str(most), ours, *rest])
    print_table(["", "aim", f"``{OURS}``", "busy", *(LABELS.get(name, name) for name in others)], rows)


def word(reached):
    return "reached" if reached else "missed"


def aim_of_seconds(seconds, estimator, name, most):
    value = seconds.get((name, estimator, "idle", "1"))
    reached = "not measured" if value is None else f"{short(value)} s ({word(value <= most)})"
    return f"{estimator}, {name}, one thread", f"{most} s", reached


def aim_of_busy(seconds, estimator, name, threads):
    idle, busy = (seconds.get((name, estimator, condition, threads)) for condition in CONDITIONS)
    reached = "not measured"
    if idle and busy:
        reached = f"{short(busy)} s, {busy / idle:.2f} x ({word(busy <= MOST_BUSY * idle)})"
    return f"{estimator}, {name}, beside a busy process, threads: {threads}", f"{MOST_BUSY} x idle", reached


def summary(rows):
    seconds = {tuple(row[key] for key in KEYS): float(row["seconds"]) for row in rows}
    names = list(dict.fromkeys(name for part in PARTS.values() for name in part))
    names = [name for name in names if any(key[0] == name for key in seconds)]
    alone = {key[:2]: value for key, value in seconds.items() if key[2:] == ("idle", "1")}
    table_of("seconds, idle, one thread", names, list(CONTESTANTS), alone)
    scores = {(row["table"], row["estimator"]): float(row["score"]) for row in rows if row["score"]}
    table_of("held-out nats per row", names, [OURS, "GaussianMixture", "FactorAnalysis"], scores)
    settings = [f"{condition}, threads: {threads}" for condition, threads in product(CONDITIONS, THREADS)]
    ours = {(key[0], f"{key[2]}, threads: {key[3]}"): value for key, value in seconds.items() if key[1] == OURS}
    table_of(f"seconds, {OURS}", names, settings, ours)
    aims = [aim_of_seconds(seconds, estimator, name, most) for (estimator, name), most in AIMS.items()]
    aims += [aim_of_busy(seconds, *key, threads) for key, threads in product(AIMS, THREADS)]
    print_table(("", "aim", "reached"), aims)
    print_seconds(seconds)
    runs = sorted({(row["repeats"], row["date"], row["machine"]) for row in rows})
    print("\nMedians of", "; ".join(f"{repeats}, {date}, {machine}" for repeats, date, machine in runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = list(dict.fromkeys(name for part in PARTS.values() for name in part))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=BY_DEFAULT)
    parser.add_argument("--tables", nargs="+", choices=tables, help="of those of the parts; default: all")
    parser.add_argument("--methods", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--threads", nargs="+", choices=THREADS, default=THREADS)
    parser.add_argument("--runs", type=int, default=3, help="turns of each")
    parser.add_argument("--long", type=float, default=20, help="seconds from which on one turn is enough")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--summary", action="store_true", help="compute nothing")
    args = parser.parse_args()
    results = Results(args.out / "fit.csv", KEYS, VALUES, keep=False)
    if "default" in args.threads and torch.get_num_threads() == 1:
        print("threads: the default is 1 here; unset OMP_NUM_THREADS to measure more")
    for part in () if args.summary else args.part:
        run(part, args, results)
    summary(results.rows())


if __name__ == "__main__":
    main()
