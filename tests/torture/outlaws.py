"""What one process cannot contain: poisons that end it, stop all of its threads, or take what others need.

A thread has no walls. Each of these needs a child process (`isolation="process"`). A test shows what happens without
one. The list in the documents is made from this file.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import re
import signal
import sys
import threading
import time
from typing import Any

from tests.torture.register import FOREVER, found, hang, poison
from tests.torture.world import RUNNERS

GROUP = "outlaws"
CHILD = "a child process per attempt"
KEPT: list[Any] = []


@poison(
    "makes a C call that keeps the interpreter's lock (a regular expression that explodes)",
    "completed",
    "timeout",
    "stale",  # its answer came after all, just before its timeout was reported
    group=GROUP,
    isolation=CHILD,
    effect="nothing else runs meanwhile: every scan, timeout and deadline is late by as much",
)
def keeps_the_lock(_state: dict[str, Any]) -> Any:
    re.match(r"(a+)+$", "a" * 26 + "b")
    return found()


@poison("calls `os._exit`", group=GROUP, isolation=CHILD, effect="the program ends at once, without a report")
def exits_the_process(_state: dict[str, Any]) -> Any:
    os._exit(7)


@poison("crashes in C code", group=GROUP, isolation=CHILD, effect="the program ends with SIGSEGV, without a report")
def crashes(_state: dict[str, Any]) -> Any:
    faulthandler.disable()
    ctypes.string_at(0)


@poison("calls `os.abort`", group=GROUP, isolation=CHILD, effect="the program ends with SIGABRT, without a report")
def aborts(_state: dict[str, Any]) -> Any:
    faulthandler.disable()
    os.abort()


@poison("kills its own process", group=GROUP, isolation=CHILD, effect="the program ends with SIGKILL, without a report")
def kills_the_process(_state: dict[str, Any]) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@poison(
    "sets an alarm (`signal.setitimer`)",
    group=GROUP,
    isolation=CHILD,
    effect="the program ends with SIGALRM, unless it handles that signal",
)
def sets_an_alarm(_state: dict[str, Any]) -> Any:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    hang()


@poison(
    "lets `faulthandler` end the process",
    group=GROUP,
    isolation=CHILD,
    effect="the program ends when that timer is up, without a report",
)
def sets_a_fault_timer(_state: dict[str, Any]) -> Any:
    faulthandler.dump_traceback_later(0.01, exit=True, file=sys.__stderr__)
    hang()


@poison(
    "sends its own process SIGINT",
    "skipped",
    "completed",
    group=GROUP,
    isolation=CHILD,
    effect="the run ends as by Ctrl-C: `KeyboardInterrupt` with the report, and what was not through is `skipped`",
)
def interrupts_the_process(_state: dict[str, Any]) -> Any:
    os.kill(os.getpid(), signal.SIGINT)
    return found()


@poison(
    "closes its runner",
    "skipped",
    "completed",
    group=GROUP,
    isolation=CHILD,
    effect="the run ends as by any `close()`: what was not through is `skipped`",
)
def closes_its_runner(_state: dict[str, Any]) -> Any:
    RUNNERS[0].close()
    return found()


@poison(
    "opens descriptors until there are none, and keeps them",
    "error",
    "completed",
    group=GROUP,
    isolation=CHILD,
    effect="scanners that need a descriptor (a socket, an event loop) end `error`; the others complete",
)
def keeps_all_descriptors(_state: dict[str, Any]) -> Any:
    with contextlib.suppress(OSError):
        while True:
            KEPT.append(os.dup(0))
    return found()


@poison(
    "closes descriptors that are not its own",
    "completed",
    group=GROUP,
    isolation=CHILD,
    effect="scanners that use one of them (a socket, an event loop, a store's file) end `error` or `timeout`",
)
def closes_all_descriptors(_state: dict[str, Any]) -> Any:
    time.sleep(0.02)
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            os.close(number)
    return found()


@poison(
    "lowers the recursion limit",
    "completed",
    "error",
    group=GROUP,
    isolation=CHILD,
    effect="code that nests calls deeper fails: scanners, or the runner itself, and then the run may not end",
)
def lowers_the_recursion_limit(_state: dict[str, Any]) -> Any:
    answer = found()
    for limit in range(5, 100):
        with contextlib.suppress(RecursionError):  # too low for this function itself
            sys.setrecursionlimit(limit)
            break
    return answer


class Stuck(logging.Handler):
    def emit(self, _record: logging.LogRecord) -> None:
        FOREVER.wait()


@poison(
    "adds a logging handler that hangs",
    group=GROUP,
    isolation=CHILD,
    effect="the next to log hangs, and with `LogEvents` that is the run: it does not end",
)
def adds_a_stuck_handler(_state: dict[str, Any]) -> Any:
    logging.getLogger("resilient_scan").addHandler(Stuck())
    return found()


@poison(
    "leaves a thread that hangs and is not a daemon",
    "completed",
    group=GROUP,
    isolation=CHILD,
    effect="the runs are sound, but the program does not end: the interpreter waits for that thread",
)
def leaves_a_thread_for_ever(_state: dict[str, Any]) -> Any:
    threading.Thread(target=threading.Event().wait, name="poison", daemon=False).start()
    return found()


@poison(
    "patches what the interpreter is made of (here `threading.Thread.start`)",
    "timeout",
    group=GROUP,
    isolation=CHILD,
    effect="whatever uses it does something else; here, hung threads are not replaced",
)
def patches_threads(_state: dict[str, Any]) -> Any:
    threading.Thread.start = lambda _self: None  # type: ignore[method-assign]
    hang()


@poison(
    "takes all memory and keeps it",
    "error",
    group=GROUP,
    isolation=CHILD + ", with a limit on its memory",
    effect="the next to need memory fails, if the system does not end the program before that",
)
def keeps_all_memory(_state: dict[str, Any]) -> Any:
    for size in (1 << 24, 1 << 20, 1 << 16, 1 << 12):
        with contextlib.suppress(MemoryError):
            while True:
                KEPT.append(bytearray(size))
    raise MemoryError
