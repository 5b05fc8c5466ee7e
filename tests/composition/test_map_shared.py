"""What a scanner can do inside a scan: `context.map` and `context.shared`."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from resilient_scan import (
    ConfigError,
    RunReport,
    ScanCancelled,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.testing import FakeClock, healthy
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses


def mapper(function: Callable[[ScanContext], Callable[[Any], Any]], items: Any, **options: Any) -> Any:
    """A scanner that maps; its candidates are the results."""

    @scanner(name="mapper", pipeline="test")
    def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        return [{"ticker": str(found)} for found in context.map(function(context), items, **options)]

    return scan


def tickers(report: RunReport) -> list[str]:
    return [candidate.ticker for candidate in report.candidates]


# map


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_the_results_are_in_the_order_of_the_items(concurrency: int, fleet: Fleet) -> None:
    turns = threading.Semaphore(0)

    def function(_context: ScanContext) -> Callable[[int], int]:
        def call(item: int) -> int:
            if concurrency > 1 and item == 0:
                turns.acquire(timeout=5)  # the first one ends after the second
            turns.release()
            return item * 10

        return call

    report = fleet(mapper(function, iter(range(20)), concurrency=concurrency)).run({})
    assert tickers(report) == [str(number * 10) for number in range(20)]


def test_no_items_no_calls(fleet: Fleet) -> None:
    assert tickers(fleet(mapper(lambda _context: lambda _item: 1, [])).run({})) == []


def test_as_many_calls_at_a_time_as_allowed_and_no_more(fleet: Fleet) -> None:
    lock, inside, most = threading.Lock(), [0], [0]
    barrier = threading.Barrier(3, timeout=5)

    def call(_item: int) -> int:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        barrier.wait()  # three at a time, or nobody gets on
        with lock:
            inside[0] -= 1
        return 1

    report = fleet(mapper(lambda _context: call, range(12), concurrency=3)).run({})
    assert statuses(report) == [Status.COMPLETED]
    assert most == [3]


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_concurrency_of_nothing_is_refused(concurrency: int) -> None:
    with pytest.raises(ConfigError, match="concurrency"):
        ScanContext("one").map(str, [1], concurrency=concurrency)


def test_the_first_error_comes_after_the_rest_has_stopped() -> None:
    inside, done = threading.Event(), threading.Event()
    called: list[int] = []

    def call(item: int) -> int:
        called.append(item)
        if item == 0:
            assert inside.wait(5)
            raise ValueError("first")
        inside.set()
        done.wait(0.1)
        done.set()
        return item

    with pytest.raises(ValueError, match="first"):
        ScanContext("one").map(call, range(100), concurrency=2)
    assert done.is_set(), "the other call has ended"
    assert len(called) < 10, "no further item is begun"


def test_the_error_is_the_scanners(fleet: Fleet) -> None:
    def call(item: int) -> int:
        if item == 3:
            raise KeyError("three")
        return item

    result = fleet(mapper(lambda _context: call, range(10))).run({}).results["mapper"]
    assert result.status is Status.ERROR
    assert result.error is not None
    assert result.error.type == "KeyError"


def test_the_deadline_of_the_scan_holds_inside(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    called: list[int] = []

    def function(context: ScanContext) -> Callable[[int], None]:
        def call(item: int) -> None:
            called.append(item)
            context.sleep(60)

        return call

    runner = fleet(mapper(function, range(50), concurrency=3), policy=bare(timeout=Timeout(total=0.5)))
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    eventually(lambda: runner.abandoned() == [])
    assert len(called) == 3


def test_calls_that_do_not_look_at_the_time_end_the_map_all_the_same(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    """Each call is short; no further one is begun once the time is over."""
    pause = threading.Event()
    called: list[int] = []

    def call(item: int) -> None:
        called.append(item)
        pause.wait(0.01)

    runner = fleet(mapper(lambda _context: call, range(10_000), concurrency=2), policy=bare(timeout=Timeout(total=0.1)))
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    eventually(lambda: runner.abandoned() == [])
    assert len(called) < 100


@pytest.mark.parametrize("way", ["leave", "close"])
def test_a_cancel_wakes_every_call(way: str, fleet: Fleet, eventually: Eventually) -> None:
    barrier = threading.Barrier(4, timeout=5)

    def function(context: ScanContext) -> Callable[[int], None]:
        def call(_item: int) -> None:
            barrier.wait()
            context.sleep(3600)

        return call

    @scanner(pipeline="test")
    def well(_state: dict[str, Any]) -> list[Any]:
        barrier.wait()
        return []

    before = set(threading.enumerate())
    runner = fleet(mapper(function, range(9), concurrency=3), well)
    stream = runner.stream({})
    assert next(stream).scanner == "well"
    if way == "leave":
        stream.close()  # type: ignore[attr-defined]
    else:
        runner.close()
        assert [result.status for result in stream] == [Status.SKIPPED]
    eventually(
        lambda: (
            not [
                thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("resilient-scan")
            ]
        )
    )
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)


def test_context_variables_travel_into_the_calls() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    user.set("me")
    barrier = threading.Barrier(2, timeout=5)

    def call(_item: int) -> str:
        barrier.wait()
        seen = user.get()
        user.set("somebody else")
        return seen

    assert ScanContext("one").map(call, range(2), concurrency=2) == ["me", "me"]


def test_a_map_in_a_map() -> None:
    context = ScanContext("one")
    table = context.map(lambda row: context.map(lambda column: row * column, range(4)), range(4))
    assert table == [[row * column for column in range(4)] for row in range(4)]


# shared


class Load:
    """A loader that blocks until it may go on, and counts its calls."""

    def __init__(self, value: Any = "history") -> None:
        self.value = value
        self.calls = 0
        self.began = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> Any:
        self.calls += 1
        self.began.set()
        assert self.go.wait(5)
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def asking(name: str, load: Callable[[], Any], after: threading.Event | None = None, **layers: Any) -> Any:
    @scanner(name=name, pipeline="test", **layers)
    def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        assert after is None or after.wait(5)
        return [{"ticker": context.shared("key", load, ttl=60)}]

    return scan


def loading(runner: ScanRunner) -> Any:
    shared = runner._fleet.stacks[runner.names[0]].own.shared
    return shared._loading  # type: ignore[union-attr]


def waiters(runner: ScanRunner) -> int:
    return sum(len(one.waiters) for one in loading(runner).values())


def test_several_scanners_load_once(fleet: Fleet, background: Background, eventually: Eventually) -> None:
    load = Load()
    runner = fleet(*(asking(f"s{number}", load) for number in range(5)))
    run = background(runner.run, {})
    eventually(lambda: waiters(runner) == 4)
    load.go.set()
    assert tickers(run.result(5)) == ["history"] * 5
    assert load.calls == 1
    assert tickers(runner.run({})) == ["history"] * 5
    assert load.calls == 1, "it is kept for the next run"


def test_it_is_loaded_again_after_its_ttl(fleet: Fleet, bare: Bare) -> None:
    clock, calls = FakeClock(auto=True), []
    runner = fleet(asking("one", lambda: calls.append(1) or "history"), policy=bare(), clock=clock)
    runner.run({})
    clock.advance(59.999)
    runner.run({})
    assert len(calls) == 1
    clock.advance(0.001)
    runner.run({})
    assert len(calls) == 2


def test_a_load_that_fails_is_everybodys_error_and_not_kept(
    fleet: Fleet, background: Background, eventually: Eventually
) -> None:
    load = Load(ValueError("down"))
    runner = fleet(*(asking(f"s{number}", load) for number in range(3)))
    run = background(runner.run, {})
    eventually(lambda: waiters(runner) == 2)
    load.go.set()
    report = run.result(5)
    assert statuses(report) == [Status.ERROR] * 3
    assert {result.error.message for result in report.results.values() if result.error} == {"down"}
    load.value = "history"
    assert tickers(runner.run({})) == ["history"] * 3
    assert load.calls == 2


def test_a_load_that_hangs_holds_the_others_no_longer_than_its_own_scan(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    first = threading.Event()

    def load() -> str:
        if not first.is_set():
            first.set()
            release.wait()
        return "history"

    hung, well = asking("hung", load, timeout=Timeout(total=0.2)), asking("well", load, first)
    runner = fleet(hung, well, policy=bare(timeout=Timeout(total=5)))
    assert statuses(runner.run({})) == [Status.TIMEOUT, Status.COMPLETED]
    assert loading(runner) == {}


def test_a_waiter_keeps_to_its_own_time(fleet: Fleet) -> None:
    load = Load()
    hasty = asking("hasty", load, load.began, timeout=Timeout(total=0.1))
    stream = fleet(asking("slow", load), hasty).stream({})
    first = next(stream)
    assert (first.scanner, first.status) == ("hasty", Status.TIMEOUT)
    load.go.set()
    assert [(result.scanner, result.status) for result in stream] == [("slow", Status.COMPLETED)]
    assert load.calls == 1


def test_a_cancelled_loader_is_no_error_of_the_others() -> None:
    values = SharedValues(FakeClock(auto=True))
    contexts = [ScanContext("one", deadline=100.0), ScanContext("two", deadline=100.0)]

    def cancelled() -> str:
        raise ScanCancelled("the scan is over")

    with pytest.raises(ScanCancelled):
        values.get("key", cancelled, 60, contexts[0])
    assert values.get("key", lambda: "value", 60, contexts[1]) == "value"


def test_who_waits_for_a_shared_value_is_woken_when_its_loader_is_cancelled(
    fleet: Fleet, bare: Bare, background: Background, release: threading.Event
) -> None:
    loading, waits = threading.Event(), threading.Event()

    def load() -> str:
        if not loading.is_set():
            loading.set()
            release.wait()
        return "value"

    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if loading.is_set():
            waits.set()
        context.shared("key", load)
        return []

    runner = fleet(one, healthy("well"), policy=bare(timeout=Timeout(total=4)))
    first = runner.stream({})
    assert next(first).scanner == "well"
    assert loading.wait(5)
    second = background(runner.run, {})
    assert waits.wait(5)
    began = time.monotonic()
    first.close()
    assert statuses(second.result(10)) == [Status.COMPLETED, Status.COMPLETED]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "error", [ScanCancelled("over"), BaseExceptionGroup("x", [ScanCancelled("over"), ScanCancelled("over")])]
)
def test_a_waiter_loads_itself_if_the_loader_was_cancelled(
    error: BaseException, background: Background, release: threading.Event
) -> None:
    clock = FakeClock()
    values = SharedValues(clock)
    began = threading.Event()

    def cancelled() -> str:
        began.set()
        release.wait()
        raise error

    first = background(values.get, "key", cancelled, 60, ScanContext("one", clock=clock, deadline=100.0))
    assert began.wait(5)
    second = background(values.get, "key", lambda: "value", 60, ScanContext("two", clock=clock, deadline=100.0))
    clock.wait_for_sleepers()
    release.set()
    assert second.result(5) == "value"
    assert first.exception(5) is error


def test_a_clock_that_moves_itself_does_not_move_for_who_waits_for_a_loader(background: Background) -> None:
    clock, began, go = FakeClock(auto=True), threading.Event(), threading.Event()
    values = SharedValues(clock)

    def load() -> str:
        began.set()
        assert go.wait(5)
        return "value"

    first = background(values.get, "key", load, 60, ScanContext("one", clock=clock, deadline=100.0))
    assert began.wait(5)
    second = background(values.get, "key", load, 60, ScanContext("two", clock=clock, deadline=100.0))
    clock.wait_for_sleepers()
    go.set()
    assert first.result(5) == second.result(5) == "value"
    assert clock.monotonic() == 0
