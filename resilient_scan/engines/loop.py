"""Event loops for `async def` scanners.

On a worker, each attempt has a new loop, which is closed when the attempt ends (`Loops`). So a coroutine that blocks
its loop costs nobody but its own scanner. No loop is used twice: a timer, a callback or a generator that one scanner
leaves on it would run in another one's attempt, and one that blocks would cost that one its result. To make a loop and
close it takes 35 µs. A loop holds three descriptors while it is at work; none is kept for later, or a fleet of 400
would use up the 1,024 that a process may have. On a lane, many executions share a loop (`shared_loop`).
"""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import aclosing, nullcontext, suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol

from resilient_scan.context import ScanContext
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker, keep_valid

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
            loop = EventLoop()
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

    def _run(self, loop: EventLoop, work: Any, context: AttemptContext) -> Any:
        canceller = Canceller(loop, loop.create_task(work), context)
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
    async with aclosing(answer) if isinstance(answer, AsyncGenerator) else nullcontext():
        async for item in answer:
            context.check()  # also ends a generator that never would
            keep_valid((item,), make, context)
    return ()


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop that a forked child leaves alone: closing its copy would unhook the parent's.

    Attributes:
        offload: takes blocking calls while an attempt is under way, in place of asyncio's own executor.
    """

    _made_in = 0  # the process; 0: it could not be made, and there is nothing to close
    _closed = True  # until it is made: asyncio's `__del__` asks, whatever has kept it from being made
    _has_executor = False  # of the scanner's own
    time: Callable[[], float] = staticmethod(monotonic)  # not whatever a scanner has replaced `time.monotonic` with

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        self.offload: Callable[[Callable[[], Any]], Future[Any]] | None = None
        try:
            super().__init__(selector)
            self._made_in = os.getpid()
        except BaseException:  # no descriptor left for the selector or for the pipe that wakes it, or a signal
            with suppress(AttributeError):  # half of it may be missing
                super().close()
            self._closed = True
            raise

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
        if self.is_mine:
            super().close()

    @property
    def is_mine(self) -> bool:
        """Whether this process has made it."""
        return os.getpid() == self._made_in


class Canceller:
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
        """Cancel nothing any more: the attempt has ended."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._cancelled = True

    def set(self) -> None:
        """Have the loop cancel the task, if the scan has ended; from any thread."""
        if self._context.abandoned:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nothing is left to cancel
                self._loop.call_soon_threadsafe(self.cancel)

    def cancel(self) -> None:
        """Cancel the task, unless that was done; on the loop's thread."""
        if not self._cancelled:
            self._cancelled = True
            if self.task.cancel():
                self._context.freed_by = "cancel"


def _wind_up(loop: EventLoop) -> None:
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
    """Cancel all tasks, but those that close a generator, and wait for them."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        if type(task.get_coro()).__name__ != "async_generator_athrow":  # what `aclose` returns has no other name
            task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
