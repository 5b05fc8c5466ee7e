"""Sources that one scanner tries in turn, each with a breaker of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Any

import pytest

from resilient_scan import (
    Breaker,
    Candidate,
    CircuitOpen,
    Limit,
    LimitExceeded,
    PermanentError,
    RetryAfter,
    ScanCancelled,
    ScanRunner,
    ScanTimeout,
    Status,
    Timeout,
    scanner,
)
from resilient_scan.core.stack import Sources
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.providers import Providers
from resilient_scan.testing import FakeClock

Chain = Callable[..., Any]


TWO = Breaker(failures=2, open_for=10)


def sources(clock: FakeClock, breaker: Breaker | None = TWO) -> Sources:
    return Sources("s", breaker, clock, Random(0), Providers([], clock, lambda _instant, _call: lambda: None))


def fail(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


@pytest.fixture
def context(clock: FakeClock) -> AttemptContext:
    return AttemptContext("s", clock=clock, deadline=clock.monotonic() + 100)


def test_a_source_that_keeps_failing_is_not_asked_any_more_and_the_others_are(
    clock: FakeClock, context: AttemptContext
) -> None:
    mine = sources(clock)
    for _ in range(2):
        with pytest.raises(ValueError, match="down"):
            mine.ask("first", fail(ValueError("down")), 5, context)
    with pytest.raises(CircuitOpen, match="breaker of s's source first is open, next trial in 10s"):
        mine.ask("first", lambda: pytest.fail("it was asked"), 5, context)
    assert mine.ask("second", lambda: 7, 5, context) == 7
    clock.advance(10)
    assert mine.ask("first", lambda: 8, 5, context) == 8
    assert mine.ask("first", lambda: 9, 5, context) == 9


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (PermanentError("no"), False),
        (RetryAfter(1), True),
        (OSError(), True),
        (ExceptionGroup("x", [PermanentError("no")]), False),
        (ExceptionGroup("x", [PermanentError("no"), OSError()]), True),
    ],
)
def test_the_rules_of_voting_are_the_scanners(
    clock: FakeClock, context: AttemptContext, error: Exception, opens: bool
) -> None:
    mine = sources(clock)
    for _ in range(2):
        with pytest.raises(type(error)):
            mine.ask("first", fail(error), 5, context)
    if opens:
        with pytest.raises(CircuitOpen):
            mine.ask("first", lambda: 1, 5, context)
    else:
        assert mine.ask("first", lambda: 1, 5, context) == 1


def test_without_a_breaker_there_is_none_and_without_a_runner_it_is_a_plain_call(
    clock: FakeClock, context: AttemptContext
) -> None:
    mine = sources(clock, None)
    for _ in range(9):
        with pytest.raises(ValueError, match="down"):
            mine.ask("first", fail(ValueError("down")), 5, context)
    assert AttemptContext("s").guarded("first", lambda: 3) == 3


def test_a_source_that_takes_too_long_ends_in_time_for_the_next(clock: FakeClock, context: AttemptContext) -> None:
    mine = sources(clock)

    def slow() -> None:
        assert context.remaining() == 5
        clock.advance(6)
        context.check()

    for _ in range(2):
        with pytest.raises(ScanTimeout, match="first: no answer within 5s") as caught:
            mine.ask("first", slow, 5, context)
        assert caught.value.by_clock
    assert context.remaining() == 88
    with pytest.raises(CircuitOpen):
        mine.ask("first", slow, 5, context)


def test_tasks_that_notice_the_end_of_a_sources_seconds_together_are_its_timeout(
    clock: FakeClock, context: AttemptContext
) -> None:
    def slow() -> None:
        clock.advance(6)
        raise BaseExceptionGroup("x", [ScanCancelled("over"), ScanCancelled("over")])

    with pytest.raises(ScanTimeout, match="first: no answer within 5s"):
        sources(clock).ask("first", slow, 5, context)


def test_the_scans_own_end_stays_its_own_end(clock: FakeClock, context: AttemptContext) -> None:
    def slow() -> None:
        clock.advance(101)
        context.check()

    with pytest.raises(ScanCancelled):
        sources(clock).ask("first", slow, 1000, context)
    early = AttemptContext("s", clock=clock, deadline=clock.monotonic() + 100)

    def cancelled() -> None:
        early.cancel()
        clock.advance(6)
        early.check()

    with pytest.raises(ScanCancelled):
        sources(clock).ask("first", cancelled, 5, early)


SLOW = Breaker(failures=9, open_for=10, slow_after=2, slow_rate=1.0, window=2, minimum=2)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("seconds", "opens"), [(2, True), (1.9, False)])
def test_slow_calls_of_a_source_count_at_its_breaker(
    clock: FakeClock, context: AttemptContext, fails: bool, seconds: float, opens: bool
) -> None:
    mine = sources(clock, SLOW)

    def call() -> int:
        clock.advance(seconds)
        if fails:
            raise ValueError("down")
        return 1

    for _ in range(2):
        with pytest.raises(ValueError, match="down") if fails else nullcontext():
            assert mine.ask("first", call, 50, context) == 1
    with pytest.raises(CircuitOpen) if opens else nullcontext():
        mine.ask("first", lambda: 2, 50, context)
    assert mine.ask("second", lambda: 3, 50, context) == 3


def test_what_a_source_does_not_take_itself_is_not_slow(clock: FakeClock, context: AttemptContext) -> None:
    """Neither the time for which another coroutine blocked the loop, nor the wait for a provider's turn."""
    mine = sources(clock, SLOW)

    def blocked() -> None:
        clock.advance(5)
        context.postpone(4)

    def queued() -> None:
        clock.advance(5)
        context.queued += 4

    for call in (blocked, queued, blocked, queued):
        mine.ask("first", call, 50, context)
    assert mine.ask("first", lambda: 1, 50, context) == 1


