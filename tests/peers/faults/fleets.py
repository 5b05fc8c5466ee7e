"""Faults in one of several scanners."""

from __future__ import annotations

import sys
import threading

from tests.peers.children import Child
from tests.peers.faults.threads import hang, pause
from tests.peers.stacks.base import Call, Stack, Wanted


class Hanging:
    """Hangs, and counts how many threads are in it."""

    def __init__(self) -> None:
        self.inside = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.inside += 1
        hang()


def sound() -> str:
    return "answer"


def _behind(stack: Stack, number: int) -> tuple[str, int]:
    """Return how the sound scanner ends that stands behind so many that hang, and how many threads hang by then."""
    hanging = Hanging()
    calls: dict[str, Call] = {f"hung{each}": hanging for each in range(number)}
    seen: list[str] = []

    def watch() -> None:
        try:
            seen.extend(
                how for name, how in stack.fleet({**calls, "sound": sound}, Wanted(timeout=0.5)) if name == "sound"
            )
        except Exception as error:
            seen.append(repr(error))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for _ in range(1500):
        if seen:
            return seen[0].replace("timeout", "starved"), hanging.inside
        pause(0.01)
    return "starved", hanging.inside


def eight_hang(stack: Stack) -> str:
    return _behind(stack, 8)[0]


def forty_hang(stack: Stack) -> str:
    how, threads = _behind(stack, 40)
    return f"{how}; {threads}"


def sys_exit(stack: Stack) -> str:
    calls: dict[str, Call] = {f"sound{number}": sound for number in range(99)}
    seen: list[str] = []
    try:
        for _, how in stack.fleet({"exits": sys.exit, **calls}, Wanted(timeout=5)):
            seen.append(how)
    except SystemExit:
        return "ends the program"
    return f"{seen.count('answered')} answered, {seen.count('failed')} failed"


def ctrl_c(stack: Stack) -> str:
    calls: dict[str, Call] = {f"sound{number}": sound for number in range(4)}
    calls |= {f"long{number}": lambda: pause(60) for number in range(4)}
    seen: list[str] = []
    try:
        for _, how in stack.fleet(calls, Wanted(timeout=30)):
            seen.append(how)
            if len(seen) == 4:
                Child.tell("ready")
    except KeyboardInterrupt:
        return f"{seen.count('answered')} answers are kept"
    return "not interrupted"
