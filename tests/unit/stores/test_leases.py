"""Two processes that ask for one key: one works, the other waits without a worker, and finds what the first left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilient_scan.clock import SystemClock
from resilient_scan.errors import StoreError
from resilient_scan.stores.health import Health
from resilient_scan.stores.leases import LeaseKeeper
from resilient_scan.stores.memory import MemoryStore

TIMEOUT = 5.0


class Work:
    """An execution that waits; it is answered once there is an answer in the store."""

    def __init__(self, store: Any, key: str = "k") -> None:
        self.ended = False
        self.store, self.key = store, key
        self.found: bytes | None = None
        self.went, self.finished = threading.Event(), threading.Event()

    def answered(self) -> bool:
        self.found = self.store.get(f"value/{self.key}")
        if self.found is not None:
            self.ended = True
            self.finished.set()
        return self.found is not None

    def go(self) -> None:
        self.went.set()


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

    def make(errors: list[str] | None = None) -> LeaseKeeper:
        found = [] if errors is None else errors
        health = Health(lambda event: found.append(event.operation), SystemClock())
        keepers.append(LeaseKeeper(store, SystemClock(), health))
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
    work = Work(store)
    assert ours.acquire("k", 60, Work(store))
    assert not theirs.acquire("k", 60, work)
    store.put("value/k", b"answer", 60)
    ours.release("k")
    assert work.finished.wait(TIMEOUT)
    assert work.found == b"answer"
    assert not work.went.is_set()


def test_the_answer_is_written_before_the_lease_is_given_back(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours = keeper()
    ours.acquire("k", 60, Work(store))
    ours.release("k")
    assert ours.flush(TIMEOUT)
    assert store.calls[:2] == ["flush", "release"]


def test_the_second_works_when_the_first_brought_nothing(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs, third = keeper(), keeper(), keeper()
    work = Work(store)
    ours.acquire("k", 60, Work(store))
    assert not theirs.acquire("k", 60, work)
    ours.release("k")
    assert work.went.wait(TIMEOUT)
    assert not third.acquire("k", 60, Work(store)), "it is the second one's now"


def test_nobody_waits_for_a_process_that_was_killed(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    assert store.lease("k", "a process that is gone", 0.1)
    work = Work(store)
    assert not keeper().acquire("k", 60, work)
    assert work.went.wait(TIMEOUT)


def test_a_waiter_that_gives_up_is_not_started_and_keeps_no_lease(
    store: Late, keeper: Callable[..., LeaseKeeper]
) -> None:
    ours, theirs = keeper(), keeper()
    work = Work(store)
    ours.acquire("k", 60, Work(store))
    theirs.acquire("k", 60, work)
    work.ended = True
    theirs.release("k")
    ours.release("k")
    assert ours.flush(TIMEOUT)
    assert theirs.flush(TIMEOUT)
    assert not work.went.is_set()
    assert store.lease("k", "anybody", 1)


def test_a_runner_may_take_again_what_it_is_about_to_release(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    held = threading.Event()
    flush = store.flush

    def slow() -> None:
        held.wait(TIMEOUT)
        flush()

    store.flush = slow  # type: ignore[method-assign]
    ours.acquire("k", 60, Work(store))
    ours.release("k")
    assert ours.acquire("k", 60, Work(store))
    held.set()
    assert ours.flush(TIMEOUT)
    assert not theirs.acquire("k", 60, Work(store))


def test_a_store_that_fails_stops_nobody_and_is_reported(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    errors: list[str] = []
    ours = keeper(errors)
    store.fails = True
    assert ours.acquire("k", 60, Work(store))
    assert ours.flush(TIMEOUT), "it was tried"
    assert errors == ["lease", "flush"]


def test_a_store_that_fails_later_lets_the_waiting_go(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    work = Work(store)
    ours.acquire("k", 60, Work(store))
    theirs.acquire("k", 60, work)
    store.fails = True
    assert work.went.wait(TIMEOUT)


def test_a_waiter_that_fails_begins_by_itself_and_costs_no_other(
    store: Late, keeper: Callable[..., LeaseKeeper], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Work):
        def answered(self) -> bool:
            raise ValueError("cannot be read")

    ours, theirs = keeper(), keeper()
    broken, work = Broken(store, "a"), Work(store, "b")
    for key in "ab":
        ours.acquire(key, 60, Work(store))
    assert not theirs.acquire("a", 60, broken)
    assert not theirs.acquire("b", 60, work)
    store.put("value/b", b"answer", 60)
    ours.release("b")
    assert work.finished.wait(TIMEOUT)
    assert broken.went.wait(TIMEOUT)
    assert "a: waiting for another process failed" in caplog.text


def test_a_long_queue_renews_the_lease(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours = keeper()
    ours.acquire("k", 60, Work(store))
    first = store._leases["k"]
    ours.renew("k", 60)
    assert store._leases["k"] is first, "not much of it has gone by"
    ours._held["k"] -= 31
    ours.renew("k", 60)
    assert store._leases["k"][1] > first[1]
    ours.renew("other", 60)
    assert "other" not in store._leases


def test_closing_writes_gives_back_and_ends(store: Late, keeper: Callable[..., LeaseKeeper]) -> None:
    ours, theirs = keeper(), keeper()
    ours.acquire("k", 60, Work(store))
    store.put("value/k", b"late", 60)
    ours.close(TIMEOUT)
    assert store.get("value/k") == b"late"
    assert theirs.acquire("k", 60, Work(store))
    assert ours.acquire("k", 60, Work(store)), "who is closed waits for nobody"
    ours.close(TIMEOUT)
    assert not ours.flush(TIMEOUT)


def test_where_no_thread_can_be_started_everybody_may_work(
    store: Late, keeper: Callable[..., LeaseKeeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = keeper(), keeper()
    ours.acquire("k", 60, Work(store))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _self: (_ for _ in ()).throw(RuntimeError("no thread")))
        assert theirs.acquire("k", 60, Work(store))
        assert not theirs.flush(0)
        theirs.close(0)
