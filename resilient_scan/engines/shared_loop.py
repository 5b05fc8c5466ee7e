"""An event loop that many scanners share: whose each step is, who blocks it, and what ends with an attempt.

Everything that a scanner begins on the loop belongs to its *slot*: its coroutine, the tasks and asynchronous generators
that this starts, and the loop's callbacks (`_slot` is in their context). So it can be blamed for what blocks the loop,
and nothing of it outlives its attempt.
"""

from __future__ import annotations

import asyncio
import atexit
import selectors
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import Context, ContextVar
from time import monotonic
from types import CoroutineType, FrameType
from typing import Any
from weakref import WeakSet

from resilient_scan._log import log as _log
from resilient_scan.context import NEVER
from resilient_scan.engines import forks
from resilient_scan.engines.generators import Generators
from resilient_scan.engines.greenlets import GreenletCoroutine, GreenletPool, can_suspend, drive, pause, suspend
from resilient_scan.engines.loop import MAX_ALARM, Calls, EventLoop, collect
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker

FREE_TIME = 0.03  # seconds that a step of a coroutine may take at the expense of others on its loop
MIN_ALARM = 0.002  # seconds between two looks at whose time is up, which go through all that are on the loop

_END_SLEEP = vars(asyncio.futures).get("_set_result_unless_cancelled", object())  # what asyncio calls then

PARK_TIMEOUT = 0.2  # seconds for which the exit of the interpreter waits for a loop

_slot: ContextVar[Slot | None] = ContextVar("slot", default=None)


class Slot(GreenletCoroutine, eq=False, gc=False):
    """What a scan has on the loop, for the loop's part; it is what a cancel of the scan sets.

    Attributes:
        name: of the scanner.
        under_way: whether its scanner is being called, or what it has begun is being ended.
        context, calls: the attempt's, from when its scanner is called.
        ends: when the attempt's time is up; more may be given meanwhile, see `due`.
        postponed: what had been given when it began.
        cancelled: whether the task was cancelled, or need not be any more. A second cancel would interrupt the cleanup
            that the first one started.
        work: the scanner's coroutine, while it runs.
        children: tasks that the scanner has started.
        generators: asynchronous ones that it has begun.
        executor: one of the scanner's own.
        handle: the `SlotTask` that makes its steps; `None` once it has ended, for the two refer to each other.
    """

    name: str = ""
    under_way: bool = False
    context: AttemptContext | None = None
    calls: Calls | None = None
    ends: float = 0.0
    postponed: float = 0.0
    cancelled: bool = True
    work: Any = None
    children: set[asyncio.Task[Any]] | None = None
    generators: Generators | None = None
    executor: Executor | None = None
    handle: Any = None

    def begin(self, context: AttemptContext, calls: Calls) -> None:
        """Note that its scanner is called, and have the attempt cancelled at its end."""
        self.context, self.calls = context, calls
        self.ends, self.postponed = context.ends, context.postponed
        self.under_way, self.cancelled = True, False
        self.loop.cancel_by(self.ends)

    def due(self) -> float:
        """Return when the attempt is to be cancelled; infinite if that was done."""
        context = self.context
        if self.cancelled or context is None:
            return NEVER
        return min(self.ends + context.postponed - self.postponed, context.cut_at)

    def set(self) -> None:
        """Have the loop cancel the task, if the scan has ended; from any thread."""
        context = self.context
        if context is not None and context.abandoned:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nothing is left to cancel
                self.loop.call_soon_threadsafe(self.cancel)

    def cancel(self) -> None:
        """Cancel the task, unless that was done; on the loop's thread."""
        if not self.cancelled:
            self.cancelled = True
            self.loop.begin_step(self)  # in its own name: it may wait for tasks of others, which are not to end with it
            if asyncio.Task.cancel(self.handle) and self.context is not None:
                self.context.freed_by = "cancel"
            self.loop.end_step(self)

    def off_loop(self, call: Callable[[], Any]) -> Future[Any]:
        """Have a blocking call made on a thread: one of the scanner's, or of its layers."""
        calls, context = self.calls, self.context
        return self.loop.submit(call) if calls is None or context is None else calls.submit(call, context)

    def end(self) -> None:
        """End what an attempt has left running: tasks and asynchronous generators, and cancels of its own task."""
        self.cancelled, self.work = True, None
        handle = self.handle
        if handle.cancelling():
            while handle.cancelling():
                handle.uncancel()
            with suppress(asyncio.CancelledError):  # one that has not reached it would hit a layer, or the next attempt
                pause()
        try:
            while self.children or self.generators:  # what ends may begin another one
                children = tuple(self.children or ())
                for child in children:
                    asyncio.Task.cancel(child)
                suspend(asyncio.gather(*children, return_exceptions=True))
                if self.generators:
                    drive(self.generators.close())
        finally:
            self.under_way = False
            self.generators = self.calls = self.executor = None


