import copy
import hashlib
import json
import os
import pickle
import re
from functools import partial

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import safetensors.torch
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError

from skvae import VAETransformer, load
from skvae._fast.optimizers import OPTIMIZERS
from skvae._io import files as _files
from skvae._model.build import REGISTRIES
from skvae.callbacks import Report, SampleGrid
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.objectives import ELBO

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 10, "random_state": 0}
EACH_LIKELIHOOD = [*LIKELIHOODS, Gaussian("shared"), Gaussian("row", noise_floor=0.01)]


def small(z_dim=2, **params):
    return VAETransformer(z_dim, **(SMALL | params))


def outputs(vae, X):
    draws = [vae.sample(5, noise=noise, random_state=1) for noise in (False, True)]
    return [*vae.posterior(X), vae.score_samples(X), vae.inverse_transform(np.asarray(draws[0])[:, :2]), *draws]


def attributes(vae):
    """What `fit` leaves on the estimator, the parameters included, by name; the net by its history."""
    values = vars(vae) | vars(vae)["_aggregate"]
    del values["net_"], values["_aggregate"]
    numpy = (np.ndarray, np.generic)  # a memory map is an array, and a NumPy number comes back as Python's
    plain = {name: repr(value.tolist() if isinstance(value, numpy) else value) for name, value in values.items()}
    return plain | {"history": vae.net_.history}


def assert_same(kept, vae, X):
    assert attributes(kept) == attributes(vae)
    for left, right in zip(outputs(kept, X), outputs(vae, X), strict=True):
        np.testing.assert_array_equal(left, right)


def saved(vae, folder):
    vae.save(folder / "vae.safetensors")
    return load(folder / "vae.safetensors")


def dumped(vae, folder, **params):
    joblib.dump(vae, folder / "vae.joblib")
    return joblib.load(folder / "vae.joblib", **params)


def skopsed(vae, folder):
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(vae)
    return skops.loads(data, trusted=skops.get_untrusted_types(data=data))


WAYS = {
    "save": saved,
    "pickle": lambda vae, _: pickle.loads(pickle.dumps(vae)),
    "joblib": dumped,
    "joblib, memory-mapped": lambda vae, folder: dumped(vae, folder, mmap_mode="r"),
    "deepcopy": lambda vae, _: copy.deepcopy(vae),
    "skops": skopsed,
}


# What is kept


