"""Scanners that are `async def`, and runs from asyncio code."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from resilient_scan import Retry, RunReport, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.core.calls import MAX_CALLS
from resilient_scan.engines.loop import Canceller
from resilient_scan.events import Event, LateCompletion, ThreadAbandoned
from resilient_scan.testing import broken, hanging, healthy
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.waiting import WAIT_TIMEOUT


class Sleeper:
    """An asynchronous scanner that sleeps until it is cancelled, and says so."""

    name = "sleeper"
    pipeline = "test"

    def __init__(self, swallow: bool = False) -> None:
        self.swallow = swallow
        self.began = threading.Event()
        self.cancelled = threading.Event()

    async def scan(self, _state: dict[str, Any]) -> list[Any]:
        self.began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            if not self.swallow:
                raise
        return [{"ticker": "LATE"}]


# scanners


def test_a_coroutine_function_is_a_scanner(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    async def one(state: dict[str, Any], context: ScanContext) -> list[Any]:
        await asyncio.sleep(0)
        context.log("seen", day=state["day"])
        return [{"ticker": "AAPL"}, {"ticker": ""}]

    result = fleet(one).run({"day": 3}).results["one"]
    assert (result.status, len(result.candidates), result.dropped) == (Status.COMPLETED, 1, 1)
    assert result.tool_logs[0]["day"] == 3


def test_an_asynchronous_generator_is_one_too(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> AsyncIterator[dict[str, str]]:
        for ticker in ("A", "", "B"):
            await asyncio.sleep(0)
            yield {"ticker": ticker}

    result = fleet(one).run({}).results["one"]
    assert [candidate.ticker for candidate in result.candidates] == ["A", "B"]
    assert result.dropped == 1


def test_what_it_yielded_before_the_timeout_is_partial(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    closed = threading.Event()

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> AsyncIterator[dict[str, str]]:
        try:
            yield {"ticker": "A"}
            yield {"ticker": "B"}
            await asyncio.sleep(3600)
        finally:
            closed.set()

    runner = fleet(one, policy=bare(timeout=Timeout(total=0.1)))
    result = runner.run({}).results["one"]
    assert (result.status, result.partial) == (Status.TIMEOUT, True)
    assert [candidate.ticker for candidate in result.candidates] == ["A", "B"]
    assert closed.wait(5)
    eventually(lambda: runner.abandoned() == [])


def test_what_it_yielded_before_an_error_is_partial(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> AsyncIterator[dict[str, str]]:
        yield {"ticker": "A"}
        raise ValueError("x")

    result = fleet(one).run({}).results["one"]
    assert (result.status, result.partial, len(result.candidates)) == (Status.ERROR, True, 1)


@pytest.mark.parametrize("answer", [None, 3, "text", {"ticker": "A"}])
def test_an_answer_that_is_no_list_is_an_error(answer: Any, fleet: Fleet) -> None:
    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> Any:
        return answer

    result = fleet(one).run({}).results["one"]
    assert result.status is Status.ERROR
    assert result.error is not None
    assert result.error.type == "TypeError"


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), asyncio.CancelledError()])
def test_whatever_it_raises_is_its_error(error: BaseException, fleet: Fleet) -> None:
    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        raise error

    runner = fleet(one, healthy("well"))
    for _ in range(2):
        assert statuses(runner.run({})) == [Status.ERROR, Status.COMPLETED]


def test_it_is_tried_again(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    async def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        await asyncio.sleep(0)
        if context.attempt < 3:
            raise ValueError("x")
        return []

    result = fleet(one, policy=bare(retry=Retry(attempts=3, base=0, cap=0))).run({}).results["one"]
    assert (result.status, result.attempts) == (Status.COMPLETED, 3)


# real cancellation


def test_it_is_really_cancelled_at_its_timeout(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    sleeper = Sleeper()
    runner = fleet(sleeper, policy=bare(timeout=Timeout(total=0.1)))
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    assert sleeper.cancelled.wait(5)
    eventually(lambda: runner.abandoned() == [])


def test_it_is_really_cancelled_at_its_attempts_timeout(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    cancelled: list[int] = []

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if context.attempt == 1:
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.append(1)
        return []

    policy = bare(retry=Retry(attempts=2, base=0, cap=0), timeout=Timeout(total=5, attempt=0.1, max_abandoned=2))
    runner = fleet(one, policy=policy)
    result = runner.run({}).results["one"]
    assert (result.status, result.attempts) == (Status.COMPLETED, 2)
    eventually(lambda: cancelled == [1])


@pytest.mark.parametrize("way", ["leave", "close", "deadline"])
def test_it_is_really_cancelled_when_the_run_ends(
    way: str, fleet: Fleet, background: Background, eventually: Eventually
) -> None:
    sleeper = Sleeper()
    runner = fleet(healthy("well"), sleeper)
    if way == "leave":
        stream = runner.stream({})
        assert next(stream).scanner == "well"
        assert sleeper.began.wait(5)
        stream.close()  # type: ignore[attr-defined]
    else:
        run = background(runner.run, {}, deadline=0.2 if way == "deadline" else None)
        assert sleeper.began.wait(5)
        if way == "close":
            runner.close()
        assert statuses(run.result(5))[0] is Status.COMPLETED
    assert sleeper.cancelled.wait(WAIT_TIMEOUT)
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)


def test_one_that_swallows_its_cancel_is_over_all_the_same(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    sleeper = Sleeper(swallow=True)
    runner = fleet(sleeper, healthy("well", timeout=Timeout(total=5)), policy=bare(timeout=Timeout(total=0.1)))
    swallowed, well = statuses(runner.run({}))
    assert swallowed in {Status.TIMEOUT, Status.COMPLETED}  # completed if it returns before the watchdog has acted
    assert well is Status.COMPLETED
    assert sleeper.cancelled.wait(5)
    eventually(lambda: runner.abandoned() == [])


def test_one_that_blocks_a_loop_of_its_own_harms_nobody(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    @scanner(pipeline="test", timeout=Timeout(total=0.2))
    def blocks(_state: dict[str, Any]) -> Any:
        async def work() -> list[Any]:
            release.wait()
            return []

        return work()

    @scanner(pipeline="test")
    async def ticks(_state: dict[str, Any]) -> list[Any]:
        for _ in range(20):
            await asyncio.sleep(0.001)
        return []

    runner = fleet(blocks, ticks, max_workers=2)
    began = time.monotonic()
    assert statuses(runner.run({})) == [Status.TIMEOUT, Status.COMPLETED]
    assert statuses(runner.run({})) == [Status.REJECTED, Status.COMPLETED]
    assert time.monotonic() - began < 3
    assert len(runner.abandoned()) == 1


def test_no_loop_of_a_worker_is_used_twice(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilient_scan.engines.greenlets.AVAILABLE", False)  # as without the extra `async`
    loops: list[asyncio.AbstractEventLoop] = []

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        loops.append(asyncio.get_running_loop())
        return []

    runner = fleet(one)
    for _ in range(3):
        runner.run({})
    assert len(set(loops)) == 3
    assert all(loop.is_closed() for loop in loops)


def test_a_loop_at_work_is_closed_when_it_is_through(fleet: Fleet, eventually: Eventually) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    began, go = threading.Event(), threading.Event()

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        loops.append(asyncio.get_running_loop())
        began.set()
        go.wait(5)
        return []

    runner = fleet(healthy("well"), one)
    stream = runner.stream({})
    next(stream)
    assert began.wait(5)
    runner.close()
    list(stream)
    go.set()
    eventually(loops[0].is_closed)


def test_a_task_left_behind_does_not_go_on_in_the_next_run(
    fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []
    runs: list[int] = []

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        runs.append(1)

        async def background(mine: int) -> None:
            while True:
                await asyncio.sleep(0)
                seen.append((mine, len(runs)))

        task = asyncio.ensure_future(background(len(runs)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        return []

    runner = fleet(one)
    for _ in range(3):
        runner.run({})
    runner.close()
    gc.collect()
    assert all(mine == now for mine, now in seen)
    assert "Task was destroyed but it is pending" not in caplog.text


def test_an_endless_async_generator_ends_like_an_endless_generator(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    stop = threading.Event()

    @scanner(pipeline="test")
    async def endless(_state: dict[str, Any]) -> Any:
        while not stop.is_set():
            yield {"ticker": "A"}

    runner = fleet(endless, policy=bare(timeout=Timeout(total=0.1)))
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    try:
        eventually(lambda: runner.abandoned() == [])
    finally:
        stop.set()


def test_a_cancel_that_finds_the_loop_closed_is_no_error() -> None:
    """The worker closes its loop (the runner is closed) between the look at the flags and the raising of this one."""
    loop = asyncio.new_event_loop()
    context = ScanContext("one")

    async def nothing() -> None: ...

    task = loop.create_task(nothing())
    loop.run_until_complete(task)
    canceller = Canceller(loop, task, context)
    loop.close()
    context._cut = True
    canceller.set()


# runs


def test_a_run_does_not_block_the_loop(fleet: Fleet) -> None:
    go = threading.Event()
    runner = fleet(scanner(name="one", pipeline="test")(lambda _state: [] if go.wait(5) else None))

    async def main() -> RunReport:
        run = asyncio.ensure_future(runner.arun({}))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not run.done()
        go.set()
        return await run

    assert statuses(asyncio.run(main())) == [Status.COMPLETED]


def test_cancelling_it_cancels_the_run(fleet: Fleet, eventually: Eventually) -> None:
    sleeper = Sleeper()
    runner = fleet(sleeper)

    async def main() -> None:
        run = asyncio.ensure_future(runner.arun({}))
        assert await asyncio.to_thread(sleeper.began.wait, 5)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(main())
    assert sleeper.cancelled.wait(WAIT_TIMEOUT)
    eventually(lambda: not runner._runs.active)


def test_its_errors_are_those_of_run(fleet: Fleet) -> None:
    runner = fleet(broken("sick"), healthy("well"))
    assert statuses(asyncio.run(runner.arun())) == [Status.ERROR, Status.COMPLETED]
    with pytest.raises(TypeError):
        asyncio.run(runner.arun(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="deadline"):
        asyncio.run(runner.arun({}, deadline=-1))
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(runner.arun({}))


def test_its_deadline_holds(fleet: Fleet, release: threading.Event) -> None:
    runner = fleet(hanging("hung", release), healthy("well"))
    assert statuses(asyncio.run(runner.arun({}, deadline=0.1))) == [Status.TIMEOUT, Status.COMPLETED]


def test_several_at_once(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    async def one(state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0.001)
        return [{"ticker": f"T{state['number']}"}]

    runner = fleet(one, healthy("well"))

    async def main() -> list[RunReport]:
        return await asyncio.gather(*(runner.arun({"number": number}) for number in range(12)))

    reports = asyncio.run(main())
    assert [report.candidates[0].ticker for report in reports] == [f"T{number}" for number in range(12)]


def test_a_runner_of_coroutines_is_closed_by_asyncio_code(eventually: Eventually) -> None:
    """A loop of its own is closed in a loop of the caller's, and an asynchronous generator in it to its end."""
    ended: list[str] = []
    kept: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended.append("generator")

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        kept.append(numbers())
        await anext(kept[0])
        return []

    async def main() -> RunReport:
        with ScanRunner([one], listeners=()) as runner:
            return await runner.arun()

    assert statuses(asyncio.run(main())) == [Status.COMPLETED]
    eventually(lambda: ended == ["generator"])


