"""The client: one deadline per request, the right exception for each failure, and no secret in any text."""

from __future__ import annotations

import math
import os
import re
import weakref
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from resilient_scan._text import Hide, hider, is_secret, know, redact, secret_values
from resilient_scan.context import ScanContext
from resilient_scan.errors import ConfigError, PermanentError, RetryAfter, ScanError
from resilient_scan.http.errors import (
    Answer,
    DeadlineExceeded,
    NetworkError,
    NotFound,
    RequestError,
    Response,
    TransientError,
    retry_after,
)
from resilient_scan.http.recording import Recorder, Replay, Request
from resilient_scan.http.wire import Wire, is_address, need_httpx, place_of, without_user

_GATEWAY: Final = {502, 503, 504}  # statuses of what stands before a service that is not there
_EXCERPT: Final = 8192  # bytes of an error's body that are looked at; a secret is found only if it is whole
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_ADVICE: Final = {
    401: "check the key",
    403: "check the key and what it may read",
    407: "the proxy wants a user and a password: add them to its address, in HTTP_PROXY or ALL_PROXY",
    429: "ask less often",
}


class Client:
    """A client for one provider's HTTP API, shared by all threads; it keeps connections open.

    Args:
        base_url: every path is appended to it; `http` or `https`.
        headers: sent with every request.
        timeout: seconds for one request from the first byte to the last, shared by all addresses of the host; cut to
            the scan's remaining time. Only the lookup of the host's name can take longer.
        max_bytes: largest body accepted, after decoding; a request takes little more memory than that.
        transport: an httpx transport that connects instead of ours, such as one that greets like a browser; or what
            makes one for each process: a function without arguments, or its name, `"package.module:factory"`. It takes
            care of proxies, certificates and content encodings itself; a slow body may take longer than `timeout` by
            the time of one read. A replay does without it.
        secrets: values that must never be shown. Those of headers and parameters with a telling name (`apikey`,
            `token`, `key`, `crumb`, `authorization`, ...) need not be listed.

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
        transport: Any = None,
        secrets: Iterable[str] = (),
    ) -> None:
        need_httpx()
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ConfigError(f"timeout must be finite and > 0, got {timeout!r}")
        if not is_address(base_url):
            raise ConfigError(
                "base_url must begin with http:// or https:// and a host, a port and a path may follow, no query, "
                f"got {redact(without_user(base_url))!r}"
            )
        self._base = base_url.rstrip("/")
        self._place = place_of(base_url)
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._transport = _factory(transport)
        self._secrets = {*secrets, *secret_values(self._headers.items()), *_secrets_of(base_url)}
        self._wires: dict[int, Wire] = {}

    def get(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        context: ScanContext,
        accept: Collection[int] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Request `path`, and return the answer.

        Args:
            path: appended to `base_url`; quote what may hold `/`, `?` or `#`.
            params: the query: texts and numbers, by name; a list repeats its name, and `None` is left out.
            context: of the scan that makes the request, which ends with it.
            accept: statuses besides 2xx that the caller wants to read itself.
            headers: in addition to the client's own.

        Raises:
            RetryAfter, TransientError, PermanentError, NotFound: as the table of `resilient_scan.http` says.
            ScanCancelled, LimitExceeded: the scan ended before the answer was whole, or before its turn came.
        """
        return self._send(Request("GET", self._url(path, params), None), headers or {}, context, accept)

    def post(
        self,
        path: str,
        form: Mapping[str, Any],
        *,
        context: ScanContext,
        accept: Collection[int] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a form to `path`, and return the answer; everything else is as in `get`."""
        own = {name.lower(): value for name, value in (headers or {}).items()}  # in any case of letters
        sent = {"content-type": "application/x-www-form-urlencoded", **own}
        return self._send(Request("POST", self._url(path, None), _query(form)), sent, context, accept)

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        while self._wires:
            self._wires.popitem()[1].close()

    def _url(self, path: str, params: Mapping[str, Any] | None) -> str:
        url, query = f"{self._base}/{path.lstrip('/')}", _query(params or {})
        return f"{url}{'&' if '?' in url else '?'}{query}" if query else url

    def _send(
        self, request: Request, headers: Mapping[str, str], context: ScanContext, accept: Collection[int]
    ) -> Response:
        context.check()
        if not isinstance(context.traffic, Replay):  # a replay calls no provider, and needs no quota
            context.before_request()
        sent = [*headers.items(), *parse_qsl(urlsplit(request.url).query), *parse_qsl(request.body or "")]
        hide = hider({*self._secrets, *secret_values(sent)})

        def exchange() -> Response:
            return self._exchange(request, headers, hide, context, accept)

        return exchange() if isinstance(context.traffic, Replay) else context.reach(self._place, exchange)

    def _exchange(
        self, request: Request, headers: Mapping[str, str], hide: Hide, context: ScanContext, accept: Collection[int]
    ) -> Response:
        shown = hide(redact(request.url))
        limit = min(self._timeout, context.remaining())
        try:
            with self._answer(request, headers, hide, limit, context, accept) as answer:
                return self._judge(answer, shown, hide, context, accept)
        except NetworkError as error:
            context.check()
            raise self._raised_for(error, shown, hide, limit) from None

    @contextmanager
    def _answer(
        self,
        request: Request,
        headers: Mapping[str, str],
        hide: Hide,
        limit: float,
        context: ScanContext,
        accept: Collection[int],
    ) -> Iterator[Answer]:
        """Yield the source's answer, or a recorded one instead of it; let a recorder keep it, if there is one."""
        traffic = context.traffic
        if isinstance(traffic, Replay):
            yield traffic.answer(request.without_secrets(hide), context.scanner)
            return
        form = None if request.body is None else request.body.encode()
        sending = self._wire().send(
            request.method, request.url, headers, form, timeout=limit, context=context, hide=hide
        )
        with sending as answer:
            if isinstance(traffic, Recorder):
                # Of an error no more is read than without a recorder: a body that breaks off must not hide the status.
                wanted = _is_wanted(answer.status, accept)
                body = self._read(answer, hide(redact(request.url)), context) if wanted else _beginning(answer)
                traffic.keep(request.without_secrets(hide), answer, body, hide, context)
                yield Answer(answer.status, answer.headers, iter([body]))
            else:
                yield answer

    def _wire(self) -> Wire:
        # One per process: after a fork, parent and child would read each other's answers from one socket. Two threads
        # that meet here may both make one. `setdefault` is atomic, so both get the first; the other is never used.
        wire = self._wires.get(os.getpid())
        if wire is None:
            wire = Wire(self._base, self._headers, None if self._transport is None else _made(self._transport))
            weakref.finalize(self, wire.close)
        return self._wires.setdefault(os.getpid(), wire)

    def _judge(self, answer: Answer, shown: str, hide: Hide, context: ScanContext, accept: Collection[int]) -> Response:
        status = answer.status
        if _is_wanted(status, accept):
            context.answered = True
            return Response(shown, status, answer.headers, self._read(answer, shown, context))
        error = self._refusal(answer, shown, hide, context)
        if status in _GATEWAY:
            error.provider = self._place
        else:
            context.answered = True
        raise error

    def _refusal(self, answer: Answer, shown: str, hide: Hide, context: ScanContext) -> ScanError:
        """Return the exception for an answer that is none of those that are wanted."""
        status = answer.status
        message = f"{shown}: HTTP {status}{_excerpt(answer, hide)}"
        wait = retry_after(answer.headers, context.now) if status in {403, 429, 503} else None
        if wait is not None:
            return RetryAfter(wait, f"{message}; the source asks to wait {wait:g}s")
        if status >= 500 or status in {408, 425, 429}:
            return TransientError(f"{message}; {_ADVICE.get(status, 'the source is in trouble, try again later')}")
        if status in _MOVED and (target := answer.headers.get("location")):
            place = hide(redact(target))
            return PermanentError(f"{message}: moved to {place}; redirects are not followed, correct base_url")
        if status == 304:
            return PermanentError(
                f"{message}: not modified, although nothing older was named; a cache on the way is wrong"
            )
        kind = NotFound if status in {404, 410} else PermanentError
        return kind(f"{message}; {_ADVICE.get(status, 'check the address and what was asked for')}")

    def _raised_for(self, error: NetworkError, shown: str, hide: Hide, limit: float) -> ScanError:
        """Return the exception that the scanner gets for a failure of the network."""
        message = hide(str(error))
        if isinstance(error, DeadlineExceeded):
            message = f"no whole answer within {limit:.3g}s" + (f": {message}" if message else "")
        kind = PermanentError if isinstance(error, RequestError) else TransientError
        raised = kind(f"{shown}: {message}; {error.advice}")
        if error.of_way:
            raised.provider = self._place
        return raised

    def _read(self, answer: Answer, shown: str, context: ScanContext) -> bytes:
        body = BytesIO()  # hands its buffer over as it is; `bytes(bytearray)` would hold the body twice
        for piece in answer.pieces:
            context.check()
            body.write(piece)
            if body.tell() > self._max_bytes:
                raise PermanentError(f"{shown}: the body is larger than {self._max_bytes} bytes; raise max_bytes")
        return body.getvalue()


def _factory(transport: Any) -> Callable[[], Any] | None:
    """Return what makes a transport; a transport itself is the same for all processes."""
    if transport is None or hasattr(transport, "handle_request"):
        return None if transport is None else lambda: transport
    made = _imported(transport) if isinstance(transport, str) else transport
    if not callable(made):
        raise ConfigError(f"transport must be an httpx transport, a function that makes one, or its name, got {made!r}")
    factory: Callable[[], Any] = made
    return factory


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        if not (module and attribute):
            raise ImportError("it is not of the form 'package.module:factory'")
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"transport {name!r} cannot be imported: {error}") from None


