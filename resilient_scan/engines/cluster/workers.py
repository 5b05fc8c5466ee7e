"""The driver's side: which workers there are, and how many attempts each of them has. The one file that knows Dask.

A thread looks at the workers twice a second. A new one gets an actor, whose children are warm and know all scanners
before it counts. One that is gone is lost with all its conversations. An attempt never queues in the cluster:
a caller takes a place only where a child is free, and waits here while none is.
"""

from __future__ import annotations

import importlib
import itertools
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from resilient_scan import __version__
from resilient_scan._log import log as _log
from resilient_scan._once import IMPORTING
from resilient_scan._text import counted
from resilient_scan.context import NEVER
from resilient_scan.engines.cluster.actor import WorkerActor, WorkerInfo
from resilient_scan.engines.cluster.remote import RemoteChild
from resilient_scan.engines.process.transfer import unpack_error
from resilient_scan.engines.process.wire import ConnectionClosed
from resilient_scan.errors import ConfigError, PluginError, Rejected, WorkerLost
from resilient_scan.options import Cluster

LOOK_INTERVAL: Final = 0.5  # seconds between two looks at the workers
RENEW_INTERVAL: Final = 2.0  # seconds between two words to each actor
CONNECT_TIMEOUT: Final = 10.0  # seconds for the scheduler to answer
OPEN_TIMEOUT: Final = 90.0  # seconds for a worker's children to be warm
RETRY_INTERVAL: Final = 30.0  # seconds until a worker is tried again whose actor could not be made
CALL_INTERVAL: Final = 0.25  # seconds between two looks at whether an answer is still to be expected
_numbers: Final = itertools.count(1)  # of attempts


class Scanner(msgspec.Struct, frozen=True):
    """What a worker has to know of a scanner before it counts."""

    number: int
    name: str
    payload: bytes


class Refused(msgspec.Struct, frozen=True):
    """Why a worker cannot be used, and the monotonic instant until which that holds."""

    why: str
    until: float


