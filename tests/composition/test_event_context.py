"""Every event says of which run, scanner and attempt it tells; listeners can read what is the case."""

from __future__ import annotations

import threading
from random import Random
from typing import Any

from resilient_scan import Breaker, Policy, Retry, ScanRunner, Timeout, scanner
from resilient_scan.events import (
    AttemptEnded,
    AttemptStarted,
    BreakerChanged,
    ExecutionEnded,
    LateCompletion,
    Load,
    RetryBudgetExhausted,
    ScannersRegistered,
    ThreadAbandoned,
)
from resilient_scan.testing import FakeClock, Recorder, broken, healthy


def told(recorder: Recorder) -> ScannersRegistered:
    (event,) = recorder.of(ScannersRegistered)
    assert isinstance(event, ScannersRegistered)
    return event


def test_attempts_are_told_in_order_with_their_run() -> None:
    recorder, clock = Recorder(), FakeClock(auto=True)
    policy = Policy(cache=None, retry=Retry(attempts=3, base=0, cap=0), breaker=Breaker(failures=3))
    with ScanRunner([broken("one")], policy=policy, listeners=(recorder,), clock=clock) as runner:
        report = runner.run({})
    seen = recorder.of(AttemptStarted, AttemptEnded, BreakerChanged, ExecutionEnded)
    assert [(type(event), getattr(event, "attempt", None)) for event in seen] == [
        (AttemptStarted, 1),
        (AttemptEnded, 1),
        (AttemptStarted, 2),
        (AttemptEnded, 2),
        (AttemptStarted, 3),
        (AttemptEnded, 3),
        (BreakerChanged, None),
        (ExecutionEnded, None),
    ]
    assert {event.run_id for event in seen} == {report.run_id}
    (ended,) = recorder.of(ExecutionEnded)
    assert ended.at == clock.time()


def test_who_is_told_of_an_attempt_is_told_on_its_thread_before_it() -> None:
    order: list[tuple[str, int]] = []

    class Listener:
        events = (AttemptStarted,)

        def __call__(self, _event: AttemptStarted) -> None:
            order.append(("told", threading.get_ident()))

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        order.append(("asked", threading.get_ident()))
        return []

    with ScanRunner([one], listeners=(Listener(),)) as runner:
        runner.run({})
    thread = order[0][1]
    assert order == [("told", thread), ("asked", thread)]


def test_a_hanging_attempt_and_its_late_end_name_run_and_attempt() -> None:
    release, recorder, came_back, hangs = threading.Event(), Recorder(), threading.Event(), threading.Event()

    def listener(event: object) -> None:
        recorder(event)  # type: ignore[arg-type]
        if isinstance(event, LateCompletion):
            came_back.set()
        if isinstance(event, ThreadAbandoned):
            hangs.set()

    @scanner(pipeline="test", cache=None, retry=None, timeout=Timeout(total=0.02))
    def one(_state: dict[str, Any]) -> list[Any]:
        release.wait(10)
        return []

    with ScanRunner([one], policy=Policy(breaker=Breaker(failures=1)), listeners=(listener,)) as runner:
        report = runner.run({})
        assert hangs.wait(5)
        release.set()
        assert came_back.wait(5)
    seen = recorder.of(AttemptEnded, BreakerChanged, ThreadAbandoned, LateCompletion, ExecutionEnded)
    assert {type(event) for event in seen} == {
        AttemptEnded,
        BreakerChanged,
        ThreadAbandoned,
        LateCompletion,
        ExecutionEnded,
    }
    assert {event.run_id for event in seen} == {report.run_id}
    assert [event.attempt for event in recorder.of(ThreadAbandoned, LateCompletion)] == [1, 1]


def test_an_attempt_that_hangs_passes_its_run_on() -> None:
    release, recorder = threading.Event(), Recorder()
    calls = iter([True, False])

    @scanner(pipeline="test", cache=None, breaker=None, timeout=Timeout(total=10, attempt=0.02, max_abandoned=2))
    def one(_state: dict[str, Any]) -> list[Any]:
        if next(calls):
            release.wait(10)
        return []

    with ScanRunner([one], policy=Policy(retry=Retry(attempts=2, base=0, cap=0)), listeners=(recorder,)) as runner:
        report = runner.run({})
        release.set()
    seen = recorder.of(AttemptStarted, AttemptEnded, ExecutionEnded)
    assert [(type(event).__name__, event.run_id) for event in seen] == [
        ("AttemptStarted", report.run_id),
        ("AttemptEnded", report.run_id),
        ("AttemptStarted", report.run_id),
        ("AttemptEnded", report.run_id),
        ("ExecutionEnded", report.run_id),
    ]


def test_a_retry_for_which_there_is_no_budget_is_told() -> None:
    recorder = Recorder()
    retry = Retry(attempts=3, base=0, cap=0, budget=0.0001, budget_min=1)
    policy = Policy(cache=None, retry=retry, breaker=None)
    with ScanRunner([broken("one")], policy=policy, listeners=(recorder,), random=Random(1)) as runner:
        report = runner.run({})
    (exhausted,) = recorder.of(RetryBudgetExhausted)
    assert exhausted == RetryBudgetExhausted("one", 2, report.run_id)


def test_a_listener_can_read_whether_a_scanner_is_in_service() -> None:
    recorder, clock = Recorder(), FakeClock()
    with ScanRunner([healthy("one")], listeners=(recorder,), clock=clock) as runner:
        state = told(recorder).scanners[0].state
        assert state() == "enabled"
        runner.disable("one", duration=10)
        assert state() == "disabled"
        clock.advance(10)
        assert state() == "enabled"
        runner.disable("one")
    assert state() is None  # its runner is closed


def test_a_listener_can_read_how_busy_the_threads_are() -> None:
    began, release, recorder = threading.Semaphore(0), threading.Event(), Recorder()

    @scanner(pipeline="test", cache=None)
    def one(_state: dict[str, Any]) -> list[Any]:
        began.release()
        release.wait(10)
        return []

    with ScanRunner(
        [one, healthy("two", cache=None), healthy("three", cache=None)],
        max_workers=1,
        order="given",
        listeners=(recorder,),
    ) as runner:
        load = told(recorder).load
        assert load() == Load()
        running = threading.Thread(target=runner.run, daemon=True)
        running.start()
        assert began.acquire(timeout=5)
        while load().queued < 2:
            assert running.is_alive()
        assert load() == Load(queued=2, busy=1, idle=0, abandoned=0)
        release.set()
        running.join(5)
        while load().idle < 1:
            pass
        assert load() == Load(queued=0, busy=0, idle=1, abandoned=0)
    del runner, running
