"""Answers that are copied on a worker, because that may take long: no run waits for it beyond its time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from resilient_scan import Cache, Candidate, ScanResult, ScanRunner, Status, Timeout, scanner
from resilient_scan.events import (
    AttemptEnded,
    DeadlineActedOn,
    ExecutionEnded,
    LateCompletion,
    ScanEnded,
    ThreadAbandoned,
)
from resilient_scan.layers.copying import MAX_AT_ONCE
from resilient_scan.testing import FakeClock, Recorder, flapping, healthy
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import only, statuses
from tests.support.scanners import held
from tests.support.waiting import WAIT_TIMEOUT

DOWN = OSError("down")


class Copying:
    """What happens when an `Odd` is copied: what the test wants."""

    def __init__(self, release: threading.Event) -> None:
        self.begun, self.release = threading.Event(), release
        self.threads: list[str] = []
        self.action: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.action()

    def hang(self) -> None:
        self.begun.set()
        assert self.release.wait(4 * WAIT_TIMEOUT)

    def fail(self) -> None:
        raise ValueError("one copy is enough")


copying = Copying(threading.Event())


class Odd(msgspec.Struct):
    """A candidate type of the user's own, whose copies are made by foreign code."""

    ticker: str

    def __deepcopy__(self, memo: Any) -> Odd:
        copying()
        return Odd(self.ticker)


@pytest.fixture(autouse=True)
def _anew(release: threading.Event) -> None:
    copying.__init__(release)  # type: ignore[misc]


def odd(name: str = "odd", **layers: Any) -> Any:
    return scanner(pipeline="test", name=name, candidate=Odd, **layers)(lambda _state: [Odd("A")])


def cached(fleet: Fleet, bare: Bare, *others: Any, total: float = 10, **options: Any) -> ScanRunner:
    """Return a runner that has the answer of `odd` in its cache."""
    policy = bare(cache=Cache(ttl=60, jitter=0), timeout=Timeout(total=total))
    runner = fleet(odd(), *others, **{"policy": policy, **options})
    assert runner.run({}, only=["odd"]).results["odd"].status is Status.COMPLETED
    copying.threads.clear()
    return runner


def tickers(result: ScanResult) -> list[str]:
    return [found.ticker for found in result.candidates]


# a fresh answer


def test_a_foreign_type_is_copied_on_a_worker(fleet: Fleet, bare: Bare) -> None:
    clock, recorder = FakeClock(), Recorder()
    runner = cached(fleet, bare, clock=clock, listeners=(recorder,))
    recorder.events_seen.clear()
    clock.advance(7)
    first, second = only(runner), only(runner)
    assert (first.status, first.age, first.attempts, first.partial, tickers(first)) == (
        Status.CACHED,
        7,
        0,
        False,
        ["A"],
    )
    assert first.candidates[0] is not second.candidates[0]
    assert len(copying.threads) == 2
    assert all(name.startswith("resilient-scan-") for name in copying.threads)
    assert [event.cache for event in recorder.of(ScanEnded)] == ["hit", "hit"]
    assert recorder.of(ExecutionEnded, AttemptEnded) == []


def test_a_large_answer_is_copied_on_a_worker_and_a_small_one_at_once(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually, release: threading.Event
) -> None:
    begun = threading.Event()
    rows = [Candidate("A", "x", "", extras={"rows": list(range(MAX_AT_ONCE))})]
    runner = fleet(
        healthy("large", rows),
        healthy("small", [Candidate("A", "x", "", extras={"rows": [1, 2]})]),
        held("holder", begun, release, cache=None),
        policy=bare(cache=Cache()),
        max_workers=1,
    )
    runner.run({}, only=["large", "small"])
    holder = background(runner.run, {}, only=["holder"])
    assert begun.wait(WAIT_TIMEOUT)
    assert statuses(runner.run({}, only=["small"])) == [Status.CACHED]
    waiting = background(runner.run, {}, only=["large"])
    eventually(lambda: runner._fleet.pool.queued == 1)
    assert not waiting.done()
    release.set()
    large = waiting.result(WAIT_TIMEOUT).results["large"]
    assert (large.status, large.candidates) == (Status.CACHED, rows)
    assert statuses(holder.result(WAIT_TIMEOUT)) == [Status.COMPLETED]


