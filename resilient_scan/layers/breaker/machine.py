"""The breaker's state machine; its caller passes in the time of each step and holds the lock.

pybreaker is driven as a state machine whose outcomes are replayed: an attempt runs on its own, then `_replay` makes
pybreaker call a function that fails or succeeds likewise, on a storage of ours (`_Memory`). Around the attempt itself,
pybreaker would hold its lock: eight calls of 0.3 s would take 2.4 s, and `open()` would wait behind one that hangs.

           `failures` in a row,
           or a rate of the window                 open time has passed, a trial is admitted
    CLOSED ----------------------> OPEN ---------------------------------------------------> HALF-OPEN
      ^                             ^                                                          |   |
      |                             +---------------------- a trial fails ---------------------+   |
      +----------------------------- `trials` trials succeed --------------------------------------+

Next to pybreaker's counters, the machine keeps what pybreaker does not have: the window of the rates, the trials under
way, and an open time on any clock, which grows while trials fail. All of it can be written to a `BreakerRecord` and
loaded from one.

A provider's breaker is the same machine with a *quorum* of two: while all failures in a row are of one scanner, they
are counted, and do not open it. What one scanner asks for may fail while its siblings succeed.

Importing this module imports pybreaker, and pybreaker imports redis where that is installed, which takes half a
second. So the module is imported by the first breaker that is built, and by nothing else.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import cast

import pybreaker

from resilient_scan.layers.breaker.record import CLOSED, HALF_OPEN, OPEN, BreakerRecord, State, Vote
from resilient_scan.options import Breaker

FAILED, SLOW = 1, 2  # bits of a window's entry
MOST_DOUBLINGS = 62  # of the open time: any cap is reached by then, and `2.0 ** n` of a large n would overflow


class _Memory(pybreaker.CircuitBreakerStorage):
    """pybreaker's state and counters. Time is not among them: the machine keeps it.

    `closed` and `generation` are read without the lock, by every attempt.
    """

    opened_at: datetime | None = None

    def __init__(self) -> None:
        super().__init__("memory")
        self.generation: int = 0
        self.closed: bool = True  # True while attempts need no permission
        self.failures: int = 0  # in a row
        self.successes: int = 0  # of trials
        self._state = CLOSED

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        # pybreaker calls its listeners before it writes the state. A listener that raised the generation would leave
        # a moment in which an attempt gets the new generation in the old state, so it is raised here, by the write.
        self.enter(state, self.generation + 1)

    def enter(self, state: str, generation: int) -> None:
        """Change the state, and the generation last.

        An attempt reads the generation and then `closed`, without the lock. If it reads while the state changes, it
        has the old generation: it may still pass, but its vote no longer counts. Were the generation written first,
        an attempt could pass as if closed with the generation of a half-open state that is just being loaded, and
        its vote would count there, as that of a trial which nobody admitted.
        """
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
    """The last `window` attempts, for the failure rate and the slow-call rate."""

    def __init__(self, options: Breaker) -> None:
        self._options = options
        self.last: deque[int] = deque(maxlen=options.window)

    def add(self, failed: bool, slow: bool) -> bool:
        """Add an attempt; return whether one of the rates has been reached."""
        self.last.append(FAILED * failed + SLOW * slow)
        options = self._options
        seen, failures, slows = self.counts()
        if seen < options.minimum:
            return False
        return _reaches(failures / seen, options.failure_rate) or _reaches(slows / seen, options.slow_rate)

    def counts(self) -> tuple[int, int, int]:
        """Return how many attempts there are, how many failed and how many were slow."""
        count = self.last.count
        both = count(FAILED + SLOW)
        return len(self.last), count(FAILED) + both, count(SLOW) + both


def _reaches(rate: float, limit: float | None) -> bool:
    return limit is not None and rate >= limit


class _Failure(Exception):
    """Stands for a scanner's failure when it is replayed."""


def _fail() -> None:
    raise _Failure


