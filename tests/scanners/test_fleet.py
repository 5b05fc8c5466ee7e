"""The bundled scanners end to end: through `ScanRunner`, over real HTTP, on the bundled history."""

from __future__ import annotations

import importlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from resilient_scan import RunReport, ScanRunner, Status, Timeout, scanner
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.testing import FakeClock
from resilient_scan_scanners.demo import demo
from tests.scanners.charts import TRADE_DATE, FakeYahoo, bars_of, payload_of

FLEET = [getattr(importlib.import_module(f"resilient_scan_scanners.{name}"), name) for name in demo.scanners]
Answer = tuple[int, dict[str, str], bytes]


LONG_AFTER = 1_800_000_000.0  # the bundled day is the past by then, so that its charts alone are asked


class Counting:
    """The demo's server, which counts requests and may answer some of them otherwise first."""

    def __init__(self, *first: Answer) -> None:
        self.asked: Counter[str] = Counter()
        self._first = list(first)
        self._lock = threading.Lock()

    def __call__(self, path: str, query: dict[str, str]) -> Answer:
        """Answer one request."""
        with self._lock:
            self.asked[path.rpartition("/")[2]] += 1
            if self._first:
                return self._first.pop(0)
        return demo.respond(path, query)


@contextmanager
def fleet(respond: Any, only: tuple[str, ...] = demo.scanners, **options: Any) -> Iterator[ScanRunner]:
    with LoopbackServer(respond) as server:
        settings = {name: demo.settings(server.url) for name in only}
        scanners = [each for each in FLEET if each.name in only]
        with ScanRunner(scanners, settings=settings, listeners=(), **options) as runner:
            yield runner


def replace_timeout(base: Any, seconds: float) -> Any:
    """Return the same scanner with another timeout."""
    return scanner(name=base.name, pipeline=base.pipeline, timeout=Timeout(total=seconds))(base.scan)


def found(report: RunReport) -> list[tuple[str, str]]:
    return [(candidate.source, candidate.ticker) for candidate in report.candidates]


def test_a_run_on_the_bundled_history_finds_apples_fall() -> None:
    with fleet(demo.respond) as runner:
        report = runner.run(demo.state)
    assert report.complete
    assert found(report) == [("market_movers", "AAPL"), ("volume_accumulation", "MSFT")]
    assert report.candidates[0].priority == "critical"
    assert "fell 12.4 %" in report.candidates[0].context
    json.dumps(report.to_dict())


def test_every_history_is_loaded_once_for_all_scanners() -> None:
    respond = Counting()
    with fleet(respond) as runner:
        runner.run(demo.state)
        runner.run(demo.state)
    assert respond.asked == dict.fromkeys(demo.tickers, 1)


def test_concurrent_and_sequential_runs_find_the_same_candidates() -> None:
    reports = []
    for concurrent in (True, False):
        with fleet(demo.respond, concurrent=concurrent) as runner:
            reports.append(runner.run({**demo.state, "trade_date": "2013-01-23"}))
    assert reports[0].candidates == reports[1].candidates
    assert len(reports[0].candidates) == 3


def test_a_second_run_is_answered_from_the_cache() -> None:
    with fleet(demo.respond) as runner:
        first, second = runner.run(demo.state), runner.run(demo.state)
    assert {result.status for result in second.results.values()} == {Status.CACHED}
    assert second.candidates == first.candidates


def test_the_tool_logs_tell_what_was_left_out() -> None:
    with fleet(demo.respond) as runner:
        report = runner.run(demo.state)
    left_out = [(entry["scanner"], entry["ticker"]) for entry in report.tool_logs if "left_out" in entry]
    assert left_out == [("high_52w_breakout", "FB"), ("rsi_oversold", "FB")]


def test_a_source_in_trouble_is_asked_again() -> None:
    respond = Counting((500, {}, b""), (502, {}, b""))  # 2 of 5 charts: more than is tolerated
    with fleet(respond, ("market_movers",), clock=FakeClock(LONG_AFTER, auto=True)) as runner:
        result = runner.run(demo.state).results["market_movers"]
    assert (result.status, result.attempts) == (Status.COMPLETED, 2)
    assert [candidate.ticker for candidate in result.candidates] == ["AAPL"]


def test_a_source_that_asks_to_wait_is_asked_again_after_that_time() -> None:
    clock = FakeClock(LONG_AFTER, auto=True)
    respond = Counting((429, {"Retry-After": "7"}, b""))
    with fleet(respond, ("market_movers",), clock=clock) as runner:
        result = runner.run(demo.state).results["market_movers"]
    assert (result.status, result.attempts) == (Status.COMPLETED, 2)
    assert clock.monotonic() == pytest.approx(7.0)


def test_a_source_that_refuses_is_asked_once() -> None:
    respond = Counting((401, {}, b"Invalid Crumb"))
    with fleet(respond, ("market_movers",)) as runner:
        result = runner.run(demo.state).results["market_movers"]
    assert (result.status, result.attempts) == (Status.ERROR, 1)
    assert result.error is not None
    assert "HTTP 401 (Invalid Crumb); Yahoo refuses this request" in result.error.message


def test_a_source_that_hangs_costs_the_time_of_that_scanner_only() -> None:
    release = threading.Event()

    def respond(path: str, query: dict[str, str]) -> Answer:
        if path.startswith("/hang"):
            release.wait(10)
        return demo.respond(path, query)

    with LoopbackServer(respond) as server:
        settings = {name: demo.settings(server.url) for name in demo.scanners}
        settings["gap_up"]["base_url"] += "/hang"
        hasty = replace_timeout(FLEET[demo.scanners.index("gap_up")], 0.3)
        others = [each for each in FLEET if each.name != "gap_up"]
        with ScanRunner([hasty, *others], settings=settings, listeners=()) as runner:
            report = runner.run(demo.state)
        release.set()
    statuses = {name: result.status for name, result in report.results.items()}
    assert statuses.pop("gap_up") is Status.TIMEOUT
    assert set(statuses.values()) == {Status.COMPLETED}
    assert report.results["gap_up"].duration < 5


def test_wrong_settings_are_an_error_that_is_not_tried_again() -> None:
    gap_up = FLEET[demo.scanners.index("gap_up")]
    with ScanRunner([gap_up], settings={"gap_up": {"min_gpa": 3}}, listeners=()) as runner:
        result = runner.run(demo.state).results["gap_up"]
    assert (result.status, result.attempts) == (Status.ERROR, 1)
    assert result.error is not None
    assert "gap_up: settings: Object contains unknown field `min_gpa`" in result.error.message


def test_symbols_of_every_style_come_through() -> None:
    fall = payload_of(bars_of([100.0, 80.0], last=TRADE_DATE))
    symbols = FakeYahoo({"BRK-B": fall, "TOT.TO": fall, "BF-A": fall})
    with LoopbackServer(symbols) as server:
        settings = {"market_movers": {"base_url": server.url}}
        with ScanRunner([FLEET[0]], settings=settings, listeners=()) as runner:
            report = runner.run({"trade_date": TRADE_DATE.isoformat(), "tickers": ["BRK.B", "TOT.TO", "BF.A"]})
    assert [candidate.ticker for candidate in report.candidates] == ["BRK.B", "TOT.TO", "BF.A"]
