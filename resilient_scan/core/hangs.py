"""Threads that hang: what is done about a task whose time is up, until its thread is back or reported as abandoned.

    expire ---> undecided ----- back within the grace period ------> reported as late
                    |  its connections are shut down meanwhile          ^
                    | the grace period has passed                       | back after all
                    v                                                   |
                abandoned: reported, and listed ------------------------+

`Hangs` belongs to a pool: its mutex guards what is decided, its watchdog calls what is due, its workers report.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from resilient_scan._log import log as _log
from resilient_scan._text import in_seconds
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.core.task import NEVER, Task
from resilient_scan.engines.sockets import FIRST_LOOK, LOOK_INTERVAL, MAX_TIME, Release
from resilient_scan.engines.stuck import HELD_AFTER, LockWatch, in_c_calls
from resilient_scan.events import Event, LateCompletion
from resilient_scan.layers.timeout import GRACE_PERIOD, Abandoned, HungThreads

_frames_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not find it locked for ever
    os.register_at_fork(
        before=_frames_lock.acquire, after_in_parent=_frames_lock.release, after_in_child=_frames_lock.release
    )
FREEING_TIME = 0.002  # seconds that the watchdog may try to free threads for until it looks at the deadlines again


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


class Hangs:
    """The hung threads of one pool, and the hung coroutines of its lane.

    Args:
        mutex: the pool's.
        clock: what deadlines are measured on.
        set_timer: has the watchdog call a function at an instant; under the mutex.
        run_soon: runs a function on a thread that may be made to wait.
    """

    def __init__(
        self,
        mutex: threading.Lock,
        clock: Clock,
        set_timer: Callable[[float, Callable[[], None]], None],
        run_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self._mutex = mutex
        self._clock = clock
        self._set_timer = set_timer
        self._run_soon = run_soon
        self._undecided: dict[Hang, None] = {}  # in the order in which their time was up
        self._reports: deque[tuple[Hang, Callable[[], None]]] = deque()  # decided, and not made
        self._numbers = itertools.count()
        self._releases: list[tuple[float, int, Release]] = []  # when to go on with which; the watchdog's alone
        # On another clock than the machine's, lateness says nothing about threads.
        self._lock_watch = LockWatch() if isinstance(clock, SystemClock) else None

    def add(self, task: Task, thread: str, began: float) -> Hang:
        """Report after the grace period that a task hangs which is not on a worker; on the watchdog's thread."""
        hang = Hang(task, thread, began)
        with self._mutex:
            self.note(hang, self._clock.monotonic())
        return hang

    def ended(self, hang: Hang) -> Callable[[], None] | None:
        """Note that such a task has ended; return what is to be reported now."""
        with self._mutex:
            return hang.end(self._clock.monotonic())

    def note(self, hang: Hang, now: float, thread: threading.Thread | None = None) -> None:
        """Report a hung thread after the grace period, or its return within it. Under the mutex.

        Args:
            hang: the thread, and its task.
            now: the instant.
            thread: given where connections may be shut down that it waits for.
        """
        if thread is not None:
            hang.release = Release(thread, hang, now, current_frames)
            heapq.heappush(self._releases, (now + FIRST_LOOK, next(self._numbers), hang.release))
        self._undecided[hang] = None
        self._set_timer(now + GRACE_PERIOD, partial(self._decide, hang))

    def _decide(self, hang: Hang) -> None:
        with self._mutex:
            now, release = self._clock.monotonic(), hang.release
            if release is not None and hang.hangs and release.under_way and now < release.report_at:
                self._set_timer(release.report_at, partial(self._decide, hang))
                return
            report = hang.decide(now)
            self._undecided.pop(hang, None)
            first = report is not None and not self._reports
            if report is not None:
                self._reports.append((hang, report))
        if first:
            self._run_soon(self.report)

    def decide_all(self) -> None:
        """Decide about all of them, for the pool ends; `report` says what. Under the mutex."""
        undecided, self._undecided = self._undecided, {}
        now = self._clock.monotonic()
        reports = [(hang, hang.decide(now)) for hang in undecided]
        self._reports.extend((hang, report) for hang, report in reports if report is not None)

    def report(self) -> None:
        """Report what was decided about hung threads.

        What they do is looked at for all of them in one go. Such a look keeps the interpreter's lock for a moment: for
        hundreds that hang at once, one after the other, it would hold up the deadlines of as many others.
        """
        taken: list[tuple[Hang, Callable[[], None]]] = []
        with suppress(IndexError):  # another thread may take some of them
            while True:
                taken.append(self._reports.popleft())
        unknown = {hang for hang, _ in taken if hang.hint is None and hang.native_id and hang.hangs}
        in_c = in_c_calls([hang.native_id for hang in unknown]) if unknown else frozenset()
        for hang, report in taken:
            hang.hint = hang.hint_if(in_c_call=hang in unknown and hang.native_id in in_c)
            guarded(report, "a hung thread could not be reported")

    def look_for_the_lock(self, hung: Sequence[Hang], now: float, at_work: Callable[[], Iterable[int]]) -> None:
        """Report at once the thread that has held the interpreter's lock, and with it this thread, for long.

        It may be back by now, and would count as cooperative. All others come first: they are late already.

        Args:
            hung: what the watchdog has just found.
            now: when it did.
            at_work: returns the numbers of all threads that may have held the lock, by the kernel's count.
        """
        if self._lock_watch is None:
            return
        lateness = max((hang.lateness for hang in hung), default=0.0)
        if lateness >= HELD_AFTER:
            holder = self._lock_watch.holder({*at_work(), *(hang.native_id for hang in hung)}, lateness)
            with self._mutex:
                for hang in hung:
                    if hang.native_id == holder:
                        hang.held = lateness
                        self._set_timer(now, partial(self._decide, hang))
        self._lock_watch.note()

    @property
    def next_step(self) -> float:
        """When to go on with freeing one; infinite if there is none to be freed."""
        return self._releases[0][0] if self._releases else NEVER

    def go_on_freeing(self, monotonic: Callable[[], float]) -> None:
        """Go on to free hung threads, for a moment only: hundreds of them must not hold up the deadlines of others."""
        now = monotonic()
        until = now + FREEING_TIME
        while self._releases and self._releases[0][0] <= now < until:
            release = heapq.heappop(self._releases)[2]
            again = guarded(partial(release.step, now), "a hung thread could not be looked at")
            now = monotonic()
            if again is None:
                release.stop()
            else:
                heapq.heappush(self._releases, (again, next(self._numbers), release))

    def free_the_last(self) -> None:
        """Go on to free hung threads of a pool that is closed, for a second at most.

        A run ends at the deadline of a scanner that hangs, before the first look at its thread, and many a runner is
        closed right after its run. The time is the machine's: nobody advances a test's clock any more.
        """
        began, now = time.monotonic(), self._clock.monotonic()
        while self._releases and time.monotonic() < began + MAX_TIME:
            self.go_on_freeing(lambda: now + time.monotonic() - began)
            time.sleep(LOOK_INTERVAL)
        for _, _, release in self._releases:
            release.stop()
        self._releases.clear()


def current_frames() -> dict[int, Any]:
    """Return the innermost frame of every thread, by the thread's number.

    On Python 3.11 `sys._current_frames` holds the interpreter's lock on the list of threads while it makes objects. If
    that starts a garbage collection, and the collection frees the last reference to a thread's local data, it waits for
    the same lock, for ever, and the whole process with it. So no collection may start in here.
    """
    with _frames_lock:  # else one caller could switch the collector on again in the middle of the other's call
        collects = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()  # noqa: SLF001 - documented, and the only way to a thread's stack
        finally:
            if collects:
                gc.enable()


def guarded(call: Callable[[], Any], what: str, *, failed: Any = None) -> Any:
    """Call, and log what it raises: the caller serves others too."""
    try:
        return call()
    except BaseException:
        _log.exception("%s", what)
        return failed
