"""What the panels of both dashboards have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as queries

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "text"
ANY = ("job", "instance", "scanner")

Steps = Sequence[tuple[float | None, str]]
Words = Mapping[float, tuple[str, str]]
ALL_GREEN: Steps = ((None, GREEN),)
ANY_IS_BAD: Steps = ((None, GREEN), (1, RED))
SHARE_OF_FAILURES: Steps = ((None, GREEN), (0.1, YELLOW), (0.5, RED))
SHARE_OF_ANSWERS: Steps = ((None, RED), (0.9, YELLOW), (0.99, GREEN))
SECONDS_OF_EXECUTIONS: Steps = ((None, GREEN), (10, YELLOW), (20, RED))  # the built-in timeout is 30
SILENCE: Steps = ((None, GREEN), (900, YELLOW), (10_800, RED))  # seconds

BREAKER: Words = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("OPEN", RED)}
STATE: Words = {0: ("enabled", GREEN), 1: ("probing", YELLOW), 2: ("QUARANTINED", RED), 3: ("DISABLED by hand", PURPLE)}
STATUS_COLOURS = {
    "completed": GREEN,
    "cached": BLUE,
    "stale": YELLOW,
    "timeout": ORANGE,
    "error": RED,
    "rejected": "dark-red",
    "disabled": PURPLE,
    "skipped": GREY,
}
OUTCOME_COLOURS = {"success": GREEN, "error": RED, "timeout": ORANGE, "cancelled": GREY}
CACHE_COLOURS = {"hit": GREEN, "shared": BLUE, "stale": YELLOW, "miss": ORANGE, "bypass": GREY}
WORKER_COLOURS = {"busy": BLUE, "idle": GREEN, "abandoned": RED}

Builder = TypeVar("Builder", stat.Panel, bargauge.Panel, table.Panel, timeseries.Panel)


@dataclass(frozen=True)
class Query:
    """One question to Prometheus, and how its answer is called."""

    expr: str
    legend: str = ""
    instant: bool = False
    least: str = ""  # what a rate looks back on at least, such as 5m: for what happens rarely


def series(name: str, *matchers: str, by: Sequence[str] = ANY) -> str:
    """Return a selector of one of our metrics, narrowed to what is chosen at the top of the dashboard."""
    chosen = [f'{label}=~"${label}"' for label in by]
    return f"resilient_scan_{name}{{{', '.join([*chosen, *matchers])}}}"


def process(name: str, *matchers: str) -> str:
    """Return a selector of a metric that belongs to no scanner."""
    return series(name, *matchers, by=("job", "instance"))


def rate(selector: str) -> str:
    """Return how much a counter grows per second."""
    return f"rate({selector}[$__rate_interval])"


def in_range(selector: str) -> str:
    """Return by how much a counter grew in the time that the dashboard shows."""
    return f"increase({selector}[$__range])"


def quantile(share: float, buckets: str, by: str = "") -> str:
    """Return a quantile of a histogram, by `by` where that is given."""
    return f"histogram_quantile({share}, sum by ({by + ', ' if by else ''}le) ({rate(buckets)}))"


def breaker_number(by: str) -> str:
    """Return the breakers' states as numbers, the worst one of each `by`: see `BREAKER`."""
    return _worst("breaker_state", {"open": 2, "half_open": 1}, by)


def state_number(by: str) -> str:
    """Return the scanners' states as numbers, the worst one of each `by`: see `STATE`."""
    return _worst("scanner_state", {"disabled": 3, "quarantined": 2, "probing": 1}, by)


def _worst(name: str, numbers: Mapping[str, int], by: str) -> str:
    chosen = {number: series(name, f'state="{state}"') for state, number in numbers.items()}
    terms = [f"{number} * (max {by} ({selector}) > 0)" for number, selector in chosen.items()]
    return "\n  or ".join([*terms, f"max {by} (0 * {series(name)})"])


def stat_panel(title: str, description: str, query: Query, unit: str, steps: Steps) -> stat.Panel:
    """Return a single number whose background says whether it is a good one."""
    return (
        _common(stat.Panel(), title, description, [query], unit, steps)
        .reduce_options(_last())
        .color_mode(shapes.BigValueColorMode.BACKGROUND)
        .graph_mode(shapes.BigValueGraphMode.NONE)
        .text_mode(shapes.BigValueTextMode.VALUE)
        .justify_mode(shapes.BigValueJustifyMode.CENTER)
        .orientation(shapes.VizOrientation.HORIZONTAL)
    )


def state_panel(title: str, description: str, query: Query, words: Words) -> stat.Panel:
    """Return a state in words."""
    steps: Steps = [(None if number == 0 else number, colour) for number, (_, colour) in words.items()]
    return stat_panel(title, description, query, "none", steps).mappings([mapping(words)])


