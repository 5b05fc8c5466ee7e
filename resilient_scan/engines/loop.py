"""Event loops for `async def` scanners.

On a worker, each attempt has a new loop, which is closed when the attempt ends (`Loops`). So a coroutine that blocks
its loop costs nobody but its own scanner. No loop is used twice: a timer, a callback or a generator that one scanner
leaves on it would run in another one's attempt, and one that blocks would cost that one its result. To make a loop and
close it takes 35 µs. A loop holds three descriptors while it is at work; none is kept for later, or a fleet of 400
would use up the 1,024 that a process may have. On a lane, many executions share a loop (`LaneLoop`).
"""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any, Protocol

from resilient_scan.context import ScanContext
from resilient_scan.engines.greenlets import GreenletCoroutine, can_suspend, drive, suspend
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker, keep_valid

FREE_TIME = 0.03  # seconds that a step of a coroutine may take at the expense of others on its loop
MAX_ALARM = 86400.0  # seconds until a loop looks again at a time that is far away


class Calls(Protocol):
    """Takes the blocking calls that a scanner's coroutines hand to a thread."""

    def admit(self, context: AttemptContext, /) -> None:
        """Let an attempt pass, or raise why it may not run."""

    def submit(self, call: Callable[[], Any], context: AttemptContext, /) -> Future[Any]:
        """Run a call on a thread that is not the loop's."""


class Coroutines(Protocol):
    """Finishes what an `async def` scanner begins."""

    def finish(self, answer: Any, make: Maker, context: AttemptContext, calls: Calls, /) -> Any:
        """Run a coroutine, or an asynchronous iterator, to its end; return or raise its result."""


class Loops:
    """Makes the loops of a runner; safe to use from any thread.

    Args:
        on_closed: called once it is closed and no loop is at work any more.
    """

    def __init__(self, on_closed: Callable[[], None] = lambda: None) -> None:
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._at_work = 0
        self._closed = False

    def finish(self, answer: Any, make: Maker, context: AttemptContext, calls: Calls) -> Any:
        """Run a scanner's coroutine to its end on this thread; at the end of the scan it is cancelled, really.

        Args:
            answer: what the scanner returned: an awaitable or an asynchronous iterator.
            make: makes a candidate of what an asynchronous iterator yields.
            context: of the attempt.
            calls: takes the blocking calls that the coroutine hands to a thread.

        Raises:
            ScanCancelled: the scan has ended.
            Rejected: earlier attempts have left too many threads that hang.
            OSError: the process has no descriptor left for a loop.
            BaseException: what the coroutine raised.
        """
        try:
            calls.admit(context)
            loop = _Loop()
        except BaseException:
            if hasattr(answer, "close"):
                answer.close()  # else Python warns of a coroutine that was never awaited
            raise
        self.enter()
        try:
            loop.offload = lambda call: calls.submit(call, context)
            return self._run(loop, collect(answer, make, context), context)
        finally:
            try:
                _wind_up(loop)
            finally:
                self.leave()

    def _run(self, loop: _Loop, work: Any, context: AttemptContext) -> Any:
        canceller = _Canceller(loop, loop.create_task(work), context)
        canceller.arm()
        try:
            with context.watched(canceller):
                canceller.set()  # it may have been cancelled before anybody watched
                return loop.run_until_complete(canceller.task)
        except asyncio.CancelledError:
            context.check()
            raise
        finally:
            canceller.disarm()

    def enter(self) -> None:
        """Note that a loop is at work; `leave` takes that back."""
        with self._lock:
            self._at_work += 1

    def close(self) -> None:
        """Note that no further loop will be made."""
        with self._lock:
            last = not self._closed and not self._at_work
            self._closed = True
        if last:
            self._on_closed()

    def leave(self) -> None:
        """Note that a loop is not at work any more."""
        with self._lock:
            self._at_work -= 1
            last = self._closed and not self._at_work
        if last:
            self._on_closed()


