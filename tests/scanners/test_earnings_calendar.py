"""`earnings_calendar`: who reports soon."""

from __future__ import annotations

import csv
import gzip
from datetime import date, timedelta
from typing import Any

import pytest

from resilient_scan import ConfigError
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.http import TransientError
from resilient_scan_scanners.earnings_calendar import earnings_calendar
from tests.scanners.providers import CALENDAR, FINNHUB_CALENDAR, KEY, NOW, Asked, as_json, ask
from tests.scanners.recorded import RecordedServer, body
from tests.support.http import raw_server, say

CSV = {"Content-Type": "application/x-download"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINNHUB_API_KEY", raising=False)
    monkeypatch.delenv("ALPHAVANTAGE_API_KEY", raising=False)


def find(calendar: str = CALENDAR, finnhub: Any = None, state: dict[str, Any] | None = None, **settings: Any) -> Asked:
    def respond(path: str, _query: dict[str, str]) -> Answer:
        if path == "/query":
            return 200, CSV, calendar.encode()
        return finnhub if isinstance(finnhub, tuple) else as_json(finnhub)

    with LoopbackServer(respond) as server:
        urls = {"base_url": server.url, "finnhub_url": server.url}
        keys = {"api_key": KEY, "finnhub_key": "" if finnhub is None else KEY}
        return ask(earnings_calendar, NOW, state, **{**urls, **keys, **settings})


def test_a_calendar_may_come_with_a_mark_in_front_and_other_line_ends_columns_and_words_for_nothing() -> None:
    rows = list(csv.reader(CALENDAR.splitlines()))
    places = [6, 4, 2, 0, 5, 3, 1]
    lines = [",".join(f'"{row[place]}"' for place in places) for row in rows]
    text = "\ufeff" + "\r\n".join(lines).replace('"MORW, INC"', '"MORW,\u2028 ""INC"""').replace(
        "BLANK INC", "BL\x1cANK"
    )
    (_, more, _), plain = find(text).candidates, find()
    assert [each.ticker for each in find(text).candidates] == plain.tickers
    assert more.context.startswith('MORW,\u2028 "INC" reports')
    for word in ("None", "-"):
        spelt = CALENDAR.replace("BLANK INC,2026-05-18,2026-03-31,,", f"BLANK INC,2026-05-18,2026-03-31,{word},")
        assert find(spelt).tickers == plain.tickers
        (blank,) = [each for each in find(spelt, only_estimated=False).candidates if each.ticker == "BLANK"]
        assert blank.extras["estimate"] is None


def test_a_calendar_in_another_charset_is_read() -> None:
    named = {"Content-Type": "text/csv; charset=ISO-8859-1"}
    said = CALENDAR.replace("NOWC INC", "Société Générale").encode("latin-1")
    with LoopbackServer(lambda _path, _query: (200, named, said)) as server:
        found = ask(earnings_calendar, NOW, None, base_url=server.url, api_key=KEY)
    assert found.candidates[0].context.startswith("Société Générale reports")


def test_the_rule_by_hand() -> None:
    found = find()
    # PAST and LATE are outside of the 7 days, BLANK has no estimate, OZFRY is traded over the counter
    assert [(each.ticker, each.priority, each.extras["days_away"]) for each in found.candidates] == [
        ("NOWC", "high", 0),
        ("MORW", "high", 1),
        ("WEEK", "medium", 7),
    ]
    assert found.candidates[1].context == (
        "MORW, INC reports earnings on 2026-05-18 after its close, -0.25 USD a share are expected"
    )
    assert found.candidates[1].extras == {
        "date": "2026-05-18",
        "days_away": 1,
        "estimate": -0.25,
        "currency": "USD",
        "time": "post-market",
        "via": ["alpha_vantage"],
    }


def test_the_numbers_are_settings() -> None:
    assert find(days_ahead=8).tickers == ["NOWC", "MORW", "WEEK", "LATE"]
    assert find(days_ahead=0).tickers == ["NOWC"]
    assert find(only_estimated=False).tickers == ["NOWC", "BLANK", "MORW", "WEEK"]
    assert [each.priority for each in find(soon_days=0).candidates] == ["high", "medium", "medium"]
    assert find(state={"tickers": ["WEEK", "PAST"]}).tickers == ["WEEK"]
    assert find(state={"trade_date": "2026-05-25"}).tickers == ["LATE"]


def test_six_columns_as_they_used_to_be_are_read_as_well() -> None:
    old = "\r\n".join(line.rpartition(",")[0] for line in CALENDAR.splitlines())
    assert find(old).tickers == ["NOWC", "MORW", "WEEK"]
    assert find(old).candidates[0].extras["time"] == ""


def test_finnhub_adds_to_it_where_there_is_a_key() -> None:
    found = find(finnhub=FINNHUB_CALENDAR)
    assert {each.ticker: each.extras["via"] for each in found.candidates} == {
        "NOWC": ["alpha_vantage"],
        "MORW": ["alpha_vantage", "finnhub"],
        "XTRA": ["finnhub"],
        "WEEK": ["alpha_vantage"],
    }
    extra = found.candidates[2]
    assert extra.context == "XTRA reports earnings on 2026-05-19 before the market opens, 3.5 USD a share are expected"


def test_of_two_days_the_earlier_counts() -> None:
    rows = [
        {"date": "2026-05-20", "epsEstimate": 1, "symbol": "MORW"},
        {"date": "2026-05-19", "epsEstimate": 1, "symbol": "WEEK"},
    ]
    found = find(finnhub={"earningsCalendar": rows})
    assert [(each.ticker, each.extras["date"], each.extras["via"]) for each in found.candidates[1:]] == [
        ("MORW", "2026-05-18", ["alpha_vantage"]),
        ("WEEK", "2026-05-19", ["finnhub"]),
    ]


@pytest.mark.parametrize(
    "finnhub", [(401, {}, b'{"error":"Invalid API key"}'), (500, {}, b""), (200, {}, b"<html>"), {}]
)
def test_a_finnhub_that_fails_is_told_and_costs_nothing(finnhub: Any) -> None:
    found = find(finnhub=finnhub)
    assert found.tickers == ["NOWC", "MORW", "WEEK"]
    assert found.log[-1]["source"] == "finnhub"
    assert found.log[-1]["left_out"]
    assert KEY not in str(found.log)


def test_what_finnhub_is_asked_for() -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def respond(path: str, query: dict[str, str]) -> Answer:
        asked.append((path, query))
        return (200, CSV, CALENDAR.encode()) if path == "/query" else as_json(FINNHUB_CALENDAR)

    with LoopbackServer(respond) as server:
        urls = {"base_url": server.url, "finnhub_url": server.url}
        ask(earnings_calendar, NOW, api_key=KEY, finnhub_key=KEY, days_ahead=3, **urls)
    assert asked == [
        ("/query", {"function": "EARNINGS_CALENDAR", "horizon": "3month", "apikey": KEY}),
        ("/api/v1/calendar/earnings", {"from": "2026-05-17", "to": "2026-05-20"}),
    ]


def test_a_wrong_address_is_told() -> None:
    with pytest.raises(ConfigError, match="base_url must begin"):
        find(finnhub={}, finnhub_url="nowhere")


def test_the_real_calendar() -> None:
    with RecordedServer() as server:
        found = ask(earnings_calendar, NOW, base_url=server.url, api_key=KEY)
    rows = list(csv.DictReader(body("alphavantage/earnings_calendar/EARNINGS_CALENDAR.csv").decode().splitlines()))
    first, last = date(2026, 5, 17), date(2026, 5, 17) + timedelta(days=7)
    expected = sorted(
        {
            (row["reportDate"], row["symbol"].replace("-", "."))
            for row in rows
            if first <= date.fromisoformat(row["reportDate"]) <= last
            and row["estimate"]
            and row["symbol"].replace("-", "").isalpha()
            and not (len(row["symbol"]) == 5 and row["symbol"][-1] in "FYWRUZ")
            and len(row["symbol"].partition("-")[0]) <= 5
        }
    )
    assert [(each.extras["date"], each.ticker) for each in found.candidates] == expected
    assert len(rows) == 4526
    monday = [each.ticker for each in found.candidates if each.extras["date"] == "2026-05-18"]
    assert monday[:4] == ["AGYS", "ANNX", "BIDU", "BITF"]  # ADERY, ALBBY, BAIDF... are traded over the counter
    assert "NVDA" in found.tickers


def test_the_real_calendar_of_finnhub() -> None:
    answers = {"/api/v1/calendar/earnings": "finnhub/calendar-earnings/calendar-earnings-aapl.json"}
    with RecordedServer(answers) as server:
        urls = {"base_url": server.url, "finnhub_url": server.url}
        state = {"trade_date": "2026-07-27", "tickers": ["AAPL"]}
        (found,) = ask(earnings_calendar, NOW, state, api_key=KEY, finnhub_key=KEY, **urls).candidates
    assert (found.ticker, found.extras["date"], found.extras["days_away"]) == ("AAPL", "2026-07-29", 2)
    assert "finnhub" in found.extras["via"]


# --------------------------------------------------------------------------------------------------------- truncation

ROWS = 400
SYMBOLS = [f"C{chr(65 + n // 26)}{chr(65 + n % 26)}" for n in range(ROWS)]
LONG = "\n".join([CALENDAR.splitlines()[0], *(f"{s},{s} INC,2026-05-18,2026-03-31,1.00,USD," for s in SYMBOLS), ""])
CUT = LONG.encode()[: len(LONG) // 2]
AT_A_ROW = LONG.encode()[: LONG.index(f"{SYMBOLS[200]},")]


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        (b"Content-Encoding: gzip\r\nContent-Length: %d", gzip.compress(LONG.encode())[:1200]),
        (b"Content-Length: %d", CUT),  # cut in a row, and counted again
        (b"Connection: close", CUT),
    ],
    ids=["gzip", "length", "closed"],
)
def test_half_a_calendar_is_an_error(head: bytes, sent: bytes) -> None:
    """It was `completed`, with 193 of 400 rows."""
    head = head % len(sent) if b"%d" in head else head
    with raw_server(say(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + sent)) as url, pytest.raises(TransientError):
        ask(earnings_calendar, NOW, base_url=url, api_key=KEY)


@pytest.mark.parametrize("sent", [AT_A_ROW, LONG.encode(), LONG.encode()[:-1]], ids=["between rows", "whole", "almost"])
def test_a_calendar_that_ends_with_its_connection_may_be_cut_off(sent: bytes) -> None:
    with raw_server(say(b"HTTP/1.1 200 OK\r\n\r\n" + sent)) as url:
        asked = ask(earnings_calendar, NOW, base_url=url, api_key=KEY)
    assert asked.doubted == "incomplete: Alpha Vantage's EARNINGS_CALENDAR may be cut off: nothing says where it ends"
    with raw_server(say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LONG) + LONG.encode())) as url:
        asked = ask(earnings_calendar, NOW, base_url=url, api_key=KEY)
    assert (len(asked.candidates), asked.doubted) == (ROWS, None)
