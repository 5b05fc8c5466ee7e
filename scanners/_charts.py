"""Run rules on charts: settings, tickers, their bars up to the trade date, and the loop over them.

A chart scanner is a rule about one `Chart`; `scan_charts` does the rest. All chart scanners read the same window of
days, so that each price history is loaded once for all of them (`ScanContext.shared`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

import msgspec

from resilient_scan import (
    Cache,
    Candidate,
    ConfigError,
    Expect,
    Retry,
    ScanContext,
    ScanError,
    Scanner,
    Timeout,
    scanner,
)
from resilient_scan.http import NotFound, SchemaDrift, TransientError

from ._chart import Chart, chart_of, fault_of, jump_of
from ._listings import with_point
from ._sessions import NEW_YORK
from ._settings import read_settings
from .providers import yahoo
from .providers.reading import TOLERATED
from .providers.yahoo import PriceHistory

NEEDS: Final[Mapping[str, str]] = {"universe": ""}
"""A chart scanner whose settings name no tickers cannot run on a state without any."""

WINDOW: Final = timedelta(days=400)
"""How far back a chart reaches: 252 trading days are about 365 days, and the mean of 200 days needs 290."""
CONCURRENCY: Final = 8  # tickers that are requested at a time
TOOL: Final = "yahoo_chart"


class ChartSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of every chart scanner; each scanner adds the numbers of its rule.

    Attributes:
        base_url: the address of the chart API.
        transport: the name of what makes an httpx transport, `package.module:factory`, if Yahoo refuses ours; empty:
            ours.
        universe: the tickers to look at when the state has none.
        trade_date: the day to look at, whatever the state says; `None`: the state's.
        min_usable: share of the tickers, below which the answer is doubtful: of how many there must be usable data.
            Those to which the rule does not apply, such as a share that was listed last week, do not count. 0: never.
    """

    base_url: str = yahoo.LIVE
    transport: str = ""
    universe: tuple[str, ...] = ()
    trade_date: date | None = None
    min_usable: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8


Settings = TypeVar("Settings", bound=ChartSettings)
Table = TypeVar("Table", bound=msgspec.Struct)
T = TypeVar("T")


def chart_scanner(
    *,
    pipeline: str,
    settings: type[ChartSettings],
    needs: Mapping[str, str] = NEEDS,
    sources: Sequence[str] = (yahoo.HOST,),
    expect: Expect | None = None,
) -> Callable[[Callable[..., Any]], Scanner]:
    """Make a scanner as `@scanner` does, with the cache, the retries, the limit and the timeout of all chart scanners.

    Args:
        pipeline: which pipeline it belongs to.
        settings: the class of its settings.
        needs: what it cannot do without; pass `{}` if the settings have a universe of their own.
        sources: the hosts that it asks.
        expect: what its answers must be like.
    """
    return scanner(
        pipeline=pipeline,
        settings=settings,
        expect=expect,
        cache=Cache(ttl=300, inputs=("trade_date", "tickers")),
        retry=Retry(attempts=3, on=(TransientError,)),
        limit=yahoo.LIMIT,
        timeout=Timeout(total=20),
        needs=needs,
        sources=sources,
    )


def scan_charts(
    state: Mapping[str, Any],
    context: ScanContext,
    kind: type[Settings],
    rule: Callable[[Chart, Settings], Candidate | None],
    bars: Callable[[Settings], int],
    *,
    closed: bool = False,
) -> Iterator[Candidate]:
    """Yield what `rule` finds in the charts of the state's tickers.

    Args:
        state: `trade_date` (an ISO text or a date; by default today in New York) and `tickers` (a list of symbols; by
            default the settings' `universe`).
        context: the context of the scan.
        kind: the class of the scanner's settings.
        rule: applies the scanner's rule to one chart.
        bars: how many bars the rule needs, >= 2; tickers with fewer are left out.
        closed: whether the rule is about a close: while a session is under way, the one before it counts.

    Raises:
        ConfigError: a setting, the trade date or the tickers are invalid.
        ScanError: too many charts failed (`TOLERATED`), or none can be used.
        RetryAfter: the source asks to wait.
    """
    settings = read_settings(kind, context)
    state = as_of(settings, state)
    wanted = tickers(state, settings.universe, context.scanner)
    for chart in charts(wanted, trade_date(state, context), context, settings, bars(settings), closed=closed):
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


