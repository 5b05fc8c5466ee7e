"""Tests of what real time shows: a busy machine is late now and then, a mistake is there each time."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

CHANCES = 4
P = ParamSpec("P")


def with_chances(test: Callable[P, None]) -> Callable[P, None]:
    """Let a test fail some times before it counts."""

    @wraps(test)
    def again(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(CHANCES - 1):
            try:
                return test(*args, **kwargs)
            except AssertionError:
                continue
        return test(*args, **kwargs)

    return again
