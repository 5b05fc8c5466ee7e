"""A breaker whose state is in a store: what others see of it, what it costs, and what becomes of it without one."""

from __future__ import annotations

import logging
import threading
from random import Random
from typing import Any

import msgspec
import pytest

from resilient_scan import CircuitOpen, ScanContext
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker import Guard, Permit
from resilient_scan.layers.breaker.record import Record, read, write
from tests.breakers import KEY, Fleet

OPENED = BreakerChanged("one", "closed", "open", 8.0)
TRYING = BreakerChanged("one", "open", "half_open", None)
CLOSED = BreakerChanged("one", "half_open", "closed", None)
AWAY = StoreError("the store is away")


def fail(guard: Guard) -> BreakerChanged | None:
    return guard.vote(guard.admit()[0], True)


def succeed(guard: Guard) -> BreakerChanged | None:
    return guard.vote(guard.admit()[0], False)


def refusal(guard: Guard) -> str:
    with pytest.raises(CircuitOpen) as caught:
        guard.admit()
    return str(caught.value)


def record(fleet: Fleet) -> Record:
    kept = read(fleet.store.read(KEY)[KEY])
    assert kept is not None
    return kept


# between processes, and after a restart


def test_failures_of_several_processes_add_up() -> None:
    fleet = Fleet(failures=3)
    first, second = fleet.guard(), fleet.guard()
    assert [fail(first), fail(second)] == [None, None]
    assert fail(first) == OPENED
    assert (second.state, first.state) == ("closed", "open"), "the other one has not looked yet"
    fleet.look(second)
    assert second.state == "open"
    assert refusal(second) == "the breaker of one is open, next trial in 8s"


def test_a_process_for_each_attempt() -> None:
    """Cron: every run is a new process."""
    fleet = Fleet(failures=5)
    assert [fail(fleet.guard()) for _ in range(5)] == [None] * 4 + [OPENED]
    fleet.clock.advance(7.5)
    assert refusal(fleet.guard()) == "the breaker of one is open, next trial in 0.5s"
    fleet.clock.advance(0.5)
    permit, change = fleet.guard().admit()
    assert change == TRYING
    assert refusal(fleet.guard()) == "the breaker of one is half-open and its trial is still under way"
    assert permit.expires == 16


def test_a_success_resets_the_count_for_all() -> None:
    fleet = Fleet(failures=2)
    fail(fleet.guard())
    succeed(fleet.guard())
    assert fail(fleet.guard()) is None
    assert record(fleet).failures == 1


def test_the_open_time_grows_over_restarts_and_shrinks_after_health() -> None:
    fleet = Fleet(open_cap=20)
    opened: list[Any] = [fail(fleet.guard())]
    for _ in range(3):
        fleet.clock.advance((opened[-1].open_for or 0) + 1e-6)  # the wall clock's seconds have few decimals
        opened.append(fail(fleet.guard(random=Random(1))))
    first, second, third, fourth = (change.open_for for change in opened)
    assert first == 8
    assert 12 <= second <= 16
    assert (third, fourth) == (20, 20)
    fleet.clock.advance(20 + 1e-6)
    assert succeed(fleet.guard()) == CLOSED
    assert fail(fleet.guard()) == OPENED


def test_who_has_not_looked_does_so_with_its_first_attempt() -> None:
    fleet = Fleet(failures=2)
    fail(fleet.guard())
    late = fleet.guard(look=False)
    assert fail(late) == OPENED


def test_trials_are_counted_over_all() -> None:
    fleet = Fleet(trials=2)
    fail(fleet.guard())
    fleet.clock.advance(8)
    first, second, third = (fleet.guard() for _ in range(3))
    one, change = first.admit()
    two, silent = second.admit()
    assert (change, silent) == (TRYING, None), "each change is told once"
    assert "its trial is still under way" in refusal(third)
    assert first.vote(one, False) is None
    assert third.admit()[0].expires is not None, "one has ended"
    assert second.vote(two, False) == CLOSED


def test_a_trial_that_gives_its_permit_back_makes_room_for_others() -> None:
    fleet = Fleet()
    first, second = fleet.guard(), fleet.guard()
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
    dead, other = fleet.guard(), fleet.guard()
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
    slow, other = fleet.guard(), fleet.guard()
    permit, _ = slow.admit()
    fail(other)
    fleet.clock.advance(8)
    assert succeed(other) == CLOSED
    assert slow.vote(permit, True) is None
    assert record(fleet).state == "closed"
    assert record(fleet).failures == 0
    assert fail(slow) == OPENED, "it has come home with the new generation"


