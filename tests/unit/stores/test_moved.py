"""State that was kept in another space of the same file is taken over, once, by whoever comes first."""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from resilient_scan.stores import Store, database, open_store
from resilient_scan.testing import FakeClock
from tests.unit.stores.conftest import keep

URL = "sqlite:///{}/state.db?space={}"


def state(store: Store) -> list[object]:
    return [store.read(""), store.tail("audit", 9), store.get("last/one"), store.get("cache/one/x")]


@pytest.fixture
def old(quick_path: Path) -> Store:
    """Return the old place, with something of each kind in it."""
    store = open_store(URL.format(quick_path, "old"), FakeClock())
    store.update("quarantine/fleet", keep(b"an order"))
    for record in (b"first", b"second"):
        store.append("audit", record, 10)
    store.put("last/one", b"scans", 60)
    store.put("cache/one/x", b"an answer", 60)
    store.flush()
    return store


FOUND = [{"quarantine/fleet": b"an order"}, [b"second", b"first"], b"scans", None]


def test_state_in_the_old_place_is_taken_over_once_with_one_line(
    old: Store, quick_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resilient_scan")
    url = URL.format(quick_path, "new&was=old")
    new = open_store(url, FakeClock())
    assert state(new) == FOUND
    old.update("quarantine/fleet", keep(b"a later order"))
    new.update("quarantine/fleet", keep(None))
    again = open_store(url, FakeClock())
    assert state(again) == [{}, *FOUND[1:]], "what was lifted since does not come back"
    assert old.read("") == {"quarantine/fleet": b"a later order"}, "who still uses the old place keeps it"
    (line,) = caplog.messages
    assert line.startswith(
        f"the store sqlite:///{quick_path}/state.db: state is kept by the path of the settings file as "
    )
    for store in (old, new, again):
        store.close()


def test_what_is_there_already_stays(old: Store, quick_path: Path) -> None:
    with closing(open_store(URL.format(quick_path, "new"), FakeClock())) as before:
        before.append("audit", b"mine", 10)
    with closing(open_store(URL.format(quick_path, "new&was=old"), FakeClock())) as new:
        assert state(new) == [{}, [b"mine"], None, None]
    old.close()


def test_two_that_come_at_once_take_it_over_once(
    old: Store, quick_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both have seen that the new place is empty when the first begins."""
    caplog.set_level(logging.INFO, "resilient_scan")
    barrier = threading.Barrier(2, timeout=10)

    class Slow(sqlite3.Connection):
        def execute(self, statement: str, *rest: object) -> sqlite3.Cursor:  # type: ignore[override]
            if statement.startswith("SELECT 1 FROM") and not self.in_transaction and rest[0] == (b"old/", b"old0"):
                barrier.wait()
            return super().execute(statement, *rest)  # type: ignore[arg-type]

    connect = sqlite3.connect
    monkeypatch.setattr(database.sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Slow))
    stores: list[Store] = []
    url = URL.format(quick_path, "new&was=old")
    threads = [threading.Thread(target=lambda: stores.append(open_store(url, FakeClock()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert [state(store) for store in stores] == [FOUND, FOUND]
    assert len(caplog.messages) == 1
    for store in (old, *stores):
        store.close()


def test_a_file_that_was_locked_is_taken_over_as_soon_as_it_can_be(
    old: Store, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.1)
    clock = FakeClock()
    with closing(sqlite3.connect(quick_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        new = open_store(URL.format(quick_path, "new&was=old"), clock)
        other.execute("ROLLBACK")
    clock.advance(1)
    new.append("audit", b"third", 10)
    assert state(new) == [FOUND[0], [b"third", b"second", b"first"], *FOUND[2:]]
    new.close()
    old.close()
