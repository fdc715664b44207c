"""How fast is it, beside the loops that one would write by hand and beside its peers?

    python benchmarks/speed.py                     # everything, into benchmarks/results/speed.csv
    python benchmarks/speed.py --part epoch --batch-sizes 64 --repeats 9
    python benchmarks/speed.py --part ablation     # into benchmarks/results/ablation.csv
    python benchmarks/speed.py --summary           # only the tables of docs/benchmarks.rst, from what is there

Parts: `epoch`, seconds per epoch of a network 784-128-100-128-784 on MNIST; `gpu`, the same on a GPU, where there is
one; `bound`, seconds of training to a test bound of 110 nats, from nothing; `inference`, `transform` and
`score_samples` beside their bare matrix products; `memory`, peak memory of training; `growth`, seconds of an epoch as
rows and features grow; `import`, seconds of an import; `ablation`, seconds of training with one of its means switched
off.

All contestants of a part run in one process (memory and imports: one each), taking turns; what counts is the ratio of
the medians, and a row says of how many `repeats`. All parts but `gpu` run on the CPU; with ``taskset -c 0`` in front,
all contestants have the same single core. Peers that are not installed are skipped with a note. Close other work before
measuring.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch
from loops import (
    JAX,
    LOOPS,
    LOOPS_ON_GPU,
    PEERS,
    CUDAGraph,
    HandWritten,
    JAXWithoutLosses,
    Ours,
    OursWithPaths,
    PlainSkorch,
    Products,
    Pythae,
    WithLoader,
    bound_of_net,
)
from record import Results, print_table
from skorch.callbacks import Callback

from skvae import VAETransformer
from skvae._estimator import training as _training
from skvae._fast import gradient as _gradient
from skvae._training import net as _net
from skvae._training import schedule as _schedule
from skvae.datasets import load_images

HERE = Path(__file__).parent
TARGET = -110.0  # nats
SIZES = "784-128-100-128-784"  # of the network that all loops train
PARAMS = {
    "z_dim": 100,
    "hidden_layer_sizes": (128,),
    "likelihood": "bernoulli",
    "prior": "standard_normal",
    "device": "cpu",
    "random_state": 0,
}
ROUNDS = 3  # of what takes long
IMPORTS = ("import torch, sklearn, skorch", "import skvae")
ROWS, FEATURES = (1_000, 10_000, 100_000, 1_000_000), (10, 100, 1_000, 10_000)
GPU_BATCH_SIZES = (64, 4096)
OURS, BY_HAND, GRAPH, SCAN = Ours.name, HandWritten.name, CUDAGraph.name, JAX.name
WITH_PATHS = OursWithPaths.name
MEMORY = "peak memory over the imports in MB: "
LABELS = {  # of the loops, in docs/benchmarks.rst
    JAX.name: "JAX, a whole epoch compiled",
    JAXWithoutLosses.name: "JAX, a whole epoch compiled that returns no losses",
    OURS: f"``{OURS}``",
    OursWithPaths.name: f"``{OURS}``, with the default's linear paths",
    BY_HAND: "PyTorch by hand, batches from the whole tensor, fused Adam",
    WithLoader.name: "PyTorch by hand, DataLoader",
    GRAPH: "PyTorch by hand, CUDA graph",
    PlainSkorch.name: "skorch with its own loader",
    Pythae.name: "pythae, same network",
}


def seconds(work):
    wait_for_gpu()
    start = time.perf_counter()
    work()
    wait_for_gpu()
    return time.perf_counter() - start


def wait_for_gpu():
    """If it is in use, until it has done what it was told to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def take_turns(clocks, repeats, warm_up=0):
    """What each clock shows in each of `repeats` rounds, after rounds that do not count."""
    shown = {key: [] for key in clocks}
    for _ in range(warm_up + repeats):
        for key, clock in clocks.items():
            shown[key].append(clock())
    return {key: values[warm_up:] for key, values in shown.items()}


def installed(kinds):
    """The kinds of loops whose package is here."""
    for kind in kinds:
        try:
            import_module(kind.package)
        except ImportError as error:
            print(f"{kind.name}: skipped ({error})")
        else:
            yield kind


