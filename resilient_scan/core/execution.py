"""An execution: the real work behind one or more scans of one scanner.

                     go                 start              run
    made ---------> waits for --------> waits for --------> runs on ---------> ended
                    a permit            a worker            a worker
                       |                   |                   |
                       | no turn in time   | no thread left,   | its time is up: the watchdog hands over;
                       v                   v pool shut down    v the thread may go on, abandoned
                     ended               ended               ended, or passed on to a successor

It ends once. Seven parties may want to end it, on different threads:

    the worker          the layers returned or raised           `_succeed`, `_fail`
    the watchdog        the time is up                          `expire`, `expire_unstarted`
    a run's thread      its last waiter leaves                  `leave`
    another process     has brought the answer                  `answered`
    the provider        no turn before the deadline             `_reject`
    the pool            no thread can run it                    `refuse`
    close()             the runner is closed                    `stop`

`stack.lock` decides between them: the first to set `ended` under it has the waiters, and hands the outcome over. Most
do that through `_end`, which returns `None` to every other party; that one reports no outcome. Take a scanner that
returns 0.1 ms before its timeout: both its worker and the watchdog build an outcome. Without the lock both would hand
theirs over, and the execution would be counted twice, as a success and as a timeout.

To end is one step, to *land* in the cache (so that the next scan with this key leads) is another, and waiters may join
only before the first. A scan that finds an execution ended but not landed takes its place in the cache (see `scan`).
"""

from __future__ import annotations

import contextvars
import threading
from asyncio import CancelledError
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from resilient_scan._log import log as _log
from resilient_scan._text import in_seconds
from resilient_scan.context import NEVER
from resilient_scan.core.outcome import Outcome, Waiter, run_over
from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.stack import REJECTED, Stack, kind_of
from resilient_scan.core.task import SHUT_DOWN, LateEnd, Place
from resilient_scan.errors import Rejected, ScanTimeout, WorkerLost, is_cancellation, leaves
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
    LocalFault,
    LoopBlocked,
    ProbeEnded,
    SuspiciousResult,
    ThreadAbandoned,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.cache import Entry
from resilient_scan.layers.limit import Provider, Ticket
from resilient_scan.layers.local import Fault
from resilient_scan.layers.outcomes import KNOWN, failed
from resilient_scan.results import ErrorInfo, ScanResult, Status
from resilient_scan.stores.health import WaitBudget

_NO_ERROR = ErrorInfo("", "")
_COMPLETED = Status.COMPLETED
_pools: contextvars.ContextVar[tuple[ThreadPool, ...]] = contextvars.ContextVar("pools", default=())


def works_for(pool: ThreadPool) -> bool:
    """Say whether the caller is part of work for this pool: a scanner, or what it calls or has started."""
    return any(one is pool for one in _pools.get())


def mark_work(pool: ThreadPool) -> None:
    """Note that what runs in these context variables from now on is part of work for this pool."""
    _pools.set((*_pools.get(), pool))


