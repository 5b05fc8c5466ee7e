"""A breaker whose state is in a store: what others see of it, and what it costs."""

from __future__ import annotations

import threading
from random import Random
from typing import Any

import pytest

from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker import CircuitBreaker, Permit
from tests.support.breakers import CLOSED, KEY, OPENED, TRYING, Fleet, fail, record, refusal, succeed

AWAY = StoreError("the store is away")

# between processes, and after a restart


def test_failures_of_several_processes_add_up() -> None:
    fleet = Fleet(failures=3)
    first, second = fleet.breaker(), fleet.breaker()
    assert [fail(first), fail(second)] == [None, None]
    assert fail(first) == OPENED
    assert (second.state, first.state) == ("closed", "open"), "the other one has not looked yet"
    fleet.look(second)
    assert second.state == "open"
    assert refusal(second) == "the breaker of one is open, next trial in 8s"


def test_a_process_for_each_attempt() -> None:
    """Cron: every run is a new process."""
    fleet = Fleet(failures=5)
    assert [fail(fleet.breaker()) for _ in range(5)] == [None] * 4 + [OPENED]
    fleet.clock.advance(7.5)
    assert refusal(fleet.breaker()) == "the breaker of one is open, next trial in 0.5s"
    fleet.clock.advance(0.5)
    permit, change = fleet.breaker().admit()
    assert change == TRYING
    assert refusal(fleet.breaker()) == "the breaker of one is half-open and its trial is still under way"
    assert permit.expires == 16


def test_a_success_resets_the_count_for_all() -> None:
    fleet = Fleet(failures=2)
    fail(fleet.breaker())
    succeed(fleet.breaker())
    assert fail(fleet.breaker()) is None
    assert record(fleet).failures == 1


def test_the_open_time_grows_over_restarts_and_shrinks_after_health() -> None:
    fleet = Fleet(open_cap=20)
    opened: list[Any] = [fail(fleet.breaker())]
    for _ in range(3):
        fleet.clock.advance((opened[-1].open_for or 0) + 1e-6)  # the wall clock's seconds have few decimals
        opened.append(fail(fleet.breaker(random=Random(1))))
    first, second, third, fourth = (change.open_for for change in opened)
    assert first == 8
    assert 12 <= second <= 16
    assert (third, fourth) == (20, 20)
    fleet.clock.advance(20 + 1e-6)
    assert succeed(fleet.breaker()) == CLOSED
    assert fail(fleet.breaker()) == OPENED


def test_a_breaker_that_has_not_read_the_record_does_so_with_its_first_attempt() -> None:
    fleet = Fleet(failures=2)
    fail(fleet.breaker())
    late = fleet.breaker(look=False)
    assert fail(late) == OPENED


def test_trials_are_counted_over_all() -> None:
    fleet = Fleet(trials=2)
    fail(fleet.breaker())
    fleet.clock.advance(8)
    first, second, third = (fleet.breaker() for _ in range(3))
    one, change = first.admit()
    two, silent = second.admit()
    assert (change, silent) == (TRYING, None), "each change is announced once"
    assert "its trial is still under way" in refusal(third)
    assert first.vote(one, False) is None
    assert third.admit()[0].expires is not None, "one has ended"
    assert second.vote(two, False) == CLOSED


def test_a_trial_that_gives_its_permit_back_makes_room_for_others() -> None:
    fleet = Fleet()
    first, second = fleet.breaker(), fleet.breaker()
    fail(first)
    fleet.look(second)
    fleet.clock.advance(8)
    permit, _ = first.admit()
    refusal(second)
    assert first.vote(permit, None) is None
    assert second.admit()[0].expires is not None


@pytest.mark.parametrize(("ends", "expires"), [(8 + 3, 8 + 4), (8 + 500, 8 + 8)])
def test_the_place_of_a_dead_process_is_free_a_second_after_its_timeout_at_latest_after_open_for(
    ends: float, expires: float
) -> None:
    fleet = Fleet()
    dead, other = fleet.breaker(), fleet.breaker()
    fail(dead)
    fleet.look(other)
    fleet.clock.advance(8)
    dead.admit(ends)
    refusal(other)
    assert other.next_trial_in() == expires - 8
    fleet.clock.advance(expires - 8 - 0.25)
    refusal(other)
    fleet.clock.advance(0.25)
    assert succeed(other) == CLOSED


