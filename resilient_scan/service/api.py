"""The control endpoint's addresses, as an ASGI application. Knows starlette.

Whoever may reach the port may look; who wants to change something needs the token. Without one the addresses that
change something do not exist. What touches the runner runs on a thread: its store may take its time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from resilient_scan.errors import ConfigError, StoreError, is_number
from resilient_scan.service.auth import SIGNATURE, Doorkeeper
from resilient_scan.service.control import Control
from resilient_scan.service.openapi import document
from resilient_scan.service.page import HEADERS, page
from resilient_scan.service.requests import Fault, body_of, check_json, decoded, number_in

_log = logging.getLogger("resilient_scan")
YEAR = 366 * 86_400.0
LONGEST = 500  # characters of a reason
_SAFE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
Answer = Callable[[Request], Awaitable[Response]]


class Disable(msgspec.Struct, forbid_unknown_fields=True):
    """The body that takes a scanner out of service: why, and for how many seconds."""

    reason: str
    duration: float = 86_400.0


class Enable(msgspec.Struct, forbid_unknown_fields=True):
    """The body that brings one back: why."""

    reason: str


def application(control: Control, doorkeeper: Doorkeeper | None) -> Starlette:
    """Return the ASGI application.

    Args:
        control: what it asks and tells.
        doorkeeper: who knows the token; `None`: nothing can be changed.
    """
    desk = _Desk(control, doorkeeper)
    routes = [
        Route("/", desk.page),
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
    return Starlette(routes=routes, exception_handlers=handlers)


class _Desk:
    """One method for each address."""

    def __init__(self, control: Control, doorkeeper: Doorkeeper | None) -> None:
        self._control = control
        self._door = doorkeeper

    # to look at

    async def page(self, _request: Request) -> Response:
        rows = await _work(self._control.rows)
        text = page(rows, now=self._control.now(), blind=self._control.blind_since(), can_change=self._door is not None)
        return HTMLResponse(text, headers={**_SAFE, **HEADERS})

    async def metrics(self, request: Request) -> Response:
        content_type, text = await _work(self._control.metrics, request.headers.get("accept", ""))
        return Response(text, headers={**_SAFE, "Content-Type": content_type})

    async def healthz(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        why_not = await _work(self._control.why_not_ready)
        if why_not:
            raise Fault(503, "not_ready", why_not)
        return _json({"status": "ready"})

    async def openapi(self, _request: Request) -> Response:
        return _json(document(can_change=self._door is not None))

    async def audit(self, request: Request) -> Response:
        limit = number_in(request.query_params, "limit", 100, 1000)
        return _json({"entries": await _work(self._control.audit, limit)})

    async def scanners(self, _request: Request) -> Response:
        return _json({"scanners": await _work(self._control.rows)})

    async def scanner(self, request: Request) -> Response:
        return _json(await _work(self._control.details, request.path_params["name"]))

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
            self._control.refused(fault.status)
            raise
        return _json(await _work(self._control.alerts, said))

    async def _order(self, request: Request, order: Callable[..., dict[str, Any]], reason: str) -> Response:
        why = " ".join(reason.split())
        if not why or len(why) > LONGEST:
            raise Fault(422, "invalid", f"reason must say why, in 1 to {LONGEST} characters")
        return _json(await _work(order, request.path_params["name"], reason=why))

    async def _body(self, request: Request, *, signature: bool = False) -> bytes:
        """Return the body of a request that may change something."""
        door = self._door
        body = await body_of(request)
        headers = request.headers
        known = door is not None and (
            door.signed(headers, body, self._control.now())
            if signature and SIGNATURE in headers and "authorization" not in headers
            else door.knows(headers.get("authorization", ""))
        )
        if not known:
            raise Fault(401, "unauthorized", "the token is missing or wrong; send 'Authorization: Bearer TOKEN'")
        check_json(request)
        return body


async def _work(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call something of the runner on a thread; what it refuses becomes the answer."""
    try:
        return await run_in_threadpool(function, *arguments, **named)
    except StoreError as error:
        raise Fault(503, "store", f"{error}; try again") from None
    except LookupError as error:
        raise Fault(404, "unknown_scanner", str(error.args[0])) from None
    except ConfigError as error:
        raise Fault(422, "invalid", str(error)) from None


def _json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = msgspec.json.encode(data)
    return Response(body, status, {**_SAFE, **(headers or {}), "Content-Type": "application/json"})


def _problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": {"code": code, "message": message}}, status, headers)


async def _fault(_request: Request, fault: Fault) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if fault.status == 401 else None
    return _problem(fault.status, fault.code, fault.message, headers)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return _problem(405, "method", f"{request.method} is not possible here; use {allowed}", error.headers)
    return _problem(error.status_code, "not_found", "there is nothing at this address; see /openapi.json")


async def _bug(request: Request, _error: Exception) -> Response:
    _log.error("the control endpoint failed at %s %s", request.method, request.url.path)
    return _problem(500, "internal", "the service failed here, its log says more")
