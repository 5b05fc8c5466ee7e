"""Warm child processes: started, kept, handed out, killed, replaced.

One thread, the *keeper*, makes all children of a runner, notices when one ends, and replaces it at once. It lives as
long as they do, because Linux ends a process with the *thread* that made it (`birth.end_with`), and a worker may be
gone long before.

    start ---> keeper: start_child ... ready ---> idle ---> take ---> a worker ---> give_back ---> idle
                  ^                                                      |                          |
                  +------------ ended: killed, crashed ------------------+------- used enough ------+

Nobody waits for a lock of the keeper, because it has none. Callers leave it notes and wake it, and idle children are in
a queue whose `put` and `get` are safe in signal handlers. So `close` may be called from anywhere.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from weakref import WeakSet

from resilient_scan._log import log as _log
from resilient_scan.engines.process import birth
from resilient_scan.engines.process.starters import ForkStarter
from resilient_scan.errors import Rejected, WorkerLost

POLL_INTERVAL = 0.02  # seconds between two looks at whether a child is still wanted
EXIT_TIMEOUT = 1.0  # seconds to wait for how a child ended
RETRY_INTERVAL = 1.0  # seconds until the next try to start a child where one failed
MAX_FAILURES = 3  # children in a row that ended before they were ready, until callers hear of it


class Child:
    """The driver's view of one child process.

    Attributes:
        pid: its number; also that of its process group.
        connection: the driver's end of the pipe to it.
        uses: how often it was given back.
        killed: whether `kill` was called.
        taken: whether a caller has it.
        ready: whether it has told that it can serve.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid: int = pid
        self.connection: Connection = connection
        self.uses: int = 0
        self.killed: bool = False
        self.taken: bool = False
        self.ready: bool = False
        self.status: int | None = None  # its exit code, or the number of its signal, negative
        self._lost = ""  # how it ended, where its status will never be known
        self._ended = threading.Event()
        self._lock = threading.RLock()  # reentrant: a signal handler may kill it, too
        self._reaped = False

    def kill(self) -> None:
        """Kill it with its own subprocesses, at once; from any thread, as often as you like."""
        with self._lock:
            self.killed = True
            if not self._reaped:  # afterwards, its number may be another process's
                kill_group(self.pid)

    def ending(self) -> str | None:
        """Return how it ended, `SIGSEGV` or `exit code 7` say; `None`: it runs.

        Call it when the connection has ended. The system may take a moment to say how; it is waited for up to a second.
        """
        if not self._ended.wait(EXIT_TIMEOUT):
            return None
        return self._lost or in_words(self.status)

    def end(self, status: int | None, lost: str = "") -> None:
        """Note how it ended; for the keeper."""
        if not self._ended.is_set():
            self.status, self._lost = status, lost
            self._ended.set()

    def reaped(self) -> None:
        """Note that its number may be another process's from now on; for the keeper."""
        with self._lock:
            self._reaped = True

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended."""
        return self._ended.is_set()


class Children:
    """The child processes of one runner; all methods may be called from any thread.

    Args:
        most: children at a time.
        serve: what a child does, as `module:function`; it is called with the child's end of the pipe.
        preload: modules that are imported before children are made, besides that one.
        recycle_after: uses after which a child is replaced by a new one.
    """

    def __init__(
        self,
        most: int,
        serve: str = "resilient_scan.engines.process.child:serve",
        preload: Sequence[str] = (),
        recycle_after: int = 500,
    ) -> None:
        self._most = most
        self._serve = serve
        self._preload = tuple(preload)
        self._recycle_after = recycle_after
        self._open()
        _all.add(self)

    def _open(self) -> None:
        self._idle: SimpleQueue[Child] = SimpleQueue()
        self._children: dict[int, Child] = {}  # those that run; the keeper's
        self._unborn: dict[Connection, Child] = {}  # those that are not ready; the keeper's
        self._asked = 0  # children that were asked for and not made yet; the keeper's
        self._wanted = 1  # children that are kept warm; it grows with those that are taken at a time
        self._failures = 0
        self._trouble = ""  # why no child can be made
        self._retry_at = 0.0
        self._starter: ForkStarter | None = None
        self._notes: deque[Child | None] = deque()  # children that were given back; `None`: one more is wanted
        self._alarm, self._bell = socket.socketpair()
        self._alarm.setblocking(False)
        self._bell.setblocking(False)
        self._lock = threading.RLock()  # for `start`
        self._keeper: threading.Thread | None = None
        self._closed = False

    # what callers use

    def start(self) -> None:
        """Begin to make children, unless that was done."""
        if self._keeper is None and not self._closed:
            with self._lock:
                if self._keeper is None:
                    keeper = threading.Thread(target=self._keep, name="resilient-scan-children", daemon=True)
                    keeper.start()
                    self._keeper = keeper

    def take(self, over: Callable[[], bool]) -> Child:
        """Return a child that waits for work; wait for one until `over` says that it is not wanted any more.

        Raises:
            Rejected: the runner is closed.
            WorkerLost: no child can be made, or it was not wanted any more.
        """
        try:
            self.start()
        except RuntimeError as error:
            raise WorkerLost(f"no child process can be started: {error}") from error
        asked = False
        while not self._closed:
            with suppress(Empty):
                child = self._idle.get(timeout=POLL_INTERVAL) if asked else self._idle.get_nowait()
                if self._usable(child):
                    child.taken = True
                    return child
                self._leave_note(child)
                continue
            if self._trouble:
                raise WorkerLost(f"no child process can be started: {self._trouble}")
            if not asked:
                asked = True
                self._leave_note(None)
            elif over():
                raise WorkerLost("the scan ended while it waited for a child process")
        raise Rejected("the runner is closed; it starts no child process")

    def give_back(self, child: Child) -> None:
        """Give a child back after an attempt; one that has ended or is used up is replaced."""
        child.uses += 1
        child.taken = False
        if self._closed or child.uses >= self._recycle_after or not self._usable(child):
            self._leave_note(child)
        else:
            self._idle.put(child)

    def pids(self) -> tuple[int, ...]:
        """Return the numbers of the children that run."""
        return tuple(self._children)

    def close(self) -> None:
        """End all children; wait for nothing. No lock is taken: a signal handler or a finalizer may call it."""
        self._closed = True
        for child in tuple(self._children.values()):
            child.kill()
        self._ring()

    def join(self, timeout: float) -> None:
        """Wait until all is ended after `close`."""
        keeper = self._keeper
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(timeout)

    def leave(self) -> None:
        """Leave the children to the parent, in a forked copy of the driver, and begin again without any."""
        starter, children = self._starter, (*self._children.values(), *self._unborn.values())
        for end in (self._alarm, self._bell):
            end.close()
        if starter is not None:
            starter.leave()
        for child in children:
            child.connection.close()
        self._open()

    def _usable(self, child: Child) -> bool:
        """Say whether a child waits for work: one that has ended has closed its end, and an idle one sends nothing."""
        if child.killed or child.ended:
            return False
        try:
            return not child.connection.poll()
        except (OSError, EOFError):
            return False

    def _leave_note(self, note: Child | None) -> None:
        self._notes.append(note)
        self._ring()

    def _ring(self) -> None:
        with suppress(OSError):  # full: it will wake; closed: there is nobody to wake
            self._bell.send(b"!")

    # the keeper

    def _keep(self) -> None:
        while not self._closed:
            try:
                self._make_children()
                self._look()
            except Exception as error:  # it must go on: nobody else makes children
                self._trouble = self._trouble or f"{type(error).__name__}: {error}"
                _log.exception("the thread that keeps child processes failed, and goes on")
                time.sleep(POLL_INTERVAL)
        self._end_all()

    def _make_children(self) -> None:
        now = time.monotonic()
        if now < self._retry_at:
            return
        try:
            while self._asked + len(self._children) < min(self._wanted, self._most):
                if self._starter is None:
                    self._starter = ForkStarter(self._serve, self._preload)
                self._starter.start_child()
                self._asked += 1
        except OSError as error:
            self._fail(str(error))

    def _look(self) -> None:
        """Wait for something to do, and do it."""
        starter = self._starter
        servers = [] if starter is None else [starter.socket]
        timeout = max(0.0, self._retry_at - time.monotonic()) if self._retry_at else None
        ready = wait([self._alarm, *servers, *self._unborn], timeout)
        with suppress(BlockingIOError):
            self._alarm.recv(4096)
        if self._retry_at and time.monotonic() >= self._retry_at:
            self._retry_at, self._trouble = 0.0, ""
        if starter is not None and not starter.events(self._born, self._not_born, self._ended):
            self._server_ended()
        for connection in self._unborn.keys() & ready:
            self._greet(connection)
        while self._notes:
            self._read_note(self._notes.popleft())

    def _born(self, pid: int, connection: Connection) -> None:
        self._asked -= 1
        child = Child(pid, connection)
        self._children[pid] = child
        self._unborn[connection] = child
        if self._closed:
            child.kill()  # `close` did not see it
        with suppress(OSError):  # it has ended
            connection.send(birth.letter())
            connection.send(self._serve)

    def _not_born(self, number: int) -> None:
        self._asked -= 1
        self._fail(os.strerror(number))

    def _greet(self, connection: Connection) -> None:
        """Read the first message of a child: it is ready, or says why it cannot serve."""
        child = self._unborn.pop(connection)
        try:
            message = connection.recv_bytes()
        except (OSError, EOFError):
            message = b""  # `_ended` will hear why
        if message == birth.READY:
            self._failures = 0
            self._trouble = ""
            child.ready = True
            self._idle.put(child)
            return
        child.kill()
        if message:
            self._fail(message.decode(errors="replace"))

    def _fail(self, why: str) -> None:
        self._trouble = why
        self._retry_at = time.monotonic() + RETRY_INTERVAL

    def _ended(self, pid: int, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            return
        child.end(status)
        _end_connection(child.connection)
        child.reaped()
        if self._starter is not None:
            self._starter.reap(pid)
        if not child.ready:
            self._unborn.pop(child.connection, None)
            child.connection.close()
            self._failures += 1
            if self._failures >= MAX_FAILURES and not self._trouble:
                self._fail(f"each ended before it was ready, the last with {in_words(status)}")

    def _server_ended(self) -> None:
        """Let go of the children of a fork server that has ended, because somebody killed it: they end with it."""
        starter, self._starter = self._starter, None
        for child in tuple(self._children.values()):
            child.kill()
            child.reaped()  # by the system
            child.end(None, "killed with the process that starts child processes")
            _end_connection(child.connection)
        self._children.clear()
        self._asked = 0
        if starter is not None:
            starter.close()

    def _read_note(self, child: Child | None) -> None:
        if child is None:
            self._wanted = min(self._most, max(self._wanted, len(self._children) + self._asked + 1))
        elif not child.taken:
            child.kill()
            if child.ended:
                child.connection.close()

    def _end_all(self) -> None:
        for child in tuple(self._children.values()):
            child.kill()
            child.reaped()
            child.end(None, "killed, because the runner was closed")
            _end_connection(child.connection)
        self._children.clear()
        if self._starter is not None:
            self._starter.close()
        for end in (self._alarm, self._bell):
            end.close()


def kill_group(pid: int) -> None:
    """Kill a child with its process group; it has none of its own right after its birth."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def in_words(status: int | None) -> str:
    """Say how a process ended."""
    if status is None or status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _end_connection(connection: Connection) -> None:
    """Let a reader see that a child has ended, where a process that it left holds the other side.

    On Linux, what the child has sent stays readable. Elsewhere it would not, so the pipe is left alone there.
    """
    if sys.platform == "linux":
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RD)


_all: WeakSet[Children] = WeakSet()


def _close_all() -> None:
    for children in tuple(_all):
        children.close()
    for children in tuple(_all):
        children.join(EXIT_TIMEOUT / 2)


def _leave_all() -> None:
    for children in tuple(_all):
        children.leave()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