def test_what_cannot_be_changed_is_shared(fleet: Fleet, bare: Bare) -> None:
    @dataclass(frozen=True)
    class Frozen:
        ticker: str
        tags: tuple[str, ...]

        def __deepcopy__(self, memo: Any) -> Frozen:
            raise AssertionError("nobody copies it")

    frozen = Frozen("A", ("x",))
    one = scanner(pipeline="test", name="one", candidate=Frozen)(lambda _state: [frozen] * (2 * MAX_AT_ONCE))
    runner = fleet(one, policy=bare(cache=Cache()))
    assert only(runner).status is Status.COMPLETED
    first, second = only(runner), only(runner)
    assert (first.status, second.status) == (Status.CACHED, Status.CACHED)
    assert first.candidates[0] is second.candidates[0] is frozen
    assert first.candidates is not second.candidates


def test_a_copy_that_hangs_costs_its_scan_a_timeout_and_nobody_else_anything(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock, recorder = FakeClock(), Recorder()
    runner = cached(fleet, bare, healthy("well", [{"ticker": "B"}]), clock=clock, listeners=(recorder,), total=3)
    recorder.events_seen.clear()
    copying.action = copying.hang
    run = background(runner.run, {})
    assert copying.begun.wait(WAIT_TIMEOUT)
    eventually(lambda: recorder.of(ScanEnded) and runner._fleet.pool.counts()["busy"] == 1)  # the other one is through
    clock.advance(3)
    report = run.result(WAIT_TIMEOUT)
    result = report.results["odd"]
    assert statuses(report) == [Status.TIMEOUT, Status.COMPLETED]
    assert (result.attempts, result.duration, result.candidates, result.age) == (0, 3, [], None)
    assert result.error is not None
    assert (result.error.kind, result.error.message) == ("ScanTimeout", "timeout after 3s in copying a cached answer")
    eventually(lambda: clock.advance(0.05) or recorder.of(ThreadAbandoned))
    (abandoned,) = recorder.of(ThreadAbandoned)
    assert (abandoned.scanner, abandoned.run_id) == ("odd", report.run_id)
    assert [event.scanner for event in recorder.of(DeadlineActedOn)] == ["odd"]
    (thread,) = runner.abandoned()
    assert thread.name == "odd"
    assert "__deepcopy__" in thread.stack
    assert runner._fleet.stacks["odd"].hung.count == 1

    copying.action = lambda: None
    again = background(only_odd, runner)  # the answer is dropped, and the source is not asked while its thread hangs
    eventually(lambda: clock.advance(0.25) or again.done())
    assert again.result().status is Status.REJECTED
    now = clock.monotonic()
    copying.release.set()
    eventually(lambda: recorder.of(LateCompletion))
    (late,) = recorder.of(LateCompletion)
    assert (late.scanner, late.duration, late.outcome) == ("odd", now, "success")
    assert runner._fleet.stacks["odd"].hung.count == runner._fleet.stacks["odd"].hung_copies == 0
    assert only_odd(runner).status is Status.COMPLETED


def only_odd(runner: ScanRunner, **options: Any) -> ScanResult:
    return runner.run({}, only=["odd"], **options).results["odd"]


def test_a_run_ends_at_its_deadline_although_an_answer_is_being_copied(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock, recorder = FakeClock(), Recorder()
    runner = cached(fleet, bare, healthy("well"), clock=clock, listeners=(recorder,))
    copying.action = copying.hang
    run = background(runner.run, {}, deadline=0.25)
    assert copying.begun.wait(WAIT_TIMEOUT)
    eventually(lambda: recorder.of(ScanEnded)[1:] and runner._fleet.pool.counts()["busy"] == 1)
    clock.advance(0.25)
    report = run.result(WAIT_TIMEOUT)
    assert statuses(report) == [Status.TIMEOUT, Status.COMPLETED]
    error = report.results["odd"].error
    assert error is not None
    assert error.message == "the run's deadline came after 0.25s"
    assert runner.abandoned() == []  # its time is not up
    clock.advance(9.75)
    eventually(lambda: clock.advance(0.05) or recorder.of(ThreadAbandoned))
    copying.release.set()
    eventually(lambda: recorder.of(LateCompletion))
    assert only_odd(runner).status is Status.CACHED  # the answer itself is sound


def test_a_copy_that_has_not_begun_at_the_deadline_is_skipped(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually, release: threading.Event
) -> None:
    clock, begun = FakeClock(), threading.Event()
    runner = cached(fleet, bare, held("holder", begun, release, cache=None), clock=clock, max_workers=1)
    holder = background(runner.run, {}, only=["holder"])
    assert begun.wait(WAIT_TIMEOUT)
    run = background(runner.run, {}, only=["odd"], deadline=0.25)
    eventually(lambda: runner._fleet.pool.queued == 1)
    clock.advance(0.25)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.SKIPPED]
    release.set()
    holder.result(WAIT_TIMEOUT)
    eventually(lambda: runner._fleet.pool._unfinished == 0)
    assert copying.threads == []


def test_a_worker_does_not_begin_a_copy_at_the_deadline(fleet: Fleet, bare: Bare) -> None:
    """The watchdog may be late: here it never comes."""
    clock = FakeClock()
    runner = cached(fleet, bare, clock=clock)
    pool = runner._fleet.pool
    execute, pool.at = pool.execute, lambda _instant, _call: lambda: None  # type: ignore[method-assign,assignment]

    def late(task: Any) -> None:
        clock.advance(0.25)
        execute(task)

    pool.execute = late  # type: ignore[method-assign]
    assert only(runner, deadline=0.25).status is Status.SKIPPED
    assert copying.threads == []


def test_a_closed_runner_does_not_wait_for_a_copy(fleet: Fleet, bare: Bare, background: Background) -> None:
    runner = cached(fleet, bare)
    copying.action = copying.hang
    run = background(runner.run, {})
    assert copying.begun.wait(WAIT_TIMEOUT)
    runner.close()
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.SKIPPED]


