"""What the tests of `async def` scanners share."""

from __future__ import annotations

import asyncio
from typing import Any

from resilient_scan import RunReport, Status, scanner

FOUND = [{"ticker": "AAPL"}]


def waiting(name: str, seconds: float = 0.05, **layers: Any) -> Any:
    """Make a scanner that awaits, and then answers."""

    @scanner(name=name, pipeline="test", **layers)
    async def scan(_state: dict[str, Any]) -> list[Any]:
        await asyncio.sleep(seconds)
        return FOUND

    return scan


def status_by_name(report: RunReport) -> dict[str, Status]:
    """Return how each scanner's scan ended."""
    return {name: result.status for name, result in report.results.items()}
