"""The recipe for Docker Compose: the real Compose reads the page's files and the exported ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from resilient_scan import load_settings
from tests.recipes.following import SCRIPTS, Recipe
from tests.support.needed import missing

PRESETS = ("service", "cron")


@pytest.fixture(scope="module")
def compose() -> str:
    """Return how the real Compose is called here: as a program of its own, or as a plugin of Docker's."""
    program = SCRIPTS / "docker-compose"
    if program.exists():
        return str(program)
    plugin = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True)
    if not plugin or plugin.returncode:
        missing("no Docker Compose here; run the tests of recipes with: uv run --group dev --group recipes pytest")
    return "docker compose"


def config(page: Recipe, compose: str, *files: str) -> dict[str, Any]:
    """Return the model that Compose makes of files."""
    named = " ".join(f"-f {file}" for file in files)
    read: dict[str, Any] = json.loads(page.call(["bash", "-c", f"{compose} {named} config --format json"]))
    return read


def test_compose_takes_the_files_of_the_page(compose: str, tmp_path: Path) -> None:
    page = Recipe("compose", tmp_path, FINNHUB_API_KEY="a-key")
    while page.left:
        page.run(("docker compose", compose))
    services = config(page, compose, "monitoring/compose.yaml", "compose.own.yaml")["services"]
    assert {"resilient-scan", "redis", "prometheus", "alertmanager", "grafana"} == set(services)
    assert services["resilient-scan"]["stop_grace_period"] == "45s"  # what the own file does not name stays
    assert "--demo" not in services["resilient-scan"]["command"]

    alone = config(page, compose, "alone/compose.yaml")
    assert alone["services"]["resilient-scan"]["build"]["context"] == str(tmp_path / "monitoring")
    assert alone["secrets"]["resilient-scan-token"]["file"] == str(tmp_path / "monitoring" / "token")
    path = tmp_path / "settings.toml"
    path.write_text(alone["configs"]["settings"]["content"])
    assert load_settings(path, environ={}).service.token_file == "/run/secrets/resilient-scan-token"


def test_a_missing_key_is_named(compose: str, tmp_path: Path) -> None:
    page = Recipe("compose", tmp_path)
    page.run()
    with pytest.raises(AssertionError, match=r"FINNHUB_API_KEY.*the key is missing"):
        config(page, compose, "monitoring/compose.yaml", "compose.own.yaml")


@pytest.mark.parametrize("preset", PRESETS)
def test_compose_takes_the_exported_files(preset: str, compose: str, tmp_path: Path) -> None:
    page = Recipe("compose", tmp_path)
    page.call(["resilient-scan", "export-grafana", "out", "--preset", preset])
    (tmp_path / "out" / "token").write_text("a-token")
    services = config(page, compose, "out/compose.yaml")["services"]
    assert ("pushgateway" in services) is (preset == "cron")
    for name, service in services.items():
        assert all(port["host_ip"] == "127.0.0.1" for port in service["ports"]), name
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), volume
    assert services["resilient-scan"]["stop_grace_period"] == "45s"
