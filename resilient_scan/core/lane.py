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

The same holds while the whole process stands still. So what counts is the time that the watchdog has seen the step for,
and not how long ago it began.

A loop that stays blocked for `LOST_AFTER` seconds is given up like a hung thread, if all that is on it can go on in a
new one: as a further attempt where `Retry` allows one, or because its first attempt has not begun. If there is one that
would end as an error, the loop is given up only after three times the longest timeout on it: it may come back. Should
it ever turn again, all that is on it is cancelled, and its thread ends with the last of it.
"""

from __future__ import annotations

import itertools
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from resilient_scan import _suspend
from resilient_scan.clock import Clock
from resilient_scan.core.hangs import Hang, current_frames, guarded
from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.task import NEVER, SHUT_DOWN, Task
from resilient_scan.engines.loop import Loops
from resilient_scan.engines.shared_loop import FREE_TIME, Hub, LaneLoop, OnSharedLoop, Slot, SlotTask
from resilient_scan.layers.timeout import Abandoned

_LIBRARY = f"{Path(threading.__file__).parent}{os.sep}"
_OURS = f"{Path(__file__).parents[1]}{os.sep}"
LOOK_INTERVAL = 0.05  # seconds between two looks at whether the loop turns
MIN_LOOK_INTERVAL = 0.005  # seconds between two looks at deadlines that a blocked loop could not meet
BLAME_AFTER = 0.25  # seconds of one step, after which its scanner is named
LOST_AFTER = 5.0  # seconds without a turn, at least, after which a loop is given up
LOST_TIMES = 3  # and as many times the longest timeout on it
TINY = 1e-6  # what the shares of a place may be out by
ADMITTED = 100  # executions begun in one turn of the loop, at most


class LaneTask(Task, Protocol):
    """Work for the lane; a pool can do it as well."""

    @property
    def total(self) -> float:
        """Seconds that it may take."""

    @property
    def can_move(self) -> bool:
        """Whether another attempt may follow, or none was begun: then it loses nothing by going on elsewhere."""

    @property
    def variables(self) -> Context:
        """The context that it runs in."""

    def postpone(self, seconds: float, /) -> None:
        """Move its deadlines: for those seconds it could do nothing, because another one blocked the loop."""

    def blocks(self, seconds: float, where: str, /) -> None:
        """Note that it has blocked the loop for `seconds`, and where it is; on the watchdog's thread."""

    def lose(self, reason: str, /) -> None:
        """Go on elsewhere, or end: the loop it was on is given up. On the watchdog's thread."""


class LaneSlot(Slot, eq=False, gc=False):
    """An execution on the loop: what a worker is in a pool.

    Attributes:
        lane: where it is.
        task: until it has ended: callbacks that the scanner forgot may keep the slot.
        started, deadline, mark: when it began, when its time is up, and its mark, if it has set one; monotonic.
        hang: from when its time is up and it still runs.
    """

    lane: Any = None
    task: Any = None
    started: float = 0.0
    deadline: float = NEVER
    mark: float = NEVER
    hang: Hang | None = None

    def alarm(self, deadline: float) -> None:
        """Set another deadline for the task under way."""
        self.lane.watch(self, deadline)

    def set_mark(self, instant: float) -> None:
        """Call the task under way (`mark_passed`) at an instant."""
        self.lane.watch_mark(self, instant)

    def __call__(self) -> None:
        """Do the work, in a greenlet."""
        try:
            self.task.run()
        finally:
            self.lane.finish(self)

    def describe(self, now: float, frames: dict[int, Any]) -> Abandoned:
        """Return its line in the ledger."""
        if self.loop.stepping is self:  # it does not wait: it blocks the loop
            stack = "".join(traceback.format_stack(frames.get(self.loop.thread_id)))
        else:
            stack = "".join(traceback.StackSummary.from_list(awaiting(self.work)).format())
        return Abandoned(self.name, self.loop.name, now - self.started, holds_place=False, stack=stack)


