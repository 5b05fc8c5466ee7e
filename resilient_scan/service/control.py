"""What the control endpoint asks of a runner, and tells it: plain data in, plain data out, no HTTP."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resilient_scan._text import no_scanner
from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError
from resilient_scan.events import AlertReceived
from resilient_scan.observe.metrics import CollectorRegistry, exposition
from resilient_scan.quarantine import ScannerState
from resilient_scan.runner import ScanRunner
from resilient_scan.service.alerts import payload_of
from resilient_scan.service.bounds import readable

_log = logging.getLogger("resilient_scan")
WHO = "control endpoint"
MOST_NAME = 64  # characters of a scanner's name


class NoScanner(ConfigError, LookupError):
    """There is no scanner of this name."""


class Control:
    """A runner, as the endpoint sees it.

    Args:
        runner: whose scanners are shown and changed.
        registry: whose metrics are served.
        clock: what time it is.
        why_not: returns a sentence where scans cannot run just now, else an empty text.
    """

    def __init__(
        self, runner: ScanRunner, registry: CollectorRegistry, clock: Clock, why_not: Callable[[], str] = str
    ) -> None:
        self._runner, self._registry, self._clock = runner, registry, clock
        self._why_not = why_not

    def now(self) -> float:
        """Return epoch seconds."""
        return self._clock.time()

    def blind_since(self) -> float | None:
        """Return since when heartbeats have been missing, or `None`."""
        return self._runner.blind_since()

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return what a scrape gets, in the form that it accepts: content type and text."""
        return exposition(self._registry, accept)

    def why_not_ready(self) -> str:
        """Say why scans cannot run; an empty text: they can."""
        return "the runner is closed" if self._runner.closed else self._why_not()

    def rows(self) -> list[dict[str, Any]]:
        """Return all scanners as they stand."""
        hung = Counter(thread.name for thread in self._runner.abandoned())
        return [self._row(state, hung) for state in self._runner.scanners()]

    def details(self, name: str) -> dict[str, Any]:
        """Return one scanner as it stands, with evidence.

        Raises:
            NoScanner: there is no such scanner.
        """
        self._check(name)
        row = next(row for row in self.rows() if row["name"] == name)
        return {**row, "explanation": self._runner.explain(name).to_dict()}

    def explained(self, name: str) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """Return what there is to know of one scanner as text, and the alerts about it.

        Raises:
            NoScanner: there is no such scanner.
        """
        self._check(name)
        state = next(state for state in self._runner.scanners() if state.name == name)
        return str(self._runner.explain(name, trace=True)), state.to_dict()["evidence"]

    def audit(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest changes of who is in service, newest first."""
        return [entry.to_dict() for entry in self._runner.audit(limit)]

    def disable(self, name: str, *, reason: str, duration: float, user: str) -> dict[str, Any]:
        """Take a scanner out of service; return it as it stands then.

        Raises:
            NoScanner: there is no such scanner.
        """
        self._check(name)
        self._runner.disable(name, reason=reason, duration=duration, who=_who(user))
        return self.details(name)

    def enable(self, name: str, *, reason: str, user: str) -> dict[str, Any]:
        """Bring a scanner back; return it as it stands then.

        Raises:
            NoScanner: there is no such scanner.
        """
        self._check(name)
        self._runner.enable(name, reason=reason, who=_who(user))
        return self.details(name)

    def alerts(self, said: object) -> Mapping[str, int]:
        """Act upon a webhook's decoded body; one alert that cannot be read costs no other.

        Raises:
            ConfigError: it is none of a webhook that is known.
        """
        try:
            payload = payload_of(said)
        except ConfigError:
            self.turned_away(422)
            raise
        counts = dict(self._runner.alerts(payload.alerts, source=payload.source))
        bad = payload.unreadable  # counted now: where the store failed, the whole comes again
        if bad:
            counts["invalid"] = len(bad)
            _log.warning(
                "alerts of %s cannot be read, %d in one message; the first: %s", payload.source, len(bad), bad[0]
            )
        for _ in bad:
            self._tell(payload.source, "invalid")
        return counts

    def turned_away(self, status: int) -> None:
        """Count a webhook, of whose alerts nothing is known, as turned away with this HTTP status."""
        self._tell("unknown", "unauthorized" if status == 401 else "invalid")

    def _row(self, state: ScannerState, hung: Mapping[str, int]) -> dict[str, Any]:
        row = state.to_dict()
        flights = self._runner.flights(state.name)
        last = flights[-1].result if flights else None
        row["last_duration"] = None if last is None else last.duration
        row["last_error"] = "" if last is None or last.error is None else f"{last.error.kind}: {last.error.message}"
        row["breaker"] = self._runner.breaker(state.name)
        row["abandoned_threads"] = hung[state.name]
        return row

    def _check(self, name: str) -> None:
        if name not in self._runner.names:
            raise NoScanner(no_scanner(readable(name[:MOST_NAME]), self._runner.names))

    def _tell(self, source: str, result: str) -> None:
        self._runner.tell(AlertReceived(source, result, self.now()))


def _who(user: str) -> str:
    return f"{user} ({WHO})" if user else WHO
