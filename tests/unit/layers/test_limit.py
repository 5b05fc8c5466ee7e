"""A provider's queue, taken by itself: places, requests, tickets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from resilient_scan import ConfigError, Limit, LimitExceeded, ScanCancelled, ScanContext
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.limit import Provider, Ticket, permitted
from resilient_scan.layers.providers import merged
from resilient_scan.testing import FakeClock
from tests.support.limits import Timers, ask


@pytest.fixture
def timers() -> Timers:
    return Timers()


def provider_of(timers: Timers, **numbers: Any) -> Provider:
    return Provider(Limit("acme", **numbers), timers.clock, timers)


def test_a_bare_provider_grants_at_once(timers: Timers) -> None:
    provider = provider_of(timers)
    assert [ask(provider).answers for _ in range(50)] == [["granted"]] * 50
    assert (provider.taken, provider.waiting, timers.instants) == (50, 0, [])


def test_places_are_given_in_the_order_of_the_queue(timers: Timers) -> None:
    provider = provider_of(timers, concurrency=2)
    askers = [ask(provider) for _ in range(5)]
    assert [asker.answers for asker in askers] == [["granted"], ["granted"], [], [], []]
    assert (provider.taken, provider.waiting) == (2, 3)
    provider.release()
    assert [bool(asker.answers) for asker in askers] == [True, True, True, False, False]
    provider.release()
    provider.release()
    assert (provider.taken, provider.waiting) == (2, 0)
    assert timers.instants == []  # nobody is to be refused any more


def test_an_attempt_that_waits_too_long_is_refused_with_a_reason(timers: Timers) -> None:
    provider = provider_of(timers, concurrency=1)
    ask(provider)
    late = ask(provider, until=5.0)
    timers.advance(4.75)
    assert late.answers == []
    timers.advance(0.25)
    (refusal,) = late.answers
    assert isinstance(refusal, LimitExceeded)
    assert str(refusal) == "no turn at provider acme in time: all 1 of its attempts are under way"
    assert (provider.taken, provider.waiting) == (1, 0)
    provider.release()
    assert provider.taken == 0


def test_an_attempt_that_leaves_the_queue_is_not_served(timers: Timers) -> None:
    provider = provider_of(timers, concurrency=1)
    first, second, third = (ask(provider) for _ in range(3))
    assert provider.withdraw(second.ticket) is True
    assert provider.withdraw(second.ticket) is False
    assert provider.withdraw(first.ticket) is False  # granted long ago
    provider.release()
    assert [asker.answers for asker in (first, second, third)] == [["granted"], [], ["granted"]]
    assert timers.instants == []


def test_a_rate_lets_so_many_through_in_a_window(timers: Timers) -> None:
    provider = provider_of(timers, rate="3/10s")
    askers = [ask(provider, until=1000.0) for _ in range(7)]
    assert [bool(asker.answers) for asker in askers] == [True] * 3 + [False] * 4
    timers.advance(9.75)
    assert sum(bool(asker.answers) for asker in askers) == 3
    timers.advance(0.5)
    assert sum(bool(asker.answers) for asker in askers) == 6
    timers.advance(10.5)
    assert [asker.answers for asker in askers] == [["granted"]] * 7


def test_a_rate_that_is_used_up_is_the_reason(timers: Timers) -> None:
    provider = provider_of(timers, rate=("2/min", "100/h"))
    ask(provider)
    ask(provider)
    late = ask(provider, until=5.0)
    timers.advance(5)
    assert [str(refusal) for refusal in late.answers] == [
        "no turn at provider acme in time: its rate (2/min, 100/h) is used up"
    ]


def test_several_rates_all_hold(timers: Timers) -> None:
    provider = provider_of(timers, rate=("4/min", "2/s"))  # in any order
    askers = [ask(provider, until=1000.0) for _ in range(5)]
    assert sum(bool(asker.answers) for asker in askers) == 2
    timers.advance(1.5)
    assert sum(bool(asker.answers) for asker in askers) == 4
    timers.advance(50)
    assert sum(bool(asker.answers) for asker in askers) == 4
    timers.advance(10)
    assert sum(bool(asker.answers) for asker in askers) == 5


def test_a_request_takes_no_place(timers: Timers) -> None:
    provider = provider_of(timers, concurrency=1)
    ask(provider)
    assert ask(provider, with_permit=False).answers == ["granted"]
    assert provider.taken == 1


def test_one_timer_looks_again_for_all_that_wait(timers: Timers) -> None:
    provider = provider_of(timers, rate="1/10s")
    for _ in range(4):
        ask(provider, until=1000.0)
    assert len([instant for instant in timers.instants if instant < 1000.0]) == 1


def test_the_permit_and_the_request_that_come_with_it_are_used_once(timers: Timers) -> None:
    provider = provider_of(timers, concurrency=1)
    context = AttemptContext("one", clock=timers.clock)
    assert provider.take_prepaid(context) is False
    context.prepaid = True
    assert [provider.take_prepaid(context), provider.take_prepaid(context)] == [True, False]
    context.requests = 1
    assert [provider.prepaid_request(context), provider.prepaid_request(context)] == [True, False]


@pytest.mark.parametrize("prepaid", [True, False])
@pytest.mark.parametrize("outcome", ["found", OSError("down"), SystemExit(1)])
def test_an_attempt_holds_a_permit_and_gives_it_back(prepaid: bool, outcome: Any, timers: Timers) -> None:
    provider = provider_of(timers, concurrency=1)
    context = AttemptContext("one", clock=timers.clock)
    seen: list[tuple[int, bool, bool]] = []

    def call(context: AttemptContext) -> list[Any]:
        assert context.provider is provider
        seen.append((provider.taken, provider.prepaid_request(context), provider.prepaid_request(context)))
        if isinstance(outcome, BaseException):
            raise outcome
        return [outcome]

    if prepaid:
        ask(provider)
        context.prepaid = True
    if isinstance(outcome, BaseException):
        with pytest.raises(type(outcome)):
            permitted(provider, call)(context)
    else:
        assert permitted(provider, call)(context) == ["found"]
    assert seen == [(1, True, False)]
    assert provider.taken == 0


class Passing(FakeClock):
    """A clock on which time passes while somebody sleeps; the timers ring."""

    timers: Timers

    def sleep(self, until: float, wake: Any, /) -> None:
        while not wake.is_set() and self.monotonic() < until:
            self.timers.advance(min(0.03125, until - self.monotonic()))


def test_no_turn_on_the_worker_in_time_is_a_refusal_before_the_deadline(timers: Timers) -> None:
    timers.clock = clock = Passing()
    clock.timers = timers
    provider = provider_of(timers, concurrency=1)
    ask(provider)
    context = AttemptContext("one", clock=clock, deadline=10.0)
    with pytest.raises(LimitExceeded, match="all 1 of its attempts are under way"):
        provider.acquire(context, with_permit=True)
    assert clock.monotonic() < 10.0
    assert not context.cancelled
    assert (provider.taken, provider.waiting) == (1, 0)


def test_a_turn_that_comes_while_the_worker_waits_is_taken(timers: Timers) -> None:
    timers.clock = clock = Passing()
    clock.timers = timers
    provider = provider_of(timers, rate="1/4s")
    ask(provider)
    context = AttemptContext("one", clock=clock, deadline=10.0)
    provider.acquire(context, with_permit=True)
    assert 4.0 <= clock.monotonic() == context.queued < 10.0
    assert provider.taken == 2


def test_a_scan_that_is_cancelled_leaves_the_queue(timers: Timers) -> None:
    provider = provider_of(timers, concurrency=1)
    ask(provider)
    context = AttemptContext("one", clock=timers.clock, deadline=10.0)
    context.cancel()
    with pytest.raises(ScanCancelled):
        provider.acquire(context, with_permit=True)
    assert (provider.taken, provider.waiting, timers.instants) == (1, 0, [])


def test_limits_of_one_provider_are_brought_together() -> None:
    numbers = Limit("sec", concurrency=2)
    assert merged([]) == {}
    assert merged([("a", Limit("sec"))]) == {"sec": Limit("sec")}
    for limits in ([Limit("sec"), numbers], [numbers, Limit("sec")], [numbers, numbers]):
        named = list(zip("ab", limits, strict=True))
        assert merged([*named, ("c", Limit("finnhub"))]) == {"sec": numbers, "finnhub": Limit("finnhub")}


def test_numbers_that_differ_are_refused_with_both_names() -> None:
    one, other = Limit("sec", concurrency=1), Limit("sec", rate=("1/s", "9/min"), concurrency=2)
    with pytest.raises(ConfigError) as caught:
        merged([("a", one), ("b", Limit("sec")), ("c", other)])
    assert str(caught.value) == (
        "provider sec has two limits: concurrency 1 by a, rate 1/s, 9/min and concurrency 2 by c; "
        "give the numbers once, the others name the provider only"
    )


def test_a_turn_that_comes_in_the_moment_of_the_cancel_is_given_back(timers: Timers) -> None:
    class Late(AttemptContext):
        def check(self) -> None:
            provider.release()  # the permit comes back now, and is granted to the attempt that has just left
            super().check()

    provider = provider_of(timers, concurrency=1)
    ask(provider)
    context = Late("one", clock=timers.clock, deadline=10.0)
    context.cancel()
    with pytest.raises(ScanCancelled):
        provider.acquire(context, with_permit=True)
    assert (provider.taken, provider.waiting, timers.instants) == (0, 0, [])


def test_an_interrupt_in_the_middle_of_serving_the_queue_does_not_end_the_service() -> None:
    """Ctrl-C reaches the main thread wherever it is, and the next run wants its turn all the same."""
    provider = Provider(Limit("acme", concurrency=5), FakeClock(), lambda _instant, _call: lambda: None)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provider.request(Ticket(interrupted, lambda _error: None), 1.0)
    served: list[int] = []
    provider.request(Ticket(lambda: served.append(1), lambda _error: None), 1.0)
    assert served == [1]


def test_a_permit_that_is_granted_while_its_waiter_is_cancelled_comes_back() -> None:
    """Granted under the lock, not told yet: the waiter leaves in between, and nobody gives the permit back."""
    clock = FakeClock()
    waiting, told = threading.Event(), threading.Event()
    context = ScanContext("one", clock=clock, deadline=100.0)

    def at(_instant: float, _call: Callable[[], None]) -> Callable[[], None]:
        waiting.set()
        return taken_back

    def taken_back() -> None:  # between the grant and the call of `granted`
        if threading.current_thread() is not waiter:
            context.cancel()
            waiter.join(5)

    provider = Provider(Limit("acme", concurrency=1), clock, at)
    provider.request(Ticket(lambda: None, lambda _e: None), 1.0)

    def wait() -> None:
        with pytest.raises(ScanCancelled):
            provider.acquire(context, with_permit=True)
        told.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    assert waiting.wait(5)
    clock.wait_for_sleepers()
    provider.release()
    assert told.wait(5)
    assert provider.taken == 0


def test_a_ticket_that_is_granted_while_it_sets_its_timer_leaves_no_timer() -> None:
    clock = FakeClock()
    timers: list[Callable[[], None]] = []

    def at(_instant: float, call: Callable[[], None]) -> Callable[[], None]:
        timers.append(call)
        if len(timers) == 1:
            provider.release()  # by another thread, in this very moment
        return lambda: timers.remove(call)

    provider = Provider(Limit("acme", concurrency=1), clock, at)
    provider.request(Ticket(lambda: None, lambda _e: None), 1.0)
    provider.request(Ticket(lambda: None, lambda _e: None), 1.0)
    assert provider.taken == 1
    assert timers == []
