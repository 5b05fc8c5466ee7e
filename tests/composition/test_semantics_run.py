"""A run from outside: statuses, order, sequential and concurrent, stream, close."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    ConfigError,
    Limit,
    ScanContext,
    ScanError,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.core import run
from resilient_scan.core.execution import Execution
from resilient_scan.core.pool import ThreadPool
from resilient_scan.events import ScanEnded, ScannerStateChanged
from resilient_scan.layers.cache import ResultCache
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock, broken, hanging, healthy, polite
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.waiting import WAIT_TIMEOUT


def in_turns(names: str) -> list[Any]:
    """Make scanners that can only end in the reverse of the given order."""
    ended = {name: threading.Event() for name in names}

    def make(name: str, after: str | None) -> Any:
        @scanner(name=name, pipeline="test")
        def scan(_state: dict[str, Any]) -> list[Any]:
            if after is not None:
                assert ended[after].wait(5)
            ended[name].set()
            return [Candidate(name.upper(), name, "found")]

        return scan

    return [make(name, after) for name, after in zip(names, [*names[1:], None], strict=True)]


def test_results_are_in_the_given_order_whatever_order_they_ended_in(fleet: Fleet) -> None:
    report = fleet(*in_turns("abcd")).run({})
    assert list(report.results) == ["a", "b", "c", "d"]
    assert [candidate.ticker for candidate in report.candidates] == ["A", "B", "C", "D"]


def test_a_stream_yields_them_as_they_end(fleet: Fleet) -> None:
    assert [result.scanner for result in fleet(*in_turns("abcd")).stream({})] == ["d", "c", "b", "a"]


def mixed(release: threading.Event) -> list[Any]:
    short = Timeout(total=0.3)  # the others may take as long as they like

    @scanner(pipeline="other")
    def some_valid(_state: dict[str, Any]) -> Any:
        yield {"ticker": "AAPL"}
        yield {"ticker": ""}
        yield Candidate("MSFT", "some_valid", "found")

    @scanner(pipeline="other")
    def breaks_off(_state: dict[str, Any]) -> Any:
        yield {"ticker": "GOOG"}
        raise OSError("down")

    @scanner(pipeline="other", timeout=short)
    def hangs_off(_state: dict[str, Any]) -> Any:
        yield {"ticker": "IBM"}
        release.wait()

    @scanner(pipeline="test")
    def echo(state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.log("echo", asked=state["tickers"])
        return [{"ticker": ticker, "n": n} for n, ticker in enumerate(state["tickers"])]

    return [some_valid, broken("broken"), breaks_off, hangs_off, echo, polite("polite", timeout=short)]


def test_sequential_is_the_same_code_one_at_a_time(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    reports = []
    for concurrent in (True, False):
        policy = bare(cache=Cache(), breaker=Breaker())
        runner = fleet(*mixed(release), policy=policy, concurrent=concurrent)
        results = runner.run({"tickers": ["A", "B"]}).results.values()
        again = runner.run({"tickers": ["A", "B"]}).results.values()
        reports.append(
            [
                (r.scanner, r.status, r.candidates, r.error, r.attempts, r.partial, r.dropped, len(r.tool_logs))
                for r in [*results, *again]
            ]
        )
    assert reports[0] == reports[1]
    assert [line[1] for line in reports[0][:6]] == [
        Status.COMPLETED,
        Status.ERROR,
        Status.ERROR,
        Status.TIMEOUT,
        Status.COMPLETED,
        Status.TIMEOUT,
    ]
    assert [line[5] for line in reports[0][:6]] == [False, False, True, True, False, False]  # partial
    assert reports[0][0][6] == 1  # dropped


def test_sequential_is_one_at_a_time_for_scanners_of_a_provider_too(fleet: Fleet) -> None:
    inside: list[str] = []
    most: list[list[str]] = []

    def make(name: str) -> Any:
        @scanner(pipeline="p", name=name, limit=Limit("acme", concurrency=4))
        def source(_state: dict[str, Any], context: ScanContext) -> list[Candidate]:
            inside.append(name)
            most.append(list(inside))
            context.sleep(0.01)  # long enough for another one to come in
            inside.remove(name)
            return []

        return source

    fleet(*(make(name) for name in "cab"), concurrent=False, max_workers=8).run({})
    assert most == [["c"], ["a"], ["b"]]


def test_sequential_is_one_at_a_time_in_the_given_order(fleet: Fleet) -> None:
    order: list[str] = []
    at_work = threading.Lock()

    def make(name: str) -> Any:
        @scanner(name=name, pipeline="test")
        def scan(_state: dict[str, Any]) -> list[Any]:
            assert at_work.acquire(blocking=False)
            order.append(name)
            at_work.release()
            return []

        return scan

    runner = fleet(*(make(name) for name in "cab"), concurrent=False, max_workers=8)
    assert [result.scanner for result in runner.stream({})] == order == ["c", "a", "b"]


def test_the_longest_is_started_first_and_unknown_ones_before_all(fleet: Fleet) -> None:
    clock = FakeClock()
    order: list[str] = []

    def make(name: str, seconds: float) -> Any:
        @scanner(name=name, pipeline="test")
        def scan(_state: dict[str, Any]) -> list[Any]:
            order.append(name)
            clock.advance(seconds)
            return []

        return scan

    scanners = [make("short", 1), make("long", 3), make("middle", 2)]
    runner = fleet(*scanners, clock=clock, max_workers=1)
    runner.run({})
    assert order == ["short", "long", "middle"]
    order.clear()
    runner.disable("middle")
    runner.run({})
    runner.enable("middle")
    assert order == ["long", "short"]
    order.clear()
    report = runner.run({})
    assert order == ["long", "middle", "short"]
    assert list(report.results) == ["short", "long", "middle"]
    runner = fleet(*scanners, clock=clock, max_workers=1, order="given")
    order.clear()
    runner.run({})
    runner.run({})
    assert order == ["short", "long", "middle"] * 2


def test_leaving_a_stream_early_cancels_the_run(fleet: Fleet, eventually: Eventually) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    @scanner(pipeline="test")
    def quick(_state: dict[str, Any]) -> list[Any]:
        assert begun.wait(5)
        return []

    @scanner(pipeline="test")
    def long(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        begun.set()
        try:
            context.sleep(60)
        finally:
            cancelled.set()
        return []

    runner = fleet(quick, long)
    began = time.monotonic()
    for result in runner.stream({}):
        assert result.scanner == "quick"
        break
    assert cancelled.wait(5)
    assert time.monotonic() - began < 10
    eventually(lambda: runner.abandoned() == [])


def test_a_stream_that_nobody_iterates_does_nothing(fleet: Fleet) -> None:
    called: list[int] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        called.append(1)
        return []

    runner = fleet(source)
    runner.stream({})
    assert called == []


@pytest.mark.parametrize("concurrent", [True, False])
def test_close_during_a_run_skips_what_is_open(concurrent: bool, fleet: Fleet, background: Background) -> None:
    begun = threading.Event()

    @scanner(pipeline="test")
    def long(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        begun.set()
        context.sleep(60)
        return []

    runner = fleet(
        healthy("first"),
        long,
        *(healthy(f"q{n}") for n in range(5)),
        max_workers=1,
        concurrent=concurrent,
        order="given",
    )
    run = background(runner.run, {})
    assert begun.wait(5)
    runner.close()
    runner.close()
    assert statuses(run.result(5)) == [Status.COMPLETED] + [Status.SKIPPED] * 6
    with pytest.raises(RuntimeError, match="closed"):
        runner.run({})
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(runner.stream({})))


def test_close_does_not_wait_for_a_hung_one(
    fleet: Fleet, background: Background, release: threading.Event, eventually: Eventually
) -> None:
    begun = threading.Event()

    @scanner(pipeline="test")
    def hung(_state: dict[str, Any]) -> list[Any]:
        begun.set()
        release.wait()
        return []

    runner = fleet(hung)
    run = background(runner.run, {})
    assert begun.wait(5)
    began = time.monotonic()
    runner.close()
    assert statuses(run.result(5)) == [Status.SKIPPED]
    assert time.monotonic() - began < 4


def test_a_scan_in_several_runs_at_once(fleet: Fleet, background: Background) -> None:
    together = threading.Barrier(4, timeout=5)

    @scanner(pipeline="test")
    def source(state: dict[str, Any]) -> list[Any]:
        together.wait()
        return [{"ticker": state["ticker"]}]

    runner = fleet(source)
    runs = [background(runner.run, {"ticker": ticker}) for ticker in "ABCD"]
    assert [run.result(5).candidates[0].ticker for run in runs] == ["A", "B", "C", "D"]


def test_disabled_scanners_are_not_asked_and_not_counted(fleet: Fleet) -> None:
    clock = FakeClock()
    changes: list[ScannerStateChanged] = []

    def listen(event: Any) -> None:
        if isinstance(event, ScannerStateChanged):
            changes.append(event)

    runner = fleet(healthy("one"), broken("two"), clock=clock, listeners=(listen,))
    runner.disable("two", reason="sick", duration=3600)
    report = runner.run({})
    assert statuses(report) == [Status.COMPLETED, Status.DISABLED]
    assert report.complete
    assert report.require(1.0) is report
    clock.advance(3599)
    assert statuses(runner.run({}))[1] is Status.DISABLED
    clock.advance(1)
    report = runner.run({})
    assert statuses(report)[1] is Status.ERROR
    with pytest.raises(ScanError, match=r"two \(error\)"):
        report.require(0.6)
    runner.disable("two")
    clock.advance(86_399)
    assert statuses(runner.run({}))[1] is Status.DISABLED  # 24 hours unless given
    runner.enable("two", reason="well")
    assert statuses(runner.run({}))[1] is Status.ERROR
    assert [(change.new, change.reason) for change in changes] == [
        ("disabled", "sick"),
        ("enabled", "sick"),
        ("disabled", "by hand"),
        ("enabled", "well"),
    ]
    for wrong in (lambda: runner.disable("three"), lambda: runner.enable("three")):
        with pytest.raises(ConfigError, match="three"):
            wrong()


def test_ctrl_c_while_a_scan_begins_ends_the_run(fleet: Fleet, background: Background) -> None:
    clock = FakeClock()

    def interrupt(event: Any) -> None:
        if isinstance(event, ScannerStateChanged) and event.new == "enabled":
            raise KeyboardInterrupt

    runner = fleet(healthy("one"), healthy("two"), clock=clock, listeners=(interrupt,))
    runner.disable("two", duration=10)
    clock.advance(10)
    with pytest.raises(KeyboardInterrupt) as caught:
        background(runner.run, {}).result(3)
    assert list(caught.value.report.results) == ["one", "two"]  # type: ignore[attr-defined]


def test_ctrl_c_before_a_run_has_started_is_a_report_without_results() -> None:
    class Interrupted(FakeClock):
        calls = 0

        def monotonic(self) -> float:
            self.calls += self.armed
            if self.calls == 2:  # the first one is of the run's beginning, the second one of its wait budget
                self.calls += 1
                raise KeyboardInterrupt
            return super().monotonic()

        armed = False

    clock = Interrupted()
    with ScanRunner([healthy("one")], listeners=(), clock=clock, store=MemoryStore(clock)) as runner:
        clock.armed = True
        with pytest.raises(KeyboardInterrupt) as caught:
            runner.run({})
        clock.armed = False
        assert caught.value.report.results == {}  # type: ignore[attr-defined]
        assert statuses(runner.run({})) == [Status.COMPLETED]


def test_a_run_of_some_scanners_is_about_them_alone() -> None:
    asked: list[str] = []

    def make(name: str) -> Any:
        @scanner(name=name, pipeline="p", cache=None)
        def one(_state: Any) -> list[Any]:
            asked.append(name)
            return []

        return one

    with ScanRunner([make("a"), make("b"), make("c")], listeners=()) as runner:
        report = runner.run({}, only=["c", "a"])
        assert list(report.results) == ["a", "c"]
        assert sorted(asked) == ["a", "c"]
        assert report.complete
        assert runner.run({}, only=()).results == {}
        with pytest.raises(ConfigError, match="there is no scanner 'd'"):
            runner.run({}, only=["a", "d"])


def test_the_expected_duration_is_half_what_was_expected_and_half_what_it_was() -> None:
    clock, durations = FakeClock(), iter([1.0, 3.0, 6.0])

    @scanner(pipeline="test", cache=None)
    def slow(_state: dict[str, object]) -> list[object]:
        clock.advance(next(durations))
        return []

    expected = []
    with ScanRunner([slow], clock=clock, listeners=(), concurrent=False) as runner:
        for _ in range(3):
            runner.run()
            expected.append(runner.explain("slow").expected)
    assert expected == [1.0, 2.0, 4.0]


def test_counts_know_every_status(bare: Bare) -> None:
    with ScanRunner([healthy("one")], policy=bare(), listeners=()) as runner:
        counts = runner.run({}).counts
    assert (counts["completed"], counts["timeout"]) == (1, 0)  # type: ignore[index]


# a runner inside its own scanner


@pytest.mark.parametrize("way", ["run", "arun", "stream", "map", "through another"])
def test_a_scanner_that_runs_its_own_runner_is_refused_at_once(way: str) -> None:
    def outer(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        match way:
            case "run":
                runner.run()
            case "arun":
                asyncio.run(runner.arun())
            case "stream":
                next(iter(runner.stream()))
            case "map":
                context.map(lambda _item: runner.run(), [1, 2])
            case _:
                with ScanRunner([scanner(pipeline="p", name="inner")(lambda _state: runner.run())]) as other:
                    report = other.run()
                    raise RuntimeError(report.results["inner"].error.message)
        return []

    with ScanRunner([scanner(pipeline="p", retry=None)(outer), healthy("sound")], listeners=()) as runner:
        report = runner.run()
    error = report.results["outer"].error
    assert error is not None
    assert "a scanner runs the runner that it is part of, which would wait for itself" in error.message
    assert report.results["sound"].status is Status.COMPLETED


def test_a_scanner_may_run_another_runner_and_a_stream_may_be_read_while_its_reader_runs_again() -> None:
    def outer(_state: dict[str, Any]) -> list[Any]:
        with ScanRunner([healthy("inner")], listeners=()) as other:
            assert other.run().complete
        return []

    with ScanRunner([scanner(pipeline="p")(outer), healthy("sound")], listeners=()) as runner:
        for result in runner.stream({"run": 1}):
            assert runner.run({"run": 2}).complete
            assert result.status is Status.COMPLETED


def test_a_reader_who_takes_long_keeps_nobody_from_running(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Executions are handed over in groups: the last of them must not wait for the reader of the first result."""
    ran: list[str] = []
    begin = run.begin

    def late(stack: Any, of: Any, turn: float) -> Any:
        if stack.name == "s19":
            eventually(of.outbox.qsize, "one has ended while the others begin")
        return begin(stack, of, turn)

    monkeypatch.setattr(run, "begin", late)
    fleet = [scanner(name=f"s{n}", pipeline="p")(lambda _state, n=n: ran.append(f"s{n}") or []) for n in range(20)]
    with ScanRunner(fleet, listeners=()) as runner:
        for _ in runner.stream({}):
            eventually(lambda: len(ran) == 20, "all have run")


