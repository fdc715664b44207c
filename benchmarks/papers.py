"""The papers' own numbers: negative log-likelihood of MNIST, binarised dynamically, in nats per image.

    python benchmarks/papers.py plain             # one row, into benchmarks/results/papers.csv
    python benchmarks/papers.py                   # all rows, one after another
    python benchmarks/papers.py samples           # Frechet distances of samples from the prior and from the aggregate
    python benchmarks/papers.py --summary         # only the table of what is there

Protocol: each pixel of the 60,000 training images is drawn anew for every batch, 1 with the grey value as probability;
the 10,000 test images are drawn once, from a fixed seed. All training images are trained on, for a number of epochs
that is fixed beforehand, with a learning rate that falls to nothing, so that no test image decides when to stop. Scores
are the importance-weighted bound of 5,000 draws for each image. Networks, learning rates, epochs and draws were chosen
after short runs that were scored on the first 1,000 test images: `nll_unseen` is the score of the other 9,000. A row
that is cut off goes on where it was: training from a checkpoint, scoring from the last block of images.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from record import Results
from skorch.callbacks import Callback

from skvae import VAETransformer
from skvae.architectures import Conv
from skvae.datasets import load_images
from skvae.likelihoods import Bernoulli
from skvae.metrics import frechet_distance, log_likelihood
from skvae.objectives import DReG
from skvae.priors import Flow, VampPrior

HERE = Path(__file__).parent
TEST_SEED = 777  # of the test images' bits
N_DRAWS = 5_000
BLOCK = 500  # test images that are scored before the result is written down
N_SEEN = 1_000  # test images that choices were made on
KEYS, VALUES = (
    ("row",),
    ("paper", "published", "required", "nll", "nll_unseen", "standard_error", "minutes", "budget", "epochs", "active"),
)


class Anneal(Callback):
    """Lets the learning rate rise to `peak` over a twentieth of the epochs of a fit, and then fall to 0 as a cosine."""

    RISE = 0.05

    def __init__(self, peak):
        self.peak = peak

    def on_train_begin(self, net, **kwargs):
        self.begin_ = len(net.history)

    def on_epoch_begin(self, net, **kwargs):
        done = (len(net.history) - self.begin_ - 0.5) / net.run_length
        fallen = max(0, done - self.RISE) / (1 - self.RISE)
        for group in net.optimizer_.param_groups:
            group["lr"] = self.peak * min(done / self.RISE, 0.5 * (1 + math.cos(math.pi * fallen)))


class Clock(Callback):
    """Records the seconds that the processor worked on each epoch: other processes do not count."""

    def on_epoch_begin(self, net, **kwargs):
        self.start_ = time.process_time()

    def on_epoch_end(self, net, **kwargs):
        net.history.record("seconds", time.process_time() - self.start_)


@dataclass(frozen=True)
class Row:
    """A number of a paper, and how we reach for it.

    Parameters
    ----------
    paper : str
        What it is.
    published, required : float
        Nats: the paper's, and what must be reached.
    budget : int
        Minutes of training on two cores.
    params : dict
        Of the `VAETransformer`.
    peak : float
        Highest learning rate.
    after : str
        Row whose model this one goes on from.
    """

    paper: str
    published: float
    required: float
    budget: int
    params: dict
    peak: float = 2e-3
    after: str = ""


ALL = {
    "likelihood": Bernoulli(binarize=True),
    "weight_decay": 0.0,
    "early_stopping": False,
    "warm_start": True,
    "random_state": 0,
    "verbose": 1,
}
DEEP = {"hidden_layer_sizes": (500, 500, 500), "activation": "silu", "batch_size": 250}
CONV = {
    "architecture": Conv((28, 28), channels=(16, 32)),
    "hidden_layer_sizes": (500, 500),
    "activation": "silu",
    "batch_size": 250,
}
SMALL = {"hidden_layer_sizes": (256, 128), "batch_size": 250, "max_iter": 120}
ROWS = {
    "plain": Row("VAE, MLP, z 50", 86.76, 86.35, 10, {"z_dim": 50, "max_iter": 120, **DEEP}),
    "iwae": Row(
        "IWAE or DReG, 50 draws, MLP, z 50",
        84.78,
        84.32,
        30,
        {"objective": DReG(50), "max_iter": 6, "batch_size": 100},
        peak=1e-3,
        after="plain",
    ),
    "vamp": Row(
        "VampPrior, MLP, z 40", 82.43, 82.4, 45, {"z_dim": 40, "prior": VampPrior(300), "max_iter": 110, **DEEP}
    ),
    "vamp iwae": Row(
        "VampPrior, MLP, z 40, then DReG of 20 draws",
        82.43,
        82.4,
        45,
        {"objective": DReG(20), "max_iter": 8, "batch_size": 100},
        peak=1e-3,
        after="vamp",
    ),
    "vamp iwae longer": Row(
        "VampPrior, MLP, z 40, then DReG of 20 and 50 draws",
        82.43,
        82.4,
        45,
        {"objective": DReG(50), "max_iter": 6},
        peak=1e-3,
        after="vamp iwae",
    ),
    "conv": Row(
        "convolutions, flow prior, z 40",
        80.5,
        80.5,
        120,
        {"z_dim": 40, "prior": Flow(3, (128, 128)), "max_iter": 190, **CONV},
    ),
    "conv iwae": Row(
        "convolutions, flow prior, z 40, then DReG of 10 draws",
        80.5,
        80.5,
        120,
        {"objective": DReG(10), "max_iter": 8, "batch_size": 100},
        peak=1e-3,
        after="conv",
    ),
    "z2": Row("VAE, MLP 256-128, z 2", 135.73, 135.73, 10, {"z_dim": 2, **SMALL}, peak=3e-3),
    "z5": Row("VAE, MLP 256-128, z 5", 110.21, 110.21, 10, {"z_dim": 5, **SMALL}, peak=3e-3),
    "z20": Row("VAE, MLP 256-128, z 20", 88.90, 88.90, 10, {"z_dim": 20, **SMALL}, peak=3e-3),
}


def fit(name, x, work):
    """The row's model, trained or read from where an earlier run left it."""
    row, path = ROWS[name], work / name / "model.joblib"
    if path.exists():
        return joblib.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if row.after:
        vae = fit(row.after, x, work)
        vae.net_.set_params(callbacks__Anneal__peak=row.peak)
    else:
        vae = VAETransformer(callbacks=[Anneal(row.peak), Clock()], **ALL)
    vae.set_params(checkpoint=path.parent, **row.params).fit(x)
    joblib.dump(vae, path)
    return vae


