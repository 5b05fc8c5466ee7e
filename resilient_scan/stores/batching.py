"""What stores on a disk or a server have in common: values and records are written later, in batches.

`put` and `append` are called while scans run, and must not wait for a disk. `Pending` holds what is not written yet;
reads look there first, so that a process finds its own answers at once. `Values` bounds that, and is also where the
memory store has its values.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores import AUDIT, OVERRIDES

MAX_VALUES = 20_000
MAX_BYTES = 64 * 1024 * 1024  # of all values together
MAX_VALUE_BYTES = 16 * 1024 * 1024
MAX_PENDING_RECORDS = 1_000


class Value(msgspec.Struct, frozen=True, gc=False):
    """A value, and the instant on the monotonic clock at which it expires."""

    data: bytes
    until: float


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record for a log that keeps the newest `keep`."""

    log: str
    data: bytes
    keep: int


class Values:
    """At most 20,000 values, of 64 MiB in all; the oldest make room. The owner holds a lock around each call."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, Value] = OrderedDict()
        self.size = 0  # of all values together, in bytes

    def find(self, key: str) -> Value | None:
        """Return a value, even if it has expired."""
        return self._kept.get(key)

    def put(self, key: str, data: bytes, seconds: float) -> None:
        """Keep a value for `seconds`."""
        check_size(data)
        self.drop(key)
        self._kept[key] = Value(data, self._clock.monotonic() + seconds)
        self.size += len(data)
        while len(self._kept) > MAX_VALUES or self.size > MAX_BYTES:
            self.drop(next(iter(self._kept)))

    def drop(self, key: str, value: Value | None = None) -> None:
        """Forget a value; if `value` is given, only if that one is still there."""
        kept = self._kept.get(key)
        if kept is not None and (value is None or kept is value):
            del self._kept[key]
            self.size -= len(kept.data)

    def items(self) -> list[tuple[str, Value]]:
        """Return all values, including those that have expired."""
        return list(self._kept.items())


class Pending:
    """What the next flush is to write, and what can be read until then.

    At most 20,000 values of 64 MiB in all, and 1,000 records; where the store does not come back, the oldest are
    dropped.
    """

    def __init__(self, clock: Clock) -> None:
        self._lock = threading.Lock()
        self._values = Values(clock)
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._number = 0

    @property
    def size(self) -> int:
        """How many bytes of values wait to be written."""
        return self._values.size

    def find(self, keys: Iterable[str]) -> dict[str, Value]:
        """Return values that are not written yet, even expired ones: they hide older ones in the store."""
        with self._lock:
            return {key: value for key in keys if (value := self._values.find(key)) is not None}

    def put(self, key: str, data: bytes, seconds: float) -> None:
        """Keep a value for the next flush."""
        with self._lock:
            self._values.put(key, data, seconds)

    def drop(self, key: str) -> None:
        """Drop a value that was to be written."""
        with self._lock:
            self._values.drop(key)

    def append(self, record: Record) -> None:
        """Keep a record for the next flush."""
        with self._lock:
            self._number += 1
            self._records[self._number] = record
            while len(self._records) > MAX_PENDING_RECORDS:
                self._records.popitem(last=False)

    def tail(self, log: str, limit: int) -> list[bytes]:
        """Return the newest records of a log that are not written yet, newest first."""
        with self._lock:
            ours = (record.data for record in reversed(self._records.values()) if record.log == log)
            return list(islice(ours, limit))

    def batch(self) -> tuple[list[tuple[str, Value]], list[tuple[int, Record]]]:
        """Return everything there is to write; it stays readable until `written`."""
        with self._lock:
            return self._values.items(), list(self._records.items())

    def written(self, values: list[tuple[str, Value]], records: list[tuple[int, Record]]) -> None:
        """Forget what was written, but not what has replaced it since.

        The flush takes value 1 of a key, and while it writes, a thread puts value 2. Were the key forgotten when the
        flush ends, value 2 would never be written, and value 1 would be found again.
        """
        with self._lock:
            for key, value in values:
                self._values.drop(key, value)
            for number, _ in records:
                self._records.pop(number, None)


def check_size(data: bytes) -> None:
    """Raise `StoreError` for more than 16 MiB in one piece."""
    if len(data) > MAX_VALUE_BYTES:
        raise StoreError(f"a value of {len(data):,} bytes is too big for the store, it takes {MAX_VALUE_BYTES:,}")


Writes = Sequence[tuple[str, Value]]
Records = Sequence[tuple[int, Record]]
"""Each with a number that is higher than those before it and stays the same when it is tried again; 0: it is not."""


def to_bytes(name: str) -> bytes:
    """Return a key or an owner as bytes, even one with half of a surrogate pair, which plain UTF-8 refuses."""
    return name.encode("utf-8", "surrogatepass")


def to_text(name: bytes) -> str:
    """Return a key as text again."""
    return name.decode("utf-8", "surrogatepass")


class BatchingStore(ABC):
    """A store that holds values and records back until they are flushed, and finds them there until then."""

    shared = True
    has_blocks = True  # see `groups.BlockStore`

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = url
        self._clock = clock
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._pending = Pending(self._clock)
        self._flushing = threading.Lock()

    def get(self, key: str, /) -> bytes | None:
        """Return a value that has not expired, whether it is written yet or not."""
        return self.fetch_many((key,)).get(key)

    def fetch_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """Return those of the values that are there and have not expired: one read for all of them."""
        self._check_open()
        ours, rest = self._unwritten(keys)
        return ours | self._fetch(rest) if rest else ours

    def _unwritten(self, keys: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
        """Return those of the values that are not written yet, and the keys of the others."""
        ours, now = self._pending.find(keys), self._clock.monotonic()
        rest = [key for key in keys if key not in ours]
        return {key: value.data for key, value in ours.items() if now < value.until}, rest

    @property
    def held_back(self) -> int:
        """How many bytes of values the next flush is to write."""
        return self._pending.size

    def put(self, key: str, value: bytes, seconds: float, /) -> None:
        """Store a value with the next flush."""
        self._check_open()
        self._pending.put(key, value, seconds)

    def delete(self, key: str, /) -> None:
        """Forget a value at once."""
        self._check_open()
        # A flush under way has taken the value from `_pending` already. It would write the value after it was removed
        # here, and a forgotten answer would come back. So wait for the flush to end.
        with self._flushing:
            self._pending.drop(key)
            self._remove(key)

    def lease(self, key: str, owner: str, seconds: float, /) -> bool:
        """Take a lease, or renew one's own; `False` if another owner holds it."""
        return not self.exchange((key,), owner, seconds)

    def release(self, key: str, owner: str, /) -> None:
        """Give one's own lease back; another owner's is left alone."""
        self.exchange((), owner, 0.0, (key,))

    def append(self, log: str, record: bytes, keep: int, /) -> None:
        """Add a record to a log: to those of the audit trail at once, to others with the next flush."""
        self._check_open()
        check_size(record)
        if log.rpartition("/")[2] in {AUDIT, OVERRIDES}:
            self._write((), ((0, Record(log, record, keep)),))
        else:
            self._pending.append(Record(log, record, keep))

    def tail(self, log: str, limit: int, /) -> list[bytes]:
        """Return the newest records of a log, those not written yet first."""
        self._check_open()
        # Between a flush's commit and its end a record is in both places, and would be returned twice.
        with self._flushing:
            newest = self._pending.tail(log, limit)
            return newest + self._newest(log, limit - len(newest)) if len(newest) < limit else newest

    def flush(self) -> None:
        """Write what was held back; if that fails, the next flush tries again."""
        self._check_open()
        self._flush()

    def close(self) -> None:
        """Flush and close all connections, even if the flush fails."""
        if self._closed:
            return
        try:
            self._flush()
        finally:
            self._closed = True
            self._disconnect()

    def after_fork(self) -> None:
        """Start over in a forked child; what was held back is the parent's to write.

        Once per process: of two runners that share the store, the second would drop what the first has put since.
        """
        if self._process != os.getpid():
            self._start()
            self._reconnect()

    def _flush(self) -> None:
        with self._flushing:
            values, records = self._pending.batch()
            if values or records:
                self._write(values, records)
                self._pending.written(values, records)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.url} is closed")

    @abstractmethod
    def exchange(
        self, take: Sequence[str], owner: str, seconds: float, give_back: Sequence[str] = (), dead: Collection[str] = ()
    ) -> dict[str, str]:
        """Take, renew and give back leases in one transaction; see `groups.GroupLeases`."""

    @abstractmethod
    def _reconnect(self) -> None:
        """Make new connections, in a forked child."""

    @abstractmethod
    def _fetch(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return those of the values that are written and have not expired."""

    @abstractmethod
    def _remove(self, key: str) -> None:
        """Forget a written value."""

    @abstractmethod
    def _write(self, values: Writes, records: Records) -> None:
        """Write values, or remove those that have expired, and write records.

        It may be called again with the same, where an answer was lost on its way: no record may be there twice then.
        """

    @abstractmethod
    def _newest(self, log: str, limit: int) -> list[bytes]:
        """Return the newest written records, newest first."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close all connections."""
