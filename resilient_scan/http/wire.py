"""The connections: the only file that knows httpx (extra `scanners`).

A request has one deadline from the first byte to the last. httpx's own timeouts are per read, so a server that sends a
byte now and then never exceeds them; here every connection, read and write of the socket gets what is left until the
deadline (`_Backend`).

One step cannot be interrupted: looking up the host's name. The system's resolver has a time limit of its own (with
glibc 5 s for each server and attempt, 10 s and more in all: `options timeout:1 attempts:2` in resolv.conf), and what
comes later than the deadline is not used. A scan is handed over at its timeout all the same; its thread is abandoned.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from resilient_scan._text import Hide, redact, shortened
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError
from resilient_scan.http.encoding import ACCEPTED, decoded
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
        foreign: what to connect with instead; it knows proxies, certificates and content encodings itself.

    Raises:
        ConfigError: httpx is not installed, or the environment's proxy or certificates cannot be used.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], foreign: httpx.BaseTransport | None = None) -> None:
        need_httpx()
        # No cookie is kept: nobody would know that it is sent, what it changes, and that it is a secret.
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        sent = httpx.Headers({} if foreign else {"Accept-Encoding": ACCEPTED})
        sent.update(_raw(headers))
        transport = foreign or _Transport(base_url)
        self._foreign = foreign is not None
        self._proxy = getattr(transport, "proxy", "") if foreign is None else ""
        self._client = httpx.Client(transport=transport, headers=sent, cookies=no_cookies, follow_redirects=False)

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
            with self._stream(method, url, headers, body, timeout) as answer:
                encoding = "" if self._foreign else answer.headers.get("content-encoding", "")
                yield Answer(answer.status_code, dict(answer.headers), decoded(self._pieces(answer), encoding))
        except _NETWORK_ERRORS as error:
            raise _network_error(error, self._proxy) from None
        finally:
            _left.reset(token)
            _hide.reset(hiding)

    @contextmanager
    def _stream(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> Iterator[httpx.Response]:
        request = self._client.build_request(method, url, headers=_raw(headers), content=body, timeout=timeout)
        try:
            answer = self._client.send(request, stream=True)
        except _NETWORK_ERRORS:
            raise
        except Exception as error:
            if not self._foreign:
                raise
            raise _foreign_error(error) from error
        try:
            yield answer
        finally:
            answer.close()

    def _pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        try:
            yield from self._foreign_pieces(answer) if self._foreign else answer.iter_raw()
        except _NETWORK_ERRORS as error:
            raise _network_error(error, self._proxy) from None

    def _foreign_pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        """Yield what a foreign transport reads, until the request's deadline.

        It has decoded the body, or httpx does so here. It does not know our deadline: its timeout is for each read, so
        that a read which has begun may end later by as much.
        """
        left = _left.get()
        try:
            for piece in answer.iter_bytes():
                if left() <= 0:
                    raise DeadlineExceeded("")
                yield piece
        except NetworkError:
            raise
        except _NETWORK_ERRORS:
            raise
        except Exception as error:
            raise _foreign_error(error) from error


def _raw(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return headers as they are sent; httpx itself fails on a name with an accent in a User-Agent."""
    return {name.encode(): value.encode() for name, value in headers.items()}


def need_httpx() -> None:
    """Raise `ConfigError` where httpx is not installed."""
    if not hasattr(httpx, "Client"):
        raise ConfigError("HTTP needs httpx, which is not installed: pip install 'resilient-scan[scanners]'")


def _network_error(error: Exception, proxy: str) -> NetworkError:
    """Return our own error for one of httpx's and httpcore's; it names the proxy, if there is one."""
    through = f"through the proxy {proxy}" if proxy else ""
    if isinstance(error, httpx.TimeoutException | httpcore.TimeoutException):
        return DeadlineExceeded(through)
    if isinstance(error, httpcore.ProxyError):
        return _refusal(str(error), proxy)
    message = f"{type(error).__name__}: {str(error) or 'no details'}"
    if isinstance(error, httpx.InvalidURL | httpcore.LocalProtocolError):
        return RequestError(message)
    return NetworkError(f"{message} {through}".rstrip(), of_way=isinstance(error, _WAY_ERRORS))


