"""One execution per key at a time, through a runner, against a model: who leads, who waits, who gets what."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from resilient_scan import Cache, Policy, RunReport, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.snapshot import Snapshot
from resilient_scan.testing import FakeClock
from tests.support.fixtures import Eventually

TTL, TOTAL = 100.0, 40.0
APART = 2.0**-6  # seconds between any two instants at which something is over, so that the model knows the order


class Job:
    """One call of the scanner; it goes on when the test says how."""

    def __init__(self, key: str, context: ScanContext, ends_at: float) -> None:
        self.key = key
        self.context = context
        self.ends_at = ends_at
        self.fails = False
        self.go = False
        self.over = threading.Event()
        self.runs: list[Asker] = []  # the model's: who waits for it, the leader first

    def work(self) -> list[Any]:
        try:
            self.context.wait(1e6, lambda: self.go)
            if self.fails:
                raise ValueError("down")
            return [{"ticker": "A"}]
        finally:
            self.over.set()

    def end(self, fails: bool) -> None:
        self.fails, self.go = fails, True
        self.context.poke()


class Asker:
    """A run on a thread of its own."""

    def __init__(
        self, runner: ScanRunner, key: str, deadline: float | None, now: float, eventually: Eventually
    ) -> None:
        self.leads = False
        self.deadline = None if deadline is None else now + deadline
        self.report: RunReport | None = None
        known = set(runner._runs.active)
        self.thread = threading.Thread(target=self._work, args=(runner, key, deadline), daemon=True)
        self.thread.start()
        eventually(lambda: self.done() or bool(set(runner._runs.active) - known), "the run begins")
        self.run: Any = next(iter(set(runner._runs.active) - known), None)

    def _work(self, runner: ScanRunner, key: str, deadline: float | None) -> None:
        self.report = runner.run({"key": key}, deadline=deadline)

    def done(self) -> bool:
        return self.report is not None

    @property
    def status(self) -> Status:
        assert self.report is not None
        return self.report.results["one"].status


class SingleFlightMachine(RuleBasedStateMachine):
    eventually: Eventually

    @initialize()
    def build(self) -> None:
        self.clock = FakeClock()
        self.jobs: list[Job] = []  # as the scanner is called
        self.flying: dict[str, Job] = {}
        self.fresh_until: dict[str, float] = {}
        self.numbers = 0
        policy = Policy(cache=Cache(ttl=TTL, jitter=0), retry=None, breaker=None, timeout=Timeout(total=TOTAL))
        self.runner = ScanRunner(
            [scanner(name="one", pipeline="test")(self.scan)],
            policy=policy,
            clock=self.clock,
            listeners=(),
            max_workers=16,
        )

    def scan(self, state: dict[str, Any], context: ScanContext) -> list[Any]:
        job = Job(state["key"], context, context.deadline)
        self.jobs.append(job)
        return job.work()

    @property
    def cache(self) -> Any:
        return self.runner._fleet.stacks["one"].cache

    @staticmethod
    def key(key: str) -> Any:
        return Snapshot({"key": key}).keys[None]

    # what may happen

    @rule(key=st.sampled_from("ab"), deadline=st.sampled_from([None, None, 3.0, 9.0]))
    def ask(self, key: str, deadline: float | None) -> None:
        self.numbers += 1
        self.clock.advance(APART)
        if deadline is not None:
            deadline += self.numbers * APART / 64
        calls, now = len(self.jobs), self.clock.monotonic()
        asker = Asker(self.runner, key, deadline, now, self.eventually)
        if now < self.fresh_until.get(key, 0.0):
            self.eventually(asker.done, "a fresh answer ends it at once")
            assert asker.status is Status.CACHED
        elif key in self.flying:
            job = self.flying[key]
            job.runs.append(asker)
            self.eventually(lambda: bool(asker.run.open), "it waits for the one that leads")
        else:
            self.eventually(lambda: len(self.jobs) == calls + 1, "it leads")
            asker.leads = True
            self.flying[key] = self.jobs[-1]
            self.flying[key].runs.append(asker)
        assert len(self.jobs) <= calls + 1

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), fails=st.booleans())
    def the_work_ends(self, data: st.DataObject, fails: bool) -> None:
        job = self.flying.pop(data.draw(st.sampled_from(sorted(self.flying)), label="key"))
        job.end(fails)
        for asker in job.runs:
            self.eventually(asker.done, "all that wait get the outcome")
            good = Status.COMPLETED if asker.leads else Status.CACHED
            assert asker.status is (Status.ERROR if fails else good)
        if not fails:
            self.fresh_until[job.key] = self.clock.monotonic() + TTL
        self.eventually(lambda: not (self.cache._flights or {}).get(self.key(job.key)), "nobody leads any more")
        self.eventually(job.over.is_set, "the work is over")

    @precondition(lambda self: any(job.runs for job in self.flying.values()))
    @rule(data=st.data())
    def a_run_is_cancelled(self, data: st.DataObject) -> None:
        everyone = [(job, asker) for job in self.flying.values() for asker in job.runs]
        number = data.draw(st.integers(0, len(everyone) - 1), label="run")
        job, asker = everyone[number]
        job.runs.remove(asker)
        asker.run.cancel()
        self.eventually(asker.done, "a cancelled run ends")
        assert asker.status is Status.SKIPPED
        if not job.runs:
            del self.flying[job.key]
            self.eventually(job.over.is_set, "work that nobody waits for is cancelled")

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 20.0, TTL]))
    def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while True:
            waiting = [(asker.deadline, job, asker) for job in self.flying.values() for asker in job.runs]
            events = [event for event in waiting if event[0] is not None and event[0] <= end]
            events += [(job.ends_at, job, None) for job in self.flying.values() if job.ends_at <= end]
            if not events:
                break
            instant, job, asker = min(events, key=lambda event: event[0])
            self.clock.advance(max(0.0, instant - self.clock.monotonic()))
            if asker is not None:
                self._a_run_is_over(job, asker)
            else:
                self._the_work_is_out_of_time(job)
        self.clock.advance(max(0.0, end - self.clock.monotonic()))

    def _a_run_is_over(self, job: Job, asker: Asker) -> None:
        """The work goes on for the cache's sake."""
        job.runs.remove(asker)
        self.eventually(asker.done, "a run ends at its deadline")
        assert asker.status is (Status.TIMEOUT if asker.leads else Status.SKIPPED)
        assert not job.over.is_set()

    def _the_work_is_out_of_time(self, job: Job) -> None:
        del self.flying[job.key]
        for asker in job.runs:
            self.eventually(asker.done, "all that wait get the timeout")
            assert asker.status is Status.TIMEOUT
        self.eventually(job.over.is_set, "the work stops")
        self.eventually(lambda: self.runner._fleet.pool.counts()["abandoned"] == 0, "and its thread ends")
        self.eventually(lambda: self.runner._fleet.stacks["one"].hung.count == 0, "and is not counted any more")
        self.eventually(lambda: not (self.cache._flights or {}).get(self.key(job.key)), "nobody leads any more")

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()
            for job in self.jobs:
                job.end(fails=False)
                self.eventually(job.over.is_set, "all work ends")


def test_one_execution_a_key(machine_settings: settings, eventually: Eventually) -> None:
    machine = type("Machine", (SingleFlightMachine,), {"eventually": staticmethod(eventually)})
    run_state_machine_as_test(machine, settings=settings(machine_settings, phases=[Phase.generate]))
