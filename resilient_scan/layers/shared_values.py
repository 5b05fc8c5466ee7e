"""Load a value that several scanners need once for all of them (single-flight, within each one's own time).

scanner A: no value, nobody loads       -> A loads
scanner B: no value, A loads            -> B waits for A, within B's own time
A's time is up, and `load` still hangs  -> a waiter that has at least half as much time left as A has spent
replaces A; the others wait for that one
A fails                                 -> all that wait for A get A's error
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import cachetools

from resilient_scan.clock import Clock
from resilient_scan.context import ScanContext
from resilient_scan.errors import ScanCancelled, is_cancellation

T = TypeVar("T")
REPLACEMENT_SHARE = 0.5  # of the time that the loader has spent, which a waiter must have left to replace it


class _Loading:
    """A value that is being loaded."""

    def __init__(self, loader: ScanContext, began: float) -> None:
        self.loader = loader
        self.began = began
        self.waiters: list[ScanContext] = []
        self.finished = False  # `load` has returned or raised
        self.replaced = False  # another scanner loads the value instead
        self.error: BaseException | None = None
        self.value: Any = None

    def ended(self) -> bool:
        """Return whether the loader has finished, or its time is up."""
        return self.finished or self.loader.has_ended

    def settled(self) -> bool:
        """Return whether there is anything new for those that wait."""
        return self.finished or self.replaced

    def wake(self) -> None:
        """Have all waiters look again."""
        for waiter in self.waiters:
            waiter.poke()


class _Key:
    """A scanner's key with its hash, which is computed before the lock is taken: a `__hash__` is foreign code."""

    __slots__ = ("hash", "key")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.hash = hash(key)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.key is other.key or self.key == other.key)


class SharedValues:
    """The values that the scanners of one runner share. Safe to use from any thread; `load` runs without a lock."""

    def __init__(self, clock: Clock, maxsize: int = 4096) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._values: cachetools.LRUCache[_Key, tuple[float, Any]] = cachetools.LRUCache(maxsize)
        self._loading: dict[_Key, _Loading] = {}

    def get(self, name: Hashable, load: Callable[[], T], ttl: float, context: ScanContext, /) -> T:
        """Return the value with this name, calling `load` if there is none younger than `ttl` seconds."""
        key = _Key(name)
        while True:
            # Both looks are under one lock: between two, a loader could finish, and this scanner would find neither
            # the value nor anybody to wait for.
            with self._lock:
                until, value = self._values.get(key, (0.0, None))
                if self._clock.monotonic() < until:
                    return value  # type: ignore[no-any-return] # what `load` of the same key returned
                loading = self._loading.get(key)
                mine = self._lead_or_follow(key, loading, context)
            if mine is not None:
                if loading is not None:
                    loading.wake()  # the waiters of the loader that we replace, so that they wait for us
                return self._load(key, load, ttl, mine)
            assert loading is not None  # noqa: S101 - else this one leads
            self._wait(loading, context)
            if loading.error is not None and not is_cancellation(loading.error):
                raise loading.error
            if loading.finished and loading.error is None:
                return loading.value  # type: ignore[no-any-return]
            # The loader was cancelled or replaced: look again.

    def _lead_or_follow(self, key: _Key, loading: _Loading | None, context: ScanContext) -> _Loading | None:
        """Lead if nobody loads, or instead of a loader whose time is up; or follow. Under the lock.

        A waiter with less than half of the time that was not enough for that loader would only fail likewise, and
        send one more request to a source that hangs.
        """
        now = self._clock.monotonic()
        if loading is not None:
            spent = min(now, loading.loader.ends) - loading.began
            if not loading.ended() or context.remaining() <= REPLACEMENT_SHARE * spent:
                loading.waiters.append(context)
                return None
            loading.replaced = True
        mine = self._loading[key] = _Loading(context, now)
        return mine

    def _wait(self, loading: _Loading, context: ScanContext) -> None:
        """Wait until the loader has ended; if its time is up already, until it finishes or is replaced."""
        if loading.ended():
            context.wait(context.remaining(), loading.settled)
        else:
            # A cancel of the loader wakes this scanner too: it may be the one to replace it. The millisecond makes sure
            # that the loader's time is up when this wait ends by itself.
            context.wait(loading.loader.remaining() + 0.001, loading.ended, watched=loading.loader)
        context.check()

    def _load(self, key: _Key, load: Callable[[], T], ttl: float, loading: _Loading) -> T:
        try:
            value = load()
            if loading.loader.cut_off():  # half a value looks like a whole one, and would be everybody's
                raise ScanCancelled("a connection was shut down after the timeout")
        except BaseException as error:
            self._finish(key, loading, error=error)
            raise
        self._finish(key, loading, value=value, until=self._clock.monotonic() + ttl)
        return value

    def _finish(
        self,
        key: _Key,
        loading: _Loading,
        *,
        error: BaseException | None = None,
        value: Any = None,
        until: float = 0,
    ) -> None:
        """Publish the outcome. A loader that was replaced does so too: its value is as good, and perhaps earlier."""
        old: list[Any] = []  # freed after the lock is: a value's `__del__` is foreign code
        with self._lock:
            loading.error, loading.value = error, value
            loading.finished = True
            if error is None:
                old.append(self._values.pop(key, None))
                while len(self._values) >= self._values.maxsize:
                    old.append(self._values.popitem())
                self._values[key] = (until, value)
            if self._loading.get(key) is loading:
                del self._loading[key]
        loading.wake()
