"""Find stocks that many people on Reddit write about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta

from resilient_scan import Candidate, ScanContext, scanner

from ._posts import LAYERS, NEEDS, SOURCES, RedditSettings, companies, posts, usage, whole
from ._settings import read_settings
from ._tickers import mentions
from .providers.reddit import Post


class TrendingSettings(RedditSettings, frozen=True, kw_only=True):
    """Settings of `reddit_trending`.

    Attributes:
        comments: whether the newest 100 comments of each subreddit count as well.
        min_mentions: in how many posts or comments a ticker must be named.
        medium_mentions: from this number of mentions on, the priority is `medium`; below it, `low`.
        high_mentions: from this number of mentions on, the priority is `high`.
    """

    comments: bool = False
    min_mentions: Annotated[int, Meta(ge=1)] = 3
    medium_mentions: Annotated[int, Meta(ge=1)] = 5
    high_mentions: Annotated[int, Meta(ge=1)] = 10


@scanner(pipeline="social", settings=TrendingSettings, needs=NEEDS, sources=SOURCES, **LAYERS)
def reddit_trending(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Tickers that are named in many posts.

    The rule: a ticker of a real company with a signal that it is meant (`$gme`, `NYSE: GM`, the company's name, trading
    vocabulary next to it, other tickers in a list with it), in the title or the text of `min_mentions` posts or more,
    or of comments. A post counts once for each ticker, however often it names it; posts that the moderators pinned do
    not count. The most mentioned come first. Reddit knows only now: for a `trade_date` of this week the answer is
    suspicious, and for another one the scanner refuses.
    """
    settings = read_settings(TrendingSettings, context)
    found = posts(settings, state, context, comments=settings.comments)
    known, used = companies(settings, context), usage(found)
    naming: dict[str, list[Post]] = {}
    for post in found:
        for ticker in dict.fromkeys(mentions(whole(post), known, used)):
            naming.setdefault(ticker, []).append(post)
    for ticker, named in sorted(naming.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(named) >= settings.min_mentions:
            yield _candidate(ticker, named, settings)


def _candidate(ticker: str, named: list[Post], settings: TrendingSettings) -> Candidate:
    count, best = len(named), max(named, key=lambda post: post.score)
    places = sorted({post.subreddit for post in named})
    return Candidate(
        ticker=ticker,
        source="reddit_trending",
        context=f"named in {count} {'post' if count == 1 else 'posts'} of r/{', r/'.join(places)}",
        priority=_priority(count, settings),
        strategy="social",
        extras={
            "mentions": count,
            "score": sum(post.score for post in named),
            "subreddits": places,
            "top_post": best.title or best.text[:100],
        },
    )


def _priority(count: int, settings: TrendingSettings) -> str:
    if count >= settings.high_mentions:
        return "high"
    return "medium" if count >= settings.medium_mentions else "low"
