"""A time for each attempt: one that hangs is left behind, the next begins on another thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Limit,
    PermanentError,
    Retry,
    ScanContext,
    ScanRunner,
    ScanTimeout,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import AttemptEnded, BreakerChanged, ExecutionEnded, LateCompletion, ThreadAbandoned
from resilient_scan.layers.cache import ResultCache
from resilient_scan.layers.timeout import HungThreads
from resilient_scan.testing import FakeClock, Recorder, hanging, healthy, polite
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.waiting import WAIT_TIMEOUT

AT_ONCE = Retry(attempts=3, base=0, cap=0)
QUICK = Timeout(total=5, attempt=0.1, max_abandoned=4)


def attempts_of(recorder: Recorder) -> list[tuple[int, str]]:
    return [(event.attempt, event.outcome) for event in recorder.of(AttemptEnded)]


class Stubborn:
    """Hangs, deaf to every cancel, in its first attempts; then answers."""

    name = "stubborn"
    pipeline = "test"

    def __init__(self, release: threading.Event, hang: int = 1) -> None:
        self.release = release
        self.hang = hang
        self.threads: list[int] = []
        self.last_began = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def scan(self, _state: dict[str, Any], context: ScanContext) -> list[Any]:
        self.threads.append(threading.get_ident())
        context.log("began", attempt=context.attempt)
        if context.attempt <= self.hang:
            self.release.wait()
            return [{"ticker": "LATE"}]
        self.last_began.set()
        while not (self.go.wait(0.01) or self.release.is_set()):
            pass
        return [{"ticker": "GOOD"}]


# the next attempt


@pytest.mark.parametrize("hang", [1, 2])
def test_the_next_attempt_begins_on_another_thread(
    hang: int, fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    recorder, stubborn = Recorder(), Stubborn(release, hang)
    runner = fleet(stubborn, policy=bare(retry=AT_ONCE, timeout=QUICK), listeners=[recorder])
    result = runner.run({}).results["stubborn"]
    assert (result.status, result.attempts) == (Status.COMPLETED, hang + 1)
    assert [candidate.ticker for candidate in result.candidates] == ["GOOD"]
    assert len(set(stubborn.threads)) == hang + 1
    assert attempts_of(recorder) == [*((number + 1, "timeout") for number in range(hang)), (hang + 1, "success")]
    assert [event.outcome for event in recorder.of(ExecutionEnded)] == ["success"]
    assert len(runner.abandoned()) == hang
    eventually(lambda: len(recorder.of(ThreadAbandoned)) == hang)
    assert hang * 0.1 <= result.duration < 4


def test_the_logs_of_all_attempts_are_kept(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    runner = fleet(Stubborn(release, 2), policy=bare(retry=AT_ONCE, timeout=QUICK))
    logs: list[dict[str, Any]] = []
    result = runner.run({"tool_logs": logs}).results["stubborn"]
    assert [entry["attempt"] for entry in result.tool_logs] == [1, 2, 3]
    assert logs == result.tool_logs


def test_the_end_of_a_hung_attempt_is_told_once_and_changes_nothing(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    recorder = Recorder()
    runner = fleet(Stubborn(release), policy=bare(retry=AT_ONCE, timeout=QUICK), listeners=[recorder])
    report = runner.run({})
    release.set()
    eventually(lambda: bool(recorder.of(LateCompletion)))
    assert attempts_of(recorder) == [(1, "timeout"), (2, "success")]
    assert len(recorder.of(ExecutionEnded)) == 1
    (late,) = recorder.of(LateCompletion)
    assert late.outcome == "success"
    assert report.candidates[0].ticker == "GOOD"
    assert runner.abandoned() == []


def test_a_cooperative_attempt_stops_and_the_next_one_begins(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    recorder, raised = Recorder(), threading.Event()

    @scanner(pipeline="test")
    def polite(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            try:
                context.sleep(60)
            finally:
                raised.set()
        return []

    runner = fleet(polite, policy=bare(retry=AT_ONCE, timeout=QUICK), listeners=[recorder])
    result = runner.run({}).results["polite"]
    assert (result.status, result.attempts) == (Status.COMPLETED, 2)
    assert [attempt for attempt, _ in attempts_of(recorder)] == [1, 2]
    assert raised.wait(5)
    eventually(lambda: runner.abandoned() == [])
    eventually(lambda: runner._fleet.stacks["polite"].hung.count == 0)


def test_a_cooperative_attempt_that_ran_out_of_time_is_told_as_a_timeout(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            context.sleep(60)
        return []

    recorder = Recorder()
    policy = bare(retry=Retry(base=0, cap=0), timeout=Timeout(total=5, attempt=0.05, max_abandoned=3))
    runner = fleet(one, policy=policy, listeners=[recorder])
    for _ in range(10):
        runner.run({})
    assert {event.outcome for event in recorder.of(AttemptEnded) if event.attempt == 1} == {"timeout"}


def test_without_retry_the_attempts_time_is_the_scans(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    result = fleet(hanging("one", release), policy=bare(timeout=QUICK)).run({}).results["one"]
    assert (result.status, result.attempts) == (Status.TIMEOUT, 1)
    assert result.duration < 3
    assert result.error is not None
    assert result.error.message == "attempt 1: timeout after 0.1s"


# when there is no next one


@pytest.mark.parametrize(
    "retry",
    [Retry(attempts=1), Retry(attempts=3, base=0, cap=0, on=(ValueError,))],
    ids=["attempts used up", "not worth another"],
)
def test_no_further_attempt(retry: Retry, fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    recorder = Recorder()
    runner = fleet(hanging("one", release), policy=bare(retry=retry, timeout=QUICK), listeners=[recorder])
    result = runner.run({}).results["one"]
    assert (result.status, result.attempts) == (Status.TIMEOUT, 1)
    assert result.error is not None
    assert (result.error.type, result.error.message) == (
        "resilient_scan.ScanTimeout",
        "attempt 1: timeout after 0.1s",
    )
    assert attempts_of(recorder) == [(1, "timeout")]
    assert [event.outcome for event in recorder.of(ExecutionEnded)] == ["timeout"]


def test_all_attempts_hang(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    recorder = Recorder()
    runner = fleet(hanging("one", release), policy=bare(retry=AT_ONCE, timeout=QUICK), listeners=[recorder])
    result = runner.run({}).results["one"]
    assert (result.status, result.attempts) == (Status.TIMEOUT, 3)
    assert result.error is not None
    assert result.error.message == "attempt 3: timeout after 0.1s"
    assert attempts_of(recorder) == [(1, "timeout"), (2, "timeout"), (3, "timeout")]
    assert len(recorder.of(ExecutionEnded)) == 1


def test_named_in_on_it_is_worth_another_attempt(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    retry = Retry(attempts=2, base=0, cap=0, on=(ScanTimeout,))
    result = fleet(Stubborn(release), policy=bare(retry=retry, timeout=QUICK)).run({}).results["stubborn"]
    assert (result.status, result.attempts) == (Status.COMPLETED, 2)


def test_no_more_threads_are_left_behind_than_allowed(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    timeout = Timeout(total=5, attempt=0.1, max_abandoned=1)
    runner = fleet(Stubborn(release), policy=bare(retry=AT_ONCE, timeout=timeout))
    result = runner.run({}).results["stubborn"]
    assert (result.status, result.attempts) == (Status.TIMEOUT, 1)
    assert len(runner.abandoned()) == 1


def test_a_thread_that_returns_while_it_is_abandoned_is_reported_twice_or_not_at_all(
    bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, abandon = threading.Event(), HungThreads.abandon

    def slow_abandon(self: HungThreads) -> None:
        ended.wait(5)
        abandon(self)

    monkeypatch.setattr(HungThreads, "abandon", slow_abandon)

    @scanner(pipeline="p", timeout=Timeout(total=5, attempt=0.05))
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        while not context.remaining() <= 0:
            threading.Event().wait(0.001)
        ended.set()
        return []

    recorder = Recorder()
    with ScanRunner([one], policy=bare(), listeners=[recorder]) as runner:
        for _ in range(5):
            ended.clear()
            runner.run({})
    assert len(recorder.of(LateCompletion)) <= len(recorder.of(ThreadAbandoned))


def test_the_total_wins(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    recorder, clock, begun = Recorder(), FakeClock(), list[int]()

    @scanner(name="one", pipeline="test")
    def hung(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        begun.append(context.attempt)
        release.wait()
        return []

    timeout = Timeout(total=0.25, attempt=0.2, max_abandoned=4)
    runner = fleet(hung, policy=bare(retry=AT_ONCE, timeout=timeout), listeners=[recorder], clock=clock)
    run = background(runner.run, {})
    eventually(lambda: begun == [1])
    clock.advance(0.2)
    eventually(lambda: begun == [1, 2])
    clock.advance(0.05)
    result = run.result(WAIT_TIMEOUT).results["one"]
    assert (result.status, result.attempts, result.duration) == (Status.TIMEOUT, 2, 0.25)
    assert result.error is not None
    assert result.error.message == "timeout after 0.25s"
    assert attempts_of(recorder) == [(1, "timeout"), (2, "timeout")]
    assert [event.attempts for event in recorder.of(ExecutionEnded)] == [2]


def test_a_successor_that_waits_for_a_permit_ends_with_the_total(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    policy = bare(
        retry=Retry(attempts=3, base=0, cap=0),
        timeout=Timeout(total=0.6, attempt=0.2, max_abandoned=3),
        limit=Limit("acme", concurrency=1),
    )
    result = fleet(hanging("hung", release), policy=policy).run({}).results["hung"]
    assert result.status is Status.TIMEOUT
    assert result.duration < 4


def test_a_successor_that_finds_no_worker_ends_with_the_total(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    policy = bare(retry=Retry(attempts=3, base=0, cap=0), timeout=Timeout(total=0.4, attempt=0.2, max_abandoned=3))
    slow = polite("slow", 1.5, retry=None, timeout=Timeout(total=5))
    runner = fleet(hanging("hung", release), slow, policy=policy, max_workers=1, order="given")
    assert next(iter(runner.stream({}))).scanner == "hung"


def test_a_last_attempt_that_hangs_ends_the_scan_without_a_worker(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    """There is no further attempt: nothing to wait for."""
    policy = bare(retry=Retry(attempts=1, base=0, cap=0), timeout=Timeout(total=5, attempt=0.2))
    slow = polite("slow", 1.0, timeout=Timeout(total=5))
    runner = fleet(hanging("hung", release), slow, policy=policy, max_workers=1, order="given")
    assert next(iter(runner.stream({}))).scanner == "hung"


def test_a_successor_that_is_refused_is_told_as_an_execution(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    policy = bare(
        retry=Retry(attempts=3, base=0, cap=0),
        timeout=Timeout(total=0.4, attempt=0.2, max_abandoned=3),
        limit=Limit("acme", concurrency=1),
    )
    recorder = Recorder()
    report = fleet(hanging("hung", release), policy=policy, listeners=[recorder]).run({})
    assert report.results["hung"].attempts == 1
    assert [event.outcome for event in recorder.of(ExecutionEnded)] == ["timeout"]


def test_what_a_hanging_last_attempt_yielded_is_kept(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    @scanner(pipeline="test")
    def part(_state: dict[str, Any]) -> Any:
        yield {"ticker": "AAPL"}
        yield {"ticker": ""}
        release.wait()

    policy = bare(retry=Retry(attempts=1), timeout=Timeout(total=2, attempt=0.1))
    result = fleet(part, policy=policy).run({}).results["part"]
    assert result.status is Status.TIMEOUT
    assert (len(result.candidates), result.partial, result.dropped) == (1, True, 1)


def test_the_error_after_a_hang_is_the_scans(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            release.wait()
        raise PermanentError("bad key")

    result = fleet(one, policy=bare(retry=AT_ONCE, timeout=QUICK)).run({}).results["one"]
    assert (result.status, result.attempts) == (Status.ERROR, 2)
    assert result.error is not None
    assert result.error.message == "bad key"


# the other layers


def test_a_late_success_of_an_earlier_attempt_fills_the_cache(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            release.wait()
            return [{"ticker": "LATE"}]
        raise ValueError("x")

    policy = bare(cache=Cache(), retry=Retry(attempts=2, base=0, cap=0), timeout=QUICK)
    runner = fleet(one, policy=policy)
    assert statuses(runner.run({})) == [Status.ERROR]
    release.set()
    eventually(lambda: runner.abandoned() == [])
    result = runner.run({}).results["one"]
    assert result.status is Status.CACHED
    assert result.candidates[0].ticker == "LATE"


def test_who_waits_for_the_first_attempt_gets_the_answer_of_the_second(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    stubborn = Stubborn(release)
    stubborn.go.clear()
    runner = fleet(stubborn, policy=bare(cache=Cache(), retry=AT_ONCE, timeout=QUICK))
    first = background(runner.run, {})
    assert stubborn.last_began.wait(5)
    second = background(runner.run, {})
    stubborn.go.set()
    assert sorted([*statuses(first.result(5)), *statuses(second.result(5))]) == [Status.CACHED, Status.COMPLETED]
    assert len(stubborn.threads) == 2


def test_a_successor_leads_in_the_cache_even_if_the_attempt_before_ends_at_once(
    fleet: Fleet, bare: Bare, background: Background, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old attempt is cancelled before its flight is handed on: it lands the flight, the next run leads too."""
    calls: list[int] = []
    landed, second = threading.Event(), threading.Event()

    @scanner(pipeline="test")
    def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        calls.append(context.attempt)
        if context.attempt == 1 and len(calls) == 1:
            context.sleep(60)
        second.set()
        assert release.wait(5)
        return []

    policy = bare(
        cache=Cache(), retry=Retry(attempts=2, base=0, cap=0), timeout=Timeout(total=5, attempt=0.1, max_abandoned=3)
    )
    runner = fleet(one, policy=policy)
    cache = runner._fleet.stacks["one"].cache
    assert cache is not None
    hand_on, land = ResultCache.hand_on, ResultCache.land

    def slow_hand_on(*arguments: Any) -> None:
        landed.wait(1)  # the watchdog is preempted here
        hand_on(*arguments)

    def told_land(*arguments: Any) -> None:
        land(*arguments)
        landed.set()

    monkeypatch.setattr(ResultCache, "hand_on", slow_hand_on)
    monkeypatch.setattr(ResultCache, "land", told_land)
    first = background(runner.run, {})
    assert second.wait(5)
    assert cache._flights, "the successor leads nothing: another run will ask the source at the same time"
    release.set()
    assert statuses(first.result(5)) == [Status.COMPLETED]


