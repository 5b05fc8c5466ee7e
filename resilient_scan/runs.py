"""The runs of one runner, and the live parts that they share."""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec

from resilient_scan.events import Listener
from resilient_scan.explain import past_of
from resilient_scan.fleet import Fleet
from resilient_scan.outcome import ScanResult
from resilient_scan.plan import Plan, length_of
from resilient_scan.recall import Recall
from resilient_scan.running import LiveRun
from resilient_scan.stack import Stack
from resilient_scan.stores.patience import Brief

PATIENCE = 0.25  # seconds for which a run waits until what it brought is in the store
WINDOW, ALL = 128, 10**9  # scans of a run under way at a time; a stream's reader may be slow, it is not waited for
_CLOSED = "the runner is closed; build another one to run again"


class Runs:
    """The runs of one runner: several at once, from any thread, over the same live parts.

    Args:
        plan: what the live parts are made from.
        concurrent: whether scanners are at work at the same time.
        order: in which they start then: `"longest_first"` or `"given"`.
        deadline: of runs that are given none, in seconds; infinite: no deadline.
    """

    closed = False

    def __init__(self, plan: Plan, *, concurrent: bool, order: str, deadline: float) -> None:
        self.plan = plan
        self._concurrent = concurrent
        self._order = order
        self._deadline = deadline
        self._window = max(WINDOW, 4 * plan.max_workers) if concurrent else 1
        self._forked = False
        self._lock = threading.Lock()
        self._open()
        _all.add(self)

    def _open(self) -> None:
        """Make the live parts."""
        self.under_way: set[LiveRun] = set()
        self._live_fleet = fleet = Fleet(self.plan)
        self.recall = None if self.plan.store is None else Recall(self.plan.store, fleet.store_failed)
        self._fresh = self.recall is not None  # nothing has been recalled yet
        self._let_go = weakref.finalize(self, fleet.close)
        self._let_go.atexit = False

    @property
    def fleet(self) -> Fleet:
        """The live parts; after a fork new ones, because the parent's threads and locks do not work in the child."""
        if self._forked:
            with self._lock:
                if self._forked:
                    gate = self._live_fleet.gate
                    if self.plan.store is not None:
                        self.plan.store.after_fork()
                    self._open()
                    self._live_fleet.gate.inherit(gate)
                    self._forked = False
        return self._live_fleet

    def after_fork(self) -> None:
        """Leave everything to the parent, in a forked child."""
        self._let_go.detach()
        self._lock = threading.Lock()
        self._forked = True
        self._live_fleet.leave()
        _left_to_the_parent.append(self._live_fleet)

    def listen(self, listener: Listener) -> None:
        """Let one more listen, unless there is an equal one."""
        with self._lock:
            if listener in self.plan.listeners:
                return
            self.plan = msgspec.structs.replace(self.plan, listeners=(*self.plan.listeners, listener))
        self.fleet.listen(listener)

    def close(self) -> None:
        """End all runs and let the threads go."""
        self.closed = True
        if self._forked:
            return  # the threads are the parent's
        with self._lock:
            runs = tuple(self.under_way)
        for run in runs:
            run.cancel()
        self._let_go()

    # one run

    def prepare(self, state: Mapping[str, Any] | None, deadline: float | None) -> LiveRun:
        """Return a run that has not begun.

        Raises:
            TypeError: the state is no mapping, or cannot be copied.
            ConfigError: the deadline is wrong.
            RuntimeError: the runner is closed.
        """
        if self.closed:
            raise RuntimeError(_CLOSED)
        length = self._deadline if deadline is None else length_of(deadline)
        return LiveRun({} if state is None else state, length, self.plan.clock)

    def finish(self, run: LiveRun, names: tuple[str, ...]) -> None:
        """Go through a run to its end."""
        for _ in self._results(run, self._window, names, read=False):
            pass

    def stream(self, run: LiveRun, names: tuple[str, ...]) -> Iterator[ScanResult]:
        """Yield the results as they come to a reader who may be slow."""
        return self._results(run, ALL if self._concurrent else 1, names, read=True)

    def _results(self, run: LiveRun, window: int, names: tuple[str, ...], *, read: bool) -> Iterator[ScanResult]:
        """Yield the results as they come, if they are read, never waiting for a store for long."""
        steps = self._steps(run, window, names, read)
        return steps if self.plan.store is None else _briefly(steps, run.brief())

    def _steps(self, run: LiveRun, window: int, names: tuple[str, ...], read: bool) -> Generator[ScanResult]:
        """Yield the results as they come, if they are read; the caller's thread is the run's thread."""
        fleet = self.fleet
        run.start(fleet, names)
        with self._lock:
            if self.closed:
                raise RuntimeError(_CLOSED)
            self.under_way.add(run)
            fresh, self._fresh = self._fresh, False
        if fresh and self.recall is not None:
            fleet.expect(self.recall.expected())
        try:
            yield from run.stream(self._in_order(fleet, names), window, concurrent=self._concurrent, read=read)
        finally:
            self.leave(run)

    def _in_order(self, fleet: Fleet, names: Sequence[str]) -> Sequence[Stack]:
        """Return the stacks in the order in which they start: with few workers this decides a run's length."""
        stacks = [fleet.stacks[name] for name in names]
        if self._concurrent and self._order == "longest_first":
            stacks.sort(key=attrgetter("expected"), reverse=True)
        return stacks

    def leave(self, run: LiveRun) -> None:
        """Wind a run up, whichever way it ended."""
        run.wind_up()
        with self._lock:
            self.under_way.discard(run)
        run.end()
        if self.recall is not None and run.fleet.clerk is not None:
            left = run.deadline - self.plan.clock.monotonic()
            run.fleet.clerk.flush(min(PATIENCE, max(0.0, left)), partial(_keep, self.recall, run))


def _keep(recall: Recall, run: LiveRun) -> None:
    """Have the store remember a run, on its clerk's thread."""
    report, stacks = run.report(), [run.fleet.stacks[name] for name in run.report().results]
    past = {stack.name: scan for stack in stacks if (scan := past_of(stack, report.run_id)) is not None}
    recall.keep(report, {stack.name: stack.expected for stack in stacks if stack.expected < math.inf}, past)


def _briefly(steps: Generator[ScanResult], brief: Brief) -> Iterator[ScanResult]:
    """Go on with a run briefly; what its reader does in between is not hurried."""
    try:
        while True:
            with brief:
                result = next(steps, None)
            if result is None:
                return
            yield result
    finally:
        with brief:
            steps.close()


async def aside(work: Callable[[], None]) -> None:
    """Do work on a thread of its own, without blocking the loop; whatever it raises comes out here."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(None) if error is None else ended.set_exception(error)

    def do() -> None:
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:  # it belongs to whoever awaits
            failure = error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=contextvars.copy_context().run, args=(do,), name="resilient-scan-run", daemon=True).start()
    await ended


_left_to_the_parent: list[Fleet] = []  # in a child: kept, because letting go would close what both share
_all: weakref.WeakSet[Runs] = weakref.WeakSet()


def _after_fork() -> None:
    for runs in tuple(_all):
        runs.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
