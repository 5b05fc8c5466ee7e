"""Stocks with a big move of the day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta

from resilient_scan import Candidate, ScanContext, scanner
from scanners._charts import CACHE, RETRY, TIMEOUT, Chart, ChartSettings, scan_charts


class MoversSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `market_movers`.

    Attributes:
        min_change: smallest move, up or down, in percent.
        critical_change: from this move on the priority is `critical`, below it `high`.
        min_price: lowest close.
    """

    min_change: Annotated[float, Meta(gt=0)] = 5.0
    critical_change: Annotated[float, Meta(gt=0)] = 10.0
    min_price: Annotated[float, Meta(ge=0)] = 5.0


@scanner(pipeline="momentum", cache=CACHE, retry=RETRY, timeout=TIMEOUT)
def market_movers(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Top gainers and losers of the day.

    The rule: the close is `min_change` percent or more away from the previous close, and not below `min_price`.
    """
    return scan_charts(state, context, MoversSettings, find_move, bars=lambda _: 2)


def find_move(chart: Chart, settings: MoversSettings) -> Candidate | None:
    """Apply the rule of `market_movers` to one chart."""
    change = chart.change
    if abs(change) < settings.min_change or chart.last.close < settings.min_price:
        return None
    before = chart.previous
    return chart.candidate(
        "market_movers",
        f"{'rose' if change > 0 else 'fell'} {abs(change):.1f} % to {chart.last.close:.2f} {chart.when}, "
        f"from {before.close:.2f} on {before.day}",
        priority="critical" if abs(change) >= settings.critical_change else "high",
        strategy="momentum",
        previous_close=before.close,
    )