def fixed_noise(x):
    return torch.randn(len(x), PARAMS["z_dim"], generator=torch.Generator().manual_seed(0))


def epochs(kinds, x, x_test, batch_size, repeats, **where):
    """Seconds per epoch; at the end the test bounds are printed, which shows that all have trained alike."""
    loops = [kind(x, batch_size, **where) for kind in installed(kinds)]
    clocks = {(loop.name, f"batches of {batch_size}"): partial(seconds, loop.epoch) for loop in loops}
    yield from take_turns(clocks, repeats, warm_up=1).items()
    eps = fixed_noise(x_test)
    for loop in loops:
        if hasattr(loop, "bound"):
            print(f"{loop.name}: test bound after {repeats + 1} epochs {loop.bound(x_test, eps):.1f} nats")


def epoch(x, x_test, args):
    for batch_size in args.batch_sizes:
        yield from epochs(LOOPS, x, x_test, batch_size, args.repeats)


def gpu(x, x_test, args):
    if not torch.cuda.is_available():
        print("gpu: skipped (torch finds no CUDA device)")
        return
    for batch_size in GPU_BATCH_SIZES:
        yield from epochs(LOOPS_ON_GPU, x, x_test, batch_size, args.repeats, device="cuda")


class UntilTarget(Callback):
    """Ends training once the test bound reaches the target; the seconds spent on asking do not count."""

    def __init__(self, x, eps):
        self.x, self.eps = x, eps

    def initialize(self):
        self.asking, self.reached = 0.0, float("inf")
        return self

    def on_epoch_end(self, net, **kwargs):
        start = time.perf_counter()
        value = bound_of_net(net, self.x, self.eps)
        self.asking += time.perf_counter() - start
        if value >= TARGET:
            self.reached = time.perf_counter() - self.asking
            raise KeyboardInterrupt


def seconds_of_fit(x, x_test, eps, **params):
    """From the call of `fit`, start and all, to the end of the epoch that reached the target."""
    start = time.perf_counter()
    vae = VAETransformer(**PARAMS, **params, callbacks=[UntilTarget(x_test, eps)]).fit(x.numpy())
    callback = dict(vae.net_.callbacks_)["UntilTarget"]
    return callback.reached - start


def seconds_of_loop(kind, x, x_test, eps, most=60):
    """The same of a loop that is made for it: JAX compiles anew."""
    start, asking = time.perf_counter(), 0.0
    loop = kind(x, 64)
    for _ in range(most):
        loop.epoch()
        end = time.perf_counter()
        if loop.bound(x_test, eps) >= TARGET:
            return end - asking - start
        asking += time.perf_counter() - end
    return float("inf")


def bound(x, x_test, args):
    eps = fixed_noise(x_test)
    clocks = {
        (kind.name, f"to 110 nats, {SIZES}, batches of 64"): partial(seconds_of_loop, kind, x, x_test, eps)
        for kind in installed(PEERS)
    }
    for what, params in {f"{SIZES}, batches of 64": {"batch_size": 64}, "defaults": {}}.items():
        clocks[OURS, f"to 110 nats, {what}"] = partial(seconds_of_fit, x, x_test, eps, **params)
    yield from take_turns(clocks, ROUNDS).items()


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
        vae = VAETransformer(**PARAMS, init=init, max_iter=1, early_stopping=False).fit(x.numpy())
        module, z = vae.module_, torch.randn(100 * 1000, PARAMS["z_dim"])
        works = {
            "transform": partial(vae.transform, x.numpy()),
            "transform, products": partial(products, x, *chains(module.encoder, module.linear_encoder)),
            "score_samples": partial(vae.score_samples, x[:1000].numpy()),
            "score_samples, products": partial(products, z, *chains(module.decoder, module.linear_decoder)),
        }
        clocks = {(name, f"init={init}"): partial(seconds, work) for name, work in works.items()}
        yield from take_turns(clocks, args.repeats, warm_up=1).items()


def peak(code):
    """Most memory that a process running `code` has held, in MB (Linux); `ru_maxrss` would begin with the parent's."""
    code += "; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM")) / 1024


def random_rows(n, p):
    return f"X = np.random.default_rng(0).random(({n}, {p}), dtype=np.float32)"


