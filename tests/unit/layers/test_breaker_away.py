"""A breaker whose store is away, comes back, or is asked by several at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from resilient_scan import CircuitOpen
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker import CircuitBreaker
from tests.support.breakers import CLOSED, KEY, OPENED, TRYING, Fleet, fail, record, refusal, succeed

AWAY = StoreError("the store is away")


# without the store


def test_without_the_store_it_goes_on_by_itself() -> None:
    fleet = Fleet(failures=2, open_cap=8)
    breaker = fleet.breaker()
    fleet.store.away = AWAY
    assert [fail(breaker), fail(breaker)] == [None, OPENED]
    refusal(breaker)
    fleet.clock.advance(8)
    assert fail(breaker) == BreakerChanged("one", "half_open", "open", 8)
    fleet.clock.advance(8)
    permit, change = breaker.admit()
    assert change == TRYING
    assert "its trial is still under way" in refusal(breaker)
    assert breaker.vote(permit, False) == CLOSED
    assert set(fleet.errors) == {("update", AWAY)}


def test_what_a_store_raises_that_is_no_store_error_costs_no_scan_and_tells_no_secret() -> None:
    fleet = Fleet()
    breaker = fleet.breaker()
    fleet.store.away = OSError("redis://:secret@host is down")
    assert fail(breaker) == OPENED
    assert [str(error) for _, error in fleet.errors] == ["the store memory: failed with OSError"]


def test_a_store_that_was_away_from_the_start() -> None:
    fleet = Fleet()
    fleet.store.away = AWAY
    breaker = fleet.breaker(look=False)
    breaker.trust_local()
    succeed(breaker)
    assert fleet.store.updates == 0
    unlooked = fleet.breaker(look=False)
    succeed(unlooked)
    succeed(unlooked)
    assert len(fleet.errors) == 1, "only the first attempt asks"


def test_votes_that_waited_count_when_the_store_is_back_from_when_they_were_cast() -> None:
    fleet = Fleet(failures=3)
    breaker, other = fleet.breaker(), fleet.breaker()
    fail(other)
    fleet.look(breaker)
    fleet.store.away = AWAY
    assert [fail(breaker), fail(breaker)] == [None, OPENED]
    fleet.clock.advance(5)
    fleet.store.away = None
    fleet.look(breaker)
    assert record(fleet).state == "open"
    assert fleet.breaker().next_trial_in() == 3
    assert breaker.next_trial_in() == 3


def test_the_next_vote_brings_them_too() -> None:
    fleet = Fleet(failures=3)
    breaker = fleet.breaker()
    fleet.store.away = AWAY
    fail(breaker)
    fail(breaker)
    fleet.store.away = None
    assert fail(breaker) == OPENED
    assert record(fleet).failures == 3


def test_if_the_record_has_changed_meanwhile_it_is_right() -> None:
    fleet = Fleet(failures=2)
    breaker, other = fleet.breaker(), fleet.breaker()
    fleet.store.away = AWAY
    fail(breaker)
    assert fail(breaker) == OPENED
    fleet.store.away = None
    assert [fail(other), fail(other)] == [None, OPENED]
    fleet.clock.advance(8)
    assert succeed(other) == CLOSED
    fleet.look(breaker)
    assert (breaker.state, breaker.failures) == ("closed", 0)
    assert record(fleet).state == "closed"


def test_a_history_of_its_own_becomes_the_record_where_that_stood_still() -> None:
    fleet = Fleet()
    breaker = fleet.breaker()
    fail(breaker)
    fleet.store.away = AWAY
    fleet.clock.advance(8)
    assert succeed(breaker) == CLOSED
    fleet.store.away = None
    fleet.look(breaker)
    assert record(fleet).state == "closed"
    assert fleet.breaker().state == "closed"
    assert fail(fleet.breaker()) == OPENED


def test_a_trial_of_a_history_that_was_dropped_has_no_vote() -> None:
    fleet = Fleet()
    breaker, other = fleet.breaker(), fleet.breaker()
    fail(breaker)
    fleet.look(other)
    fleet.store.away = AWAY
    fleet.clock.advance(8)
    permit, _ = breaker.admit()
    fleet.store.away = None
    theirs, _ = other.admit()
    fleet.look(breaker)
    assert breaker.state == "half_open"
    assert breaker.vote(permit, False) is None
    assert record(fleet).state == "half-open"
    assert other.vote(theirs, False) == CLOSED


def test_an_attempt_of_a_closed_time_that_no_record_has_cannot_vote_in_an_open_one_of_the_same_number() -> None:
    fleet = Fleet()
    breaker, other = fleet.breaker(), fleet.breaker()
    fail(breaker)
    fleet.look(other)
    fleet.clock.advance(8)
    trial, _ = breaker.admit()
    fleet.store.away = AWAY
    assert breaker.vote(trial, False) == CLOSED
    late, _ = breaker.admit()
    fleet.store.away = None
    fleet.clock.advance(8)
    assert fail(other) is not None
    fleet.look(breaker)
    assert record(fleet).generation == late.generation
    assert breaker.vote(late, False) is None
    assert (breaker.state, record(fleet).state) == ("open", "open")


def test_a_store_that_comes_back_empty_gets_what_is_known() -> None:
    fleet = Fleet(failures=2)
    breaker = fleet.breaker()
    fail(breaker)
    fleet.put(None)
    fleet.look(breaker)
    assert breaker.failures == 1
    assert fail(breaker) == OPENED
    assert record(fleet).state == "open"


def test_what_was_read_before_it_was_written_is_not_taken_over() -> None:
    fleet = Fleet(failures=3)
    breaker = fleet.breaker()
    fail(breaker)
    old, now = fleet.store.read(KEY)[KEY], fleet.store.now()
    fail(breaker)
    breaker.sync(old, now)
    assert breaker.failures == 2
    breaker.sync(None, now)
    assert breaker.failures == 2


def test_a_run_that_begins_does_not_wait_for_an_exchange_under_way() -> None:
    fleet = Fleet(failures=3)
    breaker = fleet.breaker()
    fail(breaker)
    old, now = fleet.store.read(KEY)[KEY], fleet.store.now()
    permit = breaker.admit()[0]
    arrived, released = threading.Event(), threading.Event()
    update = fleet.store.update

    def dawdling(key: str, change: Any) -> Any:
        answer = update(key, change)
        breaker._sync._pending.clear()  # type: ignore[union-attr] # as if nothing waited
        arrived.set()
        assert released.wait(5)
        return answer

    fleet.store.update = dawdling  # type: ignore[method-assign]
    other = threading.Thread(target=breaker.vote, args=(permit, True), daemon=True)
    other.start()
    assert arrived.wait(5)
    assert breaker.sync(old, now) is None
    released.set()
    other.join(5)
    assert not other.is_alive()
    assert breaker.failures == 2


def test_votes_that_cannot_matter_any_more_are_not_hoarded() -> None:
    fleet = Fleet(failures=4, failure_rate=1.0, window=4, minimum=4)
    breaker = fleet.breaker()
    fleet.store.away = AWAY
    for _ in range(50):
        fail(breaker)
        succeed(breaker)
    assert breaker._sync is not None
    assert len(breaker._sync._pending) == 4
    fleet.store.away = None
    breaker.flush()
    assert record(fleet).window == bytes([1, 0, 1, 0])


# around a call


def test_a_change_that_a_refused_attempt_found_is_announced() -> None:
    fleet = Fleet(failures=2)
    breaker, other = fleet.breaker(look=False), fleet.breaker()
    changes: list[BreakerChanged] = []
    call = breaker.around(lambda _context: ["found"], changes.append)
    fleet.store.away = AWAY
    permit = breaker.admit()[0]
    breaker.vote(permit, True, wait=False)
    assert breaker._sync is not None
    breaker.memory.closed = False  # as if nobody had looked
    fleet.store.away = None
    fail(other)
    with pytest.raises(CircuitOpen, match="is open"):
        call(AttemptContext("one", clock=fleet.clock))
    assert changes == [OPENED]


def test_errors_of_the_store_are_reported_without_a_lock() -> None:
    fleet = Fleet()
    breakers: list[CircuitBreaker] = []
    seen: list[str] = []

    def notify(_operation: str, _error: StoreError) -> None:
        if not seen:
            seen.append("notified")
            other = threading.Thread(
                target=lambda: seen.append(f"{breakers[0].next_trial_in()} {breakers[0].flush()}"), daemon=True
            )
            other.start()
            other.join(5)

    fleet.on_error = notify  # type: ignore[method-assign]
    breakers.append(fleet.breaker())
    fleet.store.away = AWAY
    assert fail(breakers[0]) == OPENED
    assert seen == ["notified", "8.0 None"]


def test_a_probe_is_a_trial_for_all_processes() -> None:
    fleet = Fleet()
    first, second = fleet.breaker(), fleet.breaker()
    fail(first)
    fleet.look(second)
    second.allow_trial()
    permit, change = second.admit()
    assert change == TRYING
    assert refusal(first) == "the breaker of one is open, next trial in 8s"  # it has not looked yet
    fleet.look(first)
    assert refusal(first) == "the breaker of one is half-open and its trial is still under way"
    assert second.vote(permit, False) == CLOSED
