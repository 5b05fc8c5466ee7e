"""What a store remembers of past runs, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from resilient_scan.cli.screens import elapsed
from resilient_scan.clock import SystemClock
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.results import Status
from resilient_scan.settings import load_settings
from resilient_scan.stores import open_store
from resilient_scan.stores.history import RunHistory, RunRecord

COLUMNS = ("started", "took", "answered", "statuses", "note")
NAMED = 3  # scanners that did not answer, by name
ANSWERED, OUT = {status.value for status in Status if status.answered}, Status.DISABLED.value


def past_runs(config: Path | None, limit: int) -> Sequence[RunRecord]:
    """Return the last runs with these settings, newest first.

    Args:
        config: the settings file; `None`: environment variables only.
        limit: at most so many.

    Raises:
        ConfigError: the settings are wrong, no store is configured, or it fails.
    """
    settings = load_settings(config)
    if settings.store == "memory:":
        raise ConfigError("no run is remembered, for no store is configured; name a settings file with --config")
    store = open_store(settings.store, SystemClock())
    try:
        return RunHistory(store, lambda _operation, _error: None).runs(limit)
    except StoreError as error:
        raise ConfigError(f"history: {error}") from None
    finally:
        store.close()


def row(run: RunRecord) -> tuple[str, ...]:
    """Return a run's cells: when it began, how long it took, how many answered, what became of all, and who did not."""
    in_service = [scan for scan in run.scans.values() if scan.status != OUT]
    answered = sum(scan.status in ANSWERED for scan in in_service)
    return (
        datetime.fromtimestamp(run.started_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
        elapsed(run.duration),
        f"{answered} of {len(in_service)}",
        ", ".join(f"{count} {status}" for status, count in sorted(run.counts.items())),
        _missing(run),
    )


def _missing(run: RunRecord) -> str:
    names = [
        f"{name} ({scan.error or scan.status})"
        for name, scan in run.scans.items()
        if scan.status not in ANSWERED and scan.status != OUT
    ]
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
