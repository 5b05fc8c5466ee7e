"""What stores have in common that write values and records later, in batches."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores import AUDIT

# Values that expire, in memory and bounded: the memory store's own, and what the other stores have yet to write.

MOST_VALUES = 20_000
MOST_BYTES = 64 * 1024 * 1024
MOST_BYTES_OF_ONE = 16 * 1024 * 1024
MOST_RECORDS = 1_000


class Value(msgspec.Struct, frozen=True, gc=False):
    """A value, and the instant on the monotonic clock at which it is over."""

    data: bytes
    until: float


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record for a log that keeps the newest `keep`."""

    log: str
    data: bytes
    keep: int


class Values:
    """At most 20,000 values of 64 MiB in all; the oldest make room. Not for several threads at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, Value] = OrderedDict()
        self._bytes = 0

    def find(self, key: str) -> Value | None:
        """Return what is kept, whether or not it is over."""
        return self._kept.get(key)

    def put(self, key: str, data: bytes, seconds: float) -> None:
        """Keep a value for so long."""
        check_size(data)
        self.drop(key)
        self._kept[key] = Value(data, self._clock.monotonic() + seconds)
        self._bytes += len(data)
        while len(self._kept) > MOST_VALUES or self._bytes > MOST_BYTES:
            self.drop(next(iter(self._kept)))

    def drop(self, key: str, value: Value | None = None) -> None:
        """Forget a value; where one is given, only that."""
        kept = self._kept.get(key)
        if kept is not None and (value is None or kept is value):
            del self._kept[key]
            self._bytes -= len(kept.data)

    def items(self) -> list[tuple[str, Value]]:
        """Return all, those that are over included."""
        return list(self._kept.items())


class Pending:
    """What is to be written with the next flush, and can be read meanwhile.

    Bounded: at most 20,000 values of 64 MiB and 1,000 records, the oldest are forgotten first.
    """

    def __init__(self, clock: Clock) -> None:
        self._lock = threading.Lock()
        self._values = Values(clock)
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._number = 0

    def find(self, key: str) -> Value | None:
        """Return a value that is still to be written; one that is over hides the older one in the store."""
        with self._lock:
            return self._values.find(key)

    def put(self, key: str, data: bytes, seconds: float) -> None:
        """Keep a value for the next flush."""
        with self._lock:
            self._values.put(key, data, seconds)

    def drop(self, key: str) -> None:
        """Do not write a value after all."""
        with self._lock:
            self._values.drop(key)

    def append(self, record: Record) -> None:
        """Keep a record for the next flush."""
        with self._lock:
            self._number += 1
            self._records[self._number] = record
            while len(self._records) > MOST_RECORDS:
                self._records.popitem(last=False)

    def tail(self, log: str, limit: int) -> list[bytes]:
        """Return the newest records of a log that are still to be written, newest first."""
        with self._lock:
            ours = (record.data for record in reversed(self._records.values()) if record.log == log)
            return list(islice(ours, limit))

    def batch(self) -> tuple[list[tuple[str, Value]], list[tuple[int, Record]]]:
        """Return all there is to write; it stays readable until `written`."""
        with self._lock:
            return self._values.items(), list(self._records.items())

    def written(self, values: list[tuple[str, Value]], records: list[tuple[int, Record]]) -> None:
        """Forget what was written, but not what has replaced it since."""
        with self._lock:
            for key, value in values:
                self._values.drop(key, value)
            for number, _ in records:
                self._records.pop(number, None)


def check_size(data: bytes) -> None:
    """Raise `StoreError` for more than 16 MiB in one piece."""
    if len(data) > MOST_BYTES_OF_ONE:
        raise StoreError(f"a value of {len(data):,} bytes is too big for the store, it takes {MOST_BYTES_OF_ONE:,}")


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
