"""Forked children: one that a scanner forks must not go on as a copy of what called the scanner."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

_forks = 0  # between the first process and this one


def _forked() -> None:
    global _forks  # noqa: PLW0603 - one number for the process
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def forks() -> int:
    """Return how many forks lie between the first process and this one."""
    return _forks


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
    before = _forks
    try:
        return call()
    finally:
        if _forks != before:
            end_child(scanner)
