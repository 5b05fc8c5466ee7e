"""Several processes' breakers on one store, as far as one process can play them."""

from __future__ import annotations

from random import Random
from typing import Any, TypeVar

import pytest

from resilient_scan import Breaker, CircuitOpen
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker import BreakerStore, CircuitBreaker
from resilient_scan.layers.breaker.record import BreakerRecord, decode
from resilient_scan.stores import Change
from resilient_scan.stores.memory import MemoryStore
from resilient_scan.testing import FakeClock
from tests.support.clocks import JumpingClock

T = TypeVar("T")
KEY = "breaker/one"
OPENED = BreakerChanged("one", "closed", "open", 8.0)
TRYING = BreakerChanged("one", "open", "half_open", None)
CLOSED = BreakerChanged("one", "half_open", "closed", None)


class CountingStore(MemoryStore):
    """A store that counts what it is asked, and can be taken away."""

    shared = True

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.away: Exception | None = None
        self.updates = 0
        self.writes = 0

    def update(self, key: str, change: Change[T], /) -> T:
        self.updates += 1
        if self.away is not None:
            raise self.away

        def counted(old: bytes | None, now: float) -> tuple[bytes | None, T]:
            change(old, now)  # it may be called more than once
            new, result = change(old, now)
            self.writes += new is not old
            return new, result

        return super().update(key, counted)


class Fleet:
    """Guards with one record, each as in a process of its own."""

    def __init__(self, **options: Any) -> None:
        self.clock = JumpingClock()
        self.store = CountingStore(self.clock)
        self.options: dict[str, Any] = {"failures": 1, "open_for": 8, **options}
        self.errors: list[tuple[str, StoreError]] = []
        self.awake: dict[CircuitBreaker, set[str]] = {}

    def on_error(self, operation: str, error: StoreError) -> None:
        self.errors.append((operation, error))

    def breaker(self, *, look: bool = True, random: Random | None = None, **options: Any) -> CircuitBreaker:
        """Start a process, and by default its first two runs: after the second, a breaker without failures rests."""
        store = BreakerStore(self.store, KEY, self.on_error)
        breaker = CircuitBreaker("one", Breaker(**{**self.options, **options}), self.clock, random or Random(0), store)
        self.awake[breaker] = store.awake
        if look:
            self.look(breaker, breaker)
        return breaker

    def look(self, *breakers: CircuitBreaker) -> None:
        """Begin a run, which passes over a breaker at rest."""
        for breaker in breakers:
            record = self.store.read(KEY).get(KEY)
            if record is not None or KEY in self.awake[breaker]:
                assert breaker.sync(record, self.store.now()) is None

    def put(self, data: bytes | None) -> None:
        """Let somebody else write the record."""
        MemoryStore.update(self.store, KEY, lambda _old, _now: (data, None))


def fail(breaker: CircuitBreaker) -> BreakerChanged | None:
    return breaker.vote(breaker.admit()[0], True)


def succeed(breaker: CircuitBreaker) -> BreakerChanged | None:
    return breaker.vote(breaker.admit()[0], False)


def refusal(breaker: CircuitBreaker) -> str:
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit()
    return str(caught.value)


def record(fleet: Fleet) -> BreakerRecord:
    kept = decode(fleet.store.read(KEY)[KEY])
    assert kept is not None
    return kept
