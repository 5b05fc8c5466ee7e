"""What a thread pool works on: tasks, the workers that do them, and the record of those that hang."""

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


class Place(Protocol):
    """Where a task runs: a worker of a pool, or a slot on an event loop."""

    def alarm(self, deadline: float, /) -> None:
        """Set another deadline for the task under way."""


class Task(Protocol):
    """Work for the pool. `run`, `expire` and `refuse` must not raise."""

    @property
    def name(self) -> str:
        """Whose work it is."""

    @property
    def through(self) -> bool:
        """Whether its worker has done the work and is handing over, or has: the worker is free in a moment."""

    def start(self, now: float, place: Place, /) -> float | None:
        """Note that a worker begins it, and return its deadline; `None`: it is not wanted any more, do not run it."""

    def run(self) -> None:
        """Do the work; on the worker."""

    def expire(self, thread: str, age: float, lateness: float, /) -> None:
        """Hand over without the work: the time is up. On the watchdog's thread, so it must be quick.

        Args:
            thread: the name of the worker's thread.
            age: seconds since the work began.
            lateness: seconds since its deadline.
        """

    def late(self, age: float, /) -> None:
        """Note that the work ended after `expire`, `age` seconds after it began; on the worker."""

    def refuse(self, reason: str, /) -> None:
        """Hand over without a start: every thread hangs, or the pool is shut down."""

    def stop(self) -> None:
        """Note that nobody will ask for the work any more; it may be under way."""


class Abandoned(msgspec.Struct, frozen=True):
    """A thread that did not stop in time and still runs.

    Attributes:
        name: of the task it works on.
        thread: its own name.
        age: seconds since it began the task.
        holds_place: whether it still takes a worker's slot, because `max_abandoned` was reached.
        stack: where it is now, outermost call first, one text.
    """

    name: str
    thread: str
    age: float
    holds_place: bool
    stack: str


class Worker:
    """A thread of the pool and what it is doing; `deadline` is written by the thread and read by the watchdog."""

    __slots__ = ("_look_by", "deadline", "expired", "replaced", "started", "task", "thread")

    def __init__(self, look_by: Callable[[float], None]) -> None:
        self._look_by = look_by
        self.thread: threading.Thread | None = None
        self.task: Task | None = None
        self.started = 0.0
        self.deadline = NEVER
        self.expired = False  # its task's time is up, and the thread still runs
        self.replaced = False  # and a new worker has its slot

    def alarm(self, deadline: float) -> None:
        """Set another deadline for the task under way; on its own thread."""
        self.deadline = deadline
        self._look_by(deadline)

    def describe(self, task: Task, now: float, frames: dict[int, Any]) -> Abandoned:
        """Return its line in the ledger; `frames` are all threads' current ones, by the threads' numbers."""
        frame = frames.get(self.thread.ident or 0) if self.thread is not None else None
        return Abandoned(
            name=task.name,
            thread=self.thread.name if self.thread is not None else "",
            age=now - self.started,
            holds_place=not self.replaced,
            stack="".join(traceback.format_stack(frame)) if frame is not None else "",
        )


class FutureTask:
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

    def expire(self, thread: str, age: float, lateness: float, /) -> None:
        """Never called: there is no limit."""

    def late(self, age: float, /) -> None:
        """Never called: there is no limit."""

    def stop(self) -> None:
        """Do nothing: a plain call cannot be stopped."""

    def refuse(self, reason: str, /) -> None:
        """Cancel the future, or give it the reason."""
        if reason is SHUT_DOWN:
            self._future.cancel()
        elif self._future.set_running_or_notify_cancel():
            self._future.set_exception(RuntimeError(reason))
