"""The circuit breaker around calls: an attempt needs a permit, and its outcome is a vote.

    admit                       the attempt runs                     vote
    short lock ---- permit ---> (no lock is held) ---- outcome ---> short lock: the outcome is replayed into the machine
                  generation            |
                                        +-- still running at its deadline: the watchdog votes "failed" on its permit

While the breaker is closed, a permit is free: no lock, and no store. While it is open, there are none. Once the open
time has passed, it is half-open, and a permit is a *trial*: it takes one of `trials` slots, until it votes or expires.

A permit carries the *generation*, a number that changes with each change of state, and a vote of another generation
does not count. Case: attempt A is admitted while the breaker is closed and takes a minute; meanwhile the breaker opens,
a trial succeeds, and it is closed again. A's failure then says nothing about the source as it is now.

The first vote of a permit wins. Case: A hangs, so the watchdog votes "failed" at A's deadline; when A returns an answer
after all, its vote is ignored.

That an attempt is *slow* is known before its outcome, and counts then, once: at `slow_after` the watchdog notes it.
Otherwise a source that has become slow could be given a fleet's worth of attempts before the first of them returns.
"""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from resilient_scan._once import IMPORTING
from resilient_scan._text import in_seconds
from resilient_scan.clock import Clock
from resilient_scan.context import NEVER
from resilient_scan.errors import (
    CircuitOpen,
    RetryAfter,
    ScanError,
    ScanTimeout,
    StoreError,
    decisive_leaves,
    is_cancellation,
    is_listed,
)
from resilient_scan.events import BreakerChanged
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.layers.breaker.record import CLOSED, HALF_OPEN, OPEN, Vote
from resilient_scan.layers.breaker.sync import BreakerStore, ManualChange, StoreSync, TrialRequest, change_event
from resilient_scan.options import Breaker

if TYPE_CHECKING:
    from resilient_scan.layers.breaker.machine import BreakerMachine

_trial_numbers = itertools.count(1)
VOTE_GRACE = 1.0  # seconds after an attempt's deadline in which it may still vote, before its slot goes to another


class Permit(msgspec.Struct, eq=False, gc=False):
    """Permission for one attempt."""

    generation: int
    done: bool = False  # whether it has voted
    slow_at: float = NEVER  # when its attempt is slow, without the time by which its deadlines were postponed
    slow: bool = False  # whether it was counted as slow
    trial: str = ""  # its id, if it is a trial
    expires: float | None = None  # when its slot goes to another trial; None if it is not a trial