def charts(
    wanted: Sequence[str], day: date, context: ScanContext, settings: ChartSettings, bars: int, *, closed: bool = False
) -> Iterator[Chart]:
    """Yield the usable charts up to `day`, and log the others in the tool log.

    Args:
        wanted: the tickers.
        day: the trade date.
        context: the context of the scan.
        settings: the scanner's.
        bars: how many bars are needed, >= 2.
        closed: whether a session that is still under way is left out.

    Raises:
        ScanError: too many charts failed (`TOLERATED`), or none can be used.
        RetryAfter: the source asks to wait.
    """
    usable = Usable("charts", wanted, settings.min_usable, TOOL, context)
    for ticker, history in each_ticker(wanted, lambda one: _history(one, day, settings, context), TOOL, context):
        chart = chart_of(ticker, day, history, context.now, closed=closed)
        if (fault := fault_of(chart, history, bars, context.now)) is not None:
            usable.leave_out(ticker, fault.reason, fault.kind)
            continue
        usable.count += 1
        if jump := jump_of(chart, bars):
            context.doubt(f"{jump}, which is another unit or a mistake", kind="out_of_range")
        yield chart
    context.log(TOOL, trade_date=day.isoformat(), tickers=len(wanted), charts=usable.count)
    usable.judge()


class Usable:
    """Counts of how many of the wanted tickers there were usable data.

    Args:
        what: there were of each, such as `charts`.
        wanted: the tickers.
        share: of them that must be usable.
        tool: the name of the tool in the log entries.
        context: the context of the scan.
    """

    def __init__(self, what: str, wanted: Sequence[str], share: float, tool: str, context: ScanContext) -> None:
        self.count = 0
        self._what, self._wanted, self._share, self._tool = what, len(wanted), share, tool
        self._context = context
        self._kinds: Counter[str] = Counter()
        self._first = ""

    def leave_out(self, ticker: str, reason: str, kind: str) -> None:
        """Log why a ticker is left out; without a kind it does not count, because the rule does not apply to it."""
        self._context.log(self._tool, ticker=ticker, left_out=reason)
        if kind:
            self._kinds[kind] += 1
            self._first = self._first or f"{ticker} {reason}"
        else:
            self._wanted -= 1

    def judge(self, *, fatal: bool = True) -> None:
        """Doubt the answer if too few tickers were usable.

        Args:
            fatal: whether it is an error if none was, although there should have been some.

        Raises:
            ScanError: it is one.
        """
        lost = self._wanted - self.count - self._kinds.total()  # they failed; `each_ticker` has logged why
        if lost > 0:
            self._kinds["missing"] += lost
        if not self._kinds or self.count >= self._share * self._wanted:
            return
        counts = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in self._kinds.most_common())
        said = f"of {self._wanted} {self._what} can be used: {counts}"
        first = f"; {self._first}" if self._first else ""
        if fatal and not self.count:
            raise ScanError(f"none {said}{first}")
        some = f"only {self.count}" if self.count else "none"
        self._context.doubt(f"{some} {said}{first}; see the tool log", kind=self._kinds.most_common(1)[0][0])


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


def _history(ticker: str, day: date, settings: ChartSettings, context: ScanContext) -> PriceHistory:
    """Return the history that all chart scanners share.

    Bars after `day` are not requested; `charts` drops those that come nevertheless.
    """
    first = day - WINDOW
    return context.shared(
        (TOOL, settings.base_url, ticker, first, day),
        lambda: yahoo.client(settings.base_url, settings.transport).daily(ticker, first, day, context),
        ttl=300,
    )
