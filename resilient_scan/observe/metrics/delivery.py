"""Bring the metrics of a process that ends soon to where they outlive it: a Pushgateway, or a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest, pushadd_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler

from resilient_scan.observe.metrics.catalogue import PREFIX
from resilient_scan.observe.metrics.collectors import whole

JOB = "resilient_scan"
TIMEOUT = 10.0  # seconds for each step on the way to a Pushgateway


class _Ours(CollectorRegistry):
    """Our metrics only: those of the process say nothing once it has ended, and collide with others' in a folder."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = whole(registry)

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._registry.collect() if family.name.startswith(PREFIX))


def push(url: str, registry: CollectorRegistry = REGISTRY) -> None:
    """Send the metrics to a Pushgateway, under the grouping key `job="resilient_scan"`; what is there is replaced.

    Args:
        url: the gateway's; user and password in it are sent as basic authentication.
        registry: whose metrics.

    Raises:
        OSError, ValueError: it cannot be reached, refuses, or is no address.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    credentials, _, host = parts.netloc.rpartition("@")
    user, _, password = (unquote(part) for part in credentials.partition(":"))

    def handler(
        url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        if not credentials:
            return default_handler(url, method, timeout, headers, data)
        return basic_auth_handler(url, method, timeout, headers, data, user, password)

    try:
        pushadd_to_gateway(
            urlunsplit((parts.scheme, host, parts.path, "", "")), JOB, _Ours(registry), timeout=TIMEOUT, handler=handler
        )
    except HTTPException as error:
        raise OSError(f"no sensible answer: {type(error).__name__}") from None


def write_textfile(path: Path, registry: CollectorRegistry = REGISTRY) -> None:
    """Write the metrics to a file that others may read, as node_exporter's textfile collector does.

    A reader finds the old file or the new one, never half of one.

    Raises:
        OSError: the file cannot be written.
    """
    text = generate_latest(_Ours(registry))
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
