"""A small HTTP client for scanners: it ends in time, speaks in exceptions and tells no secret.

The only file that knows httpx (extra `scanners`). What came back decides what a scanner raises:

    2xx, and what the caller accepts        Response
    403, 429, 503 with Retry-After          RetryAfter: wait this long
    408, 425, 429, 5xx, broken connections  TransientError: another attempt may help
    3xx, all other 4xx, an oversize body    PermanentError: another attempt cannot help

A request has one deadline from the first byte to the last: the client's timeout or the scan's remaining time,
whichever is shorter. httpx's own timeouts are per read, so a server that sends a byte now and then is never late
for them; here every read and write of the socket gets what is left until the deadline (`_Backend`).
"""

from __future__ import annotations

import json
import math
import os
import re
import ssl
import time
import urllib.request
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, quote_plus, urlencode, urlsplit, urlunsplit

import msgspec

from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError, PermanentError, RetryAfter, ScanError

if TYPE_CHECKING:
    import httpcore
    import httpx
else:
    try:
        import httpcore
        import httpx
    except ModuleNotFoundError:  # importing this file works without the extra; making a client says what is missing
        httpcore = SimpleNamespace(NetworkBackend=object, NetworkStream=object)
        httpx = SimpleNamespace(BaseTransport=object, SyncByteStream=object)

Hide = Callable[[str], str]

REDACTED: Final = "REDACTED"
_LONGEST_WAIT: Final = 366 * 86400.0
_SECRET = re.compile(
    r"api-?key|token|secret|passw(or)?d|crumb|auth|signature|cookie|session|credential|(^|-)(key|pwd|pass|sig)$"
)
_WAY_OUT: Final = {401: "check the key", 403: "check the key and what it may read", 429: "ask less often"}


class TransientError(ScanError):
    """The source did not answer, or not sensibly; another attempt may help: `Retry(on=(TransientError,))`."""


class Response(msgspec.Struct, frozen=True):
    """What a source answered.

    Attributes:
        url: where it came from, secrets redacted.
        status: the HTTP status.
        headers: by lower-case name.
        body: decoded from its content encoding, at most the client's `max_bytes`.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 are replaced."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Return the body parsed as JSON.

        Raises:
            TransientError: it is not JSON (an error page, a cut body).
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            kind = self.headers.get("content-type", "no content type")
            raise TransientError(
                f"{self.url}: answered {self.status} with {len(self.body)} bytes that are not JSON ({kind}); "
                "the source may be in trouble, or base_url is wrong"
            ) from None


class Client:
    """The way to one provider's HTTP API, shared by all threads; connections are kept open.

    Args:
        base_url: what every path is appended to, `http` or `https`.
        headers: sent with every request.
        timeout: seconds for one request from the first byte to the last; cut to the scan's remaining time.
        max_bytes: largest body accepted, after decoding.
        secrets: values never to be shown; those of headers and parameters with a telling name (`apikey`, `token`,
            `key`, `crumb`, `authorization`, ...) are known to be.

    Raises:
        ConfigError: httpx is not installed, or an argument is wrong.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        max_bytes: int = 16 * 2**20,
        secrets: Iterable[str] = (),
    ) -> None:
        if not hasattr(httpx, "Client"):
            raise ConfigError("HTTP needs httpx, which is not installed: pip install 'resilient-scan[scanners]'")
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ConfigError(f"timeout must be finite and > 0, got {timeout!r}")
        if not re.match(r"https?://[^/?#]", base_url) or not redact(base_url):
            raise ConfigError(f"base_url must begin with http:// or https:// and a host, got {redact(base_url)!r}")
        self._base = base_url.rstrip("/")
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._secrets = {*secrets, *_secret_values(self._headers.items()), urlsplit(base_url).password or ""}
        self._wires: dict[int, httpx.Client] = {}

    def get(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        context: ScanContext,
        accept: Collection[int] = (),
    ) -> Response:
        """Ask for `path`, and return the answer.

        Args:
            path: appended to `base_url`; quote what may hold `/`, `?` or `#`.
            params: the query: texts and numbers, by name.
            context: the scan's; the request ends with it.
            accept: statuses beside 2xx that the caller wants to read itself.

        Raises:
            RetryAfter, TransientError, PermanentError: as the table on top of this file says.
            ScanCancelled, LimitExceeded: the scan was over before the answer was whole, or before its turn came.
        """
        context.check()
        context.before_request()
        url = f"{self._base}/{path.lstrip('/')}" + (f"?{urlencode(params)}" if params else "")
        hide = self._hider(url)
        shown = hide(redact(url))
        limit = min(self._timeout, context.remaining())
        token = _left.set(_countdown(limit, context))
        try:
            with self._wire().stream("GET", url, timeout=limit) as answer:
                return self._judge(answer, shown, hide, context, accept)
        except _FAULTS as error:
            context.check()
            raise _fault(error, shown, hide, limit) from None
        finally:
            _left.reset(token)

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        while self._wires:
            self._wires.popitem()[1].close()

    def _wire(self) -> httpx.Client:
        # One per process: after a fork parent and child would read each other's answers from one socket. Two threads
        # that meet here may both open one; `setdefault` lets the first win, and the other is dropped unused.
        wire = self._wires.get(os.getpid())
        if wire is None:
            wire = httpx.Client(transport=_Transport(self._base), headers=self._headers, follow_redirects=False)
            weakref.finalize(self, wire.close)
        return self._wires.setdefault(os.getpid(), wire)

    def _judge(
        self, answer: httpx.Response, shown: str, hide: Hide, context: ScanContext, accept: Collection[int]
    ) -> Response:
        status = answer.status_code
        if answer.is_success or status in accept:
            return Response(shown, status, dict(answer.headers), self._read(answer, shown, context))
        said = f"{shown}: HTTP {status}{hide(_excerpt(answer))}"
        wait = _retry_after(answer.headers, context.now) if status in {403, 429, 503} else None
        if wait is not None:
            raise RetryAfter(wait, f"{said}; the source asks to wait {wait:g}s")
        if status >= 500 or status in {408, 425, 429}:
            raise TransientError(f"{said}; {_WAY_OUT.get(status, 'the source is in trouble, try again later')}")
        if answer.is_redirect:
            place = hide(redact(answer.headers.get("location", "nowhere")))
            raise PermanentError(f"{said}: moved to {place}; redirects are not followed, correct base_url")
        raise PermanentError(f"{said}; {_WAY_OUT.get(status, 'check the address and what was asked for')}")

    def _read(self, answer: httpx.Response, shown: str, context: ScanContext) -> bytes:
        body = bytearray()
        for chunk in answer.iter_bytes():
            context.check()
            body += chunk
            if len(body) > self._max_bytes:
                raise PermanentError(f"{shown}: the body is larger than {self._max_bytes} bytes; raise max_bytes")
        return bytes(body)

    def _hider(self, url: str) -> Hide:
        """Return a function that takes out of a text every secret that this request sent."""
        secrets = {*self._secrets, *_secret_values(parse_qsl(urlsplit(url).query))}
        forms = {form for secret in secrets if len(secret) >= 4 for form in (secret, quote(secret), quote_plus(secret))}
        pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)) or r"(?!)")
        return lambda text: pattern.sub(REDACTED, text)


