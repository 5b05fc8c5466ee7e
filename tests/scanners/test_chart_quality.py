"""Charts that are missing, late, incomplete or wrong: no candidate comes of them, and the answer says so."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from resilient_scan import ScanError
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan_scanners import _sessions
from resilient_scan_scanners._sessions import is_current, is_session, last_session, sessions
from resilient_scan_scanners.demo import history, opening
from resilient_scan_scanners.gap_up import gap_up
from resilient_scan_scanners.high_52w_breakout import high_52w_breakout
from resilient_scan_scanners.market_movers import market_movers
from resilient_scan_scanners.providers.yahoo import new_york_date
from resilient_scan_scanners.rsi_oversold import rsi_oversold
from resilient_scan_scanners.volume_accumulation import volume_accumulation
from tests.scanners.charts import TRADE_DATE, FakeYahoo, bar, bars_of, payload_of, weekdays
from tests.scanners.providers import Asked, ask
from tests.scanners.recorded import body

NOW = "2013-01-25T22:00:00+00:00"  # a Friday, after the close
FALL = payload_of(bars_of([100.0, 80.0]))
FLAT = payload_of(bars_of([100.0, 100.0]))
TSLA = "yahoo/v8_chart_1d/TSLA_2020-12-21_2021-12-21.json"


def find(answers: dict[str, Any], scanner: Any = market_movers, now: str = NOW, **settings: Any) -> Asked:
    """Ask a scanner about all symbols of a fake Yahoo, for the day of its last bars."""
    with LoopbackServer(FakeYahoo(answers)) as server:
        state = {"trade_date": settings.pop("day", "2013-01-24"), "tickers": list(answers)}
        return ask(scanner, now, state, base_url=server.url, **settings)


def result(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a payload that has the bars."""
    found: dict[str, Any] = payload["chart"]["result"][0]
    return found


def without(payload: dict[str, Any], *places: int) -> dict[str, Any]:
    """Return a payload without whole rows."""
    found = json.loads(json.dumps(payload))
    parts = result(found)
    columns = [parts["timestamp"], *parts["indicators"]["quote"][0].values()]
    columns += [each["adjclose"] for each in parts["indicators"].get("adjclose", ())]
    for column in columns:
        for place in sorted(places, reverse=True):
            del column[place]
    return found


# ------------------------------------------------------------------------------------------------------ sessions


def test_the_calendar_agrees_with_every_day_of_the_bundled_history() -> None:
    for ticker, bars in history().items():
        days = [each.day for each in bars]
        assert list(sessions(days[0], days[-1])) == days, ticker


@pytest.mark.parametrize(
    ("day", "zone", "open_"),
    [
        ("2012-10-29", "America/New_York", False),  # a hurricane
        ("2025-01-09", "America/New_York", False),  # a day of mourning
        ("2026-11-27", "America/New_York", True),  # a short session
        ("2026-11-26", "America/New_York", False),
        ("2026-11-26", "America/Toronto", True),
        ("2026-05-04", "Asia/Tokyo", False),
        ("2026-05-04", "America/New_York", True),
        ("2026-12-28", "Europe/London", False),
        ("2026-11-28", "America/New_York", False),  # a Saturday
        ("2026-12-25", "Asia/Jerusalem", True),  # no calendar: from Monday to Friday
        ("2026-12-26", "Asia/Jerusalem", False),
        ("2031-12-25", "America/New_York", True),  # beyond the calendar
    ],
)
def test_on_which_days_an_exchange_is_open(day: str, zone: str, open_: bool) -> None:
    assert is_session(date.fromisoformat(day), ZoneInfo(zone)) is open_


def test_the_bundled_calendar_is_that_of_the_package() -> None:
    """Where one of them is right and the other is not, `make_sessions.py` writes it again."""
    script = runpy.run_path(str(Path(_sessions.__file__).parent / "data" / "make_sessions.py"))
    assert script["FILE"].read_text().splitlines() == script["lines"]()


def test_the_last_session_is_found_across_a_long_holiday() -> None:
    assert last_session(date(2019, 5, 6), ZoneInfo("Asia/Tokyo")) == date(2019, 4, 26)
    assert last_session(date(2013, 1, 21)) == date(2013, 1, 18)


