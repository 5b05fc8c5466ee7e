"""The history of outcomes: flapping with Nagios' weights, and the error budget."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import ConfigError
from resilient_scan.layers.outcomes import (
    KEPT,
    allowed,
    budget_left,
    change_share,
    failed,
    failures,
    is_flapping,
    packed,
    succeeded,
    unpacked,
)
from resilient_scan.options import check_slo

HISTORIES = st.lists(st.booleans(), max_size=120)


def after(outcomes: list[bool], history: int = 0) -> int:
    """Return the history after these, the oldest first; True: it failed."""
    for one in outcomes:
        history = failed(history) if one else succeeded(history)
    return history


def share(outcomes: list[bool]) -> float:
    """Return the weighted share of changes by the book: from 0.75 for the oldest of 20 changes to 1.25."""
    last = ([False] * 21 + outcomes)[-21:]
    weights = [0.75 + 0.5 * place / 19 for place in range(20)]
    return sum(w for w, one, next_one in zip(weights, last, last[1:], strict=False) if one != next_one) / 20


def test_the_weights_are_those_of_nagios() -> None:
    alternating = [bool(turn % 2) for turn in range(40)]
    assert change_share(after(alternating)) == pytest.approx(1.0)
    assert change_share(after([*[False] * 30, True])) == pytest.approx(1.25 / 20)
    assert change_share(after([True] * 20, 0)) == pytest.approx(0.75 / 20)
    assert change_share(after([True] * 21)) == change_share(0) == 0.0


@given(HISTORIES)
def test_the_share_is_what_the_book_says(outcomes: list[bool]) -> None:
    assert change_share(after(outcomes)) == pytest.approx(share(outcomes))


@given(HISTORIES)
def test_the_history_remembers_what_a_flag_would(outcomes: list[bool]) -> None:
    """A flag, set at half and taken back below 30 %, after each execution."""
    flag = False
    for number in range(len(outcomes) + 1):
        weighted = round(share(outcomes[:number]), 9)
        flag = weighted >= 0.5 or (flag and weighted >= 0.3)
        assert is_flapping(after(outcomes[:number])) is flag


@pytest.mark.parametrize("period", [1, 2])
def test_a_scanner_that_alternates_is_flagged_within_21(period: int) -> None:
    history, flagged = 0, []
    for number in range(42):
        history = failed(history) if number // period % 2 else succeeded(history)
        flagged.append(is_flapping(history))
    assert flagged.index(True) < 21
    assert all(flagged[21:]) or period == 2  # with two of each, the share stays at half, give or take a change


ALTERNATING = [bool(turn % 2) for turn in range(24)]


def with_changes(*places: int) -> int:
    """Return a history with changes at these places, 0 between the newest two executions."""
    outcomes, one = [], False
    for place in range(20, -1, -1):
        outcomes.append(one)
        one ^= place - 1 in places
    return after(outcomes)


def test_the_limits_are_half_and_thirty_per_cent_exactly() -> None:
    half = with_changes(0, 4, 6, 8, 9, 10, 11, 13, 15, 19)
    assert not is_flapping(half >> 1)
    assert change_share(half) == 0.5
    assert is_flapping(half)
    quieter = after([*ALTERNATING, *(letter == "x" for letter in "...........x..x....")])
    assert change_share(quieter) == 0.3
    assert is_flapping(quieter)  # not below
    assert not is_flapping(succeeded(succeeded(quieter)))


def test_between_the_limits_it_stays_what_it_was() -> None:
    between = [turn % 5 == 0 for turn in range(200)]
    assert is_flapping(after([*ALTERNATING, *between]))
    assert not is_flapping(after(between))


def test_neither_a_healthy_one_nor_a_dead_one_nor_one_that_recovers_flaps() -> None:
    for outcomes in ([False] * 50, [True] * 50, [*[False] * 50, *[True] * 50], [*[True] * 50, *[False] * 50]):
        history = 0
        for one in outcomes:
            history = failed(history) if one else succeeded(history)
            assert not is_flapping(history)


def test_it_ends_once_it_is_quiet() -> None:
    history = after([bool(turn % 2) for turn in range(30)])
    quiet = 0
    while is_flapping(history):
        history, quiet = succeeded(history), quiet + 1
    assert quiet == 14


def windows_with(count: int, places: list[int]) -> list[int]:
    """Return the first of each `count` neighbours in a sorted list that fit into 21 executions."""
    return [first for first, last in zip(places, places[count - 1 :], strict=False) if last - first < 21]


@pytest.mark.parametrize("seed", range(3))
def test_one_per_cent_of_errors_by_chance_raises_no_flag_in_a_million_executions(seed: int) -> None:
    """Fewer than five failures in 21 executions never make half of the weight, so only those windows are looked at."""
    rng, places, at = Random(seed), [], -1
    while True:
        at += int(rng.expovariate(0.01)) + 1
        if at >= 1_000_000:
            break
        places.append(at)
    assert 9_000 < len(places) < 11_000
    four = after([True, False, True, False, True, False, True, False])
    assert change_share(four) < 0.5
    failing, flags, nagios = set(places), 0, 0
    for first in windows_with(3, places):
        history = after([at in failing for at in range(first - 50, first)])
        for moment in range(first, first + 21):
            history = failed(history) if moment in failing else succeeded(history)
            flags += is_flapping(history)
            nagios += change_share(history) >= 0.3
    assert flags == 0
    assert nagios > 50  # executions at which Nagios' own limit would have begun one


@given(HISTORIES)
def test_a_store_keeps_it(outcomes: list[bool]) -> None:
    history = after(outcomes)
    assert unpacked(packed(history)) == history


def test_it_has_an_end() -> None:
    history = after([True] * (KEPT + 5))
    assert failures(history) == KEPT
    assert failures(after([False] * KEPT, history)) == 0
    assert unpacked(b"\xff" * 4096) == history
    assert len(packed(history)) == 125


@pytest.mark.parametrize(
    ("outcomes", "slo", "left"),
    [([False] * 9, 0.99, 1.0), ([True] * 3, 0.99, 0.7), ([True] * 10, 0.99, 0.0), ([True] * 25, 0.99, -1.5)],
)
def test_the_budget(outcomes: list[bool], slo: float, left: float) -> None:
    assert budget_left(after(outcomes), slo) == pytest.approx(left)


def test_what_may_fail() -> None:
    assert allowed(0.999) == pytest.approx(1.0)
    for fine in (None, 0.5, 0.99, 0.999):
        check_slo(fine, "slo")


@pytest.mark.parametrize("wrong", [0, 1, 0.9995, -0.5, 99, "0.99", True, float("nan")])
def test_what_is_no_objective(wrong: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_slo(wrong, "slo")
    assert str(caught.value) == (f"slo must be a share of the last 1000 executions, > 0 and <= 0.999, got {wrong!r}")
