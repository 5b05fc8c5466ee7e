"""Whose fault an exception is: of those of real libraries, at real servers, and of those that wrap one another."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import httpx
import pytest

from resilient_scan import (
    CircuitOpen,
    ConfigError,
    InvalidCandidate,
    LimitExceeded,
    PermanentError,
    RetryAfter,
    ScanCancelled,
    ScanTimeout,
)
from resilient_scan.http import NotFound, SchemaDrift, TransientError
from resilient_scan.layers.blame import blame_of, is_of_way, local_kind
from tests.support.http import (
    CHUNKED,
    CUT,
    UNAVAILABLE,
    black_holes,
    dropped,
    hang,
    no_such_host,
    raw_server,
    read_request,
    refused,
    say,
    tls_garbage,
)

Fetch = Callable[[str], object]
NONSENSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
TIMEOUT = 0.2


@contextmanager
def black_hole() -> Iterator[str]:
    with black_holes(1) as ((address,), port):
        yield f"http://{address}:{port}"


def by_httpx(url: str) -> object:
    answer = httpx.get(url, timeout=TIMEOUT, trust_env=False)
    answer.raise_for_status()
    return answer.json()


def by_urllib(url: str) -> object:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=TIMEOUT) as answer:
        return answer.read()


def by_requests(url: str) -> object:
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(url, timeout=TIMEOUT)
    answer.raise_for_status()
    return answer.json()


def by_urllib3(url: str) -> object:
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("GET", url, timeout=TIMEOUT)


def by_urllib3_with_retries(url: str) -> object:
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager(retries=1) as pool:
        return pool.request("GET", url, timeout=TIMEOUT)


LIBRARIES: list[Fetch] = [by_httpx, by_urllib, by_requests, by_urllib3, by_urllib3_with_retries]
BROKEN: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "nobody listens": refused,
    "no such host": lambda: nullcontext("http://no-such-host.invalid"),
    "dropped before the answer": lambda: raw_server(dropped),
    "dropped in the middle of a body": lambda: raw_server(say(CUT)),
    "dropped in the middle of a chunk": lambda: raw_server(say(CHUNKED)),
    "TLS garbage": tls_garbage,
}


@pytest.fixture(autouse=True)
def _quick_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    no_such_host(monkeypatch)


def failure_of(fetch: Fetch, url: str) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
        fetch(url)
    return caught.value


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("fetch", LIBRARIES)
def test_a_way_that_broke_down_is_recognised_whoever_reports_it(fetch: Fetch, kind: str) -> None:
    with BROKEN[kind]() as url:
        failure = failure_of(fetch, url)
    assert is_of_way(failure), repr(failure)


@pytest.mark.parametrize("fetch", [by_httpx, by_requests, by_urllib3])
def test_so_is_a_host_that_takes_no_connection(fetch: Fetch) -> None:
    with black_hole() as url:
        failure = failure_of(fetch, url)
    assert is_of_way(failure), repr(failure)


@pytest.mark.parametrize("fetch", LIBRARIES)
def test_a_host_that_accepts_and_then_hangs_is_not(fetch: Fetch) -> None:
    with raw_server(hang) as url:
        failure = failure_of(fetch, url)
    assert not is_of_way(failure), repr(failure)


@pytest.mark.parametrize("answer", [UNAVAILABLE, NONSENSE])
@pytest.mark.parametrize("fetch", [by_httpx, by_requests])
def test_an_answer_is_not_whatever_it_says(fetch: Fetch, answer: bytes) -> None:
    """A 503 counts through our own client only: nobody else says so in a way that we would know."""
    with raw_server(say(answer)) as url:
        failure = failure_of(fetch, url)
    assert not is_of_way(failure), repr(failure)


def test_a_body_that_dripped_for_too_long_is_not() -> None:
    """requests reports that as a ConnectionError."""
    requests = pytest.importorskip("requests")

    def drips(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(CUT)
        over.wait()

    with raw_server(drips) as url:
        failure = failure_of(by_requests, url)
    assert isinstance(failure, requests.ConnectionError)
    assert not is_of_way(failure)


class Own(ConnectionError):
    """A scanner's."""


class Odd(Exception):
    __module__ = None  # type: ignore[assignment]


def of_a_provider(error: Any) -> Any:
    error.provider = "127.0.0.1:80"
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(), True),
        (BrokenPipeError(), True),
        (Own(), True),
        (socket.gaierror(-2, "Name or service not known"), True),
        (ssl.SSLError("handshake"), True),
        (ssl.SSLCertVerificationError("expired"), True),
        (http.client.IncompleteRead(b"abc"), True),
        (http.client.RemoteDisconnected(), True),
        (urllib.error.URLError(ConnectionResetError()), True),
        (urllib.error.URLError(urllib.error.URLError(ssl.SSLError())), True),
        (of_a_provider(TransientError("HTTP 503")), True),
        (of_a_provider(RetryAfter(5)), True),
        (of_a_provider(PermanentError("a rejected certificate")), True),
        (urllib.error.URLError("unknown url type"), False),
        (urllib.error.URLError(TimeoutError()), False),
        (OSError(101, "Network is unreachable"), False),
        (OSError(24, "Too many open files"), False),
        (TimeoutError(), False),
        (ScanTimeout("timeout", by_clock=True), False),
        (ScanCancelled(), False),
        (TransientError("HTTP 500"), False),
        (RetryAfter(5), False),
        (PermanentError("bad key"), False),
        (http.client.BadStatusLine("x"), False),
        (ValueError("no JSON"), False),
        (Odd(), False),
        (SystemExit(1), False),
    ],
    ids=repr,
)
def test_what_is_the_ways_fault(error: BaseException, expected: bool) -> None:
    assert is_of_way(error) is expected


