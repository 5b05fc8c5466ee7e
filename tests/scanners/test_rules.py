"""Each rule on bars made by hand, with answers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan_scanners._chart import Chart
from resilient_scan_scanners.gap_up import GapSettings, find_gap
from resilient_scan_scanners.high_52w_breakout import BreakoutSettings, find_breakout
from resilient_scan_scanners.market_movers import MoversSettings, find_move
from resilient_scan_scanners.rsi_oversold import OversoldSettings, find_oversold, rsi
from resilient_scan_scanners.volume_accumulation import VolumeSettings, find_accumulation, volume_ratio
from tests.scanners.charts import TRADE_DATE, bar, bars_of, chart_of, weekdays

# ------------------------------------------------------------------------------------------------------- market_movers


@pytest.mark.parametrize(
    ("closes", "priority", "words"),
    [
        ([100.0, 95.0], "high", "fell 5.0 % to 95.00 on 2013-01-24, from 100.00 on 2013-01-23"),
        ([100.0, 105.0], "high", "rose 5.0 % to 105.00"),
        ([100.0, 90.0], "critical", "fell 10.0 % to 90.00"),
        ([100.0, 250.0], "critical", "rose 150.0 % to 250.00"),
        ([5.3, 5.0], "high", "fell 5.7 % to 5.00"),
    ],
)
def test_a_big_move_is_found(closes: list[float], priority: str, words: str) -> None:
    found = find_move(chart_of(bars_of(closes), "BRK.B"), MoversSettings())
    assert found is not None
    assert (found.ticker, found.source, found.priority) == ("BRK.B", "market_movers", priority)
    assert words in found.context


@pytest.mark.parametrize("closes", [[100.0, 95.1], [100.0, 104.9], [100.0, 100.0], [5.3, 4.9], [4.0, 4.9]])
def test_a_small_move_or_a_low_price_is_none(closes: list[float]) -> None:
    assert find_move(chart_of(bars_of(closes)), MoversSettings()) is None


def test_the_numbers_are_settings_and_stand_in_the_extras() -> None:
    settings = MoversSettings(min_change=1.0, critical_change=2.0, min_price=0.0)
    found = find_move(chart_of(bars_of([3.0, 3.03], volumes=[10, 20])), settings)
    assert found is not None
    assert found.priority == "high"
    assert found.extras == {
        "date": "2013-01-24", "close": 3.03, "change_percent": 1.0, "volume": 20, "previous_close": 3.0,
    }  # fmt: skip


def test_a_bar_before_the_trade_date_is_told() -> None:
    chart = chart_of(bars_of([100.0, 90.0], last=date(2013, 1, 25)), trade_date=date(2013, 1, 27))
    found = find_move(chart, MoversSettings())
    assert found is not None
    assert "on 2013-01-25 (the last trading day before 2013-01-27)" in found.context
    assert found.extras["date"] == "2013-01-25"


# ------------------------------------------------------------------------------------------------- volume_accumulation


def volume_chart(last_volume: int, change: float = 0.0, before: int = 1000) -> Chart:
    closes = [100.0] * 30 + [100.0 * (1 + change / 100)]
    return chart_of(bars_of(closes, [before] * 30 + [last_volume]))


@pytest.mark.parametrize(
    ("volume", "change", "priority"),
    [(2000, 0.0, "medium"), (2999, 3.0, "medium"), (3000, -0.1, "high"), (9000, 2.9, "high")],
)
def test_volume_without_a_move_is_found(volume: int, change: float, priority: str) -> None:
    found = find_accumulation(volume_chart(volume, change), VolumeSettings())
    assert found is not None
    assert found.priority == priority
    assert found.extras["volume_ratio"] == volume / 1000
    assert f"is {volume / 1000:.1f} x its 30-day mean on 2013-01-24" in found.context


@pytest.mark.parametrize(
    ("volume", "change"),
    [
        pytest.param(1999, 0.0, id="too little volume"),
        pytest.param(5000, 3.1, id="the price moved up"),
        pytest.param(5000, -3.1, id="the price moved down"),
        pytest.param(5000, -0.2, id="a distribution day"),
    ],
)
def test_other_volume_is_none(volume: int, change: float) -> None:
    assert find_accumulation(volume_chart(volume, change), VolumeSettings()) is None


def test_the_mean_is_of_the_days_before_the_last_one() -> None:
    volumes = [999_999, *([1000] * 15), *([3000] * 15), 8000]
    assert volume_ratio(chart_of(bars_of([1.0] * 32, volumes)), 30) == 4.0


def test_a_stock_that_nobody_traded_has_no_ratio() -> None:
    assert find_accumulation(volume_chart(5000, before=0), VolumeSettings()) is None


# ------------------------------------------------------------------------------------------- highs of 52 weeks


def test_a_close_above_the_highest_high_of_252_days_is_found() -> None:
    days = weekdays(254)
    bars = [
        bar(days[0], 500.0),  # a year and a day ago: counts no more
        *(bar(day, 90.0, high=100.0 if number == 7 else 95.0) for number, day in enumerate(days[1:-1])),
        bar(days[-1], 100.01),
    ]
    found = find_breakout(chart_of(bars), BreakoutSettings())
    assert found is not None
    assert f"the highest price of the 252 trading days before, 100.00 on {days[8]}" in found.context
    assert found.extras["previous_high"] == 100.0


def test_a_high_exactly_252_days_ago_counts() -> None:
    days = weekdays(253)
    bars = [bar(days[0], 90.0, high=100.0), *(bar(day, 90.0) for day in days[1:-1]), bar(days[-1], 100.0)]
    assert find_breakout(chart_of(bars), BreakoutSettings()) is None


def test_a_close_at_the_old_high_or_a_high_above_it_is_none() -> None:
    days = weekdays(253)
    before = [bar(day, 90.0, high=100.0) for day in days[:-1]]
    assert find_breakout(chart_of([*before, bar(days[-1], 100.0)]), BreakoutSettings()) is None
    assert find_breakout(chart_of([*before, bar(days[-1], 99.0, high=120.0)]), BreakoutSettings()) is None


# -------------------------------------------------------------------------------------------------------------- gap_up


def gap_chart(**prices: float) -> Chart:
    first, last = weekdays(2)
    return chart_of([bar(first, 100.0), bar(last, **prices)])


@pytest.mark.parametrize(("opened", "priority"), [(102.0, "medium"), (104.9, "medium"), (105.1, "high")])
def test_a_gap_that_held_is_found(opened: float, priority: str) -> None:
    found = find_gap(gap_chart(open=opened, low=101.0, high=110.0, close=opened), GapSettings())
    assert found is not None
    assert found.priority == priority
    assert f"opened {opened - 100:.1f} % above the previous close of 100.00" in found.context


@pytest.mark.parametrize(
    ("opened", "low", "close"),
    [
        pytest.param(101.9, 101.0, 103.0, id="too small"),
        pytest.param(104.0, 100.0, 105.0, id="closed during the day"),
        pytest.param(104.0, 102.0, 103.9, id="sold off"),
        pytest.param(96.0, 95.0, 97.0, id="down"),
    ],
)
def test_a_gap_that_did_not_hold_is_none(opened: float, low: float, close: float) -> None:
    assert find_gap(gap_chart(open=opened, low=low, high=110.0, close=close), GapSettings()) is None


# -------------------------------------------------------------------------------------------------------- rsi_oversold


def test_rsi_of_two_days_by_hand() -> None:
    # changes +1, -0.5, -0.5: gain 0.5 then 0.25, loss 0.25 then 0.375; 100 * 0.25 / 0.625
    assert rsi([10.0, 11.0, 10.5, 10.0], 2) == pytest.approx(40.0)
    assert rsi([10.0, 11.0, 10.5], 2) == pytest.approx(100 * 0.5 / 0.75)


def test_rsi_of_14_days_against_the_worked_example_that_textbooks_share() -> None:
    closes = [
        44.3389,
        44.0902,
        44.1497,
        43.6124,
        44.3278,
        44.8264,
        45.0955,
        45.4245,
        45.8433,
        46.0826,
        45.8931,
        46.0328,
    ]
    closes += [45.6140, 46.2820, 46.2820]
    later = [(46.0028, 66.32), (46.0328, 66.55), (46.4116, 69.41), (46.2222, 66.36), (45.6439, 57.97)]
    assert rsi(closes, 14) == pytest.approx(70.53, abs=0.01)
    for close, expected in later:
        closes.append(close)
        assert rsi(closes, 14) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("closes", "expected"), [([1.0, 2.0, 3.0], 100.0), ([3.0, 2.0, 1.0], 0.0), ([2.0, 2.0, 2.0], 50.0)]
)
def test_rsi_at_its_ends(closes: list[float], expected: float) -> None:
    assert rsi(closes, 2) == expected


def rising(*last: float) -> Chart:
    return chart_of(bars_of([*(100.0 + number / 2 for number in range(200)), *last]))  # up to 199.5


def test_a_dip_in_a_rise_is_found() -> None:
    found = find_oversold(rising(190.0, 180.0), OversoldSettings())
    assert found is not None
    # the rise leaves gain 0.5 and loss 0; then gain 0.25, 0.125 and loss 4.75, 7.375
    assert found.extras["rsi"] == pytest.approx(100 * 0.125 / 7.5, abs=1e-3)
    assert found.priority == "high"
    # 198 closes from 101.0 to 199.5, 190 and 180
    assert found.extras["mean"] == pytest.approx((198 * 150.25 + 370) / 200)
    assert "RSI(2) is 1.7 on 2013-01-24, at 180.00 above the 200-day mean of 150.60" in found.context


def test_a_fall_below_the_mean_or_a_shallow_dip_is_none() -> None:
    assert find_oversold(rising(190.0, 140.0), OversoldSettings()) is None
    assert find_oversold(rising(199.0, 199.5), OversoldSettings()) is None


def test_an_rsi_at_the_limit_or_a_close_at_the_mean_is_none() -> None:
    assert find_oversold(rising(190.0, 180.0), OversoldSettings(period=1, max_rsi=0)) is None  # the RSI is 0
    assert find_oversold(chart_of(bars_of([10.0] * 200)), OversoldSettings(max_rsi=60)) is None  # the RSI is 50


# ----------------------------------------------------------------------------------------------------------- any chart

RULES: list[tuple[Callable[[Chart, Any], Any], Any]] = [
    (find_move, MoversSettings(min_change=0.01, min_price=0.0)),
    (find_accumulation, VolumeSettings(min_ratio=0.5, mean_days=5, max_move=50.0)),
    (find_breakout, BreakoutSettings(lookback_days=5)),
    (find_gap, GapSettings(min_gap=0.01, min_price=0.0)),
    (find_oversold, OversoldSettings(mean_days=5, max_rsi=60.0)),
]
prices = st.floats(min_value=1.0, max_value=1e6, allow_nan=False)


@given(
    rows=st.lists(st.tuples(prices, prices, st.integers(0, 10**12)), min_size=6, max_size=40),
    rule=st.sampled_from(RULES),
)
def test_a_rule_says_nothing_or_a_candidate_with_finite_numbers(rows: list[Any], rule: Any) -> None:
    find, settings = rule
    days = weekdays(len(rows))
    bars = [
        bar(day, close, volume, open=first, high=max(first, close), low=min(first, close))
        for day, (first, close, volume) in zip(days, rows, strict=True)
    ]
    found = find(chart_of(bars), settings)
    if found is not None:
        assert found.ticker == "TEST"
        assert TRADE_DATE.isoformat() in found.context
        assert all(math.isfinite(value) for value in found.extras.values() if not isinstance(value, str))
