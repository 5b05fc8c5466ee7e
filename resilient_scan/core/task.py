"""What a thread pool works on: tasks, the workers that do them, and the record of those that hang."""

from __future__ import annotations

import concurrent.futures
import math
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from resilient_scan._text import in_seconds
from resilient_scan.engines.sockets import Release
from resilient_scan.events import Event, LateCompletion
from resilient_scan.layers.timeout import Abandoned, HungThreads

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


class LateEnd(NamedTuple):
    """How work ended after its time.

    Attributes:
        name: of the task.
        thread: the name of its thread.
        age: seconds from its beginning to its end.
        abandoned: whether it was reported as abandoned before.
        by_sockets: whether it ended because a connection was shut down.
        hint: what it did, if only a process could have been stopped in that; else empty.
    """

    name: str
    thread: str
    age: float
    abandoned: bool
    by_sockets: bool
    hint: str = ""

    def report(
        self,
        hung: HungThreads,
        send: Callable[[Event], object],
        method: str,
        outcome: str,
        run_id: str,
        attempt: int = 0,
    ) -> None:
        """Enter it into the ledger and tell listeners; on a thread that may wait."""
        name, thread, age = self.name, self.thread, self.age
        hung.record(Abandoned(name, thread, age, False, "", method, outcome, run_id, attempt, self.hint))
        send(LateCompletion(name, age, outcome, run_id, attempt, method, self.abandoned))


class Hang:
    """A thread whose task's time is up, until it is known whether it counts as abandoned.

    A cooperative scanner returns a few milliseconds after its deadline. It has done all that it was asked to, and is
    not reported as hung. So the decision is made `GRACE_PERIOD` seconds later: by `decide`, or before, at the end of
    the pool. While connections are being shut down it waits a little longer. The owner holds a lock around each call.

    Args:
        task: its time is up.
        thread: the name of its thread.
        began: when its work began, monotonic.
        native_id: the thread's number in the kernel; 0 for a coroutine, which has none of its own.
        lateness: seconds after its deadline at which the watchdog came.

    Attributes:
        release: what tries to free the thread, if anything does, until it is back.
        held: seconds after the deadline for which it has held the interpreter's lock. It did not stop then, whatever it
            has done by the time the watchdog could look.
        hint: what it did when it was abandoned, if only a process could have been stopped in that, or an empty text;
            `None`: nobody has looked yet.
    """

    __slots__ = (
        "_by_sockets",
        "_decided",
        "_ended_after",
        "began",
        "held",
        "hint",
        "lateness",
        "native_id",
        "release",
        "task",
        "thread",
    )

    def __init__(self, task: Task, thread: str, began: float, native_id: int = 0, lateness: float = 0.0) -> None:
        self.task = task
        self.thread = thread
        self.began = began
        self.native_id = native_id
        self.lateness = lateness
        self.held = 0.0
        self.hint: str | None = None
        self.release: Release | None = None
        self._decided = False
        self._ended_after: float | None = None
        self._by_sockets = False

    @property
    def hangs(self) -> bool:
        """Whether the work is still under way; may be read without the lock.

        A worker that hands over is not hung. It may wait for a connection, that of a store to which a late answer goes,
        but that one is ours.
        """
        return self._ended_after is None and not self.task.through

    @property
    def helpers(self) -> Sequence[threading.Thread]:
        """The threads that take part in the work besides its worker's, now."""
        return self.task.helpers

    def cut_off(self) -> None:
        """Note that what the thread returns from now on may be incomplete."""
        self.task.cut_off()

    def end(self, now: float) -> Callable[[], None] | None:
        """Note that the thread is back; return what is to be reported now, if the decision was made."""
        self._ended_after = now - self.began
        release, self.release = self.release, None  # they know each other: else both stay until a garbage collection
        self._by_sockets = release is not None and release.freed(now)
        return self._late(self._ended_after, abandoned=True) if self._decided else None

    def _late(self, age: float, *, abandoned: bool) -> Callable[[], None]:
        hint = self.hint_if(in_c_call=False)
        return partial(self.task.late, LateEnd(self.task.name, self.thread, age, abandoned, self._by_sockets, hint))

    def _abandon(self, age: float, ended_after: float | None) -> None:
        """Report that the thread does not come back, or has not in time; on a thread that may wait."""
        self.hint = self.hint_if(in_c_call=False)
        self.task.abandon(self.thread, age, self.hint)
        if ended_after is not None:
            self._late(ended_after, abandoned=True)()

    def hint_if(self, *, in_c_call: bool) -> str:
        """Say what the thread did, if only a process could have been stopped in that; else nothing."""
        if self.hint is not None:
            return self.hint
        if self.held:
            return f"held the interpreter's lock for {in_seconds(self.held)}s"
        return "sat in a C call" if in_c_call else ""

    def decide(self, now: float) -> Callable[[], None] | None:
        """Return what is to be reported, the first time."""
        if self._decided:
            return None
        self._decided = True
        if self._ended_after is not None and not self.held:
            return self._late(self._ended_after, abandoned=False)
        return partial(self._abandon, now - self.began, self._ended_after)


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
