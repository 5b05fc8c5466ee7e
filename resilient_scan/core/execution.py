"""The work for one or more scans of one scanner: begun once, ended once, by whoever comes first."""

from __future__ import annotations

import contextvars
import logging
import threading
from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any

from resilient_scan.clock import short
from resilient_scan.context import NEVER, ScanContext
from resilient_scan.core.pool import SHUT_DOWN, Place
from resilient_scan.core.scan import (
    HIT,
    MISS,
    NOT_ASKED,
    SHARED,
    STALE,
    Outcome,
    Run,
    Scan,
    from_cache,
    result_of,
    stale_answer,
    without_work,
)
from resilient_scan.core.stack import CANCELLED, ERROR, REJECTED, SUCCESS, TIMEOUT, Stack, kind_of
from resilient_scan.errors import Rejected, ScanCancelled, ScanTimeout
from resilient_scan.events import (
    AttemptEnded,
    Event,
    ExecutionEnded,
    LateCompletion,
    ProbeEnded,
    SuspiciousResult,
    ThreadAbandoned,
)
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.layers.limit import Ticket
from resilient_scan.quarantine import Turn
from resilient_scan.results import ErrorInfo, ScanResult, Status
from resilient_scan.stores.health import Brief

_log = logging.getLogger("resilient_scan")


