"""Take the pictures of the page for people that docs/service.md shows: `python -m tests.pictures.pages`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.docs.pages import ROOT
from tests.e2e.browser import chromium
from tests.e2e.night import five, night

INTO = ROOT / "docs" / "pictures"
TAKEN = {  # path, width, greatest height, dark
    "page": ("/", 1440, 900, False),
    "page-phone": ("/", 390, 1300, True),
    "scanner": ("/page/insider_buying", 1200, 1000, False),
}


def take(into: Path) -> None:
    """Write all pictures into a directory."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser, night(five, ill=True) as served:
        for name, (path, width, height, dark) in TAKEN.items():
            browser.look(dark=dark)
            browser.size(width, 100)
            browser.open(served.service.url + path)
            browser.size(width, min(height, browser.run("return document.documentElement.scrollHeight")))
            (into / f"{name}.png").write_bytes(browser.picture())


if __name__ == "__main__":
    take(INTO)
