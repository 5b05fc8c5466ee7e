"""A real Alertmanager is asked for its list: what was lost is put right, and of two services each gets its own."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from resilient_scan import ControlService, Quarantine, ScanRunner
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.service.process import Process
from resilient_scan.service.reconcile import Reconciler
from resilient_scan.testing import healthy
from tests.e2e.monitoring import alertmanager
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers
TOKEN = "a-token-of-this-test"
CONFIG = """
route:
  receiver: people
  group_wait: 0s
  routes:
    - {matchers: [job="ours"], receiver: ours.1}
    - {matchers: [job="theirs"], receiver: ours+1}
receivers: [{name: people}, {name: ours.1}, {name: ours+1}]
"""


@pytest.fixture
def runner() -> Iterator[ScanRunner]:
    scanners = [healthy(name) for name in ("alpha", "beta", "gamma", "delta")]
    with ScanRunner(scanners, listeners=(), quarantine=Quarantine(cooloff=3600)) as made:
        yield made


def firing(scanner: str, job: str = "ours", *, over: bool = False) -> dict[str, Any]:
    """Return an alert that fires, or that is over."""
    now = time.time()
    stamps = [
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in (now - 60, now - 1 if over else now + 3600)
    ]
    labels = {"alertname": "A", "scanner": scanner, "job": job, "resilient_scan_action": "disable"}
    return {"labels": labels, "startsAt": stamps[0], "endsAt": stamps[1]}


def post(url: str, *said: dict[str, Any]) -> None:
    request = Request(f"{url}/api/v2/alerts", json.dumps(said).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=5):
        pass


def tell(url: str, scanner: str, job: str = "ours", *, over: bool = False) -> None:
    """Tell Alertmanager that an alert fires, or that it is over; return once its list says so."""
    said = firing(scanner, job, over=over)
    labels = said["labels"]
    post(url, said)

    def listed() -> bool:
        with urlopen(f"{url}/api/v2/alerts?active=true", timeout=5) as answer:
            return labels in [{**each["labels"]} for each in json.load(answer)]

    eventually(lambda: listed() is not over, "its list says so")


def states(runner: ScanRunner) -> dict[str, str]:
    return {state.name: state.state for state in runner.scanners() if state.state != "enabled"}


def blocking(runner: ScanRunner, name: str) -> list[str]:
    (state,) = [state for state in runner.scanners() if state.name == name]
    return [seen.name for seen in state.evidence if seen.blocks]


def test_what_was_lost_on_the_way_is_put_right(
    tmp_path: Path, runner: ScanRunner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resilient_scan")
    with alertmanager(tmp_path, CONFIG) as url:
        reconciler = Reconciler(runner.reconcile, url, 3600)
        tell(url, "alpha")
        reconciler.once()
        assert states(runner) == {"alpha": "quarantined"}
        assert blocking(runner, "alpha") == ["A"]
        tell(url, "alpha", over=True)
        reconciler.once()
        assert states(runner) == {"alpha": "quarantined"}  # that it is over brings nobody back
        assert blocking(runner, "alpha") == []
        tell(url, "beta")
        reconciler.once()
    for _ in range(3):
        reconciler.once()
    assert blocking(runner, "beta") == ["A"]  # who does not answer says nothing
    with alertmanager(tmp_path, CONFIG, port=int(url.rpartition(":")[2])):
        reconciler.once()
        reconciler.once()
    told = [(record.levelname, record.message) for record in caplog.records if "Alertmanager" in record.message]
    assert [level for level, _ in told] == ["WARNING", "INFO"]
    assert told[0][1].startswith(f"Alertmanager at {url} gives no list of its alerts: ")
    assert told[1][1] == f"Alertmanager at {url} answers again"


def test_of_two_services_with_scanners_of_one_name_each_gets_its_own(tmp_path: Path, runner: ScanRunner) -> None:
    with alertmanager(tmp_path, CONFIG) as url:
        tell(url, "alpha", job="ours")
        tell(url, "beta", job="theirs")
        Reconciler(runner.reconcile, url, 3600, receiver="ours.1").once()
        assert states(runner) == {"alpha": "quarantined"}
        Reconciler(runner.reconcile, url, 3600, receiver="ours+1").once()
        assert states(runner) == {"alpha": "quarantined", "beta": "quarantined"}
        assert blocking(runner, "alpha") == []


def test_of_a_message_that_was_cut_off_the_rest_is_asked_for(tmp_path: Path, runner: ScanRunner) -> None:
    (tmp_path / "token").write_text(TOKEN)
    reconcilers: list[Reconciler] = []
    asked: list[None] = []

    def ask_again() -> None:
        reconcilers[0].ask_again()

    def reconcile(*arguments: Any, **named: Any) -> None:
        runner.reconcile(*arguments, **named)
        asked.append(None)

    process = Process(ask_again=ask_again)
    with ControlService(runner, TOKEN, registry=CollectorRegistry(), process=process) as service:
        receiver = {
            "url": f"{service.url}/alerts",
            "max_alerts": 1,
            "http_config": {"authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")}},
        }
        route = {"receiver": "controller", "group_by": ["alertname"], "group_wait": "0s"}
        config = {"route": route, "receivers": [{"name": "controller", "webhook_configs": [receiver]}]}
        with alertmanager(tmp_path, json.dumps(config)) as url:
            reconcilers.append(Reconciler(reconcile, url, 3600))
            reconcilers[0].start()
            eventually(lambda: asked, "it asks once when it starts")
            post(url, *(firing(name) for name in ("alpha", "beta")))
            eventually(lambda: set(states(runner)) == {"alpha", "beta"}, "both are known")
            reconcilers[0].stop()
