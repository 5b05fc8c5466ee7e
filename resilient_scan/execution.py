"""The way of one scan: gate, cache, a worker with a time limit, the layers, the result.

`begin` is called on the run's thread and ends a scan at once where the gate or the cache can. Else an `Execution` goes
to the pool; on the worker it calls the layers, folded into one function; the outcome reaches every scan that waits for
it through the outbox of that scan's run.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import msgspec

from resilient_scan.context import NEVER, ScanContext
from resilient_scan.engines.threads import SHUT_DOWN, Place
from resilient_scan.errors import Rejected, ScanCancelled, ScanTimeout
from resilient_scan.events import AttemptEnded, Event, ExecutionEnded, LateCompletion, ThreadAbandoned
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.layers.limit import Ticket
from resilient_scan.outcome import ErrorInfo, ScanResult, Status
from resilient_scan.stack import CANCELLED, ERROR, REJECTED, SUCCESS, TIMEOUT, Stack, kind_of
from resilient_scan.state import Snapshot

_log = logging.getLogger("resilient_scan")
HIT, STALE, MISS, SHARED, BYPASS, NOT_ASKED = "hit", "stale", "miss", "shared", "bypass", ""
_STATUS = {
    ERROR: Status.ERROR,
    TIMEOUT: Status.TIMEOUT,
    REJECTED: Status.REJECTED,
    CANCELLED: Status.SKIPPED,
}


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How an execution ended, for all scans that wait for it; `entry` is what the cache keeps of it."""

    kind: str
    candidates: list[Any]
    entry: Entry | None
    error: ErrorInfo | None
    attempts: int
    duration: float
    queue_wait: float
    dropped: int
    tool_logs: list[dict[str, Any]]
    started_at: float


class Run:
    """What all scans of a run share.

    Args:
        snapshot: the state.
        deadline: monotonic instant at which the run is over.
        epoch: what added to a monotonic instant gives epoch seconds.
    """

    def __init__(self, snapshot: Snapshot, deadline: float, epoch: float) -> None:
        self.snapshot = snapshot
        self.deadline = deadline
        self.epoch = epoch
        self.since = 0.0  # monotonic instant at which the scans that begin now had their turn
        self.outbox: SimpleQueue[tuple[Any, Any, tuple[Event, ...]]] = SimpleQueue()


class Scan:
    """One scanner's part of a run, while it has no result."""

    cache = BYPASS
    key: bytes | None = None
    leads = False  # whether the execution was made for it
    queued = False  # whether this execution went straight to the pool (and does not wait for a provider)
    execution: Execution  # that it waits for

    def __init__(self, stack: Stack, run: Run, turn: float) -> None:
        self.stack = stack
        self.run = run
        self.turn = turn  # when it began, monotonic

    def end(self, answer: ScanResult | Outcome, events: tuple[Event, ...] = ()) -> None:
        """Hand over to the run's thread, with what it has to tell the listeners."""
        self.run.outbox.put((self, answer, events))


# on the run's thread


def begin(stack: Stack, run: Run) -> Scan | tuple[ScanResult, str]:
    """Start a scan.

    Returns:
        The scan, which will `end`; or its result, and what the cache had for it, where no work is needed.
    """
    turn = stack.clock.monotonic()
    if stack.name in stack.orders and not stack.in_service():
        return without_work(stack, run, turn, Status.DISABLED), NOT_ASKED
    cache = stack.cache
    key = None if cache is None else run.snapshot.key(cache.inputs)
    if cache is None or key is None:
        if cache is not None:
            cache.warn_once(stack.name)
        scan = Scan(stack, run, turn)
        _lead(scan, Execution(stack, scan, None))
        return scan
    seen = cache.puts
    entry = cache.fresh(key)
    if entry is None:
        scan = Scan(stack, run, turn)
        entry = _lead_or_follow(scan, cache, key, seen)
        if entry is None:
            return scan
    if entry.error is not None:
        return without_work(stack, run, turn, Status.ERROR, entry.error), HIT
    return _from_cache(stack, run, turn, entry, Status.CACHED), HIT


