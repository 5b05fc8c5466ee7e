"""Yahoo: one limit for all who call it, a clear error where it refuses, and a transport that the user may bring."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from resilient_scan import ConfigError, PermanentError, RetryAfter, ScanRunner, Status
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.settings.plugins import discover
from resilient_scan.testing import FakeClock
from resilient_scan_scanners.gap_up import gap_up
from resilient_scan_scanners.market_movers import market_movers
from resilient_scan_scanners.options_flow import options_flow
from resilient_scan_scanners.providers import yahoo
from tests.scanners.charts import FakeYahoo, bars_of, payload_of, scan
from tests.scanners.providers import CHAIN, KEY, as_json, ask

DOCS = Path(__file__).parents[2] / "docs"
FALL = payload_of(bars_of([100.0, 80.0]))
STATE = {"trade_date": "2013-01-24", "tickers": ["A"]}


def yahoo_scanners() -> dict[str, Any]:
    """Return the built-in scanners that name Yahoo's host."""
    found = discover().scanners
    return {each.name: each.scanner for each in found if each.built_in and yahoo.HOST in each.sources}


def test_all_that_call_yahoo_share_one_limit() -> None:
    scanners = yahoo_scanners()
    assert len(scanners) == 7
    assert {each.layers["limit"] for each in scanners.values()} == {yahoo.LIMIT}
    assert yahoo.LIMIT.rates == ("120/min", "2000/h")


def test_the_docs_name_all_that_depend_on_yahoo() -> None:
    text = (DOCS / "builtin-scanners.md").read_text()
    (sentence,) = re.findall(r"\n## Yahoo\n\n(.*?) depend on Yahoo", text, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(yahoo_scanners())


def test_a_thousand_tickers_are_not_asked_for_in_twenty_seconds() -> None:
    server = FakeYahoo({})
    flat = payload_of(bars_of([100.0, 100.0]))
    tickers = [f"T{number}" for number in range(1000)]
    server.answers = dict.fromkeys(tickers, flat)
    clock = FakeClock(auto=True)
    with LoopbackServer(server) as loopback:
        settings = {"gap_up": {"base_url": loopback.url}}
        with ScanRunner([gap_up], settings=settings, clock=clock, listeners=()) as runner:
            result = runner.run({**STATE, "tickers": tickers}).results["gap_up"]
    assert len(server.asked) <= 121
    assert result.status in {Status.REJECTED, Status.ERROR}
    assert result.error is not None
    assert "no turn at provider yahoo in time" in result.error.message


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (429, RetryAfter, "HTTP 429; Yahoo wants to be left alone; if that does not end, it refuses this client"),
        (403, PermanentError, r"HTTP 403 \(no\); Yahoo refuses this request; .* a browser's transport"),
        (999, PermanentError, r"HTTP 999 \(no\); Yahoo refuses this request"),
    ],
)
def test_a_refusal_is_named(status: int, error: type[Exception], words: str) -> None:
    with LoopbackServer(lambda _path, _query: (status, {"Content-Type": "text/plain"}, b"no")) as server:
        with pytest.raises(error, match=words):
            scan(gap_up, STATE, base_url=server.url)
        with pytest.raises(error, match=words):
            ask(options_flow, "2013-01-24T22:00:00+00:00", STATE, base_url=server.url)


# --------------------------------------------------------------------------------------------- a transport of one's own

greeted: list[httpx.Request] = []


def browser() -> httpx.MockTransport:
    """Make what greets like a browser."""

    def respond(request: httpx.Request) -> httpx.Response:
        greeted.append(request)
        payload = CHAIN if "/options/" in request.url.path else FALL
        return httpx.Response(200, content=json.dumps(payload).encode())

    return httpx.MockTransport(respond)


BROWSER = f"{__name__}:browser"


def test_scanners_take_a_transport_by_its_name() -> None:
    greeted.clear()
    assert [each.ticker for each in scan(market_movers, STATE, transport=BROWSER)[0]] == ["A"]
    assert greeted[0].url.host == yahoo.HOST
    assert "resilient_scan" not in greeted[0].headers["user-agent"]
    asked = ask(options_flow, "2026-05-17T20:00:00+00:00", {"tickers": ["TEST"]}, transport=BROWSER)
    assert asked.tickers == ["TEST"]
    assert greeted[-1].url.path == "/v7/finance/options/TEST"


def test_a_transport_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="transport 'nowhere:at_all' cannot be imported: No module named 'nowhere'"):
        scan(gap_up, STATE, transport="nowhere:at_all")


def test_the_key_of_another_source_goes_to_nobody_else() -> None:
    greeted.clear()
    with LoopbackServer(lambda _path, _query: as_json({})) as server:
        scan(market_movers, STATE, transport=BROWSER, alpha_vantage_key=KEY, alpha_vantage_url=server.url)
    assert not any(KEY in str(request.url) for request in greeted)
