"""The runner under many users at once: each scan has one result, each number is true, nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import (
    Breaker,
    Cache,
    Limit,
    Policy,
    Retry,
    ScanContext,
    ScanResult,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.events import AttemptEnded, ExecutionEnded, RunEnded, RunStarted, ScanEnded
from resilient_scan.observe.metrics import PrometheusMetrics
from resilient_scan.testing import Recorder
from tests.support.fixtures import Crew, Eventually


def moody(name: str, chance: Random, **layers: Any) -> Any:
    """A scanner that answers, fails, yields, or sleeps a little."""

    @scanner(name=name, pipeline="test", **layers)
    def scan(_state: dict[str, Any], context: ScanContext) -> Any:
        mood = chance.random()
        if mood < 0.2:
            raise ValueError("x")
        if mood < 0.4:
            context.sleep(mood / 100)
        return ({"ticker": "A"} for _ in range(2)) if mood > 0.8 else [{"ticker": "A"}]

    return scan


def moody_coroutine(name: str, chance: Random, **layers: Any) -> Any:
    """The same as a coroutine: it awaits, or waits in its context, or leaves a task and a generator behind."""

    async def pages() -> AsyncIterator[dict[str, Any]]:
        while True:
            await asyncio.sleep(0)
            yield {"ticker": "A"}

    @scanner(name=name, pipeline="test", **layers)
    async def scan(_state: dict[str, Any], context: ScanContext) -> Any:
        mood = chance.random()
        if mood < 0.2:
            raise ValueError("x")
        if mood < 0.4:
            context.sleep(mood / 100)
        if mood > 0.7:
            asyncio.get_running_loop().create_task(asyncio.sleep(60))
        await asyncio.sleep(mood / 500)
        async for page in pages():
            return [page]
        return []

    return scan


def quiet(runner: ScanRunner, before: set[threading.Thread]) -> bool:
    """Say whether no thread of a closed runner is left."""
    return not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("resilient-scan")]


def check_story(recorder: Recorder, names: tuple[str, ...]) -> None:
    """Each run began and ended once, and each of its scans ended once."""
    scans = Counter((event.run_id, event.result.scanner) for event in recorder.of(ScanEnded))
    runs = [event.run_id for event in recorder.of(RunStarted)]
    assert sorted(runs) == sorted(event.run_id for event in recorder.of(RunEnded))
    assert scans == Counter((run, name) for run in runs for name in names)


def check_metrics(recorder: Recorder, registry: CollectorRegistry) -> None:
    """What Prometheus counts is what was reported."""
    told = Counter((event.result.scanner, event.result.status.value) for event in recorder.of(ScanEnded))
    for (name, status), count in told.items():
        labels = {"scanner": name, "pipeline": "test", "status": status}
        assert registry.get_sample_value("resilient_scan_scans_total", labels) == count
    executions = Counter((event.scanner, event.outcome) for event in recorder.of(ExecutionEnded))
    for (name, outcome), count in executions.items():
        labels = {"scanner": name, "pipeline": "test", "outcome": outcome}
        assert registry.get_sample_value("resilient_scan_executions_total", labels) == count


def check_nothing_is_left(runner: ScanRunner) -> None:
    for stack in runner._fleet.stacks.values():
        assert stack.hung.count == 0
        assert stack.cache is None or not stack.cache._flights
    assert all(provider.taken == provider.waiting == 0 for provider in runner._fleet.providers.values())


def leave_after(count: int, stream: Iterator[ScanResult]) -> None:
    """Take a few results and leave."""
    ended = [result.scanner for result in islice(stream, count)]
    assert len(set(ended)) == len(ended)
    stream.close()  # type: ignore[attr-defined]


POLICIES = {
    "bare": Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=5)),
    "cached": Policy(cache=Cache(ttl=0.0005), retry=None, breaker=None, timeout=Timeout(total=5)),
    "all": Policy(
        cache=Cache(ttl=0.001, stale_if_error=0.001),
        retry=Retry(attempts=2, base=0.0001, cap=0.0001, budget=0.5),
        breaker=Breaker(failures=4, open_for=0.002, open_cap=0.004),
        limit=Limit("acme", concurrency=2),
        timeout=Timeout(total=0.5),
    ),
    "hasty": Policy(
        cache=Cache(ttl=0.001),
        retry=Retry(attempts=2, base=0, cap=0),
        breaker=Breaker(failures=50, open_for=0.001),
        timeout=Timeout(total=0.004, max_abandoned=4),
    ),
    "attempts": Policy(
        cache=None,
        retry=Retry(attempts=3, base=0, cap=0),
        breaker=Breaker(failures=50, open_for=0.001),
        timeout=Timeout(total=0.02, attempt=0.003, max_abandoned=6),
    ),
}


@pytest.mark.parametrize("make", [moody, moody_coroutine], ids=["threads", "lane"])
@pytest.mark.parametrize("kind", POLICIES)
def test_users_at_once(kind: str, make: Any, crew: Crew, eventually: Eventually) -> None:
    """Run, stream, leave, hit deadlines and disable, all at the same time."""
    before = set(threading.enumerate())
    recorder, registry, chance = Recorder(), CollectorRegistry(), Random(3)
    names = tuple(f"s{number}" for number in range(4))
    runner = ScanRunner(
        [make(name, chance) for name in names],
        policy=POLICIES[kind],
        max_workers=3,
        listeners=[recorder, PrometheusMetrics(registry)],
    )
    statuses: list[Status] = []

    def run(number: int) -> None:
        for turn in range(60):
            report = runner.run({"day": turn % 2}, deadline=None if turn % 3 else 0.001 * (turn % 5))
            assert tuple(report.results) == names
            statuses.extend(result.status for result in report.results.values())

    def stream() -> None:
        for turn in range(60):
            leave_after(1 + turn % 4, runner.stream({"day": turn % 2}))

    def operate() -> None:
        for _ in range(60):
            runner.disable("s0")
            runner.enable("s0")
            runner.abandoned()

    crew(lambda: run(0), lambda: run(1), stream, operate)
    runner.close()
    eventually(lambda: quiet(runner, before))
    check_story(recorder, names)
    assert Status.COMPLETED in statuses
    check_metrics(recorder, registry)
    check_nothing_is_left(runner)


def test_one_execution_a_key_at_a_time(crew: Crew, eventually: Eventually) -> None:
    """Deadlines end scans, not executions: none is asked twice at once, however many runs come and go."""
    inside = threading.Lock()
    asked: list[int] = []

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        assert inside.acquire(blocking=False), "two executions of one key"
        asked.append(1)
        inside.release()
        return [{"ticker": "A"}]

    recorder = Recorder()
    policy = Policy(cache=Cache(ttl=1e-9, jitter=0), retry=None, breaker=None)
    runner = ScanRunner([one], policy=policy, listeners=[recorder], max_workers=4)

    def run(number: int) -> Counter[Status]:
        seen: Counter[Status] = Counter()
        for turn in range(250):
            deadline = [None, None, 0.0, 0.0002, 0.001][(turn + number) % 5]
            (result,) = runner.run({}, deadline=deadline).results.values()
            seen[result.status] += 1
        return seen

    seen = sum(crew(run, times=4), Counter())
    eventually(lambda: runner._fleet.pool.counts()["busy"] == 0)
    assert not {Status.ERROR, Status.REJECTED} & set(seen)
    assert len(asked) == len(recorder.of(ExecutionEnded)) == len(recorder.of(AttemptEnded))
    assert seen[Status.COMPLETED] <= len(asked)
    assert sum(seen.values()) == 1000
    cache = runner._fleet.stacks["one"].cache
    assert cache is not None
    assert not cache._flights
    runner.close()


@pytest.mark.parametrize("make", [moody, moody_coroutine], ids=["threads", "lane"])
def test_close_in_the_middle(make: Any, crew: Crew, eventually: Eventually) -> None:
    before = set(threading.enumerate())
    for turn in range(60):
        recorder = Recorder()
        chance = Random(turn)
        names = ("s0", "s1", "s2")
        runner = ScanRunner(
            [make(name, chance) for name in names],
            policy=POLICIES[("bare", "cached", "all")[turn % 3]],
            max_workers=2,
            listeners=[recorder],
        )
        began = threading.Semaphore(0)

        def run(runner: ScanRunner = runner, began: threading.Semaphore = began) -> bool:
            try:
                while True:
                    began.release()
                    assert len(runner.run({}).results) == 3
            except RuntimeError as error:
                return "closed" in str(error)

        def close(turn: int = turn, runner: ScanRunner = runner, began: threading.Semaphore = began) -> bool:
            for _ in range(2 + turn % 5):
                began.acquire()
            runner.close()
            return True

        assert all(crew(run, run, close))
        check_story(recorder, names)
        for provider in runner._fleet.providers.values():
            eventually(lambda provider=provider: provider.taken == provider.waiting == 0)  # type: ignore[misc]
    eventually(lambda: quiet(runner, before))


def test_hung_threads_end_while_others_are_left_behind(crew: Crew, eventually: Eventually) -> None:
    """The watchdog gives up on threads in the very moment in which they end."""
    before = set(threading.enumerate())
    pause = threading.Event()

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        pause.wait(0.002)
        return []

    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=10_000), timeout=Timeout(0.002, max_abandoned=50))
    recorder = Recorder()
    runner = ScanRunner([one], policy=policy, max_workers=4, max_abandoned=50, listeners=[recorder])

    def run(_number: int) -> Counter[Status]:
        return Counter(runner.run({}).results["one"].status for _ in range(120))

    seen = sum(crew(run, times=4), Counter())
    assert set(seen) <= {Status.COMPLETED, Status.TIMEOUT, Status.REJECTED}
    eventually(lambda: runner.abandoned() == [])
    runner.close()
    eventually(lambda: quiet(runner, before))
    assert runner._fleet.stacks["one"].hung.count == 0
    ended = Counter(event.outcome for event in recorder.of(ExecutionEnded))
    assert ended["success"] == seen[Status.COMPLETED]
    assert ended["timeout"] == seen[Status.TIMEOUT]


def test_runs_of_asyncio_that_are_cancelled(eventually: Eventually) -> None:
    recorder, chance = Recorder(), Random(4)
    names = ("s0", "s1")
    runner = ScanRunner([moody(name, chance) for name in names], policy=POLICIES["cached"], listeners=[recorder])

    async def one(number: int) -> bool:
        run = asyncio.ensure_future(runner.arun({"number": number % 3}))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        if number % 2:
            run.cancel()
        try:
            return len((await run).results) == 2
        except asyncio.CancelledError:
            return True

    async def main() -> list[bool]:
        return [done for _ in range(20) for done in await asyncio.gather(*map(one, range(8)))]

    assert all(asyncio.run(main()))
    eventually(lambda: not runner._runs.active)
    eventually(lambda: len(recorder.of(RunStarted)) == len(recorder.of(RunEnded)))
    check_story(recorder, names)
    runner.close()
