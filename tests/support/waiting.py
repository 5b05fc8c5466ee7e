"""Wait for what other threads and processes do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

WAIT_TIMEOUT = 60.0
LONGEST_PAUSE = 0.02

_PAUSE = threading.Event()


def eventually(condition: Callable[[], object], what: str = "the condition", seconds: float = WAIT_TIMEOUT) -> None:
    """Wait until a condition holds, and fail if it does not within `seconds`.

    The limit is far above what any machine needs: it ends a test that would hang, and says nothing about speed.
    """
    end = time.monotonic() + seconds
    pause = 0.001
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"did not come about within {seconds:g} s: {what}")
        _PAUSE.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
