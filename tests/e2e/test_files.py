"""Files that the command writes: through links, in place of plain files only, and for others to read."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.support.fixtures import Distribute

ONE = ("run", "--json", "--only", "gap_up")
WANDERING = """
import os
class Wandering:
    '''Go elsewhere.'''
    name = "wandering"
    pipeline = "own"
    def scan(self, state):
        os.chdir({elsewhere!r})
        return []
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_metrics_are_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    target, link = tmp_path / "real" / "scan.prom", tmp_path / "links" / "link.prom"
    link.symlink_to("../real/scan.prom")
    for _ in range(2):  # at first the link leads nowhere
        run(*ONE, "--textfile", str(link))
        assert link.is_symlink()
        assert "resilient_scan_scans_total" in target.read_text()
        assert mode(target) == 0o644
        assert names(target.parent) == ["scan.prom"]
        assert names(link.parent) == ["link.prom"]


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("given", [0o600, 0o640, 0o666])
def test_a_file_keeps_its_mode(given: int, tmp_path: Path) -> None:
    target = tmp_path / "scan.prom"
    target.write_text("old")
    target.chmod(given)
    run(*ONE, "--textfile", str(target))
    assert mode(target) == given
    assert "resilient_scan_scans_total" in target.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    target = tmp_path / "scan.prom"
    target.write_text("old")
    target.chmod(0o600)
    os.chown(target, 12345, 23456)
    run(*ONE, "--textfile", str(target))
    assert (target.stat().st_uid, target.stat().st_gid, mode(target)) == (12345, 23456, 0o600)


def test_what_is_no_plain_file_is_refused_and_stays(tmp_path: Path) -> None:
    fifo, link, device = tmp_path / "fifo", tmp_path / "link", tmp_path / "device"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    device.symlink_to("/dev/full")
    for path in (fifo, link, device):
        done = run(*ONE, "--textfile", str(path), code=2)
        assert done.stderr == f"error: --textfile {path}: it is not a plain file\n"
        assert done.stdout == ""
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    assert link.is_symlink()
    assert device.is_symlink()


def test_a_link_to_itself_is_one_sentence(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    done = run(*ONE, "--textfile", str(loop), code=2)
    assert done.stderr == f"error: --textfile {loop}: Too many levels of symbolic links\n"


def test_relative_paths_start_where_the_command_started(distribute: Distribute, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    text = WANDERING.format(elsewhere=str(elsewhere))
    site = str(distribute("wandering", {"wandering": "acme_wandering:Wandering"}, {"acme_wandering.py": text}))
    run("run", "--only", "wandering", "--textfile", "scan.prom", cwd=here, PYTHONPATH=site)
    run("run", "--only", "wandering", "--record", "tape", cwd=here, PYTHONPATH=site)
    run("run", "--only", "wandering", "--replay", "tape", cwd=here, PYTHONPATH=site)
    assert names(here) == ["scan.prom", "tape"]
    assert names(elsewhere) == []


def test_an_import_that_goes_elsewhere_moves_nothing(distribute: Distribute, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "scan.toml").write_text('[scanners.gap_up]\ntimeout = { total = "7s" }\n')
    text = f"import os\nos.chdir({str(elsewhere)!r})\n" + WANDERING.format(elsewhere=str(elsewhere))
    site = str(distribute("wandering", {"wandering": "acme_wandering:Wandering"}, {"acme_wandering.py": text}))
    run("run", "--only", "wandering", "--config", "scan.toml", "--textfile", "scan.prom", cwd=here, PYTHONPATH=site)
    assert (here / "scan.prom").exists()
    run("export-grafana", "boards", cwd=here, PYTHONPATH=site)
    assert (here / "boards" / "compose.yaml").exists()
    assert names(elsewhere) == []


@pytest.mark.usefixtures("umask")
def test_what_is_exported_and_recorded_can_be_read_by_others(tmp_path: Path) -> None:
    run("export-grafana", str(tmp_path / "new" / "boards"))
    run("run", "--only", "gap_up", "--record", str(tmp_path / "new" / "tape"), code=2)  # it has no source yet
    settings = {"RESILIENT_SCAN__SCANNERS__gap_up__SETTINGS__UNIVERSE": '["AAPL"]'}
    settings["RESILIENT_SCAN__SCANNERS__gap_up__SETTINGS__BASE_URL"] = "http://127.0.0.1:1"
    run("run", "--only", "gap_up", "--record", str(tmp_path / "new" / "tape"), code=1, **settings)
    found = list((tmp_path / "new").rglob("*"))
    assert {"compose.yaml", "fleet.json", "manifest.json", "state.json"} <= {path.name for path in found}
    assert {mode(path) for path in found if path.is_file()} == {0o644}
    assert {mode(path) for path in (tmp_path / "new", *found) if path.is_dir()} == {0o755}


def test_an_export_writes_through_links_and_keeps_modes(tmp_path: Path) -> None:
    boards, elsewhere = tmp_path / "boards", tmp_path / "elsewhere"
    boards.mkdir()
    elsewhere.mkdir()
    (boards / "compose.yaml").symlink_to(elsewhere / "mine.yaml")
    (boards / "dashboards").symlink_to(elsewhere)
    (boards / "Dockerfile").write_text("mine")
    (boards / "Dockerfile").chmod(0o600)
    run("export-grafana", str(boards), "--force")
    assert (boards / "compose.yaml").is_symlink()
    assert "services:" in (elsewhere / "mine.yaml").read_text()
    assert (elsewhere / "fleet.json").exists()
    assert mode(boards / "Dockerfile") == 0o600


def test_an_export_refuses_what_is_no_plain_file_before_it_writes_any(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "compose.yaml")
    reader = threading.Thread(target=(tmp_path / "compose.yaml").read_bytes, daemon=True)  # else a writer would wait
    reader.start()
    done = run("export-grafana", str(tmp_path), "--force", code=2)
    assert done.stderr == f"error: {tmp_path / 'compose.yaml'} cannot be written: it is not a plain file\n"
    assert names(tmp_path) == ["compose.yaml"]
    subprocess.run(["sh", "-c", f": > {tmp_path / 'compose.yaml'}"], check=True)  # lets the reader end
    reader.join()
