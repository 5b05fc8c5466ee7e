"""The flight recorder: what is kept of the last scans of each scanner, and how the run history has it."""

from __future__ import annotations

from typing import Any

import msgspec

from resilient_scan._text import counted
from resilient_scan.layers.attempt import Step
from resilient_scan.results import ScanResult, Status
from resilient_scan.stores.history import Attempt, Past

MAX_FLIGHTS = 50  # scans remembered for each scanner
NOTHING: list[Any] = []


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

    @classmethod
    def of(cls, run_id: str, result: ScanResult, cache: str, steps: tuple[Step, ...], probe: bool) -> Flight:
        """Describe a scan without what may be large.

        The garbage collector skips a flight without lists of its own, and 50 of them are kept for each scanner.
        """
        slim = msgspec.structs.replace(result, candidates=NOTHING, tool_logs=NOTHING)
        return cls(run_id, slim, cache, steps, len(result.candidates), probe)


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
