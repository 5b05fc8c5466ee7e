"""`news_sentiment`: stocks whose news agree."""

from __future__ import annotations

import json
from collections import defaultdict
from copy import deepcopy
from typing import Any

import pytest

from resilient_scan import ConfigError
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.http import SchemaDrift
from resilient_scan_scanners.news_sentiment import news_sentiment
from resilient_scan_scanners.providers.reading import number
from tests.scanners.providers import KEY, NEWS, NOW, Asked, article, as_json, ask
from tests.scanners.recorded import RecordedServer, body


def find(payload: Any, state: dict[str, Any] | None = None, now: str = NOW, **settings: Any) -> Asked:
    with LoopbackServer(lambda _path, _query: as_json(payload)) as server:
        return ask(news_sentiment, now, state, base_url=server.url, **{"api_key": KEY, **settings})


def test_the_rule_by_hand() -> None:
    found = find(NEWS)
    # GOOD: (1.0 * 0.6 + 0.5 * 0.3) / 1.5 = 0.5; the mention of relevance 0.49 does not count.
    # BAD: (0.9 * -0.5 + 0.6 * -0.4) / 1.5 = -0.46. BRK-B: 0.4. MIXED: 0. CRYPTO:BTC is no stock.
    assert [(each.ticker, each.priority, each.extras["sentiment"]) for each in found.candidates] == [
        ("GOOD", "high", 0.5),
        ("BAD", "medium", -0.46),
        ("BRK.B", "medium", 0.4),
    ]
    assert found.candidates[0].context == "good news: a sentiment of +0.50 in 2 articles, such as: Title of u1"
    assert found.candidates[1].context.startswith("bad news: a sentiment of -0.46 in 2 articles")
    assert found.candidates[0].extras == {"sentiment": 0.5, "articles": 2, "url": "u1"}


def test_the_numbers_are_settings() -> None:
    assert find(NEWS, min_articles=3).tickers == []
    assert find(NEWS, min_sentiment=0.46).tickers == ["GOOD", "BAD"]
    assert find(NEWS, min_sentiment=0.51).tickers == []
    assert find(NEWS, min_relevance=0.49).candidates[0].ticker == "BAD"  # GOOD has a third article, and 0.13
    assert find(NEWS, high_sentiment=0.51).candidates[0].priority == "medium"
    assert find(NEWS, max_age_days=1).tickers == ["GOOD", "BAD"]


@pytest.mark.parametrize(
    "wrong", [{"relevance_score": "1,5"}, {"ticker_sentiment_score": None}, {"relevance_score": 0.9}]
)
def test_a_mention_that_cannot_be_read_makes_no_candidate_of_the_others(wrong: dict[str, Any]) -> None:
    """Without it MIXED would have good news only."""
    news = deepcopy(NEWS)
    news["feed"] += [article(f"u{n}", "20260516T110100", ("MIXED", 1.0, 0.9)) for n in range(5, 8)]
    assert find(news).tickers == ["MIXED", "GOOD", "BAD", "BRK.B"]
    news["feed"][3]["ticker_sentiment"][0] |= wrong
    found = find(news)
    assert found.tickers == ["BAD"]  # u4 is about MIXED, BRK-B and GOOD
    assert found.log[-1]["unread"] == ["BRK-B", "GOOD", "MIXED"]
    news["feed"][3]["ticker_sentiment"][0]["ticker"] = "something else"
    with pytest.raises(SchemaDrift, match=r"feed\[3\]\.ticker_sentiment\[0\].*ticker"):
        find(news)


def test_a_time_may_lack_its_seconds_and_nothing_else() -> None:
    # New York's 2026-05-17 ends at 04:00 UTC of the 18th
    assert find({"feed": [article(name, "20260518T0359", ("A", 1.0, 0.9)) for name in "ab"]}).tickers == ["A"]
    assert find({"feed": [article(name, "20260518T0400", ("A", 1.0, 0.9)) for name in "ab"]}).tickers == []
    with pytest.raises(SchemaDrift, match="time_published is not a time"):
        find({"feed": [article("a", "20260518T035", ("A", 1.0, 0.9))]})


@pytest.mark.parametrize("text", ["1_0", "\u0661", "1,0", "10%", "None", "-", ""])
def test_what_no_source_writes_for_a_number_is_none(text: str) -> None:
    with pytest.raises(SchemaDrift, match="x is not a number from 0 to 100"):
        number(text, "x", 0, 100)


