"""How a scanner's state is shown to people and programs, and what is kept of each change."""

from __future__ import annotations

from typing import Any

import msgspec

from resilient_scan.quarantine.machine import BY_HAND, Change, Rules
from resilient_scan.quarantine.records import (
    ENABLED,
    PROBING,
    QUARANTINED,
    FleetRecord,
    KnownAlert,
    MachineState,
    OrderedState,
    ScannerRecord,
)
from resilient_scan.results import plain

NO_RECORD = ScannerRecord()


class Evidence(msgspec.Struct, frozen=True):
    """An alert about a scanner that was received lately.

    Attributes:
        fingerprint, name, summary, source: what tells it from others, its rule, why it fires, and its sender.
        status: the latest one: `firing`, `resolved` or `unknown`.
        starts_at: since when it fires, by its sender's clock, epoch seconds.
        said_at: when its latest message came, epoch seconds.
        blocks: whether it keeps the scanner out of service, however well its probes do.
    """

    fingerprint: str
    name: str
    summary: str
    source: str
    status: str
    starts_at: float
    said_at: float
    blocks: bool


class ScannerState(msgspec.Struct, frozen=True):
    """Whether one scanner is in service at one instant, and why; instants are epoch seconds.

    Attributes:
        name, pipeline: of the scanner.
        at: the instant.
        state: `enabled`, `quarantined`, `probing` or `disabled`.
        source: what decided it: `hand`, `alert`, `failures`, `probe` or `expiry`; empty if nothing ever did.
        who, reason: more about that.
        since: when it was decided, or None if it never was.
        until: when the cool-off or the manual order ends.
        next_probe: when the next probe may begin, or None if none is needed.
        probing: whether a probe is under way.
        by_hand: whether a manual order holds.
        beneath: what the state would be without that order.
        passed, needed: probes that have succeeded, and how many it takes.
        level: how often it failed to come back; each time doubles the cool-off.
        failures: failed executions in a row, where they are counted.
        evidence: alerts received lately.
        last_status: how its last scan in this process ended, or None.
        last_at: when that scan began.
        flapping: whether its executions succeed and fail in turn.
        slo_budget: the share of its error budget that is left, below 0 where more was used; None: it has no objective.
    """

    name: str
    pipeline: str
    at: float
    state: MachineState | OrderedState
    source: str
    who: str
    reason: str
    since: float | None
    until: float | None
    next_probe: float | None
    probing: bool
    by_hand: bool
    beneath: MachineState
    passed: int
    needed: int
    level: int
    failures: int
    evidence: tuple[Evidence, ...]
    last_status: str | None = None
    last_at: float | None = None
    flapping: bool = False
    slo_budget: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data, with the same names."""
        found: dict[str, Any] = plain(self)
        return found


def view(name: str, fleet: FleetRecord, rules: Rules, now: float) -> ScannerState:
    """Describe a scanner by its record, in which a manual order or a probe may have expired since."""
    record = fleet.scanners.get(name, NO_RECORD)
    order = record.order if record.order is not None and now < record.order.until else None
    probe = record.probe if record.probe is not None and now < record.probe.until else None
    cooloff_ends = record.until if record.state == QUARANTINED else None
    decided = record if order is None else order
    return ScannerState(
        name=name,
        pipeline="",
        at=now,
        state=record.state if order is None else order.state,
        source=record.source if order is None else BY_HAND,
        who=decided.who,
        reason=decided.reason,
        since=decided.since or None,
        until=cooloff_ends if order is None else order.until,
        next_probe=None if order is not None else _next_probe(record, now),
        probing=record.state == PROBING and probe is not None,
        by_hand=order is not None,
        beneath=record.state,
        passed=record.passed,
        needed=rules.options.successes,
        level=record.level,
        failures=record.failures,
        evidence=tuple(
            _evidence(mark, alert, rules.blocks(alert, fleet, now)) for mark, alert in sorted(record.alerts.items())
        ),
    )


def _next_probe(record: ScannerRecord, now: float) -> float | None:
    if record.state == ENABLED:
        return None
    if record.state == QUARANTINED:
        return record.until
    return now if record.probe is None else max(now, record.probe.until)


def _evidence(mark: str, alert: KnownAlert, blocks: bool) -> Evidence:
    return Evidence(mark, alert.name, alert.summary, alert.source, alert.status, alert.starts_at, alert.said, blocks)


class AuditEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the audit trail: who changed what, when, why, and until when it holds.

    `action` is `reset`, `forget` or `probe` for an order that changes no state; `from` and `to` are the same then.
    """

    at: float
    scanner: str
    old: str = msgspec.field(name="from")
    new: str = msgspec.field(name="to")
    source: str
    who: str
    reason: str
    until: float | None
    action: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it with the keys that `GET /audit` documents: `from` and `to`."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


_encode, _decoder = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(AuditEntry)


def audit_bytes(change: Change, at: float, action: str = "") -> bytes:
    """Return a change as an entry of the audit trail, encoded."""
    why = (change.source, change.who, change.reason, change.until, action)
    return _encode(AuditEntry(at, change.scanner, change.old, change.new, *why))


def audit_entries(stored: list[bytes]) -> tuple[AuditEntry, ...]:
    """Decode the entries of an audit trail, without those that make no sense."""
    found = []
    for data in stored:
        try:
            found.append(_decoder.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return tuple(found)
