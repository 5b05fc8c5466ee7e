"""Draw the dashboards from a live Prometheus: `python -m tests.pictures.draw` puts them into grafana/pictures.

Grafana's own components draw them, in a headless Chromium; a Grafana server is not part of it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

from grafana.source.__main__ import HOME
from tests.e2e.conftest import live_fleet, often
from tests.e2e.monitoring import Api, prometheus
from tests.support.needed import binary

PAGE = Path(__file__).parent
CALM, TROUBLE = 60, 200  # seconds; an alert fires two minutes after its condition holds
SHOWN = {"fleet": ".+", "scanner": "insider_buying"}
HEAD, ROW, WIDTH = 112, 38, 1600  # as in page.jsx


def draw(into: Path, work: Path, calm: float = CALM, trouble: float = TROUBLE) -> dict[str, str]:
    """Draw both dashboards and return the pages' HTML; this takes as long as the fleet lives, and npm besides.

    Args:
        into: where the pictures go.
        work: an empty directory for the page, its packages and Prometheus.
        calm: seconds in which everybody is well.
        trouble: seconds after that.
    """
    site = built(work / "site")
    with live_fleet(calm, calm + trouble + 60) as target, prometheus(_folder(work), _config(target, work)) as api:
        began = time.time()
        threading.Event().wait(calm + trouble)
        span = (began + 5, time.time() - 1)
        with served(site) as url:
            return {name: _shot(name, f"{url}/index.html?{_query(name, api, span)}", site, into) for name in SHOWN}


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


def _query(name: str, api: Api, span: tuple[float, float]) -> str:
    asked = {"board": name, "url": api.url, "from": span[0], "to": span[1], "scrape": 1, "scanner": SHOWN[name]}
    return urlencode(asked)


def _folder(work: Path) -> Path:
    folder = work / "prometheus"
    folder.mkdir()
    return folder


def _config(target: str, work: Path) -> dict[str, object]:
    rules = [often(name, work / "prometheus") for name in ("recording.yml", "alerts.yml")]
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": rules,
        "scrape_configs": [{"job_name": "resilient-scan", "static_configs": [{"targets": [target]}]}],
    }


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
