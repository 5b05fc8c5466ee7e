"""Waiting on a thread that many executions share: the one that waits lets the others go on.

On the thread of an event loop, a plain wait would stop everything else on that loop. What runs such a loop registers
a `Hub` for its thread (`enter`). Waits and blocking calls that go through this module then suspend only their caller,
and are plain waits and calls on every other thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Hub(Protocol):
    """What runs the executions of one thread in turns."""

    def can_suspend(self) -> bool:
        """Return whether the caller is an execution that can be suspended, and not the loop itself."""

    def ring(self) -> tuple[Callable[[], None], Callable[[float | None], None]]:
        """Return a function that wakes, from any thread, and one that suspends the caller until then, or a timeout."""

    def off_loop(self, call: Callable[[], Any], /) -> Any:
        """Suspend the caller while another thread calls `call`; return or raise what that did."""


class _ThisThread(threading.local):
    hub: Hub | None = None


_this_thread = _ThisThread()


def enter(hub: Hub | None) -> None:
    """Let this hub suspend what waits on the calling thread."""
    _this_thread.hub = hub


def shares_thread() -> bool:
    """Return whether the caller must not block its thread: it is one of many executions there."""
    hub = _this_thread.hub
    return hub is not None and hub.can_suspend()


def off_loop(call: Callable[[], T]) -> T:
    """Call what may block: here, or on another thread if others share this one."""
    hub = _this_thread.hub
    if hub is None or not hub.can_suspend():
        return call()
    return hub.off_loop(call)  # type: ignore[no-any-return]


class SharedEvent(threading.Event):
    """An event whose waiters suspend only themselves, on whatever thread they wait."""

    def __init__(self) -> None:
        super().__init__()
        self._bells: list[Callable[[], None]] = []

    def set(self) -> None:
        """Raise the flag and wake everyone who waits."""
        super().set()
        for wake in tuple(self._bells):
            wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the flag for at most `timeout` seconds and return whether it is raised."""
        hub = _this_thread.hub
        if hub is None or not hub.can_suspend():
            return super().wait(timeout)
        wake, suspend = hub.ring()
        self._bells.append(wake)
        try:
            # After the bell was hung up: a flag that was raised before it is seen here, a later one rings it.
            if not self.is_set():
                suspend(timeout)
        finally:
            self._bells.remove(wake)
        return self.is_set()
