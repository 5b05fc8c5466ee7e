"""The breaker's breaker against a model of a breaker."""

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

from resilient_scan import Breaker, CircuitOpen
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker import CircuitBreaker, Permit
from resilient_scan.testing import FakeClock
from tests.support.draws import EitherEnd
from tests.support.examples import examples

OPEN_FOR, OPEN_CAP = 8.0, 20.0  # exact in binary, so that an instant can be hit exactly
SLOW_AFTER, WINDOW, MINIMUM = 2.0, 5, 3


class Granted:
    """A permit as the model sees it."""

    def __init__(self, permit: Permit, generation: int, expires: float | None) -> None:
        self.permit = permit
        self.generation = generation
        self.expires = expires
        self.voted = False
        self.slow = False


class BreakerMachine(RuleBasedStateMachine):
    @initialize(
        failures=st.sampled_from([1, 2, 3, 100]),
        trials=st.integers(1, 3),
        seed=st.integers(0, 3),
        within=st.sampled_from([None, 0.5, 2.5]),
        rated=st.booleans(),
    )
    def build(self, failures: int, trials: int, seed: int, within: float | None, rated: bool) -> None:
        self.failures, self.trials, self.within, self.rated = failures, trials, within, rated
        self.attempts: list[tuple[set[str], float]] = []  # what is known of each of the last ones, and since when
        self.clock = FakeClock()
        rates: dict[str, Any] = {"failure_rate": 0.8, "slow_after": SLOW_AFTER, "slow_rate": 0.6, "window": WINDOW}
        options = Breaker(
            failures=failures,
            open_for=OPEN_FOR,
            open_cap=OPEN_CAP,
            trials=trials,
            within=within,
            **(rates | {"minimum": MINIMUM} if rated else {}),
        )
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
        self.attempts = []

    def window(self) -> list[set[str]]:
        """What is known of the attempts that count now."""
        now = self.clock.monotonic()
        self.attempts = [one for one in self.attempts if self.within is None or now - one[1] <= self.within]
        return [known for known, _ in self.attempts]

    def count(self, one: Granted, what: str) -> bool:
        """Note in the window what became of an attempt; say whether one of the rates is reached."""
        if not self.rated or self.state != "closed":
            return False
        now, slow = self.clock.monotonic(), [known for known in self.window() if known == {"slow"}]
        if what == "slow" or not one.slow:
            self.attempts.append(({what} - {"well"}, now))
        elif what == "well":
            return False
        elif slow:
            slow[-1].add("failed")
        else:
            self.attempts.append(({"slow", "failed"}, now))
        self.attempts = self.attempts[-WINDOW:]
        failed, slow_ones = (sum(name in known for known in self.window()) for name in ("failed", "slow"))
        seen = len(self.attempts)
        return seen >= MINIMUM and (failed >= 0.8 * seen or slow_ones >= 0.6 * seen)

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
        permit.slow_at = now + SLOW_AFTER if self.rated else permit.slow_at
        self.granted.append(Granted(permit, self.generation, now + OPEN_FOR if self.state == "half_open" else None))

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def look_whether_it_is_slow(self, data: st.DataObject) -> None:
        """A watchdog does, or the attempt itself, once or again, at its mark or later."""
        one = self.granted[data.draw(st.integers(0, len(self.granted) - 1), label="permit")]
        self.look_at(one)

    @precondition(lambda self: self.rated and self.state == "closed")
    @rule(slow=st.integers(1, 3))
    def become_slow(self, slow: int) -> None:
        """Several attempts pass the limit at once, as in a fleet whose source has become slow."""
        self.clock.advance(SLOW_AFTER)
        for one in [one for one in self.granted if not one.voted][-slow:]:
            self.look_at(one)

    def look_at(self, one: Granted) -> None:
        change = self.breaker.note_slow(one.permit, wait=False)
        is_slow = self.clock.monotonic() >= one.permit.slow_at and one.generation == self.generation
        counts = is_slow and self.state == "closed" and not one.voted and not one.slow
        if counts and self.count(one, "slow"):
            assert change is not None
            self.opened(change)
        else:
            assert change is None
        one.slow = one.slow or counts

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
            in_a_row = self.state == "half_open" or self.in_a_row() >= self.failures
            if in_a_row or self.count(one, "failed"):
                assert change is not None
                self.opened(change)
            else:
                assert change is None
        else:
            self.failed_at = []
            self.succeeded += 1
            if self.count(one, "well"):  # enough attempts have been seen, now
                assert change is not None
                self.opened(change)
            elif self.state == "half_open" and self.succeeded >= self.trials:
                self.turn("closed")
                self.failed_trials = 0
                assert change == BreakerChanged("one", "half_open", "closed", None)
            else:
                assert change is None

    @rule()
    def reset(self) -> None:
        """An operator closes it; whatever is under way has no vote any more."""
        before = self.state
        if before != "closed" or self.in_a_row() or self.window():
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
        if self.rated:
            failed, slow = (sum(name in known for known in self.window()) for name in ("failed", "slow"))
            assert self.breaker.window_counts() == (len(self.window()), failed, slow)


def test_the_breaker_behaves_like_the_model(machine_settings: settings) -> None:
    run_state_machine_as_test(BreakerMachine, settings=settings(machine_settings, max_examples=examples(250)))
