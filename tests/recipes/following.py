"""Follow a recipe: write its files into a folder, start its servers, run its commands, compare what they print.

Blocks with the order `recipe` are the ones that run here. Tests put in what the page cannot know: a free port for a
fixed one, the program `docker-compose` for `docker compose`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

from tests.docs.pages import DOCS, blocks
from tests.docs.running import commands, compare
from tests.e2e.command import environment
from tests.support.needed import missing
from tests.support.waiting import eventually

WAIT_TIMEOUT: Final = 60.0
SCRIPTS: Final = Path(sys.executable).parent


def needs(*modules: str) -> None:
    """Skip a test, or fail in CI, if something is missing that only recipes need."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            missing(f"no {module} in this environment; run this with: uv run --group dev --group recipes pytest")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def get(url: str) -> tuple[int, str]:
    """Return status and text of an answer."""
    try:
        with urlopen(url, timeout=WAIT_TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


class Recipe:
    """A recipe's page, in a folder that has its files.

    Attributes:
        page: its blocks.
        folder: where its files are, and where its commands run.
        left: the commands of the page that have not run yet, each with the output that is shown.
    """

    def __init__(self, name: str, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.page = blocks(DOCS / "recipes" / f"{name}.md")
        self._variables = {
            "PATH": f"{SCRIPTS}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }
        for block in self.page:
            target = block.order("file")
            if target is not None:
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                (folder / target).write_text(block.text)
        self.left = [
            command
            for block in self.page
            if block.language == "console" and block.order("recipe") is not None
            for command in commands(block.text)
        ]

    def run(self, replace: tuple[str, str] = ("", "")) -> None:
        """Run the page's next command, and compare what it prints with what the page shows."""
        line, shown = self.left.pop(0)
        compare(self.call(["bash", "-uo", "pipefail", "-c", line.replace(*replace) if replace[0] else line]), shown)

    def call(self, command: list[str]) -> str:
        """Run a command of the test's own, and return what it prints."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(**self._variables),
            capture_output=True,
            text=True,
            timeout=WAIT_TIMEOUT,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    @contextmanager
    def start(self, replace: tuple[str, str] = ("", ""), stop: signal.Signals = signal.SIGTERM) -> Iterator[int]:
        """Start the page's next command, a server, and yield its process id; stop it as its host would."""
        line, _ = self.left.pop(0)
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", line.replace(*replace) if replace[0] else line],  # becomes the command itself
                cwd=self.folder,
                env=environment(**self._variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._process = process
            try:
                yield process.pid
                assert process.poll() is None, self.log()
                process.send_signal(stop)
                process.wait(WAIT_TIMEOUT)
            finally:
                with suppress(ProcessLookupError):  # none of its workers may outlive the test
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self) -> str:
        """Return what the server wrote."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str) -> None:
        """Wait until the server has written a text."""

        def written() -> bool:
            assert text in self.log() or self._process.poll() is None, self.log()
            return text in self.log()

        eventually(written, f"{text!r} in the log", WAIT_TIMEOUT)
