"""Many calls on a few threads, none of which outlives the call that wanted them; and what a thread knows of its own."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class BlockingCall:
    """What is known about a blocking call that a coroutine has made on a thread, to the code in it.

    Attributes:
        incomplete, helpers: likewise as for `ScanContext`; several calls of one scan, and attempts after it, may go on.
    """

    incomplete: bool = False
    helpers: Sequence[threading.Thread] = ()


class _ThisThread(threading.local):
    call: BlockingCall | None = None


# Not a context variable: `asyncio.to_thread` runs what it calls in a context that it has copied before.
this_thread = _ThisThread()


def fan_out(
    function: Callable[[T], R],
    items: Iterable[T],
    concurrency: int,
    over: Callable[[], bool],
    started: Callable[[Sequence[threading.Thread]], None] = lambda _helpers: None,
) -> list[R]:
    """Return `[function(item) for item in items]`, at most `concurrency` calls at a time.

    The calling thread takes part. After the first error, or once `over()`, no further item is begun. The calls under
    way are waited for: if one hangs, the caller hangs with it and is abandoned as one thread, with no helper forgotten.

    Args:
        function: called with one item, in a copy of the caller's context variables.
        items: read to the end first.
        concurrency: calls at a time, >= 1.
        over: called before each item; `True` ends the fan-out.
        started: is given the threads that help.

    Returns:
        The results in the order of the items; fewer than the items only if `over()` ended it.

    Raises:
        BaseException: the first error, after the rest has stopped.
    """
    todo = list(items)
    numbers = iter(range(len(todo)))
    results: dict[int, R] = {}
    errors: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = None if errors or over() else next(numbers, None)
            if number is None:
                return
            try:
                results[number] = function(todo[number])
            except BaseException as error:
                with lock:
                    errors.append(error)

    call = this_thread.call

    def help_out() -> None:
        this_thread.call = call
        work()

    helpers = _start(help_out, min(concurrency, len(todo)) - 1)
    started(helpers)
    work()
    for helper in helpers:
        helper.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # else the exception and this frame hold each other until a collection
    return [results[number] for number in sorted(results)]


def _start(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start helper threads, as many as the machine has to give: the caller's own would do."""
    helpers: list[threading.Thread] = []
    with suppress(RuntimeError):
        for _ in range(count):
            helper = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
            helper.start()
            helpers.append(helper)
    return helpers
