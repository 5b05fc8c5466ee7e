"""Faults that a retry and a breaker meet, and what can be seen from outside."""

from __future__ import annotations

import re
import threading
import time
from importlib import metadata

from tests.peers.faults.threads import Source, pause, took, warmed
from tests.peers.stacks.base import Answered, NotOffered, Stack, TooMany, Wanted, ended


def open_breaker(stack: Stack) -> str:
    source = Source()
    call = stack.protect(source, Wanted(attempts=3, failures=5))
    for _ in range(20):
        ended(call)
    return f"{source.asked} x"


def every_other(stack: Stack) -> str:
    source = Source()
    call = stack.protect(source, Wanted(failures=5))
    for number in range(60):
        source.does = source.fail if number % 2 else lambda: None
        if ended(call) == "refused":
            return "opens"
    return "stays closed"


def long_ago(stack: Stack) -> str:
    call = stack.protect(Source().fail, Wanted(failures=5, within=1))
    for _ in range(5):
        ended(call)
        pause(0.4)
    return "opens" if ended(call) == "refused" else "stays closed"


def two_meanings(stack: Stack) -> str:
    return "; ".join(f"{status} {_meaning(stack, status)}" for status in (503, 404))


def _meaning(stack: Stack, status: int) -> str:
    def answer() -> None:
        raise Answered(status)

    call = stack.protect(answer, Wanted(failures=3, counts=lambda error: "503" in str(error)))
    for _ in range(3):
        ended(call)
    return "opens it" if ended(call) == "refused" else "does not"


def doubtful(stack: Stack) -> str:
    call = stack.protect(list, Wanted(failures=3, doubts=lambda found: not found))
    for _ in range(3):
        ended(call)
    return "opens" if ended(call) == "refused" else "stays closed"


def told_to_wait(stack: Stack) -> str:
    return f"{_one_second(stack)}; {_five_seconds(stack)}"


def _one_second(stack: Stack) -> str:
    asked: list[float] = []

    def source() -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise TooMany(1)

    ended(stack.protect(source, Wanted(attempts=2)))
    if len(asked) < 2:
        return "gives up"
    return "waits" if asked[1] - asked[0] >= 0.99 else "does not wait"


def _five_seconds(stack: Stack) -> str:
    def refuse() -> None:
        raise TooMany(5)

    call = warmed(stack, refuse, Wanted(attempts=2, total=1))
    times: list[float] = []
    threading.Thread(target=lambda: times.append(took(call)), daemon=True).start()
    pause(7)
    for bound, said in ((0.8, "gives up at once"), (3, "waits 1 s"), (7, "waits 5 s")):
        if times and times[0] < bound:
            return said
    return "waits"


def metrics(stack: Stack) -> str:
    from prometheus_client import REGISTRY

    call = stack.protect(lambda: pause(0.2), Wanted(timeout=5, attempts=2, failures=5, metrics=True))
    ended(call)
    sums = [
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if re.search(r"(execution|call|protect)_duration_seconds_sum$", sample.name)
    ]
    if not sums:
        raise NotOffered("")
    return "0.2 s" if 0.19 <= max(sums) <= 1 else f"{max(sums):.1f} s"


def packages(stack: Stack) -> str:
    """Count what is installed with the stack's packages, themselves left out unless they are what it is made of."""
    wanted, seen = list(stack.packages), set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        wanted += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return str(len(seen - {stack.packages[0]} if len(stack.packages) < 3 else seen))
