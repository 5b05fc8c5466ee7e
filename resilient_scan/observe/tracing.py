"""Events as OpenTelemetry spans (extra `otel`): a run contains its scans, and a scan its attempts.

An attempt's span is the current one while the scanner's function runs, on whatever thread that is, so spans of the
libraries that it uses become its children. A run is a child of the span that is current where `run` is called.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from resilient_scan import __version__
from resilient_scan._text import hide
from resilient_scan.errors import ConfigError
from resilient_scan.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    ExecutionEnded,
    RunEnded,
    RunStarted,
    ScanEnded,
    traces,
)
from resilient_scan.results import ErrorInfo, ScanResult, Status

if TYPE_CHECKING:
    from opentelemetry import context, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider
else:
    try:
        from opentelemetry import context, trace
    except ModuleNotFoundError:  # this file can be imported without the extra; using it says what is missing
        context = trace = None

NAME = "resilient_scan"
FAILED = (Status.ERROR, Status.TIMEOUT, Status.REJECTED)


class _Scan:
    """A scan's span, kept until both the scan and the execution that began for it have ended."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.awaited: set[type[Event]] = {ScanEnded, ExecutionEnded}


class TraceRuns:
    """A listener that makes spans of runs, scans and attempts (extra `otel`).

    A scan that failed, and a run in which no scanner answered, have the status ERROR. Secrets that can be recognized by
    their names are removed from what exceptions say.

    Args:
        tracer_provider: where spans go; by default, opentelemetry's global one.

    Raises:
        ConfigError: opentelemetry is not installed.
    """

    prompt = True
    events: tuple[type[Event], ...] = (RunStarted, AttemptStarted, AttemptEnded, ExecutionEnded, ScanEnded, RunEnded)

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        if trace is None:
            raise ConfigError("TraceRuns needs opentelemetry, which is in an extra: pip install 'resilient-scan[otel]'")
        self._tracer = trace.get_tracer(NAME, __version__, tracer_provider)
        # A scan ends on its run's thread and its execution on a worker, in either order. Without the lock, both could
        # find that the other is still awaited, and the span would be kept for good.
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[Span, Context]] = {}
        self._scans: dict[tuple[str, str], _Scan] = {}
        self._attempts: dict[tuple[str, str, int], tuple[Span, float]] = {}

    def __call__(self, event: Event) -> None:
        """Begin or end a span."""
        match event:
            case ScanEnded():
                self._end_scan(event)
            case AttemptStarted():
                self._start_attempt(event)
            case AttemptEnded():
                self._end_attempt(event)
            case ExecutionEnded():
                self._release((event.run_id, event.scanner), ExecutionEnded)
            case RunStarted():
                self._start_run(event)
            case RunEnded():
                self._end_run(event)

    def _start_run(self, event: RunStarted) -> None:
        span = self._tracer.start_span("run", start_time=_ns(event.at), attributes=_named(run_id=event.run_id))
        self._runs[event.run_id] = span, trace.set_span_in_context(span)
        seen = span.get_span_context()
        if seen.trace_flags.sampled:
            traces[event.run_id] = trace.format_trace_id(seen.trace_id)

    def _end_run(self, event: RunEnded) -> None:
        span, _ = self._runs.pop(event.run_id)
        traces.pop(event.run_id, None)
        counts = {f"scans.{status.value}": count for status, count in event.counts.items()}
        span.set_attributes(_named(complete=event.complete, **counts))
        if not event.complete and not any(status.answered for status in event.counts):
            span.set_status(trace.StatusCode.ERROR, "no scanner answered")
        span.end(_ns(event.at))

    def _scan_span(self, run_id: str, scanner: str, at: float) -> Span:
        _, around = self._runs.get(run_id) or (None, context.get_current())
        attributes = _named(run_id=run_id, scanner=scanner)
        return self._tracer.start_span(f"scan {scanner}", around, start_time=_ns(at), attributes=attributes)

    def _start_attempt(self, event: AttemptStarted) -> None:
        key = event.run_id, event.scanner
        with self._lock:
            scan = self._scans.get(key)
            if scan is None:
                scan = self._scans[key] = _Scan(self._scan_span(*key, event.at))
        span = self._tracer.start_span(
            f"attempt {event.scanner}",
            trace.set_span_in_context(scan.span),
            start_time=_ns(event.at),
            attributes=_named(run_id=event.run_id, scanner=event.scanner, attempt=event.attempt),
        )
        self._attempts[*key, event.attempt] = span, event.at
        # These context variables are the execution's own copy and end with it, so nothing needs to be detached.
        context.attach(trace.set_span_in_context(span))

    def _end_attempt(self, event: AttemptEnded) -> None:
        found = self._attempts.pop((event.run_id, event.scanner, event.attempt), None)
        if found is None:
            return
        span, began = found
        span.set_attributes(_named(outcome=event.outcome))
        if event.outcome in {"error", "timeout"}:
            _mark(span, event.error)
        span.end(_ns(began + event.duration))

    def _end_scan(self, event: ScanEnded) -> None:
        result, key = event.result, (event.run_id, event.result.scanner)
        with self._lock:
            scan = self._scans.get(key)
        span = scan.span if scan is not None else self._scan_span(*key, result.started_at)
        span.set_attributes(_attributes(result, event.cache))
        if result.status in FAILED:
            _mark(span, result.error)
        span.end(_ns(result.started_at + result.duration))
        self._release(key, ScanEnded)

    def _release(self, key: tuple[str, str], ended: type[Event]) -> None:
        """Forget a scan's span once both the scan and its execution have ended."""
        with self._lock:
            scan = self._scans.get(key)
            if scan is not None:
                scan.awaited.discard(ended)
                if not scan.awaited:
                    del self._scans[key]


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _named(**attributes: Any) -> dict[str, Any]:
    return {f"{NAME}.{name}": value for name, value in attributes.items()}


def _attributes(result: ScanResult, cache: str) -> dict[str, Any]:
    return _named(
        pipeline=result.pipeline,
        status=result.status.value,
        candidates=len(result.candidates),
        attempts=result.attempts,
        queue_wait=result.queue_wait,
        partial=result.partial,
        dropped=result.dropped,
        cache=cache,
    )


def _mark(span: Span, error: ErrorInfo | None) -> None:
    """Set a span's status to ERROR, with what went wrong."""
    message = hide(error.message) if error is not None else ""
    span.set_status(trace.StatusCode.ERROR, message)
    if error is not None:
        span.set_attributes(_named(blame=error.blame))
        traced = {"exception.stacktrace": error.traceback} if error.traceback else {}
        span.add_event("exception", {"exception.type": error.type, "exception.message": message, **traced})
