"""Answers of our own making in the forms of Alpha Vantage, Finnhub and Yahoo, and how scanners are asked in tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any

from resilient_scan import Candidate, ScanContext
from resilient_scan.cli.demo_server import Answer
from resilient_scan.testing import FakeClock

KEY = "S3CRET-key-of-ours"
NOW = "2026-05-17T20:00:00+00:00"  # a Sunday
TEXT = {"Content-Type": "text/plain"}
JSON = {"Content-Type": "application/json"}


def context_at(now: str, name: str = "s", **settings: Any) -> ScanContext:
    """Return a context whose time of day is `now`, with a minute left."""
    clock = FakeClock(datetime.fromisoformat(now).timestamp())
    return ScanContext(name, clock=clock, settings=settings, deadline=clock.monotonic() + 60)


def ask(scanner: Any, now: str, state: Mapping[str, Any] | None = None, **settings: Any) -> Asked:
    """Ask a scanner without a runner."""
    context = context_at(now, scanner.name, **settings)
    return Asked(list(scanner({} if state is None else state, context)), context)


class Asked:
    """What a scanner found, and what it told."""

    def __init__(self, candidates: list[Candidate], context: ScanContext) -> None:
        self.candidates = candidates
        self.tickers = [candidate.ticker for candidate in candidates]
        self.log = context.tool_logs()
        self.doubted = context.doubted


def as_json(data: Any, status: int = 200) -> Answer:
    """Return an answer."""
    return status, dict(JSON), json.dumps(data).encode()


def places(value: Any, path: tuple[Any, ...] = (), *, most: int | None = 1) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of everything in a payload; of a list the first item's only, as the others are of its kind."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:most]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key), most=most)


WRONG: dict[str, Callable[[Any], Any]] = {
    "null": lambda _: None,
    "text": lambda _: "something else",
    "huge": lambda value: "9" * 30 if isinstance(value, str) else 10**30,
    "huge float": lambda value: "1e300" if isinstance(value, str) else 1e300,
    "list": lambda _: [],
    "gone": lambda _: None,
}


def replaced(payload: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a payload with another value at a place; "gone": with none. A function gets what was there."""
    copy = deepcopy(payload)
    holder = copy
    for step in path[:-1]:
        holder = holder[step]
    if value == "gone":
        del holder[path[-1]]
    else:
        holder[path[-1]] = value(holder[path[-1]]) if callable(value) else value
    return copy


def mutated(payload: Any, path: tuple[Any, ...], wrong: str) -> Any:
    """Return a copy of a payload with one value made wrong."""
    return replaced(payload, path, "gone" if wrong == "gone" else WRONG[wrong])


# ------------------------------------------------------------------------------------------------------ Alpha Vantage


def mover(ticker: str, price: float, before: float) -> dict[str, str]:
    """Return a row of the movers, in texts as they are."""
    change = price - before
    return {
        "ticker": ticker,
        "price": f"{price:.4f}",
        "change_amount": f"{change:.4f}",
        "change_percentage": f"{change / before * 100:.4f}%",
        "volume": "1000000",
    }


MOVERS = {
    "metadata": "Top gainers, losers, and most actively traded US tickers",
    "last_updated": "2026-05-15 16:16:00 US/Eastern",
    "top_gainers": [mover("UPUP", 12.0, 10.0), mover("UPUPW", 9.0, 0.5), mover("CHEAP", 4.99, 2.0)],
    "top_losers": [mover("DOWN", 47.5, 50.0), mover("OPFI+", 6.0, 12.0)],
    "most_actively_traded": [mover("SOXS", 9.0, 8.0), mover("UPUP", 12.0, 10.0), mover("CALM", 104.9, 100.0)],
}


def listing(*rows: tuple[str, str, str, str]) -> bytes:
    """Return a listing of these (symbol, name, exchange, kind), and of a thousand others, as it has to have."""
    others = ((f"Z{number}", f"Other {number} Inc", "NYSE", "Stock") for number in range(1000))
    lines = (
        f'{symbol},"{name}",{exchange},{kind},2014-10-31,null,Active'
        for symbol, name, exchange, kind in (*rows, *others)
    )
    return "\r\n".join(["symbol,name,exchange,assetType,ipoDate,delistingDate,status", *lines, ""]).encode()


LISTING = listing(
    ("UPUP", "Up Inc", "NASDAQ", "Stock"),
    ("DOWN", "Down Corp - Class A", "NYSE", "Stock"),
    ("CHEAP", "Cheap Ltd", "NASDAQ", "Stock"),
    ("CALM", "Calm Inc", "NYSE", "Stock"),
    ("FIVE", "Five Below Inc", "NASDAQ", "Stock"),
    ("BRK-B", "Berkshire Hathaway Inc - Class B", "NYSE", "Stock"),
    ("SOXS", "Direxion Daily Semiconductor Bear 3X Shares", "NYSE ARCA", "ETF"),
)


