"""What the chart scanners share: dates, tickers, settings, failures of single tickers, no look-ahead."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_scan import ConfigError, RetryAfter, ScanCancelled, ScanContext, ScanError
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.http import TransientError
from resilient_scan.testing import FakeClock
from resilient_scan_scanners import _charts
from resilient_scan_scanners.gap_up import gap_up
from resilient_scan_scanners.high_52w_breakout import high_52w_breakout
from resilient_scan_scanners.market_movers import market_movers
from resilient_scan_scanners.providers.yahoo import PriceHistory, SchemaDrift, UnknownSymbol
from resilient_scan_scanners.rsi_oversold import rsi_oversold
from resilient_scan_scanners.volume_accumulation import volume_accumulation
from tests.scanners.charts import TRADE_DATE, FakeYahoo, bar, bars_of, left_out, payload_of, scan, weekdays
from tests.support.examples import examples

ALL = [market_movers, volume_accumulation, high_52w_breakout, gap_up, rsi_oversold]
FALL = payload_of(bars_of([100.0, 80.0]))
STATE = {"trade_date": "2013-01-24"}
BROKEN = (500, {}, b"")


def movers(answers: dict[str, Any], **state: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Run `market_movers` on a fake Yahoo; return the tickers found and the tool log."""
    with LoopbackServer(FakeYahoo(answers)) as server:
        found, log = scan(market_movers, {**STATE, "tickers": list(answers), **state}, base_url=server.url)
    return [candidate.ticker for candidate in found], log


# --------------------------------------------------------------------------------------------------------- trade dates


@pytest.mark.parametrize(
    ("given_date", "expected"),
    [
        ("2013-01-24", date(2013, 1, 24)),
        (date(2013, 1, 24), date(2013, 1, 24)),
        (datetime(2013, 1, 25, 4, 59, tzinfo=UTC), date(2013, 1, 24)),
        (datetime(2013, 1, 24, 23, 0), date(2013, 1, 24)),  # noqa: DTZ001 - somebody's naive time
    ],
)
def test_a_trade_date_is_a_text_or_a_date(given_date: Any, expected: date) -> None:
    assert _charts.trade_date({"trade_date": given_date}, ScanContext()) == expected


@pytest.mark.parametrize("state", [{}, {"trade_date": None}])
def test_without_one_it_is_new_yorks_today(state: dict[str, Any]) -> None:
    early = FakeClock(datetime(2026, 11, 24, 4, 59, tzinfo=UTC).timestamp())
    assert _charts.trade_date(state, ScanContext(clock=early)) == date(2026, 11, 23)
    early.advance(60)
    assert _charts.trade_date(state, ScanContext(clock=early)) == date(2026, 11, 24)


@pytest.mark.parametrize("wrong", ["24.1.2013", "", 20130124, "2013-02-30"])
def test_a_wrong_trade_date_is_told(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"state\['trade_date'\] must be a date such as '2013-01-24', got"):
        _charts.trade_date({"trade_date": wrong}, ScanContext())


def test_on_a_weekend_the_last_session_counts_and_later_none() -> None:
    friday = {"A": payload_of(bars_of([100.0, 80.0], last=date(2013, 1, 25)))}
    for day in ("2013-01-25", "2013-01-26", "2013-01-27"):
        assert movers(friday, trade_date=day)[0] == ["A"]
    with pytest.raises(ScanError, match="none of 1 charts can be used: 1 stale; A was last traded on 2013-01-25"):
        movers(friday, trade_date="2013-01-28")


# ------------------------------------------------------------------------------------------------------------- tickers


def test_the_states_tickers_come_before_the_universe() -> None:
    universe = ("X", "Y")
    assert _charts.tickers({"tickers": ["A", " BRK.B ", "A"]}, universe, "s") == ("A", "BRK.B")
    assert _charts.tickers({"tickers": []}, universe, "s") == ()
    assert _charts.tickers({}, universe, "s") == universe
    assert _charts.tickers({"tickers": None}, universe, "s") == universe


@pytest.mark.parametrize("wrong", ["AAPL", [1], [""], ["A", None], {"A": 1}])
def test_wrong_tickers_are_told(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"state\['tickers'\] must be a list of symbols such as 'AAPL', got"):
        _charts.tickers({"tickers": wrong}, (), "s")


def test_no_tickers_at_all_is_told_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"gap_up: no tickers; put them into state\['tickers'\] or settings.universe"):
        scan(gap_up, STATE)


