"""A run's own deadline: what is cut, what goes on, what never starts."""

from __future__ import annotations

import threading
import time
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
from resilient_scan.testing import FakeClock, hanging, healthy, polite
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.results import statuses


def test_a_runs_deadline_ends_the_run(fleet: Fleet, release: threading.Event) -> None:
    runner = fleet(healthy("well"), hanging("hung", release), healthy("queued"), max_workers=1, order="given")
    began = time.monotonic()
    report = runner.run({}, deadline=0.5)
    assert time.monotonic() - began < 4
    assert statuses(report) == [Status.COMPLETED, Status.TIMEOUT, Status.SKIPPED]
    assert report.results["hung"].attempts == 1
    assert report.results["queued"].attempts == 0
    assert not report.complete


def test_a_cooperative_scan_that_stops_at_the_runs_deadline_is_a_timeout(fleet: Fleet, bare: Bare) -> None:
    """What runs at the deadline is `timeout`; one that notices it before the run's own timer does ends `skipped`."""
    runner = fleet(polite("one"), policy=bare(timeout=Timeout(total=5)))
    ended = [runner.run({}, deadline=0.03).results["one"].status for _ in range(20)]
    assert set(ended) == {Status.TIMEOUT}


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
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    calls: list[int] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        release.wait()
        return [{"ticker": "AAPL"}]

    runner = fleet(source, policy=bare(cache=Cache(), breaker=Breaker(failures=1)))
    assert statuses(runner.run({}, deadline=0.05)) == [Status.TIMEOUT]
    assert statuses(runner.run({}, deadline=0.05)) == [Status.SKIPPED]  # a follower of that one
    assert runner.abandoned() == []  # it is at work, within its own time
    release.set()
    eventually(lambda: statuses(runner.run({}, deadline=0.05)) == [Status.CACHED])
    assert len(calls) == 1


def test_a_cut_execution_without_a_cache_is_cancelled_and_has_no_vote(fleet: Fleet, bare: Bare) -> None:
    stopped = threading.Event()

    @scanner(pipeline="test")
    def source(state: dict[str, Any], context: ScanContext) -> list[Any]:
        try:
            context.sleep(state["seconds"])
        finally:
            stopped.set()
        return []

    runner = fleet(source, policy=bare(breaker=Breaker(failures=1)))
    runner.run({"seconds": 60}, deadline=0.05)
    assert stopped.wait(1)
    assert statuses(runner.run({"seconds": 0})) == [Status.COMPLETED]


def test_close_tells_what_goes_on_for_the_caches_sake_alone(bare: Bare) -> None:
    """Nobody can ask the cache of a closed runner: what a run's deadline left at work is to stop."""
    stopped = threading.Event()

    @scanner(pipeline="test")
    def polite_one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        try:
            context.sleep(60)
        finally:
            stopped.set()
        return []

    with ScanRunner([polite_one], policy=bare(cache=Cache(), timeout=Timeout(total=30)), listeners=()) as runner:
        assert statuses(runner.run({}, deadline=0.05)) == [Status.TIMEOUT]
        assert not stopped.is_set()
    assert stopped.wait(2)
