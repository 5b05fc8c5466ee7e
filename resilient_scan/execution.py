"""The way of one scan: gate, cache, a worker with a time limit, the layers, the result.

`begin` is called on the run's thread and ends a scan at once where the cache can; `at_the_gate` stands before it where
a scanner is out of service. Else an `Execution` goes to the pool; on the worker it calls the layers, folded into one
function; the outcome reaches every scan that waits for it through the outbox of that scan's run.
"""

from __future__ import annotations

import threading
from typing import Any

from resilient_scan.context import NEVER
from resilient_scan.engines.tasks import SHUT_DOWN
from resilient_scan.errors import Rejected, ScanTimeout
from resilient_scan.events import AttemptEnded, Event, LateCompletion, ThreadAbandoned
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.layers.limit import Ticket
from resilient_scan.outcome import ErrorInfo, ScanResult, Status
from resilient_scan.quarantine import Turn
from resilient_scan.scans import HIT, MISS, NOT_ASKED, SHARED, STALE, Run, Scan, from_cache, stale_answer, without_work
from resilient_scan.stack import CANCELLED, REJECTED, TIMEOUT, Stack
from resilient_scan.work import Work

# on the run's thread


def at_the_gate(stack: Stack, run: Run) -> Scan | tuple[ScanResult, str]:
    """Start a scan of a scanner that is known at the gate: it is out of service, or a probe, or may pass."""
    decision, mark = stack.turn()
    if decision is Turn.RUN:
        return begin(stack, run)
    turn = stack.clock.monotonic()
    if decision is Turn.PROBE:
        return _probe(Scan(stack, run, turn), mark)
    return without_work(stack, run, turn, Status.DISABLED), NOT_ASKED


def begin(stack: Stack, run: Run) -> Scan | tuple[ScanResult, str]:
    """Start a scan of a scanner in service.

    Returns:
        The scan, which will `end`; or its result, and what the cache had for it, where no work is needed.
    """
    turn = stack.clock.monotonic()
    cache = stack.cache
    key = None if cache is None else run.snapshot.keys[cache.inputs]
    if cache is None or key is None:
        if cache is not None:
            cache.warn_once(stack.name)
        scan = Scan(stack, run, turn)
        _lead(scan, Execution(stack, scan, None))
        return scan
    entry = cache.at_hand(key)
    if entry is None and cache.shelf is not None:
        entry = cache.fresh(key) or cache.recall(key)
    if entry is None:
        scan = Scan(stack, run, turn)
        entry = _lead_or_follow(scan, cache, key)
        if entry is None:
            return scan
    if entry.error is not None:
        return _remembered(Scan(stack, run, turn), key, entry.error)
    copies = cache.copies(key, entry) if entry.candidates else []
    if copies is None:  # forgotten, because it cannot be copied
        return begin(stack, run)
    return from_cache(stack, run, turn, entry, copies), HIT


def _remembered(scan: Scan, key: bytes, error: ErrorInfo) -> tuple[ScanResult, str]:
    """End a scan with a failure that is still remembered, or the older answer that stands in for it."""
    scan.key = key
    stale = stale_answer(scan, None, error)
    if stale is not None:
        return stale, STALE
    status = Status.TIMEOUT if error.kind == ScanTimeout.__name__ else Status.ERROR
    return without_work(scan.stack, scan.run, scan.turn, status, error), HIT


def _probe(scan: Scan, mark: str) -> Scan:
    """Test a scanner that is out of service: its answer fills the cache, and nobody else's is read or waited for."""
    stack = scan.stack
    key = None if stack.cache is None else scan.run.snapshot.keys[stack.cache.inputs]
    execution = Execution(stack, scan, key)
    scan.probe = execution.probe = mark
    if stack.guard is not None:
        stack.guard.hasten()
    _lead(scan, execution)
    return scan


def _lead(scan: Scan, execution: Execution) -> None:
    scan.execution, scan.leads = execution, True
    scan.queued = scan.stack.provider is None
    clerk, key = scan.stack.clerk, scan.key
    if clerk is not None and key is not None:
        if not clerk.claim(scan.stack.address(key), scan.stack.total, execution):
            scan.queued = False  # another process works on it, and a place in the window is not kept for that
            return
        if execution.answered():  # between the look and the claim
            return
    if scan.stack.provider is None:
        execution.queue()
    else:
        execution.go()


