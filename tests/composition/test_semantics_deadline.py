"""A run's own deadline: what is cut, what goes on, what never starts."""

from __future__ import annotations

import threading
from typing import Any

from resilient_scan import (
    Breaker,
    Cache,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import RunStarted
from resilient_scan.testing import FakeClock, Recorder, healthy, polite
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.scanners import held
from tests.support.waiting import WAIT_TIMEOUT


def test_a_runs_deadline_ends_the_run(fleet: Fleet, release: threading.Event, background: Background) -> None:
    clock, begun = FakeClock(), threading.Event()
    scanners = healthy("well"), held("hung", begun, release), healthy("queued")
    runner = fleet(*scanners, clock=clock, max_workers=1, order="given")
    run = background(runner.run, {}, deadline=3)
    assert begun.wait(WAIT_TIMEOUT)
    clock.advance(3)
    report = run.result(WAIT_TIMEOUT)
    assert report.duration == 3
    assert statuses(report) == [Status.COMPLETED, Status.TIMEOUT, Status.SKIPPED]
    assert report.results["hung"].attempts == 1
    assert report.results["queued"].attempts == 0
    assert not report.complete


def test_a_cooperative_scan_that_stops_at_the_runs_deadline_is_a_timeout(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    """What runs at the deadline is `timeout`; one that notices it before the run's own timer does ends `skipped`."""
    for _ in range(20):
        clock = FakeClock()  # a fresh one: the sleeper of the turn before may not have left the old one yet
        runner = fleet(polite("one"), policy=bare(timeout=Timeout(total=1000)), clock=clock)
        run = background(runner.run, {}, deadline=5)
        clock.wait_for_sleepers(patience=WAIT_TIMEOUT)
        clock.advance(5)  # wakes the scan and the run's own timer at once
        assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]


def test_nothing_starts_at_or_after_the_deadline(fleet: Fleet) -> None:
    asked: list[int] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        asked.append(1)
        return []

    assert statuses(fleet(source).run({}, deadline=0)) == [Status.SKIPPED]
    clock = FakeClock()

    @scanner(pipeline="test")
    def takes_all_the_time(_state: dict[str, Any]) -> list[Any]:
        clock.advance(5)
        return []

    runner = fleet(takes_all_the_time, source, clock=clock, concurrent=False)
    assert statuses(runner.run({}, deadline=5))[1] is Status.SKIPPED
    assert asked == []


def test_a_cut_execution_that_fills_a_cache_goes_on_and_has_no_vote(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    clock, recorder, begun = FakeClock(), Recorder(), threading.Event()
    calls: list[int] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        begun.set()
        release.wait()
        return [{"ticker": "AAPL"}]

    policy = bare(cache=Cache(), breaker=Breaker(failures=1), timeout=Timeout(total=1000))
    runner = fleet(source, policy=policy, clock=clock, listeners=(recorder,))
    first = background(runner.run, {}, deadline=5)
    assert begun.wait(WAIT_TIMEOUT)
    clock.advance(5)
    assert statuses(first.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
    second = background(runner.run, {}, deadline=5)  # a follower of that one
    eventually(lambda: len(recorder.of(RunStarted)) == 2)
    clock.advance(5)
    assert statuses(second.result(WAIT_TIMEOUT)) == [Status.SKIPPED]
    assert runner.abandoned() == []  # it is at work, within its own time
    release.set()
    assert statuses(runner.run({})) == [Status.CACHED]
    assert len(calls) == 1


def test_a_cut_execution_without_a_cache_is_cancelled_and_has_no_vote(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    clock, stopped = FakeClock(), threading.Event()

    @scanner(pipeline="test")
    def source(state: dict[str, Any], context: ScanContext) -> list[Any]:
        try:
            context.sleep(state["seconds"])
        finally:
            stopped.set()
        return []

    runner = fleet(source, policy=bare(breaker=Breaker(failures=1), timeout=Timeout(total=1000)), clock=clock)
    run = background(runner.run, {"seconds": 60}, deadline=5)
    clock.wait_for_sleepers(patience=WAIT_TIMEOUT)
    clock.advance(5)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
    assert stopped.wait(WAIT_TIMEOUT)
    assert statuses(runner.run({"seconds": 0})) == [Status.COMPLETED]


def test_close_tells_what_goes_on_for_the_caches_sake_alone(bare: Bare, background: Background) -> None:
    """Nobody can ask the cache of a closed runner: what a run's deadline left at work is to stop."""
    clock, stopped = FakeClock(), threading.Event()

    @scanner(pipeline="test")
    def polite_one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        try:
            context.sleep(60)
        finally:
            stopped.set()
        return []

    policy = bare(cache=Cache(), timeout=Timeout(total=30))
    with ScanRunner([polite_one], policy=policy, clock=clock, listeners=()) as runner:
        run = background(runner.run, {}, deadline=5)
        clock.wait_for_sleepers(patience=WAIT_TIMEOUT)
        clock.advance(5)
        assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
        assert not stopped.is_set()
    assert stopped.wait(WAIT_TIMEOUT)
