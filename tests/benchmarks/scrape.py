"""What being watched costs: processor time, lines, lateness of others, and memory.

Start it by `uv run --group dev python tests/benchmarks/scrape.py [scanners]`.

A fleet with some trouble is scraped through the control endpoint, back to back, as no Prometheus would. In the same
process a thread ticks every millisecond, and a small fleet makes runs of about 5 ms: how late the ticks come and how
long the runs take is what a scrape costs others. Absolute figures depend on the machine; the ratio to the encoder of
prometheus_client, measured in turns, does not. No test depends on either.
"""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry

from resilient_scan import ControlService, Policy, PrometheusMetrics, Retry, ScanRunner, scanner
from resilient_scan.observe.metrics import exposition

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
POLICY = Policy(retry=Retry(attempts=3, base=0, cap=0))
SECONDS = 6.0  # of each measurement of lateness


def member(number: int) -> Any:
    """Return a scanner; one in twenty always fails, another one every other time."""
    calls = [0]

    def scan(_state: dict[str, Any]) -> list[Any]:
        calls[0] += 1
        if number % 20 == 0 or (number % 20 == 1 and calls[0] % 2):
            raise OSError("down")
        return [{"ticker": "A"}]

    return scanner(name=f"scanner_{number:04d}", pipeline=f"pipeline_{number % 5}")(scan)


def built(scanners: int) -> tuple[ScanRunner, CollectorRegistry]:
    """Return a runner and the registry that it counts into, and print what the metrics add to its cost."""
    fleet = [member(number) for number in range(scanners)]
    costs: dict[str, list[float]] = {"without": [], "with": []}
    for name in ("without", "with") * 4:
        listeners = () if name == "without" else (PrometheusMetrics(CollectorRegistry()),)
        gc.collect()
        began = time.process_time()
        runner = ScanRunner(fleet, policy=POLICY, listeners=listeners)
        costs[name].append((time.process_time() - began) / scanners * 1e3)
        runner.close()
    without, with_metrics = (statistics.median(costs[name]) for name in ("without", "with"))
    gc.collect()
    tracemalloc.start()
    registry = CollectorRegistry()
    runner = ScanRunner(fleet, policy=POLICY, listeners=(PrometheusMetrics(registry),))
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0] / scanners / 1024
    tracemalloc.stop()
    print(f"construction: {with_metrics:.3f} ms a scanner, {without:.3f} without metrics; {memory:.1f} KiB")
    return runner, registry


def lines(registry: CollectorRegistry, scanners: int) -> float:
    return sum(b'scanner="' in line for line in exposition(registry)[1].splitlines()) / scanners


def costs(registry: CollectorRegistry, rounds: int = 5) -> None:
    """Print the processor time of a scrape, in turns with prometheus_client's own encoder on the same numbers."""
    ways: dict[str, Callable[[], Any]] = {
        "ours, text": lambda: exposition(registry),
        "ours, OpenMetrics": lambda: exposition(registry, OPENMETRICS),
        "generate_latest": lambda: prometheus_client.generate_latest(registry),
        "generate_latest, OpenMetrics": lambda: prometheus_client.openmetrics.exposition.generate_latest(registry),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    for name, seconds in times.items():
        print(f"{name:<30}{statistics.median(seconds):>8.3f} s of processor time")
    ratio = statistics.median(times["ours, OpenMetrics"]) / statistics.median(times["generate_latest, OpenMetrics"])
    print(f"{'':<30}{ratio:>8.2f} x, ours to its own, OpenMetrics")


@contextmanager
def scraped(url: str | None) -> Iterator[list[float]]:
    """Scrape back to back until the end, and yield how long each scrape took."""
    took: list[float] = []
    if url is None:
        yield took
        return
    ends = threading.Event()

    def scrape() -> None:
        request = urllib.request.Request(url, headers={"Accept": OPENMETRICS})
        while not ends.is_set():
            began = time.perf_counter()
            with urllib.request.urlopen(request) as answer:
                while answer.read(1 << 16):
                    pass
            took.append(time.perf_counter() - began)

    thread = threading.Thread(target=scrape)
    thread.start()
    yield took
    ends.set()
    thread.join()


def lateness(url: str | None, what: str) -> None:
    """Print how late a thread's ticks are and how long small runs take."""
    late: list[float] = []
    runs: list[float] = []
    ends = threading.Event()

    def tick() -> None:
        while not ends.is_set():
            began = time.perf_counter()
            time.sleep(0.001)
            late.append(time.perf_counter() - began - 0.001)

    def sleeper(number: int) -> Any:
        return scanner(name=f"small_{number}", pipeline="p", cache=None)(lambda _state: time.sleep(0.004) or [])

    with scraped(url) as took, ScanRunner([sleeper(number) for number in range(8)], listeners=()) as runner:
        ticking = threading.Thread(target=tick)
        ticking.start()
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            began = time.perf_counter()
            runner.run({})
            runs.append(time.perf_counter() - began)
        ends.set()
        ticking.join()
    scrapes = f"; {len(took)} scrapes of {statistics.median(took):.2f} s" if took else ""
    print(
        f"{what}: ticks late by {percentile(late, 50):.1f} ms (p50), {percentile(late, 99):.1f} (p99), "
        f"{max(late) * 1e3:.1f} (worst); "
        f"runs {percentile(runs, 50):.1f} ms (p50), {percentile(runs, 99):.1f} (p99){scrapes}"
    )


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1] * 1e3


def main(scanners: int) -> None:
    """Print everything."""
    runner, registry = built(scanners)
    with runner, ControlService(runner, registry=registry) as service:
        print(f"lines a scanner: {lines(registry, scanners):.1f} before the first run", end=", ")
        for day in range(3):
            for _ in range(2):  # the second one is answered from the cache
                runner.run({"day": day})
        print(f"{lines(registry, scanners):.1f} after some; {len(exposition(registry)[1]) / 1e6:.2f} MB")
        costs(registry)
        lateness(None, "without scrapes")
        lateness(f"{service.url}/metrics", "with scrapes")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
