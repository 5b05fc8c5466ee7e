"""Retry and breaker as a user sees them, one sentence of their contract a test."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    ConfigError,
    PermanentError,
    Policy,
    Rejected,
    Retry,
    RetryAfter,
    ScanContext,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.testing import FakeClock, flapping
from tests.support.draws import SameDraw
from tests.support.fixtures import Bare, Eventually, Fleet
from tests.support.results import only

DOWN = OSError("down")
A, B = [{"ticker": "A"}], [{"ticker": "B"}]


def test_backoff_is_full_jitter_and_exponential_up_to_the_cap(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    instants: list[float] = []

    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        instants.append(clock.monotonic())
        raise DOWN

    policy = bare(retry=Retry(attempts=6, base=1, cap=4), timeout=Timeout(total=1000))
    result = only(fleet(source, policy=policy, clock=clock, random=SameDraw()))
    assert instants == [0, 1, 3, 7, 11, 15]
    assert (result.status, result.attempts) == (Status.ERROR, 6)
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("OSError", "down")  # its own, not tenacity's wrapper


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(OSError("in on"), 3), (ValueError("not in on"), 1), (PermanentError("never"), 1), (RetryAfter(0), 3)],
)
def test_only_on_and_retry_after_are_tried_again(error: Exception, attempts: int, fleet: Fleet, bare: Bare) -> None:
    runner = fleet(flapping("s", [error] * 3), policy=bare(retry=Retry(attempts=3, base=0, cap=0, on=(OSError,))))
    assert only(runner).attempts == attempts


def test_a_permanent_error_is_not_tried_again_even_if_on_names_it(fleet: Fleet, bare: Bare) -> None:
    policy = bare(retry=Retry(attempts=3, base=0, cap=0, on=(Exception,)))
    assert only(fleet(flapping("s", [PermanentError("a bad key")] * 3), policy=policy)).attempts == 1


@pytest.mark.parametrize(("asked", "waited"), [(7, 7), (200, 60)])
def test_retry_after_beats_the_computed_wait_and_its_cap(asked: float, waited: float, fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    runner = fleet(
        flapping("s", [RetryAfter(asked), A]), policy=bare(retry=Retry(cap=1), timeout=Timeout(total=500)), clock=clock
    )
    assert only(runner).status is Status.COMPLETED
    assert clock.monotonic() == waited


def test_a_wait_that_does_not_fit_is_not_begun(fleet: Fleet, bare: Bare) -> None:
    for deadline, total in ((None, 5.0), (5.0, 500.0)):
        clock = FakeClock(auto=True)
        policy = bare(retry=Retry(), timeout=Timeout(total=total))
        result = only(fleet(flapping("s", [RetryAfter(5), A]), policy=policy, clock=clock), deadline=deadline)
        assert (result.status, result.attempts, clock.monotonic()) == (Status.ERROR, 1, 0)
        assert result.error is not None
        assert result.error.type == "resilient_scan.RetryAfter"


def test_never_against_an_open_breaker(fleet: Fleet, bare: Bare) -> None:
    """tenacity retries pybreaker's own error: a second asleep for nothing."""
    clock = FakeClock(auto=True)
    policy = bare(retry=Retry(attempts=9, base=1, cap=1), breaker=Breaker(failures=2))
    runner = fleet(flapping("s", [DOWN, DOWN]), policy=policy, clock=clock, random=SameDraw())
    result = only(runner)
    assert (result.status, result.attempts, clock.monotonic()) == (Status.ERROR, 2, 1)
    assert result.error is not None
    assert result.error.type == "OSError"
    refused = only(runner)
    assert (refused.status, refused.attempts, clock.monotonic()) == (Status.REJECTED, 0, 1)


def breaker_opens(error: BaseException, fleet: Fleet, policy: Policy) -> bool:
    """Say whether one failure opens a breaker that opens at the first."""
    runner = fleet(flapping("s", [error, A]), policy=policy)
    only(runner)
    return only(runner).status is Status.REJECTED


