"""Scanners whose errors come in an exception group, as those of `asyncio.TaskGroup` and anyio do."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    PermanentError,
    PrometheusMetrics,
    Retry,
    RetryAfter,
    ScanCancelled,
    ScanContext,
    ScanTimeout,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import AttemptEnded, ExecutionEnded, LateCompletion
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock, Recorder, broken
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.results import only, statuses

DOWN, BAD_KEY = OSError("down"), PermanentError("bad key")
OPENS_AT_ONCE = Breaker(failures=1)


class Tasks:
    """A scanner that raises some errors in as many tasks of a task group; from `answers_at` on, it answers."""

    name = "tasks"
    pipeline = "test"

    def __init__(self, *errors: BaseException, clock: FakeClock | None = None, answers_at: int = 99) -> None:
        self.errors = errors
        self.clock = clock or FakeClock()
        self.answers_at = answers_at
        self.calls: list[float] = []

    async def scan(self, _state: dict[str, Any]) -> list[Any]:
        self.calls.append(self.clock.monotonic())
        if len(self.calls) >= self.answers_at:
            return [{"ticker": "AAPL"}]
        all_running = asyncio.Barrier(len(self.errors))
        async with asyncio.TaskGroup() as tasks:
            for error in self.errors:
                tasks.create_task(self.fail(error, all_running))
        return []

    async def fail(self, error: BaseException, all_running: asyncio.Barrier) -> None:
        await all_running.wait()
        raise error


def test_a_retry_after_in_a_group_is_waited_for(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    tasks = Tasks(DOWN, RetryAfter(5), RetryAfter(20), clock=clock, answers_at=2)
    policy = bare(retry=Retry(attempts=3, base=0, cap=0, on=()), timeout=Timeout(total=100))
    result = only(fleet(tasks, policy=policy, clock=clock))
    assert (result.status, tasks.calls) == (Status.COMPLETED, [0, 20])


def test_a_group_is_retried_for_a_leaf_in_on(fleet: Fleet, bare: Bare) -> None:
    tasks = Tasks(ValueError("odd"), DOWN, answers_at=3)
    result = only(fleet(tasks, policy=bare(retry=Retry(attempts=3, base=0, cap=0, on=(OSError,)))))
    assert (result.status, result.attempts) == (Status.COMPLETED, 3)


@pytest.mark.parametrize(
    ("errors", "opens"),
    [([BAD_KEY, PermanentError("no such symbol")], False), ([BAD_KEY, DOWN], True), ([DOWN, BAD_KEY], True)],
)
def test_permanent_leaves_prevent_the_retry_and_only_the_others_vote(
    errors: list[Exception], opens: bool, fleet: Fleet, bare: Bare
) -> None:
    tasks = Tasks(*errors)
    runner = fleet(tasks, policy=bare(retry=Retry(attempts=3, base=0, cap=0), breaker=OPENS_AT_ONCE))
    result = only(runner)
    assert (result.status, result.attempts, len(tasks.calls)) == (Status.ERROR, 1, 1)
    assert (only(runner).status is Status.REJECTED) is opens


def test_report_metrics_and_explain_name_the_first_leaf(fleet: Fleet, bare: Bare) -> None:
    registry, recorder = CollectorRegistry(), Recorder()
    runner = fleet(Tasks(DOWN, BAD_KEY, DOWN), listeners=(PrometheusMetrics(registry), recorder))
    result = only(runner)
    expected = ErrorInfo("OSError", "down (and 2 more)")
    assert result.error == expected
    assert [event.error for event in recorder.of(AttemptEnded, ExecutionEnded)] == [expected, expected]
    labels = {"scanner": "tasks", "kind": "OSError", "blame": "scanner"}
    assert registry.get_sample_value("resilient_scan_errors_total", labels) == 1
    assert "OSError: down (and 2 more)" in str(runner.explain("tasks"))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_group_is_an_error_without_a_vote(kind: type[BaseException], fleet: Fleet, bare: Bare) -> None:
    runner = fleet(
        broken("bad", BaseExceptionGroup("x", [DOWN, kind()])),
        policy=bare(retry=Retry(attempts=3, base=0, cap=0), breaker=OPENS_AT_ONCE),
    )
    for _ in range(2):  # a second time: the breaker is still closed
        result = only(runner)
        assert (result.status, result.attempts) == (Status.ERROR, 1)


class Watcher:
    """A scanner with two tasks that both look at the context when the time is up, as polite tasks do."""

    name = "watcher"
    pipeline = "test"

    async def scan(self, _state: dict[str, Any], context: ScanContext) -> list[Any]:
        async def watch() -> None:
            try:
                await asyncio.sleep(3600)
            finally:  # the loop cancels it at the deadline
                context.check()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            tasks.create_task(watch())
        return []


def polite_threads(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    """Wait for the deadline, and raise what two threads of a home-made task group would."""
    try:
        context.sleep(3600)
    except ScanCancelled as over:
        raise BaseExceptionGroup("two threads", [over, ScanCancelled("over")]) from None
    return []


class Unnoticed(FakeClock):
    """A clock that can move without waking the watchdog, so that a scanner notices its deadline first."""

    def jump(self, seconds: float) -> None:
        self._now += seconds


@pytest.mark.parametrize(
    ("total", "deadline", "message", "outcome", "votes"),
    [
        (10, None, "timeout after 10s", "timeout", True),
        (100, 10, "the run's deadline came after 10s", "cancelled", False),
    ],
)
def test_tasks_that_notice_a_deadline_together_are_a_timeout(
    total: float, deadline: float | None, message: str, outcome: str, votes: bool, fleet: Fleet, bare: Bare
) -> None:
    clock, recorder = Unnoticed(), Recorder()

    @scanner(pipeline="test")
    def tasks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        clock.jump(10)
        raise BaseExceptionGroup("two tasks", [ScanCancelled("over"), asyncio.CancelledError()])

    policy = bare(timeout=Timeout(total=total), breaker=OPENS_AT_ONCE, retry=Retry(attempts=3, base=0, cap=0))
    runner = fleet(tasks, policy=policy, listeners=(recorder,), clock=clock)
    result = only(runner, deadline=deadline)
    assert (result.status, result.attempts) == (Status.TIMEOUT, 1)
    assert result.error == ErrorInfo("resilient_scan.ScanTimeout", message)
    assert [event.outcome for event in recorder.of(AttemptEnded, ExecutionEnded)] == [outcome, outcome]
    assert (runner.breaker("tasks") == "open") is votes


def test_a_task_group_that_its_loop_cancels_at_the_deadline_is_a_timeout(fleet: Fleet, bare: Bare) -> None:
    """Whether the scanner or the watchdog is first."""
    runner = fleet(Watcher(), policy=bare(timeout=Timeout(total=0.1), breaker=OPENS_AT_ONCE))
    result = only(runner)
    assert result.status is Status.TIMEOUT
    assert result.error == ErrorInfo("resilient_scan.ScanTimeout", "timeout after 0.1s")
    assert only(runner).status is Status.REJECTED  # it voted as a failure


def test_a_cancellation_that_the_scanner_makes_up_is_an_error_in_a_group_too(fleet: Fleet) -> None:
    made_up = BaseExceptionGroup("x", [ScanCancelled("not so"), asyncio.CancelledError()])
    assert only(fleet(broken("bad", made_up))).status is Status.ERROR


def test_sources_that_have_no_time_left_are_a_timeout_in_a_group_too(fleet: Fleet, bare: Bare) -> None:
    """Status and error are those of the first leaf."""
    clock = FakeClock(auto=True)

    @scanner(pipeline="test")
    def tasks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        failures: list[Exception] = []
        for source in ("first", "second"):
            try:
                context.guarded(source, lambda: context.sleep(60), seconds=5)
            except ScanTimeout as failure:
                failures.append(failure)
        raise ExceptionGroup("no source", [*failures, DOWN])

    result = only(fleet(tasks, policy=bare(timeout=Timeout(total=100)), clock=clock))
    assert result.status is Status.TIMEOUT
    assert result.error == ErrorInfo("resilient_scan.ScanTimeout", "first: no answer within 5s (and 2 more)")


def watched_thread(_state: dict[str, Any], _context: ScanContext) -> list[Any]:
    """Raise what the tasks of a loop on the scanner's own thread would."""
    raise BaseExceptionGroup("a loop of its own", [asyncio.CancelledError()])


