"""`sector_rotation`: funds that gain on the market."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from resilient_scan import ScanError
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan_scanners.providers.yahoo import new_york_date
from resilient_scan_scanners.sector_rotation import sector_rotation
from tests.scanners.charts import TRADE_DATE, FakeYahoo, bars_of, payload_of
from tests.scanners.providers import Asked, ask
from tests.scanners.recorded import body

STATE = {"trade_date": "2013-01-24", "tickers": ["IGNORED"]}
AFTER = "2026-01-01T00:00:00+00:00"
FLAT = [100.0] * 21


def rising(*closes: float) -> list[float]:
    """Return 21 closes that begin at 100 and end with these."""
    return [100.0] * (21 - len(closes)) + list(closes)


def find(charts: dict[str, Any], sectors: list[str], **settings: Any) -> Asked:
    with LoopbackServer(FakeYahoo(charts)) as server:
        return ask(sector_rotation, AFTER, STATE, base_url=server.url, universe=sectors, **settings)


def test_the_rule_by_hand() -> None:
    charts = {
        "SPY": payload_of(bars_of(rising(100, 100, 100, 100, 101))),
        "STRONG": payload_of(bars_of(rising(104, 104, 104, 104, 108))),  # 8 - 1 = 7 points, 5 days: 108/100 - 1 - 1 = 7
        "ENOUGH": payload_of(bars_of(rising(102, 102, 102, 103, 104))),  # exactly 3 points
        "BEHIND": payload_of(bars_of(rising(102, 102, 102, 103, 103.9))),  # 2.9 points
        "STOPPED": payload_of(bars_of(rising(108, 108, 108, 108, 108, 108))),  # 7 points, but 0 - 1 in the last 5 days
    }
    found = find(charts, ["ENOUGH", "BEHIND", "STOPPED", "STRONG"])
    assert [(each.ticker, each.priority, each.extras["lead"]) for each in found.candidates] == [
        ("STRONG", "high", 7.0),
        ("ENOUGH", "medium", 3.0),
    ]
    assert found.candidates[0].context == (
        "gained 7.0 points on SPY in 20 trading days, and 7.0 in the last 5, on 2013-01-24"
    )


def test_the_numbers_are_settings() -> None:
    charts = {"M": payload_of(bars_of(FLAT)), "A": payload_of(bars_of(rising(102)))}
    assert find(charts, ["A"], benchmark="M").tickers == []
    assert find(charts, ["A"], benchmark="M", min_lead=2).tickers == ["A"]
    assert find(charts, ["A"], benchmark="M", min_lead=1, high_lead=2).candidates[0].priority == "high"
    with pytest.raises(ScanError, match="M has 21 bars, the rule needs 22"):  # it has a bar too few
        find(charts, ["A"], benchmark="M", lookback_days=21)


def test_without_the_market_there_is_no_rotation() -> None:
    with pytest.raises(ScanError, match="no usable chart of the benchmark SPY"):
        find({"A": payload_of(bars_of(FLAT))}, ["A"])


def test_a_sector_of_other_days_is_left_out() -> None:
    early = payload_of(bars_of(rising(110), last=TRADE_DATE - timedelta(days=1)))
    assert find({"SPY": payload_of(bars_of(FLAT)), "A": early}, ["A"]).tickers == []


def test_real_charts() -> None:
    files = {
        "SPY": "SPY_2020-11-30_2021-12-10",
        "TSLA": "TSLA_2020-12-21_2021-12-21",
        "GM": "GM_2020-12-21_2021-12-21",
        "NVDA": "NVDA_2021-02_2022-01",
        "MSFT": "MSFT_2021-02_2022-01",
    }
    raw = {name: body(f"yahoo/v8_chart_1d/{file}.json") for name, file in files.items()}
    closes = {}
    for name, text in raw.items():
        result = json.loads(text)["chart"]["result"][0]
        days = [new_york_date(stamp).isoformat() for stamp in result["timestamp"]]
        closes[name] = dict(zip(days, result["indicators"]["adjclose"][0]["adjclose"], strict=True))
    hits = 0
    with LoopbackServer(FakeYahoo({name: (200, {}, text) for name, text in raw.items()})) as server:
        for day in ("2021-06-15", "2021-08-31", "2021-10-25", "2021-11-19", "2021-12-10"):
            known = sorted(each for each in closes["SPY"] if each <= day)
            month, week = known[-21], known[-6]
            expected = {}
            for name in ("TSLA", "GM", "NVDA", "MSFT"):
                rises = [
                    (closes[who][day] / closes[who][since] - 1) * 100
                    for who in (name, "SPY")
                    for since in (month, week)
                ]
                if rises[0] - rises[2] >= 3 and rises[1] - rises[3] > 0:
                    expected[name] = rises[0] - rises[2]
            found = ask(
                sector_rotation,
                AFTER,
                {"trade_date": day},
                base_url=server.url,
                universe=["TSLA", "GM", "NVDA", "MSFT"],
            )
            assert found.tickers == sorted(expected, key=lambda name: -expected[name]), day
            for candidate in found.candidates:
                assert candidate.extras["lead"] == pytest.approx(expected[candidate.ticker], abs=1e-3)
            hits += len(expected)
    assert hits == 8