@pytest.mark.parametrize(
    ("day", "trade_date", "now", "current"),
    [
        ("2013-01-18", "2013-01-18", "2013-01-18T14:00Z", True),
        ("2013-01-17", "2013-01-18", "2013-01-18T14:00Z", True),  # today's session may have no data yet
        ("2013-01-16", "2013-01-18", "2013-01-18T14:00Z", False),
        ("2013-01-17", "2013-01-18", "2013-01-19T14:00Z", False),  # yesterday's must have
        ("2013-01-18", "2013-01-21", "2013-01-21T14:00Z", True),  # a holiday
        ("2013-01-18", "2013-01-22", "2013-01-22T14:00Z", True),
        ("2013-01-18", "2013-01-22", "2013-01-19T14:00Z", True),  # a day that is still to come
        ("2013-01-22", "2013-01-18", "2013-01-22T14:00Z", False),  # later than what was asked for
    ],
)
def test_which_data_are_the_latest(day: str, trade_date: str, now: str, current: bool) -> None:
    instant = datetime.fromisoformat(now)
    assert is_current(date.fromisoformat(day), date.fromisoformat(trade_date), instant) is current


# ---------------------------------------------------------------------------------- what is missing, and what is said


def null_last(payload: dict[str, Any]) -> None:
    for name in ("open", "high", "low", "close"):
        result(payload)["indicators"]["quote"][0][name][-1] = None


def null_all(payload: dict[str, Any]) -> None:
    for name, column in result(payload)["indicators"]["quote"][0].items():
        result(payload)["indicators"]["quote"][0][name] = [None] * len(column)


def two_weeks_ago(payload: dict[str, Any]) -> None:
    result(payload)["timestamp"] = [stamp - 14 * 86_400 for stamp in result(payload)["timestamp"]]


@pytest.mark.parametrize(
    ("harm", "kind", "reason"),
    [
        (null_last, "missing", "A has no whole bar of 2013-01-24"),
        (null_all, "empty", "A has 0 bars, the rule needs 2"),
        (two_weeks_ago, "stale", "A was last traded on 2013-01-10"),
    ],
)
@pytest.mark.parametrize("scanner", [market_movers, gap_up])
def test_charts_that_cannot_be_used_are_no_quiet_day(
    scanner: Any, harm: Callable[[dict[str, Any]], None], kind: str, reason: str
) -> None:
    broken = json.loads(json.dumps(payload_of(bars_of([100.0] * 250))))
    harm(broken)
    with pytest.raises(ScanError, match=f"^none of 3 charts can be used: 3 {kind}; {reason}"):
        find(dict.fromkeys("ABC", broken), scanner)
    sound = payload_of(bars_of([100.0] * 250))
    some = find({**dict.fromkeys("AB", broken), **dict.fromkeys("CDEFGHI", sound)}, scanner)
    assert some.doubted == f"{kind}: only 7 of 9 charts can be used: 2 {kind}; {reason}; see the tool log"
    enough = find({**dict.fromkeys("AB", broken), **dict.fromkeys("CDEFGHIJ", sound)}, scanner)
    assert (enough.doubted, [each["ticker"] for each in enough.log if "ticker" in each]) == (None, ["A", "B"])


def test_the_share_of_usable_charts_is_a_setting() -> None:
    answers = {"A": FALL, "B": FLAT, "C": payload_of(bars_of([100.0, 100.0], last=date(2013, 1, 10)))}
    assert find(answers).doubted is not None
    assert find(answers, min_usable=0.6).doubted is None
    assert find(dict.fromkeys("ABCDE", FLAT) | {"C": answers["C"]}, min_usable=1).doubted is not None


def test_unknown_symbols_count_as_missing() -> None:
    found = find({"A": FALL, "B": FLAT, "C": (404, {}, b"no")})
    assert found.tickers == ["A"]
    assert found.doubted == "missing: only 2 of 3 charts can be used: 1 missing; see the tool log"


