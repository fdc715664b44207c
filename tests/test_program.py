"""The program around us: what it sets changes no bit of ours, and stays as it set it."""

import contextlib
import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sklearn
import torch
from torch import nn

from skvae import VAETransformer, load, metrics
from skvae._system.program import multiplications, own_settings, threads_for
from skvae.architectures import Conv, Custom

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 5, "random_state": 0}


def custom():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(n_inputs, 8, device="cpu", dtype=torch.float32) for n_inputs in (4, 2)]
        wanted = torch.get_default_dtype()  # of numbers that each of these has
        return {"architecture": Custom(*(nn.Sequential(layer.bfloat16().to(wanted), nn.Tanh()) for layer in layers))}


MODELS = {
    "defaults": dict,
    "bernoulli": lambda: {"likelihood": "bernoulli"},
    "poisson": lambda: {"likelihood": "poisson"},
    "conv": lambda: {"architecture": Conv((2, 2), (4,))},
    "residual": lambda: {"architecture": "residual"},
    "flow": lambda: {"prior": "flow"},
    "mixture": lambda: {"prior": "mixture"},
    "vamp": lambda: {"prior": "vamp"},
    "nadam": lambda: {"optimizer": "nadam"},
    "own networks": custom,
}


@contextlib.contextmanager
def changed(set_value, value, former):
    set_value(value)
    try:
        yield
    finally:
        set_value(former)


def default_dtype(dtype):
    return changed(torch.set_default_dtype, dtype, torch.float32)


@contextlib.contextmanager
def all_of(*programs):
    """Several settings at once: each would be seen in the results."""
    with contextlib.ExitStack() as stack:
        for program in programs:
            stack.enter_context(program)
        yield


SKLEARN = {"transform_output": "pandas", "assume_finite": True, "array_api_dispatch": True}
PROGRAMS = {
    "float64 and device": lambda: all_of(default_dtype(torch.float64), torch.device("meta")),
    "bfloat16 and no gradients": lambda: all_of(default_dtype(torch.bfloat16), torch.no_grad()),
    "inference mode": torch.inference_mode,
    "device": lambda: changed(torch.set_default_device, "meta", None),
    "gradients off, deterministic, anomalies": lambda: all_of(
        torch.set_grad_enabled(False),
        changed(torch.use_deterministic_algorithms, True, False),
        changed(torch.autograd.set_detect_anomaly, True, False),
    ),
    "autocast, NumPy raises, scikit-learn": lambda: all_of(
        torch.autocast("cpu", dtype=torch.bfloat16),
        np.errstate(all="raise"),
        sklearn.config_context(**SKLEARN, enable_metadata_routing=True),
    ),
}


def results(make, X, folder):
    """Numbers of models that were fitted, streamed, pickled, copied and read, and the models."""
    vae = VAETransformer(2, **(SMALL | make())).fit(X).partial_fit(X)
    streamed = VAETransformer(2, **(SMALL | make())).partial_fit(X[:10]).partial_fit(X)
    models = [vae, streamed, pickle.loads(pickle.dumps(vae)), copy.deepcopy(vae)]
    if make is not custom:
        vae.save(folder / "vae")
        models.append(load(folder / "vae"))
    numbers = []
    for model in models:
        Z = np.asarray(model.transform(X))
        draws = [model.sample(5, noise=noise, random_state=0) for noise in (False, True)]
        draws.append(model.sample(5, latents="aggregate", random_state=0))
        numbers += [Z, *model.posterior(X), model.score_samples(X), model.inverse_transform(Z), *draws]
        numbers += [metrics.kl_per_unit(model, X), *metrics.log_likelihood(model, X, 10)]
    return numbers, models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_a_program_sets_changes_no_bit(name, table, tmp_path):
    make, X = MODELS[name], table(name if name in ("bernoulli", "poisson") else "gaussian", n_rows=40, n_features=4)
    expected, _ = results(make, X, tmp_path)
    for setting, program in PROGRAMS.items():
        if name == "own networks" and "device" in setting:
            continue  # networks of one's own have no weights there
        with program():
            found, models = results(make, X, tmp_path)
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(left, right, err_msg=setting)
        for model in models:
            model.partial_fit(X)  # no inference tensors are left in it


