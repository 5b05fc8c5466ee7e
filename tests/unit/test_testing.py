"""The tools for tests: a clock that stands still, a recorder, scanners that misbehave."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from resilient_scan import Cache, Candidate, Policy, Retry, ScanCancelled, ScanContext, ScanError, ScanRunner, Status
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.events import RunEnded, RunStarted, ScanEnded
from resilient_scan.testing import FakeClock, Recorder, broken, flapping, hanging, healthy, polite
from tests.support.waiting import WAIT_TIMEOUT


class Sleeper(threading.Thread):
    """Sleeps on a clock until an instant."""

    def __init__(self, clock: Clock, until: float) -> None:
        super().__init__(daemon=True)
        self.clock = clock
        self.until = until
        self.wake = clock.event()
        self.start()

    def run(self) -> None:
        self.clock.sleep(self.until, self.wake)

    def ended(self) -> bool:
        self.join(WAIT_TIMEOUT)
        return not self.is_alive()


# the clock


def test_it_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(100.0)
    assert (clock.monotonic(), clock.time()) == (0.0, 100.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (2.5, 102.5)
    clock.advance(0)
    assert clock.monotonic() == 2.5


def test_it_does_not_go_back() -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match=r"^a monotonic clock does not go back, got -1$"):
        clock.advance(-1)
    assert clock.monotonic() == 0


def test_it_has_what_the_real_one_has() -> None:
    real = {name for name in dir(SystemClock) if not name.startswith("_")}
    assert real <= {name for name in dir(FakeClock) if not name.startswith("_")}


def test_a_sleeper_wakes_when_its_time_has_come_and_not_before() -> None:
    clock = FakeClock()
    short, long = Sleeper(clock, 3), Sleeper(clock, 5)
    clock.wait_for_sleepers(2)
    clock.advance(3)
    assert short.ended()
    clock.wait_for_sleepers(1)
    assert long.is_alive()
    clock.advance(2)
    assert long.ended()


def test_a_sleeper_can_be_woken() -> None:
    clock = FakeClock()
    sleeper = Sleeper(clock, 3)
    clock.wait_for_sleepers()
    sleeper.wake.set()
    assert sleeper.ended()
    assert clock.monotonic() == 0


def test_nobody_sleeps_on_it_any_more_after_waking() -> None:
    clock = FakeClock()
    sleeper = Sleeper(clock, 3)
    clock.wait_for_sleepers()
    clock.advance(3)
    sleeper.ended()
    with pytest.raises(TimeoutError, match=r"^0 of 1 threads sleep on the clock after 0.01s$"):
        clock.wait_for_sleepers(patience=0.01)


def test_a_wait_is_no_sleep_but_ends_in_the_same_way() -> None:
    clock = FakeClock(auto=True)
    wake = clock.event()
    waiter = threading.Thread(target=clock.wait, args=(3.0, wake), daemon=True)
    waiter.start()
    clock.advance(2.75)
    assert waiter.is_alive()
    clock.advance(0.25)
    waiter.join(WAIT_TIMEOUT)
    assert not waiter.is_alive()


def test_a_clock_that_moves_itself_costs_no_time() -> None:
    clock = FakeClock(auto=True)
    wake = clock.event()
    clock.sleep(3600, wake)
    assert clock.monotonic() == 3600
    clock.sleep(3000, wake)  # an instant that is over
    assert clock.monotonic() == 3600


def test_a_fake_clock_that_moves_itself_does_not_move_for_who_is_woken_already() -> None:
    """the real one returns at once."""
    clock = FakeClock(auto=True)
    wake = clock.event()
    wake.set()
    clock.sleep(3600, wake)
    assert clock.monotonic() == 0


def test_its_flags_are_flags() -> None:
    clock = FakeClock()
    flag = clock.event()
    assert not flag.is_set()
    assert flag.wait(0) is False
    flag.set()
    assert flag.is_set()
    assert flag.wait() is True
    assert flag.wait(5) is True
    flag.clear()
    assert flag.wait(0) is False


def test_a_wait_without_limit_ends_with_the_flag_alone() -> None:
    clock = FakeClock()
    flag = clock.event()
    waiter = threading.Thread(target=flag.wait, daemon=True)
    waiter.start()
    clock.advance(1e6)
    assert waiter.is_alive()
    flag.set()
    waiter.join(WAIT_TIMEOUT)
    assert not waiter.is_alive()


def test_backoff_costs_no_time_on_a_clock_that_moves_itself() -> None:
    clock = FakeClock(auto=True)
    policy = Policy(retry=Retry(attempts=3, base=5, cap=5), breaker=None)
    steps = [OSError("down"), OSError("down"), [{"ticker": "AAPL"}]]
    with ScanRunner([flapping("one", steps)], policy=policy, clock=clock, listeners=()) as runner:
        result = runner.run({}).results["one"]
    assert (result.status, result.attempts) == (Status.COMPLETED, 3)
    assert 0 < clock.monotonic() <= 10
    assert result.duration == clock.monotonic()


# the recorder


def test_a_recorder_keeps_everything_and_finds_it_again() -> None:
    recorder = Recorder()
    with ScanRunner([healthy("one"), healthy("two")], listeners=(recorder,)) as runner:
        runner.run({})
    assert sorted(event.result.scanner for event in recorder.of(ScanEnded)) == ["one", "two"]
    assert [type(event) for event in recorder.of(RunStarted, RunEnded)] == [RunStarted, RunEnded]
    assert recorder.of() == []


# scanners


def one_run(thing: Any, **options: Any) -> Any:
    policy = Policy(cache=None, retry=None, breaker=None)
    with ScanRunner([thing], **{"policy": policy, "listeners": (), **options}) as runner:
        return runner.run({}).results[thing.name]


def test_a_healthy_one_answers() -> None:
    found = [Candidate("AAPL", "one", "rose")]
    one = healthy("one", iter(found), pipeline="edge", cache=Cache(ttl=5))
    assert (one.pipeline, one.layers) == ("edge", {"cache": Cache(ttl=5)})
    assert one_run(one).candidates == found
    assert one({}) is not one({})


def test_a_broken_one_raises_what_it_is_given() -> None:
    with pytest.raises(ScanError, match=r"^HTTP 500 error$"):
        broken("one")({})
    failure = KeyError("own")
    with pytest.raises(KeyError) as caught:
        broken("one", failure, retry=None)({})
    assert caught.value is failure
    assert one_run(broken("one", SystemExit(3))).status is Status.ERROR


def test_a_flapping_one_goes_through_its_answers() -> None:
    one = flapping("one", [[1], OSError("down"), [2]])
    assert one({}) == [1]
    with pytest.raises(OSError, match="down"):
        one({})
    assert one({}) == [2]


def test_a_hanging_one_is_deaf_until_it_is_let_go() -> None:
    release = threading.Event()
    one = hanging("one", release)
    hung = threading.Thread(target=one, args=({},), daemon=True)
    hung.start()
    assert hung.is_alive()
    release.set()
    hung.join(WAIT_TIMEOUT)
    assert not hung.is_alive()
    assert one({}) == []


def test_a_polite_one_takes_its_time_and_stops_when_cancelled() -> None:
    clock = FakeClock(auto=True)
    context = ScanContext("one", clock=clock)
    assert polite("one", 7)({}, context) == []
    assert clock.monotonic() == 7
    context.cancel()
    with pytest.raises(ScanCancelled):
        polite("one")({}, context)
