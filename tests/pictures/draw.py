"""Draw the dashboards: `python -m tests.pictures.draw` puts them into grafana/pictures.

Grafana's own components draw them, in a headless Chromium; a Grafana server is not part of it. States over time are the
exception: their panel is not among the components, so the page draws them itself. What is shown is the past of a fleet
that runs every minute, as we ship it, in a real Prometheus (see `tests.grafana.history`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

from grafana.source.__main__ import HOME
from tests.grafana.history import BROKEN, Cadence, history
from tests.support.needed import binary

PAGE = Path(__file__).parent
SHIPPED = Cadence("resilient-scan", 60, 15, phases={"healthy": 70, "ill": 50})
SHOWN = {"fleet": ".+", "scanner": BROKEN}
HEAD, ROW, WIDTH = 112, 38, 1600  # as in page.jsx


def draw(into: Path, work: Path) -> dict[str, str]:
    """Draw both dashboards and return the pages' HTML.

    Args:
        into: where the pictures go.
        work: an empty directory for the page, its packages and Prometheus.
    """
    site, folder = built(work / "site"), work / "prometheus"
    folder.mkdir()
    with history(folder, [SHIPPED]) as past, served(site) as url:
        return {name: _shot(name, f"{url}/index.html?{_query(name, past.api.url)}", site, into) for name in SHOWN}


def built(site: Path, extra: dict[str, str] | None = None) -> Path:
    """Install the page's packages and build it; `extra` has more dashboards, by file name."""
    shutil.copytree(PAGE, site, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for board in HOME.joinpath("dashboards").glob("*.json"):
        shutil.copy(board, site)
    for name, text in (extra or {}).items():
        (site / name).write_text(text)
    _run(site, binary("npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline")
    options = ["--bundle", "--jsx=automatic", "--loader:.svg=text", "--loader:.ttf=empty", "--log-level=error"]
    options += ['--define:process.env.NODE_ENV="production"', "--alias:react-custom-scrollbars-2=./scrollbars.js"]
    _run(site, binary("npm"), "exec", "--", "esbuild", "page.jsx", "--outfile=page.js", *options)
    return site


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a directory on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002 - its name in the base class
        pass


def opened(url: str, height: int, *, picture: Path | None = None) -> str:
    """Open a page in Chromium and return its HTML once it has drawn itself, or take a picture of it."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        options += [f"--window-size={WIDTH},{height}", "--virtual-time-budget=30000"]
        options += ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
        done = subprocess.run([binary("chromium"), *options, url], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _shot(name: str, url: str, site: Path, into: Path) -> str:
    board = json.loads((site / f"{name}.json").read_text())
    height = HEAD + ROW * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    html = opened(url, height)
    opened(url, height, picture=site / f"{name}.png")
    _run(site, "node", "shrink.mjs", f"{name}.png", str(into / f"{name}.png"))
    return html


def _query(name: str, url: str) -> str:
    end = SHIPPED.end("ill")
    asked = {"board": name, "url": url, "from": end - 5400, "to": end, "scrape": SHIPPED.scrape, "scanner": SHOWN[name]}
    return urlencode(asked)


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def panels(html: str) -> dict[str, bool]:
    """Return the panels that were drawn, and whether they had something to draw."""
    return {title: empty == "false" for title, empty in re.findall(r'data-panel="([^"]+)" data-empty="(\w+)"', html)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for shown, page in draw(HOME / "pictures", Path(scratch)).items():
            sys.stdout.write(f"{shown}: {len(panels(page))} panels, {page.count('class=&quot;error')} errors\n")
