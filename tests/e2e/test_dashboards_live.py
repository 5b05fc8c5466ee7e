"""Every query of the dashboards and rules, asked of a real Prometheus about a fleet in every kind of trouble."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
import yaml

from grafana.source.__main__ import HOME
from grafana.source.presets import PRESETS
from tests.e2e.conftest import LIFETIME
from tests.e2e.live_fleet import BY_HAND, HEALTHY, NAMES
from tests.e2e.monitoring import Api
from tests.grafana.boards import BOARDS, board, queries
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers

SECONDS, STEP = LIFETIME, 5  # what the dashboards would show: all that has been


def chosen(expression: str, scanner: str = ".+") -> str:
    """Fill in the variables, as Grafana does."""
    values = {"$__rate_interval": "5s", "$__range": f"{SECONDS}s", "$job": ".+", "$instance": ".+", "$scanner": scanner}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


FLEET = [pytest.param(title, target, id=title) for title, target in queries(board("fleet"))]
SCANNER = [pytest.param(title, target, id=title) for title, target in queries(board("scanner"))]


def ask(api: Api, target: dict[str, Any], scanner: str = ".+") -> list[dict[str, Any]]:
    expression = chosen(target["expr"], scanner)
    return api.instant(expression) if target.get("instant") else api.range(expression, SECONDS, STEP)


@pytest.mark.parametrize(("title", "target"), FLEET)
def test_a_panel_of_the_fleet_has_data(live_prometheus: Api, title: str, target: dict[str, Any]) -> None:
    assert ask(live_prometheus, target) != [], target["expr"]


@pytest.mark.parametrize(("title", "target"), SCANNER)
def test_a_panel_of_a_scanner_has_data(live_prometheus: Api, title: str, target: dict[str, Any]) -> None:
    assert ask(live_prometheus, target, "insider_buying") != [], target["expr"]


@pytest.mark.parametrize("name", BOARDS)
def test_variables_and_annotations_have_data(live_prometheus: Api, name: str) -> None:
    content = board(name)
    for variable in content["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"], re.DOTALL).groups()  # type: ignore[union-attr]
        found = live_prometheus.get("series", **{"match[]": chosen(metric)})
        values = {series[label] for series in found}
        assert values == (set(NAMES) if label == "scanner" else values)
        assert values
    for mark in content["annotations"]["list"]:
        answer = live_prometheus.range(chosen(mark["expr"]), SECONDS, STEP)
        if mark["name"] == "Taken out of service":
            assert {each["metric"]["scanner"]: each["metric"]["source"] for each in answer} == {
                "insider_buying": "alert",
                BY_HAND: "hand",
            }
        for label in re.findall(r"{{(\w+)}}", mark["titleFormat"]):
            assert all(label in each["metric"] for each in answer)


@pytest.mark.parametrize("preset", PRESETS)
def test_an_alert_asks_what_prometheus_understands(live_prometheus: Api, preset: str) -> None:
    folder = HOME if preset == "service" else HOME / "presets" / preset
    rules = yaml.safe_load((folder / "alerting" / "rules.yml").read_text())["groups"][0]["rules"]
    empty = {rule["title"] for rule in rules if live_prometheus.instant(rule["data"][0]["model"]["expr"]) == []}
    burns = {rule["title"] for rule in rules if "BudgetBurn" in rule["title"]}
    # The windows of hours are recorded once a minute at the earliest; a gateway and an Alertmanager are not here.
    assert empty - burns <= set()


def test_the_shipped_rules_are_loaded_and_work(live_prometheus: Api) -> None:
    groups = live_prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    names = {
        alert["labels"]["scanner"]
        for rule in rules
        if rule["name"] == "ScannerOutOfService"
        for alert in rule["alerts"]
    }
    assert {"insider_buying", "reddit_dd"} <= names
    assert not names & {*HEALTHY, BY_HAND}


def table_of(api: Api) -> dict[str, Any]:
    """Return what a stranger reads first of the scanners that are always the same, by column."""
    (table,) = [panel for panel in board("fleet")["panels"] if panel["type"] == "table"]

    def column(number: int, label: str) -> dict[str, str]:
        answer = api.instant(chosen(table["targets"][number]["expr"]))
        found = {each["metric"]["scanner"]: each["metric"][label].rpartition(".")[2] for each in answer}
        assert len(answer) == len(found), "one word for each scanner"
        return found

    now, kind, source = column(0, "now"), column(3, "kind"), column(4, "source")
    return {
        "rows": len(now),
        "now": {name: word for name, word in now.items() if name in NOW},
        "kind": {name: kind.get(name) for name in KIND},
        "source": source.get("insider_buying"),
    }


NOW = {
    **dict.fromkeys(HEALTHY, "healthy"),
    BY_HAND: "DISABLED by hand",
    "insider_buying": "QUARANTINED",
    "reddit_dd": "THREADS HANG",
    "analyst_revisions": "FAILING",
    "rsi_oversold": "suspicious answers",
}
KIND = {"insider_buying": "ConnectionError", "late": "timeout", "social_buzz": "timeout"}


def test_the_table_tells_who_is_in_trouble_and_why(live_prometheus: Api) -> None:
    """On a busy machine a window of seconds may lack one of them: the trouble lasts, so another one has them all."""
    expected = {"rows": len(NAMES), "now": NOW, "kind": KIND, "source": "alert"}
    tables = [table_of(live_prometheus)]
    with contextlib.suppress(AssertionError):  # the last line says more
        eventually(lambda: tables[-1] == expected or tables.append(table_of(live_prometheus)), "all of them are told")
    assert tables[-1] == expected
