"""Cache: answers kept for a while, one execution per key at a time.

cachetools' `Cache` holds the entries; their age is kept beside them, because an expired answer may still stand in
for a failed execution.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Any, Generic, Protocol, TypeVar

import cachetools
import msgspec

from resilient_scan.clock import Clock
from resilient_scan.options import Cache
from resilient_scan.results import ErrorInfo
from resilient_scan.scanning import Candidate

_log = logging.getLogger("resilient_scan")
Flight = TypeVar("Flight")


class Answers(Protocol):
    """Where answers outlive the process; nothing of it raises."""

    def address(self, key: bytes, /) -> str:
        """Return by what name all processes know `key`."""

    def find(self, key: bytes, /) -> tuple[Sequence[Any], float, float, float] | None:
        """Return what is kept for `key`: candidates, seconds since, seconds left as fresh, and as of use at all."""

    def keep(self, key: bytes, candidates: Sequence[Any], fresh: float, stale: float, /) -> None:
        """Keep an answer: fresh for so many seconds from now, of use for so many."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An answer in the cache, or a failure that is remembered (`error`); the candidates belong to the cache alone."""

    candidates: tuple[Any, ...]
    stored_at: float
    fresh_until: float
    stale_until: float
    error: ErrorInfo | None = None

    def copies(self) -> list[Any]:
        """Return the candidates as objects that the caller may change."""
        return [_copy(candidate) for candidate in self.candidates]


def _copy(candidate: Any) -> Any:
    """Return a copy that shares nothing that can be changed; the usual candidate's only such part is its extras."""
    if type(candidate) is not Candidate:
        return copy.deepcopy(candidate)
    extras = copy.deepcopy(candidate.extras) if candidate.extras else {}
    return msgspec.structs.replace(candidate, extras=extras)


class _Entries(cachetools.Cache[Hashable, Entry]):
    """Entries, the least recently used first: whoever uses one moves it to the end.

    A dict keeps its order. `LRUCache` has a second one for that, which a scan that finds nothing would pay for.
    """

    def use(self, key: Hashable) -> Entry:
        """Return an entry and move it to the end."""
        entry: Entry = self.pop(key)
        self[key] = entry
        return entry

    def popitem(self) -> tuple[Hashable, Entry]:
        """Give up the least recently used."""
        key = next(iter(self))
        return key, self.pop(key)


