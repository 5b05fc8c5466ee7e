"""A cached answer that a worker copies for one scan, because copying it may take long or run foreign code.

               execute             start               run
    made ----------------> queued ---------> copying ---------> the scan has copies of its own
                             |                  |
                             | no thread        | its time is up: the watchdog hands over, the thread may go on
                             v                  v
                           ended              ended

The copying has the scan's `timeout.total`, counted from the moment at which a worker begins it. As with an execution,
`stack.lock` decides who ends it: the worker, the watchdog, the run whose time is up, or the pool. But it makes no
attempt, casts no vote, and only this scan waits for it.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resilient_scan._text import in_seconds
from resilient_scan.context import NEVER
from resilient_scan.core.execution import mark_work
from resilient_scan.core.hangs import LateEnd
from resilient_scan.core.outcome import REJECTED, Outcome, run_over
from resilient_scan.core.stack import Stack
from resilient_scan.core.task import SHUT_DOWN, Place
from resilient_scan.errors import Rejected, ScanTimeout
from resilient_scan.events import (
    CANCELLED,
    ERROR,
    SUCCESS,
    TIMEOUT,
    DeadlineActedOn,
    Event,
    ThreadAbandoned,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.cache import Entry
from resilient_scan.results import ErrorInfo, ScanResult

if TYPE_CHECKING:
    from resilient_scan.core.scan import Scan


class AnswerCopy:
    """The copying of an answer for one scan, as a task of the pool and in the place of the scan's execution.

    Args:
        scan: the scan that waits for it.
        entry: the answer.
        shared: the outcome that brought it, if the scan waited for another scan's execution.
        fallback: the scan's result if it gets no copies, where the answer is a stale one.

    Attributes:
        context: of the scan's own execution, if it had one.
        kind: how it ended: success, error (a candidate cannot be copied), timeout, rejected or cancelled.
        error: why the scan gets no copies.
        candidates: the copies.
        hangs: whether its time was up before it was through.
    """

    stack: Stack
    entry: Entry
    shared: Outcome | None
    fallback: ScanResult | None
    began: float = NEVER
    frees_sockets: bool = False
    helpers: Sequence[threading.Thread] = ()
    ended: bool = False
    through: bool = False
    hangs: bool = False
    _left = False  # ended because its scan's run has ended
    kind: str = CANCELLED
    error: ErrorInfo | None = None
    candidates: list[Any] | None = None

    def __init__(
        self, scan: Scan, entry: Entry, *, shared: Outcome | None = None, fallback: ScanResult | None = None
    ) -> None:
        self.scan = scan
        self.stack = scan.stack
        self.entry, self.shared, self.fallback = entry, shared, fallback
        self.context: AttemptContext | None = None if scan.execution is None else scan.execution.context
        self._variables = contextvars.copy_context()

    @property
    def name(self) -> str:
        """The scanner's name."""
        return self.stack.name

    def queue(self) -> None:
        """Hand it to the pool."""
        try:
            self.stack.pool.execute(self)
        except RuntimeError as error:  # shut down, or the machine has no thread to give
            self.refuse(str(error))

    def leave(self, scan: Scan, *, keep_working: bool) -> bool | None:
        """End it because the scan's run has ended; see `Execution.leave`."""
        with self.stack.lock:
            if self.ended and not self._left:
                return None
            self.ended = self._left = True
            begun = self.began != NEVER
        if begun and keep_working:
            self.kind, self.error = TIMEOUT, ErrorInfo.of(run_over(scan, self.stack.clock.monotonic()))
        return begun

    def _end(self, kind: str, error: ErrorInfo | None = None, events: tuple[Event, ...] = ()) -> bool:
        """End it and tell the scan; `False`: another party has ended it."""
        with self.stack.lock:
            if self.ended:
                return False
            self.ended = True
        self.kind, self.error = kind, error
        self.scan.end(self, events)
        return True

    # as a task of the pool

    def start(self, now: float, _place: Place, /) -> float | None:
        """Begin and return the deadline, unless the scan's run has ended."""
        with self.stack.lock:
            wanted = not self.ended and now < self.scan.run.deadline
            if wanted:
                self.began = now
                return now + self.stack.total
        self._end(CANCELLED)
        return None

    def run(self) -> None:
        """Copy; whatever that raises is why it cannot be copied."""
        try:
            if self.stack.hung_copies:  # else one more thread could hang in each run, until there are none left
                raise Rejected(f"a thread of {self.name} still hangs in copying an earlier answer")
            self.candidates = self._variables.run(self._copy)
        except BaseException as failure:
            error = ErrorInfo.of(failure)  # foreign code, too
            self.through = True
            self._end(ERROR, error)
        else:
            self.through = True
            self._end(SUCCESS)

    def _copy(self) -> list[Any]:
        mark_work(self.stack.pool)
        return self.entry.copies()

    def expire(self, _thread: str, _age: float, lateness: float, /) -> None:
        """Hand over without copies. The thread may go on; it counts as one of the scanner's abandoned threads."""
        stack, run_id = self.stack, self.scan.run.run_id
        stack.hung.abandon()
        with stack.lock:
            stack.hung_copies += 1
            self.hangs = not self.through
        if not self.hangs:  # it is through, and its worker ends it in this very moment
            return
        events = (DeadlineActedOn(self.name, lateness, run_id),)
        error = ScanTimeout(f"timeout after {in_seconds(stack.total)}s in copying a cached answer", by_clock=True)
        if not self._end(TIMEOUT, ErrorInfo.of(error), events):  # its run had ended before
            stack.pool.run_soon(lambda: stack.bus.send_all(events))

    def mark_passed(self) -> None:
        """Never called: it sets no mark."""

    def cut_off(self) -> None:
        """Never called: a copy waits for no connection."""

    def returned(self) -> None:
        """Note that the thread has ended after all."""
        with self.stack.lock:
            self.stack.hung_copies -= 1
        self.stack.hung.returned()

    def abandon(self, thread: str, age: float, _hint: str, /) -> None:
        """Report that the thread does not come back; copies are made here, whatever process the scanner runs in."""
        if self.hangs:
            self.stack.bus.send(ThreadAbandoned(self.name, thread, age, self.scan.run.run_id))

    def late(self, end: LateEnd, /) -> None:
        """Report that the thread came back, if it was reported as abandoned."""
        if self.hangs and end.abandoned:
            outcome = SUCCESS if self.candidates is not None else ERROR
            end.report(self.stack.hung, self.stack.bus.send, "abandoned", outcome, self.scan.run.run_id)

    def refuse(self, reason: str, /) -> None:
        """End without a start: the pool has no thread for it, or is shut down."""
        if reason == SHUT_DOWN:
            self._end(CANCELLED)
        else:
            self._end(REJECTED, ErrorInfo.of(Rejected(reason)))

    def stop(self) -> None:
        """End it: the runner is closed."""
        self._end(CANCELLED)
