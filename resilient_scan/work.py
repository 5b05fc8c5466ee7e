"""The work for one or more scans of one scanner: begun once, ended once, by whoever comes first."""

from __future__ import annotations

import contextvars
import logging
from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any

from resilient_scan.clock import short
from resilient_scan.context import NEVER, ScanContext
from resilient_scan.engines.tasks import Place
from resilient_scan.errors import ScanCancelled, ScanTimeout
from resilient_scan.events import AttemptEnded, Event, ExecutionEnded, ProbeEnded, SuspiciousResult
from resilient_scan.layers.cache import Entry
from resilient_scan.layers.limit import Ticket
from resilient_scan.outcome import ErrorInfo, ScanResult, Status
from resilient_scan.scans import Outcome, Scan, result_of, without_work
from resilient_scan.stack import CANCELLED, ERROR, REJECTED, SUCCESS, TIMEOUT, Stack, kind_of
from resilient_scan.stores.patience import Brief

_log = logging.getLogger("resilient_scan")


class Work:
    """What an execution is to the scans that wait for it, and to its worker.

    It ends once. Four may want to end it: its worker, the watchdog, a run that is over, a pool without a free thread;
    the first one under the lock does, and lands its flight in the cache; the others find it over. A scan that finds it
    over and not landed yet takes its place.
    """

    # Set only where they differ: most executions are of one scan, with an answer, and over soon.
    probe = ""  # its mark, where it tests a scanner that is out of service
    _running = False
    through = False  # whether its worker is done with it and hands over, or has
    _late_kind = ERROR
    _rung = "abandoned"  # what freed its thread, where that comes late
    _left: bool | None = None  # whether listeners were told that its thread was left behind; None: not decided yet
    _late_age: float | None = None  # when it came back before that was decided
    _successor: Work | None = None
    _ticket: Ticket | None = None  # in the queue of its provider
    inheritance: tuple[Event, ...] = ()

    def __init__(self, stack: Stack, scan: Scan, key: bytes | None) -> None:
        self.stack = stack
        self.context = ScanContext.at(stack.home, scan.run.snapshot)
        self.context.run_id = scan.run.run_id
        self._key = key
        self.scans = [scan]
        self.began = NEVER
        self.over = False
        self.variables = contextvars.copy_context()

    @property
    def name(self) -> str:
        """The scanner's name."""
        return self.stack.name

    def _give_back(self) -> None:
        """Give the provider's permit back, or the place in its queue, where they were not used."""
        ticket, provider = self._ticket, self.stack.provider
        if ticket is not None and provider is not None and not provider.withdraw(ticket) and provider.use(self.context):
            provider.release()

    # on a run's thread

    def join(self, scan: Scan) -> bool:
        """Let another scan wait for the outcome; `False`: it is over."""
        with self.stack.lock:
            heir = self._successor
            if heir is None:
                if self.over:
                    return False
                self.scans.append(scan)
                scan.execution = self
                return True
        return heir.join(scan)

    def leave(self, scan: Scan, *, to_the_end: bool) -> bool | None:
        """Take back a scan whose run is over.

        Args:
            scan: one that waits for this execution.
            to_the_end: whether the work goes on for the cache's sake (a run's deadline) or not (a user's cancel).

        Returns:
            Whether the work has begun; `None`: it has ended, and the outcome is on its way to the scan.
        """
        with self.stack.lock:
            heir, begun = self._successor, self.began != NEVER
            if heir is None:
                if self.over:
                    return None
                self.scans.remove(scan)
                if self.scans or (begun and to_the_end and self._key is not None):
                    return begun
                self.over = True
        if heir is not None:
            return heir.leave(scan, to_the_end=to_the_end)
        self._cancel(begun)
        return begun

    def _cancel(self, begun: bool) -> None:
        stack, context = self.stack, self.context
        self._give_back()
        self.land()
        permit = context.permit
        if stack.guard is not None and permit is not None:
            stack.guard.vote(permit, None)
        context.cancel()
        if begun:
            stack.bus.send_all([*self._inherited(), *self._endings(CANCELLED, None)])
        else:
            stack.bus.send_all(self._probed(CANCELLED, None))

    # on a worker

    def start(self, now: float, place: Place, /) -> float | None:
        """Begin, unless every run that wanted it is over."""
        stack, context = self.stack, self.context
        if stack.divided:
            context.alarm = place.alarm
        with stack.lock:
            if not self.over and self._begin(now):
                return context.deadline
            late = () if self.over else self.scans
            self.over = True
        self._give_back()
        self.land()
        self.stack.bus.send_all(self._probed(CANCELLED, None))
        for scan in late:
            scan.end(without_work(scan.stack, scan.run, scan.turn, Status.SKIPPED))
        return None

    def _begin(self, now: float) -> bool:
        """Set the deadline; `False`: the runs of all its scans are over. Under the lock."""
        if self.began != NEVER:  # a successor: the time runs since the first attempt
            self._running = True
            return True
        for scan in self.scans:
            if now < scan.run.deadline:
                self.began = now
                context = self.context
                if self._key is None:
                    context.limit(now + self.stack.total, scan.run.deadline)
                else:  # others can use the answer after the run's end
                    context.deadline = context.ends = now + self.stack.total
                return True
        return False

    def run(self) -> None:
        """Ask the scanner through all its layers and hand over; never raises."""
        stack, key = self.stack, self._key
        if not stack.stored:
            self.variables.run(self._work)
            return
        with Brief():
            if stack.clerk is not None and key is not None:
                stack.clerk.prolong(stack.address(key), stack.total)
            self.variables.run(self._work)

    def _work(self) -> None:
        try:
            try:
                if self.inheritance:
                    self.stack.bus.send_all(self._inherited())
                stack = self.stack
                if stack.hung.count:
                    stack.hung.admit(self.context)
                found = stack.call(self.context)
            except BaseException as failure:
                self._fail(failure)
            else:
                self._succeed(found)
            finally:
                if self._ticket is not None:
                    self._give_back()
        except BaseException as failure:  # a bug of ours must not cost the run its end
            _log.exception("%s: the scan could not be ended", self.name)
            self._settle()
            self.land()
            outcome = self.outcome(ERROR, [], None, ErrorInfo.of(failure))
            for scan in self.scans:  # one that has its result already takes no notice
                scan.end(outcome)

    def _succeed(self, found: list[Any]) -> None:
        self.through, self._late_kind = True, SUCCESS
        stack, context = self.stack, self.context
        doubt = context.doubted or stack.doubt(len(found), context.dropped)
        entry = self._keep(found, doubt is None) if self._key is not None else None
        with stack.lock:
            if self.over:
                return
            self.over = True
            scans = self.scans
        if entry is None:
            self.land()
        took = (stack.clock.monotonic() if entry is None else entry.stored_at) - self.began
        stack.took(took)
        if doubt is not None:
            run, attempt = context.run_id, context.attempt
            stack.bus.send(
                SuspiciousResult(stack.name, stack.pipeline, doubt, len(found), context.dropped, run, attempt)
            )
        if stack.tell_execution is not None:
            stack.tell_execution(self._ended(SUCCESS, None, took))
        if self.probe:
            stack.bus.send_all(self._probed(SUCCESS, None))
        for scan in scans:
            if not scan.leads:
                scan.end(self.outcome(SUCCESS, found, entry, None, suspicious=doubt))
                continue
            result = ScanResult(
                stack.name,
                stack.pipeline,
                Status.COMPLETED,
                found,
                None,
                context.attempt,
                took,
                self.began - scan.run.since,
                None,
                False,
                context.dropped,
                context.tool_logs(),
                self.began + scan.run.epoch,
                doubt,
            )
            scan.run.outbox.put((scan, result, ()))

    def _fail(self, failure: BaseException) -> None:
        self.through = True
        context = self.context
        kind = told = kind_of(failure, context)
        scans = self._settle()
        if scans is None:
            if isinstance(failure, ScanCancelled):  # it came back because it was told to
                self._rung = "cancel" if isinstance(failure.__context__, CancelledError) else "cooperative"
            return
        if isinstance(failure, ScanCancelled) and kind != ERROR and not context.abandoned:
            # it noticed a deadline before the watchdog did: its own, or its run's, which is not its fault
            failure = self._timeout() if kind == TIMEOUT else _run_is_over(scans[0])
            kind = TIMEOUT
        error = ErrorInfo.of(failure)
        self._remember(told, error)
        self.land()
        self._hand_over(scans, kind, told, error)

    def _keep(self, found: list[Any], trusted: bool) -> Entry | None:
        """Put an answer into the cache, a late one too; one that is not trusted is only shared."""
        cache, key = self.stack.cache, self._key
        if cache is None or key is None:
            return None
        try:
            return cache.put(key, found, self, keep=trusted)
        except Exception as error:  # copying a candidate runs foreign code
            _log.warning("%s: the answer is not cached, a candidate cannot be copied: %s", self.name, error)
            return None

    def _remember(self, kind: str, error: ErrorInfo) -> None:
        if self._key is not None and self.stack.cache is not None and kind in (ERROR, TIMEOUT):
            self.stack.cache.put_error(self._key, error)

    def _hand_over(self, scans: Sequence[Scan], kind: str, told: str, error: ErrorInfo) -> None:
        stack = self.stack
        outcome = self.outcome(kind, self.context.found, None, error)
        if told != REJECTED:  # a worker had begun it, though the time may have been over before the first attempt
            stack.took(outcome.duration)
            if stack.tell_execution is not None:
                stack.tell_execution(self._ended(told, error, outcome.duration))
        if self.probe:
            stack.bus.send_all(self._probed(told, error))
        for scan in scans:
            scan.end(outcome)

    def _inherited(self) -> tuple[Event, ...]:
        """Return, once, what the attempt that was left behind has to tell: the watchdog does not send events."""
        with self.stack.lock:
            events, self.inheritance = self.inheritance, ()
        return events

    # everywhere

    def outcome(
        self,
        kind: str,
        found: list[Any],
        entry: Entry | None,
        error: ErrorInfo | None,
        scan: Scan | None = None,
        suspicious: str | None = None,
    ) -> Outcome:
        """Describe the execution as it is now, as seen by `scan` (the first that waits, unless given)."""
        context = self.context
        scan = scan or (self.scans[0] if self.scans else None)
        now = self.stack.clock.monotonic()
        began = min(self.began, now)
        return Outcome(
            kind,
            found if kind == SUCCESS else list(found),
            entry,
            error,
            context.attempt,
            now - began,
            began - scan.run.since if scan is not None else 0.0,
            context.dropped,
            context.tool_logs(),
            began + scan.run.epoch if scan is not None else 0.0,
            suspicious,
        )

    def _settle(self) -> list[Scan] | None:
        """End it; return the scans that wait, or `None` if it is over already."""
        with self.stack.lock:
            if self.over:
                return None
            self.over = True
            return self.scans

    def land(self) -> None:
        """Let the next scan with this key lead."""
        if self._key is not None and self.stack.cache is not None:
            self.stack.cache.land(self._key, self)

    def _timeout(self) -> ScanTimeout:
        policy = self.stack.policy.timeout
        if self.context.timed_out or policy.attempt is None:
            return ScanTimeout(f"timeout after {short(policy.total)}s", by_clock=True)
        return ScanTimeout(f"attempt {self.context.attempt}: timeout after {short(policy.attempt)}s", by_clock=True)

    def _endings(self, kind: str, error: ErrorInfo | None) -> list[Event]:
        """Return the events of an end that comes while an attempt may be under way."""
        began = self.context.close_attempt(self.stack.lock)
        ended = self._ended(kind, error, self.stack.clock.monotonic() - self.began)
        probed = self._probed(kind, error)
        if began is None:
            return [ended, *probed]
        took = self.stack.clock.monotonic() - began
        return [AttemptEnded(self.name, self.context.attempt, kind, took, error, self.context.run_id), ended, *probed]

    def _probed(self, kind: str, error: ErrorInfo | None) -> tuple[Event, ...]:
        """Return what is to be told of the end of a probe, if it is one."""
        if not self.probe:
            return ()
        reason = "" if error is None else f"{error.kind}: {error.message}"
        outcome, context = CANCELLED if kind == REJECTED else kind, self.context
        return (ProbeEnded(self.name, outcome, reason, self.probe, context.run_id, context.attempt),)

    def _ended(self, kind: str, error: ErrorInfo | None, took: float) -> ExecutionEnded:
        stack, context = self.stack, self.context
        at = stack.clock.time()
        return ExecutionEnded(stack.name, stack.pipeline, kind, took, context.attempt, error, context.run_id, at)


def cut_short(scan: Scan) -> ScanResult:
    """Make the result of a scan whose run ended while its execution was under way."""
    execution: Work = scan.execution
    error = ErrorInfo.of(_run_is_over(scan))
    return result_of(scan, execution.outcome(TIMEOUT, execution.context.found, None, error, scan))


def _run_is_over(scan: Scan) -> ScanTimeout:
    waited = scan.stack.clock.monotonic() - scan.turn
    return ScanTimeout(f"the run's deadline came after {short(waited)}s", by_clock=True)
