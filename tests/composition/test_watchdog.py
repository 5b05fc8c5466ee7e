"""The thread that keeps every deadline of a runner: what may go wrong around it, and that it goes on all the same."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from typing import Any

import prometheus_client
import pytest

from resilient_scan import PrometheusMetrics, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.core.execution import Execution
from resilient_scan.core.pool import FutureTask, ThreadPool
from resilient_scan.events import DeadlineActedOn, ScanEnded, ThreadAbandoned
from resilient_scan.testing import FakeClock, Recorder, hanging, healthy
from tests.support.clocks import WatchedClock
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
        eventually(lambda: {event.scanner for event in heard.of(ThreadAbandoned)} == {"slow", "other"})


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


# what scanners leave for it to look at


class Hangs:
    """Every method that the package could call by mistake hangs until the test is over."""

    release: threading.Event

    def _hang(self, *_args: Any) -> Any:
        self.release.wait(30)

    __eq__ = __repr__ = __str__ = __len__ = __bool__ = _hang  # type: ignore[assignment]
    __hash__ = _hang  # type: ignore[assignment]


class TextHangs(Exception):
    release: threading.Event

    def __str__(self) -> str:
        self.release.wait(30)
        return ""


@pytest.fixture
def hangs(release: threading.Event) -> type[Hangs]:
    Hangs.release = TextHangs.release = release
    return Hangs


def test_an_error_whose_text_hangs_is_a_timeout(hangs: type[Hangs]) -> None:
    """Its text was asked for after the execution had ended: nobody was left to hand the timeout over."""

    @scanner(pipeline="test", retry=None, timeout=Timeout(total=0.1))
    def fails(_state: dict[str, Any]) -> Any:
        raise TextHangs

    with ScanRunner([fails, healthy("sound")], listeners=()) as runner:
        report = runner.run(deadline=10)
    assert [result.status for result in report.results.values()] == [Status.TIMEOUT, Status.COMPLETED]
    assert report.duration < 8


@pytest.mark.parametrize("ends", ["hangs", "returns"])
def test_log_entries_are_never_compared(ends: str, hangs: type[Hangs], release: threading.Event) -> None:
    """The watchdog compared them with the caller's own to find the new ones; one that hangs ended all deadlines."""

    @scanner(pipeline="test", timeout=Timeout(total=0.1))
    def logs(state: dict[str, Any]) -> list[Any]:
        state["tool_logs"].insert(0, hangs())
        if ends == "hangs":
            release.wait(30)
        return []

    slow = hanging("slow", release, timeout=Timeout(total=0.2))
    with ScanRunner([logs, slow, healthy("sound")], listeners=()) as runner:
        report = runner.run({"tool_logs": [{"tool": "caller"}]}, deadline=10)
    first = Status.TIMEOUT if ends == "hangs" else Status.COMPLETED
    assert [result.status for result in report.results.values()] == [first, Status.TIMEOUT, Status.COMPLETED]
    assert report.duration < 8
    assert [type(entry) for entry in report.tool_logs] == [hangs]


def test_what_a_scanner_puts_into_its_state_is_dropped_by_its_own_thread() -> None:
    """The run's thread dropped it, after the result had come: a `__del__` that hangs hung the run."""
    dropped: list[str] = []

    class Resource:
        def __del__(self) -> None:
            dropped.append(threading.current_thread().name)

    @scanner(pipeline="test", cache=None, retry=None)
    def keeps(state: dict[str, Any], context: ScanContext) -> list[Any]:
        state["resource"] = Resource()
        context.log("fetch")
        if state["fails"]:
            raise ValueError
        return []

    with ScanRunner([keeps], listeners=()) as runner:
        for fails in (False, True):
            report = runner.run({"fails": fails})
            assert [entry["tool"] for entry in report.tool_logs] == ["fetch"]
    assert len(dropped) == 2
    assert all(name.startswith("resilient-scan-") for name in dropped)


