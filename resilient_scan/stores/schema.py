"""What is in a store's SQLite file, and how to tell whether it is ours, whole, and of which version.

SQLite notices a damaged page, not a damaged value; so every row carries a checksum over its key and its data.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from resilient_scan.stores import ORDERS, Refused

APPLICATION = 0x7265736C  # "resl"

# One step per version; the first turns an empty file into a store of version 1. Never change a released one: add one.
# A new form of what is stored in a row needs no step: answers carry their own version, and others are forgotten.
# Each transaction looks at the version: a process that still runs the code before a step writes no more.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE documents (key BLOB PRIMARY KEY, data BLOB, sum INTEGER) WITHOUT ROWID",
        "CREATE TABLE answers (key BLOB PRIMARY KEY, data BLOB, sum INTEGER, until REAL, size INTEGER)",
        "CREATE INDEX answers_by_age ON answers (until, size)",
        "CREATE TABLE leases (key BLOB PRIMARY KEY, data BLOB, sum INTEGER, until REAL) WITHOUT ROWID",
        "CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB, data BLOB, sum INTEGER)",
        "CREATE INDEX records_by_log ON records (key)",
    ),
)
TABLES = ("documents", "answers", "leases", "records")
Row = tuple[bytes, bytes, int]
"""Key, data and checksum."""
_SELECT = "SELECT key, data, sum FROM {}"
_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_ERROR,  # no such table
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
    }
)


class Damaged(Exception):
    """The file is not what was written."""


def is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Say whether an error means that the file is damaged."""
    code = code_of(error)
    if code == sqlite3.SQLITE_READONLY:  # either this user may not write it, or its damaged head says so
        return os.access(path, os.W_OK)
    return code & 0xFF in _DAMAGE or code == sqlite3.SQLITE_IOERR_SHORT_READ


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's extended code of an error."""
    return getattr(error, "sqlite_errorcode", 0)


def is_damaged(raw: sqlite3.Connection, path: Path) -> bool:
    """Look at all of a file; if it is damaged, no other process can write to it until this connection is closed."""
    try:
        bring_up_to_date(raw, str(path))
        raw.execute("BEGIN EXCLUSIVE")
        check_everything(raw)
    except (Damaged, UnicodeDecodeError):
        return True
    except sqlite3.Error as error:
        if is_damage(error, path):
            return True
        raise
    return False


def seal(key: bytes, data: bytes) -> int:
    """Return the checksum of a row."""
    return zlib.crc32(data, zlib.crc32(key))


def unseal(key: object, data: object, checksum: object) -> bytes:
    """Return a row's data.

    Raises:
        Damaged: the row is not as it was written.
    """
    if not isinstance(key, bytes) or not isinstance(data, bytes) or seal(key, data) != checksum:
        raise Damaged("a row does not fit its checksum")
    return data


def bring_up_to_date(database: sqlite3.Connection, path: str) -> None:
    """Turn an empty file into a store, and an older store into one of this version; check a store of this version.

    All in one transaction: two processes that open an empty file at once would both make its tables.

    Raises:
        Damaged: the file is not a store, or not a whole one.
        Refused: it belongs to a newer version, or to another program.
    """
    database.execute("BEGIN IMMEDIATE")
    _migrate(database, version_of(database, path))
    if not _expected(STEPS) <= _schema(database):  # an index or statistics that an administrator added do no harm
        raise Damaged("its tables are not ours")
    database.execute("COMMIT")


def stamp(version: int) -> int:
    """Return the number that stands in a file for its version: with a checksum, unless it is the first.

    One flipped bit makes 3 of 1. Taken for a newer version, the file would be refused by all processes, for ever. No
    flipped bit makes a number that fits its checksum, so one that does not fit is damage, which is repaired.
    """
    return version if version == 1 else version | (zlib.crc32(b"%d" % version) & 0x7FFFFF) << 8


def is_current(database: sqlite3.Connection) -> bool:
    """Say whether a file is of this version; one page is read for that, which a transaction reads anyway."""
    (number,) = database.execute("PRAGMA user_version").fetchone()
    return bool(number == stamp(len(STEPS)))


