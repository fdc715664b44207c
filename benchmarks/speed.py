"""How fast is it, beside the loops that one would write by hand and beside its peers?

    python benchmarks/speed.py                     # everything, into benchmarks/results/speed.csv
    python benchmarks/speed.py --part epoch --batch-sizes 64 --repeats 9

Parts: `epoch`, seconds per epoch of the seeds' network on MNIST; `bound`, seconds of training to a test bound of 110
nats; `inference`, `transform` and `score_samples` beside their bare matrix products; `memory`, peak memory of a fit;
`growth`, seconds of an epoch as rows and features grow; `import`, seconds of an import.

All contestants of a part run in one process (memory and imports: one each), taking turns; what counts is the ratio of
the medians. Peers that are not installed are skipped with a note. Close other work before measuring.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from loops import LOOPS
from record import Results
from skorch.callbacks import Callback

from skvae import VAETransformer
from skvae.datasets import load_images

HERE = Path(__file__).parent
TARGET = -110.0  # nats
SEEDS = {"z_dim": 100, "likelihood": "bernoulli", "random_state": 0}
IMPORTS = ("import torch, sklearn, skorch", "import skvae")
ROWS, FEATURES = (1_000, 10_000, 100_000, 1_000_000), (10, 100, 1_000, 10_000)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def take_turns(works, repeats):
    """Median seconds of each work; one round that does not count comes first."""
    times = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: median(values[1:]) for name, values in times.items()}


def ready(x, batch_size):
    """An object of each loop by its name, without those whose package is missing."""
    made = {}
    for kind in LOOPS:
        try:
            made[kind.name] = kind(x, batch_size)
        except ImportError as error:
            print(f"{kind.name}: skipped ({error})")
    return made


def epoch(x, _, args):
    for batch_size in args.batch_sizes:
        works = {name: loop.epoch for name, loop in ready(x, batch_size).items()}
        for name, value in take_turns(works, args.repeats).items():
            yield name, f"batches of {batch_size}", value


class UntilTarget(Callback):
    """Ends training once the test bound reaches the target; the seconds spent on asking do not count."""

    def __init__(self, x, eps):
        self.x, self.eps = x, eps

    def initialize(self):
        self.asking, self.reached = 0.0, float("nan")
        return self

    @torch.no_grad()
    def on_epoch_end(self, net, **kwargs):
        start = time.perf_counter()
        log_prob, kl = net.trained_module(self.x, self.eps)
        self.asking += time.perf_counter() - start
        if float((log_prob - kl).mean()) >= TARGET:
            self.reached = start - self.asking
            raise KeyboardInterrupt


def seconds_of_fit(x, x_test, eps, **params):
    """From the call of `fit`, start and all, to the end of the epoch that reached the target."""
    start = time.perf_counter()
    vae = VAETransformer(**SEEDS, **params, callbacks=[UntilTarget(x_test, eps)]).fit(x.numpy())
    callback = dict(vae.net_.callbacks_)["UntilTarget"]
    return callback.reached - start


def seconds_of_loop(loop, x_test, eps, most=60):
    total = 0.0
    for _ in range(most):
        total += seconds(loop.epoch)
        if loop.bound(x_test, eps) >= TARGET:
            return total
    return float("nan")


def bound(x, x_test, args):
    eps = torch.randn(len(x_test), SEEDS["z_dim"], generator=torch.Generator().manual_seed(0))
    for name, loop in ready(x, 64).items():
        if hasattr(loop, "bound"):
            yield name, "to 110 nats, the seeds' settings", seconds_of_loop(loop, x_test, eps)
    for what, params in {"the seeds' network and batches": {"batch_size": 64}, "defaults": {}}.items():
        times = [seconds_of_fit(x, x_test, eps, **params) for _ in range(3)]
        yield "VAETransformer", f"to 110 nats, {what}", median(times)


def products(x, *chains):
    """The matrix products of chains of linear layers, in blocks of rows, and nothing else."""
    with torch.no_grad():
        for block in x.split(1024):
            for chain in chains:
                y = block
                for layer in chain:
                    y = torch.nn.functional.linear(y, layer.weight, layer.bias)


def chains(network, beside):
    return [layer for layer in [*network.hidden, network.head] if hasattr(layer, "weight")], [beside] if beside else []


def inference(x, _, args):
    for init in ("random", "linear"):
        vae = VAETransformer(**SEEDS, init=init, max_iter=1, early_stopping=False).fit(x.numpy())
        module, z = vae.module_, torch.randn(100 * 1000, SEEDS["z_dim"])
        encoder, decoder = chains(module.encoder, module.linear_encoder), chains(module.decoder, module.linear_decoder)
        works = {
            "transform": lambda vae=vae: vae.transform(x.numpy()),
            "transform, products": lambda encoder=encoder: products(x, *encoder),
            "score_samples": lambda vae=vae: vae.score_samples(x[:1000].numpy()),
            "score_samples, products": lambda decoder=decoder, z=z: products(z, *decoder),
        }
        for name, value in take_turns(works, args.repeats).items():
            yield name, f"init={init}", value


def peak(code):
    """Most memory that a process running `code` has held, in MB (Linux); `ru_maxrss` would begin with the parent's."""
    code += "; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM")) / 1024


