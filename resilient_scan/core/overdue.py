"""An execution whose time is up: what the watchdogs of the pool and of the lane do with it.

    mark_passed   the attempt is slow                        its breaker counts that; the execution goes on
    expire        its time, or its attempt's, is up          it ends; or the next attempt follows on another thread
    lose          the loop that it is on is given up         likewise, but without a vote
    abandon       its thread has not come back in time       it is listed
    late          its thread has come back                   what freed it is listed

An attempt with a time limit of its own that hangs ends the execution in favour of a *successor*, which makes the next
attempt on another thread. It has the same waiters, cache key, start and context variables. Its permit and its worker
must be found before the deadline (`expire_unstarted`). The hung thread keeps the old execution: an answer that still
comes fills the cache.

A watchdog serves everybody: it waits for nobody, no store and no listener. What has to be sent, a run's thread sends
with the outcome, or a worker soon (`_send_elsewhere`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from resilient_scan._log import log as _log
from resilient_scan.core.ending import Ending, described
from resilient_scan.core.hangs import LateEnd
from resilient_scan.errors import ScanTimeout, WorkerLost
from resilient_scan.events import (
    ERROR,
    LOCAL,
    TIMEOUT,
    AttemptEnded,
    DeadlineActedOn,
    Event,
    LoopBlocked,
    ThreadAbandoned,
)
from resilient_scan.results import ErrorInfo

if TYPE_CHECKING:
    from resilient_scan.core.execution import Execution


class Overdue(Ending, eq=False):
    """An execution, as the watchdogs see it."""

    def mark_passed(self) -> None:
        """Count the attempt under way as slow, if it is.

        That may open the breaker. The run's thread sends that event, and does so before the scan's end: the lock keeps
        the execution from ending in between.
        """
        stack, context = self.stack, self.context
        with stack.lock:
            permit = context.permit
            if stack.breaker is None or permit is None:
                return
            change = stack.breaker.note_slow(permit, context.postponed, wait=False)
            events = () if change is None else (change.during(context.run_id),)
            waiter = None if self.ended else next(iter(self.waiters), None)
            if waiter is not None and (events or stack.stored):
                waiter.tell(events)
        if waiter is None:
            self._send_elsewhere(events)

    def expire(self, _thread: str, _age: float, lateness: float, /) -> None:
        """Hand over at the deadline, while the scanner still runs; the events are sent by another thread."""
        try:
            self._expire(lateness)
        except BaseException as failure:  # a bug of ours must not cost the run its end
            _log.exception("%s: the timeout could not be handed over", self.name)
            self._give_up(failure)

    def _expire(self, lateness: float) -> None:
        stack, context = self.stack, self.context
        permit = context.permit
        change = None
        if stack.breaker is not None and permit is not None:
            change = stack.breaker.vote(permit, True, wait=False)  # the thread that sends the events stores the vote
        stack.hung.abandon()
        events: list[Event] = [] if change is None else [change.during(context.run_id)]
        events += self._give_back_trial()
        events.append(DeadlineActedOn(self.name, lateness, context.run_id, context.attempt))
        failure = self._timeout()
        if self._may_retry(failure) and self._hand_to_successor(failure, events):
            return
        waiters = self._end()
        self._timed_out = waiters is not None or context.has_ended  # else it ended in this very moment
        error = described(failure)
        if waiters is not None:
            self._count(TIMEOUT)
            events = [*self._endings(TIMEOUT, error), *events]
        if not waiters:
            self.land()
            self._wake_scanner()
            self._send_elsewhere(events)
            return
        self._cache_error(TIMEOUT, error)
        self.land()
        self._took(stack.clock.monotonic() - self._since, by_itself=False)
        outcome = self.outcome(TIMEOUT, context.found, None, error)
        self._wake_scanner()
        for waiter in waiters:
            waiter.end(outcome, tuple(events) if waiter is waiters[0] else ())

    def _may_retry(self, failure: ScanTimeout) -> bool:
        """Say whether another attempt may come after this one, which hangs."""
        stack, context = self.stack, self.context
        retry = stack.policy.retry
        if retry is None or context.timed_out or context.attempt >= retry.attempts:
            return False
        # A predicate is foreign code, and has no business on the watchdog's thread: the successor asks it.
        listed = isinstance(failure, retry.on) if isinstance(retry.on, tuple) else True
        return listed and stack.may_retry(context)

    def _hand_to_successor(self, failure: ScanTimeout | WorkerLost | None, events: list[Event]) -> bool:
        """Abandon the hung attempt and let a successor go on with the next; `False`: it has ended.

        `ended` and `_successor` change in one step. A waiter that joined or left between the two would be lost: it
        would find this execution ended, without an outcome, and not know the one that will have its outcome.
        """
        stack, context = self.stack, self.context
        make = cast("type[Execution]", type(self)).of
        waiters = self.waiters
        successor = make(stack, waiters[0], self.key) if waiters else None
        with stack.lock:
            if self.ended or successor is None:
                return False
            self.ended = True
            began, context.open_attempt = context.open_attempt, None
            took = 0.0
            if began is not None and failure is not None:
                took, at, error = stack.clock.monotonic() - began, stack.clock.time(), ErrorInfo.of(failure)
                kind = TIMEOUT if isinstance(failure, ScanTimeout) else ERROR
                events.insert(0, AttemptEnded(self.name, context.attempt, kind, took, error, context.run_id, at))
            spent = stack.policy.timeout.attempt or 0.0 if isinstance(failure, ScanTimeout) else took
            successor.context = context.next(failure, spent)
            successor.first, successor.joined, successor.began = None, self._list(), self.began  # one list for both
            successor.variables, successor.probe = self.variables.copy(), self.probe
            self._timed_out = True
            successor.pending_events = tuple(events)
            self._successor = successor
            for waiter in self.waiters:
                waiter.execution = successor
        if stack.cache is not None and self.key is not None:
            stack.cache.hand_on(self.key, self, successor)
            if successor.ended:  # its last waiter left before it led in the cache, and had nothing to land
                successor.land()
        self._wake_scanner()
        stack.pool.at(context.deadline, successor.expire_unstarted)
        successor.go()
        return True

    def expire_unstarted(self) -> None:
        """End a successor whose time is up before a permit and a worker were found for it."""
        if not self._running:
            self._return_permit()
            self._end_unstarted(TIMEOUT, ErrorInfo.of(self._timeout()))

    @property
    def frees_sockets(self) -> bool:
        """Whether a connection may be shut down that its thread waits for."""
        return self.stack.spec.free_sockets

    @property
    def helpers(self) -> Sequence[threading.Thread]:
        """The threads that take part in its work besides its worker's."""
        helpers: Sequence[threading.Thread] = self.context.helpers
        return helpers

    def cut_off(self) -> None:
        """Take no answer from now on: a connection is shut down, and what was read from it may be incomplete."""
        self.context.incomplete = True

    def returned(self) -> None:
        """Note that the thread is back; on that thread."""
        self.stack.hung.returned()

    def abandon(self, thread: str, age: float, hint: str, /) -> None:
        """Report that the thread does not come back."""
        if self._timed_out:
            event = ThreadAbandoned(self.name, thread, age, self.context.run_id, self.context.attempt, hint)
            self.stack.bus.send(event)

    def late(self, end: LateEnd, /) -> None:
        """Report that the thread came back, and what freed it; within the grace period it freed itself."""
        if self._timed_out:
            by_itself = "abandoned" if end.abandoned else "cooperative"
            method = "sockets" if end.by_sockets else self.context.freed_by or by_itself
            stack, context = self.stack, self.context
            end.report(stack.hung, stack.bus.send, method, self._late_kind, context.run_id, context.attempt)

    def postpone(self, seconds: float, /) -> None:
        """Move the deadlines: another scanner has blocked the loop, and this one could do nothing meanwhile."""
        self.context.postpone(seconds)

    def blocks(self, seconds: float, where: str, /) -> None:
        """Leave the lane from the next execution on, and report that: this one blocks the loop."""
        stack, context = self.stack, self.context
        stack.leave_lane()
        event = LoopBlocked(self.name, seconds, where, context.run_id, context.attempt)
        stack.pool.run_soon(lambda: stack.bus.send(event))

    def lose(self, reason: str, /) -> None:
        """Go on with a further attempt, or end, without a vote: the loop it was on is given up."""
        stack, context = self.stack, self.context
        failure = WorkerLost(reason) if context.attempt else None  # it may not have come to its first attempt
        permit = context.permit
        if stack.breaker is not None and permit is not None:
            stack.breaker.vote(permit, None, wait=False)
        self._give_back_trial()
        if self.can_move and self._hand_to_successor(failure, []):
            return
        waiters = self._end()
        self.land()
        context.cancel()
        if waiters is None:
            return
        error = ErrorInfo.of(failure or WorkerLost(reason))
        events = tuple(self._endings(LOCAL, error))
        outcome = self.outcome(ERROR, context.found, None, error)
        for waiter in waiters:
            waiter.end(outcome, events if waiter is waiters[0] else ())
        if not waiters:
            self._send_elsewhere(events)
