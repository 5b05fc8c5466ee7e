"""Events as OpenTelemetry spans: `TraceRuns` for the runner's listeners."""

from resilient_scan.observe.tracing import TraceRuns

__all__ = ["TraceRuns"]
