"""Find stocks that open above yesterday's close and stay there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta

from resilient_scan import Candidate, ScanContext

from ._chart import Chart, percent
from ._charts import ChartSettings, chart_scanner, scan_charts


class GapSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `gap_up`.

    Attributes:
        min_gap: smallest gap, the open against the previous close, in percent.
        high_gap: from this gap on, the priority is `high`; below it, `medium`.
        min_price: lowest close.
    """

    min_gap: Annotated[float, Meta(gt=0)] = 2.0
    high_gap: Annotated[float, Meta(gt=0)] = 5.0
    min_price: Annotated[float, Meta(ge=0)] = 5.0


@chart_scanner(pipeline="momentum", settings=GapSettings)
def gap_up(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Opening gaps that held until the close.

    The rule: the open is `min_gap` percent or more above the previous close; the gap held, that is, the day's low
    stayed above the previous close and the close is not below the open; the close is not below `min_price`. A session
    that is still under way has no close yet, so that the one before it counts. A dividend is not part of a gap; prices
    are those that were paid.
    """
    return scan_charts(state, context, GapSettings, find_gap, bars=lambda _: 2, closed=True)


def find_gap(chart: Chart, settings: GapSettings) -> Candidate | None:
    """Apply the rule of `gap_up` to one chart."""
    last, before = chart.last, chart.previous
    base = chart.base(last.open)
    gap = percent(last.open, base)
    held = last.low > base and last.close >= last.open
    if gap < settings.min_gap or not held or last.close < settings.min_price:
        return None
    return chart.candidate(
        "gap_up",
        f"opened {gap:.1f} % above the previous close of {before.close:.2f}{chart.dividend} {chart.when}, "
        f"and closed above the open at {last.close:.2f}",
        priority="high" if gap >= settings.high_gap else "medium",
        strategy="gap",
        gap_percent=gap,
        open=last.open,
        previous_close=before.close,
    )
