"""Scanners that are `async def`, and runs from asyncio code."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilient_scan import Retry, RunReport, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.engines.loop import _Canceller
from resilient_scan.testing import broken, hanging, healthy
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses


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
    assert sleeper.cancelled.wait(2)
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)


def test_one_that_swallows_its_cancel_is_over_all_the_same(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    sleeper = Sleeper(swallow=True)
    runner = fleet(sleeper, healthy("well", timeout=Timeout(total=5)), policy=bare(timeout=Timeout(total=0.1)))
    assert statuses(runner.run({})) == [Status.TIMEOUT, Status.COMPLETED]
    assert sleeper.cancelled.wait(5)
    eventually(lambda: runner.abandoned() == [])


def test_one_that_blocks_its_loop_harms_nobody(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    @scanner(pipeline="test", timeout=Timeout(total=0.2))
    async def blocks(_state: dict[str, Any]) -> list[Any]:
        release.wait()
        return []

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


def test_the_loop_is_kept_for_the_next_run(fleet: Fleet) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        loops.append(asyncio.get_running_loop())
        return []

    runner = fleet(one)
    for _ in range(3):
        runner.run({})
    assert len(set(loops)) == 1
    runner.close()
    assert loops[0].is_closed()


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
    canceller = _Canceller(loop, task, context)
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
    assert sleeper.cancelled.wait(2)
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


def test_a_runner_of_coroutines_is_closed_by_asyncio_code() -> None:
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
    assert ended == ["generator"]
