"""What is kept in memory: bounds, expiry, and batches that are read while they are written."""

from __future__ import annotations

import pytest

from resilient_scan.stores import batching as values
from resilient_scan.stores.batching import Pending, Record, Values
from resilient_scan.testing import FakeClock


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_VALUES", 3)
    monkeypatch.setattr(values, "MAX_BYTES", 10)
    monkeypatch.setattr(values, "MAX_PENDING_RECORDS", 3)


def kept(store: Values | Pending) -> list[str]:
    items = store.items() if isinstance(store, Values) else store.batch()[0]
    return [key for key, _ in items]


def test_the_oldest_values_make_room_by_number(small: None) -> None:
    store = Values(FakeClock())
    for key in "abacd":
        store.put(key, b"", 60)
    assert kept(store) == ["a", "c", "d"], "b is the oldest: a was put again"


def test_the_oldest_values_make_room_by_size(small: None) -> None:
    store = Values(FakeClock())
    for key, size in (("a", 5), ("b", 5), ("a", 4), ("c", 1), ("d", 6)):
        store.put(key, bytes(size), 60)
    assert kept(store) == ["c", "d"]
    store.drop("d")
    store.put("e", bytes(9), 60)
    assert kept(store) == ["c", "e"], "what was dropped takes no room"


def test_a_value_that_replaced_a_written_one_is_still_to_be_written() -> None:
    pending = Pending(FakeClock())
    pending.put("a", b"1", 60)
    pending.put("b", b"1", 60)
    pending.append(Record("runs", b"1", 9))
    values, records = pending.batch()
    pending.put("a", b"2", 60)
    pending.append(Record("runs", b"2", 9))
    pending.written(values, records)
    assert [(key, value.data) for key, value in pending.batch()[0]] == [("a", b"2")]
    assert pending.tail("runs", 9) == [b"2"]


def test_a_batch_can_be_read_until_it_is_written() -> None:
    pending = Pending(FakeClock())
    pending.put("a", b"1", 60)
    batch = pending.batch()
    assert pending.find(["a"]).get("a") is batch[0][0][1]
    pending.written(*batch)
    assert pending.find(["a"]).get("a") is None


def test_records_to_be_written_are_bounded(small: None) -> None:
    pending = Pending(FakeClock())
    for number in range(5):
        pending.append(Record("runs", b"%d" % number, 9))
    assert pending.tail("runs", 9) == [b"4", b"3", b"2"]


def test_writing_what_has_made_room_meanwhile(small: None) -> None:
    pending = Pending(FakeClock())
    pending.put("a", b"1", 60)
    pending.append(Record("runs", b"1", 9))
    batch = pending.batch()
    for number in range(4):
        pending.put(f"k{number}", b"", 60)
        pending.append(Record("runs", b"x", 9))
    pending.written(*batch)
    assert kept(pending) == ["k1", "k2", "k3"]
    assert pending.tail("runs", 9) == [b"x"] * 3
