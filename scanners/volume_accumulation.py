"""Find stocks that are traded in large volume while their price stands still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Annotated, Any, Final

from msgspec import Meta

from resilient_scan import Candidate, Expect, ScanContext

from ._chart import Chart
from ._charts import ChartSettings, chart_scanner, scan_charts

MOST: Final = 50.0
"""Times that a volume may be the mean, while the price stands still; a hundred times is another unit."""


class VolumeSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `volume_accumulation`.

    Attributes:
        min_ratio: smallest ratio of the last volume to the mean.
        high_ratio: from this ratio on, the priority is `high`; below it, `medium`.
        mean_days: days of the mean, all before the last one.
        max_move: largest move of the close, up or down, in percent.
        distribution: a close that fell by this many percent or more, on such a volume, is a distribution day.
    """

    min_ratio: Annotated[float, Meta(gt=0)] = 2.0
    high_ratio: Annotated[float, Meta(gt=0)] = 3.0
    mean_days: Annotated[int, Meta(ge=1, le=250)] = 30
    max_move: Annotated[float, Meta(ge=0)] = 3.0
    distribution: Annotated[float, Meta(ge=0)] = 0.2


@chart_scanner(
    pipeline="edge",
    settings=VolumeSettings,
    expect=Expect(fields=("close", "volume"), ranges={"volume_ratio": (0, MOST)}),
)
def volume_accumulation(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Unusual volume without a price move: somebody buys what others sell.

    The rule: the last volume is `min_ratio` times the mean of the `mean_days` days before it, or more; the close moved
    by `max_move` percent at most; it is not a distribution day: the close did not fall by `distribution` percent
    or more (0.2 % on higher volume is the definition of William O'Neil, *How to Make Money in Stocks*, for indexes).
    While a session is under way, its volume so far counts. A dividend is not part of a move; prices are those that were
    paid.
    """
    return scan_charts(state, context, VolumeSettings, find_accumulation, bars=lambda settings: settings.mean_days + 1)


def volume_ratio(chart: Chart, days: int) -> float:
    """Return the last volume as a multiple of the mean of the `days` days before it; 0 if that mean is 0."""
    mean = fmean(bar.volume for bar in chart.bars[-days - 1 : -1])
    return chart.last.volume / mean if mean > 0 else 0.0


def find_accumulation(chart: Chart, settings: VolumeSettings) -> Candidate | None:
    """Apply the rule of `volume_accumulation` to one chart."""
    ratio, change = volume_ratio(chart, settings.mean_days), chart.change
    if ratio < settings.min_ratio or abs(change) > settings.max_move or change <= -settings.distribution:
        return None
    return chart.candidate(
        "volume_accumulation",
        f"volume {chart.last.volume:,} is {ratio:.1f} x its {settings.mean_days}-day mean {chart.when}, "
        f"while the price moved {change:+.1f} % to {chart.last.close:.2f}",
        priority="high" if ratio >= settings.high_ratio else "medium",
        strategy="accumulation",
        volume_ratio=ratio,
    )
