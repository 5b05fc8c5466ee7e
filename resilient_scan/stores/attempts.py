"""The history of attempts: when each began, how long it took, how it ended, and when a hung thread came back.

    attempt ends --> row, in memory --> segment in the journal --> block of its scanner and day
                 (any thread)       (with a run's other writes)  (once the journal is long)

A thread that reports an attempt only adds a row to a queue. The lease keeper's thread packs the rows of a whole run
into one *segment* and appends it to a log, the journal: one record more in a transaction that is made anyway. When the
journal has some dozens of them, they are *folded* into the *blocks*, one for each scanner and UTC day. That takes a
quarter of a millisecond for each scanner, so a thread of its own does it: leases must be renewed meanwhile.

Nothing is lost or counted twice, whichever process is killed, and when. Segments are only ever appended, and only a
fold takes them out, always the oldest ones, in the transaction that writes the blocks. Take two processes that fold the
same segments: the second finds others at the journal's beginning, and writes nothing. So the blocks that it has read
are those that it replaces: none of them changes without the journal's beginning.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Final

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.events import TIMEOUT, AttemptEnded, Event, LateCompletion
from resilient_scan.stores import Store
from resilient_scan.stores.columns import (
    DAY,
    DAY_MS,
    RETURNED,
    Columns,
    Measured,
    Unreadable,
    measured,
    packed,
    unpacked,
)
from resilient_scan.stores.groups import BlockReader, BlockStore
from resilient_scan.stores.health import limit_waits
from resilient_scan.stores.leases import LeaseKeeper

JOURNAL: Final = "attempts"
MAX_SEGMENTS: Final = 10_000  # of a journal that nobody can fold; then the oldest go
FOLD_AT: Final = 64  # segments that a process has appended
FOLDED_AT_ONCE: Final = 256
MAX_WAITING: Final = 4_096  # rows that wait for the end of their run
MAX_WAIT: Final = 60.0  # seconds for which they do
MAX_HUNG: Final = 1_000  # attempts that have timed out, whose threads may come back
MAX_RECALLED: Final = 1_000  # scanners whose blocks are read when nothing else says how long they take
WEIGHT: Final = 32  # executions that a mean is of, at most
RECALLED_WEIGHT: Final = 8  # and that a remembered one is of
ALL: Final = 1_000_000  # days
MAX_TRIES: Final = 5  # of a read that a fold comes into

_Key = tuple[str, str, int]  # scanner, run and number of an attempt
_Noted = tuple[str, str, int, float, float, str]  # those, when it ended (epoch seconds), its seconds and its outcome
_OUTCOME: Final = 5


class _Parts(dict[tuple[str, int], Columns]):
    """Attempts by scanner and day."""

    def add(self, scanner: str, begin: float, seconds: float, outcome: str, number: int) -> None:
        """Add an attempt that began at `begin`, epoch seconds."""
        day, ms = divmod(max(0, round(begin * 1000)), DAY_MS)
        self.of(scanner, day).add(ms, seconds, outcome, number)

    def of(self, scanner: str, day: int) -> Columns:
        """Return a scanner's attempts of a day, to add to."""
        if (scanner, day) not in self:
            self[scanner, day] = Columns()
        return self[scanner, day]


