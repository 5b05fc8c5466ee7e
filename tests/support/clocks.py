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
    """A clock that knows until when one thread waits on it, so that no step of the clock goes by unseen."""

    def __init__(self, thread: str) -> None:
        super().__init__()
        self._thread = thread
        self._wait: tuple[float, Any] | None = None

    def wait(self, until: float, wake: Any, /) -> None:
        if threading.current_thread().name != self._thread:
            super().wait(until, wake)
            return
        self._wait = (until, wake)
        super().wait(until, wake)
        self._wait = None

    def rests(self, within: float = math.inf) -> bool:
        """Say whether the thread waits for an instant to come, at most `within` seconds from now."""
        wait, now = self._wait, self.monotonic()
        return wait is not None and now < wait[0] <= now + within and not wait[1].is_set()
