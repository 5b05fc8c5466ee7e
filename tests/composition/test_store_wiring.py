"""How runners and stores work together: leases, forks, settings without a stable form, writes that fail."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from resilient_scan import Breaker, Cache, LogEvents, ScanContext, Status, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.errors import StoreError
from resilient_scan.events import Event, StoreFailed, StoreRecovered
from resilient_scan.layers.cache import ResultCache
from resilient_scan.stores.groups import held_back
from resilient_scan.stores.health import (
    MIN_WAIT,
    RUN_WAIT,
    Health,
    UnlimitedWait,
    WaitBudget,
    allowed_wait,
    limit_waits,
    waits_are_unlimited,
)
from resilient_scan.stores.leases import LeaseKeeper
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.stores.wrappers import Checked
from resilient_scan.testing import FakeClock, Recorder, broken, healthy
from tests.support.caches import put
from tests.support.fixtures import Bare, Fleet

TIMEOUT = 5.0


@pytest.mark.parametrize("kept", [True, False, None])
def test_a_lease_is_given_back_before_the_next_flight_can_acquire_it(kept: bool | None) -> None:
    """Otherwise the next flight's lease, which has the same key, would be given back, and that flight never started."""
    free: list[bool] = []

    class Answers:
        def stored_as(self, _key: bytes) -> str:
            return "a"

        def read(self, *_row: object) -> None:
            return None

        def keep(self, *_row: object) -> None:
            free.append(cache.lead(b"k", "second") == "second")

    def landed(_key: bytes) -> None:
        taken = cache._lock.acquire(blocking=False)
        free.append(taken)
        if taken:
            cache._lock.release()

    cache: ResultCache[str] = ResultCache(Cache(ttl=300), FakeClock(), Random(0), Answers(), landed)
    cache.lead(b"k", "first")
    if kept is None:
        cache.land(b"k", "first")
    else:
        put(cache, b"k", [], "first", keep=kept)
    assert free
    assert not any(free)
    assert cache.lead(b"k", "third") != "first", "it has landed"


