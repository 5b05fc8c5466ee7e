"""Retry, taken by itself: how often, how long, and when not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from resilient_scan import (
    CircuitOpen,
    PermanentError,
    Rejected,
    Retry,
    RetryAfter,
    ScanCancelled,
    ScanTimeout,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.retry import BUDGET_WINDOW, RetryBudget, retrying
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock


class Chance(Random):
    """Draws the upper end, and notes what it was asked for."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__(0)
        self.share = share
        self.bounds: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append((a, b))
        return a + self.share * (b - a)


class Bench:
    """A retry layer around a call that goes through `steps`; sleeping moves the clock."""

    def __init__(
        self,
        options: Retry,
        *steps: Any,
        deadline: float = 1e6,
        may_retry: Callable[[Any], bool] = lambda _context: True,
        budget: RetryBudget | None = None,
        takes: float = 0.0,
    ) -> None:
        self.clock = FakeClock(auto=True)
        self.chance = Chance()
        self.context = AttemptContext("one", clock=self.clock, deadline=deadline)
        self.starts: list[float] = []
        self._steps = iter(steps)
        self._takes = takes
        self.call = retrying(options, self._attempt, random=self.chance, may_retry=may_retry, budget=budget)

    def _attempt(self, context: AttemptContext) -> list[Any]:
        self.starts.append(self.clock.monotonic())
        step = next(self._steps)
        if not isinstance(step, Rejected):
            context.begin_attempt()
        self.clock.advance(self._takes)
        if isinstance(step, BaseException):
            raise step
        return [step]

    def raised(self) -> BaseException:
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            self.call(self.context)
        return caught.value


DOWN = OSError("down")
STEADY = Retry(attempts=3, base=1, cap=1)


def test_a_first_success_draws_nothing_and_leaves_no_trace() -> None:
    bench = Bench(STEADY, "found")
    assert bench.call(bench.context) == ["found"]
    assert (bench.starts, bench.chance.bounds, bench.context.steps) == ([0.0], [], ())


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
def test_so_many_attempts_in_all(attempts: int) -> None:
    failures = [OSError(number) for number in range(10)]
    bench = Bench(Retry(attempts=attempts, base=1, cap=1), *failures)
    assert bench.raised() is failures[attempts - 1]
    assert len(bench.starts) == attempts


def test_the_wait_doubles_up_to_the_cap() -> None:
    bench = Bench(Retry(attempts=7, base=0.5, cap=10), *[DOWN] * 7)
    bench.raised()
    assert bench.chance.bounds == [(0.0, bound) for bound in (0.5, 1, 2, 4, 8, 10)]
    assert bench.starts == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 25.5]


def test_no_number_of_attempts_is_too_many_for_the_doubling() -> None:
    bench = Bench(Retry(attempts=2000, base=1e-9, cap=1), *[DOWN] * 2000, deadline=1e9)
    bench.raised()
    assert len(bench.starts) == 2000
    assert max(bound for _, bound in bench.chance.bounds) == 1


def test_jitter_is_full() -> None:
    bench = Bench(Retry(attempts=2, base=4, cap=4), DOWN, "found")
    bench.chance.share = 0.25
    bench.call(bench.context)
    assert bench.starts == [0, 1.0]


def test_no_backoff_is_no_wait() -> None:
    bench = Bench(Retry(attempts=3, base=0, cap=0), DOWN, DOWN, "found")
    assert bench.call(bench.context) == ["found"]
    assert bench.starts == [0, 0, 0]


@pytest.mark.parametrize(
    ("on", "failure", "attempts"),
    [
        ((Exception,), OSError(), 3),
        ((OSError,), ConnectionError(), 3),
        ((OSError,), ValueError(), 1),
        ((), OSError(), 1),
        ((Exception,), SystemExit(1), 1),
        ((BaseException,), SystemExit(1), 3),
        ((Exception,), PermanentError("bad key"), 1),
        ((BaseException,), PermanentError("bad key"), 1),
        ((BaseException,), CircuitOpen("open"), 1),
        ((BaseException,), ScanCancelled("over"), 1),
        ((Exception,), ScanTimeout("own"), 3),
        ((OSError,), ScanTimeout("attempt", by_clock=True), 3),  # a TimeoutError is an OSError
        ((), RetryAfter(1), 3),
    ],
)
def test_what_is_worth_another_attempt(on: tuple[type[BaseException], ...], failure: Any, attempts: int) -> None:
    bench = Bench(Retry(attempts=3, base=1, cap=1, on=on), *[failure] * 3)
    assert bench.raised() is failure
    assert len(bench.starts) == attempts


@pytest.mark.parametrize(
    ("asked", "most", "waits"), [(5, 60, 5), (5, 5, 5), (100, 60, 60), (100, 0, 0), (0, 60, 0), (20, 60, 20)]
)
def test_a_retry_after_beats_the_computed_wait(asked: float, most: float, waits: float) -> None:
    bench = Bench(Retry(attempts=2, base=1, cap=2, on=(), retry_after_cap=most), RetryAfter(asked), "found")
    assert bench.call(bench.context) == ["found"]
    assert bench.starts == [0, waits]
    assert bench.chance.bounds == []


@pytest.mark.parametrize(("deadline", "attempts"), [(4.75, 1), (5.0, 1), (5.25, 2)])
@pytest.mark.parametrize("failure", [OSError("down"), RetryAfter(5)])
def test_a_wait_that_does_not_fit_is_not_begun(failure: Exception, deadline: float, attempts: int) -> None:
    bench = Bench(Retry(attempts=2, base=5, cap=5), failure, failure, deadline=deadline)
    assert bench.raised() is failure
    assert len(bench.starts) == attempts
    assert bench.clock.monotonic() == (0 if attempts == 1 else 5)


