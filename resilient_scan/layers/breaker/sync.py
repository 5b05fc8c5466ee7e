"""What a breaker shares with other processes, and with the same one after a restart: a record in a store.

A vote is counted here at once, in the local circuit, and waits in `pending` until it is in the record too. `exchange`
brings the waiting votes there, all in one atomic `update`, and comes back with the record, which the circuit becomes.
Which votes are brought at once is the breaker's decision; the others go along with the next one.

When the store fails, the local circuit goes on by itself, and the votes wait. The next `update` that succeeds brings
them, with the instants at which they were cast, and they count as if they had been there in time, unless the record
has changed its state meanwhile: then it is the newer truth. If a trial was admitted here meanwhile (the circuit has
*diverged*) and the record is still in the state in which it was left, the circuit's own history becomes the record.
A record that is gone, or is none any more, becomes what the circuit is.
"""

from __future__ import annotations

import logging
import math
import threading
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker.machine import CLOSED, OPEN, BreakerMachine, Newer, Record, Vote, read, write
from resilient_scan.options import Breaker
from resilient_scan.stores import Change, Store

BREAKER_PREFIX = "breaker/"

_log = logging.getLogger("resilient_scan")


class BreakerStore(msgspec.Struct, frozen=True):
    """Where a breaker's state lives.

    Attributes:
        store: shared with other processes, or kept beyond this one.
        key: of the record.
        on_error: is told of an operation of the store that failed; the breaker goes on without it.
    """

    store: Store
    key: str
    on_error: Callable[[str, StoreError], object]


class TrialRequest(msgspec.Struct, frozen=True):
    """Whether an attempt may pass.

    Attributes:
        place: its own, if it becomes a trial; no other trial anywhere has the same.
        seconds: for which it keeps its place at most.
        over: the generation whose open time is over by the monotonic clock, whatever the wall clock says.
    """

    place: str
    seconds: float
    over: int | None


class Pending(msgspec.Struct, frozen=True):
    """What a circuit takes along to the store; nothing in it changes on the way.

    Attributes:
        votes: those that wait.
        own: the local circuit, with these votes counted, on the monotonic clock.
        base: the record's generation when it was seen last.
        diverged: whether the circuit has gone its own way since.
        shown: the state that listeners know.
        nonce: what tells a new record from others.
    """

    options: Breaker
    clock: Clock
    votes: tuple[Vote, ...]
    own: Record
    base: int
    diverged: bool
    shown: str
    nonce: int


class SyncResult(msgspec.Struct, frozen=True):
    """What it brings back.

    Attributes:
        record: as it is in the store now, on the store's clock.
        ahead: seconds by which the store's clock is ahead of the monotonic one.
        before: the state before.
        changed: whether this very update changed the state.
        granted: whether the attempt may pass.
        flaw: why the bytes in the store were of no use; `""`: they were.
    """

    record: Record
    ahead: float
    before: str
    changed: bool
    granted: bool
    flaw: str = ""


NEWER, GARBAGE = "newer", "garbage"


def change(
    pending: Pending, request: TrialRequest | None, old: bytes | None, now: float
) -> tuple[bytes | None, SyncResult]:
    """Bring a record up to date, on the store's clock; pure but for a look at the clock, may be called again."""
    ahead = now - pending.clock.monotonic()
    own = pending.own.shifted(ahead)
    try:
        stored = None if old is None else read(old)
    except Newer:
        return old, SyncResult(own, ahead, pending.shown, changed=False, granted=False, flaw=NEWER)
    circuit = BreakerMachine(pending.options)
    if stored is None or (pending.diverged and stored.generation == pending.base):
        circuit.take(own)
    else:
        circuit.take(stored.plausible(pending.options, now))
        for vote in pending.votes:
            circuit.vote(vote, vote.at + ahead)
    granted = request is not None and _ask(circuit, request, now)
    before = pending.shown if stored is None else stored.state
    data, record = _written(circuit, stored, old, pending.nonce)
    flaw = GARBAGE if stored is None and old is not None else ""
    return data, SyncResult(record, ahead, before, changed=record.state != before, granted=granted, flaw=flaw)


