"""Prefork servers, whose workers count in files: what one counted goes on to count when it has ended, in common files.

prometheus_client leaves a file of each kind behind for every process that ever was, and a server that replaces its
workers fills the disk with them. Knows prometheus_client.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from resilient_scan.errors import ConfigError

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
ENDED = "0"  # in place of a process' number, which is never 0
LOCK = "resilient_scan.lock"
Cell = tuple[float, float]  # value and, of gauges, the instant at which it was set


def _sum(one: Cell, other: Cell) -> Cell:
    return one[0] + other[0], max(one[1], other[1])


def _newest(one: Cell, other: Cell) -> Cell:
    return one if one[1] >= other[1] else other


_TOGETHER: dict[str, Callable[[Cell, Cell], Cell]] = {
    "counter": _sum,
    "histogram": _sum,
    "summary": _sum,
    "gauge_sum": _sum,
    "gauge_max": max,
    "gauge_min": min,
    "gauge_mostrecent": _newest,
}


class AllProcesses(MultiProcessCollector):
    """Collects what all processes counted, but not while the files of one that has ended are put together."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        with _locked(Path(self._path), shared=True):
            found: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
            return found


def worker_ended(pid: int) -> None:
    """Call this in a prefork server's parent when a worker has ended: what it counted stays, its states and files go.

    Its files, the host's own metrics in them too, become part of common ones, which do not grow from worker to worker.
    `exposition` waits meanwhile. Gauges of other modes than those that this package has (`all`, say) are left alone.

    Args:
        pid: the process; it must have ended.

    Raises:
        ConfigError: PROMETHEUS_MULTIPROC_DIR does not name a directory.
        OSError: the files cannot be written.
    """
    folder = Path(os.environ.get(FOLDER) or "/")
    if not os.environ.get(FOLDER) or not folder.is_dir():
        raise ConfigError(f"worker_ended({pid}): {FOLDER} must name the directory in which the workers count")
    with _locked(folder, shared=False):
        mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        for kind, together in _TOGETHER.items():
            own = folder / f"{kind}_{pid}.db"
            if own.exists():
                _merge(own, folder / f"{kind}_{ENDED}.db", together)


def _merge(own: Path, common: Path, together: Callable[[Cell, Cell], Cell]) -> None:
    cells = _read(common) if common.exists() else {}
    for key, cell in _read(own).items():
        cells[key] = together(cells[key], cell) if key in cells else cell
    handle, name = tempfile.mkstemp(prefix="merging-", dir=common.parent)
    try:
        os.fchmod(handle, own.stat().st_mode & 0o777)
        os.close(handle)
        with closing(MmapedDict(name)) as written:  # type: ignore[no-untyped-call]
            for key, (value, at) in cells.items():
                written.write_value(key, value, at)  # type: ignore[no-untyped-call]
        Path(name).replace(common)
    except BaseException:
        Path(name).unlink()
        raise
    own.unlink()


def _read(path: Path) -> dict[str, Cell]:
    found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return {key: (value, at) for key, value, at, _ in found}


@contextmanager
def _locked(folder: Path, *, shared: bool) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - where there is no fork, there is none either

    handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CREAT, 0o644)  # the parent's user may be another one
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