def test_after_the_deadline_there_is_no_attempt() -> None:
    bench = Bench(Retry(attempts=3, base=0, cap=0), DOWN, DOWN, deadline=10, takes=10)
    assert bench.raised() is DOWN
    assert len(bench.starts) == 1


def test_a_scan_that_may_not_retry_does_not_wait() -> None:
    bench = Bench(STEADY, DOWN, DOWN, may_retry=lambda _context: False)
    assert bench.raised() is DOWN
    assert bench.clock.monotonic() == 0


def test_refused_in_mid_scan_the_scanners_own_error_stays() -> None:
    bench = Bench(STEADY, DOWN, CircuitOpen("open"))
    assert bench.raised() is DOWN
    assert len(bench.starts) == 2


def test_refused_at_once_the_refusal_comes_out() -> None:
    refusal = CircuitOpen("open")
    assert Bench(STEADY, refusal).raised() is refusal


def test_a_refusal_without_an_attempt_is_no_step() -> None:
    """the flight recorder shows an attempt number 0 that never was."""

    def refuse(_context: AttemptContext) -> list[Any]:
        raise CircuitOpen("open")

    context = AttemptContext("one")
    with pytest.raises(CircuitOpen):
        retrying(Retry(), refuse, random=Random(0), may_retry=lambda _context: True)(context)
    assert context.steps == ()


def test_each_failed_attempt_is_a_step_with_its_pause() -> None:
    bench = Bench(Retry(attempts=3, base=1, cap=9), OSError("a"), ValueError("b"), KeyError("c"), takes=0.5)
    bench.raised()
    assert [(step.attempt, step.duration, step.error, step.pause) for step in bench.context.steps] == [
        (1, 0.5, ErrorInfo("OSError", "a"), 1.0),
        (2, 0.5, ErrorInfo("ValueError", "b"), 2.0),
        (3, 0.5, ErrorInfo("KeyError", "'c'"), None),
    ]


def test_an_attempt_that_hangs_elsewhere_counts() -> None:
    """Its failure comes with the context; the next attempt here is the second."""
    bench = Bench(STEADY, "found")
    bench.context.begin_attempt()
    following = bench.context.next(ScanTimeout("attempt 1", by_clock=True), 2.5)
    assert bench.call(following) == ["found"]
    assert bench.starts == [1.0]
    (step,) = following.steps
    assert (step.attempt, step.duration, step.pause) == (1, 2.5, 1.0)


def test_a_cancel_ends_the_wait() -> None:
    class Cancelling(FakeClock):
        def sleep(self, until: float, wake: Any, /) -> None:
            context.cancel()

    clock = Cancelling()
    context = AttemptContext("one", clock=clock)
    calls: list[int] = []

    def call(context: AttemptContext) -> list[Any]:
        calls.append(1)
        context.begin_attempt()
        raise DOWN

    with pytest.raises(ScanCancelled):
        retrying(STEADY, call, random=Chance(), may_retry=lambda _context: True)(context)
    assert calls == [1]


def test_a_failure_keeps_no_frame_alive() -> None:
    class Big:
        """Stands for a local of the scanner."""

    made: list[weakref.ref[Big]] = []

    def call(context: AttemptContext) -> list[Any]:
        big = Big()
        made.append(weakref.ref(big))
        context.begin_attempt()
        raise OSError("down")

    layer = retrying(Retry(attempts=2, base=0, cap=0), call, random=Chance(), may_retry=lambda _context: True)
    gc.disable()
    try:
        with pytest.raises(OSError, match="down"):
            layer(AttemptContext("one"))
        assert [one() for one in made] == [None, None]
    finally:
        gc.enable()


def test_the_floor_of_a_budget_is_there_whatever_the_share() -> None:
    clock = FakeClock()
    budget = RetryBudget(Retry(budget=0.1, budget_min=2), clock)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    assert budget.left() == 0


def test_a_budget_grows_with_executions_and_forgets_them_after_a_minute() -> None:
    clock = FakeClock()
    budget = RetryBudget(Retry(budget=0.5, budget_min=0), clock)
    assert not budget.spend()
    for _ in range(4):
        budget.count()
    assert budget.left() == 2
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    clock.advance(BUDGET_WINDOW - 0.25)
    assert not budget.spend()
    clock.advance(0.25)
    assert budget.left() == 0  # the executions are forgotten too
    budget.count()
    assert budget.spend()


def test_a_retry_is_forgotten_after_a_minute_and_not_before() -> None:
    clock = FakeClock()
    budget = RetryBudget(Retry(budget=0.1, budget_min=1), clock)
    assert budget.spend()
    clock.advance(BUDGET_WINDOW - 0.25)
    assert not budget.spend()
    clock.advance(0.25)
    assert budget.left() == 1
    assert budget.spend()


def test_a_budget_that_is_used_up_ends_a_scan_with_its_own_error() -> None:
    budget = RetryBudget(Retry(budget=1, budget_min=0), FakeClock())
    first = Bench(STEADY, DOWN, DOWN, DOWN, budget=budget)
    assert first.raised() is DOWN
    assert len(first.starts) == 2  # one execution, share 1: one retry
    assert first.context.steps[-1].pause is None
