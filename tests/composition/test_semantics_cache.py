"""The cache as a user sees it, one sentence of their contract a test."""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    Retry,
    ScanResult,
    ScanRunner,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.testing import FakeClock, flapping, healthy
from tests.support.fixtures import Background, Bare, Eventually, Fleet
from tests.support.results import only, statuses

DOWN = OSError("down")
A, B = [{"ticker": "A"}], [{"ticker": "B"}]


def tickers(result: ScanResult) -> list[str]:
    return [found.ticker for found in result.candidates]


def test_an_answer_is_fresh_for_its_ttl(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    runner = fleet(flapping("s", [A, B]), policy=bare(cache=Cache(ttl=60, jitter=0)), clock=clock)
    assert only(runner).status is Status.COMPLETED
    clock.advance(59)
    cached = only(runner)
    assert (cached.status, cached.age, cached.attempts, tickers(cached)) == (Status.CACHED, 59, 0, ["A"])
    clock.advance(1)
    assert tickers(only(runner)) == ["B"]


def test_jitter_only_shortens_a_ttl(fleet: Fleet, bare: Bare) -> None:
    for seed in range(20):
        clock = FakeClock()
        policy = bare(cache=Cache(ttl=100, jitter=0.1))
        runner = fleet(flapping("s", [A, B]), policy=policy, clock=clock, random=Random(seed))
        only(runner)
        clock.advance(89.9)
        assert only(runner).status is Status.CACHED
        clock.advance(10.1)
        assert only(runner).status is Status.COMPLETED


def test_a_stale_answer_stands_in_for_a_failed_execution(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    policy = bare(cache=Cache(ttl=60, jitter=0, stale_if_error=100))
    runner = fleet(flapping("s", [A, DOWN, DOWN, DOWN, B]), policy=policy, clock=clock)
    only(runner)
    clock.advance(60)
    stale = only(runner)
    assert (stale.status, stale.age, tickers(stale), stale.partial) == (Status.STALE, 60, ["A"], False)
    assert stale.error is not None
    assert stale.error.message == "down"
    clock.advance(99)
    assert only(runner).status is Status.STALE
    clock.advance(1)
    assert only(runner).status is Status.ERROR
    assert tickers(only(runner)) == ["B"]


@pytest.mark.parametrize("end", ["error", "timeout", "rejected", "run's deadline"])
def test_stale_wins_over_partial_however_it_ends(end: str, fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    clock_free = bare(
        cache=Cache(ttl=0.001, jitter=0, stale_if_error=1000),
        breaker=Breaker(failures=1) if end == "rejected" else None,
        timeout=Timeout(total=0.1),
    )
    calls: list[int] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> Any:
        calls.append(1)
        if len(calls) == 1:
            return A
        return later()

    def later() -> Any:
        yield {"ticker": "PARTIAL"}
        if end in ("error", "rejected"):
            raise DOWN
        release.wait()

    runner = fleet(source, policy=clock_free)
    assert only(runner).status is Status.COMPLETED
    threading.Event().wait(0.002)  # the answer is no longer fresh
    result = only(runner, deadline=0.05 if end == "run's deadline" else None)
    if end == "rejected":
        result = only(runner)
        assert result.error is not None
        assert result.error.type == "resilient_scan.CircuitOpen"
    assert (result.status, tickers(result), result.partial) == (Status.STALE, ["A"], False)


def test_single_flight_across_runs_and_followers_hold_no_worker(
    fleet: Fleet, bare: Bare, release: threading.Event, background: Background, eventually: Eventually
) -> None:
    calls, others = [], []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        release.wait()
        return [{"ticker": "A", "notes": []}]

    @scanner(pipeline="test", cache=None)
    def other(_state: dict[str, Any]) -> list[Any]:
        others.append(1)
        return []

    runner = fleet(source, other, policy=bare(cache=Cache()), max_workers=2, order="given")
    runs = [background(runner.run, {}) for _ in range(5)]
    eventually(lambda: len(others) == 5)  # with one worker left, though four runs wait
    release.set()
    results = [run.result(5).results["source"] for run in runs]
    assert sorted(result.status for result in results) == [Status.CACHED] * 4 + [Status.COMPLETED]
    assert {(r.age, r.attempts) for r in results if r.status is Status.CACHED} == {(0.0, 0)}
    assert len({id(result.candidates[0]) for result in results}) == 5
    assert len(calls) == 1


@pytest.mark.parametrize(("inputs", "calls"), [(None, 3), (("day",), 2), ((), 1)])
def test_the_key_is_what_the_scanner_reads(
    inputs: tuple[str, ...] | None, calls: int, fleet: Fleet, bare: Bare
) -> None:
    asked: list[int] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        asked.append(1)
        return []

    runner = fleet(source, policy=bare(cache=Cache(inputs=inputs)))
    for state in ({"day": 1, "x": 1}, {"x": 1, "day": 1}, {"day": 1, "x": 2}, {"day": 2, "x": 1}):
        only(runner, state)
    assert len(asked) == calls


def test_two_scanners_have_two_caches(fleet: Fleet, bare: Bare) -> None:
    """One cache for two functions collides: the key does not know the function."""
    runner = fleet(flapping("a", [A]), flapping("b", [B]), policy=bare(cache=Cache()))
    for _ in range(2):
        report = runner.run({})
        assert [tickers(result) for result in report.results.values()] == [["A"], ["B"]]


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize("own", [object(), CYCLE], ids=["object", "cycle"])
def test_a_state_without_a_stable_key_is_not_cached_and_warned_about_once(
    own: Any, fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    runner = fleet(flapping("s", [A, B, A]), policy=bare(cache=Cache()))
    with caplog.at_level(logging.WARNING, "resilient_scan"):
        assert [tickers(only(runner, {"own": own})) for _ in range(3)] == [["A"], ["B"], ["A"]]
    (line,) = caplog.messages
    assert line.startswith("s is not cached")


def test_values_of_different_types_have_keys_of_their_own(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    def kind(state: dict[str, Any]) -> list[Any]:
        return [{"ticker": type(state["day"]).__name__}]

    runner = fleet(kind, policy=bare(cache=Cache()))
    day = datetime(2026, 11, 24)  # noqa: DTZ001
    assert [tickers(only(runner, {"day": value})) for value in (day, day.isoformat())] == [["datetime"], ["str"]]


def test_one_instant_in_two_zones_has_two_answers(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    def today(state: dict[str, Any]) -> list[Any]:
        return [{"ticker": state["now"].date().isoformat()}]

    runner = fleet(today, policy=bare(cache=Cache()))
    close = datetime(2026, 11, 24, 16, tzinfo=ZoneInfo("America/New_York"))
    states = [{"now": now} for now in (close, close.astimezone(ZoneInfo("Asia/Tokyo")), close)]
    assert [tickers(only(runner, state)) for state in states] == [["2026-11-24"], ["2026-11-25"], ["2026-11-24"]]


@pytest.mark.parametrize("concurrent", [True, False])
def test_an_answer_is_kept_under_the_state_that_was_asked(concurrent: bool, fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    def other(_state: dict[str, Any]) -> list[Any]:
        return []

    @scanner(pipeline="test", cache=Cache(inputs=("tickers",)))
    def echo(state: dict[str, Any]) -> list[Any]:
        return [{"ticker": ticker} for ticker in state["tickers"]]

    runner = fleet(other, echo, policy=bare(cache=Cache()), concurrent=concurrent, order="given")
    state: dict[str, Any] = {"tickers": ["OLD"]}
    results = runner.stream(state)
    if concurrent:
        state["tickers"][0] = "NEW"  # before the run begins
    for _result in results:
        state["tickers"][0] = "NEW"  # while it runs
    assert [found.ticker for found in runner.run({"tickers": ["NEW"]}).candidates] == ["NEW"]


def test_candidates_of_the_cache_are_isolated_even_if_they_had_no_extras() -> None:
    """`plain` candidates are shared, and their empty `extras` is a dict like any other."""

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        return [Candidate("AAPL", "one", "rose")]

    with ScanRunner([one], listeners=()) as runner:
        runner.run({}).candidates[0].extras["spoilt"] = True  # the leader's own
        cached = runner.run({}).candidates[0]
        assert cached.extras == {}
        cached.extras["spoilt"] = True  # a cached one
        assert runner.run({}).candidates[0].extras == {}


def test_a_remembered_failure_does_not_hide_a_stale_answer(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    cache = Cache(ttl=10, jitter=0, stale_if_error=1000, ttl_error=60)
    runner = fleet(flapping("one", [[{"ticker": "A"}], ValueError("x")]), policy=bare(cache=cache), clock=clock)
    assert statuses(runner.run({})) == [Status.COMPLETED]
    clock.advance(11)
    assert statuses(runner.run({})) == [Status.STALE]
    clock.advance(1)
    assert statuses(runner.run({})) == [Status.STALE]


def test_a_hang_is_remembered_like_any_failure(fleet: Fleet, bare: Bare, release: threading.Event) -> None:
    asked: list[int] = []

    @scanner(pipeline="test")
    def hung(_state: dict[str, Any]) -> list[Any]:
        asked.append(1)
        release.wait()
        return []

    policy = bare(cache=Cache(ttl_error=60), timeout=Timeout(total=0.1, max_abandoned=5))
    runner = fleet(hung, policy=policy)
    runner.run({})
    runner.run({})
    assert len(asked) == 1


def test_the_late_failure_of_an_attempt_left_behind_is_not_remembered_after_a_success(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    calls: list[int] = []

    @scanner(pipeline="test")
    def one(_state: dict[str, Any]) -> list[Any]:
        calls.append(1)
        if len(calls) == 1:
            release.wait()
            raise ValueError("late")
        return []

    policy = bare(
        cache=Cache(ttl=0.2, jitter=0, ttl_error=60),
        retry=Retry(attempts=2, base=0, cap=0),
        timeout=Timeout(total=5, attempt=0.1, max_abandoned=3),
    )
    runner = fleet(one, policy=policy)
    assert statuses(runner.run({})) == [Status.COMPLETED]
    release.set()
    eventually(lambda: runner.abandoned() == [])
    cache = runner._fleet.stacks["one"].cache
    assert cache is not None
    assert not cache._failures


def test_a_candidate_that_can_be_copied_once_only_costs_no_run(fleet: Fleet, bare: Bare) -> None:
    class Odd(dict[str, Any]):
        def __deepcopy__(self, memo: Any) -> Odd:
            if self.get("copied"):
                raise ValueError("one copy is enough")
            return Odd(self, copied=True)

    odd = scanner(pipeline="test", name="odd", candidate=Odd)(lambda _state: [Odd(ticker="A")])
    runner = fleet(odd, healthy("well"), policy=bare(cache=Cache()))
    runner.run({})
    assert statuses(runner.run({}))[1] is Status.CACHED


def test_a_candidate_that_hangs_when_it_makes_room_costs_no_scan_its_answer(release: threading.Event) -> None:
    """Its `__del__` runs on the worker of the next miss, which must have handed its answer over by then."""

    class Trap:
        def __deepcopy__(self, _memo: Any) -> Trap:
            return Trap()

        def __del__(self) -> None:
            release.wait()

    @scanner(pipeline="test", cache=Cache(maxsize=1))
    def one(_state: dict[str, Any]) -> list[Candidate]:
        return [Candidate("A", "one", "", extras={"trap": Trap()})]

    with ScanRunner([one], listeners=()) as runner:
        reports = [runner.run({"run": number}, deadline=20) for number in range(2)]  # their candidates stay, too
        assert [report.results["one"].status for report in reports] == [Status.COMPLETED] * 2
        release.set()
