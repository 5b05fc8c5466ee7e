"""A bus whose listeners are called on threads of their own: order, waits, and what happens when one hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilient_scan import _dispatch
from resilient_scan._dispatch import Bus, Direct
from resilient_scan.events import AttemptEnded, Event, RunStarted
from resilient_scan.testing import Recorder
from tests.support.waiting import WAIT_TIMEOUT, eventually

FIRST, SECOND, THIRD = (RunStarted(run, 1, True, 8, 0.0) for run in ("first", "second", "third"))
NAME = "resilient-scan-listener"


def soon() -> float:
    return time.monotonic() + WAIT_TIMEOUT


_before: set[threading.Thread] = set()  # that earlier tests in this process have interrupted amid a run


@pytest.fixture(autouse=True)
def _known() -> None:
    _before.clear()
    _before.update(delivering())


def delivering() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME and thread not in _before]


class Slow(Recorder):
    """Waits with every event until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.release = threading.Event(), threading.Event()
        self.threads: list[str] = []

    def __call__(self, event: Event) -> None:
        self.begun.set()
        assert self.release.wait(WAIT_TIMEOUT)
        self.threads.append(threading.current_thread().name)
        super().__call__(event)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.release.set()
    eventually(lambda: not delivering())


@pytest.fixture
def bus(slow: Slow) -> Iterator[Bus]:
    bus = Bus([slow])
    assert bus.open(wanted=True)
    yield bus
    for dispatcher in bus._dispatchers:
        while dispatcher._runs > 0:
            dispatcher.close()


def test_events_are_sent_at_once_unless_they_are_deferred() -> None:
    threads: list[str] = []
    bus = Bus([lambda _event: threads.append(threading.current_thread().name)])
    bus.send(FIRST)
    assert bus.open(wanted=True)
    bus.send(SECOND)
    assert bus.flush(soon()) == []
    bus.close()
    eventually(lambda: not delivering())
    bus.send(THIRD)
    mine = threading.current_thread().name
    assert threads == [mine, NAME, mine]
    eventually(lambda: not delivering())


def test_one_sender_does_as_much_as_the_bus(bus: Bus, slow: Slow) -> None:
    send = bus.sender(RunStarted)
    assert send is not None
    send(FIRST)
    slow.release.set()
    assert bus.flush(soon()) == []
    assert slow.threads == [NAME]


def test_a_sender_takes_the_short_ways_that_there_are_and_calls_all_others() -> None:
    class Short(Direct):
        prompt = True

        def __init__(self) -> None:
            self.taken: list[object] = []

        def direct(self, kind: type[Event], scanner: str) -> Callable[[Event], object] | None:
            return self.taken.append if (kind, scanner) == (AttemptEnded, "one") else None

        def __call__(self, event: Event) -> None:
            self.taken.append(("called", event))

    short, seen = Short(), list[Event]()
    event = AttemptEnded("one", 1, "success", 0.1, None)
    only = Bus([short]).sender(AttemptEnded, "one")
    both = Bus([seen.append, short]).sender(AttemptEnded, "one")
    other = Bus([short]).sender(AttemptEnded, "two")
    for send in (only, both, other):
        assert send is not None
        send(event)
    assert short.taken == [event, event, ("called", event)]
    assert seen == [event]


def test_a_prompt_listener_is_called_at_once_all_the_same() -> None:
    threads: list[str] = []

    class Prompt:
        prompt = True

        def __call__(self, _event: Event) -> None:
            threads.append(threading.current_thread().name)

    bus = Bus([Prompt()])
    assert bus.open(wanted=True)
    bus.send(FIRST)
    assert threads == [threading.current_thread().name]
    assert not delivering()


def test_the_order_is_that_of_sending_whatever_comes_in_between(bus: Bus, slow: Slow) -> None:
    """What waits comes first, even if the next event would be sent at once by itself."""
    bus.send(FIRST)
    assert slow.begun.wait(WAIT_TIMEOUT)
    bus.send(SECOND)
    bus.close()
    bus.send(THIRD)
    assert slow.events_seen == []
    slow.release.set()
    eventually(lambda: not delivering())
    assert slow.events_seen == [FIRST, SECOND, THIRD]


def test_a_channel_leads_to_the_listeners_thread_or_to_the_listener(bus: Bus, slow: Slow) -> None:
    slow.release.set()
    channel = bus.channel(RunStarted)
    channel.finish(channel.begin(FIRST))
    bus.flush(soon())
    bus.close()
    eventually(lambda: not delivering())
    channel = bus.channel(RunStarted)
    channel.finish(channel.begin(SECOND))
    assert slow.events_seen == [FIRST, SECOND]
    assert slow.threads == [NAME, threading.current_thread().name]


