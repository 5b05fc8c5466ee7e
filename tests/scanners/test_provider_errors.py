"""What Alpha Vantage, Finnhub and Yahoo say instead of data, and which exception each of it becomes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import PermanentError, RetryAfter, ScanContext
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.http import NotFound, Recorder, Replay, SchemaDrift, TransientError
from resilient_scan_scanners.providers.alpha_vantage import AlphaVantage
from resilient_scan_scanners.providers.finnhub import Finnhub
from resilient_scan_scanners.providers.yahoo_market import YahooMarket
from tests.scanners.providers import CHAIN, JSON, KEY, TEXT, TRENDS, as_json, context_at, screened
from tests.scanners.recorded import answer as recorded_answer

# 16:00 of a Sunday in New York: the day's quota is new in 8 hours
NOW = "2026-05-17T20:00:00+00:00"
HTML = {"Content-Type": "text/html"}


def raised(answer: Answer | Callable[[str, dict[str, str]], Answer], ask: Callable[[str, ScanContext], Any]) -> Any:
    """Return the exception that a client raises when everything is answered like this."""
    respond = answer if callable(answer) else lambda _path, _query: answer
    with LoopbackServer(respond) as server, pytest.raises(Exception) as caught:  # noqa: PT011 - looked at by the test
        ask(server.url, context_at(NOW))
    assert KEY not in str(caught.value)
    return caught.value


def movers(url: str, context: ScanContext) -> Any:
    return AlphaVantage(url).movers(KEY, context)


def calendar(url: str, context: ScanContext) -> Any:
    return AlphaVantage(url).earnings(KEY, context)


def news(url: str, context: ScanContext) -> Any:
    return AlphaVantage(url).news(KEY, context)


def trends(url: str, context: ScanContext) -> Any:
    return Finnhub(url).recommendations("X", KEY, context)


def reports(url: str, context: ScanContext) -> Any:
    day = context.now.date()
    return Finnhub(url).earnings(day, day, KEY, context)


def screener(url: str, context: ScanContext) -> Any:
    return YahooMarket(url).screener("day_gainers", 5, context)


def options(url: str, context: ScanContext) -> Any:
    return YahooMarket(url).options("TEST", context)


# ------------------------------------------------------------------------------------------------------ Alpha Vantage

SAID = [
    ("Note", "Our standard API call frequency is 5 calls per minute and 500 calls per day.", RetryAfter, 60),
    ("Note", "Please visit the premium page if you want a higher API call volume.", RetryAfter, 60),
    (
        "Information",
        "Our standard API rate limit is 25 requests per day. Subscribe to a premium plan.",
        RetryAfter,
        28800,
    ),
    ("Information", f"We have detected your API key as {KEY} and the limit is 25 requests per day.", RetryAfter, 28800),
    (
        "Information",
        "Please spread out your requests (1 request per second). Plans lift the 25 requests per day for all premium.",
        RetryAfter,
        1,
    ),
    ("Information", "Burst pattern detected.", RetryAfter, 1),
    (
        "Information",
        "This is a premium endpoint. Subscribe to any plan to unlock all premium endpoints.",
        PermanentError,
        0,
    ),
    (
        "Information",
        "The **demo** API key is for demo purposes only. Please claim your free API key.",
        PermanentError,
        0,
    ),
    ("Information", "Invalid inputs. Please refer to the API documentation.", PermanentError, 0),
    ("Information", "Something that nobody has heard of.", TransientError, 0),
    ("Error Message", "the parameter apikey is invalid or missing.", PermanentError, 0),
    ("Error Message", "Invalid API call. Please retry or visit the documentation.", PermanentError, 0),
    ("Error Message", "Invalid API call. Visit the documentation for TIME_SERIES_DAILY.", PermanentError, 0),
    ("Error Message", "Something that nobody has heard of.", PermanentError, 0),
    ("Information", "You have reached the 100 requests/day limit for your free API key.", RetryAfter, 28800),
    ("Information", "You have exceeded 75 calls/minute.", RetryAfter, 60),
    ("Information", "Write to us if you are targeting a higher API call volume.", RetryAfter, 60),
]


@pytest.mark.parametrize("ask", [movers, calendar, news])
@pytest.mark.parametrize(("field", "text", "kind", "seconds"), SAID)
def test_what_alpha_vantage_says_with_http_200(ask: Any, field: str, text: str, kind: type, seconds: float) -> None:
    error = raised(as_json({field: text}), ask)
    assert type(error) is kind
    if kind is RetryAfter:
        assert error.seconds == seconds
    assert str(error).startswith("Alpha Vantage's ")


@pytest.mark.parametrize(
    ("file", "kind", "seconds"),
    [
        ("alphavantage/errors/200_note_rate_limit_2021.json", RetryAfter, 60),
        ("alphavantage/errors/200_information_premium_endpoint.json", PermanentError, 0),
        ("transcribed_errors/alphavantage_200_information_daily_limit.json", RetryAfter, 28800),
        ("transcribed_errors/alphavantage_200_information_daily_limit_keyecho.json", RetryAfter, 28800),
    ],
)
def test_what_alpha_vantage_really_said(file: str, kind: type, seconds: float) -> None:
    for ask in (movers, calendar, news):
        error = raised(recorded_answer(file), ask)
        assert type(error) is kind
        assert getattr(error, "seconds", 0) == seconds


def test_the_key_that_is_echoed_is_taken_out_however_it_is_written() -> None:
    key = "S3+CRET/key ä"
    for form in (key, "S3%2BCRET%2Fkey%20%C3%A4", "S3%2BCRET%2Fkey+%C3%A4"):
        text = f"We have detected your API key as {form} and our limit is 25 requests per day."
        respond = partial(lambda _p, _q, text: as_json({"Information": text}), text=text)
        with LoopbackServer(respond) as server, pytest.raises(RetryAfter) as caught:
            AlphaVantage(server.url).movers(key, context_at(NOW))
        assert "S3" not in str(caught.value)
        assert "REDACTED and our limit" in str(caught.value)


@pytest.mark.parametrize("ask", [movers, calendar, news])
def test_an_error_behind_a_byte_order_mark_is_one(ask: Any) -> None:
    said = b'\xef\xbb\xbf{"Information": "Our standard API rate limit is 25 requests per day."}'
    assert type(raised((200, JSON, said), ask)) is RetryAfter


def test_no_articles_are_an_empty_list() -> None:
    with LoopbackServer(lambda _p, _q: as_json({"Information": "No articles found. Adjust the time range."})) as server:
        assert news(server.url, context_at(NOW)).articles == []


@pytest.mark.parametrize(
    ("ask", "body", "kind", "words"),
    [
        (movers, b"", TransientError, "not JSON"),
        (movers, b"<html>", TransientError, "not JSON"),
        (movers, b"{}", SchemaDrift, "last_updated"),
        (movers, b"[]", SchemaDrift, "Expected `object`, got `array`"),
        (movers, b'{"Note": 7}', SchemaDrift, "last_updated"),
        (calendar, b"", TransientError, "not CSV but nothing"),
        (calendar, b"<html><p>Trouble</p>", TransientError, "a page for people"),
        (calendar, b"{}", SchemaDrift, "the column 'symbol' is gone"),
        (calendar, b"symbol,name,fiscalDateEnding,estimate,currency\n", SchemaDrift, "the column 'reportDate' is gone"),
        (calendar, b'symbol,name\n"AAPL', SchemaDrift, "is not CSV"),
        (news, b'{"feed": {}}', SchemaDrift, "feed"),
    ],
)
def test_what_is_no_answer_of_alpha_vantage(ask: Any, body: bytes, kind: type, words: str) -> None:
    error = raised((200, {}, body), ask)
    assert type(error) is kind
    assert words in str(error)


# ------------------------------------------------------------------------------------------------------------ Finnhub


@pytest.mark.parametrize("ask", [trends, reports])
@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "seconds"),
    [
        (401, JSON, b'{"error":"Invalid API key"}', PermanentError, 0),
        (403, JSON, b'{"error":"You don\'t have access to this resource."}', PermanentError, 0),
        (403, HTML, b"<html>Access denied</html>", PermanentError, 0),
        (429, JSON, b'{"error":"API limit reached. Please try again later. Remaining Limit: 0"}', RetryAfter, 60),
        (429, {**JSON, "X-Ratelimit-Reset": "1779048030"}, b"{}", RetryAfter, 30),
        (429, {**JSON, "X-Ratelimit-Reset": "1779048000"}, b"{}", RetryAfter, 1),
        (429, {**JSON, "X-Ratelimit-Reset": "1779040000"}, b"{}", RetryAfter, 60),
        (429, {**JSON, "X-Ratelimit-Reset": "soon"}, b"{}", RetryAfter, 60),
        (429, {**JSON, "Retry-After": "7", "X-Ratelimit-Reset": "1779048030"}, b"{}", RetryAfter, 7),
        (429, TEXT, b"API limit reached. Please sign up for a free account to use the API", PermanentError, 0),
        (500, HTML, b"<html>Oops</html>", TransientError, 0),
        (502, HTML, b"<html>Bad gateway</html>", TransientError, 0),
        (200, HTML, b"<html>Maintenance</html>", TransientError, 0),
        (200, JSON, b'{"error":"Timeout"}', TransientError, 0),
        (200, JSON, b"", TransientError, 0),
        (404, TEXT, b"404 page not found", NotFound, 0),
    ],
)
def test_what_finnhub_says_instead(
    ask: Any, status: int, headers: dict[str, str], body: bytes, kind: type, seconds: float
) -> None:
    error = raised((status, headers, body), ask)
    assert type(error) is kind
    assert getattr(error, "seconds", 0) == seconds


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("finnhub/errors/401_invalid_api_key.json", PermanentError),
        ("finnhub/errors/403_premium_candle-AAPL.json", PermanentError),
        ("finnhub/errors/403_premium_news-sentiment-AAPL.json", PermanentError),
        ("transcribed_errors/finnhub_429.json", RetryAfter),
        ("transcribed_errors/finnhub_429_no_token.txt", PermanentError),
    ],
)
def test_what_finnhub_really_said(file: str, kind: type) -> None:
    assert type(raised(recorded_answer(file), trends)) is kind


def test_finnhub_gets_the_key_in_a_header_and_an_unknown_symbol_is_an_empty_list() -> None:
    with LoopbackServer(
        lambda path, query: as_json([] if (path, query) == ("/api/v1/stock/recommendation", {"symbol": "X"}) else 1)
    ) as server:
        assert trends(server.url, context_at(NOW)) == []


def test_finnhubs_other_shapes_name_the_field() -> None:
    for payload, words in (
        ({}, "Expected `array`, got `object`"),
        ([{**TRENDS[0], "hold": "13"}], "$.hold"),
        ([{**TRENDS[0], "period": "May"}], "$.period"),
    ):
        error = raised(as_json(payload), trends)
        assert isinstance(error, SchemaDrift)
        assert words in str(error)
    assert "earningsCalendar" in str(raised(as_json({}), reports))


# -------------------------------------------------------------------------------------------------------------- Yahoo


class Guarded:
    """A Yahoo that wants a crumb: what it was asked, and with which crumb."""

    def __init__(self, data: Any, good: str = "cRumB1", crumbs: tuple[Answer, ...] = ()) -> None:
        self.data, self.good = data, good
        self.crumbs = list(crumbs) or [(200, TEXT, good.encode())]
        self.asked: list[tuple[str, str]] = []
        self.cookie: Answer = (404, {**HTML, "Set-Cookie": "A3=d=cookie; Expires=Sun; Path=/"}, b"<html>")

    def __call__(self, path: str, query: dict[str, str]) -> Answer:
        self.asked.append((path.rpartition("/")[2], query.get("crumb", "")))
        if path == "/":
            return self.cookie
        if path == "/v1/test/getcrumb":
            return self.crumbs.pop(0) if len(self.crumbs) > 1 else self.crumbs[0]
        if query.get("crumb") == self.good:
            return as_json(self.data)
        error = {"code": "Unauthorized", "description": "Invalid Crumb"}
        return as_json({"finance": {"result": None, "error": error}}, 401)


def test_a_crumb_is_fetched_when_yahoo_wants_one_and_kept() -> None:
    yahoo = Guarded(CHAIN)
    with LoopbackServer(yahoo) as server:
        client = YahooMarket(server.url)
        for _ in range(2):
            assert client.options("TEST", context_at(NOW)).price == 100
    assert yahoo.asked == [("TEST", ""), ("", ""), ("getcrumb", ""), ("TEST", "cRumB1"), ("TEST", "cRumB1")]


def test_a_crumb_that_is_old_is_fetched_anew_once() -> None:
    yahoo = Guarded(CHAIN)
    with LoopbackServer(yahoo) as server:
        client = YahooMarket(server.url)
        client.options("TEST", context_at(NOW))
        yahoo.good, yahoo.asked, yahoo.crumbs = "cRumB2", [], [(200, TEXT, b"cRumB2\n")]
        assert client.options("TEST", context_at(NOW)).price == 100
    assert yahoo.asked == [("TEST", "cRumB1"), ("", ""), ("getcrumb", ""), ("TEST", "cRumB2")]


def test_a_crumb_that_another_thread_has_fetched_meanwhile_is_used() -> None:
    yahoo = Guarded(CHAIN)

    def respond(path: str, query: dict[str, str]) -> Answer:
        answer = yahoo(path, query)
        client._crumb = ("A3=cookie", yahoo.good)
        return answer

    with LoopbackServer(respond) as server:
        client = YahooMarket(server.url)
        assert client.options("TEST", context_at(NOW)).price == 100
    assert yahoo.asked == [("TEST", ""), ("TEST", "cRumB1")]


def test_a_crumb_that_is_never_good_is_permanent_and_asked_for_once() -> None:
    yahoo = Guarded(CHAIN, crumbs=((200, TEXT, b"wr0ng"),))
    error = raised(yahoo, options)
    assert type(error) is PermanentError
    assert [name for name, _ in yahoo.asked].count("getcrumb") == 1
    assert "wr0ng" not in str(error)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((429, TEXT, b"Edge: Too Many Requests"), RetryAfter),
        ((200, TEXT, b"Edge: Too Many Requests"), RetryAfter),
        ((200, TEXT, b"Too Many Requests\r\n"), RetryAfter),
        ((200, JSON, b'{"finance":{"result":null,"error":{"code":"Unauthorized"}}}'), TransientError),
        ((200, HTML, b"<html>Consent</html>"), TransientError),
        ((200, TEXT, b""), TransientError),
        ((200, TEXT, b"x" * 100), TransientError),
    ],
)
def test_a_sentence_is_never_taken_for_a_crumb(answer: Answer, kind: type) -> None:
    yahoo = Guarded(CHAIN, crumbs=(answer,))
    assert type(raised(yahoo, options)) is kind
    assert all(crumb == "" for _, crumb in yahoo.asked)


def test_the_crumb_endpoint_really_said_too_many_requests() -> None:
    error = raised(Guarded(CHAIN, crumbs=(recorded_answer("transcribed_errors/yahoo_429_crumb.txt"),)), options)
    assert (type(error), error.seconds) == (RetryAfter, 60)


def test_without_a_cookie_there_is_no_crumb() -> None:
    yahoo = Guarded(CHAIN, crumbs=(as_json({"finance": {"error": {"code": "Unauthorized"}}}, 401),))
    yahoo.cookie = (200, HTML, b"<html>")
    assert "no cookie came" in str(raised(yahoo, options))


def test_a_crumb_that_comes_without_a_cookie_is_tried_too() -> None:
    yahoo = Guarded(CHAIN)
    yahoo.cookie = (404, HTML, b"<html>")
    with LoopbackServer(yahoo) as server:
        assert YahooMarket(server.url).options("TEST", context_at(NOW)).price == 100


def test_a_crumb_is_not_recorded_and_its_flow_is_replayed(tmp_path: Path) -> None:
    def context(traffic: Any) -> ScanContext:
        return ScanContext("options_flow", traffic=traffic, deadline=time.monotonic() + 10)

    with LoopbackServer(Guarded(CHAIN)) as server:
        YahooMarket(server.url).options("TEST", context(Recorder(tmp_path / "tape")))
    replayed = YahooMarket(server.url)
    assert [replayed.options("TEST", context(Replay(tmp_path / "tape"))).price for _ in range(2)] == [100, 100]
    files = "".join(path.read_text() for path in (tmp_path / "tape").rglob("*") if path.is_file())
    assert "getcrumb" in files
    assert "cRumB1" not in files
    assert "d=cookie" not in files


@pytest.mark.parametrize("crumb", [False, True])
def test_a_429_of_yahoo_says_how_long_to_wait(crumb: bool) -> None:
    busy: Answer = (429, {**TEXT, "Retry-After": "7"}, b"Edge: Too Many Requests")
    error = raised(Guarded(CHAIN, crumbs=(busy,)) if crumb else busy, options)
    assert (type(error), error.seconds) == (RetryAfter, 7)


def test_finnhubs_edge_is_told_from_its_plans() -> None:
    said = str(raised((403, HTML, b"<html>Forbidden</html>"), trends))
    assert "edge" in said
    assert "plan" not in said


def test_finnhubs_wait_may_be_a_date() -> None:
    until = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)}
    error = raised((429, {**JSON, **until}, b'{"error": "API limit reached."}'), trends)
    assert 3000 < error.seconds <= 3600  # by the server's own Date


@pytest.mark.parametrize("ask", [options, screener])
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((429, TEXT, b"Edge: Too Many Requests"), RetryAfter, "left alone"),
        ((500, HTML, b"<html>"), TransientError, "HTTP 500"),
        ((200, HTML, b"<html>Consent</html>"), TransientError, "not JSON"),
        ((404, HTML, b"<html>"), NotFound, "there is none"),
        (as_json([]), SchemaDrift, "Expected `object`"),
        (as_json({}), SchemaDrift, "is not an object"),
    ],
)
def test_what_yahoo_says_instead(ask: Any, answer: Answer, kind: type, words: str) -> None:
    error = raised(answer, ask)
    assert type(error) is kind
    assert words in str(error)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        ({"optionChain": {"result": [], "error": None}}, NotFound, "Yahoo has none"),
        ({"optionChain": {"result": None, "error": None}}, SchemaDrift, "optionChain.result is not a list"),
        (
            {"optionChain": {"error": {"code": "Not Found", "description": "No such symbol"}}},
            NotFound,
            "No such symbol",
        ),
        ({"optionChain": {"error": {"code": "Bad Request", "description": "No"}}}, PermanentError, "No"),
        ({"optionChain": {"error": "down"}}, PermanentError, "down"),
        ({"optionChain": {"result": [{}], "error": None}}, SchemaDrift, "options"),
        ({"finance": {"result": [{}], "error": None}}, SchemaDrift, "optionChain is not an object"),
    ],
)
def test_yahoos_envelope(data: Any, kind: type, words: str) -> None:
    error = raised(as_json(data), options)
    assert type(error) is kind
    assert words in str(error)


def test_an_empty_screener_is_an_empty_list() -> None:
    with LoopbackServer(lambda _p, _q: as_json(screened())) as server:
        assert screener(server.url, context_at(NOW)) == []


def test_yahoos_real_404_is_not_found() -> None:
    status, headers, body = recorded_answer("yahoo/errors/404_quoteSummary_delisted.json")
    body = json.dumps({"optionChain": json.loads(body)["quoteSummary"]}).encode()
    assert type(raised((status, dict(headers), body), options)) is NotFound
