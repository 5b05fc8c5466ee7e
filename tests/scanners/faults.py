"""Silent faults, planted into recorded answers: what no scanner may take for a sound answer.

Each fault is one row: what kind it is, what was done to which answer, and the scanner that gets it. It is *found* if
the scan fails or the answer is doubted. `python -m tests.scanners.faults` prints the table of the docs. The form of the
SEC is made by hand, in the shape of real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from resilient_scan import ScanRunner
from resilient_scan.cli.demo_server import Answer, LoopbackServer
from resilient_scan.testing import FakeClock
from resilient_scan_scanners.analyst_revisions import analyst_revisions
from resilient_scan_scanners.earnings_calendar import earnings_calendar
from resilient_scan_scanners.gap_up import gap_up
from resilient_scan_scanners.high_52w_breakout import high_52w_breakout
from resilient_scan_scanners.insider_buying import insider_buying
from resilient_scan_scanners.market_movers import market_movers
from resilient_scan_scanners.news_sentiment import news_sentiment
from resilient_scan_scanners.options_flow import options_flow
from resilient_scan_scanners.rsi_oversold import rsi_oversold
from resilient_scan_scanners.volume_accumulation import volume_accumulation
from tests.scanners.charts import FakeYahoo
from tests.scanners.filings import edgar, entry, feed, form4, line, owner
from tests.scanners.providers import KEY, as_json
from tests.scanners.recorded import body

Harm = Callable[[Any], None]
WEEK = 7 * 86_400
CHARTS = {
    "TSLA": "TSLA_2020-12-21_2021-12-21",
    "GM": "GM_2020-12-21_2021-12-21",
    "MSFT": "MSFT_2021-02_2022-01",
    "NVDA": "NVDA_2021-02_2022-01",
}


@dataclass(frozen=True)
class Verdict:
    """What a scanner made of an answer."""

    tickers: tuple[str, ...]
    doubted: str | None
    error: str | None

    @property
    def found(self) -> bool:
        """Whether it noticed that something is wrong."""
        return self.error is not None or self.doubted is not None


@dataclass(frozen=True)
class Case:
    """A scanner, what it is asked, and the sound answer that it gets.

    Attributes:
        scanner: the scanner.
        sound: makes the answer, parsed; a new one each time.
        serve: runs the scanner on such an answer.
        tickers: what it finds in the sound answer.
    """

    scanner: Any
    sound: Callable[[], Any]
    serve: Callable[[Any], Verdict]

    def run(self, harm: Harm | None = None) -> Verdict:
        """Run the scanner on the sound answer, or on one that was harmed."""
        answer = self.sound()
        if harm is not None:
            harm(answer)
        return self.serve(answer)


@dataclass(frozen=True)
class Fault:
    """A planted fault."""

    kind: str
    what: str
    case: Case
    harm: Harm = field(repr=False)


def judged(scanner: Any, now: str, state: Mapping[str, Any], **settings: Any) -> Verdict:
    """Run a scanner, and say what came of its answer."""
    clock = FakeClock(datetime.fromisoformat(now).timestamp(), auto=True)
    with ScanRunner([scanner], settings={scanner.name: settings}, clock=clock, listeners=()) as runner:
        result = runner.run(dict(state)).results[scanner.name]
    return Verdict(
        tuple(each.ticker for each in result.candidates),
        result.suspicious,
        None if result.error is None else result.error.message,
    )


# ---------------------------------------------------------------------------------------------------------- the answers


@cache
def _recorded(file: str) -> Any:
    return json.loads(body(file))


def recorded(file: str) -> Any:
    """Return a recorded answer, parsed; a copy of one's own."""
    return deepcopy(_recorded(file))


def chart(payload: Any) -> dict[str, Any]:
    """Return the part of a chart that has its bars."""
    result: dict[str, Any] = payload["chart"]["result"][0]
    return result


def columns(payload: Any) -> dict[str, list[Any]]:
    """Return the columns of a chart."""
    quote: dict[str, list[Any]] = chart(payload)["indicators"]["quote"][0]
    return quote


