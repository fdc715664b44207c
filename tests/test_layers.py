import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skvae

LAYERS = [
    ["_data.cells"],
    [
        "_io.atomic",
        "_data.arrow",
        "_data.batch",
        "_model.component",
        "_model.sums",
        "_model.support",
        "_system.device",
        "_data.holes",
        "_data.marginals",
        "_fast.optimizers",
        "_fast.products",
        "_data.rows",
        "_training.schedule",
        "_estimator.pipelines",
    ],
    [
        "_fast.replay",
        "_model.counts",
        "_model.gaussian",
        "_model.likelihood",
        "_data.column",
        "_data.containers",
        "_data.input",
        "_system.program",
        "_system.random",
    ],
    [
        "_training.processes",
        "_data.blocks",
        "_model.aggregate",
        "_training.checks",
        "_io.portable",
        "_data.stream",
        "_data.table",
        "priors",
        "inits",
        "architectures",
    ],
    ["_model.likelihood", "_training.checkpoint"],
    ["likelihoods", "_model.columns", "_model.module"],
    ["objectives", "_model.linear", "_model.refine", "_io.onnx", "_data.split", "_training.stack"],
    ["_fast.gradient", "_model.calibration", "_model.fitted", "callbacks"],
    ["_training.guard"],
    ["_model.build"],
    ["_training.net"],
    ["_io.files", "_estimator.inference", "_training.made_with"],
    ["_estimator.training", "_estimator.generation"],
    ["_transformer"],
    ["_io.load", "_imputation", "_outliers", "metrics", "datasets", "displays._estimator", "displays._figure"],
    ["displays._latent", "displays._outliers", "displays._paths", "displays._rows", "displays._training"],
    ["displays"],
]
LEVELS = {module: level for level, modules in enumerate(LAYERS) for module in modules}
ROOT = Path(skvae.__file__).parent
FILES = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


def statements(tree):
    """All of a module but those that only name types, which may be of layers above."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from statements(node)


def imported(node, package=("skvae",)):
    """Names of skvae's modules that an import statement in a module of `package` reads."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else ()
        names = [".".join([*above, *([node.module] if node.module else []), alias.name]) for alias in node.names]
    else:
        return []
    return [module_of(name.removeprefix("skvae.")) for name in names if name.startswith("skvae.")]


def module_of(name):
    """The longest beginning of a dotted name that is a module."""
    return name if name in LEVELS or "." not in name else module_of(name.rpartition(".")[0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(part for part in parts if part != "__init__")
    for node in statements(ast.parse(path.read_text())):
        for name in imported(node, ("skvae", *parts[:-1])):
            assert LEVELS[name] < LEVELS[module], f"{module} imports {name}"


def test_import_reader_sees_each_form():
    lines = [
        "from . import likelihoods",
        "from .priors import X",
        "import skvae._training.net",
        "from skvae.callbacks import Y",
    ]
    found = [name for line in lines for name in imported(ast.parse(line).body[0])]
    assert found == ["likelihoods", "priors", "_training.net", "callbacks"]


def test_import_reader_sees_a_package():
    lines = [
        "from ._figure import panels",
        "from ..priors import X",
        "from .. import priors",
        "from .._training import net",
        "import skvae.displays._paths",
    ]
    found = [name for line in lines for name in imported(ast.parse(line).body[0], ("skvae", "displays"))]
    assert found == ["displays._figure", "priors", "priors", "_training.net", "displays._paths"]


def test_no_file_is_longer_than_is_read_at_once():
    assert [path.name for path in FILES if len(path.read_text().splitlines()) > 600] == []


def test_a_type_of_a_layer_above_is_not_imported():
    tree = ast.parse("from ..priors import X\nif TYPE_CHECKING:\n    from .net import Net\nelse:\n    Net = X")
    assert [type(node).__name__ for node in statements(tree) if isinstance(node, ast.stmt)] == ["ImportFrom"]


def test_what_is_around_a_model_does_not_ask_its_net():
    """Metrics and displays go by `Model`, or by what is public."""
    around = [ROOT / "metrics.py", *ROOT.glob("displays/*.py")]
    assert [path.name for path in around if "net_." in path.read_text()] == []


def test_import_is_silent_and_light():
    code = (
        "import sys, sklearn.model_selection, skorch.callbacks; before = set(sys.modules); import skvae.displays;"
        "print({'matplotlib.pyplot', 'pandas', 'polars'} & {*sys.modules} - before)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert result.stderr == ""


def test_a_first_fit_imports_no_compiler():
    """torch's optimizers and its `skip_init` would, which takes longer than a small fit."""
    code = (
        "import sys, numpy as np; from skvae import VAETransformer;"
        "X = np.random.default_rng(0).normal(size=(50, 3));"
        "VAETransformer(2, max_iter=2, device='cpu').fit(X).partial_fit(X);"
        "print({'torch._dynamo', 'sympy'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_public_names_exist():
    assert all(hasattr(skvae, name) for name in skvae.__all__)