def _foreign_error(error: Exception) -> NetworkError:
    return NetworkError(
        f"the transport failed: {type(error).__qualname__}: {shortened(str(error), 200) or 'no details'}"
    )


def _refusal(answer: str, proxy: str) -> NetworkError:
    """Return the error for a proxy that opens no tunnel; `answer` is its status and reason."""
    answer = shortened(answer, 100)
    if answer.startswith("4") and answer[:3] not in {"408", "425", "429"}:
        return RequestError(
            f"the proxy {proxy} refuses: {answer}", "check its address, user and password, and NO_PROXY"
        )
    return NetworkError(f"the proxy {proxy} opens no connection to the source: {answer}", of_way=True)


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


_WRITTEN: Final = 16 * 1024  # bytes; the system takes as many at once, or waits until it can


class _Stream(httpcore.NetworkStream):
    """A connection whose every read and write ends at the deadline of the request that uses it.

    Attributes:
        heard: whether anything was read since the last write.
    """

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self.heard = False

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.heard = True
        return self._stream.read(max_bytes, _cut(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.heard = False
        # httpcore gives each `send` the whole timeout, and a peer that reads slowly takes a large body in many of them.
        for start in range(0, len(buffer), _WRITTEN):
            self._stream.write(buffer[start : start + _WRITTEN], _cut(timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            return _Stream(self._stream.start_tls(ssl_context, server_hostname, _cut(timeout)))
        except httpcore.ConnectError as error:
            reason = error.__cause__
            if not isinstance(reason, ssl.SSLCertVerificationError):
                raise
            raise RequestError(
                f"the certificate of {server_hostname} is rejected: {reason.verify_message}",
                "correct the address, or add who issued it to the file that SSL_CERT_FILE names",
                of_way=True,
            ) from None
        except BaseException:
            self.close()  # httpcore closes it only if the handshake had begun
            raise


class _Backend(httpcore.NetworkBackend):
    """Opens connections that keep to the deadline.

    A host with several addresses gets its time once, not once for each: what is left is shared equally by the address
    whose turn it is and those after it. So one dead address of two costs half of the time, and the other has its turn.

    Args:
        proxy: whom it connects to instead of the source, or an empty text.
    """

    def __init__(self, proxy: str) -> None:
        self._proxy = proxy
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *arguments: Any, **options: Any
    ) -> httpcore.NetworkStream:
        # What is raised here is ours: httpcore lets it through, and only here it is known that nobody else is to blame.
        peer = f"the proxy {self._proxy}" if self._proxy else host
        advice = _PROXY_ADVICE if self._proxy else ""
        addresses, reason = _addresses(host, port, peer, advice), ""
        last: BaseException | None = None  # what the system said
        for number, address in enumerate(addresses):
            share = _cut(timeout) / (len(addresses) - number)
            try:
                return _Stream(self._backend.connect_tcp(address, port, share, *arguments, **options))
            except httpcore.ConnectTimeout:
                reason, last = "", None
            except httpcore.ConnectError as error:
                reason, last = str(error) or "no details", error.__cause__
        where = f" at any of its {len(addresses)} addresses" if len(addresses) > 1 else ""
        message = f"no connection to {peer}{where}"
        if reason:
            try:
                raise NetworkError(f"{message}: {reason}", advice, of_way=True, reason=last)
            finally:
                last = None  # or the exception, its traceback and this frame would keep each other alive until a gc
        raise DeadlineExceeded(message, of_way=True)


_PROXY_ADVICE: Final = "start it or correct the variable, or put the source's host in NO_PROXY"


def _addresses(host: str, port: int, peer: str, advice: str) -> list[str]:
    """Return the addresses that the name of `peer` stands for, in the system's order."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # such as a part of more than 63 letters
        raise RequestError(f"no host can have the name of {peer}") from None
    except OSError as error:
        reason = f"the name of {peer} cannot be resolved: {error.strerror}"
        raise NetworkError(reason, advice, of_way=True) from None
    # An address of one network interface (fe80::1%eth0) comes with the interface's number instead of its name.
    places = ((at[0], at[3] if len(at) == 4 else 0) for *_, at in found)
    return list(dict.fromkeys(f"{address}%{scope}" if scope else str(address) for address, scope in places))


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _Transport(httpx.BaseTransport):
    """httpx's default transport on connections of `_Backend`, which httpx has no public option for.

    Attributes:
        proxy: the proxy as it may be shown, and who named it; empty: there is none.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        proxy = _proxy(parts.scheme, parts.hostname or "", parts.port)
        self.proxy = "" if proxy is None else proxy[1]
        options: dict[str, Any] = {
            "network_backend": _Backend(self.proxy),
            "max_connections": 32,
            "keepalive_expiry": 30.0,
        }
        if parts.scheme == "https":
            options["ssl_context"] = _tls()
        self._pool: httpcore.ConnectionPool
        if proxy is None:
            self._pool = httpcore.ConnectionPool(**options)
        else:
            self._pool = httpcore.HTTPProxy(str(proxy[0].url), proxy_auth=proxy[0].raw_auth, **options)

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
        # A server may send two answers to one request, say an error page after the page. The second one waits in the
        # buffer until the connection is used again, and would be the answer to whatever is asked then.
        if not getattr(answer.extensions["network_stream"], "heard", True):  # httpcore wraps that of an upgrade
            answer.close()
            raise httpcore.RemoteProtocolError("the connection held an answer that nobody had asked for")
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))


def _proxy(scheme: str, host: str, port: int | None) -> tuple[httpx.Proxy, str] | None:
    """Return the proxy that the environment names for a host (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), and its name.

    Raises:
        ConfigError: it is not an HTTP proxy.
    """
    given = {name: url.strip() for name, url in urllib.request.getproxies().items()}
    name = next((name for name in (scheme, "all") if given.get(name)), None)
    if name is None or urllib.request.proxy_bypass(host if port is None else f"{host}:{port}"):
        return None
    url = given[name] if "://" in given[name] else f"http://{given[name]}"
    shown = f"{without_user(url)} (of {name.upper()}_PROXY)"
    try:
        if is_address(url):
            return httpx.Proxy(url), shown
    except (ValueError, httpx.InvalidURL):
        pass  # httpx has a stricter idea of an address; below we say how one looks
    raise ConfigError(
        f"the proxy {shown} is not supported; name an HTTP proxy, http://host:port, or put {host} in NO_PROXY"
    )


def is_address(url: str) -> bool:
    """Say whether this is `http` or `https`, a host, and no more than a port, a path and a user."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0
    return whole and not re.search(r"[?#\s]", url)


def place_of(url: str) -> str:
    """Return the host of an address, and its port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or {'https': 443}.get(parts.scheme, 80)}"


