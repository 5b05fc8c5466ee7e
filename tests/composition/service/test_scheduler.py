"""A fleet that runs again and again: on its grid, one run at a time, probes in between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from resilient_scan import Quarantine, ScanRunner
from resilient_scan.events import ProbeEnded, RunEnded, RunStarted, ScheduledRunBegins, ScheduleStarted
from resilient_scan.quarantine import Alert
from resilient_scan.service.schedule import POLL_INTERVAL, Schedule, Scheduler
from resilient_scan.testing import FakeClock, Recorder, hanging, healthy
from tests.support.clocks import WatchedClock
from tests.support.fixtures import Eventually, Fleet

Begin = Callable[..., Scheduler]
EVERY = 60.0


class Heard(Recorder):
    """Keeps events, and when they came."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self.at: list[float] = []

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        if isinstance(event, RunEnded):
            self.at.append(self._clock.monotonic())


@pytest.fixture
def clock() -> WatchedClock:
    return WatchedClock("resilient-scan-scheduler")


@pytest.fixture
def begin(clock: FakeClock, release: threading.Event) -> Iterator[Begin]:
    """Return a function that starts a scheduler, which is stopped when the test ends."""
    begun: list[Scheduler] = []

    def start(runner: ScanRunner, *, catch_up: str = "once", **options: Any) -> Scheduler:
        plan = Schedule(EVERY, jitter=0, catch_up=catch_up, start=clock.monotonic(), random=Random(1))
        scheduler = Scheduler(runner, plan, clock=clock, **options)
        begun.append(scheduler)
        scheduler.start()
        return scheduler

    yield start
    release.set()
    for scheduler in begun:
        assert scheduler.stop(5)


def pass_time(
    clock: FakeClock, seconds: float, heard: Heard, eventually: Eventually, *, runs: int, busy: bool = False
) -> None:
    """Let time pass in steps, each seen by the scheduler unless a run keeps it busy; hold what comes of it."""
    assert isinstance(clock, WatchedClock)
    if not busy:
        eventually(lambda: clock.rests(within=POLL_INTERVAL))
    before = len(heard.at)
    for _ in range(int(seconds)):
        clock.advance(1.0)
        if not busy:
            eventually(lambda: clock.rests(within=POLL_INTERVAL))
    eventually(lambda: len(heard.at) >= before + runs)
    assert len(heard.at) == before + runs


def test_runs_come_on_the_grid(fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually) -> None:
    heard = Heard(clock)
    begin(fleet(healthy("a"), clock=clock, listeners=(heard,)))
    eventually(lambda: heard.at == [0.0])
    pass_time(clock, 59, heard, eventually, runs=0)
    pass_time(clock, 2, heard, eventually, runs=1)
    pass_time(clock, 60, heard, eventually, runs=1)
    assert heard.at[1] == 60.0
    assert all(event.complete for event in heard.of(RunEnded))


def test_listeners_learn_of_the_schedule_and_of_how_late_each_run_is(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually
) -> None:
    heard = Heard(clock)
    begin(fleet(healthy("a"), healthy("b"), clock=clock, listeners=(heard,)))
    eventually(lambda: heard.at == [0.0])
    assert heard.of(ScheduleStarted) == [ScheduleStarted(("a", "b"), EVERY, clock.time())]
    eventually(lambda: isinstance(clock, WatchedClock) and clock.rests(within=POLL_INTERVAL))
    clock.advance(EVERY + 7)  # the machine slept
    eventually(lambda: len(heard.at) == 2)
    assert [event.lateness for event in heard.of(ScheduledRunBegins)] == [0.0, 7.0]
    assert [type(event) for event in heard.events_seen if isinstance(event, ScheduledRunBegins | RunStarted)] == [
        ScheduledRunBegins,
        RunStarted,
    ] * 2


@pytest.mark.parametrize(("catch_up", "runs"), [("once", 1), ("skip", 0)])
def test_never_two_at_once_and_what_was_missed_is_made_up_for_as_asked(
    fleet: Fleet,
    clock: FakeClock,
    begin: Begin,
    eventually: Eventually,
    release: threading.Event,
    catch_up: str,
    runs: int,
) -> None:
    heard = Heard(clock)
    runner = fleet(hanging("a", release), clock=clock, listeners=(heard,), timeout_seconds=1000)
    begin(runner, catch_up=catch_up)
    pass_time(clock, 200, heard, eventually, runs=0, busy=True)
    release.set()
    eventually(lambda: len(heard.at) == 1 + runs)
    pass_time(clock, 30, heard, eventually, runs=0)
    pass_time(clock, 15, heard, eventually, runs=1)


def test_each_run_is_given_a_state_of_its_own(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually
) -> None:
    heard, days = Heard(clock), iter(["monday", "tuesday"])
    runner = fleet(healthy("a"), clock=clock, listeners=(heard,))
    begin(runner, state=lambda: {"trade_date": next(days)}, deadline=5)
    eventually(lambda: len(heard.at) == 1)
    pass_time(clock, 60, heard, eventually, runs=1)