def test_a_late_outcome_of_an_older_generation_has_no_vote_in_any_process() -> None:
    fleet = Fleet()
    slow, other = fleet.breaker(), fleet.breaker()
    permit, _ = slow.admit()
    fail(other)
    fleet.clock.advance(8)
    assert succeed(other) == CLOSED
    assert slow.vote(permit, True) is None
    assert record(fleet).state == "closed"
    assert record(fleet).failures == 0
    assert fail(slow) == OPENED, "it has come store with the new generation"


def test_a_change_is_announced_though_the_state_was_known_before_another() -> None:
    fleet = Fleet(open_cap=8)
    first = fleet.breaker()
    fail(first)
    fleet.clock.advance(8)
    assert first.admit()[1] == TRYING  # and it hangs
    fleet.clock.advance(8)
    assert fail(fleet.breaker()) == BreakerChanged("one", "half_open", "open", 8)
    fleet.clock.advance(8)
    assert first.admit()[1] == TRYING


def test_a_success_that_does_not_know_of_failures_costs_nothing_and_resets_nothing() -> None:
    fleet = Fleet(failures=2)
    first, second = fleet.breaker(), fleet.breaker()
    fail(first)
    succeed(second)
    assert record(fleet).failures == 1


# what it costs


def test_what_goes_well_asks_the_store_nothing() -> None:
    fleet = Fleet()
    breaker = fleet.breaker()
    for _ in range(10):
        succeed(breaker)
        assert breaker.vote(breaker.admit()[0], None) is None
    assert (fleet.store.updates, fleet.store.read("")) == (0, {})
    breaker.flush()
    assert fleet.store.updates == 0


def test_a_failure_is_one_update_and_a_refusal_none() -> None:
    fleet = Fleet(failures=2)
    breaker = fleet.breaker()
    fail(breaker)
    assert (fleet.store.updates, fleet.store.writes) == (1, 1)
    fail(breaker)
    assert fleet.store.updates == 2
    for _ in range(5):
        refusal(breaker)
        assert breaker.is_open()
        assert breaker.state == "open"
        assert breaker.next_trial_in() == 8
        assert breaker.failures == 2
    assert fleet.store.updates == 2


def test_a_breaker_that_finds_no_record_writes_none() -> None:
    fleet = Fleet()
    succeed(fleet.breaker(look=False))
    assert (fleet.store.updates, fleet.store.read("")) == (1, {})


def test_a_refusal_by_another_process_trial_is_not_written() -> None:
    fleet = Fleet()
    first, second = fleet.breaker(), fleet.breaker()
    fail(first)
    fleet.look(second)
    fleet.clock.advance(8)
    first.admit()
    written = record(fleet).revision
    refusal(second)
    assert record(fleet).revision == written


def test_no_store_is_asked_on_a_thread_that_must_not_wait() -> None:
    fleet = Fleet()
    breaker = fleet.breaker()
    assert breaker.vote(breaker.admit()[0], True, wait=False) == OPENED
    assert (fleet.store.updates, breaker.state) == (0, "open")
    assert breaker.flush() is None, "it has been announced"
    assert record(fleet).state == "open"
    assert breaker.flush() is None
    assert fleet.store.updates == 1


def test_what_a_watchdog_has_found_goes_along_with_the_next_vote() -> None:
    fleet = Fleet(failures=2)
    breaker = fleet.breaker()
    one, two = breaker.admit()[0], breaker.admit()[0]
    assert breaker.vote(one, True, wait=False) is None
    assert breaker.vote(two, True) == OPENED
    assert (fleet.store.updates, record(fleet).failures) == (1, 2)


