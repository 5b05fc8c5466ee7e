"""A provider's rate through the public API, and what can be wrong about a limit."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    ConfigError,
    Limit,
    Retry,
    ScanContext,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.cli.demo_server import LoopbackServer
from resilient_scan.http import Client
from resilient_scan.testing import FakeClock, healthy
from tests.support.clocks import WatchedClock
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import statuses
from tests.support.waiting import WAIT_TIMEOUT


def drive(run: Future[Any], clock: FakeClock, step: float) -> Any:
    """Move the clock until the run is over."""
    pause = threading.Event()
    for _ in range(400):
        if run.done():
            break
        clock.advance(step)
        pause.wait(0.003)
    return run.result(5)


@pytest.mark.parametrize(
    ("rate", "windows"),
    [("3/s", [(3, 1.0)]), (("2/s", "5/4s"), [(2, 1.0), (5, 4.0)]), ("4/2s", [(4, 2.0)])],
)
def test_never_more_than_that_in_any_window(
    rate: Any,
    windows: list[tuple[int, float]],
    fleet: Fleet,
    bare: Bare,
    background: Background,
    eventually: Eventually,
) -> None:
    clock, step = WatchedClock("resilient-scan-watchdog"), 0.05
    began: list[float] = []

    def make(number: int) -> Any:
        return scanner(name=f"s{number}", pipeline="test")(lambda _state: began.append(clock.monotonic()) or [])

    policy = bare(limit=Limit("acme", rate=rate), timeout=Timeout(total=1000))
    runner = fleet(*map(make, range(11)), policy=policy, clock=clock)
    run = background(runner.run, {})

    def all_seen() -> bool:
        known = len(began) + runner._fleet.providers["acme"].waiting == 11
        return run.done() or (known and runner._fleet.pool._unfinished == 0 and clock.rests())

    for _ in range(400):
        eventually(all_seen)
        clock.advance(step)
    assert statuses(run.result(5)) == [Status.COMPLETED] * 11
    began.sort()
    for count, seconds in windows:  # granted exactly in time, begun at the next step of the clock
        assert all(later - first > seconds - 2 * step for first, later in zip(began, began[count:], strict=False))
    assert began[windows[0][0] - 1] < 0.5, "the first ones need not wait"


@pytest.mark.parametrize("mode", ["at once", "in time"])
def test_a_rate_that_is_used_up_is_rejected_when_time_is_over(mode: str, fleet: Fleet, bare: Bare) -> None:
    policy = bare(limit=Limit("acme", rate="1/day"), timeout=Timeout(total=0.1 if mode == "in time" else 0.001))
    report = fleet(healthy("one"), healthy("two"), policy=policy, order="given").run({})
    assert report.results["two"].status is Status.REJECTED
    error = report.results["two"].error
    assert error is not None
    assert error.message == "no turn at provider acme in time: its rate (1/day) is used up"


def test_each_further_request_waits_for_its_turn(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock = FakeClock()
    asked: list[float] = []

    @scanner(pipeline="test")
    def pages(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        for _ in range(6):
            context.before_request()
            asked.append(clock.monotonic())
        return []

    policy = bare(limit=Limit("acme", rate="2/10s", concurrency=1), timeout=Timeout(total=1000))
    run = background(fleet(pages, policy=policy, clock=clock).run, {})
    for pages_asked in (2, 4):
        eventually(lambda pages_asked=pages_asked: len(asked) == pages_asked)  # type: ignore[misc]
        clock.wait_for_sleepers()
        clock.advance(10.5)
    assert statuses(run.result(5)) == [Status.COMPLETED]
    assert asked == [0, 0, 10.5, 10.5, 21, 21], "the first request came with the permit"


def test_a_request_that_gets_no_turn_in_time_is_an_error_of_the_scan(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    """A scan that made an attempt is never `rejected`; it gives up before its time is over, and nobody votes."""

    @scanner(pipeline="test")
    def pages(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.before_request()
        context.before_request()
        return []

    clock = FakeClock()
    policy = bare(
        limit=Limit("acme", rate="1/day"), timeout=Timeout(total=8), breaker=Breaker(failures=1), retry=Retry()
    )
    runner = fleet(pages, policy=policy, clock=clock)
    run = background(runner.run, {})
    clock.wait_for_sleepers()
    clock.advance(7.97)
    result = run.result(5).results["pages"]
    assert (result.status, result.attempts) == (Status.ERROR, 1)
    assert result.error is not None
    assert result.error.type == "resilient_scan.LimitExceeded"
    breaker = runner._fleet.stacks["pages"].breaker
    assert breaker is not None
    assert breaker.state == "closed"


def test_a_breaker_that_opens_while_its_scan_waits_gives_the_permit_back(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    clock, go = FakeClock(), threading.Event()

    @scanner(pipeline="test", breaker=Breaker(failures=1), limit=Limit("acme", rate="1/10s", concurrency=1))
    def sick(_state: dict[str, Any]) -> list[Any]:
        assert go.wait(5)
        raise ValueError("x")

    runner = fleet(sick, policy=bare(timeout=Timeout(total=100)), clock=clock)
    runs = [background(runner.run, {}) for _ in range(2)]
    provider = runner._fleet.providers["acme"]
    go.set()
    ended = sorted(status for run in runs for status in statuses(drive(run, clock, 1.0)))
    assert ended == [Status.ERROR, Status.REJECTED]
    assert provider.taken == provider.waiting == 0


def test_the_http_client_takes_one_turn_a_request(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually
) -> None:
    clock = FakeClock()
    asked: list[float] = []

    def answer(_path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        asked.append(clock.monotonic())
        return 200, {}, b"[]"

    with LoopbackServer(answer) as server:
        client = Client(server.url)

        @scanner(pipeline="test")
        def pages(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            for number in range(3):
                client.get(f"/{number}", context=context)
            return []

        policy = bare(limit=Limit("acme", rate="1/10s", concurrency=1), timeout=Timeout(total=1000))
        run = background(fleet(pages, policy=policy, clock=clock).run, {})
        for number in (1, 2):
            eventually(lambda number=number: len(asked) == number)  # type: ignore[misc]
            clock.wait_for_sleepers()
            clock.advance(10.5)
        assert statuses(run.result(5)) == [Status.COMPLETED]
        client.close()
    assert asked == [0, 10.5, 21]


def test_without_a_limit_a_request_does_not_wait(fleet: Fleet) -> None:
    @scanner(pipeline="test")
    def pages(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        for _ in range(100):
            context.before_request()
        return []

    assert statuses(fleet(pages).run({})) == [Status.COMPLETED]


# a clock that moves itself


def paged(name: str, requests: int, concurrency: int = 1, **layers: Any) -> Any:
    @scanner(pipeline="test", name=name, **layers)
    def pages(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.map(lambda _number: context.before_request(), range(requests), concurrency=concurrency)
        return []

    return pages


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.parametrize("workers", [1, 8])
def test_a_clock_that_moves_itself_passes_the_waits_for_a_permit(
    concurrent: bool, workers: int, fleet: Fleet, bare: Bare, background: Background
) -> None:
    clock, policy = FakeClock(auto=True), bare(limit=Limit("acme", rate="2/s"))
    scanners = [healthy(f"s{number}") for number in range(6)]
    runner = fleet(*scanners, policy=policy, clock=clock, concurrent=concurrent, max_workers=workers)
    assert statuses(background(runner.run, {}).result(WAIT_TIMEOUT)) == [Status.COMPLETED] * 6
    assert 2 <= clock.monotonic() < 2.1


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("workers", [1, 8])
def test_a_clock_that_moves_itself_passes_the_waits_of_attempts_for_their_requests(
    concurrency: int, workers: int, fleet: Fleet, bare: Bare, background: Background
) -> None:
    """With one worker, the others have their permits and wait for it: they are not at work, and the clock moves."""
    clock, policy = FakeClock(auto=True), bare(limit=Limit("acme", rate="2/s"))
    runner = fleet(*(paged(f"s{n}", 3, concurrency) for n in range(3)), policy=policy, clock=clock, max_workers=workers)
    assert statuses(background(runner.run, {}).result(WAIT_TIMEOUT)) == [Status.COMPLETED] * 3
    assert 4 <= clock.monotonic() < 4.1


def test_a_clock_that_moves_itself_leaves_an_attempt_that_is_at_work_its_time(
    fleet: Fleet, bare: Bare, background: Background, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilient_scan.testing.BUSY", WAIT_TIMEOUT)
    clock, go = FakeClock(auto=True), threading.Event()

    @scanner(pipeline="test")
    def busy(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        assert go.wait(WAIT_TIMEOUT)
        return [{"ticker": "A"}]

    policy = bare(limit=Limit("acme", rate="1/20s"), timeout=Timeout(total=30))
    runner = fleet(busy, healthy("other"), policy=policy, clock=clock, order="given")
    run = background(runner.run, {})
    eventually(lambda: runner._fleet.providers["acme"].waiting == 1)
    assert clock.monotonic() == 0
    go.set()
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.COMPLETED] * 2
    assert 20 <= clock.monotonic() < 20.1


def test_a_clock_that_moves_itself_moves_although_an_attempt_waits_for_another_one(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    """One that waits for a shared value cannot be told from one at work: the clock moves when nothing else does."""
    clock = FakeClock(auto=True)
    both = threading.Barrier(2)

    def make(name: str) -> Any:
        @scanner(pipeline="test", name=name)
        def scan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
            def load() -> int:
                for _ in range(3):
                    context.before_request()
                return 1

            both.wait(WAIT_TIMEOUT)
            context.shared("history", load)
            return []

        return scan

    runner = fleet(make("one"), make("two"), policy=bare(limit=Limit("acme", rate="2/s")), clock=clock)
    assert statuses(background(runner.run, {}).result(WAIT_TIMEOUT)) == [Status.COMPLETED] * 2
    assert 1 <= clock.monotonic() < 1.1


def test_a_clock_that_moves_itself_does_not_move_past_the_time_of_the_last_waiter(
    fleet: Fleet, bare: Bare, background: Background
) -> None:
    clock, policy = FakeClock(auto=True), bare(limit=Limit("acme", rate="2/day"), timeout=Timeout(total=30))
    runner = fleet(*(healthy(f"s{n}") for n in range(4)), policy=policy, clock=clock, order="given")
    run = background(runner.run, {})
    assert statuses(run.result(WAIT_TIMEOUT)) == [Status.COMPLETED] * 2 + [Status.REJECTED] * 2
    assert clock.monotonic() == 30


# what can be wrong about it


def test_a_rate_without_the_extra_names_it(fleet: Fleet, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrate_limiter", None)
    with pytest.raises(ConfigError, match=r"resilient-scan\[limits\]"):
        fleet(healthy("one"), policy=bare(limit=Limit("acme", rate="1/s")))
    assert statuses(fleet(healthy("one"), policy=bare(limit=Limit("acme", concurrency=1))).run({})) == [
        Status.COMPLETED
    ]


def test_two_scanners_may_not_give_different_numbers(fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="provider acme has two limits") as failure:
        fleet(
            healthy("one", limit=Limit("acme", concurrency=1)),
            healthy("two", limit=Limit("acme", concurrency=2)),
        )
    assert "one" in str(failure.value)
    assert "two" in str(failure.value)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_scanner_that_only_names_the_provider_joins_the_numbers(order: tuple[int, int], fleet: Fleet) -> None:
    both = [healthy("one", limit=Limit("acme", concurrency=1)), healthy("two", limit=Limit("acme"))]
    runner = fleet(*(both[number] for number in order))
    assert runner._fleet.providers["acme"].limit.concurrency == 1
    assert runner._fleet.stacks["one"].provider is runner._fleet.stacks["two"].provider
