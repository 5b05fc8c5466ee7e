"""Rules under promtool: each alert fires, stays silent and clears, in both forms and with both presets."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.source.__main__ import HOME
from grafana.source.alerts import alerts
from grafana.source.presets import PRESETS, Preset
from tests.grafana.scenarios import Scenario, scenarios
from tests.support.needed import binary

pytestmark = pytest.mark.servers

FOLDERS = {"service": HOME, "cron": HOME / "presets" / "cron"}
FORMS = ("prometheus", "grafana")


def rules_of(preset: str, form: str) -> list[dict[str, Any]]:
    """Return the shipped alerts as rules of Prometheus; those of Grafana fire where what they ask is above 0."""
    if form == "prometheus":
        return list(read(preset, "prometheus/alerts.yml")["groups"][0]["rules"])
    return [
        {
            "alert": rule["title"],
            "expr": f"(\n{rule['data'][0]['model']['expr']}\n) > 0",
            "for": rule["for"],
            "keep_firing_for": rule["keep_firing_for"],
            "labels": rule["labels"],
            "annotations": rule["annotations"],
        }
        for rule in read(preset, "alerting/rules.yml")["groups"][0]["rules"]
    ]


@cache
def read(preset: str, path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((FOLDERS[preset] / path).read_text(), yaml.CSafeLoader)
    return content


def promtool_test(preset: str, form: str, scenario: Scenario, folder: Path) -> str:
    """Run one scenario on one rule and return what promtool says; empty: all is as expected."""
    rule = next(rule for rule in rules_of(preset, form) if rule["alert"] == scenario.alert)
    recorded = [each for group in read(preset, "prometheus/recording.yml")["groups"] for each in group["rules"]]
    needed = [each for each in recorded if re.search(rf"{each['record']}\b", rule["expr"])]
    (folder / "rules.yml").write_text(json.dumps({"groups": [{"name": "one", "rules": [*needed, rule]}]}))
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{scenario.sampled}m",
        "tests": [written(scenario, rule)],
    }
    (folder / "tests.yml").write_text(json.dumps(tests))
    done = subprocess.run(
        [binary("promtool"), "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def written(scenario: Scenario, rule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "interval": f"{scenario.sampled}m",
        "input_series": [{"series": series, "values": values} for series, values in scenario.series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": scenario.alert,
                "exp_alerts": [expected(rule, labels) for labels in firing],
            }
            for minute, firing in scenario.firing.items()
        ],
    }


def expected(rule: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    def filled(text: str) -> str:
        return re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)

    return {
        "exp_labels": {**labels, **rule["labels"]},
        "exp_annotations": {key: filled(text) for key, text in rule["annotations"].items()},
    }


CASES = [(name, scenario) for name, preset in PRESETS.items() for scenario in scenarios(preset)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("preset", "scenario"), CASES, ids=[f"{name}-{made.alert}" for name, made in CASES])
def test_each_alert_fires_stays_silent_and_clears(preset: str, scenario: Scenario, form: str, tmp_path: Path) -> None:
    assert promtool_test(preset, form, scenario, tmp_path) == ""


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_every_alert_has_a_scenario_in_which_it_fires_and_one_in_which_it_does_not(preset: Preset) -> None:
    fires = {made.alert for made in scenarios(preset) if any(made.firing.values())}
    silent = {made.alert for made in scenarios(preset) if not all(made.firing.values())}
    names = {alert.name for alert in alerts(preset)}
    assert fires == names
    assert silent == names - {"ResilientScanWatchdog"}


@pytest.mark.parametrize("preset", FOLDERS)
def test_promtool_finds_nothing(preset: str) -> None:
    files = [FOLDERS[preset] / "prometheus" / name for name in ("recording.yml", "alerts.yml")]
    done = subprocess.run(
        [binary("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_without_its_guard_is_noticed(tmp_path: Path) -> None:
    """The scenarios are sharp: without `min_executions` the rare scanner fires, with another share nobody does."""
    (chosen, *_) = scenarios(PRESETS["service"])
    for pattern, instead in ((r"\nand\n[\s\S]*", ""), (r"> 0\.5", "> 1"), (r"\[5m\]", "[4s]")):
        rule = dict(next(each for each in rules_of("service", "prometheus") if each["alert"] == chosen.alert))
        rule["expr"] = re.sub(pattern, instead, rule["expr"])
        (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "one", "rules": [rule]}]}))
        tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [written(chosen, rule)]}
        (tmp_path / "tests.yml").write_text(json.dumps(tests))
        done = subprocess.run([binary("promtool"), "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 1, pattern
