"""Serve the bundled market history as Yahoo's chart API would.

`demo` is what the command line needs: serve `demo.respond` over HTTP, and give `demo.settings(url, demo.trade_date)` to
each of `demo.scanners`. The run's state stays as it is, because other scanners get it too.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from importlib import resources
from typing import Any, Final
from urllib.parse import unquote

from ._sessions import NEW_YORK
from .providers.yahoo import Bar

CHART: Final = "/v8/finance/chart/"
OPENING: Final = time(9, 30)
JSON_TYPE: Final = {"Content-Type": "application/json;charset=utf-8"}
COLUMNS: Final = ("open", "high", "low", "close", "volume")

Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Demo:
    """The bundled history, and how to run scanners on it.

    Attributes:
        trade_date: the day Apple fell by 12.4 % after its earnings.
        first, last: the first and the last day of the history.
        description: the end of a sentence that begins "The data are".
        tickers: all tickers of the history.
        scanners: the names of the scanners that the history can serve.
    """

    trade_date: str = "2013-01-24"
    first: date = date(2011, 6, 1)
    last: date = date(2013, 3, 1)
    description: str = "real daily prices and volumes up to 2013, bundled and served on loopback in Yahoo's format"
    tickers: tuple[str, ...] = ("AAPL", "FB", "GOOG", "IBM", "MSFT")
    scanners: tuple[str, ...] = ("market_movers", "volume_accumulation", "high_52w_breakout", "gap_up", "rsi_oversold")

    @property
    def state(self) -> dict[str, Any]:
        """Return the state of a run on the bundled history."""
        return {"trade_date": self.trade_date, "tickers": list(self.tickers)}

    @staticmethod
    def settings(base_url: str, trade_date: str | None = None) -> dict[str, Any]:
        """Return the settings that point a scanner to a server of `respond` at `base_url`.

        Args:
            base_url: of the server.
            trade_date: the day to look at; `None`: the state's. With it, a scanner needs nothing of the state.
        """
        day = {} if trade_date is None else {"trade_date": trade_date}
        return {"base_url": base_url, "universe": list(demo.tickers), **day}

    @staticmethod
    def respond(path: str, query: Mapping[str, str]) -> Answer:
        """Return status, headers and body, as Yahoo's API does for `GET path?query`."""
        symbol = unquote(path.removeprefix(CHART))
        bars = history().get(symbol) if path.startswith(CHART) else None
        if bars is None:
            return _error(404, "Not Found", "No data found, symbol may be delisted")
        try:
            first, end = int(query["period1"]), int(query["period2"])
        except (KeyError, ValueError):
            return _error(400, "Bad Request", "period1 and period2 must be epoch seconds")
        return _ok(_chart(symbol, [bar for bar in bars if first <= opening(bar.day) < end]))


demo: Final = Demo()


@cache
def history() -> Mapping[str, list[Bar]]:
    """Return the bundled bars by ticker, oldest first."""
    bars: dict[str, list[Bar]] = defaultdict(list)
    text = (resources.files(__package__) / "data" / "daily.csv").read_text(encoding="utf-8")
    for ticker, day, first, high, low, last, volume in list(csv.reader(text.splitlines()))[1:]:
        bar = Bar(date.fromisoformat(day), float(first), float(high), float(low), float(last), int(volume))
        bars[ticker].append(bar)
    return dict(bars)


def opening(day: date) -> int:
    """Return the epoch seconds of the opening bell in New York, which is the time of Yahoo's daily bars."""
    return int(datetime.combine(day, OPENING, NEW_YORK).timestamp())


def _chart(symbol: str, bars: list[Bar]) -> dict[str, Any]:
    meta = {
        "currency": "USD",
        "symbol": symbol,
        "instrumentType": "EQUITY",
        "exchangeTimezoneName": NEW_YORK.key,
        "dataGranularity": "1d",
    }
    if not bars:
        return {"meta": meta, "indicators": {"quote": [{}]}}
    columns = {name: [getattr(bar, name) for bar in bars] for name in COLUMNS}
    return {"meta": meta, "timestamp": [opening(bar.day) for bar in bars], "indicators": {"quote": [columns]}}


def _ok(result: dict[str, Any]) -> Answer:
    return 200, dict(JSON_TYPE), json.dumps({"chart": {"result": [result], "error": None}}).encode()


def _error(status: int, code: str, description: str) -> Answer:
    error = {"code": code, "description": description}
    return status, dict(JSON_TYPE), json.dumps({"chart": {"result": None, "error": error}}).encode()
