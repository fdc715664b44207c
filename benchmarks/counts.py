"""How well are counts of few, deep and shallow rows predicted, and do the latent features keep their classes apart?

    python benchmarks/counts.py                                  # everything, into benchmarks/results/counts.csv
    python benchmarks/counts.py --methods nmf,lda --seeds 0 --resume
    python benchmarks/counts.py --data pbmc68k.npz               # counts `X` and labels `y` from a file
    python benchmarks/counts.py --summary                        # only the means, from what is there

The table is scanpy's pbmc68k_reduced: 700 cells, 765 genes, whose counts are what its log1p values were made of, and
ten classes ("bulk_labels"). It needs scanpy, or a file that was written where scanpy is:

    python benchmarks/counts.py --write pbmc68k.npz

A row for each (seed, method, k), k latent features:

- `completion`: log-probability of held-out rows, nats per row. Every count is split in two by a fair binomial draw
  (thinning), which leaves Poisson counts independent. A method is fitted to the first halves of four fifths of the
  rows, sees the first half of each other row, and says what share of the second half's sum each feature has. All are
  given that sum, so that no method has to predict how large a row is. Counts are Poisson about these shares, or
  negative binomial where the model is. Our shares are those at the posterior's mean, as `transform` and
  `inverse_transform` give them.
- `averaged`, of our models: the same with the mean of the shares over the posterior (200 weighted draws), as
  LatentDirichletAllocation has it.
- `joint`, of our models: log-probability of whole held-out rows. With a size factor the score is that of the row given
  its sum, to which the log-probability of the sum is added: of a negative binomial with the training sums' moments.
  What the model gives to rows with other sums is taken off: the log-probability that a row of that size adds up to it,
  a mean over 2,000 draws of z of the normal density with the row's mean and variance.
- `knn`: share of right classes by five nearest neighbours in the latent features of all rows, five-fold; no method sees
  the classes. `pca` is that of log1p of counts scaled to the mean sum, `pca_1e4` to 10,000, as scanpy has it.

Methods: `nb_size`, `nb`, `poisson_size` and `poisson` are ours with and without ``size_factor="sum"``, at
a weight decay of 1000, which was chosen on splits 10 and 11 after a first look at split 0; `nb_size_default` has the
default. `nmf` is NMF with the
Kullback-Leibler loss, `lda` LatentDirichletAllocation; their shares are mixed with the mean row's, since a share of 0
costs everything, as much as suits the held-out rows best: an advantage. `independent` is the mean row.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import Results, among
from scipy import stats
from sklearn.decomposition import NMF, PCA, LatentDirichletAllocation
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier

from skvae import VAETransformer
from skvae.inits import LinearInit
from skvae.likelihoods import NegativeBinomial, Poisson

HERE = Path(__file__).parent
SMOOTHING = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5)
SHRUNK = LinearInit(weight_decay=1000.0)
MEASURES = ("n", "p", "completion", "averaged", "joint", "knn", "seconds")


def from_scanpy():
    """Counts and labels of scanpy's bundled cells."""
    import scanpy

    cells = scanpy.datasets.pbmc68k_reduced()
    scaled = np.expm1(cells.raw.X.toarray()) * cells.obs["n_counts"].to_numpy()[:, None] / 1e4
    return {"X": scaled.round().astype(np.int64), "y": cells.obs["bulk_labels"].astype("category").cat.codes.to_numpy()}


def load(path):
    """Counts and labels from a file, or from scanpy; None, with a word, where it is missing."""
    if path is not None:
        with np.load(path) as file:
            return dict(file)
    try:
        return from_scanpy()
    except ImportError as error:
        print(f"pbmc68k: skipped ({error}); give a file by --data")
        return None


# Scores


def poisson(x, mean):
    return stats.poisson.logpmf(x, mean).sum(axis=1).mean()


def negative_binomial(x, mean, total_count):
    return stats.nbinom.logpmf(x, total_count, total_count / (total_count + mean)).sum(axis=1).mean()


