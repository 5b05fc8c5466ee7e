"""When an answer without an error is not believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan.layers.suspicion import FAR_BELOW, MIN_HISTORY, Baseline


def after(*answers: int, empty_ok: bool | None = None) -> Baseline:
    """Return what has seen these answers, all of them trusted."""
    baseline = Baseline(empty_ok)
    assert [baseline.doubt(found, 0) for found in answers] == [None] * len(answers)
    return baseline


def test_the_first_empty_answer_after_ten_others_is_suspicious_and_stays_so() -> None:
    baseline = after(*[3] * MIN_HISTORY)
    for _ in range(3):
        assert baseline.doubt(0, 0) == "empty: no answer since this runner began had fewer than 3 candidates"
    assert baseline.doubt(3, 0) is None


def test_nine_answers_are_no_history() -> None:
    baseline = after(*[3] * (MIN_HISTORY - 1))
    assert baseline.doubt(0, 0) is None
    assert baseline.doubt(3, 0) is None
    assert baseline.doubt(0, 0) is None  # it has been empty before


def test_a_scanner_that_was_ever_empty_may_be_empty_again() -> None:
    baseline = after(0, *[50] * 20)
    assert baseline.doubt(0, 0) is None
    assert baseline.doubt(1, 0) is None


def test_less_than_a_tenth_of_the_smallest_is_suspicious_and_a_tenth_is_not() -> None:
    baseline = after(90, 40, *[100] * MIN_HISTORY)
    assert baseline.doubt(3, 0) == "only 3: no answer since this runner began had fewer than 40 candidates"
    assert baseline.doubt(4, 0) is None
    assert baseline.doubt(1, 0) is None  # the mark is 4 now
    assert baseline.doubt(0, 0) is not None


def test_suspicious_answers_teach_nothing() -> None:
    baseline = Baseline(empty_ok=False)
    assert all(baseline.doubt(0, 0) for _ in range(MIN_HISTORY))
    after_those = [baseline.doubt(100, 0), baseline.doubt(5, 0)]
    assert after_those == [None, None]  # one trusted answer is no history


def test_a_scanner_that_always_finds_something_is_doubted_from_the_first_empty_answer() -> None:
    baseline = Baseline(empty_ok=False)
    assert baseline.doubt(0, 0) == "empty: the scanner says that it always finds something (empty_ok=False)"
    assert baseline.doubt(1, 0) is None


def test_a_scanner_that_may_be_empty_is_never_doubted_for_that() -> None:
    baseline = after(*[100] * MIN_HISTORY, empty_ok=True)
    assert [baseline.doubt(1, 0), baseline.doubt(0, 0)] == [None, None]
    assert baseline.doubt(0, 1) == "malformed: 1 of 1 candidates are invalid"


@pytest.mark.parametrize(
    ("found", "dropped", "reason"),
    [
        (2, 2, None),
        (1, 2, "malformed: 2 of 3 candidates are invalid"),
        (0, 1, "malformed: 1 of 1 candidates are invalid"),
        (100, 99, None),
    ],
)
def test_more_bad_candidates_than_good_ones_are_suspicious(found: int, dropped: int, reason: str | None) -> None:
    assert Baseline(None).doubt(found, dropped) == reason


@given(st.lists(st.integers(0, 200), max_size=40))
def test_the_rule_as_it_is_written_down(answers: list[int]) -> None:
    baseline, trusted = Baseline(None), []
    for found in answers:
        suspicious = len(trusted) >= MIN_HISTORY and min(trusted) > 0 and found * FAR_BELOW < min(trusted)
        assert (baseline.doubt(found, 0) is not None) == suspicious
        if not suspicious:
            trusted.append(found)
