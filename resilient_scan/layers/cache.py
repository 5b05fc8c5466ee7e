"""Cache: answers kept for a while, one execution per key at a time, values that several scanners share.

cachetools' `LRUCache` holds the entries; their age is kept beside them, because an expired answer may still stand in
for a failed execution.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Hashable
from random import Random
from typing import Any, Generic, TypeVar

import cachetools
import msgspec

from resilient_scan.clock import Clock
from resilient_scan.context import ScanContext
from resilient_scan.errors import ScanCancelled
from resilient_scan.options import Cache
from resilient_scan.outcome import ErrorInfo
from resilient_scan.scanning import Candidate

_log = logging.getLogger("resilient_scan")
T = TypeVar("T")
Flight = TypeVar("Flight")


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


class ResultCache(Generic[Flight]):
    """One scanner's answers, and who is fetching one just now. `Flight` is whatever stands for an execution."""

    def __init__(self, options: Cache, clock: Clock, random: Random) -> None:
        self.inputs = options.inputs
        self._options = options
        self._clock = clock
        self._random = random
        self.puts = 0  # grows with everything that is kept
        self._warned = False
        self._lock = threading.Lock()
        self._failures: cachetools.LRUCache[Hashable, Entry] = cachetools.LRUCache(options.maxsize)
        self._entries: cachetools.LRUCache[Hashable, Entry] = cachetools.LRUCache(options.maxsize)
        self._flights: dict[Hashable, Flight] = {}

    def fresh(self, key: Hashable) -> Entry | None:
        """Return the answer for `key` if it is fresh."""
        with self._lock:
            return self._fresh(key)

    def stale(self, key: Hashable) -> Entry | None:
        """Return an answer for `key` that may stand in for a failed execution."""
        with self._lock:
            entry = self._entries.get(key)
        return entry if entry is not None and self._clock.monotonic() < entry.stale_until else None

    def lead(self, key: Hashable, flight: Flight, seen: int = -1) -> Entry | Flight:
        """Return a fresh answer; else the flight that fetches one: this one, if there was none.

        Args:
            key: what is asked for.
            flight: who would fetch it.
            seen: `puts` as read before the cache was last asked: nothing new, nothing to look for again.
        """
        with self._lock:
            entry = self._fresh(key) if seen != self.puts else None
            return entry or self._flights.setdefault(key, flight)

    def land(self, key: Hashable, flight: Flight) -> None:
        """Note that a flight is over without an answer; the next one to ask leads."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def hand_on(self, key: Hashable, flight: Flight, heir: Flight) -> bool:
        """Let another flight lead in place of this one; `False`: it does not lead any more."""
        with self._lock:
            if self._flights.get(key) is not flight:
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
            if self._entries.get(key) is entry:
                del self._entries[key]
        return None

    def put(self, key: Hashable, candidates: list[Any], flight: Flight, *, keep: bool = True) -> Entry:
        """Keep an answer and land the flight that fetched it, in one step: nobody fetches it again in between.

        Args:
            key: what was asked for.
            candidates: the answer; the cache makes copies of its own.
            flight: who fetched it.
            keep: `False`: only for those that wait for this flight; an older answer stays, to stand in for a failure.

        Raises:
            Exception: a candidate cannot be copied; nothing is kept.
        """
        options, now = self._options, self._clock.monotonic()
        ttl = options.ttl if candidates or options.ttl_empty is None else options.ttl_empty
        fresh_until = now + ttl * (1.0 - options.jitter * self._random.random())
        own = tuple([_copy(candidate) for candidate in candidates])
        entry = Entry(own, now, fresh_until, fresh_until + options.stale_if_error)
        with self._lock:
            if keep:
                self.puts += 1
                self._entries[key] = entry
            if self._flights.get(key) is flight:
                del self._flights[key]
            if self._failures:
                self._failures.pop(key, None)
        return entry

    def put_error(self, key: Hashable, error: ErrorInfo) -> None:
        """Remember a failure for `ttl_error` seconds, if that is wanted; an older answer is kept."""
        if self._options.ttl_error is None:
            return
        now = self._clock.monotonic()
        until = now + self._options.ttl_error
        with self._lock:
            self.puts += 1
            self._failures[key] = Entry((), now, until, until, error)

    def kept(self) -> tuple[int, int]:
        """Return how many answers and how many failures are kept, old ones included."""
        with self._lock:
            return len(self._entries), len(self._failures)

    def newest(self) -> Entry | None:
        """Return the answer that was kept last, if it is still there; it does not count as used."""
        with self._lock:
            entries = [cachetools.Cache.__getitem__(self._entries, key) for key in self._entries]
        return max(entries, key=lambda entry: entry.stored_at, default=None)

    def newest_failure(self) -> Entry | None:
        """Return the failure that was remembered last, if it is not over; it does not count as used."""
        with self._lock:
            failures = [cachetools.Cache.__getitem__(self._failures, key) for key in self._failures]
        newest = max(failures, key=lambda entry: entry.stored_at, default=None)
        return newest if newest is not None and self._clock.monotonic() < newest.fresh_until else None

    def warn_once(self, scanner: str) -> None:
        """Log, the first time, that a state has no stable key."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s is not cached: the state holds a value without a stable form; "
                "name the keys that the scanner reads, Cache(inputs=(...)), or leave the cache out",
                scanner,
            )

    def _fresh(self, key: Hashable) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and self._clock.monotonic() < entry.fresh_until:
            return entry
        if not self._failures:
            return None
        failure = self._failures.get(key)
        return failure if failure is not None and self._clock.monotonic() < failure.fresh_until else None


