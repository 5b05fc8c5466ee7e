"""A provider's breaker, taken by itself: trials that come too late, votes that do not count, whom it excuses, holds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from resilient_scan import Breaker, Limit, LimitExceeded, ScanCancelled
from resilient_scan.events import Event
from resilient_scan.http import TransientError
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.breaker.provider import ProviderBreaker
from resilient_scan.layers.limit import Provider
from tests.support.limits import Asker, Timers, ask

DOWN = ConnectionRefusedError("refused")


def breaker_of(
    timers: Timers, *scanners: str, failures: int = 1, kind: type[ProviderBreaker] = ProviderBreaker
) -> ProviderBreaker:
    sent: list[Event] = []
    options = Breaker(failures=failures, open_for=60)
    return kind("acme", options, timers.clock, random.Random(1), sent.append, None, scanners or ("a",))


def context_of(timers: Timers, deadline: float = 1000.0) -> AttemptContext:
    return AttemptContext("a", clock=timers.clock, deadline=deadline)


def fail(error: BaseException = DOWN) -> Callable[[AttemptContext], list[Any]]:
    def call(_context: AttemptContext) -> list[Any]:
        raise error

    return call


def attempt(breaker: ProviderBreaker, context: AttemptContext, error: BaseException = DOWN) -> None:
    with pytest.raises(type(error)):
        breaker.attempts_of("a", fail(error))(context)


@pytest.fixture
def timers() -> Timers:
    return Timers()


class Slow(ProviderBreaker):
    """Something happens between two lines: after a trial is admitted, before it can be given back."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def admit(self, *arguments: Any) -> Any:
        permit = super().admit(*arguments)
        self.meanwhile()
        return permit


@pytest.mark.parametrize("late", ["abandoned", "at its end"])
def test_a_trial_that_was_handed_over_while_it_was_admitted_is_not_begun_and_given_back(
    late: str, timers: Timers
) -> None:
    """The watchdog has looked for a trial to give back before this one was set: nobody else will give it back."""
    breaker = breaker_of(timers, kind=Slow)
    attempt(breaker, context_of(timers))
    timers.advance(60)
    context, called = context_of(timers), []

    def meanwhile() -> None:
        if late == "abandoned":
            context.abandoned = True
            context.cancel()
        else:
            context.limit(timers.clock.monotonic())

    def call(_context: AttemptContext) -> list[Any]:
        called.append(1)
        return []

    breaker.meanwhile = meanwhile  # type: ignore[attr-defined]
    with pytest.raises(ScanCancelled):
        breaker.attempts_of("a", call)(context)
    assert called == []
    assert not breaker._machine.trials
    assert context.give_back is None


@pytest.mark.parametrize(
    ("ending", "votes"),
    [
        (lambda context: setattr(context, "abandoned", True), False),
        (lambda context: context.limit(10.0, cut_at=5.0), False),  # the run's deadline, not its own
        (lambda context: context.limit(5.0, cut_at=5.0), True),
    ],
    ids=["abandoned", "cut off", "at its own end"],
)
def test_a_failure_after_the_run_has_ended_is_no_vote(ending: Any, votes: bool, timers: Timers) -> None:
    breaker, context = breaker_of(timers), context_of(timers)

    def call(context: AttemptContext) -> list[Any]:
        ending(context)
        timers.advance(5)
        raise DOWN

    with pytest.raises(ConnectionRefusedError):
        breaker.attempts_of("a", call)(context)
    assert breaker.state == ("open" if votes else "closed")


def test_one_of_several_calls_is_excused_as_long_as_it_is_this_breakers_business(timers: Timers) -> None:
    breaker = breaker_of(timers, "a", "b", failures=2)
    mine, other = TransientError("503"), TransientError("of another host")
    mine.provider, other.provider = "acme", "other"
    breaker._by_name = False
    for expected in (True, True, False):
        mine.excused = other.excused = False
        with pytest.raises(ExceptionGroup):
            breaker.ask("a", lambda: fail(ExceptionGroup("two", [mine, other]))(context_of(timers)), context_of(timers))
        assert (mine.excused, other.excused) == (expected, False)


# holds


@pytest.fixture
def provider(timers: Timers) -> Provider:
    return Provider(Limit("acme", concurrency=1), timers.clock, timers, breaker_of(timers))


def test_a_permit_that_somebody_else_has_is_not_taken_during_a_hold(provider: Provider, timers: Timers) -> None:
    assert provider.breaker is not None
    ask(provider)
    waits = context_of(timers)
    provider.prepay(waits)
    provider.breaker.hold(30, "")
    with pytest.raises(LimitExceeded, match="asked to be left alone"):
        provider.acquire(context_of(timers, deadline=20.0), with_permit=True)
    assert waits.prepaid


def test_who_cannot_wait_for_a_hold_that_begins_is_refused_at_once(provider: Provider) -> None:
    assert provider.breaker is not None
    ask(provider)
    short, long = Asker(), Asker()
    provider.request(short.ticket, until=10.0)
    provider.request(long.ticket, until=100.0)
    provider.breaker.hold(30, "")
    (refused,) = short.answers
    assert "asked to be left alone" in str(refused)
    assert long.answers == []


def test_a_shorter_hold_after_one_that_was_ended_is_looked_at_in_time(provider: Provider, timers: Timers) -> None:
    """The timer of the first, an hour away, must not keep the second from being set."""
    assert provider.breaker is not None
    provider.breaker.hold(3600, "")
    first = ask(provider, until=4000.0)
    assert timers.instants == [3600.0, 4000.0]
    provider.breaker.clear()
    assert first.answers == ["granted"]
    provider.release()
    provider.breaker.hold(5, "")
    second = ask(provider, until=4000.0)
    assert timers.instants == [5.0, 4000.0]
    timers.advance(5)
    assert second.answers == ["granted"]
    assert timers.instants == []