def test_in_a_runner_the_breakers_outlive_the_runs() -> None:
    asked: list[str] = []

    @scanner(pipeline="p", cache=None, retry=None, breaker=Breaker(failures=2, open_for=60))
    def chain(state: dict[str, Any], context: AttemptContext) -> list[Candidate]:
        def first() -> list[Candidate]:
            asked.append("first")
            raise OSError("down")

        try:
            return context.guarded("first", first, seconds=1)
        except (OSError, CircuitOpen) as error:
            context.log("chain", left_out=str(error))
            return context.guarded("second", lambda: [Candidate("A", "second", "c")])

    with ScanRunner([chain], listeners=(), clock=FakeClock()) as runner:
        reports = [runner.run({}) for _ in range(4)]
    assert [report.results["chain"].status for report in reports] == [Status.COMPLETED] * 4
    assert asked == ["first"] * 2
    assert "breaker of chain's source first is open" in reports[3].tool_logs[0]["left_out"]


def test_a_source_of_a_providers_name_keeps_that_providers_rate() -> None:
    pytest.importorskip("pyrate_limiter")
    failures: list[str] = []

    @scanner(pipeline="p", cache=None, limit=Limit("shop", rate="1/day"))
    def owner(state: dict[str, Any], context: AttemptContext) -> list[Candidate]:
        context.before_request()
        return []

    @scanner(pipeline="p", cache=None, retry=None, timeout=Timeout(total=5))
    def chain(state: dict[str, Any], context: AttemptContext) -> list[Candidate]:
        context.guarded("another", context.before_request)
        try:
            context.guarded("shop", context.before_request, seconds=0.2)
        except (LimitExceeded, ScanTimeout) as error:
            failures.append(type(error).__name__)
        context.before_request()
        return []

    with ScanRunner([owner, chain], listeners=(), concurrent=False) as runner:
        report = runner.run({})
    assert report.complete
    assert failures == ["LimitExceeded"]


def test_a_source_with_a_rate_of_its_own_pays_for_its_first_request_too() -> None:
    pytest.importorskip("pyrate_limiter")

    @scanner(pipeline="p", cache=None, limit=Limit("shop", rate="1/day"))
    def owner(state: dict[str, Any], context: AttemptContext) -> list[Candidate]:
        context.before_request()
        return []

    @scanner(pipeline="p", cache=None, retry=None, limit=Limit("own", rate="100/s"), timeout=Timeout(total=5))
    def chain(state: dict[str, Any], context: AttemptContext) -> list[Candidate]:
        with pytest.raises(LimitExceeded):  # the request that came with the attempt is of the provider `own`
            context.guarded("shop", context.before_request, seconds=0.2)
        return []

    with ScanRunner([owner, chain], listeners=(), concurrent=False) as runner:
        assert runner.run({}).complete


def test_a_source_brings_its_own_rate_where_no_scanner_has_it() -> None:
    pytest.importorskip("pyrate_limiter")
    shop = Limit("shop", rate="2/day")

    @scanner(pipeline="p", cache=None, retry=None, timeout=Timeout(total=5))
    def chain(state: dict[str, Any], context: AttemptContext) -> list[Candidate]:
        context.guarded("shop", context.before_request, limit=shop)
        return []

    other = scanner(name="other", pipeline="p", cache=None, retry=None, timeout=Timeout(total=5))(chain.scan)
    with ScanRunner([chain, other], listeners=(), concurrent=False) as runner:
        assert runner.run({}).complete
        third = runner.run({}, deadline=0.2).results["chain"]
    assert third.status is Status.TIMEOUT or (third.error is not None and third.error.kind == "LimitExceeded")


def test_what_a_scanners_options_say_of_a_provider_counts_for_its_source(clock: FakeClock) -> None:
    providers = Providers([("owner", Limit("shop", concurrency=2))], clock, lambda _instant, _call: lambda: None)
    assert providers.of("another", None) is None
    shop = providers.of("shop", Limit("shop", concurrency=7))
    assert shop is not None
    assert shop.limit.concurrency == 2
    mine = providers.of("mine", Limit("mine", concurrency=3))
    assert mine is not None
    assert providers.of("mine", None) is mine
