"""The SQLite file: its mode, its versions, its bounds, and what becomes of a damaged one."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import ConfigError
from resilient_scan.errors import StoreError
from resilient_scan.stores import Refused, Store, database, files, open_store, schema, sqlite
from resilient_scan.stores.database import Database
from resilient_scan.stores.health import WaitBudget, allowed_wait
from resilient_scan.testing import FakeClock
from tests.support.waiting import WAIT_TIMEOUT
from tests.unit.stores.conftest import keep

Opener = Callable[[], Store]


@pytest.fixture
def path(quick_path: Path) -> Path:
    return quick_path / "state" / "scan.db"


@pytest.fixture
def opened(path: Path, clock: FakeClock) -> Iterator[Opener]:
    """Return a function that opens the store once more."""
    stores: list[Store] = []

    def make() -> Store:
        stores.append(open_store(f"sqlite:///{path}", clock))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def fill(store: Store) -> None:
    """Put something of each kind in."""
    for number in range(20):
        store.update(f"breaker/{number}", keep(b"%d" % number * 20))
        store.put(f"cache/{number}", bytes([number]) * 3000, 600)
        store.append("runs", b"run %d" % number * 50, 100)
    store.append("audit", b"order", 100)
    store.flush()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def aside(path: Path) -> list[str]:
    """Return what was moved aside, without the journals, whichever kind this SQLite keeps."""
    names = (each.name for each in path.parent.iterdir() if ".corrupt-" in each.name)
    return sorted(name for name in names if not name.endswith(("-journal", "-wal", "-shm")))


def raw(path: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchone() for statement in statements]


# the file


@pytest.mark.parametrize(
    "url",
    ["sqlite:x.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///a/", "sqlite:///a.db?mode=ro", "sqlite:///a\0b"],
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url, FakeClock())
    assert str(caught.value).startswith("store must be ")
    assert str(caught.value).endswith(f", got {url!r}")


def test_nothing_is_made_before_it_is_used(path: Path, opened: Opener) -> None:
    store = opened()
    assert not path.parent.exists()
    store.flush()
    store.close()
    assert not path.parent.exists()


def test_file_and_directory_are_for_their_owner_only(path: Path, opened: Opener) -> None:
    before = os.umask(0)
    try:
        store = opened()
        store.update("a", keep(b"1"))
        store.lease("a", "me", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"scan.db", "scan.db-leases"} <= set(modes)


def test_a_relative_path_is_meant_from_where_the_store_was_opened(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(quick_path)
    store = open_store("sqlite:///here.db", FakeClock())
    (quick_path / "elsewhere").mkdir()
    monkeypatch.chdir(quick_path / "elsewhere")
    store.update("a", keep(b"1"))
    store.close()
    assert (quick_path / "here.db").exists()
    assert store.url == "sqlite:///here.db"


def test_a_name_full_of_signs_is_a_name(quick_path: Path) -> None:
    with closing(open_store(f"sqlite:///{quick_path}/a %20#&;'é.db", FakeClock())) as store:
        store.update("a", keep(b"1"))
        assert [each.name for each in quick_path.iterdir() if each.suffix == ".db"] == ["a %20#&;'é.db"]


def test_a_file_is_made_where_only_root_may_make_nodes(
    path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    opened().update("a", keep(b"1"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_written_safely(path: Path, opened: Opener) -> None:
    store = opened()
    store.update("a", keep(b"1"))
    wal = sqlite3.sqlite_version_info >= database.WAL_SINCE
    assert raw(path, "PRAGMA journal_mode") == [("wal",) if wal else ("delete",)]
    assert store._database.read(  # type: ignore[attr-defined]
        lambda connection: [
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
    ) == ["wal" if wal else "truncate", 2]


def test_wal_where_it_is_safe(path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAL_SINCE", (3, 0, 0))
    store, other = opened(), opened()
    fill(store)
    assert raw(path, "PRAGMA journal_mode") == [("wal",)]
    assert other.read("breaker/1") == store.read("breaker/1") != {}
    store.close()
    other.close()
    monkeypatch.setattr(database, "WAL_SINCE", (99, 0, 0))
    assert opened().read("breaker/7") == {"breaker/7": b"7" * 20}
    assert raw(path, "PRAGMA journal_mode") == [("delete",)], "an older SQLite does not go on with it"


def test_a_file_that_was_deleted_is_made_again(path: Path, opened: Opener) -> None:
    store = opened()
    store.update("a", keep(b"1"))
    path.unlink()
    assert store.read("") == {}
    store.update("a", keep(b"2"))
    path.unlink()
    assert store.update("a", keep(b"3")) is None
    assert opened().read("") == {"a": b"3"}


# versions


def test_a_newer_file_is_refused_and_left_alone(path: Path, opened: Opener) -> None:
    fill(opened())
    raw(path, f"PRAGMA user_version = {schema.stamp(7)}")
    before = path.read_bytes()
    store = opened()
    for operation in operations(store):
        with pytest.raises(StoreError) as caught:
            operation()
        assert str(caught.value) == (
            f"the store {path} was written by a newer version of resilient_scan (its schema is 7, this one knows 1); "
            "update, or name another file"
        )
    assert path.read_bytes() == before
    assert aside(path) == []


def operations(store: Store) -> list[Callable[[], object]]:
    """Return what a store does with its file, apart from leases."""
    audit = lambda: store.append("audit", b"new", 9)  # noqa: E731
    return [
        lambda: store.update("a", keep(b"new")),
        lambda: store.read(""),
        lambda: store.get("cache/1"),
        lambda: store.delete("cache/1"),
        lambda: store.tail("runs", 9),
        audit,
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_file_that_became_newer_in_the_middle_of_a_run_is_not_touched(
    path: Path, opened: Opener, clock: FakeClock, number: int
) -> None:
    """Another process brings the file up to date while this one has it open."""
    store = opened()
    fill(store)
    operations(store)[number]()
    raw(
        path, f"PRAGMA user_version = {schema.stamp(2)}", "INSERT INTO documents VALUES (x'00', 'not as we know it', 0)"
    )
    before = path.read_bytes()
    with pytest.raises(Refused, match=r"newer version of resilient_scan \(its schema is 2, this one knows 1\)"):
        operations(store)[number]()
    with pytest.raises(StoreError, match="newer version"):  # and for a second nobody asks again
        store.read("")
    clock.advance(1)
    with pytest.raises(Refused):
        store.read("")
    assert path.read_bytes() == before
    assert aside(path) == []


def test_leases_are_not_taken_in_a_newer_file(path: Path, opened: Opener) -> None:
    store = opened()
    assert store.lease("a", "me", 60)
    raw(path.with_name("scan.db-leases"), f"PRAGMA user_version = {schema.stamp(2)}")
    with pytest.raises(Refused):
        store.lease("b", "me", 60)


def test_a_file_that_an_older_version_has_put_back_is_brought_up_to_date_again(
    path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, as `cp` from a backup does it: the file is the same one, of another version."""
    store = opened()
    fill(store)
    backup = path.read_bytes()
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, ("CREATE TABLE added (x BLOB)",)))
    store.update("a", keep(b"1"))
    assert raw(path, "PRAGMA user_version") == [(schema.stamp(2),)]
    with path.open("r+b") as file:
        file.write(backup)
        file.truncate()
    store.update("b", keep(b"2"))
    assert raw(path, "PRAGMA user_version", "SELECT count(*) FROM added") == [(schema.stamp(2),), (0,)]
    assert set(store.read("")) == {*WRITTEN, "b"}
    assert aside(path) == []