def _made(factory: Callable[[], Any]) -> Any:
    made = factory()
    if not hasattr(made, "handle_request"):
        raise ConfigError(f"transport: an httpx transport has handle_request, and {made!r:.100} has not")
    return made


def _query(params: Mapping[str, Any]) -> str:
    """Return parameters as they are sent in an address or a form, without those that are `None`."""
    lists = ((name, value if isinstance(value, list | tuple) else [value]) for name, value in params.items())
    return urlencode([(name, value) for name, values in lists for value in values if value is not None])


def _is_wanted(status: int, accept: Collection[int]) -> bool:
    return 200 <= status < 300 or status in accept


def _beginning(answer: Answer) -> bytes:
    """Return the beginning of an error's body, or nothing if it does not come."""
    body = b""
    try:
        for piece in answer.pieces:
            body += piece
            if len(body) >= _EXCERPT:
                break
    except NetworkError:
        return b""
    return body[:_EXCERPT]


def _excerpt(answer: Answer, hide: Hide) -> str:
    """Return what an error says in one short line, unless it is a page for people."""
    if "html" in answer.headers.get("content-type", ""):
        return ""
    words = " ".join(hide(_beginning(answer).decode(errors="replace")).split())  # hidden first: a cut could halve a key
    return f" ({words[:200]})" if words and not words.startswith("<") else ""


