"""What a run brought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from resilient_scan.errors import ConfigError, ScanError, is_number
from resilient_scan.outcome import ScanResult, Status


class RunReport(msgspec.Struct, frozen=True):
    """The result of one run.

    Attributes:
        run_id: unique.
        results: by scanner, in the order in which the scanners were given.
        started_at: epoch seconds.
        duration: seconds.
    """

    run_id: str
    results: dict[str, ScanResult]
    started_at: float
    duration: float

    @property
    def candidates(self) -> list[Any]:
        """All candidates, in the order of the scanners."""
        return [candidate for result in self.results.values() for candidate in result.candidates]

    @property
    def tool_logs(self) -> list[dict[str, Any]]:
        """What the scanners logged in this run, in the order of the scanners."""
        return [entry for result in self.results.values() for entry in result.tool_logs]

    @property
    def counts(self) -> Counter[Status]:
        """How many scans ended in each status; one that did not occur counts 0, and is not listed."""
        return Counter(result.status for result in self.results.values())

    @property
    def by_pipeline(self) -> dict[str, list[ScanResult]]:
        """The results by pipeline, in the order of the scanners."""
        pipelines: dict[str, list[ScanResult]] = {}
        for result in self.results.values():
            pipelines.setdefault(result.pipeline, []).append(result)
        return pipelines

    @property
    def complete(self) -> bool:
        """Whether every scanner in service answered: completed, cached or stale."""
        return all(result.status.answered for result in self._in_service())

    def require(self, fraction: float) -> RunReport:
        """Return this report if at least this share of the scanners in service answered.

        Args:
            fraction: from 0 to 1.

        Raises:
            ScanError: fewer answered; the message names those that did not.
            ConfigError: `fraction` is not from 0 to 1.
        """
        if not is_number(fraction, 0, 1):
            raise ConfigError(f"require: fraction must be from 0 to 1, got {fraction!r}")
        asked = self._in_service()
        silent = [result for result in asked if not result.status.answered]
        if len(asked) - len(silent) < fraction * len(asked) - 1e-9:  # 0.28 * 25 is a little more than 7
            names = ", ".join(f"{result.scanner} ({result.status.value})" for result in silent)
            raise ScanError(
                f"{len(asked) - len(silent)} of {len(asked)} scanners answered, {fraction:.0%} are required; "
                f"these did not: {names}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data."""
        results = {name: result.to_dict() for name, result in self.results.items()}
        return {
            "run_id": self.run_id,
            "started_at": self.started_at,
            "duration": self.duration,
            "complete": self.complete,
            "counts": {status.value: count for status, count in self.counts.items()},
            "results": results,
            "candidates": [candidate for result in results.values() for candidate in result["candidates"]],
            "tool_logs": [entry for result in results.values() for entry in result["tool_logs"]],
        }

    def _in_service(self) -> list[ScanResult]:
        return [result for result in self.results.values() if result.status is not Status.DISABLED]


def results_in_order(names: tuple[str, ...], results: Mapping[str, ScanResult]) -> dict[str, ScanResult]:
    """Return the results in the order of the names."""
    return {name: results[name] for name in names if name in results}
