"""What the command does with its own process: descriptors, signals, and how the process may end.

Scanners, their children and whatever their packages do at import share this process with the report. One `print` would
make the JSON of all of them unreadable, `sys.stdout.close()` would lose it, and `os._exit(0)` would end the process as
if all were well. So before any plugin is loaded, `take_over`

* keeps a duplicate of descriptor 1 for the data, which no child inherits, and points descriptor 1 and `sys.stdout` to
  stderr, for good: an abandoned thread may print until the process ends;
* makes `os._exit` and its like raise `SystemExit`, which a scanner's own scan or import ends with, and no other;
* lets SIGTERM end a command as Ctrl-C does;
* holds back, if it is to be quiet, whatever goes to stderr, until it is known how the command ends (`HELD`).

Only the real command does this. Tests, and programs that call the command's functions, keep their process as it is.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NoReturn, TextIO

STDOUT, STDERR = 1, 2
OK, INCOMPLETE, USAGE = 0, 1, 2  # exit codes
UNREAD: Final = 128 + signal.SIGPIPE  # what a shell says of a tool whose reader has gone
INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM
_EXITS: Final = ("_exit", "execv", "execve")  # the other functions of `os` that replace the process call these
_exit: Final = os._exit  # the real one


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It ends a command just as Ctrl-C does, with another exit code."""


def stopped_by(signal_: KeyboardInterrupt) -> int:
    """Return the exit code of a command that a signal ended."""
    return TERMINATED if isinstance(signal_, Terminated) else INTERRUPTED


def freeze_what_stays() -> None:
    """Let no garbage collection look again at what exists now, and will as long as the process does.

    A fleet of 10,000 has 600,000 objects, and a full collection goes through them in 0.4 s, in which no other thread
    runs. Each run of these makes enough objects to start one or two of them.
    """
    gc.collect()
    gc.freeze()


class Output:
    """Where data go: the stdout that the process began with, or `sys.stdout` if that was not taken over."""

    def __init__(self) -> None:
        self._kept: TextIO | None = None
        self._file: os.stat_result | None = None

    @property
    def is_kept(self) -> bool:
        """Whether `sys.stdout` has been pointed to stderr."""
        return self._kept is not None

    @property
    def stream(self) -> TextIO:
        """The stream to write data to.

        Raises:
            OSError: a scanner has closed its descriptor, as one does that closes all there are. By now its number may
                be that of a database, and the report must not be written into that.
        """
        if self._kept is None or self._file is None:
            return sys.stdout
        if not os.path.samestat(os.fstat(self._kept.fileno()), self._file):
            raise OSError(errno.EBADF, "a scanner has closed it")
        return self._kept

    def keep(self) -> None:
        """Keep descriptor 1 for data, and point it and `sys.stdout` to stderr."""
        sys.stdout.flush()
        kept, self._file = (
            os.dup(STDOUT),
            os.fstat(STDOUT),
        )  # not inheritable: a child that lives on must not keep the reader of a pipe waiting
        self._kept = open(kept, "w", encoding=sys.stdout.encoding, errors="replace")  # noqa: PTH123, SIM115
        os.dup2(STDERR, STDOUT)
        sys.stdout, sys.stderr = _Messages(STDOUT, sys.stderr), _Messages(STDERR, sys.stderr)


class _Messages(io.TextIOWrapper):
    """A stream to stderr. What cannot be written is lost and costs nobody anything else.

    A disk may be full, and the reader of a log may have gone. That must neither end a service nor fail a scanner that
    prints. Nor may a scanner that closes the stream fail the next one that prints, hence `close`.
    """

    def __init__(self, descriptor: int, like: TextIO) -> None:
        # Without a buffer of bytes: that would keep what could not be written, and try again at every line.
        raw: Any = io.FileIO(descriptor, "w", closefd=False)
        super().__init__(raw, encoding=like.encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().flush()

    def close(self) -> None:
        self.flush()


OUTPUT: Final = Output()


class Held:
    """What goes to stderr while a command is quiet: kept in a file without a name, and shown only if it fails.

    cron mails whatever a job prints. A warning, a scanner's `print` and a child's progress bar are worth a mail if the
    run failed, and nothing if it did not; which of these it is, nobody knows before the end. A command that is killed
    (SIGKILL) takes it along.
    """

    def __init__(self) -> None:
        self._file: Any = None
        self._real = -1

    def begin(self) -> None:
        """Point descriptor 2 to the file; where no file can be made, stderr stays as it is."""
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            self._file = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 - it lives as long as the process
            self._real = os.dup(STDERR)
            os.dup2(self._file.fileno(), STDERR)

    def show(self) -> None:
        """Write what was held to the real stderr, and point descriptor 2 (and 1, if it leads here too) there again."""
        if self._real < 0:
            return
        real, self._real = self._real, -1
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            os.dup2(real, STDERR)
            os.dup2(real, STDOUT)
            self._file.seek(0)
            while part := self._file.read(1 << 16):
                while part:
                    part = part[os.write(real, part) :]


HELD: Final = Held()


def take_over(*, quiet: bool = False) -> None:
    """Make this process the command's own; see the top of this file."""
    if quiet:
        HELD.begin()
    OUTPUT.keep()
    own = os.getpid()
    for name in _EXITS:
        setattr(os, name, _refusing(name, getattr(os, name), own))
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
        _let_children_be_terminated()


def _let_children_be_terminated() -> None:
    """Give forked children the usual SIGTERM: they have nothing to wind up, and `multiprocessing` ends them by it.

    A SIGTERM may come right after the fork, before the child has changed what it does. Python would note it for our
    handler, and a new process forgets what was noted. So it is blocked meanwhile, and the kernel keeps it.
    """
    blocked = threading.local()

    def block() -> None:
        blocked.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked.before)

    def reset() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def end_at_once() -> Any:
    """From now on, let Ctrl-C end the process without a word; return the handler that did something else before.

    While modules are imported, and while the interpreter exits, a `KeyboardInterrupt` would come up anywhere in code
    that expects none, and show as a traceback. There is nothing to be saved at these times.
    """
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, _frame: _exit(128 + number))
    return before


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    # Once. `timeout` sends SIGTERM to the command and then to its whole group: the second one would fall into the
    # winding up that the first one began, and the report would be lost.
    signal.signal(signal.SIGTERM, lambda *_: None)
    raise Terminated


def _refusing(name: str, real: Callable[..., Any], own: int) -> Callable[..., Any]:
    """Return what takes the place of a function that ends the process: it does so in forked children only."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        if os.getpid() != own:
            return real(*arguments, **options)
        shown = ", ".join(map(repr, arguments[:1]))
        raise SystemExit(f"os.{name}({shown}) would have ended the whole command, so it was refused")

    return refuse
