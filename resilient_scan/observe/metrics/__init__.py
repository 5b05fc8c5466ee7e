"""Events as Prometheus metrics.

`catalogue` lists the metrics, `counts` holds what waits to be counted, `collectors` counts it into the `series` when a
metric is read, `render` writes their text, and `delivery` brings it out of the process: in a scrape, to a Pushgateway,
into a file, from prefork workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from resilient_scan._dispatch import Direct
from resilient_scan.events import (
    AlertReceived,
    AlertsServed,
    AttemptEnded,
    BreakerChanged,
    DeadlineActedOn,
    Event,
    ExecutionEnded,
    HeartbeatSeen,
    LateCompletion,
    ListenerLate,
    LocalFault,
    LoopBlocked,
    ProbeEnded,
    RetryBudgetExhausted,
    RunEnded,
    ScanEnded,
    ScannersRegistered,
    ScannerStateChanged,
    ScheduledRunBegins,
    ScheduleStarted,
    StoreFailed,
    SuspiciousResult,
    ThreadAbandoned,
)
from resilient_scan.observe.metrics.catalogue import Family, families
from resilient_scan.observe.metrics.collectors import (
    MAX_PENDING,
    MULTIPROCESS,
    REGISTRY,
    CollectorRegistry,
    metrics_of,
)
from resilient_scan.observe.metrics.counts import End, PendingCounts
from resilient_scan.observe.metrics.delivery import exposition, pieces, push, worker_ended, write_textfile

__all__ = [
    "REGISTRY",
    "CollectorRegistry",
    "Family",
    "PrometheusMetrics",
    "exposition",
    "families",
    "pieces",
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
    LoopBlocked,
)


class PrometheusMetrics(Direct):
    """A listener that counts and times scans, executions and runs.

    It may be built several times on one registry, and listen to several runners: they are counted together. Numbers are
    exact whenever they are read; the events of the last moments are counted when the registry is collected.

    Args:
        registry: where the metrics are registered; prometheus_client's default one, unless given.

    Raises:
        ValueError: the registry has a foreign metric of one of these names.
    """

    prompt = True
    events: tuple[type[Event], ...] = (
        ScannersRegistered,
        ScanEnded,
        *OF_A_SCANNER,
        RunEnded,
        DeadlineActedOn,
        ThreadAbandoned,
        LocalFault,
        StoreFailed,
        ListenerLate,
        AlertsServed,
        AlertReceived,
        HeartbeatSeen,
        ScheduleStarted,
        ScheduledRunBegins,
    )

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._metrics = metrics_of(registry)
        self._pending: dict[str, PendingCounts] = self._metrics.pending
        child, children = self._metrics.child, self._metrics.children
        self._runs = children("runs_total")
        self._run_duration, self._last_run = child("run_duration_seconds"), child("last_run_timestamp_seconds")
        self._lateness = child("watchdog_lateness_seconds")

    def __eq__(self, other: object) -> bool:
        """Return whether another listener counts into the same registry: a runner needs only one of them."""
        return isinstance(other, PrometheusMetrics) and other._metrics is self._metrics

    def __hash__(self) -> int:
        return hash(id(self._metrics))

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        kind = type(event)
        if kind is ScanEnded:
            self._scan_ended(event)  # type: ignore[arg-type]
        elif kind in OF_A_SCANNER:
            pending = self._pending[event.scanner]  # type: ignore[attr-defined]
            queue: Sized
            if kind is ExecutionEnded:
                queue = pending.executions
                pending.take_execution(event)  # type: ignore[arg-type]
            elif kind is AttemptEnded:
                queue = pending.attempts
                pending.take_attempt(event)  # type: ignore[arg-type]
            else:
                queue = pending.events
                pending.events.append(event)
            if len(queue) >= MAX_PENDING:
                self._metrics.flush_one(pending)
        else:
            self._rare(event)

    def direct(self, kind: type[Event], scanner: str) -> Callable[[Any], object] | None:
        """Return what takes events of a class about a scanner, for those that each scan has.

        Those of attempts and executions are only put into a list, which need not be looked up for each event. The end
        of the scan sees to it that the lists do not grow.
        """
        if MULTIPROCESS or type(self).__call__ is not PrometheusMetrics.__call__ or ScanEnded not in self.events:
            return None
        if kind is ScanEnded:
            return self._scan_ended
        if kind is AttemptEnded:
            return self._metrics.reserved(scanner).take_attempt
        return self._metrics.reserved(scanner).take_execution if kind is ExecutionEnded else None

    def _scan_ended(self, event: ScanEnded) -> None:
        result = event.result
        pending = self._pending[result.scanner]
        ends = pending.ends
        ends.append(End(result.pipeline, result.status, event.cache, len(result.candidates), result.dropped))
        if result.attempts:
            pending.queue_waits.append(result.queue_wait)
        if len(ends) >= MAX_PENDING or len(pending.attempts) >= MAX_PENDING:
            self._metrics.flush_one(pending)

    def _rare(self, event: Event) -> None:
        """Count at once what does not belong to one scanner."""
        match event:
            case RunEnded():
                self._run(event)
            case ScannersRegistered():
                self._watch(event)
            case DeadlineActedOn():
                self._lateness.observe(event.lateness)
            case AlertsServed() | AlertReceived() | HeartbeatSeen():
                self._alerting(event)
            case ScheduleStarted() | ScheduledRunBegins():
                self._scheduled(event)
            case _:
                self._trouble(event)
        if MULTIPROCESS:
            self._metrics.write()

    def _alerting(self, event: AlertsServed | AlertReceived | HeartbeatSeen) -> None:
        match event:
            case AlertReceived():
                self._metrics.child("alert_webhooks_total", event.source, event.result).inc()
            case HeartbeatSeen():
                self._metrics.child("alert_last_heartbeat_timestamp_seconds").set(event.at)
            case AlertsServed():
                self._metrics.child("alert_last_heartbeat_timestamp_seconds")  # 0 until one is seen

    def _scheduled(self, event: ScheduleStarted | ScheduledRunBegins) -> None:
        lateness = self._metrics.child("schedule_lateness_seconds")
        match event:
            case ScheduleStarted():
                for scanner in event.scanners:
                    self._metrics.child("schedule_interval_seconds", scanner).set(event.every)
            case ScheduledRunBegins():
                lateness.observe(event.lateness)

    def _trouble(self, event: Event) -> None:
        match event:
            case ListenerLate():
                self._metrics.child("listener_events_late_total").inc(event.events)
            case LocalFault():
                self._metrics.child("local_faults_total", event.kind).inc()
            case StoreFailed():
                self._metrics.child("store_errors_total", event.operation).inc()

    def _watch(self, event: ScannersRegistered) -> None:
        for scanner in event.scanners:
            self._metrics.watch(scanner)
        self._metrics.watch_load(event.load)
        self._metrics.watch_providers(event.providers)

    def _run(self, event: RunEnded) -> None:
        answered = any(count for status, count in event.counts.items() if status.answered)
        result = "complete" if event.complete else "partial" if answered else "failed"
        self._runs[result,].inc()
        self._run_duration.observe(event.duration)
        self._last_run.set(event.at)
