"""Two processes that ask for one key: one works, the other waits without a worker, and finds what the first left."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from resilient_scan.clock import SystemClock
from resilient_scan.errors import StoreError
from resilient_scan.stores import leases, open_store
from resilient_scan.stores.groups import exchange, held_back
from resilient_scan.stores.health import Health
from resilient_scan.stores.leases import (
    LEASE_SECONDS,
    LINGER,
    MAX_GRANTED,
    MAX_HELD_BACK,
    MAX_RELEASED,
    POLL_INTERVAL,
    QUICK,
    RENEW_INTERVAL,
    LeaseKeeper,
)
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock
from tests.support.waiting import eventually

TIMEOUT = 5.0
WORKERS = 3


class Work:
    """An execution that waits; it is answered once there is an answer in the store."""

    def __init__(self, store: Any, key: str = "k", expected: float = math.inf) -> None:
        self.ended = False
        self.store, self.key = store, key
        self.expected = expected
        self.found: bytes | None = None
        self.went, self.finished, self.waits = threading.Event(), threading.Event(), threading.Event()

    @property
    def answer_key(self) -> str:
        return f"value/{self.key}"

    def answered(self, data: bytes, _now: float) -> bool:
        self.found, self.ended = data, True
        self.finished.set()
        return True

    def go(self) -> None:
        self.went.set()

    def held_up(self) -> None:
        self.waits.set()


def wanted(keeper: LeaseKeeper, *works: Work) -> None:
    """Request executions and ask for them, as a run does."""
    for work in works:
        assert keeper.request(work.key, work)
    keeper.ask()


def begun(keeper: LeaseKeeper, store: Any, key: str = "k") -> Work:
    """Return an execution that has its lease."""
    work = Work(store, key)
    wanted(keeper, work)
    assert work.went.wait(TIMEOUT)
    return work


def held_up(keeper: LeaseKeeper, store: Any, key: str = "k") -> Work:
    """Return an execution that waits for another process."""
    work = Work(store, key)
    wanted(keeper, work)
    assert work.waits.wait(TIMEOUT)
    assert not work.went.is_set()
    return work


class Late(MemoryStore):
    """A store that shows others what was put only after a flush, and notes the order of things."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.unwritten: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.fails = False

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        self.unwritten[key] = value

    def flush(self) -> None:
        self._check("flush")
        for key, value in self.unwritten.items():
            super().put(key, value, 60)
        self.unwritten = {}
        self.calls.append("flush")

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        self._check("lease")
        return super().lease(key, owner, seconds)

    def release(self, key: str, owner: str, /) -> None:
        self._check("release")
        super().release(key, owner)
        self.calls.append("release")

    def _check(self, operation: str) -> None:
        if self.fails:
            raise StoreError(f"{operation}: the store is away")


@pytest.fixture
def store() -> Late:
    return Late()


