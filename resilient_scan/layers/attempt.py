"""The context of an execution as its layers see it: which attempt is under way, and what the ones before it came to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from resilient_scan.clock import SystemClock
from resilient_scan.context import NEVER, ScanContext, ScannerContext
from resilient_scan.errors import ScanError, decisive_leaves
from resilient_scan.events import Event
from resilient_scan.layers.blame import blame_of, local_kind
from resilient_scan.layers.local import Fault
from resilient_scan.results import ErrorInfo
from resilient_scan.snapshot import EMPTY, TOOL_LOGS, Snapshot

Call = Callable[["AttemptContext"], list[Any]]
"""What a layer wraps, and what it returns: makes an attempt and returns the candidates, or raises."""


class Step(msgspec.Struct, frozen=True):
    """An attempt that failed, for the flight recorder.

    Attributes:
        attempt: its number.
        duration: seconds it took.
        error: why it failed, type and message.
        pause: seconds waited after it; `None`: no attempt followed.
    """

    attempt: int
    duration: float
    error: ErrorInfo
    pause: float | None


class AttemptContext(ScanContext):
    """A `ScanContext` with what the layers keep between the attempts of one execution.

    Scanners are given it as a `ScanContext` and use nothing else of it.

    Attributes:
        found: candidates of the current attempt, as far as it has come.
        dropped, invalid: how many items of it were not valid, and what was wrong with the first.
        permit: the breaker's, while an attempt is under way.
        give_back: gives a trial of the provider's breaker back, while an attempt is one.
        excused: whether the attempt's failure is the provider's business, and not that of the scanner's own breaker.
        steps: the attempts that failed.
        alarm: moves the deadline at which the engine's watchdog hands over.
        mark: sets an instant before that, at which the watchdog looks whether the attempt is slow; infinite: never.
    """

    # Set only where they differ: a first attempt that succeeds pays for none of them.
    found: list[Any] | tuple[()] = ()  # a list is made for what is put into it
    dropped: int = 0
    doubted: str | None = None
    deadline: float = NEVER
    ends: float = NEVER
    invalid: str = ""
    permit: Any = None
    give_back: Callable[[], Event | None] | None = None
    excused: bool = False
    requested: bool = False  # whether the current attempt has called a host that its scanner's options do not name
    turned_away: bool = False  # whether its first request was refused, before it had called anybody
    postponed: float = 0.0  # seconds by which its deadlines were moved
    waited: float = 0.0  # of these, those for which it has waited for a process to run in
    attempt_began: float = 0.0
    open_attempt: float | None = None  # when the current attempt began, until its end is reported
    failure: BaseException | None = None  # of an attempt that hangs on another thread, for the retry layer to judge
    failed_after: float = 0.0  # seconds that attempt took
    steps: tuple[Step, ...] = ()
    _described: tuple[int, int, ErrorInfo] | None = None
    _raised_away: tuple[int, Collection[str]] | None = None  # a failure of another process, and what that one shares
    _judged: tuple[BaseException, Fault] | None = None  # the last failure that may be this machine's fault
    alarm: Callable[[float], None] = staticmethod(lambda _deadline: None)
    mark: Callable[[float], None] = staticmethod(lambda _instant: None)

    @classmethod
    def at(cls, own: ScannerContext, snapshot: Snapshot, run_id: str) -> AttemptContext:
        """Make the context of an execution without the constructor's work: one is made for every cache miss."""
        self = cls.__new__(cls)
        self._own, self._clock, self._snapshot, self.run_id = own, own.clock, snapshot, run_id  # `_set`, without a call
        return self

    def describe(self, error: BaseException) -> ErrorInfo:
        """Describe a failure of the current attempt, once for all that report it: it is looked at frame by frame.

        Nothing keeps the exception, so another one may have its address later. That one belongs to a later attempt:
        while an attempt ends, the layers hold its failure.
        """
        known = self._described
        if known is None or known[:2] != (id(error), self.attempt):
            info = ErrorInfo.of(error, self._own.home, self._blame(error))
            self._described = known = id(error), self.attempt, info
        return known[2]

    def _blame(self, error: BaseException) -> str:
        fault, blame = self.fault(error), blame_of(error)
        return blame if fault is None else fault.blame(blame)

    def fault(self, error: BaseException) -> Fault | None:
        """Return the fault of this machine that a failure may be, the same for all layers; `None`: it cannot be one.

        If it is one, the exception is kept until the attempt, or the execution, has ended: a scanner may go on after
        one, and the next could get its address.
        """
        judged, faults = self._judged, self._own.faults
        if judged is not None and judged[0] is error:
            return judged[1]
        kind = None if faults is None else local_kind(error)
        if kind is None or faults is None or not self._can_lack(error, kind):
            return None
        fault: Fault | None = faults.judge(self.scanner, self._party(error), kind)
        if fault is not None:
            self._judged = error, fault
        return fault

    def _can_lack(self, error: BaseException, kind: str) -> bool:
        """Say whether it was this process that met a failure, or another that shares with it what is lacking."""
        away = self._raised_away
        return away is None or away[0] != id(error) or kind in away[1]

    def forget_failure(self) -> None:
        """Let go of the last failure: the exception, its traceback and this context would keep each other alive."""
        self._judged = None

    def _party(self, error: BaseException) -> str:
        """Return who is to testify to a failure: all scanners of one provider count as one."""
        called = (leaf.provider for leaf in decisive_leaves(error) if isinstance(leaf, ScanError))
        host = "" if self.provider is not None else next(filter(None, called), "")
        return f"provider {host}" if host else party_of(self.scanner, self.provider)

    @property
    def cut_short(self) -> bool:
        """Whether the run ended, for any reason, while the scanner still had time of its own."""
        return self.abandoned or self.cut_at <= self._clock.monotonic() < self.deadline

    def begin_attempt(self) -> dict[str, Any]:
        """Count an attempt, forget what the one before it found, and return a copy of the state for this one."""
        if self.attempt:
            self._logs = self.tool_logs()
            self.found = ()
            self.dropped = 0
            self.invalid = ""
            self.doubted = None
            self.freed_by = ""
            self._raised_away = None
            self.answered = self.requested = self.turned_away = False
            self._judged = None
        self.attempt += 1
        self.open_attempt = self.attempt_began = self._clock.monotonic()
        return self._copy_state()

    def begin_first(self, now: float) -> dict[str, Any]:
        """Do the same for the first attempt, which begins at the monotonic instant `now`."""
        self.attempt = 1
        self.open_attempt = self.attempt_began = now
        snapshot = self._snapshot
        if snapshot.has_logs:
            return self._copy_state()
        self._state = state = snapshot.copy()
        return state

    def _copy_state(self) -> dict[str, Any]:
        self._state = state = self._snapshot.copy()
        self._known_logs = self._snapshot.known_logs(state)
        return state

    @property
    def has_called(self) -> bool:
        """Whether an attempt has called its source, or may have.

        Whom a scanner calls is known only from its first request on, where its options do not say. So its first
        attempt begins although that host is down, is refused in its middle, and has called nobody.
        """
        return self.attempt > 1 or (self.attempt == 1 and not self.turned_away)

    @property
    def own(self) -> ScannerContext:
        """What all executions of the scanner have in common."""
        return self._own

    @property
    def snapshot(self) -> Snapshot:
        """The run's state."""
        return self._snapshot

    def described(self, error: BaseException, info: ErrorInfo, shared: Collection[str]) -> None:
        """Note how a failure of the current attempt is described that was raised in another process.

        Args:
            error: the failure.
            info: where it was raised.
            shared: of what may be lacking (`blame.KINDS`), what that process shares with this one. One that is out of
                memory or descriptors has used up its own.
        """
        self._raised_away = id(error), shared
        self._described = id(error), self.attempt, info.blamed(self._blame(error))

    def logged(self, entries: Iterable[dict[str, Any]], *, kept: int | None = None) -> None:
        """Take over log entries of another process: in addition, or in the place of all but the first `kept`."""
        self._logs = [*self._logs[:kept], *entries]

    def given(self, name: str) -> Any:
        """Return a value of the state, as the scanner has it; `None` if there is none."""
        return (self._state or {}).get(name)

    def drop_state(self) -> list[dict[str, Any]]:
        """Let go of the scanner's copy of the state, on its own thread and while its time runs; return the tool logs.

        Else the run's thread would drop the last reference to what the scanner put there, and run its `__del__`: one
        that hangs would hang the run.
        """
        state = self._state
        if state is None:
            return self.tool_logs()
        self._all_logs = logs = self.tool_logs() if TOOL_LOGS in state else [*self._logs]
        self._state = self._judged = None
        return logs

    def postpone(self, seconds: float) -> None:
        """Move its own deadlines by `seconds`; the run's deadline stays where it is."""
        self.postponed += seconds
        self.deadline += seconds
        self.ends = min(self.ends + seconds, self.cut_at)

    def close_attempt(self, lock: AbstractContextManager[Any]) -> float | None:
        """Return when the attempt under way began, to the first caller only.

        Two threads may want to report the end of one attempt: its worker, and the watchdog when the time is up. The one
        that is given the instant sends the event; the other finds `None`, so no attempt is counted twice.
        """
        with lock:
            began, self.open_attempt = self.open_attempt, None
        return began

    def next(self, failure: BaseException | None, took: float) -> AttemptContext:
        """Return the context in which another thread makes the next attempt; this one's thread hangs in the current."""
        other = AttemptContext.at(self._own, self._snapshot, self.run_id)
        other.limit(self.deadline, self.cut_at)
        other.attempt, other.steps, other.failure = self.attempt, self.steps, failure
        other.failed_after, other.provider = took, self.provider
        other.postponed = other.waited = self.waited
        other.found, other.dropped, other.invalid = list(self.found), self.dropped, self.invalid
        other._logs = self.tool_logs()  # noqa: SLF001 - one of its own kind
        return other

    def spent(self, made: int) -> float:
        """Return the seconds since the current attempt began, 0 if `made` attempts were made before and none since."""
        return self._clock.monotonic() - self.attempt_began if self.attempt > made else 0.0


def _share_keys() -> None:
    """Let Python know the names of what is set in the course of an execution, before any is made.

    The attributes of all contexts have one table of names, which Python closes after the first 30 contexts. Where a run
    begins that many before the first of them goes on, each of its contexts would have a dict of its own.
    """
    context = AttemptContext.at(ScannerContext("", {}, SystemClock(), None), EMPTY, "")
    context.limit(0.0)
    context.alarm, context.mark = AttemptContext.alarm, AttemptContext.mark
    context.canceller = context.provider = None
    context.begin_attempt()
    context.permit = context.canceller = context.failure = None
    context.failed_after, context.found = 0.0, ()
    context.abandoned, context.freed_by = False, ""
    context.steps, context.postponed, context.waited = (), 0.0, 0.0
    context.drop_state()


_share_keys()


def party_of(scanner: str, provider: Any) -> str:
    """Return who testifies when a scanner fails: its provider, or the scanner, which no provider's name can equal."""
    return f"scanner {scanner}" if provider is None else f"provider {provider.limit.provider}"
