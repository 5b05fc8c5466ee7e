"""What a runner remembers in its store after its process has ended.

The durations of scans, what answers used to be like, the last scans, and the history of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

from resilient_scan.errors import StoreError, is_number
from resilient_scan.results import RunReport, plain
from resilient_scan.stores import Store
from resilient_scan.stores.groups import fetch_many

SCHEMA = 1
KEPT_FOR = 30 * 86_400.0  # seconds, of durations and last scans
MAX_SCANS = 10  # of a scanner
MAX_RUNS = 1_000
REST_INTERVAL = 10.0  # seconds between two writes of scans for which nothing was done
TURNED_AWAY = frozenset({"rejected", "disabled", "skipped"})  # statuses of scans that say nothing about the scanner


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of a past scan.

    Attributes:
        number: counted from 1.
        duration: seconds it took.
        outcome: how it ended.
        failed: whether it failed.
        pause: seconds of backoff between it and the next one.
        where: where it failed, such as `at feeds.py:42 in parse`; may be empty.
    """

    number: int
    duration: float
    outcome: str
    failed: bool
    pause: float | None = None
    where: str = ""


class Past(msgspec.Struct, frozen=True):
    """A scan that has ended.

    Attributes:
        run_id: of its run.
        started_at: epoch seconds.
        status, found, duration, queue_wait, age, partial, dropped: as in its result.
        cache: what the cache had for it: `hit`, `stale`, `miss`, `shared`, `bypass`, or `""` if it was not consulted.
        attempts: all of them, in order.
        allowed: how many attempts a scan may have.
        error: type and message, or `""`.
        probe: whether it tested a scanner that was out of service.
        where: where that error was raised, such as `at feeds.py:42 in parse`; may be empty.
        traceback: of that error. A store keeps that of the newest failure only.
        blame: whose fault that error is; may be empty.
    """

    run_id: str
    started_at: float
    status: str
    found: int
    duration: float
    queue_wait: float
    age: float | None
    partial: bool
    dropped: int
    cache: str
    attempts: tuple[Attempt, ...]
    allowed: int
    error: str
    probe: bool = False
    where: str = ""
    traceback: str = ""
    blame: str = ""


class ScanRecord(msgspec.Struct, frozen=True, array_like=True):
    """One scan of a past run: its status, seconds, how many candidates it had, and the class of its error, or `""`."""

    status: str
    duration: float
    found: int
    error: str = ""


class RunRecord(msgspec.Struct, frozen=True):
    """One run of the past.

    Attributes:
        run_id, started_at, duration, complete: as in its report.
        scans: by scanner's name.
    """

    run_id: str
    started_at: float
    duration: float
    complete: bool
    scans: dict[str, ScanRecord]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many scans ended in each status that occurs."""
        found: dict[str, int] = {}
        for scan in self.scans.values():
            found[scan.status] = found.get(scan.status, 0) + 1
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data, with the same names."""
        scans = {
            name: {field: getattr(scan, field) for field in scan.__struct_fields__} for name, scan in self.scans.items()
        }
        return {**plain(self), "counts": self.counts, "scans": scans}


_Count = Annotated[int, msgspec.Meta(ge=0)]


class Learned(msgspec.Struct, frozen=True, array_like=True):
    """What one scanner's trusted answers were like (`layers.suspicion`).

    Attributes:
        mark: stands for the scanner's code, its settings and its epoch; another mark means that this is out of date.
        answers: how many there were.
        empty: how many of them were empty.
        in_a_row: empty ones since the last that was not, which are not counted yet.
        fewest: candidates in the smallest that was not empty; 0: there was none.
    """

    mark: str
    answers: _Count = 0
    empty: _Count = 0
    in_a_row: _Count = 0
    fewest: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Remembered(msgspec.Struct, frozen=True):
    """What a runner knows from the runs before it, by scanner's name.

    Attributes:
        expected: seconds that a scan takes.
        learned: what its answers were like.
        outcomes: which of its last executions failed, a bit each (`layers.outcomes`).
    """

    expected: Mapping[str, float]
    learned: Mapping[str, Learned]
    outcomes: Mapping[str, bytes] = MappingProxyType({})


class _Kept(msgspec.Struct, frozen=True):
    """What is stored under one key, or as one record of the log."""

    schema: int
    expected: dict[str, float] = {}
    learned: dict[str, Learned] = {}
    outcomes: dict[str, bytes] = {}
    past: tuple[Past, ...] = ()
    run: RunRecord | None = None


class _Unread(msgspec.Struct, frozen=True):
    """Last scans as they are stored, each still in its bytes."""

    schema: int
    past: tuple[msgspec.Raw, ...] = ()


_encode, _decoder = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(_Kept)
_unread = msgspec.msgpack.Decoder(_Unread)


