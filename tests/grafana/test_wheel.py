"""Who has only the wheel gets all of `grafana/`, and none of what it is made with."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from grafana.source.__main__ import HOME
from tests.unit.test_export import written


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive, and the wheel from that."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    for kind in ("sdist", "wheel"):
        done = subprocess.run([*command, "-t", kind], cwd=HOME.parent, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    return folder


def test_an_installed_wheel_writes_them(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import resilient_scan, sys; from resilient_scan.cli.main import main; "
        "sys.stderr.write(resilient_scan.__file__); sys.exit(main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for preset in ("service", "cron"):
        command = [sys.executable, "-P", "-c", program, "export-grafana", str(tmp_path / preset), "--preset", preset]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(str(tmp_path / "site"))
    for name in written(tmp_path / "service"):
        assert (tmp_path / "service" / name).read_bytes() == (HOME / name).read_bytes()
    assert written(tmp_path / "service") == written(tmp_path / "cron")
    rules = (HOME / "presets" / "cron" / "prometheus" / "alerts.yml").read_bytes()
    assert (tmp_path / "cron" / "prometheus" / "alerts.yml").read_bytes() == rules


def test_the_page_that_draws_pictures_stays_here(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as shipped, tarfile.open(archive) as source:
        inside, names = shipped.namelist(), source.getnames()
    assert not [name for name in [*inside, *names] if "tests/pictures" in name or "node_modules" in name]
    assert not [name for name in inside if "grafana/source" in name or name.endswith(".png")]
    assert [name for name in names if name.endswith("grafana/source/fleet_dashboard.py")]
    assert [name for name in inside if name.endswith("resilient_scan/grafana/dashboards/fleet.json")]
