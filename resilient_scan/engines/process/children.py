"""Warm child processes: handed out, given back, killed.

    start ---> keeper: start_child ... ready ---> idle ---> take ---> a worker ---> give_back ---> idle
                  ^                                                      |                          |
                  +------------ ended: killed, crashed ------------------+------- used enough ------+

The keeper (`keeper.py`) is a thread that makes them, notices when one ends, and replaces it at once. Callers leave it
notes. Idle children are in a queue whose `put` and `get` are safe in signal handlers, and `close` takes no lock that a
caller may hold. So it may be called from anywhere.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty
from weakref import WeakSet

from resilient_scan.engines.process.keeper import Child, Keeper
from resilient_scan.errors import Rejected, WorkerLost
from resilient_scan.layers.blame import DISK, NAMES, NETWORK

POLL_INTERVAL = 0.02  # seconds between two looks at whether a child is still wanted
CLOSE_TIMEOUT = 0.5  # seconds for which the exit of the interpreter waits for children to end

__all__ = ["Child", "Children"]


class Children:
    """The child processes of one runner; all methods may be called from any thread.

    Args:
        most: children at a time.
        serve: what a child does, as `module:function`; it is called with the child's end of the pipe.
        preload: modules that are imported before children are made, besides that one.
        recycle_after: uses after which a child is replaced by a new one.
        fork: have a fork server make them; by default where that is safe (`starters.starter`).
    """

    away = False  # whether they are on other machines
    grace = 0.0  # seconds that their answers may be late, for transit
    shared = frozenset({DISK, NAMES, NETWORK})  # memory, descriptors and threads are limited for each process

    def __init__(
        self,
        most: int,
        serve: str = "resilient_scan.engines.process.child:serve",
        preload: Sequence[str] = (),
        recycle_after: int = 500,
        *,
        fork: bool | None = None,
    ) -> None:
        self._most = most
        self._serve = serve
        self._preload = tuple(preload)
        self._recycle_after = recycle_after
        self._fork = fork
        self._keeper: Keeper | None = None
        self._lock = threading.RLock()  # for `start`
        self._closed = False
        _all.add(self)

    def start(self) -> None:
        """Begin to make children, unless that was done. If it fails, `take` tries again, and says why."""
        with suppress(Rejected, WorkerLost):
            self._started()

    def _started(self) -> Keeper:
        keeper = self._keeper
        if keeper is None:
            with self._lock:
                keeper = self._keeper
                if keeper is None:
                    self._refuse_if_closed()
                    self._keeper = keeper = self._new_keeper()
            if self._closed:  # meanwhile
                keeper.close()
        return keeper

    def _new_keeper(self) -> Keeper:
        try:
            keeper = Keeper(self._most, self._serve, self._preload, self._fork)
            try:
                keeper.start()
            except BaseException:
                keeper.leave()
                raise
        except (OSError, RuntimeError) as error:
            raise WorkerLost(f"no child process can be started: {error}") from error
        return keeper

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Rejected("the runner is closed; it starts no child process")

    def take(self, over: Callable[[], bool], _patience: float = 0.0) -> Child:
        """Return a child that waits for work; wait for one until `over` says that it is not wanted any more.

        Raises:
            Rejected: the runner is closed.
            WorkerLost: no child can be made, or it was not wanted any more.
        """
        keeper = self._started()
        me = object()
        try:
            while not self._closed:
                try:
                    child = keeper.idle.get(timeout=POLL_INTERVAL) if me in keeper.waiting else keeper.idle.get_nowait()
                except Empty:
                    if keeper.trouble and not keeper.running:
                        raise WorkerLost(f"no child process can be started: {keeper.trouble}") from None
                    if me in keeper.waiting and over():
                        raise WorkerLost("the scan ended while it waited for a child process") from None
                    if me not in keeper.waiting:
                        keeper.waiting.add(me)
                        keeper.ring()
                    continue
                keeper.waiting.discard(me)  # before: else the keeper sees one waiter and no child, and makes another
                child.taken = True
                if _waits_for_work(child):
                    return child
                self.give_back(child)
        finally:
            keeper.waiting.discard(me)
        self._refuse_if_closed()
        raise AssertionError("unreachable")

    def give_back(self, child: Child) -> None:
        """Give a child back after an attempt; one that has ended or is used up is replaced."""
        keeper = self._keeper
        child.uses += 1
        child.taken = False
        if self._closed or keeper is None:
            child.kill()
            child.connection.close()
        elif child.killed or child.ended or child.uses >= self._recycle_after:
            keeper.discard(child)
        else:
            keeper.idle.put(child)

    def register(self, number: int, name: str, payload: bytes) -> None:
        """Do nothing: a child hears of a scanner before the first attempt that it makes of it."""

    def pids(self) -> tuple[int, ...]:
        """Return the numbers of the children that run."""
        keeper = self._keeper
        return () if keeper is None else tuple(keeper.running)

    def close(self) -> None:
        """End all children; wait for nothing. A signal handler or a finalizer may call it."""
        self._closed = True
        keeper = self._keeper
        if keeper is not None:
            keeper.close()

    def join(self, timeout: float) -> None:
        """Wait, after `close`, until all is ended."""
        keeper = self._keeper
        if keeper is not None:
            keeper.join(timeout)

    def leave(self) -> None:
        """Leave the children to the parent, in a forked copy of the driver, and begin again without any."""
        keeper, self._keeper = self._keeper, None
        self._lock = threading.RLock()
        if keeper is not None:
            keeper.leave()


def _waits_for_work(child: Child) -> bool:
    """Say whether a child can be handed out: one that has ended has closed its end, and an idle one sends nothing."""
    if child.killed or child.ended:
        return False
    with suppress(OSError):
        if not child.connection.poll():
            return True
    child.kill()
    return False


_all: WeakSet[Children] = WeakSet()


def _close_all() -> None:
    for children in tuple(_all):
        children.close()
    for children in tuple(_all):
        children.join(CLOSE_TIMEOUT)


def _leave_all() -> None:
    for children in tuple(_all):
        children.leave()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
