"""Event loops for `async def` scanners: one per scanner and thread at a time, kept for the next attempt.

A loop is run by the worker that the scan has anyway. So a coroutine that blocks its loop costs nobody but its own
scanner, and a client that keeps connections (they belong to a loop) finds them again in the next run.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

from resilient_scan.context import ScanContext
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker, keep_valid


class Loops:
    """One scanner's idle loops; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[asyncio.AbstractEventLoop] = []
        self._closed = False

    def finish(self, work: Coroutine[Any, Any, Any], context: ScanContext) -> Any:
        """Run a coroutine to its end on this thread; at the end of the scan it is cancelled, really.

        Raises:
            ScanCancelled: the scan is over.
            BaseException: what the coroutine raised.
        """
        loop = self._take()
        task = loop.create_task(work)
        canceller = _Canceller(loop, task, context)
        alarm = loop.call_later(context.remaining(), task.cancel) if context.remaining() < 1e9 else None
        try:
            with context.watched(canceller):
                canceller.set()  # it may have been cancelled before anybody watched
                return loop.run_until_complete(task)
        except asyncio.CancelledError:
            context.check()
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            _end_tasks(loop)
            self._put_back(loop)

    def close(self) -> None:
        """Close the idle loops; one that is at work is closed when it is through."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for loop in idle:
            _close(loop)

    def _take(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Loop()

    def _put_back(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(loop)
                return
        _close(loop)


async def collect(answer: Any, make: Maker, context: AttemptContext) -> Any:
    """Await a coroutine's answer, or keep what an asynchronous generator yields as it comes."""
    if not isinstance(answer, AsyncIterator):
        return await answer
    async for item in answer:
        context.check()  # also ends a generator that never would
        keep_valid((item,), make, context)
    return ()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that a forked child leaves alone: closing its copy would unhook the parent's."""

    def __init__(self) -> None:
        super().__init__()
        self._made_in = os.getpid()

    def close(self) -> None:
        if os.getpid() == self._made_in:
            super().close()


class _Canceller:
    """What a cancel of the scan raises while a loop runs, in place of a flag that nobody would look at."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], context: ScanContext) -> None:
        self._loop = loop
        self._task = task
        self._context = context

    def set(self) -> None:
        if self._context.abandoned:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nothing is left to cancel
                self._loop.call_soon_threadsafe(self._task.cancel)


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
