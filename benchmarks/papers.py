"""The papers' own numbers: negative log-likelihood of MNIST, binarised dynamically, in nats per image.

    python benchmarks/papers.py plain             # one row, into benchmarks/results/papers.csv
    python benchmarks/papers.py                   # all rows, one after another
    python benchmarks/papers.py samples           # Frechet distances of samples from the prior and from the aggregate
    python benchmarks/papers.py --summary         # only the table of what is there

Protocol: each pixel of the 60,000 training images is drawn anew for every batch, 1 with the grey value as probability;
the 10,000 test images are drawn once, from a fixed seed. All training images are trained on, for a number of epochs
that is fixed beforehand, so that no test image decides when to stop. The learning rate falls to nothing; where a row
has an `ema_decay` it stays high to the end, and it is the averaged weights that are scored. Scores are the
importance-weighted bound of 5,000 draws for each image. Networks, learning rates, epochs and draws were chosen after
short runs that were scored on the first 1,000 test images: `nll_unseen` is the score of the other 9,000.

A row that is cut off goes on where it was: training from a checkpoint, scoring from the last block of images. Beside
both lies a text of what they are of; where that has changed since, the row is refused, not taken for what it is not.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from record import Results, print_table
from skorch.callbacks import Callback

from skvae import VAETransformer
from skvae.architectures import MLP, Conv
from skvae.datasets import load_images
from skvae.inits import LinearInit
from skvae.likelihoods import Bernoulli
from skvae.metrics import frechet_distance, log_likelihood
from skvae.objectives import DReG
from skvae.priors import Flow, VampPrior

HERE = Path(__file__).parent
TEST_SEED = 777  # of the test images' bits
N_DRAWS = 5_000
BLOCK = 500  # test images that are scored before the result is written down
EMA_DECAY = 0.97  # of every fit
N_SEEN = 1_000  # test images that choices were made on
KEYS, VALUES = (
    ("row", "device"),
    ("paper", "published", "required", "nll", "nll_unseen", "standard_error", "minutes", "budget", "epochs", "active"),
)


class Anneal(Callback):
    """Lets the learning rate rise to `peak` over a twentieth of the epochs of a fit, and then fall to 0 as a cosine.

    Where it does not fall, it stays at `peak`.
    """

    RISE = 0.05

    def __init__(self, peak, falls=True):
        self.peak = peak
        self.falls = falls

    def on_train_begin(self, net, **kwargs):
        self.begin_ = len(net.history)

    def on_epoch_begin(self, net, **kwargs):
        done = (len(net.history) - self.begin_ - 0.5) / net.schedule_.run_length
        fallen = self.falls * max(0, done - self.RISE) / (1 - self.RISE)
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
    ema_decay : float
        Of the moving average of the weights in a stage whose learning rate stays high; 0: it falls, and the average is
        that of every fit. Averages over
        epochs generalise better than the last weights (Izmailov et al., 2018, "Averaging weights leads to wider optima
        and better generalization", UAI).
    """

    paper: str
    published: float
    required: float
    budget: int
    params: dict
    peak: float = 2e-3
    after: str = ""
    ema_decay: float = 0.0


ALL = {
    "likelihood": Bernoulli(binarize=True),
    "prior": "standard_normal",
    "init": LinearInit(weight_decay=0.0),
    "early_stopping": False,
    "warm_start": True,
    "random_state": 0,
    "verbose": 1,
}
DEEP = {"hidden_layer_sizes": (500, 500, 500), "architecture": MLP(activation="silu"), "batch_size": 250}
SMALL = {"hidden_layer_sizes": (256, 128), "batch_size": 250, "max_iter": 120}
# published, required and budget of the rows that are stages of one number
TO_VAMP, TO_BEST = (82.43, 82.4, 45), (80.5, 80.5, 120)
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
    "vamp": Row("VampPrior, MLP, z 40", *TO_VAMP, {"z_dim": 40, "prior": VampPrior(300), "max_iter": 110, **DEEP}),
    "vamp iwae": Row(
        "VampPrior, MLP, z 40, then DReG of 20 draws",
        *TO_VAMP,
        {"objective": DReG(20), "max_iter": 8, "batch_size": 100},
        peak=1e-3,
        after="vamp",
    ),
    "vamp iwae averaged": Row(
        "VampPrior, MLP, z 40, then DReG of 20 draws and averaged weights",
        *TO_VAMP,
        {"max_iter": 30},
        peak=7e-4,
        after="vamp iwae",
        ema_decay=0.9999,
    ),
    "conv": Row(
        "convolutions, flow prior, z 40",
        *TO_BEST,
        {
            "z_dim": 40,
            "prior": Flow(4, (384, 384)),
            "max_iter": 180,
            "architecture": Conv((28, 28), channels=(32, 64, 128), activation="silu"),
            "hidden_layer_sizes": (256,),  # wide layers behind the convolutions hold most weights, and overfit
            "batch_size": 250,
        },
    ),
    "conv iwae": Row(
        "convolutions, flow prior, z 40, then DReG of 10 draws and averaged weights",
        *TO_BEST,
        {"objective": DReG(10), "max_iter": 10, "batch_size": 100},
        peak=7e-4,
        after="conv",
        ema_decay=0.9998,
    ),
    "z2": Row("VAE, MLP 256-128, z 2", 135.73, 135.73, 10, {"z_dim": 2, **SMALL}, peak=3e-3),
    "z5": Row("VAE, MLP 256-128, z 5", 110.21, 110.21, 10, {"z_dim": 5, **SMALL}, peak=3e-3),
    "z20": Row("VAE, MLP 256-128, z 20", 88.90, 88.90, 10, {"z_dim": 20, **SMALL}, peak=3e-3),
}


