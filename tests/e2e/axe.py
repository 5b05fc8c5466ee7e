"""axe-core, from npm: what it has to say about a page."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.browser import Browser
from tests.support.needed import binary, missing

VERSION = "4.14.1"
_RUN = """
return axe.run(document, {resultTypes: ["violations"]}).then(
  (found) => found.violations.map((each) => [each.id, each.nodes.map((node) => node.html.slice(0, 200))])
)"""


def install(folder: Path) -> str:
    """Return its source; npm keeps what it has fetched, so that only the first time needs a network."""
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--no-save", "--prefix", str(folder)]
    done = subprocess.run(
        [binary("npm"), "install", *options, f"axe-core@{VERSION}"], capture_output=True, text=True, timeout=120
    )
    if done.returncode != 0:
        missing(f"npm cannot fetch axe-core {VERSION}, which needs a network once: {done.stderr[-300:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


def violations(browser: Browser, axe: str) -> list[Any]:
    """Return the rules that the open page breaks, with the elements that do."""
    if not browser.run("return Boolean(window.axe)"):
        browser.run(axe)
    found: list[Any] = browser.run(_RUN)
    return found
