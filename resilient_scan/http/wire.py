"""The connections: the only file that knows httpx (extra `scanners`).

A request has one deadline from the first byte to the last. httpx's own timeouts are per read, so a server that sends a
byte now and then never exceeds them; here every read and write of the socket gets what is left until the deadline
(`_Backend`).
"""

from __future__ import annotations

import logging
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resilient_scan._text import Hide, redact
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError
from resilient_scan.http.errors import Answer, DeadlineExceeded, NetworkError, RequestError

if TYPE_CHECKING:
    import httpcore
    import httpx
else:
    try:
        import httpcore
        import httpx
    except ModuleNotFoundError:  # importing this file works without the extra; creating a client says what is missing
        httpcore = SimpleNamespace(NetworkBackend=object, NetworkStream=object)
        httpx = SimpleNamespace(BaseTransport=object, SyncByteStream=object)


class Wire:
    """Connections to one host, kept open and shared by all threads of one process.

    Args:
        base_url: `http` or `https`, and the host.
        headers: sent with every request.

    Raises:
        ConfigError: httpx is not installed, or the environment's proxy is of a kind that is not supported.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        need_httpx()
        # No cookie is kept: nobody would know that it is sent, what it changes, and that it is a secret.
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = httpx.Client(
            transport=_Transport(base_url), headers=_raw(headers), cookies=no_cookies, follow_redirects=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        timeout: float,
        context: ScanContext,
        hide: Hide,
    ) -> Iterator[Answer]:
        """Send a request and yield the answer while it comes in.

        Args:
            method: such as `GET`.
            url: the whole address.
            headers: in addition to those of every request.
            body: the request's body, or `None`.
            timeout: seconds for the whole exchange; cut to the scan's remaining time.
            context: the scan's.
            hide: takes the secrets out of what is logged.

        Raises:
            NetworkError: the network or the other side failed, here or while the `with` block reads.
        """
        token, hiding = _left.set(_countdown(timeout, context)), _hide.set(hide)
        try:
            with self._client.stream(method, url, headers=_raw(headers), content=body, timeout=timeout) as answer:
                yield Answer(answer.status_code, dict(answer.headers), _pieces(answer))
        except _NETWORK_ERRORS as error:
            raise _network_error(error) from None
        finally:
            _left.reset(token)
            _hide.reset(hiding)


def _raw(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return headers as they are sent; httpx itself fails on a name with an accent in a User-Agent."""
    return {name.encode(): value.encode() for name, value in headers.items()}


def _pieces(answer: httpx.Response) -> Iterator[bytes]:
    try:
        yield from answer.iter_bytes()
    except _NETWORK_ERRORS as error:
        raise _network_error(error) from None


def need_httpx() -> None:
    """Raise `ConfigError` where httpx is not installed."""
    if not hasattr(httpx, "Client"):
        raise ConfigError("HTTP needs httpx, which is not installed: pip install 'resilient-scan[scanners]'")


def _network_error(error: Exception) -> NetworkError:
    message = f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__}: no details"
    if isinstance(error, httpx.TimeoutException | httpcore.TimeoutException):
        return DeadlineExceeded(message)
    unsendable = isinstance(error, httpx.InvalidURL | httpcore.LocalProtocolError)
    return RequestError(message) if unsendable else NetworkError(message)


_left: ContextVar[Callable[[], float]] = ContextVar("left")  # seconds until the deadline of the request under way
_hide: ContextVar[Hide] = ContextVar("hide")  # takes that request's secrets out of a text


def _countdown(timeout: float, context: ScanContext) -> Callable[[], float]:
    ends = time.monotonic() + timeout
    return lambda: max(0.0, min(ends - time.monotonic(), context.remaining()))


def _cut(timeout: float | None) -> float:
    """Return the shorter of `timeout` and what is left, never 0: a socket would take that for "do not block"."""
    left = _left.get()()
    if left <= 0:
        raise httpcore.ReadTimeout("the request's time is up")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection whose every read and write ends at the deadline of the request that uses it."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _cut(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _cut(timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _cut(timeout)))


class _Backend(httpcore.NetworkBackend):
    """Opens connections that keep to the deadline."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *arguments: Any, **options: Any
    ) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_tcp(host, port, _cut(timeout), *arguments, **options))


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _Transport(httpx.BaseTransport):
    """httpx's default transport on connections of `_Backend`, which httpx has no public option for."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        options: dict[str, Any] = {"network_backend": _Backend(), "max_connections": 32, "keepalive_expiry": 30.0}
        if parts.scheme == "https":
            options["ssl_context"] = httpx.create_ssl_context()
        proxy = _proxy(parts.scheme, parts.hostname or "")
        self._pool: httpcore.ConnectionPool
        if proxy is None:
            self._pool = httpcore.ConnectionPool(**options)
        else:
            self._pool = httpcore.HTTPProxy(str(proxy.url), proxy_auth=proxy.raw_auth, **options)

    def close(self) -> None:
        self._pool.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        answer = self._pool.handle_request(
            httpcore.Request(
                request.method,
                target,
                headers=request.headers.raw,
                content=request.read(),
                extensions=request.extensions,
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))


def _proxy(scheme: str, host: str) -> httpx.Proxy | None:
    """Return the environment's proxy for `host` (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), if it names one."""
    proxies = urllib.request.getproxies()
    url = proxies.get(scheme) or proxies.get("all")
    if not url or urllib.request.proxy_bypass(host):
        return None
    if url.startswith("socks"):
        raise ConfigError(f"the proxy {redact(url)} is not supported; name an HTTP proxy, or put {host} in NO_PROXY")
    return httpx.Proxy(url if "://" in url else f"http://{url}")


_NETWORK_ERRORS: tuple[type[Exception], ...] = ()
if hasattr(httpx, "Client"):
    _NETWORK_ERRORS = (
        httpx.HTTPError,
        httpx.InvalidURL,
        httpx.StreamError,
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    )


def _without_secrets(record: logging.LogRecord) -> bool:
    """Take the secrets out of what httpx and httpcore log about our requests, and about nobody else's.

    httpx logs every address at INFO, keys included; httpcore logs every answer's headers at DEBUG, cookies included.
    """
    if _left.get(None) is None:
        return True
    if record.name != "httpx":
        return "headers.complete" not in record.getMessage()
    if isinstance(record.args, tuple):
        hide = _hide.get()
        record.args = tuple(hide(redact(str(part))) if isinstance(part, httpx.URL) else part for part in record.args)
    return True


if hasattr(httpx, "Client"):
    for _name in ("httpx", "httpcore.http11"):
        logging.getLogger(_name).addFilter(_without_secrets)