class ResultCache(Generic[Flight]):
    """One scanner's answers, and who is fetching one just now. `Flight` is whatever stands for an execution.

    Args:
        options: the numbers.
        clock, random: where time and chance come from.
        answers: where answers are kept beyond this process; `None`: nowhere.
        on_landed: is called with the key when a flight is over and its answer, if it has one, is kept; under the lock.
        lock: which one, where its owner has one in the processor's cache already; never held by the caller.
    """

    # A run goes through all scanners' caches, and none of them is in the processor's: each in one place in memory.
    __slots__ = (
        "_entries",
        "_failures",
        "_flights",
        "_jitter",
        "_latest",
        "_lock",
        "_monotonic",
        "_on_landed",
        "_random",
        "_stale",
        "_ttl",
        "_ttl_empty",
        "_ttl_error",
        "_warned",
        "answers",
        "inputs",
    )

    def __init__(
        self,
        options: Cache,
        clock: Clock,
        random: Random,
        answers: Answers | None = None,
        on_landed: Callable[[bytes], None] | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.inputs = options.inputs
        self.answers = answers
        self._on_landed = on_landed
        self._monotonic = clock.monotonic
        self._random = random.random
        self._ttl, self._ttl_error, self._jitter = options.ttl, options.ttl_error, options.jitter
        self._ttl_empty = options.ttl if options.ttl_empty is None else options.ttl_empty
        self._stale = options.stale_if_error
        self._warned = False
        self._lock = lock or threading.Lock()
        self._failures = None if options.ttl_error is None else _Entries(options.maxsize)
        self._entries = _Entries(options.maxsize)
        self._flights: dict[Hashable, Flight] | None = None  # none: most caches wait for no answer most of the time
        self._latest: tuple[Hashable, Entry] | None = None  # the entry used last, as long as it is among the entries

    def peek(self, key: Hashable) -> Entry | None:
        """Return the answer for `key` if it is fresh and was the last one used.

        One that is asked for again and again is found so, without the lock: there is nothing to note. Whoever replaces
        or forgets it meanwhile does so after this look.
        """
        latest = self._latest
        if latest is not None and latest[0] == key and self._monotonic() < latest[1].fresh_until:
            return latest[1]
        return None

    def fresh(self, key: Hashable) -> Entry | None:
        """Return the answer for `key` if it is fresh."""
        with self._lock:
            return self._fresh(key)

    def load(self, key: bytes) -> Entry | None:
        """Take over what the shelf has for `key`; return it if it is fresh."""
        found = None if self.answers is None else self.answers.find(key)
        if found is None:
            return None
        candidates, age, fresh, stale = found
        ttl = self._ttl if candidates else self._ttl_empty  # may be shorter now than when the answer was stored
        fresh, stale = min(fresh, ttl - age), min(stale, ttl + self._stale - age)
        now = self._monotonic()
        entry = Entry(tuple(candidates), now - age, now + fresh, now + stale)
        with self._lock:
            known = self._find(key)
            if known is None or known.stored_at < entry.stored_at:
                self._keep(key, entry)
            return self._fresh(key)

    def stale(self, key: Hashable) -> Entry | None:
        """Return an answer for `key` that may stand in for a failed execution."""
        with self._lock:
            entry = self._find(key)
        return entry if entry is not None and self._monotonic() < entry.stale_until else None

    def lead(self, key: Hashable, flight: Flight) -> Entry | Flight:
        """Return a fresh answer; else the flight that fetches one: this one, if there was none."""
        with self._lock:
            if key in self._entries or self._failures is not None:
                entry = self._fresh(key)
                if entry is not None:
                    return entry
            if self._flights is None:
                self._flights = {key: flight}
                return flight
            return self._flights.setdefault(key, flight)

    def land(self, key: bytes, flight: Flight) -> None:
        """Note that a flight is over without an answer; the next one to ask leads."""
        with self._lock:
            self._touch_down(key, flight)

    def hand_on(self, key: Hashable, flight: Flight, heir: Flight) -> bool:
        """Let another flight lead in place of this one; `False`: it does not lead any more."""
        with self._lock:
            if self._flights is None or self._flights.get(key) is not flight:
                return False
            self._flights[key] = heir
            return True

    def copies(self, key: Hashable, entry: Entry) -> list[Any] | None:
        """Return the candidates as objects that the caller may change; `None`, and forget them, where that fails."""
        try:
            return entry.copies()
        except Exception as error:  # copying a candidate runs foreign code
            _log.warning("an answer is dropped from the cache, a candidate cannot be copied: %s", error)
        with self._lock:
            if self._find(key) is entry:
                self._latest = None
                del self._entries[key]
        return None

    def put(self, key: bytes, candidates: list[Any], flight: Flight, *, keep: bool = True) -> Entry:
        """Keep an answer and land the flight that fetched it, in one step: nobody fetches it again in between.

        Args:
            key: what was asked for.
            candidates: the answer; the cache makes copies of its own.
            flight: who fetched it.
            keep: `False`: only for those that wait for this flight; an older answer stays, to stand in for a failure.

        Raises:
            Exception: a candidate cannot be copied; nothing is kept.
        """
        now = self._monotonic()
        if candidates:
            ttl, own = self._ttl, tuple([_copy(candidate) for candidate in candidates])
        else:
            ttl, own = self._ttl_empty, ()
        until = now + ttl * (1.0 - self._jitter * self._random())
        entry = Entry(own, now, until, until + self._stale)
        with self._lock:
            if keep:
                self._keep(key, entry)
            if self._failures is not None:
                self._failures.pop(key, None)
            if self.answers is None:
                self._touch_down(key, flight)
        if self.answers is not None:
            if keep:
                self.answers.keep(key, own, until - now, entry.stale_until - now)
            with self._lock:  # after the answer is on the answers: another process looks there next
                self._touch_down(key, flight)
        return entry

    def put_error(self, key: Hashable, error: ErrorInfo) -> None:
        """Remember a failure for `ttl_error` seconds, if that is wanted; an older answer is kept."""
        if self._ttl_error is None or self._failures is None:
            return
        now = self._monotonic()
        until = now + self._ttl_error
        with self._lock:
            self._failures.pop(key, None)
            self._failures[key] = Entry((), now, until, until, error)

    def sizes(self) -> tuple[int, int]:
        """Return how many answers and how many failures are kept, old ones included."""
        with self._lock:
            return len(self._entries), 0 if self._failures is None else len(self._failures)

    def newest(self) -> Entry | None:
        """Return the answer that was kept last, if it is still there; it does not count as used."""
        with self._lock:
            entries = list(self._entries.values())
        return max(entries, key=lambda entry: entry.stored_at, default=None)

    def newest_failure(self) -> Entry | None:
        """Return the failure that was remembered last, if it is not over; it does not count as used."""
        if self._failures is None:
            return None
        with self._lock:
            failures = list(self._failures.values())
        newest = max(failures, key=lambda entry: entry.stored_at, default=None)
        return newest if newest is not None and self._monotonic() < newest.fresh_until else None

    def warn_once(self, scanner: str) -> None:
        """Log, the first time, that a state has no stable key."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s is not cached: the state holds a value without a stable form; "
                "name the keys that the scanner reads, Cache(inputs=(...)), or leave the cache out",
                scanner,
            )

    def _touch_down(self, key: Any, flight: Flight) -> None:
        """Let the next flight lead. Under the lock.

        `landed` gives a claim back that goes by the key: called after the lock was free, it would take the claim away
        that the next flight has made in between, and nobody would ever tell that one to go.
        """
        flights = self._flights
        if flights is not None and flights.get(key) is flight:
            if len(flights) == 1:
                self._flights = None
            else:
                del flights[key]
            if self._on_landed is not None:
                self._on_landed(key)

    def _keep(self, key: Hashable, entry: Entry) -> None:
        """Put an answer among the entries, at the end. Under the lock."""
        entries = self._entries
        if key in entries:
            del entries[key]
        entries[key] = entry
        self._latest = (key, entry)

    def _find(self, key: Hashable) -> Entry | None:
        """Return the answer for `key`, fresh or not; it counts as used. Under the lock."""
        if key not in self._entries:
            return None
        entry = self._entries.use(key)
        self._latest = (key, entry)
        return entry

    def _fresh(self, key: Hashable) -> Entry | None:
        entry = self._find(key)
        if entry is not None and self._monotonic() < entry.fresh_until:
            return entry
        if self._failures is None or key not in self._failures:
            return None
        failure = self._failures.use(key)
        return failure if self._monotonic() < failure.fresh_until else None