class RunHistory:
    """Store what a run brought, and find it again.

    Nothing here may stop a run: a store that fails is reported, and what it held counts as forgotten; so does what
    cannot be read, because another version wrote it or it is damaged.

    Args:
        store: where it is stored.
        on_error: called with the operation and the error when the store fails.
    """

    def __init__(self, store: Store, on_error: Callable[[str, StoreError], None]) -> None:
        self._store = store
        self._on_error = on_error
        self._rest_at: float | None = None

    def remembered(self) -> Remembered:
        """Return what is known of earlier executions: one read for all of it."""
        return _remembered(_decoded(self._get("expected").get("expected")))

    def past(self, name: str) -> tuple[Past, ...]:
        """Return the last scans of a scanner, newest first, at most 10."""
        return _decoded(self._get(f"last/{name}").get(f"last/{name}")).past

    def rest_is_due(self, now: float) -> bool:
        """Say whether the scans that the cache has answered are to be kept now; on one thread only."""
        if self._rest_at is not None and now < self._rest_at:
            return False
        due, self._rest_at = self._rest_at is not None, now + REST_INTERVAL
        return due

    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        """Return the last runs, newest first.

        Raises:
            StoreError: the store fails.
        """
        found = (_decoded(record).run for record in self._store.tail("runs", limit))
        return tuple(run for run in found if run is not None)

    def keep(
        self,
        report: RunReport,
        expected: Mapping[str, float],
        past: Mapping[str, Sequence[Past]],
        learned: Mapping[str, Learned] = MappingProxyType({}),
        outcomes: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Store what a run brought; it is written with the store's next flush.

        Two processes that end a run at the same time may each read the last scans before the other writes its own, and
        one of them is lost. That is accepted: these help to explain and to order scans, and decide nothing.

        Args:
            report: of the run.
            expected: how many seconds a scan takes, by scanner's name.
            past: its scans that are not stored yet, newest first, by scanner's name.
            learned: what its answers were like, by scanner's name.
            outcomes: which of its last executions failed, by scanner's name.
        """
        try:
            self._keep(past, expected, learned, outcomes)
            self._store.append("runs", _encode(_Kept(SCHEMA, run=_run(report))), MAX_RUNS)
        except StoreError as error:
            self._on_error("put", error)

    def keep_rest(self, past: Mapping[str, Sequence[Past]]) -> None:
        """Store scans that have not been stored with the run that they were part of."""
        try:
            self._keep(past, {}, {}, {})
        except StoreError as error:
            self._on_error("put", error)

    def _keep(
        self,
        past: Mapping[str, Sequence[Past]],
        expected: Mapping[str, float],
        learned: Mapping[str, Learned],
        outcomes: Mapping[str, bytes],
    ) -> None:
        changed = ("expected",) if expected or learned or outcomes else ()
        if not past and not changed:
            return
        stored = self._get(*changed, *(f"last/{name}" for name in past))  # with what other processes have found
        for name, scans in past.items():
            self._store.put(f"last/{name}", _with_older(scans, stored.get(f"last/{name}")), KEPT_FOR)
        if changed:
            before = _remembered(_decoded(stored.get("expected")))
            failed = {name: bits for name, bits in {**before.outcomes, **outcomes}.items() if bits}
            kept = _Kept(SCHEMA, {**before.expected, **expected}, {**before.learned, **learned}, failed)
            self._store.put("expected", _encode(kept), KEPT_FOR)

    def _get(self, *keys: str) -> dict[str, bytes]:
        """Return what is stored under the keys: one read for all."""
        try:
            return fetch_many(self._store, keys)
        except StoreError as error:
            self._on_error("get", error)
            return {}


def _remembered(kept: _Kept) -> Remembered:
    expected = {name: took for name, took in kept.expected.items() if is_number(took, 0)}
    return Remembered(expected, kept.learned, kept.outcomes)


def _with_older(scans: Sequence[Past], stored: bytes | None) -> bytes:
    """Return the bytes of the newest scans, of which some are stored already.

    Those that are stored are read only where it depends on them which are kept: this is done for each scanner at the
    end of each run, and to read ten of them takes longer than all the rest.
    """
    newest = scans[:MAX_SCANS]
    if any(scan.traceback for scan in newest) or all(scan.status in TURNED_AWAY for scan in newest):
        last = _with_one_traceback(_newest((*scans, *_decoded(stored).past)))
        return _encode(_Kept(SCHEMA, past=last))
    rest = _older(stored)[: MAX_SCANS - len(newest)]
    return _encode(_Unread(SCHEMA, (*(msgspec.Raw(_encode(scan)) for scan in newest), *rest)))


def _older(stored: bytes | None) -> tuple[msgspec.Raw, ...]:
    try:
        older = None if stored is None else _unread.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    return () if older is None or older.schema != SCHEMA else older.past


def _newest(scans: tuple[Past, ...]) -> tuple[Past, ...]:
    """Return the scans to keep: the newest ones, the last of them that was not turned away in any case.

    A scanner that is out of service ends `disabled` in each run. After ten runs nothing would say how it failed.
    """
    kept, older = scans[:MAX_SCANS], scans[MAX_SCANS:]
    if all(scan.status in TURNED_AWAY for scan in kept):
        real = next((scan for scan in older if scan.status not in TURNED_AWAY), None)
        return kept if real is None else (*kept[:-1], real)
    return kept


def _with_one_traceback(scans: Iterable[Past]) -> tuple[Past, ...]:
    """Leave the traceback to the newest scan that has one: the record is written again in each run."""
    scans = tuple(scans)
    with_one = [scan for scan in scans if scan.traceback]
    if len(with_one) <= 1:
        return scans
    return tuple(
        msgspec.structs.replace(scan, traceback="") if scan.traceback and scan is not with_one[0] else scan
        for scan in scans
    )


def _decoded(data: bytes | None) -> _Kept:
    if data is None:
        return _Kept(SCHEMA)
    try:
        kept = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Kept(SCHEMA)
    return kept if kept.schema == SCHEMA else _Kept(SCHEMA)


def _run(report: RunReport) -> RunRecord:
    scans = {
        name: ScanRecord(
            result.status,  # written as its value, which the encoder finds faster than Python does
            result.duration,
            len(result.candidates),
            "" if result.error is None else result.error.kind,
        )
        for name, result in report.results.items()
    }
    return RunRecord(report.run_id, report.started_at, report.duration, report.complete, scans)
