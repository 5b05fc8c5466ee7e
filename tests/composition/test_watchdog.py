"""The thread that keeps every deadline of a runner: what may go wrong around it, and that it goes on all the same."""

from __future__ import annotations

import logging
import threading
from typing import Any

import prometheus_client
import pytest

from resilient_scan import PrometheusMetrics, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.core.execution import Execution
from resilient_scan.core.pool import ThreadPool
from resilient_scan.events import DeadlineActedOn, ScanEnded, ThreadAbandoned
from resilient_scan.testing import FakeClock, Recorder, hanging, healthy
from tests.support.fixtures import Eventually


class NoMoreThreads:
    """A machine that has no thread left, from the moment it is told so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exhausted = False
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if self.exhausted:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)


def start_workers(runner: ScanRunner, count: int) -> None:
    together = threading.Barrier(count + 1)
    for _ in range(count):
        runner._fleet.pool.submit(together.wait, 5)
    together.wait(5)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> NoMoreThreads:
    return NoMoreThreads(monkeypatch)


def test_timeouts_hold_after_one_that_nobody_waited_for_on_a_machine_without_threads(
    machine: NoMoreThreads, release: threading.Event, eventually: Eventually
) -> None:
    heard = Recorder()
    slow = hanging("slow", release, timeout=Timeout(total=0.3))
    other = hanging("other", release, timeout=Timeout(total=0.1), cache=None)
    with ScanRunner([slow, other, healthy("sound")], max_workers=4, listeners=(heard,)) as runner:
        start_workers(runner, 3)
        assert runner.run({"run": 1}, only=["slow"], deadline=0.05).counts[Status.TIMEOUT] == 1
        machine.exhausted = True  # while the execution goes on, for the cache's sake, to its own timeout
        eventually(lambda: bool(runner.abandoned()))
        report = runner.run({"run": 2}, only=["other", "sound"], deadline=5)
        assert report.results["other"].status is Status.TIMEOUT
        assert report.results["sound"].status is Status.COMPLETED
        assert report.duration < 4
        assert {event.scanner for event in heard.of(ThreadAbandoned)} == {"slow", "other"}


def test_what_nobody_can_send_now_is_sent_at_the_start_of_the_next_run(machine: NoMoreThreads) -> None:
    pool, said = ThreadPool(1), []
    machine.exhausted = True
    pool.run_soon(lambda: said.append("hung"))
    assert said == []
    assert pool.counts() == {"busy": 0, "idle": 0, "abandoned": 0}
    pool.run_errands()
    assert said == ["hung"]
    pool.run_soon(lambda: 1 / 0)  # one that fails costs the next nothing
    pool.run_soon(lambda: said.append("late"))
    pool.run_errands()
    assert said == ["hung", "late"]
    pool.shutdown()


def test_a_worker_does_what_the_watchdog_has_put_off(eventually: Eventually) -> None:
    pool, names = ThreadPool(1), []
    pool.submit(lambda: None).result(5)
    pool.run_soon(lambda: names.append(threading.current_thread().name))
    eventually(lambda: bool(names))
    assert names == ["resilient-scan-0"]
    pool.shutdown()


@pytest.mark.parametrize("failure", [ValueError("a bug"), MemoryError(), SystemExit(3)])
def test_a_callback_that_fails_ends_no_watchdog(failure: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    clock, called = FakeClock(), threading.Event()

    def fail() -> None:
        raise failure

    pool = ThreadPool(1, clock=clock)
    pool.at(1.0, fail)
    pool.at(2.0, called.set)
    clock.advance(3.0)
    assert called.wait(5)
    assert "a timer failed" in caplog.text
    pool.shutdown()


def test_a_look_that_fails_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, release: threading.Event
) -> None:
    failures, look = iter([MemoryError(), MemoryError()]), ThreadPool._past_deadline

    def fail_twice(self: ThreadPool, now: float) -> Any:
        for failure in failures:
            raise failure
        return look(self, now)

    monkeypatch.setattr(ThreadPool, "_past_deadline", fail_twice)
    with ScanRunner([hanging("slow", release, timeout=Timeout(total=0.1))], listeners=()) as runner:
        assert runner.run().counts[Status.TIMEOUT] == 1
    assert caplog.text.count("the watchdog failed; it looks again") == 2


def test_a_watchdog_that_has_ended_is_replaced_and_that_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, release: threading.Event, eventually: Eventually
) -> None:
    with ScanRunner([healthy("sound"), hanging("slow", release, timeout=Timeout(total=0.1))], listeners=()) as runner:
        with monkeypatch.context() as broken:
            broken.setattr(ThreadPool, "_watch", lambda self: setattr(self, "_watchdog", None))
            runner.run(only=["sound"])
            eventually(lambda: runner._fleet.pool._watchdog is None)
        assert runner.run(only=["slow"]).counts[Status.TIMEOUT] == 1
    assert "the watchdog of the thread pool had ended; a new one is started" in caplog.text


def test_a_timeout_that_cannot_be_handed_over_is_an_error_of_that_scan_alone(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    timeout = Execution._timeout

    def fail(self: Execution) -> Any:
        if self.name == "slow":
            raise MemoryError
        return timeout(self)

    monkeypatch.setattr(Execution, "_timeout", fail)
    slow = hanging("slow", release, timeout=Timeout(total=0.1))
    with ScanRunner([slow, hanging("other", release, timeout=Timeout(total=0.2))], listeners=()) as runner:
        report = runner.run(deadline=5)
    assert report.results["slow"].status is Status.ERROR
    assert report.results["slow"].error is not None
    assert report.results["slow"].error.kind == "MemoryError"
    assert report.results["other"].status is Status.TIMEOUT
    assert report.duration < 4


# how late it acts


def test_a_deadline_that_was_acted_on_is_reported_with_its_lateness(release: threading.Event) -> None:
    registry, heard = prometheus_client.CollectorRegistry(), Recorder()
    slow = hanging("slow", release, timeout=Timeout(total=0.1))
    listeners = (heard, PrometheusMetrics(registry))
    with ScanRunner([slow, hanging("slower", release)], max_workers=2, listeners=listeners) as runner:
        runner.run(deadline=0.3)
    assert [event.scanner for event in heard.of(DeadlineActedOn)] == ["slow", ""]
    assert all(0 <= event.lateness < 5 for event in heard.of(DeadlineActedOn))
    assert registry.get_sample_value("resilient_scan_watchdog_lateness_seconds_count") == 2


def test_a_completed_scan_past_its_timeout_can_be_explained(
    caplog: pytest.LogCaptureFixture, release: threading.Event
) -> None:
    clock, heard, stuck = FakeClock(), Recorder(), threading.Event()

    def hold_the_watchdog_up() -> None:  # as code does that keeps the interpreter's lock
        stuck.set()
        release.wait(5)

    @scanner(pipeline="test", timeout=Timeout(total=1.5))
    def greedy(_state: dict[str, Any], _context: ScanContext) -> list[Any]:
        runner._fleet.pool.at(clock.monotonic(), hold_the_watchdog_up)
        assert stuck.wait(5)
        clock.advance(13.6)
        return []

    with ScanRunner([greedy], clock=clock, listeners=(heard,)) as runner:
        (result,) = runner.run().results.values()
        text = str(runner.explain("greedy"))
        release.set()
    assert (result.status, result.duration) == (Status.COMPLETED, 13.6)
    (event,) = heard.of(DeadlineActedOn)
    assert (event.scanner, round(event.lateness, 6)) == ("greedy", 12.1)
    assert heard.events_seen.index(event) < heard.events_seen.index(heard.of(ScanEnded)[0])
    assert "deadlines were acted on up to 12.1s late" in " ".join(text.split())


def test_seconds_of_lateness_are_logged_and_milliseconds_are_not(caplog: pytest.LogCaptureFixture) -> None:
    from resilient_scan import LogEvents

    caplog.set_level(logging.WARNING)
    log = LogEvents()
    log(DeadlineActedOn("one", 0.004))
    assert caplog.text == ""
    log(DeadlineActedOn("one", 12.1))
    log(DeadlineActedOn("", 3.0))
    assert "one: its deadline was acted on 12.1s late: other code held the interpreter's lock" in caplog.text
    assert "the run: its deadline was acted on 3s late" in caplog.text
