"""The driver's side of an attempt in a child process: the worker waits for what the child says, and does it.

Three things may end the wait: the child says that the attempt has ended, the child ends, or nobody waits for the answer
any more. Then the thread that cancels the execution (the watchdog, most often) kills the child, and the worker finds
the end of the pipe. What the child had sent before that is read first. So an answer that arrives at the deadline is
either whole or not there.

A child that is not ready costs its scan nothing: while the worker waits for one, the scan's deadline moves on.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Self

from resilient_scan._suspend import off_loop
from resilient_scan.clock import Clock, SystemClock
from resilient_scan.context import NEVER, ScannerContext
from resilient_scan.engines.process import variables
from resilient_scan.engines.process.conversation import Conversation, killed, traffic_parts
from resilient_scan.engines.process.interfaces import ChildLike, ChildrenLike
from resilient_scan.engines.process.transfer import (
    PROCESS,
    Reference,
    Unsendable,
    pack,
    payload_of,
    reference_of,
    settings_of,
    state_error,
    unpack_error,
)
from resilient_scan.engines.process.wire import (
    Attempt,
    ConnectionClosed,
    Define,
    Ready,
)
from resilient_scan.errors import (
    ConfigError,
    PluginError,
    ScanCancelled,
    ScanTimeout,
    WorkerLost,
)
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.attempt import Call as EngineCall
from resilient_scan.layers.call import Maker
from resilient_scan.scanning import ScannerSpec

READY_TIMEOUT: Final = 60.0  # seconds in which a child has to import a scanner's module
_OPTIONS: Final = {False: (PROCESS, 'isolation="thread"'), True: ('engine="dask"', 'engine="threads"')}  # and way out
_numbers: Final = itertools.count(1)  # of scanners, in the whole process


class ProcessEngine:
    """Call one scanner's function in child processes.

    Args:
        spec: the scanner.
        own: what its executions have in common.
        children: where its attempts run.

    Raises:
        PluginError: the scanner, its settings, the clock or the traffic cannot go to another process.
    """

    def __init__(self, spec: ScannerSpec, own: ScannerContext, children: ChildrenLike) -> None:
        self._spec = spec
        self._children = children
        self._clock = own.clock
        self._number = next(_numbers)
        option, self._way_out = _OPTIONS[children.away]
        self.reference: Reference = reference_of(spec, option)
        self._settings = settings_of(spec, own.settings, option)
        self._traffic = "", ""
        if own.traffic is not None:
            self._traffic = traffic_parts().kind_of(own.traffic, spec.name)
        if self._traffic[0] != "replay" and not isinstance(own.clock, SystemClock):
            raise PluginError(
                f"scanner {spec.name}: {option} has the machine's clocks, and a {type(own.clock).__name__} stays in "
                f"the driver; use {self._way_out} with it"
            )
        if children.away:
            if own.traffic is not None:
                raise PluginError(
                    f'scanner {spec.name}: engine="dask" records and replays nothing; use engine="threads"'
                )
            children.register(self._number, spec.name, self._payload())

    def attempt(self, spec: ScannerSpec, /) -> EngineCall:
        """Return the call that asks the scanner once, in a child, and keeps the valid candidates.

        Raises (when called):
            ConfigError: the state cannot go to another process.
            ProcessEnded: the child has ended by itself.
            ProcessKilled: nobody waits for the answer any more.
            WorkerLost: no child can be had.
            BaseException: as `thread.Once`.
        """
        make = Maker(spec.candidate, spec.name)

        def once(context: AttemptContext) -> list[Any]:
            state = encoded(context, self._way_out)
            with _BorrowedChild(self._children, context, self._clock) as borrowed:
                borrowed.wait_for(partial(self._enter, state=state) if self._children.away else self._introduce)
                conversation = Conversation(borrowed.child.wire, borrowed.time_up, context, make, self._clock)
                ended = conversation.hold(None if self._children.away else self._begin(context, state))
                if ended.spoiled:
                    borrowed.child.kill()
            conversation.end(ended, self._children.shared)
            return context.found or []

        return once

    def _payload(self) -> bytes:
        return payload_of(self._spec, self.reference, self._settings, self._traffic, away=self._children.away)

    def _introduce(self, child: ChildLike, context: AttemptContext) -> float:
        """Make the scanner known to a child that has not had it before; raise what its module raises there.

        Returns:
            When the child was ready, monotonic; infinite: now.
        """
        if self._number in child.known:
            return NEVER
        child.wire.send(Define(self._number, self._payload()))
        if not child.wire.has_message(READY_TIMEOUT):
            raise WorkerLost(f"a child process has not imported {context.scanner} within {READY_TIMEOUT:g}s")
        ready = child.wire.from_child()
        if isinstance(ready, Ready) and ready.error is not None:
            raise unpack_error(ready.error)[0]
        child.known.add(self._number)
        return NEVER

    def _enter(self, child: Any, context: AttemptContext, state: bytes) -> float:
        """Have the attempt made at a worker, and wait until it has begun there; return when that was.

        It has as much time as there was when it began to wait. A rate has let it pass for now, and not for later: then
        it must not wait for others at its worker.
        """
        limit = None if context.provider is None else context.provider.limit
        alone = limit is not None and (limit.rate is not None or limit.concurrency is not None)
        attempt = self._attempt(context, state, context.attempt + 1, self._clock.monotonic())
        try:
            child.enter(attempt, context.remaining(), alone=alone)
        except ConnectionClosed:
            if child.link is not None:  # it may have begun
                context.begin_attempt()
            raise
        context.begin_attempt()
        context.open_attempt = context.attempt_began = began = float(child.began)
        return began

    def _begin(self, context: AttemptContext, state: bytes) -> Attempt:
        context.begin_attempt()
        return self._attempt(context, state, context.attempt, self._clock.monotonic())

    def _attempt(self, context: AttemptContext, state: bytes, number: int, now: float) -> Attempt:
        return Attempt(
            self._number,
            state,
            context.run_id,
            number,
            context.ends - now,
            context.deadline - now,
            self._clock.time() - SystemClock.time(),
            self._clock.time() if self._traffic[0] == "replay" else None,
            context.provider is not None,
            self._spec.memory,
            variables.packed(context.scanner),
        )


def encoded(context: AttemptContext, way_out: str) -> bytes:
    """Return the run's state as bytes, made once for all scans.

    Raises:
        ConfigError: it cannot go to another process; the message names the value.
    """
    snapshot = context.snapshot
    if not snapshot.encoded:  # two threads may meet here: both make the same
        state = snapshot.copy()
        try:
            snapshot.encoded = pack(state)
        except Unsendable as error:
            raise ConfigError(
                f"{state_error(state, error)}; leave it out, or use {way_out} for {context.scanner}"
            ) from None
    return snapshot.encoded


class _BorrowedChild:
    """A child, for one attempt; it is killed when the execution is cancelled, and when anything goes wrong with it.

    A cancel may come at the moment at which the attempt ends, and find this among the wakes. Without the lock, it could
    kill the child when that already works for another scan.

    Args:
        children: where it comes from, and goes back to.
        context: of the attempt.
        clock: the runner's.

    Attributes:
        child: from `wait_for` on.
        ends: likewise; the instant at which the attempt's time was up when it began.
    """

    child: ChildLike
    ends: float = NEVER

    def __init__(self, children: ChildrenLike, context: AttemptContext, clock: Clock) -> None:
        self._children = children
        self._context = context
        self._clock = clock
        self._lock = threading.Lock()
        self._working: ChildLike | None = None
        self._grace = 0.0  # that the deadlines are later
        self._postponed = 0.0  # that the execution's deadline was later when the attempt began

    def wait_for(self, prepare: Callable[[ChildLike, AttemptContext], float]) -> None:
        """Take a child and prepare it for the attempt; meanwhile the time of the scan stands still.

        Args:
            prepare: returns when the child was ready.

        Raises:
            ProcessKilled: nobody waits for the answer any more.
            WorkerLost, Rejected: no child can be had.
        """
        context, began, ready = self._context, self._clock.monotonic(), NEVER
        whole = context.ends in {context.deadline, context.cut_at}
        slow_at = NEVER if context.permit is None else context.permit.slow_at
        context.alarm(NEVER)
        context.mark(NEVER)
        try:
            self._take()
            ready = prepare(self.child, context)
        finally:
            waited = min(ready, self._clock.monotonic()) - began
            context.postpone(waited)
            context.waited += waited
            context.mark(slow_at + context.postponed)
            self.ends = context.ends
            self._grace = self._children.grace
            context.postpone(self._grace)
            self._postponed = context.postponed
            context.alarm(context.deadline if whole else context.ends)

    def _take(self) -> None:
        context = self._context
        try:
            self.child = self._working = self._children.take(lambda: context.abandoned, context.remaining())
        except WorkerLost:
            if context.abandoned:
                raise killed(context) from None
            raise
        self.set()  # it may have been cancelled while nobody worked for it

    def set(self) -> None:
        """Kill the child, if the execution is cancelled and not just poked; from any thread."""
        if self._context.abandoned:
            self._context.freed_by = "process"
            self._kill()

    def _kill(self) -> None:
        with self._lock:
            if self._working is not None:
                self._working.kill()

    def __enter__(self) -> Self:
        self._watched = self._context.watched(self)
        self._watched.__enter__()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._watched.__exit__(None, None, None)
        if error is not None:
            self._kill()
        with self._lock:
            child, self._working = self._working, None
        if self._grace:
            self._take_grace_back()
        if child is None:
            return
        try:
            if isinstance(error, ConnectionClosed):
                raise self._why(child) from None
        finally:
            self._children.give_back(child)

    def time_up(self) -> float:
        """Return when the scanner's time is up.

        `context.ends` is later by the grace period, unless the run ends before. A source that is asked may have an
        earlier end of its own.
        """
        context = self._context
        return min(context.ends, self.ends + context.postponed - self._postponed)

    def _take_grace_back(self) -> None:
        """Leave the deadlines as they would be without the grace period; one that the run's end cut has got none."""
        ends = self.time_up()
        self._context.postpone(-self._grace)
        self._context.ends = ends

    def _why(self, child: ChildLike) -> BaseException:
        if self._context.abandoned:
            return killed(self._context)
        failure = child.failure()
        if isinstance(failure, ScanCancelled):  # by a worker, whose clock may run faster than this one
            early = min(self._context.remaining(), self._children.grace)
            if early:
                off_loop(partial(time.sleep, early))
            if not self._context.has_ended:
                return ScanTimeout(f"{self._context.scanner}: its time was up at the worker", by_clock=True)
        return failure
