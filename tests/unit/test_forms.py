"""Results in other people's tools: data frames, notebooks, Celery, FastAPI, pickle."""

from __future__ import annotations

import json
import math
import pickle
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from kombu.utils.json import dumps
from pydantic import TypeAdapter
from starlette.types import Message

from resilient_scan import (
    Candidate,
    Policy,
    RetryAfter,
    RunReport,
    ScanError,
    ScanResult,
    ScanRunner,
    ScanTimeout,
    Status,
    scanner,
)
from resilient_scan._forms import COLOURS
from resilient_scan.results import ErrorInfo
from resilient_scan.settings import SettingsError
from tests.support import results


def result(name: str, status: Status = Status.COMPLETED, **changes: Any) -> ScanResult:
    return results.result(scanner=name, status=status, **changes)


def report(*scans: ScanResult) -> RunReport:
    return RunReport("0123456789abcdef", {scan.scanner: scan for scan in scans}, 1_359_050_400.0, 1.0)


HOSTILE = "<script>alert('x')</script>\x1b[31m&\"'"
FOUND = [
    Candidate("A", "one", "up", extras={"volume": 3, "tags": ["x", {"y": 1}], "status": "new", "price": math.nan}),
    {"ticker": "B", "status": "mine", "deep": {"z": [1]}},
    "just a word",
]
WHOLE = report(
    result("one", candidates=FOUND, age=1.5),
    result("none"),
    result("bad", Status.ERROR, error=ErrorInfo("OSError", HOSTILE, f"OSError at x.py:3 in {HOSTILE}", "...")),
)

# rows


def test_there_is_a_flat_row_for_each_candidate() -> None:
    first, second, third = WHOLE.to_records()
    assert first == {
        "run_id": WHOLE.run_id,
        "scanner": "one",
        "pipeline": "news",
        "status": "completed",
        "age": 1.5,
        "partial": False,
        "suspicious": None,
        "ticker": "A",
        "source": "one",
        "context": "up",
        "priority": "unknown",
        "strategy": "",
        "volume": 3,
        "tags": '["x", {"y": 1}]',
        "extras.status": "new",
        "price": None,
        "candidate.status": None,
        "deep": None,
        "candidate": None,
    }
    assert (second["ticker"], second["candidate.status"], second["deep"]) == ("B", "mine", '{"z": [1]}')
    assert (third["candidate"], third["ticker"]) == ("just a word", None)


def test_all_rows_have_the_same_columns() -> None:
    rows = WHOLE.to_records()
    assert len({tuple(row) for row in rows}) == 1
    assert all(value is None or isinstance(value, str | int | float) for row in rows for value in row.values())
    assert report().to_records() == report(result("none")).to_records() == []


# JSON


def test_a_report_as_text_is_strict_json_that_any_encoding_can_hold() -> None:
    whole = report(result("one", candidates=[{"ticker": "é\ud800", "price": math.inf}]))
    assert json.loads(whole.to_json()) == whole.to_dict()
    assert whole.to_json().isascii()
    assert "\n" not in whole.to_json()
    assert whole.to_json(indent=2).startswith('{\n  "run_id"')


@pytest.mark.parametrize("thing", [WHOLE, WHOLE.results["bad"], WHOLE.results["bad"].error, WHOLE.merged()])
def test_celery_s_serializer_takes_what_a_task_returns(thing: Any) -> None:
    expected = [each.to_dict() for each in thing] if isinstance(thing, list) else thing.to_dict()
    assert json.loads(dumps({"result": thing})) == {"result": expected}


def test_an_explanation_is_data_too() -> None:
    with ScanRunner([ok], listeners=()) as runner:
        explained = runner.explain("ok")
    assert json.loads(dumps(explained)) == explained.to_dict()


