"""Run rules on charts: settings, tickers, their bars up to the trade date, and the loop over them.

A chart scanner is a rule about one `Chart`; `scan_charts` does the rest. All chart scanners read the same window of
days, so that each price history is loaded once for all of them (`ScanContext.shared`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from resilient_scan import Cache, Candidate, ConfigError, Retry, ScanContext, ScanError, Scanner, Timeout, scanner
from resilient_scan.http import NotFound, SchemaDrift, TransientError

from ._listings import with_point
from ._settings import read_settings
from .providers import yahoo
from .providers.reading import TOLERATED
from .providers.yahoo import NEW_YORK, Bar, PriceHistory

NEEDS: Final[Mapping[str, str]] = {"universe": ""}
"""A chart scanner whose settings name no tickers cannot run on a state without any."""

WINDOW: Final = timedelta(days=400)
"""How far back a chart reaches: 252 trading days are about 365 days, and the mean of 200 days needs 290."""
LONGEST_PAUSE: Final = timedelta(days=7)
"""No exchange has been closed for longer since 1914; a ticker whose last bar is older is no longer traded."""
CONCURRENCY: Final = 8  # tickers that are requested at a time
LONG_WEEKEND: Final = timedelta(days=5)
"""From a Thursday's close to a Tuesday: data about the last session are never older than that."""
TOOL: Final = "yahoo_chart"
INSTRUMENTS: Final = frozenset({"EQUITY", "ETF"})


class ChartSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of every chart scanner; each scanner adds the numbers of its rule.

    Attributes:
        base_url: the address of the chart API.
        universe: the tickers to look at when the state has none.
        trade_date: the day to look at, whatever the state says; `None`: the state's.
    """

    base_url: str = yahoo.LIVE
    universe: tuple[str, ...] = ()
    trade_date: date | None = None


Settings = TypeVar("Settings", bound=ChartSettings)
Table = TypeVar("Table", bound=msgspec.Struct)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chart:
    """One ticker's bars, oldest first, at least two; none is later than the trade date.

    Changes are in percent.
    """

    ticker: str
    trade_date: date
    bars: tuple[Bar, ...]

    @property
    def last(self) -> Bar:
        """Return the trade date's bar, or the last one before it (weekend, holiday)."""
        return self.bars[-1]

    @property
    def previous(self) -> Bar:
        """Return the bar before the last one."""
        return self.bars[-2]

    @property
    def change(self) -> float:
        """Return the change from the previous close to the last one."""
        return percent(self.last.close, self.previous.close)

    @property
    def when(self) -> str:
        """Return the day of the last bar, as part of a sentence."""
        late = "" if self.last.day == self.trade_date else f" (the last trading day before {self.trade_date})"
        return f"on {self.last.day}{late}"

    def candidate(self, source: str, sentence: str, *, priority: str, strategy: str, **numbers: float) -> Candidate:
        """Make a candidate; its extras are the bar's day, close and volume, the change and `numbers`."""
        extras = {"close": self.last.close, "change_percent": self.change, **numbers}
        return Candidate(
            ticker=self.ticker,
            source=source,
            context=sentence,
            priority=priority,
            strategy=strategy,
            extras={
                "date": self.last.day.isoformat(),
                "volume": self.last.volume,
                **{name: round(number, 4) for name, number in extras.items()},
            },
        )


def chart_scanner(
    *,
    pipeline: str,
    settings: type[ChartSettings],
    needs: Mapping[str, str] = NEEDS,
    sources: Sequence[str] = (yahoo.HOST,),
) -> Callable[[Callable[..., Any]], Scanner]:
    """Make a scanner as `@scanner` does, with the cache, the retries and the timeout of all chart scanners.

    Args:
        pipeline: which pipeline it belongs to.
        settings: the class of its settings.
        needs: what it cannot do without; pass `{}` if the settings have a universe of their own.
        sources: the hosts that it asks.
    """
    return scanner(
        pipeline=pipeline,
        settings=settings,
        cache=Cache(ttl=300, inputs=("trade_date", "tickers")),
        retry=Retry(attempts=3, on=(TransientError,)),
        timeout=Timeout(total=20),
        needs=needs,
        sources=sources,
    )


def percent(value: float, base: float) -> float:
    """Return the change from `base` to `value` in percent, without floating-point noise: from 100 to 90 it is -10."""
    return round((value - base) * 100 / base, 9)


def scan_charts(
    state: Mapping[str, Any],
    context: ScanContext,
    kind: type[Settings],
    rule: Callable[[Chart, Settings], Candidate | None],
    bars: Callable[[Settings], int],
) -> Iterator[Candidate]:
    """Yield what `rule` finds in the charts of the state's tickers.

    Args:
        state: `trade_date` (an ISO text or a date; by default today in New York) and `tickers` (a list of symbols; by
            default the settings' `universe`).
        context: the context of the scan.
        kind: the class of the scanner's settings.
        rule: applies the scanner's rule to one chart.
        bars: how many bars the rule needs, >= 2; tickers with fewer are left out.

    Raises:
        ConfigError: a setting, the trade date or the tickers are invalid.
        ScanError: too many charts failed (`TOLERATED`), or all of them.
        RetryAfter: the source asks to wait.
    """
    settings = read_settings(kind, context)
    state = as_of(settings, state)
    for chart in _charts(state, context, settings, bars(settings)):
        if (candidate := rule(chart, settings)) is not None:
            yield candidate


