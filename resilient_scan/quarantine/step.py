"""One change of the stored bytes: what a store's `update` does with them. Pure: it may be made more than once.

Stored instants are wall time, which jumps; what lives in one process has steady time beside it. So each step compares
how far both have come since the process last looked, and moves all stored instants by the difference: a cool-off lasts
as long as it should, whatever somebody does to the clock. How far they have been moved in all is stored with them:
of several processes that notice the same jump only the first moves them. A process that has just begun cannot tell
a jump ahead from time that has passed; that time went back it can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from resilient_scan.quarantine.machine import Change, Machine, Rules
from resilient_scan.quarantine.records import FleetRecord, decode, encode

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
