"""The thread that makes child processes, notices when one ends, and replaces it at once.

It lives as long as they do, because Linux ends a process with the *thread* that made it (`bootstrap.end_with`), and a
worker may be gone long before. All that is written here is written by this thread; others read, leave notes and ring.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue

from resilient_scan._log import log as _log
from resilient_scan.engines.process import bootstrap
from resilient_scan.engines.process.forkserver import kill_group
from resilient_scan.engines.process.starters import Starter, starter
from resilient_scan.engines.process.wire import Wire
from resilient_scan.errors import ProcessEnded

EXIT_TIMEOUT = 1.0  # seconds to wait for how a child ended
RETRY_INTERVAL = 1.0  # seconds until the next try to start a child where one failed
MAX_FAILURES = 3  # children in a row that ended before they were ready, until callers hear of it


class Child:
    """The driver's view of one child process.

    Attributes:
        pid: its number; also that of its process group.
        connection: the driver's end of the pipe to it. When the child has ended, reading from it raises `EOFError`,
            or `ConnectionResetError` where the child had not read all, once everything that it has sent was read.
        uses: how often it was given back.
        killed: whether `kill` was called.
        taken: whether a caller has it.
        ready: whether it has said that it can serve.
        wire: what carries messages through the connection, once it is ready.
        known: the numbers of the scanners that were sent to it.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid: int = pid
        self.connection: Connection = connection
        self.wire: Wire = Wire(connection)
        self.known: set[int] = set()
        self.uses: int = 0
        self.killed: bool = False
        self.taken: bool = False
        self.ready: bool = False
        self.discarded: bool = False
        self._ending = ""
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
        return self._ending if self._ended.wait(EXIT_TIMEOUT) else None

    def failure(self) -> BaseException:
        """Return what it means for an attempt that the child has ended."""
        return ProcessEnded(f"its process ended with {self.ending() or 'a closed pipe'}")

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended."""
        return self._ended.is_set()

    def end(self, ending: str) -> None:
        """Note how it ended, and that its number may be another process's from now on."""
        with self._lock:
            self._reaped = True
        if not self._ended.is_set():
            self._ending = ending
            self._ended.set()
            _end_reading(self.connection)

    def leave(self) -> None:
        """Leave it to the parent, in a forked copy of the driver; the lock may be held by a thread that is not here."""
        self._reaped = True
        self._lock = threading.RLock()
        self.connection.close()