def shares(rates):
    return rates / rates.sum(axis=1, keepdims=True)


def mean_row(X):
    """The mean row's shares, of which none is 0."""
    return shares(X.mean(axis=0, keepdims=True) + 0.5 / len(X))


def smoothed(own, typical, x, sums):
    """Poisson log-probability of the best of several mixtures with the typical shares."""
    return max(poisson(x, ((1 - share) * own + share * typical) * sums) for share in SMOOTHING)


def log_prob_of_sums(sums, train_sums):
    """Mean log-probability of sums under the negative binomial with the training sums' mean and variance."""
    mean, variance = train_sums.mean(), train_sums.var()
    total_count = mean**2 / (variance - mean)
    return stats.nbinom.logpmf(sums, total_count, total_count / (total_count + mean)).mean()


@torch.no_grad()
def log_prob_of_own_sums(vae, sums):
    """Mean log-probability that rows of a model with a size factor add up to their sums."""
    likelihood, rng = vae.module_.likelihood, torch.Generator().manual_seed(0)
    rates = likelihood.mean(vae.module_.decode(vae.module_.prior.sample(2000, rng))).double() / likelihood.mean_sum
    dispersion = getattr(likelihood, "log_total_count", None)
    squares = rates.square() / dispersion.double().exp() if dispersion is not None else torch.zeros_like(rates)
    mean, excess = (part.sum(dim=1).numpy() for part in (rates, squares))
    size = sums[:, None]
    density = stats.norm.pdf(size, mean * size, np.sqrt(mean * size + excess * size**2))
    return np.log(density.mean(axis=1)).mean()


@torch.no_grad()
def mean_shares(vae, X):
    """Shares of each row, a mean over importance-weighted draws of the posterior."""
    model, x, rng, total = vae.module_, torch.from_numpy(X).float(), torch.Generator().manual_seed(0), 0.0
    eps = torch.randn(200, 1, model.prior.z_dim, generator=rng)
    weights = model.log_weights(x, eps).softmax(dim=0)
    mean, log_scale = model.encode(x)
    for draw, weight in zip(eps, weights, strict=True):
        rates = model.likelihood.mean(model.decode(mean + log_scale.exp() * draw)).double()
        total = total + weight[:, None] * rates / rates.sum(dim=1, keepdim=True)
    return total.numpy()


def neighbours(Z, y, seed):
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return cross_val_score(KNeighborsClassifier(5), Z, y, cv=folds).mean()


# Methods: each takes rows, halves, labels, k and seed, and returns its measures


class Ours:
    """A model of ours with that likelihood."""

    sizes = (10,)

    def __init__(self, likelihood, **params):
        self.likelihood, self.params = likelihood, params

    def fitted(self, X, k, seed):
        return VAETransformer(k, likelihood=self.likelihood, random_state=seed, **self.params).fit(X * 1.0)

    def completion(self, train, seen, x, k, seed):
        vae = self.fitted(train, k, seed)
        dispersion = getattr(vae.module_.likelihood, "log_total_count", None)
        found = {
            "completion": shares(vae.inverse_transform(vae.transform(seen * 1.0))),
            "averaged": mean_shares(vae, seen),
        }
        rates = {name: own * x.sum(axis=1, keepdims=True) for name, own in found.items()}
        if dispersion is None:
            return {name: poisson(x, own) for name, own in rates.items()}
        total_count = dispersion.detach().double().exp().numpy()
        return {name: negative_binomial(x, own, total_count) for name, own in rates.items()}

    def joint(self, train, test, k, seed):
        vae = self.fitted(train, k, seed)
        if self.likelihood.size_factor is None:
            return vae.score(test * 1.0)
        sums = test.sum(axis=1)
        of_sums = log_prob_of_sums(sums, train.sum(axis=1)) - log_prob_of_own_sums(vae, sums)
        return vae.score(test * 1.0) + of_sums

    def latents(self, X, k, seed):
        return self.fitted(X, k, seed).transform(X * 1.0)