class _WatchedSelector(selectors.DefaultSelector):
    """Tells when a turn of a loop begins and ends: a loop waits in `select`, and does everything else outside of it."""

    began: Callable[[], None]
    ended: Callable[[], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for the loop's next turn."""
        self.ended()
        try:
            return super().select(timeout)
        finally:
            self.began()


class LaneLoop(EventLoop):
    """An event loop that many executions share, and that accounts for who keeps it from turning.

    Args:
        name: of its thread.
        charge: called on its thread, `(loop, slot, seconds)`, when a step of that slot has taken so much more than
            `FREE_TIME`, or all short steps of a turn together (`None`).
        submit: takes a blocking call where no scanner makes it.
        most: executions under way at a time.

    Attributes:
        greenlets: that its tasks run in.
        slots: all that are on it.
        stepping, step_began: whose step is under way, and since when.
        lost: whether it was given up: it takes no more work, and as soon as it turns again, all that is on it ends.
        done: whether its thread is to end.
    """

    thread_id: int = 0
    offload: Callable[[Callable[[], Any]], Future[Any]] | None
    lost: bool = False
    done: bool = False
    stepping: Any = None
    step_began: float = 0.0
    turn_began: float = 0.0  # 0: it waits
    _charged = 0.0  # in this turn
    _stolen = 0.0  # seconds that do not count on its own clock
    _ending = False
    _alarm: asyncio.TimerHandle | None = None
    _alarm_at = NEVER

    def __init__(
        self,
        name: str,
        charge: Callable[[LaneLoop, Any, float], None],
        submit: Callable[[Callable[[], Any]], Future[Any]],
        most: int,
    ) -> None:
        self.name: str = name
        self.greenlets: GreenletPool = GreenletPool(most)
        self.submit: Callable[[Callable[[], Any]], Future[Any]] = submit
        self.slots: set[Any] = set()
        self.variables: Context = Context()  # of its tasks' own part: what they run has one of its own
        self._charge = charge
        self._forks = forks.depth
        selector = _WatchedSelector()
        selector.began, selector.ended = self._turn_began, self._turn_ended
        self._parked = threading.Event()
        super().__init__(selector)

    def __del__(self) -> None:
        if not self.thread_id:
            self.close()  # a signal handler raised between its making and the start of its thread: nobody has it
        super().__del__()

    def work(self) -> None:
        """Run until it is `done`; on its thread."""
        super().set_task_factory(_in_greenlets)  # type: ignore[arg-type] # its loop is always this one
        _all.add(self)
        self.thread_id = threading.get_ident()
        while not self.done:  # again and again: a scanner may call `stop`
            self.call_soon(sys.set_asyncgen_hooks, self._generator_began, self._generator_dropped)
            self._go_on(self.run_forever)
        self._go_on(lambda: self.run_until_complete(self.shutdown_asyncgens()))
        self.greenlets.idle.clear()  # on this thread: nobody else can free them
        try:
            self._let_go()
        finally:
            self.close()

    def _let_go(self) -> None:
        """Refer to no slot any more: they refer to this loop, and the garbage collector does not look at them."""
        self._alarm = None
        super().set_exception_handler(None)  # a scanner's
        for task in asyncio.all_tasks(self):  # made by a callback just now
            if isinstance(task, SlotTask):
                task.slot.children = None
                coroutine: Any = task.get_coro()
                coroutine.close()  # it has not begun

    def _go_on(self, call: Callable[[], object]) -> None:
        """Run, and let no task end the loop for all others.

        asyncio lets a `SystemExit` of a task or a callback out of the loop. Who awaits that task has it, too: it ends
        the scanner that has started it.
        """
        try:
            call()
        except (SystemExit, KeyboardInterrupt) as error:
            _log.warning("what a scanner has started on the shared loop wanted to end the program: %r", error)

    def park(self) -> None:
        """Let its thread wait for ever, at the exit of the interpreter."""
        self._parked.set()
        rest = threading.Lock()
        rest.acquire()
        rest.acquire()

    def wait_until_parked(self) -> None:
        """Wait until its thread has got there; not for one that is blocked, and does not wake either."""
        if self.busy_for(monotonic()) < FREE_TIME:
            self._parked.wait(PARK_TIMEOUT)

    def time(self) -> float:
        """Return its clock, which stands still while one step blocks it.

        Else the timers of all others would be due after that: `asyncio.timeout(5)` around a request, say, whose answer
        has arrived meanwhile, and that nobody could read.
        """
        return monotonic() - self._stolen

    def call_at(  # type: ignore[override] # the types of the arguments are the callback's business
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` then; with a copy of the context variables, unless it only ends an `asyncio.sleep`."""
        if callback is _END_SLEEP:
            context = self.variables  # that runs nobody's code
        return super().call_at(when, callback, *args, context=context)

    def busy_for(self, now: float) -> float:
        """Return for how many seconds the present turn has lasted."""
        since = self.turn_began
        return now - since if since else 0.0

    def begin_step(self, slot: Any) -> None:
        """Note that a step of a slot begins."""
        if self.lost:
            self._end_slots()
        self.stepping, self.step_began = slot, monotonic()

    def end_step(self, slot: Any) -> None:
        """Note that the step has ended; charge it before any other begins, which could find its time up."""
        if self._forks != forks.depth:
            forks.end_child(slot.name)  # else it would take the steps of all others, too
        took = monotonic() - self.step_began
        if took > FREE_TIME:
            self._charged += took
            self._stolen += took - FREE_TIME
            self._charge(self, slot, took - FREE_TIME)
        self.stepping = None
        if self.lost:
            self._end_slots()

    def _turn_began(self) -> None:
        self._charged, self.turn_began = 0.0, monotonic()

    def _turn_ended(self) -> None:
        if self._forks != forks.depth:
            forks.end_child("a scanner")
        if self.turn_began:
            rest = monotonic() - self.turn_began - self._charged
            if rest > FREE_TIME:
                self._charge(self, None, rest - FREE_TIME)
            self.turn_began = 0.0
            if self.lost:
                self._end_slots()

    def _end_slots(self) -> None:
        """Cancel all that is on it, once, before it goes on: it was given up, and they are elsewhere."""
        if not self._ending:
            self._ending = True
            for slot in tuple(self.slots):
                slot.cancel()  # one that is in a layer finds that nobody waits for it
            self.call_soon(self.finish_if_empty)

    def finish_if_empty(self) -> None:
        """Let its thread end, unless something is on it."""
        if not self.slots:
            self.done = True
            self.stop()

    def cancel_by(self, instant: float) -> None:
        """Look by then whether the time of an attempt is up, and cancel it: one alarm serves all."""
        if instant >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = instant
        delay = min(max(0.0, instant - monotonic()), MAX_ALARM)
        self._alarm = self.call_later(delay, self._ring, context=self.variables)  # not those of the scanner that asks

    def _ring(self) -> None:
        self._alarm_at = NEVER
        now, earliest = monotonic(), NEVER
        for slot in tuple(self.slots):
            due = slot.due()
            if due <= now:
                slot.cancel()
            elif due < earliest:
                earliest = due
        if earliest < NEVER:
            self.cancel_by(max(earliest, now + MIN_ALARM))

    def culprit(self, frame: FrameType | None) -> Any:
        """Return the slot that keeps it from turning, if it is known.

        Args:
            frame: where its thread is. A callback is not a step, but its context tells who has asked for it.
        """
        slot = self.stepping
        while slot is None and frame is not None:
            if frame.f_code is asyncio.Handle._run.__code__:  # noqa: SLF001 - nothing public names the callback
                context: Context = frame.f_locals["self"]._context  # noqa: SLF001
                return context.get(_slot)
            frame = frame.f_back
        return slot

    def current(self) -> Any:
        """Return whose code runs now, in a step or in a callback that it has asked for; `None`: nobody's."""
        slot = self.stepping
        return _slot.get() if slot is None else slot

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Do it on a thread of the runner's, or in the executor that the scanner has set for itself."""
        slot = self.current()
        self.offload = self.submit if slot is None else slot.off_loop
        executor = executor or (None if slot is None else slot.executor)
        try:
            return super().run_in_executor(executor, func, *args)
        finally:
            self.offload = None

    def set_default_executor(self, executor: Any) -> None:
        """Use an executor of the scanner's own, for that scanner only."""
        slot = self.current()
        if slot is not None:
            slot.executor = executor

    def set_task_factory(self, factory: Any) -> None:
        """Refuse: it would make the tasks of other scanners, too."""
        if factory is not None:
            raise RuntimeError("scanners share this event loop: make tasks with the loop's own factory")

    def _generator_began(self, generator: Any) -> None:
        slot = self.stepping
        if slot is not None:
            if slot.generators is None:
                slot.children = slot.children or set()
                slot.generators = Generators(self, slot.children.discard)
            slot.generators.began(generator)

    def _generator_dropped(self, generator: Any) -> None:
        slot = self.stepping if threading.get_ident() == self.thread_id else None
        if slot is not None and slot.generators is not None:
            slot.generators.dropped(generator)
        elif not self.is_closed():
            self.call_soon_threadsafe(lambda: asyncio.Task(generator.aclose(), loop=self))


_all: WeakSet[LaneLoop] = WeakSet()


def _park_all() -> None:
    """Keep the threads of loops from waking while the interpreter is taken down.

    A daemon thread that wakes then is ended where it is. Greenlets free what they have kept for that thread, without
    the interpreter's lock; `python -X dev` crashes there.
    """
    loops = [loop for loop in tuple(_all) if loop.is_mine]
    for loop in loops:
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(loop.park)
    for loop in loops:
        loop.wait_until_parked()


atexit.register(_park_all)


class SlotTask(asyncio.Task[Any]):
    """A task of one scanner, which no other scanner can cancel: `asyncio.all_tasks` shows it everyone's."""

    __slots__ = ("slot",)
    slot: Any

    def cancel(self, msg: Any = None) -> bool:
        """Cancel it, if the caller belongs to the same scanner, or to none."""
        loop: Any = self.get_loop()
        caller = loop.current()
        return (caller is None or caller is self.slot) and super().cancel(msg)


class _Child(GreenletCoroutine, eq=False, gc=True):
    """What a scanner's coroutine starts as a task."""

    coroutine: Any = None

    def __call__(self) -> Any:
        """Run the coroutine to its end."""
        return drive(self.coroutine)

    def unstarted(self) -> None:
        """Close the coroutine, or Python warns of one that was never awaited."""
        self.coroutine.close()


def _in_greenlets(loop: LaneLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task for what a scanner's coroutine starts: its steps are that scanner's, and end with its attempt."""
    slot = loop.current()
    if slot is None or not asyncio.iscoroutine(coroutine):
        return asyncio.Task(coroutine, loop=loop, **options)
    options.pop("eager_start", None)  # its first step would be within one of its maker's
    task = SlotTask(_Child(loop, slot, options.get("context"), coroutine=coroutine), loop=loop, **options)
    task.slot = slot
    if slot.children is None:
        slot.children = set()
    slot.children.add(task)
    task.add_done_callback(slot.children.discard)
    if not slot.under_way:  # a callback that has outlived its attempt
        asyncio.Task.cancel(task)
    return task


class OnSharedLoop:
    """Finishes coroutines where their layers run already: in a greenlet on a `LaneLoop`."""

    def finish(self, answer: Any, make: Maker, context: AttemptContext, calls: Calls) -> Any:
        """Run a scanner's coroutine to its end, as `Loops.finish` does."""
        try:
            calls.admit(context)
        except BaseException:
            if hasattr(answer, "close"):
                answer.close()  # else Python warns of a coroutine that was never awaited
            raise
        loop: Any = asyncio.get_running_loop()
        slot: Slot = loop.stepping
        _slot.set(slot)
        slot.begin(context, calls)
        context.canceller = slot
        try:
            slot.set()  # it may have been cancelled before anybody watched
            slot.work = work = answer if type(answer) is CoroutineType else collect(answer, make, context)
            return drive(work)
        except asyncio.CancelledError:
            context.check()
            raise
        finally:
            context.canceller = None
            slot.end()


class Hub:
    """Suspends the greenlets of a loop's thread; see `_suspend.Hub`.

    Args:
        loop: the loop.
    """

    can_suspend: Callable[[], bool] = staticmethod(can_suspend)

    def __init__(self, loop: LaneLoop) -> None:
        self._loop = loop

    def ring(self) -> tuple[Callable[[], None], Callable[[float | None], None]]:
        """Return a function that wakes, from any thread, and one that suspends the caller until then, or a timeout."""
        loop = self._loop
        rung = loop.create_future()

        def resolve() -> None:
            if not rung.done():
                rung.set_result(None)

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(resolve)

        def wait(timeout: float | None) -> None:
            alarm = None if timeout is None else loop.call_later(timeout, resolve)
            try:
                suspend(rung)
            finally:
                if alarm is not None:
                    alarm.cancel()

        return wake, wait

    def off_loop(self, call: Callable[[], Any], /) -> Any:
        """Suspend the caller while another thread calls `call`."""
        slot = self._loop.stepping
        submit = self._loop.submit if slot is None else slot.off_loop
        return suspend(asyncio.wrap_future(submit(call), loop=self._loop))
