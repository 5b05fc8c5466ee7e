"""The lane: one event loop, on a thread of its own, for all `async def` scanners of a runner.

An execution takes no worker here, only a task on the loop; its layers run in a greenlet and suspend where they wait
(`engines/greenlets.py`). So thousands wait at a time for the price of one thread.

    execute ---> queue ---> task: start, run -------------------------> the next of the queue
                              |                                           ^
                              | deadline: the watchdog calls expire;      |
                              v the task is cancelled                     |
                            hung (in the ledger) --- it ends: late -------+

**Deadlines are kept outside the loop**, by the pool's watchdog: a loop that is blocked keeps none. And what blocks the
loop is not charged to those that only wait for it. A scanner that calls `time.sleep(2)` in a coroutine stops 500
others for two seconds. Were their deadlines left alone, all of them would be timeouts and open their breakers, although
none of their sources was slow. So time beyond `FREE_TIME` that one step, or one turn of the loop, takes is added to the
deadlines of all others. That happens at the end of the step, before any other code runs that could find its time up.
While the loop is blocked, the watchdog acts on nobody but the one whose step blocks it.

**Blame.** If the watchdog finds the loop in the same step at two looks, `BLAME_AFTER` seconds into it, the scanner
whose step that is leaves the lane, and is named: from then on it takes a worker and a loop of its own. Two looks are
needed because a thread elsewhere may hold the interpreter's lock. Then the step looks long as well, but nobody can look
at it twice: the watchdog needs the lock, too.

A loop that stays blocked for `LOST_AFTER` seconds, and three times as long as any of its executions may take, is given
up like a hung thread. What was on it goes on in a new loop, as a further attempt where `Retry` allows one.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from resilient_scan import _suspend
from resilient_scan.clock import Clock
from resilient_scan.core.pool import ThreadPool, current_frames, guarded
from resilient_scan.core.task import NEVER, SHUT_DOWN, Abandoned, Hang, Task
from resilient_scan.engines.greenlets import GreenletCoroutine
from resilient_scan.engines.loop import FREE_TIME, Hub, LaneLoop, Loops

_LIBRARY = f"{Path(threading.__file__).parent}{os.sep}"
_OURS = f"{Path(__file__).parents[1]}{os.sep}"
LOOK_INTERVAL = 0.05  # seconds between two looks at whether the loop turns
MIN_LOOK_INTERVAL = 0.005  # seconds between two looks at deadlines that a blocked loop could not meet
BLAME_AFTER = 0.25  # seconds of one step, after which its scanner is named
LOST_AFTER = 5.0  # seconds without a turn, at least, after which a loop is given up
LOST_TIMES = 3  # and as many times the longest timeout on it


class LaneTask(Task, Protocol):
    """Work for the lane; a pool can do it as well."""

    @property
    def total(self) -> float:
        """Seconds that it may take."""

    def postpone(self, seconds: float, /) -> None:
        """Move its deadlines: for those seconds it could do nothing, because another one blocked the loop."""

    def blocks(self, seconds: float, where: str, /) -> None:
        """Note that it has blocked the loop for `seconds`, and where it is; on the watchdog's thread."""

    def lose(self, reason: str, /) -> None:
        """Go on elsewhere, or end: the loop it was on is given up. On the watchdog's thread."""


