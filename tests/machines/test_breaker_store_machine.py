"""Two processes' breakers on one store against a model: what is in the store, and what each of them knows of it."""

from __future__ import annotations

import copy

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

from resilient_scan import CircuitOpen
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker import CircuitBreaker, Permit
from resilient_scan.layers.breaker.record import decode
from tests.support.breakers import KEY, Fleet
from tests.support.draws import EitherEnd
from tests.support.examples import examples

OPEN_FOR, OPEN_CAP = 8.0, 20.0  # exact in binary, so that an instant can be hit exactly
GUARDS = st.integers(0, 1)
Change = BreakerChanged | None


class Truth:
    """What is in the store; instants are wall time."""

    def __init__(self, within: float | None) -> None:
        self.within = within
        self.state = "closed"
        self.generation = 0
        self.failed: list[float] = []
        self.successes = 0
        self.failed_trials = 0
        self.open_for = 0.0
        self.open_until = 0.0
        self.trials: dict[Permit | None, float] = {}

    def turn(self, state: str) -> None:
        self.state = state
        self.generation += 1
        self.failed = [] if state == "closed" else self.failed.copy()  # remembered, to explain it
        self.successes = 0
        self.trials = {}

    def settle_clock(self, now: float) -> bool:
        """Nothing lies further ahead than it did when it began; say whether something did."""
        before = self.open_until, self.trials, self.failed
        if self.state == "open" and self.open_until - now > self.open_for:
            self.open_until = now + self.open_for
        self.trials = {trial: min(expires, now + OPEN_FOR) for trial, expires in self.trials.items()}
        if self.within is not None and self.state == "closed":
            self.failed = [min(at, now) for at in self.failed]
        return before != (self.open_until, self.trials, self.failed)

    def failures(self, now: float) -> int:
        """How many failures in a row count now."""
        forgets = self.within is not None and self.state == "closed"
        return sum(not forgets or now - at <= (self.within or 0.0) for at in self.failed)


class Known:
    """What a process knows of it; `open_until` is monotonic."""

    def __init__(self) -> None:
        self.truth: Truth | None = None
        self.open_until = 0.0
        self.revision = 0
        self.ahead = 0.0

    def learn(self, truth: Truth, revision: int, wall: float, monotonic: float) -> None:
        until = monotonic + truth.open_until - wall
        seen = self.truth
        if seen is not None and seen.state == "open" and seen.generation == truth.generation:
            until = min(until, self.open_until)
        self.truth, self.open_until, self.revision = copy.copy(truth), until, revision
        self.ahead = wall - monotonic  # of what was learned then, on the own clock


class Granted:
    def __init__(self, owner: CircuitBreaker, permit: Permit, generation: int, trial: bool) -> None:
        self.owner = owner
        self.permit = permit
        self.generation = generation
        self.trial = trial
        self.voted = False


