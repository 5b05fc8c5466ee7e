"""How the site is built: `uv run --group docs sphinx-build -W --keep-going -b html docs build/site`.

Every page is plain Markdown that a code host shows as it stands; the pages' order is that of the links in `index.md`.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from resilient_scan import __version__

project = "resilient_scan"
release = version = __version__
copyright = "the authors of resilient_scan"  # noqa: A001 - Sphinx's name for it
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "resilient_scan"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sphinx = False

myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]  # a generated part may begin below the page's first level

nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!resilient_scan\.).*"),
    ("py:.*", r"resilient_scan\.runner\.Input"),  # a type variable
    ("py:.*", r"resilient_scan\.(_trace|context|core\.flights|scanning|stores|service|settings|snapshot)\..*"),
]

default_role = "code"  # our docstrings write `name`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def _add_tree(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn the lists of links in `index.md` into Sphinx's own table of contents.

    Written into the page, a code host would show it as a block of code.
    """
    if docname != "index":
        return
    trees = []
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        targets = re.findall(r"^\* \[[^\]]+\]\(([\w/-]+)\.md\)", text, re.MULTILINE)
        if targets:
            lines = "\n".join(targets)
            trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n")
    source[0] += "\n" + "\n".join(trees)


def _prepare(_app: Sphinx, what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Bring a docstring into the form that napoleon reads as it is meant.

    It takes "Whether every scanner answered: completed, ..." of a property for a type and its description, and does not
    know `name, pipeline: of the scanner`, which describes two attributes.
    """
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " – ").replace("`", "``")
    text = re.sub(
        r"^    (\w+), (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)",
        lambda found: "\n".join(f"    {name}: {found[3]}" for name in (found[1], *found[2].split(", "))),
        "\n".join(lines),
        flags=re.MULTILINE,
    )
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    """Register what this file adds."""
    app.connect("autodoc-process-docstring", _prepare, priority=100)  # before napoleon
    app.connect("source-read", _add_tree)