@pytest.mark.parametrize(
    ("error", "votes"),
    [
        (OSError("in on"), True),
        (RetryAfter(1), True),
        (ValueError("not in on"), False),
        (PermanentError("a bad key"), False),
        (Rejected("by the scanner"), False),
        (SystemExit(), False),
    ],
)
def test_what_votes(error: BaseException, votes: bool, fleet: Fleet, bare: Bare) -> None:
    assert breaker_opens(error, fleet, bare(breaker=Breaker(failures=1, on=(OSError,)))) is votes


def test_a_setting_that_is_wrong_is_neither_tried_again_nor_held_against_the_source(fleet: Fleet, bare: Bare) -> None:
    """The breaker would be open still when the setting is right."""
    policy = bare(retry=Retry(attempts=3, base=0, cap=0), breaker=Breaker(failures=1))
    runner = fleet(flapping("s", [ConfigError("settings.ttl: must be a number"), A]), policy=policy)
    first = only(runner)
    assert (first.status, first.attempts) == (Status.ERROR, 1)
    assert only(runner).status is Status.COMPLETED


def test_errors_without_a_vote_do_not_reset_the_count(fleet: Fleet, bare: Bare) -> None:
    """pybreaker's `exclude=` counts as a success."""
    steps = [OSError(), ValueError(), OSError(), A]
    runner = fleet(flapping("s", steps), policy=bare(breaker=Breaker(failures=2, on=(OSError,))))
    assert [only(runner).status for _ in range(4)] == [Status.ERROR] * 3 + [Status.REJECTED]


def test_each_attempt_votes(fleet: Fleet, bare: Bare) -> None:
    """A breaker around the retry sees one failure where there were three."""
    policy = bare(retry=Retry(attempts=3, base=0, cap=0), breaker=Breaker(failures=3))
    runner = fleet(flapping("s", [DOWN] * 3), policy=policy)
    assert [only(runner).status for _ in range(2)] == [Status.ERROR, Status.REJECTED]


def test_a_late_success_does_not_close_what_its_timeout_opened(
    fleet: Fleet, bare: Bare, release: threading.Event, eventually: Eventually
) -> None:
    @scanner(pipeline="test")
    def source(_state: dict[str, Any]) -> list[Any]:
        release.wait()
        return []

    runner = fleet(source, policy=bare(breaker=Breaker(failures=1), timeout=Timeout(total=0.05)))
    assert only(runner).status is Status.TIMEOUT
    release.set()
    eventually(lambda: runner.abandoned() == [])
    assert only(runner).status is Status.REJECTED


def test_a_cooperative_timeout_votes_too(fleet: Fleet, bare: Bare) -> None:
    @scanner(pipeline="test")
    def source(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        context.sleep(60)
        return []

    runner = fleet(source, policy=bare(breaker=Breaker(failures=2), timeout=Timeout(total=0.03)))
    assert [only(runner).status for _ in range(3)] == [Status.TIMEOUT, Status.TIMEOUT, Status.REJECTED]


def test_a_failing_trial_opens_again_a_good_one_closes(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock()
    policy = bare(breaker=Breaker(failures=2, open_for=10, open_cap=10))
    runner = fleet(flapping("s", [DOWN, DOWN, DOWN, A, DOWN, A]), policy=policy, clock=clock)
    seen = []
    for seconds in (0, 0, 9.5, 0.5, 9.5, 0.5, 0, 0):
        clock.advance(seconds)
        seen.append(only(runner).status)
    assert " ".join(seen) == "error error rejected error rejected completed error completed"


def test_a_broken_listener_does_not_keep_it_from_opening(fleet: Fleet, bare: Bare) -> None:
    def broken_listener(_event: Any) -> None:
        raise RuntimeError("no")

    runner = fleet(flapping("s", [DOWN]), policy=bare(breaker=Breaker(failures=1)), listeners=(broken_listener,))
    assert [only(runner).status for _ in range(2)] == [Status.ERROR, Status.REJECTED]
