"""One scanner's part of a run, and how its result is made of what the cache or an execution brought."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import msgspec

from resilient_scan.core.stack import CANCELLED, ERROR, REJECTED, SUCCESS, TIMEOUT, Stack
from resilient_scan.events import Event
from resilient_scan.layers.cache import Entry
from resilient_scan.results import ErrorInfo, ScanResult, Status
from resilient_scan.snapshot import Snapshot

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
    suspicious: str | None = None


class Run:
    """What all scans of a run share.

    Args:
        snapshot: the state.
        deadline: monotonic instant at which the run is over.
        epoch: what added to a monotonic instant gives epoch seconds.
    """

    def __init__(self, snapshot: Snapshot, deadline: float, epoch: float) -> None:
        self.run_id = ""
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
    probe = ""  # the mark of a probe, where it is one
    queued = False  # whether this execution went straight to the pool (and does not wait for a provider)
    execution: Any  # the `Execution` that it waits for

    def __init__(self, stack: Stack, run: Run, turn: float) -> None:
        self.stack = stack
        self.run = run
        self.turn = turn  # when it began, monotonic

    def end(self, answer: ScanResult | Outcome, events: tuple[Event, ...] = ()) -> None:
        """Hand over to the run's thread, with what it has to tell the listeners."""
        self.run.outbox.put((self, answer, events))


def result_of(scan: Scan, outcome: Outcome) -> ScanResult:
    """Make a scan's result from its execution's outcome."""
    own = outcome if scan.leads else None
    if outcome.kind == SUCCESS:
        shared = _shared(scan, outcome)
        return _result(scan.stack, scan.run, scan.turn, Status.CACHED, shared, age=0.0, suspicious=outcome.suspicious)
    if outcome.kind != CANCELLED and (stale := stale_answer(scan, own, outcome.error)) is not None:
        return stale
    candidates = own.candidates if own is not None else []
    return _result(scan.stack, scan.run, scan.turn, _STATUS[outcome.kind], candidates, outcome=own, error=outcome.error)


def without_work(stack: Stack, run: Run, turn: float, status: Status, error: ErrorInfo | None = None) -> ScanResult:
    """Make the result of a scan for which nothing was done."""
    return _result(stack, run, turn, status, [], error=error)


def from_cache(stack: Stack, run: Run, turn: float, entry: Entry, candidates: list[Any]) -> ScanResult:
    """Make the result of a scan that a fresh answer ends."""
    age = max(0.0, stack.clock.monotonic() - entry.stored_at)
    return _result(stack, run, turn, Status.CACHED, candidates, age=age)


def stale_answer(scan: Scan, outcome: Outcome | None, error: ErrorInfo | None) -> ScanResult | None:
    """Return an older answer that stands in for a failed execution, if the cache has one."""
    cache, key = scan.stack.cache, scan.key
    entry = cache.stale(key) if cache is not None and key is not None else None
    copies = cache.copies(key, entry) if cache is not None and entry is not None else None
    if entry is None or copies is None:
        return None
    scan.cache = STALE
    age = max(0.0, scan.stack.clock.monotonic() - entry.stored_at)
    return _result(scan.stack, scan.run, scan.turn, Status.STALE, copies, outcome=outcome, error=error, age=age)


def _shared(scan: Scan, outcome: Outcome) -> list[Any]:
    """Return another scan's candidates as objects of this scan's own, where they can be copied."""
    cache, entry = scan.stack.cache, outcome.entry
    copies = cache.copies(scan.key, entry) if cache is not None and entry is not None else None
    return list(outcome.candidates) if copies is None else copies


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
    suspicious: str | None = None,
) -> ScanResult:
    if outcome is None:  # no work of its own
        took = stack.clock.monotonic() - turn
        at = turn + run.epoch
        return ScanResult(
            stack.name, stack.pipeline, status, candidates, error, 0, took, 0.0, age, False, 0, [], at, suspicious
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
