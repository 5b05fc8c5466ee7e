"""What every store does, whatever its home."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from resilient_scan.errors import StoreError
from resilient_scan.stores import Store, open_store
from resilient_scan.stores.groups import exchange
from resilient_scan.testing import FakeClock
from tests.unit.stores.conftest import keep

BYTES = bytes(range(256)) * 3
ODD_KEYS = ["cache/a/00ff", "", "a b", "é/中", "x" * 300, "100%_'\"*?[a]\\", "nul\0in"]


def add(amount: int) -> Any:
    """Return a change that counts."""
    return lambda old, _now: ((value := str(int(old or b"0") + amount).encode()), int(value))


# documents


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_document_is_changed_and_returned(store: Store, key: str) -> None:
    assert store.update(key, keep(BYTES)) is None
    assert store.update(key, keep(b"")) == BYTES
    assert store.update(key, keep(b"2")) == b""
    assert store.read("") == {key: b"2"}


def test_a_document_goes_when_nothing_is_left(store: Store) -> None:
    store.update("a", keep(b"1"))
    assert store.update("a", keep(None)) == b"1"
    assert store.update("a", keep(None)) is None
    assert store.read("") == {}


def test_the_same_old_bytes_are_no_write(store: Store) -> None:
    store.update("a", keep(b"1"))
    assert store.update("a", lambda old, _now: (old, "looked")) == "looked"
    assert store.update("b", lambda old, _now: (old, "looked")) == "looked"
    assert store.read("") == {"a": b"1"}


def test_a_change_gets_the_stores_time(store: Store) -> None:
    before = store.now()
    within = store.update("a", lambda old, now: (old, now))
    assert before <= within <= store.now()


def test_what_a_change_raises_comes_out_and_nothing_is_changed(store: Store) -> None:
    store.update("a", keep(b"1"))
    with pytest.raises(ZeroDivisionError):
        store.update("a", lambda _old, _now: (b"2", 1 / 0))
    assert store.update("a", keep(b"3")) == b"1"


def test_documents_are_read_by_the_beginning_of_their_keys(store: Store) -> None:
    for key in ("breaker/a", "breaker/ab", "breaker", "Breaker/a", "quarantine/a", "breaker%a", "breaker0"):
        store.update(key, keep(key.encode()))
    store.put("breaker/value", b"no document", 60)
    assert store.read("breaker/") == {"breaker/a": b"breaker/a", "breaker/ab": b"breaker/ab"}
    assert store.read("nothing") == {}
    assert len(store.read("")) == 7


def test_no_update_of_many_threads_is_lost(store: Store) -> None:
    results: list[int] = []

    def count() -> None:
        for _ in range(25):
            results.append(store.update("n", add(1)))  # noqa: PERF401 - one after the other

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(1, 201))


# values


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_value_comes_back(store: Store, key: str, flush: bool) -> None:
    assert store.get(key) is None
    store.put(key, BYTES, 60)
    if flush:
        store.flush()
    assert store.get(key) == BYTES
    assert store.read("") == {}, "it is no document"


@pytest.mark.parametrize("flush", [False, True])
def test_a_value_is_replaced_and_forgotten(store: Store, flush: bool) -> None:
    for value in (b"1", b"", b"3"):
        store.put("a", value, 60)
        if flush:
            store.flush()
        assert store.get("a") == value
    store.delete("a")
    store.delete("a")
    assert store.get("a") is None
    store.flush()
    assert store.get("a") is None


@pytest.mark.parametrize("flush", [False, True])
def test_a_value_expires(home: Any, flush: bool) -> None:
    store = home.open()
    store.put("short", b"1", 0.1)
    store.put("long", b"2", 600)
    if flush:
        store.flush()
    assert store.get("short") == b"1"
    home.pass_time(0.11)
    assert store.get("short") is None
    store.flush()
    assert store.get("short") is None
    assert store.get("long") == b"2"


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_value_that_is_over_already_is_not_kept(store: Store, seconds: float) -> None:
    store.put("a", b"old", 60)
    store.flush()
    store.put("a", b"1", seconds)
    assert store.get("a") is None
    store.flush()
    assert store.get("a") is None


# leases


def test_a_lease_is_one_owners_at_a_time(store: Store) -> None:
    assert store.lease("a", "me", 60)
    assert not store.lease("a", "you", 60)
    assert store.lease("a", "me", 60)
    assert store.lease("b", "you", 60)


def test_a_lease_is_given_back_by_its_owner_only(store: Store) -> None:
    store.lease("a", "me", 60)
    store.release("a", "you")
    assert not store.lease("a", "you", 60)
    store.release("a", "me")
    store.release("a", "me")
    assert store.lease("a", "you", 60)


def test_a_lease_expires_by_itself(home: Any) -> None:
    store = home.open()
    assert store.lease("a", "me", 0.1)
    assert store.lease("b", "me", 0.1)
    assert store.lease("b", "me", 600)
    home.pass_time(0.11)
    assert store.lease("a", "you", 60)
    assert not store.lease("b", "you", 60), "it was prolonged"
    store.release("a", "me")
    assert not store.lease("a", "me", 60)


def test_many_leases_are_exchanged_in_one_step(home: Any) -> None:
    store = home.open()
    assert not exchange(store, ["a", "é/中", "nul\0in", "d"], "me", 600, [])
    assert not exchange(store, ["b"], "you", 600, [])
    held = exchange(store, ["b", "c", "d"], "me", 600, ["a", "b", "never held"])
    assert held == {"b": "you" if store.shared else ""}
    assert not exchange(store, ["a"], "you", 600, [])
    assert list(exchange(store, ["c", "d", "é/中", "nul\0in", "b"], "you", 600, [])) == ["c", "d", "é/中", "nul\0in"]
    if not home.url.startswith("redis:"):  # a server would let ten minutes pass
        home.pass_time(601)
        assert not exchange(store, ["c", "b"], "she", 600, [])


def test_the_leases_of_the_dead_are_free(home: Any) -> None:
    store = home.open()
    if not store.shared:
        return
    for key, owner in (("a", "dead"), ("b", "gone"), ("c", "alive")):
        exchange(store, [key], owner, 600, [])
    assert exchange(store, ["a", "b", "c"], "me", 600, [], {"dead", "gone"}) == {"c": "alive"}
    assert exchange(store, ["a", "b", "c"], "you", 600, [], {"dead", "gone"}) == {"a": "me", "b": "me", "c": "alive"}


# logs


@pytest.mark.parametrize("log", ["audit", "runs"])
@pytest.mark.parametrize("flush", [False, True])
def test_a_log_keeps_its_newest_records_in_order(store: Store, log: str, flush: bool) -> None:
    assert store.tail(log, 10) == []
    for number in range(7):
        store.append(log, b"%d" % number, 5)
        store.append("other", b"x", 5)
        if flush:
            store.flush()
    assert store.tail(log, 3) == [b"6", b"5", b"4"]
    assert store.tail(log, 0) == []
    store.flush()
    assert store.tail(log, 100) == [b"6", b"5", b"4", b"3", b"2"]


@pytest.mark.parametrize("log", ["audit", "runs"])
def test_a_log_that_keeps_nothing(store: Store, log: str) -> None:
    store.append(log, b"1", 9)
    store.flush()
    store.append(log, b"2", 0)
    store.flush()
    assert store.tail(log, 9) == []


def test_a_log_written_in_parts_is_one(store: Store) -> None:
    store.append("runs", b"1", 3)
    store.flush()
    store.append("runs", b"2", 3)
    assert store.tail("runs", 9) == [b"2", b"1"]
    assert store.tail("runs", 1) == [b"2"]


# the whole


def test_two_views_of_one_place(home: Any) -> None:
    one, two = home.open(), home.open()
    one.update("a", keep(b"1"))
    one.put("v", b"2", 60)
    one.append("audit", b"3", 10)
    one.append("runs", b"4", 10)
    one.flush()
    assert one.lease("l", "one", 60)
    seen = (two.read(""), two.get("v"), two.tail("audit", 9), two.tail("runs", 9), two.lease("l", "two", 60))
    if one.shared:
        assert seen == ({"a": b"1"}, b"2", [b"3"], [b"4"], False)
        two.delete("v")
        assert one.get("v") is None
    else:
        assert seen == ({}, None, [], [], True)


def test_what_is_durable_at_once(home: Any) -> None:
    one, two = home.open(), home.open()
    one.update("a", keep(b"1"))
    one.append("audit", b"2", 10)
    if one.shared:
        assert two.read("") == {"a": b"1"}
        assert two.tail("audit", 1) == [b"2"]


def test_closing_writes_the_rest(home: Any) -> None:
    one = home.open()
    one.put("v", b"2", 60)
    one.append("runs", b"4", 10)
    one.close()
    one.close()
    two = home.open()
    if one.shared:
        assert two.get("v") == b"2"
        assert two.tail("runs", 1) == [b"4"]


OPERATIONS = {
    "update": lambda store: store.update("a", keep(b"1")),
    "read": lambda store: store.read(""),
    "get": lambda store: store.get("a"),
    "put": lambda store: store.put("a", b"1", 60),
    "delete": lambda store: store.delete("a"),
    "lease": lambda store: store.lease("a", "me", 1),
    "release": lambda store: store.release("a", "me"),
    "exchange": lambda store: exchange(store, ["a"], "me", 1, []),
    "append": lambda store: store.append("runs", b"1", 1),
    "append audit": lambda store: store.append("audit", b"1", 1),
    "tail": lambda store: store.tail("runs", 1),
    "flush": lambda store: store.flush(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_closed_store_refuses(store: Store, operation: str) -> None:
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        OPERATIONS[operation](store)


@pytest.mark.parametrize(
    "operation",
    [
        lambda store, data: store.update("a", keep(data)),
        lambda store, data: store.put("a", data, 60),
        lambda store, data: store.append("runs", data, 1),
        lambda store, data: store.append("audit", data, 1),
    ],
)
def test_what_is_too_big_is_refused_with_its_size(store: Store, operation: Any) -> None:
    with pytest.raises(StoreError, match=r"a value of 16,777,217 bytes is too big for the store, it takes 16,777,216"):
        operation(store, bytes(16 * 1024 * 1024 + 1))
    store.flush()
    assert (store.read(""), store.get("a"), store.tail("runs", 1), store.tail("audit", 1)) == ({}, None, [], [])


def test_it_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)
    assert open_store(store, FakeClock()) is store
    assert isinstance(store.url, str)


def test_its_errors_can_leave_a_process() -> None:
    assert str(pickle.loads(pickle.dumps(StoreError("away")))) == "away"
