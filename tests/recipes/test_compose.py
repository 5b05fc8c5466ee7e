"""The recipe for Docker Compose: the real Compose reads the page's files and the exported ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from resilient_scan import ControlService, ScanRunner, load_settings
from resilient_scan.cli.export import export_grafana
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.testing import healthy
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
    named = " ".join(file if file.startswith("-") else f"-f {file}" for file in files)
    read: dict[str, Any] = json.loads(page.call(["bash", "-c", f"{compose} {named} config --format json"]))
    return read


def test_compose_takes_the_files_of_the_page(compose: str, tmp_path: Path) -> None:
    page = Recipe("compose", tmp_path, FINNHUB_API_KEY="a-key")
    while page.left:
        page.run(("docker compose", compose))
    for name in ("token", "read-token"):
        assert (tmp_path / "monitoring" / name).stat().st_mode & 0o777 == 0o640
    services = config(page, compose, "monitoring/compose.yaml", "compose.own.yaml")["services"]
    assert {"resilient-scan", "redis", "prometheus", "alertmanager", "grafana"} == set(services)
    assert services["resilient-scan"]["stop_grace_period"] == "45s"  # what the own file does not name stays
    assert "--demo" not in services["resilient-scan"]["command"]

    readers = config(page, compose, "monitoring/compose.yaml", "compose.own.yaml", "compose.reading.yaml")["services"]
    for name in ("resilient-scan", "prometheus"):
        assert "resilient-scan-read-token" in {secret["source"] for secret in readers[name]["secrets"]}
        assert set(readers[name]["group_add"]) == {str(os.getgid())}
    scrape = yaml.safe_load((tmp_path / "monitoring" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = [each for each in scrape if each["job_name"] == "resilient-scan"]
    assert job["authorization"] == {"credentials_file": "/run/secrets/resilient-scan-read-token"}

    alone = config(page, compose, "--env-file monitoring/.env", "alone/compose.yaml")
    assert alone["services"]["resilient-scan"]["build"]["context"] == str(tmp_path / "monitoring")
    assert alone["secrets"]["resilient-scan-token"]["file"] == str(tmp_path / "monitoring" / "token")
    path = tmp_path / "settings.toml"
    path.write_text(alone["configs"]["settings"]["content"])
    assert load_settings(path, environ={}).service.token_file == "/run/secrets/resilient-scan-token"


def test_a_missing_key_is_named(compose: str, tmp_path: Path) -> None:
    page = Recipe("compose", tmp_path, TOKEN_GID="0")
    page.run()
    with pytest.raises(AssertionError, match=r"FINNHUB_API_KEY.*the key is missing"):
        config(page, compose, "monitoring/compose.yaml", "compose.own.yaml")


@pytest.mark.parametrize("preset", PRESETS)
def test_compose_takes_the_exported_files(preset: str, compose: str, tmp_path: Path) -> None:
    page = Recipe("compose", tmp_path)
    page.call(["resilient-scan", "export-grafana", "out", "--preset", preset])
    with pytest.raises(AssertionError, match=r"TOKEN_GID.*make the token with the command at the top"):
        config(page, compose, "out/compose.yaml")
    (made,) = [line for line in (tmp_path / "out/compose.yaml").read_text().splitlines() if "openssl" in line]
    page.call(["bash", "-euo", "pipefail", "-c", f"cd out && {made.removeprefix('#')}"])
    assert (tmp_path / "out" / "token").stat().st_mode & 0o777 == 0o640
    services = config(page, compose, "out/compose.yaml")["services"]
    assert ("pushgateway" in services) is (preset == "cron")
    for name, service in services.items():
        assert all(port["host_ip"] == "127.0.0.1" for port in service["ports"]), name
        assert not service.get("secrets") or service["group_add"] == [str(os.getgid())], name
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), volume
    assert services["resilient-scan"]["stop_grace_period"] == "45s"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_service_answers_to_the_names_by_which_the_files_ask(preset: str, tmp_path: Path) -> None:
    """Whether it listens on loopback or not: here it does, so that it is asked what it would be asked there."""
    folder = tmp_path / "out"
    export_grafana(folder, preset)
    names = load_settings(folder / "resilient-scan.toml", environ={}).service.allowed_hosts
    texts = "".join(path.read_text() for kind in ("*.yml", "*.yaml") for path in folder.rglob(kind))
    asked = set(re.findall(r"[\w.-]+:9108", texts)) - {"127.0.0.1:9108:9108"}
    assert "resilient-scan:9108" in asked
    with (
        ScanRunner([healthy("alpha")], listeners=()) as runner,
        ControlService(runner, registry=CollectorRegistry(), allowed_hosts=names) as service,
    ):
        for host in (*asked, "127.0.0.1:9108", "localhost:9108"):
            with urlopen(Request(f"{service.url}/metrics", headers={"Host": host})) as answer:
                assert answer.status == 200
        with pytest.raises(HTTPError, match="421") as caught:
            urlopen(Request(f"{service.url}/metrics", headers={"Host": "evil.test"}))
        caught.value.close()
