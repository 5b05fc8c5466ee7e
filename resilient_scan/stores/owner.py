"""Who holds a lease, and whether that process still lives.

An owner's name says which process it is: host, boot, PID namespace, pid, and the instant at which the process started.
Another process on the same host and in the same namespace can look that process up. If it is gone, nobody needs to wait
for its leases to expire. From anywhere else it cannot be looked up: the lease stays its owner's until it expires.

All of this comes from Linux' /proc. Elsewhere an owner's name says nothing about its process, which counts as alive.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import msgspec

_PROC = Path("/proc")
_STATE, _THREADS, _STARTED = 0, 17, 19  # fields of /proc/PID/stat, counted from the one after the program's name


class _Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process as its leases name it; `id` tells apart the runners in it.

    Attributes:
        host: its name. Virtual machines made from one snapshot have the same boot id.
        boot: the id of the kernel's start; all containers of a machine have the same.
        namespace: in which the pid counts.
        pid: the process.
        started: ticks from the boot to its start, which tell it from a later process with this pid.
    """

    id: str
    host: str = ""
    boot: str = ""
    namespace: str = ""
    pid: int = 0
    started: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Where its pid means this process."""
        return self.host, self.boot, self.namespace


def new_owner() -> str:
    """Return the name of a new owner in this process."""
    return msgspec.json.encode(_this_process()).decode()


def is_dead(owner: str) -> bool:
    """Return whether an owner's process has certainly ended; `False` where that cannot be known."""
    try:
        process = msgspec.json.decode(owner, type=_Process)
    except (msgspec.MsgspecError, UnicodeError):
        return False
    if process.pid <= 0 or process.place != _this_process().place:
        return False
    try:
        fields = _fields(process.pid)
        # A killed process is listed until its parent has asked how it ended. Such a zombie holds nothing any more. But
        # a zombie with threads is a program that goes on without its main thread.
        zombie = fields[_STATE] in "ZX" and int(fields[_THREADS]) <= 1
        return zombie or fields[_STARTED] != process.started
    except (FileNotFoundError, ProcessLookupError):
        return not _exists(process.pid)
    except (OSError, LookupError, ValueError):
        return False


def _this_process() -> _Process:
    """Return what this process is; only its id where others could not look it up."""
    found = _Process(uuid.uuid4().hex)
    try:
        # In a new PID namespace, /proc may still be that of the old one, where our pids are those of other processes.
        if (_PROC / "self").readlink().name != str(os.getpid()):
            return found
        namespace = (_PROC / "self/ns/pid").stat()
        return _Process(
            found.id,
            socket.gethostname(),
            (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip(),
            f"{namespace.st_dev}:{namespace.st_ino}",
            os.getpid(),
            _fields(os.getpid())[_STARTED],
        )
    except (OSError, LookupError, UnicodeError):
        return found


def _fields(pid: int) -> list[str]:
    """Return what the kernel says of a process, after the program's name, in which there may be anything."""
    return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode("ascii", "replace").split()


def _exists(pid: int) -> bool:
    """Return whether a process exists: /proc may be mounted so that it hides those of other users."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
