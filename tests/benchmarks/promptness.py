"""How prompt a run is, in seconds on the clock: its first result, its timeouts, its end."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from functools import partial
from typing import Any

from resilient_scan import Policy, ScanRunner, Status, Timeout, scanner

WORKERS = 8


def first_result(scanners: int, rounds: int) -> float:
    """Return how long it takes until the first of so many results that do nothing is there."""
    taken = []
    fleet = [scanner(name=f"s{number}", pipeline="p")(lambda _state: []) for number in range(scanners)]
    with ScanRunner(fleet, max_workers=WORKERS, policy=Policy(cache=None), listeners=()) as runner:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            results = runner.stream({})
            next(results)
            taken.append(time.perf_counter() - began)
            for _result in results:
                pass
    return statistics.median(taken[1:])


def _hang(over: threading.Event, _state: object) -> list[Any]:
    over.wait(60)
    return []


def lateness(scanners: int, rounds: int) -> tuple[float, float]:
    """Return by how much so many timeouts at the same moment are late: the median, and the 99th percentile."""
    late: list[float] = []
    for _ in range(rounds):
        policy = Policy(cache=None, retry=None, breaker=None, timeout=Timeout(total=0.5))
        over = threading.Event()
        fleet = [scanner(name=f"s{number}", pipeline="p")(partial(_hang, over)) for number in range(scanners)]
        with ScanRunner(fleet, max_workers=scanners, max_abandoned=scanners, policy=policy, listeners=()) as runner:
            results = runner.run({}).results.values()
            assert all(result.status is Status.TIMEOUT for result in results)
            late += [result.duration - 0.5 for result in results]
            over.set()
    late.sort()
    return late[len(late) // 2], late[int(len(late) * 0.99)]


class Unequal:
    """Scanners that sleep for as long as it gets; what the machine has made of that is measured as well."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds
        self._slept = [0.0] * len(seconds)
        self.fleet = [
            scanner(name=f"s{n}", pipeline="p", cache=None)(partial(self._sleep, n)) for n in range(len(seconds))
        ]

    def _sleep(self, number: int, _state: object) -> list[Any]:
        began = time.perf_counter()
        time.sleep(self._seconds[number])
        self._slept[number] = time.perf_counter() - began
        return []

    def ratio(self, runner: ScanRunner) -> float:
        """Run, and return how long that took in proportion to the best that there can be."""
        duration = runner.run().duration
        return duration / max(*self._slept, sum(self._slept) / WORKERS)


def length(rounds: int) -> float:
    """Return how long a run of unequal scanners takes, durations known, in proportion to the best there can be."""
    chance = random.Random(7)
    unequal = Unequal([min(1.0, chance.lognormvariate(-4.0, 1.0)) for _ in range(200)])
    with ScanRunner(unequal.fleet, max_workers=WORKERS, listeners=()) as runner:
        runner.run()
        return statistics.median(unequal.ratio(runner) for _ in range(rounds))


def first_run(rounds: int) -> tuple[float, float]:
    """Return the same for the first run of a process, where the longest of all is the last: without a store, and with.

    The store knows the durations from another process.
    """
    unequal, ratios = Unequal([0.02] * 199 + [0.5]), []
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/state.db"
        for place in (None, store):
            for number in range(rounds + 1):
                with ScanRunner(unequal.fleet, max_workers=WORKERS, listeners=(), store=place) as runner:
                    ratios.append((number, place, unequal.ratio(runner)))
    without = statistics.median(ratio for _, place, ratio in ratios if place is None)
    return without, statistics.median(ratio for number, place, ratio in ratios if place is not None and number)
