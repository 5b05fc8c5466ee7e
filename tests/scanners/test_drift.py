"""Each value of an answer once wrong: a clear error or a candidate less, never a crash and never a false candidate."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, ScanError
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.http import SchemaDrift
from resilient_scan_scanners.analyst_revisions import analyst_revisions
from resilient_scan_scanners.earnings_calendar import earnings_calendar
from resilient_scan_scanners.gap_up import gap_up
from resilient_scan_scanners.high_52w_breakout import high_52w_breakout
from resilient_scan_scanners.market_movers import market_movers
from resilient_scan_scanners.news_sentiment import news_sentiment
from resilient_scan_scanners.options_flow import options_flow
from resilient_scan_scanners.rsi_oversold import rsi_oversold
from resilient_scan_scanners.sector_rotation import sector_rotation
from resilient_scan_scanners.volume_accumulation import volume_accumulation
from tests.scanners.charts import bars_of, payload_of
from tests.scanners.providers import (
    CALENDAR,
    CHAIN,
    FINNHUB_CALENDAR,
    KEY,
    MOVERS,
    NEWS,
    NOW,
    TRENDS,
    WRONG,
    ask,
    mutated,
    places,
    quote,
    screened,
)
from tests.scanners.recorded import body
from tests.support.examples import examples

SCREENED = screened(*(quote(name, 22.0, 20.0) for name in ("AA", "BB", "CC", "DD", "EE", "FF")))
CLOSES = [100.0 + day % 7 / 10 for day in range(260)]
CHART = payload_of(bars_of([*CLOSES, 130.0], [1000] * 260 + [9000]))


class Case:
    """A scanner, an answer, and who asks for it.

    Args:
        scanner: who is asked.
        payload: the answer, or the name of a recording.
        state, settings: what the scanner is given; an address is set for each name in `urls`.
    """

    def __init__(
        self, scanner: Any, payload: Any, now: str = NOW, state: dict[str, Any] | None = None, **more: Any
    ) -> None:
        self.scanner, self._payload, self.now = scanner, payload, now
        self.state = state or {}
        self.settings = more

    @cache  # noqa: B019 - as many as there are cases
    def payload(self) -> Any:
        return json.loads(body(self._payload)) if isinstance(self._payload, str) else self._payload

    def find(self, data: bytes) -> list[Candidate]:
        """Ask the scanner, whose every request is answered with `data`; but SPY's chart is a flat one."""
        SERVER.data = data
        known = FIELDS[self.scanner.name]
        urls = dict.fromkeys(known - {"api_key"}, SERVER.url)
        keys = dict.fromkeys(known & {"api_key"}, KEY)
        return ask(self.scanner, self.now, self.state, **{**urls, **keys, **self.settings}).candidates


class Server:
    """One server for all: what it answers, and its address."""

    url = ""
    data = b""

    def __call__(self, path: str, _query: dict[str, str]) -> Answer:
        return 200, {}, FLAT if path.endswith("/SPY") else self.data


SERVER = Server()
FLAT = json.dumps(payload_of(bars_of([100.0] * 261))).encode()


@pytest.fixture(autouse=True, scope="module")
def _serve() -> Iterator[None]:
    with LoopbackServer(SERVER) as server:
        SERVER.url = server.url
        yield


FIELDS: dict[str, set[str]] = {
    "market_movers": {"base_url", "alpha_vantage_url"},
    "news_sentiment": {"base_url", "api_key"},
    "earnings_calendar": {"base_url", "api_key"},
    "analyst_revisions": {"base_url", "api_key"},
    **{
        name: {"base_url"}
        for name in (
            "options_flow",
            "sector_rotation",
            "gap_up",
            "high_52w_breakout",
            "rsi_oversold",
            "volume_accumulation",
        )
    },
}
DAY = {"trade_date": "2013-01-24", "tickers": ["TEST"]}
SPIKE = {"trade_date": "2022-03-07", "tickers": ["IMPP"]}
CASES = {
    "movers": Case(market_movers, MOVERS, alpha_vantage_key=KEY),
    "screener": Case(market_movers, SCREENED, screeners=["day_gainers"]),
    "news": Case(news_sentiment, NEWS),
    "options": Case(options_flow, CHAIN, state={"tickers": ["TEST"]}),
    "trends": Case(analyst_revisions, TRENDS, state={"tickers": ["X"]}),
    "movers' chart": Case(market_movers, CHART, state=DAY),
    "volume": Case(volume_accumulation, CHART, state=DAY, max_move=100),
    "breakout": Case(high_52w_breakout, CHART, state=DAY),
    "gap": Case(gap_up, payload_of(bars_of([100.0, 110.0])), state=DAY),
    "oversold": Case(
        rsi_oversold, payload_of(bars_of([*CLOSES[:250], 106.0, 105.0, 104.0, 103.0, 102.0, 101.0])), state=DAY
    ),
    "rotation": Case(sector_rotation, CHART, state=DAY, universe=["TEST"]),
    "real movers": Case(
        market_movers, "alphavantage/top_gainers_losers/TOP_GAINERS_LOSERS.json", alpha_vantage_key=KEY
    ),
    "real screener": Case(
        market_movers,
        "yahoo/screener_predefined/day_gainers_count5.json",
        "2025-02-21T11:28:33+00:00",
        screeners=["day_gainers"],
    ),
    "real news": Case(news_sentiment, "alphavantage/news_sentiment/NEWS_SENTIMENT.json"),
    "real options": Case(
        options_flow, "yahoo/v7_options/AAPL.json", "2025-02-24T09:24:42+00:00", {"tickers": ["AAPL"]}
    ),
    "real trends": Case(
        analyst_revisions, "finnhub/stock-recommendation/recommendation-AAPL.json", state={"tickers": ["AAPL"]}
    ),
    "real chart": Case(
        volume_accumulation, "yahoo/v8_chart_1d/IMPP_2022-01-03_2022-03-07.json", state=SPIKE, max_move=1000
    ),
    "real chart's move": Case(
        market_movers, "yahoo/v8_chart_1d/IMPP_2022-01-03_2022-03-07.json", state=SPIKE, min_price=0
    ),
}


