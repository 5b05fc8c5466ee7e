"""The state of a breaker on any clock: the time of each step is an argument. Not for several threads at once.

    failures in a row            open time is over, a trial is admitted
CLOSED ----------------> OPEN ------------------------------------------> HALF-OPEN
   ^                      ^                                                 |   |
   |                      +------------- a trial fails ---------------------+   |
   +-------------------------------- enough trials succeed ---------------------+

pybreaker is the state machine, on a storage of ours; beside its numbers there are the window of the rates, the trials
under way and the open time. All of it can be written down as a `Record` and taken over from one.
"""

from __future__ import annotations

import math
from collections import deque
from datetime import datetime
from typing import Annotated, Literal, cast

import msgspec
import pybreaker

from resilient_scan.options import Breaker

# What a store keeps of a breaker: MessagePack with a schema version, checked field by field when it is read.

VERSION = 1
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
State = Literal["closed", "open", "half-open"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker's state; its instants are on whatever clock its owner goes by, in a store on the store's wall clock.

    Attributes:
        version: of this schema.
        born: a number drawn when the record was made, so that another one of the same name is told from it.
        revision: counts the writes.
        state: `closed`, `open` or `half-open`.
        generation: changes with the state; votes carry it.
        failures: attempts that failed in a row.
        successes: trials that succeeded.
        reopened: trials that failed since it was closed last; the open time grows with them.
        opened_at, open_for, open_until: of the newest opening, and for how many seconds it was.
        trials: by trial (`pid-process.number`), when its place is given to another.
        window: the last attempts, a byte each: 1 failed, 2 was slow.
    """

    version: Count = VERSION
    born: Count = 0
    revision: Count = 0
    state: State = "closed"
    generation: Count = 0
    failures: Count = 0
    successes: Count = 0
    reopened: Count = 0
    opened_at: float = 0.0
    open_for: float = 0.0
    open_until: float = 0.0
    trials: dict[str, float] = {}
    window: bytes = b""

    @property
    def clean(self) -> bool:
        """Whether there is nothing that a new one would not say, too."""
        return self.state == "closed" and not self.failures and not self.window

    def shifted(self, by: float) -> Record:
        """Return it with its instants on another clock, which is ahead by so many seconds."""
        return msgspec.structs.replace(
            self,
            opened_at=self.opened_at + by,
            open_until=self.open_until + by,
            trials={trial: expires + by for trial, expires in self.trials.items()},
        )

    def plausible(self, options: Breaker, now: float) -> Record:
        """Return it as it can be at `now` under these options.

        The wall clock may have jumped, and the options may be others than those it was written with. From now on it
        stays open for at most the time that it was opened for, or the cap where that is shorter; a trial keeps its
        place for at most `open_for`. So a jump back costs one open time more, a jump ahead brings a trial earlier.
        """
        seconds = min(max(0.0, self.open_for), options.open_cap)
        late = self.state == "open" and self.open_until - now > seconds
        return msgspec.structs.replace(
            self,
            opened_at=now if late else self.opened_at,
            open_until=now + seconds if late else self.open_until,
            trials={trial: min(expires, now + options.open_for) for trial, expires in self.trials.items()},
        )


class Newer(Exception):
    """The record is of a later version of this package."""


class _Versioned(msgspec.Struct):
    version: int


_encode = msgspec.msgpack.Encoder().encode
_record = msgspec.msgpack.Decoder(Record).decode
_versioned = msgspec.msgpack.Decoder(_Versioned).decode


def write(record: Record) -> bytes:
    """Return a record as a store keeps it."""
    return _encode(record)


def read(data: bytes) -> Record | None:
    """Return what a store kept; `None`: it is none of ours.

    Raises:
        Newer: a later version of this package wrote it.
    """
    try:
        if _versioned(data).version > VERSION:
            raise Newer
        record = _record(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    instants = (record.opened_at, record.open_for, record.open_until, *record.trials.values())
    return record if all(map(math.isfinite, instants)) else None


CLOSED, OPEN, HALF_OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN


class _Memory(pybreaker.CircuitBreakerStorage):
    """pybreaker's numbers. Time is not among them: the circuit keeps it."""

    opened_at: datetime | None = None

    def __init__(self) -> None:
        super().__init__("memory")
        self.generation = 0
        self.closed = True  # whether whoever asks needs no leave
        self.failures = 0  # in a row
        self.successes = 0  # of trials
        self._state = CLOSED

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        # pybreaker tells its listeners before it writes the state, so the number is raised here, after the write
        self.become(state, self.generation + 1)

    def become(self, state: str, generation: int) -> None:
        """Change the state; the generation last, because it is read first, and without a lock."""
        self._state = state
        self.closed = state == CLOSED
        self.generation = generation

    @property
    def counter(self) -> int:
        return self.failures

    @property
    def success_counter(self) -> int:
        return self.successes

    def increment_counter(self) -> None:
        self.failures += 1

    def reset_counter(self) -> None:
        self.failures = 0

    def increment_success_counter(self) -> None:
        self.successes += 1

    def reset_success_counter(self) -> None:
        self.successes = 0


class Window:
    """The last attempts, for the rates; one byte each: 1 failed, 2 was slow."""

    def __init__(self, options: Breaker) -> None:
        self._options = options
        self.last: deque[int] = deque(maxlen=options.window)

    def full_of_trouble(self, failed: bool, slow: bool) -> bool:
        """Note an attempt, and say whether there are too many failures or slow ones among the last."""
        self.last.append(failed + 2 * slow)
        options = self._options
        seen, failures, slows = self.counts()
        if seen < options.minimum:
            return False
        return _reaches(failures / seen, options.failure_rate) or _reaches(slows / seen, options.slow_rate)

    def counts(self) -> tuple[int, int, int]:
        """Return how many attempts there are, how many failed and how many were slow."""
        count = self.last.count
        both = count(3)
        return len(self.last), count(1) + both, count(2) + both


def _reaches(rate: float, limit: float | None) -> bool:
    return limit is not None and rate >= limit


class Vote(msgspec.Struct, frozen=True):
    """The outcome of a permit.

    Attributes:
        generation: of the state that the permit was given in.
        place: of the trial; `""`: it was none.
        failed: `None`: no vote, the trial's place is given back.
        slow: whether it took too long, though it succeeded.
        at: when, on the monotonic clock of its process.
        share: of the doubled open time, from 0.75 to 1, for which the breaker opens again if a trial failed: drawn
            beforehand, so that counting the same vote twice comes to the same.
    """

    generation: int
    place: str
    failed: bool | None
    slow: bool
    at: float
    share: float


class _Failure(Exception):
    """Stands for a scanner's failure when it is replayed."""


def _fail() -> None:
    raise _Failure


class BreakerMachine:
    """A breaker's whole state and its changes.

    Attributes:
        memory: pybreaker's numbers; the same object for life.
        window: the last attempts; `None` where there is no rate.
        trials: when the place of each trial under way is given to another.
        opened_at, open_for, open_until: of the newest opening.
    """

    def __init__(self, options: Breaker) -> None:
        self._options = options
        self.memory = _Memory()
        self.window = Window(options) if options.failure_rate or options.slow_rate else None
        self.trials: dict[str, float] = {}
        self.opened_at = self.open_for = self.open_until = 0.0
        self._reopened = 0
        self._connect()

    def _connect(self) -> None:
        """Make a new machine around the numbers: one that finds another state than its last would reset them."""
        self._pybreaker = pybreaker.CircuitBreaker(
            fail_max=self._options.failures,
            success_threshold=self._options.trials,
            state_storage=self.memory,
            throw_new_error_on_trip=False,
        )

    def admit(self, place: str, now: float, until: float) -> bool:
        """Let an attempt pass; where it is a trial, `place` is its own until then."""
        memory = self.memory
        if memory.state == OPEN:
            if now < self.open_until:
                return False
            self._pybreaker.half_open()
        if memory.state == HALF_OPEN:
            self.trials = {trial: expires for trial, expires in self.trials.items() if expires > now}
            if len(self.trials) >= self._options.trials:
                return False
            self.trials[place] = until
        return True

    def vote(self, vote: Vote, at: float) -> bool:
        """Count an outcome; say whether it changed the state. One of another generation has no vote."""
        memory, before, generation = self.memory, self.memory.state, self.memory.generation
        if vote.generation != generation or before == OPEN:
            return False
        self.trials.pop(vote.place, None)
        if vote.failed is None:
            return False
        self._replay(vote.failed)
        if before == memory.state == CLOSED and self.window and self.window.full_of_trouble(vote.failed, vote.slow):
            self._pybreaker.open()
        if memory.generation == generation:
            return False
        self.trials.clear()
        if self.window:
            self.window.last.clear()
        if memory.state == OPEN:
            self._open(before == HALF_OPEN, vote.share, at)
        return True

    def _replay(self, failed: bool) -> None:
        try:
            self._pybreaker.call(_fail if failed else int)
        except _Failure as replayed:  # raised while the scanner's own exception is handled: do not keep that alive
            replayed.__context__ = replayed.__traceback__ = None

    def _open(self, reopened: bool, share: float, at: float) -> None:
        """Start the open time: exact the first time, then doubled with jitter while trials fail."""
        options = self._options
        self._reopened = self._reopened + 1 if reopened else 0
        seconds = options.open_for
        if reopened:
            seconds = min(options.open_cap, share * (options.open_for * 2.0 ** min(self._reopened, 62)))
        self.opened_at, self.open_for, self.open_until = at, seconds, at + seconds

    # written down

    def record(self) -> Record:
        """Write the state down."""
        memory = self.memory
        return Record(
            state=cast("State", memory.state),
            generation=memory.generation,
            failures=memory.failures,
            successes=memory.successes,
            reopened=self._reopened,
            opened_at=self.opened_at,
            open_for=self.open_for,
            open_until=self.open_until,
            trials=dict(self.trials),
            window=bytes(self.window.last) if self.window else b"",
        )

    def take(self, record: Record) -> None:
        """Take another's state over; what it knows of a window is used where there is one here."""
        memory = self.memory
        memory.failures, memory.successes = record.failures, record.successes
        self._reopened, self.trials = record.reopened, dict(record.trials)
        self.opened_at, self.open_for, self.open_until = record.opened_at, record.open_for, record.open_until
        if self.window:
            self.window.last = deque(record.window, self._options.window)
        memory.become(record.state, record.generation)
        self._connect()
