"""Sphinx's settings for the book. `make.py` assembles its sources and builds it."""

import re
from pathlib import Path
from typing import Any

import plotly
from docutils import nodes
from latex2mathml.converter import convert
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

project = "Mechanistic interpretability in notebooks"
html_title = project
copyright = "Apache-2.0"
html_show_sphinx = False
html_show_copyright = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
toc_object_entries_show_parents = "hide"
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
default_role = "code"  # in docstrings, `one backtick` is code
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_theme_options: dict[str, Any] = {
    "use_download_button": False,  # each notebook's page has its own link, to the notebook as it is
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # one search button, in the sidebar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
_ARRAY_LIKE = stringify_annotation(ArrayLike, "smart")
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
html_static_path = ["style", str(PLOTLY)]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_copy_source = False
html_use_index = html_domain_indices = False  # the search and the reference's pages lead further
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw without a script; docstrings are Markdown."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _short)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def _display(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _short(
    app: Sphinx, what: str, name: str, thing: object, options: object, given: str, result: str
) -> tuple[str, str] | None:
    """A signature of short names, in which numpy's ArrayLike is not spelt out over ten lines."""
    if not given:
        return None
    text = given.replace(_ARRAY_LIKE, "ArrayLike")
    return re.sub(r"~[\w.]+\.(\w+)", r"\1", text), result


def _plain(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """What reStructuredText would read as markup in a docstring, outside `code`, is text."""
    text: list[str] = []
    for line in lines:
        if what == "module" and line.startswith("    "):  # code, and no quotation
            if not text[-1] and not text[-2].startswith("    "):
                text += [".. code-block:: python", ""]
            text.append(line)
            continue
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        item = re.match(r" *- ", line)
        if item and text and text[-1] and not re.match(item[0], text[-1]):
            text.append("")  # a list may follow its sentence without a blank line
        text.append("`".join(parts))
    lines[:] = text
