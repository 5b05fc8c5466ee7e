"""What may go wrong on the shared loop: what outlives an attempt, what blocks without a step, what is locked, lost, or
somebody else's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from resilient_scan import Breaker, Quarantine, ScanRunner, Status, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.stores import Change
from resilient_scan.stores.memory import MemoryStore
from tests.support.fixtures import Bare
from tests.support.waiting import WAIT_TIMEOUT

FOUND = [{"ticker": "AAPL"}]


def waiting(name: str, seconds: float = 0.05, **layers: Any) -> Any:
    @scanner(name=name, pipeline="test", **layers)
    async def scan(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(seconds)
        return FOUND

    return scan


def statuses(report: Any) -> dict[str, Status]:
    return {name: result.status for name, result in report.results.items()}


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what another thread or scanner does
        await asyncio.sleep(0.001)


# locks that are held while something waits


class SlowStore(MemoryStore):
    """A store whose updates take their time."""

    def update(self, key: str, change: Change[Any], /) -> Any:
        time.sleep(0.15)
        return super().update(key, change)


def test_two_executions_of_one_scanner_may_vote_in_a_store_at_once(bare: Bare) -> None:
    policy = bare(breaker=Breaker(failures=50))

    @scanner(name="down", pipeline="test")
    async def down(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0.05)
        raise OSError("down")

    with ScanRunner([down], policy=policy, store=SlowStore(SystemClock()), listeners=()) as runner:
        reports: list[Any] = []
        runs = [threading.Thread(target=lambda: reports.append(runner.run({})), daemon=True) for _ in range(4)]
        for run in runs:
            run.start()
        for run in runs:
            run.join(WAIT_TIMEOUT)
        assert [statuses(report) for report in reports] == [{"down": Status.ERROR}] * 4


def test_the_store_of_a_quarantine_is_asked_elsewhere(bare: Bare) -> None:
    ticks: list[float] = []

    @scanner(pipeline="test")
    async def heart(_state: dict[str, Any]) -> list[Any]:
        for _ in range(80):
            before = time.monotonic()
            await asyncio.sleep(0.005)
            ticks.append(time.monotonic() - before)
        return FOUND

    @scanner(pipeline="test")
    async def down(_state: dict[str, Any]) -> list[Any]:
        raise OSError("down")

    quarantine = Quarantine(after_failures=1)
    with ScanRunner(
        [heart, down], policy=bare(), store=SlowStore(SystemClock()), listeners=(), quarantine=quarantine
    ) as runner:
        runner.run({})
        assert runner.run({}).results["down"].status is Status.DISABLED
    assert max(ticks) < 0.12
