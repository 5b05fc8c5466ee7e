"""Free a thread that waits for a connection: shut the connection down, and the call that waits for it fails at once.

Python cannot interrupt a blocking call of another thread, but the kernel can end what the call waits for. When a
thread has not come back a few milliseconds after its deadline, look at what it is waiting for *now*:

    look        it waits for a connection: take a duplicate of the descriptor
    3 ms later  it still waits for the same connection: shut the duplicate down
    ...         up to `MAX_SHUTDOWNS` times, because a client may connect again by itself

Whose a connection *is* would be the wrong question: a pooled one belongs to another scanner a moment later. Only what
the thread is waiting for belongs to it for as long as it waits. So nothing is remembered but for one look to the next,
and a thread that has moved on in between is left alone.

Linux says which descriptor a thread waits for (`/proc/self/task/ID/syscall`). Elsewhere the thread's innermost frames
tell, but only if they are the socket's own methods: a client that waits for a *lock* has a connection among its
attributes, too, and that one may be at work for another scanner.

Nothing is patched, and nothing is noted while calls work: all of this begins after a deadline has passed.
"""

from __future__ import annotations

import os
import platform
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Final, Protocol

FIRST_LOOK = 0.004  # seconds after the deadline: who looks at the context returns by itself within a few milliseconds
LOOK_INTERVAL = 0.003  # seconds between two looks at a thread that waits for a connection
MAX_LOOK_INTERVAL = 0.05  # the longest pause after looks that found nothing: each is twice as long as the one before
MAX_SHUTDOWNS = 8
REPORT_TIME = 0.1  # seconds after the deadline in which a thread comes back by this: until then it is not abandoned
MAX_TIME = 1.0  # seconds after the deadline in which it is looked at
FRAMES = 12  # of the innermost, how many are looked at: a client's layers above a socket's method

Frames = Callable[[], Mapping[int, FrameType]]


class Hung(Protocol):
    """A thread that has not come back at its deadline."""

    @property
    def hangs(self) -> bool:
        """Whether it still has not."""

    @property
    def helpers(self) -> Sequence[threading.Thread]:
        """The threads that it waits for, because they do part of its work."""

    def cut_off(self) -> None:
        """Note that what the thread returns from now on may be incomplete."""


# The calls in which a thread waits for one descriptor: those that name it in their first argument, and those whose
# first argument is the address of a list of descriptors (a socket with a timeout polls before it reads). A poll that
# was interrupted, as by a stop of the process, goes on as `restart_syscall` (219), with its arguments. So does a sleep,
# and so does a wait for a lock, but neither has a 1 where a poll has the number of its descriptors.
_CALLS: Final = {
    "x86_64": (frozenset({0, 1, 20, 42, 44, 45, 46, 47}), frozenset({7, 219, 271})),
    "aarch64": (frozenset({63, 64, 66, 203, 206, 207, 211, 212}), frozenset({73})),
}.get(platform.machine() if sys.platform == "linux" else "")
_COOKIE: Final = 57  # SO_COOKIE: a number that Linux gives to one socket only
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_WAITING_MODULES: Final = frozenset({"socket", "ssl"})


