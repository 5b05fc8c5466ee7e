"""Remember for a second that a store is away, so that a thousand scanners do not find it out one by one."""

from __future__ import annotations

import math
import threading

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError

PAUSE = 1.0  # seconds


class Away:
    """Whether a store was last seen, and when one caller may try again; the others are told at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until = -math.inf
        self._why = ""

    @property
    def seen(self) -> bool:
        """Say whether the last caller found the store."""
        return not self._why

    def check(self) -> None:
        """Raise what the last caller was told, unless it is time to try again; this caller is the one that does."""
        if not self._why:
            return
        with self._lock:
            now = self._clock.monotonic()
            if now < self._until:
                raise StoreError(self._why)
            self._until = now + PAUSE  # the others do not wait beside the one that tries

    def gone(self, why: str) -> StoreError:
        """Note that the store is away; return the error that says so."""
        with self._lock:
            self._why = why
            self._until = self._clock.monotonic() + PAUSE
        return StoreError(why)

    def back(self) -> None:
        """Note that the store was found."""
        if self._why:
            with self._lock:
                self._why = ""
