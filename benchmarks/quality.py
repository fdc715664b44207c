"""Is the VAE with its defaults a better density model and feature extractor than the linear models?

    python benchmarks/quality.py                          # everything, into benchmarks/results
    python benchmarks/quality.py --part density --tables wine,iris --z-dims 2 --splits 1
    python benchmarks/quality.py --part promise --splits 2 --tables iris,wine,breast_cancer,diabetes,digits
    python benchmarks/quality.py --resume                 # go on where a run was cut off
    python benchmarks/quality.py --part density --tables digits,cells --splits 2:4   # beside others, into one file
    python benchmarks/quality.py --summary                # only read what is there

Parts: `density`, the held-out log-likelihood of real tables in nats per row, each feature standardised by the training
rows' mean and standard deviation; `gmm`, the same of the mixture of Gaussians with the best BIC; `promise`, what the
defaults gain over FactorAnalysis where the table comes raw, behind MinMaxScaler or as float32, on these tables and
those of a local folder; `latents`, what the latents of digits and MNIST are good for; `mnist`, the test bound of the
first epochs. Rows are written as they come; runs of other tables, splits or methods may write at the same time.
"""

import argparse
import time
import warnings
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from record import Results
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from skorch.callbacks import Callback, LRScheduler
from summary import summarise
from tables import ALL_SOURCES, SOURCES, load_all
from threadpoolctl import threadpool_limits

from skvae import VAETransformer
from skvae._data.batch import Batch
from skvae.datasets import load_images
from skvae.inits import LinearInit
from skvae.likelihoods import Bernoulli, Gaussian

HERE = Path(__file__).parent
PARTS = ("density", "gmm", "promise", "latents", "mnist")
NOISE_FLOOR = 1e-3  # of a feature's variance, for FactorAnalysis; the mixtures' reg_covar too
DENSITY_Z_DIMS = (2, 5, 10, 20)
LATENT_Z_DIMS = {"digits": (2, 5, 10, 16, 32), "mnist": (2, 5, 10, 16, 32, 64)}
DIGITS_SEEDS = (42, 0, 1, 2, 3)  # of the split; 42 is the one of UMAP's documentation
EPOCHS, BATCH_SIZE, MAX_LR = 3, 256, 4e-3


CELLS = (("table", "z_dim", "split", "method"), ("n", "p", "score", "knn", "logreg", "active", "seconds"))
FILES = {
    "density": CELLS,
    "gmm": CELLS,
    "promise": (("table", "z_dim", "split", "given"), ("n", "p", "likelihood", "fa", "score", "seconds")),
    "latents": (("data", "z_dim", "seed", "method"), ("knn", "logreg", "mse", "active", "seconds")),
    "mnist": (("init", "schedule", "epoch"), ("elbo", "seconds")),
}


def open_results(name, args):
    return Results(args.out / f"{name}.csv", *FILES[name], keep=args.resume)


def timed(fit, *args):
    """What `fit` returns, and how many seconds it took."""
    start = time.perf_counter()
    return fit(*args), time.perf_counter() - start


