"""All the runs of one runner: several at once, how they are read, and how they end when the runner is closed.

The runs share the live parts (`Fleet`). Closing asks each run to end, through its outbox, and then lets the parts go.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from inspect import GEN_RUNNING, GEN_SUSPENDED, getgeneratorstate
from itertools import islice
from operator import attrgetter
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from resilient_scan._once import IMPORTING
from resilient_scan.core.assembly import CLOSE_TIMEOUT, Fleet, opened, start_closer
from resilient_scan.core.config import Config, length_of
from resilient_scan.core.execution import works_for
from resilient_scan.core.run import LOOK_AHEAD, POLL_INTERVAL, Run
from resilient_scan.core.stack import Stack
from resilient_scan.events import Listener
from resilient_scan.layers.outcomes import packed
from resilient_scan.results import ScanResult, Status
from resilient_scan.stores.health import WaitBudget
from resilient_scan.stores.history import RunHistory

if TYPE_CHECKING:
    from resilient_scan.core.map_run import MapRun

FLUSH_TIMEOUT = 0.25  # seconds for which a run waits until what it brought is in the store
# Scans of a run under way at a time. The garbage collector knows some of the objects of each. With twice as many scans,
# they are still there at its second look and count as long-lived: then it looks at everything twice as often. With half
# as many, the run's thread waits twice as often.
WINDOW = 64
ALL = 10**9  # a stream's reader may be slow, and is not waited for
AHEAD = 2  # inputs of a map that are begun for each worker: the next is there when one ends
R = TypeVar("R")
_CORE = f"{__package__}."
_CLOSED = "the runner is closed; build another one to run again"
_OWN_SCANNER = (
    "a scanner runs the runner that it is part of, which would wait for itself; "
    "build another runner for it, or call the other scanners' functions"
)


class Runs:
    """The runs of one runner: several at once, from any thread, over the same live parts.

    Args:
        config: what the live parts are made from.

    Raises:
        ConfigError: the store cannot be opened.
    """

    closed: bool = False
    demo: bool = False  # whether bundled data answer

    def __init__(self, config: Config) -> None:
        self.config: Config = config
        self._store = opened(config.store, config.clock)
        least = WINDOW if self._store is None else LOOK_AHEAD  # a store is asked for as many at once
        self._window = max(least, 4 * config.max_workers) if config.concurrent else 1
        self._forked = False
        self._renewing: int | None = None  # the thread that makes new live parts in a forked child
        self._renewed = threading.Event()
        self._lock = threading.Lock()
        self._open()
        self._live_fleet.announce()
        _all.add(self)

    def _open(self) -> None:
        """Make the live parts."""
        self.active: set[Run] = set()
        self._live_fleet = fleet = Fleet(self.config, self._store)
        self.history: RunHistory | None = None if self._store is None else RunHistory(self._store, fleet.store_failed)
        fleet.keep_rest = None if self.history is None else self.history.keep_rest
        self._fresh = self.history is not None  # nothing has been recalled yet
        self._closer = weakref.finalize(self, fleet.close_soon)
        self._closer.atexit = False
        self._closing: threading.Thread | None = None

    @property
    def fleet(self) -> Fleet:
        """The live parts; after a fork new ones, because the parent's threads and locks do not work in the child."""
        if self._forked:
            self._renew()
        return self._live_fleet

    def _renew(self) -> None:
        """Make new live parts, once, in a forked child.

        The listeners hear of the scanners before anything else, and the store opens its connections: foreign code, so
        the lock is not held. A listener that calls the runner from there (to ask for its scanners, say) is given the
        parts that are being made; under the lock it would wait for itself. Other threads wait until all is done, or a
        listener would hear of a run before it heard of the scanners.
        """
        me = threading.get_ident()
        while self._forked and self._renewing != me:
            with self._lock:
                mine = self._renewing is None
                if mine:
                    self._renewing = me
                    self._renewed.clear()
            if not mine:
                self._renewed.wait(POLL_INTERVAL)
                continue
            try:
                if self._forked:  # another thread may have been through with it between our look and the lock
                    self._make_new()
            finally:
                self._renewing = None  # if it failed, the next caller tries
                self._renewed.set()

    def _make_new(self) -> None:
        gate = self._live_fleet.gate
        if self._store is not None:
            self._store.after_fork()
        self._open()
        self._live_fleet.gate.inherit(gate)
        self._live_fleet.announce()
        self._forked = False

    def after_fork(self) -> None:
        """Leave everything to the parent, in a forked child."""
        self._closer.detach()
        self._lock = threading.Lock()
        self._renewing, self._renewed = None, threading.Event()
        self._forked = True
        self._live_fleet.detach()
        _left_to_the_parent.append(self._live_fleet)

    def listen(self, listener: Listener) -> None:
        """Let one more listen, unless there is an equal one."""
        with self._lock:
            if listener in self.config.listeners:
                return
            self.config = msgspec.structs.replace(self.config, listeners=(*self.config.listeners, listener))
        self.fleet.listen(listener)

    def close(self) -> None:
        """End all runs and let the threads go; wait for it, but not for long.

        A signal handler may call this, on a thread that is in the middle of any of our functions and holds a lock of
        the runner. That thread would wait for itself if it took the lock again here. So nothing in here takes one: the
        outboxes and the start of a thread need none of ours, and that thread (`Fleet.close_soon`) does the rest. If it
        needs the very lock that our caller holds, it gets it once we have returned, and we do not wait for it.
        """
        self.closed = True
        if self._forked:
            return  # the threads are the parent's
        for run in self.active.copy():
            run.cancel()
        self._closing = self._closer() or self._closing  # None, from the second call on
        if self._closing is not None and not _is_in_core(sys._getframe(1)):  # noqa: SLF001 - documented
            self._closing.join(CLOSE_TIMEOUT)

    # one run

    def prepare(self, state: Mapping[str, Any] | None, deadline: float | None) -> Run:
        """Return a run that has not begun.

        Raises:
            TypeError: the state is not a mapping, or cannot be copied.
            ConfigError: the deadline is wrong.
            RuntimeError: the runner is closed, or the caller is one of its own scanners.
        """
        self._check_open()
        length = length_of(self.config.deadline if deadline is None else deadline)
        return Run({} if state is None else state, length, self.config.clock, demo=self.demo)

    def prepare_map(self, name: str, inputs: Iterable[Mapping[str, Any]], *, ordered: bool) -> MapRun:
        """Return a map that has not begun.

        Raises:
            TypeError: the inputs cannot be iterated over.
            ConfigError: there is no such scanner.
            RuntimeError: the runner is closed, or the caller is one of its own scanners.
        """
        self._check_open()
        self._live_fleet.stack(name)
        with IMPORTING:
            from resilient_scan.core.map_run import MapRun  # noqa: PLC0415 - most runners never need it
        return MapRun(inputs, self.config.clock, ordered=ordered, demo=self.demo)

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(_CLOSED)
        if works_for(self._live_fleet.pool):
            raise RuntimeError(_OWN_SCANNER)

    def finish(self, run: Run, names: tuple[str, ...]) -> None:
        """Go through a run to its end."""
        try:
            for _ in self._results(run, self._window, names, read=False):
                pass
        except BaseException:
            self.finish_run(run)  # again, if an interrupt fell into the winding up
            raise

    def stream(self, run: Run, names: tuple[str, ...]) -> Iterator[ScanResult]:
        """Return the results as they come to a reader who may be slow."""
        steps = self._results(run, ALL if self.config.concurrent else 1, names, read=True)
        return Stream(steps, partial(self.finish_run, run))

    def map(self, run: MapRun, name: str) -> Stream[Any]:
        """Return the inputs of a map, each with its result."""
        config, on_lane = self.config, self.fleet.stack(name).lane is not None
        window = config.max_async if on_lane else AHEAD * config.max_workers
        steps = self._results(run, window if config.concurrent else 1, (name,), read=True)
        return Stream(steps, partial(self.finish_run, run))

    def _results(self, run: Run, window: int, names: tuple[str, ...], *, read: bool) -> Generator[Any]:
        """Yield the results as they come, if they are read, never waiting for a store for long."""
        steps = self._steps(run, window, names, read)
        return steps if self._store is None else _budgeted(steps, run.wait_budget())

    def _steps(self, run: Run, window: int, names: tuple[str, ...], read: bool) -> Generator[Any]:
        """Yield the results as they come, if they are read; the caller's thread is the run's thread."""
        fleet = self.fleet
        try:
            self.active.add(run)  # before the look: `close` does the two in the opposite order, so one sees the other
            if self.closed:
                raise RuntimeError(_CLOSED)
            run.start(fleet, names, concurrent=self.config.concurrent)
            fresh, self._fresh = self._fresh, False
            if fresh and self.history is not None:
                fleet.recall(self.history.remembered())
            yield from run.stream(self._in_order(fleet, names), window, read=read)
        finally:
            self.finish_run(run)

    def _in_order(self, fleet: Fleet, names: Sequence[str]) -> Sequence[Stack]:
        """Return the stacks in the order in which they start: with few workers this decides a run's length."""
        stacks = list(map(fleet.stacks.__getitem__, names))
        if self.config.concurrent and self.config.order == "longest_first":
            stacks.sort(key=attrgetter("expected"), reverse=True)
        return stacks

    def finish_run(self, run: Run) -> None:
        """Wind a run up, whichever way it ended; again, after an interrupt in here."""
        self.active.discard(run)
        if not run.has_started or run.has_ended:
            return
        with run.wait_budget():
            run.wind_up()
        attempts, leases = run.fleet.attempts, run.fleet.leases
        if not run.remembered and attempts is not None and leases is not None:
            leases.flush(0.0, attempts.drain, written=False)
        if self.history is not None and leases is not None and run.remembered:
            left = run.deadline - self.config.clock.monotonic()
            # Only a record says what the cache has answered: nobody waits for a disk for its sake.
            worked = any(result.status is not Status.CACHED for result in run.results.values())
            job = partial(_keep, self.history, run)
            leases.flush(min(FLUSH_TIMEOUT, max(0.0, left)), job, written=worked)


