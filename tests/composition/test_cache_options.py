"""Each option of the cache through the public API."""

from __future__ import annotations

import threading
from random import Random
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Cache,
    PermanentError,
    RunReport,
    ScanContext,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.testing import FakeClock, Recorder
from tests.support.draws import SameDraw
from tests.support.fixtures import Bare, Fleet

FOUND = [{"ticker": "AAPL"}]


class Source:
    """A scanner that answers as the test says, a clock that stands still, and a runner."""

    def __init__(self, fleet: Fleet, bare: Bare, cache: Cache, random: Random | None = None, **layers: Any) -> None:
        self.clock = FakeClock(auto=True)
        self.recorder = Recorder()
        self.answer: Any = FOUND
        self.asked = 0
        policy = bare(cache=cache, timeout=Timeout(total=1e6), **layers)
        self.runner = fleet(
            scanner(name="one", pipeline="test")(self.ask),
            policy=policy,
            clock=self.clock,
            listeners=[self.recorder],
            random=random or Random(5),
        )

    def ask(self, _state: dict[str, Any], _context: ScanContext) -> Any:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def run(self, **state: Any) -> Status:
        return self.report(**state).results["one"].status

    def report(self, **state: Any) -> RunReport:
        return self.runner.run(state)


# lifetimes


def test_fresh_until_the_ttl(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl=10, jitter=0))
    assert source.run() is Status.COMPLETED
    source.clock.advance(9.999)
    assert source.run() is Status.CACHED
    source.clock.advance(0.001)
    assert source.run() is Status.COMPLETED


@pytest.mark.parametrize("ttl_empty", [2, 30])
def test_an_answer_without_candidates_has_a_lifetime_of_its_own(ttl_empty: float, fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl=10, jitter=0, ttl_empty=ttl_empty))
    source.answer = []
    assert source.run() is Status.COMPLETED
    source.clock.advance(ttl_empty - 0.001)
    assert source.run() is Status.CACHED
    source.clock.advance(0.001)
    assert source.run() is Status.COMPLETED
    source.answer = FOUND
    source.clock.advance(ttl_empty)
    assert source.run() is Status.COMPLETED
    source.clock.advance(9.999)
    assert source.run() is Status.CACHED


def test_all_dropped_is_empty(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl=10, jitter=0, ttl_empty=2))
    source.answer = [{"ticker": ""}]
    source.run()
    source.clock.advance(2)
    assert source.run() is Status.COMPLETED


def test_jitter_only_shortens(fleet: Fleet, bare: Bare) -> None:
    lives = set()
    for seed in range(20):
        source = Source(fleet, bare, Cache(ttl=100, jitter=0.2), random=Random(seed))
        source.run()
        cache = source.runner._fleet.stacks["one"].cache
        assert cache is not None
        (entry,) = cache._entries.values()
        lives.add(entry.fresh_until - entry.stored_at)
    assert all(80 < life <= 100 for life in lives)
    assert len(lives) == 20, "a fleet does not expire at once"


def test_the_shortest_and_the_longest_life_that_jitter_gives(fleet: Fleet, bare: Bare) -> None:
    chance = SameDraw()
    source = Source(fleet, bare, Cache(ttl=100, jitter=0.25), random=chance)
    for value, life in ((0.0, 100.0), (1.0 - 2**-53, 75.0)):
        chance.share = value
        source.clock.advance(1000)
        assert source.run() is Status.COMPLETED
        source.clock.advance(life - 0.001)
        assert source.run() is Status.CACHED
        source.clock.advance(0.002)
        assert source.run() is Status.COMPLETED


def test_stale_stands_in_until_its_time_is_over(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl=10, jitter=0, stale_if_error=20))
    source.run()
    source.answer = ValueError("down")
    source.clock.advance(29.999)
    result = source.report().results["one"]
    assert (result.status, result.attempts) == (Status.STALE, 1)
    assert result.age == pytest.approx(29.999)
    assert result.error is not None
    assert result.error.message == "down"
    source.clock.advance(0.001)
    assert source.run() is Status.ERROR


def test_an_expired_answer_does_not_stand_in_unless_wanted(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl=10, jitter=0))
    source.run()
    source.answer = ValueError("down")
    source.clock.advance(10)
    assert source.run() is Status.ERROR


# failures that are remembered


