"""The lane against a model: who is queued, under way, hung or lost, whatever blocks the loop, and when it is closed."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from contextvars import Context
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from resilient_scan.clock import SystemClock
from resilient_scan.core import lane as lane_module
from resilient_scan.core.lane import Lane
from resilient_scan.core.pool import ThreadPool
from resilient_scan.engines.greenlets import suspend
from resilient_scan.engines.loop import Loops
from tests.support.examples import examples
from tests.support.fixtures import Eventually
from tests.support.tasks import QuietTask

SHORT, LONG = 0.03, 600.0


class Job(QuietTask):
    """A task that waits on the loop until it is told to end, and notes what the lane tells it."""

    def __init__(self, number: int, total: float, *, wanted: bool, blocks: bool, marked: bool = False) -> None:
        self.name = f"job-{number}"
        self.total = total
        self.wanted = wanted
        self.blocking = blocks
        self.marked = marked
        self.place: Any = None
        self.variables = Context()
        self.told: list[str] = []
        self.go = threading.Event()
        self._woken: Any = None

    def start(self, now: float, place: Any, /) -> float | None:
        self.told.append("start")
        self.place = place
        return now + self.total if self.wanted else None

    def run(self) -> None:
        if self.blocking:
            self.go.wait()
        else:
            loop = asyncio.get_running_loop()
            self._woken = loop.create_future()
            if self.marked:
                self.place.set_mark(time.monotonic() + SHORT / 3)
            if not self.go.is_set():
                suspend(self._woken)
        self.told.append("ran")

    def end(self) -> None:
        self.go.set()
        woken = self._woken
        if woken is not None:
            with suppress(RuntimeError):  # it has ended, and its loop too
                woken.get_loop().call_soon_threadsafe(lambda: woken.done() or woken.set_result(None))

    def mark_passed(self) -> None:
        self.told.append("mark")

    def expire(self, _thread: str, _age: float, _lateness: float, /) -> None:
        self.told.append("expire")

    def returned(self) -> None:
        self.told.append("returned")

    def refuse(self, _reason: str, /) -> None:
        self.told.append("refuse")

    def stop(self) -> None:
        self.told.append("stop")

    def postpone(self, _seconds: float, /) -> None: ...

    @property
    def can_move(self) -> bool:
        return True

    def blocks(self, _seconds: float, _where: str, /) -> None:
        self.told.append("blocks")

    def lose(self, _reason: str, /) -> None:
        self.told.append("lose")

    def __repr__(self) -> str:
        return f"{self.name}({self.total}) {self.told}"


class LaneMachine(RuleBasedStateMachine):
    eventually: Eventually

    @initialize(most=st.integers(1, 3))
    def build(self, most: int) -> None:
        self.most = most
        self.pool = ThreadPool(1, name="machine")
        self.calls = ThreadPool(1, name="machine-call")
        self.closed_for_good = threading.Event()
        loops = Loops(self.closed_for_good.set)
        self.lane = Lane(most, self.pool, self.calls, loops, SystemClock())
        self.loops = loops
        self.numbers = 0
        self.queue: list[Job] = []
        self.under_way: list[Job] = []
        self.hung: list[Job] = []
        self.lost: list[Job] = []  # their loop was given up, and has not turned since
        self.blocker: Job | None = None
        self.expected: dict[Job, list[str]] = {}
        self.closed = False

    def settle(self) -> None:
        """Begin what can begin, then wait until the lane has done the same."""
        while self.queue and len(self.under_way) < self.most and self.blocker is None:
            job = self.queue.pop(0)
            self.expected[job].append("start")
            if not job.wanted:
                continue
            if job.blocking:
                self.blocker = job
                self.block(job)
                continue
            if job.marked:
                self.expected[job].append("mark")
            if job.total == SHORT:
                self.hung.append(job)
                self.expected[job].append("expire")
            else:
                self.under_way.append(job)
        for job, told in self.expected.items():
            # Sorted: a task that blocks may be named before its time is up, or after.
            self.eventually(lambda job=job, told=told: sorted(job.told) == sorted(told), f"{job} is told {told}")
        counts = len(self.queue), len(self.under_way), len(self.hung)
        self.eventually(lambda: self.lane.counts() == counts, f"the lane counts {counts}, not {self.lane.counts()}")

    def block(self, job: Job) -> None:
        """Note what comes of a task that blocks the loop: it is late, named, and the loop is given up."""
        self.expected[job] += ["expire", "blocks"]
        self.hung.append(job)
        for other in self.under_way:
            self.expected[other].append("lose")
        self.lost, self.under_way = self.lost + self.under_way, []
        self.blocker = None

    @precondition(lambda self: not self.closed)
    @rule(
        total=st.sampled_from([LONG, LONG, SHORT]),
        wanted=st.sampled_from([True, True, True, False]),
        marked=st.sampled_from([True, False, False]),
    )
    def give_work(self, total: float, wanted: bool, marked: bool) -> None:
        self.give(Job(self.numbers, total, wanted=wanted, blocks=False, marked=marked))

    @precondition(lambda self: not self.closed and sum(job.blocking for job in self.expected) < 2)
    @precondition(lambda self: len(self.under_way) < self.most)
    @rule()
    def give_work_that_blocks(self) -> None:
        self.give(Job(self.numbers, SHORT, wanted=True, blocks=True))

    def give(self, job: Job) -> None:
        self.numbers += 1
        self.expected[job] = []
        self.queue.append(job)
        self.lane.execute(job)
        self.settle()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def work_ends(self, data: st.DataObject) -> None:
        job = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1), label="job"))
        self.expected[job].append("ran")
        job.end()
        self.settle()

    @precondition(lambda self: self.hung)
    @rule(data=st.data())
    def a_hung_one_ends(self, data: st.DataObject) -> None:
        able = [job for job in self.hung if job.blocking] or self.hung  # others may be on a loop that is blocked
        job = able[data.draw(st.integers(0, len(able) - 1), label="job")]
        self.hung.remove(job)
        self.expected[job] += ["ran", "returned"]
        job.end()
        if job.blocking and not any(other.blocking for other in self.hung):
            for other in self.lost:
                self.expected[other].append("ran")
                other.end()
            self.lost = []
        self.settle()

    @rule()
    def look_at_the_ledger(self) -> None:
        assert sorted(each.name for each in self.lane.abandoned()) == sorted(job.name for job in self.hung)

    @precondition(lambda self: not self.closed and self.numbers > 6)
    @rule()
    def close(self) -> None:
        self.lane.stop()
        self.loops.close()
        self.closed = True
        for job in self.queue:
            self.expected[job].append("refuse")
        self.queue = []
        for job in (*self.under_way, *self.hung):
            self.expected[job].append("stop")
        self.settle()
        with pytest.raises(RuntimeError, match="shut down"):
            self.lane.execute(Job(-1, 1.0, wanted=True, blocks=False))

    @invariant()
    def never_more_under_way_than_allowed(self) -> None:
        assert self.lane.counts()[1] <= self.most

    def teardown(self) -> None:
        if not hasattr(self, "lane"):
            return
        if not self.closed:
            self.lane.stop()
            self.loops.close()
        for job in sorted(self.expected, key=lambda job: not job.blocking):
            job.end()
        self.eventually(self.closed_for_good.is_set, "all loops have ended")
        self.pool.shutdown(wait=True)
        self.calls.shutdown(wait=True)


def test_the_lane_is_the_lane_of_the_model(
    machine_settings: settings, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "BLAME_AFTER", 0.02)
    monkeypatch.setattr(lane_module, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(lane_module, "LOST_AFTER", 0.05)
    machine = type("Machine", (LaneMachine,), {"eventually": staticmethod(eventually)})
    run_state_machine_as_test(
        machine, settings=settings(machine_settings, max_examples=examples(60), phases=[Phase.generate])
    )
