"""What a run brought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from resilient_scan.errors import ConfigError, ScanError, is_number
from resilient_scan.outcome import ScanResult, Status, plain

_RANKS: Final = {"critical": 0, "high": 1, "medium": 2, "low": 3}  # any other word comes after these


class Merged(msgspec.Struct, frozen=True):
    """What several scanners say about one thing.

    Attributes:
        key: what it is about: the ticker, unless `merged` was given another key.
        priority: the best of the candidates' priorities; at least `high` from 2 sources on, `critical` from 3.
        sources: who found it, each once, in the order of the scanners.
        contexts: what they say, each sentence once, in the same order.
        candidates: the candidates themselves.
    """

    key: Any
    priority: str
    sources: tuple[str, ...]
    contexts: tuple[str, ...]
    candidates: tuple[Any, ...]

    @property
    def ticker(self) -> str:
        """The key as text."""
        return str(self.key)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data; `ticker` is the key."""
        fields = {name: plain(getattr(self, name)) for name in self.__struct_fields__ if name != "key"}
        return {"ticker": self.ticker, **fields}


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
        statuses = {result.status for result in self.results.values()} - {Status.DISABLED}
        return all(status.answered for status in statuses)

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

    def merged(self, key: Callable[[Any], Any] | None = None) -> list[Merged]:
        """Return what was found by what it is about, the most important first.

        Best priority first (`critical`, `high`, `medium`, `low`, then all other words), then most sources, then by
        key: the same candidates come in the same order, whichever scanner ended first.

        Args:
            key: returns what a candidate is about, hashable; `None`: its `ticker` (a field, or an item of a mapping),
                and of a candidate without one all of it, so that only equal ones are merged.
        """
        groups: dict[Any, list[tuple[str, Any]]] = {}
        for result in self.results.values():
            for candidate in result.candidates:
                about = _ticker(candidate) if key is None else key(candidate)
                groups.setdefault(about, []).append((result.scanner, candidate))
        found = [_merge(about, group) for about, group in groups.items()]
        return sorted(found, key=lambda one: (_rank(one.priority), -len(one.sources), one.ticker))

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


def _field(candidate: Any, name: str) -> str:
    """Return a field of a candidate of any type, "" where there is none, or it is no text."""
    value = candidate.get(name) if isinstance(candidate, Mapping) else getattr(candidate, name, None)
    return value if isinstance(value, str) else ""


def _ticker(candidate: Any) -> str:
    return _field(candidate, "ticker") or str(plain(candidate))


def _rank(priority: str) -> int:
    return _RANKS.get(priority.lower(), len(_RANKS))


def _merge(about: Any, group: list[tuple[str, Any]]) -> Merged:
    """Unite what was found of one thing: pairs of the scanner's name and its candidate."""
    candidates = tuple(candidate for _, candidate in group)
    sources = tuple(dict.fromkeys(_field(candidate, "source") or scanner for scanner, candidate in group))
    contexts = tuple(dict.fromkeys(filter(None, (_field(candidate, "context") for candidate in candidates))))
    confluence = ("unknown", "unknown", "high", "critical")[min(len(sources), 3)]
    priorities = [*(_field(candidate, "priority") or "unknown" for candidate in candidates), confluence]
    return Merged(about, min(priorities, key=_rank), sources, contexts, candidates)