def test_a_change_that_a_watchdogs_vote_makes_in_the_store_is_announced_by_the_flush() -> None:
    fleet = Fleet(failures=2)
    breaker, other = fleet.breaker(), fleet.breaker()
    permit = breaker.admit()[0]
    fail(other)
    assert breaker.vote(permit, True, wait=False) is None, "the first failure, as far as it knows"
    assert breaker.flush() == OPENED
    assert breaker.state == "open"


def test_a_watchdog_is_not_kept_waiting_by_somebody_at_the_store() -> None:
    fleet = Fleet(failures=3)
    breaker = fleet.breaker()
    permit, slow = breaker.admit()[0], breaker.admit()[0]
    arrived, released = threading.Event(), threading.Event()
    update = fleet.store.update

    def dawdling(key: str, change: Any) -> Any:
        arrived.set()
        assert released.wait(5)
        return update(key, change)

    fleet.store.update = dawdling  # type: ignore[method-assign]
    other = threading.Thread(target=breaker.vote, args=(slow, True), daemon=True)
    other.start()
    assert arrived.wait(5)
    assert breaker.vote(permit, True, wait=False) is None
    assert (breaker.failures, breaker.next_trial_in()) == (2, 0)
    released.set()
    other.join(5)
    assert breaker.failures == 2, "what came meanwhile is not forgotten"
    breaker.flush()
    assert record(fleet).failures == 2


