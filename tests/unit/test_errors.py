"""Exceptions: who catches what, and what a scanner may raise."""

from __future__ import annotations

import asyncio
import math
import pickle
from typing import Any

import pytest

from resilient_scan import (
    CircuitOpen,
    ConfigError,
    InvalidCandidate,
    LimitExceeded,
    PermanentError,
    PluginError,
    Rejected,
    RetryAfter,
    ScanCancelled,
    ScanError,
    ScanTimeout,
)
from resilient_scan.errors import is_cancellation, is_number, leaves
from resilient_scan.results import ErrorInfo


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (ConfigError, (PermanentError, ValueError)),
        (PluginError, (ScanError,)),
        (Rejected, (ScanError,)),
        (CircuitOpen, (Rejected,)),
        (LimitExceeded, (Rejected,)),
        (ScanTimeout, (ScanError, TimeoutError)),
        (InvalidCandidate, (ScanError, ValueError)),
        (RetryAfter, (ScanError,)),
        (PermanentError, (ScanError,)),
    ],
)
def test_one_except_catches_the_family(kind: type[Exception], also: tuple[type[Exception], ...]) -> None:
    assert all(issubclass(kind, base) for base in also)


def test_a_scanners_own_except_does_not_swallow_a_cancel() -> None:
    assert not issubclass(ScanCancelled, Exception)
    assert issubclass(ScanCancelled, BaseException)


def test_a_timeout_of_the_scanners_own_is_not_ours() -> None:
    assert ScanTimeout("slow").by_clock is False
    assert ScanTimeout("slow", by_clock=True).by_clock is True
    assert str(ScanTimeout("slow", by_clock=True)) == "slow"
    assert str(ScanTimeout()) == ""


@pytest.mark.parametrize("seconds", [0, 0.0, 1, 2.5, 1e9])
def test_retry_after_takes_a_number_of_seconds(seconds: float) -> None:
    error = RetryAfter(seconds)
    assert error.seconds == seconds
    assert type(error.seconds) is float


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, -math.inf, True, False, None, "5", "", [5], 1j])
def test_retry_after_refuses_anything_else(seconds: object) -> None:
    with pytest.raises(ConfigError) as caught:
        RetryAfter(seconds)  # type: ignore[arg-type]
    assert str(caught.value) == f"RetryAfter: seconds must be a finite number >= 0, got {seconds!r}"


def test_retry_after_has_a_text() -> None:
    assert str(RetryAfter(5, "quota used up")) == "quota used up"
    assert str(RetryAfter(2.5)) == "the source asks to wait 2.5s"
    assert RetryAfter(5, "quota used up").message == "quota used up"


def test_retry_after_can_leave_a_process() -> None:
    error = pickle.loads(pickle.dumps(RetryAfter(5, "quota")))
    assert (error.seconds, error.message, str(error)) == (5.0, "quota", "quota")


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (0, True),
        (1.5, True),
        (-3, True),
        (True, False),
        (math.nan, False),
        (math.inf, False),
        ("1", False),
        (None, False),
        (1j, False),
    ],
)
def test_a_number_is_a_finite_one_and_no_bool(value: object, answer: bool) -> None:
    assert is_number(value) is answer


@pytest.mark.parametrize(
    ("value", "answer"), [(0, True), (1, True), (-0.001, False), (1.001, False), (0.5, True), (math.nan, False)]
)
def test_a_number_may_have_bounds_that_belong_to_it(value: float, answer: bool) -> None:
    assert is_number(value, 0, 1) is answer


A, B, C = OSError("a"), ValueError("b"), PermanentError("c")


class Odd(ExceptionGroup[Exception]):
    """A group whose class uses the name of its members for something else."""

    @property
    def exceptions(self) -> Any:
        raise RuntimeError("not these")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (A, (A,)),
        (ExceptionGroup("x", [A]), (A,)),
        (ExceptionGroup("x", [C, A, B]), (C, A, B)),
        (ExceptionGroup("x", [ExceptionGroup("y", [B, C]), A]), (B, C, A)),
        (ExceptionGroup("x", [A, ExceptionGroup("y", [B, ExceptionGroup("z", [A, C])]), B]), (A, B, A, C, B)),
        (Odd("x", [A, B]), (A, B)),
    ],
)
def test_the_leaves_of_a_group_come_in_order(error: BaseException, expected: tuple[BaseException, ...]) -> None:
    assert leaves(error) == expected


def test_groups_may_be_nested_deeper_than_python_recurses() -> None:
    error: Exception = A
    for _ in range(20_000):
        error = ExceptionGroup("x", [error])
    try:
        assert leaves(error) == (A,)
        assert ErrorInfo.of(error) == ErrorInfo("OSError", "a")
    finally:
        while isinstance(error, ExceptionGroup):  # from the outside: freeing them at once would recurse too
            error = error.exceptions[0]


OVER, STOPPED = ScanCancelled("over"), asyncio.CancelledError()


@pytest.mark.parametrize(
    ("error", "cancelled"),
    [
        (OVER, True),
        (STOPPED, True),
        (A, False),
        (SystemExit(1), False),
        (BaseExceptionGroup("x", [OVER]), True),
        (BaseExceptionGroup("x", [STOPPED, BaseExceptionGroup("y", [OVER])]), True),
        (BaseExceptionGroup("x", [OVER, A]), False),
        (BaseExceptionGroup("x", [OVER, KeyboardInterrupt()]), False),
        (ExceptionGroup("x", [A]), False),
    ],
)
def test_a_group_of_nothing_but_cancellations_is_one(error: BaseException, cancelled: bool) -> None:
    assert is_cancellation(error) is cancelled
