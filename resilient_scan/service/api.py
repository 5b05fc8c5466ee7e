"""The control endpoint's addresses, as an ASGI application. Knows starlette.

Who comes this far may look (`door`). Changing something takes the token; where no token is configured, the addresses
that change something do not exist. Calls into the runner are made on a thread, because its store may be slow.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from resilient_scan.errors import ConfigError, StoreError, is_number
from resilient_scan.quarantine import MAX_TEXT
from resilient_scan.service.auth import SIGNATURE, TIMESTAMP, TokenAuth
from resilient_scan.service.bounds import (
    JSON,
    SAFE,
    Bounds,
    RequestError,
    check_json,
    decoded,
    number_in,
    problem,
    readable,
)
from resilient_scan.service.control import (
    MAX_DURATION,
    Control,
    Disable,
    Enable,
    Health,
    Order,
    UnknownProvider,
    UnknownScanner,
)
from resilient_scan.service.door import Turns
from resilient_scan.service.openapi import DEFAULT_LIMIT, MAX_LIMIT, document
from resilient_scan.service.page import HEADERS, Choice, Page

_log = logging.getLogger("resilient_scan")
Given = TypeVar("Given", bound=Disable | Enable | Order)
_ONCE = ("authorization", "content-type", "content-encoding", SIGNATURE, TIMESTAMP)
_SCRAPE = "x-prometheus-scrape-timeout-seconds"  # only Prometheus and its kin send it: they name the instance
_UNREAD = {408, 413}  # the rest of such a body is not read, so the connection cannot be used any further


def application(
    control: Control, auth: TokenAuth | None, pool: Executor, bounds: Bounds, *, protected: bool = False
) -> Starlette:
    """Return the ASGI application.

    Args:
        control: the runner, as the endpoint sees it.
        auth: knows the token; `None`: nothing can be changed.
        pool: where calls into the runner wait for its store.
        bounds: what a client may take.
        protected: whether reading takes a token; the description says so.
    """
    endpoints = _Endpoints(control, auth, pool, bounds, protected=protected)
    routes = [
        Route("/", endpoints.page),
        Route("/page/{name}", endpoints.scanner_page),
        Route("/metrics", endpoints.metrics),
        Route("/healthz", endpoints.healthz),
        Route("/readyz", endpoints.readyz),
        Route("/openapi.json", endpoints.openapi),
        Route("/audit", endpoints.audit),
        Route("/scanners", endpoints.scanners),
        Route("/scanners/{name}", endpoints.scanner),
    ]
    if auth is not None:
        routes += [
            Route("/scanners/{name}/disable", endpoints.disable, methods=["POST"]),
            Route("/scanners/{name}/enable", endpoints.enable, methods=["POST"]),
            Route("/scanners/{name}/reset", endpoints.reset, methods=["POST"]),
            Route("/scanners/{name}/forget", endpoints.forget, methods=["POST"]),
            Route("/scanners/{name}/probe", endpoints.probe, methods=["POST"]),
            Route("/scanners/{name}/run", endpoints.run, methods=["POST"]),
            Route("/providers/{name:path}/reset", endpoints.reset_provider, methods=["POST"]),
            Route("/alerts", endpoints.alerts, methods=["POST"]),
        ]
    handlers: Mapping[Any, Any] = {RequestError: _refused, HTTPException: _not_routed, Exception: _failed}
    made = Starlette(routes=routes, exception_handlers=handlers)
    made.router.redirect_slashes = False  # a redirect would send people wherever the request's Host header says
    return made


class _Endpoints:
    """One method for each address."""

    def __init__(
        self, control: Control, auth: TokenAuth | None, pool: Executor, bounds: Bounds, *, protected: bool
    ) -> None:
        self._control = control
        self._auth = auth
        self._pool = pool
        self._bounds = bounds
        self._protected = protected
        self._turns = Turns(bounds.signed)

    # to look at

    async def page(self, request: Request) -> Response:
        choice = Choice.of(request.query_params)
        return _html(request, await self._on_thread(self._fleet_page, choice, self._user(request)))

    async def scanner_page(self, request: Request) -> Response:
        name = request.path_params["name"]
        return _html(request, await self._on_thread(self._one_page, name, self._user(request)))

    def _fleet_page(self, choice: Choice, user: str) -> str:
        return self._pages(user).fleet(self._control.fleet(), choice)

    def _one_page(self, name: str, user: str) -> str:
        return self._pages(user).one(self._control.one_scanner(name))

    def _pages(self, user: str) -> Page:
        return Page(self._control.now(), self._control.process, user=user, can_change=self._auth is not None)

    def _user(self, request: Request) -> str:
        return "" if self._auth is None else self._auth.user(request.headers.get("authorization", ""))

    async def metrics(self, request: Request) -> Response:
        if _SCRAPE in request.headers:
            self._control.scraped(request.headers.get("host", ""))
        content_type, text = await self._on_thread(self._control.metrics, request.headers.get("accept", ""))
        headers = {**SAFE, "Content-Type": content_type, "Content-Length": str(sum(map(len, text)))}
        return StreamingResponse(_each(text), headers=headers)

    async def healthz(self, _request: Request) -> Response:
        return _json(Health("ok"))

    async def readyz(self, _request: Request) -> Response:
        why_not = await self._on_thread(self._control.why_not_ready)
        if why_not:
            raise RequestError(503, "not_ready", why_not)
        return _json(Health("ready"))

    async def openapi(self, _request: Request) -> Response:
        return _json(document(can_change=self._auth is not None, protected=self._protected))

    async def audit(self, request: Request) -> Response:
        limit = number_in(request.query_params, "limit", DEFAULT_LIMIT, MAX_LIMIT)
        return _json(await self._on_thread(self._control.audit, limit))

    async def scanners(self, _request: Request) -> Response:
        return _json(await self._on_thread(self._control.scanners))

    async def scanner(self, request: Request) -> Response:
        return _json(await self._on_thread(self._control.details, request.path_params["name"]))

    # to change

    async def disable(self, request: Request) -> Response:
        return await self._order(request, "disable", Disable)

    async def enable(self, request: Request) -> Response:
        return await self._order(request, "enable", Enable)

    async def reset(self, request: Request) -> Response:
        return await self._order(request, "reset", Order)

    async def forget(self, request: Request) -> Response:
        return await self._order(request, "forget", Order)

    async def probe(self, request: Request) -> Response:
        return await self._order(request, "probe", Order)

    async def run(self, request: Request) -> Response:
        return await self._order(request, "run", Order, status=202)

    async def reset_provider(self, request: Request) -> Response:
        order = await self._order_in(request, Order)
        name, why, who = request.path_params["name"], readable(order.reason), self._user(request)
        return _json(await self._on_thread(self._control.reset_provider, name, reason=why, who=who))

    async def alerts(self, request: Request) -> Response:
        try:
            body = decoded(await self._body(request, signature=True), object)
        except RequestError as error:
            await self._on_thread(self._control.count_rejected, error.status)
            raise
        return _json(await self._on_thread(self._control.alerts, body))

    async def _order(
        self, request: Request, action: str, kind: type[Disable | Enable | Order], status: int = 200
    ) -> Response:
        order = await self._order_in(request, kind)
        lasting = {} if isinstance(order, Order) else {"duration": _checked(order.duration)}
        name, why, who = request.path_params["name"], readable(order.reason), self._user(request)
        return _json(await self._on_thread(self._control.order, action, name, reason=why, who=who, **lasting), status)

    async def _order_in(self, request: Request, kind: type[Given]) -> Given:
        """Return the order that a request gives."""
        order = decoded(await self._body(request), kind)
        if not order.reason.strip() or len(order.reason) > MAX_TEXT:
            raise RequestError(422, "invalid", f"reason must say why, in 1 to {MAX_TEXT} characters")
        return order

    async def _body(self, request: Request, *, signature: bool = False) -> bytes:
        """Return the body of a request that may change something. Nothing of it is read before its head is right.

        Only a signature has to be checked afterwards, because it covers the body.
        """
        headers, auth = request.headers, self._auth
        for name in _ONCE:  # of two such headers, a proxy in front may have checked one while we read the other
            if len(headers.getlist(name)) > 1:
                raise RequestError(400, "malformed", f"the header {name} came more than once; send it once")
        signed = signature and SIGNATURE in headers and "authorization" not in headers
        if auth is None or not (signed or auth.accepts(headers.get("authorization", ""))):
            raise _unauthorized()
        check_json(headers)
        if not signed:
            return await _body_of(request, self._bounds)
        async with self._turns.one():
            body = await _body_of(request, self._bounds)
        if not auth.signed(headers, body, self._control.now()):
            raise _unauthorized()
        return body

    async def _on_thread(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call into the runner on a thread; what it refuses becomes the answer.

        When the time is up, only the wait ends: the thread is inside the store and goes on, so an order may still be
        carried out after its sender was answered with 503. That is why the message says to look before trying again.
        """
        call = partial(function, *arguments, **named)
        try:
            async with asyncio.timeout(self._bounds.work):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError:
            why = "the runner's store takes too long; try again, and look what was done"
            raise RequestError(503, "too_slow", why) from None
        except StoreError as error:
            raise RequestError(503, "store", f"{error}; try again") from None
        except UnknownScanner as error:
            raise RequestError(404, "unknown_scanner", str(error)) from None
        except UnknownProvider as error:
            raise RequestError(404, "unknown_provider", str(error)) from None
        except ConfigError as error:
            raise RequestError(422, "invalid", str(error)) from None


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    # A plain iterator would do, but starlette takes each of its items on a thread of its own.
    for piece in pieces:
        yield piece