def _keep(history: RunHistory, run: Run) -> None:
    """Have the store remember a run, on the lease keeper's thread.

    A scan that the cache has answered taught nobody anything, and costs next to nothing. So its record waits for the
    next one of its scanner for which something was done, or for some seconds: to write it at once would cost more than
    ten times as much as the scan.
    """
    report, fleet = run.report(), run.fleet
    if fleet.attempts is not None:
        fleet.attempts.drain()
    stacks = [fleet.stacks[name] for name, result in report.results.items() if result.status is not Status.CACHED]
    if history.rest_is_due(monotonic()):
        stacks = list(fleet.stacks.values())
    past = {stack.name: scans for stack in stacks if (scans := stack.unkept())}
    if fleet.attempts is None:
        expected = {stack.name: stack.expected for stack in stacks if stack.expected < math.inf}
    else:
        expected = fleet.attempts.expected([stack.name for stack in stacks])
    learned = {stack.name: known for stack in stacks if (known := stack.learned()) is not None}
    outcomes = {stack.name: packed(stack.outcomes) for stack in stacks}
    history.keep(report, expected, past, learned, outcomes)


class Stream(Iterator[R]):
    """What comes of a run: its results, or the inputs of a map with theirs.

    Leaving it early ends the run, and so does closing it.

    It wraps a generator, because the garbage collector may be the one that finds it left: on any thread, at any point,
    under any lock of ours. A bare generator would end its run right there, and wait for the lock for ever. Here the
    finalizer keeps the generator out of the garbage, and has another thread close it.

    Args:
        steps: what goes through the run.
        finish: winds the run up, if it has started and has not ended.
    """

    def __init__(self, steps: Generator[R], finish: Callable[[], None]) -> None:
        self._steps = steps
        self._finish = finish
        weakref.finalize(self, _close_soon, steps).atexit = False

    def __next__(self) -> R:
        try:
            return next(self._steps)
        except StopIteration:
            raise
        except BaseException:
            if (
                getgeneratorstate(self._steps) != GEN_RUNNING
            ):  # else another thread is in it, and ours has no business here
                self._finish()
            raise

    def close(self) -> None:
        """End the run, if it has begun."""
        try:
            self._steps.close()
        finally:
            self._finish()


