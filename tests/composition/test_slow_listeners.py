"""Listeners that are slow or hang: a run with a deadline ends all the same, and they get every event."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from resilient_scan import LogEvents, PrometheusMetrics, Status
from resilient_scan.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    ExecutionEnded,
    ListenerLate,
    RunEnded,
    RunStarted,
    ScanEnded,
)
from resilient_scan.testing import Recorder, healthy
from resilient_scan.tracing import TraceRuns
from tests.support.fixtures import Background, Eventually, Fleet
from tests.support.metrics import value
from tests.support.results import statuses
from tests.support.waiting import WAIT_TIMEOUT

OF_A_RUN = (RunStarted, AttemptStarted, AttemptEnded, ExecutionEnded, ScanEnded, RunEnded)


class Hanging(Recorder):
    """Hangs with every event of some kinds until it is released."""

    def __init__(self, release: threading.Event, *kinds: type[Event]) -> None:
        super().__init__()
        self.events = kinds
        self.release = release

    def __call__(self, event: Event) -> None:
        assert self.release.wait(4 * WAIT_TIMEOUT)
        super().__call__(event)


@pytest.mark.parametrize("kind", OF_A_RUN)
def test_a_run_ends_at_its_deadline_whatever_its_listeners_do(
    kind: type[Event], fleet: Fleet, release: threading.Event, eventually: Eventually
) -> None:
    registry, recorder, hanging = CollectorRegistry(), Recorder(), Hanging(release, kind)
    listeners = (hanging, PrometheusMetrics(registry), recorder)
    runner = fleet(*(healthy(f"s{n}") for n in range(3)), listeners=listeners, max_workers=2)
    report = runner.run({}, deadline=0.1)  # without the bound: never
    assert statuses(report) == [Status.COMPLETED] * 3
    assert [event.run_id for event in recorder.of(RunEnded)] == [report.run_id]
    sent = len(recorder.of(kind))
    eventually(lambda: recorder.of(ListenerLate))  # on the recorder's own thread
    (late,) = recorder.of(ListenerLate)
    assert (late.listener, late.events, late.run_id) == ("Hanging", sent, report.run_id)
    assert value(registry, "listener_events_late_total") == sent
    release.set()
    eventually(lambda: hanging.events_seen == recorder.of(kind))


def test_a_quick_listener_has_everything_when_the_run_returns(fleet: Fleet) -> None:
    with_deadline, without = Recorder(), Recorder()
    for recorder, deadline in ((with_deadline, 60), (without, None)):
        runner = fleet(*(healthy(f"s{n}") for n in range(20)), listeners=(recorder,), max_workers=1)
        runner.run({}, deadline=deadline)
    kinds = [[type(event) for event in recorder.of(*OF_A_RUN)] for recorder in (with_deadline, without)]
    assert sorted(kinds[0], key=repr) == sorted(kinds[1], key=repr)
    assert (kinds[0][0], kinds[0][-1]) == (RunStarted, RunEnded)
    assert not with_deadline.of(ListenerLate)


def test_a_slow_listener_is_waited_for_until_the_deadline(fleet: Fleet) -> None:
    recorder = Recorder()

    def slow(event: Any) -> None:
        if isinstance(event, ScanEnded):
            time.sleep(0.4)  # longer than a run waits after its deadline
        recorder(event)

    fleet(healthy("one"), healthy("two"), listeners=(slow,)).run({}, deadline=60)
    assert len(recorder.of(ScanEnded)) == 2
    assert len(recorder.of(RunEnded)) == 1


def test_a_run_without_a_deadline_waits_for_what_an_earlier_one_has_left(
    fleet: Fleet, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    hanging = Hanging(release, ScanEnded)
    runner = fleet(healthy("one"), listeners=(hanging,))
    first = runner.run({}, deadline=0.05)
    second = background(runner.run, {})
    (dispatcher,) = runner._fleet.bus._dispatchers
    eventually(lambda: dispatcher._queue.qsize() > 1)
    assert not second.done()
    release.set()
    run_ids = [first.run_id, second.result(WAIT_TIMEOUT).run_id]
    assert [event.run_id for event in hanging.events_seen] == run_ids


@pytest.mark.parametrize("end", ["closed", "left"])
def test_a_run_that_is_cut_short_does_not_wait_until_its_deadline(
    end: str, fleet: Fleet, release: threading.Event, background: Background
) -> None:
    runner = fleet(healthy("one"), healthy("two"), listeners=(Hanging(release, RunStarted),), concurrent=False)

    def read() -> None:
        for _ in runner.stream({}, deadline=600):
            if end == "left":
                break
            runner.close()

    background(read).result(WAIT_TIMEOUT)


def test_a_listener_may_run_another_run(fleet: Fleet) -> None:
    statuses_seen: list[Any] = []

    def nosy(event: Any) -> None:
        if isinstance(event, ScanEnded) and not statuses_seen:
            statuses_seen.append(None)
            statuses_seen[:] = statuses(runner.run({}, only=["two"], deadline=600))

    runner = fleet(healthy("one"), healthy("two"), listeners=(nosy,))
    runner.run({}, only=["one"], deadline=600)
    assert statuses_seen == [Status.COMPLETED]


def test_a_slow_listener_is_logged_once(
    fleet: Fleet, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    runner = fleet(healthy("one"), listeners=(Hanging(release, ScanEnded),))
    for _ in range(2):
        runner.run({}, deadline=0.05)
    (record,) = [record for record in caplog.records if "is slow" in record.message]
    assert record.message == (
        "listener Hanging is slow: a run ended before it had received 1 of its events; this is logged once"
    )


@pytest.mark.parametrize("listener", [PrometheusMetrics, LogEvents, TraceRuns])
def test_our_own_listeners_are_prompt(listener: Any, fleet: Fleet) -> None:
    assert listener.prompt
    runner = fleet(healthy("one"))
    assert runner._fleet.gate.prompt
    assert runner._fleet.bus._dispatchers == []
