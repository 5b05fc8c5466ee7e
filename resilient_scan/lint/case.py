"""What the rules look at, and the arithmetic that several of them do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from resilient_scan.options import Policy, Retry, parse_rate

WARNING, ERROR = "warning", "error"


class Case(msgspec.Struct, frozen=True):
    """One policy, and what is known of its runs; `None`: not known.

    Attributes:
        policy: the layers.
        interval: seconds from one run to the next.
        deadline: seconds that a run has.
        state: a sample of what a run is given.
    """

    policy: Policy
    interval: float | None = None
    deadline: float | None = None
    state: Mapping[str, Any] | None = None

    @property
    def retry(self) -> Retry | None:
        """The retry layer, if it makes more than one attempt."""
        retry = self.policy.retry
        return retry if retry is not None and retry.attempts > 1 else None

    @property
    def longest(self) -> float:
        """Seconds that an attempt may take."""
        return self.policy.timeout.attempt or self.policy.timeout.total

    @property
    def longest_path(self) -> str:
        """The option that says so, with its value."""
        return f"timeout.{'total' if self.policy.timeout.attempt is None else 'attempt'}={s(self.longest)}"


def turns_within(rate: str, seconds: float) -> int:
    """Return how many of those that ask at once get a turn within `seconds`: `count` at the start of each window."""
    count, window = parse_rate(rate)
    return count * math.ceil(seconds / window)


def period_of(policy: Policy, interval: float) -> float:
    """Return the seconds between two executions for one state: the first run that finds no fresh answer asks."""
    cache = policy.cache
    if cache is None:
        return interval
    return interval * max(1, math.ceil(cache.ttl * (1 - cache.jitter) / interval))


def s(seconds: float) -> str:
    """Write seconds."""
    return f"{seconds:.10g}s"


def rounded_up(seconds: float) -> str:
    """Write seconds, without a unit and without more digits than anybody wants."""
    return f"{math.ceil(seconds):g}" if seconds >= 1 else f"{math.ceil(seconds * 100) / 100:g}"
