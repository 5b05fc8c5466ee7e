"""A scan's result, as it may be."""

from __future__ import annotations

from typing import Any

from resilient_scan import ScanResult, Status


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
