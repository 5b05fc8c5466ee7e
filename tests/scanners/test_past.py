"""A scanner that is asked about the past answers with data of that day, refuses, or is doubtful: none looks ahead."""

from __future__ import annotations

import importlib
from datetime import date
from importlib.metadata import entry_points
from typing import Any

import pytest

from resilient_scan import PermanentError, ScanError
from tests.scanners.charts import bars_of, payload_of
from tests.scanners.filings import COMPANIES, entry, feed, form4, line, submission
from tests.scanners.providers import CALENDAR, CHAIN, KEY, MOVERS, NEWS, TRENDS, as_json, ask, quote, screened
from tests.scanners.recorded import Answer, Asked, RecordedServer

NOW = "2026-05-17T20:00:00+00:00"  # a Sunday
PAST = date(2022, 3, 4)
TODAY = date(2026, 5, 15)
SCANNERS = sorted(point.name for point in entry_points(group="resilient_scan.scanners"))
REDDIT = {"client_id": KEY, "client_secret": KEY, "subreddits": ["stocks"], "min_mentions": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "reddit_trending": REDDIT,
    "reddit_dd": {name: value for name, value in REDDIT.items() if name != "min_mentions"} | {"min_length": 0},
    "market_movers": {"alpha_vantage_key": KEY},
    "filings_8k": {"lookback_days": 3},
    "news_sentiment": {"api_key": KEY},
    "earnings_calendar": {"api_key": KEY},
    "analyst_revisions": {"api_key": KEY},
}


POST = {
    "id": "x", "subreddit": "stocks", "title": "DD on $ACME", "selftext": "long", "score": 99, "num_comments": 1,
    "created_utc": 1778860000, "permalink": "/r/stocks/x", "stickied": False,
}  # fmt: skip


def current(asked: Asked) -> Answer:
    form = asked.query["type"]
    items = "Item 1.03: Bankruptcy" if form == "8-K" else ""
    return 200, {}, feed([entry(1, form=form, filed="2026-05-15", items=items)], "2026-05-17T16:00:00-04:00")


def alpha_vantage(asked: Asked) -> Answer:
    answers = {"TOP_GAINERS_LOSERS": MOVERS, "NEWS_SENTIMENT": NEWS}
    function = asked.query["function"]
    return as_json(answers[function]) if function in answers else (200, {}, CALENDAR.encode())


BARS = bars_of([100.0] * 259 + [50.0, 130.0], [1000] * 260 + [9000], last=TODAY)
EVERYTHING = {  # that would make a candidate today
    "/cgi-bin/browse-edgar": current,
    "/Archives/*": (200, {}, submission(form4([line(shares=9000, price=50, day="2026-05-14")]))),
    "/files/company_tickers.json": as_json(COMPANIES),
    "/api/v1/access_token": as_json({"access_token": "any token", "expires_in": 3600}),
    "/r/*": as_json({"kind": "Listing", "data": {"children": [{"kind": "t3", "data": POST}]}}),
    "/v8/finance/chart/*": as_json(payload_of(BARS)),
    "/v7/finance/options/*": as_json(CHAIN),
    "/v1/finance/screener/*": as_json(screened(quote("RISE", 22.0, 20.0))),
    "/api/v1/*": as_json(TRENDS),
    "/query": alpha_vantage,
}


def run(name: str, day: date, server: RecordedServer, tickers: list[str] | None) -> Any:
    scanner = getattr(importlib.import_module(f"resilient_scan_scanners.{name}"), name)
    urls = {"base_url": server.url, **({"alpha_vantage_url": server.url} if name == "market_movers" else {})}
    state = {"trade_date": day.isoformat(), **({} if tickers is None else {"tickers": tickers})}
    return ask(scanner, NOW, state, **urls, **SETTINGS.get(name, {}))


def test_there_are_fourteen_scanners() -> None:
    assert len(SCANNERS) == 14


@pytest.mark.parametrize("tickers", [["ACME", "GOOD", "X", "MORW"], None], ids=["tickers", "none"])
@pytest.mark.parametrize("name", SCANNERS)
def test_no_scanner_answers_for_a_past_day_with_what_is_known_today(name: str, tickers: list[str] | None) -> None:
    with RecordedServer(EVERYTHING, manifest=False) as server:
        try:
            asked = run(name, PAST, server, tickers)
        except ScanError as error:
            assert len(str(error)) > 20  # noqa: PT017 - refused, or one of the others
            return
    of_that_day = [each.extras.get("date") for each in asked.candidates]
    assert all(day is not None and day <= PAST.isoformat() for day in of_that_day)
    left_out = [each for each in asked.log if "left_out" in each]
    assert asked.candidates or asked.doubted or left_out


@pytest.mark.parametrize("name", ["insider_buying", "filings_8k", "reddit_trending", "reddit_dd", "earnings_calendar"])
def test_a_source_that_knows_only_now_is_not_even_asked(name: str) -> None:
    with RecordedServer(EVERYTHING, manifest=False) as server:
        with pytest.raises(PermanentError, match=f"{name}: .* knows only the last days, not 2022-03-04"):
            run(name, PAST, server, None)
        assert server.asked == []
        assert run(name, date(2026, 5, 17), server, None).candidates  # today it has an answer
        assert run(name, date(2026, 5, 18), server, None).tickers  # and where it is tomorrow already


def test_news_of_a_past_day_are_asked_for() -> None:
    with RecordedServer(EVERYTHING, manifest=False) as server:
        asked = run("news_sentiment", PAST, server, None)
        assert asked.doubted == "none of 4 articles is of the 3 days before the trade date"
        query = server.asked[0].query
        assert (query["time_from"], query["time_to"]) == ("20220301T0500", "20220305T0459")  # of New York's days
        run("news_sentiment", date(2026, 5, 17), server, None)
        assert "time_to" not in server.asked[1].query


def test_recommendations_of_years_ago_are_not_kept() -> None:
    with RecordedServer(EVERYTHING, manifest=False) as server:
        asked = run("analyst_revisions", PAST, server, ["X", "ACME"])
    assert asked.candidates == []
    assert str(asked.doubted).startswith(
        "missing: the recommendations of 2 of 2 tickers cannot be compared for 2022-03-04"
    )


def test_a_calendar_of_a_day_of_this_week_lacks_what_was_due_since() -> None:
    with RecordedServer(EVERYTHING, manifest=False) as server:
        asked = run("earnings_calendar", date(2026, 5, 15), server, None)
    assert (
        asked.doubted
        == "missing: Alpha Vantage's calendar begins today: reports that were due since 2026-05-15 are missing"
    )


def test_the_payloads_of_today_would_make_candidates() -> None:
    """Else the tests above would prove nothing."""
    with RecordedServer(EVERYTHING, manifest=False) as server:
        found = {name: len(run(name, TODAY, server, ["ACME", "GOOD", "X", "MORW"]).candidates) for name in SCANNERS}
    assert sum(map(bool, found.values())) >= 10, found
