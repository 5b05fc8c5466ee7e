"""One scanner's events that wait to be counted, and how they are counted."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from resilient_scan.events import (
    ERROR,
    SUCCESS,
    AttemptEnded,
    BreakerChanged,
    Event,
    ExecutionEnded,
    LateCompletion,
    LoopBlocked,
    ProbeEnded,
    Registered,
    RetryBudgetExhausted,
    ScannerStateChanged,
    SuspiciousResult,
)
from resilient_scan.observe.metrics.catalogue import BUCKETS, SLOW_SHARE
from resilient_scan.results import Status

MAX_KINDS = 16  # exception classes with a label of their own
_ranks: dict[str, int] = {}  # of exception classes, in the order in which this process met them
_next_rank = itertools.count()

T = TypeVar("T")
Child = Any
"""A time series of prometheus_client: the child of a counter, a gauge or a histogram."""


class End(msgspec.Struct, frozen=True, gc=False):
    """What is counted of a `ScanEnded`, which is not kept itself because it holds all candidates.

    Most ends of a scanner are equal, which makes them cheap to count. It is not a tuple, because where thousands wait
    to be counted the garbage collector would look at all of them.
    """

    pipeline: str
    status: Status
    cache: str
    found: int
    dropped: int


class SeriesSource(Protocol):
    """Where time series come from."""

    def child(self, name: str, *labels: str) -> Child:
        """Return one time series."""

    def children(self, name: str, *owner: str) -> dict[tuple[str, ...], Child]:
        """Return all time series of an owner."""


class _Pipeline:
    """The time series that carry the pipeline's name too."""

    def __init__(self, source: SeriesSource, scanner: str, pipeline: str) -> None:
        self.scans = source.children("scans_total", scanner, pipeline)
        self.executions = source.children("executions_total", scanner, pipeline)
        self.duration = source.child("execution_duration_seconds", scanner, pipeline)
        self.pending: list[tuple[float, dict[str, str]]] = []  # durations, with their exemplars