def test_an_empty_list_of_tickers_finds_nothing() -> None:
    assert scan(gap_up, {**STATE, "tickers": []})[0] == []


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("scanner", ALL)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"base_url": 7}, r"settings\.base_url: Expected `str`, got `int`"),
        ({"universe": "AAPL"}, r"settings\.universe: Expected `array`, got `str`"),
        ({"universe": ["AAPL", 7]}, r"settings\.universe\[1\]: Expected `str`, got `int`"),
        ({"min_chagne": 5}, r"settings: Object contains unknown field `min_chagne`; the settings are .*base_url, "),
    ],
)
def test_a_wrong_setting_is_one_sentence(scanner: Any, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{scanner.name}: {words}"):
        scan(scanner, STATE, **wrong)


@pytest.mark.parametrize(
    ("scanner", "name", "wrong"),
    [
        (market_movers, "min_change", "5"),
        (market_movers, "min_change", True),
        (market_movers, "min_change", 0),
        (market_movers, "min_price", -1),
        (volume_accumulation, "min_ratio", float("nan")),
        (volume_accumulation, "mean_days", 2.5),
        (volume_accumulation, "mean_days", 0),
        (high_52w_breakout, "lookback_days", 261),
        (gap_up, "min_gap", None),
        (rsi_oversold, "period", 0),
        (rsi_oversold, "max_rsi", 101),
    ],
)
def test_a_number_out_of_range_or_of_another_type_is_named(scanner: Any, name: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{scanner.name}: settings\.{name}: Expected"):
        scan(scanner, STATE, **{name: wrong})


def test_settings_reach_the_rule() -> None:
    with LoopbackServer(FakeYahoo({"A": payload_of(bars_of([100.0, 99.0]))})) as server:
        options = {"base_url": server.url, "universe": ["A"]}
        assert scan(market_movers, STATE, **options)[0] == []
        assert len(scan(market_movers, STATE, min_change=1, **options)[0]) == 1


# ------------------------------------------------------------------------------------------- failures of single tickers


def test_an_unknown_symbol_costs_the_others_nothing() -> None:
    found, log = movers({"A": FALL, "B": FALL}, tickers=["A", "GONE", "B", "AWAY", "NOWHERE"])
    assert found == ["A", "B"]
    assert [entry["ticker"] for entry in log[:-1]] == ["GONE", "AWAY", "NOWHERE"]
    assert "Yahoo has no chart of GONE" in log[0]["left_out"]
    assert {name: log[-1][name] for name in ("tool", "trade_date", "tickers", "charts")} == {
        "tool": "yahoo_chart", "trade_date": "2013-01-24", "tickers": 5, "charts": 2,
    }  # fmt: skip


def test_a_chart_that_is_not_there_in_other_words_costs_the_others_nothing() -> None:
    found, log = movers({"A": FALL, "GONE": (404, {}, b"not here")}, tickers=["GONE", "A"])
    assert found == ["A"]
    assert "HTTP 404 without Yahoo's error body; check base_url" in log[0]["left_out"]


def test_where_all_symbols_are_unknown_the_scan_fails() -> None:
    with pytest.raises(UnknownSymbol, match="no chart of GONE"):
        movers({}, tickers=["GONE", "AWAY"])


@pytest.mark.parametrize("wrong", [BROKEN, {"chart": {"result": [{}], "error": None}}, (200, {}, b"<html>")])
def test_one_broken_chart_of_five_is_told_and_costs_the_others_nothing(wrong: Any) -> None:
    found, log = movers({"A": FALL, "B": wrong, "C": FALL, "D": FALL, "E": FALL})
    assert found == ["A", "C", "D", "E"]
    assert log[0]["ticker"] == "B"


@pytest.mark.parametrize(("tickers", "asked"), [("ABCDE", "ABCDE"), ("ABCDEFGHIJKL", "ABCDEFGHI")])
def test_more_broken_charts_than_one_in_five_are_an_error_after_those_asked_with_them(tickers: str, asked: str) -> None:
    server = FakeYahoo(dict.fromkeys("ABCDEFGHIJKL", FALL) | dict.fromkeys("BCE", BROKEN))
    with LoopbackServer(server) as loopback, pytest.raises(TransientError, match="HTTP 500"):
        scan(market_movers, {**STATE, "tickers": list(tickers)}, base_url=loopback.url)
    assert sorted(symbol for symbol, _ in server.asked) == list(asked)


def test_the_only_chart_broken_is_an_error() -> None:
    with pytest.raises(SchemaDrift):
        movers({"A": {"chart": {"result": [{}], "error": None}}})


@pytest.mark.parametrize(("busy", "most"), [("A", "A"), ("B", "ABCDEFGHI")])
def test_a_source_that_asks_to_wait_is_heard_at_once(busy: str, most: str) -> None:
    server = FakeYahoo({**dict.fromkeys("ABCDEFGHIJKL", FALL), busy: (429, {"Retry-After": "3"}, b"")})
    with LoopbackServer(server) as loopback, pytest.raises(RetryAfter):
        scan(market_movers, {**STATE, "tickers": list("ABCDEFGHIJKL")}, base_url=loopback.url)
    assert {symbol for symbol, _ in server.asked} <= set(most)


def test_after_the_first_eight_tickers_are_asked_for_at_a_time() -> None:
    eight = threading.Barrier(8)

    def together(path: str, _query: dict[str, str]) -> Answer:
        if not path.endswith("/A"):
            eight.wait(10)
        return 200, {}, json.dumps(FALL).encode()

    with LoopbackServer(together) as server:
        found, _ = scan(market_movers, {**STATE, "tickers": list("ABCDEFGHI")}, base_url=server.url)
    assert [candidate.ticker for candidate in found] == list("ABCDEFGHI")


class AlreadyLoaded:
    """Shared values that are all there."""

    def get(self, key: Any, load: Any, ttl: float, context: ScanContext, /) -> Any:
        """Return a fall, whatever the ticker."""
        return PriceHistory("A", "EQUITY", tuple(bars_of([100.0, 80.0])))


def test_a_scan_that_is_over_stops_between_two_tickers() -> None:
    context = ScanContext("m", deadline=time.monotonic() + 5, shared=AlreadyLoaded())
    found = market_movers({**STATE, "tickers": ["A", "B"]}, context)
    assert next(found).ticker == "A"
    context.cancel()
    with pytest.raises(ScanCancelled):
        next(found)


@pytest.mark.parametrize("instrument", ["CRYPTOCURRENCY", "INDEX", "CURRENCY", "FUTURE"])
def test_what_is_no_stock_and_no_fund_is_left_out(instrument: str) -> None:
    found, log = movers({"A": payload_of(bars_of([100.0, 50.0]), instrument)})
    assert found == []
    assert log[0]["left_out"] == f"is {instrument}, not a stock or a fund"


@pytest.mark.parametrize(
    ("scanner", "needed"),
    [(market_movers, 2), (volume_accumulation, 31), (high_52w_breakout, 253), (gap_up, 2), (rsi_oversold, 200)],
)
def test_a_history_that_is_too_short_is_left_out(scanner: Any, needed: int) -> None:
    for count, expected in ((needed - 1, {"A": f"has {needed - 1} bars, the rule needs {needed}"}), (needed, {})):
        with LoopbackServer(FakeYahoo({"A": payload_of(bars_of([10.0] * count))})) as server:
            assert left_out(scanner, {**STATE, "tickers": ["A"]}, base_url=server.url) == expected


@pytest.mark.parametrize(
    ("scanner", "needed", "settings"),
    [
        (market_movers, 2, {}),
        (volume_accumulation, 6, {"mean_days": 5}),
        (high_52w_breakout, 6, {"lookback_days": 5}),
        (gap_up, 2, {}),
        (rsi_oversold, 10, {"mean_days": 10}),
    ],
)
def test_a_hole_among_the_bars_that_a_rule_looks_at_leaves_the_ticker_out(
    scanner: Any, needed: int, settings: dict[str, Any]
) -> None:
    bars = bars_of([10.0] * 20)
    for place in range(1, 20):
        payload = payload_of(bars)
        payload["chart"]["result"][0]["indicators"]["quote"][0]["close"][-place] = None
        with LoopbackServer(FakeYahoo({"A": payload})) as server:
            found = left_out(scanner, {**STATE, "tickers": ["A"]}, base_url=server.url, **settings)
        # Of `needed` whole bars the first may follow a hole: nothing is held against the day before it.
        assert found == ({"A": f"has no whole bar of {bars[-place].day}"} if place <= needed else {}), place


# ------------------------------------------------------------------------------------------------------- no look-ahead


def test_bars_after_the_trade_date_are_neither_asked_for_nor_used() -> None:
    server = FakeYahoo({"A": payload_of(bars_of([100.0, 101.0, 300.0], last=TRADE_DATE + timedelta(days=1)))})
    with LoopbackServer(server) as loopback:
        assert scan(market_movers, {**STATE, "tickers": ["A"]}, base_url=loopback.url)[0] == []
    assert server.asked[0][1]["period2"] == "1359090000"  # 2013-01-25 00:00 in New York


@settings(max_examples=examples(30), deadline=None)
@given(
    closes=st.lists(st.floats(min_value=5, max_value=1000), min_size=260, max_size=275),
    volumes=st.lists(st.integers(0, 10**9), min_size=275, max_size=275),
    future=st.lists(st.floats(min_value=5, max_value=1000), min_size=1, max_size=10),
)
def test_what_comes_later_changes_no_candidate(closes: list[float], volumes: list[int], future: list[float]) -> None:
    past = bars_of(closes, volumes[: len(closes)])
    days = weekdays(len(future), TRADE_DATE + timedelta(days=20))
    known = FakeYahoo({"A": payload_of(past)})
    later = FakeYahoo({"A": payload_of([*past, *(bar(day, close) for day, close in zip(days, future, strict=True))])})
    with LoopbackServer(known) as one, LoopbackServer(later) as two:
        for scanner in ALL:
            state = {**STATE, "tickers": ["A"]}
            assert scan(scanner, state, base_url=one.url)[0] == scan(scanner, state, base_url=two.url)[0]


def test_errors_of_charts_are_errors_of_the_package() -> None:
    assert issubclass(SchemaDrift, ScanError)
    assert issubclass(UnknownSymbol, ScanError)
