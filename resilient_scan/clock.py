"""Time: one small object that is passed to everything in this package that waits or measures."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import monotonic, time
from typing import Protocol


class Wake(Protocol):
    """A flag that threads wait for; `wait` measures its timeout on the clock that made it."""

    def set(self) -> None:
        """Raise the flag and wake all threads that wait for it."""

    def clear(self) -> None:
        """Lower the flag."""

    def is_set(self) -> bool:
        """Say whether the flag is raised."""

    def wait(self, timeout: float | None = None, /) -> bool:
        """Wait at most `timeout` seconds (`None`: forever) and say whether the flag is raised."""


class Clock(Protocol):
    """What a runner needs to know about time.

    Durations and deadlines use `monotonic`; `time` is for people and for what outlives the process.
    """

    def monotonic(self) -> float:
        """Return seconds since some instant; they never go back."""

    def time(self) -> float:
        """Return seconds since 1970-01-01 UTC (wall time, which may jump)."""

    def event(self) -> Wake:
        """Make a flag whose waits are measured on this clock."""

    def wait(self, until: float, wake: Wake, /) -> None:
        """Wait until an instant, or until `wake` is raised."""

    def sleep(self, until: float, wake: Wake, /) -> None:
        """Do the same on behalf of a scanner; a clock for tests may advance instead of waiting."""


class MovingClock(Clock, Protocol):
    """A clock for tests that advances instead of waiting; what a runner asks of it in addition."""

    def attend(self, until: float, wake: Wake, /) -> None:
        """Wait on behalf of a scanner for what another thread does, until an instant at most; never advance."""

    def skip(self, until: float, /, *, idle: bool) -> None:
        """Advance to an instant for which scanners wait without a thread that sleeps; `idle`: no other is at work."""


class SystemClock:
    """The machine's own clocks."""

    # Bound once: a test helper, or a scanner, may replace `time.monotonic` for the whole process later.
    monotonic: Callable[[], float] = staticmethod(monotonic)
    time: Callable[[], float] = staticmethod(time)
    event: Callable[[], Wake] = staticmethod(threading.Event)

    def wait(self, until: float, wake: Wake, /) -> None:
        """Wait until an instant, or until `wake` is raised."""
        wake.wait(None if until == math.inf else max(0.0, until - monotonic()))

    sleep = wait
