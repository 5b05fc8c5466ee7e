"""What a scanner is told: its time, its cancel, its logs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from resilient_scan import ConfigError, ScanCancelled, ScanContext
from resilient_scan.context import NEVER, ScannerContext
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.snapshot import Snapshot
from resilient_scan.testing import FakeClock

START = 1_359_050_400.0  # 2013-01-24, 18:00 UTC


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
def in_thread() -> Callable[[Callable[[], object]], Callable[[], Any]]:
    """Return a function that calls another one on a thread of its own and returns what waits for its outcome."""

    def start(function: Callable[[], object]) -> Callable[[], Any]:
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(function())
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def wait() -> Any:
            thread.join(5)
            assert not thread.is_alive()
            return outcome[0]

        return wait

    return start


def test_a_context_of_its_own_has_all_the_time_there_is() -> None:
    context = ScanContext()
    assert (context.scanner, context.remaining(), context.cancelled, context.timed_out) == (
        "scanner",
        math.inf,
        False,
        False,
    )
    assert dict(context.settings) == {}
    assert abs((context.now - datetime.now(UTC)).total_seconds()) < 60


def test_the_remaining_time_goes_down_to_zero_and_no_further(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock, deadline=10.0)
    clock.advance(4)
    assert context.remaining() == 6
    clock.advance(100)
    assert context.remaining() == 0


def test_it_is_over_at_the_deadline_and_not_before(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock, deadline=10.0)
    clock.advance(9.75)
    context.check()
    assert not context.cancelled
    clock.advance(0.25)
    assert context.cancelled
    assert context.timed_out
    with pytest.raises(ScanCancelled, match=r"^one: the scan has ended$"):
        context.check()


def test_the_runs_deadline_ends_a_scan_without_blame(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock)
    context.limit(10.0, cut_at=5.0)
    assert context.remaining() == 5
    clock.advance(5)
    assert context.cancelled
    assert not context.timed_out
    clock.advance(5)
    assert context.timed_out


def test_a_cancel_is_no_timeout(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock, deadline=10.0)
    context.cancel()
    assert context.cancelled
    assert context.abandoned
    assert not context.timed_out
    with pytest.raises(ScanCancelled):
        context.check()


def test_now_is_the_runners_time_in_utc(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock)
    assert context.now == datetime(2013, 1, 24, 18, tzinfo=UTC)
    clock.advance(90)
    assert context.now == datetime(2013, 1, 24, 18, 1, 30, tzinfo=UTC)
    assert context.now.tzinfo is UTC


def test_a_log_entry_says_who_and_when(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock)
    clock.advance(1.5)
    context.log("fetch", symbol="AAPL", rows=7)
    assert context.tool_logs() == [{"tool": "fetch", "scanner": "one", "at": START + 1.5, "symbol": "AAPL", "rows": 7}]


def test_logs_handed_out_are_a_list_of_their_own(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock)
    context.log("fetch")
    context.tool_logs().clear()
    assert len(context.tool_logs()) == 1


@pytest.mark.parametrize("state", [{}, {"tool_logs": []}, {"tool_logs": [{"tool": "before"}]}, {"tool_logs": None}])
def test_logs_of_all_attempts_are_kept_in_order(state: dict[str, Any], clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, snapshot=Snapshot(state))
    for number in (1, 2, 3):
        own = context.begin_attempt()
        assert context.attempt == number
        context.log(f"log {number}")
        if isinstance(own.get("tool_logs"), list):
            own["tool_logs"].append({"tool": f"own {number}"})
    listed = isinstance(state.get("tool_logs"), list)
    expected = [f"{kind} {number}" for number in (1, 2, 3) for kind in (("log", "own") if listed else ("log",))]
    assert [entry["tool"] for entry in context.tool_logs()] == expected


def test_an_attempt_forgets_what_the_one_before_it_found(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, snapshot=Snapshot({"tickers": ["AAPL"]}))
    state = context.begin_attempt()
    state["tickers"].append("SPOILT")
    context.found = ["candidate"]
    context.dropped = 3
    assert context.begin_attempt() == {"tickers": ["AAPL"]}
    assert (list(context.found), context.dropped) == ([], 0)


def test_who_asks_first_when_an_attempt_began_reports_its_end(clock: FakeClock) -> None:
    context, lock = AttemptContext("one", clock=clock), threading.Lock()
    clock.advance(2)
    context.begin_attempt()
    assert context.close_attempt(lock) == 2.0
    assert context.close_attempt(lock) is None


def test_the_next_context_takes_over_time_logs_and_number(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0, snapshot=Snapshot({"a": 1}))
    context.limit(10.0, cut_at=8.0)
    context.begin_attempt()
    context.log("first")
    failure = OSError("hangs")
    following = context.next(failure, 2.5)
    assert (following.deadline, following.cut_at, following.ends) == (10.0, 8.0, 8.0)
    assert (following.attempt, following.failure, following.failed_after) == (1, failure, 2.5)
    assert [entry["tool"] for entry in following.tool_logs()] == ["first"]
    context.cancel()
    assert not following.cancelled
    following.log("second")
    assert len(context.tool_logs()) == 1


def test_sleeping_takes_the_clocks_time(clock: FakeClock, in_thread: Callable[..., Any]) -> None:
    context = ScanContext("one", clock=clock, deadline=10.0)
    asleep = in_thread(lambda: context.sleep(3))
    clock.wait_for_sleepers()
    clock.advance(2.75)
    clock.wait_for_sleepers()
    clock.advance(0.25)
    assert asleep() is None


def test_a_sleep_ends_with_the_scan(clock: FakeClock, in_thread: Callable[..., Any]) -> None:
    context = ScanContext("one", clock=clock, deadline=10.0)
    asleep = in_thread(lambda: context.sleep(60))
    clock.wait_for_sleepers()
    clock.advance(10)
    assert isinstance(asleep(), ScanCancelled)


def test_a_cancel_wakes_a_sleeper(clock: FakeClock, in_thread: Callable[..., Any]) -> None:
    context = ScanContext("one", clock=clock)
    asleep = in_thread(lambda: context.sleep(60))
    clock.wait_for_sleepers()
    context.cancel()
    assert isinstance(asleep(), ScanCancelled)


@pytest.mark.parametrize("seconds", [0, -1, 5])
def test_nobody_sleeps_after_the_end(seconds: float, clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock)
    context.cancel()
    with pytest.raises(ScanCancelled):
        context.sleep(seconds)


def test_no_time_is_no_sleep(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock)
    context.sleep(0)
    context.sleep(-1)
    assert clock.monotonic() == 0


def test_a_poke_alone_does_not_end_a_sleep(clock: FakeClock, in_thread: Callable[..., Any]) -> None:
    context = ScanContext("one", clock=clock)
    context.poke()  # nobody sleeps yet
    asleep = in_thread(lambda: context.sleep(3))
    clock.wait_for_sleepers()
    context.poke()
    clock.wait_for_sleepers()
    clock.advance(3)
    assert asleep() is None


def test_who_waits_for_a_condition_is_woken_by_a_poke(clock: FakeClock, in_thread: Callable[..., Any]) -> None:
    context, there = ScanContext("one", clock=clock), threading.Event()
    waits = in_thread(lambda: context.wait(60, there.is_set))
    clock.wait_for_sleepers()
    there.set()
    context.poke()
    assert waits() is None
    assert clock.monotonic() == 0


def test_a_condition_that_came_true_wins_over_the_end(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock)
    context.cancel()
    context.wait(60, lambda: True)


def test_a_watched_flag_is_raised_by_every_cancel_and_poke(clock: FakeClock) -> None:
    context, wake, other = ScanContext("one", clock=clock), clock.event(), clock.event()
    with context.watched(wake), context.watched(other):
        context.poke()
        assert wake.is_set()
        assert other.is_set()
        wake.clear()
        context.cancel()
        assert wake.is_set()
    wake.clear()
    context.poke()
    assert not wake.is_set()


def test_a_shared_value_is_loaded_each_time_where_nobody_shares(clock: FakeClock) -> None:
    context, numbers = ScanContext("one", clock=clock), iter(range(9))
    assert context.shared("key", lambda: next(numbers)) == 0
    assert context.shared("key", lambda: next(numbers)) == 1


def test_a_shared_value_is_loaded_once_for_all(clock: FakeClock) -> None:
    values, numbers = SharedValues(clock), iter(range(9))
    first, second = (ScanContext(name, clock=clock, shared=values) for name in ("one", "two"))
    assert first.shared("key", lambda: next(numbers), ttl=10) == 0
    assert second.shared("key", lambda: next(numbers), ttl=10) == 0
    clock.advance(9.75)
    assert second.shared("key", lambda: next(numbers), ttl=10) == 0
    clock.advance(0.25)
    assert first.shared("key", lambda: next(numbers), ttl=10) == 1


def test_a_shared_value_keeps_for_five_minutes_unless_told(clock: FakeClock) -> None:
    context, numbers = ScanContext("one", clock=clock, shared=SharedValues(clock)), iter(range(9))
    context.shared("key", lambda: next(numbers))
    clock.advance(299.75)
    assert context.shared("key", lambda: next(numbers)) == 0
    clock.advance(0.25)
    assert context.shared("key", lambda: next(numbers)) == 1


def test_settings_are_those_of_its_home(clock: FakeClock) -> None:
    context = AttemptContext.at(ScannerContext("one", {"token": "x"}, clock, None), Snapshot({}), "run")
    assert (context.scanner, context.settings["token"]) == ("one", "x")
    assert context.remaining() == NEVER


def test_a_map_keeps_the_order(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock)
    assert context.map(abs, iter([-3, 2, -1]), concurrency=3) == [3, 2, 1]
    assert context.map(abs, []) == []


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_map_needs_somebody_at_work(concurrency: int, clock: FakeClock) -> None:
    with pytest.raises(ConfigError) as caught:
        ScanContext("one", clock=clock).map(abs, [1], concurrency=concurrency)
    assert str(caught.value) == f"map: concurrency must be >= 1, got {concurrency}"


def test_a_map_ends_with_the_scan(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock, deadline=10.0)
    seen: list[int] = []

    def look(item: int) -> None:
        seen.append(item)
        clock.advance(4)

    with pytest.raises(ScanCancelled):
        context.map(look, range(9), concurrency=1)
    assert seen == [0, 1, 2]


def test_a_map_whose_last_item_ends_late_is_whole(clock: FakeClock) -> None:
    context = ScanContext("one", clock=clock, deadline=10.0)
    assert context.map(lambda _item: clock.advance(11), [1]) == [None]


class CountingProvider:
    """Stands for a provider: knows whether a request is paid for, and notes who waits."""

    def __init__(self, *, paid: bool) -> None:
        self.paid = paid
        self.waits: list[bool] = []

    def prepaid_request(self, context: ScanContext) -> bool:
        return self.paid

    def acquire(self, context: ScanContext, *, with_permit: bool) -> None:
        self.waits.append(with_permit)


@pytest.mark.parametrize(("paid", "waits"), [(True, []), (False, [False])])
def test_a_request_waits_for_its_turn_unless_it_is_paid_for(paid: bool, waits: list[bool]) -> None:
    context = AttemptContext("one")
    context.before_request()  # no provider: nothing to wait for
    provider = context.provider = CountingProvider(paid=paid)
    context.before_request()
    assert provider.waits == waits


def test_a_doubt_is_made_text_where_the_scanner_says_it() -> None:
    """A listener would do that later, when nobody is left to hand a timeout over."""

    class Raises:
        def __str__(self) -> str:
            raise ValueError("no text")

    context = ScanContext()
    with pytest.raises(ValueError, match="no text"):
        context.doubt(Raises())  # type: ignore[arg-type]
    context.doubt(ValueError("odd"))  # type: ignore[arg-type]
    assert context.doubted == "odd"
