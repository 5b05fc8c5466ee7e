"""What lies around dashboards and rules: each file is read by the program that it is for, where that is here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.source.__main__ import HOME, made
from grafana.source.alerts import alerts
from grafana.source.conditions import recorded
from grafana.source.presets import PRESETS
from grafana.source.rules import DATASOURCE
from resilient_scan import load_settings
from resilient_scan.cli.export import PRESETS as PRESET_INTERVALS
from resilient_scan.observe.metrics.catalogue import BUCKETS
from tests.grafana.boards import REFERENCE
from tests.support.needed import binary

RUNBOOK = (HOME.parent / "docs" / "runbook.md").read_text()
FOLDERS = [HOME, HOME / "presets" / "cron"]
YAML = sorted(path for kind in ("*.yml", "*.yaml") for path in HOME.rglob(kind))
ROUTES = [
    ("alertname=ScannerErrorRatioHigh resilient_scan_action=disable scanner=a", "controller,people"),
    ("alertname=ResilientScanWatchdog resilient_scan_action=heartbeat", "controller"),
    ("alertname=ScannerStale severity=warning scanner=a", "people"),
    ("alertname=ProviderDown severity=critical provider=acme", "people"),
    ("alertname=SomebodyElses", "people"),
]


def read(path: str, folder: Path = HOME) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / path).read_text())
    return content


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(HOME)))
def test_yaml_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.servers
@pytest.mark.parametrize("folder", FOLDERS, ids=["service", "cron"])
def test_prometheus_takes_its_settings(folder: Path) -> None:
    run(binary("promtool"), "check", "config", str(folder / "prometheus" / "prometheus.yml"))


@pytest.mark.servers
def test_alertmanager_takes_its_settings() -> None:
    run(binary("amtool"), "check-config", str(HOME / "alertmanager" / "alertmanager.yml"))


@pytest.mark.servers
@pytest.mark.parametrize(("labels", "receivers"), ROUTES)
def test_alertmanager_sends_alerts_where_they_belong(labels: str, receivers: str) -> None:
    config = f"--config.file={HOME / 'alertmanager' / 'alertmanager.yml'}"
    assert run(binary("amtool"), "config", "routes", "test", config, *labels.split()).strip() == receivers


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alertmanager_repeats_often_enough() -> None:
    """The controller's lease is an hour, its heartbeat a minute; groups of several scanners would mix their ends."""
    route = read("alertmanager/alertmanager.yml")["route"]
    assert (route["group_by"], route["group_wait"]) == (["alertname", "scanner", "provider"], "0s")
    assert (route["group_interval"], route["repeat_interval"]) == ("10s", "15m")
    (to_controller,) = (each for each in route["routes"] if each["receiver"] == "controller" and "continue" in each)
    assert to_controller["repeat_interval"] == "2m"  # twice in the five minutes that ResilientScanFuseBlown looks back
    (webhook,) = read("alertmanager/alertmanager.yml")["receivers"][0]["webhook_configs"]
    assert webhook["send_resolved"] is True
    assert webhook["max_alerts"] == 500
    assert webhook["http_config"]["authorization"]["credentials_file"] == "/run/secrets/resilient-scan-token"


def test_nothing_that_the_controller_acts_on_is_inhibited() -> None:
    """What Alertmanager inhibits it does not send: the scanner would stay in service."""
    rules = read("alertmanager/alertmanager.yml")["inhibit_rules"]
    acted_on = {alert.name for preset in PRESETS.values() for alert in alerts(preset) if alert.action}
    assert rules
    for rule in rules:
        assert 'resilient_scan_action=""' in rule["target_matchers"]
        (names,) = [text for text in rule["target_matchers"] if text.startswith("alertname")]
        assert not [name for name in acted_on if re.fullmatch(names.partition('"')[2].rstrip('"'), name)]


