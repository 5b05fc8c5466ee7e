"""Build the table of the dashboard Fleet: one line for each scanner, the worst first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import dashboard, table
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models

from grafana.source import boards, theme
from grafana.source.panels import named, rows, setting, thresholds, transformed
from grafana.source.promql import (
    BY,
    DURATION,
    FAILED,
    RANGE,
    Query,
    budget_left,
    counted,
    failing,
    hung,
    quantile,
    rare,
    series,
    success_ago,
    verdict_in_words,
)

TIMEOUTS = series("executions_total", 'outcome="timeout"')
MOVED_OUT = ('to=~"quarantined|disabled"', 'source!="probe"')  # who did it first
ORDER = ("Scanner", "Now", "Last success", "Failed", "Failures", "Fails most with", "Taken out by")


@dataclass(frozen=True)
class Column:
    """One query: its number is a column, or a word that it brings as a label is one, or both.

    Attributes:
        expr: returns one series for each scanner.
        title: of the number's column; empty if only the word is shown.
        unit, steps, decimals: how the number is shown; without `steps` it has no colour.
        words: title of the word's column, by the label that it comes from.
    """

    expr: str
    title: str = ""
    unit: str = theme.COUNT
    steps: theme.Steps = ()
    decimals: int | None = None
    words: Mapping[str, str] = field(default_factory=dict)


def columns() -> tuple[Column, ...]:
    """Return the columns; the first one's number is what the lines are sorted by."""
    kinds = (
        f"{rare('by (scanner, kind)', 'errors_total')} > 0\n"
        f'  or label_replace({counted(BY, TIMEOUTS)} > 0, "kind", "timeout", "", "")'
    )
    sources = f"{rare('by (scanner, source)', 'scanner_transitions_total', *MOVED_OUT, window=RANGE)} > 0"
    p95 = quantile(0.95, DURATION, "scanner")
    return (
        Column(verdict_in_words(), words={"now": "Now"}),
        Column(failing(), "Failed", theme.SHARE, theme.SHARE_OF_FAILURES, 0),
        Column(counted(BY, FAILED), "Failures"),
        Column(f"topk {BY} (1, {kinds})", words={"kind": "Fails most with"}),
        Column(f"topk {BY} (1, {sources})", words={"source": "Taken out by"}),
        Column(p95, "p95", theme.SECONDS, theme.SECONDS_OF_EXECUTIONS, 0),
        Column(hung(), "Hung threads", theme.COUNT, theme.ANY_IS_BAD),
        Column(success_ago(), "Last success", theme.AGO, theme.SILENCE, 0),
        Column(budget_left(), "Budget left", theme.SHARE, theme.SHARE_OF_BUDGET, 0),
        Column(f"max {BY} ({series('candidates')})", "Candidates"),
    )


def build() -> table.Panel:
    """Return the table."""
    asked = {f"Value #{letter}": column for letter, column in zip("ABCDEFGHIJ", columns(), strict=True)}
    words = {label: title for column in asked.values() for label, title in column.words.items()}
    titles = {"scanner": "Scanner", **words} | {name: column.title for name, column in asked.items() if column.title}
    order = sorted(titles, key=lambda name: ORDER.index(titles[name]) if titles[name] in ORDER else len(ORDER))
    panel = (
        rows(
            "Who is in trouble, since when, and why",
            "One line for each scanner: those whose threads hang, the quarantined, the failing, those disabled by "
            "hand, then all others. Counts and shares are of the window; the budget is of its objective (slo), or "
            "of 1 % of a day's executions. Click a name to see that scanner's life. Runbook: ScannerOutOfService",
            [Query(column.expr, instant=True) for column in asked.values()],
            theme.COUNT,
        )
        .with_transformation(
            transformed("filterFieldsByName", include={"pattern": "^(scanner|now|kind|source|Value.*)$"})
        )
        .with_transformation(transformed("joinByField", byField="scanner", mode="outer"))
        .with_transformation(transformed("sortBy", sort=[{"field": "Value #A", "desc": True}]))
        .with_transformation(
            transformed(
                "organize",
                excludeByName={name: True for name, column in asked.items() if not column.title},
                indexByName={name: index for index, name in enumerate(order)},
                renameByName=titles,
            )
        )
        .cell_height(shapes.TableCellHeight.SM)
        .no_value("–")
    )
    return _formatted(panel)


def _formatted(panel: table.Panel) -> table.Panel:
    verdicts = models.ValueMap(
        options={
            word: models.ValueMappingResult(text=word, color=colour, index=index)
            for index, (word, colour) in enumerate(theme.VERDICT.values())
        }
    )
    background = setting("custom.cellOptions", {"type": "color-background", "mode": "basic"})
    panel = (
        panel.mappings([verdicts])
        .min_width(80)
        .with_override(named("Scanner"), [setting("links", [_to_the_scanner().build()]), setting("custom.width", 180)])
        .with_override(named("Now"), [background, setting("custom.width", 170)])
    )
    for column in columns():
        if column.title and column.unit != theme.COUNT:
            panel = panel.with_override(named(column.title), [setting("unit", column.unit), *_rounded(column)])
        if column.steps:
            text = setting("custom.cellOptions", {"type": "color-text"})
            panel = panel.with_override(named(column.title), [text, setting("thresholds", thresholds(column.steps))])
    return panel


def _rounded(column: Column) -> list[Any]:
    return [] if column.decimals is None else [setting("decimals", column.decimals)]


def _to_the_scanner() -> dashboard.DashboardLink:
    chosen = "&".join(f"${{{name}:queryparam}}" for name in ("job", "instance", "datasource", "window"))
    return (
        dashboard.DashboardLink("Open this scanner")
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{boards.SCANNER_UID}?var-scanner=${{__data.fields.Scanner}}&{chosen}&${{__url_time_range}}")
    )
