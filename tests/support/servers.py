"""Servers for tests: a real Redis, on a free port, bounded, stopped by its process id; and one that never answers."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE = threading.Event()


class RedisServer:
    """`redis-server` on 127.0.0.1 and on a Unix socket, with nothing written to disk unless asked to."""

    def __init__(self, program: str, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.port = _free_port()
        self._command = [program, *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, on the port it had before, and wait until it answers."""
        fixed = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.socket)]
        bounds = ["--maxclients", "500", "--maxmemory", "256mb", "--maxmemory-policy", "noeviction"]
        self._process = subprocess.Popen(
            [*self._command, *fixed, *bounds, "--save", "", "--dir", str(self.directory)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(1000):
            if self._answers():
                return
            _PAUSE.wait(0.01)
        raise TimeoutError("redis-server does not answer within 10 s")

    def kill(self) -> None:
        """End it at once (kill -9)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100)[:1] in {b"+", b"-"}
        except OSError:
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def silent_server() -> Iterator[str]:
    """Accept connections and answer nothing; yield the URL of a Redis that would be there, with a password."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"redis://:hunter2@127.0.0.1:{listener.getsockname()[1]}/0"
