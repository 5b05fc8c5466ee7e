"""How metrics leave the process: in a scrape, to a Pushgateway, into a file, and out of prefork workers that end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import CONTENT_TYPE_LATEST as TEXT_TYPE
from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest, pushadd_to_gateway
from prometheus_client.exposition import basic_auth_handler, choose_encoder, default_handler
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from resilient_scan._files import write_file
from resilient_scan.errors import ConfigError
from resilient_scan.observe.metrics.catalogue import PREFIX
from resilient_scan.observe.metrics.collectors import MULTIPROCESS
from resilient_scan.observe.metrics.render import rendered

JOB = "resilient_scan"
PUSH_TIMEOUT = 10.0  # seconds for each step on the way to a Pushgateway
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
ENDED = "0"  # in place of a process id, which is never 0
LOCK_FILE = "resilient_scan.lock"


# a scrape


def _shown(registry: CollectorRegistry) -> CollectorRegistry:
    """Return what is shown of a registry; under PROMETHEUS_MULTIPROC_DIR, the sums over all processes."""
    if not MULTIPROCESS:
        return registry
    registry = CollectorRegistry()
    _AllProcesses(registry)  # type: ignore[no-untyped-call]
    return registry


def pieces(registry: CollectorRegistry = REGISTRY, accept: str = "") -> tuple[str, list[bytes]]:
    """Return what a scrape gets: the content type, and the text in pieces.

    Sent one by one, no step of their way keeps the interpreter from other threads for long.

    Args:
        registry: whose metrics; under PROMETHEUS_MULTIPROC_DIR those of all processes instead.
        accept: the request's `Accept` header; only clients that accept OpenMetrics get exemplars.
    """
    encode, content_type = choose_encoder(accept)
    return content_type if accept else TEXT_TYPE, list(rendered(_shown(registry), encode))


def exposition(registry: CollectorRegistry = REGISTRY, accept: str = "") -> tuple[str, bytes]:
    """Return what a scrape gets: the content type and the text.

    Args:
        registry: whose metrics; under PROMETHEUS_MULTIPROC_DIR those of all processes instead.
        accept: the request's `Accept` header; only clients that accept OpenMetrics get exemplars.
    """
    content_type, text = pieces(registry, accept)
    return content_type, b"".join(text)


# a Pushgateway or a file, for a process that ends soon


class _Ours(CollectorRegistry):
    """Our metrics only: those of the process say nothing once it has ended, and collide with others' in a folder."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = _shown(registry)

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._registry.collect() if family.name.startswith(PREFIX))


def push(url: str, registry: CollectorRegistry = REGISTRY) -> None:
    """Send the metrics to a Pushgateway under the grouping key `job="resilient_scan"`, replacing what is there.

    Args:
        url: the gateway's; user and password in it are sent as basic authentication.
        registry: whose metrics.

    Raises:
        OSError, ValueError: the gateway cannot be reached or refuses, or the URL makes no sense.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    credentials, _, host = parts.netloc.rpartition("@")
    user, _, password = (unquote(part) for part in credentials.partition(":"))

    text: Any = list(rendered(_Ours(registry), generate_latest))

    def handler(
        url: str,
        method: str,
        timeout: float | None,
        headers: list[tuple[str, str]],
        data: bytes,  # noqa: ARG001 - the text of an empty registry
    ) -> Callable[[], None]:
        headers = [*headers, ("Content-Length", str(sum(map(len, text))))]
        if not credentials:
            return default_handler(url, method, timeout, headers, text)
        return basic_auth_handler(url, method, timeout, headers, text, user, password)

    address = urlunsplit((parts.scheme, host, parts.path, "", ""))
    try:
        # In place of what it would send, the handler sends our text, in pieces.
        pushadd_to_gateway(address, JOB, CollectorRegistry(), timeout=PUSH_TIMEOUT, handler=handler)
    except HTTPException as error:
        raise OSError(f"no sensible answer: {type(error).__name__}") from None
    except URLError as error:
        if isinstance(error, HTTPError):
            raise
        raise OSError(getattr(error.reason, "strerror", None) or str(error.reason)) from None


def write_textfile(path: Path, registry: CollectorRegistry = REGISTRY) -> None:
    """Write the metrics to a file that others may read, as node_exporter's textfile collector does.

    A reader finds the old file or the new one, never half of one. A link is followed, and a file that is there keeps
    its mode; a new one is 0644 under any umask.

    Raises:
        OSError: the file cannot be written, or something else than a plain file is there.
    """
    write_file(path, list(rendered(_Ours(registry), generate_latest)), durable=True)


# prefork workers
#
# prometheus_client leaves one file of each kind behind for every process that ever counted, so a server that replaces
# its workers fills the disk. When a worker has ended, its numbers are added to common files, and its own are removed.

Cell = tuple[float, float]  # a value and, for gauges, the instant at which it was set


def _sum(one: Cell, other: Cell) -> Cell:
    return one[0] + other[0], max(one[1], other[1])


def _newest(one: Cell, other: Cell) -> Cell:
    return one if one[1] >= other[1] else other


_MERGE: dict[str, Callable[[Cell, Cell], Cell]] = {
    "counter": _sum,
    "histogram": _sum,
    "summary": _sum,
    "gauge_sum": _sum,
    "gauge_max": max,
    "gauge_min": min,
    "gauge_mostrecent": _newest,
}


class _AllProcesses(MultiProcessCollector):
    """Collects what all processes counted, but not while the files of an ended one are merged."""

    def collect(self) -> Iterable[Metric]:
        with _locked(Path(self._path), shared=True):
            found: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
            return found


def worker_ended(pid: int) -> None:
    """Keep what an ended worker counted and remove its files; call this in a prefork server's parent.

    The worker's files, including the host's own metrics in them, are merged into common ones, which do not grow from
    worker to worker. `exposition` waits meanwhile. Gauges of modes that this package does not use (`all`, say) are left
    alone.

    Args:
        pid: the process, which must have ended.

    Raises:
        ConfigError: PROMETHEUS_MULTIPROC_DIR does not name a directory.
        OSError: the files cannot be written.
    """
    folder = Path(os.environ.get(FOLDER) or "/")
    if not os.environ.get(FOLDER) or not folder.is_dir():
        raise ConfigError(f"worker_ended({pid}): {FOLDER} must name the directory in which the workers count")
    with _locked(folder, shared=False):
        mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        for kind, merge in _MERGE.items():
            own = folder / f"{kind}_{pid}.db"
            if own.exists():
                _merge(own, folder / f"{kind}_{ENDED}.db", merge)


def _merge(own: Path, common: Path, merge: Callable[[Cell, Cell], Cell]) -> None:
    cells = _read(common) if common.exists() else {}
    for key, cell in _read(own).items():
        cells[key] = merge(cells[key], cell) if key in cells else cell
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
    """Hold the folder's lock: shared to read its files, exclusively to merge them.

    A merge replaces the common file first and removes the worker's own file after that. A scrape in between would read
    both and count the worker twice, and its counters would fall again with the next scrape: to Prometheus, a restart.
    The lock is a file's because a worker may be the one that is scraped while its parent merges.
    """
    import fcntl  # noqa: PLC0415 - missing on systems that cannot fork

    handle = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CREAT, 0o644)  # the parent may run as another user
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
