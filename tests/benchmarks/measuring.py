"""Measure calls in turns: each round calls every one of them once, so that a machine that slows down slows all.

What is compared is the processor's time of this process. Where others keep the cores busy, the time on the clock says
more about them than about the call; the processor's time only suffers from their use of its caches.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping

import msgspec

Call = Callable[[], object]


class Cost(msgspec.Struct, frozen=True):
    """What a call took, over all rounds.

    Attributes:
        median, least: seconds of the processor.
        clock: median seconds on the clock.
    """

    median: float
    least: float
    clock: float

    def each(self, calls: int) -> Cost:
        """Return the cost of one of so many calls."""
        return Cost(self.median / calls, self.least / calls, self.clock / calls)


def in_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, Cost]:
    """Call each of them once a round; the first round warms up and does not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            gc.collect()  # or one pays for what another has left
            began, cpu = time.perf_counter(), time.process_time()
            call()
            spent = time.process_time() - cpu, time.perf_counter() - began
            if number:
                taken[name].append(spent)
    return {name: _cost(pairs) for name, pairs in taken.items()}


def _cost(pairs: list[tuple[float, float]]) -> Cost:
    cpu, clock = zip(*pairs, strict=True)
    return Cost(statistics.median(cpu), min(cpu), statistics.median(clock))


def load() -> float:
    """Return how many processes have wanted to run at the same time, over the last minute."""
    return round(os.getloadavg()[0], 1)


def ratio(cost: Cost, base: Cost) -> str:
    """Return how many times as much it is, by the medians and by the least of all rounds."""
    return f"{cost.median / base.median:.2f} ({cost.least / base.least:.2f})"
