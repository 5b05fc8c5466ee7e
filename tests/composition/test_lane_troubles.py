"""What may go wrong on the shared loop: what outlives an attempt, what blocks without a step, what is locked, lost, or
somebody else's.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from resilient_scan import Breaker, Limit, Quarantine, Retry, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.clock import SystemClock
from resilient_scan.core import lane as lane_module
from resilient_scan.events import BreakerChanged, Event, LoopBlocked
from resilient_scan.stores import Change
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import Recorder
from tests.support.coroutines import FOUND, status_by_name, waiting
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.processes import needs_fork
from tests.support.waiting import WAIT_TIMEOUT


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what another thread or scanner does
        await asyncio.sleep(0.001)


def test_one_that_waits_for_a_permit_asks_for_no_second_one_when_a_run_leaves_it(
    background: Background, eventually: Eventually
) -> None:
    """It is in no queue of the lane yet; the permit would never be given back."""
    limit, release = Limit("provider", concurrency=1), threading.Event()

    @scanner(name="holds", pipeline="test", limit=limit)
    def holds(_state: dict[str, Any]) -> list[Any]:
        release.wait(WAIT_TIMEOUT)
        return []

    with ScanRunner([holds, waiting("waits", 0.0, limit=limit)], listeners=(), order="given") as runner:
        (provider,) = runner._fleet.providers.values()
        first = background(runner.run, {})
        eventually(lambda: (provider.taken, provider.waiting) == (1, 1), "one holds the permit, one waits for it")
        (of,) = runner._runs.active
        second = background(runner.run, {}, only=["waits"])
        eventually(lambda: sum(len(one.open) for one in runner._runs.active) == 3, "another run waits for the same")
        of.cancel()
        assert first.result(WAIT_TIMEOUT).results["waits"].status is Status.SKIPPED
        assert (provider.taken, provider.waiting) == (1, 1)
        release.set()
        assert second.result(WAIT_TIMEOUT).complete
        eventually(lambda: provider.taken == provider.waiting == 0)


def test_an_interrupt_before_the_lane_has_an_execution_costs_no_other_run_its_answer(
    monkeypatch: pytest.MonkeyPatch, background: Background, eventually: Eventually
) -> None:
    execute_all, later = lane_module.Lane.execute_all, list[Any]()

    def interrupted(lane: lane_module.Lane, tasks: list[Any]) -> None:
        if later:
            execute_all(lane, tasks)
            return
        later.append(background(runner.run, {}))
        eventually(lambda: sum(len(one.open) for one in runner._runs.active) == 2, "another run waits for the same")
        raise KeyboardInterrupt

    monkeypatch.setattr(lane_module.Lane, "execute_all", interrupted)
    with ScanRunner([waiting("one", 0.0)], listeners=()) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run({})
        assert later[0].result(WAIT_TIMEOUT).complete


async def asks_a_thread() -> None:
    await asyncio.to_thread(int)


async def sets_a_handler() -> None:
    task = asyncio.current_task()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: repr(task))


async def outlives_itself() -> None:
    """Have a callback begin a task in each turn of the loop, the last one included."""
    loop = asyncio.get_running_loop()

    def again() -> None:
        begun.append(loop.create_task(asyncio.sleep(1)))
        del begun[:-2]
        loop.call_soon(again)

    begun: list[Any] = []
    loop.call_later(0.01, again)


@pytest.mark.parametrize("act", [asyncio.Event().set, asks_a_thread, sets_a_handler, outlives_itself])
def test_of_a_closed_runner_nothing_is_left(act: Callable[[], Any], eventually: Eventually) -> None:
    """Slots refer to their loop, and the garbage collector looks at none: nothing may lead from the loop to them."""

    @scanner(pipeline="test", timeout=Timeout(total=5))
    async def one(_state: dict[str, Any]) -> list[Any]:
        if (answer := act()) is not None:
            await answer
        return []

    with ScanRunner([one], listeners=()) as runner:
        assert runner.run({}).complete
        lane = runner._fleet.lane
        assert lane is not None
        left = [weakref.ref(lane), weakref.ref(lane._loop), weakref.ref(runner._fleet.pool)]
    del runner, lane

    def freed() -> bool:
        gc.collect()
        return [one() for one in left] == [None] * 3

    eventually(freed)


@pytest.mark.parametrize("how", ["a task", "a callback"])
def test_who_wants_to_end_the_program_ends_no_other_scanner(how: str, bare: Bare) -> None:
    """asyncio lets a `SystemExit` out of the loop, which is everybody's."""

    async def leave() -> None:
        sys.exit(3)

    @scanner(name="leaves", pipeline="test")
    async def leaves(_state: dict[str, Any]) -> list[Any]:
        if how == "a task":
            await asyncio.create_task(leave())
        else:
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(0.01)
        return []

    with ScanRunner([leaves, waiting("waits", 0.1)], policy=bare(), listeners=()) as runner:
        found = status_by_name(runner.run({}))
    assert found == {"leaves": "error" if how == "a task" else "completed", "waits": "completed"}


