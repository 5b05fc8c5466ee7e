"""The bundled history: what it is, how it is served, and what the scanners find in it."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import json
import re
from datetime import date, timedelta
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan_scanners.demo import demo, history, opening
from resilient_scan_scanners.providers.yahoo import Bar
from tests.scanners.charts import scan

DATA = resources.files("resilient_scan_scanners") / "data"


def ask(symbol: str, first: date, end: date) -> tuple[int, Any]:
    query = {"period1": str(opening(first) - 3600), "period2": str(opening(end) - 3600), "interval": "1d"}
    status, headers, body = demo.respond(f"/v8/finance/chart/{symbol}", query)
    assert headers["Content-Type"].startswith("application/json")
    return status, json.loads(body)["chart"]


def found_on(day: str) -> dict[str, list[str]]:
    """Return who found what on a day: `{scanner: [tickers]}`."""
    found = {}
    with LoopbackServer(demo.respond) as server:
        for name in demo.scanners:
            scanner = getattr(importlib.import_module(f"resilient_scan_scanners.{name}"), name)
            candidates, _ = scan(scanner, {**demo.state, "trade_date": day}, **demo.settings(server.url))
            found[name] = [candidate.ticker for candidate in candidates]
    return found


def test_the_bundled_file_is_the_one_whose_origin_is_written_down() -> None:
    provenance = (DATA / "PROVENANCE.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((DATA / "daily.csv").read_bytes()).hexdigest()
    assert re.search(rf"sha256 of `daily.csv` \| `{digest}`", provenance)


@pytest.mark.skipif(importlib.util.find_spec("bokeh_sampledata") is None, reason="needs the package bokeh_sampledata")
def test_the_script_makes_the_same_bytes_again(script: Any) -> None:
    assert script.main(["--check"]) == 0


def test_the_bars_agree_with_themselves_and_with_what_the_demo_says() -> None:
    bars = history()
    assert tuple(bars) == demo.tickers
    assert {ticker: len(rows) for ticker, rows in bars.items()} == {
        "AAPL": 440, "FB": 196, "GOOG": 440, "IBM": 440, "MSFT": 440,
    }  # fmt: skip
    for rows in bars.values():
        days = [each.day for each in rows]
        assert days == sorted(set(days))
        assert all(each.low <= min(each.open, each.close) <= max(each.open, each.close) <= each.high for each in rows)
        assert all(each.volume > 0 for each in rows)
        assert max(after - before for before, after in pairwise(days)) < timedelta(days=6)
    assert min(rows[0].day for rows in bars.values()) == demo.first
    assert {rows[-1].day for rows in bars.values()} == {demo.last}


def test_it_answers_as_yahoo_does() -> None:
    status, chart = ask("AAPL", date(2013, 1, 23), date(2013, 1, 25))
    assert (status, chart["error"]) == (200, None)
    result = chart["result"][0]
    assert result["meta"]["instrumentType"] == "EQUITY"
    assert result["timestamp"] == [1358951400, 1359037800]  # 09:30 in New York
    assert result["indicators"]["quote"] == [
        {
            "open": [508.81, 460.0],
            "high": [514.99, 465.73],
            "low": [504.77, 450.25],
            "close": [514.005, 450.5],
            "volume": [30768200, 52173300],
        }
    ]


def test_days_without_bars_have_no_timestamps() -> None:
    status, chart = ask("AAPL", date(2013, 1, 26), date(2013, 1, 28))
    assert status == 200
    assert "timestamp" not in chart["result"][0]
    assert chart["result"][0]["indicators"] == {"quote": [{}]}


@pytest.mark.parametrize("symbol", ["XYZ", "", "aapl", "../AAPL"])
def test_an_unknown_symbol_is_yahoos_404(symbol: str) -> None:
    status, chart = ask(symbol, date(2013, 1, 23), date(2013, 1, 25))
    assert (status, chart["result"]) == (404, None)
    assert chart["error"] == {"code": "Not Found", "description": "No data found, symbol may be delisted"}


@pytest.mark.parametrize("query", [{}, {"period1": "0"}, {"period1": "x", "period2": "1"}])
def test_a_query_without_days_is_refused(query: dict[str, str]) -> None:
    assert demo.respond("/v8/finance/chart/AAPL", query)[0] == 400
    assert demo.respond("/", query)[0] == 404


def test_apples_fall_is_found() -> None:
    with LoopbackServer(demo.respond) as server:
        module = importlib.import_module("resilient_scan_scanners.market_movers")
        (apple,), _ = scan(module.market_movers, demo.state, **demo.settings(server.url))
    assert (apple.ticker, apple.priority) == ("AAPL", "critical")
    assert apple.context.startswith("fell 12.4 % to 450.50 on 2013-01-24, from 514.0")
    # worked out from the bundled bars, not by the scanner
    closes = {each.day: each.close for each in history()["AAPL"]}
    change = (closes[date(2013, 1, 24)] / closes[date(2013, 1, 23)] - 1) * 100
    assert apple.extras["change_percent"] == pytest.approx(change, abs=1e-4)


def moved(past: list[Bar]) -> bool:
    return abs(past[-1].close / past[-2].close - 1) >= 0.05


def accumulated(past: list[Bar]) -> bool:
    heavy = past[-1].volume * 30 >= 2 * sum(each.volume for each in past[-31:-1])
    return heavy and 0.998 < past[-1].close / past[-2].close <= 1.03


def broke_out(past: list[Bar]) -> bool:
    return len(past) >= 253 and past[-1].close > max(each.high for each in past[-253:-1])


def gapped(past: list[Bar]) -> bool:
    last, before = past[-1], past[-2].close
    return last.open >= before * 1.02 and last.low > before and last.close >= last.open


def oversold(past: list[Bar]) -> bool:
    if len(past) < 200 or past[-1].close <= sum(each.close for each in past[-200:]) / 200:
        return False
    gain = loss = 0.0  # of 60 days ago: what is left of it is less than rounding
    for one, other in pairwise(past[-60:]):
        change = other.close - one.close
        gain, loss = (gain + max(change, 0)) / 2, (loss + max(-change, 0)) / 2
    return gain < 0.1 * (gain + loss)


RULES = {
    "market_movers": moved,
    "volume_accumulation": accumulated,
    "high_52w_breakout": broke_out,
    "gap_up": gapped,
    "rsi_oversold": oversold,
}


def expected_by_other_means(day: str) -> dict[str, list[str]]:
    """Work out the candidates of a day straight from the bundled bars, by rules written down anew."""
    past = {ticker: [each for each in rows if each.day.isoformat() <= day] for ticker, rows in history().items()}
    return {name: [ticker for ticker, rows in past.items() if rule(rows)] for name, rule in RULES.items()}


@pytest.mark.parametrize("day", ["2012-09-14", "2012-11-01", "2013-01-23", "2013-01-24", "2013-02-20", "2013-02-25"])
def test_what_is_found_agrees_with_a_count_by_other_means(day: str) -> None:
    assert found_on(day) == expected_by_other_means(day)


def test_every_scanner_finds_something_in_the_bundled_history() -> None:
    days = sorted({each.day.isoformat() for each in history()["IBM"] if each.day >= date(2012, 7, 1)})
    hits: dict[str, int] = dict.fromkeys(demo.scanners, 0)
    for day in days[::2]:
        for name, tickers in expected_by_other_means(day).items():
            hits[name] += len(tickers)
    assert min(hits.values()) > 0, hits


# ------------------------------------------------------------------------------------- the script that cut the history

HEAD = "Ticker,Date,Open,High,Low,Close,Volume,Adj Close\n"


@pytest.fixture
def script() -> Any:
    """Return the module `make_history`."""
    spec = importlib.util.spec_from_file_location("make_history", str(DATA / "make_history.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_cuts_days_and_columns_and_changes_nothing(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        "AAPL,2011-05-31,1,1,1,1,1,1\n",
        "AAPL,2011-06-01,348.87,352.132,344.65,345.51,19810100,44.8\n",
        "AAPL,2013-03-01,438,438.18,429.98,430.47,19730300,56.2\n",
        "FB,2012-05-18,42.05,45,38,38.2318,573576400,38.2318\n",
        "FB,2013-03-04,1,1,1,1,1,1\n",
    ]
    monkeypatch.setattr(script, "source", lambda: HEAD + "".join(rows))
    monkeypatch.setattr(script, "TARGET", tmp_path / "daily.csv")
    assert script.main([]) == 0
    assert (tmp_path / "daily.csv").read_text() == (
        "ticker,date,open,high,low,close,volume\n"
        "AAPL,2011-06-01,348.87,352.132,344.65,345.51,19810100\n"
        "AAPL,2013-03-01,438,438.18,429.98,430.47,19730300\n"
        "FB,2012-05-18,42.05,45,38,38.2318,573576400\n"
    )
    assert script.main(["--check"]) == 0
    (tmp_path / "daily.csv").write_text("other")
    assert script.main(["--check"]) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("A,2012-01-04,10,11,10.5,10.8,100,10.8", "low, open, close or volume is wrong"),
        ("A,2012-01-04,10,11,9,10,0,10", "low, open, close or volume is wrong"),
        ("A,2012-01-04,10,10.5,9,10.6,100,10.6", "high is wrong"),
        ("A,2012-01-04,5,5,5,5,200,10", "a split between 2012-01-03 and 2012-01-04 of A"),
    ],
)
def test_the_script_refuses_bars_that_contradict_themselves_and_splits(
    script: Any, row: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "source", lambda: f"{HEAD}A,2012-01-03,10,10,10,10,100,10\n{row}\n")
    with pytest.raises(SystemExit, match=words):
        script.extract()


def test_the_script_refuses_another_source(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_data").mkdir()
    (tmp_path / "_data" / "stocks.csv.gz").write_bytes(gzip.compress(b"something else"))
    monkeypatch.setattr(script.resources, "files", lambda package: tmp_path)
    with pytest.raises(SystemExit, match=r"see PROVENANCE\.md for the version"):
        script.source()
