"""The table of the dashboard Fleet and the rules, asked of a real Prometheus about a fleet in every kind of trouble.

What all other panels show is tested in `tests/grafana/test_boards_shown.py`, of a past that need not be waited for.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml

from grafana.source.__main__ import HOME
from grafana.source.presets import PRESETS
from tests.e2e.conftest import LIFETIME
from tests.e2e.live_fleet import BY_HAND, HEALTHY, NAMES
from tests.e2e.monitoring import Api
from tests.grafana.boards import board, chosen, panels
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers

NOW_WINDOW = 5  # seconds, in which the fleet runs ten times


@pytest.mark.parametrize("preset", PRESETS)
def test_an_alert_asks_what_prometheus_understands(live_prometheus: Api, preset: str) -> None:
    folder = HOME if preset == "service" else HOME / "presets" / preset
    rules = yaml.safe_load((folder / "alerting" / "rules.yml").read_text())["groups"][0]["rules"]
    empty = {rule["title"] for rule in rules if live_prometheus.instant(rule["data"][0]["model"]["expr"]) == []}
    burns = {rule["title"] for rule in rules if "BudgetBurn" in rule["title"]}
    # The windows of hours are recorded once a minute at the earliest, and those of the preset cron not at all here. Of
    # a target that is there, nothing is absent.
    slow = {"ScannerLatencyHigh"} if preset == "cron" else set()
    # Nor is a provider known, of which one could be down.
    assert empty - burns == {"ResilientScanTargetAbsent", "ProviderDown"} | slow


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
    (table,) = [panel for panel in panels(board("fleet")) if panel["type"] == "table"]

    def column(number: int, label: str, window: int) -> dict[str, str]:
        expression = table["targets"][number]["expr"]
        answer = api.instant(chosen(expression, window=str(window), __range=f"{LIFETIME}s"))
        found = {each["metric"]["scanner"]: each["metric"][label].rpartition(".")[2] for each in answer}
        assert len(answer) == len(found), "one word for each scanner"
        return found

    now, kind, source = column(0, "now", NOW_WINDOW), column(3, "kind", LIFETIME), column(4, "source", LIFETIME)
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