class BreakerMachine:
    """A breaker's whole state and its changes. It has no lock of its own.

    Attributes:
        memory: pybreaker's state and counters; the same object for life.
        window: the last attempts; `None` if no rate is set.
        trials: the trials under way, by id, with the instant at which each one expires.
        opened_at, open_for, open_until: the last opening.
        quorum: how many scanners must have failed in a row, 1 or 2; a scanner's own breaker needs no other's.
        failed_by: whose attempts failed in a row, the last two scanners, the latest last.
        down_since: when it opened, whatever trials came after that.
        held_until: until when the provider asked to be left alone; 0: it did not.
    """

    def __init__(self, options: Breaker, quorum: int = 1) -> None:
        self._options = options
        self.quorum = quorum
        self.failed_by: tuple[str, ...] = ()
        self.down_since: float = 0.0
        self.held_until: float = 0.0
        self.memory: _Memory = _Memory()
        self.window: Window | None = Window(options) if options.failure_rate or options.slow_rate else None
        self.trials: dict[str, float] = {}
        self.opened_at: float = 0.0
        self.open_for: float = 0.0
        self.open_until: float = 0.0
        self._reopened = 0
        self._connect()

    def _connect(self) -> None:
        """Build a new pybreaker on the same memory.

        A pybreaker that finds its storage in another state than the one it last saw believes that the state has just
        changed, and resets the counters. So it is replaced when a record is loaded.
        """
        self._pybreaker = pybreaker.CircuitBreaker(
            fail_max=self._options.failures,
            success_threshold=self._options.trials,
            state_storage=self.memory,
            throw_new_error_on_trip=False,
        )

    def admit(self, trial: str, now: float, until: float) -> bool:
        """Return whether an attempt may run; if that makes it a trial, it takes a slot under this id.

        Args:
            trial: an id that no other trial has.
            now: the current time.
            until: when the trial's slot is given to another, if it has not voted by then.
        """
        memory = self.memory
        if memory.state == OPEN:
            if now < self.open_until:
                return False
            self._pybreaker.half_open()
        if memory.state == HALF_OPEN:
            self.trials = {known: expires for known, expires in self.trials.items() if expires > now}
            if len(self.trials) >= self._options.trials:
                return False
            self.trials[trial] = until
        return True

    def vote(self, vote: Vote, at: float) -> bool:
        """Count an outcome; return whether it changed the state. A vote of another generation does not count."""
        memory, before, generation = self.memory, self.memory.state, self.memory.generation
        if vote.hold:
            self._hold(at + vote.hold)
        if vote.generation != generation or before == OPEN:
            return False
        self.trials.pop(vote.trial, None)
        if vote.failed is None:
            return False
        self._replay(vote.failed, vote.scanner)
        if before == memory.state == CLOSED and self.window and self.window.add(vote.failed, vote.slow):
            self._pybreaker.open()
        if memory.generation == generation:
            return False
        self.trials.clear()
        if self.window:
            self.window.last.clear()
        if memory.state == OPEN:
            self._open(before == HALF_OPEN, vote.jitter, at)
        return True

    def _replay(self, failed: bool, scanner: str) -> None:
        """Have pybreaker call something that ends as the attempt did."""
        if scanner:
            self._note(scanner, failed)
        try:
            self._pybreaker.call(_fail if failed else int)
        except _Failure as replayed:
            # This runs while the scanner's own exception is being handled, which Python made the context of this one.
            replayed.__context__ = replayed.__traceback__ = None

    def _note(self, scanner: str, failed: bool) -> None:
        """Note whose attempt failed, and let the failures of one scanner alone not open the breaker."""
        others = tuple(name for name in self.failed_by[-2:] if name != scanner)
        self.failed_by = (*others, scanner)[-2:] if failed else ()
        alone = failed and len(self.failed_by) < self.quorum
        self._pybreaker.fail_max = self.memory.failures + 2 if alone else self._options.failures

    def _hold(self, until: float) -> None:
        """Admit nobody before an instant that the provider named, nor any trial, if it is open."""
        self.held_until = max(self.held_until, until)
        if self.memory.state == OPEN and until > self.open_until:
            self.open_for, self.open_until = until - self.opened_at, until

    def _open(self, reopened: bool, jitter: float, at: float) -> None:
        """Start the open time: exactly `open_for` the first time, then doubled with jitter while trials fail.

        A provider that asked to be left alone for longer is.
        """
        options = self._options
        self._reopened = self._reopened + 1 if reopened else 0
        seconds = options.open_for
        if reopened:
            doubled = options.open_for * 2.0 ** min(self._reopened, MOST_DOUBLINGS)
            seconds = min(options.open_cap, jitter * doubled)
        else:
            self.down_since = at
        seconds = max(seconds, self.held_until - at)
        self.opened_at, self.open_for, self.open_until = at, seconds, at + seconds

    def reset(self, _now: float) -> None:
        """Close, and forget all failures. Attempts under way have no vote: they began before the reset.

        If there is nothing to forget, nothing changes, not even the generation: no record is written to the store then,
        so other processes could not learn it, and votes from here would not count there.
        """
        if self.to_record().is_blank:
            return
        memory = self.memory
        memory.failures = memory.successes = self._reopened = 0
        self.failed_by, self.held_until = (), 0.0
        self.trials.clear()
        if self.window:
            self.window.last.clear()
        memory.enter(CLOSED, memory.generation + 1)
        self._connect()

    def end_open_time(self, now: float) -> None:
        """Let the next attempt be a trial, if the machine is open."""
        self.open_until = min(self.open_until, now)

    def to_record(self) -> BreakerRecord:
        """Return the state as a record."""
        memory = self.memory
        return BreakerRecord(
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
            failed_by=self.failed_by,
            down_since=self.down_since,
            held_until=self.held_until,
        )

    def load(self, record: BreakerRecord) -> None:
        """Replace the state by a record's; its window is used only if these options have a rate."""
        memory = self.memory
        memory.failures, memory.successes = record.failures, record.successes
        self._reopened, self.trials = record.reopened, dict(record.trials)
        self.opened_at, self.open_for, self.open_until = record.opened_at, record.open_for, record.open_until
        self.failed_by, self.down_since, self.held_until = record.failed_by, record.down_since, record.held_until
        if self.window:
            self.window.last = deque(record.window, self._options.window)
        memory.enter(record.state, record.generation)
        self._connect()
