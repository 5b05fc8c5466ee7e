"""What a scanner's last executions came to, a bit for each: whether it is flapping, and what its error budget is.

A whole number holds the last `KEPT` executions, the newest in its lowest bit, 1 where one failed (an error or a
timeout). What is not known counts as a success, so a scanner that never failed has 0, costs nothing, and needs no
object. An execution that was cancelled, or that our own machine has spoiled, says nothing about the scanner: it is no
failure, and no success either.

*Flapping* is what neither a breaker nor a share of failures sees: a source that works every other time fails twice in a
row never, and half of the time. Nagios and its successors look at the last 21 states, and count the changes between
them, of which the newest weigh most: 1.25, then less and less, 0.75 for the oldest of the 20. Flapping begins at half
of all that weight, and ends below 30 % of it. (Naemon begins at 30 % and ends at 20 %. There three failures that come
by chance are enough, and one per cent of failures raises some 85 flags in a million executions; here, none.)

The *error budget* of `slo = 0.99` is the failures that the last 1,000 executions may have: ten. The window is counted
in executions and not in days, because it is about those: the same for a scanner that runs each minute and for one that
runs each night, and known again after a restart.
"""

from __future__ import annotations

from typing import Final

from resilient_scan.options import SLO_EXECUTIONS

KEPT: Final = SLO_EXECUTIONS
KNOWN: Final = (1 << KEPT) - 1
LOOKED_AT: Final = 21  # executions, for flapping
CHANGES: Final = LOOKED_AT - 1
BEGINS, ENDS = 0.5, 0.3  # shares of the weight of all changes

# The newest change weighs 95, each older one 2 less, the oldest of the 20 weighs 57. That is Nagios' 1.25 to 0.75,
# times 76, in whole numbers: the sum can be carried on from one execution to the next without an error that grows.
_NEWEST, _STEP, _OLDEST = 95, 2, 57
_ALL: Final = CHANGES * (_NEWEST + _OLDEST) // 2
_LOOKED_AT_BITS: Final = (1 << CHANGES) - 1


def succeeded(history: int) -> int:
    """Return the history after a success."""
    return history << 1 & KNOWN


def failed(history: int) -> int:
    """Return the history after a failure."""
    return (history << 1 | 1) & KNOWN


def failures(history: int) -> int:
    """Return how many of the executions failed."""
    return history.bit_count()


def change_share(history: int) -> float:
    """Return the weighted share of changes among the last 21 executions, 0 to 1."""
    return _weight(history ^ history >> 1) / _ALL


def is_flapping(history: int) -> bool:
    """Say whether a scanner is flapping: the share of changes was last half or more, and not below 30 % since.

    It is read off the history, which need not remember it. The walk into the past ends where the share was beyond one
    of the two limits, mostly at once.
    """
    changes = history ^ history >> 1  # bit 0: between the newest execution and the one before
    weight, inside = _weight(changes), (changes & _LOOKED_AT_BITS).bit_count()
    while changes:
        if weight >= BEGINS * _ALL:
            return True
        if weight < ENDS * _ALL:
            return False
        # One execution back, each change is one place newer and weighs more; the newest is not there yet.
        newest, older = changes & 1, changes >> CHANGES & 1
        inside -= newest
        weight += _STEP * inside - _NEWEST * newest + _OLDEST * older
        inside += older
        changes >>= 1
    return False


def budget_left(history: int, slo: float) -> float:
    """Return the share of the error budget that is left: 1 is all of it, and below 0 more has failed than may."""
    return round(1 - failures(history) / allowed(slo), 6)


def allowed(slo: float) -> float:
    """Return how many of the last 1,000 executions may fail."""
    return round((1 - slo) * KEPT, 6)


def packed(history: int) -> bytes:
    """Return a history as a store keeps it."""
    return history.to_bytes((history.bit_length() + 7) // 8, "little")


def unpacked(data: bytes) -> int:
    """Return the history that a store kept."""
    return int.from_bytes(data, "little") & KNOWN


def _weight(changes: int) -> int:
    """Return the weight of the newest 20 changes."""
    weight, changes = 0, changes & _LOOKED_AT_BITS
    while changes:
        oldest = changes.bit_length() - 1
        weight += _NEWEST - _STEP * oldest
        changes ^= 1 << oldest
    return weight