class Execution(msgspec.Struct, eq=False):
    """The work, as a task of the pool and as its waiters see it.

    An attempt with a time limit of its own that hangs ends the execution too, in favour of a *successor*, which makes
    the next attempt on another thread. It has the same waiters, cache key, start and context variables. Its permit and
    its worker must be found before the deadline (`expire_unstarted`). The hung thread keeps the old execution: an
    answer that still comes fills the cache.

    Attributes:
        stack: the scanner's layers.
        context: of its attempts.
        key: of the cache; `None`: nobody else can use the answer.
        waiters: the scans that wait for it, the first of which it was made for.
        variables: the context variables that it runs in.
        began: when a worker began it, monotonic; a successor has the first attempt's.
        ended: whether anybody has ended it.
        through: whether its worker is done with it and hands over, or has.
        passes_over_stored: whether it asks its source although there may be an answer, which cannot be copied.
        probe: its mark, where it tests a scanner that is out of service.
        pending_events: of the attempt that was abandoned before this successor.
    """

    stack: Stack
    context: AttemptContext
    key: bytes | None
    waiters: list[Waiter]
    variables: contextvars.Context
    began: float = NEVER
    ended: bool = False
    through: bool = False
    passes_over_stored: bool = False
    probe: str = ""
    pending_events: tuple[Event, ...] = ()
    _running: bool = False
    _left: bool = False  # ended because its last waiter left
    _late_kind: str = ERROR
    _timed_out: bool = False  # whether the watchdog took it from its thread
    _on_lane: bool = False  # whether it runs on the shared event loop
    _successor: Execution | None = None
    _ticket: Ticket | None = None  # in the queue of its provider
    _provider: Provider | None = None  # whose queue that is

    @classmethod
    def of(cls, stack: Stack, waiter: Waiter, key: bytes | None) -> Execution:
        """Make an execution for a scan."""
        run = waiter.run
        return cls(stack, AttemptContext.at(stack.own, run.snapshot, run.run_id), key, [waiter], run.variables.copy())

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

    # waiters; on a run's thread

    def join(self, waiter: Waiter) -> bool:
        """Let another scan wait for the outcome; `False`: it has ended."""
        with self.stack.lock:
            successor = self._successor
            if successor is None:
                if self.ended:
                    return False
                self.waiters.append(waiter)
                waiter.execution = self
                return True
        return successor.join(waiter)

    def leave(self, waiter: Waiter, *, keep_working: bool) -> bool | None:
        """Take back a scan whose run has ended.

        Args:
            waiter: one that waits for this execution.
            keep_working: whether the work goes on for the cache's sake (a run's deadline) or not (a user's cancel).

        Returns:
            Whether the work has begun; `None`: it has ended, and the outcome is on its way to the scan.

        Where an interrupt has cut it short, it can be called again: what the execution holds is given back then.
        """
        with self.stack.lock:
            successor, begun = self._successor, self.began != NEVER
            if successor is None and not self._left:
                if self.ended:
                    return None
                if waiter in self.waiters:
                    self.waiters.remove(waiter)
                if self.waiters or (begun and keep_working and self.key is not None):
                    return begun
                self.ended = self._left = True
        if successor is not None:
            return successor.leave(waiter, keep_working=keep_working)
        self._cancel(begun)
        return begun

    # before a worker takes it

    @property
    def answer_key(self) -> str:
        """The key under which the store has the answer that another process has brought; empty: it takes none."""
        cache, key = self.stack.cache, self.key
        if cache is None or cache.answers is None or key is None or self.passes_over_stored:
            return ""
        return cache.answers.stored_as(key)

    def answered(self, data: bytes, now: float) -> bool:
        """End with the answer that another process has brought; `False`: it is of no use."""
        cache, key = self.stack.cache, self.key
        entry = None if cache is None or key is None else cache.load(key, data, now)
        if entry is None or entry.error is not None:
            return False
        for waiter in self._end() or ():
            waiter.end_cached(entry)
        self.land()
        return True

    def held_up(self) -> None:
        """Note that another process works on the same, and that it waits for that one."""
        with self.stack.lock:
            waiters = [] if self.ended else self.waiters.copy()
        for waiter in waiters:
            waiter.hold_up()

    def _leave_group(self) -> None:
        """Let another execution be granted a lease: this one needs no worker yet, or has got one."""
        leases, key = self.stack.leases, self.key
        if leases is not None and key is not None:
            leases.started(self.stack.address(key))

    def go(self) -> None:
        """Queue it, once its provider, if it has one, has a permit for it."""
        stack, context = self.stack, self.context
        provider = self._provider = context.provider = stack.provider
        if provider is None or (stack.breaker is not None and stack.breaker.is_open()) or provider.is_down:
            self.queue()
            return
        self._leave_group()  # it may wait for its turn for long
        ticket = self._ticket = Ticket(self._permitted, self._reject)
        until = min(context.deadline, stack.clock.monotonic() + stack.total)
        provider.request(ticket, until, max((waiter.run.deadline for waiter in self.waiters), default=until))

    def _permitted(self) -> None:
        if self._provider is not None:
            self._provider.prepay(self.context)
        self.queue()

    def queue(self) -> None:
        """Hand it to the pool, or to the lane."""
        lane = self.stack.lane
        try:
            if lane is None:
                self.stack.pool.execute(self)
            else:
                self._on_lane = True
                lane.execute(self)
        except (RuntimeError, OSError) as error:  # shut down, or the machine has no thread or descriptor to give
            self.refuse(str(error), LOCAL)

    def _return_permit(self) -> None:
        """Give the provider's permit back, or the place in its queue, where they were not used."""
        ticket, provider = self._ticket, self._provider
        if ticket is None or provider is None or provider.withdraw(ticket):
            return
        if provider.take_prepaid(self.context):
            provider.release()

    # on a worker

    def start(self, now: float, place: Place, /) -> float | None:
        """Begin and return the deadline, unless every run that wanted it has ended."""
        stack, context = self.stack, self.context
        if stack.has_alarms:
            context.alarm, context.mark = place.alarm, place.set_mark
        with stack.lock:
            if not self.ended:
                if self.began != NEVER:  # a successor: the time runs since the first attempt
                    self._running = True
                    return context.deadline
                for waiter in self.waiters:
                    until = waiter.run.deadline
                    if now < until:
                        self.began, deadline = now, now + stack.total
                        if self.key is None:
                            context.limit(deadline, until)
                        else:  # others can use the answer after the run's end
                            context.deadline = context.ends = deadline
                        return deadline
            late = () if self.ended else self.waiters
            self.ended = True
        self._return_permit()
        self.land()
        stack.bus.send_all(self._probed(CANCELLED, None))
        for waiter in late:
            waiter.end_skipped()
        return None

    def run(self) -> None:
        """Call the scanner through all its layers and hand over; never raises."""
        if not self.stack.stored:
            if self._on_lane:  # in its context already
                self._work()
            else:
                self.variables.run(self._work)
        elif self._on_lane:  # and the stores' calls are made elsewhere
            self._leave_group()
            self._work()
        else:
            with WaitBudget():
                self._leave_group()
                self.variables.run(self._work)

    def _work(self) -> None:
        try:
            stack, context = self.stack, self.context
            try:
                if self.pending_events:
                    stack.bus.send_all(self._take_pending_events())
                if stack.hung.count:
                    stack.hung.admit(context)
                found = stack.lane_call(context) if self._on_lane else stack.call(context)
                if context.incomplete:  # what a shut connection gives looks like an answer, and may be half of one
                    raise ScanTimeout("a connection was shut down after the timeout")
            except BaseException as failure:
                self._fail(failure)
            else:
                self._succeed(found)
            finally:
                if self._ticket is not None:
                    self._return_permit()
        except BaseException as failure:  # a bug of ours must not cost the run its end
            _log.exception("%s: the scan could not be ended", self.name)
            self._give_up(failure)

    def _give_up(self, failure: BaseException) -> None:
        """Hand over a failure of our own; a scan that has its result already ignores it."""
        self._end()
        self.land()
        outcome = self.outcome(ERROR, [], None, ErrorInfo.of(failure))
        for waiter in self.waiters:
            waiter.end(outcome)

    def _take_pending_events(self) -> tuple[Event, ...]:
        """Return, once, the events of the attempt that was abandoned: the watchdog does not send any."""
        with self.stack.lock:
            events, self.pending_events = self.pending_events, ()
        return events

    # how it ends

    def _end(self) -> list[Waiter] | None:
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

    def _succeed(self, found: list[Any]) -> None:  # noqa: C901 - most executions end here, in a single function
        """Hand the answer over; an answer that comes after the end still fills the cache."""
        self.through = True
        stack, context = self.stack, self.context
        logs = context.drop_state()
        dropped = context.dropped
        doubt = context.doubted or stack.doubt(len(found), dropped)
        cache, key, entry = stack.cache, self.key, None
        if key is not None and cache is not None:
            try:
                entry = cache.entry_of(found)
            except BaseException as error:  # copying a candidate runs foreign code
                _log.warning("%s: the answer is not cached, a candidate cannot be copied: %s", self.name, error)
        if entry is None or cache is None or cache.answers is not None:
            waiters, now = self._end_with(entry, trusted=doubt is None)
        else:  # it ends and lands in one step: the cache has the same lock
            with stack.lock:
                waiters, self.ended = None if self.ended else self.waiters, True
                displaced = cache.settle(key, entry, self, doubt is None)
            del displaced
            now = entry.stored_at
        if waiters is None:
            self._late_kind = SUCCESS
            return
        began = self.began
        took = now - began
        stack.answered[stack.name] = now
        stack.outcomes = stack.outcomes << 1 & KNOWN  # `succeeded`, without the call
        spent, before = took - context.postponed, stack.expected
        stack.expected = spent if before == NEVER else 0.5 * (before + spent)  # `_took`, without the call
        if spent > stack.total:
            self._report_lateness(spent - stack.total)
        if doubt is not None or self.probe or stack.send_execution is not None:
            self._report_success(doubt, len(found), took)
        for waiter in waiters:
            if not waiter.leads:
                waiter.end(self.outcome(SUCCESS, found, entry, None, suspicious=doubt))
                continue
            run = waiter.run
            waiter.answer = ScanResult(  # here and not on the run's thread: workers are many, and it is one
                stack.name,
                stack.pipeline,
                _COMPLETED,
                found,
                None,
                context.attempt,
                took,
                began - run.since,
                None,
                False,
                dropped,
                logs,
                began + run.epoch,
                doubt,
            )
            run.outbox.put(waiter)  # `waiter.end`, without the call

    def _report_success(self, doubt: str | None, found: int, took: float) -> None:
        stack, context = self.stack, self.context
        if doubt is not None:
            run_id, attempt = context.run_id, context.attempt
            stack.bus.send(SuspiciousResult(stack.name, stack.pipeline, doubt, found, context.dropped, run_id, attempt))
        if stack.send_execution is not None:
            stack.send_execution(self._ended(SUCCESS, None, took))
        if self.probe:
            stack.bus.send_all(self._probed(SUCCESS, None))

    def _fail(self, failure: BaseException) -> None:
        """Hand the failure over; after the end, note how the thread was freed."""
        self.through = True
        context = self.context
        kind = reported = kind_of(failure, context)  # what the scan ends as, and what listeners hear
        cancelled = is_cancellation(failure)
        # Before the end: once it has ended here, a watchdog that comes second cancels the context all the same.
        on_its_own = cancelled and not context.abandoned and kind != ERROR
        # So is this, because it calls the exception's `__str__`, which may hang; not where the exception is ours.
        error = _NO_ERROR if on_its_own else context.describe(failure)
        fault = context.fault(failure) if reported == ERROR else None
        context.drop_state()
        context.forget_failure()
        waiters = self._end()
        if waiters is None:
            if cancelled and not context.freed_by:  # by itself, or by a loop of the scanner's own
                own_loop = any(isinstance(leaf, CancelledError) for leaf in leaves(failure))
                context.freed_by = "cancel" if own_loop else "cooperative"
            return
        if on_its_own:
            # it noticed a deadline before the watchdog did: its own, or its run's, which is not its fault
            failure = self._timeout() if kind == TIMEOUT else run_over(waiters[0], self.stack.clock.monotonic())
            error, kind = described(failure), TIMEOUT  # of another exception than the attempt's
        if fault is None:
            self._cache_error(reported, error)
        self.land()
        attempted = context.attempt > 0
        if reported == REJECTED:  # perhaps amid its first attempt, which therefore does not count
            context.attempt = 0
        outcome = self.outcome(kind, context.found, None, error)
        if fault is None:
            self._report_failure(reported, error, outcome.duration, attempted=attempted)
        else:
            outcome = self._failed_by(fault, outcome, error)
        for waiter in waiters:
            waiter.end(outcome)

    def _failed_by(self, fault: Fault, outcome: Outcome, error: ErrorInfo) -> Outcome:
        """Report that it failed by what may be this machine's fault, once that is decided; return its outcome."""

        def report() -> None:
            known = error.blamed(fault.blame(error.blame))
            if not fault.local:
                self._cache_error(ERROR, known)
                self._report_failure(ERROR, known, outcome.duration, attempted=True)
                return
            stack, context = self.stack, self.context
            first, at = stack.faults.ended(fault), stack.clock.time()
            if stack.bus.wants(LocalFault):
                stack.bus.send(LocalFault(self.name, fault.kind, known, context.run_id, context.attempt, at, first))
            self._report_failure(LOCAL, known, outcome.duration, attempted=True)

        fault.then(report)
        if not self.waiters:  # no run's thread waits for the decision
            self.stack.faults.look(fault)
        return msgspec.structs.replace(outcome, fault=fault)

    def _report_failure(self, kind: str, error: ErrorInfo, took: float, *, attempted: bool) -> None:
        """Learn how long it took, and send its last events."""
        stack = self.stack
        self._count(kind)
        if kind != REJECTED:  # a worker had begun it, though the time may have been up before the first attempt
            self._took(took, by_itself=kind in {ERROR, LOCAL})
        if stack.send_execution is not None and (kind != REJECTED or attempted):
            stack.send_execution(self._ended(CANCELLED if kind == REJECTED else kind, error, took))
        if self.probe:
            stack.bus.send_all(self._probed(kind, error))

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
        seconds -= self.context.postponed  # what it waited for was not its own
        before = stack.expected  # half of it stays: the last durations count most
        stack.expected = seconds if before == NEVER else 0.5 * (before + seconds)
        if by_itself and seconds > stack.total:
            self._report_lateness(seconds - stack.total)

    def _report_lateness(self, lateness: float) -> None:
        stack = self.stack
        stack.pool.worst_lateness = max(stack.pool.worst_lateness, lateness)
        if stack.bus.wants(DeadlineActedOn):
            stack.bus.send(DeadlineActedOn(self.name, lateness, self.context.run_id, self.context.attempt))

    def _end_with(self, entry: Entry | None, *, trusted: bool) -> tuple[list[Waiter] | None, float]:
        """Put an answer into the cache and the store, a late one too; end, and return the waiters and the time."""
        cache, key = self.stack.cache, self.key
        if entry is None or cache is None or key is None:
            waiters = self._end()
            if waiters is not None:
                self.land()
            return waiters, self.stack.clock.monotonic()
        cache.put_entry(key, entry, self, keep=trusted)
        return self._end(), entry.stored_at

    def _cache_error(self, kind: str, error: ErrorInfo) -> None:
        if self.key is not None and self.stack.cache is not None and kind in (ERROR, TIMEOUT):
            self.stack.cache.put_error(self.key, error)

    def refuse(self, reason: str, blame: str = "", /) -> None:
        """End without a start: the pool has no thread for it, or is shut down."""
        self._return_permit()
        if reason == SHUT_DOWN:
            self._end_unstarted(CANCELLED, None)
        else:
            refusal = Rejected(reason)
            refusal.blame = blame or refusal.blame
            self._reject(refusal)

    def _reject(self, refusal: Rejected) -> None:
        failure = self.context.failure
        self._end_unstarted(REJECTED if failure is None else TIMEOUT, ErrorInfo.of(failure or refusal))

    def _end_unstarted(self, kind: str, error: ErrorInfo | None) -> None:
        waiters = self._end()
        if waiters is None:
            return
        self.land()
        events = self._take_pending_events()
        if self.context.attempt:  # a successor: there was real work, on another thread
            self._count(kind)
            events += (self._ended(kind, error, self.stack.clock.monotonic() - self.began),)
        events += self._probed(kind, error)
        outcome = self.outcome(kind, self.context.found, None, error)
        for waiter in waiters:
            waiter.end(outcome, events)
            events = ()
        self._send_elsewhere(events)  # what no run's thread has taken

    def stop(self) -> None:
        """Cancel the work: the runner is closed, and nobody can ask its cache any more."""
        waiters = self._end()
        if waiters is None:
            self._wake_scanner()
            return
        self._cancel(begun=self.began != NEVER)
        outcome = self.outcome(CANCELLED, [], None, None)
        for waiter in waiters:
            waiter.end(outcome)

    def _cancel(self, begun: bool) -> None:
        """Give back what it holds, wake the scanner and send the last events, once it has been cancelled."""
        stack, context = self.stack, self.context
        self._return_permit()
        self.land()
        permit = context.permit
        if stack.breaker is not None and permit is not None:
            stack.breaker.vote(permit, None)
        given_back = self._give_back_trial()
        self._wake_scanner()
        stack.bus.send_all(given_back)
        if begun:
            stack.bus.send_all([*self._take_pending_events(), *self._endings(CANCELLED, None)])
        else:
            stack.bus.send_all(self._probed(CANCELLED, None))

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

    # on the watchdog's thread

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
            waiter = self.waiters[0] if self.waiters and not self.ended else None
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
        self._took(stack.clock.monotonic() - self.began, by_itself=False)
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
        successor = Execution.of(stack, self.waiters[0], self.key) if self.waiters else None
        with stack.lock:
            if self.ended or successor is None:
                return False
            self.ended = True
            began, context.open_attempt = context.open_attempt, None
            took = 0.0
            if began is not None and failure is not None:
                took, error = stack.clock.monotonic() - began, ErrorInfo.of(failure)
                kind = TIMEOUT if isinstance(failure, ScanTimeout) else ERROR
                events.insert(0, AttemptEnded(self.name, context.attempt, kind, took, error, context.run_id))
            spent = stack.policy.timeout.attempt or 0.0 if isinstance(failure, ScanTimeout) else took
            successor.context = context.next(failure, spent)
            successor.waiters, successor.began = self.waiters, self.began
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

    # on the lane

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
        self._count(ERROR)
        error = ErrorInfo.of(failure or WorkerLost(reason))
        events = tuple(self._endings(ERROR, error))
        outcome = self.outcome(ERROR, context.found, None, error)
        for waiter in waiters:
            waiter.end(outcome, events if waiter is waiters[0] else ())
        if not waiters:
            self._send_elsewhere(events)

    # what is reported

    def _send_elsewhere(self, events: Sequence[Event]) -> None:
        """Send events of an execution without waiters: no run's thread is left to do it, and the watchdog must not."""
        if events:
            self.stack.pool.run_soon(lambda: self.stack.send_stored(events, self.context.run_id))

    def outcome(
        self,
        kind: str,
        found: list[Any],
        entry: Entry | None,
        error: ErrorInfo | None,
        waiter: Waiter | None = None,
        suspicious: str | None = None,
    ) -> Outcome:
        """Describe the execution as it is now, as seen by `waiter` (the first one, unless given)."""
        context = self.context
        waiter = waiter or (self.waiters[0] if self.waiters else None)
        now = self.stack.clock.monotonic()
        began = min(self.began, now)
        queue_wait = began - waiter.run.since if waiter is not None else 0.0
        started_at = began + waiter.run.epoch if waiter is not None else 0.0
        try:
            kept = found if kind == SUCCESS else list(found)
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
        ended = self._ended(kind, error, self.stack.clock.monotonic() - self.began)
        probed = self._probed(kind, error)
        if began is None:
            return [ended, *probed]
        took = self.stack.clock.monotonic() - began
        return [AttemptEnded(self.name, self.context.attempt, kind, took, error, self.context.run_id), ended, *probed]

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


def described(failure: ScanTimeout) -> ErrorInfo:
    """Describe a timeout. Hundreds may come at once, and looking for secrets in our own words takes 10 µs."""
    return _described(str(failure))


@lru_cache(maxsize=1024)
def _described(text: str) -> ErrorInfo:
    return ErrorInfo.of(ScanTimeout(text, by_clock=True))
