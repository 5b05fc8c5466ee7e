"""Keep forks out of the middle of a database library's call.

A lock that a library's own code holds in another thread at the instant of a fork is held in the child for ever, by
nobody. So a fork waits until no such call is under way, and new calls wait until it is over.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0  # seconds for which a fork waits; then it goes ahead


class _Outside:
    """How many calls are under way, and whether a fork waits for their end."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew, in a child."""
        self._changed = threading.Condition()
        self._calls = 0
        self._forking = False

    @contextmanager
    def of_forks(self) -> Iterator[None]:
        """Run a call; no fork happens during it."""
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def hold(self) -> None:
        """Wait until no call is under way, and keep new ones waiting (before a fork)."""
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: not self._calls, PATIENCE)

    def go_on(self) -> None:
        """Let calls begin again (after a fork, in the parent)."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


OUTSIDE = _Outside()
os.register_at_fork(before=OUTSIDE.hold, after_in_parent=OUTSIDE.go_on, after_in_child=OUTSIDE.begin)
