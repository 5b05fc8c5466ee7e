"""Event loops for `async def` scanners: one for each worker that runs a coroutine at the time, kept for the next one.

A loop is run by the worker that the scan has anyway. So a coroutine that blocks its loop costs nobody but its own
scanner. The scanners of a runner share the idle loops: each loop holds three descriptors, and with a loop per scanner a
fleet of 400 would use up the 1,024 that a process may have. So the next attempt of a scanner may get another loop, and
a client that belongs to a loop must not outlive its attempt.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from resilient_scan.context import ScanContext
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker, keep_valid


class Calls(Protocol):
    """Takes the blocking calls that a scanner's coroutines hand to a thread."""

    def admit(self, context: AttemptContext, /) -> None:
        """Let an attempt pass, or raise why it may not run."""

    def submit(self, call: Callable[[], Any], context: AttemptContext, /) -> Future[Any]:
        """Run a call on a thread that is not the loop's."""


class Loops:
    """The idle loops of a runner; safe to use from any thread.

    Args:
        on_closed: called once it is closed and no loop is at work any more.
    """

    def __init__(self, on_closed: Callable[[], None] = lambda: None) -> None:
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._idle: list[_Loop] = []
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
            loop = self._take()
        except BaseException:
            if hasattr(answer, "close"):
                answer.close()  # else Python warns of a coroutine that was never awaited
            raise
        try:
            loop.offload = lambda call: calls.submit(call, context)
            return self._run(loop, collect(answer, make, context), context)
        finally:
            loop.offload = None  # an idle loop must not keep the last scan's state alive
            self._put_back(loop)

    def _run(self, loop: _Loop, work: Any, context: AttemptContext) -> Any:
        canceller = _Canceller(loop, loop.create_task(work), context)
        alarm = loop.call_later(context.remaining(), canceller.cancel) if context.remaining() < 1e9 else None
        try:
            with context.watched(canceller):
                canceller.set()  # it may have been cancelled before anybody watched
                return loop.run_until_complete(canceller.task)
        except asyncio.CancelledError:
            context.check()
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            _end_tasks(loop)

    def close(self) -> None:
        """Close the idle loops; one that is at work is closed when it is through."""
        with self._lock:
            closed, self._closed = self._closed, True
            idle, self._idle = self._idle, []
            last = not closed and not self._at_work
        for loop in idle:
            _close(loop)
        if last:
            self._on_closed()

    def _take(self) -> _Loop:
        with self._lock:
            self._at_work += 1
            if self._idle:
                return self._idle.pop()
        try:
            return _Loop()
        except BaseException:
            self._leave()
            raise

    def _put_back(self, loop: _Loop) -> None:
        fresh = loop.as_made()
        with self._lock:
            if fresh and not self._closed:
                self._at_work -= 1
                self._idle.append(loop)
                return
        _close(loop)
        self._leave()

    def _leave(self) -> None:
        """Note that a loop is not at work any more, and is not idle either."""
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

    def __init__(self) -> None:
        self.offload: Callable[[Callable[[], Any]], Future[Any]] | None = None
        try:
            super().__init__()
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

    def as_made(self) -> bool:
        """Say whether it may be given to another scanner: nothing was set that would change what that one does."""
        return not self._has_executor and self.get_task_factory() is None and self.get_exception_handler() is None

    def close(self) -> None:
        """Close it in the process that made it."""
        if os.getpid() == self._made_in:
            super().close()


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

    def set(self) -> None:
        if self._context.abandoned:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nothing is left to cancel
                self._loop.call_soon_threadsafe(self.cancel)

    def cancel(self) -> None:
        """Cancel the task, unless that was done; on the loop's thread."""
        if not self._cancelled:
            self._cancelled = True
            self.task.cancel()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the scanner left running: it would go on in the next attempt."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop; where the caller is asyncio code, on a thread of its own: two cannot run on one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _shut_down(loop)
    else:
        thread = threading.Thread(target=_shut_down, args=(loop,), daemon=True)
        thread.start()
        thread.join()


def _shut_down(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
