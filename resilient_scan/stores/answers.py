"""What a cache keeps outside its process: answers in the runner's store, found after a restart and by other processes.

Ages are measured by the store's wall time, the only time that two processes share. It may jump: an answer from the
future does not count as fresh, whatever it says itself, though it may still stand in for a failed execution. Once an
answer was seen here, it ages by the steady clock.

A scanner's answers are forgotten by a new *epoch*, a random mark in a document of its own: answers of another epoch are
not found. So nobody needs to know under which keys they are, and an answer that a process stores late, because it has
not heard of the new epoch yet, is not found either. They expire by themselves.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.stores import Store
from resilient_scan.stores.codec import Undecodable, decode_candidates, encode_candidates

SCHEMA = 2  # 1 had another codec
MAX_CLOCK_SKEW = 5.0  # seconds by which another machine's clock may be ahead
EPOCH_PREFIX = "answers/"  # of the documents that name the scanners' epochs
MAX_SEEN = 1_000  # answers whose age is measured by the steady clock


class _Row(msgspec.Struct, frozen=True):
    """An answer as it is stored: since when, for how many seconds it is fresh, and for how many it may be used.

    `epoch` is the one of its scanner when it was stored.
    """

    schema: int
    stored_at: float
    fresh: float
    stale: float
    data: bytes = b""
    epoch: bytes = b""


_encode, _decoder = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(_Row)


def new_epoch(store: Store, scanner: str) -> bytes:
    """Begin a new epoch of a scanner's answers, for all processes, and return it.

    Raises:
        StoreError: the store fails, and nothing is forgotten.
    """
    epoch = uuid.uuid4().bytes
    store.update(EPOCH_PREFIX + scanner, lambda _old, _now: (epoch, None))
    return epoch


class AnswerStore:
    """One scanner's answers in a store.

    No method raises: a store that fails is reported and counts as empty; an answer that cannot be stored stays in
    memory, with one warning.

    Args:
        store: where they are.
        scanner: the scanner's name.
        kind: the type of its candidates.
        identity: bytes that stand for its code and its settings, without secrets.
        on_error: called with the operation and the error when the store fails.
        clock: measures the age of what was seen in this process.
    """

    def __init__(
        self,
        store: Store,
        scanner: str,
        kind: type,
        identity: bytes,
        on_error: Callable[[str, StoreError], None],
        clock: Clock,
    ) -> None:
        self._store = store
        self._scanner = scanner
        self._kind = kind
        self._identity = hashlib.sha256(identity).digest()
        self._on_error = on_error
        self._clock = clock
        self._seen: dict[tuple[str, float], float] = {}  # when, on the steady clock, an answer was stored
        self._warned = False
        self._epoch = b""
        self._named = b"", self._name(b"")  # the last key that was asked for, and its name

    def adopt_epoch(self, epoch: bytes) -> bool:
        """Find and store answers of this epoch only, from now on; return whether it is another one than before."""
        before, self._epoch = self._epoch, epoch
        return before != epoch

    def address(self, key: bytes) -> str:
        """Return the name of the answer to `key`: the scanner, and a digest of its code, settings and what it reads."""
        named, name = self._named
        if named != key:  # a scan asks six times for the same
            name = self._name(key)
            self._named = key, name
        return name

    def _name(self, key: bytes) -> str:
        return f"{self._scanner}/{hashlib.sha256(self._identity + key).hexdigest()[:40]}"

    def stored_as(self, key: bytes) -> str:
        """Return the key under which the store has the answer to `key`."""
        return f"cache/{self.address(key)}"

    @property
    def mark(self) -> str:
        """What stands for the scanner's code, its settings and the epoch: with another one, no answer is found."""
        return hashlib.sha256(self._identity + self._epoch).hexdigest()[:20]

    def read(self, key: bytes, data: bytes, now: float, /) -> tuple[Sequence[Any], float, float, float] | None:
        """Return what the store had for `key` at its time `now`.

        `None` if it is damaged, or of another version or type.

        Returns:
            Candidates, age, and for how many more seconds they are fresh and usable.
        """
        try:
            row = _decoder.decode(data)
            found = decode_candidates(self._kind, row.data) if row.schema == SCHEMA else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Undecodable):
            return None
        age = now - row.stored_at
        if row.epoch != self._epoch:
            return None
        if found is None or not 0 <= row.fresh <= row.stale < 1e10 or not -1e10 < age < 1e10:
            return None
        since = self._age(self.address(key), row.stored_at, max(0.0, age))
        return found, since, 0.0 if age < -MAX_CLOCK_SKEW else row.fresh - since, row.stale - since

    def keep(self, key: bytes, candidates: Sequence[Any], fresh: float, stale: float, /) -> None:
        """Store an answer that is fresh for `fresh` seconds from now and usable for `stale`."""
        try:
            data = encode_candidates(self._kind, candidates)
        except TypeError as error:
            if not self._warned:
                self._warned = True
                _log.warning("%s: its answers are cached in memory only, %s", self._scanner, error)
            self._delete(key)  # an older answer would outlive this one
            return
        self._put(key, _Row(SCHEMA, self._now(), fresh, stale, data, self._epoch))

    def recall(self, key: bytes, /) -> bytes | None:
        """Return the bytes that the scanner has remembered under `key`, unless they have expired, or were forgotten."""
        try:
            data = self._store.get(self.stored_as(key))
            row = None if data is None else _decoder.decode(data)
            return row.data if row is not None and (row.schema, row.epoch) == (SCHEMA, self._epoch) else None
        except StoreError as error:
            self._on_error("get", error)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # damaged, or of another version
        return None

    def remember(self, key: bytes, data: bytes, seconds: float, /) -> None:
        """Store bytes that the scanner wants to find again within `seconds`."""
        row = _Row(SCHEMA, self._now(), seconds, seconds, data, self._epoch)
        try:
            self._store.put(self.stored_as(key), _encode(row), seconds)
        except StoreError as error:
            self._on_error("put", error)

    def _delete(self, key: bytes) -> None:
        try:
            self._store.delete(self.stored_as(key))
        except StoreError as error:
            self._on_error("delete", error)

    def _put(self, key: bytes, row: _Row) -> None:
        address = self.address(key)
        self._age(address, row.stored_at, 0.0)
        try:
            self._store.put(f"cache/{address}", _encode(row), row.stale)
        except StoreError as error:
            self._on_error("put", error)

    def _now(self) -> float:
        """Return the store's time; while it does not answer, this machine's: the row is written when it is back."""
        try:
            return self._store.now()
        except StoreError as error:
            self._on_error("now", error)
            return self._clock.time()

    def _age(self, address: str, stored_at: float, age: float) -> float:
        """Return the age of an answer by the steady clock, given the `age` it had when it was first seen here."""
        now = self._clock.monotonic()
        while len(self._seen) >= MAX_SEEN:
            self._seen.pop(next(iter(self._seen)), None)
        return now - self._seen.setdefault((address, stored_at), now - age)