def test_one_scanner_is_run_when_that_is_asked_for(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually, release: threading.Event
) -> None:
    heard = Heard(clock)
    runner = fleet(healthy("a"), hanging("b", release), clock=clock, listeners=(heard,), timeout_seconds=1000)
    scheduler = begin(runner)
    eventually(lambda: len(runner.flights("a")) == 1)
    for name in ("a", "a", "b"):  # while the first run is under way
        scheduler.ask(name)
    assert heard.of(RunEnded) == []
    release.set()
    eventually(lambda: len(heard.of(RunEnded)) == 3)  # at once, although no time has passed; one for both orders
    assert [dict(event.counts) for event in heard.of(RunEnded)] == [{"completed": 2}, *2 * [{"completed": 1}]]
    scheduler.ask("a")
    eventually(lambda: len(heard.of(RunEnded)) == 4)
    assert (len(runner.flights("a")), len(runner.flights("b"))) == (3, 2)


def test_a_run_that_fails_as_a_whole_costs_only_itself(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    heard, made = Heard(clock), iter([1, 0, 1, 1])

    def state() -> dict[str, int]:
        return {"share": 1 // next(made)}

    scheduler = begin(fleet(healthy("a"), clock=clock, listeners=(heard,)), state=state)
    eventually(lambda: len(heard.at) == 1)
    pass_time(clock, 61, heard, eventually, runs=0)
    eventually(lambda: "a run failed as a whole; the next one comes in its time" in caplog.text)
    assert scheduler.alive
    pass_time(clock, 60, heard, eventually, runs=1)
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1


# probes


def alert(name: str) -> Alert:
    return Alert("disable", name, "firing", "f1", 1.0, "ScannerErrorRatioHigh", "fails")


def probes(heard: Heard) -> int:
    return len(heard.of(ProbeEnded))


def test_probes_come_between_runs_and_of_that_scanner_alone(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually
) -> None:
    heard = Heard(clock)
    runner = fleet(
        healthy("a"), healthy("b"), clock=clock, listeners=(heard,), quarantine=Quarantine(cooloff=10, successes=1)
    )
    begin(runner, probe_every=5)
    eventually(lambda: len(heard.at) == 1)
    runner.alerts([alert("a")])
    pass_time(clock, 9, heard, eventually, runs=0)
    pass_time(clock, 3, heard, eventually, runs=1)
    assert [event.scanner for event in heard.of(ProbeEnded)] == ["a"]


def test_a_source_that_was_ill_is_asked_gently_however_well_its_probes_do(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually
) -> None:
    """While the alert still fires, probes succeed again and again: that must not become a storm of requests."""
    heard = Heard(clock)
    runner = fleet(healthy("a"), clock=clock, listeners=(heard,), quarantine=Quarantine(cooloff=5, successes=1))
    begin(runner, probe_every=10)
    eventually(lambda: len(heard.at) == 1)
    runner.alerts([alert("a")])
    pass_time(clock, 6, heard, eventually, runs=1)
    pass_time(clock, 8, heard, eventually, runs=0)
    pass_time(clock, 4, heard, eventually, runs=1)
    pass_time(clock, 30, heard, eventually, runs=3)
    assert probes(heard) == 5
    assert runner.scanners()[0].state == "probing"


def test_probes_are_never_closer_than_the_poll_interval(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually
) -> None:
    heard = Heard(clock)
    runner = fleet(healthy("a"), clock=clock, listeners=(heard,), quarantine=Quarantine(cooloff=0.5, successes=2))
    begin(runner)
    eventually(lambda: len(heard.at) == 1)
    runner.alerts([alert("a")])
    clock.advance(POLL_INTERVAL)
    eventually(lambda: probes(heard) == 1)
    pass_time(clock, 0, heard, eventually, runs=0)
    clock.advance(POLL_INTERVAL)
    eventually(lambda: probes(heard) == 2)


# the end


def test_stop_begins_no_further_run(fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually) -> None:
    heard = Heard(clock)
    scheduler = begin(fleet(healthy("a"), clock=clock, listeners=(heard,)))
    eventually(lambda: len(heard.at) == 1)
    assert scheduler.alive
    assert scheduler.stop(5)
    assert not scheduler.alive
    clock.advance(1000)
    assert len(heard.at) == 1


def test_the_run_under_way_gets_its_time(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually, release: threading.Event
) -> None:
    heard = Heard(clock)
    scheduler = begin(fleet(hanging("a", release), clock=clock, listeners=(heard,)))
    assert not scheduler.stop(0.05)
    assert not scheduler.alive
    release.set()
    assert scheduler.stop(5)
    assert [event.counts["completed"] for event in heard.of(RunEnded)] == [1]


def test_a_runner_that_is_closed_ends_it(
    fleet: Fleet, clock: FakeClock, begin: Begin, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(clock)
    runner = fleet(healthy("a"), clock=clock, listeners=(heard,))
    scheduler = begin(runner)
    eventually(lambda: len(heard.at) == 1)
    runner.close()
    clock.advance(61)
    eventually(lambda: not scheduler.alive)
    assert "failed as a whole" not in caplog.text


def test_a_scheduler_that_was_not_started_can_be_stopped(fleet: Fleet, clock: FakeClock) -> None:
    plan = Schedule(EVERY, random=Random(1))
    assert Scheduler(fleet(healthy("a"), clock=clock), plan, clock=clock).stop(0.0)
