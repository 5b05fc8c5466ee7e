"""A breaker around calls: permits, votes, and what listeners are told.

pybreaker's own `call` holds its lock while the protected code runs. Here an attempt gets a *permit* under a short
lock, runs outside, and its outcome is replayed into pybreaker under the lock. A permit carries the *generation*, a
number that grows with each change of state: an outcome of an older generation has no vote. The first outcome of a
permit wins: a timeout votes the moment it is detected, and the answer that comes late is ignored.
"""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from resilient_scan._text import in_seconds
from resilient_scan.clock import Clock
from resilient_scan.context import NEVER
from resilient_scan.errors import CircuitOpen, PermanentError, Rejected, RetryAfter, ScanCancelled, ScanTimeout
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.layers.breaker.machine import HALF_OPEN, OPEN, BreakerMachine, Vote
from resilient_scan.layers.breaker.sync import BreakerStore, StoreSync, TrialRequest, changed
from resilient_scan.options import Breaker

GRACE = 1.0  # seconds after an attempt's end in which its own process votes, before its place goes to another


class Permit(msgspec.Struct, eq=False, gc=False):
    """Leave for one attempt."""

    generation: int
    done: bool = False
    place: str = ""  # of a trial
    expires: float | None = None  # when its place is given to another trial; None: it is no trial


