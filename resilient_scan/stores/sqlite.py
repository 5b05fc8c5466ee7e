"""State in a SQLite file: it survives the process, and all processes of a machine share it.

At most 20,000 values are kept, of 64 MiB in all; those that would expire first make room.

Leases have a file of their own next to it, `NAME-leases`. They need not survive a loss of power, and are taken and
given back while scanners run: a write that waits for the disk takes milliseconds, one that does not a tenth of one.
That file also has a second copy of the manual orders, for the day on which the first one is damaged.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError, StoreError
from resilient_scan.stores import Change, Refused, split_space
from resilient_scan.stores.batching import (
    MAX_BYTES,
    MAX_VALUES,
    BatchingStore,
    Records,
    Writes,
    check_size,
    to_bytes,
    to_text,
)
from resilient_scan.stores.database import CALLS, MAX_TRIES, Database, Work
from resilient_scan.stores.groups import MAX_BLOCK_BYTES
from resilient_scan.stores.schema import Damaged, Row, copies, holds_orders, seal, take_over, unseal, version_of

_log = logging.getLogger("resilient_scan")
T = TypeVar("T")
_SPAN = struct.Struct("<dd")  # begins and ends, epoch seconds
LOOK_TIMEOUT = 1.0  # seconds to wait for a file that another process has locked, where nothing depends on it
KEYS_AT_ONCE = 100  # of one statement
CLOCK_TOLERANCE = 1.0  # seconds by which a clock may go back before what was written "later" counts as expired


class SqliteStore(BatchingStore):
    """Documents, values, leases and logs in one file.

    Args:
        url: `sqlite:///relative.db` or `sqlite:////absolute.db`.
        clock: where time comes from.
        moved: a space, and the one that begins with its state; see `take_over`.

    Raises:
        ConfigError: the URL has no such form.
    """

    def __init__(self, url: str, clock: Clock, moved: tuple[str, str] | None = None) -> None:
        path = _path(url)
        self._moved = moved
        self._database = Database(path, clock, prepare=self._take_over, copies=self._copies)
        self._leases = Database(path.with_name(path.name + "-leases"), clock, durable=False)
        super().__init__(url, clock)
        # The file may be usable by the time the store is used. If it is not, runs go on without it, and say so: the
        # same whether a newer version has the file before this process starts or afterwards.
        with suppress(StoreError):
            self._database.look()

    def _take_over(self, database: sqlite3.Connection) -> None:
        if self._moved is None:
            return
        old, new = (to_bytes(f"{space}/") for space in self._moved)
        if take_over(database, old, new):
            _log.info(
                "the store %s: state is kept by the path of the settings file as it is given; what was kept by the "
                "path behind a link is taken over",
                self.url,
            )

    def now(self) -> float:
        """Return the clock's wall time."""
        return self._clock.time()

    def update(self, key: str, change: Change[T], /) -> T:
        """Change a document in one transaction."""
        self._check_open()
        name = to_bytes(key)

        def work(database: sqlite3.Connection) -> tuple[bool, T]:
            old = _document(database, name)
            new, result = change(old, self._clock.time())
            if new is old:
                return False, result
            check_size(new or b"")
            _put_document(database, name, new)
            return True, result

        changed, result = self._database.write(work)
        if changed and holds_orders(name):
            self._copy(name)
        return result

    def _copy(self, name: bytes) -> None:
        """Bring the second copy of a document up to date; where that fails, the document itself is written still.

        Process A changes the document, then B does, then B copies its version and A copies its own, the older one. So
        each looks at the document once more after it has copied it, and does not stop before the two agree: the one
        that copies last has seen the last version.
        """
        with suppress(StoreError):
            copied = self._database.read(lambda database: _document(database, name))
            for _ in range(MAX_TRIES):
                self._leases.write(partial(_put_document, name=name, data=copied))
                now = self._database.read(lambda database: _document(database, name))
                if now == copied:
                    return
                copied = now

    def _copies(self) -> list[Row]:
        try:
            return self._leases.read(copies)
        except StoreError:
            return []

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys begin with `prefix`."""
        self._check_open()
        begin = to_bytes(prefix)
        select = "SELECT key, data, sum FROM documents WHERE ? = 0 OR substr(key, 1, ?) = ?"
        rows = self._database.read(lambda database: _all(database, select, len(begin), len(begin), begin))
        return {to_text(key): data for key, data in rows}

    def exchange(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str] = (), dead: Collection[str] = ()
    ) -> dict[str, str]:
        """Take, renew and give back leases in one transaction; return the owners of those that others hold."""
        self._check_open()
        holder, gone = to_bytes(owner), {to_bytes(name) for name in dead}

        def work(database: sqlite3.Connection) -> dict[str, str]:
            now, refused = self._clock.time(), {}
            span, until = _SPAN.pack(now, now + seconds), now + seconds
            data, taken = span + holder, []
            if take:
                database.execute("DELETE FROM leases WHERE until <= ?", (now,))
            names = [to_bytes(key) for key in take]
            held = _found(database, "leases", names)
            for key, name in zip(take, names, strict=True):
                there = held.get(name)
                if there is not None and _holds(there, now) and there[_SPAN.size :] not in (holder, *gone):
                    refused[key] = to_text(there[_SPAN.size :])
                else:
                    taken.append((name, data, seal(name, data), until))
            database.executemany("REPLACE INTO leases VALUES (?, ?, ?, ?)", taken)
            delete = "DELETE FROM leases WHERE key = ? AND substr(data, ?) = ?"
            database.executemany(delete, [(to_bytes(key), _SPAN.size + 1, holder) for key in give_back])
            return refused

        return self._leases.write(work)

    def _reconnect(self) -> None:
        self._database.reset()
        self._leases.reset()

    def _fetch(self, keys: Sequence[str]) -> dict[str, bytes]:
        names = {to_bytes(key): key for key in keys}
        rows = self._database.read(lambda database: _found(database, "answers", list(names)))
        now = self._clock.time()
        return {names[name]: data[_SPAN.size :] for name, data in rows.items() if _holds(data, now)}

    def _remove(self, key: str) -> None:
        name = to_bytes(key)
        self._database.write(lambda database: database.execute("DELETE FROM answers WHERE key = ?", (name,)))

    def _write(self, values: Writes, records: Records) -> None:
        now, instant = self._clock.time(), self._clock.monotonic()

        def work(database: sqlite3.Connection) -> None:
            _write_answers(database, now, [(to_bytes(key), value.data, value.until - instant) for key, value in values])
            for _, record in records:
                name = to_bytes(record.log)
                row = (name, record.data, seal(name, record.data))
                database.execute("INSERT INTO records (key, data, sum) VALUES (?, ?, ?)", row)
            for log, keep in {record.log: record.keep for _, record in records}.items():
                _shorten(database, to_bytes(log), keep)
            _make_room(database, now)

        self._database.write(work)

    def _newest(self, log: str, limit: int) -> list[bytes]:
        select = "SELECT key, data, sum FROM records WHERE key = ? ORDER BY id DESC LIMIT ?"
        return [data for _, data in self._database.read(lambda database: _all(database, select, to_bytes(log), limit))]

    def oldest(self, log: str, limit: int, /) -> list[bytes]:
        """Return the oldest written records of a log, oldest first."""
        self._check_open()
        select = "SELECT key, data, sum FROM records WHERE key = ? ORDER BY id LIMIT ?"
        return [data for _, data in self._database.read(lambda database: _all(database, select, to_bytes(log), limit))]

    def blocks(self, names: Sequence[str], since: int, most: int, /) -> dict[str, dict[int, bytes]]:
        """Return blocks by name and day: each is the one record of a log of its own, `NAME/DAY`."""
        self._check_open()
        return self._database.read(lambda database: {name: _blocks(database, name, since, most) for name in names})

    def fold(
        self, log: str, records: Sequence[bytes], blocks: Mapping[str, Mapping[int, bytes]], since: int, /
    ) -> bool:
        """Write blocks in place of the oldest records of a log, in one transaction."""
        self._check_open()

        def work(database: sqlite3.Connection) -> bool:
            name = to_bytes(log)
            select = "SELECT id, data FROM records WHERE key = ? ORDER BY id LIMIT ?"
            there = database.execute(select, (name, len(records))).fetchall()
            if [data for _, data in there] != list(records):
                return False
            database.execute("DELETE FROM records WHERE key = ? AND id <= ?", (name, there[-1][0]))
            rows = [(_block_key(each, day), data) for each, days in blocks.items() for day, data in days.items()]
            database.executemany("DELETE FROM records WHERE key = ?", [(key,) for key, _ in rows])
            sealed = [(key, data, seal(key, data)) for key, data in rows]
            database.executemany("INSERT INTO records (key, data, sum) VALUES (?, ?, ?)", sealed)
            _forget_before(database, log, since)
            for each in blocks:
                _bound(database, each)
            return True

        return bool(records) and self._database.write(work)

    def _disconnect(self) -> None:
        self._database.close()
        self._leases.close()


def fault_of(url: str) -> str:
    """Say what is wrong with a URL, without showing it; an empty text means nothing is."""
    path = url.removeprefix("sqlite:///")
    if path == ":memory:":
        return "must be memory: for a store in memory"
    if path == url or not path or path.endswith("/") or "?" in path or "\0" in path:
        return "must be sqlite:///relative.db or sqlite:////absolute.db, the name of a file without a '?'"
    return ""


def refusal(url: str) -> str:
    """Say why a store's file would be refused, without writing to it; an empty text: it would not, or is missing."""
    path = _path(split_space(url).url)
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            version_of(database, str(path))
    except Refused as error:
        return str(error)
    except (sqlite3.Error, Damaged, UnicodeDecodeError):  # a run reports it, and goes on
        pass
    return _unwritable(path)


