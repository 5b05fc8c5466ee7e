"""Look into dashboards: panels, queries, names; and the rules of a dashboard linter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from grafana.source.__main__ import HOME
from resilient_scan.observe.metrics import families
from resilient_scan.observe.metrics.catalogue import PROVIDER_STATES

BOARDS = ("fleet", "scanner")
PANELS = {"timeseries", "state-timeline", "stat", "gauge", "bargauge", "table"}
OURS = re.compile(r"\b(resilient_scan_\w+)")
SELECTOR = re.compile(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^{}]*)\}(\[[^\]]*\]| offset \S+)?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
REFERENCE = {"type": "prometheus", "uid": "${datasource}"}
WINDOW, RANGE, DAY = "${window}s", "$__range", "1d"
WINDOWS = {  # that a function may look back on
    "increase": {WINDOW, RANGE, DAY},
    "count_over_time": {WINDOW, RANGE},
    "min_over_time": {WINDOW, RANGE},
    "max_over_time": {RANGE},
}


@cache
def text(name: str) -> str:
    return (HOME / "dashboards" / f"{name}.json").read_text()


def board(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text(name))
    return content


def panels(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that show something, not the rows' titles."""
    return [panel for panel in content["panels"] if panel["type"] != "row"]


def chosen(expression: str, **values: str) -> str:
    """Fill in the variables, as Grafana does, with everything where nothing is chosen."""
    for name, value in {"job": ".+", "instance": ".+", "scanner": ".+", **values}.items():
        expression = expression.replace(f"${{{name}}}", value).replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


def queries(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every query with the title of its panel."""
    for panel in panels(content):
        for target in panel["targets"]:
            yield panel["title"], target


def expressions(content: dict[str, Any]) -> Iterator[str]:
    """Yield whatever is asked: by panels, annotations and variables."""
    yield from (target["expr"] for _, target in queries(content))
    yield from (mark["expr"] for mark in content["annotations"]["list"])
    yield from (str(each["query"]) for each in content["templating"]["list"])


def known_series() -> dict[str, Any]:
    """Return every name under which one of our metrics can be queried, with its family."""
    return {name: family for family in families() for name in family.series}


def strangers(expression: str) -> Iterator[str]:
    """Yield what an expression names that the code does not have: metrics, labels, values of closed labels."""
    known = known_series()
    recorded = re.findall(r"\b\w+:resilient_scan_\w+:\w+", expression)
    for name in OURS.findall(re.sub(r"\b\w+:resilient_scan_\w+:\w+", "", expression)):
        if name not in known and name != "resilient_scan_action":
            yield name
    for name, inside, _ in SELECTOR.findall(expression):
        if name in known and name not in recorded:
            yield from _odd_matchers(name, inside, known[name])


def _odd_matchers(name: str, inside: str, family: Any) -> Iterator[str]:
    closed = [label for label in family.labels if label not in {"scanner", "pipeline", "provider"}]
    for label, operator, value in MATCHER.findall(inside):
        if label not in {*family.labels, "job", "instance", "le"}:
            yield f"{name}{{{label}}}"
        elif label in closed and all(family.closed) and "$" not in value:
            known = {values[closed.index(label)] for values in family.closed} or set(PROVIDER_STATES)
            wanted = value.split("|") if "~" in operator else [value]
            yield from (f"{name}{{{label}={each}}}" for each in wanted if each not in known)


def findings(content: dict[str, Any]) -> list[str]:
    """Hold a dashboard against the rules of the dashboard linter, and some of our own."""
    found = [*_of_the_whole(content)]
    for panel in panels(content):
        found += [f"{panel['title']}: {finding}" for finding in _of_a_panel(panel)]
        for target in panel["targets"]:
            found += [f"{panel['title']}: {finding}" for finding in _of_a_query(target["expr"])]
    return found


def _of_the_whole(content: dict[str, Any]) -> Iterator[str]:
    variables = {each["name"]: each for each in content["templating"]["list"]}
    if content.get("editable") is not False:
        yield "can be edited"
    if variables.get("datasource", {}).get("query") != "prometheus":
        yield "no variable for the data source"
    for name in ("job", "instance"):
        variable = variables.get(name, {})
        wanted = {"type": "query", "multi": True, "includeAll": True, "allValue": ".+", "refresh": 2}
        wanted |= {"label": name.title(), "datasource": REFERENCE}
        yield from (f"variable {name}: {key}" for key, value in wanted.items() if variable.get(key) != value)
    if "scanner" not in variables:
        yield "no variable for the scanner"
    numbers = [panel["id"] for panel in content["panels"]]
    if len(set(numbers)) != len(numbers):
        yield "two panels with one number"


def _of_a_panel(panel: dict[str, Any]) -> Iterator[str]:
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] not in PANELS:
        yield f"type {panel['type']}"
    yield from (f"no {part}" for part in ("title", "description") if len(panel.get(part, "")) < 4)
    if not defaults.get("unit"):
        yield "no unit"
    if not panel["targets"]:
        yield "no query"
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    if any(source != REFERENCE for source in sources):
        yield "a data source of its own"
    if panel["type"] in {"stat", "gauge", "bargauge"}:
        if panel["options"]["reduceOptions"]["calcs"] != ["lastNotNull"]:
            yield "no calculation"
        if not defaults["thresholds"]["steps"]:
            yield "no thresholds"


def _of_a_query(expression: str) -> Iterator[str]:
    for name, inside, window in SELECTOR.findall(expression):
        matchers = {(label, operator, value) for label, operator, value in MATCHER.findall(inside)}
        yield from (
            f"{name} without {label}" for label in ("job", "instance") if (label, "=~", f"${label}") not in matchers
        )
        counts = re.search(r"_(total|bucket|sum|count)$", name)
        if counts and not window:
            yield f"{name} outside of increase"
    for function, window in re.findall(r"\b(\w+)\(\s*\w+\{[^{}]*\}\[([^\]]+)\]", expression):
        if window not in WINDOWS.get(function, ()):
            yield f"{function} over {window}"
    if expression.count("(") != expression.count(")"):
        yield "parentheses"
