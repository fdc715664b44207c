"""Tables larger than memory, sparse tables, chunks and two processes: what they take beside an array in memory.

    python benchmarks/scale.py                    # all parts, into benchmarks/results/scale.csv
    python benchmarks/scale.py --part memory --gigabytes 10 --folder /tmp
    python benchmarks/scale.py --summary          # only the table of what is there, docs/benchmarks.rst's

Parts: `memory`, the peak of resident memory of a fit to a memory map of float32, over that of the imports; `epoch`, a
pass over a map against one over the array, taking turns, in a warm page cache; `sparse`, a fit to 100,000 x 2,000 of
which 2 % are not 0 (`poisson`), against the fit to the dense array; `chunks`, `partial_fit` over shuffled chunks
against `fit`, by the score of held-out rows; `processes`, rows a second of one and of two processes of one thread each.

The map's table is made: ten factors and noise, 250 columns. Each measurement of memory is a process of its own, which
looks at its resident memory 50 times a second: pages of the map count as long as they are in it.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
from record import Results, among, print_table

HERE = Path(__file__).parent
KEYS, VALUES = ("part", "case"), ("rows", "columns", "value", "unit", "bar")
N_COLUMNS = 250
SPARSE = (100_000, 2_000, 0.02)
N_CHUNKS, N_PASSES = 20, 20


def write_table(folder, gigabytes):
    """The file of the table, and its shape."""
    n = int(gigabytes * 2**30 / 4 / N_COLUMNS)
    path, rng = folder / f"table_{n}.f32", np.random.default_rng(0)
    if path.exists() and path.stat().st_size == 4 * n * N_COLUMNS:
        return path, (n, N_COLUMNS)
    loadings = rng.standard_normal((10, N_COLUMNS), dtype=np.float32)
    with path.open("wb") as file:
        for start in range(0, n, 10_000):
            factors = rng.standard_normal((min(10_000, n - start), 10), dtype=np.float32)
            noise = rng.standard_normal((len(factors), N_COLUMNS), dtype=np.float32)
            (np.tanh(factors) @ loadings + noise).tofile(file)
    return path, (n, N_COLUMNS)


def mapped(path, shape):
    return np.memmap(path, np.float32, "r", shape=tuple(shape))


def sparse_counts():
    """Counts of which 2 % are not 0, as CSR."""
    from scipy import sparse

    n, p, density = SPARSE
    rng = np.random.default_rng(0)
    X = sparse.random_array((n, p), density=density, format="csr", rng=rng, dtype=np.float32)
    X.data = rng.poisson(2, size=X.nnz).astype(np.float32) + 1
    return X


# In a process of its own: what is measured there is printed as JSON


class Peak:
    """The most resident memory since it was made, in bytes."""

    def __init__(self):
        self.base = self.peak = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def _now(self):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def _watch(self):
        while True:
            self.peak = max(self.peak, self._now())
            time.sleep(0.02)

    @property
    def megabytes(self):
        return (self.peak - self.base) / 2**20


def fit_map(path, n):
    from skvae import VAETransformer

    peak, X = Peak(), mapped(path, (int(n), N_COLUMNS))
    begin = time.monotonic()
    vae = VAETransformer(random_state=0, max_iter=1, early_stopping=False).fit(X)
    fit = {"fit": peak.megabytes, "seconds": time.monotonic() - begin}
    Z = vae.transform(X)
    return fit | {"transform": peak.megabytes, "result": Z.nbytes / 2**20}


def fit_sparse(kind):
    from skvae import VAETransformer

    X = sparse_counts()
    n_bytes = X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
    X = X.toarray() if kind == "dense" else X
    peak = Peak()
    vae = VAETransformer(random_state=0, max_iter=1, likelihood="poisson").fit(X)
    megabytes = peak.megabytes
    return {"megabytes": megabytes, "csr": n_bytes / 2**20, "scores": vae.score_samples(X[:1000]).tolist()}


def train_together(rank, world, folder):
    """Rows a second of so many processes, of which this is one."""
    import torch
    import torch.distributed as dist

    from skvae import VAETransformer

    torch.set_num_threads(1)
    if int(world) > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=int(rank), world_size=int(world),
                                timeout=datetime.timedelta(minutes=5))  # fmt: skip
    n, size = 50_000, 50_000 // int(world)
    X = np.random.default_rng(0).standard_normal((n, 100), dtype=np.float32)[int(rank) * size :][:size]
    params = {"batch_size": 1024, "early_stopping": False, "random_state": 0, "warm_start": True}
    vae = VAETransformer(max_iter=1, hidden_layer_sizes=(512, 256), **params).fit(X)
    begin = time.monotonic()
    vae.set_params(max_iter=4).fit(X)
    return {"rate": 4 * n / (time.monotonic() - begin)}


WORKERS = {"map": fit_map, "sparse": fit_sparse, "together": train_together}


def start(*args):
    command = [sys.executable, __file__, "--worker", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def result(process):
    output, _ = process.communicate()
    return json.loads(output.splitlines()[-1])


# Parts


def measure_memory(results, folder, gigabytes):
    path, (n, p) = write_table(folder, gigabytes)
    found = result(start("map", path, n))
    name = f"map of {gigabytes:g} GB"
    results.add("memory", f"{name}, fit", rows=n, columns=p, value=found["fit"], unit="MB", bar="at most 1024")
    for what, unit in (("transform", "MB"), ("result", "MB"), ("seconds", "s")):
        case = {"transform": "transform after it", "result": "its result", "seconds": "fit of one pass"}[what]
        results.add("memory", f"{name}, {case}", rows=n, columns=p, value=found[what], unit=unit, bar="")


def measure_epoch(results, folder, repeats=5):
    from skvae import VAETransformer

    path, shape = write_table(folder, 0.5)
    sources = {"map": mapped(path, shape), "array": np.fromfile(path, np.float32).reshape(shape)}
    params = {"early_stopping": False, "max_iter": 1, "warm_start": True, "random_state": 0}
    vaes = {name: VAETransformer(**params).fit(X) for name, X in sources.items()}
    seconds = {name: [] for name in sources}
    for _ in range(repeats):
        for name, X in sources.items():
            begin = time.monotonic()
            vaes[name].fit(X)
            seconds[name].append(time.monotonic() - begin)
    weights = [[part.numpy() for part in vae.module_.state_dict().values()] for vae in vaes.values()]
    same = all(np.array_equal(*pair) for pair in zip(*weights, strict=True))
    n, p = shape
    ratio = median(one / other for one, other in zip(*seconds.values(), strict=True))
    results.add("epoch", "map / array", rows=n, columns=p, value=ratio, unit="times", bar="at most 1.3")
    results.add("epoch", "same bits", rows=n, columns=p, value=float(same), unit="", bar="1")


def measure_sparse(results, _folder):
    found = {kind: result(start("sparse", kind)) for kind in ("CSR", "dense")}
    n, p, _ = SPARSE
    bar = f"at most {2 * found['CSR']['csr'] + 300:.0f}"
    for kind, some in found.items():
        bar_of = bar if kind == "CSR" else ""
        results.add("sparse", f"{kind} fit", rows=n, columns=p, value=some["megabytes"], unit="MB", bar=bar_of)
    difference = np.abs(np.subtract(*(some["scores"] for some in found.values()))).max()
    results.add("sparse", "difference of scores", rows=n, columns=p, value=float(difference), unit="nats", bar="1e-6")


def measure_chunks(results, folder):
    from skvae import VAETransformer

    path, shape = write_table(folder, 0.05)
    X = np.fromfile(path, np.float32).reshape(shape)
    train, test = X[:-5000], X[-5000:]
    whole = VAETransformer(random_state=0).fit(train).score(test)
    vae, rng = VAETransformer(random_state=0), np.random.default_rng(0)
    chunks = np.array_split(rng.permutation(len(train)), N_CHUNKS)
    for _ in range(N_PASSES):
        for i in rng.permutation(N_CHUNKS):
            vae.partial_fit(train[chunks[i]])
    value = abs(vae.score(test) - whole) / abs(whole) * 100
    n, p = train.shape
    results.add("chunks", f"{N_CHUNKS} chunks against fit", rows=n, columns=p, value=value, unit="%", bar="at most 0.5")


def measure_processes(results, _folder, repeats=3):
    rates = {1: [], 2: []}
    for _ in range(repeats):
        for world in rates:
            with tempfile.TemporaryDirectory() as group:
                found = [result(process) for process in [start("together", i, world, group) for i in range(world)]]
            rates[world].append(min(one["rate"] for one in found))
    for world, some in rates.items():
        results.add("processes", f"{world}", rows=50_000, columns=100, value=median(some), unit="rows a second", bar="")


PARTS = {
    "memory": measure_memory,
    "epoch": measure_epoch,
    "sparse": measure_sparse,
    "chunks": measure_chunks,
    "processes": measure_processes,
}


def shown(row):
    """The value as the page has it, with a mark where it is not what was asked."""
    value = float(row["value"])
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    asked = row["bar"].split()
    missed = asked and (value < float(asked[-1]) if row["case"] == "same bits" else value > float(asked[-1]))
    return f"{text} {row['unit']}".strip() + (" (missed)" if missed else "")


def summarise(results):
    order = {part: i for i, part in enumerate(PARTS)}
    rows = sorted(results.rows(), key=lambda row: order[row["part"]])
    sizes = (f"{int(row['rows']):,} x {int(row['columns']):,}" for row in rows)
    cells = [[row["part"], row["case"], size, shown(row), row["bar"]] for row, size in zip(rows, sizes, strict=True)]
    print_table(["part", "what", "table", "measured", "asked"], cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=among(PARTS), default=list(PARTS), help="comma-separated")
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for files of tables")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, *rest = args.worker
        print(json.dumps(WORKERS[kind](*rest)))
        return
    results = Results(args.out / "scale.csv", KEYS, VALUES, keep=False)
    for part in [] if args.summary else args.part:
        PARTS[part](results, args.folder, *([args.gigabytes] if part == "memory" else []))
    summarise(results)


if __name__ == "__main__":
    main()
