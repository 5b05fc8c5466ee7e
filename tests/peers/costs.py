"""What a call that does nothing costs in each stack: a process for each, which take turns."""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.peers.children import Child
from tests.peers.stacks import load
from tests.peers.stacks.base import NotOffered, Stack, Wanted

CALLS, ROUNDS = 200, 15
FULL = Wanted(attempts=3, failures=5, timeout=30)
CACHED = Wanted(attempts=3, failures=5, timeout=30, ttl=600)


def nothing() -> str:
    return "answer"


def fleet(stack: Stack) -> Callable[[], object]:
    """Return as many scanners as calls, all at the same time."""
    return stack.repeated({f"s{number}": nothing for number in range(CALLS)}, FULL)


def alone(stack: Stack) -> Callable[[], object]:
    """Return one call after another."""
    call = stack.protect(nothing, FULL)
    return lambda: [call() for _ in range(CALLS)]


def cached(stack: Stack) -> Callable[[], object]:
    """Return one call after another, all but the first answered by the cache."""
    call = stack.protect(nothing, CACHED)
    return lambda: [call() for _ in range(CALLS)]


async def waits() -> str:
    """Wait as long as an outside API may."""
    await asyncio.sleep(1)
    return "answer"


def awaited(number: int) -> Callable[[Stack], Callable[[], object]]:
    """Return what makes so many coroutines ready, all at the same time."""
    return lambda stack: stack.awaited({f"s{each}": waits for each in range(number)}, FULL)


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        title: what is measured.
        ready: makes it ready.
        rounds: how often it is measured.
        in_seconds: whether the row shows how long it takes, and not a proportion.
    """

    title: str
    ready: Callable[[Stack], Callable[[], object]]
    rounds: int = ROUNDS
    in_seconds: bool = False


KINDS = {
    "fleet": Kind("Cost of a call that does nothing (retry, breaker, timeout), 200 at once", fleet),
    "alone": Kind("Cost of one such call by itself", alone),
    "cached": Kind("Cost of one answer from the cache", cached),
    "async_200": Kind(
        "200 `async def` calls that await 1 s, at once (retry, breaker, timeout). How long do they take?",
        awaited(200),
        rounds=5,
        in_seconds=True,
    ),
    "async_2000": Kind("And 2,000 of them?", awaited(2000), rounds=5, in_seconds=True),
}


def serve(stack: str) -> None:
    """For each kind that a line of the input names, tell how many seconds its calls took."""
    logging.disable()
    ready: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        kind = line.strip()
        try:
            run = ready.get(kind) or ready.setdefault(kind, KINDS[kind].ready(load(stack)))
        except NotOffered:
            Child.tell(None)
            continue
        began = time.perf_counter()
        run()
        Child.tell(time.perf_counter() - began)


def measure(kind: str, stacks: dict[str, Child]) -> dict[str, str]:
    """Return what a call costs in each stack: in proportion to the stack by hand, or in seconds."""
    times: dict[str, list[float]] = {name: [] for name in stacks}
    for number in range(KINDS[kind].rounds + 1):
        for name, child in stacks.items():
            seconds = child.ask(kind)
            if number and seconds is not None:  # the first round warms up
                times[name].append(seconds)
    medians = {name: statistics.median(taken) for name, taken in times.items() if taken}
    if KINDS[kind].in_seconds:
        return {name: f"{medians[name]:.1f} s" if name in medians else "–" for name in stacks}
    return {name: _rounded(medians[name] / medians["by hand"]) if name in medians else "–" for name in stacks}


def _rounded(ratio: float) -> str:
    """Return one digit of it: machines differ in the others."""
    return f"{float(format(ratio, '.1g')):g} x"


if __name__ == "__main__":
    serve(sys.argv[1])