def _secrets_of(base_url: str) -> set[str]:
    """Return what an address logs in with, also as it is sent (`Authorization: Basic ...`) and echoed."""
    parts = urlsplit(base_url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user and not password:
        return set()
    sent = b64encode(f"{user}:{password}".encode(errors="replace")).decode()
    return {sent, password or user}  # a key may be sent as a user without a password


def credential(context: ScanContext, setting: str, variable: str) -> str:
    """Return a key that a source requires: the scanner's setting, else the environment variable.

    Declare it too, `@scanner(needs={setting: variable})`: then a scanner without its key is listed as not configured.

    Args:
        context: the scan's.
        setting: a key of the scanner's settings.
        variable: name of an environment variable.

    Raises:
        ConfigError: neither has it; the message says what to set.
    """
    value = context.settings.get(setting) or os.environ.get(variable, "")
    if isinstance(value, str) and re.search(r"[\ud800-\udfff]", value):  # how Python keeps bytes that are not text
        raise ConfigError(f"{context.scanner}: the environment variable {variable} holds bytes that are not UTF-8")
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{context.scanner} needs {setting}: set scanners.{context.scanner}.settings.{setting} "
            f"or the environment variable {variable}"
        )
    if is_secret(setting):
        know((value.strip(),))
    return value.strip()
