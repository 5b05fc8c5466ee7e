"""What is kept of a fleet's quarantine: one record for all scanners of a store, as MessagePack.

One record, because a decision looks at all of them: the fuse counts how many are out of service.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec

from resilient_scan.errors import StoreError

State = Literal["enabled", "quarantined", "probing"]
ByHand = Literal["enabled", "disabled"]
Status = Literal["firing", "resolved", "unknown"]
ENABLED: Final = "enabled"
QUARANTINED: Final = "quarantined"
PROBING: Final = "probing"
DISABLED: Final = "disabled"
FIRING: Final = "firing"
RESOLVED: Final = "resolved"
UNKNOWN: Final = "unknown"
SCHEMA = 1
MOST_ALERTS = 32  # kept per scanner
MOST_TEXT = 300  # characters kept of a text that somebody else wrote
LARGEST = 1e11  # seconds; beyond it they are no instants, and sums of them no numbers
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Finite(msgspec.Struct, omit_defaults=True):
    """Refuses instants that are none: what is stored may have been written by anybody."""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(abs(number) <= LARGEST for number in numbers if isinstance(number, float)):
                raise ValueError(f"{field} is {value}")


class Seen(_Finite, omit_defaults=True):
    """An alert that was heard of.

    Attributes:
        status: what was said last: `firing`, `resolved` or `unknown`.
        starts_at: since when it fires, by its sender's clock; only compared with the same alert's.
        said: when it was said last.
        source: who said so.
        name: of its rule.
        summary: why, in its rule's words.
    """

    status: Status
    starts_at: float
    said: float
    source: str = ""
    name: str = ""
    summary: str = ""

    @property
    def text(self) -> str:
        """Return rule and summary, for people."""
        return ": ".join(part for part in (self.name, self.summary) if part) or "an alert without a name"


class Order(_Finite, omit_defaults=True):
    """What somebody ordered by hand, from an instant to another: `disabled` or `enabled`."""

    state: ByHand
    who: str
    reason: str
    since: float
    until: float


class Lease(_Finite, omit_defaults=True):
    """A probe under way: whose, and until when nobody else begins one."""

    owner: str
    until: float


class Record(_Finite, omit_defaults=True):
    """One scanner's.

    Attributes:
        state: of the machine, whatever was ordered by hand.
        source, who, reason: of its last change.
        since: when that was.
        until: when the cool-off is over.
        level: how often it has failed to come back; the cool-off grows with it.
        passed: probes that have succeeded.
        failures: failed executions in a row, while it is in service.
        alerts: those heard of lately, by fingerprint.
        probe: the one under way.
        order: by hand.
    """

    state: State = ENABLED
    source: str = ""
    who: str = ""
    reason: str = ""
    since: float = 0.0
    until: float = 0.0
    level: Count = 0
    passed: Count = 0
    failures: Count = 0
    alerts: dict[str, Seen] = {}
    probe: Lease | None = None
    order: Order | None = None

    @property
    def shown(self) -> str:
        """Return the state that counts: an order by hand wins."""
        return self.state if self.order is None else self.order.state


class FleetRecord(_Finite, omit_defaults=True):
    """All scanners' records, and what is said of the fleet.

    Attributes:
        schema: of this record.
        scanners: by name; one that is not here is in service, and nothing is known of it.
        heard: when the last heartbeat came.
        gaps: seconds between the last heartbeats.
        born: when this was written first; it tells one record from another that took its place.
        written: when this was written last; time does not go back behind it.
        shifted: by how many seconds the instants in it have been moved, because the clock had jumped.
    """

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA)] = SCHEMA
    scanners: dict[str, Record] = {}
    heard: float | None = None
    gaps: tuple[Seconds, ...] = ()
    born: float = 0.0
    written: float = 0.0
    shifted: float = 0.0

    def shift(self, seconds: float) -> None:
        """Move all instants, so that durations stay what they are though the clock has jumped."""
        self.shifted += seconds
        if self.heard is not None:
            self.heard += seconds
        for record in self.scanners.values():
            record.since += seconds
            record.until += seconds
            for seen in record.alerts.values():
                seen.said += seconds
            if record.probe is not None:
                record.probe.until += seconds
            if record.order is not None:
                record.order.since += seconds
                record.order.until += seconds


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(FleetRecord)


def encode(fleet: FleetRecord) -> bytes:
    """Return the bytes to store."""
    return _encoder.encode(fleet)


def decode(stored: bytes | None) -> tuple[FleetRecord, bool]:
    """Return what is stored, and whether it could be read; else a fresh record.

    Raises:
        StoreError: a newer version has written it, and knows things that would be lost.
    """
    if stored is None:
        return FleetRecord(), True
    try:
        fleet = _decoder.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return FleetRecord(), False
    if fleet.schema > SCHEMA:
        raise StoreError("a newer version of this package keeps the quarantine in the store; upgrade this one")
    return fleet, True


def texts(*parts: str) -> Iterator[str]:
    """Yield foreign texts on one line each, and not longer than is kept."""
    for part in parts:
        yield " ".join(str(part).encode(errors="replace").decode().split())[:MOST_TEXT]
