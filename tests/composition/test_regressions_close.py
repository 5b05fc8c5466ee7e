"""Regressions: what a closed runner must not leave at work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from resilient_scan import (
    Cache,
    Policy,
    RunReport,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)

Fleet = Callable[..., ScanRunner]
Bare = Callable[..., Policy]
Background = Callable[..., "Future[Any]"]
Eventually = Callable[[Callable[[], bool]], None]


def statuses(report: RunReport) -> list[Status]:
    return [result.status for result in report.results.values()]


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
