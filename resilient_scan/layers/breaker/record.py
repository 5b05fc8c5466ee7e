"""What a store keeps of a breaker: MessagePack with a schema version, checked field by field when it is read."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from resilient_scan.options import Breaker

VERSION = 1
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
State = Literal["closed", "open", "half-open"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker's state; its instants are on whatever clock its owner goes by, in a store on the store's wall clock.

    Attributes:
        version: of this schema.
        born: a number drawn when the record was made, so that another one of the same name is told from it.
        revision: counts the writes.
        state: `closed`, `open` or `half-open`.
        generation: changes with the state; votes carry it.
        failures: attempts that failed in a row.
        successes: trials that succeeded.
        reopened: trials that failed since it was closed last; the open time grows with them.
        opened_at, open_for, open_until: of the newest opening, and for how many seconds it was.
        trials: by trial (`pid-process.number`), when its place is given to another.
        window: the last attempts, a byte each: 1 failed, 2 was slow.
    """

    version: Count = VERSION
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

    @property
    def clean(self) -> bool:
        """Whether there is nothing that a new one would not say, too."""
        return self.state == "closed" and not self.failures and not self.window

    def shifted(self, by: float) -> Record:
        """Return it with its instants on another clock, which is ahead by so many seconds."""
        return msgspec.structs.replace(
            self,
            opened_at=self.opened_at + by,
            open_until=self.open_until + by,
            trials={trial: expires + by for trial, expires in self.trials.items()},
        )

    def plausible(self, options: Breaker, now: float) -> Record:
        """Return it as it can be at `now` under these options.

        The wall clock may have jumped, and the options may be others than those it was written with. From now on it
        stays open for at most the time that it was opened for, or the cap where that is shorter; a trial keeps its
        place for at most `open_for`. So a jump back costs one open time more, a jump ahead brings a trial earlier.
        """
        seconds = min(max(0.0, self.open_for), options.open_cap)
        late = self.state == "open" and self.open_until - now > seconds
        return msgspec.structs.replace(
            self,
            opened_at=now if late else self.opened_at,
            open_until=now + seconds if late else self.open_until,
            trials={trial: min(expires, now + options.open_for) for trial, expires in self.trials.items()},
        )


class Newer(Exception):
    """The record is of a later version of this package."""


class _Versioned(msgspec.Struct):
    version: int


_encode = msgspec.msgpack.Encoder().encode
_record = msgspec.msgpack.Decoder(Record).decode
_versioned = msgspec.msgpack.Decoder(_Versioned).decode


def write(record: Record) -> bytes:
    """Return a record as a store keeps it."""
    return _encode(record)


def read(data: bytes) -> Record | None:
    """Return what a store kept; `None`: it is none of ours.

    Raises:
        Newer: a later version of this package wrote it.
    """
    try:
        if _versioned(data).version > VERSION:
            raise Newer
        record = _record(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    instants = (record.opened_at, record.open_for, record.open_until, *record.trials.values())
    return record if all(map(math.isfinite, instants)) else None