class Keeper:
    """Makes children, and keeps as many as are used at a time.

    Args:
        most: children at a time.
        serve: what a child does, as `module:function`.
        preload: modules that are imported before children are made.
        fork: have a fork server make them.

    Attributes:
        idle: children that wait for work.
        waiting: callers that wait for a child, one object each.
        running: children that run, by number.
        trouble: why none can be made, for now.
    """

    def __init__(self, most: int, serve: str, preload: Sequence[str], fork: bool | None) -> None:
        self.idle: SimpleQueue[Child] = SimpleQueue()
        self.waiting: set[object] = set()
        self.running: dict[int, Child] = {}
        self.trouble: str = ""
        self._most = most
        self._serve = serve
        self._preload = preload
        self._fork = fork
        self._starter: Starter | None = None
        self._asked = 0  # children that were asked for and not made yet
        self._unborn: dict[Connection, Child] = {}  # made and not ready
        self._wanted = 1  # children that are kept; it grows with those that are taken at a time
        self._failures = 0
        self._retry_at = 0.0
        self._discarded: deque[Child] = deque()
        self._alarm, self._bell = socket.socketpair()
        for end in (self._alarm, self._bell):
            end.setblocking(False)
        self._closed = False
        self._thread = threading.Thread(target=self._keep, name="resilient-scan-children", daemon=True)

    # for callers

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ring(self) -> None:
        """Have it look at what callers have left."""
        with suppress(OSError):  # full: it wakes anyway; closed: nobody is there to wake
            self._bell.send(b"!")

    def discard(self, child: Child) -> None:
        """Take a child that nobody is to have again: end it, and let go of it."""
        self._discarded.append(child)
        self.ring()

    def close(self) -> None:
        """Kill all children, and end; wait for nothing."""
        self._closed = True
        for child in tuple(self.running.values()):
            child.kill()
        self.ring()

    def join(self, timeout: float) -> None:
        """Wait until all is ended."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def leave(self) -> None:
        """Leave all to the parent, in a forked copy of the driver, where this thread does not exist."""
        for end in (self._alarm, self._bell):
            end.close()
        if self._starter is not None:
            self._starter.leave()
        for child in (*self.running.values(), *self._unborn.values(), *self._discarded):
            child.leave()

    # the thread

    def _keep(self) -> None:
        while not self._closed:
            try:
                self._make_children()
                self._look()
            except Exception as error:  # nobody else makes children: begin again from nothing, after a while
                _log.exception("the thread that keeps child processes failed; it goes on with new ones")
                self._begin_again(f"{type(error).__name__}: {error}")
                time.sleep(RETRY_INTERVAL)
        self._end_all()

    def _make_children(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        try:
            if self._starter is None:
                self._starter = starter(self._serve, self._preload, fork=self._fork)
                self._wanted = max(self._wanted, min(self._starter.warm, self._most))
            while self._asked + len(self.running) < self._wanted:
                self._starter.start_child()
                self._asked += 1
        except ConnectionError:  # the fork server has ended: the next look tells
            pass
        except OSError as error:
            self._fail(str(error))

    def _look(self) -> None:
        """Wait for something to do, and do it."""
        sources = [] if self._starter is None else self._starter.sources()
        ready = wait([self._alarm, *sources, *self._unborn], self._timeout())
        with suppress(BlockingIOError):
            self._alarm.recv(4096)
        if self._retry_at and time.monotonic() >= self._retry_at:
            self._retry_at, self.trouble = 0.0, ""
        for connection in self._unborn.keys() & ready:
            self._greet(connection)
        if self._starter is not None and not self._starter.tell(self):
            self._begin_again("the process that starts them has ended")
        while self._discarded:
            child = self._discarded.popleft()
            child.discarded = True
            child.kill()
            self._let_go(child)
        alive = [child for child in tuple(self.running.values()) if not child.killed]
        missing = len(self.waiting) - sum(not child.taken for child in alive) - self._asked
        if missing > 0:
            self._wanted = min(self._most, max(self._wanted, len(alive) + self._asked + missing))

    def _timeout(self) -> float | None:
        if self._retry_at:
            return max(0.0, self._retry_at - time.monotonic())
        return None if self._starter is None else self._starter.interval

    def born(self, pid: int, connection: Connection, /) -> None:
        """Tell a new child who it is."""
        self._asked -= 1
        child = Child(pid, connection)
        self.running[pid] = child
        self._unborn[connection] = child
        if self._closed:
            child.kill()  # `close` did not see it
        with suppress(OSError):  # it has ended
            connection.send(bootstrap.surroundings())
            connection.send(self._serve)

    def not_born(self, number: int, /) -> None:
        """Try again later."""
        self._asked -= 1
        self._fail(os.strerror(number))

    def _greet(self, connection: Connection) -> None:
        """Read the first message of a child: it is ready, or says why it cannot serve."""
        child = self._unborn.pop(connection)
        try:
            message = connection.recv_bytes()
        except (OSError, EOFError):
            message = b""  # `ended` will hear why
        if message == bootstrap.READY:
            child.ready = True
            self._failures, self.trouble = 0, ""
            self.idle.put(child)
            return
        child.kill()
        if message:
            self._fail(message.decode(errors="replace"))

    def _fail(self, why: str) -> None:
        self.trouble = why
        self._retry_at = time.monotonic() + RETRY_INTERVAL

    def ended(self, pid: int, status: int, /) -> None:
        """Note how a child ended; another one takes its place in the next turn."""
        child = self.running.pop(pid)
        child.end(in_words(status))  # before its number is free
        if self._starter is not None:
            self._starter.reap(pid)
        if not child.ready:
            self._unborn.pop(child.connection, None)
            child.discarded = True
            self._failures += 1
            if self._failures >= MAX_FAILURES and not self.trouble:
                self._fail(f"each ends before it is ready, the last one with {in_words(status)}")
        elif not child.taken and not child.discarded:
            self._sort_idle()
        self._let_go(child)

    def _sort_idle(self) -> None:
        """Drop idle children that have ended; where nobody takes any, nothing else would."""
        for _ in range(self.idle.qsize()):
            with suppress(Empty):
                child = self.idle.get_nowait()
                child.discarded = child.ended
                if child.discarded:
                    self._let_go(child)
                else:
                    self.idle.put(child)

    @staticmethod
    def _let_go(child: Child) -> None:
        """Close the connection to a child, once it has ended and nobody has it."""
        if child.discarded and child.ended:
            child.connection.close()

    def _begin_again(self, why: str) -> None:
        """Give up all children, because the fork server has ended, say; somebody may have killed it."""
        if not self._failures and self.running:
            _log.warning("%s; new child processes are started", why)
        else:
            self._fail(why)
        self._failures += 1
        self._end_children(f"killed, because {why}")
        old, self._starter = self._starter, None
        self._asked = 0
        if old is not None:
            old.close()

    def _end_children(self, ending: str) -> None:
        for child in tuple(self.running.values()):
            child.kill()
            child.end(ending)
            child.discarded = child.discarded or not child.ready
            self._let_go(child)
        self.running.clear()
        self._unborn.clear()
        self._sort_idle()

    def _end_all(self) -> None:
        self._end_children("killed, because the runner was closed")
        self._discarded.clear()
        if self._starter is not None:
            self._starter.close()
        for end in (self._alarm, self._bell):
            end.close()


def in_words(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _end_reading(connection: Connection) -> None:
    """Let a reader see that a child has ended, where a process that it left holds the other side.

    On Linux, what the child has sent stays readable. Elsewhere it would not, so the pipe is left alone there.
    """
    if sys.platform == "linux":
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RD)
