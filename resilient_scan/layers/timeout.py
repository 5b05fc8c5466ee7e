"""Timeout: the time of one attempt, and how many threads of one scanner may hang at a time.

The engine keeps the time itself: it counts from the start of the work and hands over on time. What is abandoned then is
a thread that still runs. A scanner whose threads hang is not called again until one of them ends, so that a hanging
source costs a bounded number of threads.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from resilient_scan._text import in_seconds
from resilient_scan.clock import Clock, Wake
from resilient_scan.errors import Rejected, ScanTimeout, is_cancellation
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.options import Timeout

GRACE_PERIOD = 0.05  # seconds after a deadline in which a thread is cooperative: it may be just ending
MAX_RETURNED = 10  # threads of a scanner that came back late and are remembered


class Abandoned(msgspec.Struct, frozen=True):
    """A thread that did not stop in time: a line of the ledger.

    Attributes:
        name: of the task it works on.
        thread: its own name.
        age: seconds since it began the task, or until it was back.
        holds_place: whether it still takes a worker's slot, because `max_abandoned` was reached.
        stack: where it is now, outermost call first, one text; empty once it is back.
        method: what freed it, once it is back: `cooperative`, `cancel`, `sockets`, `process`, or `abandoned` (nothing
            did); empty while it still runs.
        outcome: how its work ended then: `success` or `error`; empty while it still runs.
        run_id, attempt: which work that was, once it is back.
        hint: what it does or did, if only a process could have been stopped in that; else empty.
    """

    name: str
    thread: str
    age: float
    holds_place: bool
    stack: str
    method: str = ""
    outcome: str = ""
    run_id: str = ""
    attempt: int = 0
    hint: str = ""


def limited(seconds: float, call: Call, clock: Clock) -> Call:
    """Wrap `call` so that each attempt has at most `seconds`.

    Raises (when called):
        ScanTimeout: the scanner noticed that its attempt's time was up, and stopped. If it does not notice, the engine
            abandons its thread.
    """

    def timed(context: AttemptContext) -> list[Any]:
        end = clock.monotonic() + seconds
        if end >= context.ends:  # the scan's own deadline comes first
            return call(context)
        before, context.ends, postponed = context.ends, end, context.postponed
        context.alarm(end)
        try:
            return call(context)
        except BaseException as error:
            later = context.postponed - postponed
            at_its_end = end + later <= clock.monotonic() < before + later
            if context.abandoned or not at_its_end or not is_cancellation(error):
                raise
            raise ScanTimeout(
                f"attempt {context.attempt}: timeout after {in_seconds(seconds)}s", by_clock=True
            ) from None
        finally:
            context.ends = min(before + context.postponed - postponed, context.cut_at)
            context.alarm(context.deadline)

    return timed


class HungThreads:
    """Count one scanner's abandoned threads and refuse work beyond `Timeout.max_abandoned`.

    Args:
        options: how many may hang.
        clock: what is waited by for one to come back.
        lock: a scanner's, for such small facts; its own unless given.

    Attributes:
        count: threads that hang now.
        came_back: the last ones that came back, oldest first.
    """

    __slots__ = ("_clock", "_most", "_returned", "came_back", "count", "lock")

    def __init__(self, options: Timeout, clock: Clock, lock: threading.Lock | None = None) -> None:
        self._most = options.max_abandoned
        self.lock: threading.Lock = lock or threading.Lock()
        self._clock = clock
        self._returned: Wake | None = None  # made for the first thread that hangs: most scanners have none
        self.count: int = 0
        self.came_back: tuple[Abandoned, ...] = ()

    def admit(self, context: AttemptContext) -> None:
        """Let a new execution pass.

        Raises:
            Rejected: the scanner has as many hanging threads as it may, and none ended within the grace period.
        """
        if self.count >= self._most and not self._one_returns(min(GRACE_PERIOD, context.remaining() / 2)):
            raise context.failure or Rejected(
                f"{self.count} of at most {self._most} threads of {context.scanner} hang in earlier scans; "
                "it is called again when one of them ends"
            )

    def abandon(self) -> None:
        """Note that a thread was abandoned."""
        with self.lock:
            self._returned = self._returned or self._clock.event()
            self._returned.clear()
            self.count += 1

    def returned(self) -> None:
        """Note that an abandoned thread has ended."""
        with self.lock:
            self.count -= 1
            if self._returned is not None:
                self._returned.set()

    def record(self, thread: Abandoned) -> None:
        """Remember a thread that came back, and what freed it."""
        with self.lock:
            self.came_back = (*self.came_back[1 - MAX_RETURNED :], thread)

    def _one_returns(self, seconds: float) -> bool:
        if self._returned is not None:
            self._returned.wait(seconds)
        return self.count < self._most
