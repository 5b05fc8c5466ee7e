"""Yahoo's answers: what is read, what is dropped, and which error each wrong one becomes."""

from __future__ import annotations

import json
import time
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import PermanentError, RetryAfter, ScanContext, ScanError
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.http import NotFound, Response, TransientError
from resilient_scan_scanners.demo import opening
from resilient_scan_scanners.providers import yahoo
from resilient_scan_scanners.providers.yahoo import Bar, PriceHistory, SchemaDrift, UnknownSymbol
from tests.scanners.charts import TRADE_DATE, FakeYahoo, bar, bars_of, error_body, payload_of
from tests.scanners.providers import places, replaced


def ask(answer: Any, symbol: str = "TEST") -> PriceHistory:
    """Ask a loopback server that gives `answer` to `symbol`."""
    context = ScanContext("test", deadline=time.monotonic() + 5)
    with LoopbackServer(FakeYahoo({yahoo.yahoo_symbol(symbol): answer})) as server:
        return yahoo.Yahoo(server.url).daily(symbol, TRADE_DATE - timedelta(days=10), TRADE_DATE, context)


def parse(payload: Any) -> PriceHistory:
    """Read a payload without a server."""
    answer = Response("http://yahoo.example/", 200, {}, json.dumps(payload).encode())
    return yahoo.read_chart(answer, "TEST")


BARS = bars_of([10.0, 11.0, 12.0, 13.0], [100, 200, 300, 400])


