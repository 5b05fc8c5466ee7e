"""The way of one scan: gate, cache, a worker with a time limit, retry, breaker, the scanner.

`Stack.begin` is called on the run's thread and ends a scan at once where the gate or the cache can. Else an
`Execution` goes to the pool; on the worker it calls the layers, folded into one function; its `Outcome` reaches every
scan that waits for it through the outbox of that scan's run.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from random import Random
from typing import Any

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.engines.threads import ThreadPool
from resilient_scan.errors import Rejected, ScanCancelled, ScanTimeout
from resilient_scan.events import (
    AttemptEnded,
    Bus,
    Event,
    ExecutionEnded,
    LateCompletion,
    Registered,
    ThreadAbandoned,
)
from resilient_scan.layers.breaker import Guard
from resilient_scan.layers.cache import Entry, ResultCache, SharedValues
from resilient_scan.layers.retry import retrying
from resilient_scan.layers.scan import attempt
from resilient_scan.layers.timeout import HungThreads
from resilient_scan.options import Policy
from resilient_scan.outcome import ErrorInfo, ScanResult, Status
from resilient_scan.scanning import Call, ScanContext, ScannerSpec
from resilient_scan.state import Snapshot

_log = logging.getLogger("resilient_scan")
SUCCESS, ERROR, TIMEOUT, REJECTED, CANCELLED = "success", "error", "timeout", "rejected", "cancelled"
HIT, STALE, MISS, SHARED, BYPASS, NOT_ASKED = "hit", "stale", "miss", "shared", "bypass", ""
_STATUS = {
    SUCCESS: Status.COMPLETED,
    ERROR: Status.ERROR,
    TIMEOUT: Status.TIMEOUT,
    REJECTED: Status.REJECTED,
    CANCELLED: Status.SKIPPED,
}


class Outcome(msgspec.Struct, frozen=True):
    """How an execution ended, for all scans that wait for it; `entry` is what the cache keeps of it."""

    kind: str
    candidates: list[Any]
    entry: Entry | None
    error: ErrorInfo | None
    attempts: int
    duration: float
    queue_wait: float
    dropped: int
    invalid: str
    tool_logs: list[dict[str, Any]]
    started_at: float


class Scan:
    """One scanner's part of a run, until it has its result."""

    __slots__ = ("cache", "deadline", "execution", "key", "leads", "outbox", "snapshot", "stack", "turn", "turn_at")

    def __init__(self, stack: Stack, snapshot: Snapshot, deadline: float, outbox: SimpleQueue[Any]) -> None:
        self.stack = stack
        self.snapshot = snapshot
        self.deadline = deadline  # of its run
        self.outbox = outbox
        self.execution: Execution | None = None
        self.leads = False
        self.cache = NOT_ASKED
        self.key: bytes | None = None
        self.turn = 0.0  # when it began, monotonic
        self.turn_at = 0.0  # and epoch seconds

    def end(self, answer: ScanResult | Outcome, events: tuple[Event, ...] = ()) -> None:
        """Hand over to the run's thread, with what it has to tell the listeners."""
        self.outbox.put((self, answer, events))