def test_settings_without_a_stable_form_are_cached_in_memory_and_take_no_lease(fleet: Fleet, bare: Bare) -> None:
    """Runs that ask for other things at once would wait for each other under one name."""
    store = MemoryStore(SystemClock())
    inside = threading.Barrier(3)

    @scanner(name="one", pipeline="test")
    def one(state: dict[str, Any], context: ScanContext) -> list[Any]:
        inside.wait(TIMEOUT)
        return []

    runners = [
        fleet(one, policy=bare(cache=Cache(ttl=300)), store=store, settings={"one": {"x": object()}}) for _ in "ab"
    ]
    wanted = [(runners[0], 0), (runners[0], 1), (runners[1], 2)]
    threads = [threading.Thread(target=runner.run, args=({"n": number},)) for runner, number in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert not store._leases
    assert runners[0].run({"n": 1}).results["one"].status is Status.CACHED


class Slow(MemoryStore):
    """A store whose lease is another's until it is let go."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.taken = True

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        return not self.taken and super().lease(key, owner, seconds)


def test_runs_that_come_and_go_while_another_process_works_lose_nobody(fleet: Fleet, bare: Bare) -> None:
    store = Slow()
    runner = fleet(healthy("one", empty_ok=True), policy=bare(cache=Cache(ttl=300)), store=store)
    results: list[Status] = []

    def come_and_go(number: int) -> None:
        for _ in range(20):
            runner.run({}, deadline=0.001 * number)

    crew = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    crew.append(threading.Thread(target=lambda: results.append(runner.run({}).results["one"].status)))
    for thread in crew:
        thread.start()
    for thread in crew[:4]:
        thread.join(TIMEOUT)
    store.taken = False
    crew[4].join(TIMEOUT)
    assert results
    assert results[0] in {Status.COMPLETED, Status.CACHED}


def test_a_scan_that_another_process_works_on_holds_up_no_other(fleet: Fleet, bare: Bare) -> None:
    """It gives its place in the run's window away, of which there is one here."""
    store = Slow()
    store.lease = lambda key, *_rest: "held" not in key or not store.taken  # type: ignore[method-assign]
    scanners = [healthy("held", empty_ok=True), healthy("free", empty_ok=True)]
    runner = fleet(*scanners, policy=bare(cache=Cache(ttl=300)), store=store, concurrent=False)
    ended = []
    for result in runner.stream({}):
        ended.append((result.scanner, result.status))
        store.taken = False
    assert ended == [("free", Status.COMPLETED), ("held", Status.COMPLETED)]


def test_two_runners_with_one_store_object_in_a_forked_child(fleet: Fleet, bare: Bare) -> None:
    store = MemoryStore(SystemClock())
    runners = [fleet(healthy("one", empty_ok=True), policy=bare(cache=Cache(ttl=300)), store=store) for _ in "ab"]
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        code = 1
        try:
            runners[0].run({"n": 1})
            assert store.lease("l", "first", 60)
            assert runners[1].run({"n": 1}).results["one"].status is Status.CACHED
            assert not store.lease("l", "second", 60), "the second runner's beginning has not wiped it out"
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# health


def events_of(*steps: str) -> list[Event]:
    sent: list[Event] = []
    health = Health(sent.append, FakeClock())
    for step in steps:
        health.failed("get", StoreError("away")) if step == "fail" else health.run_ended()
    return sent


def firsts(sent: list[Event]) -> list[str]:
    return [
        "recovered" if isinstance(event, StoreRecovered) else "first" if getattr(event, "first", False) else "more"
        for event in sent
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("run", "run"), []),
        (("fail", "fail", "run", "run", "run"), ["first", "more", "recovered"]),
        (("fail", "run", "fail", "run", "fail", "run"), ["first", "more", "more"]),
        (("fail", "run", "run", "fail", "run", "run"), ["first", "recovered", "first", "recovered"]),
    ],
)
def test_trouble_begins_once_and_ends_once(steps: tuple[str, ...], expected: list[str]) -> None:
    assert firsts(events_of(*steps)) == expected


def test_a_read_that_succeeds_says_nothing_about_a_disk_that_is_full(fleet: Fleet, bare: Bare) -> None:
    class Full(MemoryStore):
        full = True

        def flush(self) -> None:
            if self.full:
                raise StoreError("the disk is full")

    store, recorder = Full(SystemClock()), Recorder()
    runner = fleet(healthy("one", empty_ok=True), policy=bare(cache=Cache(ttl=300)), store=store, listeners=(recorder,))
    for number in range(5):
        for _ in ("miss", "hit"):
            runner.run({"n": number})
    store.full = False
    runner.run({})
    sent = recorder.of(StoreFailed, StoreRecovered)
    assert firsts(sent) == ["first", *["more"] * (len(sent) - 2), "recovered"]
    assert len(sent) >= 6


def test_a_run_that_cannot_be_stored_does_not_stop_the_lease_keeper(caplog: pytest.LogCaptureFixture) -> None:
    keeper = LeaseKeeper(MemoryStore(SystemClock()), SystemClock(), Health(lambda _event: None, SystemClock()), 8)

    def bug() -> None:
        raise ValueError("a bug of ours")

    with caplog.at_level(logging.ERROR, "resilient_scan"):
        assert keeper.flush(TIMEOUT, bug)
        assert keeper.flush(TIMEOUT)
    assert caplog.text.count("a run could not be brought to the store") == 1
    keeper.close(TIMEOUT)


# somebody else's store


