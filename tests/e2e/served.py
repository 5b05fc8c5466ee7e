"""Run `resilient-scan serve` in a process of its own, over scanners whose sources tests make ill, hang and heal."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.e2e.command import SCRIPT, environment
from tests.support.distributions import lay_out
from tests.support.waiting import eventually

WAIT_TIMEOUT = 60.0
TOKEN = "token-of-these-tests"
READ_TOKEN = "token-that-only-reads"
PIPELINE = "switched"
MODULE = """
import os
import time
from pathlib import Path

from resilient_scan import scanner

FOLDER = Path(os.environ["SWITCHES"])


def mood(name):
    try:
        return (FOLDER / name).read_text()
    except FileNotFoundError:
        return "well"


def switched(name):
    def scan(state):
        with (FOLDER / f"{name}.asked").open("a") as asked:
            asked.write(f"{time.time()}\\n")
        while mood(name) == "hangs":
            time.sleep(0.02)
        if mood(name) == "ill":
            raise ConnectionError("HTTP 503 Service Unavailable")
        return [{"ticker": "ABC", "source": name, "context": "found"}]

    return scanner(name=name, pipeline="switched")(scan)
"""


class Switches:
    """A fleet of scanners, installed in a directory, and what becomes of their sources."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.names = folder / "switches", names
        self.folder.mkdir()
        self._site = folder / "site"
        made = "".join(f"{name} = switched({name!r})\n" for name in names)
        entries = {name: f"switched_scanners:{name}" for name in names}
        lay_out(self._site, "switched", entries, {"switched_scanners.py": f"{MODULE}\n\n{made}"})

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self._site), "SWITCHES": str(self.folder)}

    def turn(self, name: str, mood: str) -> None:
        """Let a source be `well`, be `ill`, or let it `hang`."""
        fresh = self.folder / f"{name}.new"
        fresh.write_text({"hang": "hangs"}.get(mood, mood))
        fresh.rename(self.folder / name)

    def asked(self, name: str) -> list[float]:
        """Return when it was asked, epoch seconds."""
        path = self.folder / f"{name}.asked"
        return [float(line) for line in path.read_text().split()] if path.exists() else []


class Served:
    """A service that runs, and what it has written.

    Attributes:
        process: it.
        lines: what it has written on stderr.
        reads: headers with which it is read.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.reads: dict[str, str] = {}
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.lines.append(line.rstrip("\n"))
                self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    def line(self, text: str, count: int = 1) -> str:
        """Wait for the line on stderr in which a text is for the `count`th time, and return it."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        with self._heard:
            self._heard.wait_for(lambda: len(found()) >= count or not self._reader.is_alive(), WAIT_TIMEOUT)
            assert len(found()) >= count, f"{text!r} is not {count} times in {self.lines}"
            return found()[count - 1]

    @property
    def url(self) -> str:
        return self.line("serving at ").split("serving at ")[1].split("/ ")[0]

    def end(self, *signals: int) -> int:
        """Send signals and return the exit code."""
        for each in signals:
            self.process.send_signal(each)
        code = self.process.wait(WAIT_TIMEOUT)
        self._reader.join(WAIT_TIMEOUT)
        return code

    def get(self, path: str) -> Any:
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        with urlopen(Request(f"{self.url}{path}", headers=self.reads), timeout=WAIT_TIMEOUT) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: object, token: str = TOKEN) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        request = Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        with urlopen(request, timeout=WAIT_TIMEOUT) as answer:
            return json.load(answer)

    def status(self, path: str) -> int:
        """Return the HTTP status of a GET."""
        try:
            with urlopen(Request(f"{self.url}{path}", headers=self.reads), timeout=WAIT_TIMEOUT) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.get("/scanners")["scanners"]}

    def moves(self, name: str) -> list[tuple[str, str, str]]:
        """Return a scanner's changes, oldest first: to, source, reason."""
        entries = self.get("/audit?limit=1000")["entries"]
        return [(each["to"], each["source"], each["reason"]) for each in reversed(entries) if each["scanner"] == name]

    def wait_for(self, name: str, state: str, patience: float = WAIT_TIMEOUT) -> None:
        """Wait until a scanner is in a state, and the trail says so: it is written a moment later."""

        def arrived() -> bool:
            return self.states()[name] == state and (self.moves(name) or [("enabled",)])[-1][0] == state

        try:
            eventually(arrived, f"{name} is not {state}", patience)
        except pytest.fail.Exception as error:
            raise AssertionError(f"{error}: {self.get(f'/scanners/{name}')}, {self.moves(name)}") from None


@contextmanager
def serving(switches: Switches, config: Path, *arguments: str, **extra: str) -> Iterator[Served]:
    """Start the service; unless ended before, it is killed at the end."""
    command = [SCRIPT, "serve", "--config", config, "--pipeline", PIPELINE, *arguments]
    environ = environment(**{**switches.environ, **extra})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            yield Served(process)
        finally:
            process.kill()


def configured(
    folder: Path, *, listen: str = "127.0.0.1:0", token: bool = True, read_token: bool = False, more: str = ""
) -> Path:
    """Write settings: a store of SQLite, and token files beside them."""
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "reading").write_text(f"{READ_TOKEN}\n")
    path = folder / "scan.toml"
    named = 'token_file = "token"\n' if token else ""
    named += 'read_token_file = "reading"' if read_token else ""
    path.write_text(
        f'[store]\nurl = "sqlite:///{folder / "state.db"}"\n{more}\n[service]\nlisten = "{listen}"\n{named}\n'
    )
    return path