def test_a_failure_is_remembered_and_not_repeated(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl_error=5))
    source.answer = ValueError("down")
    assert source.run() is Status.ERROR
    source.clock.advance(4.999)
    result = source.report().results["one"]
    assert (result.status, result.attempts) == (Status.ERROR, 0)
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("ValueError", "down")
    assert source.asked == 1
    source.clock.advance(0.001)
    source.answer = FOUND
    assert source.run() is Status.COMPLETED
    assert source.run() is Status.CACHED


def test_unless_wanted_a_failure_is_not_remembered(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache())
    source.answer = ValueError("down")
    assert [source.run() for _ in range(3)] == [Status.ERROR] * 3
    assert source.asked == 3


def test_a_permanent_error_is_remembered_too(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl_error=5))
    source.answer = PermanentError("bad key")
    assert [source.run(), source.run()] == [Status.ERROR] * 2
    assert source.asked == 1


def test_a_rejection_is_not_remembered(fleet: Fleet, bare: Bare) -> None:
    """Else the breaker's first trial would wait for the memory to fade."""
    source = Source(fleet, bare, Cache(ttl_error=0.5), breaker=Breaker(failures=1, open_for=10))
    source.answer = ValueError("down")
    assert source.run() is Status.ERROR
    source.clock.advance(1)
    assert source.run() is Status.REJECTED
    source.clock.advance(9)
    source.answer = FOUND
    assert source.run() is Status.COMPLETED


def test_a_remembered_failure_is_no_second_vote(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl_error=5), breaker=Breaker(failures=2))
    source.answer = ValueError("down")
    for _ in range(5):
        assert source.run() is Status.ERROR


def test_failures_are_remembered_by_key(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(ttl_error=5))
    source.answer = ValueError("down")
    assert source.run(day=1) is Status.ERROR
    source.answer = FOUND
    assert source.run(day=2) is Status.COMPLETED
    assert source.run(day=1) is Status.ERROR


# keys


@pytest.mark.parametrize(
    ("inputs", "same", "other"),
    [
        (None, {"day": 1, "tool_logs": [{"tool": "x"}]}, {"day": 2}),
        (("day",), {"day": 1, "mood": "good"}, {"day": 2}),
        ((), {"day": 2, "anything": object}, None),
    ],
)
def test_the_key_is_what_the_scanner_reads(
    inputs: tuple[str, ...] | None, same: dict[str, Any], other: dict[str, Any] | None, fleet: Fleet, bare: Bare
) -> None:
    source = Source(fleet, bare, Cache(inputs=inputs))
    assert source.run(day=1) is Status.COMPLETED
    assert source.run(**same) is Status.CACHED
    if other is not None:
        assert source.run(**other) is Status.COMPLETED


def test_the_order_of_the_keys_does_not_matter(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache())
    assert source.runner.run({"a": 1, "b": {"x": 1, "y": 2}}).results["one"].status is Status.COMPLETED
    assert source.runner.run({"b": {"y": 2, "x": 1}, "a": 1}).results["one"].status is Status.CACHED


@pytest.mark.parametrize(("one", "two"), [(1, "1"), (1, 1.5), (None, 0), (True, 1), ([1], [1, 2]), (b"x", "x")])
def test_different_values_are_different_keys(one: Any, two: Any, fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache())
    assert source.run(value=one) is Status.COMPLETED
    assert source.run(value=two) is Status.COMPLETED


def test_an_input_that_is_missing_is_not_one_that_is_none(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(inputs=("day",)))
    assert source.run() is Status.COMPLETED
    assert source.run(day=None) is Status.COMPLETED


def test_a_state_without_a_stable_key_is_not_cached_and_warned_of_once(
    fleet: Fleet, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(fleet, bare, Cache())
    for _ in range(3):
        assert source.run(handle=threading.Lock) is Status.COMPLETED
    assert len([record for record in caplog.records if "without a stable form" in record.message]) == 1


# size


def test_the_least_recently_used_goes_first(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(maxsize=2))
    assert [source.run(day=day) for day in (1, 2, 1, 3)] == [
        Status.COMPLETED,
        Status.COMPLETED,
        Status.CACHED,
        Status.COMPLETED,
    ]
    assert source.run(day=1) is Status.CACHED
    assert source.run(day=2) is Status.COMPLETED


def test_remembered_failures_push_no_answer_out(fleet: Fleet, bare: Bare) -> None:
    source = Source(fleet, bare, Cache(maxsize=1, ttl_error=60))
    assert source.run(day=1) is Status.COMPLETED
    source.answer = ValueError("down")
    assert [source.run(day=day) for day in (2, 3)] == [Status.ERROR] * 2
    assert source.run(day=1) is Status.CACHED
