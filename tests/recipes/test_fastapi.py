"""The recipe for FastAPI, under a real uvicorn: both kinds of endpoint, one runner, a loop that is not blocked."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.recipes.following import Recipe, free_port, get, needs
from tests.support.waiting import eventually

DAY = "trade_date=2026-11-24"
PATHS = ("scan", "scan-on-a-thread")
OTHER_SCANNERS = """
import threading
from pathlib import Path

import app as recipe
from resilient_scan import scanner


@scanner(pipeline="news")
def headlines(state):
    day = state["trade_date"]
    Path(day).touch()
    while not Path("go").exists():
        threading.Event().wait(0.01)
    return []


@scanner(pipeline="events", retry=None)
def filings(state):
    raise OSError("HTTP 503")


@scanner(pipeline="events", retry=None)
def movers(state):
    raise OSError("HTTP 503")


recipe.headlines, recipe.filings = headlines, filings
app = recipe.app
"""


@pytest.fixture
def port() -> int:
    needs("fastapi")
    return free_port()


def test_both_endpoints_answer_from_one_runner(tmp_path: Path, port: int) -> None:
    page = Recipe("fastapi", tmp_path, UVICORN_PORT=str(port))
    with page.start():
        page.wait_for("Uvicorn running")
        for _ in PATHS:
            page.run(("127.0.0.1:8000", f"127.0.0.1:{port}"))
    assert page.left == []
    assert "Application shutdown complete." in page.log()


@pytest.mark.parametrize("path", PATHS)
def test_other_requests_are_answered_while_a_scan_runs(path: str, tmp_path: Path, port: int) -> None:
    page = Recipe("fastapi", tmp_path, UVICORN_PORT=str(port))
    (tmp_path / "other.py").write_text(OTHER_SCANNERS)
    answers: list[tuple[int, str]] = []
    with page.start(("app:app", "other:app")):
        page.wait_for("Uvicorn running")
        scan = threading.Thread(target=lambda: answers.append(get(f"http://127.0.0.1:{port}/{path}?{DAY}")))
        scan.start()
        eventually((tmp_path / "2026-11-24").exists, "the scanner works")
        assert get(f"http://127.0.0.1:{port}/openapi.json")[0] == 200
        assert answers == []
        (tmp_path / "go").touch()
        scan.join(60)
    ((status, text),) = answers
    assert (status, json.loads(text)["counts"]) == (200, {"completed": 1, "error": 1})


@pytest.mark.parametrize("path", PATHS)
def test_a_run_without_answers_is_a_503_that_names_them(path: str, tmp_path: Path, port: int) -> None:
    page = Recipe("fastapi", tmp_path, UVICORN_PORT=str(port))
    (tmp_path / "other.py").write_text(f"{OTHER_SCANNERS}\nrecipe.headlines = movers\n")
    with page.start(("app:app", "other:app")):
        page.wait_for("Uvicorn running")
        status, text = get(f"http://127.0.0.1:{port}/{path}?{DAY}")
    assert status == 503
    assert json.loads(text)["detail"] == (
        "0 of 2 scanners answered, 50% are required; these did not: movers (error), filings (error)"
    )
