"""Run the real command in a process of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("resilient-scan")
WAIT_TIMEOUT = 120.0


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
    return kept | extra


def run(*arguments: str, code: int = 0, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, timeout=WAIT_TIMEOUT, cwd=cwd, env=environment(**extra)
    )
    assert done.returncode == code, done.stderr
    return done


@contextmanager
def started(*arguments: str, **extra: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**extra)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"{text!r} is not in {seen}")


def on_a_terminal(*arguments: str, stream: str = "stdout", code: int = 0, columns: int = 0, **extra: str) -> str:
    """Run the command with one stream on a terminal, the other nowhere, and return what the terminal got."""
    leader, follower = pty.openpty()
    if columns:
        termios.tcsetwinsize(follower, (24, columns))
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: follower}
    with subprocess.Popen(
        [SCRIPT, *arguments], env=environment(**{"TERM": "xterm-256color", **extra}), **streams
    ) as process:
        os.close(follower)
        text = read_all(leader)
        assert process.wait(WAIT_TIMEOUT) == code
    os.close(leader)
    return text.decode()


def read_all(terminal: int) -> bytes:
    """Return what a terminal gets until nobody holds its other end any more."""
    text = b""
    while chunk := _read(terminal):
        text += chunk
    return text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""
