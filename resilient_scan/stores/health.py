"""Cut off what takes too long all the same: a server that drips its answer keeps every single read within its time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.events import Event, StoreFailed, StoreRecovered

# How long the calling thread waits for others that have locked a store: a run must end when it said it would.

WAIT_BUDGET = 0.5  # seconds, at a time, on the threads of runs and scans
MIN_WAIT = 0.05  # seconds, however late it is: what others lock in passing is waited for


class _Here(threading.local):
    seconds = math.inf
    until = math.inf
    patient = False


_here = _Here()


def allowed_wait(most: float) -> float:
    """Return for how many seconds the calling thread may wait now, at most so many."""
    return min(most, max(MIN_WAIT, min(_here.seconds, _here.until - time.monotonic())))


def waits_are_unlimited() -> bool:
    """Say whether the calling thread asks a store that was just seen to be away all the same."""
    return _here.patient


def limit_waits() -> None:
    """Let the calling thread wait half a second at a time, from now on."""
    _here.seconds = WAIT_BUDGET


class WaitBudget:
    """Let a thread wait half a second at a time, and hardly at all after an instant of `time.monotonic`."""

    def __init__(self, until: float = math.inf) -> None:
        self._until = until

    def __enter__(self) -> None:
        self._before = (_here.seconds, _here.until)
        _here.seconds, _here.until = WAIT_BUDGET, self._until

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.seconds, _here.until = self._before


class UnlimitedWait:
    """Let a thread ask for as long as it takes, on behalf of a person, or of what must not be lost."""

    def __enter__(self) -> None:
        self._before = (_here.seconds, _here.until)
        _here.seconds = _here.until = math.inf
        _here.patient = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.seconds, _here.until = self._before
        _here.patient = False


# Remember for a second that a store is away, so that a thousand scanners do not find it out one by one.

PAUSE = 1.0  # seconds


class Backoff:
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


IDLE = 5.0  # seconds after which the watch without anything to watch goes home


class CallWatchdog:
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


class Health:
    """Whether a store works, as far as one runner has seen.

    It works again when what a run brought was written and nothing has failed since that of the run before: a read that
    succeeds says nothing about a disk that is full.

    Args:
        send: brings an event to the listeners.
        clock: tells them when.
    """

    def __init__(self, send: Callable[[Event], None], clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = self._before = 0  # in all, and when the last run was over
        self._fails = False

    def failed(self, operation: str, error: StoreError) -> None:
        """Tell that an operation failed, and whether it is the first one."""
        with self._lock:
            self._failures += 1
            first, self._fails = not self._fails, True
        self._send(StoreFailed(operation, str(error), self._clock.time(), first))

    def run_ended(self) -> None:
        """Note that what a run brought was written, or failed to be."""
        with self._lock:
            recovered = self._fails and self._failures == self._before
            self._before = self._failures
            if recovered:
                self._fails = False
        if recovered:
            self._send(StoreRecovered(self._clock.time()))
