"""A store that somebody else wrote: whatever it raises is a `StoreError`, and so costs no run its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from resilient_scan.errors import StoreError
from resilient_scan.stores import Change, Store

T = TypeVar("T")


class Checked:
    """Another store, by its protocol only.

    Args:
        store: the other one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = str(store.url)
        self.shared = bool(store.shared)

    def now(self) -> float:
        """Return the store's wall time."""
        return self._asked(lambda store: store.now())

    def update(self, key: str, change: Change[T], /) -> T:
        """Change a document atomically."""
        return self._asked(lambda store: store.update(key, change))

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys begin so."""
        return self._asked(lambda store: store.read(prefix))

    def get(self, key: str, /) -> bytes | None:
        """Return a value that has not expired."""
        return self._asked(lambda store: store.get(key))

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Keep a value for so long."""
        self._asked(lambda store: store.put(key, value, seconds))

    def delete(self, key: str, /) -> None:
        """Forget a value."""
        self._asked(lambda store: store.delete(key))

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        """Take a lease, or prolong one's own."""
        return self._asked(lambda store: store.lease(key, owner, seconds))

    def release(self, key: str, owner: str, /) -> None:
        """Give one's own lease back."""
        self._asked(lambda store: store.release(key, owner))

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        """Add a record to a log."""
        self._asked(lambda store: store.append(log, record, keep))

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, newest first."""
        return self._asked(lambda store: store.tail(log, limit))

    def flush(self) -> None:
        """Write what was put off."""
        self._asked(lambda store: store.flush())

    def close(self) -> None:
        """Close the other store."""
        self._asked(lambda store: store.close())

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._asked(lambda store: store.after_fork())

    def _asked(self, ask: Callable[[Store], T]) -> T:
        try:
            return ask(self._store)
        except StoreError:
            raise
        except Exception as error:  # not quoted: nobody knows what is in it
            raise StoreError(f"the store {self.url} failed with {type(error).__name__}") from None


# A part of a store by itself: what several pipelines keep in one home without getting into each other's way.


class Namespaced:
    """Everything in another store whose keys begin with a name.

    Args:
        store: the other one; it is closed with this.
        name: what the keys begin with.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = f"{name}/"
        self.url = f"{store.url}?space={name}"
        self.shared = store.shared

    def now(self) -> float:
        """Return the store's wall time."""
        return self._store.now()

    def update(self, key: str, change: Change[T], /) -> T:
        """Change a document atomically."""
        return self._store.update(self._name + key, change)

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys begin so."""
        begin = len(self._name)
        return {key[begin:]: data for key, data in self._store.read(self._name + prefix).items()}

    def get(self, key: str, /) -> bytes | None:
        """Return a value that has not expired."""
        return self._store.get(self._name + key)

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Keep a value for so long."""
        self._store.put(self._name + key, value, seconds)

    def delete(self, key: str, /) -> None:
        """Forget a value."""
        self._store.delete(self._name + key)

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        """Take a lease, or prolong one's own."""
        return self._store.lease(self._name + key, owner, seconds)

    def release(self, key: str, owner: str, /) -> None:
        """Give one's own lease back."""
        self._store.release(self._name + key, owner)

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        """Add a record to a log."""
        self._store.append(self._name + log, record, keep)

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, newest first."""
        return self._store.tail(self._name + log, limit)

    def flush(self) -> None:
        """Write what was put off."""
        self._store.flush()

    def close(self) -> None:
        """Close the other store."""
        self._store.close()

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._store.after_fork()
