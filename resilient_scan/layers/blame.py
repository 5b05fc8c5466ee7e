"""Whose fault is a failure? Here: the way to a provider, or something else.

The way is everything between the scanner and an answer: the name of the host, the connection, TLS, the gateway in front
of the service. When it breaks down, all scanners of the provider fail, whatever they ask for. What comes back over it
(a 404, a body that cannot be parsed) is the business of the one that asked.

    the way                                             not the way
    ConnectionError and its subclasses                  a bare OSError
    socket.gaierror, ssl.SSLError                       every timeout after the connection was made
    connect errors of httpx, requests, urllib3          4xx, and every 5xx that is not in the next line
    a connection that drops in the middle of a body     parse errors
    502, 503, 504 through `resilient_scan.http`         whatever else the scanner raises

A host that accepts connections and then says nothing is not found out here: that looks like a slow answer, and each
scanner's timeout deals with it.

Libraries are recognised by the names of their classes, so none of them is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from resilient_scan.errors import ScanError

_WAY: Final[Mapping[str, frozenset[str]]] = {
    "aiohttp": frozenset({"ClientConnectionError", "ClientPayloadError"}),
    "http": frozenset({"IncompleteRead"}),
    "httpcore": frozenset({"ConnectTimeout", "NetworkError", "ProxyError", "RemoteProtocolError"}),
    "httpx": frozenset({"ConnectTimeout", "NetworkError", "ProxyError", "RemoteProtocolError"}),
    "requests": frozenset({"ChunkedEncodingError", "ConnectionError"}),
    "socket": frozenset({"gaierror"}),
    "ssl": frozenset({"SSLError"}),
    "urllib3": frozenset({"ConnectTimeoutError", "ProtocolError", "ProxyError", "SSLError"}),
}
"""By top-level package, classes that say that the way broke down; `_REASON` comes first."""
_REASON: Final = frozenset({("urllib", "URLError"), ("urllib3", "MaxRetryError")})
"""Classes that wrap what happened; it is their `reason`."""
_TIMEOUTS: Final = frozenset({"ReadTimeoutError", "ServerTimeoutError"})
"""Classes that say that an answer did not come in time, although some of their bases are in `_WAY`."""
_DEEP: Final = 5  # exceptions that wrap one another


def is_of_way(error: BaseException) -> bool:
    """Say whether an exception, which is not a group, means that the way to the provider broke down."""
    return (isinstance(error, ScanError) and bool(error.provider)) or _is_of_way(error, _DEEP)


def _is_of_way(error: Any, depth: int) -> bool:
    if isinstance(error, ConnectionError):
        return True
    kinds = [(_package(kind), kind.__name__) for kind in type(error).__mro__]
    if any(name in _TIMEOUTS for _, name in kinds) or not depth:
        return False
    if not _REASON.isdisjoint(kinds):
        return _is_of_way(getattr(error, "reason", None), depth - 1)
    if ("requests", "ConnectionError") in kinds and error.args:  # it wraps a read that took too long, too
        return not _is_timeout(error.args[0])
    return any(name in _WAY.get(package, ()) for package, name in kinds)


def _is_timeout(error: Any) -> bool:
    return any(kind.__name__ in _TIMEOUTS for kind in type(getattr(error, "reason", error)).__mro__)


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]  # a class may have anything there
