"""Faults around cached answers, and what outlives a process."""

from __future__ import annotations

import contextlib
import threading
import time

from tests.peers.faults.threads import Source, at_once, hang, pause
from tests.peers.stacks.base import Down, NotOffered, Stack, Wanted, ended


def _ten(stack: Stack, source: Source) -> float:
    call = stack.protect(source, Wanted(ttl=60, callers=10))
    began = time.monotonic()
    for thread in at_once(call, 10):
        thread.join()
    return time.monotonic() - began


def ten_miss(stack: Stack) -> str:
    def fail() -> None:
        pause(0.3)
        raise Down

    well, ill = Source(), Source()
    well.does, ill.does = lambda: pause(0.3), fail
    _ten(stack, well)
    seconds = _ten(stack, ill)
    return f"{well.asked} x; {ill.asked} x" + (", one by one" if seconds > 2 else "")


def follower(stack: Stack) -> str:
    call = stack.protect(hang, Wanted(ttl=60, timeout=3))
    threading.Thread(target=lambda: ended(call), daemon=True).start()
    pause(0.3)
    began = time.monotonic()
    ended(lambda: stack.within(call, 0.5))
    seconds = time.monotonic() - began
    if seconds < 1.5:
        return "free in time"
    return "waits for it" if seconds < 4.5 else "waits for it, then calls"


def mutation(stack: Stack) -> str:
    call = stack.protect(lambda: ["as found"], Wanted(ttl=60))
    call().append("changed")
    return "nobody else sees it" if call() == ["as found"] else "the next caller sees it"


def stale(stack: Stack) -> str:
    source = Source()
    source.does = lambda: None
    call = stack.protect(source, Wanted(ttl=0.2, stale=60))
    call()
    pause(0.4)
    source.does = source.fail
    return "last answer stands in" if ended(call) == "answered" else "fails"


LASTING = Wanted(failures=3, open_for=60, lasting=True)
CACHED = Wanted(ttl=600, lasting=True)


def before_restart(stack: Stack) -> str:
    source = Source()
    call = stack.protect(source, LASTING)
    for _ in range(4):
        ended(call)
    source.does = lambda: None
    with contextlib.suppress(NotOffered):
        ended(stack.protect(source, CACHED))
    pause(2)  # some write in the background
    return ""


def after_restart(stack: Stack) -> str:
    source = Source()
    source.does = lambda: None
    call = stack.protect(source, LASTING)
    breaker = "open" if ended(call) == "refused" else "closed"
    if breaker == "closed":
        pause(3)  # and some read in the background
        breaker = "open after its first poll" if ended(call) == "refused" else "closed"
    source.asked = 0
    try:
        ended(stack.protect(source, CACHED))
    except NotOffered:
        return f"{breaker}; –"
    return f"{breaker}; {'called again' if source.asked else 'there'}"