def _ask(circuit: BreakerMachine, request: TrialRequest, now: float) -> bool:
    if circuit.memory.generation == request.over:
        circuit.open_until = min(circuit.open_until, now)
    return circuit.admit(request.place, now, now + request.seconds)


def _written(
    circuit: BreakerMachine, stored: Record | None, old: bytes | None, nonce: int
) -> tuple[bytes | None, Record]:
    """Return the bytes and the record; the old bytes if nothing is new, none if there is nothing to keep."""
    known = Record(born=nonce) if stored is None else stored
    record = msgspec.structs.replace(circuit.record(), born=known.born, revision=known.revision)
    if stored is None and record.clean:
        return None, msgspec.structs.replace(record, born=0)
    if write(record) == old:
        return old, record
    record = msgspec.structs.replace(record, revision=known.revision + 1)
    return write(record), record


class StoreSync:
    """Keeps a circuit and a record in a store together.

    Two locks. The breaker's own is short: no store is asked under it, so that a watchdog can vote without waiting for
    a disk; what is marked "under the lock" needs it. `_way` is held by whoever is on the way to the store: one at a
    time, so that what is brought back is never older than what is there. `_way` is taken first.
    """

    def __init__(
        self,
        name: str,
        options: Breaker,
        clock: Clock,
        circuit: BreakerMachine,
        lock: threading.Lock,
        store: BreakerStore,
    ) -> None:
        self._name = name
        self._options = options
        self._clock = clock
        self._machine = circuit
        self._lock = lock
        self._home = store
        self._way = threading.Lock()
        # More cannot matter: older votes have left the window, so many failures have opened it, so many trials ended.
        self._pending: deque[Vote] = deque(maxlen=max(options.window, options.failures, options.trials))
        self._shown, self._told = CLOSED, 0  # the state that listeners know, and its generation
        self._base = 0
        self._diverged = False
        self._born = self._revision = 0
        self._warned = False
        circuit.memory.closed = False  # nobody has looked at the record yet: the first attempt does

    # under the lock

    def note(self, vote: Vote) -> None:
        """Keep a vote that was counted here, until it is in the record."""
        self._pending.append(vote)

    def diverge(self) -> None:
        """Note that the circuit went half-open without the store; no record has the generation that it gets."""
        memory = self._machine.memory
        memory.become(memory.state, memory.generation + (uuid.uuid4().int >> 90))
        self._diverged = True

    def tell(self) -> BreakerChanged | None:
        """Return what listeners do not know yet of the local circuit's state."""
        circuit, memory = self._machine, self._machine.memory
        if memory.generation == self._told:
            return None
        before, self._shown, self._told = self._shown, memory.state, memory.generation
        return changed(self._name, before, memory.state, circuit.open_for)

    # on any thread that may wait for a store

    def flush(self) -> BreakerChanged | None:
        """Bring the votes that wait to the store, and return the change of state to tell, if any."""
        return self._exchange(None)[0] if self._pending else None

    def ask(self, request: TrialRequest) -> tuple[BreakerChanged | None, SyncResult | None]:
        """Ask the record whether an attempt may pass; return a change to tell, and the result, if any."""
        return self._exchange(request)

    def sync(self, data: bytes | None, now: float) -> BreakerChanged | None:
        """Take over what was read from the store at its time `now`, and bring it what waits."""
        if self._pending or self._diverged:
            return self._exchange(None, anyway=True)[0]
        if not self._way.acquire(blocking=False):
            return None  # somebody who is on the way comes back with newer news than these, which were read before
        try:
            needs_update = not self._take_over(data, now)
        finally:
            self._way.release()
        return self._exchange(None, anyway=True)[0] if needs_update else None

    def trust_local(self) -> None:
        """Go on without the store until the next vote that matters."""
        with self._lock:
            self._part()

    def _take_over(self, data: bytes | None, now: float) -> bool:
        """Become what was read; `False`: there is something to put right in the store."""
        try:
            stored = None if data is None else read(data)
        except Newer:
            return False
        if stored is None and data is not None:
            return False
        record = Record() if stored is None else stored
        if record.state != CLOSED and record.plausible(self._options, now) != record:
            return False
        with self._lock:
            # What was read before it was written from here is older than what is known, and what is known is known.
            if not (
                (stored is None and self._born) or (self._born == record.born and self._revision >= record.revision)
            ):
                self._become(record, now - self._clock.monotonic())
            self._part()
        return True

    def _exchange(
        self, request: TrialRequest | None, *, anyway: bool = False
    ) -> tuple[BreakerChanged | None, SyncResult | None]:
        """Go to the store and come back; without anything to bring or to ask only where told to go anyway."""
        told: BreakerChanged | None = None
        with self._way:
            if request is None and not self._pending and not anyway:
                return None, None  # somebody has taken them along
            with self._lock:
                pending = self._pack()
            result, error = self._update(partial(change, pending, request))
            with self._lock:
                if result is not None:
                    told = self._apply(result, pending)
                else:
                    self._part()
                    told = self.tell() if request is None else None
        if error is not None:
            self._home.on_error("update", error)
        if result is not None and result.flaw:
            self._warn_once()
        return told, result

    def _update(self, change: Change[SyncResult]) -> tuple[SyncResult | None, StoreError | None]:
        try:
            result = self._home.store.update(self._home.key, change)
        except StoreError as error:
            return None, error
        except Exception as error:  # a store is foreign code; it costs no scan its result, and what it says is not told
            return None, StoreError(f"the store {self._home.store.url} failed with {type(error).__name__}")
        if result.flaw == NEWER:
            return None, StoreError(
                f"a newer version of this package keeps {self._home.key} in the store; upgrade this one"
            )
        return result, None

    # under the lock

    def _pack(self) -> Pending:
        return Pending(
            self._options,
            self._clock,
            tuple(self._pending),
            self._machine.record(),
            self._base,
            self._diverged,
            self._shown,
            uuid.uuid4().int >> 80,
        )

    def _part(self) -> None:
        """Go on with what is known."""
        memory = self._machine.memory
        memory.closed = memory.state == CLOSED

    def _apply(self, result: SyncResult, pending: Pending) -> BreakerChanged | None:
        brought = set(map(id, pending.votes))
        waiting = [vote for vote in self._pending if id(vote) not in brought]
        self._pending.clear()
        self._pending.extend(waiting)
        record, told = result.record, self._told
        self._become(record, result.ahead)
        # A watchdog, or whoever could not reach the store, has told already what the same votes came to here.
        if not result.changed or record.generation == told:
            return None
        return changed(self._name, result.before, record.state, record.open_for)

    def _become(self, record: Record, ahead: float) -> None:
        """Take a record over, with the votes that came meanwhile."""
        circuit, memory = self._machine, self._machine.memory
        # The time of an opening that was seen here is measured here, whatever the wall clock does meanwhile.
        seen = memory.state == OPEN and memory.generation == record.generation
        measured = circuit.open_until if seen else math.inf
        circuit.take(record.shifted(-ahead))
        circuit.open_until = min(circuit.open_until, measured)
        for vote in self._pending:
            circuit.vote(vote, vote.at)
        self._base, self._born, self._revision = record.generation, record.born, record.revision
        self._shown, self._told = record.state, record.generation
        self._diverged = False

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: what the store keeps of its breaker cannot be read; it begins anew, %s", self._name, self._home.key
            )


def changed(name: str, before: str, state: str, seconds: float) -> BreakerChanged:
    """Describe a change of state to listeners; `seconds` counts where it opened."""
    open_for = seconds if state == OPEN else None
    return BreakerChanged(name, before.replace("-", "_"), state.replace("-", "_"), open_for)
