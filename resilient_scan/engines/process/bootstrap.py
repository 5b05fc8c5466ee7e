"""What a new child process does to itself before it serves, and the limit on its memory.

Everything here runs in the child. The module is light, because a spawned child imports it before anything else.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn

try:
    import resource
except ImportError:  # Windows
    HAS_LIMITS = False
else:
    HAS_LIMITS = True

READY = b"ready"  # the first message of a child
PARENT_INTERVAL = 0.5  # seconds between two looks for the parent, where the system does not tell that it has ended

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> bool:
    """Call Linux's `prctl`; `False` where there is none."""
    if sys.platform != "linux":
        return False
    try:
        import ctypes  # noqa: PLC0415 - a system may lack it, and then goes without

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def end_with(parent: int, signum: int) -> bool:
    """Have the system send this process `signum` when its parent ends, and end now if it has ended before.

    Linux does so when the *thread* ends that made this process. `False`: this system does not.
    """
    promised = prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(1)
    return promised


def _end_after(parent: int) -> None:
    """Look for the parent every now and then. While other code holds the interpreter's lock, this thread cannot."""
    while os.getppid() == parent:
        time.sleep(PARENT_INTERVAL)
    os.killpg(0, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of its descendants that lose theirs, so that it can end them."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reset_signals() -> None:
    """Ignore Ctrl-C, which is the driver's, and end with SIGTERM; the driver may have blocked or ignored others."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signum in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)


def main() -> NoReturn:
    """Go on as a spawned child; the arguments are those of `starters.SpawnStarter`."""
    become_child(Connection(int(sys.argv[1])), int(sys.argv[2]))


def become_child(connection: Connection, parent: int) -> NoReturn:
    """Go on as a child process: serve what comes through the connection, and end.

    It is in a session and a process group of its own, so that one signal ends it with its own subprocesses, and
    Ctrl-C in a terminal reaches the driver only.
    """
    code = 1
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        reset_signals()
        if not end_with(parent, signal.SIGKILL):
            threading.Thread(target=_end_after, args=(parent,), name="resilient-scan-parent", daemon=True).start()
        os.set_inheritable(connection.fileno(), False)  # nor may what it starts keep the pipe open
        with suppress(AttributeError, ValueError):  # there may be no standard output
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # who is killed flushes nothing
        serve_with(connection)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve_with(connection: Connection) -> None:
    """Become what the driver's surroundings says, tell that all is ready, and serve."""
    settle(connection.recv())
    if hasattr(os, "register_at_fork"):  # one that a scanner forks would keep the pipe open after our end
        os.register_at_fork(after_in_child=connection.close)
    module, _, name = connection.recv().partition(":")
    try:
        serve: Callable[[Connection], object] = getattr(importlib.import_module(module), name)
    except BaseException as error:
        connection.send_bytes(f"{type(error).__name__}: {error}".encode(errors="replace"))
        raise
    connection.send_bytes(READY)
    serve(connection)


def settle(surroundings: dict[str, Any]) -> None:
    """Take over the driver's folder, arguments, environment and path of imports."""
    with suppress(OSError):  # the folder may be gone
        os.chdir(surroundings["folder"])
    sys.argv[:] = surroundings["argv"]
    sys.path[:] = surroundings["path"]
    if dict(os.environ) != surroundings["environ"]:
        os.environ.clear()
        os.environ.update(surroundings["environ"])
        if hasattr(time, "tzset"):
            time.tzset()


def surroundings() -> dict[str, Any]:
    """Return what `settle` takes over in a child; in the driver."""
    try:
        folder = os.getcwd()  # noqa: PTH109 - as text, because it goes into the surroundings
    except OSError:  # it is gone
        folder = os.sep
    path = [entry or folder for entry in map(str, sys.path)]
    return {"folder": folder, "argv": list(sys.argv), "environ": dict(os.environ), "path": path}


def limit_memory(size: int | None) -> None:
    """Let this process use `size` bytes more than it does now, without a limit if `None`.

    The limit is on the address space, the only one that Linux keeps for a single process, and it is counted from what
    is mapped now. An interpreter with its libraries maps several hundred MB that it never touches, so that a limit on
    the whole would depend on what was imported before, by other scanners too.
    """
    if not HAS_LIMITS:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = hard if size is None else mapped() + size
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with suppress(ValueError, OSError):  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def mapped() -> int:
    """Return the size of this process's address space in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - this runs before every attempt
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0
