"""Shared values: what several scanners need, loaded once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import cachetools

from resilient_scan.clock import Clock
from resilient_scan.context import ScanContext
from resilient_scan.errors import ScanCancelled

T = TypeVar("T")


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
