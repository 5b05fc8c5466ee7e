"""Other libraries with the same work to do: a thousand calls at once, or a thousand answers from a cache.

Each is used as its documentation says. They wrap single calls: none of them copies an answer for its caller, or reports
on a run. Those for coroutines run on one loop that is there before, next to a run of `async def` scanners; those for
threads on a pool of 8.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from resilient_scan import Cache, Policy, ScanRunner, scanner
from tests.benchmarks.measuring import Call
from tests.peers import measure
from tests.peers.costs import FULL
from tests.peers.stacks import load

CALLS, WORKERS = 1000, 8
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def installed(over: ExitStack) -> str:
    """Have them importable, after all that is there already; return why that cannot be, if so."""
    packages = Path(over.enter_context(tempfile.TemporaryDirectory(prefix="resilient-scan-rivals-")))
    trouble = measure.install(packages) or measure.install(packages, REQUIREMENTS)
    sys.path.append(str(packages))
    return trouble


def nothing(_state: object = None) -> list[Any]:
    """Find nothing."""
    return []


async def nothing_async(_state: object = None) -> list[Any]:
    """Find nothing, as a coroutine."""
    return []


def threads(over: ExitStack) -> dict[str, Call]:
    """Return who protects a thousand calls that do nothing, on a pool of threads."""
    pool = over.enter_context(ThreadPoolExecutor(WORKERS))
    calls: dict[str, Call] = {"B": lambda: [future.result() for future in [pool.submit(nothing) for _ in range(CALLS)]]}
    for name in ("by hand", "nopanic", "interlock-cb", "pyresilience"):
        calls[name] = load(name).repeated({f"s{number}": nothing for number in range(CALLS)}, FULL)
    calls["Dask, local threads"] = _dask()
    calls["here"] = _run([scanner(name=f"s{n}", pipeline="p")(nothing) for n in range(CALLS)], over, Policy(cache=None))
    return calls


def _dask() -> Call:
    import dask
    import dask.threaded

    def run() -> None:
        tasks = [dask.delayed(nothing, pure=False)() for _ in range(CALLS)]
        dask.compute(*tasks, scheduler="threads", num_workers=WORKERS)

    return run


def _run(fleet: list[Any], over: ExitStack, policy: Policy) -> Call:
    runner = over.enter_context(
        ScanRunner(fleet, policy=policy, listeners=(), max_workers=WORKERS, max_async=len(fleet))
    )

    def run() -> None:
        assert runner.run({}).complete

    return run


class Loop:
    """A loop that lasts."""

    def __init__(self, over: ExitStack) -> None:
        self.runner = over.enter_context(asyncio.Runner())

    def gathered(self, *functions: Callable[[], Awaitable[Any]]) -> Call:
        """Return a function that awaits all of them at once."""

        async def gather() -> None:
            await asyncio.gather(*[function() for function in functions])

        return lambda: self.runner.run(gather())


def coroutines(over: ExitStack) -> dict[str, Call]:
    """Return who protects a thousand coroutines that do nothing."""
    loop = Loop(over)
    calls: dict[str, Call] = {"asyncio.gather, unprotected": loop.gathered(*[nothing_async] * CALLS)}
    calls["anyio task group, unprotected"] = _anyio(loop)
    for name in ("nopanic", "interlock-cb", "pyresilience"):
        stack = load(name)
        calls[name] = loop.gathered(*[stack.protect_async(nothing_async, FULL) for _ in range(CALLS)])
    calls["hyx"] = loop.gathered(*loop.runner.run(_made(_hyx)))
    fleet = [scanner(name=f"s{n}", pipeline="p")(nothing_async) for n in range(CALLS)]
    calls["here"] = _run(fleet, over, Policy(cache=None))
    return calls


async def _made(make: Callable[[], Any]) -> list[Any]:
    """Make them where a loop runs, as hyx needs it."""
    return [make() for _ in range(CALLS)]


def _anyio(loop: Loop) -> Call:
    import anyio

    async def grouped() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(CALLS):
                group.start_soon(nothing_async)

    return lambda: loop.runner.run(grouped())


def _hyx() -> Callable[[], Awaitable[Any]]:
    from hyx.circuitbreaker import consecutive_breaker
    from hyx.retry import retry
    from hyx.timeout import timeout

    breaker = consecutive_breaker(failure_threshold=5, recovery_time_secs=60)

    @retry(on=OSError, attempts=3)
    @breaker
    @timeout(30)
    async def call() -> list[Any]:
        return []

    return call


def caches(over: ExitStack) -> dict[str, Call]:
    """Return who has a thousand answers in memory, each under a key of its own."""
    loop = Loop(over)
    calls: dict[str, Call] = {}
    for name in ("by hand", "nopanic", "pyresilience"):
        protected = [load(name).protect(nothing, _cached()) for _ in range(CALLS)]
        calls[name] = lambda protected=protected: [call() for call in protected]  # type: ignore[misc]
    calls["cashews"] = loop.gathered(*[_cashews(number) for number in range(CALLS)])
    calls["aiocache"] = loop.gathered(*[_aiocache(number) for number in range(CALLS)])
    fleet = [scanner(name=f"s{n}", pipeline="p")(nothing) for n in range(CALLS)]
    calls["here"] = _run(fleet, over, Policy(cache=Cache(ttl=600)))
    return calls


def _cached() -> Any:
    from tests.peers.stacks.base import Wanted

    return Wanted(ttl=600)


def _cashews(number: int) -> Callable[[], Awaitable[Any]]:
    from cashews import mem

    return mem(ttl=600, key=f"s{number}")(nothing_async)  # type: ignore[no-any-return]


def _aiocache(number: int) -> Callable[[], Awaitable[Any]]:
    from aiocache import cached

    return cached(ttl=600, key=f"s{number}")(nothing_async)  # type: ignore[no-any-return]


def disks(over: ExitStack) -> dict[str, Call]:
    """Return who reads a thousand answers from a file that another process may have written."""
    import diskcache

    place = Path(over.enter_context(tempfile.TemporaryDirectory(prefix="resilient-scan-disk-")))
    kept = over.enter_context(diskcache.Cache(place / "diskcache"))
    for number in range(CALLS):
        kept[f"s{number}"] = []
    store = f"sqlite:///{place}/store.db"
    fleet = [scanner(name=f"s{n}", pipeline="p")(nothing) for n in range(CALLS)]
    options: dict[str, Any] = {"listeners": (), "store": store, "policy": Policy(cache=Cache(ttl=600))}
    with ScanRunner(fleet, **options) as writer:
        assert writer.run({}).complete

    def restarted() -> None:
        with ScanRunner(fleet, **options) as reader:
            assert all(result.status == "cached" for result in reader.run({}).results.values())

    return {"diskcache": lambda: [kept[f"s{n}"] for n in range(CALLS)], "here, in a new runner": restarted}


GROUPS: dict[str, tuple[str, Callable[[ExitStack], dict[str, Call]]]] = {
    "threads": ("A thousand calls that do nothing, on 8 threads (retry, breaker, timeout)", threads),
    "coroutines": ("A thousand coroutines that do nothing, at once (retry, breaker, timeout)", coroutines),
    "caches": ("A thousand answers from memory", caches),
    "disks": ("A thousand answers from a file", disks),
}
