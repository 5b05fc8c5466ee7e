"""Regressions: one test for each bug of executions, limits, caches, loops and forks that was found and mended."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Limit,
    Retry,
    ScanCancelled,
    ScanContext,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.engines.loop import Loops, _Canceller
from resilient_scan.events import AttemptEnded, ExecutionEnded
from resilient_scan.layers.cache import ResultCache
from resilient_scan.layers.limit import Provider, Ticket
from resilient_scan.testing import FakeClock, Recorder, flapping, hanging, healthy, polite
from tests.composition.conftest import Background, Bare, Eventually, Fleet, statuses

# limit


def test_a_request_of_an_attempt_does_not_wait_behind_attempts_that_wait_for_its_permit(
    fleet: Fleet, bare: Bare
) -> None:
    """Concurrency 1: `one` waits behind `two` in the queue, `two` waits for the permit of `one`: both until the end."""
    queued = threading.Event()

    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        assert queued.wait(5)
        for _ in range(3):
            context.before_request()
        return []

    runner = fleet(one, healthy("two"), policy=bare(limit=Limit("acme", concurrency=1)), order="given")
    stream = runner.stream({}, deadline=4)
    threading.Thread(
        target=lambda: [_wait_for(lambda: runner._fleet.providers["acme"].waiting == 1), queued.set()], daemon=True
    ).start()
    began = time.monotonic()
    assert [result.status for result in stream] == [Status.COMPLETED] * 2
    assert time.monotonic() - began < 3.5


def test_a_worker_that_waits_for_a_permit_does_not_wait_for_one_that_waits_for_a_worker(
    fleet: Fleet, bare: Bare
) -> None:
    """`one` fails and gives its permit back; `two` gets it, and queues for the worker on which `one` waits for it."""
    policy = bare(limit=Limit("acme", concurrency=1), retry=Retry(attempts=2, base=0, cap=0), timeout=Timeout(total=3))
    one = flapping("one", [ValueError("x"), []])
    runner = fleet(one, healthy("two"), policy=policy, max_workers=1, order="given")
    began = time.monotonic()
    assert statuses(runner.run({})) == [Status.COMPLETED] * 2
    assert time.monotonic() - began < 2.5


def test_an_interrupt_in_the_middle_of_serving_the_queue_does_not_end_the_service() -> None:
    """Ctrl-C reaches the main thread wherever it is, and the next run wants its turn all the same."""
    provider = Provider(Limit("acme", concurrency=5), FakeClock(), lambda _instant, _call: lambda: None)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provider.request(Ticket(interrupted, lambda _error: None), 1.0)
    served: list[int] = []
    provider.request(Ticket(lambda: served.append(1), lambda _error: None), 1.0)
    assert served == [1]


def test_refusing_a_long_queue_of_one_provider_does_not_recurse(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    """release -> pump -> granted -> execute -> refuse -> give back -> release: eight frames for each that waits."""
    hung = hanging("hung", release, limit=None, timeout=Timeout(total=0.2))
    others = [healthy(f"s{number}") for number in range(400)]
    runner = fleet(
        hung,
        *others,
        policy=bare(limit=Limit("acme", concurrency=1)),
        max_workers=1,
        max_abandoned=0,
        order="given",
    )
    assert runner.run({}, deadline=5).counts == {Status.TIMEOUT: 1, Status.REJECTED: 400}


def test_a_permit_that_is_granted_while_its_waiter_is_cancelled_comes_back() -> None:
    """Granted under the lock, not told yet: the waiter leaves in between, and nobody gives the permit back."""
    clock = FakeClock()
    waiting, told = threading.Event(), threading.Event()
    context = ScanContext("one", clock=clock, deadline=100.0)

    def at(_instant: float, _call: Callable[[], None]) -> Callable[[], None]:
        waiting.set()
        return taken_back

    def taken_back() -> None:  # between the grant and the call of `granted`
        if threading.current_thread() is not waiter:
            context.cancel()
            waiter.join(5)

    provider = Provider(Limit("acme", concurrency=1), clock, at)
    provider.request(Ticket(lambda: None, lambda _e: None), 1.0)

    def wait() -> None:
        with pytest.raises(ScanCancelled):
            provider.acquire(context, with_permit=True)
        told.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    assert waiting.wait(5)
    clock.wait_for_sleepers()
    provider.release()
    assert told.wait(5)
    assert provider.taken == 0


def test_the_timer_of_a_full_window_does_not_keep_the_watchdog_of_a_closed_runner(fleet: Fleet, bare: Bare) -> None:
    before = set(threading.enumerate())
    policy = bare(limit=Limit("acme", rate="1/day"), timeout=Timeout(total=0.1))
    runner = fleet(healthy("one"), healthy("two"), policy=policy)
    runner.run({})
    runner.close()
    _wait_for(lambda: not set(threading.enumerate()) - before)


def test_a_ticket_that_is_granted_while_it_sets_its_timer_leaves_no_timer() -> None:
    clock = FakeClock()
    timers: list[Callable[[], None]] = []

    def at(_instant: float, call: Callable[[], None]) -> Callable[[], None]:
        timers.append(call)
        if len(timers) == 1:
            provider.release()  # by another thread, in this very moment
        return lambda: timers.remove(call)

    provider = Provider(Limit("acme", concurrency=1), clock, at)
    provider.request(Ticket(lambda: None, lambda _e: None), 1.0)
    provider.request(Ticket(lambda: None, lambda _e: None), 1.0)
    assert provider.taken == 1
    assert timers == []


def test_a_trial_after_an_open_breaker_keeps_the_rate_too(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    """Open when it was queued, half-open when a worker came: its further requests are not counted."""
    clock, go = FakeClock(auto=True), threading.Event()
    asked: list[int] = []

    @scanner(pipeline="test", breaker=Breaker(failures=1, open_for=10), limit=Limit("acme", concurrency=5))
    def flaky(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if not asked:
            asked.append(0)
            raise ValueError("x")
        asked.append(0 if context.provider is None else 1)
        return []

    @scanner(pipeline="test")
    def first(_state: dict[str, Any]) -> list[Any]:
        assert go.wait(5)
        return []

    runner = fleet(first, flaky, policy=bare(), clock=clock, max_workers=1, order="given")
    go.set()
    runner.run({})
    go.clear()
    run = background(runner.run, {})
    eventually(lambda: runner._fleet.pool._unfinished == 2)
    clock.advance(11.0)
    go.set()
    run.result(5)
    assert asked == [0, 1], "the context has no provider: before_request does nothing"


# timeout.attempt


def test_a_successor_that_waits_for_a_permit_ends_with_the_total(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    policy = bare(
        retry=Retry(attempts=3, base=0, cap=0),
        timeout=Timeout(total=0.6, attempt=0.2, max_abandoned=3),
        limit=Limit("acme", concurrency=1),
    )
    result = fleet(hanging("hung", release), policy=policy).run({}).results["hung"]
    assert result.status is Status.TIMEOUT
    assert result.duration < 4


def test_a_successor_that_finds_no_worker_ends_with_the_total(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    policy = bare(retry=Retry(attempts=3, base=0, cap=0), timeout=Timeout(total=0.4, attempt=0.2, max_abandoned=3))
    slow = polite("slow", 1.5, retry=None, timeout=Timeout(total=5))
    runner = fleet(hanging("hung", release), slow, policy=policy, max_workers=1, order="given")
    assert next(iter(runner.stream({}))).scanner == "hung"


def test_a_last_attempt_that_hangs_ends_the_scan_without_a_worker(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    """There is no further attempt: nothing to wait for."""
    policy = bare(retry=Retry(attempts=1, base=0, cap=0), timeout=Timeout(total=5, attempt=0.2))
    slow = polite("slow", 1.0, timeout=Timeout(total=5))
    runner = fleet(hanging("hung", release), slow, policy=policy, max_workers=1, order="given")
    assert next(iter(runner.stream({}))).scanner == "hung"


def test_a_successor_that_is_refused_is_told_as_an_execution(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    policy = bare(
        retry=Retry(attempts=3, base=0, cap=0),
        timeout=Timeout(total=0.4, attempt=0.2, max_abandoned=3),
        limit=Limit("acme", concurrency=1),
    )
    recorder = Recorder()
    report = fleet(hanging("hung", release), policy=policy, listeners=[recorder]).run({})
    assert report.results["hung"].attempts == 1
    assert [event.outcome for event in recorder.of(ExecutionEnded)] == ["timeout"]


def test_what_a_hanging_last_attempt_yielded_is_kept(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    @scanner(pipeline="test")
    def part(_state: dict[str, Any]) -> Any:
        yield {"ticker": "AAPL"}
        yield {"ticker": ""}
        release.wait()

    policy = bare(retry=Retry(attempts=1), timeout=Timeout(total=2, attempt=0.1))
    result = fleet(part, policy=policy).run({}).results["part"]
    assert result.status is Status.TIMEOUT
    assert (len(result.candidates), result.partial, result.dropped) == (1, True, 1)


def test_a_successor_leads_in_the_cache_even_if_the_attempt_before_ends_at_once(
    fleet: Fleet, bare: Bare, background: Background, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old attempt is cancelled before its flight is handed on: it lands the flight, the next run leads too."""
    calls: list[int] = []
    landed, second = threading.Event(), threading.Event()

    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        calls.append(context.attempt)
        if context.attempt == 1 and len(calls) == 1:
            context.sleep(60)
        second.set()
        assert release.wait(5)
        return []

    policy = bare(
        cache=Cache(), retry=Retry(attempts=2, base=0, cap=0), timeout=Timeout(total=5, attempt=0.1, max_abandoned=3)
    )
    runner = fleet(one, policy=policy)
    cache = runner._fleet.stacks["one"].cache
    assert cache is not None
    hand_on, land = ResultCache.hand_on, ResultCache.land

    def slow_hand_on(*arguments: Any) -> None:
        landed.wait(1)  # the watchdog is preempted here
        hand_on(*arguments)

    def told_land(*arguments: Any) -> None:
        land(*arguments)
        landed.set()

    monkeypatch.setattr(ResultCache, "hand_on", slow_hand_on)
    monkeypatch.setattr(ResultCache, "land", told_land)
    first = background(runner.run, {})
    assert second.wait(5)
    assert cache._flights, "the successor leads nothing: another run will ask the source at the same time"
    release.set()
    assert statuses(first.result(5)) == [Status.COMPLETED]


