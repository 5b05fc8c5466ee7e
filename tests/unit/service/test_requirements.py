"""The extra requires what the service imports: what other packages require may change, or admit old versions."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import DOCS

PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
PARTS_OF = {"markupsafe": "jinja2", "prometheus_client": "prometheus-client"}


def required(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", line)[0] for line in lines}


@pytest.mark.parametrize(
    "path", sorted((DOCS.parent / "resilient_scan" / "service").glob("*.py")), ids=lambda path: path.stem
)
def test_what_is_imported_is_required(path: Path) -> None:
    tree = ast.walk(ast.parse(path.read_text()))
    names = {
        name.partition(".")[0]
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    foreign = {PARTS_OF.get(name, name) for name in names} - set(sys.stdlib_module_names) - {"resilient_scan"}
    assert foreign <= required(PROJECT["dependencies"]) | required(PROJECT["optional-dependencies"]["service"])


def test_h11_takes_no_malformed_chunk() -> None:
    """Version 0.14 does: behind a proxy that does not, what one of them takes for a body is a request to the other."""
    assert "h11>=0.16" in PROJECT["optional-dependencies"]["service"]