def without_user(url: str) -> str:
    """Return an address without user and password, even if it is not valid because of a mark in the password."""
    user, at, rest = url.rpartition("@")
    scheme, mark, _ = user.partition("://")
    return f"{scheme}{mark}{rest}" if at and mark else rest


def _tls() -> ssl.SSLContext:
    """Return the certificates that are trusted: the environment's, else those that come with certifi.

    Raises:
        ConfigError: a variable of the environment names what is not there, or cannot be used.
    """
    named = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)}
    for name, value in list(named.items())[:1]:  # the file wins, and then the directory is not looked at
        # The standard library would not say what is missing, and of a directory not even that.
        if not any(Path(path).exists() for path in (value.split(os.pathsep) if name == "SSL_CERT_DIR" else [value])):
            raise ConfigError(f"{name} names {value!r}, and there is no such file or directory")
    if os.environ.get("SSLKEYLOGFILE"):
        named["SSLKEYLOGFILE"] = os.environ["SSLKEYLOGFILE"]
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        values = ", ".join(f"{name}={path}" for name, path in named.items()) or "the certificates of certifi"
        raise ConfigError(f"TLS cannot be used with {values}: {error.strerror or error}") from None


_NETWORK_ERRORS: tuple[type[Exception], ...] = ()
_WAY_ERRORS: tuple[type[Exception], ...] = ()
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
    _WAY_ERRORS = (
        httpx.NetworkError,
        httpx.RemoteProtocolError,
        httpcore.NetworkError,
        httpcore.RemoteProtocolError,
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