class CircuitBreaker:
    """One scanner's breaker; safe to use from any thread, no lock is held while scanner code runs.

    Args:
        name: the scanner's.
        options: of the breaker.
        clock, random: where time and chance come from.
        store: where its state is kept and shared with other processes; `None`: in this object.
    """

    __slots__ = (
        "_clock",
        "_lock",
        "_machine",
        "_memory",
        "_name",
        "_options",
        "_owner",
        "_places",
        "_random",
        "_rates",
        "_sync",
    )

    def __init__(
        self, name: str, options: Breaker, clock: Clock, random: Random, store: BreakerStore | None = None
    ) -> None:
        self._name = name
        self._options = options
        self._clock = clock
        self._random = random
        self._machine = BreakerMachine(options)
        self._memory = self._machine.memory
        self._rates = self._machine.window is not None
        self._lock = threading.Lock()
        self._places = itertools.count(1)
        self._owner = "" if store is None else f"{os.getpid()}-{uuid.uuid4().hex[:12]}."
        self._sync = None if store is None else StoreSync(name, options, clock, self._machine, self._lock, store)

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`, as far as is known without a look at the store."""
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
                return max(0.0, self._machine.open_until - now)
            taken = sorted(expires - now for expires in self._machine.trials.values() if expires > now)
            return taken[0] if state == HALF_OPEN and len(taken) >= self._options.trials else 0.0

    def window_counts(self) -> tuple[int, int, int] | None:
        """Return attempts, failures and slow ones in the window of the rates; `None` where there is no rate."""
        with self._lock:
            return None if self._machine.window is None else self._machine.window.counts()

    def is_open(self) -> bool:
        """Say whether an attempt would be refused because the breaker is open; asks no store."""
        return self._memory.state == OPEN and self._clock.monotonic() < self._machine.open_until

    def allow_trial(self) -> None:
        """Let the next attempt be a trial, though the open time is not over: a probe has waited long enough."""
        with self._lock:
            self._machine.open_until = min(self._machine.open_until, self._clock.monotonic())

    def around(self, call: Call, emit: Callable[[BreakerChanged], None]) -> Call:
        """Wrap `call` so that each attempt needs a permit and votes."""
        memory, clock = self._memory, self._clock
        slow_after, rates = self._options.slow_after, self._rates

        def guarded(context: AttemptContext) -> list[Any]:
            # Read in this order: were the breaker to open in between, the permit is of the older generation and has
            # no vote; the other way round a vote from before the opening would count after it.
            permit = Permit(memory.generation)
            if not memory.closed:
                permit = self._enter(context, emit)
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
                failed = self.verdict(error, context)
                raise
            finally:
                context.permit = None
                if failed is False and not rates and memory.failures == 0 and permit.expires is None:
                    permit.done = True  # what `vote` comes to, without the call
                else:
                    change = self.vote(permit, failed, slow=slow)
                    if change is not None:
                        emit(change.during(context.run_id))

        return guarded

    def admit(self, ends: float = NEVER) -> tuple[Permit, BreakerChanged | None]:
        """Return a permit for one attempt, and the change of state that this made, if any.

        Args:
            ends: the instant on the monotonic clock at which the attempt is over at the latest.

        Raises:
            CircuitOpen: the breaker is open, or half-open with all its trials taken.
        """
        permit = Permit(self._memory.generation)
        return (permit, None) if self._memory.closed else self._admit_trial(ends)

    def vote(
        self, permit: Permit, failed: bool | None, *, slow: bool = False, wait: bool = True
    ) -> BreakerChanged | None:
        """Count the outcome of a permit (`None`: no vote, the permit is given back); the first one wins.

        With a store it is in the store when this returns, if it matters to others: a failure, a trial's outcome, a
        success after failures, a slow one where there is a rate for them, and whatever changes the state. The other
        successes that a window of rates needs go along with the next such vote, or with `flush` at a run's end.

        Args:
            permit: the attempt's.
            failed: whether it failed.
            slow: whether it took too long, though it succeeded.
            wait: `False` on a thread that must not wait for a store: it is brought there by the next `flush`.

        Returns:
            The change of state that this made, for the caller to send.
        """
        memory, shared = self._memory, self._sync
        if failed is False and not self._rates and memory.failures == 0 and permit.expires is None:
            permit.done = True  # a success resets a count, and there is none
            return None
        with self._lock:
            if permit.done:
                return None
            permit.done = True
            if permit.generation != memory.generation or (failed is None and permit.expires is None):
                return None
            before, failures = memory.state, memory.failures
            vote = self._vote(permit, failed, slow)
            turned = self._machine.vote(vote, vote.at)
            if shared is None:
                return self._changed(before) if turned else None
            shared.note(vote)
            if not wait:
                return shared.tell()
        matters = turned or failed is not False or permit.place or failures or self._too_slow(slow)
        return shared.flush() if matters else None

    def flush(self) -> BreakerChanged | None:
        """Bring the votes that still wait to the store; return a change of state to tell, if any.

        For the end of a run, and for whoever sends what a watchdog has found out.
        """
        return None if self._sync is None else self._sync.flush()

    def sync(self, data: bytes | None, now: float) -> BreakerChanged | None:
        """Take over what the store has of this breaker, at the start of a run; votes that wait are brought there.

        Args:
            data: the bytes under the store's key, `None` where there are none.
            now: the store's time when they were read.

        Returns:
            A change of state to tell, if votes that waited made one.
        """
        return None if self._sync is None else self._sync.sync(data, now)

    def trust_local(self) -> None:
        """Go on without the store until the next vote that matters: it could not be read at the start of a run."""
        if self._sync is not None:
            self._sync.trust_local()

    def _too_slow(self, slow: bool) -> bool:
        return slow and self._options.slow_rate is not None

    def _vote(self, permit: Permit, failed: bool | None, slow: bool) -> Vote:
        reopens = failed and permit.expires is not None
        share = self._random.uniform(0.75, 1.0) if reopens else 1.0
        return Vote(permit.generation, permit.place, failed, slow, self._clock.monotonic(), share)

    def _changed(self, before: str) -> BreakerChanged:
        circuit = self._machine
        return changed(self._name, before, self._memory.state, circuit.open_for)

    def verdict(self, error: BaseException, context: AttemptContext) -> bool | None:
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

    # where it is not closed

    def _enter(self, context: AttemptContext, emit: Callable[[BreakerChanged], None]) -> Permit:
        answer, change = self._admit(context.ends)
        if change is not None:
            emit(change.during(context.run_id))
        if isinstance(answer, CircuitOpen):
            raise answer
        return answer

    def _admit_trial(self, ends: float) -> tuple[Permit, BreakerChanged | None]:
        answer, change = self._admit(ends)
        if isinstance(answer, CircuitOpen):
            raise answer
        return answer, change

    def _admit(self, ends: float) -> tuple[Permit | CircuitOpen, BreakerChanged | None]:
        """Return a permit or a refusal, and a change of state to tell; no store is asked while it is open here."""
        now = self._clock.monotonic()
        with self._lock:
            state, over = self._memory.state, self._memory.generation
            if state == OPEN and now < self._machine.open_until:
                return self._refusal(now), None
        until = now + max(0.0, min(self._options.open_for, ends + GRACE - now))
        place = f"{self._owner}{next(self._places)}"
        told: BreakerChanged | None = None
        if self._sync is not None:
            request = TrialRequest(place, until - now, over if state == OPEN else None)
            told, result = self._sync.ask(request)
            if result is not None:
                record = result.record
                return self._answer(result.granted, record.state, record.generation, place, until), told
        return self._admit_locally(place, now, until, told)

    def _admit_locally(
        self, place: str, now: float, until: float, told: BreakerChanged | None
    ) -> tuple[Permit | CircuitOpen, BreakerChanged | None]:
        memory, shared = self._memory, self._sync
        with self._lock:
            before = memory.state
            granted = self._machine.admit(place, now, until)
            if memory.state != before:
                if shared is not None:
                    shared.diverge()
                told = self._changed(before) if shared is None else shared.tell()
            state, generation = memory.state, memory.generation
        return self._answer(granted, state, generation, place, until), told

    def _answer(self, granted: bool, state: str, generation: int, place: str, until: float) -> Permit | CircuitOpen:
        if not granted:
            with self._lock:
                return self._refusal(self._clock.monotonic())
        permit = Permit(generation)
        if state == HALF_OPEN:
            permit.place, permit.expires = place, until
        return permit

    def _refusal(self, now: float) -> CircuitOpen:
        if self._memory.state == OPEN:
            left = max(0.0, self._machine.open_until - now)
            return CircuitOpen(f"the breaker of {self._name} is open, next trial in {in_seconds(left)}s")
        return CircuitOpen(f"the breaker of {self._name} is half-open and its trial is still under way")
