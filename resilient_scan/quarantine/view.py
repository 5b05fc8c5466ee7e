"""How a scanner stands, for people and programs that ask; and what is kept of each change."""

from __future__ import annotations

from typing import Any

import msgspec

from resilient_scan.quarantine.machine import BY_HAND, Change, Rules
from resilient_scan.quarantine.records import ENABLED, PROBING, QUARANTINED, FleetRecord, Record, Seen
from resilient_scan.results import plain

NEVER_HEARD = Record()


class Evidence(msgspec.Struct, frozen=True):
    """An alert about a scanner that was heard of lately.

    Attributes:
        fingerprint, name, summary, source: what tells it from others, its rule, why, and who said so.
        status: what was said last: `firing`, `resolved` or `unknown`.
        starts_at: since when it fires, by its sender's clock, epoch seconds.
        said_at: when it was said last, epoch seconds.
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
    """How one scanner stands at one instant; instants are epoch seconds.

    Attributes:
        name, pipeline: whose it is.
        at: which instant.
        state: `enabled`, `quarantined`, `probing` or `disabled`.
        source: who decided it: `hand`, `alert`, `failures`, `probe` or `expiry`; empty where nobody ever did.
        who, reason: more about that.
        since: when it was decided; `None` where it never was.
        until: when the cool-off, or the order by hand, is over.
        next_probe: when the next probe may begin; `None`: none is needed.
        probing: whether a probe is under way.
        by_hand: whether an order by hand holds.
        beneath: what the state would be without that order.
        passed, needed: probes that have succeeded, and how many it takes.
        level: how often it failed to come back; each time the cool-off doubles.
        failures: failed executions in a row, where they are counted.
        evidence: alerts heard of lately.
        last_status: how its last scan in this process ended, or `None`.
        last_at: when that scan began.
    """

    name: str
    pipeline: str
    at: float
    state: str
    source: str
    who: str
    reason: str
    since: float | None
    until: float | None
    next_probe: float | None
    probing: bool
    by_hand: bool
    beneath: str
    passed: int
    needed: int
    level: int
    failures: int
    evidence: tuple[Evidence, ...]
    last_status: str | None = None
    last_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data, with the same names."""
        found: dict[str, Any] = plain(self)
        return found


def standing(name: str, fleet: FleetRecord, rules: Rules, now: float) -> ScannerState:
    """Describe a scanner as its record has it; an order that is over is taken for over."""
    record = fleet.scanners.get(name, NEVER_HEARD)
    order = record.order if record.order is not None and now < record.order.until else None
    probe = record.probe if record.probe is not None and now < record.probe.until else None
    ended = record.until if record.state == QUARANTINED else None
    told = record if order is None else order
    return ScannerState(
        name=name,
        pipeline="",
        at=now,
        state=record.state if order is None else order.state,
        source=record.source if order is None else BY_HAND,
        who=told.who,
        reason=told.reason,
        since=told.since or None,
        until=ended if order is None else order.until,
        next_probe=None if order is not None else _next_probe(record, now),
        probing=record.state == PROBING and probe is not None,
        by_hand=order is not None,
        beneath=record.state,
        passed=record.passed,
        needed=rules.options.successes,
        level=record.level,
        failures=record.failures,
        evidence=tuple(
            _evidence(mark, seen, rules.blocks(seen, fleet, now)) for mark, seen in sorted(record.alerts.items())
        ),
    )


def _next_probe(record: Record, now: float) -> float | None:
    if record.state == ENABLED:
        return None
    if record.state == QUARANTINED:
        return record.until
    return now if record.probe is None else max(now, record.probe.until)


def _evidence(mark: str, seen: Seen, blocks: bool) -> Evidence:
    return Evidence(mark, seen.name, seen.summary, seen.source, seen.status, seen.starts_at, seen.said, blocks)


class Entry(msgspec.Struct, frozen=True):
    """One line of the audit trail: who changed what, when, why, and until when it holds."""

    at: float
    scanner: str
    old: str = msgspec.field(name="from")
    new: str = msgspec.field(name="to")
    source: str
    who: str
    reason: str
    until: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it with the names that it is known by: `from` and `to`."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


_encode, _decoder = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Entry)


def entry(change: Change, at: float) -> bytes:
    """Write a change down."""
    told = (change.source, change.who, change.reason, change.until)
    return _encode(Entry(at, change.scanner, change.old, change.new, *told))


def entries(written: list[bytes]) -> tuple[Entry, ...]:
    """Read what was written down, without what makes no sense."""
    found = []
    for data in written:
        try:
            found.append(_decoder.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return tuple(found)