def test_reasons_that_lead_nowhere_end() -> None:
    error = urllib.error.URLError("x")
    error.reason = error  # type: ignore[assignment]
    assert not is_of_way(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(), "provider"),
        (of_a_provider(RetryAfter(5)), "provider"),
        (LimitExceeded("no turn"), "provider"),
        (TransientError("HTTP 500"), "source"),
        (NotFound("HTTP 404"), "source"),
        (SchemaDrift("no rows"), "source"),
        (PermanentError("bad key"), "source"),
        (RetryAfter(5), "source"),
        (TimeoutError(), "source"),
        (urllib.error.URLError(TimeoutError()), "source"),
        (urllib.error.HTTPError("u", 404, "", {}, None), "source"),  # type: ignore[arg-type]
        (http.client.BadStatusLine("x"), "source"),
        (json.JSONDecodeError("no JSON", "x", 0), "source"),
        (httpx.TooManyRedirects("many"), "source"),
        (ExceptionGroup("both", [TransientError("HTTP 500"), KeyError("x")]), "source"),
        (ExceptionGroup("both", [KeyError("x"), TransientError("HTTP 500")]), "scanner"),
        (ConfigError("no key"), "scanner"),
        (CircuitOpen("open"), "scanner"),
        (InvalidCandidate("no ticker"), "scanner"),
        (ScanTimeout("timeout", by_clock=True), "scanner"),
        (urllib.error.URLError("unknown url type"), "scanner"),
        (httpx.UnsupportedProtocol("ftp"), "scanner"),
        (FileNotFoundError(2, "no such file"), "scanner"),
        (KeyError("close"), "scanner"),
        (Odd(), "scanner"),
        (SystemExit(1), "scanner"),
    ],
    ids=repr,
)
def test_whose_fault_it_is(error: BaseException, expected: str) -> None:
    assert blame_of(error) == expected


def caused(error: BaseException, cause: BaseException | None = None, context: BaseException | None = None) -> Any:
    error.__cause__, error.__context__ = cause, context
    return error


FULL, DENIED = OSError(errno.EMFILE, "Too many open files"), OSError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, ""), "descriptors"),
        (OSError(errno.ENFILE, ""), "descriptors"),
        (OSError(errno.ENETDOWN, ""), "network"),
        (OSError(errno.ENETUNREACH, ""), "network"),
        (OSError(errno.ENOSPC, ""), "disk"),
        (OSError(errno.ENOMEM, ""), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (socket.gaierror(socket.EAI_AGAIN, ""), "names"),
        (socket.gaierror(socket.EAI_NONAME, ""), "names"),
        (caused(ValueError(), cause=FULL), "descriptors"),
        (caused(ValueError(), context=FULL), "descriptors"),
        (caused(KeyError(), context=caused(ValueError(), cause=FULL)), "descriptors"),
        (urllib.error.URLError(FULL), "descriptors"),
        (urllib.error.URLError(caused(ValueError(), context=FULL)), "descriptors"),
        (ValueError(FULL), "descriptors"),
        (ExceptionGroup("both", [FULL, FULL]), "descriptors"),
        (ExceptionGroup("both", [FULL, socket.gaierror(-3, "")]), "names"),
        (ExceptionGroup("both", [FULL, KeyError("x")]), None),
        (caused(DENIED, context=FULL), None),  # the first that speaks of the system decides
        (caused(ConnectionRefusedError(), context=OSError(errno.ENETUNREACH, "")), None),
        (caused(TimeoutError(), context=FULL), None),
        (caused(RetryAfter(5), context=FULL), None),
        (caused(ScanTimeout("timeout"), context=FULL), None),
        (caused(LimitExceeded("no turn"), context=FULL), None),
        (caused(ScanCancelled(), context=FULL), None),
        (caused(SystemExit(1), context=FULL), None),
        (ssl.SSLError(errno.EMFILE, "of another numbering"), None),
        (OSError("no number"), None),
        (RuntimeError("the feed can't start new thread pools"), None),
        (Odd(), None),
    ],
    ids=repr,
)
def test_what_this_machine_lacks(error: BaseException, expected: str | None) -> None:
    assert local_kind(error) == expected


def test_causes_that_lead_nowhere_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert local_kind(first) is None
    deep: BaseException = OSError(errno.EMFILE, "")
    for _ in range(100):
        deep = caused(ValueError(), cause=deep)
    assert local_kind(deep) is None


def test_a_foreign_class_that_raises_blames_nobody_else() -> None:
    class Hostile(Exception):
        @property
        def reason(self) -> Any:
            raise RuntimeError("no reason")

    assert (local_kind(Hostile()), blame_of(Hostile())) == (None, "scanner")
