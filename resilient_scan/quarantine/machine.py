"""The machine at one instant: what happens to a fleet's record, and which changes of state that makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

import msgspec

from resilient_scan._text import counted
from resilient_scan.errors import is_number
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.records import (
    DISABLED,
    ENABLED,
    FIRING,
    LARGEST,
    MOST_ALERTS,
    PROBING,
    QUARANTINED,
    RESOLVED,
    UNKNOWN,
    FleetRecord,
    Lease,
    Order,
    Record,
    Seen,
    State,
    Status,
    texts,
)

BY_HAND, EXPIRY, ALERT, FAILURES, PROBE = "hand", "expiry", "alert", "failures", "probe"
BLIND_AFTER = 3  # periods without a heartbeat
MOST_LEVEL = 62
UNKNOWN_PERIOD = 300.0  # seconds, after the first heartbeat ever


class Turn(Enum):
    """What a scan is whose turn has come."""

    RUN = "run"
    DISABLED = "disabled"
    PROBE = "probe"


class Change(msgspec.Struct, frozen=True):
    """A scanner's state changed; `until` is set where it lasts until an instant."""

    scanner: str
    old: str
    new: str
    source: str
    who: str
    reason: str
    until: float | None


class Rules(msgspec.Struct, frozen=True):
    """What does not change while a runner lives.

    Attributes:
        options: the numbers.
        names: of the registered scanners.
        began: when the runner was built; without any heartbeat at all, its periods are counted from here.
    """

    options: Quarantine
    names: frozenset[str]
    began: float = -math.inf

    @property
    def most_out(self) -> int:
        """How many scanners may be out of service by themselves at a time."""
        return max(1, math.floor(self.options.max_share * len(self.names)))

    def period(self, fleet: FleetRecord) -> float | None:
        """Return the seconds between two heartbeats; `None`: nobody said that there are any."""
        if self.options.heartbeat is not None:
            return self.options.heartbeat
        return None if fleet.heard is None else max(fleet.gaps, default=UNKNOWN_PERIOD)

    def blind_since(self, fleet: FleetRecord, now: float) -> float | None:
        """Return since when heartbeats have been missing; `None`: they have not."""
        period = self.period(fleet)
        if period is None:
            return None
        late = (self.began if fleet.heard is None else fleet.heard) + BLIND_AFTER * period
        return late if late <= now and math.isfinite(late) else None

    def blocks(self, seen: Seen, fleet: FleetRecord, now: float) -> bool:
        """Say whether an alert keeps its scanner out of service, however well its probes do.

        One that was not asserted again in time is unknown, and stops to. That it is over is believed, unless no
        heartbeat came since it was said: then what watches the fleet may be what is over.
        """
        if now >= seen.said + self.options.lease:
            return False
        if seen.status == FIRING:
            return True
        return self.blind_since(fleet, now) is not None and (fleet.heard is None or seen.said > fleet.heard)


def turn_of(record: Record, now: float) -> Turn:
    """Say what a scan of a scanner may do now, as far as its record is up to date."""
    if record.order is not None:
        return Turn.DISABLED if record.order.state == DISABLED else Turn.RUN
    if record.state == ENABLED:
        return Turn.RUN
    waits = now < record.until if record.state == QUARANTINED else record.probe is not None and now < record.probe.until
    return Turn.DISABLED if waits else Turn.PROBE


