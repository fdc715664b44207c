"""Several processes of torch.distributed train the model that one process would, by gloo on this machine."""

import datetime
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import sparse

from skvae import Chunks, VAETransformer
from skvae._data import rows as _rows

SMALL = {"z_dim": 2, "hidden_layer_sizes": (16,), "n_draws": 5, "device": "cpu", "random_state": 0}
STEPS = {"max_iter": 2, "early_stopping": False}
CUTS = {"even": (0, 900, 1800), "uneven": (0, 300, 1800), "hardly any": (0, 7, 1800), "none": (0, 0, 1800)}
CASES = {
    "even": ("curved", "even", STEPS),
    "uneven": ("curved", "uneven", STEPS),
    "hardly any": ("curved", "hardly any", STEPS),
    "none": ("curved", "none", STEPS),
    "holes": ("holes", "uneven", STEPS),
    "counts": ("counts", "uneven", STEPS | {"likelihood": "negative_binomial"}),
    "guessed bits": ("bits", "uneven", STEPS),
    "whole numbers": ("whole", "uneven", STEPS),
    "mixture": ("curved", "uneven", STEPS | {"prior": "mixture"}),
    "iwae": ("curved", "uneven", STEPS | {"objective": "iwae"}),
    "judged": ("curved", "uneven", {"max_iter": 2}),
    "stopped early": ("curved", "even", {"n_iter_no_change": 2, "max_iter": 60}),
    "few rows": ("few", "few", {"max_iter": 4}),
    "memory map": ("curved", "uneven", STEPS | {"source": "map"}),
    "sparse": ("counts", "uneven", STEPS | {"likelihood": "poisson", "source": "sparse"}),
    "two calls": ("curved", "uneven", {"calls": 2}),
}


def rows(kind):
    rng = np.random.default_rng(0)
    angle = rng.uniform(-3, 3, size=(1800, 1))
    curved = np.hstack([np.sin(k * angle) for k in range(1, 7)]) + 0.1 * rng.normal(size=(1800, 6))
    return {
        "curved": curved.astype(np.float32),
        "holes": np.where(rng.uniform(size=curved.shape) < 0.1, np.nan, curved),
        "counts": rng.poisson(np.exp(2 * curved)).astype(np.float64),
        "bits": (curved > 0.5).astype(np.float64),
        "whole": np.round(5 * curved).astype(np.int64),
        "few": curved[:300],
    }[kind]


def cut(kind, cuts):
    return (0, 120, 300) if kind == "few" else CUTS[cuts]


def model(params):
    return VAETransformer(**SMALL | {name: value for name, value in params.items() if name not in ("source", "calls")})


def fit(vae, X, calls=1):
    """Fit, or train in that many calls."""
    if calls == 1:
        return vae.fit(X)
    for _ in range(calls):
        vae.partial_fit(X)
    return vae


def results(vae, X):
    numbers = [vae.n_iter_, vae.net_.n_steps_, *vae.loss_curve_, *(vae.validation_scores_ or ())]
    weights = torch.nn.utils.parameters_to_vector(vae.module_.parameters()).detach().numpy()
    drawn = vae.sample(5, noise=True, random_state=0)
    arrays = [weights, vae.net_.offset, vae.kl_per_unit_, vae.aggregate_.means_, drawn, vae.transform(X)]
    return {f"{i}": np.asarray(part) for i, part in enumerate([numbers, *arrays])}


