"""Values that expire, in memory and bounded: the memory store's own, and what the other stores have yet to write."""

from __future__ import annotations

import threading
from collections import OrderedDict
from itertools import islice

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError

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
