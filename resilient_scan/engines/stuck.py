"""Tell what keeps a thread that did not stop from stopping, where only a process could have been stopped.

A process is killed at its deadline, whatever it does. Two kinds of code leave a thread no other way out:

    holds the lock      a C call that keeps the interpreter's lock, such as a regular expression that explodes. Nothing
                        else runs meanwhile, the watchdog least of all: it comes late, and then it asks who has computed
    sits in a C call    that has released the lock, and computes, or waits in the kernel for what nobody here can end: a
                        child process, the answer of a name server, what a driver polls

A scanner that sleeps, waits for a lock, or computes in Python has a better way out, which costs nothing:
`context.sleep()`, a timeout, `context.check()`. So these are not named, although a process would end them, too.

Linux says in which call a thread is (`/proc/self/task/ID/syscall`). That is read *while this thread has the
interpreter's lock*. A thread that runs Python code must wait for the lock then, and is seen in a futex; one that is
seen running computes without it. An ordinary read would release the lock, and each of the two would be seen running.

What it cannot tell:

* Which of several threads held the lock, if more than one has computed for long and waits in no call. None is named.
* A call that holds the lock for less than `HELD_AFTER` at a time, however often it is made.
* A thread that held the lock, and sits in another call of the kernel by the time the watchdog comes to look.
* A name server's answer from any other poll, or a wait in C for a lock of C's own from one for a lock of Python's. The
  first are named, and the second are not.
* Anything elsewhere than on Linux, and in a sandbox that hides these files. Nothing is named there.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

HELD_AFTER = 0.2  # seconds by which the watchdog is late, and did not wait for a processor, if the lock was held
ROUNDS, LOOKS = 4, 3  # in how many, with the lock let go in between, how often it is looked where threads are
ROUND_INTERVAL = 0.002
SETTLE = 0.0005  # seconds before each look, with the lock: whom it woke up when it was let go waits for it again then
_RUNNING: Final = -1
# The calls in which a thread sleeps, or waits for a lock: those of futexes, sleeps, and what goes on after a stop.
_WAITS: Final = {
    "x86_64": frozenset({35, 202, 219, 230, 449, 455}),
    "aarch64": frozenset({98, 101, 115, 128, 449, 455}),
}.get(platform.machine() if sys.platform == "linux" else "")


class LockWatch:
    """What a watchdog makes of its own lateness; for its thread only."""

    def __init__(self) -> None:
        self._waited = 0.0  # for a processor, until a moment that came before the lateness

    def note(self) -> None:
        """Note that what comes from now on has to do with later deadlines."""
        self._waited = _waited_for_processor()

    def holder(self, threads: Collection[int], lateness: float) -> int | None:
        """Return the thread that has held the interpreter's lock, so that the watchdog was late; `None`: nobody knows.

        Args:
            threads: the numbers in the kernel of those that were at work meanwhile.
            lateness: of the watchdog, in seconds.
        """
        if _WAITS is None or lateness < HELD_AFTER:
            return None
        held = lateness - (_waited_for_processor() - self._waited)
        if held < HELD_AFTER:
            return None
        # Of a thread's time on a processor, only the total is known: it may have computed before. A machine that is
        # busy may have given it a part of the time only.
        computed = [one for one in threads if _time_on_processor(one) >= held / 4]
        may_have = _that_may_have_held(computed)
        return may_have[0] if len(may_have) == 1 else None


def in_c_calls(threads: Collection[int]) -> frozenset[int]:
    """Return which of these threads, by their numbers in the kernel, sit in a C call; takes a few milliseconds."""
    with _Calls(threads) as calls:
        suspects, elsewhere = frozenset(threads), {None, *(_WAITS or ())}
        for look in range(ROUNDS * LOOKS):
            if look and look % LOOKS == 0:
                time.sleep(ROUND_INTERVAL)
            calls.settle()
            suspects = frozenset(one for one in suspects if calls.now(one) not in elsewhere)
            if not suspects:
                break
    return suspects


def _that_may_have_held(threads: Collection[int]) -> list[int]:
    """Return those that are where one is that has just lost the lock: it waits for it, runs, or has ended."""
    expected = {None, _RUNNING, *(_WAITS or ())}
    with _Calls(threads) as calls:
        return [one for one in threads if calls.now(one) in expected]


class _Calls:
    """In which calls of the kernel threads are; looks at it while the caller has the interpreter's lock."""

    def __init__(self, threads: Collection[int]) -> None:
        self._functions = _functions()
        self._files: dict[int, int] = {}
        for thread in threads if self._functions else ():
            with suppress(OSError):  # it has ended, or this system does not tell
                self._files[thread] = os.open(f"/proc/self/task/{thread}/syscall", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        for file in self._files.values():
            os.close(file)

    def settle(self) -> None:
        """Wait a moment, and keep the lock."""
        if self._functions is not None and self._files:
            self._functions.sleep(int(SETTLE * 1e6))

    def now(self, thread: int) -> int | None:
        """Return the number of the call in which a thread is, or `_RUNNING`; `None`: nobody knows."""
        file = self._files.get(thread)
        words = self._functions.read(file).split() if self._functions is not None and file is not None else []
        if words == [b"running"]:
            return _RUNNING
        return int(words[0]) if len(words) > 3 else None


class _Functions(NamedTuple):
    """Functions that keep the interpreter's lock: one reads a few bytes of a file, one waits for microseconds."""

    read: Callable[[int], bytes]
    sleep: Callable[[int], Any]


@cache
def _functions() -> _Functions | None:
    """Return them, if this Python has them."""
    if _WAITS is None:
        return None
    try:
        import ctypes  # noqa: PLC0415 - needed only when a thread was abandoned

        library = ctypes.PyDLL(None)
        pread: Any = library.pread
        usleep: Any = library.usleep
    except (ImportError, OSError, AttributeError):  # this Python was built without it
        return None
    pread.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long
    pread.restype = ctypes.c_ssize_t

    def read(descriptor: int) -> bytes:
        buffer = ctypes.create_string_buffer(200)
        size = pread(descriptor, buffer, len(buffer), 0)
        return buffer.raw[: max(0, size)]

    return _Functions(read, usleep)


def _time_on_processor(thread: int) -> float:
    """Return the seconds for which a thread has run, in all; 0 if that is not known."""
    try:
        return time.clock_gettime((~thread << 3) | 6)  # the number of that thread's clock, as Linux makes it
    except (OSError, OverflowError, AttributeError):
        return 0.0


def _waited_for_processor() -> float:
    """Return the seconds for which this thread could have run, and did not get a processor, in all."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