def memory(x, *_):
    """What a process holds more than one that has only imported the same; once, since chance has little part in it."""
    load = "import numpy as np; from skvae import VAETransformer; import loops; import torch"
    mnist, base = random_rows(*x.shape), peak(load)
    fits = {
        f"fit, {SIZES}": "100, likelihood='bernoulli', init='random', max_iter=2",
        "fit, defaults, 2 epochs": "100, likelihood='bernoulli', max_iter=2",
        "fit, gaussian, 2 epochs": "100, likelihood='gaussian', max_iter=2",
    }
    fit = "VAETransformer({}, device='cpu').fit(X)"
    codes = {("X", "float32"): f"{mnist}; X.sum()"}
    codes |= {(OURS, setting): f"{mnist}; {fit.format(params)}" for setting, params in fits.items()}
    million = fit.format("max_iter=1, likelihood='gaussian', early_stopping=False")
    codes[OURS, "fit of one epoch, 1,000,000 x 100"] = f"{random_rows(1_000_000, 100)}; {million}"
    for (name, setting), code in codes.items():
        yield (name, MEMORY + setting), [peak(f"{load}; {code}") - base]
    for kind in installed(PEERS):
        imported = f"{load}; import {kind.package}"
        run = f"loops.{kind.__name__}(torch.from_numpy(X), 64).epoch()"
        yield (kind.name, MEMORY + "one epoch"), [peak(f"{imported}; {mnist}; {run}") - peak(imported)]


def seconds_of_table(n, p):
    X = np.random.default_rng(0).standard_normal((n, p), dtype=np.float32)
    vae = VAETransformer(10, max_iter=1, early_stopping=False, batch_size=256, device="cpu", random_state=0)
    return seconds(partial(vae.fit, X))


def growth(*_):
    sizes = [*((n, 100) for n in ROWS), *((2_000, p) for p in FEATURES)]
    clocks = {(OURS, f"fit of one epoch, {n} x {p}"): partial(seconds_of_table, n, p) for n, p in sizes}
    largest = (OURS, f"fit of one epoch, {ROWS[-1]} x 100")
    once = {largest: clocks.pop(largest)}
    yield from (take_turns(clocks, ROUNDS) | take_turns(once, 1)).items()


def imports(*_):
    def run(code):
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})

    fit = "import numpy as np; from skvae import VAETransformer; VAETransformer(2, max_iter=1).fit(np.eye(50))"
    clocks = {(code, "a process"): partial(seconds, partial(run, code)) for code in (*IMPORTS, fit)}
    yield from take_turns(clocks, 5, warm_up=1).items()


SWITCHES = {  # what is off: what has to be replaced for it
    "nothing": [],
    "the gradient by hand": [(_gradient, "ENABLED", False)],
    "one parameter of all for the optimizer": [(_net.Net, "_elementwise", False)],
    "bare optimizers": [(_net, "BARE", {kind: kind for kind in _net.BARE})],  # torch's own are elementwise too
    "fused optimizers": [(_net, "_FUSED", ())],
}
TABLE = (500, 30)  # few enough rows for cross-fitting: five folds and the final fit


class SixMembers:
    """The steps of a default fit of a small table, as many as in 20 epochs, with what judges them."""

    n_epochs = 20

    def __init__(self, *_):
        rng = np.random.default_rng(0)
        factors, noise = np.tanh(rng.standard_normal((TABLE[0], 5))), rng.standard_normal(TABLE)
        X = (factors @ rng.standard_normal((5, TABLE[1])) + 0.3 * noise).astype(np.float32)
        vae, schedule = VAETransformer(device="cpu", random_state=0), _schedule.Schedule.resolve(len(X))
        self.net, self.split = _training.begin(vae, X, "gaussian", 0, one_epoch=False)
        self.schedule = _schedule.Schedule(self.n_epochs, schedule.batch_size, 10**9, 0.0)

    def epoch(self):
        self.net.optimizer_.state.clear()  # it is that of the first member, and the others go on too
        _net.train(self.net, self.split, self.schedule)


def switched(replacements, work, *args):
    """What `work` returns while these attributes have other values."""
    with ExitStack() as stack:
        for owner, name, value in replacements:
            stack.enter_context(mock.patch.object(owner, name, value))
        return work(*args)


