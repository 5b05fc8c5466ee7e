"""Where state lives that outlives a run: one small protocol, three stores, no policy.

A store holds three kinds of state, and leases. *Documents* (breakers, quarantine, orders) change by `update`, which is
atomic for all threads and processes, and durable when it returns. *Values* (cached answers) expire, and may be written
later, in batches. *Logs* keep their newest records. *Leases* expire by themselves: nobody waits for a killed process.

    memory                       in this process only
    sqlite   schema database     one file: what is in it; connections to it, and what happens when it is damaged
             files               which file that is; it is made, locked and moved aside
    redis                        a server
    batching                     what the last two have in common: values and records that are not written yet
    wrappers                     a part of another store; a store that somebody else wrote
    health                       whether a store is reachable, and how long a thread may wait for it
    answers  codec               cached answers, and their candidates as bytes
    notes                        what a scanner remembers from one scan to the next
    groups                       what a store may do for many keys at once
    leases                       one execution per key in all processes
    history                      what is remembered of runs
    attempts  columns            every attempt, and how they are packed by scanner and day

A store that fails raises `StoreError`; the caller decides what becomes of the run. So does one that belongs to a newer
version, whenever that is found out: `Refused`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from resilient_scan.clock import Clock
from resilient_scan.errors import ConfigError, StoreError

T = TypeVar("T")
Change = Callable[[bytes | None, float], tuple[bytes | None, T]]
"""`(old, now) -> (new, result)`: pure, as it may be called more than once.

`None` stands for no document; returning `old` itself writes nothing.
"""

ATTEMPTS_KEPT_FOR = 90 * 86_400.0  # seconds, unless the settings say otherwise
AUDIT, OVERRIDES = "audit", "overrides"  # the logs whose records are durable before `append` returns
ORDERS = "quarantine/fleet"  # the one document of which a file keeps a second copy: what people have ordered by hand
_FORMS = "memory:, sqlite:///relative.db or sqlite:////absolute.db, redis://host:port/db (or rediss://, unix://path)"
# The first words of our own keys are not allowed as names: in a space called `last`, the key `expected` would be the
# same as that of a scanner called `expected` outside of it.
_SPACE = re.compile(r"(?!(?:answers|attempts|breaker|cache|flight|last|quarantine)$)[A-Za-z0-9_.-]{1,64}")
_NO_SPACE = (
    "must be 1 to 64 letters, digits, '_', '.' or '-', and not answers, attempts, breaker, cache, flight, last, "
    "quarantine"
)


class Refused(StoreError):
    """The store is whole, but not for us: it belongs to a newer version, or to another program.

    Runs go on without it, as without one that is away. A manual order is refused: it would hold in this process only,
    and there is nothing to wait for.
    """


@runtime_checkable
class Store(Protocol):
    """What a store can do; every method may raise `StoreError`, and any thread may call it.

    Attributes:
        url: where it is, for people; without a password.
        shared: whether another process may see the same state.
    """

    url: str
    shared: bool

    def now(self) -> float:
        """Return the store's wall time in epoch seconds: the Redis server's, elsewhere the clock's."""

    def update(self, key: str, change: Change[T], /) -> T:
        """Change a document atomically and return the result of `change`; durable before it returns."""

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys begin with `prefix`, as they were at one instant."""

    def get(self, key: str, /) -> bytes | None:
        """Return a value that was put, unless it has expired or made room for others."""

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Store a value for `seconds`; other processes may not see it before the next `flush`."""

    def delete(self, key: str, /) -> None:
        """Forget a value, for all processes and at once."""

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        """Take a lease, or renew one's own; `False` if another owner holds it."""

    def release(self, key: str, owner: str, /) -> None:
        """Give one's own lease back; another owner's is left alone."""

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        """Add a record to a log that keeps the newest `keep`; those of `audit` are durable before it returns."""

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, newest first."""

    def flush(self) -> None:
        """Write what `put` and `append` have held back."""

    def close(self) -> None:
        """Flush and close all connections; a second call does nothing."""

    def after_fork(self) -> None:
        """Start over in a forked child; nothing of the parent's is written or closed."""