class Lane:
    """Takes executions of `async def` scanners, any number of which may wait at a time.

    Args:
        most: executions under way at a time; more are queued. Those that hang do not count.
        pool: whose watchdog keeps the deadlines, and whose threads send events.
        call_pool: whose threads take blocking calls.
        loops: learns when the last coroutine has ended.
        clock: what deadlines are measured on.
        share: the part of one of `most` that an execution of a scanner takes; by default all of it. What waits for a
            cluster takes less where several go together.
    """

    coroutines = OnSharedLoop()  # finishes what a scanner on the lane begins

    def __init__(
        self,
        most: int,
        pool: ThreadPool,
        call_pool: ThreadPool,
        loops: Loops,
        clock: Clock,
        share: Callable[[str], float] | None = None,
    ) -> None:
        self._most = most
        self._share = share
        self._pool = pool
        self._call_pool = call_pool
        self._loops = loops
        self._clock = clock
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # for what follows
        self._loop: LaneLoop | None = None
        self._queue: deque[LaneTask] = deque()
        self._called = False  # whether the loop has been asked to look at the queue
        self._slots: set[LaneSlot] = set()
        self._hung: set[LaneSlot] = set()
        self._next_look = NEVER
        self._earliest = NEVER  # no deadline and no mark of a slot comes before
        self._closed = False
        # The watchdog's own: the step that its last look found, since when it runs, when that look was, for how long
        # it has been seen, and whether it has been blamed.
        self._step: tuple[int, float] | None = None
        self._looked = self._seen = 0.0
        self._blamed = False

    # from any thread

    def execute(self, task: LaneTask) -> None:
        """Queue a task; see `execute_all`."""
        self.execute_all([task])

    def execute_all(self, tasks: list[Any]) -> None:
        """Queue tasks, all of them or none; each is taken out of the list as it is queued.

        Raises:
            RuntimeError: the lane is closed, or no thread can be started for its loop.
            OSError: the process has no descriptor left for a loop.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(SHUT_DOWN)
            loop = self._running_loop()
            if not self._called:
                _call(loop, self._admit)  # first: an interrupt between the two costs a call, not all later tasks
                self._called = True
            any(map(self._queue.append, map(tasks.pop, itertools.repeat(0, len(tasks)))))  # one step: see `ThreadPool`
        if self._next_look == NEVER:  # even if nothing begins: one that hangs may block the loop
            self._look_by(NEVER)

    def _running_loop(self) -> LaneLoop:
        """Return the loop, and start one if there is none. Under the lock."""
        if self._loop is None:
            # The watchdog comes first: where no thread is left for it, the caller learns that, and not the loop.
            self._next_look = self._clock.monotonic() + LOOK_INTERVAL
            self._pool.at(self._next_look, self._look)
            name = f"resilient-scan-loop-{next(self._numbers)}"
            loop = LaneLoop(name, self._charge, self._call_pool.submit, self._most)
            thread = threading.Thread(target=self._run, args=(loop,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                loop.close()
                raise
            self._loop = loop  # after an interrupt nobody knows whether the thread runs: see `_run`
        return self._loop

    def watch(self, slot: LaneSlot, deadline: float) -> None:
        """Keep a deadline for a slot, in place of the one before."""
        slot.deadline = deadline
        self._note(deadline)

    def watch_mark(self, slot: LaneSlot, instant: float) -> None:
        """Keep a mark for a slot, in place of the one before."""
        with self._lock:  # the watchdog takes away a mark that has passed
            slot.mark = instant
        self._note(instant)

    def _note(self, instant: float) -> None:
        """See to it that the watchdog acts on what a slot has just been given, and not before.

        Both numbers are read after the slot was written, and the watchdog sets them to infinity before it reads the
        slots: see `ThreadPool.look_by`.
        """
        if instant < self._earliest:
            with self._lock:
                self._earliest = min(instant, self._earliest)
        if instant < self._next_look:
            self._look_by(instant)

    def _look_by(self, deadline: float) -> None:
        """See to it that the watchdog looks by then, and soon in any case: at whether the loop turns."""
        with self._lock:
            upcoming = min(deadline, self._clock.monotonic() + LOOK_INTERVAL)
            if upcoming >= self._next_look:
                return
            self._pool.at(upcoming, self._look)
            self._next_look = upcoming  # last: an interrupt between the two costs a look too many, not all looks

    def abandoned(self) -> list[Abandoned]:
        """List the coroutines that did not stop in time and still run."""
        with self._lock:
            hung = list(self._hung)
        if not hung:
            return []
        now, frames = self._clock.monotonic(), current_frames()
        return [slot.describe(now, frames) for slot in hung]

    def most(self, name: str) -> int:
        """Return how many executions of one scanner may be under way at a time."""
        return self._most if self._share is None else int(self._most / self._share(name) + TINY)

    def counts(self) -> tuple[int, int, int]:
        """Return how many executions are queued, under way, and abandoned."""
        with self._lock:
            return len(self._queue), len(self._slots), len(self._hung)

    def stop(self) -> None:
        """Take no more work, refuse what is queued, and tell what is under way to stop; wait for nothing."""
        with self._lock:
            self._closed = True
            under_way = [slot.task for slot in (*self._slots, *self._hung)]
            loop = self._loop
        self._refuse_queued(SHUT_DOWN)
        for task in under_way:
            task.stop()
        if loop is not None:
            _call(loop, LaneLoop.finish_if_empty)

    def _refuse_queued(self, reason: str) -> None:
        with self._lock:
            queued, self._queue = self._queue, deque()
        for task in queued:
            task.refuse(reason)

    # on the loop's thread

    def _run(self, loop: LaneLoop) -> None:
        with self._lock:
            if self._loop is None and not self._closed:
                self._loop = loop
            if self._loop is not loop:
                loop.close()
                return
            self._loops.enter()
        _suspend.enter(Hub(loop))
        try:
            loop.work()
        finally:
            self._loops.leave()

    def _admit(self, loop: LaneLoop) -> None:
        """Begin what is queued, as far as there is room, and let the loop turn in between."""
        if loop.lost:
            return
        with self._lock:
            tasks = [self._queue.popleft() for _ in range(self._room())]
            slots = [LaneSlot(loop, variables=task.variables, name=task.name, lane=self, task=task) for task in tasks]
            self._slots.update(slots)
            self._called = more = len(slots) == ADMITTED
        for slot in slots:
            self._begin(slot, loop)
        if more:
            loop.call_soon(self._admit, loop)

    def _room(self) -> int:
        """Return how many of the queue may begin in this turn. Under the lock."""
        share = self._share
        if share is None:
            return min(ADMITTED, len(self._queue), max(0, self._most - len(self._slots)))
        left = self._most - sum(share(slot.name) for slot in self._slots)
        count = 0
        for task in islice(self._queue, ADMITTED):
            left -= share(task.name)
            if left < -TINY:
                break
            count += 1
        return count

    def _begin(self, slot: LaneSlot, loop: LaneLoop) -> None:
        loop.slots.add(slot)
        task = slot.task
        slot.started = now = self._clock.monotonic()
        deadline = task.start(now, slot)
        if deadline is None:
            self.finish(slot)
            return
        slot.deadline = deadline
        if deadline < self._earliest or deadline < self._next_look:  # as in `_note`
            self._note(deadline)
        slot.handle = handle = SlotTask(slot, loop=loop, name=slot.name, context=loop.variables)
        handle.slot = slot

    def finish(self, slot: LaneSlot) -> None:
        """Note that a task has ended, and begin the next one."""
        task, loop = slot.task, slot.loop
        loop.slots.discard(slot)
        with self._lock:
            slot.deadline = NEVER
            self._slots.discard(slot)
            self._hung.discard(slot)
            slot.task = slot.context = slot.handle = None  # a circle: else a garbage collection would have to find it
            # Not for one that was given up: it begins nothing, and the loop that does would not be called any more.
            more = loop is self._loop and self._queue and not self._called
            if more:
                self._called = True
        if more:
            loop.call_soon(self._admit, loop)
        elif (self._closed or loop.lost) and not loop.slots:
            loop.call_soon(loop.finish_if_empty)
        if slot.hang is not None:
            report = self._pool.hangs.ended(slot.hang)
            task.returned()
            if report is not None:
                self._pool.run_soon(report)  # it tells listeners, whose time is not the loop's
            slot.hang = None  # another circle

    def _charge(self, loop: LaneLoop, culprit: LaneSlot | None, seconds: float) -> None:
        """Add to the deadlines of all the others on a loop what a step has taken at their expense."""
        with self._lock:
            for slot in loop.slots:
                if slot is not culprit and slot.deadline != NEVER:
                    (slot.context or slot.task).postpone(seconds)  # the same, and they may be 10,000
                    slot.deadline += seconds
                    slot.mark += seconds

    # on the watchdog's thread

    def _look(self) -> None:
        """Act on the deadlines that have come, and see whether the loop turns."""
        now = self._clock.monotonic()
        with self._lock:
            if now < self._next_look:
                return  # an earlier look has replaced the one for which this timer was set
            self._next_look = NEVER
            loop = self._loop
            passed, due = self._take(now, loop)
        try:
            for task in passed:
                guarded(task.mark_passed, f"{task.name}: what was due at its mark failed")
            for slot, task, lateness in due:
                self._pool.worst_lateness = max(self._pool.worst_lateness, lateness)
                expire = partial(task.expire, slot.loop.name, now - slot.started, lateness)
                guarded(expire, f"the timeout of {slot.name} could not be handed over")
            if loop is not None:
                self._judge(loop, now)
                if due:
                    _call(loop, self._admit)
        finally:
            with self._lock:
                upcoming = self._earliest
                busy = bool(self._slots or self._queue or (loop is not None and loop.turn_began))
            if busy:
                self._look_by(max(upcoming, now + MIN_LOOK_INTERVAL))

    def _take(self, now: float, loop: LaneLoop | None) -> tuple[list[LaneTask], list[tuple[LaneSlot, LaneTask, float]]]:
        """Return what has passed its mark, and what is due. Under the lock.

        Ten thousand slots are not looked through 30 times a second: only once the earliest instant has come.
        """
        if now < self._earliest:
            return [], []
        self._earliest = NEVER
        passed, due = self._take_passed(now, loop), self._take_due(now, loop)
        self._earliest = min((min(slot.deadline, slot.mark) for slot in self._slots), default=NEVER)
        return passed, due

    def _take_passed(self, now: float, loop: LaneLoop | None) -> list[LaneTask]:
        """Return the tasks whose mark has come, and take the marks away. Under the lock."""
        passed = self._not_blocked([slot for slot in self._slots if slot.mark <= now], now, loop)
        for slot in passed:
            slot.mark = NEVER
        return [slot.task for slot in passed]

    def _not_blocked(self, due: list[LaneSlot], now: float, loop: LaneLoop | None) -> list[LaneSlot]:
        """Return those that are not kept from going on by another: on a blocked loop, their time is being added to."""
        if not due or loop is None or loop.busy_for(now) <= FREE_TIME:
            return due
        return [slot for slot in due if slot.loop is not loop or slot is loop.stepping]

    def _take_due(self, now: float, loop: LaneLoop | None) -> list[tuple[LaneSlot, LaneTask, float]]:
        """Return the slots whose time is up, with their tasks, and how long since. Under the lock."""
        due = self._not_blocked([slot for slot in self._slots if slot.deadline <= now], now, loop)
        taken = [(slot, slot.task, now - slot.deadline) for slot in due]
        for slot in due:
            slot.deadline = NEVER
            # In the same step: one that ends just now finds what has to learn of that.
            slot.hang = self._pool.hangs.add(slot.task, slot.loop.name, slot.started)
            self._slots.discard(slot)
            self._hung.add(slot)
        return taken

    def _judge(self, loop: LaneLoop, now: float) -> None:
        """Name the scanner that has kept the loop from turning for long, and give the loop up if it stays so."""
        slot = loop.stepping
        step = id(slot), loop.step_began if slot is not None else loop.turn_began  # a slot leads back here
        gap, self._looked = now - self._looked, now
        if step != self._step or not loop.turn_began:
            self._step, self._seen, self._blamed = step, 0.0, False
            return
        self._seen += min(gap, 2 * LOOK_INTERVAL)  # a longer gap says that this thread could not run, either
        if self._seen < BLAME_AFTER:
            return
        frame = current_frames().get(loop.thread_id)
        culprit = loop.culprit(frame)
        task = None if culprit is None else culprit.task
        if not self._blamed and task is not None:
            self._blamed = True
            guarded(
                partial(task.blocks, now - step[1], where_in(frame)), f"{task.name} could not leave the shared loop"
            )
        if self._seen >= LOST_AFTER and self._seen >= self._lost_after(loop, culprit):
            self._give_up(loop, culprit, now - step[1])

    def _lost_after(self, loop: LaneLoop, culprit: LaneSlot | None) -> float:
        """Return for how long a loop may stay blocked: while there is one on it that would end as an error."""
        with self._lock:
            slots = [slot for slot in self._slots if slot.loop is loop and slot is not culprit]
            if all(slot.task.can_move for slot in slots):
                return LOST_AFTER
            longest: float = max(slot.task.total for slot in slots)
        return max(LOST_AFTER, LOST_TIMES * longest)

    def _give_up(self, loop: LaneLoop, culprit: LaneSlot | None, took: float) -> None:
        """Leave a loop to what blocks it; what was on it goes on in a new one."""
        with self._lock:
            if self._loop is not loop:
                return
            self._loop, loop.lost, self._called = None, True, False
            slots = [slot for slot in self._slots if slot.loop is loop and slot is not culprit]
            self._slots.difference_update(slots)
            lost = [slot.task for slot in slots]
            for slot in slots:
                slot.deadline = NEVER  # nobody acts on it any more
        name = "a callback" if culprit is None else culprit.name
        reason = f"{name} has blocked the event loop for {took:.1f} s"
        for task in lost:
            task.postpone(took)
            guarded(partial(task.lose, reason), f"{task.name} could not go on in another loop")
        try:
            with self._lock:
                if not self._queue or self._closed or self._called:
                    return
                other = self._running_loop()
                self._called = True
        except (RuntimeError, OSError) as error:  # the machine has no thread or descriptor to give
            self._refuse_queued(str(error))
        else:
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


def where_in(frame: FrameType | None) -> str:
    """Return the place that blocks, `file:line in function`: in the scanner's code, if that can be told apart.

    That is the innermost frame that is neither ours, nor Python's, nor that of an installed package, or else the
    innermost one of such a package. No source is read: the watchdog must be quick.
    """
    places = [(each.f_code, line) for each, line in traceback.walk_stack(frame)] if frame is not None else []
    foreign = [place for place in places if not place[0].co_filename.startswith((_LIBRARY, _OURS))]
    own = [place for place in foreign if "site-packages" not in place[0].co_filename]
    for code, line in own or foreign or places:
        return f"{code.co_filename}:{line} in {code.co_name}"
    return "an unknown place"
