"""Stores around another store: `Namespaced` shares one between pipelines, `Checked` guards against a foreign one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar, cast

from resilient_scan.errors import StoreError
from resilient_scan.stores import Change, Store, with_space
from resilient_scan.stores.groups import BlockStore, exchange, exchange_and_fetch, fetch_many, has_blocks, held_back
from resilient_scan.stores.health import ask_store

T = TypeVar("T")


class _Forwarding:
    """All methods of `Store`, forwarded; a wrapper overrides how a key is written, or how the other store is called."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url: str = str(store.url)
        self.shared: bool = bool(store.shared)
        self.has_blocks: bool = has_blocks(store)

    def _key(self, key: str) -> str:
        return key

    def _call(self, method: Callable[[Store], T]) -> T:
        return method(self._store)

    def now(self) -> float:
        return self._call(lambda store: store.now())

    def update(self, key: str, change: Change[T], /) -> T:
        return self._call(lambda store: store.update(self._key(key), change))

    def read(self, prefix: str, /) -> dict[str, bytes]:
        return self._call(lambda store: store.read(self._key(prefix)))

    def get(self, key: str, /) -> bytes | None:
        return self._call(lambda store: store.get(self._key(key)))

    def fetch_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        names = {self._key(key): key for key in keys}
        found = self._call(lambda store: fetch_many(store, list(names)))
        return {names[name]: value for name, value in found.items()}

    @property
    def held_back(self) -> int:
        return held_back(self._store)

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        self._call(lambda store: store.put(self._key(key), value, seconds))

    def delete(self, key: str, /) -> None:
        self._call(lambda store: store.delete(self._key(key)))

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        return self._call(lambda store: store.lease(self._key(key), owner, seconds))

    def release(self, key: str, owner: str, /) -> None:
        self._call(lambda store: store.release(self._key(key), owner))

    def exchange(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str] = (), dead: Collection[str] = ()
    ) -> dict[str, str]:
        names = {self._key(key): key for key in take}
        returned = [self._key(key) for key in give_back]
        held = self._call(lambda store: exchange(store, list(names), owner, seconds, returned, dead))
        return {names[name]: holder for name, holder in held.items()}

    def exchange_and_fetch(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str], names: Sequence[str]
    ) -> tuple[dict[str, str], dict[str, bytes] | None]:
        leases = {self._key(key): key for key in take}
        returned = [self._key(key) for key in give_back]
        values = {self._key(name): name for name in names}
        held, found = self._call(
            lambda store: exchange_and_fetch(store, list(leases), owner, seconds, returned, list(values))
        )
        there = None if found is None else {values[name]: value for name, value in found.items()}
        return {leases[name]: holder for name, holder in held.items()}, there

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        self._call(lambda store: store.append(self._key(log), record, keep))

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        return self._call(lambda store: store.tail(self._key(log), limit))

    def oldest(self, log: str, limit: int, /) -> list[bytes]:
        return self._call(lambda store: cast("BlockStore", store).oldest(self._key(log), limit))

    def blocks(self, names: Sequence[str], since: int, most: int, /) -> dict[str, dict[int, bytes]]:
        given = {self._key(name): name for name in names}
        found = self._call(lambda store: cast("BlockStore", store).blocks(list(given), since, most))
        return {given[name]: days for name, days in found.items()}

    def fold(
        self, log: str, records: Sequence[bytes], blocks: Mapping[str, Mapping[int, bytes]], since: int, /
    ) -> bool:
        given = {self._key(name): days for name, days in blocks.items()}
        return self._call(lambda store: cast("BlockStore", store).fold(self._key(log), records, given, since))

    def flush(self) -> None:
        self._call(lambda store: store.flush())

    def close(self) -> None:
        self._call(lambda store: store.close())

    def after_fork(self) -> None:
        self._call(lambda store: store.after_fork())


class Namespaced(_Forwarding):
    """The part of another store whose keys begin with a name, so that several pipelines can share that store.

    Args:
        store: the other one; closing this closes it.
        name: what the keys begin with.
    """

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store)
        self._prefix = f"{name}/"
        self.url: str = with_space(self.url, name)

    def _key(self, key: str) -> str:
        return self._prefix + key

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys start with `prefix`, under their keys in this namespace."""
        return {key.removeprefix(self._prefix): data for key, data in super().read(prefix).items()}


class OffLoop(_Forwarding):
    """A store that may be called on a thread that many executions share: its calls are made on another one."""

    def _call(self, method: Callable[[Store], T]) -> T:
        return ask_store(lambda: method(self._store))


class Checked(_Forwarding):
    """A store that somebody else wrote: whatever it raises becomes a `StoreError`, which never ends a run.

    The words of a foreign exception are not repeated: there may be a password in them.
    """

    held_back = 0  # it is read under locks, where no foreign code runs

    def _call(self, method: Callable[[Store], T]) -> T:
        try:
            return method(self._store)
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"the store {self.url} failed with {type(error).__name__}") from None