def test_two_at_once_tell_a_change_once() -> None:
    fleet = Fleet(failures=2)
    breaker = fleet.breaker()
    permits = [breaker.admit()[0] for _ in range(2)]
    together = threading.Barrier(2)
    changes: list[BreakerChanged | None] = []

    def vote(permit: Permit) -> None:
        together.wait(5)
        changes.append(breaker.vote(permit, True))

    threads = [threading.Thread(target=vote, args=(permit,), daemon=True) for permit in permits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(changes, key=str, reverse=True) == [None, OPENED]


# a window of rates

RATE = {"failures": 100, "failure_rate": 0.5, "window": 4, "minimum": 4}


def test_successes_wait_for_the_next_failure() -> None:
    fleet = Fleet(**RATE)
    breaker = fleet.breaker()
    for _ in range(6):
        succeed(breaker)
    assert fleet.store.updates == 0
    assert breaker.window_counts() == (4, 0, 0)
    fail(breaker)
    assert (fleet.store.updates, record(fleet).window) == (1, bytes([0, 0, 0, 1]))
    restarted = fleet.breaker()
    assert restarted.window_counts() == (4, 1, 0)
    assert fail(restarted) == OPENED


def test_or_for_the_end_of_the_run() -> None:
    fleet = Fleet(**RATE)
    breaker = fleet.breaker()
    succeed(breaker)
    assert breaker.flush() is None
    assert record(fleet).window == bytes([0])


def test_or_for_the_next_run() -> None:
    fleet = Fleet(**RATE)
    breaker = fleet.breaker()
    succeed(breaker)
    fleet.look(breaker)
    assert record(fleet).window == bytes([0])


def test_a_run_passes_over_a_breaker_that_has_nothing_for_the_store() -> None:
    fleet = Fleet(failures=3)
    breaker = fleet.breaker(look=False)
    assert fleet.awake[breaker] == {KEY}, "it has not looked at its record yet"
    fleet.look(breaker, breaker)
    succeed(breaker)
    assert fleet.awake[breaker] == set()
    breaker.vote(breaker.admit()[0], True, wait=False)
    assert fleet.awake[breaker] == {KEY}


def test_but_not_over_one_that_an_operator_has_closed_while_the_store_was_away() -> None:
    fleet = Fleet()
    breaker, other = fleet.breaker(), fleet.breaker()
    assert fail(other) == OPENED
    fleet.look(breaker)
    fleet.store.away = AWAY
    breaker.reset()
    assert fleet.awake[breaker] == {KEY}


def test_nor_over_one_with_a_vote_that_comes_while_the_run_looks() -> None:
    fleet = Fleet(failures=3)
    breaker = fleet.breaker(look=False)
    fleet.look(breaker)
    permit, _ = breaker.admit()
    assert breaker._sync is not None

    class LateLock:
        """Is free a moment too late: a watchdog has voted meanwhile."""

        def __enter__(self) -> None:
            assert breaker.vote(permit, True, wait=False) is None

        def __exit__(self, *_raised: object) -> None:
            pass

    lock, breaker._sync._lock = breaker._sync._lock, LateLock()  # type: ignore[assignment]
    fleet.look(breaker)
    breaker._sync._lock = lock
    assert fleet.awake[breaker] == {KEY}
    fleet.look(breaker)
    assert record(fleet).failures == 1


def test_a_success_that_opens_it_is_written_at_once() -> None:
    fleet = Fleet(**RATE)
    breaker = fleet.breaker()
    assert [fail(breaker), fail(breaker), succeed(breaker)] == [None] * 3
    assert (breaker.failures, succeed(breaker)) == (0, OPENED)
    assert record(fleet).state == "open"


def test_so_is_a_trial_of_several_after_it() -> None:
    fleet = Fleet(**RATE, trials=2)
    breaker, other = fleet.breaker(), fleet.breaker()
    for vote in (fail, fail, succeed, succeed):
        vote(breaker)
    fleet.look(other)
    fleet.clock.advance(8)
    assert breaker.failures == 0
    assert succeed(breaker) is None
    assert succeed(other) == CLOSED


def test_slow_ones_are_written_at_once_and_count_together() -> None:
    fleet = Fleet(failures=9, slow_after=1, slow_rate=1.0, window=2, minimum=2)
    first, second = fleet.breaker(), fleet.breaker()
    slow, too_slow = slow_permit(first), slow_permit(second)
    fleet.clock.advance(1)
    assert first.note_slow(slow) is None
    assert fleet.store.updates == 1
    assert second.note_slow(too_slow) == OPENED


def slow_permit(breaker: CircuitBreaker) -> Permit:
    permit, _ = breaker.admit()
    permit.slow_at = breaker._clock.monotonic() + 1
    return permit


def test_what_a_watchdog_has_noted_is_written_with_the_next_vote() -> None:
    fleet = Fleet(failures=9, slow_after=1, slow_rate=1.0, window=4, minimum=4)
    breaker, other = fleet.breaker(), fleet.breaker()
    permit = slow_permit(breaker)
    fleet.clock.advance(1)
    assert breaker.note_slow(permit, wait=False) is None
    assert fleet.store.updates == 0
    breaker.flush()
    fleet.look(other)
    assert other.window_counts() == breaker.window_counts() == (1, 0, 1)


@pytest.mark.parametrize(("failed", "counts"), [(True, (2, 2, 2)), (False, (2, 1, 2)), (None, (2, 1, 2))])
def test_a_slow_attempt_has_one_entry_in_the_record_too(failed: bool | None, counts: tuple[int, int, int]) -> None:
    """Its outcome comes from another process's votes in between, and after a time without the store."""
    fleet = Fleet(failures=9, slow_after=1, slow_rate=1.0, window=4, minimum=4)
    breaker, other = fleet.breaker(), fleet.breaker()
    permit, others = slow_permit(breaker), slow_permit(other)
    fleet.clock.advance(1)
    breaker.note_slow(permit)
    fleet.store.away = AWAY
    other.note_slow(others)
    other.vote(others, True)
    fleet.store.away = None
    other.flush()
    breaker.vote(permit, failed)
    breaker.flush()
    fleet.look(other)
    assert other.window_counts() == counts


def test_slow_attempts_are_not_forgotten_while_the_store_is_away() -> None:
    """Each casts two votes for one entry of the window."""
    fleet = Fleet(failures=9, slow_after=1, slow_rate=1.0, failure_rate=1.0, window=4, minimum=4)
    breaker, other = fleet.breaker(), fleet.breaker()
    fleet.store.away = AWAY
    permits = [slow_permit(breaker) for _ in range(3)]
    fleet.clock.advance(1)
    for permit in permits:
        breaker.note_slow(permit)
        breaker.vote(permit, True)
    fleet.store.away = None
    breaker.flush()
    fleet.look(other)
    assert other.window_counts() == (3, 3, 3)
