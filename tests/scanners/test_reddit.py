"""Reddit: the client's key and error language, `reddit_trending` and `reddit_dd`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, ConfigError, PermanentError, RetryAfter, ScanContext, ScanError, ScanRunner
from resilient_scan.http import NotFound, SchemaDrift, TransientError
from resilient_scan.testing import FakeClock
from resilient_scan_scanners._tickers import WORDS, mentions
from resilient_scan_scanners.providers import reddit
from resilient_scan_scanners.providers.reddit import Post, read_listing
from resilient_scan_scanners.reddit_dd import DdSettings, is_research, reddit_dd, subject
from resilient_scan_scanners.reddit_trending import reddit_trending
from tests.scanners.charts import scan
from tests.scanners.providers import places, replaced
from tests.scanners.recorded import Answer, Asked, RecordedServer, Source, body
from tests.support.examples import examples

KEY = {"client_id": "my-cl1ent-id", "client_secret": "my-cl1ent-secret"}
TOKEN = "t0ken-0f-the-day"
COMPANIES = {
    str(count): {"cik_str": count + 1, "ticker": ticker, "title": ticker}
    for count, ticker in enumerate(["GME", "AMD", "BRK-B", "A", "ALL", "IT", "F", "ON", "GM", "PLTR", "GOEV"])
}
UNIVERSE = {"GME", "AMD", "BRK.B", "BRK.A", "A", "ALL", "IT", "F", "ON", "GM", "PLTR"}
HOT = "reddit/r_listing_hot/popular_hot_2026-04-13_a.json"
COMMENTS = "reddit/derived_finance/finance_comments.json"


def as_json(data: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"content-type": "application/json; charset=UTF-8", **headers}, json.dumps(data).encode()


def page(status: int, text: str = "whoa there, pardner!") -> Answer:
    return status, {"content-type": "text/html"}, f"<!doctype html><html>{text}</html>".encode()


def post(count: int, title: str, text: str = "", **parts: Any) -> dict[str, Any]:
    data = {
        "id": f"p{count}", "subreddit": "stocks", "title": title, "selftext": text, "score": 10, "num_comments": 3,
        "created_utc": 1776100253.0, "permalink": f"/r/stocks/comments/p{count}/", "stickied": False,
        "link_flair_text": None, **parts,
    }  # fmt: skip
    return {"kind": "t3", "data": data}


def comment(count: int, text: str) -> dict[str, Any]:
    data = {"id": f"c{count}", "subreddit": "stocks", "body": text, "score": 1, "created_utc": 1776100253}
    return {"kind": "t1", "data": data}


def listing(*children: Any) -> dict[str, Any]:
    return {"kind": "Listing", "data": {"after": None, "children": list(children), "before": None}}


def served(answers: Mapping[str, Source]) -> RecordedServer:
    """Return a server of these listings, of a token, and of the companies, for whatever else is not given."""
    usual: dict[str, Source] = {
        "/api/v1/access_token": as_json({"access_token": TOKEN, "token_type": "bearer", "expires_in": 86400}),
        "/files/company_tickers.json": as_json(COMPANIES),
    }
    return RecordedServer(
        {**answers, **{path: said for path, said in usual.items() if path not in answers}}, manifest=False
    )


def trending(*children: Any, **numbers: Any) -> list[Candidate]:
    with served({"/r/stocks/hot": as_json(listing(*children))}) as server:
        return scan(reddit_trending, {}, base_url=server.url, subreddits=["stocks"], **KEY, **numbers)[0]


# ------------------------------------------------------------------------------------------------------------ tickers


@pytest.mark.parametrize(
    ("text", "tickers"),
    [
        ("GME and AMD, then GME again", ["GME", "AMD", "GME"]),
        ("$gme, $GME. ($Gme)", ["GME", "GME", "GME"]),
        ("gme Amd pltrX XPLTR PLTR2 _GME", []),
        ("A bird. ALL IN! IT is ON", []),
        ("$A $ALL $IT $ON $F", ["A", "ALL", "IT", "ON", "F"]),
        ("F is one letter, GM are two", ["GM"]),
        ("BRK.B BRK-B BRK/B $brk.b BRK.b", ["BRK.B"] * 4),
        ("I like GME.Buy it, AMD.I sold", ["GME", "AMD"]),
        ("I like GME.It is AMD's", ["GME", "AMD"]),
        ("https://x.example/GME?AMD [GME](https://a.example/AMD)", ["GME"]),
        ("S&P AT&T U.S. R&D P/E EPS NOTREAL $NOTREAL $5 $1B", []),
        ("GME's GME’s GME: GME!", ["GME"] * 4),
        ("pro-GME GME-AMD AMD/GME/PLTR", ["GME", "GME", "AMD", "AMD", "GME", "PLTR"]),
        ("", []),
    ],
)
def test_tickers_are_found_where_they_are_meant(text: str, tickers: list[str]) -> None:
    assert mentions(text, UNIVERSE) == tickers


def test_the_words_are_words() -> None:
    assert {"A", "ALL", "IT", "ON", "DD", "CEO", "YOLO", "JULY"} <= WORDS
    assert not WORDS & {"GME", "AMD", "AAPL", "PLTR", "SPY"}
    assert all(word.isalpha() and word.isupper() and len(word) <= 6 for word in WORDS)


# ------------------------------------------------------------------------------------------------------------ trending


def test_a_ticker_counts_once_a_post_and_the_most_mentioned_come_first() -> None:
    told = trending(
        post(1, "GME GME GME", "GME"),
        post(2, "nothing", "about $gme and AMD", score=500, subreddit="options"),
        post(3, "AMD, GME"),
        post(4, "AMD is mine", stickied=True),
        comment(5, "PLTR"),
        min_mentions=2,
    )
    assert [(each.ticker, each.extras["mentions"], each.priority) for each in told] == [
        ("GME", 3, "low"),
        ("AMD", 2, "low"),
    ]
    assert told[0].context == "named in 3 posts of r/options, r/stocks"
    assert told[0].extras == {"mentions": 3, "score": 520, "subreddits": ["options", "stocks"], "top_post": "nothing"}
    assert told[0].source == "reddit_trending"


@pytest.mark.parametrize(
    ("count", "priority"), [(2, None), (3, "low"), (4, "low"), (5, "medium"), (9, "medium"), (10, "high")]
)
def test_the_number_of_mentions_decides(count: int, priority: str | None) -> None:
    told = trending(*(post(number, "GME") for number in range(count)))
    assert [each.priority for each in told] == ([priority] if priority else [])


def test_comments_count_where_they_are_asked_for_and_a_post_in_two_listings_is_one() -> None:
    hot, comments = listing(post(1, "GME")), listing(comment(1, "GME"), comment(2, "so GME"), post(1, "GME"))
    answers = {"/r/stocks/hot": as_json(hot), "/r/stocks/comments": as_json(comments)}
    for options, mentioned, asked in (({}, [1], 1), ({"comments": True}, [3], 2)):
        with served(answers) as server:
            settings = {"base_url": server.url, "subreddits": ["stocks"], "min_mentions": 1, **KEY, **options}
            told, log = scan(reddit_trending, {}, **settings)
        assert [each.extras["mentions"] for each in told] == mentioned
        assert sum(path.startswith("/r/") for path in server.paths()) == asked
        assert log[-1]["listings"] == asked


def test_a_subreddit_that_is_not_there_costs_the_others_nothing() -> None:
    private = as_json({"message": "Forbidden", "error": 403, "reason": "private"}, 403)
    answers = {
        "/r/gone/hot": page(404),
        "/r/moved/hot": (302, {"location": "/subreddits/search"}, b""),
        "/r/own/hot": private,
    }
    with served({**answers, "/r/stocks/hot": as_json(listing(post(1, "GME")))}) as server:
        names = ["gone", "moved", "own", "stocks"]
        told, log = scan(reddit_trending, {}, base_url=server.url, subreddits=names, min_mentions=1, **KEY)
        assert [each.ticker for each in told] == ["GME"]
        assert [each["subreddit"] for each in log if "left_out" in each] == ["gone", "moved", "own"]
        with pytest.raises(NotFound, match="no such subreddit"):
            scan(reddit_trending, {}, base_url=server.url, subreddits=names[:3], **KEY)


# ------------------------------------------------------------------------------------------------------------------ dd

LONG = "This company makes games. " * 30  # 780 characters


def research(count: int, title: str, text: str = LONG, **parts: Any) -> dict[str, Any]:
    return post(count, title, text, **{"score": 100, "link_flair_text": "DD", **parts})


def test_a_research_is_told_by_its_best_post() -> None:
    children = [
        research(1, "GME: why", score=30),
        research(2, "GME again", LONG + "AMD " * 2, score=250),
        research(3, "Nobody knows", LONG + "AMD AMD AMD", score=199),
        research(4, "PLTR", score=19),
        research(5, "PLTR", "PLTR " * 50, link_flair_text="DD"),
        research(6, "PLTR", link_flair_text="Meme"),
        research(7, "Nothing in it", LONG + "PLTR PLTR"),
    ]
    with served({"/r/stocks/hot": as_json(listing(*children))}) as server:
        told, _ = scan(reddit_dd, {}, base_url=server.url, subreddits=["stocks"], **KEY)
    assert [(each.ticker, each.priority) for each in told] == [("GME", "high"), ("AMD", "medium")]
    assert told[0].context == "research in r/stocks with a score of 250: GME again"
    assert told[0].extras == {
        "score": 250,
        "comments": 3,
        "length": len(LONG) + 8,
        "permalink": "/r/stocks/comments/p2/",
    }
    assert told[0].source == "reddit_dd"


@pytest.mark.parametrize(
    ("title", "flair", "said"),
    [
        ("GME", "DD", True), ("GME", "Due Diligence", True), ("My DD on GME", "", True), ("[DD] GME", "News", True),
        ("GME", "", False), ("ADD more GME", "Talk", False), ("dd: gme", "", True), ("GME due  diligence", "", False),
    ],
)  # fmt: skip
def test_what_a_research_is(title: str, flair: str, said: bool) -> None:
    one = Post("t3_x", "stocks", title, LONG, 20, 0, 1.7e9, flair)
    assert is_research(one, DdSettings()) is said


@pytest.mark.parametrize(
    ("title", "text", "ticker"),
    [
        ("GME", "AMD AMD AMD", "GME"),  # 3 : 3, the title's first
        ("GME", "AMD AMD AMD AMD", "AMD"),
        ("GME or AMD", "AMD", "AMD"),
        ("x", "GME GME", ""),
        ("x", "GME GME AMD AMD GME", "GME"),
        ("", "", ""),
    ],
)
def test_what_a_research_is_about(title: str, text: str, ticker: str) -> None:
    assert subject(Post("t3_x", "stocks", title, text, 20, 0, 1.7e9), UNIVERSE, 3) == ticker


# ----------------------------------------------------------------------------------------------------- key and errors


def ask(server: RecordedServer, clock: FakeClock | None = None, **key: str) -> list[Post]:
    context = ScanContext("reddit_dd", clock=clock, settings={**KEY, **key})
    context.limit(context._own.clock.monotonic() + 20)
    return reddit.client(server.url, "", "test/1", context).listing("stocks", "hot", context)


def test_the_application_shows_its_key_once_and_then_its_token() -> None:
    with served({"/r/stocks/hot": as_json(listing())}) as server:
        assert ask(server) == ask(server) == []
    token, first, second = server.asked
    assert (token.method, token.path, token.body) == ("POST", "/api/v1/access_token", b"grant_type=client_credentials")
    assert base64.b64decode(token.headers["authorization"].removeprefix("Basic ")) == b"my-cl1ent-id:my-cl1ent-secret"
    assert first.headers["authorization"] == second.headers["authorization"] == f"bearer {TOKEN}"
    assert first.query == {"limit": "100", "raw_json": "1"}
    assert {each.headers["user-agent"] for each in server.asked} == {"test/1"}


def test_a_token_is_replaced_before_it_is_over() -> None:
    clock = FakeClock()
    with served({"/r/stocks/hot": as_json(listing())}) as server:
        ask(server, clock)
        clock.advance(86400 - 61)
        ask(server, clock)
        assert server.paths().count("/api/v1/access_token") == 1
        clock.advance(1)
        ask(server, clock)
        assert server.paths().count("/api/v1/access_token") == 2


def test_a_token_that_is_refused_is_replaced_once() -> None:
    refused = [True, False, True, True]

    def hot(_asked: Asked) -> Answer:
        return as_json({"message": "Unauthorized", "error": 401}, 401) if refused.pop(0) else as_json(listing())

    with served({"/r/stocks/hot": hot}) as server:
        assert ask(server) == []
        with pytest.raises(PermanentError, match="a new token is refused too; check client_id and client_secret"):
            ask(server)
    assert server.paths().count("/api/v1/access_token") == 3


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (as_json({"message": "Unauthorized", "error": 401}, 401), PermanentError, "check client_id and client_secret"),
        (as_json({"error": "unsupported_grant_type"}, 400), PermanentError, "check client_id and client_secret"),
        (as_json({"error": "invalid_grant"}), PermanentError, "invalid_grant; check client_id"),
        (page(403), PermanentError, "blocks this network or user_agent"),
        (page(500), TransientError, "HTTP 500"),
        (page(200), TransientError, "not JSON"),
        (as_json({"token": "x"}), SchemaDrift, "access_token"),
        (as_json({"access_token": "x", "expires_in": None}), SchemaDrift, "expires_in"),
        (as_json({"access_token": 5, "expires_in": 5}), SchemaDrift, "access_token"),
        (as_json([]), SchemaDrift, "Reddit's token"),
        (as_json({}, 429), RetryAfter, "enough requests"),
    ],
)
def test_what_the_gate_says_becomes_the_right_error(said: Answer, kind: type[ScanError], words: str) -> None:
    with served({"/api/v1/access_token": said}) as server, pytest.raises(ScanError, match=words) as caught:
        ask(server)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (as_json({"message": "Forbidden", "error": 403}, 403), NotFound, "private"),
        (page(403), PermanentError, "blocks this network"),
        (as_json({"message": "Not Found", "error": 404}, 404), NotFound, "no such subreddit"),
        ((302, {"location": "https://www.reddit.com/subreddits/search?q=x"}, b""), NotFound, "no such subreddit"),
        (page(429), RetryAfter, "enough requests"),
        (page(503), TransientError, "HTTP 503"),
        (page(502, ""), TransientError, "HTTP 502"),
        (page(200), TransientError, "not JSON"),
        (as_json({"message": "x"}), SchemaDrift, "r/stocks/hot has another shape.*kind"),
        (as_json({"kind": "t5", "data": {"children": []}}), SchemaDrift, "kind 't5'"),
        (as_json({"kind": "Listing", "data": {}}), SchemaDrift, "children"),
        (as_json({"kind": "Listing", "data": {"children": {}}}), SchemaDrift, "children"),
    ],
)
def test_what_reddit_says_becomes_the_right_error(said: Answer, kind: type[ScanError], words: str) -> None:
    with served({"/r/stocks/hot": said}) as server, pytest.raises(ScanError, match=words) as caught:
        ask(server)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 60.0),
        ({"retry-after": "7"}, 7.0),
        ({"x-ratelimit-reset": "315"}, 315.0),
        ({"x-ratelimit-reset": "x"}, 60.0),
        ({"x-ratelimit-reset": "1e9"}, 600.0),
        ({"x-ratelimit-reset": "-1"}, 60.0),
        ({"x-ratelimit-reset": "nan"}, 60.0),
    ],
)
def test_a_429_says_how_long_to_wait_in_either_header(headers: dict[str, str], seconds: float) -> None:
    with served({"/r/stocks/hot": as_json({}, 429, **headers)}) as server, pytest.raises(RetryAfter) as caught:
        ask(server)
    assert caught.value.seconds == seconds


def test_without_a_key_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDDIT_CLIENT_ID", raising=False)
    monkeypatch.delenv("REDDIT_CLIENT_SECRET", raising=False)
    with served({}) as server:
        with pytest.raises(ConfigError, match=r"scanners\.reddit_trending\.settings\.client_id or .*REDDIT_CLIENT_ID"):
            scan(reddit_trending, {}, base_url=server.url)
        with pytest.raises(ConfigError, match="REDDIT_CLIENT_SECRET"):
            scan(reddit_dd, {}, base_url=server.url, client_id="x")


def test_no_secret_is_in_anything_that_is_told() -> None:
    def echo(asked: Asked) -> Answer:
        return 400, {}, json.dumps([asked.headers, asked.body.decode()]).encode()

    for answers in ({"/r/*": echo}, {"/api/v1/access_token": (409, {}, b"my-cl1ent-secret my-cl1ent-id")}):
        with served(answers) as server:
            settings = {"base_url": server.url, "subreddits": ["stocks"], **KEY}
            with ScanRunner([reddit_trending], settings={"reddit_trending": settings}, listeners=()) as runner:
                report = runner.run({})
                told = json.dumps(report.to_dict()) + str(runner.explain("reddit_trending"))
        assert not report.complete
        for secret in (*KEY.values(), TOKEN, base64.b64encode(b"my-cl1ent-id:my-cl1ent-secret").decode()):
            assert secret not in told


# ---------------------------------------------------------------------------------------------------------- recordings


def recorded(**answers: Source) -> RecordedServer:
    body(HOT)
    return RecordedServer({f"/r/{name}/hot": said for name, said in answers.items()})


def test_the_recorded_comments_name_four_tickers_once() -> None:
    """By hand: 'shares of AMD at $12', 'SKT, SRG, or SPG'; MISO is no listed company, 'I' and 'A' are words."""
    with recorded(stocks=COMMENTS) as server:
        settings = {"base_url": server.url, "subreddits": ["stocks"], **KEY}
        told, _ = scan(reddit_trending, {}, min_mentions=1, **settings)
        assert [(each.ticker, each.extras["mentions"]) for each in told] == [
            ("AMD", 1), ("SKT", 1), ("SPG", 1), ("SRG", 1),
        ]  # fmt: skip
        assert scan(reddit_trending, {}, **settings)[0] == []
        assert scan(reddit_dd, {}, **settings)[0] == []


def test_the_recorded_posts_of_wallstreetbets_name_no_ticker() -> None:
    with recorded(wallstreetbets="reddit/derived_finance/wallstreetbets_posts.json", popular=HOT) as server:
        settings = {"base_url": server.url, "subreddits": ["wallstreetbets"], **KEY}
        told, log = scan(reddit_trending, {}, min_mentions=1, **settings)
        assert (told, log[-1]["posts"]) == ([], 2)  # 'Nvidia' is a name, no ticker
        _, log = scan(reddit_trending, {}, **{**settings, "subreddits": ["wallstreetbets", "popular"]})
        assert log[-1]["posts"] == 101  # 100, and the one of the two that is not among them
        assert scan(reddit_dd, {}, **{**settings, "subreddits": ["popular"]})[0] == []


@pytest.mark.parametrize(
    ("file", "count"),
    [
        (HOT, 100),
        (COMMENTS, 11),
        ("reddit/r_listing_hot/askreddit_hot_2016.json", 102),
        ("reddit/r_search/search_2016.json", 6),
        ("reddit/r_listing_empty/no_items.json", 0),
        ("reddit/derived_finance/wallstreetbets_posts.json", 2),
    ],
)
def test_every_recorded_listing_is_read(file: str, count: int) -> None:
    context = ScanContext()
    found = read_listing(json.loads(body(file)), "Reddit", context)
    assert (len(found), context.tool_logs()) == (count, [])


@pytest.mark.parametrize(("error", "kind"), [("403_forbidden", NotFound), ("404_not_found", NotFound)])
def test_every_recorded_error(error: str, kind: type[ScanError]) -> None:
    body(HOT)
    with RecordedServer({"/r/stocks/hot": f"reddit/errors/{error}.json"}) as server, pytest.raises(kind):
        ask(server)


# --------------------------------------------------------------------------------------------------------------- drift


OWN = listing(research(1, "My DD on GME", score=50))
JUNK = [None, "x", "", 10**30, -(10**30), 1e308, float("nan"), True, [], {}, "gone"]
READ = {"id", "subreddit", "title", "selftext", "score", "num_comments", "created_utc", "permalink", "stickied"}


@settings(deadline=None, max_examples=examples(200))
@given(path=st.sampled_from(list(places(OWN, most=None))), value=st.sampled_from(JUNK))
def test_whatever_one_field_becomes_there_is_no_false_candidate(path: tuple[Any, ...], value: Any) -> None:
    with served({"/r/stocks/hot": as_json(replaced(OWN, path, value))}) as server:
        try:
            told, _ = scan(reddit_dd, {}, base_url=server.url, subreddits=["stocks"], **KEY)
        except (SchemaDrift, TransientError) as error:
            assert "stocks" in str(error)  # noqa: PT017 - candidates, or this
            return
    for each in told:
        assert (each.ticker, each.priority) == ("GME", "medium")
        assert each.extras["score"] == 50


@pytest.mark.parametrize("field", sorted(READ))
@pytest.mark.parametrize("value", [None, [], "gone"])
def test_a_field_that_is_gone_or_changed_is_named(field: str, value: Any) -> None:
    changed = replaced(OWN, ("data", "children", 0, "data", field), value)
    with pytest.raises(SchemaDrift, match=field):
        read_listing(changed, "Reddit", ScanContext())


def test_one_strange_child_of_many_is_left_out_and_told() -> None:
    children = [
        *(post(number, "GME") for number in range(5)),
        post(6, "GME", score="many"),
        {"kind": "more", "data": {}},
    ]
    context = ScanContext()
    assert len(read_listing(listing(*children), "Reddit", context)) == 5
    (entry,) = context.tool_logs()
    assert "score" in entry["left_out"]


def test_whatever_one_field_of_a_real_post_becomes_it_is_read_the_same_or_the_field_is_named() -> None:
    children = json.loads(body("reddit/derived_finance/wallstreetbets_posts.json"))["data"]["children"]
    (real,) = read_listing(listing(children[0]), "Reddit", ScanContext())
    named: set[str] = set()
    for field in children[0]["data"]:
        for value in (None, [], {}, 10**30, 1e308, "gone"):
            changed = deepcopy(children[0])
            if value == "gone":
                del changed["data"][field]
            else:
                changed["data"][field] = value
            try:
                (read,) = read_listing(listing(changed), "Reddit", ScanContext())
            except SchemaDrift as error:
                assert field in str(error)  # noqa: PT017 - the same post, or this
                named.add(field)
            else:
                assert read == real or field == "link_flair_text"
    assert named == {*READ, "link_flair_text"}
