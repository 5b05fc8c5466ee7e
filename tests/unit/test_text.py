"""Texts for people: durations, instants, foreign text, numbers of things."""

import pytest

from resilient_scan._text import ago, clean, counted, did_you_mean, in_seconds, moment, shortened, span


def test_durations_have_two_units_at_most():
    spans = [0, 0.0001, 0.0206, 0.25, 1.5, 9.994, 58.31, 59.96, 90, 300, 3599.9, 5400, 90_000, 1e9]
    assert [span(seconds) for seconds in spans] == [
        *("0s", "<0.001s", "0.021s", "0.25s", "1.5s", "9.99s", "58.3s", "1m", "1m 30s", "5m", "1h", "1h 30m"),
        *("1d 1h", "11574d 1h"),
    ]
    assert [ago(seconds) for seconds in (-0.5, 0.2, 3.9, 7300)] == ["just now", "just now", "3s ago", "2h 1m ago"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.05, "0.05"), (1 / 3, "0.333"), (30, "30"), (99.96, "100"), (107.256, "107"), (86400, "86400")],
)
def test_seconds_have_three_digits_and_never_an_exponent(seconds: float, text: str) -> None:
    assert in_seconds(seconds) == text


def test_an_instant_of_today_has_no_date():
    noon = 1_795_521_600.0
    assert moment(noon) == "2026-11-24 12:00:00 UTC"
    assert moment(noon, noon + 60) == "12:00:00"
    assert moment(noon, noon + 86_400) == "11-24 12:00"


def test_foreign_text_cannot_steer_the_terminal():
    assert clean("red\x1b[31m\n  two   lines\u202e") == "red [31m two lines"
    assert shortened("a\x1b[2Jb" + "x" * 50, 10) == "a [2Jbxxx…"
    assert [counted(number, "scan") for number in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]


def test_a_name_that_is_nearly_right_is_suggested_in_any_case():
    assert did_you_mean("Gap_Upp", ["gap_up", "Movers"]) == "did you mean 'gap_up'?"
    assert did_you_mean("x", ["a", "A"]) == "there are a, A"
    assert did_you_mean("x", []) == "there are none"
    assert did_you_mean("x", ["a"], "look it up") == "look it up"
