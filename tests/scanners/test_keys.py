"""A key is in nothing that is written: no log, no metric, no report, no explanation, no recording."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import LogEvents, Policy, PrometheusMetrics, ScanRunner
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.clock import SystemClock
from resilient_scan.http import Recorder, Replay
from resilient_scan.observe.metrics import exposition
from resilient_scan_scanners.analyst_revisions import analyst_revisions
from resilient_scan_scanners.earnings_calendar import earnings_calendar
from resilient_scan_scanners.market_movers import market_movers
from resilient_scan_scanners.news_sentiment import news_sentiment
from tests.scanners.providers import CALENDAR, FINNHUB_CALENDAR, KEY, LISTING, MOVERS, NEWS, TRENDS, as_json

FLEET = [market_movers, news_sentiment, earnings_calendar, analyst_revisions]
GOOD = {
    "TOP_GAINERS_LOSERS": as_json(MOVERS),
    "LISTING_STATUS": (200, {}, LISTING),
    "NEWS_SENTIMENT": as_json(NEWS),
    "EARNINGS_CALENDAR": (200, {}, CALENDAR.encode()),
}
ECHO = f"We have detected your API key as {KEY} and our rate limit is 25 requests per day."


class Frozen(SystemClock):
    """A clock whose time of day stands still."""

    def time(self) -> float:
        return 1779048000.0


def good(path: str, query: dict[str, str]) -> Answer:
    if path == "/query":
        return GOOD[query["function"]]
    return as_json(TRENDS if "recommendation" in path else FINNHUB_CALENDAR)


ANSWERS: dict[str, Any] = {
    "good": good,
    "echoed in Information": as_json({"Information": ECHO}),
    "echoed in Note": as_json({"Note": ECHO}),
    "echoed in an error": as_json({"error": ECHO}, 401),
    "echoed in a 403": as_json({"error": ECHO}, 403),
    "echoed in a 429": (429, {}, ECHO.encode()),
    "echoed in a 500": (500, {"Content-Type": "text/plain"}, ECHO.encode()),
    "echoed in a 404": (404, {"Content-Type": "text/plain"}, ECHO.encode()),
    "echoed in a redirect": (302, {"Location": f"/elsewhere?apikey={KEY}&token={KEY}"}, b""),
    "echoed in a record": as_json({"feed": [{"title": KEY}], "earningsCalendar": [{"symbol": KEY}]}),
    "a page": (200, {"Content-Type": "text/html"}, b"<html>"),
    "nothing": (200, {}, b""),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_key_is_in_nothing_written(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer = ANSWERS[name]
    registry = CollectorRegistry()
    caplog.set_level(logging.DEBUG)

    def respond(path: str, query: dict[str, str]) -> Answer:
        if path.startswith(("/v1/finance", "/v8/finance")):  # Yahoo, which was told no key
            return 500, {}, b""
        return answer(path, query) if callable(answer) else answer

    with LoopbackServer(respond) as server:
        settings: dict[str, dict[str, Any]] = {
            scanner.name: {"base_url": server.url, "api_key": KEY} for scanner in FLEET[1:]
        }
        settings["earnings_calendar"] |= {"finnhub_url": server.url, "finnhub_key": KEY}
        settings["market_movers"] = {"base_url": server.url, "alpha_vantage_url": server.url, "alpha_vantage_key": KEY}
        with ScanRunner(
            FLEET,
            settings=settings,
            listeners=(LogEvents(), PrometheusMetrics(registry)),
            clock=Frozen(),
            policies={scanner.name: Policy(cache=None, retry=None) for scanner in FLEET},
            traffic=Recorder(tmp_path / "recorded"),
        ) as runner:
            report = runner.run({"tickers": ["X", "GOOD"]})
            explained = [str(runner.explain(scanner.name, trace=True)) for scanner in FLEET]
            explained += [json.dumps(runner.explain(scanner.name).to_dict()) for scanner in FLEET]
            flights = [repr(runner.flights(scanner.name)) for scanner in FLEET]
    assert report.complete is (name == "good")
    files = [path.read_text(encoding="utf-8") for path in (tmp_path / "recorded").rglob("*") if path.is_file()]
    written = [
        json.dumps(report.to_dict()),
        caplog.text,
        exposition(registry)[1].decode(),
        *explained,
        *flights,
        *files,
    ]
    assert len(files) > 2
    assert [text for text in written if "S3CRET" in text] == []


def test_a_replay_needs_no_key_to_ask_what_is_asked_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALPHAVANTAGE_API_KEY", raising=False)
    found = []
    with LoopbackServer(good) as server:
        urls = {"base_url": server.url, "alpha_vantage_url": server.url}
    for traffic, settings in (
        (lambda: Recorder(tmp_path / "r"), {**urls, "alpha_vantage_key": KEY}),
        (lambda: Replay(tmp_path / "r"), urls),
    ):
        with LoopbackServer(good, port=int(urls["base_url"].rpartition(":")[2])):
            tape: Any = traffic()
            table = {"market_movers": settings}
            with ScanRunner([market_movers], settings=table, clock=Frozen(), listeners=(), traffic=tape) as runner:
                found.append([each.ticker for each in runner.run({"trade_date": "2026-05-17"}).candidates])
    assert found == [["UPUP", "DOWN"]] * 2
