"""Is the store reachable? How long a thread may wait for it, and what is remembered when it did not answer.

WaitBudget     bounds how long the calling thread waits for a store that another process has locked
Backoff        remembers for a second that the store did not answer, so that the next caller does not wait again
CallWatchdog   cuts off calls that take too long although every single read of theirs ends in time
Health         turns failures into events: one when trouble begins, one when it ends
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TypeVar

from resilient_scan._suspend import off_loop, shares_thread
from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.events import Event, StoreFailed, StoreRecovered

T = TypeVar("T")
RUN_WAIT = 0.5  # seconds for which a thread of a run waits at a time: a run must end when it said it would
MIN_WAIT = 0.05  # seconds to wait even after a run's deadline: a lock that is held in passing is free again by then
BACKOFF = 1.0  # seconds for which a store that did not answer is left alone
IDLE_TIMEOUT = 5.0  # seconds without a call after which the watchdog's thread exits


class _ThisThread(threading.local):
    seconds = math.inf
    until = math.inf
    unlimited = False


_this_thread = _ThisThread()


def allowed_wait(most: float) -> float:
    """Return how many seconds the calling thread may wait now, at most `most`."""
    return min(most, max(MIN_WAIT, min(_this_thread.seconds, _this_thread.until - monotonic())))


def waits_are_unlimited() -> bool:
    """Say whether the calling thread asks even a store that did not answer a moment ago."""
    return _this_thread.unlimited


def limit_waits() -> None:
    """Let the calling thread wait half a second at a time, for as long as it lives."""
    _this_thread.seconds = RUN_WAIT


class WaitBudget:
    """Within it, the calling thread waits half a second at a time, and hardly at all after `until`.

    One within another one ends no later than that: a runner that is built in another one's run keeps that run's
    deadline.

    Args:
        until: an instant of `time.monotonic`, real time, as the lock's holder is in another process.
    """

    _seconds = RUN_WAIT
    _unlimited = False

    def __init__(self, until: float = math.inf) -> None:
        self._until = until

    def __enter__(self) -> None:
        here = _this_thread
        self._before = here.seconds, here.until, here.unlimited
        until = self._until if self._unlimited else min(self._until, here.until)
        here.seconds, here.until, here.unlimited = self._seconds, until, self._unlimited

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _this_thread.seconds, _this_thread.until, _this_thread.unlimited = self._before


class UnlimitedWait(WaitBudget):
    """Within it, the calling thread waits as long as it takes: for a person's order, or for what must not be lost."""

    _seconds = math.inf
    _unlimited = True


def ask_store(call: Callable[[], T]) -> T:
    """Call what waits for a store: here, or on another thread, with a run's budget, if many executions share this one.

    A lock that is held while the store is asked belongs inside of the call. Two executions of one scanner may share
    their thread: if one of them waited for a lock that the other holds, the other could not go on to release it.
    """
    return off_loop(partial(_within_budget, call)) if shares_thread() else call()


def _within_budget(call: Callable[[], T]) -> T:
    with WaitBudget():
        return call()


class Backoff:
    """Whether a store answered its last caller, and when the next one may try; the others fail at once until then.

    Without it, each of a thousand scanners would wait for a dead server by itself.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until = -math.inf
        self._why = ""

    @property
    def reachable(self) -> bool:
        """Say whether the last caller reached the store."""
        return not self._why

    def check(self) -> None:
        """Raise what the last caller found out, unless it is time to try again; then this caller is the one that does.

        Raises:
            StoreError: the store did not answer within the last second.
        """
        if not self._why:
            return
        with self._lock:
            now = self._clock.monotonic()
            if now < self._until:
                raise StoreError(self._why)
            # Eight workers may come here at once when the second has passed. The first moves the end of the backoff
            # before it tries, still under the lock: else all eight would wait for a server that is still away.
            self._until = now + BACKOFF

    def failed(self, why: str) -> StoreError:
        """Begin a backoff and return the error that says why."""
        with self._lock:
            self._why = why
            self._until = self._clock.monotonic() + BACKOFF
        return StoreError(why)

    def succeeded(self) -> None:
        """End the backoff: the store answered."""
        if self._why:
            with self._lock:
                self._why = ""


class CallWatchdog:
    """A thread that looks after the calls of all others, as long as there are any.

    A server that drips its answer byte by byte keeps every read within its timeout, and the call would never end.

    Args:
        cut: ends all calls under way, from another thread.
        most: seconds that a call may take; it is cut off half as much later at most.
    """

    def __init__(self, cut: Callable[[], None], most: float) -> None:
        self._cut = cut
        self._most = most
        self._lock = threading.Lock()
        self._began: dict[int, float] = {}
        self._late: set[int] = set()
        self._stopped = threading.Event()
        self._running = False

    def begin(self) -> None:
        """Note that the calling thread makes a call; start the watchdog's thread if there is none."""
        # Noted and looked at under one lock, as the thread does before it exits. Otherwise it could see no call, then
        # this thread could note one and see a watchdog that still runs, which exits, and the call is not watched.
        with self._lock:
            self._began[threading.get_ident()] = monotonic()
            if self._running:
                return
            self._running = True
        with suppress(RuntimeError):  # no thread can be started: reads still have their own timeout
            threading.Thread(target=self._work, name="resilient-scan-store-watch", daemon=True).start()

    def end(self) -> bool:
        """Note that its call has ended; say whether it was cut off."""
        own = threading.get_ident()
        with self._lock:
            self._began.pop(own, None)
            late = own in self._late
            self._late.discard(own)
        return late

    def stop(self) -> None:
        """Let the watchdog's thread exit."""
        self._stopped.set()

    def _work(self) -> None:
        last_call = monotonic()
        while not self._stopped.wait(self._most / 2):
            now = monotonic()
            with self._lock:
                last_call = now if self._began else last_call
                late = {thread for thread, began in self._began.items() if now - began > self._most} - self._late
                self._late |= late
                if now - last_call > IDLE_TIMEOUT:
                    self._running = False
                    return
            if late:
                self._cut()


class Health:
    """Whether a store works, as far as one runner has seen.

    It works again once everything that a run brought was written, and nothing has failed since the end of the run
    before: a read that succeeds says nothing about a disk that is full.

    Args:
        send: sends an event to the listeners.
        clock: dates the events.
    """

    def __init__(self, send: Callable[[Event], None], clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._failures_before = 0  # at the end of the last run
        self._failing = False

    def failed(self, operation: str, error: StoreError) -> None:
        """Report that an operation failed, and whether it is the first one that did."""
        # Counted under the lock, sent without it: a listener may use the store itself, whose failure comes here again.
        with self._lock:
            self._failures += 1
            first, self._failing = not self._failing, True
        self._send(StoreFailed(operation, str(error), self._clock.time(), first))

    def run_ended(self) -> None:
        """Note that everything a run brought was written, or failed to be; report a recovery."""
        with self._lock:
            recovered = self._failing and self._failures == self._failures_before
            self._failures_before = self._failures
            if recovered:
                self._failing = False
        if recovered:
            self._send(StoreRecovered(self._clock.time()))
