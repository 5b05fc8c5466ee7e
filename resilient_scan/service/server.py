"""An ASGI application on a port of this machine, in a thread that can be started and stopped. Knows uvicorn and h11.

Two threads meet here: the caller of `start` and `stop`, and the one on which uvicorn runs its event loop. The socket is
bound by the caller, before that thread exists: a port that is taken raises in `start`, where uvicorn would exit the
thread without a word.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resilient_scan.errors import ConfigError
from resilient_scan.service.bounds import JSON, SAFE, Bounds, problem, refusal

# Where logging is not configured, uvicorn's own logger writes a line to stderr for each malformed request.
_log = logging.getLogger("resilient_scan.http")
_log.setLevel(logging.ERROR)

# Connections that may wait to be accepted; asyncio accepts all of them in one turn of its loop. They are fewer than may
# be open, so that the request of a new one is read before as many newcomers again can have taken its place.
BACKLOG = 100
CHUNK = 16_384  # bytes of a request that are read at a time


class HttpThread:
    """Serve an application over HTTP/1.1 until `stop`.

    Args:
        application: an ASGI application.
        host, port: where to listen; port 0 lets the system choose a free one.
        bounds: what a client may take.

    Raises:
        ConfigError: the address is taken, or not ours.
    """

    def __init__(self, application: Any, host: str, port: int, bounds: Bounds) -> None:
        self._socket = _listening_socket(host, port)
        address = self._socket.getsockname()
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url: str = f"http://{name}:{address[1]}"
        protocol: Any = partial(_TimedConnection, bounds=bounds)
        self._server = _Server(
            uvicorn.Config(
                application,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                proxy_headers=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=bounds.drain,  # type: ignore[arg-type] # it only waits that long
            )
        )
        self._thread = threading.Thread(target=self._serve, name="resilient-scan-http", daemon=True)

    def start(self) -> None:
        """Begin to answer, and return once it does.

        Raises:
            ConfigError: uvicorn could not start.
        """
        try:
            self._thread.start()
            # Set when uvicorn answers, and again when its thread ends: if the startup fails, the thread exits without
            # ever answering, and a caller that waited for an answer only would wait for ever.
            self._server.answering.wait()
        except BaseException:
            self._socket.close()
            raise
        if not self._server.started:
            self._socket.close()
            raise ConfigError(f"the control endpoint could not be started at {self.url}; the log says why")

    def stop(self) -> None:
        """Let running requests end, within `bounds.drain`, and free the port."""
        self._server.should_exit = True  # uvicorn's loop looks at it ten times a second
        self._thread.join()
        self._socket.close()

    def leave_to_the_parent(self) -> None:
        """Let go of the parent's sockets in a forked child.

        The child inherits copies. While it holds them, the port stays taken after the parent's `stop`, and a client
        whose connection the parent closes waits for an end that never comes. The numbers are not freed but pointed at
        /dev/null: the child also inherits the objects, which close their numbers when they are collected, and by then
        a freed number might belong to a file of the child.
        """
        sockets = [self._socket.fileno()]
        for connection in tuple(self._server.server_state.connections):
            transport = getattr(connection, "transport", None)
            sockets.append(-1 if transport is None else transport.get_extra_info("socket").fileno())
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in sockets:
            if number >= 0:
                with suppress(OSError):
                    os.dup2(nothing, number, inheritable=False)
        os.close(nothing)

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._server.answering.set()


class _Server(uvicorn.Server):
    """uvicorn's server, which also says when it answers, and leaves no connection open when it ends."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.answering.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


class _TimedConnection(H11Protocol):
    """A connection whose client must not take its time; uvicorn's own would wait for ever.

    One timer is enough. It is set when a request's head is awaited. When it goes off, either no head has come, and the
    connection ends, or a request is under way: that gets the time for its body and for the runner, and is then cut off.
    """

    def __init__(self, *arguments: Any, bounds: Bounds, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.logger = _log
        self._bounds = bounds
        self._timer: asyncio.TimerHandle | None = None
        self.waits_since = 0.0  # when it was made, or its last answer ended

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = CHUNK  # type: ignore[attr-defined] # asyncio's own, which reads 256 KiB at a time otherwise
        many = len(self.connections)
        if many > 2 * self._bounds.connections:
            transport.abort()
            return
        if many > self._bounds.connections and not self._find_room():
            self.app = _busy
        self.waits_since = self.loop.time()
        self._arm(self._bounds.head, self._check_progress)

    def data_received(self, data: bytes) -> None:
        # Of a body, only what came with its head is taken before the application asks for more. Otherwise each client
        # would have us keep some 300 KB of a body for which it may not even have a token.
        super().data_received(data)
        cycle: Any = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def on_response_complete(self) -> None:
        # Before `super()`, which handles what the client has already sent of its next request. If that is malformed,
        # the connection ends and the timer is set to abort it; arming the timer afterwards would overwrite that.
        self.waits_since = self.loop.time()
        self._arm(self._bounds.head, self._check_progress)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the base class's
        self._refuse(400, "malformed", "this is not an HTTP/1.1 request; send one as RFC 9112 says")

    def _find_room(self) -> bool:
        """Close the connection that has waited longest for a whole request; say whether there is a place now.

        The wait is not counted from the last byte: of clients that send a byte a second, each would be younger than a
        scraper that is idle between two scrapes, so they would keep all places and have the scraper put out. Whose
        request is being answered is left alone, and if that is everyone, there is no place.
        """
        others: list[Any] = [each for each in self.connections if each is not self and not each.transport.is_closing()]
        waiting = [each for each in others if not each.answers]
        if len(others) >= self._bounds.connections and waiting:
            min(waiting, key=lambda each: each.waits_since).give_way()
            return len(others) == self._bounds.connections
        return len(others) < self._bounds.connections

    @property
    def answers(self) -> bool:
        """True while a request that has come completely is answered."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def give_way(self) -> None:
        """End, because another client needs the place."""
        if self.conn.our_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._end()
        else:
            self._refuse(
                503, "busy", "too many clients are connected, and this request took longest; send it in one go"
            )

    def _check_progress(self) -> None:
        cycle: Any = self.cycle  # None until there is a request, whatever the annotation says
        if self.transport.is_closing():
            self.transport.abort()
        elif cycle is not None and not cycle.response_complete:
            self._arm(self._bounds.body + self._bounds.work, partial(self._cut_off, cycle))
        elif self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, "too_slow", f"no whole request came within {self._bounds.head:g} s; send it in one go")
        else:
            self._end()

    def _cut_off(self, cycle: Any) -> None:
        """Cut off a request that takes longer than all its parts may, for instance because the client does not read."""
        if self.cycle is cycle:
            self.transport.abort()
        else:
            self._check_progress()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what never became a request, unless an answer is already on its way."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = problem(code, message)
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
            lines += [f"{name}: {value}" for name, value in _headers(body).items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._end()

    def _end(self) -> None:
        """Close once the client has read what there is for it, or when it takes too long to."""
        self._arm(self._bounds.head, self.transport.abort)
        self.transport.close()

    def _arm(self, seconds: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, call)


async def _busy(_scope: Any, _receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """Answer a client beyond the limit of connections."""
    for message in refusal(503, "busy", "too many clients are connected; try again", {"Connection": "close"}):
        await send(message)


def _headers(body: bytes) -> Mapping[str, str]:
    return {**SAFE, "Content-Type": JSON, "Content-Length": str(len(body)), "Connection": "close"}


def _listening_socket(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"the control endpoint cannot listen at {host}:{port}: {reason}; port 0 takes a free one"
        ) from None
    return bound