def cut(payload: Any, first: int, end: int | None) -> Any:
    """Keep the rows from `first` to `end` of a chart."""
    parts = chart(payload)
    parts["timestamp"] = parts["timestamp"][first:end]
    for holder in (columns(payload), *parts["indicators"].get("adjclose", ())):
        for name, column in holder.items():
            holder[name] = column[first:end]
    return payload


def charts(day: str) -> Callable[[], dict[str, Any]]:
    """Return what makes the charts up to a day, by ticker."""
    last = datetime.fromisoformat(f"{day}T23:59:59-05:00").timestamp()

    def make() -> dict[str, Any]:
        found = {ticker: recorded(f"yahoo/v8_chart_1d/{file}.json") for ticker, file in CHARTS.items()}
        for payload in found.values():
            cut(payload, 0, sum(stamp <= last for stamp in chart(payload)["timestamp"]))
        return found

    return make


def on_charts(scanner: Any, day: str, **settings: Any) -> Case:
    """Return the case of a chart scanner on four real charts."""

    def serve(answers: Any) -> Verdict:
        with LoopbackServer(FakeYahoo(answers)) as server:
            state = {"trade_date": day, "tickers": list(CHARTS)}
            return judged(scanner, "2022-01-31T12:00:00+00:00", state, base_url=server.url, **settings)

    return Case(scanner, charts(day), serve)


def on_one(scanner: Any, file: str, now: str, state: Mapping[str, Any], **settings: Any) -> Case:
    """Return the case of a scanner that gets one answer in JSON, whatever it asks."""

    def serve(answer: Any) -> Verdict:
        said = answer if isinstance(answer, tuple) else as_json(answer)
        with LoopbackServer(lambda _path, _query: said) as server:
            return judged(scanner, now, state, base_url=server.url, **settings)

    return Case(scanner, lambda: recorded(file), serve)


def _options() -> Any:
    """Return a real chain with open interests, which the recording of a morning does not have."""
    payload = recorded("yahoo/v7_options/AAPL.json")
    for row in contracts(payload):
        row["openInterest"] = 1000
    return payload


def contracts(payload: Any) -> list[dict[str, Any]]:
    """Return the contracts of a chain."""
    sides = payload["optionChain"]["result"][0]["options"][0]
    return [*sides["calls"], *sides["puts"]]


def of_alpha_vantage(path: str, query: Mapping[str, str], answer: Any) -> Answer:
    """Answer a request for movers, or for the listing that has them all; nobody else answers."""
    if path != "/query":
        return 500, {}, b""
    return as_json(answer) if query["function"] != "LISTING_STATUS" else (200, {"Content-Type": "text/csv"}, _listing())


@cache
def _listing() -> bytes:
    movers = recorded("alphavantage/top_gainers_losers/TOP_GAINERS_LOSERS.json")
    symbols = [*{row["ticker"]: None for row in MOVER_ROWS(movers)}, *(f"Z{number}" for number in range(1000))]
    rows = [f"{symbol},{symbol} Inc,NYSE,Stock,2014-10-31,null,Active" for symbol in symbols]
    return "\r\n".join(["symbol,name,exchange,assetType,ipoDate,delistingDate,status", *rows, ""]).encode()


def _movers() -> Case:
    def serve(answer: Any) -> Verdict:
        with LoopbackServer(lambda path, query: of_alpha_vantage(path, query, answer)) as server:
            urls = {"base_url": server.url, "alpha_vantage_url": server.url}
            return judged(market_movers, "2026-05-17T20:00:00+00:00", {}, alpha_vantage_key=KEY, **urls)

    return Case(market_movers, lambda: recorded("alphavantage/top_gainers_losers/TOP_GAINERS_LOSERS.json"), serve)


