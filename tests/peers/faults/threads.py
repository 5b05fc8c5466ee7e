"""Faults of calls that hang, and of many threads at once."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.peers.stacks.base import Call, Down, Stack, Wanted, ended

TICKET = contextvars.ContextVar("TICKET", default="none")


def pause(seconds: float) -> None:
    """Block as a socket does."""
    threading.Event().wait(seconds)


def hang() -> None:
    """Never return."""
    threading.Event().wait()


def took(call: Call, *arguments: Any) -> float:
    """Return how long a call takes, however it ends."""
    began = time.monotonic()
    ended(call, *arguments)
    return time.monotonic() - began


def at_once(call: Callable[[], Any], threads: int) -> list[threading.Thread]:
    """Start calls on many threads, all at the same moment; return the threads."""
    together = threading.Barrier(threads)

    def start() -> None:
        together.wait()
        ended(call)

    started = [threading.Thread(target=start, daemon=True) for _ in range(threads)]
    for thread in started:
        thread.start()
    return started


class Source:
    """Fails, hangs, blocks or answers, as its state says; counts who is in it."""

    def __init__(self) -> None:
        self.does: Callable[[], None] = self.fail
        self.inside = 0
        self.asked = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.asked += 1
            self.inside += 1
        try:
            self.does()
        finally:
            with self._lock:
                self.inside -= 1
        return "answer"

    @staticmethod
    def fail() -> None:
        raise Down


def warmed(stack: Stack, does: Callable[[], None], wanted: Wanted) -> Call:
    """Return a protected source that does this, after a first call that only loads what is loaded late."""
    source = Source()
    source.does = lambda: None
    call = stack.protect(source, wanted)
    call()
    source.does = does
    return call


def hung_call(stack: Stack) -> str:
    free: list[float] = []
    call = warmed(stack, hang, Wanted(timeout=0.5))
    caller = threading.Thread(target=lambda: free.append(took(call)), daemon=True)
    caller.start()
    caller.join(3)
    return "yes" if free and free[0] < 2 else "no"


def same_source(stack: Stack) -> str:
    def source(number: int) -> None:
        if number < 8:
            hang()

    call = stack.protect(source, Wanted(timeout=0.5))
    for number in range(8):
        ended(call, number)
    how = ended(call, 8)
    return {"timeout": "starved"}.get(how, how)


def context(stack: Stack) -> str:
    def look() -> str:
        return TICKET.get()

    call = stack.protect(look, Wanted(timeout=5))
    TICKET.set("mine")
    return "there" if call() == "mine" else "lost"


def burst(stack: Stack) -> str:
    call = warmed(stack, lambda: pause(0.3), Wanted(failures=5))
    began = time.monotonic()
    for thread in at_once(call, 8):
        thread.join()
    return "all at once" if time.monotonic() - began < 1.5 else "one by one"


def hangs_vote(stack: Stack) -> str:
    call = stack.protect(hang, Wanted(timeout=0.2, failures=3, hung=9))
    for _ in range(3):
        ended(call)
    return "yes" if ended(call) == "refused" else "no"


def half_open(stack: Stack) -> str:
    source = Source()
    call = stack.protect(source, Wanted(failures=3, open_for=2, callers=64))
    for _ in range(3):
        ended(call)
    source.does = hang
    pause(2.4)
    at_once(call, 64)
    pause(1.2)
    return f"{source.inside} of 64"


def hung_trial(stack: Stack) -> str:
    source = Source()
    call = stack.protect(source, Wanted(timeout=0.3, failures=3, open_for=1, hung=9))
    for _ in range(3):
        ended(call)
    pause(1.3)
    source.does = hang
    ended(call)
    source.does = lambda: None
    began = time.monotonic()
    while time.monotonic() - began < 8:
        if ended(call) == "answered":
            return "called again"
        pause(0.05)
    return "never called again"
