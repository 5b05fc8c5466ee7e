"""Time, as everything in this package sees it: one small object that comes in by the door."""

from __future__ import annotations

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

    def sleep(self, seconds: float, wake: Wake, /) -> bool:
        """Sleep for `seconds` or until `wake` is raised, and say whether it is."""


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    event = staticmethod(threading.Event)

    def sleep(self, seconds: float, wake: Wake, /) -> bool:
        """Sleep for `seconds` or until `wake` is raised, and say whether it is."""
        return wake.wait(seconds)
