"""The scanners on real answers of Yahoo, recorded, with candidates worked out from the data.

The recordings are in the directory that RESILIENT_SCAN_TESTDATA names, under `recorded/yahoo/v8_chart_1d`.
"""

from __future__ import annotations

import json
import math
import os
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import ScanContext
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan_scanners.high_52w_breakout import high_52w_breakout
from resilient_scan_scanners.market_movers import market_movers
from resilient_scan_scanners.providers.yahoo import Yahoo, new_york_date
from resilient_scan_scanners.rsi_oversold import rsi_oversold
from resilient_scan_scanners.volume_accumulation import volume_accumulation
from tests.scanners.charts import FakeYahoo, left_out, scan

LAST_DAY = "2022-03-07"


def recording(name: str) -> bytes:
    """Return a recorded body; without recordings skip, or fail where they are required."""
    folder = os.environ.get("RESILIENT_SCAN_TESTDATA")
    path = Path(folder or ".") / "recorded" / "yahoo" / "v8_chart_1d" / f"{name}.json"
    if folder and path.is_file():
        return path.read_bytes()
    reason = f"no recording {name}: RESILIENT_SCAN_TESTDATA names no directory that has it"
    if os.environ.get("RESILIENT_SCAN_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def served(**names: str) -> FakeYahoo:
    """Return a fake Yahoo that answers with recordings, by symbol."""
    return FakeYahoo({symbol: (200, {}, recording(name)) for symbol, name in names.items()})


def columns(name: str) -> dict[str, list[Any]]:
    """Return the recorded arrays, as they are in the file."""
    result = json.loads(recording(name))["chart"]["result"][0]
    return {"timestamp": result["timestamp"], **result["indicators"]["quote"][0]}


IMPP, CENN = "IMPP_2022-01-03_2022-03-07", "CENN_2022-01-03_2022-03-07"
YEARS = {"AAPL": "AAPL_2019-03-04_2022-03-04", "PM": "PM_2019-03-04_2022-03-04"}


@pytest.mark.parametrize("path", ["IMPP", "CENN", "AAPL", "PM", "GM", "SPY", "TOT.TO", "NVDA", "MSFT", "TSLA"])
def test_every_bar_of_a_recording_is_read(path: str) -> None:
    names = {
        "IMPP": IMPP, "CENN": CENN, **YEARS, "GM": "GM_2020-12-21_2021-12-21", "SPY": "SPY_2020-11-30_2021-12-10",
        "TOT.TO": "TOT.TO_2020-12-21_2021-12-21", "NVDA": "NVDA_2021-02_2022-01", "MSFT": "MSFT_2021-02_2022-01",
        "TSLA": "TSLA_2020-08-24_2021-11-23",
    }  # fmt: skip
    raw = columns(names[path])
    with LoopbackServer(served(**{path: names[path]})) as server:
        context = ScanContext(deadline=time.monotonic() + 5)
        history = Yahoo(server.url).daily(path, date(2019, 1, 1), date(2022, 3, 7), context)
    assert history.instrument == ("ETF" if path == "SPY" else "EQUITY")
    assert [bar.day for bar in history.bars] == [new_york_date(stamp) for stamp in raw["timestamp"]]
    assert [bar.close for bar in history.bars] == raw["close"]
    assert [bar.volume for bar in history.bars] == raw["volume"]


@pytest.mark.parametrize("name", ["NVDA_2021-02_2022-01", "TSLA_2020-08-24_2021-11-23"])
def test_a_real_split_leaves_no_jump(name: str) -> None:
    symbol = name.partition("_")[0]
    with LoopbackServer(served(**{symbol: name})) as server:
        context = ScanContext(deadline=time.monotonic() + 5)
        bars = Yahoo(server.url).daily(symbol, date(2020, 8, 24), date(2022, 1, 31), context).bars
    jumps = [abs(math.log(after.close / before.close)) for before, after in pairwise(bars)]
    assert max(jumps) < 0.25  # a 4:1 split would be 1.39


@pytest.mark.parametrize(("symbol", "name", "ratio"), [("IMPP", IMPP, 5.6), ("CENN", CENN, 4.5)])
def test_the_volume_rule_on_real_spikes(symbol: str, name: str, ratio: float) -> None:
    volumes = columns(name)["volume"]
    by_hand = volumes[-1] / (sum(volumes[-31:-1]) / 30)
    with LoopbackServer(served(**{symbol: name})) as server:
        state = {"trade_date": LAST_DAY, "tickers": [symbol]}
        (found,), _ = scan(volume_accumulation, state, base_url=server.url, max_move=1000)
        quiet, _ = scan(volume_accumulation, state, base_url=server.url)
    assert round(by_hand, 1) == ratio
    assert found.extras["volume_ratio"] == pytest.approx(by_hand, abs=1e-4)
    assert f"is {ratio} x its 30-day mean on {LAST_DAY}" in found.context
    assert found.priority == "high"
    assert quiet == []  # the price more than doubled, or nearly so: that is no accumulation


def test_the_same_spikes_are_big_moves() -> None:
    with LoopbackServer(served(IMPP=IMPP, CENN=CENN)) as server:
        state = {"trade_date": LAST_DAY, "tickers": ["IMPP", "CENN"]}
        found, _ = scan(market_movers, state, base_url=server.url, min_price=0)
    for candidate, name in zip(found, (IMPP, CENN), strict=True):
        before, last = columns(name)["close"][-2:]
        assert candidate.extras["change_percent"] == pytest.approx((last / before - 1) * 100, abs=1e-3)
        assert candidate.priority == "critical"


def test_histories_that_are_too_short_and_other_instruments_are_left_out() -> None:
    answers = served(
        PYPL="PYPL_2021-12-07_2021-12-10", **{"^GSPC": "_GSPC_2021-12-31_2022-02-01", "BTC-USD": "BTC-USD"}
    )
    with LoopbackServer(answers) as server:
        for day, symbol, reason in (
            ("2021-12-10", "PYPL", "has 4 bars, the rule needs 31"),
            ("2022-02-01", "^GSPC", "is INDEX, not a stock or a fund"),
            ("2020-01-03", "BTC-USD", "is CRYPTOCURRENCY, not a stock or a fund"),
        ):
            state = {"trade_date": day, "tickers": [symbol]}
            assert left_out(volume_accumulation, state, base_url=server.url) == {symbol: reason}


@pytest.mark.slow
@pytest.mark.parametrize("symbol", ["AAPL", "PM"])
def test_the_long_rules_on_three_real_years(symbol: str) -> None:
    raw = columns(YEARS[symbol])
    days = [new_york_date(stamp).isoformat() for stamp in raw["timestamp"]]
    breakouts, dips = [], []
    with LoopbackServer(served(**{symbol: YEARS[symbol]})) as server:
        for index in range(600, len(days)):
            state = {"trade_date": days[index], "tickers": [symbol]}
            breakouts += [days[index] for _ in scan(high_52w_breakout, state, base_url=server.url)[0]]
            dips += [days[index] for _ in scan(rsi_oversold, state, base_url=server.url)[0]]
    highs, closes = raw["high"], raw["close"]
    expected = [days[index] for index in range(600, len(days)) if closes[index] > max(highs[index - 252 : index])]
    assert breakouts == expected
    assert expected
    for day in dips:
        index = days.index(day)
        assert closes[index] > sum(closes[index - 199 : index + 1]) / 200
        assert closes[index] <= closes[index - 1] < max(closes[index - 4 : index])
    assert dips