def test_a_context_that_a_scanner_has_overwritten_costs_nobody_else_anything(release: threading.Event) -> None:
    @scanner(pipeline="test", timeout=Timeout(total=0.1), retry=None)
    def overwrites(state: dict[str, Any], context: Any) -> list[Any]:
        context.found, context.steps, context.cancel = 5, "x", 9
        if state["hangs"]:
            release.wait(30)
        return []

    slow = hanging("slow", release, timeout=Timeout(total=0.2, max_abandoned=2))
    with ScanRunner([overwrites, slow, healthy("sound")], listeners=()) as runner:
        for hangs in (False, True):
            report = runner.run({"hangs": hangs}, deadline=10)
            assert len(report.results) == 3
            assert report.results["slow"].status is Status.TIMEOUT
            assert report.results["sound"].status is Status.COMPLETED
            assert report.duration < 8


def test_an_error_whose_class_has_no_name_is_reported() -> None:
    class Nameless(type):
        def __getattribute__(cls, name: str) -> Any:
            if name in {"__qualname__", "__module__"}:
                raise Unnamed
            return super().__getattribute__(name)

    class Unnamed(Exception, metaclass=Nameless):
        pass

    @scanner(pipeline="test", retry=None)
    def fails(_state: dict[str, Any]) -> Any:
        raise Unnamed("text")

    with ScanRunner([fails], listeners=()) as runner:
        (result,) = runner.run(deadline=5).results.values()
    assert result.status is Status.ERROR
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("an exception without a name", "text")


def test_a_task_that_raises_costs_the_pool_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(FutureTask):
        def run(self) -> None:
            raise MemoryError

    pool = ThreadPool(1)
    pool.execute(Bad(Future(), lambda: None))
    assert pool.submit(lambda: 7).result(5) == 7
    assert pool.counts()["busy"] + pool.counts()["idle"] == 1
    assert "submit: a task failed" in caplog.text
    pool.shutdown()


# what they change for the whole process


def test_deadlines_hold_while_the_clock_of_the_time_module_stands_still(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    """As `freezegun` patches it. The watchdog measured its waits by it, and slept for ever."""

    @scanner(pipeline="test", timeout=Timeout(total=0.2), cache=None, retry=None)
    async def sleeps(_state: dict[str, Any]) -> None:
        await asyncio.sleep(30)

    with ScanRunner([hanging("slow", release, timeout=Timeout(total=0.2)), sleeps], listeners=()) as runner:
        monkeypatch.setattr(time, "monotonic", lambda: 0.0)
        report = runner.run(deadline=20)
    assert report.counts == {Status.TIMEOUT: 2}
    assert report.duration < 15


def test_a_logging_filter_that_raises_costs_no_run_its_end(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise SystemExit("a filter")

    logger = logging.getLogger("resilient_scan")
    slow = hanging("slow", release, timeout=Timeout(total=0.1))
    with ScanRunner([slow, healthy("sound")]) as runner:
        monkeypatch.setattr(logger, "filters", [fail])
        runner._fleet.pool.at(0.0, lambda: 1 / 0)
        report = runner.run(deadline=10)
    assert [result.status for result in report.results.values()] == [Status.TIMEOUT, Status.COMPLETED]


def test_a_run_cuts_off_a_scanner_that_has_overwritten_its_context(release: threading.Event) -> None:
    @scanner(pipeline="test", cache=None)
    def overwrites(_state: dict[str, Any], context: Any) -> list[Any]:
        context.found, context.cancel, context.tool_logs = 5, 9, 7
        release.wait(30)
        return []

    with ScanRunner([overwrites, healthy("sound")], listeners=()) as runner:
        report = runner.run(deadline=0.3)
    assert [result.status for result in report.results.values()] == [Status.TIMEOUT, Status.COMPLETED]


def test_a_short_run_wakes_no_watchdog(eventually: Eventually) -> None:
    clock = WatchedClock("resilient-scan-watchdog")
    with ScanRunner([healthy("one", cache=None, timeout=Timeout(total=30))], clock=clock) as runner:
        runner.run()
        pool = runner._fleet.pool
        pool.look_by(0.0)  # it looks, as it may at any time, when nothing is under way
        eventually(lambda: clock.rests(within=30))
        resting = clock.wait_of()
        for _ in range(3):
            assert runner.run(deadline=60).complete
        assert clock.wait_of() is resting
        eventually(lambda: pool.counts()["busy"] == 0, "the last worker is through")
        clock.advance(30)
        eventually(lambda: clock.rests() and not clock.rests(within=1e9), "there is no deadline any more")