def _unwritable(path: Path) -> str:
    """Say why a store's file cannot be written, or made where it is missing; an empty text: it can.

    A nameless file is made next to it, or where its directory would be: SQLite needs to make files there, too.
    """
    try:
        if path.exists() and not os.access(path, os.W_OK):
            return f"the store {path} cannot be written: nothing would be remembered; change its rights"
        home = next(each for each in path.parents if each.exists())
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        return f"the store {path} cannot be written: {error.strerror}; name another file in [store]"
    return ""


def _path(url: str) -> Path:
    if fault := fault_of(url):
        raise ConfigError(f"store {fault}, got {url!r}")
    return Path(os.path.realpath(url.removeprefix("sqlite:///")))


def _document(database: sqlite3.Connection, name: bytes) -> bytes | None:
    return _one(database, "SELECT key, data, sum FROM documents WHERE key = ?", name)


def _put_document(database: sqlite3.Connection, name: bytes, data: bytes | None) -> None:
    if data is None:
        database.execute("DELETE FROM documents WHERE key = ?", (name,))
    else:
        database.execute("REPLACE INTO documents VALUES (?, ?, ?)", (name, data, seal(name, data)))


def _one(database: sqlite3.Connection, select: str, key: bytes) -> bytes | None:
    row = database.execute(select, (key,)).fetchone()
    return None if row is None else unseal(*row)


