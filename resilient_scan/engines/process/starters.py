"""How the driver has a child process made: by a fork server, or as a new interpreter where there is no fork."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_executable

from resilient_scan.engines.process import birth
from resilient_scan.engines.process.forkserver import (
    ENDED,
    FAILED,
    FORK,
    FORKED,
    REAP,
    REPLY,
    REQUEST,
    preloaded,
)

END_TIMEOUT = 0.5  # seconds for the fork server to end, with all that it has made

_PROGRAM = "import sys; sys.path[:] = sys.argv[4:]; from resilient_scan.engines.process.forkserver import main; main()"


class ForkStarter:
    """The driver's end of a fork server.

    The server is a program of its own (`python -c`), so it never imports the driver's main module. It is in a session
    of its own: Ctrl-C in a terminal does not reach it. The thread that makes it must not end before it.

    Args:
        serve: what children do, as `module:function`.
        preload: modules that it imports before it forks.
    """

    def __init__(self, serve: str, preload: Sequence[str]) -> None:
        self.socket, theirs = socket.socketpair()
        self._received = b""
        self._unborn: list[Connection] = []
        fd = theirs.fileno()
        arguments = [str(fd), str(os.getpid()), preloaded(serve, preload), *birth.letter()["path"]]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                [os.fsdecode(get_executable()), *_interpreter_flags(), "-c", _PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=_standard_error(),
                stderr=_standard_error(),
                pass_fds=[fd],
                start_new_session=True,
            )
        except BaseException:
            self.socket.close()
            raise
        finally:
            theirs.close()

    def start_child(self) -> None:
        """Ask for a child; `events` tells of it."""
        ours, theirs = Pipe()
        try:
            socket.send_fds(self.socket, [REQUEST.pack(FORK, 0)], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._unborn.append(ours)

    def events(
        self, born: Callable[[int, Connection], None], failed: Callable[[int], None], ended: Callable[[int, int], None]
    ) -> bool:
        """Tell what has happened to children; `False`: the server has ended."""
        try:
            data = self.socket.recv(REPLY.size * 64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._received += data
        while len(self._received) >= REPLY.size:
            what, pid, detail = REPLY.unpack_from(self._received)
            self._received = self._received[REPLY.size :]
            if what == FORKED:
                born(pid, self._unborn.pop(0))
            elif what == FAILED:
                self._unborn.pop(0).close()
                failed(detail)
            elif what == ENDED:
                ended(pid, detail)
        return bool(data)

    def reap(self, pid: int) -> None:
        """End what is left of a child, and have its number given back to the system."""
        with suppress(OSError):  # the server has ended
            self.socket.sendall(REQUEST.pack(REAP, pid))

    def close(self) -> None:
        """End the server, with all children and what they leave running; wait for it, not for long."""
        self.socket.close()
        while self._unborn:
            self._unborn.pop().close()
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:  # it imports something, or is stopped
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT)

    def leave(self) -> None:
        """Leave the server to the parent, in a forked copy of the driver."""
        self.socket.close()
        while self._unborn:
            self._unborn.pop().close()
        self._process.returncode = 0  # else its finalizer warns that it still runs


def _interpreter_flags() -> list[str]:
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return] # noqa: SLF001 - as multiprocessing does


def _standard_error() -> int:
    """Return where a child writes what it prints: never the driver's standard output, which may be read as JSON."""
    try:
        os.fstat(2)
    except OSError:  # the driver has closed it
        return subprocess.DEVNULL
    return 2
