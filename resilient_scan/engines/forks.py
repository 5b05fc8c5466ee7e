"""Forked children: one that a scanner forks must not go on as a copy of what called the scanner."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

depth: int = 0  # how many forks lie between the first process and this one: read it as `forks.depth`


def _forked() -> None:
    global depth  # noqa: PLW0603 - one number for the process
    depth += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def end_child(scanner: str) -> NoReturn:
    """End a forked child that came back from its scanner.

    It has a copy of the worker's stack. If it went on, it would vote on the breaker, fill the cache, write to the store
    and wait for tasks as a second worker, with locks that a thread of the parent held at the fork and no one will
    release.
    """
    text = f"resilient-scan: a child that {scanner} forked came back from the scanner; it ends here\n"
    with suppress(OSError):  # standard error may be closed, or its pipe has no reader
        os.write(2, text.encode())
    os._exit(os.EX_SOFTWARE)


def in_parent_only(scanner: str, call: Callable[[], Any]) -> Any:
    """Call `call`, and end a child that it forked and that comes back from it."""
    before = depth
    try:
        return call()
    finally:
        if depth != before:
            end_child(scanner)