async def collect(answer: Any, make: Maker, context: AttemptContext) -> Any:
    """Await a coroutine's answer, or keep what an asynchronous generator yields as it comes."""
    if not isinstance(answer, AsyncIterator):
        return await answer
    async for item in answer:
        context.check()  # also ends a generator that never would
        keep_valid((item,), make, context)
    return ()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that a forked child leaves alone: closing its copy would unhook the parent's.

    Attributes:
        offload: takes blocking calls while an attempt is under way, in place of asyncio's own executor.
    """

    _made_in = 0  # the process; 0: it could not be made, and there is nothing to close
    _has_executor = False  # of the scanner's own
    time: Callable[[], float] = staticmethod(monotonic)  # not whatever a scanner has replaced `time.monotonic` with

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        self.offload: Callable[[Callable[[], Any]], Future[Any]] | None = None
        try:
            super().__init__(selector)
        except BaseException:  # no descriptor left for the selector, or for the pipe that wakes it
            asyncio.BaseEventLoop.close(self)  # its `__del__` would warn, and close a pipe that is not there
            raise
        self._made_in = os.getpid()

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Do it on a thread of the runner's; `asyncio.to_thread` and the look-up of a name come here too.

        Asyncio's default executor would be joined at the exit of the interpreter, however long its calls hang.
        """
        if executor is not None or self._has_executor or self.offload is None:
            return super().run_in_executor(executor, func, *args)
        return asyncio.wrap_future(self.offload(partial(func, *args)), loop=self)

    def set_default_executor(self, executor: Any) -> None:
        """Use an executor of the scanner's own."""
        super().set_default_executor(executor)
        self._has_executor = True

    def close(self) -> None:
        """Close it in the process that made it."""
        if os.getpid() == self._made_in:
            super().close()


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


class LaneLoop(_Loop):
    """An event loop that many executions share, and that accounts for who keeps it from turning.

    Args:
        name: of its thread.
        charge: called on its thread, `(loop, slot, seconds)`, when a step of that slot has taken so much more than
            `FREE_TIME`, or all short steps of a turn together (`None`).

    Attributes:
        stepping, step_began: whose step is under way, and since when.
        lost: whether it was given up; no step begins any more.
        done: whether its thread is to end.
    """

    thread_id: int = 0
    offload: Callable[[Callable[[], Any]], Future[Any]] | None
    lost: bool = False
    done: bool = False
    stepping: Any = None
    step_began: float = 0.0
    _busy_since = 0.0  # 0: it waits
    _charged = 0.0  # in this turn

    def __init__(self, name: str, charge: Callable[[LaneLoop, Any, float], None]) -> None:
        self.name = name
        self._charge = charge
        selector = _WatchedSelector()
        selector.began, selector.ended = self._turn_began, self._turn_ended
        super().__init__(selector)
        super().set_task_factory(_in_greenlets)  # type: ignore[arg-type] # its loop is always this one

    def busy_for(self, now: float) -> float:
        """Return for how many seconds the present turn has lasted."""
        since = self._busy_since
        return now - since if since else 0.0

    def begin_step(self, slot: Any) -> None:
        """Note that a step of a slot begins.

        Raises:
            CancelledError: the loop was given up, and the slot's work is elsewhere.
        """
        if self.lost:
            raise asyncio.CancelledError
        self.stepping, self.step_began = slot, monotonic()

    def end_step(self, slot: Any) -> None:
        """Note that the step has ended; charge it before any other begins, which could find its time up."""
        took = monotonic() - self.step_began
        if took > FREE_TIME:
            self._charged += took
            self._charge(self, slot, took - FREE_TIME)
        self.stepping = None
        if self.lost:
            self.finish()

    def _turn_began(self) -> None:
        self._charged, self._busy_since = 0.0, monotonic()

    def _turn_ended(self) -> None:
        if self._busy_since:
            rest = monotonic() - self._busy_since - self._charged
            if rest > FREE_TIME:
                self._charge(self, None, rest - FREE_TIME)
            self._busy_since = 0.0

    def finish(self) -> None:
        """Let its thread end."""
        self.done = True
        self.stop()

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Do it on a thread of the runner's, or in the executor that the scanner has set for itself."""
        self.offload = _offload.get()
        executor = executor or _executor.get()
        return super().run_in_executor(executor, func, *args)

    def set_default_executor(self, executor: Any) -> None:
        """Use an executor of the scanner's own, for that scanner only."""
        _executor.set(executor)

    def set_task_factory(self, factory: Any) -> None:
        """Refuse: it would make the tasks of other scanners, too."""
        if factory is not None:
            raise RuntimeError("scanners share this event loop: make tasks with the loop's own factory")


