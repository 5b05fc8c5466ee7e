"""The record in the store, and a copy of it here, as it was last seen.

What is decided, is decided in the store, in one atomic step; the copy answers who only looks. When the store fails,
the copy goes on by itself. Orders by hand then wait until the store is back, and are given again with the time that
they have left; whatever else was decided meanwhile gives way to what the store has.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Generic, TypeVar

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.options import Quarantine
from resilient_scan.quarantine.machine import Change, Machine, Rules
from resilient_scan.quarantine.records import DISABLED, ENABLED, ByHand, FleetRecord, Record, decode, encode
from resilient_scan.stores import Store
from resilient_scan.stores.memory import MemoryStore

# One change of the stored bytes: what a store's `update` does with them. Pure: it may be made more than once.
#
# Stored instants are wall time, which jumps; what lives in one process has steady time beside it. So each step compares
# how far both have come since the process last looked, and moves all stored instants by the difference: a cool-off
# lasts
# as long as it should, whatever somebody does to the clock. How far they have been moved in all is stored with them:
# of several processes that notice the same jump only the first moves them. A process that has just begun cannot tell
# a jump ahead from time that has passed; that time went back it can.

T = TypeVar("T")
TOLERANCE = 1.0  # seconds by which the two times may differ: clocks are slewed, stores are far away


class Look(msgspec.Struct, frozen=True):
    """What a process saw when it last looked: wall and steady time, which record, and how far it had been moved."""

    wall: float
    steady: float
    born: float
    shifted: float

    def now(self, steady: float) -> float:
        """Return the wall time that it is, at a later steady time, if the clock has not jumped."""
        return self.wall + steady - self.steady


class Done(msgspec.Struct, Generic[T], frozen=True):
    """What came of a step.

    Attributes:
        result: of the act.
        changes: of states, in order.
        fleet: the record as it is now; not to be changed.
        look: what was seen.
        readable: whether the stored bytes made sense; if not, nothing was known.
    """

    result: T
    changes: tuple[Change, ...]
    fleet: FleetRecord
    look: Look
    readable: bool


def step(
    stored: bytes | None,
    now: float,
    act: Callable[[Machine], T],
    *,
    rules: Rules,
    steady: float,
    look: Look | None,
    draw: Callable[[], float],
) -> tuple[bytes | None, Done[T]]:
    """Let time do its work, then act, on what is stored.

    Args:
        stored: the bytes; `None`: nothing yet.
        now: epoch seconds, by the store's clock.
        act: what happens.
        rules: numbers and names.
        steady: seconds on this process' steady clock.
        look: what this process saw when it last looked; `None`: it never did.
        draw: returns a number from 0 to 1.

    Returns:
        The bytes to store, the same object where nothing has changed, and what came of it.
    """
    fleet, readable = decode(stored)
    jumped = jump(fleet, now, steady, look)
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
    return new, Done(result, tuple(machine.changes), fleet, Look(now, steady, fleet.born, fleet.shifted), readable)


def jump(fleet: FleetRecord, now: float, steady: float, look: Look | None) -> float:
    """Return by how much the clock has jumped beyond what the stored instants have followed already."""
    if not fleet.born:  # nothing is stored yet
        return 0.0
    if look is not None and look.born == fleet.born:
        jumped = (now - look.wall) - (steady - look.steady) - (fleet.shifted - look.shifted)
        if abs(jumped) >= TOLERANCE:
            return jumped
    return min(0.0, now - fleet.written)


def _is_empty(fleet: FleetRecord) -> bool:
    return not fleet.scanners and fleet.heard is None


def wait(_machine: Machine) -> None:
    """Do nothing but let time do its work."""


_log = logging.getLogger("resilient_scan")
KEY = "quarantine/fleet"


@contextmanager
def asking(store: Store) -> Iterator[None]:
    """Let whatever a store raises be a `StoreError`: it may be foreign code, and costs no scan its result."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # not quoted: nobody knows what is in it
        raise StoreError(f"the store {store.url} failed with {type(error).__name__}") from None


class ByHandOrder(msgspec.Struct, frozen=True):
    """An order by hand, on the steady clock of the process that it was given to."""

    state: ByHand
    name: str
    who: str
    reason: str
    ends: float

    def give(self, machine: Machine, seconds: float) -> None:
        """Give it, for so many seconds."""
        order = machine.disable if self.state == DISABLED else machine.enable
        if seconds > 0:
            order(self.name, self.who, self.reason, seconds)


class Stepped(msgspec.Struct, Generic[T], frozen=True):
    """What came of a step.

    Attributes:
        result: of the act.
        changes: of states.
        late: changes that were told when they were made here, and have reached the store only now.
        at: when, by the store's clock.
        error: why it is not in the store; `None`: it is.
    """

    result: T
    changes: tuple[Change, ...]
    late: tuple[Change, ...]
    at: float
    error: StoreError | None = None