def _unauthorized() -> RequestError:
    return RequestError(401, "unauthorized", "the token is missing or wrong; send 'Authorization: Bearer TOKEN'")


def _checked(duration: float) -> float:
    """Return the seconds for which an order holds.

    Raises:
        RequestError: the duration is wrong.
    """
    if not is_number(duration, 0, MAX_DURATION) or duration == 0:
        why = f"duration must be seconds > 0 and at most {MAX_DURATION:g}, got {duration!r}"
        raise RequestError(422, "invalid", why)
    return duration


async def _body_of(request: Request, bounds: Bounds) -> bytes:
    """Return a request's body.

    Raises:
        RequestError: it is too large, or did not come in time.
    """
    try:
        async with asyncio.timeout(bounds.body):
            return await _read(request, bounds)
    except TimeoutError:
        why = f"the body did not come within {bounds.body:g} s; send it in one go"
        raise RequestError(408, "too_slow", why) from None
    except ClientDisconnect:
        raise RequestError(400, "disconnected", "the sender went away before the body had come") from None


async def _read(request: Request, bounds: Bounds) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bounds.size:
            raise RequestError(413, "too_large", f"the body is larger than {bounds.size} bytes; send less at a time")
    return bytes(body)


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, {**SAFE, "Content-Type": JSON})


def _html(request: Request, text: str) -> Response:
    """Return a page, compressed for who can read that: of 300 scanners, a tenth of the bytes are left."""
    headers = {**SAFE, **HEADERS, "Vary": "Accept-Encoding"}
    body = text.encode()
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, compresslevel=5, mtime=0)
    return HTMLResponse(body, headers=headers)


def _problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(problem(code, message), status, {**SAFE, **(headers or {}), "Content-Type": JSON})


async def _refused(_request: Request, error: RequestError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.status in _UNREAD:
        headers["Connection"] = "close"
    return _problem(error.status, error.code, error.message, headers)


async def _not_routed(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return _problem(405, "method", f"{request.method} is not possible here; use {allowed}", error.headers)
    return _problem(error.status_code, "not_found", "there is nothing at this address; see /openapi.json")


async def _failed(request: Request, _error: Exception) -> Response:
    _log.error("the control endpoint failed at %s %s", request.method, request.url.path)
    return _problem(500, "internal", "the service failed here, its log says more")