def test_what_the_rule_does_not_apply_to_does_not_count() -> None:
    young = payload_of(bars_of([100.0] * 5))
    result(young)["meta"]["firstTradeDate"] = opening(weekdays(5)[0])
    index = payload_of(bars_of([100.0] * 40), "INDEX")
    sound = payload_of(bars_of([100.0] * 40))
    found = find({"A": sound, "B": young, "C": index}, volume_accumulation)
    assert found.doubted is None
    assert [each["left_out"] for each in found.log if "left_out" in each] == [
        "has 5 bars, the rule needs 31",
        "is INDEX, not a stock or a fund",
    ]
    assert find({"B": young, "C": index}, volume_accumulation).doubted is None  # nothing was to be expected
    result(young)["meta"]["firstTradeDate"] = opening(weekdays(60)[0])
    assert find({"A": sound, "B": young}, volume_accumulation).doubted == (
        "incomplete: only 1 of 2 charts can be used: 1 incomplete; B has 5 bars, the rule needs 31; see the tool log"
    )


# --------------------------------------------------------------------------------------------------- missing sessions


def test_a_missing_session_is_no_move_on_a_year_of_real_days() -> None:
    """Without the day before, 41 of 251 days of TSLA had a mover that was none."""
    recorded = json.loads(body(TSLA))
    days = [new_york_date(stamp) for stamp in result(recorded)["timestamp"]]
    closes = result(recorded)["indicators"]["quote"][0]["close"]
    server = FakeYahoo({})
    false, true, silent = [], 0, []
    with LoopbackServer(server) as loopback:
        for place in range(2, len(days)):
            state = {"trade_date": days[place].isoformat(), "tickers": ["TSLA"]}
            moved = abs(closes[place] / closes[place - 1] - 1) >= 0.05
            over_two = abs(closes[place] / closes[place - 2] - 1) >= 0.05
            if not over_two:  # nothing would be found anyway
                continue
            server.answers = {"TSLA": without(recorded, place - 1)}
            try:
                found = ask(market_movers, "2021-12-22T22:00:00+00:00", state, base_url=loopback.url).tickers
                silent.append(days[place])
            except ScanError as error:
                assert f"has no bar of {days[place - 1]}, on which the exchange was open" in str(error)  # noqa: PT017
                found = []
            false += [days[place]] if found and not moved else []
            true += not moved
    assert (false, silent) == ([], [])
    assert true == 41


@pytest.mark.parametrize(("scanner", "needed"), [(market_movers, 2), (volume_accumulation, 6), (rsi_oversold, 10)])
def test_a_session_without_a_row_counts_among_those_that_the_rule_reads(scanner: Any, needed: int) -> None:
    settings = {volume_accumulation: {"mean_days": 5}, rsi_oversold: {"mean_days": 10}}.get(scanner, {})
    bars = [bar(day, 10.0) for day in weekdays(30) if is_session(day)]
    for place in range(2, 15):
        answers = {"A": without(payload_of(bars), len(bars) - place)}
        if place <= needed:
            with pytest.raises(ScanError, match=f"A has no bar of {bars[-place].day}"):
                find(answers, scanner, **settings)
        else:
            assert find(answers, scanner, **settings).doubted is None


def test_a_holiday_is_no_gap() -> None:
    friday_and_tuesday = [bar(date(2013, 1, 18), 100.0), bar(date(2013, 1, 22), 80.0)]
    assert find({"A": payload_of(friday_and_tuesday)}, day="2013-01-22").tickers == ["A"]


def test_without_a_calendar_only_the_day_before_counts_and_the_week_is_the_charts() -> None:
    days = [
        day for day in (date(2013, 1, 3) + timedelta(number) for number in range(19)) if day.weekday() not in {4, 5}
    ]
    payload = payload_of([*[bar(day, 100.0) for day in days[:-1]], bar(days[-1], 80.0)])
    result(payload)["meta"]["exchangeTimezoneName"] = "Asia/Jerusalem"
    result(payload)["timestamp"] = [stamp - 7 * 3600 for stamp in result(payload)["timestamp"]]
    sunday = find({"A": without(payload, -1)}, day="2013-01-20")
    assert (sunday.tickers, sunday.doubted) == ([], None)  # Thursday is the day before
    assert find({"A": without(payload, 3)}, day="2013-01-21").tickers == ["A"]
    with pytest.raises(ScanError, match="A has no bar of 2013-01-20"):
        find({"A": without(payload, len(days) - 2)}, day="2013-01-21")


