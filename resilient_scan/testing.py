"""Helpers for tests of scanners and pipelines: a clock that stands still, a recorder, scanners that misbehave."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

from resilient_scan.context import ScanContext
from resilient_scan.errors import ScanError
from resilient_scan.events import Event
from resilient_scan.scanning import FunctionScanner, scanner

# Seconds of real time in which nothing happens on a `FakeClock` before it skips what scanners wait for: so that what is
# about to begin at this instant does, and where others are at work, so that they end at this instant.
IDLE, BUSY = 0.01, 0.05


class FakeClock:
    """A clock that moves only when a test moves it; thread-safe.

    Args:
        start: its initial time in epoch seconds; monotonic time starts at 0.
        auto: whether a sleep moves the clock instead of waiting, so that backoff costs no time, and neither does the
            wait for a provider's rate. Deadlines still pass only when the clock moves.
    """

    def __init__(self, start: float = 1_359_050_400.0, *, auto: bool = False) -> None:
        self._start = start
        self._auto = auto
        self._now = 0.0
        self._moved = threading.Condition()
        self._sleepers = 0
        self._next_skip = math.inf  # where it moves when nothing happens any more
        self._quiet = IDLE  # how long nothing has to happen before

    def monotonic(self) -> float:
        """Return the seconds since this clock was made."""
        return self._now

    def time(self) -> float:
        """Return epoch seconds."""
        return self._start + self._now

    def event(self) -> _FakeEvent:
        """Make a flag whose waits are measured on this clock."""
        return _FakeEvent(self._moved, self)

    def wait(self, until: float, wake: Any, /) -> None:
        """Wait until the clock reaches `until` or `wake` is set."""
        with self._moved:
            while not wake.is_set() and self._now < until:
                happened = self._moved.wait(None if self._next_skip == math.inf else self._quiet)
                if not happened and self._next_skip < math.inf:  # several wait here: another one may have moved it
                    self._now, self._next_skip = max(self._now, self._next_skip), math.inf
                    self._moved.notify_all()

    def sleep(self, until: float, wake: Any, /) -> None:
        """Wait in the same way, counted as a sleeper, or move the clock to `until` (`auto`)."""
        if not self._auto:
            self._rest(until, wake)
        elif not wake.is_set():
            with self._moved:
                self._now = max(self._now, until)
                self._moved.notify_all()

    def attend(self, until: float, wake: Any, /) -> None:
        """Wait in the same way for what another thread does: then the clock does not move (`auto`)."""
        if self._auto:
            self._rest(until, wake)
        else:
            self.sleep(until, wake)

    def _rest(self, until: float, wake: Any) -> None:
        with self._moved:
            self._sleepers += 1
            self._moved.notify_all()
        try:
            self.wait(until, wake)
        finally:
            with self._moved:
                self._sleepers -= 1

    def skip(self, until: float, /, *, idle: bool) -> None:
        """Move the clock to `until` (`auto`) when nothing has happened on it for a moment; a longer one unless idle."""
        if self._auto:
            with self._moved:
                self._next_skip, self._quiet = until, IDLE if idle else BUSY
                self._moved.notify_all()

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake every waiter whose time has come."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock does not go back, got {seconds!r}")
        with self._moved:
            self._now += seconds
            self._moved.notify_all()

    def wait_for_sleepers(self, count: int = 1, *, patience: float = 5.0) -> None:
        """Block until `count` threads sleep on this clock, for at most `patience` seconds of real time."""
        with self._moved:
            if not self._moved.wait_for(lambda: self._sleepers >= count, patience):
                raise TimeoutError(f"{self._sleepers} of {count} threads sleep on the clock after {patience:g}s")


class _FakeEvent:
    """A flag on a `FakeClock`."""

    def __init__(self, moved: threading.Condition, clock: FakeClock) -> None:
        self._moved = moved
        self._clock = clock
        self._set = False

    def set(self) -> None:
        with self._moved:
            self._set = True
            self._moved.notify_all()

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None, /) -> bool:
        until = None if timeout is None else self._clock.monotonic() + timeout
        with self._moved:
            self._moved.wait_for(lambda: self._set or (until is not None and self._clock.monotonic() >= until))
            return self._set


class Recorder:
    """A listener that keeps every event, in order of arrival."""

    def __init__(self) -> None:
        self.events_seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep one event."""
        self.events_seen.append(event)

    def of(self, *kinds: type[Event]) -> list[Any]:
        """Return the events of these classes."""
        return [event for event in self.events_seen if isinstance(event, kinds)]


def healthy(
    name: str, candidates: Iterable[Any] = (), *, pipeline: str = "test", **layers: Any
) -> FunctionScanner[..., Any]:
    """Make a scanner that answers at once."""
    answer = list(candidates)
    return scanner(name=name, pipeline=pipeline, **layers)(lambda _state: list(answer))


def broken(
    name: str,
    error: BaseException | None = None,
    *,
    pipeline: str = "test",
    **layers: Any,
) -> FunctionScanner[..., Any]:
    """Make a scanner that always raises `error`, by default a `ScanError` that says "HTTP 500 error"."""
    failure = ScanError("HTTP 500 error") if error is None else error

    def scan(_state: dict[str, Any]) -> None:
        raise failure

    return scanner(name=name, pipeline=pipeline, **layers)(scan)


def flapping(name: str, answers: Iterable[Any], *, pipeline: str = "test", **layers: Any) -> FunctionScanner[..., Any]:
    """Make a scanner that uses one of `answers` per attempt: it returns a list and raises an exception."""
    steps = iter(answers)

    def scan(_state: dict[str, Any]) -> Any:
        step = next(steps)
        if isinstance(step, BaseException):
            raise step
        return step

    return scanner(name=name, pipeline=pipeline, **layers)(scan)


def hanging(name: str, release: threading.Event, *, pipeline: str = "test", **layers: Any) -> FunctionScanner[..., Any]:
    """Make a scanner that hangs and ignores cancellation until `release` is set; then it finds nothing."""

    def scan(_state: dict[str, Any]) -> list[Any]:
        release.wait()
        return []

    return scanner(name=name, pipeline=pipeline, **layers)(scan)


def polite(name: str, seconds: float = 3600.0, *, pipeline: str = "test", **layers: Any) -> FunctionScanner[..., Any]:
    """Make a scanner that takes `seconds` and stops when it is cancelled."""

    def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.sleep(seconds)
        return []

    return scanner(name=name, pipeline=pipeline, **layers)(scan)