def shares(title: str, description: str, query: Query, steps: Steps) -> bargauge.Panel:
    """Return one bar for each series, a share, in the order of the answer."""
    return (
        _common(bargauge.Panel(), title, description, [query], "percentunit", steps)
        .reduce_options(_last())
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .show_unfilled(True)
        .min(0)
        .max(1)
    )


def graph(title: str, description: str, asked: Sequence[Query], unit: str) -> timeseries.Panel:
    """Return lines over time."""
    return (
        _common(timeseries.Panel(), title, description, asked, unit, ALL_GREEN)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .legend(
            common.VizLegendOptions()
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
        .line_width(2)
        .fill_opacity(8)
        .show_points(shapes.VisibilityMode.NEVER)
        .min(0)
        .axis_soft_max({"ops": 0.1, "s": 0.1}.get(unit, 1))  # a line at 0 would be drawn on a scale up to 100
    )


def stacked(
    title: str, description: str, asked: Sequence[Query], unit: str, colours: Mapping[str, str]
) -> timeseries.Panel:
    """Return areas upon each other, each value of a label in its own colour."""
    panel = (
        graph(title, description, asked, unit)
        .stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
        .fill_opacity(60)
        .line_width(1)
    )
    return coloured(panel, colours)


def per_second(title: str, description: str, label: str, counter: str, colours: Mapping[str, str]) -> timeseries.Panel:
    """Return how much a counter grows per second, an area for each value of a label."""
    return stacked(
        title, description, [Query(f"sum by ({label}) ({rate(counter)})", f"{{{{{label}}}}}")], "ops", colours
    )


def stepped(title: str, description: str, asked: Sequence[Query], unit: str, words: Words) -> timeseries.Panel:
    """Return states over time, in words at the side."""
    return (
        graph(title, description, asked, unit)
        .line_interpolation(shapes.LineInterpolation.STEP_AFTER)
        .mappings([mapping(words)])
        .max(max(words))
        .decimals(0)
        .fill_opacity(25)
    )


def coloured(panel: timeseries.Panel, colours: Mapping[str, str]) -> timeseries.Panel:
    """Fix the colours of series by name."""
    for name, colour in colours.items():
        panel = panel.with_override(named(name), [fixed(colour)])
    return panel


def named(*names: str) -> models.MatcherConfig:
    """Return what finds fields by name; the plain form with one name is not valid in the published schema."""
    return models.MatcherConfig(id_val="byNames", options={"mode": "include", "names": list(names)})


def limited(panel: timeseries.Panel, limit: float, colour: str) -> timeseries.Panel:
    """Draw a limit as a line, and what lies beyond it."""
    style = common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.LINE_AND_AREA)
    return panel.thresholds(thresholds(((None, "transparent"), (limit, colour)))).thresholds_style(style)


def rows(title: str, description: str, asked: Sequence[Query], unit: str) -> table.Panel:
    """Return a table, one query after another."""
    return _common(table.Panel(), title, description, asked, unit, ALL_GREEN, table_format=True).show_header(True)


def fixed(colour: str) -> models.DynamicConfigValue:
    """Return one colour, whatever the value."""
    return models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def setting(name: str, value: Mapping[str, Any] | dashboard.ThresholdsConfig) -> models.DynamicConfigValue:
    """Return one property of a column: objects only, the published schema knows no others."""
    built = value.build() if isinstance(value, dashboard.ThresholdsConfig) else value
    return models.DynamicConfigValue(id_val=name, value=built)


def mapping(words: Words) -> models.ValueMap:
    """Return what numbers are called."""
    return models.ValueMap(
        options={
            f"{number:g}": models.ValueMappingResult(text=text, color=colour, index=index)
            for index, (number, (text, colour)) in enumerate(words.items())
        }
    )


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """Return from which value on a number has which colour."""
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )


def transformed(name: str, **options: Any) -> models.DataTransformerConfig:
    """Return one step from answers to rows."""
    return models.DataTransformerConfig(id_val=name, options=options)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def _common(
    panel: Builder,
    title: str,
    description: str,
    asked: Sequence[Query],
    unit: str,
    steps: Steps,
    *,
    table_format: bool = False,
) -> Builder:
    panel.title(title).description(description).datasource(SOURCE).unit(unit)
    panel.thresholds(thresholds(steps)).color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    for letter, query in zip("ABCDEFGHIJKLMNOP", asked, strict=False):
        panel.with_target(_target(query, letter, table_format=table_format))
    return panel


def _target(query: Query, letter: str, *, table_format: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(letter).datasource(SOURCE)
    target = target.legend_format(query.legend or "__auto")
    target = target.interval(query.least) if query.least else target
    if table_format:
        return target.instant().format(queries.PromQueryFormat.TABLE)
    target = target.format(queries.PromQueryFormat.TIME_SERIES)
    return target.instant() if query.instant else target.range()
