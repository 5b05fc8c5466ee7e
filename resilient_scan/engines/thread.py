"""Threads: an attempt runs on the worker that took the scan, an `async def` one on an event loop of that worker."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, NoReturn

from resilient_scan.engines.loop import Calls, Coroutines
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.layers.call import keep_valid, maker_of
from resilient_scan.scanning import ScannerSpec

_forks = 0  # between the first process and this one


def _forked() -> None:
    global _forks  # noqa: PLW0603 - one number for the process
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _end_child(scanner: str) -> NoReturn:
    """End a forked child that came back from its scanner.

    It has a copy of the worker's stack. If it went on, it would vote on the breaker, fill the cache, write to the store
    and wait for tasks as a second worker, with locks that a thread of the parent held at the fork and no one will
    release.
    """
    with suppress(OSError):  # standard error may be closed, or its pipe has no reader
        os.write(
            2, f"resilient-scan: a child that {scanner} forked came back from the scanner; it ends here\n".encode()
        )
    os._exit(os.EX_SOFTWARE)


def in_parent_only(scanner: str, call: Callable[[], Any]) -> Any:
    """Call `call`, and end a child that it forked and that comes back from it."""
    forks = _forks
    try:
        return call()
    finally:
        if _forks != forks:
            _end_child(scanner)


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
        make, scan, loops, calls = maker_of(spec.candidate, spec.name), spec.call, self._loops, self._calls

        def once(context: AttemptContext) -> list[Any]:
            forks = _forks
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
                if _forks != forks:
                    _end_child(spec.name)

        return once