class Slot:
    """An execution on the loop: what a worker is in a pool."""

    __slots__ = ("_lane", "children", "deadline", "expired", "handle", "hang", "loop", "started", "task", "work")

    def __init__(self, lane: Lane, loop: LaneLoop, task: LaneTask) -> None:
        self._lane = lane
        self.loop: LaneLoop = loop
        self.task: LaneTask = task
        self.started: float = 0.0
        self.deadline: float = NEVER
        self.expired: bool = False  # its time is up, and it still runs
        self.hang: Hang | None = None
        self.children: set[asyncio.Task[Any]] = set()  # tasks that the scanner has started
        self.work: Any = None  # the scanner's coroutine, while it runs
        self.handle: asyncio.Task[Any] | None = None

    def alarm(self, deadline: float) -> None:
        """Set another deadline for the task under way."""
        self._lane.watch(self, deadline)

    def enter(self) -> None:
        """Note that a step of it begins; on the loop's thread."""
        self.loop.begin_step(self)

    def leave(self) -> None:
        """Note that the step has ended, and charge nobody else for it."""
        self.loop.end_step(self)

    def run(self) -> None:
        """Do the work, in a greenlet."""
        try:
            self.task.run()
        finally:
            self._lane.finish(self)

    def describe(self, now: float, frames: dict[int, Any]) -> Abandoned:
        """Return its line in the ledger."""
        if self.loop.stepping is self:  # it does not wait: it blocks the loop
            stack = "".join(traceback.format_stack(frames.get(self.loop.thread_id)))
        else:
            stack = "".join(traceback.StackSummary.from_list(awaiting(self.work)).format())
        return Abandoned(self.task.name, self.loop.name, now - self.started, holds_place=False, stack=stack)


