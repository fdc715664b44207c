import logging
import sys
from itertools import cycle

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.exceptions import NotFittedError

from skvae import VAETransformer
from skvae.architectures import ARCHITECTURES, Conv
from skvae.likelihoods import LIKELIHOODS, Gaussian

NETWORKS = [
    {"hidden_layer_sizes": (16,)},
    {"hidden_layer_sizes": ()},
    {"hidden_layer_sizes": (16,), "init": "random"},
]
EACH_LIKELIHOOD = [*LIKELIHOODS, Gaussian("row")]
CASES = [(*parts, NETWORKS[0]) for parts in zip(EACH_LIKELIHOOD, cycle(ARCHITECTURES))]
CASES += [("gaussian", "mlp", network) for network in NETWORKS[1:]]
CASES += [("gaussian", architecture, NETWORKS[0]) for architecture in ("residual", "conv")]


def fitted(X, likelihood="gaussian", **params):
    params = {"hidden_layer_sizes": (16,), "max_iter": 2, "early_stopping": False, "random_state": 0} | params
    return VAETransformer(2, likelihood=likelihood, **params).fit(X)


def run(path, X):
    (output,) = onnxruntime.InferenceSession(path).run(None, {"X": X} if X.shape[1] == 5 else {"Z": X})
    return output


@pytest.mark.parametrize(("likelihood", "architecture", "network"), CASES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # two epochs from random weights
def test_graphs_compute_what_the_estimator_does(likelihood, architecture, network, table, tmp_path):
    network = network | {"architecture": Conv((1, 5)) if architecture == "conv" else architecture}
    X = table(likelihood if isinstance(likelihood, str) else "gaussian", n_rows=70).astype(np.float32)
    vae = fitted(X, likelihood, **network)
    Z = vae.transform(X)
    for part, given, expected in [("encoder", X, Z), ("decoder", 2 * Z, vae.inverse_transform(2 * Z))]:
        vae.to_onnx(tmp_path / part, part=part)
        # float32 rounding of a few operations, relative to the scale of the output
        assert np.abs(run(tmp_path / part, given) - expected).max() < 1e-5 * np.abs(expected).max()
        assert run(tmp_path / part, given).dtype == np.float32


def test_units_of_X_are_kept_where_they_are_large(tmp_path):
    """Standardised in double precision: features around 1e6 with a spread of 1 leave few digits to float32."""
    X = (1e6 + np.random.default_rng(0).normal(size=(200, 5))).astype(np.float32)
    vae = fitted(X)
    vae.to_onnx(tmp_path / "encoder")
    expected = vae.transform(X)
    assert np.abs(run(tmp_path / "encoder", X) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def exported(table, tmp_path_factory):
    """A model and the file of its encoder."""
    vae, path = fitted(table(n_rows=70)), tmp_path_factory.mktemp("onnx") / "encoder"
    vae.to_onnx(path)
    return vae, path


def test_any_number_of_rows(exported, table):
    X, (vae, path) = table(n_rows=70).astype(np.float32), exported
    for n_rows in (1, 2, 3, 70):
        np.testing.assert_allclose(run(path, X[:n_rows]), vae.transform(X[:n_rows]), atol=1e-5)


def test_graph_is_valid_and_names_no_file_of_this_machine(exported):
    _, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [18]
    (row,) = onnxruntime.InferenceSession(path).get_inputs()
    assert (row.name, row.shape, row.type) == ("X", ["n_samples", 5], "tensor(float)")
    assert b".py" not in path.read_bytes()


def test_export_is_silent_and_leaves_no_trace(table, tmp_path, capfd, global_streams):
    vae = fitted(table())
    streams, samples, level = global_streams(), vae.sample(3, random_state=0), logging.getLogger("torch.onnx").level
    vae.to_onnx(tmp_path / "decoder", part="decoder")
    assert capfd.readouterr() == ("", "")
    assert global_streams() == streams
    np.testing.assert_array_equal(vae.sample(3, random_state=0), samples)
    assert vae.net_.module_.decoder.head.weight.requires_grad
    assert not vae.net_.module_.training  # as the fit left it
    assert logging.getLogger("torch.onnx").level == level
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


def test_unknown_part(table, tmp_path):
    with pytest.raises(ValueError, match=r"part must be 'encoder' or 'decoder'\. Got 'both' instead\."):
        fitted(table()).to_onnx(tmp_path / "vae", part="both")
    assert not list(tmp_path.iterdir())


def test_unfitted(tmp_path):
    with pytest.raises(NotFittedError):
        VAETransformer().to_onnx(tmp_path / "vae")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package(package, table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install skvae\[onnx\]"):
        fitted(table()).to_onnx(tmp_path / "vae")