class SharedBreakerMachine(RuleBasedStateMachine):
    @initialize(
        failures=st.integers(1, 3),
        trials=st.integers(1, 2),
        seed=st.integers(0, 3),
        within=st.sampled_from([None, 0.5, 2.5]),
    )
    def build(self, failures: int, trials: int, seed: int, within: float | None) -> None:
        self.failures, self.trials, self.chance = failures, trials, EitherEnd(seed)
        self.fleet = Fleet(failures=failures, open_for=OPEN_FOR, open_cap=OPEN_CAP, trials=trials, within=within)
        self.truth = Truth(within)
        self.breakers = [self.start() for _ in range(2)]
        self.known = [Known() for _ in range(2)]
        self.granted: list[Granted] = []

    def start(self) -> CircuitBreaker:
        return self.fleet.breaker(look=False, random=self.chance)

    @property
    def wall(self) -> float:
        return self.fleet.clock.time()

    @property
    def monotonic(self) -> float:
        return self.fleet.clock.monotonic()

    def learn(self, one: int) -> None:
        self.known[one].learn(self.truth, self.revision, self.wall, self.monotonic)

    @property
    def revision(self) -> int:
        data = self.fleet.store.read(KEY).get(KEY)
        record = None if data is None else decode(data)
        return 0 if record is None else record.revision

    # what may happen

    @rule(one=GUARDS)
    def look(self, one: int) -> None:
        """A run begins."""
        self.fleet.look(self.breakers[one])
        put_right = self.truth.settle_clock(self.wall)
        if put_right or self.known[one].truth is None or self.known[one].revision != self.revision:
            self.learn(one)  # what is known already is not learnt again: its time is measured on the own clock

    @rule(one=GUARDS, look=st.booleans())
    def restart(self, one: int, look: bool) -> None:
        """The process dies, with whatever it had under way; its late answers never come."""
        dead, self.breakers[one], self.known[one] = self.breakers[one], self.start(), Known()
        self.granted = [permit for permit in self.granted if permit.owner is not dead]
        if look:
            self.look(one)

    @rule(seconds=st.sampled_from([-1e6, -OPEN_FOR, -0.5, 0.5, OPEN_FOR, 1e6]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.fleet.clock.jumped += seconds

    @rule(seconds=st.sampled_from([0.5, 2.0, OPEN_FOR]))
    def pass_time(self, seconds: float) -> None:
        self.fleet.clock.advance(seconds)

    @precondition(lambda self: any(known.truth is not None for known in self.known))
    @rule(seconds=st.sampled_from([-OPEN_FOR, -0.5, OPEN_FOR]), look=st.lists(GUARDS, min_size=1, max_size=3))
    def runs_begin_after_a_jump(self, seconds: float, look: list[int]) -> None:
        self.fleet.clock.jumped += seconds
        for one in look:
            self.look(one)

    @precondition(lambda self: any(self.is_open(one) for one in (0, 1)))
    @rule(before=st.sampled_from([0.0, 0.0, 0.25]))
    def pass_to_the_end_of_the_open_time(self, before: float) -> None:
        ends = [self.known[one].open_until for one in (0, 1) if self.is_open(one)]
        self.fleet.clock.advance(max(0.0, min(ends) - self.monotonic - before))

    @rule(one=GUARDS)
    def ask(self, one: int) -> None:
        updates, known = self.fleet.store.updates, self.known[one].truth
        expected, refused = self.expect_answer(one)
        if refused:
            with pytest.raises(CircuitOpen):
                self.breakers[one].admit()
        else:
            permit, change = self.breakers[one].admit()
            assert change == expected
            trial = self.known[one].truth.state == "half_open"
            assert (permit.expires is not None) == trial
            self.granted.append(Granted(self.breakers[one], permit, self.known[one].truth.generation, trial))
            if trial:
                self.truth.trials[permit] = self.truth.trials.pop(None)
                self.learn(one)
        asked = known is None or known is not self.known[one].truth
        assert self.fleet.store.updates - updates == asked, "what is known is not asked for"
        if asked:
            self.known[one].revision = self.revision

    def expect_answer(self, one: int) -> tuple[Change, bool]:
        """Say what change an attempt makes, and whether it is refused; bring the model there."""
        known = self.known[one].truth
        if known is not None and known.state == "closed":
            return None, False
        if self.is_open(one):
            return None, True
        truth, change = self.truth, None
        truth.settle_clock(self.wall)
        if truth.state == "open":
            over = known is not None and known.state == "open" and known.generation == truth.generation
            if not over and self.wall < truth.open_until:
                self.learn(one)
                return None, True
            truth.turn("half_open")
            change = BreakerChanged("one", "open", "half_open", None)
        refused = False
        if truth.state == "half_open":
            alive = {trial: expires for trial, expires in truth.trials.items() if self.wall < expires}
            refused = len(alive) >= self.trials
            truth.trials = alive
            if not refused:
                truth.trials[None] = self.wall + OPEN_FOR
        self.learn(one)
        return change, refused

    @rule(one=GUARDS)
    def reset(self, one: int) -> None:
        """An operator closes the breaker."""
        self.truth.settle_clock(self.wall)
        before = self.truth.state
        if before != "closed" or self.truth.failed:
            self.truth.turn("closed")
            self.truth.failed_trials = 0
        change, error = self.breakers[one].reset()
        assert error is None
        assert change == (None if before == "closed" else BreakerChanged("one", before, "closed", None))
        self.learn(one)

    @rule(one=GUARDS)
    def end_open_time(self, one: int) -> None:
        """An operator brings the scanner back: the next attempt is a trial, also after a look of another process."""
        self.truth.settle_clock(self.wall)
        if self.truth.state == "open":
            self.truth.open_until = min(self.truth.open_until, self.wall)
        assert self.breakers[one].end_open_time() is None
        self.learn(one)

    @rule(one=GUARDS, outcomes=st.lists(st.booleans(), min_size=1, max_size=5))
    def attempt(self, one: int, outcomes: list[bool]) -> None:
        """Ask and vote, once or several times; wait where that is what it takes, as a run of every minute does."""
        for well in outcomes:
            if self.is_open(one):
                self.fleet.clock.advance(self.known[one].open_until - self.monotonic)
            granted = len(self.granted)
            self.ask(one)
            if len(self.granted) > granted:
                self.vote_for(self.granted[-1], not well)

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), failed=st.sampled_from([True, True, True, False, None]))
    def vote(self, data: st.DataObject, failed: bool | None) -> None:
        self.vote_for(self.granted[data.draw(st.integers(0, len(self.granted) - 1), label="permit")], failed)

    def vote_for(self, permit: Granted, failed: bool | None) -> None:
        one = self.breakers.index(permit.owner)
        updates = self.fleet.store.updates
        change = permit.owner.vote(permit.permit, failed)
        if not self.matters(one, permit, failed):
            assert change is None
            assert self.fleet.store.updates == updates
        else:
            assert self.fleet.store.updates == updates + 1
            self.truth.settle_clock(self.wall)
            self.count(permit, failed, change)
            self.learn(one)
        permit.voted = True

    def matters(self, one: int, permit: Granted, failed: bool | None) -> bool:
        known = self.known[one].truth
        if permit.voted or known is None or permit.generation != known.generation:
            return False
        kept = known.failures(self.monotonic + self.known[one].ahead)
        return permit.trial or failed is True or (failed is False and kept > 0)

    def count(self, permit: Granted, failed: bool | None, change: Change) -> None:
        truth = self.truth
        if permit.generation != truth.generation or truth.state == "open":
            assert change is None, "late outcomes have no vote, across processes too"
            return
        truth.trials.pop(permit.permit, None)
        before = truth.state
        if failed:
            if truth.within is not None and before == "closed":
                truth.failed = [at for at in truth.failed if self.wall - at <= truth.within]
            truth.failed = [*truth.failed, self.wall]
        elif failed is False:
            truth.failed = []
            truth.successes += before == "half_open"
        if failed and (before == "half_open" or len(truth.failed) >= self.failures):
            self.open(before, change)
        elif failed is False and before == "half_open" and truth.successes >= self.trials:
            truth.turn("closed")
            truth.failed_trials = 0
            assert change == BreakerChanged("one", "half_open", "closed", None)
        else:
            assert change is None

    def open(self, before: str, change: Change) -> None:
        truth = self.truth
        truth.failed_trials = truth.failed_trials + 1 if before == "half_open" else 0
        truth.turn("open")
        assert change is not None
        assert (change.old, change.new) == (before, "open")
        grown = OPEN_FOR * 2**truth.failed_trials
        expected = [OPEN_FOR] if before == "closed" else [min(OPEN_CAP, 0.75 * grown), min(OPEN_CAP, grown)]
        assert change.open_for in expected
        truth.open_for = change.open_for or 0.0
        truth.open_until = self.wall + truth.open_for

    # what holds

    def is_open(self, one: int) -> bool:
        known = self.known[one].truth
        return known is not None and known.state == "open" and self.monotonic < self.known[one].open_until

    @invariant()
    def each_knows_what_it_has_seen(self) -> None:
        for one, breaker in enumerate(self.breakers):
            known = self.known[one].truth
            assert breaker.state == ("closed" if known is None else known.state)
            now = self.monotonic + self.known[one].ahead
            assert breaker.failures == (0 if known is None else known.failures(now))
            assert breaker.is_open() == self.is_open(one)

    @invariant()
    def the_store_has_the_truth(self) -> None:
        data = self.fleet.store.read(KEY).get(KEY)
        record = None if data is None else decode(data)
        if record is None:
            assert (data, self.truth.generation, self.truth.failed) == (None, 0, [])
            return
        truth = self.truth
        assert record.state.replace("-", "_") == truth.state
        assert (record.generation, record.failures, record.successes) == (
            truth.generation,
            len(truth.failed),
            truth.successes,
        )
        assert sorted(record.trials.values()) == sorted(truth.trials.values())
        assert len(record.trials) <= self.trials


def test_breakers_on_one_store_behave_like_the_model(machine_settings: settings) -> None:
    run_state_machine_as_test(SharedBreakerMachine, settings=settings(machine_settings, max_examples=examples(150)))
