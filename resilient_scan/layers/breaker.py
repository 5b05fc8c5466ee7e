"""Breaker: stop asking a source that keeps failing; pybreaker is the state machine.

        failures in a row            open time is over, a trial is admitted
    CLOSED ----------------> OPEN ------------------------------------------> HALF-OPEN
       ^                      ^                                                 |   |
       |                      +------------- a trial fails ---------------------+   |
       +-------------------------------- enough trials succeed ---------------------+

pybreaker's own `call` holds its lock while the protected code runs. Here an attempt gets a *permit* under a short
lock, runs outside, and its outcome is replayed into pybreaker under the lock. A permit carries the *generation*, a
number that grows with each change of state: an outcome of an older generation has no vote. The first outcome of a
permit wins: a timeout votes the moment it is detected, and the answer that comes late is ignored.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import Any

import pybreaker

from resilient_scan.clock import Clock, short
from resilient_scan.context import Call, ScanContext
from resilient_scan.errors import CircuitOpen, PermanentError, Rejected, RetryAfter, ScanCancelled, ScanTimeout
from resilient_scan.events import BreakerChanged
from resilient_scan.options import Breaker

CLOSED, OPEN, HALF_OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN


class Permit:
    """Leave for one attempt."""

    done = False
    expires: float | None = None  # when its place is given to another trial; None: it is no trial

    def __init__(self, generation: int) -> None:
        self.generation = generation


class _Memory(pybreaker.CircuitBreakerStorage):
    """pybreaker's numbers. Time is not among them: the guard keeps it, on its own clock."""

    opened_at: datetime | None = None

    def __init__(self) -> None:
        super().__init__("memory")
        self.generation = 0
        self.closed = True
        self.failures = 0  # in a row
        self._state = CLOSED
        self._successes = 0

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        # pybreaker tells its listeners before it writes the state, so the number is raised here, after the write
        self._state = state
        self.closed = state == CLOSED
        self.generation += 1

    @property
    def counter(self) -> int:
        return self.failures

    @property
    def success_counter(self) -> int:
        return self._successes

    def increment_counter(self) -> None:
        self.failures += 1

    def reset_counter(self) -> None:
        self.failures = 0

    def increment_success_counter(self) -> None:
        self._successes += 1

    def reset_success_counter(self) -> None:
        self._successes = 0


class _Window:
    """The last attempts, for the rates."""

    def __init__(self, options: Breaker) -> None:
        self._options = options
        self._last: deque[tuple[bool, bool]] = deque(maxlen=options.window)

    def full_of_trouble(self, failed: bool, slow: bool) -> bool:
        """Note an attempt, and say whether there are too many failures or slow ones among the last."""
        self._last.append((failed, slow))
        options, seen = self._options, len(self._last)
        if seen < options.minimum:
            return False
        failures, slows = (sum(column) for column in zip(*self._last, strict=True))
        return _reaches(failures / seen, options.failure_rate) or _reaches(slows / seen, options.slow_rate)

    def counts(self) -> tuple[int, int, int]:
        """Return how many attempts there are, how many failed and how many were slow."""
        return len(self._last), sum(failed for failed, _ in self._last), sum(slow for _, slow in self._last)

    def clear(self) -> None:
        self._last.clear()


def _reaches(rate: float, limit: float | None) -> bool:
    return limit is not None and rate >= limit


class _Failure(Exception):
    """Stands for a scanner's failure when it is replayed."""


def _fail() -> None:
    raise _Failure


