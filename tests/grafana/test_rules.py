"""Rules under promtool: each alert fires, stays silent and clears, in both forms and with both presets."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
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


def failures(preset: str, made: Sequence[tuple[Scenario, Mapping[str, Any]]], folder: Path) -> dict[int, str]:
    """Run scenarios, each on a rule, all in one go; return by position what promtool says about those that fail."""
    recorded = [each for group in read(preset, "prometheus/recording.yml")["groups"] for each in group["rules"]]
    files = []
    for number, (scenario, rule) in enumerate(made):
        needed = [each for each in recorded if re.search(rf"{each['record']}\b", rule["expr"])]
        rules = {"groups": [{"name": "one", "rules": [*needed, rule]}]}
        (folder / f"{number}.rules").write_text(json.dumps(rules))
        tests = {
            "rule_files": [f"{number}.rules"],
            "evaluation_interval": f"{scenario.sampled}m",
            "tests": [written(scenario, rule)],
        }
        files.append(f"{number}.tests")
        (folder / files[-1]).write_text(json.dumps(tests))
    done = subprocess.run(
        [binary("promtool"), "test", "rules", *files], cwd=folder, capture_output=True, text=True, timeout=300
    )
    said = re.split(r"(?m)^Unit Testing:  (\d+)\.tests$", done.stdout + done.stderr)
    found = {int(number): text for number, text in zip(said[1::2], said[2::2], strict=True)}
    assert set(found) == set(range(len(made))), done.stdout + done.stderr
    return {number: text for number, text in found.items() if "SUCCESS" not in text}


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

    own = {name: text for name, text in rule["labels"].items() if "{{" not in text}  # of the others, the scenario tells
    if own == rule["labels"] and "provider" not in rule["expr"]:
        labels = {name: text for name, text in labels.items() if name != "provider"}
    return {
        "exp_labels": {**labels, **own},
        "exp_annotations": {key: filled(text) for key, text in rule["annotations"].items()},
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", FOLDERS)
def test_each_alert_fires_stays_silent_and_clears(preset: str, form: str, tmp_path: Path) -> None:
    rules = {rule["alert"]: rule for rule in rules_of(preset, form)}
    made = [(scenario, rules[scenario.alert]) for scenario in scenarios(PRESETS[preset])]
    assert failures(preset, made, tmp_path) == {}


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


LOOSER = [  # alert, what is replaced in its rule, and by what
    ("ScannerErrorRatioHigh", r"> 0\.5", "> 1"),
    ("ScannerErrorRatioHigh", r">= 3", ">= 0"),
    ("ScannerErrorRatioHigh", r">= 4", ">= 1"),
    ("ScannerErrorRatioHigh", r"\nand\n[^\n]* < [34](?=\n)", ""),  # long windows remember
    ("ScannerErrorRatioHigh", r"(?s)\nor\n.*", ""),  # five minutes see one run
    ("ScannerErrorRatioHigh", r"by \(job, instance, scanner\)", "by (job, scanner)"),
    ("ScannerTimeoutRatioHigh", r"timeout", "error"),
    ("ScannerOutOfService", r"by \(job, instance, scanner\)", "by (job, scanner)"),
    ("ScannerOutOfService", r"open\|half_open", "open"),
    ("ScannerOutOfService", r"(?s)(abandoned_threads\) > 0).*?\n\)\nor", r"\1\n)\nor"),  # one thread hangs
    ("ScannerOutOfService", r"abandoned_threads\) > 0", "abandoned_threads) >= 0"),  # rejected for something else
    *((f"ScannerErrorBudgetBurn{name}x", r">= \d+", ">= 3") for name in (14, 6, 3, 1)),
    ("ScannerLatencyHigh", r"0\.05", "0.02"),
    ("ScannerLatencyHigh", r"0\.05", "0.2"),
    ("ScannerLatencyHigh", r"\n +unless [^\n]*", ""),  # 11 s of 60, where the timeout is known
    ("ScannerFlapping", r"\nor\n(?!.*\nor\n)(?s:.*)", ""),  # what the process says
    ("ScannerFlapping", r"== 1", ">= 0"),
    ("ScannerFlapping", r"max by \(job, instance, scanner\)", "min by (job, scanner)"),
    ("ProviderDown", r"open\|half_open", "open"),
    ("ProviderDown", r"open\|half_open", "open|half_open|held"),
    ("ProviderDown", r"by \(job, instance, provider\)", "by (job, provider)"),
    ("ResilientScanFuseBlown", r"5m", "1h"),
    ("ResilientScanFuseBlown", r"refused", "refused|overruled|ignored"),
    ("ResilientScanBlind", r"by \(job, instance\)", "by (job)"),
    ("ResilientScanTargetAbsent", r" or resilient_scan_build_info", ""),
    ("ResilientScanRunsMissing", r"3 \*", "0.5 *"),
    ("ResilientScanRunsMissing", r"3 \*", "9 *"),
]


def test_a_rule_that_is_a_little_different_is_noticed(tmp_path: Path) -> None:
    """The scenarios are sharp: each of these changes makes one of them fail."""
    rules = {rule["alert"]: rule for rule in rules_of("service", "prometheus")}
    made, of = [], []
    for number, (alert, pattern, instead) in enumerate(LOOSER):
        changed = re.sub(pattern, instead, rules[alert]["expr"])
        changed = changed.replace('result="refused|', 'result=~"refused|')
        assert changed != rules[alert]["expr"], (alert, pattern)
        chosen = [scenario for scenario in scenarios(PRESETS["service"]) if scenario.alert == alert]
        chosen = (
            chosen[2:] if "Burn" in alert else [each for each in chosen if max(each.firing) < 400]
        )  # the quick ones
        made += [(scenario, {**rules[alert], "expr": changed}) for scenario in chosen]
        of += [number] * len(chosen)
    noticed = {of[position] for position in failures("service", made, tmp_path)}
    assert [LOOSER[number] for number in range(len(LOOSER)) if number not in noticed] == []