def _lead(scan: Scan, execution: Execution) -> None:
    scan.execution, scan.leads = execution, True
    scan.queued = scan.stack.provider is None
    execution.submit()


def _lead_or_follow(scan: Scan, cache: ResultCache[Any], key: bytes, seen: int) -> Entry | None:
    """Start an execution, or join the one that is under way; an answer that came just now is returned."""
    mine = Execution(scan.stack, scan, key)
    scan.cache, scan.key = MISS, key
    while True:
        leader = cache.lead(key, mine, seen)
        if isinstance(leader, Entry):
            return leader
        if leader is mine:
            _lead(scan, mine)
            return None
        if leader.join(scan):
            scan.cache = SHARED
            return None
        # it ended between `lead` and `join`, and whoever ends a flight lands it first: ask again


def result_of(scan: Scan, outcome: Outcome) -> ScanResult:
    """Make a scan's result from its execution's outcome."""
    own = outcome if scan.leads else None
    if outcome.kind == SUCCESS:
        copies = outcome.entry.copies() if outcome.entry is not None else list(outcome.candidates)
        return _result(scan.stack, scan.run, scan.turn, Status.CACHED, copies, age=0.0)
    if outcome.kind != CANCELLED and (stale := _stale(scan, own, outcome.error)) is not None:
        return stale
    candidates = own.candidates if own is not None else []
    return _result(scan.stack, scan.run, scan.turn, _STATUS[outcome.kind], candidates, outcome=own, error=outcome.error)


def cut_short(scan: Scan, execution: Execution) -> ScanResult:
    """Make the result of a scan whose run ended while its execution was under way."""
    waited = scan.stack.clock.monotonic() - scan.turn
    error = ErrorInfo.of(ScanTimeout(f"the run's deadline came after {_short(waited)}s"))
    return result_of(scan, execution.outcome(TIMEOUT, execution.context.found, None, error, scan))


def without_work(stack: Stack, run: Run, turn: float, status: Status, error: ErrorInfo | None = None) -> ScanResult:
    """Make the result of a scan for which nothing was done."""
    return _result(stack, run, turn, status, [], error=error)


def _stale(scan: Scan, outcome: Outcome | None, error: ErrorInfo | None) -> ScanResult | None:
    """Return an older answer that stands in for a failed execution, if the cache has one."""
    cache = scan.stack.cache
    entry = cache.stale(scan.key) if cache is not None and scan.key is not None else None
    if entry is None:
        return None
    scan.cache = STALE
    return _from_cache(scan.stack, scan.run, scan.turn, entry, Status.STALE, outcome, error)


def _from_cache(
    stack: Stack,
    run: Run,
    turn: float,
    entry: Entry,
    status: Status,
    outcome: Outcome | None = None,
    error: ErrorInfo | None = None,
) -> ScanResult:
    age = max(0.0, stack.clock.monotonic() - entry.stored_at)
    return _result(stack, run, turn, status, entry.copies(), outcome=outcome, error=error, age=age)


def _result(
    stack: Stack,
    run: Run,
    turn: float,
    status: Status,
    candidates: list[Any],
    *,
    outcome: Outcome | None = None,
    error: ErrorInfo | None = None,
    age: float | None = None,
) -> ScanResult:
    if outcome is None:  # no work of its own
        took = stack.clock.monotonic() - turn
        return ScanResult(
            stack.name, stack.pipeline, status, candidates, error, 0, took, 0.0, age, False, 0, [], turn + run.epoch
        )
    partial = bool(candidates) and not status.answered
    return ScanResult(
        stack.name,
        stack.pipeline,
        status,
        candidates,
        error,
        outcome.attempts,
        outcome.duration,
        outcome.queue_wait,
        age,
        partial,
        outcome.dropped,
        outcome.tool_logs,
        outcome.started_at,
    )


