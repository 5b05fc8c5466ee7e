"""What one thread alone may do at a time, and no fork may interrupt: a class that msgspec learns, and a first import.

msgspec learns a class when it first meets it, and crashes the interpreter if two threads bring it the same one.

Python locks a module while it is being imported. A child that is forked then inherits that lock, held by a thread that
it does not have: its own first use of the module would wait forever. A package that is imported whole, in the main
thread, before anything forks, never meets this. One that is imported when a thread first uses it does.
"""

from __future__ import annotations

import logging  # noqa: F401 - see below
import os
import threading
from typing import Any, Final, TypeVar

Shape = TypeVar("Shape")
FORK_TIMEOUT: Final = 5.0  # seconds for which a fork waits for an import; then it goes ahead

IMPORTING: Final = threading.RLock()
"""Hold it around an import at first use: `with IMPORTING: from resilient_scan... import ...`."""

_learning: Final = threading.Lock()
_known: Final[set[Any]] = set()
_held: Final[list[bool]] = []  # whether the fork under way has `IMPORTING`; forks come one at a time


def ready(kind: Shape) -> Shape:
    """Return a type once msgspec has learnt it; give `msgspec.convert` no other where threads may read at once."""
    if kind not in _known:
        import msgspec  # noqa: PLC0415 - not before the first name of the package is used

        with _learning:
            msgspec.msgpack.Decoder(kind)
            _known.add(kind)
    return kind


def _wait() -> None:
    _held.append(IMPORTING.acquire(timeout=FORK_TIMEOUT))


def _go_on() -> None:
    if _held.pop():
        IMPORTING.release()


# What is registered last is called first. `IMPORTING` comes last, because a thread that imports takes the other lock
# while it holds this one; the other way round, the fork and that thread would wait for each other. And logging, which
# takes a lock of its own before a fork, has to be there already, for the same reason: an import may log.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_learning.acquire, after_in_parent=_learning.release, after_in_child=_learning.release)
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_go_on)
