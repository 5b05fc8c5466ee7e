"""Find stocks that close above every price of the past year."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta

from resilient_scan import Candidate, ScanContext

from ._chart import Chart, percent
from ._charts import ChartSettings, chart_scanner, scan_charts


class BreakoutSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `high_52w_breakout`.

    Attributes:
        lookback_days: trading days before the last one whose high counts; 252 are a year.
    """

    lookback_days: Annotated[int, Meta(ge=1, le=260)] = 252


@chart_scanner(pipeline="momentum", settings=BreakoutSettings)
def high_52w_breakout(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Closes above the highest high of the previous 52 weeks.

    The rule: the close is above the highest high of the `lookback_days` trading days before it. (Nearness to the
    52-week high predicts returns: George and Hwang, *The 52-Week High and Momentum Investing*, Journal of Finance
    59, 2004.) A session that is still under way has no close yet, so that the one before it counts. Both prices are
    those that were paid, adjusted for splits only, as a 52-week high usually is.
    """
    return scan_charts(
        state, context, BreakoutSettings, find_breakout, bars=lambda settings: settings.lookback_days + 1, closed=True
    )


def find_breakout(chart: Chart, settings: BreakoutSettings) -> Candidate | None:
    """Apply the rule of `high_52w_breakout` to one chart."""
    top = max(chart.bars[-settings.lookback_days - 1 : -1], key=lambda bar: bar.high)
    if chart.last.close <= top.high:
        return None
    return chart.candidate(
        "high_52w_breakout",
        f"closed at {chart.last.close:.2f} {chart.when}, {percent(chart.last.close, top.high):.1f} % above the highest "
        f"price of the {settings.lookback_days} trading days before, {top.high:.2f} on {top.day}",
        priority="high",
        strategy="breakout",
        previous_high=top.high,
    )
