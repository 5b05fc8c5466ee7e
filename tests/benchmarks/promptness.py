"""How prompt a run is, in seconds on the clock: its first result, its timeouts, its end."""

from __future__ import annotations

import random
import statistics
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


def length(rounds: int) -> float:
    """Return how long a run of unequal scanners takes, durations known, in proportion to the best there can be."""
    chance = random.Random(7)
    seconds = [min(1.0, chance.lognormvariate(-4.0, 1.0)) for _ in range(200)]
    slept = [0.0] * len(seconds)

    def sleeper(number: int) -> Any:
        def sleep(_state: object) -> list[Any]:
            began = time.perf_counter()
            time.sleep(seconds[number])
            slept[number] = time.perf_counter() - began  # what the machine has made of it
            return []

        return scanner(name=f"s{number}", pipeline="p", cache=None)(sleep)

    fleet = [sleeper(number) for number in range(len(seconds))]
    with ScanRunner(fleet, max_workers=WORKERS, listeners=()) as runner:
        runner.run()
        ratios = []
        for _ in range(rounds):
            duration = runner.run().duration
            ratios.append(duration / max(*slept, sum(slept) / WORKERS))
    return statistics.median(ratios)