def test_a_successor_that_nobody_wants_any_more_leads_nothing(
    fleet: Fleet, bare: Bare, background: Background, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is cancelled before it has the flight: it gets it all the same, waits for a permit, and the next run
    asks the cache in a busy loop, past its own deadline."""
    policy = bare(
        cache=Cache(),
        retry=Retry(attempts=2, base=0, cap=0),
        timeout=Timeout(total=3, attempt=0.1, max_abandoned=3),
        limit=Limit("acme", concurrency=1),
    )
    runner = fleet(hanging("one", release), policy=policy)
    cache = runner._fleet.stacks["one"].cache
    assert cache is not None
    hand_on = ResultCache.hand_on
    runs: list[Future[Any]] = []

    def slow_hand_on(*arguments: Any) -> None:
        for run in tuple(runner._runs.active):
            run.cancel()
        runs[0].result(5)
        hand_on(*arguments)

    monkeypatch.setattr(ResultCache, "hand_on", slow_hand_on)
    runs.append(background(runner.run, {}))
    assert statuses(runs[0].result(5)) == [Status.SKIPPED]
    _wait_for(lambda: runner._fleet.providers["acme"].waiting == 1 or not cache._flights)
    assert statuses(background(runner.run, {}, deadline=0.2).result(1)) == [Status.SKIPPED]


def test_a_cooperative_attempt_that_ran_out_of_time_is_told_as_a_timeout(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            context.sleep(60)
        return []

    recorder = Recorder()
    policy = bare(retry=Retry(base=0, cap=0), timeout=Timeout(total=5, attempt=0.05, max_abandoned=3))
    runner = fleet(one, policy=policy, listeners=[recorder])
    for _ in range(10):
        runner.run({})
    assert {event.outcome for event in recorder.of(AttemptEnded) if event.attempt == 1} == {"timeout"}


def test_a_cooperative_scan_that_stops_at_the_runs_deadline_is_a_timeout(fleet: Fleet, bare: Bare) -> None:
    """What runs at the deadline is `timeout`; one that notices it before the run's own timer does ends `skipped`."""
    runner = fleet(polite("one"), policy=bare(timeout=Timeout(total=5)))
    ended = [runner.run({}, deadline=0.03).results["one"].status for _ in range(20)]
    assert set(ended) == {Status.TIMEOUT}


# cache


def test_a_remembered_failure_does_not_hide_a_stale_answer(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    cache = Cache(ttl=10, jitter=0, stale_if_error=1000, ttl_error=60)
    runner = fleet(flapping("one", [[{"ticker": "A"}], ValueError("x")]), policy=bare(cache=cache), clock=clock)
    assert statuses(runner.run({})) == [Status.COMPLETED]
    clock.advance(11)
    assert statuses(runner.run({})) == [Status.STALE]
    clock.advance(1)
    assert statuses(runner.run({})) == [Status.STALE]


def test_a_hang_is_remembered_like_any_failure(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    asked: list[int] = []

    @scanner(pipeline="test")
    def hung(_state: dict[str, Any]) -> list[Any]:
        asked.append(1)
        release.wait()
        return []

    policy = bare(cache=Cache(ttl_error=60), timeout=Timeout(total=0.1, max_abandoned=5))
    runner = fleet(hung, policy=policy)
    runner.run({})
    runner.run({})
    assert len(asked) == 1


def test_the_late_failure_of_an_attempt_left_behind_is_not_remembered_after_a_success(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    calls: list[int] = []

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        if len(calls) == 1:
            release.wait()
            raise ValueError("late")
        return []

    policy = bare(
        cache=Cache(ttl=0.2, jitter=0, ttl_error=60),
        retry=Retry(attempts=2, base=0, cap=0),
        timeout=Timeout(total=5, attempt=0.1, max_abandoned=3),
    )
    runner = fleet(one, policy=policy)
    assert statuses(runner.run({})) == [Status.COMPLETED]
    release.set()
    eventually(lambda: runner.abandoned() == [])
    cache = runner._fleet.stacks["one"].cache
    assert cache is not None
    assert not cache._failures


def test_a_candidate_that_can_be_copied_once_only_costs_no_run(fleet: Fleet, bare: Bare) -> None:
    class Odd(dict[str, Any]):
        def __deepcopy__(self, memo: Any) -> Odd:
            if self.get("copied"):
                raise ValueError("one copy is enough")
            return Odd(self, copied=True)

    odd = scanner(pipeline="test", name="odd", candidate=Odd)(lambda _state: [Odd(ticker="A")])
    runner = fleet(odd, healthy("well"), policy=bare(cache=Cache()))
    runner.run({})
    assert statuses(runner.run({}))[1] is Status.CACHED


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


# async


def test_a_task_left_behind_does_not_go_on_in_the_next_run(
    fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []
    runs: list[int] = []

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        runs.append(1)

        async def background(mine: int) -> None:
            while True:
                await asyncio.sleep(0)
                seen.append((mine, len(runs)))

        task = asyncio.ensure_future(background(len(runs)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        return []

    runner = fleet(one)
    for _ in range(3):
        runner.run({})
    runner.close()
    gc.collect()
    assert all(mine == now for mine, now in seen)
    assert "Task was destroyed but it is pending" not in caplog.text


def test_an_endless_async_generator_ends_like_an_endless_generator(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    stop = threading.Event()

    @scanner(pipeline="test")
    async def endless(_state: dict[str, Any]) -> Any:
        while not stop.is_set():
            yield {"ticker": "A"}

    runner = fleet(endless, policy=bare(timeout=Timeout(total=0.1)))
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    try:
        _wait_for(lambda: runner.abandoned() == [], seconds=1)
    finally:
        stop.set()


def test_a_cancel_that_finds_the_loop_closed_is_no_error() -> None:
    """The worker closes its loop (the runner is closed) between the look at the flags and the raising of this one."""
    loop = asyncio.new_event_loop()
    context = ScanContext("one")

    async def nothing() -> None: ...

    task = loop.create_task(nothing())
    loop.run_until_complete(task)
    canceller = _Canceller(loop, task, context)
    loop.close()
    context._cut = True
    canceller.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_does_not_break_the_event_loops_of_its_parent(fleet: Fleet, bare: Bare) -> None:
    """The child collects the inherited loop; closing it takes the parent's wake-up pipe out of the shared epoll."""
    loops = Loops()

    async def nothing() -> None: ...

    async def long() -> None:
        await asyncio.sleep(3)

    loops.finish(nothing(), ScanContext("one"))
    (loop,) = loops._idle
    runner = fleet(scanner(name="one", pipeline="test")(lambda _state: []))
    stack = runner._fleet.stacks["one"]
    stack.engine._loops._idle.append(loop)
    del loop
    loops._idle.clear()
    pid = os.fork()
    if pid == 0:
        runner.run({})
        del stack
        warnings.simplefilter("ignore")  # else the loop's own warning keeps it from closing itself
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    context = ScanContext("one")
    timer = threading.Timer(0.1, context.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(ScanCancelled):
        stack.engine._loops.finish(long(), context)
    timer.join()
    assert time.monotonic() - began < 2.9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_threads_of_a_child_share_one_fleet(fleet: Fleet, background: Background) -> None:
    runner = fleet(healthy("one"), healthy("two"))
    runner.disable("two")
    runner._runs.after_fork()  # what the child does; here, so that the threads can be watched
    barrier = threading.Barrier(2, timeout=1)
    make = runner._runs._open

    def slow_open() -> None:
        with suppress(threading.BrokenBarrierError):
            barrier.wait()  # both threads are here at once, if nothing keeps the second one out
        make()

    runner._runs._open = slow_open  # type: ignore[method-assign]
    runs = [background(runner.run, {}) for _ in range(2)]
    pools = {id(runner._fleet.pool)}
    assert [statuses(run.result(5)) for run in runs] == [[Status.COMPLETED, Status.DISABLED]] * 2
    assert not barrier.broken or len(pools) == 1
    assert barrier.broken, "two fleets were made: two breakers, two caches, two pools"


def _wait_for(condition: Callable[[], bool], seconds: float = 3) -> None:
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        pause.wait(0.001)
