"""One scanner's events that wait to be counted, and how they are counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from operator import attrgetter
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
    traces,
)
from resilient_scan.observe.metrics.catalogue import ATTEMPT_OUTCOMES, SLOW_SHARE
from resilient_scan.observe.metrics.series import Child
from resilient_scan.results import ErrorInfo, Status

MAX_KINDS = 16  # exception classes with a label of their own
_ranks: dict[str, int] = {}  # of exception classes, in the order in which this process met them
_next_rank = itertools.count()

_of_end = attrgetter("pipeline", "status", "cache", "dropped")
_pipeline, _outcome, _duration, _total, _at = map(attrgetter, ("pipeline", "outcome", "duration", "total", "at"))

T = TypeVar("T")
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
    """Where time series come from.

    Attributes:
        queue_waits: how long scans waited for a worker, to be observed when all that is pending has been counted.
    """

    queue_waits: list[float]

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
        "_last_success",
        "_pipelines",
        "_scanner",
        "_source",
        "attempts",
        "ends",
        "events",
        "executions",
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
        self.attempts: list[str] = []  # their outcomes
        self.executions: list[ExecutionEnded] = []
        self.events: list[Event] = []  # all others
        self.traces: dict[str, str] = {}  # of executions among them, by the run's id
        self.live: list[Registered] = []  # the scanner in each runner that has it
        self.has_breaker = self.has_hung = self.has_total = False
        self._source = source
        self._scanner = scanner
        self._pipelines: tuple[str, ...] = ()
        self._children: dict[Key, Child] = {}
        self._last_success: float | None = None

    def take_attempt(self, event: AttemptEnded) -> None:
        """Have an attempt counted; the event itself is not kept, for its memory is at hand for the next one."""
        self.attempts.append(event.outcome)
        if event.attempt > 1:
            self.events.append(event)

    def take_execution(self, event: ExecutionEnded) -> None:
        """Have an execution counted, with the trace that its run has now."""
        if traces and (trace := traces.get(event.run_id)):
            # Before the event: a scrape may count it as soon as it is in the list, and would miss its trace.
            self.traces[event.run_id] = trace
        self.executions.append(event)

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
        if self._last_success is None:
            self._last_success = 0.0  # from now on its absence is worth showing
            self._child("last_success_timestamp_seconds")
        if self.ends:
            self._count_ends(_drained(self.ends))
        if self.queue_waits:
            self._source.queue_waits += _drained(self.queue_waits)
        if self.attempts:
            self._count_attempts(_drained(self.attempts))
        if self.executions:
            self._count_executions(_drained(self.executions))
        if self.events:
            for event in _drained(self.events):
                _HANDLERS[type(event)](self, event)

    def discard(self) -> None:
        """Forget everything that is pending."""
        for pending in (self.ends, self.queue_waits, self.attempts, self.executions, self.events, self.traces):
            pending.clear()

    def _child(self, *key: str) -> Child:
        child = self._children.get(key)
        if child is None:
            name, *labels = key
            child = self._children[key] = self._source.child(name, self._scanner, *labels)
        return child

    # Most of what waits in a list is alike, so it is counted by kinds: to find them, and to count each, are steps in C.

    def _count_ends(self, ends: list[End]) -> None:
        kinds = list(map(_of_end, ends))
        for kind in set(kinds):
            (pipeline, status, cache, dropped), number = kind, kinds.count(kind)
            self._child("scans_total", pipeline, status).inc(number)
            if cache:
                self._child("cache_requests_total", cache).inc(number)
            if dropped:
                self._child("candidates_dropped_total").inc(dropped * number)
        found = next((end.found for end in reversed(ends) if end.status.answered), None)
        if found is not None:
            self._child("candidates").set(found)

    def _count_attempts(self, attempts: list[str]) -> None:
        for outcome in set(attempts):
            if outcome in ATTEMPT_OUTCOMES:
                self._child("attempts_total", outcome).inc(attempts.count(outcome))

    def _count_executions(self, executions: list[ExecutionEnded]) -> None:
        pipelines = set(map(_pipeline, executions))
        for pipeline in pipelines:
            those = executions if len(pipelines) == 1 else [each for each in executions if each.pipeline == pipeline]
            durations, outcomes = list(map(_duration, those)), list(map(_outcome, those))
            for outcome in set(outcomes):
                self._child("executions_total", pipeline, outcome).inc(outcomes.count(outcome))
                if outcome == SUCCESS:
                    self._succeeded(max(each.at for each in those if each.outcome == SUCCESS))
                elif outcome in {ERROR, LOCAL}:
                    self._count_errors([each.error for each in those if each.outcome == outcome])
            self._count_slow(those, max(durations))
            self._child("execution_duration_seconds", pipeline).observe_all(durations, self._exemplars(those))
        if self.traces:
            for each in executions:
                self.traces.pop(each.run_id, None)

    def _succeeded(self, at: float) -> None:
        if at > (self._last_success or 0.0):
            self._last_success = at
            self._child("last_success_timestamp_seconds").set(at)

    def _count_errors(self, errors: list[ErrorInfo | None]) -> None:
        for error in errors:
            if error is not None:
                self._child("errors_total", _kind(error.kind), error.blame).inc()

    def _count_slow(self, executions: list[ExecutionEnded], longest: float) -> None:
        bounds = [SLOW_SHARE * total for total in set(map(_total, executions)) if total is not None]
        if bounds and longest > min(bounds):  # nearly never, and this is quicker than a look at each
            slow = [one for one in executions if one.total is not None and one.duration > SLOW_SHARE * one.total]
            if slow:
                self._child("slow_executions_total").inc(len(slow))

    def _exemplars(self, executions: list[ExecutionEnded]) -> Callable[[int], dict[str, str]]:
        """Return what makes the exemplar of an execution, given its number: only the last one in a bucket needs it."""

        def exemplar(number: int) -> dict[str, str]:
            run_id = executions[number].run_id
            trace = self.traces.get(run_id)
            return {} if not run_id else {"run_id": run_id} if trace is None else {"run_id": run_id, "trace_id": trace}

        return exemplar

    def _late_completion(self, event: LateCompletion) -> None:
        if event.abandoned:
            self._source.child("late_completion_duration_seconds").observe(event.duration)
        self._add("timeout_freed_total", event.method)

    def _add(self, *key: str) -> None:
        self._child(*key).inc()


_HANDLERS: dict[type, Callable[[PendingCounts, Any], None]] = {
    AttemptEnded: lambda counts, _event: counts._add("retries_total"),  # noqa: SLF001
    LateCompletion: PendingCounts._late_completion,  # noqa: SLF001 - all of its own class
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


def _kind(name: str) -> str:
    """Return the label for an exception class: its name, or `other` if the process has seen too many.

    Threads that flush different registries may meet here. When 15 names have a rank, A and B can both find that there
    is room, each for another name, and take the ranks 15 and 16: B's name is then `other`, for both of them. Comparing
    the number of names instead of the rank would let both names become labels.
    """
    if name not in _ranks and len(_ranks) < MAX_KINDS:
        _ranks.setdefault(name, next(_next_rank))
    return name if _ranks.get(name, MAX_KINDS) < MAX_KINDS else "other"
