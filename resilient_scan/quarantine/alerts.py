"""What alerts, heartbeats and Alertmanager's own list do to the machine."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from resilient_scan.errors import is_number
from resilient_scan.quarantine.machine import ALERT, BLIND_AFTER, Machine
from resilient_scan.quarantine.records import (
    DISABLED,
    ENABLED,
    FIRING,
    LARGEST,
    MOST_ALERTS,
    RESOLVED,
    UNKNOWN,
    Record,
    Seen,
    Status,
    texts,
)

DISABLE, HEARTBEAT = "disable", "heartbeat"
ACCEPTED, DUPLICATE, UNKNOWN_SCANNER, REFUSED = "accepted", "duplicate", "unknown_scanner", "refused"
RESULTS = (ACCEPTED, DUPLICATE, UNKNOWN_SCANNER, REFUSED)
GAPS = 8  # between heartbeats that are remembered; the longest of them is the period


class Alert(msgspec.Struct, frozen=True):
    """One alert, as its sender tells of it.

    Attributes:
        action: what its rule asks for, `disable` or `heartbeat`; any other text asks for nothing.
        scanner: whom it is about.
        status: `firing`, `resolved`, or `unknown`: it is over because its data are missing.
        fingerprint: what tells it from others.
        starts_at: since when it fires, epoch seconds.
        name: its rule's name.
        summary: why, in its rule's words.
    """

    action: str
    scanner: str
    status: Status
    fingerprint: str
    starts_at: float
    name: str = ""
    summary: str = ""


def take(machine: Machine, alerts: Iterable[Alert], source: str) -> tuple[str, ...]:
    """Act upon alerts, in order; return of each whether it was accepted, a duplicate, of an unknown scanner, refused.

    A message is heard once by (fingerprint, start, status), and never after a later start; said again, a firing alert
    is only asserted, and tried once more where it was refused before.
    """
    return tuple(_take(machine, alert, source) for alert in alerts)


def reconcile(machine: Machine, active: Iterable[Alert], source: str, since: float) -> tuple[str, ...]:
    """Bring what is known of a sender's alerts in line with its own list of the active ones.

    Unlike a message, which may come late, the list is the truth: what is on it fires, and what is missing is over,
    unless it was heard of after `since`, when the list was asked for.
    """
    listed = [alert for alert in active if alert.action == DISABLE]
    marks = {(alert.scanner, *texts(alert.fingerprint)) for alert in listed}
    results = tuple(_take(machine, alert, source, listed=True) for alert in listed)
    for name, record in machine.fleet.scanners.items():
        for mark, seen in record.alerts.items():
            missing = seen.source == source and seen.status == FIRING and (name, mark) not in marks
            if missing and seen.said < since:
                seen.status, seen.said = RESOLVED, machine.now
    return results


def heartbeat(machine: Machine) -> None:
    """Note that whatever watches the fleet is alive."""
    fleet, now = machine.fleet, machine.now
    outage = bool(fleet.gaps) and machine.rules.blind_since(fleet, now) is not None
    if fleet.heard is not None and now > fleet.heard and not outage:
        fleet.gaps = (*fleet.gaps, now - fleet.heard)[-GAPS:]
    fleet.heard = now


def silence(machine: Machine) -> None:
    """Note that the heartbeat itself is said to be over: nothing watches the fleet, as if three had been missing.

    It always fires, so what ended is its Prometheus. All its other alerts end at about the same time: without this they
    would be believed to be over until the third heartbeat is missing.
    """
    fleet, rules = machine.fleet, machine.rules
    period = rules.period(fleet)
    if fleet.heard is not None and period is not None and (fleet.gaps or rules.options.heartbeat is not None):
        fleet.heard = min(fleet.heard, machine.now - BLIND_AFTER * period)


def _take(machine: Machine, alert: Alert, source: str, *, listed: bool = False) -> str:
    if alert.action == HEARTBEAT:
        (heartbeat if alert.status == FIRING else silence)(machine)
        return ACCEPTED
    if alert.action != DISABLE or not _makes_sense(alert):
        return REFUSED
    if alert.scanner not in machine.rules.names:
        return UNKNOWN_SCANNER
    record = machine.record(alert.scanner)
    (mark,) = texts(alert.fingerprint)
    seen = record.alerts.get(mark)
    if seen is not None and not listed and _is_old(seen, alert):
        return DUPLICATE
    news = seen is None or (seen.status, seen.starts_at) != (alert.status, alert.starts_at)
    _remember(record, mark, alert, source, machine.now)
    if alert.status != FIRING:
        return ACCEPTED if news else DUPLICATE
    return _fire(machine, alert.scanner, record, record.alerts[mark], news=news)


def _makes_sense(alert: Alert) -> bool:
    return alert.status in {FIRING, RESOLVED, UNKNOWN} and is_number(alert.starts_at, -LARGEST, LARGEST)


def _is_old(seen: Seen, alert: Alert) -> bool:
    """Say whether something later was heard of the alert: a later start, or that it is over."""
    if alert.starts_at != seen.starts_at:
        return alert.starts_at < seen.starts_at
    return seen.status == RESOLVED


def _fire(machine: Machine, name: str, record: Record, seen: Seen, *, news: bool) -> str:
    if record.order is not None:  # it wins; once it is over, the alert has its say
        out = record.order.state == DISABLED
    else:
        out = record.state != ENABLED
        if not out and machine.take_out(name, record, ALERT, seen.source, seen.text):
            return ACCEPTED
    if not out:
        return REFUSED
    return ACCEPTED if news else DUPLICATE


def _remember(record: Record, mark: str, alert: Alert, source: str, now: float) -> None:
    name, summary = texts(alert.name, alert.summary)
    record.alerts[mark] = Seen(alert.status, alert.starts_at, now, source, name, summary)
    while len(record.alerts) > MOST_ALERTS:
        del record.alerts[min(record.alerts, key=lambda mark: _worth(record.alerts[mark]))]


def _worth(seen: Seen) -> tuple[bool, float]:
    """Sort alerts by what it costs to forget them: first those that are over, then those not heard of for long."""
    return seen.status == FIRING, seen.said