def test_few_scans_are_under_way_at_a_time(background: Background, eventually: Eventually) -> None:
    """With 128 of them, the garbage collector took them for long-lived, and looked at everything for that."""
    release = threading.Event()
    fleet = [
        scanner(name=f"s{n}", pipeline="p", timeout=Timeout(total=WAIT_TIMEOUT))(lambda _state: release.wait() and [])
        for n in range(100)
    ]
    with ScanRunner(fleet, listeners=(), max_workers=8) as runner:
        report = background(runner.run)
        eventually(lambda: runner._runs.active)
        (of,) = runner._runs.active
        eventually(lambda: len(of.open) == 64 and runner._fleet.pool.queued == 56, "the window is full")
        release.set()
        assert report.result(WAIT_TIMEOUT).complete


def test_a_group_that_was_not_handed_over_is_when_its_run_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, background: Background
) -> None:
    """A scan of another run may have joined one of its executions, and waits for that."""
    begun, joined = threading.Event(), threading.Event()
    begin = run.begin

    def interrupted(stack: Any, of: Any, turn: float) -> Any:
        started = begin(stack, of, turn)
        if stack.name == "other":
            begun.set()
            joined.wait(WAIT_TIMEOUT)
            raise KeyboardInterrupt
        if begun.is_set():
            joined.set()
        return started

    monkeypatch.setattr(run, "begin", interrupted)
    with ScanRunner([healthy("shared"), healthy("other")], listeners=()) as runner:
        first = background(runner.run, {})
        assert begun.wait(WAIT_TIMEOUT)
        second = background(runner.run, {}, only=["shared"])
        assert second.result(WAIT_TIMEOUT).results["shared"].status in {Status.CACHED, Status.COMPLETED}
        with pytest.raises(KeyboardInterrupt):
            first.result(WAIT_TIMEOUT)


