"""The cache, where its model has no say: what cannot be copied, what is logged, who leads."""

from __future__ import annotations

import logging
from random import Random
from typing import Any, ClassVar

import pytest

from resilient_scan import Cache, Candidate, ScanCancelled, ScanContext
from resilient_scan.layers.cache import Entry, ResultCache
from resilient_scan.layers.shared_values import SharedValues
from resilient_scan.results import ErrorInfo
from resilient_scan.testing import FakeClock
from tests.support.caches import put

FAILURE = ErrorInfo("OSError", "down")


class Uncopyable:
    def __deepcopy__(self, memo: Any) -> Any:
        raise ValueError("only one of me")


def cache_of(clock: FakeClock, **options: Any) -> ResultCache[str]:
    return ResultCache(Cache(**{"ttl": 10, "jitter": 0, **options}), clock, Random(0))


def test_an_answer_that_cannot_be_copied_is_not_kept(clock: FakeClock) -> None:
    cache = cache_of(clock)
    cache.lead("key", "flight")
    with pytest.raises(ValueError, match="only one of me"):
        put(cache, "key", [Uncopyable()], "flight")
    assert cache.fresh("key") is None
    assert cache.lead("key", "other") == "flight"  # who put it has still to land it
    cache.land("key", "flight")
    assert cache.lead("key", "other") == "other"


@pytest.mark.parametrize(
    "found",
    [
        [Candidate("A", "one", "", extras={"notes": ["x"]})],
        [{"ticker": "A"}],
        [["A"]],
        [Candidate("A", "one", ""), {"ticker": "B"}],
    ],
)
def test_what_can_be_changed_is_copied_in_and_out(found: list[Any], clock: FakeClock) -> None:
    cache = cache_of(clock)
    entry = put(cache, "key", found, "flight")
    assert entry.copies() == found
    assert entry.copies()[-1] is not found[-1]
    assert entry.copies()[-1] is not entry.copies()[-1]


def test_an_answer_is_kept_for_its_ttl_and_stands_in_for_a_while(clock: FakeClock) -> None:
    cache = cache_of(clock, stale_if_error=5)
    put(cache, "key", [], "flight")
    clock.advance(9.75)
    assert cache.fresh("key") is not None
    clock.advance(0.25)
    assert cache.fresh("key") is None
    clock.advance(4.75)
    assert cache.stale("key") is not None
    clock.advance(0.25)
    assert cache.stale("key") is None
    assert cache.stale("another") is None


@pytest.mark.parametrize("seed", range(20))
def test_jitter_only_shortens(seed: int, clock: FakeClock) -> None:
    cache: ResultCache[str] = ResultCache(Cache(ttl=100, jitter=0.2), clock, Random(seed))
    entry = put(cache, "key", [], "flight")
    assert 80 <= entry.fresh_until <= 100


def test_a_failure_is_not_remembered_unless_that_is_wanted(clock: FakeClock) -> None:
    cache = cache_of(clock)
    cache.put_error("key", FAILURE)
    assert cache.fresh("key") is None
    assert cache.sizes() == (0, 0)


def test_a_remembered_failure_lasts_its_time_and_an_answer_ends_it(clock: FakeClock) -> None:
    cache = cache_of(clock, ttl_error=2)
    cache.put_error("key", FAILURE)
    entry = cache.fresh("key")
    assert entry is not None
    assert (entry.error, entry.copies()) == (FAILURE, [])
    assert cache.sizes() == (0, 1)
    clock.advance(2)
    assert cache.fresh("key") is None
    cache.put_error("key", FAILURE)
    put(cache, "key", [], "flight")
    entry = cache.fresh("key")
    assert entry is not None
    assert entry.error is None
    assert cache.sizes() == (1, 0)


def test_the_newest_answer_is_known_and_not_used_by_looking(clock: FakeClock) -> None:
    cache = cache_of(clock, maxsize=2)
    assert cache.newest() is None
    put(cache, "a", [], "flight")
    clock.advance(1)
    newest = put(cache, "b", [], "flight")
    assert cache.newest() is newest
    clock.advance(1)
    put(cache, "c", [], "flight")  # takes the place of the least recently used one
    assert [cache.fresh(key) is not None for key in "abc"] == [False, True, True]