def _lead_or_follow(scan: Scan, cache: ResultCache[Any], key: bytes) -> Entry | None:
    """Start an execution, or join the one that is under way; an answer that came just now is returned."""
    mine = Execution(scan.stack, scan, key)
    scan.cache, scan.key = MISS, key
    while True:
        leader = cache.lead(key, mine)
        if isinstance(leader, Entry):
            return leader
        if leader is not mine and leader.join(scan):
            scan.cache = SHARED
            return None
        if leader is mine or cache.hand_on(key, leader, mine):  # one that is over, and about to land
            _lead(scan, mine)
            return None
        # it has landed meanwhile: look again


class Execution(Work):
    """Work as a task of the pool, which may be refused, or hang.

    An attempt with a time limit of its own that hangs ends the execution too, in favour of a successor on another
    thread:

        execution --- its attempt hangs: `expire`, `_pass_on` ---> successor (the same scans, cache key, start and
            |                                                          |      context variables; the next attempt)
            +- its thread comes back: an answer fills the cache        +- waits for a permit and a worker, or is
               (`late`), and nobody is told anything else                 `overdue`; its end goes to the scans
    """

    def answered(self) -> bool:
        """Look whether another process has brought the answer, and end with it; `False`: there is none."""
        cache, key = self.stack.cache, self._key
        entry = None if cache is None or key is None else cache.recall(key)
        if cache is None or key is None or entry is None or entry.error is not None:
            return False
        for scan in self._settle() or ():
            scan.leads, scan.cache = False, SHARED
            copies = cache.copies(key, entry) or []
            scan.end(from_cache(self.stack, scan.run, scan.turn, entry, copies))
        self.land()
        return True

    def go(self) -> None:
        """Hand it to the pool, once its provider, if it has one, has a permit for it."""
        stack, context = self.stack, self.context
        provider = context.provider = stack.provider
        if provider is None or (stack.guard is not None and stack.guard.is_open()):
            self.queue()
            return
        ticket = self._ticket = Ticket(self._permitted, self._turn_down)
        provider.request(ticket, min(context.deadline, stack.clock.monotonic() + stack.total))

    def _permitted(self) -> None:
        provider = self.stack.provider
        if provider is not None:
            provider.prepay(self.context)
        self.queue()

    def queue(self) -> None:
        """Hand it to the pool."""
        try:
            self.stack.pool.execute(self)
        except RuntimeError as error:  # shut down, or the machine has no thread to give
            self.refuse(str(error))

    def refuse(self, reason: str, /) -> None:
        """Hand over without a start."""
        self._give_back()
        if reason == SHUT_DOWN:
            self._refuse_as(CANCELLED, None)
        else:
            self._turn_down(Rejected(reason))

    def _turn_down(self, refusal: Rejected) -> None:
        failure = self.context.failure
        self._refuse_as(REJECTED if failure is None else TIMEOUT, ErrorInfo.of(failure or refusal))

    def _refuse_as(self, kind: str, error: ErrorInfo | None) -> None:
        scans = self._settle()
        if scans is None:
            return
        self.land()
        events = self._inherited()
        if self.context.attempt:  # a successor: there was real work, on another thread
            events += (self._ended(kind, error, self.stack.clock.monotonic() - self.began),)
        events += self._probed(kind, error)
        outcome = self.outcome(kind, self.context.found, None, error)
        for scan in scans:
            scan.end(outcome, events)
            events = ()

    def stop(self) -> None:
        """Cancel the work: the runner is closed, and nobody can ask its cache any more."""
        scans = self._settle()
        if scans is None:
            self.context.cancel()
            return
        self._cancel(begun=self.began != NEVER)
        outcome = self.outcome(CANCELLED, [], None, None)
        for scan in scans:
            scan.end(outcome)

    # on the watchdog's thread

    def expire(self, thread: str, age: float, /) -> None:
        """Hand over at the deadline, while the scanner still runs; events are sent by somebody else."""
        stack, context = self.stack, self.context
        permit = context.permit
        change = None
        if stack.guard is not None and permit is not None:
            change = stack.guard.vote(permit, True, wait=False)  # whoever sends the events brings it to the store
        stack.hung.left()
        left: list[Event] = [ThreadAbandoned(self.name, thread, age, context.run_id, context.attempt)]
        if change is not None:
            left.append(change.during(context.run_id))
        failure = self._timeout()
        if self._may_follow(failure) and self._pass_on(failure, left):
            return
        scans = self._settle()
        if scans is None and not context.cancelled:  # it ended in this very moment
            left = left[1:]
            self._tell_left(left=False)
        else:
            left += self._tell_left(left=True)
        error = ErrorInfo.of(failure)
        events = [*(self._endings(TIMEOUT, error) if scans is not None else ()), *left]
        if not scans:  # every run that wanted it is over: a thread of its own tells the listeners
            self.land()
            context.cancel()
            if not events:
                return
            threading.Thread(target=stack.tell, args=(events, context.run_id), daemon=True).start()
            return
        self._remember(TIMEOUT, error)
        self.land()
        stack.took(stack.clock.monotonic() - self.began)
        outcome = self.outcome(TIMEOUT, context.found, None, error)
        context.cancel()
        for scan in scans:
            scan.end(outcome, tuple(events) if scan is scans[0] else ())

    def _may_follow(self, failure: ScanTimeout) -> bool:
        """Say whether another attempt may come after this one, which hangs."""
        stack, context = self.stack, self.context
        retry = stack.policy.retry
        if retry is None or context.timed_out or context.attempt >= retry.attempts:
            return False
        return isinstance(failure, retry.on) and stack.may_retry()

    def _pass_on(self, failure: ScanTimeout, events: list[Event]) -> bool:
        """Leave the hanging attempt behind and let a successor go on with the next; `False`: it is over."""
        stack, context = self.stack, self.context
        heir = Execution(stack, self.scans[0], self._key) if self.scans else None
        with stack.lock:
            if self.over or heir is None:
                return False
            self.over = True
            began, context.open_attempt = context.open_attempt, None
            if began is not None:
                took, error = stack.clock.monotonic() - began, ErrorInfo.of(failure)
                events.insert(0, AttemptEnded(self.name, context.attempt, TIMEOUT, took, error, context.run_id))
            heir.context = context.next(failure, stack.policy.timeout.attempt or 0.0)
            heir.scans, heir.began, heir.variables = self.scans, self.began, self.variables.copy()
            heir.probe = self.probe
            self._left = True
            if self._late_age is not None:  # and it has come back already
                events.append(self._late_completion(self._late_age))
            heir.inheritance = tuple(events)
            self._successor = heir
            for scan in self.scans:
                scan.execution = heir
        if stack.cache is not None and self._key is not None:
            stack.cache.hand_on(self._key, self, heir)
            if heir.over:  # its last run went away before it led, and had nothing to land
                heir.land()
        context.cancel()
        stack.pool.at(context.deadline, heir.overdue)
        heir.go()
        return True

    def overdue(self) -> None:
        """End a successor whose time is over before a permit and a worker were found for it."""
        if not self._running:
            self._give_back()
            self._refuse_as(TIMEOUT, ErrorInfo.of(self._timeout()))

    def late(self, age: float, /) -> None:
        """Note that the thread has ended after all."""
        stack = self.stack
        stack.hung.came_back()
        with stack.lock:
            left = self._left
            if left is None:  # the watchdog is just telling, and goes on with this
                self._late_age = age
        if left:
            stack.bus.send(self._late_completion(age))

    def _tell_left(self, *, left: bool) -> tuple[Event, ...]:
        """Decide whether the thread counts as left behind; return what is to be told of its return already."""
        with self.stack.lock:
            self._left = left
            age = self._late_age
        return () if age is None or not left else (self._late_completion(age),)

    def _late_completion(self, age: float) -> LateCompletion:
        return LateCompletion(self.name, age, self._late_kind, self.context.run_id, self.context.attempt, self._rung)