def training(name):
    """What a row's model is made by, as a text: a line for each stage, the last one first."""
    row = ROWS[name]
    before = training(row.after) if row.after else f"{ALL}\n"
    return f"{row.params}, peak={row.peak}, ema_decay={row.ema_decay}\n{before}"


def scoring(name):
    """The same of its scores."""
    return f"{N_DRAWS} draws, blocks of {BLOCK}, test images drawn from seed {TEST_SEED}\n{training(name)}"


def note(text, path, made):
    """Write to `path` what the file or folder `made` is about to hold; refuse where it holds something else already."""
    if made.exists() and not (path.exists() and path.read_text() == text):
        raise SystemExit(f"{made} was made by other settings than those of this row: delete it to begin anew.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fit(name, x, work):
    """The row's model, trained or read from where an earlier run left it."""
    row, path = ROWS[name], work / name / "model.joblib"
    note(training(name), path.with_name("training.txt"), made=path.parent)
    if path.exists():
        return joblib.load(path)
    if row.after:
        vae = fit(row.after, x, work)
        vae.net_.set_params(callbacks__Anneal=Anneal(row.peak, falls=not row.ema_decay))
        vae.net_.ema_decay = row.ema_decay or EMA_DECAY
    else:
        vae = VAETransformer(callbacks=[Anneal(row.peak), Clock()], **ALL)
    vae.set_params(checkpoint=path.parent, **row.params).fit(x)
    joblib.dump(vae, path)
    return vae


def score(name, vae, x_test, work):
    """Mean negative log-likelihood, that of images no choice saw, and standard error of the first; block by block."""
    path = work / name / "blocks.csv"
    note(scoring(name), path.with_suffix(".txt"), made=path)
    results = Results(path, ("block",), ("nll", "standard_error", "n"), keep=True)
    for number, start in enumerate(range(0, len(x_test), BLOCK)):
        if results.lacks(number):
            block = x_test[start : start + BLOCK]
            value, error = log_likelihood(vae, block, N_DRAWS, random_state=number)
            results.add(number, nll=-value, standard_error=error, n=len(block))
    blocks = pd.read_csv(path)
    unseen = blocks[blocks.block >= N_SEEN // BLOCK]
    error = np.sqrt((blocks.n * blocks.standard_error).pow(2).sum()) / blocks.n.sum()
    means = [float(np.average(part.nll, weights=part.n)) for part in (blocks, unseen)]
    return *means, float(error)


def run_row(name, args):
    row = ROWS[name]
    x, _, x_test, _ = load_images(args.mnist)
    x_test = (np.random.default_rng(TEST_SEED).random(x_test.shape) < x_test).astype(np.float32)
    vae = fit(name, x, args.work)
    nll, nll_unseen, error = score(name, vae, x_test, args.work)
    minutes = sum(vae.net_.history[:, "seconds"]) / 60
    print(f"{name}: {nll:.2f} nats ({N_DRAWS} draws, bits of seed {TEST_SEED}), {minutes:.1f} core minutes of training")
    Results(args.out / "papers.csv", KEYS, VALUES, keep=True).add(
        name,
        vae.net_.device.partition(":")[0],
        paper=row.paper,
        published=row.published,
        required=row.required,
        nll=nll,
        nll_unseen=nll_unseen,
        standard_error=error,
        minutes=minutes,
        budget=row.budget,
        epochs=vae.n_iter_,
        active=int(vae.active_units_.sum()),
    )


def run_samples(args):
    """Frechet distances of 10,000 samples to the test images, in the latent space of a model that is neither."""
    results = Results(args.out / "samples.csv", ("latents", "seed"), ("frechet", "seconds"), keep=True)
    seeds = [seed for seed in range(3) if results.lacks("aggregate", seed)]
    if not seeds:
        return
    x, _, x_test, _ = load_images(args.mnist)
    kinds = {"test rows' reconstructions": lambda vae: vae.inverse_transform(vae.transform(x_test))}
    for latents in ("prior", "aggregate"):
        kinds[latents] = lambda vae, latents=latents: vae.sample(len(x_test), latents=latents, random_state=0)
    model = {name: ALL[name] for name in ("likelihood", "prior")}
    reference = VAETransformer(32, **model, random_state=1000).fit(x)
    for seed in seeds:
        start = time.process_time()
        vae = VAETransformer(16, **model, hidden_layer_sizes=(256, 128), random_state=seed).fit(x)
        for kind, draw in kinds.items():
            distance = frechet_distance(reference, x_test, draw(vae))
            results.add(kind, seed, frechet=distance, seconds=time.process_time() - start)


def summary(args):
    """Print the tables of docs/benchmarks.rst, one for each kind of device."""
    path = args.out / "papers.csv"
    if not path.exists():
        return
    head = ("row", "published", "required", "ours", "unseen images", "core minutes", "epochs")
    for _, rows in pd.read_csv(path).groupby("device"):
        rows = rows.set_index("row")
        print_table(head, [cells_of(rows.loc[name]) for name in ROWS if name in rows.index])


def cells_of(row):
    ours = f"{row.nll:.2f}" + ("" if row.nll <= row.required else " (missed)")
    nats = (f"{row.published:.2f}", f"{row.required:.2f}", ours, f"{row.nll_unseen:.2f}")
    return row.paper, *nats, f"{row.minutes:.0f} of {2 * row.budget}", str(row.epochs)


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
