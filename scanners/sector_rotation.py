"""Find sectors that money moves into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta

from resilient_scan import Candidate, ScanContext, ScanError

from ._chart import Chart
from ._charts import ChartSettings, as_of, chart_scanner, charts, trade_date
from ._settings import read_settings


class RotationSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `sector_rotation`.

    Attributes:
        universe: the sectors' funds; by default those of the eleven sectors of the S&P 500.
        benchmark: the fund of the whole market.
        lookback_days: trading days over which a sector must have gained on the benchmark.
        recent_days: the last trading days of that time, over which it must have gained as well.
        min_lead: smallest lead over the lookback, in percentage points.
        high_lead: from this lead on, the priority is `high`; below it, `medium`.
    """

    universe: tuple[str, ...] = ("XLB", "XLC", "XLE", "XLF", "XLI", "XLK", "XLP", "XLRE", "XLU", "XLV", "XLY")
    benchmark: str = "SPY"
    lookback_days: Annotated[int, Meta(ge=2, le=250)] = 20
    recent_days: Annotated[int, Meta(ge=1, le=249)] = 5
    min_lead: Annotated[float, Meta(gt=0)] = 3.0
    high_lead: Annotated[float, Meta(gt=0)] = 6.0


@chart_scanner(pipeline="momentum", settings=RotationSettings, needs={})
def sector_rotation(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Sectors that gain on the market, and have not stopped.

    The rule: over the last `lookback_days` trading days the sector's close rose by `min_lead` percentage points or more
    above the benchmark's, and over the last `recent_days` it still rose by more than the benchmark's. (Industries that
    led go on leading for months: Moskowitz and Grinblatt, *Do Industries Explain Momentum?*, Journal of Finance 54,
    1999.) The strongest comes first. The state's `tickers` do not matter. A session that is still under way has no
    close yet, so that the one before it counts. Rises are moves: what a fund paid out is not a fall.
    """
    settings = read_settings(RotationSettings, context)
    state = as_of(settings, state)
    wanted = tuple(dict.fromkeys((settings.benchmark, *settings.universe)))
    needed = max(settings.lookback_days, settings.recent_days) + 1
    found = {
        chart.ticker: chart
        for chart in charts(wanted, trade_date(state, context), context, settings, needed, closed=True)
    }
    market = found.pop(settings.benchmark, None)
    if market is None:
        raise ScanError(f"there is no usable chart of the benchmark {settings.benchmark}; see the tool log")
    candidates = [find_lead(chart, market, settings) for chart in found.values()]
    yield from sorted(filter(None, candidates), key=lambda candidate: -candidate.extras["lead"])


def find_lead(sector: Chart, market: Chart, settings: RotationSettings) -> Candidate | None:
    """Apply the rule of `sector_rotation` to one sector and the market."""
    lead, recent = (_lead(sector, market, days) for days in (settings.lookback_days, settings.recent_days))
    if lead is None or recent is None or lead < settings.min_lead or recent <= 0:
        return None
    return sector.candidate(
        "sector_rotation",
        f"gained {lead:.1f} points on {market.ticker} in {settings.lookback_days} trading days, "
        f"and {recent:.1f} in the last {settings.recent_days}, {sector.when}",
        priority="high" if lead >= settings.high_lead else "medium",
        strategy="sector_rotation",
        lead=lead,
        recent_lead=recent,
    )


def _lead(sector: Chart, market: Chart, days: int) -> float | None:
    """Return by how many points a sector rose more; `None` if the two have no bars on the same days."""
    rises = [chart.rise(days) for chart in (sector, market)]
    same = all(sector.bars[place].day == market.bars[place].day for place in (-1, -days - 1))
    return round(rises[0] - rises[1], 9) if same else None
