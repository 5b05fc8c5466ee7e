"""A run's own deadline: what is cut, what goes on, what never starts."""

from __future__ import annotations

import threading
import time
from typing import Any

from resilient_scan import (
    Breaker,
    Cache,
    ScanContext,
    Status,
    scanner,
)
from resilient_scan.testing import FakeClock, hanging, healthy
from tests.composition.conftest import Bare, Eventually, Fleet, statuses


def test_a_runs_deadline_ends_the_run(fleet: Fleet, release: threading.Event) -> None:
    runner = fleet(healthy("well"), hanging("hung", release), healthy("queued"), max_workers=1, order="given")
    began = time.monotonic()
    report = runner.run({}, deadline=0.5)
    assert time.monotonic() - began < 4
    assert statuses(report) == [Status.COMPLETED, Status.TIMEOUT, Status.SKIPPED]
    assert report.results["hung"].attempts == 1
    assert report.results["queued"].attempts == 0
    assert not report.complete


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