class Release:
    """The attempt to free one thread, and those that help it.

    Args:
        thread: the thread.
        hung: what is known about it; a thread that serves others next must not be mistaken for the one that hung.
        deadline: when its time was up, monotonic.
        frames: returns the innermost frame of every thread.

    Attributes:
        shutdowns: how many connections were shut down.
        last: when the last one was, monotonic.
        report_at: when it is reported as abandoned if it has not come back, monotonic.
        ends: when the thread is left alone, monotonic.
        done: whether it is.
    """

    __slots__ = ("_found", "_frames", "_hung", "_pause", "_thread", "done", "ends", "last", "report_at", "shutdowns")

    def __init__(self, thread: threading.Thread, hung: Hung, deadline: float, frames: Frames) -> None:
        self._thread = thread
        self._hung = hung
        self._frames = frames
        self._found: dict[threading.Thread, _Duplicate] = {}
        self.shutdowns = 0
        self.last = 0.0
        self._pause = LOOK_INTERVAL
        self.report_at = deadline + REPORT_TIME
        self.ends = deadline + MAX_TIME
        self.done = False

    @property
    def under_way(self) -> bool:
        """Whether the thread was found to wait for a connection, and may come back any moment."""
        return not self.done and (bool(self._found) or self.shutdowns > 0)

    def freed(self, now: float) -> bool:
        """Return whether a thread that is back at `now` is back because of a shutdown: it comes within moments."""
        return self.shutdowns > 0 and now - self.last <= REPORT_TIME

    def step(self, now: float) -> float | None:
        """Look once, and shut down what was there at the look before, too; return when to look again.

        `None`: this is done.
        """
        threads = [self._thread, *self._hung.helpers]
        found, self._found = self._found, {}
        for thread, connection in found.items():
            if self._waits_for(thread, connection):
                # All is noted first. A body without a length ends at the shutdown as if it were complete, and its
                # reader may be back with it, and have reported what freed it, before this thread goes on.
                self._hung.cut_off()
                self.shutdowns += 1
                self.last = now
                if not connection.shut_down():
                    self.shutdowns -= 1
            connection.close()
        if self.done or not self._hung.hangs or self.shutdowns >= MAX_SHUTDOWNS * len(threads) or now >= self.ends:
            self.done = True
            return None
        for thread in threads:
            connection_now = self._look(thread)
            if connection_now is not None:
                self._found[thread] = connection_now
        self._pause = LOOK_INTERVAL if self._found else min(2 * self._pause, MAX_LOOK_INTERVAL)
        return now + self._pause

    def stop(self) -> None:
        """Leave the thread alone from now on."""
        self.done = True
        found, self._found = self._found, {}
        for connection in found.values():
            connection.close()

    def _look(self, thread: threading.Thread) -> _Duplicate | None:
        # The kernel is asked first: to list the frames takes the longer the more threads there are, and most threads
        # that hang for long wait for no connection.
        descriptor = waited_for(thread.native_id or 0, lambda: self._frame_of(thread))
        frame = None if descriptor is None else self._frame_of(thread)
        if descriptor is None or frame is None or _shares_connection(frame):
            return None
        return _Duplicate.of(descriptor)

    def _waits_for(self, thread: threading.Thread, found: _Duplicate) -> bool:
        """Return whether the thread waits for what it waited for at the look before.

        The kernel's word may be a moment old: reading it gives other threads a chance to run. Case: the thread's answer
        comes in that moment, it gives the connection back to a pool, and another scanner sends its request on it, or
        the thread itself does, with its next task. But then it is not at the same instruction any more, or does not
        hang. From that last look to the shutdown no other thread runs: it is a few instructions.
        """
        frame = self._frame_of(thread)
        if frame is None or _shares_connection(frame):  # only the end of a TLS handshake tells that it is HTTP/2
            return False
        instruction = frame.f_lasti
        descriptor = waited_for(thread.native_id or 0, lambda: frame)
        if descriptor is None or not found.is_behind(descriptor):
            return False
        return self._frame_of(thread) is frame and frame.f_lasti == instruction and self._hung.hangs

    def _frame_of(self, thread: threading.Thread) -> FrameType | None:
        frame = self._frames().get(thread.ident or 0)
        # In this order: the number of a thread that has ended goes to the next one that begins. Case: a `map` has
        # ended, and its helpers' numbers are those of another scanner's helpers by now.
        return frame if thread.is_alive() else None


