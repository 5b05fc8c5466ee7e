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
Most executions do both at once: one that succeeds, and whose answer no other process waits for (`_succeed`).
"""

from __future__ import annotations

import contextvars
from asyncio import CancelledError
from typing import Any

import msgspec

from resilient_scan._log import log as _log
from resilient_scan.context import NEVER
from resilient_scan.core.ending import described
from resilient_scan.core.outcome import REJECTED, Outcome, Waiter, kind_of, run_over
from resilient_scan.core.overdue import Overdue
from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.stack import Stack
from resilient_scan.core.task import SHUT_DOWN, Place
from resilient_scan.errors import Rejected, ScanTimeout, is_cancellation, leaves
from resilient_scan.events import (
    CANCELLED,
    ERROR,
    LOCAL,
    SUCCESS,
    TIMEOUT,
    ExecutionEnded,
    LocalFault,
    SuspiciousResult,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.cache import Entry
from resilient_scan.layers.limit import Ticket
from resilient_scan.layers.local import Fault
from resilient_scan.layers.outcomes import KNOWN
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


class Execution(Overdue, eq=False):
    """The work, as a task of the pool and as its waiters see it."""

    @classmethod
    def of(cls, stack: Stack, waiter: Waiter, key: bytes | None) -> Execution:
        """Make an execution for a scan."""
        run = waiter.run
        return cls(stack, AttemptContext.at(stack.own, run.snapshot, run.run_id), key, waiter, run.variables.copy())

    def join(self, waiter: Waiter) -> bool:
        """Let another scan wait for the outcome; `False`: it has ended."""
        with self.stack.lock:
            successor = self._successor
            if successor is None:
                if self.ended:
                    return False
                self._list().append(waiter)
                waiter.execution = self
                return True
        return successor.join(waiter)

    def is_of(self, waiter: Waiter) -> bool:
        """Return whether it was made for this scan, which still waits for it."""
        return self.waiters[:1] == (waiter,)

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
                waiters = self._list()
                if waiter in waiters:
                    waiters.remove(waiter)
                if waiters or (begun and keep_working and self.key is not None):
                    return begun
                self.ended = self._left = True
        if successor is not None:
            return successor.leave(waiter, keep_working=keep_working)
        self._cancel(begun)
        return begun

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
            waiters = () if self.ended else self.waiters
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
                self.on_lane = True
                lane.execute(self)
        except (RuntimeError, OSError) as error:  # shut down, or the machine has no thread or descriptor to give
            self.refuse(str(error), LOCAL)

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
                for waiter in self.joined or self.waiters:
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
            if self.on_lane:  # in its context already
                self._work()
            else:
                self.variables.run(self._work)
        elif self.on_lane:  # and the stores' calls are made elsewhere
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
                found = stack.lane_call(context) if self.on_lane else stack.call(context)
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

    def _succeed(self, found: list[Any]) -> None:  # noqa: C901 - most executions end here, in a single function
        """Hand the answer over; an answer that comes after the end still fills the cache."""
        self.through = True
        stack, context = self.stack, self.context
        logs = context.drop_state()
        dropped = context.dropped
        doubt = context.doubted or stack.doubt(len(found), dropped)
        cache, key, entry, displaced = stack.cache, self.key, None, None
        if key is not None and cache is not None:
            try:
                entry = cache.entry_of(key, found)
            except BaseException as error:  # copying a candidate runs foreign code
                cache.warn_of_copy(self.name, error)
        if entry is None or cache is None or cache.answers is not None:
            waiters, now = self._end_with(entry, trusted=doubt is None)
        else:  # it ends and lands in one step: the cache has the same lock
            with stack.lock:
                waiters, self.ended = None if self.ended else self.waiters, True
                displaced = cache.settle(key, entry, self, doubt is None)
            now = entry.stored_at
        if waiters is None:
            self._late_kind = SUCCESS
            return
        began = self.began + context.waited
        took = now - began
        stack.answered[stack.place] = now
        if stack.outcomes:  # else none of them has failed
            stack.outcomes = stack.outcomes << 1 & KNOWN  # `succeeded`, without the call
        spent, before = took - context.postponed + context.waited, stack.expected
        stack.expected = spent if before == NEVER else 0.5 * (before + spent)  # `_took`, without the call
        if spent > stack.total:
            self._report_lateness(spent - stack.total)
        if doubt is not None or self.probe:
            self._report_success(doubt, len(found), took)
        elif stack.send_execution is not None:  # what nearly all have to report, without the two calls
            attempt, run_id, at = context.attempt, context.run_id, stack.clock.time()
            stack.send_execution(
                ExecutionEnded(stack.name, stack.pipeline, SUCCESS, took, attempt, None, run_id, at, stack.total)
            )
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
        del displaced  # last: the `__del__` of a candidate that had to make room may hang, and nobody else can end this

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
        reported, fault = self._judged(reported, failure, error)
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

    def _judged(self, kind: str, failure: BaseException, error: ErrorInfo) -> tuple[str, Fault | None]:
        """Return what listeners hear of a failure, and the fault of this machine that it may be."""
        if kind != ERROR:
            return kind, None
        fault = self.context.fault(failure)
        return (LOCAL if fault is None and error.blame == LOCAL else kind), fault  # what it ran on may be gone

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

    def _end_with(self, entry: Entry | None, *, trusted: bool) -> tuple[tuple[Waiter, ...] | None, float]:
        """Put an answer into the cache and the store, a late one too; end, and return the waiters and the time."""
        cache, key = self.stack.cache, self.key
        if entry is None or cache is None or key is None:
            waiters = self._end()
            if waiters is not None:
                self.land()
            return waiters, self.stack.clock.monotonic()
        cache.put(key, entry, self, keep=trusted)
        return self._end(), entry.stored_at

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
