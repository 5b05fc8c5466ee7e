"""What is whole of a damaged file lives on in the new one: an order is not forgotten for a bit in a cached answer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

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
    assert warning.endswith(", and a new one is made, with the orders, breakers and records that are whole")
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
