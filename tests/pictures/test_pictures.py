"""The pictures in the docs: nothing in the dashboards fails, what should have data has some; a screen is a real one."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from grafana.source.__main__ import HOME
from tests.docs.pages import without_times
from tests.grafana.boards import BOARDS, board, panels
from tests.pictures import draw, faults


@pytest.mark.long
@pytest.mark.servers
def test_every_panel_is_drawn(tmp_path: Path) -> None:
    pages = draw.draw(tmp_path, tmp_path / "work")
    for name in BOARDS:
        worded = {panel["title"]: "noValue" in panel["fieldConfig"]["defaults"] for panel in panels(board(name))}
        drawn = {html.unescape(title): full for title, full in draw.panels(pages[name]).items()}
        assert 'class="error"' not in pages[name]
        assert sorted(drawn) == sorted(worded)
        assert all(worded[title] for title, full in drawn.items() if not full)
        assert sum(drawn.values()) > 0.8 * len(drawn)
        assert (tmp_path / f"{name}.png").stat().st_size > 30_000


@pytest.mark.long
@pytest.mark.servers
def test_an_unknown_panel_type_is_an_error(tmp_path: Path) -> None:
    content = board("fleet")
    content["panels"] = [{**panels(content)[0], "type": "piechart", "targets": []}]
    content["annotations"]["list"] = content["templating"]["list"] = []
    site = draw.built(tmp_path / "site", {"odd.json": json.dumps(content)})
    with draw.served(site) as url:
        page = draw.opened(f"{url}/index.html?board=odd&url=http://127.0.0.1:9&from=1&to=2&scrape=1", 400)
    assert "unknown panel type piechart" in page


@pytest.mark.parametrize("name", BOARDS)
def test_the_committed_pictures_are_small(name: str) -> None:
    picture = (HOME / "pictures" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 30_000 < len(picture) < 300_000


def test_the_picture_of_the_faulty_scanners_tells_what_a_run_shows() -> None:
    kept = faults.PICTURE.read_text()
    assert len(kept) < 200_000
    assert "http" not in kept.replace("http://www.w3.org/2000/svg", "").replace("HTTP", "")
    shown = faults.screen()
    told = shown.plain.replace(faults.RULE, " ")
    assert faults.words(faults.drawn(shown)) == told.split()  # nothing of it is cut off
    assert without_times(" ".join(faults.words(kept))) == without_times(told)