@pytest.fixture
def keeper(store: Late) -> Iterator[Callable[[], LeaseKeeper]]:
    keepers: list[LeaseKeeper] = []

    def make(errors: list[str] | None = None, clock: Any = None, store: Any = store) -> LeaseKeeper:
        found = [] if errors is None else errors
        health = Health(lambda event: found.append(event.operation), SystemClock())
        keepers.append(LeaseKeeper(store, clock or SystemClock(), health, WORKERS))
        return keepers[-1]

    yield make
    store.fails = False
    for each in keepers:
        each.close(TIMEOUT)
        thread = each._thread
        if thread is not None:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_the_first_works_and_the_second_finds_its_answer(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    begun(ours, store)
    work = held_up(theirs, store)
    store.put("value/k", b"answer", 60)
    ours.release("k")
    assert work.finished.wait(TIMEOUT)
    assert work.found == b"answer"
    assert not work.went.is_set()


def test_the_answer_is_written_before_the_lease_is_given_back(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours = keeper()
    begun(ours, store)
    ours.release("k")
    assert ours.flush(TIMEOUT)
    assert store.calls[:2] == ["flush", "release"]


def test_the_second_works_when_the_first_brought_nothing(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs, third = keeper(), keeper(), keeper()
    begun(ours, store)
    work = held_up(theirs, store)
    ours.release("k")
    assert work.went.wait(TIMEOUT)
    held_up(third, store)


def test_the_lease_of_an_unknown_process_expires(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    assert store.lease("k", "a process elsewhere", 0.2)
    work = held_up(keeper(), store)
    assert work.went.wait(TIMEOUT)


def test_a_waiter_that_gives_up_is_not_started_and_keeps_no_lease(
    store: Late, keeper: Callable[..., LeaseKeeper]
) -> None:
    ours, theirs = keeper(), keeper()
    begun(ours, store)
    work = held_up(theirs, store)
    work.ended = True
    theirs.release("k")
    ours.release("k")
    assert ours.flush(TIMEOUT)
    assert theirs.flush(TIMEOUT)
    assert not work.went.is_set()
    assert store.lease("k", "anybody", 1)


def test_a_waiter_that_gives_up_while_the_store_is_asked_leaves_its_lease_to_the_next(
    store: Late, keeper: Callable[..., LeaseKeeper]
) -> None:
    """Its `release` comes before it is granted and finds nothing to give back; the next one wants the key by then."""
    ours, lease = keeper(), store.lease
    first, second = Work(store), Work(store)

    def slow(key: str, owner: str, seconds: float) -> bool:
        store.lease = lease  # type: ignore[method-assign]
        first.ended = True
        ours.release("k")
        wanted(ours, second)
        return lease(key, owner, seconds)

    store.lease = slow  # type: ignore[method-assign, assignment]
    wanted(ours, first)
    assert second.went.wait(TIMEOUT)
    assert not first.went.is_set()
    held_up(keeper(), store)


def test_a_new_waiter_takes_the_place_of_one_that_gave_up(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    begun(theirs, store)
    first = held_up(ours, store)
    first.ended = True
    second = held_up(ours, store)
    theirs.release("k")
    assert second.went.wait(TIMEOUT)
    assert not first.went.is_set()


def test_a_runner_may_take_again_what_it_is_about_to_release(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    flushing, resumed = threading.Event(), threading.Event()
    flush = store.flush

    def slow() -> None:
        flushing.set()
        resumed.wait(TIMEOUT)
        flush()

    store.flush = slow  # type: ignore[method-assign]
    begun(ours, store)
    ours.release("k")
    assert flushing.wait(TIMEOUT)
    again = Work(store)
    wanted(ours, again)
    resumed.set()
    assert again.went.wait(TIMEOUT)
    assert ours.flush(TIMEOUT)
    held_up(theirs, store)
    assert "release" not in store.calls


# what is about to start


def test_only_what_is_about_to_start_is_asked_for(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    """Another process would wait for the rest of the queue, with idle workers."""
    ours, works = keeper(), [Work(store, f"k{number}", 1.0) for number in range(20)]
    wanted(ours, *works)
    assert works[2 * WORKERS - 1].went.wait(TIMEOUT)
    assert ours.flush(TIMEOUT)
    assert len(store._leases) == 2 * WORKERS
    for work in works:
        assert work.went.wait(TIMEOUT), "a worker has begun one, so that the next is granted"
        assert len(ours._granted) <= 2 * WORKERS
        ours.started(work.key)


def test_more_is_asked_for_at_a_time_where_it_takes_next_to_no_time(
    store: Late, keeper: Callable[..., LeaseKeeper]
) -> None:
    ours, works = keeper(), [Work(store, f"k{number}", QUICK / 2) for number in range(MAX_GRANTED + 5)]
    wanted(ours, *works)
    assert works[MAX_GRANTED - 1].went.wait(TIMEOUT)
    assert ours.flush(TIMEOUT)
    assert len(store._leases) == MAX_GRANTED


@pytest.mark.parametrize(("seconds", "granted"), [(QUICK / 2, MAX_GRANTED), (QUICK, 2 * WORKERS)])
def test_what_nobody_knows_the_duration_of_is_quick_where_workers_have_been_quick(
    store: Late, keeper: Callable[..., LeaseKeeper], seconds: float, granted: int
) -> None:
    """Of six that were granted three run and one waits, so two have ended."""
    clock = FakeClock()
    ours, works = keeper(clock=clock), [Work(store, f"k{number}") for number in range(2 * MAX_GRANTED)]
    wanted(ours, *works)
    for work in works[: 2 * WORKERS - 1]:
        assert work.went.wait(TIMEOUT)
    clock.advance(seconds * 2 / WORKERS)
    for work in works[: 2 * WORKERS - 1]:
        ours.started(work.key)
    eventually(lambda: len(ours._granted) > 1, "the next are granted")
    assert len(ours._granted) == granted
    assert ours.flush(TIMEOUT)
    assert len(ours._granted) == granted
    for work in works:  # and another run, some time later
        ours.release(work.key)
    clock.advance(2 * POLL_INTERVAL)
    later = [Work(store, f"l{number}") for number in range(MAX_GRANTED)]
    wanted(ours, *later)
    assert later[2 * WORKERS - 1].went.wait(TIMEOUT)
    assert ours.flush(TIMEOUT)
    assert len(ours._granted) == 2 * WORKERS


def test_a_window_is_asked_for_though_its_run_goes_on_beginning_scans(
    store: Late, keeper: Callable[..., LeaseKeeper]
) -> None:
    ours, works = keeper(), [Work(store, f"k{number}") for number in range(MAX_GRANTED)]
    for work in works[:-1]:
        assert ours.request(work.key, work)
    assert ours.flush(TIMEOUT)
    assert not store._leases
    assert ours.request(works[-1].key, works[-1])
    assert works[0].went.wait(TIMEOUT)


# what was found waits for more


def test_what_was_found_is_written_after_a_moment(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    clock = FakeClock()
    ours = keeper(clock=clock)
    for key in "abc":
        begun(ours, store, key)
        ours.started(key)
    for key in "ab":
        ours.release(key)
        clock.advance(LINGER * 0.4)
    assert not store.calls
    clock.advance(LINGER * 0.3)
    eventually(lambda: store.calls == ["flush"], "both are written at once")
    clock.advance(LINGER)
    eventually(lambda: store.calls == ["flush", "release", "release"], "their leases are given back")


def test_what_a_window_has_found_is_written_at_once(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, works = keeper(clock=FakeClock()), [Work(store, f"k{number}", 0.0) for number in range(MAX_RELEASED)]
    wanted(ours, *works)
    assert works[-1].went.wait(TIMEOUT)
    for work in works[:-1]:
        ours.release(work.key)
    assert not store.calls
    ours.release(works[-1].key)
    eventually(lambda: store.calls == ["flush"], "it is written, though the clock stands still")


def test_what_is_large_is_written_at_once(tmp_path: Path, keeper: Callable[..., LeaseKeeper]) -> None:
    with closing(open_store(f"sqlite:///{tmp_path / 'scan.db'}", FakeClock())) as store:
        ours = keeper(clock=FakeClock(), store=store)
        for key in "ab":
            begun(ours, store, key)
            ours.started(key)
        ours.release("a")
        store.put("cache/b", bytes(MAX_HELD_BACK), 60)
        ours.release("b")
        eventually(lambda: not held_back(store), "it is written, though the clock stands still")
        ours.close(TIMEOUT)


def test_what_a_run_is_remembered_by_is_put_before_it_returns_and_written_in_a_moment(
    store: Late, keeper: Callable[..., LeaseKeeper]
) -> None:
    clock = FakeClock()
    ours = keeper(clock=clock)
    assert ours.flush(TIMEOUT, lambda: store.put("run", b"1", 60), written=False)
    assert (store.unwritten, store.calls) == ({"run": b"1"}, [])
    clock.advance(LINGER)
    eventually(lambda: store.calls == ["flush"], "it is written")


def test_what_ended_before_a_worker_began_it_makes_room(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    """What it has given back makes room, not that a moment passes: the clock stands still."""
    ours, works = keeper(clock=FakeClock()), [Work(store, f"k{number}") for number in range(20)]
    wanted(ours, *works)
    for work in works:
        assert work.went.wait(TIMEOUT)
        ours.release(work.key)
    assert ours.flush(TIMEOUT)
    assert not store._leases


def test_what_ended_before_it_was_asked_for_is_not_begun(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, works = keeper(), [Work(store, f"k{number}") for number in range(2 * WORKERS + 1)]
    wanted(ours, *works)
    assert works[-2].went.wait(TIMEOUT)
    ours.release(works[-1].key)
    for work in works[:-1]:
        ours.started(work.key)
    assert ours.flush(TIMEOUT)
    assert not works[-1].went.is_set()


# while it is held


def test_a_lease_is_renewed_while_its_holder_lives(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    clock = FakeClock()
    store._clock = clock
    ours = keeper(clock=clock)
    begun(ours, store)
    for _ in range(10):
        clock.advance(RENEW_INTERVAL + 0.1)
        eventually(lambda: store._leases["k"][1] >= clock.monotonic() + LEASE_SECONDS - 1, "it is renewed")
    assert not store.lease("k", "another", 1)


def test_the_lease_of_a_dead_process_is_taken_over_at_once(tmp_path: Path, keeper: Callable[..., LeaseKeeper]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from resilient_scan.stores.owner import new_owner; print(new_owner())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with closing(open_store(f"sqlite:///{tmp_path / 'scan.db'}", SystemClock())) as store:
        assert not exchange(store, ["a", "b"], ended, 600, [])
        assert not exchange(store, ["c"], "a process elsewhere", 600, [])
        assert exchange(store, ["a", "b", "c"], "ours", 600, []) == {"a": ended, "b": ended, "c": "a process elsewhere"}
        ours = keeper(store=store)
        for key in "ab":
            begun(ours, store, key)
            ours.started(key)
        held_up(ours, store, "c")
        ours.close(TIMEOUT)


def test_a_lease_that_another_process_took_over_first_is_waited_for(
    store: Late, keeper: Callable[..., LeaseKeeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "is_dead", lambda owner: owner == "dead")

    class Grouped(Late):
        def exchange(self, take: Any, *_rest: Any) -> dict[str, str]:
            dead = _rest[3] if len(_rest) > 3 else ()
            return dict.fromkeys(take, "faster" if dead else "dead")

    grouped = Grouped()
    held_up(keeper(store=grouped), grouped)


# a store that fails


def test_a_store_that_fails_stops_nobody_and_is_reported(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    errors: list[str] = []
    ours = keeper(errors)
    store.fails = True
    begun(ours, store)
    assert ours.flush(TIMEOUT), "it was tried"
    assert errors == ["lease", "flush"]


def test_a_store_that_fails_later_lets_the_waiting_go(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    begun(ours, store)
    work = held_up(theirs, store)
    store.fails = True
    assert work.went.wait(TIMEOUT)


def test_a_bug_in_a_store_lets_everyone_go(
    store: Late, keeper: Callable[..., LeaseKeeper], caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_arguments: object) -> bool:
        raise ValueError("a bug")

    store.lease = bug  # type: ignore[method-assign, assignment]
    begun(keeper(), store)
    assert "leases could not be taken" in caplog.text


def test_a_waiter_that_fails_begins_by_itself_and_costs_no_other(
    store: Late, keeper: Callable[..., LeaseKeeper], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Work):
        def answered(self, _data: bytes, _now: float) -> bool:
            raise ValueError("cannot be read")

        def held_up(self) -> None:
            super().held_up()
            raise ValueError("cannot wait")

    ours, theirs = keeper(), keeper()
    broken, work = Broken(store, "a"), Work(store, "b")
    for key in "ab":
        begun(ours, store, key)
    wanted(theirs, broken, work)
    assert broken.waits.wait(TIMEOUT)
    assert work.waits.wait(TIMEOUT)
    for key in "ab":
        store.put(f"value/{key}", b"answer", 60)
    ours.release("b")
    assert work.finished.wait(TIMEOUT)
    ours.release("a")
    assert broken.went.wait(TIMEOUT)
    assert "a: waiting for another process failed" in caplog.text
    assert "a: an execution could not be held up" in caplog.text


# the end


def test_closing_writes_gives_back_and_ends(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    begun(ours, store)
    store.put("value/k", b"late", 60)
    ours.close(TIMEOUT)
    assert store.get("value/k") == b"late"
    store.delete("value/k")
    begun(theirs, store)
    assert not ours.request("k", Work(store)), "a closed runner waits for nobody"
    ours.close(TIMEOUT)
    assert not ours.flush(TIMEOUT)


def test_what_is_granted_while_it_is_closed_is_given_back(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, lease = keeper(), store.lease
    asked, resumed = threading.Event(), threading.Event()

    def slow(key: str, owner: str, seconds: float) -> bool:
        asked.set()
        resumed.wait(TIMEOUT)
        return lease(key, owner, seconds)

    store.lease = slow  # type: ignore[method-assign, assignment]
    work = Work(store)
    wanted(ours, work)
    assert asked.wait(TIMEOUT)
    ours.close(0)
    resumed.set()
    eventually(lambda: not ours._thread, "the keeper's thread exits")
    assert not work.went.is_set()
    assert not store._leases


def test_where_no_thread_can_be_started_everybody_may_work(
    store: Late, keeper: Callable[..., LeaseKeeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = keeper(), keeper()
    begun(ours, store)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _self: (_ for _ in ()).throw(RuntimeError("no thread")))
        assert not theirs.request("k", Work(store))
        assert not theirs.flush(0)
        theirs.close(0)