class Lane:
    """Takes executions of `async def` scanners, any number of which may wait at a time.

    Args:
        most: executions under way at a time; more are queued. Those that hang do not count.
        pool: whose watchdog keeps the deadlines, and whose threads send events.
        call_pool: whose threads take blocking calls.
        loops: learns when the last coroutine has ended.
        clock: what deadlines are measured on.
    """

    def __init__(self, most: int, pool: ThreadPool, call_pool: ThreadPool, loops: Loops, clock: Clock) -> None:
        self._most = most
        self._pool = pool
        self._call_pool = call_pool
        self._loops = loops
        self._clock = clock
        self._lock = threading.Lock()  # for everything below
        self._numbers = itertools.count(1)
        self._loop: LaneLoop | None = None
        self._queue: deque[LaneTask] = deque()
        self._called = False  # whether the loop has been asked to look at the queue
        self._slots: set[Slot] = set()
        self._hung: set[Slot] = set()
        self._deadlines: list[tuple[float, int, Slot]] = []  # a heap; entries of slots that have ended stay in it
        self._next_look = NEVER
        self._last_step: tuple[Any, float] | None = None  # the one that the last look found, and since when it runs
        self._blamed: tuple[Any, float] | None = None
        self._closed = False

    # from any thread

    def execute(self, task: LaneTask) -> None:
        """Queue a task.

        Raises:
            RuntimeError: the lane is closed, or no thread can be started for its loop.
            OSError: the process has no descriptor left for a loop.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(SHUT_DOWN)
            loop = self._running_loop()
            self._queue.append(task)
            called, self._called = self._called, True
        if not called:
            _call(loop, self._admit)

    def _running_loop(self) -> LaneLoop:
        """Return the loop, and start one if there is none. Under the lock."""
        if self._loop is None:
            loop = LaneLoop(f"resilient-scan-loop-{next(self._numbers)}", self._charge)
            thread = threading.Thread(target=self._run, args=(loop,), name=loop.name, daemon=True)
            self._loops.enter()
            try:
                thread.start()
            except RuntimeError:
                self._loops.leave()
                loop.close()
                raise
            self._loop = loop
        return self._loop

    def watch(self, slot: Slot, deadline: float) -> None:
        """Keep a deadline for a slot, in place of the one before."""
        with self._lock:
            slot.deadline = deadline
            if deadline != NEVER:
                heapq.heappush(self._deadlines, (deadline, next(self._numbers), slot))
        self._look_by(deadline)

    def _look_by(self, deadline: float) -> None:
        """See to it that the watchdog looks by then, and soon in any case: at whether the loop turns."""
        with self._lock:
            if deadline >= self._next_look:
                return
            upcoming = min(deadline, self._clock.monotonic() + LOOK_INTERVAL)
            self._next_look = upcoming
        self._pool.at(upcoming, self._look)

    def abandoned(self) -> list[Abandoned]:
        """List the coroutines that did not stop in time and still run."""
        with self._lock:
            hung = list(self._hung)
        if not hung:
            return []
        now, frames = self._clock.monotonic(), current_frames()
        return [slot.describe(now, frames) for slot in hung]

    def counts(self) -> tuple[int, int, int]:
        """Return how many executions are queued, under way, and abandoned."""
        with self._lock:
            return len(self._queue), len(self._slots), len(self._hung)

    def stop(self) -> None:
        """Take no more work, refuse what is queued, and tell what is under way to stop; wait for nothing."""
        with self._lock:
            self._closed = True
            queued, self._queue = list(self._queue), deque()
            under_way = [*self._slots, *self._hung]
            loop = self._loop
        for task in queued:
            task.refuse(SHUT_DOWN)
        for slot in under_way:
            slot.task.stop()
        if loop is not None:
            _call(loop, self._end_if_done)

    # on the loop's thread

    def _run(self, loop: LaneLoop) -> None:
        loop.thread_id = threading.get_ident()
        _suspend.enter(Hub(loop, self._call_pool.submit))
        while not loop.done:
            loop.run_forever()  # again and again: a scanner may call `loop.stop()`
        if not loop.lost:
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        self._loops.leave()

    def _admit(self, loop: LaneLoop) -> None:
        """Begin what is queued, as far as there is room."""
        if loop.lost:
            return
        while True:
            with self._lock:
                if not self._queue or len(self._slots) >= self._most:
                    self._called = False
                    return
                task = self._queue.popleft()
                slot = Slot(self, loop, task)
                self._slots.add(slot)
            slot.started = now = self._clock.monotonic()
            deadline = task.start(now, slot)
            if deadline is None:
                self._leave(slot)
                continue
            self.watch(slot, deadline)
            slot.handle = asyncio.Task(GreenletCoroutine(slot.run, slot.enter, slot.leave), loop=loop)

    def finish(self, slot: Slot) -> None:
        """Note that a task has ended, and begin the next one."""
        report = self._leave(slot)
        if slot.expired:
            slot.task.returned()
        if report is not None:
            self._pool.run_soon(report)  # it tells listeners, whose time is not the loop's
        with self._lock:
            more = self._queue and not self._called
            if more:
                self._called = True
        if more:
            slot.loop.call_soon(self._admit, slot.loop)
        elif self._closed:
            slot.loop.call_soon(self._end_if_done, slot.loop)

    def _leave(self, slot: Slot) -> Callable[[], None] | None:
        with self._lock:
            slot.deadline = NEVER
            self._slots.discard(slot)
            self._hung.discard(slot)
        return None if slot.hang is None else self._pool.ended(slot.hang)

    def _end_if_done(self, loop: LaneLoop) -> None:
        with self._lock:
            busy = any(slot.loop is loop for slot in (*self._slots, *self._hung))
        if not busy:
            loop.finish()

    def _charge(self, loop: LaneLoop, culprit: Slot | None, seconds: float) -> None:
        """Add to the deadlines of all the others on a loop what a step has taken at their expense."""
        with self._lock:
            for slot in self._slots:
                if slot is culprit or slot.loop is not loop or slot.deadline == NEVER:
                    continue
                slot.task.postpone(seconds)
                slot.deadline += seconds
                heapq.heappush(self._deadlines, (slot.deadline, next(self._numbers), slot))

    # on the watchdog's thread

    def _look(self) -> None:
        """Act on the deadlines that have come, and see whether the loop turns."""
        now = self._clock.monotonic()
        with self._lock:
            self._next_look = NEVER
            loop = self._loop
            due = self._take_due(now, loop)
        for slot, lateness in due:
            self._pool.worst_lateness = max(self._pool.worst_lateness, lateness)
            expire = partial(slot.task.expire, slot.loop.name, now - slot.started, lateness)
            slot.hang = self._pool.hang(slot.task, slot.loop.name, slot.started)
            guarded(expire, f"the timeout of {slot.task.name} could not be handed over")
        if loop is not None:
            self._judge(loop, now)
            if due:
                _call(loop, self._admit)
        with self._lock:
            upcoming = self._deadlines[0][0] if self._deadlines else NEVER
            busy = bool(self._slots)
        if busy or upcoming < NEVER:
            self._look_by(max(upcoming, now + MIN_LOOK_INTERVAL) if upcoming < NEVER else now + LOOK_INTERVAL)

    def _take_due(self, now: float, loop: LaneLoop | None) -> list[tuple[Slot, float]]:
        """Return the slots whose time is up, and how long since; on a blocked loop, only the one that blocks it.

        The others' time is being added to while they can do nothing. Under the lock.
        """
        blocked = loop is not None and loop.busy_for(now) > FREE_TIME
        due, held_back = [], []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, slot = entry = heapq.heappop(self._deadlines)
            if slot.deadline != deadline:
                continue  # it has ended, or has another deadline
            if blocked and loop is not None and slot.loop is loop and slot is not loop.stepping:
                held_back.append(entry)
                continue
            slot.expired, slot.deadline = True, NEVER
            self._slots.discard(slot)
            self._hung.add(slot)
            due.append((slot, now - deadline))
        for entry in held_back:
            heapq.heappush(self._deadlines, entry)
        return due

    def _judge(self, loop: LaneLoop, now: float) -> None:
        """Name the scanner in whose step the loop has been for long, and give the loop up if it stays there."""
        slot, began = step = loop.stepping, loop.step_began
        again, self._last_step = step == self._last_step, step
        took = now - began
        if slot is None or not again or took < BLAME_AFTER:
            return
        if step != self._blamed:
            self._blamed = step
            where = where_in(current_frames().get(loop.thread_id))
            guarded(partial(slot.task.blocks, took, where), f"{slot.task.name} could not leave the shared loop")
        longest = max((other.task.total for other in self._slots.copy()), default=0.0)
        if took >= max(LOST_AFTER, LOST_TIMES * longest):
            self._give_up(loop, slot, took)

    def _give_up(self, loop: LaneLoop, culprit: Slot, took: float) -> None:
        """Leave a loop to what blocks it; what was on it goes on in a new one."""
        with self._lock:
            if self._loop is not loop:
                return
            self._loop, loop.lost, self._called = None, True, False
            lost = [slot for slot in self._slots if slot.loop is loop and slot is not culprit]
            self._slots.difference_update(lost)
            for slot in lost:
                slot.deadline = NEVER  # nobody acts on it any more
        reason = f"{culprit.task.name} has blocked the event loop for {took:.1f} s"
        for slot in lost:
            slot.task.postpone(took)
            guarded(partial(slot.task.lose, reason), f"{slot.task.name} could not go on in another loop")
        with self._lock:
            if not self._queue or self._closed or self._called:
                return
            self._called, other = True, self._running_loop()
        _call(other, self._admit)


def _call(loop: LaneLoop, call: Callable[[LaneLoop], None]) -> None:
    """Have a loop's thread call `call`; if the loop was closed meanwhile, there is nothing left to do on it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, loop)


def awaiting(coroutine: Any) -> traceback.StackSummary:
    """Return where a coroutine waits, and those that it awaits, outermost first."""
    frames = []
    while coroutine is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(coroutine, f"{kind}_frame")), None)
        if kind is None or (frame := getattr(coroutine, f"{kind}_frame")) is None:
            break
        frames.append((frame, frame.f_lineno))
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
    return traceback.StackSummary.extract(iter(frames))


def where_in(frame: Any) -> str:
    """Return the place in the innermost frame that is neither Python's library nor ours, `file:line in function`."""
    stack = traceback.extract_stack(frame)
    foreign = [line for line in stack if not line.filename.startswith((_LIBRARY, _OURS))]
    line = (foreign or stack)[-1]
    return f"{line.filename}:{line.lineno} in {line.name}"