def test_a_task_with_variables_of_its_own_runs_in_them(bare: Bare) -> None:
    found: list[Any] = []
    own = contextvars.Context()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def child() -> None:
        variable.set("child")

    @scanner(name="one", pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        await asyncio.create_task(child(), context=own)
        found.append((own.get(variable), variable.get("scanner")))
        return []

    with ScanRunner([one], policy=bare(), listeners=()) as runner:
        assert runner.run({}).complete
    assert found == [("child", "scanner")]


# locks that are held while something waits


class SlowStore(MemoryStore):
    """A store whose updates take their time, and that knows on which threads they did."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.callers: list[str] = []

    def update(self, key: str, change: Change[Any], /) -> Any:
        self.callers.append(threading.current_thread().name)
        time.sleep(0.05)
        return super().update(key, change)


def test_two_executions_of_one_scanner_may_vote_in_a_store_at_once(bare: Bare) -> None:
    policy = bare(breaker=Breaker(failures=50))

    @scanner(name="down", pipeline="test")
    async def down(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0.05)
        raise OSError("down")

    with ScanRunner([down], policy=policy, store=SlowStore(), listeners=()) as runner:
        reports: list[Any] = []
        runs = [threading.Thread(target=lambda: reports.append(runner.run({})), daemon=True) for _ in range(4)]
        for run in runs:
            run.start()
        for run in runs:
            run.join(WAIT_TIMEOUT)
        assert [status_by_name(report) for report in reports] == [{"down": Status.ERROR}] * 4


def test_the_store_of_a_quarantine_is_asked_elsewhere(bare: Bare) -> None:
    store = SlowStore()

    @scanner(pipeline="test")
    async def down(_state: dict[str, Any]) -> list[Any]:
        raise OSError("down")

    quarantine = Quarantine(after_failures=1)
    with ScanRunner([down], policy=bare(), store=store, listeners=(), quarantine=quarantine) as runner:
        runner.run({})
        assert runner.run({}).results["down"].status is Status.DISABLED
    assert store.callers
    assert not [caller for caller in store.callers if caller.startswith("resilient-scan-loop")]


# what an attempt leaves behind


async def pages(ended: list[str]) -> AsyncIterator[int]:
    try:
        for number in range(9):
            yield number
    finally:
        await asyncio.sleep(0.01)  # gives a connection back
        ended.append("page")


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "worker"])
@pytest.mark.parametrize("how", ["held", "dropped", "in a cycle"])
def test_generators_that_an_attempt_leaves_unfinished_end_with_it(
    how: str, lane: bool, fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    kept: list[Any] = []

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        mine = pages(ended)
        async for _ in mine:
            break
        cycle: list[Any] = [mine]
        if how == "held":
            kept.append(mine)
        if how == "in a cycle":
            cycle.append(cycle)
        return FOUND

    monkeypatch.setattr("resilient_scan.engines.greenlets.AVAILABLE", lane)
    assert status_by_name(fleet(one, policy=bare()).run({})) == {"one": Status.COMPLETED}
    assert ended == ["page"]


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "worker"])
def test_a_scanner_that_yields_is_closed_where_it_is_not_asked_for_more(
    lane: bool, fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any], context: ScanContext) -> AsyncIterator[Any]:
        try:
            yield FOUND[0]
            monkeypatch.setattr(context, "check", raising, raising=False)
            yield FOUND[0]
        finally:
            await asyncio.sleep(0.01)
            ended.append("page")

    monkeypatch.setattr("resilient_scan.engines.greenlets.AVAILABLE", lane)
    assert status_by_name(fleet(one, policy=bare()).run({})) == {"one": Status.ERROR}
    assert ended == ["page"]


def raising() -> None:
    raise OSError("amid the candidates")


def test_tasks_that_callbacks_start_end_with_the_attempt(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    ended: list[str] = []
    loops: list[Any] = []

    async def straggler(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        loop = asyncio.get_running_loop()
        loops.append(loop)
        loop.call_soon(lambda: kept.append(loop.create_task(straggler("within"))))
        loop.call_later(0.05, lambda: kept.append(loop.create_task(straggler("after"))))
        await asyncio.sleep(0.01)
        return FOUND

    kept: list[Any] = []
    runner = fleet(one, waiting("other", 0.1), policy=bare())
    runner.run({})
    assert ended == ["within"]
    eventually(lambda: len(kept) == 2)
    eventually(kept[1].cancelled, "the one that comes after the attempt never begins")
    assert not loops[0].slots


def test_what_a_cancelled_task_starts_ends_too(fleet: Fleet, bare: Bare) -> None:
    ended: list[int] = []

    async def hydra(heads: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(heads)
            if heads:
                asyncio.get_running_loop().create_task(hydra(heads - 1))

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        asyncio.get_running_loop().create_task(hydra(1))
        await asyncio.sleep(0.01)
        return FOUND

    assert status_by_name(fleet(one, policy=bare()).run({})) == {"one": Status.COMPLETED}
    assert ended in ([1], [1, 0]), "its second task is cancelled before or after its first step"


@pytest.mark.parametrize("late", [True, False], ids=["pending", "delivered"])
def test_a_cancel_of_its_own_does_not_reach_the_next_attempt(late: bool, fleet: Fleet, bare: Bare) -> None:
    tries: list[int] = []

    @scanner(pipeline="test", retry=Retry(attempts=2, base=0.01, cap=0.01))
    async def one(_state: dict[str, Any]) -> list[Any]:
        tries.append(1)
        task = asyncio.current_task()
        assert task is not None
        if len(tries) == 1:
            task.cancel()
            if not late:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            raise OSError("down")
        assert task.cancelling() == 0
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        return FOUND

    async def fail() -> None:
        raise OSError("down")

    result = fleet(one, policy=bare()).run({}).results["one"]
    assert (result.status, result.attempts, len(result.candidates)) == (Status.COMPLETED, 2, 1)


def test_what_has_ended_is_not_kept_until_its_timeout(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    @dataclass
    class Mine:
        ticker: str

    seen: list[weakref.ref[Any]] = []

    @scanner(pipeline="test", candidate=Mine)
    async def one(_state: dict[str, Any]) -> list[Any]:
        found = Mine("AAPL")
        seen.append(weakref.ref(found))
        return [found]

    runner = fleet(one, policy=bare(timeout=Timeout(total=60)))
    runner.run({})
    gc.collect()
    eventually(lambda: seen[0]() is None)


# somebody else's tasks


@pytest.mark.parametrize("how", ["cancel", "await"])
def test_no_scanner_can_cancel_the_tasks_of_another(how: str, fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test", timeout=Timeout(total=0.1))
    async def tidy(_state: dict[str, Any]) -> list[Any]:
        others = asyncio.all_tasks()
        others.remove(asyncio.current_task())  # type: ignore[arg-type]
        assert len(others) >= 20
        if how == "cancel":
            for task in others:
                task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return FOUND

    innocents = [waiting(f"s{number}", 0.3) for number in range(20)]
    seen = status_by_name(fleet(*innocents, tidy, policy=bare(timeout=Timeout(total=10))).run({}))
    assert seen.pop("tidy") is Status.TIMEOUT
    assert set(seen.values()) == {Status.COMPLETED}


def test_anyio_works_as_on_any_loop(fleet: Fleet, bare: Bare) -> None:
    cancelled: list[str] = []

    async def slow() -> None:
        try:
            await anyio.sleep(60)
        except BaseException:
            cancelled.append("slow")
            raise

    async def bad() -> None:
        await anyio.sleep(0.01)
        raise OSError("down")

    @scanner(pipeline="test")
    async def timed(_state: dict[str, Any]) -> list[Any]:
        with anyio.move_on_after(0.05):
            async with anyio.create_task_group() as group:
                group.start_soon(slow)
                group.start_soon(slow)
        return FOUND

    @scanner(pipeline="test")
    async def failing(_state: dict[str, Any]) -> list[Any]:
        async with anyio.create_task_group() as group:
            group.start_soon(slow)
            group.start_soon(bad)
        return FOUND

    report = fleet(timed, failing, policy=bare()).run({})
    assert status_by_name(report) == {"timed": Status.COMPLETED, "failing": Status.ERROR}
    error = report.results["failing"].error
    assert error is not None
    assert error.kind == "OSError"
    assert cancelled == ["slow"] * 3


# blame


def test_timers_of_others_stand_still_while_one_blocks_the_loop(fleet: Fleet, bare: Bare) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"answer\n")
        await writer.drain()
        writer.close()

    ready, over, ports = threading.Event(), threading.Event(), list[int]()

    def run_server() -> None:
        async def main() -> None:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            ports.append(server.sockets[0].getsockname()[1])
            ready.set()
            await asyncio.to_thread(over.wait, 30)
            server.close()

        asyncio.run(main())

    server = threading.Thread(target=run_server)
    server.start()
    assert ready.wait(WAIT_TIMEOUT)
    asked = 0

    def asking(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        async def scan(_state: dict[str, Any]) -> list[Any]:
            nonlocal asked
            reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
            async with asyncio.timeout(0.3):
                writer.write(b"question\n")
                asked += 1
                assert await reader.readline() == b"answer\n"
            writer.close()
            return FOUND

        return scan

    @scanner(pipeline="test")
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        await until(lambda: asked == 10)
        time.sleep(0.8)  # noqa: ASYNC251 - what this is about
        return FOUND

    report = fleet(*map(asking, range(10)), culprit, policy=bare()).run({})
    over.set()
    server.join()
    assert set(status_by_name(report).values()) == {Status.COMPLETED}


def test_what_the_loop_was_blocked_for_is_not_the_slowness_of_others(fleet: Fleet, bare: Bare) -> None:
    recorder = Recorder()
    breaker = Breaker(slow_after=0.4, slow_rate=0.1, window=2, minimum=1)
    begun: list[int] = []

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test", breaker=breaker)
        async def scan(_state: dict[str, Any]) -> list[Any]:
            begun.append(number)
            await asyncio.sleep(0.05)
            return FOUND

        return scan

    @scanner(pipeline="test")
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        await until(lambda: len(begun) == 10)
        time.sleep(0.6)  # noqa: ASYNC251
        return FOUND

    fleet(*map(make, range(10)), culprit, policy=bare(), listeners=(recorder,)).run({})
    assert not recorder.of(BreakerChanged)


def test_the_end_of_a_call_behind_a_breaker_gives_postponed_time_back(fleet: Fleet, bare: Bare) -> None:
    inside = threading.Event()

    @scanner(pipeline="test", timeout=Timeout(total=0.4))
    async def innocent(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.guarded("source", lambda: inside.set() or time.sleep(0.1))
        await asyncio.sleep(0.1)
        context.check()
        return FOUND

    @scanner(pipeline="test")
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        await until(inside.is_set)
        time.sleep(0.6)  # noqa: ASYNC251
        return FOUND

    report = fleet(innocent, culprit, policy=bare(breaker=Breaker())).run({})
    assert set(status_by_name(report).values()) == {Status.COMPLETED}


def test_a_callback_that_blocks_the_loop_is_its_scanners_fault(fleet: Fleet, bare: Bare) -> None:
    recorder, named = Recorder(), threading.Event()

    def listen(event: Event) -> None:
        recorder(event)
        if isinstance(event, LoopBlocked):
            named.set()

    @scanner(pipeline="test")
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: (named.wait(WAIT_TIMEOUT), time.sleep(1)))
        await asyncio.sleep(0.1)
        return FOUND

    innocents = [waiting(f"s{number}") for number in range(10)]
    report = fleet(*innocents, culprit, policy=bare(timeout=Timeout(total=1)), listeners=(listen,)).run({})
    del report.results["culprit"]
    assert set(status_by_name(report).values()) == {Status.COMPLETED}
    assert [blocked.scanner for blocked in recorder.of(LoopBlocked)] == ["culprit"]


def test_a_callback_that_never_returns_costs_the_loop_and_not_the_runner(
    fleet: Fleet, bare: Bare, release: threading.Event, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(lane_module, "LOST_AFTER", 0.6)

    @scanner(pipeline="test", timeout=Timeout(total=1))
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        asyncio.get_running_loop().call_soon(release.wait, 30)
        await asyncio.sleep(0.1)
        return FOUND

    policy = bare(timeout=Timeout(total=WAIT_TIMEOUT), retry=Retry(attempts=2, base=0, cap=0))
    runner = fleet(waiting("well"), culprit, policy=policy)
    seen = status_by_name(runner.run({}))
    assert seen["well"] is Status.COMPLETED
    assert seen["culprit"] in {Status.TIMEOUT, Status.COMPLETED}
    assert status_by_name(runner.run({}, only=["well"])) == {"well": Status.COMPLETED}
    release.set()
    eventually(lambda: not runner.abandoned())


def test_a_watchdog_that_could_not_look_names_nobody(fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads hold the interpreter's lock in turns: the watchdog comes twice, half a second apart."""
    recorder = Recorder()
    looked: list[float] = []
    look = lane_module.Lane._judge

    def seldom(self: Any, loop: Any, now: float) -> None:
        if loop.stepping is None or not looked or now - looked[-1] > 0.3:
            looked.append(now)
            look(self, loop, now)

    monkeypatch.setattr(lane_module.Lane, "_judge", seldom)

    @scanner(pipeline="test")
    async def slow(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0.1)
        time.sleep(0.9)  # noqa: ASYNC251
        return FOUND

    fleet(slow, waiting("well"), policy=bare(), listeners=(recorder,)).run({})
    assert not recorder.of(LoopBlocked)


# a loop that is given up


def test_all_that_was_on_a_lost_loop_ends_when_it_turns_again(
    fleet: Fleet, bare: Bare, release: threading.Event, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(lane_module, "LOST_AFTER", 0.6)
    monkeypatch.setattr(lane_module, "LOST_TIMES", 0)
    ended: list[str] = []
    stubborn = asyncio.Event()

    @scanner(pipeline="test")
    async def innocent(_state: dict[str, Any]) -> list[Any]:
        try:
            await asyncio.sleep(0 if ended else WAIT_TIMEOUT)
        finally:
            await asyncio.sleep(0)
            ended.append("innocent")
        return FOUND

    @scanner(pipeline="test", timeout=Timeout(total=0.05))
    async def hanging(_state: dict[str, Any]) -> list[Any]:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await stubborn.wait()
        ended.append("hanging")
        return FOUND

    @scanner(pipeline="test", timeout=Timeout(total=1))
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        if release.is_set():
            return FOUND
        await until(runner.abandoned)
        release.wait(30)
        stubborn.set()
        await asyncio.sleep(60)  # its time is up: this is cancelled
        return FOUND

    runner = fleet(innocent, hanging, culprit, policy=bare(timeout=Timeout(total=WAIT_TIMEOUT)), max_async=3)
    seen = status_by_name(runner.run({}))
    assert seen == {"innocent": Status.ERROR, "hanging": Status.TIMEOUT, "culprit": Status.TIMEOUT}
    assert {each.name for each in runner.abandoned()} == {"hanging", "culprit"}
    (name,) = {each.thread for each in runner.abandoned()}
    release.set()
    eventually(lambda: not runner.abandoned())
    eventually(lambda: sorted(ended) == ["hanging", "innocent"])
    eventually(lambda: not any(thread.name == name for thread in threading.enumerate()), "its thread has ended")
    assert set(status_by_name(runner.run({})).values()) == {Status.COMPLETED}


def test_the_end_of_a_culprit_does_not_hold_up_the_queue_of_the_next_loop(
    fleet: Fleet, bare: Bare, release: threading.Event, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(lane_module, "LOST_AFTER", 0.3)
    back = threading.Event()

    @scanner(pipeline="test", timeout=Timeout(total=0.1))
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        release.wait(30)
        return FOUND

    @scanner(pipeline="test")
    async def long(_state: dict[str, Any]) -> list[Any]:
        release.set()
        await until(back.is_set)
        return FOUND

    runner = fleet(culprit, long, *map(waiting, "abc"), policy=bare(), max_async=1, order="given")
    runner.run({}, only=["culprit"])
    lane = runner._fleet.lane
    assert lane is not None
    run = threading.Thread(target=lambda: reports.append(runner.run({}, only=["long", "a", "b", "c"])))
    reports: list[Any] = []
    run.start()
    eventually(lambda: release.is_set() and lane.counts()[2] == 0, "the culprit has come back")
    back.set()
    run.join(WAIT_TIMEOUT)
    assert set(status_by_name(reports[0]).values()) == {Status.COMPLETED}


# cost


def test_looks_do_not_multiply(fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    take = lane_module.Lane._take_due

    def counted(self: Any, now: float, loop: Any) -> Any:
        looks.append(now)
        return take(self, now, loop)

    monkeypatch.setattr(lane_module.Lane, "_take_due", counted)
    falling = [waiting(f"s{n}", 0.001, timeout=Timeout(total=0.045 - n / 1000)) for n in range(40)]
    runner = fleet(*falling, waiting("long", 1.0), policy=bare(), order="given")
    runner.run({})
    last = [look for look in looks if look > looks[-1] - 0.5]
    assert len(last) <= 20, "about one in 50 ms"


@pytest.mark.parametrize("count", [3000])
def test_closing_takes_time_in_proportion_to_what_is_under_way(
    count: int, fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    policy = bare(timeout=Timeout(total=WAIT_TIMEOUT))
    runner = fleet(*[waiting(f"s{n}", WAIT_TIMEOUT) for n in range(count)], policy=policy, max_async=count)
    lane = runner._fleet.lane
    assert lane is not None
    run = threading.Thread(target=lambda: runner.run({}), daemon=True)
    run.start()
    eventually(lambda: lane.counts()[1] == count, "all are under way")
    loop = lane._loop
    assert loop is not None
    before = time.process_time()  # of this process alone: others may be at work on the machine
    runner.close()
    eventually(loop.is_closed)
    assert time.process_time() - before < 1.5, "five times what it takes; a look at all slots for each slot takes more"


# processes

EXIT = """
import asyncio, threading, time
from resilient_scan import ScanRunner, Timeout, scanner

def make(n):
    @scanner(name=f"s{n}", pipeline="t", timeout=Timeout(total=0.1), retry=None, cache=None)
    async def scan(state):
        while True:
            try:
                await asyncio.sleep(SECONDS)
            except asyncio.CancelledError:
                pass
    return scan

@scanner(pipeline="t", timeout=Timeout(total=0.1), retry=None, cache=None)
async def blocks(state):
    await asyncio.sleep(0.05)
    time.sleep(60)

runner = ScanRunner([*map(make, range(50)), *([blocks] if BLOCKED else [])])
report = runner.run({}, deadline=1)
print(sorted({result.status.value for result in report.results.values()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [60, 0.0005], ids=["hung", "busy"])
@pytest.mark.parametrize("blocked", [False, True], ids=["free", "blocked"])
def test_the_interpreter_does_not_wait_for_a_lane(blocked: bool, seconds: float) -> None:
    code = EXIT.replace("BLOCKED", str(blocked)).replace("SECONDS", str(seconds))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['timeout']\n"
    assert "Traceback" not in done.stderr
    assert "ResourceWarning" not in done.stderr
    assert time.monotonic() - began < 15


FORK = """
import asyncio, os, threading, time
from resilient_scan import ScanRunner, scanner

ran = []

@scanner(pipeline="t", cache=None)
async def forks(state):
    await asyncio.sleep(0.05)
    pid = os.fork()
    await asyncio.sleep(0.2)
    return [{"ticker": "A" if pid else "CHILD"}]

def make(n):
    @scanner(name=f"s{n}", pipeline="t", cache=None)
    async def scan(state):
        await asyncio.sleep(0.1)
        os.write(1, b".")
        return []
    return scan

with ScanRunner([forks, *map(make, range(10))], listeners=()) as runner:
    report = runner.run({})
assert report.complete, report.to_dict()
assert [each.ticker for each in report.candidates] == ["A"]
os.wait()
"""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@needs_fork[0]
def test_a_child_that_a_coroutine_forks_makes_no_other_steps() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "." * 10, "each of the others, once"
    assert "a child that forks forked came back" in done.stderr


# who is named


def frame_in(filename: str, call: Callable[[], Any]) -> Any:
    names: dict[str, Any] = {"call": call}
    exec(compile("def somewhere():\n    return call()\n", filename, "exec"), names)
    return names["somewhere"]


@pytest.mark.parametrize(
    ("files", "place"),
    [
        (["/own/feed.py", "/env/lib/python3/site-packages/requests/api.py"], "/own/feed.py:2 in somewhere"),
        (["/env/lib/site-packages/a/b.py", threading.__file__], "/env/lib/site-packages/a/b.py:2 in somewhere"),
    ],
)
def test_the_scanners_own_line_is_named_rather_than_one_of_a_library(files: list[str], place: str) -> None:
    named: list[str] = []
    inner = frame_in(files[1], lambda: named.append(lane_module.where_in(sys._getframe(1))))
    thread = threading.Thread(target=frame_in(files[0], inner))  # none of the test's own frames is on its stack
    thread.start()
    thread.join()
    assert named == [place]


def test_a_thread_that_has_ended_is_nowhere() -> None:
    assert lane_module.where_in(None) == "an unknown place"