class _Loading:
    """A value on its way; over when its loader is through, or when the loader's time is."""

    def __init__(self, loader: ScanContext, began: float) -> None:
        self.loader = loader
        self.began = began
        self.waiters: list[ScanContext] = []
        self.through = False
        self.replaced = False  # another loads in its stead
        self.error: BaseException | None = None
        self.value: Any = None

    def over(self) -> bool:
        return self.through or self.loader.cancelled

    def settled(self) -> bool:
        return self.through or self.replaced

    def wake(self) -> None:
        """Have all that wait look again."""
        for waiter in self.waiters:
            waiter.poke()


class SharedValues:
    """Values that several scanners need, loaded once for all of them: the first asker loads, the others wait for it.

    They wait within their own time. A loader that hangs does not hold them for longer than its own time either: then
    one of them loads in its stead, if it has at least half of the time left that was not enough for that one.
    """

    def __init__(self, clock: Clock, maxsize: int = 4096) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._values: cachetools.LRUCache[Hashable, tuple[float, Any]] = cachetools.LRUCache(maxsize)
        self._loading: dict[Hashable, _Loading] = {}

    def get(self, key: Hashable, load: Callable[[], T], ttl: float, context: ScanContext, /) -> T:
        """Return the value for `key`, calling `load` where there is none younger than `ttl` seconds."""
        while True:
            with self._lock:
                until, value = self._values.get(key, (0.0, None))
                if self._clock.monotonic() < until:
                    return value  # type: ignore[no-any-return] # what `load` of the same key returned
                loading = self._loading.get(key)
                mine = self._lead(key, loading, context)
            if mine is not None:
                if loading is not None:
                    loading.wake()
                return self._load(key, load, ttl, mine)
            assert loading is not None  # noqa: S101 - else this one leads
            self._wait(loading, context)
            if loading.error is not None and not isinstance(loading.error, ScanCancelled):
                raise loading.error
            if loading.through and loading.error is None:
                return loading.value  # type: ignore[no-any-return]

    def _lead(self, key: Hashable, loading: _Loading | None, context: ScanContext) -> _Loading | None:
        """Take the lead if nobody has it, or one whose time is over; else wait for that one. Under the lock."""
        now = self._clock.monotonic()
        if loading is not None:
            spent = min(now, loading.loader.ends) - loading.began
            if not loading.over() or context.remaining() <= 0.5 * spent:
                loading.waiters.append(context)
                return None
            loading.replaced = True
        mine = self._loading[key] = _Loading(context, now)
        return mine

    def _wait(self, loading: _Loading, context: ScanContext) -> None:
        """Wait for a value, or for the end of its loader; who has less time left than that one took waits on."""
        if loading.over():
            context.wait(context.remaining(), loading.settled)
        else:
            # a cancel of the loader is a reason to look again
            context.wait(loading.loader.remaining() + 0.001, loading.over, watched=loading.loader)
        context.check()

    def _load(self, key: Hashable, load: Callable[[], T], ttl: float, loading: _Loading) -> T:
        try:
            value = load()
        except BaseException as error:
            self._through(key, loading, error=error)
            raise
        self._through(key, loading, value=value, until=self._clock.monotonic() + ttl)
        return value

    def _through(
        self,
        key: Hashable,
        loading: _Loading,
        *,
        error: BaseException | None = None,
        value: Any = None,
        until: float = 0,
    ) -> None:
        with self._lock:
            loading.error, loading.value = error, value
            loading.through = True
            if error is None:
                self._values[key] = (until, value)
            if self._loading.get(key) is loading:
                del self._loading[key]
        loading.wake()
