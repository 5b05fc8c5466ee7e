"""Time, as everything in this package sees it: one small object that comes in by the door."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol


class Wake(Protocol):
    """A flag that threads wait for; `wait` measures its timeout on the clock that made it."""

    def set(self) -> None:
        """Raise the flag and wake all that wait for it."""

    def clear(self) -> None:
        """Lower the flag."""

    def is_set(self) -> bool:
        """Say whether the flag is raised."""

    def wait(self, timeout: float | None = None, /) -> bool:
        """Wait at most `timeout` seconds (`None`: for ever) and say whether the flag is raised."""


class Clock(Protocol):
    """What a runner needs to know about time.

    Durations and deadlines use `monotonic`; `time` is for people and for what outlives the process.
    """

    def monotonic(self) -> float:
        """Return seconds since some instant; never goes back."""

    def time(self) -> float:
        """Return seconds since 1970-01-01 UTC (wall time, may jump)."""

    def event(self) -> Wake:
        """Make a flag whose waits are measured on this clock."""

    def wait(self, until: float, wake: Wake, /) -> None:
        """Wait for an instant, or until `wake` is raised."""

    def sleep(self, until: float, wake: Wake, /) -> None:
        """Do the same on a scanner's behalf; a clock for tests may move on instead of waiting."""


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    event = staticmethod(threading.Event)

    def wait(self, until: float, wake: Wake, /) -> None:
        """Wait for an instant, or until `wake` is raised."""
        wake.wait(None if until == math.inf else max(0.0, until - time.monotonic()))

    sleep = wait


def short(seconds: float) -> str:
    """Write a duration in seconds for people: three digits, and never an exponent."""
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"
