"""Build the kinds of panels that both dashboards use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as queries

from grafana.source import theme
from grafana.source.promql import Query, counted
from grafana.source.theme import Steps, Words

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

Builder = TypeVar("Builder", stat.Panel, bargauge.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


def stat_panel(title: str, description: str, query: Query, unit: str, steps: Steps) -> stat.Panel:
    """Return a single number whose background shows whether it is good."""
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
    return stat_panel(title, description, query, theme.COUNT, _steps_of(words)).mappings([mapping(words)])


def shares(title: str, description: str, query: Query, steps: Steps) -> bargauge.Panel:
    """Return one bar for each series, whose values are shares, in the order of the query's result."""
    return (
        _common(bargauge.Panel(), title, description, [query], theme.SHARE, steps)
        .reduce_options(_last())
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .show_unfilled(True)
        .text(common.VizTextDisplayOptions().title_size(13).value_size(14))  # else they fill the bar, however high
        .min(0)
        .max(1)
    )


def graph(title: str, description: str, asked: Sequence[Query], unit: str) -> timeseries.Panel:
    """Return lines over time."""
    panel = (
        _common(timeseries.Panel(), title, description, asked, unit, theme.ALL_GREEN)
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
        .axis_soft_max(0.1 if unit == theme.SECONDS else 1)  # a line at 0 would be drawn on a scale up to 100
        .no_value("none")
    )
    return panel.decimals(0) if unit == theme.COUNT else panel


def stacked(
    title: str, description: str, asked: Sequence[Query], unit: str, colours: Mapping[str, str]
) -> timeseries.Panel:
    """Return stacked areas, one colour for each value of a label.

    They have no outline: that of a series at 0 would lie on top of all others, as if it were all of theirs.
    """
    panel = (
        graph(title, description, asked, unit)
        .stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
        .fill_opacity(80)
        .line_width(0)
    )
    return coloured(panel, colours)


def troubles(title: str, description: str, asked: Query, colour: str) -> timeseries.Panel:
    """Return how many of something bad there were, in shades of one colour: of a palette some would be green."""
    return stacked(title, description, [asked], theme.COUNT, {}).color_scheme(_shades(colour))


def counts(title: str, description: str, label: str, counter: str, colours: Mapping[str, str]) -> timeseries.Panel:
    """Return how many there were in the window, one area for each value of a label."""
    return stacked(
        title, description, [Query(counted(f"by ({label})", counter), f"{{{{{label}}}}}")], theme.COUNT, colours
    )


def timeline(title: str, description: str, query: Query, words: Words) -> statetimeline.Panel:
    """Return states over time: one bar for each series, coloured by what the state means."""
    return (
        _common(statetimeline.Panel(), title, description, [query], theme.COUNT, _steps_of(words))
        .mappings([mapping(words)])
        .merge_values(True)
        .show_value(shapes.VisibilityMode.AUTO)
        .row_height(0.85)
        .line_width(0)
        .fill_opacity(85)
        .legend(
            common.VizLegendOptions()
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
            .show_legend(False)
        )
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.SINGLE).sort(shapes.SortOrder.NONE))
    )


def coloured(panel: timeseries.Panel, colours: Mapping[str, str]) -> timeseries.Panel:
    """Fix the colours of series by name."""
    for name, colour in colours.items():
        panel = panel.with_override(named(name), [fixed(colour)])
    return panel


def _shades(colour: str) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(models.FieldColorModeId.SHADES).fixed_color(colour)


def named(*names: str) -> models.MatcherConfig:
    """Return a matcher of fields by name; Grafana's published schema rejects the plain form with one name."""
    return models.MatcherConfig(id_val="byNames", options={"mode": "include", "names": list(names)})


def limited(panel: timeseries.Panel, limit: float, colour: str) -> timeseries.Panel:
    """Draw a limit as a line, and shade what lies beyond it."""
    style = common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.LINE_AND_AREA)
    return panel.thresholds(thresholds(((None, "transparent"), (limit, colour)))).thresholds_style(style)


def rows(title: str, description: str, asked: Sequence[Query], unit: str) -> table.Panel:
    """Return a table of the results of several queries."""
    return _common(table.Panel(), title, description, asked, unit, theme.ALL_GREEN, table_format=True).show_header(True)


def fixed(colour: str) -> models.DynamicConfigValue:
    """Return one colour, whatever the value."""
    return models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def setting(name: str, value: Any) -> models.DynamicConfigValue:
    """Return one property of a column."""
    built = value.build() if isinstance(value, dashboard.ThresholdsConfig) else value
    return models.DynamicConfigValue(id_val=name, value=built)


def mapping(words: Words) -> models.ValueMap:
    """Return the words for numbers, as Grafana maps them."""
    return models.ValueMap(
        options={
            f"{number:g}": models.ValueMappingResult(text=text, color=colour, index=index)
            for index, (number, (text, colour)) in enumerate(words.items())
        }
    )


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """Return the steps of a number's colour, as Grafana has them."""
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )


def transformed(name: str, **options: Any) -> models.DataTransformerConfig:
    """Return one transformation of query results."""
    return models.DataTransformerConfig(id_val=name, options=options)


def _steps_of(words: Words) -> Steps:
    return [(None if number == 0 else number, colour) for number, (_, colour) in words.items()]


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
    if table_format:
        return target.instant().format(queries.PromQueryFormat.TABLE)
    target = target.format(queries.PromQueryFormat.TIME_SERIES)
    return target.instant() if query.instant else target.range()