def test_the_answer_used_last_is_found_by_a_short_way_that_keeps_the_order(clock: FakeClock) -> None:
    cache = cache_of(clock, maxsize=2, stale_if_error=5)
    put(cache, "a", [], "flight")
    put(cache, "b", [], "flight")
    assert cache.peek("b", clock.monotonic()) is not None
    assert cache.stale("a") is not None  # the least recently used one is now b
    assert cache.peek("b", clock.monotonic()) is None
    assert cache.fresh("b") is not None  # and now it is a
    assert cache.peek("b", clock.monotonic()) is not None
    put(cache, "c", [], "flight")
    assert [cache.stale(key) is not None for key in "abc"] == [False, True, True]


def test_peek_finds_the_answer_used_last_while_it_is_fresh(clock: FakeClock) -> None:
    cache = cache_of(clock)
    first = put(cache, "key", [], "flight")
    assert cache.peek("other", clock.monotonic()) is None
    assert cache.peek("key", clock.monotonic()) is first
    second = put(cache, "key", [], "flight")
    assert cache.peek("key", clock.monotonic()) is second
    clock.advance(10)
    assert cache.peek("key", clock.monotonic()) is None


def test_the_answer_used_last_is_forgotten_with_it(clock: FakeClock) -> None:
    cache = cache_of(clock)
    entry = Entry((Uncopyable(),), 0, clock.monotonic() + 10, clock.monotonic() + 10, key="key")
    cache._keep(entry)
    assert cache.peek("key", clock.monotonic()) is entry
    assert cache.copies("key", entry) is None
    assert cache.peek("key", clock.monotonic()) is None


def test_an_answer_that_came_meanwhile_is_no_reason_to_lead(clock: FakeClock) -> None:
    cache = cache_of(clock)
    assert cache.peek("key", clock.monotonic()) is None
    assert cache.lead("key", "flight") == "flight"
    entry = put(cache, "key", [], "flight")
    assert cache.lead("key", "other") is entry


