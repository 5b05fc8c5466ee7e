"""A scan begins: the gate or the cache ends it at once, else it waits for an execution, its own or another scan's.

    gate ----- out of service ------------------------------> disabled
      |  `---- a probe is due ----> an execution of its own; nobody else's answer is read or waited for
    cache ---- a fresh answer, a remembered failure --------> cached, error, timeout; or stale
      |  `---- another scan is asking for the same ---------> waits for that execution (a follower)
    lease ---- another process is asking for the same ------> its execution waits for the answer, or for the lease
      |
    execution

All of this runs on the run's thread. What ends a scan later, on any thread, goes through the outbox of its run.
"""

from __future__ import annotations

from typing import Any

from resilient_scan.core.execution import Execution
from resilient_scan.core.outcome import Outcome, WaitingRun
from resilient_scan.core.stack import REJECTED, Stack
from resilient_scan.errors import ScanTimeout
from resilient_scan.events import CANCELLED, ERROR, SUCCESS, TIMEOUT, Event
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.quarantine import Turn
from resilient_scan.results import ErrorInfo, ScanResult, Status

HIT, STALE, MISS, SHARED, BYPASS, NOT_ASKED = "hit", "stale", "miss", "shared", "bypass", ""
_STATUS = {
    ERROR: Status.ERROR,
    TIMEOUT: Status.TIMEOUT,
    REJECTED: Status.REJECTED,
    CANCELLED: Status.SKIPPED,
}


class Scan:
    """One scanner's part of a run, while it has no result."""

    cache = BYPASS
    key: bytes | None = None
    leads = False  # whether the execution was made for it
    probe = ""  # the mark of a probe, where it is one
    queued = False  # whether it has a place in the run's window: it waits neither for a provider nor another process
    execution: Any  # the `Execution` that it waits for; None once it has a result
    # What another thread has put here before it put the scan into the outbox: an interrupt of the run's thread may cost
    # the run a message that was just taken out, but not the answer.
    answer: ScanResult | Outcome | None = None
    held_up = False  # another process works on the same
    events: tuple[Event, ...] = ()  # that the run's thread has to send to the listeners

    def __init__(self, stack: Stack, run: WaitingRun, turn: float) -> None:
        self.stack = stack
        self.run = run
        self.turn = turn  # when it began, monotonic

    def end(self, answer: ScanResult | Outcome, events: tuple[Event, ...] = ()) -> None:
        """Hand the answer over to the run's thread, with what that thread has to send to the listeners."""
        self.answer, self.events = answer, events
        self.run.outbox.put(self)

    def wait_for(self, execution: Execution) -> None:
        """Note, before anybody else learns of it, the execution of its own that it waits for.

        An interrupt may end the run's thread's work at any point. If the execution led in the cache by then, or had
        been queued, and its run did not know the scan, nobody would end it: every later scan with this key would wait
        for an execution that nobody works on.
        """
        self.execution = execution
        self.run.open.add(self)

    def end_cached(self, entry: Entry) -> None:
        """Hand over an answer that another process brought."""
        cache = self.stack.cache
        self.leads, self.cache = False, SHARED
        copies = None if cache is None else cache.copies(self.key, entry)
        self.end(from_cache(self.stack, self.run, self.turn, entry, copies or []))

    def hold_up(self) -> None:
        """Let the run's thread know that another process works on the same: no place in the window is kept for it."""
        self.held_up = True
        self.run.outbox.put(self)

    def end_skipped(self) -> None:
        """Hand over that nothing was done, because the run has ended."""
        self.end(without_work(self.stack, self.run, self.turn, Status.SKIPPED))


# how it begins


def begin(stack: Stack, run: WaitingRun) -> Scan | tuple[ScanResult, str]:
    """Start a scan.

    Returns:
        The scan, which will `end`; or its result, and what the cache had for it, where no work is needed.
    """
    if stack.gated and stack.name in stack.gated:  # the gate knows something about it
        decision, mark = stack.gate.turn(stack.name, stack.total)
        if decision is Turn.PROBE:
            return _probe(Scan(stack, run, stack.clock.monotonic()), mark)
        if decision is not Turn.RUN:
            return without_work(stack, run, stack.clock.monotonic(), Status.DISABLED), NOT_ASKED
    return _in_service(stack, run)


def _in_service(stack: Stack, run: WaitingRun) -> Scan | tuple[ScanResult, str]:
    turn = stack.clock.monotonic()
    cache = stack.cache
    key = None if cache is None else run.snapshot.keys[cache.inputs]
    if cache is None or key is None:
        if cache is not None:
            cache.warn_once(stack.name)
        scan = Scan(stack, run, turn)
        scan.wait_for(execution := Execution(stack, scan, None))
        _lead(scan, execution)
        return scan
    entry = cache.peek(key)
    if entry is None and cache.answers is not None:
        entry = cache.fresh(key) or cache.load(key)
    if entry is None:
        scan = Scan(stack, run, turn)
        entry = _lead_or_follow(scan, cache, key)
        if entry is None:
            return scan
    if entry.error is not None:
        return _remembered(Scan(stack, run, turn), key, entry.error)
    copies = cache.copies(key, entry) if entry.candidates else []
    if copies is None:  # it cannot be copied, and was forgotten
        return _in_service(stack, run)
    return from_cache(stack, run, turn, entry, copies), HIT


