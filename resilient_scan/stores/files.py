"""A store's file, whatever is in it: which one it is, made, held by one process at a time, moved aside."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from resilient_scan.errors import StoreError

Identity = tuple[int, int]
"""Device and inode: another file of the same name has another one."""


def identity_of(path: Path) -> Identity | None:
    """Return which file it is, or `None` if there is none.

    Raises:
        StoreError: it cannot be looked at.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - on the way of every transaction
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the store {path} cannot be used: {error.strerror}") from error
    return found.st_dev, found.st_ino


def made(path: Path) -> Identity | None:
    """Return a file's identity; where there is none, make an empty one that is for our eyes only.

    Returns:
        `None` if somebody took it away just then.

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
    """Make an empty file without opening it: closing it would drop the locks of a connection made meanwhile."""
    with suppress(FileExistsError):
        try:
            os.mknod(path, 0o600)
        except PermissionError:  # where only root may, or nobody
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


@contextmanager
def alone(directory: Path, patience: float) -> Iterator[None]:
    """Hold a lock on a directory that one process at a time has, for which `patience` seconds are waited.

    Raises:
        TimeoutError: another one holds it for too long.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        for _ in range(max(1, int(patience / 0.01))):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)  # the other process' time, not the clock's
            else:
                break
        else:
            raise TimeoutError(0, "another process has been repairing it for too long")
        yield
    finally:
        os.close(handle)


def move_aside(path: Path, now: float) -> Path:
    """Rename the file, its journals first: a journal without its file would be taken for the new one's."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    target, number = path.with_name(f"{path.name}.corrupt-{stamp}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    for suffix in ("-journal", "-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    return target
