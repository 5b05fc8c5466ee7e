"""The lane: `async def` scanners on one event loop, which none of them can hold up at the expense of the others."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Limit,
    Policy,
    Retry,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.core import lane as lane_module
from resilient_scan.errors import WorkerLost
from resilient_scan.events import (
    BreakerChanged,
    Event,
    ExecutionEnded,
    LateCompletion,
    LoopBlocked,
    ThreadAbandoned,
)
from resilient_scan.stores.database import Database
from resilient_scan.testing import Recorder, healthy
from tests.support.coroutines import FOUND, status_by_name, waiting
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.waiting import WAIT_TIMEOUT


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_hundreds_wait_at_a_time_on_one_thread(fleet: Fleet, bare: Bare) -> None:
    threads: set[int] = set()
    inside: list[asyncio.Event] = []

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        async def scan(_state: dict[str, Any]) -> list[Any]:
            threads.add(threading.get_ident())
            inside.append(asyncio.Event())
            if len(inside) == 300:
                for event in inside:
                    event.set()
            await inside[number].wait()
            return FOUND

        return scan

    before = descriptors()
    policy = bare(timeout=Timeout(total=WAIT_TIMEOUT))
    runner = fleet(*[make(number) for number in range(300)], policy=policy, max_workers=2, order="given")
    report = runner.run({})
    assert set(status_by_name(report).values()) == {Status.COMPLETED}, "each waits until all of them do"
    assert len(threads) == 1
    assert descriptors() - before <= 5
    assert runner._fleet.pool.counts()["idle"] == 0, "no worker was started"


def test_at_most_max_async_are_under_way(fleet: Fleet, bare: Bare) -> None:
    inside, most = 0, 0

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        async def scan(_state: dict[str, Any]) -> list[Any]:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1
            return FOUND

        return scan

    report = fleet(*[make(number) for number in range(20)], policy=bare(), max_async=3).run({})
    assert set(status_by_name(report).values()) == {Status.COMPLETED}
    assert most == 3


def test_one_at_a_time_where_nothing_is_concurrent(fleet: Fleet, bare: Bare) -> None:
    order: list[str] = []

    def make(name: str) -> Any:
        @scanner(name=name, pipeline="test")
        async def scan(_state: dict[str, Any]) -> list[Any]:
            order.append(f"{name} begins")
            await asyncio.sleep(0.01)
            order.append(f"{name} ends")
            return FOUND

        return scan

    fleet(*map(make, "abc"), policy=bare(), concurrent=False).run({})
    assert order == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


def test_functions_methods_generators_and_objects_are_on_it(fleet: Fleet, bare: Bare) -> None:
    names: dict[str, str] = {}

    def note(name: str) -> list[Any]:
        names[name] = threading.current_thread().name
        return FOUND

    @scanner(pipeline="test")
    async def function(_state: dict[str, Any]) -> list[Any]:
        return note("function")

    @scanner(pipeline="test")
    async def generator(_state: dict[str, Any]) -> AsyncIterator[Any]:
        yield note("generator")[0]

    class Method:
        name, pipeline = "method", "test"

        async def scan(self, _state: dict[str, Any]) -> list[Any]:
            return note("method")

    class Called:
        async def __call__(self, _state: dict[str, Any]) -> list[Any]:
            return note("object")

    class Object:
        name, pipeline, scan = "object", "test", Called()

    @scanner(pipeline="test")
    def returns_one(_state: dict[str, Any]) -> Any:
        return function.scan(_state)

    report = fleet(function, generator, Method, Object, returns_one, policy=bare()).run({})
    assert set(status_by_name(report).values()) == {Status.COMPLETED}
    lane = {name for name, thread in names.items() if thread.startswith("resilient-scan-loop")}
    assert lane >= {"generator", "method", "object"}


# whose fault it is


class Blame(Recorder):
    """A listener that knows when a scanner has been named for blocking the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.named = threading.Event()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, LoopBlocked):
            self.named.set()

    def blocking(self, name: str, seconds: float = 0.0, **layers: Any) -> Any:
        """Make a scanner that blocks the loop until it is named, and some seconds more."""

        @scanner(name=name, pipeline="test", **layers)
        async def scan(_state: dict[str, Any]) -> list[Any]:
            self.threads.append(threading.current_thread().name)
            self.named.wait(WAIT_TIMEOUT)
            time.sleep(seconds)  # noqa: ASYNC251 - what this is about
            return FOUND

        self.threads = list[str]()
        return scan


