"""Explain one scanner: its stack, its state, its last scans, and what would make it run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from resilient_scan._text import counted
from resilient_scan.context import Step
from resilient_scan.core.stack import Flight, Stack
from resilient_scan.observe.explain.layers import layers_of, origins_in_code
from resilient_scan.observe.explain.model import Attempt, Hung, Layer, Number, Past, Reason, Verdict
from resilient_scan.observe.explain.text import Explanation
from resilient_scan.observe.explain.verdict import verdict_of
from resilient_scan.quarantine import ScannerState
from resilient_scan.results import Status

__all__ = [
    "Attempt",
    "Explanation",
    "Hung",
    "Layer",
    "Number",
    "Past",
    "Reason",
    "Verdict",
    "explain",
    "origins_in_code",
    "past_of",
]


def explain(
    stack: Stack,
    *,
    standing: ScannerState,
    origins: Mapping[str, str] | None = None,
    findings: Iterable[str] = (),
    before: Sequence[Past] = (),
    trace: bool = False,
) -> Explanation:
    """Explain one scanner as it is now; nothing is changed and nothing is asked.

    Args:
        stack: the scanner and its layers.
        standing: how it stands at the gate.
        origins: who said each number, by `layer.field`, or by `layer` for one that is left out; the others count as
            built-in.
        findings: options that do not work together, a sentence each.
        before: scans that a store remembers, newest first, those that the flight recorder has too included.
        trace: whether the text shows the past scans layer by layer.
    """
    hung, retry = _hung(stack), stack.policy.retry
    allowed = 1 if retry is None else retry.attempts
    return Explanation(
        scanner=stack.name,
        pipeline=stack.pipeline,
        at=stack.clock.time(),
        verdict=verdict_of(stack, standing, hung),
        layers=layers_of(stack, standing, origins or {}),
        expected=stack.expected if math.isfinite(stack.expected) else None,
        past=_all(tuple(_past(flight, allowed) for flight in reversed(stack.flights.copy())), before),
        hung=hung,
        findings=tuple(findings),
        trace=trace,
    )


def _hung(stack: Stack) -> tuple[Hung, ...]:
    own = (thread for thread in stack.pool.abandoned() if thread.name == stack.name)
    return tuple(Hung(thread.thread, thread.age, thread.stack) for thread in own)


def past_of(stack: Stack, run_id: str) -> Past | None:
    """Return what the flight recorder has of a scanner's scan in a run, if it is still there."""
    retry = stack.policy.retry
    flight = next((flight for flight in reversed(stack.flights.copy()) if flight.run_id == run_id), None)
    return None if flight is None else _past(flight, 1 if retry is None else retry.attempts)


def _all(recorded: tuple[Past, ...], before: Sequence[Past]) -> tuple[Past, ...]:
    """Add the scans of other processes, and of earlier ones."""
    known = {past.run_id for past in recorded}
    older = [past for past in before if past.run_id not in known]
    return tuple(sorted([*recorded, *older], key=attrgetter("started_at"), reverse=True)) if older else recorded


def _past(flight: Flight, allowed: int) -> Past:
    result, error = flight.result, flight.result.error
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
        allowed=allowed,
        probe=flight.probe,
        error="" if error is None else f"{error.kind}: {error.message}",
    )


def _attempts(flight: Flight) -> tuple[Attempt, ...]:
    """Return the attempts that failed and, unless it is one of them, the last one."""
    result, failed = flight.result, [_failed(step) for step in flight.steps if step.attempt]
    if result.attempts > len(failed):
        before = sum(attempt.duration + (attempt.pause or 0.0) for attempt in failed)
        failed.append(_last(flight, max(0.0, result.duration - before)))
    return tuple(failed)


def _failed(step: Step) -> Attempt:
    return Attempt(step.attempt, step.duration, f"{step.error.kind}: {step.error.message}", True, step.pause)


def _last(flight: Flight, took: float) -> Attempt:
    result = flight.result
    if result.status is Status.COMPLETED:
        return Attempt(result.attempts, took, f"answered with {counted(flight.found, 'candidate')}", failed=False)
    how = "cancelled" if result.error is None else f"{result.error.kind}: {result.error.message}"
    return Attempt(result.attempts, took, how, failed=True)
