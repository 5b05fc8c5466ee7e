"""Breakers whose state is in a store, through runners: cron, hung scanners, a store that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import Breaker, Limit, ScanRunner, Status, Timeout, scanner
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged, StoreFailed
from resilient_scan.layers.breaker.record import BreakerRecord, decode
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock, Recorder, broken, hanging, healthy
from tests.support.breakers import CountingStore
from tests.support.fixtures import Background, Bare, Fleet
from tests.support.waiting import WAIT_TIMEOUT

Open = Callable[[Clock], Store]


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens the one store once more, as a new process does."""
    opened: list[Store] = []

    def reopen(clock: Clock) -> Store:
        opened.append(open_store(f"sqlite:///{tmp_path}/state.db", clock))
        return opened[-1]

    yield reopen
    for store in opened:
        store.close()


def kept(store: Store, name: str = "one") -> BreakerRecord:
    record = decode(store.read("breaker/")[f"breaker/{name}"])
    assert record is not None
    return record


def only(runner: ScanRunner) -> Status:
    (result,) = runner.run({}).results.values()
    return result.status


def test_every_run_in_a_process_of_its_own(reopen: Open, fleet: Fleet, bare: Bare) -> None:
    """One failing attempt a run: it opens after five, stays open for its time, and then tries exactly once."""
    clock, asked = FakeClock(), []

    @scanner(name="one", pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        asked.append(clock.monotonic())
        raise OSError("down")

    def cron() -> Status:
        with reopen_runner() as runner:
            return only(runner)

    def reopen_runner() -> ScanRunner:
        return fleet(one, policy=bare(breaker=Breaker(failures=5, open_for=60)), clock=clock, store=reopen(clock))

    for _ in range(5):
        assert cron() is Status.ERROR
        clock.advance(1)
    while clock.monotonic() < 4 + 60:
        assert cron() is Status.REJECTED
        clock.advance(4)
    assert len(asked) == 5
    clock.advance(1)
    assert [cron(), cron(), cron()] == [Status.ERROR, Status.REJECTED, Status.REJECTED]
    assert len(asked) == 6


def test_a_hung_scanners_timeout_is_in_the_store_before_its_result_is_handed_over(
    reopen: Open, fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    store, recorder = reopen(SystemClock()), Recorder()
    policy = bare(breaker=Breaker(failures=1, open_for=60), timeout=Timeout(total=0.05))
    runner = fleet(hanging("one", release), policy=policy, store=store, listeners=[recorder])
    (result,) = runner.stream({})
    assert result.status is Status.TIMEOUT
    assert kept(store).state == "open"
    assert [(change.old, change.new, change.open_for) for change in recorder.of(BreakerChanged)] == [
        ("closed", "open", 60)
    ]
    again = fleet(hanging("one", release), policy=policy, store=reopen(SystemClock()))
    assert only(again) is Status.REJECTED


def test_a_timeout_that_opens_it_only_together_with_others_is_announced(
    reopen: Open, fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    clock, recorder, begun = FakeClock(), Recorder(), threading.Event()
    policy = bare(breaker=Breaker(failures=2), timeout=Timeout(total=1.5))

    @scanner(name="one", pipeline="test")
    def hung(_state: dict[str, Any]) -> list[Any]:
        begun.set()
        release.wait()
        return []

    runner = fleet(hung, policy=policy, clock=clock, store=reopen(clock), listeners=[recorder])
    first = background(runner.run, {})
    assert begun.wait(WAIT_TIMEOUT)
    assert only(fleet(broken("one"), policy=policy, clock=clock, store=reopen(clock))) is Status.ERROR
    clock.advance(1.5)
    assert first.result(WAIT_TIMEOUT).results["one"].status is Status.TIMEOUT
    (change,) = recorder.of(BreakerChanged)
    assert (change.old, change.new, bool(change.run_id)) == ("closed", "open", True)


def test_what_goes_well_is_one_read_for_all(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = CountingStore(clock)
    runner = fleet(
        *(healthy(f"s{number}") for number in range(20)), policy=bare(breaker=Breaker()), clock=clock, store=store
    )
    reads: list[str] = []
    look = store.read
    store.read = lambda prefix: (reads.append(prefix), look(prefix))[1]  # type: ignore[method-assign]
    assert runner.run({}).complete
    assert (reads, store.updates) == (["quarantine/fleet", "breaker/"], 0)


def test_a_window_is_in_the_store_at_the_end_of_the_run(reopen: Open, fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = reopen(clock)
    policy = bare(breaker=Breaker(failure_rate=0.5))
    runner = fleet(healthy("one"), policy=policy, clock=clock, store=store)
    runner.run({})
    assert kept(store).window == b"\0"
    runner.run({})
    assert kept(store).window == b"\0\0"


def test_a_store_object_for_one_process_is_a_store_all_the_same(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    policy = bare(breaker=Breaker(failures=1))
    first = fleet(broken("one"), policy=policy, clock=clock, store=store)
    assert only(first) is Status.ERROR
    assert only(fleet(broken("one"), policy=policy, clock=clock, store=store)) is Status.REJECTED


def test_a_store_that_fails_costs_no_scan_anything(fleet: Fleet, bare: Bare) -> None:
    clock, recorder = FakeClock(), Recorder()
    store = CountingStore(clock)
    policy = bare(breaker=Breaker(failures=1, open_for=60))
    runner = fleet(broken("bad"), healthy("good"), policy=policy, clock=clock, store=store, listeners=[recorder])
    store.away = StoreError("the store is away")
    look, store.read = store.read, _unreadable  # type: ignore[method-assign]
    seen = [[result.status for result in runner.run({}).results.values()] for _ in range(2)]
    assert seen == [[Status.ERROR, Status.COMPLETED], [Status.REJECTED, Status.COMPLETED]]
    failed = recorder.of(StoreFailed)
    assert {event.operation for event in failed} == {"read", "update"}
    assert {event.message for event in failed} == {"the store is away"}
    store.away, store.read = None, look  # type: ignore[method-assign]
    runner.run({})
    assert kept(store, "bad").state == "open"
    assert "breaker/good" not in store.read("")


def test_a_providers_success_is_no_reason_to_ask_a_store_that_is_away(fleet: Fleet, bare: Bare) -> None:
    """That the read at the run's start has failed says enough: each attempt would wait for the store once more."""
    store = CountingStore(FakeClock())
    limit = Limit("acme", breaker=Breaker())
    runner = fleet(healthy("one", limit=limit), healthy("two", limit=limit), policy=bare(), store=store)
    before = store.updates
    store.away = StoreError("the store is away")
    store.read = _unreadable  # type: ignore[method-assign]
    runner.run()
    assert store.updates == before


def _unreadable(_prefix: str) -> dict[str, bytes]:
    raise StoreError("the store is away")


def test_two_runners_share_one_trial(
    reopen: Open, fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    clock = FakeClock()
    begun = threading.Event()

    @scanner(name="one", pipeline="test")
    def one(state: dict[str, Any]) -> list[Any]:
        if state.get("fail"):
            raise OSError("down")
        begun.set()
        release.wait()
        return []

    policy = bare(breaker=Breaker(failures=1, open_for=60), timeout=Timeout(total=30))
    first, second = (fleet(one, policy=policy, clock=clock, store=reopen(clock)) for _ in range(2))
    first.run({"fail": True})
    clock.advance(60)
    trial = background(first.run, {})
    assert begun.wait(WAIT_TIMEOUT)
    result = second.run({}).results["one"]
    assert result.status is Status.REJECTED
    assert result.error is not None
    assert result.error.message == "the breaker of one is half-open and its trial is still under way"
    release.set()
    trial.result(WAIT_TIMEOUT)
    assert only(second) is Status.COMPLETED
