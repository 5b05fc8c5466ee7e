"""Calls a listener on a thread of its own while a run has a deadline.

Such a run must not wait for a listener that hangs, and no thread can be taken out of a call that hangs. So that call
has to be on another thread from the start. Events reach that thread through a queue whose `put` is one step in C: an
interrupt of the run's thread falls before it or after it (see `Channel` in `events`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Any

from resilient_scan._log import log as _log

MAX_WAITING = 100_000  # events for one listener; one that hangs for good must not take all memory
POLL_INTERVAL = 0.25  # seconds of one wait: a Ctrl-C is seen between two


class _Mark(threading.Event):
    """Stands in a queue of events; set when its turn comes."""


class Dispatcher:
    """The thread of one listener; there is one while a run wants it, and until the listener has had all events.

    Args:
        name: the listener's, for people.
        notify: calls the listener and does not raise, except for a Ctrl-C.
    """

    def __init__(self, name: str, notify: Callable[[Any], None]) -> None:
        self.name = name
        self._notify = notify
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.Lock()
        self._runs = 0  # that want the thread
        self._thread: threading.Thread | None = None
        self._orders = 0  # in the queue, between the events: marks, and calls to look whether the thread is wanted
        self._busy = False
        self._done = 0  # events that the listener has had here
        self._counted = 0  # events that it has had, or was reported to lack
        self._logged: set[str] = set()

    def open(self) -> None:
        """Have the listener called on its own thread from now on, if the machine has a thread to give."""
        with self._lock:
            self._runs += 1
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="resilient-scan-listener", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return
                self._thread = thread

    def close(self) -> None:
        """Let the thread end, once no other run wants it and the listener has had all events."""
        with self._lock:
            self._runs -= 1
            self._order(None)

    def target(self) -> Callable[[Any], object] | None:
        """Return what takes events for the listener in one step; `None`: it is to be called at once."""
        if self._thread is None:
            return None
        return self._queue.put if self._queue.qsize() < MAX_WAITING else self._lose

    def take(self, event: Any) -> bool:
        """Take an event for the listener; `False`: it is to be called at once."""
        if self._thread is None:
            return False
        with self._lock:  # the thread does not end meanwhile
            target = self.target()
            if target is None:
                return False
            target(event)
            if not self._runs:  # the thread may have looked for the last time
                self._order(None)
        return True

    def _order(self, order: _Mark | None) -> None:
        self._orders += 1
        self._queue.put(order)

    def _lose(self, _event: Any) -> None:
        self._log_once("listener %s hangs with %d events waiting; further ones are lost", MAX_WAITING)

    def _work(self) -> None:
        while True:
            event = self._queue.get()
            if event is None or type(event) is _Mark:
                with self._lock:
                    self._orders -= 1
                    if event is None and not self._runs and self._queue.empty():
                        self._thread = None
                        return
                if event is not None:
                    event.set()
                continue
            self._busy = True
            try:
                self._notify(event)
            except BaseException:  # it raised KeyboardInterrupt; a Ctrl-C comes to the main thread only
                _log.exception("listener %s was interrupted", self.name)
            del event
            self._done += 1
            self._busy = False

    def flush(self, until: float) -> int:
        """Wait until the listener has had what was sent so far, but not past an instant of real time (monotonic).

        Returns:
            How many events it lacks then, without those that an earlier call has returned.
        """
        mark = _Mark()
        with self._lock:
            if self._thread is None or self._thread is threading.current_thread():  # or it runs a runner itself
                return 0
            self._order(mark)
        while not mark.is_set() and (left := until - monotonic()) > 0:
            mark.wait(min(left, POLL_INTERVAL))
        if mark.is_set():
            return 0
        with self._lock:
            done, waiting = self._done, self._queue.qsize() - self._orders + self._busy
            late, self._counted = done + waiting - max(done, self._counted), done + waiting
        if late > 0:
            self._log_once("listener %s is slow: a run ended before it had received %d of its events", late)
        return max(0, late)

    def _log_once(self, message: str, number: int) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.warning(f"{message}; this is logged once", self.name, number)
