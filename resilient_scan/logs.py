"""Events as log lines; the library installs no handlers."""

from __future__ import annotations

import logging

from resilient_scan.clock import short
from resilient_scan.events import (
    BreakerChanged,
    Event,
    LateCompletion,
    RunStarted,
    ScanEnded,
    ScannerStateChanged,
    SuspiciousResult,
    ThreadAbandoned,
)
from resilient_scan.outcome import ScanResult, Status

logging.getLogger("resilient_scan").addHandler(logging.NullHandler())


class LogEvents:
    """A listener that writes one line per thing that happened: answers at INFO, trouble at WARNING.

    Args:
        logger: where to; the logger `resilient_scan`, unless given.
    """

    events: tuple[type[Event], ...] = (
        RunStarted,
        ScanEnded,
        SuspiciousResult,
        BreakerChanged,
        ScannerStateChanged,
        ThreadAbandoned,
        LateCompletion,
    )

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("resilient_scan")

    def __call__(self, event: Event) -> None:
        """Log one event."""
        match event:
            case ScanEnded():
                self._scan(event)
            case RunStarted():
                self._run(event)
            case SuspiciousResult():
                self._logger.warning("⚠️ %s: suspicious answer: %s", event.scanner, event.reason)
            case BreakerChanged():
                level = logging.WARNING if event.new == "open" else logging.INFO
                tail = "" if event.open_for is None else f" for {short(event.open_for)}s"
                self._logger.log(level, "%s: breaker %s%s", event.scanner, event.new.replace("_", "-"), tail)
            case ScannerStateChanged():
                level = logging.INFO if event.new == "enabled" else logging.WARNING
                self._logger.log(level, "%s: %s (%s)", event.scanner, event.new, event.reason)
            case ThreadAbandoned():
                self._logger.warning("%s: thread %s did not stop in time, left behind", event.scanner, event.thread)
            case LateCompletion():
                took = short(event.duration)
                self._logger.info("%s: the call left behind ended after %ss (%s)", event.scanner, took, event.outcome)

    def _run(self, event: RunStarted) -> None:
        how = f"concurrently (max {event.max_workers} workers)" if event.concurrent else "sequentially"
        self._logger.info("Running %d scanners %s...", event.scanners, how)

    def _scan(self, event: ScanEnded) -> None:
        result = event.result
        level, line = _line(result)
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", line)
        if result.dropped:
            self._logger.warning(
                "⚠️ %s: %d invalid dropped, the first: %s", result.scanner, result.dropped, event.invalid
            )


def _line(result: ScanResult) -> tuple[int, str]:
    """Return level and text for the end of a scan."""
    name, found = result.scanner, f"{len(result.candidates)} candidates"
    why = " ".join(result.error.message.splitlines()) if result.error is not None else ""
    partial = f" ({found} before that)" if result.partial else ""
    match result.status:
        case Status.COMPLETED:
            return logging.INFO, f"✓ {name}: {found}"
        case Status.CACHED:
            return logging.INFO, f"✓ {name}: {found} (cached, {result.age or 0:.0f}s old)"
        case Status.STALE:
            return logging.WARNING, f"⚠️ {name}: {found} (stale, {result.age or 0:.0f}s old): {why}"
        case Status.TIMEOUT:
            return logging.WARNING, f"⏱️ {name}: {why}{partial}"
        case Status.ERROR:
            return logging.WARNING, f"⚠️ {name}: {why}{partial}"
        case Status.REJECTED:
            return logging.WARNING, f"⚠️ {name}: rejected: {why}"
        case _:
            return logging.INFO, f"{name}: {result.status.value}"
