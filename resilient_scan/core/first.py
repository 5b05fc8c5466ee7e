"""The first attempt, all layers in one function: most executions make no other.

While the breaker is closed and the attempt succeeds, retry, breaker and engine have next to nothing to do but to call
each other: 151 steps of the interpreter in four functions, where 119 in two do the same. So `FirstAttempt.call` stands
for all three, for scanners that no other layer takes part in (`Stack._is_plain`). Whatever else comes is left to the
layers:

    a successor, or the breaker is not closed, or no time is left ---> the layers make the attempt
    it raised ---> the breaker gets its vote; then the layers go on as after a first attempt that hung on another thread

Each line stands for one in a layer, in the same order, and the argument for that order is there: the permit before the
clock (`CircuitBreaker.around`), the count of forks (`Once.call`), the report before the vote (`Stack.layers_around`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resilient_scan.engines import forks
from resilient_scan.engines.thread import Once
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.layers.breaker import Permit

if TYPE_CHECKING:
    from resilient_scan.core.stack import Stack

Report = Callable[[AttemptContext, BaseException | None], None]
"""Tells listeners that an attempt has ended."""


class FirstAttempt:
    """Makes the first attempt of one scanner's executions.

    Args:
        stack: the scanner's; it has a breaker.
        once: asks the scanner.
        report: tells listeners of the attempt's end; `None`: nobody wants to hear that.
    """

    __slots__ = (
        "_alone",
        "_breaker",
        "_folded",
        "_has_rates",
        "_memory",
        "_monotonic",
        "_once",
        "_report",
        "_scan",
        "_stack",
    )

    def __init__(self, stack: Stack, once: Once, report: Report | None) -> None:
        assert stack.breaker is not None  # noqa: S101 - see `Stack._is_plain`
        self._stack = stack
        self._breaker, self._memory, self._has_rates = stack.breaker, stack.breaker.memory, stack.breaker.has_rates
        self._monotonic = stack.clock.monotonic
        self._once, self._scan, self._alone = once, once.scan, None if once.takes_context else once.scan
        self._folded: Call | None = None
        self._report = report

    def call(self, context: AttemptContext) -> list[Any]:  # noqa: C901 - see the top of this file
        """Return the valid candidates, from this attempt or from one that the layers make."""
        memory = self._memory
        permit = Permit(memory.generation)
        if context.attempt or not memory.closed:
            return self._layers(context)
        context.permit = permit
        now = self._monotonic()
        if context.abandoned or now >= context.ends:
            context.permit = None
            return self._layers(context)
        stack, alone, failure, before = self._stack, self._alone, None, forks.depth
        if stack.budget is not None:
            stack.budget.count()
        try:
            try:
                state = context.begin_first(now)
                answer = self._scan(state, context) if alone is None else alone(state)
                if type(answer) is not list or answer:
                    self._once.keep(answer, context)
            finally:
                if forks.depth != before:
                    forks.end_child(stack.name)
        except BaseException as error:
            failure = error
        if failure is not None:  # not in the handler: what a later attempt raises would have this one as its context
            try:
                return self._go_on(failure, permit, context)
            finally:
                failure = None  # or the exception, its traceback and this frame would keep each other alive
        if self._report is not None:
            self._report(context, None)
        if memory.failures or self._has_rates:
            self._breaker.give_back(permit, False, context, stack.bus.send)
        else:
            context.permit = None
            permit.done = True
        return context.found or []

    def _layers(self, context: AttemptContext) -> list[Any]:
        """Have the layers make the attempts that this does not make; most scanners never need them."""
        if self._folded is None:  # two threads may both get here, and fold the same
            self._folded = self._stack.layers_around(self._once.call, None)
        return self._folded(context)

    def _go_on(self, failure: BaseException, permit: Permit, context: AttemptContext) -> list[Any]:
        """Vote for an attempt that has failed, and have the layers decide whether another one follows."""
        stack, breaker, send = self._stack, self._breaker, self._stack.bus.send
        try:
            if self._report is not None:
                self._report(context, failure)
            failed, permit = breaker.judge(permit, failure, context, send)
            breaker.give_back(permit, failed, context, send)
            if stack.policy.retry is None:
                raise failure
            context.failure, context.failed_after = failure, context.spent(0)
            return self._layers(context)
        finally:
            context.failure = None
            del failure
