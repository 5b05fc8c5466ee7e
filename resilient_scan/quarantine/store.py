"""The quarantine's record in the store, and this process's copy of it.

Every decision is made in the store, in one atomic update; the copy only answers questions. When the store fails, the
copy carries on alone. Manual orders that come meanwhile wait until the store is back, and are then given again with the
time that they have left; whatever else was decided meanwhile gives way to what the store holds.

Stored instants are wall time, which jumps. Within one process there is also a steady clock. So each step compares how
far both have come since this process last looked, and moves all stored instants by the difference: a cool-off lasts as
long as it should, whatever somebody does to the clock. By how much they have been moved in all is stored with them, so
that of several processes that notice the same jump only the first moves them. A process that has just started cannot
tell a jump ahead from time that has passed, but it can tell that time went back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Generic, TypeVar

import msgspec

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import Change, Machine, Rules
from resilient_scan.quarantine.records import (
    DISABLED,
    ENABLED,
    FleetRecord,
    OrderedState,
    ScannerRecord,
    decode,
    encode,
)
from resilient_scan.stores import ORDERS, Refused, Store
from resilient_scan.stores.memory import MemoryStore

T = TypeVar("T")
KEY = ORDERS
CLOCK_TOLERANCE = 1.0  # seconds by which the two clocks may differ: clocks are slewed, and stores are far away


# one step on stored bytes; pure, because a store may make it more than once


class Sighting(msgspec.Struct, frozen=True):
    """What a process saw when it last looked: both clocks, which record, and how far that had been moved."""

    wall: float
    steady: float
    born: float
    shifted: float

    def now(self, steady: float) -> float:
        """Return the wall time at a later steady time, if the wall clock has not jumped."""
        return self.wall + steady - self.steady


class StepResult(msgspec.Struct, Generic[T], frozen=True):
    """What came of a step.

    Attributes:
        result: of the act.
        changes: of states, in order.
        fleet: the record as it is now; read only.
        sighting: what was seen.
        readable: whether the stored bytes made sense; if not, the step began with an empty record.
    """

    result: T
    changes: tuple[Change, ...]
    fleet: FleetRecord
    sighting: Sighting
    readable: bool


def step(
    stored: bytes | None,
    now: float,
    act: Callable[[Machine], T],
    *,
    rules: Rules,
    steady: float,
    last: Sighting | None,
    draw: Callable[[], float],
) -> tuple[bytes | None, StepResult[T]]:
    """Expire what has expired, then act on the record.

    Args:
        stored: the record's bytes, or None if nothing is stored yet.
        now: epoch seconds, by the store's clock.
        act: what happens.
        rules: numbers and names.
        steady: seconds on this process's steady clock.
        last: what this process saw when it last looked, or None if it never did.
        draw: returns a random number from 0 to 1.

    Returns:
        The bytes to store, the same object if nothing has changed, and what came of the step.
    """
    fleet, readable = decode(stored)
    jumped = jump(fleet, now, steady, last)
    if jumped:
        fleet.shift(jumped)
    machine = Machine(fleet, now, rules, draw)
    machine.expire()
    result = act(machine)
    machine.tidy()
    new = stored
    if encode(fleet) != stored and not (stored is None and _is_empty(fleet)):
        fleet.born, fleet.written = fleet.born or now, now
        new = encode(fleet)
    return new, StepResult(
        result, tuple(machine.changes), fleet, Sighting(now, steady, fleet.born, fleet.shifted), readable
    )


def jump(fleet: FleetRecord, now: float, steady: float, last: Sighting | None) -> float:
    """Return by how much the wall clock has jumped beyond what the stored instants already follow."""
    if not fleet.born:  # nothing is stored yet
        return 0.0
    if last is not None and last.born == fleet.born:
        jumped = (now - last.wall) - (steady - last.steady) - (fleet.shifted - last.shifted)
        if abs(jumped) >= CLOCK_TOLERANCE:
            return jumped
    return min(0.0, now - fleet.written)


def _is_empty(fleet: FleetRecord) -> bool:
    return not fleet.scanners and fleet.heard is None


def wait(_machine: Machine) -> None:
    """Do nothing except let expire what has expired."""


# the store and the copy


@contextmanager
def store_errors(store: Store) -> Iterator[None]:
    """Turn whatever a store raises into a `StoreError`: it may be foreign code, and must cost no scan its result."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # its message is not quoted, because it may contain a secret
        raise StoreError(f"the store {store.url} failed with {type(error).__name__}") from None