class Guard:
    """One scanner's breaker; safe to use from any thread, no lock is held while scanner code runs."""

    def __init__(self, name: str, options: Breaker, clock: Clock, random: Random) -> None:
        self._name = name
        self._options = options
        self._clock = clock
        self._random = random
        self._memory = _Memory()
        self._machine = pybreaker.CircuitBreaker(
            fail_max=options.failures,
            success_threshold=options.trials,
            state_storage=self._memory,
            throw_new_error_on_trip=False,
        )
        self._window = _Window(options) if options.failure_rate or options.slow_rate else None
        self._lock = threading.Lock()
        self._trials: set[Permit] = set()
        self._open_until = 0.0
        self._reopened = 0

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        return self._memory.state.replace("-", "_")

    @property
    def failures(self) -> int:
        """How many attempts have failed in a row."""
        return self._memory.failures

    def next_trial_in(self) -> float:
        """Return the seconds until an attempt is admitted at the latest, 0 where one is admitted now.

        The place of a trial under way is free when the trial ends, or when its permit expires.
        """
        with self._lock:
            state, now = self._memory.state, self._clock.monotonic()
            if state == OPEN:
                return max(0.0, self._open_until - now)
            taken = sorted(permit.expires - now for permit in self._trials if permit.expires is not None)
            taken = [left for left in taken if left > 0]
            return taken[0] if state == HALF_OPEN and len(taken) >= self._options.trials else 0.0

    def troubled(self) -> tuple[int, int, int] | None:
        """Return attempts, failures and slow ones in the window of the rates; `None` where there is no rate."""
        with self._lock:
            return None if self._window is None else self._window.counts()

    def is_open(self) -> bool:
        """Say whether an attempt would be refused because the breaker is open."""
        return self._memory.state == OPEN and self._clock.monotonic() < self._open_until

    def around(self, call: Call, emit: Callable[[BreakerChanged], None]) -> Call:
        """Wrap `call` so that each attempt needs a permit and votes."""
        memory, clock = self._memory, self._clock
        slow_after = self._options.slow_after

        def guarded(context: ScanContext) -> list[Any]:
            # Read in this order: were the breaker to open in between, the permit is of the older generation and has
            # no vote; the other way round a vote from before the opening would count after it.
            permit = Permit(memory.generation)
            if not memory.closed:
                permit, change = self._admit_trial()
                if change is not None:
                    emit(change.during(context.run_id))
            failed: bool | None = None
            slow = False
            # The watchdog votes for whatever permit it finds here once the deadline is over. So the permit is set
            # before the time is read: either the watchdog finds it, or this attempt sees that it is too late.
            context.permit = permit
            began = clock.monotonic()
            try:
                if context.abandoned or began >= context.ends:
                    context.check()
                found = call(context)
                failed = False
                slow = slow_after is not None and clock.monotonic() - began >= slow_after
                return found
            except BaseException as error:
                failed = self._verdict(error, context)
                raise
            finally:
                context.permit = None
                change = self.vote(permit, failed, slow=slow)
                if change is not None:
                    emit(change.during(context.run_id))

        return guarded

    def admit(self) -> tuple[Permit, BreakerChanged | None]:
        """Return a permit for one attempt, and the change of state that this made, if any.

        Raises:
            CircuitOpen: the breaker is open, or half-open with all its trials taken.
        """
        permit = Permit(self._memory.generation)
        return (permit, None) if self._memory.closed else self._admit_trial()

    def vote(self, permit: Permit, failed: bool | None, *, slow: bool = False) -> BreakerChanged | None:
        """Count the outcome of a permit (`None`: no vote, the permit is given back); the first one wins.

        Returns:
            The change of state that this made, for the caller to send.
        """
        if failed is False and self._window is None and self._memory.failures == 0 and permit.expires is None:
            permit.done = True  # a success resets a count, and there is none
            return None
        with self._lock:
            if permit.done:
                return None
            permit.done = True
            self._trials.discard(permit)
            if failed is None or permit.generation != self._memory.generation:
                return None
            return self._replay(failed, slow)

    def _verdict(self, error: BaseException, context: ScanContext) -> bool | None:
        """Say whether an exception is a failure; `None`: no vote."""
        if context.cut_short:  # the run's end is not the source's fault
            return None
        if isinstance(error, ScanCancelled):
            return True if context.timed_out else None
        if isinstance(error, RetryAfter) or (isinstance(error, ScanTimeout) and error.by_clock):
            return True
        if isinstance(error, PermanentError | Rejected):
            return None
        return True if isinstance(error, self._options.on) else None

    def _admit_trial(self) -> tuple[Permit, BreakerChanged | None]:
        with self._lock:
            change = self._half_open()
            if self._memory.closed:  # by another thread, just now
                return Permit(self._memory.generation), None
            now = self._clock.monotonic()
            self._trials = {p for p in self._trials if p.expires is not None and p.expires > now}
            if len(self._trials) >= self._options.trials:
                raise CircuitOpen(f"the breaker of {self._name} is half-open and its trial is still under way")
            permit = Permit(self._memory.generation)
            permit.expires = now + self._options.open_for
            self._trials.add(permit)
            return permit, change

    def _half_open(self) -> BreakerChanged | None:
        """Go from open to half-open if the open time is over."""
        if self._memory.state != OPEN:
            return None
        left = self._open_until - self._clock.monotonic()
        if left > 0:
            raise CircuitOpen(f"the breaker of {self._name} is open, next trial in {short(left)}s")
        self._machine.half_open()
        return BreakerChanged(self._name, "open", "half_open", None)

    def _replay(self, failed: bool, slow: bool) -> BreakerChanged | None:
        before, generation = self.state, self._memory.generation
        try:
            self._machine.call(_fail if failed else int)
        except _Failure as replayed:  # raised while the scanner's own exception is handled: do not keep that alive
            replayed.__context__ = replayed.__traceback__ = None
        if self._memory.closed and self._window is not None and self._window.full_of_trouble(failed, slow):
            self._machine.open()
        if self._memory.generation == generation:
            return None
        self._trials.clear()
        if self._window is not None:
            self._window.clear()
        open_for = self._open(reopened=before == "half_open") if self._memory.state == OPEN else None
        return BreakerChanged(self._name, before, self.state, open_for)

    def _open(self, reopened: bool) -> float:
        """Start the open time: exact the first time, then doubled with jitter while trials fail."""
        options = self._options
        self._reopened = self._reopened + 1 if reopened else 0
        seconds = options.open_for
        if reopened:
            grown = options.open_for * 2.0 ** min(self._reopened, 62)
            seconds = min(options.open_cap, self._random.uniform(0.75 * grown, grown))
        self._open_until = self._clock.monotonic() + seconds
        return seconds