class CircuitBreaker:
    """One scanner's breaker. It is safe to use from any thread, and holds no lock while scanner code runs.

    Args:
        name: the scanner's.
        options: of the breaker.
        clock, random: where time and chance come from.
        store: where its state is shared with other processes; `None` keeps it in this object.
        quorum: how many scanners must have failed before it opens, if it is a provider's.
    """

    __slots__ = (
        "_clock",
        "_lock",
        "_made",
        "_name",
        "_options",
        "_process",
        "_quorum",
        "_random",
        "_sync",
        "has_rates",
        "memory",
    )

    def __init__(
        self,
        name: str,
        options: Breaker,
        clock: Clock,
        random: Random,
        store: BreakerStore | None = None,
        quorum: int = 1,
    ) -> None:
        with IMPORTING:
            from resilient_scan.layers.breaker.machine import new_memory  # noqa: PLC0415 - see there: it is slow

        self._name = name
        self._options = options
        self._clock = clock
        self._random = random
        self._quorum = quorum
        self._made: BreakerMachine | None = None
        self.memory = new_memory()
        self.has_rates: bool = bool(options.failure_rate or options.slow_rate)
        self._lock = threading.Lock()
        self._process = "" if store is None else f"{os.getpid()}-{uuid.uuid4().hex[:12]}."
        self._sync = None if store is None else StoreSync(name, options, clock, self._machine, self._lock, store)

    @property
    def _machine(self) -> BreakerMachine:
        """The machine on its memory, made when it is first needed: most scanners never fail. Under the lock, then."""
        made = self._made
        if made is None:
            from resilient_scan.layers.breaker.machine import BreakerMachine  # noqa: PLC0415 - imported with its memory

            made = self._made = BreakerMachine(self._options, self._quorum, self.memory)
        return made

    # What it is like now, without a look at the store.

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        return self.memory.state.replace("-", "_")

    @property
    def slow_after(self) -> float | None:
        """Seconds after which a call is slow; `None`: none is."""
        return self._options.slow_after

    @property
    def failures(self) -> int:
        """The number of attempts that have failed in a row, without those that are too old to count."""
        if self._options.within is None:
            return self.memory.failures
        with self._lock:
            self._machine.forget_old(self._clock.monotonic())
            return self.memory.failures

    def is_open(self) -> bool:
        """Return whether an attempt would be refused because the breaker is open."""
        return self.memory.state == OPEN and self._clock.monotonic() < self._machine.open_until

    def next_trial_in(self) -> float:
        """Return the seconds until an attempt is admitted, at most; 0 if one would be admitted now.

        A slot becomes free when its trial ends, or else when its permit expires.
        """
        with self._lock:
            state, now = self.memory.state, self._clock.monotonic()
            if state == OPEN:
                return max(0.0, self._machine.open_until - now)
            taken = sorted(expires - now for expires in self._machine.trials.values() if expires > now)
            return taken[0] if state == HALF_OPEN and len(taken) >= self._options.trials else 0.0

    def window_counts(self) -> tuple[int, int, int] | None:
        """Return attempts, failures and slow attempts in the window of the rates; `None` if there is no rate."""
        with self._lock:
            if self._machine.window is None:
                return None
            self._machine.forget_old(self._clock.monotonic())
            return self._machine.window.counts()

    # Around a call.

    def around(self, call: Call, emit: Callable[[BreakerChanged], None]) -> Call:
        """Wrap `call` so that each attempt needs a permit and votes."""
        return _Guarded(self, call, emit, self._clock.monotonic, self._options.suspicious).call

    def give_back(
        self,
        permit: Permit,
        failed: bool | None,
        context: AttemptContext,
        emit: Callable[[BreakerChanged], None],
    ) -> None:
        """Cast the vote of an attempt that has ended."""
        context.permit = None
        if failed is False and not self.has_rates and self.memory.failures == 0 and permit.expires is None:
            permit.done = True  # the first lines of `vote`, without the call
            return
        change = self.vote(permit, failed)
        if change is not None:
            emit(change.during(context.run_id))

    def noting_slow(self, call: Call, emit: Callable[[BreakerChanged], None]) -> Call:
        """Wrap `call`, inside `around`, so that an attempt counts as slow once it has taken `slow_after`.

        The watchdog notes that at the mark that is set here; if it is late, the attempt itself does. So neither the
        number of slow attempts nor what becomes of them depends on who is first.
        """
        slow_after, clock = self._options.slow_after, self._clock
        if slow_after is None:
            return call

        def noting(context: AttemptContext) -> list[Any]:
            permit = context.permit
            slow_at = clock.monotonic() + slow_after
            permit.slow_at = slow_at - context.postponed  # blocked by another scanner of its loop, it is not slow
            context.mark(slow_at)
            try:
                return call(context)
            finally:
                context.mark(NEVER)
                change = self.note_slow(permit, context.postponed)
                if change is not None:
                    emit(change.during(context.run_id))

        return noting

    def note_slow(self, permit: Permit, postponed: float = 0.0, *, wait: bool = True) -> BreakerChanged | None:
        """Count the attempt under way as slow, if it is; return the change of state that this made.

        A trial is not counted: it closes the breaker or opens it, whatever it takes.

        Args:
            permit: the attempt's.
            postponed: seconds that it has lost so far through no fault of its own.
            wait: `False` on a thread that must not wait for a store: the next `flush` stores the vote.
        """
        if self._clock.monotonic() - postponed < permit.slow_at:
            return None
        memory, sync = self.memory, self._sync
        with self._lock:
            counts = memory.state == CLOSED and permit.generation == memory.generation
            if permit.done or permit.slow or not counts:
                return None
            permit.slow = True
            before, vote = memory.state, self._vote(permit, None, "")
            changed = self._machine.vote(vote, vote.at)
            if sync is None:
                return self._change_since(before) if changed else None
            sync.add_vote(vote)
            if not wait:
                return sync.announce()
        return sync.flush()

    def permit_or_refuse(self, context: AttemptContext, emit: Callable[[BreakerChanged], None]) -> Permit:
        """Return a permit for an attempt while the breaker is not closed.

        Raises:
            CircuitOpen: it is open, or half-open with all its trials taken.
        """
        answer, change = self._ask_admission(context.ends)
        if change is not None:
            emit(change.during(context.run_id))
        if isinstance(answer, CircuitOpen):
            try:
                raise answer
            finally:
                del answer  # or the exception, its traceback and this frame would keep each other alive until a gc
        return answer

    def judge(
        self,
        permit: Permit,
        error: BaseException,
        context: AttemptContext,
        emit: Callable[[BreakerChanged], object] = lambda _change: None,
    ) -> tuple[bool | None, Permit]:
        """Return the vote that an exception is, and the permit to cast it with.

        If it may be this machine's fault, the vote comes once that is decided, and the permit returned is spent.
        """
        failed, fault = self.verdict(error, context), context.fault(error)
        if not failed or fault is None:
            return failed, permit
        run_id = context.run_id

        def vote() -> None:
            change = self.vote(permit, None if fault.local or fault.excused else True)
            if change is not None:
                emit(change.during(run_id))

        fault.then(vote)
        return failed, Permit(permit.generation, done=True)

    def verdict(self, error: BaseException, context: AttemptContext) -> bool | None:
        """Return whether an exception is a failure of the source; `None` casts no vote."""
        if context.cut_short or context.excused:  # the run's end, or the way to its provider: not the source's fault
            return None
        fault = context.fault(error)
        if fault is not None and fault.local:
            return None
        leaves = decisive_leaves(error)
        if all(isinstance(leaf, ScanError) and leaf.excused for leaf in leaves):
            return None
        for leaf in leaves:
            if is_cancellation(leaf) and context.timed_out:
                return True
            if isinstance(leaf, RetryAfter) or (isinstance(leaf, ScanTimeout) and leaf.by_clock):
                return True
        return True if is_listed(error, self._options.on) else None

    # Permits.

    def admit(self, ends: float = NEVER, who: str = "") -> tuple[Permit, BreakerChanged | None]:
        """Return a permit for one attempt, and the change of state that this made, if any.

        Args:
            ends: the attempt's deadline on the monotonic clock.
            who: makes the attempt, if the breaker is a provider's.

        Raises:
            CircuitOpen: the breaker is open, or half-open with all its trials taken.
        """
        permit = Permit(self.memory.generation)
        if self.memory.closed:
            return permit, None
        answer, change = self._ask_admission(ends, who)
        if isinstance(answer, CircuitOpen):
            try:
                raise answer
            finally:
                del answer  # or the exception, its traceback and this frame would keep each other alive until a gc
        return answer, change

    def allow_trial(self) -> None:
        """Let the next attempt be a trial before the open time has passed: a quarantine's probe has waited enough."""
        with self._lock:
            self._machine.end_open_time(self._clock.monotonic())

    # Orders of an operator.

    def end_open_time(self) -> BreakerChanged | None:
        """Let the next attempt be a trial, in whichever process it comes; return a change for listeners.

        A process that has the breaker open learns of it when its next run begins. If the store fails, the order holds
        in this process.
        """
        return self._change(lambda machine, now: machine.end_open_time(now))[0]

    def reset(self) -> tuple[BreakerChanged | None, StoreError | None]:
        """Close and forget all failures, in the store too; attempts under way have no vote.

        Returns:
            The change of state, for listeners, and why the store could not be changed; then the reset holds in this
            process only.
        """
        return self._change(lambda machine, now: machine.reset(now))

    def _change(self, order: ManualChange) -> tuple[BreakerChanged | None, StoreError | None]:
        if self._sync is not None:
            return self._sync.change(order)
        with self._lock:
            before = self.memory.state
            order(self._machine, self._clock.monotonic())
            return (self._change_since(before) if self.memory.state != before else None), None

    def _ask_admission(self, ends: float, who: str = "") -> tuple[Permit | CircuitOpen, BreakerChanged | None]:
        """Return a permit or a refusal, and a change for listeners.

        The store decides if there is one and it can be reached, unless the open time has not passed here: then the
        answer is "no" without it, so a source that is down costs its store nothing.
        """
        now = self._clock.monotonic()
        with self._lock:
            state, generation = self.memory.state, self.memory.generation
            if state == OPEN and now < self._machine.open_until:
                return self._refusal(now), None
        until = now + max(0.0, min(self._options.open_for, ends + VOTE_GRACE - now))
        trial = f"{self._process}{next(_trial_numbers)}{f' {who}' if who else ''}"
        change: BreakerChanged | None = None
        if self._sync is not None:
            request = TrialRequest(trial, until - now, generation if state == OPEN else None)
            change, result = self._sync.request_trial(request)
            if result is not None:
                record = result.record
                return self._permit(result.granted, record.state, record.generation, trial, until), change
        return self._admit_locally(trial, now, until, change)

    def _admit_locally(
        self, trial: str, now: float, until: float, change: BreakerChanged | None
    ) -> tuple[Permit | CircuitOpen, BreakerChanged | None]:
        memory, sync = self.memory, self._sync
        with self._lock:
            before = memory.state
            granted = self._machine.admit(trial, now, until)
            if memory.state != before:
                if sync is not None:
                    sync.diverge()
                change = self._change_since(before) if sync is None else sync.announce()
            state, generation = memory.state, memory.generation
        return self._permit(granted, state, generation, trial, until), change

    def _permit(self, granted: bool, state: str, generation: int, trial: str, until: float) -> Permit | CircuitOpen:
        if not granted:
            with self._lock:
                return self._refusal(self._clock.monotonic())
        permit = Permit(generation)
        if state == HALF_OPEN:
            permit.trial, permit.expires = trial, until
        return permit

    def _refusal(self, now: float) -> CircuitOpen:
        """Return why there is no permit. Under the lock."""
        if self.memory.state == OPEN:
            left = max(0.0, self._machine.open_until - now)
            return CircuitOpen(f"the breaker of {self._name} is open, next trial in {in_seconds(left)}s")
        return CircuitOpen(f"the breaker of {self._name} is half-open and its trial is still under way")

    # Votes.

    def vote(self, permit: Permit, failed: bool | None, *, wait: bool = True, who: str = "") -> BreakerChanged | None:
        """Count the outcome of a permit, if it is the permit's first; return the change of state that it made.

        With a store, a vote that matters to other processes is stored when this returns: a failure, a trial's outcome,
        a success after failures, and whatever changes the state. The other successes, which only a window needs, go
        along with the next such vote, or with `flush`.

        Args:
            permit: the attempt's.
            failed: whether it failed; `None` casts no vote and gives the permit back.
            wait: `False` on a thread that must not wait for a store: the next `flush` stores the vote.
            who: made the attempt, if the breaker is a provider's.
        """
        memory, sync = self.memory, self._sync
        if failed is False and not self.has_rates and memory.failures == 0 and permit.expires is None:
            # A success resets the count of failures, which is 0, so there is nothing to lock. If the watchdog votes
            # "failed" on this permit at this very moment, its vote counts, and ours would have been ignored anyway.
            permit.done = True
            return None
        with self._lock:
            if permit.done:
                return None
            permit.done = True
            if permit.generation != memory.generation or (failed is None and permit.expires is None):
                return None
            if self._options.within is not None:
                self._machine.forget_old(self._clock.monotonic())
                if failed is False and not self.has_rates and memory.failures == 0 and permit.expires is None:
                    return None  # as above: what it would end is too old to count
            before, failures = memory.state, memory.failures
            vote = self._vote(permit, failed, who)
            changed = self._machine.vote(vote, vote.at)
            if sync is None:
                return self._change_since(before) if changed else None
            sync.add_vote(vote)
            if not wait:
                return sync.announce()
        matters = changed or failed is not False or permit.trial or failures
        return sync.flush() if matters else None

    def _vote(self, permit: Permit, failed: bool | None, who: str) -> Vote:
        reopens = failed and permit.expires is not None
        jitter = self._random.uniform(0.75, 1.0) if reopens else 1.0
        return Vote(permit.generation, permit.trial, failed, permit.slow, self._clock.monotonic(), jitter, who)

    def _change_since(self, before: str) -> BreakerChanged:
        return change_event(self._name, before, self.memory.state, self._machine.open_for)

    # The store.

    def flush(self) -> BreakerChanged | None:
        """Store the pending votes; return a change of state for listeners, if they made one.

        Called at the end of a run, and by the thread that sends the events of a watchdog, which must not wait.
        """
        return None if self._sync is None else self._sync.flush()

    def sync(self, data: bytes | None, now: float) -> BreakerChanged | None:
        """Take over what the store has of this breaker, at the start of a run; flush the pending votes.

        Args:
            data: the bytes under the breaker's key; `None` if there are none.
            now: the store's time when they were read.

        Returns:
            A change of state for listeners, if pending votes made one.
        """
        return None if self._sync is None else self._sync.sync(data, now)

    def trust_local(self) -> None:
        """Go on without the store, which could not be read at the start of a run, until the next vote that matters."""
        if self._sync is not None:
            self._sync.trust_local()


