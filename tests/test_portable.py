import copy
import pickle
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from skorch.callbacks import EarlyStopping, LRScheduler
from torch import nn

from skvae import VAETransformer
from skvae._io.portable import portable, to_bytes
from skvae.architectures import MLP, Custom
from skvae.objectives import ELBO

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 3, "early_stopping": False, "random_state": 0}


def custom():
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU())
    rng = torch.Generator().manual_seed(0)
    for part in (*encoder.parameters(), *decoder.parameters()):
        nn.init.normal_(part, generator=rng)
    return Custom(encoder, decoder)


MODELS = {
    "default": dict,
    "own modules": lambda: {"architecture": custom()},
    "dropout": lambda: {"architecture": MLP(dropout=0.2)},
    "vamp": lambda: {"prior": "vamp"},
    "flow": lambda: {"prior": "flow"},
    "warm-up": lambda: {"objective": ELBO(warmup=0.5)},
    "momentum": lambda: {"optimizer": partial(torch.optim.SGD, momentum=0.9), "learning_rate": 1e-4},
    "nadam": lambda: {"optimizer": "nadam"},
    "held out": lambda: {"early_stopping": True},
    "cross-fitted": lambda: {"early_stopping": "auto"},
    "callbacks": lambda: {"callbacks": [LRScheduler("StepLR", step_size=1), EarlyStopping("train_loss")]},
    "stream": lambda: {"random_state": np.random.RandomState(0)},
}


def fitted(model, table):
    return VAETransformer(2, **SMALL | MODELS[model]()).fit(table())


@pytest.mark.parametrize("model", MODELS)
def test_equal_models_have_one_hash(model, table):
    vae = fitted(model, table)
    twins = [pickle.loads(pickle.dumps(vae)), copy.deepcopy(vae), copy.copy(vae), fitted(model, table)]
    assert {joblib.hash(twin) for twin in twins} == {joblib.hash(vae)}


@pytest.mark.parametrize("model", ["default", "own modules", "callbacks"])
def test_equal_fits_have_equal_pickles(model, table):
    assert pickle.dumps(fitted(model, table)) == pickle.dumps(fitted(model, table))


@pytest.mark.parametrize("model", MODELS)
def test_twins_train_on_alike_and_other_models_have_another_hash(model, table):
    X, vae = table(), fitted(model, table)
    before = joblib.hash(vae)
    twins = [pickle.loads(pickle.dumps(vae)), copy.deepcopy(vae)]
    for twin in (vae, *twins):
        twin.partial_fit(X)
    assert {joblib.hash(twin) for twin in twins} == {joblib.hash(vae)} != {before}
    for twin in twins:
        np.testing.assert_array_equal(twin.transform(X), vae.transform(X))


def test_a_cached_function_of_a_model_is_computed_once(table, tmp_path):
    calls = []

    def score(vae, X):
        calls.append(1)
        return vae.score(X)

    cached, X = joblib.Memory(tmp_path, verbose=0).cache(score), table()
    scores = {cached(fitted("own modules", table), X) for _ in range(2)}
    assert len(calls) == len(scores) == 1


def test_an_unfitted_model_with_own_modules_has_one_hash_too():
    vae, other = (VAETransformer(architecture=custom()) for _ in range(2))
    assert joblib.hash(vae) == joblib.hash(other) == joblib.hash(pickle.loads(pickle.dumps(vae)))
    other.architecture.encoder[0].bias.data[0] += 1
    assert joblib.hash(other) != joblib.hash(vae)


def test_own_modules_go_to_other_processes(table):
    vae = VAETransformer(2, **SMALL, architecture=custom())
    alone = cross_val_score(vae, table(), cv=2)
    np.testing.assert_array_equal(cross_val_score(vae, table(), cv=2, n_jobs=2), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (4, 1, 2)])
def test_tensors_come_back_as_they_were(shape, dtype):
    tensor = torch.arange(24)[: int(np.prod(shape))].reshape(shape).to(dtype)
    for value in (tensor, tensor.permute(tuple(reversed(range(tensor.ndim))))):
        read = pickle.loads(to_bytes(value))
        assert torch.equal(read, value)
        assert read.dtype == value.dtype
        strides = zip(value.shape, read.stride(), value.stride(), strict=True)
        assert all(left == right for size, left, right in strides if size > 1)


def test_an_optimizer_keeps_the_parameters_of_its_module():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    module, read = pickle.loads(to_bytes([layer, optimizer]))
    assert read.param_groups[0]["params"][0] is module.weight
    assert read.state[module.weight]["step"] == 1
    assert [part.requires_grad for part in module.parameters()] == [True, False]


def test_a_generator_goes_on_where_it_was():
    rng = torch.Generator().manual_seed(3)
    torch.rand(5, generator=rng)
    read = pickle.loads(to_bytes(rng))
    assert torch.equal(torch.rand(5, generator=read), torch.rand(5, generator=rng))


def test_a_portable_module_is_read_as_the_module():
    layer = custom()
    read = pickle.loads(pickle.dumps(portable(layer)))
    for old, new in zip(layer.state_dict().values(), read.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert isinstance(next(read.parameters()), nn.Parameter)
