"""The budget of retries: a share of the executions of the last minute, and a few in any case."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from resilient_scan import Cache, Retry, RetryAfter, RunReport, Status, Timeout
from resilient_scan.layers.retry import RetryBudget
from resilient_scan.testing import FakeClock, broken, flapping, hanging, healthy
from tests.support.fixtures import Bare, Fleet


def budget(**options: Any) -> Retry:
    return Retry(**{"attempts": 3, "base": 0, "cap": 0, "budget": 0.1, "budget_min": 0, **options})


def attempts(report: RunReport) -> list[int]:
    return [result.attempts for result in report.results.values()]


def test_a_fleet_of_failures_is_not_asked_three_times_each(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    runner = fleet(broken("sick"), policy=bare(retry=budget(budget_min=4)), clock=clock)
    assert [attempts(runner.run({}))[0] for _ in range(30)] == [3, 3, *[1] * 28]


def test_the_share_counts_executions(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    runner = fleet(broken("sick"), policy=bare(retry=budget(attempts=2, budget=0.25)), clock=clock)
    tries = [attempts(runner.run({}))[0] for _ in range(16)]
    assert tries == [2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1]


def test_it_comes_back_after_a_minute(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    runner = fleet(broken("sick"), policy=bare(retry=budget(budget_min=2, budget=0.001)), clock=clock)
    assert [attempts(runner.run({}))[0] for _ in range(3)] == [3, 1, 1]
    clock.advance(59.9)
    assert attempts(runner.run({})) == [1]
    clock.advance(0.2)
    assert attempts(runner.run({})) == [3]


def test_without_a_budget_nothing_is_counted(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(broken("sick"), policy=bare(retry=Retry(attempts=3, base=0, cap=0, budget_min=0)))
    assert [attempts(runner.run({}))[0] for _ in range(5)] == [3] * 5


def test_each_scanner_has_a_budget_of_its_own(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(broken("one"), broken("two"), policy=bare(retry=budget(budget_min=2, budget=0.001)))
    assert attempts(runner.run({})) == [3, 3]
    assert attempts(runner.run({})) == [1, 1]


def test_a_retry_after_is_taken_from_it_too(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(broken("one", RetryAfter(0)), policy=bare(retry=budget(budget_min=2, budget=0.001)))
    assert [attempts(runner.run({}))[0] for _ in range(2)] == [3, 1]


def test_a_used_up_budget_leaves_the_scanners_own_error(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(broken("one", ValueError("mine")), policy=bare(retry=budget(budget_min=2, budget=0.001)))
    for _ in range(2):
        result = runner.run({}).results["one"]
        assert result.status is Status.ERROR
        assert result.error is not None
        assert result.error.message == "mine"


def test_a_hit_is_no_execution(fleet: Fleet, bare: Bare) -> None:
    clock = FakeClock(auto=True)
    runner = fleet(healthy("one"), policy=bare(retry=budget(), cache=Cache()), clock=clock)
    for _ in range(20):
        runner.run({})
    counted = runner._fleet.stacks["one"].budget
    assert counted is not None
    assert len(counted._executions) == 1


def test_a_first_success_spends_nothing(fleet: Fleet, bare: Bare) -> None:
    runner = fleet(flapping("one", [[]] * 5 + [ValueError("x")] * 3), policy=bare(retry=budget(budget=0.4)))
    assert [attempts(runner.run({}))[0] for _ in range(6)] == [1, 1, 1, 1, 1, 3]


def test_a_wait_that_does_not_fit_spends_nothing(fleet: Fleet, bare: Bare) -> None:
    policy = bare(retry=budget(budget_min=1, budget=0.001), timeout=Timeout(total=2))
    runner = fleet(broken("one", RetryAfter(30)), policy=policy)
    runner.run({})
    counted = runner._fleet.stacks["one"].budget
    assert counted is not None
    assert len(counted._retries) == 0


def test_a_hung_attempt_and_its_successor_are_one_execution_and_one_retry(
    fleet: Fleet, bare: Bare, release: threading.Event
) -> None:
    policy = bare(retry=budget(attempts=2, budget_min=5), timeout=Timeout(total=5, attempt=0.1, max_abandoned=3))
    runner = fleet(hanging("one", release), policy=policy)
    assert attempts(runner.run({})) == [2]
    counted = runner._fleet.stacks["one"].budget
    assert counted is not None
    assert (len(counted._executions), len(counted._retries)) == (1, 1)


@pytest.mark.parametrize(("share", "executions", "allowed"), [(0.1, 10, 1), (0.1, 11, 2), (0.5, 7, 4), (1.0, 3, 3)])
def test_the_share_is_rounded_up(share: float, executions: int, allowed: int) -> None:
    purse = RetryBudget(Retry(budget=share, budget_min=0), FakeClock())
    for _ in range(executions):
        purse.count()
    assert [purse.spend() for _ in range(allowed + 2)] == [True] * allowed + [False] * 2