def test_settings_are_as_before_whatever_happens(table):
    with default_dtype(torch.float64), torch.no_grad(), np.errstate(all="raise"):
        with pytest.raises(ValueError, match="infinity"):
            VAETransformer(2, **SMALL).fit(np.full((5, 2), np.inf))
        VAETransformer(2, **SMALL).fit(table())
        assert torch.get_default_dtype() == torch.float64
        assert torch.zeros(1).dtype == torch.tensor(0.5).dtype == torch.float64
        assert not torch.is_grad_enabled()
        assert set(np.geterr().values()) == {"raise"}


def test_new_tensors_in_our_settings():
    with PROGRAMS["float64 and device"](), own_settings():
        made = [torch.zeros(2), torch.ones(2, dtype=None), torch.tensor([0.5]), torch.full((2,), 0.5), torch.eye(2)]
        assert {part.dtype for part in made} == {torch.float32}
        assert {part.device.type for part in [*made, torch.arange(3), torch.as_tensor(made[0])]} == {"cpu"}
        assert [torch.arange(3).dtype, torch.tensor([1]).dtype] == [torch.int64] * 2
        assert torch.as_tensor(np.zeros(2)).dtype == torch.zeros(2, dtype=torch.float64).dtype == torch.float64


def test_networks_without_weights_are_refused(table):
    with torch.device("meta"):
        architecture = Custom(nn.Linear(5, 8), nn.Linear(2, 8))
    with pytest.raises(ValueError, match="encoder of Custom is on the device 'meta'"):
        VAETransformer(2, architecture=architecture, **SMALL).fit(table())


# Threads and processes


def run(code, seconds, n_threads):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": n_threads} if n_threads else {}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(
        command, env=environment, timeout=seconds, capture_output=True, text=True, check=True
    ).stdout.split()


FORK = """if True:
    import multiprocessing, numpy as np, torch
    from skvae import VAETransformer
    torch.set_num_threads(2)
    X = np.random.default_rng(0).normal(size=(3000, 60))

    def fit():
        params = {"batch_size": 2048, "hidden_layer_sizes": (512,), "max_iter": 2, "early_stopping": False}
        return VAETransformer(5, device="cpu", random_state=0, **params).fit(X)  # large enough for two threads

    def work(_):
        return fit().score(X[:99]), vae.score(X[:99]), torch.get_num_threads()

    vae = fit()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(work, range(2))
    print(torch.get_num_threads(), *[n for *_, n in found], *[round(x, 3) for *scores, _ in found for x in scores])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("n_threads", ["", "2"])
def test_children_that_are_forked_after_a_fit_do_the_same(n_threads):
    parent, *children, a, b, c, d = run(FORK, 200, n_threads)
    assert (parent, children) == ("2", ["1", "1"])
    assert a == b == c == d


def test_little_work_takes_one_thread_and_gives_the_others_back():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(2**20):
            assert torch.get_num_threads() == 1
            with threads_for(2**40):
                assert torch.get_num_threads() == 1
        with threads_for(2**40):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)


def test_multiplications_of_layers_and_kernels():
    module = nn.ModuleList([nn.Linear(3, 5, bias=False), nn.Conv2d(1, 2, 3, bias=False)])
    assert multiplications(module, n_rows=7, n_features=16) == 7 * (15 + 18 * 16)


SMALL_FIT = """if True:
    import torch
    from skvae import VAETransformer
    from skvae._training import net as _net
    seen, step = set(), _net.Net.gradient
    _net.Net.gradient = lambda self, batch: (seen.add(torch.get_num_threads()), step(self, batch))[1]
    torch.set_num_threads(2)
    X = torch.randn(300, 60, generator=torch.Generator().manual_seed(0)).numpy()
    for size, batch_size in ((8, "auto"), (20_000, 300)):
        params = {"hidden_layer_sizes": (size,), "batch_size": batch_size, "device": "cpu"}
        VAETransformer(2, max_iter=1, early_stopping=False, **params).fit(X)
    print(sorted(seen), torch.get_num_threads())
"""


def test_small_fits_take_one_thread_and_large_ones_the_programs_number():
    assert run(SMALL_FIT, 100, "") == ["[1,", "2]", "2"]


def test_mkl_takes_one_thread_too_where_the_program_has_set_a_number():
    """It then goes by that number, not by OpenMP's; it is set for the calling thread alone."""
    code = (
        "import torch; from skvae._system.program import _set_mkl_threads, threads_for; torch.set_num_threads(2);"
        "mkl = _set_mkl_threads(); before = mkl(2)\n"
        "with threads_for(1): inside = mkl(1)\n"
        "print(before, inside, mkl(2))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() in (["2", "1", "2"], ["0", "0", "0"])  # or torch has no MKL
