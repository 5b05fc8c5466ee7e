"""The judge of this machine's own faults against a model: whose each is, when that is known, and who is excused."""

from __future__ import annotations

import math
from collections.abc import Iterator

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

from resilient_scan.layers.blame import CERTAIN, DESCRIPTORS, MEMORY, NAMES
from resilient_scan.layers.local import EXCUSED, LEAKING, MAX_SUSPECTS, TOGETHER, Fault, LocalFaults
from resilient_scan.testing import FakeClock
from tests.support.examples import examples

SCANNERS = {"a": "acme", "b": "acme", "c": "other", "d": "scanner d"}
STEPS = (0.5, 2.5, 5.0, 60.0, 300.0, 900.0)


class Run:
    """A run under way: who of it has no result yet."""

    def __init__(self) -> None:
        self.open: set[str] = set()

    def witnesses(self) -> Iterator[str]:
        return iter([SCANNERS[name] for name in sorted(self.open)])


class Failure:
    """One that was judged: the fault there is, and what the model knows of it."""

    def __init__(self, fault: Fault, name: str, kind: str, at: float) -> None:
        self.fault = fault
        self.name = name
        self.kind = kind
        self.at = at
        self.local: bool | None = None
        self.calls: list[str] = []
        fault.then(lambda: self.calls.append("first"))
        fault.then(lambda: self.calls.append("second"))


class LocalMachine(RuleBasedStateMachine):
    @initialize(probed=st.booleans())
    def build(self, probed: bool) -> None:
        self.clock = FakeClock()
        self.reached: bool | None = None
        self.probed = probed
        self.faults = LocalFaults(self.clock, SCANNERS, (lambda: self.unreachable) if probed else None)
        self.unreachable: bool | None = None
        self.run = Run()
        self.faults.runs.add(self.run)
        self.failures: list[Failure] = []
        self.answers = dict.fromkeys(SCANNERS, -math.inf)
        self.since: dict[str, float] = {}
        self.ended: dict[str, int] = {}
        self.last_of: dict[str, float] = {}

    # what the model says

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def is_own(self, name: str) -> bool:
        since = self.since.get(name)
        if since is None:
            return False
        others = max(at for other, at in self.answers.items() if other != name)
        leaks = self.ended.get(name, 0) >= LEAKING - 1 and others >= since
        return leaks or self.now - since >= EXCUSED

    def alike(self, failure: Failure) -> list[Failure]:
        return [
            each for each in self.failures if each.kind == failure.kind and abs(each.at - failure.at) <= TOGETHER
        ]  # fmt: skip

    def verdict(self, failure: Failure, forced: bool) -> bool | None:
        alike = self.alike(failure)
        parties = {SCANNERS[each.name] for each in alike}
        if self.probed and self.unreachable:
            return True
        if max(self.answers.values()) >= min(each.at for each in alike):
            return False
        others = {SCANNERS[name] for name in self.run.open} - {SCANNERS[failure.name]}
        alone = not others and (not self.probed or self.unreachable is False)
        if forced or alone or self.now - failure.at >= TOGETHER:
            return len(parties) > 1
        return None

    def look(self, forced: Failure | None = None) -> None:
        for failure in self.failures:
            if failure.local is None:
                failure.local = self.verdict(failure, failure is forced)
                if failure.local and self.answers[failure.name] < failure.at:  # it may have succeeded since
                    self.since.setdefault(failure.name, failure.at)

    # what may happen

    @rule(name=st.sampled_from(sorted(SCANNERS)))
    def begin(self, name: str) -> None:
        self.run.open.add(name)

    @rule(name=st.sampled_from(sorted(SCANNERS)))
    def give_up(self, name: str) -> None:
        """It ends without a word about the machine: another error, or skipped."""
        self.run.open.discard(name)

    @rule(name=st.sampled_from(sorted(SCANNERS)))
    def succeed(self, name: str) -> None:
        self.run.open.discard(name)
        self.faults.answered[self.faults.places[name]] = self.answers[name] = self.now
        self.since.pop(name, None)
        self.ended.pop(name, None)
        self.clock.advance(0.01)  # two things at one instant have no order

    @rule(name=st.sampled_from(sorted(SCANNERS)), kind=st.sampled_from([DESCRIPTORS, NAMES, NAMES, NAMES, MEMORY]))
    def fail(self, name: str, kind: str) -> None:
        self.clock.advance(0.01)
        self.run.open.discard(name)
        fault = self.faults.judge(name, SCANNERS[name], kind)
        own = self.is_own(name)
        if kind in CERTAIN:
            assert fault is not None
            assert (fault.local, fault.own, fault.done) == (not own, own, True)
            assert fault.blame("provider") == ("scanner" if own else "local")
            if not own:
                self.since.setdefault(name, self.now)
                self.end(fault)
        elif own:
            assert fault is None
        else:
            assert fault is not None
            self.failures.append(Failure(fault, name, kind, self.now))
            self.look()

    def end(self, fault: Fault) -> None:
        first = self.now - self.last_of.get(fault.kind, -math.inf) >= EXCUSED
        assert self.faults.ended(fault) is first
        self.last_of[fault.kind] = self.now
        self.since.setdefault(fault.scanner, fault.at)
        self.ended[fault.scanner] = self.ended.get(fault.scanner, 0) + 1

    @rule()
    def come_by(self) -> None:
        self.faults.look()
        self.look()

    @precondition(lambda self: any(each.local is None for each in self.failures))
    @rule(data=st.data())
    def hurry(self, data: st.DataObject) -> None:
        waiting = [each for each in self.failures if each.local is None]
        failure = data.draw(st.sampled_from(waiting), label="the one that cannot wait")
        self.faults.look(failure.fault)
        self.look(failure)

    @precondition(lambda self: self.probed)
    @rule(unreachable=st.sampled_from([None, True, False]))
    def probe(self, unreachable: bool | None) -> None:
        self.unreachable = unreachable

    @rule(seconds=st.sampled_from(STEPS))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # what always holds

    @invariant()
    def verdicts_agree(self) -> None:
        for failure in self.failures:
            assert failure.fault.local is failure.local
            assert failure.fault.done is (failure.local is not None)
            assert failure.calls == ([] if failure.local is None else ["first", "second"])
        assert self.faults.waits is any(each.local is None for each in self.failures)

    @invariant()
    def the_excused_agree(self) -> None:
        for name in SCANNERS:
            excused = self.faults.excused(name)
            if name not in self.since:
                assert excused is None
                continue
            assert excused is not None
            executions, ago, own = excused
            assert (executions, own) == (self.ended.get(name, 0), self.is_own(name))
            assert ago == self.now - self.since[name]


def test_whose_fault_it_is_is_as_modelled() -> None:
    run_state_machine_as_test(LocalMachine, settings=settings(max_examples=examples(150), stateful_step_count=40))


def test_suspects_do_not_pile_up() -> None:
    """A fleet of thousands whose names do not resolve, while one scanner hangs, costs a bounded memory."""
    faults, run = LocalFaults(FakeClock(), ["hung"]), Run()
    run.open.add("d")
    faults.runs.add(run)
    made = [faults.judge(f"s{number}", f"provider {number % 7}", NAMES) for number in range(MAX_SUSPECTS + 1)]
    assert all(fault is not None and fault.local for fault in made)
    assert not faults.waits
    faults.judge("s0", "provider 0", NAMES)
    assert faults.waits
