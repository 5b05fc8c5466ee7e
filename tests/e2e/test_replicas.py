"""Three replicas of one fleet behind one Prometheus and one Alertmanager, with the rules that we ship.

Each has a store of its own and gets every message; what is about one of them is for that one only. Nobody has said to
them which is which: they learn it from being scraped.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.loop import RUNS, SETTINGS, alerting, metric, watching
from tests.e2e.monitoring import Api, alertmanager, prometheus
from tests.e2e.served import Served, Switches, configured, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers
TORN, STEADY = "torn", "steady"
IGNORED = 'resilient_scan_alert_webhooks_total{result="ignored",source="alertmanager"}'
HEARTBEAT = "resilient_scan_alert_last_heartbeat_timestamp_seconds"


class Replicas:
    """Three services, and the two servers that watch them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.homes, self.stack = [folder / name for name in "abc"], stack
        for home in self.homes:
            home.mkdir()
        self.switches = [Switches(home, TORN, STEADY) for home in self.homes]
        configs = [configured(home, more=SETTINGS) for home in self.homes]
        self.served: list[Served] = [
            stack.enter_context(serving(switches, config, *RUNS))
            for switches, config in zip(self.switches, configs, strict=True)
        ]
        ports = [int(served.url.rpartition(":")[2]) for served in self.served]
        self.alertmanager = stack.enter_context(alertmanager(folder, alerting(self.homes[0] / "token", *ports)))
        config = watching(folder, None, int(self.alertmanager.rpartition(":")[2]), *ports)
        self.prometheus: Api = stack.enter_context(prometheus(folder, config))
        for served in self.served:
            eventually(lambda served=served: metric(served, HEARTBEAT) > 0, "no heartbeat came round")

    def restart(self, number: int) -> None:
        """Kill a replica and start it again, so that it asks Alertmanager for its list at once."""
        listen = self.served[number].url.removeprefix("http://")
        self.served[number].end(signal.SIGKILL)
        config = configured(self.homes[number], listen=listen, more=SETTINGS)
        asks = f'[service]\nalertmanager = "{self.alertmanager}"\nreconcile = "1s"'
        config.write_text(config.read_text().replace("[service]", asks))
        self.served[number] = self.stack.enter_context(serving(self.switches[number], config, *RUNS))

    def states(self, name: str) -> list[str]:
        return [served.states()[name] for served in self.served]

    def out(self, name: str) -> list[bool]:
        return [bool(served.moves(name)) for served in self.served]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(tmp_path_factory.mktemp("replicas"), stack)


def test_the_replica_that_fails_takes_its_scanner_out_and_no_other_does(replicas: Replicas) -> None:
    first, ill, last = replicas.served
    replicas.switches[1].turn(TORN, "ill")
    ill.wait_for(TORN, "quarantined")
    eventually(lambda: metric(first, IGNORED) > 0 < metric(last, IGNORED), "the others hear of it")
    assert replicas.out(TORN) == [False, True, False]
    (evidence, *_) = ill.get(f"/scanners/{TORN}")["evidence"]
    assert evidence["name"] in {"ScannerErrorRatioHigh", "ScannerOutOfService"}
    assert any("is ignored, for this process is scraped as" in line for line in first.lines)


def test_two_of_three_fail_and_the_third_goes_on(replicas: Replicas) -> None:
    replicas.switches[0].turn(TORN, "ill")
    replicas.served[0].wait_for(TORN, "quarantined")
    heard = metric(replicas.served[2], IGNORED)
    eventually(lambda: metric(replicas.served[2], IGNORED) > heard, "the third has heard of that, too")
    assert replicas.out(TORN) == [True, True, False]
    assert replicas.states(TORN)[2] == "enabled"


def test_the_list_of_all_alerts_is_not_taken_for_ones_own_after_a_restart(replicas: Replicas) -> None:
    replicas.restart(2)
    again = replicas.served[2]
    for beat in range(3):  # each second brings a heartbeat, and an answer of Alertmanager
        before = metric(again, HEARTBEAT) if beat else 0.0
        eventually(lambda before=before: heard(again) > before, "heartbeats go on")
    assert replicas.states(TORN)[2] == "enabled"
    assert not again.moves(TORN)


def heard(served: Served) -> float:
    """Return when a heartbeat came last; 0 before the first."""
    return metric(served, HEARTBEAT) if HEARTBEAT in served.text("/metrics") else 0.0


def test_each_comes_back_by_its_own_probes(replicas: Replicas) -> None:
    replicas.switches[1].turn(TORN, "well")
    replicas.served[1].wait_for(TORN, "enabled")
    assert replicas.states(TORN)[0] in {"quarantined", "probing"}
    assert replicas.states(STEADY) == ["enabled"] * 3
    assert replicas.out(STEADY) == [False] * 3
