"""The time of one attempt, and how many threads may hang."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from resilient_scan import Rejected, ScanCancelled, ScanTimeout, Timeout
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.timeout import Abandoned, HungThreads, limited
from resilient_scan.testing import FakeClock


def test_an_attempt_has_its_own_end_and_the_context_knows(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0)
    alarms: list[float] = []
    context.alarm = alarms.append
    seen: list[float] = []

    def call(context: AttemptContext) -> list[Any]:
        seen.append(context.remaining())
        return ["found"]

    clock.advance(1)
    assert limited(3.0, call, clock)(context) == ["found"]
    assert seen == [3.0]
    assert alarms == [4.0, 10.0]  # the engine's alarm is set, and set back
    assert context.remaining() == 9.0


@pytest.mark.parametrize("seconds", [10.0, 12.0])
def test_an_attempt_never_has_more_than_the_scan(clock: FakeClock, seconds: float) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0)
    alarms: list[float] = []
    context.alarm = alarms.append
    seen: list[float] = []
    limited(seconds, lambda context: seen.append(context.remaining()) or [], clock)(context)
    assert (seen, alarms) == ([10.0], [])


def after(seconds: float, clock: FakeClock, context: AttemptContext) -> Any:
    """Return a call that works for `seconds` and then looks whether anybody still waits."""

    def call(context: AttemptContext) -> list[Any]:
        context.begin_attempt()
        clock.advance(seconds)
        context.check()
        return ["found"]

    return limited(3.0, call, clock)


def test_who_notices_that_the_attempt_is_over_has_a_timeout(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0)
    with pytest.raises(ScanTimeout, match=r"^attempt 1: timeout after 3s$") as caught:
        after(3.0, clock, context)(context)
    assert caught.value.by_clock
    assert caught.value.__cause__ is None
    assert context.remaining() == 7.0


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([ScanCancelled("over")], ScanTimeout),
        ([ScanCancelled("over"), asyncio.CancelledError()], ScanTimeout),
        ([ScanCancelled("over"), OSError("down")], BaseExceptionGroup),
    ],
)
def test_a_group_of_cancellations_at_the_attempts_end_is_its_timeout(
    clock: FakeClock, members: list[BaseException], expected: type[BaseException]
) -> None:
    def call(context: AttemptContext) -> list[Any]:
        clock.advance(3.0)
        raise BaseExceptionGroup("x", members)

    with pytest.raises(expected):
        limited(3.0, call, clock)(AttemptContext("one", clock=clock, deadline=10.0))


def test_who_is_in_time_has_none(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0)
    assert after(2.75, clock, context)(context) == ["found"]


def test_the_end_of_the_scan_is_not_the_attempts(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0)
    with pytest.raises(ScanCancelled):
        after(10.0, clock, context)(context)


def test_a_cancel_is_not_the_attempts_timeout(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0)
    context.cancel()
    with pytest.raises(ScanCancelled):
        after(3.0, clock, context)(context)


def test_a_scanners_own_cancel_is_its_own(clock: FakeClock) -> None:
    """One that raises it before anything is over gets it back."""
    context = AttemptContext("one", clock=clock, deadline=10.0)

    def call(context: AttemptContext) -> list[Any]:
        raise ScanCancelled("own idea")

    with pytest.raises(ScanCancelled, match="own idea"):
        limited(3.0, call, clock)(context)
    assert context.remaining() == 10.0


def test_an_error_comes_through_and_the_time_is_set_back(clock: FakeClock) -> None:
    context = AttemptContext("one", clock=clock, deadline=10.0)
    failure = OSError("down")

    def call(context: AttemptContext) -> list[Any]:
        raise failure

    with pytest.raises(OSError, match="down") as caught:
        limited(3.0, call, clock)(context)
    assert caught.value is failure
    assert context.remaining() == 10.0


def test_nobody_hangs_nobody_is_refused(clock: FakeClock) -> None:
    HungThreads(Timeout(), clock).admit(AttemptContext("one", clock=clock))


def test_beyond_the_limit_a_scanner_is_refused_after_the_grace() -> None:
    clock = FakeClock()
    hung = HungThreads(Timeout(max_abandoned=2), clock)
    hung.abandon()
    hung.admit(AttemptContext("one", clock=clock))  # one of two
    hung.abandon()
    refusals: list[BaseException] = []

    def ask() -> None:
        try:
            hung.admit(AttemptContext("one", clock=clock))
        except Rejected as refusal:
            refusals.append(refusal)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    while asker.is_alive():  # it waits for the grace on this clock
        clock.advance(0.01)
    assert [str(refusal) for refusal in refusals] == [
        "2 of at most 2 threads of one hang in earlier scans; it is called again when one of them ends"
    ]
    assert clock.monotonic() >= 0.05


def test_a_thread_that_ends_within_the_grace_makes_room(clock: FakeClock) -> None:
    hung = HungThreads(Timeout(), clock)
    hung.abandon()
    admitted = threading.Event()

    def ask() -> None:
        hung.admit(AttemptContext("one", clock=clock))
        admitted.set()

    threading.Thread(target=ask, daemon=True).start()
    hung.returned()
    assert admitted.wait(5)
    assert hung.count == 0
    assert clock.monotonic() == 0


def test_the_grace_takes_no_more_than_half_of_the_time_left(clock: FakeClock) -> None:
    hung = HungThreads(Timeout(), clock)
    hung.abandon()
    with pytest.raises(Rejected):
        hung.admit(AttemptContext("one", clock=clock, deadline=0.0))  # no time, no grace


def test_the_failure_of_an_earlier_attempt_is_not_hidden_by_the_refusal(clock: FakeClock) -> None:
    hung = HungThreads(Timeout(), clock)
    hung.abandon()
    context = AttemptContext("one", clock=clock, deadline=0.0)
    context.failure = ScanTimeout("attempt 1", by_clock=True)
    with pytest.raises(ScanTimeout) as caught:
        hung.admit(context)
    assert caught.value is context.failure


def test_the_last_threads_that_came_back_are_remembered() -> None:
    hung = HungThreads(Timeout(total=1), FakeClock())
    came_back = [Abandoned("one", f"thread-{number}", 1.0, False, "", "sockets", "error") for number in range(12)]
    for thread in came_back:
        hung.record(thread)
    assert hung.came_back == tuple(came_back[2:])
