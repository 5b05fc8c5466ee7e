"""Do the same thing to many items on a few threads, and let none of these threads outlive the call."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def fan_out(function: Callable[[T], R], items: Iterable[T], concurrency: int, over: Callable[[], bool]) -> list[R]:
    """Return `[function(item) for item in items]`, at most `concurrency` calls at a time.

    The calling thread is one of those at work. After the first error, or once `over()`, no further item is begun; the
    calls under way are waited for, so that a thread that hangs is the caller's to answer for, and not forgotten.

    Args:
        function: called with one item, in a copy of the caller's context variables.
        items: read to the end first.
        concurrency: calls at a time, >= 1.
        over: asked before each call.

    Returns:
        The results in the order of the items; fewer than the items only where it was over before the end.

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

    helpers = _start(work, min(concurrency, len(todo)) - 1)
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
    """Start helpers, as many as the machine has threads for: the caller's own is enough."""
    helpers: list[threading.Thread] = []
    with suppress(RuntimeError):
        for _ in range(count):
            helper = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
            helper.start()
            helpers.append(helper)
    return helpers
