"""Results of scans: made up, or looked at."""

from __future__ import annotations

from typing import Any

from resilient_scan import RunReport, ScanResult, ScanRunner, Status


def result(**changes: Any) -> ScanResult:
    """Return the result of a scan that found nothing, but for `changes`."""
    plain: dict[str, Any] = {
        "scanner": "one",
        "pipeline": "news",
        "status": Status.COMPLETED,
        "candidates": [],
        "error": None,
        "attempts": 1,
        "duration": 0.5,
        "queue_wait": 0.0,
        "age": None,
        "partial": False,
        "dropped": 0,
        "tool_logs": [],
        "started_at": 0.0,
    }
    return ScanResult(**{**plain, **changes})


def statuses(report: RunReport) -> list[Status]:
    """Return how the scans ended, in the order of the scanners."""
    return [result.status for result in report.results.values()]


def only(runner: ScanRunner, state: dict[str, Any] | None = None, **options: Any) -> ScanResult:
    """Run a fleet of one."""
    (result,) = runner.run(state, **options).results.values()
    return result
