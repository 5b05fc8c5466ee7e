"""In service or out of it: the gate that every scan passes first."""

from __future__ import annotations

import threading

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError, is_number, no_scanner
from resilient_scan.events import Bus, ScannerStateChanged

ENABLED, DISABLED = "enabled", "disabled"
BY_HAND, EXPIRY = "hand", "expiry"
DAY = 86_400.0


class Order(msgspec.Struct, frozen=True):
    """A scanner was taken out of service by hand, until an instant of the monotonic clock."""

    reason: str
    until: float


class Gate:
    """Orders by hand: they win over everything else, and expire."""

    def __init__(self, names: tuple[str, ...], clock: Clock, bus: Bus) -> None:
        self._names = names
        self._clock = clock
        self._bus = bus
        self._lock = threading.Lock()
        self.orders: dict[str, Order] = {}

    def in_service(self, name: str) -> bool:
        """Say whether a scanner may be asked."""
        order = self.orders.get(name)
        if order is None:
            return True
        if self._clock.monotonic() < order.until:
            return False
        with self._lock:
            ours = self.orders.get(name) is order
            if ours:
                del self.orders[name]
        if ours:
            self._tell(name, DISABLED, ENABLED, EXPIRY, order.reason, None)
        return True

    def order_of(self, name: str) -> Order | None:
        """Return the order by which a scanner is out of service now, if there is one."""
        order = self.orders.get(name)
        return order if order is not None and self._clock.monotonic() < order.until else None

    def state_of(self, name: str) -> str:
        """Say in one word whether a scanner is in service; nothing changes by it."""
        return ENABLED if self.order_of(name) is None else DISABLED

    def inherit(self, other: Gate) -> None:
        """Take over the orders of another gate (the parent's, after a fork)."""
        self.orders.update(other.orders)

    def disable(self, name: str, reason: str, duration: float) -> None:
        """Take a scanner out of service for `duration` seconds; a second order replaces the first."""
        self._check(name)
        self.in_service(name)  # an order that is over is told as over first
        if not is_number(duration, 0) or duration == 0:
            raise ConfigError(f"disable {name}: duration must be a number of seconds > 0, got {duration!r}")
        order = Order(reason, self._clock.monotonic() + duration)
        with self._lock:
            known = name in self.orders
            self.orders[name] = order
        self._tell(name, DISABLED if known else ENABLED, DISABLED, BY_HAND, reason, self._clock.time() + duration)

    def enable(self, name: str, reason: str) -> None:
        """Bring a scanner back; nothing happens if it is in service."""
        self._check(name)
        self.in_service(name)  # an order that is over is told as over first
        with self._lock:
            order = self.orders.pop(name, None)
        if order is not None:
            self._tell(name, DISABLED, ENABLED, BY_HAND, reason, None)

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise ConfigError(no_scanner(name, self._names))

    def _tell(self, name: str, old: str, new: str, source: str, reason: str, until: float | None) -> None:
        self._bus.send(ScannerStateChanged(name, old, new, source, reason, until, self._clock.time()))
