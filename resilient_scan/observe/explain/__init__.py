"""Explain one scanner: its layers, its state, its last scans, and what would make it run.

`layers` describes the stack, `verdict` judges what a scan would come to, and `text` has the values that an explanation
consists of and shows them to a person.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

from resilient_scan.core.flights import past_of
from resilient_scan.core.stack import Stack
from resilient_scan.observe.explain.layers import layers_of, origins_in_code
from resilient_scan.observe.explain.text import Explanation, Hung, Layer, Number, Reason, Returned, Verdict
from resilient_scan.observe.explain.verdict import verdict_of
from resilient_scan.quarantine import ScannerState
from resilient_scan.stores.history import Attempt, Past

__all__ = [
    "Attempt",
    "Explanation",
    "Hung",
    "Layer",
    "Number",
    "Past",
    "Reason",
    "Returned",
    "Verdict",
    "explain",
    "origins_in_code",
]


def explain(
    stack: Stack,
    *,
    state: ScannerState,
    origins: Mapping[str, str] | None = None,
    findings: Iterable[str] = (),
    before: Sequence[Past] = (),
    trace: bool = False,
) -> Explanation:
    """Explain one scanner as it is now, without changing or calling anything.

    Args:
        stack: the scanner and its layers.
        state: whether it is in service.
        origins: who set each number, by `layer.field`, or by `layer` for a layer that is left out; the others count as
            built-in.
        findings: options that do not work together, a sentence each.
        before: scans that a store remembers, newest first; some of them may be in the flight recorder too.
        trace: whether the text shows the past scans layer by layer.
    """
    hung = _hung(stack)
    return Explanation(
        scanner=stack.name,
        pipeline=stack.pipeline,
        at=stack.clock.time(),
        verdict=verdict_of(stack, state, hung),
        layers=layers_of(stack, state, origins or {}),
        expected=stack.expected if math.isfinite(stack.expected) else None,
        past=_all(tuple(past_of(flight, stack.attempts) for flight in stack.recorded()), before),
        hung=hung,
        findings=tuple(findings),
        trace=trace,
        returned=tuple(_returned(stack)),
    )


def _hung(stack: Stack) -> tuple[Hung, ...]:
    return tuple(Hung(thread.thread, thread.age, thread.stack, thread.hint) for thread in stack.abandoned())


def _returned(stack: Stack) -> Iterator[Returned]:
    for each in reversed(stack.hung.came_back):
        yield Returned(each.thread, each.age, each.method, each.outcome, each.run_id, each.attempt, each.hint)


def _all(recorded: tuple[Past, ...], before: Sequence[Past]) -> tuple[Past, ...]:
    """Add the scans of other processes, and of earlier ones."""
    known = {past.run_id for past in recorded}
    older = [past for past in before if past.run_id not in known]
    return tuple(sorted([*recorded, *older], key=attrgetter("started_at"), reverse=True)) if older else recorded
