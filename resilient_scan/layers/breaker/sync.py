"""Keep a breaker's machine and its record in a store together: for other processes, and for this one after a restart.

    this process                                            the store
      votes, counted in the machine at once
      and kept as pending  ------------------+
      a request for a trial  ----------------+-- update(key, merge), one atomic step:
                                             |     the old record + pending votes + request = the new record
      the machine becomes the record  <------+-- SyncResult

A vote is counted in the local machine at once, and stays pending until it is in the record too. The breaker decides
which votes are worth an exchange with the store; the others go along with the next one.

The record's states are the breaker's: closed, open, half-open. Next to them, the machine may be

* *unread*: nobody has looked at the record yet, so `memory.closed` stays False and the first attempt asks the store;
* *diverged*: it has gone half-open without the store, which could not be reached.

When the store fails, the machine goes on by itself and the votes stay pending. The next `update` that succeeds takes
them there, with the instants at which they were cast, and they count as if they had arrived in time, unless the
record has changed its state since: then the record is right. If the machine has diverged and the record is still in
the state in which it was last seen, then the machine's history becomes the record. So does the machine's state if the
record is gone, or no longer readable.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from resilient_scan._log import log as _log
from resilient_scan.clock import Clock
from resilient_scan.errors import StoreError
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.breaker.record import CLOSED, OPEN, BreakerRecord, NewerRecord, Vote, decode, encode
from resilient_scan.options import Breaker
from resilient_scan.stores import Change, Store
from resilient_scan.stores.health import ask_store

if TYPE_CHECKING:
    from resilient_scan.layers.breaker.machine import BreakerMachine

BREAKER_PREFIX = "breaker/"
PROVIDER_PREFIX = f"{BREAKER_PREFIX}provider/"  # no scanner's name has a slash; one read brings all breakers
ManualChange = Callable[["BreakerMachine", float], None]
"""What an operator orders: it changes a machine at an instant, on that machine's clock."""


class BreakerStore(msgspec.Struct, frozen=True):
    """Where a breaker's record is.

    Attributes:
        store: shared with other processes, or outliving this one.
        key: of the record.
        on_error: called, without a lock, when an operation of the store failed; the breaker goes on without the store.
        awake: the keys of the fleet's breakers that have something for the store, or have not looked at it yet. The
            others are at rest: a run has nothing to do with them unless the store has a record of theirs.
    """

    store: Store
    key: str
    on_error: Callable[[str, StoreError], object]
    awake: set[str] = msgspec.field(default_factory=set)


class TrialRequest(msgspec.Struct, frozen=True):
    """An attempt that asks the record whether it may run.

    Attributes:
        trial: the id that it takes if it becomes a trial; no other trial has the same, in any process.
        seconds: how long it may keep the trial's slot.
        expired: the generation whose open time has passed on the monotonic clock, whatever the wall clock says.
    """

    trial: str
    seconds: float
    expired: int | None


class Pending(msgspec.Struct, frozen=True):
    """What the machine takes to the store, frozen: the machine may change meanwhile.

    Attributes:
        votes: the pending votes.
        local: the machine's state, with these votes counted, on the monotonic clock.
        base: the record's generation when it was last seen.
        diverged: whether the machine has diverged since then.
        announced: the state that listeners know.
        nonce: distinguishes a record that is written for the first time from others of its name.
        quorum: the machine's.
    """

    options: Breaker
    clock: Clock
    votes: tuple[Vote, ...]
    local: BreakerRecord
    base: int
    diverged: bool
    announced: str
    nonce: int
    quorum: int = 1


class SyncResult(msgspec.Struct, frozen=True):
    """What an exchange with the store brings back.

    Attributes:
        record: as it is in the store now, on the store's clock.
        ahead: seconds by which the store's clock is ahead of the monotonic one.
        before: the state before.
        changed: whether this very update changed the state.
        granted: whether the attempt may run.
        flaw: why the bytes in the store could not be used: `NEWER`, `GARBAGE` or `""`.
    """

    record: BreakerRecord
    ahead: float
    before: str
    changed: bool
    granted: bool
    flaw: str = ""


NEWER, GARBAGE = "newer", "garbage"


