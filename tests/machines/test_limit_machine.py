"""A provider's queue against what it promises: places, windows, first come first served, one answer for each."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from resilient_scan import Limit, LimitExceeded
from resilient_scan.layers.limit import Provider, Ticket
from resilient_scan.options import parse_rate
from resilient_scan.testing import FakeClock
from tests.support.examples import examples

TICK = 0.002  # seconds: the windows are kept to the millisecond, on the safe side
RATES: list[tuple[str, ...]] = [(), ("1/s",), ("3/s",), ("2/s", "5/10s")]


class Asker:
    """One that stands in the queue, and what became of it."""

    def __init__(self, number: int, with_permit: bool, until: float) -> None:
        self.number = number
        self.until = until
        self.with_permit = with_permit
        self.answers: list[str] = []
        self.released = False
        self.ticket: Ticket | None = None

    @property
    def waits(self) -> bool:
        return not self.answers


class LimitMachine(RuleBasedStateMachine):
    @initialize(concurrency=st.sampled_from([None, 1, 2, 3]), rates=st.sampled_from(RATES), start=st.floats(0, 2))
    def build(self, concurrency: int | None, rates: tuple[str, ...], start: float) -> None:
        self.clock = FakeClock()
        self.clock.advance(start)
        self.most = concurrency
        self.rates = [parse_rate(rate) for rate in rates]
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.provider = Provider(Limit("acme", rate=rates or None, concurrency=concurrency), self.clock, self.at)
        self.askers: list[Asker] = []
        self.granted: list[tuple[float, Asker]] = []

    def at(self, instant: float, call: Callable[[], None]) -> Callable[[], None]:
        timer = (instant, call)
        self.timers.append(timer)
        return lambda: self.timers.remove(timer) if timer in self.timers else None

    @property
    def waiting(self) -> list[Asker]:
        return [asker for asker in self.askers if asker.waits]

    @property
    def holding(self) -> list[Asker]:
        return [asker for _, asker in self.granted if asker.with_permit and not asker.released]

    # what may happen

    @rule(with_permit=st.sampled_from([True, True, False]), seconds=st.sampled_from([0.5, 3.0, 60.0]))
    def ask(self, with_permit: bool, seconds: float) -> None:
        asker = Asker(len(self.askers), with_permit, self.clock.monotonic() + seconds)
        self.askers.append(asker)

        def granted() -> None:
            asker.answers.append("granted")
            self.granted.append((self.clock.monotonic(), asker))

        def refused(why: LimitExceeded) -> None:
            assert "acme" in str(why)
            assert self.clock.monotonic() >= asker.until
            asker.answers.append("refused")

        asker.ticket = Ticket(granted, refused, with_permit=with_permit)
        self.provider.request(asker.ticket, asker.until)

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        asker = data.draw(st.sampled_from(self.holding), label="holder")
        asker.released = True
        self.provider.release()

    @precondition(lambda self: self.askers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        asker = data.draw(st.sampled_from(self.askers[-6:]), label="asker")
        assert asker.ticket is not None
        waited = asker.waits
        if waited:
            asker.answers.append("left")
        assert self.provider.withdraw(asker.ticket) is waited

    @rule(seconds=st.one_of(st.sampled_from([0.001, 0.25, 1.0, 10.0]), st.floats(0.0001, 3)))
    def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.clock.advance(max(0.0, timer[0] - self.clock.monotonic()))
            timer[1]()
        self.clock.advance(max(0.0, end - self.clock.monotonic()))

    # what always holds

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        assert all(len(asker.answers) <= 1 for asker in self.askers)
        assert all(self.clock.monotonic() < asker.until for asker in self.waiting)
        assert self.provider.waiting == len(self.waiting)

    @invariant()
    def places_are_kept(self) -> None:
        assert self.provider.taken == len(self.holding)
        assert self.most is None or len(self.holding) <= self.most

    @invariant()
    def windows_are_kept(self) -> None:
        instants = [instant for instant, _ in self.granted]
        for count, seconds in self.rates:
            assert all(later - first >= seconds for first, later in zip(instants, instants[count:], strict=False))

    @invariant()
    def first_come_first_served(self) -> None:
        for kind in (True, False):
            numbers = [asker.number for _, asker in self.granted if asker.with_permit is kind]
            assert numbers == sorted(numbers)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not self.waiting:
            return
        first, now = self.waiting[0], self.clock.monotonic()
        place = not first.with_permit or self.most is None or len(self.holding) < self.most
        turn = all(
            sum(now - instant <= seconds + TICK for instant, _ in self.granted) < count for count, seconds in self.rates
        )
        assert not (place and turn), "the first of the queue could go on"

    def teardown(self) -> None:
        if not hasattr(self, "provider"):
            return
        while self.waiting:
            asker = self.waiting[-1]
            assert asker.ticket is not None
            assert self.provider.withdraw(asker.ticket)
            asker.answers.append("left")
        for holder in self.holding:
            holder.released = True
            self.provider.release()
        assert self.provider.taken == self.provider.waiting == 0


def test_a_provider_keeps_its_promises(machine_settings: settings) -> None:
    run_state_machine_as_test(LimitMachine, settings=settings(machine_settings, max_examples=examples(150)))
