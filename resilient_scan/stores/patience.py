"""How long the calling thread waits for others that have locked a store: a run must end when it said it would."""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType

BRIEF = 0.5  # seconds, at a time, on the threads of runs and scans
LEAST = 0.05  # seconds, however late it is: what others lock in passing is waited for


class _Here(threading.local):
    seconds = math.inf
    until = math.inf
    patient = False


_here = _Here()


def left(most: float) -> float:
    """Return for how many seconds the calling thread may wait now, at most so many."""
    return min(most, max(LEAST, min(_here.seconds, _here.until - time.monotonic())))


def is_patient() -> bool:
    """Say whether the calling thread asks a store that was just seen to be away all the same."""
    return _here.patient


def be_brief() -> None:
    """Let the calling thread wait half a second at a time, from now on."""
    _here.seconds = BRIEF


class Brief:
    """Let a thread wait half a second at a time, and hardly at all after an instant of `time.monotonic`."""

    def __init__(self, until: float = math.inf) -> None:
        self._until = until

    def __enter__(self) -> None:
        self._before = (_here.seconds, _here.until)
        _here.seconds, _here.until = BRIEF, self._until

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.seconds, _here.until = self._before


class Patient:
    """Let a thread ask for as long as it takes, on behalf of a person, or of what must not be lost."""

    def __enter__(self) -> None:
        self._before = (_here.seconds, _here.until)
        _here.seconds = _here.until = math.inf
        _here.patient = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.seconds, _here.until = self._before
        _here.patient = False