class Broken:
    """Has the methods of a store; all of them raise."""

    url, shared = "acme:", True

    def _raise(self, *_arguments: object) -> Any:
        raise OSError("password=hunter2")

    now = update = read = get = put = delete = lease = release = append = tail = flush = close = after_fork = _raise


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.now(),
        lambda store: store.update("k", lambda old, _now: (old, None)),
        lambda store: store.read(""),
        lambda store: store.get("k"),
        lambda store: store.put("k", b"", 1.0),
        lambda store: store.delete("k"),
        lambda store: store.lease("k", "o", 1.0),
        lambda store: store.release("k", "o"),
        lambda store: store.append("l", b"", 1),
        lambda store: store.tail("l", 1),
        lambda store: store.flush(),
        lambda store: store.close(),
        lambda store: store.after_fork(),
    ],
)
def test_whatever_a_foreign_store_raises_is_a_store_error_without_its_words(ask: Callable[[Any], Any]) -> None:
    with pytest.raises(StoreError, match=r"^the store acme: failed with OSError$"):
        ask(Checked(Broken()))


def test_what_a_foreign_store_holds_back_is_not_asked_for_under_a_lock() -> None:
    class Foreign(MemoryStore):
        @property
        def held_back(self) -> int:
            raise AssertionError("foreign code")

    assert held_back(Checked(Foreign(SystemClock()))) == 0


def test_a_foreign_store_is_called_as_it_was_meant() -> None:
    inner = MemoryStore(SystemClock())
    store = Checked(inner)
    assert (store.url, store.shared) == ("memory:", False)
    assert store.update("d", lambda old, _now: (b"new", old)) is None
    store.put("v", b"value", 60)
    store.append("l", b"record", 5)
    assert (store.read("d"), store.get("v"), store.tail("l", 5)) == ({"d": b"new"}, b"value", [b"record"])
    assert store.lease("k", "me", 60)
    assert not store.lease("k", "you", 60)
    store.release("k", "me")
    assert store.lease("k", "you", 60)
    store.delete("v")
    assert store.get("v") is None
    store.flush()
    store.after_fork()
    assert abs(store.now() - inner.now()) < 1
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.get("v")


# patience


def test_a_thread_waits_within_its_budget() -> None:

    assert allowed_wait(5.0) == 5.0
    assert not waits_are_unlimited()
    with WaitBudget():
        assert allowed_wait(5.0) == RUN_WAIT
        assert allowed_wait(0.01) == 0.01
        with UnlimitedWait():
            assert allowed_wait(5.0) == 5.0
            assert waits_are_unlimited()
        assert allowed_wait(5.0) == RUN_WAIT
        assert not waits_are_unlimited()
    with WaitBudget(time.monotonic() + 0.2):
        assert MIN_WAIT < allowed_wait(5.0) <= 0.2
    with WaitBudget(time.monotonic() - 10):
        assert allowed_wait(5.0) == MIN_WAIT
    assert allowed_wait(5.0) == 5.0


def test_limited_waits_concern_one_thread_only() -> None:
    found: list[float] = []

    def work() -> None:
        limit_waits()
        found.append(allowed_wait(5.0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(TIMEOUT)
    assert (found, allowed_wait(5.0)) == ([RUN_WAIT], 5.0)


def test_a_streams_reader_is_not_hurried(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(healthy("one"), healthy("two"), policy=bare(), store=MemoryStore(SystemClock()))
    for _ in runner.stream({}, deadline=0):
        assert allowed_wait(5.0) == 5.0
    for _ in runner.stream({}):
        assert allowed_wait(5.0) == 5.0
        break
    assert allowed_wait(5.0) == 5.0


def test_what_fails_in_every_run_is_logged_once(fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture) -> None:
    """A newer version keeps a breaker: all else of the store works, and that is no recovery."""
    store = MemoryStore(SystemClock())
    store.update("breaker/one", lambda _old, _now: (msgspec.msgpack.encode({"version": 99}), None))
    runner = fleet(broken("one"), policy=bare(breaker=Breaker(failures=9)), store=store, listeners=(LogEvents(),))
    with caplog.at_level(logging.INFO, "resilient_scan"):
        for _ in range(4):
            runner.run({})
    lines = [record.getMessage() for record in caplog.records if "store" in record.getMessage()]
    assert len(lines) == 1, lines
    assert "a newer version of this package keeps breaker/one in the store" in lines[0]