def _calendar() -> Case:
    def serve(answer: Any) -> Verdict:
        said = (200, {"Content-Type": "application/x-download"}, answer["text"].encode())
        with LoopbackServer(lambda _path, _query: said) as server:
            settings = {"base_url": server.url, "api_key": KEY, "finnhub_key": ""}
            return judged(earnings_calendar, "2026-05-17T20:00:00+00:00", {}, **settings)

    return Case(
        earnings_calendar,
        lambda: {"text": body("alphavantage/earnings_calendar/EARNINGS_CALENDAR.csv").decode()},
        serve,
    )


def _insiders() -> Case:
    form = form4([line(shares=9000, price=50)], owner(officer="1")).decode()

    def serve(answer: Any) -> Verdict:
        documents = {0: answer["form"].encode()}
        with edgar([answer["feed"]], documents) as server:
            return judged(insider_buying, "2026-03-05T12:00:00+00:00", {}, base_url=server.url)

    return Case(insider_buying, lambda: {"form": form, "feed": feed([entry(0)])}, serve)


MOVES = on_charts(market_movers, "2021-11-09")  # TSLA fell by 12 %
GAPS = on_charts(gap_up, "2021-10-25")  # TSLA opened 4.5 % higher
HIGHS = on_charts(high_52w_breakout, "2021-11-19", lookback_days=190)  # MSFT and NVDA
DIPS = on_charts(rsi_oversold, "2021-12-14", max_rsi=30)
VOLUMES = on_charts(volume_accumulation, "2021-11-09", min_ratio=1.2, max_move=90, distribution=90)
SCREENER = on_one(
    market_movers,
    "yahoo/screener_predefined/day_gainers_count5.json",
    "2025-02-21T11:28:33+00:00",
    {},
    screeners=["day_gainers"],
)
OPTIONS = Case(
    options_flow,
    _options,
    on_one(options_flow, "", "2025-02-24T09:24:42+00:00", {"tickers": ["AAPL"]}).serve,
)
MOVERS = _movers()
NEWS = on_one(
    news_sentiment, "alphavantage/news_sentiment/NEWS_SENTIMENT.json", "2026-05-17T20:00:00+00:00", {}, api_key=KEY
)
CALENDAR = _calendar()
ANALYSTS = on_one(
    analyst_revisions,
    "finnhub/stock-recommendation/recommendation-AAPL.json",
    "2026-05-17T20:00:00+00:00",
    {"tickers": ["AAPL"]},
    api_key=KEY,
)
INSIDERS = _insiders()
CASES = (MOVES, GAPS, HIGHS, DIPS, VOLUMES, SCREENER, OPTIONS, MOVERS, NEWS, CALENDAR, ANALYSTS, INSIDERS)


# ------------------------------------------------------------------------------------------------------ what is done


def to_each(harm: Harm) -> Harm:
    """Do it to the chart of every ticker."""

    def all_of(answers: Any) -> None:
        for payload in answers.values():
            harm(payload)

    return all_of


def renamed(holder: Callable[[Any], list[dict[str, Any]]], old: str, new: str) -> Harm:
    """Give a field another name, in all rows."""

    def harm(answer: Any) -> None:
        for row in holder(answer):
            if old in row:
                row[new] = row.pop(old)

    return harm


def put(holder: Callable[[Any], list[dict[str, Any]]], name: str, change: Callable[[Any], Any]) -> Harm:
    """Change a field in all rows that have it."""

    def harm(answer: Any) -> None:
        for row in holder(answer):
            if name in row:
                row[name] = change(row[name])

    return harm


def last(*names: str, change: Callable[[Any], Any]) -> Harm:
    """Change the last values of some columns of each chart."""

    def harm(payload: Any) -> None:
        for name in names:
            columns(payload)[name][-1] = change(columns(payload)[name][-1])

    return to_each(harm)


def moved(seconds: int) -> Harm:
    """Date all bars of each chart otherwise."""
    return to_each(lambda payload: chart(payload).update(timestamp=[t + seconds for t in chart(payload)["timestamp"]]))


