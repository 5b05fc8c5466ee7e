"""Retry: ask again after a failure, with a wait that fits into the time that is left.

tenacity's strategies decide (whether, how long, when to stop); the loop is a plain loop, so that a first success
pays for nothing.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_base

from resilient_scan.clock import Clock
from resilient_scan.errors import PermanentError, Rejected, RetryAfter, ScanCancelled
from resilient_scan.layers.attempt import AttemptContext, Call, Step
from resilient_scan.options import Retry
from resilient_scan.results import ErrorInfo

BUDGET_WINDOW = 60.0  # seconds


class FullJitter(wait_base):
    """Draw the wait after attempt n evenly from 0 to min(cap, base * 2**(n - 1)) seconds."""

    def __init__(self, base: float, cap: float, random: Random) -> None:
        self._base = base
        self._cap = cap
        self._random = random

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the wait in seconds."""
        doubled = self._base * 2.0 ** min(retry_state.attempt_number - 1, 62)
        return self._random.uniform(0.0, min(self._cap, doubled))


class RetryBudget:
    """Retries allowed: a share of the executions of the last minute, and a few in any case.

    A source that is down is asked `attempts` times per execution by everybody; the budget keeps that multiplication
    from keeping it down.
    """

    def __init__(self, options: Retry, clock: Clock) -> None:
        self._share = options.budget or 0.0
        self._floor = options.budget_min
        self._clock = clock
        self._lock = threading.Lock()
        self._executions: deque[float] = deque()
        self._retries: deque[float] = deque()

    def count(self) -> None:
        """Note an execution."""
        now = self._clock.monotonic()
        with self._lock:
            self._executions.append(now)
            self._forget(now)

    def spend(self) -> bool:
        """Take one retry out of the budget; `False`: it is used up."""
        now = self._clock.monotonic()
        with self._lock:
            self._forget(now)
            if len(self._retries) >= max(self._floor, self._share * len(self._executions)):
                return False
            self._retries.append(now)
            return True

    def left(self) -> int:
        """Return how many retries are left in this minute."""
        with self._lock:
            self._forget(self._clock.monotonic())
            allowed = max(self._floor, math.ceil(self._share * len(self._executions)))
            return max(0, allowed - len(self._retries))

    def _forget(self, now: float) -> None:
        for instants in (self._executions, self._retries):
            while instants and instants[0] <= now - BUDGET_WINDOW:
                instants.popleft()


def retrying(
    options: Retry,
    call: Call,
    *,
    random: Random,
    may_retry: Callable[[], bool],
    budget: RetryBudget | None = None,
    on_exhausted: Callable[[AttemptContext], None] = lambda _context: None,
) -> Call:
    """Wrap `call` so that it is tried up to `options.attempts` times.

    Args:
        options: attempts, waits, and which exceptions are worth another attempt.
        call: the next layer in.
        random: where the jitter comes from.
        may_retry: asked before a wait; `False` gives up at once (the breaker is open, say).
        budget: what every retry is taken from.
        on_exhausted: called when a retry is not made because the budget is used up.

    Raises (when called):
        The scanner's own exception of the last attempt; `Rejected` only where no attempt was made at all.
    """
    judge = _Judge(options, random, may_retry, budget, on_exhausted)

    def attempts(context: AttemptContext) -> list[Any]:
        failure, took = context.failure, context.failed_after  # of an attempt that hangs on another thread
        if budget is not None and failure is None:
            budget.count()
        try:
            while True:
                if failure is not None:
                    pause = judge.pause_after(failure, context, took)
                    if pause is None:
                        break
                    context.sleep(pause)
                made = context.attempt
                try:
                    return call(context)
                except BaseException as error:
                    if isinstance(error, Rejected) and context.attempt == made:
                        # Refused. In mid-scan (the breaker opened under it) the last attempt's own error stays.
                        failure = failure or error
                        break
                    failure, took = error, context.spent(made)
            raise failure
        finally:
            failure = None  # else the exception, its traceback and this frame hold each other until a collection

    return attempts


class _Judge:
    """Decides after a failed attempt whether there is another one, and when."""

    def __init__(
        self,
        options: Retry,
        random: Random,
        may_retry: Callable[[], bool],
        budget: RetryBudget | None,
        on_exhausted: Callable[[AttemptContext], None],
    ) -> None:
        self._cap = options.retry_after_cap
        self._may_retry = may_retry
        self._budget = budget
        self._on_exhausted = on_exhausted
        self._rules = Retrying(
            stop=stop_after_attempt(options.attempts),
            wait=FullJitter(options.base, options.cap, random),
            retry=retry_if_exception_type(options.on),
        )

    def pause_after(self, failure: BaseException, context: AttemptContext, took: float) -> float | None:
        """Note a failed attempt; return the seconds to wait before the next one, `None` where there is none."""
        pause = self._pause(failure, context)
        if pause is not None and not self._allowed(context):
            pause = None
        context.steps += (Step(context.attempt, took, ErrorInfo.of(failure), pause),)
        return pause

    def _allowed(self, context: AttemptContext) -> bool:
        if not self._may_retry():
            return False
        if self._budget is None or self._budget.spend():
            return True
        self._on_exhausted(context)
        return False

    def _pause(self, failure: BaseException, context: AttemptContext) -> float | None:
        if context.cancelled or isinstance(failure, PermanentError | Rejected | ScanCancelled):
            return None
        rules = self._rules
        state = RetryCallState(rules, None, (), {})
        state.attempt_number = context.attempt
        state.set_exception((type(failure), failure, failure.__traceback__))
        if rules.stop(state):
            return None
        if isinstance(failure, RetryAfter):
            pause = min(failure.seconds, self._cap)
        elif rules.retry(state):
            pause = float(rules.wait(state))
        else:
            return None
        return pause if pause < context.remaining() else None