def in_group(rank, folder, work):
    """Run `work` in a process group of two; what it raises is written to a file."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=timeout)
    try:
        work(rank, folder)
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
    os._exit(0)  # nobody waits for a process that has gone


def start(work, folder):
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=in_group, args=(rank, folder, work)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def run(work, folder):
    """Run `work` in two processes, and return what each has raised."""
    for process in start(work, folder):
        process.join(300)
        assert process.exitcode == 0
    paths = [folder / f"error{rank}.txt" for rank in range(2)]
    return [path.read_text() if path.exists() else "" for path in paths]


def fit_cases(rank, folder):
    for name, (kind, cuts, params) in CASES.items():
        X = rows(kind)
        start, stop = cut(kind, cuts)[rank : rank + 2]
        part = X[start:stop]
        if "source" in params:
            _rows.MAX_HELD = 0
            part = sparse.csr_array(part)
        if params.get("source") == "map":
            np.save(folder / f"X{rank}.npy", X)
            part = np.load(folder / f"X{rank}.npy", mmap_mode="r")[start:stop]
        vae = fit(model(params), part, params.get("calls", 1))
        _rows.MAX_HELD = 2**24
        np.savez(folder / f"{name}{rank}.npz", **results(vae, X))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    assert run(fit_cases, path) == ["", ""]
    return path


@pytest.mark.filterwarnings("ignore:No latent unit is active")  # the curve has no linear part
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_model_of_one(folder, name):
    kind, _, params = CASES[name]
    one = results(fit(model(params), rows(kind), params.get("calls", 1)), rows(kind))
    first, second = (np.load(folder / f"{name}{rank}.npz") for rank in range(2))
    for key in one:
        np.testing.assert_array_equal(first[key], second[key])  # to the bit
    n_epochs, n_steps = one["0"][:2]
    np.testing.assert_array_equal(first["0"][:2], [n_epochs, n_steps])
    # Sums of another order differ in the last bits, and Adam's steps make more of that with time: after longer runs the
    # weights are others, and what they achieve is the same.
    is_short = n_steps < 60
    for key in ("0", "1", "2", "6") if is_short else ("0",):
        tolerance = 1e-6 if is_short else 1e-3
        np.testing.assert_allclose(first[key], one[key], rtol=tolerance, atol=tolerance)


def test_early_stopping_has_ended_training(folder):
    n_epochs, n_steps = np.load(folder / "stopped early0.npz")["0"][:2]
    assert n_steps >= 100
    assert n_epochs < 60


def refuse(rank, folder):
    X = rows("curved")[900 * rank :][:900]
    bad = X.copy()
    bad[5, 2] = np.inf
    attempts = [
        (bad if rank == 1 else X, {}),
        (X[:, : 6 - rank], {}),
        (X, {"likelihood": "poisson"}),
        ([["a"] * 6] * 900, {}),
        (Chunks([X]), {}),
    ]
    messages = []
    for values, params in attempts:
        _rows.MAX_HELD = 0 if isinstance(values, Chunks) else 2**24
        try:
            model(STEPS | params).fit(values)
        except ValueError as error:
            messages.append(str(error))
    (folder / f"messages{rank}.txt").write_text("\n---\n".join(messages))


def test_what_one_process_refuses_all_refuse(tmp_path):
    assert run(refuse, tmp_path) == ["", ""]
    first, second = ((tmp_path / f"messages{rank}.txt").read_text().split("\n---\n") for rank in range(2))
    assert len(first) == len(second) == 5
    assert first[0].startswith("Process 1 of 2 has refused its rows: Input X contains infinity")
    assert second[0].startswith("Input X contains infinity")
    assert first[1] == second[1]
    assert first[1].startswith("The processes must have tables of the same columns")
    assert all("Negative values in data passed" in message for message in (first[2], second[2]))
    assert "table of numbers" in first[3]
    assert "not chunks" in first[4]


def write_checkpoints(rank, folder):
    import skvae._training.checkpoint
    from skvae.objectives import ELBO

    skvae._training.checkpoint._SECONDS = 0
    begin = ELBO.begin_epoch

    def count(self, epoch, *rest):
        if epoch == 6 and rank == 1 and not (folder / "resumed").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, epoch, *rest)

    ELBO.begin_epoch = count
    X = rows("curved")[900 * rank :][:900]
    vae = model(STEPS | {"max_iter": 9, "checkpoint": folder / "run"}).fit(X)
    np.savez(folder / f"resumed{rank}.npz", **results(vae, rows("curved")))


def whole_run(rank, folder):
    X = rows("curved")[900 * rank :][:900]
    np.savez(folder / f"whole{rank}.npz", **results(model(STEPS | {"max_iter": 9}).fit(X), rows("curved")))


def test_a_killed_process_ends_the_others_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    begin = time.monotonic()
    first, second = start(write_checkpoints, tmp_path)
    first.join(60)
    second.join(60)
    assert second.exitcode == -signal.SIGKILL
    assert first.exitcode == 0  # an error, and no hang
    assert time.monotonic() - begin < 60  # before the group's time was up
    assert "RuntimeError" in (tmp_path / "error0.txt").read_text()
    assert len(list((tmp_path / "run").glob("*.pt"))) == 1
    (tmp_path / "resumed").touch()
    for path in (tmp_path / "error0.txt", tmp_path / "group"):
        path.unlink(missing_ok=True)
    assert run(write_checkpoints, tmp_path) == ["", ""]
    assert not list((tmp_path / "run").glob("*.pt"))
    (tmp_path / "group").unlink(missing_ok=True)
    assert run(whole_run, tmp_path) == ["", ""]
    for rank in range(2):
        resumed, whole = np.load(tmp_path / f"resumed{rank}.npz"), np.load(tmp_path / f"whole{rank}.npz")
        for key in whole:
            np.testing.assert_array_equal(resumed[key], whole[key])


def test_torchrun_runs_the_example(tmp_path):
    script = Path(__file__).parents[1] / "examples" / "processes.py"
    options = ["--rows", "1500", "--iterations", "2", "--out", str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = [
        subprocess.run([sys.executable, *launch, str(script), *options], capture_output=True, text=True, check=True)
        for launch in (launcher, [])
    ]
    scores = [re.search(r"1500 rows: (-?\d+\.\d+) nats", run.stdout) for run in found]
    assert all(scores), [run.stdout + run.stderr for run in found]
    assert abs(float(scores[0][1]) - float(scores[1][1])) <= 0.002  # in the last place that is printed
    assert (tmp_path / "vae.skvae").exists()
