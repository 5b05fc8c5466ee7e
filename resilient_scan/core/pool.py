"""The thread pool: hands over on time, leaves hung threads behind, never makes the interpreter wait.

Python cannot stop a thread that sits in a C call. So a task has a time limit, counted from the moment a worker begins
it. When it is over, the task is told (`expire`) and hands over its result on time; its thread is *abandoned*: kept in
a ledger, and its place given to a new worker at once. At most `max_abandoned` places are given away like that; beyond
it a hung thread keeps its place until it ends, and when no place is left, what waits is refused (`refuse`).
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import heapq
import itertools
import math
import sys
import threading
import traceback
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import msgspec

from resilient_scan.clock import Clock, SystemClock, Wake

# What a pool and its work know of each other: the task, the place of the worker that does it, the ledger's lines.

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


T = TypeVar("T")
PATIENCE = 0.05  # seconds between two looks at whether a worker that is waited for hangs


class ThreadPool(concurrent.futures.ThreadPoolExecutor):
    """A `ThreadPoolExecutor` whose workers are its own: daemons with a time limit per task.

    Usable wherever an executor is expected: `submit` runs without a limit. At the end of the program it does not wait
    for work that is still under way.

    Args:
        max_workers: threads at work at a time, >= 1.
        max_abandoned: hung threads whose place is given to a new worker, >= 0.
        clock: what deadlines are measured on.
        name: prefix of the threads' names.
    """

    def __init__(
        self, max_workers: int, *, max_abandoned: int = 16, clock: Clock | None = None, name: str = "resilient-scan"
    ) -> None:
        super().__init__(max_workers)  # starts nothing: threads are made by its own `submit` only
        self._most = max_workers
        self._max_abandoned = max_abandoned
        self._clock: Clock = clock or SystemClock()
        self._name = name
        self._numbers = itertools.count()
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._mutex = threading.Lock()
        self._places: set[Place] = set()  # workers, at most `_most`
        self._hung: set[Place] = set()  # expired and still running, with or without a place
        self._unfinished = 0  # tasks submitted and not ended, apart from those of replaced workers
        self._closed = False
        self._wake: Wake = self._clock.event()
        self._next_look = NEVER
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._watchdog: threading.Thread | None = None

    # what a user of executors knows

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run `fn(*args, **kwargs)` on a worker, without a time limit."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        variables = contextvars.copy_context()
        self.execute(Plain(future, lambda: variables.run(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; what is queued still runs unless `cancel_futures`.

        With `wait`, wait for the workers to end, though never for a hung one.
        """
        with self._mutex:
            if not self._closed:
                self._closed = True
                for _ in self._places:
                    self._queue.put(None)
            workers = [place for place in self._places if not place.expired]
        if cancel_futures:
            self._refuse_queued(SHUT_DOWN)
        self._wake.set()
        if wait:
            for place in workers:
                thread = place.thread
                while thread is not None and thread is not threading.current_thread() and thread.is_alive():
                    if place.expired:
                        break
                    thread.join(PATIENCE)

    # what the runner adds

    def stop(self) -> None:
        """Shut down, refuse what is queued, and tell what is under way to stop; wait for nothing."""
        self.shutdown(wait=False, cancel_futures=True)
        with self._mutex:
            tasks = [place.task for place in self._places | self._hung]
        for task in tasks:
            if task is not None:
                task.stop()

    def execute(self, task: Task) -> None:
        """Queue a task.

        Raises:
            RuntimeError: the pool is shut down, or not even one thread can be started.
        """
        with self._mutex:
            if self._closed:
                raise RuntimeError(SHUT_DOWN)
            self._unfinished += 1
            stuck = bool(self._hung) and self._is_stuck()
            if not stuck:
                if len(self._places) < min(self._most, self._unfinished):
                    self._hire_wanted()
                if not self._places:
                    self._unfinished -= 1
                    raise RuntimeError("no thread can be started on this machine just now")
                self._queue.put(task)
        if stuck:
            self._refuse(task)

    def at(self, instant: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` (quick, it must not raise) on the watchdog's thread at `instant`; return what takes it back."""
        entry = (instant, next(self._numbers), call)
        with self._mutex:
            heapq.heappush(self._timers, entry)
            self._watch()
        self.look_by(instant)
        return lambda: self._forget(entry)

    def abandoned(self) -> list[Abandoned]:
        """List the threads that did not stop in time and still run, oldest first."""
        with self._mutex:
            hung = [(place, place.task) for place in sorted(self._hung, key=lambda place: place.started)]
        now, frames = self._clock.monotonic(), sys._current_frames()  # noqa: SLF001 - documented, and the only way to a thread's stack
        return [described(place, task, now, frames) for place, task in hung if task is not None]

    def counts(self) -> dict[str, int]:
        """Return how many threads are `busy`, `idle` and `abandoned`."""
        with self._mutex:
            busy = sum(place.task is not None and not place.expired for place in self._places)
            hung_places = len(self._hung & self._places)
            return {"busy": busy, "idle": len(self._places) - busy - hung_places, "abandoned": len(self._hung)}

    @property
    def queued(self) -> int:
        """How many tasks wait for a worker."""
        with self._mutex:
            return 0 if self._closed else self._queue.qsize()

    @property
    def free(self) -> int:
        """How many further tasks could begin now; a worker that is just handing over is as good as free."""
        with self._mutex:
            at_work = [place.task for place in self._places if place.task is not None and not place.expired]
            return max(0, self._most - self._unfinished + sum(task.through for task in at_work))

    def why_stuck(self) -> str | None:
        """Say why no work is taken, where every worker hangs and none can be replaced."""
        with self._mutex:
            return self._reason() if self._is_stuck() else None

    def look_by(self, instant: float) -> None:
        """See to it that the watchdog looks at the deadlines no later than at `instant`.

        The watchdog sets `_next_look` to infinity before it looks at the places. So either it sees a deadline that was
        set before this call, or this call sees the infinity (or a later look) and wakes it.
        """
        if instant < self._next_look:
            self._wake.set()

    # workers

    def _hire_wanted(self) -> None:
        """Start the workers that the queued work can use; under the mutex.

        A machine that has no thread left gets by with the workers there are, and is asked again a little later.
        """
        try:
            while self._unfinished > len(self._places) and len(self._places) < self._most:
                self._hire()
        except RuntimeError:
            again = self._clock.monotonic() + 0.1
            heapq.heappush(self._timers, (again, next(self._numbers), self._fill_places))
            self._wake.set()

    def _hire(self) -> None:
        place = Place(self.look_by)
        name = f"{self._name}-{next(self._numbers)}"
        place.thread = threading.Thread(target=self._work, args=(place,), name=name, daemon=True)
        self._watch()
        place.thread.start()
        self._places.add(place)

    def _work(self, place: Place) -> None:
        while (task := self._queue.get()) is not None:
            started = self._clock.monotonic()
            deadline = task.start(started, place)
            if deadline is not None:
                place.task = task
                place.started = started
                place.deadline = deadline
                if deadline < self._next_look:  # see `look_by`
                    self._wake.set()
                task.run()
            if not self._finish(place, task):
                return
            del task  # else an idle worker keeps its last task, and all that this holds, alive
        with self._mutex:
            self._places.discard(place)
        self._wake.set()  # the watchdog of a closed pool ends with the last worker

    def _finish(self, place: Place, task: Task) -> bool:
        """Note that a worker is through with its task; `False`: its place is taken, the thread ends."""
        with self._mutex:
            place.deadline = NEVER
            place.task = None
            if not place.expired:
                self._unfinished -= 1
                return True
            place.expired = False
            self._hung.discard(place)
            if not place.replaced:
                self._unfinished -= 1
        task.late(self._clock.monotonic() - place.started)
        self._fill_places()
        return not place.replaced

    # the watchdog

    def _watch(self) -> None:
        """Start the watchdog if there is none; under the mutex."""
        if self._watchdog is None:
            watchdog = threading.Thread(target=self._keep_watch, name=f"{self._name}-watchdog", daemon=True)
            watchdog.start()
            self._watchdog = watchdog

    def _keep_watch(self) -> None:
        while True:
            self._wake.clear()  # before the look around: the last worker leaves first, and wakes us then
            if self._is_over():
                return
            self._next_look = NEVER  # "looking": a deadline set from here on wakes us, see `_work`
            now = self._clock.monotonic()
            self._ring(now)
            over = self._places_over(now)
            for place in over:
                self._expire(place, now)
            if over:
                self._fill_places()
            self._next_look = upcoming = self._upcoming()
            if upcoming > now:
                self._clock.wait(upcoming, self._wake)

    def _is_over(self) -> bool:
        with self._mutex:
            if self._closed and not self._places:  # what timers are left are nobody's
                self._watchdog = None
                return True
            return False

    def _places_over(self, now: float) -> list[Place]:
        with self._mutex:
            return [place for place in self._places if place.deadline <= now and not place.expired]

    def _upcoming(self) -> float:
        with self._mutex:
            deadlines = min((place.deadline for place in self._places if not place.expired), default=NEVER)
            return min(deadlines, self._timers[0][0]) if self._timers else deadlines

    def _ring(self, now: float) -> None:
        while True:
            with self._mutex:
                if not self._timers or self._timers[0][0] > now:
                    return
                call = heapq.heappop(self._timers)[2]
            call()

    def _forget(self, entry: tuple[float, int, Callable[[], None]]) -> None:
        with self._mutex:
            if entry in self._timers:
                self._timers.remove(entry)
                heapq.heapify(self._timers)

    def _expire(self, place: Place, now: float) -> None:
        with self._mutex:
            task = place.task
            if task is None or place.expired or place.deadline > now:  # it ended between our look and the lock
                return
            place.expired = True
            place.deadline = NEVER
            self._hung.add(place)
        thread = place.thread.name if place.thread is not None else ""
        task.expire(thread, now - place.started)

    def _fill_places(self) -> None:
        """Give places of hung threads to new workers, up to `max_abandoned`; refuse what waits if none is left."""
        with self._mutex:
            given = len(self._hung - self._places)
            for place in [p for p in self._places if p.expired][: max(0, self._max_abandoned - given)]:
                place.replaced = True
                self._places.discard(place)
                self._unfinished -= 1
            self._hire_wanted()
            stuck = self._is_stuck()
        if self._closed:
            self._wake.set()  # the watchdog may be the last to go
        if stuck:
            self._refuse_queued(self._reason())

    # when every thread hangs

    def _is_stuck(self) -> bool:
        """Say whether no place is left and none can be given away; under the mutex."""
        return (
            len(self._places) >= self._most
            and all(place.expired for place in self._places)
            and len(self._hung - self._places) >= self._max_abandoned
        )

    def _reason(self) -> str:
        return (
            f"all {self._most} workers hang and {self._max_abandoned} hung threads were already replaced "
            "(max_abandoned); work is taken again when one of them ends"
        )

    def _refuse(self, task: Task) -> None:
        with self._mutex:
            self._unfinished -= 1
        task.refuse(self._reason())

    def _refuse_queued(self, reason: str) -> None:
        while True:
            try:
                task = self._queue.get_nowait()
            except Empty:
                return
            if task is None:  # a worker's order to end
                self._queue.put(None)
                return
            with self._mutex:
                self._unfinished -= 1
            task.refuse(reason)