class Stack:
    """One scanner and the layers around it, built once and used by all runs."""

    def __init__(
        self,
        spec: ScannerSpec,
        policy: Policy,
        *,
        settings: Mapping[str, Any],
        in_service: Callable[[], bool],
        pool: ThreadPool,
        shared: SharedValues,
        bus: Bus,
        clock: Clock,
        random: Random,
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.policy = policy
        self.settings = settings
        self.in_service = in_service
        self.pool = pool
        self.shared = shared
        self.bus = bus
        self.clock = clock
        self.limit = float(policy.timeout.total)
        self.hung = HungThreads(policy.timeout, clock)
        self.guard = Guard(spec.name, policy.breaker, clock, random) if policy.breaker else None
        self.cache: ResultCache[Execution] | None = ResultCache(policy.cache, clock, random) if policy.cache else None
        self.call = self._fold(random)
        self.expected: float | None = None  # seconds that an execution takes, from those seen
        self._warned = False

    def _fold(self, random: Random) -> Call:
        """Put the layers that run on a worker around the scanner, innermost first."""
        call = attempt(self.spec)
        if self.bus.wants(AttemptEnded):
            call = self._reporting(call)
        if self.guard is not None:
            call = self.guard.around(call, self.bus.send)
        if self.policy.retry is not None:
            call = retrying(self.policy.retry, call, random=random, may_retry=self._may_retry)
        return call

    def _may_retry(self) -> bool:
        return self.guard is None or not self.guard.is_open()

    def _reporting(self, call: Call) -> Call:
        def reported(context: ScanContext) -> list[Any]:
            outcome, failure = SUCCESS, None
            try:
                return call(context)
            except BaseException as error:
                outcome, failure = _kind(error, context), ErrorInfo.of(error)
                raise
            finally:
                began = context.close_attempt()
                if began is not None:
                    took = self.clock.monotonic() - began
                    self.bus.send(AttemptEnded(self.name, context.attempt, outcome, took, failure))

        return reported

    # on the run's thread

    def begin(self, scan: Scan) -> None:
        """Start a scan; it ends by `scan.end`, now or later."""
        scan.turn, scan.turn_at = self.clock.monotonic(), self.clock.time()
        if not self.in_service():
            scan.end(self.without_work(scan, Status.DISABLED))
            return
        if self.cache is None or (key := self._key(scan.snapshot)) is None:
            scan.cache = BYPASS
            self._execute(scan, Execution(self, scan, None))
            return
        scan.key = key
        entry = self.cache.fresh(key)
        if entry is None:
            entry = self._lead_or_follow(self.cache, key, scan)
        if entry is not None:
            scan.cache = HIT
            scan.end(self._from_cache(scan, entry, Status.CACHED, self.cache.age(entry), None))

    def _lead_or_follow(self, cache: ResultCache[Execution], key: bytes, scan: Scan) -> Entry | None:
        """Start an execution, or join the one that is under way; an answer that came just now is returned."""
        mine = Execution(self, scan, key)
        while True:
            leader = cache.lead(key, mine)
            if isinstance(leader, Entry):
                return leader
            if leader is mine:
                scan.cache = MISS
                self._execute(scan, mine)
                return None
            scan.cache = SHARED
            if leader.join(scan):
                return None
            # it ended between `lead` and `join`, and whoever ends a flight lands it first: ask again

    def _execute(self, scan: Scan, execution: Execution) -> None:
        scan.execution = execution
        scan.leads = True
        self.pool.execute(execution)

    def _key(self, snapshot: Snapshot) -> bytes | None:
        assert self.policy.cache is not None  # noqa: S101 - only asked where there is a cache
        key = snapshot.key(self.policy.cache.inputs)
        if key is None and not self._warned:
            self._warned = True
            _log.warning(
                "%s is not cached: the state holds a value without a stable form; "
                "name the keys it reads, Cache(inputs=(...)), or leave the cache out",
                self.name,
            )
        return key

    def result(self, scan: Scan, outcome: Outcome) -> ScanResult:
        """Make the scan's result from its execution's outcome."""
        if outcome.kind == SUCCESS:
            if scan.leads:
                return self._result(scan, Status.COMPLETED, outcome.candidates, outcome=outcome)
            copies = outcome.entry.copies() if outcome.entry is not None else list(outcome.candidates)
            return self._result(scan, Status.CACHED, copies, age=0.0)
        if outcome.kind != CANCELLED and (
            stale := self.stale_answer(scan, outcome if scan.leads else None, outcome.error)
        ):
            return stale
        partial = outcome.candidates if scan.leads else []
        status = _STATUS[outcome.kind]
        return self._result(scan, status, partial, outcome=outcome if scan.leads else None, error=outcome.error)

    def stale_answer(self, scan: Scan, outcome: Outcome | None, error: ErrorInfo | None) -> ScanResult | None:
        """Return an older answer that stands in for a failed execution, if the cache has one."""
        entry = self.cache.stale(scan.key) if self.cache is not None and scan.key is not None else None
        if entry is None or self.cache is None:
            return None
        scan.cache = STALE
        return self._from_cache(scan, entry, Status.STALE, self.cache.age(entry), error, outcome)

    def without_work(self, scan: Scan, status: Status, error: ErrorInfo | None = None) -> ScanResult:
        """Make the result of a scan for which nothing was done."""
        return self._result(scan, status, [], error=error)

    def cut_short(self, scan: Scan, execution: Execution) -> ScanResult:
        """Make the result of a scan whose run ended while its execution was under way."""
        waited = self.clock.monotonic() - scan.turn
        error = ErrorInfo.of(ScanTimeout(f"the run's deadline came after {_short(waited)}s"))
        outcome = execution.so_far(TIMEOUT, error)
        return self.stale_answer(scan, outcome, error) or self._result(
            scan, Status.TIMEOUT, outcome.candidates, outcome=outcome, error=error
        )

    def _from_cache(
        self,
        scan: Scan,
        entry: Entry,
        status: Status,
        age: float,
        error: ErrorInfo | None,
        outcome: Outcome | None = None,
    ) -> ScanResult:
        return self._result(scan, status, entry.copies(), outcome=outcome, error=error, age=age)

    def _result(
        self,
        scan: Scan,
        status: Status,
        candidates: list[Any],
        *,
        outcome: Outcome | None = None,
        error: ErrorInfo | None = None,
        age: float | None = None,
    ) -> ScanResult:
        partial = bool(candidates) and status in (Status.TIMEOUT, Status.ERROR)
        return ScanResult(
            scanner=self.name,
            pipeline=self.spec.pipeline,
            status=status,
            candidates=candidates,
            error=error,
            attempts=outcome.attempts if outcome else 0,
            duration=outcome.duration if outcome else self.clock.monotonic() - scan.turn,
            queue_wait=outcome.queue_wait if outcome else 0.0,
            age=age,
            partial=partial,
            dropped=outcome.dropped if outcome else 0,
            tool_logs=outcome.tool_logs if outcome else [],
            started_at=outcome.started_at if outcome else scan.turn_at,
        )

    # for whoever looks at it

    def registered(self) -> Registered:
        """Describe this scanner to listeners."""
        guard, hung = self.guard, self.hung
        state = None if guard is None else (lambda: guard.state)
        return Registered(self.name, self.spec.pipeline, state, lambda: hung.count)

    def took(self, seconds: float) -> None:
        """Remember how long an execution took, newer ones counting more."""
        self.expected = seconds if self.expected is None else 0.5 * self.expected + 0.5 * seconds


class Execution:
    """Real work for one or more scans: a task of the pool.

    It ends once. Four may want to end it: its worker, the watchdog, a run that is over, a pool without a free thread;
    the first one under the lock does, the others find it over. Whoever ends it lands its flight in the cache first,
    so that a scan which finds it over can ask the cache again.
    """

    __slots__ = ("_began", "_key", "_late_kind", "_over", "_scans", "_variables", "context", "limit", "name", "stack")

    def __init__(self, stack: Stack, scan: Scan, key: bytes | None) -> None:
        self.stack = stack
        self.name = stack.name
        self.limit = stack.limit
        self.context = ScanContext(
            stack.name, clock=stack.clock, settings=stack.settings, shared=stack.shared, snapshot=scan.snapshot
        )
        if key is None:
            self.context.cut_at = scan.deadline
        self._key = key
        self._scans = [scan]
        self._variables = contextvars.copy_context()
        self._began: float | None = None
        self._over = False
        self._late_kind = ERROR

    # on a run's thread

    def join(self, scan: Scan) -> bool:
        """Let another scan wait for the outcome; `False`: it is over."""
        with self.context.lock:
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
        with self.context.lock:
            if self._over or scan not in self._scans:
                return None
            self._scans.remove(scan)
            begun = self._began is not None
            if self._scans or (begun and to_the_end and self._key is not None):
                return begun
            self._over = True
        self._cancel(begun)
        return begun

    def _cancel(self, begun: bool) -> None:
        stack, context = self.stack, self.context
        self._land()
        if stack.guard is not None and context.permit is not None:
            stack.guard.vote(context.permit, None)
        context.cancel()
        for event in self._endings(CANCELLED, None) if begun else ():
            stack.bus.send(event)

    # on a worker

    def start(self, now: float, /) -> bool:
        """Begin, unless every run that wanted it is over."""
        with self.context.lock:
            if self._over:
                return False
            late = [scan for scan in self._scans if now >= scan.deadline]
            if len(late) < len(self._scans):
                self._began = now
                self.context.deadline = now + self.limit
                return True
            self._over = True
        self._land()
        for scan in late:
            scan.end(self.stack.without_work(scan, Status.SKIPPED))
        return False

    def run(self) -> None:
        """Ask the scanner through all its layers and hand over; never raises."""
        self._variables.run(self._work)

    def _work(self) -> None:
        context, kind, found, error = self.context, SUCCESS, [], None
        try:
            self.stack.hung.admit(context)
            found = self.stack.call(context)
        except BaseException as failure:
            kind, error = _kind(failure, context), self._describe(failure)
            found = context.found
        try:
            self._end(kind, found, error)
        except BaseException as failure:  # a bug of ours must not cost the run its end
            _log.exception("%s: the scan could not be ended", self.name)
            self._hand_over(ERROR, [], ErrorInfo.of(failure), None)

    def _end(self, kind: str, found: list[Any], error: ErrorInfo | None) -> None:
        entry = self._keep(found) if kind == SUCCESS else None
        self._late_kind = SUCCESS if kind == SUCCESS else ERROR
        self._land()
        self._hand_over(kind, found, error, entry)

    def _hand_over(self, kind: str, found: list[Any], error: ErrorInfo | None, entry: Entry | None) -> None:
        scans = self._settle()
        if scans is None:
            return
        stack = self.stack
        outcome = self.so_far(kind, error, found, entry)
        if self.context.attempt:
            stack.took(outcome.duration)
            if stack.bus.wants(ExecutionEnded):
                stack.bus.send(self._execution_ended(kind, error))
        for scan in scans:
            scan.end(outcome)

    def _keep(self, found: list[Any]) -> Entry | None:
        """Put an answer into the cache, a late one too."""
        if self._key is None or self.stack.cache is None:
            return None
        try:
            return self.stack.cache.put(self._key, found)
        except Exception as error:  # copying a candidate runs foreign code
            _log.warning("%s: the answer is not cached, a candidate cannot be copied: %s", self.name, error)
            return None

    def late(self) -> None:
        """Note that the thread has ended after all."""
        self.stack.hung.came_back()
        if self._began is not None and self.stack.bus.wants(LateCompletion):
            took = self.stack.clock.monotonic() - self._began
            self.stack.bus.send(LateCompletion(self.name, took, self._late_kind))

    def refuse(self, reason: str, /) -> None:
        """Hand over without a start."""
        self._land()
        for scan in self._settle() or ():
            scan.end(self.so_far(REJECTED, ErrorInfo.of(Rejected(reason))))

    # on the watchdog's thread

    def expire(self, thread: str, age: float, /) -> None:
        """Hand over at the deadline, while the scanner still runs; events are sent by somebody else."""
        stack, context = self.stack, self.context
        permit = context.permit
        change = stack.guard.vote(permit, True) if stack.guard is not None and permit is not None else None
        stack.hung.left()
        self._land()
        scans = self._settle()
        if scans is None and not context.cancelled:
            return
        error = ErrorInfo.of(ScanTimeout(f"timeout after {_short(self.limit)}s"))
        events: list[Event] = [] if scans is None else self._endings(TIMEOUT, error)
        events += [ThreadAbandoned(self.name, thread, age)] + ([change] if change else [])
        outcome = self.so_far(TIMEOUT, error)
        context.poke()
        if scans:
            stack.took(age)
            scans[0].end(outcome, tuple(events))
            for scan in scans[1:]:
                scan.end(outcome)
        else:  # every run that wanted it is over: a thread of its own tells the listeners
            threading.Thread(target=stack.bus.send_all, args=(events,), daemon=True).start()

    # everywhere

    def so_far(
        self, kind: str, error: ErrorInfo | None, found: list[Any] | None = None, entry: Entry | None = None
    ) -> Outcome:
        """Describe the execution as it is now."""
        stack, context = self.stack, self.context
        now = stack.clock.monotonic()
        began = now if self._began is None else self._began
        return Outcome(
            kind=kind,
            candidates=list(context.found) if found is None else found,
            entry=entry,
            error=error,
            attempts=context.attempt,
            duration=now - began,
            queue_wait=max(0.0, began - self._scans_turn(began)),
            dropped=context.dropped,
            invalid=context.invalid,
            tool_logs=context.tool_logs(),
            started_at=stack.clock.time() - (now - began),
        )

    def _scans_turn(self, default: float) -> float:
        return self._scans[0].turn if self._scans else default

    def _settle(self) -> list[Scan] | None:
        """End it; return the scans that wait, or `None` if it is over already."""
        with self.context.lock:
            if self._over:
                return None
            self._over = True
            return self._scans

    def _land(self) -> None:
        if self._key is not None and self.stack.cache is not None:
            self.stack.cache.land(self._key, self)

    def _endings(self, kind: str, error: ErrorInfo | None) -> list[Event]:
        """Return the events of an end that comes while an attempt may be under way."""
        began = self.context.close_attempt()
        now = self.stack.clock.monotonic()
        ended = self._execution_ended(kind, error)
        if began is None:
            return [ended]
        return [AttemptEnded(self.name, self.context.attempt, kind, now - began, error), ended]

    def _execution_ended(self, kind: str, error: ErrorInfo | None) -> ExecutionEnded:
        took = self.stack.clock.monotonic() - (self._began or 0.0)
        return ExecutionEnded(self.name, self.stack.spec.pipeline, kind, took, self.context.attempt, error)

    def _describe(self, failure: BaseException) -> ErrorInfo:
        if isinstance(failure, ScanCancelled) and self.context.timed_out:
            return ErrorInfo.of(ScanTimeout(f"timeout after {_short(self.limit)}s"))
        return ErrorInfo.of(failure)


def _kind(failure: BaseException, context: ScanContext) -> str:
    if isinstance(failure, ScanCancelled):
        return TIMEOUT if context.timed_out else CANCELLED if context.cancelled else ERROR
    return REJECTED if isinstance(failure, Rejected) and context.attempt == 0 else ERROR


def _short(seconds: float) -> str:
    return f"{seconds:.3g}"