@pytest.mark.parametrize("likelihood", EACH_LIKELIHOOD, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_kept_model_is_the_same_to_the_bit(way, likelihood, table, tmp_path):
    X = pd.DataFrame(table(likelihood if isinstance(likelihood, str) else "gaussian"), columns=[*"abcd", "e π"])
    vae = small(likelihood=likelihood).set_output(transform="pandas").fit(X)
    kept = WAYS[way](vae, tmp_path)
    assert_same(kept, vae, X)
    pd.testing.assert_frame_equal(kept.transform(X), vae.transform(X))
    assert_same(kept.partial_fit(X), vae.partial_fit(X), X)
    assert_same(clone(kept).fit(X), vae.fit(X), X)


VARIANTS = {
    "linear": {"hidden_layer_sizes": ()},
    "random start": {"init": "random", "hidden_layer_sizes": [4, 3]},
    "held-out rows": {"early_stopping": True},
    "cross-fitted": {"early_stopping": "auto"},
    "array and NumPy numbers": {
        "hidden_layer_sizes": np.array([4]),
        "objective": ELBO(0.3),
        "n_draws": np.int64(7),
    },
    "torch.device": {"device": torch.device("cpu")},
    "options": {"optimizer": partial(torch.optim.AdamW, weight_decay=1e-4, betas=(0.8, 0.9))},
    "class of optimizer": {"optimizer": torch.optim.Adam},
    **{name: {"optimizer": name} for name in OPTIMIZERS},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few rows and few steps
def test_saved_model_trains_on_to_the_same_bits(variant, table, tmp_path):
    X = table()
    vae = small(**VARIANTS[variant]).fit(X)
    kept = saved(vae, tmp_path)
    assert_same(kept, vae, X)
    assert_same(kept.partial_fit(X), vae.partial_fit(X), X)


def test_parameters_set_after_fit_are_kept_and_what_the_model_was_made_with_too(table, tmp_path):
    X = table()
    vae = small().fit(X)
    before = outputs(vae, X)
    kept = saved(vae.set_params(z_dim=5, hidden_layer_sizes=(3, 3), likelihood="poisson", optimizer="sgd"), tmp_path)
    assert kept.z_dim == 5
    for left, right in zip(outputs(kept, X), before, strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match="partial_fit can only be used where `z_dim` and `hidden_layer_sizes` and"):
        kept.partial_fit(X)
    former = {name: getattr(small(), name) for name in ("z_dim", "hidden_layer_sizes", "likelihood", "optimizer")}
    assert_same(kept.set_params(**former).partial_fit(X), vae.set_params(**former).partial_fit(X), X)


def test_history_of_batches_is_kept(table, tmp_path):
    grid = SampleGrid(tmp_path / "images", image_shape=(1, 5))
    vae = small(callbacks=[grid], batch_size=16).fit(table()).set_params(callbacks=None)
    assert [len(epoch["batches"]) for epoch in saved(vae, tmp_path).net_.history] == [4, 4]


def test_same_model_same_file(table, tmp_path):
    for name in "ab":
        small().fit(table()).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_are_there_for_others_to_read(table, tmp_path):
    vae = small().fit(table())
    vae.save(tmp_path / "vae")
    tensors = safetensors.torch.load_file(tmp_path / "vae")
    for name, value in vae.module_.state_dict().items():
        assert torch.equal(tensors[f"net.average.{name}"], value)


def test_streams_stay_untouched(table, tmp_path, global_streams):
    vae = small().fit(table())
    before = global_streams()
    saved(vae, tmp_path)
    assert global_streams() == before


def test_registered_classes_have_names_of_their_own():
    of_tables = 5  # a table, its columns and their likelihoods, which have no names
    assert len(_files._CLASSES) == sum(map(len, (*REGISTRIES.values(), OPTIMIZERS))) + of_tables


# Devices


@pytest.fixture
def pretend(monkeypatch):
    """A function that lets a net on the CPU look, to pickle and `save`, as if it were on another device."""

    def as_if(vae, device):
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: device)
        vae.net_.device = device
        return vae.set_params(device=device)

    return as_if


@pytest.mark.parametrize("way", ["save", "pickle", "joblib", "deepcopy"])
@pytest.mark.parametrize("device", ["cuda:99", "xpu:99"])
def test_model_from_a_device_that_is_missing_goes_on_on_the_cpu(device, way, pretend, table, tmp_path):
    X = table()
    vae = small().fit(X)
    expected = outputs(vae, X)
    kept = WAYS[way](pretend(vae, device), tmp_path)
    assert str(kept.net_.device) == "cpu"
    assert kept.device == device
    for left, right in zip(outputs(kept, X), expected, strict=True):
        np.testing.assert_array_equal(left, right)
    assert kept.partial_fit(X).n_iter_ == 3


def test_pickle_of_that_test_names_the_device(pretend, table):
    assert pickle.dumps(pretend(small().fit(table()), "xpu:99")).count(b"xpu:99") > 10  # one for each tensor


# What is refused, and leaves an older file whole


class OwnLikelihood(Gaussian):
    pass


class OwnEstimator(VAETransformer):
    pass


def own_optimizer(params, **kwargs):
    return torch.optim.SGD(params, **kwargs)


REFUSED = {
    "own likelihood": (small(likelihood=OwnLikelihood()), r"params.likelihood \(test_files.OwnLikelihood\)"),
    "own optimizer": (small(optimizer=own_optimizer), r"params.optimizer \(builtins.function\)"),
    "options of an own optimizer": (small(optimizer=partial(own_optimizer)), r"params.optimizer \(builtins.function\)"),
    "own estimator": (OwnEstimator(**SMALL), r"a class of your own \(test_files.OwnEstimator\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_only_pickle_can_keep(what, table, tmp_path):
    vae, message = REFUSED[what]
    (tmp_path / "vae").write_bytes(b"older")
    with pytest.raises(TypeError, match=rf"save cannot keep {message}.*use pickle"):
        vae.fit(table()).save(tmp_path / "vae")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]


CATEGORIES = {"Interval": pd.interval_range(0, 3), "Timestamp": pd.date_range("2020", periods=3)}
CATEGORIES["Period"] = CATEGORIES["Timestamp"].to_period("D")


@pytest.mark.parametrize("kind", CATEGORIES)
def test_categories_that_are_objects_are_refused_by_column(kind, tmp_path):
    frame = pd.DataFrame({"x": np.linspace(0, 1, 30), "k": pd.Categorical(list(CATEGORIES[kind]) * 10)})
    with pytest.raises(TypeError, match=rf"column 'k', which has categories of pandas\.{kind}: make them text"):
        small().fit(frame).save(tmp_path / "vae")
    vae = small().fit(frame.astype({"k": str}))
    assert saved(vae, tmp_path).score(frame.astype({"k": str})) == vae.score(frame.astype({"k": str}))


LEFT_OUT = {
    "callbacks": lambda folder: {"callbacks": [Report(), ("own", Report())]},
    "random_state": lambda folder: {"random_state": np.random.RandomState(0)},
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_no_part_of_the_model_is_left_out_with_one_warning(what, table, tmp_path):
    X, params = table(), LEFT_OUT[what](tmp_path)
    vae = small(**params).fit(X)
    with pytest.warns(UserWarning, match=rf"save leaves out what is no part of the model: {what}\. ") as caught:
        kept = saved(vae, tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for left, right in zip(outputs(kept, X), outputs(vae, X), strict=True):
        np.testing.assert_array_equal(left, right)
    bare = kept.get_params(deep=False)
    others = {name: value for name, value in vae.get_params(deep=False).items() if name not in params}
    assert {name: bare[name] for name in others} == others
    assert not any(bare[name] for name in params)
    assert_same(kept, saved(kept, tmp_path), X)  # nothing is left to be left out


def test_paths_are_kept_as_strings(table, tmp_path):
    kept = saved(small(checkpoint=tmp_path / "folder").fit(table()), tmp_path)
    assert kept.checkpoint == str(tmp_path / "folder")


def test_sklearn_callback_is_left_out(table, tmp_path):
    callback = pytest.importorskip("sklearn.callback")
    vae = small().set_callbacks(callback.ProgressBar()).fit(table())
    with pytest.warns(UserWarning, match="_skl_callbacks"):
        kept = saved(vae, tmp_path)
    assert_same(kept, saved(vae.set_callbacks(), tmp_path), table())


def test_header_that_safetensors_would_not_read_is_not_written(table, tmp_path, monkeypatch):
    vae = small().fit(table())
    monkeypatch.setattr(_files, "_MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="so long a history"):
        vae.save(tmp_path / "vae")
    assert not list(tmp_path.iterdir())


def test_longest_header_is_safetensors_own():
    with pytest.raises(safetensors.SafetensorError, match=r"(?i)header.*large"):
        safetensors.torch.load((_files._MAX_HEADER + 1).to_bytes(8, "little") + b"{" * 100)


def test_unfitted(tmp_path):
    with pytest.raises(NotFittedError):
        VAETransformer().save(tmp_path / "vae")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_save_leaves_the_old_file_whole(call, table, tmp_path, monkeypatch):
    vae = small().fit(table())
    vae.save(tmp_path / "vae")
    old = (tmp_path / "vae").read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="disk full"):
        vae.partial_fit(table()).save(tmp_path / "vae")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [old]


def test_file_behind_a_link_is_replaced(table, tmp_path):
    (tmp_path / "vae").write_bytes(b"older")
    (tmp_path / "link").symlink_to(tmp_path / "vae")
    vae = small().fit(table())
    vae.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(load(str(tmp_path / "vae")), vae, table())


# Files that are not what they should be


@pytest.fixture(scope="module")
def file(table, tmp_path_factory):
    """Bytes of the file of a tiny model."""
    path = tmp_path_factory.mktemp("files") / "vae"
    small(1, hidden_layer_sizes=(), optimizer="sgd").fit(table(n_features=2)).save(path)
    return path.read_bytes()


def assert_refused(data, path, reason=""):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"(?s)^{re.escape(str(path))}: .*{reason}"):
        load(path)


@pytest.mark.parametrize("first", [0, 1])
def test_changed_byte_is_noticed_wherever_it_stands(first, file, tmp_path):
    masks = np.random.default_rng(first).integers(1, 256, len(file))
    for position, mask in [*enumerate(masks)][first::6]:
        assert_refused(file[:position] + bytes([file[position] ^ mask]) + file[position + 1 :], tmp_path / "vae")


def test_changed_blank_in_the_header_is_noticed(file, tmp_path):
    changed = file.replace(b": 2", b":2 ", 1)  # the same to JSON
    assert changed != file
    assert_refused(changed, tmp_path / "vae", "changed after it was saved")


def test_cut_or_lengthened_file_is_refused(file, tmp_path):
    for length in range(0, len(file), 13):
        assert_refused(file[:length], tmp_path / "vae", "not a model that skvae saved, or it was cut short")
    assert_refused(file + b"\0", tmp_path / "vae", "not a model that skvae saved, or it was cut short")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_files_from_elsewhere_are_refused_unread(table, tmp_path):
    bomb = pickle.dumps(Bomb(str(tmp_path / "exploded")))
    tensors = {"weight": torch.ones(2)}
    foreign = [
        b"",
        b"{}",
        bomb,
        pickle.dumps(small().fit(table())),
        safetensors.torch.save(tensors),
        safetensors.torch.save(tensors, {"format": "pt"}),
        safetensors.torch.save(tensors, {"skvae": "{}"}),
        safetensors.torch.save(tensors, {"skvae": "no JSON"}),
        safetensors.torch.save(tensors, {"skvae": '{"format": 2, "sha256": null, "model": null}'}),
    ]
    for data in foreign:
        assert_refused(data, tmp_path / "vae", "not a model that skvae saved")
    assert not (tmp_path / "exploded").exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "vae")


def forged(file, change):
    """The file with other content and the digest that belongs to it."""
    tensors = safetensors.torch.load(file)
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    content = json.loads(header["__metadata__"]["skvae"])
    change(content, content["model"], tensors)
    content["sha256"] = "0" * 64
    data = safetensors.torch.save(tensors, {"skvae": json.dumps(content)})
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def test_forger_of_these_tests_knows_the_format(file, tmp_path):
    (tmp_path / "vae").write_bytes(forged(file, lambda content, model, tensors: model["params"].update(tol=0.5)))
    assert load(tmp_path / "vae").tol == 0.5


def put(*path, value):
    """A change that puts a value at a place in the model."""

    def change(content, model, tensors):
        for key in path[:-1]:
            model = model[key]
        model[path[-1]] = value

    return change


BIAS = "net.module.encoder.head.bias"
FORGERIES = {
    "newer format": (lambda content, *_: content.update(format=7), "has format 7, of another version"),
    "no format": (lambda content, *_: content.update(format=None), "has format None"),
    "unknown type": (put("params", "tol", value={"$function": "eval"}), r"KeyError: '\$function'"),
    "two types": (put("params", "tol", value={"$tuple": [], "$dict": []}), "too many values"),
    "unknown class": (put("params", "optimizer", value={"$class": "os.system"}), "KeyError: 'os.system'"),
    "unknown object": (put("likelihood", value={"$object": ["Popen", {"args": "ls"}]}), "KeyError: 'Popen'"),
    "unknown argument": (put("params", "likelihood", value={"$object": ["Gaussian", {"nose": 1}]}), "nose"),
    "bad argument": (
        put("params", "likelihood", value={"$object": ["Gaussian", {"noise": 1}]}),
        "'noise' parameter of Gaussian must be",
    ),
    "unknown parameter": (put("params", "gamma", value=1), "gamma"),
    "unknown key": (put("code", value="1"), "code"),
    "missing key": (lambda content, model, _: model.pop("class"), "cannot build"),
    "no model": (lambda content, *_: content.update(model=[]), "refers"),
    "other estimator": (put("class", value="PCA"), "it holds 'PCA'"),
    "attribute that is a method": (put("fitted", "transform", value=1), r"\['transform'\] are no fitted attributes"),
    "unknown key of the net": (put("net", "code", value="1"), "code"),
    "missing key of the net": (lambda content, model, _: model["net"].pop("history"), "history"),
    "unknown argument of the net": (put("net", "recipe", "gamma", value=1), "gamma"),
    "other objective": (put("net", "recipe", "objective", value={"$class": "Bernoulli"}), "cannot build"),
    "other size": (put("net", "recipe", "vae", "z_dim", value=3), "size mismatch"),
    "no optimizer": (put("net", "optimizer", value={}), "cannot build"),
    "missing tensor": (lambda content, model, tensors: tensors.pop(BIAS), BIAS),
    "tensor for nothing": (lambda content, model, tensors: tensors.update(x=torch.ones(1)), r"refers to \['x'\]"),
    "tensor for two": (put("net", "recipe", "lr", value={"$tensor": BIAS}), BIAS),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_content_that_skvae_does_not_know(forgery, file, tmp_path):
    change, reason = FORGERIES[forgery]
    assert_refused(forged(file, change), tmp_path / "vae", reason)


def test_the_decay_of_the_average_is_kept(table, tmp_path):
    X = table()
    vae = small().fit(X)
    vae.net_.ema_decay = 0.5
    vae.save(tmp_path / "vae")
    np.testing.assert_array_equal(load(tmp_path / "vae").partial_fit(X).transform(X), vae.partial_fit(X).transform(X))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_tables_of_words_are_trained_on_to_the_same_bits(way, tmp_path):
    X = load_iris().data
    frame = pd.DataFrame({"size": X[:, 0], "kind": np.where(X[:, 2] > 3, "a", "b"), "level": X[:, 3].round()})
    vae = small().fit(frame)
    kept = way(vae, tmp_path)
    np.testing.assert_array_equal(kept.partial_fit(frame).transform(frame), vae.partial_fit(frame).transform(frame))


COLUMNS = {
    "Index": (pd.Index(["kind", "level"]), ["kind", "level"]),
    "Series": (pd.Series([False, True, True]), [False, True, True]),
    "polars": (pl.Series(["kind"]), ["kind"]),
    "text": (np.array(["kind", "level"]), ["kind", "level"]),
    "objects": (np.array(["kind", 2], dtype=object), ["kind", 2]),
    "extension": (pd.array([2], dtype="Int64"), [2]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_names_of_columns_are_kept_in_whatever_they_came(kind, tmp_path):
    given, names = COLUMNS[kind]
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=60), "kind": rng.integers(0, 3, 60), "level": rng.integers(0, 2, 60)})
    vae = small(categorical_features=given, hidden_layer_sizes=pd.Series([8]), warm_start=True).fit(frame)
    kept = saved(vae, tmp_path)
    assert (list(kept.categorical_features), list(kept.hidden_layer_sizes)) == (names, [8])
    np.testing.assert_array_equal(kept.fit(frame).transform(frame), vae.fit(frame).transform(frame))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_is_frozen_stays_frozen(way, table, tmp_path):
    X = table()
    vae = small().fit(X)
    for name, part in vae.net_.module_.named_parameters():
        part.requires_grad_(not name.startswith(("encoder", "linear_encoder")))
    Z, score = vae.transform(X), vae.score(X)
    trained = way(vae, tmp_path).partial_fit(X)
    np.testing.assert_array_equal(trained.transform(X), Z)
    assert trained.score(X) != score
