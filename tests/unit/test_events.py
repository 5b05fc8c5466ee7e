"""The bus: events reach who wants them, in order, and a listener that fails breaks nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from resilient_scan import Candidate, ScanRunner, Status
from resilient_scan._dispatch import Bus
from resilient_scan.events import (
    BreakerChanged,
    Event,
    LateCompletion,
    RunEnded,
    RunStarted,
    ScannersRegistered,
    ThreadAbandoned,
)
from resilient_scan.testing import Recorder, broken, healthy

ABANDONED = ThreadAbandoned("one", "thread-1", 2.0)
LATE = LateCompletion("one", 3.0, "success")
CHANGED = BreakerChanged("one", "closed", "open", 60.0)


class Choosy(Recorder):
    """Wants two kinds of events."""

    events = (ThreadAbandoned, BreakerChanged)


class Failing:
    """Raises at every event."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, event: Event) -> None:
        self.calls += 1
        raise self.error

    def __repr__(self) -> str:
        return "<the failing one>"


def test_a_listener_gets_everything_in_order() -> None:
    recorder = Recorder()
    bus = Bus([recorder])
    bus.send_all([ABANDONED, LATE])
    bus.send(CHANGED)
    assert recorder.events_seen == [ABANDONED, LATE, CHANGED]


def test_a_listener_may_say_what_it_wants() -> None:
    choosy = Choosy()
    Bus([choosy]).send_all([LATE, ABANDONED, LATE, CHANGED])
    assert choosy.events_seen == [ABANDONED, CHANGED]


def test_listeners_are_notified_in_their_order() -> None:
    notified: list[tuple[str, Event]] = []
    bus = Bus([lambda event: notified.append(("first", event)), lambda event: notified.append(("second", event))])
    bus.send_all([LATE, CHANGED])
    assert notified == [("first", LATE), ("second", LATE), ("first", CHANGED), ("second", CHANGED)]


@pytest.mark.parametrize("kind", Event.__subclasses__())
def test_the_bus_knows_which_events_anybody_wants(kind: type[Event]) -> None:
    assert Bus([Recorder()]).wants(kind)
    assert not Bus([]).wants(kind)
    assert Bus([Choosy()]).wants(kind) == (kind in Choosy.events)


def test_a_listener_may_want_nothing() -> None:
    class Deaf(Recorder):
        events = ()

    deaf = Deaf()
    Bus([deaf]).send(LATE)
    assert deaf.events_seen == []


def test_one_that_raises_is_logged_once_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    failing, recorder = Failing(ValueError("spoilt")), Recorder()
    bus = Bus([failing, recorder])
    bus.send_all([LATE, CHANGED, ABANDONED])
    assert failing.calls == 3
    assert recorder.events_seen == [LATE, CHANGED, ABANDONED]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("resilient_scan", logging.ERROR)
    assert record.getMessage() == ("listener <the failing one> failed; this is logged once, its later failures are not")
    assert record.exc_info is not None
    assert record.exc_info[1] is failing.error


def test_each_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus([Failing(ValueError()), Failing(KeyError())])
    bus.send_all([LATE, LATE])
    assert len(caplog.records) == 2


def test_a_failing_listener_costs_a_run_nothing(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    with ScanRunner(
        [healthy("well", [Candidate("AAPL", "well", "")]), broken("ill", retry=None)],
        listeners=(Failing(RuntimeError("spoilt")), recorder),
    ) as runner:
        report = runner.run({})
    assert [result.status for result in report.results.values()] == [Status.COMPLETED, Status.ERROR]
    assert len(recorder.of(RunEnded)) == 1
    assert len(caplog.records) == 1


def test_a_runners_events_begin_with_its_scanners_and_enclose_the_run() -> None:
    recorder = Recorder()
    with ScanRunner([healthy("one"), broken("two", retry=None, breaker=None)], listeners=(recorder,)) as runner:
        report = runner.run({})
        (registered,) = recorder.of(ScannersRegistered)
        one, two = registered.scanners
        assert one.breaker_state is not None
        assert one.breaker_state() == "closed"
    kinds = [type(event) for event in recorder.events_seen]
    assert kinds[:2] == [ScannersRegistered, RunStarted]
    assert kinds[-1] is RunEnded
    assert (one.name, one.pipeline, one.abandoned_threads()) == ("one", "test", 0)
    assert one.breaker_state() is None  # the runner is closed
    assert two.breaker_state is None
    (started,) = recorder.of(RunStarted)
    assert (started.run_id, started.scanners, started.concurrent, started.max_workers) == (report.run_id, 2, True, 8)
    (ended,) = recorder.of(RunEnded)
    assert (ended.run_id, ended.counts, ended.complete) == (report.run_id, report.counts, False)


def test_events_are_values() -> None:
    assert BreakerChanged("one", "closed", "open", 60.0) == CHANGED
    fields: Any = CHANGED
    with pytest.raises(AttributeError):
        fields.new = "closed"


@pytest.mark.parametrize("listeners", [[], [Choosy()], [Choosy(), Recorder()]])
def test_there_is_a_sender_if_anybody_listens(listeners: list[Recorder]) -> None:
    bus = Bus(listeners)
    send = bus.sender(BreakerChanged)
    assert (send is None) == (not listeners)
    if send is not None:
        send(CHANGED)
    assert [listener.events_seen for listener in listeners] == [[CHANGED]] * len(listeners)
    assert (bus.sender(LateCompletion) is None) == (len(listeners) < 2)  # the choosy one does not want it


@pytest.mark.parametrize("others", [0, 1])
def test_a_sender_logs_once_too(others: int, caplog: pytest.LogCaptureFixture) -> None:
    failing, recorder = Failing(ValueError("spoilt")), Recorder()
    bus = Bus([failing, *[recorder] * others])
    send = bus.sender(BreakerChanged)
    assert send is not None
    send(CHANGED)
    send(CHANGED)
    bus.send(LATE)
    assert failing.calls == 3
    assert recorder.events_seen == [CHANGED, CHANGED, LATE][: 3 * others]
    assert len(caplog.records) == 1


def test_a_sending_that_was_cut_short_goes_on_with_the_next_listener(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def interrupted(_event: Event) -> None:
        heard.append("interrupted")
        raise KeyboardInterrupt

    def failing(_event: Event) -> None:
        heard.append("failing")
        raise ValueError("no")

    bus = Bus((lambda _event: heard.append("first"), interrupted, failing, lambda _event: heard.append("last")))
    channel = bus.channel(RunStarted)
    event = RunStarted("r", 1, True, 1, 0.0)
    delivery = channel.begin(event)
    with pytest.raises(KeyboardInterrupt):
        channel.finish(delivery)
    assert heard == ["first", "interrupted"]
    channel.finish(delivery)
    channel.finish(delivery)
    assert heard == ["first", "interrupted", "failing", "last"]
    assert [record.args for record in caplog.records] == [(failing,)]


def test_a_listener_that_joins_while_an_event_is_sent_takes_nobody_elses_turn() -> None:
    heard: list[str] = []
    bus = Bus((lambda _event: bus.subscribe(lambda _event: heard.append("new")), lambda _event: heard.append("second")))
    channel = bus.channel(RunStarted)
    channel.finish(channel.begin(RunStarted("r", 1, True, 1, 0.0)))
    assert heard == ["second"]
    bus.send(RunStarted("r", 1, True, 1, 0.0))
    assert heard == ["second", "new", "second"]
