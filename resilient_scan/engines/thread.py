"""Threads: an attempt runs on the worker that took the scan, an `async def` one on an event loop of that worker."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from types import CoroutineType
from typing import Any

from resilient_scan.engines import forks
from resilient_scan.engines.loop import Calls, Coroutines
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.layers.call import Maker, keep_valid
from resilient_scan.scanning import ScannerSpec


class ThreadEngine:
    """Call the scanner's function where the caller is.

    Args:
        loops: run coroutines.
        calls: takes the blocking calls that coroutines hand to a thread.
    """

    def __init__(self, loops: Coroutines, calls: Calls) -> None:
        self._loops = loops
        self._calls = calls

    def attempt(self, spec: ScannerSpec, /) -> Call:
        """Return the call that asks the scanner once and keeps the valid candidates.

        Raises (when called):
            TypeError: what the scanner returned is not an iterable of candidates.
            ScanCancelled: the time was up while candidates were being yielded.
            BaseException: whatever the scanner raised.
        """
        return self.once(spec).call

    def once(self, spec: ScannerSpec) -> Once:
        """Return the object whose `call` that is."""
        return Once(spec, self._loops, self._calls)


class Once:
    """Asks one scanner once. An object, where a function would have six for the garbage collector to look at.

    Attributes:
        name: the scanner's.
        scan: its function.
        make: makes its candidates.
    """

    __slots__ = ("_calls", "_loops", "make", "name", "scan")

    def __init__(self, spec: ScannerSpec, loops: Coroutines, calls: Calls) -> None:
        self.name = spec.name
        self.scan = spec.call
        self.make = Maker(spec.candidate, spec.name)
        self._loops = loops
        self._calls = calls

    def call(self, context: AttemptContext) -> list[Any]:
        """Return the valid candidates; see `ThreadEngine.attempt`."""
        before = forks.depth
        try:
            self.keep(self.scan(context.begin_attempt(), context), context)
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
            answer = self._loops.finish(answer, self.make, context, self._calls)
        if type(answer) is not list or answer:
            keep_valid(answer, self.make, context)
