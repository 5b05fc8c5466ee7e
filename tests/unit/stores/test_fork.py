"""Stores in forked children: new connections, the parent's state left alone."""

from __future__ import annotations

import threading

import pytest

from resilient_scan.stores import Store, database
from tests.support.processes import in_child, in_children_amid, needs_fork
from tests.unit.stores.conftest import keep

pytestmark = [*needs_fork, pytest.mark.slow]


def test_a_child_has_the_state_and_writes_none_of_the_parents(store: Store) -> None:
    store.update("a", keep(b"1"))
    store.put("v", b"kept back", 60)
    store.append("runs", b"kept back", 10)
    store.lease("l", "parent", 60)

    def check() -> None:
        store.after_fork()
        assert store.update("a", keep(b"2")) == b"1"
        store.put("w", b"child", 60)
        store.append("runs", b"child", 10)
        if store.shared:
            assert not store.lease("l", "child", 60)
        store.close()

    in_child(check)
    assert store.read("") == {"a": b"2" if store.shared else b"1"}
    store.flush()
    assert store.get("v") == b"kept back"
    if store.shared:
        assert store.tail("runs", 10) == [b"kept back", b"child"]
        assert store.get("w") == b"child"


def test_a_fork_in_the_middle_of_everything(store: Store) -> None:
    """Whatever the parent's threads are in at the fork, the child does not wait for it."""

    def work(number: int) -> None:
        store.update(f"n{number}", keep(b"1"))
        store.get("v")
        store.put(f"v{number}", b"1", 60)
        store.flush()
        store.lease("l", f"{number}", 0.001)

    def check() -> None:
        store.after_fork()
        store.update("child", keep(b"1"))
        store.put("v", b"1", 60)
        store.flush()
        assert store.get("v") == b"1"
        store.close()

    in_children_amid(work, 4, check)


def test_a_fork_waits_for_a_call_and_new_calls_wait_for_the_fork() -> None:
    calls = database._Calls()
    entered, leave, order = threading.Event(), threading.Event(), list[str]()

    def call() -> None:
        with calls.no_fork():
            entered.set()
            leave.wait(5)
            order.append("call ends")

    def fork() -> None:
        calls.hold()
        order.append("fork")
        calls.resume()

    threads = [threading.Thread(target=call)]
    threads[0].start()
    assert entered.wait(5)
    threads.append(threading.Thread(target=fork))
    threads[1].start()
    while not calls._forking:
        pass

    def second() -> None:
        with calls.no_fork():
            order.append("second call")

    threads.append(threading.Thread(target=second))
    threads[2].start()
    leave.set()
    for thread in threads:
        thread.join(5)
    assert order == ["call ends", "fork", "second call"]
