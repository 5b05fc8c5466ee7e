"""What workers of a prefork server counted, put together when they have ended."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from resilient_scan import ConfigError
from resilient_scan.observe.metrics import worker_ended
from resilient_scan.observe.metrics.delivery import LOCK_FILE

Cells = dict[str, tuple[float, float]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in {".db", ".lock"}] == []


def wrote(folder: Path, kind: str, pid: int, **cells: tuple[float, float]) -> Path:
    path = folder / f"{kind}_{pid}.db"
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for key, (value, at) in cells.items():
        file.write_value(key, value, at)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
    return path


def read(folder: Path, name: str) -> Cells:
    cells = MmapedDict.read_all_values_from_file(str(folder / name))  # type: ignore[no-untyped-call]
    return {key: (value, at) for key, value, at, _ in cells}


def test_what_was_counted_is_added_up(folder: Path) -> None:
    for pid, value in ((11, 1.0), (12, 20.0), (13, 300.0)):
        for kind in ("counter", "histogram", "summary", "gauge_sum"):
            wrote(folder, kind, pid, common=(value, 0.0), **{f"own{pid}": (value, 0.0)})
    worker_ended(11)
    worker_ended(13)
    worker_ended(13)  # a second call finds nothing
    worker_ended(14)  # one that counted nothing neither
    for kind in ("counter", "histogram", "summary", "gauge_sum"):
        assert read(folder, f"{kind}_0.db") == {"common": (301.0, 0.0), "own11": (1.0, 0.0), "own13": (300.0, 0.0)}
        assert read(folder, f"{kind}_12.db")["common"] == (20.0, 0.0)
    assert sum(path.name != LOCK_FILE for path in folder.iterdir()) == 8


def test_of_states_the_right_one_stays(folder: Path) -> None:
    for pid, value, at in ((11, 5.0, 100.0), (12, 7.0, 90.0), (13, 6.0, 95.0)):
        for kind in ("gauge_max", "gauge_min", "gauge_mostrecent"):
            wrote(folder, kind, pid, seen=(value, at))
        wrote(folder, "gauge_livesum", pid, seen=(value, at))
        wrote(folder, "gauge_all", pid, seen=(value, at))
        worker_ended(pid)
    found = {kind: read(folder, f"gauge_{kind}_0.db")["seen"][0] for kind in ("max", "min", "mostrecent")}
    assert found == {"max": 7.0, "min": 5.0, "mostrecent": 5.0}
    left = sorted(path.name for path in folder.glob("gauge_*") if not path.name.endswith("_0.db"))
    assert left == ["gauge_all_11.db", "gauge_all_12.db", "gauge_all_13.db"]


def test_the_common_file_is_as_readable_as_the_workers_were(folder: Path) -> None:
    wrote(folder, "counter", 11, a=(1.0, 0.0)).chmod(0o640)
    worker_ended(11)
    assert stat.S_IMODE((folder / "counter_0.db").stat().st_mode) == 0o640


def test_nothing_is_lost_where_the_files_cannot_be_put_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote(folder, "counter", 11, a=(1.0, 0.0))

    def full(*_arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(MmapedDict, "write_value", full)
    with pytest.raises(OSError, match="no space left"):
        worker_ended(11)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.glob("*.db")) == ["counter_11.db"]
    assert read(folder, "counter_11.db") == {"a": (1.0, 0.0)}


@pytest.mark.parametrize("said", [None, "", "/nowhere/at/all"])
def test_without_a_directory_it_says_so(said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if said is None:
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    else:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", said)
    text = "worker_ended(11): PROMETHEUS_MULTIPROC_DIR must name the directory in which the workers count"
    with pytest.raises(ConfigError, match=re.escape(text)):
        worker_ended(11)