def test_a_successor_that_nobody_wants_any_more_leads_nothing(
    fleet: Fleet,
    bare: Bare,
    background: Background,
    release: threading.Event,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its run is cancelled before it has the flight: it gets it all the same, waits for a permit, and the next run
    asks the cache in a busy loop, past its own deadline."""
    policy = bare(
        cache=Cache(),
        retry=Retry(attempts=2, base=0, cap=0),
        timeout=Timeout(total=3, attempt=0.1, max_abandoned=3),
        limit=Limit("acme", concurrency=1),
    )
    runner = fleet(hanging("one", release), policy=policy)
    cache = runner._fleet.stacks["one"].cache
    assert cache is not None
    hand_on = ResultCache.hand_on
    runs: list[Future[Any]] = []

    def slow_hand_on(*arguments: Any) -> None:
        for run in tuple(runner._runs.active):
            run.cancel()
        runs[0].result(5)
        hand_on(*arguments)

    monkeypatch.setattr(ResultCache, "hand_on", slow_hand_on)
    runs.append(background(runner.run, {}))
    assert statuses(runs[0].result(5)) == [Status.SKIPPED]
    eventually(lambda: runner._fleet.providers["acme"].waiting == 1 or not cache._flights)
    assert statuses(background(runner.run, {}, deadline=0.2).result(WAIT_TIMEOUT)) == [Status.SKIPPED]


def test_each_hung_attempt_votes(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """The second hang opens the breaker: never a further attempt against an open one."""
    recorder = Recorder()
    policy = bare(breaker=Breaker(failures=2), retry=AT_ONCE, timeout=QUICK)
    runner = fleet(hanging("one", release), policy=policy, listeners=[recorder])
    result = runner.run({}).results["one"]
    assert (result.status, result.attempts) == (Status.TIMEOUT, 2)
    assert [(event.old, event.new) for event in recorder.of(BreakerChanged)] == [("closed", "open")]


def test_a_success_after_a_hang_resets_the_count(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    policy = bare(breaker=Breaker(failures=2), retry=AT_ONCE, timeout=QUICK)
    runner = fleet(Stubborn(release), policy=policy)
    breaker = runner._fleet.stacks["stubborn"].breaker
    assert breaker is not None
    for _ in range(3):
        assert statuses(runner.run({})) == [Status.COMPLETED]
    assert breaker.state == "closed"
    release.set()
    eventually(lambda: runner.abandoned() == [])
    assert breaker.state == "closed"


def test_a_hung_attempt_and_its_successor_hold_a_permit_each(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    stubborn = Stubborn(release)
    stubborn.go.clear()
    policy = bare(limit=Limit("acme", concurrency=2), retry=AT_ONCE, timeout=Timeout(5, attempt=0.3, max_abandoned=4))
    runner = fleet(stubborn, policy=policy)
    stream = runner.stream({})
    provider = runner._fleet.providers["acme"]
    watcher: list[int] = []

    def watch() -> None:
        assert stubborn.last_began.wait(5)
        watcher.append(provider.taken)
        stubborn.go.set()

    threading.Thread(target=watch, daemon=True).start()
    assert [result.status for result in stream] == [Status.COMPLETED]
    assert watcher == [2]
    eventually(lambda: provider.taken == 1)
    release.set()
    eventually(lambda: provider.taken == 0)


# the run ends while a successor is at work


@pytest.mark.parametrize("way", ["deadline", "close", "leave"])
@pytest.mark.parametrize("cache", [None, Cache()], ids=["alone", "for the cache"])
def test_the_run_ends_while_a_successor_is_at_work(
    way: str,
    cache: Cache | None,
    fleet: Fleet,
    bare: Bare,
    release: threading.Event,
    background: Background,
    eventually: Eventually,
) -> None:
    recorder, stubborn = Recorder(), Stubborn(release)
    stubborn.go.clear()
    policy = bare(cache=cache, retry=AT_ONCE, timeout=Timeout(5, 0.5 if way == "deadline" else 0.1, 4))
    runner = fleet(healthy("free", cache=None), stubborn, policy=policy, listeners=[recorder])
    if way == "leave":
        stream = runner.stream({})
        assert next(stream).scanner == "free"
        assert stubborn.last_began.wait(5)
        stream.close()  # type: ignore[attr-defined]
    else:
        run = background(runner.run, {}, deadline=0.75 if way == "deadline" else None)
        assert stubborn.last_began.wait(5)
        if way == "close":
            runner.close()
        expected = Status.TIMEOUT if way == "deadline" else Status.SKIPPED
        assert statuses(run.result(5))[1] is expected
    goes_on = way == "deadline" and cache is not None
    stubborn.go.set()
    eventually(lambda: len(recorder.of(ExecutionEnded)) == 2)
    assert recorder.of(ExecutionEnded)[-1].outcome == ("success" if goes_on else "cancelled")
    told = [event for event in recorder.of(AttemptEnded) if event.scanner == "stubborn"]
    assert [event.attempt for event in told] == sorted({event.attempt for event in told}), "none is told twice"


def test_what_a_hung_attempt_has_to_tell_is_told_though_its_run_is_over_before_a_successor_gets_a_permit(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    recorder = Recorder()
    limit = Limit("acme", concurrency=1)  # the hung attempt keeps the permit
    policy = bare(cache=Cache(), retry=AT_ONCE, timeout=Timeout(0.6, 0.1, 4), limit=limit)
    runner = fleet(hanging("mute", release), policy=policy, listeners=[recorder])
    assert statuses(runner.run({}, deadline=0.3)) == [Status.TIMEOUT]
    eventually(lambda: len(recorder.of(ExecutionEnded)) == 1)
    assert attempts_of(recorder) == [(1, "timeout")]
    assert len(recorder.of(ThreadAbandoned)) == 1
    release.set()
    eventually(lambda: len(recorder.of(LateCompletion)) == 1)