def one_cycle(n_rows, n_epochs, max_lr):
    """One cycle of the learning rate up to `max_lr` over all steps of so many epochs, moved at every step."""
    n_steps = n_epochs * -(-n_rows // BATCH_SIZE)
    policy = torch.optim.lr_scheduler.OneCycleLR
    return LRScheduler(policy, max_lr=max_lr, total_steps=n_steps, step_every="batch")


# Methods: each takes (X, z_dim, seed) and returns a fitted estimator


def fit_pca(X, z_dim, seed):
    return PCA(z_dim, random_state=seed).fit(X)


def fit_factors(X, z_dim, seed):
    """FactorAnalysis of standardised X, with its noise floored: where it has no finite optimum it would fall to 0."""
    model = FactorAnalysis(z_dim, max_iter=1000, svd_method="lapack", random_state=seed).fit(X)
    model.noise_variance_ = np.maximum(model.noise_variance_, NOISE_FLOOR)
    return model


def fit_vae(X, z_dim, seed, **params):
    return VAETransformer(z_dim, random_state=seed, **params).fit(X)


def fit_images(X, z_dim, seed, n_steps, **params):
    """Bits drawn anew for each batch, and a learning rate that falls to nothing; no rows are held out."""
    n_epochs = -(-n_steps // -(-len(X) // BATCH_SIZE))
    fixed = {
        "batch_size": BATCH_SIZE,
        "max_iter": n_epochs,
        "early_stopping": False,
        "init": LinearInit(weight_decay=0),
    }
    callbacks = [one_cycle(len(X), n_epochs, max_lr=3e-3)]
    model = {"likelihood": Bernoulli(binarize=True), "prior": "standard_normal"}
    return VAETransformer(z_dim, **model, callbacks=callbacks, random_state=seed, **fixed, **params).fit(X)


def fit_mixture(X, _z_dim, seed):
    """The best of 20 mixtures by BIC."""
    shapes = [(k, shape) for k in range(1, 11) for shape in ("full", "diag")]
    models = [GaussianMixture(k, covariance_type=s, reg_covar=NOISE_FLOOR, random_state=seed) for k, s in shapes]
    return min((model.fit(X) for model in models), key=lambda model: model.bic(X))


DENSITY = {
    "PCA": fit_pca,
    "FA": fit_factors,
    "VAE": fit_vae,
    "VAE random": partial(fit_vae, init="random"),
    "VAE feature": partial(fit_vae, likelihood=Gaussian(noise="feature")),
}
MIXTURE = {"GMM": fit_mixture}
CLASSIFIERS = {"knn": KNeighborsClassifier(5), "logreg": LogisticRegression(max_iter=2000)}  # of standardised latents
LATENTS = {
    "PCA": fit_pca,
    "VAE": fit_vae,
    "VAE bernoulli": partial(fit_vae, likelihood="bernoulli"),
    "VAE images": partial(fit_images, hidden_layer_sizes=(256, 128), n_steps=14_000),
    "VAE conv": partial(fit_images, hidden_layer_sizes=(512,), n_steps=9_500, architecture="conv"),
}


# Densities


def split_raw(table, split):
    """Train and test rows and their labels; features that are constant in the train rows are left out."""
    y = np.zeros(len(table.X)) if table.y is None else table.y
    x_train, x_test, *labels = train_test_split(table.X, y, test_size=0.3, random_state=split)
    varies = np.ptp(x_train, axis=0) > 0
    return x_train[:, varies], x_test[:, varies], *labels


def split_table(table, split):
    """The same, standardised by the train rows."""
    x_train, x_test, *labels = split_raw(table, split)
    scaler = StandardScaler().fit(x_train)
    return scaler.transform(x_train), scaler.transform(x_test), *labels


def accuracy(classifier, model, x_train, x_test, y_train, y_test):
    """Test accuracy of a classifier of the latents."""
    return float(classifier.fit(model.transform(x_train), y_train).score(model.transform(x_test), y_test))


def n_active(model):
    return int(model.active_units_.sum()) if hasattr(model, "active_units_") else ""


def measure_density(table, z_dim, split, fit):
    """One row of density.csv."""
    data = split_table(table, split)
    model, seconds = timed(fit, data[0], z_dim, split)
    has_latents = table.y is not None and hasattr(model, "transform")
    of_latents = {
        name: accuracy(make_pipeline(StandardScaler(), classifier), model, *data) if has_latents else ""
        for name, classifier in CLASSIFIERS.items()
    }
    score, (n, p) = float(model.score(data[1])), table.X.shape
    return {"n": n, "p": p, "score": score, **of_latents, "active": n_active(model), "seconds": seconds}


def run_cells(args, name, methods, z_dims_of):
    results = open_results(name, args)
    for table in load_all([name for name in args.tables or SOURCES if name in SOURCES]):
        for z_dim in z_dims_of(table):
            for split in args.splits:
                for method, fit in methods.items():
                    if method in (args.methods or methods) and results.lacks(table.name, z_dim, split, method):
                        row = measure_density(table, z_dim, split, fit)
                        results.add(table.name, z_dim, split, method, **row)


def density_z_dims(args, table):
    return [z_dim for z_dim in args.z_dims or DENSITY_Z_DIMS if z_dim < table.X.shape[1]]


def run_density(args):
    run_cells(args, "density", DENSITY, partial(density_z_dims, args))


def run_gmm(args):
    run_cells(args, "gmm", MIXTURE, lambda table: [0])  # a mixture has no z_dim


# The promise: not below the linear model, however the table comes

GIVEN = {
    "raw": FunctionTransformer,
    "minmax": MinMaxScaler,
    "float32": lambda: FunctionTransformer(np.float32),
}


def measure_promise(table, z_dim, split, given):
    """One row of promise.csv; both scores in the units of standardised features."""
    x_train, x_test, *_ = split_raw(table, split)
    scaler = GIVEN[given]().fit(x_train)
    vae, seconds = timed(fit_vae, scaler.transform(x_train), z_dim, split)
    jacobian = np.log(x_train.std(axis=0) * getattr(scaler, "scale_", 1.0)).sum()
    score = vae.score(scaler.transform(x_test)) + float(jacobian)
    z_train, z_test, *_ = split_table(table, split)
    row = {"likelihood": str(vae.likelihood_), "fa": float(fit_factors(z_train, z_dim, split).score(z_test))}
    return row | {"n": len(table.X), "p": table.X.shape[1], "score": score, "seconds": seconds}


def run_promise(args):
    results = open_results("promise", args)
    for table in load_all(args.tables or ALL_SOURCES):
        for z_dim in density_z_dims(args, table):
            for split, given in product(args.splits, GIVEN):
                if results.lacks(table.name, z_dim, split, given):
                    results.add(table.name, z_dim, split, given, **measure_promise(table, z_dim, split, given))


# Latents


def digits_split(seed):
    X, y = load_digits(return_X_y=True)
    return train_test_split((X / 16).astype(np.float32), y, stratify=y, random_state=seed)


@cache
def read_mnist(path):
    x_train, y_train, x_test, y_test = load_images(path)
    return x_train, x_test, y_train, y_test


def measure_latents(data, z_dim, seed, fit):
    """One row of latents.csv."""
    x_train, x_test, *_ = data
    model, seconds = timed(fit, x_train, z_dim, seed)
    logreg = make_pipeline(StandardScaler(), CLASSIFIERS["logreg"])
    mse = np.square(model.inverse_transform(model.transform(x_test)) - x_test).mean()
    return {
        "knn": accuracy(CLASSIFIERS["knn"], model, *data),
        "logreg": accuracy(logreg, model, *data),
        "mse": float(mse),
        "active": n_active(model),
        "seconds": seconds,
    }


def latent_data(args):
    """(name, seed, its data) for each data set and seed; of MNIST, whose split is fixed, one seed."""
    names = args.tables or LATENT_Z_DIMS
    if "digits" in names:
        seeds = [seed for split, seed in enumerate(DIGITS_SEEDS) if split in args.splits]
        yield from (("digits", seed, digits_split(seed)) for seed in seeds)
    if "mnist" in names and has_mnist(args):
        yield "mnist", DIGITS_SEEDS[0], read_mnist(args.mnist)


def has_mnist(args):
    if not args.mnist.exists():
        print(f"MNIST: skipped (no file {args.mnist})")
    return args.mnist.exists()


def run_latents(args):
    results = open_results("latents", args)
    for name, seed, data in latent_data(args):
        for z_dim in args.z_dims or LATENT_Z_DIMS[name]:
            for method, fit in LATENTS.items():
                if method in (args.methods or LATENTS) and results.lacks(name, z_dim, seed, method):
                    results.add(name, z_dim, seed, method, **measure_latents(data, z_dim, seed, fit))


# The first epochs on MNIST


class TestBound(Callback):
    """Records the mean bound of the test rows, one fixed draw each, before the first step and after each epoch."""

    def __init__(self, x):
        self.x = torch.from_numpy(x)
        self.bounds = []  # (seconds, bound); shared with the copy that is trained with

    def on_train_begin(self, net, **kwargs):
        self.seconds_ = 0.0
        self._record(net)

    def on_epoch_begin(self, net, **kwargs):
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net, **kwargs):
        self.seconds_ += time.perf_counter() - self.start_
        self._record(net)

    @torch.no_grad()
    def _record(self, net):
        eps = torch.randn(len(self.x), net.z_dim, generator=torch.Generator().manual_seed(0))
        log_prob, kl = net.average_(Batch(self.x.to(net.device), eps.to(net.device)))
        self.bounds.append((self.seconds_, float((log_prob - kl).mean())))


def measure_bounds(x_train, x_test, init, schedule):
    """(seconds, bound) before the first step and after each epoch of one fit of 784-128-100-128-784."""
    bound = TestBound(x_test)
    callbacks = [bound, one_cycle(len(x_train), EPOCHS, MAX_LR)] if schedule == "one-cycle" else [bound]
    model = VAETransformer(
        100,
        hidden_layer_sizes=(128,),
        likelihood="bernoulli",
        prior="standard_normal",
        init=init,
        batch_size=BATCH_SIZE,
        max_iter=EPOCHS,
        early_stopping=False,
        callbacks=callbacks,
        random_state=0,
    )
    model.fit(x_train)
    return bound.bounds


def run_mnist(args):
    results = open_results("mnist", args)
    if not has_mnist(args):
        return
    x_train, x_test, *_ = read_mnist(args.mnist)
    for init, schedule in [(init, s) for init in ("linear", "random") for s in ("default", "one-cycle")]:
        if results.lacks(init, schedule, EPOCHS):
            for epoch, (seconds, elbo) in enumerate(measure_bounds(x_train, x_test, init, schedule)):
                results.add(init, schedule, epoch, elbo=elbo, seconds=seconds)


# The command


def numbers(text):
    return [int(part) for part in text.split(",")]


def splits(text):
    """So many from the first one on, or from one up to another: 5 is 0:5."""
    return range(*map(int, text.split(":")))


def names(text):
    if unknown := set(text.split(",")) - {*ALL_SOURCES, "mnist"}:
        raise argparse.ArgumentTypeError(f"no table named {', '.join(sorted(unknown))}")
    return text.split(",")


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="which part; may be repeated; default: all")
    parser.add_argument("--tables", type=names, help=f"of {', '.join(ALL_SOURCES)}; for `latents`: digits, mnist")
    parser.add_argument("--z-dims", type=numbers, help="default: 2,5,10,20; for `latents` 2,5,10,16,32 (,64)")
    parser.add_argument("--splits", type=splits, default=range(5), help="how many, or FROM:TO; default: 5")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument(
        "--methods", type=lambda text: text.split(","), help=f"of {', '.join({**DENSITY, **MIXTURE, **LATENTS})}"
    )
    parser.add_argument("--mnist", type=Path, default=HERE.parents[1] / "shared" / "data" / "mnist.npz")
    parser.add_argument(
        "--threads", type=int, default=1, help="of BLAS and torch; with more, small tables are slow on a busy machine"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--summary", action="store_true", help="compute nothing")
    return parser.parse_args(argv)


def main():
    args = parse()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    for part in () if args.summary else args.part or PARTS:
        RUNNERS[part](args)
    summarise(args.out)


RUNNERS = {
    "density": run_density,
    "gmm": run_gmm,
    "promise": run_promise,
    "latents": run_latents,
    "mnist": run_mnist,
}

if __name__ == "__main__":
    main()
