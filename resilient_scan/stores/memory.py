"""State in this object: for one process only, and gone when it ends."""

from __future__ import annotations

import os
import threading
from collections import deque
from itertools import islice
from typing import TypeVar

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores import Change
from resilient_scan.stores.batching import Values, check_size

T = TypeVar("T")
MAX_LEASES = 1_000  # beyond that, those that have expired are dropped


class MemoryStore:
    """Documents, values, leases and logs in dictionaries, all under one lock.

    `update` calls `change` under that lock: it is pure, and another thread's change would get lost in between.
    """

    url = "memory:"
    shared = False

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._documents: dict[str, bytes] = {}
        self._values = Values(clock)
        self._leases: dict[str, tuple[str, float]] = {}
        self._logs: dict[str, deque[bytes]] = {}
        self._closed = False
        self._process = os.getpid()

    def now(self) -> float:
        """Return the clock's wall time."""
        return self._clock.time()

    def update(self, key: str, change: Change[T], /) -> T:
        """Change a document; if `change` raises, nothing is changed and the error comes out."""
        self._check_open()
        with self._lock:
            old = self._documents.get(key)
            new, result = change(old, self._clock.time())
            if new is None:
                self._documents.pop(key, None)
            elif new is not old:
                check_size(new)
                self._documents[key] = new
        return result

    def read(self, prefix: str, /) -> dict[str, bytes]:
        """Return all documents whose keys begin with `prefix`."""
        self._check_open()
        with self._lock:
            return {key: data for key, data in self._documents.items() if key.startswith(prefix)}

    def get(self, key: str, /) -> bytes | None:
        """Return a value that has not expired."""
        self._check_open()
        with self._lock:
            value = self._values.find(key)
        return value.data if value is not None and self._clock.monotonic() < value.until else None

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Store a value for `seconds`."""
        self._check_open()
        with self._lock:
            self._values.put(key, value, seconds)

    def delete(self, key: str, /) -> None:
        """Forget a value."""
        self._check_open()
        with self._lock:
            self._values.drop(key)

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        """Take a lease, or renew one's own; `False` if another owner holds it."""
        self._check_open()
        now = self._clock.monotonic()
        with self._lock:
            holder, until = self._leases.get(key, (owner, 0.0))
            if holder != owner and now < until:
                return False
            self._leases[key] = (owner, now + seconds)
            if len(self._leases) > MAX_LEASES:
                self._leases = {name: lease for name, lease in self._leases.items() if now < lease[1]}
        return True

    def release(self, key: str, owner: str, /) -> None:
        """Give one's own lease back; another owner's is left alone."""
        self._check_open()
        with self._lock:
            if self._leases.get(key, ("", 0.0))[0] == owner:
                del self._leases[key]

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        """Add a record to a log."""
        self._check_open()
        check_size(record)
        with self._lock:
            records = self._logs.setdefault(log, deque())
            records.append(record)
            while len(records) > keep:
                records.popleft()

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, newest first."""
        self._check_open()
        with self._lock:
            return list(islice(reversed(self._logs.get(log, ())), limit))

    def flush(self) -> None:
        """Do nothing: nothing was put off."""
        self._check_open()

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True

    def after_fork(self) -> None:
        """Go on in a forked child with the parent's state as it was, except for its leases: the parent holds them."""
        # Once per process. Two runners share the store, and each calls this when it is first used in the child: the
        # second call would drop a lease that the first runner has taken since, and exchange a lock that it may hold.
        if self._process != os.getpid():
            self._process = os.getpid()
            self._lock = threading.Lock()  # in the parent, another thread may have held it at the fork
            self._leases = {}

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store memory: is closed")
