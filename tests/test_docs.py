"""What documentation promises: docstrings that numpydoc accepts, tooltips, no public module without its page."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import shutil
import warnings
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
        for name in module.__all__:
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
    """Tables of a text, each a list of its rows."""
    found = re.findall(r"^\.\. csv-table::\n(?:   :.*\n)*\n((?:   .*\n)+)", text + "\n", re.MULTILINE)
    return [[row.strip() for row in table.splitlines()] for table in found]


def section(heading):
    """The words of the page of benchmarks below a heading."""
    page = (DOCS / "benchmarks.rst").read_text()
    return re.split(r"\n.+\n-+\n", page.split(f"\n{heading}\n{'-' * len(heading)}\n")[1])[0]


MEASURED = {
    "Density and latent features": "quality",
    "Images": "quality",
    "The papers' numbers": "papers",
    "Missing cells": "imputation",
    "Synthetic rows": "synthesis",
    "Outlier detection": "outliers",
    "Large tables": "scale",
    "Seconds of a fit": "fit",
    "Speed of a step": "speed",
}


@pytest.mark.parametrize("heading", MEASURED)
def test_benchmarks_are_as_measured(heading, tmp_path, monkeypatch, capsys):
    """Tables of the page are those that the section's benchmark prints of its results."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    results = shutil.copytree(RESULTS, tmp_path / "results")  # a summary may draw into it
    monkeypatch.setattr("sys.argv", [MEASURED[heading], "--summary", "--out", str(results)])
    benchmark = importlib.import_module(MEASURED[heading])
    monkeypatch.setattr(benchmark, "threadpool_limits", lambda n_threads: None, raising=False)
    with warnings.catch_warnings():  # some set filters
        benchmark.main()
    plt.close("all")
    printed, shown = tables(capsys.readouterr().out), tables(section(heading))
    assert shown
    assert [table for table in shown if table not in printed] == []


def words_of_results():
    """What the page's sentences say of results that no table shows, by section."""
    found = {path.stem: pd.read_csv(path) for path in RESULTS.glob("*.csv")}
    coverage, margin = found["coverage"], found["holes"].margin
    holes = found["holes"].groupby("share").margin
    covered = (100 * coverage.groupby("share").covered.mean()).round().astype(int).tolist()
    by_table = 100 * coverage.groupby(["table", "share"]).covered.mean()
    n_right = by_table.between(88, 92).sum()
    seconds, errors = (found["imputation_time"].set_index("method")[name] for name in ("seconds", "mse"))
    frechet = found["samples"].groupby("latents").frechet.mean()
    bounds, cycled = (
        found["mnist"].set_index(["init", "schedule", "epoch"]).elbo.loc["linear", schedule]
        for schedule in ("default", "one-cycle")
    )
    fits = found["fit"].set_index(["table", "estimator", "condition", "threads"]).seconds
    ours, factors = (fits["1,000,000 x 100", name, "idle", "1"] for name in ("VAETransformer", "FactorAnalysis"))
    return {
        "Seconds of a fit": [f"1,000,000 x 100 takes {ours:.0f} s, and {factors:.0f} s"],
        "Missing cells": [
            "{}, {} and {} % lie within".format(*covered),
            f"{by_table.min():.0f} to {by_table.max():.0f} %: {n_right} of the {len(by_table)} are",
            f"(missed by {len(by_table) - n_right})",
            f"{seconds['skvae']:.0f} s and the trees {seconds['missforest']:.0f} s",
            f"squared errors of {errors['skvae']:.3f} and {errors['missforest']:.3f}",
            f"{(margin >= 0).sum()} of {len(margin)} cells of 19 tables",
            f"the worst by {margin.min():.3f} nats",
            f"{holes.median().min():.1f} to {holes.median().max():.1f} in the median",
        ],
        "Images": [
            f"{bounds[0]:.1f} nats before the first step",
            f"{bounds[3]:.1f} after three epochs",
            f"learning rate to 4e-3 gives {cycled[3]:.1f}",
        ],
        "The papers' numbers": [
            f"{frechet['prior']:.2f} for draws of the prior and {frechet['aggregate']:.2f} with",
            f"the test images it is {frechet.drop(['prior', 'aggregate']).item():.2f}",
        ],
    }


@pytest.mark.parametrize("heading", ["Seconds of a fit", "Missing cells", "Images", "The papers' numbers"])
def test_sentences_about_benchmarks_are_as_measured(heading):
    text = " ".join(section(heading).split())
    assert [words for words in words_of_results()[heading] if words not in text] == []


def test_no_table_stands_outside_of_these_sections():
    page = (DOCS / "benchmarks.rst").read_text()
    assert len(tables(page)) == sum(len(tables(section(heading))) for heading in MEASURED)


def test_benchmarks_show_all_aims_of_speed(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    _, _, aims, _ = tables(section("Speed of a step"))
    assert len(aims) == len(importlib.import_module("speed").AIMS) + 1


def test_benchmarks_have_every_row_of_the_papers():
    shown = tables(section("The papers' numbers"))
    measured = (RESULTS / "papers.csv").read_text().splitlines()
    assert sum(len(table) - 1 for table in shown) == len(measured) - 1  # no result is left out


def test_architecture_names_what_is_there():
    """Every module of the package, and no file, class or function that is gone."""
    page, root = (DOCS / "architecture.rst").read_text(), DOCS.parent
    files = set(re.findall(r"[\w/]+\.py\b", page))
    assert [name for name in files if not ((root / "skvae" / name).exists() or (root / name).exists())] == []
    package = root / "skvae"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert {name for name in modules if not name.startswith("displays/")} <= files
    code = " ".join(path.read_text() for folder in ("skvae", "tests") for path in (root / folder).rglob("*.py"))
    names = re.findall(r"``(?:\w+\.)*(\w+)``", page)
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


def test_links_of_the_readme_lead_somewhere():
    readme = DOCS.parent / "README.md"
    links = re.findall(r"\]\(([^):]+)\)", readme.read_text())
    assert links
    assert [link for link in links if not (readme.parent / link).exists()] == []


def test_each_public_module_says_what_is_public():
    assert [path for path in MODULES if not hasattr(importlib.import_module(path), "__all__")] == []


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
