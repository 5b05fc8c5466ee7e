"""What a pool and its work know of each other: the task, the place of the worker that does it, the ledger's lines."""

from __future__ import annotations

import concurrent.futures
import math
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

NEVER = math.inf
SHUT_DOWN = "the pool is shut down; it takes no more work"


class Task(Protocol):
    """Work for the pool. `run`, `expire` and `refuse` must not raise."""

    @property
    def name(self) -> str:
        """Whose work it is."""

    @property
    def through(self) -> bool:
        """Whether its worker is done with it and hands over, or has: it is free in a moment."""

    def start(self, now: float, place: Place, /) -> float | None:
        """Note that a worker begins it, and return its deadline; `None`: nobody wants it any more, do not run it."""

    def run(self) -> None:
        """Do the work; on the worker."""

    def expire(self, thread: str, age: float, /) -> None:
        """Hand over without the work: the time is over. On the watchdog's thread, so it must be quick."""

    def late(self, age: float, /) -> None:
        """Note that the work ended after `expire`, `age` seconds after it began; on the worker."""

    def refuse(self, reason: str, /) -> None:
        """Hand over without a start: every thread hangs."""

    def stop(self) -> None:
        """Note that nobody will ask for the work any more; it may be under way."""


class Abandoned(msgspec.Struct, frozen=True):
    """A thread that did not stop in time and still runs.

    Attributes:
        name: of the task it works on.
        thread: its own name.
        age: seconds since it began the task.
        holds_place: whether it still takes a worker's place, because `max_abandoned` was reached.
        stack: where it is now, outermost call first, one text.
    """

    name: str
    thread: str
    age: float
    holds_place: bool
    stack: str


class Place:
    """One worker and what it is doing; `deadline` is written by the worker and read by the watchdog."""

    __slots__ = ("_look_by", "deadline", "expired", "replaced", "started", "task", "thread")

    def __init__(self, look_by: Callable[[float], None]) -> None:
        self._look_by = look_by
        self.thread: threading.Thread | None = None
        self.task: Task | None = None
        self.started = 0.0
        self.deadline = NEVER
        self.expired = False  # its task's time is over, and the thread still runs
        self.replaced = False  # and its place has been given to a new worker

    def alarm(self, deadline: float) -> None:
        """Set another deadline for the task under way; on its worker."""
        self.deadline = deadline
        self._look_by(deadline)


class Plain:
    """A call without a time limit, behind a `Future`."""

    name = "submit"

    def __init__(self, future: concurrent.futures.Future[Any], call: Callable[[], Any]) -> None:
        self._future = future
        self._call: Callable[[], Any] | None = call

    @property
    def through(self) -> bool:
        """Whether its result is there."""
        return self._future.done()

    def start(self, _now: float, _place: Place, /) -> float | None:
        """Begin, unless the caller cancelled its future."""
        return NEVER if self._future.set_running_or_notify_cancel() else None

    def run(self) -> None:
        """Call, and settle the future."""
        call, self._call = self._call, None
        assert call is not None  # noqa: S101 - a task runs once
        try:
            result = call()
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)

    def expire(self, thread: str, age: float, /) -> None:
        """Never called: there is no limit."""

    def late(self, age: float, /) -> None:
        """Never called: there is no limit."""

    def stop(self) -> None:
        """Do nothing: a call cannot be told."""

    def refuse(self, reason: str, /) -> None:
        """Cancel the future, or tell it why."""
        if reason is SHUT_DOWN:
            self._future.cancel()
        elif self._future.set_running_or_notify_cancel():
            self._future.set_exception(RuntimeError(reason))


def described(place: Place, task: Task, now: float, frames: dict[int, Any]) -> Abandoned:
    """Describe a hung thread; `frames` are all threads' current ones, by the threads' numbers."""
    thread = place.thread
    frame = frames.get(thread.ident or 0) if thread is not None else None
    return Abandoned(
        name=task.name,
        thread=thread.name if thread is not None else "",
        age=now - place.started,
        holds_place=not place.replaced,
        stack="".join(traceback.format_stack(frame)) if frame is not None else "",
    )
