"""What the control endpoint reads from a runner and changes in it: the bodies it exchanges, and no HTTP.

The structs here are what is sent and received; the endpoint's own description (`openapi`) is generated from them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from resilient_scan._text import no_provider, no_scanner, without_known
from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.events import AlertReceived
from resilient_scan.layers.limit import ProviderState
from resilient_scan.observe.explain import Explanation
from resilient_scan.observe.metrics import CollectorRegistry, pieces
from resilient_scan.quarantine import MAX_TEXT, ORDER_DURATION, AuditEntry, ScannerState
from resilient_scan.runner import ScanRunner
from resilient_scan.service.alerts import Payload, payload_of
from resilient_scan.service.bounds import readable
from resilient_scan.service.process import Instance, Process
from resilient_scan.service.watch import REAL, Outcome, Trouble, Watch, machine_troubles, of_past, of_result, streak

_log = logging.getLogger("resilient_scan")
WHO = "control endpoint"  # gave an order that names nobody
BLIND = (
    "No heartbeat from the alerts: until one comes, a resolved alert brings no scanner back. Alerts that fire still "
    "count, and the breakers go on protecting."
)
MAX_NAME = 64  # characters of a scanner's name
MAX_AUDIT = 2000  # entries among which a scanner's own are looked for
MAX_PROVIDER = 200  # characters of a provider's name that are repeated
NAMED = 3  # providers that are down and are named in one sentence
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

    `outcome` is how it really ended last, before it was taken out of service or its breaker opened; the store may
    remember that from another process. Instants are epoch seconds and durations are seconds.
    """

    last_status: str | None
    last_at: float | None
    last_duration: float | None
    last_error: str
    breaker: str | None
    abandoned_threads: Count
    outcome: Outcome | None = None


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
    """Reset a scanner's or a provider's breaker, forget a scanner's answers, probe it or run it: why."""

    reason: Reason


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of the alerts of one message; `invalid` is there only if some could not be read.

    `refused`: the scanner is critical, or the ejection cap is reached. `overruled`: a manual order keeps it in service.
    `ignored`: the alert does not ask for anything that is done here, or is about another instance.
    """

    accepted: Count
    duplicate: Count
    unknown_scanner: Count
    refused: Count
    overruled: Count
    ignored: Count
    invalid: Count | UnsetType = UNSET


class UnknownScanner(ConfigError, LookupError):
    """There is no scanner of this name."""


class UnknownProvider(ConfigError, LookupError):
    """There is no provider of this name."""


class Row(msgspec.Struct, frozen=True):
    """One scanner, as the page shows it.

    Attributes:
        scanner: as it stands.
        traceback: of its last real outcome; may be empty.
        scans: statuses of its last scans, oldest first, at most 50.
        failures: real outcomes in a row that are failures.
        failing_since: when the first of them began.
    """

    scanner: Scanner
    traceback: str = ""
    scans: tuple[str, ...] = ()
    failures: int = 0
    failing_since: float | None = None


class Fleet(msgspec.Struct, frozen=True):
    """All scanners and providers, as the page shows them, and what is wrong; in a `demo`, bundled data answer."""

    rows: list[Row]
    troubles: list[Trouble] = []
    demo: bool = False
    providers: tuple[ProviderState, ...] = ()


class OneScanner(msgspec.Struct, frozen=True):
    """Everything that the page of one scanner shows; `audit` is `None` where the store does not tell."""

    row: Row
    explanation: Explanation
    audit: tuple[AuditEntry, ...] | None
    troubles: list[Trouble] = []
    demo: bool = False
    providers: tuple[ProviderState, ...] = ()


def down_troubles(providers: Sequence[ProviderState]) -> Iterator[Trouble]:
    """Yield, in one sentence, which providers are down."""
    down = [each for each in providers if each.state in {"open", "half_open"}]
    if down:
        named = ", ".join(each.provider for each in down[:NAMED])
        more = f" and {len(down) - NAMED} more" if len(down) > NAMED else ""
        are = "is" if len(down) == 1 else "are"
        since = min((each.since for each in down if each.since is not None), default=None)
        yield Trouble("provider", f"{named}{more} {are} down: the scanners are not called, except for trials.", since)


class Control:
    """A runner, as the endpoint sees it.

    Args:
        runner: whose scanners are shown and changed.
        registry: whose metrics are served.
        clock: tells the time of day.
        process: what there is to know about the process around it.
    """

    def __init__(self, runner: ScanRunner, registry: CollectorRegistry, clock: Clock, process: Process) -> None:
        self._runner, self._registry, self._clock = runner, registry, clock
        self.process: Process = process
        self._watch = Watch()
        runner.listen(self._watch)
        self._instance = process.instance or Instance()

    def now(self) -> float:
        """Return epoch seconds."""
        return self._clock.time()

    def blind_since(self) -> float | None:
        """Return since when heartbeats have been missing, or `None`."""
        return self._runner.blind_since()

    def scraped(self, host: str) -> None:
        """Note that Prometheus knows this process as `host`."""
        # Until now, alerts about this process were taken for somebody else's.
        if self._instance.scraped(host) and self.process.ask_again is not None:
            self.process.ask_again()

    def metrics(self, accept: str) -> tuple[str, list[bytes]]:
        """Return what a scrape gets, in the form that it accepts: content type, and text in pieces."""
        return pieces(self._registry, accept)

    def why_not_ready(self) -> str:
        """Say why scans cannot run; an empty text: they can."""
        return "the runner is closed" if self._runner.closed else self.process.why_not()

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

    def fleet(self) -> Fleet:
        """Return what the page of all scanners shows."""
        hung = self._hung()
        rows = [self._row(state, hung) for state in self._runner.scanners()]
        providers = self._runner.providers()
        troubles = [*self._troubles(row.scanner for row in rows), *down_troubles(providers)]
        return Fleet(rows, troubles, self._runner.demo, providers)

    def one_scanner(self, name: str) -> OneScanner:
        """Return what the page of one scanner shows.

        Raises:
            UnknownScanner: there is no such scanner.
        """
        row = self._row(self._state(name), self._hung())
        try:
            entries = tuple(entry for entry in self._runner.audit(MAX_AUDIT) if entry.scanner == name)
        except StoreError:  # the page is there to show what is wrong
            entries = None
        troubles = [*self._troubles([])]
        providers = tuple(each for each in self._runner.providers() if name in each.scanners)
        explanation = self._runner.explain(name, trace=True)
        return OneScanner(row, explanation, entries, troubles, self._runner.demo, providers)

    def audit(self, limit: int) -> Audit:
        """Return the newest changes of who is in service, newest first."""
        return Audit(self._runner.audit(limit))

    def order(self, action: str, name: str, *, reason: str, who: str, **lasting: float) -> ScannerDetails:
        """Give an order about a scanner; return it as it stands then.

        Args:
            action: `disable`, `enable`, `reset`, `forget` or `probe`, which are methods of `ScanRunner`; or `run`.
            name: the scanner's.
            reason: why.
            who: who says so; empty: somebody who knows the token.
            lasting: `duration` in seconds, for the first two.

        Raises:
            UnknownScanner: there is no such scanner.
            ConfigError: it cannot be carried out.
        """
        self._check(name)
        # Somebody who takes one field of a form for the other must not find the token in the audit trail.
        reason, who = without_known(reason), without_known(who) or WHO
        if action == "run":
            self._run(name, reason, who)
        else:
            getattr(self._runner, action)(name, reason=reason, who=who, **lasting)
        return self.details(name)

    def _run(self, name: str, reason: str, who: str) -> None:
        run = self.process.run
        if run is None:
            raise ConfigError(f"run {name}: this service starts no runs, the program around it does")
        why_not = self.why_not_ready()
        if why_not:
            raise ConfigError(f"run {name}: {why_not}")
        state = self._state(name)
        if state.state == "disabled":
            raise ConfigError(f"run {name}: it is disabled; enable it first")
        if state.next_probe is not None and state.next_probe > state.at:
            raise ConfigError(f"run {name}: it is {state.state} and would be turned away; probe or enable it first")
        self._runner.note(name, "run", reason=reason, who=who)
        run(name)

    def reset_provider(self, name: str, *, reason: str, who: str) -> ProviderState:
        """Close a provider's breaker and end its hold; return the provider as it stands then.

        Raises:
            UnknownProvider: there is no such provider.
        """
        if name not in {each.provider for each in self._runner.providers()}:
            known = [each.provider for each in self._runner.providers()]
            raise UnknownProvider(no_provider(readable(name[:MAX_PROVIDER]), known))
        reason, who = without_known(reason), without_known(who) or WHO
        self._runner.reset(provider=name, reason=reason, who=who)
        return next(each for each in self._runner.providers() if each.provider == name)

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
        counts = Counts(**self._runner.alerts(payload.alerts, source=payload.source, instances=self._instance))
        self._note_what_is_missing(payload)
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

    def _note_what_is_missing(self, payload: Payload) -> None:
        """Ask for what the sender has cut off, and say whose alerts were not acted on."""
        foreign = [
            alert.instance for alert in payload.alerts if alert.instance and alert.instance not in self._instance
        ]
        if foreign:
            self._instance.note_ignored(foreign[0])
        if payload.truncated and self.process.ask_again is not None:
            self.process.ask_again()
        elif payload.truncated:
            _log.warning(
                "%s has cut off %d alerts of a message, and there is nobody to ask for them: set service.alertmanager, "
                "or a higher max_alerts there",
                payload.source,
                payload.truncated,
            )

    def count_rejected(self, status: int) -> None:
        """Count a webhook that was rejected with this HTTP status before its sender and alerts were known."""
        self._count("unknown", "unauthorized" if status == 401 else "invalid")

    def _hung(self) -> Counter[str]:
        return Counter(thread.name for thread in self._runner.abandoned())

    def _state(self, name: str) -> ScannerState:
        self._check(name)
        return next(state for state in self._runner.scanners() if state.name == name)

    def _scanner(self, state: ScannerState, hung: Mapping[str, int]) -> Scanner:
        return self._row(state, hung).scanner

    def _row(self, state: ScannerState, hung: Mapping[str, int]) -> Row:
        name = state.name
        flights = self._runner.flights(name)
        last = flights[-1].result if flights else None
        error = None if last is None else last.error
        known = self._watch.last(name) or next(
            (of_result(flight.result) for flight in reversed(flights) if flight.result.status in REAL), None
        )
        past = [(flight.result.status.value, flight.result.started_at) for flight in reversed(flights)]
        # The store is asked only where this process knows nothing, and not while it fails: a page of 300 scanners would
        # report 300 failures each time it is looked at.
        if known is None and self._watch.store_failed is None:
            stored = self._runner.past(name)
            known = next((of_past(scan) for scan in stored if scan.status in REAL), None)
            past = past or [(scan.status, scan.started_at) for scan in stored]
        outcome, traceback = known or (None, "")
        scanner = Scanner(
            **msgspec.structs.asdict(state),
            last_duration=None if last is None else last.duration,
            last_error="" if error is None else f"{error.kind}: {error.message}",
            breaker=self._runner.breaker(name),
            abandoned_threads=hung[name],
            outcome=outcome,
        )
        return Row(scanner, traceback, tuple(status for status, _ in reversed(past)), *streak(past))

    def _troubles(self, scanners: Iterable[Scanner]) -> Iterator[Trouble]:
        """Yield what is wrong around the scanners; `scanners`: all of them, or none where one is shown."""
        why_not = self.why_not_ready()
        if why_not:
            yield Trouble("machine", f"No scan runs: {why_not}.")
        stuck = self._watch.pool_trouble()
        if stuck:
            yield Trouble("machine", stuck)
        outcomes = [each.outcome for each in scanners if each.outcome is not None and each.state == "enabled"]
        for says in machine_troubles(outcomes):
            yield Trouble("machine", says)
        if self._watch.store_failed is not None:
            since, why = self._watch.store_failed
            yield Trouble("store", f"The store fails, and what happens now may be forgotten: {why}.", since)
        blind = self.blind_since()
        if blind is not None:
            yield Trouble("alerting", BLIND, blind)
        says = self.process.alerting()
        if says:
            yield Trouble("alerting", says)

    def _check(self, name: str) -> None:
        if name not in self._runner.names:
            raise UnknownScanner(no_scanner(readable(name[:MAX_NAME]), self._runner.names))

    def _count(self, source: str, result: str) -> None:
        self._runner.tell(AlertReceived(source, result, self.now()))