def test_grafana_sends_alerts_where_they_belong() -> None:
    (policy,), (point,) = (
        read("alerting/policies.yml")["policies"],
        read("alerting/contact-points.yml")["contactPoints"],
    )
    routes = {tuple(route["object_matchers"][0]): route["receiver"] for route in policy["routes"]}
    assert routes["resilient_scan_action", "=", "disable"] == point["name"] == "controller"
    assert routes["resilient_scan_action", "=", "heartbeat"] == "controller"
    assert routes["resilient_scan_action", "!=", "heartbeat"] == policy["receiver"] != "controller"
    (receiver,) = point["receivers"]
    assert (receiver["type"], receiver["settings"]["url"]) == ("webhook", "http://resilient-scan:9108/alerts")


def test_the_data_source_is_the_one_that_is_asked() -> None:
    (source,) = read("provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["uid"], source["type"]) == (DATASOURCE, REFERENCE["type"])
    for path, text in made().items():
        if path.endswith("alerting/rules.yml"):
            assert set(re.findall(r"datasourceUid: (\S+)", text)) == {DATASOURCE, "__expr__"}


@pytest.mark.parametrize("folder", FOLDERS, ids=["service", "cron"])
def test_compose_mounts_what_is_there(folder: Path) -> None:
    """There is no container engine here: what can be known of the file without one."""
    compose = read("compose.yaml", folder)
    assert {"resilient-scan", "prometheus", "alertmanager", "grafana"} <= set(compose["services"])
    for service in compose["services"].values():
        assert ("image" in service) is not ("build" in service)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (HOME / source).exists() if source.startswith(".") else source in compose["volumes"]
    names = re.findall(r"http://([\w-]+):\d+", "".join(path.read_text() for path in YAML))
    config = (folder / "prometheus" / "prometheus.yml").read_text()
    names += re.findall(r'targets: \["([\w-]+):', config)
    assert set(names) - {"127"} <= set(compose["services"])


def test_the_service_takes_its_settings() -> None:
    settings = load_settings(HOME / "resilient-scan.toml", environ={})
    assert settings.service.listen == "0.0.0.0:9108"
    assert settings.service.token_file == "/run/secrets/resilient-scan-token"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_every_alert_has_a_page_in_the_runbook(preset: Any) -> None:
    titles = re.findall(r"(?m)^#+ (.*)$", RUNBOOK)
    anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
    for alert in alerts(preset):
        assert alert.name.lower() in anchors, f"the runbook has no heading {alert.name}"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_the_histogram_has_an_edge_at_every_threshold(preset: Any) -> None:
    """Between two edges nothing is known: 11 s and 29 s are in the same bucket. A quantile would only guess."""
    edges = {f"{float(edge)}" for edge in BUCKETS}
    for alert in alerts(preset):
        for case in alert.cases:
            for comparison in case:
                assert set(re.findall(r'le="([^"]+)"', comparison.left)) <= edges, alert.name
                quantile = "histogram_quantile" in comparison.left
                assert not quantile or str(float(comparison.right)) in edges, alert.name
    assert f"{float(preset.latency)}" in edges
    looked_at = {edge for counter, _ in recorded(preset) for edge in re.findall(r'le="([^"]+)"', counter.selector)}
    assert looked_at == {f"{float(preset.latency)}"}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_the_command_knows_how_often_runs_have_to_come(preset: Any) -> None:
    assert PRESET_INTERVALS[preset.name] == preset.fits


def test_the_runbook_says_what_to_do() -> None:
    for name in {alert.name for preset in PRESETS.values() for alert in alerts(preset)}:
        page = re.split(r"(?m)^#+ ", RUNBOOK.partition(f"## {name}\n")[2])[0]
        assert len(page) > 60, name
        if "as above" not in page.lower():
            assert all(word in page for word in ("**Means**", "**Look at**", "**Do**")), name


def test_the_runbook_has_no_page_too_many() -> None:
    known = {alert.name for preset in PRESETS.values() for alert in alerts(preset)}
    assert set(re.findall(r"(?m)^## ((?:Scanner|Provider|ResilientScan)\w+)$", RUNBOOK)) == known
