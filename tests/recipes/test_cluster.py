"""The recipe for a cluster in containers: the real Compose reads it, and its commands run as processes on loopback."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import environment
from tests.recipes.following import SCRIPTS, Recipe, free_port, needs
from tests.recipes.test_compose import compose, config
from tests.support.clusters import kill
from tests.support.waiting import eventually

__all__ = ["compose"]  # the fixture


class Containers:
    """The commands of a Compose file's services, as processes of this machine.

    Args:
        model: what Compose made of the file.
        folder: where files are that a container would have.
        stack: ends the processes.
    """

    def __init__(self, model: dict[str, Any], folder: Path, stack: ExitStack) -> None:
        self._services = model["services"]
        self._folder = folder
        self._stack = stack
        self.port = free_port()
        self._places = {
            **{f"/run/secrets/{name}": secret["file"] for name, secret in model["secrets"].items()},
            "/etc/scan.toml": str(folder / "scan.toml"),
            "/var/lib/resilient-scan": str(folder),
            "//scheduler:8786": f"//127.0.0.1:{self.port}",
            "8786": str(self.port),
        }
        text = self._here(model["configs"]["settings"]["content"])
        (folder / "scan.toml").write_text(f'{text}\n[service]\nlisten = "127.0.0.1:{free_port()}"\n')

    def _here(self, text: str) -> str:
        for there, here in self._places.items():
            text = text.replace(there, here)
        return text

    def start(self, name: str, entrypoint: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a service; its output goes to a file of its name."""
        service = self._services[name]
        words = [*(service["entrypoint"] or entrypoint), *service["command"]]
        words = [str(SCRIPTS / words[0]), *map(self._here, words[1:])]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                words,
                cwd=self._folder,
                env=environment(HOME=str(self._folder), PYTHONWARNINGS="ignore"),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._stack.callback(kill, process)
        return process

    def log(self, name: str) -> str:
        """Return what a service has written."""
        return (self._folder / f"{name}.log").read_text()


@pytest.mark.servers
def test_the_commands_make_a_cluster(compose: str, tmp_path: Path) -> None:
    needs("distributed")
    page = Recipe("cluster", tmp_path)
    while page.left:
        page.run(("docker compose", compose))
    model = config(page, compose, "--env-file cluster.env", "cluster.yaml")
    assert set(model["services"]) == {"scheduler", "worker", "resilient-scan"}
    assert all(service["group_add"] == [str(os.getgid())] for service in model["services"].values())
    assert not any("ports" in service for service in model["services"].values())
    with ExitStack() as stack:
        containers = Containers(model, tmp_path, stack)
        containers.start("scheduler")
        worker = containers.start("worker")
        service = containers.start("resilient-scan", ("resilient-scan",))
        eventually(lambda: containers.log("resilient-scan").count("✓") == 5, "a run of five scanners")
        for process in (service, worker):
            process.terminate()
            assert process.wait(45) == 0
