"""A real Dask cluster on loopback: a scheduler and workers as processes, bounded, ended by their process ids."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.support.slow import SlowLink

_PAUSE = threading.Event()
TOP = Path(__file__).parents[2]
LIFETIME = "600"  # seconds after which a worker ends by itself


class DaskCluster:
    """A scheduler, and workers that come and go.

    Args:
        directory: for its files.
        options: of scheduler and workers, such as those for TLS.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        self._options = options
        file = directory / "scheduler.json"
        self.scheduler = self._started(
            "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
        )
        self.workers: list[subprocess.Popen[bytes]] = []
        for _ in range(3000):
            with suppress(OSError, ValueError):
                self.address: str = json.loads(file.read_text())["address"]
                return
            _PAUSE.wait(0.01)
        raise TimeoutError(f"no scheduler within 30 s: {self.errors()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, self.scheduler]:
            kill(process)

    def add(
        self, workers: int = 1, threads: int = 2, path: Sequence[Path] = (), *options: str, link: SlowLink | None = None
    ) -> None:
        """Start workers, with folders before others on their path of imports; a slow link leads to one of them."""
        place = ["--host", "127.0.0.1"]
        if link is not None:
            link.target = free_port()
            contact = f"tcp://127.0.0.1:{link.port}"
            place = ["--listen-address", f"tcp://127.0.0.1:{link.target}", "--contact-address", contact]
        for _ in range(workers):
            self.workers.append(
                self._started(
                    *("dask_worker", self.address, "--nthreads", str(threads), "--no-nanny", *place, "--no-dashboard"),
                    *("--lifetime", LIFETIME, "--local-directory", str(self._directory), *options),
                    path=path,
                )
            )

    def until(self, workers: int) -> None:
        """Wait until the scheduler knows so many workers."""
        code = f"""if True:
            import distributed, sys
            with distributed.Client({self.address!r}, set_as_default=False) as client:
                client.wait_for_workers({workers}, timeout=60)
        """
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=90, capture_output=True)

    def errors(self) -> str:
        """Return what its processes have written."""
        return (self._directory / "errors.txt").read_text()[-2000:]

    def _started(self, program: str, *arguments: str, path: Sequence[Path] = ()) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        folders = os.pathsep.join(map(str, [*path, TOP]))
        with (self._directory / "errors.txt").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{program}", *arguments, *self._options],
                cwd=self._directory,
                env={**kept, "PYTHONPATH": folders, "PYTHONWARNINGS": "ignore"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )


class Loop:
    """An event loop on a thread, as a worker's or a client's."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def call(self, coroutine: Any) -> Any:
        """Return what a coroutine returns there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        """End the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process at once (kill -9)."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait(10)


def children_of(*pids: int) -> set[int]:
    """Return the numbers of all processes whose parents, or their parents, are these."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in {*pids, *found} and pid not in found}:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    """Return which of these processes run."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


def gone(pids: set[int], seconds: float) -> bool:
    """Return whether all of these processes end within so many seconds."""
    for _ in range(int(seconds / 0.02)):
        if not alive(pids):
            return True
        _PAUSE.wait(0.02)
    return not alive(pids)