class Execution:
    """Real work for one or more scans: a task of the pool.

    It ends once. Four may want to end it: its worker, the watchdog, a run that is over, a pool without a free thread;
    the first one under the lock does, the others find it over. Whoever ends it lands its flight in the cache first,
    so that a scan which finds it over can ask the cache again.

    An attempt with a time limit of its own that hangs ends the execution too, in favour of a successor on another
    thread, which takes over its scans.
    """

    # Set only where they differ: most executions are of one scan, with an answer, and over soon.
    _began = NEVER
    _over = False
    _late_kind = ERROR
    _successor: Execution | None = None
    _ticket: Ticket | None = None  # in the queue of its provider
    _inheritance: tuple[Event, ...] = ()

    def __init__(self, stack: Stack, scan: Scan, key: bytes | None) -> None:
        self.stack = stack
        self.context = ScanContext.at(stack.home, scan.run.snapshot)
        self._key = key
        self._scans = [scan]
        self._variables = contextvars.copy_context()

    @property
    def name(self) -> str:
        """The scanner's name."""
        return self.stack.name

    def submit(self) -> None:
        """Hand it to the pool, once its provider has a permit for it."""
        stack = self.stack
        provider = stack.provider
        if provider is None or (stack.guard is not None and stack.guard.is_open()):
            self._queue()
            return
        self.context.provider = provider
        ticket = self._ticket = Ticket(self._permitted, self._turn_down)
        provider.request(ticket, stack.clock.monotonic() + stack.total)

    def _permitted(self) -> None:
        self.context.prepaid = True
        self._queue()

    def _queue(self) -> None:
        try:
            self.stack.pool.execute(self)
        except RuntimeError as error:  # shut down, or the machine has no thread to give
            self.refuse(str(error))

    def _give_back(self) -> None:
        """Give the provider's permit back, or the place in its queue, where they were not used."""
        ticket, provider = self._ticket, self.stack.provider
        if ticket is not None and provider is not None and not provider.withdraw(ticket) and provider.use(self.context):
            provider.release()

    # on a run's thread

    def join(self, scan: Scan) -> bool:
        """Let another scan wait for the outcome; `False`: it is over."""
        with self.stack.lock:
            if self._over:
                return False
            self._scans.append(scan)
            scan.execution = self
            return True

    def leave(self, scan: Scan, *, to_the_end: bool) -> bool | None:
        """Take back a scan whose run is over.

        Args:
            scan: one that waits for this execution.
            to_the_end: whether the work goes on for the cache's sake (a run's deadline) or not (a user's cancel).

        Returns:
            Whether the work has begun; `None`: it has ended, and the outcome is on its way to the scan.
        """
        with self.stack.lock:
            heir, begun = self._successor, self._began != NEVER
            if heir is None:
                if self._over:
                    return None
                self._scans.remove(scan)
                if self._scans or (begun and to_the_end and self._key is not None):
                    return begun
                self._over = True
        if heir is not None:
            return heir.leave(scan, to_the_end=to_the_end)
        self._cancel(begun)
        return begun

    def _cancel(self, begun: bool) -> None:
        stack, context = self.stack, self.context
        self._give_back()
        self._land()
        permit = context.permit
        if stack.guard is not None and permit is not None:
            stack.guard.vote(permit, None)
        context.cancel()
        if begun:
            stack.bus.send_all([*self._inherited(), *self._endings(CANCELLED, None)])

    # on a worker

    def start(self, now: float, place: Place, /) -> float | None:
        """Begin, unless every run that wanted it is over."""
        context = self.context
        context.alarm = place.alarm
        with self.stack.lock:
            late = () if self._over else self._begin(now)
            if late is None:
                return context.deadline
            self._over = True
        self._give_back()
        self._land()
        for scan in late:
            scan.end(without_work(scan.stack, scan.run, scan.turn, Status.SKIPPED))
        return None

    def _begin(self, now: float) -> Sequence[Scan] | None:
        """Set the deadline; or return the scans whose run is over, if that is all of them; under the lock."""
        if self._began != NEVER:  # a successor: the time runs since the first attempt
            return None
        for scan in self._scans:
            if now < scan.run.deadline:
                break
        else:
            return self._scans
        self._began = now
        self.context.limit(now + self.stack.total, NEVER if self._key is not None else scan.run.deadline)
        return None

    def run(self) -> None:
        """Ask the scanner through all its layers and hand over; never raises."""
        self._variables.run(self._work)

    def _work(self) -> None:
        try:
            try:
                if self._inheritance:
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
            self._hand_over(ERROR, [], ErrorInfo.of(failure))

    def _succeed(self, found: list[Any]) -> None:
        self._late_kind = SUCCESS
        entry = self._keep(found) if self._key is not None else None
        scans = self._settle()
        if scans is None:
            return
        stack = self.stack
        took = stack.clock.monotonic() - self._began
        stack.took(took)
        if stack.tell_execution is not None:
            stack.tell_execution(self._ended(SUCCESS, None, took))
        for scan in scans:
            if scan.leads:
                scan.run.outbox.put((scan, self._completed(scan, found, took), ()))
            else:
                scan.end(self.outcome(SUCCESS, found, entry, None))

    def _completed(self, scan: Scan, found: list[Any], took: float) -> ScanResult:
        stack, context, began = self.stack, self.context, self._began
        return ScanResult(
            stack.name,
            stack.pipeline,
            Status.COMPLETED,
            found,
            None,
            context.attempt,
            took,
            began - scan.run.since,
            None,
            False,
            context.dropped,
            context.tool_logs(),
            began + scan.run.epoch,
        )

    def _fail(self, failure: BaseException) -> None:
        context = self.context
        kind = kind_of(failure, context)
        if isinstance(failure, ScanCancelled) and kind == TIMEOUT:
            failure = self._timeout()
        error = ErrorInfo.of(failure)
        self._remember(kind, error)
        self._land()
        self._hand_over(kind, context.found, error)

    def _keep(self, found: list[Any]) -> Entry | None:
        """Put an answer into the cache, a late one too."""
        cache, key = self.stack.cache, self._key
        if cache is None or key is None:
            return None
        try:
            return cache.put(key, found, self)
        except Exception as error:  # copying a candidate runs foreign code
            _log.warning("%s: the answer is not cached, a candidate cannot be copied: %s", self.name, error)
            cache.land(key, self)
            return None

    def _remember(self, kind: str, error: ErrorInfo) -> None:
        if self._key is not None and self.stack.cache is not None and kind in (ERROR, TIMEOUT):
            self.stack.cache.put_error(self._key, error)

    def _hand_over(self, kind: str, found: list[Any], error: ErrorInfo) -> None:
        scans = self._settle()
        if scans is None:
            return
        stack = self.stack
        outcome = self.outcome(kind, found, None, error)
        if outcome.attempts:
            stack.took(outcome.duration)
            if stack.tell_execution is not None:
                stack.tell_execution(self._ended(kind, error, outcome.duration))
        for scan in scans:
            scan.end(outcome)

    def late(self, age: float, /) -> None:
        """Note that the thread has ended after all."""
        stack = self.stack
        stack.hung.came_back()
        if stack.bus.wants(LateCompletion):
            stack.bus.send(LateCompletion(self.name, age, self._late_kind))

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
        self._land()
        events = self._inherited()
        for scan in self._settle() or ():
            scan.end(self.outcome(kind, [], None, error), events)
            events = ()

    # on the watchdog's thread

    def expire(self, thread: str, age: float, /) -> None:
        """Hand over at the deadline, while the scanner still runs; events are sent by somebody else."""
        stack, context = self.stack, self.context
        permit = context.permit
        change = stack.guard.vote(permit, True) if stack.guard is not None and permit is not None else None
        stack.hung.left()
        left: list[Event] = [ThreadAbandoned(self.name, thread, age), *([change] if change else [])]
        if not context.timed_out and stack.policy.retry is not None and self._pass_on(left):
            return
        self._land()
        scans = self._settle()
        if scans is None and not context.cancelled:
            return  # it ended in this very moment
        error = ErrorInfo.of(self._timeout())
        events = [*(self._endings(TIMEOUT, error) if scans is not None else ()), *left]
        if not scans:  # every run that wanted it is over: a thread of its own tells the listeners
            threading.Thread(target=stack.bus.send_all, args=(events,), daemon=True).start()
            return
        stack.took(age)
        outcome = self.outcome(TIMEOUT, context.found, None, error)
        for scan in scans:
            scan.end(outcome, tuple(events) if scan is scans[0] else ())

    def _pass_on(self, events: list[Event]) -> bool:
        """Leave the hanging attempt behind and let a successor go on with the next; `False`: it is over."""
        stack, failure = self.stack, self._timeout()
        with stack.lock:
            if self._over:
                return False
            self._over = True
            heir = self._successor = Execution(stack, self._scans[0], self._key)
            heir.context = self.context.next(failure, stack.policy.timeout.attempt or 0.0)
            heir._scans, heir._began, heir._variables = self._scans, self._began, self._variables.copy()
            for scan in self._scans:
                scan.execution = heir
        self.context.cancel()
        began = self.context.close_attempt(stack.lock)
        if began is not None:
            took = stack.clock.monotonic() - began
            events.insert(0, AttemptEnded(self.name, self.context.attempt, TIMEOUT, took, ErrorInfo.of(failure)))
        if stack.cache is not None and self._key is not None:
            stack.cache.hand_on(self._key, self, heir)
        heir._inheritance = tuple(events)
        heir.submit()
        return True

    def _inherited(self) -> tuple[Event, ...]:
        """Return, once, what the attempt that was left behind has to tell: the watchdog does not send events."""
        events, self._inheritance = self._inheritance, ()
        return events

    # everywhere

    def outcome(
        self, kind: str, found: list[Any], entry: Entry | None, error: ErrorInfo | None, scan: Scan | None = None
    ) -> Outcome:
        """Describe the execution as it is now, as seen by `scan` (the first that waits, unless given)."""
        context = self.context
        scan = scan or (self._scans[0] if self._scans else None)
        now = self.stack.clock.monotonic()
        began = min(self._began, now)
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
        )

    def _settle(self) -> list[Scan] | None:
        """End it; return the scans that wait, or `None` if it is over already."""
        with self.stack.lock:
            if self._over:
                return None
            self._over = True
            return self._scans

    def _land(self) -> None:
        if self._key is not None and self.stack.cache is not None:
            self.stack.cache.land(self._key, self)

    def _timeout(self) -> ScanTimeout:
        policy = self.stack.policy.timeout
        if self.context.timed_out or policy.attempt is None:
            return ScanTimeout(f"timeout after {_short(policy.total)}s", by_clock=True)
        return ScanTimeout(f"attempt {self.context.attempt}: timeout after {_short(policy.attempt)}s", by_clock=True)

    def _endings(self, kind: str, error: ErrorInfo | None) -> list[Event]:
        """Return the events of an end that comes while an attempt may be under way."""
        began = self.context.close_attempt(self.stack.lock)
        ended = self._ended(kind, error, self.stack.clock.monotonic() - self._began)
        if began is None:
            return [ended]
        took = self.stack.clock.monotonic() - began
        return [AttemptEnded(self.name, self.context.attempt, kind, took, error), ended]

    def _ended(self, kind: str, error: ErrorInfo | None, took: float) -> ExecutionEnded:
        return ExecutionEnded(self.name, self.stack.pipeline, kind, took, self.context.attempt, error)


def _short(seconds: float) -> str:
    return f"{seconds:.3g}"
