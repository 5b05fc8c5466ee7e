"""What a breaker keeps in a store ages by the store's clock, whichever store that is."""

from __future__ import annotations

from random import Random
from typing import Any

from resilient_scan import Breaker
from resilient_scan.layers.breaker import BreakerStore, CircuitBreaker
from tests.support.breakers import fail
from tests.unit.stores.conftest import Home

OPTIONS = Breaker(failures=2, failure_rate=0.9, window=10, minimum=10, within=1.0)


def process(home: Home, store: Any) -> CircuitBreaker:
    """Return the breaker of another process, at the begin of its first run."""
    breaker = CircuitBreaker("one", OPTIONS, home.clock, Random(0), BreakerStore(store, "breaker/one", print))
    assert breaker.sync(store.read("breaker/").get("breaker/one"), store.now()) is None
    return breaker


def test_failures_of_several_processes_count_together_until_they_are_too_old(home: Home) -> None:
    first = home.open()
    shared = first if home.url.startswith("memory:") else home.open()
    assert fail(process(home, first)) is None
    home.pass_time(1.1)
    assert process(home, shared).failures == 0
    assert process(home, shared).window_counts() == (0, 0, 0)
    assert fail(process(home, shared)) is None  # the second failure in a row, but not within a second
    change = fail(process(home, first))
    assert change is not None
    assert change.new == "open"
