"""Asynchronous generators on an event loop that outlives the attempt which has begun them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet


class Generators:
    """The asynchronous generators that an attempt begins; what it leaves unfinished ends with it, cleanup included.

    Python hands one that nobody holds any more to its event loop, which finishes it in a task of its own, some time.
    The loop outlives the attempt here. So a connection that such a generator holds would be given back at some point
    of somebody else's scan, and one that is still held, in a cycle say, only when the runner is closed.

    Args:
        loop: that finishes them.
        detach: called with the task that finishes one, which is not to be cancelled.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, detach: Callable[[asyncio.Task[Any]], Any] = lambda _task: None
    ) -> None:
        self._loop = loop
        self._detach = detach
        self._thread = threading.get_ident()
        self._begun: WeakSet[AsyncGenerator[Any, Any]] = WeakSet()
        self.closing: set[asyncio.Task[Any]] = set()

    def began(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Note that the attempt begins one."""
        self._begun.add(generator)

    def dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Finish one that nobody holds any more; a garbage collection may find it on any thread."""
        if threading.get_ident() != self._thread:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.dropped, generator)
            return
        task = self._loop.create_task(self._close(generator))
        self._detach(task)
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)

    def __bool__(self) -> bool:
        """Say whether any are left."""
        return bool(self._begun or self.closing)

    async def close(self) -> None:
        """Finish all that are left, at the end of the attempt."""
        begun = tuple(self._begun)
        self._begun.clear()
        for generator in begun:
            await self._close(generator)
        while self.closing:
            await asyncio.wait(self.closing)

    async def _close(self, generator: AsyncGenerator[Any, Any]) -> None:
        try:
            await generator.aclose()
        except Exception as error:  # its cleanup is the scanner's code
            message = f"{generator!r} could not be closed"
            self._loop.call_exception_handler({"message": message, "exception": error, "asyncgen": generator})
