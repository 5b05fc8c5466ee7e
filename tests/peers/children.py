"""A process with a hard limit that tells what it found."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

TOP = Path(__file__).parents[2]
MARK = "TOLD "
LIMIT = 60.0


class Child:
    """`python -m MODULE ARGUMENTS` in a directory of its own, with the peers' packages first on its path.

    It sees nothing of the environment that it need not see, and is killed when the block ends.
    """

    def __init__(self, *command: str, packages: Path, directory: Path, redis: str = "") -> None:
        self._errors = directory / "stderr.txt"
        self._lines: queue.Queue[str | None] = queue.Queue()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        path = os.pathsep.join([str(packages), str(TOP)])
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=directory,
                env={**kept, "PYTHONPATH": path, "PEERS_REDIS": redis, "PYTHONWARNINGS": "ignore"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    @staticmethod
    def tell(value: Any) -> None:
        """Tell the parent (called in the child)."""
        print(f"\n{MARK}{json.dumps(value)}", flush=True)

    def told(self, limit: float = LIMIT) -> Any:
        """Return what it tells next; fail with what it wrote to its errors if it ends before, or takes too long."""
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            line = None
        if line is None:
            raise RuntimeError(f"{self.process.args} told nothing: {self._errors.read_text()[-2000:]}")
        return json.loads(line)

    def ask(self, line: str) -> Any:
        """Write a line to it and return what it tells."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.told()

    def interrupt(self) -> None:
        """Send it Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def ends(self, limit: float) -> bool:
        """Return whether it ends by itself within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(limit)
        return self.process.returncode is not None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                self._lines.put(line.removeprefix(MARK))
        self._lines.put(None)