def redact(url: str) -> str:
    """Return `url` without user, password and the values of telling query parameters; "" if it is not valid."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, REDACTED if _is_secret(name) else value) for name, value in pairs], safe=":,")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def _is_secret(name: str) -> bool:
    return _SECRET.search(name.lower().replace("_", "-")) is not None


def _secret_values(named: Iterable[tuple[str, str]]) -> set[str]:
    """Return the values under telling names, whole and without their scheme (`Bearer abc`: also `abc`)."""
    values = [value for name, value in named if _is_secret(name)]
    return {form for value in values for form in (value, *value.split()[-1:])}


def _fault(error: Exception, shown: str, hide: Hide, limit: float) -> ScanError:
    """Return what a scanner raises for an error of the network or of httpx."""
    if isinstance(error, httpx.TimeoutException | httpcore.TimeoutException):
        return TransientError(f"{shown}: no whole answer within {limit:.3g}s; try again later")
    said = f"{shown}: {type(error).__name__}: {hide(str(error)) or 'no details'}"
    if isinstance(error, httpx.InvalidURL | httpcore.LocalProtocolError):
        return PermanentError(f"{said}; check base_url, the path and the headers")
    return TransientError(f"{said}; the source is in trouble or cannot be reached, try again later")


def _excerpt(answer: httpx.Response) -> str:
    """Return how the body of an error begins, unless it is a page for people or does not come."""
    if "html" in answer.headers.get("content-type", ""):
        return ""
    try:
        text = next(answer.iter_bytes(800), b"").decode(errors="replace")
    except _FAULTS:
        return ""
    words = " ".join(text.split())
    return f" ({words[:200]})" if words and not words.startswith("<") else ""


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that `Retry-After` asks for, as a number or as a date (RFC 9110, 10.2.3), else `None`.

    A date is read against the server's own `Date`, so that a clock that is wrong on either side does no harm.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), _LONGEST_WAIT)
    until = _http_date(value)
    if until is None:
        return None
    since = _http_date(headers.get("date", "")) or now
    return min(max(0.0, (until - since).total_seconds()), _LONGEST_WAIT)


def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


# ------------------------------------------------------------------------------------------- one deadline per request

_left: ContextVar[Callable[[], float]] = ContextVar("left")  # seconds until the deadline of this thread's request


def _countdown(timeout: float, context: ScanContext) -> Callable[[], float]:
    ends = time.monotonic() + timeout
    return lambda: max(0.0, min(ends - time.monotonic(), context.remaining()))


def _cut(timeout: float | None) -> float:
    """Return the shorter of `timeout` and what is left; a socket takes 0 for "do not block", so it never gets that."""
    left = _left.get()()
    if left <= 0:
        raise httpcore.ReadTimeout("the request's time is over")
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
    """httpx's default transport, on connections of `_Backend`: it has no public door for that."""

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
            httpcore.Request(request.method, target, headers=request.headers.raw, extensions=request.extensions)
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


_FAULTS: tuple[type[Exception], ...] = ()
if hasattr(httpx, "Client"):
    _FAULTS = (
        httpx.HTTPError,
        httpx.InvalidURL,
        httpx.StreamError,
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    )
