"""How the driver has a child process made: by a fork server, or as a new interpreter where a fork is not safe."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_executable
from typing import Protocol

from resilient_scan.engines.process import bootstrap
from resilient_scan.engines.process.forkserver import (
    ENDED,
    FAILED,
    FORK,
    FORKED,
    REAP,
    REPLY,
    REQUEST,
    kill_group,
    preloaded,
    status_of,
)

END_TIMEOUT = 0.5  # seconds for the fork server to end, with all that it has made
LOOK_INTERVAL = 0.05  # seconds between two looks at spawned children

_SERVER = "import sys; sys.path[:] = sys.argv[4:]; from resilient_scan.engines.process.forkserver import main; main()"
_CHILD = "import sys; sys.path[:] = sys.argv[3:]; from resilient_scan.engines.process.bootstrap import main; main()"


class Listener(Protocol):
    """Hears of children."""

    def born(self, pid: int, connection: Connection, /) -> None:
        """One has been made."""

    def not_born(self, number: int, /) -> None:
        """One could not be made; the number is the system's for the reason."""

    def ended(self, pid: int, status: int, /) -> None:
        """One has ended, with an exit code or by a signal (negative). It is not reaped yet."""


class Starter(Protocol):
    """Makes children, for one thread."""

    @property
    def interval(self) -> float | None:
        """Seconds between two calls of `tell`, if its sources do not say when there is news; `None`: they do."""

    @property
    def warm(self) -> int:
        """How many children to make in advance; many, where one takes long."""

    def sources(self) -> list[socket.socket]:
        """Return what becomes readable when there is news."""

    def start_child(self) -> None:
        """Make a child; `tell` tells of it."""

    def tell(self, listener: Listener, /) -> bool:
        """Tell what has happened; `False`: no more children come from here, and those that were made have ended."""

    def reap(self, pid: int, /) -> None:
        """End what is left of a child, and have its number given back to the system."""

    def close(self) -> None:
        """End all children with what they leave running; wait for that, not for long."""

    def leave(self) -> None:
        """Leave everything to the parent, in a forked copy of the driver."""


def why_not() -> str | None:
    """Say why this program cannot have child processes; `None`: it can."""
    if os.name != "posix":
        return "this system does not have the processes of POSIX"
    if getattr(sys, "frozen", False):
        return "this program is frozen, so there is no Python interpreter to start"
    if not get_executable():
        return "sys.executable is not set, so there is no Python interpreter to start"
    return None


def starter(serve: str, preload: Sequence[str], *, fork: bool | None = None) -> Starter:
    """Return what makes children here.

    Args:
        serve: what children do, as `module:function`.
        preload: modules that the fork server imports before it forks.
        fork: use a fork server; by default everywhere but on macOS, whose libraries crash in a process that was
            forked (a look for the proxies is enough).

    Raises:
        OSError: the process cannot be started.
    """
    reason = why_not()
    if reason is not None:
        raise OSError(reason)
    if fork if fork is not None else sys.platform != "darwin":
        return ForkStarter(serve, preload)
    return SpawnStarter()


class ForkStarter:
    """The driver's end of a fork server.

    The server is a program of its own (`python -c`), so it never imports the driver's main module. It is in a session
    of its own: Ctrl-C in a terminal does not reach it. The thread that makes it must not end before it.
    """

    interval = None
    warm = 1

    def __init__(self, serve: str, preload: Sequence[str]) -> None:
        self._received = b""
        self._unborn: list[Connection] = []
        self._socket, theirs = socket.socketpair()
        try:
            self._process = _start_interpreter(_SERVER, theirs.fileno(), preloaded(serve, preload))
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def sources(self) -> list[socket.socket]:
        """Return what becomes readable when there is news."""
        return [self._socket]

    def start_child(self) -> None:
        """Ask for a child; `tell` tells of it."""
        ours, theirs = Pipe()
        try:
            socket.send_fds(self._socket, [REQUEST.pack(FORK, 0)], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._unborn.append(ours)

    def tell(self, listener: Listener, /) -> bool:
        """Tell what has happened to children; `False`: the server has ended."""
        try:
            data = self._socket.recv(64 * REPLY.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += data
        while len(self._received) >= REPLY.size:
            what, pid, detail = REPLY.unpack_from(self._received)
            self._received = self._received[REPLY.size :]
            if what == FORKED:
                listener.born(pid, self._unborn.pop(0))
            elif what == FAILED:
                self._unborn.pop(0).close()
                listener.not_born(detail)
            elif what == ENDED:
                listener.ended(pid, detail)
        return bool(data)

    def reap(self, pid: int, /) -> None:
        """End what is left of a child, and have its number given back to the system."""
        with suppress(OSError):  # the server has ended
            self._socket.sendall(REQUEST.pack(REAP, pid))

    def close(self) -> None:
        """End the server, with all children and what they leave running; wait for it, not for long."""
        self._let_go()
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:  # it imports something, or is stopped
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT)

    def leave(self) -> None:
        """Leave the server to the parent, in a forked copy of the driver."""
        self._let_go()
        self._process.returncode = 0  # else its finalizer warns that it still runs

    def _let_go(self) -> None:
        self._socket.close()
        while self._unborn:
            self._unborn.pop().close()


class SpawnStarter:
    """Starts a new interpreter for each child, which takes a second or more. Only a child's own group ends with it."""

    interval = LOOK_INTERVAL
    warm = 1000

    def __init__(self) -> None:
        self._born: list[tuple[int, Connection]] = []
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: dict[int, subprocess.Popen[bytes]] = {}

    def sources(self) -> list[socket.socket]:
        """Return nothing: `tell` is called every now and then."""
        return []

    def start_child(self) -> None:
        """Start a child."""
        ours, theirs = Pipe()
        try:
            process = _start_interpreter(_CHILD, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._running[process.pid] = process
        self._born.append((process.pid, ours))

    def tell(self, listener: Listener, /) -> bool:
        """Tell what has happened to children."""
        while self._born:
            listener.born(*self._born.pop(0))
        for pid, process in tuple(self._running.items()):
            status = status_of(pid)
            if status is not None:
                del self._running[pid]
                self._ended[pid] = process
                listener.ended(pid, status)
        return True

    def reap(self, pid: int, /) -> None:
        """End what is left of a child, and have its number given back to the system."""
        process = self._ended.pop(pid)
        kill_group(pid)
        process.wait()

    def close(self) -> None:
        """End all children."""
        for pid, process in {**self._running, **self._ended}.items():
            kill_group(pid)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT)
        self._close_unborn()

    def leave(self) -> None:
        """Leave the children to the parent, in a forked copy of the driver."""
        for process in (*self._running.values(), *self._ended.values()):
            process.returncode = 0
        self._close_unborn()

    def _close_unborn(self) -> None:
        while self._born:
            self._born.pop()[1].close()


def _start_interpreter(program: str, fd: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a Python program with our path of imports, in a session of its own, and hand it one descriptor."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 - as multiprocessing does
    output = _standard_error()
    return subprocess.Popen(  # noqa: S603 - this interpreter
        [os.fsdecode(get_executable()), *flags, "-c", program, str(fd), str(os.getpid()), *arguments]
        + bootstrap.surroundings()["path"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[fd],
        start_new_session=True,
    )


def _standard_error() -> int:
    """Return where a child writes what it prints: never the driver's standard output, which may be read as JSON."""
    try:
        os.fstat(2)
    except OSError:  # the driver has closed it
        return subprocess.DEVNULL
    return 2