def quotes(payload: dict[str, Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = payload["chart"]["result"][0]["indicators"]["quote"][0]
    return columns


# ------------------------------------------------------------------------------------------------------- what is read


def test_bars_come_back_oldest_first() -> None:
    assert ask(payload_of(BARS)) == PriceHistory("TEST", "EQUITY", tuple(BARS))


def test_what_is_asked_for() -> None:
    server = FakeYahoo({"BRK-B": payload_of(BARS)})
    context = ScanContext("test", deadline=time.monotonic() + 5)
    with LoopbackServer(server) as loopback:
        yahoo.Yahoo(loopback.url).daily("BRK.B", date(2013, 1, 1), date(2013, 7, 1), context)
    symbol, query = server.asked[0]
    assert symbol == "BRK-B"
    # 2013-01-01 00:00 in New York is 05:00 UTC; the day after 2013-07-01 begins at 04:00 UTC
    assert query == {"period1": "1357016400", "period2": "1372737600", "interval": "1d", "events": "div,split"}


@pytest.mark.parametrize(
    ("ticker", "symbol"),
    [
        ("AAPL", "AAPL"),
        ("BRK.B", "BRK-B"),
        ("BF.A", "BF-A"),
        ("TOT.TO", "TOT.TO"),
        ("BP.L", "BP.L"),
        ("^GSPC", "^GSPC"),
    ],
)
def test_share_classes_are_written_as_yahoo_does(ticker: str, symbol: str) -> None:
    assert yahoo.yahoo_symbol(ticker) == symbol


def test_a_symbol_cannot_leave_its_place_in_the_path() -> None:
    server = FakeYahoo({})
    context = ScanContext("test", deadline=time.monotonic() + 5)
    with LoopbackServer(server) as loopback, pytest.raises(UnknownSymbol):
        yahoo.Yahoo(loopback.url).daily("X?y=1#z", date(2013, 1, 1), date(2013, 1, 2), context)
    assert server.asked[0][0] == "X?y=1#z"
    assert "y" not in server.asked[0][1]


def test_days_are_new_yorks() -> None:
    assert yahoo.new_york_date(opening(date(2013, 1, 24))) == date(2013, 1, 24)
    assert yahoo.new_york_date(1359003599) == date(2013, 1, 23)  # 2013-01-24 04:59:59 UTC
    assert yahoo.new_york_date(1359003600) == date(2013, 1, 24)
    assert yahoo.new_york_date(1372651200) == date(2013, 7, 1)  # 04:00 UTC, in summer


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume"])
@pytest.mark.parametrize("hole", [None, float("nan"), float("inf"), -1])
def test_a_bar_with_a_hole_is_dropped(column: str, hole: Any) -> None:
    payload = payload_of(BARS)
    quotes(payload)[column][1] = hole
    history = parse(payload)
    assert history.bars == (BARS[0], *BARS[2:])
    assert history.holes == (BARS[1].day,)


@pytest.mark.parametrize(
    ("column", "value"),
    [("open", 1e6), ("close", 1e6), ("low", 1e6), ("close", 10.8), ("open", 11.2), ("close", 1e9), ("volume", 10**12)],
)
def test_a_bar_that_contradicts_itself_or_everything_seen_so_far_is_a_hole(column: str, value: float) -> None:
    payload = payload_of(BARS)
    quotes(payload)[column][1] = value
    assert parse(payload).holes == (BARS[1].day,)


def test_prices_that_were_rounded_apart_are_no_hole() -> None:
    payload = payload_of(BARS)
    quotes(payload)["close"][1] = 11.05
    quotes(payload)["open"][1] = 10.95
    assert parse(payload).holes == ()


def test_a_price_of_zero_is_a_hole_and_a_volume_of_zero_is_none() -> None:
    payload = payload_of(BARS)
    quotes(payload)["close"][0] = 0
    quotes(payload)["volume"][1] = 0
    assert [each.volume for each in parse(payload).bars] == [0, 300, 400]


def test_of_two_bars_on_one_day_the_later_whole_one_counts() -> None:
    live = bar(TRADE_DATE, 14.0, 450)
    payload = payload_of([*BARS, live])
    payload["chart"]["result"][0]["timestamp"][-1] = opening(TRADE_DATE) + 6 * 3600
    assert parse(payload).bars == (*BARS[:-1], live)
    assert parse(payload).holes == ()
    quotes(payload)["close"][-1] = None
    assert parse(payload).bars == tuple(BARS)


def test_no_bars_in_these_days() -> None:
    payload = payload_of(BARS)
    del payload["chart"]["result"][0]["timestamp"]
    payload["chart"]["result"][0]["indicators"] = {"quote": [{}], "adjclose": [{}]}
    assert parse(payload).bars == ()


# ------------------------------------------------------------------------------------------------------------- splits

SPLIT_DAY = BARS[2].day
SPLIT = {"1": {"date": opening(SPLIT_DAY), "numerator": 4, "denominator": 1, "splitRatio": "4:1"}}


def test_bars_before_a_split_that_are_not_adjusted_yet_are() -> None:
    bars = bars_of([400.0, 404.0, 100.0, 102.0], [10, 10, 40, 40])
    adjusted = parse(payload_of(bars, splits=SPLIT)).bars
    assert [each.close for each in adjusted] == [100.0, 101.0, 100.0, 102.0]
    assert [each.volume for each in adjusted] == [40, 40, 40, 40]
    assert adjusted[0] == Bar(bars[0].day, 100.0, 100.0, 100.0, 100.0, 40)


def test_bars_that_are_adjusted_already_stay() -> None:
    bars = bars_of([100.0, 101.0, 100.0, 102.0])
    assert parse(payload_of(bars, splits=SPLIT)).bars == tuple(bars)


def test_a_reverse_split_is_adjusted_too() -> None:
    split = {"1": {"date": opening(SPLIT_DAY), "numerator": 1, "denominator": 10}}
    bars = bars_of([1.0, 1.0, 10.0, 10.5], [1000, 1000, 100, 100])
    assert [each.close for each in parse(payload_of(bars, splits=split)).bars] == [10.0, 10.0, 10.0, 10.5]


@pytest.mark.parametrize(
    ("new", "old", "opened", "before"),
    [
        (4, 1, 25.0, 25.0),  # not applied yet
        (4, 1, 100.0, 100.0),  # applied
        (4, 1, 37.5, 25.0),  # not applied, and a rise of 50 %
        (1, 10, 750.8, 1000.0),  # a reverse split, not applied, and a fall of 25 %
        (1, 10, 75.0, 100.0),  # the same, applied
        (3, 2, 80.0, 100.0),  # as near to a fall of 20 % as to a rise of 20 %: then nothing is changed
        (3, 2, 66.0, 200 / 3),
        (21, 20, 95.0, 2000 / 21),  # a stock dividend
        (21, 20, 99.0, 100.0),
    ],
)
def test_of_a_split_the_nearer_of_both_prices_counts(new: int, old: int, opened: float, before: float) -> None:
    split = {"1": {"date": opening(SPLIT_DAY), "numerator": new, "denominator": old}}
    bars = bars_of([100.0, 100.0, opened, opened])
    read = parse(payload_of(bars, splits=split)).bars
    assert read[1].close == pytest.approx(before)
    assert read[1].volume == round(1000 * 100 / before)
    assert read[2:] == tuple(bars[2:])


def test_a_split_before_the_first_or_after_the_last_bar_changes_nothing() -> None:
    for day in (BARS[0].day, TRADE_DATE + timedelta(days=3)):
        split = {"1": {"date": opening(day), "numerator": 4, "denominator": 1}}
        assert parse(payload_of(BARS, splits=split)).bars == tuple(BARS)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "code", "description", "error"),
    [
        (404, "Not Found", "No data found, symbol may be delisted", UnknownSymbol),
        (200, "Not Found", "No data found for this date range", UnknownSymbol),
        (400, "Bad Request", "Data doesn't exist for startDate = 1, endDate = 2", UnknownSymbol),
        (422, "Unprocessable Entity", "1m data not available", PermanentError),
        (400, "Bad Request", "Invalid input - interval", PermanentError),
    ],
)
def test_yahoos_error_bodies(status: int, code: str, description: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"Yahoo has no chart of TEST: {description}") as caught:
        ask((status, {}, error_body(code, description)))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "body",
    [b"<html>not here</html>", b"", b"{}", b'{"chart": null}', b'{"chart": {"result": null, "error": null}}', b"[]"],
)
def test_a_404_without_yahoos_body_may_not_be_about_the_symbol(body: bytes) -> None:
    with pytest.raises(PermanentError, match="HTTP 404 without Yahoo's error body; check base_url") as caught:
        ask((404, {}, body))
    assert type(caught.value) is NotFound


