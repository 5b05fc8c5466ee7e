"""The shipped configuration in a real Alertmanager: what the controller is sent, how, and when."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from grafana.source.__main__ import HOME
from tests.e2e.monitoring import WAIT_TIMEOUT, alertmanager

pytestmark = pytest.mark.servers
TOKEN = "a-token-of-this-test"


class Controller:
    """Stands where the service would, and keeps what it is sent."""

    def __init__(self) -> None:
        self.heard: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard.put((f"{self.path} {self.headers['Authorization']}", json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def next(self) -> tuple[str, dict[str, Any]]:
        return self.heard.get(timeout=WAIT_TIMEOUT)


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.server.shutdown()
    made.server.server_close()


def send(url: str, *alerts: dict[str, Any]) -> None:
    request = Request(f"{url}/api/v2/alerts", json.dumps(alerts).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=WAIT_TIMEOUT) as response:
        assert response.status == 200


def alert(name: str, **labels: str) -> dict[str, Any]:
    return {"labels": {"alertname": name, **labels}, "annotations": {"summary": f"{name} is why"}}


def test_only_what_is_for_the_controller_reaches_it(tmp_path: Path, controller: Controller) -> None:
    (tmp_path / "token").write_text(TOKEN)
    config = (HOME / "alertmanager" / "alertmanager.yml").read_text()
    config = config.replace("http://resilient-scan:9108", f"http://127.0.0.1:{controller.server.server_port}")
    config = config.replace("/run/secrets/resilient-scan-token", str(tmp_path / "token"))
    config = config.replace("group_interval: 10s", "group_interval: 250ms")
    ill = alert("ScannerErrorRatioHigh", scanner="gamma", job="a", resilient_scan_action="disable", severity="critical")
    with alertmanager(tmp_path, config) as url:
        send(url, alert("ScannerStale", scanner="gamma", job="a", severity="warning"), alert("Else"), ill)
        how, message = controller.next()
        assert how == f"/alerts Bearer {TOKEN}"
        assert (message["version"], message["receiver"], message["status"]) == ("4", "controller", "firing")
        (only,) = message["alerts"]
        assert only["labels"] == ill["labels"]

        send(url, alert("ResilientScanWatchdog", resilient_scan_action="heartbeat", severity="none"))
        _, message = controller.next()
        assert [each["labels"]["alertname"] for each in message["alerts"]] == ["ResilientScanWatchdog"]

        send(url, {**ill, "endsAt": "2026-01-01T00:00:00Z", "startsAt": "2025-12-31T00:00:00Z"})
        _, message = controller.next()
        assert [(each["status"], each["labels"]["scanner"]) for each in message["alerts"]] == [("resolved", "gamma")]
        assert controller.heard.empty()


def test_a_provider_that_is_down_inhibits_only_what_the_controller_does_not_act_on(
    tmp_path: Path, controller: Controller
) -> None:
    """Three scanners of a dead provider are one message for people; each is still taken out of service."""
    config = (HOME / "alertmanager" / "alertmanager.yml").read_text()
    config = config.replace("http://resilient-scan:9108", f"http://127.0.0.1:{controller.server.server_port}")
    (tmp_path / "token").write_text(TOKEN)
    config = config.replace("/run/secrets/resilient-scan-token", str(tmp_path / "token"))
    here = {"job": "a", "instance": "a:1", "provider": "acme"}
    budget = {"job": "a", "provider": "acme"}  # of all replicas together
    inhibited = [
        alert("ScannerStale", scanner="x", **here),
        alert("ScannerLatencyHigh", scanner="y", **here),
        alert("ScannerQuarantinedLong", scanner="z", **here),
        alert("ScannerErrorBudgetBurn14x", scanner="x", **budget),
    ]
    ill = alert("ScannerErrorRatioHigh", scanner="y", resilient_scan_action="disable", **here)
    mine = alert("ScannerStale", scanner="z", resilient_scan_action="disable", **here)  # somebody's own rule
    heard = [
        alert("ProviderDown", **here),
        ill,
        mine,
        alert("ResilientScanWatchdog", resilient_scan_action="heartbeat"),
        alert("ScannerStale", scanner="other", job="a", instance="a:1", provider="else"),
        alert("ScannerStale", scanner="x", job="a", instance="b:1", provider="acme"),
        alert("ScannerStale", scanner="alone", job="a", instance="a:1"),
        alert("ScannerSuspiciouslyEmpty", scanner="x", **here),
    ]
    with alertmanager(tmp_path, config) as url:
        send(url, *heard, *inhibited)
        messages = [controller.next() for _ in range(3)]
        sent = {
            (each["labels"]["alertname"], each["labels"].get("scanner"))
            for _, one in messages
            for each in one["alerts"]
        }
        assert sent == {("ScannerErrorRatioHigh", "y"), ("ScannerStale", "z"), ("ResilientScanWatchdog", None)}
        with urlopen(f"{url}/api/v2/alerts", timeout=WAIT_TIMEOUT) as response:
            known = json.load(response)
    quiet = [each["labels"] for each in known if each["status"]["inhibitedBy"]]
    assert sorted(quiet, key=str) == sorted((each["labels"] for each in inhibited), key=str)
    assert len(known) == len(heard) + len(inhibited)