class Keeper:
    """Keeps store and copy together; safe to use from any thread.

    Args:
        names: of the scanners.
        clock: where time comes from.
        options: the quarantine's numbers.
        store: where the record is; `None`: in this object.
        random: where chance comes from.
        on_error: is told the operation and the error when the store fails.
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
        self._lock = threading.Lock()  # held on the way to the store: what comes home is never older than what is here
        self._waiting: dict[str, ByHandOrder] = {}
        self._stored: bytes | None = None
        self._look: Look | None = None
        self._warned = False
        self.fleet = FleetRecord()
        self.out: dict[str, Record] = {}  # records of the scanners that have to ask before they run

    def now(self) -> float:
        """Return the store's time as far as one can tell without asking it: a jump shows when somebody looks."""
        look = self._look
        return self._clock.time() if look is None else look.now(self._clock.monotonic())

    def rules(self, now: float) -> Rules:
        """Return the rules as they are at an instant."""
        return Rules(self._options, self._names, now - (self._clock.monotonic() - self._began))

    def step(self, act: Callable[[Machine], T], *, order: ByHandOrder | None = None) -> Stepped[T]:
        """Let something happen, in the store; or only here, where that fails.

        Args:
            act: what happens; it may be called more than once, and must not ask the store.
            order: the same, as an order by hand that is not to be lost.
        """
        with self._lock:
            try:
                return self._in_store(act)
            except StoreError as error:
                failure = error
            stepped = self._alone(act, failure)
            if order is not None:
                self._waiting[order.name] = order
        self._on_error("update", failure)
        return stepped

    def in_store(self, act: Callable[[Machine], T]) -> Stepped[T]:
        """Do the same, or nothing at all.

        Raises:
            StoreError: the store fails.
        """
        try:
            with self._lock:
                return self._in_store(act)
        except StoreError as error:
            self._on_error("update", error)
            raise

    def look(self) -> Stepped[None] | None:
        """See what others have done, with one read; a step is made only where there is something to put right."""
        if self._own is not None:
            return None
        try:
            with self._lock:
                with asking(self.store):
                    now, stored = self.store.now(), self.store.read(KEY).get(KEY)
                if self._take_over(stored, now):
                    return None
                return self._in_store(wait)
        except StoreError as error:
            self._on_error("read", error)
            return None

    def inherit(self, other: Keeper) -> None:
        """Take over what another one knows (the parent's, after a fork), its store too where that is its own."""
        if other._own is not None:
            other._own.after_fork()
            self._own, self.store = other._own, other.store
        self._waiting, self._began = dict(other._waiting), other._began
        self._install(other.fleet, other._stored, other._look)

    # under the lock

    def _in_store(self, act: Callable[[Machine], T]) -> Stepped[T]:
        waiting, steady = tuple(self._waiting.values()), self._clock.monotonic()

        def everything(machine: Machine) -> tuple[slice, T]:
            first = len(machine.changes)
            for order in waiting:
                order.give(machine, order.ends - steady)
            return slice(first, len(machine.changes)), act(machine)

        def change(stored: bytes | None, now: float) -> tuple[bytes | None, tuple[bytes | None, Done[tuple[slice, T]]]]:
            new, done = self._step(stored, now, everything, steady)
            return new, (new, done)

        with asking(self.store):
            new, done = self.store.update(KEY, change)
        self._waiting.clear()
        self._install(done.fleet, new, done.look)
        self._warn_if_garbage(readable=done.readable)
        late, result = done.result
        changes = (*done.changes[: late.start], *done.changes[late.stop :])
        return Stepped(result, changes, done.changes[late], done.look.wall)

    def _alone(self, act: Callable[[Machine], T], failure: StoreError) -> Stepped[T]:
        now, steady = self.now(), self._clock.monotonic()
        known = encode(self.fleet) if self.fleet.born else None
        _, done = self._step(known, now, act, steady)
        self._install(done.fleet, None, done.look)
        return Stepped(done.result, done.changes, (), now, failure)

    def _step(
        self, stored: bytes | None, now: float, act: Callable[[Machine], T], steady: float
    ) -> tuple[bytes | None, Done[T]]:
        rules = self.rules(now)
        return step(stored, now, act, rules=rules, steady=steady, look=self._look, draw=self._draw)

    def _take_over(self, stored: bytes | None, now: float) -> bool:
        """Become what was read; `False`: there is something to put right in the store."""
        fleet, readable = (self.fleet, True) if stored == self._stored else decode(stored)
        steady = self._clock.monotonic()
        if self._waiting or not readable or jump(fleet, now, steady, self._look):
            return False
        self._install(fleet, stored, Look(now, steady, fleet.born, fleet.shifted))
        return True

    def _install(self, fleet: FleetRecord, stored: bytes | None, look: Look | None) -> None:
        self._stored, self._look = stored, look
        if fleet is self.fleet:
            return
        self.fleet = fleet
        found = {
            name: record
            for name, record in fleet.scanners.items()
            if name in self._names and (record.state != ENABLED or record.order is not None)
        }
        # One by one: runs look at it without a lock, and must not find it empty in between.
        for name in [name for name in self.out if name not in found]:
            del self.out[name]
        self.out.update(found)

    def _warn_if_garbage(self, *, readable: bool) -> None:
        if not readable and not self._warned:
            self._warned = True
            _log.warning(
                "what the store %s keeps of the quarantine cannot be read; it begins anew, every scanner in service",
                self.store.url,
            )
