"""The quarantine's machine against a model that knows true time only: one record, several processes, clocks that jump.

The model is written the other way round: it keeps what was said and done, and says what should be the case.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import Alert, Turn
from resilient_scan.quarantine.records import ScannerRecord
from tests.support.examples import examples
from tests.support.quarantine import Bench, Process, alert

NAMES = ("a", "b", "c", "d")
CRITICAL = "d"
MOST_OUT = 2
COOLOFF, CAP, SUCCESSES, LEASE, PERIOD, FAILURES, PROBE = 8.0, 32.0, 2, 64.0, 16.0, 3, 20.0
PROCESSES = 3
SPANS = st.sampled_from([0.0, 0.5, 4.0, COOLOFF, 2 * COOLOFF, CAP, LEASE, 2 * LEASE])  # exact in binary
JUMPS = st.sampled_from([-1e6, -512.0, -2.0, 2.0, 512.0, 1e6])
names = st.sampled_from(NAMES)
processes = st.integers(0, PROCESSES - 1)


@dataclass
class Heard:
    """The last word on an alert."""

    status: str
    start: float
    at: float


@dataclass
class Known:
    """A scanner as the model knows it."""

    state: str = "enabled"
    since: float = 0.0
    out_until: float = 0.0
    level: int = 0
    passed: int = 0
    failures: int = 0
    heard: dict[str, Heard] = field(default_factory=dict)
    probe: tuple[int, float] | None = None  # whose, until when
    hand: tuple[str, float] | None = None  # which, until when

    @property
    def shown(self) -> str:
        return self.hand[0] if self.hand else self.state


class QuarantineMachine(RuleBasedStateMachine):
    @initialize(heartbeats=st.booleans())
    def build(self, heartbeats: bool) -> None:
        options = Quarantine(
            cooloff=COOLOFF,
            cooloff_cap=CAP,
            successes=SUCCESSES,
            critical=(CRITICAL,),
            lease=LEASE,
            heartbeat=PERIOD if heartbeats else None,
            after_failures=FAILURES,
        )
        self.bench = Bench(*NAMES, options=options)
        self.heartbeats = heartbeats
        self.processes = [Process(self.bench) for _ in range(PROCESSES)]
        self.born = [0.0] * PROCESSES
        self.heard: float | None = None
        self.known = {name: Known() for name in NAMES}
        self.notified = dict.fromkeys(NAMES, "enabled")
        self.bench.executed("a", True, False)  # the record is there, and every process has seen it
        for process in range(PROCESSES):
            self.use(process)
            self.bench.state("a")

    # what the model says

    @property
    def now(self) -> float:
        return self.bench.elapsed

    def use(self, process: int) -> None:
        """Let a process take the next step; time does its work first."""
        self.bench.process = self.processes[process]
        self.at = process
        over = [(known.hand[1], name) for name, known in self.known.items() if known.hand and known.hand[1] <= self.now]
        for _, name in sorted(over):
            known = self.known[name]
            known.hand = None
            if self.fires_still(known):
                self.take_out(name)
        for known in self.known.values():
            known.heard = {mark: heard for mark, heard in known.heard.items() if self.now < heard.at + 2 * LEASE}

    def fires_still(self, known: Known) -> bool:
        return any(heard.status == "firing" and self.now < heard.at + LEASE for heard in known.heard.values())

    def unreachable(self) -> bool:
        last = self.born[self.at] if self.heard is None else self.heard
        return self.heartbeats and self.now >= last + 3 * PERIOD

    def blocked(self, known: Known) -> bool:
        def blocks(heard: Heard) -> bool:
            doubted = self.unreachable() and (self.heard is None or heard.at > self.heard)
            return self.now < heard.at + LEASE and (heard.status == "firing" or doubted)

        return any(map(blocks, known.heard.values()))

    def take_out(self, name: str) -> bool:
        """Quarantine a scanner that is in service, as far as that is allowed."""
        known = self.known[name]
        out = sum(each.state != "enabled" for each in self.known.values())
        if known.state != "enabled" or name == CRITICAL or out >= MOST_OUT:
            return False
        level = max(0, known.level - int((self.now - known.since) / CAP))
        self.quarantine(known, level)
        return True

    def quarantine(self, known: Known, level: int) -> None:
        known.state, known.since, known.level = "quarantined", self.now, level
        known.out_until = self.now + min(CAP, COOLOFF * 2**level)
        known.passed = known.failures = 0

    def expected_turn(self, known: Known) -> Turn:
        if known.hand:
            return Turn.DISABLED if known.hand[0] == "disabled" else Turn.RUN
        if known.state == "enabled":
            return Turn.RUN
        if known.state == "quarantined":
            return Turn.DISABLED if self.now < known.out_until else Turn.PROBE
        return Turn.DISABLED if known.probe and self.now < known.probe[1] else Turn.PROBE

    # alerts

    @rule(process=processes, name=names, mark=st.sampled_from("xy"), start=st.sampled_from([1.0, 2.0, 3.0]))
    def fires(self, process: int, name: str, mark: str, start: float) -> None:
        self.use(process)
        (said,) = self.bench.alerts(alert(name, mark=mark, start=start))
        assert said == self.fire(name, mark, start)

    def fire(self, name: str, mark: str, start: float, *, listed: bool = False) -> str:
        known = self.known[name]
        heard = known.heard.get(mark)
        if heard and not listed and (start < heard.start or (start == heard.start and heard.status == "resolved")):
            return "duplicate"
        known.heard[mark] = Heard("firing", start, self.now)
        again = heard is not None and (heard.status, heard.start) == ("firing", start)
        if known.hand and known.hand[0] == "enabled":
            return "overruled"
        if known.hand:
            out = True
        else:
            out = known.state != "enabled"
            if self.take_out(name):
                return "accepted"
        if not out:
            return "refused"
        return "duplicate" if again else "accepted"

    @rule(
        process=processes,
        name=names,
        mark=st.sampled_from("xy"),
        start=st.sampled_from([1.0, 2.0, 3.0]),
        status=st.sampled_from(["resolved", "unknown"]),
    )
    def is_over(self, process: int, name: str, mark: str, start: float, status: str) -> None:
        self.use(process)
        known = self.known[name]
        before = {name: known.shown for name, known in self.known.items()}
        (said,) = self.bench.alerts(alert(name, status, mark=mark, start=start))
        heard = known.heard.get(mark)
        if heard and (start < heard.start or (start == heard.start and heard.status == "resolved")):
            assert said == "duplicate"
        else:
            again = heard is not None and (heard.status, heard.start) == (status, start)
            assert said == ("duplicate" if again else "accepted")
            known.heard[mark] = Heard(status, start, self.now)
        assert {name: known.shown for name, known in self.known.items()} == before  # it never enables

    @rule(process=processes, listed=st.lists(st.tuples(names, st.sampled_from("xy")), unique=True, max_size=4))
    def is_listed(self, process: int, listed: list[tuple[str, str]]) -> None:
        self.use(process)
        active: list[Alert] = []
        for name, mark in listed:
            heard = self.known[name].heard.get(mark)
            active.append(alert(name, mark=mark, start=heard.start if heard else 2.0))
        said = self.bench.reconcile(*active)
        assert said == tuple(self.fire(each.scanner, each.fingerprint, each.starts_at, listed=True) for each in active)
        for name, known in self.known.items():
            for mark, heard in known.heard.items():
                if heard.status == "firing" and (name, mark) not in listed and heard.at < self.now:
                    heard.status, heard.at = "resolved", self.now

    @precondition(lambda self: self.heartbeats)
    @rule(process=processes)
    def heartbeat(self, process: int) -> None:
        self.use(process)
        self.bench.heartbeat()
        self.heard = self.now

    # scans

    @rule(process=processes, name=names)
    def turn(self, process: int, name: str) -> None:
        self.use(process)
        known = self.known[name]
        expected = self.expected_turn(known)
        assert self.bench.turn(name, str(process), PROBE) is expected
        if expected is Turn.PROBE:
            if known.state == "quarantined":
                known.state, known.since, known.passed = "probing", self.now, 0
            known.probe = (process, self.now + PROBE)

    @rule(process=processes, name=names, passed=st.sampled_from([True, True, True, False, None]))
    def probe_ends(self, process: int, name: str, passed: bool | None) -> None:
        self.use(process)
        self.bench.probe(name, passed, str(process))
        known = self.known[name]
        if known.probe is None or known.probe[0] != process:
            return
        known.probe = None
        if passed is None:
            return
        if not passed:
            self.quarantine(known, known.level + 1)
            return
        known.passed += 1
        if known.passed >= SUCCESSES and not self.blocked(known):
            known.state, known.since = "enabled", self.now
            known.level, known.passed = max(0, known.level - 1), 0

    @precondition(lambda self: any(known.state != "enabled" and not known.hand for known in self.known.values()))
    @rule(process=processes, outcomes=st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=6))
    def wait_and_probe(self, process: int, outcomes: list[bool]) -> None:
        """Live through a quarantine, as the runs of a service do."""
        name = next(name for name, known in self.known.items() if known.state != "enabled" and not known.hand)
        for passed in outcomes:
            known = self.known[name]
            if known.state == "enabled" or known.hand:
                return
            begins = known.out_until if known.state == "quarantined" else known.probe[1] if known.probe else self.now
            self.bench.advance(max(0.0, begins - self.now))
            self.turn(process, name)
            self.probe_ends(process, name, passed)

    @rule(process=processes, name=names, failed=st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=4))
    def executions_end(self, process: int, name: str, failed: list[bool]) -> None:
        for each in failed:
            self.use(process)
            self.bench.executed(name, each)
            known = self.known[name]
            if not each:
                known.failures = 0
            elif known.state == "enabled" and not known.hand:
                known.failures = min(FAILURES, known.failures + 1)
                if known.failures == FAILURES:
                    self.take_out(name)

    # by hand

    @rule(process=processes, name=names, seconds=st.sampled_from([2.0, COOLOFF, LEASE]))
    def disable(self, process: int, name: str, seconds: float) -> None:
        self.use(process)
        self.bench.disable(name, seconds)
        self.known[name].hand = ("disabled", self.now + seconds)

    @rule(process=processes, name=names, seconds=st.sampled_from([2.0, COOLOFF, LEASE]))
    def enable(self, process: int, name: str, seconds: float) -> None:
        self.use(process)
        self.bench.enable(name, seconds)
        known = self.known[name]
        if known.shown == "enabled":
            return
        if known.state == "enabled":
            known.hand = ("enabled", self.now + seconds) if self.fires_still(known) else None
            return
        known.hand = ("enabled", self.now + seconds)
        known.state, known.since, known.probe, known.passed = "enabled", self.now, None, 0
        known.level = max(0, known.level - 1)

    @rule(process=processes, name=names)
    def probe_now(self, process: int, name: str) -> None:
        self.use(process)
        known = self.known[name]
        assert self.bench.probe_now(name) == known.shown
        if known.shown == "quarantined":
            known.out_until = min(known.out_until, self.now)

    # time and trouble

    @rule(seconds=SPANS)
    def time_passes(self, seconds: float) -> None:
        self.bench.advance(seconds)

    @rule(process=processes, seconds=JUMPS)
    def the_clock_jumps(self, process: int, seconds: float) -> None:
        """Some process that lives notices; the others learn of it when they look."""
        self.bench.jump(seconds)
        self.use(process)
        self.bench.state("a")

    @rule(process=processes)
    def a_process_restarts(self, process: int) -> None:
        self.processes[process] = Process(self.bench)
        self.born[process] = self.now
        self.use(process)
        self.bench.state("a")

    # what always holds

    @invariant()
    def both_agree(self) -> None:
        self.use(0)
        self.bench.state("a")
        scanners = self.bench.fleet.scanners
        for name, known in self.known.items():
            record = scanners.get(name, ScannerRecord())
            assert record.shown == known.shown, name
            assert (record.state, record.passed, record.failures) == (known.state, known.passed, known.failures)
            assert (record.probe is None) == (known.probe is None)
            assert {m: s.status for m, s in record.alerts.items()} == {m: h.status for m, h in known.heard.items()}

    @invariant()
    def changes_make_a_chain(self) -> None:
        for change in self.bench.changes:
            assert self.notified[change.scanner] == change.old
            self.notified[change.scanner] = change.new
        self.bench.changes.clear()
        assert self.notified == {name: known.shown for name, known in self.known.items()}

    @invariant()
    def the_fuse_holds(self) -> None:
        scanners = self.bench.fleet.scanners
        assert sum(record.state != "enabled" for record in scanners.values()) <= MOST_OUT
        assert CRITICAL not in scanners or scanners[CRITICAL].state == "enabled"


def test_the_machine_does_what_the_model_says(machine_settings: settings) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        QuarantineMachine, settings=settings(machine_settings, max_examples=examples(100), stateful_step_count=60)
    )