def test_a_change_is_told_though_the_state_is_the_one_that_was_known_before_another() -> None:
    fleet = Fleet(open_cap=8)
    first = fleet.guard()
    fail(first)
    fleet.clock.advance(8)
    assert first.admit()[1] == TRYING  # and it hangs
    fleet.clock.advance(8)
    assert fail(fleet.guard()) == BreakerChanged("one", "half_open", "open", 8)
    fleet.clock.advance(8)
    assert first.admit()[1] == TRYING


def test_a_success_that_does_not_know_of_failures_costs_nothing_and_resets_nothing() -> None:
    fleet = Fleet(failures=2)
    first, second = fleet.guard(), fleet.guard()
    fail(first)
    succeed(second)
    assert record(fleet).failures == 1


# what it costs


def test_what_goes_well_asks_the_store_nothing() -> None:
    fleet = Fleet()
    guard = fleet.guard()
    for _ in range(10):
        succeed(guard)
        assert guard.vote(guard.admit()[0], None) is None
    assert (fleet.store.updates, fleet.store.read("")) == (0, {})
    guard.settle()
    assert fleet.store.updates == 0


def test_a_failure_is_one_update_and_a_refusal_none() -> None:
    fleet = Fleet(failures=2)
    guard = fleet.guard()
    fail(guard)
    assert (fleet.store.updates, fleet.store.writes) == (1, 1)
    fail(guard)
    assert fleet.store.updates == 2
    for _ in range(5):
        refusal(guard)
        assert guard.is_open()
        assert guard.state == "open"
        assert guard.next_trial_in() == 8
        assert guard.failures == 2
    assert fleet.store.updates == 2


def test_who_has_not_looked_and_finds_nothing_writes_nothing() -> None:
    fleet = Fleet()
    succeed(fleet.guard(look=False))
    assert (fleet.store.updates, fleet.store.read("")) == (1, {})


def test_a_refusal_by_another_process_trial_is_not_written() -> None:
    fleet = Fleet()
    first, second = fleet.guard(), fleet.guard()
    fail(first)
    fleet.look(second)
    fleet.clock.advance(8)
    first.admit()
    written = record(fleet).revision
    refusal(second)
    assert record(fleet).revision == written


def test_no_store_is_asked_on_a_thread_that_must_not_wait() -> None:
    fleet = Fleet()
    guard = fleet.guard()
    assert guard.vote(guard.admit()[0], True, wait=False) == OPENED
    assert (fleet.store.updates, guard.state) == (0, "open")
    assert guard.settle() is None, "it has been told"
    assert record(fleet).state == "open"
    assert guard.settle() is None
    assert fleet.store.updates == 1


def test_what_a_watchdog_has_found_goes_along_with_the_next_vote() -> None:
    fleet = Fleet(failures=2)
    guard = fleet.guard()
    one, two = guard.admit()[0], guard.admit()[0]
    assert guard.vote(one, True, wait=False) is None
    assert guard.vote(two, True) == OPENED
    assert (fleet.store.updates, record(fleet).failures) == (1, 2)


def test_what_a_watchdog_vote_comes_to_in_the_store_is_told_by_who_brings_it() -> None:
    fleet = Fleet(failures=2)
    guard, other = fleet.guard(), fleet.guard()
    permit = guard.admit()[0]
    fail(other)
    assert guard.vote(permit, True, wait=False) is None, "the first failure, as far as it knows"
    assert guard.settle() == OPENED
    assert guard.state == "open"


def test_a_watchdog_is_not_kept_waiting_by_somebody_at_the_store() -> None:
    fleet = Fleet(failures=3)
    guard = fleet.guard()
    permit, slow = guard.admit()[0], guard.admit()[0]
    arrived, released = threading.Event(), threading.Event()
    update = fleet.store.update

    def dawdling(key: str, change: Any) -> Any:
        arrived.set()
        assert released.wait(5)
        return update(key, change)

    fleet.store.update = dawdling  # type: ignore[method-assign]
    other = threading.Thread(target=guard.vote, args=(slow, True), daemon=True)
    other.start()
    assert arrived.wait(5)
    assert guard.vote(permit, True, wait=False) is None
    assert (guard.failures, guard.next_trial_in()) == (2, 0)
    released.set()
    other.join(5)
    assert guard.failures == 2, "what came meanwhile is not forgotten"
    guard.settle()
    assert record(fleet).failures == 2