def test_no_flipped_bit_makes_a_version_of_another() -> None:
    numbers = {schema.stamp(version) for version in range(1, 256)}
    assert len(numbers) == 255
    assert schema.stamp(1) == 1, "as in the files that there are"
    assert all(0 < number < 2**31 for number in numbers)
    flipped = {number ^ 1 << bit for number in numbers for bit in range(31)}
    assert not flipped & numbers


@pytest.mark.parametrize("bit", range(32))
@pytest.mark.parametrize("running", [False, True])
def test_a_flipped_bit_of_the_version_is_damage(
    path: Path, opened: Opener, bit: int, running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    fill(store)
    number = 1 ^ 1 << bit
    raw(path, f"PRAGMA user_version = {number - 2**32 if bit == 31 else number}")
    if not running:
        store = opened()
    assert len(store.read("")) == 20
    store.update("new", keep(b"1"))
    assert len(aside(path)) == 1
    assert f"is damaged (its version is impossible: {number - 2**32 if bit == 31 else number})" in caplog.text


def test_an_older_file_is_brought_up_to_date(path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(opened())
    newer = (*schema.STEPS, ("CREATE TABLE added (x BLOB)", "INSERT INTO added SELECT data FROM documents"))
    monkeypatch.setattr(schema, "STEPS", newer)
    assert opened().read("breaker/7") == {"breaker/7": b"7" * 20}
    assert raw(path, "PRAGMA user_version", "SELECT count(*) FROM added") == [(schema.stamp(2),), (20,)]
    assert aside(path) == []


def test_another_programs_database_is_refused_and_left_alone(path: Path, opened: Opener) -> None:
    path.parent.mkdir()
    raw(path, "CREATE TABLE documents (a)", "INSERT INTO documents VALUES (1)")
    before = path.read_bytes()
    for operation in operations(opened()):
        with pytest.raises(StoreError, match=r"scan\.db is a database of another program; name another file$"):
            operation()
    assert path.read_bytes() == before


def test_what_an_administrator_adds_does_no_harm(path: Path, opened: Opener) -> None:
    fill(opened())
    raw(path, "ANALYZE", "CREATE INDEX mine ON records (data)", "VACUUM")
    assert len(opened().read("breaker/")) == 20
    assert aside(path) == []


# damage


def zeroes(data: bytes, _chance: random.Random) -> bytes:
    return bytes(len(data))


def garbage(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(data))


def text(_data: bytes, _chance: random.Random) -> bytes:
    return b"this is no database at all, only a text\n" * 30


def cut_in_half(data: bytes, _chance: random.Random) -> bytes:
    return data[: len(data) // 2]


def cut_in_a_page(data: bytes, _chance: random.Random) -> bytes:
    return data[: 2 * 4096 + 99]


def cut_in_the_header(data: bytes, _chance: random.Random) -> bytes:
    return data[:57]


def no_mark(data: bytes, _chance: random.Random) -> bytes:
    return data[:68] + b"\1\2\3\4" + data[72:]


def no_version(data: bytes, _chance: random.Random) -> bytes:
    return data[:60] + bytes(4) + data[64:]


def a_document_changed(data: bytes, _chance: random.Random) -> bytes:
    assert b"7" * 20 in data
    return data.replace(b"7" * 20, b"7" * 19 + b"8")


def a_documents_key_changed(data: bytes, _chance: random.Random) -> bytes:
    assert b"breaker/12" in data
    return data.replace(b"breaker/12", b"breaker/13")


WRITTEN = {f"breaker/{n}": b"%d" % n * 20 for n in range(20)}
DAMAGES = [zeroes, garbage, text, cut_in_half, cut_in_a_page, cut_in_the_header, no_mark, no_version]
DAMAGES += [a_document_changed, a_documents_key_changed]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("running", [False, True])
def test_a_damaged_file_is_moved_aside(
    damage: Any, running: bool, path: Path, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    fill(store)
    if not running:
        store.close()
    raw(path, "PRAGMA wal_checkpoint(TRUNCATE)")  # what a SQLite with WAL has written there only
    with path.open("r+b") as file:  # in place: the store has it open
        data = damage(file.read(), random.Random(5))
        file.seek(0)
        file.write(data)
        file.truncate()
    if not running:
        store = opened()
    store.update("new", keep(b"1"))
    found = store.read("")
    names = aside(path)
    if not names:  # SQLite had the page in memory, and has made it whole by writing it
        assert running
        assert (len(found), warnings(caplog)) == (21, [])
    else:
        assert found.items() - WRITTEN.items() == {("new", b"1")}, "what is whole is rescued"
        assert len(found) < 21 or damage in {no_mark, no_version, cut_in_half, cut_in_a_page}
        (name,), (warning,) = names, warnings(caplog)
        assert "is damaged (" in warning
        assert f"is moved aside to {path.parent / name}, and a new one is made" in warning
    store.update("again", keep(b"2"))
    assert opened().read("again") == {"again": b"2"}


def test_a_file_of_no_length_is_filled(path: Path, opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.touch()
    opened().update("a", keep(b"1"))
    assert opened().read("") == {"a": b"1"}
    assert warnings(caplog) == []


def test_two_damaged_files_in_one_second_are_both_kept(path: Path, opened: Opener) -> None:
    path.parent.mkdir()
    for text in ("one", "two"):
        path.write_text(text * 200)
        store = opened()
        store.update("a", keep(b"1"))
        store.close()
    first, second = aside(path)
    assert (path.parent / first).read_text() == "one" * 200
    assert (path.parent / second).read_text() == "two" * 200
    assert second == f"{first}-2"


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bits_never_give_what_was_not_written(
    seed: int, path: Path, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is flipped, the store goes on, and tells what was written or nothing."""
    store = opened()
    fill(store)
    store.close()
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 3, 30, 300])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    store = opened()
    documents = store.read("")
    assert documents.items() <= WRITTEN.items()
    assert len(documents) == 20 or warnings(caplog)
    for number in range(20):
        assert store.get(f"cache/{number}") in (bytes([number]) * 3000, None)
    assert set(store.tail("runs", 100)) <= {b"run %d" % n * 50 for n in range(20)}
    assert set(store.tail("audit", 100)) <= {b"order"}
    store.update("new", keep(b"1"))
    store.put("new", b"2", 60)
    store.append("runs", b"new", 100)
    store.flush()
    assert (store.read("new"), store.get("new"), store.tail("runs", 1)) == ({"new": b"1"}, b"2", [b"new"])
    assert len(warnings(caplog)) == len(aside(path))


def test_a_journal_goes_with_its_file(quick_path: Path) -> None:
    for name in ("scan.db", "scan.db-journal", "scan.db-wal", "scan.db-shm", "scan.db-leases"):
        (quick_path / name).write_text(name)
    moved = files.move_aside(quick_path / "scan.db", 1_359_050_400)
    assert moved == quick_path / "scan.db.corrupt-20130124T180000Z"
    assert {each.name: each.read_text() for each in quick_path.iterdir()} == {
        moved.name: "scan.db",
        f"{moved.name}-journal": "scan.db-journal",
        f"{moved.name}-wal": "scan.db-wal",
        f"{moved.name}-shm": "scan.db-shm",
        "scan.db-leases": "scan.db-leases",
    }


def test_a_damaged_file_that_cannot_be_moved_is_reported(path: Path, opened: Opener, monkeypatch: Any) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)

    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    store = opened()
    with pytest.raises(StoreError, match=r"is damaged \(.*\) and cannot be moved aside: Permission denied$"):
        store.read("")


def test_a_file_that_is_damaged_again_and_again_is_given_up(path: Path, opened: Opener, monkeypatch: Any) -> None:
    def damaged(*_args: object) -> None:
        raise schema.Damaged("always")

    store = opened()
    monkeypatch.setattr(database, "check_documents", damaged)
    with pytest.raises(StoreError, match="each new file is damaged or replaced at once"):
        store.read("")


def test_a_row_that_says_it_is_huge_is_not_read(path: Path, opened: Opener) -> None:
    fill(opened())
    raw(path, "UPDATE documents SET data = zeroblob(40000000) WHERE key = CAST('breaker/7' AS BLOB)")
    assert opened().read("").items() < WRITTEN.items()
    assert len(aside(path)) == 1


@pytest.mark.parametrize(
    ("change", "whole"),
    [
        ("UPDATE documents SET data = 'text' WHERE key = CAST('breaker/7' AS BLOB)", 19),
        ("UPDATE documents SET sum = sum + 1", 0),
        ("UPDATE documents SET data = NULL", 0),
        ("DROP TABLE documents", 0),
        ("DROP TABLE leases", 20),
    ],
)
def test_a_file_that_another_hand_has_changed_is_damaged(path: Path, opened: Opener, change: str, whole: int) -> None:
    fill(opened())
    raw(path, change)
    assert len(opened().read("")) == whole
    assert len(aside(path)) == 1


@pytest.mark.parametrize("data", [b"", b"x" * 15, b"\xff" * 16])
def test_a_row_without_its_times_has_expired(path: Path, opened: Opener, data: bytes) -> None:
    """Its checksum fits, as that of all that is made on purpose; a run ended with a `struct.error`."""
    fill(opened())
    with closing(sqlite3.connect(path)) as connection, connection:
        row = (data, schema.seal(b"cache/7", data), b"cache/7")
        connection.execute("UPDATE answers SET data = ?, sum = ? WHERE key = ?", row)
    store = opened()
    assert store.get("cache/7") is None
    assert store.get("cache/8") is not None


# what else may be wrong with it


def test_a_directory_in_its_place(path: Path, opened: Opener) -> None:
    path.mkdir(parents=True)
    store = opened()
    with pytest.raises(StoreError, match=r"scan\.db cannot be used: it is a directory$"):
        store.update("a", keep(b"1"))
    path.rmdir()
    store.update("a", keep(b"1"))


def test_a_file_in_place_of_the_directory(path: Path, opened: Opener) -> None:
    path.parent.write_text("a file")
    store = opened()
    store.put("v", b"1", 60)
    for operation in (lambda: store.update("a", keep(b"1")), lambda: store.read(""), store.flush):
        with pytest.raises(StoreError, match=r"scan\.db cannot be used: Not a directory$"):
            operation()
    assert store.get("v") == b"1", "what was kept back is still there"
    path.parent.unlink()
    store.flush()
    assert opened().get("v") == b"1"


def test_a_directory_that_cannot_be_written(quick_path: Path) -> None:
    store = open_store("sqlite:////proc/none/scan.db", FakeClock())
    with pytest.raises(StoreError, match=r"/proc/none/scan\.db cannot be made: No such file or directory$"):
        store.update("a", keep(b"1"))


def test_a_locked_file_is_waited_for_once(path: Path, opened: Opener, clock: FakeClock, monkeypatch: Any) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.2)
    store = opened()
    store.update("a", keep(b"1"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match=r"scan\.db is locked by another process$"):
            store.update("a", keep(b"2"))
        asked: list[object] = []
        monkeypatch.setattr(Database, "_take", asked.append)
        for _ in range(1000):
            with pytest.raises(StoreError, match="is locked"):
                store.read("")
        assert asked == [], "nobody asked again"
        monkeypatch.undo()
        clock.advance(1)
        with pytest.raises(StoreError, match="is locked"):
            store.update("a", keep(b"2"))  # a SQLite with WAL lets readers in
        other.execute("ROLLBACK")
    with pytest.raises(StoreError, match="is locked"):
        store.read("")
    clock.advance(1)
    assert store.update("a", keep(b"3")) == b"1"
    assert store.read("") == {"a": b"3"}


def test_a_runner_is_built_soon_though_the_file_is_locked(path: Path, opened: Opener, monkeypatch: Any) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT", WAIT_TIMEOUT)
    monkeypatch.setattr(WaitBudget, "_seconds", WAIT_TIMEOUT)
    opened().update("a", keep(b"1"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        opened()
        assert time.monotonic() - began < WAIT_TIMEOUT / 2, "though nothing bounds it"
        monkeypatch.setattr(database, "OPEN_TIMEOUT", WAIT_TIMEOUT)
        for outer in (WaitBudget(time.monotonic() + 0.1), WaitBudget()):
            began = time.monotonic()
            with outer, WaitBudget(time.monotonic() + 0.1):
                opened()
            assert time.monotonic() - began < WAIT_TIMEOUT / 2, "in a run its deadline holds"
        began = time.monotonic()
        with WaitBudget(time.monotonic() + 0.05), WaitBudget():
            assert allowed_wait(9) <= 0.05, "whatever is begun within it"


def test_who_waits_comes_in_between_others_that_begin_again_at_once(opened: Opener, monkeypatch: Any) -> None:
    """Asking as seldom as SQLite does, a waiter would find the file locked each time."""
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 30.0)
    store, others = opened(), opened()
    store.update("a", keep(b"1"))
    over, passed = threading.Event(), 0

    def busy() -> None:
        nonlocal passed

        def slow(_old: bytes | None, _now: float) -> tuple[bytes | None, None]:
            threading.Event().wait(0.01)
            return b"1", None

        while not over.is_set():
            others.update("b", slow)
            passed += 1

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        before = passed
        for number in range(5):
            store.update("a", keep(b"%d" % number))
        let_by = passed - before
    finally:
        over.set()
        thread.join()
    assert let_by / 5 < 400, "each of them may have to let many by, none is locked out"


def test_a_write_that_another_thread_does_not_end_is_not_waited_for_for_ever(opened: Opener, monkeypatch: Any) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.05)
    store = opened()
    entered, leave = threading.Event(), threading.Event()

    def slow(old: bytes | None, _now: float) -> tuple[bytes | None, None]:
        entered.set()
        assert leave.wait(5)
        return b"1", None

    thread = threading.Thread(target=lambda: store.update("a", slow))
    thread.start()
    assert entered.wait(5)
    with pytest.raises(StoreError, match=r"is locked by another thread for more than 0\.05 s$"):
        store.update("b", keep(b"1"))
    leave.set()
    thread.join()
    assert store.read("") == {"a": b"1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_full_disk_is_reported(path: Path, opened: Opener) -> None:
    code = """
import resource, signal, sys
from resilient_scan.stores import open_store
from resilient_scan.clock import SystemClock
from resilient_scan.errors import StoreError
store = open_store(sys.argv[1], SystemClock())
store.update("a", lambda old, now: (b"1", None))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
store.put("v", bytes(100_000), 60)
try:
    store.flush()
except StoreError as error:
    print(error)
print(store.read(""), len(store.get("v")))
store.update("a", lambda old, now: (old + b"2", None))
print(store.read(""))
"""
    # a coverage tool in the child would meet the full disk too
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", code, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=plain)
    assert done.stderr == ""
    first, *rest = done.stdout.splitlines()
    assert first in (
        f"the store {path} cannot be written: the disk is full",
        f"the store {path} cannot be used: disk I/O error",
    )
    assert rest == ["{'a': b'1'} 100000", "{'a': b'12'}"]
    assert opened().read("") == {"a": b"12"}
    assert aside(path) == []


# bounds, clocks, connections


def test_values_are_bounded_by_number(opened: Opener, monkeypatch: Any) -> None:
    monkeypatch.setattr(sqlite, "MAX_VALUES", 10)
    store = opened()
    for number in range(11):
        store.put(f"{number}", b"x", 100 - number)
    store.flush()
    kept = [number for number in range(11) if store.get(f"{number}") is not None]
    assert kept == list(range(9)), "those that would expire first made room, for a tenth more"


def test_values_are_bounded_by_size(opened: Opener, monkeypatch: Any) -> None:
    monkeypatch.setattr(sqlite, "MAX_BYTES", 10_000)
    store = opened()
    for number in range(4):
        store.put(f"{number}", bytes(3000), 100 - number)
    store.flush()
    assert [number for number in range(4) if store.get(f"{number}") is not None] == [0, 1]


def test_what_has_expired_is_removed(path: Path, opened: Opener, clock: FakeClock) -> None:
    store = opened()
    store.put("a", b"1", 10)
    store.flush()
    store.lease("a", "me", 10)
    clock.advance(10)
    store.put("b", b"2", 10)
    store.flush()
    store.lease("b", "me", 10)
    assert raw(path, "SELECT count(*) FROM answers") == [(1,)]
    assert raw(path.with_name("scan.db-leases"), "SELECT count(*) FROM leases") == [(1,)]


@pytest.mark.parametrize("jump", [-7200, -86400 * 400])
def test_a_clock_that_goes_back_prolongs_nothing(opened: Opener, clock: FakeClock, jump: float) -> None:
    store = opened()
    store.put("a", b"1", 3600)
    store.flush()
    assert store.lease("a", "me", 60)
    clock._start += jump
    assert store.get("a") is None
    assert store.lease("a", "you", 60)


def test_a_clock_that_is_set_right_by_a_little_changes_nothing(opened: Opener, clock: FakeClock) -> None:
    store = opened()
    store.put("a", b"1", 3600)
    store.flush()
    assert store.lease("a", "me", 60)
    clock._start -= 0.5
    assert store.get("a") == b"1"
    assert not store.lease("a", "you", 60)


def test_a_clock_that_goes_ahead_ends_what_it_ends(opened: Opener, clock: FakeClock) -> None:
    store = opened()
    store.put("a", b"1", 3600)
    store.flush()
    clock._start += 7200
    assert store.get("a") is None


def test_threads_that_end_leave_no_connection_behind(path: Path, opened: Opener) -> None:
    store = opened()
    barrier = threading.Barrier(30)

    def work() -> None:
        barrier.wait()
        store.read("")

    for _ in range(3):
        threads = [threading.Thread(target=work) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert open_files(path)
    assert len(store._database._idle) <= database.MAX_IDLE  # type: ignore[attr-defined]
    store.close()
    del threads
    gc.collect()
    assert open_files(path) == []


def test_threads_that_begin_a_file_together_agree_on_its_journal(quick_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(database, "WAL_SINCE", (3, 0, 0))
    failed: list[StoreError] = []
    for number in range(30):
        path = quick_path / f"{number}.db"
        store, barrier = open_store(f"sqlite:///{path}", FakeClock()), threading.Barrier(20)

        def work(store: Store = store, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                store.read("")
            except StoreError as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert raw(path, "PRAGMA journal_mode") == [("wal",)]
        store.close()
    assert failed == []


def open_files(path: Path) -> list[str]:
    names = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            names.append(str(each.readlink()))
    return [name for name in names if name.startswith(str(path))]


def test_a_store_that_is_forgotten_closes_itself(path: Path) -> None:
    store = open_store(f"sqlite:///{path}", FakeClock())
    store.update("a", keep(b"1"))
    del store
    gc.collect()  # an open connection would warn, and warnings are errors


def test_a_connection_in_use_is_closed_after_the_store(path: Path) -> None:
    base = Database(path, FakeClock())
    base.write(lambda connection: base.close())
    assert base._idle == []


def test_ctrl_c_in_a_change_rolls_it_back(opened: Opener) -> None:
    def interrupted(_old: bytes | None, _now: float) -> tuple[bytes | None, None]:
        raise KeyboardInterrupt

    store = opened()
    with pytest.raises(KeyboardInterrupt):
        store.update("a", interrupted)
    assert store.update("a", keep(b"1")) is None


@pytest.mark.parametrize("wal", [False, True])
def test_a_file_moved_while_a_writer_waits_is_not_written(
    wal: bool, path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interleaving: a writer waits for a lock whose holder moves the file aside and makes a new one.

    With a journal SQLite notices that itself, with WAL it does not.
    """
    monkeypatch.setattr(database, "WAL_SINCE", (3, 0, 0) if wal else (99, 0, 0))
    store = opened()
    store.update("a", keep(b"1"))
    waiting, begin = threading.Event(), database._Open.begin

    def begin_and_tell(connection: database._Open, patience: float) -> bool:
        waiting.set()  # it has its connection
        return begin(connection, patience)

    monkeypatch.setattr(database._Open, "begin", begin_and_tell)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        thread = threading.Thread(target=lambda: store.update("b", keep(b"2")))
        thread.start()
        assert waiting.wait(5)
        moved = files.move_aside(path, 0)
        other.execute("ROLLBACK")
    thread.join()
    assert opened().read("") == {"b": b"2"}
    with closing(open_store(f"sqlite:///{moved}", FakeClock())) as before:
        assert before.read("") == {"a": b"1"}