def _remembered(scan: Scan, key: bytes, error: ErrorInfo) -> tuple[ScanResult, str]:
    """End a scan with a failure that is still remembered, or with the older answer that stands in for it."""
    scan.key = key
    stale = _stale_answer(scan, None, error)
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
    scan.wait_for(execution)
    if stack.breaker is not None:
        stack.breaker.allow_trial()
    _lead(scan, execution)
    return scan


def _lead_or_follow(scan: Scan, cache: ResultCache[Any], key: bytes) -> Entry | None:
    """Start an execution, or join the one under way; an answer that came just now is returned.

    Between the look at the cache and the join, the leader may end, and then land. One that has ended takes no more
    waiters: if it still leads in the cache, our own execution takes its place there; if it has landed meanwhile, the
    cache is asked again, and most likely has the answer.
    """
    mine = Execution(scan.stack, scan, key)
    scan.cache, scan.key = MISS, key
    scan.wait_for(mine)
    while True:
        leader = cache.lead(key, mine)
        if isinstance(leader, Entry):
            scan.run.open.discard(scan)
            return leader
        if leader is not mine and leader.join(scan):
            scan.cache = SHARED
            return None
        if leader is mine or cache.hand_on(key, leader, mine):
            _lead(scan, mine)
            return None


def _lead(scan: Scan, execution: Execution) -> None:
    """Let a scan's own execution go, once no other process works on the same key."""
    scan.leads = True
    scan.queued = scan.stack.in_window
    leases, key = scan.stack.leases, scan.key
    if leases is not None and key is not None and leases.request(scan.stack.address(key), execution):
        return  # the lease keeper lets it go
    if scan.stack.provider is None:
        execution.queue()
    else:
        execution.go()


# how it ends


def result_of(scan: Scan, outcome: Outcome) -> ScanResult:
    """Make a scan's result from its execution's outcome."""
    own = outcome if scan.leads else None
    if outcome.kind == SUCCESS:
        shared = _shared(scan, outcome)
        return _without_own_work(
            scan.stack, scan.run, scan.turn, Status.CACHED, shared, age=0.0, suspicious=outcome.suspicious
        )
    if outcome.kind != CANCELLED and (stale := _stale_answer(scan, own, outcome.error)) is not None:
        return stale
    status = _STATUS[outcome.kind]
    if own is None:
        return without_work(scan.stack, scan.run, scan.turn, status, outcome.error)
    return _with_own_work(scan, status, own.candidates, own, own.error)


def cut_short(scan: Scan) -> ScanResult:
    """Make the result of a scan whose run ended while its execution was under way."""
    execution: Execution = scan.execution
    error = ErrorInfo.of(execution.run_over(scan))
    return result_of(scan, execution.outcome(TIMEOUT, execution.context.found, None, error, scan))


def without_work(
    stack: Stack, run: WaitingRun, turn: float, status: Status, error: ErrorInfo | None = None
) -> ScanResult:
    """Make the result of a scan for which nothing was done."""
    return _without_own_work(stack, run, turn, status, [], error)


def from_cache(stack: Stack, run: WaitingRun, turn: float, entry: Entry, candidates: list[Any]) -> ScanResult:
    """Make the result of a scan that a fresh answer ends."""
    age = max(0.0, stack.clock.monotonic() - entry.stored_at)
    return _without_own_work(stack, run, turn, Status.CACHED, candidates, age=age)


def _stale_answer(scan: Scan, outcome: Outcome | None, error: ErrorInfo | None) -> ScanResult | None:
    """Return an older answer that stands in for a failed execution, if the cache has one."""
    cache, key = scan.stack.cache, scan.key
    entry = cache.stale(key) if cache is not None and key is not None else None
    copies = cache.copies(key, entry) if cache is not None and entry is not None else None
    if entry is None or copies is None:
        return None
    scan.cache = STALE
    age = max(0.0, scan.stack.clock.monotonic() - entry.stored_at)
    if outcome is None:
        return _without_own_work(scan.stack, scan.run, scan.turn, Status.STALE, copies, error, age)
    return _with_own_work(scan, Status.STALE, copies, outcome, error, age)


def _shared(scan: Scan, outcome: Outcome) -> list[Any]:
    """Return another scan's candidates as objects of this scan's own, where they can be copied."""
    cache, entry = scan.stack.cache, outcome.entry
    copies = cache.copies(scan.key, entry) if cache is not None and entry is not None else None
    return list(outcome.candidates) if copies is None else copies


def _without_own_work(
    stack: Stack,
    run: WaitingRun,
    turn: float,
    status: Status,
    candidates: list[Any],
    error: ErrorInfo | None = None,
    age: float | None = None,
    suspicious: str | None = None,
) -> ScanResult:
    took = stack.clock.monotonic() - turn
    at = turn + run.epoch
    return ScanResult(
        stack.name, stack.pipeline, status, candidates, error, 0, took, 0.0, age, False, 0, [], at, suspicious
    )


def _with_own_work(
    scan: Scan,
    status: Status,
    candidates: list[Any],
    outcome: Outcome,
    error: ErrorInfo | None,
    age: float | None = None,
) -> ScanResult:
    partial = bool(candidates) and not status.answered
    return ScanResult(
        scan.stack.name,
        scan.stack.pipeline,
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
