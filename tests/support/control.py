"""A control service for tests, and clients for it: a polite one, and one that sends whatever bytes it likes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import re
import socket
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from resilient_scan import ControlService, ScanRunner
from resilient_scan.observe.metrics import CollectorRegistry, exposition
from tests.support.waiting import WAIT_TIMEOUT

TOKEN = "open-sesame-42"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BASIC = {"Authorization": "Basic " + base64.b64encode(f"anna:{TOKEN}".encode()).decode()}
JSON = {"Content-Type": "application/json"}


class Answer(msgspec.Struct):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, code and message of an error, which must have nothing beside them."""
        said = self.json
        assert list(said) == ["error"]
        assert list(said["error"]) == ["code", "message"]
        return self.status, said["error"]["code"], said["error"]["message"]


class Served:
    """A started service, and how it is talked to."""

    def __init__(self, service: ControlService, runner: ScanRunner, registry: CollectorRegistry) -> None:
        self.service, self.runner, self.registry = service, runner, registry
        parts = urllib.parse.urlsplit(service.url)
        self.address = ((parts.hostname or "").replace("0.0.0.0", "127.0.0.1"), parts.port or 0)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=WAIT_TIMEOUT)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """Look at something."""
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, said: Any, headers: Mapping[str, str] = BEARER) -> Answer:
        """Change something, with the token unless other headers are given."""
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        return self.ask("POST", path, body, {**JSON, **headers})

    def connect(self) -> socket.socket:
        """Open a connection to send bytes through."""
        return socket.create_connection(self.address, timeout=WAIT_TIMEOUT)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the service closes."""
        with self.connect() as wire:
            wire.sendall(data)
            return rest(wire)

    def state(self, name: str) -> str:
        """How a scanner stands, as the runner says."""
        return next(state.state for state in self.runner.scanners() if state.name == name)

    def webhooks(self) -> dict[tuple[str, str], int]:
        """What was counted of alerts, without the zeros."""
        text = exposition(self.registry, "")[1].decode()
        pattern = r'^resilient_scan_alert_webhooks_total\{result="(\w+)",source="(\w+)"\} ([\d.]+)$'
        found = re.findall(pattern, text, re.MULTILINE)
        assert found
        return {(source, result): int(float(count)) for result, source, count in found if float(count)}


def rest(wire: socket.socket) -> bytes:
    """Return what comes until the other end closes."""
    data = b""
    while chunk := wire.recv(65536):
        data += chunk
    return data


def until(wire: socket.socket, mark: bytes) -> bytes:
    """Return what comes until it ends with a mark: head and body of an answer may come apart."""
    data = b""
    while not data.endswith(mark) and (chunk := wire.recv(65536)):
        data += chunk
    return data


def until_cut(wire: socket.socket, data: bytes, most: int, between: Callable[[], object] = lambda: None) -> int:
    """Send the same bytes, at most `most` times, until the other end has enough; return how many went."""
    sent = 0
    for _ in range(most):
        try:
            wire.sendall(data)
        except OSError:
            break
        sent += len(data)
        between()
    return sent


def head(method: str, path: str, **headers: str | int) -> bytes:
    """Write a request's head, with the token."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {TOKEN}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def alert(scanner: Any = "gamma", status: str = "firing", **fields: Any) -> dict[str, Any]:
    """Make one alert, as Alertmanager sends it; a field `labels` adds to its labels."""
    labels = {"alertname": "ScannerErrorRatioHigh", "resilient_scan_action": "disable", "severity": "critical"}
    if scanner is not None:
        labels["scanner"] = scanner
    labels.update(fields.pop("labels", {}))
    return {
        "status": status,
        "labels": labels,
        "annotations": {"summary": f"{scanner} fails"},
        "startsAt": "2026-11-24T06:32:20.887Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.test/graph",
        "fingerprint": f"a992dffc315e{scanner}",
        **fields,
    }


def alertmanager(*alerts: Any, **fields: Any) -> dict[str, Any]:
    """Make a webhook's payload as Alertmanager sends it."""
    return {
        "receiver": "control",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.test",
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        **fields,
    }


def grafana(*alerts: Any, **fields: Any) -> dict[str, Any]:
    """Make one as Grafana sends it."""
    more = {"orgId": 1, "title": "[FIRING:1]", "state": "alerting", "message": "**Firing**", "version": "1"}
    mine = [{**each, "values": {"A": 1}, "silenceURL": "http://grafana.test", "imageURL": ""} for each in alerts]
    return {**alertmanager(*mine), **more, **fields}


def signed(body: bytes, at: float, *, key: str = TOKEN) -> dict[str, str]:
    """Sign a body as Grafana does."""
    stamp = str(int(at))
    signature = hmac.new(key.encode(), f"{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Grafana-Alerting-Signature": signature, "X-Grafana-Alerting-Timestamp": stamp}


def counts(**told: int) -> dict[str, int]:
    """What `/alerts` answers; zero unless said."""
    results = ("accepted", "duplicate", "unknown_scanner", "refused", "overruled", "ignored")
    return {**dict.fromkeys(results, 0), **told}
