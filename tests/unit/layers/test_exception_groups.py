"""Exception groups in retry and breaker: a group is judged by its leaves, however they are nested."""

from __future__ import annotations

import asyncio
import gc
import weakref
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_scan import (
    Breaker,
    CircuitOpen,
    PermanentError,
    Retry,
    RetryAfter,
    ScanCancelled,
    ScanTimeout,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker import CircuitBreaker
from resilient_scan.layers.retry import retrying
from resilient_scan.testing import FakeClock

Kinds = tuple[type[BaseException], ...]


def group(*members: BaseException) -> BaseException:
    """Wrap exceptions as a task group does: an `ExceptionGroup` if all of them are plain, else its base class."""
    return BaseExceptionGroup("unhandled errors in a TaskGroup", members)


def pauses(error: BaseException, on: Kinds = (OSError,)) -> list[float]:
    """Return the waits between the attempts of a call that raises the same error three times at most."""
    clock = FakeClock(auto=True)
    starts: list[float] = []

    def call(context: AttemptContext) -> list[Any]:
        starts.append(clock.monotonic())
        context.begin_attempt()
        raise error

    layer = retrying(Retry(attempts=3, base=0, cap=0, on=on), call, random=Random(0), may_retry=lambda _context: True)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        layer(AttemptContext("one", clock=clock, deadline=1e6))
    assert caught.value is error  # the group itself, not a leaf
    return [after - before for before, after in pairwise(starts)]


def votes(error: BaseException, on: Kinds = (OSError,), *, late: bool = False) -> bool:
    """Return whether an error is a failure for the breaker; `late` after the scan's own deadline."""
    clock = FakeClock()
    breaker = CircuitBreaker("one", Breaker(failures=1, on=on), clock, Random(0))

    def call(_context: AttemptContext) -> list[Any]:
        clock.advance(10 if late else 1)
        raise error

    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever it is
        breaker.around(call, lambda _change: None)(AttemptContext("one", clock=clock, deadline=10))
    return breaker.state == "open"


RETRIED, ONCE = [0.0, 0.0], list[float]()
BAD_KEY, DOWN, ODD = PermanentError("bad key"), OSError("down"), ValueError("not in on")
OVER, CANCELLED = ScanCancelled("over"), asyncio.CancelledError()


@pytest.mark.parametrize(
    ("error", "waits", "vote"),
    [
        (group(DOWN), RETRIED, True),
        (group(ODD), ONCE, False),
        (group(ODD, DOWN), RETRIED, True),
        (group(group(group(DOWN), ODD), ODD), RETRIED, True),
        (group(RetryAfter(5)), [5, 5], True),
        (group(RetryAfter(5), group(RetryAfter(7), ODD), RetryAfter(6)), [7, 7], True),
        (group(RetryAfter(90)), [60, 60], True),  # capped by `retry_after_cap`
        (group(RetryAfter(5), BAD_KEY), [5, 5], True),
        (group(BAD_KEY), ONCE, False),
        (group(BAD_KEY, group(BAD_KEY)), ONCE, False),
        (group(BAD_KEY, ODD), ONCE, False),
        (group(BAD_KEY, DOWN), ONCE, True),
        (group(group(DOWN), group(BAD_KEY)), ONCE, True),
        (group(CircuitOpen("a source's")), ONCE, False),
        (group(CircuitOpen("a source's"), DOWN), RETRIED, True),
        (group(ScanTimeout("a source", by_clock=True)), RETRIED, True),  # it is an `OSError`
        (group(OVER), ONCE, False),
        (group(OVER, CANCELLED), ONCE, False),
        (group(OVER, DOWN), RETRIED, True),
        (group(SystemExit(1)), ONCE, False),
        (group(SystemExit(1), DOWN), ONCE, False),
        (group(DOWN, group(KeyboardInterrupt())), ONCE, False),
        (group(SystemExit(1), RetryAfter(5)), ONCE, False),
    ],
    ids=repr,
)
def test_a_group_is_judged_by_its_leaves(error: BaseException, waits: list[float], vote: bool) -> None:
    assert pauses(error) == waits
    assert votes(error) is vote


class Wrapped(ExceptionGroup[Exception]):
    """A group that a user may list in `on`."""


@pytest.mark.parametrize(
    ("error", "on", "retried"),
    [
        (Wrapped("x", [ODD]), (Wrapped,), True),
        (group(ODD), (ExceptionGroup,), True),
        (group(ODD), (Wrapped,), False),
        (group(Wrapped("x", [ODD])), (Wrapped,), False),  # a group in a group is not looked at, its leaves are
        (Wrapped("x", [BAD_KEY]), (Wrapped,), False),
        (group(SystemExit(1), ODD), (SystemExit,), True),
        (group(SystemExit(1), ODD), (BaseException,), True),
        (group(OVER), (BaseException,), False),
        (group(CircuitOpen("a source's")), (Exception,), False),
        (group(ODD), (), False),
    ],
    ids=repr,
)
def test_a_class_in_on_is_honoured_even_if_it_is_the_groups(error: BaseException, on: Kinds, retried: bool) -> None:
    assert pauses(error, on) == (RETRIED if retried else ONCE)
    assert votes(error, on) is retried


@pytest.mark.parametrize("error", [group(OVER), group(CANCELLED), group(ODD, group(OVER)), group(CANCELLED, BAD_KEY)])
def test_a_cancellation_by_the_scans_own_deadline_votes_in_a_group_too(error: BaseException) -> None:
    assert votes(error, late=True)
    assert not votes(error)


class Refused(PermanentError, ExceptionGroup[Exception]):
    """A group whose author says what it is."""


def test_a_group_that_is_one_of_our_errors_is_what_it_says() -> None:
    assert pauses(Refused("x", [DOWN])) == ONCE
    assert not votes(Refused("x", [DOWN]))
    assert pauses(group(Refused("x", [DOWN]), ODD)) == ONCE


class Both(RetryAfter, PermanentError):
    """A plain exception of two minds."""


def test_an_error_that_is_permanent_too_is_not_retried_alone_or_in_a_group() -> None:
    for error in (Both(5), group(Both(5), ODD)):
        assert pauses(error) == ONCE
        assert votes(error)


PLAIN = st.sampled_from(
    [DOWN, ODD, BAD_KEY, OVER, CANCELLED, CircuitOpen("open"), SystemExit(1), RetryAfter(3), RetryAfter(9)]
)
GROUPS = st.recursive(PLAIN, lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda them: group(*them)))
ONS = st.sampled_from([(OSError,), (Exception,), (ValueError, SystemExit), ()])


