"""What a store may do for many keys at once, and what becomes of it where a store cannot.

Not part of `Store`: a store that somebody else wrote has what it takes one key at a time, and is asked that often.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from resilient_scan.stores import Store

MAX_BLOCK_BYTES = 4 * 1024 * 1024  # of all the blocks of a name


@runtime_checkable
class GroupReads(Protocol):
    """A store that reads many values at once."""

    def fetch_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """Return those of the values that are there and have not expired."""


@runtime_checkable
class GroupLeases(Protocol):
    """A store that takes and gives back many leases in one transaction, and says who holds the others."""

    def exchange(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str] = (), dead: Collection[str] = ()
    ) -> dict[str, str]:
        """Take or renew leases for `seconds`, those of `dead` owners included, and give one's own back.

        Returns:
            The leases of `take` that others hold, each with its owner.
        """


@runtime_checkable
class LooksAfterTaking(Protocol):
    """A store that takes leases and then reads values without another round trip."""

    def exchange_and_fetch(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str], names: Sequence[str]
    ) -> tuple[dict[str, str], dict[str, bytes] | None]:
        """Take and give back leases, and then read the values of `names`; see `exchange` and `fetch_many`."""


class BlockReader(Protocol):
    """Where *blocks* are found, by name and day, and the log whose records become blocks."""

    url: str

    def now(self) -> float:
        """Return the wall time in epoch seconds."""

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, newest first."""

    def oldest(self, log: str, limit: int, /) -> list[bytes]:
        """Return the oldest written records of a log, oldest first."""

    def blocks(self, names: Sequence[str], since: int, most: int, /) -> dict[str, dict[int, bytes]]:
        """Return the blocks of the newest `most` days since the day `since`, by name; a damaged one as it is."""


@runtime_checkable
class BlockStore(Store, BlockReader, Protocol):
    """A store that keeps blocks, and moves a log's records into them in one transaction."""

    has_blocks: bool

    def fold(
        self, log: str, records: Sequence[bytes], blocks: Mapping[str, Mapping[int, bytes]], since: int, /
    ) -> bool:
        """Write blocks in place of the oldest records of a log; forget those of the log's names before `since`.

        Of each name that is written, at most `MAX_BLOCK_BYTES` are kept; the oldest days make room.

        Returns:
            `False`, and nothing is changed, if `records` are not the log's oldest.
        """


def fetch_many(store: Store, keys: Sequence[str]) -> dict[str, bytes]:
    """Call a store's `fetch_many`, or get one by one where it has none."""
    if isinstance(store, GroupReads):
        return store.fetch_many(keys)
    return {key: value for key in keys if (value := store.get(key)) is not None}


def exchange(
    store: Store, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str], dead: Collection[str] = ()
) -> dict[str, str]:
    """Call a store's `exchange`, or take and give back one by one where it has none; see `GroupLeases`."""
    if isinstance(store, GroupLeases):
        return store.exchange(take, owner, seconds, give_back, dead)
    refused = {key: "" for key in take if not store.lease(key, owner, seconds)}
    for key in give_back:
        store.release(key, owner)
    return refused


def exchange_and_fetch(
    store: Store, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, str], dict[str, bytes] | None]:
    """Take and give back leases, and read values where that costs nothing more; `None`: they are still to be read."""
    if isinstance(store, LooksAfterTaking):
        return store.exchange_and_fetch(take, owner, seconds, give_back, names)
    return exchange(store, take, owner, seconds, give_back), None


def held_back(store: Store) -> int:
    """Return how many bytes of values a store has not written yet; 0 where it does not say."""
    return int(getattr(store, "held_back", 0))


def has_blocks(store: Store) -> bool:
    """Say whether a store is a `BlockStore`."""
    return bool(getattr(store, "has_blocks", False))
