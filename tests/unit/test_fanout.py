"""Many items on a few threads, none of which outlives the call."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from typing import Any

import pytest

from resilient_scan._fanout import fan_out
from tests.support.waiting import WAIT_TIMEOUT

TICKET: contextvars.ContextVar[str] = contextvars.ContextVar("TICKET", default="none")


def never() -> bool:
    return False


@pytest.mark.parametrize("concurrency", [1, 2, 5, 50])
@pytest.mark.parametrize("items", [[], [1], list(range(20))])
def test_results_come_in_the_order_of_the_items(concurrency: int, items: list[int]) -> None:
    assert fan_out(lambda item: item * 2, iter(items), concurrency, never) == [item * 2 for item in items]


def test_so_many_at_a_time_and_no_more() -> None:
    meet = threading.Barrier(3)
    lock, under_way, most = threading.Lock(), 0, 0

    def work(_item: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        meet.wait(WAIT_TIMEOUT)  # three have to be at work at once, or it breaks
        with lock:
            under_way -= 1

    fan_out(work, range(9), 3, never)
    assert most == 3


def test_one_at_a_time_needs_no_thread_but_the_callers() -> None:
    assert set(fan_out(lambda _item: threading.current_thread(), range(5), 1, never)) == {threading.current_thread()}


def test_the_callers_thread_is_one_of_those_at_work() -> None:
    meet = threading.Barrier(3)

    def who(_item: int) -> threading.Thread:
        meet.wait(WAIT_TIMEOUT)
        return threading.current_thread()

    threads = fan_out(who, range(3), 3, never)
    assert threading.current_thread() in threads
    assert len(set(threads)) == 3
    assert not any(thread.is_alive() for thread in threads if thread is not threading.current_thread())


def test_no_more_threads_than_items() -> None:
    before = threading.active_count()
    counts = fan_out(lambda _item: threading.active_count(), range(2), 50, never)
    assert max(counts) <= before + 1


def test_the_first_error_is_raised_after_the_rest_has_stopped() -> None:
    both, ended = threading.Barrier(2), threading.Event()
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        both.wait(WAIT_TIMEOUT)
        if item == 0:
            raise ValueError("first")
        ended.set()

    with pytest.raises(ValueError, match="first"):
        fan_out(work, range(2), 2, never)
    assert ended.is_set()
    assert sorted(seen) == [0, 1]


def test_nothing_begins_after_an_error() -> None:
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        if item == 2:
            raise KeyError(item)

    with pytest.raises(KeyError):
        fan_out(work, range(9), 1, never)
    assert seen == [0, 1, 2]


def test_even_an_exit_is_the_callers_to_see() -> None:
    def leave(_item: int) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        fan_out(leave, [1], 2, never)


def test_nothing_begins_once_it_is_over() -> None:
    seen: list[int] = []
    assert fan_out(seen.append, range(9), 1, lambda: len(seen) >= 3) == [None, None, None]
    assert seen == [0, 1, 2]


def test_context_variables_arrive_and_stay_apart() -> None:
    token = TICKET.set("ours")
    meet = threading.Barrier(2)

    def work(item: int) -> str:
        meet.wait(WAIT_TIMEOUT)
        seen = TICKET.get()
        if threading.current_thread() is not threading.main_thread():
            TICKET.set(f"changed by {item}")
        return seen

    try:
        assert fan_out(work, range(2), 2, never) == ["ours", "ours"]
        assert TICKET.get() == "ours"
    finally:
        TICKET.reset(token)


def test_an_error_keeps_nothing_alive() -> None:
    class Big:
        """Stands for what the call held."""

    made: list[weakref.ref[Big]] = []

    def work(_item: Any) -> None:
        big = Big()
        made.append(weakref.ref(big))
        raise ValueError

    gc.disable()
    try:
        with pytest.raises(ValueError):  # noqa: PT011
            fan_out(work, [1], 2, never)
        assert made[0]() is None
    finally:
        gc.enable()


def test_no_thread_of_a_fan_out_outlives_it_where_the_machine_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """the second `start` fails, the first helper goes on, and nobody waits for it."""
    start, started = threading.Thread.start, []

    def few(self: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    go, busy = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if threading.current_thread() in started:
            busy.set()
            go.wait(5)
        return item

    monkeypatch.setattr(threading.Thread, "start", few)
    try:
        outcome: Any = None
        try:
            outcome = fan_out(lambda item: [work(item), go.set()][0], range(9), 3, lambda: False)
        except RuntimeError:
            busy.wait(1)
        assert not started[0].is_alive()
        assert outcome == list(range(9))  # with the threads that there are
    finally:
        go.set()
