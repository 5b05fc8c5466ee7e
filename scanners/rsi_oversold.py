"""Find stocks that fell for a few days within a long rise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Annotated, Any

from msgspec import Meta

from resilient_scan import Candidate, ScanContext

from ._chart import Chart
from ._charts import ChartSettings, chart_scanner, scan_charts


class OversoldSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `rsi_oversold`.

    Attributes:
        period: days of the RSI.
        max_rsi: the RSI must be below it, 0 to 100.
        high_rsi: below this RSI, the priority is `high`; otherwise `medium`.
        mean_days: days of the mean, including the last day; the close must be above it.
    """

    period: Annotated[int, Meta(ge=1, le=100)] = 2
    max_rsi: Annotated[float, Meta(ge=0, le=100)] = 10.0
    high_rsi: Annotated[float, Meta(ge=0, le=100)] = 5.0
    mean_days: Annotated[int, Meta(ge=1, le=260)] = 200


@chart_scanner(pipeline="mean_reversion", settings=OversoldSettings)
def rsi_oversold(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Short-term oversold stocks in a long-term rise.

    The rule: RSI(`period`) is below `max_rsi`, and the close is above the mean of the last `mean_days` closes (Connors
    and Alvarez, *Short Term Trading Strategies That Work*, 2008: RSI(2) below 10 above the 200-day mean). A session
    that is still under way has no close yet, so that the one before it counts. The RSI is about moves, without
    dividends; the closes of the mean are those that were paid.
    """
    return scan_charts(state, context, OversoldSettings, find_oversold, bars=_needed, closed=True)


def _needed(settings: OversoldSettings) -> int:
    return max(settings.mean_days, settings.period + 1)


def rsi(closes: Sequence[float], period: int) -> float:
    """Return the relative strength index of the last close, 0 to 100; 50 if no close ever changed.

    100 - 100 / (1 + gain / loss), where gain and loss are means of the rises and of the falls: first the plain mean
    of `period` changes, then Wilder's smoothing, (mean * (period - 1) + change) / period (J. Welles Wilder, *New
    Concepts in Technical Trading Systems*, 1978).

    Args:
        closes: oldest first, more than `period` of them.
        period: days, >= 1.
    """
    return rsi_of([after - before for before, after in pairwise(closes)], period)


def rsi_of(changes: Sequence[float], period: int) -> float:
    """Return the relative strength index of these moves, oldest first, at least `period` of them; see `rsi`."""
    gain = _smoothed([max(change, 0.0) for change in changes], period)
    loss = _smoothed([max(-change, 0.0) for change in changes], period)
    return 100 * gain / (gain + loss) if gain + loss > 0 else 50.0


def _smoothed(values: Sequence[float], period: int) -> float:
    mean = fmean(values[:period])
    for value in values[period:]:
        mean = (mean * (period - 1) + value) / period
    return mean


def find_oversold(chart: Chart, settings: OversoldSettings) -> Candidate | None:
    """Apply the rule of `rsi_oversold` to one chart."""
    closes = [bar.close for bar in chart.bars]
    index, mean = rsi_of(chart.changes(), settings.period), fmean(closes[-settings.mean_days :])
    if index >= settings.max_rsi or closes[-1] <= mean:
        return None
    return chart.candidate(
        "rsi_oversold",
        f"RSI({settings.period}) is {index:.1f} {chart.when}, at {closes[-1]:.2f} above the "
        f"{settings.mean_days}-day mean of {mean:.2f}",
        priority="high" if index < settings.high_rsi else "medium",
        strategy="mean_reversion",
        rsi=index,
        mean=mean,
    )
