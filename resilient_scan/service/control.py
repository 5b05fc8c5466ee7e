"""What the control endpoint reads from a runner and changes in it: the bodies it exchanges, and no HTTP.

The structs here are what is sent and received; the endpoint's own description (`openapi`) is generated from them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from resilient_scan._text import no_scanner
from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError
from resilient_scan.events import AlertReceived
from resilient_scan.observe.explain import Explanation
from resilient_scan.observe.metrics import CollectorRegistry, exposition
from resilient_scan.quarantine import MAX_TEXT, ORDER_DURATION, AuditEntry, Evidence, ScannerState
from resilient_scan.runner import ScanRunner
from resilient_scan.service.alerts import payload_of
from resilient_scan.service.bounds import readable

_log = logging.getLogger("resilient_scan")
WHO = "control endpoint"
MAX_NAME = 64  # characters of a scanner's name
MAX_DURATION = 366 * 86_400.0

Count = Annotated[int, Meta(ge=0)]
# In the description only: what is refused gets a sentence of its own, which says more than msgspec's.
Reason = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_TEXT, "pattern": r"\S"})]
Duration = Annotated[float, Meta(extra_json_schema={"exclusiveMinimum": 0, "maximum": MAX_DURATION})]


class Health(msgspec.Struct, frozen=True):
    """One word: `ok` or `ready`."""

    status: str


class Scanner(ScannerState, frozen=True, kw_only=True):
    """How one scanner stands, how its last scan in this process ended, and how many of its threads hang.

    Instants are epoch seconds and durations are seconds.
    """

    last_status: str | None
    last_at: float | None
    last_duration: float | None
    last_error: str
    breaker: str | None
    abandoned_threads: Count


class ScannerDetails(Scanner, frozen=True, kw_only=True):
    """The same with everything there is to know about the scanner."""

    explanation: Explanation


class Scanners(msgspec.Struct, frozen=True):
    """All scanners in the given order, and since when heartbeats of the alerting have been missing (epoch seconds).

    In a `demo`, bundled data answer, not the sources.
    """

    scanners: list[Scanner]
    blind_since: float | None
    demo: bool = False


class Audit(msgspec.Struct, frozen=True):
    """Changes of who is in service, newest first."""

    entries: tuple[AuditEntry, ...]


class Disable(msgspec.Struct, forbid_unknown_fields=True):
    """Take a scanner out of service: why, and for how many seconds."""

    reason: Reason
    duration: Duration = ORDER_DURATION


class Enable(msgspec.Struct, forbid_unknown_fields=True):
    """Bring a scanner back into service: why, and for how many seconds no alert takes it out."""

    reason: Reason
    duration: Duration = ORDER_DURATION


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """Reset a scanner's breaker, forget its answers, or probe it: why."""

    reason: Reason


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of the alerts of one message; `invalid` is there only if some could not be read."""

    accepted: Count
    duplicate: Count
    unknown_scanner: Count
    refused: Count
    invalid: Count | UnsetType = UNSET


class UnknownScanner(ConfigError, LookupError):
    """There is no scanner of this name."""


class Control:
    """A runner, as the endpoint sees it.

    Args:
        runner: whose scanners are shown and changed.
        registry: whose metrics are served.
        clock: tells the time of day.
        why_not: returns a sentence while scans cannot run, else an empty text.
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

    def scanners(self) -> Scanners:
        """Return all scanners as they stand."""
        hung = self._hung()
        rows = [self._scanner(state, hung) for state in self._runner.scanners()]
        return Scanners(rows, self.blind_since(), self._runner.demo)

    def details(self, name: str) -> ScannerDetails:
        """Return one scanner as it stands, with evidence.

        Raises:
            UnknownScanner: there is no such scanner.
        """
        scanner = self._scanner(self._state(name), self._hung())
        return ScannerDetails(**msgspec.structs.asdict(scanner), explanation=self._runner.explain(name))

    def explained(self, name: str) -> tuple[str, tuple[Evidence, ...]]:
        """Return what there is to know about one scanner as text, and the alerts about it.

        Raises:
            UnknownScanner: there is no such scanner.
        """
        evidence = self._state(name).evidence
        return str(self._runner.explain(name, trace=True)), evidence

    def audit(self, limit: int) -> Audit:
        """Return the newest changes of who is in service, newest first."""
        return Audit(self._runner.audit(limit))

    def order(self, action: str, name: str, *, reason: str, user: str, **lasting: float) -> ScannerDetails:
        """Give an order about a scanner; return it as it stands then.

        Args:
            action: `disable`, `enable`, `reset`, `forget` or `probe`, which are methods of `ScanRunner`.
            name: the scanner's.
            reason: why.
            user: who says so; empty: somebody who knows the token.
            lasting: `duration` in seconds, for the first two.

        Raises:
            UnknownScanner: there is no such scanner.
        """
        self._check(name)
        getattr(self._runner, action)(name, reason=reason, who=_who(user), **lasting)
        return self.details(name)

    def alerts(self, body: object) -> Counts:
        """Act on a webhook's decoded body; an alert that cannot be read costs no other.

        Raises:
            ConfigError: the body is neither Alertmanager's nor Grafana's.
        """
        try:
            payload = payload_of(body)
        except ConfigError:
            self.count_rejected(422)
            raise
        counts = Counts(**self._runner.alerts(payload.alerts, source=payload.source))
        # Counted only now: if the store fails, the sender repeats the whole message, and each unreadable alert in it
        # would be counted twice.
        bad = payload.unreadable
        if bad:
            counts = msgspec.structs.replace(counts, invalid=len(bad))
            _log.warning(
                "alerts of %s cannot be read, %d in one message; the first: %s", payload.source, len(bad), bad[0]
            )
        for _ in bad:
            self._count(payload.source, "invalid")
        return counts

    def count_rejected(self, status: int) -> None:
        """Count a webhook that was rejected with this HTTP status before its sender and alerts were known."""
        self._count("unknown", "unauthorized" if status == 401 else "invalid")

    def _hung(self) -> Counter[str]:
        return Counter(thread.name for thread in self._runner.abandoned())

    def _state(self, name: str) -> ScannerState:
        self._check(name)
        return next(state for state in self._runner.scanners() if state.name == name)

    def _scanner(self, state: ScannerState, hung: Mapping[str, int]) -> Scanner:
        flights = self._runner.flights(state.name)
        last = flights[-1].result if flights else None
        error = None if last is None else last.error
        return Scanner(
            **msgspec.structs.asdict(state),
            last_duration=None if last is None else last.duration,
            last_error="" if error is None else f"{error.kind}: {error.message}",
            breaker=self._runner.breaker(state.name),
            abandoned_threads=hung[state.name],
        )

    def _check(self, name: str) -> None:
        if name not in self._runner.names:
            raise UnknownScanner(no_scanner(readable(name[:MAX_NAME]), self._runner.names))

    def _count(self, source: str, result: str) -> None:
        self._runner.tell(AlertReceived(source, result, self.now()))


def _who(user: str) -> str:
    return f"{user} ({WHO})" if user else WHO