def ablation(x, _, args):
    kinds = {f"MNIST, batches of {size}": (OursWithPaths, x, size) for size in args.batch_sizes}
    kinds[f"six members of {TABLE[0]} x {TABLE[1]}, {SixMembers.n_epochs} epochs"] = (SixMembers,)
    for setting, (kind, *where) in kinds.items():
        clocks = {}
        for off, replacements in SWITCHES.items():
            loop = switched(replacements, kind, *where)
            clocks[off, setting] = partial(switched, replacements, seconds, loop.epoch)
        yield from take_turns(clocks, args.repeats, warm_up=1).items()


PARTS = {
    "epoch": epoch,
    "gpu": gpu,
    "bound": bound,
    "inference": inference,
    "memory": memory,
    "growth": growth,
    "import": imports,
    "ablation": ablation,
}


def table_of_epochs(values, part, batch_sizes):
    """Seconds per epoch, a row for each loop."""
    settings = [f"batches of {batch_size}" for batch_size in batch_sizes]
    names = {name for measured, name, _ in values if measured == part}
    names = sorted(names, key=lambda name: values.get((part, name, settings[0]), float("inf")))
    rows = [[LABELS.get(name, name), *(short(values.get((part, name, each))) for each in settings)] for name in names]
    if rows:
        print_table([part, *settings], rows)


def short(value):
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def over(values, key, reference, most):
    """A ratio of two values, with a word where it is more than it should be."""
    ratio = values[key] / values[reference]
    return short(ratio) + missed(ratio > most)


def missed(yes):
    return " (missed)" if yes else ""


def epoch_ratios(values, part, batch_size, aims, ours=OURS):
    """Ours to each of the loops that `aims` has the most for."""
    setting = f"batches of {batch_size}"
    return "; ".join(over(values, (part, ours, setting), (part, name, setting), most) for name, most in aims.items())


def bound_ratio(values):
    ours = ("bound", OURS, "to 110 nats, defaults")
    by_hand = ("bound", BY_HAND, f"to 110 nats, {SIZES}, batches of 64")
    return f"{values[ours]:.1f} s of {values[by_hand]:.1f} s, {over(values, ours, by_hand, 1 / 3)}"


def inference_ratios(values, name, most):
    keys = [("inference", name, f"init={init}") for init in ("random", "linear")]
    plain, linear = (over(values, key, ("inference", f"{name}, products", key[2]), most) for key in keys)
    return f"{plain}; with linear paths {linear}"


def memory_beyond_x(values):
    more = values["memory", OURS, MEMORY + f"fit, {SIZES}"] - values["memory", "X", MEMORY + "float32"]
    return f"``X`` + {more:.0f} MB{missed(more > 300)}"


def memory_of_million(values):
    gigabytes = values["memory", OURS, MEMORY + "fit of one epoch, 1,000,000 x 100"] / 1024
    return f"{gigabytes:.1f} GB{missed(gigabytes > 8)}"


def growth_of_rows(values):
    first, last = (values["growth", OURS, f"fit of one epoch, {n} x 100"] for n in (ROWS[0], ROWS[-1]))
    return f"{short(first)} to {short(last)} s"


