"""The state of a breaker as plain values: what a store keeps, and what a vote says.

A breaker is *closed* (every attempt is admitted), *open* (none is) or *half-open* (a few trials are). Its *generation*
is a number that changes with each change of state. A vote carries the generation in which its attempt was admitted,
so an answer that comes late cannot count in a state that it knows nothing about.

The open time, in a record as in the live machine:

    opened_at |<------------- open_for ------------->| open_until     from here on, a trial is admitted
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

import msgspec

from resilient_scan.options import Breaker

# The values of pybreaker's constants, repeated so that this module need not import it.
CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half-open"
State = Literal["closed", "open", "half-open"]

SCHEMA_VERSION = 1
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class BreakerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker's whole state. Its instants are on its owner's clock; in a store, that is the store's wall clock.

    Attributes:
        version: of this schema.
        born: a random number drawn when the record was first written; it distinguishes a record from one that was
            deleted and written again under the same name.
        revision: the number of writes.
        state: `closed`, `open` or `half-open`.
        generation: changes with the state.
        failures: attempts that failed in a row.
        successes: trials that succeeded.
        reopened: trials that failed since the breaker was last closed; the open time grows with them.
        opened_at, open_for, open_until: the last opening; `open_for` is in seconds.
        trials: trials under way, by id (`pid-process.number`), with the instant at which each one expires.
        window: the last attempts, one byte each: 1 failed, 2 was slow, 3 both.
        failed_at, window_at, failed_by_at: the instants of the failures in a row, of the window's attempts and of the
            failures in `failed_by`, where attempts count for a time only (`Breaker.within`).
        failed_by: of a provider's breaker: whose attempts failed in a row, at most two scanners, the latest last.
        down_since: of a provider's breaker: when it opened, however often trials have failed since.
        held_until: of a provider's breaker: until when the provider asked to be left alone; 0: it did not.
    """

    version: Count = SCHEMA_VERSION
    born: Count = 0
    revision: Count = 0
    state: State = "closed"
    generation: Count = 0
    failures: Count = 0
    successes: Count = 0
    reopened: Count = 0
    opened_at: float = 0.0
    open_for: float = 0.0
    open_until: float = 0.0
    trials: dict[str, float] = {}
    window: bytes = b""
    failed_by: tuple[str, ...] = ()
    down_since: float = 0.0
    held_until: float = 0.0
    failed_at: tuple[float, ...] = ()
    window_at: tuple[float, ...] = ()
    failed_by_at: tuple[float, ...] = ()

    @property
    def is_blank(self) -> bool:
        """Whether the record says nothing that a new breaker would not say."""
        return self.state == CLOSED and not self.failures and not self.window and not self.held_until

    @property
    def is_dated(self) -> bool:
        """Whether anything in it that matters now has an instant."""
        return self.state != CLOSED or bool(self.held_until or self.failed_at or self.window_at)

    def shifted(self, seconds: float) -> BreakerRecord:
        """Return the record with its instants on a clock that is `seconds` ahead."""
        return msgspec.structs.replace(
            self,
            opened_at=self.opened_at + seconds,
            open_until=self.open_until + seconds,
            trials={trial: expires + seconds for trial, expires in self.trials.items()},
            down_since=self.down_since + seconds,
            held_until=self.held_until + seconds if self.held_until else 0.0,
            failed_at=tuple(at + seconds for at in self.failed_at),
            window_at=tuple(at + seconds for at in self.window_at),
            failed_by_at=tuple(at + seconds for at in self.failed_by_at),
        )

    def clamped(self, options: Breaker, now: float) -> BreakerRecord:
        """Return the record with its instants limited to what is possible at `now` under these options.

        The wall clock may have jumped, and the record may have been written under other options. From `now` on, the
        breaker stays open for at most the time it was opened for, or `open_cap` if that is shorter; a trial expires
        after at most `open_for`, and a hold after at most `open_cap`. No attempt was made later than `now`. So a clock
        that jumps back by a day costs one more open time, not a day, and one that jumps ahead only brings the next
        trial forward, and makes attempts look old.
        """
        seconds = min(max(0.0, self.open_for), options.open_cap)
        too_late = self.state == OPEN and self.open_until - now > seconds
        return msgspec.structs.replace(
            self,
            opened_at=now if too_late else self.opened_at,
            open_until=now + seconds if too_late else self.open_until,
            trials={trial: min(expires, now + options.open_for) for trial, expires in self.trials.items()},
            held_until=min(self.held_until, now + options.open_cap),
            failed_at=tuple(min(at, now) for at in self.failed_at),
            window_at=tuple(min(at, now) for at in self.window_at),
            failed_by_at=tuple(min(at, now) for at in self.failed_by_at),
        )


class Vote(msgspec.Struct, frozen=True):
    """The outcome of one attempt, or that it is slow.

    Attributes:
        generation: of the state in which the attempt was admitted.
        trial: the id of the trial that the attempt was, or `""`.
        failed: whether it failed; `None` casts no vote and only gives the trial's slot back.
        slow: whether it took too long. With `failed=None`, it has just passed the limit and is still under way; with an
            outcome, it was counted as slow before.
        at: when it was cast, on the monotonic clock of its process.
        jitter: a factor from 0.75 to 1 for the open time that follows if a trial failed. It is drawn when the vote is
            cast, because a store may have the same vote counted twice, and both counts must come to the same.
        scanner: whose attempt it was, if the breaker is a provider's.
        hold: seconds for which a provider asked to be left alone; it counts in every generation.
    """

    generation: int
    trial: str
    failed: bool | None
    slow: bool
    at: float
    jitter: float
    scanner: str = ""
    hold: float = 0.0


class NewerRecord(Exception):
    """The record was written by a later version of this package."""


class _Versioned(msgspec.Struct):
    version: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(BreakerRecord)
_version_decoder = msgspec.msgpack.Decoder(_Versioned)


def encode(record: BreakerRecord) -> bytes:
    """Return a record as a store keeps it: MessagePack."""
    return _encoder.encode(record)


def decode(data: bytes) -> BreakerRecord | None:
    """Return the record that a store kept, checked field by field, or `None` if the bytes are not a valid record.

    Raises:
        NewerRecord: a later version of this package wrote it.
    """
    try:
        if _version_decoder.decode(data).version > SCHEMA_VERSION:
            raise NewerRecord
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    opening = (record.opened_at, record.open_for, record.open_until, record.down_since, record.held_until)
    instants = (*opening, *record.trials.values(), *record.failed_at, *record.window_at, *record.failed_by_at)
    return record if all(map(math.isfinite, instants)) else None
