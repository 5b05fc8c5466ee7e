"""Write alerts and recording rules in the formats of Prometheus and Grafana."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from grafana.source.alerts import (
    COUNTED,
    ENDED,
    FAILED,
    ONE_RUN,
    RECORDED,
    SCANNER,
    Alert,
    Case,
    alerts,
    ratio,
    ratio_of_runs,
)
from grafana.source.boards import FLEET_UID, SCANNER_UID
from grafana.source.presets import Preset

RUNBOOK = "docs/runbook.md"  # users choose where it can be read: `export-grafana --runbook URL`
FOLDER = "resilient-scan"
DATASOURCE = "resilient-scan-prometheus"
HEADER = "# Made by `python -m grafana.source`; change grafana/source instead.\n"


def recording(preset: Preset) -> str:
    """Return the recording rules, which the alerts about the error budget use."""
    windows = list(dict.fromkeys(window for burn in preset.burns for window in (burn.short, burn.long)))
    short, long = (
        [window for window in windows if window[-1] in "mh"],
        [window for window in windows if window[-1] == "d"],
    )
    return _file(
        {
            "groups": [
                {"name": f"resilient-scan-recording-{name}", "interval": interval, "rules": _recorded(preset, chosen)}
                for name, interval, chosen in (("hours", "1m", short), ("days", "5m", long))
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
            "labels": alert.labels,
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


def _recorded(preset: Preset, windows: list[str]) -> list[dict[str, str]]:
    rules = []
    for window in windows:
        share, counted = ratio(FAILED, preset, window), f"{SCANNER} (increase({ENDED}[{window}]))"
        if preset.one_shot:
            share = f"({ratio_of_runs(FAILED, window)})\nor\n({share})"
            # What each run abandons, times the runs that the window has room for, is not known; one is enough.
            counted = f"{SCANNER} (max_over_time({ENDED}[{window}]) and on (job, instance) {ONE_RUN})\nor\n{counted}"
        rules.append({"record": f"{RECORDED}{window}", "expr": share})
        rules.append({"record": f"{COUNTED}{window}", "expr": counted})
    return rules


def _filtering(alert: Alert) -> str:
    """Return an expression with exactly the series that fire."""
    cases = [
        "\nand\n".join(f"{_wrapped(each.left)} {each.operator} {each.right:g}" for each in case) for case in alert.cases
    ]
    return "\nor\n".join(cases) if len(cases) == 1 or all("and" not in case for case in cases) else _alternatives(cases)


def _alternatives(cases: list[str]) -> str:
    return "\nor\n".join(f"(\n{case}\n)" for case in cases)


def _keeping(alert: Alert) -> str:
    """Return an expression with every series: 1 for those that fire and 0 for the others."""
    cases = [_product(case) for case in alert.cases]
    if len(cases) == 1:
        return cases[0]
    # A scanner without a breaker has no series in the case about breakers. `+` alone would lose its other cases, so
    # each case follows once more behind `or`.
    parts = [f"(\n{case}\n)" for case in cases]
    return "\nor\n".join([f"({' + '.join(parts)}) > bool 0", *parts])


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
    board = f"/d/{SCANNER_UID}?var-scanner={{{{ $labels.scanner }}}}" if alert.by_scanner else f"/d/{FLEET_UID}"
    return {
        "summary": alert.summary,
        "description": alert.description,
        "dashboard": board,
        "runbook_url": f"{RUNBOOK}#{alert.name.lower()}",
    }


class _Dumper(yaml.SafeDumper):
    """A dumper that writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _file(content: Mapping[str, Any]) -> str:
    return HEADER + yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
