"""What stores have in common that write values and records later, in batches."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores import AUDIT
from resilient_scan.stores.values import Pending, Record, Value, check_size

Writes = Sequence[tuple[str, Value]]
Records = Sequence[Record]


def to_bytes(name: str) -> bytes:
    """Return a key or an owner as bytes; there is text that is no UTF-8, and it has a place too."""
    return name.encode("utf-8", "surrogatepass")


def to_text(name: bytes) -> str:
    """Return the text again."""
    return name.decode("utf-8", "surrogatepass")


class BatchingStore(ABC):
    """A store that keeps values and records back until they are flushed, and finds them there meanwhile."""

    shared = True

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = url
        self._clock = clock
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._pending = Pending(self._clock)
        self._flushing = threading.Lock()

    def get(self, key: str, /) -> bytes | None:
        """Return a value, a kept-back one or a written one, that has not expired."""
        self._check_open()
        value = self._pending.find(key)
        if value is None:
            return self._fetch(key)
        return value.data if self._clock.monotonic() < value.until else None

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Keep a value for the next flush."""
        self._check_open()
        self._pending.put(key, value, seconds)

    def delete(self, key: str, /) -> None:
        """Forget a value at once."""
        self._check_open()
        # A flush that has begun would write the value again after it was removed: wait for its end.
        with self._flushing:
            self._pending.drop(key)
            self._remove(key)

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        """Add a record to a log: to `audit` at once, to others with the next flush."""
        self._check_open()
        check_size(record)
        if log.rpartition("/")[2] == AUDIT:
            self._write((), (Record(log, record, keep),))
        else:
            self._pending.append(Record(log, record, keep))

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, kept-back ones first."""
        self._check_open()
        # Between a flush's commit and its end a record is in both places, and would be told twice.
        with self._flushing:
            newest = self._pending.tail(log, limit)
            return newest + self._newest(log, limit - len(newest)) if len(newest) < limit else newest

    def flush(self) -> None:
        """Write what was kept back; where that fails, it is kept for the next time."""
        self._check_open()
        self._flush()

    def close(self) -> None:
        """Flush and let go of everything, also where the flush fails."""
        if self._closed:
            return
        try:
            self._flush()
        finally:
            self._closed = True
            self._let_go()

    def after_fork(self) -> None:
        """Begin anew, once in a process: several runners may say so; what is kept back is the parent's to write."""
        if self._process != os.getpid():
            self._begin()
            self._connect_anew()

    def _flush(self) -> None:
        with self._flushing:
            values, records = self._pending.batch()
            if values or records:
                self._write(values, [record for _, record in records])
                self._pending.written(values, records)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.url} is closed")

    @abstractmethod
    def _connect_anew(self) -> None:
        """Make new connections, in a forked child."""

    @abstractmethod
    def _fetch(self, key: str) -> bytes | None:
        """Return a written value that has not expired."""

    @abstractmethod
    def _remove(self, key: str) -> None:
        """Forget a written value."""

    @abstractmethod
    def _write(self, values: Writes, records: Records) -> None:
        """Write values (those that are over: remove) and records."""

    @abstractmethod
    def _newest(self, log: str, limit: int) -> list[bytes]:
        """Return the newest written records, newest first."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close all connections."""
