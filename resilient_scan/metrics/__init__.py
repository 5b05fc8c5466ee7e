"""Events as Prometheus metrics; the only file that knows prometheus_client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from weakref import WeakKeyDictionary

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client import generate_latest as text_of

from resilient_scan.events import Event, ExecutionEnded, Registered, RunEnded, ScanEnded, ScannersRegistered
from resilient_scan.metrics.catalogue import Family, families
from resilient_scan.outcome import Status

__all__ = ["Family", "PrometheusMetrics", "exposition", "families"]

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OUTCOMES = ("success", "error", "timeout", "cancelled")
CACHE_RESULTS = ("hit", "stale", "miss", "shared", "bypass")
BREAKER_STATES = ("closed", "open", "half_open")
WORST_FIRST = ("open", "half_open", "closed")
RUN_RESULTS = ("complete", "partial", "failed")
MAX_KINDS = 16


class _Families:
    """The metrics of one registry: prometheus_client refuses to register a name twice, so they are made once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._readers: dict[str, list[Callable[[], str | None]]] = {}
        self.scans = Counter(
            "resilient_scan_scans_total",
            "Scans by the status in which they ended.",
            ("scanner", "pipeline", "status"),
            registry=registry,
        )
        self.executions = Counter(
            "resilient_scan_executions_total",
            "Executions (real work, not answered from the cache) by outcome.",
            ("scanner", "pipeline", "outcome"),
            registry=registry,
        )
        self.duration = Histogram(
            "resilient_scan_execution_duration_seconds",
            "Duration of executions, those that timed out included.",
            ("scanner", "pipeline"),
            buckets=BUCKETS,
            registry=registry,
        )
        self.errors = Counter(
            "resilient_scan_errors_total",
            "Failed executions by exception class; classes beyond the first 16 of a process count as other.",
            ("scanner", "kind"),
            registry=registry,
        )
        self.cache = Counter(
            "resilient_scan_cache_requests_total",
            "What the cache had for a scan.",
            ("scanner", "result"),
            registry=registry,
        )
        self.breaker = Gauge(
            "resilient_scan_breaker_state",
            "State of the breaker: 1 for the current one, 0 for the others.",
            ("scanner", "state"),
            registry=registry,
        )
        self.runs = Counter(
            "resilient_scan_runs_total",
            "Runs: complete (every scanner in service answered), partial, failed (none answered).",
            ("result",),
            registry=registry,
        )

    def watch(self, scanner: str, read: Callable[[], str | None]) -> None:
        """Export a breaker's state as read at scrape; of several breakers of one name the worst counts."""
        readers = self._readers.setdefault(scanner, [])
        readers[:] = [other for other in readers if other() is not None] + [read]
        for state in BREAKER_STATES:
            self.breaker.labels(scanner, state).set_function(partial(_is_worst, readers, state))


def _is_worst(readers: list[Callable[[], str | None]], state: str) -> float:
    """Return 1 if `state` is the worst of those that are read, else 0; of closed runners nothing is read."""
    seen = {read() for read in readers}
    return float(next((worst for worst in WORST_FIRST if worst in seen), "") == state)


_families: WeakKeyDictionary[CollectorRegistry, _Families] = WeakKeyDictionary()
_kinds: set[str] = set()
_lock = threading.Lock()


class _Children:
    """One scanner's time series, made when it is registered so that a rate sees its first failure too."""

    __slots__ = ("cache", "executions", "observe", "scans")

    def __init__(self, families: _Families, scanner: str, pipeline: str) -> None:
        self.scans = {status: families.scans.labels(scanner, pipeline, status.value).inc for status in Status}
        self.executions = {outcome: families.executions.labels(scanner, pipeline, outcome).inc for outcome in OUTCOMES}
        self.observe = families.duration.labels(scanner, pipeline).observe
        self.cache = {result: families.cache.labels(scanner, result).inc for result in CACHE_RESULTS}


class PrometheusMetrics:
    """A listener that counts and times scans, executions and runs.

    May be built several times on one registry, and listen to several runners.

    Args:
        registry: where the metrics are registered; prometheus_client's default one, unless given.
    """

    events: tuple[type[Event], ...] = (ScannersRegistered, ScanEnded, ExecutionEnded, RunEnded)

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        with _lock:
            families = _families.get(registry)
            if families is None:
                families = _families[registry] = _Families(registry)
        self._families = families
        self._children: dict[str, dict[str, _Children]] = {}  # by pipeline and name: several runners may share one
        self._runs = {result: families.runs.labels(result) for result in RUN_RESULTS}

    def __call__(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, ScanEnded):  # first, and without a pattern: there is one for every scan
            result = event.result
            children = self._children[result.pipeline][result.scanner]
            children.scans[result.status]()
            if event.cache:
                children.cache[event.cache]()
        elif isinstance(event, ExecutionEnded):
            self._execution(event)
        elif isinstance(event, RunEnded):
            answered = sum(count for status, count in event.counts.items() if status.answered)
            self._runs["complete" if event.complete else "partial" if answered else "failed"].inc()
        elif isinstance(event, ScannersRegistered):
            for scanner in event.scanners:
                self._register(scanner)

    def _execution(self, event: ExecutionEnded) -> None:
        children = self._children[event.pipeline][event.scanner]
        children.executions[event.outcome]()
        children.observe(event.duration)
        if event.outcome == "error" and event.error is not None:
            self._families.errors.labels(event.scanner, _kind(event.error.kind)).inc()

    def _register(self, scanner: Registered) -> None:
        pipeline = self._children.setdefault(scanner.pipeline, {})
        pipeline[scanner.name] = _Children(self._families, scanner.name, scanner.pipeline)
        if scanner.breaker_state is not None:
            self._families.watch(scanner.name, scanner.breaker_state)


def _kind(name: str) -> str:
    """Return the label for an exception class: its name, or `other` when the process has seen too many."""
    if name in _kinds:
        return name
    with _lock:
        if len(_kinds) < MAX_KINDS:
            _kinds.add(name)
        return name if name in _kinds else "other"


def exposition(registry: CollectorRegistry = REGISTRY) -> tuple[str, bytes]:
    """Return what a scrape gets: the content type and the text.

    Without `_created` samples: prometheus_client can switch them off for the whole process only, and a series more for
    every series is a high price for an instant that nobody asks for.
    """
    return CONTENT_TYPE_LATEST, text_of(_WithoutCreated(registry))


class _WithoutCreated(CollectorRegistry):
    """What another registry has, without the instants at which its series were made."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            if family.type in {"counter", "histogram", "summary"}:
                bare = Metric(family.name, family.documentation, family.type, family.unit)
                bare.samples = [sample for sample in family.samples if sample.name != f"{family.name}_created"]
                yield bare
            else:
                yield family
