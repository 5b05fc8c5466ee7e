"""The faults under which circuit breakers, retries and executors that are merely put together give way."""

from __future__ import annotations

import contextvars
import threading
import time
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    Retry,
    ScanResult,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.testing import FakeClock, hanging, healthy
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.waiting import WAIT_TIMEOUT

pytestmark = pytest.mark.slow

TICKET: contextvars.ContextVar[str] = contextvars.ContextVar("TICKET", default="none")


def pause(seconds: float) -> None:
    """Block as a socket does: deaf to every cancel."""
    threading.Event().wait(seconds)


def test_eight_calls_through_one_breaker_run_at_the_same_time(fleet: Fleet, bare: Bare, background: Background) -> None:
    all_inside = threading.Barrier(8, timeout=5)

    @scanner(pipeline="test")
    def slow(_state: dict[str, Any]) -> list[Any]:
        all_inside.wait()  # one after the other, nobody gets past this
        return []

    runner = fleet(slow, policy=bare(breaker=Breaker(), timeout=Timeout(total=10)), max_workers=8)
    runs = [background(runner.run, {}) for _ in range(8)]
    assert [statuses(run.result(10)) for run in runs] == [[Status.COMPLETED]] * 8


def test_a_breaker_can_be_asked_while_a_call_hangs(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """One hung call holds nothing that the next scan of the same scanner needs."""
    first = threading.Event()
    answers = iter([True, False])

    @scanner(pipeline="test")
    def once(_state: dict[str, Any]) -> list[Any]:
        if next(answers):
            first.set()
            release.wait()
        return []

    runner = fleet(once, policy=bare(breaker=Breaker(failures=9), timeout=Timeout(total=0.5, max_abandoned=2)))
    assert statuses(runner.run({})) == [Status.TIMEOUT]
    assert first.is_set()
    assert statuses(runner.run({})) == [Status.COMPLETED]


def test_hangs_open_the_breaker(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    policy = bare(breaker=Breaker(failures=2, open_for=60), timeout=Timeout(total=0.05, max_abandoned=9))
    runner = fleet(hanging("hung", release), policy=policy)
    assert [statuses(runner.run({}))[0] for _ in range(3)] == [Status.TIMEOUT, Status.TIMEOUT, Status.REJECTED]
    result = runner.run({}).results["hung"]
    assert result.error is not None
    assert result.error.type == "resilient_scan.CircuitOpen"


def test_eight_that_hang_for_ever_are_reported_on_time(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    hung = [hanging(f"hung_{n}", release) for n in range(8)]
    runner = fleet(*hung, policy=bare(timeout=Timeout(total=0.3)), max_workers=8)
    began = time.monotonic()
    report = runner.run({})
    took = time.monotonic() - began
    assert statuses(report) == [Status.TIMEOUT] * 8
    assert took < 8 * 0.3  # on a machine that does nothing else 0.4; one after the other would be 2.4


def test_healthy_ones_behind_hanging_ones_complete(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    hung = [hanging(f"hung_{n}", release) for n in range(8)]
    found = [Candidate("AAPL", "well", "found")]
    well = [healthy(f"well_{n}", found, timeout=Timeout(total=5)) for n in range(4)]
    runner = fleet(*hung, *well, policy=bare(timeout=Timeout(total=0.1)), max_workers=2)
    report = runner.run({})
    assert statuses(report) == [Status.TIMEOUT] * 8 + [Status.COMPLETED] * 4
    assert len(report.candidates) == 4
    # In the next run too: the hung threads hold no place. On a busy machine a time may be up before the thread called
    # its scanner; nothing hangs then, and the scanner is called again.
    hanging_now = {thread.name for thread in runner.abandoned()}
    assert len(hanging_now) >= 4
    again = [Status.REJECTED if f"hung_{n}" in hanging_now else Status.TIMEOUT for n in range(8)]
    assert statuses(runner.run({})) == again + [Status.COMPLETED] * 4


def test_timeouts_of_many_are_delivered_on_time(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    """500 scanners in flight, 50 of them hang; each of the 50 is handed over at its deadline."""
    in_flight = threading.Barrier(501)

    def make(number: int) -> Any:
        @scanner(name=f"s{number}", pipeline="test")
        def scan(_state: dict[str, Any]) -> list[Any]:
            in_flight.wait(30)
            if number % 10 == 0:
                release.wait()
            return []

        return scan

    runner = fleet(
        *(make(n) for n in range(500)),
        policy=bare(timeout=Timeout(total=3.0)),
        max_workers=500,
        max_abandoned=64,
    )
    arrived: dict[str, float] = {}

    def collect() -> list[ScanResult]:
        results = []
        for result in runner.stream({}):
            arrived[result.scanner] = time.time()
            results.append(result)
        return results

    opener = threading.Thread(target=in_flight.wait, args=(30,), daemon=True)
    opener.start()
    results = collect()
    opener.join(5)
    hung = [result for result in results if result.status is Status.TIMEOUT]
    assert len(hung) == 50
    assert sum(result.status is Status.COMPLETED for result in results) == 450
    late = sorted(result.duration - 3.0 for result in hung)
    assert late[0] >= 0
    # on a machine that does nothing else 15 ms; a worker that waited for another one would be its 3 s late
    assert late[int(0.99 * len(late))] <= 2
    assert sorted(arrived[result.scanner] - result.started_at - 3.0 for result in hung)[48] <= 2


def test_a_hung_trial_cannot_wedge_the_breaker(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    steps: list[Any] = [OSError("down"), release.wait, lambda: None]

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        step = steps.pop(0)
        if isinstance(step, Exception):
            raise step
        step()
        return []

    policy = bare(breaker=Breaker(failures=1, open_for=0.2, open_cap=0.2), timeout=Timeout(0.5, max_abandoned=2))
    runner = fleet(source, policy=policy)
    assert statuses(runner.run({})) == [Status.ERROR]
    seen = []
    for _ in range(2000):
        status = statuses(runner.run({}))[0]
        if not seen or seen[-1] is not status:
            seen.append(status)
        if status is Status.COMPLETED:
            break
        pause(0.002)
    # open, then a trial that hangs, then open again, then a trial that is well
    assert seen == [Status.REJECTED, Status.TIMEOUT, Status.REJECTED, Status.COMPLETED]


def test_trials_are_capped_while_one_is_under_way(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    clock = FakeClock()
    trying = threading.Event()
    steps: list[Any] = [OSError("down"), None]

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        step = steps.pop(0)
        if step is not None:
            raise step
        trying.set()
        release.wait()
        return []

    policy = bare(breaker=Breaker(failures=1, open_for=10), timeout=Timeout(total=1000))
    runner = fleet(source, policy=policy, clock=clock)
    runner.run({})
    clock.advance(10)
    trial = background(runner.run, {})
    assert trying.wait(5)
    assert [statuses(runner.run({}))[0] for _ in range(7)] == [Status.REJECTED] * 7
    release.set()
    assert statuses(trial.result(5)) == [Status.COMPLETED]


def test_a_follower_of_a_hung_leader_waits_no_longer_than_its_own_time(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    hung = threading.Event()

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        hung.set()
        release.wait()
        return []

    runner = fleet(source, policy=bare(cache=Cache(), timeout=Timeout(total=2)))
    leader = background(runner.run, {})
    assert hung.wait(WAIT_TIMEOUT)
    short = runner.run({}, deadline=0.1)  # its own run's deadline comes first
    assert not leader.done()
    assert statuses(short) == [Status.SKIPPED]
    long = runner.run({})
    assert statuses(long) == statuses(leader.result(WAIT_TIMEOUT)) == [Status.TIMEOUT]


def test_ten_misses_of_a_failing_source_are_one_call(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    calls, asked = [], []

    @scanner(pipeline="test")
    def failing(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        release.wait()
        raise OSError("down")

    @scanner(pipeline="test", cache=None)
    def after_it(_state: dict[str, Any]) -> list[Any]:
        asked.append(1)
        return []

    runner = fleet(failing, after_it, policy=bare(cache=Cache()), max_workers=2, order="given")
    runs = [background(runner.run, {}) for _ in range(10)]
    eventually(lambda: len(asked) == 10)  # so each of the ten runs has asked the failing one before
    release.set()
    results = [run.result(5).results["failing"] for run in runs]
    assert len(calls) == 1
    assert [result.status for result in results] == [Status.ERROR] * 10
    assert {result.error.message for result in results} == {"down"}


def test_context_variables_reach_the_worker(fleet: Fleet, bare: Bare) -> None:
    seen = []

    @scanner(pipeline="test")
    def reader(_state: dict[str, Any]) -> list[Any]:
        seen.append(TICKET.get())
        TICKET.set("changed by the scanner")
        return []

    runner = fleet(reader, max_workers=1)
    for ticket in ("one", "two"):
        token = TICKET.set(ticket)
        runner.run({})
        assert TICKET.get() == ticket  # what the scanner set stays with the scanner
        TICKET.reset(token)
    assert seen == ["one", "two"]


@pytest.mark.parametrize("answered_by", ["cache", "leader"])
def test_cached_lists_are_safe(
    answered_by: str, fleet: Fleet, bare: Bare, release: threading.Event, background: Background
) -> None:
    began = threading.Event()

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        began.set()
        if answered_by == "leader":
            release.wait()
        return [{"ticker": "AAPL", "notes": ["as found"]}]

    runner = fleet(source, policy=bare(cache=Cache()))
    first = background(runner.run, {})
    assert began.wait(5)
    second = background(runner.run, {}) if answered_by == "leader" else None
    if second is not None:
        release.set()
    report = first.result(5)
    report.candidates[0].extras["notes"].append("spoilt")
    report.results["source"].candidates.clear()
    later = runner.run({}) if second is None else second.result(5)
    assert later.results["source"].status is Status.CACHED
    assert later.candidates == [Candidate("AAPL", "source", "", extras={"notes": ["as found"]})]
    later.candidates[0].extras["notes"].append("spoilt")
    assert runner.run({}).candidates[0].extras == {"notes": ["as found"]}


def test_a_retry_does_not_make_a_hung_source_hang_longer(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    policy = bare(retry=Retry(attempts=5, base=0, cap=0), timeout=Timeout(total=0.1))
    result = fleet(hanging("hung", release), policy=policy).run({}).results["hung"]
    assert (result.status, result.attempts) == (Status.TIMEOUT, 1)
