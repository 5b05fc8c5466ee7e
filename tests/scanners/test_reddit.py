"""Reddit: the client's key and error language, `reddit_trending` and `reddit_dd`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import Candidate, ConfigError, PermanentError, RetryAfter, ScanContext, ScanError, ScanRunner
from resilient_scan.http import NotFound, SchemaDrift, TransientError
from resilient_scan.testing import FakeClock
from resilient_scan_scanners._tickers import Companies, Usage, mentions
from resilient_scan_scanners.providers import reddit
from resilient_scan_scanners.providers.reddit import Post, read_listing
from resilient_scan_scanners.providers.sec import read_titles
from resilient_scan_scanners.reddit_dd import DdSettings, is_research, reddit_dd, subject
from resilient_scan_scanners.reddit_trending import reddit_trending
from tests.scanners.charts import scan
from tests.scanners.providers import ask as ask_scanner
from tests.scanners.providers import places, replaced
from tests.scanners.recorded import Answer, Asked, RecordedServer, Source, body
from tests.support.examples import examples

KEY = {"client_id": "my-cl1ent-id", "client_secret": "my-cl1ent-secret"}
TOKEN = "t0ken-0f-the-day"
COMPANIES = {
    str(count): {"cik_str": count + 1, "ticker": ticker, "title": ticker}
    for count, ticker in enumerate(["GME", "AMD", "BRK-B", "A", "ALL", "IT", "F", "ON", "GM", "PLTR", "GOEV"])
}
UNIVERSE = Companies(
    dict.fromkeys(
        ["GME", "AMD", "BRK.B", "BRK.A", "A", "IT", "F", "ON", "GM", "PLTR", "AI", "DTE", "DD"], "Somebody Else"
    )
    | {"ALL": "ALLSTATE CORP", "MS": "MORGAN STANLEY", "CAT": "CATERPILLAR INC"}
)
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
        # the sign
        ("$gme, $GME. ($Gme)", ["GME", "GME", "GME"]),
        ("$A $ALL $IT $ON $F", ["A", "ALL", "IT", "ON", "F"]),
        ("$brk.b $BRK-B $BRK/B", ["BRK.B"] * 3),
        ("S&P AT&T U.S. R&D P/E EPS NOTREAL $NOTREAL $5 $1B", []),
        ("it was $GME all along, GME I say, and gme", ["GME", "GME"]),  # once known, its other mentions count
        # an exchange
        ("(NYSE: GM) and Nasdaq:AMD", ["GM", "AMD"]),
        ("NYSE: it is closed", []),
        # trading vocabulary
        ("I bought GM and sold CAT, short MS", ["GM", "CAT", "MS"]),
        ("shares of AMD at 12, calls on GME, long PLTR, my CAT puts", ["AMD", "GME", "PLTR", "CAT"]),
        ("GM 45c or MS 90p? AMD is up 5 % and CAT's earnings", ["GM", "MS", "AMD", "CAT"]),
        ("BRK.B shares, BRK-B shares, BRK/B shares, BRK.b shares", ["BRK.B"] * 3),
        ("I bought it. GM is a greeting", []),  # not right next to it
        ("GM everyone, my CAT is asleep, MS paint, AMD", []),
        ("gme calls, Amd calls, pltrX calls, XPLTR calls, PLTR2 calls, _GME calls", []),
        ("F calls", []),  # one letter needs the sign
        ("0 DTE calls, OTM puts, DD on puts", []),
        ("pro-GME calls", ["GME"]),
        # the company's name
        ("Morgan Stanley beat, so MS rose; Caterpillar and CAT", ["MS", "CAT"]),
        ("a caterpillar ate my CAT food", []),  # one word has to be written like a name
        ("morgan stanley and MS", ["MS"]),
        # a list
        ("AMD, GME and PLTR", ["AMD", "GME", "PLTR"]),
        ("GME/AMD", []),
        ("$GME, AMD & MS", ["GME", "AMD", "MS"]),
        ("AI, IT, ON", []),  # words of two letters are no signal for each other
        # how words are used
        ("sell all of it. I sold ALL shares", []),
        ("sold ALL shares of Allstate Corp", ["ALL"]),
        # shouting
        ("BUY GM CALLS NOW OR CRY FOREVER", []),
        ("BUY $GM CALLS NOW OR CRY", ["GM"]),
        ("https://x.example/GME?AMD [GME](https://a.example/AMD) calls", []),
        ("", []),
    ],
)
def test_tickers_are_found_where_they_are_meant(text: str, tickers: list[str]) -> None:
    assert mentions(text, UNIVERSE) == tickers


def test_how_the_other_posts_use_a_word_decides_whether_it_is_one() -> None:
    text = "sold ALL shares"
    assert mentions(text, UNIVERSE, Usage([text, "ALL calls"])) == ["ALL"]
    assert mentions(text, UNIVERSE, Usage([text, "all of it", "All right"])) == []
    assert mentions("$ALL", UNIVERSE, Usage(["all of it"] * 9)) == ["ALL"]


def test_names_are_those_of_the_list_without_what_nobody_says() -> None:
    titles = {
        "AAPL": "Apple Inc.", "APLE": "Apple Hospitality REIT, Inc.", "OPEN": "Opendoor Technologies Inc",
        "NOTE": "FiscalNote Holdings, Inc.", "GPS": "GAP INC", "BRK.B": "BERKSHIRE HATHAWAY INC",
    }  # fmt: skip
    companies = Companies(titles)
    assert companies.is_named("AAPL", "Apple is a company")
    assert not companies.is_named("AAPL", "an apple a day")
    assert not companies.is_named("APLE", "Apple is another company")
    assert companies.is_named("OPEN", "Opendoor lost money")
    assert companies.is_named("NOTE", "FiscalNote sinks")
    assert companies.is_named("BRK.B", "berkshire hathaway is cheap")
    assert not companies.is_named("GPS", "a Gap in the fence")  # too short to be sure
    assert not Companies({"SNAP": "Snap Inc."}).is_named("SNAP", "Snap out of it")  # its own name is no second signal


MEASURED = Path(__file__).with_name("posts.txt")


def test_on_posts_written_for_it_few_tickers_are_false_and_few_are_missed() -> None:
    """244 posts of our own, half of them about a stock; how good it is on real posts is not known."""
    text = body("sec/company_tickers/company_tickers.json")
    companies = Companies(read_titles(json.loads(text)))
    rows = [row.partition("|")[::2] for row in MEASURED.read_text().splitlines() if not row.startswith("#")]
    assert sum(bool(wanted) for wanted, _ in rows) > 100 < sum(not wanted for wanted, _ in rows)
    used = Usage(post for _, post in rows)
    right = false = missed = 0
    for wanted, post in rows:
        want, got = {*filter(None, wanted.split(","))}, {*mentions(post, companies, used)}
        right, false, missed = right + len(want & got), false + len(got - want), missed + len(want - got)
    assert right / (right + false) > 0.97  # 124 of 127
    assert right / (right + missed) > 0.93  # 124 of 133


@pytest.mark.parametrize(
    ("file", "tickers"),
    [
        (HOT, set()),
        ("reddit/r_listing_hot/askreddit_hot_2016.json", set()),
        ("reddit/r_search/search_2016.json", set()),
        ("reddit/derived_finance/wallstreetbets_posts.json", set()),
        (COMMENTS, {"AMD", "SKT", "SRG", "SPG"}),
    ],
)
def test_in_the_recorded_posts_no_ticker_is_false(file: str, tickers: set[str]) -> None:
    companies = Companies(read_titles(json.loads(body("sec/company_tickers/company_tickers.json"))))
    texts = [f"{post.title}\n{post.text}" for post in read_listing(json.loads(body(file)), "Reddit", ScanContext())]
    for used in (Usage(texts), None):
        assert {ticker for text in texts for ticker in mentions(text, companies, used)} == tickers


# ------------------------------------------------------------------------------------------------------------ trending


def test_a_ticker_counts_once_a_post_and_the_most_mentioned_come_first() -> None:
    told = trending(
        post(1, "GME calls, GME puts", "GME"),
        post(2, "nothing", "about $gme and AMD", score=500, subreddit="options"),
        post(3, "so I bought AMD, GME"),
        post(4, "my AMD shares", stickied=True),
        comment(5, "PLTR calls"),
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
    told = trending(*(post(number, "GME calls") for number in range(count)))
    assert [each.priority for each in told] == ([priority] if priority else [])


def test_comments_count_where_they_are_asked_for_and_a_post_in_two_listings_is_one() -> None:
    first = post(1, "$GME")
    hot, comments = listing(first), listing(comment(1, "$GME"), comment(2, "so, short GME"), first)
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
    with served({**answers, "/r/stocks/hot": as_json(listing(post(1, "$GME")))}) as server:
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
        research(1, "Why I bought GME", score=30),
        research(2, "GME again", LONG + "GME calls, AMD", score=250),
        research(3, "Nobody knows", LONG + "AMD calls, AMD puts, AMD", score=199),
        research(4, "$PLTR", score=19),
        research(5, "$PLTR", "PLTR " * 50, link_flair_text="DD"),
        research(6, "$PLTR", link_flair_text="Meme"),
        research(7, "Nothing in it", LONG + "$PLTR PLTR"),
    ]
    with served({"/r/stocks/hot": as_json(listing(*children))}) as server:
        told, _ = scan(reddit_dd, {}, base_url=server.url, subreddits=["stocks"], **KEY)
    assert [(each.ticker, each.priority) for each in told] == [("GME", "high"), ("AMD", "medium")]
    assert told[0].context == "research in r/stocks with a score of 250: GME again"
    assert told[0].extras == {
        "score": 250,
        "comments": 3,
        "length": len(LONG) + 14,
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
        ("Buy GME", "$AMD, and so AMD is AMD", "GME"),  # 3 : 3, the title's first
        ("Buy GME", "$AMD, and so AMD is AMD and AMD", "AMD"),
        ("Buy GME or AMD", "as AMD will do", "AMD"),
        ("why GME", "as GME calls are cheap", "GME"),  # the signal may be in the text
        ("x", "$GME, and GME", ""),
        ("x", "$GME, and GME or so, $AMD and then AMD, while GME", "GME"),
        ("", "", ""),
    ],
)
def test_what_a_research_is_about(title: str, text: str, ticker: str) -> None:
    assert subject(Post("t3_x", "stocks", title, text, 20, 0, 1.7e9), UNIVERSE, Usage(), 3) == ticker


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
        (as_json({"message": "Forbidden", "error": 403}, 403), PermanentError, "HTTP 403; Reddit gives .* no token"),
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
        with pytest.raises(ConfigError, match=r"\.client_id or .*REDDIT_CLIENT_ID; .* approved"):
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


@pytest.mark.parametrize("said", [page(403), as_json({"message": "Forbidden", "error": 403}, 403)])
def test_the_status_of_a_token_that_is_refused_is_in_every_text(said: Answer, caplog: pytest.LogCaptureFixture) -> None:
    """`access_token: HTTP 403` looks like a name and its secret, and is a diagnosis."""
    with served({"/api/v1/access_token": said}) as server:
        settings = {"reddit_trending": {"base_url": server.url, "subreddits": ["stocks", "options"], **KEY}}
        with ScanRunner([reddit_trending], settings=settings) as runner, caplog.at_level("WARNING", "resilient_scan"):
            (result,) = runner.run({}).results.values()
    assert server.paths().count("/api/v1/access_token") == 1  # not once for each subreddit
    assert result.error is not None
    for text in (result.error.message, result.error.traceback, caplog.text):
        assert f"{server.url}/api/v1/access_token: HTTP 403; " in text


@pytest.mark.parametrize(
    ("trade_date", "tickers"), [("2026-04-13", ["GME"]), ("2026-04-12", ["AMD"]), ("2026-04-14", ["GME"])]
)
def test_of_a_day_of_this_week_later_posts_do_not_count_and_the_rest_is_doubted(
    trade_date: str, tickers: list[str]
) -> None:
    hot = [post(1, "$GME"), post(2, "$GME"), post(3, "$AMD", created_utc=1776050000.0)]  # 2026-04-12, 23:13 in New York
    for scanner, numbers in ((reddit_trending, {"min_mentions": 1}), (reddit_dd, {"min_length": 0})):
        children = [{**each, "data": {**each["data"], "link_flair_text": "DD", "score": 50}} for each in hot]
        with served({"/r/stocks/hot": as_json(listing(*children))}) as server:
            own = {"base_url": server.url, "subreddits": ["stocks"], **KEY, **numbers}
            asked = ask_scanner(scanner, "2026-04-13T18:00:00+00:00", {"trade_date": trade_date}, **own)
        past = trade_date == "2026-04-12"
        assert set(tickers) <= set(asked.tickers)
        assert ("GME" in asked.tickers) is not past
        assert (asked.doubted is not None) is past


@pytest.mark.parametrize("scanner", [reddit_trending, reddit_dd])
def test_another_day_is_refused(scanner: Any) -> None:
    with served({}) as server, pytest.raises(PermanentError, match="Reddit knows only the last days, not 2022-04-13"):
        ask_scanner(scanner, "2026-04-13T18:00:00+00:00", {"trade_date": "2022-04-13"}, base_url=server.url, **KEY)
    assert server.asked == []


def test_a_subreddit_that_is_missing_makes_the_answer_doubtful() -> None:
    with served({"/r/gone/hot": page(404), "/r/stocks/hot": as_json(listing(post(1, "$GME")))}) as server:
        own = {"base_url": server.url, "subreddits": ["gone", "stocks"], "min_mentions": 1, **KEY}
        asked = ask_scanner(reddit_trending, "2026-04-13T18:00:00+00:00", **own)
    assert asked.tickers == ["GME"]
    assert "1 of 2 listings cannot be read" in str(asked.doubted)


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


OWN = listing(research(1, "My DD on $GME", score=50))
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
