"""Empty is not success: a source that answers with nothing at all is doubted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resilient_scan import ScanError
from resilient_scan_scanners.analyst_revisions import analyst_revisions
from resilient_scan_scanners.earnings_calendar import earnings_calendar
from resilient_scan_scanners.filings_8k import filings_8k
from resilient_scan_scanners.gap_up import gap_up
from resilient_scan_scanners.insider_buying import insider_buying
from resilient_scan_scanners.news_sentiment import news_sentiment
from resilient_scan_scanners.reddit_dd import reddit_dd
from resilient_scan_scanners.reddit_trending import reddit_trending
from tests.scanners.filings import COMPANIES, feed
from tests.scanners.providers import CALENDAR, KEY, NOW, TRENDS, as_json, ask
from tests.scanners.recorded import RecordedServer

NO_BARS = {"chart": {"result": [{"meta": {"instrumentType": "EQUITY"}, "indicators": {"quote": [{}]}}], "error": None}}
NO_POSTS = as_json({"kind": "Listing", "data": {"children": []}})
CASES = [
    (earnings_calendar, (200, {}, CALENDAR.splitlines()[0].encode()), "nobody at all reports"),
    (news_sentiment, as_json({"items": "0", "feed": []}), "no articles at all"),
    (analyst_revisions, as_json([]), "no recommendations at all of A, B"),
    (insider_buying, (200, {}, feed([])), "feed of Forms 4 is empty"),
    (filings_8k, (200, {}, feed([])), "feed of Forms 8-K is empty"),
    (reddit_trending, NO_POSTS, "no posts at all in r/stocks"),
    (reddit_dd, NO_POSTS, "no posts at all in r/stocks"),
]
REDDIT = {"client_id": KEY, "client_secret": KEY, "subreddits": ["stocks"]}
SETTINGS: dict[Any, dict[str, Any]] = {reddit_trending: REDDIT, reddit_dd: REDDIT}
SETTINGS |= {insider_buying: {}, filings_8k: {}}


@pytest.mark.parametrize(("scanner", "answer", "words"), CASES, ids=[case[0].name for case in CASES])
def test_nothing_at_all_is_doubted(scanner: Any, answer: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINNHUB_API_KEY", raising=False)
    answers = {
        "/api/v1/access_token": as_json({"access_token": "any token", "expires_in": 3600}),
        "/files/company_tickers.json": (200, {}, json.dumps(COMPANIES).encode()),
        "/*": answer,
    }
    settings = SETTINGS.get(scanner, {"api_key": KEY})
    with RecordedServer(answers, manifest=False) as server:
        found = ask(scanner, NOW, {"tickers": ["A", "B"]}, base_url=server.url, **settings)
    assert found.candidates == []
    assert found.doubted is not None
    assert words in found.doubted


def test_charts_without_any_bar_are_an_error() -> None:
    with (
        RecordedServer({"/*": as_json(NO_BARS)}, manifest=False) as server,
        pytest.raises(ScanError, match="none of 2 charts can be used: 2 empty; A has 0 bars, the rule needs 2"),
    ):
        ask(gap_up, NOW, {"tickers": ["A", "B"]}, base_url=server.url)


def test_one_that_has_something_is_enough() -> None:
    def respond(asked: Any) -> Any:
        return as_json(TRENDS if asked.query["symbol"] == "B" else [])

    with RecordedServer({"/*": respond}, manifest=False) as server:
        found = ask(analyst_revisions, NOW, {"tickers": ["A", "B"]}, base_url=server.url, api_key=KEY)
    assert (found.tickers, found.doubted) == (["B"], None)