@pytest.mark.parametrize("queued", [True, False])
def test_an_interrupt_as_a_group_is_handed_over_costs_no_other_run_its_answer(
    queued: bool, monkeypatch: pytest.MonkeyPatch, background: Background, eventually: Eventually
) -> None:
    """It may come before the pool has the group, or after that and before the next scan, of a queue of its own."""
    execute_all, interrupted = ThreadPool.execute_all, threading.Event()
    later: list[Any] = []

    def hand_over(pool: ThreadPool, tasks: list[Any]) -> None:
        if interrupted.is_set():
            execute_all(pool, tasks)
            return
        interrupted.set()
        later.append(background(runner.run, {}))
        eventually(lambda: len(runner._runs.active) == 2 and any(len(one.open) for one in runner._runs.active))
        if queued:
            execute_all(pool, tasks)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPool, "execute_all", hand_over)
    limited = healthy("limited", limit=Limit("provider", concurrency=1))
    with ScanRunner([healthy("first"), limited], listeners=()) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run({})
        assert later[0].result(WAIT_TIMEOUT).complete


def test_who_closes_the_runner_amid_a_group_of_answers_ends_it_there(fleet: Fleet) -> None:
    heard: list[Any] = []

    def listen(event: Any) -> None:
        if isinstance(event, ScanEnded) and event.cache == "hit":
            heard.append(event)
            runner.close()

    runner = ScanRunner([healthy(f"s{number}") for number in range(10)], listeners=(listen,))
    runner.run({})
    assert sorted(statuses(runner.run({}))) == [Status.CACHED, *[Status.SKIPPED] * 9]  # whichever came first
    assert len(heard) == 1


