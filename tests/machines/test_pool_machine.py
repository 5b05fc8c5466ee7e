"""The thread pool against a model: places, hung threads, caps, refusals, the end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
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

from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.task import NEVER
from resilient_scan.testing import FakeClock
from tests.support.examples import examples
from tests.support.fixtures import Eventually
from tests.support.tasks import QuietTask
from tests.support.waiting import WAIT_TIMEOUT

THREADS = "pool-of-the-machine"


class Job(QuietTask):
    """A task that runs until it is told to end, and notes what the pool tells it."""

    def __init__(self, number: int, limit: float, wanted: bool = True, mark: float = NEVER) -> None:
        self.name = f"job-{number}"
        self.limit = limit
        self.wanted = wanted
        self.mark = mark
        self.place: Any = None
        self.go = threading.Event()
        self.told: list[str] = []
        self.started_at: float | None = None
        self.age = 0.0

    def start(self, now: float, place: Any, /) -> float | None:
        self.started_at, self.place = now, place
        if self.wanted:
            return now + self.limit
        self.told.append("start")
        return None

    def run(self) -> None:
        self.place.set_mark((self.started_at or 0.0) + self.mark)
        self.told.append("start")
        assert self.go.wait(WAIT_TIMEOUT * 4), "the test forgot a job"
        self.place.set_mark(NEVER)
        self.told.append("ran")

    def mark_passed(self) -> None:
        self.told.append("mark")

    def expire(self, _thread: str, age: float, _lateness: float, /) -> None:
        self.age = age
        self.told.append("expire")

    def returned(self) -> None:
        self.told.append("late")

    def refuse(self, reason: str, /) -> None:
        self.told.append("refuse")

    def __repr__(self) -> str:
        return f"{self.name}({self.limit}) {self.told}"


class PoolMachine(RuleBasedStateMachine):
    eventually: Eventually

    @initialize(workers=st.integers(1, 3), cap=st.integers(0, 2))
    def build(self, workers: int, cap: int) -> None:
        self.workers, self.cap = workers, cap
        self.clock = FakeClock()
        self.pool = ThreadPool(workers, max_abandoned=cap, clock=self.clock, name=THREADS)
        self.numbers = 0
        self.waiting: deque[Job] = deque()
        self.busy: list[Job] = []
        self.hung: list[Job] = []  # with or without a place
        self.given = 0  # hung threads whose place was given to a new worker
        self.expected: dict[Job, list[str]] = {}
        self.closed = False
        self.timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self.rung: list[int] = []
        self.taken_back: set[int] = set()

    # what the model says

    def settle(self) -> None:
        """Give places away and start what can start; then wait until the pool has done the same."""
        holding = len(self.hung) - self.given
        replaced = min(holding, self.cap - self.given)
        self.given += replaced
        holding -= replaced
        while self.waiting and len(self.busy) + holding < self.workers:
            job = self.waiting.popleft()
            self.expected[job].append("start")
            if job.wanted:
                self.busy.append(job)
        if holding == self.workers:
            while self.waiting:
                self.expected[self.waiting.popleft()].append("refuse")
        for job, told in self.expected.items():
            self.eventually(lambda job=job, told=told: job.told == told, f"{job} is told {told}")
        counts = {"busy": len(self.busy), "abandoned": len(self.hung)}
        self.eventually(lambda: counts.items() <= self.pool.counts().items(), f"the pool counts {counts}")

    # what may happen

    @precondition(lambda self: not self.closed)
    @rule(
        limit=st.sampled_from([1.0, 1.0, 2.0, 4.0, NEVER]),
        wanted=st.sampled_from([True, True, True, False]),
        mark=st.sampled_from([NEVER, NEVER, 0.5, 1.5]),
    )
    def give_work(self, limit: float, wanted: bool, mark: float) -> None:
        job = Job(self.numbers, limit, wanted, mark)
        self.numbers += 1
        self.expected[job] = []
        self.waiting.append(job)
        self.pool.execute(job)
        self.settle()

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def work_ends(self, data: st.DataObject) -> None:
        job = self.busy.pop(data.draw(st.integers(0, len(self.busy) - 1), label="job"))
        self.expected[job].append("ran")
        job.go.set()
        self.settle()

    @precondition(lambda self: self.hung)
    @rule(data=st.data())
    def a_hung_thread_ends(self, data: st.DataObject) -> None:
        job = self.hung[data.draw(st.integers(0, len(self.hung) - 1), label="job")]
        (entry,) = [entry for entry in self.pool.abandoned() if entry.name == job.name]
        self.hung.remove(job)
        if not entry.holds_place:
            self.given -= 1
        self.expected[job] += ["ran", "late"]
        job.go.set()
        self.settle()

    @precondition(lambda self: self.busy)
    @rule()
    def pass_to_the_next_deadline(self) -> None:
        """Exactly to it: that instant is too late already."""
        now = self.clock.monotonic()
        ends = [(job.started_at or 0.0) + end for job in self.busy for end in (job.limit, job.mark)]
        left = min((end - now for end in ends if end > now), default=NEVER)
        self.pass_time(left if left < NEVER else 1.0)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        now = self.clock.monotonic()
        for job in self.busy:
            if (job.started_at or 0.0) + job.mark <= now and "mark" not in self.expected[job]:
                self.expected[job].append("mark")
        over = [job for job in self.busy if job.started_at is not None and job.started_at + job.limit <= now]
        for job in over:
            self.busy.remove(job)
            self.hung.append(job)
            self.expected[job].append("expire")
        self.settle()
        due = [number for number, (instant, _forget) in self.timers.items() if instant <= now]
        for number in due:
            del self.timers[number]
        self.eventually(lambda: set(due) <= set(self.rung), f"timers {due} ring")
        for job in over:
            assert job.started_at is not None
            assert job.age == now - job.started_at

    @precondition(lambda self: not self.closed and self.numbers > 12)
    @rule(cancel=st.booleans())
    def shut_down(self, cancel: bool) -> None:
        self.pool.shutdown(wait=False, cancel_futures=cancel)
        self.closed = True
        for _instant, forget in self.timers.values():
            forget()  # a closed pool may end before they are due
        self.timers.clear()
        if cancel:
            while self.waiting:
                self.expected[self.waiting.popleft()].append("refuse")
        self.settle()
        with pytest.raises(RuntimeError, match="shut down"):
            self.pool.execute(Job(-1, 1.0))

    @precondition(lambda self: not self.closed and len(self.timers) < 2)
    @rule(seconds=st.sampled_from([0.5, 1.5, 3.0]))
    def set_a_timer(self, seconds: float) -> None:
        number, self.numbers = self.numbers, self.numbers + 1
        instant = self.clock.monotonic() + seconds
        self.timers[number] = instant, self.pool.at(instant, lambda: self.rung.append(number))

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def take_a_timer_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.timers)), label="timer")
        _instant, forget = self.timers.pop(number)
        forget()
        self.taken_back.add(number)

    @invariant()
    def timers_ring_once_and_never_early(self) -> None:
        assert len(set(self.rung)) == len(self.rung)
        assert not set(self.rung) & set(self.timers)
        assert not set(self.rung) & self.taken_back

    @rule()
    def look_at_the_ledger(self) -> None:
        ledger = self.pool.abandoned()
        now = self.clock.monotonic()
        assert sorted(entry.name for entry in ledger) == sorted(job.name for job in self.hung)
        assert sum(not entry.holds_place for entry in ledger) == self.given <= self.cap
        ages = {job.name: now - (job.started_at or 0.0) for job in self.hung}
        assert all(entry.age == ages[entry.name] and "go.wait" in entry.stack for entry in ledger)
        assert [entry.age for entry in ledger] == sorted((entry.age for entry in ledger), reverse=True)

    @invariant()
    def never_more_workers_than_allowed(self) -> None:
        counts = self.pool.counts()
        holding = len(self.hung) - self.given
        assert counts["busy"] + counts["idle"] + holding <= self.workers
        workers = [thread for thread in threading.enumerate() if _is_worker(thread)]
        assert len(workers) <= self.workers + self.cap

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for job in self.expected:
            job.go.set()
        for _instant, forget in self.timers.values():
            forget()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.clock.advance(0.0)
        self.eventually(lambda: not any(t.name.startswith(THREADS) for t in threading.enumerate()), "all threads end")


def _is_worker(thread: threading.Thread) -> bool:
    return thread.name.startswith(THREADS) and not thread.name.endswith("watchdog")


def test_the_pool_is_the_pool_of_the_model(machine_settings: settings, eventually: Eventually) -> None:
    machine = type("Machine", (PoolMachine,), {"eventually": staticmethod(eventually)})
    run_state_machine_as_test(
        machine, settings=settings(machine_settings, max_examples=examples(200), phases=[Phase.generate])
    )
