"""Where state lives that outlives a run: one small protocol, three homes, no policy.

Three kinds of state. *Documents* (breakers, quarantine, orders) change by `update`, atomically for all threads and
processes, and are durable before it returns. *Values* (cached answers) expire, and may be written later, in batches.
*Logs* keep their newest records. Beside them *leases*, which expire by themselves, so that nobody waits for the dead.

A store that fails raises `StoreError`; what becomes of the run then is the caller's decision.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError

T = TypeVar("T")
Change = Callable[[bytes | None, float], tuple[bytes | None, T]]
"""`(old, now) -> (new, result)`: pure, may be called more than once; `None` is no document, `new is old` no write."""

AUDIT = "audit"  # the one log whose records are durable at once
_FORMS = "memory:, sqlite:///relative.db or sqlite:////absolute.db, redis://host:port/db (or rediss://, unix://path)"


@runtime_checkable
class Store(Protocol):
    """What a home of state can do; every method may raise `StoreError` and may be called by any thread.

    Attributes:
        url: where it is, for people; there is no password in it.
        shared: whether another process may look at the same state.
    """

    url: str
    shared: bool

    def now(self) -> float:
        """Return the store's wall time, epoch seconds: Redis' own, elsewhere the clock's."""

    def update(self, key: str, change: Change[T], /) -> T:
        """Change a document atomically and return what `change` made; durable before it returns."""

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys begin so, as they were at one instant."""

    def get(self, key: str, /) -> bytes | None:
        """Return a value that was put, unless it has expired or had to make room."""

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Keep a value for so long; it may reach the other processes only with the next `flush`."""

    def delete(self, key: str, /) -> None:
        """Forget a value that was put, for all processes."""

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        """Take a lease, or prolong one's own; `False`: another has it."""

    def release(self, key: str, owner: str, /) -> None:
        """Give one's own lease back; another's is left alone."""

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        """Add a record to a log that keeps the newest `keep`; those of `audit` are durable at once."""

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, newest first."""

    def flush(self) -> None:
        """Write what `put` and `append` have kept back."""

    def close(self) -> None:
        """Flush and let go of everything; a second call does nothing."""

    def after_fork(self) -> None:
        """Begin anew in a forked child; nothing of the parent's is written or closed."""


def open_store(store: str | Store, clock: Clock) -> Store:
    """Return the store that a URL means; a store object passes.

    Nothing is contacted yet, but for a file that exists: one that cannot be used is refused at once.

    Args:
        store: `memory:`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `redis://...`, `rediss://...`,
            `unix://path`, or an object with the methods of `Store`. `?space=NAME` after a file's URL is a part of it
            by itself.
        clock: where time comes from.

    Raises:
        ConfigError: no such form, an extra is missing, or the file is of a newer version or another program's.
    """
    if not isinstance(store, str):
        if isinstance(store, Store):
            return store
        raise ConfigError(f"store must be a URL ({_FORMS}) or an object with the methods of Store, got {store!r:.200}")
    if store == "memory:":
        from resilient_scan.stores.memory import MemoryStore  # noqa: PLC0415 - each home is loaded when it is used

        return MemoryStore(clock)
    if store.startswith("sqlite:"):
        from resilient_scan.stores.sqlite import SqliteStore  # noqa: PLC0415

        place, _, space = store.partition("?space=")
        if not space:
            return SqliteStore(store, clock)
        from resilient_scan.stores.wrappers import Namespaced  # noqa: PLC0415

        return Namespaced(SqliteStore(place, clock), space)
    if store.startswith(("redis://", "rediss://", "unix://")):
        from resilient_scan.stores.redis import RedisStore  # noqa: PLC0415

        return RedisStore(store, clock)
    raise ConfigError(f"store must be one of {_FORMS}, got {without_password(store)!r}")


def check_form(url: str) -> None:
    """Refuse a URL that is none of a store; nothing is opened.

    Raises:
        ConfigError: no such form, or an extra is missing; the message shows no more of it than its scheme.
    """
    if url == "memory:":
        return
    if not re.match(r"sqlite:///.|(rediss?|unix)://.", url):
        scheme, colon, _ = url.partition(":")
        kind = f"something else with '{scheme}:'" if colon else "something else"
        raise ConfigError(f"store.url must be one of {_FORMS}, not {kind}")
    if url.startswith("sqlite:"):
        from resilient_scan.stores.sqlite import fault_of  # noqa: PLC0415 - each home is loaded when it is used

        fault = fault_of(url.partition("?space=")[0])
    else:
        from resilient_scan.stores import redis  # noqa: PLC0415

        fault = redis.fault_of(url)
    if fault:
        raise ConfigError(f"store.url {fault}")


def without_password(url: str) -> str:
    """Return a URL without what is secret in it: everything before an `@`, and the value of `password=`."""
    return re.sub(r"((?:^|[?&])password=)[^&]*", r"\1***", re.sub(r"(://).*@", r"\1***@", url), flags=re.IGNORECASE)
