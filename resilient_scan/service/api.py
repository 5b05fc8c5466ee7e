"""The control endpoint's addresses, as an ASGI application. Knows starlette.

Whoever may reach the port may look; who wants to change something needs the token. Without one the addresses that
change something do not exist. What touches the runner runs on a thread: its store may take its time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from resilient_scan._msgspec import ready
from resilient_scan.errors import ConfigError, StoreError, is_number
from resilient_scan.quarantine import MAX_TEXT
from resilient_scan.service.auth import SIGNATURE, TIMESTAMP, Doorkeeper
from resilient_scan.service.bounds import JSON, SAFE, Bounds, problem, readable
from resilient_scan.service.control import Control, NoScanner
from resilient_scan.service.openapi import document
from resilient_scan.service.page import HEADERS, page, scanner_page

# What comes in over HTTP, read within bounds: size, time, type, credentials; what is wrong becomes one sentence.

T = TypeVar("T")


class Fault(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        code: the kind of error, for programs.
        message: one sentence for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


async def body_of(request: Request, bounds: Bounds) -> bytes:
    """Return a request's body.

    Raises:
        Fault: it is too large, or did not come in time.
    """
    try:
        async with asyncio.timeout(bounds.body):
            return await _read(request, bounds)
    except TimeoutError:
        raise Fault(408, "too_slow", f"the body did not come within {bounds.body:g} s; send it in one go") from None
    except ClientDisconnect:
        raise Fault(400, "disconnected", "the sender went away before the body had come") from None


async def _read(request: Request, bounds: Bounds) -> bytes:
    """Read a body; of one that is too large go on for a while, and keep nothing."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= bounds.size:
            chunks.append(chunk)
        elif size > bounds.size + bounds.discard:
            break
        else:
            chunks.clear()
    if size > bounds.size:
        raise Fault(413, "too_large", f"the body is larger than {bounds.size} bytes; send less at a time")
    return b"".join(chunks)


def check_once(request: Request, names: Sequence[str]) -> None:
    """Refuse a request with one of these headers twice: a proxy may have looked at the other one.

    Raises:
        Fault: it has.
    """
    for name in names:
        if len(request.headers.getlist(name)) > 1:
            raise Fault(400, "malformed", f"the header {name} came more than once; send it once")