AIMS = {  # what is measured: the aim, and what says how far it is reached
    "epoch, batches of 64: ratio to JAX; to PyTorch by hand": (
        "1.15; 0.6",
        partial(epoch_ratios, part="epoch", batch_size=64, aims={SCAN: 1.15, BY_HAND: 0.6}),
    ),
    "epoch, batches of 512: the same": (
        "1.0; 1.0",
        partial(epoch_ratios, part="epoch", batch_size=512, aims={SCAN: 1.0, BY_HAND: 1.0}),
    ),
    "epoch with the default's linear paths, batches of 64: ratio to PyTorch by hand": (
        "0.9",
        partial(epoch_ratios, part="epoch", batch_size=64, aims={BY_HAND: 0.9}, ours=WITH_PATHS),
    ),
    "the same, batches of 512": (
        "0.6",
        partial(epoch_ratios, part="epoch", batch_size=512, aims={BY_HAND: 0.6}, ours=WITH_PATHS),
    ),
    "epoch on a GPU, batches of 64: ratio to a CUDA graph by hand": (
        "1.2",
        partial(epoch_ratios, part="gpu", batch_size=64, aims={GRAPH: 1.2}),
    ),
    "epoch on a GPU, batches of 4096: ratio to its matrix products": (
        "1.2",
        partial(epoch_ratios, part="gpu", batch_size=4096, aims={Products.name: 1.2}),
    ),
    f"seconds to a test bound of 110 nats, defaults: ratio to PyTorch by hand, {SIZES}, batches of 64": (
        "1/3",
        bound_ratio,
    ),
    "``transform`` of 60,000 x 784: ratio to its matrix products": (
        "1.3",
        partial(inference_ratios, name="transform", most=1.3),
    ),
    "``score_samples``, 100 draws: the same": ("1.5", partial(inference_ratios, name="score_samples", most=1.5)),
    f"peak memory of ``fit`` over the imports, {SIZES}": ("``X`` + 300 MB", memory_beyond_x),
    "one epoch of 1,000 to 1,000,000 rows of 100 features": ("linear", growth_of_rows),
    "1,000,000 x 100, peak memory": ("8 GiB", memory_of_million),
}


def table_of_aims(values):
    print_table(("", "aim", "reached"), [(what, aim, word(reached, values)) for what, (aim, reached) in AIMS.items()])


def word(reached, values):
    try:
        return reached(values)
    except KeyError:
        return "not measured"


def table_of_ablation(rows):
    """Seconds without each of the means, and how many times those with all of them; from 1.1 on it is worth having."""
    values = {(row["setting"], row["off"]): float(row["seconds"]) for row in rows}
    settings = list(dict.fromkeys(setting for setting, _ in values))
    offs = dict.fromkeys(off for _, off in values)
    if settings:
        print_table(["off", *settings], [[off, *(beside_all(values, each, off) for each in settings)] for off in offs])


def beside_all(values, setting, off):
    seconds, with_all = values.get((setting, off)), values.get((setting, "nothing"))
    return f"{short(seconds)} s, {seconds / with_all:.2f} x" if seconds and with_all else short(seconds)


def table_of_runs(rows):
    """When and where each part was measured, and of how many repeats its medians are."""
    runs = []
    for part in dict.fromkeys(row["part"] for row in rows):
        of_part = [row for row in rows if row["part"] == part]
        keys = ("repeats", "date", "machine")
        runs.append([part, *("; ".join(sorted({row.get(key) or "?" for row in of_part})) for key in keys)])
    print_table(("part", "medians of", "date", "machine"), runs)


def summary(rows, ablations):
    """Print the tables of docs/benchmarks.rst, and what its words about them need."""
    values = {(row["part"], row["name"], row["setting"]): float(row["value"]) for row in rows}
    table_of_epochs(values, "epoch", (64, 512))
    table_of_epochs(values, "gpu", GPU_BATCH_SIZES)
    table_of_aims(values)
    table_of_ablation(ablations)
    table_of_runs(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 512], help="of `epoch` and `ablation`")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of what is quick; of `bound` and `growth`: 3")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--mnist", type=Path, default=HERE.parents[1] / "shared" / "data" / "mnist.npz")
    parser.add_argument("--summary", action="store_true", help="compute nothing")
    args = parser.parse_args()
    results = Results(args.out / "speed.csv", ("part", "name", "setting"), ("value", "repeats"), keep=False)
    ablations = Results(args.out / "ablation.csv", ("setting", "off"), ("seconds", "repeats"), keep=False)
    if not args.summary:
        measure(args, results, ablations)
    summary(results.rows(), ablations.rows())


def measure(args, results, ablations):
    if not args.mnist.exists():
        raise SystemExit(f"MNIST: no file {args.mnist}")
    x, _, x_test, _ = load_images(args.mnist)
    for part in args.part:
        for (name, setting), values in PARTS[part](torch.from_numpy(x), torch.from_numpy(x_test), args):
            value, repeats = float(median(values)), len(values)
            if part == "ablation":
                ablations.add(setting, name, seconds=value, repeats=repeats)
            else:
                results.add(part, name, setting, value=value, repeats=repeats)


if __name__ == "__main__":
    main()