def _found(database: sqlite3.Connection, table: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return those of the rows that are there: one statement for a hundred keys, the last one filled up with the last.

    So there are two statements only, which the connection need not compile again.
    """
    found: dict[bytes, bytes] = {}
    for first in range(0, len(keys), KEYS_AT_ONCE):
        group = list(keys[first : first + KEYS_AT_ONCE])
        group += group[-1:] * (KEYS_AT_ONCE - len(group) if len(group) > 1 else 0)
        marks = ",".join("?" * len(group))
        select = f"SELECT key, data, sum FROM {table} WHERE key IN ({marks})"  # noqa: S608 - of our own
        found.update((row[0], unseal(*row)) for row in database.execute(select, group).fetchall())
    return found


def _all(database: sqlite3.Connection, select: str, *values: Any) -> list[tuple[bytes, bytes]]:
    return [(row[0], unseal(*row)) for row in database.execute(select, values).fetchall()]


def _holds(data: bytes, now: float) -> bool:
    """Say whether a row has not expired, and is not from the future either: then the clock has gone back since.

    A row without its times is not ours, although its checksum fits: anyone who can write to the file can make that too.
    """
    if len(data) < _SPAN.size:
        return False
    begins, ends = _SPAN.unpack_from(data)
    return bool(begins - CLOCK_TOLERANCE <= now < ends)


def _write_answers(database: sqlite3.Connection, now: float, values: Sequence[tuple[bytes, bytes, float]]) -> None:
    """Write values, each for the seconds that it has left; one that has none left also hides an older one no more."""
    rows, gone = [], []
    for key, value, left in values:
        if left <= 0:
            gone.append((key,))
            continue
        data = _SPAN.pack(now, now + left) + value
        rows.append((key, data, seal(key, data), now + left, len(data)))
    database.executemany("DELETE FROM answers WHERE key = ?", gone)
    database.executemany("REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows)


def _shorten(database: sqlite3.Connection, log: bytes, keep: int) -> None:
    database.execute(
        "DELETE FROM records WHERE key = ? AND id <= (SELECT id FROM records WHERE key = ? ORDER BY id DESC "
        "LIMIT 1 OFFSET ?)",
        (log, log, keep),
    )


class Looking:
    """A store's file as it is: nothing is written, made, brought up to date or repaired, not even a journal.

    Args:
        url: names the file, and a space in it.
        clock: where time comes from.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        place = split_space(url)
        self.url = place.url
        self.now = clock.time
        self._name = f"file:{quote(str(_path(place.url)))}?mode=ro"
        self._prefix = f"{place.space}/" if place.space else ""

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, newest first."""
        return self._records("SELECT key, data, sum FROM records WHERE key = ? ORDER BY id DESC LIMIT ?", log, limit)

    def oldest(self, log: str, limit: int, /) -> list[bytes]:
        """Return the oldest records of a log, oldest first."""
        return self._records("SELECT key, data, sum FROM records WHERE key = ? ORDER BY id LIMIT ?", log, limit)

    def blocks(self, names: Sequence[str], since: int, most: int, /) -> dict[str, dict[int, bytes]]:
        """Return blocks by name and day."""
        prefix = self._prefix
        return self._look(lambda database: {name: _blocks(database, prefix + name, since, most) for name in names})

    def _records(self, select: str, log: str, limit: int) -> list[bytes]:
        name = to_bytes(self._prefix + log)
        return [data for _, data in self._look(lambda database: _all(database, select, name, limit))]

    def _look(self, work: Work[T]) -> T:
        try:
            with CALLS.no_fork(), closing(sqlite3.connect(self._name, timeout=LOOK_TIMEOUT, uri=True)) as database:
                return work(database)
        except (sqlite3.Error, Damaged, UnicodeDecodeError) as error:
            raise StoreError(f"the store {self.url} cannot be read: {error}") from error


# blocks: each is the only record of its log, so that it is copied and rescued as records are


def _block_key(name: str, day: int) -> bytes:
    return to_bytes(f"{name}/{day:06d}")


def _span_of_blocks(name: str, since: int = 0) -> tuple[bytes, bytes]:
    """Return the key of a name's first block, and the least key after its last."""
    return _block_key(name, since), to_bytes(f"{name}/:")  # the sign after the digits


def _blocks(database: sqlite3.Connection, name: str, since: int, most: int) -> dict[int, bytes]:
    """Return blocks whatever their checksum: each has one of its own, and a damaged one costs no other."""
    select = "SELECT key, data FROM records WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"
    rows = database.execute(select, (*_span_of_blocks(name, max(0, since)), most)).fetchall()
    return {int(key[-6:]): data for key, data in rows if isinstance(data, bytes) and key[-6:].isdigit()}


def _forget_before(database: sqlite3.Connection, log: str, since: int) -> None:
    """Forget the blocks of all names under a log, `LOG/NAME`, that are of a day before `since`."""
    database.execute(
        "DELETE FROM records WHERE key > ? AND key < ? AND substr(key, -7, 1) = ? AND substr(key, -6) < ?",
        (to_bytes(f"{log}/"), to_bytes(f"{log}0"), b"/", b"%06d" % max(0, since)),
    )


def _bound(database: sqlite3.Connection, name: str) -> None:
    """Forget a name's oldest blocks, down to the bound; never the newest."""
    select = "SELECT id, length(data) FROM records WHERE key >= ? AND key < ? ORDER BY key DESC"
    size = 0
    for number, (row, length) in enumerate(database.execute(select, _span_of_blocks(name)).fetchall()):
        size += length
        if number and size > MAX_BLOCK_BYTES:
            database.execute("DELETE FROM records WHERE id = ?", (row,))


def _make_room(database: sqlite3.Connection, now: float) -> None:
    """Remove what has expired; then, down to nine tenths of the bounds, what would expire first."""
    database.execute("DELETE FROM answers WHERE until <= ?", (now,))
    count, size = database.execute("SELECT count(*), total(size) FROM answers INDEXED BY answers_by_age").fetchone()
    if count <= MAX_VALUES and size <= MAX_BYTES:
        return
    for row, bytes_of_it in database.execute("SELECT rowid, size FROM answers ORDER BY until").fetchall():
        if count <= 0.9 * MAX_VALUES and size <= 0.9 * MAX_BYTES:
            break
        database.execute("DELETE FROM answers WHERE rowid = ?", (row,))
        count, size = count - 1, size - bytes_of_it
