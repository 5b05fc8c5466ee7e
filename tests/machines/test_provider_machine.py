"""A provider's breaker against a model: who opens it, who tries it, whose failures it takes over, and its holds."""

from __future__ import annotations

from typing import Any

import pytest
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

from resilient_scan import Breaker, CircuitOpen, ScanContext
from resilient_scan.events import Event, ProviderChanged
from resilient_scan.layers.breaker import Permit
from resilient_scan.layers.breaker.provider import ProviderBreaker
from resilient_scan.testing import FakeClock
from tests.support.draws import EitherEnd
from tests.support.examples import examples

OPEN_FOR, OPEN_CAP = 8.0, 20.0
SCANNERS = ("a", "b", "c")


class Granted:
    """A permit as the model sees it."""

    def __init__(self, permit: Permit, scanner: str, generation: int, expires: float | None) -> None:
        self.permit = permit
        self.scanner = scanner
        self.generation = generation
        self.expires = expires
        self.voted = False


class ProviderMachine(RuleBasedStateMachine):
    @initialize(failures=st.integers(1, 3), scanners=st.integers(1, 3), seed=st.integers(0, 3))
    def build(self, failures: int, scanners: int, seed: int) -> None:
        self.failures = failures
        self.scanners = SCANNERS[:scanners]
        self.clock = FakeClock()
        self.context = ScanContext("s", clock=self.clock)
        self.sent: list[Event] = []
        # The rates would open it at the first failure: they do not apply to a provider.
        options = Breaker(
            failures=failures, open_for=OPEN_FOR, open_cap=OPEN_CAP, failure_rate=0.1, window=1, minimum=1
        )
        self.breaker = ProviderBreaker(
            "acme", options, self.clock, EitherEnd(seed), self.sent.append, None, self.scanners
        )
        self.state = "closed"
        self.generation = 0
        self.in_a_row: list[str] = []
        self.open_until = self.down_since = self.held_until = 0.0
        self.last_trial = ""
        self.yielded = False
        self.streaks: dict[str, int] = {}
        self.granted: list[Granted] = []

    # what the model says

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def turn(self, state: str) -> None:
        self.state = state
        self.generation += 1

    def under_way(self) -> list[Granted]:
        trials = [each for each in self.granted if each.expires is not None and each.generation == self.generation]
        return [each for each in trials if not each.voted and (each.expires or 0) > self.now]

    def refused(self, scanner: str) -> bool:
        if self.state == "closed":
            return False
        if self.now < self.open_until:
            return True
        if scanner == self.last_trial and len(self.scanners) > 1 and not self.yielded:
            self.yielded = not self.under_way()
            if self.yielded:
                return True
        return bool(self.under_way())

    def changes(self) -> list[tuple[str, str]]:
        """Return, once, what listeners were sent."""
        found = [(event.old, event.new) for event in self.sent if isinstance(event, ProviderChanged)]
        self.sent.clear()
        return found

    # what may happen

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        scanner = data.draw(st.sampled_from(self.scanners), label="scanner")
        if self.refused(scanner):
            with pytest.raises(CircuitOpen):
                self.breaker._admit(scanner, self.context)
            assert self.changes() == []
            return
        permit = Permit(self.breaker.memory.generation)
        if not self.breaker.memory.closed:
            permit = self.breaker._admit(scanner, self.context)
        if self.state == "open":
            self.turn("half_open")
            assert self.changes() == [("open", "half_open")]
        trial = self.state == "half_open"
        if trial:
            self.last_trial, self.yielded = scanner, False
        self.granted.append(Granted(permit, scanner, self.generation, self.now + OPEN_FOR if trial else None))

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), failed=st.sampled_from([True, True, True, False, None]))
    def finish(self, data: st.DataObject, failed: bool | None) -> None:
        one = self.granted[data.draw(st.integers(0, len(self.granted) - 1), label="permit")]
        self.end(one, failed)

    @precondition(lambda self: self.state == "closed")
    @rule(data=st.data(), outcomes=st.lists(st.booleans(), min_size=1, max_size=6))
    def run(self, data: st.DataObject, outcomes: list[bool]) -> None:
        """Live through a few scans, one after the other."""
        for failed in outcomes:
            before = len(self.granted)
            self.ask(data)
            if len(self.granted) > before:
                self.end(self.granted[-1], failed)

    def end(self, one: Granted, failed: bool | None) -> None:
        counts = not one.voted and one.generation == self.generation and failed is not None
        one.voted = True
        before = self.state
        if failed:
            excused = self.breaker._count(one.permit, one.scanner, self.context)
            if counts:
                self.fail(one.scanner)
            assert excused == self.excuses(one)
        else:
            self.breaker._settle(one.permit, failed, one.scanner, self.context)
            if counts:
                self.in_a_row = []
                if before == "half_open":
                    self.turn("closed")
            if failed is False:
                self.streaks.pop(one.scanner, None)
                self.streaks = {name: max(streak, self.failures) for name, streak in self.streaks.items()}
        assert self.changes() == ([(before, self.state)] if self.state != before else [])

    def fail(self, scanner: str) -> None:
        self.in_a_row.append(scanner)
        enough = len(self.in_a_row) >= self.failures and len(set(self.in_a_row)) >= min(2, len(self.scanners))
        if self.state == "half_open" or enough:
            if self.state == "closed":
                self.down_since = self.now
            self.turn("open")
            open_for = self.breaker._machine.open_for
            assert open_for >= OPEN_FOR
            self.open_until = self.now + open_for
            assert self.open_until >= self.held_until

    def excuses(self, one: Granted) -> bool:
        """Return whether the scanner's own breaker has nothing to do with its failure."""
        if one.expires is not None or self.state != "closed":
            self.streaks.clear()
            return True
        self.last_trial = ""
        self.streaks[one.scanner] = self.streaks.get(one.scanner, 0) + 1
        return self.streaks[one.scanner] <= self.failures

    @rule(seconds=st.sampled_from([0.0, 4.0, 16.0, 100.0]))
    def hold(self, seconds: float) -> None:
        self.breaker.hold(seconds, "")
        if seconds:
            until = self.now + min(seconds, OPEN_CAP)
            self.held_until = max(self.held_until, until)
            if self.state == "open":
                self.open_until = max(self.open_until, until)
        assert self.changes() == []

    @rule()
    def reset(self) -> None:
        before = self.state
        blank = before == "closed" and not self.in_a_row and not self.held_until
        self.breaker.clear()
        if not blank:
            self.turn("closed")
        self.in_a_row, self.held_until = [], 0.0
        self.streaks.clear()
        assert self.changes() == ([] if before == "closed" else [(before, "closed")])

    @rule()
    def bring_a_scanner_back(self) -> None:
        self.breaker.try_soon()
        if self.state == "open":
            self.open_until = min(self.open_until, self.now)

    @rule(seconds=st.sampled_from([0.5, 2.0, OPEN_FOR]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.state == "open" and self.now < self.open_until)
    @rule(before=st.sampled_from([0.0, 0.0, 0.25]))
    def pass_to_the_end_of_the_open_time(self, before: float) -> None:
        self.clock.advance(self.open_until - self.now - before)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "breaker"):
            return
        breaker = self.breaker
        assert breaker.state == self.state
        assert breaker.is_open() == (self.state == "open" and self.now < self.open_until)
        assert breaker.status == ("held" if self.state == "closed" and self.now < self.held_until else self.state)
        assert (self.now < breaker.held_until) == (self.now < self.held_until)
        since, until, by = breaker.instants()
        wall = self.clock.time() - self.now
        if self.state == "closed":
            assert (since, by) == (None, "")
            assert until == (pytest.approx(wall + self.held_until) if self.now < self.held_until else None)
        elif self.state == "half_open" and self.under_way():
            assert (since, until, by) == (pytest.approx(wall + self.down_since), None, self.under_way()[-1].scanner)
        else:
            assert since == pytest.approx(wall + self.down_since)
            assert by == self.in_a_row[-1]
            assert self.state == "half_open" or until == pytest.approx(wall + self.open_until)
        said: Any = breaker.reason()
        if self.state == "open":
            assert f"tried by {self.in_a_row[-1]}" in said
        if self.state == "half_open" and self.under_way():
            assert said.endswith(f"{self.under_way()[-1].scanner} is trying it now")
        assert bool(said) == (breaker.status != "closed")


def test_a_providers_breaker_behaves_like_the_model(machine_settings: settings) -> None:
    run_state_machine_as_test(ProviderMachine, settings=settings(machine_settings, max_examples=examples(250)))
