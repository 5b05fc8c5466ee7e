"""The machine at one instant: what an event does to a fleet's record, and which changes of state that makes.

Everything here is pure. `store` reads the record, lets a `Machine` change it, and writes it back; it may do that more
than once for the same event, because another process can write in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from enum import Enum

import msgspec

from resilient_scan._text import counted
from resilient_scan.errors import is_number
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.records import (
    DISABLED,
    ENABLED,
    FIRING,
    MAX_ALERTS,
    MAX_SECONDS,
    PROBING,
    QUARANTINED,
    RESOLVED,
    UNKNOWN,
    AlertStatus,
    FleetRecord,
    KnownAlert,
    MachineState,
    Order,
    ProbeLease,
    ScannerRecord,
    texts,
)

BY_HAND, EXPIRY, ALERT, FAILURES, PROBE = "hand", "expiry", "alert", "failures", "probe"
DISABLE, HEARTBEAT = "disable", "heartbeat"
ACCEPTED, DUPLICATE, UNKNOWN_SCANNER = "accepted", "duplicate", "unknown_scanner"
REFUSED, OVERRULED, IGNORED = "refused", "overruled", "ignored"
RESULTS = (ACCEPTED, DUPLICATE, UNKNOWN_SCANNER, REFUSED, OVERRULED, IGNORED)
MISSED_HEARTBEATS = 3  # periods without a heartbeat after which the alerting counts as unreachable
HEARTBEAT_GAPS = 8  # remembered; the longest of them is taken for the period
ASSUMED_PERIOD = 300.0  # seconds between heartbeats, until a second one has shown the period
MAX_LEVEL = 62  # of the doubled cool-off


class Turn(Enum):
    """What a scan whose turn has come may do."""

    RUN = "run"
    DISABLED = "disabled"
    PROBE = "probe"


class Change(msgspec.Struct, frozen=True):
    """A change of a scanner's state; `until` is set if the new state lasts until an instant."""

    scanner: str
    old: str
    new: str
    source: str
    who: str
    reason: str
    until: float | None


class Alert(msgspec.Struct, frozen=True):
    """One alert, as its sender describes it.

    Attributes:
        action: what its rule calls for, `disable` or `heartbeat`; any other text calls for nothing.
        scanner: which one it is about.
        status: `firing`, `resolved`, or `unknown`: resolved only because its data are missing.
        fingerprint: tells it from other alerts.
        starts_at: since when it fires, epoch seconds.
        name: its rule's name.
        summary: why it fires, in its rule's words.
        instance: the process that it is about, as Prometheus names it; empty: it is about all of them.
    """

    action: str
    scanner: str
    status: AlertStatus
    fingerprint: str
    starts_at: float
    name: str = ""
    summary: str = ""
    instance: str = ""


class Rules(msgspec.Struct, frozen=True):
    """What does not change while a runner lives.

    Attributes:
        options: the numbers.
        names: of the registered scanners.
        began: when the runner was built; before the first heartbeat, missing ones are counted from here.
    """

    options: Quarantine
    names: frozenset[str]
    began: float = -math.inf

    @property
    def ejection_cap(self) -> int:
        """Return how many scanners the machine may take out of service at a time."""
        return max(1, math.floor(self.options.max_share * len(self.names)))

    def period(self, fleet: FleetRecord) -> float | None:
        """Return the seconds between two heartbeats, or None if none is expected."""
        if self.options.heartbeat is not None:
            return self.options.heartbeat
        return None if fleet.heard is None else max(fleet.gaps, default=ASSUMED_PERIOD)

    def unreachable_since(self, fleet: FleetRecord, now: float) -> float | None:
        """Return since when the alerting has been unreachable (heartbeats are missing), or None if it is not."""
        period = self.period(fleet)
        if period is None:
            return None
        late = (self.began if fleet.heard is None else fleet.heard) + MISSED_HEARTBEATS * period
        return late if late <= now and math.isfinite(late) else None

    def blocks(self, alert: KnownAlert, fleet: FleetRecord, now: float) -> bool:
        """Return whether an alert keeps its scanner out of service, however well its probes do.

        An alert that was not asserted again within its lease is unknown and stops blocking: a lost "resolved" must not
        disable a scanner forever. A "resolved" is not believed while the alerting is unreachable, unless a heartbeat
        came after it. A Prometheus that stops resolves all its alerts within seconds; without that rule, its end would
        look like the end of every fault.
        """
        if now >= alert.said + self.options.lease:
            return False
        if alert.status == FIRING:
            return True
        return self.unreachable_since(fleet, now) is not None and (fleet.heard is None or alert.said > fleet.heard)


