"""Find stocks about which the news agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Candidate, Retry, ScanContext, Timeout, scanner
from resilient_scan.http import TransientError, credential

from ._asof import end_of
from ._charts import only, trade_date
from ._listings import with_point
from ._settings import read_settings
from .providers import alpha_vantage
from .providers.alpha_vantage import Article, Mention

_STOCK: Final = re.compile(r"[A-Z]{1,5}([.-][A-Z])?")  # not CRYPTO:BTC, not FOREX:USD


class NewsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `news_sentiment`.

    Attributes:
        api_key: Alpha Vantage's key; or set ALPHAVANTAGE_API_KEY.
        base_url: the address of Alpha Vantage.
        topics: Alpha Vantage's topics, separated by commas, such as `earnings,mergers_and_acquisitions`; empty: all.
        limit: how many articles to request; 0 means its default, 50.
        min_relevance: an article counts for a ticker from this relevance on, 0 to 1.
        min_articles: how many articles a ticker needs.
        min_sentiment: smallest mean sentiment, up or down; Alpha Vantage calls 0.35 and more bullish.
        high_sentiment: from this mean on, the priority is `high`; below it, `medium`.
        max_age_days: older articles do not count.
    """

    api_key: str = ""
    base_url: str = alpha_vantage.LIVE
    topics: str = ""
    limit: Annotated[int, Meta(ge=0, le=1000)] = 0
    min_relevance: Annotated[float, Meta(ge=0, le=1)] = 0.5
    min_articles: Annotated[int, Meta(ge=1)] = 2
    min_sentiment: Annotated[float, Meta(gt=0, le=1)] = 0.35
    high_sentiment: Annotated[float, Meta(gt=0, le=1)] = 0.5
    max_age_days: Annotated[int, Meta(ge=1, le=30)] = 3


@scanner(
    pipeline="news",
    settings=NewsSettings,
    cache=Cache(ttl=10_800, stale_if_error=21_600, inputs=("trade_date", "tickers")),  # 8 of 25 requests a day
    retry=Retry(attempts=3, on=(TransientError,)),
    timeout=Timeout(total=30),
    limit=alpha_vantage.LIMIT,
    needs={"api_key": alpha_vantage.KEY},
    sources=(alpha_vantage.HOST,),
)
def news_sentiment(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Stocks whose news are clearly good, or clearly bad.

    The rule: at least `min_articles` articles of the last `max_age_days` days until the end of the trade date (New
    York's) are about the stock with a relevance of `min_relevance` or more, and the mean of their sentiments, weighted
    by relevance, is `min_sentiment` or more, or that far below zero. If the state has `tickers`, only these count.
    A stock with an article that cannot be read is left out. The strongest sentiment comes first. Of the days that
    count, the newest `limit` articles are read. For a past trade date, those of its days are asked for.
    """
    settings = read_settings(NewsSettings, context)
    key = credential(context, "api_key", alpha_vantage.KEY)
    filters = {"topics": settings.topics, "limit": str(settings.limit or ""), **_days(state, context, settings)}
    chosen = {name: value for name, value in filters.items() if value}
    news = alpha_vantage.client(settings.base_url).news(key, context, **chosen)
    articles = news.articles
    recent = _recent(articles, state, context, settings)
    context.log("alpha_vantage_news", articles=len(articles), recent=len(recent), unread=sorted(news.unread))
    if not articles and not settings.topics:
        context.doubt("Alpha Vantage has no articles at all")
    if articles and not recent:
        context.doubt(f"none of {len(articles)} articles is of the {settings.max_age_days} days before the trade date")
    found = mentioned(recent, settings)
    unread = set(map(with_point, news.unread))  # without that article, the mean may be wrong
    wanted = [ticker for ticker in filter(only(state), found) if ticker not in unread]
    candidates = [find_mood(ticker, found[ticker], settings) for ticker in wanted]
    yield from sorted(filter(None, candidates), key=lambda each: (-abs(each.extras["sentiment"]), each.ticker))


def _days(state: Mapping[str, Any], context: ScanContext, settings: NewsSettings) -> dict[str, str]:
    """Return the parameters that ask for the articles of a past day; without them the newest ones come."""
    day = trade_date(state, context)
    if day >= trade_date({}, context):
        return {}
    first, end = _period(day, settings)
    last = end - timedelta(minutes=1)
    return {name: f"{at.astimezone(UTC):%Y%m%dT%H%M}" for name, at in (("time_from", first), ("time_to", last))}


def _period(day: date, settings: NewsSettings) -> tuple[datetime, datetime]:
    """Return when the days that count begin, and when they have ended."""
    end = end_of(day)
    return end - timedelta(days=settings.max_age_days + 1), end


def _recent(
    articles: Sequence[Article], state: Mapping[str, Any], context: ScanContext, settings: NewsSettings
) -> list[Article]:
    """Return the articles of the days that count, each once."""
    first, end = _period(trade_date(state, context), settings)
    once = {article.url: article for article in articles}
    return [article for article in once.values() if first <= article.published < end]


def mentioned(articles: Sequence[Article], settings: NewsSettings) -> dict[str, list[tuple[Article, Mention]]]:
    """Return the articles about each ticker; symbols that are not stocks are left out."""
    found: dict[str, list[tuple[Article, Mention]]] = {}
    for article in articles:
        for mention in {each.ticker: each for each in article.mentions}.values():
            if mention.relevance >= settings.min_relevance and _STOCK.fullmatch(mention.ticker):
                found.setdefault(with_point(mention.ticker), []).append((article, mention))
    return found


def find_mood(ticker: str, mentions: Sequence[tuple[Article, Mention]], settings: NewsSettings) -> Candidate | None:
    """Apply the rule of `news_sentiment` to the articles about one stock."""
    weight = sum(mention.relevance for _, mention in mentions)
    if len(mentions) < settings.min_articles or weight <= 0:
        return None
    mood = round(sum(mention.relevance * mention.sentiment for _, mention in mentions) / weight, 9)
    if abs(mood) < settings.min_sentiment:
        return None
    article, _ = max(mentions, key=lambda pair: (pair[1].relevance, pair[0].published))
    return Candidate(
        ticker=ticker,
        source="news_sentiment",
        context=f"{'good' if mood > 0 else 'bad'} news: a sentiment of {mood:+.2f} in {len(mentions)} articles, "
        f"such as: {article.title[:160]}",
        priority="high" if abs(mood) >= settings.high_sentiment else "medium",
        strategy="news",
        extras={"sentiment": round(mood, 4), "articles": len(mentions), "url": article.url},
    )
