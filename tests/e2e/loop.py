"""The whole loop with real servers: Prometheus with our rules, Alertmanager with our configuration, a service of ours.

The built-in policy holds, and all that is shorter than in production is how often something happens: runs, scrapes,
evaluations, messages, heartbeats, and with them the cache's lifetime (as long as a run's interval) and the windows.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from grafana.source.__main__ import HOME
from grafana.source.presets import SERVICE, Preset, Window
from grafana.source.rules import prometheus as rules_of
from tests.e2e.monitoring import Api, alertmanager, prometheus
from tests.e2e.served import READ_TOKEN, Served, Switches, configured, serving
from tests.support.waiting import eventually

JOB = "resilient-scan"
FAST: Preset = replace(
    SERVICE,
    windows=(Window("4s", 3),),
    pending="500ms",
    keep="1s",
    evaluation="250ms",
    long="30s",
    heartbeat=3,
)
RUNS = ("--every", "500ms", "--jitter", "0", "--deadline", "400ms")
SETTINGS = """
[defaults]
cache = { ttl = "400ms" }

[quarantine]
cooloff = "1s"
cooloff_cap = "4s"
heartbeat = "1s"
"""


def alerting(token: Path, *ports: int) -> str:
    """Return the shipped configuration of Alertmanager, with what is particular to this test."""
    text = (HOME / "alertmanager" / "alertmanager.yml").read_text()
    entry = next(iter(re.findall(r"(?m)^      - url: http://resilient-scan:9108.*\n(?:        .*\n)+", text)))
    text = text.replace(entry, "".join(entry.replace("resilient-scan:9108", f"127.0.0.1:{port}") for port in ports))
    for shipped, ours in [
        ("/run/secrets/resilient-scan-token", str(token)),
        ("group_interval: 10s", "group_interval: 250ms"),
        ("repeat_interval: 1m ", "repeat_interval: 1s "),
    ]:
        assert shipped in text
        text = text.replace(shipped, ours)
    return text


def watching(folder: Path, token: Path | None, alerts_to: int, *ports: int) -> dict[str, Any]:
    """Write our rules, and return Prometheus's configuration for services at these ports, read with a token if any."""
    (folder / "alerts.yml").write_text(rules_of(FAST))
    return {
        "global": {"scrape_interval": "250ms", "evaluation_interval": "250ms"},
        "rule_files": ["alerts.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts_to}"]}]}]},
        "scrape_configs": [
            {
                "job_name": JOB,
                **({} if token is None else {"authorization": {"credentials_file": str(token)}}),
                "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
            }
        ],
    }


class Loop:
    """A fleet, the service that runs it, and the two servers that watch it."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.switches = Switches(folder, *names)
        self._ports = {"service": 0, "alertmanager": 0}
        self._stacks: dict[str, ExitStack] = {}
        self.served: Served
        self.prometheus: Api
        self.alertmanager = ""

    # the parts: each may be stopped and started again, at the place where it was

    def start_service(self) -> None:
        config = configured(self.folder, listen=f"127.0.0.1:{self._ports['service']}", read_token=True, more=SETTINGS)
        if self.alertmanager:
            asks = f'[service]\nalertmanager = "{self.alertmanager}"\nreconcile = "1s"'
            config.write_text(config.read_text().replace("[service]", asks))
        self.served = self._stack("service").enter_context(serving(self.switches, config, *RUNS))
        self.served.reads = {"Authorization": f"Bearer {READ_TOKEN}"}
        self._ports["service"] = int(self.served.url.rpartition(":")[2])

    def start_alertmanager(self) -> None:
        folder = self.folder / "alertmanager"
        folder.mkdir(exist_ok=True)
        config = alerting(self.folder / "token", self._ports["service"])
        stack = self._stack("alertmanager")
        self.alertmanager = stack.enter_context(alertmanager(folder, config, port=self._ports["alertmanager"]))
        self._ports["alertmanager"] = int(self.alertmanager.rpartition(":")[2])

    def start_prometheus(self) -> None:
        folder = self.folder / "prometheus"
        folder.mkdir(exist_ok=True)
        config = watching(folder, self.folder / "reading", self._ports["alertmanager"], self._ports["service"])
        self.prometheus = self._stack("prometheus").enter_context(prometheus(folder, config))

    def stop(self, part: str) -> None:
        self._stacks.pop(part).close()

    def close(self) -> None:
        for part in ("prometheus", "alertmanager", "service"):
            if part in self._stacks:
                self.stop(part)

    def _stack(self, part: str) -> ExitStack:
        assert part not in self._stacks
        return self._stacks.setdefault(part, ExitStack())

    # what is going on

    def first_fired(self, name: str) -> float:
        """Return when the first evaluation was in which a rule that disables held for a scanner, epoch seconds."""
        query = f'ALERTS{{scanner="{name}", resilient_scan_action="disable"}}[1h]'
        return float(min(value[0] for series in self.prometheus.instant(query) for value in series["values"]))

    def quarantined_at(self, name: str) -> float:
        """Return when a scanner was quarantined first."""
        entries = self.served.get("/audit?limit=1000")["entries"]
        return float(min(each["at"] for each in entries if each["scanner"] == name and each["to"] == "quarantined"))

    def firing(self, name: str) -> set[str]:
        """Return the alerts that fire for a scanner, as Prometheus sees them."""
        found = self.prometheus.instant(f'ALERTS{{scanner="{name}", alertstate="firing"}}')
        return {series["metric"]["alertname"] for series in found}

    def out(self) -> set[str]:
        """Return the scanners that alerts have taken out of service."""
        return {name for name, state in self.served.states().items() if state in {"quarantined", "probing"}}

    def resolved(self, names: set[str]) -> bool:
        """Say whether of all these scanners all alerts are said to be over."""
        rows = [row for row in self.served.get("/scanners")["scanners"] if row["name"] in names]
        return not any(seen["status"] == "firing" for row in rows for seen in row["evidence"])

    def send(self, path: str, body: Any) -> Any:
        """Tell Alertmanager something."""
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(f"{self.alertmanager}{path}", json.dumps(body).encode(), headers), timeout=5) as answer:
            text = answer.read().decode()
        return json.loads(text) if text else None

    def silence(self, **labels: str) -> None:
        """Silence alerts for an hour."""
        now = time.time()
        stamps = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in (now - 5, now + 3600)]
        matchers = [{"name": key, "value": value, "isRegex": False, "isEqual": True} for key, value in labels.items()]
        body = {
            "matchers": matchers,
            "createdBy": "test",
            "comment": "test",
            "startsAt": stamps[0],
            "endsAt": stamps[1],
        }
        self.send("/api/v2/silences", body)

    def heartbeats(self) -> float:
        """Return when the last heartbeat came, as the metric has it."""
        return metric(self.served, "resilient_scan_alert_last_heartbeat_timestamp_seconds")


def metric(served: Served, series: str) -> float:
    found = re.search(rf"(?m)^{re.escape(series)} (\S+)$", served.text("/metrics"))
    assert found is not None, series
    return float(found[1])


@contextmanager
def closing_loop(folder: Path, *names: str, moods: dict[str, str]) -> Iterator[Loop]:
    """Start all parts, and yield once a heartbeat has gone all the way round."""
    loop = Loop(folder, *names)
    for name, mood in moods.items():
        loop.switches.turn(name, mood)
    try:
        loop.start_service()
        loop.start_alertmanager()
        loop.start_prometheus()
        eventually(lambda: loop.heartbeats() > 0, "no heartbeat came round")
        yield loop
    finally:
        loop.close()
