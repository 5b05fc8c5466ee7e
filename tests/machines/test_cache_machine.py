"""The result cache with its single-flight against a model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

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

from resilient_scan import Cache, Candidate
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock
from tests.support.caches import put
from tests.support.draws import SameDraw
from tests.support.examples import examples

TTL, TTL_EMPTY, TTL_ERROR, STALE = 8.0, 2.0, 16.0, 4.0
KEYS = st.sampled_from([b"a", b"b", b"c"])


class Flight:
    """Stands for an execution."""


@dataclass
class Kept:
    tickers: list[str]
    stored_at: float
    fresh_until: float
    stale_until: float


def found(*tickers: str) -> list[Any]:
    """Return candidates that a caller can spoil: each has a mutable part."""
    return [Candidate(ticker, "one", "found", extras={"notes": ["as found"]}) for ticker in tickers]


class CacheMachine(RuleBasedStateMachine):
    @initialize(
        maxsize=st.integers(1, 3),
        drawn=st.sampled_from([0.0, 0.5, 0.9375]),
        own_empty=st.booleans(),
        remembers=st.booleans(),
    )
    def build(self, maxsize: int, drawn: float, own_empty: bool, remembers: bool) -> None:
        self.clock = FakeClock()
        self.maxsize = maxsize
        self.shortened = 1.0 - 0.25 * drawn
        self.ttl_empty = TTL_EMPTY if own_empty else None
        self.ttl_error = ttl_error = TTL_ERROR if remembers else None
        options = Cache(
            ttl=TTL, stale_if_error=STALE, maxsize=maxsize, jitter=0.25, ttl_empty=self.ttl_empty, ttl_error=ttl_error
        )
        self.cache: ResultCache[Flight] = ResultCache(options, self.clock, SameDraw(drawn))
        self.kept: OrderedDict[bytes, Kept] = OrderedDict()
        self.failures: OrderedDict[bytes, tuple[ErrorInfo, float]] = OrderedDict()
        self.flights: dict[bytes, Flight] = {}
        self.old_flights: list[tuple[bytes, Flight]] = []
        self.numbers = iter(range(10_000))

    # what the model says

    def look(self, key: bytes) -> Kept | None:
        """Return what is kept for a key; looking makes it the most recently used one."""
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def answer(self, key: bytes) -> Kept | ErrorInfo | None:
        """Return what an asker gets at once: a fresh answer, else a failure that is remembered."""
        kept, now = self.look(key), self.clock.monotonic()
        if kept is not None and now < kept.fresh_until:
            return kept
        if key not in self.failures:
            return None
        self.failures.move_to_end(key)
        error, until = self.failures[key]
        return error if now < until else None

    def store(self, key: bytes, tickers: list[str]) -> None:
        now = self.clock.monotonic()
        ttl = TTL if tickers or self.ttl_empty is None else self.ttl_empty
        fresh_until = now + ttl * self.shortened
        self.kept.pop(key, None)
        while len(self.kept) >= self.maxsize:
            self.kept.popitem(last=False)
        self.kept[key] = Kept(tickers, now, fresh_until, fresh_until + STALE)
        self.failures.pop(key, None)

    def same(self, entry: Entry, kept: Kept | ErrorInfo) -> None:
        """Check an answer, then spoil the copies that were handed out: the next ones must not show it."""
        if isinstance(kept, ErrorInfo):
            assert (entry.error, entry.copies()) == (kept, [])
            return
        copies = entry.copies()
        assert [candidate.ticker for candidate in copies] == kept.tickers
        assert all(candidate.extras == {"notes": ["as found"]} for candidate in copies)
        assert (entry.stored_at, entry.error) == (kept.stored_at, None)
        for candidate in copies:
            candidate.extras["notes"].append("spoilt")
        copies.append("spoilt")

    # what may happen

    @rule(key=KEYS)
    def ask(self, key: bytes) -> None:
        kept, mine = self.answer(key), Flight()
        answer = self.cache.lead(key, mine)
        if kept is not None:
            assert isinstance(answer, Entry)
            self.same(answer, kept)
        elif key in self.flights:
            assert answer is self.flights[key]
        else:
            assert answer is mine
            self.flights[key] = mine

    @rule(key=KEYS)
    def ask_for_a_fresh_one(self, key: bytes) -> None:
        kept, entry = self.answer(key), self.cache.fresh(key)
        assert (entry is not None) == (kept is not None)
        if entry is not None and kept is not None:
            self.same(entry, kept)

    @rule(key=KEYS)
    def ask_for_a_stale_one(self, key: bytes) -> None:
        kept, entry = self.look(key), self.cache.stale(key)
        assert (entry is not None) == (kept is not None and self.clock.monotonic() < kept.stale_until)
        if entry is not None and kept is not None:
            self.same(entry, kept)

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), many=st.integers(0, 2))
    def a_flight_brings_an_answer(self, data: st.DataObject, many: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.flights)), label="flight")
        flight = self.flights.pop(key)
        self.put(key, many, flight)
        self.old_flights.append((key, flight))

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def a_flight_fails(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.flights)), label="flight")
        flight = self.flights.pop(key)
        error = ErrorInfo("ValueError", f"failure {next(self.numbers)}")
        self.cache.put_error(key, error)
        self.cache.land(key, flight)
        self.old_flights.append((key, flight))
        if self.ttl_error is not None:
            if key not in self.failures and len(self.failures) >= self.maxsize:
                self.failures.popitem(last=False)
            self.failures[key] = error, self.clock.monotonic() + self.ttl_error
            self.failures.move_to_end(key)

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def a_flight_hands_on(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.flights)), label="flight")
        heir = Flight()
        self.cache.hand_on(key, self.flights[key], heir)
        self.old_flights.append((key, self.flights[key]))
        self.flights[key] = heir

    @precondition(lambda self: self.old_flights)
    @rule(data=st.data(), many=st.integers(0, 2))
    def an_abandoned_flight_brings_an_answer(self, data: st.DataObject, many: int) -> None:
        key, flight = data.draw(st.sampled_from(self.old_flights), label="old flight")
        self.put(key, many, flight)

    @precondition(lambda self: any(key in self.flights for key, _flight in self.old_flights))
    @rule(data=st.data(), hands_on=st.booleans())
    def an_abandoned_flight_ends(self, data: st.DataObject, hands_on: bool) -> None:
        """What it does must not touch the flight that has its place by now."""
        replaced = [(key, flight) for key, flight in self.old_flights if key in self.flights]
        key, flight = data.draw(st.sampled_from(replaced), label="old flight")
        if hands_on:
            self.cache.hand_on(key, flight, Flight())
        else:
            self.cache.land(key, flight)

    @rule(failures_only=st.booleans())
    def forget(self, failures_only: bool) -> None:
        """Flights go on: they still bring their answers."""
        self.failures.clear()
        if failures_only:
            self.cache.forget_failures()
        else:
            self.cache.forget()
            self.kept.clear()

    def put(self, key: bytes, many: int, flight: Flight) -> None:
        tickers = [f"T{next(self.numbers)}" for _ in range(many)]
        candidates = found(*tickers)
        entry = put(self.cache, key, candidates, flight)
        self.store(key, tickers)
        for candidate in candidates:  # the scanner's own objects; it may go on changing them
            candidate.extras["notes"].append("spoilt")
        candidates.clear()
        self.same(entry, self.kept[key])

    @rule(seconds=st.sampled_from([0.5, 2.0, TTL]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), stale=st.booleans())
    def pass_to_an_end(self, data: st.DataObject, stale: bool) -> None:
        kept = self.kept[data.draw(st.sampled_from(sorted(self.kept)), label="key")]
        left = (kept.stale_until if stale else kept.fresh_until) - self.clock.monotonic()
        self.clock.advance(max(0.0, left))

    @invariant()
    def ages_never_go_below_zero(self) -> None:
        assert all(self.clock.monotonic() >= kept.stored_at for kept in self.kept.values())


def test_the_cache_is_the_cache_of_the_model(machine_settings: settings) -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(machine_settings, max_examples=examples(250)))
