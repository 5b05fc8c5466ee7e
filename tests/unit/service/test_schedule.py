"""When runs are due: on the grid, late by the jitter only, missed instants made up for as asked."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import ConfigError
from resilient_scan.service.schedule import Schedule


def schedule(**options: Any) -> Schedule:
    return Schedule(**{"every": 60, "jitter": 0.0, "random": Random(1), **options})


def test_the_first_run_is_due_at_the_start() -> None:
    assert schedule(start=7.0).due == 7.0


def test_runs_keep_to_the_grid_however_long_they_take() -> None:
    plan = schedule(start=5.0)
    for took, due in [(1.0, 65.0), (59.9, 125.0), (0.0, 185.0)]:
        plan.ran(plan.due + took)
        assert plan.due == due


def test_jitter_makes_a_run_late_and_does_not_add_up() -> None:
    plan = schedule(jitter=0.1)
    late = []
    for step in range(1, 200):
        plan.ran(plan.due + 1.0)
        late.append(plan.due - 60.0 * step)
    assert 0.0 <= min(late) < 0.3
    assert 5.7 < max(late) <= 6.0


def test_one_run_makes_up_for_all_that_were_missed() -> None:
    plan = schedule(catch_up="once")
    plan.ran(200.0)  # 60, 120 and 180 have passed
    assert plan.due == 200.0
    plan.ran(201.0)
    assert plan.due == 240.0


def test_a_run_is_late_by_what_has_passed_since_the_first_instant_it_makes_up_for() -> None:
    """Once all runs take too long, each begins as soon as the last one ends: without this, none would ever be late."""
    plan = schedule(catch_up="once", start=10.0)
    assert (plan.lateness(9.0), plan.lateness(10.0), plan.lateness(12.5)) == (0.0, 0.0, 2.5)
    plan.ran(210.0)  # 70, 130 and 190 have passed
    assert plan.lateness(210.0) == 140.0
    plan.ran(211.0)
    assert plan.lateness(250.5) == 0.5
    plan = schedule(catch_up="skip")
    plan.ran(200.0)
    assert plan.lateness(240.0) == 0.0


def test_jitter_is_not_lateness() -> None:
    plan = schedule(jitter=0.5)
    plan.ran(1.0)
    assert plan.due > 60.0
    assert plan.lateness(plan.due) == 0.0


def test_missed_runs_are_left_out() -> None:
    plan = schedule(catch_up="skip")
    plan.ran(200.0)
    assert plan.due == 240.0


def test_a_run_that_ends_on_an_instant_of_the_grid_has_missed_it() -> None:
    once, skip = schedule(catch_up="once"), schedule(catch_up="skip")
    once.ran(60.0)
    skip.ran(60.0)
    assert (once.due, skip.due) == (60.0, 120.0)


@given(st.lists(st.floats(0, 500), max_size=30), st.sampled_from(["once", "skip"]), st.floats(0, 0.5))
def test_a_run_is_never_due_before_the_last_was_over_nor_more_than_one_step_later(
    took: list[float], catch_up: str, jitter: float
) -> None:
    plan = schedule(catch_up=catch_up, jitter=jitter)
    now = 0.0
    for seconds in took:
        now = max(now, plan.due) + seconds
        plan.ran(now)
        assert now <= plan.due or plan.due > now - 60.0 * jitter
        assert plan.due - now <= 60.0 * (1 + jitter) + 1e-6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0}, "every must be a number of seconds > 0 and <= 1e9, got 0"),
        ({"every": -1}, "every must be"),
        ({"every": float("nan")}, "every must be"),
        ({"every": "5m"}, "every must be"),
        ({"every": True}, "every must be"),
        ({"jitter": 0.6}, "jitter must be a number from 0 to 0.5, got 0.6"),
        ({"jitter": -0.1}, "jitter must be"),
        ({"catch_up": "all"}, "catch_up must be 'once' or 'skip', got 'all'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schedule(**options)
    assert sentence in str(caught.value)
