"""Build the table of the dashboard Fleet: one line for each scanner, the worst first."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard, table
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models

from grafana.source import boards, theme
from grafana.source.panels import named, rows, setting, thresholds, transformed
from grafana.source.promql import (
    BY,
    DURATION,
    FAILED,
    RECENT,
    Query,
    failed,
    in_range,
    quantile,
    series,
    verdict_in_words,
)

PERCENT_OF_FAILURES = ((None, theme.GREEN), (10, theme.YELLOW), (50, theme.RED))
ERRORS = series("executions_total", 'outcome="error"')
TIMEOUTS = series("executions_total", 'outcome="timeout"')
MOVED_OUT = series("scanner_transitions_total", 'to=~"quarantined|disabled"', 'source!="probe"')  # who did it first


def build() -> table.Panel:
    """Return the table: one line for each scanner, one column for each query; some queries bring a word as a label."""
    asked = [Query(query, instant=True, least=RECENT) for _, query in _columns()]
    names = {f"Value #{letter}": name for letter, (name, _) in zip("ABCDEFGHI", _columns(), strict=True)}
    words = {"scanner": "Scanner", "now": "Now", "kind": "Fails most with", "source": "Taken out by"}
    order = ["scanner", "now", "Value #H", "kind", "source", *names]
    shown = {name: title for name, title in {**words, **names}.items() if title}
    columns = {"pattern": "^(scanner|now|kind|source|Value.*)$"}
    panel = (
        rows(
            "Who is in trouble, since when, and why",
            "One line for each scanner, the worst first: what is wrong now, when it last succeeded, what it "
            "fails most with, and what took it out of service. Click a line to see that scanner's life.",
            asked,
            theme.COUNT,
        )
        .with_transformation(transformed("filterFieldsByName", include=columns))
        .with_transformation(transformed("joinByField", byField="scanner", mode="outer"))
        .with_transformation(transformed("sortBy", sort=[{"field": "Value #A", "desc": True}]))
        .with_transformation(
            transformed(
                "organize",
                excludeByName={name: True for name, title in names.items() if not title},
                indexByName={name: index for index, name in enumerate(dict.fromkeys(order))},
                renameByName=shown,
            )
        )
        .cell_height(shapes.TableCellHeight.SM)
        .no_value("–")
    )
    return _formatted(panel)


def _columns() -> tuple[tuple[str, str], ...]:
    # The series of a kind of error begins with the first error, so its growth may be 0. Whether there were errors at
    # all is therefore read from the executions, whose series exist from the beginning.
    kinds = (
        f"sum by (scanner, kind) ({in_range(series('errors_total'))})\n"
        f"  and on (scanner) sum {BY} ({in_range(ERRORS)}) > 0\n"
        f'  or label_replace(sum {BY} ({in_range(TIMEOUTS)}) > 0, "kind", "timeout", "", "")'
    )
    sources = f"sum by (scanner, source) ({in_range(MOVED_OUT)}) > 0"
    success = f"max {BY} ({series('last_success_timestamp_seconds')} > 0)"
    return (
        ("", verdict_in_words()),
        ("Failed, %", f"round(100 * {failed()})"),
        ("Failures", f"round(sum {BY} ({in_range(FAILED)}))"),
        ("", f"topk {BY} (1, {kinds})"),
        ("", f"topk {BY} (1, {sources})"),
        ("p95, s", f"round({quantile(0.95, DURATION, 'scanner')}, 0.01)"),
        ("Hung threads", f"sum {BY} ({series('abandoned_threads')})"),
        ("Success, min ago", f"round((time() - {success}) / 60, 0.1)"),
        ("Candidates", f"max {BY} ({series('candidates')})"),
    )


def _formatted(panel: table.Panel) -> table.Panel:
    link = (
        dashboard.DashboardLink("Open this scanner")
        .type(models.DashboardLinkType.LINK)
        .url(
            f"/d/{boards.SCANNER_UID}?var-scanner=${{__data.fields.Scanner}}&${{job:queryparam}}&${{instance:queryparam}}"
            "&${datasource:queryparam}&${__url_time_range}"
        )
    )
    words = models.ValueMap(
        options={
            word: models.ValueMappingResult(text=word, color=colour, index=index)
            for index, (word, colour) in enumerate(theme.VERDICT.values())
        }
    )
    coloured = {
        "Failed, %": PERCENT_OF_FAILURES,
        "p95, s": theme.SECONDS_OF_EXECUTIONS,
        "Hung threads": theme.ANY_IS_BAD,
    }
    panel = (
        panel.data_links([link])
        .mappings([words])
        .with_override(named("Now"), [setting("custom.cellOptions", {"type": "color-background", "mode": "basic"})])
    )
    for name, steps in coloured.items():
        text = setting("custom.cellOptions", {"type": "color-text"})
        panel = panel.with_override(named(name), [text, setting("thresholds", thresholds(steps))])
    return panel
