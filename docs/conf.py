"""How the documentation is built: sphinx-build -W --keep-going -n docs docs/_build."""

import warnings

from sphinx_gallery.sorting import ExplicitOrder

import skvae

EXAMPLES = [  # in this order; others after them
    "factor_analysis", "latent_space", "samples", "aggregate", "traversal", "interpolation", "uncertainty",
    "likelihoods", "counts", "own_likelihood", "z_dim", "collapse", "training", "denoising", "outliers", "gridsearch",
]  # fmt: skip

project = "skvae"
author = "The skvae developers"
copyright = "2026, the skvae developers"
version = release = skvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
default_role = "literal"
suppress_warnings = ["config.cache"]  # the gallery's configuration holds a function

if tags.has("online"):  # noqa: F821 (Sphinx's): links into other projects need a look at their sites
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "skorch": ("https://skorch.readthedocs.io/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
nitpick_ignore_regex = [(r"py:.*", r"(torch|sklearn|skorch|numpy|matplotlib|collections|nn)(\..*)?")]
nitpick_ignore_regex += [(r"py:.*", r"(Tensor|Sequence)")]
# `Batch` and `VAE` are what a component is handed, never what a user makes: they have no pages of their own.
nitpick_ignore_regex += [(r"py:class", r"skvae\.(_data\.batch\.Batch|_model\.module\.VAE)")]

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "signature"
numpydoc_show_class_members = False  # the template lists them
numpydoc_class_members_toctree = False

copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "skvae"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
toc_object_entries_show_parents = "hide"
html_show_sourcelink = False
NO_SIDEBAR = ("index", "quickstart", "faq", "architecture", "benchmarks", "changelog", "CONTRIBUTING")
html_sidebars = {page: [] for page in NO_SIDEBAR}
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def _before_example(gallery_conf, path):
    """An example that warns is a fault; estimators link to their page here."""
    warnings.filterwarnings("error", module="__main__|skvae")
    skvae.VAETransformer._doc_link_template = "../generated/skvae.VAETransformer.html"


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "ignore_pattern": "mnist|processes",
    "filename_pattern": "/plot_",
    "reset_modules": ("matplotlib", _before_example),
    "doc_module": ("skvae",),
    "backreferences_dir": "generated/backreferences",
    "reference_url": {"skvae": None},
    "within_subsection_order": ExplicitOrder([f"plot_{name}.py" for name in EXAMPLES] + ["*"]),
    "show_memory": False,
    "min_reported_time": 1,
    "copyfile_regex": "",
}
