"""What a run costs, as ratios measured in one interleaved run.

Start it by `uv run --group dev python tests/benchmarks/speed.py [rounds]`.

B is a bare `ThreadPoolExecutor`: submit and result of 1,000 calls that do nothing, on 8 workers. N is the stack that
people write by hand: `cachetools.cached` with a lock, `tenacity.retry`, pybreaker, a ThreadPoolExecutor and
prometheus_client's `labels()`. Ours is a run of 1,000 distinct scanners that do nothing, each with its cache, retry,
breaker and timeout, on a state of two short values, and the report read. A machine's speed drifts; the medians of
interleaved rounds do not care. No test depends on these figures.
"""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cachetools
import prometheus_client
import pybreaker
import tenacity

from resilient_scan import PrometheusMetrics, ScanRunner, scanner

SCANNERS, WORKERS = 1000, 8


def do_nothing() -> list[Any]:
    return []


class Bare:
    """B."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(WORKERS)

    def __call__(self) -> None:
        futures = [self.pool.submit(do_nothing) for _ in range(SCANNERS)]
        for future in futures:
            future.result()


class ByHand:
    """N."""

    def __init__(self) -> None:
        registry = prometheus_client.CollectorRegistry()
        self.pool = ThreadPoolExecutor(WORKERS)
        self.done = prometheus_client.Counter("done", "-", ("scanner", "status"), registry=registry)
        self.took = prometheus_client.Histogram("took", "-", ("scanner",), registry=registry)
        self.calls = [self._wrapped() for _ in range(SCANNERS)]
        self.run = 0

    def _wrapped(self) -> Callable[[int], list[Any]]:
        breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)

        @cachetools.cached(cachetools.TTLCache(1024, 300), lock=threading.Lock())
        @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_random_exponential(0.5, 10))
        def call(_run: int) -> list[Any]:
            return breaker.call(do_nothing)

        return call

    def _scan(self, number: int) -> list[Any]:
        began = time.perf_counter()
        found = self.calls[number](self.run)
        self.took.labels(f"s{number}").observe(time.perf_counter() - began)
        self.done.labels(f"s{number}", "completed").inc()
        return found

    def __call__(self) -> None:
        self.run += 1
        futures = [self.pool.submit(self._scan, number) for number in range(SCANNERS)]
        for future in futures:
            future.result(timeout=30)


class Ours:
    """A run of the fleet; `fresh` makes each run miss the cache."""

    def __init__(self, *, metrics: bool, fresh: bool) -> None:
        fleet = [scanner(name=f"s{number}", pipeline="p")(lambda _state: []) for number in range(SCANNERS)]
        listeners = (PrometheusMetrics(prometheus_client.CollectorRegistry()),) if metrics else ()
        self.runner = ScanRunner(fleet, max_workers=WORKERS, listeners=listeners)
        self.fresh = fresh
        self.run = 0

    def __call__(self) -> None:
        self.run += self.fresh
        report = self.runner.run({"trade_date": "2026-11-24", "run": self.run})
        assert report.complete
        assert not report.candidates


def measured(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def costs(rounds: int) -> None:
    """Print the table of costs per scan."""
    rows: dict[str, tuple[Callable[[], None], str]] = {
        "B": (Bare(), ""),
        "N": (ByHand(), ""),
        "miss": (Ours(metrics=False, fresh=True), "<= 2.3 x B and <= 0.35 x N"),
        "miss, metrics": (Ours(metrics=True, fresh=True), "<= 3.5 x B and <= 0.45 x N"),
        "hit": (Ours(metrics=False, fresh=False), "<= 0.7 x B"),
        "hit, metrics": (Ours(metrics=True, fresh=False), "<= 1.0 x B"),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, (call, _) in rows.items():
            took = measured(call)
            if number:  # the first round warms up
                times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{SCANNERS} scanners, {WORKERS} workers, median of {rounds} rounds, Python {sys.version.split()[0]}")
    print(f"{'':<16}{'us a scan':>10}{'x B':>8}{'x N':>8}   goal")
    for name, median in medians.items():
        cost, of_b, of_n = median / SCANNERS * 1e6, median / medians["B"], median / medians["N"]
        print(f"{name:<16}{cost:>10.1f}{of_b:>8.2f}{of_n:>8.2f}   {rows[name][1]}")


def length() -> None:
    """Print how long a run of unequal scanners takes, durations known, against the best there can be."""
    chance = random.Random(7)
    seconds = [min(1.0, chance.lognormvariate(-4.0, 1.0)) for _ in range(200)]

    def sleeper(number: int) -> Any:
        return scanner(name=f"s{number}", pipeline="p", cache=None)(lambda _state: time.sleep(seconds[number]) or [])

    bound = max(*seconds, sum(seconds) / WORKERS)
    with ScanRunner([sleeper(number) for number in range(200)], max_workers=WORKERS, listeners=()) as runner:
        runner.run()
        known = statistics.median(runner.run().duration for _ in range(3))
    print(f"\n200 log-normal scanners, durations known: {known:.3f} s")
    print(f"{known / bound:.3f} x max(longest, sum / {WORKERS})   goal <= 1.03")


if __name__ == "__main__":
    costs(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
    length()