class Work:
    """What an execution is to the scans that wait for it, and to its worker.

    It ends once. Four may want to end it: its worker, the watchdog, a run that is over, a pool without a free thread;
    the first one under the lock does, and lands its flight in the cache; the others find it over. A scan that finds it
    over and not landed yet takes its place.
    """

    # Set only where they differ: most executions are of one scan, with an answer, and over soon.
    probe = ""  # its mark, where it tests a scanner that is out of service
    _running = False
    through = False  # whether its worker is done with it and hands over, or has
    _late_kind = ERROR
    _rung = "abandoned"  # what freed its thread, where that comes late
    _left: bool | None = None  # whether listeners were told that its thread was left behind; None: not decided yet
    _late_age: float | None = None  # when it came back before that was decided
    _successor: Work | None = None
    _ticket: Ticket | None = None  # in the queue of its provider
    inheritance: tuple[Event, ...] = ()

    def __init__(self, stack: Stack, scan: Scan, key: bytes | None) -> None:
        self.stack = stack
        self.context = ScanContext.at(stack.home, scan.run.snapshot)
        self.context.run_id = scan.run.run_id
        self._key = key
        self.scans = [scan]
        self.began = NEVER
        self.over = False
        self.variables = contextvars.copy_context()

    @property
    def name(self) -> str:
        """The scanner's name."""
        return self.stack.name

    def _give_back(self) -> None:
        """Give the provider's permit back, or the place in its queue, where they were not used."""
        ticket, provider = self._ticket, self.stack.provider
        if ticket is not None and provider is not None and not provider.withdraw(ticket) and provider.use(self.context):
            provider.release()

    # on a run's thread

    def join(self, scan: Scan) -> bool:
        """Let another scan wait for the outcome; `False`: it is over."""
        with self.stack.lock:
            heir = self._successor
            if heir is None:
                if self.over:
                    return False
                self.scans.append(scan)
                scan.execution = self
                return True
        return heir.join(scan)

    def leave(self, scan: Scan, *, to_the_end: bool) -> bool | None:
        """Take back a scan whose run is over.

        Args:
            scan: one that waits for this execution.
            to_the_end: whether the work goes on for the cache's sake (a run's deadline) or not (a user's cancel).

        Returns:
            Whether the work has begun; `None`: it has ended, and the outcome is on its way to the scan.
        """
        with self.stack.lock:
            heir, begun = self._successor, self.began != NEVER
            if heir is None:
                if self.over:
                    return None
                self.scans.remove(scan)
                if self.scans or (begun and to_the_end and self._key is not None):
                    return begun
                self.over = True
        if heir is not None:
            return heir.leave(scan, to_the_end=to_the_end)
        self._cancel(begun)
        return begun

    def _cancel(self, begun: bool) -> None:
        stack, context = self.stack, self.context
        self._give_back()
        self.land()
        permit = context.permit
        if stack.guard is not None and permit is not None:
            stack.guard.vote(permit, None)
        context.cancel()
        if begun:
            stack.bus.send_all([*self._inherited(), *self._endings(CANCELLED, None)])
        else:
            stack.bus.send_all(self._probed(CANCELLED, None))

    # on a worker

    def start(self, now: float, place: Place, /) -> float | None:
        """Begin, unless every run that wanted it is over."""
        stack, context = self.stack, self.context
        if stack.divided:
            context.alarm = place.alarm
        with stack.lock:
            if not self.over and self._begin(now):
                return context.deadline
            late = () if self.over else self.scans
            self.over = True
        self._give_back()
        self.land()
        self.stack.bus.send_all(self._probed(CANCELLED, None))
        for scan in late:
            scan.end(without_work(scan.stack, scan.run, scan.turn, Status.SKIPPED))
        return None

    def _begin(self, now: float) -> bool:
        """Set the deadline; `False`: the runs of all its scans are over. Under the lock."""
        if self.began != NEVER:  # a successor: the time runs since the first attempt
            self._running = True
            return True
        for scan in self.scans:
            if now < scan.run.deadline:
                self.began = now
                context = self.context
                if self._key is None:
                    context.limit(now + self.stack.total, scan.run.deadline)
                else:  # others can use the answer after the run's end
                    context.deadline = context.ends = now + self.stack.total
                return True
        return False

    def run(self) -> None:
        """Ask the scanner through all its layers and hand over; never raises."""
        stack, key = self.stack, self._key
        if not stack.stored:
            self.variables.run(self._work)
            return
        with Brief():
            if stack.clerk is not None and key is not None:
                stack.clerk.prolong(stack.address(key), stack.total)
            self.variables.run(self._work)

    def _work(self) -> None:
        try:
            try:
                if self.inheritance:
                    self.stack.bus.send_all(self._inherited())
                stack = self.stack
                if stack.hung.count:
                    stack.hung.admit(self.context)
                found = stack.call(self.context)
            except BaseException as failure:
                self._fail(failure)
            else:
                self._succeed(found)
            finally:
                if self._ticket is not None:
                    self._give_back()
        except BaseException as failure:  # a bug of ours must not cost the run its end
            _log.exception("%s: the scan could not be ended", self.name)
            self._settle()
            self.land()
            outcome = self.outcome(ERROR, [], None, ErrorInfo.of(failure))
            for scan in self.scans:  # one that has its result already takes no notice
                scan.end(outcome)

    def _succeed(self, found: list[Any]) -> None:
        self.through, self._late_kind = True, SUCCESS
        stack, context = self.stack, self.context
        doubt = context.doubted or stack.doubt(len(found), context.dropped)
        entry = self._keep(found, doubt is None) if self._key is not None else None
        with stack.lock:
            if self.over:
                return
            self.over = True
            scans = self.scans
        if entry is None:
            self.land()
        took = (stack.clock.monotonic() if entry is None else entry.stored_at) - self.began
        stack.took(took)
        if doubt is not None:
            run, attempt = context.run_id, context.attempt
            stack.bus.send(
                SuspiciousResult(stack.name, stack.pipeline, doubt, len(found), context.dropped, run, attempt)
            )
        if stack.tell_execution is not None:
            stack.tell_execution(self._ended(SUCCESS, None, took))
        if self.probe:
            stack.bus.send_all(self._probed(SUCCESS, None))
        for scan in scans:
            if not scan.leads:
                scan.end(self.outcome(SUCCESS, found, entry, None, suspicious=doubt))
                continue
            result = ScanResult(
                stack.name,
                stack.pipeline,
                Status.COMPLETED,
                found,
                None,
                context.attempt,
                took,
                self.began - scan.run.since,
                None,
                False,
                context.dropped,
                context.tool_logs(),
                self.began + scan.run.epoch,
                doubt,
            )
            scan.run.outbox.put((scan, result, ()))

    def _fail(self, failure: BaseException) -> None:
        self.through = True
        context = self.context
        kind = told = kind_of(failure, context)
        scans = self._settle()
        if scans is None:
            if isinstance(failure, ScanCancelled):  # it came back because it was told to
                self._rung = "cancel" if isinstance(failure.__context__, CancelledError) else "cooperative"
            return
        if isinstance(failure, ScanCancelled) and kind != ERROR and not context.abandoned:
            # it noticed a deadline before the watchdog did: its own, or its run's, which is not its fault
            failure = self._timeout() if kind == TIMEOUT else _run_is_over(scans[0])
            kind = TIMEOUT
        error = ErrorInfo.of(failure)
        self._remember(told, error)
        self.land()
        self._hand_over(scans, kind, told, error)

    def _keep(self, found: list[Any], trusted: bool) -> Entry | None:
        """Put an answer into the cache, a late one too; one that is not trusted is only shared."""
        cache, key = self.stack.cache, self._key
        if cache is None or key is None:
            return None
        try:
            return cache.put(key, found, self, keep=trusted)
        except Exception as error:  # copying a candidate runs foreign code
            _log.warning("%s: the answer is not cached, a candidate cannot be copied: %s", self.name, error)
            return None

    def _remember(self, kind: str, error: ErrorInfo) -> None:
        if self._key is not None and self.stack.cache is not None and kind in (ERROR, TIMEOUT):
            self.stack.cache.put_error(self._key, error)

    def _hand_over(self, scans: Sequence[Scan], kind: str, told: str, error: ErrorInfo) -> None:
        stack = self.stack
        outcome = self.outcome(kind, self.context.found, None, error)
        if told != REJECTED:  # a worker had begun it, though the time may have been over before the first attempt
            stack.took(outcome.duration)
            if stack.tell_execution is not None:
                stack.tell_execution(self._ended(told, error, outcome.duration))
        if self.probe:
            stack.bus.send_all(self._probed(told, error))
        for scan in scans:
            scan.end(outcome)

    def _inherited(self) -> tuple[Event, ...]:
        """Return, once, what the attempt that was left behind has to tell: the watchdog does not send events."""
        with self.stack.lock:
            events, self.inheritance = self.inheritance, ()
        return events

    # everywhere

    def outcome(
        self,
        kind: str,
        found: list[Any],
        entry: Entry | None,
        error: ErrorInfo | None,
        scan: Scan | None = None,
        suspicious: str | None = None,
    ) -> Outcome:
        """Describe the execution as it is now, as seen by `scan` (the first that waits, unless given)."""
        context = self.context
        scan = scan or (self.scans[0] if self.scans else None)
        now = self.stack.clock.monotonic()
        began = min(self.began, now)
        return Outcome(
            kind,
            found if kind == SUCCESS else list(found),
            entry,
            error,
            context.attempt,
            now - began,
            began - scan.run.since if scan is not None else 0.0,
            context.dropped,
            context.tool_logs(),
            began + scan.run.epoch if scan is not None else 0.0,
            suspicious,
        )

    def _settle(self) -> list[Scan] | None:
        """End it; return the scans that wait, or `None` if it is over already."""
        with self.stack.lock:
            if self.over:
                return None
            self.over = True
            return self.scans

    def land(self) -> None:
        """Let the next scan with this key lead."""
        if self._key is not None and self.stack.cache is not None:
            self.stack.cache.land(self._key, self)

    def _timeout(self) -> ScanTimeout:
        policy = self.stack.policy.timeout
        if self.context.timed_out or policy.attempt is None:
            return ScanTimeout(f"timeout after {short(policy.total)}s", by_clock=True)
        return ScanTimeout(f"attempt {self.context.attempt}: timeout after {short(policy.attempt)}s", by_clock=True)

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
        """Return what is to be told of the end of a probe, if it is one."""
        if not self.probe:
            return ()
        reason = "" if error is None else f"{error.kind}: {error.message}"
        outcome, context = CANCELLED if kind == REJECTED else kind, self.context
        return (ProbeEnded(self.name, outcome, reason, self.probe, context.run_id, context.attempt),)

    def _ended(self, kind: str, error: ErrorInfo | None, took: float) -> ExecutionEnded:
        stack, context = self.stack, self.context
        at = stack.clock.time()
        return ExecutionEnded(stack.name, stack.pipeline, kind, took, context.attempt, error, context.run_id, at)


def cut_short(scan: Scan) -> ScanResult:
    """Make the result of a scan whose run ended while its execution was under way."""
    execution: Work = scan.execution
    error = ErrorInfo.of(_run_is_over(scan))
    return result_of(scan, execution.outcome(TIMEOUT, execution.context.found, None, error, scan))


def _run_is_over(scan: Scan) -> ScanTimeout:
    waited = scan.stack.clock.monotonic() - scan.turn
    return ScanTimeout(f"the run's deadline came after {short(waited)}s", by_clock=True)


# The way of one scan: gate, cache, a worker with a time limit, the layers, the result.
#
# `begin` is called on the run's thread and ends a scan at once where the cache can; `at_the_gate` stands before it
# where
# a scanner is out of service. Else an `Execution` goes to the pool; on the worker it calls the layers, folded into one
# function; the outcome reaches every scan that waits for it through the outbox of that scan's run.

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
