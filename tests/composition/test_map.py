"""`runner.map`: one scanner over many inputs, each a scan with limits of its own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    ConfigError,
    Limit,
    Retry,
    ScanContext,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.core.map_run import LEAST_ROOM, REFRESH_INTERVAL
from resilient_scan.core.runs import AHEAD
from resilient_scan.events import RunEnded, RunStarted, ScanEnded
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock, Recorder, broken
from tests.support.fixtures import Background, Bare, Eventually, Fleet

Read = Callable[..., list[Any]]


def numbers(most: int) -> Iterator[dict[str, int]]:
    return ({"n": number} for number in range(most))


@scanner(pipeline="test")
def double(state: dict[str, Any]) -> list[Any]:
    return [{"ticker": f"T{2 * state['n']}"}]


@scanner(pipeline="test", name="double")
async def double_async(state: dict[str, Any]) -> list[Any]:
    await asyncio.sleep(0)
    return [{"ticker": f"T{2 * state['n']}"}]


def by_map(runner: ScanRunner, inputs: Any, into: list[Any] | None = None, **options: Any) -> list[Any]:
    found = [] if into is None else into
    found.extend(runner.map("double", inputs, **options))  # what came before an error, too
    return found


def by_amap(runner: ScanRunner, inputs: Any, into: list[Any] | None = None, **options: Any) -> list[Any]:
    found = [] if into is None else into

    async def read() -> None:
        async for pair in runner.amap("double", inputs, **options):
            found.append(pair)

    asyncio.run(read())
    return found


@pytest.fixture(params=[by_map, by_amap], ids=["map", "amap"])
def read(request: pytest.FixtureRequest) -> Read:
    found: Read = request.param
    return found


class Held:
    """A scanner of which each scan waits until it is let go."""

    def __init__(self) -> None:
        self.let_go: dict[int, threading.Event] = {}
        self.begun: list[int] = []
        self.read = 0

    def scanner(self) -> Any:
        @scanner(name="held", pipeline="test", timeout=Timeout(total=100))
        def scan(state: dict[str, Any], context: ScanContext) -> list[Any]:
            self.begun.append(state["n"])
            event = self.let_go[state["n"]]
            while not event.is_set():
                context.sleep(0.01)
            return []

        return scan

    def inputs(self, most: int = 10**6, free: Callable[[int], bool] = lambda _: False) -> Iterator[dict[str, int]]:
        for number in range(most):
            self.read += 1
            event = self.let_go[number] = threading.Event()
            if free(number):
                event.set()
            yield {"n": number}


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    for event in made.let_go.values():
        event.set()


# what comes of it


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("which", [double, double_async], ids=["threads", "coroutines"])
def test_each_input_comes_back_with_a_result_of_its_own(
    which: Any, ordered: bool, concurrent: bool, read: Read, fleet: Fleet, bare: Bare
) -> None:
    runner = fleet(which, policy=bare(), concurrent=concurrent)
    found = read(runner, numbers(400), ordered=ordered)
    assert sorted(value["n"] for value, _ in found) == list(range(400))
    assert all([each.ticker for each in result.candidates] == [f"T{2 * value['n']}"] for value, result in found)
    assert {result.status for _, result in found} == {Status.COMPLETED}
    if ordered:
        assert [value["n"] for value, _ in found] == list(range(400))


def test_results_come_as_they_end_unless_they_are_to_be_in_order(
    fleet: Fleet, bare: Bare, held: Held, background: Background, eventually: Eventually
) -> None:
    runner = fleet(held.scanner(), policy=bare(), max_workers=2)
    pairs = runner.map("held", held.inputs(3, free=lambda number: number > 0), ordered=False)
    assert [next(pairs)[0]["n"] for _ in range(2)] == [1, 2]
    held.let_go[0].set()
    assert [value["n"] for value, _ in pairs] == [0]
    held.let_go.clear()
    pairs = runner.map("held", held.inputs(3, free=lambda number: number > 0))
    reading = background(list, pairs)
    eventually(lambda: len(held.begun) == 6)
    held.let_go[0].set()
    assert [value["n"] for value, _ in reading.result(5)] == [0, 1, 2]


def test_a_scan_has_the_limits_that_it_has_in_a_run(fleet: Fleet, bare: Bare) -> None:
    clock, calls = FakeClock(auto=True), []

    @scanner(pipeline="test")
    def flaky(state: dict[str, Any], context: ScanContext) -> list[Any]:
        calls.append(state["n"])
        if state["n"] == 1:
            context.sleep(100)
        if (state["n"] == 2 and calls.count(2) == 1) or state["n"] >= 4:
            raise OSError("down")
        return []

    policy = bare(
        timeout=Timeout(total=5), retry=Retry(attempts=2, base=0, cap=0, on=(OSError,)), breaker=Breaker(failures=5)
    )
    runner = fleet(flaky, policy=policy, clock=clock, concurrent=False)
    results = [result for _, result in runner.map("flaky", numbers(8))]
    assert {result.queue_wait for result in results} == {0.0}  # counted from when its turn came
    assert [(result.status.value, result.attempts) for result in results] == [
        *(("completed", 1), ("timeout", 1), ("completed", 2), ("completed", 1)),
        *(("error", 2), ("error", 2), ("error", 1), ("rejected", 0)),
    ]
    assert runner.breaker("flaky") == "open"


def test_equal_inputs_are_one_execution_and_answers_are_cached(fleet: Fleet, bare: Bare, read: Read) -> None:
    runner = fleet(double, policy=bare(cache=Cache(ttl=300)))
    same = [{"n": number % 10} for number in range(500)]
    statuses = [result.status for _, result in read(runner, same)]
    assert (statuses.count(Status.COMPLETED), statuses.count(Status.CACHED)) == (10, 490)


def test_a_scanner_out_of_service_is_not_called(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(double, policy=bare())
    runner.disable("double", reason="x")
    assert {result.status for _, result in runner.map("double", numbers(300))} == {Status.DISABLED}


def test_a_provider_bounds_how_many_are_under_way(fleet: Fleet, bare: Bare) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    @scanner(pipeline="test", limit=Limit("acme", concurrency=2))
    def asks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        context.sleep(0.001)
        with lock:
            at_once -= 1
        return []

    found = list(fleet(asks, policy=bare()).map("asks", numbers(100)))
    assert {result.status for _, result in found} == {Status.COMPLETED}
    assert most == 2


def test_scans_are_reported_and_no_run_is(fleet: Fleet, bare: Bare, read: Read) -> None:
    recorder = Recorder()
    runner = fleet(double, policy=bare(), listeners=(recorder,))
    read(runner, numbers(50))
    assert recorder.of(RunStarted, RunEnded) == []
    ended = recorder.of(ScanEnded)
    ids = [event.run_id.partition("-")[::2] for event in ended]
    assert len({run for run, _ in ids}) == 1
    assert sorted(int(number) for _, number in ids) == list(range(1, 51))
    assert {flight.run_id for flight in runner.flights("double")} == {event.run_id for event in ended}


# back-pressure


@pytest.mark.parametrize("ordered", [True, False])
def test_a_million_inputs_are_not_read_ahead(ordered: bool, fleet: Fleet, bare: Bare, held: Held) -> None:
    runner = fleet(held.scanner(), policy=bare(), max_workers=4)
    pairs = runner.map("held", held.inputs(free=lambda _number: True), ordered=ordered)
    for _ in range(50):
        next(pairs)
    assert held.read <= 50 + LEAST_ROOM
    pairs.close()  # type: ignore[attr-defined]
    assert held.read <= 50 + LEAST_ROOM


def test_a_slow_first_input_keeps_a_bounded_number_of_others_waiting(
    fleet: Fleet, bare: Bare, held: Held, background: Background, eventually: Eventually
) -> None:
    runner = fleet(held.scanner(), policy=bare(), max_workers=2)
    pairs = runner.map("held", held.inputs(free=lambda number: number > 0))
    first = background(next, pairs)
    eventually(lambda: len(held.begun) == LEAST_ROOM)
    assert held.read == LEAST_ROOM
    held.let_go[0].set()
    assert first.result(5)[0] == {"n": 0}
    pairs.close()  # type: ignore[attr-defined]


def test_no_more_inputs_wait_for_a_worker_than_are_needed(
    fleet: Fleet, bare: Bare, held: Held, background: Background, eventually: Eventually
) -> None:
    """Other runs share the workers: their scans would queue behind all of them."""
    runner = fleet(held.scanner(), policy=bare(), max_workers=2)
    pairs = runner.map("held", held.inputs())
    first = background(next, pairs)
    eventually(lambda: (len(held.begun), runner._fleet.pool.queued) == (2, 2))
    assert held.read == 2 * AHEAD
    held.let_go[0].set()
    assert first.result(5)[0] == {"n": 0}
    pairs.close()  # type: ignore[attr-defined]


def test_a_result_that_is_ready_comes_before_the_next_input(fleet: Fleet, bare: Bare, eventually: Eventually) -> None:
    """Reading one may block, as where inputs come over a socket."""
    runner, seen = fleet(double, policy=bare()), []

    def inputs() -> Iterator[dict[str, int]]:
        yield {"n": 0}
        eventually(lambda: [run.outbox.qsize() for run in runner._runs.active] == [1])
        yield {"n": 1}
        assert seen == [0]

    for value, _ in runner.map("double", inputs()):
        seen.append(value["n"])
    assert seen == [0, 1]


# how it ends


@pytest.mark.parametrize("how", ["close", "garbage"])
def test_a_reader_that_leaves_leaves_nothing_behind(
    how: str, fleet: Fleet, bare: Bare, held: Held, eventually: Eventually
) -> None:
    runner = fleet(held.scanner(), policy=bare(), max_workers=4)
    inputs = held.inputs(free=lambda number: number == 0)
    pairs = runner.map("held", inputs)
    assert next(pairs)[0] == {"n": 0}
    gone = weakref.ref(pairs)
    if how == "close":
        pairs.close()  # type: ignore[attr-defined]
    del pairs
    gc.collect()
    assert gone() is None
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)
    eventually(lambda: not runner._runs.active)
    assert runner.abandoned() == []
    before = held.read
    assert next(inputs) == {"n": before}  # nobody else goes on to read


def test_an_error_of_the_inputs_comes_after_what_was_begun(fleet: Fleet, bare: Bare, read: Read) -> None:
    def inputs() -> Iterator[dict[str, int]]:
        yield from numbers(30)
        raise OSError("the file is cut off")

    seen: list[Any] = []
    runner = fleet(double, policy=bare())
    with pytest.raises(OSError, match="the file is cut off") as caught:
        read(runner, inputs(), seen)
    assert [value["n"] for value, _ in seen] == list(range(30))
    assert caught.value.__notes__ == ["raised by the inputs of a map of double, after 30 of them"]


def test_an_input_that_is_no_state_is_an_error_of_the_inputs(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(double, policy=bare())
    pairs = runner.map("double", iter([{"n": 1}, "AAPL", {"n": 2}]))  # type: ignore[list-item]
    assert next(pairs)[0] == {"n": 1}
    with pytest.raises(TypeError, match="input 2 of a map of double: state must be a dict, got str"):
        next(pairs)
    with pytest.raises(TypeError, match="not iterable"):
        runner.map("double", 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is no scanner 'duble'; did you mean 'double'"):
        runner.map("duble", [])
    assert list(runner.map("double", [])) == []


def test_closing_the_runner_ends_it_and_says_that_inputs_are_left(
    fleet: Fleet, bare: Bare, held: Held, background: Background, eventually: Eventually
) -> None:
    runner = fleet(held.scanner(), policy=bare(), max_workers=2)
    pairs = runner.map("held", held.inputs())
    found: list[Any] = []
    reading = background(lambda: [found.append(result.status) for _, result in pairs])
    eventually(lambda: (len(held.begun), runner._fleet.pool.queued) == (2, 2))
    runner.close()
    with pytest.raises(RuntimeError, match="the runner was closed: the map ends after input 4, and"):
        reading.result(5)
    assert found == [Status.SKIPPED] * 4
    with pytest.raises(RuntimeError, match="the runner is closed"):
        runner.map("held", [])


def test_an_interrupt_ends_it(fleet: Fleet, bare: Bare, held: Held, eventually: Eventually) -> None:
    def inputs() -> Iterator[dict[str, int]]:
        yield from held.inputs(3)
        eventually(lambda: len(held.begun) == 2)
        raise KeyboardInterrupt

    runner = fleet(held.scanner(), policy=bare(), max_workers=2)
    with pytest.raises(KeyboardInterrupt):
        list(runner.map("held", inputs()))
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)
    assert not runner._runs.active


def test_it_cannot_be_called_by_its_own_scanner(fleet: Fleet, bare: Bare) -> None:
    runners: list[ScanRunner] = []

    @scanner(pipeline="test")
    def nested(_state: dict[str, Any]) -> list[Any]:
        return list(runners[0].map("nested", []))

    runners.append(fleet(nested, policy=bare()))
    ((_, result),) = runners[0].map("nested", [{}])
    assert result.error is not None
    assert "a scanner runs the runner that it is part of" in result.error.message


# asyncio


def test_the_loop_goes_on_and_a_cancel_ends_the_map(
    fleet: Fleet, bare: Bare, held: Held, eventually: Eventually
) -> None:
    runner = fleet(held.scanner(), policy=bare(), max_workers=2)

    async def both() -> None:
        async def drain() -> None:
            async for _ in runner.amap("held", held.inputs()):
                pass

        task = asyncio.create_task(drain())
        while len(held.begun) < 2:  # noqa: ASYNC110 - it does not block the loop
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(both())
    assert not runner._runs.active
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)
    assert held.read <= 2 * AHEAD


def test_leaving_an_asynchronous_map_ends_it(fleet: Fleet, bare: Bare, held: Held, eventually: Eventually) -> None:
    runner = fleet(held.scanner(), policy=bare(), max_workers=2)

    async def one() -> Any:
        pairs = runner.amap("held", held.inputs(free=lambda number: number == 0))
        async for value, _ in pairs:
            await pairs.aclose()  # type: ignore[attr-defined]
            return value
        return None

    assert asyncio.run(one()) == {"n": 0}
    assert not runner._runs.active
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)


def test_coroutines_are_as_many_at_a_time_as_the_lane_takes(fleet: Fleet, bare: Bare) -> None:
    at_once, most = 0, 0

    @scanner(pipeline="test")
    async def waits(_state: dict[str, Any]) -> list[Any]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        return []

    runner = fleet(waits, policy=bare(), max_async=200, max_workers=2)
    found = list(runner.map("waits", numbers(400), ordered=False))
    assert {result.status for _, result in found} == {Status.COMPLETED}
    assert most > 100


# what it learns meanwhile


def test_the_store_has_its_votes_and_no_run(fleet: Fleet, bare: Bare, tmp_path: Path) -> None:
    store, policy = f"sqlite:///{tmp_path}/state.db", bare(breaker=Breaker(failures=3))
    mine, other = (fleet(broken("bad"), policy=policy, store=store) for _ in range(2))
    list(mine.map("bad", numbers(2)))
    assert mine.history() == ()
    other.run()
    assert other.breaker("bad") == "open"


def test_what_other_processes_order_is_seen_amid_a_map(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    mine, other = (fleet(double, policy=bare(), store=store, clock=clock, concurrent=False) for _ in range(2))
    pairs = mine.map("double", numbers(10**6))
    assert next(pairs)[1].status is Status.COMPLETED
    other.disable("double", reason="x")
    assert next(pairs)[1].status is Status.COMPLETED
    clock.advance(REFRESH_INTERVAL)
    statuses = [result.status for _, result in itertools.islice(pairs, 3)]
    assert statuses[-1] is Status.DISABLED
    pairs.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("on_lane", [False, True])
def test_a_reader_keeps_nobody_waiting_for_what_has_to_ask_again(
    on_lane: bool, eventually: Eventually, background: Background
) -> None:
    """A cached answer cannot be copied. The execution that asks again leads, and another run waits for it, too."""

    class Odd:
        def __deepcopy__(self, _memo: Any) -> Odd:
            if not broken_by_now:
                return Odd()
            go_on.wait(5)
            raise TypeError("no copy of it")

    def answer(state: dict[str, Any]) -> list[Any]:
        if "odd" in state:
            return [{"ticker": "A", "odd": Odd()}]
        go_on.wait(5)
        return []

    async def later(state: dict[str, Any]) -> list[Any]:
        if "odd" not in state:
            await asyncio.to_thread(go_on.wait, 5)
        return answer(state)

    def inputs() -> Iterator[dict[str, Any]]:
        yield {"odd": 1}
        yield {"n": 1}
        (of,) = runner._runs.active
        go_on.set()
        eventually(lambda: of.outbox.qsize() == 2, "the copy has failed, and there is something to read")
        yield {"n": 2}

    broken_by_now: list[bool] = []
    go_on = threading.Event()
    options = {"name": "one", "pipeline": "test", "cache": Cache(ttl=100), "retry": None}
    with ScanRunner([scanner(**options)(later if on_lane else answer)], listeners=()) as runner:
        assert runner.run({"odd": 1}).complete
        broken_by_now.append(True)
        results = iter(runner.map("one", inputs(), ordered=False))
        assert next(results)[0] == {"n": 1}
        assert background(runner.run, {"odd": 1}).result(5).complete
        assert [value for value, _result in results] != []
