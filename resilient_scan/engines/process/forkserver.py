"""The fork server: a small process with one thread that has imported what children need, and forks them.

A new interpreter that imports this package takes a second or more on a busy machine; a fork of one that has done so
takes a few milliseconds. The driver itself has threads and must not fork: a child would find locks held for ever.

`multiprocessing` has a fork server, too, but one for the whole program: it is the host's as much as ours, its preloaded
modules are those that its first user asked for, it imports the driver's main module, and it reaps a child at once. The
driver may then signal another process that has got the number. This one reaps a child when the driver says so.

It ends all children and what they leave running when the driver ends, in whatever way: Linux sends it a signal then,
and the connection to the driver ends.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from resilient_scan.engines.process import bootstrap

REQUEST = struct.Struct("=cq")  # from the driver: what, and the process
REPLY = struct.Struct("=cqq")  # to the driver: what, the process, and how it ended or why there is none
FORK, REAP = b"F", b"R"
FORKED, FAILED, ENDED = b"P", b"E", b"X"


def main() -> None:
    """Import what children need and serve the driver; the arguments are those of `starters.ForkStarter`."""
    _, fd, driver, preload, *_ = sys.argv
    bootstrap.reset_signals()
    promised = bootstrap.end_with(int(driver), signal.SIGTERM)
    bootstrap.adopt_orphans()
    for name in preload.split(","):
        with suppress(Exception):  # a child imports it again, and says what is wrong
            importlib.import_module(name)
    warnings.filterwarnings("ignore", ".*multi-threaded.*fork.*", DeprecationWarning)  # threads of C libraries
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    server = ForkServer(socket.socket(fileno=int(fd)), int(driver))
    try:
        server.run(None if promised else bootstrap.PARENT_INTERVAL)
    finally:
        os._exit(0)


class ForkServer:
    """Forks children for the driver, tells it when one ends, and reaps those that the driver is through with.

    Args:
        driver: the connection to it.
        parent: the driver's process.
    """

    def __init__(self, driver: socket.socket, parent: int) -> None:
        self._driver = driver
        self._parent = parent
        self._pid = os.getpid()
        self._running: set[int] = set()
        self._ended: set[int] = set()  # not reaped yet, so their numbers are theirs
        self._unwanted: set[int] = set()  # to be reaped as soon as they have ended
        self._sweeping = False  # orphans are being ended
        self._over = False
        self._wakeup, self._wakeup_writer = os.pipe()
        for end in (self._wakeup, self._wakeup_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end_soon)

    def _end_soon(self, *_: object) -> None:
        self._over = True

    def run(self, interval: float | None) -> None:
        """Serve the driver until it ends or closes the connection; look for it every `interval` seconds."""
        try:
            while not self._over and os.getppid() == self._parent:
                ready = wait([self._driver, self._wakeup], interval)
                if self._wakeup in ready:
                    with suppress(BlockingIOError):
                        os.read(self._wakeup, 4096)
                self._look()
                if self._driver in ready and not self._answer():
                    return
        except OSError:  # the driver is gone
            pass
        finally:
            self._end_all()

    def _answer(self) -> bool:
        """Do what the driver asks; `False`: it has closed the connection."""
        message, fds, _, _ = socket.recv_fds(self._driver, REQUEST.size, 1)
        while message and len(message) < REQUEST.size:
            more = self._driver.recv(REQUEST.size - len(message))
            message = message + more if more else b""
        if not message:
            return False
        what, pid = REQUEST.unpack(message)
        if what == FORK:
            self._fork(fds[0])
        else:
            self._discard(pid)
        return True

    def _fork(self, fd: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            os.close(fd)
            self._tell(FAILED, 0, error.errno or 0)
            return
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for end in (self._driver.detach(), self._wakeup, self._wakeup_writer):
                    os.close(end)
                bootstrap.become_child(Connection(fd), self._pid)
            finally:
                os._exit(1)
        os.close(fd)
        self._running.add(pid)
        self._tell(FORKED, pid, 0)

    def _tell(self, what: bytes, pid: int, detail: int) -> None:
        self._driver.sendall(REPLY.pack(what, pid, detail))

    def _look(self) -> None:
        """Tell the driver of children that have ended, and reap what is to be reaped."""
        for pid in tuple(self._running):
            status = status_of(pid)
            if status is not None:
                self._running.discard(pid)
                self._ended.add(pid)
                self._tell(ENDED, pid, status)
        for pid in self._ended & self._unwanted:
            kill_group(pid)  # before its number is free: what it has started may be left
            self._ended.discard(pid)
            self._unwanted.discard(pid)
            self._sweeping = True
            _reap(pid)
        orphans = self._orphans()
        if self._sweeping:
            self._sweeping = self._end_orphans(orphans)
        for pid in orphans:
            _reap(pid)

    def _discard(self, pid: int) -> None:
        """End a child and what it has left, and give its number back to the system once it has ended.

        Nothing is waited for: a process that waits for a broken network drive cannot be killed, and the others go on.
        """
        if pid in self._running:
            kill_group(pid)
        self._unwanted.add(pid)
        self._look()

    def _orphans(self) -> set[int]:
        """Return our children that no fork of ours made: they have lost their parent, one of our descendants."""
        try:
            children = Path(f"/proc/self/task/{self._pid}/children").read_text(encoding="ascii")
        except OSError:  # not Linux
            return set()
        return {int(pid) for pid in children.split()} - self._running - self._ended

    def _end_orphans(self, orphans: set[int]) -> bool:
        """End the orphans that belong to no child that runs, and say whether there were any.

        Those that have made a session of their own are among them. An orphan leaves its own children to us, so it
        takes another look when it has ended.
        """
        found = False
        for pid in orphans:
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) not in self._running:
                    os.kill(pid, signal.SIGKILL)
                    found = True
        return found

    def _end_all(self) -> None:
        signal.set_wakeup_fd(-1)
        for pid in self._running | self._ended:
            kill_group(pid)
        children = self._running | self._ended
        self._running, self._ended = set(), set()
        for _ in range(100):
            orphans = self._orphans()  # all that is left: the children and their descendants
            self._end_orphans(orphans)
            children = {pid for pid in children | orphans if not _reap(pid)}
            if children:
                time.sleep(0.005)
            elif not orphans:
                return  # else one of them may have ended after the look, and left us its own children


def _reap(pid: int) -> bool:
    """Give the number of a process back to the system, and say whether it has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def kill_group(pid: int) -> None:
    """Kill a child with its process group; it has none of its own right after its bootstrap."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def status_of(pid: int) -> int | None:
    """Return the exit code of a child, or the number of its signal, negative; `None` while it runs. Do not reap it."""
    try:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: it is reaped here
            found, status = os.waitpid(pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status) if found else None
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def preloaded(serve: str, preload: Sequence[str]) -> str:
    """Return the argument that names what is imported before children are forked."""
    return ",".join(dict.fromkeys((serve.partition(":")[0], *preload)))