async def ask(app: FastAPI, path: str) -> Any:
    """Call an endpoint as a server does, without one."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "app": app}
    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    return json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_an_endpoint_returns_a_report() -> None:
    import asyncio

    app = FastAPI()

    @app.get("/bare")
    def bare():  # type: ignore[no-untyped-def]
        return WHOLE

    async def typed() -> RunReport:
        return WHOLE

    async def many() -> dict[str, ScanResult]:
        return WHOLE.results

    for endpoint in (typed, many):
        endpoint.__annotations__ = {"return": {typed: RunReport, many: dict[str, ScanResult]}[endpoint]}
        app.get(f"/{endpoint.__name__}")(endpoint)
    assert asyncio.run(ask(app, "/bare")) == WHOLE.to_dict()
    assert asyncio.run(ask(app, "/typed")) == WHOLE.to_dict()
    assert asyncio.run(ask(app, "/many")) == WHOLE.to_dict()["results"]
    schema = app.openapi()["paths"]["/typed"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["type"] == "object"


def test_pydantic_takes_reports_as_they_are() -> None:
    adapter = TypeAdapter(RunReport)
    assert adapter.validate_python(WHOLE) is WHOLE
    assert adapter.dump_python(WHOLE, mode="json") == WHOLE.to_dict()
    with pytest.raises(ValueError, match="RunReport"):
        adapter.validate_python({})


# pickle


@scanner(pipeline="test")
def ok(state: dict[str, Any]) -> list[Candidate]:
    """Find A."""
    return [Candidate("A", "ok", "", extras={"n": [1]})]


def test_reports_results_and_explanations_can_be_pickled() -> None:
    with ScanRunner([ok], listeners=()) as runner:
        whole, explained = runner.run({}), runner.explain("ok")
    for thing in (whole, whole.results["ok"], explained, whole.merged(), Policy()):
        copy = pickle.loads(pickle.dumps(thing))
        assert copy == thing
        assert type(copy) is type(thing)
    assert pickle.loads(pickle.dumps(WHOLE)).results["bad"].error.traceback == "..."


@pytest.mark.parametrize(
    "error", [ScanError("x"), ScanTimeout("t", by_clock=True), RetryAfter(3, "m"), SettingsError(["a", "b"])]
)
def test_errors_can_be_pickled(error: ScanError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_scanner_is_pickled_by_its_name_as_a_function_is() -> None:
    assert pickle.loads(pickle.dumps(ok)) is ok


# notebooks


class Page(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_notebook_shows_a_report_as_a_table_without_foreign_markup() -> None:
    html = WHOLE._repr_html_()
    page = Page(html)
    assert "script" not in page.tags
    assert "\x1b" not in html
    assert page.tags.count("table") == 2
    assert {"one", "none", "bad", "completed", "error", "A", "B", "just a word"} <= set(page.texts)
    assert f"OSError: {HOSTILE.replace(chr(27), ' ')} (at x.py:3 in " in "".join(page.texts)


@pytest.mark.parametrize("status", list(Status))
def test_a_status_has_a_colour_and_a_word(status: Status) -> None:
    html = report(result("one", status))._repr_html_()
    (style,) = set(re.findall(rf'style="([^"]*)">{status.value}<', html))
    assert f"background:{COLOURS[status.value]}" in style
    assert "color:#fff" in style


def test_of_many_candidates_the_first_are_shown() -> None:
    many = report(result("one", candidates=[{"ticker": f"T{number}"} for number in range(70)]))
    page = Page(many._repr_html_())
    assert ("T49" in page.texts, "T50" in page.texts) == (True, False)
    assert "... and 20 more: " in page.texts


def test_a_notebook_shows_an_explanation() -> None:
    @scanner(pipeline="<b>news")
    def bad(state: dict[str, Any]) -> list[Candidate]:
        raise ValueError(HOSTILE)

    with ScanRunner([bad], policy=Policy(retry=None, cache=None), listeners=()) as runner:
        runner.run({})
        runner.disable("bad", reason=HOSTILE)
        html = runner.explain("bad")._repr_html_()
    page = Page(html)
    assert {"script", "b>news"}.isdisjoint(page.tags)
    assert {"does not run", "error", "breaker", "gate"} <= set(page.texts)
    assert page.tags.count("table") == 3