async def watched_tasks(state: dict[str, Any], context: ScanContext) -> list[Any]:
    return await Watcher().scan(state, context)


@pytest.mark.parametrize(
    ("scan", "method"), [(polite_threads, "cooperative"), (watched_tasks, "cancel"), (watched_thread, "cancel")]
)
def test_a_late_group_of_cancellations_shows_what_freed_the_thread(
    scan: Any, method: str, fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    def hangs(state: dict[str, Any], context: ScanContext) -> Any:
        release.wait()
        return scan(state, context)

    recorder = Recorder()
    hung = scanner(name="hung", pipeline="test")(hangs)
    runner = fleet(hung, policy=bare(timeout=Timeout(total=0.05)), listeners=(recorder,))
    runner.run({})
    release.set()
    eventually(lambda: bool(recorder.of(LateCompletion)))
    assert [late.method for late in recorder.of(LateCompletion)] == [method]


def test_a_group_keeps_no_frames_alive(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    class Big:
        """Stands for a local of the scanner."""

    made: list[weakref.ref[Big]] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        big = Big()
        made.append(weakref.ref(big))
        raise ExceptionGroup("both", [OSError("down"), RetryAfter(0)])

    policy = bare(retry=Retry(attempts=2, base=0, cap=0), breaker=Breaker())
    runner = fleet(source, policy=policy)
    gc.disable()
    try:
        report = runner.run({})
        eventually(lambda: [one() for one in made] == [None, None])  # without a collection
    finally:
        gc.enable()
    assert statuses(report) == [Status.ERROR]
