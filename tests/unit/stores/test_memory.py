"""What only the store in memory has: a bound on leases that nobody gave back."""

from __future__ import annotations

from resilient_scan.stores.memory import MAX_LEASES, MemoryStore
from resilient_scan.testing import FakeClock


def test_leases_that_nobody_gave_back_are_dropped_beyond_the_bound() -> None:
    """Each scan may have a key of its own, and a scanner that hangs never gives its lease back."""
    clock = FakeClock()
    store = MemoryStore(clock)
    assert store.lease("alive", "me", 60)
    for number in range(MAX_LEASES - 2):
        assert store.lease(f"dead {number}", "me", 1)
    clock.advance(1)
    assert store.lease("another", "me", 60)
    assert len(store._leases) == MAX_LEASES == 1_000, "up to here, nothing has to be looked through"
    assert store.lease("one more", "me", 60)
    assert set(store._leases) == {"alive", "another", "one more"}
    assert not store.lease("alive", "you", 60)


def test_leases_that_are_held_are_kept_beyond_the_bound() -> None:
    store = MemoryStore(FakeClock())
    for number in range(MAX_LEASES + 5):
        assert store.lease(str(number), "me", 60)
    assert not any(store.lease(str(number), "you", 60) for number in range(MAX_LEASES + 5))
