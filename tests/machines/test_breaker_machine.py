"""The breaker's breaker against a model of a breaker."""

from __future__ import annotations

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

from resilient_scan import Breaker, CircuitOpen
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker import CircuitBreaker, Permit
from resilient_scan.testing import FakeClock
from tests.support.draws import EitherEnd
from tests.support.examples import examples

OPEN_FOR, OPEN_CAP = 8.0, 20.0  # exact in binary, so that an instant can be hit exactly


class Granted:
    """A permit as the model sees it."""

    def __init__(self, permit: Permit, generation: int, expires: float | None) -> None:
        self.permit = permit
        self.generation = generation
        self.expires = expires
        self.voted = False


class BreakerMachine(RuleBasedStateMachine):
    @initialize(
        failures=st.integers(1, 3),
        trials=st.integers(1, 3),
        seed=st.integers(0, 3),
        within=st.sampled_from([None, 0.5, 2.5]),
    )
    def build(self, failures: int, trials: int, seed: int, within: float | None) -> None:
        self.failures, self.trials, self.within = failures, trials, within
        self.clock = FakeClock()
        options = Breaker(failures=failures, open_for=OPEN_FOR, open_cap=OPEN_CAP, trials=trials, within=within)
        self.breaker = CircuitBreaker("one", options, self.clock, EitherEnd(seed))
        self.state = "closed"
        self.generation = 0
        self.failed_at: list[float] = []
        self.succeeded = 0
        self.open_until = 0.0
        self.failed_trials = 0
        self.granted: list[Granted] = []

    # what the model says

    def turn(self, state: str) -> None:
        self.state = state
        self.generation += 1
        self.failed_at = []
        self.succeeded = 0

    def in_a_row(self) -> int:
        """How many failures in a row count now."""
        now = self.clock.monotonic()
        return sum(self.within is None or now - at <= self.within for at in self.failed_at)

    def under_way(self) -> int:
        now = self.clock.monotonic()
        return sum(
            not trial.voted and trial.generation == self.generation
            for trial in self.granted
            if trial.expires is not None and now < trial.expires
        )

    def opened(self, change: BreakerChanged) -> None:
        """Check how long it opened: exactly the first time, then growing up to the cap."""
        old = self.state
        self.failed_trials = self.failed_trials + 1 if old == "half_open" else 0
        self.turn("open")
        assert (change.old, change.new) == (old, "open")
        grown = OPEN_FOR * 2**self.failed_trials
        expected = [OPEN_FOR] if old == "closed" else [min(OPEN_CAP, 0.75 * grown), min(OPEN_CAP, grown)]
        assert change.open_for in expected
        self.open_until = self.clock.monotonic() + change.open_for

    # what may happen

    @rule()
    def ask(self) -> None:
        now = self.clock.monotonic()
        refused = (self.state == "open" and now < self.open_until) or (
            self.state == "half_open" and self.under_way() >= self.trials
        )
        if refused:
            with pytest.raises(CircuitOpen):
                self.breaker.admit()
            return
        permit, change = self.breaker.admit()
        if self.state == "open":
            self.turn("half_open")
            assert change == BreakerChanged("one", "open", "half_open", None)
        else:
            assert change is None
        self.granted.append(Granted(permit, self.generation, now + OPEN_FOR if self.state == "half_open" else None))

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), failed=st.sampled_from([True, True, True, False, None]))
    def vote(self, data: st.DataObject, failed: bool | None) -> None:
        self.vote_for(self.granted[data.draw(st.integers(0, len(self.granted) - 1), label="permit")], failed)

    @precondition(lambda self: self.state == "open")
    @rule(outcomes=st.lists(st.booleans(), min_size=1, max_size=8))
    def wait_and_try(self, outcomes: list[bool]) -> None:
        """Live through a trial or several, as a run of every minute does."""
        for failed in outcomes:
            if self.state == "open":
                self.clock.advance(max(0.0, self.open_until - self.clock.monotonic()))
            granted = len(self.granted)
            self.ask()
            if len(self.granted) > granted:
                self.vote_for(self.granted[-1], failed)

    def vote_for(self, one: Granted, failed: bool | None) -> None:
        change = self.breaker.vote(one.permit, failed)
        counts = not one.voted and one.generation == self.generation and failed is not None
        one.voted = True
        if not counts:
            assert change is None
        elif failed:
            self.failed_at.append(self.clock.monotonic())
            if self.state == "half_open" or self.in_a_row() >= self.failures:
                assert change is not None
                self.opened(change)
            else:
                assert change is None
        else:
            self.failed_at = []
            self.succeeded += 1
            if self.state == "half_open" and self.succeeded >= self.trials:
                self.turn("closed")
                self.failed_trials = 0
                assert change == BreakerChanged("one", "half_open", "closed", None)
            else:
                assert change is None

    @rule()
    def reset(self) -> None:
        """An operator closes it; whatever is under way has no vote any more."""
        before = self.state
        if before != "closed" or self.in_a_row():
            self.turn("closed")
            self.failed_trials = 0
        expected = None if before == "closed" else BreakerChanged("one", before, "closed", None)
        assert self.breaker.reset() == (expected, None)

    @rule()
    def end_open_time(self) -> None:
        """An operator brings the scanner back: the next attempt is a trial."""
        assert self.breaker.end_open_time() is None
        if self.state == "open":
            self.open_until = min(self.open_until, self.clock.monotonic())

    @rule(seconds=st.sampled_from([0.5, 2.0, OPEN_FOR]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.state == "open" and self.clock.monotonic() < self.open_until)
    @rule(before=st.sampled_from([0.0, 0.0, 0.25]))
    def pass_to_the_end_of_the_open_time(self, before: float) -> None:
        self.clock.advance(self.open_until - self.clock.monotonic() - before)

    @precondition(lambda self: self.state == "half_open" and self.under_way())
    @rule(before=st.sampled_from([0.0, 0.25]))
    def pass_to_the_expiry_of_a_trial(self, before: float) -> None:
        now = self.clock.monotonic()
        ends = [trial.expires for trial in self.granted if trial.expires is not None and now < trial.expires - before]
        if ends:
            self.clock.advance(min(ends) - now - before)

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state == self.state
        assert self.state != "closed" or self.breaker.failures == self.in_a_row()
        assert self.breaker.is_open() == (self.state == "open" and self.clock.monotonic() < self.open_until)


def test_the_breaker_behaves_like_the_model(machine_settings: settings) -> None:
    run_state_machine_as_test(BreakerMachine, settings=settings(machine_settings, max_examples=examples(250)))
