"""What is built and installed: the packages, all of `grafana/` but its source, and nothing that is a user's own."""

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

ROOT = HOME.parent
INSTALLED_AS = {"resilient_scan": "resilient_scan", "scanners": "resilient_scan_scanners"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive, and the wheel from what is in that, as `uv build` does."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "sdist", folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    build(folder / archive.name.removesuffix(".tar.gz"), "wheel", folder)
    return folder


def build(project: Path, kind: str, folder: Path) -> None:
    program = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=project, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(built: Path) -> list[str]:
    """Return the names of the files in the wheel."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.fixture
def site(built: Path, tmp_path: Path) -> Path:
    """Install the wheel into a folder of its own."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "site")
    return tmp_path / "site"


def python(program: str, *arguments: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that finds the installed wheel before anything else."""
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_installed_wheel_writes_them(site: Path, tmp_path: Path) -> None:
    program = (
        "import resilient_scan, sys; from resilient_scan.cli.main import main; "
        "sys.stderr.write(resilient_scan.__file__); sys.exit(main())"
    )
    for preset in ("service", "cron"):
        arguments = ["export-grafana", str(tmp_path / preset), "--preset", preset]
        done = python(program, *arguments, site=site, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(str(site))
    for name in written(tmp_path / "service"):
        assert (tmp_path / "service" / name).read_bytes() == (HOME / name).read_bytes()
    assert written(tmp_path / "service") == written(tmp_path / "cron")
    rules = (HOME / "presets" / "cron" / "prometheus" / "alerts.yml").read_bytes()
    assert (tmp_path / "cron" / "prometheus" / "alerts.yml").read_bytes() == rules


def test_the_page_that_draws_pictures_stays_here(built: Path, wheel: list[str]) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        names = source.getnames()
    assert not [name for name in [*wheel, *names] if "tests/pictures" in name or "node_modules" in name]
    assert not [name for name in wheel if "grafana/source" in name or name.endswith(".png")]
    assert [name for name in names if name.endswith("grafana/source/fleet_dashboard.py")]
    assert [name for name in wheel if name.endswith("resilient_scan/grafana/dashboards/fleet.json")]


def test_the_wheel_has_every_file_of_both_packages(wheel: list[str]) -> None:
    """`pyproject.toml` lists the packages one by one: one that is forgotten there would be missing here."""
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in INSTALLED_AS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel if "/grafana/" not in name and ".dist-info/" not in name} == expected
    assert {name.partition("/")[0] for name in wheel if ".dist-info/" not in name} == set(INSTALLED_AS.values())


def test_a_package_scanners_of_the_users_own_survives(site: Path, tmp_path: Path) -> None:
    """Once our scanners were installed as `scanners`, where they overwrote what was there, or were shadowed by it."""
    (site / "scanners").mkdir()
    (site / "scanners" / "__init__.py").write_text("OWNER = 'the user'")
    program = (
        "import resilient_scan_scanners, scanners; from resilient_scan.settings.plugins import discover, load_demo; "
        "found = discover(); print(scanners.OWNER, resilient_scan_scanners.__file__, len(found.scanners), "
        "found.problems, load_demo().tickers[0], sep='|')"
    )
    done = python(program, site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours = site / "resilient_scan_scanners" / "__init__.py"
    assert done.stdout.strip() == f"the user|{ours}|14|()|AAPL"
