"""What documentation promises: docstrings that numpydoc accepts, tooltips, no public module without its page."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from numpydoc.validate import validate
from torch import nn

import skvae
from skvae import VAETransformer

DOCS = Path(__file__).parents[1] / "docs"
BENCHMARKS = DOCS.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"
PAGES = sorted([*DOCS.glob("*.rst"), *DOCS.glob("guide/*.rst")])
MODULES = ["skvae"] + [f"skvae.{found.name}" for found in pkgutil.iter_modules(skvae.__path__) if found.name[0] != "_"]
LEFT_OPEN = {"GL01", "GL02", "GL03", "ES01", "SA01", "EX01"}  # matters of layout, sections that not everything needs
LEFT_OPEN |= {"RT02"}  # returned values have names, as in scikit-learn


def public_objects():
    """Name and object of all public classes, functions and methods that have words of their own."""
    for path in MODULES:
        module = importlib.import_module(path)
        own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", None) == path]
        for name in getattr(module, "__all__", [name for name in own if name[0] != "_"]):
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                continue
            yield f"{path}.{name}", thing
            for member, method in inspect.getmembers(thing, inspect.isroutine) if inspect.isclass(thing) else ():
                home = getattr(method, "__module__", None) or ""  # a method of a built-in class has none
                if member[0] != "_" and home.startswith("skvae.") and method.__doc__:
                    yield f"{path}.{name}.{member}", method


def excused(thing):
    """Codes of what need not be written out: what the signature says, and nn.Module's (*args, **kwargs)."""
    if inspect.isclass(thing):
        return {"PR01"} if issubclass(thing, nn.Module) and "__init__" not in vars(thing) else set()
    signature = inspect.signature(thing)
    annotated = all(p.annotation is not p.empty for p in signature.parameters.values() if p.name != "self")
    return {"PR01", "RT01"} if annotated and signature.return_annotation is not signature.empty else set()


PUBLIC = dict(public_objects())


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring(name):
    allowed = LEFT_OPEN | excused(PUBLIC[name])
    assert [error for error in validate(name)["errors"] if error[0] not in allowed] == []


def test_public_objects_are_found():
    expected = {"skvae.VAETransformer.score_samples", "skvae.likelihoods.Poisson", "skvae.datasets.load_images"}
    assert expected <= PUBLIC.keys()
    assert not [name for name in PUBLIC if "._" in name]


def test_html_repr_has_tooltips(table):
    """Each parameter and each fitted attribute is shown with its words from the docstring."""
    vae = VAETransformer(2, max_iter=2, early_stopping=False).fit(table())
    page = vae._repr_html_()
    shown = re.findall(r'class="param-doc-description"\s+style="position-anchor: --doc-link-(\w+);', page)
    fitted = [name for name in [*vars(vae), "module_", "aggregate_"] if name.endswith("_")]
    assert sorted(shown) == sorted([*vae.get_params(), *fitted])
    assert set(re.findall(r'href="([^"]*?)(?:#:~:text=[^"]*)?"', page)) == {"#"}  # nothing outside the page
    assert "Number of latent units" in page


def tables(text):
    """Its tables, each a list of lines."""
    return [block.split("\n") for block in map(str.strip, text.split("\n\n")) if block.startswith("|")]


def section(heading):
    """The README's words below a heading."""
    readme = (DOCS.parent / "README.md").read_text()
    return re.split(r"\n#+ ", readme.split(f"# {heading}\n")[1])[0]


@pytest.mark.parametrize(
    ("benchmark", "heading"),
    [("papers", "The papers' numbers"), ("speed", "Speed"), ("outliers", "Outliers")],
)
def test_readme_has_the_numbers_as_measured(benchmark, heading, monkeypatch, capsys):
    """Its tables are those that the benchmark prints of its results, but for those of when and where and of what is
    off: what the engine's parts bring is no user's concern."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sys.argv", [benchmark, "--summary"])
    importlib.import_module(benchmark).main()
    printed = tables(capsys.readouterr().out)
    assert tables(section(heading)) == [table for table in printed if not table[0].startswith(("| part |", "| off |"))]


def test_readme_has_every_row_of_the_papers():
    (table,) = tables(section("The papers' numbers"))
    measured = (RESULTS / "papers.csv").read_text().splitlines()
    assert len(table) == len(measured) + 1  # the rule below the head: no result is left out


def test_readme_has_the_errors_of_imputation():
    """Means over tables and seeds."""
    table = tables(section("Missing cells and synthetic rows, measured"))[0]
    measures = ["avg_mae", "min_mae", "mae", "mse"]
    errors = pd.read_csv(RESULTS / "imputation.csv").groupby("method")[measures].mean()
    for line, method in zip(table[2:], ("skvae", "iterative_draws", "iterative", "knn", "missforest"), strict=True):
        means = " | ".join(f"{mean:.3f}" for mean in errors.loc[method])
        assert line.replace(" (missed)", "").split(" | ", 1)[1] == f"{means} |"


def test_each_public_module_has_its_page():
    words = (DOCS / "api.rst").read_text().split()  # of its lists
    assert [module for module in MODULES[1:] if module.removeprefix("skvae.") not in words] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page_runs(path, tmp_path, monkeypatch):
    """In a folder that is thrown away."""
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testfile(str(path), module_relative=False)
    plt.close("all")
    assert failed == 0  # what failed has been printed


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_code_that_is_only_shown_compiles(path):
    """Code blocks need packages that the tests lack; all others are doctests."""
    for block in re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", path.read_text()):
        tree = ast.parse(inspect.cleandoc(block))
        for node in ast.walk(tree):
            for name in [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []:
                if node.module.split(".")[0] in ("skvae", "sklearn", "skorch"):
                    assert hasattr(importlib.import_module(node.module), name)
