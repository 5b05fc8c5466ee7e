"""The control endpoint: a runner's page, metrics, orders and alerts over HTTP (needs the extra `service`)."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from resilient_scan.clock import Clock, SystemClock
from resilient_scan.core.pool import ThreadPool
from resilient_scan.errors import ConfigError, is_number
from resilient_scan.events import AlertsServed
from resilient_scan.observe.metrics import REGISTRY, CollectorRegistry, PrometheusMetrics
from resilient_scan.runner import ScanRunner
from resilient_scan.service.auth import TokenAuth
from resilient_scan.service.bounds import BOUNDS, Bounds
from resilient_scan.service.door import Door, is_loopback
from resilient_scan.service.process import Process
from resilient_scan.settings.tables import Service

if TYPE_CHECKING:
    from resilient_scan.service.server import HttpThread

__all__ = ["ControlService"]

_log = logging.getLogger("resilient_scan")
PROCESS = Process()
WORKERS = 16  # requests at a time that call into the runner, whose store may be slow


class ControlService:
    """See over HTTP what a runner's scanners do; take one out of service, or bring it back; receive alerts.

    `GET /` is a page for people, and `/openapi.json` describes the rest. It is a context manager, and may be started
    again after it was stopped. It runs on its own threads, which do not keep the process alive. Stopping it leaves the
    runner open. In a forked child it is stopped.

    Args:
        runner: its scanners are shown and changed. It gets a `PrometheusMetrics` of `registry` if it has none.
        token: one word of printable ASCII that every change must show; `None`: nothing can be changed.
        host, port: where to listen; port 0 takes a free one.
        registry: its metrics are served at `/metrics`.
        read_token: one such word that the page, the API and the metrics take, as well as `token`; `None`: everyone who
            reaches the port may read.
        allowed_hosts: names by which clients may ask for the service, besides those of loopback. A request for another
            is refused where the service listens on loopback, and everywhere if names are given; `host` is always known.
        clock: tells the time of day; for tests.
        process: what the endpoint has to know about the process around it, such as how to run a scanner.
        bounds: how much time and memory a client may take; for tests.

    Raises:
        ConfigError: an argument is wrong, or the extra `service` is missing.
    """

    def __init__(  # noqa: PLR0913 - the public face: an option is an argument
        self,
        runner: ScanRunner,
        token: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        registry: CollectorRegistry = REGISTRY,
        *,
        read_token: str | None = None,
        allowed_hosts: Iterable[str] = (),
        clock: Clock | None = None,
        process: Process = PROCESS,
        bounds: Bounds = BOUNDS,
    ) -> None:
        if not isinstance(runner, ScanRunner):
            raise ConfigError(f"ControlService needs a ScanRunner, got {runner!r:.200}")
        if not is_number(port, 0, 65535) or int(port) != port:
            raise ConfigError(f"port must be a whole number from 0 to 65535, got {port!r}")
        given: object = host
        if not isinstance(given, str) or not given:
            raise ConfigError(f"host must be an address to listen at, such as '127.0.0.1', got {host!r:.200}")
        try:
            from resilient_scan.service.api import application  # noqa: PLC0415 - needs the extra
            from resilient_scan.service.control import Control  # noqa: PLC0415
            from resilient_scan.service.server import HttpThread  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"ControlService needs the extra 'service' ({error.name} is missing): "
                "pip install 'resilient-scan[service]'"
            ) from None
        auth = None if token is None else TokenAuth(token)
        reader = None if read_token is None else TokenAuth(read_token, "read_token")
        readers = [each for each in (reader, auth) if reader is not None and each is not None]
        runner.listen(PrometheusMetrics(registry))
        control = Control(runner, registry, clock or SystemClock(), process)
        self._application = partial(application, control, auth, bounds=bounds, protected=reader is not None)
        self._door = partial(Door, hosts=_known_hosts(allowed_hosts, host), readers=readers, bounds=bounds)
        self._serve = partial(HttpThread, host=host, port=port, bounds=bounds)
        # Without a token there is no `/alerts`, so that no heartbeat is to be expected.
        self._tell_alerts_served = None if auth is None else lambda: runner.tell(AlertsServed(control.now()))
        self._host = host
        self._live: tuple[HttpThread, ThreadPool] | None = None
        self._lock = threading.Lock()
        _services.add(self)

    def start(self) -> Self:
        """Begin to answer, and return once it does. A second call does nothing.

        Raises:
            ConfigError: the address is taken, or not ours.
        """
        with self._lock:
            if self._live is None:
                self._live = self._started()
        return self

    def _started(self) -> tuple[HttpThread, ThreadPool]:
        if not is_loopback(self._host):
            _log.warning(
                "the control endpoint listens at %s without TLS: anyone who reads the network reads the token too; "
                "put a proxy in front that encrypts",
                self._host,
            )
        pool = ThreadPool(WORKERS, name="resilient-scan-control")
        thread = self._serve(self._door(self._application(pool=pool)))
        thread.start()
        if self._tell_alerts_served is not None:
            self._tell_alerts_served()
        return thread, pool

    def stop(self) -> None:
        """Let running requests end, within `bounds.drain`, and free the port. A second call does nothing."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                thread, pool = live
                thread.stop()
                pool.stop()

    @property
    def url(self) -> str:
        """The base URL, such as `http://127.0.0.1:40213`.

        Raises:
            RuntimeError: the service is not started.
        """
        live = self._live
        if live is None:
            raise RuntimeError("the control service is not started; call start() first")
        return live[0].url

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _after_fork(self) -> None:
        # The threads exist in the parent only, and one of them may have held the lock at the fork: nobody in the child
        # would ever release it, so the child gets a new one.
        live, self._live = self._live, None
        self._lock = threading.Lock()
        if live is not None:
            _left_to_the_parent.append(live)
            live[0].leave_to_the_parent()


_services: weakref.WeakSet[ControlService] = weakref.WeakSet()
_left_to_the_parent: list[object] = []  # in a child: kept alive, because collecting them would close files


def _after_fork() -> None:
    for service in tuple(_services):
        service._after_fork()  # noqa: SLF001 - its own module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _known_hosts(allowed: Iterable[str], host: str) -> frozenset[str] | None:
    """Return the names that a request may ask for, besides those of loopback; `None`: any.

    Raises:
        ConfigError: one of them isn't a name.
    """
    given: Any = allowed  # a text is an iterable of names too, none of which is meant
    if isinstance(given, Iterable) and not isinstance(given, str):
        given = tuple(given)
    names = Service(allowed_hosts=given).allowed_hosts
    return frozenset((*names, host)) if names or is_loopback(host) else None
