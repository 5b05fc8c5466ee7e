"""The gate that every scan passes first: the live face of the quarantine.

A scanner in service costs one look into a dict. A scanner that is out does not cost a call of the store either: this
process's copy of the record is enough until a cool-off or a manual order ends.

Events are sent by the process that made the change, after the store's lock has been released. A listener may call the
gate: a page that lists the states whenever one changes would deadlock if the event were sent under the lock, and a slow
listener would hold up every alert and every probe.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Callable, Container, Iterable, Sequence
from random import Random
from typing import Any

from resilient_scan._dispatch import Bus
from resilient_scan._log import log as _log
from resilient_scan._text import no_scanner
from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError, StoreError, is_number
from resilient_scan.events import (
    ERROR,
    SUCCESS,
    TIMEOUT,
    AlertReceived,
    Event,
    ExecutionEnded,
    HeartbeatSeen,
    ProbeEnded,
    ScannerStateChanged,
)
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import (
    BY_HAND,
    EXPIRY,
    HEARTBEAT,
    MISSED_HEARTBEATS,
    PROBE,
    RESULTS,
    Alert,
    Change,
    Machine,
    Turn,
    turn_of,
)
from resilient_scan.quarantine.records import (
    DISABLED,
    ENABLED,
    FIRING,
    PROBING,
    QUARANTINED,
    OrderedState,
    ScannerRecord,
    texts,
)
from resilient_scan.quarantine.store import ManualOrder, QuarantineStore, Update, store_errors, wait
from resilient_scan.quarantine.view import AuditEntry, ScannerState, audit_bytes, audit_entries, view
from resilient_scan.results import ErrorInfo
from resilient_scan.stores import AUDIT, OVERRIDES, Refused, Store
from resilient_scan.stores.health import UnlimitedWait, ask_store

ORDER_DURATION = 86_400.0  # seconds for which a manual order holds if no duration is given
MAX_AUDIT_ENTRIES = 1_000
SOURCES = ("alertmanager", "grafana")
PROBE_MARGIN = 60.0  # seconds that a probe may wait for a worker, on top of twice its timeout
_VERDICTS = {SUCCESS: True, ERROR: False, TIMEOUT: False}


class Gate:
    """Decides whether a scanner is in service.

    Args:
        names: of the scanners.
        clock: source of time.
        bus: where events go, and where the ends of probes and executions come from.
        options: the quarantine's numbers.
        store: holds the record; None keeps it in this object.
        random: source of chance.
        on_error: called with the operation and the error when the store fails.
    """

    prompt = True  # the next scan has to know what this one has shown

    def __init__(
        self,
        names: Sequence[str],
        clock: Clock,
        bus: Bus,
        *,
        options: Quarantine | None = None,
        store: Store | None = None,
        random: Random | None = None,
        on_error: Callable[[str, StoreError], object] = lambda _operation, _error: None,
    ) -> None:
        self._names = tuple(names)
        self._clock = clock
        self._bus = bus
        self._options = Quarantine() if options is None else options
        self._on_error = on_error
        self._quarantine = QuarantineStore(names, clock, self._options, store, random or Random(), on_error)  # noqa: S311 - jitter
        self._unreachable = False
        self.gated: dict[str, ScannerRecord] = self._quarantine.gated
        self.events: tuple[type[Event], ...] = (ProbeEnded,)
        if self._options.after_failures is not None:
            self.events += (ExecutionEnded,)

    # for scans

    def turn(self, name: str, seconds: float) -> tuple[Turn, str]:
        """Decide what a scan whose turn has come may do.

        Args:
            name: the scanner's.
            seconds: how long its execution may take.

        Returns:
            The decision, and for a probe the mark that its end has to carry.
        """
        record = self.gated.get(name)
        if record is None:
            return Turn.RUN, ""
        turn = turn_of(record, self._quarantine.now())
        if turn is not Turn.PROBE and not self._order_expired(record):
            return turn, ""
        # The copy says that a probe is due, and so do the copies of other processes at this instant. Only the store
        # decides which of them gets it: the first to write its mark there.
        mark = uuid.uuid4().hex
        take_turn = lambda machine: machine.turn(name, mark, 2 * seconds + PROBE_MARGIN)  # noqa: E731
        return self._publish(self._quarantine.update(take_turn)), mark

    def is_out(self, name: str) -> bool:
        """Return whether a scan would end `disabled` now, without changing anything."""
        record = self.gated.get(name)
        if record is None or self._order_expired(record):
            return False
        return turn_of(record, self._quarantine.now()) is Turn.DISABLED

    def refresh(self) -> None:
        """Learn at the start of a run what other processes have done, and let expire what has expired."""
        update = self._quarantine.refresh()
        if update is not None:
            self._publish(update)
        if any(self._order_expired(record) for record in tuple(self.gated.values())):
            self._publish(self._quarantine.update(wait))
        self._warn_if_unreachable()

    def __call__(self, event: Any) -> None:
        """Learn how a probe or an execution ended."""
        if type(event) is ProbeEnded:
            name, mark = event.scanner, event.mark
            passed, reason = _VERDICTS.get(event.outcome), event.reason
            self._update(lambda machine: machine.probe_ended(name, mark, passed, reason))
        else:
            self._executed(event)

    def _executed(self, event: ExecutionEnded) -> None:
        name, failed = event.scanner, event.outcome in {ERROR, TIMEOUT}
        known = self._quarantine.fleet.scanners.get(name)
        counts = failed or (event.outcome == SUCCESS and known is not None and known.failures > 0)
        if counts and (known is None or known.state == ENABLED):
            reason = _described(event.error)
            self._update(lambda machine: machine.executed(name, failed, reason))

    def _update(self, act: Callable[[Machine], Any]) -> None:
        ask_store(lambda: self._publish(self._quarantine.update(act)))

    def _order_expired(self, record: ScannerRecord) -> bool:
        return record.order is not None and self._quarantine.now() >= record.order.until

    # manual orders

    def disable(self, name: str, reason: str, duration: float, who: str = "") -> None:
        """Take a scanner out of service for `duration` seconds; a second order replaces the first.

        Raises:
            ConfigError: there is no such scanner, or the duration is wrong.
            StoreError: the order holds in this process only, until the store can be reached again; or (`Refused`) it
                does not hold at all, because the store belongs to a newer version or to another program.
        """
        self._order(DISABLED, name, reason, duration, who)

    def enable(self, name: str, reason: str, duration: float = ORDER_DURATION, who: str = "") -> None:
        """Bring a scanner back; if alerts or probes took it out, it stays in service for `duration` seconds.

        Nothing happens if it is in service. Errors are those of `disable`.
        """
        self._order(ENABLED, name, reason, duration, who)

    def _order(self, state: OrderedState, name: str, reason: str, duration: float, who: str) -> None:
        self._check(name)
        verb = "disable" if state == DISABLED else "enable"
        check_reason(verb, name, reason)
        if not is_number(duration, 0, 1e9) or duration == 0:
            raise ConfigError(f"{verb} {name}: duration must be a number of seconds > 0, got {duration!r}")
        order = ManualOrder(state, name, who, reason, self._clock.monotonic() + duration)
        try:
            with UnlimitedWait():
                update = self._quarantine.update(lambda machine: order.give(machine, duration), order=order)
        except Refused as error:
            raise Refused(f"{name} is not {state}, no order can be given: {error}") from None
        self._publish(update)
        if update.error is not None:
            raise StoreError(f"{name} is {state} in this process only, until its store is back: {update.error}")

    def probe(self, name: str, reason: str, who: str = "") -> None:
        """Let the next scan of a quarantined scanner be a probe; its cool-off counts as passed.

        Raises:
            ConfigError: there is no such scanner, or it is not quarantined.
            StoreError: the order holds in this process only, until the store can be reached again.
        """
        self._check(name)
        with UnlimitedWait():
            update = self._quarantine.update(lambda machine: machine.probe_now(name))
        self._publish(update)
        if update.result not in {QUARANTINED, PROBING}:
            raise ConfigError(f"probe {name}: it is {update.result}; only a quarantined scanner is probed")
        if update.error is not None:
            raise StoreError(f"{name} is probed next in this process only, until its store is back: {update.error}")
        self.note(name, "probe", reason, who)

    def note(self, name: str, action: str, reason: str, who: str) -> None:
        """Write an order that changes no scanner's state to the audit trail."""
        state, (who, reason) = self.state_of(name), texts(who, reason)
        change = Change(name, state, state, BY_HAND, who, reason, None)
        try:
            with store_errors(self._quarantine.store):
                self._write_down(change, self._quarantine.store.now(), action)
        except StoreError as error:
            self._on_error("append", error)

    # alerts

    def alerts(self, alerts: Iterable[Alert], source: str, instances: Container[str] | None = None) -> dict[str, int]:
        """Act on alerts and count what came of them; those about a process that is not in `instances` are ignored.

        Raises:
            StoreError: the store fails and nothing was done; the sender should try again.
        """
        received = tuple(alerts)
        update = self._quarantine.update_or_fail(lambda machine: machine.alerts(received, source, instances))
        results = self._publish(update)
        for alert, result in zip(received, results, strict=True):
            self._bus.send(AlertReceived(source if source in SOURCES else "unknown", result, update.at))
            if alert.action == HEARTBEAT and alert.status == FIRING:
                self._bus.send(HeartbeatSeen(update.at))
        return {result: results.count(result) for result in RESULTS}

    def reconcile(
        self, fetch: Callable[[], Iterable[Alert]], source: str, instances: Container[str] | None = None
    ) -> dict[str, int]:
        """Bring the known alerts in line with what `fetch` returns: the sender's own list of active ones.

        Raises:
            StoreError: the store fails, and nothing was done.
            Exception: what `fetch` raised; nothing was done.
        """
        with store_errors(self._quarantine.store):
            since = self._quarantine.store.now()
        active = tuple(fetch())
        bring_in_line = lambda machine: machine.reconcile(active, source, since, instances)  # noqa: E731
        update = self._quarantine.update_or_fail(bring_in_line)
        results = self._publish(update)
        return {result: results.count(result) for result in RESULTS}

    # views

    def state_of(self, name: str) -> str:
        """Return a scanner's state in one word, as far as it is known without calling the store."""
        return self._view(name).state if name in self.gated else ENABLED

    def view(self, name: str) -> ScannerState:
        """Read the store and describe one scanner."""
        self._check(name)
        self.refresh()
        return self._view(name)

    def views(self) -> tuple[ScannerState, ...]:
        """Read the store and describe all scanners."""
        self.refresh()
        return tuple(self._view(name) for name in self._names)

    def probes_due(self) -> tuple[str, ...]:
        """Read the store and name the scanners whose next scan would be a probe."""
        self.refresh()
        now = self._quarantine.now()
        return tuple(name for name, record in tuple(self.gated.items()) if turn_of(record, now) is Turn.PROBE)

    def unreachable_since(self) -> float | None:
        """Return since when the alerting has been unreachable, in epoch seconds, or None if it is not."""
        now = self._quarantine.now()
        return self._quarantine.rules(now).unreachable_since(self._quarantine.fleet, now)

    def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """Return the newest entries of the audit trail, newest first.

        Raises:
            StoreError: the store fails.
        """
        store = self._quarantine.store
        with store_errors(store):
            logs = [audit_entries(store.tail(log, limit)) for log in (OVERRIDES, AUDIT)]
        # Each log stays in the order in which it was written, although a clock that was set back may say otherwise.
        return tuple(heapq.merge(*logs, key=lambda entry: -entry.at))[:limit]

    def inherit(self, other: Gate) -> None:
        """Take over what another gate knows (the parent's, after a fork)."""
        self._quarantine.inherit(other._quarantine)

    def _view(self, name: str) -> ScannerState:
        quarantine, now = self._quarantine, self._quarantine.now()
        return view(name, quarantine.fleet, quarantine.rules(now), now)

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise ConfigError(no_scanner(name, self._names))

    # what others learn

    def _publish(self, update: Update[Any]) -> Any:
        """Write the changes to the audit trail, notify listeners, and return the update's result."""
        in_store = (*update.late, *(() if update.error is not None else update.changes))
        try:
            with store_errors(self._quarantine.store):
                for change in in_store:
                    if (change.new, change.source) != (PROBING, PROBE):  # its end says it all, in one entry
                        self._write_down(change, update.at)
        except StoreError as error:
            self._on_error("append", error)
        for change in update.changes:
            old, new, source = change.old, change.new, change.source
            at = update.at
            self._bus.send(ScannerStateChanged(change.scanner, old, new, source, change.reason, change.until, at))
        return update.result

    def _write_down(self, change: Change, at: float, action: str = "") -> None:
        """Add an entry to the audit trail; what people have ordered has room of its own.

        With the cool-off at its cap, 20 scanners that stay ill write 480 entries a day. In one log, they would push out
        by tomorrow who disabled what today, and why.
        """
        log = OVERRIDES if change.source in {BY_HAND, EXPIRY} else AUDIT
        self._quarantine.store.append(log, audit_bytes(change, at, action), MAX_AUDIT_ENTRIES)

    def _warn_if_unreachable(self) -> None:
        unreachable = self.unreachable_since() is not None
        if unreachable is not self._unreachable:
            self._unreachable = unreachable
            if unreachable:
                _log.warning(
                    "no heartbeat of the alerting for %d periods: until one comes, no alert is believed to be resolved",
                    MISSED_HEARTBEATS,
                )


def check_reason(verb: str, name: str, reason: object) -> None:
    """Refuse an order that does not say why.

    Raises:
        ConfigError: the reason is not a text, or blank.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigError(f"{verb} {name}: reason must say why, got {reason!r:.100}")


def _described(error: ErrorInfo | None) -> str:
    return "" if error is None else f"{error.kind}: {error.message}"