# blocking calls of coroutines


def _calls(name: str, call: Callable[[], object], times: int = 1, **layers: Any) -> Any:
    """Make a scanner that hands `call` to a thread, several times at once."""

    @scanner(pipeline="test", name=name, **layers)
    async def calls(_state: dict[str, Any]) -> list[Any]:
        await asyncio.gather(*(asyncio.to_thread(call) for _ in range(times)))
        return [{"ticker": "AAPL"}]

    return calls


def _hung_calls(runner: ScanRunner) -> list[str]:
    """Return whose calls hang; none while the thread of a scan is in the ledger."""
    hung = runner.abandoned()
    calls = [thread.name for thread in hung if thread.thread.startswith("resilient-scan-call-")]
    return calls if len(calls) == len(hung) else []


def test_a_call_that_hangs_is_in_the_ledger_and_counts(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    seen: list[Event] = []

    def listener(event: Event) -> None:
        if isinstance(event, ThreadAbandoned | LateCompletion):
            seen.append(event)

    one = _calls("one", release.wait, timeout=Timeout(total=0.1))
    runner = fleet(one, healthy("well"), listeners=(listener,), policy=bare())
    assert statuses(runner.run({})) == [Status.TIMEOUT, Status.COMPLETED]
    eventually(lambda: _hung_calls(runner) == ["one"])  # the scan's own thread may be in the ledger for a moment, too
    (thread,) = runner.abandoned()
    assert "wait" in thread.stack
    eventually(lambda: any(isinstance(event, ThreadAbandoned) and event.thread == thread.thread for event in seen))
    assert statuses(runner.run({})) == [Status.REJECTED, Status.COMPLETED]
    explanation = runner.explain("one")
    assert [hung.thread for hung in explanation.hung] == [thread.thread]
    assert "timeout.max_abandoned=1" in str(explanation)
    release.set()
    eventually(lambda: runner.abandoned() == [])
    eventually(lambda: any(isinstance(event, LateCompletion) for event in seen))
    assert statuses(runner.run({})) == [Status.COMPLETED, Status.COMPLETED]


def test_the_look_up_of_a_name_that_hangs_is_one_of_them(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    @scanner(pipeline="test", timeout=Timeout(total=0.1))
    async def one(_state: dict[str, Any]) -> list[Any]:
        await asyncio.get_running_loop().getaddrinfo("example.com", 80)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args: release.wait())
    runner = fleet(one, policy=bare())
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    eventually(lambda: _hung_calls(runner) == ["one"])


def test_a_source_that_is_well_again_is_heard_after_many_hung_calls(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    """Hung threads are replaced: asyncio's own would all hang by now, and every further call would time out."""
    sick = True
    one = _calls("one", lambda: release.wait() if sick else None, timeout=Timeout(total=0.05, max_abandoned=99))
    runner = fleet(one, policy=bare(), max_workers=1)
    for hung in range(1, 13):
        assert statuses(runner.run({})) == [Status.TIMEOUT]
        eventually(lambda hung=hung: len(runner.abandoned()) == hung)
    sick = False
    assert statuses(runner.run({})) == [Status.COMPLETED]


def test_when_every_thread_for_calls_hangs_they_are_refused_and_explained(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    one = _calls("one", release.wait, MAX_CALLS, timeout=Timeout(total=0.05, max_abandoned=99))
    runner = fleet(one, _calls("two", lambda: None), policy=bare(), max_workers=1, max_abandoned=0)
    runner.run({})
    eventually(lambda: len(runner.abandoned()) == MAX_CALLS)
    result = runner.run({}).results["two"]
    assert result.error is not None
    assert (result.error.type, "max_abandoned" in result.error.message) == ("resilient_scan.Rejected", True)
    assert "hang" in str(runner.explain("two"))
    release.set()
    eventually(lambda: runner.abandoned() == [])
    assert runner.run({}).results["two"].status is Status.COMPLETED


def test_calls_do_not_need_the_workers_of_the_scans(fleet: Fleet) -> None:
    """All workers are taken by coroutines that wait for calls, and each has more calls than it may make at once."""
    threads: set[int] = set()
    names = ["one", "two", "three", "four"]
    runner = fleet(*(_calls(name, lambda: threads.add(threading.get_ident()), 40) for name in names), max_workers=2)
    assert statuses(runner.run({})) == [Status.COMPLETED] * 4
    assert len(threads) <= 2 * MAX_CALLS


def test_many_hanging_calls_of_one_scanner_leave_threads_to_the_others(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    one = _calls("one", release.wait, 100)
    two = _calls("two", release.set)
    runner = fleet(one, two, policy=bare(timeout=Timeout(total=WAIT_TIMEOUT)), max_workers=2, order="given")
    assert statuses(runner.run({})) == [Status.COMPLETED] * 2, "those of one hang until one of two's is made"


def test_not_every_further_attempt_loses_threads(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    calls: list[int] = []

    def hangs() -> None:
        calls.append(1)
        release.wait()

    policy = bare(retry=Retry(attempts=5, base=0, cap=0), timeout=Timeout(total=5, attempt=0.1))
    runner = fleet(_calls("one", hangs), policy=policy)
    assert runner.run({}).results["one"].status is not Status.COMPLETED
    eventually(lambda: len(runner.abandoned()) == len(calls))
    assert len(calls) <= 2  # the second attempt may begin before the watchdog has seen that the first one hangs


def test_a_cleanup_may_make_calls_after_the_timeout_and_while_the_runner_closes(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    began, cleaned = threading.Event(), threading.Event()

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        began.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.to_thread(cleaned.set)
        return []

    assert statuses(fleet(one, policy=bare(timeout=Timeout(total=0.1))).run({})) == [Status.TIMEOUT]
    assert cleaned.wait(5)
    began.clear()
    cleaned.clear()
    runner = fleet(one)
    run = background(runner.run, {})
    assert began.wait(5)
    runner.close()
    run.result(5)
    assert cleaned.wait(5)


def test_the_threads_for_calls_end_with_the_runner(fleet: Fleet, eventually: Eventually) -> None:
    threads: list[threading.Thread] = []
    runner = fleet(_calls("one", lambda: threads.append(threading.current_thread())))
    runner.run({})
    assert threads[0].daemon
    runner.close()
    eventually(lambda: not threads[0].is_alive())


def test_a_call_that_hangs_does_not_delay_the_exit() -> None:
    program = """
import asyncio, time
from resilient_scan import ScanRunner, scanner

@scanner(pipeline="test")
async def one(state):
    await asyncio.to_thread(time.sleep, 20)
    return []

runner = ScanRunner([one], timeout_seconds=0.2, listeners=())
print(runner.run({}).results["one"].status)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 15
    assert (done.stdout.strip(), done.stderr) == ("timeout", "")


def test_a_runner_has_no_more_loops_than_workers(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilient_scan.engines.greenlets.AVAILABLE", False)  # as without the extra `async`
    loops: list[asyncio.AbstractEventLoop] = []
    at_once: list[int] = []

    async def scan(_state: dict[str, Any]) -> list[Any]:
        loops.append(asyncio.get_running_loop())
        at_once.append(sum(not loop.is_closed() for loop in loops))
        await asyncio.sleep(0)
        return []

    runner = fleet(*(scanner(name=f"s{number}", pipeline="test")(scan) for number in range(40)), max_workers=3)
    runner.run({})
    assert len(loops) == 40
    assert max(at_once) <= 3
    assert all(loop.is_closed() for loop in loops)


def test_no_second_cancel_interrupts_the_cleanup_that_the_first_one_started(fleet: Fleet, bare: Bare) -> None:
    """The loop's alarm, the watchdog and `close` all cancel; `async with client:` hears of it once."""
    leaves, left = threading.Event(), threading.Event()
    ends: list[str] = []

    class Client:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_error: object) -> None:
            leaves.set()
            try:
                await asyncio.sleep(0.2)
                ends.append("closed")
            except asyncio.CancelledError:
                ends.append("interrupted")
                raise
            finally:
                left.set()

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        async with Client():
            await asyncio.sleep(3600)
        return []

    runner = fleet(one, policy=bare(timeout=Timeout(total=0.1)))
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    assert leaves.wait(5)
    runner.close()
    assert left.wait(5)
    assert ends == ["closed"]
