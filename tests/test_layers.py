import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skvae

LAYERS = [
    ["_component", "_products", "_random"],
    [
        "_blocks",
        "_aggregate",
        "_flat",
        "_module",
        "_linear",
        "likelihoods",
        "priors",
        "objectives",
        "architectures",
        "callbacks",
    ],
    ["_build", "_gradient"],
    ["_net"],
    ["_transformer"],
    ["metrics", "displays", "datasets"],
]
LEVELS = {module: level for level, modules in enumerate(LAYERS) for module in modules}
FILES = [path for path in Path(skvae.__file__).parent.glob("*.py") if path.stem != "__init__"]


def imported(node):
    """Names of this package's modules that an import statement reads."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        prefix = "skvae." * bool(node.level) + (node.module + "." if node.module else "")
        names = [prefix + alias.name for alias in node.names]
    else:
        return []
    return [name.split(".")[1] for name in names if name.startswith("skvae.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_point_down(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imported(node):
            assert LEVELS[name] < LEVELS[path.stem], f"{path.stem} imports {name}"


def test_import_reader_sees_each_form():
    lines = ["from . import likelihoods", "from .priors import X", "import skvae._net", "from skvae.callbacks import Y"]
    found = [name for line in lines for name in imported(ast.parse(line).body[0])]
    assert found == ["likelihoods", "priors", "_net", "callbacks"]


def test_import_is_silent_and_light():
    code = (
        "import sys, sklearn.model_selection, skorch.callbacks; before = set(sys.modules); import skvae;"
        "print({'matplotlib.pyplot', 'pandas', 'polars'} & {*sys.modules} - before)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert result.stderr == ""


def test_public_names_exist():
    assert all(hasattr(skvae, name) for name in skvae.__all__)
