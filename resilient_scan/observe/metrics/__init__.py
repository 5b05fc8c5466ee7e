"""Events as Prometheus metrics.

`catalogue` says which metrics there are, `collectors` makes them and shows them, `tally` counts events into them,
`delivery` brings them to where they outlive the process, `workers` to where they outlive one of several.
"""

from __future__ import annotations

from collections.abc import Sized

from resilient_scan.events import (
    AlertReceived,
    AttemptEnded,
    BreakerChanged,
    Event,
    ExecutionEnded,
    HeartbeatSeen,
    LateCompletion,
    ProbeEnded,
    RetryBudgetExhausted,
    RunEnded,
    ScanEnded,
    ScannersRegistered,
    ScannerStateChanged,
    StoreFailed,
    SuspiciousResult,
    ThreadAbandoned,
    traces,
)
from resilient_scan.observe.metrics.catalogue import Family, families
from resilient_scan.observe.metrics.collectors import (
    MULTIPROCESS,
    PENDING,
    REGISTRY,
    CollectorRegistry,
    exposition,
    families_of,
)
from resilient_scan.observe.metrics.counts import End, Tally
from resilient_scan.observe.metrics.delivery import push, write_textfile
from resilient_scan.observe.metrics.workers import worker_ended

__all__ = [
    "REGISTRY",
    "CollectorRegistry",
    "Family",
    "PrometheusMetrics",
    "exposition",
    "families",
    "push",
    "worker_ended",
    "write_textfile",
]

OF_A_SCANNER = (
    AttemptEnded,
    ExecutionEnded,
    BreakerChanged,
    ScannerStateChanged,
    ProbeEnded,
    RetryBudgetExhausted,
    SuspiciousResult,
    LateCompletion,
)


class PrometheusMetrics:
    """A listener that counts and times scans, executions and runs.

    May be built several times on one registry, and listen to several runners: they are counted together. Numbers are
    exact whenever somebody looks; events of the last moments are counted when the registry is collected.

    Args:
        registry: where the metrics are registered; prometheus_client's default one, unless given.

    Raises:
        ValueError: the registry has a foreign metric of one of these names.
    """

    events: tuple[type[Event], ...] = (
        ScannersRegistered,
        ScanEnded,
        *OF_A_SCANNER,
        RunEnded,
        ThreadAbandoned,
        StoreFailed,
        AlertReceived,
        HeartbeatSeen,
    )

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._families = families_of(registry)
        self._tallies: dict[str, Tally] = self._families.tallies
        child, children = self._families.child, self._families.children
        self._runs = children("runs_total")
        self._run_duration, self._last_run = child("run_duration_seconds"), child("last_run_timestamp_seconds")
        self._heartbeat = child("alert_last_heartbeat_timestamp_seconds")

    def __eq__(self, other: object) -> bool:
        """Say whether another counts into the same registry: a runner needs one of them."""
        return isinstance(other, PrometheusMetrics) and other._families is self._families

    def __hash__(self) -> int:
        return hash(id(self._families))

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        kind = type(event)
        if kind is ScanEnded:  # first, and without a pattern: there is one for every scan
            result = event.result  # type: ignore[attr-defined]
            tally = self._tallies[result.scanner]
            pending: Sized = tally.ends
            tally.ends.append(
                End(result.pipeline, result.status, event.cache, len(result.candidates), result.dropped)  # type: ignore[attr-defined]
            )
            if result.attempts:
                tally.waits.append(result.queue_wait)
        elif kind in OF_A_SCANNER:
            tally = self._tallies[event.scanner]  # type: ignore[attr-defined]
            if traces and kind is ExecutionEnded and (trace := traces.get(event.run_id)):  # type: ignore[attr-defined]
                tally.traces[event.run_id] = trace  # type: ignore[attr-defined] # before somebody counts it
            pending = tally.events
            tally.events.append(event)
        else:
            self._rare(event)
            return
        if len(pending) >= PENDING:
            self._families.fold_one(tally)

    def _rare(self, event: Event) -> None:
        """Count what does not belong to one scanner, at once."""
        match event:
            case RunEnded():
                self._run(event)
            case ScannersRegistered():
                for scanner in event.scanners:
                    self._families.watch(scanner)
                self._families.watch_load(event.load)
            case StoreFailed():
                self._families.child("store_errors_total", event.operation).inc()
            case AlertReceived():
                self._families.child("alert_webhooks_total", event.source, event.result).inc()
            case HeartbeatSeen():
                self._heartbeat.set(event.at)
        if MULTIPROCESS:
            self._families.write()

    def _run(self, event: RunEnded) -> None:
        answered = any(count for status, count in event.counts.items() if status.answered)
        result = "complete" if event.complete else "partial" if answered else "failed"
        self._runs[result,].inc()
        self._run_duration.observe(event.duration)
        self._last_run.set(event.at)