def test_a_copy_is_refused_where_every_thread_hangs(
    fleet: Fleet, bare: Bare, background: Background, release: threading.Event
) -> None:
    clock, begun = FakeClock(), threading.Event()
    holder = held("holder", begun, release, cache=None, timeout=Timeout(total=1))
    runner = cached(fleet, bare, holder, clock=clock, max_workers=1, max_abandoned=0)
    run = background(runner.run, {}, only=["holder"])
    assert begun.wait(WAIT_TIMEOUT)
    clock.advance(1)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
    result = only_odd(runner)
    assert result.status is Status.REJECTED
    assert result.error is not None
    assert "all 1 workers hang" in result.error.message


def test_in_sequence_one_scan_runs_at_a_time(fleet: Fleet, bare: Bare) -> None:
    running: list[int] = []
    after = scanner(pipeline="test", name="after", cache=None)(lambda _state: running.append(len(copying.threads)))
    runner = cached(fleet, bare, after, concurrent=False)
    copying.action = lambda: threading.Event().wait(0.02)
    runner.run({})
    assert running == [1]


def test_a_copy_may_not_run_its_runner(fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture) -> None:
    runner = cached(fleet, bare)
    copying.action = lambda: runner.run({})
    only(runner)
    assert "a scanner runs the runner that it is part of" in caplog.text


# one that cannot be copied


