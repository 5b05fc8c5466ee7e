"""Blocking calls of coroutines (`asyncio.to_thread`, an event loop's look-up of a name): threads that may hang too.

Asyncio's own executor would run them on threads that nobody counts, that the interpreter joins at its exit, and that
are never replaced: once as many calls hang as it has threads, a source that is well again times out for ever. Here they
run on a second `ThreadPool` of the runner. The threads are daemons, a call's time is up with its scan's, and a call
that hangs then counts as one of its scanner's abandoned threads.

They have a pool of their own because a scan holds its worker while it waits for its calls. In one pool, eight scans
that take all eight workers and wait for a call each would wait for each other until their timeouts.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from resilient_scan._fanout import BlockingCall, this_thread
from resilient_scan.core.hangs import LateEnd
from resilient_scan.core.pool import ThreadPool
from resilient_scan.core.task import FutureTask, Place
from resilient_scan.engines.forks import in_parent_only
from resilient_scan.errors import Rejected, ScanTimeout
from resilient_scan.events import ERROR, SUCCESS, Event, ThreadAbandoned
from resilient_scan.layers.attempt import AttemptContext
from resilient_scan.layers.timeout import HungThreads

MAX_CALLS = 8  # of one scanner at a time; more wait for their turn, so that one scanner does not take all threads
CLEANUP_TIMEOUT = 1.0  # seconds for a call that a coroutine makes while it cleans up, when its scan's time is up


class BlockingCalls:
    """The blocking calls of one scanner's coroutines; safe to use from any thread.

    Args:
        name: the scanner's.
        pool: whose threads they run on, shared with the runner's other scanners.
        hung: the scanner's abandoned threads.
        send: tells listeners what happens to an abandoned thread; called on threads of the pool.
        frees_sockets: whether connections may be shut down that calls wait for after their time.
    """

    __slots__ = ("_active", "_waiting", "frees_sockets", "hung", "name", "pool", "send", "used")

    def __init__(
        self,
        name: str,
        pool: ThreadPool,
        hung: HungThreads,
        send: Callable[[Event], None],
        *,
        frees_sockets: bool = True,
    ) -> None:
        self.name = name
        self.frees_sockets = frees_sockets
        self.pool = pool
        self.hung = hung
        self.send = send
        self.used: bool = False  # whether a coroutine has made any
        self._active = 0  # calls that the pool has, without those that hang
        self._waiting: deque[_Call] | None = None  # made for the first that waits: most scanners make no calls

    def admit(self, context: AttemptContext) -> None:
        """Let an attempt pass, before its coroutine runs.

        A new execution has been let pass already. A further attempt on the same worker has not, and each one could lose
        more threads.

        Raises:
            Rejected: this is a further attempt, and as many threads of the scanner hang as may.
        """
        if context.attempt > 1 and self.hung.count:
            self.hung.admit(context)

    def submit(self, call: Callable[[], Any], context: AttemptContext) -> Future[Any]:
        """Call `call` on a thread, in a copy of the caller's context variables, until the attempt's time is up."""
        self.used = True
        if context.traffic is not None:
            call = context.traffic.carried(call)
        task = _Call(self, call, context)
        with self.hung.lock:
            if self._active >= MAX_CALLS:
                self._waiting = self._waiting or deque()
                self._waiting.append(task)
                return task.future
            self._active += 1
        self._execute(task)
        return task.future

    def next(self) -> None:
        """Let the next call begin: the thread of one is free, or is replaced because it hangs."""
        with self.hung.lock:
            if not self._waiting:
                self._active -= 1
                return
            task = self._waiting.popleft()
        self._execute(task)

    def take_waiting(self) -> list[_Call]:
        """Take out all calls that wait for their turn."""
        with self.hung.lock:
            waiting, self._waiting = self._waiting, None
        return list(waiting or ())

    def _execute(self, task: _Call) -> None:
        try:
            self.pool.execute(task)
        except RuntimeError as error:  # shut down, or the machine has no thread to give
            task.refuse(str(error))


class _Call(FutureTask):
    """One call, as a task of the pool: its deadline is the end of the attempt that makes it."""

    _left = False  # whether it has made room for the next call

    def __init__(self, calls: BlockingCalls, call: Callable[[], Any], context: AttemptContext) -> None:
        self.future: Future[Any] = Future()
        self._under_way = BlockingCall()
        call = partial(_whole, call, self._under_way)
        super().__init__(self.future, partial(contextvars.copy_context().run, in_parent_only, calls.name, call))
        self.name = calls.name
        self.frees_sockets = calls.frees_sockets
        self._calls = calls
        self._ends = context.ends
        self._lock = threading.Lock()
        # Not the context itself: a hung call would keep the state and the candidates of its scan alive.
        self._run_id, self._attempt = context.run_id, context.attempt

    def start(self, now: float, place: Place, /) -> float | None:
        """Begin and return the deadline, unless the coroutine was cancelled while the call was queued."""
        if super().start(now, place) is None:
            self._leave()
            return None
        return self._ends if now < self._ends else now + CLEANUP_TIMEOUT

    def run(self) -> None:
        """Call, settle the future, and let the next one begin."""
        super().run()
        self._leave()

    def expire(self, _thread: str, _age: float, _lateness: float, /) -> None:
        """Make room for the next call: this one's time is up."""
        self._calls.hung.abandon()
        self._leave()

    @property
    def helpers(self) -> Sequence[threading.Thread]:
        """The threads that take part in its `map`, if it is one."""
        return self._under_way.helpers

    def cut_off(self) -> None:
        """Take no answer from now on. The coroutine was cancelled, but what it loads for others must be whole."""
        self._under_way.incomplete = True

    def returned(self) -> None:
        """Note that its thread is back."""
        self._calls.hung.returned()

    def abandon(self, thread: str, age: float, hint: str, /) -> None:
        """Report that its thread does not come back."""
        self._calls.send(ThreadAbandoned(self.name, thread, age, self._run_id, self._attempt, hint))

    def late(self, end: LateEnd, /) -> None:
        """Report that its thread came back, if it was reported as abandoned."""
        if end.abandoned:
            outcome = SUCCESS if self.future.exception() is None and not end.by_sockets else ERROR
            method = "sockets" if end.by_sockets else "abandoned"
            end.report(self._calls.hung, self._calls.send, method, outcome, self._run_id, self._attempt)

    def refuse(self, reason: str, /) -> None:
        """Give the coroutine the reason why no thread takes the call, or any call that waits for its turn."""
        for task in (self, *self._calls.take_waiting()):  # not one from within the other: they may be thousands
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(Rejected(reason))
        self._leave()

    def _leave(self) -> None:
        """Make room for the next call, once: it may end at the very moment at which the watchdog gives it up."""
        with self._lock:
            left, self._left = self._left, True
        if not left:
            self._calls.next()


def _whole(call: Callable[[], Any], under_way: BlockingCall) -> Any:
    """Call; raise instead of returning what may be half an answer, because a connection was shut down."""
    this_thread.call = under_way
    try:
        answer = call()
    finally:
        this_thread.call = None
    if under_way.incomplete:
        raise ScanTimeout("a connection was shut down after the timeout")
    return answer
