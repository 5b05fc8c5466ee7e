"""One ticker's chart: its bars up to the trade date, the moves between them, and why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

from resilient_scan import Candidate

from ._sessions import SATURDAY, each_day, has_calendar, is_current, is_under_way, sessions
from .providers.yahoo import Bar, PriceHistory, nearer

INSTRUMENTS: Final = frozenset({"EQUITY", "ETF"})
JUMP: Final = 50.0
"""Times that a close may differ from the one before; a hundred times is another unit, not a move."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One ticker's bars, oldest first, at least two; none is later than the trade date.

    Prices are what was paid. Moves do not count dividends. The move of one day is counted from the close before it,
    with the dividend or without it, whichever is nearer; those of several days, from adjusted closes. Changes are in
    percent.

    Attributes:
        ticker: as in candidates.
        trade_date: what the scan is about.
        bars: adjusted for splits, not for dividends.
        dividends: for one share, by the first day without it.
    """

    ticker: str
    trade_date: date
    bars: tuple[Bar, ...]
    dividends: Mapping[date, float] = field(default_factory=dict)

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
        return percent(self.last.close, self.base(self.last.close))

    @property
    def when(self) -> str:
        """Return the day of the last bar, as part of a sentence."""
        late = "" if self.last.day == self.trade_date else f" (the last trading day before {self.trade_date})"
        return f"on {self.last.day}{late}"

    @property
    def dividend(self) -> str:
        """Return the dividend of the last day, as part of a sentence about the previous close; empty: there is none."""
        paid = self.dividends.get(self.last.day)
        return "" if paid is None else f", of which {paid:g} were paid out as a dividend"

    def base(self, price: float) -> float:
        """Return what a price of the last day moved from: the previous close, without a dividend if that is nearer."""
        close = self.previous.close
        return nearer(price, close, close - _paid(self, self.last.day, close))

    def rise(self, days: int) -> float:
        """Return the change of the adjusted close over the last `days` bars."""
        base = self.bars[-days - 1].close
        for before, bar in pairwise(self.bars[-days - 1 :]):
            if paid := _paid(self, bar.day, before.close):
                base *= 1 - paid / before.close
        return percent(self.last.close, base)

    def changes(self) -> list[float]:
        """Return the moves of the close from each bar to the next, without dividends, in the currency."""
        return [bar.close - (before.close - _paid(self, bar.day, before.close)) for before, bar in pairwise(self.bars)]

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


def percent(value: float, base: float) -> float:
    """Return the change from `base` to `value` in percent, without floating-point noise: from 100 to 90 it is -10."""
    return round((value - base) * 100 / base, 9)


def _paid(chart: Chart, day: date, close: float) -> float:
    """Return the dividend of a day; one that is more than the close before it is a mistake."""
    paid = chart.dividends.get(day, 0.0)
    return paid if paid < close else 0.0


# what is wrong with a chart


class Fault(NamedTuple):
    """Why a chart cannot be used; `kind` is that of the doubt, empty if the rule just does not apply to the ticker."""

    reason: str
    kind: str = ""


def chart_of(ticker: str, day: date, history: PriceHistory, now: datetime, *, closed: bool) -> Chart:
    """Return the chart of a history up to `day`.

    Args:
        ticker: as in candidates.
        day: the trade date.
        history: the bars.
        now: the scan's time.
        closed: whether a session that is still under way is left out.
    """
    bars = tuple(bar for bar in history.bars if bar.day <= day)
    if closed and bars and _is_open(bars[-1].day, history, now):
        bars = bars[:-1]
    return Chart(ticker, day, bars, history.dividends)


def fault_of(chart: Chart, history: PriceHistory, bars: int, now: datetime) -> Fault | None:
    """Return why a chart cannot be used, or `None`.

    A bar that is missing among those that the rule reads may be the one that decides.

    Args:
        chart: the chart.
        history: from which it was made.
        bars: how many bars the rule reads.
        now: the scan's time.
    """
    if history.instrument not in INSTRUMENTS:
        return Fault(f"is {history.instrument}, not a stock or a fund")
    if len(chart.bars) < bars:
        reason = f"has {len(chart.bars)} bars, the rule needs {bars}"
        return Fault(reason, "" if _is_young(chart, history, bars) else "incomplete" if chart.bars else "empty")
    last = chart.last.day
    if late := [day for day in history.holes if last < day <= chart.trade_date]:
        return Fault(f"has no whole bar of {late[-1]}", "missing")
    if not is_current(last, chart.trade_date, now, history.zone):
        return Fault(f"was last traded on {last}", "stale")
    return _gap(chart, history, bars) or _implausible(chart.bars[-bars:], history)


def _is_open(day: date, history: PriceHistory, now: datetime) -> bool:
    ends = history.ends
    return is_under_way(day, ends if ends is not None and ends.date() == day else None, now, history.zone)


def _is_young(chart: Chart, history: PriceHistory, bars: int) -> bool:
    """Say whether the ticker has not been traded for as many sessions as the rule reads, however whole its chart is."""
    if history.listed is None or chart.trade_date - history.listed > timedelta(days=3 * bars + 30):
        return False
    return sum(1 for _ in sessions(history.listed, chart.trade_date, history.zone)) < bars


def _gap(chart: Chart, history: PriceHistory, bars: int) -> Fault | None:
    """Return which session has no bar, or no whole one, among the last `bars`."""
    first, last = chart.bars[-bars].day, chart.last.day
    holes = [day for day in history.holes if first < day < last]
    known = {bar.day for bar in chart.bars[-bars:]}.union(holes)
    if has_calendar(last, history.zone):
        gaps = [day for day in sessions(first, last, history.zone) if day not in known]
    else:  # what may be a holiday counts next to the last day only, and the days of the week are those of the chart
        days = {bar.day.weekday() for bar in chart.bars}
        gaps = [day for day in each_day(chart.previous.day, last) if day.weekday() in days and day not in known]
    if holes and (not gaps or holes[-1] > gaps[-1]):
        return Fault(f"has no whole bar of {holes[-1]}", "missing")
    return Fault(f"has no bar of {gaps[-1]}, on which the exchange was open", "missing") if gaps else None


def _implausible(bars: Sequence[Bar], history: PriceHistory) -> Fault | None:
    """Return what no exchange has ever had: a bar on a weekend, or the same bar twice."""
    for bar in bars:
        if bar.day.weekday() >= SATURDAY and has_calendar(bar.day, history.zone):
            return Fault(f"has a bar of {bar.day}, which is a {bar.day:%A}", "wrong_day")
    for before, bar in pairwise(bars):
        if bar.high > bar.low and bar.volume and (bar.volume, *prices(bar)) == (before.volume, *prices(before)):
            return Fault(f"has the same bar on {before.day} and {bar.day}", "duplicate")
    return None


def prices(bar: Bar) -> tuple[float, float, float, float]:
    """Return open, high, low and close."""
    return bar.open, bar.high, bar.low, bar.close


def jump_of(chart: Chart, bars: int) -> str:
    """Return a sentence about a close that is another unit than the one before, or an empty text."""
    for before, bar in pairwise(chart.bars[-bars:]):
        if not 1 / JUMP < bar.close / before.close < JUMP:
            return f"{chart.ticker} closed at {before.close:g} on {before.day} and at {bar.close:g} on {bar.day}"
    return ""