def version_of(database: sqlite3.Connection, path: str) -> int:
    """Return the version of a store's file, 0 for an empty one, without writing to it.

    Raises:
        Damaged, Refused: as in `bring_up_to_date`.
    """
    (number,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if _schema(database):
        _check_whose(database, application, path)
        return _checked_version(number, path)
    if application == APPLICATION or number:
        raise Damaged("its tables are gone")
    return 0


def _check_whose(database: sqlite3.Connection, application: int, path: str) -> None:
    if application == APPLICATION:
        return
    names = {name for _, name, _ in _schema(database)}
    if names >= set(TABLES) or _complaint(database, ""):
        raise Damaged("its mark is not ours")
    raise Refused(f"the store {path} is a database of another program; name another file")


def _checked_version(number: int, path: str) -> int:
    version = number & 0xFF
    if version < 1 or number != stamp(version):
        raise Damaged(f"its version is impossible: {number}")
    if version > len(STEPS):
        raise Refused(
            f"the store {path} was written by a newer version of resilient_scan (its schema is {version}, "
            f"this one knows {len(STEPS)}); update, or name another file"
        )
    return version


def _migrate(database: sqlite3.Connection, version: int) -> None:
    if version == len(STEPS):
        return
    for step in STEPS[version:]:
        for statement in step:
            database.execute(statement)
    database.execute(f"PRAGMA application_id = {APPLICATION}")
    database.execute(f"PRAGMA user_version = {stamp(len(STEPS))}")


def _schema(database: sqlite3.Connection) -> frozenset[tuple[object, str, object]]:
    return frozenset(database.execute("SELECT type, name, sql FROM sqlite_master"))


@cache
def _expected(steps: tuple[tuple[str, ...], ...]) -> frozenset[tuple[object, str, object]]:
    model = sqlite3.connect(":memory:")
    try:
        for step in steps:
            for statement in step:
                model.execute(statement)
        return _schema(model)
    finally:
        model.close()


def check_documents(database: sqlite3.Connection) -> None:
    """Look at all documents: they are few, and one that cannot be read would be a forgotten order.

    Raises:
        Damaged: they are not as they were written.
    """
    _check_table(database, "documents")


def check_everything(database: sqlite3.Connection) -> None:
    """Look at every page and every row.

    Raises:
        Damaged: something is not as it was written.
    """
    complaint = _complaint(database, "")
    if complaint:
        raise Damaged(complaint)
    for table in TABLES:
        _check_table(database, table)


def rescue(database: sqlite3.Connection) -> dict[str, list[Row]]:
    """Return the documents and records of a damaged file that are whole; answers can be fetched again."""
    with suppress(sqlite3.Error):
        # Otherwise SQLite reads nothing at all of a file that is shorter than its head says. Documents are few and
        # stand near its beginning, so most of what was cut off is something else.
        database.execute("PRAGMA writable_schema = ON")
    return {table: list(_whole(database, table)) for table in ("documents", "records")}


def _whole(database: sqlite3.Connection, table: str) -> Iterator[Row]:
    with suppress(sqlite3.Error, UnicodeDecodeError), closing(database.execute(_SELECT.format(table))) as rows:
        for key, data, checksum in rows:
            with suppress(Damaged):
                yield key, unseal(key, data, checksum), checksum


class _Record(msgspec.Struct):
    order: dict[str, Any] | None = None


class _Fleet(msgspec.Struct):
    """As much as is needed here of what the quarantine stores."""

    scanners: dict[str, _Record] = {}


_fleet = msgspec.msgpack.Decoder(_Fleet)


def holds_orders(key: bytes) -> bool:
    """Say whether a document has the manual orders of a fleet, in whichever space."""
    return key == ORDERS.encode() or key.endswith(f"/{ORDERS}".encode())


def ordered_in(documents: Iterable[Row]) -> list[str]:
    """Return the names of the scanners for which documents hold a manual order."""
    found: set[str] = set()
    for key, data, _ in documents:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            if holds_orders(key):
                found |= {name for name, record in _fleet.decode(data).scanners.items() if record.order is not None}
    return sorted(found)


def copies(database: sqlite3.Connection) -> list[Row]:
    """Return the second copies that are whole; they are in the file of the leases."""
    return list(_whole(database, "documents"))


def restore(database: sqlite3.Connection, rows: dict[str, list[Row]]) -> None:
    """Put what was rescued into a new file.

    It may be in use: a document that another process has written there since the file was made is newer, and stays.
    """
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT OR IGNORE INTO documents VALUES (?, ?, ?)", rows["documents"])
    database.executemany("INSERT INTO records (key, data, sum) VALUES (?, ?, ?)", rows["records"])
    database.execute("COMMIT")


_USED = "SELECT 1 FROM {} WHERE key > ? AND key < ? LIMIT 1"
_COPIED = (  # what is read of a table, and how it is written; a range of keys is found by an index
    (
        "SELECT key, data, sum FROM documents WHERE key > ? AND key < ?",
        "INSERT INTO documents VALUES (?, ?, ?)",
    ),
    (
        "SELECT key, data, sum, until, size FROM answers WHERE key > ? AND key < ?",
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
    ),
    (
        "SELECT key, data, sum FROM records WHERE key > ? AND key < ? ORDER BY id",
        "INSERT INTO records (key, data, sum) VALUES (?, ?, ?)",
    ),
)


def take_over(database: sqlite3.Connection, old: bytes, new: bytes) -> bool:
    """Give a space that has no state yet a copy of another one's, and say whether there was any.

    A copy, because the other one may still be in use: of two links to one settings file, the first would take away the
    second's orders. Cached answers are left out: they can be fetched again, and may be large.

    Args:
        database: of a store.
        old: what the keys of the other one begin with, up to the slash.
        new: likewise.
    """
    if _is_used(database, new) or not _is_used(database, old):
        return False
    database.execute("BEGIN IMMEDIATE")  # another process may just have done the same
    found = not _is_used(database, new)
    if found:
        for select, insert in _COPIED:
            for key, data, checksum, *rest in database.execute(select, _span(old)).fetchall():
                if not key.startswith(old + b"cache/"):
                    name = new + key.removeprefix(old)
                    database.execute(insert, (name, unseal(key, data, checksum), seal(name, data), *rest))
    database.execute("COMMIT")
    return found


def _is_used(database: sqlite3.Connection, prefix: bytes) -> bool:
    return any(database.execute(_USED.format(table), _span(prefix)).fetchall() for table in ("documents", "records"))


def _span(prefix: bytes) -> tuple[bytes, bytes]:
    return prefix, prefix[:-1] + b"0"  # the sign after the slash


def _check_table(database: sqlite3.Connection, table: str) -> None:
    complaint = _complaint(database, f"('{table}')")
    if complaint:
        raise Damaged(complaint)
    # Close the statement even if a row is damaged: unfinished, it would keep the file locked while its exception lives.
    with closing(database.execute(_SELECT.format(table))) as rows:
        for key, data, checksum in rows:
            unseal(key, data, checksum)


def _complaint(database: sqlite3.Connection, of: str) -> str:
    (found,) = database.execute(f"PRAGMA quick_check{of}").fetchone()
    return "" if found == "ok" else str(found).splitlines()[0]