def test_the_source_is_asked_where_the_answer_cannot_be_copied(
    fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    runner = cached(fleet, bare, listeners=(recorder,))
    recorder.events_seen.clear()

    def fail_once() -> None:
        copying.action = lambda: None
        copying.fail()

    copying.action = fail_once
    result = only(runner)
    assert (result.status, result.attempts, tickers(result)) == (Status.COMPLETED, 1, ["A"])
    assert [event.cache for event in recorder.of(ScanEnded)] == ["miss"]
    assert "an answer is dropped from the cache, a candidate cannot be copied: one copy is enough" in caplog.text
    assert only(runner).status is Status.CACHED


def test_an_answer_that_cannot_be_cached_is_warned_of_once(
    fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    """A scanner whose candidates hold what cannot be copied would fill the log, a line a run."""

    class Once:
        def __deepcopy__(self, _memo: Any) -> Any:
            raise TypeError("one of me")

    found = [Candidate("A", "one", "found", extras={"held": Once()})]
    runner = fleet(healthy("one", found), healthy("other", found), policy=bare(cache=Cache()))
    with caplog.at_level(logging.DEBUG, "resilient_scan"):
        for _ in range(3):
            assert statuses(runner.run({})) == [Status.COMPLETED] * 2
    said = [(record.levelname, record.args[0]) for record in caplog.records if "the answer is not cached" in record.msg]
    first, later = [("WARNING", "one"), ("WARNING", "other")], [("DEBUG", "one"), ("DEBUG", "other")]
    assert sorted(said) == sorted([*first, *later, *later])


@pytest.mark.parametrize("failure", [SystemExit("no"), KeyboardInterrupt(), RecursionError("too deep")])
def test_whatever_a_copy_raises_costs_no_run(failure: BaseException, fleet: Fleet, bare: Bare) -> None:
    runner = cached(fleet, bare, healthy("well"))

    def fail() -> None:
        raise failure

    copying.action = fail
    assert statuses(runner.run({})) == [Status.COMPLETED] * 2


def test_a_stored_answer_that_cannot_be_copied_is_not_taken_from_the_store_again(
    fleet: Fleet, bare: Bare, tmp_path: Any
) -> None:
    """It would be found there again and again."""
    runner = cached(fleet, bare, store=f"sqlite:///{tmp_path / 'state.db'}")
    copying.action = copying.fail
    result = only(runner)
    assert (result.status, result.attempts, tickers(result)) == (Status.COMPLETED, 1, ["A"])
    copying.action = lambda: None
    assert only(runner).status is Status.CACHED


def test_a_scan_asks_again_once(fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may bring the next answer, which cannot be copied either."""
    runner = cached(fleet, bare)
    cache = runner._fleet.stacks["odd"].cache
    assert cache is not None
    entry = cache.newest()
    monkeypatch.setattr(type(cache), "lead", lambda *_: entry)
    copying.action = copying.fail
    result = only(runner)
    assert (result.status, result.attempts) == (Status.ERROR, 0)
    assert result.error is not None
    assert (result.error.kind, result.error.message) == ("ValueError", "one copy is enough")


def test_hung_copies_of_a_stored_answer_take_one_thread(
    fleet: Fleet, bare: Bare, tmp_path: Any, background: Background, eventually: Eventually
) -> None:
    clock = FakeClock()
    runner = cached(fleet, bare, store=f"sqlite:///{tmp_path / 'state.db'}", clock=clock, total=1)
    copying.action = copying.hang
    run = background(runner.run, {})
    assert copying.begun.wait(WAIT_TIMEOUT)
    clock.advance(1)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
    for _ in range(3):
        again = background(only, runner)
        eventually(lambda again=again: clock.advance(0.0625) or again.done())  # type: ignore[misc]
        assert again.result().status is Status.REJECTED  # the source is not asked while the thread hangs
    assert len(runner.abandoned()) == 1
    assert len(copying.threads) == 1


# a stale answer


def failing(fleet: Fleet, bare: Bare, clock: FakeClock, **layers: Any) -> ScanRunner:
    """Return a runner whose scanner has an older answer, and fails from now on."""
    steps: list[Any] = [[Odd("A")], DOWN, DOWN, DOWN]
    one = flapping("odd", steps)
    policy = bare(cache=Cache(ttl=60, jitter=0, stale_if_error=600, **layers), timeout=Timeout(total=10))
    typed = scanner(pipeline="test", name="odd", candidate=Odd)(one.scan)
    runner = fleet(typed, healthy("well"), policy=policy, clock=clock)
    assert only_odd(runner).status is Status.COMPLETED
    clock.advance(61)
    copying.threads.clear()
    return runner


def test_a_stale_answer_is_copied_on_a_worker_and_the_numbers_are_the_executions(fleet: Fleet, bare: Bare) -> None:
    runner = failing(fleet, bare, FakeClock())
    result = only_odd(runner)
    assert (result.status, result.attempts, result.age, result.partial, tickers(result)) == (
        Status.STALE,
        1,
        61,
        False,
        ["A"],
    )
    assert result.error is not None
    assert result.error.message == "down"
    assert [name.startswith("resilient-scan-") for name in copying.threads] == [True]


def test_a_stale_answer_stands_in_for_a_remembered_failure_too(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    runner = failing(fleet, bare, clock, ttl_error=30)
    assert only_odd(runner).status is Status.STALE
    clock.advance(1)
    result = only_odd(runner)
    assert (result.status, result.attempts, result.age) == (Status.STALE, 0, 62)
    assert len(copying.threads) == 2


@pytest.mark.parametrize("end", ["timeout", "deadline", "cannot be copied", "closed"])
def test_without_copies_of_the_stale_answer_the_failure_is_the_result(
    end: str, fleet: Fleet, bare: Bare, background: Background
) -> None:
    clock = FakeClock()
    runner = failing(fleet, bare, clock)
    copying.action = copying.fail if end == "cannot be copied" else copying.hang
    run = background(runner.run, {}, deadline=5 if end == "deadline" else 500)
    if end != "cannot be copied":
        assert copying.begun.wait(WAIT_TIMEOUT)
        runner.close() if end == "closed" else clock.advance(5 if end == "deadline" else 10)
    result = run.result(WAIT_TIMEOUT).results["odd"]
    assert (result.status, result.attempts, result.age, result.candidates) == (Status.ERROR, 1, None, [])
    assert result.error is not None
    assert result.error.message == "down"


def test_the_failure_of_an_execution_that_the_deadline_cuts_off_waits_for_no_copy(
    fleet: Fleet, bare: Bare, background: Background, release: threading.Event
) -> None:
    clock, begun, answers = FakeClock(), threading.Event(), iter([[Odd("A")]])

    def scan(_state: dict[str, Any]) -> Any:
        found = next(answers, None)
        if found is None:
            begun.set()
            release.wait()
        return found or []

    one = scanner(pipeline="test", name="odd", candidate=Odd)(scan)
    runner = fleet(one, policy=bare(cache=Cache(ttl=60, jitter=0, stale_if_error=600)), clock=clock)
    only(runner)
    clock.advance(61)
    copying.action = copying.hang
    run = background(runner.run, {}, deadline=2)
    assert begun.wait(WAIT_TIMEOUT)
    clock.advance(2)
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]
    assert not copying.begun.is_set()


# another scan's answer


def follow(fleet: Fleet, bare: Bare, background: Background, eventually: Eventually, clock: FakeClock) -> Any:
    """Return the results to come of a leader and of its follower, and what lets the leader answer."""
    go = threading.Event()

    def scan(_state: dict[str, Any]) -> list[Any]:
        assert go.wait(WAIT_TIMEOUT)
        return [Odd("A")]

    one = scanner(pipeline="test", name="odd", candidate=Odd)(scan)
    runner = fleet(one, policy=bare(cache=Cache(), timeout=Timeout(total=10)), clock=clock)
    leader = background(runner.run, {})
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 1)
    follower = background(runner.run, {}, deadline=5)
    cache = runner._fleet.stacks["odd"].cache
    assert cache is not None
    eventually(lambda: cache._flights and len(next(iter(cache._flights.values())).waiters) == 2)
    return leader, follower, go


def test_a_follower_has_objects_of_its_own(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    leader, follower, go = follow(fleet, bare, background, eventually, FakeClock())
    go.set()
    first, second = (only_of(run) for run in (leader, follower))
    assert (first.status, second.status) == (Status.COMPLETED, Status.CACHED)
    assert (second.age, second.attempts, tickers(second)) == (0, 0, ["A"])
    assert first.candidates[0] is not second.candidates[0]
    assert len(copying.threads) == 2  # one for the cache


def only_of(run: Any) -> ScanResult:
    (result,) = run.result(WAIT_TIMEOUT).results.values()
    return result  # type: ignore[no-any-return]


def test_a_follower_shares_what_can_be_copied_once_only(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    leader, follower, go = follow(fleet, bare, background, eventually, FakeClock())

    def fail_next() -> None:
        copying.action = copying.fail

    copying.action = fail_next
    go.set()
    first, second = (only_of(run) for run in (leader, follower))
    assert (first.status, second.status) == (Status.COMPLETED, Status.CACHED)
    assert first.candidates[0] is second.candidates[0]


def test_a_follower_is_cut_off_while_its_answer_is_copied(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock = FakeClock()
    leader, follower, go = follow(fleet, bare, background, eventually, clock)

    def hang_next() -> None:
        copying.action = copying.hang

    copying.action = hang_next
    go.set()
    assert copying.begun.wait(WAIT_TIMEOUT)
    assert only_of(leader).status is Status.COMPLETED
    clock.advance(5)
    assert only_of(follower).status is Status.TIMEOUT
