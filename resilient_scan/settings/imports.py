"""Import foreign packages under a time limit, on threads that may be abandoned.

A package may hang at import: it asks a server that does not answer, or waits for a lock. Python cannot stop a thread,
so the import runs on one of its own, a daemon, which is abandoned when the time is up.

An abandoned thread holds the import system's locks of the modules that it was importing. An import of one of them waits
as long as it hangs, and would be blamed in its place. So before we blame an import, and at once where there is an
abandoned one, we look what it waits for.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Final, Generic, TypeVar

from resilient_scan.core.hangs import current_frames

IMPORT_TIMEOUT: Final = 10.0
POLL_INTERVAL: Final = 0.05  # seconds between two looks at what an import waits for, while an abandoned one may be why
MAX_FRAMES: Final = 6
_SYSTEM: Final = "<frozen importlib._bootstrap>"

Value = TypeVar("Value")


class ImportHangs(Exception):
    """An import did not end in time.

    Args:
        message: where it is, or what it waits for; to go after the name of what was imported.
        is_victim: whether it waits for another one that is to blame.
    """

    def __init__(self, message: str, *, is_victim: bool) -> None:
        super().__init__(message)
        self.is_victim = is_victim


class _Import(threading.Thread, Generic[Value]):
    """One import, and what came of it."""

    def __init__(self, call: Callable[[], Value], what: str) -> None:
        super().__init__(name="resilient-scan-import", daemon=True)
        self._call = call
        self.ended = threading.Event()  # Ctrl-C interrupts a wait for it on every Python, unlike `join`
        self.culprit = what  # the import to blame if this one hangs
        self.value: Value
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:  # `sys.exit()`, and panics of foreign extensions
            self.error = error
        self.ended.set()

    def blocker(self) -> str:
        """Say what this import waits for, and name the abandoned one that is to blame; an empty text: for neither."""
        frames = current_frames()
        awaited = _awaited(frames.get(self.ident or 0))
        for other in _abandoned:
            if awaited and awaited in set(_imported(frames.get(other.ident or 0))):
                self.culprit = other.culprit
                return f"its import waits for {awaited}, because that of {other.culprit} has not ended"
        return ""


_abandoned: Final[list[_Import]] = []  # type: ignore[type-arg]


def within(timeout: float, call: Callable[[], Value], what: str) -> Value:
    """Return what `call` returns, and raise what it raises.

    Args:
        timeout: seconds that it gets.
        call: imports something.
        what: names that, for messages about imports that wait for it.

    Raises:
        ImportHangs: the time was up; the thread is abandoned.
    """
    if _is_importing():
        return call()
    _abandoned[:] = [each for each in _abandoned if not each.ended.is_set()]
    work, end = _Import(call, what), time.monotonic() + timeout
    work.start()
    while not work.ended.wait(min(POLL_INTERVAL if _abandoned else timeout, max(0.0, end - time.monotonic()))):
        why = work.blocker() if _abandoned else ""
        if not why and time.monotonic() < end:
            continue
        stack = ", ".join(_stack(current_frames().get(work.ident or 0)))
        _abandoned.append(work)
        own = f"its import has not ended within {timeout:g}s; it is at {stack or 'its beginning'}"
        raise ImportHangs(why or own, is_victim=bool(why))
    if work.error is not None:
        raise work.error
    return work.value


def _is_importing() -> bool:
    """Say whether this thread is itself importing a module.

    An application may make its runner while its own module is imported, and its scanners may import that module.
    Another thread would wait for it, and this one for the other.
    """
    return any(frame.f_code.co_filename == _SYSTEM for frame, _ in traceback.walk_stack(sys._getframe()))  # noqa: SLF001


def _awaited(frame: FrameType | None) -> str:
    """Return the module whose lock a thread waits for, or an empty text."""
    if frame is None or frame.f_code.co_filename != _SYSTEM or frame.f_code.co_name != "acquire":
        return ""
    return str(getattr(frame.f_locals.get("self"), "name", ""))


def _imported(frame: FrameType | None) -> Iterator[str]:
    """Yield the modules that a thread is importing."""
    for each, _ in traceback.walk_stack(frame) if frame else ():
        if each.f_code.co_filename == _SYSTEM and each.f_code.co_name == "_find_and_load":
            yield str(each.f_locals.get("name"))


def _stack(frame: FrameType | None) -> list[str]:
    """Return where a thread is, in foreign code: the last few calls, the innermost at the end."""
    calls = takewhile(lambda call: call[0].f_code.co_filename != __file__, traceback.walk_stack(frame) if frame else ())
    foreign = [
        f"{_short(call.f_code.co_filename)}:{line} in {call.f_code.co_name}"
        for call, line in calls
        if str(call.f_globals.get("__name__")).partition(".")[0]
        not in {"importlib", "_frozen_importlib", "resilient_scan"}
    ]
    return foreign[:MAX_FRAMES][::-1]


def _short(filename: str) -> str:
    """Return a file's name, with its folder's where that says more: `feeds/__init__.py`."""
    path = Path(filename)
    return f"{path.parent.name}/{path.name}" if path.stem == "__init__" else path.name
