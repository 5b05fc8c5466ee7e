"""Cache one scanner's answers, and let only one execution at a time fetch the answer to a key (single-flight).

    stored        fresh_until = + ttl, less jitter      stale_until = + stale_if_error
      |-------- fresh: `cached` --------|---- stale: only if an execution fails ----|

A *flight* is whatever stands for an execution that fetches an answer. Per key, one flight leads and the others follow:

    lead(key, a) -> a             a leads, and fetches
    lead(key, b) -> a             b follows: it waits for a
    put(key, entry, a)            a lands with an answer; the next `lead` returns that
    land(key, a)                  or it lands without one; the next flight to ask leads
    hand_on(key, a, successor)    or another flight takes its place, because a hangs

cachetools' `Cache` holds the entries. Their times are in the entries themselves, because cachetools' `TTLCache` would
drop an expired answer, which may still stand in for a failed execution.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Any, Generic, Protocol, TypeVar

import cachetools
import msgspec

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock
from resilient_scan.layers.copying import AT_ONCE, MAX_AT_ONCE, ON_WORKER, SHARED, copies_of, copying_of
from resilient_scan.options import Cache
from resilient_scan.results import ErrorInfo

Flight = TypeVar("Flight")


class Answers(Protocol):
    """Where answers outlive the process. None of its methods raises."""

    def stored_as(self, key: bytes, /) -> str:
        """Return the key under which a store has the answer to `key`."""

    def read(self, key: bytes, data: bytes, now: float, /) -> tuple[Sequence[Any], float, float, float] | None:
        """Return what a store had for `key` at its time `now`; `None`: it is of no use.

        Returns:
            Candidates, age, and the seconds left as fresh and as stale.
        """

    def keep(self, key: bytes, candidates: Sequence[Any], fresh: float, stale: float, /) -> None:
        """Store an answer that is fresh for `fresh` seconds from now, and may stand in for a failure for `stale`."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An answer in the cache, or a remembered failure (`error`).

    Nobody else has a reference to anything in the candidates that can be changed. `copying` says how copies of them are
    to be made; see `layers/copying.py`. `key` is what was asked for.
    """

    candidates: tuple[Any, ...]
    stored_at: float
    fresh_until: float
    stale_until: float
    error: ErrorInfo | None = None
    copying: str = AT_ONCE
    key: Hashable = None

    def copies(self) -> list[Any]:
        """Return the candidates as objects that the caller may change."""
        return copies_of(self.candidates, self.copying)


class _Entries(cachetools.Cache[Hashable, Entry]):
    """Entries, the least recently used first.

    A dict keeps its order, so an entry that is used is moved to the end. cachetools' `LRUCache` keeps a second dict
    for that, and every miss would pay for it.
    """

    def touch(self, key: Hashable) -> Entry:
        """Return an entry and move it to the end."""
        entry: Entry = self.pop(key)
        self[key] = entry
        return entry

    def popitem(self) -> tuple[Hashable, Entry]:
        """Remove the least recently used entry."""
        key = next(iter(self))
        return key, self.pop(key)


class ResultCache(Generic[Flight]):
    """One scanner's answers, and the flights that are fetching one now. Safe to use from any thread.

    Args:
        options: the numbers.
        clock, random: where time and chance come from.
        answers: where answers are stored for other processes; `None` keeps them in this one.
        on_landed: called with the key, under the lock, when a flight has landed and its answer, if any, is stored.
        lock: one that its owner has in the processor's cache anyway; only who calls `settle` holds it.
    """

    # A run goes through the caches of all scanners, which the processor's cache has forgotten since the last run.
    # With slots, each is in one place in memory.
    __slots__ = (
        "_entries",
        "_failures",
        "_flights",
        "_forgotten",
        "_jitter",
        "_lock",
        "_maxsize",
        "_monotonic",
        "_on_landed",
        "_random",
        "_stale",
        "_ttl",
        "_ttl_empty",
        "_ttl_error",
        "_uncopied",
        "_warned",
        "answers",
        "inputs",
        "latest",
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
        self.inputs: tuple[str, ...] | None = options.inputs
        self.answers: Answers | None = answers
        self._on_landed = on_landed
        self._monotonic = clock.monotonic
        self._random = random.random
        self._ttl, self._ttl_error, self._jitter = options.ttl, options.ttl_error, options.jitter
        self._ttl_empty = options.ttl if options.ttl_empty is None else options.ttl_empty
        self._stale = options.stale_if_error
        self._maxsize = options.maxsize
        self._warned = self._uncopied = False
        self._forgotten = 0  # how often all answers have been dropped
        self._lock = lock or threading.Lock()
        self._failures = None if options.ttl_error is None else _Entries(options.maxsize)
        self._entries = _Entries(options.maxsize)
        self._flights: dict[Hashable, Flight] | None = None  # None: most of the time, most caches wait for no answer
        self.latest: Entry | None = None  # the entry used last, while it is among them; see `peek`

    def peek(self, key: Hashable, now: float) -> Entry | None:
        """Return the answer for `key` if it is fresh at the monotonic instant `now` and was used last. Takes no lock.

        This is the way of the usual warm scan, which asks for the same key again and again: the entry is at the end
        already, so there is nothing to change. The reference to it is read once; a thread that replaces it or drops it
        from the cache meanwhile did so after this look.
        """
        latest = self.latest
        if latest is not None and latest.key == key and now < latest.fresh_until:
            return latest
        return None

    def fresh(self, key: Hashable) -> Entry | None:
        """Return the answer for `key` if it is fresh."""
        with self._lock:
            return self._fresh(key)

    def load(self, key: bytes, data: bytes, now: float) -> Entry | None:
        """Take what the store had for `key` at its time `now` into this cache; return the answer if it is fresh."""
        forgotten = self._forgotten  # before the answer's epoch is looked at: who forgets answers changes that first
        found = None if self.answers is None else self.answers.read(key, data, now)
        if found is None:
            return None
        candidates, age, fresh, stale = found
        ttl = self._ttl if candidates else self._ttl_empty  # another process may have stored it under a longer ttl
        fresh, stale = min(fresh, ttl - age), min(stale, ttl + self._stale - age)
        now = self._monotonic()
        # Many are not looked at: this is a run's thread, or the lease keeper's.
        copying = ON_WORKER if len(candidates) > MAX_AT_ONCE else copying_of(candidates)
        entry = Entry(tuple(candidates), now - age, now + fresh, now + stale, None, copying, key)
        displaced: object = None
        with self._lock:
            # Since the store was read, without the lock, an execution of this process may have put a newer answer here.
            known = self._find(key)
            # Meanwhile an operator may also have ordered to forget the answers, this one among them.
            if (known is None or known.stored_at < entry.stored_at) and forgotten == self._forgotten:
                displaced = self._keep(entry)
            found_now = self._fresh(key)
        del displaced
        return found_now

    def stale(self, key: Hashable) -> Entry | None:
        """Return the answer that may stand in for a failed execution, if there is one."""
        with self._lock:
            entry = self._find(key)
        return entry if entry is not None and self._monotonic() < entry.stale_until else None

    def lead(self, key: Hashable, flight: Flight) -> Entry | Flight:
        """Return a fresh answer, or else the flight that leads: an earlier one, which is to be followed, or this one.

        Both looks are under one lock. Between two, the leader could put its answer and land: this flight would have
        missed the answer and find nobody to follow, and would call the source a second time.
        """
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
        """End a flight without an answer; the next one to ask leads."""
        with self._lock:
            self._end_flight(key, flight)

    def hand_on(self, key: Hashable, flight: Flight, heir: Flight) -> bool:
        """Let `heir` lead instead of `flight`; return False if `flight` does not lead any more.

        Two cases need it. An attempt hangs and its execution has a successor: the followers stay with the key. Or a
        scan wants to follow a leader that has ended but has not landed yet: it takes over in one step, where landing
        and leading in two would let a third scan lead in between, next to this one.
        """
        with self._lock:
            if self._flights is None or self._flights.get(key) is not flight:
                return False
            self._flights[key] = heir
            return True

    def copies(self, key: Hashable, entry: Entry) -> list[Any] | None:
        """Return the candidates as objects that the caller may change; if that fails, drop them and return `None`."""
        try:
            return entry.copies()
        except Exception as error:  # copying a candidate runs foreign code
            self.drop(key, entry, str(error))
        return None

    def drop(self, key: Hashable, entry: Entry, reason: str) -> None:
        """Drop an answer that cannot be copied."""
        _log.warning("an answer is dropped from the cache, a candidate cannot be copied: %s", reason)
        with self._lock:
            if self._find(key) is entry:  # not a newer one, which may well be copyable
                self.latest = None
                del self._entries[key]

    def put(self, key: bytes, entry: Entry, flight: Flight, *, keep: bool) -> None:
        """Keep an answer and land its flight, so that no other flight fetches it in between.

        Args:
            key: what was asked for.
            entry: the answer, from `entry_of`.
            flight: the one that fetched it.
            keep: `False` for an answer that only this flight's followers get; an older answer may still stand in for
                a failure.
        """
        displaced: object = None
        if self.answers is None:
            with self._lock:
                displaced = self.settle(key, entry, flight, keep)
            del displaced
            return
        with self._lock:
            if keep:
                displaced = self._keep(entry)
            if self._failures is not None:
                self._failures.pop(key, None)
        del displaced
        # The answer is stored before the flight ends, which gives the lease back. The other way round, another process
        # could acquire the lease, find no answer in the store, and call the source again.
        if keep:
            now = entry.stored_at
            self.answers.keep(key, entry.candidates, entry.fresh_until - now, entry.stale_until - now)
        with self._lock:
            self._end_flight(key, flight)

    def entry_of(self, key: Hashable, candidates: list[Any]) -> Entry:
        """Make an entry of an answer that has just come, with copies of its own.

        Raises:
            Exception: a candidate cannot be copied.
        """
        now = self._monotonic()
        if candidates:
            copying = copying_of(candidates)
            until = now + self._ttl * (1.0 - self._jitter * self._random())
            return Entry(tuple(copies_of(candidates, copying)), now, until, until + self._stale, None, copying, key)
        until = now + self._ttl_empty * (1.0 - self._jitter * self._random())
        return Entry((), now, until, until + self._stale, None, SHARED, key)

    def settle(self, key: Any, entry: Entry, flight: Flight, keep: bool, /) -> object:
        """Keep an entry and end its flight, in a cache without `answers`. The caller holds the lock that it has given.

        So the owner of the lock can end the execution in the same step. What is returned must be let go after the lock.
        It is what had to make room, perhaps the last reference to a candidate. Its `__del__` is foreign code: one that
        hung under the lock would hang the watchdog, too.
        """
        displaced = self._keep(entry) if keep else None
        if self._failures is not None:
            self._failures.pop(key, None)
        self._end_flight(key, flight)
        return displaced

    def put_error(self, key: Hashable, error: ErrorInfo) -> None:
        """Remember a failure for `ttl_error` seconds, if that is set; an older answer is kept."""
        if self._ttl_error is None or self._failures is None:
            return
        now = self._monotonic()
        until = now + self._ttl_error
        with self._lock:
            self._failures.pop(key, None)
            self._failures[key] = Entry((), now, until, until, error.without_traceback())

    def forget(self) -> None:
        """Drop all answers and remembered failures; an execution under way still brings its answer."""
        with self._lock:
            self._forgotten += 1
            displaced = self.latest, self._entries
            self.latest, self._entries = None, _Entries(self._entries.maxsize)
        del displaced  # see `settle`
        self.forget_failures()

    def forget_failures(self) -> None:
        """Drop the remembered failures; answers are kept."""
        if self._failures is not None:
            with self._lock:
                self._failures = _Entries(self._failures.maxsize)

    def sizes(self) -> tuple[int, int]:
        """Return the numbers of answers and of failures in the cache, expired ones included."""
        with self._lock:
            return len(self._entries), 0 if self._failures is None else len(self._failures)

    def newest(self) -> Entry | None:
        """Return the newest answer without marking it as used."""
        with self._lock:
            entries = list(self._entries.values())
        return max(entries, key=lambda entry: entry.stored_at, default=None)

    def newest_failure(self) -> Entry | None:
        """Return the newest failure without marking it as used, if it has not expired."""
        if self._failures is None:
            return None
        with self._lock:
            failures = list(self._failures.values())
        newest = max(failures, key=lambda entry: entry.stored_at, default=None)
        return newest if newest is not None and self._monotonic() < newest.fresh_until else None

    def warn_once(self, scanner: str) -> None:
        """Log, the first time only, that a state has no stable key."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s is not cached: the state holds a value without a stable form; "
                "name the keys that the scanner reads, Cache(inputs=(...)), or leave the cache out",
                scanner,
            )

    def warn_of_copy(self, scanner: str, error: BaseException) -> None:
        """Log that an answer cannot be cached, as a warning the first time only: the next run's will be no better."""
        say, self._uncopied = _log.debug if self._uncopied else _log.warning, True
        say("%s: the answer is not cached, a candidate cannot be copied: %s", scanner, error)

    def _end_flight(self, key: Any, flight: Flight) -> None:
        """Let the next flight lead. Under the lock.

        `on_landed` gives back the lease that this flight held, and a lease goes by its key, not by its flight. So it
        is called under the cache's lock. Case: A lands, and the lock is free before A gives its lease back; B leads
        and asks for the lease of the same key; then A gives "its" lease back. If B has it, it is lost while B works;
        if B waits for it, because another process was faster, B is dropped from the waiting list and never started.
        """
        flights = self._flights
        if flights is not None and flights.get(key) is flight:
            if len(flights) == 1:
                self._flights = None
            else:
                del flights[key]
            if self._on_landed is not None:
                self._on_landed(key)

    def _keep(self, entry: Entry) -> object:
        """Put an answer at the end of the entries, under the lock; return what must be let go after it (`settle`)."""
        entries, key = self._entries, entry.key
        displaced: object = self.latest
        if key in entries:
            displaced = displaced, entries.pop(key)
        elif len(entries) >= self._maxsize:
            displaced = displaced, entries.popitem()
        entries[key] = self.latest = entry
        return displaced

    def _find(self, key: Hashable) -> Entry | None:
        """Return the answer for `key`, fresh or not, and mark it as used. Under the lock."""
        if key not in self._entries:
            return None
        entry = self.latest = self._entries.touch(key)
        return entry

    def _fresh(self, key: Hashable) -> Entry | None:
        """Return a fresh answer, or else a failure that is still remembered. Under the lock."""
        entry = self._find(key)
        if entry is not None and self._monotonic() < entry.fresh_until:
            return entry
        if self._failures is None or key not in self._failures:
            return None
        failure = self._failures.touch(key)
        return failure if self._monotonic() < failure.fresh_until else None