def check(name: str, case: Case, data: bytes, right: list[Candidate]) -> None:
    """Hold an answer with something wrong against what is found in the right one.

    Of news and options one candidate sums up many records, of which one may be missing, and names are only told; else
    it must be the same candidate.
    """
    summed = name.endswith(("news", "options", "calendar"))
    known = {candidate.ticker: candidate for candidate in right}
    try:
        found = case.find(data)
    except ScanError as error:
        told = str(error)
    else:
        told = "nothing was wrong enough"
        assert all(each.ticker in known if summed else each == known.get(each.ticker) for each in found), found
    assert len(told) > 20
    assert KEY not in told


def last_places(payload: Any) -> list[tuple[Any, ...]]:
    """Return the paths of a payload's values: of the first item of each list and, in a chart's columns, of the last."""
    found = list(places(payload))
    if isinstance(payload, dict) and "chart" in payload:
        columns = payload["chart"]["result"][0]["indicators"]["quote"][0]
        stamps = len(payload["chart"]["result"][0]["timestamp"])
        root = ("chart", "result", 0, "indicators", "quote", 0)
        found += [(*root, name, stamps - back) for name in columns for back in (1, 2, 9) if back <= stamps]
        found += [("chart", "result", 0, "timestamp", stamps - back) for back in (1, 2, 9) if back <= stamps]
    return found


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("real")])
def test_the_answer_as_it_is_finds_something(name: str) -> None:
    case = CASES[name]
    found = case.find(json.dumps(case.payload()).encode())
    assert found


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=examples(25), deadline=None)
@given(data=st.data())
def test_one_value_of_an_answer_is_wrong(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    payload = case.payload()
    path = data.draw(st.sampled_from(last_places(payload)), label="path")
    wrong = data.draw(st.sampled_from(sorted(WRONG)), label="wrong")
    broken = json.dumps(mutated(payload, path, wrong)).encode()
    check(name, case, broken, right_of(name))


@cache
def right_of(name: str) -> list[Candidate]:
    case = CASES[name]
    return case.find(json.dumps(case.payload()).encode())


def rewritten(text: str, row: int, column: str, value: str | None) -> bytes:
    """Return a CSV with one cell changed, or (`None`) with that column gone."""
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [name for name in rows[0] if value is not None or name != column]
    if value is not None:
        rows[row][column] = value
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


@cache
def real_calendar() -> str:
    """Return the recorded calendar's first rows."""
    whole = body("alphavantage/earnings_calendar/EARNINGS_CALENDAR.csv").decode()
    return "\n".join(whole.splitlines()[:200]) + "\n"


@pytest.mark.parametrize("value", ["", "something else", "9" * 30, "1e300", "nan", "<b>", None])
@pytest.mark.parametrize("column", CALENDAR.splitlines()[0].split(","))
@pytest.mark.parametrize("real", [False, True])
def test_one_cell_of_the_calendar_is_wrong(column: str, value: str | None, real: bool) -> None:
    text = real_calendar() if real else CALENDAR
    case = Case(earnings_calendar, None)
    right = case.find(text.encode())
    check("calendar", case, rewritten(text, 2, column, value), right)
    needed = {"symbol", "name", "reportDate", "fiscalDateEnding", "estimate", "currency"}
    if value is None and column in needed:
        with pytest.raises(ScanError, match=f"the column '{column}' is gone"):
            case.find(rewritten(text, 2, column, None))


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_one_value_of_finnhubs_calendar_is_wrong(wrong: str) -> None:
    rows = {"earningsCalendar": FINNHUB_CALENDAR["earningsCalendar"] * 3}
    for path in places(rows):
        broken = mutated(rows, path, wrong)

        def respond(url: str, _query: dict[str, str], broken: Any = broken) -> Answer:
            return 200, {}, CALENDAR.encode() if url == "/query" else json.dumps(broken).encode()

        with LoopbackServer(respond) as server:
            urls = {"base_url": server.url, "finnhub_url": server.url}
            found = ask(earnings_calendar, NOW, api_key=KEY, finnhub_key=KEY, **urls)
        assert set(found.tickers) <= {"NOWC", "MORW", "XTRA", "WEEK"}
        assert set(found.tickers) >= {"NOWC", "MORW", "WEEK"}


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [
        ("screener", ("finance", "result", 0, "quotes"), "quotes"),
        ("news", ("feed",), "feed"),
        ("options", ("optionChain", "result", 0, "options"), "options"),
        ("trends", (0, "strongBuy"), "strongBuy"),
        ("volume", ("chart", "result", 0, "indicators"), "indicators"),
    ],
)
@pytest.mark.parametrize("wrong", ["gone", "text"])
def test_a_field_that_is_gone_or_of_another_type_is_named(name: str, path: Any, field: str, wrong: str) -> None:
    case = CASES[name]
    with pytest.raises(ScanError, match=field) as caught:
        case.find(json.dumps(mutated(case.payload(), path, wrong)).encode())
    assert isinstance(caught.value, SchemaDrift)
