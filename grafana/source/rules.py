"""Write alerts and recording rules in the formats of Prometheus and Grafana."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from grafana.source.alerts import alerts
from grafana.source.conditions import (
    COUNTED,
    ENDED,
    FAILED,
    FLEET,
    LAST_RUN,
    ONE_RUN,
    PROVIDER,
    RECORDED,
    Alert,
    Case,
    fleet_ratio,
    grown,
    growth,
    ratio_of_runs,
    recorded,
)
from grafana.source.presets import Preset

FOLDER = "resilient-scan"
DATASOURCE = "resilient-scan-prometheus"
HEADER = "# Made by `python -m grafana.source`; change grafana/source instead.\n"


def recording(preset: Preset) -> str:
    """Return the recording rules: what the alerts about the error budget use, and the longer windows of the others."""
    windows = list(dict.fromkeys(window for burn in preset.burns for window in (burn.short, burn.long)))
    short, long = (
        [window for window in windows if window[-1] in "mh"],
        [window for window in windows if window[-1] == "d"],
    )
    groups = [
        ("hours", "1m", _budget(preset, short)),
        ("days", "5m", _budget(preset, long)),
        ("windows", "1m", _windows(preset)),
    ]
    return _file(
        {
            "groups": [
                {"name": f"resilient-scan-recording-{name}", "interval": interval, "rules": rules}
                for name, interval, rules in groups
                if rules
            ]
        }
    )


def prometheus(preset: Preset) -> str:
    """Return the alerts as a rules file of Prometheus."""
    rules = [
        {
            "alert": alert.name,
            "expr": _filtering(alert),
            **({"for": alert.pending} if alert.pending != "0s" else {}),
            **({"keep_firing_for": alert.keep} if alert.keep != "0s" else {}),
            "labels": alert.labels | ({"provider": PROVIDER} if alert.names_provider else {}),
            "annotations": _annotations(alert),
        }
        for alert in alerts(preset)
    ]
    return _file({"groups": [{"name": "resilient-scan", "interval": preset.evaluation, "rules": rules}]})


def grafana(preset: Preset) -> str:
    """Return the same alerts as a provisioning file of Grafana."""
    group = {
        "orgId": 1,
        "name": "resilient-scan",
        "folder": FOLDER,
        "interval": "10s" if preset.evaluation == "15s" else preset.evaluation,  # a multiple of ten seconds
        "rules": [_managed(alert) for alert in alerts(preset)],
    }
    return _file({"apiVersion": 1, "groups": [group]})


def _budget(preset: Preset, windows: list[str]) -> list[dict[str, str]]:
    rules = []
    for window in windows:
        share, counted = fleet_ratio(preset, window), f"{FLEET} (increase({ENDED.selector}[{window}]))"
        if preset.one_shot:
            share = f"({ratio_of_runs(FAILED, ENDED, window)})\nor\n({share})"
            # Each run pushes when it ended: that changes once for each run after the first of the window.
            runs = f"on (job, instance) group_left () (changes({LAST_RUN}[{window}]) + 1)"
            each = f"max_over_time({ENDED.selector}[{window}]) * {runs}"
            counted = f"{FLEET} ({each}\n  and on (job, instance) {ONE_RUN})\nor\n{counted}"
        rules.append({"record": f"{RECORDED}{window}", "expr": share})
        rules.append({"record": f"{COUNTED}{window}", "expr": counted})
    return rules


def _windows(preset: Preset) -> list[dict[str, str]]:
    return [
        {"record": grown(counter, window, preset), "expr": growth(counter, window)}
        for counter, window in recorded(preset)
    ]


def _filtering(alert: Alert) -> str:
    """Return an expression with exactly the series that fire."""
    cases = [
        "\nand\n".join(f"{_wrapped(each.left)} {each.operator} {each.right:g}" for each in case) for case in alert.cases
    ]
    return "\nor\n".join(cases) if len(cases) == 1 or all("and" not in case for case in cases) else _alternatives(cases)


def _alternatives(cases: list[str]) -> str:
    return "\nor\n".join(f"(\n{case}\n)" for case in cases)


def _keeping(alert: Alert) -> str:
    """Return an expression with every series: 1 for those that fire and 0 for the others.

    A scanner without a breaker has no series in the case about breakers, and must not lose its other cases. So each
    case gets a label of its own, which keeps all series of all cases apart, and the greatest of each scanner counts.
    """
    cases = [_product(case) for case in alert.cases]
    if len(cases) == 1:
        return cases[0]
    apart = [f'label_replace((\n{case}\n), "case", "{number}", "", "")' for number, case in enumerate(cases)]
    union = "\nor\n".join(apart)
    return f"max without (case) (\n{union}\n)"


def _product(case: Case) -> str:
    return "\n* ".join(f"({_wrapped(each.left)} {each.operator} bool {each.right:g})" for each in case)


def _wrapped(expression: str) -> str:
    return f"(\n  {expression}\n)" if "\n" in expression or " - " in expression else expression


def _managed(alert: Alert) -> dict[str, Any]:
    return {
        "uid": alert.name,
        "title": alert.name,
        "condition": "B",
        "data": [
            {
                "refId": "A",
                "datasourceUid": DATASOURCE,
                "relativeTimeRange": {"from": 600, "to": 0},
                "model": {"refId": "A", "expr": _keeping(alert), "instant": True, "range": False},
            },
            {
                "refId": "B",
                "datasourceUid": "__expr__",
                "model": {
                    "refId": "B",
                    "type": "threshold",
                    "expression": "A",
                    "conditions": [{"evaluator": {"type": "gt", "params": [0]}}],
                },
            },
        ],
        "for": alert.pending,
        "keep_firing_for": alert.keep,
        "noDataState": "OK",
        "execErrState": "KeepLast",
        "labels": alert.labels,
        "annotations": _annotations(alert),
    }


def _annotations(alert: Alert) -> dict[str, str]:
    """Return the texts; links are added when the files are exported, where it is known what they begin with."""
    return {"summary": alert.summary, "description": alert.description}


class _Dumper(yaml.SafeDumper):
    """A dumper that writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _file(content: Mapping[str, Any]) -> str:
    return HEADER + yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
