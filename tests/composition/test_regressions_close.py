"""Regressions: what a closed runner must not leave at work, and how runs end that are cut off."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Retry,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import ExecutionEnded, RunEnded
from resilient_scan.layers.retry import RetryBudget
from resilient_scan.testing import FakeClock, Recorder, healthy
from tests.composition.conftest import Bare, statuses


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


def test_a_time_that_is_over_before_the_first_attempt_is_told_as_an_execution(bare: Bare) -> None:
    clock, recorder = FakeClock(), Recorder()

    class Slow(RetryBudget):
        """Takes all the time there is before the first attempt."""

        def count(self) -> None:
            clock.advance(10)

    one = healthy("one", breaker=Breaker(), retry=Retry(budget=0.5), timeout=Timeout(total=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resilient_scan.core.stack.RetryBudget", Slow)
        with ScanRunner([one], policy=bare(), clock=clock, listeners=[recorder]) as runner:
            assert statuses(runner.run({})) == [Status.TIMEOUT]
    assert [event.outcome for event in recorder.of(ExecutionEnded)] == ["timeout"]


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