def test_a_run_that_does_not_want_threads_keeps_those_that_there_are(bus: Bus, slow: Slow) -> None:
    """Its channel leads there."""
    slow.release.set()
    assert bus.open(wanted=False)
    channel = bus.channel(RunStarted)
    bus.close()
    bus.flush(soon())
    channel.finish(channel.begin(FIRST))
    bus.flush(soon())
    assert slow.threads == [NAME]
    bus.close()
    eventually(lambda: not delivering())
    assert not bus.open(wanted=False)


def test_events_of_several_threads_are_delivered_one_at_a_time() -> None:
    at_work: list[int] = []
    seen: list[tuple[int, int]] = []

    def listener(event: AttemptEnded) -> None:
        at_work.append(1)
        assert len(at_work) == 1
        seen.append((int(event.scanner), event.attempt))
        at_work.pop()

    bus = Bus([listener])
    assert bus.open(wanted=True)

    def send(number: int) -> None:
        for attempt in range(200):
            bus.send(AttemptEnded(str(number), attempt, "success", 0.0, None))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_TIMEOUT)
    bus.flush(soon())
    bus.close()
    for number in range(4):
        assert [attempt for sender, attempt in seen if sender == number] == list(range(200))
    eventually(lambda: not delivering())


def test_a_flush_gives_up_in_time_and_counts_each_event_once(
    bus: Bus, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    bus.send(FIRST)
    assert slow.begun.wait(WAIT_TIMEOUT)
    bus.send(SECOND)
    assert bus.flush(time.monotonic() + 0.01) == [("Slow", 2)]  # one of them is under way
    assert bus.flush(time.monotonic() - 1) == []
    bus.send(THIRD)
    assert bus.flush(time.monotonic()) == [("Slow", 1)]
    slow.release.set()
    assert bus.flush(soon()) == []
    assert slow.events_seen == [FIRST, SECOND, THIRD]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "listener Slow is slow: a run ended before it had received 2 of its events; this is logged once"
    )


def test_a_flush_does_not_wait_for_what_is_sent_after_it() -> None:
    go, flushed = threading.Event(), threading.Event()

    def listener(event: Event) -> None:
        assert (go if event is FIRST else flushed).wait(WAIT_TIMEOUT)

    bus = Bus([listener])
    assert bus.open(wanted=True)
    bus.send(FIRST)
    waiter = threading.Thread(target=lambda: (bus.flush(soon()), flushed.set()))
    waiter.start()
    (dispatcher,) = bus._dispatchers
    eventually(lambda: dispatcher._orders == 1)
    bus.send(SECOND)
    go.set()
    waiter.join(WAIT_TIMEOUT)
    assert flushed.is_set()
    bus.flush(soon())
    bus.close()


def test_a_listener_that_flushes_does_not_wait_for_itself() -> None:
    flushed: list[Any] = []
    bus = Bus([lambda event: flushed.append(bus.flush(soon()))])
    assert bus.open(wanted=True)
    bus.send(FIRST)
    assert bus.flush(soon()) == []
    bus.close()
    assert flushed == [[]]


def test_without_a_thread_the_listener_is_called_at_once(bus: Bus, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    slow.release.set()
    bus = Bus([slow])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        assert bus.open(wanted=True)
    bus.send(FIRST)
    assert slow.threads == [threading.current_thread().name]
    assert bus.flush(soon()) == []
    bus.close()


def test_a_listener_that_hangs_for_good_does_not_take_all_memory(
    bus: Bus, slow: Slow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_dispatch, "MAX_WAITING", 2)
    bus.send(FIRST)
    assert slow.begun.wait(WAIT_TIMEOUT)
    bus.send_all([SECOND, THIRD, FIRST, FIRST])
    channel = bus.channel(RunStarted)
    channel.finish(channel.begin(FIRST))
    (record,) = caplog.records
    assert record.getMessage() == (
        "listener Slow hangs with 2 events waiting; further ones are lost; this is logged once"
    )
    slow.release.set()
    bus.flush(soon())
    assert slow.events_seen == [FIRST, SECOND, THIRD]


def test_a_listener_that_raises_a_keyboard_interrupt_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []

    def listener(event: Event) -> None:
        seen.append(event)
        raise KeyboardInterrupt

    bus = Bus([listener])
    assert bus.open(wanted=True)
    bus.send_all([FIRST, SECOND])
    assert bus.flush(soon()) == []
    bus.close()
    assert seen == [FIRST, SECOND]
    assert "was interrupted" in caplog.text