def test_an_execution_that_leads_is_not_lost_with_the_run_that_made_it(
    monkeypatch: pytest.MonkeyPatch, background: Background
) -> None:
    """An interrupt may come once it leads in the cache, and before it is queued; others wait for it by then."""
    leads, joined = threading.Event(), threading.Event()
    lead, join = ResultCache.lead, Execution.join

    def interrupted(cache: Any, key: Any, flight: Any) -> Any:
        leader = lead(cache, key, flight)
        if leader is flight:
            leads.set()
            assert joined.wait(WAIT_TIMEOUT)
            raise KeyboardInterrupt
        return leader

    def noted(execution: Execution, waiter: Any) -> bool:
        has_joined = join(execution, waiter)
        joined.set()
        return has_joined

    monkeypatch.setattr(ResultCache, "lead", interrupted)
    monkeypatch.setattr(Execution, "join", noted)
    with ScanRunner([healthy("shared")], listeners=()) as runner:
        first = background(runner.run, {})
        assert leads.wait(WAIT_TIMEOUT)
        second = background(runner.run, {})
        assert second.result(WAIT_TIMEOUT).results["shared"].status is Status.CACHED
        with pytest.raises(KeyboardInterrupt):
            first.result(WAIT_TIMEOUT)


def test_the_work_is_not_done_twice_when_those_leave_who_asked_first(
    release: threading.Event, background: Background, eventually: Eventually
) -> None:
    calls: list[str] = []
    shared = scanner(name="shared", pipeline="test")(lambda _state: calls.append("once") or [])
    with ScanRunner([hanging("blocks", release), shared], listeners=(), max_workers=1) as runner:
        fleet = runner._runs.fleet
        block = background(runner.run, {}, only=["blocks"])
        eventually(lambda: fleet.pool.counts()["busy"])
        asked, waiters = [], []
        for number in (1, 2, 3):
            asked.append(background(runner.run, {}, only=["shared"]))
            eventually(lambda: fleet.stacks["shared"].cache._flights, "one leads")
            (execution,) = fleet.stacks["shared"].cache._flights.values()
            eventually(lambda n=number, of=execution: len(of.waiters) == n, f"{number} wait")
            waiters.append(execution.waiters[-1])
        for future, waiter in zip(asked[:2], waiters, strict=False):
            waiter.run.cancel()
            assert future.result(WAIT_TIMEOUT).results["shared"].status is Status.SKIPPED
        assert fleet.pool.queued == 1
        release.set()
        assert asked[2].result(WAIT_TIMEOUT).results["shared"].status.answered
        block.result(WAIT_TIMEOUT)
    assert calls == ["once"]