def without_row(place: int) -> Harm:
    """Drop one whole row of each chart."""

    def harm(payload: Any) -> None:
        for column in (chart(payload)["timestamp"], *columns(payload).values()):
            del column[place]
        for holder in chart(payload)["indicators"].get("adjclose", ()):
            del holder["adjclose"][place]

    return to_each(harm)


def copied(payload: Any) -> None:
    """Make the last bar a copy of the one before."""
    for column in columns(payload).values():
        column[-1] = column[-2]


def twice(payload: Any) -> None:
    """Give the day before the last two rows that differ."""
    parts = chart(payload)
    for column in (parts["timestamp"], *columns(payload).values()):
        column.insert(-2, column[-2])
    for holder in parts["indicators"].get("adjclose", ()):
        holder["adjclose"].insert(-2, holder["adjclose"][-2])
    columns(payload)["close"][-3] *= 0.97


def in_cents(payload: Any) -> None:
    """Give all prices in hundredths, and say nothing of it."""
    for name in ("open", "high", "low", "close"):
        columns(payload)[name] = [value * 100 for value in columns(payload)[name]]


def quotes(answer: Any) -> list[dict[str, Any]]:
    """Return the rows of a screener."""
    rows: list[dict[str, Any]] = answer["finance"]["result"][0]["quotes"]
    return rows


def rows_of(*names: str) -> Callable[[Any], list[dict[str, Any]]]:
    """Return what gives the rows of some lists in an answer."""
    return lambda answer: [row for name in names for row in answer[name]]


MOVER_ROWS = rows_of("top_gainers", "top_losers", "most_actively_traded")


def mentions(answer: Any) -> list[dict[str, Any]]:
    """Return what all articles say about tickers."""
    return [row for article in answer["feed"] for row in article["ticker_sentiment"]]


def shortened(holder: Callable[[Any], list[Any]], share: float) -> Harm:
    """Keep the first part of a list."""

    def harm(answer: Any) -> None:
        rows = holder(answer)
        del rows[int(len(rows) * share) :]

    return harm


def text(change: Callable[[str], str], name: str = "text") -> Harm:
    """Change a text in an answer."""
    return lambda answer: answer.update({name: change(answer[name])})


def _as_text(change: Callable[[float], float]) -> Callable[[str], str]:
    return lambda value: f"{change(float(value.rstrip('%'))):.4f}{'%' * value.endswith('%')}"


def _none(_value: Any) -> None:
    return None