def article(url: str, published: str, *mentions: tuple[str, float, float]) -> dict[str, Any]:
    """Return an article of the feed; mentions are ticker, relevance and sentiment."""
    return {
        "title": f"Title of {url}",
        "url": url,
        "time_published": published,
        "overall_sentiment_score": 0.1,
        "ticker_sentiment": [
            {
                "ticker": ticker,
                "relevance_score": f"{relevance:.6f}",
                "ticker_sentiment_score": f"{sentiment:.6f}",
                "ticker_sentiment_label": "whatever",
            }
            for ticker, relevance, sentiment in mentions
        ],
    }


NEWS = {
    "items": "4",
    "feed": [
        article("u1", "20260517T110100", ("GOOD", 1.0, 0.6), ("BAD", 0.9, -0.5), ("CRYPTO:BTC", 1.0, 0.9)),
        article("u2", "20260516T110100", ("GOOD", 0.5, 0.3), ("BAD", 0.6, -0.4), ("CRYPTO:BTC", 1.0, 0.9)),
        article("u3", "20260515T110100", ("MIXED", 1.0, 0.9), ("BRK-B", 0.8, 0.4)),
        article("u4", "20260515T120000", ("MIXED", 1.0, -0.9), ("BRK-B", 0.8, 0.4), ("GOOD", 0.49, -1.0)),
    ],
}

CALENDAR = """symbol,name,reportDate,fiscalDateEnding,estimate,currency,timeOfTheDay
PAST,PAST INC,2026-05-16,2026-03-31,1.00,USD,
NOWC,NOWC INC,2026-05-17,2026-03-31,1.00,USD,pre-market
MORW,"MORW, INC",2026-05-18,2026-03-31,-0.25,USD,post-market
BLANK,BLANK INC,2026-05-18,2026-03-31,,USD,
OZFRY,OZFRY,2026-05-18,2026-03-31,2.00,USD,
WEEK,WEEK INC,2026-05-24,2026-03-31,0,CNY,
LATE,LATE INC,2026-05-25,2026-03-31,1.00,USD,
"""

# ------------------------------------------------------------------------------------------------------------ Finnhub


def trend(period: str, *counts: int) -> dict[str, Any]:
    """Return a month of recommendations: strong buy, buy, hold, sell, strong sell."""
    names = ("strongBuy", "buy", "hold", "sell", "strongSell")
    return {"period": period, "symbol": "X", **dict(zip(names, counts, strict=True))}


TRENDS = [trend("2026-05-01", 4, 4, 2, 0, 0), trend("2026-04-01", 2, 4, 4, 0, 0)]

FINNHUB_CALENDAR = {
    "earningsCalendar": [
        {
            "date": "2026-05-18",
            "epsActual": None,
            "epsEstimate": -0.25,
            "hour": "amc",
            "symbol": "MORW",
            "year": 2026,
        },
        {"date": "2026-05-19", "epsActual": None, "epsEstimate": 3.5, "hour": "bmo", "symbol": "XTRA", "year": 2026},
        {"date": "2026-05-19", "epsActual": None, "epsEstimate": None, "hour": "", "symbol": "NOTHING", "year": 2026},
    ]
}

# -------------------------------------------------------------------------------------------------------------- Yahoo


def quote(symbol: str, price: float, before: float, kind: str = "EQUITY") -> dict[str, Any]:
    """Return a quote of the screener, of 2026-05-15."""
    return {
        "symbol": symbol,
        "quoteType": kind,
        "regularMarketPrice": price,
        "regularMarketPreviousClose": before,
        "regularMarketChangePercent": (price / before - 1) * 100,
        "regularMarketVolume": 1_000_000,
        "regularMarketTime": 1778875202,  # 2026-05-15 16:00:02 in New York
    }


def screened(*quotes: dict[str, Any]) -> dict[str, Any]:
    """Return a screener's payload."""
    return {"finance": {"result": [{"id": "x", "count": len(quotes), "quotes": list(quotes)}], "error": None}}


def contract(side: str, strike: float, volume: int, interest: int, price: float, **more: Any) -> dict[str, Any]:
    """Return a contract of TEST that expires on 2026-05-22, and was last traded on 2026-05-15."""
    return {
        "contractSymbol": f"TEST260522{side}{round(strike * 1000):08d}",
        "strike": strike,
        "currency": "USD",
        "lastPrice": price,
        "volume": volume,
        "openInterest": interest,
        "contractSize": "REGULAR",
        "expiration": 1779408000,
        "lastTradeDate": 1778870000,
        **more,
    }


def chained(calls: list[dict[str, Any]], puts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the payload of an option chain; the underlying costs 100."""
    options = [{"expirationDate": 1779408000, "hasMiniOptions": False, "calls": calls, "puts": puts}]
    result = {"underlyingSymbol": "TEST", "quote": {"symbol": "TEST", "regularMarketPrice": 100.0}, "options": options}
    return {"optionChain": {"result": [result], "error": None}}


CHAIN = chained(
    [
        contract("C", 95, 1000, 500, 6.0),  # 2 x, 600,000 $
        contract("C", 100, 999, 500, 6.0),  # 1.998 x
        contract("C", 105, 124, 62, 2.0),  # 24,800 $
        contract("C", 110, 500, 0, 1.0),  # no open interest
        contract("C", 115, 500, 10, 0.6, lastTradeDate=1778000000),  # of another week
    ],
    [contract("P", 90, 5000, 1000, 1.0)],  # 5 x, 500,000 $
)
