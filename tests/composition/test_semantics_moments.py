"""Moments in which several things come together: the ends of runs, of threads, of waits; a clock that moves."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    LogEvents,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.core.pool import ThreadPool
from resilient_scan.events import RunEnded, RunStarted
from resilient_scan.testing import FakeClock, Recorder, hanging, healthy, polite
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.scanners import held
from tests.support.tasks import QuietTask
from tests.support.waiting import WAIT_TIMEOUT


def test_what_runs_at_the_runs_deadline_is_timeout_even_if_it_is_polite(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    for _ in range(5):
        clock = FakeClock()  # a fresh one: sleepers of the turn before may not have left the old one yet
        runner = fleet(*(polite(f"p{n}") for n in range(8)), policy=bare(timeout=Timeout(total=1000)), clock=clock)
        run = background(runner.run, {}, deadline=5)
        clock.wait_for_sleepers(8, patience=WAIT_TIMEOUT)
        clock.advance(5)
        assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT] * 8


def test_queued_scans_of_a_closed_runner_are_skipped(bare: Bare, background: Background) -> None:
    seen = set()
    for _ in range(30):
        begun = threading.Event()

        @scanner(pipeline="test")
        def first(_state: dict[str, Any], context: ScanContext, begun: threading.Event = begun) -> list[Any]:
            begun.set()
            context.sleep(60)
            return []

        queued = [healthy(f"q{n}") for n in range(20)]
        with ScanRunner([first, *queued], policy=bare(), listeners=(), max_workers=1) as runner:
            run = background(runner.run, {})
            assert begun.wait(WAIT_TIMEOUT)
            runner.close()
            seen |= set(statuses(run.result(WAIT_TIMEOUT))[1:])
    assert seen <= {Status.SKIPPED, Status.COMPLETED}


def test_ctrl_c_at_the_very_start_of_a_run_ends_it(fleet: Fleet, background: Background) -> None:
    recorder = Recorder()

    def interrupt(event: Any) -> None:
        if isinstance(event, RunStarted):
            raise KeyboardInterrupt

    runner = fleet(healthy("one"), listeners=(recorder, interrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        background(runner.run, {}).result(WAIT_TIMEOUT)
    assert statuses(caught.value.report) == [Status.SKIPPED]


def test_a_ctrl_c_in_the_winding_up_keeps_the_report(bare: Bare) -> None:
    interrupts = iter([True])

    def interrupt(event: Any) -> None:
        if isinstance(event, RunEnded) and next(interrupts, False):
            raise KeyboardInterrupt

    class Wound(ScanRunner):
        """Is interrupted between the last scan and the report."""

        def _leave(self, run: Any) -> None:
            if next(interrupts, False):
                raise KeyboardInterrupt
            super()._leave(run)

    with Wound([healthy("one")], policy=bare(), listeners=[interrupt]) as runner:
        with pytest.raises(KeyboardInterrupt) as caught:
            runner.run({})
        assert statuses(caught.value.report) == [Status.COMPLETED]  # type: ignore[attr-defined]


def test_a_cut_scan_tells_how_long_it_waited_for_a_worker(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    for layers in ({}, {"cache": Cache()}):
        clock, go = FakeClock(), threading.Event()
        policy = bare(timeout=Timeout(total=1000), **layers)
        scanners = held("first", threading.Event(), go), polite("second")
        runner = fleet(*scanners, policy=policy, clock=clock, max_workers=1, order="given")
        run = background(runner.run, {}, deadline=10)
        eventually(lambda runner=runner: runner._fleet.pool._unfinished == 2)
        clock.advance(2)
        go.set()
        clock.wait_for_sleepers(patience=WAIT_TIMEOUT)
        clock.advance(8)
        result = run.result(WAIT_TIMEOUT).results["second"]
        assert (result.status, result.queue_wait) == (Status.TIMEOUT, 2)


def test_the_open_time_is_written_so_too(fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture) -> None:
    from resilient_scan.testing import broken

    runner = fleet(broken("b"), policy=bare(breaker=Breaker(failures=1, open_for=1800)), listeners=(LogEvents(),))
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        runner.run({})
        error = runner.run({}).results["b"].error
    assert any(line.endswith("breaker open for 1800s") for line in caplog.messages)
    assert error is not None
    assert "e+" not in error.message


def test_who_waits_for_a_hung_load_does_not_load_after_its_own_time(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    clock, loads = FakeClock(), []

    def load() -> int:
        loads.append(1)
        release.wait()
        return 1

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            context.shared("history", load)
            return []

        return scan

    runner = fleet(*(make(n) for n in range(6)), policy=bare(timeout=Timeout(total=5)), clock=clock)
    run = background(runner.run, {})
    clock.wait_for_sleepers(5, patience=WAIT_TIMEOUT)  # all but the one that loads
    clock.advance(5)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT] * 6
    eventually(lambda: len(runner.abandoned()) <= 1)
    assert len(loads) == 1


class Job(QuietTask):
    """Work for a pool: hangs until it is released, far beyond its time."""

    def __init__(self, release: threading.Event) -> None:
        self._release = release
        self.begun = threading.Event()

    def start(self, now: float, _place: Any, /) -> float:
        return now + 0.2

    def run(self) -> None:
        self.begun.set()
        self._release.wait()


def test_shutting_the_pool_down_never_waits_for_one_that_hangs_only_later(
    release: threading.Event, background: Background
) -> None:
    pool, job = ThreadPool(1, name="resilient-scan-hung"), Job(release)
    pool.execute(job)
    assert job.begun.wait(WAIT_TIMEOUT)
    background(pool.shutdown, wait=True).result(WAIT_TIMEOUT)


def test_what_is_queued_when_the_pool_shuts_down_still_runs_behind_a_hung_one(release: threading.Event) -> None:
    pool, job = ThreadPool(1, name="resilient-scan-hung"), Job(release)
    pool.execute(job)
    future = pool.submit(abs, -1)
    assert job.begun.wait(WAIT_TIMEOUT)
    pool.shutdown(wait=False)
    assert future.result(WAIT_TIMEOUT) == 1


def test_a_machine_without_threads_still_ends_its_runs(
    fleet: Fleet, bare: Bare, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("resilient-scan"):
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    runner = fleet(healthy("one"), policy=bare())
    try:
        report = background(runner.run, {}).result(WAIT_TIMEOUT)
        assert statuses(report) == [Status.REJECTED]
    finally:
        runner.close()


def test_the_clock_for_tests_loses_no_deadline(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    """The clock may be moved between the watchdog's look at it and its wait."""

    class Tricky(FakeClock):
        """Moves just after the watchdog has looked at it and before it waits."""

        moved = False

        def wait(self, until: float, wake: Any, /) -> None:
            if until < float("inf") and "watchdog" in threading.current_thread().name and not self.moved:
                self.moved = True
                self.advance(6)
            super().wait(until, wake)

    clock = Tricky()
    runner = fleet(hanging("hung", release), policy=bare(timeout=Timeout(total=10)), clock=clock)
    run = background(runner.run, {})
    eventually(lambda: clock.moved)
    clock.advance(6)  # 12 of 10 seconds are over
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]