class RemoteWorker:
    """One worker's actor, as the driver sees it; a `remote.WorkerLink`.

    Attributes:
        used: places that are taken.
        slots: places that there are.
    """

    def __init__(self, where: str, slots: int, grace: float) -> None:
        self.where = where
        self.slots = slots
        self.grace = grace
        self.used = 0
        self.lost = False
        self.known: set[int] = set()
        self.states: set[str] = set()
        self.keeping = threading.Lock()
        self._actor: Any = None
        self._future: Any = None
        self._identity = ""

    def open(self, client: Any, max_result: int) -> WorkerInfo:
        """Make the actor and have it warm; raises whatever Dask raises."""
        self._future = client.submit(
            WorkerActor, self.slots, max_result, actor=True, workers=[self.where], allow_other_workers=False, pure=False
        )
        with client.as_current():  # the actor looks for the client through which it is called
            self._actor = self._future.result(timeout=OPEN_TIMEOUT)
        info: WorkerInfo = self._actor.warm().result(timeout=OPEN_TIMEOUT)
        self._identity = info.identity
        return info

    def call(self, method: str, *arguments: Any, until: Callable[[], float] = lambda: float("inf")) -> Any:
        """Call a method of the actor and return its result.

        Raises:
            ConnectionClosed: the worker is gone, or has not answered until then.
        """
        try:
            future = getattr(self._actor, method)(self._identity, *arguments)
            while True:
                with suppress(TimeoutError):
                    return future.result(timeout=CALL_INTERVAL)
                if self.lost or time.monotonic() > until():
                    raise ConnectionClosed
        except (OSError, RuntimeError, ValueError) as error:  # gone, or another actor of the same name
            self.lost = True
            raise ConnectionClosed from error

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of the actor whose result nobody waits for."""
        if self._actor is not None and not self.lost:
            with suppress(OSError, RuntimeError, ValueError):
                getattr(self._actor, method)(self._identity, *arguments)

    def close(self) -> None:
        """Have the actor leave nothing behind."""
        self.tell("close")
        if self._future is not None:
            with suppress(Exception):  # its client may be closed
                self._future.release()


class ClusterWorkers:
    """The workers of a cluster, in the place of child processes of this machine.

    Args:
        cluster: where they are: an option, or a `distributed.Client`.

    Raises:
        ConfigError: the cluster cannot be reached, or must not be used like this.
    """

    away = True
    shared: frozenset[str] = frozenset()  # another machine lacks its own

    def __init__(self, cluster: Any) -> None:
        options = cluster if isinstance(cluster, Cluster) else Cluster()
        self.grace = float(options.grace)
        self._max_result = options.max_result
        self._own: list[Any] = []  # to be closed with this
        self._client = self._connected(cluster)
        self._scanners: list[Scanner] = []
        self._workers: dict[str, RemoteWorker] = {}
        self._opening: set[str] = set()
        self._refused: dict[str, Refused] = {}
        self._changed = threading.Condition()
        self._closed = threading.Event()

    def _connected(self, cluster: Any) -> Any:
        with IMPORTING:
            try:
                distributed: Any = importlib.import_module("distributed")  # an extra, slow to import
            except ImportError:
                raise ConfigError("engine=\"dask\" needs the extra: pip install 'resilient-scan[dask]'") from None
        if isinstance(cluster, distributed.Client):
            return cluster
        if not isinstance(cluster, Cluster):
            raise ConfigError(
                'cluster must be the address of a scheduler, "local", a Cluster or a distributed.Client, '
                f"got {cluster!r:.200}"
            )
        where: Any = cluster.address
        options: dict[str, Any] = {"timeout": CONNECT_TIMEOUT, "set_as_default": False, "direct_to_workers": True}
        if where == "local":
            where = distributed.LocalCluster(dashboard_address="127.0.0.1:0")
            self._own.append(where)
        elif not cluster.insecure:
            _refuse_in_the_clear(where, has_files=cluster.tls is not None)
        if cluster.tls is not None:
            options["security"] = distributed.Security(
                tls_ca_file=cluster.tls.ca,
                tls_client_cert=cluster.tls.cert,
                tls_client_key=cluster.tls.key,
                require_encryption=True,
            )
        try:
            client = distributed.Client(where, **options)
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(f"cluster: no scheduler answers at {cluster.address}: {error}") from None
        self._own.insert(0, client)
        return client

    # for engines

    def register(self, number: int, name: str, payload: bytes) -> None:
        """Have each worker know a scanner before it counts."""
        self._scanners.append(Scanner(number, name, payload))

    def start(self) -> None:
        """Look at the workers that there are, and keep looking.

        Raises:
            PluginError: no worker can be used; the message says why.
        """
        threads = self._look()
        for thread in threads:
            thread.join(OPEN_TIMEOUT)
        if self._refused and not self._workers:
            raise PluginError(f"the cluster cannot be used: {'; '.join(each.why for each in self._refused.values())}")
        if not self._workers:
            _log.warning("the cluster has no worker yet; scans are rejected until one joins")
        threading.Thread(target=self._keep, name="resilient-scan-cluster", daemon=True).start()

    def take(self, over: Callable[[], bool], patience: float) -> RemoteChild:
        """Return a free place at the worker with the most of them; wait for one until `over` says so.

        Raises:
            Rejected: there was none for `patience` seconds.
            WorkerLost: it was not wanted any more.
        """
        until = time.monotonic() + patience
        with self._changed:
            while True:
                if self._closed.is_set():
                    raise Rejected("the runner is closed; it asks no worker")
                free = [worker for worker in self._workers.values() if not worker.lost and worker.used < worker.slots]
                if free:
                    worker = max(free, key=lambda one: one.slots - one.used)
                    worker.used += 1
                    return RemoteChild(worker, next(_numbers))
                if over():
                    raise WorkerLost("the scan ended while it waited for a worker")
                if time.monotonic() > until:
                    raise Rejected(self._full())
                self._changed.wait(CALL_INTERVAL)

    def _full(self) -> str:
        slots = sum(worker.slots for worker in self._workers.values())
        if not slots:
            return "the cluster has no worker"
        return f"the cluster is full: {counted(slots, 'place')} at {counted(len(self._workers), 'worker')}, all taken"

    def give_back(self, place: RemoteChild) -> None:
        """Give a place back after an attempt."""
        worker = place.line
        assert isinstance(worker, RemoteWorker)  # noqa: S101 - places are made here
        with self._changed:
            worker.used -= 1
            self._changed.notify()

    def pids(self) -> tuple[int, ...]:
        """Return no number: the children are at other machines."""
        return ()

    def slots(self) -> int:
        """Return how many attempts the cluster takes at a time."""
        return sum(worker.slots for worker in self._workers.values() if not worker.lost)

    def close(self) -> None:
        """Leave nothing behind at the workers; wait for none of them."""
        if self._closed.is_set():
            return
        self._closed.set()
        for worker in tuple(self._workers.values()):
            worker.close()
        threading.Thread(target=self._close_own, name="resilient-scan-close", daemon=True).start()

    def _close_own(self) -> None:
        time.sleep(CALL_INTERVAL)  # else the last words to the workers would not go out
        for one in self._own:
            with suppress(Exception):  # it may be closed, or its scheduler gone
                one.close()

    # the keeper

    def _keep(self) -> None:
        renew = time.monotonic()
        trouble = ""
        while not self._closed.wait(LOOK_INTERVAL):
            try:
                self._look()
            except Exception as error:  # the scheduler is gone, or the client closed
                if not trouble:
                    _log.warning("the scheduler of the cluster does not answer: %s", error)
                trouble = str(error)
            else:
                trouble = ""
            if time.monotonic() - renew >= RENEW_INTERVAL:
                renew = time.monotonic()
                for worker in tuple(self._workers.values()):
                    worker.tell("renew")

    def _look(self) -> list[threading.Thread]:
        """See which workers have come and gone; return the threads that open workers."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        with self._changed:
            for where in [where for where in self._workers if where not in workers or self._workers[where].lost]:
                self._workers.pop(where).lost = True
                _log.warning("the worker %s is gone", where)
        threads = []
        for where, facts in workers.items():
            if where not in self._workers and where not in self._opening and self._may_try(where):
                self._opening.add(where)
                thread = threading.Thread(target=self._open, args=(where, facts["nthreads"]), daemon=True)
                thread.start()
                threads.append(thread)
        for where in [where for where in self._refused if where not in workers]:
            del self._refused[where]
        return threads

    def _may_try(self, where: str) -> bool:
        refused = self._refused.get(where)
        return refused is None or time.monotonic() >= refused.until

    def _open(self, where: str, slots: int) -> None:
        worker = RemoteWorker(where, slots, self.grace)
        try:
            info = worker.open(self._client, self._max_result)
            why, until = self._misfit(worker, info), NEVER
        except Exception as error:  # whatever Dask, pickle or an import there raises
            why, until = f"worker {where}: {type(error).__name__}: {error}", time.monotonic() + RETRY_INTERVAL
        if why:
            worker.close()
            self._refused[where] = Refused(why, until)
            if not self._closed.is_set():
                _log.warning("%s", why)
        else:
            with self._changed:
                self._workers[where] = worker
                self._changed.notify_all()
        self._opening.discard(where)
        if self._closed.is_set():
            worker.close()

    def _misfit(self, worker: RemoteWorker, info: WorkerInfo) -> str:
        """Return why a worker cannot be used, in one sentence; an empty text: it can."""
        ours = platform.python_version_tuple()[:2]
        if tuple(info.python.split(".")[:2]) != ours:
            return f"worker {worker.where} runs Python {info.python}, and this is {platform.python_version()}"
        if info.version != __version__:
            return f"worker {worker.where} has resilient_scan {info.version}, and this is {__version__}"
        for scanner in self._scanners:
            error = worker.call("define", scanner.number, scanner.payload)
            if error is not None:
                return f"worker {worker.where} cannot have {scanner.name}: {unpack_error(error)[0]}"
            worker.known.add(scanner.number)
        return ""


def _refuse_in_the_clear(address: str, *, has_files: bool) -> None:
    """Raise `ConfigError` for an address where anybody could run code: not loopback, and without TLS."""
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        host = parts.hostname or ""
    except ValueError:
        raise ConfigError(f"cluster.address: {address!r} is not the address of a scheduler") from None
    if parts.scheme == "tls":
        if not has_files:
            raise ConfigError(f"cluster.address {address!r} needs the files of tls: ca, cert and key")
        return
    if host == "localhost":
        return
    with suppress(ValueError):
        if ip_address(host).is_loopback:
            return
    raise ConfigError(
        f"cluster.address {address!r}: anyone who reaches this port can run code on all workers; use TLS (tls://...), "
        "or allow it by insecure=true"
    )