FAULTS: tuple[Fault, ...] = (
    Fault("renamed", "the closes have another name", GAPS, to_each(renamed(lambda p: [columns(p)], "close", "last"))),
    Fault(
        "renamed", "the times have another name", MOVES, to_each(renamed(lambda p: [chart(p)], "timestamp", "times"))
    ),
    Fault("null", "the last bar has a volume and no prices", MOVES, last("open", "high", "low", "close", change=_none)),
    Fault(
        "null", "no bar has a close", HIGHS, to_each(put(lambda p: [columns(p)], "close", lambda c: [None] * len(c)))
    ),
    Fault("stale", "the bars end two weeks ago", MOVES, to_each(lambda p: cut(p, 0, -10))),
    Fault("stale", "the last bar is yesterday's", GAPS, to_each(lambda p: cut(p, 0, -1))),
    Fault("truncated", "only the last 100 bars are there", HIGHS, to_each(lambda p: cut(p, -100, None))),
    Fault("truncated", "the session before is missing", MOVES, without_row(-2)),
    Fault("truncated", "a session is missing within the last 200", DIPS, without_row(-40)),
    Fault(
        "unit x 100", "the last bar is in cents", MOVES, last("open", "high", "low", "close", change=lambda v: v * 100)
    ),
    Fault("unit x 100", "all bars are in cents", HIGHS, to_each(in_cents)),
    Fault(
        "unit x 100", "the last volume is a hundred times as large", VOLUMES, last("volume", change=lambda v: v * 100)
    ),
    Fault("duplicated", "the last bar is a copy of the one before", GAPS, to_each(copied)),
    Fault("duplicated", "the day before has two bars that differ", MOVES, to_each(twice)),
    Fault("wrong day", "all bars are dated a day later", DIPS, moved(86_400)),
    Fault("frozen", "the bars of last week are dated today", VOLUMES, moved(-WEEK)),
    Fault("renamed", "the quotes' times have another name", SCREENER, renamed(quotes, "regularMarketTime", "time")),
    Fault(
        "frozen",
        "the quotes are of three days ago",
        SCREENER,
        put(quotes, "regularMarketTime", lambda t: t - 3 * 86_400),
    ),
    Fault(
        "unit x 100",
        "the changes are shares, not percent",
        SCREENER,
        put(quotes, "regularMarketChangePercent", lambda c: c / 100),
    ),
    Fault("truncated", "two of five quotes are there", SCREENER, shortened(quotes, 0.4)),
    Fault(
        "duplicated",
        "the quotes are there twice",
        SCREENER,
        lambda answer: quotes(answer).extend(deepcopy(quotes(answer))),
    ),
    Fault("renamed", "the open interest has another name", OPTIONS, renamed(contracts, "openInterest", "interest")),
    Fault("stale", "the last trades are of last week", OPTIONS, put(contracts, "lastTradeDate", lambda t: t - WEEK)),
    Fault("unit x 100", "the strikes are in cents", OPTIONS, put(contracts, "strike", lambda s: s * 100)),
    Fault("wrong day", "the contracts expire a day later", OPTIONS, put(contracts, "expiration", lambda t: t + 86_400)),
    Fault("renamed", "the changes have another name", MOVERS, renamed(MOVER_ROWS, "change_percentage", "change")),
    Fault(
        "stale",
        "the movers are of Wednesday",
        MOVERS,
        lambda a: a.update(last_updated="2026-05-13 16:16:00 US/Eastern"),
    ),
    Fault(
        "truncated",
        "all lists are empty",
        MOVERS,
        lambda a: a.update(top_gainers=[], top_losers=[], most_actively_traded=[]),
    ),
    Fault(
        "unit x 100",
        "the changes are shares, not percent",
        MOVERS,
        put(MOVER_ROWS, "change_percentage", _as_text(lambda c: c / 100)),
    ),
    Fault("null", "no mover has a price", MOVERS, put(MOVER_ROWS, "price", _none)),
    Fault("renamed", "the sentiments have another name", NEWS, renamed(mentions, "ticker_sentiment_score", "score")),
    Fault(
        "stale",
        "the articles are of last month",
        NEWS,
        put(rows_of("feed"), "time_published", lambda t: f"202604{t[6:]}"),
    ),
    Fault(
        "unit x 100", "the relevance is in percent", NEWS, put(mentions, "relevance_score", _as_text(lambda r: r * 100))
    ),
    Fault("truncated", "half of the articles are there", NEWS, shortened(lambda a: a["feed"], 0.5)),
    Fault("truncated", "the calendar breaks off within a row", CALENDAR, text(lambda t: t[: len(t) // 2])),
    Fault("wrong day", "the reports are of last year", CALENDAR, text(lambda t: t.replace(",2026-", ",2025-"))),
    Fault("renamed", "the days have another name", CALENDAR, text(lambda t: t.replace("reportDate", "date", 1))),
    Fault("stale", "the newest month is a year old", ANALYSTS, put(lambda a: a, "period", lambda p: f"2025{p[4:]}")),
    Fault("duplicated", "the newest month is there twice", ANALYSTS, lambda a: a.__setitem__(1, dict(a[0]))),
    Fault(
        "null",
        "the purchases have no price",
        INSIDERS,
        text(lambda t: t.replace("transactionPricePerShare", "price"), "form"),
    ),
)


def table() -> str:
    """Return the faults as a table of the docs."""
    lines = ["| fault | planted | scanner |", "| --- | --- | --- |"]
    lines += [f"| {fault.kind} | {fault.what} | `{fault.case.scanner.name}` |" for fault in FAULTS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201 - what this command is for
