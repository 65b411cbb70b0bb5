"""How the pages of this folder and the docstrings become a site: `sphinx-build docs build/site`."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.hooks import link_modules, prepare_docstring, skip_aliases
from docs.reference_pages import write_pages

project = "compress-env"
author = "The compress-env developers"
version = release = installed_version("compress-env")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["generated/*"]

html_theme = "furo"
html_title = "compress-env"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included docstring starts with its second level

# In docstrings `name` is code, and a link where the reference has something of this name.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False

nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    # Other packages' names, not looked up as the site is built offline.
    (
        "py:.*",
        r"(collections|gymnasium|io|nn|np|numpy|os|pandas|pathlib|PIL|pd|stable_baselines3"
        r"|th|torch|typing)\..*",
    ),
    # Aliases and variables of types, which have no entry of their own.
    (
        "py:class",
        r"([\w.]+\.)?([A-Z]|Config|Decided|Distribution|FloatArray|Index|NDArray|Side|Tensor|VecEnv)",
    ),
]


def setup(app: Sphinx) -> None:
    """Write the pages that the packages make, and read docstrings as they are written."""
    write_pages(Path(__file__).parent)
    app.connect("source-read", link_modules)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_aliases)
