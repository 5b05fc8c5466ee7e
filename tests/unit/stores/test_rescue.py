"""What is whole of a damaged file lives on in the new one: an order is not forgotten for a bit in a cached answer."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resilient_scan.errors import StoreError
from resilient_scan.stores import database
from resilient_scan.stores.sqlite import SqliteStore
from resilient_scan.testing import FakeClock


@pytest.fixture
def path(quick_path: Path) -> Path:
    """Return a store's file with documents, records and an answer in it."""
    file = quick_path / "scan.db"
    store = SqliteStore(f"sqlite:///{file}", FakeClock())
    for key in ("quarantine", "breakers/one"):
        store.update(key, lambda _old, _now, key=key: (key.encode(), None))  # type: ignore[misc]
    for record in (b"first", b"second"):
        store.append("audit", record, 10)
    store.put("cache/one", b"an answer", 60)
    store.close()
    return file


def spoil(path: Path, change: str) -> None:
    database = sqlite3.connect(path)
    database.execute(change)
    database.commit()
    database.close()


def found(path: Path) -> tuple[bytes | None, dict[str, bytes], list[bytes]]:
    store = SqliteStore(f"sqlite:///{path}", FakeClock())
    try:
        return store.get("cache/one"), store.read(""), store.tail("audit", 10)
    finally:
        store.close()


ONE = {"breakers/one": b"breakers/one"}
BOTH = {"quarantine": b"quarantine", **ONE}


