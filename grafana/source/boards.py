"""Assemble a dashboard: variables at the top, links, annotations, and the grid of panels in rows with titles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from grafana.source import theme
from grafana.source.panels import SOURCE
from grafana.source.promql import became, process

FLEET_UID, SCANNER_UID = "resilient-scan-fleet", "resilient-scan-scanner"
WIDTH = 24

Line = tuple[int, Sequence[tuple[int, Any]]]

RUNS = (20, 5, 100)  # the window in runs, the default first: of 20 runs, 30 % that fail are shown as 25 to 35 %
SHORTEST = 120  # seconds; a window needs some scrapes
FIXED = {"5 minutes": 300, "30 minutes": 1800, "1 hour": 3600, "6 hours": 21_600, "1 day": 86_400}
OBSERVED = 21_600  # seconds in which runs are counted where no schedule is exported


@dataclass(frozen=True)
class Section:
    """A row with a title, and the lines of panels below it."""

    title: str
    lines: Sequence[Line]


def line(height: int, *panels: Any) -> Line:
    """Return a line of panels of equal width."""
    return height, [(WIDTH // len(panels), panel) for panel in panels]


def board(title: str, uid: str, description: str, sections: Sequence[Section], *, one_scanner: bool) -> str:
    """Return a dashboard as JSON, without links to what is outside Grafana.

    Args:
        title: of the dashboard.
        uid: what links call it.
        description: which questions it answers.
        sections: rows, with lines of panels whose widths add up to 24.
        one_scanner: whether exactly one scanner is chosen at the top, or any number.
    """
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["resilient-scan"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .variables(_variables(one_scanner=one_scanner))
        .annotations(_annotations())
        .links(_links(one_scanner=one_scanner))
    )
    _place(made, sections)
    content = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for shown in (*content["links"], *content["annotations"]["list"]):
        del shown["placement"]  # the only value that it can have hides them in a menu
    return json.dumps(content)


def _place(made: dashboard.Dashboard, sections: Sequence[Section]) -> None:
    number, top = 1, 0
    for section in sections:
        place = models.GridPos(x=0, y=top, w=WIDTH, h=1)
        made.with_row(dashboard.Row(section.title).id(number).grid_pos(place))
        number, top = number + 1, top + 1
        for height, panels in section.lines:
            left = 0
            for width, panel in panels:
                made.with_panel(panel.id(number).grid_pos(models.GridPos(x=left, y=top, w=width, h=height)))
                number, left = number + 1, left + width
            if left != WIDTH:
                raise ValueError(f"the panels at row {top} are {left} columns wide, not {WIDTH}")
            top += height


# What is chosen at the top


def _variables(*, one_scanner: bool) -> list[Builder[models.VariableModel]]:
    narrowed = 'job=~"$job", instance=~"$instance"'
    scanner = _choice("scanner", "Scanner", f"label_values(resilient_scan_scans_total{{{narrowed}}}, scanner)")
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _all(_choice("job", "Job", "label_values(resilient_scan_build_info, job)")),
        _all(_choice("instance", "Instance", 'label_values(resilient_scan_build_info{job=~"$job"}, instance)')),
        scanner.multi(False).include_all(False) if one_scanner else _all(scanner),
        _window(),
    ]


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .definition(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _all(variable: dashboard.QueryVariable) -> dashboard.QueryVariable:
    chosen = models.VariableOption(selected=True, text="All", value="$__all")
    return variable.multi(True).include_all(True).all_value(".+").current(chosen)


def _window() -> dashboard.QueryVariable:
    """Return the variable with the window of counts and shares, in seconds.

    Each choice is a series of one query: its label is what people read, its value is the window. Where no schedule is
    exported, the interval is that of the runs seen; where none is seen yet, it is a minute. The slowest scanner of a
    schedule decides, so that each has executions in the window, and it is the same one on both dashboards.
    """
    grown = f"sum by (job, instance) (increase({process('runs_total')}[{OBSERVED}s])) > 0"
    interval = f"(max({process('schedule_interval_seconds')}) or min({OBSERVED} / ({grown})) or vector(60))"
    of_runs = {f"{number} runs": f"clamp_min(ceil({number} * {interval}), {SHORTEST})" for number in RUNS}
    fixed = {text: f"vector({seconds})" for text, seconds in FIXED.items()}
    choices = (f'label_replace({expr}, "window", "{text}", "", "")' for text, expr in (of_runs | fixed).items())
    default = models.VariableOption(selected=True, text=f"{RUNS[0]} runs", value="")
    return (
        _choice("window", "Window", f"query_result({' or '.join(choices)})")
        .regex('/window="(?<text>[^"]+)".* (?<value>\\d+) \\d+/')
        .sort(models.VariableSort.DISABLED)
        .multi(False)
        .include_all(False)
        .current(default)
    )


# Moments, and where to go from here


def _annotations() -> list[Builder[models.AnnotationQuery]]:
    return [
        _marks(
            "Alerts",
            'ALERTS{alertstate="firing", job=~"$job", scanner=~"$scanner|", severity="critical"}',
            theme.RED,
            "{{alertname}} {{scanner}}",
        ),
        _marks(
            "Taken out of service",
            became("scanner_state", "quarantined|disabled", "enabled"),
            theme.PURPLE,
            "{{scanner}} {{state}}",
        ),
        _marks(
            "Back in service",
            became("scanner_state", "enabled", "quarantined|probing|disabled"),
            theme.GREEN,
            "{{scanner}} {{state}}",
        ),
        _marks(
            "Breaker opened",
            became("breaker_state", "open|half_open", "closed"),
            theme.ORANGE,
            "{{scanner}} breaker opened",
        ),
        _marks(
            "Breaker closed",
            became("breaker_state", "closed", "open|half_open"),
            theme.BLUE,
            "{{scanner}} breaker closed",
        ),
    ]


def _marks(name: str, expr: str, colour: str, title: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .hide(False)
        .icon_color(colour)
        .expr(expr)
        .title_format(title)
        .text_format(title)
        .tag_keys("scanner")
        .step("1m")
    )


def _links(*, one_scanner: bool) -> list[Builder[models.DashboardLink]]:
    title, uid = ("Fleet", FLEET_UID) if one_scanner else ("Scanner", SCANNER_UID)
    chosen = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", "job", "instance", "window"))
    return [
        dashboard.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{uid}?{chosen}")
        .icon("dashboard")
        .tooltip(f"The dashboard {title}, for the same time")
        .keep_time(True)
    ]