class _Guarded:
    """A call that needs a permit. An object, where a function would have ten for the garbage collector to look at."""

    __slots__ = ("_breaker", "_call", "_emit", "_memory", "_monotonic", "_suspicious")

    def __init__(
        self,
        breaker: CircuitBreaker,
        call: Call,
        emit: Callable[[BreakerChanged], None],
        monotonic: Callable[[], float],
        suspicious: bool,
    ) -> None:
        self._breaker, self._memory = breaker, breaker.memory
        self._call, self._emit = call, emit
        self._monotonic, self._suspicious = monotonic, suspicious

    def call(self, context: AttemptContext) -> list[Any]:
        """Make an attempt with a permit, and vote."""
        # The generation is read before `closed`. If the breaker opens in between, this attempt has the older generation
        # and no vote. The other way round, it could see `closed`, then the breaker could open and become half-open, and
        # then this attempt, which is not a trial, would vote in the half-open generation.
        permit = Permit(self._memory.generation)
        if not self._memory.closed:
            permit = self._breaker.permit_or_refuse(context, self._emit)
        failed: bool | None = None
        # The permit is set before the clock is read. At the deadline, the watchdog votes on the permit that it finds
        # here. Either it finds this one, or it has looked before, and then this attempt sees below that the deadline
        # has passed. Were the clock read first, an attempt that is preempted in between could begin its call after the
        # watchdog has looked, and hang without ever having voted.
        context.permit = permit
        try:
            if context.abandoned or self._monotonic() >= context.ends:
                context.check()
            found = self._call(context)
            failed = self._suspicious and context.doubted is not None
            return found
        except BaseException as error:
            failed, permit = self._breaker.judge(permit, error, context, self._emit)
            raise
        finally:
            self._breaker.give_back(permit, failed, context, self._emit)