def open_store(store: str | Store, clock: Clock) -> Store:
    """Return the store that a URL names; a store object is returned as it is.

    No server is contacted yet. A file that exists is opened, so that it is brought up to date; one that cannot be used
    raises when it is used.

    Args:
        store: `memory:`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `redis://...`, `rediss://...`,
            `unix://path`, or an object with the methods of `Store`. `?space=NAME` after any URL names a part of the
            store that is separate from the rest.
        clock: where time comes from.

    Raises:
        ConfigError: the URL has no such form, or an extra is missing.
    """
    if not isinstance(store, str):
        if isinstance(store, Store):
            return store
        raise ConfigError(f"store must be a URL ({_FORMS}) or an object with the methods of Store, got {store!r:.200}")
    place = split_space(store)
    opened = _open(place, clock)
    if not place.space:
        return opened
    from resilient_scan.stores.wrappers import Namespaced  # noqa: PLC0415 - loaded when it is used

    return Namespaced(opened, place.space)


def _open(place: Place, clock: Clock) -> Store:
    url = place.url
    if url == "memory:":
        from resilient_scan.stores.memory import MemoryStore  # noqa: PLC0415 - loaded when it is used

        return MemoryStore(clock)
    if url.startswith("sqlite:"):
        from resilient_scan.stores.sqlite import SqliteStore  # noqa: PLC0415

        return SqliteStore(url, clock, (place.was, place.space) if place.was else None)
    if url.startswith(("redis://", "rediss://", "unix://")):
        from resilient_scan.stores.redis import RedisStore  # noqa: PLC0415

        return RedisStore(url, clock)
    raise ConfigError(f"store must be one of {_FORMS}, got {without_password(url)!r}")


class Place(NamedTuple):
    """What a URL names.

    Attributes:
        url: of the whole store.
        space: the part of it that is meant; empty: what is in no space.
        was: the space whose state this one begins with; empty: none. Only a file in the state directory has one, and
            no user writes it.
    """

    url: str
    space: str
    was: str


def split_space(url: str) -> Place:
    """Return a URL without its space, and that space.

    Raises:
        ConfigError: the name of the space is wrong, or there are several; the message shows nothing of the URL.
    """
    place, mark, query = url.partition("?")
    ours, options = ("space", "was") if url.startswith("sqlite:") else ("space",), query.split("&") if mark else []
    named = [option.partition("=") for option in options if option.partition("=")[0] in ours]
    spaces = {word: name for word, _, name in named}
    if len(spaces) < len(named):
        raise ConfigError("store.space: the URL names more than one")
    for name in spaces.values():
        check_space(name)
    rest = "&".join(option for option in options if option.partition("=")[0] not in ours)
    return Place(f"{place}?{rest}" if rest else place, spaces.get("space", ""), spaces.get("was", ""))


def with_space(url: str, space: str, was: str = "") -> str:
    """Return a URL that has no space, with one; `was` names the one that it begins with."""
    return f"{url}{'&' if '?' in url else '?'}space={space}{was and f'&was={was}'}"


def check_space(name: str) -> None:
    """Raise `ConfigError` unless `name` can be the name of a space."""
    if not _SPACE.fullmatch(name):
        raise ConfigError(f"store.space {_NO_SPACE}")


def check_form(url: str) -> None:
    """Refuse a URL that names no store, without opening anything.

    Raises:
        ConfigError: the URL has no such form, or an extra is missing; of the URL, the message shows only the scheme.
    """
    url = split_space(url).url
    if url == "memory:":
        return
    if not re.match(r"sqlite:///.|(rediss?|unix)://.", url):
        scheme, colon, _ = url.partition(":")
        kind = f"something else with '{scheme}:'" if colon else "something else"
        raise ConfigError(f"store.url must be one of {_FORMS}, not {kind}")
    if url.startswith("sqlite:"):
        from resilient_scan.stores.sqlite import fault_of  # noqa: PLC0415 - loaded when it is used

        fault = fault_of(url)
    else:
        from resilient_scan.stores import redis  # noqa: PLC0415

        fault = redis.fault_of(url)
    if fault:
        raise ConfigError(f"store.url {fault}")


def without_password(url: str) -> str:
    """Return a URL for people: without everything before an `@`, the value of `password=`, and the space that was."""
    url = re.sub(r"((?:^|[?&])password=)[^&]*", r"\1***", re.sub(r"(://).*@", r"\1***@", url), flags=re.IGNORECASE)
    return re.sub(r"&was=\w+$", "", url)
