"""The gate that every scan passes first: the live face of the quarantine.

A scanner in service costs nothing here, one that is out no look at the store: the copy of the record says enough until
a cool-off or an order is over. Events are sent when no lock is held, by the process that made the change.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from resilient_scan._text import no_scanner
from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError, StoreError, is_number
from resilient_scan.events import (
    AlertReceived,
    Bus,
    Event,
    ExecutionEnded,
    HeartbeatSeen,
    ProbeEnded,
    ScannerStateChanged,
)
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import BLIND_AFTER, HEARTBEAT, RESULTS, Alert, Turn, reconcile, take, turn_of
from resilient_scan.quarantine.records import DISABLED, ENABLED, FIRING, ByHand, Record
from resilient_scan.quarantine.store import ByHandOrder, Keeper, Stepped, asking, wait
from resilient_scan.quarantine.view import Entry, ScannerState, entries, entry, standing
from resilient_scan.results import ErrorInfo
from resilient_scan.stores import AUDIT, Store
from resilient_scan.stores.health import UnlimitedWait

_log = logging.getLogger("resilient_scan")
DAY = 86_400.0
KEPT = 1_000  # entries of the audit trail
SOURCES = ("alertmanager", "grafana")
MARGIN = 60.0  # seconds beyond twice its time after which a probe is given up: it may have to wait for a worker
SUCCESS, ERROR, TIMEOUT = "success", "error", "timeout"
_VERDICTS = {SUCCESS: True, ERROR: False, TIMEOUT: False}


class Gate:
    """Who is in service.

    Args:
        names: of the scanners.
        clock: where time comes from.
        bus: where events go; what probes and executions came to is heard there.
        options: the quarantine's numbers.
        store: where its record is; `None`: in this object.
        random: where chance comes from.
        on_error: is told the operation and the error when the store fails.
    """

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
        self._keeper = Keeper(names, clock, self._options, store, random or Random(), on_error)  # noqa: S311 - jitter
        self._blind = False
        self.orders = self._keeper.out
        self.events: tuple[type[Event], ...] = (ProbeEnded,)
        if self._options.after_failures is not None:
            self.events += (ExecutionEnded,)

    # for scans

    def turn(self, name: str, seconds: float) -> tuple[Turn, str]:
        """Decide what a scan is whose turn has come.

        Args:
            name: the scanner's.
            seconds: how long its execution may take.

        Returns:
            The decision, and for a probe the mark that its end has to carry.
        """
        record = self.orders.get(name)
        if record is None:
            return Turn.RUN, ""
        turn = turn_of(record, self._keeper.now())
        if turn is not Turn.PROBE and not self._is_over(record):
            return turn, ""
        mark = uuid.uuid4().hex
        ask = lambda machine: machine.turn(name, mark, 2 * seconds + MARGIN)  # noqa: E731
        return self._told(self._keeper.step(ask)), mark

    def is_out(self, name: str) -> bool:
        """Say whether a scan would end `disabled` now; nothing changes by it."""
        record = self.orders.get(name)
        if record is None or self._is_over(record):
            return False
        return turn_of(record, self._keeper.now()) is Turn.DISABLED

    def look(self) -> None:
        """See what other processes have done, and what time has, at the start of a run."""
        stepped = self._keeper.look()
        if stepped is not None:
            self._told(stepped)
        if any(self._is_over(record) for record in tuple(self.orders.values())):
            self._told(self._keeper.step(wait))
        self._warn_if_blind()

    def __call__(self, event: Any) -> None:
        """Hear what a probe or an execution came to."""
        if type(event) is ProbeEnded:
            name, mark = event.scanner, event.mark
            passed, reason = _VERDICTS.get(event.outcome), event.reason
            self._told(self._keeper.step(lambda machine: machine.probe_ended(name, mark, passed, reason)))
        else:
            self._executed(event)

    def _executed(self, event: ExecutionEnded) -> None:
        name, failed = event.scanner, event.outcome in {ERROR, TIMEOUT}
        known = self._keeper.fleet.scanners.get(name)
        counts = failed or (event.outcome == SUCCESS and known is not None and known.failures > 0)
        if counts and (known is None or known.state == ENABLED):
            reason = told(event.error)
            self._told(self._keeper.step(lambda machine: machine.executed(name, failed, reason)))

    def _is_over(self, record: Record) -> bool:
        return record.order is not None and self._keeper.now() >= record.order.until

    # by hand

    def disable(self, name: str, reason: str, duration: float, who: str = "") -> None:
        """Take a scanner out of service for `duration` seconds; a second order replaces the first.

        Raises:
            ConfigError: there is no such scanner, or the duration is wrong.
            StoreError: it holds in this process only, until the store can be reached again.
        """
        self._order(DISABLED, name, reason, duration, who)

    def enable(self, name: str, reason: str, duration: float = DAY, who: str = "") -> None:
        """Bring a scanner back; one that alerts or probes took out stays in service against them for `duration`.

        Nothing happens if it is in service. Errors are those of `disable`.
        """
        self._order(ENABLED, name, reason, duration, who)

    def _order(self, state: ByHand, name: str, reason: str, duration: float, who: str) -> None:
        self._check(name)
        verb = "disable" if state == DISABLED else "enable"
        said: object = reason
        if not isinstance(said, str) or not said.strip():
            raise ConfigError(f"{verb} {name}: reason must say why, got {said!r:.100}")
        if not is_number(duration, 0, 1e9) or duration == 0:
            raise ConfigError(f"{verb} {name}: duration must be a number of seconds > 0, got {duration!r}")
        order = ByHandOrder(state, name, who, reason, self._clock.monotonic() + duration)
        with UnlimitedWait():
            stepped = self._keeper.step(lambda machine: order.give(machine, duration), order=order)
        self._told(stepped)
        if stepped.error is not None:
            raise StoreError(f"{name} is {state} in this process only, until its store is back: {stepped.error}")

    # alerts

    def alerts(self, alerts: Iterable[Alert], source: str) -> dict[str, int]:
        """Act upon alerts and count what came of them.

        Raises:
            StoreError: the store fails, and nothing was done; the sender is to try again.
        """
        heard = tuple(alerts)
        stepped = self._keeper.in_store(lambda machine: take(machine, heard, source))
        results = self._told(stepped)
        for alert, result in zip(heard, results, strict=True):
            self._bus.send(AlertReceived(source if source in SOURCES else "unknown", result, stepped.at))
            if alert.action == HEARTBEAT and alert.status == FIRING:
                self._bus.send(HeartbeatSeen(stepped.at))
        return {result: results.count(result) for result in RESULTS}

    def reconcile(self, fetch: Callable[[], Iterable[Alert]], source: str) -> dict[str, int]:
        """Bring the alerts in line with what `fetch` returns, the sender's own list of the active ones.

        Raises:
            StoreError: the store fails, and nothing was done.
            Exception: what `fetch` raised; nothing was done.
        """
        with asking(self._keeper.store):
            since = self._keeper.store.now()
        active = tuple(fetch())
        results = self._told(self._keeper.in_store(lambda machine: reconcile(machine, active, source, since)))
        return {result: results.count(result) for result in RESULTS}

    # for who asks

    def state_of(self, name: str) -> str:
        """Say in one word how a scanner stands; nothing changes by it."""
        return self._standing(name).state if name in self.orders else ENABLED

    def looked_at(self, name: str) -> ScannerState:
        """Look at the store, and describe how a scanner stands."""
        self._check(name)
        self.look()
        return self._standing(name)

    def probes_due(self) -> tuple[str, ...]:
        """Look at the store, and name the scanners whose next scan would be a probe."""
        self.look()
        now = self._keeper.now()
        return tuple(name for name, record in tuple(self.orders.items()) if turn_of(record, now) is Turn.PROBE)

    def standings(self) -> tuple[ScannerState, ...]:
        """Look at the store, and describe all scanners."""
        self.look()
        return tuple(self._standing(name) for name in self._names)

    def blind_since(self) -> float | None:
        """Return since when heartbeats have been missing, epoch seconds; `None`: they have not."""
        now = self._keeper.now()
        return self._keeper.rules(now).blind_since(self._keeper.fleet, now)

    def audit(self, limit: int) -> tuple[Entry, ...]:
        """Return the newest entries of the audit trail, newest first.

        Raises:
            StoreError: the store fails.
        """
        with asking(self._keeper.store):
            return entries(self._keeper.store.tail(AUDIT, limit))

    def inherit(self, other: Gate) -> None:
        """Take over what another gate knows (the parent's, after a fork)."""
        self._keeper.inherit(other._keeper)

    def _standing(self, name: str) -> ScannerState:
        keeper, now = self._keeper, self._keeper.now()
        return standing(name, keeper.fleet, keeper.rules(now), now)

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise ConfigError(no_scanner(name, self._names))

    # telling

    def _told(self, stepped: Stepped[Any]) -> Any:
        """Write the changes of a step down, tell listeners, and return its result."""
        kept = (*stepped.late, *(() if stepped.error is not None else stepped.changes))
        try:
            with asking(self._keeper.store):
                for change in kept:
                    self._keeper.store.append(AUDIT, entry(change, stepped.at), KEPT)
        except StoreError as error:
            self._on_error("append", error)
        for change in stepped.changes:
            old, new, source = change.old, change.new, change.source
            at = stepped.at
            self._bus.send(ScannerStateChanged(change.scanner, old, new, source, change.reason, change.until, at))
        return stepped.result

    def _warn_if_blind(self) -> None:
        since = self.blind_since()
        if (since is not None) is not self._blind:
            self._blind = since is not None
            if self._blind:
                _log.warning(
                    "no heartbeat of the alerting for %d periods: until one comes, no alert is believed to be over",
                    BLIND_AFTER,
                )


def told(error: ErrorInfo | None) -> str:
    """Write an error on one line."""
    return "" if error is None else f"{error.kind}: {error.message}"