def score(vae, x_test, work):
    """Mean negative log-likelihood, that of images no choice saw, and standard error of the first; block by block."""
    results = Results(work / "blocks.csv", ("block",), ("nll", "standard_error", "n"), keep=True)
    for number, start in enumerate(range(0, len(x_test), BLOCK)):
        if results.lacks(number):
            block = x_test[start : start + BLOCK]
            value, error = log_likelihood(vae, block, N_DRAWS, random_state=number)
            results.add(number, nll=-value, standard_error=error, n=len(block))
    blocks = pd.read_csv(work / "blocks.csv")
    unseen = blocks[blocks.block >= N_SEEN // BLOCK]
    error = np.sqrt((blocks.n * blocks.standard_error).pow(2).sum()) / blocks.n.sum()
    means = [float(np.average(part.nll, weights=part.n)) for part in (blocks, unseen)]
    return *means, float(error)


def run_row(name, args):
    row = ROWS[name]
    x, _, x_test, _ = load_images(args.mnist)
    x_test = (np.random.default_rng(TEST_SEED).random(x_test.shape) < x_test).astype(np.float32)
    vae = fit(name, x, args.work)
    nll, nll_unseen, error = score(vae, x_test, args.work / name)
    Results(args.out / "papers.csv", KEYS, VALUES, keep=True).add(
        name,
        paper=row.paper,
        published=row.published,
        required=row.required,
        nll=nll,
        nll_unseen=nll_unseen,
        standard_error=error,
        minutes=sum(vae.net_.history[:, "seconds"]) / 60,
        budget=row.budget,
        epochs=vae.n_iter_,
        active=int(vae.active_units_.sum()),
    )


def run_samples(args):
    """Frechet distances of 10,000 samples to the test images, in the latent space of a model that is neither."""
    x, _, x_test, _ = load_images(args.mnist)
    results = Results(args.out / "samples.csv", ("latents", "seed"), ("frechet", "seconds"), keep=True)
    kinds = {"test rows' reconstructions": lambda vae: vae.inverse_transform(vae.transform(x_test))}
    for latents in ("prior", "aggregate"):
        kinds[latents] = lambda vae, latents=latents: vae.sample(len(x_test), latents=latents, random_state=0)
    reference = VAETransformer(32, likelihood=ALL["likelihood"], random_state=1000).fit(x)
    for seed in [seed for seed in range(3) if results.lacks("aggregate", seed)]:
        start = time.process_time()
        vae = VAETransformer(16, likelihood=ALL["likelihood"], hidden_layer_sizes=(256, 128), random_state=seed).fit(x)
        for kind, draw in kinds.items():
            distance = frechet_distance(reference, x_test, draw(vae))
            results.add(kind, seed, frechet=distance, seconds=time.process_time() - start)


def summary(args):
    """The table of the README."""
    path = args.out / "papers.csv"
    if not path.exists():
        return
    rows = pd.read_csv(path).set_index("row")
    print("| row | published | required | ours | core minutes | epochs |\n|---|---|---|---|---|---|")
    for name in [name for name in ROWS if name in rows.index]:
        row = rows.loc[name]
        ours = f"{row.nll:.2f}" + ("" if row.nll <= row.required else " (missed)")
        minutes = f"{row.minutes:.0f} of {2 * row.budget}"
        print(f"| {row.paper} | {row.published:.2f} | {row.required:.2f} | {ours} | {minutes} | {row.epochs} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*", help=f"of {', '.join(ROWS)}, samples; default: all")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE.parent / "out" / "papers", help="of checkpoints and models")
    parser.add_argument("--mnist", type=Path, default=HERE.parents[1] / "shared" / "data" / "mnist.npz")
    parser.add_argument("--summary", action="store_true", help="compute nothing")
    args = parser.parse_args()
    if unknown := set(args.row) - {*ROWS, "samples"}:
        parser.error(f"no row named {', '.join(sorted(unknown))}")
    if not (args.summary or args.mnist.exists()):
        raise SystemExit(f"MNIST: no file {args.mnist}")
    for name in () if args.summary else args.row or [*ROWS, "samples"]:
        run_samples(args) if name == "samples" else run_row(name, args)
    summary(args)


if __name__ == "__main__":
    main()