class Machine:
    """Changes a record, as of one instant, and collects what changed.

    Args:
        fleet: the record, this machine's own.
        now: epoch seconds.
        rules: numbers and names.
        draw: returns a number from 0 to 1, for the cool-off.
    """

    def __init__(self, fleet: FleetRecord, now: float, rules: Rules, draw: Callable[[], float]) -> None:
        self.fleet = fleet
        self.now = now
        self.rules = rules
        self.changes: list[Change] = []
        self._draw = draw

    # scans

    def turn(self, name: str, owner: str, seconds: float) -> Turn:
        """Decide what a scan whose turn has come is; as a probe it is `owner`'s for `seconds`, if not ended before."""
        record = self.fleet.scanners.get(name)
        turn = Turn.RUN if record is None else turn_of(record, self.now)
        if record is not None and turn is Turn.PROBE:
            if record.state == QUARANTINED:
                self._move(name, record, PROBING, PROBE, reason="the cool-off is over")
                record.passed = 0
            record.probe = Lease(owner, self.now + seconds)
        return turn

    def probe_ended(self, name: str, owner: str, passed: bool | None, reason: str = "") -> None:
        """Judge a probe (`None`: it came to no verdict); one that is not the current one any more has no say."""
        record = self.fleet.scanners.get(name)
        if record is None or record.probe is None or record.probe.owner != owner:
            return
        record.probe = None
        if passed is None or record.state != PROBING:
            return
        if not passed:
            record.level = min(MOST_LEVEL, record.level + 1)
            self._quarantine(name, record, PROBE, "", reason)
            return
        record.passed += 1
        if record.passed >= self.rules.options.successes and not any(self.blocking(record)):
            record.level = max(0, record.level - 1)
            self._move(name, record, ENABLED, PROBE, reason=f"{counted(record.passed, 'probe')} succeeded")
            record.passed = 0

    def executed(self, name: str, failed: bool, reason: str = "") -> None:
        """Count an execution that was no probe; too many failures in a row quarantine."""
        most, record = self.rules.options.after_failures, self.fleet.scanners.get(name)
        if not failed and record is not None:
            record.failures = 0
        if not failed or most is None or name not in self.rules.names:
            return
        record = self.record(name)
        if record.state == ENABLED and record.order is None:
            record.failures = min(most, record.failures + 1)
            if record.failures == most:
                times = counted(most, "execution")
                self.take_out(name, record, FAILURES, "", f"{times} in a row failed, the last one with {reason}")

    # orders by hand

    def disable(self, name: str, who: str, reason: str, seconds: float) -> None:
        """Take a scanner out of service, whatever alerts and probes say; a second order replaces the first."""
        who, reason = texts(who, reason)
        self._order(name, self.record(name), Order(DISABLED, who, reason, self.now, self.now + seconds))

    def enable(self, name: str, who: str, reason: str, seconds: float) -> None:
        """Bring a scanner back; one that is out, or would be by an alert that fires, stays in service for `seconds`."""
        record = self.fleet.scanners.get(name)
        if record is None or record.shown == ENABLED:
            return
        who, reason = texts(who, reason)
        if record.state == ENABLED and not self._firing(record):
            self._tell(name, record.shown, ENABLED, BY_HAND, who, reason, None)
            record.order = None
            return
        self._order(name, record, Order(ENABLED, who, reason, self.now, self.now + seconds))
        if record.state != ENABLED:
            record.level = max(0, record.level - 1)
            record.state, record.probe, record.passed, record.since = ENABLED, None, 0, self.now

    def _order(self, name: str, record: Record, order: Order) -> None:
        old, record.order = record.shown, order
        self._tell(name, old, order.state, BY_HAND, order.who, order.reason, order.until)

    # time

    def expire(self) -> None:
        """End the orders whose time is over, the earliest first, and forget alerts of long ago.

        What follows from an order's end can be said only where the scanner is known: a process that runs a part of the
        fleet does not know who is critical in the rest.
        """
        known = [(name, each) for name, each in self.fleet.scanners.items() if name in self.rules.names]
        orders = [(each.order, name) for name, each in known if each.order is not None]
        for order, name in sorted(orders, key=lambda pair: (pair[0].until, pair[1])):
            if self.now >= order.until:
                self._order_is_over(name, self.record(name), order)
        memory = 2 * self.rules.options.lease
        for record in self.fleet.scanners.values():
            for mark in [mark for mark, seen in record.alerts.items() if self.now >= seen.said + memory]:
                del record.alerts[mark]

    def tidy(self) -> None:
        """Forget the scanners of which nothing is left to know."""
        for name, record in tuple(self.fleet.scanners.items()):
            if self._is_plain(record):
                del self.fleet.scanners[name]

    def _order_is_over(self, name: str, record: Record, order: Order) -> None:
        """Let the machine have its say again: an alert that went on meanwhile quarantines now."""
        record.order = None
        firing = self._firing(record)
        if firing and record.state == ENABLED:
            seen = firing[0]
            if self.take_out(name, record, ALERT, seen.source, seen.text, old=order.state):
                return
        if record.state != order.state:
            until = record.until if record.state == QUARANTINED else None
            self._tell(name, order.state, record.state, EXPIRY, order.who, order.reason, until)

    def _is_plain(self, record: Record) -> bool:
        busy = record.state != ENABLED or record.order or record.probe or record.alerts or record.failures
        return not busy and self._level(record) == 0

    def _level(self, record: Record) -> int:
        """Return the level of a scanner in service; one is forgotten each `cooloff_cap` seconds."""
        return max(0, record.level - int((self.now - record.since) / self.rules.options.cooloff_cap))

    # the parts

    def record(self, name: str) -> Record:
        """Return a scanner's record, a new one if there is none."""
        return self.fleet.scanners.setdefault(name, Record(since=self.now))

    def blocking(self, record: Record) -> Iterator[Seen]:
        """Yield the alerts that keep a scanner out of service."""
        return (seen for seen in record.alerts.values() if self.rules.blocks(seen, self.fleet, self.now))

    def _firing(self, record: Record) -> list[Seen]:
        """Return those of them that fire."""
        return [seen for seen in self.blocking(record) if seen.status == FIRING]

    def take_out(self, name: str, record: Record, source: str, who: str, reason: str, *, old: str = ENABLED) -> bool:
        """Quarantine a scanner in service, unless it is critical, or too many are out already."""
        if name in self.rules.options.critical or self._out() >= self.rules.most_out:
            return False
        record.level = self._level(record)
        self._quarantine(name, record, source, who, reason, old)
        return True

    def _out(self) -> int:
        scanners = self.fleet.scanners
        return sum(record.state != ENABLED for name, record in scanners.items() if name in self.rules.names)

    def _quarantine(
        self, name: str, record: Record, source: str, who: str, reason: str, old: str | None = None
    ) -> None:
        record.until = self.now + self._cooloff(record.level)
        self._move(name, record, QUARANTINED, source, who=who, reason=reason, old=old)
        record.passed = record.failures = 0

    def _cooloff(self, level: int) -> float:
        """Return how long a scanner is left alone: exact the first time, then doubled, and shorter at random."""
        options = self.rules.options
        if level == 0:
            return options.cooloff
        grown = options.cooloff * 2.0 ** min(level, MOST_LEVEL)
        return min(options.cooloff_cap, grown * (0.75 + 0.25 * self._draw()))

    def _move(
        self, name: str, record: Record, new: State, source: str, *, who: str = "", reason: str, old: str | None = None
    ) -> None:
        old, record.state = record.state if old is None else old, new
        record.source, (record.who, record.reason), record.since = source, texts(who, reason), self.now
        if record.order is None:
            until = record.until if new == QUARANTINED else None
            self._tell(name, old, new, source, record.who, record.reason, until)

    def _tell(self, name: str, old: str, new: str, source: str, who: str, reason: str, until: float | None) -> None:
        self.changes.append(Change(name, old, new, source, who, reason, until))


# What alerts, heartbeats and Alertmanager's own list do to the machine.

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
