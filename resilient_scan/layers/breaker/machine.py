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

Where attempts count `within` a time only, failures in a row have instants, too, and pybreaker's counter is set to those
that are young enough before it counts another one. Age is measured from the newest attempt, not from the vote that is
being counted: a store that was away gets votes late, and in no order.

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

_NEVER_DATED: deque[float] = deque(maxlen=0)  # one for all breakers that need no instants
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


def new_memory() -> _Memory:
    """Return the memory of a breaker that has seen nothing."""
    return _Memory()


class Window:
    """The last `window` attempts, for the failure rate and the slow-call rate.

    Attributes:
        last: what they came to.
        at: when they were made, where they count for a time only; else it is empty.
    """

    def __init__(self, options: Breaker) -> None:
        self._options = options
        self.last: deque[int] = deque(maxlen=options.window)
        self.at: deque[float] = deque(maxlen=options.window)

    def add(self, vote: Vote, at: float) -> bool:
        """Count a vote; return whether one of the rates has been reached.

        An attempt has one entry, whatever it comes to. One that is slow gets it while it is under way; if it fails in
        the end, the newest slow entry becomes a failed one. That may be another attempt's: they are alike, and in a
        record that several processes write, nobody could tell which is whose.
        """
        last = self.last
        if vote.slow and vote.failed is not None:  # it has its entry
            if not vote.failed:
                return False
            if SLOW in last:
                last[len(last) - 1 - tuple(reversed(last)).index(SLOW)] = FAILED + SLOW
                return self._reaches_a_rate()
        last.append(FAILED * bool(vote.failed) + SLOW * vote.slow)
        if self._options.within is not None:
            self.at.append(at)
        return self._reaches_a_rate()

    def _reaches_a_rate(self) -> bool:
        options = self._options
        seen, failures, slows = self.counts()
        if seen < options.minimum:
            return False
        return _reaches(failures / seen, options.failure_rate) or _reaches(slows / seen, options.slow_rate)

    def forget_before(self, since: float) -> None:
        """Drop the attempts that were made before an instant."""
        if any(at < since for at in self.at):
            kept = [(last, at) for last, at in zip(self.last, self.at, strict=True) if at >= since]
            self.clear()
            self.last.extend(last for last, _ in kept)
            self.at.extend(at for _, at in kept)

    def clear(self) -> None:
        """Drop all attempts."""
        self.last.clear()
        self.at.clear()

    def load(self, record: BreakerRecord) -> None:
        """Replace the attempts by a record's; those of unknown age do not count where age matters."""
        self.clear()
        if self._options.within is None:
            self.last.extend(record.window)
        elif len(record.window) == len(record.window_at):
            self.last.extend(record.window)
            self.at.extend(record.window_at)

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
        failed_at: the instants of the failures in a row, where they count for a time only, at most `failures`.
        trials: the trials under way, by id, with the instant at which each one expires.
        opened_at, open_for, open_until: the last opening.
        quorum: how many scanners must have failed in a row, 1 or 2; a scanner's own breaker needs no other's.
        failed_by: whose attempts failed in a row, the last two scanners, the latest last.
        failed_by_at: when these did, where that matters.
        down_since: when it opened, whatever trials came after that.
        held_until: until when the provider asked to be left alone; 0: it did not.
    """

    def __init__(self, options: Breaker, quorum: int = 1, memory: _Memory | None = None) -> None:
        self._options = options
        self.quorum = quorum
        self.failed_by: tuple[str, ...] = ()
        self.failed_by_at: tuple[float, ...] = ()
        self.failed_at: deque[float] = _NEVER_DATED if options.within is None else deque(maxlen=options.failures)
        self.down_since: float = 0.0
        self.held_until: float = 0.0
        self.memory: _Memory = memory or _Memory()
        self.window: Window | None = Window(options) if options.failure_rate or options.slow_rate else None
        self.trials: dict[str, float] = {}
        self.opened_at: float = 0.0
        self.open_for: float = 0.0
        self.open_until: float = 0.0
        self._reopened = 0
        self._made: pybreaker.CircuitBreaker | None = None

    @property
    def _pybreaker(self) -> pybreaker.CircuitBreaker:
        """A pybreaker on the same memory, made when there is first something to replay: most scanners never fail."""
        if self._made is None:
            self._made = pybreaker.CircuitBreaker(
                fail_max=self._options.failures,
                success_threshold=self._options.trials,
                state_storage=self.memory,
                throw_new_error_on_trip=False,
            )
        return self._made

    def _connect(self) -> None:
        """Let a new pybreaker be made.

        A pybreaker that finds its storage in another state than the one it last saw believes that the state has just
        changed, and resets the counters. So it is replaced when a record is loaded.
        """
        self._made = None

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
        if (vote.failed is None and not vote.slow) or not self.forget_old(at):
            return False
        if vote.failed is not None:
            self._replay(vote.failed, vote.scanner, at)
        if before == memory.state == CLOSED and self.window and self.window.add(vote, at):
            self._pybreaker.open()
        if memory.generation != generation:
            self._enter(before == HALF_OPEN, vote.jitter, at)
        return memory.generation != generation

    def _enter(self, reopened: bool, jitter: float, at: float) -> None:
        """Begin a new state with no trial under way and an empty window."""
        self.trials.clear()
        if self.window:
            self.window.clear()
        if self.memory.state == OPEN:
            self._open(reopened, jitter, at)

    def forget_old(self, at: float) -> bool:
        """Let attempts that are too old count no longer; return whether one made at this instant still counts."""
        within = self._options.within
        if within is None or self.memory.state != CLOSED:
            return True
        since: float = max((at, *self.failed_at, *(self.window.at if self.window else ()))) - within
        if any(old < since for old in self.failed_at):
            kept = [failed for failed in self.failed_at if failed >= since]
            self.failed_at.clear()
            self.failed_at.extend(kept)
            self.memory.failures = len(kept)
        if any(old < since for old in self.failed_by_at):
            named = [one for one in zip(self.failed_by, self.failed_by_at, strict=True) if one[1] >= since]
            self.failed_by, self.failed_by_at = tuple(name for name, _ in named), tuple(when for _, when in named)
        if self.window:
            self.window.forget_before(since)
        return at >= since

    def _replay(self, failed: bool, scanner: str, at: float) -> None:
        """Have pybreaker call something that ends as the attempt did."""
        if scanner:
            self._note(scanner, failed, at)
        if self._options.within is not None:
            if failed:
                self.failed_at.append(at)
            else:
                self.failed_at.clear()
        try:
            self._pybreaker.call(_fail if failed else int)
        except _Failure as replayed:
            # This runs while the scanner's own exception is being handled, which Python made the context of this one.
            replayed.__context__ = replayed.__traceback__ = None

    def _note(self, scanner: str, failed: bool, at: float) -> None:
        """Note whose attempt failed, and let the failures of one scanner alone not open the breaker."""
        dated = self._options.within is not None
        others = [place for place, name in enumerate(self.failed_by) if name != scanner][-1:] if failed else []
        if dated:
            self.failed_by_at = (*(self.failed_by_at[place] for place in others), at) if failed else ()
        self.failed_by = (*(self.failed_by[place] for place in others), scanner) if failed else ()
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
        self.failed_by, self.failed_by_at, self.held_until = (), (), 0.0
        self.failed_at.clear()
        self.trials.clear()
        if self.window:
            self.window.clear()
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
            failed_at=tuple(self.failed_at),
            window_at=tuple(self.window.at) if self.window else (),
            failed_by_at=self.failed_by_at,
        )

    def load(self, record: BreakerRecord) -> None:
        """Replace the state by a record's; its window is used only if these options have a rate."""
        memory = self.memory
        memory.failures, memory.successes = record.failures, record.successes
        self._reopened, self.trials = record.reopened, dict(record.trials)
        self.opened_at, self.open_for, self.open_until = record.opened_at, record.open_for, record.open_until
        self.failed_by, self.down_since, self.held_until = record.failed_by, record.down_since, record.held_until
        self.failed_by_at = ()
        self.failed_at.clear()
        if self.window:
            self.window.load(record)
        if self._options.within is not None:
            self._load_instants(record)
        memory.enter(record.state, record.generation)
        self._connect()

    def _load_instants(self, record: BreakerRecord) -> None:
        """Take over when attempts failed; those of unknown age, written under other options, do not count."""
        self.failed_at.extend(record.failed_at)
        if record.state == CLOSED:
            self.memory.failures = len(self.failed_at)
        dated = len(record.failed_by) == len(record.failed_by_at)
        self.failed_by, self.failed_by_at = (record.failed_by, record.failed_by_at) if dated else ((), ())
