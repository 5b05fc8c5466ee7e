"""The flight recorder: what is kept of the last scans of each scanner, and how the run history has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec
from msgspec.structs import astuple, replace

from resilient_scan._text import counted, writable
from resilient_scan.layers.attempt import Step
from resilient_scan.results import ErrorInfo, ScanResult, Status
from resilient_scan.stores.history import Attempt, Past

MAX_FLIGHTS = 50  # scans remembered for each scanner


class Flight(msgspec.Struct, frozen=True, gc=False):
    """What the flight recorder keeps of a scan.

    Attributes:
        run_id: of the run that it was part of.
        result: how it ended, without candidates and tool logs.
        cache: what the cache had for it: `hit`, `stale`, `miss`, `shared`, `bypass`, or `""` where it was not asked.
        steps: the attempts that failed, in order.
        found: how many candidates it had.
        probe: whether it tested a scanner that was out of service.
    """

    run_id: str
    result: ScanResult
    cache: str
    steps: tuple[Step, ...]
    found: int = 0
    probe: bool = False


class _Packed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    run_id: str
    status: Status
    error: ErrorInfo | None
    attempts: int
    duration: float
    queue_wait: float
    age: float | None
    partial: bool
    dropped: int
    started_at: float
    suspicious: str | None
    cache: str
    steps: tuple[Step, ...]
    found: int
    probe: bool


_PLACES = tuple(f"place_{number}" for number in range(MAX_FLIGHTS))
NEXT = dict(zip(_PLACES, (*_PLACES[1:], _PLACES[0]), strict=True))


class Recorder(msgspec.Struct, gc=False):
    """The last scans of one scanner, packed; made by `recorder`, which adds its places.

    Ten thousand scanners have half a million of them. The garbage collector looks at all that a list refers to, so it
    would visit each of them at every full collection, which took half as long again. It knows nothing of this object.

    Attributes:
        place: where the next one goes: the oldest has been there longest.
    """

    place: str = _PLACES[0]

    def add(self, flight: bytes) -> None:
        """Put a scan in the place of the oldest; see `Run._finish`."""
        place = self.place
        self.place = NEXT[place]
        setattr(self, place, flight)

    def newest_first(self) -> list[bytes]:
        """Return what it has now."""
        place, *flights = astuple(self)  # one step in C: others go on adding
        first = _PLACES.index(place)
        return [flight for flight in reversed(flights[first:] + flights[:first]) if flight]


_Recorder = msgspec.defstruct("_Recorder", [(place, bytes, b"") for place in _PLACES], bases=(Recorder,), gc=False)


def recorder() -> Recorder:
    """Return an empty one."""
    return cast("Recorder", _Recorder())


_NO_STEPS: tuple[Step, ...] = ()
_LARGEST = 2**63 - 1
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


def packed(run_id: str, result: ScanResult, steps: tuple[Step, ...], cache: str, probe: bool) -> bytes:
    """Pack a scan for the flight recorder.

    A thousand scanners have 50,000 flights. As objects of eight parts each they took 14 kB a scanner, and each scan had
    to load all parts of the oldest one from memory, only to free them; packed, they take 7 kB.
    """
    odd = steps is not _NO_STEPS or result.suspicious is not None
    if odd or type(result.attempts) is not int or type(result.dropped) is not int:
        result, steps = _own(result, steps)
    fields = (
        run_id,
        result.status,
        result.error,
        result.attempts,
        result.duration,
        result.queue_wait,
        result.age,
        result.partial,
        result.dropped,
        result.started_at,
        result.suspicious,
        cache,
        steps,
        len(result.candidates),
        probe,
    )
    try:
        return _encode(fields)
    except (ValueError, OverflowError):  # what a scanner has put there is half a character, or a number beyond measure
        return packed(run_id, *_own(result, steps), cache, probe)


def _own(result: ScanResult, steps: tuple[Step, ...]) -> tuple[ScanResult, tuple[Step, ...]]:
    """Leave out what a scanner has put where its context counts: to pack foreign objects would run their code."""
    doubt = result.suspicious
    known = replace(
        result,
        suspicious=writable(doubt) if type(doubt) is str else None,
        attempts=_number(result.attempts, 1),
        dropped=_number(result.dropped, 0),
    )
    return known, tuple(step for step in steps if type(step) is Step) if type(steps) is tuple else ()


def _number(given: Any, otherwise: int) -> int:
    return given if type(given) is int and 0 <= given <= _LARGEST else otherwise


def unpacked(flights: Iterable[bytes], scanner: str, pipeline: str) -> Iterator[Flight]:
    """Return flights of one scanner as they were, in their order."""
    for data in flights:
        of = _decode(data)
        result = ScanResult(
            scanner,
            pipeline,
            of.status,
            [],
            of.error,
            of.attempts,
            of.duration,
            of.queue_wait,
            of.age,
            of.partial,
            of.dropped,
            [],
            of.started_at,
            of.suspicious,
        )
        yield Flight(of.run_id, result, of.cache, of.steps, of.found, of.probe)


def past_of(flight: Flight, attempts: int) -> Past:
    """Describe a recorded scan in plain values; `attempts` is how many the scanner's policy allows."""
    result = flight.result
    return Past(
        run_id=flight.run_id,
        started_at=result.started_at,
        status=result.status.value,
        found=flight.found,
        duration=result.duration,
        queue_wait=result.queue_wait,
        age=result.age,
        partial=result.partial,
        dropped=result.dropped,
        cache=flight.cache,
        attempts=_attempts(flight),
        allowed=attempts,
        probe=flight.probe,
        error="" if result.error is None else f"{result.error.kind}: {result.error.message}",
        where="" if result.error is None else result.error.place,
        traceback="" if result.error is None else result.error.traceback,
        blame="" if result.error is None else result.error.blame,
    )


def _attempts(flight: Flight) -> tuple[Attempt, ...]:
    """Return the attempts that failed and, unless it is one of them, the last one."""
    result, failed = flight.result, [_failed(step) for step in flight.steps if step.attempt]
    if result.attempts > len(failed):
        before = sum(attempt.duration + (attempt.pause or 0.0) for attempt in failed)
        failed.append(_last(flight, max(0.0, result.duration - before)))
    return tuple(failed)


def _failed(step: Step) -> Attempt:
    error = step.error
    return Attempt(step.attempt, step.duration, f"{error.kind}: {error.message}", True, step.pause, error.place)


def _last(flight: Flight, took: float) -> Attempt:
    result = flight.result
    if result.status is Status.COMPLETED:
        return Attempt(result.attempts, took, f"answered with {counted(flight.found, 'candidate')}", failed=False)
    how = "cancelled" if result.error is None else f"{result.error.kind}: {result.error.message}"
    return Attempt(result.attempts, took, how, failed=True, where="" if result.error is None else result.error.place)
