"""How a scanner is described to listeners when its runner begins."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from resilient_scan.events import Registered

if TYPE_CHECKING:
    from resilient_scan.core.stack import Stack


def registration(given: Stack) -> Registered:
    """Describe a scanner to listeners, with functions that look at it as it is when they are called."""
    this = weakref.ref(given)  # a listener must not keep a runner alive that is gone

    def breaker_state() -> str | None:
        stack = this()
        if stack is None or stack.breaker is None or stack.retired:
            return None
        return stack.breaker.state

    def abandoned_threads() -> int:
        stack = this()
        return 0 if stack is None else stack.hung.count

    def state() -> str | None:
        stack = this()
        return None if stack is None or stack.retired else stack.gate.state_of(stack.name)

    def provider() -> str:
        stack = this()
        return "" if stack is None or stack.provider is None else stack.provider.limit.provider

    def flapping() -> bool:
        stack = this()
        return stack is not None and not stack.retired and stack.flapping()

    def slo_budget() -> float | None:
        stack = this()
        return None if stack is None or stack.retired else stack.slo_budget()

    return Registered(
        given.name,
        given.pipeline,
        None if given.breaker is None else breaker_state,
        abandoned_threads,
        state,
        given.total,
        provider,
        flapping,
        None if given.spec.slo is None else slo_budget,
    )
