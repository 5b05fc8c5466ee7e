"""Two runs side by side."""

from __future__ import annotations

from typing import Any

import pytest

from resilient_scan import Candidate, ScanResult, Status
from resilient_scan.cli.verify import Pair, Verified, summary
from resilient_scan.results import ErrorInfo


def scan(*candidates: Any, status: Status = Status.COMPLETED, error: ErrorInfo | None = None) -> ScanResult:
    return ScanResult("one", "p", status, list(candidates), error, 1, 0.1, 0.0, None, False, 0, [], 0.0)


A, B = Candidate(ticker="A", source="one", context="x"), Candidate(ticker="B", source="one", context="y")


def test_the_same_is_the_same_whatever_the_order_of_keys() -> None:
    pair = Pair(scan({"a": 1, "b": 2}, A), scan({"b": 2, "a": 1}, A))
    assert pair.same
    assert pair.verdict == "same"
    assert list(pair.differences()) == []


def test_every_difference_has_a_line() -> None:
    pair = Pair(scan(A, A, 5), scan(A, B, 5))
    assert pair.verdict == "DIFFERENT"
    first, second = pair.differences()
    assert first.startswith("one: only sequentially: context='x'")
    assert second.startswith("one: only concurrently: context='y'")
    assert list(Pair(scan(A, B), scan(B, A)).differences()) == ["one: the same candidates in another order"]


def test_what_did_not_answer_is_not_compared() -> None:
    pair = Pair(scan(A), scan(status=Status.ERROR, error=ErrorInfo("ValueError", "HTTP 500")))
    assert pair.verdict == "no answer"
    assert list(pair.differences()) == ["one: concurrently it ended error: ValueError: HTTP 500"]
    skipped = Pair(scan(status=Status.SKIPPED), scan(A))
    assert list(skipped.differences()) == ["one: sequentially it ended skipped"]


@pytest.mark.parametrize(
    ("sequential", "concurrent", "words"),
    [
        (2.0, 0.5, "sequentially 2.00s, concurrently 0.50s: 1.50s gained, 4.0 times as fast"),
        (0.5, 0.5, "sequentially 0.50s, concurrently 0.50s: nothing gained"),
        (0.4, 0.5, "sequentially 0.40s, concurrently 0.50s: nothing gained"),
        (0.0, 0.0, "sequentially 0.00s, concurrently 0.00s: nothing gained"),
    ],
)
def test_the_gain_is_told_as_it_is(sequential: float, concurrent: float, words: str) -> None:
    verified = Verified((Pair(scan(A), scan(A)), Pair(scan(A), scan(B))), sequential, concurrent, "")
    assert verified.gain == words
    assert not verified.same
    assert len(verified.differences) == 2
    assert summary(verified) == "1 of 2 scanners found the same both times"
