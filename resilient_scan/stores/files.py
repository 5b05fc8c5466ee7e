"""A store's file, whatever is in it: which one it is, and how it is made, locked and moved aside.

Nothing here opens a file that is there: when a process closes any handle of a file, POSIX drops all locks that the
process has on that file, those of its SQLite connections included.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from resilient_scan.errors import StoreError

DIRECTORY_POLL_INTERVAL = 0.01  # seconds between two attempts to lock a directory
MAX_ASIDE = 3  # damaged files that are kept
_JOURNALS = ("-journal", "-wal", "-shm", "")  # what a file's name is followed by, and the file itself last

Identity = tuple[int, int]
"""Device and inode: they tell a file from a new one of the same name."""


def identity_of(path: Path) -> Identity | None:
    """Return which file has this name, or `None` if there is no such file.

    Raises:
        StoreError: the file cannot be looked at.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - once per transaction, and faster
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the store {path} cannot be used: {error.strerror}") from error
    return found.st_dev, found.st_ino


def made(path: Path) -> Identity | None:
    """Return a file's identity; if there is no file, make an empty one that only this user can read.

    Returns:
        `None` if the file was removed just then.

    Raises:
        StoreError: it cannot be made.
    """
    found = identity_of(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_empty(path)
    except OSError as error:
        raise StoreError(f"the store {path} cannot be made: {error.strerror}") from error
    return identity_of(path)


def _make_empty(path: Path) -> None:
    """Make an empty file without opening it: closing it would drop the locks of a connection made in the meantime."""
    with suppress(FileExistsError):
        try:
            os.mknod(path, 0o600)
        except PermissionError:  # where only root may, or nobody
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


@contextmanager
def alone(directory: Path, timeout: float) -> Iterator[None]:
    """Hold a lock on a directory that one process at a time can hold; wait for it at most `timeout` seconds.

    Raises:
        TimeoutError: another process holds it for longer.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        for _ in range(max(1, int(timeout / DIRECTORY_POLL_INTERVAL))):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(DIRECTORY_POLL_INTERVAL)  # real time: we wait for another process
            else:
                break
        else:
            raise TimeoutError(0, "another process has been repairing it for too long")
        yield
    finally:
        os.close(handle)


def move_aside(path: Path, now: float) -> Path:
    """Rename the file after its journals: SQLite would take a journal that stays behind for the new file's."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    target, number = path.with_name(f"{path.name}.corrupt-{stamp}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    for suffix in _JOURNALS:
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    return target


def remove_older(path: Path, newest: Path) -> None:
    """Remove what was moved aside before, except for the last ones; nothing that has any other name.

    A disk that damages files again and again would be full of them otherwise. `newest` stays whatever its name says:
    the clock may have gone back.
    """
    form = re.compile(rf"{re.escape(path.name)}\.corrupt-(\d{{8}}T\d{{6}}Z)(?:-(\d+))?")
    named = [(form.fullmatch(each.name), each) for each in path.parent.iterdir() if each != newest]
    older = sorted((match[1], int(match[2] or 1), each) for match, each in named if match)
    for _, _, each in older[: 1 - MAX_ASIDE]:
        if each.is_file() and not each.is_symlink():
            for suffix in _JOURNALS:
                with suppress(OSError):
                    each.with_name(each.name + suffix).unlink()