class ManualOrder(msgspec.Struct, frozen=True):
    """A manual order, on the steady clock of the process that received it."""

    state: OrderedState
    name: str
    who: str
    reason: str
    ends: float

    def give(self, machine: Machine, seconds: float) -> None:
        """Give the order for `seconds`, or not at all if none are left."""
        order = machine.disable if self.state == DISABLED else machine.enable
        if seconds > 0:
            order(self.name, self.who, self.reason, seconds)


class Update(msgspec.Struct, Generic[T], frozen=True):
    """What came of an update.

    Attributes:
        result: of the act.
        changes: of states, in order.
        late: changes by orders that waited for the store; listeners were notified when they were given.
        at: the instant, by the store's clock.
        error: why the update is in this process only, or None if it is in the store.
    """

    result: T
    changes: tuple[Change, ...]
    late: tuple[Change, ...]
    at: float
    error: StoreError | None = None


class QuarantineStore:
    """Keeps the stored record and the copy together; safe to use from any thread.

    Args:
        names: of the scanners.
        clock: source of time.
        options: the quarantine's numbers.
        store: holds the record; None keeps it in this object.
        random: source of chance.
        on_error: called with the operation and the error when the store fails.
    """

    def __init__(
        self,
        names: Iterable[str],
        clock: Clock,
        options: Quarantine,
        store: Store | None,
        random: Random,
        on_error: Callable[[str, StoreError], object],
    ) -> None:
        self._names = frozenset(names)
        self._clock = clock
        self._options = options
        self._own = MemoryStore(clock) if store is None else None
        self.store: Store = self._own or store  # type: ignore[assignment] # one of them is there
        self._draw = random.random
        self._on_error = on_error
        self._began = clock.monotonic()
        # Held from before the store is asked until the copy is replaced. Without it, A could read the record, B could
        # quarantine a scanner and install that, and A could then install its older read: this process would run a
        # quarantined scanner until somebody looked again.
        self._lock = threading.Lock()
        self._waiting: dict[str, ManualOrder] = {}
        self._stored: bytes | None = None
        self._last: Sighting | None = None
        self._warned = False
        self.fleet: FleetRecord = FleetRecord()
        self.gated: dict[str, ScannerRecord] = {}
        """The records of the scanners that cannot simply run: out of service, or under a manual order."""

    def now(self) -> float:
        """Return the store's time, as far as it is known without calling the store."""
        last = self._last
        return self._clock.time() if last is None else last.now(self._clock.monotonic())

    def rules(self, now: float) -> Rules:
        """Return the rules as of an instant."""
        return Rules(self._options, self._names, now - (self._clock.monotonic() - self._began))

    def update(self, act: Callable[[Machine], T], *, order: ManualOrder | None = None) -> Update[T]:
        """Let something happen in the store, or only in this process if the store fails.

        Args:
            act: what happens; may be called more than once, and must not call the store.
            order: the same as a manual order, which must not be lost.

        Raises:
            Refused: the store belongs to a newer version, so the order would wait for it in vain; nothing was done.
        """
        with self._lock:
            try:
                return self._in_store(act)
            except StoreError as error:
                failure = error
            update = None
            if order is None or not isinstance(failure, Refused):
                update = self._alone(act, failure)
                if order is not None:
                    self._waiting[order.name] = order
        self._on_error("update", failure)
        if update is None:
            raise failure
        return update

    def update_or_fail(self, act: Callable[[Machine], T]) -> Update[T]:
        """Let something happen in the store, or not at all.

        Raises:
            StoreError: the store fails.
        """
        try:
            with self._lock:
                return self._in_store(act)
        except StoreError as error:
            self._on_error("update", error)
            raise

    def refresh(self) -> Update[None] | None:
        """Read what other processes have done; update the store only if something in it needs to be put right."""
        if self._own is not None:
            return None
        try:
            with self._lock:
                with store_errors(self.store):
                    now, stored = self.store.now(), self.store.read(KEY).get(KEY)
                if self._adopt(stored, now):
                    return None
                return self._in_store(wait)
        except StoreError as error:
            self._on_error("read", error)
            return None

    def inherit(self, other: QuarantineStore) -> None:
        """Take over what another one knows (the parent's, after a fork), and its store if that is its own."""
        if other._own is not None:
            other._own.after_fork()
            self._own, self.store = other._own, other.store
        self._waiting, self._began = dict(other._waiting), other._began
        self._install(other.fleet, other._stored, other._last)

    # under the lock

    def _in_store(self, act: Callable[[Machine], T]) -> Update[T]:
        waiting, steady = tuple(self._waiting.values()), self._clock.monotonic()

        def orders_then_act(machine: Machine) -> tuple[slice, T]:
            first = len(machine.changes)
            for order in waiting:
                order.give(machine, order.ends - steady)
            return slice(first, len(machine.changes)), act(machine)

        def change(
            stored: bytes | None, now: float
        ) -> tuple[bytes | None, tuple[bytes | None, StepResult[tuple[slice, T]]]]:
            new, done = self._step(stored, now, orders_then_act, steady)
            return new, (new, done)

        with store_errors(self.store):
            new, done = self.store.update(KEY, change)
        self._waiting.clear()
        self._install(done.fleet, new, done.sighting)
        self._warn_if_unreadable(readable=done.readable)
        late, result = done.result
        changes = (*done.changes[: late.start], *done.changes[late.stop :])
        return Update(result, changes, done.changes[late], done.sighting.wall)

    def _alone(self, act: Callable[[Machine], T], failure: StoreError) -> Update[T]:
        now, steady = self.now(), self._clock.monotonic()
        known = encode(self.fleet) if self.fleet.born else None
        _, done = self._step(known, now, act, steady)
        self._install(done.fleet, None, done.sighting)
        return Update(done.result, done.changes, (), now, failure)

    def _step(
        self, stored: bytes | None, now: float, act: Callable[[Machine], T], steady: float
    ) -> tuple[bytes | None, StepResult[T]]:
        return step(stored, now, act, rules=self.rules(now), steady=steady, last=self._last, draw=self._draw)

    def _adopt(self, stored: bytes | None, now: float) -> bool:
        """Replace the copy by what was read; return False if the store needs to be put right first."""
        fleet, readable = (self.fleet, True) if stored == self._stored else decode(stored)
        steady = self._clock.monotonic()
        if self._waiting or not readable or jump(fleet, now, steady, self._last):
            return False
        self._install(fleet, stored, Sighting(now, steady, fleet.born, fleet.shifted))
        return True

    def _install(self, fleet: FleetRecord, stored: bytes | None, sighting: Sighting | None) -> None:
        self._stored, self._last = stored, sighting
        if fleet is self.fleet:
            return
        self.fleet = fleet
        found = {
            name: record
            for name, record in fleet.scanners.items()
            if name in self._names and (record.state != ENABLED or record.order is not None)
        }
        # Runs read `gated` without the lock. If it were cleared and filled again, a scan whose turn comes in between
        # would find it empty and run a quarantined scanner.
        for name in [name for name in self.gated if name not in found]:
            del self.gated[name]
        self.gated.update(found)

    def _warn_if_unreadable(self, *, readable: bool) -> None:
        if not readable and not self._warned:
            self._warned = True
            _log.warning(
                "the store %s holds a quarantine record that cannot be read; it starts again with every scanner in "
                "service",
                self.store.url,
            )