def test_one_that_blocks_the_loop_costs_the_others_nothing_but_time(fleet: Fleet, bare: Bare) -> None:
    recorder = Blame()
    policy = bare(breaker=Breaker(failures=1), timeout=Timeout(total=1))
    innocents = [waiting(f"s{number}", 0.1) for number in range(100)]
    culprit = recorder.blocking("culprit", 1.0, timeout=Timeout(total=WAIT_TIMEOUT))
    runner = fleet(*innocents[:50], culprit, *innocents[50:], policy=policy, listeners=(recorder,))
    report = runner.run({})
    assert set(status_by_name(report).values()) == {Status.COMPLETED}
    assert not recorder.of(BreakerChanged)
    (blocked,) = recorder.of(LoopBlocked)
    assert blocked.scanner == "culprit"
    assert blocked.seconds >= 0.25
    assert re.search(r"test_lane\.py:\d+ in scan$", blocked.where)


def test_one_that_blocked_it_takes_a_worker_from_then_on(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    recorder = Blame()
    culprit = recorder.blocking("culprit")
    runner = fleet(culprit, waiting("innocent"), policy=bare(), listeners=(recorder,))
    for _ in range(3):
        assert set(status_by_name(runner.run({})).values()) == {Status.COMPLETED}
    assert recorder.threads[0].startswith("resilient-scan-loop")
    assert not any(thread.startswith("resilient-scan-loop") for thread in recorder.threads[1:])
    assert len(recorder.of(LoopBlocked)) == 1


def test_its_own_time_is_what_it_blocks_the_loop_for(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    freed: list[bool] = []

    @scanner(pipeline="test", timeout=Timeout(total=0.3))
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        freed.append(release.wait(30))
        return FOUND

    stream = fleet(culprit, waiting("innocent"), policy=bare()).stream({})
    first = next(stream)
    assert (first.scanner, first.status) == ("culprit", Status.TIMEOUT)
    assert not freed, "it is handed over while the loop is still blocked"
    release.set()
    assert [(result.scanner, result.status) for result in stream] == [("innocent", Status.COMPLETED)]


def test_a_thread_that_holds_the_interpreters_lock_is_nobodys_fault_here(fleet: Fleet, bare: Bare) -> None:
    recorder = Recorder()

    @scanner(pipeline="test")
    def holds(_state: dict[str, Any]) -> list[Any]:
        re.match("(a+)+$", "a" * 23 + "b")
        return FOUND

    innocents = [waiting(f"s{number}", 0.05) for number in range(30)]
    report = fleet(*innocents, holds, policy=bare(), listeners=(recorder,)).run({})
    assert set(status_by_name(report).values()) == {Status.COMPLETED}
    assert not recorder.of(LoopBlocked)


def test_a_loop_that_stays_blocked_is_given_up(
    fleet: Fleet, bare: Bare, release: threading.Event, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(lane_module, "LOST_AFTER", 0.6)
    monkeypatch.setattr(lane_module, "LOST_TIMES", 0)
    recorder = Recorder()
    began: dict[str, int] = {}

    def make(name: str, **layers: Any) -> Any:
        @scanner(name=name, pipeline="test", **layers)
        async def scan(_state: dict[str, Any]) -> list[Any]:
            began[name] = began.get(name, 0) + 1
            await asyncio.sleep(WAIT_TIMEOUT if began[name] == 1 else 0)
            return FOUND

        return scan

    @scanner(pipeline="test", timeout=Timeout(total=1))
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        while len(began) < 2:  # noqa: ASYNC110 - what other scanners do
            await asyncio.sleep(0.001)
        release.wait(30)
        return FOUND

    policy = bare(timeout=Timeout(total=WAIT_TIMEOUT), breaker=Breaker(failures=1))
    again = make("again", retry=Retry(attempts=2, base=0, cap=0))
    runner = fleet(make("once"), again, culprit, policy=policy, listeners=(recorder,))
    report = runner.run({})
    assert status_by_name(report) == {"once": Status.ERROR, "again": Status.COMPLETED, "culprit": Status.TIMEOUT}
    error = report.results["once"].error
    assert error is not None
    assert (error.kind, error.blame) == (WorkerLost.__name__, "local")
    assert [event.outcome for event in recorder.of(ExecutionEnded) if event.scanner == "once"] == ["local"]
    assert "culprit has blocked the event loop for" in error.message
    assert report.results["again"].attempts == 2
    assert began == {"once": 1, "again": 2}
    assert [change.scanner for change in recorder.of(BreakerChanged)] == ["culprit"]
    assert [thread.name for thread in runner.abandoned()] == ["culprit"]
    assert "release.wait" in runner.abandoned()[0].stack
    assert set(status_by_name(runner.run({}, only=["once", "again"])).values()) == {Status.COMPLETED}
    release.set()
    eventually(lambda: not runner.abandoned())
    assert began == {"once": 2, "again": 3}, "nothing that was lost goes on when the old loop is free"


@pytest.mark.slow
def test_a_loop_is_given_up_early_if_all_can_go_on_elsewhere(
    fleet: Fleet, bare: Bare, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times a timeout of 30 s would be longer than any run lasts."""
    monkeypatch.setattr(lane_module, "LOST_AFTER", 0.6)
    tries: list[int] = []

    @scanner(pipeline="test", retry=Retry(attempts=2, base=0, cap=0))
    async def sound(_state: dict[str, Any]) -> list[Any]:
        tries.append(1)
        await asyncio.sleep(0.05)
        return FOUND

    @scanner(pipeline="test")
    async def culprit(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0.01)
        release.wait(30)
        return FOUND

    runner = fleet(sound, culprit, policy=bare(timeout=Timeout(total=30)))
    first = next(stream := runner.stream({}, deadline=20))
    assert (first.scanner, first.status) == ("sound", Status.COMPLETED)
    assert first.attempts == len(tries) == 2
    release.set()
    assert [result.scanner for result in stream] == ["culprit"]


# nothing that waits in a layer, or in the context, blocks the loop


class Heart:
    """A coroutine on the loop, which beats while nothing blocks it; beats do not depend on how busy the machine is."""

    def __init__(self, ended: Callable[[], object]) -> None:
        self.beats = 0
        self._ended = ended

    def scanner(self) -> Any:
        """Make the scanner that beats until `ended()`."""

        @scanner(name="heart", pipeline="test", timeout=Timeout(total=WAIT_TIMEOUT))
        async def scan(_state: dict[str, Any]) -> list[Any]:
            while not self._ended():
                await asyncio.sleep(0.002)
                self.beats += 1
            return FOUND

        return scan

    async def begun(self) -> None:
        """Wait until it beats."""
        while not self.beats:  # noqa: ASYNC110 - what another scanner does
            await asyncio.sleep(0.001)

    def beats_in(self, wait: Callable[[], object]) -> bool:
        """Wait, again and again, until it has beaten a few times; say whether it ever has."""
        before = self.beats
        return any(self.beats >= before + 3 for _ in range(100) if (wait(), True))


@pytest.mark.parametrize("inside", ["coroutine", "task"])
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda context: context.sleep(0.01), id="sleep"),
        pytest.param(lambda context: context.map(lambda _item: time.sleep(0.01), [1, 2], concurrency=2), id="map"),
        pytest.param(lambda context: context.shared("key", lambda: time.sleep(0.01), ttl=0), id="shared"),
        pytest.param(lambda context: context.guarded("source", lambda: time.sleep(0.01)), id="guarded"),
        pytest.param(lambda context: context.before_request(), id="rate", marks=pytest.mark.slow),
    ],
)
def test_the_contexts_waits_let_the_others_go_on(
    act: Callable[[ScanContext], Any], inside: str, fleet: Fleet, bare: Bare
) -> None:
    went_on: list[bool] = []
    children = 3 if inside == "task" else 2
    heart = Heart(lambda: len(went_on) == children)

    async def child(context: ScanContext) -> None:
        await heart.begun()
        went_on.append(heart.beats_in(lambda: act(context)))

    @scanner(pipeline="test", limit=Limit("api", rate="2/1s"))
    async def one(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        if inside == "task":
            await asyncio.gather(child(context), child(context))
        else:
            await child(context)
        return FOUND

    @scanner(pipeline="test", limit=Limit("api"))
    async def other(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        await child(context)
        return FOUND

    policy = bare(breaker=Breaker(), timeout=Timeout(total=WAIT_TIMEOUT))
    report = fleet(heart.scanner(), one, other, policy=policy).run({})
    assert set(status_by_name(report).values()) == {Status.COMPLETED}
    assert went_on == [True] * children


def test_a_pause_between_attempts_lets_the_others_go_on(fleet: Fleet, bare: Bare) -> None:
    tries: list[int] = []
    heart = Heart(lambda: len(tries) == 2)

    @scanner(pipeline="test", retry=Retry(attempts=2, base=0.1, cap=0.1))
    async def one(_state: dict[str, Any]) -> list[Any]:
        await heart.begun()
        tries.append(heart.beats)
        if len(tries) == 1:
            raise OSError("down")
        return FOUND

    class High:
        """The jitter's whole width."""

        def uniform(self, _low: float, high: float) -> float:
            return high

        random = staticmethod(lambda: 0.5)

    policy = bare(timeout=Timeout(total=WAIT_TIMEOUT))
    report = fleet(heart.scanner(), one, policy=policy, random=High()).run({})
    assert report.results["one"].attempts == 2
    assert tries[1] > tries[0]


def test_the_store_is_called_elsewhere(bare: Bare, quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callers: list[str] = []
    run = Database._run

    def noted(self: Database, work: Any, *, writing: bool) -> Any:
        callers.append(threading.current_thread().name)
        return run(self, work, writing=writing)

    monkeypatch.setattr(Database, "_run", noted)

    @scanner(pipeline="test", cache=None)
    async def down(_state: dict[str, Any]) -> list[Any]:
        raise OSError("down")

    policy = Policy(cache=Cache(ttl=300), breaker=Breaker(failures=2), retry=None, timeout=Timeout(total=WAIT_TIMEOUT))
    scanners = [*[waiting(f"s{number}", 0.01) for number in range(40)], down]
    with ScanRunner(scanners, policy=policy, store=f"sqlite:///{quick_path}/scan.db", listeners=()) as runner:
        first, again = (list(status_by_name(runner.run({"n": 1})).values()) for _ in range(2))
    assert first == [Status.COMPLETED] * 40 + [Status.ERROR]
    assert again == [Status.CACHED] * 40 + [Status.ERROR]
    assert callers
    assert not [caller for caller in callers if caller.startswith("resilient-scan-loop")]


# its end


def test_hanging_ones_are_handed_over_on_time_with_what_they_have_found(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    cleaned: list[str] = []

    def hanging(number: int) -> Any:
        @scanner(name=f"h{number}", pipeline="test", timeout=Timeout(total=0.3))
        async def scan(_state: dict[str, Any], context: ScanContext) -> AsyncIterator[Any]:
            context.log("tool", number=number)
            yield {"ticker": "AAPL"}
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                cleaned.append(f"h{number}")

        return scan

    recorder = Recorder()
    runner = fleet(
        *map(hanging, range(20)), *[waiting(f"s{n}") for n in range(100)], policy=bare(), listeners=(recorder,)
    )
    report = runner.run({})
    for number in range(20):
        result = report.results[f"h{number}"]
        assert (result.status, result.partial, len(result.candidates)) == (Status.TIMEOUT, True, 1)
        assert [entry["number"] for entry in result.tool_logs] == [number]
        assert 0.3 <= result.duration < 5
    assert sum(result.status is Status.COMPLETED for result in report.results.values()) == 100
    eventually(lambda: len(cleaned) == 20)
    eventually(lambda: not runner.abandoned())


def test_one_that_swallows_its_cancel_is_listed_and_costs_no_thread(
    fleet: Fleet, bare: Bare, eventually: Eventually
) -> None:
    ends: list[asyncio.Event] = []
    loops: list[asyncio.AbstractEventLoop] = []

    @scanner(pipeline="test", timeout=Timeout(total=0.1))
    async def stubborn(_state: dict[str, Any]) -> list[Any]:
        ends.append(asyncio.Event())
        loops.append(asyncio.get_running_loop())
        while not ends[0].is_set():
            with suppress(asyncio.CancelledError):
                await ends[0].wait()
        return FOUND

    events: list[Event] = []
    runner = fleet(stubborn, waiting("well"), policy=bare(), listeners=(events.append,))
    threads = threading.active_count()
    assert status_by_name(runner.run({})) == {"stubborn": Status.TIMEOUT, "well": Status.COMPLETED}
    (hung,) = runner.abandoned()
    assert (hung.name, hung.holds_place) == ("stubborn", False)
    assert "await ends[0].wait()" in hung.stack
    assert threading.active_count() - threads <= 3, "the loop, the watchdog, and one that sends events"
    assert status_by_name(runner.run({})) == {"stubborn": Status.REJECTED, "well": Status.COMPLETED}
    eventually(lambda: any(isinstance(event, ThreadAbandoned) for event in events))
    loops[0].call_soon_threadsafe(ends[0].set)
    eventually(lambda: not runner.abandoned())
    eventually(lambda: any(isinstance(event, LateCompletion) for event in events))
    assert status_by_name(runner.run({})) == {"stubborn": Status.COMPLETED, "well": Status.COMPLETED}


def test_what_a_scanner_leaves_running_ends_with_its_attempt(fleet: Fleet, bare: Bare) -> None:
    ended: list[str] = []

    async def straggler() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    @scanner(pipeline="test")
    async def one(_state: dict[str, Any]) -> list[Any]:
        asyncio.get_running_loop().create_task(straggler())
        await asyncio.sleep(0)
        return FOUND

    assert status_by_name(fleet(one, policy=bare()).run({})) == {"one": Status.COMPLETED}
    assert ended == ["cancelled"]


def test_one_that_stops_the_loop_or_changes_its_tasks_harms_nobody(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    async def stops(_state: dict[str, Any]) -> list[Any]:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)
        return FOUND

    @scanner(pipeline="test")
    async def changes(_state: dict[str, Any]) -> list[Any]:
        asyncio.get_running_loop().set_task_factory(lambda *_args, **_options: None)
        return FOUND

    report = fleet(stops, changes, waiting("well"), policy=bare()).run({})
    assert status_by_name(report) == {"stops": Status.COMPLETED, "changes": Status.ERROR, "well": Status.COMPLETED}


@pytest.mark.parametrize("queued", [False, True])
def test_closing_ends_what_is_under_way_and_what_is_queued(queued: bool, fleet: Fleet, bare: Bare) -> None:
    runner = fleet(*[waiting(f"s{n}", 60) for n in range(5)], policy=bare(), max_async=2 if queued else 100)
    reports: list[Any] = []
    run = threading.Thread(target=lambda: reports.append(runner.run({})))
    run.start()
    while runner._fleet.lane.counts()[1] < 2:
        time.sleep(0.001)
    runner.close()
    run.join(5)
    assert set(status_by_name(reports[0]).values()) == {Status.SKIPPED}


def test_workers_and_the_lane_work_side_by_side(fleet: Fleet, bare: Bare) -> None:
    report = fleet(*[waiting(f"a{n}") for n in range(20)], *[healthy(f"s{n}") for n in range(20)], policy=bare()).run(
        {}
    )
    assert set(status_by_name(report).values()) == {Status.COMPLETED}