@pytest.mark.parametrize(
    ("change", "documents", "trail"),
    [
        ("UPDATE answers SET data = x'00'", BOTH, [b"second", b"first"]),
        ("UPDATE documents SET sum = 0 WHERE data = CAST('quarantine' AS BLOB)", ONE, [b"second", b"first"]),
        ("DROP TABLE documents", {}, [b"second", b"first"]),
        ("UPDATE records SET sum = 0 WHERE id = 1", BOTH, [b"second"]),
        ("PRAGMA application_id = 5", BOTH, [b"second", b"first"]),
    ],
)
def test_what_is_whole_of_a_damaged_file_is_in_the_new_one(
    path: Path, change: str, documents: dict[str, bytes], trail: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(path, change)
    assert found(path)[1:] == (documents, trail)
    (warning,) = caplog.messages
    assert warning.endswith(
        ", and a new one is made, with the orders, breakers and records that are whole; "
        "manual overrides may be lost, none was found"
    )
    assert len(list(path.parent.glob("scan.db.corrupt-*Z"))) == 1


def test_what_another_process_has_written_into_the_new_file_meanwhile_stands(path: Path) -> None:
    spoil(path, "UPDATE answers SET data = x'00'")
    slow = SqliteStore(f"sqlite:///{path}", FakeClock())
    database = slow._database
    start_over = database._start_over

    def late(*arguments: object) -> None:
        other = SqliteStore(f"sqlite:///{path}", FakeClock())
        other.update("quarantine", lambda _old, _now: (b"newer", None))
        other.close()
        start_over(*arguments)  # type: ignore[arg-type]

    database._start_over = late  # type: ignore[method-assign]
    assert slow.get("cache/one") is None
    assert slow.read("") == {"quarantine": b"newer", "breakers/one": b"breakers/one"}
    slow.close()


# manual orders


def orders(*names: str) -> bytes:
    """Return a quarantine's record with a manual order for each of these, and one scanner without."""
    scanners = {name: {"state": "enabled", "order": {"state": "disabled", "until": 9e9}} for name in names}
    return msgspec.msgpack.encode({"schema": 1, "scanners": {**scanners, "probed": {"state": "probing"}}})


FILLED = ["quarantine/fleet", "blue/quarantine/fleet"]


@pytest.fixture
def ordered(path: Path) -> Path:
    """Return a store's file with the orders of two fleets, and more answers than documents."""
    store = SqliteStore(f"sqlite:///{path}", FakeClock())
    for key, name in zip(FILLED, ("one", "two"), strict=True):
        store.update(key, lambda _old, _now, name=name: (orders(name), None))  # type: ignore[misc]
    for number in range(30):
        store.put(f"cache/{number}", bytes([number]) * 3000, 60)
        store.append("runs", b"run %d" % number * 50, 100)
    store.close()
    return path


def test_orders_outlive_the_documents_and_the_warning_names_them(
    ordered: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(ordered, "UPDATE documents SET sum = 0")
    assert found(ordered)[1] == dict(zip(FILLED, (orders("one"), orders("two")), strict=True))
    (warning,) = caplog.messages
    assert warning.endswith("; manual overrides may be lost, found are those of one, two")
    assert found(ordered)[1].keys() == set(FILLED)


def test_a_document_that_is_whole_is_newer_than_its_second_copy(ordered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(f"sqlite:///{ordered}", FakeClock())
    monkeypatch.setattr(store, "_copy", lambda _name: None)  # the process was killed in between
    store.update(FILLED[0], lambda _old, _now: (orders("three"), None))
    store.close()
    spoil(ordered, "UPDATE answers SET data = x'00'")
    assert found(ordered)[1][FILLED[0]] == orders("three")


def test_an_order_that_was_lifted_does_not_come_back(ordered: Path) -> None:
    store = SqliteStore(f"sqlite:///{ordered}", FakeClock())
    store.update(FILLED[0], lambda _old, _now: (orders(), None))
    store.update(FILLED[1], lambda _old, _now: (None, None))
    store.close()
    spoil(ordered, "DELETE FROM documents")
    spoil(ordered, "UPDATE answers SET data = x'00'")
    assert found(ordered)[1] == {FILLED[0]: orders()}


def test_of_two_that_copy_at_once_the_last_version_stays(ordered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interleaving: A has changed the document and read it again; B changes and copies it; then A copies."""
    ours, theirs = (SqliteStore(f"sqlite:///{ordered}", FakeClock()) for _ in range(2))
    write = ours._leases.write
    late = iter([lambda: theirs.update(FILLED[0], lambda _old, _now: (orders("theirs"), None))])

    def after_them(work: Any) -> Any:
        next(late, lambda: None)()
        return write(work)

    monkeypatch.setattr(ours._leases, "write", after_them)
    ours.update(FILLED[0], lambda _old, _now: (orders("ours"), None))
    (copy,) = [row[1] for row in ours._copies() if row[0] == FILLED[0].encode()]
    assert copy == orders("theirs") == ours.read("")[FILLED[0]]
    ours.close()
    theirs.close()


def test_an_order_stands_where_its_second_copy_cannot_be_written(path: Path) -> None:
    path.with_name("scan.db-leases").mkdir()
    store = SqliteStore(f"sqlite:///{path}", FakeClock())
    store.update(FILLED[0], lambda _old, _now: (orders("one"), None))
    assert store.read("")[FILLED[0]] == orders("one")
    store.close()
    spoil(path, "UPDATE documents SET sum = 0")
    assert found(path)[1] == {}, "there is nothing to find it in"


def test_only_orders_are_written_twice(ordered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(f"sqlite:///{ordered}", FakeClock())
    copied: list[bytes] = []
    monkeypatch.setattr(store, "_copy", copied.append)
    for key in ("breaker/one", "answers/quarantine", *FILLED):
        store.update(key, lambda _old, _now: (b"new", None))
        store.update(key, lambda old, _now: (old, None))
    assert copied == [key.encode() for key in FILLED]
    store.close()


def test_the_leases_own_damage_says_nothing_of_orders(ordered: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil(ordered.with_name("scan.db-leases"), "INSERT INTO leases VALUES (CAST('a' AS BLOB), x'00', 0, 9e99)")
    store = SqliteStore(f"sqlite:///{ordered}", FakeClock())
    assert store.lease("a", "me", 60)
    (warning,) = caplog.messages
    assert warning.endswith(", and a new one is made, with the orders, breakers and records that are whole")
    assert [row[0].decode() for row in store._copies()] == sorted(FILLED)
    store.close()


def test_what_was_cut_off_costs_no_document(ordered: Path) -> None:
    """SQLite reads nothing of a file that is shorter than its head says, unless it is told to."""
    ordered.with_name("scan.db-leases").unlink(missing_ok=True)
    with ordered.open("r+b") as file:
        file.truncate(ordered.stat().st_size * 2 // 3)
    assert found(ordered)[1].keys() == {*FILLED, "quarantine", "breakers/one"}


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_of_the_file_costs_an_order(seed: int, ordered: Path) -> None:
    """Of 300 files that were damaged like this, 68 had lost the orders."""
    chance, data = random.Random(seed), bytearray(ordered.read_bytes())
    begin = chance.randrange(len(data))
    match seed % 4:
        case 0:
            for _ in range(chance.choice([1, 30, 300])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 1:
            del data[1 + begin :]
        case 2:
            data[begin : begin + 4096] = bytes(4096)
        case _:
            data[begin : begin + 65536] = chance.randbytes(65536)
    ordered.write_bytes(data)
    assert found(ordered)[1].items() >= dict(zip(FILLED, (orders("one"), orders("two")), strict=True)).items()


# what was moved aside


def test_three_damaged_files_are_kept_and_no_other_file_is_touched(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [f"scan.db.corrupt-{name}" for name in ("", "mine", "20130124T180000Z.bak", "20130124T180000", "2013Z")]
    others += ["scan.db-leases.corrupt-20130124T180000Z", "other.db.corrupt-20130124T180000Z", "scan-db.corrupt-x"]
    link = path.with_name("scan.db.corrupt-20000101T000000Z")
    link.symlink_to(path.with_name("elsewhere"))
    for name in others:
        path.with_name(name).write_text("mine")
    clock = FakeClock()
    kept: list[str] = []
    for number, seconds in enumerate((0, 0, 10, 10, -5000)):
        clock._start += seconds
        path.write_text(f"damaged {number}" * 200)
        path.with_name("scan.db-journal").write_text("a journal")
        with closing(SqliteStore(f"sqlite:///{path}", clock)) as store:
            store.read("")
        kept.append(caplog.messages[-1].partition("moved aside to ")[2].partition(",")[0])
    there = [str(each) for each in path.parent.iterdir() if str(each) in kept]
    assert sorted(there) == sorted(kept[2:]), "the newest, even if the clock went back"
    assert [each.name for each in path.parent.glob("*-journal") if ".corrupt-" in each.name] == [
        f"{Path(name).name}-journal" for name in there if Path(f"{name}-journal").exists()
    ]
    assert [path.with_name(name).read_text() for name in others] == ["mine"] * len(others)
    assert link.is_symlink()


def test_a_head_that_forbids_to_write_is_damage(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(path.read_bytes())
    content[18] ^= 255  # SQLite opens what it does not know to write for reading only
    path.write_bytes(content)
    store = SqliteStore(f"sqlite:///{path}", FakeClock())
    store.update("order", lambda _old, _now: (b"1", None))
    assert store.read("") == {**BOTH, "order": b"1"}
    store.close()
    assert "is damaged (attempt to write a readonly database)" in caplog.text


@pytest.mark.parametrize("place", ["file", "directory"])
def test_what_this_user_may_not_write_is_said_in_words(place: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root nothing is read-only, so the file says it of itself and the system agrees."""
    content = bytearray(path.read_bytes())
    content[18] ^= 255
    path.write_bytes(content)
    denied = path if place == "file" else path.parent
    monkeypatch.setattr(database.os, "access", lambda asked, _mode: asked != denied)
    monkeypatch.setattr(database, "is_damage", lambda _error, _path: False)
    store = SqliteStore(f"sqlite:///{path}", FakeClock())
    what = "it" if place == "file" else f"the directory {path.parent}"
    with pytest.raises(StoreError, match=f"the store {path} cannot be used: {what} cannot be written by this user$"):
        store.update("order", lambda _old, _now: (b"1", None))
    store.close()
