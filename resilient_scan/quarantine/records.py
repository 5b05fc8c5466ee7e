"""What is stored of a fleet's quarantine: one record for all scanners that share a store, as MessagePack.

It is one record because a decision looks at all scanners: the ejection cap counts how many are out of service. With one
record each, two processes could eject "the last one allowed" at the same instant, each a different one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec

from resilient_scan.stores import Refused

MachineState = Literal["enabled", "quarantined", "probing"]
OrderedState = Literal["enabled", "disabled"]
AlertStatus = Literal["firing", "resolved", "unknown"]
ENABLED: Final = "enabled"
QUARANTINED: Final = "quarantined"
PROBING: Final = "probing"
DISABLED: Final = "disabled"
FIRING: Final = "firing"
RESOLVED: Final = "resolved"
UNKNOWN: Final = "unknown"
SCHEMA = 1
MAX_ALERTS = 32  # kept per scanner
MAX_TEXT = 300  # characters kept of a text that somebody else wrote
MAX_SECONDS = 1e11  # a larger number is not an instant, and adding to it changes nothing
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Finite(msgspec.Struct, omit_defaults=True):
    """Refuses NaN, infinities and absurd instants: anybody may have written what is in the store.

    The names of the fields below are also the stored keys, so renaming one forgets what is stored under it.
    """

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(abs(number) <= MAX_SECONDS for number in numbers if isinstance(number, float)):
                raise ValueError(f"{field} is {value}")


class KnownAlert(_Finite, omit_defaults=True):
    """An alert that was received.

    Attributes:
        status: the latest one: `firing`, `resolved` or `unknown`.
        starts_at: since when it fires, by its sender's clock; compared only with the same alert's.
        said: when its latest message came.
        source: its sender.
        name: of its rule.
        summary: why it fires, in its rule's words.
    """

    status: AlertStatus
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
    """A manual order: `disabled` or `enabled` from one instant until another."""

    state: OrderedState
    who: str
    reason: str
    since: float
    until: float


class ProbeLease(_Finite, omit_defaults=True):
    """A probe under way: whose it is, and until when no other may begin."""

    owner: str
    until: float


class ScannerRecord(_Finite, omit_defaults=True):
    """The record of one scanner.

    Attributes:
        state: of the machine, whatever was ordered by hand.
        source, who, reason: of its last change.
        since: when that was.
        until: when the cool-off ends.
        level: how often it has failed to come back; the cool-off grows with it.
        passed: probes that have succeeded.
        failures: failed executions in a row while it is in service.
        alerts: those received lately, by fingerprint.
        probe: the one under way.
        order: the manual one.
    """

    state: MachineState = ENABLED
    source: str = ""
    who: str = ""
    reason: str = ""
    since: float = 0.0
    until: float = 0.0
    level: Count = 0
    passed: Count = 0
    failures: Count = 0
    alerts: dict[str, KnownAlert] = {}
    probe: ProbeLease | None = None
    order: Order | None = None

    @property
    def shown(self) -> str:
        """Return the state that counts: a manual order takes precedence."""
        return self.state if self.order is None else self.order.state


class FleetRecord(_Finite, omit_defaults=True):
    """The records of all scanners, and what concerns the whole fleet.

    Attributes:
        schema: of this record.
        scanners: by name; one that is missing is in service, and nothing else is known about it.
        heard: when the last heartbeat came.
        gaps: seconds between the last heartbeats.
        born: when this record was first written; tells it from another that took its place.
        written: when it was last written; time never goes back behind that.
        shifted: by how many seconds its instants have been moved, because the clock had jumped.
    """

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA)] = SCHEMA
    scanners: dict[str, ScannerRecord] = {}
    heard: float | None = None
    gaps: tuple[Seconds, ...] = ()
    born: float = 0.0
    written: float = 0.0
    shifted: float = 0.0

    def shift(self, seconds: float) -> None:
        """Move all instants, so that durations stay the same although the clock has jumped."""
        self.shifted += seconds
        if self.heard is not None:
            self.heard += seconds
        for record in self.scanners.values():
            record.since += seconds
            record.until += seconds
            for known in record.alerts.values():
                known.said += seconds
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
    """Return the stored record and True, or an empty record and False if the bytes make no sense.

    Raises:
        Refused: a newer version has written it; writing it back from here would lose what only that version knows.
    """
    if stored is None:
        return FleetRecord(), True
    try:
        fleet = _decoder.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return FleetRecord(), False
    if fleet.schema > SCHEMA:
        raise Refused("a newer version of this package keeps the quarantine in the store; upgrade this one")
    return fleet, True


def texts(*parts: str) -> Iterator[str]:
    """Yield foreign texts, each on one line and cut to the length that is kept."""
    for part in parts:
        yield " ".join(str(part).encode(errors="replace").decode().split())[:MAX_TEXT]