# ------------------------------------------------------------------------------------------------- bars that are wrong


def test_a_bar_of_a_weekend_is_dated_wrong() -> None:
    payload = payload_of(bars_of([100.0] * 10))
    result(payload)["timestamp"] = [stamp + 86_400 for stamp in result(payload)["timestamp"]]
    with pytest.raises(ScanError, match="1 wrong day; A has a bar of 2013-01-19, which is a Saturday"):
        find({"A": payload}, volume_accumulation, day="2013-01-25", mean_days=8)


def test_the_same_bar_twice_is_a_copy() -> None:
    bars = [bar(day, 100.0, high=101.0, low=99.0) for day in weekdays(2)]
    with pytest.raises(ScanError, match="1 duplicate; A has the same bar on 2013-01-23 and 2013-01-24"):
        find({"A": payload_of(bars)})
    assert find({"A": payload_of([bars[0], bar(TRADE_DATE, 100.0, 1001, high=101.0, low=99.0)])}).doubted is None


def test_two_bars_of_one_day_are_none_unless_they_are_the_same() -> None:
    bars = bars_of([100.0, 100.0, 100.0])
    assert find({"A": payload_of([bars[0], bars[1], bars[1], bars[2]])}).doubted is None
    with pytest.raises(ScanError, match="A has no whole bar of 2013-01-23"):
        find({"A": payload_of([bars[0], bars[1], bar(bars[1].day, 90.0), bars[2]])})


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_a_price_in_another_unit_is_doubted(factor: float) -> None:
    found = find({"A": payload_of(bars_of([10.0, 10.0 * factor]))}, min_price=0)
    assert found.tickers == ["A"]
    assert str(found.doubted).startswith("out of range: A closed at 10 on 2013-01-23 and at ")
    assert find({"A": payload_of(bars_of([10.0, 190.0]))}).doubted is None  # that has happened


@pytest.mark.parametrize(
    ("meta", "fits"),
    [
        ({"chartPreviousClose": 98.0}, True),
        ({"chartPreviousClose": 9800.0}, False),
        ({"regularMarketPrice": 1.0, "regularMarketTime": opening(TRADE_DATE) + 3600}, False),
        ({"regularMarketPrice": 1.0, "regularMarketTime": opening(TRADE_DATE) + 9 * 86_400}, True),  # of another day
    ],
)
def test_prices_must_fit_those_that_the_answer_names_elsewhere(meta: dict[str, Any], fits: bool) -> None:
    payload = json.loads(json.dumps(FLAT))
    result(payload)["meta"].update(meta)
    if fits:
        assert find({"A": payload}).doubted is None
    else:
        with pytest.raises(ScanError, match=r"Yahoo's chart of A: meta\.\w+ is .*: another unit"):
            find({"A": payload})


# ------------------------------------------------------------------------------------------- dividends, and the close


def paying(closes: list[float], amount: float) -> dict[str, Any]:
    """Return a chart whose last day is without a dividend."""
    payload = payload_of(bars_of(closes))
    result(payload)["events"] = {"dividends": {"1": {"date": opening(TRADE_DATE), "amount": amount}}}
    return payload


def test_a_special_dividend_is_no_fall() -> None:
    assert find({"A": paying([100.0, 90.1], 10.0)}).tickers == []
    (fallen,) = find({"A": paying([100.0, 70.0], 10.0)}).candidates
    assert fallen.extras["change_percent"] == -22.2222
    assert fallen.extras["previous_close"] == 100.0  # what was paid
    assert fallen.context.endswith("from 100.00 on 2013-01-23, of which 10 were paid out as a dividend")


