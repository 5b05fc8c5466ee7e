"""Clocks that do what the test needs: wall time that jumps, and a look at who waits on them."""

from __future__ import annotations

import math
import threading
from typing import Any

from resilient_scan.testing import FakeClock


class JumpingClock(FakeClock):
    """A clock whose wall time is `jumped` seconds off, as after somebody has set it."""

    jumped = 0.0

    def time(self) -> float:
        return super().time() + self.jumped


class WatchedClock(FakeClock):
    """A clock that knows until when each thread waits on it, so that no step of the clock goes by unseen.

    `wait_for_sleepers` cannot say that: it counts a thread as asleep until that thread has been given the processor, so
    on a busy machine also one whose time came a step ago.
    """

    def __init__(self, thread: str = "") -> None:
        super().__init__()
        self._thread = thread
        self._waits: dict[str, tuple[float, Any]] = {}

    def wait(self, until: float, wake: Any, /) -> None:
        name = threading.current_thread().name
        self._waits[name] = (until, wake)
        super().wait(until, wake)
        self._waits.pop(name, None)

    def wait_of(self, thread: str | None = None) -> tuple[float, Any] | None:
        """Return until when a thread waits, and what would wake it earlier: an object of its own for each wait."""
        return self._waits.get(self._thread if thread is None else thread)

    def rests(self, within: float = math.inf, *, thread: str | None = None) -> bool:
        """Say whether a thread waits for an instant to come, at most `within` seconds from now."""
        wait, now = self.wait_of(thread), self.monotonic()
        return wait is not None and now < wait[0] <= now + within and not wait[1].is_set()
