"""The driver's side: which workers there are, and how many attempts each of them has. It and `connect` know Dask.

A thread looks at the workers twice a second. A new one gets an actor, whose children are warm and know all scanners
before it counts. One that is gone is lost with all its conversations. An attempt never queues in the cluster:
a caller takes a place only where a child is free, and waits here while none is.
"""

from __future__ import annotations

import asyncio
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import msgspec

from resilient_scan import __version__
from resilient_scan._log import log as _log
from resilient_scan.context import NEVER
from resilient_scan.engines.cluster.actor import WorkerActor, WorkerInfo
from resilient_scan.engines.cluster.connect import connected, distributed
from resilient_scan.engines.cluster.dispatch import Dispatcher
from resilient_scan.engines.cluster.remote import RemoteChild
from resilient_scan.engines.process.transfer import unpack_error
from resilient_scan.errors import ConfigError, PluginError
from resilient_scan.options import Cluster

LOOK_INTERVAL: Final = 0.5  # seconds between two looks at the workers
RENEW_INTERVAL: Final = 2.0  # seconds between two words to each actor
CONNECT_TIMEOUT: Final = 10.0  # seconds for the scheduler to answer
OPEN_TIMEOUT: Final = 90.0  # seconds for a worker's children to be warm
RETRY_INTERVAL: Final = 30.0  # seconds until a worker is tried again whose actor could not be made
MAX_DEFINED: Final = 8  # scanners that are made known to a worker at a time
CLOSE_TIMEOUT: Final = 0.25  # seconds for the last words to the workers


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
    """One worker's actor, as the driver sees it; a `remote.WorkerLink`."""

    def __init__(self, where: str, slots: int) -> None:
        self.where = where
        self.slots = slots
        self.used = 0
        self.lost = False
        self.states: set[str] = set()
        self.keeping = asyncio.Lock()
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

    def define(self, scanner: Scanner) -> bytes | None:
        """Make a scanner known there; return the error of a child that cannot have it."""
        asked = self._actor.define(self._identity, scanner.number, scanner.payload)
        error: bytes | None = asked.result(timeout=OPEN_TIMEOUT)
        return error

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor and return its result; on the client's loop."""
        return await getattr(self._actor, method)(self._identity, *arguments)

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
        self._queue = Dispatcher(self._client.loop.asyncio_loop, self.grace)
        self._scanners: list[Scanner] = []
        self._numbers: dict[str, int] = {}  # of scanners, by name
        self._workers: dict[str, RemoteWorker] = {}
        self._opening: set[str] = set()
        self._refused: dict[str, Refused] = {}
        self._closed = threading.Event()

    def _connected(self, cluster: Any) -> Any:
        dask = distributed()
        if isinstance(cluster, dask.Client):
            return cluster
        if not isinstance(cluster, Cluster):
            raise ConfigError(
                'cluster must be the address of a scheduler, "local", a Cluster or a distributed.Client, '
                f"got {cluster!r:.200}"
            )
        place: Any = None
        if cluster.address == "local":
            place = dask.LocalCluster(dashboard_address="127.0.0.1:0")
            self._own.append(place)
        client = connected(cluster, CONNECT_TIMEOUT, place)
        self._own.insert(0, client)
        return client

    # for engines

    def register(self, number: int, name: str, payload: bytes) -> None:
        """Have each worker know a scanner before it counts."""
        self._scanners.append(Scanner(number, name, payload))
        self._numbers[name] = number

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

    def take(self, _over: Callable[[], bool], _patience: float) -> RemoteChild:
        """Return what stands for a child; when its attempt is entered, it waits for a place at a worker."""
        return RemoteChild(self._queue)

    def give_back(self, child: RemoteChild) -> None:
        """Do nothing: the worker knows that its place is free."""

    def share(self, name: str) -> float:
        """Return the share of a place that an attempt of a scanner takes: those that are short go together."""
        return 1 / self._queue.batch_of(self._numbers.get(name, 0))

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
        self._queue.close()
        for worker in tuple(self._workers.values()):
            worker.close()
        threading.Thread(target=self._close_own, name="resilient-scan-close", daemon=True).start()

    def _close_own(self) -> None:
        time.sleep(CLOSE_TIMEOUT)  # else the last words to the workers would not go out
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
                if not trouble and not self._closed.is_set():
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
        for where in [where for where, worker in self._workers.items() if where not in workers or worker.lost]:
            self._queue.remove(where)
            del self._workers[where]
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
        worker = RemoteWorker(where, slots)
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
            self._workers[where] = worker
            self._queue.add(worker)
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
        # Several at a time: one after another, each would wait for the way there and back.
        with ThreadPoolExecutor(MAX_DEFINED, "resilient-scan-define") as threads:
            for scanner, error in zip(self._scanners, threads.map(worker.define, self._scanners), strict=True):
                if error is not None:
                    return f"worker {worker.where} cannot have {scanner.name}: {unpack_error(error)[0]}"
        return ""
