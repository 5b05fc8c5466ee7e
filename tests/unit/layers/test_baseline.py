"""When an answer without an error is not believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.suspicion import FAR_BELOW, MIN_HISTORY, RARELY, UNLIKELY, Baseline, doubting
from resilient_scan.stores.history import Learned
from resilient_scan.testing import FakeClock


def after(*answers: int, empty_ok: bool | None = None) -> Baseline:
    """Return what has seen these answers, all of them trusted."""
    baseline = Baseline(empty_ok)
    assert [baseline.doubt(found, 0) for found in answers] == [None] * len(answers)
    return baseline


def test_the_first_empty_answer_after_ten_others_is_suspicious_and_stays_so() -> None:
    baseline = after(*[3] * MIN_HISTORY)
    for _ in range(3):
        assert baseline.doubt(0, 0) == "empty: 0 of 10 trusted answers were"
    assert baseline.doubt(3, 0) is None


def test_nine_answers_are_no_history() -> None:
    baseline = after(*[3] * (MIN_HISTORY - 1))
    assert baseline.doubt(0, 0) is None


@pytest.mark.parametrize("place", [0, 5, 9])
def test_one_empty_answer_of_many_does_not_switch_it_off(place: int) -> None:
    answers = [50] * 20
    answers.insert(place, 0)
    assert after(*answers).doubt(0, 0) == "empty: 1 of 21 trusted answers were"


def test_a_few_empty_answers_do_not_switch_it_off() -> None:
    baseline = after(0, 0, 0, *[5] * 10)
    assert [baseline.doubt(0, 0) for _ in range(3)] == [None] * 3
    assert baseline.doubt(0, 0) == "empty: 3 of 13 trusted answers were, and not 4 in a row"
    assert baseline.doubt(0, 0) is not None
    assert baseline.doubt(5, 0) is None
    assert baseline.doubt(0, 0) is None  # the three count now: 6 of 17


def test_a_scanner_that_is_empty_every_other_time_may_be_so_for_a_while_but_not_for_ever() -> None:
    baseline = after(*[0, 9] * 50)
    assert [baseline.doubt(0, 0) is None for _ in range(8)] == [True] * 6 + [False] * 2


def test_a_scanner_that_is_always_empty_is_believed() -> None:
    assert after(*[0] * 1000).doubt(0, 0) is None
    after(*[0] * 1000, 1, *[0] * 100)


def test_long_ago_counts_less() -> None:
    baseline = after(*[0, 9] * 50, *[9] * 1000)
    assert baseline.doubt(0, 0) is not None


def test_another_process_goes_on_where_this_one_ended() -> None:
    other = Baseline(None)
    other.recall(after(0, 0, 0, *[50] * 10, 0).learned("mark"))
    assert other.learned("mark") == Learned("mark", 13, 3, 1, 50.0)
    assert other.doubt(4, 0) == "incomplete: only 4, and no trusted answer that was not empty had fewer than 50"
    other.recall(Learned("mark"))  # too late
    assert other.learned("mark").answers == 13
    fresh = Baseline(None)
    fresh.recall(after().learned("mark"))
    assert fresh.learned("mark") == Learned("mark")
    assert [fresh.doubt(found, 0) for found in (50, 1)] == [None, None]


def test_what_was_learned_is_forgotten_by_order() -> None:
    baseline = after(*[3] * MIN_HISTORY)
    baseline.forget()
    assert baseline.doubt(0, 0) is None


def test_less_than_a_tenth_of_the_smallest_is_suspicious_and_a_tenth_is_not() -> None:
    baseline = after(90, 40, *[100] * MIN_HISTORY)
    assert baseline.doubt(3, 0) == "incomplete: only 3, and no trusted answer that was not empty had fewer than 40"
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


@given(st.lists(st.sampled_from([0, 0, 1, 5, 20, 200]), max_size=60))
def test_the_rule_as_it_is_written_down(answers: list[int]) -> None:
    baseline, trusted, row = Baseline(None), [], 0
    for found in answers:
        empty, others = trusted.count(0), [each for each in trusted if each]
        share = empty / len(trusted) if trusted else 1.0
        known = len(trusted) >= MIN_HISTORY
        if found:
            enough = len(trusted) + row >= MIN_HISTORY
            suspicious = enough and bool(others) and found * FAR_BELOW < min(others)
        else:
            suspicious = known and (empty * RARELY < len(trusted) or share ** (row + 1) < UNLIKELY)
        assert (baseline.doubt(found, 0) is not None) == suspicious
        if found and not suspicious:
            trusted += [0] * row + [found]
        row = 0 if found and not suspicious else row + (not found and not suspicious)


def test_where_a_breaker_waits_for_the_verdict_half_an_answer_teaches_nothing() -> None:
    context = AttemptContext("one", clock=FakeClock())
    asked: list[int] = []
    call = doubting(lambda found, _dropped: asked.append(found), lambda _context: [1, 2])
    call(context)
    context.incomplete = True  # a connection was shut down under it
    call(context)
    assert asked == [2]
