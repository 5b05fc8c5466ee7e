"""Charts made by hand, and Yahoo's answers made of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from resilient_scan import Candidate, ScanContext, ScanError
from resilient_scan_scanners._chart import Chart
from resilient_scan_scanners.demo import opening
from resilient_scan_scanners.providers.yahoo import Bar

TRADE_DATE = date(2013, 1, 24)  # a Thursday


def bar(day: date, close: float, volume: int = 1000, **prices: float) -> Bar:
    """Return a bar whose open is its close, and whose high and low are the outer ones of both, unless given."""
    first = prices.get("open", close)
    return Bar(
        day,
        **{"open": first, "high": max(first, close), "low": min(first, close), **prices},
        close=close,
        volume=volume,
    )


def weekdays(count: int, last: date = TRADE_DATE) -> list[date]:
    """Return the `count` weekdays that end with `last`."""
    days = (last - timedelta(days=number) for number in range(count * 2 + 7))
    return sorted([day for day in days if day.weekday() < 5][:count])


def bars_of(closes: Sequence[float], volumes: Sequence[int] | None = None, last: date = TRADE_DATE) -> list[Bar]:
    """Return bars of weekdays with these closes."""
    volumes = volumes or [1000] * len(closes)
    days = weekdays(len(closes), last)
    return [bar(day, close, volume) for day, close, volume in zip(days, closes, volumes, strict=True)]


def chart_of(bars: Iterable[Bar], ticker: str = "TEST", trade_date: date = TRADE_DATE) -> Chart:
    """Return a chart of these bars."""
    return Chart(ticker, trade_date, tuple(bars))


def payload_of(
    bars: Sequence[Bar], instrument: str = "EQUITY", splits: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the parsed JSON that Yahoo would send for these bars."""
    columns = {name: [getattr(each, name) for each in bars] for name in ("open", "high", "low", "close", "volume")}
    result: dict[str, Any] = {
        "meta": {"symbol": "TEST", "instrumentType": instrument},
        "timestamp": [opening(each.day) for each in bars],
        "indicators": {"quote": [columns]},
    }
    if splits is not None:
        result["events"] = {"splits": splits}
    return {"chart": {"result": [result], "error": None}}


class FakeYahoo:
    """Answers for a loopback server: what each symbol gets, and what was asked.

    Args:
        answers: by symbol, a payload (status 200) or a whole answer; others are unknown symbols.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str]]] = []

    def __call__(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Answer one request."""
        symbol = path.rpartition("/")[2]
        self.asked.append((symbol, query))
        answer = self.answers.get(symbol, (404, {}, error_body("Not Found", "No data found, symbol may be delisted")))
        return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())


def error_body(code: str, description: str) -> bytes:
    """Return the body of one of Yahoo's errors."""
    return json.dumps({"chart": {"result": None, "error": {"code": code, "description": description}}}).encode()


def left_out(scanner: Any, state: Mapping[str, Any], **settings: Any) -> dict[str, str]:
    """Run a scanner for which no ticker is usable; return why, by ticker."""
    context = ScanContext(scanner.name, settings=settings, deadline=time.monotonic() + 10)
    try:
        assert list(scanner(state, context)) == []
    except ScanError as error:
        assert "can be used" in str(error)  # noqa: PT017 - an error, or nothing found
    return {entry["ticker"]: entry["left_out"] for entry in context.tool_logs() if "left_out" in entry}


def scan(
    scanner: Any, state: Mapping[str, Any], seconds: float = 10.0, **settings: Any
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Run a scanner without a runner; return its candidates and its tool log."""
    context = ScanContext(scanner.name, settings=settings, deadline=time.monotonic() + seconds)
    return list(scanner(state, context)), context.tool_logs()
