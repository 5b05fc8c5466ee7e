"""One SQLite file: connections to it, transactions in it, and what happens when it is damaged.

A connection is used by one thread at a time and kept for the next, so a thread that ends leaves none open. Nothing here
ever opens the file in another way: when a process closes any handle of a file, POSIX drops all locks that the process
has on that file, those of its other connections included.

Damage is found in one of three ways: SQLite says so, a row does not fit its checksum, or the tables are not ours. Then
one process moves the file aside and makes a new one, with the documents and records that are still whole. The three
newest files that were moved aside are kept.

    a transaction finds damage -> `_replace`: lock the directory; look at all of the file that is there *now*
                                    -> it is whole: another process was faster; try again
                                    -> it is damaged: rescue what is whole, move the file aside, make a new one, restore
    every transaction checks after it has its lock that the file is still the one of that name, and still of this
    version, else it tries again: then the file is opened again, and brought up to date, replaced or refused
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores import Refused
from resilient_scan.stores.batching import MAX_VALUE_BYTES
from resilient_scan.stores.files import Identity, alone, identity_of, made, move_aside, remove_older
from resilient_scan.stores.health import Backoff, WaitBudget, allowed_wait, waits_are_unlimited
from resilient_scan.stores.schema import (
    Damaged,
    Row,
    bring_up_to_date,
    check_documents,
    code_of,
    is_current,
    is_damage,
    is_damaged,
    ordered_in,
    rescue,
    restore,
)

_log = logging.getLogger("resilient_scan")
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

LOCK_TIMEOUT = 5.0  # seconds to wait for another process that has locked the file
OPEN_TIMEOUT = 0.5  # seconds, when a runner is built: what cannot be done then is done by its first run
LOCK_TIMEOUT_AFTER_FAILURE = 0.05  # once that was in vain
THREAD_WAIT_MARGIN = 0.1  # seconds more for a thread that waits for another thread of this process
POLL_INTERVAL = 0.0005  # seconds between two attempts to lock the file
FORK_TIMEOUT = 5.0  # seconds for which a fork waits for database calls to end; then it goes ahead
MAX_IDLE = 16  # connections kept for the next thread
MAX_TRIES = 4  # of one transaction, when the file is replaced under it
WAL_SINCE = (3, 51, 3)  # older versions may lose pages of a WAL that is reset
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})


# forks


class _Calls:
    """How many calls of the database library are under way, and whether a fork waits for them to end.

    A lock that the library holds in another thread at the instant of a fork stays held in the child for ever, by no
    thread. Thread A is inside SQLite's allocator, thread B forks, and the child's first query never returns. So a fork
    waits until no call is under way, and calls wait until the fork is done.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over (after a fork, in the child)."""
        self._changed = threading.Condition()
        self._running = 0
        self._forking = False

    @contextmanager
    def no_fork(self) -> Iterator[None]:
        """Run a call; no fork happens during it."""
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def hold(self) -> None:
        """Wait until no call is under way, and keep new ones waiting (before a fork)."""
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: not self._running, FORK_TIMEOUT)

    def resume(self) -> None:
        """Let calls begin again (after a fork, in the parent)."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


CALLS = _Calls()
os.register_at_fork(before=CALLS.hold, after_in_parent=CALLS.resume, after_in_child=CALLS.reset)


# connections and transactions


class Moved(Exception):
    """The file is not what it was when a connection opened it: another one has taken its place, or its version."""


