"""One SQLite file: connections to it, transactions in it, and what to do when it is damaged.

A connection is used by one thread at a time and kept for the next; so a thread that ends leaves none open. Nobody here
ever opens the file in another way: closing it would drop the locks of all connections of the process (POSIX).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores.batching import MAX_VALUE_BYTES
from resilient_scan.stores.health import Backoff, allowed_wait, waits_are_unlimited
from resilient_scan.stores.schema import (
    Damaged,
    Row,
    bring_up_to_date,
    check_documents,
    code_of,
    is_damage,
    is_damaged,
    rescue,
    restore,
)

# Keep forks out of the middle of a database library's call.
#
# A lock that a library's own code holds in another thread at the instant of a fork is held in the child for ever, by
# nobody. So a fork waits until no such call is under way, and new calls wait until it is over.

PATIENCE = 5.0  # seconds for which a fork waits; then it goes ahead


class _Outside:
    """How many calls are under way, and whether a fork waits for their end."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew, in a child."""
        self._changed = threading.Condition()
        self._calls = 0
        self._forking = False

    @contextmanager
    def of_forks(self) -> Iterator[None]:
        """Run a call; no fork happens during it."""
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def hold(self) -> None:
        """Wait until no call is under way, and keep new ones waiting (before a fork)."""
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: not self._calls, PATIENCE)

    def go_on(self) -> None:
        """Let calls begin again (after a fork, in the parent)."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


OUTSIDE = _Outside()
os.register_at_fork(before=OUTSIDE.hold, after_in_parent=OUTSIDE.go_on, after_in_child=OUTSIDE.begin)


# A store's file, whatever is in it: which one it is, made, held by one process at a time, moved aside.

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


_log = logging.getLogger("resilient_scan")
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

PATIENCE_AWAY = 0.05  # seconds, once it was waited for in vain
GRACE = 0.1  # seconds more, for another thread that waits for it
POLL = 0.0005  # seconds between two attempts to get it
WAL_SINCE = (3, 51, 3)  # older ones may lose pages of a WAL that is reset
IDLE = 16  # connections
TRIES = 4  # of one transaction, when the file is replaced under it
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})


class Moved(Exception):
    """Another file has taken the place of the one that is open."""


class _Open:
    """A connection, which file it is open on, and for how many seconds it waits for locks of others."""

    def __init__(self, raw: sqlite3.Connection, identity: Identity, patience: float) -> None:
        self.raw = raw
        self.identity = identity
        self._patience = patience

    def wait_for(self, patience: float) -> None:
        """Wait so long for locks."""
        if patience != self._patience:
            self.raw.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
            self._patience = patience

    def begin(self, patience: float) -> bool:
        """Begin to write, and say whether others had to be waited for.

        SQLite itself would ask less and less often, up to ten times a second, and would not come in between others
        who begin again at once.
        """
        until = time.monotonic() + patience  # the other processes' time, not the clock's
        self.wait_for(0)
        waited = False
        while True:
            try:
                self.raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if code_of(error) & 0xFF not in _LOCKED or time.monotonic() >= until:
                    raise
                waited = True
                time.sleep(POLL)
            else:
                self.wait_for(patience)
                return waited


class Database:
    """The file at `path`, made when it is first used.

    Args:
        path: where it is, absolute.
        clock: where time comes from.
        durable: whether what was written outlives a loss of power; it outlives the end of the process anyhow.
    """

    def __init__(self, path: Path, clock: Clock, *, durable: bool = True) -> None:
        self._path = path
        self._clock = clock
        self._synchronous = "FULL" if durable else "OFF"
        self._idle: list[_Open] = []
        self._closed = False
        self._checked: Identity | None = None
        self.begin()
        weakref.finalize(self, _close_all, self._idle)

    def begin(self) -> None:
        """Begin anew, without the connections there were."""
        self._writing = threading.Lock()
        self._backoff = Backoff(self._clock)
        _close_all(self._idle)

    def close(self) -> None:
        """Close the connections; one that is in use is closed after that."""
        self._closed = True
        _close_all(self._idle)

    def look(self) -> None:
        """Open the file, if there is one.

        Raises:
            StoreError: it cannot be used.
        """
        with suppress(OSError):
            if self._path.exists():
                self.read(lambda _database: None)

    def read(self, work: Work[T]) -> T:
        """Return what one statement finds.

        Raises:
            StoreError: the file cannot be used.
        """
        return self._run(work, writing=False)

    def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own, one at a time; what it raises rolls it back.

        Raises:
            StoreError: the file cannot be used, or cannot be written.
        """
        # The threads of a process wait here for each other, where the first to come is the first to go: in SQLite
        # they would sleep and try again.
        # A little longer than the first of them waits for other processes: so they hear of these, and not of it.
        patience = allowed_wait(PATIENCE)
        if not self._writing.acquire(timeout=patience + GRACE):
            raise StoreError(f"the store {self._path} is locked by another thread for more than {patience:g} s")
        try:
            return self._run(work, writing=True)
        finally:
            self._writing.release()

    def _run(self, work: Work[T], *, writing: bool) -> T:
        if not waits_are_unlimited():
            self._backoff.check()
        for _ in range(TRIES):
            try:
                result = self._attempt(work, writing=writing)
            except Moved:
                continue
            except Damaged as damage:
                self._replace(str(damage))
            except UnicodeDecodeError:  # the text of an error with damaged names in it; or what `work` has raised
                if not self._replace("its names are no text"):
                    raise
            else:
                self._backoff.succeeded()
                return result
        raise StoreError(f"the store {self._path} cannot be used: each new file is damaged or replaced at once")

    def _attempt(self, work: Work[T], *, writing: bool) -> T:
        try:
            with OUTSIDE.of_forks():
                connection = self._take()
                try:
                    result = self._transaction(connection, work) if writing else work(connection.raw)
                except BaseException:
                    connection.raw.close()  # rolls back
                    raise
                self._give_back(connection)
        except sqlite3.Error as error:
            raise self._told(error) from error
        return result

    def _transaction(self, connection: _Open, work: Work[T]) -> T:
        waited = connection.begin(self._patience)
        # Another process that finds the file damaged locks it, moves it aside and makes a new one. Whoever waited for
        # that lock has it now, on the file that was moved: what is written there is lost, so look again.
        if identity_of(self._path) != connection.identity:
            raise Moved
        result = work(connection.raw)
        connection.raw.execute("COMMIT")
        if waited:  # and so may others: who goes on at once would shut them out for as long as it has work
            time.sleep(2 * POLL)
        return result

    @property
    def _patience(self) -> float:
        return allowed_wait(PATIENCE if self._backoff.reachable or waits_are_unlimited() else PATIENCE_AWAY)

    def _take(self) -> _Open:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if identity_of(self._path) == connection.identity:
                connection.wait_for(self._patience)
                return connection
            connection.raw.close()
        return self._connect(self._patience)

    def _give_back(self, connection: _Open) -> None:
        self._idle.append(connection)
        if self._closed:  # by another thread, which may have looked before the connection was back
            _close_all(self._idle)
        elif len(self._idle) > IDLE:
            connection = self._idle.pop()
            connection.raw.close()

    def _connect(self, patience: float) -> _Open:
        identity = made(self._path)
        if identity is None:
            raise Moved
        raw = _connect(self._path, patience)
        try:
            raw.execute(f"PRAGMA synchronous = {self._synchronous}")
            _set_journal(raw, self._path)
            if identity != self._checked:
                bring_up_to_date(raw, str(self._path))
                check_documents(raw)
        except BaseException:
            raw.close()
            raise
        if identity != identity_of(self._path):  # which of the two is open?
            raw.close()
            raise Moved
        self._checked = identity
        return _Open(raw, identity, patience)

    def _replace(self, why: str) -> bool:
        """Move the file aside if it is damaged indeed, so that a new one is made; say whether it was.

        One process at a time does, and looks at the file that is there *now*: it may be the new one already. While it
        looks it keeps all others out of the file, so that none can write into it in the meantime.
        """
        try:
            with (
                OUTSIDE.of_forks(),
                alone(self._path.parent, allowed_wait(PATIENCE)),
                closing(_connect(self._path, allowed_wait(PATIENCE))) as raw,
            ):
                if not is_damaged(raw, self._path):
                    return False
                kept, aside = rescue(raw), move_aside(self._path, self._clock.time())
        except Moved:  # by another process, just now
            return True
        except sqlite3.Error as error:
            raise self._told(error) from error
        except OSError as error:
            raise StoreError(
                f"the store {self._path} is damaged ({why}) and cannot be moved aside: {error.strerror}"
            ) from error
        self._begin_anew(why, aside, kept)
        return True

    def _begin_anew(self, why: str, aside: Path, kept: dict[str, list[Row]]) -> None:
        """Make a new file, with what was rescued of the one that was moved aside."""
        rescued = ""
        if any(kept.values()):
            with (
                suppress(sqlite3.Error, StoreError, OSError, Moved, Damaged),
                OUTSIDE.of_forks(),
                closing(self._connect(allowed_wait(PATIENCE)).raw) as raw,
            ):
                restore(raw, kept)
                rescued = ", with the orders, breakers and records that are whole"
        _log.warning(
            "the store %s is damaged (%s); it is moved aside to %s, and a new one is made%s",
            self._path,
            why,
            aside,
            rescued,
        )

    def _told(self, error: sqlite3.Error) -> Exception:
        """Return what an error means: damage, another file in its place, or what is wrong with the store."""
        if is_damage(error, self._path):
            return Damaged(str(error))
        if code_of(error) == sqlite3.SQLITE_READONLY_DBMOVED:
            return Moved()
        code = code_of(error) & 0xFF
        if code in _LOCKED:
            return self._backoff.failed(f"the store {self._path} is locked by another process")
        if code == sqlite3.SQLITE_FULL:
            return StoreError(f"the store {self._path} cannot be written: the disk is full")
        return StoreError(f"the store {self._path} cannot be used: {self._why(code) or error}")

    def _why(self, code: int) -> str:
        """Say in words what SQLite has no words for."""
        if self._path.is_dir():
            return "it is a directory"
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            for place, what in ((self._path, "it"), (self._path.parent, f"the directory {self._path.parent}")):
                if not os.access(place, os.W_OK):
                    return f"{what} cannot be written by this user"
        return ""


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    """Connect to a file that exists.

    Raises:
        Moved: it does not any more.
    """
    name = f"file:{quote(str(path))}?mode=rw"
    try:
        raw = sqlite3.connect(name, timeout=patience, isolation_level=None, check_same_thread=False, uri=True)
    except sqlite3.Error:
        if identity_of(path) is None:
            raise Moved from None
        raise
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES + 4096)  # a row that says it is huge is not read
    raw.execute("PRAGMA trusted_schema = OFF")
    return raw


def _set_journal(raw: sqlite3.Connection, path: Path) -> None:
    """Choose WAL for an empty file where it is safe; keep a file's WAL, unless it is not."""
    # First whether it is empty: who fills it has chosen its mode before. The other way round another thread could do
    # both in between, and its WAL would be taken back under its hands.
    (filled,) = raw.execute("PRAGMA schema_version").fetchone()
    (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
    safe = sqlite3.sqlite_version_info >= WAL_SINCE
    if safe and mode != "wal" and not filled:
        with alone(path.parent, allowed_wait(PATIENCE)):  # two that change it at once would not wait for each other
            raw.execute("PRAGMA journal_mode = WAL").fetchone()
    elif mode != "wal" or not safe:
        raw.execute("PRAGMA journal_mode = TRUNCATE").fetchone()


def _close_all(connections: list[_Open]) -> None:
    while connections:
        with suppress(IndexError):
            connections.pop().raw.close()