def flat(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for member in error.exceptions for leaf in flat(member)]


@given(GROUPS, ONS)
def test_a_group_follows_from_what_its_leaves_come_to_by_themselves(error: BaseException, on: Kinds) -> None:
    every = flat(error)
    decisive = [leaf for leaf in every if isinstance(leaf, SystemExit)] or every
    waits = [leaf.seconds for leaf in decisive if isinstance(leaf, RetryAfter)]
    if waits:
        expected = [max(waits)] * 2
    elif BAD_KEY in every:
        expected = ONCE
    else:
        expected = RETRIED if any(pauses(leaf, on) for leaf in decisive) else ONCE
    assert pauses(error, on) == expected
    assert votes(error, on) is any(votes(leaf, on) for leaf in decisive)


def test_a_group_keeps_no_frame_alive() -> None:
    class Big:
        """Stands for a local of the scanner."""

    made: list[weakref.ref[Big]] = []

    def leaf() -> Exception:
        big = Big()
        made.append(weakref.ref(big))
        try:
            raise OSError("down")
        except OSError as error:
            return error

    def call(context: AttemptContext) -> list[Any]:
        context.begin_attempt()
        raise ExceptionGroup("two", [leaf(), ExceptionGroup("one", [leaf()])])

    clock = FakeClock(auto=True)
    guarded = CircuitBreaker("one", Breaker(), clock, Random(0)).around(call, lambda _change: None)
    layer = retrying(Retry(attempts=2, base=0, cap=0), guarded, random=Random(0), may_retry=lambda _context: True)
    gc.disable()
    try:
        with pytest.raises(ExceptionGroup, match="two"):
            layer(AttemptContext("one", clock=clock))
        assert [one() for one in made] == [None] * 4
    finally:
        gc.enable()
