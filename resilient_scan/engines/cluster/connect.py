"""Reach a cluster, and find out why one could not be used before anything runs there.

Anyone who reaches the port of a scheduler or worker can run code on all of them. So an address that is not loopback
needs TLS. Whatever is at an address, both functions here end within seconds.
"""

from __future__ import annotations

import importlib
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from resilient_scan import __version__
from resilient_scan._once import IMPORTING
from resilient_scan.errors import ConfigError
from resilient_scan.options import Cluster

EXAMINE_TIMEOUT: Final = 3.0  # seconds for the scheduler to answer, and as many for the workers to say what runs there
CONNECT_MARGIN: Final = 0.5  # seconds for Dask to notice by itself that its time is up
PACKAGE: Final = "resilient_scan"


def distributed() -> Any:
    """Return the library; it is an extra, and slow to import.

    Raises:
        ConfigError: it is not installed.
    """
    with IMPORTING:
        try:
            return importlib.import_module("distributed")
        except ImportError:
            raise ConfigError("engine=\"dask\" needs the extra: pip install 'resilient-scan[dask]'") from None


def connected(cluster: Cluster, timeout: float, place: Any = None) -> Any:
    """Return a client of a cluster.

    Args:
        cluster: where it is.
        timeout: seconds for its scheduler to answer.
        place: a cluster of this process, which is used and not the address.

    Raises:
        ConfigError: it cannot be reached, or must not be used like this.
    """
    dask = distributed()
    options: dict[str, Any] = {"timeout": timeout, "set_as_default": False, "direct_to_workers": True}
    if place is None and not cluster.insecure:
        _refuse_in_the_clear(str(cluster.address), has_files=cluster.tls is not None)
    if cluster.tls is not None:
        options["security"] = dask.Security(
            tls_ca_file=cluster.tls.ca,
            tls_client_cert=cluster.tls.cert,
            tls_client_key=cluster.tls.key,
            require_encryption=True,
        )
    outcome = _made_in_time(lambda: dask.Client(cluster.address if place is None else place, **options), timeout)
    if isinstance(outcome, Exception):
        why = str(outcome) or type(outcome).__name__
        raise ConfigError(f"cluster: no scheduler answers at {cluster.address}: {why}") from None
    return outcome


def _made_in_time(make: Callable[[], Any], timeout: float) -> Any:
    """Return a client or the error of making it.

    On a thread of its own, because Dask waits without end for the first words of the program that has accepted the
    connection: a Redis, say, whose port somebody has mistaken for the scheduler's.
    """
    outcomes: list[Any] = []
    late = threading.Event()

    def call() -> None:
        try:
            outcomes.append(make())
        except Exception as error:  # whatever Dask makes of what somebody has answered
            outcomes.append(error)
        if late.is_set() and not isinstance(outcomes[0], Exception):
            outcomes[0].close()

    thread = threading.Thread(target=call, name="resilient-scan-connect", daemon=True)
    thread.start()
    thread.join(timeout + CONNECT_MARGIN)
    late.set()
    return outcomes[0] if outcomes else TimeoutError(f"what listens there has said nothing for {timeout:g}s")


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


def examined(cluster: Cluster) -> tuple[list[str], list[str]]:
    """Return why a cluster could not be used, and what it lacks otherwise: a sentence for each."""
    if cluster.address is None:
        return ['engine="dask" needs a cluster: write its address, or "local", into [cluster] address'], []
    if missing := [*_missing_files(cluster)]:
        return missing, []
    try:
        if cluster.address == "local":  # its workers are started when it is used
            distributed()
            return [], []
        client = connected(cluster, EXAMINE_TIMEOUT)
    except ConfigError as error:
        return [str(error)], []
    closing = threading.Thread(target=client.close, args=(EXAMINE_TIMEOUT,), daemon=True)
    try:
        versions = _versions(client)
    finally:
        closing.start()
        closing.join(EXAMINE_TIMEOUT)
    if versions is None:
        return [f"cluster: the workers at {cluster.address} do not say within {EXAMINE_TIMEOUT:g}s what runs there"], []
    if not versions:
        start = f"start one: dask worker {cluster.address}"
        return [], [f"cluster: no worker is at {cluster.address}, and scans are rejected until one joins; {start}"]
    return [*_differences(versions)], []


def _missing_files(cluster: Cluster) -> Iterator[str]:
    if cluster.tls is not None:
        for name in ("ca", "cert", "key"):
            path = Path(getattr(cluster.tls, name)).absolute()
            try:
                path.open("rb").close()
            except OSError as error:
                yield f"cluster.tls.{name}: {path} cannot be read: {error.strerror}"


def _versions(client: Any) -> Mapping[str, Any] | None:
    """Return what runs at each worker, by address; `None`: they do not say so in time."""
    found: list[Mapping[str, Any]] = []

    def ask() -> None:
        with suppress(Exception):  # whatever Dask raises when the scheduler goes
            found.append(client.get_versions(packages=[PACKAGE])["workers"])

    thread = threading.Thread(target=ask, name="resilient-scan-versions", daemon=True)
    thread.start()
    thread.join(EXAMINE_TIMEOUT)
    return found[0] if found else None


def _differences(versions: Mapping[str, Any]) -> Iterator[str]:
    ours = ".".join(platform.python_version_tuple()[:2])
    for where, said in versions.items():
        python = said["host"]["python"]
        if not python.startswith(f"{ours}."):
            yield (
                f"cluster: worker {where} runs Python {python.partition('.final')[0]}, and this is "
                f"{platform.python_version()}; start it with Python {ours}"
            )
        theirs = said["packages"].get(PACKAGE)
        if theirs != __version__:
            has = f"has resilient-scan {theirs}" if theirs else "lacks resilient-scan"
            yield (
                f"cluster: worker {where} {has}, and this is {__version__}; "
                f"install it there: pip install 'resilient-scan[dask]=={__version__}'"
            )
