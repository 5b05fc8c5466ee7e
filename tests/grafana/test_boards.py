"""Dashboards and rules as files: made from the source, valid, clean, and true to the metrics that there are."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from grafana.source import theme
from grafana.source.__main__ import HOME, dashboards, made
from grafana.source.alerts import alerts
from grafana.source.presets import PRESETS
from resilient_scan.observe.metrics import families
from tests.grafana.boards import BOARDS, board, expressions, findings, panels, queries, strangers, text
from tests.support.needed import testdata as folder_of

RUNBOOK = (HOME.parent / "docs" / "runbook.md").read_text()
FILES = made()
RULES = [path for path in FILES if path.endswith(".yml")]
PARTS = {"state-timeline": "statetimeline"}
HEAD, CELL, FOLD = 112, 38, 1080  # pixels: what is above the panels, one unit of the grid, a screen


@pytest.mark.parametrize("path", FILES)
def test_what_is_committed_is_what_the_source_makes(path: str) -> None:
    assert (HOME / path).read_text() == FILES[path], "run: uv run --group dev python -m grafana.source"


def test_another_process_makes_the_same() -> None:
    """Nothing hangs on the order of a set, the time or chance."""
    program = "import hashlib, grafana.source.__main__ as w; print(hashlib.sha256(repr(w.made()).encode()).hexdigest())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=HOME.parent,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize("name", BOARDS)
def test_the_linter_finds_nothing(name: str) -> None:
    assert findings(board(name)) == []


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in way:
            content = content[part]
        content[last] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (_set("editable", True), "can be edited"),
        (_set("templating/list/1/allValue", ".*"), "variable job: allValue"),
        (_set("panels/1/description", ""), "no description"),
        (_set("panels/1/fieldConfig/defaults/unit", ""), "no unit"),
        (_set("panels/1/type", "graph"), "type graph"),
        (_set("panels/1/datasource", {"type": "prometheus", "uid": "mine"}), "a data source of its own"),
        (_set("panels/1/targets/0/expr", "sum(resilient_scan_runs_total{})"), "without job"),
        (
            _set("panels/1/targets/0/expr", 'sum(x_total{job=~"$job",instance=~"$instance"})'),
            "outside of increase",
        ),
        (
            _set("panels/1/targets/0/expr", 'increase(x_total{job=~"$job",instance=~"$instance"}[5m])'),
            "increase over 5m",
        ),
        (_set("panels/1/options/reduceOptions/calcs", []), "no calculation"),
    ],
)
def test_the_linter_sees(change: Callable[[dict[str, Any]], None], finding: str) -> None:
    content = copy.deepcopy(board("fleet"))
    change(content)
    assert any(finding in each for each in findings(content)), findings(content)


@pytest.mark.parametrize("name", BOARDS)
def test_the_schema_of_grafana_holds(name: str) -> None:
    folder = folder_of("grafana-schema")
    content = board(name)
    assert _errors(folder, "dashboard", None, content) == []
    for panel in panels(content):
        part = PARTS.get(panel["type"], panel["type"])
        assert _errors(folder, part, "Options", panel["options"]) == [], panel["title"]
        if panel["type"] in {"timeseries", "table", "state-timeline"}:
            custom = panel["fieldConfig"]["defaults"].get("custom", {})
            assert _errors(folder, part, "FieldConfig", custom) == [], panel["title"]
        for target in panel["targets"]:
            assert _errors(folder, "prometheus", "Dataquery", target) == [], panel["title"]
    units = json.loads((folder / "units.jsonschema.json").read_text())
    known = set(re.findall(r'"const": "([^"]+)"', json.dumps(units))) | set(re.findall(r'"([^"]+)"', json.dumps(units)))
    assert units_of(content) <= known


def units_of(content: dict[str, Any]) -> set[str]:
    configs = [panel["fieldConfig"] for panel in panels(content)]
    properties = [each for config in configs for override in config["overrides"] for each in override["properties"]]
    overridden = {each["value"] for each in properties if each["id"] == "unit"}
    return {config["defaults"]["unit"] for config in configs} | overridden


def _errors(folder: Path, file: str, part: str | None, thing: Any) -> list[str]:
    schema = json.loads((folder / f"{file}.jsonschema.json").read_text())
    schema = schema if part is None else {**schema, "$ref": f"#/definitions/{part}"}
    if file == "dashboard":  # it knows only objects, but a unit is a string, and the number of decimals a number
        del schema["definitions"]["DynamicConfigValue"]["properties"]["value"]["type"]
    return [
        f"{error.json_path}: {error.message}"[:300] for error in jsonschema.Draft7Validator(schema).iter_errors(thing)
    ]


@pytest.mark.parametrize("name", BOARDS)
def test_dashboards_name_only_what_the_code_has(name: str) -> None:
    assert [stranger for expression in expressions(board(name)) for stranger in strangers(expression)] == []
    for title, target in queries(board(name)):
        for label in re.findall(r"{{(\w+)}}", target.get("legendFormat", "")):
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), f"{title}: no label {label}"


@pytest.mark.parametrize("path", RULES)
def test_rules_name_only_what_the_code_has(path: str) -> None:
    assert [*strangers(FILES[path].replace('\\"', '"').replace("=%q", '=".*"'))] == []
    assert len(re.findall(r"resilient_scan_\w+", FILES[path])) > 5


@pytest.mark.parametrize(
    "expression",
    [
        "resilient_scan_scan_total",
        'resilient_scan_scans_total{state="completed"}',
        'resilient_scan_scans_total{status=~"completed|cashed"}',
        "resilient_scan_execution_duration_seconds",
    ],
)
def test_a_name_that_the_code_lacks_is_seen(expression: str) -> None:
    assert [*strangers(expression)] != []


def test_every_metric_is_looked_at() -> None:
    """A metric on no dashboard and in no rule is one that nobody will find."""
    asked = " ".join([*(text(name) for name in BOARDS), *(FILES[path] for path in RULES)])
    unused = [family.name for family in families() if not re.search(rf"\b{family.name}(_bucket|_sum|_count)?\b", asked)]
    assert unused == []


@pytest.mark.parametrize("name", BOARDS)
def test_the_rows_are_now_failures_speed_and_machine(name: str) -> None:
    rows = [panel["title"] for panel in board(name)["panels"] if panel["type"] == "row"]
    assert rows == ["Now", "Failures", "Speed", "Machine"]
    above = [panel["title"] for panel in panels(board(name)) if HEAD + CELL * panel["gridPos"]["y"] < FOLD]
    assert 8 < len(above) <= 12, above


@pytest.mark.parametrize("name", BOARDS)
def test_nothing_is_counted_per_second(name: str) -> None:
    """At a run every minute nobody thinks in 0.0167 ops/s."""
    assert units_of(board(name)) == {"none", "percentunit", "s", "dtdurations"}
    assert "rate(" not in text(name)


MEANING = {
    "closed": "green",
    "half-open": "semi-dark-yellow",
    "OPEN": "red",
    "enabled": "green",
    "probing": "semi-dark-yellow",
    "QUARANTINED": "red",
    "DISABLED by hand": "purple",
    "held": "yellow",
    "DOWN": "red",
}
OF_ONE = {"steady": "green", "FLAPPING": "orange"}  # on the dashboard of one scanner


@pytest.mark.parametrize("name", BOARDS)
def test_the_colour_of_a_state_is_what_it_means(name: str) -> None:
    timelines = [panel for panel in panels(board(name)) if panel["type"] == "state-timeline"]
    seen = {}
    for panel in timelines:
        assert panel["fieldConfig"]["defaults"]["color"]["mode"] == "thresholds"
        (words,) = panel["fieldConfig"]["defaults"]["mappings"]
        seen |= {each["text"]: each["color"] for each in words["options"].values()}
    expected = (4, MEANING | OF_ONE) if name == "scanner" else (3, MEANING)
    assert (len(timelines), seen) == expected
    assert not any("breaker_state" in query["expr"] for _, query in queries_of(name, "timeseries"))


def queries_of(name: str, kind: str) -> list[tuple[str, dict[str, Any]]]:
    titles = {panel["title"] for panel in panels(board(name)) if panel["type"] == kind}
    return [(title, query) for title, query in queries(board(name)) if title in titles]


def test_what_is_worst_comes_first() -> None:
    words = [word for word, _ in reversed(theme.VERDICT.values())]
    asked = ["THREADS HANG", "QUARANTINED", "FAILING", "DISABLED by hand"]
    assert [word for word in words if word in asked] == asked
    assert words.index("fails at times") < words.index("DISABLED by hand")


@pytest.mark.parametrize("name", BOARDS)
def test_without_urls_no_link_leaves_grafana(name: str) -> None:
    urls = re.findall(r'"url": "([^"]*)"', text(name))
    assert urls
    assert all(url.startswith("/d/resilient-scan-") for url in urls)


SHOWN_AT, RUNBOOK_AT = "https://scan.test/here", "https://docs.test/runbook.md"


@pytest.mark.parametrize("name", BOARDS)
def test_with_urls_panels_lead_to_the_runbook_and_dashboards_to_the_control_page(name: str) -> None:
    content = json.loads(dashboards(f"{SHOWN_AT}/", RUNBOOK_AT)[f"dashboards/{name}.json"])
    assert _errors(folder_of("grafana-schema"), "dashboard", None, content) == []
    page = {"fleet": f"{SHOWN_AT}/", "scanner": f"{SHOWN_AT}/page/${{scanner}}"}[name]
    assert [(link["title"], link["url"]) for link in content["links"][1:]] == [
        ("Control page", page),
        ("Runbook", RUNBOOK_AT),
    ]
    linked = [panel for panel in panels(content) if panel.get("links")]
    assert len(linked) > len(panels(content)) / 2
    for panel in linked:
        (link,) = panel["links"]
        heading = link["title"].removeprefix("Runbook: ")
        assert f"Runbook: {heading}" in panel["description"]
        assert link["url"] == f"{RUNBOOK_AT}#{heading.lower()}"
        assert re.search(rf"(?m)^## {heading}$", RUNBOOK), heading
    assert (f"{SHOWN_AT}/page/${{__data.fields.Scanner}}" in json.dumps(content)) is (name == "fleet")


def test_the_dashboards_link_to_each_other() -> None:
    uids = {name: board(name)["uid"] for name in BOARDS}
    chosen = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", "job", "instance", "window"))
    assert [link["url"] for link in board("fleet")["links"]] == [f"/d/{uids['scanner']}?{chosen}"]
    assert [link["url"] for link in board("scanner")["links"]] == [f"/d/{uids['fleet']}?{chosen}"]
    assert f"/d/{uids['scanner']}?var-scanner=${{__data.fields.Scanner}}" in text("fleet")
    for path in RULES:
        assert set(re.findall(r"dashboard: /d/([\w-]+)", FILES[path])) <= set(uids.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_both_forms_say_the_same(preset: str) -> None:
    folder = "" if preset == "service" else f"presets/{preset}/"
    plain = yaml.safe_load(FILES[f"{folder}prometheus/alerts.yml"])["groups"][0]["rules"]
    managed = yaml.safe_load(FILES[f"{folder}alerting/rules.yml"])["groups"][0]["rules"]
    for rule, other in zip(plain, managed, strict=True):
        rule["labels"].pop("provider", None)  # Grafana neither asks from within labels nor inhibits
        assert (rule["alert"], rule["labels"], rule["annotations"]) == (
            other["title"],
            other["labels"],
            other["annotations"],
        )
        assert rule.get("for", "0s") == other["for"]
        assert rule.get("keep_firing_for", "0s") == other["keep_firing_for"]
        assert len(other["uid"]) <= 40


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_only_these_take_scanners_out_of_service(preset: Any) -> None:
    disable = {alert.name for alert in alerts(preset) if alert.labels.get("resilient_scan_action") == "disable"}
    heartbeat = {alert.name for alert in alerts(preset) if alert.labels.get("resilient_scan_action") == "heartbeat"}
    assert disable == {"ScannerErrorRatioHigh", "ScannerTimeoutRatioHigh", "ScannerOutOfService"}
    assert heartbeat == {"ResilientScanWatchdog"}
