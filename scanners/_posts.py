"""Share what the Reddit scanners have in common: settings, posts of their subreddits, and known tickers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from resilient_scan import Cache, Retry, ScanContext, Timeout
from resilient_scan.http import NotFound, TransientError

from ._asof import end_of, recent_day
from ._tickers import Companies, Usage
from .providers import reddit, sec
from .providers.reddit import Post

NEEDS: Final = {**reddit.NEEDS, "sec_user_agent": sec.USER_AGENT}
SOURCES: Final = (reddit.HOST,)
LAYERS: Final[dict[str, Any]] = {
    "cache": Cache(ttl=300, inputs=("trade_date",)),
    "retry": Retry(attempts=3, on=(TransientError,)),
    "limit": reddit.LIMIT,
    "timeout": Timeout(total=45),
}

Subreddits = Annotated[tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{2,50}$")], ...], Meta(min_length=1)]


class RedditSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of every Reddit scanner; each scanner adds the numbers of its rule.

    Attributes:
        base_url: the address of the API.
        token_url: the address for tokens; if empty, Reddit's own, or `base_url` if that is not Reddit's.
        client_id: the id of an application that Reddit has approved, which it demands since November 2025.
        client_secret: the application's secret.
        user_agent: in the form that Reddit wants: `platform:application:version (by /u/name)`.
        sec_url: the address of the list of tickers; if empty, EDGAR, or `base_url` if that is not Reddit's.
        sec_user_agent: a name and an e-mail address, for EDGAR.
        subreddits: the subreddits to read.
        sort: which 100 posts of each subreddit are read.
    """

    base_url: str = reddit.LIVE
    token_url: str = ""
    client_id: str = ""
    client_secret: str = ""
    user_agent: str = reddit.USER_AGENT
    sec_url: str = ""
    sec_user_agent: str = ""
    subreddits: Subreddits = ("wallstreetbets", "stocks", "options", "investing")
    sort: Literal["hot", "new", "top", "rising"] = "hot"


def companies(settings: RedditSettings, context: ScanContext) -> Companies:
    """Return all companies that report to the SEC, with their tickers."""
    base = settings.base_url.rstrip("/")
    address = settings.sec_url or (sec.LIVE if base == reddit.LIVE else base)

    def load() -> Companies:
        return Companies(sec.titles(address, context, setting="sec_user_agent"))

    return context.shared(("sec_companies", address.rstrip("/")), load, ttl=86400)


def usage(found: list[Post]) -> Usage:
    """Return how words are written in posts."""
    return Usage(whole(post) for post in found)


def whole(post: Post) -> str:
    """Return all that a post says."""
    return f"{post.title}\n{post.text}"


def posts(
    settings: RedditSettings, state: Mapping[str, Any], context: ScanContext, *, comments: bool = False
) -> list[Post]:
    """Return the posts of all subreddits, each once, without those that the moderators pinned.

    A subreddit that is missing or private is logged in the tool log. Reddit knows what is hot now, and nothing about
    another day. So of a day of this week only the posts that were there by its end count, and the answer is doubted:
    their scores, and which of them are hot, are those of now.

    Raises:
        NotFound: none of the subreddits can be read.
        PermanentError: the trade date is another day.
    """
    day = recent_day(state, context, "Reddit")
    client = reddit.client(settings.base_url, settings.token_url, settings.user_agent, context)
    wanted = [(name, sort) for name in settings.subreddits for sort in (settings.sort, "comments")[: 1 + comments]]
    found: dict[str, Post] = {}
    missing: list[NotFound] = []
    for name, sort in wanted:
        key = ("reddit", settings.base_url, name, sort)
        try:
            listing = context.shared(key, lambda: client.listing(name, sort, context), ttl=120)  # noqa: B023 - at once
        except NotFound as error:
            missing.append(error)
            context.log("reddit", subreddit=name, left_out=str(error))
            continue
        found |= {post.name: post for post in listing if not post.pinned}
    if len(missing) == len(wanted):
        raise missing[0]
    kept = [post for post in found.values() if day is None or post.created < end_of(day).timestamp()]
    context.log("reddit", listings=len(wanted) - len(missing), posts=len(kept))
    if not found:
        context.doubt(f"no posts at all in r/{', r/'.join(settings.subreddits)}", kind="empty")
    elif day is not None:
        context.doubt(
            f"Reddit does not know what was hot on {day}: these are the posts until then that are hot now",
            kind="wrong_day",
        )
    elif missing:
        context.doubt(
            f"{len(missing)} of {len(wanted)} listings cannot be read, the first because: {missing[0]}"[:300],
            kind="incomplete",
        )
    return kept
