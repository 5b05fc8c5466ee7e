"""Threads: an attempt runs on the worker that took the scan, an `async def` one on an event loop of that worker."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

from resilient_scan.engines.forks import end_child, forks
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
        make, scan, loops, calls = Maker(spec.candidate, spec.name), spec.call, self._loops, self._calls

        def once(context: AttemptContext) -> list[Any]:
            before = forks()
            try:
                answer = scan(context.begin_attempt(), context)
                if type(answer) is list:
                    if answer:
                        keep_valid(answer, make, context)
                else:
                    if inspect.isawaitable(answer) or isinstance(answer, AsyncIterator):
                        answer = loops.finish(answer, make, context, calls)
                    keep_valid(answer, make, context)
                return context.found
            finally:
                if forks() != before:
                    end_child(spec.name)

        return once
