"""Whose fault is a failure? Four parties can be to blame.

    local       this machine: it has no descriptors, threads, memory, disk or network left, or resolves no names
    provider    the way to it: the host's name, the connection, TLS, the gateway in front of the service
    source      what came back: an error status, an answer that is not JSON, none at all within the time
    scanner     its own code, and what nobody else can be blamed for: its timeout, say

When the way breaks down, all scanners of the provider fail, whatever they ask for. What comes back over it (a 404, a
body that cannot be parsed) is the business of the one that asked.

    the way                                             not the way
    ConnectionError and its subclasses                  a bare OSError
    socket.gaierror, ssl.SSLError                       every timeout after the connection was made
    connect errors of httpx, requests, urllib3          4xx, and every 5xx that is not in the next line
    a connection that drops in the middle of a body     parse errors
    502, 503, 504 through `resilient_scan.http`         whatever else the scanner raises

A host that accepts connections and then says nothing is not found out here: that looks like a slow answer, and each
scanner's timeout deals with it.

What is local is seldom said by the exception itself: libraries wrap the system's error in theirs. So its causes are
looked through. The first that says something about the system decides: a connection that was refused is the provider's,
even if another address could not be reached from here before. Some kinds are certain. Others (a name that does not
resolve, no memory) may be the scanner's or its provider's as well: `local` judges those, when it has seen whom else
they hit.

Libraries are recognised by the names of their classes, so none of them is imported.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any, Final

from resilient_scan.errors import Rejected, RetryAfter, ScanError, ScanTimeout, decisive_leaves
from resilient_scan.results import PROVIDER, SCANNER, SOURCE

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


# the answer

_ANSWER: Final[Mapping[str, frozenset[str]]] = {
    "aiohttp": frozenset({"ClientResponseError", "ServerTimeoutError"}),
    "http": frozenset({"HTTPException"}),
    "httpcore": frozenset({"ReadTimeout"}),
    "httpx": frozenset({"DecodingError", "HTTPStatusError", "ReadTimeout", "TooManyRedirects"}),
    "json": frozenset({"JSONDecodeError"}),
    "requests": frozenset(
        {"ConnectionError", "ContentDecodingError", "HTTPError", "JSONDecodeError", "Timeout", "TooManyRedirects"}
    ),
    "urllib": frozenset({"HTTPError"}),
    "urllib3": frozenset({"DecodeError", "ReadTimeoutError"}),
    "xml": frozenset({"ParseError", "SAXParseException", "ExpatError"}),
}
"""By top-level package, classes that say something about an answer, or that none came in time."""


def blame_of(error: BaseException) -> str:
    """Return whose fault an exception is, apart from what may be this machine's; of a group, its first leaf's."""
    try:
        return _blame_of(error)
    except Exception:  # its class is foreign code
        return SCANNER


def _blame_of(error: BaseException) -> str:
    first = decisive_leaves(error)[0]
    if is_of_way(first):
        return PROVIDER
    if isinstance(first, ScanError):
        return first.blame
    if type(first) is TimeoutError:  # a socket's
        return SOURCE
    kinds = [(_package(kind), kind.__name__) for kind in type(first).__mro__]
    reason = getattr(first, "reason", None)
    if isinstance(reason, TimeoutError) and not _REASON.isdisjoint(kinds):
        return SOURCE
    return SOURCE if any(name in _ANSWER.get(package, ()) for package, name in kinds) else SCANNER


# this machine

DESCRIPTORS, THREADS, NETWORK, DISK, NAMES, MEMORY = "descriptors", "threads", "network", "disk", "names", "memory"
KINDS: Final = (DESCRIPTORS, THREADS, NETWORK, DISK, NAMES, MEMORY)
"""What this machine may lack."""
CERTAIN: Final = frozenset({DESCRIPTORS, THREADS, NETWORK, DISK})
"""Kinds that are this machine's fault in any case."""
_NUMBERS: Final = {
    errno.EMFILE: DESCRIPTORS,
    errno.ENFILE: DESCRIPTORS,
    errno.ENETDOWN: NETWORK,
    errno.ENETUNREACH: NETWORK,
    errno.ENOSPC: DISK,
    errno.ENOMEM: MEMORY,
}
_NO_THREAD: Final = "can't start new thread"  # Python has no class for that
_CAUSES: Final = 20  # exceptions that are looked through


def local_kind(error: BaseException) -> str | None:
    """Return what this machine may lack, by an exception and its causes; `None`: nothing that we know of.

    A group is judged by its leaves: all that count have to say so.
    """
    try:
        kinds = {_kind_of(leaf) for leaf in decisive_leaves(error)}
    except Exception:  # its class is foreign code
        return None
    if None in kinds:
        return None
    return max(kinds, key=lambda kind: (kind not in CERTAIN, kind or ""))  # what is not certain has to be judged


def _kind_of(error: BaseException) -> str | None:
    if not isinstance(error, Exception) or isinstance(error, Rejected | RetryAfter | ScanTimeout):
        return None  # a cancellation, or one of ours: what was met before is not why it was raised
    for one in _causes(error):
        if isinstance(one, MemoryError):
            return MEMORY
        if isinstance(one, RuntimeError) and one.args == (_NO_THREAD,):
            return THREADS
        if isinstance(one, OSError) and (isinstance(one.errno, int) or isinstance(one, ConnectionError | TimeoutError)):
            return _of_system(one)
    return None


def _of_system(error: OSError) -> str | None:
    kinds = {(_package(kind), kind.__name__) for kind in type(error).__mro__}
    if ("socket", "gaierror") in kinds:
        return NAMES
    return None if error.errno is None or ("ssl", "SSLError") in kinds else _NUMBERS.get(error.errno)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it wraps, the outermost first."""
    rest, seen = [error], {id(error)}
    while rest and len(seen) <= _CAUSES:
        one = rest.pop(0)
        yield one
        wrapped = [getattr(one, "reason", None), *one.args[:1], one.__cause__, one.__context__]
        for each in wrapped:
            if isinstance(each, BaseException) and id(each) not in seen:
                seen.add(id(each))
                rest.append(each)
