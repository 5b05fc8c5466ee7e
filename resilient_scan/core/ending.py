"""What those need who end an execution: who is first, what is given back, and what is said of it.

Seven parties may want to end one (see `execution`). Here is what they have in common.
"""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from resilient_scan._log import log as _log
from resilient_scan._text import in_seconds
from resilient_scan.context import NEVER
from resilient_scan.core.outcome import REJECTED, Outcome, Waiter
from resilient_scan.core.stack import Stack
from resilient_scan.errors import ScanTimeout
from resilient_scan.events import (
    CANCELLED,
    ERROR,
    LOCAL,
    SUCCESS,
    TIMEOUT,
    AttemptEnded,
    DeadlineActedOn,
    Event,
    ExecutionEnded,
    ProbeEnded,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.cache import Entry
from resilient_scan.layers.limit import Provider, Ticket
from resilient_scan.layers.outcomes import failed
from resilient_scan.results import ErrorInfo

if TYPE_CHECKING:
    from resilient_scan.core.execution import Execution


class Ending(msgspec.Struct, eq=False):
    """An execution, as those see it who end it.

    Attributes:
        stack: the scanner's layers.
        context: of its attempts.
        key: of the cache; `None`: nobody else can use the answer.
        first: the scan that it was made for, as long as no other has joined, and it has not left.
        variables: the context variables that it runs in.
        began: when a worker began it, monotonic; a successor has the first attempt's.
        ended: whether anybody has ended it.
        through: whether its worker is done with it and hands over, or has.
        passes_over_stored: whether it asks its source although there may be an answer, which cannot be copied.
        probe: its mark, where it tests a scanner that is out of service.
        pending_events: of the attempt that was abandoned before this successor.
        on_lane: whether it runs on the shared event loop.
        joined: from then on, all the scans that wait; most executions need no such list, and the garbage collector need
            not look at it.
    """

    stack: Stack
    context: AttemptContext
    key: bytes | None
    first: Waiter | None
    variables: contextvars.Context
    began: float = NEVER
    ended: bool = False
    through: bool = False
    passes_over_stored: bool = False
    probe: str = ""
    pending_events: tuple[Event, ...] = ()
    on_lane: bool = False
    joined: list[Waiter] | None = None
    _running: bool = False
    _left: bool = False  # ended because its last waiter left
    _late_kind: str = ERROR
    _timed_out: bool = False  # whether the watchdog took it from its thread
    _successor: Execution | None = None
    _ticket: Ticket | None = None  # in the queue of its provider
    _provider: Provider | None = None  # whose queue that is

    @property
    def name(self) -> str:
        """The scanner's name."""
        return self.stack.name

    @property
    def expected(self) -> float:
        """Seconds that it is expected to take; infinite where that is unknown."""
        return self.stack.expected

    @property
    def total(self) -> float:
        """Seconds that it may take."""
        return self.stack.total

    @property
    def can_move(self) -> bool:
        """Whether another attempt may follow, or none was begun: then it loses nothing by going on elsewhere."""
        retry, attempt = self.stack.policy.retry, self.context.attempt
        return not attempt or (retry is not None and attempt < retry.attempts)

    @property
    def _since(self) -> float:
        """When it began, but for what it has waited for a process: that is part of its wait for a worker."""
        return self.began + self.context.waited

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """The scans that wait for it now."""
        first, joined = self.first, self.joined
        return tuple(joined) if joined is not None else () if first is None else (first,)

    def _list(self) -> list[Waiter]:
        """Return the list of the scans that wait, which is kept from now on. Under the lock."""
        if self.joined is None:
            self.joined, self.first = list(self.waiters), None  # a scan that has left, and is kept, would keep its run
        return self.joined

    def _end(self) -> tuple[Waiter, ...] | None:
        """End it and return the waiters; `None`: another party has ended it. See the top of this file."""
        with self.stack.lock:
            if self.ended:
                return None
            self.ended = True
            return self.waiters

    def land(self) -> None:
        """Let the next scan with this key lead."""
        if self.key is not None and self.stack.cache is not None:
            self.stack.cache.land(self.key, self)

    def _count(self, kind: str) -> None:
        """Note a failure among the outcomes of the last executions; what was cancelled does not count."""
        if kind in {ERROR, TIMEOUT}:
            self.stack.outcomes = failed(self.stack.outcomes)

    def _took(self, seconds: float, *, by_itself: bool) -> None:
        """Remember how long it took; report it if it ended by itself after its deadline.

        Then the watchdog was held up, which needs the interpreter's lock to act. A scanner in a C call that keeps the
        lock (a regular expression that explodes, say) stops every other thread. When the call returns, its worker may
        be the first to go on, and the scan is `completed` long after its timeout.
        """
        stack = self.stack
        seconds -= self.context.postponed - self.context.waited  # what it waited for was not its own
        before = stack.expected  # half of it stays: the last durations count most
        stack.expected = seconds if before == NEVER else 0.5 * (before + seconds)
        if by_itself and seconds > stack.total:
            self._report_lateness(seconds - stack.total)

    def _report_lateness(self, lateness: float) -> None:
        stack = self.stack
        stack.pool.worst_lateness = max(stack.pool.worst_lateness, lateness)
        if stack.bus.wants(DeadlineActedOn):
            stack.bus.send(DeadlineActedOn(self.name, lateness, self.context.run_id, self.context.attempt))

    def _cache_error(self, kind: str, error: ErrorInfo) -> None:
        if self.key is not None and self.stack.cache is not None and kind in (ERROR, TIMEOUT):
            self.stack.cache.put_error(self.key, error)

    def _return_permit(self) -> None:
        """Give the provider's permit back, or the place in its queue, where they were not used."""
        ticket, provider = self._ticket, self._provider
        if ticket is None or provider is None or provider.withdraw(ticket):
            return
        if provider.take_prepaid(self.context):
            provider.release()

    def _take_pending_events(self) -> tuple[Event, ...]:
        """Return, once, the events of the attempt that was abandoned: the watchdog does not send any."""
        with self.stack.lock:
            events, self.pending_events = self.pending_events, ()
        return events

    def _give_back_trial(self) -> tuple[Event, ...]:
        """Give back the trial of the provider's breaker that the attempt is, if it is one; return what that changed.

        Whether the provider is up is not known: a host that takes connections and then hangs is not found out.
        """
        give_back = self.context.give_back
        event = None if give_back is None else give_back()
        return () if event is None else (event,)

    def _wake_scanner(self) -> None:
        """Cancel the scanner's context; one that has overwritten its methods costs nobody else anything."""
        try:
            self.context.cancel()
        except Exception:
            _log.exception("%s: the scanner could not be cancelled", self.name)

    def _send_elsewhere(self, events: Sequence[Event]) -> None:
        """Send events of an execution without waiters: no run's thread is left to do it, and the watchdog must not."""
        if events:
            self.stack.pool.run_soon(lambda: self.stack.send_stored(events, self.context.run_id))

    def outcome(
        self,
        kind: str,
        found: list[Any] | tuple[()],
        entry: Entry | None,
        error: ErrorInfo | None,
        waiter: Waiter | None = None,
        suspicious: str | None = None,
    ) -> Outcome:
        """Describe the execution as it is now, as seen by `waiter` (the first one, unless given)."""
        context = self.context
        waiter = waiter or next(iter(self.waiters), None)
        now = self.stack.clock.monotonic()
        began = min(self._since, now)
        queue_wait = began - waiter.run.since if waiter is not None else 0.0
        started_at = began + waiter.run.epoch if waiter is not None else 0.0
        try:
            kept = found if kind == SUCCESS and isinstance(found, list) else list(found)
            attempts, dropped, logs = context.attempt, context.dropped, context.tool_logs()
        except Exception:  # the scanner has overwritten what its context keeps
            kept, attempts, dropped, logs = [], 1, 0, []
        return Outcome(
            kind, kept, entry, error, attempts, now - began, queue_wait, dropped, logs, started_at, suspicious
        )

    def _timeout(self) -> ScanTimeout:
        policy = self.stack.policy.timeout
        if self.context.timed_out or policy.attempt is None:
            return ScanTimeout(f"timeout after {in_seconds(policy.total)}s", by_clock=True)
        return ScanTimeout(
            f"attempt {self.context.attempt}: timeout after {in_seconds(policy.attempt)}s", by_clock=True
        )

    def _endings(self, kind: str, error: ErrorInfo | None) -> list[Event]:
        """Return the events of an end that comes while an attempt may be under way."""
        began = self.context.close_attempt(self.stack.lock)
        ended = self._ended(kind, error, self.stack.clock.monotonic() - self._since)
        probed = self._probed(kind, error)
        if began is None:
            return [ended, *probed]
        took, outcome = self.stack.clock.monotonic() - began, ERROR if kind == LOCAL else kind
        attempt, run_id = self.context.attempt, self.context.run_id
        return [AttemptEnded(self.name, attempt, outcome, took, error, run_id, ended.at), ended, *probed]

    def _probed(self, kind: str, error: ErrorInfo | None) -> tuple[Event, ...]:
        """Return the event of a probe's end, if it is one."""
        if not self.probe:
            return ()
        reason = "" if error is None else f"{error.kind}: {error.message}"
        outcome, context = CANCELLED if kind == REJECTED else kind, self.context
        return (ProbeEnded(self.name, outcome, reason, self.probe, context.run_id, context.attempt),)

    def _ended(self, kind: str, error: ErrorInfo | None, took: float) -> ExecutionEnded:
        stack, context = self.stack, self.context
        run_id, at = context.run_id, stack.clock.time()
        return ExecutionEnded(stack.name, stack.pipeline, kind, took, context.attempt, error, run_id, at, stack.total)

    def _end_unstarted(self, kind: str, error: ErrorInfo | None) -> None:
        waiters = self._end()
        if waiters is None:
            return
        self.land()
        events = self._take_pending_events()
        if self.context.attempt:  # a successor: there was real work, on another thread
            self._count(kind)
            events += (self._ended(kind, error, self.stack.clock.monotonic() - self._since),)
        events += self._probed(kind, error)
        outcome = self.outcome(kind, self.context.found, None, error)
        for waiter in waiters:
            waiter.end(outcome, events)
            events = ()
        self._send_elsewhere(events)  # what no run's thread has taken

    def _give_up(self, failure: BaseException) -> None:
        """Hand over a failure of our own; a scan that has its result already ignores it."""
        self._end()
        self.land()
        outcome = self.outcome(ERROR, [], None, ErrorInfo.of(failure))
        for waiter in self.waiters:
            waiter.end(outcome)


def described(failure: ScanTimeout) -> ErrorInfo:
    """Describe a timeout. Hundreds may come at once, and looking for secrets in our own words takes 10 µs."""
    return _described(str(failure))


@lru_cache(maxsize=1024)
def _described(text: str) -> ErrorInfo:
    return ErrorInfo.of(ScanTimeout(text, by_clock=True))
