"""What scanners in processes cost, and what they keep from others.

Start it by `uv run --group dev python -m tests.benchmarks.processes [rounds]`. The figures are milliseconds. Other work
makes everything late, so the load of the machine is printed. No test depends on these figures.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from resilient_scan import Policy, ScanContext, ScanRunner, Timeout, scanner
from resilient_scan.engines.process.children import Children
from tests.support import isolated
from tests.support.children import SERVE, descendants, exists, resources, take
from tests.support.waiting import eventually

PLAIN = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=60))
LATE: list[float] = []


def row(name: str, seconds: list[float]) -> None:
    """Print a line of the table."""
    took = sorted(1000 * each for each in seconds)
    p99 = took[min(len(took) - 1, round(0.99 * len(took)))]
    print(f"{name:<52}{len(took):>6}{statistics.median(took):>10.2f}{p99:>10.2f}{took[-1]:>10.2f}")


def measured(call: Callable[[], Any], rounds: int) -> list[float]:
    """Return the seconds that each of so many calls takes."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return took


def children(rounds: int) -> None:
    """Start, ask and replace children."""
    servers, seconds, again = [], [], []
    for _ in range(rounds):
        made = Children(2, SERVE)
        began = time.perf_counter()
        child = take(made)
        servers.append(time.perf_counter() - began)
        seconds += measured(lambda made=made: take(made), 1)
        for _ in range(10):
            child.kill()
            made.give_back(child)
            began = time.perf_counter()
            child = take(made)
            again.append(time.perf_counter() - began)
        made.close()
        made.join(5)
    row("the fork server and its first child", servers)
    row("a first child, once the server is up", seconds)
    row("another child in the place of one that was killed", again)


def scans(rounds: int) -> None:
    """Make scans that do nothing, one after the other."""
    for isolation in ("thread", "process"):
        with ScanRunner(
            [isolated.quick], policy=PLAIN, listeners=(), max_workers=1, isolation={"quick": isolation}
        ) as runner:
            runner.run()
            row(f"a warm scan in a {isolation}", measured(runner.run, rounds))


@scanner(pipeline="test")
def ticks(_state: dict[str, Any], context: ScanContext) -> list[Any]:
    """Say how late it wakes."""
    while context.remaining() > 58:
        due = time.perf_counter() + 0.005
        context.sleep(0.005)
        LATE.append(time.perf_counter() - due)
    return []


def deadlines(rounds: int) -> None:
    """Run into the limit of 0.3 s with a regular expression that holds the lock, while another scanner wakes often."""
    alone, over = [], []
    with ScanRunner([ticks], policy=PLAIN, listeners=(), max_workers=4) as runner:
        for _ in range(rounds // 4):
            LATE.clear()
            runner.run()
            alone += LATE
    row("others wake late, alone", alone)
    late = []
    with ScanRunner([isolated.quick, isolated.stuck, ticks], policy=PLAIN, listeners=(), max_workers=4) as runner:
        for _ in range(rounds):
            while runner.run(only=["quick"]).results["quick"].duration > 0.1:  # the scanner's module is being imported
                pass
            report = runner.run(only=["stuck"])
            over.append(report.results["stuck"].duration - 0.3)
        for _ in range(rounds // 4):
            LATE.clear()
            ending = threading.Thread(target=runner.run, kwargs={"only": ["ticks"]})
            ending.start()
            while ending.is_alive():
                runner.run(only=["stuck"])
            late += LATE
    row("a regular expression ends after its limit", over)
    row("others wake late meanwhile", late)


def leftovers(rounds: int) -> None:
    """Close runners amid hung scans, and see how long it takes until no process is left."""
    took = []
    for _ in range(rounds):
        with ScanRunner([isolated.quick, isolated.stuck], policy=PLAIN, listeners=(), max_workers=2) as runner:
            runner.run()
            pids = descendants(os.getpid())
        began = time.perf_counter()
        eventually(lambda pids=pids: not any(map(exists, pids)))
        took.append(time.perf_counter() - began)
    row("nothing is left after a close", took)


def main(rounds: int) -> None:
    """Print the table."""
    print(f"{'ms':<52}{'rounds':>6}{'median':>10}{'p99':>10}{'max':>10}   (load {os.getloadavg()[0]:.1f})")
    children(rounds)
    scans(100 * rounds)
    deadlines(rounds)
    leftovers(rounds)
    print(
        f"descriptors and threads {len(resources())}, children "
        f"{len(descendants(os.getpid()))}   (load {os.getloadavg()[0]:.1f})"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
