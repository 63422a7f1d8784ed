"""The site: python -m sphinx -b html -c docs . docs/_build

Its source is the repository's root: links of a page lead to the same files in both.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from svda_jax import __version__ as release  # noqa: E402, F401

project = "svda-jax"
root_doc = "docs/index"
extensions = [
    *("myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"),
    *("sphinx.ext.mathjax", "sphinx.ext.viewcode"),
]
include_patterns = ["README.md", "docs/*.md", "experiments/results/**"]
exclude_patterns = ["docs/_build", "**/*.ipynb"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["toc.not_included"]  # tables of results: their pages link to them
napoleon_use_ivar = True
autodoc_member_order = "bysource"
highlight_language = "none"  # of equations; code says its own
html_theme = "furo"
html_title = "svda-jax"
html_copy_source = False


def setup(app):
    """Reads docstrings as people do: indented equations, names in single backticks."""
    app.connect("autodoc-process-docstring", _to_rst, priority=400)


def _to_rst(app, what, name, obj, options, lines):
    before = [""]
    for line in lines:
        if line.startswith("    ") and not before[-1] and not _indented(before):
            before += ["::", ""]
        before.append(re.sub(r"`([^`]+)`(?=(\w?))", _literal, line))
    lines[:] = before[1:]


def _literal(match):
    return f"``{match[1]}``" + ("\\ " if match[2] else "")


def _indented(lines):
    """Whether the last line with text is."""
    return next((line for line in reversed(lines) if line), "").startswith(" ")
