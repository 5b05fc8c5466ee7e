"""What the race tests share: threads that switch all the time, and a watch over them all."""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fixtures import Crew

WAIT_TIMEOUT = 60.0


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Switch threads as often as the interpreter can; a deadlock ends the tests and shows where all threads are."""
    before = sys.getswitchinterval()
    faulthandler.dump_traceback_later(2 * WAIT_TIMEOUT, exit=True)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def crew() -> Crew:
    """Return a function that calls several others at the same time, each in a thread, and returns their results.

    `crew(call, call, ...)` or `crew(call, times=4)`, which hands its number to each; the first error is raised.
    """

    def start(*calls: Callable[..., Any], times: int = 0) -> list[Any]:
        work = [*calls] if not times else [lambda number=number: calls[0](number) for number in range(times)]
        barrier = threading.Barrier(len(work), timeout=WAIT_TIMEOUT)
        results: list[Any] = [None] * len(work)
        errors: list[BaseException] = []

        def run(number: int) -> None:
            try:
                barrier.wait()
                results[number] = work[number]()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_TIMEOUT)
            assert not thread.is_alive(), "a thread does not come to an end"
        if errors:
            raise errors[0]
        return results

    return start