class _Duplicate:
    """A second descriptor of a connection, which stays valid when its owner closes the first.

    It is the duplicate that is shut down, because `SSLSocket.shutdown` would take the TLS state away from under the
    thread that reads. For the kernel both are one connection.
    """

    __slots__ = ("_socket", "identity")

    def __init__(self, duplicate: socket.socket) -> None:
        self._socket = duplicate
        self.identity = _identity(duplicate)

    @classmethod
    def of(cls, descriptor: int) -> _Duplicate | None:
        """Duplicate a descriptor; `None`: not a connection over a network, or closed by now."""
        try:
            number = os.dup(descriptor)
        except OSError:  # closed in this moment, or this process may open no more
            return None
        try:
            duplicate = socket.socket(fileno=number)
        except OSError:  # a file or a pipe
            os.close(number)
            return None
        with suppress(OSError):  # it was reset, and this system does not say any more which one it was
            if duplicate.family in _FAMILIES and duplicate.type == socket.SOCK_STREAM:
                return cls(duplicate)
        duplicate.close()
        return None

    def is_behind(self, descriptor: int) -> bool:
        """Return whether the descriptor still is this connection: a closed one's number goes to the next one opened."""
        other = self.of(descriptor)
        if other is None:
            return False
        same = other.identity == self.identity
        other.close()
        return same

    def shut_down(self) -> bool:
        """End the connection; `False`: it had ended."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the duplicate; the connection is not touched."""
        self._socket.close()


def _identity(connection: socket.socket) -> object:
    """Return what no other connection of this process has at the same time."""
    if _CALLS is not None:
        with suppress(OSError):  # a kernel before 4.12, or a sandbox, knows no such option
            return connection.getsockopt(socket.SOL_SOCKET, _COOKIE, 8)
    return connection.getsockname()


def waited_for(native_id: int, innermost: Callable[[], FrameType | None]) -> int | None:
    """Return the descriptor that a thread waits for; `None`: it waits for none, for several, or for something else.

    Args:
        native_id: the thread's number in the kernel.
        innermost: returns its innermost frame, where the kernel does not tell.
    """
    if _CALLS is None:
        return _named_in(innermost())
    try:
        with open(f"/proc/self/task/{native_id}/syscall", "rb", 0) as file:  # noqa: PTH123 - unbuffered, in one read
            words = file.read(200).split()
    except OSError:  # the thread has ended, or this kernel does not tell
        return _named_in(innermost())
    if len(words) < 3:  # "running"
        return None
    call, first, second = int(words[0]), int(words[1], 16), int(words[2], 16)
    direct, listed = _CALLS
    if call in direct:
        return first & 0x7FFFFFFF  # a C `int`: a compiler may leave anything in the upper half of the register
    return _polled(first) if call in listed and second == 1 else None


def _polled(address: int) -> int | None:
    """Return the descriptor in a list of one that a thread polls.

    It is read as a file is: were the thread to end in this moment, and its stack with it, the read would fail, where
    looking at the memory itself would crash the process.
    """
    try:
        with open("/proc/self/mem", "rb", 0) as memory:  # noqa: PTH123 - unbuffered, and bytes
            return int(struct.unpack("i", os.pread(memory.fileno(), 4, address))[0])
    except (OSError, struct.error, OverflowError):
        return None


def _named_in(frame: FrameType | None) -> int | None:
    """Return the descriptor of the socket whose own method is the innermost call."""
    if frame is None or frame.f_globals.get("__name__") not in _WAITING_MODULES:
        return None
    variables = frame.f_locals
    for value in (variables.get("self"), variables.get("sock")):  # a socket's method; `create_connection`
        found = getattr(value, "_sock", value)  # a file made of a socket
        if isinstance(found, socket.socket):
            descriptor = found.fileno()
            return descriptor if descriptor >= 0 else None
    return None


def _shares_connection(frame: FrameType) -> bool:
    """Return whether the thread reads from a connection that carries requests of others, too: that of HTTP/2."""
    innermost: FrameType | None = frame
    for _ in range(FRAMES):
        if innermost is None:
            return False
        if "http2" in innermost.f_globals.get("__name__", ""):
            return True
        this = innermost.f_locals.get("self")
        if isinstance(this, ssl.SSLSocket) and this.selected_alpn_protocol() == "h2":
            return True
        innermost = innermost.f_back
    return False
