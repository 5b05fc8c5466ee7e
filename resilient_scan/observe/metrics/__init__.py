"""Events as Prometheus metrics.

`catalogue` lists the metrics, `counts` holds what waits to be counted, `collectors` counts it into the `series` when a
metric is read, `render` writes their text, and `delivery` brings it out of the process: in a scrape, to a Pushgateway,
into a file, from prefork workers.
"""

from __future__ import annotations

from collections.abc import Sized

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
    traces,
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


class PrometheusMetrics:
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
        if kind is ScanEnded:  # first, and without a pattern, because there is one for every scan
            result = event.result  # type: ignore[attr-defined]
            pending = self._pending[result.scanner]
            queue: Sized = pending.ends
            pending.ends.append(
                End(result.pipeline, result.status, event.cache, len(result.candidates), result.dropped)  # type: ignore[attr-defined]
            )
            if result.attempts:
                pending.queue_waits.append(result.queue_wait)
        elif kind in OF_A_SCANNER:
            pending = self._pending[event.scanner]  # type: ignore[attr-defined]
            if traces and kind is ExecutionEnded and (trace := traces.get(event.run_id)):  # type: ignore[attr-defined]
                # Before the event: a scrape may count it as soon as it is in the queue, and would miss its trace.
                pending.traces[event.run_id] = trace  # type: ignore[attr-defined]
            queue = pending.events
            pending.events.append(event)
        else:
            self._rare(event)
            return
        if len(queue) >= MAX_PENDING:
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
