"""The breaker of a provider, which its scanners share: it opens when the way to the provider breaks down.

It is the scanners' `CircuitBreaker` with four differences.

* What counts is whose fault a failure is (`blame`): only those of the way vote. An answer, even a 404, is a success:
  the way is there. All else casts no vote.
* It opens only on failures of two of its scanners, or of its only one, with no success of any of them in between. Take
  a provider of two scanners, one of which asks for a page that always ends in a 503: it fails in every run, and its
  sibling succeeds in every run.
* What it has counted, the scanner's own breaker does not (`excused`). A scanner that keeps failing all alone is no
  longer excused: after as many failures in a row as would open this breaker, or once a sibling has succeeded amid them.
* A provider that asks to be left alone (`RetryAfter`) is *held*, for as long as it said: the queue of its limit
  (`layers.limit`) admits nobody before.

After a trial that did not close it, the next one is another scanner's. Otherwise the scanner with the broken page, or
one that hangs, which may be the first of every run, would make all trials, and keep its siblings out for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Any, TypeVar

import msgspec

from resilient_scan._text import in_seconds, moment
from resilient_scan.clock import Clock
from resilient_scan.context import ScanContext
from resilient_scan.errors import CircuitOpen, ScanError, StoreError, decisive_leaves, requested_wait
from resilient_scan.events import BreakerChanged, Event, ProviderChanged
from resilient_scan.layers.attempt import AttemptContext, Call
from resilient_scan.layers.blame import is_of_way
from resilient_scan.layers.breaker.breaker import CircuitBreaker, Permit
from resilient_scan.layers.breaker.record import CLOSED, OPEN, Vote
from resilient_scan.layers.breaker.sync import BreakerStore
from resilient_scan.layers.local import Fault
from resilient_scan.options import Breaker
from resilient_scan.results import PROVIDER

T = TypeVar("T")
HELD = "held"
QUORUM = 2  # scanners that must have failed, where the provider has as many


class ProviderBreaker(CircuitBreaker):
    """One provider's breaker. It is safe to use from any thread, and holds no lock while foreign code runs.

    Args:
        provider: its name; a host and its port, if no scanner's options name it.
        options: of the breaker; those about rates do not apply.
        clock, random: where time and chance come from.
        send: takes an event.
        store: where its state is shared with other processes; `None` keeps it in this object.
        scanners: those that name it in their options; `None`: it is a host that nobody names. Others may `join`.
    """

    __slots__ = (
        "_by_name",
        "_last_trial",
        "_send",
        "_streaks",
        "_undecided",
        "_yielded",
        "on_hold",
        "provider",
        "scanners",
    )

    def __init__(
        self,
        provider: str,
        options: Breaker,
        clock: Clock,
        random: Random,
        send: Callable[[Event], None],
        store: BreakerStore | None = None,
        scanners: Collection[str] | None = None,
    ) -> None:
        rates = {"failure_rate": None, "slow_after": None, "slow_rate": None}
        quorum = max(1, min(QUORUM, len(scanners or ())))
        options = msgspec.structs.replace(options, **rates)
        super().__init__(f"provider {provider}", options, clock, random, store, quorum)
        self.provider = provider
        self.scanners: set[str] = set(scanners or ())
        self.on_hold: Callable[[], None] = lambda: None
        self._send = send
        self._by_name = scanners is not None
        self._streaks: dict[str, int] = {}  # failures in a row of each scanner that fails, while it is closed
        self._undecided: list[Fault] = []  # failures that may be this machine's fault, and do not count yet
        self._last_trial = ""  # who made the last trial, since it was last closed
        self._yielded = False  # whether that one has let others go first since then

    # what it is like now

    @property
    def held_until(self) -> float:
        """The instant (monotonic) until which the provider asked to be left alone; in the past: it may be called."""
        return 0.0 if self._made is None else self._made.held_until

    @property
    def status(self) -> str:
        """`closed`, `open`, `half_open`, or `held`: closed, but the provider asked to be left alone."""
        held = self.memory.state == CLOSED and self.held_until > self._clock.monotonic()
        return HELD if held else self.state

    def admits_by(self, ends: float) -> bool:
        """Return whether an attempt may begin before `ends` (monotonic), as far as one can tell."""
        return not self.is_open() and not self._is_in_doubt() and max(self.held_until, self._clock.monotonic()) < ends

    def describe_hold(self) -> str:
        """Say until when the provider asked to be left alone."""
        left = max(0.0, self.held_until - self._clock.monotonic())
        now = self._clock.time()
        return f"{self._name} asked to be left alone until {moment(now + left, now)}, in {in_seconds(left)} s"

    def reason(self) -> str:
        """Say why the provider is not called, and when it is again; an empty text: it is."""
        status = self.status
        if status == HELD:
            return self.describe_hold()
        with self._lock:
            return "" if status == CLOSED else self._down(self._clock.monotonic())

    def instants(self) -> tuple[float | None, float | None, str]:
        """Return since when it is down, when it may be called again, both in epoch seconds, and who tries it.

        While nobody does, that is who tried it last. The second is `None` during a trial, which decides that.
        """
        status, now, wall = self.status, self._clock.monotonic(), self._clock.time()
        if status == HELD:
            return None, wall + (self.held_until - now), ""
        with self._lock:
            if self.memory.state == CLOSED:
                return None, None, ""
            machine, trying = self._machine, self._trying(now)
            last = machine.failed_by[-1] if machine.failed_by else ""
            until = None if trying else wall + (machine.open_until - now)
            return wall - (now - machine.down_since), until, trying or last

    def _trying(self, now: float) -> str:
        """Return which scanner is at a trial, or an empty text. Under the lock."""
        under_way = [trial for trial, expires in self._machine.trials.items() if expires > now]
        return under_way[-1].rpartition(" ")[2] if under_way else ""

    def _down(self, now: float) -> str:
        """Say since when the provider is down, who tried it, and when it is tried again. Under the lock."""
        machine, wall = self._machine, self._clock.time()
        since = f"{self._name}: down since {moment(wall - (now - machine.down_since), wall)}"
        trying = self._trying(now)
        if trying:
            return f"{since}, {trying} is trying it now"
        tried = f", tried by {machine.failed_by[-1]}" if machine.failed_by else ""
        return f"{since}{tried}, next trial in {in_seconds(max(0.0, machine.open_until - now))} s"

    def _refusal(self, now: float) -> CircuitOpen:
        return _refused(self._down(now))

    # around what the scanners do

    def join(self, scanner: str) -> None:
        """Count one more scanner among those of the provider: it has begun to call it.

        If the only scanner so far has opened the breaker, this one may try at once: alone, the other could not have
        opened it.
        """
        with self._lock:
            if scanner in self.scanners:
                return
            self.scanners.add(scanner)
            self._machine.quorum = min(QUORUM, len(self.scanners))
            if self.memory.state == OPEN and len(self._machine.failed_by) < self._machine.quorum:
                self._machine.end_open_time(self._clock.monotonic())

    def attempts_of(self, scanner: str, call: Call) -> Call:
        """Wrap one scanner's `call` so that each attempt needs a permit and votes."""
        memory, clock, streaks, undecided = self.memory, self._clock, self._streaks, self._undecided

        def attempt(context: AttemptContext) -> list[Any]:
            permit = Permit(memory.generation)  # before `closed`, as in a scanner's own breaker
            if undecided or not memory.closed:
                permit = self._admit(scanner, context)
                # The same order as there: at the deadline, either the watchdog finds the trial here and gives it back,
                # or it has looked before, and then this attempt sees that its time is up, and gives it back itself.
                context.give_back = lambda: self._give_back(permit, context.run_id)
                if context.abandoned or clock.monotonic() >= context.ends:
                    context.give_back = None
                    self._give_back(permit, context.run_id)
                    context.check()
            context.answered = context.excused = False
            failed: bool | None = None
            try:
                found = call(context)
                failed = False
                return found
            except BaseException as error:
                failed, blamed = self._judge(error, context)
                if failed and not self._waits(permit, error, scanner, context, blamed):
                    context.excused = self._count(permit, scanner, context) and blamed
                raise
            finally:
                context.give_back = None
                if failed is False and permit.expires is None and memory.failures == 0 and not streaks:
                    permit.done = True  # the first lines of `vote`, without the call
                elif not failed:
                    self._settle(permit, failed, scanner, context)

        return attempt

    def ask(self, scanner: str, call: Callable[[], T], context: ScanContext) -> T:
        """Return what `call` returns, which is one of several calls of an attempt; it needs a permit and votes.

        Raises:
            CircuitOpen: the provider is down.
            BaseException: what `call` raised; it is `excused` if it is the way's fault, and this breaker has taken it.
        """
        permit = Permit(self.memory.generation)
        if self._undecided or not self.memory.closed:
            permit = self._admit(scanner, context)
        failed: bool | None = None
        try:
            answer = call()
            failed = False
            return answer
        except BaseException as error:
            failed, blamed = self._judge(error, context)
            if failed and not self._waits(permit, error, scanner, context, blamed):
                excused = self._count(permit, scanner, context)
                for leaf in decisive_leaves(error):
                    if isinstance(leaf, ScanError) and self._blames(leaf):
                        leaf.excused = excused
            raise
        finally:
            if not failed:
                self._settle(permit, failed, scanner, context)

    def hold(self, seconds: float, run_id: str) -> None:
        """Leave the provider alone for as long as it said, at most `open_cap` seconds."""
        seconds = min(seconds, self._options.open_cap)
        if seconds <= 0:
            return
        at, sync = self._clock.monotonic(), self._sync
        vote = Vote(-1, "", None, slow=False, at=at, jitter=1.0, hold=seconds)
        with self._lock:
            self._machine.vote(vote, at)
            if sync is not None:
                sync.add_vote(vote)
        self.on_hold()
        self.store_votes(run_id)

    def _admit(self, scanner: str, context: ScanContext) -> Permit:
        """Return a permit, or raise `CircuitOpen`."""
        if self._is_in_doubt():
            raise _refused(f"{self._name}: its name does not resolve; whether any does is not known yet")
        if self._yields(scanner):
            raise _refused(f"{self._name}: {scanner} made the last trial, the next one is another scanner's")
        permit, change = self.admit(context.ends, scanner)
        if permit.trial:
            with self._lock:
                self._last_trial, self._yielded = scanner, False
        self._report(change, context.run_id)
        return permit

    def _is_in_doubt(self) -> bool:
        """Return whether failures wait that would open the breaker, and only its own scanners have had them.

        Were it called meanwhile, six scanners of a host whose name is wrong would all find that out for themselves.
        """
        with self._lock:
            waiting = [fault for fault in self._undecided if fault.local is None]
            scanners = {fault.scanner for fault in waiting}
            enough = len(waiting) >= self._options.failures and len(scanners) >= self._machine.quorum
        return enough and all(fault.alone for fault in waiting)

    def _yields(self, scanner: str) -> bool:
        """Return whether another scanner is to make the next trial; the second time nobody else has come, so no."""
        now = self._clock.monotonic()
        with self._lock:
            machine = self._machine
            due = self.memory.state != CLOSED and now >= machine.open_until
            if not due or self._last_trial != scanner or machine.quorum < QUORUM or self._yielded:
                return False
            self._yielded = not any(expires > now for expires in machine.trials.values())
            return self._yielded

    def _waits(self, permit: Permit, error: BaseException, scanner: str, context: ScanContext, blamed: bool) -> bool:
        """Let a failure vote later, if it is not known yet whether it is this machine's fault; return whether it is."""
        fault = context.fault(error)
        if fault is None or fault.local is not None:
            return False

        def vote() -> None:
            with self._lock:
                self._undecided.remove(fault)
            if fault.local:
                self._settle(permit, None, scanner, context)
            else:
                fault.excused = self._count(permit, scanner, context) and blamed

        with self._lock:
            self._undecided.append(fault)
        fault.then(vote)
        return True

    def _judge(self, error: BaseException, context: ScanContext) -> tuple[bool | None, bool]:
        """Return the vote that an exception is, and whether nothing else is to blame for it than the way."""
        fault = context.fault(error)
        if fault is not None and (fault.local or fault.own):
            return None, False
        if context.abandoned or context.cut_at <= self._clock.monotonic() < context.deadline:
            return None, False
        found = decisive_leaves(error)
        blamed = sum(map(self._blames, found))
        if blamed:
            return True, blamed == len(found)
        return (False if context.answered and requested_wait(error) is None else None), False

    def _blames(self, leaf: BaseException) -> bool:
        """Return whether an exception says that the way to this provider broke down.

        Of a scanner that does not name its provider, nobody knows whom else it calls: only what our own client says
        about this host counts.
        """
        if self._by_name:
            return is_of_way(leaf)
        return isinstance(leaf, ScanError) and leaf.provider == self.provider

    def _count(self, permit: Permit, scanner: str, context: ScanContext) -> bool:
        """Count a failure; return whether it is this breaker's business, and not the scanner's own."""
        self._report(self.vote(permit, True, who=scanner), context.run_id)
        with self._lock:
            if permit.expires is not None or self.memory.state != CLOSED:
                self._streaks.clear()
                return True
            self._last_trial = ""
            streak = self._streaks[scanner] = self._streaks.get(scanner, 0) + 1
            return streak <= self._options.failures

    def _settle(self, permit: Permit, failed: bool | None, scanner: str, context: ScanContext) -> None:
        """Count a success, or give a trial back."""
        self._report(self.vote(permit, failed, who=scanner), context.run_id)
        if failed is False and self._streaks:
            with self._lock:
                self._streaks.pop(scanner, None)
                for other, streak in self._streaks.items():
                    self._streaks[other] = max(streak, self._options.failures)

    def _give_back(self, permit: Permit, run_id: str) -> ProviderChanged | None:
        """Give a trial back whose attempt is not waited for; on any thread, and without waiting for a store."""
        return self._event(self.vote(permit, None, wait=False), run_id)

    # what is reported, and what is stored

    def _event(self, change: BreakerChanged | None, run_id: str) -> ProviderChanged | None:
        if change is None:
            return None
        by = "" if not self._machine.failed_by else self._machine.failed_by[-1]
        return ProviderChanged(self.provider, change.old, change.new, change.open_for, by, run_id)

    def _report(self, change: BreakerChanged | None, run_id: str = "") -> None:
        event = self._event(change, run_id)
        if event is not None:
            self._send(event)

    def store_votes(self, run_id: str = "") -> None:
        """Bring the votes that still wait to the store, if it has one."""
        self._report(self.flush(), run_id)

    def take_over(self, data: bytes | None, now: float) -> None:
        """Take over what the store has of this breaker, at the start of a run; see `sync`."""
        self._report(self.sync(data, now))

    def try_soon(self) -> None:
        """Let the next attempt be a trial, in whichever process it comes."""
        self._report(self.end_open_time())

    def clear(self) -> StoreError | None:
        """Close, and forget failures and hold; return why the store could not be changed."""
        change, error = self.reset()
        with self._lock:
            self._streaks.clear()
        self._report(change)
        self.on_hold()
        return error


def _refused(why: str) -> CircuitOpen:
    refusal = CircuitOpen(why)
    refusal.blame = PROVIDER
    return refusal