def test_a_dividend_that_the_prices_do_not_show_is_no_rise() -> None:
    assert find({"A": paying([100.0, 100.0], 10.0)}).tickers == []
    assert find({"A": paying([100.0, 80.0], 200.0)}).candidates[0].extras["change_percent"] == -20.0  # a mistake


def test_a_gap_is_counted_from_what_is_left_of_the_close() -> None:
    payload = paying([100.0, 95.0], 10.0)
    quotes = result(payload)["indicators"]["quote"][0]
    quotes["open"][-1], quotes["low"][-1], quotes["high"][-1] = 93.0, 92.0, 96.0
    (found,) = find({"A": payload}, gap_up).candidates
    assert found.extras["gap_percent"] == 3.3333
    assert "above the previous close of 100.00, of which 10 were paid out as a dividend on 2013-01-24" in found.context


def test_the_adjusted_closes_tell_of_dividends_that_the_events_do_not() -> None:
    payload = payload_of(bars_of([100.0, 90.1]))
    result(payload)["indicators"]["adjclose"] = [{"adjclose": [90.0, 90.1]}]
    assert find({"A": payload}).tickers == []


def test_an_rsi_does_not_count_dividends() -> None:
    rising = [100.0 + number for number in range(9)]
    settings = {"mean_days": 5, "period": 2, "max_rsi": 60}
    assert find({"A": payload_of(bars_of([*rising, 107.0]))}, rsi_oversold, **settings).tickers == ["A"]
    assert find({"A": paying([*rising, 107.0], 2.0)}, rsi_oversold, **settings).tickers == []


@pytest.mark.parametrize(
    ("now", "days"),
    [
        ("2013-01-24T20:30:00+00:00", ["2013-01-23"]),  # half an hour before the close
        ("2013-01-24T21:00:00+00:00", ["2013-01-24"]),
    ],
)
@pytest.mark.parametrize(("scanner", "settings"), [(gap_up, {}), (high_52w_breakout, {"lookback_days": 1})])
def test_a_rule_about_the_close_waits_for_it(scanner: Any, settings: dict[str, Any], now: str, days: list[str]) -> None:
    rises = [bar(day, 100.0 * 1.1**number, high=100.0 * 1.1**number) for number, day in enumerate(weekdays(4))]
    found = find({"A": payload_of(rises)}, scanner, now, **settings)
    assert [each.extras["date"] for each in found.candidates] == days


def test_a_session_ends_when_the_exchange_says_so() -> None:
    rises = [bar(day, 100.0 * 1.1**number) for number, day in enumerate(weekdays(3))]
    payload = payload_of(rises)
    result(payload)["meta"]["currentTradingPeriod"] = {"regular": {"end": opening(TRADE_DATE) + int(3.5 * 3600)}}
    (found,) = find({"A": payload}, gap_up, "2013-01-24T18:30:00+00:00").candidates  # a short one: it ended at 13:00
    assert found.extras["date"] == "2013-01-24"


# ---------------------------------------------------------------------------------------------- the exchange's days


def test_days_are_those_of_the_exchange() -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    days = [date(2013, 1, 25), date(2013, 1, 28)]  # a Friday and a Monday
    payload = payload_of([bar(days[0], 1000.0), bar(days[1], 800.0)])
    result(payload)["timestamp"] = [
        int(datetime(day.year, day.month, day.day, 9, tzinfo=tokyo).timestamp()) for day in days
    ]
    result(payload)["meta"] |= {"exchangeTimezoneName": "Asia/Tokyo", "currency": "JPY"}
    (found,) = find({"7203.T": payload}, day="2013-01-28", now="2013-01-28T08:00:00+00:00").candidates
    assert found.extras["date"] == "2013-01-28"
    assert find({"7203.T": payload}, day="2013-01-27", now="2013-01-28T08:00:00+00:00", min_usable=0).tickers == []


def test_a_time_zone_that_does_not_exist_is_named() -> None:
    payload = json.loads(json.dumps(FALL))
    result(payload)["meta"]["exchangeTimezoneName"] = "Mars/Olympus"
    with pytest.raises(ScanError, match=r"meta\.exchangeTimezoneName is 'Mars/Olympus', which names no time zone"):
        find({"A": payload})