@pytest.mark.parametrize("concurrent", [True, False])
def test_scanners_see_the_context_variables_as_they_are_when_they_begin(concurrent: bool, fleet: Fleet) -> None:
    ticket: contextvars.ContextVar[str] = contextvars.ContextVar("ticket", default="none")
    seen: dict[str, str] = {}

    def make(name: str) -> Any:
        @scanner(name=name, pipeline="test")
        def scan(_state: dict[str, Any]) -> list[Any]:
            seen[name] = ticket.get()
            ticket.set("a scanner's")
            return []

        return scan

    ticket.set("first")
    for result in fleet(make("a"), make("b"), concurrent=concurrent, order="given").stream({}):
        if result.scanner == "a":
            ticket.set("second")
    assert seen == {"a": "first", "b": "first" if concurrent else "second"}
    assert ticket.get() == "second"


@pytest.mark.parametrize("slow", [False, True])
def test_a_reader_gets_the_first_results_before_a_large_fleet_has_begun(
    slow: bool, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """One who is slow gets no more until all scans have begun: they do not wait for a reader."""
    clock, begun, begin = FakeClock(), 0, run.begin

    def counted(stack: Any, of: Any, turn: float) -> Any:
        nonlocal begun
        begun += 1
        if begun == run.READ_AFTER + 10:
            eventually(lambda: of.results or of.outbox.qsize(), "one has ended")
        return begin(stack, of, turn)

    monkeypatch.setattr(run, "begin", counted)
    fleet = [healthy(f"s{number}") for number in range(3 * run.READ_AFTER)]
    with ScanRunner(fleet, listeners=(), clock=clock) as runner:
        stream = runner.stream({})
        next(stream)
        assert run.READ_AFTER <= begun <= run.READ_AFTER + run.BATCH
        if slow:
            clock.advance(1)
            while begun <= run.READ_AFTER + run.BATCH:  # what had ended when the reader was given the first
                next(stream)
            assert begun == len(fleet)
        assert len(list(stream)) > run.READ_AFTER