def test_other_statuses_are_the_http_clients() -> None:
    with pytest.raises(RetryAfter) as caught:
        ask((429, {"Retry-After": "30"}, b"Edge: Too Many Requests"))
    assert caught.value.seconds == 30
    with pytest.raises(RetryAfter, match="wants to be left alone") as caught:
        ask((429, {}, b"Edge: Too Many Requests"))
    assert caught.value.seconds == 60
    with pytest.raises(TransientError):
        ask((502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>"))
    with pytest.raises(TransientError, match="not JSON"):
        ask((200, {"Content-Type": "text/html"}, b"<html>Consent, please</html>"))


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("chart",), None, r"\$\.chart"),
        (("chart", "result"), [], "chart.result"),
        (("chart", "result"), None, "chart.result"),
        (("chart", "result", 0, "meta", "instrumentType"), 7, r"\$\.chart\.result\[0\]\.meta\.instrumentType"),
        (("chart", "result", 0, "timestamp", 2), "Thursday", r"\.timestamp\[2\]"),
        (("chart", "result", 0, "timestamp", 2), 10**15, r"\.timestamp\[2\]"),
        (("chart", "result", 0, "timestamp", 2), 10**10, r"\.timestamp\[2\]"),
        (("chart", "result", 0, "timestamp", 2), 86400, "timestamp is not in order"),
        (("chart", "result", 0, "timestamp"), [1359037800], "indicators.quote.0..open has 4 values for 1 timestamps"),
        (("chart", "result", 0, "indicators", "quote"), [], r"\.indicators\.quote"),
        (("chart", "result", 0, "indicators", "quote", 0, "close"), None, r"\.close"),
        (("chart", "result", 0, "indicators", "quote", 0, "close", 1), "12.0", r"\.close\[1\]"),
        (("chart", "result", 0, "indicators", "quote", 0, "close", 1), True, r"\.close\[1\]"),
        (("chart", "result", 0, "indicators", "quote", 0, "volume", 3), 10**400, r"\.volume\[3\]"),
        (
            ("chart", "result", 0, "events"),
            {"splits": {"1": {"date": 1, "numerator": 0, "denominator": 1}}},
            "numerator",
        ),
    ],
)
def test_another_shape_is_an_error_that_names_the_field(path: tuple[Any, ...], value: Any, field: str) -> None:
    with pytest.raises(SchemaDrift, match=field) as caught:
        parse(replaced(payload_of(BARS), path, value))
    assert "Yahoo's chart of TEST" in str(caught.value)


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume"])
def test_a_column_that_is_gone_is_named(column: str) -> None:
    payload = payload_of(BARS)
    del quotes(payload)[column]
    with pytest.raises(SchemaDrift, match=rf"quote\[0\]\.{column} has 0 values for 4 timestamps"):
        parse(payload)


GOOD = payload_of(BARS, splits=SPLIT)
junk = st.one_of(st.none(), st.text(max_size=5), st.booleans(), st.integers(), st.floats(), st.just([]), st.just({}))


@given(path=st.sampled_from(list(places(GOOD, most=None))), value=st.one_of(st.just("gone"), junk))
def test_whatever_one_field_becomes_there_are_real_bars_or_a_clear_error(path: tuple[Any, ...], value: Any) -> None:
    try:
        history = parse(replaced(GOOD, path, value))
    except ScanError as error:
        assert "TEST" in str(error)  # noqa: PT017 - any bars, or this error
    else:
        assert all(min(each.open, each.high, each.low, each.close) > 0 <= each.volume for each in history.bars)
        assert list(history.bars) == sorted(history.bars, key=lambda each: each.day)


def test_clients_are_shared_by_address() -> None:
    assert yahoo.client("http://one.example") is yahoo.client("http://one.example")
    assert yahoo.client("http://one.example") is not yahoo.client("http://two.example")


@pytest.mark.parametrize("granularity", ["1mo", "1h", "something else"])
def test_bars_of_another_length_are_no_days(granularity: str) -> None:
    payload = payload_of(BARS)
    payload["chart"]["result"][0]["meta"]["dataGranularity"] = granularity
    with pytest.raises(SchemaDrift, match=f"meta.dataGranularity is '{granularity}', not '1d'"):
        parse(payload)


def test_prices_in_pence_are_told_in_pounds() -> None:
    payload = payload_of([bar(TRADE_DATE, 250.0, volume=7)])
    payload["chart"]["result"][0]["meta"]["currency"] = "GBp"
    assert parse(payload).bars == (bar(TRADE_DATE, 2.5, volume=7),)
