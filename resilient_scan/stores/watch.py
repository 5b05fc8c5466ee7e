"""Cut off what takes too long all the same: a server that drips its answer keeps every single read within its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

IDLE = 5.0  # seconds after which the watch without anything to watch goes home


class Watch:
    """A thread that looks after the calls of others, as long as there are any.

    Args:
        cut: ends all calls that are under way, from another thread.
        most: seconds that a call may take; it is cut off at the latest half as much later.
    """

    def __init__(self, cut: Callable[[], None], most: float) -> None:
        self._cut = cut
        self._most = most
        self._lock = threading.Lock()
        self._began: dict[int, float] = {}
        self._late: set[int] = set()
        self._stopped = threading.Event()
        self._on_duty = False

    def begin(self) -> None:
        """Note that the calling thread makes a call."""
        with self._lock:
            self._began[threading.get_ident()] = time.monotonic()
            if self._on_duty:
                return
            self._on_duty = True
        with suppress(RuntimeError):  # the machine has no thread to give
            threading.Thread(target=self._work, name="resilient-scan-store-watch", daemon=True).start()

    def end(self) -> bool:
        """Note that its call is over; say whether it was cut off."""
        own = threading.get_ident()
        with self._lock:
            self._began.pop(own, None)
            late = own in self._late
            self._late.discard(own)
        return late

    def stop(self) -> None:
        """Let the thread go home."""
        self._stopped.set()

    def _work(self) -> None:
        seen = time.monotonic()
        while not self._stopped.wait(self._most / 2):
            now = time.monotonic()
            with self._lock:
                seen = now if self._began else seen
                late = {thread for thread, began in self._began.items() if now - began > self._most} - self._late
                self._late |= late
                if now - seen > IDLE:
                    self._on_duty = False
                    return
            if late:
                self._cut()
