"""One scanner's events that wait to be counted, and how they are counted."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from resilient_scan.events import (
    ERROR,
    LOCAL,
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
from resilient_scan.observe.metrics.catalogue import ATTEMPT_OUTCOMES, BUCKETS, SLOW_SHARE
from resilient_scan.results import Status

MAX_KINDS = 16  # exception classes with a label of their own
_ranks: dict[str, int] = {}  # of exception classes, in the order in which this process met them
_next_rank = itertools.count()

T = TypeVar("T")
Child = Any
"""A time series of prometheus_client: the child of a counter, a gauge or a histogram."""
Key = tuple[str, ...]
"""A metric's name without the prefix, and the labels of one of its series after the scanner's name."""


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
        """Return one time series, making it if necessary."""

    def begin(self, name: str, *owner: str) -> None:
        """Have all series of an owner exist from now on."""


class PendingCounts:
    """What is pending for one scanner, and those of its time series that were used.

    A rate cannot see a series that is created by its first error, so the series that ratios are made of exist from the
    beginning. Several runners may have a scanner of this name, in several pipelines.

    Threads append to the lists below while another one, in a scrape, drains them. No lock is needed for that: a list is
    appended to, copied and cut in one step each, so each event is counted by exactly one flush. An event that is
    appended during a scrape is counted by that scrape or by the next one, and never twice. (Three deques would do too,
    and would be most of what an idle scanner takes in memory.)
    """

    __slots__ = (
        "_children",
        "_counts",
        "_durations",
        "_last_success",
        "_pipelines",
        "_scanner",
        "_source",
        "ends",
        "events",
        "has_breaker",
        "has_hung",
        "has_total",
        "live",
        "queue_waits",
        "traces",
    )

    def __init__(self, source: SeriesSource, scanner: str) -> None:
        self.ends: list[End] = []
        self.queue_waits: list[float] = []  # of scans that waited for a worker
        self.events: list[Event] = []  # all others
        self.traces: dict[str, str] = {}  # of executions among them, by the run's id
        self.live: list[Registered] = []  # the scanner in each runner that has it
        self.has_breaker = self.has_hung = self.has_total = False
        self._source = source
        self._scanner = scanner
        self._pipelines: tuple[str, ...] = ()
        self._children: dict[Key, Child] = {}
        self._counts: Counter[Key] = Counter()
        self._durations: dict[str, list[tuple[float, dict[str, str]]]] = {}  # with exemplars, by pipeline
        self._last_success: float | None = None
        source.begin("attempts_total", scanner)

    def add_pipeline(self, pipeline: str) -> None:
        """Begin the time series for a pipeline, unless they exist."""
        if pipeline not in self._pipelines:
            self._pipelines += (pipeline,)
            for name in ("scans_total", "executions_total"):
                self._source.begin(name, self._scanner, pipeline)

    def add_total(self, total: float | None) -> None:
        """Begin the series of slow executions if they have a total to compare with."""
        if total is not None and not self.has_total:
            self.has_total = True
            self._source.begin("slow_executions_total", self._scanner)

    def flush(self) -> None:
        """Count everything that is pending; only one thread at a time may do that."""
        ends, events = _drained(self.ends), _drained(self.events)
        if self._last_success is None and (ends or events):
            self._last_success = 0.0  # from now on its absence is worth showing
            self._child("last_success_timestamp_seconds")
        try:
            self._count_ends(ends)
            for event in events:
                _HANDLERS[type(event)](self, event)
        finally:
            self._write()

    def discard(self) -> None:
        """Forget everything that is pending."""
        for pending in (self.ends, self.queue_waits, self.events, self.traces):
            pending.clear()

    def _child(self, *key: str) -> Child:
        child = self._children.get(key)
        if child is None:
            name, *labels = key
            child = self._children[key] = self._source.child(name, self._scanner, *labels)
        return child

    def _count_ends(self, ends: list[End]) -> None:
        counts = self._counts
        for end, number in Counter(ends).items():
            counts["scans_total", end.pipeline, end.status] += number
            if end.cache:
                counts["cache_requests_total", end.cache] += number
            if end.dropped:
                counts["candidates_dropped_total",] += end.dropped * number
        found = next((end.found for end in reversed(ends) if end.status.answered), None)
        if found is not None:
            self._child("candidates").set(found)
        queue_wait = self._source.child("queue_wait_seconds")
        for seconds in _drained(self.queue_waits):
            queue_wait.observe(seconds)

    def _write(self) -> None:
        """Bring what was counted into the time series, touching each once."""
        counts, self._counts = self._counts, Counter()
        for key, number in counts.items():
            self._child(*key).inc(number)
        if self._last_success:
            self._child("last_success_timestamp_seconds").set(self._last_success)
        durations, self._durations = self._durations, {}
        for pipeline, observed in durations.items():
            _observe(self._child("execution_duration_seconds", pipeline), observed)

    def _execution(self, event: ExecutionEnded) -> None:
        counts = self._counts
        counts["executions_total", event.pipeline, event.outcome] += 1
        exemplar = {"run_id": event.run_id} if event.run_id else {}
        if self.traces and (trace := self.traces.pop(event.run_id, None)):
            exemplar["trace_id"] = trace
        self._durations.setdefault(event.pipeline, []).append((event.duration, exemplar))
        if event.total is not None and event.duration > SLOW_SHARE * event.total:
            counts["slow_executions_total",] += 1
        if event.outcome == SUCCESS:
            self._last_success = max(self._last_success or 0.0, event.at)
        elif event.outcome in {ERROR, LOCAL} and event.error is not None:
            counts["errors_total", _kind(event.error.kind), event.error.blame] += 1

    def _late_completion(self, event: LateCompletion) -> None:
        if event.abandoned:
            self._source.child("late_completion_duration_seconds").observe(event.duration)
        self._counts["timeout_freed_total", event.method] += 1

    def _attempt(self, event: AttemptEnded) -> None:
        if event.outcome in ATTEMPT_OUTCOMES:
            self._counts["attempts_total", event.outcome] += 1
        if event.attempt > 1:
            self._counts["retries_total",] += 1

    def _add(self, *key: str) -> None:
        self._counts[key] += 1


_HANDLERS: dict[type, Callable[[PendingCounts, Any], None]] = {
    ExecutionEnded: PendingCounts._execution,  # noqa: SLF001 - all of its own class
    AttemptEnded: PendingCounts._attempt,  # noqa: SLF001
    LateCompletion: PendingCounts._late_completion,  # noqa: SLF001
    BreakerChanged: lambda counts, event: counts._add("breaker_transitions_total", event.new),  # noqa: SLF001
    ScannerStateChanged: lambda counts, event: counts._add("scanner_transitions_total", event.new, event.source),  # noqa: SLF001
    ProbeEnded: lambda counts, event: counts._add("probes_total", event.outcome),  # noqa: SLF001
    RetryBudgetExhausted: lambda counts, _event: counts._add("retry_budget_exhausted_total"),  # noqa: SLF001
    SuspiciousResult: lambda counts, event: counts._add("suspicious_results_total", event.kind),  # noqa: SLF001
    LoopBlocked: lambda counts, _event: counts._add("loop_blocked_total"),  # noqa: SLF001
}


def _drained(pending: list[T]) -> list[T]:
    """Take what is pending now.

    Threads go on appending, after what is copied here and cut off; so nothing is lost, and this ends.
    """
    taken = pending[:]
    del pending[: len(taken)]
    return taken


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