class AttemptReader:
    """Find the attempts that a store remembers, those of all processes.

    A block or segment that is damaged, or that another version wrote, is left out, with one warning.

    Args:
        store: where they are.
    """

    def __init__(self, store: BlockReader) -> None:
        self._store = store
        self._reported: set[str] = set()

    def read(self, names: Collection[str], since: int = 0, most: int = ALL) -> dict[str, dict[int, Columns]]:
        """Return the attempts of some scanners by day, of the newest `most` days since the day `since`.

        What is not written yet is among them, if this process is to write it.

        Raises:
            StoreError: the store fails.
        """
        segments, blocks = self._at_one_instant(names, since, most)
        found: dict[str, dict[int, Columns]] = {name: {} for name in names}
        for name, days in blocks.items():
            for day, data in days.items():
                if (columns := self._block(name, day, data)) is not None:
                    found[name][day] = columns
        for segment in segments:
            for (name, day), columns in self._unpacked(segment, "some attempts").items():
                if name in found and day >= since:
                    found[name].setdefault(day, Columns()).extend(columns)
        return {name: {day: days[day].ordered() for day in sorted(days)} for name, days in found.items()}

    def _at_one_instant(
        self, names: Collection[str], since: int, most: int
    ) -> tuple[list[bytes], dict[str, dict[int, bytes]]]:
        """Return the journal and the blocks as they were before or after a fold, never both.

        A fold between the two reads would let us find its attempts twice, or not at all. It takes away the journal's
        oldest segment, so if that is still there after the second read, there was none.
        """
        logs = {f"{JOURNAL}/{name}": name for name in names}
        tries = 0
        while True:
            segments = self._store.tail(JOURNAL, MAX_SEGMENTS)[::-1]
            blocks = self._store.blocks(list(logs), since, most)
            tries += 1
            if tries == MAX_TRIES or not segments or self._store.oldest(JOURNAL, 1) == segments[:1]:
                return segments, {logs[log]: days for log, days in blocks.items()}

    def _block(self, name: str, day: int, data: bytes) -> Columns | None:
        """Return the attempts of a block; `None`: it is damaged."""
        return self._unpacked(data, f"the attempts of {name} on day {day}").get((name, day))

    def _unpacked(self, data: bytes, what: str) -> dict[tuple[str, int], Columns]:
        try:
            return unpacked(data)
        except Unreadable as error:
            if what not in self._reported:
                self._reported.add(what)
                _log.warning("the store %s has lost %s: %s", self._store.url, what, error)
            return {}

    def measured(self, names: Collection[str], days: int) -> dict[str, Measured]:
        """Return how long the attempts of some scanners took in the last days; those without any are left out.

        Raises:
            StoreError: the store fails.
        """
        since = int(self._store.now() // DAY) - days
        found = {name: measured(blocks, days) for name, blocks in self.read(names, since).items()}
        return {name: each for name, each in found.items() if each.count}


class AttemptHistory(AttemptReader):
    """Listen to one runner's attempts, and keep them in its store.

    No method raises: a store that fails is reported.

    Args:
        store: where they are kept; one that has blocks.
        clock: dates what is not dated.
        seconds: for how long they are kept, > 0; whole days.
        leases: has the thread that brings them to the store.
        random: says when a process that ends soon is the one to fold.
        on_error: called with the operation and the error when the store fails.
    """

    prompt: Final = True
    events: Final = (AttemptEnded, LateCompletion)

    def __init__(
        self,
        store: Store,
        clock: Clock,
        seconds: float,
        leases: LeaseKeeper,
        random: Random,
        on_error: Callable[[str, StoreError], None],
    ) -> None:
        assert isinstance(store, BlockStore)  # noqa: S101 - see `has_blocks`
        super().__init__(store)
        self._store: BlockStore = store
        self._clock = clock
        self._days = math.ceil(seconds / DAY)
        self._leases = leases
        self._on_error = on_error
        self._waiting: deque[_Noted] = deque()
        self._due = math.inf  # when the first of them has waited for long enough, in epoch seconds
        self._asked = False  # whether the lease keeper's thread is to drain them before their run ends
        # On that thread only; so there is no lock. A process of one run appends one segment and ends: by chance, one in
        # 64 of them folds what all have appended, without asking the store how much that is.
        self._segments = int(random.random() * FOLD_AT)
        self._folder: threading.Thread | None = None
        self._finished = False
        self._hung: dict[_Key, list[float]] = {}
        self._late: list[_Noted] = []  # threads that are back, whose timeouts are not known yet
        self._means: dict[str, tuple[float, float]] = {}  # executions, and the seconds that they took

    # on the thread where something happens

    def __call__(self, event: Event) -> None:
        """Take note of an attempt, or of a thread that is back."""
        if type(event) is AttemptEnded:
            at = event.at or self._clock.time()
            row = (event.scanner, event.run_id, event.attempt, at, event.duration, event.outcome)
        elif type(event) is LateCompletion:
            at = self._clock.time()
            row = (event.scanner, event.run_id, event.attempt, at, event.duration, RETURNED)
        else:
            return
        waiting = self._waiting
        waiting.append(row)
        count = len(waiting)
        if count == 1:
            self._due = at + MAX_WAIT
        elif (at >= self._due or count >= MAX_WAITING) and not self._asked:  # a run that lasts
            self._asked = True
            self._leases.flush(0.0, self.drain, written=False)

    # on the lease keeper's thread

    def drain(self) -> None:
        """Put what was noted into the store, to be written with its next flush."""
        self._asked = False  # before they are taken: one that comes now asks again, if need be
        waiting = self._waiting
        parts = self._parts([waiting.popleft() for _ in range(len(waiting))])
        if not parts:
            return
        for (name, _), columns in parts.items():
            self._learn(name, *columns.executions())
        try:
            self._store.append(JOURNAL, packed(parts), MAX_SEGMENTS)
        except StoreError as error:
            self._on_error("append", error)
        self._segments += 1
        if self._segments >= FOLD_AT:
            self._segments = 0
            self._start_fold()

    def _start_fold(self) -> None:
        if self._folder is None or not self._folder.is_alive():
            self._folder = threading.Thread(target=self._fold, name="resilient-scan-history", daemon=True)
            with suppress(RuntimeError):  # no thread can be started: another process folds, or this one later
                self._folder.start()

    def finish(self, timeout: float) -> None:
        """Put what is left into the store, before it is closed; a fold that takes longer than `timeout` is given up.

        The segments that it would have folded stay as they are.
        """
        self.drain()
        if self._late:  # there is no next time
            self.drain()
        if self._folder is not None and self._folder.ident is not None:
            self._folder.join(timeout)
        self._finished = True

    def _parts(self, rows: Iterable[_Noted]) -> dict[tuple[str, int], Columns]:
        """Sort what was noted into columns."""
        parts = _Parts()
        before, self._late = self._late, []
        for noted in rows:
            if noted[_OUTCOME] == RETURNED:
                self._late.append(noted)
                continue
            scanner, run_id, number, at, seconds, outcome = noted
            parts.add(scanner, at - seconds, seconds, outcome, number)
            if outcome == TIMEOUT:
                self._note_hung((scanner, run_id, number), at - seconds)
        # A thread may be back before its timeout is reported: the run's thread reports that, and its reader may be
        # slow. So what has no timeout yet waits for the next time, once.
        self._late = [noted for noted in self._late if not self._add_return(parts, noted, wait=True)]
        for noted in before:
            self._add_return(parts, noted, wait=False)
        return {key: columns.ordered() for key, columns in parts.items()}

    def _add_return(self, parts: _Parts, noted: _Noted, *, wait: bool) -> bool:
        """Add a thread's return to the attempt that it made; `False`: that is not known yet, and may be soon."""
        scanner, run_id, number, at, age, _ = noted
        begin = self._begin_of((scanner, run_id, number), at - age)
        if begin is None:
            if wait:
                return False
            begin = at - age
        # The age counts from the begin of the thread's work, which may have made other attempts before.
        since = at - begin
        parts.add(scanner, begin, since if number > 1 and 0 < since < age else age, RETURNED, number)
        return True

    def _note_hung(self, key: _Key, begin: float) -> None:
        """Remember when an attempt began whose thread may come back; the oldest are forgotten."""
        begins = self._hung.setdefault(key, [])  # the inputs of a map have one key
        begins.append(begin)
        del begins[:-MAX_HUNG]
        while len(self._hung) > MAX_HUNG:
            del self._hung[next(iter(self._hung))]

    def _begin_of(self, key: _Key, about: float) -> float | None:
        """Return when the attempt began whose thread is back: of several inputs of a map, the likeliest one."""
        begins = self._hung.pop(key, None)
        if begins is None:
            return None
        begin = min(begins, key=lambda each: abs(each - about))
        begins.remove(begin)
        if begins:
            self._hung[key] = begins
        return begin

    # on a thread of its own

    def _fold(self) -> None:
        limit_waits()
        self.fold()

    def fold(self) -> None:
        """Move the journal into the blocks, unless another process has just done that."""
        try:
            while len(segments := self._store.oldest(JOURNAL, FOLDED_AT_ONCE)) > 1:
                if not self._folded(segments):
                    return
        except StoreError as error:
            if not self._finished:  # else the store was closed
                self._on_error("append", error)

    def _folded(self, segments: Sequence[bytes]) -> bool:
        since = int(self._store.now() // DAY) - self._days
        parts = _Parts()
        for segment in segments:
            for (name, day), columns in self._unpacked(segment, "some attempts").items():
                if day >= since:
                    parts.of(name, day).extend(columns)
        blocks: dict[str, dict[int, bytes]] = {}
        for (name, day), columns in self._with_blocks(parts).items():
            blocks.setdefault(f"{JOURNAL}/{name}", {})[day] = packed({(name, day): columns.ordered()})
        return self._store.fold(JOURNAL, segments, blocks, since)

    def _with_blocks(self, parts: _Parts) -> _Parts:
        """Return attempts after those that their blocks have; a block that is damaged is begun again."""
        if not parts:
            return parts
        logs = {f"{JOURNAL}/{name}": name for name, _ in parts}
        merged = _Parts()
        for log, days in self._store.blocks(list(logs), min(day for _, day in parts), ALL).items():
            for day in [day for day in days if (logs[log], day) in parts]:
                before = self._block(logs[log], day, days[day])
                if before is not None:
                    merged[logs[log], day] = before
        for (name, day), columns in parts.items():
            merged.of(name, day).extend(columns)
        return merged

    # expected durations

    def recall(self, known: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
        """Return how long an execution of each scanner takes: `known` where it says so, else what the blocks say.

        On the thread of the first run, before any of its scans begins.
        """
        for name, seconds in known.items():
            self._means.setdefault(name, (RECALLED_WEIGHT, RECALLED_WEIGHT * seconds))
        unknown = [name for name in names if name not in self._means]
        if 0 < len(unknown) <= MAX_RECALLED:
            try:
                for name, days in self.read(unknown, most=1).items():
                    for columns in days.values():
                        self._learn(name, *columns.executions())
            except StoreError as error:
                self._on_error("read", error)
        return self.expected(names)

    def expected(self, names: Collection[str]) -> dict[str, float]:
        """Return how many seconds an execution takes, on average over the last ones, where that is known."""
        found = {name: self._means[name] for name in names if name in self._means}
        return {name: seconds / count for name, (count, seconds) in found.items()}

    def _learn(self, name: str, count: int, seconds: float) -> None:
        if not count:
            return
        if count > WEIGHT:
            count, seconds = WEIGHT, seconds * WEIGHT / count
        weight, spent = self._means.get(name, (0.0, 0.0))
        less = min(1.0, (WEIGHT - count) / weight) if weight else 0.0
        self._means[name] = weight * less + count, spent * less + seconds