def _close_soon(steps: Generator[Any]) -> None:
    closer = start_closer(steps.close) if getgeneratorstate(steps) == GEN_SUSPENDED else None
    if closer is not None:  # else it is closed when it goes, a moment later
        closer.join(CLOSE_TIMEOUT)


def _budgeted(steps: Generator[Any], wait_budget: WaitBudget) -> Generator[Any]:
    """Advance a run within its wait budget; the budget does not bind its reader, who has the thread in between."""
    try:
        while True:
            with wait_budget:
                result = next(steps, None)
            if result is None:
                return
            yield result
    finally:
        with wait_budget:
            steps.close()


def _is_in_core(frame: FrameType | None) -> bool:
    """Say whether a call came from inside the core: from a signal handler amid a run, a listener, or a scanner."""
    while frame is not None and not frame.f_globals.get("__name__", "").startswith(_CORE):
        frame = frame.f_back
    return frame is not None


async def in_thread(work: Callable[[], None]) -> None:
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
        except BaseException as error:  # raised where the run is awaited
            failure = error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=contextvars.copy_context().run, args=(do,), name="resilient-scan-run", daemon=True).start()
    await ended


async def on_threads(run: MapRun, stream: Stream[R]) -> AsyncIterator[R]:
    """Yield what comes of a map, from asyncio code: the loop is not blocked, leaving it early or a cancel ends the map.

    Each step is a thread's: it waits for the next result, and brings all others that are ready. Who leaves while a step
    is under way (a cancel) has it end by a message to the run; only then can the stream be closed.
    """
    step_under_way = threading.Lock()
    found: deque[R] = deque()

    def step() -> None:
        with step_under_way:
            found.extend(islice(stream, 1))
            while run.has_ready:
                found.extend(islice(stream, 1))

    def close() -> None:
        with step_under_way:
            stream.close()

    try:
        while True:
            await in_thread(step)
            if not found:
                return  # it has ended by itself
            while found:
                yield found.popleft()
    except BaseException:  # left early, cancelled, or the map's own error
        run.cancel()
        await in_thread(close)
        raise


_left_to_the_parent: list[Fleet] = []  # in a child: kept, because letting go would close what both share
_all: weakref.WeakSet[Runs] = weakref.WeakSet()


def _after_fork() -> None:
    for runs in tuple(_all):
        runs.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