def check_json(request: Request) -> None:
    """Refuse what does not call itself plain JSON.

    Raises:
        Fault: the content type is another, or none, or the body is encoded.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Fault(415, "encoded", "the body must not be compressed; send it without 'Content-Encoding'")
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in {"", "charset=utf-8"}:
        raise Fault(415, "not_json", "the body must be JSON; send it with 'Content-Type: application/json'")


def decoded(body: bytes, kind: type[T]) -> T:
    """Return what a JSON body says.

    Raises:
        Fault: it is no JSON (400), or says something else (422).
    """
    try:
        return msgspec.convert(msgspec.json.decode(body), ready(kind))
    except msgspec.ValidationError as error:
        raise Fault(422, "invalid", f"the body says something wrong: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fault(400, "malformed", f"the body is not valid JSON: {error}") from None


def number_in(query: Any, name: str, default: int, most: int) -> int:
    """Return a whole number from 1 to `most` of the query.

    Raises:
        Fault: it is none.
    """
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise Fault(422, "invalid", f"{name} must be a whole number from 1 to {most}, got {text[:40]!r}")
    return int(text)


_log = logging.getLogger("resilient_scan")
YEAR = 366 * 86_400.0
_ONCE = ("authorization", "content-type", "content-encoding", SIGNATURE, TIMESTAMP)
_OVER = {408, 413}  # the rest of such a body is not read, so the connection cannot go on


class Disable(msgspec.Struct, forbid_unknown_fields=True):
    """The body that takes a scanner out of service: why, and for how many seconds."""

    reason: str
    duration: float = 86_400.0


class Enable(msgspec.Struct, forbid_unknown_fields=True):
    """The body that brings one back: why."""

    reason: str


def application(control: Control, doorkeeper: Doorkeeper | None, pool: Executor, bounds: Bounds) -> Starlette:
    """Return the ASGI application.

    Args:
        control: what it asks and tells.
        doorkeeper: who knows the token; `None`: nothing can be changed.
        pool: where it does so: it may have to wait for a store.
        bounds: what a client may take.
    """
    desk = _Desk(control, doorkeeper, pool, bounds)
    routes = [
        Route("/", desk.page),
        Route("/page/{name}", desk.scanner_page),
        Route("/metrics", desk.metrics),
        Route("/healthz", desk.healthz),
        Route("/readyz", desk.readyz),
        Route("/openapi.json", desk.openapi),
        Route("/audit", desk.audit),
        Route("/scanners", desk.scanners),
        Route("/scanners/{name}", desk.scanner),
    ]
    if doorkeeper is not None:
        routes += [
            Route("/scanners/{name}/disable", desk.disable, methods=["POST"]),
            Route("/scanners/{name}/enable", desk.enable, methods=["POST"]),
            Route("/alerts", desk.alerts, methods=["POST"]),
        ]
    handlers: Mapping[Any, Any] = {Fault: _fault, HTTPException: _http, Exception: _bug}
    made = Starlette(routes=routes, exception_handlers=handlers)
    made.router.redirect_slashes = False  # it would send people wherever a request's Host header says
    return made


class _Desk:
    """One method for each address."""

    def __init__(self, control: Control, doorkeeper: Doorkeeper | None, pool: Executor, bounds: Bounds) -> None:
        self._control = control
        self._door = doorkeeper
        self._pool = pool
        self._bounds = bounds

    # to look at

    async def page(self, _request: Request) -> Response:
        rows = await self._work(self._control.rows)
        text = page(rows, now=self._control.now(), blind=self._control.blind_since(), can_change=self._door is not None)
        return HTMLResponse(text, headers={**SAFE, **HEADERS})

    async def scanner_page(self, request: Request) -> Response:
        name = request.path_params["name"]
        text, alerts = await self._work(self._control.explained, name)
        return HTMLResponse(scanner_page(name, text, alerts, now=self._control.now()), headers={**SAFE, **HEADERS})

    async def metrics(self, request: Request) -> Response:
        content_type, text = await self._work(self._control.metrics, request.headers.get("accept", ""))
        return Response(text, headers={**SAFE, "Content-Type": content_type})

    async def healthz(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        why_not = await self._work(self._control.why_not_ready)
        if why_not:
            raise Fault(503, "not_ready", why_not)
        return _json({"status": "ready"})

    async def openapi(self, _request: Request) -> Response:
        return _json(document(can_change=self._door is not None))

    async def audit(self, request: Request) -> Response:
        limit = number_in(request.query_params, "limit", 100, 1000)
        return _json({"entries": await self._work(self._control.audit, limit)})

    async def scanners(self, _request: Request) -> Response:
        rows = await self._work(self._control.rows)
        return _json({"scanners": rows, "blind_since": self._control.blind_since()})

    async def scanner(self, request: Request) -> Response:
        return _json(await self._work(self._control.details, request.path_params["name"]))

    # to change

    async def disable(self, request: Request) -> Response:
        said = decoded(await self._body(request), Disable)
        if not is_number(said.duration, 0, YEAR) or said.duration == 0:
            raise Fault(422, "invalid", f"duration must be seconds > 0 and at most {YEAR:g}, got {said.duration!r}")
        return await self._order(request, partial(self._control.disable, duration=said.duration), said.reason)

    async def enable(self, request: Request) -> Response:
        said = decoded(await self._body(request), Enable)
        return await self._order(request, self._control.enable, said.reason)

    async def alerts(self, request: Request) -> Response:
        try:
            said = decoded(await self._body(request, signature=True), object)
        except Fault as fault:
            await self._work(self._control.turned_away, fault.status)
            raise
        return _json(await self._work(self._control.alerts, said))

    async def _order(self, request: Request, order: Callable[..., dict[str, Any]], reason: str) -> Response:
        if not reason.strip() or len(reason) > MAX_TEXT:
            raise Fault(422, "invalid", f"reason must say why, in 1 to {MAX_TEXT} characters")
        user = "" if self._door is None else self._door.user(request.headers.get("authorization", ""))
        name, why = request.path_params["name"], readable(reason)
        return _json(await self._work(order, name, reason=why, user=user))

    async def _body(self, request: Request, *, signature: bool = False) -> bytes:
        """Return the body of a request that may change something."""
        door = self._door
        body = await body_of(request, self._bounds)
        headers = request.headers
        check_once(request, _ONCE)
        known = door is not None and (
            door.signed(headers, body, self._control.now())
            if signature and SIGNATURE in headers and "authorization" not in headers
            else door.knows(headers.get("authorization", ""))
        )
        if not known:
            raise Fault(401, "unauthorized", "the token is missing or wrong; send 'Authorization: Bearer TOKEN'")
        check_json(request)
        return body

    async def _work(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call something of the runner on a thread; what it refuses becomes the answer."""
        call = partial(function, *arguments, **named)
        try:
            async with asyncio.timeout(self._bounds.work):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError:
            raise Fault(
                503, "too_slow", "the runner's store takes too long; try again, and look what was done"
            ) from None
        except StoreError as error:
            raise Fault(503, "store", f"{error}; try again") from None
        except NoScanner as error:
            raise Fault(404, "unknown_scanner", str(error)) from None
        except ConfigError as error:
            raise Fault(422, "invalid", str(error)) from None


def _json(data: Any) -> Response:
    return Response(msgspec.json.encode(data), headers={**SAFE, "Content-Type": JSON})


def _problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(problem(code, message), status, {**SAFE, **(headers or {}), "Content-Type": JSON})


async def _fault(_request: Request, fault: Fault) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if fault.status == 401 else {}
    if fault.status in _OVER:
        headers["Connection"] = "close"
    return _problem(fault.status, fault.code, fault.message, headers)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return _problem(405, "method", f"{request.method} is not possible here; use {allowed}", error.headers)
    return _problem(error.status_code, "not_found", "there is nothing at this address; see /openapi.json")


async def _bug(request: Request, _error: Exception) -> Response:
    _log.error("the control endpoint failed at %s %s", request.method, request.url.path)
    return _problem(500, "internal", "the service failed here, its log says more")
