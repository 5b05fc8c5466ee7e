"""What a thread pool works on, and the workers that do it."""

from __future__ import annotations

import concurrent.futures
import math
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from resilient_scan.layers.timeout import Abandoned

if TYPE_CHECKING:
    from resilient_scan.core.hangs import Hang, LateEnd

NEVER = math.inf
SHUT_DOWN = "the pool is shut down; it takes no more work"


class Place(Protocol):
    """Where a task runs: a worker of a pool, or a slot on an event loop."""

    def alarm(self, deadline: float, /) -> None:
        """Set another deadline for the task under way."""

    def set_mark(self, instant: float, /) -> None:
        """Call the task (`mark_passed`) at an instant before its deadline; infinite: not any more."""


class Task(Protocol):
    """Work for the pool. `run`, `expire` and `refuse` must not raise."""

    @property
    def name(self) -> str:
        """Whose work it is."""

    @property
    def frees_sockets(self) -> bool:
        """Whether a connection may be shut down that its thread waits for after `expire`."""

    @property
    def through(self) -> bool:
        """Whether its worker has done the work and is handing over, or has: the worker is free in a moment."""

    def start(self, now: float, place: Place, /) -> float | None:
        """Note that a worker begins it, and return its deadline; `None`: it is not wanted any more, do not run it."""

    def run(self) -> None:
        """Do the work; on the worker."""

    def mark_passed(self) -> None:
        """Note that the instant of the place's `set_mark` has come. On the watchdog's thread, so it must be quick."""

    def expire(self, thread: str, age: float, lateness: float, /) -> None:
        """Hand over without the work: the time is up. On the watchdog's thread, so it must be quick.

        Args:
            thread: the name of the worker's thread.
            age: seconds since the work began.
            lateness: seconds since its deadline.
        """

    @property
    def helpers(self) -> Sequence[threading.Thread]:
        """The threads that take part in the work besides its worker's, now."""

    def cut_off(self) -> None:
        """Note that a connection is shut down: what the thread returns from now on may be incomplete. Quick."""

    def returned(self) -> None:
        """Note that the thread is back after `expire`; on that thread, at once."""

    def abandon(self, thread: str, age: float, hint: str, /) -> None:
        """Report that the thread still runs `GRACE_PERIOD` seconds after `expire`; on a thread that may wait.

        Args:
            thread: its name.
            age: seconds since the work began.
            hint: what it does, if only a process could have been stopped in that; else empty.
        """

    def late(self, end: LateEnd, /) -> None:
        """Report that the work ended after `expire`; on a thread that may wait."""

    def refuse(self, reason: str, /) -> None:
        """Hand over without a start: every thread hangs, or the pool is shut down."""

    def stop(self) -> None:
        """Note that nobody will ask for the work any more; it may be under way."""


class Worker:
    """A thread of the pool and what it is doing; `deadline` is written by the thread and read by the watchdog.

    So is `mark`. Of the marks that have passed, the watchdog keeps the last one (`passed`), instead of taking it away:
    in this moment the thread may be setting the next one.
    """

    __slots__ = ("_look_by", "deadline", "expired", "hang", "mark", "passed", "replaced", "started", "task", "thread")

    def __init__(self, look_by: Callable[[float], None]) -> None:
        self._look_by = look_by
        self.thread: threading.Thread | None = None
        self.task: Task | None = None
        self.started: float = 0.0
        self.deadline: float = NEVER
        self.mark: float = NEVER
        self.passed: float = NEVER
        self.expired: bool = False  # its task's time is up, and the thread still runs
        self.hang: Hang | None = None
        self.replaced: bool = False  # and a new worker has its slot

    def alarm(self, deadline: float) -> None:
        """Set another deadline for the task under way; on its own thread."""
        self.deadline = deadline
        self._look_by(deadline)

    def set_mark(self, instant: float) -> None:
        """Call the task under way (`mark_passed`) at an instant; on its own thread."""
        self.mark = instant
        self._look_by(instant)

    @property
    def next_mark(self) -> float:
        """The mark that has not passed; infinite if there is none."""
        return self.mark if self.mark != self.passed else NEVER

    def describe(self, task: Task, now: float, frames: dict[int, Any], hint: str) -> Abandoned:
        """Return its line in the ledger; `frames` are all threads' current ones, by the threads' numbers."""
        frame = frames.get(self.thread.ident or 0) if self.thread is not None else None
        return Abandoned(
            name=task.name,
            thread=self.thread.name if self.thread is not None else "",
            age=now - self.started,
            holds_place=not self.replaced,
            stack="".join(traceback.format_stack(frame)) if frame is not None else "",
            hint=hint,
        )


class FutureTask:
    """A call without a time limit, behind a `Future`."""

    name: str = "submit"
    frees_sockets: bool = False

    def __init__(self, future: concurrent.futures.Future[Any], call: Callable[[], Any]) -> None:
        self._future = future
        self._call: Callable[[], Any] | None = call

    @property
    def through(self) -> bool:
        """Whether its result is there."""
        return self._future.done()

    @property
    def helpers(self) -> Sequence[threading.Thread]:
        """No thread helps it."""
        return ()

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

    def mark_passed(self) -> None:
        """Never called: it sets no mark."""

    def expire(self, thread: str, age: float, lateness: float, /) -> None:
        """Never called: there is no limit."""

    def cut_off(self) -> None:
        """Never called: there is no limit."""

    def returned(self) -> None:
        """Never called: there is no limit."""

    def abandon(self, thread: str, age: float, hint: str, /) -> None:
        """Never called: there is no limit."""

    def late(self, end: LateEnd, /) -> None:
        """Never called: there is no limit."""

    def stop(self) -> None:
        """Do nothing: a plain call cannot be stopped."""

    def refuse(self, reason: str, /) -> None:
        """Cancel the future, or give it the reason."""
        if reason is SHUT_DOWN:
            self._future.cancel()
        elif self._future.set_running_or_notify_cancel():
            self._future.set_exception(RuntimeError(reason))
