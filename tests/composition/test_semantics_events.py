"""What listeners and the log are told, and when."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    ConfigError,
    LogEvents,
    PrometheusMetrics,
    Retry,
    RunReport,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan._text import span
from resilient_scan.events import (
    AttemptEnded,
    BreakerChanged,
    Event,
    ExecutionEnded,
    LateCompletion,
    RunEnded,
    RunStarted,
    ScanEnded,
    ScannersRegistered,
    ThreadAbandoned,
)
from resilient_scan.layers.retry import RetryBudget
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.observe.metrics.catalogue import METHODS
from resilient_scan.testing import FakeClock, Recorder, broken, flapping, hanging, healthy
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.waiting import WAIT_TIMEOUT

FREED = "resilient_scan_timeout_freed_total"


class Threads(Recorder):
    """Notes on which thread each event arrived, too."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self.threads.append(threading.current_thread().name)


def test_all_events_of_a_run_arrive_before_it_returns_and_never_on_the_watchdogs_thread(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    recorder = Threads()
    policy = bare(breaker=Breaker(failures=1), timeout=Timeout(total=0.05), retry=Retry(attempts=2, base=0, cap=0))
    runner = fleet(
        healthy("well"), broken("bad"), hanging("hung", release), policy=policy, listeners=(recorder,), max_workers=2
    )
    report = runner.run({})
    seen = [type(event) for event in recorder.events_seen]
    assert seen[:2] == [ScannersRegistered, RunStarted]
    assert seen[-1] is RunEnded
    assert sorted(event.result.scanner for event in recorder.of(ScanEnded)) == ["bad", "hung", "well"]
    assert {event.result.scanner: event.result for event in recorder.of(ScanEnded)} == report.results
    attempts = sorted((event.scanner, event.attempt, event.outcome) for event in recorder.of(AttemptEnded))
    assert attempts == [("bad", 1, "error"), ("hung", 1, "timeout"), ("well", 1, "success")]
    changed = sorted((event.scanner, event.old, event.new) for event in recorder.of(BreakerChanged))
    assert changed == [("bad", "closed", "open"), ("hung", "closed", "open")]
    eventually(lambda: [event.scanner for event in recorder.of(ThreadAbandoned)] == ["hung"])  # 50 ms later
    assert not [name for name in recorder.threads if "watchdog" in name]
    (ended,) = recorder.of(RunEnded)
    assert (ended.counts, ended.complete) == (report.counts, False)


def test_a_late_completion_is_told_when_the_thread_ends(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    recorder = Threads()
    runner = fleet(hanging("hung", release), policy=bare(timeout=Timeout(total=0.05)), listeners=(recorder,))
    runner.run({})
    assert recorder.of(LateCompletion) == []
    release.set()
    eventually(lambda: bool(recorder.of(LateCompletion)))
    (late,) = recorder.of(LateCompletion)
    assert (late.scanner, late.outcome, late.duration >= 0.05) == ("hung", "success", True)
    assert "watchdog" not in recorder.threads[-1]


def hung_until(clock: FakeClock, release: threading.Event, fleet: Fleet, bare: Bare, background: Any) -> Any:
    """Return a runner of one scanner that is past its timeout, what its listener heard, and its metrics."""
    registry, recorder = CollectorRegistry(), Recorder()
    begun = threading.Event()

    @scanner(name="hung", pipeline="test")
    def hangs(_state: dict[str, Any]) -> list[Any]:
        begun.set()
        release.wait()
        return []

    listeners = (PrometheusMetrics(registry), recorder)
    runner = fleet(hangs, policy=bare(timeout=Timeout(total=1)), listeners=listeners, clock=clock)
    run = background(runner.run, {})
    assert begun.wait(5)
    clock.advance(1)
    assert statuses(run.result(5)) == [Status.TIMEOUT]
    assert [thread.name for thread in runner.abandoned()] == ["hung"], "the ledger lists it at once"
    return runner, recorder, registry


def test_a_thread_that_returns_within_the_grace_period_is_not_reported_as_hung(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Any, eventually: Eventually
) -> None:
    clock = FakeClock()
    runner, recorder, registry = hung_until(clock, release, fleet, bare, background)
    clock.advance(0.04)
    release.set()
    eventually(lambda: not runner.abandoned())
    clock.advance(0.02)
    eventually(lambda: bool(recorder.of(LateCompletion)))
    (late,) = recorder.of(LateCompletion)
    assert (late.method, late.abandoned) == ("cooperative", False)
    assert not recorder.of(ThreadAbandoned)
    assert registry.get_sample_value(FREED, {"scanner": "hung", "method": "cooperative"}) == 1
    seconds = "resilient_scan_late_completion_duration_seconds_count"
    assert registry.get_sample_value(seconds) == 0


def test_a_thread_that_returns_after_it_was_reported_as_hung(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Any, eventually: Eventually
) -> None:
    clock = FakeClock()
    _, recorder, _ = hung_until(clock, release, fleet, bare, background)
    clock.advance(0.049)
    assert not recorder.of(ThreadAbandoned)
    clock.advance(0.002)
    eventually(lambda: bool(recorder.of(ThreadAbandoned)))
    release.set()
    eventually(lambda: bool(recorder.of(LateCompletion)))
    (late,) = recorder.of(LateCompletion)
    assert (late.method, late.abandoned) == ("abandoned", True)


def test_closing_reports_at_once_what_hangs_then(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Any, eventually: Eventually
) -> None:
    clock = FakeClock()
    runner, recorder, _ = hung_until(clock, release, fleet, bare, background)
    runner.close()
    eventually(lambda: bool(recorder.of(ThreadAbandoned)))
    clock.advance(1)
    release.set()
    eventually(lambda: bool(recorder.of(LateCompletion)))
    assert len(recorder.of(ThreadAbandoned)) == len(recorder.of(LateCompletion)) == 1


def test_scanners_that_look_at_their_context_are_never_called_hung(
    fleet: Fleet, bare: Bare, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    @scanner(name="polite", pipeline="test")
    def polite(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        while True:
            context.check()
            time.sleep(0.005)

    registry, recorder = CollectorRegistry(), Recorder()
    listeners = (PrometheusMetrics(registry), LogEvents(), recorder)
    runner = fleet(polite, policy=bare(timeout=Timeout(total=0.05)), listeners=listeners)
    for _ in range(8):
        assert statuses(runner.run({})) == [Status.TIMEOUT]
        eventually(lambda: not runner.abandoned())
    assert not recorder.of(ThreadAbandoned)
    assert "did not stop in time" not in caplog.text


def ends_by_itself(release: threading.Event) -> Any:
    def hangs(_state: dict[str, Any]) -> list[Any]:
        release.wait()
        return []

    return hangs


def checks_its_context(release: threading.Event) -> Any:
    def hangs(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        release.wait()
        context.check()
        return []

    return hangs


def looks_at_its_context(release: threading.Event) -> Any:
    def hangs(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        release.wait()
        return [] if context.cancelled else [Candidate("AAPL", "hung", "nobody waits for it")]

    return hangs


def is_cancelled(release: threading.Event) -> Any:
    async def hangs(_state: dict[str, Any]) -> list[Any]:
        release.wait()
        await asyncio.sleep(3600)
        return []

    return hangs


def answers_when_cancelled(release: threading.Event) -> Any:
    async def hangs(_state: dict[str, Any]) -> list[Any]:
        release.wait()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return []

    return hangs


def is_killed(release: threading.Event) -> Any:
    def hangs(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        release.wait()
        context.freed_by = "process"  # as an engine notes it
        raise RuntimeError("killed")

    return hangs


@pytest.mark.parametrize(
    ("hangs", "method", "outcome"),
    [
        (ends_by_itself, "abandoned", "success"),
        (checks_its_context, "cooperative", "error"),
        (looks_at_its_context, "cooperative", "success"),
        (is_cancelled, "cancel", "error"),
        (answers_when_cancelled, "cancel", "success"),
        (is_killed, "process", "error"),
    ],
)
def test_what_freed_a_thread_is_in_the_event_the_metric_the_ledger_and_the_explanation(
    hangs: Any,
    method: str,
    outcome: str,
    fleet: Fleet,
    bare: Bare,
    release: threading.Event,
    eventually: Eventually,
) -> None:
    """It hangs until it was abandoned; what ended it shows although it may end with a success."""
    registry, recorder = CollectorRegistry(), Recorder()
    hung = scanner(name="hung", pipeline="test")(hangs(release))
    listeners = (PrometheusMetrics(registry), recorder)
    runner = fleet(hung, policy=bare(timeout=Timeout(total=0.05)), listeners=listeners)
    runner.run({})
    eventually(lambda: bool(recorder.of(ThreadAbandoned)))
    assert runner.abandoned(returned=True) == []
    release.set()
    eventually(lambda: bool(recorder.of(LateCompletion)))
    (late,) = recorder.of(LateCompletion)
    assert (late.method, late.outcome) == (method, outcome)
    freed = {each: registry.get_sample_value(FREED, {"scanner": "hung", "method": each}) for each in METHODS}
    assert freed == {each: 1.0 if each == method else None for each in METHODS}
    (returned,) = runner.abandoned(returned=True)
    assert (returned.name, returned.method, returned.outcome) == ("hung", method, outcome)
    assert (returned.run_id, returned.attempt, returned.age) == (late.run_id, 1, late.duration)
    explained = runner.explain("hung")
    assert [(each.method, each.outcome, each.attempt) for each in explained.returned] == [(method, outcome, 1)]
    with_what = "an answer" if outcome == "success" else "an error"
    assert f"{returned.thread}, after {span(late.duration)} with {with_what}, run {late.run_id[:8]}" in str(explained)
    assert f"\n    {method}: " in str(explained)


def test_what_freed_an_earlier_attempt_says_nothing_about_a_later_one(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    """The first attempt is cancelled when its own time is up; the second ends by itself, long after."""
    recorder, attempts = Recorder(), []

    @scanner(name="hung", pipeline="test")
    async def hangs(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        attempts.append(context.attempt)
        if context.attempt == 1:
            await asyncio.sleep(3600)
        release.wait()
        return []

    policy = bare(timeout=Timeout(total=5, attempt=0.05), retry=Retry(attempts=2, base=0, cap=0))
    runner = fleet(hangs, policy=policy, listeners=(recorder,))
    runner.run({})
    eventually(lambda: bool(recorder.of(ThreadAbandoned)))
    release.set()
    eventually(lambda: any(late.attempt == 2 for late in recorder.of(LateCompletion)))
    assert attempts == [1, 2]
    assert [late.method for late in recorder.of(LateCompletion) if late.attempt == 2] == ["abandoned"]


def test_a_listener_that_raises_is_logged_once_and_breaks_nothing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()

    def bad(_event: Any) -> None:
        raise RuntimeError("no")

    runner = fleet(healthy("one"), listeners=(bad, recorder))
    with caplog.at_level(logging.ERROR, "resilient_scan"):
        for _ in range(3):
            assert runner.run({}).complete
    assert len(recorder.of(RunEnded)) == 3
    assert sum("listener" in message for message in caplog.messages) <= 1


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit()])
def test_a_listener_that_exits_on_a_worker_costs_a_scan_nothing(error: BaseException) -> None:
    """the event is sent before the scans get their result; a BaseException of a listener
    (`sys.exit()`, `pytest.fail()`) costs a healthy scan its answer: it ends `stale` or `error`, without candidates."""

    def leave(event: Any) -> None:
        if isinstance(event, ExecutionEnded):
            raise error

    runner = ScanRunner([healthy("one")], listeners=(leave,))
    reports: list[Any] = []
    running = threading.Thread(target=lambda: reports.append(runner.run({})), daemon=True)
    running.start()
    running.join(WAIT_TIMEOUT)
    assert not running.is_alive()
    assert reports[0].results["one"].status is Status.COMPLETED
    runner.close()


def test_no_listeners_is_no_lines(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "resilient_scan"):
        fleet(healthy("one"), broken("two"), listeners=()).run({})
    assert caplog.messages == []


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("listeners", [None, (LogEvents(),)], ids=["by default", "by hand"])
@pytest.mark.parametrize("concurrent", [True, False])
def test_the_lines_that_users_know(
    concurrent: bool, listeners: Any, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    def slow_scanner(_state: dict[str, Any]) -> list[Any]:
        clock.advance(30)
        raise TimeoutError

    clock = FakeClock()
    movers = healthy("market_movers", [{"ticker": f"T{n}"} for n in range(10)])
    scanners = [movers, broken("broken_scanner"), *(healthy(f"s{n}") for n in range(6))]
    with caplog.at_level(logging.INFO, "resilient_scan"):
        fleet(*scanners, listeners=listeners, concurrent=concurrent, clock=clock).run({})
    first, *rest = lines(caplog)
    how = "concurrently (max 8 workers)" if concurrent else "sequentially"
    assert first == ("INFO", f"Running 8 scanners {how}...")
    assert ("INFO", "✓ market_movers: 10 candidates") in rest
    (line,) = (text for level, text in rest if level == "WARNING")
    assert re.fullmatch(r"⚠️ broken_scanner: HTTP 500 error \(ScanError at testing\.py:\d+ in scan\)", line)


def test_the_line_of_a_timeout(
    fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture, release: threading.Event
) -> None:
    with caplog.at_level(logging.INFO, "resilient_scan"):
        runner = fleet(hanging("slow_scanner", release), policy=bare(timeout=Timeout(total=0.05)), listeners=None)
        runner.run({})
    assert ("WARNING", "⏱️ slow_scanner: timeout after 0.05s") in lines(caplog)


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30s"), (30.0, "30s"), (0.25, "0.25s"), (1200, "1200s"), (86400, "86400s")]
)
def test_times_are_written_as_people_write_them(seconds: float, text: str, fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()

    @scanner(pipeline="test")
    def slow(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        clock.advance(seconds)
        context.check()
        return []

    result = fleet(slow, policy=bare(timeout=Timeout(total=seconds)), clock=clock).run({}).results["slow"]
    assert result.error is not None
    assert result.error.message == f"timeout after {text}"


def test_the_reason_of_a_dropped_candidate_is_of_the_attempt_that_answered(
    fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:

    answers = iter([[{"no": "ticker"}], [{"ticker": "B C"}, {"ticker": "AAPL"}]])

    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> Any:
        yield from next(answers)
        if context.attempt == 1:
            raise OSError("down")

    with caplog.at_level(logging.WARNING, "resilient_scan"):
        fleet(source, policy=bare(retry=Retry(base=0, cap=0)), listeners=(LogEvents(),)).run({})
    (line,) = [line for line in caplog.messages if "dropped" in line]
    assert "B C" in line


def test_what_the_cache_had_is_told(fleet: Fleet, bare: Bare) -> None:
    clock, recorder = FakeClock(), Recorder()
    policy = bare(cache=Cache(ttl=10, jitter=0, stale_if_error=10))
    runner = fleet(flapping("s", [[], OSError("down"), []]), policy=policy, clock=clock, listeners=(recorder,))
    runner.run({})
    runner.run({})
    clock.advance(10)
    runner.run({})
    runner.run({"own": object()})
    assert [event.cache for event in recorder.of(ScanEnded)] == ["miss", "hit", "stale", "bypass"]


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


# arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Retry(attempts=0), "retry.attempts must be >= 1, got 0"),
        (lambda: Cache(ttl=0), "cache.ttl must be > 0, got 0"),
        (lambda: Breaker(failures=0), "breaker.failures must be >= 1, got 0"),
        (lambda: Timeout(total=-1), "timeout.total must be > 0, got -1"),
        (lambda: Timeout(total=float("nan")), "timeout.total must be a finite number, got nan"),
        (lambda: ScanRunner([], max_workers=0), "max_workers must be >= 1, got 0"),
        (lambda: ScanRunner([], timeout_seconds=0), "timeout_seconds must be > 0, got 0"),
        (lambda: ScanRunner([healthy("a"), healthy("a")]), "two scanners are named 'a'"),
        (lambda: ScanRunner.from_config([], {"scanner_execution": {"max_wrokers": 1}}), "max_wrokers"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message) or message in str(caught.value)


@pytest.mark.parametrize("home", ["top", "discovery"])
def test_from_config(home: str, bare: Bare, release: threading.Event) -> None:
    table = {"scanner_execution": {"concurrent": True, "max_workers": 8, "timeout_seconds": 0.05}}
    config: dict[str, Any] = {"unrelated": {"x": 1}, **(table if home == "top" else {"discovery": table})}
    recorder = Recorder()
    with ScanRunner.from_config([hanging("h", release)], config, policy=bare(), listeners=(recorder,)) as runner:
        report: RunReport = runner.run({})
    assert report.results["h"].status is Status.TIMEOUT
    (started,) = recorder.of(RunStarted)
    assert (started.concurrent, started.max_workers) == (True, 8)


@pytest.mark.parametrize(
    "options",
    [{"listeners": LogEvents()}, {"listeners": (5,)}, {"settings": ["one"]}, {"policies": ["one"]}, {"settings": 5}],
)
def test_a_wrong_argument_is_a_configuration_error(options: dict[str, Any]) -> None:
    """a listener that cannot be called is taken; no iterable or mapping is a TypeError or AttributeError."""
    with pytest.raises(ConfigError):
        ScanRunner([healthy("one")], **options)


@pytest.mark.parametrize("config", [None, 5, [("scanner_execution", {})]])
def test_a_configuration_is_a_mapping(config: Any) -> None:
    with pytest.raises(ConfigError):
        ScanRunner.from_config([healthy("one")], config)