class Topics:
    """NMF or LatentDirichletAllocation, whose parts are `components_`."""

    sizes = (10, 20, 30)

    def __init__(self, make):
        self.make = make

    def completion(self, train, seen, x, k, seed):
        model = self.make(k, seed).fit(train)
        parts, weights = model.components_, model.transform(seen)
        if isinstance(model, LatentDirichletAllocation):
            parts = shares(parts)
        return {"completion": smoothed(shares(weights @ parts), mean_row(train), x, x.sum(axis=1, keepdims=True))}

    def latents(self, X, k, seed):
        return self.make(k, seed).fit_transform(X)


class Independent:
    """The mean row."""

    sizes = (0,)

    def completion(self, train, seen, x, k, seed):
        return {"completion": poisson(x, mean_row(train) * x.sum(axis=1, keepdims=True))}


class LogPCA:
    """PCA of log1p of counts scaled to one sum."""

    sizes = (10,)

    def __init__(self, total=None):
        self.total = total

    def latents(self, X, k, seed):
        sums = X.sum(axis=1, keepdims=True)
        return PCA(k, random_state=seed).fit_transform(np.log1p(X / sums * (self.total or sums.mean())))


def nmf(k, seed):
    params = {"beta_loss": "kullback-leibler", "solver": "mu", "init": "nndsvda", "max_iter": 500}
    return NMF(k, random_state=seed, **params)


def lda(k, seed):
    return LatentDirichletAllocation(k, max_iter=50, random_state=seed)


METHODS = {
    "nb_size": Ours(NegativeBinomial("sum"), init=SHRUNK),
    "nb": Ours(NegativeBinomial(), init=SHRUNK),
    "poisson_size": Ours(Poisson("sum"), init=SHRUNK),
    "poisson": Ours(Poisson(), init=SHRUNK),
    "nb_size_default": Ours(NegativeBinomial("sum")),
    "nmf": Topics(nmf),
    "lda": Topics(lda),
    "independent": Independent(),
    "pca": LogPCA(),
    "pca_1e4": LogPCA(1e4),
}


def measure(method, X, y, k, seed):
    """What a method has of the measures."""
    rng, found, start = np.random.default_rng(seed), {}, time.perf_counter()
    train, test = train_test_split(X, test_size=0.2, random_state=seed)
    halves = rng.binomial(train, 0.5), rng.binomial(test, 0.5)
    if hasattr(method, "completion"):
        found = {name: float(value) for name, value in method.completion(*halves, test - halves[1], k, seed).items()}
    if hasattr(method, "joint"):
        found["joint"] = float(method.joint(train, test, k, seed))
    if hasattr(method, "latents"):
        found["knn"] = float(neighbours(method.latents(X, k, seed), y, seed))
    return found | {"seconds": time.perf_counter() - start}


def summarise(results):
    """Means over the seeds."""
    rows = results.rows()
    names = ("completion", "averaged", "joint", "knn")
    print("method, k:", *names)
    for method, k in dict.fromkeys((row["method"], row["k"]) for row in rows):
        own = [row for row in rows if (row["method"], row["k"]) == (method, k)]
        values = [[float(row[name]) for row in own if row[name]] for name in names]
        print(f"{method:16} {k:>3} ", *(f"{np.mean(value):10.3f}" if value else " " * 10 for value in values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--write", type=Path, help="write scanpy's counts there, and do nothing else")
    parser.add_argument("--methods", type=among(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.write:
        return np.savez_compressed(args.write, **from_scanpy())
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    results = Results(args.out / "counts.csv", ("seed", "method", "k"), MEASURES, args.resume)
    data = None if args.summary else load(args.data)
    runs = [(seed, name, k) for seed in args.seeds for name in args.methods for k in METHODS[name].sizes]
    for seed, name, k in runs if data else []:
        if results.lacks(seed, name, k):
            X, y = data["X"], data["y"]
            results.add(seed, name, k, n=len(X), p=X.shape[1], **measure(METHODS[name], X, y, k, seed))
    summarise(results)


if __name__ == "__main__":
    main()
