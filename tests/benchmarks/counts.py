"""What a scan costs in what does not depend on the machine or its load: bytecodes, and objects for the collector.

Start it by `uv run --group dev python -m tests.benchmarks.counts`. A *bytecode* is one step of Python's interpreter, in
our code or in that of a library in Python; steps in C are not counted. The difference between a run of 200 scanners and
one of 100 is taken, so what a run costs by itself is left out. An object that the garbage collector *tracks* costs a
look at each collection, again and again: 10,000 scanners of 130 objects each took half a second for each full one.
`test_costs` holds these figures.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

from prometheus_client import CollectorRegistry

import resilient_scan
from resilient_scan import Breaker, Policy, PrometheusMetrics, Retry, ScanRunner, Timeout, scanner
from resilient_scan.metrics import exposition

STEP = 100
SHOWN = 20
PACKAGE = f"{Path(resilient_scan.__file__).parent}/"
RUNS_A_SCRAPE = 10
KINDS = {
    "miss": {"hit": False},
    "hit": {"hit": True},
    "miss, metrics": {"hit": False, "metrics": True},
    "hit, metrics": {"hit": True, "metrics": True},
}
COROUTINES = Policy(cache=None, retry=Retry(attempts=3), breaker=Breaker(), timeout=Timeout(total=30))


def quick(number: int) -> Any:
    return scanner(name=f"s{number}", pipeline="p")(lambda _state: [])


def waiting(number: int, act: Callable[[], Any] | None = None) -> Any:
    """Make a coroutine that waits; one that is to act does so while all the others wait."""

    @scanner(name=f"s{number}", pipeline="p")
    async def scan(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(0.3 if act is None else 0.15)
        if act is not None:
            act()
        return []

    return scan


class Bytecodes:
    """Counts what all threads execute that are started while it is entered, as long as it is told to count."""

    def __init__(self) -> None:
        self.counting = False
        self.by_function: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        threading.settrace(self._called)
        return self

    def __exit__(self, *_raised: object) -> None:
        threading.settrace(self._before)  # type: ignore[arg-type] # None is what it was

    def _called(self, frame: FrameType, _what: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._stepped

    def _stepped(self, frame: FrameType, what: str, _argument: Any) -> Any:
        if what == "opcode" and self.counting:
            code = frame.f_code
            file = code.co_filename
            name = file.removeprefix(PACKAGE) if file.startswith(PACKAGE) else f"{Path(file).parent.name}/"
            self.by_function[f"{name} {code.co_qualname}"] += 1
        return self._stepped

    def of(self, call: Callable[[], Any]) -> Counter[str]:
        """Return how many bytecodes a call takes, by function, on this thread and all others."""
        self.by_function = Counter()
        sys.settrace(self._called)
        self.counting = True
        try:
            call()
        finally:
            self.counting = False
            sys.settrace(self._before)
        return self.by_function


def _runs(runner: ScanRunner, numbers: Iterable[int], *, hit: bool) -> None:
    for number in numbers:
        runner.run({"trade_date": "2026-11-24", "run": 0 if hit else number})


def bytecodes(*, hit: bool, metrics: bool = False, rounds: int = 3, store: str | None = None) -> Counter[str]:
    """Return the bytecodes of one scan that misses the cache, or hits it, by function.

    Args:
        hit: whether it hits.
        metrics: whether it is counted and timed; then a scrape follows on ten runs, which is shared out among them.
        rounds: to take the least of.
        store: the URL of one.
    """
    runs = RUNS_A_SCRAPE if metrics else 1
    with Bytecodes() as counter:
        found = []
        for count in (STEP, 2 * STEP):
            registry = CollectorRegistry()
            listeners = (PrometheusMetrics(registry),) if metrics else ()
            with ScanRunner([quick(number) for number in range(count)], listeners=listeners, store=store) as runner:
                _runs(runner, (0, 0), hit=hit)
                exposition(registry)  # makes the series
                costs = [
                    counter.of(partial(_runs, runner, range(begin, begin + runs), hit=hit))
                    + (counter.of(partial(exposition, registry)) if metrics else Counter())
                    for begin in range(1, 1 + rounds * runs, runs)
                ]
                found.append(min(costs, key=lambda one: one.total()))
    few, many = found
    return Counter({name: round((many[name] - few[name]) / STEP / runs) for name in many})


def steps() -> dict[str, dict[str, str]]:
    """Return where they are, in the functions that take `SHOWN` of them or more: those of a miss and of a hit."""
    counts = {name: bytecodes(**how) for name, how in KINDS.items()}
    names = sorted(set().union(*counts.values()), key=lambda name: (-counts["miss"][name], name))
    large = [name for name in names if max(count[name] for count in counts.values()) >= SHOWN]
    rows = {"all": {kind: f"{count.total():,}" for kind, count in counts.items()}}
    for name in large:
        rows[f"`{name}`"] = {kind: str(count[name] or "") for kind, count in counts.items()}
    rest = {kind: sum(count[name] for name in names if name not in large) for kind, count in counts.items()}
    rows[f"all others, each below {SHOWN}"] = {kind: str(count) for kind, count in rest.items()}
    return rows


def tracked() -> int:
    """Return how many objects the collector tracks."""
    gc.collect()
    return len(gc.get_objects())


def setup_objects(*, coroutines: bool, count: int = STEP) -> float:
    """Return the tracked objects of a runner, for each of its scanners."""
    make, policy = (waiting, COROUTINES) if coroutines else (quick, Policy())
    ScanRunner([make(0)], policy=policy, listeners=()).close()  # what is imported and kept once
    fleet = [make(number) for number in range(count)]
    before = tracked()
    with ScanRunner(fleet, policy=policy, listeners=()) as runner:
        return (tracked() - before) / len(runner.names)


def flight_objects(count: int = 2 * STEP) -> float:
    """Return the tracked objects of a scan that awaits on the lane."""
    seen: list[int] = []
    fleet = [waiting(number) for number in range(count - 1)]
    fleet.append(waiting(count, lambda: seen.append(tracked())))
    with ScanRunner(fleet, policy=COROUTINES, listeners=()) as runner:
        runner.run()
        before = tracked()
        runner.run()
    return (seen[1] - before) / count


def left_objects(count: int = STEP) -> float:
    """Return the tracked objects that each coroutine of a run leaves to the collector, which alone could free them."""
    with ScanRunner([waiting(number) for number in range(count)], policy=COROUTINES, listeners=()) as runner:
        runner.run()
        gc.disable()
        try:
            before = tracked()
            runner.run()
            return (len(gc.get_objects()) - before) / count
        finally:
            gc.enable()


def main() -> None:
    """Print the figures."""
    for name, how in KINDS.items():
        found = bytecodes(**how)
        print(f"{name}: {found.total()} bytecodes")
        for file, count in found.most_common(20):
            if count:
                print(f"{count:>8} {file}")
    print(f"{setup_objects(coroutines=False):.0f} tracked objects for each scanner")
    print(f"{setup_objects(coroutines=True):.0f} for each `async def` scanner, {flight_objects():.0f} while it waits")
    print(f"{left_objects():.0f} left when it has ended")


if __name__ == "__main__":
    main()
