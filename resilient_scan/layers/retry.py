"""Retry: ask again after a failure, with a wait that fits into the time that is left.

tenacity's strategies decide (whether, how long, when to stop); the loop is a plain loop, so that a first success
pays for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_base

from resilient_scan.errors import PermanentError, Rejected, RetryAfter, ScanCancelled
from resilient_scan.options import Retry
from resilient_scan.scanning import Call, ScanContext


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


def retrying(options: Retry, call: Call, *, random: Random, may_retry: Callable[[], bool]) -> Call:
    """Wrap `call` so that it is tried up to `options.attempts` times.

    Args:
        options: attempts, waits, and which exceptions are worth another attempt.
        call: the next layer in.
        random: where the jitter comes from.
        may_retry: asked before a wait; `False` gives up at once (the breaker is open, say).

    Raises (when called):
        The scanner's own exception of the last attempt; `Rejected` only where no attempt was made at all.
    """
    rules = Retrying(
        stop=stop_after_attempt(options.attempts),
        wait=FullJitter(options.base, options.cap, random),
        retry=retry_if_exception_type(options.on),
    )

    def attempts(context: ScanContext) -> list[Any]:
        failure: BaseException | None = None
        try:
            while True:
                made = context.attempt
                try:
                    return call(context)
                except BaseException as error:
                    pause = None
                    # refused in mid-scan (the breaker opened under it): the last attempt's own error stays
                    if failure is None or context.attempt > made or isinstance(error, ScanCancelled):
                        failure = error
                        pause = _pause(rules, options, context, error)
                if pause is None or not may_retry():
                    raise failure
                context.sleep(pause)
        finally:
            failure = None  # else the exception, its traceback and this frame hold each other until a collection

    return attempts


def _pause(rules: Retrying, options: Retry, context: ScanContext, error: BaseException) -> float | None:
    """Return the seconds to wait before the next attempt; `None`: there is none."""
    if isinstance(error, PermanentError | Rejected | ScanCancelled):
        return None
    state = RetryCallState(rules, None, (), {})
    state.attempt_number = context.attempt
    state.set_exception((type(error), error, error.__traceback__))
    asked = isinstance(error, RetryAfter)
    if not (asked or rules.retry(state)) or rules.stop(state):
        return None
    pause = min(error.seconds, options.retry_after_cap) if isinstance(error, RetryAfter) else float(rules.wait(state))
    return pause if pause < context.remaining() else None