def merge(
    pending: Pending,
    request: TrialRequest | None,
    old: bytes | None,
    now: float,
    order: ManualChange | None = None,
) -> tuple[bytes | None, SyncResult]:
    """Bring a record up to date, on the store's clock; an `order` is carried out last, on top of all votes.

    A store may call this more than once for one update (Redis does, if somebody else wrote in between). So it changes
    nothing but what it returns, and it reads nothing but its arguments and the monotonic clock.
    """
    from resilient_scan.layers.breaker.machine import BreakerMachine  # noqa: PLC0415 - see there: it is slow to import

    ahead = now - pending.clock.monotonic()
    local = pending.local.shifted(ahead)
    try:
        stored = None if old is None else decode(old)
    except NewerRecord:
        return old, SyncResult(local, ahead, pending.announced, changed=False, granted=False, flaw=NEWER)
    machine = BreakerMachine(pending.options, pending.quorum)
    if stored is None or (pending.diverged and stored.generation == pending.base):
        machine.load(local)
    else:
        machine.load(stored.clamped(pending.options, now))
        for vote in pending.votes:
            machine.vote(vote, vote.at + ahead)
    if order is not None:
        order(machine, now)
    granted = request is not None and _admit(machine, request, now)
    before = pending.announced if stored is None else stored.state
    data, record = _encoded(machine, stored, old, pending.nonce)
    flaw = GARBAGE if stored is None and old is not None else ""
    return data, SyncResult(record, ahead, before, changed=record.state != before, granted=granted, flaw=flaw)


def _admit(machine: BreakerMachine, request: TrialRequest, now: float) -> bool:
    if machine.memory.generation == request.expired:
        machine.end_open_time(now)
    return machine.admit(request.trial, now, now + request.seconds)


def _encoded(
    machine: BreakerMachine, stored: BreakerRecord | None, old: bytes | None, nonce: int
) -> tuple[bytes | None, BreakerRecord]:
    """Return the bytes to store, and the record in them: the old bytes if nothing changed, `None` if it is blank."""
    known = BreakerRecord(born=nonce) if stored is None else stored
    record = msgspec.structs.replace(machine.to_record(), born=known.born, revision=known.revision)
    if stored is None and record.is_blank:
        return None, msgspec.structs.replace(record, born=0)
    if encode(record) == old:
        return old, record
    record = msgspec.structs.replace(record, revision=known.revision + 1)
    return encode(record), record