def as_of(settings: ChartSettings, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state with the trade date of the settings, if they have one."""
    return state if settings.trade_date is None else {**state, "trade_date": settings.trade_date}


def trade_date(state: Mapping[str, Any], context: ScanContext) -> date:
    """Return the New York date that the scan is about."""
    value = state.get("trade_date")
    if value is None:
        value = context.now
    if isinstance(value, datetime):
        return (value.astimezone(NEW_YORK) if value.tzinfo else value).date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ConfigError(f"state['trade_date'] must be a date such as '2013-01-24', got {value!r}") from None


def tickers(state: Mapping[str, Any], universe: tuple[str, ...], scanner: str) -> tuple[str, ...]:
    """Return the tickers of the state, or else of `universe`, each once, in the given order."""
    value = state.get("tickers")
    if value is None:
        value = universe
        if not universe:
            raise ConfigError(f"{scanner}: no tickers; put them into state['tickers'] or settings.universe")
    if not isinstance(value, list | tuple) or not all(isinstance(ticker, str) and ticker.strip() for ticker in value):
        raise ConfigError(f"state['tickers'] must be a list of symbols such as 'AAPL', got {value!r}")
    return tuple(dict.fromkeys(with_point(ticker.strip().upper()) for ticker in value))


def only(state: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return a test of whether a ticker counts: if the state has `tickers`, only these do.

    Raises:
        ConfigError: `tickers` is not a list of symbols.
    """
    if state.get("tickers") is None:
        return lambda _: True
    return frozenset(tickers(state, (), "")).__contains__


def _charts(state: Mapping[str, Any], context: ScanContext, settings: ChartSettings, bars: int) -> Iterator[Chart]:
    wanted = tickers(state, settings.universe, context.scanner)
    return charts(wanted, trade_date(state, context), context, settings.base_url, bars)


def charts(wanted: Sequence[str], day: date, context: ScanContext, base_url: str, bars: int) -> Iterator[Chart]:
    """Yield the usable charts up to `day`, and log the others in the tool log.

    Args:
        wanted: the tickers.
        day: the trade date.
        context: the context of the scan.
        base_url: the address of the chart API.
        bars: how many bars are needed, >= 2.

    Raises:
        ScanError: too many charts failed (`TOLERATED`), or all of them.
        RetryAfter: the source asks to wait.
    """
    used = traded = 0
    for ticker, history in each_ticker(wanted, lambda one: _history(one, day, base_url, context), TOOL, context):
        chart = Chart(ticker, day, tuple(bar for bar in history.bars if bar.day <= day))
        traded += bool(history.bars)
        if reason := _unusable(chart, history, bars):
            context.log(TOOL, ticker=ticker, left_out=reason)
        else:
            used += 1
            yield chart
    context.log(TOOL, trade_date=day.isoformat(), tickers=len(wanted), charts=used)
    if wanted and not traded:
        context.doubt(f"there is no bar at all in the charts of {', '.join(wanted[:5])}")


def each_ticker(
    wanted: Sequence[str], ask: Callable[[str], T], tool: str, context: ScanContext
) -> Iterator[tuple[str, T]]:
    """Yield each ticker with what `ask` returns for it; the failure of one ticker does not affect the others.

    Args:
        wanted: the tickers.
        ask: loads what is needed for one ticker.
        tool: the name of the tool in the log entries about failures.
        context: the context of the scan.

    Raises:
        ScanError: more than `TOLERATED` of them failed, or all of them.
        RetryAfter, PermanentError: immediately, unless the error only says that the ticker does not exist.
    """
    broken: list[ScanError] = []
    unknown: list[ScanError] = []
    for group in _groups(wanted):
        context.check()
        answers = context.map(lambda one: _answer(ask, one), group, concurrency=CONCURRENCY)
        for ticker, answer in zip(group, answers, strict=True):
            if not isinstance(answer, ScanError):
                yield ticker, answer
                continue
            (unknown if isinstance(answer, NotFound) else broken).append(answer)
            context.log(tool, ticker=ticker, left_out=str(answer))
            if len(broken) > TOLERATED * len(wanted):
                raise answer
    if wanted and len(broken) + len(unknown) == len(wanted):
        raise (broken or unknown)[0]


def _groups(wanted: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield groups of tickers; the first is alone, so that a source that refuses everything gets one request only."""
    yield wanted[:1]
    for start in range(1, len(wanted), CONCURRENCY):
        yield wanted[start : start + CONCURRENCY]


def _answer(ask: Callable[[str], T], ticker: str) -> T | ScanError:
    """Return what `ask` returns, or the error if it concerns this ticker only."""
    try:
        return ask(ticker)
    except (NotFound, SchemaDrift, TransientError) as error:
        return error


def is_recent(day: date, trade_date: date) -> bool:
    """Say whether data of `day` are the latest on `trade_date`, give or take a long weekend."""
    return timedelta(0) <= trade_date - day <= LONG_WEEKEND


def _history(ticker: str, day: date, base_url: str, context: ScanContext) -> PriceHistory:
    """Return the history that all chart scanners share.

    Bars after `day` are not requested; `charts` drops those that come nevertheless.
    """
    first = day - WINDOW
    return context.shared(
        (TOOL, base_url, ticker, first, day),
        lambda: yahoo.client(base_url).daily(ticker, first, day, context),
        ttl=300,
    )


def _unusable(chart: Chart, history: PriceHistory, bars: int) -> str:
    """Return why a chart cannot be used, or an empty text.

    A missing bar among those that the rule reads may be the one that decides.
    """
    if history.instrument not in INSTRUMENTS:
        return f"is {history.instrument}, not a stock or a fund"
    if len(chart.bars) < bars:
        return f"has {len(chart.bars)} bars, the rule needs {bars}"
    if chart.trade_date - chart.last.day > LONGEST_PAUSE:
        return f"was last traded on {chart.last.day}"
    first = chart.bars[-bars].day
    holes = [day for day in history.holes if first < day <= chart.trade_date]
    return f"has no whole bar of {holes[-1]}" if holes else ""
