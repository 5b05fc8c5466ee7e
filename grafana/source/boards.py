"""Assemble a dashboard: variables at the top, links, annotations of alerts, and the grid of panels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from grafana.source import theme
from grafana.source.panels import SOURCE
from grafana.source.promql import rate, series

FLEET_UID, SCANNER_UID = "resilient-scan-fleet", "resilient-scan-scanner"
WIDTH = 24

Row = tuple[int, Sequence[tuple[int, Any]]]


def row(height: int, *panels: Any) -> Row:
    """Return a row of panels of equal width."""
    return height, [(WIDTH // len(panels), panel) for panel in panels]


def board(title: str, uid: str, description: str, rows: Sequence[Row], *, one_scanner: bool) -> str:
    """Return a dashboard as JSON.

    Args:
        title: of the dashboard.
        uid: what links call it.
        description: which questions it answers.
        rows: each a height, and panels with their widths, which add up to 24.
        one_scanner: whether exactly one scanner is chosen at the top, or any number.
    """
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["resilient-scan"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .variables(_variables(one_scanner=one_scanner))
        .annotations(_annotations())
        .links(_links(one_scanner=one_scanner))
    )
    _place(made, rows)
    content = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for shown in (*content["links"], *content["annotations"]["list"]):
        del shown["placement"]  # the only value that it can have hides them in a menu
    return json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _place(made: dashboard.Dashboard, rows: Sequence[Row]) -> None:
    number, top = 1, 0
    for height, panels in rows:
        left = 0
        for width, panel in panels:
            made.with_panel(panel.id(number).grid_pos(models.GridPos(x=left, y=top, w=width, h=height)))
            number, left = number + 1, left + width
        if left != WIDTH:
            raise ValueError(f"the panels at row {top} are {left} columns wide, not {WIDTH}")
        top += height


def _variables(*, one_scanner: bool) -> list[Builder[models.VariableModel]]:
    narrowed = 'job=~"$job", instance=~"$instance"'
    scanner = _choice("scanner", "Scanner", f"label_values(resilient_scan_scans_total{{{narrowed}}}, scanner)")
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _all(_choice("job", "Job", "label_values(resilient_scan_build_info, job)")),
        _all(_choice("instance", "Instance", 'label_values(resilient_scan_build_info{job=~"$job"}, instance)')),
        scanner.multi(False).include_all(False) if one_scanner else _all(scanner),
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


def _annotations() -> list[Builder[models.AnnotationQuery]]:
    out = rate(series("scanner_transitions_total", 'to=~"quarantined|disabled"'))
    back = rate(series("scanner_transitions_total", 'to="enabled"'))
    return [
        _marks(
            "Alerts",
            'ALERTS{alertstate="firing", job=~"$job", scanner=~"$scanner", resilient_scan_action="disable"}',
            theme.RED,
            "{{alertname}}: {{scanner}}",
        ),
        _marks(
            "Taken out of service",
            f"sum by (scanner, to, source) ({out}) > 0",
            theme.ORANGE,
            "{{scanner}} {{to}} by {{source}}",
        ),
        _marks(
            "Back in service",
            f"sum by (scanner, source) ({back}) > 0",
            theme.GREEN,
            "{{scanner}} enabled by {{source}}",
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
        .step("15s")
    )


def _links(*, one_scanner: bool) -> list[Builder[models.DashboardLink]]:
    title, uid = ("Fleet", FLEET_UID) if one_scanner else ("Scanner", SCANNER_UID)
    return [
        dashboard.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .icon("dashboard")
        .tooltip(f"The dashboard {title}, for the same time")
        .include_vars(one_scanner is False)
        .keep_time(True)
    ]
