"""Keeps forks out of the middle of an import that happens at first use.

Python locks a module while it is being imported. A child that is forked then inherits that lock, held by a thread that
it does not have: its own first use of the module would wait forever. A package that is imported whole, in the main
thread, before anything forks, never meets this. One that is imported when a thread first uses it does.
"""

from __future__ import annotations

import logging  # noqa: F401 - see below
import os
import threading
from typing import Final

FORK_TIMEOUT: Final = 5.0  # seconds for which a fork waits; then it goes ahead

IMPORTING: Final = threading.RLock()
"""Hold it around an import at first use: `with IMPORTING: from resilient_scan... import ...`."""

_held: Final[list[bool]] = []  # whether the fork under way has the lock; forks come one at a time


def _wait() -> None:
    _held.append(IMPORTING.acquire(timeout=FORK_TIMEOUT))


def _go_on() -> None:
    if _held.pop():
        IMPORTING.release()


# What is registered last is called first. So logging, which takes its own lock before a fork, has to be there already:
# otherwise the fork would hold that lock while it waits for an import, and the import would wait for a logger.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_go_on)
