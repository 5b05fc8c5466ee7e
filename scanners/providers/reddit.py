"""Call Reddit: the posts and comments of a subreddit, with an application's own key.

Since November 2025, Reddit has to approve an application before it gets a key (the "Responsible Builder Policy").
`POST /api/v1/access_token` with the application's id and secret gives a token for a day; `GET /r/NAME/hot` and
`/r/NAME/comments` with that token give a listing, `{"kind": "Listing", "data": {"children": [{"kind": "t3", "data":
{...}}]}}`; t3 is a post, t1 a comment. An application has 100 requests a minute, averaged over ten minutes; the headers
`x-ratelimit-remaining` and `x-ratelimit-reset` (seconds) say how much of that is used. Errors:

    401         the token has expired; from the address for tokens: id or secret are wrong
    403, JSON   the subreddit is private; from the address for tokens: the application may not have one
    403, HTML   the network or the user agent is blocked
    404, 302    there is no such subreddit, or it is banned
    429         too many requests
    5xx, HTML   trouble
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, NoReturn
from urllib.parse import quote

import msgspec

from resilient_scan import ConfigError, Limit, PermanentError, RetryAfter, ScanContext
from resilient_scan.http import Client, NotFound, Response, SchemaDrift, credential

from .reading import each, is_page, shaped

LIVE: Final = "https://oauth.reddit.com"
LIVE_TOKEN: Final = "https://www.reddit.com"  # noqa: S105 - where tokens come from
HOST: Final = "oauth.reddit.com"
PROVIDER: Final = "reddit"
LIMIT: Final = Limit(PROVIDER, rate="1000/10min")
NEEDS: Final[Mapping[str, str]] = {"client_id": "REDDIT_CLIENT_ID", "client_secret": "REDDIT_CLIENT_SECRET"}
USER_AGENT: Final = "python:resilient-scan:v1 (stock scanner)"
PAGE: Final = 100

_DEFAULT_PAUSE: Final = 60.0  # seconds, if a 429 does not say how long
_MAX_PAUSE: Final = 600.0
_RENEWAL_MARGIN: Final = 60.0  # seconds before its expiry at which a token is replaced

_Score = Annotated[int, msgspec.Meta(ge=-(10**7), le=10**7)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**8)]
_Time = Annotated[float, msgspec.Meta(ge=1.1e9, le=3.3e10)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=100_000)]


class _Token(msgspec.Struct):
    access_token: _Text
    expires_in: Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class _Child(msgspec.Struct):
    kind: str
    data: dict[str, Any]


class _Children(msgspec.Struct):
    children: list[Any]


class _Listing(msgspec.Struct):
    kind: str
    data: _Children


class _Post(msgspec.Struct):
    id: _Text
    subreddit: _Text
    title: _Text
    selftext: str
    score: _Score
    num_comments: _Count
    created_utc: _Time
    permalink: str
    stickied: bool
    link_flair_text: str | None = None


class _Comment(msgspec.Struct):
    id: _Text
    subreddit: _Text
    body: str
    score: _Score
    created_utc: _Time


@dataclass(frozen=True, slots=True)
class Post:
    """A post, or a comment, which has no title.

    Attributes:
        name: Reddit's name for it, such as `t3_1skh7qo`.
        created: epoch seconds.
        comments: how many there are; 0 for a comment.
        flair: the label that the author gave it; may be empty.
        pinned: whether the moderators pinned it to the top.
    """

    name: str
    subreddit: str
    title: str
    text: str
    score: int
    comments: int
    created: float
    flair: str = ""
    permalink: str = ""
    pinned: bool = False


class Reddit:
    """The client, which threads share. Get the one of this process from `client`."""

    def __init__(self, base_url: str, token_url: str, key: tuple[str, str], user_agent: str) -> None:
        basic = base64.b64encode(":".join(key).encode()).decode()
        headers = {"User-Agent": user_agent}
        self._basic = {"Authorization": f"Basic {basic}"}
        self._http = Client(base_url, headers=headers, secrets=[*key, basic])
        self._token_http = Client(token_url, headers=headers, secrets=[*key, basic])
        # The token and when it expires, by the scan's clock. No lock protects it, because it would be held during a
        # request. Two threads A and B that find no token may both request one, and B replaces the token that A stored.
        # Both tokens are valid, so that A goes on with its own, and the cost is one more request.
        self._token = ("", -math.inf)

    def listing(self, subreddit: str, sort: str, context: ScanContext) -> list[Post]:
        """Return the posts and comments in a listing of a subreddit, in Reddit's order.

        Args:
            subreddit: one, or several joined with `+`.
            sort: `hot`, `new`, `top`, `rising`, or `comments`.
            context: the context of the scan.

        Raises:
            NotFound: there is no such subreddit, or it is private or banned.
            SchemaDrift: the listing has another shape.
            RetryAfter, TransientError, PermanentError: as described at the top of this file.
        """
        path, query = f"/r/{quote(subreddit, safe='+')}/{sort}", {"limit": PAGE, "raw_json": 1}
        what = f"Reddit's r/{subreddit}/{sort}"
        answer = self._ask(path, query, self._valid_token(context), context)
        if answer.status == 401:  # expired early: the key was changed, or the clock is wrong
            answer = self._ask(path, query, self._new_token(context), context)
        if answer.status != 200:
            _refuse(answer, context)
        return read_listing(answer.json(), what, context)

    def _ask(self, path: str, query: Mapping[str, Any], token: str, context: ScanContext) -> Response:
        headers = {"Authorization": f"bearer {token}"}
        return self._http.get(path, query, context=context, headers=headers, accept=(302, 401, 403, 404, 429))

    def _valid_token(self, context: ScanContext) -> str:
        token, expires = self._token
        return token if context.now.timestamp() < expires else self._new_token(context)

    def _new_token(self, context: ScanContext) -> str:
        form = {"grant_type": "client_credentials"}
        answer = self._token_http.post(
            "/api/v1/access_token", form, context=context, headers=self._basic, accept=(400, 401, 403, 429)
        )
        if answer.status in {400, 401}:
            raise PermanentError(f"{answer.url}: HTTP {answer.status}; check client_id and client_secret")
        if answer.status == 403 and not is_page(answer):  # not the 403 of a private subreddit
            raise PermanentError(
                f"{answer.url}: HTTP 403; Reddit gives this application no token; check client_id, client_secret and "
                "whether it is approved"
            )
        if answer.status != 200:
            _refuse(answer, context)
        data = answer.json()
        if isinstance(data, dict) and "access_token" not in data and "error" in data:
            raise PermanentError(f"{answer.url}: {str(data['error'])[:40]}; check client_id and client_secret")
        said = shaped(data, _Token, "Reddit's token")
        self._token = (said.access_token, context.now.timestamp() + said.expires_in - _RENEWAL_MARGIN)
        return said.access_token


@lru_cache(maxsize=16)
def _client(base_url: str, token_url: str, key: tuple[str, str], user_agent: str) -> Reddit:
    return Reddit(base_url, token_url, key, user_agent)


def client(base_url: str, token_url: str, user_agent: str, context: ScanContext) -> Reddit:
    """Return the client for the scanner's key; its token serves all scanners of the process.

    Args:
        base_url: the address of the API.
        token_url: the address for tokens; if empty, Reddit's own, or `base_url` if that is not Reddit's.
        user_agent: in the form that Reddit wants.
        context: the context of the scan.

    Raises:
        ConfigError: the key is missing.
    """
    base = base_url.rstrip("/")
    try:
        key = tuple(credential(context, setting, variable) for setting, variable in NEEDS.items())
    except ConfigError as error:
        raise ConfigError(
            f"{error}; Reddit gives keys only to applications that it has approved (since November 2025)"
        ) from None
    return _client(base, token_url.rstrip("/") or (LIVE_TOKEN if base == LIVE else base), (key[0], key[1]), user_agent)


def read_listing(data: Any, what: str, context: ScanContext) -> list[Post]:
    """Return the posts and comments of a listing; entries that do not fit are logged in the tool log.

    Raises:
        SchemaDrift: it is not a listing, or many of its children do not fit; the message names the field.
    """
    listing = shaped(data, _Listing, what)
    if listing.kind != "Listing":
        raise SchemaDrift(f"{what} has the kind {listing.kind[:40]!r} and not 'Listing'")
    found = each(listing.data.children, _child, what, "reddit", context)
    return [post for post in found if post is not None]


def _child(row: Any, what: str) -> Post | None:
    child = shaped(row, _Child, what)
    if child.kind == "t3":
        post = shaped(child.data, _Post, what)
        return Post(
            f"t3_{post.id}", post.subreddit, post.title, post.selftext, post.score, post.num_comments, post.created_utc,
            post.link_flair_text or "", post.permalink, post.stickied,
        )  # fmt: skip
    if child.kind == "t1":
        said = shaped(child.data, _Comment, what)
        return Post(f"t1_{said.id}", said.subreddit, "", said.body, said.score, 0, said.created_utc)
    return None


def _refuse(answer: Response, context: ScanContext) -> NoReturn:
    """Raise the error that a response without data stands for."""
    said = f"{answer.url}: HTTP {answer.status}"
    if answer.status == 429:
        raise RetryAfter(_pause(answer, context), f"{said}; Reddit has had enough requests for now")
    if answer.status == 403 and is_page(answer):
        raise PermanentError(f"{said}; Reddit blocks this network or user_agent; check both, and the key")
    if answer.status == 403:
        raise NotFound(f"{said}; the subreddit is private, or the key may not read it")
    if answer.status == 401:
        raise PermanentError(f"{said}; a new token is refused too; check client_id and client_secret")
    raise NotFound(f"{said}; there is no such subreddit")


def _pause(answer: Response, context: ScanContext) -> float:
    """Return the seconds that a 429 asks to wait, by either of its headers."""
    wait = answer.retry_after(context.now)
    if wait is None:
        try:
            wait = float(answer.headers.get("x-ratelimit-reset", ""))
        except ValueError:
            wait = _DEFAULT_PAUSE
    return min(wait, _MAX_PAUSE) if wait >= 0 else _DEFAULT_PAUSE