class StoreSync:
    """Keeps a machine and its record together.

    There are two locks. The breaker's own (`lock`) guards the machine and is held for moments only: no store is called
    under it, so a watchdog can vote while another thread waits for a disk. `_exchanging` is held during an exchange
    with the store, so there is one at a time. Without it, thread A could write revision 7, thread B could write
    and load revision 8, and then A would load revision 7 over it: a trial that B was granted would be forgotten here.
    `_exchanging` is always taken first.

    Args:
        name: the scanner's.
        options, clock: the breaker's.
        machine: shared with the breaker.
        lock: guards the machine; `add_vote`, `diverge` and `announce` are called under it.
        store: where the record is.
    """

    def __init__(
        self,
        name: str,
        options: Breaker,
        clock: Clock,
        machine: BreakerMachine,
        lock: threading.Lock,
        store: BreakerStore,
    ) -> None:
        self._name = name
        self._options = options
        self._clock = clock
        self._machine = machine
        self._lock = lock
        self._store = store
        self._exchanging = threading.Lock()
        # Older votes cannot matter any more: they have left the window (where a slow attempt has one entry, and casts
        # two votes), or that many failures have opened the breaker, or that many trials have ended. So a store that is
        # away for a day costs no memory.
        votes = options.window if options.slow_after is None else 2 * options.window
        self._pending: deque[Vote] = deque(maxlen=max(votes, options.failures, options.trials))
        self._announced_state, self._announced_generation = CLOSED, 0  # what listeners know
        self._base = 0  # the record's generation when it was last seen
        self._diverged = False
        self._born = self._revision = 0
        self._warned = False
        machine.memory.closed = False  # nobody has looked at the record yet: the first attempt does
        self._wake()

    # Called under the breaker's lock.

    def add_vote(self, vote: Vote) -> None:
        """Keep a vote that has been counted here, until it is in the record."""
        self._pending.append(vote)
        self._wake()

    def diverge(self) -> None:
        """Note that the machine went half-open without the store.

        It gets a random generation that no record has. Otherwise the votes of this trial would be of the generation
        that the record gets when another process makes it half-open, and would count there, in that one's trial.
        """
        memory = self._machine.memory
        memory.enter(memory.state, memory.generation + (uuid.uuid4().int >> 90))
        self._diverged = True
        self._wake()

    def announce(self) -> BreakerChanged | None:
        """Return the change of the local state that listeners do not know yet, if there is one."""
        machine, memory = self._machine, self._machine.memory
        if memory.generation == self._announced_generation:
            return None
        before = self._announced_state
        self._announced_state, self._announced_generation = memory.state, memory.generation
        return change_event(self._name, before, memory.state, machine.open_for)

    # Called without a lock, on threads that may wait for a store.

    def flush(self) -> BreakerChanged | None:
        """Take the pending votes to the store; return the change of state that they made, for listeners."""
        return self._exchange(None)[0] if self._pending else None

    def request_trial(self, request: TrialRequest) -> tuple[BreakerChanged | None, SyncResult | None]:
        """Ask the record whether an attempt may run; return a change for listeners, and the answer if there is one."""
        return self._exchange(request)

    def change(self, order: ManualChange) -> tuple[BreakerChanged | None, StoreError | None]:
        """Carry out an order in the record; return the change that it made, for listeners.

        If the store fails, the order is carried out in this process only, and the error is returned. A new state is
        then a divergence: without that note, the next run would read the open record and undo a reset.
        """
        with self._exchanging:
            with self._lock:
                pending = self._pack()
            result, error = self._update(partial(merge, pending, None, order=order))
            with self._lock:
                change = self._apply(result, pending) if result is not None else self._change_alone(order)
        if error is not None:
            self._store.on_error("update", error)
        if result is not None and result.flaw:
            self._warn_once()
        return change, error

    def sync(self, data: bytes | None, now: float) -> BreakerChanged | None:
        """Take over what was read from the store at its time `now`; flush the pending votes if there are any."""
        if self._pending or self._diverged:
            return self._exchange(None, always=True)[0]
        if data is None and not self._born and self._machine.memory.closed:
            self._rest()
            return None  # most breakers never had a failure: nothing is stored, and nothing is known here
        if not self._exchanging.acquire(blocking=False):
            return None  # the exchange under way brings back what is there; a run does not wait for a store to begin
        try:
            needs_update = not self._adopt_read(data, now)
        finally:
            self._exchanging.release()
        return self._exchange(None, always=True)[0] if needs_update else None

    def trust_local(self) -> None:
        """Go on without the store until the next vote that matters."""
        with self._lock:
            self._trust_local()

    def _adopt_read(self, data: bytes | None, now: float) -> bool:
        """Become what was read; return False if something in the store has to be corrected by an update."""
        try:
            stored = None if data is None else decode(data)
        except NewerRecord:
            return False
        if stored is None and data is not None:
            return False
        record = BreakerRecord() if stored is None else stored
        if record.is_dated and record.clamped(self._options, now) != record:
            return False
        with self._lock:
            # This read may predate our own last write; never replace newer local state with it. Case: a run reads
            # revision 3, an attempt of another run writes revision 4 and opens the breaker, then the first run gets
            # here: with revision 3, the breaker would be closed again in this process.
            missing = stored is None and self._born != 0
            older = self._born == record.born and self._revision >= record.revision
            if not missing and not older:
                self._adopt(record, now - self._clock.monotonic())
            self._trust_local()
        return True

    def _exchange(
        self, request: TrialRequest | None, *, always: bool = False
    ) -> tuple[BreakerChanged | None, SyncResult | None]:
        """Update the record and adopt the result; if there is nothing to bring or to ask, only with `always`."""
        return ask_store(lambda: self._exchange_here(request, always=always))

    def _exchange_here(
        self, request: TrialRequest | None, *, always: bool
    ) -> tuple[BreakerChanged | None, SyncResult | None]:
        change: BreakerChanged | None = None
        with self._exchanging:
            if request is None and not self._pending and not always:
                return None, None  # the exchange that we waited for has taken our votes along
            with self._lock:
                pending = self._pack()
            result, error = self._update(partial(merge, pending, request))
            with self._lock:
                if result is not None:
                    change = self._apply(result, pending)
                else:
                    self._trust_local()
                    # A refused or admitted attempt announces for itself, after it has decided locally.
                    change = self.announce() if request is None else None
        if error is not None:
            self._store.on_error("update", error)
        if result is not None and result.flaw:
            self._warn_once()
        return change, result

    def _update(self, change: Change[SyncResult]) -> tuple[SyncResult | None, StoreError | None]:
        try:
            result = self._store.store.update(self._store.key, change)
        except StoreError as error:
            return None, error
        except (
            Exception
        ) as error:  # a store is foreign code: it costs no scan its result, and its text may hold secrets
            return None, StoreError(f"the store {self._store.store.url} failed with {type(error).__name__}")
        if result.flaw == NEWER:
            return None, StoreError(
                f"a newer version of this package keeps {self._store.key} in the store; upgrade this one"
            )
        return result, None

    def _rest(self) -> None:
        """Let runs pass over this breaker, unless a vote has been cast since it was looked at."""
        with self._lock:
            if not (self._pending or self._diverged):
                self._store.awake.discard(self._store.key)

    # Called under the breaker's lock.

    def _wake(self) -> None:
        self._store.awake.add(self._store.key)

    def _pack(self) -> Pending:
        return Pending(
            self._options,
            self._clock,
            tuple(self._pending),
            self._machine.to_record(),
            self._base,
            self._diverged,
            self._announced_state,
            uuid.uuid4().int >> 80,
            self._machine.quorum,
        )

    def _change_alone(self, order: ManualChange) -> BreakerChanged | None:
        memory, generation = self._machine.memory, self._machine.memory.generation
        order(self._machine, self._clock.monotonic())
        if memory.generation != generation:
            self._pending.clear()  # votes from before the order
            self.diverge()
        self._trust_local()
        before, change = self._announced_state, self.announce()
        return change if memory.state != before else None

    def _trust_local(self) -> None:
        memory = self._machine.memory
        memory.closed = memory.state == CLOSED

    def _apply(self, result: SyncResult, pending: Pending) -> BreakerChanged | None:
        """Become the record, and return the change that this update made, unless it has been announced already."""
        stored = set(map(id, pending.votes))
        waiting = [vote for vote in self._pending if id(vote) not in stored]  # cast during the exchange
        self._pending.clear()
        self._pending.extend(waiting)
        record, announced = result.record, self._announced_generation
        self._adopt(record, result.ahead)
        # The same votes may have been counted and announced here before: by a watchdog, which must not wait for the
        # store, or while the store could not be reached. Listeners must not hear of one opening twice.
        if not result.changed or record.generation == announced:
            return None
        return change_event(self._name, result.before, record.state, record.open_for)

    def _adopt(self, record: BreakerRecord, ahead: float) -> None:
        """Become a record, and count the votes that are still pending on top of it."""
        machine, memory = self._machine, self._machine.memory
        # An opening that was seen here is timed by the monotonic clock, whatever the wall clock does meanwhile.
        seen = memory.state == OPEN and memory.generation == record.generation
        open_until = machine.open_until if seen else math.inf
        machine.load(record.shifted(-ahead))
        machine.open_until = min(machine.open_until, open_until)
        for vote in self._pending:
            machine.vote(vote, vote.at)
        self._base, self._born, self._revision = record.generation, record.born, record.revision
        self._announced_state, self._announced_generation = record.state, record.generation
        self._diverged = False

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: what the store keeps of its breaker cannot be read; it begins again, %s",
                self._name,
                self._store.key,
            )


def change_event(name: str, before: str, after: str, open_for: float) -> BreakerChanged:
    """Return a change of state as listeners see it; `open_for` counts only if the breaker opened."""
    seconds = open_for if after == OPEN else None
    return BreakerChanged(name, before.replace("-", "_"), after.replace("-", "_"), seconds)