def test_a_state_without_a_key_is_logged_once(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_of(clock)
    cache.warn_once("one")
    cache.warn_once("one")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("resilient_scan", logging.WARNING)
    assert record.getMessage() == (
        "one is not cached: the state holds a value without a stable form; "
        "name the keys that the scanner reads, Cache(inputs=(...)), or leave the cache out"
    )


# shared values


def test_a_load_that_fails_is_not_kept(clock: FakeClock) -> None:
    values, context = SharedValues(clock), ScanContext("one", clock=clock)

    def fails() -> str:
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        values.get("key", fails, 10, context)
    assert values.get("key", lambda: "there", 10, context) == "there"


def test_a_value_may_be_anything_none_included(clock: FakeClock) -> None:
    values, context = SharedValues(clock), ScanContext("one", clock=clock)
    assert values.get("key", lambda: None, 10, context) is None
    assert values.get("key", lambda: "other", 10, context) is None


def test_no_ttl_no_keeping(clock: FakeClock) -> None:
    values, context = SharedValues(clock), ScanContext("one", clock=clock)
    assert values.get("key", lambda: 1, 0, context) == 1
    assert values.get("key", lambda: 2, 0, context) == 2


def test_the_least_recently_used_value_goes_first(clock: FakeClock) -> None:
    values, context = SharedValues(clock, maxsize=2), ScanContext("one", clock=clock)
    for key in ("a", "b", "a", "c"):
        values.get(key, lambda: "first", 10, context)
    assert [values.get(key, lambda: "second", 10, context) for key in ("a", "c", "b")] == ["first", "first", "second"]


def test_the_loader_of_a_scan_that_is_over_stops(clock: FakeClock) -> None:
    values, context = SharedValues(clock), ScanContext("one", clock=clock)
    context.cancel()

    def load() -> None:
        context.check()

    with pytest.raises(ScanCancelled):
        values.get("key", load, 10, context)
    assert values.get("key", lambda: "there", 10, ScanContext("two", clock=clock)) == "there"


def test_the_newest_failure_is_known_while_it_lasts(clock: FakeClock) -> None:
    cache = cache_of(clock, ttl_error=4)
    assert cache.newest_failure() is None
    cache.put_error("a", FAILURE)
    clock.advance(1)
    cache.put_error("b", ErrorInfo("ValueError", "later"))
    newest = cache.newest_failure()
    assert newest is not None
    assert newest.error == ErrorInfo("ValueError", "later")
    clock.advance(4)
    assert cache.newest_failure() is None


def test_an_answer_that_can_be_copied_only_once_is_dropped_and_logged(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Once:
        def __deepcopy__(self, memo: Any) -> Any:
            return Uncopyable()

    cache = cache_of(clock)
    entry = put(cache, "key", [Once()], "flight")
    assert cache.copies("key", entry) is None
    assert cache.fresh("key") is None
    assert [record.getMessage() for record in caplog.records] == [
        "an answer is dropped from the cache, a candidate cannot be copied: only one of me"
    ]
    newer = put(cache, "key", [Candidate("A", "one", "")], "flight")
    assert cache.copies("key", entry) is None  # the old one again: the newer stays
    assert cache.fresh("key") is newer
    assert cache.copies("key", newer) == [Candidate("A", "one", "")]


# foreign code that runs when something is looked up or dropped


class Witness:
    """Notes whether a lock is held while it is hashed or dropped."""

    locks: ClassVar[list[Any]] = []
    held: ClassVar[list[bool]] = []

    def __hash__(self) -> int:
        self.held.append(any(lock.locked() for lock in self.locks))
        return 7

    def __eq__(self, other: object) -> bool:
        return self is other

    def __del__(self) -> None:
        self.held.append(any(lock.locked() for lock in self.locks))

    def __deepcopy__(self, _memo: Any) -> Witness:
        return Witness()


@pytest.fixture
def held() -> list[bool]:
    Witness.held.clear()
    return Witness.held


@pytest.mark.parametrize("way", ["replaced", "no room", "forgotten"])
def test_no_lock_is_held_while_a_cached_candidate_is_dropped(way: str, clock: FakeClock, held: list[bool]) -> None:
    """A `__del__` that hung under the lock hung the watchdog, which needs it to end the execution."""
    cache = cache_of(clock, maxsize=1)
    Witness.locks = [cache._lock]
    found = [Candidate("AAPL", "one", "", extras={"resource": Witness()})]
    put(cache, b"key", found, "flight")
    held.clear()
    if way == "forgotten":
        cache.forget()
    else:
        put(cache, b"key" if way == "replaced" else b"other", [], "flight")
    assert held == [False]


def test_no_lock_is_held_while_a_stored_answer_displaces_a_candidate(clock: FakeClock, held: list[bool]) -> None:
    class Stored:
        def read(self, _key: bytes, _data: bytes, _now: float) -> Any:
            return [], 0.0, 60.0, 60.0

    cache = cache_of(clock, maxsize=1)
    Witness.locks = [cache._lock]
    put(cache, b"key", [Candidate("AAPL", "one", "", extras={"resource": Witness()})], "flight")
    held.clear()
    cache.answers = Stored()  # type: ignore[assignment]
    assert cache.load(b"other", b"data", 0.0) is not None
    assert held == [False]


def test_no_lock_is_held_while_a_shared_key_is_hashed_or_a_value_dropped(clock: FakeClock, held: list[bool]) -> None:
    """A `__hash__` that hung under the lock hung every scanner that shares values."""
    values, context = SharedValues(clock, maxsize=2), ScanContext(clock=clock)
    Witness.locks = [values._lock]
    key = Witness()
    assert values.get(key, lambda: "a", 300.0, context) == values.get(key, lambda: "b", 300.0, context) == "a"
    for name in ("one", "two", "one", "three"):
        values.get(name, Witness, 0.0, context)
    assert len(held) >= 4
    assert not any(held)
    Witness.locks = []