def memory(x, _, args):
    load = "import numpy as np; from skvae import VAETransformer; import loops; import torch"
    data = f"{load}; X = np.random.default_rng(0).random({tuple(x.shape)}, dtype=np.float32)"
    base = peak(load)
    fit = "VAETransformer(100, likelihood='bernoulli', {}).fit(X)"
    codes = {
        ("X", "float32"): "X.sum()",
        ("VAETransformer", "fit, the seeds' network"): fit.format("init='random', max_iter=2"),
        ("VAETransformer", "fit, defaults, 2 epochs"): fit.format("max_iter=2"),
        ("VAETransformer", "fit, gaussian, 2 epochs"): "VAETransformer(100, likelihood='gaussian', max_iter=2).fit(X)",
        ("VAETransformer", "fit of one epoch, 1,000,000 x 100"): (
            "X = np.random.default_rng(0).random((1_000_000, 100), dtype=np.float32); "
            "VAETransformer(max_iter=1, likelihood='gaussian', early_stopping=False).fit(X)"
        ),
        ("hand-written PyTorch", "one epoch"): "loops.HandWritten(torch.from_numpy(X), 64).epoch()",
    }
    for (name, setting), code in codes.items():
        yield name, f"peak memory over the imports in MB: {setting}", peak(f"{data}; {code}") - base


def growth(*_):
    for n, p in [*((n, 100) for n in ROWS), *((2_000, p) for p in FEATURES)]:
        X = np.random.default_rng(0).standard_normal((n, p), dtype=np.float32)
        vae = VAETransformer(10, max_iter=1, early_stopping=False, batch_size=256, random_state=0)
        yield "VAETransformer", f"fit of one epoch, {n} x {p}", seconds(lambda vae=vae, X=X: vae.fit(X))


def imports(*_):
    def run(code):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    fit = "import numpy as np; from skvae import VAETransformer; VAETransformer(2, max_iter=1).fit(np.eye(50))"
    for name, value in take_turns({code: run(code) for code in (*IMPORTS, fit)}, 5).items():
        yield name, "a process", value


PARTS = {
    "epoch": epoch,
    "bound": bound,
    "inference": inference,
    "memory": memory,
    "growth": growth,
    "import": imports,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--mnist", type=Path, default=HERE.parents[1] / "shared" / "data" / "mnist.npz")
    args = parser.parse_args()
    if not args.mnist.exists():
        raise SystemExit(f"MNIST: no file {args.mnist}")
    x, _, x_test, _ = load_images(args.mnist)
    results = Results(args.out / "speed.csv", ("part", "name", "setting"), ("value",), keep=False)
    for part in args.part:
        for name, setting, value in PARTS[part](torch.from_numpy(x), torch.from_numpy(x_test), args):
            results.add(part, name, setting, value=float(value))


if __name__ == "__main__":
    main()