def turn_of(record: ScannerRecord, now: float) -> Turn:
    """Return what a scan of this scanner may do now, if the record is up to date."""
    if record.order is not None:
        return Turn.DISABLED if record.order.state == DISABLED else Turn.RUN
    if record.state == ENABLED:
        return Turn.RUN
    waits = now < record.until if record.state == QUARANTINED else record.probe is not None and now < record.probe.until
    return Turn.DISABLED if waits else Turn.PROBE


class Machine:
    """Change a record, as of one instant, and collect what changed.

    Args:
        fleet: the record, this machine's own.
        now: epoch seconds.
        rules: numbers and names.
        draw: returns a random number from 0 to 1, for the cool-off.
    """

    def __init__(self, fleet: FleetRecord, now: float, rules: Rules, draw: Callable[[], float]) -> None:
        self.fleet = fleet
        self.now = now
        self.rules = rules
        self.changes: list[Change] = []
        self._draw = draw

    # scans

    def turn(self, name: str, owner: str, seconds: float) -> Turn:
        """Decide what a scan whose turn has come may do; a probe belongs to `owner` for at most `seconds`."""
        record = self.fleet.scanners.get(name)
        turn = Turn.RUN if record is None else turn_of(record, self.now)
        if record is not None and turn is Turn.PROBE:
            if record.state == QUARANTINED:
                self._move(name, record, PROBING, PROBE, reason="the cool-off has passed")
                record.passed = 0
            record.probe = ProbeLease(owner, self.now + seconds)
        return turn

    def probe_ended(self, name: str, owner: str, passed: bool | None, reason: str = "") -> None:
        """Judge a probe (`passed` is None if it came to no verdict).

        A probe that was replaced has no say. Its lease expired and another process probes now; its verdict would end
        that process's lease, and a third one could probe at the same time.
        """
        record = self.fleet.scanners.get(name)
        if record is None or record.probe is None or record.probe.owner != owner:
            return
        record.probe = None
        if passed is None or record.state != PROBING:
            return
        if not passed:
            record.level = min(MAX_LEVEL, record.level + 1)
            self._quarantine(name, record, PROBE, "", reason)
            return
        record.passed += 1
        if record.passed >= self.rules.options.successes and not any(self._blocking(record)):
            record.level = max(0, record.level - 1)
            self._move(name, record, ENABLED, PROBE, reason=f"{counted(record.passed, 'probe')} succeeded")
            record.passed = 0

    def executed(self, name: str, failed: bool, reason: str = "") -> None:
        """Count an execution that was not a probe; too many failures in a row quarantine its scanner."""
        most, record = self.rules.options.after_failures, self.fleet.scanners.get(name)
        if not failed and record is not None:
            record.failures = 0
        if not failed or most is None or name not in self.rules.names:
            return
        record = self._record(name)
        if record.state == ENABLED and record.order is None:
            record.failures = min(most, record.failures + 1)
            if record.failures == most:
                times = counted(most, "execution")
                self._eject(name, record, FAILURES, "", f"{times} in a row failed, the last one with {reason}")

    # manual orders

    def disable(self, name: str, who: str, reason: str, seconds: float) -> None:
        """Take a scanner out of service, whatever alerts and probes say; a second order replaces the first."""
        who, reason = texts(who, reason)
        self._order(name, self._record(name), Order(DISABLED, who, reason, self.now, self.now + seconds))

    def enable(self, name: str, who: str, reason: str, seconds: float) -> None:
        """Bring a scanner back; if it is quarantined, or an alert fires, it stays in service for `seconds`."""
        record = self.fleet.scanners.get(name)
        if record is None or record.shown == ENABLED:
            return
        who, reason = texts(who, reason)
        if record.state == ENABLED and not self._firing(record):
            self._note(name, record.shown, ENABLED, BY_HAND, who, reason, None)
            record.order = None
            return
        self._order(name, record, Order(ENABLED, who, reason, self.now, self.now + seconds))
        if record.state != ENABLED:
            record.level = max(0, record.level - 1)
            record.state, record.probe, record.passed, record.since = ENABLED, None, 0, self.now

    def probe_now(self, name: str) -> str:
        """End a quarantined scanner's cool-off, so that its next scan is a probe; return the state that counts.

        A probe under way is left alone: without its lease, a second one could run next to it.
        """
        record = self.fleet.scanners.get(name)
        if record is None:
            return ENABLED
        if record.shown == QUARANTINED:
            record.until = min(record.until, self.now)
        return record.shown

    def _order(self, name: str, record: ScannerRecord, order: Order) -> None:
        old, record.order = record.shown, order
        self._note(name, old, order.state, BY_HAND, order.who, order.reason, order.until)

    # alerts

    def alerts(self, alerts: Iterable[Alert], source: str, instances: Container[str] | None = None) -> tuple[str, ...]:
        """Act on alerts in order, and return one of `RESULTS` for each.

        An alert about one process is acted on only if that is one of `instances`: of three replicas that get the same
        message, only the one whose breaker is open takes the scanner out.

        A message counts once per (fingerprint, start, status), and never after one with a later start. A firing alert
        that is repeated is asserted again, and tries once more to quarantine a scanner if it was refused before.
        """
        return tuple(self._alert(alert, source, instances) for alert in alerts)

    def reconcile(
        self, active: Iterable[Alert], source: str, since: float, instances: Container[str] | None = None
    ) -> tuple[str, ...]:
        """Bring the known alerts of a sender in line with its own list of active ones; return a result for each.

        Unlike a message, which may come late, the list is the truth: what is on it fires, and what is missing is
        resolved. The exception is an alert received after `since`, when the list was requested: it may have begun to
        fire while the list was on its way, and to resolve it would lose it until its sender repeats it. Alerts about
        other instances are not acted on, but they are on the list: replicas that share a store share this record, and
        each would otherwise resolve the others' alerts.
        """
        listed = [alert for alert in active if alert.action == DISABLE]
        marks = {(alert.scanner, *texts(alert.fingerprint)) for alert in listed}
        results = tuple(self._alert(alert, source, instances, listed=True) for alert in listed)
        for name, record in self.fleet.scanners.items():
            for mark, known in record.alerts.items():
                missing = known.source == source and known.status == FIRING and (name, mark) not in marks
                if missing and known.said < since:
                    known.status, known.said = RESOLVED, self.now
        return results

    def _alert(self, alert: Alert, source: str, instances: Container[str] | None, *, listed: bool = False) -> str:
        if alert.action == HEARTBEAT:
            (self.heartbeat if alert.status == FIRING else self.heartbeat_resolved)()
            return ACCEPTED
        if alert.action != DISABLE or not _is_sensible(alert) or _is_of_another(alert, instances):
            return IGNORED
        if alert.scanner not in self.rules.names:
            return UNKNOWN_SCANNER
        record = self._record(alert.scanner)
        (mark,) = texts(alert.fingerprint)
        known = record.alerts.get(mark)
        if known is not None and not listed and _is_outdated(known, alert):
            return DUPLICATE
        is_new = known is None or (known.status, known.starts_at) != (alert.status, alert.starts_at)
        _remember(record, mark, alert, source, self.now)
        if alert.status != FIRING:
            return ACCEPTED if is_new else DUPLICATE
        return self._fire(alert.scanner, record, record.alerts[mark], is_new=is_new)

    def _fire(self, name: str, record: ScannerRecord, alert: KnownAlert, *, is_new: bool) -> str:
        if record.order is not None:  # it takes precedence; when it ends, `_order_ended` looks at the alert again
            if record.order.state == ENABLED:
                return OVERRULED
        elif record.state == ENABLED:
            return ACCEPTED if self._eject(name, record, ALERT, alert.source, alert.text) else REFUSED
        return ACCEPTED if is_new else DUPLICATE

    def heartbeat(self) -> None:
        """Note that whatever watches the fleet is alive."""
        fleet, now = self.fleet, self.now
        outage = bool(fleet.gaps) and self.rules.unreachable_since(fleet, now) is not None
        if fleet.heard is not None and now > fleet.heard and not outage:
            fleet.gaps = (*fleet.gaps, now - fleet.heard)[-HEARTBEAT_GAPS:]
        fleet.heard = now

    def heartbeat_resolved(self) -> None:
        """Treat the alerting as unreachable from now on, as if three heartbeats had been missed.

        The heartbeat's rule always fires, so what ended is its Prometheus. All its other alerts resolve at about the
        same time: if we waited until the third heartbeat is missing, we would believe them until then.
        """
        fleet, rules = self.fleet, self.rules
        period = rules.period(fleet)
        if fleet.heard is not None and period is not None and (fleet.gaps or rules.options.heartbeat is not None):
            fleet.heard = min(fleet.heard, self.now - MISSED_HEARTBEATS * period)

    # time

    def expire(self) -> None:
        """End the manual orders that have expired, the earliest first, and forget alerts of long ago.

        What follows from an order's end is decided only where the scanner is registered: a process that runs a part of
        the fleet does not know which of the other scanners are critical.
        """
        known = [(name, each) for name, each in self.fleet.scanners.items() if name in self.rules.names]
        orders = [(each.order, name) for name, each in known if each.order is not None]
        for order, name in sorted(orders, key=lambda pair: (pair[0].until, pair[1])):
            if self.now >= order.until:
                self._order_ended(name, self._record(name), order)
        memory = 2 * self.rules.options.lease
        for record in self.fleet.scanners.values():
            for mark in [mark for mark, known in record.alerts.items() if self.now >= known.said + memory]:
                del record.alerts[mark]

    def tidy(self) -> None:
        """Forget the scanners about which nothing is left to know."""
        for name, record in tuple(self.fleet.scanners.items()):
            if self._is_plain(record):
                del self.fleet.scanners[name]

    def _order_ended(self, name: str, record: ScannerRecord, order: Order) -> None:
        """Return to what the machine says; an alert that fires at this moment quarantines now."""
        record.order = None
        firing = self._firing(record)
        if firing and record.state == ENABLED:
            alert = firing[0]
            if self._eject(name, record, ALERT, alert.source, alert.text, old=order.state):
                return
        if record.state != order.state:
            until = record.until if record.state == QUARANTINED else None
            self._note(name, order.state, record.state, EXPIRY, order.who, order.reason, until)

    def _is_plain(self, record: ScannerRecord) -> bool:
        busy = record.state != ENABLED or record.order or record.probe or record.alerts or record.failures
        return not busy and self._level(record) == 0

    def _level(self, record: ScannerRecord) -> int:
        """Return the level of a scanner in service, which falls by one every `cooloff_cap` seconds."""
        return max(0, record.level - int((self.now - record.since) / self.rules.options.cooloff_cap))

    # the parts

    def _record(self, name: str) -> ScannerRecord:
        return self.fleet.scanners.setdefault(name, ScannerRecord(since=self.now))

    def _blocking(self, record: ScannerRecord) -> Iterator[KnownAlert]:
        return (alert for alert in record.alerts.values() if self.rules.blocks(alert, self.fleet, self.now))

    def _firing(self, record: ScannerRecord) -> list[KnownAlert]:
        return [alert for alert in self._blocking(record) if alert.status == FIRING]

    def _eject(
        self, name: str, record: ScannerRecord, source: str, who: str, reason: str, *, old: str = ENABLED
    ) -> bool:
        """Quarantine a scanner in service, unless it is critical or the ejection cap is reached."""
        if name in self.rules.options.critical or self._out() >= self.rules.ejection_cap:
            return False
        record.level = self._level(record)
        self._quarantine(name, record, source, who, reason, old)
        return True

    def _out(self) -> int:
        scanners = self.fleet.scanners
        return sum(record.state != ENABLED for name, record in scanners.items() if name in self.rules.names)

    def _quarantine(
        self, name: str, record: ScannerRecord, source: str, who: str, reason: str, old: str | None = None
    ) -> None:
        record.until = self.now + self._cooloff(record.level)
        self._move(name, record, QUARANTINED, source, who=who, reason=reason, old=old)
        record.passed = record.failures = 0

    def _cooloff(self, level: int) -> float:
        """Return how long a scanner is left alone: exact the first time, then doubled and shortened at random."""
        options = self.rules.options
        if level == 0:
            return options.cooloff
        grown = options.cooloff * 2.0 ** min(level, MAX_LEVEL)
        return min(options.cooloff_cap, grown * (0.75 + 0.25 * self._draw()))

    def _move(
        self,
        name: str,
        record: ScannerRecord,
        new: MachineState,
        source: str,
        *,
        who: str = "",
        reason: str,
        old: str | None = None,
    ) -> None:
        old, record.state = record.state if old is None else old, new
        record.source, (record.who, record.reason), record.since = source, texts(who, reason), self.now
        if record.order is None:
            until = record.until if new == QUARANTINED else None
            self._note(name, old, new, source, record.who, record.reason, until)

    def _note(self, name: str, old: str, new: str, source: str, who: str, reason: str, until: float | None) -> None:
        self.changes.append(Change(name, old, new, source, who, reason, until))


def _is_sensible(alert: Alert) -> bool:
    return alert.status in {FIRING, RESOLVED, UNKNOWN} and is_number(alert.starts_at, -MAX_SECONDS, MAX_SECONDS)


def _is_of_another(alert: Alert, instances: Container[str] | None) -> bool:
    return bool(alert.instance) and instances is not None and alert.instance not in instances


def _is_outdated(known: KnownAlert, alert: Alert) -> bool:
    """Return whether a later message of this alert is known: one with a later start, or its end."""
    if alert.starts_at != known.starts_at:
        return alert.starts_at < known.starts_at
    return known.status == RESOLVED


def _remember(record: ScannerRecord, mark: str, alert: Alert, source: str, now: float) -> None:
    name, summary = texts(alert.name, alert.summary)
    record.alerts[mark] = KnownAlert(alert.status, alert.starts_at, now, source, name, summary)
    while len(record.alerts) > MAX_ALERTS:
        del record.alerts[min(record.alerts, key=lambda mark: _cost_of_forgetting(record.alerts[mark]))]


def _cost_of_forgetting(alert: KnownAlert) -> tuple[bool, float]:
    """Return a sort key: alerts that no longer fire come first, then those whose last message is oldest."""
    return alert.status == FIRING, alert.said
