"""Threads: an attempt runs on the worker that took the scan, an `async def` one on an event loop of that worker."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from types import CoroutineType
from typing import Any

from resilient_scan.engines import forks
from resilient_scan.engines.loop import Calls, Coroutines
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.call import Maker, keep_valid
from resilient_scan.scanning import ScannerSpec


class Once(Maker):
    """Asks one scanner once, and makes its candidates: one object for the garbage collector to look at, and not six.

    Args:
        spec: the scanner.
        loops: run its coroutines.
        calls: takes the blocking calls that coroutines hand to a thread.

    Attributes:
        name: the scanner's.
        scan: its function.
        takes_context: whether that takes the context, too.
    """

    __slots__ = ("_calls", "_loops", "name", "scan", "takes_context")

    def __init__(self, spec: ScannerSpec, loops: Coroutines, calls: Calls) -> None:
        super().__init__(spec.candidate, spec.name)
        self.name = spec.name
        self.scan, self.takes_context = spec.scan, spec.takes_context
        self._loops = loops
        self._calls = calls

    def call(self, context: AttemptContext) -> list[Any]:
        """Return the valid candidates.

        Raises:
            TypeError: what the scanner returned is not an iterable of candidates.
            ScanCancelled: the time was up while candidates were being yielded.
            BaseException: whatever the scanner raised.
        """
        before = forks.depth
        try:
            state = context.begin_attempt()
            self.keep(self.scan(state, context) if self.takes_context else self.scan(state), context)
            return context.found or []
        finally:
            if forks.depth != before:
                forks.end_child(self.name)

    def keep(self, answer: Any, context: AttemptContext) -> None:
        """Keep the valid candidates of what the scanner returned; await that first if need be."""
        kind = type(answer)
        if kind is CoroutineType or (
            kind is not list and (inspect.isawaitable(answer) or isinstance(answer, AsyncIterator))
        ):
            answer = self._loops.finish(answer, self, context, self._calls)
        if type(answer) is not list or answer:
            keep_valid(answer, self, context)
