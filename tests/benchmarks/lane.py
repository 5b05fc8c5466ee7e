"""What thousands of coroutines cost, against `asyncio.gather` of the same: `uv run python -m tests.benchmarks.lane`.

*Many*: scanners that await a second each, all under way at a time, without a cache; the bare coroutines do nothing
else, and are measured before there is a fleet: a full garbage collection looks at each object of it, and so many
coroutines cause some, in some runs two and in others one. *Ours* is run after run, with Python's own settings; then the
same after `gc.freeze()`, and without collections (*uncollected*).
*Hanging*: 50 of 500 hang past their timeout, with a candidate, a log and a cleanup that awaits. *Blame*: one of 101
calls `time.sleep(2)`, twenty times over. A machine's speed drifts, and other work makes everything late: compare within
one run, on a machine that has nothing else to do. `test_lane_costs` guards what holds on any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from resilient_scan import Breaker, Policy, Retry, ScanContext, ScanRunner, Status, Timeout, scanner
from resilient_scan.events import BreakerChanged, LoopBlocked
from resilient_scan.testing import Recorder

POLICY = Policy(cache=None, retry=Retry(attempts=3), breaker=Breaker(), timeout=Timeout(total=30))


def resident() -> int:
    """Return the kB of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


class Peak:
    """What the process holds while all are under way."""

    def __init__(self) -> None:
        self.before = resident()
        self.kilobytes = self.threads = self.descriptors = 0

    def look(self) -> None:
        self.kilobytes = max(self.kilobytes, resident() - self.before)
        self.threads = max(self.threads, threading.active_count())
        self.descriptors = max(self.descriptors, len(list(Path("/proc/self/fd").iterdir())))


def waiting(number: int, seconds: float, act: Callable[[], None] = lambda: None) -> Any:
    """Make a scanner that awaits, and then calls `act`."""

    @scanner(name=f"s{number}", pipeline="p")
    async def scan(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(seconds)
        act()
        return []

    return scan


def do_nothing() -> None:
    pass


def freeze() -> None:
    """Have garbage collections look at nothing that there is now."""
    gc.collect()
    gc.freeze()


def measured(call: Callable[[], Any]) -> tuple[float, float]:
    """Return how many seconds a call takes, and how many of the processor."""
    began, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - cpu


def bare(count: int, seconds: float) -> None:
    """Await as many coroutines with nothing around them."""

    async def scan(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(seconds)
        return []

    async def main() -> None:
        await asyncio.gather(*[scan({}) for _ in range(count)])

    asyncio.run(main())


def many(count: int, rounds: int) -> None:
    """Print what `count` scanners of one second take."""
    times = {"bare": [measured(lambda: bare(count, 1.0)) for _ in range(rounds + 1)][1:]}
    peak: Peak | None = None
    fleet = [waiting(number, 1.0, lambda: peak.look() if peak else None) for number in (0,)]
    fleet += [waiting(number, 1.0) for number in range(1, count)]
    with ScanRunner(fleet, policy=POLICY, listeners=(), max_async=count) as runner:
        peak = Peak()  # the first run warms up
        runner.run({})
        print(
            f"\n{count:,} x 1 s: {peak.kilobytes / count:.1f} kB each, {peak.threads} threads, "
            f"{peak.descriptors} descriptors"
        )
        peak = None
        for name, prepare in {"ours": do_nothing, "frozen": freeze, "uncollected": gc.disable}.items():
            prepare()
            times[name] = [measured(lambda: runner.run({})) for _ in range(rounds)]
    gc.enable()
    gc.unfreeze()
    medians = {name: [statistics.median(part) for part in zip(*took, strict=True)] for name, took in times.items()}
    for name, (wall, cpu) in medians.items():
        print(
            f"{name:<12}{wall:>8.2f} s{cpu / count * 1e6:>8.1f} us of CPU each{wall / medians['bare'][0]:>8.2f} x bare"
        )


def hanging(number: int, cleaned: list[int]) -> Any:
    """Make a scanner that hangs with something found, and cleans up."""

    @scanner(name=f"h{number}", pipeline="p", timeout=Timeout(total=0.5), retry=None)
    async def scan(_state: dict[str, Any], context: ScanContext) -> AsyncIterator[Any]:
        context.log("tool", number=number)
        yield {"ticker": "AAPL"}
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)
            cleaned.append(number)
            raise

    return scan


def late(rounds: int) -> None:
    """Print how late hanging scans are handed over."""
    lateness: list[float] = []
    for _ in range(rounds):
        cleaned: list[int] = []
        fleet = [*[waiting(n, 0.8) for n in range(450)], *[hanging(n, cleaned) for n in range(50)]]
        with ScanRunner(fleet, policy=POLICY, listeners=()) as runner:
            report = runner.run({})
            hung = [result for name, result in report.results.items() if name.startswith("h")]
            assert all(r.status is Status.TIMEOUT and r.partial and len(r.tool_logs) == 1 for r in hung)
            assert report.counts[Status.COMPLETED] == 450
            lateness += [result.duration - 0.5 for result in hung]
            while len(cleaned) < 50:
                time.sleep(0.001)
            assert sorted(cleaned) == list(range(50)), "each was cancelled once"
    lateness.sort()
    p50, p99 = lateness[len(lateness) // 2], lateness[int(len(lateness) * 0.99)]
    print(f"\n50 hanging among 500, {rounds} runs: {p50 * 1000:.1f} ms late (p50), {p99 * 1000:.1f} (p99)   goal <= 15")


def blamed(rounds: int) -> None:
    """Print what one that blocks the loop costs a hundred others."""
    changed = opened = named = 0
    policy = Policy(cache=None, retry=None, breaker=Breaker(failures=1), timeout=Timeout(total=1))
    for _ in range(rounds):

        @scanner(pipeline="p", timeout=Timeout(total=30))
        async def culprit(_state: dict[str, Any]) -> list[Any]:
            await asyncio.sleep(0.05)
            time.sleep(2)  # noqa: ASYNC251 - what this is about
            return []

        recorder = Recorder()
        fleet = [*[waiting(n, 0.5) for n in range(100)], culprit]
        with ScanRunner(fleet, policy=policy, listeners=(recorder,)) as runner:
            report = runner.run({})
        changed += sum(r.status is not Status.COMPLETED for n, r in report.results.items() if n != "culprit")
        opened += len(recorder.of(BreakerChanged))
        named += [event.scanner for event in recorder.of(LoopBlocked)] == ["culprit"]
    print(f"\none time.sleep(2) among 100, {rounds} runs: {changed} statuses changed, {opened} breakers opened")
    print(f"only the culprit was named in {named} of them   goal: 0, 0, all")


def main() -> None:
    """Measure what the command line names, or all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["2000", "10000", "hanging", "blame", []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    wanted = options.what or ["2000", "10000", "hanging", "blame"]
    print(f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for what in wanted:
        if what.isdigit():
            many(int(what), options.rounds)
        elif what == "hanging":
            late(options.rounds)
        else:
            blamed(4 * options.rounds)


if __name__ == "__main__":
    main()
