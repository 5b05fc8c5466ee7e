"""Find stocks about which somebody on Reddit has written research that others liked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from msgspec import Meta

from resilient_scan import Candidate, ScanContext, scanner

from ._posts import LAYERS, NEEDS, SOURCES, RedditSettings, companies, posts, usage, whole
from ._settings import read_settings
from ._tickers import Companies, Usage, mentions
from .providers.reddit import Post

_RESEARCH: Final = re.compile(r"(?<![A-Za-z])DD(?![A-Za-z])|\bdue diligence\b", re.IGNORECASE)
_IN_TITLE: Final = 3  # times the weight of a mention in the text


class DdSettings(RedditSettings, frozen=True, kw_only=True):
    """Settings of `reddit_dd`.

    Attributes:
        min_score: smallest score of a post.
        high_score: from this score on, the priority is `high`; below it, `medium`.
        min_length: shortest text, in characters.
        min_mentions: how often the text must name the ticker if the title does not.
    """

    min_score: Annotated[int, Meta(ge=0)] = 20
    high_score: Annotated[int, Meta(ge=0)] = 200
    min_length: Annotated[int, Meta(ge=0)] = 500
    min_mentions: Annotated[int, Meta(ge=1)] = 3


@scanner(pipeline="social", settings=DdSettings, needs=NEEDS, sources=SOURCES, **LAYERS)
def reddit_dd(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Research ("due diligence") on one stock.

    The rule: a post whose flair or title says DD or due diligence; its text has `min_length` characters or more, its
    score is `min_score` or more; it is about the ticker that it names most often, where a mention in the title counts
    three times, if the title names it or the text does `min_mentions` times. Each ticker is one candidate, for its best
    post; the highest score comes first. What a ticker is, and about which days Reddit can be asked, is said at
    `reddit_trending`.
    """
    settings = read_settings(DdSettings, context)
    found = posts(settings, state, context)
    known, used = companies(settings, context), usage(found)
    best: dict[str, Post] = {}
    for post in sorted(found, key=lambda post: (-post.score, post.name)):
        if is_research(post, settings) and (ticker := subject(post, known, used, settings.min_mentions)):
            best.setdefault(ticker, post)
    for ticker, post in best.items():
        yield Candidate(
            ticker=ticker,
            source="reddit_dd",
            context=f"research in r/{post.subreddit} with a score of {post.score}: {post.title}",
            priority="high" if post.score >= settings.high_score else "medium",
            strategy="social_dd",
            extras={
                "score": post.score,
                "comments": post.comments,
                "length": len(post.text),
                "permalink": post.permalink,
            },
        )


def is_research(post: Post, settings: DdSettings) -> bool:
    """Say whether a post is research, long enough, and liked enough."""
    named = _RESEARCH.search(post.flair) or _RESEARCH.search(post.title)
    return bool(named) and post.score >= settings.min_score and len(post.text) >= settings.min_length


def subject(post: Post, known: Companies, used: Usage, least: int) -> str:
    """Return the ticker that a post is about, or an empty text; of two named equally often, the first one."""
    title, text = (Counter(mentions(part, known, used, post=whole(post))) for part in (post.title, post.text))
    named = [ticker for ticker in dict.fromkeys([*title, *text]) if title[ticker] or text[ticker] >= least]
    return max(named, key=lambda ticker: _IN_TITLE * title[ticker] + text[ticker], default="")
