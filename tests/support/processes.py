"""Checks that run in a forked child."""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

needs_fork = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def in_child(check: Callable[[], None]) -> None:
    """Call `check` in a forked child, and fail with its text where it raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(30)  # a child that hangs fails its test
            os.close(reader)
            check()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, text


def in_children_amid(work: Callable[[int], object], threads: int, check: Callable[[], None]) -> None:
    """Call `check` in twelve forked children, while threads repeat `work`, each with its number."""
    over = threading.Event()

    def repeat(number: int) -> None:
        while not over.is_set():
            work(number)

    crew = [threading.Thread(target=repeat, args=(number,), daemon=True) for number in range(threads)]
    for thread in crew:
        thread.start()
    try:
        for _ in range(12):
            in_child(check)
    finally:
        over.set()
        for thread in crew:
            thread.join(5)
    assert not any(thread.is_alive() for thread in crew)


def from_child(work: Callable[[], object]) -> Any:
    """Return what `work` returns in a forked child, as JSON carries it; fail with its text where it raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            signal.alarm(60)  # a child that hangs fails its test
            os.close(reader)
            text = json.dumps(["returned", work()])
        except BaseException:
            text = json.dumps(["raised", traceback.format_exc()[-4000:]])
        finally:
            with suppress(OSError), os.fdopen(writer, "w") as pipe:
                pipe.write(text)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said, "the child was killed"
    how, what = json.loads(said)
    assert how == "returned", what
    return what
