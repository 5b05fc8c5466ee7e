"""Files for other programs: what is written, with which mode, and what is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilient_scan import _files
from resilient_scan._files import make_folder, write_file
from resilient_scan.http.recording import Recorder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_everybody_can_read_what_is_new(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    write_file(tmp_path / "a" / "b" / "c", b"text", durable=True)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o755
    assert mode(tmp_path / "a" / "b" / "c") == 0o644
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"text"


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    make_folder(tmp_path)
    make_folder(tmp_path / "a")
    assert mode(tmp_path) == 0o700


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match="File exists"):
        make_folder(tmp_path / "a" / "b")


def test_what_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", b"new", durable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_plain_file_stays_what_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("/dev/full")
    before = path.lstat()
    with pytest.raises(OSError, match="it is not a plain file"):
        write_file(path, b"text")
    assert path.lstat() == before


def test_an_owner_that_cannot_be_given_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    monkeypatch.setattr(_files.os, "fchown", refuse)
    write_file(tmp_path / "a", b"new")
    assert (mode(tmp_path / "a"), (tmp_path / "a").read_text()) == (0o640, "new")


def test_a_recorder_stays_in_its_folder_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recorder = Recorder("tape")
    monkeypatch.chdir(tmp_path)
    recorder.note_run({"x": 1}, ["one"])
    files = sorted((tmp_path / "here" / "tape").iterdir())
    assert [path.name for path in files] == ["manifest.json", "scanners.json", "state.json"]
    assert {mode(path) for path in files} == {0o644}