class PendingCounts:
    """What is pending for one scanner, and all its time series, which are made when it is registered.

    A rate cannot see a series that is created by its first error, so every series exists from the beginning.
    Several runners may have a scanner of this name, in several pipelines.

    Threads append to the queues below while another one, in a scrape, drains them. No lock is needed for that: `append`
    and `popleft` of a deque are atomic, so each event is counted by exactly one flush. An event that is appended during
    a scrape is counted by that scrape or by the next one, and never twice.
    """

    def __init__(self, source: SeriesSource, scanner: str) -> None:
        self.ends: deque[End] = deque()
        self.queue_waits: deque[float] = deque()  # of scans that waited for a worker
        self.events: deque[Event] = deque()  # all others
        self.traces: dict[str, str] = {}  # of executions among them, by the run's id
        self.live: list[Registered] = []  # the scanner in each runner that has it
        self.has_breaker = False
        self._source = source
        self._scanner = scanner
        self._pipelines: dict[str, _Pipeline] = {}
        self._counts: Counter[Child] = Counter()
        self._series = {
            name: source.children(name, scanner)
            for name in (
                "attempts_total",
                "cache_requests_total",
                "breaker_transitions_total",
                "scanner_transitions_total",
                "probes_total",
                "timeout_freed_total",
            )
        }
        self._attempts, self._cache = self._series["attempts_total"], self._series["cache_requests_total"]
        self._retries = source.child("retries_total", scanner)
        self._exhausted = source.child("retry_budget_exhausted_total", scanner)
        self._suspicious = source.child("suspicious_results_total", scanner)
        self._blocked = source.child("loop_blocked_total", scanner)
        self._candidates = source.child("candidates", scanner)
        self._dropped = source.child("candidates_dropped_total", scanner)
        self._success = source.child("last_success_timestamp_seconds", scanner)
        self._late = source.child("late_completion_duration_seconds")
        self._slow: Child = None
        self._queue_wait = source.child("queue_wait_seconds")
        self._last_success = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            ExecutionEnded: self._execution,
            AttemptEnded: self._attempt,
            BreakerChanged: lambda event: self._count("breaker_transitions_total", event.new),
            ScannerStateChanged: lambda event: self._count("scanner_transitions_total", event.new, event.source),
            ProbeEnded: lambda event: self._count("probes_total", event.outcome),
            RetryBudgetExhausted: lambda _event: self._add(self._exhausted),
            SuspiciousResult: lambda _event: self._add(self._suspicious),
            LoopBlocked: lambda _event: self._add(self._blocked),
            LateCompletion: self._late_completion,
        }

    def add_pipeline(self, pipeline: str) -> None:
        """Make the time series for a pipeline, unless they exist."""
        if pipeline not in self._pipelines:
            self._pipelines[pipeline] = _Pipeline(self._source, self._scanner, pipeline)

    def add_total(self, total: float | None) -> None:
        """Make the series of slow executions if they have a total to compare with."""
        if total is not None and self._slow is None:
            self._slow = self._source.child("slow_executions_total", self._scanner)

    def flush(self) -> None:
        """Count everything that is pending; only one thread at a time may do that."""
        try:
            self._count_ends(_drained(self.ends))
            events = self.events
            while events:
                event = events.popleft()
                self._handlers[type(event)](event)
        finally:
            self._write()

    def discard(self) -> None:
        """Forget everything that is pending."""
        for pending in (self.ends, self.queue_waits, self.events, self.traces):
            pending.clear()

    def _count_ends(self, ends: list[End]) -> None:
        for end, number in Counter(ends).items():
            self._counts[self._pipelines[end.pipeline].scans[end.status,]] += number
            if end.cache:
                self._counts[self._cache[end.cache,]] += number
            if end.dropped:
                self._counts[self._dropped] += end.dropped * number
        found = next((end.found for end in reversed(ends) if end.status.answered), None)
        if found is not None:
            self._candidates.set(found)
        for seconds in _drained(self.queue_waits):
            self._queue_wait.observe(seconds)

    def _write(self) -> None:
        """Bring what was counted into the time series, touching each once."""
        counts, self._counts = self._counts, Counter()
        for child, number in counts.items():
            child.inc(number)
        if self._last_success:
            self._success.set(self._last_success)
        for pipeline in self._pipelines.values():
            if pipeline.pending:
                durations, pipeline.pending = pipeline.pending, []
                _observe(pipeline.duration, durations)

    def _add(self, child: Child, number: int = 1) -> None:
        self._counts[child] += number

    def _count(self, name: str, *labels: str) -> None:
        series = self._series[name]
        child = series.get(labels)
        if child is None:  # a value that the catalogue does not know is still counted
            child = series[labels] = self._source.child(name, self._scanner, *labels)
        self._counts[child] += 1

    def _execution(self, event: ExecutionEnded) -> None:
        pipeline = self._pipelines[event.pipeline]
        self._counts[pipeline.executions[event.outcome,]] += 1
        exemplar = {"run_id": event.run_id} if event.run_id else {}
        if self.traces and (trace := self.traces.pop(event.run_id, None)):
            exemplar["trace_id"] = trace
        pipeline.pending.append((event.duration, exemplar))
        if event.total is not None and event.duration > SLOW_SHARE * event.total:
            self.add_total(event.total)
            self._add(self._slow)
        if event.outcome == SUCCESS:
            self._last_success = max(self._last_success, event.at)
        elif event.outcome == ERROR and event.error is not None:
            self._add(self._source.child("errors_total", self._scanner, _kind(event.error.kind)))

    def _late_completion(self, event: LateCompletion) -> None:
        if event.abandoned:
            self._late.observe(event.duration)
        self._count("timeout_freed_total", event.method)

    def _attempt(self, event: AttemptEnded) -> None:
        child = self._attempts.get((event.outcome,))
        if child is not None:
            self._counts[child] += 1
        if event.attempt > 1:
            self._counts[self._retries] += 1


def _drained(pending: deque[T]) -> list[T]:
    """Take what is pending now.

    The length is read once: until the deque is empty, a loop could go on as long as threads keep appending.
    """
    return [pending.popleft() for _ in range(len(pending))]


def _observe(histogram: Child, durations: list[tuple[float, dict[str, str]]]) -> None:
    """Observe several durations; the newest in each bucket becomes its exemplar."""
    newest = {bisect_left(BUCKETS, seconds): number for number, (seconds, _) in enumerate(durations)}
    for number, (seconds, exemplar) in enumerate(durations):
        is_newest = newest[bisect_left(BUCKETS, seconds)] == number
        histogram.observe(seconds, exemplar if is_newest and exemplar else None)


def _kind(name: str) -> str:
    """Return the label for an exception class: its name, or `other` if the process has seen too many.

    Threads that flush different registries may meet here. When 15 names have a rank, A and B can both find that there
    is room, each for another name, and take the ranks 15 and 16: B's name is then `other`, for both of them. Comparing
    the number of names instead of the rank would let both names become labels.
    """
    if name not in _ranks and len(_ranks) < MAX_KINDS:
        _ranks.setdefault(name, next(_next_rank))
    return name if _ranks.get(name, MAX_KINDS) < MAX_KINDS else "other"
