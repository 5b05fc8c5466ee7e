"""A bench for the quarantine's pure machine: stored bytes, a wall clock and a steady one, moved by the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import Alert, Change, Machine, Rules, Turn
from resilient_scan.quarantine.records import FleetRecord, ScannerRecord, decode
from resilient_scan.quarantine.store import Sighting, step, wait

T = TypeVar("T")
START = 1_000_000.0


def alert(
    scanner: str,
    status: str = "firing",
    *,
    mark: str = "f1",
    start: float = 1.0,
    action: str = "disable",
    instance: str = "",
) -> Alert:
    """Make an alert; the same arguments make the same one."""
    return Alert(action, scanner, status, mark, start, "ScannerErrorRatioHigh", f"{scanner} fails", instance)  # type: ignore[arg-type]


class Process:
    """One process: its steady clock, and what it saw when it last looked."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.born = bench.elapsed
        self.last: Sighting | None = None

    def step(self, act: Callable[[Machine], T]) -> T:
        """Do one step on the bench's bytes."""
        bench = self.bench
        steady = bench.elapsed - self.born
        rules = msgspec.structs.replace(bench.rules, began=bench.now - steady)
        bench.stored, done = step(
            bench.stored, bench.now, act, rules=rules, steady=steady, last=self.last, draw=bench.draw
        )
        self.last = done.sighting
        bench.changes += done.changes
        bench.readable = done.readable
        return done.result


class Bench:
    """A fleet of scanners on one record, with one process to begin with."""

    def __init__(self, *names: str, options: Quarantine | None = None, draw: Callable[[], float] = lambda: 1.0) -> None:
        self.rules = Rules(options or Quarantine(max_share=1.0), frozenset(names))
        self.draw = draw
        self.stored: bytes | None = None
        self.now, self.elapsed = START, 0.0
        self.changes: list[Change] = []
        self.readable = True
        self.process = Process(self)

    # time

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.elapsed += seconds

    def jump(self, seconds: float) -> None:
        """Let the wall clock jump while no time passes."""
        self.now += seconds

    def restart(self) -> None:
        """Replace the process by one that has seen nothing."""
        self.process = Process(self)

    # what happens

    def alerts(self, *alerts: Alert, source: str = "alertmanager", to: str | None = None) -> tuple[str, ...]:
        """Deliver alerts, to one instance or to one that acts on those about every instance."""
        ours = None if to is None else {to}
        return self.process.step(lambda machine: machine.alerts(alerts, source, ours))

    def reconcile(self, *active: Alert, since: float | None = None, to: str | None = None) -> tuple[str, ...]:
        """Deliver Alertmanager's list."""
        asked, ours = self.now if since is None else since, None if to is None else {to}
        return self.process.step(lambda machine: machine.reconcile(active, "alertmanager", asked, ours))

    def heartbeat(self) -> None:
        """Deliver a heartbeat."""
        self.process.step(lambda machine: machine.heartbeat())

    def turn(self, name: str, owner: str = "us", seconds: float = 60.0) -> Turn:
        """Ask what a scan may do."""
        return self.process.step(lambda machine: machine.turn(name, owner, seconds))

    def probe(self, name: str, passed: bool | None, owner: str = "us") -> None:
        """End a probe."""
        self.process.step(lambda machine: machine.probe_ended(name, owner, passed, "HTTP 500"))

    def probes(self, name: str, *outcomes: bool) -> None:
        """Let probes take their turns and end."""
        for passed in outcomes:
            assert self.turn(name) is Turn.PROBE
            self.probe(name, passed)

    def executed(self, name: str, *failures: bool) -> None:
        """End executions that are no probes."""
        for failed in failures:
            self.process.step(lambda machine, failed=failed: machine.executed(name, failed, "HTTP 500"))

    def disable(self, name: str, seconds: float = 86_400.0, reason: str = "quota") -> None:
        """Give a manual order."""
        self.process.step(lambda machine: machine.disable(name, "kim", reason, seconds))

    def enable(self, name: str, seconds: float = 86_400.0, reason: str = "fixed") -> None:
        """Give a manual order."""
        self.process.step(lambda machine: machine.enable(name, "kim", reason, seconds))

    def probe_now(self, name: str) -> str:
        """End the cool-off by hand."""
        return self.process.step(lambda machine: machine.probe_now(name))

    # what is there

    @property
    def fleet(self) -> FleetRecord:
        """The stored record."""
        return decode(self.stored)[0]

    def record(self, name: str) -> ScannerRecord:
        """A scanner's record, after time has done its work."""
        self.process.step(wait)
        return self.fleet.scanners.get(name, ScannerRecord())

    def state(self, name: str) -> str:
        """A scanner's state, as people see it."""
        return self.record(name).shown

    def moves(self, name: str) -> list[tuple[str, str, str]]:
        """All changes of a scanner: old state, new state, source."""
        return [(change.old, change.new, change.source) for change in self.changes if change.scanner == name]

    def unreachable(self) -> bool:
        """Return whether the alerting is unreachable."""
        return self.process.step(
            lambda machine: machine.rules.unreachable_since(machine.fleet, machine.now) is not None
        )
