"""A breaker whose store is away, comes back, or is asked by several at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from resilient_scan import CircuitOpen
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker import Guard
from tests.breakers import CLOSED, KEY, OPENED, TRYING, Fleet, fail, record, refusal, succeed

AWAY = StoreError("the store is away")


# without the store


def test_without_the_store_it_goes_on_by_itself() -> None:
    fleet = Fleet(failures=2, open_cap=8)
    guard = fleet.guard()
    fleet.store.away = AWAY
    assert [fail(guard), fail(guard)] == [None, OPENED]
    refusal(guard)
    fleet.clock.advance(8)
    assert fail(guard) == BreakerChanged("one", "half_open", "open", 8)
    fleet.clock.advance(8)
    permit, change = guard.admit()
    assert change == TRYING
    assert "its trial is still under way" in refusal(guard)
    assert guard.vote(permit, False) == CLOSED
    assert set(fleet.errors) == {("update", AWAY)}


def test_what_a_store_raises_that_is_no_store_error_costs_no_scan_and_tells_no_secret() -> None:
    fleet = Fleet()
    guard = fleet.guard()
    fleet.store.away = OSError("redis://:secret@host is down")
    assert fail(guard) == OPENED
    assert [str(error) for _, error in fleet.errors] == ["the store memory: failed with OSError"]


def test_a_store_that_was_away_from_the_start() -> None:
    fleet = Fleet()
    fleet.store.away = AWAY
    guard = fleet.guard(look=False)
    guard.alone()
    succeed(guard)
    assert fleet.store.updates == 0
    unlooked = fleet.guard(look=False)
    succeed(unlooked)
    succeed(unlooked)
    assert len(fleet.errors) == 1, "only the first attempt asks"


def test_votes_that_waited_count_when_the_store_is_back_from_when_they_were_cast() -> None:
    fleet = Fleet(failures=3)
    guard, other = fleet.guard(), fleet.guard()
    fail(other)
    fleet.look(guard)
    fleet.store.away = AWAY
    assert [fail(guard), fail(guard)] == [None, OPENED]
    fleet.clock.advance(5)
    fleet.store.away = None
    fleet.look(guard)
    assert record(fleet).state == "open"
    assert fleet.guard().next_trial_in() == 3
    assert guard.next_trial_in() == 3


def test_the_next_vote_brings_them_too() -> None:
    fleet = Fleet(failures=3)
    guard = fleet.guard()
    fleet.store.away = AWAY
    fail(guard)
    fail(guard)
    fleet.store.away = None
    assert fail(guard) == OPENED
    assert record(fleet).failures == 3


def test_if_the_record_has_changed_meanwhile_it_is_right() -> None:
    fleet = Fleet(failures=2)
    guard, other = fleet.guard(), fleet.guard()
    fleet.store.away = AWAY
    fail(guard)
    assert fail(guard) == OPENED
    fleet.store.away = None
    assert [fail(other), fail(other)] == [None, OPENED]
    fleet.clock.advance(8)
    assert succeed(other) == CLOSED
    fleet.look(guard)
    assert (guard.state, guard.failures) == ("closed", 0)
    assert record(fleet).state == "closed"


def test_a_history_of_its_own_becomes_the_record_where_that_stood_still() -> None:
    fleet = Fleet()
    guard = fleet.guard()
    fail(guard)
    fleet.store.away = AWAY
    fleet.clock.advance(8)
    assert succeed(guard) == CLOSED
    fleet.store.away = None
    fleet.look(guard)
    assert record(fleet).state == "closed"
    assert fleet.guard().state == "closed"
    assert fail(fleet.guard()) == OPENED


def test_a_trial_of_a_history_that_was_dropped_has_no_vote() -> None:
    fleet = Fleet()
    guard, other = fleet.guard(), fleet.guard()
    fail(guard)
    fleet.look(other)
    fleet.store.away = AWAY
    fleet.clock.advance(8)
    permit, _ = guard.admit()
    fleet.store.away = None
    theirs, _ = other.admit()
    fleet.look(guard)
    assert guard.state == "half_open"
    assert guard.vote(permit, False) is None
    assert record(fleet).state == "half-open"
    assert other.vote(theirs, False) == CLOSED


def test_an_attempt_of_a_closed_time_that_no_record_has_cannot_vote_in_an_open_one_of_the_same_number() -> None:
    fleet = Fleet()
    guard, other = fleet.guard(), fleet.guard()
    fail(guard)
    fleet.look(other)
    fleet.clock.advance(8)
    trial, _ = guard.admit()
    fleet.store.away = AWAY
    assert guard.vote(trial, False) == CLOSED
    late, _ = guard.admit()
    fleet.store.away = None
    fleet.clock.advance(8)
    assert fail(other) is not None
    fleet.look(guard)
    assert record(fleet).generation == late.generation
    assert guard.vote(late, False) is None
    assert (guard.state, record(fleet).state) == ("open", "open")


def test_a_store_that_comes_back_empty_gets_what_is_known() -> None:
    fleet = Fleet(failures=2)
    guard = fleet.guard()
    fail(guard)
    fleet.put(None)
    fleet.look(guard)
    assert guard.failures == 1
    assert fail(guard) == OPENED
    assert record(fleet).state == "open"


def test_what_was_read_before_it_was_written_is_not_taken_over() -> None:
    fleet = Fleet(failures=3)
    guard = fleet.guard()
    fail(guard)
    old, now = fleet.store.read(KEY)[KEY], fleet.store.now()
    fail(guard)
    guard.sync(old, now)
    assert guard.failures == 2
    guard.sync(None, now)
    assert guard.failures == 2


def test_a_run_that_begins_does_not_wait_for_who_is_at_the_store() -> None:
    fleet = Fleet(failures=3)
    guard = fleet.guard()
    fail(guard)
    old, now = fleet.store.read(KEY)[KEY], fleet.store.now()
    permit = guard.admit()[0]
    arrived, released = threading.Event(), threading.Event()
    update = fleet.store.update

    def dawdling(key: str, change: Any) -> Any:
        answer = update(key, change)
        guard._shared._pending.clear()  # type: ignore[union-attr] # as if nothing waited
        arrived.set()
        assert released.wait(5)
        return answer

    fleet.store.update = dawdling  # type: ignore[method-assign]
    other = threading.Thread(target=guard.vote, args=(permit, True), daemon=True)
    other.start()
    assert arrived.wait(5)
    assert guard.sync(old, now) is None
    released.set()
    other.join(5)
    assert not other.is_alive()
    assert guard.failures == 2


def test_votes_that_cannot_matter_any_more_are_not_hoarded() -> None:
    fleet = Fleet(failures=4, failure_rate=1.0, window=4, minimum=4)
    guard = fleet.guard()
    fleet.store.away = AWAY
    for _ in range(50):
        fail(guard)
        succeed(guard)
    assert guard._shared is not None
    assert len(guard._shared._pending) == 4
    fleet.store.away = None
    guard.settle()
    assert record(fleet).window == bytes([1, 0, 1, 0])


# around a call


def test_a_change_that_a_refused_attempt_brought_to_light_is_told() -> None:
    fleet = Fleet(failures=2)
    guard, other = fleet.guard(look=False), fleet.guard()
    changes: list[BreakerChanged] = []
    call = guard.around(lambda _context: ["found"], changes.append)
    fleet.store.away = AWAY
    permit = guard.admit()[0]
    guard.vote(permit, True, wait=False)
    assert guard._shared is not None
    guard._memory.closed = False  # as if nobody had looked
    fleet.store.away = None
    fail(other)
    with pytest.raises(CircuitOpen, match="is open"):
        call(AttemptContext("one", clock=fleet.clock))
    assert changes == [OPENED]


def test_errors_of_the_store_are_told_without_a_lock() -> None:
    fleet = Fleet()
    guards: list[Guard] = []
    seen: list[str] = []

    def tell(_operation: str, _error: StoreError) -> None:
        if not seen:
            seen.append("told")
            other = threading.Thread(
                target=lambda: seen.append(f"{guards[0].next_trial_in()} {guards[0].settle()}"), daemon=True
            )
            other.start()
            other.join(5)

    fleet.on_error = tell  # type: ignore[method-assign]
    guards.append(fleet.guard())
    fleet.store.away = AWAY
    assert fail(guards[0]) == OPENED
    assert seen == ["told", "8.0 None"]


def test_a_probe_is_a_trial_for_all_processes() -> None:
    fleet = Fleet()
    first, second = fleet.guard(), fleet.guard()
    fail(first)
    fleet.look(second)
    second.hasten()
    permit, change = second.admit()
    assert change == TRYING
    assert refusal(first) == "the breaker of one is open, next trial in 8s"  # it has not looked yet
    fleet.look(first)
    assert refusal(first) == "the breaker of one is half-open and its trial is still under way"
    assert second.vote(permit, False) == CLOSED