def test_two_at_once_tell_a_change_once() -> None:
    fleet = Fleet(failures=2)
    guard = fleet.guard()
    permits = [guard.admit()[0] for _ in range(2)]
    together = threading.Barrier(2)
    told: list[BreakerChanged | None] = []

    def vote(permit: Permit) -> None:
        together.wait(5)
        told.append(guard.vote(permit, True))

    threads = [threading.Thread(target=vote, args=(permit,), daemon=True) for permit in permits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(told, key=str, reverse=True) == [None, OPENED]


# a window of rates

RATE = {"failures": 100, "failure_rate": 0.5, "window": 4, "minimum": 4}


def test_successes_wait_for_the_next_failure() -> None:
    fleet = Fleet(**RATE)
    guard = fleet.guard()
    for _ in range(6):
        succeed(guard)
    assert fleet.store.updates == 0
    assert guard.troubled() == (4, 0, 0)
    fail(guard)
    assert (fleet.store.updates, record(fleet).window) == (1, bytes([0, 0, 0, 1]))
    restarted = fleet.guard()
    assert restarted.troubled() == (4, 1, 0)
    assert fail(restarted) == OPENED


def test_or_for_the_end_of_the_run() -> None:
    fleet = Fleet(**RATE)
    guard = fleet.guard()
    succeed(guard)
    assert guard.settle() is None
    assert record(fleet).window == bytes([0])


def test_or_for_the_next_run() -> None:
    fleet = Fleet(**RATE)
    guard = fleet.guard()
    succeed(guard)
    fleet.look(guard)
    assert record(fleet).window == bytes([0])


def test_a_success_that_opens_it_is_written_at_once() -> None:
    fleet = Fleet(**RATE)
    guard = fleet.guard()
    assert [fail(guard), fail(guard), succeed(guard)] == [None] * 3
    assert (guard.failures, succeed(guard)) == (0, OPENED)
    assert record(fleet).state == "open"


def test_so_is_a_trial_of_several_after_it() -> None:
    fleet = Fleet(**RATE, trials=2)
    guard, other = fleet.guard(), fleet.guard()
    for vote in (fail, fail, succeed, succeed):
        vote(guard)
    fleet.look(other)
    fleet.clock.advance(8)
    assert guard.failures == 0
    assert succeed(guard) is None
    assert succeed(other) == CLOSED


def test_slow_ones_are_written_at_once_and_count_together() -> None:
    fleet = Fleet(failures=9, slow_after=1, slow_rate=1.0, window=2, minimum=2)
    first, second = fleet.guard(), fleet.guard()
    assert first.vote(first.admit()[0], False, slow=True) is None
    assert fleet.store.updates == 1
    assert second.vote(second.admit()[0], False, slow=True) == OPENED


# the clock


def test_a_jump_back_costs_one_open_time_at_most() -> None:
    fleet = Fleet()
    fail(fleet.guard())
    fleet.clock.advance(4)
    fleet.clock.jumped -= 86_400
    assert refusal(fleet.guard()) == "the breaker of one is open, next trial in 8s"
    fleet.clock.advance(7.5)
    assert refusal(fleet.guard()) == "the breaker of one is open, next trial in 0.5s", "counted from the jump, not anew"
    fleet.clock.advance(0.5)
    assert succeed(fleet.guard()) == CLOSED


def test_a_jump_back_does_not_concern_who_has_counted_the_time_itself() -> None:
    fleet = Fleet()
    guard = fleet.guard()
    fail(guard)
    fleet.clock.advance(4)
    fleet.clock.jumped -= 6
    fleet.look(guard)
    assert guard.next_trial_in() == 4
    fleet.clock.advance(4)
    assert succeed(guard) == CLOSED


def test_a_jump_ahead_brings_the_trial_earlier() -> None:
    fleet = Fleet()
    guard = fleet.guard()
    fail(guard)
    fleet.clock.jumped += 86_400
    assert succeed(fleet.guard()) == CLOSED
    fleet.look(guard)
    assert guard.state == "closed"


def test_an_opening_in_a_future_that_was_taken_back() -> None:
    fleet = Fleet()
    fleet.clock.jumped += 86_400
    fail(fleet.guard())
    fleet.clock.jumped -= 86_400
    fleet.guard()
    fleet.clock.advance(8)
    assert succeed(fleet.guard()) == CLOSED


def test_a_trial_of_the_dead_does_not_last_longer_after_a_jump_back() -> None:
    fleet = Fleet()
    fail(fleet.guard())
    fleet.clock.advance(8)
    fleet.guard().admit()
    fleet.clock.jumped -= 86_400
    refusal(fleet.guard())
    fleet.clock.advance(7.5)
    refusal(fleet.guard())
    fleet.clock.advance(0.5)
    assert succeed(fleet.guard()) == CLOSED


def test_the_growth_survives_a_jump() -> None:
    fleet = Fleet()
    fail(fleet.guard())
    fleet.clock.advance(8)
    fail(fleet.guard())
    fleet.clock.jumped -= 86_400
    assert fleet.guard().next_trial_in() > 8


# other options than before


@pytest.mark.parametrize(
    "changed", [{"failures": 2}, {"failure_rate": 0.1, "window": 2, "minimum": 1}, {"trials": 5}, {"failures": 50}]
)
def test_other_options_take_a_closed_one_on(changed: dict[str, Any]) -> None:
    fleet = Fleet(failures=6)
    for _ in range(4):
        fail(fleet.guard())
    guard = fleet.guard(**changed)
    assert (guard.state, guard.failures) == ("closed", 4)
    opens = "trials" not in changed and changed.get("failures") != 50
    assert (fail(guard) == OPENED) is opens
    assert record(fleet).failures == 5


def test_a_shorter_cap_shortens_what_was_opened_for_longer() -> None:
    fleet = Fleet(open_for=1000)
    fail(fleet.guard())
    assert fleet.guard(open_for=8, open_cap=8).next_trial_in() == 8
    fleet.clock.advance(8)
    assert succeed(fleet.guard(open_for=8, open_cap=8)) == CLOSED


def test_fewer_trials_than_are_under_way() -> None:
    fleet = Fleet(trials=3)
    fail(fleet.guard())
    fleet.clock.advance(8)
    guards = [fleet.guard() for _ in range(3)]
    permits = [guard.admit()[0] for guard in guards]
    guards[0].vote(permits[0], False)
    strict = fleet.guard(trials=1)
    refusal(strict)
    assert strict.next_trial_in() == 8
    guards[1].vote(permits[1], None)
    guards[2].vote(permits[2], None)
    assert succeed(strict) == CLOSED


def test_a_window_that_is_shorter_or_gone() -> None:
    fleet = Fleet(failures=100, failure_rate=1.0, window=8, minimum=8)
    for _ in range(7):
        fail(fleet.guard())
    assert fleet.guard(window=2, minimum=2).troubled() == (2, 2, 0)
    assert fail(fleet.guard(failure_rate=None)) is None
    assert fleet.guard().troubled() == (0, 0, 0)


# what is no record


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({**msgspec.structs.asdict(Record(state="open")), **fields})


GARBAGE = [
    b"",
    b"\x00",
    b"\xff" * 40,
    b"not a record",
    b"\x91" * 5000,
    msgspec.msgpack.encode([1, 2]),
    msgspec.msgpack.encode({"version": 1, "state": "ajar"}),
    packed(state="ajar"),
    packed(generation=-1),
    packed(failures="many"),
    packed(failures=2**63),
    packed(open_until=float("nan")),
    packed(opened_at=float("inf")),
    packed(open_for=float("-inf")),
    packed(trials={"a": float("nan")}),
    packed(trials=[1]),
    packed(window="text"),
    packed(version="1"),
    write(Record(state="open"))[:-1],
]


def test_what_the_garbage_is_made_of_is_none() -> None:
    assert read(packed()) == Record(state="open")


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_a_new_breaker_with_one_warning(data: bytes, look: bool, caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(failures=2)
    fleet.put(data)
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        guard = fleet.guard(look=look)
        assert guard.state == "closed"
        assert [fail(guard), fail(guard)] == [None, OPENED]
    assert [entry.getMessage() for entry in caplog.records] == [
        "one: what the store keeps of its breaker cannot be read; it begins anew, breaker/one"
    ]
    assert record(fleet).state == "open"
    assert fleet.errors == []


def test_garbage_that_comes_again_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(failures=2)
    guard = fleet.guard()
    for _ in range(3):
        fleet.put(b"garbage")
        succeed(guard)
        fail(guard)
        succeed(guard)
    assert len(caplog.records) == 1


def test_absurd_numbers_end() -> None:
    fleet = Fleet(open_cap=20)
    now = fleet.clock.time()
    absurd = Record(
        state="open",
        reopened=2**60,
        failures=2**60,
        opened_at=now,
        open_for=1e300,
        open_until=1e308,
        window=b"\xff" * 99,
    )
    fleet.put(write(absurd))
    assert fleet.guard().next_trial_in() == 20
    fleet.clock.advance(20)
    assert fail(fleet.guard()) == BreakerChanged("one", "half_open", "open", 20)


def test_a_newer_versions_record_is_left_alone() -> None:
    fleet = Fleet()
    data = packed(version=2, novelty=True)
    fleet.put(data)
    guard = fleet.guard()
    assert fail(guard) == OPENED
    assert guard.state == "open"
    assert fleet.store.read(KEY)[KEY] == data
    assert {operation for operation, _ in fleet.errors} == {"update"}
    assert str(fleet.errors[0][1]) == (
        "a newer version of this package keeps breaker/one in the store; upgrade this one"
    )


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
        call(ScanContext("one", clock=fleet.clock))
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