def test_the_states_tickers_narrow_it() -> None:
    assert find(NEWS, {"tickers": ["BAD", "OTHER"]}).tickers == ["BAD"]
    assert find(NEWS, {"tickers": []}).tickers == []
    assert find(NEWS, {"tickers": ["BRK-B", " good"]}).tickers == ["GOOD", "BRK.B"]
    with pytest.raises(ConfigError, match="must be a list of symbols"):
        find(NEWS, {"tickers": "BAD GOOD"})


def test_no_news_of_the_future_and_none_of_long_ago() -> None:
    assert find(NEWS, {"trade_date": "2026-05-16"}).tickers == ["BRK.B"]
    old = find(NEWS, {"trade_date": "2026-06-16"})
    assert (old.tickers, old.doubted) == ([], "none of 4 articles is of the 3 days before the trade date")
    assert find({"feed": []}, topics="ipo").doubted is None
    # New York's 2026-05-17 ends at 04:00 UTC of the 18th
    late = [article(name, "20260518T035959", ("A", 1.0, 0.9)) for name in "ab"]
    assert find({"feed": late}).tickers == ["A"]
    assert find({"feed": [article(name, "20260518T040000", ("A", 1.0, 0.9)) for name in "ab"]}).tickers == []


def test_the_first_moment_of_the_days_that_count() -> None:
    # of 2026-05-17 and one day before it: New York's 16th begins at 04:00 UTC
    first = [article(name, "20260516T040000", ("A", 1.0, 0.9)) for name in "ab"]
    before = [article(name, "20260516T035959", ("A", 1.0, 0.9)) for name in "ab"]
    assert find({"feed": first}, max_age_days=1).tickers == ["A"]
    assert find({"feed": before}, max_age_days=1).tickers == []


def test_an_article_that_comes_twice_is_one_article() -> None:
    twice = [article("same", "20260517T110100", ("A", 1.0, 0.9), ("A", 1.0, 0.9))] * 2
    assert find({"feed": twice}).tickers == []


def test_what_is_asked_for() -> None:
    asked: list[dict[str, str]] = []

    def respond(_path: str, query: dict[str, str]) -> Any:
        asked.append(query)
        return as_json(NEWS)

    with LoopbackServer(respond) as server:
        ask(news_sentiment, NOW, base_url=server.url, api_key=KEY)
        ask(news_sentiment, NOW, base_url=server.url, api_key=KEY, topics="earnings", limit=200)
    assert asked == [
        {"function": "NEWS_SENTIMENT", "apikey": KEY},
        {"function": "NEWS_SENTIMENT", "topics": "earnings", "limit": "200", "apikey": KEY},
    ]


def test_without_a_key_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALPHAVANTAGE_API_KEY", raising=False)
    with pytest.raises(
        ConfigError, match=r"scanners.news_sentiment.settings.api_key or the environment variable ALPHAV"
    ):
        ask(news_sentiment, NOW)


def test_the_real_feed() -> None:
    with RecordedServer() as server:
        found = ask(news_sentiment, NOW, base_url=server.url, api_key=KEY)
    # AVGO: (0.428529 + 0.423270) / 2 = 0.4259, relevance 1.0 twice. AMD: (0.638234 * -0.336616 + 0.900108 * -0.607536)
    # / 1.538342 = -0.4951. Both are below 0.5. AAPL's mean is 0.29; all others have one article, or lesser means.
    assert [(each.ticker, each.priority, each.extras["sentiment"]) for each in found.candidates] == [
        ("AMD", "medium", -0.4951),
        ("AVGO", "medium", 0.4259),
    ]
    sums: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in json.loads(body("alphavantage/news_sentiment/NEWS_SENTIMENT.json"))["feed"]:
        for mention in item["ticker_sentiment"]:
            relevance = float(mention["relevance_score"])
            if relevance >= 0.5 and ":" not in mention["ticker"]:
                sums[mention["ticker"]].append((relevance, float(mention["ticker_sentiment_score"])))
    means = {ticker: sum(r * s for r, s in all_) / sum(r for r, _ in all_) for ticker, all_ in sums.items()}
    assert sorted(found.tickers) == sorted(
        ticker for ticker, all_ in sums.items() if len(all_) >= 2 and abs(means[ticker]) >= 0.35
    )