class _Open:
    """A connection, which file it has open, and for how many seconds it waits for locks."""

    def __init__(self, raw: sqlite3.Connection, identity: Identity, timeout: float) -> None:
        self.raw = raw
        self.identity = identity
        self._timeout = timeout

    def wait_for(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for locks from now on."""
        if timeout != self._timeout:
            self.raw.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
            self._timeout = timeout

    def begin(self, timeout: float) -> bool:
        """Begin to write; say whether that had to wait for another process.

        SQLite's own wait asks less and less often, down to ten times a second: processes that begin their next
        transaction at once would shut this one out.
        """
        until = time.monotonic() + timeout  # real time: we wait for another process
        self.wait_for(0)
        waited = False
        while True:
            try:
                self.raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if code_of(error) & 0xFF not in _LOCKED or time.monotonic() >= until:
                    raise
                waited = True
                time.sleep(POLL_INTERVAL)
            else:
                self.wait_for(timeout)
                return waited


class Database:
    """The file at `path`, made when it is first used.

    Args:
        path: where it is, absolute.
        clock: where time comes from.
        durable: whether what was written survives a loss of power; it survives the end of the process in any case.
        prepare: is called with the first connection to a file, before anything is read or written there.
        copies: returns the second copies that there are of its documents; `None`: it has none that people would miss.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        durable: bool = True,
        prepare: Callable[[sqlite3.Connection], None] = lambda _database: None,
        copies: Callable[[], list[Row]] | None = None,
    ) -> None:
        self._path = path
        self._copies = copies
        self._prepare = prepare
        self._clock = clock
        self._synchronous = "FULL" if durable else "OFF"
        self._idle: list[_Open] = []
        self._closed = False
        self._checked: Identity | None = None
        self.reset()
        weakref.finalize(self, _close_all, self._idle)

    def reset(self) -> None:
        """Start over without the connections there were."""
        self._writing = threading.Lock()
        self._backoff = Backoff(self._clock)
        _close_all(self._idle)

    def close(self) -> None:
        """Close the connections; one that is in use is closed when it is given back."""
        self._closed = True
        _close_all(self._idle)

    def look(self) -> None:
        """Open the file if it exists; if it is locked, wait a moment, and no longer than an outer budget allows.

        Raises:
            StoreError: it cannot be used.
        """
        with suppress(OSError), WaitBudget(time.monotonic() + OPEN_TIMEOUT):
            if self._path.exists():
                self.read(lambda _database: None)

    def read(self, work: Work[T]) -> T:
        """Return what `work` finds, as it is at one instant.

        Raises:
            StoreError: the file cannot be used.
        """
        return self._run(work, writing=False)

    def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own, one at a time; if it raises, the transaction is rolled back.

        Raises:
            StoreError: the file cannot be used, or cannot be written.
        """
        # The threads of this process queue here, first come, first served; in SQLite they would sleep and try again.
        # They wait a little longer than the first of them waits for other processes: it finds out that another process
        # has the file locked, and they say so too, instead of blaming that thread.
        timeout = allowed_wait(LOCK_TIMEOUT)
        if not self._writing.acquire(timeout=timeout + THREAD_WAIT_MARGIN):
            raise StoreError(f"the store {self._path} is locked by another thread for more than {timeout:g} s")
        try:
            return self._run(work, writing=True)
        finally:
            self._writing.release()

    def _run(self, work: Work[T], *, writing: bool) -> T:
        if not waits_are_unlimited():
            self._backoff.check()
        for _ in range(MAX_TRIES):
            try:
                result = self._attempt(work, writing=writing)
            except Moved:
                continue
            except Damaged as damage:
                self._replace(str(damage))
            except UnicodeDecodeError:  # an error's text with damaged names in it, or raised by `work`
                if not self._replace("its names are not text"):
                    raise
            else:
                self._backoff.succeeded()
                return result
        raise StoreError(f"the store {self._path} cannot be used: each new file is damaged or replaced at once")

    def _attempt(self, work: Work[T], *, writing: bool) -> T:
        try:
            with CALLS.no_fork():
                connection = self._take()
                try:
                    result = (self._write if writing else self._read)(connection, work)
                except BaseException:
                    connection.raw.close()  # rolls back
                    raise
                self._give_back(connection)
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        except Refused as refusal:
            self._backoff.failed(str(refusal))
            raise
        return result

    def _read(self, connection: _Open, work: Work[T]) -> T:
        connection.raw.execute("BEGIN")  # one lock for both statements: that costs less than one for each
        self._check_version(connection)
        result = work(connection.raw)
        connection.raw.execute("COMMIT")
        return result

    def _check_version(self, connection: _Open) -> None:
        """See that the file is of this version still; else have it opened again, which tells what is wrong.

        A newer version of this package brings the file up to date while this process runs. What this process writes
        into its tables then, the newer version may misread.
        """
        if not is_current(connection.raw):
            self._checked = None
            raise Moved

    def _write(self, connection: _Open, work: Work[T]) -> T:
        waited = connection.begin(self._timeout)
        # Process A finds the file damaged: it locks it, moves it aside and makes a new one. B waited for that lock and
        # has it now, on the file that was moved: what B writes there would be lost. So B looks again before it writes.
        if identity_of(self._path) != connection.identity:
            raise Moved
        self._check_version(connection)
        result = work(connection.raw)
        connection.raw.execute("COMMIT")
        if waited:  # so may others: let one of them in, before this process takes the lock again
            time.sleep(2 * POLL_INTERVAL)
        return result

    @property
    def _timeout(self) -> float:
        patient = self._backoff.reachable or waits_are_unlimited()
        return allowed_wait(LOCK_TIMEOUT if patient else LOCK_TIMEOUT_AFTER_FAILURE)

    def _take(self) -> _Open:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if identity_of(self._path) == connection.identity:
                connection.wait_for(self._timeout)
                return connection
            connection.raw.close()
        return self._connect(self._timeout)

    def _give_back(self, connection: _Open) -> None:
        self._idle.append(connection)
        # `close` may have emptied the list before this connection was back. So first put it there, then look: whichever
        # of the two comes second finds the connection and closes it.
        if self._closed:
            _close_all(self._idle)
        elif len(self._idle) > MAX_IDLE:
            connection = self._idle.pop()
            connection.raw.close()

    def _connect(self, timeout: float) -> _Open:
        identity = made(self._path)
        if identity is None:
            raise Moved
        raw = _connect(self._path, timeout)
        try:
            raw.execute(f"PRAGMA synchronous = {self._synchronous}")
            _set_journal(raw, self._path)
            if identity != self._checked:
                bring_up_to_date(raw, str(self._path))
                check_documents(raw)
                self._prepare(raw)
        except BaseException:
            raw.close()
            raise
        if identity != identity_of(self._path):  # replaced while it was opened: which of the two is open?
            raw.close()
            raise Moved
        self._checked = identity
        return _Open(raw, identity, timeout)

    def _replace(self, why: str) -> bool:
        """Move the file aside if it really is damaged, so that a new one is made; say whether it was.

        Two processes may find the damage at once. One at a time comes in here, and looks at the file that is there
        *now*: for the second it is the new one already, which must not be moved aside. While it looks, all others are
        kept out of the file: what they wrote between the rescue and the move would be lost.
        """
        try:
            with (
                CALLS.no_fork(),
                alone(self._path.parent, allowed_wait(LOCK_TIMEOUT)),
                closing(_connect(self._path, allowed_wait(LOCK_TIMEOUT))) as raw,
            ):
                if not is_damaged(raw, self._path):
                    return False
                kept, aside = rescue(raw), move_aside(self._path, self._clock.time())
                remove_older(self._path, aside)
        except Moved:  # by another process, just now
            return True
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        except OSError as error:
            raise StoreError(
                f"the store {self._path} is damaged ({why}) and cannot be moved aside: {error.strerror}"
            ) from error
        self._start_over(why, aside, kept)
        return True

    def _start_over(self, why: str, aside: Path, kept: dict[str, list[Row]]) -> None:
        """Make a new file, with what was rescued from the one that was moved aside, else from its second copies."""
        rescued = lost = ""
        if self._copies is not None:
            whole = {row[0] for row in kept["documents"]}
            kept["documents"] += [row for row in self._copies() if row[0] not in whole]
            found = ordered_in(kept["documents"])
            lost = (
                f"; manual overrides may be lost, found are those of {', '.join(found)}"
                if found
                else ("; manual overrides may be lost, none was found")
            )
        if any(kept.values()):
            with (
                suppress(sqlite3.Error, StoreError, OSError, Moved, Damaged),
                CALLS.no_fork(),
                closing(self._connect(allowed_wait(LOCK_TIMEOUT)).raw) as raw,
            ):
                restore(raw, kept)
                rescued = ", with the orders, breakers and records that are whole"
        _log.warning(
            "the store %s is damaged (%s); it is moved aside to %s, and a new one is made%s%s",
            self._path,
            why,
            aside,
            rescued,
            lost,
        )

    def _meaning(self, error: sqlite3.Error) -> Exception:
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
        """Say what SQLite does not: which directory or file is in the way, and why."""
        if self._path.is_dir():
            return "it is a directory"
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            for place, what in ((self._path, "it"), (self._path.parent, f"the directory {self._path.parent}")):
                if not os.access(place, os.W_OK):
                    return f"{what} cannot be written by this user"
        return ""


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    """Connect to a file that exists.

    Raises:
        Moved: it does not exist any more.
    """
    name = f"file:{quote(str(path))}?mode=rw"
    try:
        raw = sqlite3.connect(name, timeout=timeout, isolation_level=None, check_same_thread=False, uri=True)
    except sqlite3.Error:
        if identity_of(path) is None:
            raise Moved from None
        raise
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES + 4096)  # a damaged row that says it is huge is not read
    raw.execute("PRAGMA trusted_schema = OFF")
    return raw


def _set_journal(raw: sqlite3.Connection, path: Path) -> None:
    """Choose WAL for an empty file if WAL is safe; keep a file's WAL unless it is not."""
    # Ask first whether the file is empty: a process chooses the mode before it fills the file. If we asked for the mode
    # first, another thread could choose WAL and fill the file in between, and we would take its WAL away again.
    (filled,) = raw.execute("PRAGMA schema_version").fetchone()
    (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
    safe = sqlite3.sqlite_version_info >= WAL_SINCE
    if safe and mode != "wal" and not filled:
        with alone(path.parent, allowed_wait(LOCK_TIMEOUT)):  # SQLite lets nobody wait for a change of mode
            raw.execute("PRAGMA journal_mode = WAL").fetchone()
    elif mode != "wal" or not safe:
        raw.execute("PRAGMA journal_mode = TRUNCATE").fetchone()


def _close_all(connections: list[_Open]) -> None:
    while connections:
        with suppress(IndexError):
            connections.pop().raw.close()