class Passing(FakeClock):
    """A clock on which time passes for whoever waits for a flag with a limit."""

    def event(self) -> Any:
        flag = super().event()
        wait = flag.wait

        def pass_time(timeout: float | None = None, /) -> bool:
            if timeout is not None and not flag.is_set():
                self.advance(timeout)
            return wait(timeout and 0)

        flag.wait = pass_time  # type: ignore[method-assign]
        return flag


def test_a_scanner_with_a_short_timeout_is_rejected_while_its_thread_hangs(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    """The grace for a thread that is just ending is not longer than the scan's own time."""
    clock, begun = Passing(), threading.Event()
    runner = fleet(held("hung", begun, release), policy=bare(timeout=Timeout(total=0.03125)), clock=clock)
    run = background(runner.run, {})
    assert begun.wait(WAIT_TIMEOUT)
    clock.advance(0.03125)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
    assert [statuses(runner.run({})) for _ in range(5)] == [[Status.REJECTED]] * 5


def test_an_error_that_the_runs_deadline_causes_has_no_vote(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()

    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.remaining() > 100:
            return []
        clock.advance(context.remaining())
        raise TimeoutError("no answer in the time that was left")  # as a client whose time is cut to it does

    runner = fleet(source, policy=bare(breaker=Breaker(failures=1), timeout=Timeout(total=1000)), clock=clock)
    for _ in range(10):
        runner.run({}, deadline=5)
    assert statuses(runner.run({})) == [Status.COMPLETED]


def test_a_sleep_after_a_wake_up_lasts(fleet: Fleet, bare: Bare) -> None:
    lengths = []
    loading = threading.Event()

    @scanner(pipeline="test")
    def first(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        def load() -> int:
            loading.set()
            threading.Event().wait(0.05)
            return 1

        context.shared("k", load)
        return []

    @scanner(pipeline="test")
    def second(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        loading.wait(WAIT_TIMEOUT)
        context.shared("k", int)
        began = time.monotonic()
        context.sleep(0.1)
        lengths.append(time.monotonic() - began)
        return []

    fleet(first, second).run({})
    assert lengths[0] >= 0.1


def test_a_hung_load_does_not_keep_later_runs_from_loading(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    """A later run has as much time as the hung loader had; it must load in its stead, not wait its time away."""
    clock, loading = FakeClock(), threading.Event()
    loads: list[int] = []

    def load() -> int:
        loads.append(1)
        if len(loads) == 1:
            loading.set()
            release.wait()
        return 1

    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.shared("history", load)
        return []

    runner = fleet(source, policy=bare(timeout=Timeout(total=5, max_abandoned=2)), clock=clock)
    run = background(runner.run, {})
    assert loading.wait(WAIT_TIMEOUT)
    clock.advance(5)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
    assert statuses(background(runner.run, {}).result(WAIT_TIMEOUT)) == [Status.COMPLETED]


def test_a_closed_runner_leaves_no_watchdog_behind_a_hung_call(
    bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    before = set(threading.enumerate())
    begun = threading.Event()

    @scanner(pipeline="test")
    def hung(_state: dict[str, Any]) -> list[Any]:
        begun.set()
        release.wait()
        return []

    runner = ScanRunner([hung], policy=bare(timeout=Timeout(total=0.1)), listeners=(), max_workers=1)
    run = background(runner.run, {})
    assert begun.wait(WAIT_TIMEOUT)
    runner.close()
    run.result(WAIT_TIMEOUT)

    def watchdogs() -> list[threading.Thread]:
        return [t for t in set(threading.enumerate()) - before if t.name.endswith("watchdog")]

    eventually(lambda: not watchdogs())


def test_what_runs_at_the_runs_deadline_is_timeout_even_if_it_is_async(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    import asyncio

    clock, begun = FakeClock(), []

    def make(number: int) -> Any:
        @scanner(name=f"a{number}", pipeline="test")
        async def scan(_state: dict[str, Any]) -> list[Any]:
            begun.append(number)
            await asyncio.sleep(3600)
            return []

        return scan

    runner = fleet(*(make(n) for n in range(8)), policy=bare(timeout=Timeout(total=1000)), clock=clock)
    for turn in range(5):
        run = background(runner.run, {}, deadline=5)
        eventually(lambda turn=turn: len(begun) == 8 * (turn + 1))
        clock.advance(5)
        assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT] * 8