_offload: ContextVar[Callable[[Callable[[], Any]], Future[Any]] | None] = ContextVar("offload", default=None)
_executor: ContextVar[Executor | None] = ContextVar("executor", default=None)


def _in_greenlets(loop: LaneLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task for what a scanner's coroutine starts: its steps are that scanner's, and end with its attempt."""
    slot = loop.stepping
    if slot is None or not asyncio.iscoroutine(coroutine):
        return asyncio.Task(coroutine, loop=loop, **options)
    options.pop("eager_start", None)  # its first step would be within one of its maker's
    work = GreenletCoroutine(partial(drive, coroutine), slot.enter, slot.leave, coroutine.close)
    task = asyncio.Task(work, loop=loop, **options)
    slot.children.add(task)
    task.add_done_callback(slot.children.discard)
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
        slot = loop.stepping
        _offload.set(lambda call: calls.submit(call, context))
        canceller = _Canceller(loop, slot.handle, context)
        canceller.arm()
        try:
            with context.watched(canceller):
                canceller.set()  # it may have been cancelled before anybody watched
                slot.work = work = collect(answer, make, context)
                return drive(work)
        except asyncio.CancelledError:
            context.check()
            raise
        finally:
            canceller.disarm()
            slot.work = None
            for child in tuple(slot.children):
                child.cancel()
            if slot.children:
                suspend(asyncio.gather(*slot.children, return_exceptions=True))


class Hub:
    """Suspends the greenlets of a loop's thread; see `_suspend.Hub`.

    Args:
        loop: the loop.
        submit: takes a blocking call where no scanner makes it.
    """

    can_suspend: Callable[[], bool] = staticmethod(can_suspend)

    def __init__(self, loop: LaneLoop, submit: Callable[[Callable[[], Any]], Future[Any]]) -> None:
        self._loop = loop
        self._submit = submit

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
        submit = _offload.get() or self._submit
        return suspend(asyncio.wrap_future(submit(call), loop=self._loop))


class _Canceller:
    """What a cancel of the scan raises while a loop runs, in place of a flag that nobody would look at.

    The task is cancelled once. At a timeout both the loop's alarm and the watchdog want to: a second cancel would
    interrupt the cleanup that the first one started, such as an `async with client:` that waits for its connections.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], context: ScanContext) -> None:
        self.task = task
        self._loop = loop
        self._context = context
        self._cancelled = False  # read and written on the loop's thread only
        self._alarm: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """Cancel at the end of the attempt, which may be put off meanwhile; on the loop's thread."""
        self._alarm = self._loop.call_later(min(self._context.remaining(), MAX_ALARM), self._ring)

    def _ring(self) -> None:
        if self._context.remaining() > 0:
            self.arm()
        else:
            self.cancel()

    def disarm(self) -> None:
        """Cancel nothing any more: the task goes on with something else."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._cancelled:
            while self.task.cancelling():
                self.task.uncancel()
        self._cancelled = True

    def set(self) -> None:
        if self._context.abandoned:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nothing is left to cancel
                self._loop.call_soon_threadsafe(self.cancel)

    def cancel(self) -> None:
        """Cancel the task, unless that was done; on the loop's thread."""
        if not self._cancelled:
            self._cancelled = True
            self.task.cancel()


def _wind_up(loop: _Loop) -> None:
    """Cancel what the scanner left running and close the loop; on the attempt's time, as long as that takes."""
    loop.set_task_factory(None)  # the scanner's own might raise
    try:
        _end_tasks(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
        if asyncio.all_tasks(loop):  # they close generators that nobody refers to any more: let them begin
            loop.run_until_complete(asyncio.sleep(0))
            _end_tasks(loop)
    finally:
        loop.close()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
