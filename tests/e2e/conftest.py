"""A store for several processes; one Prometheus for all the dashboards: it needs five seconds for its first scrape."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grafana.source.__main__ import HOME
from tests.e2e.monitoring import Api, prometheus

FLEET = Path(__file__).with_name("live_fleet.py")
LIFETIME = 900  # seconds, in which the tests that look at the fleet are over however slow the machine is


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.servers)])
def url(request: pytest.FixtureRequest, quick_path: Path) -> str:
    """Return where several processes keep their state, in each kind of store that they can share."""
    if request.param == "sqlite":
        return f"sqlite:///{quick_path}/scan.db"
    found: str = request.getfixturevalue("own_redis").url
    return found


@contextmanager
def live_fleet(calm: float, lifetime: float) -> Iterator[str]:
    """Start the fleet in a process of its own and yield the address of its metrics, `127.0.0.1:PORT`."""
    command = [sys.executable, str(FLEET), str(calm), str(lifetime)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip().removeprefix("http://")
        finally:
            process.kill()


def often(name: str, folder: Path) -> str:
    """Copy shipped rules, to be evaluated twice a second: Prometheus lets a group wait its interval at first."""
    text, changed = re.subn(r"(?m)^  interval: .*$", "  interval: 500ms", (HOME / "prometheus" / name).read_text())
    assert changed
    (folder / name).write_text(text)
    return name


@pytest.fixture(scope="module")
def live_prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Prometheus over a live fleet in which every kind of trouble has shown, with the shipped rules loaded."""
    folder = tmp_path_factory.mktemp("prometheus")
    with live_fleet(calm=3, lifetime=LIFETIME) as target:
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [often(name, folder) for name in ("recording.yml", "alerts.yml")],
            "scrape_configs": [{"job_name": "resilient-scan", "static_configs": [{"targets": [target]}]}],
        }
        with prometheus(folder, config) as api:
            api.wait_for('resilient_scan_scanner_state{state="disabled"} == 1')
            api.wait_for(
                'increase(resilient_scan_scanner_transitions_total{to="quarantined"}[1m])'
            )  # needs two samples
            api.wait_for("resilient_scan_late_completion_duration_seconds_count > 0")
            api.wait_for('rate(resilient_scan_scans_total{status="stale"}[5s]) > 0')
            for name in ("insider_buying", "reddit_dd"):
                api.wait_for(f'ALERTS{{alertname="ScannerOutOfService",scanner="{name}"}}')
            yield api
